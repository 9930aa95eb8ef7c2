#ifndef MST_TESTS_LIB_FAKE_KEEPER_H
#define MST_TESTS_LIB_FAKE_KEEPER_H

/* A FAKE keeper for tests of the agent: it speaks keeper.sock, makes areas as files in a folder of its own on /dev/shm, starts real QEMUs,
 * and "pulls" by copying from the areas of an older epoch on this host. No RDMA, no coordinator, no fencing, no budget: nothing about
 * the real mainstay-keeper is proved by it. */

#include "mainstay.pb-c.h"
#include "shm/save.h"
#include "tests/lib/guest.h"

#define FAKE_VMS_MAX    16u
#define FAKE_FAULTS_MAX 32u

struct fake_fault {
    Mainstay__FaultKind kind;
    char vm[64];
    char text[400];
};

struct fake_vm {
    bool used;
    char name[64];
    uint64_t epoch;
    unsigned slot;
    Mainstay__VmDefinition *definition;
    char path[4][200]; /* ram, save, shadow, delta; "" absent */
    char disk_path[200];
    uint64_t disk_bytes; /* at the end of map.ram, in the file of disk_path */
    struct mst_save_map map;
    struct mst_save_layout save_layout;
    struct mst_delta_layout delta_layout;
    bool has_areas;
    struct guest guest;
    struct guest_console *console; /* of all epochs of the VM */
    uint32_t run_state;
    uint32_t fault;
    unsigned states_told;
};

struct fake_done { /* the answer to an order */
    uint64_t id;
    bool here;
    int error;
    char text[400];
    bool has_start, has_save;
    Mainstay__StartResult start;
    Mainstay__SaveResult save;
};

struct fake_keeper {
    uv_loop_t *loop;
    char dir[128];
    uint64_t instance;
    struct mst_sockserv *serv;
    struct mst_sock *agent; /* NULL: none connected */
    unsigned agents_seen;
    pid_t agent_pid;
    struct mst_status_area *status;
    struct fake_vm vms[FAKE_VMS_MAX];
    struct guest_console consoles[FAKE_VMS_MAX];
    struct fake_fault faults[FAKE_FAULTS_MAX];
    unsigned fault_count;
    unsigned health_count;
    uint32_t health;
    uint64_t next_id;
    struct fake_done done;
    uv_timer_t reaper;
    /* mischief */
    bool refuse_spawn;
    bool spoil_device;     /* one byte of the pulled device state is wrong, its sum is not */
    bool spoil_device_sum; /* both agree: QEMU gets to see it */
    bool hold_spawned;     /* never answer Spawn */
    bool hold_rest;        /* make shadow and delta of no VM, until fake_rest_release */
    uint64_t rest_id;      /* who waits for that */
    struct fake_vm *rest_vm;
    bool hold_puts;  /* never say that the mirrors have a checkpoint, until fake_puts_release */
    uint32_t put_ms; /* say it so late */
    uint64_t put_id;
    uv_timer_t put_timer;
    bool welcome_in_parts;   /* all VMs in a second message */
    uint32_t delta_capacity; /* not 0: pages in each delta, instead of what a keeper gives */
};

struct fake_keeper *fake_keeper_new(uv_loop_t *loop);
void fake_keeper_free(struct fake_keeper *keeper); /* kills everything, removes the folder */

/* Starts the agent program and waits until it beats. */
void fake_agent_start(struct fake_keeper *keeper, const char *program);
void fake_agent_kill(struct fake_keeper *keeper, int signal_number);
/* Closes the socket and waits for the agent's end; returns its wait status. */
int fake_agent_part(struct fake_keeper *keeper);

/* Sends an order, returns its id. source_epoch 0: no source. remote: the source is said to be another node. */
uint64_t fake_order_start(struct fake_keeper *keeper, const Mainstay__VmDefinition *definition, uint64_t epoch,
                          uint64_t source_epoch, bool remote);
uint64_t fake_order_save(struct fake_keeper *keeper, const char *vm, uint64_t epoch);
uint64_t fake_order_continue(struct fake_keeper *keeper, const char *vm, uint64_t epoch);
/* The same order again, as a keeper does for an agent that came back. */
void fake_order_again(struct fake_keeper *keeper, uint64_t id, const Mainstay__VmDefinition *definition, uint64_t epoch);
/* Waits for the answer; NULL: none in time. */
const struct fake_done *fake_wait_done(struct fake_keeper *keeper, uint64_t id, unsigned timeout_ms);

struct fake_vm *fake_vm_find(struct fake_keeper *keeper, const char *name, uint64_t epoch);
/* Waits until the VM's newest published save has seq >= seq. */
bool fake_wait_seq(struct fake_keeper *keeper, struct fake_vm *vm, uint64_t seq, unsigned timeout_ms);
uint64_t fake_seq(struct fake_vm *vm, uint32_t *ret_source);
void fake_puts_release(struct fake_keeper *keeper);
void fake_rest_release(struct fake_keeper *k);
bool fake_wait_fault(struct fake_keeper *keeper, Mainstay__FaultKind kind, unsigned timeout_ms);
bool fake_wait_beats(struct fake_keeper *keeper, struct guest_console *console, uint64_t more, unsigned timeout_ms);
bool fake_wait_state(struct fake_keeper *keeper, struct fake_vm *vm, uint32_t run_state, unsigned timeout_ms);

#endif
