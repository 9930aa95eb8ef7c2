#ifndef MST_BASE_LIMITS_H
#define MST_BASE_LIMITS_H

/* Limits that more than one folder must agree on; checked against each other here. */

#include <assert.h>

#define MST_NAME_BYTES  64 /* names of nodes, VMs, clusters with their terminating zero: 63 of a-z 0-9 - */
#define MST_NODES_MAX   64 /* nodes in one cluster */
#define MST_NODE_ID_MAX 1023
#ifndef MST_VMS_PER_NODE    /* the simulator sets a smaller one */
#define MST_VMS_PER_NODE 64 /* VM slots of one node: one bit each in the beat line's fault flags */
#endif
#ifndef MST_VMS_MAX
#define MST_VMS_MAX 1024 /* VMs in one cluster, this version; the fuzz preset sets a small one, which inputs can reach */
#endif
#ifndef MST_PAGE_BYTES
#define MST_PAGE_BYTES 4096u /* of guest RAM; the simulator sets a smaller one */
#endif
#define MST_DEVICE_BYTES_MAX   (2u << 20) /* one slot of CPU and device state */
#define MST_VM_MEMORY_MIB_MAX  65536u
#define MST_VM_VCPUS_MAX       64u
#define MST_VM_PRIORITY_MAX    1000u
#define MST_BRIDGE_BYTES_MAX   15u    /* the kernel's limit for the name of a network device */
#define MST_MAC_TEXT_BYTES     17u    /* 02:00:00:00:00:01 */
#define MST_DISKS_MAX          4u     /* of one VM */
#define MST_VM_RESTARTS_MAX    20u    /* restarts-max */
#define MST_VM_RESTARTS_S_MAX  86400u /* restarts-window-s */
#define MST_CHECKPOINT_MS_MIN  5u     /* checkpoint-interval-ms: a pause takes some 3 ms where a machine is quick */
#define MST_CHECKPOINT_MS_MAX  600000u
#define MST_STALL_PERCENT_MAX  50u         /* checkpoint-stall-max-percent: a guest runs at least as long as it stands */
#define MST_MESSAGE_BYTES_MAX  (64u << 10) /* one control message, frame header included */
#define MST_READ_BYTES_MAX     (1u << 20)  /* one RDMA READ or WRITE work request (rxe's limit is 8 MiB) */
#define MST_PULL_MS_PER_MIB    100u        /* what an order to start waits for the memory of its VM: links of 10 MB/s and more */
#define MST_LEASE_MS_MIN       5000u       /* node/keeper/lease.h says what it has to pay for */
#define MST_LEASE_MS_MAX       300000u
#define MST_WATCHDOG_S_MAX     600u
#define MST_MIRROR_SCRUB_S     30u /* mirror-scrub-s: rot is found within two rounds, and a minute is what is asked for */
#define MST_MIRROR_SCRUB_S_MAX 86400u
#define MST_STANDBY_MIB        64u /* standby-memory-mib: what a QEMU that waits counts for, without its VM's RAM */
#define MST_MANAGE_ASK_MS                                                                                                        \
    1000u /* a question to a management address: its deadline, and how often a node that is missed is asked */
#define MST_MIRRORS_MAX                                                                                                          \
    4u /* logs of one VM that its source has at a time, those that failed and are not dropped yet among them */

/* Monitors of a QEMU in RUN-DIR/vm/NAME; of one that waits beside an image, with MST_STANDBY_PREFIX before the name. */
#define MST_QMP_SOCK       "qmp.sock"
#define MST_QMP_SPARE_SOCK "qmp-spare.sock"
#define MST_STANDBY_PREFIX "sby-"

static_assert(MST_VMS_PER_NODE <= 64, "one bit of a 64-bit word for each VM slot");
static_assert(
    MST_LEASE_MS_MIN > 3 * MST_MANAGE_ASK_MS,
    "the shortest lease that is renewed with a question, for the beat of the answer before, outlasts one question that is lost");
static_assert(MST_READ_BYTES_MAX % MST_PAGE_BYTES == 0, "a work request covers whole pages");

#endif
