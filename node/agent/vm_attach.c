#include "node/agent/agent.h"

#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* A VM whose QEMU runs already: an earlier agent started it, or its monitor was lost. What QEMU is doing decides, not what
 * somebody remembers:
 *
 *   panicked                             stays so
 *   stands, and was saved by order       stays so
 *   stands, but should run               the former agent died between stop and cont: end what it did, continue
 *   runs                                 is left to run
 *
 * A save whose RAM is the RAM file itself must be gone, or have become a shadow, before the guest runs on. */

static void attached(struct mst_vm *vm, enum mst_vm_state as)
{
    struct mst_pub_head head;
    struct mst_save_record record;
    struct mst_why why;
    int r = mst_vm_run_begin(vm, as == VM_SAVED, &why);

    if (r < 0) {
        log_error("vm=%s epoch=%" PRIu64 " runs without checkpoints and cannot be saved: %s", vm->definition->name, vm->epoch,
                  why.text);
        mst_fault_vm(vm, MAINSTAY__FAULT_KIND__FAULT_VM_SILENT, "the agent cannot take it up: %s", why.text);
        mst_vm_end(vm);
        return;
    }
    vm->attaching = false;
    mst_vm_move(vm, as);
    log_notice("vm=%s epoch=%" PRIu64 " pid=%d taken up: %s, last checkpoint seq=%" PRIu64, vm->definition->name, vm->epoch,
               (int)vm->pid, vm->panicked ? "panicked" : mst_vm_state_name(as), mst_save_seq(vm->writer));
    if (as == VM_SAVED && mst_pub_read(vm->map->map.record, &head, &record, sizeof(record)) == 0) {
        vm->save_result.seq = record.seq;
        vm->save_result.has_device_bytes = vm->save_result.has_pause_us = 1;
        vm->save_result.device_bytes = record.device_bytes;
        vm->save_result.pause_us = record.pause_ns / 1000;
    }
    if (vm->panicked)
        mst_vm_saw_panic(vm);
    else /* it answers: what the agent before us reported of it, perhaps, is over */
        mst_vm_tell(vm, as == VM_SAVED ? MST_RUN_PAUSED : MST_RUN_RUNNING, true, MAINSTAY__FAULT_KIND__FAULT_NONE);
    if (vm->start_waiters.count > 0)
        mst_vm_answer_started(vm);
    /* Orders that came meanwhile. */
    if (vm->save_waiters.count > 0 && vm->state == VM_SAVED)
        mst_waiters_answer(vm, &vm->save_waiters, 0, NULL, NULL, &vm->save_result);
    else if (vm->save_waiters.count > 0 && vm->state == VM_RUNNING)
        mst_vm_save_now(vm);
    if (vm->continue_waiters.count > 0 && vm->state == VM_SAVED)
        mst_vm_continue_now(vm);
    else if (vm->continue_waiters.count > 0 && vm->state == VM_RUNNING)
        mst_waiters_answer(vm, &vm->continue_waiters, 0, NULL, NULL, NULL);
}

static void attached_running(struct mst_vm *vm)
{
    attached(vm, VM_RUNNING);
}

static void attached_saved(struct mst_vm *vm)
{
    attached(vm, VM_SAVED);
}

static void on_resumed(int err, const struct mst_why *why, void *arg)
{
    struct mst_vm *vm = arg;

    vm->resume = NULL;
    if (err == -ENOTCONN)
        return; /* the monitor's end decides */
    if (err == -ECANCELED) {
        vm->panicked = true;
    } else if (err) {
        mst_vm_run_disconnected(vm, why); /* once more from the start */
        return;
    }
    mst_vm_set_capabilities(vm, attached_running);
}

static void let_run(struct mst_vm *vm)
{
    struct mst_why why;
    int r;

    mst_vm_move(vm, VM_RESUMING);
    r = mst_resume_start(vm->agent->loop, vm->qmp, MST_RESUME_CAREFUL, MST_QMP_SILENT_MS, on_resumed, vm, &vm->resume);
    if (r < 0) {
        mst_why_set(&why, r, "cannot tell QEMU to go on: %s", mst_errname(r));
        mst_vm_run_disconnected(vm, &why);
    }
}

