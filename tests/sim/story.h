#ifndef SIM_STORY_H
#define SIM_STORY_H

#include "tests/sim/world.h"

#include <setjmp.h>

/* A story: a cluster, and faults at given times, all derived from one seed; then everything is mended, and all must become well. */

enum sim_fault_kind {
    FAULT_QEMU_KILL,
    FAULT_QEMU_STOP,
    FAULT_GUEST_PANIC,
    FAULT_AGENT_KILL,
    FAULT_AGENT_STOP,
    FAULT_KEEPER_KILL,
    FAULT_KEEPER_STOP,
    FAULT_KEEPER_TORN,
    FAULT_HOST_OFF,
    FAULT_HOST_REBOOT,
    FAULT_ALL_OFF,
    FAULT_CUT,
    FAULT_CUT_ONE_WAY,
    FAULT_CUT_PAIR,
    FAULT_FLAP,
    FAULT_LOSS,
    FAULT_SLOW,
    FAULT_DEVICE_GONE,
    FAULT_COORD_KILL,
    FAULT_COORD_STOP,
    FAULT_COORD_POINT,
    FAULT_KEEPER_POINT,
    FAULT_DISK_REFUSES,
    FAULT_DISK_SLOW,
    FAULT_DISK_HANGS,
    FAULT_OLD_COPY,
    FAULT_FENCE_MODE,
    FAULT_START_FAILS,
    FAULT_SAVE_FAILS,
    FAULT_SLOW_SPAWN,
    FAULT_STUCK_QEMU,
    FAULT_CLOCK,
    FAULT_PROCESSOR,
    FAULT_LIES,
    FAULT_REPORT_STORM,
    FAULT_SPOIL,
    FAULT_OP_STOP,
    FAULT_OP_START,
    FAULT_OP_DRAIN,
    FAULT_OP_UNDRAIN,
    FAULT_OP_CONFIRM,
    FAULT_OP_REDEFINE,
    /* of stories with several coordinators only; their disks, and copies of one, are not in these */
    FAULT_COORD_OFF,
    FAULT_COORD_CUT_STORE,
    FAULT_COORD_CUT_NODES,
    FAULT_COORD_CUT,
    FAULT_COORD_CLOCK,
    FAULT_STORE_MEMBER,
    FAULT_STORE_MAJORITY,
    FAULT_STORE_LOSES,
    FAULT_STORE_LATE,
    /* of stories with mirrors only */
    FAULT_SOURCE_OFF, /* of the node on which the VM runs */
    FAULT_MIRROR_OFF, /* of the node that mirrors it */
    FAULT_BOTH_OFF,
    FAULT_MIRROR_KEEPER,
    FAULT_MIRROR_CUT, /* between the two */
    FAULT_IMAGE_ROTS,
    FAULT_KINDS
};
#define SIM_FAULTS_ALONE  FAULT_COORD_OFF  /* kinds of stories with one coordinator: those below */
#define SIM_FAULTS_COORDS FAULT_SOURCE_OFF /* and of those with several */

struct sim_fault {
    uint32_t at_ms; /* since the cluster was ready */
    uint8_t kind;
    uint8_t a, b; /* node, VM, or another node */
    uint32_t ms;  /* how long */
    uint32_t x;
};

#define SIM_FAULTS_MAX 48u

struct sim_story {
    uint64_t seed;
    struct sim_conf conf;
    struct sim_fault faults[SIM_FAULTS_MAX];
    unsigned count;
    uint32_t window_ms;
};

extern bool sim_all_mirrored; /* every story has VMs under protect: mirror, and not only its share */
const char *sim_fault_name(unsigned kind);
void sim_story_make(uint64_t seed, struct sim_story *ret_story);
void sim_fault_text(const struct sim_story *story, unsigned i, char *text, size_t size);

struct sim_result {
    bool breach;
    char invariant[8], text[400];
    uint64_t hash, events, simulated_ms;
};
/* Tells it, with those faults only whose bit in keep is set (NULL: all). out: where the story goes, NULL: silent. */
void sim_story_tell(const struct sim_story *story, const bool *keep, FILE *out, struct sim_result *ret);

/* Parts, for scenarios: each runs until it is so, or K.over. */
void sim_cluster(const struct sim_story *story); /* makes the world, starts all, defines the VMs and starts them */
void sim_fault_apply(const struct sim_fault *fault);
struct sim_coord;
struct sim_store;
void sim_old_copy(struct sim_coord *coord, const struct sim_store *copy); /* it is started on one, by the operator's mistake */
void sim_newest_store(struct sim_coord *coord);                           /* the mistake is over, if there was one */
void sim_mend(void);                                                      /* undoes all there is, at once */
void sim_until_well(uint32_t max_ms);                                     /* breach LIVE when it does not become so */
void sim_run_ms(uint32_t ms);
/* A script ends where it stands once a checker has spoken: what it goes on to ask for need not be there any more. NULL: it returns by itself. */
extern jmp_buf *sim_scene_out;
void sim_scene_leave(void); /* if that is so */
void sim_vms_start(void);   /* defines them all and starts them */
void sim_vm_define(unsigned index, const struct mst_definition *def, uint32_t interval_ms);
void sim_world_end(struct sim_result *ret);

#endif
