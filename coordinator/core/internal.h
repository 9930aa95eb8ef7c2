#ifndef MST_CORE_INTERNAL_H
#define MST_CORE_INTERNAL_H

/* Shared by the files of core/ only. Which file does what:
 *     core.c     life, the loop over all work, committed
 *     txn.c      staging rows, applying them
 *     view.c     lookups, capacity, who may be chosen
 *     orders.c   orders that wait for an answer
 *     intake.c   fault reports: dedupe, opening recoveries
 *     join.c     hello, link closed, slots, sweeping what nodes still hold
 *     judge.c    beat windows into fault reports, agent included
 *     fence.c    proofs: keeper, return, power, watchdog, operator
 *     lease.c    leases of nodes, and when the end of one is a proof
 *     manage.c   nodes that cannot be read and answer at their management address
 *     storm.c    how much at a time, and when nothing: fences, starts, most nodes lost at once
 *     recovery.c table of states, REPORTED to FENCING
 *     saves.c    which save is the newest, and whether it can be had
 *     mirror.c   mirrors of running VMs: chosen, seeded, made to count, left out
 *     mirror_place.c  where a mirror goes, when it moves, which of two goes
 *     images.c   what mirrors left of a VM that was stopped: revoked, verified, forgotten
 *     resume.c   final reading, planning, committing, resuming
 *     request.c  the operator
 *     look.c     views
 *     trace.c    decisions and orders as events of the timeline
 */

#include "base/fault.h"
#include "base/state.h"
#include "coordinator/core/core.h"
#include "coordinator/core/detect.h"
#include "coordinator/core/plan.h"
#include "shm/layout.h"

#define RECOVERIES_KEPT 256u /* open and closed; who has how many of them: rec_room */
#define FAULTS_KEPT     512u
#define REPORTS_MAX     256u
#define REQUESTS_MAX    64u
#define ORDERS_MAX      512u
#define WAITERS_MAX     128u
#define PROOFS_MAX      32u

#define TRIES_MAX             3u     /* starts of one VM in one recovery */
#define REFUSED_MAX           2u     /* refusals of one save that are believed */
#define START_DEADLINE_MS     60000u /* OrderStart: load, and the pull by MST_PULL_MS_PER_MIB */
#define SAVE_DEADLINE_MS      20000u
#define FENCE_DEADLINE_MS     10000u
#define ORDER_DEADLINE_MS     15000u /* the others */
#define FENCE_RETRY_MIN_MS    1000u
#define POWER_LOOK_MS         10000u /* whether a node that may have the memory somebody waits for is off is asked so often */
#define FENCE_RETRY_MAX_MS    30000u
#define READ_DEADLINE_MS      1000u  /* the look before the fence */
#define READ_AGAIN_MS         1000u  /* views: slots are read so often */
#define READ_GAP_MS           100u   /* and at most so often when something changed */
#define FENCE_OFF_MS          30000u /* after a fence was called off the power may still go */
#define STORE_RETRY_MIN_MS    200u
#define STORE_RETRY_MAX_MS    5000u
#define STORE_SLOW_MS         2000u /* a transaction that takes longer is told of */
#define HELD_RETRY_MS         1000u
#define SAVE_RETRY_MS         30000u /* a VM that could not be saved runs on; then it is tried again */
#define ROOM_TOLD_MS          10000u /* that there is no room for another recovery is told so often: it is reported on and on */
#define SEEN_AGAIN_MS         1000u  /* from a Hello until beats are read */
#define FLAPPING_MS           15000u /* who was unreachable until so short a time ago gets VMs when no other node can take them */
#define OWN_PAUSE_MS          1000u  /* a gap between our ticks that means we were paused */
#define AGENT_TRIES_MAX       3u     /* restarts of one agent ... */
#define AGENT_TRIES_WINDOW_MS 300000u /* ... in this time */
#define MASS_WINDOW_MS        60000u  /* nodes lost within this time went at once */
#define MASS_LOSS_MIN         2u
#define PANIC_WINDOW_MS       60000u
#define OLD_SAVE_KEPT_MS      10000u /* the save a VM was resumed from outlives its first own checkpoint by this at most */
#define FORGET_RETRY_MS       5000u
#define WAIT_MAX_MS           60000u /* start and stop requests */
#define MANAGE_LOOK_MS        10000u /* a management address is looked at so often while RDMA works */
#define MIRRORS_WANTED        1u     /* of each VM under protect mirror */
#define MIRROR_RETRY_MIN_MS   1000u
#define MIRROR_RETRY_MAX_MS   30000u
#define MIRROR_MOVES_MAX      2u       /* mirrors that are being replaced by others at a time: each seed is the memory of a VM */
#define MIRROR_SETTLED_MS     60000u   /* so long one has counted before a better one is looked for */
#define MIRROR_CALM_MS        1920000u /* so long without one, and the next replacement is the first again */
#define MIRROR_LOOK_MS        5000u    /* and so often it is */
#define MIRROR_LAG_HOLD_MS    10000u   /* so long at least one lags before it is replaced */
#define MIRROR_TELL_MS        60000u   /* that nobody can take an image is told of so often, with other numbers */

