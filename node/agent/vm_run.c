#include "node/agent/agent.h"

#include "base/event.h"
#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define PACE_AGAIN_MS  10000u
#define SPARE_FRESH_MS 2000u /* it is asked every MST_VM_PING_MS */

static void hold(struct mst_vm *vm);

/* --- silence --- */

void mst_vm_went_silent(struct mst_vm *vm, const struct mst_why *why)
{
    uint64_t now_ms = mst_now_ms();

    if (vm->silent)
        return;
    vm->silent = true;
    log_warning("vm=%s epoch=%" PRIu64 " silent: %s", vm->definition->name, vm->epoch, why->text);
    if (vm->spare && mst_qmp_heard_ms(vm->spare) + SPARE_FRESH_MS > now_ms)
        mst_fault_vm(vm, MAINSTAY__FAULT_KIND__FAULT_VM_SILENT, "%s; its second monitor still answers", why->text);
    else
        mst_fault_vm(vm, MAINSTAY__FAULT_KIND__FAULT_VM_SILENT, "%s; its second monitor does not answer either", why->text);
}

static void answers_again(struct mst_vm *vm)
{
    if (!vm->silent)
        return;
    vm->silent = false;
    log_notice("vm=%s epoch=%" PRIu64 " its monitor answers again", vm->definition->name, vm->epoch);
    mst_vm_tell(vm, vm->state == VM_SAVED || vm->state == VM_PANICKED ? MST_RUN_PAUSED : MST_RUN_RUNNING, true,
                MAINSTAY__FAULT_KIND__FAULT_NONE);
    if (vm->state == VM_RUNNING)
        mst_vm_checkpoint_in(vm, 0);
}

/* A guest that stands though it should run. "paused" is somebody's wish; the others are the end of it until somebody acts. */
static void look_at_status(struct mst_vm *vm, const json_t *ret)
{
    const char *status = json_string_value(json_object_get(ret, "status"));
    struct mst_why why;

    if (!status || vm->state != VM_RUNNING || mst_ckpt_busy(vm->ckpt) || json_is_true(json_object_get(ret, "running")))
        return;
    if (strcmp(status, "guest-panicked") == 0) {
        mst_vm_saw_panic(vm);
    } else if (strcmp(status, "internal-error") == 0 || strcmp(status, "io-error") == 0) {
        mst_why_set(&why, -EIO, "QEMU has stopped the guest: %s", status);
        vm->stopped_by_other = true; /* no checkpoint of that */
        mst_vm_went_silent(vm, &why);
    }
}

static void on_pong(struct mst_qmp *qmp, int err, const json_t *ret, const struct mst_why *why, void *arg)
{
    struct mst_vm *vm = arg;

    (void)qmp;
    vm->ping_waits = false;
    if (err == -ENOTCONN)
        return;
    if (err == -ETIMEDOUT) {
        mst_vm_went_silent(vm, why);
        return;
    }
    if (!vm->stopped_by_other && !mst_ckpt_busy(vm->ckpt))
        answers_again(vm);
    if (err == 0)
        look_at_status(vm, ret);
}

/* Once a second, and not with every checkpoint: they are sorted for it. Goes out with the next one. */
static void note_pauses(struct mst_vm *vm)
{
    vm->note.pause_p50_us = mst_stats_percentile(&vm->stats, MST_STAT_PAUSE, 50);
    vm->note.pause_p99_us = mst_stats_percentile(&vm->stats, MST_STAT_PAUSE, 99);
}

static void on_ping(uv_timer_t *timer)
{
    struct mst_vm *vm = timer->data;

    if (vm->state == VM_RUNNING) {
        mst_vm_trouble_look(vm);
        note_pauses(vm);
    }
    if (vm->state != VM_RUNNING || vm->ping_waits || mst_ckpt_busy(vm->ckpt))
        return; /* the commands of a checkpoint have deadlines of their own */
    if (mst_qmp_execute(vm->qmp, "query-status", NULL, -1, MST_QMP_SILENT_MS, on_pong, vm) == 0)
        vm->ping_waits = true;
    if (vm->spare)
        mst_qmp_execute(vm->spare, "query-status", NULL, -1, MST_QMP_SILENT_MS, NULL, NULL);
}

/* --- checkpoints --- */

