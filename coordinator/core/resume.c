#include "coordinator/core/internal.h"

#include "base/mutant.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_pending(const struct rec *rec, unsigned i)
{
    return rec->vms[i].d.outcome == MST_OUT_PENDING;
}

static void plan(struct mst_core *core, struct rec *rec);

/* After our own start nodes need a moment to call again: a plan without them would hold VMs, or crowd them, for nothing. */
static bool nodes_are_awaited(const struct mst_core *core)
{
    if (core->now_ms - core->started_ms >= core->conf.keeper_return_ms)
        return false;
    for (unsigned i = 0; i < core->nodes_count; i++) {
        if (core->nodes[i].d.instance != 0 && core->nodes[i].d.instance != core->nodes[i].d.fenced_instance &&
            (!core->nodes[i].joined || (core->nodes[i].link != 0 && !core->nodes[i].detect.agent_moved)))
            return true;
    }
    return false;
}

/* --- READING2: nothing moves any more; which save is the newest? --- */

static unsigned attribute(const struct rec *rec, const struct vm *vm)
{
    if (rec->d.scope == MST_SCOPE_VM)
        return vm->def.on_vm_fault;
    if (rec->d.scope == MST_SCOPE_START || (rec->d.scope == MST_SCOPE_MOVE && rec->d.kind == MST_FAULT_OPERATOR))
        return MST_ON_FAULT_RESUME;
    return vm->def.on_node_fault;
}

static bool panics_again(const struct rec *rec, const struct vm *vm)
{
    return rec->d.kind == MST_FAULT_VM_PANICKED && vm->panic_before_ms != 0 &&
           vm->panic_ms - vm->panic_before_ms < PANIC_WINDOW_MS;
}

static bool save_matters(const struct rec *rec, const struct vm *vm)
{
    return vm->d.wanted && attribute(rec, vm) != MST_ON_FAULT_RESTART && attribute(rec, vm) != MST_ON_FAULT_DISCARD &&
           !panics_again(rec, vm);
}

static uint64_t saves_deadline_ms(const struct mst_core *core)
{
    return core->conf.keeper_return_ms + 2000u;
}

static struct save_look look_of(const struct mst_core *core, const struct rec *rec, const struct rvm *rvm)
{
    return (struct save_look){.seen = rvm->seen,
                              .late = core->now_ms - rec->entered_ms >= saves_deadline_ms(core),
                              .images = rvm->images,
                              .from = {.node_id = rvm->d.from_node_id, .epoch = rvm->d.epoch_from}};
}

/* Whether enough is known of VM i's saves, or no more will be in time. */
static bool saves_seen(struct mst_core *core, struct rec *rec, unsigned i)
{
    uint64_t deadline_ms = saves_deadline_ms(core);
    struct rvm *rvm = &rec->vms[i];
    const struct vm *vm = rvm->vm >= 0 ? &core->vms[rvm->vm] : NULL;
    int node = vm ? node_find_id(core, vm->d.node_id) : -1;
    struct save_look look;
    struct mst_save_ref save;

    rvm->away_node = 0;
    if (!vm || !is_pending(rec, i) || !save_matters(rec, vm))
        return true;
    look = look_of(core, rec, rvm);
    /* A new keeper has just said in its Hello which saves it found; connecting to read the same would only take time. */
    if (node >= 0 && vm->d.proof_kind < MST_PROOF_POWER &&
        !(vm->d.proof_kind == MST_PROOF_RETURN && core->nodes[node].link != 0 && !core->nodes[node].readable) &&
        !memory_gone(&core->nodes[node]) && !rvm->seen &&
        !read_ready(core, rec, &rvm->read_want, (unsigned)node, deadline_ms, &rvm->seen))
        return false;
    look.seen = rvm->seen;
    if (own_save(core, vm, rvm->seen, &save) != SAVE_THERE)
        images_ask(core, rec, rvm, look.late);
    if (newest_save(core, rvm->vm, &look, &save) != SAVE_AWAY)
        return true;
    rvm->away_node = save.node_id;
    text_set(rec->why, sizeof(rec->why), "%s of %s may be on %s, which %s", save.image ? "the mirror" : "the newest save",
             vm->d.name, node_name(core, save.node_id), images_asked(rvm) ? "is asked for it" : "cannot be read");
    return look.late && !images_asked(rvm);
}

