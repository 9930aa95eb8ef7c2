#include "coordinator/core/internal.h"

#include "base/mutant.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* The ladder of proofs. Silence is never one.
 *
 *     keeper    control link up, counter not frozen: OrderFence -> FenceResult of the instance that was asked
 *     return    a new instance of the keeper, which saw the cgroups of all earlier VMs empty (join.c)
 *     power     fence agent: off, then status says off; for as long as it takes
 *     watchdog  only where the operator configured one: its strict lease has run out, and the watchdog behind it (lease.c)
 *     operator  node confirm-dead
 *
 * Evidence becomes a proof when its transaction is durable: the proof row and the mark on each grant that it covers. */

/* --- evidence --- */

struct proof *proof_queue(struct mst_core *core, enum mst_proof_kind kind, unsigned node, uint64_t instance)
{
    for (unsigned i = 0; i < PROOFS_MAX; i++) {
        struct proof *proof = &core->proofs[i];

        if (proof->used)
            continue;
        memset(proof, 0, sizeof(*proof));
        proof->used = true;
        proof->kind = kind;
        proof->node = node;
        proof->instance = instance;
        power_cancel(core, node); /* once this is durable, nothing may be left that says why its power is cut */
        return proof;
    }
    return NULL; /* the order or the fence agent is asked again */
}

bool proof_waits(const struct mst_core *core, unsigned node)
{
    for (unsigned i = 0; i < PROOFS_MAX; i++) {
        if (core->proofs[i].used && core->proofs[i].node == node && core->proofs[i].kind >= MST_PROOF_POWER)
            return true;
    }
    return false;
}

static bool any_proof_waits(const struct mst_core *core, unsigned node)
{
    for (unsigned i = 0; i < PROOFS_MAX; i++) {
        if (core->proofs[i].used && core->proofs[i].node == node)
            return true;
    }
    return false;
}

static void mark_fenced(struct mst_core *core, int index, const struct mst_proof_row *proof)
{
    struct mst_vm_row *row = txn_vm(core, index);

    row->fenced = true;
    row->proof_id = proof->id;
    row->proof_kind = proof->kind;
}

unsigned stage_node_proof(struct mst_core *core, enum mst_proof_kind kind, unsigned node, uint64_t instance, const char *text)
{
    struct mst_proof_row *proof = txn_proof(core, kind, node, instance);
    unsigned count = 0;

    text_set(proof->text, sizeof(proof->text), "%s", text);
    for (unsigned i = 0; i < core->vms_end; i++) {
        const struct vm *vm = &core->vms[i];

        if (!vm->used || vm->d.fenced || vm->d.node_id != core->nodes[node].conf.id)
            continue;
        /* What runs under the keeper that came back is not proved dead by its coming back. */
        if (kind == MST_PROOF_RETURN && vm->d.instance == core->nodes[node].instance)
            continue;
        mark_fenced(core, (int)i, proof);
        count++;
    }
    return count;
}

static unsigned stage_keeper_proof(struct mst_core *core, const struct proof *evidence)
{
    struct mst_proof_row *proof = NULL;
    size_t used = 0;
    unsigned count = 0;

    for (unsigned i = 0; i < evidence->vms_count; i++) {
        int index = vm_find(core, evidence->vms[i].vm);
        const struct vm *vm = index >= 0 ? &core->vms[index] : NULL;

        if (!vm || vm->d.fenced || vm->d.node_id != core->nodes[evidence->node].conf.id || vm->d.epoch != evidence->vms[i].epoch)
            continue;
        if (!proof)
            proof = txn_proof(core, MST_PROOF_KEEPER, evidence->node, evidence->instance);
        mark_fenced(core, index, proof);
        if (used < sizeof(proof->text))
            used += (size_t)snprintf(proof->text + used, sizeof(proof->text) - used, "%s%s epoch %" PRIu64,
                                     used ? ", " : "stopped: ", vm->d.name, vm->d.epoch);
        count++;
    }
    return count;
}

void power_cancel(struct mst_core *core, unsigned index)
{
    struct node *node = &core->nodes[index];

    if (!node->fencing && !node->looking)
        return;
    if (node->fencing) { /* a look is no fence, and nobody was told of one */
        trace_node(core, MST_EV_FENCE_CANCELLED, index, node->fence_token, 0, "");
        node->fence_off_ms = MAX_OF(core->now_ms, 1);
    }
    node->fencing = node->looking = false;
    core->io.fence_cancel(core->io.impl, index, node->fence_token);
}

