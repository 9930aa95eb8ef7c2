#include "base/fault.h"
#include "shm/put.h"
#include "shm/save.h"

#include <errno.h>
#include <stdlib.h>

struct mst_save_writer {
    struct mst_save_map map;
    struct mst_save_layout save;
    struct mst_delta_layout delta;
    uint64_t pages;
    struct mst_save_record record; /* as published last; zero before the first */
    struct mst_save_note note;     /* goes out with it */
    uint32_t staged;               /* entries of the delta that are filled; while unsettled, the same as record.delta_pages */
    uint32_t *page_of;             /* page of each entry; private, so that a damaged table cannot make apply write astray */
    uint32_t *entry_of;            /* per page: entry + 1, 0: not staged */
    uint8_t *filled;               /* per page: the shadow and its sum are of one copy of the page; counts while source is NONE */
    uint64_t filled_pages, filled_digest;
};

/* --- where things lie --- */

static uint32_t *shadow_sums(const struct mst_save_writer *writer)
{
    return (uint32_t *)(void *)(writer->map.save + writer->save.shadow_sums_off);
}

static uint32_t *ram_sums(const struct mst_save_writer *writer)
{
    return (uint32_t *)(void *)(writer->map.save + writer->save.ram_sums_off);
}

static struct mst_delta_entry *delta_table(const struct mst_save_writer *writer)
{
    return (struct mst_delta_entry *)(void *)(writer->map.delta + writer->delta.table_off);
}

static uint8_t *delta_page(const struct mst_save_writer *writer, uint32_t entry)
{
    return writer->map.delta + writer->delta.data_off + (uint64_t)entry * MST_PAGE_BYTES;
}

static const uint8_t *ram_page(const struct mst_save_writer *writer, uint64_t page)
{
    return writer->map.ram + page * MST_PAGE_BYTES;
}

static uint8_t *shadow_page(const struct mst_save_writer *writer, uint64_t page)
{
    return writer->map.shadow + page * MST_PAGE_BYTES;
}

/* The published record needs the delta. */
static bool unsettled(const struct mst_save_writer *writer)
{
    return writer->record.source == MST_SAVE_SHADOW && writer->record.delta_pages != 0;
}

static void publish(struct mst_save_writer *writer)
{
    writer->record.interval_ms = writer->note.interval_ms;
    writer->record.pace = writer->note.pace;
    writer->record.trouble = writer->note.trouble;
    writer->record.trouble_wall_ms = writer->note.trouble_wall_ms;
    writer->record.dirty_pages = writer->note.dirty_pages;
    writer->record.pause_p50_us = writer->note.pause_p50_us;
    writer->record.pause_p99_us = writer->note.pause_p99_us;
    mst_pub_write(writer->map.record, writer->map.epoch, writer->map.instance, &writer->record, sizeof(writer->record));
}

static void drop_staged(struct mst_save_writer *writer)
{
    for (uint32_t i = 0; i < writer->staged; i++)
        writer->entry_of[writer->page_of[i]] = 0;
    writer->staged = 0;
}

/* --- making and taking up --- */

/* What a writer needs for shadow and delta. */
static int rest_alloc(struct mst_save_writer *writer, const struct mst_save_map *map)
{
    int r = mst_delta_layout(map->delta_capacity, &writer->delta);

    if (r < 0)
        return r;
    writer->entry_of = calloc(writer->pages, sizeof(*writer->entry_of));
    writer->page_of = calloc(map->delta_capacity, sizeof(*writer->page_of));
    writer->filled = calloc(writer->pages, sizeof(*writer->filled));
    return writer->entry_of && writer->page_of && writer->filled ? 0 : -ENOMEM;
}

static void rest_free(struct mst_save_writer *writer)
{
    free(writer->page_of);
    free(writer->entry_of);
    free(writer->filled);
    writer->page_of = writer->entry_of = NULL;
    writer->filled = NULL;
}