#define MAX_OF(a, b) ((a) > (b) ? (a) : (b))
#define MIN_OF(a, b) ((a) < (b) ? (a) : (b))

struct held { /* what a node has in main storage for one (vm, epoch) */
    struct mst_slot s;
    uint64_t sweep_ms; /* an order to fence or forget it went out then; 0: none */
    bool told;         /* logged as unknown */
};

struct node_lease {      /* of the present keeper instance, given in this run */
    uint64_t decided_ms; /* when the last renewal was decided; 0: none was */
    uint64_t next_ms;
    uint64_t count;
    uint64_t beat; /* that it names */
    bool bound;    /* the keeper showed that it lives by a strict lease of ours, with a watchdog behind it */
};

struct node_manage {      /* what its management address says */
    bool asking;          /* a question is under way */
    uint64_t asked_ms;    /* when the last went out; 0: none has */
    uint64_t missed_ms;   /* since when it is not seen by RDMA; 0: it is */
    bool resolved;        /* a question that was put since then has ended ... */
    uint64_t answered_ms; /* ... and the last answer by the present instance came then; 0: there is none */
    bool degraded, told;  /* said; stored as a fault */
    int err;              /* of the last question */
    char err_text[MST_TEXT_BYTES];
    struct mst_managed last; /* instance 0: none */
    uint64_t stranger;       /* another keeper that has answered, and was told of */
};

struct node {
    struct mst_member conf;
    struct mst_node_row d;
    uint64_t link; /* 0: none */
    uint64_t link_since_ms, link_closed_ms;
    int link_err;
    char link_text[MST_TEXT_BYTES];
    uint32_t memory_mib, vcpus; /* of its Hello */
    char rack[MST_NAME_BYTES];
    uint8_t boot_id[16];
    uint64_t instance;                 /* of the link, or of the last link */
    bool earlier_dead;                 /* Hello said so, for this instance */
    bool joined;                       /* in this run of the coordinator */
    bool exits_unjudged;               /* since its Hello */
    uint64_t exits_told_ms;            /* of the link whose Hello lacked a VM, which was logged */
    uint64_t joins_ms[MST_JOINS_KEPT]; /* of new instances, newest first; 0: none */
    /* reading */
    bool readable, reading, read_wanted;
    uint64_t read_started, read_finished; /* numbers of reads */
    uint64_t read_ms;                     /* when the last was started */
    int read_err;
    char read_text[MST_TEXT_BYTES];
    uint64_t generation;
    struct mst_detect detect;
    uint64_t beat_reads, beat_gap_max_ms;
    struct node_lease lease;
    struct node_manage manage;
    bool agent_up;
    struct held held[MST_VMS_PER_NODE];
    unsigned held_count;
    struct mst_node_info info;
    /* fencing by power */
    bool fencing, looking; /* its power is being cut; it is only being asked whether it is off. Never both */
    uint64_t fence_token, fence_next_ms, look_instance, look_next_ms;
    uint64_t fence_off_ms; /* when a running fence agent was called off, 0: never */
    uint32_t fence_tries;
    char fence_text[MST_TEXT_BYTES];
    uint64_t agent_restarts_ms[AGENT_TRIES_MAX]; /* newest first */
    bool usable_before;
    uint64_t unreached_ms; /* when this keeper was last judged unreachable, 0: never */
    /* mass loss */
    uint64_t well_ms;   /* when it was last seen to be well, 0: not in this run */
    bool mass_lost;     /* one of those that vanished at once */
    bool loss_accepted; /* the operator said go on without it */
};

