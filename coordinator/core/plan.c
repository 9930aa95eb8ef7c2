#include "coordinator/core/plan.h"

#include "base/mutant.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MIB      (UINT64_C(1) << 20)
#define RING_MIN (UINT64_C(1) << 20) /* records of a quarter of it */
#define RING_MAX (UINT64_C(16) << 20)

uint64_t mst_plan_ring_bytes(uint32_t memory_mib)
{
    uint64_t bytes = memory_mib * MIB / 8;

    return bytes < RING_MIN ? RING_MIN : bytes > RING_MAX ? RING_MAX : bytes;
}

uint64_t mst_plan_log_bytes(uint32_t memory_mib)
{
    return mst_plan_ring_bytes(memory_mib) + MST_PAGE_BYTES;
}

uint64_t mst_plan_image_bytes(uint32_t memory_mib)
{
    /* A VM's own areas less its RAM; the twin of the ring stands for the ring, and a page for the head before it. */
    return mst_plan_need_bytes(memory_mib, MST_PROTECT_MIRROR) - memory_mib * MIB + MST_PAGE_BYTES;
}

uint64_t mst_plan_need_bytes(uint32_t memory_mib, enum mst_protect protect)
{
    uint64_t ram = memory_mib * MIB;
    uint64_t pages = ram / MST_PAGE_BYTES;
    uint64_t need = ram + UINT64_C(2) * MST_DEVICE_BYTES_MAX + 8 * pages; /* device slots, two checksum tables */
    uint64_t delta_pages = pages / 4;

    if (protect == MST_PROTECT_MIRROR) {
        need += ram + pages * (MST_PAGE_BYTES + 8u) + mst_plan_ring_bytes(memory_mib);
    } else if (protect == MST_PROTECT_LOCAL) {
        if (delta_pages < 256)
            delta_pages = pages < 256 ? pages : 256;
        need += ram + delta_pages * (MST_PAGE_BYTES + 8u);
    }
    return (need + MST_PAGE_BYTES - 1) / MST_PAGE_BYTES * MST_PAGE_BYTES +
           UINT64_C(4) * MST_PAGE_BYTES; /* rounding of each file */
}

__attribute__((format(printf, 4, 5))) static void append(char *text, size_t size, size_t *used, const char *fmt, ...)
{
    va_list args;
    int n;

    if (*used + 1 >= size)
        return;
    va_start(args, fmt);
    n = vsnprintf(text + *used, size - *used, fmt, args);
    va_end(args);
    if (n > 0)
        *used += (size_t)n < size - *used ? (size_t)n : size - *used - 1;
}

static bool allowed(const struct mst_plan_vm *vm, uint32_t id)
{
    if (vm->only_id != 0)
        return vm->only_id == id;
    for (uint32_t i = 0; i < vm->allowed_count; i++) {
        if (vm->allowed[i] == id)
            return true;
    }
    return vm->allowed_count == 0 || MST_MUTANT(28);
}

/* Writes why vm does not fit on node, or returns true. */
static bool fits(const struct mst_plan_node *node, const struct mst_plan_vm *vm, char *why, size_t size, size_t *used)
{
    uint64_t in_use = node->used_bytes;
    uint64_t left;
    uint32_t slots = node->used_slots;

    if (vm->credit_id == node->id) {
        in_use -= vm->credit_bytes < in_use ? vm->credit_bytes : in_use;
        slots -= slots > 0 ? 1 : 0;
    }
    left = node->memory_bytes > in_use ? node->memory_bytes - in_use : 0;
    if (left + (MST_MUTANT(27) ? 8 * MIB : 0) < vm->need_bytes) {
        append(why, size, used, "%s%s: %" PRIu64 " MiB left, %" PRIu64 " needed", *used ? "; " : "", node->name, left / MIB,
               (vm->need_bytes + MIB - 1) / MIB);
        return false;
    }
    if (node->used_vcpus + vm->vcpus > node->vcpus * MST_PLAN_VCPU_OVERCOMMIT) {
        append(why, size, used, "%s%s: %u of %u vCPUs taken, %u needed", *used ? "; " : "", node->name, node->used_vcpus,
               node->vcpus * MST_PLAN_VCPU_OVERCOMMIT, vm->vcpus);
        return false;
    }
    if (slots >= MST_VMS_PER_NODE) {
        append(why, size, used, "%s%s: all %u VM slots taken", *used ? "; " : "", node->name, (unsigned)MST_VMS_PER_NODE);
        return false;
    }
    return true;
}

static uint64_t left_bytes(const struct mst_plan_node *node)
{
    return node->memory_bytes > node->used_bytes ? node->memory_bytes - node->used_bytes : 0;
}

