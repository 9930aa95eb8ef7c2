#include "coordinator/core/internal.h"

#include "base/mutant.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

void report_queue(struct mst_core *core, const struct mst_report *report, uint64_t link, uint64_t token, int node_of_link)
{
    struct queued_report *entry;
    int index = node_find(core, report->node);

    if (core->reports_count == REPORTS_MAX) {
        core_log(core, MST_LOG_WARNING, "report kind=%s node=%s vm=%s dropped: %u wait already",
                 mst_fault_kind_name(report->kind), report->node, report->vm, REPORTS_MAX);
        if (token != 0)
            core->io.reply(core->io.impl, token, -ENOBUFS, "too many fault reports wait; report again");
        return;
    }
    entry = &core->reports[(core->reports_head + core->reports_count++) % REPORTS_MAX];
    entry->r = *report;
    entry->link = link;
    entry->token = token;
    entry->node_of_link = node_of_link;
    entry->read = index >= 0 ? core->nodes[index].read_started : 0;
}

bool report_waits(const struct mst_core *core, uint32_t kind, const char *node, const char *vm)
{
    for (unsigned i = 0; i < core->reports_count; i++) {
        const struct mst_report *r = &core->reports[(core->reports_head + i) % REPORTS_MAX].r;

        if (r->kind == kind && strcmp(r->node, node) == 0 && strcmp(r->vm, vm) == 0)
            return true;
    }
    return false;
}

void report_self(struct mst_core *core, uint32_t kind, unsigned node, int vm, const char *text)
{
    struct mst_report report = {.kind = kind, .instance = core->nodes[node].instance};

    text_set(report.node, sizeof(report.node), "%s", core->nodes[node].conf.name);
    if (vm >= 0) {
        text_set(report.vm, sizeof(report.vm), "%s", core->vms[vm].d.name);
        report.epoch = core->vms[vm].d.epoch;
    }
    text_set(report.reporter, sizeof(report.reporter), "coordinator");
    text_set(report.text, sizeof(report.text), "%s", text);
    if (!report_waits(core, kind, report.node, report.vm))
        report_queue(core, &report, 0, 0, -1);
}

void mst_core_report(struct mst_core *core, const struct mst_time *now, uint64_t link, uint64_t token,
                     const struct mst_report *report)
{
    int from = -1;

    core_time(core, now);
    for (unsigned i = 0; link != 0 && i < core->nodes_count; i++) {
        if (core->nodes[i].link == link)
            from = (int)i;
    }
    if (link != 0 && from < 0) {
        if (token != 0)
            core->io.reply(core->io.impl, token, -EPERM, "say Hello first");
        return;
    }
    if (core_outdated(core)) {
        if (token != 0)
            core->io.reply(core->io.impl, token, -ESTALE, core->outdated);
        return;
    }
    report_queue(core, report, link, token, from);
    core_run(core);
}

const char *scope_name(unsigned scope)
{
    static const char *const names[] = {"vm", "node", "move", "agent", "start", "stop"};

    return scope < sizeof(names) / sizeof(names[0]) ? names[scope] : "?";
}

/* A VM that was stopped begins anew; one that ought to be running goes on from its newest save. */
static enum mst_rec_state first_state(const struct mst_core *core, enum mst_scope scope, int only_vm)
{
    if (scope == MST_SCOPE_START)
        return only_vm >= 0 && core->vms[only_vm].d.phase != MST_VM_STOPPED ? MST_REC_READING2 : MST_REC_PLANNING;
    return scope == MST_SCOPE_STOP ? MST_REC_FENCING : MST_REC_REPORTED;
}

/* Moves on a recovery that is being staged: what needs no waiting needs no transaction of its own either. */
void recovery_go_on(struct mst_core *core, uint64_t id, enum mst_rec_state next, const char *text)
{
    struct mst_recovery_row *recovery = NULL;
    struct mst_row *row;
    uint32_t n = 0;

    for (uint32_t i = 0; i < core->txn.count; i++) {
        row = &core->txn.rows[i];
        if (row->kind == MST_ROW_RECOVERY && row->recovery.id == id)
            recovery = &row->recovery;
        n += row->kind == MST_ROW_STEP && row->step.recovery_id == id ? 1 : 0;
    }
    if (!recovery || !mst_state_may(rec_states, MST_REC_STATES, recovery->state, next))
        abort();
    recovery->state = (uint8_t)next;
    row = txn_add(core, MST_ROW_STEP);
    row->step.recovery_id = id;
    row->step.n = n;
    row->step.state = (uint8_t)next;
    row->step.wall_ms = core->now.wall_ms;
    text_set(row->step.text, sizeof(row->step.text), "%s", text);
}

