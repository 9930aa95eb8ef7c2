#include "shm/publish.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

static struct mst_status_area area;
static const uint8_t boot_id[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

static void init(void)
{
    mst_status_init(&area, "lab", "n1", 3, 0x1122334455667788, boot_id, 1700000000000);
}

/* Sum put right again after a change, so that only the change is judged. */
static void seal(struct mst_superblock *super)
{
    super->crc32c = mst_crc32c(super, offsetof(struct mst_superblock, crc32c));
}

START_TEST(new_status_area_checks_and_says_who_it_is)
{
    struct mst_why why;

    init();
    ck_assert_int_eq(mst_superblock_check(&area.super, &why), 0);
    ck_assert_int_eq(memcmp(&area, "MNSTAYS1", 8), 0);
    ck_assert_str_eq(area.super.node, "n1");
    ck_assert_str_eq(area.super.cluster, "lab");
    ck_assert_uint_eq(area.super.instance, 0x1122334455667788);
    ck_assert_mem_eq(area.super.host_boot_id, boot_id, 16);
    ck_assert_uint_eq(area.super.area_bytes, sizeof(area));
}
END_TEST

START_TEST(longest_name_is_cut_and_terminated)
{
    char name[200];

    memset(name, 'a', sizeof(name));
    name[199] = '\0';
    mst_status_init(&area, name, name, 1, 1, boot_id, 0);
    ck_assert_int_eq(mst_superblock_check(&area.super, NULL), 0);
    ck_assert_uint_eq(strlen(area.super.node), MST_NAME_BYTES - 1);
}
END_TEST

START_TEST(one_wrong_bit_in_the_superblock_is_refused)
{
    for (unsigned bit = 0; bit < sizeof(area.super) * 8; bit++) {
        struct mst_superblock copy;
        init();
        copy = area.super;
        ((uint8_t *)&copy)[bit / 8] ^= (uint8_t)(1u << bit % 8);
        ck_assert_int_ne(mst_superblock_check(&copy, NULL), 0);
    }
}
END_TEST

START_TEST(hostile_superblock_with_a_right_sum_is_refused_with_the_reason)
{
    struct mst_superblock copy;
    struct mst_why why;

    init();
    copy = area.super;
    copy.layout_version = 2;
    seal(&copy);
    ck_assert_int_eq(mst_superblock_check(&copy, &why), -EPROTONOSUPPORT);
    ck_assert_ptr_nonnull(strstr(why.text, "version 2"));
    copy = area.super;
    copy.area_bytes = 4096;
    seal(&copy);
    ck_assert_int_eq(mst_superblock_check(&copy, &why), -EBADMSG);
    copy = area.super;
    memset(copy.node, 'x', sizeof(copy.node));
    seal(&copy);
    ck_assert_int_eq(mst_superblock_check(&copy, &why), -EBADMSG);
    copy = area.super;
    memset(copy.cluster, 'x', sizeof(copy.cluster));
    seal(&copy);
    ck_assert_int_eq(mst_superblock_check(&copy, &why), -EBADMSG);
    copy = area.super;
    copy.node_id = MST_NODE_ID_MAX + 1;
    seal(&copy);
    ck_assert_int_eq(mst_superblock_check(&copy, &why), -EBADMSG);
    copy.node_id = 0;
    seal(&copy);
    ck_assert_int_eq(mst_superblock_check(&copy, &why), -EBADMSG);
    memset(&copy, 0, sizeof(copy));
    ck_assert_int_eq(mst_superblock_check(&copy, &why), -EBADMSG);
}
END_TEST

START_TEST(beat_line_checks_and_a_torn_one_does_not)
{
    struct mst_beat_line value = {.keeper_beat = 5, .agent_beat = 6, .generation = 7, .instance = 8, .vms = 2}, before, torn;

    mst_beat_write(&area.beat, &value);
    before = area.beat;
    ck_assert_int_eq(mst_beat_check(&before), 0);
    ck_assert_uint_eq(before.keeper_beat, 5);
    value.keeper_beat = 6;
    value.agent_beat = 70000;
    value.vm_fault_flags = 1;
    mst_beat_write(&area.beat, &value);
    ck_assert_int_eq(mst_beat_check(&area.beat), 0);
    for (size_t cut = 0; cut <= sizeof(torn); cut++) { /* the first cut bytes are old */
        bool whole;
        memcpy(&torn, &area.beat, sizeof(torn));
        memcpy(&torn, &before, cut);
        whole = memcmp(&torn, &before, sizeof(torn)) == 0 || memcmp(&torn, &area.beat, sizeof(torn)) == 0;
        ck_assert_int_eq(mst_beat_check(&torn), whole ? 0 : -EBADMSG);
    }
    memset(&torn, 0, sizeof(torn));
    ck_assert_int_eq(mst_beat_check(&torn), -EBADMSG); /* never written */
}
END_TEST

static void append(unsigned from, unsigned to)
{
    for (unsigned i = from; i <= to; i++) {
        struct mst_fault_entry entry = {.fault_id = 1000 + i, .kind = i % 7};
        snprintf(entry.text, sizeof(entry.text), "fault %u", i);
        mst_fault_log_append(&area, &entry);
    }
}

START_TEST(fault_log_lists_newest_first)
{
    struct mst_fault_entry out[MST_FAULT_LOG_ENTRIES];

    init();
    ck_assert_uint_eq(mst_fault_log_list(area.faults, out, MST_FAULT_LOG_ENTRIES), 0);
    append(1, 3);
    ck_assert_uint_eq(mst_fault_log_list(area.faults, out, MST_FAULT_LOG_ENTRIES), 3);
    ck_assert_str_eq(out[0].text, "fault 3");
    ck_assert_uint_eq(out[0].sequence, 3);
    ck_assert_uint_eq(out[2].fault_id, 1001);
    ck_assert_uint_eq(mst_fault_log_list(area.faults, out, 2), 2);
    ck_assert_str_eq(out[1].text, "fault 2");
    ck_assert_uint_eq(mst_fault_log_list(area.faults, out, 0), 0);
}
END_TEST

START_TEST(fault_log_keeps_the_newest_entries)
{
    struct mst_fault_entry out[2 * MST_FAULT_LOG_ENTRIES];

    init();
    append(1, 200);
    ck_assert_uint_eq(mst_fault_log_list(area.faults, out, 2 * MST_FAULT_LOG_ENTRIES), MST_FAULT_LOG_ENTRIES);
    for (unsigned i = 0; i < MST_FAULT_LOG_ENTRIES; i++)
        ck_assert_uint_eq(out[i].sequence, 200 - i);
}
END_TEST

START_TEST(damaged_entries_are_left_out_and_counting_goes_on)
{
    struct mst_fault_entry out[MST_FAULT_LOG_ENTRIES];

    init();
    append(1, 70);
    area.faults[(70 - 1) % MST_FAULT_LOG_ENTRIES].text[3] ^= 1; /* a writer died inside it */
    append(71, 71);                                             /* takes its number again */
    ck_assert_uint_eq(mst_fault_log_list(area.faults, out, MST_FAULT_LOG_ENTRIES), MST_FAULT_LOG_ENTRIES);
    ck_assert_uint_eq(out[0].sequence, 70);
    ck_assert_str_eq(out[0].text, "fault 71");
    area.faults[10].kind ^= 1;
    ck_assert_uint_eq(mst_fault_log_list(area.faults, out, MST_FAULT_LOG_ENTRIES), MST_FAULT_LOG_ENTRIES - 1);
}
END_TEST

START_TEST(hostile_entries_with_right_sums_are_left_out)
{
    struct mst_fault_entry out[MST_FAULT_LOG_ENTRIES], *entry = &area.faults[1];

    init();
    append(1, 2);
    entry->sequence = 3; /* belongs elsewhere */
    entry->crc32c = mst_crc32c(entry, offsetof(struct mst_fault_entry, crc32c));
    ck_assert_uint_eq(mst_fault_log_list(area.faults, out, MST_FAULT_LOG_ENTRIES), 1);
    entry->sequence = 2;
    memset(entry->text, 'x', sizeof(entry->text));
    entry->crc32c = mst_crc32c(entry, offsetof(struct mst_fault_entry, crc32c));
    ck_assert_uint_eq(mst_fault_log_list(area.faults, out, MST_FAULT_LOG_ENTRIES), 1);
    memset(area.faults, 0xff, sizeof(area.faults));
    ck_assert_uint_eq(mst_fault_log_list(area.faults, out, MST_FAULT_LOG_ENTRIES), 0);
    memset(area.faults, 0, sizeof(area.faults));
    ck_assert_uint_eq(mst_fault_log_list(area.faults, out, MST_FAULT_LOG_ENTRIES), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("shm/status");
    TCase *tc = tcase_create("all");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, new_status_area_checks_and_says_who_it_is);
    tcase_add_test(tc, longest_name_is_cut_and_terminated);
    tcase_add_test(tc, one_wrong_bit_in_the_superblock_is_refused);
    tcase_add_test(tc, hostile_superblock_with_a_right_sum_is_refused_with_the_reason);
    tcase_add_test(tc, beat_line_checks_and_a_torn_one_does_not);
    tcase_add_test(tc, fault_log_lists_newest_first);
    tcase_add_test(tc, fault_log_keeps_the_newest_entries);
    tcase_add_test(tc, damaged_entries_are_left_out_and_counting_goes_on);
    tcase_add_test(tc, hostile_entries_with_right_sums_are_left_out);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
