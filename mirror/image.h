#ifndef MST_MIRROR_IMAGE_H
#define MST_MIRROR_IMAGE_H

#include "mirror/log.h"
#include "shm/save.h"

#include <stdbool.h>

/* The mirror's side: the image of one VM, which the mirror's own CPU makes from what the source writes into the log. Bytes only, no RDMA. One
 * thread at a time; what takes long (verify: all of the RAM) may be a worker's while nobody else calls.
 *
 * The image is a VM's save area, shadow and delta as protect local has them, without its RAM (shm/save.h): the first checkpoint fills the shadow,
 * each further one is kept in the delta until its commit, then named by the save record, then applied. So an image is pulled, or taken over by the
 * next keeper, as any other save; and a keeper that dies at any byte leaves the checkpoint of the last record, whole, or, before the first commit,
 * none.
 *
 *              seed                 first commit
 *     empty ---------> seeding -----------------> mirroring
 *                         |                           |            revoke: the log's memory region is deregistered before it is called
 *                         +----------> revoked <------+
 *                                       |   |
 *                               verify  |   +------------> cleared    its place may be seeded again, for a newer epoch or under a new log
 *                                       v                   ^
 *                                    verified ---> used ----+
 *
 * Nothing of a record is applied before its sum, log, epoch, instance and number were found right, in a private copy. A checkpoint is acknowledged
 * when all of it was, when the image's digest is that of the source, and when the record names it: it then lives as long as this memory does, also
 * without this process. */
enum mst_image_state {
    MST_IMAGE_EMPTY,
    MST_IMAGE_SEEDING,
    MST_IMAGE_MIRRORING,
    MST_IMAGE_REVOKED,
    MST_IMAGE_VERIFIED,
    MST_IMAGE_USED,
    MST_IMAGE_CLEARED,
    MST_IMAGE_STATES
};
const char *mst_image_state_name(enum mst_image_state state);

struct mst_image;

/* An empty image; its state is this process's, what it holds lies in the regions. -ENOMEM. */
int mst_image_new(struct mst_image **ret_image);
void mst_image_free(struct mst_image *image); /* NULL is fine; the regions stay as they are */
enum mst_image_state mst_image_state(const struct mst_image *image);

/* Makes it ready for a first checkpoint: empties the log and the save record. Before the source gets the key.
 *   log   mst_mlog_bytes(grant->ring_bytes), 8-byte aligned; borrowed
 *   map   without RAM; epoch and delta_capacity as in grant, instance the mirror's keeper; all borrowed
 * 0; -EBUSY it is neither empty nor cleared; -ESTALE an older epoch than it has had, or the same log as before; -EINVAL with why; -ENOMEM. On error
 * nothing was changed. */
int mst_image_seed(struct mst_image *image, const struct mst_mlog_grant *grant, uint8_t *log, const struct mst_save_map *map,
                   struct mst_why *why);
/* Instead of seed, of an empty image: takes up what an earlier keeper left in the regions (map->instance is that one's). It is revoked: its log
 * went with that process. 0; -ENODATA there is no whole checkpoint: it is no mirror; -EBADMSG, -ENOMEM, -EINVAL. Then it stays empty. */
int mst_image_adopt(struct mst_image *image, const struct mst_save_map *map, struct mst_why *why);

/* Looks for the next record and takes it. boot_ns: the mirror's mst_now_ns, for the save record.
 * 0 there is none that is whole; 1 taken; 2 taken, and a checkpoint is committed by it: acknowledge. An error is final, the image stays what it
 * was, and the source must be given another log: -ESTALE log or record of another epoch, instance or log; -EBADMSG a record that is whole but
 * wrong: number, sizes, runs; -ENOSPC more pages than the delta has; -EUCLEAN the image is not what the source has; -EPROTONOSUPPORT. -EBUSY: not
 * seeding and not mirroring. A record that stays half there is for the caller to notice: the source says what it has written. */
int mst_image_take(struct mst_image *image, uint64_t boot_ns, struct mst_why *why);
/* Whether the last take saw the head of the next record, but not all of it. */
bool mst_image_half(const struct mst_image *image);
/* What to tell the source: after each take that returned 1 or 2, or less often. */
void mst_image_ack(const struct mst_image *image, struct mst_mlog_ack *ret_ack);
/* Brings the committed delta into the shadow; take does it too, before the next checkpoint. Best after the acknowledgement has left. */
void mst_image_apply(struct mst_image *image);
/* Looks whether count more pages of the image, round and round, are still what came in, and with the first ones its record and device state. 0; 1 a
 * round has ended; -EBADMSG with why: memory has rotted, and another image has to be made; -EBUSY it is not mirroring. */
int mst_image_scrub(struct mst_image *image, uint64_t count, struct mst_why *why);
uint64_t mst_image_seq(const struct mst_image *image); /* of the checkpoint that it holds, 0: none */
uint64_t mst_image_epoch(const struct mst_image *image);

/* The log is closed to its source: *call it only after its region was deregistered*. 0, also when it was revoked before; -EBUSY nothing was open. */
int mst_image_revoke(struct mst_image *image);
/* Takes what is whole in the log still, applies, and checks every byte of the image against its record. From 0 on nothing but use and clear changes
 * it. 0, with what it holds; -EBUSY not revoked; -ENODATA it holds no checkpoint; -EBADMSG it is damaged, with why. After an error: clear. */
int mst_image_verify(struct mst_image *image, uint64_t boot_ns, uint64_t *ret_epoch, uint64_t *ret_seq, struct mst_why *why);
/* It is the one that the VM is resumed from. 0; -EBUSY not verified; -ESTALE the VM's newest epoch, whose mirror it must be, is another one. */
int mst_image_use(struct mst_image *image, uint64_t epoch);
/* Withdraws the record: nobody finds a checkpoint here any more. 0; -EBUSY its source may still write: revoke first. */
int mst_image_clear(struct mst_image *image);

#endif
