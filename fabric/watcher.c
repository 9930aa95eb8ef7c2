/* Watcher: a thread that READs one small record from each target every interval.
 *
 * One mutex per watcher guards its targets, their samples, and of each watched link what struct mst_watch_side says. The thread holds
 * it while it posts and polls, never while it sleeps; nothing under it blocks. The loop takes a link back (detach) under it before the
 * link's QP is touched, so the thread never sees a link that dies. Completions of the loop's own work requests on a watched link are
 * met by the thread, kept in mst_watch_side.forwarded, and handled by the loop. */

#include "base/clock.h"
#include "fabric/internal.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { EVENT_TICK = 0, EVENT_WAKE = 1, EVENT_FIRST_SERIAL = 2 };

struct target {
    LIST_ENTRY(target) entry;
    uint32_t id;
    uint64_t serial;       /* names it in epoll: an event may come for a target that is gone */
    struct mst_link *link; /* NULL once the link has ended */
    uint64_t remote_addr;
    uint32_t rkey, len;
    int fail; /* the thread's verdict; the loop then ends the link */
    struct mst_why fail_why;
    struct mst_watch_sample sample;
};

struct mst_watcher {
    struct mst_fabric *fabric;
    uint64_t read_deadline_ns;
    uint32_t read_deadline_ms;
    void (*on_sample)(void *arg);
    void *arg;
    pthread_t thread;
    pthread_mutex_t mutex;
    uv_async_t async;
    int epoll_fd, timer_fd, wake_fd;
    LIST_HEAD(, target) targets;
    uint64_t next_serial;
    bool stop;
    bool changed; /* something for the loop since it was last woken */
};

/* --- thread; the mutex is held --- */

static void fail(struct mst_watcher *watcher, struct target *target, int err, const char *text)
{
    if (target->fail)
        return;
    target->fail = err;
    target->sample.failures++;
    mst_why_set(&target->fail_why, err, "READ of %u bytes from %s %s", target->len, target->link->address, text);
    watcher->changed = true;
}

static void read_done(struct mst_watcher *watcher, struct target *target, const struct ibv_wc *wc)
{
    struct mst_watch_side *side = &target->link->watch;
    uint64_t now_ns = mst_now_ns();

    side->in_flight = false;
    if (wc->status != IBV_WC_SUCCESS) {
        fail(watcher, target, -EIO, ibv_wc_status_str(wc->status));
        return;
    }
    if (side->stale) {
        side->stale = false;
        return;
    }
    target->sample.reads++;
    target->sample.last_read_ns = now_ns;
    target->sample.latency_ns = now_ns - side->posted_ns;
    target->sample.bytes = target->len;
    memcpy(target->sample.data, side->buffer, target->len);
    watcher->changed = true;
}

static void poll_target(struct mst_watcher *watcher, struct target *target)
{
    struct mst_link *link = target->link;
    struct mst_forwarded *forwarded = &link->watch.forwarded;
    struct ibv_wc wc[MST_CQ_BATCH];
    struct ibv_cq *cq;
    void *context;
    int n;

    while (!ibv_get_cq_event(link->send_channel, &cq, &context))
        ibv_ack_cq_events(cq, 1);
    if (errno != EAGAIN && errno != EINTR) {
        epoll_ctl(watcher->epoll_fd, EPOLL_CTL_DEL, link->send_channel->fd, NULL);
        fail(watcher, target, -ENODEV, "failed: the device is gone");
        return;
    }
    ibv_req_notify_cq(link->send_cq, 0); /* before polling: what comes later wakes us again */
    while ((n = ibv_poll_cq(link->send_cq, MST_CQ_BATCH, wc)) > 0)
        for (int i = 0; i < n; i++) {
            if (wc[i].wr_id == (uintptr_t)&link->watch.wr) {
                read_done(watcher, target, &wc[i]);
                continue;
            }
            assert(forwarded->count < MST_SQ_DEPTH(link->row)); /* the loop posts no more before it has seen them */
            forwarded->wc[forwarded->count++] = wc[i];
            watcher->changed = true;
        }
    if (n < 0)
        fail(watcher, target, -EIO, "failed: its completion queue cannot be read");
}

