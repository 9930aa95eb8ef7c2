#include "coordinator/core/internal.h"

#include "base/mutant.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* What mirrors have of a VM that was stopped. Rows say whose image may be resumed from: of those that count, under the newest epoch for which anybody ever
 * counted, and not below the floor. Its keeper closes the log and checks every byte before it says what it holds (OrderMirrorRevoke); nothing else is
 * believed. Absence is not loss here either. */

uint64_t images_epoch(const struct vm *vm)
{
    uint64_t epoch = 0;

    for (unsigned n = 0; n < MST_MIRRORS_MAX; n++) {
        if (vm->mirrors[n].d.node_id != 0)
            epoch = MST_MUTANT(94) && epoch != 0 ? MIN_OF(epoch, vm->mirrors[n].d.epoch) : MAX_OF(epoch, vm->mirrors[n].d.epoch);
    }
    return epoch;
}

bool image_counts(const struct vm *vm, unsigned n)
{
    const struct mst_mirror_row *row = &vm->mirrors[n].d;

    return row->node_id != 0 && (row->counts || MST_MUTANT(90)) && row->epoch == images_epoch(vm) &&
           row->epoch >= vm->d.image_floor;
}

static bool says_gone(int err)
{
    return err == -ENOENT || err == -ENODATA || err == -EBADMSG;
}

static enum save_fate image_fate(const struct mst_core *core, const struct mst_mirror_row *row, const struct image_look *look,
                                 struct mst_save_ref *ret)
{
    int index = node_find_id(core, row->node_id);
    const struct node *node = index >= 0 ? &core->nodes[index] : NULL;

    *ret = (struct mst_save_ref){.node_id = row->node_id, .epoch = row->epoch, .image = true};
    if (!node || memory_gone(node))
        return SAVE_GONE;
    if (node->link == 0)
        return MST_MUTANT(97) ? SAVE_GONE : SAVE_AWAY;
    ret->instance = node->instance;
    if (!look)
        return SAVE_THERE;
    if (!look->answered || look->instance != node->instance)
        return SAVE_AWAY;
    ret->seq = look->seq;
    return look->err == 0 ? SAVE_THERE : says_gone(look->err) ? SAVE_GONE : SAVE_AWAY;
}

enum save_fate images_newest(const struct mst_core *core, int index, const struct image_look *looks, struct mst_save_ref *ret)
{
    const struct vm *vm = &core->vms[index];
    enum save_fate best = SAVE_GONE;

    memset(ret, 0, sizeof(*ret));
    for (unsigned n = 0; n < MST_MIRRORS_MAX; n++) {
        struct mst_save_ref one = {0};
        enum save_fate fate =
            image_counts(vm, n) ? image_fate(core, &vm->mirrors[n].d, looks ? &looks[n] : NULL, &one) : SAVE_GONE;

        /* Each that counts has all that was ever let out: one is enough, whoever else is away. */
        if (fate == SAVE_GONE || fate < best || (fate == best && one.seq <= ret->seq && ret->node_id != 0))
            continue;
        best = fate;
        *ret = one;
    }
    return best;
}

void images_ask(struct mst_core *core, const struct rec *rec, struct rvm *rvm, bool late)
{
    const struct vm *vm = &core->vms[rvm->vm];

    for (unsigned n = 0; vm->d.fenced && !txn_moves(core, rec) && n < MST_MIRRORS_MAX; n++) {
        struct image_look *look = &rvm->images[n];
        int index = image_counts(vm, n) ? node_find_id(core, vm->mirrors[n].d.node_id) : -1;
        struct mst_order order = {.type = MST_ORDER_MIRROR_REVOKE, .vm = vm->d.name, .epoch = vm->mirrors[n].d.epoch};
        const struct held *held;

        if (index < 0 || core->nodes[index].link == 0 || look->order != 0 || core->now_ms < look->retry_ms)
            continue;
        if (look->answered && look->instance == core->nodes[index].instance && (look->err == 0 || says_gone(look->err) || late))
            continue;
        held = MST_MUTANT(93) ? held_find(&core->nodes[index], vm->d.name, order.epoch) : NULL;
        if (held) {
            *look = (struct image_look){.answered = true, .instance = core->nodes[index].instance, .seq = held->s.save_seq};
            continue;
        }
        order.node = (unsigned)index;
        look->order = order_send(core, &order, rec->d.id, ORDER_DEADLINE_MS + vm->def.memory_mib * MST_PULL_MS_PER_MIB);
        look->retry_ms = core->now_ms + MIRROR_RETRY_MIN_MS;
    }
}

bool images_asked(const struct rvm *rvm)
{
    for (unsigned n = 0; n < MST_MIRRORS_MAX; n++) {
        if (rvm->images[n].order != 0)
            return true;
    }
    return false;
}

/* Its slot will say the same when it is read the next time. */
static void note_verified(struct node *node, const char *vm, uint64_t epoch)
{
    struct held *held = held_find(node, vm, epoch);

    if (!held && node->held_count < MST_VMS_PER_NODE) {
        held = &node->held[node->held_count++];
        memset(held, 0, sizeof(*held));
        text_set(held->s.vm, sizeof(held->s.vm), "%s", vm);
        held->s.epoch = epoch;
        held->s.run_state = MST_RUN_IMAGE;
    }
    if (held)
        held->s.image_state = MST_SLOT_IMAGE_VERIFIED;
}

