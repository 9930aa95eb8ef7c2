#include "coordinator/core/internal.h"

#include "base/mutant.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MIB (UINT64_C(1) << 20)

void text_set(char *to, size_t size, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    vsnprintf(to, size, fmt, args);
    va_end(args);
}

void core_log(struct mst_core *core, enum mst_log_level level, const char *fmt, ...)
{
    char text[3 * MST_TEXT_BYTES];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    core->io.log(core->io.impl, level, text);
}

int vm_find(const struct mst_core *core, const char *name)
{
    for (unsigned i = 0; i < core->vms_end; i++) {
        if (core->vms[i].used && strcmp(core->vms[i].d.name, name) == 0)
            return (int)i;
    }
    return -1;
}

int vm_slot(struct mst_core *core, const char *name)
{
    int index = vm_find(core, name);

    for (unsigned i = 0; index < 0 && i < MST_VMS_MAX; i++) {
        if (!core->vms[i].used)
            return (int)i;
    }
    return index;
}

int node_find(const struct mst_core *core, const char *name)
{
    for (unsigned i = 0; i < core->nodes_count; i++) {
        if (strcmp(core->nodes[i].conf.name, name) == 0)
            return (int)i;
    }
    return -1;
}

int node_find_id(const struct mst_core *core, uint32_t id)
{
    for (unsigned i = 0; i < core->nodes_count; i++) {
        if (core->nodes[i].conf.id == id)
            return (int)i;
    }
    return -1;
}

const char *node_name(const struct mst_core *core, uint32_t id)
{
    int index = node_find_id(core, id);

    return index < 0 ? (id == 0 ? "-" : "?") : core->nodes[index].conf.name;
}

struct held *held_find(struct node *node, const char *vm, uint64_t epoch)
{
    for (unsigned i = 0; i < node->held_count; i++) {
        if (node->held[i].s.epoch == epoch && strcmp(node->held[i].s.vm, vm) == 0)
            return &node->held[i];
    }
    return NULL;
}

const char *node_rack(const struct node *node)
{
    return node->conf.rack[0] ? node->conf.rack : node->rack;
}

enum mst_racks racks_of(const struct mst_core *core, uint32_t node_id, uint32_t other_id)
{
    int a = node_find_id(core, node_id);
    int b = node_find_id(core, other_id);

    return mst_plan_racks(a >= 0 ? node_rack(&core->nodes[a]) : NULL, b >= 0 ? node_rack(&core->nodes[b]) : NULL);
}

uint64_t vm_need_bytes(const struct vm *vm)
{
    return mst_plan_need_bytes(vm->def.memory_mib, (enum mst_protect)vm->def.protect);
}

/* What it has there; known from a Hello only, what it will have. The log of an image, and its twin at the source, are not in the slot. */
static uint64_t held_bytes(const struct mst_core *core, const struct held *held)
{
    int index = vm_find(core, held->s.vm);
    const struct vm *vm = index >= 0 ? &core->vms[index] : NULL;
    bool open = held->s.image_state == MST_SLOT_IMAGE_SEEDING || held->s.image_state == MST_SLOT_IMAGE_MIRRORING;

    if (vm && held->s.run_state == MST_RUN_IMAGE && (open || held->s.bytes == 0))
        return MAX_OF(held->s.bytes, mst_plan_image_bytes(vm->def.memory_mib));
    if (vm && (held->s.bytes == 0 || (vm->def.protect == MST_PROTECT_MIRROR && vm->d.epoch == held->s.epoch)) &&
        held->s.run_state != MST_RUN_IMAGE)
        return MAX_OF(held->s.bytes, vm_need_bytes(vm));
    return held->s.bytes;
}

/* Mirrors that its node was, or is about to be, asked to make, and does not show yet. */
static unsigned images_coming(const struct mst_core *core, unsigned index, uint64_t *ret_bytes)
{
    struct node *node = (struct node *)&core->nodes[index];
    unsigned count = 0;

    *ret_bytes = 0;
    for (unsigned i = 0; i < core->vms_end; i++) {
        const struct vm *vm = &core->vms[i];

        for (unsigned n = 0; vm->used && n < MST_MIRRORS_MAX; n++) {
            const struct mirror *m = &vm->mirrors[n];

            if (m->state == MIRROR_IDLE || m->node_id != node->conf.id || held_find(node, vm->d.name, m->epoch))
                continue;
            *ret_bytes += mst_plan_image_bytes(vm->def.memory_mib);
            count++;
        }
    }
    return count;
}

