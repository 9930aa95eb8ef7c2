#include "node/agent/checkpoint_impl.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/priority.h"
#include "base/state.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const struct mst_state states[ST_COUNT] = {
    [ST_IDLE] = {"idle", MST_TO(ST_MARKING) | MST_TO(ST_EARLY) | MST_TO(ST_ARMING)},
    [ST_MARKING] = {"marking", MST_TO(ST_EARLY) | MST_TO(ST_RESCUING) | MST_TO(ST_HELD)},
    [ST_EARLY] = {"early", MST_TO(ST_ARMING)},
    [ST_ARMING] = {"arming", MST_TO(ST_SAVING) | MST_TO(ST_RESCUING) | MST_TO(ST_IDLE) | MST_TO(ST_HELD)},
    [ST_SAVING] = {"saving", MST_TO(ST_STAGING) | MST_TO(ST_RESCUING) | MST_TO(ST_HELD)},
    [ST_STAGING] = {"staging", MST_TO(ST_CONTINUING) | MST_TO(ST_APPLYING) | MST_TO(ST_RESCUING) | MST_TO(ST_HELD)},
    [ST_CONTINUING] = {"continuing", MST_TO(ST_APPLYING) | MST_TO(ST_RESCUING) | MST_TO(ST_IDLE) | MST_TO(ST_HELD)},
    [ST_APPLYING] = {"applying", MST_TO(ST_IDLE) | MST_TO(ST_HELD)},
    [ST_HELD] = {"held", MST_TO(ST_CONTINUING)},
    [ST_RESCUING] = {"rescuing", MST_TO(ST_APPLYING) | MST_TO(ST_IDLE) | MST_TO(ST_HELD)},
};

static void marked(struct mst_ckpt *ckpt);
static void enter_arming(struct mst_ckpt *ckpt);
static void enter_staging(struct mst_ckpt *ckpt);
static void enter_continuing(struct mst_ckpt *ckpt);
static void enter_applying(struct mst_ckpt *ckpt);
static void rescue(struct mst_ckpt *ckpt, int err, const struct mst_why *why);

static void move(struct mst_ckpt *ckpt, enum mst_ckpt_state next)
{
    if (!mst_state_may(states, ST_COUNT, ckpt->state, next))
        abort(); /* a hole in the table above: going on could commit half a checkpoint */
    ckpt->state = next;
}

static void done(struct mst_ckpt *ckpt, int err, const struct mst_why *why)
{
    static const struct mst_why nothing;
    struct mst_ckpt_report report;

    move(ckpt, ckpt->report.stands ? ST_HELD : ST_IDLE);
    ckpt->report.seq = mst_save_seq(ckpt->conf.writer);
    ckpt->report.total_ns = mst_now_ns() - ckpt->begun_ns;
    report = ckpt->report; /* the callback may start the next one */
    ckpt->events->on_done(ckpt, err, &report, why ? why : &nothing, ckpt->arg);
}

/* Before anything settles the record, and the guest does not wait for it. */
static void tell_committed(struct mst_ckpt *ckpt)
{
    if (ckpt->to_tell && ckpt->events->on_committed && !ckpt->freeing)
        ckpt->events->on_committed(ckpt, ckpt->way != WAY_DELTA, ckpt->arg);
    ckpt->to_tell = false;
}

/* --- workers: page copies --- */

static void maybe_free(struct mst_ckpt *ckpt)
{
    void (*freed)(void *) = ckpt->freed;
    void *arg = ckpt->freed_arg;

    if (!ckpt->freeing || !ckpt->timer_closed || ckpt->working)
        return;
    if (ckpt->device)
        munmap((void *)(uintptr_t)ckpt->device, MST_DEVICE_BYTES_MAX);
    if (ckpt->device_fd >= 0)
        close(ckpt->device_fd);
    free(ckpt->early);
    free(ckpt);
    if (freed)
        freed(arg);
}

static void note_put(struct mst_ckpt *ckpt)
{
    if (!ckpt->note_waits || ckpt->working || ckpt->freeing)
        return;
    mst_save_note(ckpt->conf.writer, &ckpt->note, ckpt->note_now);
    ckpt->note_waits = ckpt->note_now = false;
}

