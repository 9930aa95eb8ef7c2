#include "node/keeper/keeper.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/mutant.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Every order: is it for us and not from the past (guard), then one function of the table. Each is idempotent: asked again, it answers again. */

/* --- start, save, continue --- */

/* The slot of a granted start: the one it has, or a new one. 1: it runs already. */
static int start_slot(struct mst_keeper *k, const Mainstay__OrderStart *order, struct mst_vm **ret_vm, struct mst_why *why)
{
    const char *name = order->definition->name;
    struct mst_vm *vm = mst_slot_find(k, name, order->epoch);
    int r;

    if (!vm) {
        r = mst_slot_new(k, name, order->epoch, &vm, why);
        if (r < 0)
            return r;
        r = mst_slot_define(vm, order->definition);
        if (r < 0) {
            mst_slot_drop(vm);
            return r;
        }
    }
    *ret_vm = vm;
    vm->resumes = order->source != NULL;
    if (vm->state == MST_RUN_RUNNING || vm->state == MST_RUN_PAUSED)
        return 1;
    if (vm->state == MST_RUN_DEAD && vm->ran)
        return mst_why_set(why, -ESTALE, "%s has run and ended in epoch %" PRIu64 ": start it as a newer one", name,
                           order->epoch);
    if (vm->state == MST_RUN_DEAD) {
        mst_slot_fault(vm, 0);
        mst_slot_move(vm, MST_RUN_STARTING, "ordered again");
    }
    return 0;
}

static int run_start(struct mst_keeper *k, const struct mst_asker *asker, const mst_envelope *env, struct mst_why *why)
{
    const Mainstay__OrderStart *order = env->order_start;
    Mainstay__Done done;
    struct mst_vm *vm;
    int r, granted;

    r = mst_vm_definition_check(order->definition, why);
    if (r < 0)
        return r;
    MST_POINT("grant.begun");
    granted = mst_guard_grant(k->guard, order->definition->name, order->epoch, why);
    if (granted < 0)
        return granted;
    MST_POINT("grant.given");
    r = start_slot(k, order, &vm, why);
    if (r == 0)
        r = mst_relay_open(vm, env, asker, why);
    if (r == 1) {
        mst_done_fill(&done, 0, NULL);
        done.start = vm->has_start ? &vm->start : NULL;
        mst_control_reply(asker, &done);
        return 0;
    }
    if (r < 0 && granted == 0) {
        mst_guard_revoke(k->guard, order->definition->name, order->epoch);
        vm = mst_slot_find(k, order->definition->name, order->epoch);
        if (vm && !vm->ran)
            mst_slot_drop(vm);
    }
    return r;
}

static int relay_running(struct mst_keeper *k, const struct mst_asker *asker, const mst_envelope *env, const char *name,
                         uint64_t epoch, struct mst_why *why)
{
    struct mst_vm *vm;
    int r = mst_slot_granted(k, name, epoch, &vm, why);

    if (r < 0)
        return r;
    if (!vm->proc)
        return mst_why_set(why, -ESRCH, "%s epoch %" PRIu64 " has no QEMU here", name, epoch);
    return mst_relay_open(vm, env, asker, why);
}

static int run_save(struct mst_keeper *k, const struct mst_asker *asker, const mst_envelope *env, struct mst_why *why)
{
    return relay_running(k, asker, env, env->order_save->vm, env->order_save->epoch, why);
}

static int run_continue(struct mst_keeper *k, const struct mst_asker *asker, const mst_envelope *env, struct mst_why *why)
{
    return relay_running(k, asker, env, env->order_continue->vm, env->order_continue->epoch, why);
}

/* --- fence: the keeper alone, whatever the agent does --- */

struct fence {
    struct mst_keeper *keeper;
    struct mst_asker asker;
    void (*done)(void *arg, int err); /* our own, not a coordinator's; NULL otherwise */
    void *arg;
    unsigned pending;
    int err;
    struct mst_why why;
    size_t count;
    struct {
        char vm[MST_NAME_BYTES];
        uint64_t epoch;
    } vms[];
};

