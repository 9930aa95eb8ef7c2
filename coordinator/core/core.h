#ifndef MST_CORE_CORE_H
#define MST_CORE_CORE_H

#include "base/err.h"
#include "base/event.h"
#include "base/log.h"
#include "coordinator/core/rows.h"

#include <stddef.h>

/* The coordinator's decisions: events in, actions out. No I/O, no clock, no threads, no allocation after mst_core_new; the same events at the
 * same times give the same actions.
 *
 * Every decision is a transaction of rows. One is in flight at a time: while it is, and while the store refuses, nothing else is decided.
 * Actions follow from rows that are durable, never from the wish to write them, so that a restarted coordinator repeats them from its rows.
 * A failed transaction has not happened: it is decided anew after a pause.
 *
 * All functions: one thread. Functions of mst_core_io never call back into the core before they have returned. */

struct mst_core;

struct mst_time {
    uint64_t us;      /* monotonic, counts while suspended; decides */
    uint64_t wall_ms; /* for people and records */
};

/* --- what the core asks for --- */

enum mst_order_type {
    MST_ORDER_START = 1,
    MST_ORDER_SAVE,
    MST_ORDER_CONTINUE,
    MST_ORDER_FENCE,
    MST_ORDER_FORGET,
    MST_ORDER_RESTART_AGENT,
    MST_ORDER_RECORD_FAULT, /* fault log of the node's main storage; its answer does not matter */
    MST_ORDER_MIRROR,
    MST_ORDER_MIRROR_TO,
    MST_ORDER_MIRROR_SURE,
    MST_ORDER_MIRROR_DROP,
    MST_ORDER_MIRROR_REVOKE,
};

struct mst_mirror_grant {
    uint64_t log_id, mirror_instance, ring_bytes;
    uint32_t delta_capacity;
};

struct mst_vm_epoch {
    char vm[MST_NAME_BYTES];
    uint64_t epoch;
};

struct mst_order { /* borrowed for the call */
    enum mst_order_type type;
    uint64_t token;          /* of the answer */
    unsigned node;           /* index of the configuration */
    uint64_t instance;       /* keeper instance it is for */
    uint64_t term, decision; /* decision: the newest durable one */
    const char *vm;          /* not FENCE, RESTART_AGENT */
    uint64_t epoch;
    const struct mst_definition *definition;     /* START, MIRROR */
    struct mst_save_ref source;                  /* START: node_id 0 boots */
    const char *source_node;                     /* START: name */
    struct mst_vm_epoch fence[MST_VMS_PER_NODE]; /* FENCE */
    unsigned fence_count;
    const struct mst_fault_row *fault; /* RECORD_FAULT */
    const char *text;                  /* RESTART_AGENT */
    const struct mst_member *peer;     /* MIRROR: who sends. MIRROR_TO: the mirror */
    uint64_t peer_instance;
    uint8_t peer_boot_id[16];      /* MIRROR */
    struct mst_mirror_grant grant; /* MIRROR_TO; MIRROR: ring_bytes */
    uint64_t log_id;               /* MIRROR_SURE, MIRROR_DROP */
};

struct mst_lease_grant { /* for the grant area of a node: shm/layout.h, struct mst_lease_line */
    uint64_t instance, term, decision, renewal, beat;
    uint32_t lease_ms; /* 0: no leases any more */
    bool strict;
};