static void work_done(uv_work_t *work, int status)
{
    struct mst_ckpt *ckpt = work->data;

    (void)status; /* never cancelled */
    ckpt->working = false;
    if (ckpt->freeing) {
        maybe_free(ckpt);
        return;
    }
    note_put(ckpt);
    switch (ckpt->state) {
    case ST_MARKING:
        marked(ckpt);
        break;
    case ST_EARLY:
        ckpt->report.early_ns = ckpt->work_ns;
        enter_arming(ckpt);
        break;
    case ST_STAGING:
        ckpt->report.pages_ns = ckpt->work_ns;
        ckpt->committed = ckpt->to_tell = ckpt->work_err == 0;
        ckpt->report.whole = ckpt->way == WAY_RAM;
        ckpt->report.first = ckpt->way == WAY_FILL;
        if (ckpt->committed)
            ckpt->doubt = false;
        if (ckpt->work_err < 0) {
            struct mst_why why;

            mst_why_set(&why, ckpt->work_err, "cannot commit the checkpoint: %s", mst_errname(ckpt->work_err));
            rescue(ckpt, ckpt->work_err, &why);
        } else if (ckpt->mode == MST_CKPT_STAY) {
            ckpt->report.pause_ns = mst_now_ns() - ckpt->stop_sent_ns;
            ckpt->report.stands = true;
            tell_committed(ckpt);
            if (ckpt->way != WAY_DELTA)
                done(ckpt, 0, NULL);
            else
                enter_applying(ckpt);
        } else {
            enter_continuing(ckpt);
        }
        break;
    case ST_APPLYING:
        ckpt->report.apply_ns = ckpt->work_ns;
        done(ckpt, ckpt->err, &ckpt->why);
        break;
    default:
        abort(); /* no other state has a worker */
    }
}

static void work_run(uv_work_t *work)
{
    mst_priority_worker();
    ((struct mst_ckpt *)work->data)->work_what(work);
}

static void work_start(struct mst_ckpt *ckpt, uv_work_cb what)
{
    ckpt->work_what = what;
    ckpt->work.data = ckpt;
    ckpt->working = true;
    ckpt->work_err = 0;
    uv_queue_work(ckpt->conf.loop, &ckpt->work, work_run, work_done); /* fails only without a callback */
}

/* --- steps --- */

/* The end of a checkpoint that went wrong; when it went wrong after the commit, the delta still has to go into the shadow. */
static void fail(struct mst_ckpt *ckpt)
{
    if (ckpt->committed && ckpt->way == WAY_DELTA)
        enter_applying(ckpt);
    else
        done(ckpt, ckpt->err, &ckpt->why);
}

static void on_rescued(int err, const struct mst_why *why, void *arg)
{
    struct mst_ckpt *ckpt = arg;

    ckpt->resume = NULL;
    if (err && ckpt->err == 0) {
        ckpt->err = err;
        ckpt->why = *why;
    }
    ckpt->report.stands = err != 0;
    if (ckpt->stop_sent_ns != 0)
        ckpt->report.pause_ns = mst_now_ns() - ckpt->stop_sent_ns;
    fail(ckpt);
}

/* The checkpoint failed after the guest may have been told to stop. QEMU answers in order, so whatever it still has to do comes before
 * our `cont`; no deadline here, as a guest left standing helps nobody. */
static void rescue(struct mst_ckpt *ckpt, int err, const struct mst_why *why)
{
    int r;

    ckpt->err = err;
    ckpt->why = *why;
    mst_qmp_forget(ckpt->conf.qmp, ckpt);
    uv_timer_stop(&ckpt->timer);
    if (ckpt->panicked || err == -ENOTCONN) {
        ckpt->report.stands = true;
        fail(ckpt);
        return;
    }
    move(ckpt, ST_RESCUING);
    if (err == -ETIMEDOUT)
        ckpt->events->on_silent(ckpt, why, ckpt->arg);
    if (ckpt->freeing)
        return;
    r = mst_resume_start(ckpt->conf.loop, ckpt->conf.qmp, MST_RESUME_CAREFUL, 0, on_rescued, ckpt, &ckpt->resume);
    if (r < 0) {
        ckpt->report.stands = true;
        fail(ckpt);
    }
}

