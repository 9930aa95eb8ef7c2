/* Memory regions; READ and WRITE with a queue, a depth and deadlines; streams of READs. */

#include "base/clock.h"
#include "base/fault.h"
#include "fabric/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

/* --- regions --- */

int mst_why_locked(struct mst_why *why, int err, const char *what, size_t bytes)
{
    struct rlimit limit;

    if (err == -ENOMEM && !getrlimit(RLIMIT_MEMLOCK, &limit) && limit.rlim_cur != RLIM_INFINITY)
        return mst_why_set(why, err,
                           "registering %s (%zu bytes) failed: %s; this process may lock %" PRIu64
                           " KiB (RLIMIT_MEMLOCK): raise LimitMEMLOCK= of the service or `ulimit -l`",
                           what, bytes, strerror(-err), (uint64_t)limit.rlim_cur / 1024);
    return mst_why_set(why, err, "registering %s (%zu bytes) failed: %s", what, bytes, strerror(-err));
}

/* Checks what is asked for and makes the region without its MR. */
static int region_make(struct mst_link *link, void *addr, size_t len, enum mst_access access, struct mst_region **ret_region,
                       unsigned *ret_flags, struct mst_why *why)
{
    static const unsigned flags[] = {
        [MST_ACCESS_LOCAL] = IBV_ACCESS_LOCAL_WRITE,
        [MST_ACCESS_REMOTE_READ] = IBV_ACCESS_REMOTE_READ,
        [MST_ACCESS_REMOTE_WRITE] = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE,
        [MST_ACCESS_REMOTE_READ | MST_ACCESS_REMOTE_WRITE] =
            IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE,
    };
    const unsigned remote = IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE;
    struct mst_region *region;

    if (!addr || !len || (unsigned)access >= sizeof(flags) / sizeof(flags[0]))
        return mst_why_set(why, -EINVAL, "a region needs memory, a length and an access of enum mst_access");
    if ((flags[access] & remote) & ~(link->acceptor ? link->row->access : 0))
        return mst_why_set(why, -EINVAL, "a %s link gives the peer at %s no such access", link->row->name, link->address);
    if (link->state != LINK_OPEN)
        return mst_why_set(why, -ENOTCONN, "the link to %s is not open", link->address);
    MST_FAULT("fabric.region", return mst_why_locked(why, -ENOMEM, "memory", len));
    region = calloc(1, sizeof(*region));
    if (!region)
        return mst_why_set(why, -ENOMEM, "no memory");
    region->link = link;
    region->addr = addr;
    region->len = len;
    *ret_flags = flags[access];
    *ret_region = region;
    return 0;
}

static void region_keep(struct mst_region *region)
{
    LIST_INSERT_HEAD(&region->link->regions, region, entry);
    region->link->fabric->counts.regions++;
}

int mst_region_new(struct mst_link *link, void *addr, size_t len, enum mst_access access, struct mst_region **ret_region,
                   struct mst_why *why)
{
    struct mst_region *region;
    unsigned flags;
    int r;

    r = region_make(link, addr, len, access, &region, &flags, why);
    if (r < 0)
        return r;
    region->mr = (ibv_reg_mr)(link->pd, addr, len, (int)flags); /* not the macro: it does not compile under -Wsign-conversion */
    if (!region->mr) {
        int err = -errno;

        free(region);
        return mst_why_locked(why, err, "memory", len);
    }
    region_keep(region);
    *ret_region = region;
    return 0;
}

/* --- registering on a worker thread --- */

struct registration {
    uv_work_t work;
    struct mst_region *region; /* its link does not end before the worker has: link->registering */
    struct ibv_pd *pd;
    unsigned flags;
    int err;
    mst_region_fn done;
    void *arg;
};

static void register_work(uv_work_t *work)
{
    struct registration *reg = work->data;

    reg->region->mr = (ibv_reg_mr)(reg->pd, reg->region->addr, reg->region->len, (int)reg->flags);
    reg->err = reg->region->mr ? 0 : -errno;
}

