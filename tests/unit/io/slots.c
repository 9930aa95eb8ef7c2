#include "coordinator/io/slots.h"

#include "shm/publish.h"
#include "shm/save.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#define RAM (UINT64_C(16) << 20)

static struct mst_status_area area, again;
static struct mst_slots_read got;

static struct mst_vm_slot slot_of(const char *name, uint32_t run_state)
{
    struct mst_vm_slot slot = {
        .run_state = run_state, .ram_bytes = RAM, .save_bytes = 5 << 20, .shadow_bytes = RAM, .delta_bytes = 5 << 20};

    memcpy(slot.vm, name, strlen(name));
    return slot;
}

static void publish(unsigned i, uint64_t epoch, const struct mst_vm_slot *slot)
{
    mst_pub_write(area.vms[i].info, epoch, 0x11, slot, sizeof(*slot));
}

/* A real checkpoint's record, made by the writer. */
static void checkpoint(unsigned i, uint64_t epoch)
{
    struct mst_save_layout save;
    struct mst_delta_layout delta;
    struct mst_save_map map = {.ram_bytes = RAM, .record = area.vms[i].save, .epoch = epoch, .instance = 0x11};
    struct mst_save_writer *writer;
    uint8_t *ram = calloc(1, RAM);
    uint64_t room;

    ck_assert_int_eq(mst_save_layout(RAM, &save), 0);
    map.delta_capacity = mst_delta_capacity(RAM);
    ck_assert_int_eq(mst_delta_layout(map.delta_capacity, &delta), 0);
    map.ram = ram;
    map.save = calloc(1, save.bytes);
    map.shadow = calloc(1, RAM);
    map.delta = calloc(1, delta.bytes);
    ck_assert_int_eq(mst_save_writer_new(&map, &writer), 0);
    memset(mst_save_device(writer, &room), 7, 100);
    ck_assert_int_eq(mst_save_commit_ram(writer, 100, 1000000, 1234, 99), 0);
    (void)mst_save_shadow_from_ram(writer);
    mst_save_writer_free(writer);
    free(ram);
    free(map.save);
    free(map.shadow);
    free(map.delta);
}

static void setup(void)
{
    static const uint8_t boot_id[16] = {1};
    struct mst_node_status status = {.node_id = 1, .health = MST_HEALTH_OK, .machine_checks = 3, .memory_used_bytes = 77};

    memset(&area, 0, sizeof(area));
    mst_status_init(&area, "lab", "n1", 1, 0x11, boot_id, 1000);
    mst_pub_write(area.node, 0, 0x11, &status, sizeof(status));
}

static void parse(bool final)
{
    again = area;
    mst_slots_parse(&area, &again, MST_VMS_PER_NODE, final, &got);
}

START_TEST(slots_in_use_are_found_with_their_saves)
{
    struct mst_vm_slot a = slot_of("web01", MST_RUN_RUNNING);
    struct mst_vm_slot b = slot_of("web02", MST_RUN_DEAD);

    publish(3, 5, &a);
    checkpoint(3, 5);
    publish(9, 2, &b);
    parse(false);
    ck_assert_uint_eq(got.count, 2);
    ck_assert_uint_eq(got.unsure + got.refused, 0);
    ck_assert_str_eq(got.slots[0].vm, "web01");
    ck_assert_uint_eq(got.slots[0].epoch, 5);
    ck_assert_uint_gt(got.slots[0].save_seq, 0);
    ck_assert_uint_eq(got.slots[0].save_epoch, 5);
    ck_assert_uint_eq(got.slots[0].bytes, 2 * RAM + (10 << 20));
    ck_assert_uint_eq(got.slots[1].run_state, MST_RUN_DEAD);
    ck_assert_uint_eq(got.slots[1].save_seq, 0);
    ck_assert(got.info.known);
    ck_assert_uint_eq(got.info.machine_checks, 3);
}
END_TEST