static void panicked(struct mst_ckpt *ckpt)
{
    struct mst_why why;

    mst_why_set(&why, -ECANCELED, "the guest panicked before the checkpoint was complete; the one before it stays");
    rescue(ckpt, -ECANCELED, &why);
}

static void maybe_saved(struct mst_ckpt *ckpt)
{
    struct mst_why why;
    off_t bytes;

    if (ckpt->state != ST_SAVING || !ckpt->saved || !ckpt->migrate_answered || ckpt->mark_waits)
        return;
    if (ckpt->panicked) {
        panicked(ckpt);
        return;
    }
    uv_timer_stop(&ckpt->timer);
    ckpt->report.device_ns = mst_now_ns() - ckpt->mark_ns;
    bytes = lseek(ckpt->device_fd, 0, SEEK_CUR); /* the position is QEMU's, as the descriptor is shared */
    if (bytes <= 0 || bytes > (off_t)MST_DEVICE_BYTES_MAX) {
        mst_why_set(&why, -EMSGSIZE, "QEMU wrote %" PRId64 " bytes of device state", (int64_t)bytes);
        rescue(ckpt, -EMSGSIZE, &why);
        return;
    }
    ckpt->report.device_bytes = (uint64_t)bytes;
    enter_staging(ckpt);
}

static void on_stop(struct mst_qmp *qmp, int err, const json_t *ret, const struct mst_why *why, void *arg)
{
    struct mst_ckpt *ckpt = arg;
    struct mst_why here;
    int r;

    (void)qmp;
    (void)ret;
    if (err) {
        rescue(ckpt, err, why);
        return;
    }
    ckpt->report.stop_ns = mst_now_ns() - ckpt->stop_sent_ns;
    ckpt->mark_ns = mst_now_ns();
    MST_POINT("checkpoint.stands");
    r = ckpt->events->on_stands ? ckpt->events->on_stands(ckpt, mst_save_seq(ckpt->conf.writer) + 1, ckpt->arg) : 0;
    if (r < 0) {
        mst_why_set(&here, -EIO, "cannot mark what the guest has sent: %s", mst_errname(r));
        rescue(ckpt, -EIO, &here); /* not r: QEMU's monitor is well */
        return;
    }
    ckpt->mark_waits = r > 0;
}

void mst_ckpt_marked(struct mst_ckpt *ckpt)
{
    if (ckpt->freeing || !ckpt->mark_waits)
        return;
    ckpt->mark_waits = false;
    maybe_saved(ckpt);
}

static void on_migrate(struct mst_qmp *qmp, int err, const json_t *ret, const struct mst_why *why, void *arg)
{
    struct mst_ckpt *ckpt = arg;

    (void)qmp;
    (void)ret;
    if (err) {
        rescue(ckpt, err, why);
        return;
    }
    ckpt->migrate_answered = true;
    maybe_saved(ckpt);
}

static void on_late(uv_timer_t *timer)
{
    struct mst_ckpt *ckpt = timer->data;
    uint64_t now_ms = mst_qmp_clock_ms(ckpt->conf.qmp);
    struct mst_why why;

    if (now_ms < ckpt->save_by_ms) {
        uv_timer_start(timer, on_late, ckpt->save_by_ms - now_ms, 0);
        return;
    }
    mst_why_set(&why, -ETIMEDOUT, "QEMU has not ended its save after %" PRIu32 " ms", ckpt->conf.silent_ms);
    rescue(ckpt, -ETIMEDOUT, &why);
}

