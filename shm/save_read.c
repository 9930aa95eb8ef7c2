#include "shm/save.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* A sum that does not depend on the order, so that the writer can keep it up with the pages that change: xor over well-mixed words,
 * each of which names its page (splitmix64). */
static uint64_t digest_word(uint64_t page, uint32_t sum)
{
    uint64_t x = (page << 32 | sum) + UINT64_C(0x9e3779b97f4a7c15);

    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

uint64_t mst_save_digest(const uint32_t *sums, uint64_t first, uint64_t count)
{
    uint64_t digest = 0;

    for (uint64_t i = 0; i < count; i++)
        digest ^= digest_word(first + i, sums[i]);
    return digest;
}

int mst_save_record_check(const struct mst_save_record *record, uint64_t ram_bytes, uint32_t delta_capacity, struct mst_why *why)
{
    if (record->source == MST_SAVE_NONE)
        return mst_why_set(why, -ENODATA, "save record: no checkpoint");
    if (record->source != MST_SAVE_SHADOW && record->source != MST_SAVE_RAM)
        return mst_why_set(why, -EBADMSG, "save record: source %" PRIu32 " is unknown", record->source);
    if (record->seq == 0)
        return mst_why_set(why, -EBADMSG, "save record: sequence is 0");
    if (record->page_bytes != MST_PAGE_BYTES)
        return mst_why_set(why, -EBADMSG, "save record: pages of %" PRIu32 " bytes, expected %u", record->page_bytes,
                           MST_PAGE_BYTES);
    if (record->ram_bytes != ram_bytes || ram_bytes == 0 || ram_bytes % MST_PAGE_BYTES != 0)
        return mst_why_set(why, -EBADMSG, "save record: RAM of %" PRIu64 " bytes, the definition says %" PRIu64,
                           record->ram_bytes, ram_bytes);
    if (record->device_slot > 1 || record->device_bytes == 0 || record->device_bytes > MST_DEVICE_BYTES_MAX)
        return mst_why_set(why, -EBADMSG, "save record: device state of %" PRIu64 " bytes in slot %" PRIu32, record->device_bytes,
                           record->device_slot);
    if (record->delta_pages > delta_capacity || (record->source == MST_SAVE_RAM && record->delta_pages != 0))
        return mst_why_set(why, -EBADMSG, "save record: delta of %" PRIu32 " pages, capacity %" PRIu32, record->delta_pages,
                           delta_capacity);
    return 0;
}

uint32_t mst_page_sum(const void *page)
{
    return (uint32_t)XXH64(page, MST_PAGE_BYTES, 0);
}

uint64_t mst_pages_check(const uint8_t *data, const uint32_t *sums, uint64_t count)
{
    uint64_t page = 0;

    while (page < count && mst_page_sum(data + page * MST_PAGE_BYTES) == sums[page])
        page++;
    return page;
}

void mst_delta_sums(const struct mst_save_record *record, const struct mst_delta_entry *table, uint32_t *sums)
{
    for (uint32_t i = 0; i < record->delta_pages; i++)
        sums[table[i].page] = table[i].sum;
}

int mst_save_sums_check(const struct mst_save_record *record, const uint32_t *sums, struct mst_why *why)
{
    if (mst_save_digest(sums, 0, record->ram_bytes / MST_PAGE_BYTES) != record->ram_digest)
        return mst_why_set(why, -EBADMSG, "page checksums are not those of checkpoint %" PRIu64, record->seq);
    return 0;
}

int mst_save_device_check(const struct mst_save_record *record, const uint8_t *device, struct mst_why *why)
{
    if (mst_crc32c(device, record->device_bytes) != record->device_crc32c)
        return mst_why_set(why, -EBADMSG, "device state does not match the checksum of checkpoint %" PRIu64, record->seq);
    return 0;
}

int mst_delta_table_check(const struct mst_save_record *record, const struct mst_delta_entry *table, struct mst_why *why)
{
    uint64_t pages = record->ram_bytes / MST_PAGE_BYTES;
    uint8_t *seen;
    int r = 0;

    if (mst_crc32c(table, record->delta_pages * sizeof(*table)) != record->delta_table_crc32c)
        return mst_why_set(why, -EBADMSG, "delta table does not match the checksum of checkpoint %" PRIu64, record->seq);
    if (record->delta_pages == 0)
        return 0;
    seen = calloc(1, pages / 8 + 1);
    if (!seen)
        return mst_why_set(why, -ENOMEM, "delta table: no memory");
    for (uint32_t i = 0; i < record->delta_pages && r == 0; i++) {
        uint32_t page = table[i].page;
        if (page >= pages)
            r = mst_why_set(why, -EBADMSG, "delta table: page %" PRIu32 " of %" PRIu64, page, pages);
        else if (seen[page / 8] & 1u << page % 8)
            r = mst_why_set(why, -EBADMSG, "delta table: page %" PRIu32 " comes twice", page);
        else
            seen[page / 8] = (uint8_t)(seen[page / 8] | 1u << page % 8);
    }
    free(seen);
    return r;
}

int mst_delta_overlay(const struct mst_save_record *record, const struct mst_delta_entry *table, const uint8_t *data,
                      uint8_t *ram, struct mst_why *why)
{
    uint64_t pages = record->ram_bytes / MST_PAGE_BYTES;

    for (uint64_t i = 0; i < record->delta_pages; i++) {
        if (table[i].page >= pages || mst_pages_check(data + i * MST_PAGE_BYTES, &table[i].sum, 1) != 1)
            return mst_why_set(why, -EBADMSG, "delta: page %" PRIu32 " does not match its checksum", table[i].page);
    }
    for (uint64_t i = 0; i < record->delta_pages; i++)
        memcpy(ram + (uint64_t)table[i].page * MST_PAGE_BYTES, data + i * MST_PAGE_BYTES, MST_PAGE_BYTES);
    return 0;
}