enum mirror_state {
    MIRROR_IDLE,
    MIRROR_ASKED,
    MIRROR_GIVEN,
    MIRROR_SEEDING,
    MIRROR_JOINED,
    MIRROR_COUNTS,
    MIRROR_SURE,
    MIRROR_FAILED,
    MIRROR_LEAVING,
    MIRROR_STATES
};

struct mirror {
    struct mst_mirror_row d; /* durable: who counts, or counted last; node_id 0: nobody yet */
    /* Who is one, or is to be one: of this run */
    unsigned state; /* enum mirror_state */
    uint32_t node_id;
    uint64_t instance; /* of its keeper, 0: not known yet */
    uint64_t epoch, log_id;
    struct mst_mirror_grant grant;
    uint64_t order; /* token of the order that is out, 0: none */
    uint64_t retry_ms;
    /* as its source told last */
    uint64_t acked_seq, sent_seq, acked_age_ms, told_ms;
    uint64_t sent_bytes, sending_us, acked_after_us;
    uint64_t sure_ms;             /* since when it is sure, in this run */
    uint64_t waits_seq, waits_ms; /* a checkpoint that it has not acknowledged, and since when; seq 0: none */
    uint64_t lags_ms;             /* since when it lags; 0: it does not */
    bool retired;                 /* FAILED: because another one has taken its place */
    char text[MST_TEXT_BYTES];
};

struct vm {
    bool used;
    struct mst_vm_row d;
    struct mst_definition def;
    int rec; /* open recovery that has it pending or held, -1 */
    uint64_t panic_ms, panic_before_ms, panic_epoch;
    uint64_t corrupt_epoch;                 /* told about a damaged save of this epoch */
    uint64_t continue_ms;                   /* an order to continue went out then */
    uint64_t moves_ms[MST_VM_RESTARTS_MAX]; /* recoveries, newest first */
    uint64_t running_ms;                    /* since when it runs under this grant, as far as we saw; 0: not */
    uint64_t own_save_epoch;                /* a save taken under this epoch was seen */
    struct mirror mirrors[MST_MIRRORS_MAX];
    uint64_t mirror_next_ms;    /* no new one is chosen before */
    uint32_t mirror_tries;      /* that came to nothing, in a row */
    uint64_t mirror_avoid;      /* bit per node index: where they were */
    uint64_t exposed_ms;        /* since when nobody has its checkpoints, 0: somebody has, or it does not run; */
    uint64_t exposed_before_ms; /* and for so long before: in an earlier run of the coordinator, or of the VM */
    char mirror_why[MST_TEXT_BYTES];
    char move_why[MST_TEXT_BYTES];      /* why its mirror is to be replaced, and what becomes of that; empty: it is not */
    uint64_t move_next_ms;              /* no better one is looked for before */
    uint32_t moves;                     /* to better ones, lately */
    uint64_t refused_ms, refused_epoch; /* when it was told of that nobody can take its image */
};

struct image_look { /* READING2: what a mirror says that it holds */
    uint64_t order; /* token, 0: none is out */
    uint64_t retry_ms;
    bool answered;
    int err;
    uint64_t instance, seq;
};

struct rvm {
    struct mst_rvm_row d;
    int vm;         /* index, -1 when it is gone */
    uint64_t order; /* token of the order that is out, 0: none */
    bool ordered, answered;
    int err;
    char why[MST_TEXT_BYTES];
    struct mst_start_result start;
    uint64_t retry_ms;
    uint64_t read_want;               /* number of the read that will do, 0: not asked */
    bool seen;                        /* READING2: that read went well */
    struct mst_save_ref refused_save; /* that was refused when it was pulled ... */
    uint32_t refused;                 /* ... so often, in this run */
    uint32_t away_node;               /* READING2: its newest save may be there, which could not be asked; 0: none */
    struct image_look images[MST_MIRRORS_MAX];
};