static void stage_recovery_vm(struct mst_core *core, uint64_t id, enum mst_scope scope, int index)
{
    struct mst_row *row = txn_add(core, MST_ROW_RVM);
    struct mst_vm_row *vm;

    row->rvm.recovery_id = id;
    memcpy(row->rvm.vm, core->vms[index].d.name, MST_NAME_BYTES);
    row->rvm.from_node_id = core->vms[index].d.node_id;
    row->rvm.from_instance = core->vms[index].d.instance;
    row->rvm.epoch_from = core->vms[index].d.epoch;
    vm = txn_vm(core, index);
    if (scope == MST_SCOPE_START)
        vm->phase = MST_VM_STARTING;
    else if (scope == MST_SCOPE_STOP)
        vm->phase = MST_VM_STOPPING;
    else if (scope != MST_SCOPE_MOVE) /* there it runs on until it is saved */
        vm->phase = MST_VM_RECOVERING;
    vm->text[0] = 0;
}

static uint64_t stage_recovery(struct mst_core *core, enum mst_scope scope, uint32_t kind, int node, uint64_t instance,
                               uint64_t fault_id, int only_vm, const char *text)
{
    bool earlier = node >= 0 && instance != core->nodes[node].instance;
    struct mst_row *row;
    uint64_t id;

    id = ++txn_meta(core)->next_recovery;
    row = txn_add(core, MST_ROW_RECOVERY);
    row->recovery.id = id;
    row->recovery.fault_id = fault_id;
    row->recovery.kind = kind;
    row->recovery.scope = (uint8_t)scope;
    row->recovery.state = (uint8_t)first_state(core, scope, only_vm);
    row->recovery.started_wall_ms = core->now.wall_ms;
    if (node >= 0) {
        row->recovery.node_id = core->nodes[node].conf.id;
        row->recovery.instance = instance;
    }
    row = txn_add(core, MST_ROW_STEP);
    row->step.recovery_id = id;
    row->step.state = (uint8_t)first_state(core, scope, only_vm);
    row->step.wall_ms = core->now.wall_ms;
    text_set(row->step.text, sizeof(row->step.text), "%s", text);
    if (only_vm >= 0) {
        stage_recovery_vm(core, id, scope, only_vm);
        return id;
    }
    for (unsigned i = 0, count = 0; scope != MST_SCOPE_AGENT && i < core->vms_end && count < MST_VMS_PER_NODE; i++) {
        const struct vm *vm = &core->vms[i];

        if (!vm->used || vm->rec >= 0 || vm->d.fenced || node < 0 || vm->d.node_id != core->nodes[node].conf.id)
            continue;
        if (earlier && vm->d.instance == core->nodes[node].instance)
            continue;
        stage_recovery_vm(core, id, scope, (int)i);
        count++;
    }
    return id;
}

uint64_t open_recovery(struct mst_core *core, enum mst_scope scope, uint32_t kind, int node, uint64_t fault_id, int only_vm,
                       const char *text)
{
    return stage_recovery(core, scope, kind, node, node >= 0 ? core->nodes[node].instance : 0, fault_id, only_vm, text);
}

uint64_t open_recovery_of(struct mst_core *core, uint64_t instance, unsigned node, uint64_t fault_id, const char *text)
{
    return stage_recovery(core, MST_SCOPE_NODE, MST_FAULT_KEEPER_DEAD, (int)node, instance, fault_id, -1, text);
}

struct verdict {
    int err;     /* answer to the reporter */
    bool accept; /* store a fault record */
    bool recover;
    enum mst_scope scope;
    int vm; /* -1 */
    char text[MST_TEXT_BYTES];
};