static bool stage_save(struct mst_core *core, const struct rec *rec, const struct rvm *rvm, char *text, size_t size)
{
    const struct vm *vm = &core->vms[rvm->vm];
    struct save_look look = look_of(core, rec, rvm);
    struct mst_save_ref save;
    enum save_fate fate = newest_save(core, rvm->vm, &look, &save);

    if (fate == SAVE_AWAY)
        text_set(text, size, "%s: its newest save may be on %s, which is away", vm->d.name, node_name(core, save.node_id));
    else if (fate == SAVE_THERE)
        text_set(text, size, "%s: %s epoch %" PRIu64 " seq %" PRIu64 " on %s", vm->d.name, save.image ? "image" : "save",
                 save.epoch, save.seq, node_name(core, save.node_id));
    else
        text_set(text, size, "%s: no usable save", vm->d.name);
    if (fate != SAVE_AWAY && !same_save(&save, &vm->d.save))
        txn_vm(core, rvm->vm)->save = save;
    return fate == SAVE_THERE;
}

static int unfenced(const struct mst_core *core, const struct rec *rec)
{
    for (unsigned i = 0; i < rec->vms_count; i++) {
        if (is_pending(rec, i) && rec->vms[i].vm >= 0 && !core->vms[rec->vms[i].vm].d.fenced)
            return (int)i;
    }
    return -1;
}

/* A newer grant than ours was found (join.c): it is fenced first. */
static bool fence_again(struct mst_core *core, struct rec *rec)
{
    int i = unfenced(core, rec);

    if (i < 0 || MST_MUTANT(54))
        return false;
    txn_begin(core);
    txn_move(core, rec, MST_REC_FENCING, "%s is not proved stopped", rec->vms[i].d.vm);
    txn_submit(core, "%s", "");
    return true;
}

bool rec_reading2(struct mst_core *core, struct rec *rec)
{
    char text[MST_TEXT_BYTES];
    unsigned found = 0;
    unsigned count = 0;
    unsigned waiting = 0;

    if (txn_free(core) && fence_again(core, rec))
        return true;
    for (unsigned i = 0; i < rec->vms_count; i++)
        waiting += saves_seen(core, rec, i) ? 0 : 1;
    if (waiting > 0 || !txn_free(core) || nodes_are_awaited(core))
        return false;
    txn_begin(core);
    text[0] = 0;
    for (unsigned i = 0; i < rec->vms_count; i++) {
        char one[MST_TEXT_BYTES];

        if (!is_pending(rec, i) || rec->vms[i].vm < 0)
            continue;
        found += stage_save(core, rec, &rec->vms[i], one, sizeof(one)) ? 1 : 0;
        if (count++ == 0)
            text_set(text, sizeof(text), "%s", one);
    }
    if (count > 1)
        text_set(text, sizeof(text), "%u of %u VMs have a usable save", found, count);
    txn_move(core, rec, MST_REC_PLANNING, "%s", text);
    plan(core, rec);
    return true;
}

/* --- PLANNING --- */

static void hold(struct mst_core *core, struct rec *rec, unsigned i, enum mst_hold why, const char *text)
{
    struct mst_rvm_row *row = txn_rvm(core, rec, i);
    struct mst_vm_row *vm = txn_vm(core, rec->vms[i].vm);

    row->outcome = MST_OUT_HELD;
    row->hold = (uint8_t)why;
    text_set(row->text, sizeof(row->text), "%s", text);
    vm->phase = MST_VM_HELD;
    text_set(vm->text, sizeof(vm->text), "%s", text);
}

