#include "node/keeper/pull.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mutant.h"
#include "base/priority.h"
#include "mirror/image.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Filling a VM's areas with the save (vm, older epoch) of another node, by RDMA READ and without that node's software, or of this node, by copying.
 *
 *   entry, entry again   the slot's two pairs of records, twice: the second copy confirms the first (a torn one never passes both)
 *   sums, table          page checksums and delta table; together they must give the record's digest, so that from here on every page has a
 *                        checksum that belongs to this very checkpoint
 *   ram                  streamed straight into the VM's RAM; each chunk is checked as it comes (pages the delta replaces are left out)
 *   delta                pages over it
 *   device               into the VM's save area, its own slot number kept
 *   confirm              the entry a third time, on the same queue pair: the record is still there, so nothing was read half old
 *
 * What fails a check may just have been overtaken by a living writer: begin again, at most TRIES times. Nothing is allocated from a size
 * that was not compared with this VM's definition before. The loop only posts READs: checksums, copies and the delta are a worker thread's, one job
 * at a time for each pull, so that the beat goes on however slow the processor is. */

#define TRIES          3u
#define CHUNK_BYTES    MST_READ_BYTES_MAX /* the fewest wake-ups */
#define PAGES_PER_LOOK 64u                /* checked between two looks whether the pull was canceled */
#define DEPTH          4u
#define CHUNK_MS       5000u /* without a chunk: one needs 250 ms over the slowest lab link (4 MB/s) */
static_assert(CHUNK_BYTES % MST_PAGE_BYTES == 0, "whole pages");

static void next_step(struct pull *p);

/* --- buffers --- */

static void region_drop(struct pull *p, enum buffer which)
{
    mst_region_free(p->buffer[which].region);
    p->buffer[which].region = NULL;
}

static void tables_free(struct pull *p)
{
    region_drop(p, BUFFER_TABLES);
    if (p->buffer[BUFFER_TABLES].addr)
        munmap(p->buffer[BUFFER_TABLES].addr, p->buffer[BUFFER_TABLES].bytes);
    p->buffer[BUFFER_TABLES].addr = NULL;
    free(p->covered);
    p->covered = NULL;
}

void mst_pull_release(struct pull *p)
{
    tables_free(p);
    region_drop(p, BUFFER_SCRATCH);
    if (MST_MUTANT(35))
        return;
    region_drop(p, BUFFER_SAVE);
    region_drop(p, BUFFER_RAM);
}

/* --- checking the RAM, on a worker thread behind the READs --- */

/* Pages of [from, to), bytes of the RAM. Worker thread. */
static int pages_check(struct pull *p, uint64_t from, uint64_t to)
{
    const uint32_t *sums = (const uint32_t *)(const void *)p->buffer[BUFFER_TABLES].addr;
    uint64_t page = from / MST_PAGE_BYTES, end = to / MST_PAGE_BYTES;

    while (page < end && !p->canceled) {
        uint64_t count = end - page < PAGES_PER_LOOK ? end - page : PAGES_PER_LOOK;
        uint64_t good = mst_pages_check(p->buffer[BUFFER_RAM].addr + page * MST_PAGE_BYTES, sums + page, count);

        page += good;
        if (good == count)
            continue;
        if (!(p->covered[page / 8] & 1u << page % 8))
            return mst_why_set(&p->why, -EBADMSG, "page %" PRIu64 " does not match its checksum in save %" PRIu64, page,
                               p->record.seq);
        page++;
    }
    return 0;
}

static void check_next(struct pull *p);

static void check_work(uv_work_t *work)
{
    struct pull *p = work->data;

    mst_priority_worker();
    p->check_err = pages_check(p, p->checked, p->check_to);
}

static void check_after(uv_work_t *work, int status)
{
    struct pull *p = work->data;

    p->checking = false;
    p->checked = p->check_to;
    if (status < 0)
        p->check_err = status;
    check_next(p);
}

