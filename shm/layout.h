#ifndef MST_SHM_LAYOUT_H
#define MST_SHM_LAYOUT_H

#include "base/limits.h"

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

/* Main storage is a wire format: peers read these bytes by RDMA. Little-endian, described in docs/PROTOCOL.md.
 *
 * Files of one node in its main-storage folder (tmpfs), each an RDMA region of its own:
 *   status           this header's status area; written by the keeper, but for the agent line and the save records (agent)
 *   VM.eEPOCH.ram    guest RAM, mapped shared by QEMU
 *   VM.eEPOCH.save   device state slots and page checksum tables         (struct mst_save_layout)
 *   VM.eEPOCH.shadow RAM as of the last applied checkpoint                (protect local)
 *   VM.eEPOCH.delta  pages of the newest checkpoint, not yet in shadow    (protect local; struct mst_delta_layout)
 *
 * status area
 *        0  superblock            256
 *      256  beat line              64   one writer: keeper
 *      320  agent line             64   one writer: agent (counter only; the keeper copies it into the beat line)
 *      512  node status       2 x 256   published in two slots, keeper
 *     1024  fault log       64 x  256   ring, keeper
 *    20480  VM slots        64 x 1024   each: 2 x 256 slot info (keeper), 2 x 256 save record (agent)
 *    86016  end
 *
 * grant area, 4096 bytes, a file and a region of its own; written by the coordinators (RDMA WRITE), read by the keeper
 *        0  lease lines     8 x   64   one for each coordinator (its id mod 8)
 *      512  reserved
 */
#define MST_LAYOUT_VERSION 1u
#define MST_STATUS_MAGIC   UINT64_C(0x3153594154534e4d) /* "MNSTAYS1" */

struct mst_superblock {
    uint64_t magic;
    uint32_t layout_version;
    uint32_t area_bytes;
    uint64_t instance; /* random, new for every start of the keeper */
    uint8_t host_boot_id[16];
    uint32_t node_id;
    uint32_t reserved0;
    char node[MST_NAME_BYTES];
    char cluster[MST_NAME_BYTES];
    uint64_t started_wall_ms;
    uint8_t reserved[64];
    uint32_t reserved1;
    uint32_t crc32c; /* of all bytes above */
};
static_assert(sizeof(struct mst_superblock) == 256 && offsetof(struct mst_superblock, crc32c) == 252, "wire layout");

/* One cache line. It changes as a whole (seq last would lean on byte order): a reader checks the sum over its private copy. */
struct mst_beat_line {
    uint64_t keeper_beat;    /* grows while the keeper's loop runs */
    uint64_t agent_beat;     /* copied from the agent line */
    uint64_t generation;     /* grows with every change of node status or of a VM slot */
    uint64_t vm_fault_flags; /* bit i: the VM in slot i died, panicked or does not answer */
    uint64_t instance;
    uint32_t agent_state;   /* enum mst_agent_state */
    uint32_t vms;           /* slots in use */
    uint64_t lease_renewal; /* of the lease this keeper lives by; 0: none */
    uint32_t flags;  /* bits of enum mst_beat_flag; from MST_BEAT_WATCHDOG_SHIFT on seconds of an armed watchdog, 0: none */
    uint32_t crc32c; /* of all bytes above */
};
static_assert(sizeof(struct mst_beat_line) == 64 && offsetof(struct mst_beat_line, crc32c) == 60, "wire layout");

enum mst_beat_flag {
    MST_BEAT_LEASE_WANTED = 1, /* woke from a pause: wants its lease renewed before it does anything that others see */
    MST_BEAT_LEASE_STRICT = 2, /* the lease it lives by is strict: when that runs out its VMs end, whatever else it sees */
};
#define MST_BEAT_WATCHDOG_SHIFT 16u

enum mst_agent_state { MST_AGENT_ABSENT = 0, MST_AGENT_UP = 1 };

