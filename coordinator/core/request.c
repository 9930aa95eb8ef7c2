#include "coordinator/core/internal.h"

#include "base/mutant.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int mst_core_request(struct mst_core *core, const struct mst_time *now, uint64_t token, const struct mst_request *request)
{
    struct queued_request *entry;

    core_time(core, now);
    if (core_outdated(core)) {
        core->io.reply(core->io.impl, token, -ESTALE, core->outdated);
        return 0;
    }
    if (core->requests_count == REQUESTS_MAX)
        return -ENOBUFS;
    entry = &core->requests[(core->requests_head + core->requests_count++) % REQUESTS_MAX];
    entry->r = *request;
    entry->token = token;
    if (request->definition)
        entry->definition = *request->definition;
    core_run(core);
    return 0;
}

__attribute__((format(printf, 4, 5))) static bool answer(struct mst_core *core, const struct queued_request *q, int err,
                                                         const char *fmt, ...)
{
    char text[2 * MST_TEXT_BYTES];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    core_log(core, MST_LOG_NOTICE, "request name=%s %s: %s", q->r.name, err < 0 ? mst_errname(err) : "nothing to do", text);
    core->io.reply(core->io.impl, q->token, err, text);
    return false;
}

void waiter_add(struct mst_core *core, uint64_t token, bool for_start, const char *vm)
{
    for (unsigned i = 0; i < WAITERS_MAX; i++) {
        struct waiter *waiter = &core->waiters[i];

        if (waiter->token != 0)
            continue;
        waiter->token = token;
        waiter->for_start = for_start;
        waiter->deadline_ms = core->now_ms + WAIT_MAX_MS;
        text_set(waiter->vm, sizeof(waiter->vm), "%s", vm);
        return;
    }
    core->io.reply(core->io.impl, token, -EINPROGRESS, "accepted; too many wait for an answer already, ask for the status");
}

static void waiter_end(struct mst_core *core, struct waiter *waiter, int err, const char *text)
{
    core->io.reply(core->io.impl, waiter->token, err, text);
    waiter->token = 0;
}

void waiters_step(struct mst_core *core)
{
    char text[MST_TEXT_BYTES];

    for (unsigned i = 0; i < WAITERS_MAX; i++) {
        struct waiter *waiter = &core->waiters[i];
        int index = waiter->token != 0 ? vm_find(core, waiter->vm) : -1;
        const struct vm *vm = index >= 0 ? &core->vms[index] : NULL;

        if (waiter->token == 0)
            continue;
        if (!vm) {
            waiter_end(core, waiter, waiter->for_start ? -ENOENT : 0, "the VM is gone");
        } else if (vm->d.phase == MST_VM_STOPPED) {
            waiter_end(core, waiter, waiter->for_start ? -ECANCELED : 0, vm->d.text[0] ? vm->d.text : "stopped");
        } else if (waiter->for_start && vm->d.phase == MST_VM_RUNNING) {
            text_set(text, sizeof(text), "runs on %s, epoch %" PRIu64, node_name(core, vm->d.node_id), vm->d.epoch);
            waiter_end(core, waiter, 0, text);
        } else if (waiter->for_start && vm->d.phase == MST_VM_HELD) {
            waiter_end(core, waiter, -ENOSPC, vm->d.text);
        } else if (core->now_ms >= waiter->deadline_ms) {
            const char *why = vm->rec >= 0 ? core->recs[vm->rec].why : "";

            text_set(text, sizeof(text), "accepted, still under way%s%.150s", why[0] ? ": " : "", why);
            waiter_end(core, waiter, -EINPROGRESS, text);
        }
    }
}

/* --- VMs --- */