static void node_is_dead(struct mst_core *core, unsigned index)
{
    struct node *node = &core->nodes[index];

    node->held_count = 0; /* gone with the power */
    core->view_generation++;
    memset(&node->info, 0, sizeof(node->info));
    node->fence_tries = 0;
    node->fence_next_ms = 0;
    node->fence_text[0] = 0;
    power_cancel(core, index);
    if (node->link != 0) {
        uint64_t link = node->link;

        node->link = 0;
        node->link_closed_ms = core->now_ms;
        node->link_err = -ENODEV;
        text_set(node->link_text, sizeof(node->link_text), "proved dead");
        core->io.close_link(core->io.impl, link);
        orders_fail(core, index, "the node is dead");
        core->io.peers(core->io.impl);
    }
}

static bool stage_dead(struct mst_core *core, struct proof *proof)
{
    struct node *node = &core->nodes[proof->node];
    char text[MST_TEXT_BYTES];

    if (node->instance != proof->instance) {
        core_log(core, MST_LOG_WARNING,
                 "node=%s proof=%s speaks of instance %016" PRIx64 ", the newest is %016" PRIx64 ": of no use", node->conf.name,
                 mst_proof_name(proof->kind), proof->instance, node->instance);
        if (proof->token != 0)
            core->io.reply(core->io.impl, proof->token, -ESTALE, "the node has come back meanwhile");
        return false;
    }
    if (proof->kind == MST_PROOF_OPERATOR && death_is_refuted(core, proof->node, text, sizeof(text))) {
        core_log(core, MST_LOG_WARNING, "node=%s proof=%s waited for the store meanwhile: %s", node->conf.name,
                 mst_proof_name(proof->kind), text);
        if (proof->token != 0)
            core->io.reply(core->io.impl, proof->token, -EBUSY, text);
        return false;
    }
    txn_begin(core);
    (void)stage_node_proof(core, proof->kind, proof->node, proof->instance, proof->text);
    txn_node(core, proof->node)->fenced_instance = proof->instance;
    core->reply_token = proof->token;
    text_set(core->reply_text, sizeof(core->reply_text), "%s is recorded as dead", node->conf.name);
    return true;
}

/* A node's recovery that has nothing of its own while other recoveries have all that is granted there, perhaps not ready to fence it yet (a drain
 * that still saves). Closed, it would be opened again at once, for as long as the node is lost. */
static bool lost_for_others(const struct mst_core *core, const struct rec *rec)
{
    bool any = false;

    for (unsigned i = 0; i < rec->vms_count; i++) {
        if (rec->vms[i].d.outcome == MST_OUT_PENDING)
            return false;
    }
    for (unsigned i = 0; i < core->vms_end; i++) {
        const struct vm *vm = &core->vms[i];

        if (!vm->used || vm->d.node_id != rec->d.node_id || staged_vm(core, (int)i)->fenced)
            continue;
        if (vm->rec < 0) /* the next recovery of the node has it */
            return false;
        any = true;
    }
    return any;
}

/* A node's recovery also proves it dead for VMs that other recoveries have: it stays until none of them waits. */
static bool others_wait(const struct mst_core *core, const struct rec *rec)
{
    int own = node_find_id(core, rec->d.node_id);

    return own >= 0 && rec_gives_up(core, rec, (unsigned)own) &&
           (fence_needed(core, (unsigned)own) || lost_for_others(core, rec));
}

/* What a proof makes possible goes into the same transaction: one wait for the disk less while VMs stand still. */
static void stage_moves(struct mst_core *core)
{
    for (unsigned i = 0; i < core->recs_end && core->txn.count + MST_VMS_PER_NODE + 8 < MST_TXN_ROWS; i++) {
        struct rec *rec = &core->recs[i];

        if (rec->used && rec->d.state == MST_REC_FENCING && rec->d.scope != MST_SCOPE_STOP && !others_wait(core, rec))
            (void)rec_fenced(core, rec);
    }
}