struct mst_agent_line {
    uint64_t beat; /* stored with one 8-byte write */
    uint64_t reserved[7];
};
static_assert(sizeof(struct mst_agent_line) == 64, "wire layout");

/* Head of every published record; the body follows it, the sum covers head (without crc32c) and body. */
struct mst_pub_head {
    uint64_t version; /* odd while the writer is inside; the slot with the larger even version is the newest */
    uint32_t body_bytes;
    uint32_t crc32c;
    uint64_t epoch; /* grant epoch; 0 where none applies */
    uint64_t instance;
};
static_assert(sizeof(struct mst_pub_head) == 32 && offsetof(struct mst_pub_head, crc32c) == 12, "wire layout");

#define MST_PUB_SLOT_BYTES 256u
#define MST_PUB_BODY_MAX   (MST_PUB_SLOT_BYTES - sizeof(struct mst_pub_head))

enum mst_health { MST_HEALTH_OK = 0, MST_HEALTH_DEGRADED = 1, MST_HEALTH_FAILING = 2 };

struct mst_node_status { /* body: the real machine save area */
    uint32_t node_id;
    uint32_t health; /* enum mst_health */
    uint32_t vcpus;
    uint32_t vms;
    uint64_t memory_bytes; /* budget for main storage */
    uint64_t memory_used_bytes;
    uint64_t started_wall_ms;
    uint32_t load_milli; /* 1-minute load average x 1000 */
    uint32_t agent_restarts;
    uint64_t machine_checks; /* seen since start */
    uint64_t wall_ms;        /* when this was written */
    uint8_t reserved[160];
};
static_assert(sizeof(struct mst_node_status) == MST_PUB_BODY_MAX, "wire layout");

/* What a VM slot's VM is doing, as far as its node knows. */
enum mst_run_state {
    MST_RUN_EMPTY = 0,
    MST_RUN_STARTING = 1, /* granted, QEMU not yet running the guest */
    MST_RUN_RUNNING = 2,
    MST_RUN_PAUSED = 3, /* stopped by a panic, or by an order after a save */
    MST_RUN_DEAD = 4,   /* QEMU is gone without an order */
    MST_RUN_FENCED = 5, /* killed by order, its cgroup seen empty */
    MST_RUN_IMAGE = 6,  /* no VM of this node: a mirror's image, made from what the VM's node writes */
};

enum mst_standby_state {                       /* the QEMU that waits beside an image */
                         MST_STANDBY_NONE = 0, /* not said */
                         MST_STANDBY_WARM = 1,
                         MST_STANDBY_STARTING = 2,
                         MST_STANDBY_OFF = 3,    /* the node has no memory for any */
                         MST_STANDBY_FULL = 4,   /* others take what it has */
                         MST_STANDBY_FAILED = 5, /* tried again */
                         MST_STANDBYS
};

struct mst_vm_slot { /* body: status half of the virtual machine save area */
    char vm[MST_NAME_BYTES];
    uint32_t run_state;  /* enum mst_run_state */
    int32_t qemu_pid;    /* 0: none */
    int32_t exit_status; /* wait status of QEMU when dead */
    uint32_t fault_kind; /* Mainstay__FaultKind of the last fault seen here, 0: none */
    uint64_t ram_bytes;
    uint64_t save_bytes; /* sizes of the four regions; 0: absent */
    uint64_t shadow_bytes;
    uint64_t delta_bytes;
    uint64_t console_bytes;   /* written by the guest so far */
    uint64_t console_beat_ms; /* wall clock of the last console output */
    uint64_t changed_wall_ms;
    uint32_t image_state;  /* of an image: enum mst_image_state; 0 otherwise */
    uint32_t image_source; /* of an image: node id of who may write its log; 0: an earlier keeper's */
    uint64_t log_id;       /* of an image: of that log */
    uint64_t disk_bytes;   /* at the end of ram_bytes: a disk, in a file of its own; 0: none */
    uint32_t standby;      /* of an image: enum mst_standby_state */
    uint8_t reserved[60];
};
static_assert(sizeof(struct mst_vm_slot) == MST_PUB_BODY_MAX, "wire layout");

