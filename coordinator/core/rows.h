#ifndef MST_CORE_ROWS_H
#define MST_CORE_ROWS_H

#include "base/limits.h"

#include <stdbool.h>
#include <stdint.h>

/* What the coordinator keeps durably: plain rows, written in transactions. The same rows are the coordinator's memory: a decision
 * edits copies, the store makes them durable, and only then do they become what the core believes (core/txn.c). A store back end
 * needs nothing but this header. */

#define MST_TEXT_BYTES       200  /* sentences for people, cut to fit, always terminated */
#define MST_DEFINITION_BYTES 8192 /* packed VmDefinition */
#define MST_RECOVERY_STEPS   32   /* steps kept of one recovery; the last is overwritten when there are more */
#define MST_TXN_ROWS         224  /* rows of one decision: all VMs of a node twice, and some */
static_assert(MST_TXN_ROWS >= 3 * MST_VMS_PER_NODE + 16, "a recovery of a full node is one transaction");

/* Numbers as in proto/mainstay.proto (io/convert.c asserts it). */
enum mst_on_fault {
    MST_ON_FAULT_RESUME = 0,
    MST_ON_FAULT_RESTART = 1,
    MST_ON_FAULT_HOLD = 2,
    MST_ON_FAULT_DISCARD = 3,
    MST_ON_FAULT_RESUME_ELSEWHERE = 4,
    MST_ON_FAULTS, /* this and its like below: one behind the last, which rows are held against at loading */
};
/* Each is at least the one before. */
enum mst_protect {
    MST_PROTECT_NONE = 0,
    MST_PROTECT_LOCAL = 1,
    MST_PROTECT_MIRROR = 2,
    MST_PROTECTS,
};
/* What a VM and its mirror may not share. */
enum mst_mirror_apart {
    MST_MIRROR_APART_NODE = 0, /* another rack is preferred */
    MST_MIRROR_APART_RACK = 1, /* and demanded */
    MST_MIRROR_APARTS,
};
enum mst_fault_kind {
    MST_FAULT_NONE = 0,
    MST_FAULT_VM_EXITED = 1,
    MST_FAULT_VM_SILENT = 2,
    MST_FAULT_VM_PANICKED = 3,
    MST_FAULT_AGENT_SILENT = 4,
    MST_FAULT_KEEPER_SILENT = 5,
    MST_FAULT_KEEPER_DEAD = 6,
    MST_FAULT_NODE_UNREACHABLE = 7,
    MST_FAULT_PROCESSOR = 8,
    MST_FAULT_OPERATOR = 9,
    MST_FAULT_EXTERNAL = 10,
    MST_FAULT_AREA_CORRUPT = 11,
    MST_FAULT_KINDS,
};
enum mst_vm_phase {
    MST_VM_STOPPED = 0,
    MST_VM_STARTING = 1,
    MST_VM_RUNNING = 2,
    MST_VM_RECOVERING = 3,
    MST_VM_HELD = 4,
    MST_VM_STOPPING = 5,
    MST_VM_PHASES,
};

/* What a recovery is about. Starts and stops that an operator asked for go through the same machine, unseen in lists. */
enum mst_scope {
    MST_SCOPE_VM = 0,    /* one VM failed, its node is well */
    MST_SCOPE_NODE = 1,  /* a node is lost, or its keeper is */
    MST_SCOPE_MOVE = 2,  /* the node works but its VMs are to leave: failing processor, drain */
    MST_SCOPE_AGENT = 3, /* the agent hangs: restart it; when that does not help, its VMs are moved without its help */
    MST_SCOPE_START = 4,
    MST_SCOPE_STOP = 5,
    MST_SCOPES,
};

/* core/recovery.c has the table of moves and the picture. */
enum mst_rec_state {
    MST_REC_REPORTED = 0,
    MST_REC_READING = 1,
    MST_REC_SAVING = 2, /* MOVE only: VMs are stopped and saved by their own node */
    MST_REC_FENCING = 3,
    MST_REC_READING2 = 4,
    MST_REC_PLANNING = 5,
    MST_REC_COMMITTING = 6, /* plan and grants are durable */
    MST_REC_RESUMING = 7,   /* orders to start are out */
    MST_REC_RESTARTING = 8, /* AGENT only */
    MST_REC_HELD = 9,       /* open: waits for room or for the operator */
    MST_REC_DONE = 10,
    MST_REC_STATES = 11,
};