bool proofs_step(struct mst_core *core)
{
    for (unsigned i = 0; i < PROOFS_MAX; i++) {
        struct proof *proof = &core->proofs[i];
        bool staged;

        if (!proof->used)
            continue;
        if (proof->kind == MST_PROOF_KEEPER) {
            txn_begin(core);
            staged = stage_keeper_proof(core, proof) > 0;
        } else {
            staged = stage_dead(core, proof);
        }
        if (!staged) {
            txn_drop(core);
            proof->used = false;
            continue;
        }
        stage_moves(core);
        core->proof_staged = proof;
        txn_submit(core, "proof=%s node=%s instance=%016" PRIx64, mst_proof_name(proof->kind), core->nodes[proof->node].conf.name,
                   proof->instance);
        return true;
    }
    return false;
}

void proof_committed(struct mst_core *core, int err)
{
    struct proof *proof = core->proof_staged;

    core->proof_staged = NULL;
    if (!proof)
        return;
    if (err != 0) {
        proof->token = 0; /* who waited for it was told */
        /* What keepers and devices have shown stays true. The operator was told that nothing is decided, and may know better by now. */
        if (proof->kind == MST_PROOF_OPERATOR)
            proof->used = false;
        return;
    }
    proof->used = false;
    if (proof->kind >= MST_PROOF_POWER)
        node_is_dead(core, proof->node);
}

/* --- keeper --- */

void fence_answered(struct mst_core *core, const struct pending *order, const struct mst_answer *answer)
{
    struct node *node = &core->nodes[order->node];
    struct rec *rec = order->recovery_id ? rec_by_id(core, order->recovery_id) : NULL;
    struct proof *proof;
    const char *why = answer->text;
    bool good = false;

    if (rec && rec->fence_order == order->token)
        rec->fence_order = 0;
    if (answer->err == 0 &&
        (!answer->has_fence || answer->fence_instance != order->instance || order->instance != node->instance)) {
        why = "the answer is of another keeper instance: it proves nothing";
    } else if (answer->err == 0) {
        proof = proof_queue(core, MST_PROOF_KEEPER, order->node, order->instance);
        good = proof != NULL;
        why = "too many proofs wait";
        for (unsigned i = 0; good && i < answer->fenced_count; i++) {
            struct held *held = held_find(node, answer->fenced[i].vm, answer->fenced[i].epoch);

            proof->vms[proof->vms_count++] = answer->fenced[i];
            if (held)
                held->s.run_state = MST_RUN_FENCED;
        }
    }
    if (good) {
        if (rec)
            rec->fence_retry_ms = core->now_ms + FENCE_RETRY_MIN_MS;
        return;
    }
    core_log(core, MST_LOG_WARNING, "node=%s recovery=%" PRIu64 " keeper has not fenced: %s %s", node->conf.name,
             order->recovery_id, mst_errname(answer->err), why);
    if (!rec)
        return;
    rec->fence_retry_ms = core->now_ms + (FENCE_RETRY_MIN_MS << (rec->fence_tries < 4 ? rec->fence_tries : 4));
    rec->fence_tries++;
    text_set(rec->why, sizeof(rec->why), "%s has not stopped its VMs: %.150s", node->conf.name, why);
}

static bool needs_fence(const struct rec *rec, const struct mst_core *core, unsigned i)
{
    const struct rvm *rvm = &rec->vms[i];

    return rvm->d.outcome == MST_OUT_PENDING && rvm->vm >= 0 && !staged_vm(core, rvm->vm)->fenced;
}

/* It has called, or its slots could be read when this state was entered, so its beat is read again within a moment: whether it moves decides, not what
 * was seen before. For a moment only: slots are read on and on, and a beat that stays away must not be waited for as long. */
static bool seen_again(const struct mst_core *core, const struct rec *rec, const struct node *node)
{
    uint64_t since_ms = MAX_OF(node->link_since_ms, core->windows_ms);

    if (node->readable && node->read_err == 0 && node->read_finished == node->read_started)
        since_ms = MAX_OF(since_ms, MIN_OF(node->read_ms, rec->entered_ms));
    return node->link != 0 && core->now_ms - since_ms < SEEN_AGAIN_MS && !MST_MUTANT(37);
}

static unsigned unfenced_there(const struct mst_core *core, const struct rec *rec, const struct node *node, const struct vm **ret)
{
    unsigned count = 0;

    for (unsigned i = 0; i < rec->vms_count; i++) {
        const struct vm *vm = needs_fence(rec, core, i) ? &core->vms[rec->vms[i].vm] : NULL;

        if (vm && vm->d.node_id == node->conf.id)
            ret[count++] = vm;
    }
    return count;
}

