#ifndef MST_KEEPER_RING_H
#define MST_KEEPER_RING_H

#include <stddef.h>
#include <stdint.h>

/* The newest bytes of a console, with offsets counted from the first byte ever written. Pure. */

#define MST_RING_BYTES (64u << 10)

struct mst_ring {
    uint64_t end; /* bytes written so far */
    uint8_t data[MST_RING_BYTES];
};

void mst_ring_append(struct mst_ring *ring, const void *data, size_t len);
/* Offset of the oldest byte still there. */
uint64_t mst_ring_begin(const struct mst_ring *ring);
/* Copies at most max bytes from *offset on; an offset older than the oldest is moved up to it (a gap the reader sees), one beyond the end
 * is moved back to the end. Returns the count; *offset is where the copied bytes begin. */
size_t mst_ring_read(const struct mst_ring *ring, uint64_t *offset, void *out, size_t max);

#endif
