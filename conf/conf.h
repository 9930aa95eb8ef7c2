#ifndef MST_CONF_CONF_H
#define MST_CONF_CONF_H

#include "base/err.h"
#include "base/limits.h"
#include "mainstay.pb-c.h"

#include <stdbool.h>
#include <stdint.h>

/* Configuration and VM definitions: YAML through libcyaml, checked against a schema and then against the limits.
 * Every refusal reads `FILE:LINE: KEY: what is wrong, what is allowed`. Samples: deploy/config/. Any thread.
 * Returns 0, -ENOENT, -EACCES, -EFBIG (over 1 MiB), -EINVAL with why. Free with the matching free function (NULL is fine). */

#define MST_NODE_PORT           7471u /* default ports */
#define MST_COORDINATOR_PORT    7470u
#define MST_MANAGEMENT_PORT     7472u
#define MST_COORDINATORS_MAX    8 /* a node knows of */
#define MST_NODE_MEMORY_MIB_MAX 16777216u
#define MST_NODE_VCPUS_MAX      4096u
#define MST_CONF_PATH_MAX       4000u /* bytes of a path in a file: room for what is put behind it */
#define MST_RUN_DIR_MAX         80u   /* run-dir: a Unix socket's path has 107 bytes */
#define MST_NODE_STARTS_MAX     16u   /* node-starts-max, at most */
#define MST_ETCD_ENDPOINTS_MAX  9
#define MST_DRILL_FAULTS_MAX    256

struct mst_management_conf { /* TCP, beside the RDMA network */
    char *address;
    uint16_t port;
};

struct mst_coordinator_addr {
    char *address;
    uint16_t port;
    char *management_address; /* where its questions to our management address come from; default address */
};

struct mst_watchdog_conf {
    char *device;       /* /dev/watchdog0 */
    uint32_t timeout_s; /* 1..MST_WATCHDOG_S_MAX */
    char *kind;         /* hardware (default): a software watchdog is armed but does not count as proof; softdog: it does */
};

struct mst_node_conf {
    char *cluster, *node;
    uint32_t id;
    char *address;
    uint16_t port;
    char *rack; /* may be NULL */
    struct mst_coordinator_addr *coordinators;
    unsigned coordinators_count;
    char *main_storage; /* default /dev/shm/mainstay */
    uint32_t memory_mib;
    uint32_t vcpus;
    uint32_t mirror_scrub_s;     /* a round over every image, 1..MST_MIRROR_SCRUB_S_MAX, default MST_MIRROR_SCRUB_S */
    uint32_t standby_memory_mib; /* for QEMUs that wait beside images, MST_STANDBY_MIB each; default 256, 0: none wait */
    char *run_dir, *state_dir, *cgroup, *agent, *exec, *qemu; /* defaults as in docs/OPERATING.md */
    char *events_file;                                        /* NULL: STATE-DIR/events.jsonl */
    char *accel;                                              /* auto, kvm, tcg */
    char *on_lease_lost;                                      /* stop, run-on */
    char *bridge;                                             /* of VMs that name none, default mainstay0 */
    struct mst_watchdog_conf *watchdog;                       /* NULL: none */
    struct mst_management_conf *management;                   /* NULL: none */
};
int mst_node_conf_load(const char *path, struct mst_node_conf **ret_conf, struct mst_why *why);
void mst_node_conf_free(struct mst_node_conf *conf);

