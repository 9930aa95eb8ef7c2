#include "coordinator/core/internal.h"

#include "base/mutant.h"
#include "base/text.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Decisions in one event, at most: each is a transaction or an order, so a real event makes a handful. */
#define ROUNDS_MAX 64

int mst_core_new(const struct mst_core_conf *conf, const struct mst_core_io *io, struct mst_core **ret_core)
{
    struct mst_core *core;

    if (conf->nodes_count > MST_NODES_MAX || conf->node_starts_max < 2 || conf->node_starts_max > MST_JOINS_KEPT)
        return -EINVAL;
    for (unsigned i = 0; i < conf->nodes_count; i++) {
        for (unsigned k = 0; k < i; k++) {
            if (conf->nodes[i].id == conf->nodes[k].id || strcmp(conf->nodes[i].name, conf->nodes[k].name) == 0)
                return -EINVAL;
        }
        if (conf->nodes[i].id == 0)
            return -EINVAL;
    }
    core = calloc(1, sizeof(*core));
    if (!core)
        return -ENOMEM;
    core->conf = *conf;
    core->io = *io;
    core->nodes_count = conf->nodes_count;
    for (unsigned i = 0; i < conf->nodes_count; i++) {
        core->nodes[i].conf = conf->nodes[i];
        core->nodes[i].d.id = conf->nodes[i].id;
        memcpy(core->nodes[i].d.name, conf->nodes[i].name, MST_NAME_BYTES);
    }
    *ret_core = core;
    return 0;
}

void mst_core_free(struct mst_core *core)
{
    free(core);
}

static bool definition_sane(const struct mst_definition *def)
{
    return mst_name_check(def->name) == 0 && def->on_node_fault < MST_ON_FAULTS && def->on_vm_fault < MST_ON_FAULTS &&
           def->protect < MST_PROTECTS && def->mirror_apart < MST_MIRROR_APARTS && def->allowed_count <= MST_NODES_MAX &&
           def->packed_bytes <= sizeof(def->packed);
}

/* A store may be damaged below its own checksums. Names and known values, as messages take no others: one bad row would leave the operator
 * without any view, and nodes without the orders that name it. */
static bool row_sane(const struct mst_row *row)
{
    switch (row->kind) {
    case MST_ROW_DEFINITION:
        return definition_sane(row->definition);
    case MST_ROW_VM:
        return mst_name_check(row->vm.name) == 0 && row->vm.phase < MST_VM_PHASES && row->vm.proof_kind < MST_PROOF_KINDS;
    case MST_ROW_FAULT:
        return row->fault.kind < MST_FAULT_KINDS && (!row->fault.vm[0] || mst_name_check(row->fault.vm) == 0);
    case MST_ROW_RECOVERY:
        return row->recovery.kind < MST_FAULT_KINDS && row->recovery.scope < MST_SCOPES && row->recovery.state < MST_REC_STATES;
    case MST_ROW_RVM:
        return mst_name_check(row->rvm.vm) == 0 && row->rvm.how < MST_HOWS && row->rvm.outcome < MST_OUTCOMES &&
               row->rvm.hold < MST_HOLDS;
    case MST_ROW_MIRROR:
        return mst_name_check(row->mirror.vm) == 0 && row->mirror.n < MST_MIRRORS_MAX;
    default:
        return true;
    }
}

int mst_core_load(struct mst_core *core, const struct mst_row *row, struct mst_why *why)
{
    static const char *const names[] = {[MST_ROW_DEFINITION] = "definitions", [MST_ROW_VM] = "VMs",
                                        [MST_ROW_FAULT] = "faults",           [MST_ROW_RECOVERY] = "recoveries",
                                        [MST_ROW_RVM] = "VMs of recoveries",  [MST_ROW_MIRROR] = "mirrors"};

    if (!row_sane(row))
        return mst_why_set(why, -EINVAL, "a row among the %s says what cannot be: the store is damaged", names[row->kind]);
    return row_apply(core, row, false, why);
}

