#include "coordinator/core/internal.h"

#include "base/mutant.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool txn_free(const struct mst_core *core)
{
    return !core->committing && core->now_ms >= core->store_next_ms;
}

bool txn_moves(const struct mst_core *core, const struct rec *rec)
{
    for (uint32_t i = 0; core->committing && i < core->txn.count; i++) {
        if (core->txn.rows[i].kind == MST_ROW_RECOVERY && core->txn.rows[i].recovery.id == rec->d.id)
            return !MST_MUTANT(55);
    }
    return false;
}

bool txn_has_mirror(const struct mst_core *core, const char *vm, uint32_t n)
{
    for (uint32_t i = 0; core->committing && i < core->txn.count; i++) {
        const struct mst_row *row = &core->txn.rows[i];

        if (row->kind == MST_ROW_MIRROR && row->mirror.n == n && strcmp(row->mirror.vm, vm) == 0)
            return true;
    }
    return false;
}

void txn_begin(struct mst_core *core)
{
    core->txn.count = 0;
    core->staging = true;
    core->txn_us = core->now.us;
    core->pops_report = false;
    core->reply_token = 0;
    core->reply_when = REPLY_NOW;
    core->reply_vm[0] = 0;
    core->reply_text[0] = 0;
}

void txn_drop(struct mst_core *core)
{
    core->txn.count = 0;
    core->staging = false;
}

struct mst_row *txn_add(struct mst_core *core, enum mst_row_kind kind)
{
    struct mst_row *row;

    /* MST_TXN_ROWS is made for the largest decision there is; going on without a row would make half a decision durable. */
    if (!core->staging || core->txn.count >= MST_TXN_ROWS)
        abort();
    row = &core->txn.rows[core->txn.count++];
    memset(row, 0, sizeof(*row));
    row->kind = kind;
    return row;
}

struct mst_meta_row *txn_meta(struct mst_core *core)
{
    struct mst_row *row;

    for (uint32_t i = 0; i < core->txn.count; i++) {
        if (core->txn.rows[i].kind == MST_ROW_META)
            return &core->txn.rows[i].meta;
    }
    row = txn_add(core, MST_ROW_META);
    row->meta = core->meta;
    return &row->meta;
}

struct mst_node_row *txn_node(struct mst_core *core, unsigned index)
{
    struct mst_row *row;

    for (uint32_t i = 0; i < core->txn.count; i++) {
        row = &core->txn.rows[i];
        if (row->kind == MST_ROW_NODE && row->node.id == core->nodes[index].d.id)
            return &row->node;
    }
    row = txn_add(core, MST_ROW_NODE);
    row->node = core->nodes[index].d;
    return &row->node;
}

static struct mst_vm_row *find_vm(struct mst_core *core, const char *name)
{
    for (uint32_t i = 0; core->staging && i < core->txn.count; i++) {
        struct mst_row *row = &core->txn.rows[i];

        if (row->kind == MST_ROW_VM && strcmp(row->vm.name, name) == 0)
            return &row->vm;
    }
    return NULL;
}

struct mst_vm_row *txn_vm(struct mst_core *core, int index)
{
    struct mst_vm_row *found = find_vm(core, core->vms[index].d.name);
    struct mst_row *row;

    if (found)
        return found;
    row = txn_add(core, MST_ROW_VM);
    row->vm = core->vms[index].d;
    return &row->vm;
}

struct mst_mirror_row *txn_mirror(struct mst_core *core, int index, unsigned n)
{
    struct mst_row *row = txn_add(core, MST_ROW_MIRROR);

    memcpy(row->mirror.vm, core->vms[index].d.name, sizeof(row->mirror.vm));
    row->mirror.n = n;
    return &row->mirror;
}

const struct mst_vm_row *staged_vm(const struct mst_core *core, int index)
{
    const struct mst_vm_row *found = find_vm((struct mst_core *)core, core->vms[index].d.name);

    return found ? found : &core->vms[index].d;
}

struct mst_recovery_row *txn_rec(struct mst_core *core, const struct rec *rec)
{
    struct mst_row *row;

    for (uint32_t i = 0; i < core->txn.count; i++) {
        row = &core->txn.rows[i];
        if (row->kind == MST_ROW_RECOVERY && row->recovery.id == rec->d.id)
            return &row->recovery;
    }
    row = txn_add(core, MST_ROW_RECOVERY);
    row->recovery = rec->d;
    return &row->recovery;
}

static struct mst_rvm_row *find_rvm(struct mst_core *core, uint64_t id, const char *vm)
{
    for (uint32_t i = 0; core->staging && i < core->txn.count; i++) {
        struct mst_row *row = &core->txn.rows[i];

        if (row->kind == MST_ROW_RVM && row->rvm.recovery_id == id && strcmp(row->rvm.vm, vm) == 0)
            return &row->rvm;
    }
    return NULL;
}