static void on_tick(uv_timer_t *timer)
{
    struct mst_vm *vm = timer->data;
    int r;

    if (vm->state != VM_RUNNING || vm->silent || vm->stopped_by_other)
        return; /* whatever ends that schedules again */
    vm->ckpt_due = vm->put_waits > 0;
    if (vm->put_waits > 0)
        return; /* on_put */
    if (!mst_vm_rest(vm))
        return; /* on_made */
    vm->ckpt_begun_ns = mst_now_ns();
    vm->took = (struct mst_pace_took){0};
    vm->took_waits = false;
    r = mst_ckpt_take(vm->ckpt, MST_CKPT_RUN_ON);
    if (r < 0) {
        log_warning("vm=%s epoch=%" PRIu64 " checkpoint not begun (%s): %s", vm->definition->name, vm->epoch,
                    mst_ckpt_state(vm->ckpt), mst_errname(r));
        mst_vm_trouble(vm, MST_SAVE_TROUBLE_FAILED, "it cannot be begun: %s", mst_errname(r));
        mst_vm_checkpoint_in(vm, MST_CKPT_AFTER_FAILURE_MS);
    }
}

void mst_vm_checkpoint_in(struct mst_vm *vm, uint64_t delay_ms)
{
    if (mst_vm_is_protected(vm))
        uv_timer_start(&vm->timer, on_tick, delay_ms, 0);
}

/* What the last one took is known: here, and by the mirrors. */
static void schedule_next(struct mst_vm *vm)
{
    static const char *const words[] = {[MST_SAVE_PACE_SET] = "as its definition says",
                                        [MST_SAVE_PACE_STALL] = "oftener it would stand still for too much of the time",
                                        [MST_SAVE_PACE_COPY] = "one takes so long on this node",
                                        [MST_SAVE_PACE_MIRROR] = "its mirrors take so long for one"};
    uint64_t next_ns, passed_ns = mst_now_ns() - vm->ckpt_begun_ns, now_ms = mst_now_ms();
    enum mst_save_pace pace;

    next_ns = mst_pace_next_ns(&vm->pace, &vm->took, &pace);
    vm->stats.late += pace != MST_SAVE_PACE_SET;
    vm->note.interval_ms = (uint32_t)((next_ns + MST_NS_PER_MS - 1) / MST_NS_PER_MS);
    if (pace != vm->note.pace && (now_ms >= vm->pace_told_ms + PACE_AGAIN_MS || vm->pace_told_ms == 0)) {
        vm->pace_told_ms = now_ms;
        log_info("vm=%s epoch=%" PRIu64 " a checkpoint every %" PRIu32 " ms, its interval is %" PRIu32 " ms: %s (pause %" PRIu64
                 " us, %" PRIu64 " ms here, %" PRIu64 " ms until its mirrors had it)",
                 vm->definition->name, vm->epoch, vm->note.interval_ms, vm->definition->checkpoint_interval_ms, words[pace],
                 vm->took.pause_ns / 1000, vm->took.own_ns / MST_NS_PER_MS, vm->took.put_ns / MST_NS_PER_MS);
    }
    vm->note.pace = pace;
    mst_ckpt_note(vm->ckpt, &vm->note, false);
    mst_vm_checkpoint_in(vm, next_ns > passed_ns ? (next_ns - passed_ns + MST_NS_PER_MS - 1) / MST_NS_PER_MS : 0);
}

