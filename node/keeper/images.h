#ifndef MST_KEEPER_IMAGES_H
#define MST_KEEPER_IMAGES_H

#include "mirror/image.h"
#include "node/keeper/keeper.h"

/* Between images.c (orders, memory, link of an image) and image_work.c (what its worker does, and when). */

enum mst_image_job { IMAGE_IDLE, IMAGE_SEED, IMAGE_TAKE, IMAGE_APPLY, IMAGE_SCRUB, IMAGE_VERIFY };

/* The image of one VM of another node. It belongs to its slot, but its log lives on until link and worker have let go of it. */
struct mst_held_image {
    struct mst_keeper *keeper;
    struct mst_vm *vm;           /* NULL: the slot is gone */
    struct mst_mlog_grant grant; /* log_id 0: taken over from an earlier keeper, there is no log */
    char source_node[MST_NAME_BYTES], source_address[64];
    uint8_t *log;
    struct mst_asker order_asker, revoke_asker; /* who waits for an answer */

    struct mst_link *link;
    struct mst_region *region; /* the log, for the source alone */
    bool registering;
    bool keyed; /* a source had the key: this log is for nobody else */

    /* The worker's while one is at it: */
    struct mst_image *image; /* NULL: not made yet; of one that was taken over: not looked at yet */
    int job_err, job_taken;
    struct mst_why job_why;
    uint64_t found_epoch, found_seq, verify_ns;

    /* The loop's: */
    uv_work_t work;
    enum mst_image_job job;
    enum mst_image_state state; /* as the image was when the last job ended */
    struct mst_mlog_ack ack;    /* same */
    bool look, unapplied, ack_owed, revoked, scrub;
    uint64_t written;  /* the source says that it has written up to here */
    uint64_t moved_ms; /* when something came last, or this was said first */
    uint64_t look_ms;  /* when the last job began */
    int err;           /* final: nothing is taken any more */
    uint64_t scrub_pages; /* at a time */
    uv_timer_t timer, scrub_timer;
    bool freeing;
    int closing; /* timers that are not closed yet */
};

/* Does what is to be done next, unless a worker is at it. */
void mst_held_image_go(struct mst_held_image *held);
/* No record is taken any more; the source is told. */
void mst_held_image_fail(struct mst_held_image *held, int err, const char *text);
/* Tells the source how far it is. */
void mst_held_image_ack(struct mst_held_image *held);
/* Frees it once nobody has it any more. */
void mst_held_image_unused(struct mst_held_image *held);
void mst_held_image_seeded(struct mst_held_image *held, int err, const struct mst_why *why);   /* SEED has ended */
void mst_held_image_verified(struct mst_held_image *held, int err, const struct mst_why *why); /* VERIFY has ended */

#endif