struct rec {
    bool used;
    struct mst_recovery_row d;
    struct rvm vms[MST_VMS_PER_NODE];
    unsigned vms_count;
    struct mst_step_row steps[MST_RECOVERY_STEPS];
    unsigned steps_count, steps_total;
    /* of this run of the coordinator, reset at every move */
    uint64_t entered_ms;
    uint64_t read_want;
    uint64_t fence_order; /* token */
    uint64_t fence_retry_ms;
    uint32_t fence_tries;
    uint64_t agent_order, agent_beat;
    bool agent_asked, counted;
    struct mst_time resuming; /* COMMITTING: when the first order to start went out; us 0: none yet */
    uint64_t hold_generation, held_ms;
    char why[MST_TEXT_BYTES];
    /* of this run, kept over moves */
    uint64_t fence_sent[MST_NODES_MAX]; /* keeper there that was told to fence: it may obey at any time; 0: none was */
    uint64_t started_us;                /* of the first step, on our clock; 0: it was before this run */
    uint64_t changed_ms;
};

struct pending {
    uint64_t token; /* 0: free */
    enum mst_order_type type;
    unsigned node;
    uint64_t instance, recovery_id, epoch, deadline_ms;
    char vm[MST_NAME_BYTES];
};

struct queued_report {
    struct mst_report r;
    uint64_t link, token, read; /* read: number of the newest read of that node's slots, begun or ended */
    int node_of_link;           /* -1: operator or ourselves */
};

struct queued_request {
    struct mst_request r;
    uint64_t token;
    struct mst_definition definition;
};

struct waiter {
    uint64_t token; /* 0: free */
    bool for_start;
    char vm[MST_NAME_BYTES];
    uint64_t deadline_ms;
};

struct proof { /* evidence that waits for its transaction */
    bool used;
    enum mst_proof_kind kind;
    unsigned node;
    uint64_t instance;
    struct mst_vm_epoch vms[MST_VMS_PER_NODE];
    unsigned vms_count; /* KEEPER; the others speak of the whole node */
    char text[MST_TEXT_BYTES];
    uint64_t token; /* of the operator who waits, 0: none */
};

struct mst_core {
    struct mst_core_conf conf;
    struct mst_core_io io;
    struct mst_time now;
    uint64_t now_ms;
    uint64_t started_ms, last_tick_ms;
    uint64_t windows_ms; /* since when all windows of detection run again, after a pause of our own; 0: there was none */
    bool started, ready;
    uint64_t next_token;
    uint64_t view_generation; /* grows when somebody might have room now */
    struct mst_meta_row meta;
    struct node nodes[MST_NODES_MAX];
    unsigned nodes_count;
    /* Of each table only entries below its end were ever used: ticks are often, the tables large and mostly empty. */
    unsigned vms_end, recs_end, orders_end;
    struct vm vms[MST_VMS_MAX];
    struct rec recs[RECOVERIES_KEPT];
    struct mst_fault_row faults[FAULTS_KEPT]; /* ring by id */
    uint64_t faults_newest;
    struct pending orders[ORDERS_MAX];
    struct queued_report reports[REPORTS_MAX];
    unsigned reports_head, reports_count;
    uint64_t room_told_ms; /* that there is no room for another recovery */
    struct queued_request requests[REQUESTS_MAX];
    unsigned requests_head, requests_count;
    struct waiter waiters[WAITERS_MAX];
    struct proof proofs[PROOFS_MAX];
    /* the transaction */
    struct mst_txn txn;
    struct mst_definition definition; /* that the transaction names */
    bool staging, committing, pops_report;
    uint64_t commit_ms;    /* when it was handed to the store */
    bool slow_told;        /* that the store does not answer */
    uint64_t txn_us;       /* when it was begun: a new recovery counts from there */
    uint64_t record_fault; /* id of a fault to be put into its node's own log once durable, 0: none */
    uint64_t reply_token;  /* answered when it has ended */
    enum { REPLY_NOW, REPLY_START, REPLY_STOP } reply_when;
    char reply_vm[MST_NAME_BYTES];
    char reply_text[MST_TEXT_BYTES];
    char txn_log[MST_TEXT_BYTES * 2];
    struct proof *proof_staged;
    uint64_t store_next_ms;
    uint32_t store_failures;
    char trouble[MST_TEXT_BYTES * 2];
    char outdated[MST_TEXT_BYTES * 3]; /* our store is an old copy: why; nothing is decided any more */
    char last_failed_log[MST_TEXT_BYTES];
    bool frozen;                            /* most nodes vanished at once: nothing is fenced */
    char frozen_text[MST_TEXT_BYTES * 2];   /* why, in words */
    char degraded_text[MST_TEXT_BYTES * 2]; /* which nodes are, empty: none */
    uint64_t thawed_ms;                     /* enough of them were back then, 0: never, or an operator has said go on */
};