static void enter_saving(struct mst_ckpt *ckpt)
{
    struct mst_why why;
    int r;

    move(ckpt, ST_SAVING);
    ckpt->stop_sent_ns = ckpt->mark_ns = mst_now_ns();
    ckpt->save_by_ms = mst_qmp_clock_ms(ckpt->conf.qmp) + ckpt->conf.silent_ms;
    uv_timer_start(&ckpt->timer, on_late, ckpt->conf.silent_ms, 0);
    /* Together, to spare one turn through QEMU's main loop: it runs them in this order. */
    r = mst_qmp_execute(ckpt->conf.qmp, "stop", NULL, -1, ckpt->conf.silent_ms, on_stop, ckpt);
    if (r == 0)
        r = mst_qmp_execute(ckpt->conf.qmp, "migrate", json_pack("{s:s}", "uri", "fd:mst-save"), -1, ckpt->conf.silent_ms,
                            on_migrate, ckpt);
    if (r < 0) {
        mst_why_set(&why, r, "cannot tell QEMU to stop and save: %s", mst_errname(r));
        rescue(ckpt, r, &why);
    }
}

static void enter_early(struct mst_ckpt *ckpt)
{
    move(ckpt, ST_EARLY);
    work_start(ckpt, mst_ckpt_early_work);
}

/* --- marking: stop, clear, cont --- */

static void on_unmarked(int err, const struct mst_why *why, void *arg)
{
    struct mst_ckpt *ckpt = arg;

    ckpt->resume = NULL;
    if (err) {
        rescue(ckpt, err, why);
        return;
    }
    ckpt->report.mark_ns = mst_now_ns() - ckpt->stop_sent_ns;
    ckpt->stop_sent_ns = 0;
    enter_early(ckpt);
}

static void marked(struct mst_ckpt *ckpt)
{
    struct mst_why why;
    int r;

    if (ckpt->panicked) {
        panicked(ckpt);
        return;
    }
    r = mst_resume_start(ckpt->conf.loop, ckpt->conf.qmp, MST_RESUME_FAST, ckpt->conf.silent_ms, on_unmarked, ckpt,
                         &ckpt->resume);
    if (r < 0) {
        mst_why_set(&why, r, "cannot tell QEMU to go on: %s", mst_errname(r));
        rescue(ckpt, r, &why);
    }
}

static void on_mark_stop(struct mst_qmp *qmp, int err, const json_t *ret, const struct mst_why *why, void *arg)
{
    struct mst_ckpt *ckpt = arg;

    (void)qmp;
    (void)ret;
    if (err)
        rescue(ckpt, err, why);
    else
        work_start(ckpt, mst_ckpt_mark_work);
}

static void enter_marking(struct mst_ckpt *ckpt)
{
    struct mst_why why;
    int r;

    move(ckpt, ST_MARKING);
    ckpt->stop_sent_ns = mst_now_ns();
    r = mst_qmp_execute(ckpt->conf.qmp, "stop", NULL, -1, ckpt->conf.silent_ms, on_mark_stop, ckpt);
    if (r < 0) {
        mst_why_set(&why, r, "cannot tell QEMU to stop: %s", mst_errname(r));
        rescue(ckpt, r, &why);
    }
}

/* --- saving --- */

static void on_armed(struct mst_qmp *qmp, int err, const json_t *ret, const struct mst_why *why, void *arg)
{
    struct mst_ckpt *ckpt = arg;

    (void)qmp;
    (void)ret;
    if (err) {
        rescue(ckpt, err, why);
        return;
    }
    if (ckpt->panicked) {
        panicked(ckpt);
        return;
    }
    enter_saving(ckpt);
}

static void enter_arming(struct mst_ckpt *ckpt)
{
    struct mst_why why;
    int r;

    if (ckpt->panicked) {
        move(ckpt, ST_ARMING);
        panicked(ckpt);
        return;
    }
    move(ckpt, ST_ARMING);
    lseek(ckpt->device_fd, 0, SEEK_SET);
    r = mst_qmp_execute(ckpt->conf.qmp, "getfd", json_pack("{s:s}", "fdname", "mst-save"), ckpt->device_fd, ckpt->conf.silent_ms,
                        on_armed, ckpt);
    if (r < 0) {
        mst_why_set(&why, r, "cannot pass a descriptor to QEMU: %s", mst_errname(r));
        done(ckpt, r, &why);
    }
}

static void enter_staging(struct mst_ckpt *ckpt)
{
    move(ckpt, ST_STAGING);
    work_start(ckpt, mst_ckpt_staging_work);
}