static void stop_here(struct mst_core *core, struct rec *rec, unsigned i, enum mst_outcome outcome, const char *text)
{
    struct mst_rvm_row *row = txn_rvm(core, rec, i);
    struct mst_vm_row *vm;

    row->outcome = (uint8_t)outcome;
    text_set(row->text, sizeof(row->text), "%s", text);
    if (rec->vms[i].vm < 0)
        return;
    vm = txn_vm(core, rec->vms[i].vm);
    vm->phase = MST_VM_STOPPED;
    vm->wanted = false;
    memset(&vm->save, 0, sizeof(vm->save));
    text_set(vm->text, sizeof(vm->text), "%s", text);
}

static bool restarts_too_often(const struct mst_core *core, const struct vm *vm)
{
    uint64_t oldest_ms;

    if (vm->def.restarts_max == 0 || vm->def.restarts_max > MST_VM_RESTARTS_MAX)
        return false;
    oldest_ms = vm->moves_ms[vm->def.restarts_max - 1];
    return oldest_ms != 0 && core->now_ms - oldest_ms < UINT64_C(1000) * vm->def.restarts_window_s;
}

/* Decides how VM i goes on, or that it does not. True: it needs a place. */
static bool stage_how(struct mst_core *core, struct rec *rec, unsigned i)
{
    const struct vm *vm = rec->vms[i].vm >= 0 ? &core->vms[rec->vms[i].vm] : NULL;
    unsigned attr = vm ? attribute(rec, vm) : 0;
    const struct mst_save_ref *save;
    enum save_fate fate;
    char text[MST_TEXT_BYTES];

    if (!vm || (!vm->d.wanted && !MST_MUTANT(31))) {
        stop_here(core, rec, i, MST_OUT_STOPPED, "stopped by the operator: not revived");
        return false;
    }
    if (attr == MST_ON_FAULT_DISCARD) {
        stop_here(core, rec, i, MST_OUT_DISCARDED, "discarded by its recovery attribute");
        return false;
    }
    if (attr == MST_ON_FAULT_HOLD && !rec->vms[i].d.forced) {
        text_set(text, sizeof(text), "held by its recovery attribute: mainstayctl vm start %s resumes it", vm->d.name);
        hold(core, rec, i, MST_HOLD_ATTRIBUTE, text);
        return false;
    }
    if (rec->vms[i].d.attempts >= TRIES_MAX) {
        text_set(text, sizeof(text), "%u starts have failed, the last: %.120s", rec->vms[i].d.attempts, rec->vms[i].d.text);
        hold(core, rec, i, MST_HOLD_FAILED, text);
        return false;
    }
    if (restarts_too_often(core, vm) && !rec->vms[i].d.forced && rec->d.scope != MST_SCOPE_START) {
        text_set(text, sizeof(text), "recovered %u times within %u s: mainstayctl vm start %s tries again", vm->def.restarts_max,
                 vm->def.restarts_window_s, vm->d.name);
        hold(core, rec, i, MST_HOLD_FAILED, text);
        return false;
    }
    if (!save_matters(rec, vm)) {
        txn_rvm(core, rec, i)->how = MST_HOW_BOOT;
        return true;
    }
    save = &staged_vm(core, rec->vms[i].vm)->save;
    fate = rec->vms[i].away_node                    ? SAVE_AWAY
           : image_answered(&rec->vms[i], vm, save) ? SAVE_THERE
                                                    : save_fate(core, vm->d.name, save);
    if (fate == SAVE_AWAY) {
        const char *where = node_name(core, rec->vms[i].away_node ? rec->vms[i].away_node : save->node_id);

        text_set(text, sizeof(text),
                 "its newest save is on %s, which cannot be read: resumed when it is back, or started without it after "
                 "mainstayctl node confirm-dead %s",
                 where, where);
        hold(core, rec, i, MST_HOLD_SAVE, text);
        return false;
    }
    txn_rvm(core, rec, i)->how = fate == SAVE_THERE ? MST_HOW_RESUME : MST_HOW_BOOT;
    return true;
}