/* Its slot was read since the report came, and says nothing of it any more: a decision may have waited for the store as long as the silence lasted. */
static bool answers_again(struct mst_core *core, const struct queued_report *q, unsigned index)
{
    struct node *node = &core->nodes[index];
    const struct held *held = held_find(node, q->r.vm, q->r.epoch);

    return q->r.kind == MST_FAULT_VM_SILENT && node->read_err == 0 && node->read_finished > q->read && held &&
           held->s.run_state == MST_RUN_RUNNING && held->s.fault_kind == MST_FAULT_NONE;
}

static void judge_vm(struct mst_core *core, const struct queued_report *q, unsigned node, struct verdict *ret)
{
    const struct mst_report *r = &q->r;
    const struct vm *vm;

    ret->vm = vm_find(core, r->vm);
    ret->err = -ESTALE;
    if (ret->vm < 0) {
        ret->err = -ENOENT;
        text_set(ret->text, sizeof(ret->text), "no VM is called %s", r->vm);
        return;
    }
    vm = &core->vms[ret->vm];
    if (vm->d.node_id != core->nodes[node].conf.id || (r->epoch != 0 && r->epoch != vm->d.epoch && !MST_MUTANT(26))) {
        text_set(ret->text, sizeof(ret->text), "stale: %s has its grant on %s with epoch %" PRIu64, r->vm,
                 node_name(core, vm->d.node_id), vm->d.epoch);
        return;
    }
    ret->err = 0;
    if (vm->rec >= 0 && !MST_MUTANT(25)) {
        text_set(ret->text, sizeof(ret->text), "belongs to recovery %" PRIu64 ", which is under way", core->recs[vm->rec].d.id);
        return;
    }
    if (answers_again(core, q, node)) {
        text_set(ret->text, sizeof(ret->text), "%s answers again", r->vm);
        return;
    }
    if (vm->d.fenced || !vm->d.wanted) {
        text_set(ret->text, sizeof(ret->text), "%s is not to run under epoch %" PRIu64 " any more", r->vm, vm->d.epoch);
        return;
    }
    ret->accept = ret->recover = true;
    ret->scope = MST_SCOPE_VM;
}

static void judge_node_report(struct mst_core *core, const struct queued_report *q, unsigned node, struct verdict *ret)
{
    const struct mst_report *r = &q->r;
    bool self = q->token == 0 && q->link == 0;
    int open = node_lost(core, node);

    if (open >= 0) {
        text_set(ret->text, sizeof(ret->text), "belongs to recovery %" PRIu64 ", which is under way", core->recs[open].d.id);
        return;
    }
    switch (r->kind) {
    case MST_FAULT_AGENT_SILENT:
        if (node_has_open(core, core->nodes[node].conf.id, 1u << MST_SCOPE_AGENT)) {
            text_set(ret->text, sizeof(ret->text), "its agent is being restarted already");
            return;
        }
        ret->accept = ret->recover = true;
        ret->scope = MST_SCOPE_AGENT;
        return;
    case MST_FAULT_KEEPER_SILENT:
    case MST_FAULT_KEEPER_DEAD:
    case MST_FAULT_NODE_UNREACHABLE:
        ret->accept = true;
        ret->recover = self && (r->kind == MST_FAULT_KEEPER_SILENT || !core->nodes[node].manage.degraded);
        ret->scope = MST_SCOPE_NODE;
        if (self && !ret->recover)
            text_set(ret->text, sizeof(ret->text), "degraded: its VMs run on, nothing is fenced or taken over");
        if (!self)
            text_set(ret->text, sizeof(ret->text), "evidence only: the coordinator's own readings decide (%s beats: %s)",
                     core->nodes[node].conf.name, node_alive(core, node) ? "yes" : "no");
        return;
    default: /* PROCESSOR, or a person or a monitor says the node as a whole is bad */
        if (core->nodes[node].d.failing) {
            text_set(ret->text, sizeof(ret->text), "%s is known to be failing", core->nodes[node].conf.name);
            return;
        }
        if (node_awaits(core, node)) {
            ret->err = -EBUSY;
            text_set(ret->text, sizeof(ret->text), "%s is being started there: report again when it runs",
                     node_awaits(core, node)->d.name);
            return;
        }
        ret->accept = true;
        /* Before its first reading a node that has just said Hello counts as alive: a report that outlived the coordinator it was sent to
         * comes right behind Hello. */
        ret->recover = node_alive(core, node) || (core->nodes[node].link != 0 && !core->nodes[node].detect.any);
        ret->scope = MST_SCOPE_MOVE;
        if (!ret->recover)
            text_set(ret->text, sizeof(ret->text), "%s does not beat: nothing can be moved off it alive",
                     core->nodes[node].conf.name);
        return;
    }
}