static bool define(struct mst_core *core, struct queued_request *q)
{
    int index = vm_find(core, q->definition.name);
    const struct vm *vm = index >= 0 ? &core->vms[index] : NULL;
    struct mst_row *row;

    if (vm && vm->def.packed_bytes == q->definition.packed_bytes &&
        memcmp(vm->def.packed, q->definition.packed, vm->def.packed_bytes) == 0)
        return answer(core, q, 0, "%s is defined so already", q->definition.name);
    if (vm && !q->r.replace)
        return answer(core, q, -EEXIST, "%s is defined already; ask to replace it", q->definition.name);
    if (vm && (vm->d.phase != MST_VM_STOPPED || vm->rec >= 0))
        return answer(core, q, -EBUSY, "%s is not stopped: stop it before its definition is replaced", q->definition.name);
    if (!vm && vm_slot(core, q->definition.name) < 0)
        return answer(core, q, -ENOSPC, "%u VMs are defined: this version takes no more", MST_VMS_MAX);
    txn_begin(core);
    core->definition = q->definition;
    txn_add(core, MST_ROW_DEFINITION)->definition = &core->definition;
    if (!vm) {
        row = txn_add(core, MST_ROW_VM);
        memcpy(row->vm.name, q->definition.name, sizeof(row->vm.name));
        row->vm.fenced = true;
        row->vm.epoch = core->meta.epoch_floor;
    }
    text_set(core->reply_text, sizeof(core->reply_text), "%s %s", q->definition.name, vm ? "replaced" : "defined");
    txn_submit(core, "vm=%s %s", q->definition.name, vm ? "replaced" : "defined");
    return true;
}

static bool undefine(struct mst_core *core, struct queued_request *q, int index)
{
    const struct vm *vm = &core->vms[index];
    struct mst_meta_row *meta;

    if (vm->d.phase != MST_VM_STOPPED || vm->rec >= 0)
        return answer(core, q, -EBUSY, "%s is not stopped: mainstayctl vm stop %s", vm->d.name, vm->d.name);
    txn_begin(core);
    meta = txn_meta(core);
    meta->epoch_floor = MST_MUTANT(20) ? 0 : MAX_OF(meta->epoch_floor, vm->d.epoch);
    memcpy(txn_add(core, MST_ROW_VM_DELETE)->vm_delete, vm->d.name, MST_NAME_BYTES);
    text_set(core->reply_text, sizeof(core->reply_text), "%s is gone", vm->d.name);
    txn_submit(core, "vm=%s undefined", vm->d.name);
    return true;
}

static void stage_held_again(struct mst_core *core, struct rec *rec, int index)
{
    /* What was saved is looked at again; what an operator starts for the first time has nothing. */
    enum mst_rec_state next = rec->d.scope == MST_SCOPE_START ? MST_REC_PLANNING : MST_REC_READING2;

    for (unsigned i = 0; i < rec->vms_count; i++) {
        struct mst_rvm_row *row;

        if (rec->vms[i].vm != index)
            continue;
        row = txn_rvm(core, rec, i);
        if (row->hold == MST_HOLD_SAVE)
            next = MST_REC_READING2;
        row->outcome = MST_OUT_PENDING;
        row->hold = MST_HOLD_NONE;
        row->attempts = 0;
        row->tried = 0;
        row->forced = true;
        row->text[0] = 0;
    }
    txn_move(core, rec, next, "started by the operator");
}