static int writer_alloc(const struct mst_save_map *map, struct mst_save_writer **ret_writer)
{
    struct mst_save_writer *writer;
    int r;

    if ((!map->ram && !map->shadow) || !map->save || !map->record || !map->shadow != !map->delta)
        return -EINVAL;
    writer = calloc(1, sizeof(*writer));
    if (!writer)
        return -ENOMEM;
    writer->map = *map;
    writer->pages = map->ram_bytes / MST_PAGE_BYTES;
    r = mst_save_layout(map->ram_bytes, &writer->save);
    if (r == 0 && map->delta)
        r = rest_alloc(writer, map);
    if (r < 0)
        mst_save_writer_free(writer);
    else
        *ret_writer = writer;
    return r;
}

int mst_save_writer_new(const struct mst_save_map *map, struct mst_save_writer **ret_writer)
{
    int r = writer_alloc(map, ret_writer);

    if (r == 0)
        mst_pub_clear(map->record);
    return r;
}

int mst_save_writer_rest(struct mst_save_writer *writer, const struct mst_save_map *map)
{
    int r;

    if (writer->map.delta || !map->shadow || !map->delta || map->save != writer->map.save || map->ram != writer->map.ram)
        return -EINVAL;
    r = rest_alloc(writer, map);
    if (r < 0) {
        rest_free(writer);
        return r;
    }
    writer->map.shadow = map->shadow;
    writer->map.delta = map->delta;
    writer->map.delta_capacity = map->delta_capacity;
    return 0;
}

/* Checks what the published record names, as far as a going on leans on it: tables and delta, not every page. */
static int attach_check(struct mst_save_writer *writer)
{
    const struct mst_save_record *record = &writer->record;
    const struct mst_delta_entry *table = writer->map.delta ? delta_table(writer) : NULL;
    const uint32_t *sums = record->source == MST_SAVE_RAM ? ram_sums(writer) : shadow_sums(writer);
    uint64_t digest = mst_save_digest(sums, 0, writer->pages);
    int r = 0;

    if ((record->source == MST_SAVE_SHADOW && !table) || (record->source == MST_SAVE_RAM && !writer->map.ram))
        return -EBADMSG;
    if (table && record->delta_pages > 0)
        r = mst_delta_table_check(record, table, NULL);
    for (uint32_t i = 0; table && r == 0 && i < record->delta_pages; i++) {
        if (mst_pages_check(delta_page(writer, i), &table[i].sum, 1) != 1)
            r = -EBADMSG;
        digest ^= mst_save_digest(&sums[table[i].page], table[i].page, 1) ^ mst_save_digest(&table[i].sum, table[i].page, 1);
        writer->page_of[i] = table[i].page;
    }
    if (r == 0 && digest != record->ram_digest)
        r = -EBADMSG;
    return r;
}

int mst_save_writer_attach(const struct mst_save_map *map, struct mst_save_writer **ret_writer)
{
    struct mst_save_writer *writer;
    struct mst_pub_head head;
    int r;

    r = writer_alloc(map, &writer);
    if (r < 0)
        return r;
    r = mst_pub_read(map->record, &head, &writer->record, sizeof(writer->record));
    if (r < 0)
        goto fail;
    if (head.epoch != map->epoch || head.instance != map->instance) {
        r = -EBADMSG;
        goto fail;
    }
    if (writer->record.source != MST_SAVE_NONE) {
        r = mst_save_record_check(&writer->record, map->ram_bytes, map->delta ? map->delta_capacity : 0, NULL);
        if (r == 0)
            r = attach_check(writer);
        if (r < 0)
            goto fail;
    }
    if (unsettled(writer)) {
        writer->staged = writer->record.delta_pages;
        mst_save_apply(writer);
    }
    *ret_writer = writer;
    return 0;
fail:
    mst_save_writer_free(writer);
    /* One writer only: what does not hold still when nobody writes is damaged. */
    return r == -EAGAIN ? -EBADMSG : r;
}

void mst_save_writer_free(struct mst_save_writer *writer)
{
    if (!writer)
        return;
    rest_free(writer);
    free(writer);
}

bool mst_save_is_whole(const struct mst_save_writer *writer)
{
    return writer->map.delta != NULL;
}

uint64_t mst_save_seq(const struct mst_save_writer *writer)
{
    return writer->record.seq;
}

enum mst_save_source mst_save_source(const struct mst_save_writer *writer)
{
    return (enum mst_save_source)writer->record.source;
}

uint32_t mst_save_delta(const struct mst_save_writer *writer, uint32_t *ret_table_crc32c)
{
    *ret_table_crc32c = writer->record.delta_table_crc32c;
    return writer->record.delta_pages;
}