/* Has what arrived meanwhile checked, or ends the fetch when nothing is left to arrive and to check. */
static void check_next(struct pull *p)
{
    int r;

    if (p->checking)
        return;
    if (p->check_err == 0 && p->checked < p->arrived) {
        p->check_to = p->arrived;
        p->work.data = p;
        p->checking = true;
        r = uv_queue_work(p->keeper->loop, &p->work, check_work, check_after); /* from here on check_err is the worker's */
        if (r == 0)
            return;
        p->checking = false;
        p->check_err = r;
    }
    if (p->streaming)
        return;
    if (p->fetch.to == BUFFER_RAM)
        p->verify_ns += mst_now_ns() - p->streamed_ns; /* checks behind a READ still on its way cost the pull nothing */
    p->err = p->check_err ? p->check_err : p->stream_err;
    next_step(p);
}

/* --- fetching --- */

static int on_chunk(void *arg, uint64_t offset, uint32_t len)
{
    struct pull *p = arg;

    if (p->fetch.to == BUFFER_RAM) {
        p->arrived = offset + len;
        check_next(p);
    }
    if (p->canceled)
        return -ECANCELED;
    return p->checking ? 0 : p->check_err;
}

static void streamed(void *arg, int err)
{
    struct pull *p = arg;

    p->streaming = false;
    p->streamed_ns = mst_now_ns();
    p->stream_err = err;
    check_next(p);
}

static int stream(struct pull *p)
{
    const struct fetch *f = &p->fetch;
    uint64_t addr = p->remote.status_addr;
    uint32_t rkey = p->remote.status_rkey;
    int r;

    if (!p->remote.link)
        return -ENOTCONN;
    if (f->from != FROM_STATUS) {
        addr = p->remote.area[f->from].addr;
        rkey = p->remote.area[f->from].rkey;
    }
    p->arrived = p->checked = 0;
    p->check_err = 0;
    p->streaming = true;
    r = mst_link_read_stream(p->remote.link, p->buffer[f->to].region, f->to_off, addr + f->from_off, rkey, f->bytes, CHUNK_BYTES,
                             DEPTH, CHUNK_MS, on_chunk, streamed, p);
    if (r < 0)
        p->streaming = false;
    return r;
}

static void registered(void *arg, struct mst_region *region, int err, const struct mst_why *why)
{
    struct pull *p = arg;

    p->buffer[p->fetch.to].region = region;
    if (err < 0)
        p->why = *why;
    else
        err = p->canceled ? -ECANCELED : stream(p);
    p->err = err;
    if (err < 0)
        next_step(p);
}

/* The memory read into must be registered on this very link: the VM's own RAM by a worker when it is large. */
static int fetch_remote(struct pull *p)
{
    enum buffer to = p->fetch.to;
    int r = 0;

    if (!p->remote.link)
        return -ENOTCONN;
    if (!p->buffer[to].region && p->buffer[to].bytes >= MST_REGISTER_LATER_BYTES)
        return mst_region_new_async(p->remote.link, p->buffer[to].addr, p->buffer[to].bytes, MST_ACCESS_LOCAL, registered, p,
                                    &p->why);
    if (!p->buffer[to].region)
        r = mst_region_new(p->remote.link, p->buffer[to].addr, p->buffer[to].bytes, MST_ACCESS_LOCAL, &p->buffer[to].region,
                           &p->why);
    return r < 0 ? r : stream(p);
}

static void copy_work(uv_work_t *work)
{
    struct pull *p = work->data;
    const struct fetch *f = &p->fetch;
    const uint8_t *from = f->from == FROM_STATUS ? (const uint8_t *)p->keeper->status : p->local->areas.area[f->from].addr;
    uint64_t done = 0, copied_ns;

    mst_priority_worker();
    p->err = 0;
    while (done < f->bytes && p->err == 0) {
        uint64_t len = f->bytes - done < CHUNK_BYTES ? f->bytes - done : CHUNK_BYTES;

        memcpy(p->buffer[f->to].addr + f->to_off + done, from + f->from_off + done, len);
        copied_ns = mst_now_ns();
        p->err = p->canceled ? -ECANCELED : f->to == BUFFER_RAM ? pages_check(p, done, done + len) : 0;
        p->verify_ns += mst_now_ns() - copied_ns;
        done += len;
    }
}

static void copied(uv_work_t *work, int status)
{
    struct pull *p = work->data;

    if (status < 0)
        p->err = status;
    next_step(p);
}

