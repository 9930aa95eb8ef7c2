#include "base/clock.h"

#include <check.h>
#include <time.h>

START_TEST(time_never_goes_back_and_milliseconds_agree)
{
    uint64_t before = mst_now_ns();
    uint64_t middle_ms = mst_now_ms();
    uint64_t after = mst_now_ns();

    ck_assert_uint_le(before, after);
    ck_assert_uint_le(before / MST_NS_PER_MS, middle_ms);
    ck_assert_uint_le(middle_ms, after / MST_NS_PER_MS);
}
END_TEST

START_TEST(wall_clock_is_that_of_the_system)
{
    uint64_t seconds = (uint64_t)time(NULL);

    ck_assert_uint_ge(mst_wall_ms() / 1000 + 1, seconds);
    ck_assert_uint_le(mst_wall_ms() / 1000, seconds + 5);
}
END_TEST

START_TEST(random_numbers_differ_and_are_never_zero)
{
    uint64_t last = 0;

    for (int i = 0; i < 1000; i++) {
        uint64_t value = mst_random_u64();
        ck_assert_uint_ne(value, 0);
        ck_assert_uint_ne(value, last);
        last = value;
    }
}
END_TEST

START_TEST(wall_text_is_iso_8601_in_utc)
{
    char buf[25];

    ck_assert_str_eq(mst_wall_text(0, buf), "1970-01-01T00:00:00.000Z");
    ck_assert_str_eq(mst_wall_text(UINT64_C(1795529101123), buf), "2026-11-24T14:05:01.123Z");
    ck_assert_str_eq(mst_wall_text(UINT64_C(253402300799999), buf), "9999-12-31T23:59:59.999Z");
}
END_TEST

START_TEST(wall_text_of_a_hostile_time_stays_in_its_buffer)
{
    char buf[25];

    ck_assert_str_eq(mst_wall_text(UINT64_C(253402300800000), buf), "?");
    ck_assert_str_eq(mst_wall_text(UINT64_MAX, buf), "?");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("base/clock");
    TCase *tc = tcase_create("all");
    SRunner *runner;
    int failed;

    tcase_add_test(tc, time_never_goes_back_and_milliseconds_agree);
    tcase_add_test(tc, wall_clock_is_that_of_the_system);
    tcase_add_test(tc, random_numbers_differ_and_are_never_zero);
    tcase_add_test(tc, wall_text_is_iso_8601_in_utc);
    tcase_add_test(tc, wall_text_of_a_hostile_time_stays_in_its_buffer);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