START_TEST(an_image_is_told_with_its_log_and_has_no_save_of_its_own)
{
    struct mst_vm_slot image = slot_of("web01", MST_RUN_IMAGE);

    image.ram_bytes = 0;
    image.delta_bytes = RAM + (RAM >> 9);
    image.image_state = 2;
    image.log_id = UINT64_MAX;
    image.standby = MST_STANDBY_WARM;
    publish(3, 5, &image);
    checkpoint(3, 5);
    parse(false);
    ck_assert_uint_eq(got.count, 1);
    ck_assert_uint_eq(got.slots[0].image_state, 2);
    ck_assert_uint_eq(got.slots[0].log_id, UINT64_MAX);
    ck_assert_uint_eq(got.slots[0].save_seq, 0);
    ck_assert(!got.slots[0].save_corrupt);
    ck_assert_uint_eq(got.slots[0].standby, MST_SLOT_STANDBY_WARM);
    image.standby = MST_STANDBYS; /* of a later version: not shown */
    publish(3, 5, &image);
    parse(false);
    ck_assert_uint_eq(got.count, 1);
    ck_assert_uint_eq(got.slots[0].standby, MST_SLOT_STANDBY_NONE);
    image.image_state = 7;
    publish(3, 5, &image);
    parse(true);
    ck_assert_uint_eq(got.count, 0);
    ck_assert_uint_eq(got.refused, 1);
}
END_TEST

START_TEST(a_delta_for_all_pages_is_known_by_its_size)
{
    struct mst_vm_slot a = slot_of("web01", MST_RUN_RUNNING);
    struct mst_delta_layout delta;

    ck_assert_int_eq(mst_delta_layout((uint32_t)(RAM / MST_PAGE_BYTES), &delta), 0);
    a.delta_bytes = delta.bytes;
    publish(3, 5, &a);
    checkpoint(3, 5);
    parse(true);
    ck_assert_uint_gt(got.slots[0].save_seq, 0);
}
END_TEST

static void record_of(unsigned i, uint64_t epoch, const struct mst_save_record *record)
{
    mst_pub_write(area.vms[i].save, epoch, 0x11, record, sizeof(*record));
}

START_TEST(what_a_node_says_of_its_checkpoints_is_told_also_without_one)
{
    struct mst_vm_slot a = slot_of("web01", MST_RUN_RUNNING);
    struct mst_save_record record = {.interval_ms = 480,
                                     .pace = MST_SAVE_PACE_MIRROR,
                                     .trouble = MST_SAVE_TROUBLE_LATE,
                                     .trouble_wall_ms = 77,
                                     .dirty_pages = 1000,
                                     .pause_p50_us = 4000,
                                     .pause_p99_us = 4000};

    publish(3, 5, &a);
    record_of(3, 5, &record);
    parse(true);
    ck_assert_uint_eq(got.slots[0].save_seq, 0);
    ck_assert(!got.slots[0].save_corrupt);
    ck_assert_uint_eq(got.slots[0].interval_ms, 480);
    ck_assert_uint_eq(got.slots[0].pace, MST_SLOT_PACE_MIRROR);
    ck_assert_uint_eq(got.slots[0].trouble, MST_SLOT_TROUBLE_LATE);
    ck_assert_uint_eq(got.slots[0].trouble_wall_ms, 77);
    ck_assert_uint_eq(got.slots[0].dirty_pages, 1000);
    ck_assert_uint_eq(got.slots[0].pause_p50_us, 4000);
    ck_assert_uint_eq(got.slots[0].pause_p99_us, 4000);
    record_of(3, 4, &record); /* another epoch's */
    parse(true);
    ck_assert_uint_eq(got.slots[0].interval_ms, 0);
}
END_TEST

