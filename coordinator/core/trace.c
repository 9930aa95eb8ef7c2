#include "coordinator/core/internal.h"

#include <string.h>

/* Decisions as events (docs/EVENTS.md): told when their transaction is durable, from the difference between what was and what is now. An effect
 * is told where it is ordered. So the order of the lines is the order of things, which is what the checker of the lab looks at. */

void core_event(struct mst_core *core, const struct mst_event *event)
{
    struct mst_event copy = *event;

    if (!core->io.event)
        return;
    if (copy.term == 0)
        copy.term = core->meta.term;
    core->io.event(core->io.impl, &copy);
}

static const struct mst_rvm_row *granted_by(const struct mst_core *core, const struct mst_vm_row *row)
{
    for (uint32_t i = 0; i < core->txn.count; i++) {
        const struct mst_row *other = &core->txn.rows[i];

        if (other->kind == MST_ROW_RVM && other->rvm.epoch_to == row->epoch && strcmp(other->rvm.vm, row->name) == 0)
            return &other->rvm;
    }
    return NULL;
}

static void trace_vm(struct mst_core *core, const struct mst_vm_row *row)
{
    int index = vm_find(core, row->name);
    const struct mst_vm_row none = {0};
    const struct mst_vm_row *was = index >= 0 ? &core->vms[index].d : &none;
    struct mst_event event = {
        .vm = row->name, .epoch = row->epoch, .node = node_name(core, row->node_id), .instance = row->instance};

    if (row->wanted != was->wanted)
        core_event(core, &(struct mst_event){.kind = MST_EV_VM_WANTED, .vm = row->name, .what = row->wanted ? "yes" : "no"});
    if (row->epoch != was->epoch && row->node_id != 0) {
        const struct mst_rvm_row *rvm = granted_by(core, row);

        event.kind = rvm ? MST_EV_GRANT_GIVEN : MST_EV_GRANT_ADOPTED;
        event.recovery = rvm ? rvm->recovery_id : 0;
        event.proof = rvm ? rvm->proof_id : 0;
        core_event(core, &event);
        if (rvm && row->save.image)
            core_event(core, &(struct mst_event){.kind = MST_EV_MIRROR_USED,
                                                 .vm = row->name,
                                                 .epoch = row->save.epoch,
                                                 .seq = row->save.seq,
                                                 .node = node_name(core, row->save.node_id),
                                                 .instance = row->save.instance,
                                                 .recovery = rvm->recovery_id});
    }
    if (row->fenced && row->node_id != 0 && (!was->fenced || row->epoch != was->epoch)) {
        event.kind = MST_EV_GRANT_FENCED;
        event.recovery = 0;
        event.proof = row->proof_id;
        event.what = mst_proof_name(row->proof_kind);
        core_event(core, &event);
    }
}

/* What the store has: the last lines of the coordinator before us may be lost with it. */
void trace_begin(struct mst_core *core)
{
    for (unsigned i = 0; i < core->vms_end; i++) {
        const struct mst_vm_row *row = &core->vms[i].d;

        if (!core->vms[i].used)
            continue;
        core_event(core, &(struct mst_event){.kind = MST_EV_VM_WANTED, .vm = row->name, .what = row->wanted ? "yes" : "no"});
        if (row->node_id != 0)
            core_event(core, &(struct mst_event){.kind = MST_EV_GRANT_LOADED,
                                                 .vm = row->name,
                                                 .epoch = row->epoch,
                                                 .node = node_name(core, row->node_id),
                                                 .instance = row->instance,
                                                 .proof = row->proof_id,
                                                 .what = row->fenced ? "fenced" : "open"});
    }
}

static void trace_fault(struct mst_core *core, const struct mst_fault_row *row)
{
    if (row->id <= core->faults_newest)
        return;
    core_event(core, &(struct mst_event){.kind = MST_EV_FAULT_RECORDED,
                                         .fault = row->id,
                                         .recovery = row->recovery_id,
                                         .node = node_name(core, row->node_id),
                                         .instance = row->instance,
                                         .vm = row->vm,
                                         .epoch = row->epoch,
                                         .what = mst_fault_kind_name(row->kind),
                                         .text = row->text});
}

static void trace_step(struct mst_core *core, const struct mst_step_row *row)
{
    const struct rec *rec = rec_by_id(core, row->recovery_id);
    uint32_t node_id = rec ? rec->d.node_id : 0;

    for (uint32_t i = 0; i < core->txn.count; i++) {
        if (core->txn.rows[i].kind == MST_ROW_RECOVERY && core->txn.rows[i].recovery.id == row->recovery_id)
            node_id = core->txn.rows[i].recovery.node_id;
    }
    core_event(core, &(struct mst_event){.kind = MST_EV_RECOVERY_STATE,
                                         .recovery = row->recovery_id,
                                         .node = node_id ? node_name(core, node_id) : NULL,
                                         .what = mst_rec_state_name(row->state),
                                         .text = row->text});
}

static void trace_mirror(struct mst_core *core, const struct mst_mirror_row *row)
{
    int index = vm_find(core, row->vm);
    const struct mirror *m = index >= 0 ? &core->vms[index].mirrors[row->n] : NULL;
    char text[MST_TEXT_BYTES] = "";

    if (!m || (row->counts == m->d.counts && row->log_id == m->d.log_id))
        return;
    if (row->counts && racks_of(core, core->vms[index].d.node_id, row->node_id) == MST_RACKS_SAME)
        text_set(text, sizeof(text), "in the VM's own rack (%s)", node_rack(&core->nodes[node_find_id(core, row->node_id)]));
    core_event(core, &(struct mst_event){.kind = row->counts ? MST_EV_MIRROR_JOINED : MST_EV_MIRROR_LEFT,
                                         .vm = row->vm,
                                         .epoch = row->epoch,
                                         .seq = m->acked_seq,
                                         .node = node_name(core, row->node_id),
                                         .instance = row->instance,
                                         .text = row->counts ? text : m->text});
}

void trace_row(struct mst_core *core, const struct mst_row *row)
{
    switch (row->kind) {
    case MST_ROW_META:
        if (row->meta.term != core->meta.term)
            core_event(core, &(struct mst_event){.kind = MST_EV_TERM_BEGUN, .term = row->meta.term});
        break;
    case MST_ROW_VM:
        trace_vm(core, &row->vm);
        break;
    case MST_ROW_FAULT:
        trace_fault(core, &row->fault);
        break;
    case MST_ROW_STEP:
        trace_step(core, &row->step);
        break;
    case MST_ROW_MIRROR:
        trace_mirror(core, &row->mirror);
        break;
    case MST_ROW_PROOF:
        core_event(core, &(struct mst_event){.kind = MST_EV_PROOF_RECORDED,
                                             .proof = row->proof.id,
                                             .node = node_name(core, row->proof.node_id),
                                             .instance = row->proof.instance,
                                             .what = mst_proof_name(row->proof.kind),
                                             .text = row->proof.text});
        break;
    default:
        break;
    }
}

void trace_order(struct mst_core *core, enum mst_event_kind kind, const struct mst_event *about, unsigned node)
{
    struct mst_event event = *about;

    event.kind = kind;
    event.node = core->nodes[node].conf.name;
    core_event(core, &event);
}

void trace_node(struct mst_core *core, enum mst_event_kind kind, unsigned node, uint64_t token, int err, const char *text)
{
    core_event(core, &(struct mst_event){.kind = kind,
                                         .node = core->nodes[node].conf.name,
                                         .instance = core->nodes[node].instance,
                                         .order = token,
                                         .err = err,
                                         .text = text});
}
