#include "node/keeper/mirrors.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/mutant.h"
#include "base/priority.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* What goes into a mirror's log, by a worker thread that has the sender alone; the loop posts WRITEs between two of its jobs.
 *
 *   OPEN    memory for the twin
 *   PUT     a checkpoint: pages of its delta; once the mirror is seeded also its end
 *   FILL    seed: pages of the shadow, but for those that came from a delta since: the agent may be applying that to the shadow just now
 *   COMMIT  seed: its end, when no checkpoint was published that is not in it
 *
 * Nothing else writes the delta and the device state of a checkpoint before mst_mirror_put_done has let the agent go on. */

#define PAGES_PER_JOB 512u
#define WRITES_MAX    16u
#define WRITE_MS      5000u
#define SEED_SHARE                                                                                                               \
    4u /* a seed goes on while it has less than this part of the ring, by at most as much: half is left to checkpoints */

/* --- worker --- */

static int open_work(struct mst_mirror *m)
{
    uint64_t bytes = mst_mlog_bytes(m->grant.ring_bytes);
    void *twin = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (twin == MAP_FAILED)
        return mst_why_set(&m->job_why, -ENOMEM, "no memory for a twin of %" PRIu64 " bytes: free some on this node", bytes);
    madvise(twin, bytes, MADV_DONTDUMP);
    m->twin = twin;
    m->from_delta = calloc(1, m->grant.ram_bytes / MST_PAGE_BYTES / 8 + 1);
    return m->from_delta ? mst_msend_new(&m->grant, m->twin, &m->send, &m->job_why) : -ENOMEM;
}

static int begin(struct mst_mirror *m)
{
    int r;

    if (m->begun && !m->committed)
        return mst_msend_renumber(m->send, m->record.seq);
    r = mst_msend_begin(m->send, m->record.seq);
    m->begun = m->begun || r == 0;
    return r;
}

static int delta_put(struct mst_mirror *m)
{
    const uint8_t *delta = m->job_vm->areas.area[MST_AREA_DELTA].addr;
    const struct mst_delta_entry *table;
    struct mst_delta_layout layout;
    int r = mst_delta_layout(m->job_vm->areas.delta_capacity, &layout);

    if (r < 0 || m->record.delta_pages == 0)
        return r;
    table = (const struct mst_delta_entry *)(const void *)(delta + layout.table_off);
    if (m->at == 0)
        r = mst_delta_table_check(&m->record, table, &m->job_why);
    for (unsigned n = 0; r >= 0 && m->at < m->record.delta_pages; m->at++, n++) {
        uint32_t page = table[m->at].page;

        if (n == PAGES_PER_JOB)
            return 1;
        r = mst_msend_page(m->send, page, delta + layout.data_off + m->at * MST_PAGE_BYTES, NULL);
        if (r < 0)
            break;
        if (!MST_MUTANT(74))
            m->from_delta[page / 8] = (uint8_t)(m->from_delta[page / 8] | 1u << page % 8);
    }
    return r < 0 ? r : 0;
}

static int end_put(struct mst_mirror *m)
{
    struct mst_save_layout layout = {0};
    struct mst_msend_rest rest = {.device_bytes = m->record.device_bytes,
                                  .ram_digest = m->record.ram_digest,
                                  .taken_wall_ms = m->record.taken_wall_ms,
                                  .pause_ns = m->record.pause_ns};
    int r = mst_save_layout(m->grant.ram_bytes, &layout);

    rest.device = m->job_vm->areas.area[MST_AREA_SAVE].addr + layout.device_off[m->record.device_slot];
    r = r < 0 ? r : mst_msend_commit(m->send, &rest);
    if (r ==
        0) /* all of it was copied, and nothing is posted before this job ends: the pages have their digest, this is the rest's */
        r = mst_save_device_check(&m->record, rest.device, &m->job_why);
    m->committed = m->committed || r == 0;
    return r;
}

/* 0 put, 1 there is more, -errno */
static int put_work(struct mst_mirror *m)
{
    int r = 0;

    if (m->step == 0) {
        MST_POINT("mirror.put.begun");
        r = begin(m);
        m->at = 0;
        m->step += r == 0;
    }
    if (r == 0 && m->step == 1) {
        r = delta_put(m);
        m->step += r == 0;
        if (m->step == 2 && !m->committed)
            mst_msend_flush(m->send); /* a seed ends with COMMIT */
    }
    if (r == 0 && m->step == 2 && m->committed)
        r = end_put(m);
    return r;
}

