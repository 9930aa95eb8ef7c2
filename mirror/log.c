#include "mirror/log.h"
#include "base/mutant.h"
#include "shm/save.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <xxhash.h>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the log is little-endian and is written as it lies in memory");

int mst_mlog_grant_check(const struct mst_mlog_grant *grant, struct mst_why *why)
{
    struct mst_save_layout layout;

    if (!memchr(grant->vm, '\0', sizeof(grant->vm)) || !grant->vm[0] || grant->epoch == 0 || grant->log_id == 0)
        return mst_why_set(why, -EINVAL, "mirror log: VM, epoch and log id are needed");
    if (mst_save_layout(grant->ram_bytes, &layout) < 0)
        return mst_why_set(why, -EINVAL, "mirror log: RAM of %" PRIu64 " bytes is no VM's", grant->ram_bytes);
    if (grant->ring_bytes < MST_MLOG_RING_MIN || grant->ring_bytes > MST_MLOG_RING_MAX || grant->ring_bytes % MST_PAGE_BYTES != 0)
        return mst_why_set(why, -EINVAL, "mirror log: ring of %" PRIu64 " bytes, allowed are whole pages from %u to %u",
                           grant->ring_bytes, MST_MLOG_RING_MIN, MST_MLOG_RING_MAX);
    if (grant->delta_capacity == 0 || grant->delta_capacity > grant->ram_bytes / MST_PAGE_BYTES)
        return mst_why_set(why, -EINVAL, "mirror log: checkpoints of %" PRIu32 " pages", grant->delta_capacity);
    return 0;
}

uint64_t mst_mlog_bytes(uint64_t ring_bytes)
{
    return MST_MLOG_RING_OFF + ring_bytes;
}

uint32_t mst_mlog_record_max(uint64_t ring_bytes)
{
    uint64_t quarter = ring_bytes / 4 / MST_MLOG_LINE * MST_MLOG_LINE;

    return quarter < MST_MLOG_RECORD_MAX ? (uint32_t)quarter : MST_MLOG_RECORD_MAX;
}

void mst_mlog_head_make(const struct mst_mlog_grant *grant, struct mst_mlog_head *ret_head)
{
    *ret_head = (struct mst_mlog_head){
        .magic = MST_MLOG_MAGIC,
        .layout_version = MST_MLOG_VERSION,
        .page_bytes = MST_PAGE_BYTES,
        .ring_bytes = grant->ring_bytes,
        .ram_bytes = grant->ram_bytes,
        .delta_capacity = grant->delta_capacity,
        .source_node_id = grant->source_node_id,
        .epoch = grant->epoch,
        .log_id = grant->log_id,
        .source_instance = grant->source_instance,
        .mirror_instance = grant->mirror_instance,
    };
    memcpy(ret_head->vm, grant->vm, strnlen(grant->vm, sizeof(ret_head->vm) - 1));
    memcpy(ret_head->source_boot_id, grant->source_boot_id, sizeof(ret_head->source_boot_id));
    ret_head->sum = XXH64(ret_head, offsetof(struct mst_mlog_head, sum), 0);
}

int mst_mlog_head_check(const struct mst_mlog_head *copy, const struct mst_mlog_grant *grant, struct mst_why *why)
{
    struct mst_mlog_head expected;

    if (XXH64(copy, offsetof(struct mst_mlog_head, sum), 0) != copy->sum)
        return mst_why_set(why, -EAGAIN, "mirror log: no head yet");
    if (copy->magic == MST_MLOG_MAGIC && copy->layout_version != MST_MLOG_VERSION)
        return mst_why_set(why, -EPROTONOSUPPORT, "mirror log: layout version %" PRIu32 ", this node knows %u",
                           copy->layout_version, MST_MLOG_VERSION);
    mst_mlog_head_make(grant, &expected);
    if (memcmp(copy, &expected, sizeof(expected)) != 0)
        return mst_why_set(why, -ESTALE,
                           "mirror log: its head is not the granted one (epoch %" PRIu64 " of node %" PRIu32
                           " instance %016" PRIx64 ", granted epoch %" PRIu64 " of node %" PRIu32 " instance %016" PRIx64 ")",
                           copy->epoch, copy->source_node_id, copy->source_instance, grant->epoch, grant->source_node_id,
                           grant->source_instance);
    return 0;
}

uint64_t mst_mlog_record_bytes(uint32_t data_pages, uint32_t runs, uint32_t device_bytes, uint32_t flags)
{
    uint64_t bytes = sizeof(struct mst_mlog_record) + (uint64_t)data_pages * MST_PAGE_BYTES +
                     (uint64_t)runs * sizeof(struct mst_mlog_run) + device_bytes;

    if (flags & MST_MLOG_COMMIT)
        bytes += sizeof(struct mst_mlog_commit);
    return (bytes + MST_MLOG_LINE - 1) / MST_MLOG_LINE * MST_MLOG_LINE;
}

int mst_mlog_record_check(const struct mst_mlog_record *record, uint32_t record_max, struct mst_why *why)
{
    if (record->record_bytes > record_max || record->data_pages > MST_MLOG_PAGES_MAX || record->runs > MST_MLOG_RUNS_MAX ||
        record->flags > (MST_MLOG_SEED | MST_MLOG_COMMIT))
        return mst_why_set(why, -EBADMSG,
                           "mirror log: record %" PRIu64 " of %" PRIu32 " bytes, %" PRIu32 " pages, %" PRIu32
                           " runs, flags %" PRIx32,
                           record->sequence, record->record_bytes, record->data_pages, record->runs, record->flags);
    if (record->record_bytes != mst_mlog_record_bytes(record->data_pages, record->runs, record->device_bytes, record->flags))
        return mst_why_set(why, -EBADMSG, "mirror log: record %" PRIu64 " has %" PRIu32 " bytes, which is not what it holds",
                           record->sequence, record->record_bytes);
    return 0;
}

int mst_mlog_runs_check(const struct mst_mlog_record *record, const struct mst_mlog_run *runs, uint64_t pages,
                        struct mst_why *why)
{
    uint64_t data = 0;

    for (uint32_t i = 0; i < record->runs; i++) {
        if ((runs[i].kind != MST_MLOG_DATA && runs[i].kind != MST_MLOG_ZERO) || runs[i].pages == 0 ||
            (uint64_t)runs[i].page + runs[i].pages > pages)
            return mst_why_set(why, -EBADMSG,
                               "mirror log: record %" PRIu64 " has a run of kind %u, %u pages from %" PRIu32 ", of %" PRIu64,
                               record->sequence, runs[i].kind, runs[i].pages, runs[i].page, pages);
        data += runs[i].kind == MST_MLOG_DATA ? runs[i].pages : 0;
    }
    if (data != record->data_pages)
        return mst_why_set(why, -EBADMSG, "mirror log: record %" PRIu64 " has %" PRIu32 " pages, its runs %" PRIu64,
                           record->sequence, record->data_pages, data);
    return 0;
}

uint64_t mst_mlog_page_sum(const uint8_t *page)
{
    return XXH64(page, MST_PAGE_BYTES, 0);
}

uint64_t mst_mlog_sum(const struct mst_mlog_record *record, const uint64_t *page_sums, const void *rest)
{
    uint64_t sum = XXH64(record, offsetof(struct mst_mlog_record, sum), 0);

    if (!MST_MUTANT(64))
        sum = XXH64(page_sums, record->data_pages * sizeof(*page_sums), sum);
    return XXH64(rest, record->record_bytes - sizeof(*record) - (size_t)record->data_pages * MST_PAGE_BYTES, sum);
}
