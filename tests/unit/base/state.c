#include "base/state.h"

#include <check.h>

enum { S_IDLE, S_BUSY, S_DONE, S_COUNT };

static const struct mst_state states[S_COUNT] = {
    [S_IDLE] = {"idle", MST_TO(S_BUSY)},
    [S_BUSY] = {"busy", MST_TO(S_IDLE) | MST_TO(S_DONE)},
    [S_DONE] = {"done", 0},
};

START_TEST(table_allows_what_it_lists_and_nothing_else)
{
    static const bool may[S_COUNT][S_COUNT] = {{0, 1, 0}, {1, 0, 1}, {0, 0, 0}};

    for (unsigned from = 0; from < S_COUNT; from++) {
        for (unsigned to = 0; to < S_COUNT; to++)
            ck_assert_int_eq(mst_state_may(states, S_COUNT, from, to), may[from][to]);
    }
}
END_TEST

START_TEST(states_outside_the_table_are_refused_and_have_no_name)
{
    ck_assert(!mst_state_may(states, S_COUNT, S_COUNT, S_IDLE));
    ck_assert(!mst_state_may(states, S_COUNT, S_IDLE, S_COUNT));
    ck_assert(!mst_state_may(states, S_COUNT, 4000000000u, 4000000000u));
    ck_assert_str_eq(mst_state_name(states, S_COUNT, S_BUSY), "busy");
    ck_assert_str_eq(mst_state_name(states, S_COUNT, S_COUNT), "?");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("base/state");
    TCase *tc = tcase_create("all");
    SRunner *runner;
    int failed;

    tcase_add_test(tc, table_allows_what_it_lists_and_nothing_else);
    tcase_add_test(tc, states_outside_the_table_are_refused_and_have_no_name);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
