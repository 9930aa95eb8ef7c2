#include "node/agent/agent.h"

#include "base/log.h"
#include "conf/conf.h"
#include "proto/frame.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* OrderStart: which are obeyed, and what an earlier agent left of one. */

/* --- what an earlier agent left in the middle of a start --- */

static void on_cleaned(int err, const mst_envelope *reply, const struct mst_why *why, void *arg)
{
    struct mst_vm *vm = arg;

    (void)reply;
    if (vm->state != VM_CLEANING)
        return;
    if (err)
        mst_vm_start_fail(vm, err, why);
    else
        mst_vm_create(vm);
}

static void on_clean_killed(int err, const mst_envelope *reply, const struct mst_why *why, void *arg)
{
    struct mst_vm *vm = arg;
    struct mst_why here;
    int r;

    (void)reply;
    if (vm->state != VM_CLEANING)
        return;
    if (err) {
        mst_vm_start_fail(vm, err, why);
        return;
    }
    r = mst_vm_ask_drop(vm, on_cleaned);
    if (r < 0) {
        mst_why_set(&here, r, "cannot ask the keeper: %s", mst_errname(r));
        mst_vm_start_fail(vm, r, &here);
    }
}

static void clean(struct mst_vm *vm)
{
    struct mst_why why;
    int r;

    log_notice("vm=%s epoch=%" PRIu64 " an earlier agent left this start unfinished: beginning anew", vm->definition->name,
               vm->epoch);
    mst_vm_move(vm, VM_CLEANING);
    r = mst_vm_ask_kill(vm, on_clean_killed);
    if (r < 0) {
        mst_why_set(&why, r, "cannot ask the keeper: %s", mst_errname(r));
        mst_vm_start_fail(vm, r, &why);
    }
}

/* --- the order --- */

/* Another epoch of the VM that stands in the way; NULL: none. */
static const struct mst_vm *other_epoch(const struct mst_agent *agent, const char *name, uint64_t epoch)
{
    for (const struct mst_vm *vm = agent->vms; vm; vm = vm->next)
        if (vm->epoch != epoch && vm->state != VM_ENDING && vm->state != VM_ORPHAN && strcmp(vm->definition->name, name) == 0)
            return vm;
    return NULL;
}

static int accept_order(struct mst_agent *agent, const Mainstay__OrderStart *order, struct mst_vm **ret_vm, struct mst_why *why)
{
    const char *name = order->definition->name;
    const struct mst_vm *other;
    struct mst_vm *vm;
    int r = mst_vm_definition_check(order->definition, why);

    if (r < 0)
        return r;
    other = other_epoch(agent, name, order->epoch);
    if (other && other->epoch > order->epoch)
        return mst_why_set(why, -ESTALE, "VM %s: epoch %" PRIu64 " is ordered, but %" PRIu64 " is here already", name,
                           order->epoch, other->epoch);
    if (other)
        return mst_why_set(why, -EEXIST,
                           "VM %s: epoch %" PRIu64 " is still %s here; it has to be fenced before %" PRIu64 " may start", name,
                           other->epoch, mst_vm_state_name(other->state), order->epoch);
    vm = mst_vm_find(agent, name, order->epoch);
    if (!vm) {
        r = mst_vm_new(agent, order->definition, order->epoch, &vm);
        if (r < 0)
            return mst_why_set(why, r, "no memory for VM %s", name);
        vm->state = VM_CREATING;
    }
    if (!vm->order) {
        vm->order = mst_message_copy(&order->base);
        if (!vm->order) {
            if (vm->state == VM_CREATING)
                mst_vm_end(vm);
            return mst_why_set(why, -ENOMEM, "no memory for the order");
        }
    }
    *ret_vm = vm;
    return 0;
}

/* The agent before us had started it and died before it could say how: what can be told from outside. */
static void guess_start(struct mst_vm *vm)
{
    const Mainstay__SaveSource *source = vm->order->source;

    if (!source)
        vm->start.method = MAINSTAY__METHOD__METHOD_BOOTED;
    else if (strcmp(source->node, vm->agent->node) == 0)
        vm->start.method = MAINSTAY__METHOD__METHOD_RESUMED_IN_PLACE;
    else
        vm->start.method = vm->definition->protect != MAINSTAY__PROTECT__PROTECT_NONE ? MAINSTAY__METHOD__METHOD_PULLED_SHADOW
                                                                                      : MAINSTAY__METHOD__METHOD_PULLED_LIVE;
    if (source) {
        vm->start.has_save_epoch = 1;
        vm->start.save_epoch = source->epoch;
    }
}

void mst_vm_answer_started(struct mst_vm *vm)
{
    if (!vm->started)
        guess_start(vm);
    vm->started = true;
    mst_waiters_answer(vm, &vm->start_waiters, 0, &vm->disk_why, &vm->start, NULL);
}

void mst_vm_order_start(struct mst_agent *agent, const mst_envelope *env)
{
    const Mainstay__OrderStart *order = env->order_start;
    struct mst_why why = {""};
    struct mst_vm *vm;
    bool known = mst_vm_find(agent, order->definition->name, order->epoch) != NULL;
    int r = accept_order(agent, order, &vm, &why);

    if (r < 0) {
        log_notice("vm=%s epoch=%" PRIu64 " order to start refused: %s", order->definition->name, order->epoch, why.text);
        mst_port_done(agent->port, env->id, r, &why, NULL, NULL);
        return;
    }
    mst_waiters_add(&vm->start_waiters, env->id);
    if (!known) {
        log_notice("vm=%s epoch=%" PRIu64 " order to start%s%s", vm->definition->name, vm->epoch,
                   order->source ? " from the save at " : "", order->source ? order->source->node : "");
        mst_vm_create(vm);
    } else if (vm->state == VM_ORPHAN) {
        clean(vm);
    } else if (vm->state >= VM_RUNNING && vm->state != VM_FAILING) {
        mst_vm_answer_started(vm);
    } /* otherwise it is under way and this one gets the same answer */
}
