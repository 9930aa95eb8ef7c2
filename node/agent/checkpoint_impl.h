#ifndef MST_AGENT_CHECKPOINT_IMPL_H
#define MST_AGENT_CHECKPOINT_IMPL_H

#include "node/agent/checkpoint.h"
#include "node/agent/resume.h"

/* Shared by checkpoint.c (states, loop thread) and checkpoint_work.c (page copies, worker threads). */

enum mst_ckpt_state {
    ST_IDLE,
    ST_MARKING,
    ST_EARLY,
    ST_ARMING,
    ST_SAVING,
    ST_STAGING,
    ST_CONTINUING,
    ST_APPLYING,
    ST_HELD,
    ST_RESCUING,
    ST_COUNT
};

/* How the pages are taken. */
enum mst_ckpt_way {
    WAY_DELTA, /* what changed since the shadow was made goes into the delta */
    WAY_FILL,  /* there is no checkpoint yet: the shadow is filled */
    WAY_RAM,   /* RAM itself while the guest stands; into the shadow afterwards, if there is one */
};

struct mst_ckpt {
    struct mst_ckpt_conf conf;
    const struct mst_ckpt_events *events;
    void *arg;
    enum mst_ckpt_state state;
    enum mst_ckpt_mode mode;
    uint64_t pages;
    uint64_t *early; /* one bit for each page copied early in this checkpoint */
    int device_fd;   /* memfd that cannot grow past MST_DEVICE_BYTES_MAX */
    const uint8_t *device;
    struct mst_resume *resume;
    uv_timer_t timer; /* a migration's end is an event: nothing else says that it is late */
    enum mst_ckpt_way way;
    bool marked; /* bits were cleared for the first checkpoint */
    bool doubt;
    bool panicked; /* the guest is not worth saving any more */
    bool saved, migrate_answered, mark_waits, committed, to_tell;
    int err; /* of the checkpoint that is being rescued */
    struct mst_why why;
    struct mst_ckpt_report report;
    uint64_t begun_ns, mark_ns, stop_sent_ns;
    uint64_t save_by_ms; /* by the monitor's clock (mst_qmp_clock_ms) */

    uv_work_t work;
    uv_work_cb work_what;
    bool working;
    struct mst_save_note note;
    bool note_waits, note_now; /* until the worker is done */
    int work_err;              /* written by the worker, read when it is done */
    uint64_t work_ns;

    bool freeing, timer_closed;
    void (*freed)(void *arg);
    void *freed_arg;
};

/* Each runs in a worker thread while no other touches the checkpoint. */
void mst_ckpt_mark_work(uv_work_t *work);
void mst_ckpt_early_work(uv_work_t *work);
void mst_ckpt_staging_work(uv_work_t *work);
void mst_ckpt_apply_work(uv_work_t *work);

#endif
