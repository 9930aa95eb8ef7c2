#include "world.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct world world;
static int err;

static void open_local(void)
{
    world_open(&world, WORLD_LOCAL, 1);
    ck_assert_int_eq(mst_save_writer_new(&world.map, &world.writer), 0);
}

static void reattach(void)
{
    mst_save_writer_free(world.writer);
    world.writer = NULL;
    ck_assert_int_eq(mst_save_writer_attach(&world.map, &world.writer), 0);
}

START_TEST(writer_gets_its_shadow_while_the_guest_runs)
{
    struct mst_save_map map;

    world_open(&world, WORLD_LOCAL, 1);
    map = world.map;
    world.map.shadow = world.map.delta = NULL;
    ck_assert_int_eq(mst_save_writer_new(&world.map, &world.writer), 0);
    ck_assert_int_eq(mst_save_fill(world.writer, 0), -ENODATA);
    ck_assert_int_eq(mst_save_writer_rest(world.writer, &world.map), -EINVAL); /* still none */
    world_ram_checkpoint(&world);                                              /* RAM, withdrawn: as under protect none */
    ck_assert_uint_eq(mst_save_seq(world.writer), 1);

    world.map = map;
    ck_assert_int_eq(mst_save_writer_rest(world.writer, &world.map), 0);
    ck_assert_int_eq(mst_save_writer_rest(world.writer, &world.map), -EINVAL); /* once */
    world_full_checkpoint(&world);
    world_delta_checkpoint(&world);
    ck_assert_int_eq(mst_save_source(world.writer), MST_SAVE_SHADOW);
    ck_assert_uint_eq(mst_save_seq(world.writer), 3);
    reattach();
    ck_assert_uint_eq(mst_save_seq(world.writer), 3);
}
END_TEST

START_TEST(page_sum_is_the_low_half_of_xxh64)
{
    static uint8_t page[MST_PAGE_BYTES]; /* sums of the reference implementation's own program, xxhsum -H64 */

    ck_assert_uint_eq(mst_page_sum(page), 0x32d8bbdbu);
    memset(page, 0xa5, sizeof(page));
    ck_assert_uint_eq(mst_page_sum(page), 0x1501e8d0u);
}
END_TEST

START_TEST(sizes_of_ram_that_make_no_sense_are_refused)
{
    struct mst_save_layout layout;

    ck_assert_int_eq(mst_save_layout(0, &layout), -EINVAL);
    ck_assert_int_eq(mst_save_layout(4095, &layout), -EINVAL);
    ck_assert_int_eq(mst_save_layout(4097, &layout), -EINVAL);
    ck_assert_int_eq(mst_save_layout(UINT64_MAX, &layout), -EINVAL);
    ck_assert_int_eq(mst_save_layout((uint64_t)MST_VM_MEMORY_MIB_MAX * (1u << 20) + 4096, &layout), -EINVAL);
    ck_assert_int_eq(mst_save_layout((uint64_t)MST_VM_MEMORY_MIB_MAX * (1u << 20), &layout), 0);
    ck_assert_int_eq(mst_save_layout(4096, &layout), 0);
}
END_TEST

START_TEST(parts_of_the_save_area_do_not_overlap)
{
    static const uint64_t sizes[] = {4096, 4096 * 1024, 4096 * 1025, UINT64_C(16) << 20, UINT64_C(65536) << 20};

    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct mst_save_layout at;
        uint64_t table = sizes[i] / 4096 * 4;
        ck_assert_int_eq(mst_save_layout(sizes[i], &at), 0);
        ck_assert_uint_eq(at.device_off[0], 0);
        ck_assert_uint_ge(at.device_off[1], at.device_off[0] + MST_DEVICE_BYTES_MAX);
        ck_assert_uint_ge(at.shadow_sums_off, at.device_off[1] + MST_DEVICE_BYTES_MAX);
        ck_assert_uint_ge(at.ram_sums_off, at.shadow_sums_off + table);
        ck_assert_uint_ge(at.bytes, at.ram_sums_off + table);
        ck_assert_uint_eq(at.bytes % 4096 + at.ram_sums_off % 4096 + at.shadow_sums_off % 4096, 0);
    }
}
END_TEST

