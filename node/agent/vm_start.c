#include "node/agent/agent.h"

#include "base/event.h"
#include "base/fault.h"
#include "base/log.h"
#include "node/agent/disk.h"
#include "node/agent/qemu_args.h"
#include "node/agent/saved_state.h"
#include "proto/frame.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NS_PER_US 1000u

static uint64_t us_since(uint64_t ns)
{
    return (mst_now_ns() - ns) / NS_PER_US;
}

/* Every request of a start goes out through here; a refusal of the keeper's ends the start. */
static void request(struct mst_vm *vm, mst_envelope *env, mst_port_reply_fn reply)
{
    int r = mst_port_request(vm->agent->port, env, reply, vm);
    struct mst_why why;

    if (r < 0) {
        mst_why_set(&why, r, "cannot ask the keeper: %s", mst_errname(r));
        mst_vm_start_fail(vm, r, &why);
    }
}

/* What a reply means: true to go on. -EPROTO when it is not the kind of message that was asked for. */
static bool good_reply(struct mst_vm *vm, enum mst_vm_state state, int err, const struct mst_why *why, bool right_kind)
{
    struct mst_why here;

    if (vm->state != state)
        return false; /* failed or ended meanwhile */
    if (err) {
        mst_vm_start_fail(vm, err, why);
        return false;
    }
    if (!right_kind) {
        mst_why_set(&here, -EPROTO, "the keeper answered %s with another message", mst_vm_state_name(state));
        mst_vm_start_fail(vm, -EPROTO, &here);
        return false;
    }
    return true;
}

/* --- undoing --- */

static void failed(struct mst_vm *vm)
{
    log_notice("vm=%s epoch=%" PRIu64 " start failed: %s", vm->definition->name, vm->epoch, vm->fail_why.text);
    mst_waiters_answer(vm, &vm->start_waiters, vm->fail_err, &vm->fail_why, NULL, NULL);
    mst_vm_end(vm);
}

static void on_dropped(int err, const mst_envelope *reply, const struct mst_why *why, void *arg)
{
    struct mst_vm *vm = arg;

    (void)reply;
    if (err)
        log_notice("vm=%s epoch=%" PRIu64 " areas not dropped: %s", vm->definition->name, vm->epoch, why->text);
    failed(vm);
}

int mst_vm_ask_drop(struct mst_vm *vm, mst_port_reply_fn reply)
{
    Mainstay__AreasDrop body = MAINSTAY__AREAS_DROP__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.vm = vm->definition->name;
    body.epoch = vm->epoch;
    env.body_case = MAINSTAY__ENVELOPE__BODY_AREAS_DROP;
    env.areas_drop = &body;
    return mst_port_request(vm->agent->port, &env, reply, vm);
}

int mst_vm_ask_kill(struct mst_vm *vm, mst_port_reply_fn reply)
{
    Mainstay__Kill body = MAINSTAY__KILL__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.vm = vm->definition->name;
    body.epoch = vm->epoch;
    env.body_case = MAINSTAY__ENVELOPE__BODY_KILL;
    env.kill = &body;
    return mst_port_request(vm->agent->port, &env, reply, vm);
}

static void on_killed(int err, const mst_envelope *reply, const struct mst_why *why, void *arg)
{
    struct mst_vm *vm = arg;

    (void)reply;
    if (err) /* fenced meanwhile, or QEMU does not die: the keeper knows and deals with it */
        log_notice("vm=%s epoch=%" PRIu64 " not killed: %s", vm->definition->name, vm->epoch, why->text);
    if (mst_vm_ask_drop(vm, on_dropped) < 0)
        failed(vm);
}

void mst_vm_start_fail(struct mst_vm *vm, int err, const struct mst_why *why)
{
    struct mst_why first = *why; /* why may be vm->fail_why */

    if (vm->state == VM_FAILING || vm->state == VM_ENDING)
        return;
    vm->fail_err = err;
    vm->fail_why = first;
    log_info("vm=%s epoch=%" PRIu64 " start fails while %s: %s", vm->definition->name, vm->epoch, mst_vm_state_name(vm->state),
             first.text);
    mst_vm_disconnect(vm);
    mst_vm_move(vm, VM_FAILING);
    if (mst_vm_ask_kill(vm, on_killed) < 0)
        failed(vm);
}

/* --- running --- */

