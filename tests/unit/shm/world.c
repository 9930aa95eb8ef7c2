#include "world.h"
#include "shm/put.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static uint8_t *pages_new(uint64_t bytes)
{
    uint8_t *at = aligned_alloc(MST_PAGE_BYTES, (bytes + MST_PAGE_BYTES - 1) / MST_PAGE_BYTES * MST_PAGE_BYTES);

    ck_assert_ptr_nonnull(at);
    memset(at, 0, bytes);
    return at;
}

void world_open(struct world *world, enum world_protect protect, uint64_t seed)
{
    memset(world, 0, sizeof(*world));
    world->random = seed * 2 + 1;
    ck_assert_int_eq(mst_save_layout(WORLD_RAM_BYTES, &world->save), 0);
    ck_assert_int_eq(mst_delta_layout(WORLD_CAPACITY, &world->delta), 0);
    world->at.ram = pages_new(WORLD_RAM_BYTES);
    world->at.save = pages_new(world->save.bytes);
    world->at.record = (void *)pages_new(2 * MST_PUB_SLOT_BYTES);
    if (protect == WORLD_LOCAL) {
        world->at.shadow = pages_new(WORLD_RAM_BYTES);
        world->at.delta = pages_new(world->delta.bytes);
    }
    world->truth = calloc(WORLD_SEQS, sizeof(*world->truth));
    ck_assert_ptr_nonnull(world->truth);
    world->map = (struct mst_save_map){
        .ram_bytes = WORLD_RAM_BYTES,
        .ram = world->at.ram,
        .save = world->at.save,
        .shadow = world->at.shadow,
        .delta = world->at.delta,
        .delta_capacity = protect == WORLD_LOCAL ? WORLD_CAPACITY : 0,
        .record = world->at.record,
        .epoch = 7,
        .instance = 99,
    };
    world->guest_runs = true;
    for (unsigned page = 0; page < WORLD_PAGES; page++)
        world_dirty(world, page);
}

void world_close(struct world *world)
{
    mst_save_writer_free(world->writer);
    free(world->at.ram);
    free(world->at.save);
    free(world->at.record);
    free(world->at.shadow);
    free(world->at.delta);
    free(world->truth);
}