static int fill_work(struct mst_mirror *m)
{
    const uint8_t *shadow = m->job_vm->areas.area[MST_AREA_SHADOW].addr;
    uint64_t pages = m->grant.ram_bytes / MST_PAGE_BYTES, share = m->grant.ring_bytes / SEED_SHARE / MST_PAGE_BYTES;
    unsigned max = share < PAGES_PER_JOB ? (unsigned)share : PAGES_PER_JOB;
    int r = 0;

    for (unsigned n = 0; n < max && m->fill_at < pages && r >= 0; m->fill_at += r >= 0) {
        r = 0;
        if (m->from_delta[m->fill_at / 8] & 1u << m->fill_at % 8)
            continue;
        r = mst_msend_page(m->send, m->fill_at, shadow + m->fill_at * MST_PAGE_BYTES, NULL);
        n++;
    }
    if (m->fill_at == pages)
        mst_msend_flush(m->send);
    return r < 0 ? r : 0;
}

static void work(uv_work_t *work)
{
    struct mst_mirror *m = work->data;

    mst_priority_worker();
    m->job_why.text[0] = '\0';
    switch (m->job) {
    case MIRROR_OPEN:
        m->job_err = open_work(m);
        break;
    case MIRROR_PUT:
        m->job_err = put_work(m);
        break;
    case MIRROR_FILL:
        m->job_err = fill_work(m);
        break;
    default:
        m->job_err = end_put(m);
    }
}

/* --- loop --- */

/* From the agent's word until the mirror's: reading, summing, waiting for a worker or for ring space are part of it. */
static void sending_note(struct mst_mirror *m)
{
    bool sends = m->pending || m->acked < m->put_seq;

    if (sends == (m->sending_since_ns != 0))
        return;
    if (!sends)
        m->sending_ns += mst_now_ns() - m->sending_since_ns;
    m->sending_since_ns = sends ? mst_now_ns() : 0;
}

uint64_t mst_mirror_sending_ns(const struct mst_mirror *m)
{
    bool sends = m->sending_since_ns != 0 && m->phase != MAINSTAY__MIRROR_PHASE__MIRROR_FAILED;

    return m->sending_ns + (sends ? mst_now_ns() - m->sending_since_ns : 0);
}

static void put_ended(struct mst_mirror *m)
{
    m->pending = false;
    m->put_seq = m->record.seq;
    sending_note(m);
    MST_POINT("mirror.put.done");
    mst_mirror_put_done(m->vm);
}

static void job_ended(struct mst_mirror *m, enum mst_mirror_job job, int err)
{
    m->blocked = err == -EAGAIN;
    m->filled = m->fill_at;
    if (err < 0 && err != -EAGAIN) {
        mst_mirror_fail(m, err, m->job_why.text);
        return;
    }
    if (m->has_completed)
        mst_msend_completed(m->send, &m->completed);
    if (m->has_completed || m->has_ack)
        m->blocked = false;
    m->has_completed = false;
    if (job == MIRROR_OPEN)
        mst_mirror_connect(m);
    else if (job == MIRROR_PUT && err == 0)
        put_ended(m);
    else if (job == MIRROR_COMMIT && err == 0)
        m->committing = false;
    if (m->has_ack) {
        m->has_ack = false;
        mst_mirror_acked(m, &m->ack);
    }
}

static void after(uv_work_t *work, int status)
{
    struct mst_mirror *m = work->data;
    enum mst_mirror_job job = m->job;
    struct mst_vm *vm = m->job_vm;

    m->job = MIRROR_IDLE;
    m->job_vm = NULL;
    if (m->vm && m->phase != MAINSTAY__MIRROR_PHASE__MIRROR_FAILED)
        job_ended(m, job, status < 0 ? status : m->job_err);
    mst_slot_release(vm);
    mst_mirror_go(m);
    mst_mirror_unused(m);
}

static void start(struct mst_mirror *m, enum mst_mirror_job job)
{
    if (job == MIRROR_PUT && m->fresh) {
        m->record = m->next_record;
        m->step = 0;
        m->fresh = false;
    }
    m->committing = job == MIRROR_COMMIT;
    m->job = job;
    m->job_vm = m->vm;
    m->vm->users++;
    m->work.data = m;
    uv_queue_work(m->keeper->loop, &m->work, work, after); /* fails only without a callback */
}

struct write {
    struct mst_mirror *mirror;
    struct mst_msend_write write;
};

