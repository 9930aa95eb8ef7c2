#include "mirror/send.h"
#include "base/mutant.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const uint8_t zero_page[MST_PAGE_BYTES];

struct mst_msend {
    struct mst_mlog_grant grant;
    uint8_t *twin;
    uint32_t record_max;

    uint64_t position; /* of the record that is being filled, or comes next */
    uint64_t taken,
        taken_step; /* what mst_msend_writes has given out: records before taken, and so many parts of the one there */
    uint64_t completed, consumed;          /* positions up to which WRITEs have completed, and the mirror has given back */
    uint64_t sequence, prev_sum;           /* of the last closed record */
    uint64_t checkpoint, committed, acked; /* seqs: begun, closed, held by the mirror */
    uint64_t sent_committed;               /* newest whose commit was taken out */
    bool begun, head_taken, filling;

    uint8_t *put; /* a bit for each page: it is in this checkpoint */
    uint64_t put_pages;
    uint64_t device_off; /* of the device state that is in */
    uint64_t device_bytes;

    /* the record that is being filled; its pages are in the twin */
    struct mst_mlog_record record;
    struct mst_mlog_run runs[MST_MLOG_RUNS_MAX];
    uint64_t page_sums[MST_MLOG_PAGES_MAX];
    uint8_t *rest; /* record_max: what follows the pages */

    struct mst_msend_stats stats;
};

int mst_msend_new(const struct mst_mlog_grant *grant, uint8_t *twin, struct mst_msend **ret_send, struct mst_why *why)
{
    struct mst_msend *send;
    struct mst_mlog_head head;
    int r = mst_mlog_grant_check(grant, why);

    if (r < 0)
        return r;
    send = calloc(1, sizeof(*send));
    if (!send)
        return -ENOMEM;
    send->grant = *grant;
    send->twin = twin;
    send->record_max = mst_mlog_record_max(grant->ring_bytes);
    send->put = calloc(1, grant->ram_bytes / MST_PAGE_BYTES / 8 + 1);
    send->rest = malloc(send->record_max);
    if (!send->put || !send->rest) {
        mst_msend_free(send);
        return -ENOMEM;
    }
    mst_mlog_head_make(grant, &head);
    memset(twin, 0, mst_mlog_bytes(grant->ring_bytes));
    memcpy(twin, &head, sizeof(head));
    send->prev_sum = head.sum;
    *ret_send = send;
    return 0;
}

void mst_msend_free(struct mst_msend *send)
{
    if (!send)
        return;
    free(send->put);
    free(send->rest);
    free(send);
}

/* --- the ring --- */

static void ring_put(struct mst_msend *send, uint64_t position, const void *bytes, uint64_t len)
{
    uint64_t at = position % send->grant.ring_bytes, first = send->grant.ring_bytes - at;

    if (first > len)
        first = len;
    memcpy(send->twin + MST_MLOG_RING_OFF + at, bytes, first);
    memcpy(send->twin + MST_MLOG_RING_OFF, (const uint8_t *)bytes + first, len - first);
}

/* Bytes that the record at position may have. */
static uint64_t room(const struct mst_msend *send)
{
    uint64_t done = send->completed < send->consumed ? send->completed : send->consumed;
    uint64_t left = send->grant.ring_bytes - (send->position - done);

    return left < send->record_max ? left : send->record_max;
}

/* Bytes of the record that is being filled, with more in it. */
static uint64_t need(const struct mst_msend *send, uint32_t pages, uint32_t runs, uint32_t device_bytes, uint32_t flags)
{
    return mst_mlog_record_bytes(send->record.data_pages + pages, send->record.runs + runs,
                                 send->record.device_bytes + device_bytes, flags);
}

/* --- records --- */