START_TEST(delta_is_a_quarter_of_ram_within_its_bounds)
{
    struct mst_delta_layout at;

    ck_assert_uint_eq(mst_delta_capacity(4096), 1);
    ck_assert_uint_eq(mst_delta_capacity(4096 * 255), 255);
    ck_assert_uint_eq(mst_delta_capacity(4096 * 300), 256);
    ck_assert_uint_eq(mst_delta_capacity(UINT64_C(16) << 20), 1024);
    ck_assert_uint_eq(mst_delta_capacity((uint64_t)MST_VM_MEMORY_MIB_MAX << 20), 4194304);
    ck_assert_int_eq(mst_delta_layout(0, &at), -EINVAL);
    ck_assert_int_eq(mst_delta_layout(UINT32_MAX, &at), -EINVAL);
    ck_assert_int_eq(mst_delta_layout(1025, &at), 0);
    ck_assert_uint_eq(at.data_off % 4096, 0);
    ck_assert_uint_ge(at.data_off, at.table_off + 1025 * sizeof(struct mst_delta_entry));
    ck_assert_uint_eq(at.bytes, at.data_off + 1025 * 4096);
}
END_TEST

START_TEST(map_without_its_regions_is_refused)
{
    struct mst_save_map map;
    struct mst_save_writer *writer;

    world_open(&world, WORLD_LOCAL, 1);
    map = world.map;
    map.shadow = NULL;
    ck_assert_int_eq(mst_save_writer_new(&map, &writer), -EINVAL);
    map = world.map;
    map.ram = map.shadow = map.delta = NULL;
    ck_assert_int_eq(mst_save_writer_new(&map, &writer), -EINVAL);
    map = world.map;
    map.record = NULL;
    ck_assert_int_eq(mst_save_writer_attach(&map, &writer), -EINVAL);
    map = world.map;
    map.delta_capacity = 0;
    ck_assert_int_eq(mst_save_writer_new(&map, &writer), -EINVAL);
    map = world.map;
    map.ram_bytes = 5000;
    ck_assert_int_eq(mst_save_writer_new(&map, &writer), -EINVAL);
    mst_save_writer_free(NULL);
    world_close(&world);
}
END_TEST

START_TEST(writer_without_ram_takes_pages_and_sums_from_elsewhere)
{
    struct mst_save_map map;
    struct mst_save_writer *writer;
    struct mst_save_record record;
    struct mst_pub_head head;
    uint8_t page[MST_PAGE_BYTES] = {9};
    uint64_t room, digest;

    world_open(&world, WORLD_LOCAL, 1);
    map = world.map;
    map.ram = NULL;
    ck_assert_int_eq(mst_save_writer_new(&map, &writer), 0);
    ck_assert_int_eq(mst_save_fill(writer, 0), -ENODATA);
    ck_assert_int_eq(mst_save_stage(writer, 0), -ENODATA);
    ck_assert_int_eq(mst_save_stage_if_changed(writer, 0), -ENODATA);
    ck_assert_int_eq(mst_save_commit_ram(writer, 1, 1, 2, 3), -ENODATA);
    ck_assert_int_eq(mst_save_number(writer, 0), -EINVAL);
    ck_assert_int_eq(mst_save_number(writer, 40), 0);
    for (unsigned i = 0; i < WORLD_PAGES; i++) {
        const uint8_t *from = world.at.ram + i * MST_PAGE_BYTES;
        ck_assert_int_eq(mst_save_commit_filled(writer, 1, 1, 2, 3), -EAGAIN);
        ck_assert_int_eq(mst_save_fill_page(writer, i, page, mst_page_sum(page)), 0);
        ck_assert_int_eq(mst_save_fill_page(writer, i, from, mst_page_sum(from)), 0);
    }
    ck_assert_int_eq(mst_save_fill_page(writer, WORLD_PAGES, page, 1), -ERANGE);
    digest = mst_save_next_digest(writer);
    memset(mst_save_device(writer, &room), 1, 10);
    ck_assert_int_eq(mst_save_commit_filled(writer, 10, 1, 2, 3), 0);
    ck_assert_uint_eq(mst_save_seq(writer), 40);
    ck_assert_int_eq(mst_pub_read(world.at.record, &head, &record, sizeof(record)), 0);
    ck_assert_uint_eq(record.ram_digest, digest);
    ck_assert_int_eq(memcmp(world.at.shadow, world.at.ram, WORLD_RAM_BYTES), 0);
    ck_assert_int_eq(mst_save_number(writer, 50), -EBUSY);
    ck_assert_int_eq(mst_save_fill_page(writer, 0, page, 1), -EBUSY);
    mst_save_begin(writer);
    for (unsigned i = 0; i < WORLD_CAPACITY; i++)
        ck_assert_int_eq(mst_save_stage_page(writer, i, page, mst_page_sum(page)), 0);
    ck_assert_int_eq(mst_save_stage_page(writer, 0, page, mst_page_sum(page)), 0); /* again, over its place */
    ck_assert_int_eq(mst_save_stage_page(writer, WORLD_CAPACITY, page, 1), -ENOSPC);
    digest = mst_save_next_digest(writer);
    ck_assert_int_eq(mst_save_commit(writer, 10, 1, 2, 3), 0);
    ck_assert_uint_eq(mst_save_next_digest(writer), digest);
    ck_assert_int_eq(mst_save_stage_page(writer, 0, page, 1), -EBUSY);
    mst_save_apply(writer);
    ck_assert_int_eq(mst_pub_read(world.at.record, &head, &record, sizeof(record)), 0);
    ck_assert_uint_eq(record.seq, 41);
    ck_assert_uint_eq(record.ram_digest, digest);
    ck_assert_int_eq(memcmp(world.at.shadow + 3 * MST_PAGE_BYTES, page, sizeof(page)), 0);
    mst_save_writer_free(writer);
    ck_assert_int_eq(mst_save_writer_attach(&map, &writer), 0);
    mst_save_writer_free(writer);
    world_close(&world);
}
END_TEST