/* Whatever comes first after a pause of our own finds out about it, tick or event: no decision is made on what was seen before it. */
static void pause_look(struct mst_core *core)
{
    uint64_t gap = core->now_ms - core->last_tick_ms;

    if (!core->started || gap <= OWN_PAUSE_MS)
        return;
    core->last_tick_ms = core->now_ms;
    core_log(core, MST_LOG_WARNING, "own pause of %" PRIu64 " ms: what was seen before it proves nothing, windows start anew",
             gap);
    core_event(core, &(struct mst_event){.kind = MST_EV_PAUSE_NOTICED, .duration_us = gap * 1000});
    for (unsigned i = 0; i < core->nodes_count; i++) {
        struct node *node = &core->nodes[i];

        mst_detect_reset(&node->detect);
        node->manage.missed_ms = 0; /* an absence begins anew: it is asked before it is judged */
        node->manage.resolved = false;
        if (node->link == 0 && node->link_closed_ms != 0)
            node->link_closed_ms = core->now_ms;
        node->well_ms += node->well_ms != 0 ? gap : 0; /* who goes in it goes with those who are missed behind it */
    }
    core->windows_ms = core->now_ms;
    if (core->started_ms + gap > core->started_ms)
        core->started_ms += gap;
    for (unsigned i = 0; i < core->recs_end; i++) { /* what came meanwhile waits to be looked at: no wait is over because of it */
        core->recs[i].entered_ms = MIN_OF(core->recs[i].entered_ms + gap, core->now_ms);
        core->recs[i].fence_retry_ms += core->recs[i].fence_retry_ms != 0 ? gap : 0;
    }
    orders_delay(core, gap);
}

void core_time(struct mst_core *core, const struct mst_time *now)
{
    core->now = *now;
    core->now_ms = now->us / 1000;
    pause_look(core);
}

static void term_begin(struct mst_core *core)
{
    struct mst_meta_row *meta;

    txn_begin(core);
    meta = txn_meta(core);
    meta->term++;
    meta->terms[meta->term % MST_TERMS_KEPT] =
        (struct mst_term_mark){.term = meta->term, .coordinator = core->conf.coordinator_instance, .first = meta->decision + 1};
    txn_submit(core, "term=%" PRIu64 " begins", core->meta.term + 1);
}

/* A fence agent of the coordinator before us may have outlived it: the power of a node that calls us may still go, as after one that was called off. */
static void fence_left(struct mst_core *core, const struct rec *rec)
{
    int index = node_find_id(core, rec->d.node_id);

    if (index >= 0 && rec->d.state == MST_REC_FENCING && rec_gives_up(core, rec, (unsigned)index) &&
        core->nodes[index].conf.has_fence)
        core->nodes[index].fence_off_ms = MAX_OF(core->now_ms, 1);
}

void mst_core_start(struct mst_core *core, const struct mst_time *now)
{
    core_time(core, now);
    core->started = true;
    core->started_ms = core->now_ms;
    core->last_tick_ms = core->now_ms;
    for (unsigned i = 0; i < core->nodes_count; i++)
        core->nodes[i].instance = core->nodes[i].d.instance;
    for (unsigned i = 0; i < core->recs_end; i++) {
        if (MST_MUTANT(17) && core->recs[i].used && core->recs[i].d.state == MST_REC_COMMITTING)
            core->recs[i].d.state = MST_REC_PLANNING;
        if (!core->recs[i].used)
            continue;
        rec_entered(core, &core->recs[i]);
        fence_left(core, &core->recs[i]);
    }
    for (unsigned i = 0; i < core->vms_end; i++) {
        if (core->vms[i].used && core->vms[i].d.phase == MST_VM_RUNNING)
            core->vms[i].running_ms = MAX_OF(core->now_ms, 1);
    }
    storm_begin(core);
    trace_begin(core);
    term_begin(core);
}

bool mst_core_ready(const struct mst_core *core)
{
    return core->ready;
}

/* One decision that needs the store. Order is urgency: who waits for safety first, wishes last. */
static bool decide(struct mst_core *core)
{
    if (!txn_free(core))
        return false;
    if (!core->ready) {
        term_begin(core);
        return true;
    }
    if (proofs_step(core))
        return true;
    for (unsigned i = 0; i < core->nodes_count; i++) {
        if (join_step(core, i))
            return true;
    }
    return request_step(core) || report_step(core) || mirrors_step(core) || old_saves_step(core);
}

bool core_outdated(const struct mst_core *core)
{
    return core->outdated[0] != '\0';
}

void core_run(struct mst_core *core)
{
    bool decided = true;

    if (!core->started || (core_outdated(core) && !MST_MUTANT(22)))
        return;
    for (int round = 0; decided && round < ROUNDS_MAX; round++) {
        decided = decide(core);
        if (!core->ready)
            return;
        for (unsigned i = 0; i < core->recs_end; i++) {
            if (core->recs[i].used && rec_open(&core->recs[i]))
                decided |= rec_step(core, &core->recs[i]);
        }
        if (txn_free(core))
            decided |= vm_wish_step(core);
        for (unsigned i = 0; i < core->nodes_count; i++)
            node_effects(core, i);
        for (unsigned i = 0; i < core->vms_end; i++)
            mirrors_effects(core, (int)i);
        waiters_step(core);
        if (!txn_free(core))
            return;
    }
}