static int fetch_begin(struct pull *p, unsigned from, uint64_t from_off, enum buffer to, uint64_t to_off, uint64_t bytes)
{
    p->fetch = (struct fetch){.from = from, .from_off = from_off, .to = to, .to_off = to_off, .bytes = bytes};
    p->bytes += bytes;
    if (!p->local)
        return fetch_remote(p);
    p->work.data = p;
    return uv_queue_work(p->keeper->loop, &p->work, copy_work, copied);
}

/* --- steps: begin returns 0 under way, 1 nothing to fetch, -errno; end 0 or -errno --- */

static int read_entry(struct pull *p, unsigned copy)
{
    unsigned slot = p->local ? p->local->index : p->remote.slot;

    return fetch_begin(p, FROM_STATUS, offsetof(struct mst_status_area, vms) + slot * sizeof(struct mst_vm_entry), BUFFER_SCRATCH,
                       copy * sizeof(struct mst_vm_entry), sizeof(struct mst_vm_entry));
}

static const struct mst_vm_entry *entry(const struct pull *p, unsigned copy)
{
    return (const struct mst_vm_entry *)(const void *)(p->buffer[BUFFER_SCRATCH].addr + copy * sizeof(struct mst_vm_entry));
}

static int entry_begin(struct pull *p)
{
    return read_entry(p, 0);
}

static int entry_end(struct pull *p)
{
    int r;

    r = mst_pub_pick(entry(p, 0)->info, &p->info_head, &p->info, sizeof(p->info));
    if (r < 0)
        return mst_why_set(&p->why, r, "slot info is %s", r == -ENODATA ? "empty" : "torn");
    r = mst_pub_pick(entry(p, 0)->save, &p->head, &p->record, sizeof(p->record));
    if (r < 0)
        return mst_why_set(&p->why, r, "%s", r == -ENODATA ? "there is no save" : "save record is torn");
    return 0;
}

static int again_begin(struct pull *p)
{
    return read_entry(p, 1);
}

static uint64_t source_bytes(const struct pull *p, unsigned kind)
{
    return p->local ? p->local->areas.area[kind].bytes : p->remote.area[kind].bytes;
}

/* The record says which areas are read; each must have exactly the size this VM's definition gives it. */
static int sizes_check(struct pull *p)
{
    uint64_t ram = p->vm->areas.area[MST_AREA_RAM].bytes;
    unsigned data = p->record.source == MST_SAVE_RAM ? MST_AREA_RAM : MST_AREA_SHADOW;
    int r;

    r = mst_save_layout(ram, &p->save_layout);
    if (r == 0)
        r = mst_delta_layout(mst_delta_capacity(ram), &p->delta_layout);
    if (r == 0 && source_bytes(p, MST_AREA_DELTA) != p->delta_layout.bytes) /* protect: mirror, or an image */
        r = mst_delta_layout((uint32_t)(ram / MST_PAGE_BYTES), &p->delta_layout);
    if (r < 0)
        return r;
    if (source_bytes(p, MST_AREA_SAVE) != p->save_layout.bytes || source_bytes(p, data) != ram ||
        (p->record.delta_pages &&
         (source_bytes(p, MST_AREA_DELTA) != p->delta_layout.bytes || p->record.delta_pages > p->delta_layout.capacity)))
        return mst_why_set(&p->why, -EPROTO, "areas there do not have the sizes of a VM with %" PRIu64 " MiB", ram >> 20);
    return 0;
}

