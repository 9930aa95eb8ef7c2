#include "node/keeper/keeper.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/state.h"
#include "node/keeper/cgroup.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*            order         QEMU runs guest     panic, save
 *   EMPTY ----------> STARTING ----------> RUNNING <-------> PAUSED
 *     |                  |  ^               |                 |
 *     | taken over       |  | retry         | QEMU is gone    |
 *     +---------------> DEAD <--------------+-----------------+
 *                        |         fence order from any of them
 *                        +-----------------> FENCED           all drop to EMPTY
 *   EMPTY -> IMAGE: of a VM that runs elsewhere
 */
static const struct mst_state run_states[] = {
    [MST_RUN_EMPTY] = {"empty", MST_TO(MST_RUN_STARTING) | MST_TO(MST_RUN_DEAD) | MST_TO(MST_RUN_IMAGE)},
    [MST_RUN_STARTING] = {"starting", MST_TO(MST_RUN_RUNNING) | MST_TO(MST_RUN_PAUSED) | MST_TO(MST_RUN_DEAD) |
                                          MST_TO(MST_RUN_FENCED) | MST_TO(MST_RUN_EMPTY)},
    [MST_RUN_RUNNING] = {"running", MST_TO(MST_RUN_PAUSED) | MST_TO(MST_RUN_DEAD) | MST_TO(MST_RUN_FENCED)},
    [MST_RUN_PAUSED] = {"paused", MST_TO(MST_RUN_RUNNING) | MST_TO(MST_RUN_DEAD) | MST_TO(MST_RUN_FENCED)},
    /* STARTING again: only a VM whose guest has not run in this epoch (orders.c checks it) */
    [MST_RUN_DEAD] = {"dead", MST_TO(MST_RUN_STARTING) | MST_TO(MST_RUN_FENCED) | MST_TO(MST_RUN_EMPTY)},
    [MST_RUN_FENCED] = {"fenced", MST_TO(MST_RUN_EMPTY)},
    [MST_RUN_IMAGE] = {"image", MST_TO(MST_RUN_EMPTY)},
};
#define RUN_STATES (sizeof(run_states) / sizeof(run_states[0]))

const char *mst_slot_state_name(unsigned state)
{
    return mst_state_name(run_states, RUN_STATES, state);
}

/* --- publishing --- */

static unsigned slots_used(const struct mst_keeper *k)
{
    unsigned i, n = 0;

    for (i = 0; i < MST_VMS_PER_NODE; i++)
        n += k->vms[i].used;
    return n;
}

void mst_beat_publish(struct mst_keeper *k)
{
    struct mst_beat_line line = {
        .keeper_beat = k->beat,
        .agent_beat = __atomic_load_n(&k->status->agent.beat, __ATOMIC_RELAXED),
        .generation = k->generation,
        .vm_fault_flags = k->fault_flags,
        .instance = k->instance,
        .agent_state = mst_agent_up(k) ? MST_AGENT_UP : MST_AGENT_ABSENT,
        .vms = slots_used(k),
    };

    mst_tenure_publish(k, &line);
    mst_beat_write(&k->status->beat, &line);
}

void mst_slot_publish(struct mst_vm *vm)
{
    struct mst_keeper *k = vm->keeper;
    struct mst_vm_slot body = {
        .run_state = vm->state,
        .qemu_pid = (int32_t)mst_proc_pid(vm),
        .exit_status = vm->exit_status,
        .fault_kind = vm->fault_kind,
        .console_bytes = mst_console_bytes(vm),
        .console_beat_ms = mst_console_beat_ms(vm),
        .changed_wall_ms = vm->changed_wall_ms,
    };

    memcpy(body.vm, vm->name, sizeof(body.vm));
    if (vm->areas_ready) {
        body.ram_bytes = vm->areas.area[MST_AREA_RAM].bytes;
        body.save_bytes = vm->areas.area[MST_AREA_SAVE].bytes;
        if (mst_areas_whole(&vm->areas)) { /* before that a save is in RAM, and whoever takes it over looks for no more */
            body.shadow_bytes = vm->areas.area[MST_AREA_SHADOW].bytes;
            body.delta_bytes = vm->areas.area[MST_AREA_DELTA].bytes;
        }
        body.disk_bytes = vm->areas.disk_bytes;
    }
    mst_images_fill(vm, &body);
    body.standby = mst_standby_said(vm);
    mst_pub_write(k->status->vms[vm->index].info, vm->epoch, k->instance, &body, sizeof(body));
    vm->console_published = body.console_bytes;
    k->generation++;
    mst_beat_publish(k);
}