static void boot_reason(struct mst_core *core, const struct rec *rec, const struct vm *vm, char *text, size_t size)
{
    char loss[MST_TEXT_BYTES];

    images_loss(core, vm, loss, sizeof(loss));
    if (rec->d.scope == MST_SCOPE_START)
        text_set(text, size, "booted");
    else if (attribute(rec, vm) == MST_ON_FAULT_RESTART)
        text_set(text, size, "restarted by its recovery attribute");
    else if (panics_again(rec, vm))
        text_set(text, size, "restarted: it panicked twice within a minute, its save would panic again");
    else if (vm->d.proof_kind >= MST_PROOF_POWER)
        text_set(text, size, "restarted: its memory went with the node's power%.100s", loss);
    else
        text_set(text, size, "restarted: no usable save is left%.100s", loss);
}

/* The one place where a grant is given. */
static void grant(struct mst_core *core, struct rec *rec, unsigned i, const struct mst_placement *placed)
{
    int index = rec->vms[i].vm;
    const struct node *node = &core->nodes[placed->node];
    struct mst_vm_row *vm = txn_vm(core, index);
    struct mst_rvm_row *row = txn_rvm(core, rec, i);
    char why[MST_TEXT_BYTES];

    if (!vm->fenced) /* I2: without proof no new grant */
        abort();
    row->proof_id = vm->proof_id;
    vm->node_id = node->conf.id;
    vm->instance = node->instance;
    /* Nor under the epoch of an image that an old copy of the store does not know. */
    vm->epoch = MAX_OF(vm->epoch, images_held_epoch(core, vm->name)) + (MST_MUTANT(18) && row->attempts > 0 ? 2 : 1);
    vm->fenced = false;
    vm->proof_id = 0;
    vm->proof_kind = MST_PROOF_NONE;
    row->to_node_id = node->conf.id;
    row->epoch_to = vm->epoch;
    if (row->how == MST_HOW_RESUME) {
        text_set(row->text, sizeof(row->text), "resume from %sepoch %" PRIu64 " seq %" PRIu64 " on %s; placed: %.100s",
                 vm->save.image ? "the image of " : "", vm->save.epoch, vm->save.seq, node_name(core, vm->save.node_id),
                 placed->why);
        return;
    }
    memset(&vm->save, 0, sizeof(vm->save)); /* from here on whatever was saved before is of another life */
    vm->image_floor = MST_MUTANT(95) ? vm->image_floor : vm->epoch;
    boot_reason(core, rec, &core->vms[index], why, sizeof(why));
    text_set(row->text, sizeof(row->text), "%.140s; placed: %.100s", why, placed->why);
}

/* Stages the plan, and what it grants, on top of what is staged already. */
static void plan(struct mst_core *core, struct rec *rec)
{
    struct mst_placement placed[MST_VMS_PER_NODE];
    unsigned which[MST_VMS_PER_NODE] = {0};
    unsigned count = 0;
    unsigned granted;

    for (unsigned i = 0; i < rec->vms_count; i++) {
        if (is_pending(rec, i) && stage_how(core, rec, i))
            which[count++] = i;
    }
    granted = place(core, rec, which, count, false, placed);
    for (unsigned k = 0; k < count; k++) {
        char text[MST_TEXT_BYTES];

        if (placed[k].node >= 0) {
            grant(core, rec, which[k], &placed[k]);
            continue;
        }
        text_set(text, sizeof(text), "nobody can take it: %.170s", placed[k].why);
        hold(core, rec, which[k], MST_HOLD_NO_ROOM, text);
    }
    if (granted > 0)
        txn_move(core, rec, MST_REC_COMMITTING, "%u of %u VMs placed", granted, count);
    else
        (void)rec_close(core, rec, "nothing to start");
    txn_submit(core, "recovery=%" PRIu64 " plan: %u of %u VMs placed", rec->d.id, granted, count);
}

/* What was found when it was read cannot be had any more, as with a node that failed while a VM was held: a mirror may have it. -1: all can. */
static int save_lost(const struct mst_core *core, const struct rec *rec)
{
    for (unsigned i = 0; i < rec->vms_count; i++) {
        const struct vm *vm = rec->vms[i].vm >= 0 ? &core->vms[rec->vms[i].vm] : NULL;
        struct mst_save_ref own;

        if (!vm || !is_pending(rec, i) || vm->d.save.node_id == 0 || !save_matters(rec, vm))
            continue;
        if (save_fate(core, vm->d.name, &vm->d.save) != SAVE_THERE)
            return (int)i;
        if (vm->d.save.node_id == vm->d.node_id && vm->d.save.epoch == vm->d.epoch &&
            own_save(core, vm, false, &own) == SAVE_AWAY)
            return (int)i;
    }
    return -1;
}

