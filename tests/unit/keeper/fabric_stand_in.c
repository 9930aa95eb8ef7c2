/* fabric/fabric.h without RDMA, for processes of one host: links are TCP over loopback, READ and WRITE are process_vm_readv and
 * process_vm_writev. What matters to the keeper is alike: a READ needs nothing of the peer's software (it works while the peer is stopped), it fails
 * when the peer is dead, every done runs once and before on_closed. Keys are not checked. The watcher runs on the loop. */
#include "base/clock.h"
#include "fabric/fabric.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/uio.h>
#include <unistd.h>

#define FRAME_MAX (MST_MESSAGE_BYTES_MAX + 4096u)

struct greeting { /* first frame in each direction */
    uint32_t role;
    int32_t error;
    int32_t pid;
    uint32_t data_bytes;
    uint8_t data[MST_WHY_BYTES];
};

struct mst_region {
    LIST_ENTRY(mst_region) entry;
    struct mst_link *link;
    uint8_t *addr;
    size_t len;
};

struct op {
    TAILQ_ENTRY(op) entry;
    struct mst_region *local;
    uint64_t local_off, remote_addr, total, at;
    uint32_t chunk;
    bool write;
    int (*on_chunk)(void *arg, uint64_t offset, uint32_t len);
    mst_io_fn done;
    void *arg;
};

struct mst_link {
    LIST_ENTRY(mst_link) entry;
    struct mst_fabric *fabric;
    uv_tcp_t tcp;
    uv_timer_t timer; /* operations, deadline of connecting */
    uv_connect_t connect;
    unsigned handles;
    bool acceptor, open, closing, closed;
    unsigned registering;
    int err;
    struct mst_why why;
    enum mst_role role;
    char address[64];
    pid_t peer;
    const struct mst_link_events *events;
    void *arg;
    struct greeting hello;
    uint8_t in[FRAME_MAX];
    size_t in_bytes;
    LIST_HEAD(, mst_region) regions;
    TAILQ_HEAD(, op) ops;
};

struct mst_fabric {
    uv_loop_t *loop;
    char address[64];
    uv_tcp_t listener;
    bool listening, closing;
    unsigned links;
    int (*on_accept)(struct mst_link *, const struct mst_link_request *, void *, const struct mst_link_events **, void **,
                     struct mst_why *);
    void *accept_arg;
    void (*on_closed)(void *arg);
    void *closed_arg;
    uv_timer_t end;
    LIST_HEAD(, mst_link) list;
    struct mst_fabric_counts counts;
};

static void link_end(struct mst_link *link, int err);
int mst_memlock_check(const void *conf, struct mst_why *why);

/* Nothing is pinned here. */
int mst_memlock_check(const void *conf, struct mst_why *why)
{
    (void)conf, (void)why;
    return 0;
}

/* --- fabric --- */

int mst_fabric_open(uv_loop_t *loop, const char *address, struct mst_fabric **ret_fabric, struct mst_why *why)
{
    struct mst_fabric *f;

    if (strncmp(address, "127.", 4) != 0)
        return mst_why_set(why, -ENODEV, "%s is not on loopback", address);
    f = calloc(1, sizeof(*f));
    f->loop = loop;
    snprintf(f->address, sizeof(f->address), "%s", address);
    uv_timer_init(loop, &f->end);
    f->end.data = f;
    *ret_fabric = f;
    return 0;
}

void mst_fabric_on_gone(struct mst_fabric *fabric, void (*on_gone)(void *arg), void *arg)
{
    (void)fabric, (void)on_gone, (void)arg;
}

static void fabric_freed(uv_handle_t *handle)
{
    struct mst_fabric *f = handle->data;
    void (*closed)(void *) = f->on_closed;
    void *arg = f->closed_arg;

    free(f);
    if (closed)
        closed(arg);
}

static void fabric_end(uv_timer_t *timer)
{
    struct mst_fabric *f = timer->data;

    if (!f->links && !f->listening)
        uv_close((uv_handle_t *)timer, fabric_freed);
}

static void listener_closed(uv_handle_t *handle)
{
    struct mst_fabric *f = handle->data;

    f->listening = false;
}

