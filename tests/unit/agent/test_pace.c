/* Guests made of formulas: what a checkpoint of theirs takes after an interval, and what becomes of the interval. */

#include "base/clock.h"
#include "node/agent/pace.h"

#include <check.h>
#include <stdlib.h>

#define MS MST_NS_PER_MS

static enum mst_save_pace why;

static uint64_t next_ms(struct mst_pace *pace, uint64_t pause_ms, uint64_t own_ms, uint64_t put_ms)
{
    struct mst_pace_took took = {.pause_ns = pause_ms * MS, .own_ns = own_ms * MS, .put_ns = put_ms * MS};

    return mst_pace_next_ns(pace, &took, &why) / MS;
}

START_TEST(interval_is_the_one_that_is_set_while_the_pauses_fit_into_it)
{
    struct mst_pace pace;

    mst_pace_init(&pace, 100, 20);
    for (unsigned i = 0; i < 10; i++) {
        ck_assert_uint_eq(next_ms(&pace, 20, 30, 0), 100);
        ck_assert_int_eq(why, MST_SAVE_PACE_SET);
    }
    mst_pace_init(&pace, 5, 50);
    ck_assert_uint_eq(next_ms(&pace, 2, 3, 0), 5);
    ck_assert_int_eq(why, MST_SAVE_PACE_SET);
}
END_TEST

START_TEST(pause_that_is_more_than_its_share_makes_the_interval_longer_at_once)
{
    struct mst_pace pace;

    mst_pace_init(&pace, 100, 20);
    ck_assert_uint_eq(next_ms(&pace, 60, 70, 0), 300);
    ck_assert_int_eq(why, MST_SAVE_PACE_STALL);
    ck_assert_uint_eq(next_ms(&pace, 80, 90, 0), 400);
}
END_TEST

START_TEST(interval_shrinks_back_to_the_one_that_is_set_when_pauses_are_short_again)
{
    struct mst_pace pace;
    uint64_t before = 0, now;
    unsigned steps = 0;

    mst_pace_init(&pace, 100, 20);
    before = next_ms(&pace, 80, 90, 0);
    ck_assert_uint_eq(before, 400);
    while ((now = next_ms(&pace, 5, 8, 0)) > 100) {
        ck_assert_uint_lt(now, before);
        before = now;
        ck_assert_uint_lt(++steps, 8);
    }
    ck_assert_int_eq(why, MST_SAVE_PACE_SET);
}
END_TEST

START_TEST(mirrors_that_take_long_for_a_checkpoint_make_the_interval_longer_and_nothing_of_it_stays)
{
    struct mst_pace pace;

    mst_pace_init(&pace, 100, 20);
    ck_assert_uint_eq(next_ms(&pace, 5, 20, 700), 700);
    ck_assert_int_eq(why, MST_SAVE_PACE_MIRROR);
    ck_assert_uint_eq(next_ms(&pace, 5, 300, 90), 300);
    ck_assert_int_eq(why, MST_SAVE_PACE_COPY);
    ck_assert_uint_eq(next_ms(&pace, 5, 20, 90), 100);
    ck_assert_int_eq(why, MST_SAVE_PACE_SET);
}
END_TEST

START_TEST(one_pause_out_of_line_is_paid_off_over_the_next_intervals)
{
    struct mst_pace pace;
    uint64_t all = 0, now;
    unsigned steps = 0;

    mst_pace_init(&pace, 100, 20);
    ck_assert_uint_eq(next_ms(&pace, 10, 12, 0), 100);
    now = next_ms(&pace, 200, 210, 0); /* asks for 1000 ms: 900 more than an interval has */
    do {
        ck_assert_uint_le(now, 210);
        all += now;
        ck_assert_uint_lt(++steps, 30);
    } while ((now = next_ms(&pace, 10, 12, 0)) > 100);
    ck_assert_uint_ge(all, 900 + 100 * (uint64_t)steps - 100 * (uint64_t)steps / 2);
    ck_assert_uint_ge(steps, 9); /* of 100 ms too much each */
}
END_TEST

START_TEST(third_long_pause_in_a_row_is_no_exception)
{
    struct mst_pace pace;

    mst_pace_init(&pace, 100, 20);
    ck_assert_uint_eq(next_ms(&pace, 200, 200, 0), 200); /* two intervals, one of them owed */
    ck_assert_uint_eq(next_ms(&pace, 200, 200, 0), 200);
    ck_assert_uint_eq(next_ms(&pace, 200, 200, 0), 2000);
    for (unsigned i = 0; i < 3; i++)
        next_ms(&pace, 200, 200, 0);
    ck_assert_uint_eq(next_ms(&pace, 200, 200, 0), 1000);
}
END_TEST