static bool read_again(struct mst_core *core, struct rec *rec)
{
    int i = save_lost(core, rec);

    if (i < 0)
        return false;
    txn_begin(core);
    txn_move(core, rec, MST_REC_READING2, "the save of %s cannot be had any more", rec->vms[i].d.vm);
    txn_submit(core, "%s", "");
    return true;
}

bool rec_planning(struct mst_core *core, struct rec *rec)
{
    if (!txn_free(core) || nodes_are_awaited(core))
        return false;
    if (fence_again(core, rec) || read_again(core, rec))
        return true;
    txn_begin(core);
    plan(core, rec);
    return true;
}

/* Once for each round of grants. */
static void count_moves(struct mst_core *core, struct rec *rec)
{
    for (unsigned i = 0; !rec->counted && i < rec->vms_count; i++) {
        struct vm *vm = rec->vms[i].vm >= 0 ? &core->vms[rec->vms[i].vm] : NULL;

        if (!vm || !is_pending(rec, i) || rec->d.scope > MST_SCOPE_NODE)
            continue;
        memmove(&vm->moves_ms[1], &vm->moves_ms[0], sizeof(vm->moves_ms) - sizeof(vm->moves_ms[0]));
        vm->moves_ms[0] = MAX_OF(core->now_ms, 1);
    }
    rec->counted = true;
}

/* --- RESUMING --- */

/* -EUCLEAN comes from nobody but the pull: the save itself does not check. Twice says that it is not the reader. */
static void note_refusal(struct rvm *rvm, const struct mst_save_ref *save)
{
    bool again = rvm->refused_save.epoch == save->epoch && rvm->refused_save.image == save->image &&
                 (!save->image || rvm->refused_save.node_id == save->node_id);

    rvm->refused = again ? rvm->refused + 1 : 1;
    rvm->refused_save = *save;
}

void start_answered(struct mst_core *core, const struct pending *order, const struct mst_answer *answer)
{
    struct rec *rec = rec_by_id(core, order->recovery_id);

    for (unsigned i = 0; rec && (rec->d.state == MST_REC_COMMITTING || rec->d.state == MST_REC_RESUMING) && i < rec->vms_count;
         i++) {
        struct rvm *rvm = &rec->vms[i];

        if (rvm->order != order->token)
            continue;
        rvm->order = 0;
        if (answer->err == -ECONNRESET) { /* unknown; when the same keeper calls again it is asked again */
            rvm->ordered = false;
            return;
        }
        rvm->answered = true;
        rvm->err = answer->err;
        rvm->start = answer->start;
        text_set(rvm->why, sizeof(rvm->why), "%s", answer->text);
        if (answer->err == -EUCLEAN && rvm->d.how == MST_HOW_RESUME && rvm->vm >= 0)
            note_refusal(rvm, &core->vms[rvm->vm].d.save);
    }
}