void mst_node_publish(struct mst_keeper *k)
{
    double load[3] = {0};
    struct mst_node_status body = {
        .node_id = k->conf->id,
        .health = k->health,
        .vcpus = k->conf->vcpus,
        .vms = slots_used(k),
        .memory_bytes = k->budget.total_bytes,
        .memory_used_bytes = k->budget.used_bytes,
        .started_wall_ms = k->started_wall_ms,
        .agent_restarts = mst_agent_restarts(k),
        .machine_checks = k->machine_checks,
        .wall_ms = mst_wall_ms(),
    };

    uv_loadavg(load);
    body.load_milli = (uint32_t)(load[0] * 1000.0);
    mst_pub_write(k->status->node, 0, k->instance, &body, sizeof(body));
    k->generation++;
}

static void on_beat(uv_timer_t *timer)
{
    struct mst_keeper *k = timer->data;
    uint64_t now_ms = mst_now_ms();

    /* Whoever asks why the coordinator suspected this node finds it here. */
    if (k->beat_ms && now_ms - k->beat_ms > MST_BEAT_LATE_MS) {
        log_warning("no beat for %" PRIu64 " ms: the loop, or the whole keeper, stood still", now_ms - k->beat_ms);
        mst_event(&(struct mst_event){.kind = MST_EV_PAUSE_NOTICED, .duration_us = (now_ms - k->beat_ms) * 1000});
    }
    k->beat_ms = now_ms;
    k->beat++;
    mst_tenure_beat(k);
    mst_beat_publish(k);
}

/* Node status, and the consoles' counters of those that wrote something: they are not worth a generation each. */
static void on_second(uv_timer_t *timer)
{
    struct mst_keeper *k = timer->data;
    unsigned i;

    mst_node_publish(k);
    mst_mirrors_second(k);
    mst_standbys_second(k);
    mst_controls_second(k);
    for (i = 0; i < MST_VMS_PER_NODE; i++)
        if (k->vms[i].used && mst_console_bytes(&k->vms[i]) != k->vms[i].console_published)
            mst_slot_publish(&k->vms[i]);
}

void mst_slots_start(struct mst_keeper *k)
{
    uv_timer_init(k->loop, &k->beat_timer);
    uv_timer_init(k->loop, &k->second_timer);
    k->beat_timer.data = k->second_timer.data = k;
    uv_timer_start(&k->beat_timer, on_beat, 0, MST_BEAT_INTERVAL_MS);
    uv_timer_start(&k->second_timer, on_second, 0, MST_SECOND_MS);
}

/* --- the table --- */

struct mst_vm *mst_slot_find(struct mst_keeper *k, const char *vm, uint64_t epoch)
{
    unsigned i;

    for (i = 0; i < MST_VMS_PER_NODE; i++) {
        struct mst_vm *v = &k->vms[i];

        if (v->used && !v->drop_pending && v->epoch == epoch && strcmp(v->name, vm) == 0)
            return v;
    }
    return NULL;
}

int mst_slot_granted(struct mst_keeper *k, const char *vm, uint64_t epoch, struct mst_vm **ret_vm, struct mst_why *why)
{
    int r = mst_guard_check(k->guard, vm, epoch, why);

    if (r < 0)
        return r;
    *ret_vm = mst_slot_find(k, vm, epoch);
    return *ret_vm ? 0 : mst_why_set(why, -ENOENT, "%s epoch %" PRIu64 " has no slot here", vm, epoch);
}

struct mst_vm *mst_slot_newest(struct mst_keeper *k, const char *vm)
{
    struct mst_vm *found = NULL;
    unsigned i;

    for (i = 0; i < MST_VMS_PER_NODE; i++) {
        struct mst_vm *v = &k->vms[i];

        if (v->used && !v->drop_pending && v->state != MST_RUN_IMAGE && strcmp(v->name, vm) == 0 &&
            (!found || v->epoch > found->epoch))
            found = v;
    }
    return found;
}