/* What a VM takes covers the twin of one log. While its mirror is replaced there are two. */
static uint64_t more_twins_bytes(const struct vm *vm)
{
    unsigned logs = 0;

    for (unsigned n = 0; n < MST_MIRRORS_MAX; n++)
        logs += vm->mirrors[n].state != MIRROR_IDLE ? 1 : 0;
    return logs > 1 ? (logs - 1) * mst_plan_log_bytes(vm->def.memory_mib) : 0;
}

static uint64_t node_image_bytes(const struct mst_core *core, unsigned index)
{
    const struct node *node = &core->nodes[index];
    uint64_t bytes;

    (void)images_coming(core, index, &bytes);
    for (unsigned i = 0; i < node->held_count; i++)
        bytes += node->held[i].s.run_state == MST_RUN_IMAGE ? held_bytes(core, &node->held[i]) : 0;
    return bytes;
}

uint64_t node_used_bytes(const struct mst_core *core, unsigned index)
{
    struct node *node = (struct node *)&core->nodes[index];
    uint64_t used = node_image_bytes(core, index);

    for (unsigned i = 0; i < node->held_count; i++)
        used += node->held[i].s.run_state != MST_RUN_IMAGE ? held_bytes(core, &node->held[i]) : 0;
    for (unsigned i = 0; i < core->vms_end; i++) {
        const struct vm *vm = &core->vms[i];

        if (!vm->used || vm->d.fenced || vm->d.node_id != node->conf.id)
            continue;
        if (!held_find(node, vm->d.name, vm->d.epoch))
            used += vm_need_bytes(vm);
        used += more_twins_bytes(vm);
    }
    return used;
}

static void node_use(const struct mst_core *core, unsigned index, uint32_t *ret_vcpus, uint32_t *ret_slots)
{
    struct node *node = (struct node *)&core->nodes[index];

    uint64_t bytes;

    *ret_vcpus = 0;
    *ret_slots = node->held_count + images_coming(core, index, &bytes);
    for (unsigned i = 0; i < core->vms_end; i++) {
        const struct vm *vm = &core->vms[i];

        if (!vm->used || vm->d.fenced || vm->d.node_id != node->conf.id)
            continue;
        *ret_vcpus += vm->def.vcpus;
        if (!held_find(node, vm->d.name, vm->d.epoch))
            (*ret_slots)++;
    }
}

bool node_alive(const struct mst_core *core, unsigned index)
{
    const struct node *node = &core->nodes[index];
    enum mst_life life = mst_detect_keeper(&node->detect, core->conf.keeper_silent_ms);

    return node->link != 0 && node->detect.any && life != MST_LIFE_FROZEN && life != MST_LIFE_UNREADABLE;
}

bool agent_runs(const struct mst_core *core, const struct node *node)
{
    return node->link != 0 && node->agent_up && node->detect.agent_moved &&
           mst_detect_agent(&node->detect, core->conf.agent_silent_ms) != MST_LIFE_FROZEN;
}

static bool unsteady(const struct mst_core *core, const struct node *node)
{
    uint64_t oldest_ms = node->joins_ms[core->conf.node_starts_max - 1];

    return oldest_ms != 0 && core->now_ms - oldest_ms < core->conf.node_starts_window_ms;
}

bool node_proved_dead(const struct node *node)
{
    return node->d.fenced_instance != 0 && node->d.fenced_instance == node->instance;
}