static void on_resumed(int err, const struct mst_why *why, void *arg)
{
    struct mst_ckpt *ckpt = arg;

    ckpt->resume = NULL;
    if (err) { /* the checkpoint is committed, but the guest does not run: that is what the owner must hear of */
        rescue(ckpt, err, why);
        return;
    }
    ckpt->report.cont_ns = mst_now_ns() - ckpt->mark_ns;
    ckpt->report.pause_ns = mst_now_ns() - ckpt->stop_sent_ns;
    ckpt->report.stands = false;
    if (ckpt->way != WAY_DELTA)
        done(ckpt, 0, NULL);
    else
        enter_applying(ckpt);
}

static void enter_continuing(struct mst_ckpt *ckpt)
{
    struct mst_why why;
    int r;

    move(ckpt, ST_CONTINUING);
    ckpt->mark_ns = mst_now_ns();
    r = mst_resume_start(ckpt->conf.loop, ckpt->conf.qmp, MST_RESUME_FAST, ckpt->conf.silent_ms, on_resumed, ckpt, &ckpt->resume);
    tell_committed(ckpt);
    if (r < 0) {
        mst_why_set(&why, r, "cannot tell QEMU to go on: %s", mst_errname(r));
        rescue(ckpt, r, &why);
    }
}

static void enter_applying(struct mst_ckpt *ckpt)
{
    move(ckpt, ST_APPLYING);
    work_start(ckpt, mst_ckpt_apply_work);
}

/* --- interface --- */