static bool start(struct mst_core *core, struct queued_request *q, int index)
{
    const struct vm *vm = &core->vms[index];
    int pin = q->r.node[0] ? node_find(core, q->r.node) : -1;
    struct mst_vm_row *row;

    if (q->r.node[0] && pin < 0)
        return answer(core, q, -ENOENT, "no node of this cluster is called %s", q->r.node);
    if (vm->d.phase == MST_VM_RUNNING && vm->d.wanted)
        return answer(core, q, 0, "%s runs on %s already", vm->d.name, node_name(core, vm->d.node_id));
    if (vm->d.phase == MST_VM_STOPPING || (!vm->d.wanted && vm->d.phase != MST_VM_STOPPED))
        return answer(core, q, -EBUSY, "%s is being stopped: start it afterwards", vm->d.name);
    if ((vm->d.phase == MST_VM_STOPPED && (vm->rec >= 0 || !rec_room(core, MST_SCOPE_START))))
        return answer(core, q, -EBUSY, "%s: too much is under way, try again", vm->d.name);
    if (vm->d.phase == MST_VM_HELD && vm->rec >= 0 && core->recs[vm->rec].d.state != MST_REC_HELD)
        return answer(core, q, -EBUSY,
                      "%s waits for recovery %" PRIu64 ", which still has other VMs to start: try again when it is held or done",
                      vm->d.name, core->recs[vm->rec].d.id);
    txn_begin(core);
    row = txn_vm(core, index);
    row->wanted = true;
    row->text[0] = 0;
    if (vm->d.phase == MST_VM_STOPPED) {
        row->pin_node_id = pin >= 0 ? core->nodes[pin].conf.id : 0;
        (void)open_recovery(core, MST_SCOPE_START, MST_FAULT_NONE, -1, 0, index, "started by the operator");
    } else if (vm->d.phase == MST_VM_HELD && vm->rec >= 0) {
        row->pin_node_id = pin >= 0 ? core->nodes[pin].conf.id : 0;
        row->phase = core->recs[vm->rec].d.scope == MST_SCOPE_START ? MST_VM_STARTING : MST_VM_RECOVERING;
        stage_held_again(core, &core->recs[vm->rec], index);
    }
    core->reply_when = REPLY_START;
    memcpy(core->reply_vm, vm->d.name, sizeof(core->reply_vm));
    txn_submit(core, "vm=%s wanted", vm->d.name);
    return true;
}

static bool stop(struct mst_core *core, struct queued_request *q, int index)
{
    const struct vm *vm = &core->vms[index];
    struct rec *rec = vm->rec >= 0 ? &core->recs[vm->rec] : NULL;
    struct mst_vm_row *row;

    if (vm->d.phase == MST_VM_STOPPED)
        return answer(core, q, 0, "%s is stopped", vm->d.name);
    if (!rec && !rec_room(core, MST_SCOPE_STOP))
        return answer(core, q, -EBUSY, "%s: too much is under way, try again", vm->d.name);
    txn_begin(core);
    row = txn_vm(core, index);
    row->wanted = false;
    if (!rec && vm->d.fenced) {
        row->phase = MST_VM_STOPPED;
        memset(&row->save, 0, sizeof(row->save));
    } else if (!rec) {
        (void)open_recovery(core, MST_SCOPE_STOP, MST_FAULT_NONE, node_find_id(core, vm->d.node_id), 0, index,
                            "stopped by the operator");
    } else if (vm->d.phase == MST_VM_HELD && vm->d.fenced) { /* whatever its recovery still does for others */
        row->phase = MST_VM_STOPPED;
        memset(&row->save, 0, sizeof(row->save));
        for (unsigned i = 0; i < rec->vms_count; i++) {
            if (rec->vms[i].vm == index) {
                struct mst_rvm_row *rvm = txn_rvm(core, rec, i);

                rvm->outcome = MST_OUT_STOPPED;
                text_set(rvm->text, sizeof(rvm->text), "stopped by the operator");
            }
        }
    } /* otherwise its recovery sees that it is not wanted: not revived */
    text_set(row->text, sizeof(row->text), "stopped by the operator");
    core->reply_when = MST_MUTANT(32) ? REPLY_NOW : REPLY_STOP;
    memcpy(core->reply_vm, vm->d.name, sizeof(core->reply_vm));
    txn_submit(core, "vm=%s not wanted", vm->d.name);
    return true;
}

/* A VM that is not wanted but runs is stopped; one that is wanted but that nobody cares for is started. Neither happens in the ordinary course:
 * a stop that came while a start was under way, a node that died in the moment its VM had arrived. */