static void take_answer(struct mst_core *core, const struct pending *order, const struct mst_answer *answer,
                        struct image_look *look)
{
    struct node *node = &core->nodes[order->node];
    bool odd = answer->err == 0 && (!answer->has_image || answer->image_instance != order->instance ||
                                    answer->image_epoch != order->epoch || answer->image_seq == 0);

    look->order = 0;
    if (answer->err == -ECONNRESET)
        return; /* asked again when its keeper calls again */
    look->answered = true;
    look->err = odd ? -EPROTO : answer->err;
    look->instance = order->instance;
    look->seq = answer->image_seq;
    if (look->err == 0) {
        note_verified(node, order->vm, order->epoch);
        core_log(core, MST_LOG_NOTICE,
                 "vm=%s epoch=%" PRIu64 " image on %s is whole: seq %" PRIu64 ", verified in %" PRIu64 " us", order->vm,
                 order->epoch, node->conf.name, look->seq, answer->image_verify_us);
    } else {
        core_log(core, MST_LOG_ERROR, "vm=%s epoch=%" PRIu64 " image on %s cannot be used: %s %s", order->vm, order->epoch,
                 node->conf.name, mst_errname(look->err), odd ? "its answer is of something else" : answer->text);
    }
}

void revoke_answered(struct mst_core *core, const struct pending *order, const struct mst_answer *answer)
{
    struct rec *rec = rec_by_id(core, order->recovery_id);

    for (unsigned i = 0; rec && i < rec->vms_count; i++) {
        for (unsigned n = 0; n < MST_MIRRORS_MAX; n++) {
            if (rec->vms[i].images[n].order == order->token)
                take_answer(core, order, answer, &rec->vms[i].images[n]);
        }
    }
}

bool image_answered(const struct rvm *rvm, const struct vm *vm, const struct mst_save_ref *save)
{
    for (unsigned n = 0; save->image && n < MST_MIRRORS_MAX; n++) {
        const struct image_look *look = &rvm->images[n];

        if (look->answered && look->err == 0 && image_counts(vm, n) && vm->mirrors[n].d.node_id == save->node_id &&
            vm->mirrors[n].d.epoch == save->epoch && look->instance == save->instance && look->seq == save->seq)
            return true;
    }
    return false;
}

bool image_needed(const struct mst_core *core, const struct node *node, const struct vm *vm, const struct mst_slot *slot)
{
    int source = node_find_id(core, vm->d.node_id);

    if (vm->rec >= 0 || slot->epoch > vm->d.epoch)
        return true;
    if (vm->d.save.image && vm->d.save.node_id == node->conf.id && vm->d.save.epoch == slot->epoch)
        return true;
    for (unsigned n = 0; n < MST_MIRRORS_MAX; n++) {
        const struct mirror *m = &vm->mirrors[n];

        if (mirror_active(m) && m->node_id == node->conf.id && m->epoch == slot->epoch &&
            (m->log_id == 0 || slot->log_id == 0 || m->log_id == slot->log_id))
            return true;
        if (vm->d.wanted && !MST_MUTANT(96) && image_counts(vm, n) && m->d.node_id == node->conf.id && m->d.epoch == slot->epoch)
            return true;
    }
    /* Our own start: its source has not told yet what it is. */
    return slot->epoch == vm->d.epoch && !vm->d.fenced && source >= 0 && !core->nodes[source].joined &&
           core->now_ms - core->started_ms < core->conf.keeper_return_ms;
}

uint64_t images_held_epoch(const struct mst_core *core, const char *vm)
{
    uint64_t epoch = 0;

    for (unsigned i = 0; i < core->nodes_count; i++) {
        const struct node *node = &core->nodes[i];

        for (unsigned k = 0; k < node->held_count; k++) {
            if (node->held[k].s.run_state == MST_RUN_IMAGE && strcmp(node->held[k].s.vm, vm) == 0)
                epoch = MAX_OF(epoch, node->held[k].s.epoch);
        }
    }
    return epoch;
}

void images_loss(const struct mst_core *core, const struct vm *vm, char *text, size_t size)
{
    const struct mirror *last = NULL;

    for (unsigned n = 0; n < MST_MIRRORS_MAX; n++) {
        const struct mirror *m = &vm->mirrors[n];

        if (m->d.node_id != 0 && m->d.epoch == images_epoch(vm) && (!last || m->d.counts))
            last = m;
    }
    text[0] = 0;
    if (vm->def.protect != MST_PROTECT_MIRROR)
        return;
    if (!last || last->d.epoch < vm->d.image_floor)
        text_set(text, size, ", and no mirror had it");
    else if (!last->d.counts)
        text_set(text, size, ", and it was exposed: its mirror on %s had left", node_name(core, last->d.node_id));
    else
        text_set(text, size, ", and its mirror on %s is lost too", node_name(core, last->d.node_id));
}