static int slot_take(struct mst_keeper *k, const char *vm, uint64_t epoch, struct mst_vm **ret_vm, struct mst_why *why)
{
    struct mst_vm *v, *free_slot = NULL;
    unsigned i;

    for (i = 0; i < MST_VMS_PER_NODE; i++) {
        v = &k->vms[i];
        if (!v->used && !free_slot)
            free_slot = v;
        if (v->used && v->epoch == epoch && strcmp(v->name, vm) == 0)
            return mst_why_set(why, -EBUSY, "memory of an earlier try at %s epoch %" PRIu64 " is still being dropped", vm, epoch);
    }
    if (!free_slot)
        return mst_why_set(why, -ENOSPC, "all %u VM slots are in use", MST_VMS_PER_NODE);
    *free_slot = (struct mst_vm){.keeper = k, .index = (unsigned)(free_slot - k->vms), .used = true, .epoch = epoch};
    snprintf(free_slot->name, sizeof(free_slot->name), "%s", vm);
    *ret_vm = free_slot;
    return 0;
}

int mst_slot_new(struct mst_keeper *k, const char *vm, uint64_t epoch, struct mst_vm **ret_vm, struct mst_why *why)
{
    struct mst_vm *v;
    int r = slot_take(k, vm, epoch, &v, why);

    if (r < 0)
        return r;
    mst_pub_clear(k->status->vms[v->index].save);
    mst_slot_move(v, MST_RUN_STARTING, "granted");
    *ret_vm = v;
    return 0;
}

int mst_slot_new_image(struct mst_keeper *k, const char *vm, uint64_t epoch, struct mst_vm **ret_vm, struct mst_why *why)
{
    int r = slot_take(k, vm, epoch, ret_vm, why);

    if (r < 0)
        return r;
    mst_pub_clear(k->status->vms[(*ret_vm)->index].save);
    mst_slot_move(*ret_vm, MST_RUN_IMAGE, "its node is to be a mirror");
    return 0;
}

int mst_slot_define(struct mst_vm *vm, const Mainstay__VmDefinition *def)
{
    size_t bytes = mainstay__vm_definition__get_packed_size(def);
    uint8_t *packed = malloc(bytes ? bytes : 1);

    if (!packed)
        return -ENOMEM;
    vm->definition_bytes = mainstay__vm_definition__pack(def, packed);
    free(vm->definition);
    vm->definition = packed;
    return 0;
}

void mst_slot_move(struct mst_vm *vm, unsigned state, const char *why)
{
    enum mst_log_level level = state == MST_RUN_DEAD ? MST_LOG_WARNING : MST_LOG_NOTICE;

    if (vm->state == state)
        return;
    if (!mst_state_may(run_states, RUN_STATES, vm->state, state)) {
        /* The caller asks for what the table forbids: an agent that reports nonsense, or a bug of ours. Either way: not followed. */
        log_error("vm=%s epoch=%" PRIu64 " refused: %s -> %s (%s)", vm->name, vm->epoch, mst_slot_state_name(vm->state),
                  mst_slot_state_name(state), why);
        return;
    }
    mst_log(level, "vm=%s epoch=%" PRIu64 " slot=%u %s -> %s: %s", vm->name, vm->epoch, vm->index, mst_slot_state_name(vm->state),
            mst_slot_state_name(state), why);
    mst_event(&(struct mst_event){
        .kind = MST_EV_SLOT_STATE, .vm = vm->name, .epoch = vm->epoch, .what = mst_slot_state_name(state), .text = why});
    vm->state = state;
    vm->ran = vm->ran || state == MST_RUN_RUNNING;
    vm->changed_wall_ms = mst_wall_ms();
    mst_slot_publish(vm);
    mst_control_event(vm, why);
}

void mst_slot_fault(struct mst_vm *vm, uint32_t fault_kind)
{
    uint64_t bit = UINT64_C(1) << vm->index;

    if (fault_kind)
        vm->keeper->fault_flags |= bit;
    else
        vm->keeper->fault_flags &= ~bit;
    vm->fault_kind = fault_kind;
    mst_slot_publish(vm);
}

uint64_t mst_slot_save_seq(const struct mst_vm *vm)
{
    struct mst_pub_head head;
    struct mst_save_record record;

    if (mst_pub_read(vm->keeper->status->vms[vm->index].save, &head, &record, sizeof(record)) < 0 || head.epoch != vm->epoch ||
        record.source == MST_SAVE_NONE)
        return 0;
    return record.seq;
}

static bool has_process(const struct mst_keeper *k, const char *name)
{
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++)
        if (k->vms[i].used && k->vms[i].proc && strcmp(k->vms[i].name, name) == 0)
            return true;
    return false;
}