static void run(struct mst_vm *vm)
{
    struct mst_why why;
    int r = mst_vm_run_begin(vm, false, &why);

    if (r < 0) {
        mst_vm_start_fail(vm, r, &why);
        return;
    }
    MST_POINT("start.before_done");
    vm->started = true;
    mst_vm_move(vm, VM_RUNNING);
    mst_event(&(struct mst_event){.kind = MST_EV_VM_RUNS,
                                  .vm = vm->definition->name,
                                  .epoch = vm->epoch,
                                  .seq = vm->start.has_save_seq ? vm->start.save_seq : 0,
                                  .duration_us = vm->start.has_load_us ? vm->start.load_us : 0});
    log_notice("vm=%s epoch=%" PRIu64 " pid=%d runs: method=%d pulled=%" PRIu64 " bytes in %" PRIu64 " us, verify %" PRIu64
               " us, spawn %" PRIu64 " us%s, load %" PRIu64 " us",
               vm->definition->name, vm->epoch, (int)vm->pid, (int)vm->start.method, vm->start.bytes_pulled, vm->start.pull_us,
               vm->start.verify_us, vm->start.spawn_us, vm->start.standby ? " (it had waited)" : "", vm->start.load_us);
    mst_vm_tell(vm, MST_RUN_RUNNING, false, MAINSTAY__FAULT_KIND__FAULT_NONE);
    mst_waiters_answer(vm, &vm->start_waiters, 0, &vm->disk_why, &vm->start, NULL);
    if (vm->panicked)
        mst_vm_saw_panic(vm);
}

/* Tells switches where the guest is now. Without a network card it does nothing; it may fail without harm. Under output commit these frames wait as any
 * others: nobody has the checkpoints of a VM that was just resumed, so they leave at once. */
static void announce(struct mst_vm *vm)
{
    mst_qmp_execute(vm->qmp, "announce-self",
                    json_pack("{s:i, s:i, s:i, s:i}", "initial", 50, "max", 550, "rounds", 5, "step", 100), -1, MST_QMP_SILENT_MS,
                    NULL, NULL);
}

static void on_resumed(int err, const struct mst_why *why, void *arg)
{
    struct mst_vm *vm = arg;

    vm->resume = NULL;
    if (err) {
        mst_vm_start_fail(vm, err, why);
        return;
    }
    vm->start.has_load_us = 1;
    vm->start.load_us = us_since(vm->mark_ns);
    announce(vm);
    run(vm);
}

static void on_loaded(int err, const struct mst_why *why, void *arg)
{
    struct mst_vm *vm = arg;
    struct mst_why here;
    int r;

    vm->load = NULL;
    if (err) {
        if (err == -ENOTCONN)
            return; /* the monitor's end decides, with QEMU's last words */
        mst_vm_start_fail(vm, err, why);
        return;
    }
    free(vm->stream);
    vm->stream = NULL;
    mst_vm_move(vm, VM_RESUMING);
    r = mst_resume_start(vm->agent->loop, vm->qmp, MST_RESUME_FAST, MST_QMP_SILENT_MS, on_resumed, vm, &vm->resume);
    if (r < 0) {
        mst_why_set(&here, r, "cannot tell QEMU to go on: %s", mst_errname(r));
        mst_vm_start_fail(vm, r, &here);
    }
}

static void prepared(struct mst_vm *vm)
{
    struct mst_why why;
    int r;

    vm->start.has_spawn_us = 1;
    vm->start.spawn_us = us_since(vm->mark_ns);
    vm->mark_ns = mst_now_ns();
    if (!vm->stream) { /* it booted by itself */
        run(vm);
        return;
    }
    mst_vm_move(vm, VM_LOADING);
    r = mst_load_start(vm->agent->loop, vm->qmp, vm->stream, vm->stream_bytes, MST_VM_LOAD_MS, on_loaded, vm, &vm->load);
    if (r < 0) {
        mst_why_set(&why, r, "cannot load the device state: %s", mst_errname(r));
        mst_vm_start_fail(vm, r, &why);
    }
}

void mst_vm_start_connected(struct mst_vm *vm)
{
    mst_vm_set_capabilities(vm, prepared);
}

/* --- spawn --- */

static void on_spawned(int err, const mst_envelope *reply, const struct mst_why *why, void *arg)
{
    struct mst_vm *vm = arg;

    if (!good_reply(vm, VM_SPAWNING, err, why, reply->body_case == MAINSTAY__ENVELOPE__BODY_SPAWNED))
        return;
    vm->pid = reply->spawned->pid;
    mst_patience_begin(&vm->patience, vm->pid);
    vm->start.has_standby = 1;
    vm->start.standby = reply->spawned->has_standby && reply->spawned->standby;
    mst_vm_move(vm, VM_CONNECTING);
    mst_vm_connect(vm, MST_VM_CONNECT_MS, 0);
}