struct mst_option {
    char *key, *value;
};
struct mst_fence_conf { /* one fence-agents program; options go to its stdin as key=value */
    char *agent;
    struct mst_option *options;
    unsigned options_count;
};
struct mst_member_conf { /* a node that may join */
    char *name;
    uint32_t id;
    char *address;
    uint16_t port;
    char *rack;                             /* NULL: what the node says */
    uint32_t watchdog_proof_ms;             /* its watchdog resets it within this: the end of its lease is a proof. 0: is none */
    struct mst_fence_conf *fence;           /* NULL: only an operator can confirm its death; the coordinator warns at start */
    struct mst_management_conf *management; /* NULL: none */
};
struct mst_etcd_conf {
    char **endpoints; /* "http://10.7.0.101:2379" */
    unsigned endpoints_count;
    char *prefix;                         /* of all keys; default /mainstay/CLUSTER */
    char *ca_file, *cert_file, *key_file; /* NULL: none; with https only */
    uint32_t lease_ms;                    /* default 5000: a leader that is silent for so long is replaced */
};
struct mst_store_conf {
    struct mst_etcd_conf *etcd;
};
struct mst_coordinator_conf {
    char *cluster;
    uint32_t id;
    char *address;
    uint16_t port;
    char *state_dir, *run_dir;
    struct mst_store_conf *store; /* NULL: SQLite in state_dir, and no other coordinator */
    char *events_file;            /* NULL: STATE-DIR/events.jsonl */
    uint32_t watch_interval_ms, agent_silent_ms, keeper_silent_ms, keeper_return_ms; /* defaults 50, 3000, 3000, 3000 */
    uint32_t node_starts_max, node_starts_window_ms; /* defaults 4 keeper starts, within 120000: then no new VMs for as long */
    uint32_t fences_max, starts_max; /* defaults 2 power fences at a time, 8 orders to start under way to one node */
    uint32_t mass_loss_percent;      /* default 50: more than so many lost at once, and nothing is fenced; 100: never */
    uint32_t mirror_lag_ms;          /* default 10000: a mirror that lets checkpoints wait for longer is replaced; 0: never */
    uint32_t lease_ms;               /* default 30000, more when keeper_silent_ms is long; 0: no leases */
    uint32_t fence_timeout_ms;       /* default 30000: a fence agent that takes longer is killed and retried */
    struct mst_member_conf *nodes;
    unsigned nodes_count;
};
int mst_coordinator_conf_load(const char *path, struct mst_coordinator_conf **ret_conf, struct mst_why *why);
void mst_coordinator_conf_free(struct mst_coordinator_conf *conf);

/* VM definition from a YAML file (docs/OPERATING.md) into its message; free with mainstay__vm_definition__free_unpacked(def, NULL). */
int mst_vm_definition_load(const char *path, Mainstay__VmDefinition **ret_def, struct mst_why *why);
/* The limits of a definition, wherever it comes from: YAML file or peer. -EINVAL with why ("memory-mib: 0 is ..., allowed 1..65536"). */
int mst_vm_definition_check(const Mainstay__VmDefinition *def, struct mst_why *why);

/* A deep copy; NULL: no memory. Freed as above. */
Mainstay__VmDefinition *mst_vm_definition_copy(const Mainstay__VmDefinition *def);

/* Of a definition that has passed the check. Its disk in main storage, MiB; 0: none. */
uint32_t mst_vm_disk_mib(const Mainstay__VmDefinition *def);
/* Its RAM area in main storage, MiB: memory-mib and, right behind it, that disk. Budgets, shadows, images and checkpoints know only this. */
uint32_t mst_vm_area_mib(const Mainstay__VmDefinition *def);

/* The bridge of definitions and of node.yaml. -EINVAL. */
int mst_bridge_check(const char *bridge);
/* Hardware address of the network card: the one it names, or one made from its name, the same on every node. def has passed the check. */
void mst_vm_mac(const Mainstay__VmDefinition *def, uint8_t ret_mac[6]);

/* Drill files. */
struct mst_drill_fault {
    uint32_t at_ms;
    char *kind;
    char *node;
    char *vm;        /* may be NULL; node may be NULL with vm: where vm runs then */
    char *mirror_of; /* in place of node: who holds the checkpoints of this VM then; undo: whom the faults struck so */
};
struct mst_drill_vm {
    char *definition; /* path of a VM definition, relative to the drill file */
    char *name;       /* overrides the definition's name; NULL: as is */
    char *node;       /* where it is to run at the start; NULL: planner */
    /* objectives; has_* false: not set */
    bool has_rto_ms;
    uint32_t rto_ms;
    bool has_rpo_ms;
    uint32_t rpo_ms;
    char *memory; /* kept | lost | any */
    char *method; /* none, booted, pulled-live, pulled-shadow, in-place, restarted; NULL: any */
    char *placed; /* same | other | NODE; NULL: any */
    bool has_lost_beats_max;
    uint32_t lost_beats_max; /* last beat before - first beat after + 1, at most */
    bool has_mirrored_ms;
    uint32_t mirrored_ms; /* at most so long after the last fault somebody has its checkpoints whom no fault has struck */
};
struct mst_drill_conf {
    char *name, *text;
    uint32_t settle_ms;  /* VMs beat for so long before the first fault, default 3000 */
    uint32_t timeout_ms; /* whole drill, default 120000 */
    uint32_t observe_ms; /* beats watched after recovery, default 3000 */
    struct mst_drill_vm *vms;
    unsigned vms_count;
    struct mst_drill_fault *faults;
    unsigned faults_count;
    struct mst_drill_fault *undo;
    unsigned undo_count; /* injected at the end in this order, also when the drill failed */
    char *fence;         /* expected proof in the recovery: keeper, power, operator; NULL: any */
};
int mst_drill_conf_load(const char *path, struct mst_drill_conf **ret_conf, struct mst_why *why);
void mst_drill_conf_free(struct mst_drill_conf *conf);

#endif