bool node_usable(const struct mst_core *core, unsigned index, const char **ret_why)
{
    const struct node *node = &core->nodes[index];
    const char *why = NULL;

    if (node->fencing || proof_waits(core, index))
        why = "is being fenced";
    else if (node->link == 0)
        why = "is not connected";
    else if (!node->detect.any)
        why = "has not been read yet";
    else if (!node_alive(core, index))
        why = "does not beat";
    else if (node_proved_dead(node))
        why = "was proved dead, and may still run what it ran";
    else if (node->d.failing)
        why = "is failing";
    else if (node->d.drained && !MST_MUTANT(30))
        why = "is drained";
    else if (!agent_runs(core, node))
        why = "its agent does not run";
    else if (node->fence_off_ms != 0 && core->now_ms - node->fence_off_ms < MAX_OF(FENCE_OFF_MS, core->conf.fence_timeout_ms))
        why = "its power may still be cut";
    else if (unsteady(core, node))
        why = "its keeper has started too often (node-starts-max); it is used again later, or after node drain --undo";
    if (ret_why)
        *ret_why = why ? why : "";
    return why == NULL;
}

int node_open(const struct mst_core *core, uint32_t node_id, unsigned scopes)
{
    int found = -1;

    for (unsigned i = 0; i < core->recs_end; i++) {
        const struct rec *rec = &core->recs[i];

        if (rec->used && rec_open(rec) && rec->d.node_id == node_id && (scopes >> rec->d.scope & 1) &&
            (found < 0 || rec->d.id > core->recs[found].d.id))
            found = (int)i;
    }
    return found;
}

bool node_has_open(const struct mst_core *core, uint32_t node_id, unsigned scopes)
{
    return node_open(core, node_id, scopes) >= 0;
}

bool rec_gives_up(const struct mst_core *core, const struct rec *rec, unsigned index)
{
    const struct node *node = &core->nodes[index];

    if (!rec->used || rec->d.scope != MST_SCOPE_NODE || rec->d.node_id != node->conf.id || rec->d.instance != node->instance ||
        rec->d.state > MST_REC_FENCING)
        return false;
    for (unsigned i = 0; i < rec->vms_count; i++) {
        if (rec->vms[i].d.epoch_to != 0) /* back in FENCING for what it has started since */
            return false;
    }
    return true;
}

int node_lost(const struct mst_core *core, unsigned index)
{
    for (unsigned i = 0; i < core->recs_end; i++) {
        if (rec_gives_up(core, &core->recs[i], index))
            return (int)i;
    }
    return -1;
}

const struct vm *node_awaits(const struct mst_core *core, unsigned index)
{
    for (unsigned i = 0; i < core->vms_end; i++) {
        const struct vm *vm = &core->vms[i];
        const struct rec *rec = vm->used && vm->rec >= 0 ? &core->recs[vm->rec] : NULL;

        if (rec && (rec->d.state == MST_REC_COMMITTING || rec->d.state == MST_REC_RESUMING) && !vm->d.fenced &&
            vm->d.phase != MST_VM_HELD && vm->d.node_id == core->nodes[index].conf.id)
            return vm;
    }
    return NULL;
}

static_assert(RECOVERIES_KEPT > 2 * MST_NODES_MAX, "starts and stops have room as well");

/* Starts that nobody has room for stay open, each a recovery of its own: however many, they leave room for VMs that fail, and both for nodes. */
bool rec_room(const struct mst_core *core, enum mst_scope scope)
{
    unsigned kept_free = scope == MST_SCOPE_START || scope == MST_SCOPE_STOP ? 2 * MST_NODES_MAX
                         : scope == MST_SCOPE_VM                             ? MST_NODES_MAX
                                                                             : 0;
    unsigned room = 0;

    for (unsigned i = 0; i < RECOVERIES_KEPT && room <= kept_free; i++)
        room += !core->recs[i].used || !rec_open(&core->recs[i]);
    return room > kept_free;
}

bool any_other_alive(const struct mst_core *core, unsigned index)
{
    for (unsigned i = 0; i < core->nodes_count; i++) {
        if (i != index && node_alive(core, i))
            return true;
    }
    return MST_MUTANT(23);
}

static void plan_node_fill(const struct mst_core *core, unsigned index, struct mst_plan_node *ret)
{
    const struct node *node = &core->nodes[index];

    memset(ret, 0, sizeof(*ret));
    ret->id = node->conf.id;
    ret->name = node->conf.name;
    ret->usable = node_usable(core, index, &ret->why_not);
    ret->last_resort = !ret->usable && node_alive(core, index) && !node->fencing && !proof_waits(core, index) && node->agent_up &&
                       !node_proved_dead(node);
    ret->rack = node_rack(node);
    ret->memory_bytes = node->memory_mib * MIB;
    ret->used_bytes = node_used_bytes(core, index);
    ret->image_bytes = node_image_bytes(core, index);
    ret->vcpus = node->vcpus;
    node_use(core, index, &ret->used_vcpus, &ret->used_slots);
}