/* A file that cannot be read is said so here: QEMU's own words would come only after it was started. */
int mst_vm_check_boot_files(const Mainstay__VmDefinition *machine, struct mst_why *why)
{
    if (access(machine->boot_kernel, R_OK) < 0)
        return mst_why_set(why, -errno, "boot: kernel %s: %s on this node", machine->boot_kernel, mst_errname(errno));
    if (machine->boot_initrd && machine->boot_initrd[0] && access(machine->boot_initrd, R_OK) < 0)
        return mst_why_set(why, -errno, "boot: initrd %s: %s on this node", machine->boot_initrd, mst_errname(errno));
    return 0;
}

static void spawn(struct mst_vm *vm)
{
    struct mst_qemu_where where = {.qemu = vm->agent->qemu,
                                   .accel = vm->agent->accel,
                                   .vm_dir = vm->dir,
                                   .ram_path = vm->map->ram_path,
                                   .disk_path = vm->map->disk_path,
                                   .devices = vm->disk_devices,
                                   .incoming = vm->stream != NULL};
    Mainstay__Spawn body = MAINSTAY__SPAWN__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    struct mst_why why = {""};
    char **argv = NULL;
    int r;

    mst_vm_move(vm, VM_SPAWNING);
    r = mst_vm_check_boot_files(vm->machine, &why);
    if (r == 0)
        r = mst_qemu_args(vm->machine, vm->definition->name, &where, &argv, &why);
    if (r < 0) {
        mst_vm_start_fail(vm, r, &why);
        return;
    }
    body.vm = vm->definition->name;
    body.epoch = vm->epoch;
    body.argv = argv;
    while (argv && argv[body.n_argv])
        body.n_argv++;
    env.body_case = MAINSTAY__ENVELOPE__BODY_SPAWN;
    env.spawn = &body;
    vm->mark_ns = mst_now_ns();
    request(vm, &env, on_spawned);
    mst_qemu_args_free(argv);
}

/* --- memory: pulled, or unpacked, or empty --- */

static void on_pulled(int err, const mst_envelope *reply, const struct mst_why *why, void *arg)
{
    struct mst_vm *vm = arg;
    const Mainstay__Pulled *pulled;
    struct mst_why here;
    const uint8_t *slot;

    if (!good_reply(vm, VM_PULLING, err, why, reply->body_case == MAINSTAY__ENVELOPE__BODY_PULLED))
        return;
    pulled = reply->pulled;
    if (pulled->device_slot > 1 || pulled->device_bytes == 0 || pulled->device_bytes > MST_DEVICE_BYTES_MAX) {
        mst_why_set(&here, -EBADMSG, "the pulled save has %" PRIu64 " bytes of device state in slot %" PRIu32,
                    pulled->device_bytes, pulled->device_slot);
        mst_vm_start_fail(vm, -EBADMSG, &here);
        return;
    }
    /* A private copy first: what is checked is what QEMU gets. */
    slot = vm->map->map.save + vm->map->layout.device_off[pulled->device_slot];
    vm->stream = malloc(pulled->device_bytes);
    if (!vm->stream) {
        mst_why_set(&here, -ENOMEM, "no memory for the device state");
        mst_vm_start_fail(vm, -ENOMEM, &here);
        return;
    }
    vm->stream_bytes = pulled->device_bytes;
    memcpy(vm->stream, slot, vm->stream_bytes);
    if (pulled->has_device_crc32c && mst_crc32c(vm->stream, vm->stream_bytes) != pulled->device_crc32c) {
        mst_why_set(&here, -EBADMSG, "the pulled device state does not check: it is not given to QEMU");
        mst_vm_start_fail(vm, -EBADMSG, &here);
        return;
    }
    vm->start.method = pulled->has_local && pulled->local ? MAINSTAY__METHOD__METHOD_RESUMED_IN_PLACE
                       : pulled->source == MST_SAVE_RAM   ? MAINSTAY__METHOD__METHOD_PULLED_LIVE
                                                          : MAINSTAY__METHOD__METHOD_PULLED_SHADOW;
    vm->start.has_bytes_pulled = vm->start.has_pull_us = vm->start.has_verify_us = 1;
    vm->start.bytes_pulled = pulled->bytes;
    vm->start.pull_us = pulled->pull_us;
    vm->start.verify_us = pulled->verify_us;
    vm->start.has_save_epoch = vm->start.has_save_seq = 1;
    vm->start.save_epoch = pulled->save_epoch;
    vm->start.save_seq = pulled->save_seq;
    spawn(vm);
}

