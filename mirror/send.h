#ifndef MST_MIRROR_SEND_H
#define MST_MIRROR_SEND_H

#include "mirror/log.h"

#include <stdbool.h>

/* The source's side of a mirror: checkpoints become records, records become WRITEs into the mirror's log. Bytes only, no RDMA: the caller posts
 * what mst_msend_writes gives it, in that order, on one queue pair, and tells which have completed and what the mirror has acknowledged.
 *
 * Records are built in a *twin*, memory of the size of the log that the caller has registered for its link: a WRITE is from one place of the twin
 * to the same place of the log. A place is used again when the mirror has given it back and the WRITE from it has completed; until then calls say
 * -EAGAIN and may be repeated as they were. What is put in is copied at once; nothing of the caller's is held. One thread.
 *
 *     mst_msend_begin  mst_msend_page ...  mst_msend_commit        one checkpoint; the next one may begin before this one is acknowledged
 *
 * That a WRITE has completed says nothing about the mirror: only mst_msend_acked does. */
struct mst_msend;

/* twin: mst_mlog_bytes(grant->ring_bytes), borrowed, overwritten. 0; -EINVAL with why; -ENOMEM. */
int mst_msend_new(const struct mst_mlog_grant *grant, uint8_t *twin, struct mst_msend **ret_send, struct mst_why *why);
void mst_msend_free(struct mst_msend *send); /* NULL is fine; no WRITE from the twin may be in flight that will be told later */

/* Begins checkpoint seq: the first of a log is any (1..) and a *seed*, whose pages may be put while the guest runs, and again when they were
 * written since; each further one is the number after. 0; -EBUSY the one before is not committed; -EINVAL another number. */
int mst_msend_begin(struct mst_msend *send, uint64_t seq);
/* While seeding: the source has taken checkpoint seq meanwhile, whose pages are put over what is there. The seed is committed under the last number.
 * 0; -EINVAL it is no seed, or its device state is begun, or the number goes back. */
int mst_msend_renumber(struct mst_msend *send, uint64_t seq);
/* Puts a page (number) in. bytes: MST_PAGE_BYTES, may be changing. sent: what the mirror has of it (the copy that went last), NULL: not known.
 * 1 put; 0 it is equal to sent and left out; -EAGAIN there is no room in the ring now; -EMSGSIZE this checkpoint has delta_capacity pages already;
 * -ERANGE; -EINVAL no checkpoint is begun. On error nothing was put. */
int mst_msend_page(struct mst_msend *send, uint64_t page, const uint8_t *bytes, const uint8_t *sent);
/* The rest of the checkpoint: device state and what the save record says of it. 0 it is complete; -EAGAIN as much as there is room for was put: the
 * same call goes on when there is more; -EINVAL no checkpoint is begun; -EMSGSIZE device_bytes is 0 or over MST_DEVICE_BYTES_MAX, or not those of
 * the call before. */
struct mst_msend_rest {
    const uint8_t *device;
    uint64_t device_bytes;
    uint64_t ram_digest; /* of the source's own save record */
    uint64_t taken_wall_ms, pause_ns;
};
int mst_msend_commit(struct mst_msend *send, const struct mst_msend_rest *rest);
/* Closes the record that is being filled, so that what was put so far can be sent; commit does so by itself. Nothing to close is fine. */
void mst_msend_flush(struct mst_msend *send);

struct mst_msend_write {
    uint64_t offset; /* in the twin and in the log */
    const uint8_t *bytes;
    uint32_t len; /* at most MST_MLOG_RECORD_MAX */
    uint64_t end; /* for mst_msend_completed; 0 when its completion means nothing */
};
/* Takes the next WRITEs out, at most max, each once. The head of a record comes behind the rest of it: not that the mirror could lean on it, but it
 * then seldom sees half of one. Returns how many; 0: nothing to send now. */
unsigned mst_msend_writes(struct mst_msend *send, struct mst_msend_write *writes, unsigned max);
/* A WRITE, and with it all that were taken out before, has completed. */
void mst_msend_completed(struct mst_msend *send, const struct mst_msend_write *write);

/* What the mirror says. Hostile input is fine: 0; -ESTALE it is of another log or epoch (nothing was changed); -EPROTO it acknowledges what was not
 * sent, or goes back: the mirror is not to be trusted any more. */
int mst_msend_ack(struct mst_msend *send, const struct mst_mlog_ack *ack, struct mst_why *why);
uint64_t mst_msend_acked(const struct mst_msend *send); /* newest checkpoint that the mirror holds, 0: none */

struct mst_msend_stats { /* since it was made */
    uint64_t pages_data, pages_zero, pages_equal;
    uint64_t wire_bytes; /* of records, with heads and padding */
    uint64_t waits;      /* calls that found no room */
};
struct mst_msend_stats mst_msend_stats(const struct mst_msend *send);

#endif