/* What rec has that node's keeper stop: its own VMs there. Those of a recovery that starts them ask nobody: the recovery of the node does it for them,
 * as it would cut the power for them. */
static unsigned to_be_stopped(const struct mst_core *core, const struct rec *rec, unsigned index,
                              const struct vm *ret[MST_VMS_PER_NODE])
{
    const struct node *node = &core->nodes[index];
    unsigned count = unfenced_there(core, rec, node, ret);

    for (unsigned i = 0; i < core->recs_end && count == 0 && rec_gives_up(core, rec, index); i++) {
        const struct rec *other = &core->recs[i];

        if (other->used && (other->d.state == MST_REC_COMMITTING || other->d.state == MST_REC_RESUMING))
            count = unfenced_there(core, other, node, ret);
    }
    return count;
}

/* It has its grant from this recovery, not from before the fault: that its node was well all the time says nothing of a start that failed there. */
static bool started_by(const struct rec *rec, const struct mst_vm_row *vm)
{
    for (unsigned i = 0; i < rec->vms_count; i++) {
        if (strcmp(rec->vms[i].d.vm, vm->name) == 0)
            return vm->epoch != rec->vms[i].d.epoch_from;
    }
    return false;
}

/* Its keeper has stopped it already, by an order of a coordinator before us or because its lease had ended: it does not run on because the node is back.
 * What the slot says is no proof; the keeper is asked for that. */
static bool stopped_there(const struct mst_core *core, unsigned index, const struct mst_vm_row *vm)
{
    const struct held *held = held_find((struct node *)&core->nodes[index], vm->name, vm->epoch);

    return held && held->s.run_state == MST_RUN_FENCED;
}

/* Something that runs under the present keeper would be stopped by its fence. What an earlier keeper of that node left does not go on because this one
 * moves: only its fence proves that stopped. */
static bool has_of_present_keeper(const struct mst_core *core, const struct rec *rec, unsigned index)
{
    const struct vm *vms[MST_VMS_PER_NODE];
    unsigned count = to_be_stopped(core, rec, index, vms);

    for (unsigned i = 0; i < count; i++) {
        if (vms[i]->d.instance == core->nodes[index].instance && !started_by(rec, &vms[i]->d) &&
            !stopped_there(core, index, &vms[i]->d))
            return true;
    }
    return false;
}

/* By what was read. Who has called since did not stand still then: whether he answers decides. */
static bool stands_still(const struct mst_core *core, const struct node *node)
{
    return mst_detect_keeper(&node->detect, core->conf.keeper_silent_ms) == MST_LIFE_FROZEN &&
           !(node->link != 0 && node->link_since_ms > node->detect.last_ok_ms);
}

static bool keeper_can_be_asked(const struct mst_core *core, const struct rec *rec, unsigned index)
{
    const struct node *node = &core->nodes[index];
    char text[MST_TEXT_BYTES];

    if (node->link == 0 || node->fencing || stands_still(core, node))
        return false;
    /* Reads that fail on most nodes are no reason to stop what runs there. */
    if (rec->d.scope == MST_SCOPE_NODE && rec->d.instance == node->instance && storm_holds(core, text, sizeof(text)))
        return false;
    /* A node taken for lost that is just being seen again: moving makes it a false alarm, which must not cost its VMs their lives.
     * Once it was told to stop them, only its proof tells what became of them. Who was not read at all in that moment is asked: its power is next. */
    if (rec->d.scope == MST_SCOPE_NODE && rec->d.instance == node->instance && rec->fence_sent[index] != node->instance &&
        has_of_present_keeper(core, rec, index) && (node_alive(core, index) || seen_again(core, rec, node)))
        return false;
    return true;
}

static void ask_keeper(struct mst_core *core, struct rec *rec, unsigned index)
{
    struct mst_order order = {.type = MST_ORDER_FENCE, .node = index};
    const struct vm *vms[MST_VMS_PER_NODE];
    uint64_t token;

    order.fence_count = to_be_stopped(core, rec, index, vms);
    for (unsigned i = 0; i < order.fence_count; i++) {
        memcpy(order.fence[i].vm, vms[i]->d.name, MST_NAME_BYTES);
        order.fence[i].epoch = vms[i]->d.epoch;
    }
    token = order_send(core, &order, rec->d.id, rec->d.scope == MST_SCOPE_NODE ? core->conf.keeper_silent_ms : FENCE_DEADLINE_MS);
    rec->fence_order = token;
    if (token != 0)
        rec->fence_sent[index] = core->nodes[index].instance;
    rec->fence_retry_ms = core->now_ms + FENCE_RETRY_MIN_MS;
}

