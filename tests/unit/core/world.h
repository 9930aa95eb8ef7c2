#ifndef TESTS_CORE_WORLD_H
#define TESTS_CORE_WORLD_H

#include "coordinator/core/core.h"
#include "shm/layout.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A small cluster in memory around the real core: nodes that obey orders, a store that is a list of rows, a fence device, a clock.
 * Checked after every action: no VM runs on two nodes (I1), nothing is started under a grant that is not durable (I3), no epoch goes back (I8). */

#define WORLD_NODES_MAX 8
#define WORLD_STEP_MS   10u
#define WORLD_VMS_MAX   160u

struct world_vm { /* a slot of a node */
    bool used;
    struct mst_slot s;
};

struct world_log {           /* at a source: one mirror of a VM of its own */
    char vm[MST_NAME_BYTES]; /* empty: free */
    uint64_t epoch, log_id, begun_ms, told_ms, acked_seq;
    uint64_t waits_ms; /* since when it has something to acknowledge; 0: it has not */
    unsigned node;     /* where the image is */
    uint32_t phase;
};

struct world_node {
    struct mst_hello hello;
    bool up;           /* keeper runs and answers */
    bool frozen;       /* keeper stopped: reads succeed, counters stand, orders wait */
    bool agent_frozen; /* only the agent's counter stands */
    bool cut;          /* nothing gets through, everything runs on */
    bool orders_wait;  /* orders are on their way and do not arrive yet */
    bool powered;
    bool no_fence_answer, fence_wrong_instance, save_fails;
    int start_err;       /* answer to OrderStart; 0: it starts */
    char start_text[64]; /* and what it says with it */
    uint64_t link;       /* as the coordinator knows it, 0: none */
    uint64_t beat, agent_beat, generation;
    struct world_vm slots[MST_VMS_PER_NODE];
    uint64_t reads_fail; /* its memory cannot be read, while its link stays */
    bool beats_fail;     /* only its beat cannot */
    unsigned agent_restarts_ordered;
    bool agent_restart_helps;
    /* Leases: the newest that arrived. A strict one ends the machine as late as it possibly may: after L + 2 T. */
    struct mst_lease_grant lease;
    uint64_t lease_ms, lease_asked_ms; /* when it was decided; when the last was asked for */
    unsigned leases_asked;
    bool lease_wanted;
    uint32_t watchdog_ms; /* armed; 0: none */
    /* Management address, for nodes that have one by w->conf: there whatever `cut` does. */
    bool manage_cut;
    bool manage_mute;         /* a question is never ended, not even by its deadline */
    uint64_t manage_instance; /* another keeper answers; 0: this one */
    uint8_t manage_boot;      /* after another boot; 0: this one */
    unsigned questions, leases_managed;
    struct {
        bool used, renews;
        uint64_t ms;
        struct mst_lease_grant lease;
    } question;
    /* Mirrors. As the mirror: what it answers. */
    int mirror_err, revoke_err; /* to OrderMirror, to OrderMirrorRevoke; 0: it does it */
    bool image_stuck;           /* nothing that is sent to it arrives */
    uint32_t ack_takes_ms;      /* so long it takes for each checkpoint behind the first */
    unsigned images_made;
    struct world_log logs[8]; /* as the source */
};

enum world_power { POWER_WORKS, POWER_FAILS, POWER_HANGS };

struct world_event {          /* what the core asked for, in order */
    enum mst_order_type type; /* 0: not an order */
    const char *what;         /* "order", "fence", "commit", "reply" */
    unsigned node;
    char vm[MST_NAME_BYTES];
    uint64_t epoch, at_ms;
    bool has_source, image;
    uint32_t source_node;
    uint64_t source_epoch, source_seq;
};