void mst_fabric_close(struct mst_fabric *fabric, void (*on_closed)(void *arg), void *arg)
{
    struct mst_link *link;

    fabric->closing = true;
    fabric->on_closed = on_closed;
    fabric->closed_arg = arg;
    LIST_FOREACH (link, &fabric->list, entry)
        link_end(link, 0);
    if (fabric->listening)
        uv_close((uv_handle_t *)&fabric->listener, listener_closed);
    uv_timer_start(&fabric->end, fabric_end, 0, 1);
}

void mst_fabric_count(const struct mst_fabric *fabric, struct mst_fabric_counts *ret_counts)
{
    *ret_counts = fabric->counts;
}

/* --- links --- */

static void ops_fail(struct mst_link *link)
{
    struct op *op;

    while ((op = TAILQ_FIRST(&link->ops))) {
        TAILQ_REMOVE(&link->ops, op, entry);
        op->done(op->arg, -ECANCELED);
        free(op);
    }
}

static void link_gone(struct mst_link *link)
{
    if (link->open && link->events)
        link->events->on_closed(link, link->err, &link->why, link->arg);
    else if (link->events && link->events->on_open && !link->acceptor)
        link->events->on_open(link, link->err ? link->err : -ECANCELED, &link->why, link->arg);
    while (!LIST_EMPTY(&link->regions)) {
        struct mst_region *region = LIST_FIRST(&link->regions);

        LIST_REMOVE(region, entry);
        free(region);
    }
    LIST_REMOVE(link, entry);
    link->fabric->links--;
    free(link);
}

static void handle_closed(uv_handle_t *handle)
{
    struct mst_link *link = handle->data;

    if (--link->handles)
        return;
    ops_fail(link);
    link->closed = true;
    if (!link->registering)
        link_gone(link);
}

static void link_end(struct mst_link *link, int err)
{
    if (link->closing)
        return;
    link->closing = true;
    link->err = err;
    uv_close((uv_handle_t *)&link->tcp, handle_closed);
    uv_close((uv_handle_t *)&link->timer, handle_closed);
}

void mst_link_close(struct mst_link *link)
{
    link_end(link, 0);
}

enum mst_role mst_link_role(const struct mst_link *link)
{
    return link->role;
}

const char *mst_link_address(const struct mst_link *link)
{
    return link->address;
}

struct write {
    uv_write_t req;
    uint8_t bytes[];
};

static void written(uv_write_t *req, int status)
{
    (void)status;
    free(req->data);
}

static int frame_send(struct mst_link *link, const void *data, size_t len)
{
    struct write *w = malloc(sizeof(*w) + 4 + len);
    uint32_t n = (uint32_t)len;
    uv_buf_t buf = uv_buf_init((char *)w->bytes, (unsigned)(4 + len));

    memcpy(w->bytes, &n, 4);
    memcpy(w->bytes + 4, data, len);
    w->req.data = w;
    return uv_write(&w->req, (uv_stream_t *)&link->tcp, &buf, 1, written);
}

int mst_link_send(struct mst_link *link, const void *data, size_t len)
{
    if (!len || len > MST_MESSAGE_BYTES_MAX)
        return -EMSGSIZE;
    if (!link->open || link->closing)
        return -ENOTCONN;
    return frame_send(link, data, len);
}

static void greet(struct mst_link *link, int error, const void *data, size_t len)
{
    struct greeting out = {.role = link->role, .error = error, .pid = getpid(), .data_bytes = (uint32_t)len};

    if (len)
        memcpy(out.data, data, len);
    frame_send(link, &out, sizeof(out));
}

static void link_opened(struct mst_link *link)
{
    link->open = true;
    uv_timer_stop(&link->timer);
    if (link->events->on_open)
        link->events->on_open(link, 0, &link->why, link->arg);
}