/* --- power --- */

bool fence_needed(const struct mst_core *core, unsigned index)
{
    for (unsigned i = 0; i < core->recs_end; i++) {
        const struct rec *rec = &core->recs[i];

        if (!rec->used || !rec_open(rec) || rec->d.state == MST_REC_HELD)
            continue;
        for (unsigned k = 0; k < rec->vms_count; k++) {
            if (needs_fence(rec, core, k) && core->vms[rec->vms[k].vm].d.node_id == core->nodes[index].conf.id &&
                (rec->d.state == MST_REC_FENCING || rec->d.state == MST_REC_COMMITTING || rec->d.state == MST_REC_RESUMING))
                return true;
        }
    }
    return false;
}

static void power_text(struct mst_core *core, struct node *node, const char *text)
{
    if (strcmp(node->fence_text, text) != 0)
        core_log(core, MST_LOG_WARNING, "node=%s fencing: %s", node->conf.name, text);
    text_set(node->fence_text, sizeof(node->fence_text), "%s", text);
}

static const struct rec *rec_to_fence(const struct mst_core *core, unsigned index)
{
    int lost = node_lost(core, index);

    return lost >= 0 && core->recs[lost].d.state == MST_REC_FENCING && fence_needed(core, index) ? &core->recs[lost] : NULL;
}

/* The first rung is being tried: for somebody whose VMs are there the keeper can be asked, and has not failed to answer yet. */
static bool keeper_is_first(const struct mst_core *core, unsigned index)
{
    for (unsigned i = 0; i < core->recs_end; i++) {
        const struct rec *rec = &core->recs[i];
        const struct vm *vms[MST_VMS_PER_NODE];

        if (!rec->used || rec->d.state != MST_REC_FENCING || rec->fence_tries > 0)
            continue;
        if (to_be_stopped(core, rec, index, vms) > 0 && (rec->fence_order != 0 || keeper_can_be_asked(core, rec, index)))
            return true;
    }
    return false;
}

/* It has not had the time that it is given to call: we have just begun, or have stood still. */
static bool may_call_yet(const struct mst_core *core, const struct node *node)
{
    uint64_t since_ms = MAX_OF(core->windows_ms, node->joined ? 0 : core->started_ms);

    return node->link == 0 && since_ms != 0 &&
           core->now_ms - since_ms < MAX_OF(core->conf.keeper_silent_ms, core->conf.keeper_return_ms);
}

static bool power_is_next(const struct mst_core *core, const struct rec *rec, unsigned index)
{
    const struct node *node = &core->nodes[index];

    /* A proof by the keeper as well: cutting the power now would take the saves of VMs that are known to have stopped. */
    if (node->fencing || core->now_ms < node->fence_next_ms || any_proof_waits(core, index) || txn_moves(core, rec))
        return false;
    if (rec->fence_order != 0 || keeper_is_first(core, index) || may_call_yet(core, node))
        return false;
    if (seen_again(core, rec, node) && rec->fence_sent[index] != node->instance)
        return false;
    /* Otherwise it is being seen again: rec_fence_step decides. */
    return !node_alive(core, index) || mst_detect_keeper(&node->detect, core->conf.keeper_silent_ms) == MST_LIFE_FROZEN;
}

bool fence_power_wanted(const struct mst_core *core, unsigned index)
{
    const struct rec *rec = core->nodes[index].conf.has_fence ? rec_to_fence(core, index) : NULL;

    return rec && power_is_next(core, rec, index) && any_other_alive(core, index);
}

/* Somebody is held because this node may still have his memory. */
static bool memory_is_awaited(const struct mst_core *core, const struct node *node)
{
    for (unsigned i = 0; i < core->recs_end; i++) {
        const struct rec *rec = &core->recs[i];

        for (unsigned k = 0; rec->used && k < rec->vms_count; k++) {
            const struct rvm *rvm = &rec->vms[k];
            const struct vm *vm = rvm->vm >= 0 ? &core->vms[rvm->vm] : NULL;

            if (!vm || rvm->d.outcome != MST_OUT_HELD || rvm->d.hold != MST_HOLD_SAVE)
                continue;
            if (vm->d.save.node_id == node->conf.id)
                return true;
            for (unsigned n = 0; n < MST_MIRRORS_MAX; n++) {
                if (image_counts(vm, n) && vm->mirrors[n].d.node_id == node->conf.id)
                    return true;
            }
        }
    }
    return false;
}