static void post_read(struct mst_watcher *watcher, struct target *target)
{
    struct mst_link *link = target->link;
    struct mst_watch_side *side = &link->watch;
    struct ibv_sge sge = {.addr = (uintptr_t)side->buffer, .length = target->len, .lkey = side->region->mr->lkey};
    struct ibv_send_wr wr = {
        .wr_id = (uintptr_t)&side->wr,
        .sg_list = &sge,
        .num_sge = 1,
        .opcode = IBV_WR_RDMA_READ,
        .send_flags = IBV_SEND_SIGNALED,
        .wr.rdma = {.remote_addr = target->remote_addr, .rkey = target->rkey},
    };
    struct ibv_send_wr *bad;

    side->posted_ns = mst_now_ns();
    if (ibv_post_send(link->qp, &wr, &bad))
        fail(watcher, target, -EIO, "could not be posted");
    else
        side->in_flight = true;
}

/* Returns how long to sleep until the next deadline, in milliseconds, or -1. */
static int check_deadlines(struct mst_watcher *watcher)
{
    uint64_t now_ns = mst_now_ns(), nearest_ns = UINT64_MAX;
    struct target *target;

    LIST_FOREACH (target, &watcher->targets, entry) {
        uint64_t deadline_ns;

        if (!target->link || target->fail || !target->link->watch.in_flight)
            continue;
        deadline_ns = target->link->watch.posted_ns + watcher->read_deadline_ns;
        if (deadline_ns <= now_ns) /* the process may have been stopped: the answer may lie there already */
            poll_target(watcher, target);
        if (!target->link->watch.in_flight || target->fail)
            continue;
        if (deadline_ns <= now_ns)
            fail(watcher, target, -ETIMEDOUT, "passed its deadline");
        else if (deadline_ns < nearest_ns)
            nearest_ns = deadline_ns;
    }
    return nearest_ns == UINT64_MAX ? -1 : (int)((nearest_ns - now_ns) / MST_NS_PER_MS + 1);
}

static void handle_events(struct mst_watcher *watcher, const struct epoll_event *events, int count)
{
    struct target *target;
    bool tick = false;
    uint64_t value;

    for (int i = 0; i < count; i++) {
        if (events[i].data.u64 == EVENT_TICK) {
            tick = read(watcher->timer_fd, &value, sizeof(value)) == sizeof(value);
            continue;
        }
        LIST_FOREACH (target, &watcher->targets, entry)
            if (target->link && target->serial == events[i].data.u64)
                poll_target(watcher, target);
    }
    if (!tick)
        return;
    LIST_FOREACH (target, &watcher->targets, entry)
        if (target->link && !target->fail && !target->link->watch.in_flight)
            post_read(watcher, target);
}

static void *run(void *arg)
{
    struct mst_watcher *watcher = arg;
    struct epoll_event events[32];
    int timeout_ms = -1;

    for (;;) {
        int n = epoll_wait(watcher->epoll_fd, events, sizeof(events) / sizeof(events[0]), timeout_ms);
        bool stop, changed;

        pthread_mutex_lock(&watcher->mutex);
        handle_events(watcher, events, n > 0 ? n : 0);
        timeout_ms = check_deadlines(watcher);
        stop = watcher->stop;
        changed = watcher->changed;
        watcher->changed = false;
        pthread_mutex_unlock(&watcher->mutex);
        if (stop)
            return NULL;
        if (changed)
            uv_async_send(&watcher->async);
    }
}

/* --- loop --- */

/* Gives the link back to the loop; the mutex is held. */
static struct mst_link *take_link(struct mst_watcher *watcher, struct target *target)
{
    struct mst_link *link = target->link;

    if (!link)
        return NULL;
    epoll_ctl(watcher->epoll_fd, EPOLL_CTL_DEL, link->send_channel->fd, NULL);
    target->link = NULL;
    link->watch.watcher = NULL;
    link->watch.stale = link->watch.in_flight;
    return link;
}

static void loop_polls_again(struct mst_link *link)
{
    mst_link_watch_sends(link, true);
    mst_link_kick(link);
}

static struct target *find(struct mst_watcher *watcher, uint32_t id)
{
    struct target *target;

    LIST_FOREACH (target, &watcher->targets, entry)
        if (target->id == id)
            break;
    return target;
}

void mst_watch_detach(struct mst_link *link, int err)
{
    struct mst_watcher *watcher = link->watch.watcher;
    struct target *target;

    if (!watcher)
        return;
    pthread_mutex_lock(&watcher->mutex);
    LIST_FOREACH (target, &watcher->targets, entry)
        if (target->link == link)
            break;
    target->sample.error = err ? err : -ECANCELED;
    take_link(watcher, target);
    pthread_mutex_unlock(&watcher->mutex);
    loop_polls_again(link);
    uv_async_send(&watcher->async); /* the sample has news: its error */
}