START_TEST(what_is_not_known_here_of_checkpoints_is_not_told)
{
    struct mst_vm_slot a = slot_of("web01", MST_RUN_RUNNING);
    struct mst_save_record record = {.interval_ms = 480, .pace = MST_SLOT_PACES};

    publish(3, 5, &a);
    record_of(3, 5, &record);
    parse(true);
    ck_assert_uint_eq(got.slots[0].interval_ms, 0);
    record = (struct mst_save_record){.interval_ms = 480, .trouble = MST_SLOT_TROUBLES};
    record_of(3, 5, &record);
    parse(true);
    ck_assert_uint_eq(got.slots[0].interval_ms, 0);
    ck_assert_uint_eq(got.slots[0].trouble, 0);
    record = (struct mst_save_record){.interval_ms = 480, .pause_p50_us = 9, .pause_p99_us = 8};
    record_of(3, 5, &record);
    parse(true);
    ck_assert_uint_eq(got.slots[0].pause_p50_us, 0);
    record = (struct mst_save_record){.interval_ms = 480,
                                      .dirty_pages = UINT64_MAX / MST_PAGE_BYTES + 1}; /* in bytes it would be few */
    record_of(3, 5, &record);
    parse(true);
    ck_assert_uint_eq(got.slots[0].dirty_pages, 0);
    ck_assert_uint_eq(got.slots[0].interval_ms, 0);
    ck_assert_uint_eq(got.refused, 0);
}
END_TEST

START_TEST(a_save_of_another_epoch_belongs_to_somebody_else)
{
    struct mst_vm_slot a = slot_of("web01", MST_RUN_RUNNING);

    publish(0, 6, &a);
    checkpoint(0, 5);
    parse(true);
    ck_assert_uint_eq(got.count, 1);
    ck_assert_uint_eq(got.slots[0].save_seq, 0);
    ck_assert(!got.slots[0].save_corrupt);
}
END_TEST

START_TEST(an_overwritten_slot_is_left_out_and_counted_as_damage)
{
    struct mst_vm_slot a = slot_of("web01", MST_RUN_RUNNING), b = slot_of("web02", MST_RUN_RUNNING);

    publish(0, 5, &a);
    publish(1, 5, &b);
    memset(area.vms[0].info, 0x5a, sizeof(area.vms[0].info));
    parse(false);
    ck_assert_uint_eq(got.damaged, 0);
    parse(true);
    ck_assert_uint_eq(got.count, 1);
    ck_assert_str_eq(got.slots[0].vm, "web02");
    ck_assert_uint_eq(got.damaged, 1);
}
END_TEST

START_TEST(a_record_that_changed_between_the_copies_is_unsure)
{
    struct mst_vm_slot a = slot_of("web01", MST_RUN_RUNNING);

    publish(0, 5, &a);
    publish(0, 5, &a);
    again = area;
    again.vms[0].info[0][40] ^= 1; /* both slots: whichever was picked */
    again.vms[0].info[1][40] ^= 1;
    for (unsigned i = 0; i < 2; i++)
        ((struct mst_pub_head *)again.vms[0].info[i])->version += 2;
    mst_slots_parse(&area, &again, MST_VMS_PER_NODE, false, &got);
    ck_assert_uint_eq(got.count, 0);
    ck_assert_uint_eq(got.unsure, 1);
}
END_TEST

START_TEST(a_record_that_seemed_never_written_and_then_is_there_is_unsure)
{
    struct mst_vm_slot a = slot_of("web01", MST_RUN_RUNNING);

    publish(0, 5, &a);
    again = area;
    memset(area.vms[0].info, 0, sizeof(area.vms[0].info));
    mst_slots_parse(&area, &again, MST_VMS_PER_NODE, false, &got);
    ck_assert_uint_eq(got.count, 0);
    ck_assert_uint_eq(got.unsure, 1);
}
END_TEST

START_TEST(a_damaged_save_record_is_corrupt_only_when_no_other_copy_comes)
{
    struct mst_vm_slot a = slot_of("web01", MST_RUN_RUNNING);

    publish(0, 5, &a);
    checkpoint(0, 5);
    area.vms[0].save[0][60] ^= 1;
    area.vms[0].save[1][60] ^= 1;
    parse(false);
    ck_assert_uint_eq(got.unsure, 1);
    ck_assert(!got.slots[0].save_corrupt);
    parse(true);
    ck_assert(got.slots[0].save_corrupt);
    ck_assert_uint_eq(got.slots[0].save_seq, 0);
}
END_TEST