enum mst_outcome {
    MST_OUT_PENDING = 0,
    MST_OUT_RESUMED = 1,
    MST_OUT_RESTARTED = 2,
    MST_OUT_HELD = 3,
    MST_OUT_STOPPED = 4,   /* the operator wants it stopped: not revived */
    MST_OUT_DISCARDED = 5, /* by its recovery attribute */
    MST_OUT_RUNS_ON = 6,   /* left running where it is */
    MST_OUTCOMES,
};
enum mst_hold {
    MST_HOLD_NONE = 0,
    MST_HOLD_NO_ROOM = 1,
    MST_HOLD_FAILED = 2,
    MST_HOLD_ATTRIBUTE = 3,
    MST_HOLD_SAVE = 4, /* its newest save is on a node that is away; RUNS_ON: it could not be saved */
    MST_HOLDS,
};
enum mst_how { MST_HOW_UNDECIDED = 0, MST_HOW_RESUME = 1, MST_HOW_BOOT = 2, MST_HOWS };

/* Why (vm, epoch) is known not to run. */
enum mst_proof_kind {
    MST_PROOF_NONE = 0,
    MST_PROOF_KEEPER = 1,   /* the keeper killed it and saw its cgroup empty */
    MST_PROOF_RETURN = 2,   /* a new keeper instance saw the cgroups of all earlier ones empty */
    MST_PROOF_POWER = 3,    /* fence agent said off, and a status query agreed */
    MST_PROOF_OPERATOR = 4, /* a person confirmed it */
    MST_PROOF_WATCHDOG = 5, /* its strict lease ran out, and the time that its watchdog takes */
    MST_PROOF_KINDS,
};

#define MST_TERMS_KEPT 16u
struct mst_term_mark { /* a term of this store's past, or its present one; term 0: none */
    uint64_t term;
    uint64_t coordinator; /* instance of the coordinator that had it */
    uint64_t first;       /* its first decision; its last is the one before the next term's first */
};
struct mst_meta_row {
    uint64_t term; /* grows with every start of a coordinator on this store */
    uint64_t next_fault, next_recovery, next_proof;
    uint64_t epoch_floor; /* no new VM starts at or below: highest epoch of any VM that was undefined */
    /* Number of the transaction that wrote this row: each writes it, so that a store knows how far it has come, and nodes that were told can say
     * whether it is an old copy. */
    uint64_t decision;
    struct mst_term_mark terms[MST_TERMS_KEPT]; /* of term T at T mod MST_TERMS_KEPT */
};

struct mst_node_row {
    uint32_t id;
    char name[MST_NAME_BYTES];
    uint64_t instance; /* newest keeper instance seen, 0: never */
    uint8_t host_boot_id[16];
    bool drained;
    bool failing;
    uint64_t fenced_instance; /* instance proved dead by power, watchdog or operator; 0: none, or it is back and runs nothing */
    char text[MST_TEXT_BYTES];
};

struct mst_definition { /* what deciding needs, and the whole message as it goes to the node */
    char name[MST_NAME_BYTES];
    uint32_t memory_mib; /* with its disk in main storage */
    uint32_t vcpus, priority;
    uint8_t protect;                    /* enum mst_protect */
    uint8_t on_node_fault, on_vm_fault; /* enum mst_on_fault */
    uint8_t mirror_apart;               /* enum mst_mirror_apart */
    /* Recovered so many times (1..MST_VM_RESTARTS_MAX) within so long, it is held. */
    uint32_t restarts_max, restarts_window_s;
    uint32_t allowed_count;          /* 0: all */
    uint32_t allowed[MST_NODES_MAX]; /* node ids */
    uint32_t packed_bytes;
    uint8_t packed[MST_DEFINITION_BYTES];
};

struct mst_save_ref { /* a usable save; node_id 0: none */
    uint32_t node_id;
    uint64_t instance, epoch, seq;
    bool image; /* a mirror's, which counted and was found whole */
};

struct mst_vm_row {
    char name[MST_NAME_BYTES];
    bool wanted;   /* the operator wants it to run */
    uint8_t phase; /* enum mst_vm_phase */
    /* The grant: the newest right to run this VM that was ever given. epoch only grows. */
    uint32_t node_id; /* 0: never granted */
    uint64_t instance;
    uint64_t epoch;
    bool fenced; /* nothing runs under this grant: proved by proof_id, or it was never given */
    uint64_t proof_id;
    uint8_t proof_kind;
    struct mst_save_ref save; /* newest save known to be usable */
    uint32_t pin_node_id;     /* the operator asked for this node; 0: none */
    uint64_t image_floor;     /* no image of an earlier epoch is resumed from: of another life of the VM, or outlived */
    uint64_t exposed_wall_ms; /* under protect mirror, while it runs: since when nobody has its checkpoints; 0: somebody has */
    char text[MST_TEXT_BYTES];
};