static void record_open(struct mst_msend *send)
{
    if (send->filling)
        return;
    send->record = (struct mst_mlog_record){
        .log_id = send->grant.log_id,
        .epoch = send->grant.epoch,
        .source_instance = send->grant.source_instance,
        .sequence = send->sequence + 1,
        .position = send->position,
        .prev_sum = send->prev_sum,
        .checkpoint = send->checkpoint,
        .flags = send->committed == 0 ? MST_MLOG_SEED : 0,
        .device_off = (uint32_t)send->device_off,
    };
    send->filling = true;
}

/* device: the bytes of device state that the record has; commit: NULL without. There is room: whoever put something in has looked. */
static void record_close(struct mst_msend *send, const uint8_t *device, const struct mst_mlog_commit *commit)
{
    struct mst_mlog_record *record = &send->record;
    uint64_t at = 0, rest_bytes, rest_off = sizeof(*record) + (uint64_t)record->data_pages * MST_PAGE_BYTES;

    if (commit)
        record->flags |= MST_MLOG_COMMIT;
    record->record_bytes = (uint32_t)need(send, 0, 0, 0, record->flags);
    rest_bytes = record->record_bytes - rest_off;
    memcpy(send->rest, send->runs, record->runs * sizeof(*send->runs));
    at += record->runs * sizeof(*send->runs);
    if (commit) {
        memcpy(send->rest + at, commit, sizeof(*commit));
        at += sizeof(*commit);
    }
    if (device) {
        memcpy(send->rest + at, device, record->device_bytes);
        at += record->device_bytes;
    }
    memset(send->rest + at, 0, rest_bytes - at);
    record->sum = mst_mlog_sum(record, send->page_sums, send->rest);
    ring_put(send, send->position + rest_off, send->rest, rest_bytes);
    ring_put(send, send->position, record, sizeof(*record));
    send->position += record->record_bytes;
    send->sequence = record->sequence;
    send->prev_sum = record->sum;
    send->stats.wire_bytes += record->record_bytes;
    send->filling = false;
    memset(record, 0, sizeof(*record));
}

void mst_msend_flush(struct mst_msend *send)
{
    if (send->filling && send->record.runs > 0)
        record_close(send, NULL, NULL);
}

/* --- a checkpoint --- */

int mst_msend_begin(struct mst_msend *send, uint64_t seq)
{
    if (send->begun)
        return -EBUSY;
    if (seq == 0 || (send->committed != 0 && seq != send->committed + 1))
        return -EINVAL;
    send->checkpoint = seq;
    send->begun = true;
    memset(send->put, 0, send->grant.ram_bytes / MST_PAGE_BYTES / 8 + 1);
    send->put_pages = 0;
    send->device_off = send->device_bytes = 0;
    return 0;
}

int mst_msend_renumber(struct mst_msend *send, uint64_t seq)
{
    if (!send->begun || send->committed != 0 || send->device_bytes || seq < send->checkpoint)
        return -EINVAL;
    mst_msend_flush(send);
    if (send->filling) /* nothing is in it yet */
        send->record.checkpoint = seq;
    send->checkpoint = seq;
    return 0;
}

static bool is_put(const struct mst_msend *send, uint64_t page)
{
    return (send->put[page / 8] & 1u << page % 8) != 0;
}

/* A seed goes straight into the image, a later checkpoint is kept aside until it is whole. */
static bool is_full(const struct mst_msend *send)
{
    return send->committed != 0 && send->put_pages >= send->grant.delta_capacity;
}

/* Whether page can be added to the last run. */
static bool extends(const struct mst_msend *send, uint64_t page, unsigned kind)
{
    const struct mst_mlog_run *last = send->record.runs > 0 ? &send->runs[send->record.runs - 1] : NULL;

    return last && last->kind == kind && last->page + (uint64_t)last->pages == page && last->pages < UINT16_MAX;
}

static bool fits(const struct mst_msend *send, uint64_t page, unsigned kind)
{
    uint32_t data = kind == MST_MLOG_DATA, runs = !extends(send, page, kind);

    return send->record.data_pages + data <= MST_MLOG_PAGES_MAX && send->record.runs + runs <= MST_MLOG_RUNS_MAX &&
           need(send, data, runs, 0, 0) <= room(send);
}