struct world {
    struct mst_core *core;
    struct mst_core_conf conf;
    uint64_t now_us;
    struct world_node nodes[WORLD_NODES_MAX];
    unsigned nodes_count;
    /* store */
    struct mst_row *rows;
    unsigned rows_count, rows_room;
    struct mst_definition definitions[WORLD_VMS_MAX];
    unsigned definitions_count;
    const struct mst_txn *pending;
    bool store_hangs;    /* it answers nothing until this is false again */
    int commit_err;      /* what the store answers */
    unsigned commits;    /* that succeeded */
    unsigned crash_at;   /* restart the coordinator right after this many commits; 0: never */
    bool crash_delivers; /* orders under way still arrive when it dies; their answers do not */
    bool crashed;
    /* fence device */
    enum world_power power;
    unsigned looks_asked, fence_asked, fences_left_to_fail;
    struct {
        bool running, look, was_on;
        uint64_t token, done_ms;
    } fences[WORLD_NODES_MAX];
    uint32_t fence_takes_ms;
    /* seen */
    struct world_event events[4096];
    unsigned events_count;
    struct {
        uint64_t token;
        int err;
        char text[MST_TEXT_BYTES * 2];
    } replies[512];
    unsigned replies_count;
    uint64_t next_token, next_link;
    struct { /* orders under way to nodes */
        bool used;
        struct mst_order o;
        char vm[MST_NAME_BYTES];
        struct mst_definition def;
    } mail[256];
    bool reads[WORLD_NODES_MAX];
    uint64_t highest_epoch[WORLD_VMS_MAX];
    unsigned two_at_once; /* times a VM ran on two nodes */
    struct world_told {   /* by the timeline */
        char vm[MST_NAME_BYTES];
        uint64_t epoch;
        bool fenced, wanted;
    } told[WORLD_VMS_MAX];
    unsigned told_events, told_grants;
    char last_log[512];
    bool verbose;
    struct world_acked { /* by a mirror that counts: the newest of each VM */
        char vm[MST_NAME_BYTES];
        uint64_t epoch, seq;
    } acked[WORLD_VMS_MAX];
    char breach[200];    /* of a rule of mirrors: the first */
    bool breach_is_told; /* not a failure by itself: a planted bug is being looked for */
    unsigned mirrors_joined, mirrors_left, mirrors_used, mirrors_refused; /* by the timeline */
    unsigned mirrors_moved;
    char move_event[2 * MST_TEXT_BYTES];
    char mirror_event[2 * MST_TEXT_BYTES]; /* the last of these: name, node, text */
};

struct world *world_new(unsigned nodes); /* n1, n2, ...: 768 MiB, 8 vCPUs, a fence device each; all join */
void world_free(struct world *w);
void world_run(struct world *w, uint32_t ms);
bool world_until(struct world *w, uint32_t ms, bool (*cond)(struct world *w, const void *arg), const void *arg);
void world_restart(struct world *w); /* the coordinator dies and a new one takes up its rows; nodes call again */

struct mst_definition world_def(const char *name, uint32_t mib, bool protect);
struct mst_definition world_mirror_def(const char *name, uint32_t mib); /* protect mirror */
void world_define(struct world *w, const struct mst_definition *def);
void world_start_vm(struct world *w, const char *vm, const char *node); /* and waits until it runs */
int world_request(struct world *w, enum mst_request_type type, const char *name,
                  const char *node); /* waits for the answer, returns it */
uint64_t world_ask(struct world *w, enum mst_request_type type, const char *name, const char *node); /* does not wait: token */
bool world_replied(struct world *w, uint64_t token, int *ret_err);
const char *world_reply_text(struct world *w);

void world_node_kill(struct world *w, unsigned node);                      /* keeper and VMs die, memory stays */
void world_node_return(struct world *w, unsigned node, bool earlier_dead); /* a new keeper instance */
void world_node_power_on(struct world *w, unsigned node);
void world_cut(struct world *w, unsigned node, bool cut);
void world_vm_die(struct world *w, unsigned node, const char *vm);
void world_report(struct world *w, uint32_t kind, unsigned node, const char *vm);
void world_checkpoint(struct world *w, const char *vm, uint64_t seq); /* where it runs */

int world_where(const struct world *w, const char *vm); /* node index where it runs, -1 */
enum mst_vm_phase world_phase(const struct world *w, const char *vm);
uint64_t world_epoch(const struct world *w, const char *vm);
unsigned world_orders(const struct world *w, enum mst_order_type type, const char *vm);
const struct world_event *world_last(const struct world *w, enum mst_order_type type, const char *vm);
unsigned world_recoveries(const struct world *w);
const struct mst_recovery_row *world_recovery(const struct world *w); /* newest */
const struct mst_rvm_row *world_rvm(const struct world *w, const char *vm);
/* world_mirror.c: what keepers do for mirrors, and the rules of docs/PROTOCOL.md about them, checked at each order and row */
struct mst_slot *world_slot(struct world_node *n, const char *vm, uint64_t epoch);
struct mst_slot *world_slot_new(struct world_node *n, const char *vm, uint64_t epoch);
void world_mirror_order(struct world *w, const struct mst_order *order);  /* as it is sent */
void world_mirror_row(struct world *w, const struct mst_mirror_row *row); /* as it becomes durable */
void world_mirror_obey(struct world *w, struct world_node *n, const struct mst_order *o, const char *vm, struct mst_answer *a);
bool world_image_pulled(struct world *w, struct world_node *src, const struct mst_slot *slot, const struct mst_save_ref *from);
void world_mirrors_turn(struct world *w);
void world_mirror_hello(const struct world_node *n, const struct mst_slot *slot, struct mst_hello_vm *held);
void world_mirrors_keeper_died(struct world_node *n);
const struct mst_mirror_row *world_mirror(const struct world *w, const char *vm, unsigned n); /* in the store, NULL */
bool is_mirrored(struct world *w, const void *vm); /* it counts, and its source knows */
bool runs_somewhere(struct world *w, const void *vm);
bool is_held(struct world *w, const void *vm);
bool recovery_closed(struct world *w, const void *unused);
bool recovery_is(struct world *w, const void *state); /* const enum mst_rec_state * */

#endif