static void took(struct mst_vm *vm, const struct mst_ckpt_report *report)
{
    log_debug("vm=%s epoch=%" PRIu64 " seq=%" PRIu64 " pause=%" PRIu64 "us stop=%" PRIu64 " device=%" PRIu64 " pages=%" PRIu64
              " cont=%" PRIu64 " early=%" PRIu64 "us apply=%" PRIu64 "us pages %" PRIu64 "+%" PRIu64 " of %" PRIu64
              " written%s device %" PRIu64 " bytes",
              vm->definition->name, vm->epoch, report->seq, report->pause_ns / 1000, report->stop_ns / 1000,
              report->device_ns / 1000, report->pages_ns / 1000, report->cont_ns / 1000, report->early_ns / 1000,
              report->apply_ns / 1000, report->pages_early, report->pages_late, report->pages_dirty,
              report->first   ? " first"
              : report->whole ? " whole"
                              : "",
              report->device_bytes);
    mst_event(&(struct mst_event){.kind = MST_EV_CHECKPOINT_PUBLISHED,
                                  .vm = vm->definition->name,
                                  .epoch = vm->epoch,
                                  .seq = report->seq,
                                  .duration_us = report->pause_ns / 1000});
    mst_stats_add(&vm->stats, report);
    vm->note.dirty_pages += report->pages_dirty;
    vm->took.pause_ns = report->mark_ns + report->pause_ns;
    vm->took.own_ns = mst_now_ns() - vm->ckpt_begun_ns;
    vm->took_waits = vm->put_waits > 0;
    vm->good_ns = mst_now_ns();
    vm->good_seq = report->seq;
    if (report->whole)
        mst_vm_trouble(vm, MST_SAVE_TROUBLE_WHOLE,
                       "its pages do not fit into the delta: it stood for all of its memory, %" PRIu64 " ms",
                       report->pause_ns / MST_NS_PER_MS);
    else if (vm->note.trouble != MST_SAVE_TROUBLE_MIRROR)
        mst_vm_trouble_over(vm);
    if (report->seq == 1)
        log_info("vm=%s epoch=%" PRIu64 " first checkpoint: from here on it survives the end of its QEMU", vm->definition->name,
                 vm->epoch);
}

static void not_taken(struct mst_vm *vm, int err, const struct mst_ckpt_report *report, const struct mst_why *why)
{
    struct mst_why stands;

    vm->stats.failed++;
    log_warning("vm=%s epoch=%" PRIu64 " checkpoint failed: %s", vm->definition->name, vm->epoch, why->text);
    mst_vm_trouble(vm, MST_SAVE_TROUBLE_FAILED, "%s", why->text);
    if (report->stands && err != -ENOTCONN && err != -ECANCELED) {
        mst_why_set(&stands, err, "the guest stands and cannot be continued: %s", why->text);
        vm->stopped_by_other = true;
        mst_vm_went_silent(vm, &stands);
    } else if (!report->stands) {
        answers_again(vm);
    }
}

static void saved(struct mst_vm *vm, const struct mst_ckpt_report *report)
{
    vm->save_result.seq = report->seq;
    vm->save_result.has_device_bytes = vm->save_result.has_pause_us = 1;
    vm->save_result.device_bytes = report->device_bytes;
    vm->save_result.pause_us = report->pause_ns / 1000;
    mst_vm_move(vm, VM_SAVED);
    mst_event(&(struct mst_event){.kind = MST_EV_VM_SAVED, .vm = vm->definition->name, .epoch = vm->epoch, .seq = report->seq});
    log_notice("vm=%s epoch=%" PRIu64 " saved by order as seq=%" PRIu64 ", stands since %" PRIu64 " us", vm->definition->name,
               vm->epoch, report->seq, report->pause_ns / 1000);
    mst_vm_tell(vm, MST_RUN_PAUSED, false, MAINSTAY__FAULT_KIND__FAULT_NONE);
    mst_waiters_answer(vm, &vm->save_waiters, 0, NULL, NULL, &vm->save_result);
}

static void runs_again(struct mst_vm *vm)
{
    mst_vm_move(vm, VM_RUNNING);
    mst_vm_tell(vm, MST_RUN_RUNNING, false, MAINSTAY__FAULT_KIND__FAULT_NONE);
    mst_vm_checkpoint_in(vm, 0);
}

static void on_done(struct mst_ckpt *ckpt, int err, const struct mst_ckpt_report *report, const struct mst_why *why, void *arg)
{
    struct mst_vm *vm = arg;

    (void)ckpt;
    switch (vm->state) {
    case VM_RUNNING:
        if (err == 0) {
            took(vm, report);
            if (!vm->took_waits) /* otherwise on_put */
                schedule_next(vm);
        } else {
            not_taken(vm, err, report, why);
            mst_vm_checkpoint_in(vm, MST_CKPT_AFTER_FAILURE_MS);
        }
        break;
    case VM_SAVING:
        if (err == 0 && report->stands) {
            saved(vm, report);
        } else if (err == 0) { /* the one that was under way when the order came */
            took(vm, report);
            if (vm->put_waits == 0)
                hold(vm);
        } else {
            not_taken(vm, err, report, why);
            mst_waiters_answer(vm, &vm->save_waiters, err, why, NULL, NULL);
            runs_again(vm);
        }
        break;
    case VM_UNDOING:
        if (err) {
            log_warning("vm=%s epoch=%" PRIu64 " cannot be continued: %s", vm->definition->name, vm->epoch, why->text);
            mst_vm_move(vm, VM_SAVED);
            mst_waiters_answer(vm, &vm->continue_waiters, err, why, NULL, NULL);
        } else {
            log_notice("vm=%s epoch=%" PRIu64 " continues by order", vm->definition->name, vm->epoch);
            runs_again(vm);
            mst_waiters_answer(vm, &vm->continue_waiters, 0, NULL, NULL, NULL);
        }
        break;
    default: /* panicked or on its way out */
        break;
    }
}