struct mst_core_io {
    void *impl;
    /* One transaction. mst_core_committed follows, exactly once; txn stays untouched until then. */
    void (*commit)(void *impl, const struct mst_txn *txn);
    /* To the node's control link. mst_core_answer follows unless the link closes before. 0, or -errno: not sent. */
    int (*order)(void *impl, const struct mst_order *order);
    /* Power off and ask for the status; look: only ask. mst_core_fence_done(token) follows unless cancelled. */
    void (*fence)(void *impl, unsigned node, uint64_t token, bool look);
    void (*fence_cancel)(void *impl, unsigned node, uint64_t token);
    /* Reads node status and VM slots out of the node's main storage. mst_core_slots follows, exactly once. */
    void (*read_slots)(void *impl, unsigned node);
    /* WRITEs it into the node's grant area; no answer follows. 0, or -errno: not sent, which is decided anew soon. NULL: no leases are given. */
    int (*lease)(void *impl, unsigned node, const struct mst_lease_grant *grant);
    /* Asks the node's keeper at its management address; lease, if not NULL, goes along (lease's renewal is good, whether or not it arrives).
     * mst_core_managed follows, exactly once, at most MST_MANAGE_ASK_MS later, not from inside. NULL: nobody is asked. */
    void (*manage)(void *impl, unsigned node, const struct mst_lease_grant *lease);
    /* The link is of no use any more; mst_core_link_closed is not wanted for it. */
    void (*close_link)(void *impl, uint64_t link);
    /* Who is in the cluster has changed: tell every keeper. */
    void (*peers)(void *impl);
    /* Answer to a request or report with this token (never 0). err 0 or -errno. */
    void (*reply)(void *impl, uint64_t token, int err, const char *text);
    /* A VM runs somewhere else now, or no more (node -1): consoles follow. */
    void (*vm_moved)(void *impl, const char *vm, int node, uint64_t epoch);
    void (*log)(void *impl, enum mst_log_level level, const char *text);
    /* The timeline; borrowed for the call. NULL: nobody keeps it. */
    void (*event)(void *impl, const struct mst_event *event);
};

/* --- life --- */

#define MST_JOINS_KEPT 16u

struct mst_member { /* a node of the configuration */
    char name[MST_NAME_BYTES];
    uint32_t id;
    char address[64];
    uint32_t port;
    char rack[MST_NAME_BYTES]; /* empty: what its Hello says */
    bool has_fence;
    uint32_t watchdog_ms; /* longest timeout of a watchdog that makes the end of its lease a proof; 0: none does */
    bool managed;         /* has a management address */
};

struct mst_core_conf {
    uint32_t coordinator_id;
    uint64_t coordinator_instance; /* another with every start; what Welcome says */
    char cluster[MST_NAME_BYTES];
    uint32_t watch_interval_ms, agent_silent_ms, keeper_silent_ms, keeper_return_ms;
    /* A node whose keeper has started node_starts_max times (2..MST_JOINS_KEPT) within node_starts_window_ms gets no new VMs for as long. */
    uint32_t node_starts_max, node_starts_window_ms;
    /* At most so many power fences at a time, and so many orders to start under way to one node; 0: no limit. */
    uint32_t fences_max, starts_max;
    /* More than this share of the nodes that were up (and two at least) lost at once: nothing is fenced. 0, 100: never. */
    uint32_t mass_loss_percent;
    uint32_t lease_ms;         /* 0: none */
    uint32_t fence_timeout_ms; /* a fence agent ends within */
    uint32_t mirror_lag_ms;    /* a mirror that lets checkpoints wait for longer lags, and is replaced; 0: never */
    struct mst_member nodes[MST_NODES_MAX];
    unsigned nodes_count;
};

/* -ENOMEM, -EINVAL (nodes with the same id or name, node_starts_max out of range). conf is copied, io too. */
int mst_core_new(const struct mst_core_conf *conf, const struct mst_core_io *io, struct mst_core **ret_core);
void mst_core_free(struct mst_core *core);
/* Before start: each row of the store, in any order but meta first, definitions before VMs, recoveries before their steps and VMs.
 * -EINVAL a row contradicts the limits (why), -ENOSPC more VMs than fit; recoveries and faults beyond what is kept are left out. */
int mst_core_load(struct mst_core *core, const struct mst_row *row, struct mst_why *why);
/* Begins a new term (durably) and takes up what is open. Nodes may join once mst_core_ready. */
void mst_core_start(struct mst_core *core, const struct mst_time *now);
bool mst_core_ready(const struct mst_core *core);
/* At least every 100 ms. A gap of more than 1 s between ticks means that we were paused: windows of detection start anew. */
void mst_core_tick(struct mst_core *core, const struct mst_time *now);
void mst_core_committed(struct mst_core *core, const struct mst_time *now, int err, const char *text);

