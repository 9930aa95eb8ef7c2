#include "node/agent/agent.h"

#include "base/event.h"
#include "base/log.h"
#include "conf/conf.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

/* A checkpoint that does not come about is told: in the log, as an event, and in the save record, where the coordinator finds it and shows it
 * beside the VM. So is the end of that. */

static const char *const names[] = {
    [MST_SAVE_TROUBLE_NONE] = "none",       [MST_SAVE_TROUBLE_FAILED] = "failed", [MST_SAVE_TROUBLE_SILENT] = "silent",
    [MST_SAVE_TROUBLE_STOPPED] = "stopped", [MST_SAVE_TROUBLE_LATE] = "late",     [MST_SAVE_TROUBLE_MIRROR] = "mirror",
    [MST_SAVE_TROUBLE_WHOLE] = "whole"};

bool mst_vm_is_protected(const struct mst_vm *vm)
{
    return vm->definition->protect != MAINSTAY__PROTECT__PROTECT_NONE;
}

/* How old the last good checkpoint is, or, without one, since when there could be one. */
static uint64_t age_ns(const struct mst_vm *vm)
{
    return mst_now_ns() - (vm->good_ns != 0 ? vm->good_ns : vm->runs_ns);
}

static void note(struct mst_vm *vm, enum mst_save_trouble trouble)
{
    vm->note.trouble = trouble;
    vm->note.trouble_wall_ms = trouble == MST_SAVE_TROUBLE_NONE ? 0 : mst_wall_ms();
    if (vm->ckpt)
        mst_ckpt_note(vm->ckpt, &vm->note, true);
}

void mst_vm_trouble(struct mst_vm *vm, enum mst_save_trouble trouble, const char *text, ...)
{
    struct mst_why why;
    va_list args;

    if (!mst_vm_is_protected(vm) || vm->note.trouble == trouble)
        return;
    va_start(args, text);
    vsnprintf(why.text, sizeof(why.text), text, args);
    va_end(args);
    if (vm->note.trouble == MST_SAVE_TROUBLE_NONE)
        vm->trouble_ns = mst_now_ns();
    log_warning("vm=%s epoch=%" PRIu64 " checkpoint in trouble (%s): %s; the last good one is seq=%" PRIu64 ", %" PRIu64
                " ms old",
                vm->definition->name, vm->epoch, names[trouble], why.text, vm->good_seq, age_ns(vm) / MST_NS_PER_MS);
    mst_event(&(struct mst_event){.kind = MST_EV_CHECKPOINT_TROUBLE,
                                  .vm = vm->definition->name,
                                  .epoch = vm->epoch,
                                  .seq = vm->good_seq,
                                  .duration_us = age_ns(vm) / 1000,
                                  .what = names[trouble],
                                  .text = why.text});
    note(vm, trouble);
}

void mst_vm_trouble_over(struct mst_vm *vm)
{
    uint64_t lasted_ns = mst_now_ns() - vm->trouble_ns;

    if (vm->note.trouble == MST_SAVE_TROUBLE_NONE)
        return;
    log_notice("vm=%s epoch=%" PRIu64 " checkpoints are good again with seq=%" PRIu64 ", after %" PRIu64 " ms (%s)",
               vm->definition->name, vm->epoch, vm->good_seq, lasted_ns / MST_NS_PER_MS, names[vm->note.trouble]);
    mst_event(&(struct mst_event){.kind = MST_EV_CHECKPOINT_GOOD,
                                  .vm = vm->definition->name,
                                  .epoch = vm->epoch,
                                  .seq = vm->good_seq,
                                  .duration_us = lasted_ns / 1000,
                                  .what = names[vm->note.trouble]});
    note(vm, MST_SAVE_TROUBLE_NONE);
}

void mst_vm_trouble_look(struct mst_vm *vm)
{
    uint64_t allowed_ns = (vm->note.interval_ms + (uint64_t)MST_CKPT_OVERDUE_MS) * MST_NS_PER_MS;

    if (vm->good_seq == 0) /* the first one has all of its memory to copy */
        allowed_ns += (uint64_t)mst_vm_area_mib(vm->definition) * MST_CKPT_FIRST_MS_PER_MIB * MST_NS_PER_MS;
    if (age_ns(vm) < allowed_ns)
        return;
    if (vm->silent)
        mst_vm_trouble(vm, MST_SAVE_TROUBLE_SILENT, "QEMU does not answer");
    else if (vm->stopped_by_other)
        mst_vm_trouble(vm, MST_SAVE_TROUBLE_STOPPED, "somebody else stopped the guest");
    else if (vm->put_waits > 0)
        mst_vm_trouble(vm, MST_SAVE_TROUBLE_MIRROR, "its mirrors have not taken the last one");
    else if (vm->note.trouble != MST_SAVE_TROUBLE_FAILED) /* that says more */
        mst_vm_trouble(vm, MST_SAVE_TROUBLE_LATE, "the next one is %s", mst_ckpt_state(vm->ckpt));
}

void mst_vm_trouble_begin(struct mst_vm *vm)
{
    struct mst_pub_head head;
    struct mst_save_record record;

    mst_pace_init(&vm->pace, vm->definition->checkpoint_interval_ms, vm->definition->checkpoint_stall_max_percent);
    vm->note.interval_ms = vm->definition->checkpoint_interval_ms;
    vm->note.pace = MST_SAVE_PACE_SET;
    vm->runs_ns = mst_now_ns();
    if (mst_save_source(vm->writer) != MST_SAVE_NONE && mst_pub_read(vm->map->map.record, &head, &record, sizeof(record)) == 0) {
        vm->good_ns = record.taken_boot_ns; /* by an agent before us: the clock is the machine's */
        vm->good_seq = record.seq;
    }
    mst_ckpt_note(vm->ckpt, &vm->note, false);
}