enum mst_save_source {
    MST_SAVE_NONE = 0,
    MST_SAVE_SHADOW = 1, /* RAM = shadow overlaid with delta; the guest runs on */
    MST_SAVE_RAM = 2,    /* RAM = the ram region itself; true only while the guest stays stopped */
};

enum mst_save_pace {                           /* why checkpoints come as often as they do */
                     MST_SAVE_PACE_SET = 0,    /* as the definition says */
                     MST_SAVE_PACE_STALL = 1,  /* oftener, the VM would stand still for more of the time than it may */
                     MST_SAVE_PACE_COPY = 2,   /* one takes so long on its node */
                     MST_SAVE_PACE_MIRROR = 3, /* its mirrors take so long for one */
};

enum mst_save_trouble { /* why there is no newer checkpoint, or none like it should be */
                        MST_SAVE_TROUBLE_NONE = 0,
                        MST_SAVE_TROUBLE_FAILED = 1,  /* QEMU refused it, or it could not be written */
                        MST_SAVE_TROUBLE_SILENT = 2,  /* QEMU does not answer */
                        MST_SAVE_TROUBLE_STOPPED = 3, /* somebody else stopped the guest */
                        MST_SAVE_TROUBLE_LATE = 4,    /* the one under way takes too long */
                        MST_SAVE_TROUBLE_MIRROR = 5,  /* the mirrors do not take it */
                        MST_SAVE_TROUBLE_WHOLE =
                            6, /* there is one, but its pages did not fit the delta: the guest stood for all of its RAM */
};

struct mst_save_record {  /* body: which bytes make up checkpoint (vm, epoch, seq) */
    uint64_t seq;         /* 1, 2, ... within one epoch */
    uint32_t source;      /* enum mst_save_source */
    uint32_t device_slot; /* 0 or 1 */
    uint64_t device_bytes;
    uint32_t device_crc32c;
    uint32_t page_bytes; /* MST_PAGE_BYTES */
    uint64_t ram_bytes;
    uint32_t delta_pages;        /* valid entries of the delta table; 0 when shadow is complete */
    uint32_t delta_table_crc32c; /* over the valid entries */
    uint64_t taken_wall_ms;
    uint64_t pause_ns;      /* how long the guest stood still for it */
    uint64_t taken_boot_ns; /* the node's mst_now_ns at that moment */
    uint64_t ram_digest;    /* mst_save_digest over the checksums of all pages: binds the tables to this record */
    uint32_t pages;         /* in this checkpoint */
    uint32_t
        interval_ms; /* from checkpoint to checkpoint at present; 0: not said. This and what follows: also where source is none */
    uint32_t pace;   /* enum mst_save_pace: why */
    uint32_t trouble;         /* enum mst_save_trouble: with the next checkpoint */
    uint64_t trouble_wall_ms; /* since when */
    uint64_t dirty_pages;     /* written by the guest, in all checkpoints that this agent has taken, but for the newest */
    uint32_t pause_p50_us;    /* of the newest some hundred checkpoints, */
    uint32_t pause_p99_us;    /* till the guest went on: pause_ns ends with the commit */
    uint8_t reserved[104];
};
static_assert(sizeof(struct mst_save_record) == MST_PUB_BODY_MAX, "wire layout");

struct mst_vm_entry {                    /* one VM slot of the status area */
    uint8_t info[2][MST_PUB_SLOT_BYTES]; /* struct mst_vm_slot, published by the keeper */
    uint8_t save[2][MST_PUB_SLOT_BYTES]; /* struct mst_save_record, published by the agent */
};
static_assert(sizeof(struct mst_vm_entry) == 1024, "wire layout");

