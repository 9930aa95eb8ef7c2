#ifndef SIM_WORLD_H
#define SIM_WORLD_H

#include "conf/conf.h"
#include "coordinator/core/core.h"
#include "shm/layout.h"
#include "tests/sim/kernel.h"

#include <sys/types.h>

/* The simulated cluster: hosts with power, files, processes and a network card; the network between them; fence devices; stores.
 *
 * On a node run the real keeper (all of node/keeper but its console and its accelerator test, over the functions of seam/), an agent that is
 * written by hand but speaks the keeper's protocol and uses the real writer of save areas (agent.c), and QEMUs that are a few bytes (qemu.c).
 * On a coordinator's host run the real core, control links and watch (coordinator/core, io/links, io/watch, io/slots, io/convert) with a store, a
 * fence device and an operator that are simulated (coord.c, store.c).
 *
 * Hosts 0 .. nodes-1 are nodes, the coordinators follow. */

#define SIM_NODES_MAX  6u
#define SIM_COORDS_MAX 3u
#define SIM_HOSTS_MAX  (SIM_NODES_MAX + SIM_COORDS_MAX)
#define SIM_VMS_MAX    10u

struct mst_keeper;
struct mst_fabric;
struct mst_sockserv;
struct sim_agent;
struct sim_coord;
struct sim_watch_fd;

struct sim_file { /* a file on a host's tmpfs; the bytes live as long as it is named or mapped */
    struct sim_file *next;
    char path[120];
    uint8_t *addr;
    size_t bytes;
    bool named;
    unsigned host;
};

enum sim_guest { GUEST_EMPTY, GUEST_PAUSED, GUEST_RUNNING, GUEST_PANICKED };

struct sim_task { /* a child of a keeper: a QEMU, or the agent's pid */
    struct sim_task *next;
    pid_t pid;
    unsigned host;
    bool is_agent;
    char cgroup[96];
    bool in_cgroup, alive, reaped, dying;
    int status;
    uint64_t unkillable_ns; /* in the kernel until then: SIGKILL waits */
    struct sim_watch_fd *watch;
    /* QEMU */
    char vm[MST_NAME_BYTES];
    unsigned vm_index;
    uint64_t epoch;
    bool waits;    /* beside an image: it is nobody's yet */
    bool ram_open; /* so it has found its memory by name */
    bool stopped;  /* SIGSTOP */
    enum sim_guest guest;
    struct sim_file *ram;
    uint64_t tick;      /* what the guest has counted to; every page says it */
    uint64_t ticked_ns; /* when */
    uint64_t lineage;   /* which life: a boot begins one, a resume goes on with it */
    /* What it sends, a frame and a line for its console with every tick: */
    bool frames_held, console_held;
    uint64_t frames_cut;              /* held: what came before it leaves first */
    uint64_t frames_left, lines_left; /* held: the last ones that have left the node */
};

enum sim_power { POWER_WORKS, POWER_FAILS, POWER_HANGS, POWER_LATE_ANSWER, POWER_LATE_CUT };

struct sim_host {
    unsigned index;
    char name[16], address[32], management[32];
    bool is_node, powered;
    uint32_t boot;
    uint8_t boot_id[16];
    unsigned rack; /* 0: it has no label */
    int32_t drift_ppm;
    uint64_t clock_ns, clock_at_ns; /* local clock, as it was at that moment of the world */
    int64_t wall_ms;                /* its wall clock is so much off */
    struct sim_file *files;
    struct sim_task *tasks;
    bool rdma_up;
    struct sim_proc keeper, agent, coord;
    /* node */
    struct mst_keeper *k; /* of the living keeper */
    struct mst_node_conf conf;
    struct mst_coordinator_addr coordinators[SIM_COORDS_MAX];
    struct mst_management_conf management_conf; /* conf.management NULL: it has none */
    char conf_text[8][48];
    struct mst_fabric *fabric; /* of the process that has the card open */
    struct mst_sockserv *sockserv, *manageserv;
    struct sim_agent *a;
    uint64_t lock_life;
    uint64_t keeper_up_ns; /* when systemd starts it again */
    bool keeper_wanted;
    /* watchdog; conf.watchdog NULL: it has none */
    struct mst_watchdog_conf dog_conf;
    bool dog_armed, dog_waits;
    uint64_t dog_touched_ns;
    /* fence device */
    enum sim_power power;
    uint32_t power_fails; /* so many tries, then it works */
    uint64_t fence_token;
    bool has_fence, fence_running;
    unsigned fence_coord;
    uint64_t fence_serial;
    uint64_t reboot_ns;    /* comes up by itself so long after its power went; 0: stays off */
    uint64_t ram_opens_ms; /* a QEMU that waits takes so long until it opens its memory; 0: as it comes */
    /* faults that the agent and QEMU look at */
    int start_err, save_err;
    uint64_t spawn_ms;
    bool stuck_qemu; /* its QEMUs do not die at once */
};