uint64_t nodes_flapping(const struct mst_core *core)
{
    uint64_t bits = 0;

    for (unsigned i = 0; i < core->nodes_count; i++) {
        if (core->nodes[i].unreached_ms != 0 && core->now_ms - core->nodes[i].unreached_ms < FLAPPING_MS)
            bits |= UINT64_C(1) << i;
    }
    return bits;
}

/* Where a VM would rather be: by what failed, and by where its save lies. */
static void plan_vm_fill(const struct mst_core *core, const struct rec *rec, const struct mst_rvm_row *rvm, bool elsewhere_only,
                         struct mst_plan_vm *ret)
{
    const struct vm *vm = &core->vms[vm_find(core, rvm->vm)];
    int from = node_find_id(core, rvm->from_node_id);
    bool elsewhere = elsewhere_only || rec->d.scope == MST_SCOPE_MOVE || rec->d.scope == MST_SCOPE_AGENT;

    memset(ret, 0, sizeof(*ret));
    ret->name = vm->d.name;
    ret->need_bytes = vm_need_bytes(vm);
    ret->vcpus = vm->def.vcpus;
    ret->priority = vm->def.priority;
    ret->allowed = vm->def.allowed;
    ret->allowed_count = vm->def.allowed_count;
    ret->avoid = rvm->tried;
    ret->only_id = vm->d.pin_node_id; /* also when the operator starts, on a node of his choice, what a fault has left held */
    if (rec->d.scope == MST_SCOPE_START) {
        ret->prefer_id = vm->d.save.node_id;
        return;
    }
    if (rec->d.scope == MST_SCOPE_VM && vm->def.on_vm_fault == MST_ON_FAULT_RESUME_ELSEWHERE)
        elsewhere = true;
    if (elsewhere && from >= 0)
        ret->avoid |= UINT64_C(1) << from;
    else
        ret->prefer_id = rvm->from_node_id;
    if (rvm->how == MST_HOW_RESUME && staged_vm(core, vm_find(core, rvm->vm))->save.image) /* nothing goes over the wire there */
        ret->prefer_id = staged_vm(core, vm_find(core, rvm->vm))->save.node_id;
    if (elsewhere && !elsewhere_only)
        ret->fallback_id = rvm->from_node_id;
    ret->avoid |= nodes_flapping(core);
    if (rvm->how == MST_HOW_BOOT && from >= 0) { /* what it left behind is dropped before it boots there */
        for (unsigned i = 0; i < core->nodes[from].held_count; i++) {
            if (strcmp(core->nodes[from].held[i].s.vm, vm->d.name) != 0)
                continue;
            ret->credit_id = rvm->from_node_id;
            ret->credit_bytes += held_bytes(core, &core->nodes[from].held[i]);
        }
    }
}

void plan_nodes_fill(const struct mst_core *core, struct mst_plan_node nodes[static MST_NODES_MAX])
{
    for (unsigned i = 0; i < core->nodes_count; i++)
        plan_node_fill(core, i, &nodes[i]);
}

unsigned place(struct mst_core *core, struct rec *rec, const unsigned *which, unsigned count, bool elsewhere_only,
               struct mst_placement *ret)
{
    struct mst_plan_node nodes[MST_NODES_MAX];
    struct mst_plan_vm vms[MST_VMS_PER_NODE];

    plan_nodes_fill(core, nodes);
    for (unsigned i = 0; i < core->nodes_count; i++) {
        if (elsewhere_only && nodes[i].id == rec->d.node_id) {
            nodes[i].usable = false;
            nodes[i].last_resort = false;
            nodes[i].why_not = rec->d.kind == MST_FAULT_OPERATOR ? "is drained" : "is failing";
        }
    }
    for (unsigned i = 0; i < count; i++)
        plan_vm_fill(core, rec, staged_rvm(core, rec, which[i]), elsewhere_only, &vms[i]);
    return mst_plan_make(nodes, core->nodes_count, vms, count, ret);
}