static void register_after(uv_work_t *work, int status)
{
    struct registration *reg = work->data;
    struct mst_region *region = reg->region;
    struct mst_link *link = region->link;
    struct mst_why why = {0};
    int err = status < 0 ? -ECANCELED : reg->err;

    link->registering--;
    if (err < 0 && err != -ECANCELED)
        mst_why_locked(&why, err, "memory", region->len);
    if (err == 0 && link->state != LINK_OPEN) {
        err = mst_why_set(&why, -ECANCELED, "the link to %s has ended", link->address);
        ibv_dereg_mr(region->mr);
    }
    if (err == 0)
        region_keep(region);
    reg->done(reg->arg, err == 0 ? region : NULL, err, &why);
    if (err < 0)
        free(region);
    free(reg);
    mst_link_drained(link);
}

int mst_region_new_async(struct mst_link *link, void *addr, size_t len, enum mst_access access, mst_region_fn done, void *arg,
                         struct mst_why *why)
{
    struct registration *reg;
    struct mst_region *region;
    unsigned flags;
    int r;

    r = region_make(link, addr, len, access, &region, &flags, why);
    if (r < 0)
        return r;
    reg = calloc(1, sizeof(*reg));
    if (!reg) {
        r = mst_why_set(why, -ENOMEM, "no memory");
        goto free_region;
    }
    *reg = (struct registration){.region = region, .pd = link->pd, .flags = flags, .done = done, .arg = arg};
    reg->work.data = reg;
    r = uv_queue_work(link->fabric->loop, &reg->work, register_work, register_after);
    if (r < 0)
        goto free_reg;
    link->registering++;
    return 0;
free_reg:
    free(reg);
free_region:
    free(region);
    return r;
}

static void region_deregister(struct mst_region *region)
{
    assert(region->uses == 0); /* contract: no work request uses it */
    if (!region->mr)
        return;
    ibv_dereg_mr(region->mr);
    region->mr = NULL;
    region->link->fabric->counts.regions--;
}

void mst_region_free(struct mst_region *region)
{
    if (!region)
        return;
    region_deregister(region);
    LIST_REMOVE(region, entry);
    free(region);
}

void mst_regions_deregister(struct mst_link *link)
{
    struct mst_region *region;

    LIST_FOREACH (region, &link->regions, entry)
        region_deregister(region);
}

void mst_regions_free(struct mst_link *link)
{
    struct mst_region *region = LIST_FIRST(&link->regions);

    while (region) {
        struct mst_region *next = LIST_NEXT(region, entry);

        mst_region_free(region);
        region = next;
    }
}

void mst_region_key(const struct mst_region *region, uint64_t *ret_addr, uint32_t *ret_rkey)
{
    *ret_addr = (uintptr_t)region->addr;
    *ret_rkey = region->mr ? region->mr->rkey : 0;
}

/* --- READ and WRITE --- */

static const char *name_of(enum ibv_wr_opcode opcode)
{
    return opcode == IBV_WR_RDMA_READ ? "READ" : "WRITE";
}

static uint64_t deadline_of(const struct mst_io_op *op)
{
    uint64_t from_progress_ns;

    if (!op->progress_ns)
        return op->deadline_ns;
    from_progress_ns = *op->progress_ns + op->deadline_ms * MST_NS_PER_MS;
    return from_progress_ns > op->deadline_ns ? from_progress_ns : op->deadline_ns;
}

static int post(struct mst_link *link, struct mst_io_op *op)
{
    struct ibv_sge sge = {.addr = (uintptr_t)op->local->addr + op->local_off, .length = op->len, .lkey = op->local->mr->lkey};
    struct ibv_send_wr wr = {
        .wr_id = (uintptr_t)&op->wr,
        .sg_list = &sge,
        .num_sge = 1,
        .opcode = op->opcode,
        .send_flags = IBV_SEND_SIGNALED,
        .wr.rdma = {.remote_addr = op->remote_addr, .rkey = op->rkey},
    };
    struct ibv_send_wr *bad;

    return -ibv_post_send(link->qp, &wr, &bad);
}

static void pump(struct mst_link *link)
{
    struct mst_io_op *op;
    int r;

    while (mst_link_live(link) && link->io_in_flight < MST_READS_MAX && (op = TAILQ_FIRST(&link->io_waiting))) {
        r = post(link, op);
        if (r < 0) { /* op stays where it is and is cancelled with the rest */
            mst_link_failf(link, -EIO, "posting a %s to %s failed: %s", name_of(op->opcode), link->address, strerror(-r));
            return;
        }
        TAILQ_REMOVE(&link->io_waiting, op, entry);
        TAILQ_INSERT_TAIL(&link->io_posted, op, entry);
        link->io_in_flight++;
    }
}