struct mst_rvm_row *txn_rvm(struct mst_core *core, const struct rec *rec, unsigned i)
{
    struct mst_rvm_row *found = find_rvm(core, rec->d.id, rec->vms[i].d.vm);
    struct mst_row *row;

    if (found)
        return found;
    row = txn_add(core, MST_ROW_RVM);
    row->rvm = rec->vms[i].d;
    return &row->rvm;
}

const struct mst_rvm_row *staged_rvm(const struct mst_core *core, const struct rec *rec, unsigned i)
{
    const struct mst_rvm_row *found = find_rvm((struct mst_core *)core, rec->d.id, rec->vms[i].d.vm);

    return found ? found : &rec->vms[i].d;
}

struct mst_proof_row *txn_proof(struct mst_core *core, enum mst_proof_kind kind, unsigned node, uint64_t instance)
{
    struct mst_meta_row *meta = txn_meta(core);
    struct mst_row *row = txn_add(core, MST_ROW_PROOF);

    row->proof.id = ++meta->next_proof;
    row->proof.kind = (uint8_t)kind;
    row->proof.node_id = core->nodes[node].d.id;
    row->proof.instance = instance;
    memcpy(row->proof.host_boot_id, core->nodes[node].boot_id, sizeof(row->proof.host_boot_id));
    row->proof.wall_ms = core->now.wall_ms;
    return &row->proof;
}

struct mst_fault_row *txn_fault(struct mst_core *core)
{
    struct mst_meta_row *meta = txn_meta(core);
    struct mst_row *row = txn_add(core, MST_ROW_FAULT);

    row->fault.id = ++meta->next_fault;
    row->fault.wall_ms = core->now.wall_ms;
    return &row->fault;
}

static void stage_step(struct mst_core *core, const struct rec *rec, const struct mst_time *when, enum mst_rec_state state,
                       const char *text)
{
    struct mst_row *row;
    uint32_t n = rec->steps_total;

    for (uint32_t i = 0; i < core->txn.count; i++)
        n += core->txn.rows[i].kind == MST_ROW_STEP && core->txn.rows[i].step.recovery_id == rec->d.id ? 1 : 0;
    row = txn_add(core, MST_ROW_STEP);
    row->step.recovery_id = rec->d.id;
    row->step.n = n < MST_RECOVERY_STEPS ? n : MST_RECOVERY_STEPS - 1;
    row->step.state = (uint8_t)state;
    row->step.wall_ms = when->wall_ms;
    row->step.offset_us = rec_elapsed_us(rec, when);
    text_set(row->step.text, sizeof(row->step.text), "%s", text);
}

/* The only writer of a recovery's state. */
void txn_move(struct mst_core *core, struct rec *rec, enum mst_rec_state next, const char *fmt, ...)
{
    char text[MST_TEXT_BYTES];
    struct mst_recovery_row *row = txn_rec(core, rec);
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    if (!mst_state_may(rec_states, MST_REC_STATES, row->state, next))
        abort();
    row->state = (uint8_t)next;
    stage_step(core, rec, &core->now, next, text);
}

void txn_move_at(struct mst_core *core, struct rec *rec, const struct mst_time *when, enum mst_rec_state next)
{
    struct mst_recovery_row *row = txn_rec(core, rec);

    if (!mst_state_may(rec_states, MST_REC_STATES, row->state, next))
        abort();
    row->state = (uint8_t)next;
    stage_step(core, rec, when, next, "");
}

void txn_submit(struct mst_core *core, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    vsnprintf(core->txn_log, sizeof(core->txn_log), fmt, args);
    va_end(args);
    txn_meta(core)->decision = core->meta.decision + 1;
    core->staging = false;
    core->committing = true;
    core->commit_ms = core->now_ms;
    core->io.commit(core->io.impl, &core->txn);
    for (uint32_t i = 0; MST_MUTANT(9) && i < core->txn.count; i++)
        (void)row_apply(core, &core->txn.rows[i], false, NULL);
}