/* Whether a is the better home; both fit. */
static bool better(const struct mst_plan_vm *vm, const struct mst_plan_node *nodes, unsigned a, unsigned b)
{
    const struct mst_plan_node *na = &nodes[a];
    const struct mst_plan_node *nb = &nodes[b];
    bool avoid_a = vm->avoid >> a & 1;
    bool avoid_b = vm->avoid >> b & 1;
    uint64_t left_a = left_bytes(na);
    uint64_t left_b = left_bytes(nb);

    if (avoid_a != avoid_b)
        return avoid_b;
    if ((na->id == vm->prefer_id) != (nb->id == vm->prefer_id))
        return na->id == vm->prefer_id;
    if (left_a != left_b)
        return left_a > left_b;
    if (na->used_vcpus != nb->used_vcpus)
        return na->used_vcpus < nb->used_vcpus;
    return na->id < nb->id;
}

static int choose(const struct mst_plan_node *nodes, unsigned count, const struct mst_plan_vm *vm, struct mst_placement *ret)
{
    size_t used = 0;
    int best = -1;
    int last_resort = -1;

    ret->why[0] = 0;
    for (unsigned i = 0; i < count; i++) {
        if (!allowed(vm, nodes[i].id)) {
            append(ret->why, sizeof(ret->why), &used, "%s%s: not allowed", used ? "; " : "", nodes[i].name);
            continue;
        }
        if (!nodes[i].usable) {
            if (nodes[i].last_resort && vm->fallback_id == nodes[i].id)
                last_resort = (int)i;
            append(ret->why, sizeof(ret->why), &used, "%s%s: %s", used ? "; " : "", nodes[i].name, nodes[i].why_not);
            continue;
        }
        if (!fits(&nodes[i], vm, ret->why, sizeof(ret->why), &used))
            continue;
        if (best < 0 || better(vm, nodes, i, (unsigned)best))
            best = (int)i;
    }
    if (best < 0 && last_resort >= 0 && fits(&nodes[last_resort], vm, ret->why, sizeof(ret->why), &used))
        best = last_resort;
    if (best >= 0) {
        used = 0;
        append(ret->why, sizeof(ret->why), &used, "%s: %s, %" PRIu64 " MiB left before", nodes[best].name,
               best == last_resort               ? "nobody else has room"
               : nodes[best].id == vm->prefer_id ? "preferred"
                                                 : "most room",
               left_bytes(&nodes[best]) / MIB);
    } else if (used == 0) {
        append(ret->why, sizeof(ret->why), &used, "no node is configured");
    }
    ret->node = best;
    return best;
}

static bool mirror_allowed(const struct mst_plan_mirror *mirror, uint32_t id)
{
    for (uint32_t i = 0; i < mirror->allowed_count; i++) {
        if (mirror->allowed[i] == id)
            return true;
    }
    return mirror->allowed_count == 0;
}

enum mst_racks mst_plan_racks(const char *a, const char *b)
{
    if (!a || !a[0] || !b || !b[0])
        return MST_RACKS_UNKNOWN;
    return strcmp(a, b) == 0 ? MST_RACKS_SAME : MST_RACKS_OTHER;
}

static const char *mirror_bars(const struct mst_plan_node *node, unsigned i, const struct mst_plan_mirror *mirror)
{
    enum mst_racks racks = mst_plan_racks(mirror->rack, node->rack);

    if (mirror->never >> i & 1)
        return "has it already";
    if (!mirror_allowed(mirror, node->id) && !MST_MUTANT(113))
        return "not allowed";
    if (!node->usable)
        return node->why_not;
    if (racks < mirror->racks_min && !MST_MUTANT(112))
        return racks == MST_RACKS_SAME         ? "in the VM's rack"
               : !node->rack || !node->rack[0] ? "has no rack label"
                                               : "the VM's node has no rack label";
    return node->used_slots >= MST_VMS_PER_NODE ? "all VM slots taken" : NULL;
}

static bool mirror_fits(const struct mst_plan_node *node, const struct mst_plan_mirror *mirror, char *why, size_t size,
                        size_t *used)
{
    if (left_bytes(node) >= mirror->need_bytes)
        return true;
    append(why, size, used, "%s%s: %" PRIu64 " MiB left, %" PRIu64 " needed", *used ? "; " : "", node->name,
           left_bytes(node) / MIB, (mirror->need_bytes + MIB - 1) / MIB);
    if (node->image_bytes >= MIB)
        append(why, size, used, " (images take %" PRIu64 " of %" PRIu64 ")", node->image_bytes / MIB, node->memory_bytes / MIB);
    return false;
}