/* --- staging --- */

void mst_save_begin(struct mst_save_writer *writer)
{
    mst_save_apply(writer);
    drop_staged(writer);
}

/* Whether page may be staged now, and as which entry. */
static int may_stage(const struct mst_save_writer *writer, uint64_t page, uint32_t *ret_at)
{
    if (!writer->map.delta)
        return -ENODATA;
    if (page >= writer->pages)
        return -ERANGE;
    if (unsettled(writer))
        return -EBUSY;
    if (writer->entry_of[page] == 0 && writer->staged == writer->map.delta_capacity)
        return -ENOSPC;
    *ret_at = writer->entry_of[page] ? writer->entry_of[page] - 1 : writer->staged;
    return 0;
}

/* The page is in the delta as entry at: its line of the table. */
static void stage_entry(struct mst_save_writer *writer, uint64_t page, uint32_t at, uint32_t sum)
{
    struct mst_delta_entry entry = {.page = (uint32_t)page, .sum = sum};

    mst_put_bytes(&delta_table(writer)[at], &entry, sizeof(entry));
    if (writer->entry_of[page] == 0) {
        writer->page_of[at] = (uint32_t)page;
        writer->entry_of[page] = at + 1;
        writer->staged++;
    }
}

int mst_save_stage(struct mst_save_writer *writer, uint64_t page)
{
    uint32_t at;
    int r = writer->map.ram ? may_stage(writer, page, &at) : -ENODATA;

    if (r < 0)
        return r;
    /* Staged early and not written since, as most are: looking is cheaper than another copy and sum in the pause. */
    if (writer->entry_of[page] != 0 && memcmp(delta_page(writer, at), ram_page(writer, page), MST_PAGE_BYTES) == 0)
        return 0;
    mst_put_bytes(delta_page(writer, at), ram_page(writer, page), MST_PAGE_BYTES);
    MST_POINT("save.stage");
    /* The sum is of the copy: the guest may have changed the page while it was copied, and is then asked again once it stands. */
    stage_entry(writer, page, at, mst_page_sum(delta_page(writer, at)));
    return 0;
}

int mst_save_stage_page(struct mst_save_writer *writer, uint64_t page, const uint8_t *bytes, uint32_t sum)
{
    uint32_t at;
    int r = may_stage(writer, page, &at);

    if (r < 0)
        return r;
    mst_put_bytes(delta_page(writer, at), bytes, MST_PAGE_BYTES);
    MST_POINT("save.stage");
    stage_entry(writer, page, at, sum);
    return 0;
}

int mst_save_stage_if_changed(struct mst_save_writer *writer, uint64_t page)
{
    int r;

    if (writer->map.ram && writer->map.shadow && page < writer->pages && writer->entry_of[page] == 0 && !unsettled(writer) &&
        memcmp(ram_page(writer, page), shadow_page(writer, page), MST_PAGE_BYTES) == 0)
        return 0;
    r = mst_save_stage(writer, page);
    return r < 0 ? r : 1;
}

uint32_t mst_save_staged(const struct mst_save_writer *writer)
{
    return unsettled(writer) ? 0 : writer->staged;
}

/* --- committing --- */

static uint32_t free_device_slot(const struct mst_save_writer *writer)
{
    return writer->record.source == MST_SAVE_NONE ? 0 : 1 - writer->record.device_slot;
}

uint8_t *mst_save_device(struct mst_save_writer *writer, uint64_t *ret_room)
{
    *ret_room = MST_DEVICE_BYTES_MAX;
    return writer->map.save + writer->save.device_off[free_device_slot(writer)];
}

/* The record of checkpoint seq + 1 with what every source has; the sums of the pages are the caller's. */
static struct mst_save_record next_record(const struct mst_save_writer *writer, enum mst_save_source source,
                                          uint64_t device_bytes, uint64_t pause_ns, uint64_t wall_ms, uint64_t boot_ns)
{
    uint32_t slot = free_device_slot(writer);

    return (struct mst_save_record){
        .seq = writer->record.seq + 1,
        .source = source,
        .device_slot = slot,
        .device_bytes = device_bytes,
        .device_crc32c = mst_crc32c(writer->map.save + writer->save.device_off[slot], device_bytes),
        .page_bytes = MST_PAGE_BYTES,
        .ram_bytes = writer->map.ram_bytes,
        .taken_wall_ms = wall_ms,
        .pause_ns = pause_ns,
        .taken_boot_ns = boot_ns,
    };
}