/* A node without grants is fenced by nobody, and one that only has a mirror's image must not be: the image would go. But when its power is off,
 * the image is gone already, and who waits for it waits for nothing. Asking changes nothing. */
static void power_look_step(struct mst_core *core, unsigned index)
{
    struct node *node = &core->nodes[index];

    if (!memory_is_awaited(core, node) || node->link != 0 || node->instance == 0 || !node_away(core, node, true) ||
        memory_gone(node)) {
        power_cancel(core, index);
        return;
    }
    if (!node->conf.has_fence || node->looking || core->now_ms < node->look_next_ms || any_proof_waits(core, index))
        return;
    node->looking = true;
    node->fence_token = ++core->next_token;
    node->look_instance = node->instance;
    node->look_next_ms = core->now_ms + POWER_LOOK_MS;
    core->io.fence(core->io.impl, index, node->fence_token, true);
}

/* It was off when it was asked: what ran there before is dead. What has called meanwhile is not. */
static void power_looked(struct mst_core *core, unsigned index, int err, const char *text)
{
    struct node *node = &core->nodes[index];
    struct proof *proof;

    node->looking = false;
    core_log(core, MST_LOG_NOTICE, "node=%s its power was asked for, as a VM waits for memory that may be there: %s",
             node->conf.name, text);
    if (err != 0 || node->link != 0 || node->instance != node->look_instance)
        return;
    proof = proof_queue(core, MST_PROOF_POWER, index, node->instance);
    if (proof)
        text_set(proof->text, sizeof(proof->text), "%s", text);
}

/* True: it is proved dead by the end of its lease, or will be in a while and has no other means. */
static bool watchdog_step(struct mst_core *core, unsigned index)
{
    struct node *node = &core->nodes[index];
    struct proof *proof;
    uint64_t left_ms;
    char text[MST_TEXT_BYTES];

    if (!lease_proves(core, index, &left_ms)) {
        if (left_ms == 0 || node->conf.has_fence)
            return false;
        text_set(text, sizeof(text), "its lease, and the watchdog behind it, will be over %" PRIu64 " s after its last renewal",
                 (core->now_ms - node->lease.decided_ms + left_ms) / 1000);
        power_text(core, node, text);
        return true;
    }
    proof = proof_queue(core, MST_PROOF_WATCHDOG, index, node->instance);
    if (proof)
        text_set(proof->text, sizeof(proof->text),
                 "its strict lease was renewed last %" PRIu64 " ms ago; its watchdog takes %u ms at most",
                 core->now_ms - node->lease.decided_ms, node->conf.watchdog_ms);
    return proof != NULL;
}

void fence_power_step(struct mst_core *core, unsigned index)
{
    struct node *node = &core->nodes[index];
    const struct rec *rec = rec_to_fence(core, index);
    char text[MST_TEXT_BYTES];

    if (!rec) {
        if (node->fencing)
            power_cancel(core, index);
        power_look_step(core, index);
        return;
    }
    if (node->looking)
        power_cancel(core, index);
    if (!power_is_next(core, rec, index))
        return;
    if ((!node->conf.has_fence || node->fence_tries > 0) && !storm_holds(core, text, sizeof(text)) && watchdog_step(core, index))
        return;
    if (!node->conf.has_fence) {
        text_set(text, sizeof(text),
                 "no fence agent is configured for it: once it is certain that it is dead, "
                 "mainstayctl node confirm-dead %s",
                 node->conf.name);
        power_text(core, node, text);
        return;
    }
    if (!any_other_alive(core, index)) {
        power_text(core, node, "no other node is up that could take its VMs: its power is left alone");
        return;
    }
    if (storm_holds(core, text, sizeof(text)) || !fence_turn(core, index, text, sizeof(text))) {
        power_text(core, node, text);
        return;
    }
    text_set(node->fence_text, sizeof(node->fence_text), "its power is being cut, try %u", node->fence_tries + 1);
    node->fencing = true;
    node->fence_token = ++core->next_token;
    core_log(core, MST_LOG_NOTICE, "node=%s instance=%016" PRIx64 " recovery=%" PRIu64 " power fence try=%u", node->conf.name,
             node->instance, rec->d.id, node->fence_tries + 1);
    trace_node(core, MST_EV_FENCE_STARTED, index, node->fence_token, 0, "");
    if (MST_MUTANT(3)) {
        (void)proof_queue(core, MST_PROOF_POWER, index, node->instance);
        node->fencing = false;
        return;
    }
    core->io.fence(core->io.impl, index, node->fence_token, false);
}