static void fence_reply(struct fence *f)
{
    struct mst_keeper *k = f->keeper;
    Mainstay__FenceResult result = MAINSTAY__FENCE_RESULT__INIT;
    Mainstay__VmEpoch vms[MST_VMS_PER_NODE], *list[MST_VMS_PER_NODE]; /* run_fence took no more */
    Mainstay__Done done;
    size_t i;

    for (i = 0; i < f->count; i++) {
        mainstay__vm_epoch__init(&vms[i]);
        vms[i].vm = f->vms[i].vm;
        vms[i].epoch = f->vms[i].epoch;
        list[i] = &vms[i];
    }
    result.instance = k->instance;
    result.host_boot_id = (ProtobufCBinaryData){.len = sizeof(k->host_boot_id), .data = k->host_boot_id};
    result.n_vms = f->count;
    result.vms = list;
    mst_done_fill(&done, 0, NULL);
    done.fence = &result;
    mst_control_reply(&f->asker, &done);
}

static void fence_slots(struct fence *f, size_t n)
{
    unsigned i;

    for (i = 0; i < MST_VMS_PER_NODE; i++) {
        struct mst_vm *vm = &f->keeper->vms[i];

        if (!vm->used || vm->drop_pending || vm->image || vm->epoch > f->vms[n].epoch || strcmp(vm->name, f->vms[n].vm) != 0)
            continue;
        mst_slot_move(vm, MST_RUN_FENCED, "its process is proved gone");
        mst_slot_fault(vm, 0);
    }
}

static void fence_finish(struct fence *f)
{
    size_t i;

    if (f->err == 0) {
        for (i = 0; i < f->count; i++)
            fence_slots(f, i);
        log_notice("fenced %zu VMs: their processes are proved gone", f->count);
        fence_reply(f);
    } else if (f->err != -ECANCELED) {
        log_error("fence failed: %s", f->why.text[0] ? f->why.text : strerror(-f->err));
        mst_control_reply_error(&f->asker, f->err, &f->why);
    }
    if (f->done && f->err != -ECANCELED)
        f->done(f->arg, f->err);
    free(f);
}

static void fence_killed(void *arg, int err)
{
    struct fence *f = arg;

    if (err < 0 && f->err == 0)
        f->err =
            err == -ECANCELED ? err : mst_why_set(&f->why, err, "processes did not end within %d s", MST_KILL_DEADLINE_MS / 1000);
    if (--f->pending == 0)
        fence_finish(f);
}

static void fence_one(struct fence *f, size_t n)
{
    struct mst_keeper *k = f->keeper;
    const char *vm = f->vms[n].vm;
    uint64_t epoch = f->vms[n].epoch;
    unsigned i;
    int r;

    r = mst_guard_fence(k->guard, vm, epoch, &f->why);
    if (r < 0) {
        f->err = r;
        return;
    }
    mst_relay_cancel(k, vm, epoch, "it was fenced meanwhile");
    for (i = 0; i < MST_VMS_PER_NODE; i++) {
        if (!k->vms[i].used || k->vms[i].epoch > epoch || strcmp(k->vms[i].name, vm) != 0)
            continue;
        mst_pull_cancel(&k->vms[i], "it was fenced meanwhile");
        if (!MST_MUTANT(72))
            mst_mirrors_vm_gone(&k->vms[i]); /* nothing more of it is written into any log */
    }
    if (mst_guard_process(k->guard, vm) > epoch)
        return; /* a newer grant runs; it was given because the older one was proved gone */
    if (MST_MUTANT(5))
        return;
    r = mst_proc_kill(k, vm, fence_killed, f);
    if (r < 0)
        f->err = r;
    else
        f->pending++;
}

static void fence_add(struct fence *f, const char *vm, uint64_t epoch)
{
    size_t i;

    for (i = 0; i < f->count; i++)
        if (f->vms[i].epoch == epoch && strcmp(f->vms[i].vm, vm) == 0)
            return;
    snprintf(f->vms[f->count].vm, MST_NAME_BYTES, "%s", vm);
    f->vms[f->count++].epoch = epoch;
}

static struct fence *fence_list(struct mst_keeper *k, const Mainstay__OrderFence *order)
{
    struct fence *f = calloc(1, sizeof(*f) + (order->n_vms + MST_VMS_PER_NODE) * sizeof(f->vms[0]));
    size_t i;