/* --- nodes --- */

enum mst_mirror_phase { /* of one mirror, as its source has it; numbers of the protocol */
                        MST_MIRROR_SEEDING = 1,
                        MST_MIRROR_JOINED = 2,
                        MST_MIRROR_SURE = 3,
                        MST_MIRROR_FAILED = 4,
};
enum mst_slot_image { /* of an image: as mirror/image.h has it */
                      MST_SLOT_IMAGE_SEEDING = 1,
                      MST_SLOT_IMAGE_MIRRORING = 2,
                      MST_SLOT_IMAGE_REVOKED = 3,
                      MST_SLOT_IMAGE_VERIFIED = 4,
                      MST_SLOT_IMAGE_USED = 5,
};
struct mst_held_mirror {
    uint32_t node_id, phase; /* enum mst_mirror_phase */
    uint64_t log_id, acked_seq;
};

struct mst_hello_vm {
    char vm[MST_NAME_BYTES];
    uint64_t epoch;
    uint32_t run_state;   /* enum mst_run_state (shm/layout.h) */
    uint64_t save_seq;    /* 0: no usable save */
    uint32_t image_state; /* of an image: enum mst_slot_image */
    uint64_t log_id;      /* of an image; 0: an earlier keeper's */
    struct mst_held_mirror mirrors[MST_MIRRORS_MAX];
    unsigned mirrors_count;
};

struct mst_hello {
    char cluster[MST_NAME_BYTES], node[MST_NAME_BYTES], address[64];
    uint32_t node_id, port;
    uint8_t host_boot_id[16];
    uint64_t instance;
    uint32_t memory_mib, vcpus;
    char rack[MST_NAME_BYTES]; /* empty: none */
    bool earlier_vms_dead;
    uint64_t highest_term;     /* that the keeper has seen, 0: none */
    uint64_t highest_term_by;  /* instance of the coordinator that had it, 0: not known */
    uint64_t highest_decision; /* that the keeper has heard of in that term, 0: none */
    struct mst_hello_vm held[MST_VMS_PER_NODE];
    unsigned held_count;
};

/* A keeper says hello on a new control link (link: the caller's number, not 0). 0: it has joined, and an older link of the same keeper was given to
 * close_link; -errno with why: refuse it, it was not taken. A keeper that has seen a newer term than ours, a term of ours from another
 * coordinator, or a decision that our store does not have, shows that our store is an old copy: from then on nothing is decided or ordered any more, and everybody is told so (-ESTALE). */
int mst_core_hello(struct mst_core *core, const struct mst_time *now, uint64_t link, const struct mst_hello *hello,
                   struct mst_why *why);
void mst_core_link_closed(struct mst_core *core, const struct mst_time *now, uint64_t link, int err, const char *text);

struct mst_beat {
    uint64_t read_us; /* when the read finished, clock of mst_time */
    uint64_t keeper_beat, agent_beat, generation, vm_fault_flags, instance;
    bool agent_up;
    uint64_t lease_renewal; /* of the lease it lives by; 0: none */
    bool lease_wanted, lease_strict;
    uint32_t watchdog_ms; /* of the one it has armed; 0: none */
};
/* A successful read of the beat line, or a failed one. The caller has checked the line's sum. */
void mst_core_beat(struct mst_core *core, const struct mst_time *now, unsigned node, const struct mst_beat *beat);
void mst_core_beat_failed(struct mst_core *core, const struct mst_time *now, unsigned node, uint64_t at_us);
struct mst_managed { /* what a keeper says at its management address */
    uint64_t instance;
    uint8_t boot_id[16];
    bool rdma_up;
    uint32_t vms_running;
    uint64_t highest_term, highest_term_by, highest_decision; /* as in Hello */
    struct mst_beat beat;
};
/* Answer to manage. err 0: the keeper has answered; otherwise text says why it has not, and answer is not looked at. It is evidence of life, which puts
 * off what would be done to a node that cannot be read; it proves nobody dead. */