static int apply_vm(struct mst_core *core, const struct mst_vm_row *row, bool live)
{
    int index = vm_slot(core, row->name);
    struct vm *vm;
    bool was_running, runs;
    uint64_t old_epoch;

    if (index < 0)
        return -ENOSPC;
    vm = &core->vms[index];
    core->vms_end = MAX_OF(core->vms_end, (unsigned)index + 1);
    was_running = vm->used && vm->d.phase == MST_VM_RUNNING;
    old_epoch = vm->d.epoch;
    if (!vm->used) {
        vm->rec = -1;
        vm->used = true;
    }
    vm->d = *row;
    if (row->phase == MST_VM_STOPPED) /* its next life begins its own exposure; no row is written for this alone */
        vm->d.exposed_wall_ms = 0;
    runs = vm->d.phase == MST_VM_RUNNING;
    if (!runs)
        vm->running_ms = 0;
    else if (!was_running || old_epoch != row->epoch)
        vm->running_ms = MAX_OF(core->now_ms, 1);
    if (live && (was_running != runs || (runs && old_epoch != row->epoch)))
        core->io.vm_moved(core->io.impl, row->name, runs ? node_find_id(core, row->node_id) : -1, row->epoch);
    core->view_generation++;
    return 0;
}

static int apply_definition(struct mst_core *core, const struct mst_definition *def)
{
    int index = vm_slot(core, def->name);

    if (index < 0)
        return -ENOSPC;
    core->vms[index].def = *def;
    core->vms_end = MAX_OF(core->vms_end, (unsigned)index + 1);
    if (!core->vms[index].used) { /* its VM row follows */
        core->vms[index].used = true;
        core->vms[index].rec = -1;
        text_set(core->vms[index].d.name, sizeof(core->vms[index].d.name), "%s", def->name);
        core->vms[index].d.fenced = true;
    }
    return 0;
}

static void forget_vm(struct mst_core *core, const char *name)
{
    int index = vm_find(core, name);

    if (index < 0)
        return;
    memset(&core->vms[index], 0, sizeof(core->vms[index]));
    core->vms[index].rec = -1;
    for (unsigned i = 0; i < core->recs_end; i++) {
        for (unsigned k = 0; core->recs[i].used && k < core->recs[i].vms_count; k++) {
            if (core->recs[i].vms[k].vm == index)
                core->recs[i].vms[k].vm = -1;
        }
    }
    core->view_generation++;
}

/* Entry for a recovery that is not known yet: a free one, or the oldest that is closed (starts and stops first). */
static struct rec *rec_entry(struct mst_core *core, bool hidden_ok, uint64_t id)
{
    struct rec *oldest = NULL;

    for (unsigned i = 0; i < RECOVERIES_KEPT; i++) {
        struct rec *rec = &core->recs[i];
        bool hidden;

        if (!rec->used)
            return rec;
        if (rec_open(rec))
            continue;
        hidden = rec->d.scope >= MST_SCOPE_START;
        if (!oldest || (hidden && oldest->d.scope < MST_SCOPE_START) ||
            (hidden == (oldest->d.scope >= MST_SCOPE_START) && rec->d.id < oldest->d.id))
            oldest = rec;
    }
    if (oldest && !hidden_ok && oldest->d.id > id)
        return NULL;
    return oldest;
}

/* Which open recovery has each VM follows from the rows alone. */
static void relink(struct mst_core *core, struct rec *rec)
{
    int index = (int)(rec - core->recs);

    for (unsigned i = 0; i < rec->vms_count; i++) {
        struct rvm *rvm = &rec->vms[i];
        bool has = rec_open(rec) && (rvm->d.outcome == MST_OUT_PENDING || rvm->d.outcome == MST_OUT_HELD);

        if (rvm->vm < 0)
            continue;
        if (has)
            core->vms[rvm->vm].rec = index;
        else if (core->vms[rvm->vm].rec == index)
            core->vms[rvm->vm].rec = -1;
    }
}

static void apply_recovery(struct mst_core *core, const struct mst_recovery_row *row, bool live)
{
    struct rec *rec = rec_by_id(core, row->id);
    bool moved;

    if (!rec) {
        rec = rec_entry(core, row->state != MST_REC_DONE, row->id);
        if (!rec)
            return; /* loading, and it is older than all that are kept */
        memset(rec, 0, sizeof(*rec));
        core->recs_end = MAX_OF(core->recs_end, (unsigned)(rec - core->recs) + 1);
        rec->used = true;
        rec->d.id = row->id;
        if (live)
            rec->started_us = core->txn_us;
        moved = true;
    } else {
        moved = rec->d.state != row->state;
    }
    rec->d = *row;
    if (moved)
        rec_entered(core, rec);
    relink(core, rec);
}

static void apply_step(struct mst_core *core, const struct mst_step_row *row, bool live)
{
    struct rec *rec = rec_by_id(core, row->recovery_id);
    char point[48];

    if (!rec || row->n >= MST_RECOVERY_STEPS)
        return;
    rec->steps[row->n] = *row;
    if (rec->steps_count < row->n + 1)
        rec->steps_count = row->n + 1;
    rec->steps_total = live ? rec->steps_total + 1 : rec->steps_count;
    if (!live)
        return;
    core_log(core, MST_LOG_NOTICE, "recovery=%" PRIu64 " scope=%s node=%s kind=%s state=%s offset_us=%" PRIu64 "%s%s", rec->d.id,
             scope_name(rec->d.scope), node_name(core, rec->d.node_id), mst_fault_kind_name(rec->d.kind),
             mst_rec_state_name(row->state), row->offset_us, row->text[0] ? " " : "", row->text);
    snprintf(point, sizeof(point), "recovery.%s", mst_rec_state_name(row->state));
    MST_POINT(point);
}