static void greeted(struct mst_link *link, const struct greeting *in)
{
    struct mst_link_request request = {.role = (enum mst_role)in->role, .data = in->data, .data_bytes = in->data_bytes};
    int r;

    link->peer = in->pid;
    if (!link->acceptor) {
        if (in->error) {
            snprintf(link->why.text, sizeof(link->why.text), "%.*s", (int)in->data_bytes, (const char *)in->data);
            link_end(link, -EACCES);
        } else {
            link_opened(link);
        }
        return;
    }
    link->role = request.role;
    memcpy(request.address, link->address, sizeof(request.address));
    r = link->fabric->on_accept(link, &request, link->fabric->accept_arg, &link->events, &link->arg, &link->why);
    greet(link, r, link->why.text, r ? strlen(link->why.text) : 0);
    if (r == 0)
        link_opened(link);
    /* refused: the peer closes when it has read why */
    if (r < 0)
        link->events = NULL;
}

static void frames(struct mst_link *link)
{
    uint32_t n;

    while (!link->closing && link->in_bytes >= 4) {
        memcpy(&n, link->in, 4);
        if (n > FRAME_MAX - 4) {
            link_end(link, -EIO);
            return;
        }
        if (link->in_bytes < 4 + n)
            return;
        if (!link->peer) {
            struct greeting in;

            if (n != sizeof(in)) {
                link_end(link, -EIO);
                return;
            }
            memcpy(&in, link->in + 4, sizeof(in));
            greeted(link, &in);
        } else if (link->open) {
            uint8_t *copy = malloc(n);

            memcpy(copy, link->in + 4, n);
            link->events->on_message(link, copy, n, link->arg);
            free(copy);
        }
        link->in_bytes -= 4 + n;
        memmove(link->in, link->in + 4 + n, link->in_bytes);
    }
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct mst_link *link = handle->data;

    (void)suggested;
    *buf = uv_buf_init((char *)link->in + link->in_bytes, (unsigned)(FRAME_MAX - link->in_bytes));
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct mst_link *link = stream->data;

    (void)buf;
    if (n < 0) {
        snprintf(link->why.text, sizeof(link->why.text), "the peer is gone");
        link_end(link, -ECONNRESET);
        return;
    }
    link->in_bytes += (size_t)n;
    frames(link);
}

static struct mst_link *link_new(struct mst_fabric *f)
{
    struct mst_link *link = calloc(1, sizeof(*link));

    link->fabric = f;
    link->handles = 2;
    uv_tcp_init(f->loop, &link->tcp);
    uv_timer_init(f->loop, &link->timer);
    link->tcp.data = link->timer.data = link;
    TAILQ_INIT(&link->ops);
    LIST_INSERT_HEAD(&f->list, link, entry);
    f->links++;
    return link;
}

static void on_connection(uv_stream_t *stream, int status)
{
    struct mst_fabric *f = stream->data;
    struct mst_link *link;
    struct sockaddr_storage peer;
    int len = sizeof(peer);

    if (status < 0 || f->closing)
        return;
    link = link_new(f);
    link->acceptor = true;
    uv_accept(stream, (uv_stream_t *)&link->tcp);
    uv_tcp_getpeername(&link->tcp, (struct sockaddr *)&peer, &len);
    uv_ip4_name((struct sockaddr_in *)(void *)&peer, link->address, sizeof(link->address));
    uv_read_start((uv_stream_t *)&link->tcp, on_alloc, on_read);
}

int mst_fabric_listen(struct mst_fabric *fabric, uint16_t port,
                      int (*on_accept)(struct mst_link *, const struct mst_link_request *, void *,
                                       const struct mst_link_events **, void **, struct mst_why *),
                      void *arg, struct mst_why *why)
{
    struct sockaddr_in addr;
    int r;

    fabric->on_accept = on_accept;
    fabric->accept_arg = arg;
    uv_ip4_addr(fabric->address, port, &addr);
    uv_tcp_init(fabric->loop, &fabric->listener);
    fabric->listener.data = fabric;
    fabric->listening = true;
    r = uv_tcp_bind(&fabric->listener, (struct sockaddr *)&addr, 0);
    if (r == 0)
        r = uv_listen((uv_stream_t *)&fabric->listener, 64, on_connection);
    return r < 0 ? mst_why_set(why, r, "%s:%u: %s", fabric->address, port, uv_strerror(r)) : 0;
}