void mst_core_managed(struct mst_core *core, const struct mst_time *now, unsigned node, int err, const char *text,
                      const struct mst_managed *answer);
/* Whether read_slots can work (a WATCH link is open and its keys are known). */
void mst_core_readable(struct mst_core *core, const struct mst_time *now, unsigned node, bool readable);

/* As in the save record (shm/layout.h); io/slots.c holds them against each other. */
enum mst_slot_pace { MST_SLOT_PACE_SET, MST_SLOT_PACE_STALL, MST_SLOT_PACE_COPY, MST_SLOT_PACE_MIRROR, MST_SLOT_PACES };
enum mst_slot_standby { /* struct mst_vm_slot */
                        MST_SLOT_STANDBY_NONE,
                        MST_SLOT_STANDBY_WARM,
                        MST_SLOT_STANDBY_STARTING,
                        MST_SLOT_STANDBY_OFF,
                        MST_SLOT_STANDBY_FULL,
                        MST_SLOT_STANDBY_FAILED,
                        MST_SLOT_STANDBYS
};
enum mst_slot_trouble {
    MST_SLOT_TROUBLE_NONE,
    MST_SLOT_TROUBLE_FAILED,
    MST_SLOT_TROUBLE_SILENT,
    MST_SLOT_TROUBLE_STOPPED,
    MST_SLOT_TROUBLE_LATE,
    MST_SLOT_TROUBLE_MIRROR,
    MST_SLOT_TROUBLE_WHOLE,
    MST_SLOT_TROUBLES
};
struct mst_slot { /* one VM slot of a node's main storage, checked */
    char vm[MST_NAME_BYTES];
    uint64_t epoch;
    uint32_t run_state, fault_kind;
    uint64_t bytes;                /* of its four regions */
    bool save_corrupt;             /* a save record is there that does not check */
    uint64_t save_epoch, save_seq; /* usable save; seq 0: none */
    uint32_t save_source;
    uint64_t taken_wall_ms, pause_us;
    /* For people, also without a save; 0: not said. */
    uint32_t interval_ms, pages;
    uint64_t dirty_pages;
    uint32_t pause_p50_us, pause_p99_us;
    uint32_t pace, trouble; /* enum mst_slot_pace, enum mst_slot_trouble */
    uint64_t trouble_wall_ms;
    uint32_t image_state; /* of an image: enum mst_slot_image */
    uint64_t log_id;      /* of an image */
    uint32_t standby;     /* of an image: enum mst_slot_standby; for people */
};
struct mst_node_info { /* node status, checked */
    bool known;
    uint32_t health, load_milli, agent_restarts;
    uint64_t machine_checks, memory_used_bytes;
};
/* Answer to read_slots. err 0: slots are all VM slots in use (count <= MST_VMS_PER_NODE); otherwise text says why, and no slot is believed. */
void mst_core_slots(struct mst_core *core, const struct mst_time *now, unsigned node, int err, const char *text,
                    const struct mst_node_info *info, const struct mst_slot *slots, unsigned count);

struct mst_answer {
    int err; /* 0 or -errno */
    char text[MST_TEXT_BYTES];
    struct mst_start_result start;
    uint64_t save_seq, save_pause_us;
    bool has_fence; /* FenceResult */
    uint64_t fence_instance;
    uint8_t fence_boot_id[16];
    struct mst_vm_epoch fenced[MST_VMS_PER_NODE];
    unsigned fenced_count;
    bool has_grant; /* MIRROR */
    struct mst_mirror_grant grant;
    bool has_image; /* MIRROR_REVOKE */
    uint64_t image_instance, image_epoch, image_seq, image_verify_us;
};
/* Unknown tokens are ignored. */
void mst_core_answer(struct mst_core *core, const struct mst_time *now, uint64_t token, const struct mst_answer *answer);
/* err 0: the fence agent said off and the status query agreed; of a look: the status is off. */
void mst_core_fence_done(struct mst_core *core, const struct mst_time *now, uint64_t token, int err, const char *text);