static void pull(struct mst_vm *vm)
{
    Mainstay__Pull body = MAINSTAY__PULL__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    mst_vm_move(vm, VM_PULLING);
    body.vm = vm->definition->name;
    body.epoch = vm->epoch;
    body.source = vm->order->source;
    env.body_case = MAINSTAY__ENVELOPE__BODY_PULL;
    env.pull = &body;
    request(vm, &env, on_pulled);
}

static void unpack_work(uv_work_t *work)
{
    struct mst_vm *vm = work->data;
    const char *dir = vm->definition->boot_state;
    char path[4096];

    vm->work_err = mst_saved_device_read(dir, &vm->stream, &vm->stream_bytes, &vm->work_why);
    if (vm->work_err < 0)
        return;
    snprintf(path, sizeof(path), "%s/ram.zst", dir);
    vm->work_err = mst_saved_ram_unpack(path, (uint8_t *)(uintptr_t)vm->map->map.ram, vm->map->map.ram_bytes, &vm->work_why);
}

static const char *disk_image(const struct mst_vm *vm)
{
    for (size_t i = 0; i < vm->machine->n_disks; i++)
        if (vm->machine->disks[i]->image)
            return vm->machine->disks[i]->image;
    return NULL;
}

static void fill_work(uv_work_t *work)
{
    struct mst_vm *vm = work->data;
    uint8_t *end = (uint8_t *)(uintptr_t)vm->map->map.ram + vm->map->map.ram_bytes;

    vm->work_err = mst_disk_fill(disk_image(vm), end - vm->map->disk_bytes, vm->map->disk_bytes, &vm->work_why);
}

/* What was on it is gone when this is not its first start, and whoever wonders later must find that said. */
static void disk_begins(struct mst_vm *vm)
{
    const char *image = disk_image(vm);

    if (!vm->map->disk_bytes)
        return;
    mst_why_set(&vm->disk_why, 0, "its disk in main storage begins anew, with %s",
                image        ? image
                : vm->stream ? "what the saved state has"
                             : "zeros");
    mst_event(
        &(struct mst_event){.kind = MST_EV_DISK_NEW, .vm = vm->definition->name, .epoch = vm->epoch, .text = vm->disk_why.text});
    log_notice("vm=%s epoch=%" PRIu64 " %s", vm->definition->name, vm->epoch, vm->disk_why.text);
}

static void unpacked(struct mst_vm *vm)
{
    if (vm->state != VM_UNPACKING)
        return;
    if (vm->work_err < 0) {
        mst_vm_start_fail(vm, vm->work_err, &vm->work_why);
        return;
    }
    disk_begins(vm);
    spawn(vm);
}

static void mapped(struct mst_vm *vm)
{
    if (vm->order->source) {
        pull(vm);
    } else if (vm->definition->boot_state && vm->definition->boot_state[0]) {
        vm->start.method = MAINSTAY__METHOD__METHOD_BOOTED;
        mst_vm_move(vm, VM_UNPACKING);
        mst_vm_work(vm, unpack_work, unpacked);
    } else if (disk_image(vm)) {
        vm->start.method = MAINSTAY__METHOD__METHOD_BOOTED;
        mst_vm_move(vm, VM_UNPACKING);
        mst_vm_work(vm, fill_work, unpacked);
    } else {
        vm->start.method = MAINSTAY__METHOD__METHOD_BOOTED;
        disk_begins(vm);
        spawn(vm);
    }
}

/* --- areas --- */

/* Worker: mapping locks memory, and taking up a save checks every sum of it. */
static void map_work(uv_work_t *work)
{
    struct mst_vm *vm = work->data;
    const struct mst_agent *agent = vm->agent;

    if (!vm->attaching) /* its QEMU has been built already */
        vm->work_err = mst_saved_machine(vm->definition, &vm->machine, &vm->work_why);
    if (vm->work_err == 0 && !vm->attaching)
        vm->work_err = mst_disks_check(vm->machine, &vm->disk_devices, &vm->work_why);
    if (vm->work_err < 0)
        return;
    vm->work_err = mst_vmmap_open(&agent->status, vm->areas_named, vm->definition, vm->epoch, agent->instance, vm->attaching,
                                  &vm->map, &vm->work_unlocked, &vm->work_why);
    if (vm->work_err < 0)
        return;
    vm->work_err = vm->attaching ? mst_save_writer_attach(&vm->map->map, &vm->writer) : -ENODATA;
    if (vm->work_err == -ENODATA || vm->work_err == -EBADMSG) {
        if (vm->work_err == -EBADMSG)
            log_warning("vm=%s epoch=%" PRIu64 " its last checkpoint is damaged: the next one is a whole one",
                        vm->definition->name, vm->epoch);
        vm->work_err = mst_save_writer_new(&vm->map->map, &vm->writer);
    }
    if (vm->work_err < 0)
        mst_why_set(&vm->work_why, vm->work_err, "cannot write saves of VM %s: %s", vm->definition->name,
                    mst_errname(vm->work_err));
}

