#ifndef MST_AGENT_CHECKPOINT_H
#define MST_AGENT_CHECKPOINT_H

#include "node/agent/dirty.h"
#include "node/agent/qmp.h"
#include "node/agent/vmmap.h"

/* Checkpoints of one running VM into its save area (shm/save.h says what is in there, dirty.h which pages). Loop thread; pages are
 * copied by libuv's worker threads, so that the loop never stands still for them.
 *
 *   IDLE -> (MARKING ->) EARLY -> ARMING -> SAVING -> STAGING -> CONTINUING -> APPLYING -> IDLE     run on
 *                                                       |
 *                                                       +-> APPLYING -> HELD -> CONTINUING -> IDLE  stay, then mst_ckpt_resume
 *   any of them, once the guest may have been stopped -> RESCUING -> IDLE     failed: see to it that the guest runs
 *                                                                             (HELD when it cannot be made to)
 *
 *   MARKING   first checkpoint: a short stop in which the soft-dirty bits are cleared, before the first page is copied
 *   EARLY     pages written since the last checkpoint (first one: all pages) are copied while the guest runs
 *   ARMING    QEMU gets the descriptor for the device state
 *   SAVING    `stop` and `migrate` go out together; waits for the migration's end, and for the owner's mark. The guest stands from here on
 *   STAGING   remaining pages, device state and record; the bits are cleared
 *   APPLYING  delta to shadow; the guest runs again
 *
 * Pages come after the device state, as saving a device may still write guest RAM. */

struct mst_ckpt;

enum mst_ckpt_mode { MST_CKPT_RUN_ON, MST_CKPT_STAY };

struct mst_ckpt_conf { /* all borrowed until mst_ckpt_free */
    uv_loop_t *loop;
    struct mst_qmp *qmp; /* ready, with capabilities x-ignore-shared and events */
    const struct mst_save_map *map;
    struct mst_save_writer *writer;
    struct mst_dirty *dirty; /* NULL: pages are found by comparing with the shadow */
    uint32_t silent_ms;      /* QEMU may take so long for each answer */
    bool stands;             /* the guest stands after a save that another checkpointer made (agent restarted) */
    bool doubt;              /* compare all pages early in the first checkpoint: another agent made the one before */
};

struct mst_ckpt_report {
    uint64_t seq;
    uint64_t device_bytes;
    uint64_t pages_early; /* copied while the guest ran */
    uint64_t pages_late;  /* in the checkpoint and not copied early */
    uint64_t pages_dirty; /* written since the last one, be it with what they held; the kernel does not say: those in it */
    bool first;           /* the shadow was filled, all pages of it */
    bool whole;           /* all of RAM was taken in the pause: delta too small, or protect none */
    bool stands;          /* the guest stands still */
    uint64_t mark_ns;     /* first checkpoint: how long the guest stood for the marking, at most */
    uint64_t early_ns, stop_ns, device_ns, pages_ns, cont_ns, apply_ns;
    uint64_t pause_ns; /* from telling QEMU to stop until it has answered cont; at most that long did the guest stand */
    uint64_t total_ns;
};

struct mst_ckpt_events {
    /* A mst_ckpt_take or mst_ckpt_resume is over. 0; -ECANCELED the guest panicked meanwhile (it stands, nothing was committed);
     * -EMSGSIZE device state over MST_DEVICE_BYTES_MAX; -EREMOTEIO QEMU refused or failed; -ETIMEDOUT, -ENOTCONN; why never NULL.
     * report is borrowed. A failed take committed nothing and the guest runs, unless report->stands. */
    void (*on_done)(struct mst_ckpt *ckpt, int err, const struct mst_ckpt_report *report, const struct mst_why *why, void *arg);
    /* QEMU did not answer in time while the guest may be standing. The take goes on: on_done comes when QEMU answers again. */
    void (*on_silent)(struct mst_ckpt *ckpt, const struct mst_why *why, void *arg);
    /* The record is published, and not settled yet; the guest was told to go on, if it is to. May be NULL. whole: the pages of the delta are not all
     * that changed. */
    void (*on_committed)(struct mst_ckpt *ckpt, bool whole, void *arg);
    /* The guest stands for checkpoint seq. May be NULL. 0; 1: the checkpoint is not committed, and the guest not told to go on, before
     * mst_ckpt_marked; -errno: the checkpoint fails. */
    int (*on_stands)(struct mst_ckpt *ckpt, uint64_t seq, void *arg);
};

/* -ENOMEM, -errno of memfd_create. */
int mst_ckpt_new(const struct mst_ckpt_conf *conf, const struct mst_ckpt_events *events, void *arg, struct mst_ckpt **ret_ckpt);
/* Starts a checkpoint. MST_CKPT_STAY leaves the guest standing: with a shadow the save is there, without one it is RAM itself. -EBUSY. */
int mst_ckpt_take(struct mst_ckpt *ckpt, enum mst_ckpt_mode mode);
/* Lets the guest run again after MST_CKPT_STAY; a save in RAM is withdrawn before. -EINVAL (it does not stand), -EBUSY. */
int mst_ckpt_resume(struct mst_ckpt *ckpt);
/* What rides on the save record (shm/save.h); now: also on the present one, as soon as no worker has the writer. */
void mst_ckpt_note(struct mst_ckpt *ckpt, const struct mst_save_note *note, bool now);
void mst_ckpt_marked(struct mst_ckpt *ckpt); /* see on_stands; nothing when nobody waits */
bool mst_ckpt_busy(const struct mst_ckpt *ckpt);
const char *mst_ckpt_state(const struct mst_ckpt *ckpt);
/* Events of the monitor are handed on here: MIGRATION and GUEST_PANICKED are looked at. */
void mst_ckpt_event(struct mst_ckpt *ckpt, const char *name, const json_t *data);
/* No callback runs any more; freed runs once from the loop when no worker touches the borrowed memory any more (QEMU may be
 * dead by then; a delta that was committed stays as it is, readers lay it over the shadow). */
void mst_ckpt_free(struct mst_ckpt *ckpt, void (*freed)(void *arg), void *arg);

#endif