bool vm_wish_step(struct mst_core *core)
{
    for (unsigned i = 0; i < core->vms_end; i++) {
        const struct vm *vm = &core->vms[i];
        bool stop_it = vm->used && vm->rec < 0 && !vm->d.wanted && vm->d.phase != MST_VM_STOPPED;
        bool start_it = vm->used && vm->rec < 0 && vm->d.wanted && vm->d.fenced &&
                        (vm->d.phase == MST_VM_RUNNING || vm->d.phase == MST_VM_RECOVERING || vm->d.phase == MST_VM_STARTING);

        if ((!stop_it && !start_it) || !rec_room(core, stop_it ? MST_SCOPE_STOP : MST_SCOPE_VM))
            continue;
        txn_begin(core);
        if (stop_it)
            (void)open_recovery(core, MST_SCOPE_STOP, MST_FAULT_NONE, node_find_id(core, vm->d.node_id), 0, (int)i,
                                "not wanted any more");
        else
            (void)open_recovery(core, MST_SCOPE_START, MST_FAULT_NONE, -1, 0, (int)i, "wanted, but nothing runs it");
        txn_submit(core, "vm=%s is to be %s", vm->d.name, stop_it ? "stopped" : "started");
        return true;
    }
    return false;
}

/* --- nodes --- */

static bool drain(struct mst_core *core, struct queued_request *q, unsigned index)
{
    struct node *node = &core->nodes[index];
    struct mst_fault_row *fault;
    unsigned vms = 0;
    uint64_t id = 0;

    for (unsigned i = 0; i < core->vms_end; i++) {
        const struct vm *vm = &core->vms[i];

        vms += vm->used && vm->rec < 0 && !vm->d.fenced && vm->d.node_id == node->conf.id ? 1 : 0;
    }
    if (node->d.drained && vms == 0)
        return answer(core, q, 0, "%s is drained", node->conf.name);
    if (node_awaits(core, index))
        return answer(core, q, -EBUSY, "%s is being started on %s: try again when it runs", node_awaits(core, index)->d.name,
                      node->conf.name);
    if (vms > 0 && !node_alive(core, index))
        return answer(core, q, -EHOSTDOWN, "%s does not beat: nothing can be moved off it alive", node->conf.name);
    if (!rec_room(core, MST_SCOPE_MOVE))
        return answer(core, q, -EBUSY, "too much is under way, try again");
    txn_begin(core);
    txn_node(core, index)->drained = true;
    if (vms > 0) {
        fault = txn_fault(core);
        fault->kind = MST_FAULT_OPERATOR;
        fault->node_id = node->conf.id;
        fault->instance = node->instance;
        text_set(fault->reporter, sizeof(fault->reporter), "operator");
        text_set(fault->text, sizeof(fault->text), "drain");
        id = open_recovery(core, MST_SCOPE_MOVE, MST_FAULT_OPERATOR, (int)index, fault->id, -1, "drain");
        fault->recovery_id = id;
        text_set(fault->verdict, sizeof(fault->verdict), "recovery %" PRIu64, id);
        text_set(core->reply_text, sizeof(core->reply_text), "%s is being drained: recovery %" PRIu64 " moves %u VMs",
                 node->conf.name, id, vms);
    } else {
        text_set(core->reply_text, sizeof(core->reply_text), "%s is drained: no VM is there%s", node->conf.name,
                 mirrors_on(core, index) > 0 ? ", its mirrors are replaced" : "");
    }
    txn_submit(core, "node=%s drained, %u VMs to move", node->conf.name, vms);
    return true;
}

static bool undrain(struct mst_core *core, struct queued_request *q, unsigned index)
{
    struct mst_node_row *row;

    /* What it is distrusted for is not durable either. */
    memset(core->nodes[index].joins_ms, 0, sizeof(core->nodes[index].joins_ms));
    memset(core->nodes[index].agent_restarts_ms, 0, sizeof(core->nodes[index].agent_restarts_ms));
    if (!core->nodes[index].d.drained && !core->nodes[index].d.failing)
        return answer(core, q, 0, "%s takes VMs", core->nodes[index].conf.name);
    txn_begin(core);
    row = txn_node(core, index);
    row->drained = false;
    row->failing = false;
    row->text[0] = 0;
    text_set(core->reply_text, sizeof(core->reply_text), "%s takes VMs again", row->name);
    txn_submit(core, "node=%s takes VMs again", row->name);
    return true;
}