unsigned mst_watch_take_forwarded(struct mst_link *link, struct ibv_wc *wc)
{
    struct mst_watcher *watcher = link->watch.watcher;
    struct mst_forwarded *forwarded = &link->watch.forwarded;
    unsigned n;

    if (watcher)
        pthread_mutex_lock(&watcher->mutex);
    n = forwarded->count;
    memcpy(wc, forwarded->wc, n * sizeof(*wc));
    forwarded->count = 0;
    if (watcher)
        pthread_mutex_unlock(&watcher->mutex);
    return n;
}

int mst_watch_poll(struct mst_link *link, struct mst_why *why)
{
    struct mst_watcher *watcher = link->watch.watcher;
    struct target *target;
    int r;

    pthread_mutex_lock(&watcher->mutex);
    LIST_FOREACH (target, &watcher->targets, entry)
        if (target->link == link)
            break;
    poll_target(watcher, target);
    r = target->fail;
    *why = target->fail_why;
    pthread_mutex_unlock(&watcher->mutex);
    return r;
}

void mst_watch_done(struct mst_link *link)
{
    link->watch.in_flight = false;
    link->watch.stale = false;
}

void mst_watch_free(struct mst_link *link)
{
    link->watch.in_flight = false;
    mst_region_free(link->watch.region);
    free(link->watch.buffer);
    link->watch.region = NULL;
    link->watch.buffer = NULL;
}

static bool next_failed(struct mst_watcher *watcher, struct mst_link **ret_link, int *ret_err, struct mst_why *ret_why)
{
    struct target *target;
    bool found = false;

    pthread_mutex_lock(&watcher->mutex);
    LIST_FOREACH (target, &watcher->targets, entry) {
        if (target->link && target->link->watch.forwarded.count)
            mst_link_kick(target->link);
        if (!found && target->link && target->fail) {
            found = true;
            *ret_link = target->link;
            *ret_err = target->fail;
            *ret_why = target->fail_why;
        }
    }
    pthread_mutex_unlock(&watcher->mutex);
    return found;
}

static void on_async(uv_async_t *async)
{
    struct mst_watcher *watcher = async->data;
    struct mst_link *link;
    struct mst_why why;
    int err;

    while (next_failed(watcher, &link, &err, &why))
        mst_link_fail(link, err, &why); /* detaches it: the next round does not find it again */
    if (watcher->on_sample)
        watcher->on_sample(watcher->arg);
}