static void append(struct mst_msend *send, uint64_t page, unsigned kind, const uint8_t *bytes)
{
    struct mst_mlog_record *record = &send->record;

    if (extends(send, page, kind))
        send->runs[record->runs - 1].pages++;
    else
        send->runs[record->runs++] = (struct mst_mlog_run){.page = (uint32_t)page, .pages = 1, .kind = (uint16_t)kind};
    if (kind == MST_MLOG_DATA) {
        send->page_sums[record->data_pages] = mst_mlog_page_sum(bytes);
        ring_put(send, send->position + sizeof(*record) + (uint64_t)record->data_pages * MST_PAGE_BYTES, bytes, MST_PAGE_BYTES);
        record->data_pages++;
        send->stats.pages_data++;
    } else {
        send->stats.pages_zero++;
    }
}

int mst_msend_page(struct mst_msend *send, uint64_t page, const uint8_t *bytes, const uint8_t *sent)
{
    uint8_t copy[MST_PAGE_BYTES]; /* the guest may be writing the page: compared, summed and sent is one and the same */
    unsigned kind;

    if (!send->begun || send->device_bytes)
        return -EINVAL;
    if (page >= send->grant.ram_bytes / MST_PAGE_BYTES)
        return -ERANGE;
    memcpy(copy, bytes, sizeof(copy));
    /* Put before in this checkpoint: the mirror has something else than sent by now. */
    if (sent && !is_put(send, page) && memcmp(copy, sent, sizeof(copy)) == 0) {
        send->stats.pages_equal++;
        return 0;
    }
    if (!is_put(send, page) && is_full(send))
        return -EMSGSIZE;
    kind = memcmp(copy, zero_page, sizeof(copy)) == 0 ? MST_MLOG_ZERO : MST_MLOG_DATA;
    record_open(send);
    if (!fits(send, page, kind)) {
        mst_msend_flush(send);
        record_open(send);
        if (!fits(send, page, kind)) {
            send->stats.waits++;
            return -EAGAIN;
        }
    }
    append(send, page, kind, copy);
    send->put_pages += !is_put(send, page);
    send->put[page / 8] = (uint8_t)(send->put[page / 8] | 1u << page % 8);
    return 1;
}

/* As much device state as the record has room for, from len bytes; at least one, or none when there is not even room for a few lines. */
static uint32_t device_room(const struct mst_msend *send, uint64_t len)
{
    uint64_t used = need(send, 0, 0, 0, MST_MLOG_COMMIT), free_bytes = room(send);

    if (free_bytes < used + MST_MLOG_LINE)
        return 0;
    free_bytes -= used;
    return (uint32_t)(len < free_bytes ? len : free_bytes);
}

int mst_msend_commit(struct mst_msend *send, const struct mst_msend_rest *rest)
{
    struct mst_mlog_commit commit = {.ram_digest = rest->ram_digest,
                                     .device_bytes = rest->device_bytes,
                                     .taken_wall_ms = rest->taken_wall_ms,
                                     .pause_ns = rest->pause_ns};

    if (!send->begun)
        return -EINVAL;
    if (rest->device_bytes == 0 || rest->device_bytes > MST_DEVICE_BYTES_MAX ||
        (send->device_bytes && send->device_bytes != rest->device_bytes))
        return -EMSGSIZE;
    send->device_bytes = rest->device_bytes;
    for (;;) {
        uint64_t from = send->device_off;

        record_open(send);
        send->record.device_bytes = device_room(send, rest->device_bytes - from);
        if (send->record.device_bytes == 0) {
            if (send->record.runs == 0) {
                send->stats.waits++;
                return -EAGAIN;
            }
            mst_msend_flush(send);
            continue;
        }
        send->device_off += send->record.device_bytes;
        if (send->device_off == rest->device_bytes) {
            record_close(send, rest->device + from, &commit);
            break;
        }
        record_close(send, rest->device + from, NULL);
    }
    send->committed = send->checkpoint;
    send->begun = false;
    return 0;
}