bool death_is_refuted(const struct mst_core *core, unsigned index, char *text, size_t size)
{
    const struct node *node = &core->nodes[index];
    enum mst_life life = mst_detect_keeper(&node->detect, core->conf.keeper_silent_ms);

    if (!MST_MUTANT(4) &&
        ((node->link != 0 && life != MST_LIFE_FROZEN) || (life == MST_LIFE_MOVING && node->detect.failing_since_ms == 0 &&
                                                          core->now_ms - node->detect.last_ok_ms < OWN_PAUSE_MS))) {
        text_set(text, size, "%s is connected and its counter is not frozen: it is not dead; node drain moves its VMs away",
                 node->conf.name);
        return true;
    }
    if (!node->manage.degraded && !manage_answers(core, node))
        return false;
    text_set(
        text, size,
        "%s answers at its management address: it is not dead, its VMs run; switch its power off, and it is given up %u ms later",
        node->conf.name, core->conf.keeper_silent_ms);
    return true;
}

static bool confirm_dead(struct mst_core *core, struct queued_request *q, unsigned index)
{
    struct node *node = &core->nodes[index];
    struct proof *proof;
    char text[MST_TEXT_BYTES];

    if (death_is_refuted(core, index, text, sizeof(text)))
        return answer(core, q, -EBUSY, "%s", text);
    if (!node->joined && core->now_ms - core->started_ms < core->conf.keeper_return_ms)
        return answer(core, q, -EBUSY,
                      "the coordinator has just started and %s has not called yet: it may live; ask again in %u ms",
                      node->conf.name, core->conf.keeper_return_ms);
    proof = proof_queue(core, MST_PROOF_OPERATOR, index, node->instance);
    if (!proof)
        return answer(core, q, -ENOBUFS, "too many proofs wait, try again");
    proof->token = q->token;
    text_set(proof->text, sizeof(proof->text), "the operator confirmed that %s is dead%s%.100s", node->conf.name,
             q->r.text[0] ? ": " : "", q->r.text);
    return false;
}

/* Not durable: a coordinator that starts anew in the middle of it asks again. */
static bool go_on(struct mst_core *core, struct queued_request *q)
{
    char text[MST_TEXT_BYTES];

    if (!storm_holds(core, text, sizeof(text)))
        return answer(core, q, 0, "nothing is held back");
    storm_accept(core);
    return answer(core, q, 0, "what is missing and has VMs is fenced now, no more than fences-max at a time");
}

static bool serve(struct mst_core *core, struct queued_request *q)
{
    bool of_vm = q->r.type == MST_REQ_UNDEFINE || q->r.type == MST_REQ_START || q->r.type == MST_REQ_STOP;
    int vm = of_vm ? vm_find(core, q->r.name) : -1;
    bool of_node = !of_vm && q->r.type != MST_REQ_DEFINE && q->r.type != MST_REQ_GO_ON;
    int node = of_node ? node_find(core, q->r.name) : -1;

    if (of_vm && vm < 0)
        return answer(core, q, -ENOENT, "no VM is called %s", q->r.name);
    if (of_node && node < 0)
        return answer(core, q, -ENOENT, "no node of this cluster is called %s", q->r.name);
    switch (q->r.type) {
    case MST_REQ_DEFINE:
        return define(core, q);
    case MST_REQ_UNDEFINE:
        return undefine(core, q, vm);
    case MST_REQ_START:
        return start(core, q, vm);
    case MST_REQ_STOP:
        return stop(core, q, vm);
    case MST_REQ_DRAIN:
        return drain(core, q, (unsigned)node);
    case MST_REQ_UNDRAIN:
        return undrain(core, q, (unsigned)node);
    case MST_REQ_CONFIRM_DEAD:
        return confirm_dead(core, q, (unsigned)node);
    case MST_REQ_GO_ON:
        return go_on(core, q);
    }
    return answer(core, q, -EINVAL, "unknown request");
}

bool request_step(struct mst_core *core)
{
    while (core->requests_count > 0) {
        struct queued_request *q = &core->requests[core->requests_head];
        bool decided = serve(core, q);

        core->requests_head = (core->requests_head + 1) % REQUESTS_MAX;
        core->requests_count--;
        if (decided) {
            core->reply_token = q->token;
            return true;
        }
    }
    return false;
}