static int watch_fd(struct mst_watcher *watcher, int fd, uint64_t name)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = name};

    return epoll_ctl(watcher->epoll_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

static int open_fds(struct mst_watcher *watcher, uint32_t interval_ms)
{
    struct itimerspec interval = {
        .it_interval = {.tv_sec = interval_ms / 1000, .tv_nsec = (long)(interval_ms % 1000) * (long)MST_NS_PER_MS}};
    int r;

    interval.it_value = interval.it_interval;
    watcher->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    watcher->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    watcher->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (watcher->epoll_fd < 0 || watcher->timer_fd < 0 || watcher->wake_fd < 0 ||
        timerfd_settime(watcher->timer_fd, 0, &interval, NULL))
        return -errno;
    r = watch_fd(watcher, watcher->timer_fd, EVENT_TICK);
    return r < 0 ? r : watch_fd(watcher, watcher->wake_fd, EVENT_WAKE);
}

static void close_fds(struct mst_watcher *watcher)
{
    const int fds[] = {watcher->epoll_fd, watcher->timer_fd, watcher->wake_fd};

    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

static int start_thread(struct mst_watcher *watcher)
{
    sigset_t all, before;
    int r;

    sigfillset(&all); /* signals are for the loop's thread */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    r = -pthread_create(&watcher->thread, NULL, run, watcher);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!r)
        pthread_setname_np(watcher->thread, "mst-watcher");
    return r;
}

static void on_async_closed(uv_handle_t *handle)
{
    free(handle->data);
}

int mst_watcher_new(struct mst_fabric *fabric, uint32_t interval_ms, uint32_t read_deadline_ms, void (*on_sample)(void *arg),
                    void *arg, struct mst_watcher **ret_watcher, struct mst_why *why)
{
    struct mst_watcher *watcher;
    int r;

    if (interval_ms < 1 || interval_ms > 10000 || read_deadline_ms < 1)
        return mst_why_set(why, -EINVAL, "an interval of %u ms and a deadline of %u ms: 1..10000 and at least 1", interval_ms,
                           read_deadline_ms);
    watcher = calloc(1, sizeof(*watcher));
    if (!watcher)
        return mst_why_set(why, -ENOMEM, "no memory");
    watcher->fabric = fabric;
    watcher->read_deadline_ms = read_deadline_ms;
    watcher->read_deadline_ns = read_deadline_ms * MST_NS_PER_MS;
    watcher->on_sample = on_sample;
    watcher->arg = arg;
    watcher->next_serial = EVENT_FIRST_SERIAL;
    LIST_INIT(&watcher->targets);
    pthread_mutex_init(&watcher->mutex, NULL);
    r = open_fds(watcher, interval_ms);
    if (r < 0)
        goto close_fds;
    r = uv_async_init(fabric->loop, &watcher->async, on_async);
    if (r < 0)
        goto close_fds;
    watcher->async.data = watcher;
    r = start_thread(watcher);
    if (r < 0) {
        uv_close((uv_handle_t *)&watcher->async, on_async_closed); /* frees it */
        close_fds(watcher);
        return mst_why_set(why, r, "the watcher's thread cannot start: %s", strerror(-r));
    }
    fabric->watchers++;
    *ret_watcher = watcher;
    return 0;
close_fds:
    close_fds(watcher);
    pthread_mutex_destroy(&watcher->mutex);
    free(watcher);
    return mst_why_set(why, r, "the watcher cannot start: %s", strerror(-r));
}

static int make_buffer(struct mst_link *link)
{
    struct mst_watch_side *side = &link->watch;
    int r;

    if (side->region)
        return 0;
    side->buffer = aligned_alloc(MST_PAGE_BYTES, MST_PAGE_BYTES);
    if (!side->buffer)
        return -ENOMEM;
    r = mst_region_new(link, side->buffer, MST_WATCH_BYTES_MAX, MST_ACCESS_LOCAL, &side->region, NULL);
    if (r < 0) {
        free(side->buffer);
        side->buffer = NULL;
    }
    return r;
}

int mst_watcher_add(struct mst_watcher *watcher, uint32_t id, struct mst_link *link, uint64_t remote_addr, uint32_t rkey,
                    uint32_t len)
{
    struct target *target;
    int r;

    if (len < 1 || len > MST_WATCH_BYTES_MAX || remote_addr + len < remote_addr || link->role != MST_ROLE_WATCH || link->acceptor)
        return -ERANGE;
    if (link->state != LINK_OPEN)
        return -ENOTCONN;
    if (find(watcher, id) || link->watch.watcher) /* the list changes on this thread only */
        return -EEXIST;
    r = make_buffer(link);
    if (r < 0)
        return r;
    target = calloc(1, sizeof(*target));
    if (!target)
        return -ENOMEM;
    target->id = id;
    target->serial = watcher->next_serial++;
    target->link = link;
    target->remote_addr = remote_addr;
    target->rkey = rkey;
    target->len = len;
    mst_link_watch_sends(link, false);
    pthread_mutex_lock(&watcher->mutex);
    r = watch_fd(watcher, link->send_channel->fd, target->serial);
    if (r >= 0) {
        link->watch.watcher = watcher;
        LIST_INSERT_HEAD(&watcher->targets, target, entry);
    }
    pthread_mutex_unlock(&watcher->mutex);
    if (r < 0) {
        free(target);
        loop_polls_again(link);
    }
    return r;
}

void mst_watcher_remove(struct mst_watcher *watcher, uint32_t id)
{
    struct target *target = find(watcher, id);
    struct mst_link *link;

    if (!target)
        return;
    pthread_mutex_lock(&watcher->mutex);
    link = take_link(watcher, target);
    LIST_REMOVE(target, entry);
    pthread_mutex_unlock(&watcher->mutex);
    free(target);
    if (link)
        loop_polls_again(link);
}

int mst_watcher_sample(struct mst_watcher *watcher, uint32_t id, struct mst_watch_sample *ret_sample)
{
    struct target *target = find(watcher, id);

    if (!target)
        return -ENOENT;
    pthread_mutex_lock(&watcher->mutex);
    *ret_sample = target->sample;
    pthread_mutex_unlock(&watcher->mutex);
    return 0;
}

void mst_watcher_free(struct mst_watcher *watcher)
{
    struct target *target;
    uint64_t one = 1;

    if (!watcher)
        return;
    pthread_mutex_lock(&watcher->mutex);
    watcher->stop = true;
    pthread_mutex_unlock(&watcher->mutex);
    (void)!write(watcher->wake_fd, &one, sizeof(one)); /* fails only when the counter is full: the thread is awake then */
    pthread_join(watcher->thread, NULL);
    while ((target = LIST_FIRST(&watcher->targets)))
        mst_watcher_remove(watcher, target->id);
    watcher->fabric->watchers--;
    close_fds(watcher);
    pthread_mutex_destroy(&watcher->mutex);
    uv_close((uv_handle_t *)&watcher->async, on_async_closed);
}