static void slot_drop_now(struct mst_vm *vm)
{
    struct mst_keeper *k = vm->keeper;
    char path[PATH_MAX];

    mst_server_vm_gone(vm);
    mst_standby_free(vm);
    mst_images_gone(vm);
    mst_mirrors_vm_gone(vm); /* whoever sets drop_pending: the slot's next VM must not find them */
    mst_vm_areas_drop(vm);
    mst_net_close(vm);
    mst_console_free(vm);
    mst_output_free(vm);
    if (!mst_slot_newest(k, vm->name) && !has_process(k, vm->name) &&
        mst_path(path, sizeof(path), "%s/vm-%s", k->conf->cgroup, vm->name) == 0 && mst_cgroup_remove(path) < 0)
        log_warning("cannot remove the cgroup %s", path);
    log_notice("vm=%s epoch=%" PRIu64 " slot=%u dropped", vm->name, vm->epoch, vm->index);
    mst_pub_clear(k->status->vms[vm->index].save);
    mst_pub_clear(k->status->vms[vm->index].info);
    k->fault_flags &= ~(UINT64_C(1) << vm->index);
    free(vm->definition);
    *vm = (struct mst_vm){.keeper = k, .index = vm->index};
    k->generation++;
    mst_beat_publish(k);
}

void mst_slot_drop(struct mst_vm *vm)
{
    vm->drop_pending = true;
    mst_standby_close(vm);
    mst_images_close(vm);
    mst_mirrors_vm_gone(vm);
    if (!vm->users)
        slot_drop_now(vm);
}

void mst_slot_release(struct mst_vm *vm)
{
    vm->users--;
    if (vm->users)
        return;
    mst_agent_areas_unused(vm);
    if (vm->drop_pending)
        slot_drop_now(vm);
}

/* --- at start --- */

static int kept_take(struct mst_keeper *k, const struct mst_kept *kept, struct mst_why *why)
{
    struct mst_vm *vm = NULL;
    int r;

    r = mst_guard_held(k->guard, kept->areas.vm, kept->areas.epoch);
    if (r == 0)
        r = slot_take(k, kept->areas.vm, kept->areas.epoch, &vm, why);
    if (r < 0 || !vm)
        return r;
    vm->areas = kept->areas;
    vm->areas_ready = true;
    vm->changed_wall_ms = mst_wall_ms();
    if (kept->slot.run_state == MST_RUN_IMAGE) {
        vm->state = MST_RUN_IMAGE; /* mst_images_new */
    } else {
        vm->ran = true;
        vm->state = MST_RUN_DEAD;
        vm->exit_status = kept->slot.exit_status;
        vm->fault_kind = MAINSTAY__FAULT_KIND__FAULT_KEEPER_DEAD;
        k->fault_flags |= UINT64_C(1) << vm->index;
    }
    mst_pub_write(k->status->vms[vm->index].save, vm->epoch, k->instance, &kept->record, sizeof(kept->record));
    mst_slot_publish(vm);
    return 0;
}

/* The new status area takes the place of the old one by rename, after everything in it is right: a keeper killed here leaves the old one,
 * and an agent of the earlier instance that still has the old one mapped writes into a file without a name. */
int mst_slots_open(struct mst_keeper *k, const struct mst_kept *kept, unsigned count, struct mst_why *why)
{
    static const char *const keep[] = {"status", "status.new", NULL};
    const char *folder = k->conf->main_storage;
    char from[PATH_MAX], to[PATH_MAX];
    void *area;
    unsigned i;
    int r;

    r = mst_fixed_make(folder, "status.new", sizeof(struct mst_status_area), &area, why);
    if (r < 0)
        return r;
    k->status = area;
    mst_status_init(k->status, k->conf->cluster, k->conf->node, k->conf->id, k->instance, k->host_boot_id, k->started_wall_ms);
    for (i = 0; i < MST_VMS_PER_NODE; i++)
        k->vms[i] = (struct mst_vm){.keeper = k, .index = i};
    for (i = 0; i < count; i++) {
        r = kept_take(k, &kept[i], why);
        if (r < 0)
            return r;
    }
    mst_node_publish(k);
    mst_beat_publish(k);
    r = mst_takeover_sweep(folder, kept, count, keep);
    if (r > 0)
        log_notice("removed %d files of earlier instances from %s", r, folder);
    if (r >= 0)
        r = mst_fixed_make(folder, "grant", sizeof(*k->grants), &area, why);
    if (r == 0)
        k->grants = area;
    if (r == 0)
        r = mst_path(from, sizeof(from), "%s/status.new", folder);
    if (r == 0)
        r = mst_path(to, sizeof(to), "%s/status", folder);
    if (r == 0 && rename(from, to) < 0)
        r = mst_why_set(why, -errno, "%s: %s", to, strerror(errno));
    return r;
}