static int device_open(struct mst_ckpt *ckpt)
{
    void *device;

    ckpt->device_fd = memfd_create("mst-device", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (ckpt->device_fd < 0)
        return -errno;
    /* QEMU writes on as it likes: what would go past the end is refused by the kernel, and its save fails. */
    if (ftruncate(ckpt->device_fd, MST_DEVICE_BYTES_MAX) < 0 ||
        fcntl(ckpt->device_fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) < 0)
        return -errno;
    device = mmap(NULL, MST_DEVICE_BYTES_MAX, PROT_READ, MAP_SHARED, ckpt->device_fd, 0);
    if (device == MAP_FAILED)
        return -errno;
    ckpt->device = device;
    return 0;
}

int mst_ckpt_new(const struct mst_ckpt_conf *conf, const struct mst_ckpt_events *events, void *arg, struct mst_ckpt **ret_ckpt)
{
    struct mst_ckpt *ckpt = calloc(1, sizeof(*ckpt));
    int r = -ENOMEM;

    if (!ckpt)
        return -ENOMEM;
    ckpt->conf = *conf;
    ckpt->events = events;
    ckpt->arg = arg;
    ckpt->device_fd = -1;
    ckpt->state = conf->stands ? ST_HELD : ST_IDLE;
    ckpt->doubt = conf->doubt;
    ckpt->pages = conf->map->ram_bytes / MST_PAGE_BYTES;
    ckpt->early = calloc((ckpt->pages + 63) / 64, sizeof(*ckpt->early));
    if (!ckpt->early)
        goto free_ckpt;
    r = device_open(ckpt);
    if (r < 0)
        goto free_ckpt;
    uv_timer_init(conf->loop, &ckpt->timer);
    ckpt->timer.data = ckpt;
    *ret_ckpt = ckpt;
    return 0;
free_ckpt:
    if (ckpt->device_fd >= 0)
        close(ckpt->device_fd);
    free(ckpt->early);
    free(ckpt);
    return r;
}

static void begin(struct mst_ckpt *ckpt)
{
    ckpt->report = (struct mst_ckpt_report){0};
    ckpt->begun_ns = mst_now_ns();
    ckpt->stop_sent_ns = 0;
    ckpt->err = 0;
    ckpt->why.text[0] = '\0';
    ckpt->saved = ckpt->migrate_answered = ckpt->mark_waits = ckpt->committed = false;
}

int mst_ckpt_take(struct mst_ckpt *ckpt, enum mst_ckpt_mode mode)
{
    enum mst_save_source source = mst_save_source(ckpt->conf.writer);

    if (ckpt->panicked)
        return -ECANCELED;
    if (ckpt->state != ST_IDLE || ckpt->freeing)
        return -EBUSY;
    begin(ckpt);
    ckpt->mode = mode;
    if (!ckpt->conf.map->shadow || source == MST_SAVE_RAM)
        ckpt->way = WAY_RAM;
    else
        ckpt->way = source == MST_SAVE_SHADOW ? WAY_DELTA : WAY_FILL;
    memset(ckpt->early, 0, (ckpt->pages + 63) / 64 * sizeof(*ckpt->early));
    if (ckpt->way == WAY_RAM) {
        enter_arming(ckpt);
    } else if (ckpt->way == WAY_FILL && ckpt->conf.dirty && !ckpt->marked) {
        enter_marking(ckpt);
    } else {
        if (ckpt->way == WAY_DELTA)
            mst_save_begin(ckpt->conf.writer);
        enter_early(ckpt);
    }
    return 0;
}

int mst_ckpt_resume(struct mst_ckpt *ckpt)
{
    uint64_t stop_sent_ns = ckpt->stop_sent_ns;

    if (ckpt->freeing || (ckpt->state != ST_HELD && ckpt->state != ST_IDLE))
        return -EBUSY;
    if (ckpt->state != ST_HELD)
        return -EINVAL;
    begin(ckpt);
    ckpt->stop_sent_ns = stop_sent_ns;
    ckpt->way = WAY_RAM; /* nothing to apply */
    ckpt->mode = MST_CKPT_RUN_ON;
    if (mst_save_source(ckpt->conf.writer) == MST_SAVE_RAM)
        mst_save_withdraw(ckpt->conf.writer);
    MST_FAULT("checkpoint.continue", return -EIO);
    enter_continuing(ckpt);
    return 0;
}

void mst_ckpt_note(struct mst_ckpt *ckpt, const struct mst_save_note *note, bool now)
{
    ckpt->note = *note;
    ckpt->note_now = ckpt->note_now || now;
    ckpt->note_waits = true;
    note_put(ckpt);
}

bool mst_ckpt_busy(const struct mst_ckpt *ckpt)
{
    return ckpt && ckpt->state != ST_IDLE && ckpt->state != ST_HELD;
}

const char *mst_ckpt_state(const struct mst_ckpt *ckpt)
{
    return mst_state_name(states, ST_COUNT, ckpt->state);
}

void mst_ckpt_event(struct mst_ckpt *ckpt, const char *name, const json_t *data)
{
    const char *status = json_string_value(json_object_get(data, "status"));
    struct mst_why why;

    if (ckpt->freeing)
        return;
    if (strcmp(name, "GUEST_PANICKED") == 0) {
        /* Looked at before anything is committed. It cannot come later: the guest stands by then. */
        ckpt->panicked = true;
    } else if (strcmp(name, "MIGRATION") == 0 && status && ckpt->state == ST_SAVING) {
        if (strcmp(status, "completed") == 0) {
            ckpt->saved = true;
            maybe_saved(ckpt);
        } else if (strcmp(status, "failed") == 0 || strcmp(status, "cancelled") == 0) {
            mst_why_set(&why, -EREMOTEIO, "QEMU's save of the device state %s (more than %u bytes, or see its log)", status,
                        MST_DEVICE_BYTES_MAX);
            rescue(ckpt, -EREMOTEIO, &why);
        }
    }
}

static void timer_closed(uv_handle_t *handle)
{
    struct mst_ckpt *ckpt = handle->data;

    ckpt->timer_closed = true;
    maybe_free(ckpt);
}

void mst_ckpt_free(struct mst_ckpt *ckpt, void (*freed)(void *arg), void *arg)
{
    if (ckpt->freeing)
        return;
    ckpt->freeing = true;
    ckpt->freed = freed;
    ckpt->freed_arg = arg;
    mst_resume_cancel(ckpt->resume);
    mst_qmp_forget(ckpt->conf.qmp, ckpt);
    uv_close((uv_handle_t *)&ckpt->timer, timer_closed);
}
