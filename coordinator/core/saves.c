#include "coordinator/core/internal.h"

#include "base/mutant.h"

#include <string.h>

/* Which save of a VM is the newest, and whether it can be had. Absence is not loss: a save is gone when its node is proved dead, or is here and
 * has none; otherwise it is away and may come back. */

bool memory_gone(const struct node *node)
{
    return node->link == 0 && node_proved_dead(node);
}

enum save_fate save_fate(const struct mst_core *core, const char *vm, const struct mst_save_ref *save)
{
    int index = save->node_id ? node_find_id(core, save->node_id) : -1;
    const struct held *held;

    if (index < 0 || memory_gone(&core->nodes[index]))
        return SAVE_GONE;
    if (core->nodes[index].link == 0)
        return SAVE_AWAY;
    held = held_find((struct node *)&core->nodes[index], vm, save->epoch);
    if (save->image && held && held->s.image_state != MST_SLOT_IMAGE_VERIFIED && held->s.image_state != MST_SLOT_IMAGE_USED)
        return SAVE_AWAY; /* its keeper started anew: it has to be verified again */
    if (save->image)
        return held ? SAVE_THERE : SAVE_GONE;
    return held && held->s.save_seq > 0 && !held->s.save_corrupt ? SAVE_THERE : SAVE_GONE;
}

/* Its link is up and its main storage cannot be read, as when its power went and nobody has spoken since. Without a mirror a pull may still try. */
static bool unreadable_and_mirrored(const struct mst_core *core, const struct node *node, const struct vm *vm)
{
    bool counts = false;

    for (unsigned n = 0; n < MST_MIRRORS_MAX; n++)
        counts = counts || (image_counts(vm, n) && vm->mirrors[n].d.epoch == vm->d.epoch);
    return counts && mst_detect_keeper(&node->detect, core->conf.keeper_silent_ms) == MST_LIFE_UNREADABLE;
}

enum save_fate own_save(const struct mst_core *core, const struct vm *vm, bool seen, struct mst_save_ref *ret)
{
    int index = vm->d.node_id ? node_find_id(core, vm->d.node_id) : -1;
    const struct node *node = index >= 0 ? &core->nodes[index] : NULL;
    const struct held *held;

    if (!node || vm->d.proof_kind >= MST_PROOF_POWER || memory_gone(node))
        return SAVE_GONE;
    ret->node_id = vm->d.node_id;
    ret->instance = node->instance;
    ret->epoch = vm->d.epoch;
    if (node->link == 0 || unreadable_and_mirrored(core, node, vm))
        return SAVE_AWAY;
    held = held_find((struct node *)node, vm->d.name, vm->d.epoch);
    if (held && held->s.run_state != MST_RUN_IMAGE && held->s.save_seq > 0 && !held->s.save_corrupt &&
        held->s.save_epoch == vm->d.epoch) {
        ret->seq = held->s.save_seq;
        return SAVE_THERE;
    }
    /* A keeper that came after the grant said in its Hello what it found; that does not change any more. */
    return seen || vm->d.instance != node->instance || MST_MUTANT(11) ? SAVE_GONE : SAVE_AWAY;
}

/* Of two the one to take: the newer, by epoch and then by number. One that is away is waited for unless the other is of a later epoch, or of the same and
 * there has been waiting enough: what counts in an image has all that was ever let out. */
static enum save_fate better_save(enum save_fate a, struct mst_save_ref *ret, enum save_fate b, const struct mst_save_ref *other,
                                  bool late)
{
    bool newer = other->epoch > ret->epoch || (other->epoch == ret->epoch && other->seq > ret->seq);
    bool take;

    if (a == SAVE_GONE || b == SAVE_GONE)
        take = a == SAVE_GONE;
    else if (a == b || other->epoch != ret->epoch)
        take = newer;
    else
        take = (b == SAVE_THERE) == late;
    if (!take)
        return a;
    *ret = *other;
    return b;
}

/* The row has room for one save. When that is an image, what the VM itself left where it ran last may be there as well: nothing has run since, and what
 * became of the image says nothing about it. */
static enum save_fate origin_fate(const struct mst_core *core, const struct vm *vm, const struct mst_save_ref *from,
                                  struct mst_save_ref *ret)
{
    int index = from->node_id ? node_find_id(core, from->node_id) : -1;
    enum save_fate fate = index >= 0 ? save_fate(core, vm->d.name, from) : SAVE_GONE;
    const struct held *held = fate == SAVE_THERE ? held_find((struct node *)&core->nodes[index], vm->d.name, from->epoch) : NULL;

