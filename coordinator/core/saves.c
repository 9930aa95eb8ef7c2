#include "coordinator/core/internal.h"

#include "base/mutant.h"

#include <string.h>

/* Which save of a VM is the newest, and whether it can be had. Absence is not loss: a save is gone when its node is proved dead, or is here and
 * has none; otherwise it is away and may come back. */

bool memory_gone(const struct node *node)
{
    return node->link == 0 && node->d.fenced_instance != 0 && node->d.fenced_instance == node->instance;
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
    return held && held->s.save_seq > 0 && !held->s.save_corrupt ? SAVE_THERE : SAVE_GONE;
}

/* What the newest grant, which is fenced, left. */
static enum save_fate own_save(const struct mst_core *core, const struct vm *vm, bool seen, struct mst_save_ref *ret)
{
    int index = vm->d.node_id ? node_find_id(core, vm->d.node_id) : -1;
    const struct node *node = index >= 0 ? &core->nodes[index] : NULL;
    const struct held *held;

    if (!node || vm->d.proof_kind >= MST_PROOF_POWER || memory_gone(node))
        return SAVE_GONE;
    ret->node_id = vm->d.node_id;
    ret->instance = node->instance;
    ret->epoch = vm->d.epoch;
    if (node->link == 0)
        return SAVE_AWAY;
    held = held_find((struct node *)node, vm->d.name, vm->d.epoch);
    if (held && held->s.save_seq > 0 && !held->s.save_corrupt && held->s.save_epoch == vm->d.epoch) {
        ret->seq = held->s.save_seq;
        return SAVE_THERE;
    }
    /* A keeper that came after the grant said in its Hello what it found; that does not change any more. */
    return seen || vm->d.instance != node->instance || MST_MUTANT(11) ? SAVE_GONE : SAVE_AWAY;
}

enum save_fate newest_save(const struct mst_core *core, int index, bool seen, struct mst_save_ref *ret)
{
    const struct vm *vm = &core->vms[index];
    enum save_fate fate;

    memset(ret, 0, sizeof(*ret));
    fate = own_save(core, vm, seen, ret);
    if (MST_MUTANT(12) && save_fate(core, vm->d.name, &vm->d.save) == SAVE_THERE) {
        *ret = vm->d.save;
        return SAVE_THERE;
    }
    if (fate != SAVE_GONE)
        return fate;
    memset(ret, 0, sizeof(*ret));
    if (vm->own_save_epoch == vm->d.epoch) /* it had one of its own: the one it was resumed from is too old */
        return SAVE_GONE;
    fate = save_fate(core, vm->d.name, &vm->d.save);
    if (fate != SAVE_GONE)
        *ret = vm->d.save;
    return fate;
}

bool save_is_back(const struct mst_core *core, int index)
{
    int node = node_find_id(core, core->vms[index].d.node_id);
    struct mst_save_ref save;

    return newest_save(core, index, node >= 0 && core->nodes[node].link != 0 && core->nodes[node].read_err == 0, &save) !=
           SAVE_AWAY;
}

bool same_save(const struct mst_save_ref *a, const struct mst_save_ref *b)
{
    return a->node_id == b->node_id && a->instance == b->instance && a->epoch == b->epoch && a->seq == b->seq;
}

void note_own_saves(struct mst_core *core, unsigned index)
{
    const struct node *node = &core->nodes[index];

    for (unsigned i = 0; i < node->held_count; i++) {
        const struct mst_slot *s = &node->held[i].s;
        int vm = vm_find(core, s->vm);

        if (vm >= 0 && s->save_seq > 0 && !s->save_corrupt && s->save_epoch == s->epoch && s->epoch == core->vms[vm].d.epoch)
            core->vms[vm].own_save_epoch = s->epoch;
    }
}

/* The save a VM was resumed from: kept until it has one of its own, or has run on for a while. */
static bool old_save_needed(const struct mst_core *core, const struct vm *vm)
{
    if (vm->def.protect == MST_PROTECT_NONE || vm->own_save_epoch == vm->d.epoch)
        return false;
    return core->now_ms - vm->running_ms < OLD_SAVE_KEPT_MS;
}

bool old_saves_step(struct mst_core *core)
{
    unsigned count = 0;

    for (unsigned i = 0; i < core->vms_end && count < MST_VMS_PER_NODE; i++) {
        const struct vm *vm = &core->vms[i];

        if (!vm->used || vm->rec >= 0 || vm->d.fenced || vm->d.phase != MST_VM_RUNNING || vm->d.save.node_id == 0 ||
            old_save_needed(core, vm))
            continue;
        if (count++ == 0)
            txn_begin(core);
        memset(&txn_vm(core, (int)i)->save, 0, sizeof(struct mst_save_ref));
    }
    if (count > 0)
        txn_submit(core, "%s", "");
    return count > 0;
}