static void finish(struct mst_io_op *op, int err)
{
    mst_io_fn done = op->done;
    void *arg = op->arg;

    op->local->uses--;
    free(op);
    done(arg, err);
}

static int io_start(struct mst_link *link, enum ibv_wr_opcode opcode, const struct mst_io_op *spec)
{
    struct mst_io_op *op;

    if (link->state != LINK_OPEN)
        return -ENOTCONN;
    if (link->acceptor || link->role == MST_ROLE_CONTROL)
        return -EOPNOTSUPP;
    if (opcode == IBV_WR_RDMA_READ && link->watch.watcher)
        return -EBUSY;
    if (spec->local->link != link || spec->len < 1 || spec->len > MST_READ_BYTES_MAX || spec->local_off > spec->local->len ||
        spec->len > spec->local->len - spec->local_off || spec->remote_addr + spec->len < spec->remote_addr)
        return -ERANGE;
    op = malloc(sizeof(*op));
    if (!op)
        return -ENOMEM;
    *op = *spec;
    op->wr.kind = MST_WR_IO;
    op->opcode = opcode;
    op->deadline_ns = mst_now_ns() + op->deadline_ms * MST_NS_PER_MS;
    op->local->uses++;
    TAILQ_INSERT_TAIL(&link->io_waiting, op, entry);
    mst_link_arm(link, op->deadline_ns);
    pump(link);
    return 0;
}

int mst_link_read(struct mst_link *link, struct mst_region *local, uint64_t local_off, uint64_t remote_addr, uint32_t rkey,
                  uint32_t len, uint32_t deadline_ms, mst_io_fn done, void *arg)
{
    return io_start(link, IBV_WR_RDMA_READ,
                    &(struct mst_io_op){.local = local,
                                        .local_off = local_off,
                                        .remote_addr = remote_addr,
                                        .rkey = rkey,
                                        .len = len,
                                        .deadline_ms = deadline_ms,
                                        .done = done,
                                        .arg = arg});
}

int mst_link_write(struct mst_link *link, struct mst_region *local, uint64_t local_off, uint64_t remote_addr, uint32_t rkey,
                   uint32_t len, uint32_t deadline_ms, mst_io_fn done, void *arg)
{
    return io_start(link, IBV_WR_RDMA_WRITE,
                    &(struct mst_io_op){.local = local,
                                        .local_off = local_off,
                                        .remote_addr = remote_addr,
                                        .rkey = rkey,
                                        .len = len,
                                        .deadline_ms = deadline_ms,
                                        .done = done,
                                        .arg = arg});
}

void mst_io_done(struct mst_link *link, struct mst_io_op *op, const struct ibv_wc *wc)
{
    int err = 0;

    TAILQ_REMOVE(&link->io_posted, op, entry);
    link->io_in_flight--;
    if (wc->status == IBV_WC_SUCCESS) {
        pump(link);
        finish(op, 0);
        return;
    }
    /* Only the first failure tells why; the rest is flushed. */
    if (op->expired)
        err = -ETIMEDOUT;
    else if (wc->status == IBV_WC_WR_FLUSH_ERR)
        err = -ECANCELED;
    else
        err = -EIO;
    mst_link_failf(link, -EIO, "%s of %u bytes at %#" PRIx64 " of %s failed: %s", name_of(op->opcode), op->len, op->remote_addr,
                   link->address, ibv_wc_status_str(wc->status));
    finish(op, err);
}

void mst_io_cancel_all(struct mst_link *link)
{
    struct mst_io_op *op;

    while ((op = TAILQ_FIRST(&link->io_posted))) {
        TAILQ_REMOVE(&link->io_posted, op, entry);
        link->io_in_flight--;
        finish(op, op->expired ? -ETIMEDOUT : -ECANCELED);
    }
    while ((op = TAILQ_FIRST(&link->io_waiting))) {
        TAILQ_REMOVE(&link->io_waiting, op, entry);
        finish(op, op->expired ? -ETIMEDOUT : -ECANCELED);
    }
}