    if (!f)
        return NULL;
    for (i = 0; i < order->n_vms; i++)
        fence_add(f, order->vms[i]->vm, order->vms[i]->epoch);
    for (i = 0; order->has_all && order->all && i < MST_VMS_PER_NODE; i++)
        if (k->vms[i].used && !k->vms[i].image) /* an image says nothing about its VM, which runs elsewhere */
            fence_add(f, k->vms[i].name, k->vms[i].epoch);
    return f;
}

static int run_fence(struct mst_keeper *k, const struct mst_asker *asker, const mst_envelope *env, struct mst_why *why)
{
    const Mainstay__OrderFence *order = env->order_fence;
    struct fence *f;
    size_t i;

    if (!order->n_vms && !(order->has_all && order->all))
        return mst_why_set(why, -EINVAL, "fence of nothing");
    f = order->n_vms > MST_VMS_PER_NODE ? NULL : fence_list(k, order);
    if (!f)
        return mst_why_set(why, -ENOMEM, "no memory for a fence of %zu VMs", order->n_vms);
    if (f->count > MST_VMS_PER_NODE) { /* more than the answer may name */
        free(f);
        return mst_why_set(why, -E2BIG, "fence of more than %u VMs: order `all` without names", MST_VMS_PER_NODE);
    }
    f->keeper = k;
    f->asker = *asker;
    log_notice("fence of %zu VMs ordered", f->count);
    for (i = 0; i < f->count; i++)
        fence_one(f, i);
    if (!f->pending)
        fence_finish(f);
    return 0;
}

static void own_report(struct mst_vm *vm, const char *text)
{
    Mainstay__FaultReport report = MAINSTAY__FAULT_REPORT__INIT;

    report.kind = MAINSTAY__FAULT_KIND__FAULT_VM_EXITED;
    report.vm = vm->name;
    report.has_epoch = 1;
    report.epoch = vm->epoch;
    report.text = (char *)text;
    mst_control_report(vm->keeper, &report);
}

int mst_fence_own(struct mst_keeper *k, const char *text, void (*done)(void *arg, int err), void *arg)
{
    struct fence *f = calloc(1, sizeof(*f) + MST_VMS_PER_NODE * sizeof(f->vms[0]));
    size_t i, count;

    if (!f)
        return -ENOMEM;
    *f = (struct fence){.keeper = k, .done = done, .arg = arg};
    for (i = 0; i < MST_VMS_PER_NODE; i++) {
        struct mst_vm *vm = &k->vms[i];
        bool lives = mst_guard_process(k->guard, vm->name) == vm->epoch;

        if (!vm->used || vm->image || (!lives && vm->state != MST_RUN_RUNNING && vm->state != MST_RUN_PAUSED))
            continue;
        fence_add(f, vm->name, vm->epoch);
        if (vm->state != MST_RUN_STARTING && vm->state != MST_RUN_FENCED)
            own_report(vm, text); /* kept until a coordinator is there to hear it */
    }
    count = f->count;
    if (!count) {
        free(f);
        return 0;
    }
    log_error("%zu VMs are stopped: %s", count, text);
    for (i = 0; i < count; i++)
        fence_one(f, i);
    if (!f->pending)
        fence_finish(f);
    return (int)count;
}

struct forget { /* waits for the end of a QEMU that waits: who is answered finds nothing left */
    struct mst_keeper *keeper;
    struct mst_asker asker;
    char vm[MST_NAME_BYTES];
    uint64_t epoch;
};

static bool forgets(const struct mst_vm *vm, const char *name, uint64_t epoch)
{
    return vm->used && !vm->drop_pending && vm->epoch <= epoch && strcmp(vm->name, name) == 0;
}

static void forget_now(struct mst_keeper *k, const struct mst_asker *asker, const char *vm, uint64_t epoch)
{
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++)
        if (forgets(&k->vms[i], vm, epoch))
            mst_slot_drop(&k->vms[i]);
    mst_control_reply_error(asker, 0, NULL);
}

static void forget_killed(void *arg, int err)
{
    struct forget *f = arg;

    if (err == 0)
        forget_now(f->keeper, &f->asker, f->vm, f->epoch);
    else if (err != -ECANCELED)
        mst_control_reply_error(&f->asker, err, NULL);
    free(f);
}