START_TEST(first_checkpoint_is_a_full_one)
{
    open_local();
    ck_assert_uint_eq(mst_save_seq(world.writer), 0);
    ck_assert_int_eq(mst_save_source(world.writer), MST_SAVE_NONE);
    mst_save_begin(world.writer);
    ck_assert_int_eq(world_stage_all(&world), -ENOSPC);
    ck_assert_int_eq(mst_save_commit(world.writer, world_put_device(&world, 1), 1, 2, 3), -ENODATA);
    ck_assert_uint_eq(world_read(&world, &world.at, &err), 0);
    ck_assert_int_eq(err, -ENODATA);

    ck_assert_int_eq(world_ram_save(&world), 0);
    ck_assert_int_eq(mst_save_source(world.writer), MST_SAVE_RAM);
    ck_assert_uint_eq(world_read(&world, &world.at, &err), 1);
    ck_assert_int_eq(mst_save_commit(world.writer, 1, 1, 2, 3), -ENODATA); /* the shadow has not been made yet */
    ck_assert_uint_eq(mst_save_shadow_from_ram(world.writer), WORLD_PAGES);
    ck_assert_int_eq(mst_save_source(world.writer), MST_SAVE_SHADOW);
    world_continue(&world);
    for (unsigned page = 0; page < WORLD_PAGES; page++)
        world_dirty(&world, page);
    ck_assert_uint_eq(world_read(&world, &world.at, &err), 1);
    ck_assert_uint_eq(mst_save_shadow_from_ram(world.writer), 0); /* only after commit_ram */
    world_close(&world);
}
END_TEST

START_TEST(checkpoints_follow_one_another_and_the_last_is_read)
{
    open_local();
    world_full_checkpoint(&world);
    for (uint64_t seq = 2; seq < 100; seq++) {
        world_delta_checkpoint(&world);
        ck_assert_uint_eq(mst_save_seq(world.writer), seq);
        ck_assert_uint_eq(world_read(&world, &world.at, &err), seq);
    }
    world_close(&world);
}
END_TEST

START_TEST(record_says_when_and_how_long)
{
    struct mst_save_record record;
    struct mst_pub_head head;

    open_local();
    world_full_checkpoint(&world);
    world_stop(&world);
    world_note(&world, 2);
    mst_save_begin(world.writer);
    ck_assert_int_ge(world_stage_all(&world), 0);
    ck_assert_int_eq(mst_save_commit(world.writer, world_put_device(&world, 2), 4000000, 1700000000123, 987654321), 0);
    ck_assert_int_eq(mst_pub_read(world.at.record, &head, &record, sizeof(record)), 0);
    ck_assert_uint_eq(head.epoch, 7);
    ck_assert_uint_eq(head.instance, 99);
    ck_assert_uint_eq(record.pause_ns, 4000000);
    ck_assert_uint_eq(record.taken_wall_ms, 1700000000123);
    ck_assert_uint_eq(record.taken_boot_ns, 987654321);
    world_close(&world);
}
END_TEST