static void on_deadline(uv_timer_t *timer)
{
    link_end(timer->data, -ETIMEDOUT);
}

static void on_connected(uv_connect_t *req, int status)
{
    struct mst_link *link = req->data;

    if (link->closing)
        return;
    if (status < 0) {
        link_end(link, status);
        return;
    }
    frame_send(link, &link->hello, sizeof(link->hello));
    uv_read_start((uv_stream_t *)&link->tcp, on_alloc, on_read);
}

int mst_fabric_connect(struct mst_fabric *fabric, const char *address, uint16_t port, enum mst_role role, const void *data,
                       size_t data_bytes, uint32_t deadline_ms, const struct mst_link_events *events, void *arg,
                       struct mst_link **ret_link, struct mst_why *why)
{
    struct sockaddr_in from, to;
    struct mst_link *link;
    int r;

    if (data_bytes > MST_CONNECT_DATA_MAX)
        return mst_why_set(why, -EINVAL, "connect data");
    link = link_new(fabric);
    link->role = role;
    link->events = events;
    link->arg = arg;
    snprintf(link->address, sizeof(link->address), "%s", address);
    link->hello = (struct greeting){.role = role, .pid = getpid(), .data_bytes = (uint32_t)data_bytes};
    if (data_bytes)
        memcpy(link->hello.data, data, data_bytes);
    uv_ip4_addr(fabric->address, 0, &from);
    uv_ip4_addr(address, port, &to);
    r = uv_tcp_bind(&link->tcp, (struct sockaddr *)&from, 0);
    link->connect.data = link;
    if (r == 0)
        r = uv_tcp_connect(&link->connect, &link->tcp, (struct sockaddr *)&to, on_connected);
    if (r < 0)
        link_end(link, r);
    else
        uv_timer_start(&link->timer, on_deadline, deadline_ms, 0);
    *ret_link = link;
    return 0;
}

/* --- memory --- */

int mst_region_new(struct mst_link *link, void *addr, size_t len, enum mst_access access, struct mst_region **ret_region,
                   struct mst_why *why)
{
    struct mst_region *region;

    (void)access;
    if (!link->open || link->closing)
        return mst_why_set(why, -ENOTCONN, "the link is not open");
    region = calloc(1, sizeof(*region));
    region->link = link;
    region->addr = addr;
    region->len = len;
    LIST_INSERT_HEAD(&link->regions, region, entry);
    *ret_region = region;
    return 0;
}

struct registration {
    uv_work_t work;
    struct mst_link *link;
    void *addr;
    size_t len;
    mst_region_fn done;
    void *arg;
};

static void register_work(uv_work_t *work)
{
    (void)work;
    usleep(20000); /* pinning takes its time */
}

static void register_after(uv_work_t *work, int status)
{
    struct registration *reg = work->data;
    struct mst_link *link = reg->link;
    struct mst_region *region = NULL;
    struct mst_why why = {0};
    int r = mst_region_new(link, reg->addr, reg->len, MST_ACCESS_LOCAL, &region, &why);

    (void)status;
    reg->done(reg->arg, region, r < 0 ? -ECANCELED : 0, &why);
    free(reg);
    if (--link->registering == 0 && link->closed)
        link_gone(link);
}

int mst_region_new_async(struct mst_link *link, void *addr, size_t len, enum mst_access access, mst_region_fn done, void *arg,
                         struct mst_why *why)
{
    struct registration *reg;

    (void)access;
    if (!link->open || link->closing)
        return mst_why_set(why, -ENOTCONN, "the link is not open");
    reg = calloc(1, sizeof(*reg));
    *reg = (struct registration){.link = link, .addr = addr, .len = len, .done = done, .arg = arg};
    reg->work.data = reg;
    link->registering++;
    return uv_queue_work(link->fabric->loop, &reg->work, register_work, register_after);
}

void mst_region_free(struct mst_region *region)
{
    if (!region)
        return;
    LIST_REMOVE(region, entry);
    free(region);
}