/* A disk that hangs refuses nothing: without a word, all would look well while nothing is decided. */
static void store_slow(struct mst_core *core)
{
    uint64_t ms = core->now_ms - core->commit_ms;

    if (!core->committing || ms < STORE_SLOW_MS)
        return;
    text_set(core->trouble, sizeof(core->trouble),
             "the store has not answered for %" PRIu64 " s: nothing is decided until it does", ms / 1000);
    if (!core->slow_told)
        core_log(core, MST_LOG_ERROR, "%s; under way: %s", core->trouble, core->txn_log[0] ? core->txn_log : "a step");
    core->slow_told = true;
}

void mst_core_tick(struct mst_core *core, const struct mst_time *now)
{
    core_time(core, now);
    core->last_tick_ms = core->now_ms;
    store_slow(core);
    orders_expire(core);
    if (core->ready && !core_outdated(core))
        judge_nodes(core);
    core_run(core);
}

static void commit_failed(struct mst_core *core, int err, const char *text)
{
    uint64_t wait = STORE_RETRY_MIN_MS << (core->store_failures < 6 ? core->store_failures : 6);

    core->store_failures++;
    core->store_next_ms = core->now_ms + (wait < STORE_RETRY_MAX_MS ? wait : STORE_RETRY_MAX_MS);
    text_set(core->trouble, sizeof(core->trouble), "the store refuses (%s: %s): nothing is decided until it takes writes again",
             mst_errname(err), text);
    if (strncmp(core->last_failed_log, text, sizeof(core->last_failed_log) - 1) != 0 || core->store_failures % 16 == 1)
        core_log(core, MST_LOG_ERROR, "store error=%s %s; not decided: %s", mst_errname(err), text, core->txn_log);
    text_set(core->last_failed_log, sizeof(core->last_failed_log), "%s", text);
    core->txn.count = 0;
    core->record_fault = 0;
    if (core->reply_token != 0)
        core->io.reply(core->io.impl, core->reply_token, err, core->trouble);
    core->reply_token = 0;
    if (core->pops_report)
        core->reports[core->reports_head].token = 0; /* it waits and is decided on later; whoever told us has his answer */
}

void mst_core_committed(struct mst_core *core, const struct mst_time *now, int err, const char *text)
{
    core_time(core, now);
    MST_POINT("commit.answered");
    core->committing = false;
    if (core->slow_told)
        core_log(core, MST_LOG_NOTICE, "store has answered after %" PRIu64 " ms", core->now_ms - core->commit_ms);
    core->slow_told = false;
    proof_committed(core, err);
    if (err != 0 && !MST_MUTANT(8)) {
        commit_failed(core, err, text);
        core_run(core);
        return;
    }
    if (core->store_failures > 0)
        core_log(core, MST_LOG_NOTICE, "store takes writes again after %u refusals", core->store_failures);
    core->store_failures = 0;
    core->store_next_ms = 0;
    core->trouble[0] = 0;
    core->last_failed_log[0] = 0;
    if (core->txn_log[0])
        core_log(core, MST_LOG_NOTICE, "decided %s", core->txn_log);
    if (core->pops_report) {
        core->reports_head = (core->reports_head + 1) % REPORTS_MAX;
        core->reports_count--;
    }
    txn_apply(core);
    core->ready = true;
    if (core->reply_token != 0) {
        if (core->reply_when == REPLY_NOW)
            core->io.reply(core->io.impl, core->reply_token, 0, core->reply_text);
        else
            waiter_add(core, core->reply_token, core->reply_when == REPLY_START, core->reply_vm);
    }
    core->reply_token = 0;
    core_run(core);
}

void mst_core_answer(struct mst_core *core, const struct mst_time *now, uint64_t token, const struct mst_answer *answer)
{
    core_time(core, now);
    for (unsigned i = 0; token != 0 && i < core->orders_end; i++) {
        struct pending order = core->orders[i];

        if (order.token != token)
            continue;
        core->orders[i].token = 0;
        order_answered(core, &order, answer);
        break;
    }
    core_run(core);
}