struct mst_vm_event {
    char vm[MST_NAME_BYTES];
    uint64_t epoch;
    uint32_t run_state;
    char text[MST_TEXT_BYTES];
};
void mst_core_vm_event(struct mst_core *core, const struct mst_time *now, uint64_t link, const struct mst_vm_event *event);

struct mst_mirror_news { /* of the source's keeper: MirrorState */
    char vm[MST_NAME_BYTES], node[MST_NAME_BYTES];
    uint64_t epoch, log_id;
    uint32_t phase; /* enum mst_mirror_phase */
    uint64_t acked_seq, sent_seq, acked_age_ms;
    uint64_t sent_bytes, sending_us, acked_after_us; /* for people; 0: not said */
    char text[MST_TEXT_BYTES];
};
void mst_core_mirror(struct mst_core *core, const struct mst_time *now, uint64_t link, const struct mst_mirror_news *news);

struct mst_report {
    uint32_t kind;
    char node[MST_NAME_BYTES], vm[MST_NAME_BYTES]; /* vm empty: the node */
    uint64_t epoch, instance;                      /* 0: not said */
    char reporter[MST_NAME_BYTES], text[MST_TEXT_BYTES];
};
/* A fault report. link: the control link it came by, 0: the operator. token 0: nobody waits; otherwise reply follows, once what the report
 * led to is durable. */
void mst_core_report(struct mst_core *core, const struct mst_time *now, uint64_t link, uint64_t token,
                     const struct mst_report *report);

/* --- the operator --- */

enum mst_request_type {
    MST_REQ_DEFINE = 1,
    MST_REQ_UNDEFINE,
    MST_REQ_START,
    MST_REQ_STOP,
    MST_REQ_DRAIN,
    MST_REQ_UNDRAIN,
    MST_REQ_CONFIRM_DEAD,
    MST_REQ_GO_ON, /* after a mass loss: name is not used */
};
struct mst_request {
    enum mst_request_type type;
    char name[MST_NAME_BYTES];               /* VM or node */
    char node[MST_NAME_BYTES];               /* START: empty is any */
    bool replace;                            /* DEFINE */
    const struct mst_definition *definition; /* DEFINE; copied */
    char text[MST_TEXT_BYTES];               /* CONFIRM_DEAD */
};
/* token not 0; reply follows exactly once: for START when the VM runs or is held, for STOP when it is proved stopped, both with -EINPROGRESS
 * when that takes longer than a minute; for the others when the decision is durable. -ENOBUFS: too many wait, no reply follows. */
int mst_core_request(struct mst_core *core, const struct mst_time *now, uint64_t token, const struct mst_request *request);

/* --- looking --- */