static void write_done(void *arg, int err)
{
    struct write *one = arg;
    struct mst_mirror *m = one->mirror;
    struct mst_msend_write write = one->write;

    free(one);
    m->writing--;
    if (err < 0)
        return; /* the link ends, and with it the mirror */
    m->sent_bytes += write.len;
    if (write.end > m->written) {
        m->written = write.end;
        m->completed = write;
        if (m->job != MIRROR_IDLE)
            m->has_completed = true;
        else if (m->send)
            mst_msend_completed(m->send, &write);
        m->blocked = false;
        m->moved_ms = mst_now_ms();
    }
    MST_POINT("mirror.written");
    mst_mirror_ask(m, false);
    mst_mirror_go(m);
}

/* Before the first and before each WRITE: only the present grant's memory goes out, and nothing after a pause (then mst_mirrors_go goes on). */
static bool may_write(const struct mst_mirror *m)
{
    return MST_MUTANT(72) ||
           (mst_tenure_settled(m->keeper, NULL) && mst_guard_check(m->keeper->guard, m->vm->name, m->vm->epoch, NULL) == 0);
}

static void writes_post(struct mst_mirror *m)
{
    struct mst_msend_write write;
    struct write *one;
    int r;

    if (!may_write(m))
        return;
    while (m->writing < WRITES_MAX && mst_msend_writes(m->send, &write, 1) == 1) {
        one = malloc(sizeof(*one));
        if (!one) {
            mst_mirror_fail(m, -ENOMEM, "no memory for a WRITE");
            return;
        }
        *one = (struct write){.mirror = m, .write = write};
        if (write.end > m->taken)
            m->taken = write.end;
        r = mst_link_write(m->link, m->region, write.offset, m->log_addr + write.offset, m->log_rkey, write.len, WRITE_MS,
                           write_done, one);
        if (r < 0) {
            free(one);
            mst_mirror_fail(m, r, "a WRITE cannot be posted");
            return;
        }
        m->writing++;
    }
}

int mst_mirror_record(const struct mst_vm *vm, struct mst_save_record *ret_record)
{
    struct mst_pub_head head;
    int r = mst_pub_read(vm->keeper->status->vms[vm->index].save, &head, ret_record, sizeof(*ret_record));

    if (r == 0 && (head.epoch != vm->epoch || head.instance != vm->keeper->instance))
        r = -ESTALE;
    if (r == 0)
        r = mst_save_record_check(ret_record, vm->areas.area[MST_AREA_RAM].bytes, vm->areas.delta_capacity, NULL);
    return r == 0 && ret_record->source != MST_SAVE_SHADOW ? -ENODATA : r;
}

static bool nothing_newer(const struct mst_mirror *m)
{
    struct mst_save_record record;

    return mst_mirror_record(m->vm, &record) == 0 && record.seq == m->put_seq;
}

void mst_mirror_go(struct mst_mirror *m)
{
    uint64_t pages = m->grant.ram_bytes / MST_PAGE_BYTES;
    bool seeding;

    if (m->job != MIRROR_IDLE || !m->vm || m->vm->drop_pending || m->keeper->stopping ||
        m->phase == MAINSTAY__MIRROR_PHASE__MIRROR_FAILED)
        return;
    if (!m->twin)
        start(m, MIRROR_OPEN);
    if (!m->ready || m->job != MIRROR_IDLE)
        return;
    writes_post(m);
    if (!m->vm || m->blocked || m->phase == MAINSTAY__MIRROR_PHASE__MIRROR_FAILED)
        return; /* its VM was stopped, as its lease is over; or until something completes, or is given back */
    seeding = m->begun && !m->committed;
    if (m->pending && !m->committing)
        start(m, MIRROR_PUT);
    else if (seeding && m->fill_at < pages && m->taken - m->consumed < m->grant.ring_bytes / SEED_SHARE)
        start(m, MIRROR_FILL);
    else if (m->committing || (seeding && m->fill_at == pages && nothing_newer(m)))
        start(m, MIRROR_COMMIT);
}

void mst_mirror_checkpoint(struct mst_mirror *m, const struct mst_save_record *record, bool whole, bool known)
{
    struct mst_why why;

    if (m->phase == MAINSTAY__MIRROR_PHASE__MIRROR_FAILED || !m->ready || record->seq == m->put_seq ||
        (m->pending && record->seq == m->next_record.seq))
        return;
    if (m->vm->epoch != m->grant.epoch || strcmp(m->vm->name, m->grant.vm) != 0 || record->ram_bytes != m->grant.ram_bytes) {
        mst_mirror_fail(m, -ESTALE, "the slot is another VM's now"); /* never: mst_mirrors_vm_gone */
        return;
    }
    if (m->put_seq != 0 && (m->pending || whole || !known || record->seq != m->put_seq + 1)) {
        mst_why_set(&why, -ESTALE, "checkpoint %" PRIu64 " comes after %" PRIu64 ", and what lies between is not known",
                    record->seq, m->put_seq);
        mst_mirror_fail(m, -ESTALE, why.text);
        return;
    }
    m->next_record = *record;
    m->fresh = true;
    m->stamps[record->seq % MST_MIRROR_STAMPS] = record->taken_boot_ns;
    m->pending = true;
    m->moved_ms = mst_now_ms();
    sending_note(m);
    mst_mirror_go(m);
}

