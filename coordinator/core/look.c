#include "coordinator/core/internal.h"

#include <inttypes.h>
#include <string.h>

const char *mst_rec_state_name(unsigned state)
{
    return mst_state_name(rec_states, MST_REC_STATES, state);
}

const char *mst_fault_kind_name(unsigned kind)
{
    static const char *const names[] = {"none",        "vm-exited",   "vm-silent", "vm-panicked", "agent-silent", "keeper-silent",
                                        "keeper-dead", "unreachable", "processor", "operator",    "external",     "area-corrupt"};

    return kind < sizeof(names) / sizeof(names[0]) ? names[kind] : "?";
}

const char *mst_outcome_name(unsigned outcome)
{
    static const char *const names[] = {"pending", "resumed", "restarted", "held", "stopped", "discarded", "runs-on"};

    return outcome < sizeof(names) / sizeof(names[0]) ? names[outcome] : "?";
}

const char *mst_proof_name(unsigned kind)
{
    static const char *const names[] = {"none", "keeper", "return", "power", "operator", "watchdog"};

    return kind < sizeof(names) / sizeof(names[0]) ? names[kind] : "?";
}

unsigned mst_core_nodes(const struct mst_core *core)
{
    return core->nodes_count;
}

int mst_core_node_by_name(const struct mst_core *core, const char *name)
{
    return node_find(core, name);
}

int mst_core_node_by_id(const struct mst_core *core, uint32_t id)
{
    return node_find_id(core, id);
}

static bool has_grants(const struct mst_core *core, const struct node *node)
{
    for (unsigned i = 0; i < core->vms_end; i++) {
        if (core->vms[i].used && !core->vms[i].d.fenced && core->vms[i].d.node_id == node->conf.id)
            return true;
    }
    return false;
}

static enum mst_node_state node_state(const struct mst_core *core, unsigned index)
{
    const struct node *node = &core->nodes[index];
    int lost = node_lost(core, index);

    if (node->fencing || (lost >= 0 && core->recs[lost].d.state == MST_REC_FENCING))
        return MST_NODE_FENCING;
    if (node->link == 0 && node_proved_dead(node))
        return MST_NODE_FENCED;
    if (node->manage.degraded)
        return MST_NODE_DEGRADED;
    if (node->link == 0)
        return has_grants(core, node) ? MST_NODE_SUSPECT : MST_NODE_ABSENT;
    if (node->detect.any && !node_alive(core, index))
        return MST_NODE_SUSPECT;
    if (node->d.failing)
        return MST_NODE_FAILING;
    return node->d.drained ? MST_NODE_DRAINED : MST_NODE_UP;
}

void mst_core_node(const struct mst_core *core, const struct mst_time *now, unsigned index, struct mst_node_look *ret)
{
    const struct node *node = &core->nodes[index];
    const char *why = "";

    memset(ret, 0, sizeof(*ret));
    ret->member = &node->conf;
    ret->rack = node_rack(node);
    ret->state = node_state(core, index);
    ret->instance = node->instance;
    ret->link = node->link;
    ret->agent_up = agent_runs(core, node);
    ret->drained = node->d.drained;
    ret->health = node->info.health;
    ret->vcpus = node->vcpus;
    ret->load_milli = node->info.load_milli;
    ret->machine_checks = node->info.machine_checks;
    ret->memory_mib = node->memory_mib;
    ret->memory_used_mib = node_used_bytes(core, index) >> 20;
    ret->beat_known = node->detect.any;
    ret->beat_age_ms =
        node->detect.any && now->us / 1000 > node->detect.last_ok_ms ? now->us / 1000 - node->detect.last_ok_ms : 0;
    ret->beat_reads = node->beat_reads;
    ret->beat_gap_max_ms = node->beat_gap_max_ms;
    for (unsigned i = 0; i < core->vms_end; i++) {
        const struct vm *vm = &core->vms[i];

        ret->vms += vm->used && !vm->d.fenced && vm->d.node_id == node->conf.id ? 1 : 0;
    }
    if (node->fence_text[0] && ret->state == MST_NODE_FENCING)
        text_set(ret->text, sizeof(ret->text), "%s", node->fence_text);
    else if (ret->state != MST_NODE_DEGRADED && node->d.text[0])
        text_set(ret->text, sizeof(ret->text), "%s", node->d.text);
    else if (ret->state == MST_NODE_DRAINED && mirrors_on(core, index) > 0)
        text_set(ret->text, sizeof(ret->text), "is drained; the mirrors of %u VMs are still there", mirrors_on(core, index));
    else if (ret->state != MST_NODE_DEGRADED && !node_usable(core, index, &why))
        text_set(ret->text, sizeof(ret->text), "%s", why);
    else
        manage_text(node, ret->text, sizeof(ret->text));
}