START_TEST(note_rides_on_every_record_and_changes_no_checkpoint)
{
    struct mst_save_note note = {.interval_ms = 120,
                                 .pace = MST_SAVE_PACE_STALL,
                                 .trouble = MST_SAVE_TROUBLE_LATE,
                                 .trouble_wall_ms = 1700000000456,
                                 .dirty_pages = UINT64_C(1) << 40,
                                 .pause_p50_us = 4000,
                                 .pause_p99_us = 9000};
    struct mst_save_record before, record;
    struct mst_pub_head head;

    open_local();
    world_full_checkpoint(&world);
    world_stop(&world);
    world_note(&world, 2);
    mst_save_note(world.writer, &note, false);
    ck_assert_int_eq(mst_pub_read(world.at.record, &head, &record, sizeof(record)), 0);
    ck_assert_uint_eq(record.interval_ms, 0); /* not yet */
    mst_save_begin(world.writer);
    ck_assert_int_ge(world_stage_all(&world), 0);
    ck_assert_int_eq(mst_save_commit(world.writer, world_put_device(&world, 2), 4000000, 1, 2), 0);
    ck_assert_int_eq(mst_pub_read(world.at.record, &head, &before, sizeof(before)), 0);
    ck_assert_uint_eq(before.interval_ms, 120);
    ck_assert_uint_eq(before.pace, MST_SAVE_PACE_STALL);
    ck_assert_uint_eq(before.trouble, MST_SAVE_TROUBLE_LATE);
    ck_assert_uint_eq(before.trouble_wall_ms, 1700000000456);
    ck_assert_uint_eq(before.dirty_pages, UINT64_C(1) << 40);
    ck_assert_uint_eq(before.pause_p50_us, 4000);
    ck_assert_uint_eq(before.pause_p99_us, 9000);
    ck_assert_uint_eq(before.pages, before.delta_pages);
    ck_assert_uint_gt(before.pages, 0);
    note = (struct mst_save_note){.interval_ms = 121};
    mst_save_note(world.writer, &note, true); /* the delta is still needed */
    ck_assert_int_eq(mst_pub_read(world.at.record, &head, &record, sizeof(record)), 0);
    ck_assert_uint_eq(record.interval_ms, 121);
    record.interval_ms = before.interval_ms;
    record.pace = before.pace;
    record.trouble = before.trouble;
    record.trouble_wall_ms = before.trouble_wall_ms;
    record.dirty_pages = before.dirty_pages;
    record.pause_p50_us = before.pause_p50_us;
    record.pause_p99_us = before.pause_p99_us;
    ck_assert_mem_eq(&record, &before, sizeof(record));
    ck_assert_uint_eq(world_read(&world, &world.at, &err), 2);
    world_close(&world);
}
END_TEST

START_TEST(page_staged_again_takes_its_old_place)
{
    open_local();
    world_full_checkpoint(&world);
    mst_save_begin(world.writer);
    for (int i = 0; i < 20; i++) {
        world_dirty(&world, 3);
        ck_assert_int_eq(mst_save_stage(world.writer, 3), 0);
        ck_assert_uint_eq(mst_save_staged(world.writer), 1);
    }
    world_dirty(&world, 3);
    ck_assert_int_eq(mst_save_stage_if_changed(world.writer, 3), 1);
    ck_assert_uint_eq(mst_save_staged(world.writer), 1);
    world_close(&world);
}
END_TEST

START_TEST(page_equal_to_the_shadow_is_not_staged)
{
    open_local();
    world_full_checkpoint(&world);
    world_delta_checkpoint(&world);
    world_stop(&world);
    mst_save_begin(world.writer);
    ck_assert_int_eq(mst_save_stage_if_changed(world.writer, 7), 0);
    ck_assert_uint_eq(mst_save_staged(world.writer), 0);
    ck_assert_int_eq(mst_save_stage(world.writer, 7), 0);
    ck_assert_int_eq(mst_save_stage_if_changed(world.writer, 7), 1); /* staged before: brought up to date whatever it is */
    world_close(&world);
}
END_TEST

START_TEST(page_that_became_equal_to_the_shadow_again_is_saved_as_it_is)
{
    uint8_t old[MST_PAGE_BYTES];

    open_local();
    world_full_checkpoint(&world);
    world_delta_checkpoint(&world);
    memcpy(old, world.at.shadow + 5 * MST_PAGE_BYTES, sizeof(old));
    mst_save_begin(world.writer);
    world_dirty(&world, 5);
    ck_assert_int_eq(mst_save_stage_if_changed(world.writer, 5), 1);
    memcpy(world.at.ram + 5 * MST_PAGE_BYTES, old, sizeof(old));
    world_stop(&world);
    ck_assert_int_eq(world_stage_all(&world), 0);
    world_note(&world, 3);
    ck_assert_int_eq(mst_save_commit(world.writer, world_put_device(&world, 3), 1, 2, 3), 0);
    ck_assert_uint_eq(world_read(&world, &world.at, &err), 3);
    mst_save_apply(world.writer);
    ck_assert_uint_eq(world_read(&world, &world.at, &err), 3);
    world_close(&world);
}
END_TEST

START_TEST(full_delta_takes_no_more_pages_but_old_ones_again)
{
    open_local();
    world_full_checkpoint(&world);
    mst_save_begin(world.writer);
    for (unsigned page = 0; page < WORLD_CAPACITY; page++)
        ck_assert_int_eq(mst_save_stage(world.writer, page), 0);
    ck_assert_int_eq(mst_save_stage(world.writer, WORLD_CAPACITY), -ENOSPC);
    ck_assert_int_eq(mst_save_stage(world.writer, 0), 0);
    ck_assert_uint_eq(mst_save_staged(world.writer), WORLD_CAPACITY);
    ck_assert_int_eq(mst_save_stage(world.writer, WORLD_PAGES), -ERANGE);
    ck_assert_int_eq(mst_save_stage_if_changed(world.writer, UINT64_MAX), -ERANGE);
    world_close(&world);
}
END_TEST