static void on_silent(struct mst_ckpt *ckpt, const struct mst_why *why, void *arg)
{
    (void)ckpt;
    mst_vm_went_silent(arg, why);
}

/* --- mirrors --- */

static void on_put(int err, const mst_envelope *reply, const struct mst_why *why, void *arg)
{
    struct mst_vm *vm = arg;

    (void)reply;
    vm->put_waits--;
    if (vm->put_waits > 0)
        return; /* asked again since */
    vm->took.put_ns = mst_now_ns() - vm->ckpt_begun_ns;
    if (err) {
        log_notice("vm=%s epoch=%" PRIu64 " its mirrors do not get this checkpoint: %s", vm->definition->name, vm->epoch,
                   why->text);
        mst_vm_trouble(vm, MST_SAVE_TROUBLE_MIRROR, "its mirrors do not get it: %s", why->text);
    } else if (vm->note.trouble == MST_SAVE_TROUBLE_MIRROR) {
        mst_vm_trouble_over(vm);
    }
    if (vm->state == VM_SAVING && vm->ckpt && !mst_ckpt_busy(vm->ckpt))
        hold(vm);
    else if (vm->state == VM_RUNNING && vm->took_waits)
        schedule_next(vm);
    else if (vm->state == VM_RUNNING && vm->ckpt_due)
        mst_vm_checkpoint_in(vm, 0);
    vm->ckpt_due = vm->took_waits = false;
}

/* The keeper sends the published checkpoint to the mirrors, if there are any, and answers when its delta may be written again. So a mirror that is slow
 * slows the checkpoints down, and not the guest. found: it was published before we came, or before we lost its monitor. Then the record alone says what
 * is in it: the pages of a delta that it still names, or nothing. */
static void put_ask(struct mst_vm *vm, bool found, bool whole)
{
    Mainstay__CheckpointPut body = MAINSTAY__CHECKPOINT_PUT__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    uint32_t pages, table_crc32c;
    int r;

    if (vm->definition->protect != MAINSTAY__PROTECT__PROTECT_MIRROR)
        return;
    body.vm = vm->definition->name;
    body.epoch = vm->epoch;
    body.seq = mst_save_seq(vm->writer);
    pages = mst_save_delta(vm->writer, &table_crc32c);
    if (!found || pages > 0) {
        body.has_delta_pages = body.has_delta_table_crc32c = body.has_whole = 1;
        body.delta_pages = pages;
        body.delta_table_crc32c = table_crc32c;
        body.whole = whole;
    }
    env.body_case = MAINSTAY__ENVELOPE__BODY_CHECKPOINT_PUT;
    env.checkpoint_put = &body;
    r = mst_port_request(vm->agent->port, &env, on_put, vm);
    vm->put_waits += r == 0;
    if (r < 0)
        log_warning("vm=%s epoch=%" PRIu64 " checkpoint %" PRIu64 " not handed to the keeper: %s", vm->definition->name,
                    vm->epoch, body.seq, mst_errname(r));
}

static void on_committed(struct mst_ckpt *ckpt, bool whole, void *arg)
{
    (void)ckpt;
    put_ask(arg, false, whole);
}

static void on_marked(int err, const mst_envelope *reply, const struct mst_why *why, void *arg)
{
    struct mst_vm *vm = arg;

    if (err) /* fenced meanwhile: nothing of it leaves any more */
        log_notice("vm=%s epoch=%" PRIu64 " what it sent is not marked: %s", vm->definition->name, vm->epoch, why->text);
    if (vm->ckpt && reply->reply_to == vm->mark_id) /* else it is the answer for a checkpoint that has failed since */
        mst_ckpt_marked(vm->ckpt);
}

