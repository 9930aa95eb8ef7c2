#include "coordinator/core/detect.h"

#include <check.h>
#include <stdlib.h>

#define SILENT 3000u

/* Reads every 50 ms from *ms on, for span ms; counters move by the given steps. */
static void reads(struct mst_detect *d, uint64_t *ms, uint64_t span, uint64_t *keeper, uint64_t *agent, unsigned keeper_step,
                  unsigned agent_step)
{
    for (uint64_t end = *ms + span; *ms < end; *ms += 50) {
        *keeper += keeper_step;
        *agent += agent_step;
        mst_detect_read(d, *ms, *keeper, *agent);
    }
}

START_TEST(moving_counters_are_moving)
{
    struct mst_detect d = {0};
    uint64_t ms = 1000, keeper = 5, agent = 9;

    reads(&d, &ms, 10000, &keeper, &agent, 1, 1);
    ck_assert_int_eq(mst_detect_keeper(&d, SILENT), MST_LIFE_MOVING);
    ck_assert_int_eq(mst_detect_agent(&d, SILENT), MST_LIFE_MOVING);
}
END_TEST

START_TEST(frozen_needs_two_successful_reads_so_far_apart)
{
    struct mst_detect d = {0};

    mst_detect_read(&d, 1000, 1, 1);
    mst_detect_read(&d, 1050, 2, 2);
    ck_assert_int_eq(mst_detect_keeper(&d, SILENT), MST_LIFE_MOVING);
    mst_detect_read(&d, 4049, 2, 2);
    ck_assert_int_eq(mst_detect_keeper(&d, SILENT), MST_LIFE_STILL);
    mst_detect_read(&d, 4050, 2, 2);
    ck_assert_int_eq(mst_detect_keeper(&d, SILENT), MST_LIFE_FROZEN);
}
END_TEST

START_TEST(time_since_the_last_good_read_proves_nothing)
{
    struct mst_detect d = {0};

    mst_detect_read(&d, 1000, 1, 1);
    mst_detect_read(&d, 1050, 2, 2);
    /* An hour of nothing: neither reads nor failures. */
    ck_assert_int_eq(mst_detect_keeper(&d, SILENT), MST_LIFE_MOVING);
    mst_detect_read(&d, 3600000, 3, 3);
    ck_assert_int_eq(mst_detect_keeper(&d, SILENT), MST_LIFE_MOVING);
}
END_TEST

START_TEST(failures_make_it_unreadable_after_the_whole_time_only)
{
    struct mst_detect d = {0};
    uint64_t ms;

    mst_detect_read(&d, 1000, 1, 1);
    mst_detect_read(&d, 1050, 2, 2);
    for (ms = 1100; ms < 1100 + SILENT; ms += 50) {
        mst_detect_failed(&d, ms);
        ck_assert_int_ne(mst_detect_keeper(&d, SILENT), MST_LIFE_UNREADABLE);
    }
    mst_detect_failed(&d, ms);
    ck_assert_int_eq(mst_detect_keeper(&d, SILENT), MST_LIFE_UNREADABLE);
    mst_detect_read(&d, ms + 50, 3, 3);
    ck_assert_int_eq(mst_detect_keeper(&d, SILENT), MST_LIFE_MOVING);
}
END_TEST

START_TEST(one_good_read_between_failures_starts_the_count_anew)
{
    struct mst_detect d = {0};
    uint64_t ms = 1000;

    mst_detect_read(&d, ms, 1, 1);
    mst_detect_read(&d, ms += 50, 2, 2);
    for (int i = 0; i < 10; i++) {
        mst_detect_failed(&d, ms += 50);
        mst_detect_failed(&d, ms += SILENT - 200);
        mst_detect_read(&d, ms += 50, 3 + (unsigned)i, 3);
        ck_assert_int_ne(mst_detect_keeper(&d, SILENT), MST_LIFE_UNREADABLE);
    }
}
END_TEST

START_TEST(agent_alone_freezes)
{
    struct mst_detect d = {0};
    uint64_t ms = 1000, keeper = 5, agent = 9;

    reads(&d, &ms, 1000, &keeper, &agent, 1, 1);
    reads(&d, &ms, SILENT + 100, &keeper, &agent, 1, 0);
    ck_assert_int_eq(mst_detect_keeper(&d, SILENT), MST_LIFE_MOVING);
    ck_assert_int_eq(mst_detect_agent(&d, SILENT), MST_LIFE_FROZEN);
}
END_TEST

START_TEST(reset_forgets_what_was_seen_before_a_pause)
{
    struct mst_detect d = {0};
    uint64_t ms = 1000, keeper = 5, agent = 9;

    reads(&d, &ms, 1000, &keeper, &agent, 1, 1);
    reads(&d, &ms, SILENT - 100, &keeper, &agent, 0, 0);
    mst_detect_reset(&d);
    ms += 60000;
    mst_detect_read(&d, ms, keeper, agent);
    ck_assert_int_eq(mst_detect_keeper(&d, SILENT), MST_LIFE_UNKNOWN);
    mst_detect_read(&d, ms + SILENT - 1, keeper, agent);
    ck_assert_int_ne(mst_detect_keeper(&d, SILENT), MST_LIFE_FROZEN);
    mst_detect_read(&d, ms + SILENT, keeper, agent);
    ck_assert_int_eq(mst_detect_keeper(&d, SILENT), MST_LIFE_FROZEN);
}
END_TEST

START_TEST(a_counter_that_goes_back_has_moved)
{
    struct mst_detect d = {0};

    mst_detect_read(&d, 1000, 100, 100);
    mst_detect_read(&d, 5000, 1, 1); /* another instance in the same place */
    ck_assert_int_eq(mst_detect_keeper(&d, SILENT), MST_LIFE_MOVING);
}
END_TEST

START_TEST(reads_out_of_order_are_ignored)
{
    struct mst_detect d = {0};

    mst_detect_read(&d, 5000, 10, 10);
    mst_detect_read(&d, 4000, 9, 9);
    ck_assert_uint_eq(d.keeper_beat, 10);
    mst_detect_failed(&d, 4500);
    ck_assert_uint_eq(d.failing_since_ms, 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("detect");
    TCase *tcase = tcase_create("detect");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_add_test(tcase, moving_counters_are_moving);
    tcase_add_test(tcase, frozen_needs_two_successful_reads_so_far_apart);
    tcase_add_test(tcase, time_since_the_last_good_read_proves_nothing);
    tcase_add_test(tcase, failures_make_it_unreadable_after_the_whole_time_only);
    tcase_add_test(tcase, one_good_read_between_failures_starts_the_count_anew);
    tcase_add_test(tcase, agent_alone_freezes);
    tcase_add_test(tcase, reset_forgets_what_was_seen_before_a_pause);
    tcase_add_test(tcase, a_counter_that_goes_back_has_moved);
    tcase_add_test(tcase, reads_out_of_order_are_ignored);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
