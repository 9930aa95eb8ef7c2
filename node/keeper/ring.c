#include "node/keeper/ring.h"

#include <string.h>

void mst_ring_append(struct mst_ring *ring, const void *data, size_t len)
{
    const uint8_t *from = data;
    size_t at, part;

    if (len > MST_RING_BYTES) {
        from += len - MST_RING_BYTES;
        ring->end += len - MST_RING_BYTES;
        len = MST_RING_BYTES;
    }
    at = ring->end % MST_RING_BYTES;
    part = len < MST_RING_BYTES - at ? len : MST_RING_BYTES - at;
    memcpy(ring->data + at, from, part);
    memcpy(ring->data, from + part, len - part);
    ring->end += len;
}

uint64_t mst_ring_begin(const struct mst_ring *ring)
{
    return ring->end > MST_RING_BYTES ? ring->end - MST_RING_BYTES : 0;
}

size_t mst_ring_read(const struct mst_ring *ring, uint64_t *offset, void *out, size_t max)
{
    size_t at, part, len;

    if (*offset < mst_ring_begin(ring))
        *offset = mst_ring_begin(ring);
    if (*offset > ring->end)
        *offset = ring->end;
    len = (size_t)(ring->end - *offset);
    if (len > max)
        len = max;
    at = *offset % MST_RING_BYTES;
    part = len < MST_RING_BYTES - at ? len : MST_RING_BYTES - at;
    memcpy(out, ring->data + at, part);
    memcpy((uint8_t *)out + part, ring->data, len - part);
    return len;
}