/* A guest that writes: a pause of fixed_us, and page_us for each page; pages_s of them a second, working_set in all. */
static uint64_t guest_pause_ns(uint64_t interval_ns, uint64_t fixed_us, uint64_t pages_s, uint64_t page_us, uint64_t working_set)
{
    uint64_t pages = interval_ns * pages_s / (1000 * MS);

    return (fixed_us + page_us * (pages < working_set ? pages : working_set)) * 1000;
}

START_TEST(guest_that_writes_steadily_gets_an_interval_that_comes_to_rest_and_does_not_swing)
{
    static const struct {
        uint64_t fixed_us, pages_s, page_us, working_set;
    } guests[] = {
        {3000, 1000, 1, UINT64_MAX},    {3000, 50000, 1, UINT64_MAX}, {30000, 20000, 2, 100000},
        {40000, 100000, 1, UINT64_MAX}, {5000, 400000, 1, 60000}, /* more than it may stand: until its working set is all there is */
        {3000, 190000, 1, UINT64_MAX},
    };

    for (unsigned g = 0; g < sizeof(guests) / sizeof(guests[0]); g++) {
        struct mst_pace pace;
        uint64_t interval_ns = 100 * MS, before_ns = 0, stood_ns = 0, ran_ns = 0;
        int turns = 0;

        mst_pace_init(&pace, 100, 20);
        for (unsigned i = 0; i < 400; i++) {
            struct mst_pace_took took = {.pause_ns = guest_pause_ns(interval_ns, guests[g].fixed_us, guests[g].pages_s,
                                                                    guests[g].page_us, guests[g].working_set)};
            uint64_t now_ns = mst_pace_next_ns(&pace, &took, &why);

            stood_ns += i >= 100 ? took.pause_ns : 0;
            ran_ns += i >= 100 ? now_ns : 0;
            turns += i > 0 && now_ns < interval_ns && interval_ns > before_ns;
            before_ns = interval_ns;
            interval_ns = now_ns;
        }
        ck_assert_msg(turns <= 2, "guest %u: %d turns", g, turns);
        ck_assert_msg(stood_ns * 100 <= ran_ns * 20 + ran_ns, "guest %u stands %f %%", g,
                      (double)stood_ns * 100 / (double)ran_ns);
        /* it has come to rest */
        ck_assert_msg(interval_ns - before_ns <= interval_ns / 100 + 1 || before_ns - interval_ns <= interval_ns / 100 + 1,
                      "guest %u: %lu then %lu", g, before_ns, interval_ns);
    }
}
END_TEST

START_TEST(vm_never_stands_for_more_than_its_share_whatever_its_pauses_are)
{
    uint64_t stood_ns = 0, all_ns = 0, largest_ns = 0;
    unsigned percent = 1 + (unsigned)(_i * 7) % 50;
    struct mst_pace pace;

    srand((unsigned)_i + 1);
    mst_pace_init(&pace, 20, percent);
    for (unsigned i = 0; i < 5000; i++) {
        uint64_t pause_ns = (uint64_t)(rand() % 10000) * 1000;
        struct mst_pace_took took;

        if (rand() % 50 == 0)
            pause_ns = (uint64_t)(rand() % 800) * MS;
        took = (struct mst_pace_took){.pause_ns = pause_ns, .own_ns = pause_ns, .put_ns = 0};
        stood_ns += pause_ns;
        largest_ns = pause_ns > largest_ns ? pause_ns : largest_ns;
        all_ns += mst_pace_next_ns(&pace, &took, &why);
    }
    all_ns += 2 * largest_ns * 100 / percent; /* what is still owed */
    ck_assert_msg(stood_ns <= all_ns / 100 * percent, "%u %%: stands %f %%", percent, (double)stood_ns * 100 / (double)all_ns);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("agent pace");
    TCase *tcase = tcase_create("pace");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_add_test(tcase, interval_is_the_one_that_is_set_while_the_pauses_fit_into_it);
    tcase_add_test(tcase, pause_that_is_more_than_its_share_makes_the_interval_longer_at_once);
    tcase_add_test(tcase, interval_shrinks_back_to_the_one_that_is_set_when_pauses_are_short_again);
    tcase_add_test(tcase, mirrors_that_take_long_for_a_checkpoint_make_the_interval_longer_and_nothing_of_it_stays);
    tcase_add_test(tcase, one_pause_out_of_line_is_paid_off_over_the_next_intervals);
    tcase_add_test(tcase, third_long_pause_in_a_row_is_no_exception);
    tcase_add_test(tcase, guest_that_writes_steadily_gets_an_interval_that_comes_to_rest_and_does_not_swing);
    tcase_add_loop_test(tcase, vm_never_stands_for_more_than_its_share_whatever_its_pauses_are, 0, 20);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
