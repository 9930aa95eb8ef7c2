#include "tests/sim/seam/uv.h"
#include "tests/sim/world.h"

#include <errno.h>
#include <string.h>
#include <uv.h>

/* libuv as far as the product uses it, over the simulator's queue of events. A handle's record outlives the handle, so that an event for one
 * that was closed and freed finds nobody. Durations are of the host's own clock. */

#define LAZY_MS 20u /* the keeper's beat: seen by nobody but who reads main storage, so it runs when somebody does */

struct record {
    uv_handle_t *handle; /* NULL: closed */
    struct sim_proc *proc;
    uint64_t serial; /* of the start that counts */
    bool active, lazy;
    uv_timer_cb timer;
    uint64_t repeat_ms;
    uv_idle_cb idle;
    bool idle_queued;
    uv_close_cb close;
    uv_poll_cb poll;
    struct sim_watch_fd *watch;
};

struct shot { /* one start of a timer */
    struct record *record;
    uint64_t serial;
};

static struct record *record_of(const void *handle)
{
    return ((const uv_handle_t *)handle)->u.reserved[0];
}

static void record_new(void *handle)
{
    struct record *record = sim_keep(sizeof(*record));

    record->handle = handle;
    record->proc = K.current;
    ((uv_handle_t *)handle)->u.reserved[0] = record;
}

static uint64_t local_delay(uint64_t ms)
{
    return sim_here() ? sim_world_ns(sim_here(), ms * SIM_MS) : ms * SIM_MS;
}

/* --- timers --- */

int uv_timer_init(uv_loop_t *loop, uv_timer_t *timer)
{
    (void)loop;
    record_new(timer);
    return 0;
}

static void timer_shoot(struct record *record, uint64_t ms);

static void timer_fire(void *arg)
{
    struct shot *shot = arg;
    struct record *record = shot->record;

    if (!record->handle || !record->active || record->serial != shot->serial)
        return;
    if (record->repeat_ms)
        timer_shoot(record, record->repeat_ms);
    else
        record->active = false;
    record->timer((uv_timer_t *)record->handle);
}

static void timer_shoot(struct record *record, uint64_t ms)
{
    struct shot *shot = sim_keep(sizeof(*shot));

    shot->record = record;
    shot->serial = ++record->serial;
    sim_at(record->proc, local_delay(ms), timer_fire, shot);
}

static void lazy_fire(void *arg)
{
    struct record *record = arg;

    if (record->handle && record->active)
        record->timer((uv_timer_t *)record->handle);
}

int uv_timer_start(uv_timer_t *timer, uv_timer_cb cb, uint64_t timeout, uint64_t repeat)
{
    struct record *record = record_of(timer);

    record->timer = cb;
    record->repeat_ms = repeat;
    record->active = true;
    if (repeat == LAZY_MS && record->proc == &sim_here()->keeper) {
        record->lazy = true;
        record->proc->lazy = lazy_fire;
        record->proc->lazy_arg = record;
        record->proc->lazy_every_ns = LAZY_MS * SIM_MS;
        record->proc->lazy_due_ns = K.now_ns;
        return 0;
    }
    timer_shoot(record, timeout);
    return 0;
}

int uv_timer_stop(uv_timer_t *timer)
{
    struct record *record = record_of(timer);

    record->active = false;
    record->serial++;
    return 0;
}

/* --- idle --- */

int uv_idle_init(uv_loop_t *loop, uv_idle_t *idle)
{
    (void)loop;
    record_new(idle);
    return 0;
}

static void idle_fire(void *arg)
{
    struct record *record = arg;

    record->idle_queued = false;
    if (!record->handle || !record->active)
        return;
    record->idle_queued = true;
    sim_at(record->proc, 20 * SIM_US, idle_fire, record);
    record->idle((uv_idle_t *)record->handle);
}

int uv_idle_start(uv_idle_t *idle, uv_idle_cb cb)
{
    struct record *record = record_of(idle);

    record->idle = cb;
    record->active = true;
    if (!record->idle_queued)
        sim_at(record->proc, 5 * SIM_US, idle_fire, record);
    record->idle_queued = true;
    return 0;
}

int uv_idle_stop(uv_idle_t *idle)
{
    record_of(idle)->active = false;
    return 0;
}

/* --- poll: of pidfds only --- */

int uv_poll_init(uv_loop_t *loop, uv_poll_t *poll, int fd)
{
    struct record *record;

    (void)loop;
    record_new(poll);
    record = record_of(poll);
    record->watch = sim_watch_of(fd);
    return record->watch ? 0 : -EBADF;
}

static void poll_fire(void *arg)
{
    struct record *record = arg;

    if (record->handle && record->active)
        record->poll((uv_poll_t *)record->handle, 0, UV_READABLE);
}

void sim_watch_ready(struct sim_watch_fd *watch)
{
    struct record *record = watch->poller;

    watch->ready = true;
    if (record && record->active)
        sim_at(record->proc, sim_between(10, 400) * SIM_US, poll_fire, record);
}

int uv_poll_start(uv_poll_t *poll, int events, uv_poll_cb cb)
{
    struct record *record = record_of(poll);

    (void)events;
    record->poll = cb;
    record->active = true;
    record->watch->poller = record;
    if (record->watch->ready)
        sim_watch_ready(record->watch);
    return 0;
}

int uv_poll_stop(uv_poll_t *poll)
{
    struct record *record = record_of(poll);

    record->active = false;
    if (record->watch && record->watch->poller == record)
        record->watch->poller = NULL;
    return 0;
}

/* --- work: on a thread of its own, some time later --- */

struct job {
    uv_work_t *work;
    uv_work_cb run;
    uv_after_work_cb after;
    uint64_t after_ns;
    struct sim_proc *proc;
};

static void job_after(void *arg)
{
    struct job *job = arg;

    job->after(job->work, 0);
}

static void job_run(void *arg)
{
    struct job *job = arg;

    sim_at(job->proc, job->after_ns, job_after, job);
    job->run(job->work);
}

int uv_queue_work(uv_loop_t *loop, uv_work_t *work, uv_work_cb run, uv_after_work_cb after)
{
    struct job *job = sim_keep(sizeof(*job));
    uint64_t slow = sim_chance(50) ? 400 : 8;

    (void)loop;
    *job = (struct job){.work = work, .run = run, .after = after, .proc = K.current};
    job->after_ns = sim_between(20, slow * 500) * SIM_US;
    sim_at(K.current, sim_between(20, slow * 500) * SIM_US, job_run, job);
    return 0;
}

/* --- handles --- */

static void closed(void *arg)
{
    struct record *record = arg;
    uv_handle_t *handle = record->handle;

    record->handle = NULL;
    if (record->close)
        record->close(handle);
}

void uv_close(uv_handle_t *handle, uv_close_cb cb)
{
    struct record *record = record_of(handle);

    record->active = false;
    record->serial++;
    record->close = cb;
    if (record->lazy)
        record->proc->lazy = NULL;
    if (record->watch && record->watch->poller == record)
        record->watch->poller = NULL;
    sim_at(record->proc, 5 * SIM_US, closed, record);
}

int uv_is_active(const uv_handle_t *handle)
{
    return record_of(handle)->active;
}

void uv_loadavg(double avg[3])
{
    memset(avg, 0, 3 * sizeof(avg[0]));
}