static int forget_later(struct mst_keeper *k, const struct mst_asker *asker, const Mainstay__OrderForget *order)
{
    struct forget *f = calloc(1, sizeof(*f));
    int r;

    if (!f)
        return -ENOMEM;
    *f = (struct forget){.keeper = k, .asker = *asker, .epoch = order->epoch};
    snprintf(f->vm, sizeof(f->vm), "%s", order->vm);
    r = mst_proc_kill(k, order->vm, forget_killed, f);
    if (r < 0)
        free(f);
    return r;
}

static int run_forget(struct mst_keeper *k, const struct mst_asker *asker, const mst_envelope *env, struct mst_why *why)
{
    const Mainstay__OrderForget *order = env->order_forget;
    bool waits = false;
    unsigned i;

    for (i = 0; i < MST_VMS_PER_NODE; i++) {
        const struct mst_vm *vm = &k->vms[i];

        waits = waits || (forgets(vm, order->vm, order->epoch) && vm->image && vm->proc);
        if (forgets(vm, order->vm, order->epoch) &&
            ((vm->proc && !vm->image) || vm->state == MST_RUN_STARTING || mst_guard_process(k->guard, vm->name) == vm->epoch))
            return mst_why_set(why, -EBUSY, "%s epoch %" PRIu64 " is %s here: fence it first", vm->name, vm->epoch,
                               mst_slot_state_name(vm->state));
    }
    if (waits)
        return forget_later(k, asker, order);
    forget_now(k, asker, order->vm, order->epoch);
    return 0;
}

/* --- the rest --- */

static int run_restart_agent(struct mst_keeper *k, const struct mst_asker *asker, const mst_envelope *env, struct mst_why *why)
{
    const char *text = env->order_restart_agent->text;
    int r = mst_agent_restart(k, text ? text : "ordered", why);

    if (r == 0)
        mst_control_reply_error(asker, 0, NULL);
    return r;
}

static int run_record_fault(struct mst_keeper *k, const struct mst_asker *asker, const mst_envelope *env, struct mst_why *why)
{
    const Mainstay__OrderRecordFault *order = env->order_record_fault;
    const Mainstay__FaultReport *report = order->report;
    struct mst_fault_entry entry = {.fault_id = order->fault_id, .kind = report->kind};

    (void)why;
    entry.wall_ms = report->has_wall_ms ? report->wall_ms : mst_wall_ms();
    if (report->vm)
        snprintf(entry.vm, sizeof(entry.vm), "%s", report->vm);
    if (report->text)
        snprintf(entry.text, sizeof(entry.text), "%s", report->text);
    mst_fault_log_append(k->status, &entry);
    log_notice("fault=%" PRIu64 " kind=%u vm=%s recorded: %s", entry.fault_id, entry.kind, entry.vm[0] ? entry.vm : "-",
               entry.text);
    k->generation++;
    mst_beat_publish(k);
    mst_control_reply_error(asker, 0, NULL);
    return 0;
}

static int run_console(struct mst_keeper *k, const struct mst_asker *asker, const mst_envelope *env, struct mst_why *why)
{
    const Mainstay__OrderConsole *order = env->order_console;
    bool follow = order->has_follow && order->follow;
    int r = mst_console_send(k, asker->control, order->vm, order->has_from ? order->from : 0, follow, why);

    if (r == 0 && !follow)
        mst_control_reply_error(asker, 0, NULL);
    return r;
}

static const struct order_row {
    unsigned body_case;
    const char *name;
    /* 0: answered, or will be; -errno: refused, the caller answers */
    int (*run)(struct mst_keeper *k, const struct mst_asker *asker, const mst_envelope *env, struct mst_why *why);
} orders[] = {
    {MAINSTAY__ENVELOPE__BODY_ORDER_START, "start", run_start},
    {MAINSTAY__ENVELOPE__BODY_ORDER_SAVE, "save", run_save},
    {MAINSTAY__ENVELOPE__BODY_ORDER_CONTINUE, "continue", run_continue},
    {MAINSTAY__ENVELOPE__BODY_ORDER_FENCE, "fence", run_fence},
    {MAINSTAY__ENVELOPE__BODY_ORDER_FORGET, "forget", run_forget},
    {MAINSTAY__ENVELOPE__BODY_ORDER_RESTART_AGENT, "restart-agent", run_restart_agent},
    {MAINSTAY__ENVELOPE__BODY_ORDER_RECORD_FAULT, "record-fault", run_record_fault},
    {MAINSTAY__ENVELOPE__BODY_ORDER_CONSOLE, "console", run_console},
    {MAINSTAY__ENVELOPE__BODY_ORDER_MIRROR, "mirror", mst_images_order},
    {MAINSTAY__ENVELOPE__BODY_ORDER_MIRROR_REVOKE, "mirror-revoke", mst_images_revoke},
    {MAINSTAY__ENVELOPE__BODY_ORDER_MIRROR_TO, "mirror-to", mst_mirrors_to},
    {MAINSTAY__ENVELOPE__BODY_ORDER_MIRROR_SURE, "mirror-sure", mst_mirrors_sure},
    {MAINSTAY__ENVELOPE__BODY_ORDER_MIRROR_DROP, "mirror-drop", mst_mirrors_drop},
};