/* A takeover there would find its image in place, once the node has no other VMs. */
static bool mirror_runs(const struct mst_plan_node *node, const struct mst_plan_mirror *mirror)
{
    return node->memory_bytes >= mirror->need_bytes + mirror->vm_bytes && node->vcpus * MST_PLAN_VCPU_OVERCOMMIT >= mirror->vcpus;
}

/* Whether a is the better mirror; both can be one. */
static bool mirror_better(const struct mst_plan_node *nodes, const struct mst_plan_mirror *mirror, unsigned a, unsigned b)
{
    bool avoid_a = mirror->avoid >> a & 1;
    bool avoid_b = mirror->avoid >> b & 1;
    enum mst_racks racks_a = mst_plan_racks(mirror->rack, nodes[a].rack);
    enum mst_racks racks_b = mst_plan_racks(mirror->rack, nodes[b].rack);
    bool runs_a = mirror_runs(&nodes[a], mirror);
    bool runs_b = mirror_runs(&nodes[b], mirror);

    if (avoid_a != avoid_b)
        return avoid_b;
    if (racks_a != racks_b)
        return racks_a > racks_b;
    if (runs_a != runs_b)
        return runs_a;
    return left_bytes(&nodes[a]) > left_bytes(&nodes[b]);
}

int mst_plan_mirror(const struct mst_plan_node *nodes, unsigned count, const struct mst_plan_mirror *mirror,
                    struct mst_placement *ret)
{
    size_t used = 0;
    int best = -1;

    ret->why[0] = 0;
    for (unsigned i = 0; i < count && i < MST_NODES_MAX; i++) {
        const char *bar = mirror_bars(&nodes[i], i, mirror);

        if (bar)
            append(ret->why, sizeof(ret->why), &used, "%s%s: %s", used ? "; " : "", nodes[i].name, bar);
        else if (mirror_fits(&nodes[i], mirror, ret->why, sizeof(ret->why), &used) &&
                 (best < 0 || mirror_better(nodes, mirror, i, (unsigned)best)))
            best = (int)i;
    }
    if (best >= 0)
        snprintf(ret->why, sizeof(ret->why), "%s: %" PRIu64 " MiB left before%s", nodes[best].name,
                 left_bytes(&nodes[best]) / MIB,
                 mst_plan_racks(mirror->rack, nodes[best].rack) == MST_RACKS_SAME ? ", in the VM's rack" : "");
    ret->node = best;
    return best;
}

bool mst_plan_log_fits(const struct mst_plan_node *node, uint32_t memory_mib, struct mst_placement *ret)
{
    uint64_t need = mst_plan_log_bytes(memory_mib);
    size_t used = 0;

    if (left_bytes(node) >= need)
        return true;
    append(ret->why, sizeof(ret->why), &used, "%s: %" PRIu64 " MiB left, %" PRIu64 " needed for one more log", node->name,
           left_bytes(node) / MIB, (need + MIB - 1) / MIB);
    return false;
}

static bool goes_first(const struct mst_plan_vm *a, const struct mst_plan_vm *b)
{
    if (a->priority != b->priority)
        return MST_MUTANT(29) ? a->priority < b->priority : a->priority > b->priority;
    if (a->need_bytes != b->need_bytes)
        return a->need_bytes > b->need_bytes;
    return strcmp(a->name, b->name) < 0;
}

unsigned mst_plan_make(const struct mst_plan_node *nodes, unsigned nodes_count, const struct mst_plan_vm *vms, unsigned vms_count,
                       struct mst_placement *ret)
{
    struct mst_plan_node now[MST_NODES_MAX];
    uint16_t order[MST_VMS_MAX];
    unsigned placed = 0;

    if (nodes_count > MST_NODES_MAX || vms_count > MST_VMS_MAX)
        return 0;
    memcpy(now, nodes, nodes_count * sizeof(*nodes));
    for (unsigned i = 0; i < vms_count; i++) {
        unsigned at = i;

        for (; at > 0 && goes_first(&vms[i], &vms[order[at - 1]]); at--)
            order[at] = order[at - 1];
        order[at] = (uint16_t)i;
    }
    for (unsigned k = 0; k < vms_count; k++) {
        const struct mst_plan_vm *vm = &vms[order[k]];
        int n = choose(now, nodes_count, vm, &ret[order[k]]);

        if (n < 0)
            continue;
        if (vm->credit_id == now[n].id) {
            now[n].used_bytes -= vm->credit_bytes < now[n].used_bytes ? vm->credit_bytes : now[n].used_bytes;
            now[n].used_slots -= now[n].used_slots > 0 ? 1 : 0;
        }
        now[n].used_bytes += vm->need_bytes;
        now[n].used_vcpus += vm->vcpus;
        now[n].used_slots++;
        placed++;
    }
    return placed;
}