START_TEST(abandoned_checkpoint_leaves_nothing_in_the_next_one)
{
    open_local();
    world_full_checkpoint(&world);
    mst_save_begin(world.writer);
    world_dirty(&world, 6);
    ck_assert_int_eq(mst_save_stage(world.writer, 6), 0);
    mst_save_begin(world.writer);
    ck_assert_uint_eq(mst_save_staged(world.writer), 0);
    ck_assert_int_eq(mst_save_stage(world.writer, 6), 0);
    ck_assert_uint_eq(mst_save_staged(world.writer), 1);
    world_close(&world);
}
END_TEST

START_TEST(delta_that_readers_need_is_not_touched)
{
    open_local();
    world_full_checkpoint(&world);
    mst_save_begin(world.writer);
    world_dirty(&world, 1);
    world_stop(&world);
    ck_assert_int_eq(world_stage_all(&world), 0);
    world_note(&world, 2);
    ck_assert_int_eq(mst_save_commit(world.writer, world_put_device(&world, 2), 1, 2, 3), 0);
    ck_assert_int_eq(mst_save_stage(world.writer, 2), -EBUSY);
    ck_assert_int_eq(mst_save_stage_if_changed(world.writer, 1), -EBUSY);
    ck_assert_int_eq(mst_save_commit(world.writer, 1, 1, 2, 3), -EBUSY);
    ck_assert_uint_eq(mst_save_staged(world.writer), 0);
    ck_assert_uint_eq(world_read(&world, &world.at, &err), 2);
    mst_save_begin(world.writer); /* settles first */
    ck_assert_int_eq(mst_save_stage(world.writer, 2), 0);
    ck_assert_uint_eq(world_read(&world, &world.at, &err), 2);
    world_close(&world);
}
END_TEST

START_TEST(device_state_of_no_or_too_many_bytes_is_refused)
{
    open_local();
    world_full_checkpoint(&world);
    ck_assert_int_eq(mst_save_commit(world.writer, 0, 1, 2, 3), -EMSGSIZE);
    ck_assert_int_eq(mst_save_commit(world.writer, MST_DEVICE_BYTES_MAX + 1, 1, 2, 3), -EMSGSIZE);
    ck_assert_int_eq(mst_save_commit_ram(world.writer, 0, 1, 2, 3), -EMSGSIZE);
    ck_assert_int_eq(mst_save_commit_ram(world.writer, UINT64_MAX, 1, 2, 3), -EMSGSIZE);
    ck_assert_uint_eq(world_read(&world, &world.at, &err), 1);
    world_close(&world);
}
END_TEST

START_TEST(checkpoint_without_a_changed_page_is_one)
{
    open_local();
    world_full_checkpoint(&world);
    world_delta_checkpoint(&world);
    world_stop(&world);
    memcpy(world.at.ram, world.at.shadow, WORLD_RAM_BYTES);
    mst_save_begin(world.writer);
    ck_assert_int_eq(world_stage_all(&world), 0);
    ck_assert_uint_eq(mst_save_staged(world.writer), 0);
    world_note(&world, 3);
    ck_assert_int_eq(mst_save_commit(world.writer, world_put_device(&world, 3), 1, 2, 3), 0);
    ck_assert_uint_eq(world_read(&world, &world.at, &err), 3);
    mst_save_apply(world.writer);
    ck_assert_uint_eq(world_read(&world, &world.at, &err), 3);
    world_close(&world);
}
END_TEST

START_TEST(withdrawn_save_is_gone_and_sequence_goes_on)
{
    world_open(&world, WORLD_NONE, 1);
    ck_assert_int_eq(mst_save_writer_new(&world.map, &world.writer), 0);
    mst_save_begin(world.writer);
    ck_assert_int_eq(mst_save_stage(world.writer, 0), -ENODATA);
    ck_assert_int_eq(world_ram_save(&world), 0);
    ck_assert_int_eq(mst_save_commit(world.writer, 1, 1, 2, 3), -ENODATA);
    ck_assert_uint_eq(mst_save_shadow_from_ram(world.writer), 0);
    ck_assert_uint_eq(world_read(&world, &world.at, &err), 1);
    mst_save_withdraw(world.writer);
    world_continue(&world);
    ck_assert_uint_eq(world_read(&world, &world.at, &err), 0);
    ck_assert_int_eq(err, -ENODATA);
    for (int slot = 0; slot < 2; slot++) { /* also when the newest record is damaged */
        world.at.record[slot][100] ^= 1;
        ck_assert_uint_eq(world_read(&world, &world.at, &err), 0);
        world.at.record[slot][100] ^= 1;
    }
    reattach();
    ck_assert_uint_eq(mst_save_seq(world.writer), 1);
    ck_assert_int_eq(mst_save_source(world.writer), MST_SAVE_NONE);
    ck_assert_int_eq(world_ram_save(&world), 0);
    ck_assert_uint_eq(world_read(&world, &world.at, &err), 2);
    world_close(&world);
}
END_TEST