/* view.c */
int vm_find(const struct mst_core *core, const char *name);
int vm_slot(struct mst_core *core, const char *name); /* found, or a free one; -1: full */
int node_find(const struct mst_core *core, const char *name);
int node_find_id(const struct mst_core *core, uint32_t id);
const char *node_name(const struct mst_core *core, uint32_t id); /* "?" */
struct held *held_find(struct node *node, const char *vm, uint64_t epoch);
uint64_t vm_need_bytes(const struct vm *vm);
uint64_t node_used_bytes(const struct mst_core *core, unsigned index);
const char *node_rack(const struct node *node); /* empty: it has no label */
enum mst_racks racks_of(const struct mst_core *core, uint32_t node_id, uint32_t other_id);
bool node_alive(const struct mst_core *core, unsigned index); /* link, and a beat that is neither frozen nor unreadable */
bool agent_runs(const struct mst_core *core,
                const struct node *node); /* it was seen to move since its keeper joined, and is not frozen */
bool node_usable(const struct mst_core *core, unsigned index, const char **ret_why);
bool node_proved_dead(
    const struct node *node); /* the very instance that was seen last; it may be back and still run what it ran */
bool node_has_open(const struct mst_core *core, uint32_t node_id, unsigned scopes); /* scopes: bits of enum mst_scope */
int node_open(const struct mst_core *core, uint32_t node_id, unsigned scopes);      /* newest such recovery, -1 */
/* Takes the node's newest keeper instance for lost as a whole, and has no proof yet. Once it has, that instance may be well again, and be lost anew. */
bool rec_gives_up(const struct mst_core *core, const struct rec *rec, unsigned index);
int node_lost(const struct mst_core *core, unsigned index); /* such a recovery, -1 */
bool rec_room(const struct mst_core *core, enum mst_scope scope);
/* Whether something speaks against the operator's word that it is dead; text: what. Asked when he says it, and when it is decided. */
bool death_is_refuted(const struct mst_core *core, unsigned index, char *text, size_t size);
/* A VM that is being started there, NULL: none of those that a move takes along yet, and nobody would move it afterwards. */
const struct vm *node_awaits(const struct mst_core *core, unsigned index);
uint64_t nodes_flapping(const struct mst_core *core); /* bits: a link that flaps is up whenever one looks */
void plan_nodes_fill(const struct mst_core *core, struct mst_plan_node nodes[static MST_NODES_MAX]);
unsigned place(struct mst_core *core, struct rec *rec, const unsigned *which, unsigned count, bool elsewhere_only,
               struct mst_placement *ret); /* which: indices of rec->vms */