struct sim_net {
    uint8_t blocked[SIM_HOSTS_MAX][SIM_HOSTS_MAX]; /* from, to: how many faults block it */
    uint16_t loss[SIM_HOSTS_MAX];                  /* per mille, of each packet from or to the host */
    uint32_t slow_us[SIM_HOSTS_MAX];
    uint8_t manage_cut[SIM_HOSTS_MAX];    /* the management network, which is another one: so many faults cut the host off */
    uint32_t narrow_bytes[SIM_HOSTS_MAX]; /* what is longer is lost (a switch with a smaller MTU), 0: nothing is */
};

struct sim_vm {
    char name[16];
    struct mst_definition def;
    uint32_t interval_ms;
};

struct sim_conf {                         /* of a run */
    unsigned nodes, coords, vms, mirrors; /* mirrors: so many of the VMs are under protect: mirror */
    uint32_t watch_interval_ms;
    uint32_t lease_ms; /* of nodes; 0: 10 s */
};

struct sim_world {
    struct sim_conf conf;
    struct sim_host hosts[SIM_HOSTS_MAX];
    unsigned hosts_count;
    struct sim_net net;
    struct sim_vm vms[SIM_VMS_MAX];
    struct sim_coord *coords[SIM_COORDS_MAX];
    pid_t next_pid;
    uint64_t next_rkey, next_lineage;
    unsigned link_breaks;
    uint64_t beats_read;
    bool mended; /* what faults would still undo, or do, is of no matter any more */
};
extern struct sim_world *W;

struct sim_world *sim_world_new(const struct sim_conf *conf); /* everything powered on and started */
void sim_world_free(void);
void sim_managed(struct sim_host *host);                      /* before its keeper starts: it has a management address */
void sim_watchdog(struct sim_host *host, uint32_t timeout_s); /* before its keeper starts: it has one, and it counts as proof */

/* host.c */
uint64_t sim_local_ns(const struct sim_host *host);
uint64_t sim_world_ns(const struct sim_host *host, uint64_t local_ns); /* how long that takes in the world */
struct sim_host *sim_here(void);                                       /* of the process whose code runs; NULL: the world's own */
void sim_power_off(struct sim_host *host, const char *why);
void sim_power_on(struct sim_host *host);
void sim_drift(struct sim_host *host, int32_t ppm);
struct sim_file *sim_file_find(struct sim_host *host, const char *path);

uint8_t *sim_file_data(const struct sim_file *file);
void sim_file_unmapped(struct sim_file *file); /* by the keeper, and it has no name */
void sim_files_gone(struct sim_host *host);

/* keeper.c: life of the real keeper */
void sim_keeper_start(struct sim_host *host);
void sim_keeper_kill(struct sim_host *host, uint64_t back_after_ms); /* SIGKILL; systemd starts it again then */
unsigned sim_keeper_leaks(const struct sim_host *host, char *text, size_t size);

/* task.c: processes that keepers start */
struct sim_task *sim_task_by_pid(pid_t pid);
void sim_task_kill(struct sim_task *task);            /* NULL: there is none */
void sim_task_end(struct sim_task *task, int status); /* dead this very moment */
void sim_tasks_orphaned(struct sim_host *host);       /* their keeper died: PR_SET_PDEATHSIG */
struct sim_task *sim_task_of_vm(const struct sim_host *host, const char *vm, uint64_t epoch);
unsigned sim_vm_index(const char *name); /* SIM_VMS_MAX: unknown */
void sim_guest_run(struct sim_task *task);
void sim_guest_pause(struct sim_task *task, enum sim_guest into);
void sim_guest_advance(struct sim_task *task); /* memory as of now */
/* What it sends (output.c). held: by both queues; left: the newest tick that has left its node. */
bool sim_output_held(const struct sim_task *task);
uint64_t sim_output_left(struct sim_task *task);
/* Whether the memory is of one moment, and of which. */
struct sim_moment {
    uint64_t vm, lineage, tick;
};
bool sim_ram_read(const uint8_t *ram, size_t bytes, struct sim_moment *ret);
void sim_ram_write(uint8_t *ram, size_t bytes, const struct sim_moment *moment);

void sim_coord_ended(void);                 /* the one whose code runs has ended its process; its supervisor starts it again */
void sim_coord_applied(const char *commit); /* etcd: this transaction (instance, number) is done now */

/* agent.c */
void sim_agent_started(struct sim_host *host, struct sim_task *task);
void sim_agent_kill(struct sim_host *host);
void sim_agent_gone(struct sim_host *host);                               /* its process has ended */
void sim_agent_unmap(struct sim_host *host, const struct sim_file *file); /* the file's bytes are about to go */
void sim_agent_beat(struct sim_host *host);                               /* the counter, before somebody looks at it */
void sim_agent_report(struct sim_host *host, uint32_t kind, const char *vm, uint64_t epoch, const char *text);

/* fabric.c */
void sim_fabric_host_gone(struct sim_host *host);                              /* power: no word to anybody */
void sim_fabric_proc_gone(struct sim_host *host, const struct sim_proc *proc); /* killed: the kernel says goodbye */
void sim_fabric_device(struct sim_host *host, bool up);
bool sim_net_ok(unsigned from, unsigned to);
unsigned sim_regions_over(const void *addr, size_t bytes); /* living regions that cover some of it */
unsigned sim_links_of(const struct sim_proc *proc, unsigned *ret_regions);

#endif