static void send_start(struct mst_core *core, struct rec *rec, unsigned i, unsigned index)
{
    struct rvm *rvm = &rec->vms[i];
    struct vm *vm = &core->vms[rvm->vm];
    struct node *node = &core->nodes[index];
    struct mst_order order = {
        .type = MST_ORDER_START, .node = index, .vm = vm->d.name, .epoch = vm->d.epoch, .definition = &vm->def};
    int source = rvm->d.how == MST_HOW_RESUME && vm->d.save.node_id ? node_find_id(core, vm->d.save.node_id) : -1;

    if (source >= 0) {
        order.source = vm->d.save;
        order.source.instance = core->nodes[source].instance; /* who serves the memory now */
        order.source_node = core->nodes[source].conf.name;
    } else { /* it boots: what it left here only takes room */
        for (unsigned k = 0; k < node->held_count; k++) {
            struct mst_order forget = {.type = MST_ORDER_FORGET, .node = index, .vm = vm->d.name};

            if (strcmp(node->held[k].s.vm, vm->d.name) != 0 || node->held[k].s.epoch >= vm->d.epoch ||
                node->held[k].sweep_ms != 0)
                continue;
            forget.epoch = node->held[k].s.epoch;
            node->held[k].sweep_ms = MAX_OF(core->now_ms, 1);
            (void)order_send(core, &forget, rec->d.id, ORDER_DEADLINE_MS);
        }
    }
    rvm->order = order_send(core, &order, rec->d.id, START_DEADLINE_MS + vm->def.memory_mib * MST_PULL_MS_PER_MIB);
    rvm->ordered = rvm->order != 0;
    if (rec->resuming.us == 0)
        rec->resuming = core->now;
}

static void start_failed(struct rvm *rvm, int err, const char *text)
{
    rvm->ordered = rvm->answered = true;
    rvm->err = err;
    text_set(rvm->why, sizeof(rvm->why), "%s", text);
}

/* Sends what is to be sent, and says whether VM i still waits; why: for its turn. */
static bool start_waits(struct mst_core *core, struct rec *rec, unsigned i, char *why, size_t size)
{
    struct rvm *rvm = &rec->vms[i];
    const struct vm *vm = rvm->vm >= 0 ? &core->vms[rvm->vm] : NULL;
    int index = vm ? node_find_id(core, vm->d.node_id) : -1;

    if (rvm->answered && rvm->err != 0)
        return false;
    if (!vm || index < 0 || rvm->d.epoch_to != vm->d.epoch || vm->d.fenced) { /* also when it had answered well before */
        start_failed(rvm, -ENODEV, "its new node was lost before it ran");
        return false;
    }
    if (rvm->answered)
        return false;
    if (rvm->ordered)
        return true;
    if (!vm->d.wanted) {
        start_failed(rvm, -ECANCELED, "stopped by the operator");
        return false;
    }
    /* That keeper will not start it any more, and nobody else may before the new one says that it is stopped. */
    if (core->nodes[index].link != 0 && core->nodes[index].instance != vm->d.instance) {
        start_failed(rvm, -ENODEV, "its new node has another keeper now");
        return false;
    }
    if (start_ready(core, rec, i) && start_turn(core, rec, i, (unsigned)index, why, size))
        send_start(core, rec, i, (unsigned)index);
    return true;
}

static void stage_started(struct mst_core *core, struct rec *rec, unsigned i)
{
    struct rvm *rvm = &rec->vms[i];
    struct vm *vm = &core->vms[rvm->vm];
    struct mst_rvm_row *row = txn_rvm(core, rec, i);
    struct mst_vm_row *to = txn_vm(core, rvm->vm);
    int index = node_find_id(core, vm->d.node_id);
    char before[MST_TEXT_BYTES];

    row->outcome = rvm->d.how == MST_HOW_RESUME ? MST_OUT_RESUMED : MST_OUT_RESTARTED;
    row->start = rvm->start;
    memcpy(before, row->text, sizeof(before));
    if (rvm->d.how == MST_HOW_BOOT && rvm->why[0]) /* as that its disk began anew, too */
        text_set(row->text, sizeof(row->text), "%.110s; %.80s", before, rvm->why);
    else
        text_set(row->text, sizeof(row->text), "%.190s", rvm->why[0] ? rvm->why : before);
    to->phase = MST_VM_RUNNING;
    to->pin_node_id = 0;
    to->text[0] = 0;
    if (index >= 0 && !held_find(&core->nodes[index], vm->d.name, vm->d.epoch)) {
        core->nodes[index].read_wanted = true;
        core->nodes[index].read_ms = 0;
    }
}