enum mst_node_state {
    MST_NODE_ABSENT = 0,
    MST_NODE_UP = 1,
    MST_NODE_SUSPECT = 2,
    MST_NODE_FENCING = 3,
    MST_NODE_FENCED = 4,
    MST_NODE_DRAINED = 5,
    MST_NODE_FAILING = 6,
    MST_NODE_DEGRADED = 7, /* RDMA is away, its keeper answers at its management address */
};
struct mst_node_look {
    const struct mst_member *member;
    const char *rack; /* its failure domain, empty: not known */
    enum mst_node_state state;
    uint64_t instance;
    uint64_t link; /* 0: none */
    bool agent_up, drained;
    uint32_t health, vms, vcpus, load_milli;
    uint64_t memory_mib, memory_used_mib, beat_age_ms, machine_checks;
    /* Since the coordinator's start: beats that were read and judged, and the longest time between two of one life of the keeper. */
    uint64_t beat_reads, beat_gap_max_ms;
    bool beat_known;
    char text[MST_TEXT_BYTES];
};
struct mst_mirror_look {
    int node;          /* index */
    const char *state; /* "seeding", "sure" */
    bool counts;       /* the store says so */
    bool same_rack;    /* as the VM's node: both are labelled so */
    uint64_t since_wall_ms, acked_seq, sent_seq, behind_ms;
    uint64_t sent_bytes, sending_us, acked_after_us; /* as its source said; 0: not known */
    const char *text;
    const char *standby; /* the QEMU that waits there, in words; NULL: not known */
};
struct mst_vm_look {
    const struct mst_vm_row *row;
    const struct mst_definition *definition;
    int node;          /* index where it runs or last ran, -1 */
    uint64_t save_seq; /* 0: none known */
    uint64_t save_wall_ms, pause_us;
    uint32_t interval_ms, pages;         /* of checkpoints at present, in the last one; 0: not known */
    uint64_t dirty_pages;                /* written by the guest, in all checkpoints of its agent */
    uint32_t pause_p50_us, pause_p99_us; /* of the newest checkpoints; 0: not known */
    char pace[MST_TEXT_BYTES];           /* why that interval, in words */
    const char *trouble;                 /* with the next checkpoint; NULL: none */
    uint64_t trouble_wall_ms;            /* since when */
    char text[MST_TEXT_BYTES];
    /* protect mirror */
    struct mst_mirror_look mirrors[MST_MIRRORS_MAX];
    unsigned mirrors_count;
    bool exposed; /* it runs, and nobody counts who still gets its checkpoints */
    uint64_t exposed_ms;
    char protection[2 * MST_TEXT_BYTES]; /* in words; empty: it has nothing to do with mirrors */
};
struct mst_recovery_look {
    const struct mst_recovery_row *row;
    const struct mst_step_row *steps;
    unsigned steps_count;
    const char *why; /* reason why it stands where it is, may be empty */
    unsigned state;  /* enum mst_rec_state as it is now; RESUMING becomes durable with the first answer */
    unsigned vms_count;
    uint64_t key; /* for mst_core_recovery_vm */
};

unsigned mst_core_nodes(const struct mst_core *core);
void mst_core_node(const struct mst_core *core, const struct mst_time *now, unsigned index, struct mst_node_look *ret);
int mst_core_node_by_name(const struct mst_core *core, const char *name); /* index or -1 */
int mst_core_node_by_id(const struct mst_core *core, uint32_t id);
/* The i-th VM in order of name, from 0; false past the last. */
bool mst_core_vm(const struct mst_core *core, unsigned i, struct mst_vm_look *ret);
bool mst_core_vm_by_name(const struct mst_core *core, const char *name, struct mst_vm_look *ret);
/* Newest first; starts and stops are not shown. The rows stay until the next event. */
bool mst_core_recovery(const struct mst_core *core, unsigned i, struct mst_recovery_look *ret);
bool mst_core_recovery_by_id(const struct mst_core *core, uint64_t id, struct mst_recovery_look *ret);
const struct mst_rvm_row *mst_core_recovery_vm(const struct mst_core *core, uint64_t key, unsigned i);
const struct mst_fault_row *mst_core_fault(const struct mst_core *core, unsigned i); /* newest first, NULL past the last */
/* One sentence when nothing is decided (the store refuses or is an old copy), nothing is fenced (mass loss) or a node is degraded, empty otherwise. */
const char *mst_core_trouble(const struct mst_core *core);
uint64_t mst_core_term(const struct mst_core *core);
uint64_t mst_core_decision(const struct mst_core *core); /* number of the newest durable one, for nodes to remember */
const char *mst_rec_state_name(unsigned state);
const char *mst_fault_kind_name(unsigned kind);
const char *mst_outcome_name(unsigned outcome);
const char *mst_proof_name(unsigned kind);
const char *mst_mirror_state_name(unsigned state);

#endif