START_TEST(new_agent_goes_on_where_the_old_one_stopped)
{
    open_local();
    world_full_checkpoint(&world);
    for (uint64_t seq = 2; seq < 20; seq++) {
        world_delta_checkpoint(&world);
        reattach();
        ck_assert_uint_eq(mst_save_seq(world.writer), seq);
        ck_assert_int_eq(mst_save_source(world.writer), MST_SAVE_SHADOW);
        ck_assert_uint_eq(world_read(&world, &world.at, &err), seq);
    }
    world_close(&world);
}
END_TEST

START_TEST(new_agent_finds_the_guest_stopped_inside_a_full_checkpoint)
{
    open_local();
    world_full_checkpoint(&world);
    ck_assert_int_eq(world_ram_save(&world), 0);
    reattach();
    ck_assert_int_eq(mst_save_source(world.writer), MST_SAVE_RAM);
    ck_assert_uint_eq(mst_save_seq(world.writer), 2);
    mst_save_shadow_from_ram(world.writer);
    world_continue(&world);
    world_delta_checkpoint(&world);
    ck_assert_uint_eq(world_read(&world, &world.at, &err), 3);
    world_close(&world);
}
END_TEST

static void attach_refused(int want)
{
    struct mst_save_writer *writer;

    ck_assert_int_eq(mst_save_writer_attach(&world.map, &writer), want);
}

START_TEST(attach_refuses_what_does_not_check)
{
    uint32_t *sums;

    world_open(&world, WORLD_LOCAL, 1);
    attach_refused(-ENODATA);
    ck_assert_int_eq(mst_save_writer_new(&world.map, &world.writer), 0);
    world_full_checkpoint(&world);
    world.map.epoch++;
    attach_refused(-EBADMSG);
    world.map.epoch--;
    world.map.instance++;
    attach_refused(-EBADMSG);
    world.map.instance--;
    sums = (uint32_t *)(void *)(world.at.save + world.save.shadow_sums_off);
    sums[2] ^= 1;
    attach_refused(-EBADMSG);
    sums[2] ^= 1;

    mst_save_begin(world.writer);
    world_dirty(&world, 1);
    world_stop(&world);
    ck_assert_int_eq(world_stage_all(&world), 0);
    ck_assert_int_eq(mst_save_commit(world.writer, world_put_device(&world, 2), 1, 2, 3), 0);
    world.at.delta[world.delta.data_off + 10] ^= 1;
    attach_refused(-EBADMSG);
    world.at.delta[world.delta.data_off + 10] ^= 1;
    world.at.delta[world.delta.table_off] ^= 1;
    attach_refused(-EBADMSG);
    world.at.delta[world.delta.table_off] ^= 1;
    memset(world.at.record, 0xee, 2 * MST_PUB_SLOT_BYTES);
    attach_refused(-EBADMSG);
    world_close(&world);
}
END_TEST

/* --- reading: hostile input --- */

static struct mst_save_record good_record(void)
{
    return (struct mst_save_record){
        .seq = 5,
        .source = MST_SAVE_SHADOW,
        .device_slot = 1,
        .device_bytes = 100,
        .page_bytes = MST_PAGE_BYTES,
        .ram_bytes = WORLD_RAM_BYTES,
        .delta_pages = 2,
    };
}

static int check_record(struct mst_save_record record)
{
    struct mst_why why = {.text = ""};
    int r = mst_save_record_check(&record, WORLD_RAM_BYTES, WORLD_CAPACITY, &why);

    ck_assert((r == 0) == (why.text[0] == '\0'));
    return r;
}

#define CHECK_WITH(field, value)                                                                                                 \
    __extension__({                                                                                                              \
        struct mst_save_record record_ = good_record();                                                                          \
        record_.field = value;                                                                                                   \
        check_record(record_);                                                                                                   \
    })