bool any_other_alive(const struct mst_core *core, unsigned index);
void text_set(char *to, size_t size, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void core_log(struct mst_core *core, enum mst_log_level level, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* txn.c: stage copies, submit; nothing changes before the store has them. Staging twice gives the same copy. */
bool txn_free(const struct mst_core *core); /* nothing in flight, and the store is not resting after a failure */
/* The transaction under way moves this recovery: it may be durable already, so nothing is done any more for what the recovery still is here. */
bool txn_moves(const struct mst_core *core, const struct rec *rec);
void txn_begin(struct mst_core *core);
struct mst_meta_row *txn_meta(struct mst_core *core);
struct mst_node_row *txn_node(struct mst_core *core, unsigned index);
struct mst_vm_row *txn_vm(struct mst_core *core, int index);
struct mst_mirror_row *txn_mirror(struct mst_core *core, int index, unsigned n);
const struct mst_vm_row *staged_vm(const struct mst_core *core, int index); /* what it will be: staged, or as it is */
struct mst_recovery_row *txn_rec(struct mst_core *core, const struct rec *rec);
struct mst_rvm_row *txn_rvm(struct mst_core *core, const struct rec *rec, unsigned i);
const struct mst_rvm_row *staged_rvm(const struct mst_core *core, const struct rec *rec, unsigned i);
bool txn_has_mirror(const struct mst_core *core, const char *vm, uint32_t n); /* under way to the store */
struct mst_row *txn_add(struct mst_core *core, enum mst_row_kind kind); /* a new zeroed row; aborts when the txn is full: a bug */
struct mst_proof_row *txn_proof(struct mst_core *core, enum mst_proof_kind kind, unsigned node, uint64_t instance);
struct mst_fault_row *txn_fault(struct mst_core *core);
void txn_move(struct mst_core *core, struct rec *rec, enum mst_rec_state next, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
void txn_move_at(struct mst_core *core, struct rec *rec, const struct mst_time *when,
                 enum mst_rec_state next); /* a move made earlier */
void txn_submit(struct mst_core *core, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void txn_drop(struct mst_core *core);
void txn_apply(struct mst_core *core); /* of a committed transaction */
int row_apply(struct mst_core *core, const struct mst_row *row, bool live, struct mst_why *why);

/* orders.c */
/* Fills in token, instance and term; the node has a link. Returns the token, 0: not sent. */
uint64_t order_send(struct mst_core *core, struct mst_order *order, uint64_t recovery_id, uint32_t deadline_ms);
bool order_pending(const struct mst_core *core, uint64_t token);
void orders_fail(struct mst_core *core, unsigned node, const char *text); /* the link is gone */
void orders_expire(struct mst_core *core);
void orders_delay(struct mst_core *core, uint64_t ms);
void order_answered(struct mst_core *core, const struct pending *order, const struct mst_answer *answer);

/* intake.c */
void report_queue(struct mst_core *core, const struct mst_report *report, uint64_t link, uint64_t token, int node_of_link);
bool report_step(struct mst_core *core); /* true: a transaction went out */
bool report_waits(const struct mst_core *core, uint32_t kind, const char *node, const char *vm);
/* Stages a recovery and its VMs: only_vm, or with -1 all that run on node and are in no other. Call it before their rows change for another
 * reason. Returns its id, 0: no free entry (nothing staged). node -1: none. */
uint64_t open_recovery(struct mst_core *core, enum mst_scope scope, uint32_t kind, int node, uint64_t fault_id, int only_vm,
                       const char *text);
void recovery_go_on(struct mst_core *core, uint64_t id, enum mst_rec_state next,
                    const char *text); /* one staged by open_recovery */
/* The same for what an earlier keeper instance of node left. */
uint64_t open_recovery_of(struct mst_core *core, uint64_t instance, unsigned node, uint64_t fault_id, const char *text);
const char *scope_name(unsigned scope);

/* join.c */
/* By the newest term that a node has seen, who had it, and the newest decision of it: whether our store is an old copy, from now on. */
bool witness_outdated(struct mst_core *core, const char *node, uint64_t term, uint64_t by, uint64_t decision);
bool join_step(struct mst_core *core, unsigned index);
void node_effects(struct mst_core *core, unsigned index);
void slots_judge(struct mst_core *core, unsigned index);
void report_self(struct mst_core *core, uint32_t kind, unsigned node, int vm, const char *text);

/* judge.c */
bool runs_anything(const struct mst_core *core, const struct node *node);
void judge_nodes(struct mst_core *core);

/* fence.c */
void power_cancel(struct mst_core *core, unsigned index); /* a running fence agent, if there is one */
bool fence_needed(const struct mst_core *core, unsigned index);
void fence_power_step(struct mst_core *core, unsigned index);
bool fence_power_wanted(const struct mst_core *core, unsigned index); /* a fence agent would be started, were there no storm */
bool rec_fence_step(struct mst_core *core, struct rec *rec);
void fence_answered(struct mst_core *core, const struct pending *order, const struct mst_answer *answer);
struct proof *proof_queue(struct mst_core *core, enum mst_proof_kind kind, unsigned node, uint64_t instance); /* NULL: full */
bool proof_waits(const struct mst_core *core, unsigned node); /* by power or operator */
void proof_committed(struct mst_core *core, int err);
bool rec_fenced(struct mst_core *core, struct rec *rec);
bool proofs_step(struct mst_core *core); /* evidence that came while a transaction was in flight */
unsigned stage_node_proof(struct mst_core *core, enum mst_proof_kind kind, unsigned node, uint64_t instance, const char *text);

/* manage.c */
void manage_watch(struct mst_core *core); /* every tick, before anything is judged */
/* A node that would be taken for lost: its keeper answers, or has not had the time to yet. False: the usual way. */
bool manage_holds(struct mst_core *core, unsigned index, uint32_t kind, const char *text);
bool manage_answers(const struct mst_core *core, const struct node *node);
void manage_text(const struct node *node, char *text,
                 size_t size); /* for people: degraded, or that its address does not answer */

/* storm.c: text says what is waited for */
void storm_begin(struct mst_core *core);                                /* after the rows are loaded */
void storm_watch(struct mst_core *core);                                /* every tick, before anything is judged */
bool storm_holds(const struct mst_core *core, char *text, size_t size); /* no node may be fenced now for being away */
void storm_accept(struct mst_core *core);                               /* the operator: go on; who is missing is written off */
bool node_away(const struct mst_core *core, const struct node *node, bool sure); /* it is not seen to be well */
bool fence_turn(const struct mst_core *core, unsigned index, char *text, size_t size);
bool start_ready(const struct mst_core *core, const struct rec *rec, unsigned i); /* its order could go out now */
bool start_turn(const struct mst_core *core, const struct rec *rec, unsigned i, unsigned index, char *text, size_t size);
/* lease.c */
void lease_beat(struct mst_core *core, unsigned index, const struct mst_beat *beat); /* a beat of the present instance was read */
void lease_note(struct mst_core *core, unsigned index,
                const struct mst_beat *beat); /* whether the end of its lease would be a proof */
/* By the last answer of its management address: true, a renewal is decided and is to go with the next question. */
bool lease_managed(struct mst_core *core, unsigned index, const struct mst_beat *beat, struct mst_lease_grant *ret);
void lease_reset(struct node *node); /* another instance */
/* Whether nothing runs there any more because its lease has run out. *ret_left_ms: how long until it will, 0: it never will. */
bool lease_proves(const struct mst_core *core, unsigned index, uint64_t *ret_left_ms);

/* recovery.c */
extern const struct mst_state rec_states[MST_REC_STATES];
bool rec_step(struct mst_core *core, struct rec *rec);
void rec_entered(struct mst_core *core, struct rec *rec);
void save_answered(struct mst_core *core, const struct pending *order, const struct mst_answer *answer);
struct rec *rec_by_id(struct mst_core *core, uint64_t id);
bool rec_open(const struct rec *rec);
uint64_t rec_elapsed_us(const struct rec *rec, const struct mst_time *when);
/* Asks for a read of node's slots that starts after now (once per *want) and says whether it is over: read, failed, or too late. */
bool read_ready(struct mst_core *core, const struct rec *rec, uint64_t *want, unsigned node, uint64_t deadline_ms,
                bool *ret_good);
bool stays_for_now(const struct mst_rvm_row *rvm);                        /* runs on, but is to be moved */
bool rec_close(struct mst_core *core, struct rec *rec, const char *text); /* stages DONE or HELD by the staged outcomes */

/* saves.c */
enum save_fate {
    SAVE_GONE, /* there is none any more, or never was */
    SAVE_AWAY, /* its node cannot be asked now: nothing is known */
    SAVE_THERE,
};
struct save_look {
    bool seen;                       /* the slots of its node were read after its fence */
    bool late;                       /* it was waited for long enough: what there is is taken, if it may be */
    const struct image_look *images; /* NULL: who could be asked counts as there */
    struct mst_save_ref from;        /* what ran when the recovery began: node and epoch; node_id 0: not asked for */
};
bool memory_gone(const struct node *node); /* with its power, or a person says so */
enum save_fate save_fate(const struct mst_core *core, const char *vm,
                         const struct mst_save_ref *save); /* of one of an earlier grant */
/* The newest save of a fenced VM, its own or a mirror's. AWAY: *ret says where it may be. */
enum save_fate newest_save(const struct mst_core *core, int index, const struct save_look *look, struct mst_save_ref *ret);
/* What the newest grant, which is fenced, left on its own node. */
enum save_fate own_save(const struct mst_core *core, const struct vm *vm, bool seen, struct mst_save_ref *ret);
bool save_is_back(const struct mst_core *core, int index); /* what was away can be had, or is given up */
bool same_save(const struct mst_save_ref *a, const struct mst_save_ref *b);
void note_own_saves(struct mst_core *core, unsigned index); /* node's slots are new */
bool old_saves_step(struct mst_core *core); /* saves that running VMs have outlived; true: a transaction went out */

/* mirror.c */
void mirrors_effects(struct mst_core *core, int index); /* of one VM: orders, and choosing */
bool mirrors_step(struct mst_core *core);               /* who counts; true: a transaction went out */
void mirror_applied(struct mst_core *core, const struct mst_mirror_row *row);
void mirrors_hello(struct mst_core *core, unsigned index, const struct mst_hello *hello);
void mirror_answered(struct mst_core *core, const struct pending *order, const struct mst_answer *answer);
unsigned mirrors_on(const struct mst_core *core, unsigned index); /* that count there, of running VMs */
bool mirror_active(const struct mirror *mirror);                  /* memory of its node is in use for it, or will be */
void mirrors_look(const struct mst_core *core, const struct vm *vm, struct mst_vm_look *ret);
/* for mirror_place.c: a move that the table does not have aborts */
void mirror_state_move(struct mst_core *core, struct vm *vm, struct mirror *mirror, enum mirror_state next, const char *why);
void mirror_ask(struct mst_core *core, struct vm *vm, struct mirror *mirror,
                unsigned source);                    /* the node that it was chosen for */
bool mirror_row_counts(const struct mirror *mirror); /* the row of its place is about it, and says so */

/* mirror_place.c */
void mirror_choose(struct mst_core *core, struct vm *vm, struct mirror *place, unsigned source); /* it has none */
void mirror_replace(struct mst_core *core, struct vm *vm, struct mirror *place,
                    unsigned source);                      /* its only one, if there is reason; place NULL: no room */
void mirrors_retire(struct mst_core *core, struct vm *vm); /* one more is sure than is wanted */

/* images.c */
uint64_t images_epoch(const struct vm *vm);         /* newest under which anybody counted, 0: nobody ever did */
bool image_counts(const struct vm *vm, unsigned n); /* what place n left may be resumed from */
enum save_fate images_newest(const struct mst_core *core, int index, const struct image_look *looks, struct mst_save_ref *ret);
/* Asks those that count to close their logs and verify; the VM is proved stopped. */
void images_ask(struct mst_core *core, const struct rec *rec, struct rvm *rvm,
                bool late);               /* late: who has answered is not asked again */
bool images_asked(const struct rvm *rvm); /* an answer is on its way: a keeper that checks all of an image takes its time */
bool image_answered(const struct rvm *rvm, const struct vm *vm, const struct mst_save_ref *save); /* it was found whole now */
void revoke_answered(struct mst_core *core, const struct pending *order, const struct mst_answer *answer);
bool image_needed(const struct mst_core *core, const struct node *node, const struct vm *vm, const struct mst_slot *slot);
uint64_t images_held_epoch(const struct mst_core *core, const char *vm); /* newest of any image that any node holds */
void images_loss(const struct mst_core *core, const struct vm *vm, char *text, size_t size); /* why none is left, in words */

/* resume.c */
bool rec_reading2(struct mst_core *core, struct rec *rec);
bool rec_planning(struct mst_core *core, struct rec *rec);
bool rec_resuming(struct mst_core *core, struct rec *rec);
bool rec_held(struct mst_core *core, struct rec *rec);
void start_answered(struct mst_core *core, const struct pending *order, const struct mst_answer *answer);

/* request.c */
bool request_step(struct mst_core *core);
void waiters_step(struct mst_core *core);
void waiter_add(struct mst_core *core, uint64_t token, bool for_start, const char *vm);
bool vm_wish_step(struct mst_core *core); /* running VMs that are not wanted */

/* trace.c */
void core_event(struct mst_core *core, const struct mst_event *event); /* term: ours, when it is 0 */
void trace_begin(struct mst_core *core);                               /* the rows are loaded */
void trace_row(struct mst_core *core, const struct mst_row *row);      /* durable, and about to be applied */
void trace_order(struct mst_core *core, enum mst_event_kind kind, const struct mst_event *about, unsigned node);
void trace_node(struct mst_core *core, enum mst_event_kind kind, unsigned node, uint64_t token, int err, const char *text);

/* core.c */
void core_run(struct mst_core *core);
bool core_outdated(const struct mst_core *core);
void core_time(struct mst_core *core, const struct mst_time *now);

#endif