/* What the guest has sent until now belongs to this checkpoint, and leaves when the mirrors have it: the keeper draws the line before the guest goes on. */
static int on_stands(struct mst_ckpt *ckpt, uint64_t seq, void *arg)
{
    Mainstay__OutputMark body = MAINSTAY__OUTPUT_MARK__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    struct mst_vm *vm = arg;
    int r;

    (void)ckpt;
    if (vm->definition->protect != MAINSTAY__PROTECT__PROTECT_MIRROR || !vm->definition->output_commit)
        return 0;
    body.vm = vm->definition->name;
    body.epoch = vm->epoch;
    body.seq = seq;
    env.body_case = MAINSTAY__ENVELOPE__BODY_OUTPUT_MARK;
    env.output_mark = &body;
    r = mst_port_request(vm->agent->port, &env, on_marked, vm);
    vm->mark_id = env.id;
    return r < 0 ? r : 1;
}

int mst_vm_run_begin(struct mst_vm *vm, bool stands, struct mst_why *why)
{
    static const struct mst_ckpt_events events = {on_done, on_silent, on_committed, on_stands};
    struct mst_ckpt_conf conf = {.loop = vm->agent->loop,
                                 .qmp = vm->qmp,
                                 .map = &vm->map->map,
                                 .writer = vm->writer,
                                 .silent_ms = MST_QMP_SILENT_MS,
                                 .stands = stands,
                                 .doubt = vm->attaching};
    struct mst_why here;
    int r;

    if (vm->agent->soft_dirty && mst_vm_is_protected(vm)) {
        const struct mst_dirty_file files[MST_DIRTY_FILES_MAX] = {{vm->map->ram_fd, vm->map->map.ram_bytes - vm->map->disk_bytes},
                                                                  {vm->map->disk_fd, vm->map->disk_bytes}};

        r = mst_dirty_open(vm->pid, files, &vm->dirty, &here);
        if (r < 0)
            log_warning("vm=%s epoch=%" PRIu64 " pages are compared, as dirty pages cannot be tracked: %s", vm->definition->name,
                        vm->epoch, here.text);
    }
    conf.dirty = vm->dirty;
    r = mst_ckpt_new(&conf, &events, vm, &vm->ckpt);
    if (r < 0) {
        mst_dirty_close(vm->dirty);
        vm->dirty = NULL;
        return mst_why_set(why, r, "cannot prepare checkpoints of VM %s: %s", vm->definition->name, mst_errname(r));
    }
    vm->silent = vm->stopped_by_other = vm->ping_waits = vm->took_waits = false;
    mst_vm_trouble_begin(vm);
    uv_timer_start(&vm->ping, on_ping, MST_VM_PING_MS, MST_VM_PING_MS);
    if (vm->attaching)
        put_ask(vm, true, false);
    if (!stands)
        mst_vm_checkpoint_in(vm, 0);
    return 0;
}

void mst_vm_run_stop(struct mst_vm *vm)
{
    struct mst_why why;

    mst_why_set(&why, -ESRCH, "QEMU of VM %s ended meanwhile", vm->definition->name);
    uv_timer_stop(&vm->timer);
    uv_timer_stop(&vm->ping);
    mst_waiters_answer(vm, &vm->save_waiters, -ESRCH, &why, NULL, NULL);
    mst_waiters_answer(vm, &vm->continue_waiters, -ESRCH, &why, NULL, NULL);
    mst_waiters_answer(vm, &vm->start_waiters, -ESRCH, &why, NULL, NULL);
}

/* --- events --- */

void mst_vm_saw_panic(struct mst_vm *vm)
{
    struct mst_why why;
    bool known = vm->panicked && vm->panic_told;

    vm->panicked = true;
    if (vm->state != VM_RUNNING && vm->state != VM_SAVING && vm->state != VM_UNDOING)
        return; /* looked at again when it has started, or is taken up */
    mst_vm_move(vm, VM_PANICKED);
    uv_timer_stop(&vm->timer);
    mst_why_set(&why, -ECANCELED, "the guest of VM %s panicked", vm->definition->name);
    mst_waiters_answer(vm, &vm->save_waiters, -ECANCELED, &why, NULL, NULL);
    mst_waiters_answer(vm, &vm->continue_waiters, -ECANCELED, &why, NULL, NULL);
    if (known)
        return; /* its monitor was lost and found again */
    vm->panic_told = true;
    log_notice("vm=%s epoch=%" PRIu64 " guest panicked; its last checkpoint is seq=%" PRIu64, vm->definition->name, vm->epoch,
               mst_save_seq(vm->writer));
    mst_vm_tell(vm, MST_RUN_PAUSED, true, MAINSTAY__FAULT_KIND__FAULT_VM_PANICKED);
    mst_fault_vm(vm, MAINSTAY__FAULT_KIND__FAULT_VM_PANICKED, "the guest reported a panic through pvpanic; it stands");
}

