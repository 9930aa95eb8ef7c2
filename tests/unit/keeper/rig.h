#ifndef MST_TEST_RIG_H
#define MST_TEST_RIG_H

#include "fabric/fabric.h"
#include "node/keeper/lease.h"
#include "proto/frame.h"
#include "shm/save.h"

#include <stdbool.h>
#include <uv.h>

/* A small cluster on this host: real keepers (over the stand-in for RDMA) with the fake agent and QEMU; the test is their coordinator. All
 * functions fail the running test when what they say does not come true. */

#define RIG_NODES       2
#define RIG_TERM        7u
#define RIG_COORDINATOR 99u /* its instance */

struct rig_node {
    unsigned number; /* 1.. */
    pid_t pid;       /* of the keeper, 0: none */
    bool stopped;
    struct mst_link *link; /* control, NULL: none */
    mst_envelope *hello;   /* last Hello; NULL: none on this link yet */
    uint64_t instance;
    mst_envelope *done; /* answer to the last order */
    uint64_t asked;
    char console[1u << 20]; /* what OrderConsole brought */
    size_t console_bytes;
    mst_envelope *reports[64];
    mst_envelope *mirror;                       /* last MirrorState; NULL: none */
    unsigned report_count, event_count, probes; /* probes: answers to nothing */
    uint32_t last_event;
    char main_storage[200], run_dir[200], cgroup[200];
    unsigned memory_mib;
};

struct rig {
    uv_loop_t loop;
    struct mst_fabric *fabric;
    bool silent;             /* the coordinator does not welcome anybody */
    const char *config_more; /* further lines of every node.yaml; NULL: none */
    bool second;             /* keepers know of a second coordinator, at rig_address(102), which is the test's business */
    const char *agent, *qemu, *kernel; /* set by rig_setup; a test may replace them before it starts a keeper */
    uint32_t vm_memory_mib, checkpoint_interval_ms;
    uint32_t vm_disk_mib; /* of VMs under protect: local and mirror; 0: none */
    const char *append;   /* of the definition in OrderMirror, "x" unless set: that of the VM's start */
    bool output_at_once;  /* VMs under protect: mirror have output-commit: false */
    char folder[96];
    struct rig_node nodes[RIG_NODES + 1]; /* by number */
};
extern struct rig *rig;

bool rig_can_run(void);                 /* cgroup v2 writable here; call it once, before the tests */
void rig_sweep(void);                   /* after the tests: what failed ones left */
const char *rig_address(unsigned host); /* on loopback, of this run of the test alone; static, the last four stay */
void rig_setup(void);                   /* fixture: coordinator up, no keeper */
void rig_teardown(void);
void rig_keeper_start(unsigned node); /* and waits for its Hello */
void rig_keeper_spawn(unsigned node); /* without waiting */
void rig_keeper_signal(unsigned node, int sig);
int rig_keeper_wait(unsigned node, int timeout_ms); /* until it ended: wait status */
void rig_coordinator_down(void);
void rig_coordinator_up(void);

/* Runs the loop until check(arg) or the time is over; says which. */
bool rig_until(bool (*check)(void *arg), void *arg, int timeout_ms);
void rig_run_ms(int ms);

void rig_report_answer(unsigned node, unsigned report, int error); /* reports[report]; error: 0 or errno */

/* Sends an order (instance and term are filled in unless set) and waits for its Done, which stays valid until the next order. */
const Mainstay__Done *rig_order(unsigned node, mst_envelope *env);
void rig_order_send(unsigned node, mst_envelope *env); /* without waiting */
const Mainstay__Done *rig_order_wait(unsigned node, int timeout_ms);

const Mainstay__Done *rig_start(unsigned node, const char *vm, uint64_t epoch, Mainstay__Protect protect, const char *append,
                                const Mainstay__SaveSource *source);
void rig_start_send(unsigned node, const char *vm, uint64_t epoch, Mainstay__Protect protect, const char *append,
                    const Mainstay__SaveSource *source);
const Mainstay__Done *rig_fence(unsigned node, const char *vm, uint64_t epoch);
const Mainstay__Done *rig_forget(unsigned node, const char *vm, uint64_t epoch);

/* Orders about mirrors; source, mirror: nodes. */
const Mainstay__Done *rig_mirror(unsigned mirror, const char *vm, uint64_t epoch, unsigned source, uint64_t ring_bytes);
void rig_mirror_send(unsigned mirror, const char *vm, uint64_t epoch, unsigned source, uint64_t ring_bytes); /* without waiting */
void rig_mirror_revoke_send(unsigned mirror, const char *vm, uint64_t epoch);
const Mainstay__Done *rig_mirror_to(unsigned source, const char *vm, uint64_t epoch, unsigned mirror,
                                    const Mainstay__MirrorGrant *grant);
const Mainstay__Done *rig_mirror_sure(unsigned source, const char *vm, uint64_t epoch, uint64_t log_id);
const Mainstay__Done *rig_mirror_drop(unsigned source, const char *vm, uint64_t epoch, uint64_t log_id);
const Mainstay__Done *rig_mirror_revoke(unsigned mirror, const char *vm, uint64_t epoch);
/* Waits until the source says that a mirror is in this phase and holds at least this checkpoint. */
void rig_wait_mirror(unsigned source, Mainstay__MirrorPhase phase, uint64_t at_least);

/* Reads the node's status area as published. */
void rig_status(unsigned node, struct mst_status_area *ret_area);
/* Slot of (vm, epoch): its info; -1 when there is none. */
int rig_slot(unsigned node, const char *vm, uint64_t epoch, struct mst_vm_slot *ret_info);
void rig_wait_state(unsigned node, const char *vm, uint64_t epoch, unsigned state);
uint64_t rig_memory_used(unsigned node);
/* Maps a file of main storage. */
uint8_t *rig_map(unsigned node, const char *name, size_t *ret_bytes);
bool rig_file_there(unsigned node, const char *name);
/* Waits until the events file of the keeper (tail "") or its agent (".agent") has these texts in lines one after the other; NULL ends. */
void rig_wait_told(unsigned node, const char *tail, const char *const *texts);
/* Makes or removes a file in run-dir: what the fake agent is told. */
void rig_agent_tell(unsigned node, const char *file, bool there);
long rig_pid_of(unsigned node, const char *file); /* pid file in run-dir; 0: none */
bool rig_alive(long pid);

/* Leases of node 1, as a coordinator would give them. */
struct mst_beat_line rig_beat(unsigned node);
struct mst_lease_line rig_lease_line(uint32_t lease_ms, uint32_t flags); /* the next one, for its newest beat */
void rig_lease_write(struct mst_lease_line line, unsigned at);
bool rig_renewal_arrived(void *line);
void rig_renew(uint32_t lease_ms, uint32_t flags); /* and waits until its keeper lives by it */

/* What a test says of an answer. */
#define ck_done_ok(done_)                                                                                                        \
    do {                                                                                                                         \
        const Mainstay__Done *done__ = (done_);                                                                                  \
        ck_assert_msg(done__->error == 0, "%d %s", done__->error, done__->text ? done__->text : "");                             \
    } while (0)
#define ck_done_err(done_, error_, text_)                                                                                        \
    do {                                                                                                                         \
        const Mainstay__Done *done__ = (done_);                                                                                  \
        ck_assert_int_eq(done__->error, error_);                                                                                 \
        ck_assert_ptr_nonnull(done__->text);                                                                                     \
        ck_assert_msg(strstr(done__->text, text_) != NULL, "%s", done__->text);                                                  \
    } while (0)

#endif