void mst_vm_map(struct mst_vm *vm, void (*then)(struct mst_vm *vm))
{
    mst_vm_work(vm, map_work, then);
}

static void map_done(struct mst_vm *vm)
{
    if (vm->state != VM_MAPPING)
        return;
    if (vm->work_unlocked)
        log_warning("vm=%s epoch=%" PRIu64 " RAM not locked (%s): under memory pressure a checkpoint could miss a page",
                    vm->definition->name, vm->epoch, mst_errname(vm->work_unlocked));
    if (vm->work_err < 0)
        mst_vm_start_fail(vm, vm->work_err, &vm->work_why);
    else
        mapped(vm);
}

int mst_vm_set_areas(struct mst_vm *vm, const Mainstay__Areas *areas)
{
    Mainstay__Areas *copy = mst_message_copy(&areas->base);

    if (!copy)
        return -ENOMEM;
    if (vm->areas_named)
        mainstay__areas__free_unpacked(vm->areas_named, NULL);
    vm->areas_named = copy;
    return 0;
}

static void on_created(int err, const mst_envelope *reply, const struct mst_why *why, void *arg)
{
    struct mst_vm *vm = arg;
    struct mst_why here;

    if (!good_reply(vm, VM_CREATING, err, why, reply->body_case == MAINSTAY__ENVELOPE__BODY_AREAS_CREATED))
        return;
    if (mst_vm_set_areas(vm, reply->areas_created->areas) < 0) {
        mst_why_set(&here, -ENOMEM, "no memory for the areas' names");
        mst_vm_start_fail(vm, -ENOMEM, &here);
        return;
    }
    mst_vm_move(vm, VM_MAPPING);
    mst_vm_map(vm, map_done);
}

void mst_vm_create(struct mst_vm *vm)
{
    Mainstay__AreasCreate body = MAINSTAY__AREAS_CREATE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    if (vm->state != VM_CREATING)
        mst_vm_move(vm, VM_CREATING);
    body.definition = vm->definition;
    body.epoch = vm->epoch;
    body.has_part = mst_vm_is_protected(vm);
    body.part = MAINSTAY__AREAS_PART__AREAS_FIRST; /* vm_rest.c asks for the others */
    env.body_case = MAINSTAY__ENVELOPE__BODY_AREAS_CREATE;
    env.areas_create = &body;
    request(vm, &env, on_created);
}

/* --- capabilities --- */

static void capability_refused(struct mst_vm *vm, int err, const struct mst_why *why)
{
    if (err == -ENOTCONN)
        return; /* the monitor's end decides */
    if (vm->attaching)
        mst_vm_run_disconnected(vm, why);
    else
        mst_vm_start_fail(vm, err, why);
}

static void on_parameters(struct mst_qmp *qmp, int err, const json_t *ret, const struct mst_why *why, void *arg)
{
    struct mst_vm *vm = arg;
    void (*then)(struct mst_vm *) = vm->capable_then;

    (void)qmp;
    (void)ret;
    if (err)
        capability_refused(vm, err, why);
    else
        then(vm);
}

static void on_capabilities(struct mst_qmp *qmp, int err, const json_t *ret, const struct mst_why *why, void *arg)
{
    struct mst_vm *vm = arg;
    int r;

    (void)ret;
    if (err) {
        capability_refused(vm, err, why);
        return;
    }
    /* The default of 128 MiB/s would stretch the pause. */
    r = mst_qmp_execute(qmp, "migrate-set-parameters", json_pack("{s:I}", "max-bandwidth", (json_int_t)1 << 40), -1,
                        mst_vm_silent_ms(vm), on_parameters, vm);
    if (r < 0)
        capability_refused(vm, r, why);
}

void mst_vm_set_capabilities(struct mst_vm *vm, void (*then)(struct mst_vm *vm))
{
    json_t *arguments = json_pack("{s:[{s:s, s:b}, {s:s, s:b}]}", "capabilities", "capability", "x-ignore-shared", "state", 1,
                                  "capability", "events", "state", 1);
    struct mst_why why;
    int r;

    vm->capable_then = then;
    r = mst_qmp_execute(vm->qmp, "migrate-set-capabilities", arguments, -1, mst_vm_silent_ms(vm), on_capabilities, vm);
    if (r < 0) {
        mst_why_set(&why, r, "cannot prepare QEMU: %s", mst_errname(r));
        capability_refused(vm, r, &why);
    }
}