uint64_t world_random(struct world *world)
{
    uint64_t x = world->random += UINT64_C(0x9e3779b97f4a7c15);

    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

void world_dirty(struct world *world, unsigned page)
{
    uint64_t value = world_random(world);

    if (!world->guest_runs)
        return;
    for (unsigned i = 0; i < 8; i++)
        memcpy(world->at.ram + page * MST_PAGE_BYTES + i * 512 + value % 63 * 8, &value, sizeof(value));
}

void world_stop(struct world *world)
{
    if (!world->agent_dead)
        world->guest_runs = false;
}

void world_continue(struct world *world)
{
    if (!world->agent_dead)
        world->guest_runs = true;
}

static void dirty_some(struct world *world)
{
    world_dirty(world, (unsigned)(world_random(world) % 3)); /* at most three pages, so that they fit into the delta */
}

uint64_t world_put_device(struct world *world, uint64_t for_seq)
{
    uint8_t device[WORLD_DEVICE];
    uint64_t room;
    uint8_t *at = mst_save_device(world->writer, &room);

    ck_assert_uint_eq(room, MST_DEVICE_BYTES_MAX);
    world->device_count++;
    for (unsigned i = 0; i < sizeof(device); i++)
        device[i] = (uint8_t)(world->device_count * 7 + for_seq + i);
    mst_put_bytes(at, device, sizeof(device));
    memcpy(world->truth[for_seq].device, device, sizeof(device));
    return sizeof(device);
}

void world_note(struct world *world, uint64_t seq)
{
    world->truth[seq].taken = true;
    memcpy(world->truth[seq].ram, world->at.ram, WORLD_RAM_BYTES);
}

int world_stage_all(struct world *world)
{
    int r = 0;

    for (unsigned page = 0; page < WORLD_PAGES && r >= 0; page++)
        r = mst_save_stage_if_changed(world->writer, page);
    ck_assert(r >= 0 || r == -ENOSPC);
    return r < 0 ? r : 0;
}

int world_ram_save(struct world *world)
{
    uint64_t seq = mst_save_seq(world->writer) + 1;
    uint64_t device;

    world_stop(world);
    device = world_put_device(world, seq);
    world_note(world, seq);
    return mst_save_commit_ram(world->writer, device, 1, 2, 3);
}

static void finish_full(struct world *world)
{
    ck_assert_int_eq(world_ram_save(world), 0);
    mst_save_shadow_from_ram(world->writer);
    world_continue(world);
    dirty_some(world);
}

void world_full_checkpoint(struct world *world)
{
    for (unsigned page = 0; page < WORLD_PAGES; page++)
        world_dirty(world, page);
    finish_full(world);
}

void world_delta_checkpoint(struct world *world)
{
    struct mst_save_writer *writer = world->writer;
    uint64_t seq = mst_save_seq(writer) + 1;
    uint64_t device;
    int r;

    dirty_some(world);
    mst_save_begin(writer);
    r = world_stage_all(world);
    dirty_some(world);
    if (r == 0)
        r = world_stage_all(world);
    dirty_some(world);
    world_stop(world);
    if (r == 0)
        r = world_stage_all(world);
    if (r < 0) { /* as the agent does when the pages do not fit */
        finish_full(world);
        return;
    }
    device = world_put_device(world, seq);
    world_note(world, seq);
    ck_assert_int_eq(mst_save_commit(writer, device, 1, 2, 3), 0);
    world_continue(world);
    dirty_some(world);
    mst_save_apply(writer);
    dirty_some(world);
}

void world_ram_checkpoint(struct world *world)
{
    for (unsigned page = 0; page < WORLD_PAGES; page++)
        world_dirty(world, page);
    ck_assert_int_eq(world_ram_save(world), 0);
    mst_save_withdraw(world->writer);
    world_continue(world);
    for (unsigned page = 0; page < WORLD_PAGES; page++)
        world_dirty(world, page);
}

void world_reader_begin(struct world_reader *reader, const struct world *world, const struct world_regions *from)
{
    memset(reader, 0, sizeof(*reader));
    reader->world = world;
    reader->from = from;
}

static int read_record(struct world_reader *reader)
{
    _Alignas(8) uint8_t copy[2][MST_PUB_SLOT_BYTES];
    uint32_t capacity = reader->world->map.delta_capacity;
    int r;

    mst_get_words(copy, reader->from->record, sizeof(copy));
    r = mst_pub_pick((const uint8_t(*)[MST_PUB_SLOT_BYTES])copy, &reader->head, &reader->record, sizeof(reader->record));
    if (r < 0)
        return r;
    r = mst_save_record_check(&reader->record, WORLD_RAM_BYTES, capacity, &reader->why);
    if (r == 0 && (reader->record.device_bytes != WORLD_DEVICE || reader->head.epoch != reader->world->map.epoch))
        r = -EBADMSG;
    return r;
}

static int check_tables(struct world_reader *reader)
{
    int r = mst_delta_table_check(&reader->record, reader->table, &reader->why);

    if (r < 0)
        return r;
    mst_delta_sums(&reader->record, reader->table, reader->sums);
    return mst_save_sums_check(&reader->record, reader->sums, &reader->why);
}

static int check_pages(struct world_reader *reader)
{
    int r = mst_delta_overlay(&reader->record, reader->table, reader->delta, reader->ram, &reader->why);

    if (r < 0)
        return r;
    return mst_pages_check(reader->ram, reader->sums, WORLD_PAGES) == WORLD_PAGES ? 0 : -EBADMSG;
}

#define STEP_PAGES 5u

int world_reader_step(struct world_reader *reader)
{
    const struct world_regions *from = reader->from;
    const struct mst_save_record *record = &reader->record;
    bool ram = record->source == MST_SAVE_RAM;
    unsigned step = reader->step++;
    int r = 0;

    if (step == 0) {
        r = read_record(reader);
    } else if (step == 1) {
        uint64_t off = ram ? reader->world->save.ram_sums_off : reader->world->save.shadow_sums_off;
        memcpy(reader->sums, from->save + off, sizeof(reader->sums));
    } else if (step == 2) {
        if (record->delta_pages > 0)
            memcpy(reader->table, from->delta + reader->world->delta.table_off, record->delta_pages * sizeof(reader->table[0]));
    } else if (step == 3) {
        r = check_tables(reader);
    } else if (step == 4) {
        if (record->delta_pages > 0)
            memcpy(reader->delta, from->delta + reader->world->delta.data_off, record->delta_pages * MST_PAGE_BYTES);
    } else if (step < STEP_PAGES + WORLD_PAGES) {
        size_t at = (step - STEP_PAGES) * MST_PAGE_BYTES;
        memcpy(reader->ram + at, (ram ? from->ram : from->shadow) + at, MST_PAGE_BYTES);
    } else if (step == STEP_PAGES + WORLD_PAGES) {
        r = check_pages(reader);
    } else {
        memcpy(reader->device, from->save + reader->world->save.device_off[record->device_slot], sizeof(reader->device));
        return mst_save_device_check(record, reader->device, &reader->why);
    }
    return r < 0 ? r : 1;
}

bool world_reader_true(const struct world_reader *reader)
{
    const struct world_truth *truth;

    if (reader->record.seq >= WORLD_SEQS)
        return false;
    truth = &reader->world->truth[reader->record.seq];
    return truth->taken && memcmp(truth->ram, reader->ram, sizeof(truth->ram)) == 0 &&
           memcmp(truth->device, reader->device, sizeof(truth->device)) == 0;
}

uint64_t world_read(const struct world *world, const struct world_regions *from, int *ret_err)
{
    struct world_reader reader;
    int r;

    world_reader_begin(&reader, world, from);
    do {
        r = world_reader_step(&reader);
    } while (r == 1);
    *ret_err = r;
    if (r < 0) {
        ck_assert_msg(r == -ENODATA || r == -EBADMSG, "reader: %d %s", r, reader.why.text);
        return 0;
    }
    ck_assert_msg(world_reader_true(&reader), "accepted a checkpoint %lu that never was", (unsigned long)reader.record.seq);
    return reader.record.seq;
}
