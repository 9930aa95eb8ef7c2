#ifndef MST_KEEPER_MIRRORS_H
#define MST_KEEPER_MIRRORS_H

#include "mirror/send.h"
#include "node/keeper/keeper.h"
#include "shm/save.h"

/* Between mirrors.c (orders, link, what is told) and mirror_put.c (what is put into the log, by a worker, and when). */

enum mst_mirror_job { MIRROR_IDLE, MIRROR_OPEN, MIRROR_PUT, MIRROR_FILL, MIRROR_COMMIT };

#define MST_MIRROR_STAMPS 64u

struct mst_mirror {
    struct mst_mirror *next;
    struct mst_keeper *keeper;
    struct mst_vm *vm; /* NULL: left out, or the slot is gone */
    char node[MST_NAME_BYTES], address[64];
    uint32_t node_id;
    uint16_t port;
    struct mst_mlog_grant grant;
    Mainstay__MirrorPhase phase;
    struct mst_why why; /* of FAILED */

    struct mst_link *link;
    bool registering, ready; /* ready: twin registered, key here */
    unsigned tries;
    uv_timer_t retry;
    struct mst_region *region; /* of the twin */
    uint64_t log_addr;
    uint32_t log_rkey;
    bool keyed;

    /* The worker's while one is at it: */
    uint8_t *twin;
    struct mst_msend *send;
    uint8_t *from_delta;           /* seed: a bit for each page that came from a delta, which is newer than the shadow */
    struct mst_save_record record; /* checkpoint that is put, or was last */
    unsigned step;                 /* of putting it: 0 begin, 1 pages, 2 the rest */
    uint64_t at, fill_at;          /* next entry of the delta; next page of the shadow */
    bool begun, committed;         /* the seed */
    int job_err;
    struct mst_why job_why;

    /* The loop's: */
    uv_work_t work;
    enum mst_mirror_job job;
    struct mst_vm *job_vm;                   /* held by users */
    bool pending;                            /* a checkpoint is not put yet: the agent waits */
    struct mst_save_record next_record;      /* that one; fresh: it is not begun */
    bool fresh, committing;                  /* committing: COMMIT is begun, and nothing may come in between */
    bool blocked;                            /* for ring space */
    uint64_t put_seq;                        /* newest that was put */
    unsigned writing;                        /* WRITEs in flight */
    uint64_t taken, written, said, consumed; /* positions: given to the link, completed, told to the mirror, given back */
    bool has_completed, has_ack;             /* came while a worker was at it: */
    struct mst_msend_write completed;
    struct mst_mlog_ack ack;
    bool asked; /* said was told and is not answered yet */
    uint64_t asked_ms, moved_ms;
    uint64_t acked, filled;                /* filled: pages of the shadow that were put */
    uint64_t sent_bytes;                   /* of WRITEs that have completed */
    uint64_t sending_ns, sending_since_ns; /* see mst_mirror_sending_ns; since: 0: all is acknowledged */
    uint64_t acked_after_ns;               /* so long after the guest stood still for acked */
    bool waited;                           /* output waits for it */
    bool outcounted;                       /* the agent has begun to count anew: acked is nothing that it counts now */
    struct {
        Mainstay__MirrorPhase phase;
        uint64_t acked, sent, filled, ms;
    } told;                             /* last, and when */
    uint64_t stamps[MST_MIRROR_STAMPS]; /* when the guest stood still for checkpoint seq, by seq */
    bool budgeted, freeing;
};

struct mst_mirrors {
    struct mst_mirror *first;
    struct mst_mirror_put { /* what the agent waits for, by slot */
        bool open;
        uint64_t reply_to, session;
    } puts[MST_VMS_PER_NODE];
    uint64_t held_ms;   /* since when mst_tenure_settled says no, as seen each second; 0: it does not */
    uint64_t second_ms; /* when that was asked last */
};

/* --- mirror_put.c --- */
void mst_mirror_go(struct mst_mirror *mirror); /* does what is to be done next, unless a worker is at it */
/* The checkpoint of record is published. whole: not only the pages of its delta differ from the one before. known: the agent says so, and not only
 * what it found. */
void mst_mirror_checkpoint(struct mst_mirror *mirror, const struct mst_save_record *record, bool whole, bool known);
void mst_mirror_acked(struct mst_mirror *mirror, const struct mst_mlog_ack *ack);
/* How long it had, all in all, not acknowledged all that the agent had handed over. Of one that failed: up to the last acknowledgement. */
uint64_t mst_mirror_sending_ns(const struct mst_mirror *mirror);
/* The checkpoint that (vm's record) names. 0, -errno. */
int mst_mirror_record(const struct mst_vm *vm, struct mst_save_record *ret_record);
void mst_mirror_put_done(struct mst_vm *vm); /* one has got what the agent waits for */

/* --- mirrors.c --- */
void mst_mirror_fail(struct mst_mirror *mirror, int err, const char *text);
void mst_mirror_phase(struct mst_mirror *mirror, Mainstay__MirrorPhase phase);
void mst_mirror_connect(struct mst_mirror *mirror);
void mst_mirror_on_retry(uv_timer_t *timer);
void mst_mirror_maybe_join(struct mst_mirror *mirror);       /* it has acknowledged */
void mst_mirror_ask(struct mst_mirror *mirror, bool anyway); /* to look, when there is something new */
void mst_mirror_unused(struct mst_mirror *mirror);           /* gives back what is not needed any more */

#endif