/* (vm, epoch) that an order names; a fence names several and is told by what it does. */
static void order_event(enum mst_event_kind kind, const struct order_row *row, const mst_envelope *env, int err, const char *text)
{
    struct mst_event event = {.kind = kind,
                              .term = env->has_term ? env->term : 0,
                              .order = env->has_id ? env->id : 0,
                              .what = row->name,
                              .err = err,
                              .text = text};

    switch (env->body_case) {
    case MAINSTAY__ENVELOPE__BODY_ORDER_START:
        event.vm = env->order_start->definition->name;
        event.epoch = env->order_start->epoch;
        break;
    case MAINSTAY__ENVELOPE__BODY_ORDER_SAVE:
        event.vm = env->order_save->vm;
        event.epoch = env->order_save->epoch;
        break;
    case MAINSTAY__ENVELOPE__BODY_ORDER_CONTINUE:
        event.vm = env->order_continue->vm;
        event.epoch = env->order_continue->epoch;
        break;
    case MAINSTAY__ENVELOPE__BODY_ORDER_FORGET:
        event.vm = env->order_forget->vm;
        event.epoch = env->order_forget->epoch;
        break;
    case MAINSTAY__ENVELOPE__BODY_ORDER_MIRROR:
        event.vm = env->order_mirror->definition->name;
        event.epoch = env->order_mirror->epoch;
        break;
    case MAINSTAY__ENVELOPE__BODY_ORDER_MIRROR_TO:
        event.vm = env->order_mirror_to->vm;
        event.epoch = env->order_mirror_to->epoch;
        break;
    case MAINSTAY__ENVELOPE__BODY_ORDER_MIRROR_SURE:
        event.vm = env->order_mirror_sure->vm;
        event.epoch = env->order_mirror_sure->epoch;
        break;
    case MAINSTAY__ENVELOPE__BODY_ORDER_MIRROR_DROP:
        event.vm = env->order_mirror_drop->vm;
        event.epoch = env->order_mirror_drop->epoch;
        break;
    case MAINSTAY__ENVELOPE__BODY_ORDER_MIRROR_REVOKE:
        event.vm = env->order_mirror_revoke->vm;
        event.epoch = env->order_mirror_revoke->epoch;
        break;
    case MAINSTAY__ENVELOPE__BODY_ORDER_CONSOLE: /* changes nothing */
        return;
    default:
        break;
    }
    mst_event(&event);
}

bool mst_order_run(struct mst_keeper *k, const struct mst_asker *asker, const mst_envelope *env)
{
    const struct order_row *row = NULL;
    struct mst_why why = {0};
    size_t i;
    int r;

    for (i = 0; i < sizeof(orders) / sizeof(orders[0]); i++)
        if (orders[i].body_case == env->body_case)
            row = &orders[i];
    if (!row)
        return false;
    r = mst_guard_order(k->guard, env->has_instance ? &env->instance : NULL, env->has_term ? &env->term : NULL, &why);
    if (r == 0) {
        MST_POINT("order.received");
        log_info("order=%" PRIu64 " %s term=%" PRIu64, env->has_id ? env->id : 0, row->name, env->term);
        order_event(MST_EV_ORDER_RECEIVED, row, env, 0, NULL);
        r = row->run(k, asker, env, &why);
    }
    if (r < 0) {
        order_event(MST_EV_ORDER_REFUSED, row, env, r, why.text);
        log_notice("order=%" PRIu64 " %s refused: %s", env->has_id ? env->id : 0, row->name,
                   why.text[0] ? why.text : strerror(-r));
        mst_control_reply_error(asker, r, &why);
    }
    return true;
}
