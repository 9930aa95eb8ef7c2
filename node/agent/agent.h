#ifndef MST_AGENT_AGENT_H
#define MST_AGENT_AGENT_H

#include "base/clock.h"
#include "node/agent/checkpoint.h"
#include "node/agent/keeper_port.h"
#include "node/agent/load.h"
#include "node/agent/mce.h"
#include "node/agent/pace.h"
#include "node/agent/resume.h"
#include "node/agent/stats.h"
#include "node/agent/told.h"
#include "node/agent/vmmap.h"

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

/* Inside of mainstay-node. Everything runs on the loop thread; worker threads touch only the job they were handed.
 *
 *   main          arguments, loop, end
 *   agent         welcome, beat, orders to the right VM, table of VMs
 *   keeper_port   the socket to the keeper
 *   vm            one VM: its states, its monitors, its end
 *   vm_order      orders to start: refused, joined, begun
 *   vm_start      areas, pull or unpack, QEMU, load, run; and undoing all that
 *   vm_rest       shadow and delta, for which the first checkpoint waits
 *   vm_run        checkpoints, save and continue, faults of the running VM
 *   vm_trouble    checkpoints that do not come about: told, until there is a good one
 *   vm_attach     taking up a VM that an earlier agent left running
 *   standby       how a QEMU is started that is to wait beside an image
 *   qmp, resume, load, checkpoint, pace, dirty, vmmap, qemu_args, saved_state   the tools; no keeper in them
 *   mce           machine checks and memory errors of the node; faults: what is reported, how often */

#define MST_AGENT_BEAT_MS         20u
#define MST_VM_CONNECT_MS         60000u /* a QEMU that was just started may take so long until its monitor greets */
#define MST_VM_LOAD_MS            60000u
#define MST_VM_CONNECT_POLL_MS    5u
#define MST_VM_RECONNECT_MS       500u
#define MST_VM_PING_MS            1000u
#define MST_CKPT_AFTER_FAILURE_MS 1000u
#define MST_CKPT_FIRST_MS_PER_MIB 10u
#define MST_CKPT_OVERDUE_MS       5000u /* a checkpoint that is later than its interval by so much is told of */
#define MST_STATS_MS              60000u
#define MST_WAITERS_MAX           8u

enum mst_vm_state {
    VM_ORPHAN,     /* an earlier agent was starting it: waits for the order to come again */
    VM_CLEANING,   /* what that one left is killed and dropped */
    VM_CREATING,   /* keeper makes the areas */
    VM_MAPPING,    /* worker maps them */
    VM_PULLING,    /* keeper fills them */
    VM_UNPACKING,  /* worker fills RAM from a saved state */
    VM_SPAWNING,   /* keeper starts QEMU */
    VM_CONNECTING, /* until its monitor greets */
    VM_PREPARING,  /* capabilities; what does it do just now? */
    VM_MENDING,    /* attached in the middle of a full checkpoint: worker ends it */
    VM_LOADING,    /* device state goes in */
    VM_RESUMING,   /* cont */
    VM_RUNNING,
    VM_SAVING, /* last checkpoint before it stands */
    VM_SAVED,  /* stands, by order */
    VM_UNDOING,
    VM_PANICKED,
    VM_FAILING, /* its start failed: kill, drop, answer */
    VM_ENDING,  /* gone; waits for workers and handles */
    VM_STATES
};

struct mst_agent;

struct mst_waiters { /* orders that get the same answer */
    uint64_t ids[MST_WAITERS_MAX];
    unsigned count;
};

struct mst_vm {
    struct mst_vm *next;
    struct mst_agent *agent;
    enum mst_vm_state state;
    Mainstay__VmDefinition *definition; /* of the order; owned */
    Mainstay__VmDefinition *machine;    /* what QEMU is built from; owned, NULL before VM_MAPPING */
    uint64_t epoch;
    char dir[256]; /* run directory */
    pid_t pid;     /* QEMU; 0: not known */

    /* starting */
    Mainstay__OrderStart *order;  /* owned; NULL when attached */
    Mainstay__Areas *areas_named; /* owned: what the keeper said, for the worker that maps */
    struct mst_waiters start_waiters;
    Mainstay__StartResult start;
    bool started;         /* start is the answer to a repeated order */
    bool attaching;       /* taken up, or monitor lost and looked for again */
    bool expect_standing; /* attached: it was saved by order */
    uint64_t mark_ns, deadline_ms;
    uint32_t disk_devices;   /* bit i: disk i of the machine is a block device here */
    struct mst_why disk_why; /* its disk in main storage has begun anew with this start; otherwise empty */
    char *stream;            /* device state to load; owned */
    size_t stream_bytes;
    int fail_err;
    struct mst_why fail_why;

