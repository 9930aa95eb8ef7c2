#ifndef MST_SHM_PUBLISH_H
#define MST_SHM_PUBLISH_H

#include "base/err.h"
#include "shm/layout.h"

#include <stdbool.h>

/* CRC32C (Castagnoli) of len bytes; "123456789" gives 0xe3069283. Any thread. */
uint32_t mst_crc32c(const void *data, size_t len);

/* --- records in two slots: one writer, any number of readers that the writer does not know. Slots are 8-byte aligned. --- */

/* Publishes body into the older of the two slots of MST_PUB_SLOT_BYTES each; the published one stays untouched.
 *   body_bytes  1..MST_PUB_BODY_MAX
 * Writer only; cannot fail. Bytes past body_bytes in the slot are zeroed. What the writer stored before is visible before the
 * record, what it stores afterwards only after it. A slot that a dead writer left half written is the older one. */
void mst_pub_write(uint8_t slots[2][MST_PUB_SLOT_BYTES], uint64_t epoch, uint64_t instance, const void *body,
                   uint32_t body_bytes);
/* Makes both slots empty (version 0), the older one first, so that no reader falls back to it. Writer only. */
void mst_pub_clear(uint8_t slots[2][MST_PUB_SLOT_BYTES]);

/* Picks the newest slot that is whole out of a *private copy* of both. Writes head and body (exactly body_bytes) on success.
 * 0; -ENODATA both never written; -EBADMSG neither whole (torn or corrupt: read again); hostile input is fine. Pure. */
int mst_pub_pick(const uint8_t copy[2][MST_PUB_SLOT_BYTES], struct mst_pub_head *ret_head, void *ret_body, uint32_t body_bytes);
/* The second test after mst_pub_pick: again is a later private copy of the same slots. 0 when the picked version is still there
 * unchanged, -EAGAIN otherwise (the writer has come round; read again). picked NULL: pick said -ENODATA; 0 when both are still never written.
 * That too needs the second look: a READ may fetch one version before it was first written and the other after it was emptied. */
int mst_pub_confirm(const uint8_t again[2][MST_PUB_SLOT_BYTES], const struct mst_pub_head *picked);
/* Local reader: copies, picks, confirms, retries at most 8 times. Errors as above. */
int mst_pub_read(uint8_t (*slots)[MST_PUB_SLOT_BYTES], struct mst_pub_head *ret_head, void *ret_body, uint32_t body_bytes);

/* --- status area --- */

/* Fills a new status area (zeroed by the caller) with its superblock. Names are cut at MST_NAME_BYTES - 1. */
void mst_status_init(struct mst_status_area *area, const char *cluster, const char *node, uint32_t node_id, uint64_t instance,
                     const uint8_t host_boot_id[16], uint64_t started_wall_ms);
/* Checks a private copy of a superblock: magic, version, size, sum, terminated names. -EBADMSG or -EPROTONOSUPPORT with why. */
int mst_superblock_check(const struct mst_superblock *copy, struct mst_why *why);

/* Writes the beat line (sum computed inside) with 8-byte stores. Keeper only. */
void mst_beat_write(struct mst_beat_line *line, const struct mst_beat_line *value);
/* Checks a private copy. 0 or -EBADMSG. */
int mst_beat_check(const struct mst_beat_line *copy);

/* Appends to the fault log ring; sequence and sum are filled in here. Keeper only. */
void mst_fault_log_append(struct mst_status_area *area, const struct mst_fault_entry *entry);
/* Newest first into out (at most max), from a private copy; entries that do not check (sum, place in the ring, terminated texts) are
 * left out. Returns the count. */
unsigned mst_fault_log_list(const struct mst_fault_entry copy[MST_FAULT_LOG_ENTRIES], struct mst_fault_entry *out, unsigned max);

#endif