static void mend_work(uv_work_t *work)
{
    struct mst_vm *vm = work->data;

    mst_save_shadow_from_ram(vm->writer);
}

static void mended(struct mst_vm *vm)
{
    if (vm->state == VM_MENDING)
        let_run(vm);
}

static void on_status(struct mst_qmp *qmp, int err, const json_t *ret, const struct mst_why *why, void *arg)
{
    struct mst_vm *vm = arg;
    bool running = json_is_true(json_object_get(ret, "running")), in_ram = mst_save_source(vm->writer) == MST_SAVE_RAM;
    bool saved =
        mst_save_source(vm->writer) != MST_SAVE_NONE; /* otherwise withdrawn: the agent before was about to continue it */
    const char *status = json_string_value(json_object_get(ret, "status"));

    (void)qmp;
    if (err == -ENOTCONN)
        return;
    if (err || !status) {
        mst_vm_run_disconnected(vm, why);
        return;
    }
    if (strcmp(status, "guest-panicked") == 0) {
        vm->panicked = true;
        mst_vm_set_capabilities(vm, attached_running);
        return;
    }
    if (!running && vm->expect_standing && saved) {
        mst_vm_set_capabilities(vm, attached_saved);
        return;
    }
    log_notice("vm=%s epoch=%" PRIu64 " pid=%d found %s%s", vm->definition->name, vm->epoch, (int)vm->pid, status,
               running ? "" : ": the agent before died between stop and cont, it is continued");
    if (in_ram && !running && vm->map->map.shadow) {
        mst_vm_move(vm, VM_MENDING);
        mst_vm_work(vm, mend_work, mended);
        return;
    }
    if (in_ram)
        mst_save_withdraw(vm->writer);
    let_run(vm);
}

void mst_vm_attach_connected(struct mst_vm *vm)
{
    struct mst_why why;
    int r = mst_qmp_execute(vm->qmp, "query-status", NULL, -1, MST_QMP_SILENT_MS, on_status, vm);

    if (r < 0) {
        mst_why_set(&why, r, "cannot ask QEMU how the guest is: %s", mst_errname(r));
        mst_vm_run_disconnected(vm, &why);
    }
}

static void mapped(struct mst_vm *vm)
{
    if (vm->state != VM_MAPPING)
        return;
    if (vm->work_err < 0) {
        log_error("vm=%s epoch=%" PRIu64 " pid=%d cannot be taken up: %s", vm->definition->name, vm->epoch, (int)vm->pid,
                  vm->work_why.text);
        mst_fault_vm(vm, MAINSTAY__FAULT_KIND__FAULT_VM_SILENT, "the agent cannot take it up: %s", vm->work_why.text);
        mst_vm_end(vm);
        return;
    }
    mst_vm_move(vm, VM_CONNECTING);
    mst_vm_connect(vm, MST_QMP_SILENT_MS, 0);
}

void mst_vm_attach(struct mst_agent *agent, const Mainstay__AgentVm *left)
{
    struct mst_vm *vm;
    bool runs = (left->run_state == MST_RUN_RUNNING || left->run_state == MST_RUN_PAUSED) && left->has_qemu_pid &&
                left->qemu_pid > 0 && left->areas;
    int r;

    if (!runs && left->run_state != MST_RUN_STARTING)
        return; /* dead or fenced: what it saved is the keeper's */
    r = mst_vm_new(agent, left->definition, left->epoch, &vm);
    if (r == 0 && runs)
        r = mst_vm_set_areas(vm, left->areas);
    if (r < 0) {
        log_error("vm=%s epoch=%" PRIu64 " cannot be taken up: %s", left->definition->name, left->epoch, mst_errname(r));
        return;
    }
    if (!runs)
        return; /* VM_ORPHAN: the keeper sends the order again */
    vm->pid = left->qemu_pid;
    mst_patience_begin(&vm->patience, vm->pid);
    vm->attaching = true;
    vm->expect_standing = left->run_state == MST_RUN_PAUSED;
    vm->state = VM_MAPPING;
    mst_vm_map(vm, mapped);
}