    struct mst_vmmap *map;
    struct mst_save_writer *writer;
    struct mst_dirty *dirty;
    struct mst_ckpt *ckpt;
    struct mst_qmp *qmp, *spare;  /* the second monitor is kept free; it bears witness when the first is silent */
    struct mst_patience patience; /* how long they may take */
    bool qmp_ready;
    struct mst_load *load;
    struct mst_resume *resume;
    uv_timer_t timer; /* connecting, next checkpoint */
    uv_timer_t ping;
    unsigned handles; /* timers not closed yet */
    uv_work_t work;
    bool working;
    int work_err, work_unlocked;
    struct mst_why work_why;
    uv_work_cb work_do;
    void (*work_then)(struct mst_vm *vm);
    void (*capable_then)(struct mst_vm *vm);

    /* running */
    struct mst_waiters save_waiters, continue_waiters;
    Mainstay__SaveResult save_result;
    bool silent; /* its monitor does not answer: reported */
    bool panicked, panic_told;
    bool stopped_by_other; /* STOP that nobody here asked for */
    bool ping_waits;
    uint64_t mark_id;   /* of the last OutputMark */
    unsigned put_waits; /* answers of the keeper that are out: till then the last delta must stay as it is, for the mirrors */
    bool rest_waits;    /* the keeper is making shadow and delta */
    bool ckpt_due;      /* and the next checkpoint waits for that */
    bool took_waits;    /* the last one is done but for that: then the next one's time is known */
    uint64_t ckpt_begun_ns, pace_told_ms;
    struct mst_pace pace;
    struct mst_pace_took took;
    struct mst_save_note note; /* as it goes out with the next record */
    uint64_t good_seq;         /* newest good checkpoint, as this thread knows: the writer may be with a worker just now */
    uint64_t runs_ns, good_ns,
        trouble_ns; /* since when: it runs here, the last good checkpoint is (0: none here), there is trouble */
    struct mst_stats stats;
    void (*ckpt_gone)(struct mst_vm *vm);
};

struct mst_agent {
    uv_loop_t *loop;
    struct mst_port *port;
    char *node, *run_dir, *qemu, *accel;
    uint64_t instance;
    bool welcomed;
    struct mst_status_map status;
    uv_timer_t beat_timer, stats_timer;
    uint64_t beat;
    bool soft_dirty;
    struct mst_vm *vms;
    struct mst_mce *mce; /* NULL: this node cannot tell */
    struct mst_told_list *told;
    uint64_t machine_checks;
    enum mst_health health;
    int exit_status;
};

/* --- agent.c --- */
int mst_agent_new(uv_loop_t *loop, const char *keeper_socket, struct mst_agent **ret_agent, struct mst_why *why);
void mst_agent_free(struct mst_agent *agent); /* after the loop has ended */

/* --- vm.c --- */
const char *mst_vm_state_name(enum mst_vm_state state);
void mst_vm_move(struct mst_vm *vm, enum mst_vm_state next);
/* Copies the definition; the VM is in the agent's table. -ENOMEM, -ENAMETOOLONG. */
int mst_vm_new(struct mst_agent *agent, const Mainstay__VmDefinition *definition, uint64_t epoch, struct mst_vm **ret_vm);
struct mst_vm *mst_vm_find(struct mst_agent *agent, const char *name, uint64_t epoch);
int mst_vm_dir(const struct mst_agent *agent, const char *name, char *buf, size_t size); /* its run directory; -ENAMETOOLONG */
/* Lets go of everything of QEMU: monitors, load, resume. The checkpointer goes with mst_vm_drop_ckpt. */
void mst_vm_disconnect(struct mst_vm *vm);
uint32_t mst_vm_silent_ms(const struct mst_vm *vm); /* so long its QEMU may take for its greeting, and to be prepared */
/* then runs from the loop once no worker of the checkpointer is left; at once inside when there is none. */
void mst_vm_drop_ckpt(struct mst_vm *vm, void (*then)(struct mst_vm *vm));
void mst_vm_end(struct mst_vm *vm); /* QEMU is gone, or never was: forget the VM; what it saved stays in main storage */
void mst_vm_exited(struct mst_vm *vm, int wait_status);
/* VM_CONNECTING already: connects both monitors, beginning after delay_ms, for at most for_ms. Then VM_PREPARING. */
void mst_vm_connect(struct mst_vm *vm, uint32_t for_ms, uint32_t delay_ms);
/* work runs in a worker thread, then from the loop. One at a time. */
void mst_vm_work(struct mst_vm *vm, void (*work)(uv_work_t *work), void (*then)(struct mst_vm *vm));
/* Sends a request about a VM; refusals are logged with what. */
void mst_vm_tell(struct mst_vm *vm, enum mst_run_state run_state, bool has_fault, Mainstay__FaultKind fault);
void mst_waiters_add(struct mst_waiters *waiters, uint64_t id);
/* err 0 or -errno; why: also with 0, when there is something to say */
void mst_waiters_answer(struct mst_vm *vm, struct mst_waiters *waiters, int err, const struct mst_why *why,
                        Mainstay__StartResult *start, Mainstay__SaveResult *save);