void mst_region_key(const struct mst_region *region, uint64_t *ret_addr, uint32_t *ret_rkey)
{
    *ret_addr = (uint64_t)(uintptr_t)region->addr;
    *ret_rkey = (uint32_t)((uintptr_t)region->addr >> 12) ^ 0x5a5a;
}

/* --- one-sided --- */

static int move_chunk(struct mst_link *link, struct op *op, uint32_t len)
{
    struct iovec local = {.iov_base = op->local->addr + op->local_off + op->at, .iov_len = len};
    struct iovec remote = {.iov_base = (void *)(uintptr_t)(op->remote_addr + op->at), .iov_len = len};
    ssize_t n = op->write ? process_vm_writev(link->peer, &local, 1, &remote, 1, 0)
                          : process_vm_readv(link->peer, &local, 1, &remote, 1, 0);

    return n == (ssize_t)len ? 0 : -EIO;
}

/* One chunk of the first operation per turn of the loop, so that other things happen in between as they do with RDMA. */
static void on_ops(uv_timer_t *timer)
{
    struct mst_link *link = timer->data;
    struct op *op = TAILQ_FIRST(&link->ops);
    uint32_t len;
    int r;

    if (!op) {
        uv_timer_stop(timer);
        return;
    }
    len = op->total - op->at < op->chunk ? (uint32_t)(op->total - op->at) : op->chunk;
    r = move_chunk(link, op, len);
    if (r == 0 && op->on_chunk)
        r = op->on_chunk(op->arg, op->at, len);
    else if (r < 0) {
        snprintf(link->why.text, sizeof(link->why.text), "READ failed");
        link_end(link, -EIO);
    }
    op->at += len;
    if (r == 0 && op->at < op->total)
        return;
    TAILQ_REMOVE(&link->ops, op, entry);
    op->done(op->arg, r);
    free(op);
}

static int op_add(struct mst_link *link, struct op what)
{
    struct op *op;

    if (!what.total || what.local->link != link || what.local_off > what.local->len ||
        what.total > what.local->len - what.local_off)
        return -ERANGE;
    if (!link->open || link->closing)
        return -ENOTCONN;
    op = malloc(sizeof(*op));
    *op = what;
    TAILQ_INSERT_TAIL(&link->ops, op, entry);
    uv_timer_start(&link->timer, on_ops, 0, 1);
    return 0;
}

int mst_link_read(struct mst_link *link, struct mst_region *local, uint64_t local_off, uint64_t remote_addr, uint32_t rkey,
                  uint32_t len, uint32_t deadline_ms, mst_io_fn done, void *arg)
{
    (void)rkey, (void)deadline_ms;
    return op_add(link, (struct op){.local = local,
                                    .local_off = local_off,
                                    .remote_addr = remote_addr,
                                    .total = len,
                                    .chunk = len,
                                    .done = done,
                                    .arg = arg});
}

int mst_link_write(struct mst_link *link, struct mst_region *local, uint64_t local_off, uint64_t remote_addr, uint32_t rkey,
                   uint32_t len, uint32_t deadline_ms, mst_io_fn done, void *arg)
{
    (void)rkey, (void)deadline_ms;
    return op_add(link, (struct op){.local = local,
                                    .local_off = local_off,
                                    .remote_addr = remote_addr,
                                    .total = len,
                                    .chunk = len,
                                    .write = true,
                                    .done = done,
                                    .arg = arg});
}

int mst_link_read_stream(struct mst_link *link, struct mst_region *local, uint64_t local_off, uint64_t remote_addr, uint32_t rkey,
                         uint64_t total, uint32_t chunk_bytes, uint32_t depth, uint32_t deadline_ms,
                         int (*on_chunk)(void *arg, uint64_t offset, uint32_t len), mst_io_fn done, void *arg)
{
    (void)rkey, (void)depth, (void)deadline_ms;
    return op_add(link, (struct op){.local = local,
                                    .local_off = local_off,
                                    .remote_addr = remote_addr,
                                    .total = total,
                                    .chunk = chunk_bytes,
                                    .on_chunk = on_chunk,
                                    .done = done,
                                    .arg = arg});
}

/* --- watcher: on the loop instead of a thread --- */

#define TARGETS_MAX 64