void mst_mirror_acked(struct mst_mirror *m, const struct mst_mlog_ack *ack)
{
    struct mst_why why = {0};
    int r;

    if (m->job != MIRROR_IDLE) {
        m->ack = *ack;
        m->has_ack = true;
        return;
    }
    r = m->send ? mst_msend_ack(m->send, ack, &why) : -ESTALE;
    if (r == -ESTALE)
        return;
    if (r < 0) {
        mst_mirror_fail(m, r, why.text);
        return;
    }
    if (ack->consumed > m->consumed) {
        m->consumed = ack->consumed;
        m->blocked = false;
        m->moved_ms = mst_now_ms();
    }
    if (mst_msend_acked(m->send) > m->acked) {
        m->acked = mst_msend_acked(m->send);
        m->acked_after_ns = mst_now_ns() - m->stamps[m->acked % MST_MIRROR_STAMPS];
        sending_note(m);
    }
    mst_mirror_maybe_join(m);
    mst_output_go(m->vm);
}

/* --- the agent's checkpoints --- */

void mst_mirror_put_done(struct mst_vm *vm)
{
    struct mst_keeper *k = vm->keeper;
    struct mst_mirror_put *put = &k->mirrors->puts[vm->index];

    if (!put->open)
        return;
    for (const struct mst_mirror *m = k->mirrors->first; m; m = m->next)
        if (m->vm == vm && m->pending && !MST_MUTANT(73))
            return;
    if (put->session == mst_agent_session(k))
        mst_agent_reply_error(k, put->reply_to, 0, NULL);
    put->open = false;
}

int mst_mirrors_put(struct mst_keeper *k, const mst_envelope *env, struct mst_why *why)
{
    const Mainstay__CheckpointPut *request = env->checkpoint_put;
    struct mst_mirror *m, *next;
    struct mst_save_record record;
    struct mst_mirror_put *put;
    struct mst_vm *vm;
    int r = mst_slot_granted(k, request->vm, request->epoch, &vm, why);

    if (r < 0)
        return r;
    put = &k->mirrors->puts[vm->index];
    if (put->open && put->session == mst_agent_session(k))
        mst_agent_reply_error(k, put->reply_to, -ECANCELED, NULL); /* it has asked again */
    put->open = false;
    r = mst_mirror_record(vm, &record);
    if (r == 0 && request->has_delta_pages) { /* the agent may have settled its record meanwhile: it then names no delta */
        record.delta_pages = request->delta_pages;
        record.delta_table_crc32c = request->delta_table_crc32c;
        r = mst_save_record_check(&record, record.ram_bytes, vm->areas.delta_capacity, why);
    }
    for (m = k->mirrors->first; m; m = next) {
        next = m->next;
        if (m->vm != vm)
            continue;
        if (r == 0 && record.seq == request->seq)
            mst_mirror_checkpoint(m, &record, request->has_whole && request->whole, request->has_delta_pages);
        else if (m->put_seq != 0)
            mst_mirror_fail(m, -ESTALE, "the record is not that of the checkpoint that the agent named");
    }
    /* Only now, with all of them asked: one that failed meanwhile must not let the agent go while another has only begun. */
    *put = (struct mst_mirror_put){.open = true, .reply_to = env->id, .session = mst_agent_session(k)};
    mst_mirror_put_done(vm);
    return 1;
}

/* What it had committed and not told of yet: its successor will settle the record, and then nobody knows its pages any more. */
void mst_mirrors_agent_gone(struct mst_keeper *k)
{
    struct mst_mirror *m, *next;
    struct mst_save_record record;

    for (m = k->mirrors ? k->mirrors->first : NULL; m; m = next) {
        next = m->next;
        if (m->vm && m->put_seq != 0 && !m->pending && mst_mirror_record(m->vm, &record) == 0 && record.delta_pages > 0 &&
            record.seq == m->put_seq + 1)
            mst_mirror_checkpoint(m, &record, false, true);
    }
}