/* --- writes --- */

static struct mst_msend_write write_at(const struct mst_msend *send, uint64_t position, uint64_t len)
{
    uint64_t offset = MST_MLOG_RING_OFF + position % send->grant.ring_bytes;

    return (struct mst_msend_write){.offset = offset, .bytes = send->twin + offset, .len = (uint32_t)len};
}

/* The parts of the record at send->taken that are left: what follows its head, then the head, each in two where the ring begins anew. */
static unsigned record_writes(struct mst_msend *send, struct mst_msend_write *writes, unsigned max)
{
    uint64_t at = send->taken, head = sizeof(struct mst_mlog_record), len, parts[4][2];
    struct mst_mlog_record record;
    unsigned count = 0, given = 0;

    /* The first line of a head is in one piece; what is asked for lies in it. */
    memcpy(&record, send->twin + MST_MLOG_RING_OFF + at % send->grant.ring_bytes, MST_MLOG_LINE);
    static_assert(offsetof(struct mst_mlog_record, flags) + sizeof(record.flags) == MST_MLOG_LINE,
                  "checkpoint, length and flags");
    for (unsigned half = 0; half < 2; half++) {
        uint64_t from = half ? at : at + head, end = half ? at + head : at + record.record_bytes;

        for (; from < end; from += len) {
            len = send->grant.ring_bytes - from % send->grant.ring_bytes;
            if (len > end - from)
                len = end - from;
            parts[count][0] = from;
            parts[count++][1] = len;
        }
    }
    while (send->taken_step < count && given < max) {
        writes[given] = write_at(send, parts[send->taken_step][0], parts[send->taken_step][1]);
        if (++send->taken_step == count)
            writes[given].end = at + record.record_bytes;
        given++;
    }
    if (send->taken_step == count) {
        send->taken = at + record.record_bytes;
        send->taken_step = 0;
        if (record.flags & MST_MLOG_COMMIT)
            send->sent_committed = record.checkpoint;
    }
    return given;
}

unsigned mst_msend_writes(struct mst_msend *send, struct mst_msend_write *writes, unsigned max)
{
    unsigned count = 0;

    if (!send->head_taken && max > 0) {
        writes[count++] = (struct mst_msend_write){.bytes = send->twin, .len = sizeof(struct mst_mlog_head)};
        send->head_taken = true;
    }
    while (count < max && send->taken < send->position)
        count += record_writes(send, writes + count, max - count);
    return count;
}

void mst_msend_completed(struct mst_msend *send, const struct mst_msend_write *write)
{
    if (write->end > send->completed && write->end <= send->taken)
        send->completed = write->end;
    if (MST_MUTANT(60) && send->completed == send->taken)
        send->acked = send->sent_committed;
}

int mst_msend_ack(struct mst_msend *send, const struct mst_mlog_ack *ack, struct mst_why *why)
{
    if (ack->log_id != send->grant.log_id || ack->epoch != send->grant.epoch)
        return mst_why_set(why, -ESTALE, "acknowledgement is of another log (epoch %" PRIu64 ", ours %" PRIu64 ")", ack->epoch,
                           send->grant.epoch);
    if (ack->consumed < send->consumed || ack->seq < send->acked || ack->consumed > send->taken ||
        ack->seq > send->sent_committed)
        return mst_why_set(why, -EPROTO,
                           "acknowledgement of checkpoint %" PRIu64 " at %" PRIu64 "; sent are %" PRIu64 " and %" PRIu64
                           ", acknowledged before %" PRIu64 " and %" PRIu64,
                           ack->seq, ack->consumed, send->sent_committed, send->taken, send->acked, send->consumed);
    send->consumed = ack->consumed;
    send->acked = ack->seq;
    return 0;
}

uint64_t mst_msend_acked(const struct mst_msend *send)
{
    return send->acked;
}

struct mst_msend_stats mst_msend_stats(const struct mst_msend *send)
{
    return send->stats;
}