/* Who counts as a mirror: the newest of its place. A row whose epoch is that of the grant says, counting or not, that somebody has counted under it:
 * images of earlier epochs are too old then. */
struct mst_mirror_row {
    char vm[MST_NAME_BYTES];
    uint32_t n; /* place, below MST_MIRRORS_MAX */
    uint64_t epoch;
    uint32_t node_id;
    uint64_t instance; /* of the mirror's keeper */
    uint64_t log_id;
    bool counts;
    uint64_t since_wall_ms; /* when that became so */
};

struct mst_fault_row {
    uint64_t id;
    uint32_t kind; /* enum mst_fault_kind */
    uint32_t node_id;
    uint64_t instance;
    char vm[MST_NAME_BYTES]; /* empty: the node */
    uint64_t epoch;
    char reporter[MST_NAME_BYTES];
    char text[MST_TEXT_BYTES];
    uint64_t wall_ms;
    uint64_t recovery_id; /* 0: none was started */
    char verdict[MST_TEXT_BYTES];
};

struct mst_recovery_row {
    uint64_t id, fault_id;
    uint32_t node_id; /* 0: none (START) */
    uint64_t instance;
    uint32_t kind; /* enum mst_fault_kind */
    uint8_t scope; /* enum mst_scope */
    uint8_t state; /* enum mst_rec_state */
    uint64_t started_wall_ms;
    char proof[MST_TEXT_BYTES]; /* in words */
};

struct mst_step_row {
    uint64_t recovery_id;
    uint32_t n; /* 0, 1, ... */
    uint8_t state;
    uint64_t wall_ms;
    uint64_t offset_us; /* since the first step */
    char text[MST_TEXT_BYTES];
};

struct mst_start_result { /* as the node measured it */
    uint32_t method;      /* enum Method of the protocol; 0: none */
    uint64_t bytes_pulled, pull_us, verify_us, load_us, spawn_us, save_epoch, save_seq;
    bool standby; /* a QEMU had waited for it. For people, and not stored: false after a restart of the coordinator */
};

struct mst_rvm_row { /* one VM of a recovery */
    uint64_t recovery_id;
    char vm[MST_NAME_BYTES];
    uint32_t from_node_id;
    uint64_t from_instance, epoch_from;
    uint32_t to_node_id; /* 0: not placed */
    uint64_t epoch_to;
    uint64_t proof_id;     /* what proved the grant before epoch_to stopped */
    uint64_t tried;        /* bit per node index of the configuration: starts there have failed */
    uint32_t attempts;     /* failed starts */
    uint8_t how;           /* enum mst_how */
    uint8_t outcome, hold; /* enum mst_outcome, enum mst_hold */
    bool forced;           /* the operator ordered it although an attribute holds it */
    struct mst_start_result start;
    char text[MST_TEXT_BYTES];
};

struct mst_proof_row {
    uint64_t id;
    uint8_t kind; /* enum mst_proof_kind */
    uint32_t node_id;
    uint64_t instance; /* the newest instance it speaks of */
    uint8_t host_boot_id[16];
    uint64_t wall_ms;
    char text[MST_TEXT_BYTES];
};

enum mst_row_kind {
    MST_ROW_META = 1,
    MST_ROW_NODE,
    MST_ROW_DEFINITION,
    MST_ROW_VM,
    MST_ROW_VM_DELETE, /* the VM, its definition and its mirrors */
    MST_ROW_FAULT,
    MST_ROW_RECOVERY,
    MST_ROW_STEP,
    MST_ROW_RVM,
    MST_ROW_PROOF,
    MST_ROW_MIRROR,
    MST_ROW_KINDS, /* one behind the last */
};

struct mst_row {
    enum mst_row_kind kind;
    union {
        struct mst_meta_row meta;
        struct mst_node_row node;                /* key: id */
        const struct mst_definition *definition; /* key: name; borrowed until the transaction has ended */
        struct mst_vm_row vm;                    /* key: name */
        char vm_delete[MST_NAME_BYTES];
        struct mst_fault_row fault;       /* key: id */
        struct mst_recovery_row recovery; /* key: id */
        struct mst_step_row step;         /* key: recovery_id, n */
        struct mst_rvm_row rvm;           /* key: recovery_id, vm */
        struct mst_proof_row proof;       /* key: id */
        struct mst_mirror_row mirror;     /* key: vm, n */
    };
};

struct mst_txn { /* all rows or none; each replaces the row of its key */
    uint32_t count;
    struct mst_row rows[MST_TXN_ROWS];
};

#endif