struct mst_fault_entry { /* fault log ring: entry (sequence - 1) % MST_FAULT_LOG_ENTRIES */
    uint64_t sequence;   /* 1, 2, ...; 0: never written */
    uint64_t fault_id;   /* the coordinator's number */
    uint64_t wall_ms;
    uint32_t kind;
    uint32_t reserved;
    char vm[MST_NAME_BYTES]; /* empty for a node fault */
    char text[152];
    uint32_t reserved1;
    uint32_t crc32c;
};
static_assert(sizeof(struct mst_fault_entry) == 256, "wire layout");
#define MST_FAULT_LOG_ENTRIES 64u

struct mst_status_area {
    struct mst_superblock super;
    struct mst_beat_line beat;
    struct mst_agent_line agent;
    uint8_t reserved0[128];
    uint8_t node[2][MST_PUB_SLOT_BYTES];
    struct mst_fault_entry faults[MST_FAULT_LOG_ENTRIES];
    uint8_t reserved1[3072];
    struct mst_vm_entry vms[MST_VMS_PER_NODE];
};
static_assert(offsetof(struct mst_status_area, beat) == 256 && offsetof(struct mst_status_area, agent) == 320 &&
                  offsetof(struct mst_status_area, node) == 512 && offsetof(struct mst_status_area, faults) == 1024 &&
                  offsetof(struct mst_status_area, vms) == 20480 && sizeof(struct mst_vm_entry) == 1024 &&
                  (MST_VMS_PER_NODE != 64 || sizeof(struct mst_status_area) == 86016),
              "wire layout");

/* --- grant area --- */

/* One cache line, written whole by one RDMA WRITE; a copy whose sum is wrong is torn or was never written. A keeper keeps what it has taken
 * in memory of its own, so a line that stays torn only means that nothing newer came. */
struct mst_lease_line {
    uint64_t instance;    /* of the keeper it is for */
    uint64_t term;        /* of the coordinator */
    uint64_t coordinator; /* its instance */
    uint64_t renewal; /* grows with each: low half of the coordinator's instance in bits 63..32, a counter from 1 in bits 31..0 */
    uint64_t
        beat; /* the keeper beat that the coordinator had read when it decided: the lease counts from when that was written */
    uint32_t lease_ms; /* 0: there are no leases any more */
    uint32_t flags;    /* bits of enum mst_lease_flag */
    uint32_t coordinator_id;
    uint32_t decision; /* low half of the number of its newest durable decision; 0: not said */
    uint32_t version;  /* MST_LEASE_VERSION */
    uint32_t crc32c;   /* of all bytes above */
};
static_assert(sizeof(struct mst_lease_line) == 64 && offsetof(struct mst_lease_line, crc32c) == 60, "wire layout");
#define MST_LEASE_VERSION 1u

enum mst_lease_flag {
    MST_LEASE_STRICT =
        1, /* the coordinator will count its end, and the watchdog behind it, as proof: nothing runs on without it */
};

#define MST_LEASE_LINES 8u

struct mst_grant_area {
    struct mst_lease_line lease[MST_LEASE_LINES]; /* a coordinator's line: its id mod MST_LEASE_LINES */
    uint8_t reserved[3584];
};
static_assert(sizeof(struct mst_grant_area) == 4096, "wire layout");

/* Page checksum tables hold mst_page_sum of each page. */
struct mst_save_layout {
    uint64_t device_off[2];   /* each MST_DEVICE_BYTES_MAX long */
    uint64_t shadow_sums_off; /* u32 per page; also when there is no shadow */
    uint64_t ram_sums_off;    /* u32 per page, valid only for MST_SAVE_RAM */
    uint64_t bytes;           /* whole region */
};

struct mst_delta_entry {
    uint32_t page; /* page number in RAM */
    uint32_t sum;  /* mst_page_sum of the page in this delta */
};

struct mst_delta_layout {
    uint32_t capacity;  /* pages */
    uint64_t table_off; /* struct mst_delta_entry x capacity */
    uint64_t data_off;  /* page-aligned; pages in the order of the table */
    uint64_t bytes;
};

#endif