void mst_io_check_deadlines(struct mst_link *link, uint64_t now_ns, uint64_t *ret_next_ns)
{
    struct mst_io_list *lists[] = {&link->io_posted, &link->io_waiting};
    struct mst_io_op *op, *late = NULL;
    uint64_t next_ns = 0;

    for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) {
        TAILQ_FOREACH (op, lists[i], entry) {
            uint64_t deadline_ns = deadline_of(op);

            if (deadline_ns <= now_ns) {
                op->expired = true;
                late = late ? late : op;
            } else if (!next_ns || deadline_ns < next_ns) {
                next_ns = deadline_ns;
            }
        }
    }
    *ret_next_ns = late ? 0 : next_ns;
    if (late)
        mst_link_failf(link, -ETIMEDOUT, "%s of %u bytes from %s was not done within %u ms", name_of(late->opcode), late->len,
                       link->address, late->deadline_ms);
}

/* --- streams --- */

struct stream {
    struct mst_link *link;
    struct mst_region *local;
    uint64_t local_off, remote_addr, total;
    uint64_t asked, got; /* bytes; chunks of one QP finish in the order they were asked for */
    uint64_t progress_ns;
    uint32_t rkey, chunk_bytes, depth, deadline_ms;
    uint32_t in_flight;
    int err;
    int (*on_chunk)(void *arg, uint64_t offset, uint32_t len);
    mst_io_fn done;
    void *arg;
};

static uint32_t chunk_at(const struct stream *stream, uint64_t offset)
{
    return stream->total - offset < stream->chunk_bytes ? (uint32_t)(stream->total - offset) : stream->chunk_bytes;
}

static void on_chunk_read(void *arg, int err);

static int ask(struct stream *stream)
{
    uint32_t len = chunk_at(stream, stream->asked);
    int r = io_start(stream->link, IBV_WR_RDMA_READ,
                     &(struct mst_io_op){.local = stream->local,
                                         .local_off = stream->local_off + stream->asked,
                                         .remote_addr = stream->remote_addr + stream->asked,
                                         .rkey = stream->rkey,
                                         .len = len,
                                         .deadline_ms = stream->deadline_ms,
                                         .progress_ns = &stream->progress_ns,
                                         .done = on_chunk_read,
                                         .arg = stream});

    if (r < 0)
        return r;
    stream->asked += len;
    stream->in_flight++;
    return 0;
}

/* Everything asked for must come back before the stream ends: it lands in the caller's memory. */
static void on_chunk_read(void *arg, int err)
{
    struct stream *stream = arg;
    uint64_t offset = stream->got;
    uint32_t len = chunk_at(stream, offset);

    stream->in_flight--;
    stream->got += len;
    if (!stream->err)
        stream->err = err;
    if (!stream->err)
        stream->progress_ns = mst_now_ns();
    while (!stream->err && stream->asked < stream->total &&
           stream->in_flight < stream->depth) { /* first, to keep the wire busy */
        int r = ask(stream);

        if (r < 0)
            stream->err = r == -ENOTCONN ? -ECANCELED : r;
    }
    if (!stream->err && stream->on_chunk)
        stream->err = stream->on_chunk(stream->arg, offset, len);
    if (stream->in_flight)
        return;
    stream->done(stream->arg, stream->err);
    free(stream);
}

int mst_link_read_stream(struct mst_link *link, struct mst_region *local, uint64_t local_off, uint64_t remote_addr, uint32_t rkey,
                         uint64_t total, uint32_t chunk_bytes, uint32_t depth, uint32_t deadline_ms,
                         int (*on_chunk)(void *arg, uint64_t offset, uint32_t len), mst_io_fn done, void *arg)
{
    struct stream *stream;
    int r;

    if (!total || !chunk_bytes || chunk_bytes > MST_READ_BYTES_MAX || !depth || local->link != link || local_off > local->len ||
        total > local->len - local_off || remote_addr + total < remote_addr)
        return -ERANGE;
    stream = malloc(sizeof(*stream));
    if (!stream)
        return -ENOMEM;
    *stream = (struct stream){
        .link = link,
        .local = local,
        .local_off = local_off,
        .remote_addr = remote_addr,
        .total = total,
        .rkey = rkey,
        .chunk_bytes = chunk_bytes,
        .depth = depth,
        .deadline_ms = deadline_ms,
        .on_chunk = on_chunk,
        .done = done,
        .arg = arg,
    };
    while (stream->asked < total && stream->in_flight < depth) {
        r = ask(stream);
        if (r < 0 && !stream->in_flight) {
            free(stream);
            return r;
        }
        if (r < 0) { /* the first ones are on their way and will end the stream */
            stream->err = r;
            break;
        }
    }
    return 0;
}