void mst_core_fence_done(struct mst_core *core, const struct mst_time *now, uint64_t token, int err, const char *text)
{
    core_time(core, now);
    for (unsigned i = 0; i < core->nodes_count; i++) {
        struct node *node = &core->nodes[i];
        struct proof *proof;
        uint64_t wait = FENCE_RETRY_MIN_MS << (node->fence_tries < 5 ? node->fence_tries : 5);

        if (node->looking && node->fence_token == token)
            power_looked(core, i, err, text);
        if (!node->fencing || node->fence_token != token)
            continue;
        node->fencing = false;
        trace_node(core, MST_EV_FENCE_DONE, i, token, err, text);
        node->fence_next_ms = core->now_ms + (wait < FENCE_RETRY_MAX_MS ? wait : FENCE_RETRY_MAX_MS);
        node->fence_tries++;
        if (err != 0 && !MST_MUTANT(1)) {
            text_set(node->fence_text, sizeof(node->fence_text), "power fence has failed %u times: %.120s", node->fence_tries,
                     text);
            core_log(core, MST_LOG_ERROR, "node=%s %s; next try in %" PRIu64 " ms", node->conf.name, node->fence_text,
                     node->fence_next_ms - core->now_ms);
            continue;
        }
        proof = proof_queue(core, MST_PROOF_POWER, i, node->instance);
        if (proof)
            text_set(proof->text, sizeof(proof->text), "%s", text);
    }
    core_run(core);
}

/* --- the state FENCING --- */

/* Stages what follows when nothing is left to fence; false: something is. */
bool rec_fenced(struct mst_core *core, struct rec *rec)
{
    uint64_t last = 0;
    const char *name = "none";

    for (unsigned i = 0; i < rec->vms_count; i++) {
        if (needs_fence(rec, core, i))
            return false;
    }
    for (unsigned i = 0; i < rec->vms_count; i++) {
        const struct mst_vm_row *vm;

        if (rec->vms[i].d.outcome != MST_OUT_PENDING || rec->vms[i].vm < 0)
            continue;
        vm = staged_vm(core, rec->vms[i].vm);
        txn_rvm(core, rec, i)->proof_id = vm->proof_id;
        if (vm->proof_id > last) {
            last = vm->proof_id;
            name = mst_proof_name(vm->proof_kind);
        }
    }
    if (last != 0)
        text_set(txn_rec(core, rec)->proof, MST_TEXT_BYTES, "%s (proof %" PRIu64 ")", name, last);
    if (last != 0)
        txn_move(core, rec, MST_REC_READING2, "fenced: proof %" PRIu64 " by %s", last, name);
    else
        txn_move(core, rec, MST_REC_READING2, "nothing was left to fence");
    return true;
}