/* The one that was used is bad: it counts no more. Another that counts has the same. */
static void stage_image_bad(struct mst_core *core, int index, const struct mst_save_ref *image)
{
    for (unsigned n = 0; n < MST_MIRRORS_MAX; n++) {
        const struct mst_mirror_row *place = &core->vms[index].mirrors[n].d;

        if (image_counts(&core->vms[index], n) && place->node_id == image->node_id) {
            struct mst_mirror_row *row = txn_mirror(core, index, n);

            *row = *place;
            row->counts = false;
        }
    }
}

static void stage_start_failed(struct mst_core *core, struct rec *rec, unsigned i)
{
    struct rvm *rvm = &rec->vms[i];
    struct mst_rvm_row *row = txn_rvm(core, rec, i);
    int index = node_find_id(core, rvm->d.to_node_id);

    if (rvm->err != -ECANCELED)
        row->attempts++;
    if (index >= 0)
        row->tried |= UINT64_C(1) << index;
    text_set(row->text, sizeof(row->text), "start on %s failed: %s %.130s", node_name(core, rvm->d.to_node_id),
             mst_errname(rvm->err), rvm->why);
    if (rvm->err == -EUCLEAN && rvm->refused >= REFUSED_MAX && rvm->vm >= 0) {
        struct mst_vm_row *vm = txn_vm(core, rvm->vm);

        if (vm->save.image)
            stage_image_bad(core, rvm->vm, &vm->save);
        memset(&vm->save, 0, sizeof(vm->save));
    }
    core_log(core, MST_LOG_WARNING, "recovery=%" PRIu64 " vm=%s %s", rec->d.id, rvm->d.vm, row->text);
}

bool rec_resuming(struct mst_core *core, struct rec *rec)
{
    unsigned waiting = 0;
    unsigned good = 0;
    unsigned failed = 0;
    char why[MST_TEXT_BYTES] = "";

    count_moves(core, rec);
    for (unsigned i = 0; i < rec->vms_count; i++) {
        if (!is_pending(rec, i))
            continue;
        if (start_waits(core, rec, i, why, sizeof(why)))
            waiting++;
        else if (rec->vms[i].err == 0)
            good++;
        else
            failed++;
    }
    if (why[0] && !rec->why[0])
        core_log(core, MST_LOG_NOTICE, "recovery=%" PRIu64 " %s", rec->d.id, why);
    text_set(rec->why, sizeof(rec->why), "%s", why);
    if (!txn_free(core) || (good == 0 && waiting > 0))
        return false;
    txn_begin(core);
    if (rec->d.state == MST_REC_COMMITTING)
        txn_move_at(core, rec, rec->resuming.us ? &rec->resuming : &core->now, MST_REC_RESUMING);
    for (unsigned i = 0; i < rec->vms_count; i++) {
        if (is_pending(rec, i) && rec->vms[i].answered && rec->vms[i].err == 0)
            stage_started(core, rec, i);
        else if (waiting == 0 && is_pending(rec, i))
            stage_start_failed(core, rec, i);
    }
    if (waiting == 0 && failed > 0)
        txn_move(core, rec, MST_REC_FENCING, "%u starts failed: their grants are fenced before another try", failed);
    else if (waiting == 0)
        (void)rec_close(core, rec, "");
    txn_submit(core, "%s", "");
    return true;
}

/* --- HELD --- */

static unsigned dry_run(struct mst_core *core, struct rec *rec, enum mst_outcome outcome, unsigned *which)
{
    struct mst_placement placed[MST_VMS_PER_NODE];
    unsigned candidates[MST_VMS_PER_NODE] = {0};
    unsigned count = 0;
    unsigned fit = 0;

    for (unsigned i = 0; i < rec->vms_count; i++) {
        const struct vm *vm = rec->vms[i].vm >= 0 ? &core->vms[rec->vms[i].vm] : NULL;

        if (!vm || rec->vms[i].d.outcome != outcome)
            continue;
        if (rec->vms[i].d.hold != MST_HOLD_NO_ROOM && !(outcome == MST_OUT_RUNS_ON && rec->vms[i].d.hold == MST_HOLD_SAVE))
            continue;
        if (rec->vms[i].d.hold == MST_HOLD_SAVE && core->now_ms - rec->held_ms < SAVE_RETRY_MS)
            continue;
        if (outcome == MST_OUT_RUNS_ON && (vm->rec >= 0 || vm->d.fenced || vm->d.epoch != rec->vms[i].d.epoch_from))
            continue;
        candidates[count++] = i;
    }
    (void)place(core, rec, candidates, count, outcome == MST_OUT_RUNS_ON, placed);
    for (unsigned k = 0; k < count; k++) {
        if (placed[k].node >= 0)
            which[fit++] = candidates[k];
    }
    return fit;
}