static int tables_new(struct pull *p)
{
    uint64_t pages = p->record.ram_bytes / MST_PAGE_BYTES, sums = pages * sizeof(uint32_t);
    uint64_t table = p->record.delta_pages * sizeof(struct mst_delta_entry);
    void *addr;

    tables_free(p); /* of an earlier try */
    p->table_off = (sums + MST_PAGE_BYTES - 1) / MST_PAGE_BYTES * MST_PAGE_BYTES;
    p->data_off = p->table_off + (table + MST_PAGE_BYTES - 1) / MST_PAGE_BYTES * MST_PAGE_BYTES;
    p->buffer[BUFFER_TABLES].bytes = p->data_off + (uint64_t)p->record.delta_pages * MST_PAGE_BYTES;
    addr = mmap(NULL, p->buffer[BUFFER_TABLES].bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (addr == MAP_FAILED)
        return mst_why_set(&p->why, -ENOMEM, "no memory for %" PRIu64 " bytes of checksums and delta",
                           p->buffer[BUFFER_TABLES].bytes);
    p->buffer[BUFFER_TABLES].addr = addr;
    p->covered = calloc(1, pages / 8 + 1);
    return p->covered ? 0 : -ENOMEM;
}

static int again_end(struct pull *p)
{
    uint64_t ram = p->vm->areas.area[MST_AREA_RAM].bytes;
    int r;

    r = mst_pub_confirm(entry(p, 1)->info, &p->info_head);
    if (r == 0)
        r = mst_pub_confirm(entry(p, 1)->save, &p->head);
    if (r < 0)
        return mst_why_set(&p->why, r, "its records change while they are read");
    if (strncmp(p->info.vm, p->vm->name, sizeof(p->info.vm)) != 0 || p->info_head.epoch != p->epoch || p->head.epoch != p->epoch)
        return mst_why_set(&p->why, -ESTALE, "the slot is of another VM or epoch (%" PRIu64 ", its save of %" PRIu64 ")",
                           p->info_head.epoch, p->head.epoch);
    if (p->image != (p->info.run_state == MST_RUN_IMAGE) ||
        (p->image && p->info.image_state != MST_IMAGE_VERIFIED && p->info.image_state != MST_IMAGE_USED))
        return mst_why_set(&p->why, -ESTALE, "the slot is in run state %u, image state %u", p->info.run_state,
                           p->info.image_state);
    r = mst_save_record_check(&p->record, ram, (uint32_t)(ram / MST_PAGE_BYTES), &p->why);
    if (r < 0)
        return r;
    if (p->record.seq < p->min_seq)
        return mst_why_set(&p->why, -ESTALE, "save %" PRIu64 " is older than %" PRIu64 ", which was seen before", p->record.seq,
                           p->min_seq);
    r = sizes_check(p);
    return r < 0 ? r : tables_new(p);
}

static int sums_begin(struct pull *p)
{
    return fetch_begin(p, MST_AREA_SAVE,
                       p->record.source == MST_SAVE_RAM ? p->save_layout.ram_sums_off : p->save_layout.shadow_sums_off,
                       BUFFER_TABLES, 0, p->record.ram_bytes / MST_PAGE_BYTES * sizeof(uint32_t));
}

static int nothing_to_end(struct pull *p)
{
    (void)p;
    return 0;
}

static int table_begin(struct pull *p)
{
    if (!p->record.delta_pages)
        return 1;
    return fetch_begin(p, MST_AREA_DELTA, p->delta_layout.table_off, BUFFER_TABLES, p->table_off,
                       p->record.delta_pages * sizeof(struct mst_delta_entry));
}

static const struct mst_delta_entry *table(const struct pull *p)
{
    return (const struct mst_delta_entry *)(const void *)(p->buffer[BUFFER_TABLES].addr + p->table_off);
}

static int table_end(struct pull *p)
{
    uint32_t *sums = (uint32_t *)(void *)p->buffer[BUFFER_TABLES].addr, i;
    int r;

    r = mst_delta_table_check(&p->record, table(p), &p->why);
    if (r < 0)
        return r;
    for (i = 0; i < p->record.delta_pages; i++)
        p->covered[table(p)[i].page / 8] = (uint8_t)(p->covered[table(p)[i].page / 8] | 1u << table(p)[i].page % 8);
    mst_delta_sums(&p->record, table(p), sums);
    return mst_save_sums_check(&p->record, sums, &p->why);
}

static int ram_begin(struct pull *p)
{
    return fetch_begin(p, p->record.source == MST_SAVE_RAM ? MST_AREA_RAM : MST_AREA_SHADOW, 0, BUFFER_RAM, 0,
                       p->record.ram_bytes);
}

static int delta_begin(struct pull *p)
{
    if (!p->record.delta_pages)
        return 1;
    return fetch_begin(p, MST_AREA_DELTA, p->delta_layout.data_off, BUFFER_TABLES, p->data_off,
                       (uint64_t)p->record.delta_pages * MST_PAGE_BYTES);
}

static int delta_end(struct pull *p)
{
    uint64_t begin_ns = mst_now_ns();
    int r = 0;

    if (p->record.delta_pages && !MST_MUTANT(16))
        r = mst_delta_overlay(&p->record, table(p), p->buffer[BUFFER_TABLES].addr + p->data_off, p->buffer[BUFFER_RAM].addr,
                              &p->why);
    p->verify_ns += mst_now_ns() - begin_ns;
    return r;
}

static int device_begin(struct pull *p)
{
    uint64_t off = p->save_layout.device_off[p->record.device_slot];

    return fetch_begin(p, MST_AREA_SAVE, off, BUFFER_SAVE, off, p->record.device_bytes);
}

static int device_end(struct pull *p)
{
    return mst_save_device_check(&p->record, p->buffer[BUFFER_SAVE].addr + p->save_layout.device_off[p->record.device_slot],
                                 &p->why);
}

static int confirm_end(struct pull *p)
{
    int r = mst_pub_confirm(entry(p, 1)->save, &p->head);

    return r < 0 ? mst_why_set(&p->why, r, "save %" PRIu64 " was replaced while it was read", p->record.seq) : 0;
}

static const struct step {
    const char *name;
    int (*begin)(struct pull *p);
    int (*end)(struct pull *p);
    bool in_worker; /* end is long for a large VM: checksums, copying the delta */
} steps[] = {
    {"entry", entry_begin, entry_end, false},         {"entry again", again_begin, again_end, false},
    {"checksums", sums_begin, nothing_to_end, false}, {"delta table", table_begin, table_end, true},
    {"ram", ram_begin, nothing_to_end, false},        {"delta", delta_begin, delta_end, true},
    {"device state", device_begin, device_end, true}, {"confirm", again_begin, confirm_end, false},
};
#define STEPS (sizeof(steps) / sizeof(steps[0]))

/* 0: go on (p->step is the next one), -errno: give up */
static int judge(struct pull *p, int err)
{
    if (err == 0) {
        p->step++;
        return 0;
    }
    if (p->canceled)
        return mst_why_set(&p->why, -ESTALE, "%s", p->canceled);
    if (!p->why.text[0])
        mst_why_set(&p->why, err, "%s", err == -ECANCELED || err == -ENOTCONN ? "the link broke" : strerror(-err));
    mst_why_prefix(&p->why, err, "%s", steps[p->step].name);
    if (err == -ENODATA || ((err == -EBADMSG || err == -EAGAIN) && ++p->tries >= TRIES))
        return -EUCLEAN; /* it is the save that is no good: no other errno here says so, and nobody else uses this one */
    if (err != -EBADMSG && err != -EAGAIN)
        return err;
    log_info("vm=%s epoch=%" PRIu64 " pull begins again: %s", p->vm->name, p->vm->epoch, p->why.text);
    p->why.text[0] = '\0';
    p->step = 0;
    return 0;
}

/* After the end of a step: what follows, until something is under way or all is over. */
static void step_ended(struct pull *p, int err)
{
    int r = judge(p, p->canceled ? -ECANCELED : err);

    while (r == 0 && p->step < STEPS) {
        r = steps[p->step].begin(p);
        if (r == 0)
            return; /* next_step goes on */
        if (r > 0) {
            p->err = 0;
            next_step(p);
            return;
        }
        r = judge(p, r);
    }
    mst_pull_ended(p, r);
}

static void end_work(uv_work_t *work)
{
    struct pull *p = work->data;

    mst_priority_worker();
    p->err = steps[p->step].end(p);
}

static void end_after(uv_work_t *work, int status)
{
    struct pull *p = work->data;

    step_ended(p, status < 0 ? status : p->err);
}

/* The fetch of a step has ended with p->err. */
static void next_step(struct pull *p)
{
    int r = p->err;

    if (r == 0 && !p->canceled && steps[p->step].in_worker) {
        p->work.data = p;
        r = uv_queue_work(p->keeper->loop, &p->work, end_work, end_after); /* from here on p->err is the worker's */
        if (r == 0)
            return;
    }
    step_ended(p, r ? r : p->canceled ? -ECANCELED : steps[p->step].end(p));
}

int mst_pull_begin(struct pull *p)
{
    int r = steps[0].begin(p);

    return r < 0 ? mst_why_prefix(&p->why, r, "%s", steps[0].name) : 0;
}

void mst_pull_link_gone(struct pull *p)
{
    unsigned i;

    for (i = 0; i < BUFFERS; i++)
        p->buffer[i].region = NULL; /* went with the link */
    p->remote.link = NULL;
}