static void judge(struct mst_core *core, const struct queued_report *q, int node, struct verdict *ret)
{
    const struct mst_report *r = &q->r;
    bool vm_kind = r->kind == MST_FAULT_VM_EXITED || r->kind == MST_FAULT_VM_SILENT || r->kind == MST_FAULT_VM_PANICKED;

    memset(ret, 0, sizeof(*ret));
    ret->vm = -1;
    if (node < 0) {
        ret->err = -ENOENT;
        text_set(ret->text, sizeof(ret->text), "no node of this cluster is called %s", r->node);
    } else if (r->kind == MST_FAULT_NONE || r->kind > MST_FAULT_AREA_CORRUPT || (vm_kind && !r->vm[0])) {
        ret->err = -EINVAL;
        text_set(ret->text, sizeof(ret->text), "a report of kind %u %s", r->kind, vm_kind ? "needs a VM" : "is unknown");
    } else if (r->instance != 0 && r->instance != core->nodes[node].instance && !MST_MUTANT(24)) {
        ret->err = -ESTALE;
        text_set(ret->text, sizeof(ret->text), "speaks of an earlier keeper of %s (%016" PRIx64 ", now %016" PRIx64 ")", r->node,
                 r->instance, core->nodes[node].instance);
    } else if (q->node_of_link >= 0 && q->node_of_link != node) {
        text_set(ret->text, sizeof(ret->text), "evidence only: %s speaks of %s, and the coordinator's own readings decide",
                 core->nodes[q->node_of_link].conf.name, r->node);
    } else if (r->kind == MST_FAULT_AREA_CORRUPT) {
        ret->accept = true;
        ret->vm = r->vm[0] ? vm_find(core, r->vm) : -1;
        text_set(ret->text, sizeof(ret->text), "what does not check is not used");
    } else if (r->vm[0]) {
        judge_vm(core, q, (unsigned)node, ret);
    } else {
        judge_node_report(core, q, (unsigned)node, ret);
    }
}

/* Into the fault log of the node's own main storage too, when it can be reached. */
static void send_record(struct mst_core *core, const struct mst_fault_row *fault)
{
    struct mst_order order = {.type = MST_ORDER_RECORD_FAULT, .fault = fault, .vm = fault->vm, .epoch = fault->epoch};
    int node = node_find_id(core, fault->node_id);

    if (node < 0 || core->nodes[node].link == 0)
        return;
    order.node = (unsigned)node;
    (void)order_send(core, &order, fault->recovery_id, ORDER_DEADLINE_MS);
}

static void note_panic(const struct mst_core *core, struct vm *vm)
{
    if (vm->panic_epoch == vm->d.epoch) /* the same one, decided anew */
        return;
    vm->panic_epoch = vm->d.epoch;
    vm->panic_before_ms = vm->panic_ms;
    vm->panic_ms = core->now_ms;
}

/* The look before the fence is what was read last, when the node is well and reads it every second; otherwise reading comes next. */
static void first_steps(struct mst_core *core, uint64_t id, const struct verdict *verdict, unsigned node)
{
    const struct vm *vm = verdict->vm >= 0 ? &core->vms[verdict->vm] : NULL;
    const struct held *held = vm ? held_find(&core->nodes[node], vm->d.name, vm->d.epoch) : NULL;
    char text[MST_TEXT_BYTES] = "no save was seen when its slot was read last";

    if (verdict->scope == MST_SCOPE_AGENT)
        return;
    if (verdict->scope != MST_SCOPE_VM) {
        recovery_go_on(core, id, MST_REC_READING, "");
        return;
    }
    if (held && held->s.save_seq > 0 && !held->s.save_corrupt)
        text_set(text, sizeof(text), "save seq %" PRIu64 " was seen when its slot was read last", held->s.save_seq);
    recovery_go_on(core, id, MST_REC_READING, text);
    recovery_go_on(core, id, MST_REC_FENCING, "");
}