    if (from->epoch >= vm->d.epoch || from->epoch < images_epoch(vm) || from->epoch < vm->d.image_floor)
        return SAVE_GONE;
    if (held && held->s.run_state == MST_RUN_IMAGE)
        return SAVE_GONE;
    *ret = *from;
    ret->instance = held ? core->nodes[index].instance : 0;
    ret->seq = held ? held->s.save_seq : 0;
    return fate;
}

enum save_fate newest_save(const struct mst_core *core, int index, const struct save_look *look, struct mst_save_ref *ret)
{
    const struct vm *vm = &core->vms[index];
    struct mst_save_ref other = {0};
    enum save_fate fate, others;

    memset(ret, 0, sizeof(*ret));
    fate = own_save(core, vm, look->seen, ret);
    if (MST_MUTANT(12) && save_fate(core, vm->d.name, &vm->d.save) == SAVE_THERE) {
        *ret = vm->d.save;
        return SAVE_THERE;
    }
    if (fate == SAVE_THERE) /* no mirror was ever given more */
        return fate;
    if (fate == SAVE_GONE)
        memset(ret, 0, sizeof(*ret));
    if (vm->own_save_epoch != vm->d.epoch || images_epoch(vm) == vm->d.epoch) {
        others = images_newest(core, index, look->images, &other);
        fate = better_save(fate, ret, others, &other, look->late);
    }
    /* What it was itself resumed from is too old when it had a save of its own, or anybody counted. */
    if (fate == SAVE_GONE || ret->epoch < vm->d.epoch) {
        others = SAVE_GONE;
        other = vm->d.save;
        if (vm->own_save_epoch != vm->d.epoch && images_epoch(vm) != vm->d.epoch)
            others = vm->d.save.image ? origin_fate(core, vm, &look->from, &other) : save_fate(core, vm->d.name, &vm->d.save);
        fate = better_save(fate, ret, others, &other, look->late);
    }
    if (fate == SAVE_GONE)
        memset(ret, 0, sizeof(*ret));
    return fate;
}

bool save_is_back(const struct mst_core *core, int index)
{
    int node = node_find_id(core, core->vms[index].d.node_id);
    struct save_look look = {.seen = node >= 0 && core->nodes[node].link != 0 && core->nodes[node].read_err == 0, .late = true};
    struct mst_save_ref save;

    return newest_save(core, index, &look, &save) != SAVE_AWAY;
}

bool same_save(const struct mst_save_ref *a, const struct mst_save_ref *b)
{
    return a->node_id == b->node_id && a->instance == b->instance && a->epoch == b->epoch && a->seq == b->seq &&
           a->image == b->image;
}

void note_own_saves(struct mst_core *core, unsigned index)
{
    const struct node *node = &core->nodes[index];

    for (unsigned i = 0; i < node->held_count; i++) {
        const struct mst_slot *s = &node->held[i].s;
        int vm = vm_find(core, s->vm);

        if (vm >= 0 && s->run_state != MST_RUN_IMAGE && s->save_seq > 0 && !s->save_corrupt && s->save_epoch == s->epoch &&
            s->epoch == core->vms[vm].d.epoch)
            core->vms[vm].own_save_epoch = s->epoch;
    }
}

/* The save a VM was resumed from, and images of earlier epochs: kept until it has one of its own or a mirror counts, or it has run on for a while. */
static bool old_save_needed(const struct mst_core *core, const struct vm *vm)
{
    if (vm->def.protect == MST_PROTECT_NONE || vm->own_save_epoch == vm->d.epoch || images_epoch(vm) == vm->d.epoch)
        return false;
    return core->now_ms - vm->running_ms < OLD_SAVE_KEPT_MS;
}

static bool has_old_save(const struct vm *vm)
{
    uint64_t epoch = images_epoch(vm);

    return vm->d.save.node_id != 0 || (epoch != 0 && epoch < vm->d.epoch && epoch >= vm->d.image_floor);
}

bool old_saves_step(struct mst_core *core)
{
    unsigned count = 0;

    for (unsigned i = 0; i < core->vms_end && count < MST_VMS_PER_NODE; i++) {
        const struct vm *vm = &core->vms[i];

        if (!vm->used || vm->rec >= 0 || vm->d.fenced || vm->d.phase != MST_VM_RUNNING || !has_old_save(vm) ||
            old_save_needed(core, vm))
            continue;
        if (count++ == 0)
            txn_begin(core);
        memset(&txn_vm(core, (int)i)->save, 0, sizeof(struct mst_save_ref));
        txn_vm(core, (int)i)->image_floor = vm->d.epoch;
    }
    if (count > 0)
        txn_submit(core, "%s", "");
    return count > 0;
}
