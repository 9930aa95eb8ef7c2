#include "node/agent/agent.h"

#include "base/log.h"

#include <errno.h>
#include <inttypes.h>

/* Shadow and delta of a VM that is started with what its guest needs to run: making them takes as long as making its RAM, and only its first
 * checkpoint needs them. So they are asked for when that is due, which is when the guest runs. */

static void failed(struct mst_vm *vm, int err, const struct mst_why *why)
{
    if (vm->state != VM_RUNNING)
        return; /* whatever ends that has the next checkpoint begun, and that asks again */
    log_warning("vm=%s epoch=%" PRIu64 " no checkpoints yet, as their areas are not there: %s", vm->definition->name, vm->epoch,
                why->text[0] ? why->text : mst_errname(err));
    mst_vm_trouble(vm, MST_SAVE_TROUBLE_FAILED, "its areas are not there: %s", why->text[0] ? why->text : mst_errname(err));
    mst_vm_checkpoint_in(vm, MST_CKPT_AFTER_FAILURE_MS);
}

static void on_made(int err, const mst_envelope *reply, const struct mst_why *why, void *arg)
{
    struct mst_vm *vm = arg;
    struct mst_why here = {""};

    vm->rest_waits = false;
    if (!err && reply->body_case != MAINSTAY__ENVELOPE__BODY_AREAS_CREATED)
        err = mst_why_set(&here, -EPROTO, "the keeper answered with another message");
    else if (!err)
        err = mst_vm_set_areas(vm, reply->areas_created->areas);
    if (err)
        failed(vm, err, here.text[0] ? &here : why);
    else if (vm->state == VM_RUNNING)
        mst_vm_checkpoint_in(vm, 0);
}

static int ask(struct mst_vm *vm)
{
    Mainstay__AreasCreate body = MAINSTAY__AREAS_CREATE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    int r;

    if (vm->rest_waits)
        return 0;
    body.definition = vm->definition;
    body.epoch = vm->epoch;
    body.has_part = 1;
    body.part = MAINSTAY__AREAS_PART__AREAS_REST;
    env.body_case = MAINSTAY__ENVELOPE__BODY_AREAS_CREATE;
    env.areas_create = &body;
    r = mst_port_request(vm->agent->port, &env, on_made, vm);
    vm->rest_waits = r == 0;
    return r;
}

bool mst_vm_rest(struct mst_vm *vm)
{
    struct mst_why why = {""};
    bool mapped = vm->map->map.shadow != NULL;
    int r;

    if (mapped && mst_save_is_whole(vm->writer))
        return true;
    if (!mapped && !vm->areas_named->shadow) {
        r = ask(vm);
    } else {
        r = mapped ? 0 : mst_vmmap_rest(&vm->agent->status, vm->areas_named, vm->definition, vm->map, &why);
        if (r == 0)
            r = mst_save_writer_rest(vm->writer, &vm->map->map);
        if (r == 0)
            return true;
    }
    if (r < 0)
        failed(vm, r, &why);
    return false;
}