/* It is not kept: behind it may be a node's. Slots, beats and the keeper say it again. */
static bool has_room(struct mst_core *core, struct verdict *verdict)
{
    if (!verdict->accept || !verdict->recover || rec_room(core, verdict->scope))
        return true;
    verdict->accept = false;
    verdict->err = -ENOBUFS;
    text_set(verdict->text, sizeof(verdict->text),
             "too many recoveries are open (mainstayctl recovery list), most wait for room: report again");
    return false;
}

static void accept(struct mst_core *core, struct queued_report *q, unsigned node, const struct verdict *verdict)
{
    struct mst_fault_row *fault;

    txn_begin(core);
    fault = txn_fault(core);
    fault->kind = q->r.kind;
    fault->node_id = core->nodes[node].conf.id;
    fault->instance = core->nodes[node].instance;
    memcpy(fault->vm, q->r.vm, sizeof(fault->vm));
    fault->epoch = verdict->vm >= 0 ? core->vms[verdict->vm].d.epoch : q->r.epoch;
    memcpy(fault->reporter, q->r.reporter, sizeof(fault->reporter));
    memcpy(fault->text, q->r.text, sizeof(fault->text));
    text_set(fault->verdict, sizeof(fault->verdict), "%s", verdict->text);
    if (verdict->recover) {
        fault->recovery_id = open_recovery(core, verdict->scope, q->r.kind, (int)node, fault->id,
                                           verdict->scope == MST_SCOPE_VM ? verdict->vm : -1, q->r.text);
        text_set(fault->verdict, sizeof(fault->verdict), "recovery %" PRIu64, fault->recovery_id);
        first_steps(core, fault->recovery_id, verdict, node);
        if (verdict->scope == MST_SCOPE_MOVE) {
            struct mst_node_row *row = txn_node(core, node);

            row->failing = true;
            memcpy(row->text, q->r.text, sizeof(row->text));
        }
        if (q->r.kind == MST_FAULT_VM_PANICKED)
            note_panic(core, &core->vms[verdict->vm]);
    }
    core->pops_report = true;
    core->reply_token = q->token;
    memcpy(core->reply_text, fault->verdict, sizeof(core->reply_text));
    core->record_fault = fault->id;
    txn_submit(core, "fault=%" PRIu64 " kind=%s node=%s vm=%s epoch=%" PRIu64 " reporter=%s: %s", fault->id,
               mst_fault_kind_name(fault->kind), core->nodes[node].conf.name, fault->vm[0] ? fault->vm : "-", fault->epoch,
               fault->reporter, fault->verdict);
}

bool report_step(struct mst_core *core)
{
    struct verdict verdict;
    bool tell;

    if (core->record_fault != 0) {
        send_record(core, &core->faults[core->record_fault % FAULTS_KEPT]);
        core->record_fault = 0;
    }
    while (core->reports_count > 0) {
        struct queued_report *q = &core->reports[core->reports_head];
        int node = node_find(core, q->r.node);

        judge(core, q, node, &verdict);
        tell = has_room(core, &verdict) || core->now_ms >= core->room_told_ms + ROOM_TOLD_MS;
        if (verdict.accept) {
            accept(core, q, (unsigned)node, &verdict);
            return true;
        }
        if (tell)
            core_log(core, verdict.err == -ENOBUFS ? MST_LOG_ERROR : MST_LOG_NOTICE,
                     "report kind=%s node=%s vm=%s epoch=%" PRIu64 " reporter=%s: no recovery: %s",
                     mst_fault_kind_name(q->r.kind), q->r.node, q->r.vm[0] ? q->r.vm : "-", q->r.epoch, q->r.reporter,
                     verdict.text);
        if (tell && verdict.err == -ENOBUFS)
            core->room_told_ms = core->now_ms;
        if (q->token != 0)
            core->io.reply(core->io.impl, q->token, verdict.err, verdict.text);
        core->reports_head = (core->reports_head + 1) % REPORTS_MAX;
        core->reports_count--;
    }
    return false;
}