/* --- vm_order.c --- */
void mst_vm_order_start(struct mst_agent *agent, const mst_envelope *env);
void mst_vm_answer_started(struct mst_vm *vm); /* it runs: answers start_waiters */

/* --- vm_start.c --- */
void mst_vm_create(struct mst_vm *vm); /* begins a start: areas first */
int mst_vm_ask_kill(struct mst_vm *vm, mst_port_reply_fn reply);
int mst_vm_ask_drop(struct mst_vm *vm, mst_port_reply_fn reply);
void mst_vm_start_connected(struct mst_vm *vm);
void mst_vm_start_fail(struct mst_vm *vm, int err, const struct mst_why *why); /* in any state before RUNNING */
void mst_vm_map(struct mst_vm *vm, void (*then)(struct mst_vm *vm));
/* Migration capabilities and speed, then then(vm). Failures end the start, or the attaching. */
void mst_vm_set_capabilities(struct mst_vm *vm, void (*then)(struct mst_vm *vm));

/* Whether the boot files of machine can be read; -errno with why. Any thread. */
int mst_vm_check_boot_files(const Mainstay__VmDefinition *machine, struct mst_why *why);
int mst_vm_set_areas(struct mst_vm *vm, const Mainstay__Areas *areas); /* copies; -ENOMEM */

/* --- vm_run.c --- */
int mst_vm_run_begin(struct mst_vm *vm, bool stands, struct mst_why *why); /* checkpointer and ping */
void mst_vm_order_save(struct mst_agent *agent, const mst_envelope *env);
void mst_vm_order_continue(struct mst_agent *agent, const mst_envelope *env);
void mst_vm_save_now(struct mst_vm *vm);     /* RUNNING: save and stand, then answer save_waiters */
void mst_vm_continue_now(struct mst_vm *vm); /* SAVED: run on, then answer continue_waiters */
void mst_vm_run_event(struct mst_vm *vm, const char *name, const json_t *data);
void mst_vm_run_disconnected(struct mst_vm *vm, const struct mst_why *why); /* monitor closed under a running VM */
void mst_vm_went_silent(struct mst_vm *vm, const struct mst_why *why);
void mst_vm_saw_panic(struct mst_vm *vm);
void mst_vm_run_stop(struct mst_vm *vm); /* timers off, open save and continue orders answered with err */

void mst_vm_checkpoint_in(struct mst_vm *vm, uint64_t delay_ms); /* of a protected VM; others have none */

/* --- vm_rest.c --- */
/* Has shadow and delta mapped, or asks the keeper for them: then false, and the next checkpoint is begun when they are there. No worker has the
 * writer. */
bool mst_vm_rest(struct mst_vm *vm);

/* --- vm_trouble.c --- */
bool mst_vm_is_protected(const struct mst_vm *vm);
/* The next checkpoint does not come about, or not as it should. Told when it begins, and when it is another trouble than before. */
__attribute__((format(printf, 3, 4))) void mst_vm_trouble(struct mst_vm *vm, enum mst_save_trouble trouble, const char *text,
                                                          ...);
void mst_vm_trouble_over(struct mst_vm *vm);  /* there is a good one */
void mst_vm_trouble_look(struct mst_vm *vm);  /* once a second: is one overdue? */
void mst_vm_trouble_begin(struct mst_vm *vm); /* a checkpointer was made: the note goes out with its first checkpoint */

/* --- vm_attach.c --- */
void mst_vm_attach(struct mst_agent *agent, const Mainstay__AgentVm *left);
void mst_vm_attach_connected(struct mst_vm *vm);

/* --- standby.c --- */
void mst_standby_asked(struct mst_agent *agent, const mst_envelope *env); /* StandbyAsk: answered by StandbySpawn */

/* --- faults.c --- */
/* text: evidence for people. */
__attribute__((format(printf, 3, 4))) void mst_fault_vm(struct mst_vm *vm, Mainstay__FaultKind kind, const char *text, ...);
void mst_faults_watch(struct mst_agent *agent); /* machine checks */
void mst_faults_unwatch(struct mst_agent *agent);

#endif