uint64_t mst_save_next_digest(const struct mst_save_writer *writer)
{
    uint64_t digest = writer->record.ram_digest;

    if (writer->record.source == MST_SAVE_NONE)
        return writer->filled_digest;
    for (uint32_t i = 0; i < writer->staged && !unsettled(writer); i++) {
        uint32_t page = writer->page_of[i];
        digest ^= mst_save_digest(&shadow_sums(writer)[page], page, 1) ^ mst_save_digest(&delta_table(writer)[i].sum, page, 1);
    }
    return digest;
}

int mst_save_number(struct mst_save_writer *writer, uint64_t seq)
{
    if (seq == 0)
        return -EINVAL;
    if (writer->record.source != MST_SAVE_NONE)
        return -EBUSY;
    writer->record.seq = seq - 1;
    return 0;
}

int mst_save_commit(struct mst_save_writer *writer, uint64_t device_bytes, uint64_t pause_ns, uint64_t wall_ms, uint64_t boot_ns)
{
    struct mst_save_record next;

    if (device_bytes == 0 || device_bytes > MST_DEVICE_BYTES_MAX)
        return -EMSGSIZE;
    if (!writer->map.shadow || writer->record.source != MST_SAVE_SHADOW)
        return -ENODATA;
    if (unsettled(writer))
        return -EBUSY;
    next = next_record(writer, MST_SAVE_SHADOW, device_bytes, pause_ns, wall_ms, boot_ns);
    next.pages = next.delta_pages = writer->staged;
    next.delta_table_crc32c = mst_crc32c(delta_table(writer), writer->staged * sizeof(struct mst_delta_entry));
    next.ram_digest = mst_save_next_digest(writer);
    writer->record = next;
    MST_POINT("save.commit");
    publish(writer);
    return 0;
}

void mst_save_apply(struct mst_save_writer *writer)
{
    if (!unsettled(writer))
        return;
    for (uint32_t i = 0; i < writer->staged; i++) {
        uint32_t page = writer->page_of[i];
        mst_put_bytes(shadow_page(writer, page), delta_page(writer, i), MST_PAGE_BYTES);
        MST_POINT("save.apply");
        mst_put_bytes(&shadow_sums(writer)[page], &delta_table(writer)[i].sum, sizeof(uint32_t));
    }
    writer->record.delta_pages = 0;
    writer->record.delta_table_crc32c = mst_crc32c(NULL, 0);
    MST_POINT("save.settle");
    publish(writer);
    drop_staged(writer);
}

static void forget_filled(struct mst_save_writer *writer)
{
    if (writer->filled)
        memset(writer->filled, 0, writer->pages * sizeof(*writer->filled));
    writer->filled_pages = writer->filled_digest = 0;
}

int mst_save_commit_ram(struct mst_save_writer *writer, uint64_t device_bytes, uint64_t pause_ns, uint64_t wall_ms,
                        uint64_t boot_ns)
{
    struct mst_save_record next;

    if (!writer->map.ram)
        return -ENODATA;
    if (device_bytes == 0 || device_bytes > MST_DEVICE_BYTES_MAX)
        return -EMSGSIZE;
    next = next_record(writer, MST_SAVE_RAM, device_bytes, pause_ns, wall_ms, boot_ns);
    next.pages = (uint32_t)writer->pages;
    next.delta_table_crc32c = mst_crc32c(NULL, 0);
    forget_filled(writer); /* shadow_from_ram writes the shadow without it */
    for (uint64_t page = 0; page < writer->pages; page++) {
        uint32_t sum = mst_page_sum(ram_page(writer, page));
        mst_put_bytes(&ram_sums(writer)[page], &sum, sizeof(sum));
        next.ram_digest ^= mst_save_digest(&sum, page, 1);
    }
    writer->record = next;
    MST_POINT("save.commit");
    publish(writer);
    drop_staged(writer);
    return 0;
}