static void apply_rvm(struct mst_core *core, const struct mst_rvm_row *row, bool live)
{
    struct rec *rec = rec_by_id(core, row->recovery_id);
    struct rvm *rvm = NULL;
    uint8_t before;

    if (!rec)
        return;
    for (unsigned i = 0; i < rec->vms_count; i++) {
        if (strcmp(rec->vms[i].d.vm, row->vm) == 0)
            rvm = &rec->vms[i];
    }
    if (!rvm) {
        if (rec->vms_count >= MST_VMS_PER_NODE)
            return;
        rvm = &rec->vms[rec->vms_count++];
        memset(rvm, 0, sizeof(*rvm));
    }
    before = rvm->d.outcome;
    rvm->d = *row;
    rvm->vm = vm_find(core, row->vm);
    relink(core, rec);
    if (live && row->outcome != MST_OUT_PENDING && before != row->outcome)
        core_log(core, MST_LOG_NOTICE, "recovery=%" PRIu64 " vm=%s outcome=%s from=%s to=%s epoch=%" PRIu64 " %s", rec->d.id,
                 row->vm, mst_outcome_name(row->outcome), row->from_node_id ? node_name(core, row->from_node_id) : "-",
                 row->to_node_id ? node_name(core, row->to_node_id) : "-", row->epoch_to, row->text);
}

static void apply_node(struct mst_core *core, const struct mst_node_row *row)
{
    int index = node_find_id(core, row->id);

    if (index < 0) /* left out of the configuration: its row stays in the store */
        return;
    if (core->nodes[index].d.drained != row->drained || core->nodes[index].d.failing != row->failing)
        core->view_generation++;
    core->nodes[index].d = *row;
    text_set(core->nodes[index].d.name, sizeof(core->nodes[index].d.name), "%s", core->nodes[index].conf.name);
}

int row_apply(struct mst_core *core, const struct mst_row *row, bool live, struct mst_why *why)
{
    int r = 0;

    switch (row->kind) {
    case MST_ROW_META:
        core->meta = row->meta;
        break;
    case MST_ROW_NODE:
        apply_node(core, &row->node);
        break;
    case MST_ROW_DEFINITION:
        r = apply_definition(core, row->definition);
        break;
    case MST_ROW_VM:
        r = apply_vm(core, &row->vm, live);
        break;
    case MST_ROW_VM_DELETE:
        forget_vm(core, row->vm_delete);
        break;
    case MST_ROW_FAULT:
        if (row->fault.id + FAULTS_KEPT > core->faults_newest)
            core->faults[row->fault.id % FAULTS_KEPT] = row->fault;
        core->faults_newest = MAX_OF(core->faults_newest, row->fault.id);
        break;
    case MST_ROW_RECOVERY:
        apply_recovery(core, &row->recovery, live);
        break;
    case MST_ROW_STEP:
        apply_step(core, &row->step, live);
        break;
    case MST_ROW_RVM:
        apply_rvm(core, &row->rvm, live);
        break;
    case MST_ROW_MIRROR:
        mirror_applied(core, &row->mirror);
        break;
    case MST_ROW_PROOF:
        if (live)
            core_log(core, MST_LOG_NOTICE, "proof=%" PRIu64 " kind=%s node=%s instance=%016" PRIx64 " %s", row->proof.id,
                     mst_proof_name(row->proof.kind), node_name(core, row->proof.node_id), row->proof.instance, row->proof.text);
        break;
    default:
        r = -EINVAL;
    }
    if (r == -ENOSPC)
        return mst_why_set(why, r, "more than %u VMs: this version takes no more", MST_VMS_MAX);
    return r < 0 ? mst_why_set(why, r, "a row of kind %d is unknown", (int)row->kind) : 0;
}

void txn_apply(struct mst_core *core)
{
    /* Definitions and VMs are found by the rows that follow them in the order they were staged; recoveries come before their VMs. */
    for (uint32_t i = 0; i < core->txn.count; i++)
        trace_row(core, &core->txn.rows[i]);
    for (uint32_t i = 0; i < core->txn.count; i++)
        (void)row_apply(core, &core->txn.rows[i], true, NULL); /* room was checked when it was staged */
    core->txn.count = 0;
}