/* STOP and RESUME that no order and no checkpoint of ours explains. */
static void on_stop_or_resume(struct mst_vm *vm, bool stopped)
{
    if (vm->state != VM_RUNNING || !vm->ckpt || mst_ckpt_busy(vm->ckpt) || vm->panicked)
        return;
    if (stopped != vm->stopped_by_other)
        log_notice("vm=%s epoch=%" PRIu64 " somebody else %s the guest%s", vm->definition->name, vm->epoch,
                   stopped ? "stopped" : "continued",
                   stopped && mst_vm_is_protected(vm) ? ": no checkpoints until it runs again" : "");
    vm->stopped_by_other = stopped;
    if (!stopped)
        mst_vm_checkpoint_in(vm, 0);
}

void mst_vm_run_event(struct mst_vm *vm, const char *name, const json_t *data)
{
    static const char *const notable[] = {"SHUTDOWN", "RESET",          "GUEST_CRASHLOADED",
                                          "WATCHDOG", "MEMORY_FAILURE", "BLOCK_IO_ERROR"};
    const char *reason = json_string_value(json_object_get(data, "reason"));

    if (strcmp(name, "GUEST_PANICKED") == 0) {
        if (!vm->panicked)
            mst_vm_saw_panic(vm);
        return;
    }
    if (strcmp(name, "STOP") == 0 || strcmp(name, "RESUME") == 0) {
        if (vm->state != VM_RUNNING || !vm->ckpt || !mst_ckpt_busy(vm->ckpt)) /* there its own event says it all */
            mst_event(&(struct mst_event){
                .kind = name[0] == 'S' ? MST_EV_CPU_STOP : MST_EV_CPU_RUN, .vm = vm->definition->name, .epoch = vm->epoch});
        on_stop_or_resume(vm, name[0] == 'S');
        return;
    }
    for (unsigned i = 0; i < sizeof(notable) / sizeof(notable[0]); i++)
        if (strcmp(name, notable[i]) == 0)
            log_notice("vm=%s epoch=%" PRIu64 " QEMU reports %s%s%s", vm->definition->name, vm->epoch, name, reason ? ": " : "",
                       reason ? reason : "");
}

static void reconnect(struct mst_vm *vm)
{
    mst_vm_connect(vm, MST_QMP_SILENT_MS, MST_VM_RECONNECT_MS);
}

/* Either QEMU ends (VmExited follows), or it dropped us: looked for again, as after a restart of the agent. */
void mst_vm_run_disconnected(struct mst_vm *vm, const struct mst_why *why)
{
    bool again = vm->state == VM_CONNECTING;

    if (vm->state == VM_ENDING)
        return;
    mst_vm_disconnect(vm);
    if (again) {
        mst_vm_went_silent(vm, why);
    } else {
        log_notice("vm=%s epoch=%" PRIu64 " monitor lost while %s: %s", vm->definition->name, vm->epoch,
                   mst_vm_state_name(vm->state), why->text);
        vm->expect_standing = vm->state == VM_SAVED || vm->state == VM_UNDOING || (vm->attaching && vm->expect_standing);
        vm->attaching = true;
        mst_vm_move(vm, VM_CONNECTING);
    }
    mst_vm_drop_ckpt(vm, reconnect);
}

/* --- orders --- */

static void hold(struct mst_vm *vm)
{
    struct mst_why why;
    int r = mst_ckpt_take(vm->ckpt, MST_CKPT_STAY);

    if (r == 0)
        return;
    mst_why_set(&why, r, "VM %s cannot be saved now: its checkpointer is %s", vm->definition->name, mst_ckpt_state(vm->ckpt));
    mst_waiters_answer(vm, &vm->save_waiters, r, &why, NULL, NULL);
    mst_vm_move(vm, VM_RUNNING);
    mst_vm_checkpoint_in(vm, MST_CKPT_AFTER_FAILURE_MS);
}