/* The node was only away: its VMs run on, nothing was taken from it. */
static bool false_alarm(struct mst_core *core, struct rec *rec)
{
    int index = node_find_id(core, rec->d.node_id);
    unsigned fenced = 0;
    unsigned elsewhere = 0;
    unsigned run = 0;

    if (rec->d.scope != MST_SCOPE_NODE || index < 0 || core->nodes[index].fencing || proof_waits(core, (unsigned)index))
        return false;
    if (core->nodes[index].instance != rec->d.instance || !node_alive(core, (unsigned)index) ||
        mst_detect_keeper(&core->nodes[index].detect, core->conf.keeper_silent_ms) != MST_LIFE_MOVING)
        return false;
    /* It was told to stop them, and that may be obeyed at any moment. */
    if (rec->fence_order != 0 || rec->fence_sent[index] == rec->d.instance || any_proof_waits(core, (unsigned)index))
        return false;
    txn_begin(core);
    for (unsigned i = 0; i < rec->vms_count; i++) {
        const struct mst_vm_row *vm = rec->vms[i].vm >= 0 ? &core->vms[rec->vms[i].vm].d : NULL;
        struct mst_rvm_row *row;

        if (rec->vms[i].d.outcome != MST_OUT_PENDING || !vm)
            continue;
        if (vm->fenced) {
            fenced++;
            continue;
        }
        /* A start that has failed, a grant of a keeper before, or it is stopped. */
        if (vm->node_id != rec->d.node_id || vm->instance != rec->d.instance || started_by(rec, vm) ||
            stopped_there(core, (unsigned)index, vm)) {
            elsewhere++;
            continue;
        }
        run++;
        row = txn_rvm(core, rec, i);
        row->outcome = MST_OUT_RUNS_ON;
        text_set(row->text, sizeof(row->text), "its node came back before it was fenced");
        txn_vm(core, rec->vms[i].vm)->phase = MST_VM_RUNNING;
    }
    if (run == 0 && elsewhere > 0) {
        txn_drop(core);
        return false;
    }
    if (fenced + elsewhere == 0)
        (void)rec_close(core, rec, "false alarm: the node came back before it was fenced"); /* VMs that it holds stay held */
    else
        (void)rec_fenced(core, rec);
    txn_submit(core, "recovery=%" PRIu64 " false alarm", rec->d.id);
    return true;
}

static bool stop_done(struct mst_core *core, struct rec *rec)
{
    txn_begin(core);
    for (unsigned i = 0; i < rec->vms_count; i++) {
        struct mst_vm_row *vm;

        if (needs_fence(rec, core, i)) {
            txn_drop(core);
            return false;
        }
        txn_rvm(core, rec, i)->outcome = MST_OUT_STOPPED;
        if (rec->vms[i].vm < 0)
            continue;
        vm = txn_vm(core, rec->vms[i].vm);
        vm->phase = MST_VM_STOPPED;
        memset(&vm->save, 0, sizeof(vm->save));
    }
    txn_move(core, rec, MST_REC_DONE, "stopped");
    txn_submit(core, "stop of %s is proved", rec->vms_count ? rec->vms[0].d.vm : "-");
    return true;
}

/* The node of a node's recovery that has nothing there itself, while others have: its index, or -1. */
static int for_others_at(const struct mst_core *core, const struct rec *rec)
{
    int index = node_find_id(core, rec->d.node_id);
    const struct vm *vms[MST_VMS_PER_NODE];

    if (index < 0 || !rec_gives_up(core, rec, (unsigned)index) || unfenced_there(core, rec, &core->nodes[index], vms) > 0)
        return -1;
    return to_be_stopped(core, rec, (unsigned)index, vms) > 0 ? index : -1;
}

bool rec_fence_step(struct mst_core *core, struct rec *rec)
{
    if (txn_free(core)) {
        if (rec->d.scope == MST_SCOPE_STOP && stop_done(core, rec))
            return true;
        if (rec->d.scope != MST_SCOPE_STOP) {
            if (false_alarm(core, rec))
                return true;
            if (!others_wait(core, rec)) {
                txn_begin(core);
                if (rec_fenced(core, rec)) {
                    txn_submit(core, "recovery=%" PRIu64 " is fenced", rec->d.id);
                    return true;
                }
                txn_drop(core);
            }
        }
    }
    if (rec->fence_order != 0 || core->now_ms < rec->fence_retry_ms || txn_moves(core, rec))
        return false;
    for (unsigned i = 0; i <= rec->vms_count; i++) {
        int index = i == rec->vms_count         ? for_others_at(core, rec)
                    : needs_fence(rec, core, i) ? node_find_id(core, core->vms[rec->vms[i].vm].d.node_id)
                                                : -1;

        if (index < 0 || any_proof_waits(core, (unsigned)index))
            continue;
        if (keeper_can_be_asked(core, rec, (unsigned)index)) {
            ask_keeper(core, rec, (unsigned)index);
            return false;
        }
        text_set(rec->why, sizeof(rec->why), "no proof yet that %s is stopped: %.120s", core->nodes[index].conf.name,
                 core->nodes[index].fencing         ? "its power is being cut"
                 : core->nodes[index].fence_text[0] ? core->nodes[index].fence_text
                                                    : "it does not answer");
    }
    return false;
}