uint64_t mst_save_shadow_from_ram(struct mst_save_writer *writer)
{
    uint64_t written = 0;

    if (!writer->map.shadow || writer->record.source != MST_SAVE_RAM)
        return 0;
    for (uint64_t page = 0; page < writer->pages; page++) {
        if (memcmp(shadow_page(writer, page), ram_page(writer, page), MST_PAGE_BYTES) != 0) {
            mst_put_bytes(shadow_page(writer, page), ram_page(writer, page), MST_PAGE_BYTES);
            written++;
        }
        MST_POINT("save.shadow");
        mst_put_bytes(&shadow_sums(writer)[page], &ram_sums(writer)[page], sizeof(uint32_t));
    }
    writer->record.source = MST_SAVE_SHADOW;
    publish(writer);
    return written;
}

static int may_fill(const struct mst_save_writer *writer)
{
    if (!writer->map.shadow)
        return -ENODATA;
    return writer->record.source == MST_SAVE_NONE ? 0 : -EBUSY;
}

static int may_fill_page(const struct mst_save_writer *writer, uint64_t page)
{
    int r = may_fill(writer);

    return r == 0 && page >= writer->pages ? -ERANGE : r;
}

/* Puts bytes into the shadow. sum: of them, or NULL: it is computed, of the copy, as in stage. */
static void fill(struct mst_save_writer *writer, uint64_t page, const uint8_t *bytes, const uint32_t *sum)
{
    uint32_t *have = &shadow_sums(writer)[page], now;

    if (writer->filled[page])
        writer->filled_digest ^= mst_save_digest(have, page, 1);
    mst_put_bytes(shadow_page(writer, page), bytes, MST_PAGE_BYTES);
    MST_POINT("save.fill");
    now = sum ? *sum : mst_page_sum(shadow_page(writer, page));
    mst_put_bytes(have, &now, sizeof(now));
    writer->filled_digest ^= mst_save_digest(&now, page, 1);
    writer->filled_pages += !writer->filled[page];
    writer->filled[page] = 1;
}

int mst_save_fill(struct mst_save_writer *writer, uint64_t page)
{
    int r = writer->map.ram ? may_fill_page(writer, page) : -ENODATA;

    if (r < 0)
        return r;
    if (writer->filled[page] && memcmp(shadow_page(writer, page), ram_page(writer, page), MST_PAGE_BYTES) == 0)
        return 1;
    fill(writer, page, ram_page(writer, page), NULL);
    return 0;
}

int mst_save_fill_page(struct mst_save_writer *writer, uint64_t page, const uint8_t *bytes, uint32_t sum)
{
    int r = may_fill_page(writer, page);

    if (r == 0)
        fill(writer, page, bytes, &sum);
    return r;
}

int mst_save_commit_filled(struct mst_save_writer *writer, uint64_t device_bytes, uint64_t pause_ns, uint64_t wall_ms,
                           uint64_t boot_ns)
{
    struct mst_save_record next;
    int r = may_fill(writer);

    if (r < 0)
        return r;
    if (device_bytes == 0 || device_bytes > MST_DEVICE_BYTES_MAX)
        return -EMSGSIZE;
    if (writer->filled_pages != writer->pages)
        return -EAGAIN;
    next = next_record(writer, MST_SAVE_SHADOW, device_bytes, pause_ns, wall_ms, boot_ns);
    next.delta_table_crc32c = mst_crc32c(NULL, 0);
    next.ram_digest = writer->filled_digest;
    next.pages = (uint32_t)writer->pages;
    writer->record = next;
    MST_POINT("save.commit");
    publish(writer);
    drop_staged(writer);
    forget_filled(writer);
    return 0;
}

void mst_save_withdraw(struct mst_save_writer *writer)
{
    uint64_t seq = writer->record.seq;

    if (writer->record.source == MST_SAVE_NONE)
        return;
    memset(&writer->record, 0, sizeof(writer->record));
    writer->record.seq = seq;
    /* Twice: the RAM record must not wait in the other slot for a reader who finds this one damaged. */
    publish(writer);
    publish(writer);
    drop_staged(writer);
}

void mst_save_note(struct mst_save_writer *writer, const struct mst_save_note *note, bool now)
{
    writer->note = *note;
    if (now)
        publish(writer);
}