struct mst_watcher {
    struct mst_fabric *fabric;
    uv_timer_t timer;
    void (*on_sample)(void *arg);
    void *arg;
    struct target {
        bool used;
        uint32_t id, len;
        struct mst_link *link;
        pid_t peer;
        uint64_t addr;
        struct mst_watch_sample sample;
    } targets[TARGETS_MAX];
};

static bool link_lives(const struct mst_fabric *fabric, const struct target *target)
{
    struct mst_link *link;

    LIST_FOREACH (link, &fabric->list, entry) {
        if (link == target->link && link->peer == target->peer)
            return link->open && !link->closing;
    }
    return false;
}

static void watch_one(struct mst_watcher *watcher, struct target *target)
{
    struct mst_watch_sample *sample = &target->sample;
    struct iovec local = {.iov_base = sample->data, .iov_len = target->len};
    struct iovec remote = {.iov_base = (void *)(uintptr_t)target->addr, .iov_len = target->len};

    if (sample->error != 0)
        return;
    if (!link_lives(watcher->fabric, target)) {
        sample->error = -ECANCELED;
        return;
    }
    if (process_vm_readv(target->peer, &local, 1, &remote, 1, 0) != (ssize_t)target->len) {
        sample->failures++;
        sample->error = -EIO;
        link_end(target->link, -EIO);
        return;
    }
    sample->reads++;
    sample->bytes = target->len;
    sample->last_read_ns = mst_now_ns();
}

static void on_watch(uv_timer_t *timer)
{
    struct mst_watcher *watcher = timer->data;

    for (unsigned i = 0; i < TARGETS_MAX; i++) {
        if (watcher->targets[i].used)
            watch_one(watcher, &watcher->targets[i]);
    }
    watcher->on_sample(watcher->arg);
}

int mst_watcher_new(struct mst_fabric *fabric, uint32_t interval_ms, uint32_t read_deadline_ms, void (*on_sample)(void *arg),
                    void *arg, struct mst_watcher **ret_watcher, struct mst_why *why)
{
    struct mst_watcher *watcher = calloc(1, sizeof(*watcher));

    (void)read_deadline_ms, (void)why;
    watcher->fabric = fabric;
    watcher->on_sample = on_sample;
    watcher->arg = arg;
    uv_timer_init(fabric->loop, &watcher->timer);
    watcher->timer.data = watcher;
    uv_timer_start(&watcher->timer, on_watch, interval_ms, interval_ms);
    *ret_watcher = watcher;
    return 0;
}

static struct target *target_find(struct mst_watcher *watcher, uint32_t id)
{
    for (unsigned i = 0; i < TARGETS_MAX; i++) {
        if (watcher->targets[i].used && watcher->targets[i].id == id)
            return &watcher->targets[i];
    }
    return NULL;
}

int mst_watcher_add(struct mst_watcher *watcher, uint32_t id, struct mst_link *link, uint64_t remote_addr, uint32_t rkey,
                    uint32_t len)
{
    (void)rkey;
    if (target_find(watcher, id))
        return -EEXIST;
    for (unsigned i = 0; i < TARGETS_MAX; i++) {
        if (watcher->targets[i].used)
            continue;
        watcher->targets[i] =
            (struct target){.used = true, .id = id, .link = link, .peer = link->peer, .addr = remote_addr, .len = len};
        return 0;
    }
    return -ENOMEM;
}

void mst_watcher_remove(struct mst_watcher *watcher, uint32_t id)
{
    struct target *target = target_find(watcher, id);

    if (target)
        target->used = false;
}

int mst_watcher_sample(struct mst_watcher *watcher, uint32_t id, struct mst_watch_sample *ret_sample)
{
    const struct target *target = target_find(watcher, id);

    if (!target)
        return -ENOENT;
    *ret_sample = target->sample;
    return 0;
}

static void watcher_freed(uv_handle_t *handle)
{
    free(handle->data);
}

void mst_watcher_free(struct mst_watcher *watcher)
{
    if (!watcher)
        return;
    uv_timer_stop(&watcher->timer);
    uv_close((uv_handle_t *)&watcher->timer, watcher_freed);
}