static const char *const trouble_words[MST_SLOT_TROUBLES] = {
    [MST_SLOT_TROUBLE_FAILED] = "QEMU refused the next one, or it could not be written",
    [MST_SLOT_TROUBLE_SILENT] = "QEMU does not answer",
    [MST_SLOT_TROUBLE_STOPPED] = "somebody else stopped the guest",
    [MST_SLOT_TROUBLE_LATE] = "the next one takes too long",
    [MST_SLOT_TROUBLE_MIRROR] = "its mirrors do not take the last one",
    [MST_SLOT_TROUBLE_WHOLE] = "there is too much in one for its delta, so that the guest stands for all of its memory",
};
static const char *const trouble_names[MST_SLOT_TROUBLES] = {
    [MST_SLOT_TROUBLE_FAILED] = "failed", [MST_SLOT_TROUBLE_SILENT] = "silent", [MST_SLOT_TROUBLE_STOPPED] = "stopped",
    [MST_SLOT_TROUBLE_LATE] = "late",     [MST_SLOT_TROUBLE_MIRROR] = "mirror", [MST_SLOT_TROUBLE_WHOLE] = "whole",
};

/* Why checkpoints come as often as they do. */
static void pace_look(const struct mst_slot *s, struct mst_vm_look *ret)
{
    static const char *const words[MST_SLOT_PACES] = {
        [MST_SLOT_PACE_SET] = "as its definition says",
        [MST_SLOT_PACE_STALL] = "oftener it would stand still for too much of the time",
        [MST_SLOT_PACE_COPY] = "one takes so long on its node",
        [MST_SLOT_PACE_MIRROR] = "its mirrors take so long for one",
    };

    ret->interval_ms = s->interval_ms;
    ret->pages = s->pages;
    ret->dirty_pages = s->dirty_pages;
    ret->pause_p50_us = s->pause_p50_us;
    ret->pause_p99_us = s->pause_p99_us;
    if (s->interval_ms != 0)
        text_set(ret->pace, sizeof(ret->pace), "%s", words[s->pace]);
}

static void trouble_look(const struct mst_core *core, const struct mst_slot *s, struct mst_vm_look *ret)
{
    uint64_t wall_ms = core->now.wall_ms, age_ms = wall_ms > s->taken_wall_ms ? wall_ms - s->taken_wall_ms : 0;

    if (s->trouble == MST_SLOT_TROUBLE_NONE)
        return;
    ret->trouble = trouble_names[s->trouble];
    ret->trouble_wall_ms = s->trouble_wall_ms;
    if (ret->text[0])
        return; /* that comes first */
    if (s->trouble == MST_SLOT_TROUBLE_WHOLE)
        text_set(ret->text, sizeof(ret->text), "checkpoints: %s", trouble_words[s->trouble]);
    else if (s->save_seq == 0)
        text_set(ret->text, sizeof(ret->text), "no checkpoint yet: %s", trouble_words[s->trouble]);
    else
        text_set(ret->text, sizeof(ret->text), "last good checkpoint %" PRIu64 ", %" PRIu64 ".%" PRIu64 " s old: %s", s->save_seq,
                 age_ms / 1000, age_ms % 1000 / 100, trouble_words[s->trouble]);
}