static struct mst_vm *ordered(struct mst_agent *agent, const mst_envelope *env, const char *name, uint64_t epoch,
                              const char *what)
{
    struct mst_vm *vm = mst_vm_find(agent, name, epoch);
    struct mst_why why;

    if (vm)
        return vm;
    mst_why_set(&why, -ENOENT, "VM %s epoch %" PRIu64 " is not here", name, epoch);
    log_notice("vm=%s epoch=%" PRIu64 " order to %s refused: it is not here", name, epoch, what);
    mst_port_done(agent->port, env->id, -ENOENT, &why, NULL, NULL);
    return NULL;
}

static void refuse(struct mst_vm *vm, const mst_envelope *env, const char *what)
{
    struct mst_why why;

    mst_why_set(&why, -EBUSY, "VM %s is %s: it cannot %s now", vm->definition->name, mst_vm_state_name(vm->state), what);
    log_notice("vm=%s epoch=%" PRIu64 " order refused: %s", vm->definition->name, vm->epoch, why.text);
    mst_port_done(vm->agent->port, env->id, -EBUSY, &why, NULL, NULL);
}

void mst_vm_order_save(struct mst_agent *agent, const mst_envelope *env)
{
    struct mst_vm *vm = ordered(agent, env, env->order_save->vm, env->order_save->epoch, "save");
    struct mst_why why;

    if (!vm)
        return;
    if (vm->state == VM_SAVED && mst_save_source(vm->writer) == MST_SAVE_NONE) {
        mst_why_set(&why, -ENODATA, "the save of VM %s was withdrawn to continue it, and it stands: continue it first",
                    vm->definition->name);
        log_notice("vm=%s epoch=%" PRIu64 " order refused: %s", vm->definition->name, vm->epoch, why.text);
        mst_port_done(agent->port, env->id, -ENODATA, &why, NULL, NULL);
    } else if (vm->state == VM_SAVED) {
        mst_port_done(agent->port, env->id, 0, NULL, NULL, &vm->save_result);
    } else if (vm->state == VM_SAVING || (vm->attaching && vm->state < VM_RUNNING)) {
        mst_waiters_add(&vm->save_waiters, env->id); /* attaching: mst_vm_attached looks */
    } else if (vm->state == VM_RUNNING) {
        log_notice("vm=%s epoch=%" PRIu64 " order to save and stand", vm->definition->name, vm->epoch);
        mst_waiters_add(&vm->save_waiters, env->id);
        mst_vm_save_now(vm);
    } else {
        refuse(vm, env, "be saved");
    }
}

void mst_vm_save_now(struct mst_vm *vm)
{
    mst_vm_move(vm, VM_SAVING);
    uv_timer_stop(&vm->timer);
    if (!mst_ckpt_busy(vm->ckpt) && vm->put_waits == 0) /* otherwise its end brings us back */
        hold(vm);
}

void mst_vm_order_continue(struct mst_agent *agent, const mst_envelope *env)
{
    struct mst_vm *vm = ordered(agent, env, env->order_continue->vm, env->order_continue->epoch, "continue");

    if (!vm)
        return;
    if (vm->state == VM_RUNNING) {
        mst_port_done(agent->port, env->id, 0, NULL, NULL, NULL);
    } else if (vm->state == VM_UNDOING || (vm->attaching && vm->state < VM_RUNNING)) {
        mst_waiters_add(&vm->continue_waiters, env->id);
    } else if (vm->state == VM_SAVED) {
        mst_waiters_add(&vm->continue_waiters, env->id);
        mst_vm_continue_now(vm);
    } else {
        refuse(vm, env, "be continued");
    }
}

void mst_vm_continue_now(struct mst_vm *vm)
{
    struct mst_why why;
    int r;

    mst_vm_move(vm, VM_UNDOING);
    vm->expect_standing = false;
    r = mst_ckpt_resume(vm->ckpt);
    if (r == 0)
        return;
    mst_why_set(&why, r, "VM %s cannot be continued: its checkpointer is %s", vm->definition->name, mst_ckpt_state(vm->ckpt));
    mst_vm_move(vm, VM_SAVED);
    mst_waiters_answer(vm, &vm->continue_waiters, r, &why, NULL, NULL);
}