/* VMs held for a save that can be had now, or is given up. */
static unsigned saves_back(const struct mst_core *core, const struct rec *rec, unsigned *which)
{
    unsigned count = 0;

    for (unsigned i = 0; i < rec->vms_count; i++) {
        if (rec->vms[i].vm >= 0 && rec->vms[i].d.outcome == MST_OUT_HELD && rec->vms[i].d.hold == MST_HOLD_SAVE &&
            save_is_back(core, rec->vms[i].vm))
            which[count++] = i;
    }
    return count;
}

/* A held recovery of a move is over when nobody is left there, or its node is well again. */
static bool held_is_over(const struct mst_core *core, const struct rec *rec)
{
    int index = node_find_id(core, rec->d.node_id);

    for (unsigned i = 0; i < rec->vms_count; i++) {
        const struct vm *vm = rec->vms[i].vm >= 0 ? &core->vms[rec->vms[i].vm] : NULL;

        if (rec->vms[i].d.outcome == MST_OUT_HELD)
            return false;
        if (vm && stays_for_now(&rec->vms[i].d) && !vm->d.fenced && vm->d.epoch == rec->vms[i].d.epoch_from && index >= 0 &&
            core->nodes[index].instance == rec->d.instance && (core->nodes[index].d.failing || core->nodes[index].d.drained))
            return false;
    }
    return true;
}

bool rec_held(struct mst_core *core, struct rec *rec)
{
    unsigned which[MST_VMS_PER_NODE] = {0};
    enum mst_outcome outcome = MST_OUT_HELD;
    enum mst_rec_state next = MST_REC_PLANNING;
    unsigned fit, back;

    if (!txn_free(core) || core->now_ms - rec->entered_ms < HELD_RETRY_MS)
        return false;
    if (core->view_generation == rec->hold_generation &&
        (rec->d.scope != MST_SCOPE_MOVE || core->now_ms - rec->held_ms < SAVE_RETRY_MS))
        return false;
    if (held_is_over(core, rec)) {
        txn_begin(core);
        txn_move(core, rec, MST_REC_DONE, "nothing is held any more");
        txn_submit(core, "%s", "");
        return true;
    }
    rec->entered_ms = core->now_ms;
    fit = dry_run(core, rec, MST_OUT_HELD, which);
    back = saves_back(core, rec, which + fit);
    fit += back;
    if (back > 0)
        next = MST_REC_READING2;
    if (fit == 0) {
        outcome = MST_OUT_RUNS_ON;
        next = MST_REC_READING;
        fit = rec->d.scope == MST_SCOPE_MOVE ? dry_run(core, rec, MST_OUT_RUNS_ON, which) : 0;
    }
    if (fit == 0) {
        rec->hold_generation = core->view_generation; /* not before: the store may refuse what follows */
        return false;
    }
    txn_begin(core);
    for (unsigned k = 0; k < fit; k++) {
        struct mst_rvm_row *row = txn_rvm(core, rec, which[k]);

        row->outcome = MST_OUT_PENDING;
        row->hold = MST_HOLD_NONE;
        row->tried = 0;
        row->text[0] = 0;
        if (outcome == MST_OUT_HELD)
            txn_vm(core, rec->vms[which[k]].vm)->phase = rec->d.scope == MST_SCOPE_START ? MST_VM_STARTING : MST_VM_RECOVERING;
    }
    txn_move(core, rec, next, back > 0 ? "the saves of %u VMs are back" : "%u VMs have room now", back > 0 ? back : fit);
    txn_submit(core, "recovery=%" PRIu64 " is taken up again", rec->d.id);
    return true;
}