START_TEST(record_that_does_not_fit_the_vm_is_refused_with_the_reason)
{
    struct mst_save_record record;

    ck_assert_int_eq(check_record(good_record()), 0);
    ck_assert_int_eq(CHECK_WITH(source, MST_SAVE_NONE), -ENODATA);
    ck_assert_int_eq(CHECK_WITH(source, 3), -EBADMSG);
    ck_assert_int_eq(CHECK_WITH(source, MST_SAVE_RAM), -EBADMSG); /* with a delta */
    ck_assert_int_eq(CHECK_WITH(seq, 0), -EBADMSG);
    ck_assert_int_eq(CHECK_WITH(page_bytes, 8192), -EBADMSG);
    ck_assert_int_eq(CHECK_WITH(ram_bytes, WORLD_RAM_BYTES + 4096), -EBADMSG);
    ck_assert_int_eq(CHECK_WITH(device_slot, 2), -EBADMSG);
    ck_assert_int_eq(CHECK_WITH(device_bytes, 0), -EBADMSG);
    ck_assert_int_eq(CHECK_WITH(device_bytes, MST_DEVICE_BYTES_MAX + 1), -EBADMSG);
    ck_assert_int_eq(CHECK_WITH(device_bytes, UINT64_MAX), -EBADMSG);
    ck_assert_int_eq(CHECK_WITH(delta_pages, WORLD_CAPACITY + 1), -EBADMSG);
    ck_assert_int_eq(CHECK_WITH(delta_pages, WORLD_CAPACITY), 0);
    record = good_record();
    record.ram_bytes = 0;
    ck_assert_int_eq(mst_save_record_check(&record, 0, WORLD_CAPACITY, NULL), -EBADMSG);
}
END_TEST

static int check_table(struct mst_save_record *record, const struct mst_delta_entry *table)
{
    struct mst_why why;

    record->delta_table_crc32c = mst_crc32c(table, record->delta_pages * sizeof(*table));
    return mst_delta_table_check(record, table, &why);
}

START_TEST(delta_table_with_wrong_pages_or_sum_is_refused)
{
    struct mst_delta_entry table[2] = {{.page = 1}, {.page = WORLD_PAGES - 1}};
    struct mst_save_record record = good_record();

    ck_assert_int_eq(check_table(&record, table), 0);
    table[1].sum ^= 1;
    ck_assert_int_eq(mst_delta_table_check(&record, table, NULL), -EBADMSG);
    table[1].page = WORLD_PAGES;
    ck_assert_int_eq(check_table(&record, table), -EBADMSG);
    table[1].page = UINT32_MAX;
    ck_assert_int_eq(check_table(&record, table), -EBADMSG);
    table[1].page = 1;
    ck_assert_int_eq(check_table(&record, table), -EBADMSG);
    record.delta_pages = 0;
    ck_assert_int_eq(check_table(&record, NULL), 0);
}
END_TEST

START_TEST(overlay_with_a_wrong_page_leaves_ram_alone)
{
    static uint8_t ram[WORLD_RAM_BYTES], data[2 * MST_PAGE_BYTES];
    struct mst_delta_entry table[2] = {{.page = 7}, {.page = 2}};
    struct mst_save_record record = good_record();
    struct mst_why why;

    memset(data, 0x11, MST_PAGE_BYTES);
    memset(data + MST_PAGE_BYTES, 0x22, MST_PAGE_BYTES);
    table[0].sum = mst_page_sum(data);
    table[1].sum = mst_page_sum(data + MST_PAGE_BYTES) ^ 1;
    ck_assert_int_eq(mst_delta_overlay(&record, table, data, ram, &why), -EBADMSG);
    ck_assert_ptr_nonnull(strstr(why.text, "page 2"));
    for (size_t i = 0; i < sizeof(ram); i++)
        ck_assert_uint_eq(ram[i], 0);
    table[1].sum ^= 1;
    ck_assert_int_eq(mst_delta_overlay(&record, table, data, ram, &why), 0);
    ck_assert_uint_eq(ram[7 * MST_PAGE_BYTES], 0x11);
    ck_assert_uint_eq(ram[2 * MST_PAGE_BYTES + 4095], 0x22);
    ck_assert_uint_eq(ram[3 * MST_PAGE_BYTES], 0);
    table[0].page = WORLD_PAGES; /* not checked before, and still nothing is written outside */
    ck_assert_int_eq(mst_delta_overlay(&record, table, data, ram, &why), -EBADMSG);
}
END_TEST

START_TEST(first_wrong_page_is_named)
{
    uint32_t sums[WORLD_PAGES];
    static uint8_t ram[WORLD_RAM_BYTES];

    for (unsigned page = 0; page < WORLD_PAGES; page++) {
        ram[page * MST_PAGE_BYTES] = (uint8_t)page;
        sums[page] = mst_page_sum(ram + page * MST_PAGE_BYTES);
    }
    ck_assert_uint_eq(mst_pages_check(ram, sums, WORLD_PAGES), WORLD_PAGES);
    ck_assert_uint_eq(mst_pages_check(ram, sums, 0), 0);
    ram[6 * MST_PAGE_BYTES + 77] ^= 4;
    ram[3 * MST_PAGE_BYTES + 4095] ^= 4;
    ck_assert_uint_eq(mst_pages_check(ram, sums, WORLD_PAGES), 3);
}
END_TEST