START_TEST(a_save_in_ram_counts_only_while_the_guest_stands)
{
    struct mst_save_record record = {
        .seq = 4, .source = MST_SAVE_RAM, .device_bytes = 100, .page_bytes = MST_PAGE_BYTES, .ram_bytes = RAM};
    struct mst_vm_slot a = slot_of("web01", MST_RUN_RUNNING);

    mst_pub_write(area.vms[0].save, 5, 0x11, &record, sizeof(record));
    publish(0, 5, &a);
    parse(true);
    ck_assert_uint_eq(got.slots[0].save_seq, 0);
    a.run_state = MST_RUN_FENCED;
    publish(0, 5, &a);
    parse(true);
    ck_assert_uint_eq(got.slots[0].save_seq, 4);
}
END_TEST

START_TEST(whole_records_that_say_what_cannot_be_are_refused)
{
    struct mst_vm_slot bad = slot_of("web01", 9);
    struct mst_vm_slot unnamed = slot_of("", MST_RUN_RUNNING);
    struct mst_vm_slot endless = slot_of("web01", MST_RUN_RUNNING);
    struct mst_vm_slot huge = slot_of("web01", MST_RUN_RUNNING);
    struct mst_save_record record = {.seq = 4, .source = 77, .device_bytes = UINT64_MAX, .page_bytes = 1, .ram_bytes = RAM};
    struct mst_vm_slot good = slot_of("web02", MST_RUN_RUNNING);

    memset(endless.vm, 'a', sizeof(endless.vm));
    huge.ram_bytes = UINT64_MAX;
    publish(0, 1, &bad);
    publish(1, 1, &unnamed);
    publish(2, 1, &endless);
    publish(3, 1, &huge);
    publish(4, 1, &good);
    mst_pub_write(area.vms[4].save, 1, 0x11, &record, sizeof(record));
    parse(true);
    ck_assert_uint_eq(got.count, 1);
    ck_assert_str_eq(got.slots[0].vm, "web02");
    ck_assert(got.slots[0].save_corrupt);
    ck_assert_uint_eq(got.refused, 5);
}
END_TEST

/* Hostile input: any bytes at all, under the sanitizers. */
START_TEST(any_bytes_at_all_do_no_harm)
{
    struct mst_vm_slot a = slot_of("web01", MST_RUN_RUNNING);

    srand((unsigned)_i + 1);
    publish(0, 5, &a);
    checkpoint(0, 5);
    if (_i % 2 == 0) {
        for (size_t k = 0; k < sizeof(area); k++)
            ((uint8_t *)&area)[k] = (uint8_t)rand();
    } else {
        for (int k = 0; k < 300; k++)
            ((uint8_t *)&area.vms[0])[rand() % (int)sizeof(area.vms[0])] ^= (uint8_t)(1 << rand() % 8);
    }
    parse(_i % 3 == 0);
    ck_assert_uint_le(got.count, MST_VMS_PER_NODE);
    for (unsigned i = 0; i < got.count; i++)
        ck_assert_uint_lt(strnlen(got.slots[i].vm, MST_NAME_BYTES), MST_NAME_BYTES);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("slots");
    TCase *tcase = tcase_create("slots");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_add_checked_fixture(tcase, setup, NULL);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, slots_in_use_are_found_with_their_saves);
    tcase_add_test(tcase, an_image_is_told_with_its_log_and_has_no_save_of_its_own);
    tcase_add_test(tcase, a_delta_for_all_pages_is_known_by_its_size);
    tcase_add_test(tcase, what_a_node_says_of_its_checkpoints_is_told_also_without_one);
    tcase_add_test(tcase, what_is_not_known_here_of_checkpoints_is_not_told);
    tcase_add_test(tcase, a_save_of_another_epoch_belongs_to_somebody_else);
    tcase_add_test(tcase, an_overwritten_slot_is_left_out_and_counted_as_damage);
    tcase_add_test(tcase, a_record_that_changed_between_the_copies_is_unsure);
    tcase_add_test(tcase, a_record_that_seemed_never_written_and_then_is_there_is_unsure);
    tcase_add_test(tcase, a_damaged_save_record_is_corrupt_only_when_no_other_copy_comes);
    tcase_add_test(tcase, a_save_in_ram_counts_only_while_the_guest_stands);
    tcase_add_test(tcase, whole_records_that_say_what_cannot_be_are_refused);
    tcase_add_loop_test(tcase, any_bytes_at_all_do_no_harm, 0, 40);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