static bool vm_look(const struct mst_core *core, const struct vm *vm, struct mst_vm_look *ret)
{
    const struct held *held = NULL;

    memset(ret, 0, sizeof(*ret));
    ret->row = &vm->d;
    ret->definition = &vm->def;
    ret->node = vm->d.node_id ? node_find_id(core, vm->d.node_id) : -1;
    if (ret->node >= 0)
        held = held_find((struct node *)&core->nodes[ret->node], vm->d.name, vm->d.epoch);
    if (held && !held->s.save_corrupt) {
        ret->save_seq = held->s.save_seq;
        ret->save_wall_ms = held->s.taken_wall_ms;
        ret->pause_us = held->s.pause_us;
    }
    mirrors_look(core, vm, ret);
    if (vm->d.text[0])
        text_set(ret->text, sizeof(ret->text), "%s", vm->d.text);
    else if (vm->rec >= 0)
        text_set(ret->text, sizeof(ret->text), "%s%s%.150s", mst_rec_state_name(core->recs[vm->rec].d.state),
                 core->recs[vm->rec].why[0] ? ": " : "", core->recs[vm->rec].why);
    if (held && vm->d.phase == MST_VM_RUNNING) {
        pace_look(&held->s, ret);
        trouble_look(core, &held->s, ret);
    }
    return true;
}

bool mst_core_vm(const struct mst_core *core, unsigned i, struct mst_vm_look *ret)
{
    const struct vm *last = NULL;

    /* The i-th by name, without keeping an order: lists are short and asked for by people. */
    for (unsigned rank = 0; rank <= i; rank++) {
        const struct vm *next = NULL;

        for (unsigned k = 0; k < core->vms_end; k++) {
            const struct vm *vm = &core->vms[k];

            if (!vm->used || (last && strcmp(vm->d.name, last->d.name) <= 0))
                continue;
            if (!next || strcmp(vm->d.name, next->d.name) < 0)
                next = vm;
        }
        if (!next)
            return false;
        last = next;
    }
    return vm_look(core, last, ret);
}

bool mst_core_vm_by_name(const struct mst_core *core, const char *name, struct mst_vm_look *ret)
{
    int index = vm_find(core, name);

    return index >= 0 && vm_look(core, &core->vms[index], ret);
}

static void recovery_look(const struct mst_core *core, const struct rec *rec, struct mst_recovery_look *ret)
{
    memset(ret, 0, sizeof(*ret));
    ret->row = &rec->d;
    ret->steps = rec->steps;
    ret->steps_count = rec->steps_count;
    ret->why = rec_open(rec) ? rec->why : "";
    ret->state = rec->d.state == MST_REC_COMMITTING && rec->resuming.us != 0 ? MST_REC_RESUMING : rec->d.state;
    ret->vms_count = rec->vms_count;
    ret->key = (uint64_t)(rec - core->recs);
}

bool mst_core_recovery(const struct mst_core *core, unsigned i, struct mst_recovery_look *ret)
{
    const struct rec *last = NULL;

    for (unsigned rank = 0; rank <= i; rank++) {
        const struct rec *next = NULL;

        for (unsigned k = 0; k < core->recs_end; k++) {
            const struct rec *rec = &core->recs[k];

            if (!rec->used || rec->d.scope >= MST_SCOPE_START || (last && rec->d.id >= last->d.id))
                continue;
            if (!next || rec->d.id > next->d.id)
                next = rec;
        }
        if (!next)
            return false;
        last = next;
    }
    recovery_look(core, last, ret);
    return true;
}

bool mst_core_recovery_by_id(const struct mst_core *core, uint64_t id, struct mst_recovery_look *ret)
{
    const struct rec *rec = rec_by_id((struct mst_core *)core, id);

    if (!rec)
        return false;
    recovery_look(core, rec, ret);
    return true;
}

const struct mst_rvm_row *mst_core_recovery_vm(const struct mst_core *core, uint64_t key, unsigned i)
{
    return key < RECOVERIES_KEPT && i < core->recs[key].vms_count ? &core->recs[key].vms[i].d : NULL;
}

const struct mst_fault_row *mst_core_fault(const struct mst_core *core, unsigned i)
{
    uint64_t id = core->faults_newest > i ? core->faults_newest - i : 0;
    const struct mst_fault_row *fault = &core->faults[id % FAULTS_KEPT];

    return id != 0 && i < FAULTS_KEPT && fault->id == id ? fault : NULL;
}

const char *mst_core_trouble(const struct mst_core *core)
{
    if (core_outdated(core))
        return core->outdated;
    if (core->trouble[0])
        return core->trouble;
    return core->frozen_text[0] ? core->frozen_text : core->degraded_text;
}

uint64_t mst_core_term(const struct mst_core *core)
{
    return core->meta.term;
}

uint64_t mst_core_decision(const struct mst_core *core)
{
    return core->meta.decision;
}
