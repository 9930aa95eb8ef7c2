#ifndef MST_CORE_PLAN_H
#define MST_CORE_PLAN_H

#include "coordinator/core/rows.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Which node takes which VM: a pure function. Higher priority chooses first, then the larger VM, then the name.
 * A node is chosen that is usable, allowed, and has memory, vCPUs and a VM slot left; among those one that is not avoided, then the
 * preferred one, then the one with most memory left, then fewest vCPUs in use, then the lowest id. */

#define MST_PLAN_VCPU_OVERCOMMIT 4u
#define MST_PLAN_WHY_BYTES       200u

struct mst_plan_node {
    uint32_t id;
    const char *name;
    bool usable;
    bool last_resort;    /* not usable, but alive: taken by a VM whose fallback_id it is when nobody else can */
    const char *why_not; /* when not usable: "is drained", "is being fenced" */
    const char *rack;    /* its failure domain; NULL or empty: it has no label */
    uint64_t memory_bytes, used_bytes;
    uint64_t image_bytes; /* of used_bytes: images of VMs that run elsewhere */
    uint32_t vcpus, used_vcpus, used_slots;
};

enum mst_racks { /* of two nodes; each is further apart than the one before */
                 MST_RACKS_SAME,
                 MST_RACKS_UNKNOWN, /* one of them has no label */
                 MST_RACKS_OTHER,
};
enum mst_racks mst_plan_racks(const char *a, const char *b);

struct mst_plan_vm {
    const char *name;
    uint64_t need_bytes;
    uint32_t vcpus, priority;
    const uint32_t *allowed; /* node ids */
    uint32_t allowed_count;  /* 0: all */
    uint32_t only_id;        /* the operator named this node; 0: any */
    uint32_t prefer_id;      /* 0: none */
    uint64_t avoid;          /* bit i: nodes[i] only when no other can */
    uint32_t fallback_id;    /* 0: none */
    uint32_t credit_id;      /* on this node credit_bytes and a slot become free before the VM starts; 0: none */
    uint64_t credit_bytes;
};

struct mst_placement {
    int node;                     /* index, -1: refused */
    char why[MST_PLAN_WHY_BYTES]; /* why there, or why nowhere */
};

struct mst_plan_mirror { /* a mirror that is looked for */
    uint64_t need_bytes;
    const uint32_t *allowed;  /* node ids */
    uint32_t allowed_count;   /* 0: all */
    uint64_t never;           /* bit i: not nodes[i]: the VM itself is there, another mirror of it, or an old one */
    uint64_t avoid;           /* bit i: nodes[i] only when no other can */
    const char *rack;         /* of the VM's own node */
    enum mst_racks racks_min; /* nearer nodes are refused */
    uint64_t vm_bytes;        /* what the VM takes where it runs, */
    uint32_t vcpus;           /* and its vCPUs */
};

/* Where its image goes: a usable node that is allowed, far enough, and has memory and a slot left; of those one that is not avoided, then the one
 * furthest from the VM's rack, then one that is large enough to run the VM beside its image, then the one with most memory left, then the first.
 * Returns the index, -1: nowhere; ret->why says why, with the numbers. */
int mst_plan_mirror(const struct mst_plan_node *nodes, unsigned count, const struct mst_plan_mirror *mirror,
                    struct mst_placement *ret);

/* Whether the VM's own node has room for the twin of one more log; if not, ret->why says so. */
bool mst_plan_log_fits(const struct mst_plan_node *node, uint32_t memory_mib, struct mst_placement *ret);

/* nodes_count <= MST_NODES_MAX, vms_count <= MST_VMS_MAX. Inputs are not changed. ret has vms_count entries in the order of vms.
 * Returns the number of VMs placed. */
unsigned mst_plan_make(const struct mst_plan_node *nodes, unsigned nodes_count, const struct mst_plan_vm *vms, unsigned vms_count,
                       struct mst_placement *ret);

/* Main storage that a VM takes: RAM, device slots, checksum tables; for protect local also its shadow and delta (2.25 x RAM); for mirror that delta
 * has room for all pages, and there is the twin of one log (3 x RAM and a ring). */
uint64_t mst_plan_need_bytes(uint32_t memory_mib, enum mst_protect protect);
/* What a mirror takes on its own node: shadow, delta for all pages, device slots, checksum tables and the log (2 x RAM and a ring). */
uint64_t mst_plan_image_bytes(uint32_t memory_mib);
/* The ring of a mirror's log. */
uint64_t mst_plan_ring_bytes(uint32_t memory_mib);
/* The log, or its twin. */
uint64_t mst_plan_log_bytes(uint32_t memory_mib);

#endif