START_TEST(digest_tells_pages_apart_and_joins_ranges)
{
    uint32_t sums[WORLD_PAGES] = {1, 2, 3, 4, 5, 6, 7, 8}, swapped[WORLD_PAGES] = {2, 1, 3, 4, 5, 6, 7, 8};
    uint64_t whole = mst_save_digest(sums, 0, WORLD_PAGES);

    ck_assert_uint_ne(whole, mst_save_digest(swapped, 0, WORLD_PAGES));
    ck_assert_uint_ne(whole, mst_save_digest(sums, 1, WORLD_PAGES));
    ck_assert_uint_eq(whole, mst_save_digest(sums, 0, 3) ^ mst_save_digest(sums + 3, 3, WORLD_PAGES - 3));
    for (unsigned page = 0; page < WORLD_PAGES; page++) {
        for (unsigned bit = 0; bit < 32; bit++) {
            sums[page] ^= 1u << bit;
            ck_assert_uint_ne(whole, mst_save_digest(sums, 0, WORLD_PAGES));
            sums[page] ^= 1u << bit;
        }
    }
}
END_TEST

START_TEST(any_wrong_byte_of_a_settled_checkpoint_is_noticed)
{
    open_local();
    world_full_checkpoint(&world);
    world_delta_checkpoint(&world);
    for (size_t at = 0; at < WORLD_RAM_BYTES; at += 61) {
        world.at.shadow[at] ^= 1;
        ck_assert_uint_eq(world_read(&world, &world.at, &err), 0);
        world.at.shadow[at] ^= 1;
    }
    for (size_t at = 0; at < WORLD_PAGES * 4; at++) {
        world.at.save[world.save.shadow_sums_off + at] ^= 1;
        ck_assert_uint_eq(world_read(&world, &world.at, &err), 0);
        world.at.save[world.save.shadow_sums_off + at] ^= 1;
    }
    ck_assert_uint_eq(world_read(&world, &world.at, &err), 2);
    world_close(&world);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("shm/save");
    TCase *tc = tcase_create("all");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, writer_gets_its_shadow_while_the_guest_runs);
    tcase_add_test(tc, page_sum_is_the_low_half_of_xxh64);
    tcase_add_test(tc, sizes_of_ram_that_make_no_sense_are_refused);
    tcase_add_test(tc, parts_of_the_save_area_do_not_overlap);
    tcase_add_test(tc, delta_is_a_quarter_of_ram_within_its_bounds);
    tcase_add_test(tc, map_without_its_regions_is_refused);
    tcase_add_test(tc, writer_without_ram_takes_pages_and_sums_from_elsewhere);
    tcase_add_test(tc, first_checkpoint_is_a_full_one);
    tcase_add_test(tc, checkpoints_follow_one_another_and_the_last_is_read);
    tcase_add_test(tc, record_says_when_and_how_long);
    tcase_add_test(tc, note_rides_on_every_record_and_changes_no_checkpoint);
    tcase_add_test(tc, page_staged_again_takes_its_old_place);
    tcase_add_test(tc, page_equal_to_the_shadow_is_not_staged);
    tcase_add_test(tc, page_that_became_equal_to_the_shadow_again_is_saved_as_it_is);
    tcase_add_test(tc, full_delta_takes_no_more_pages_but_old_ones_again);
    tcase_add_test(tc, abandoned_checkpoint_leaves_nothing_in_the_next_one);
    tcase_add_test(tc, delta_that_readers_need_is_not_touched);
    tcase_add_test(tc, device_state_of_no_or_too_many_bytes_is_refused);
    tcase_add_test(tc, checkpoint_without_a_changed_page_is_one);
    tcase_add_test(tc, withdrawn_save_is_gone_and_sequence_goes_on);
    tcase_add_test(tc, new_agent_goes_on_where_the_old_one_stopped);
    tcase_add_test(tc, new_agent_finds_the_guest_stopped_inside_a_full_checkpoint);
    tcase_add_test(tc, attach_refuses_what_does_not_check);
    tcase_add_test(tc, record_that_does_not_fit_the_vm_is_refused_with_the_reason);
    tcase_add_test(tc, delta_table_with_wrong_pages_or_sum_is_refused);
    tcase_add_test(tc, overlay_with_a_wrong_page_leaves_ram_alone);
    tcase_add_test(tc, first_wrong_page_is_named);
    tcase_add_test(tc, digest_tells_pages_apart_and_joins_ranges);
    tcase_add_test(tc, any_wrong_byte_of_a_settled_checkpoint_is_noticed);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
