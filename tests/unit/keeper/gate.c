#include "node/keeper/gate.h"

#include <check.h>
#include <stdlib.h>

static struct mst_gate gate;

static void fresh(void)
{
    gate = (struct mst_gate){0};
}

/* A checkpoint whose packets' queue can be cut whenever that is wanted. */
static void mark(uint64_t seq, uint64_t console, bool waits)
{
    if (mst_gate_mark(&gate, seq, console, waits))
        mst_gate_cut(&gate, seq);
}

/* All have safe; does what is to be done. */
static struct mst_gate_go look(bool waits, uint64_t safe)
{
    struct mst_gate_go go = mst_gate_look(&gate, waits, safe);

    if (go.open)
        mst_gate_opened(&gate);
    if (go.release)
        mst_gate_released(&gate);
    return go;
}

#define ck_go(go_, open_, release_, show_, console_)                                                                             \
    do {                                                                                                                         \
        struct mst_gate_go go__ = (go_);                                                                                         \
        ck_assert_int_eq(go__.open, open_);                                                                                      \
        ck_assert_int_eq(go__.release, release_);                                                                                \
        ck_assert_int_eq(go__.show, show_);                                                                                      \
        ck_assert_uint_eq(go__.console, console_);                                                                               \
    } while (0)
#define ck_nothing(go_) ck_go(go_, 0, 0, 0, 0)

START_TEST(while_nobody_is_waited_for_the_gate_stays_open)
{
    mark(1, 10, false);
    mark(2, 20, false);
    ck_assert(!gate.closed);
    ck_nothing(look(false, 0));
    ck_assert(!mst_gate_covered(&gate, UINT64_MAX)); /* what leaves now is in no checkpoint yet */
}
END_TEST

START_TEST(a_mirror_covers_what_has_left_only_from_the_checkpoint_on_at_which_the_gate_was_closed)
{
    mark(7, 70, true);
    ck_assert(gate.closed);
    ck_assert(!mst_gate_covered(&gate, 6)); /* its first one: what the guest sent between 6 and 7 has left */
    ck_assert(mst_gate_covered(&gate, 7));
    ck_nothing(look(true, 6));
    ck_nothing(look(true, 7)); /* nothing has come since */
}
END_TEST

START_TEST(output_leaves_with_the_checkpoint_after_it_and_no_sooner)
{
    mark(7, 70, true);
    mark(8, 80, true);
    ck_nothing(look(true, 7));
    ck_go(look(true, 8), 0, 1, 1, 80);
    ck_nothing(look(true, 8));
    mark(9, 90, true);
    ck_nothing(look(true, 8));
    ck_go(look(true, 12), 0, 1, 1, 90);
    ck_assert(!mst_gate_covered(&gate, 8));
    ck_assert(mst_gate_covered(&gate, 9));
}
END_TEST

START_TEST(a_mark_that_comes_before_the_last_cut_has_left_passes_its_packets_on_to_a_later_one)
{
    mark(7, 70, true);
    mark(8, 80, true); /* cut */
    ck_assert(!mst_gate_mark(&gate, 9, 90, true));
    ck_assert(!mst_gate_mark(&gate, 10, 100, true));
    ck_go(look(true, 8), 0, 1, 1, 80);
    ck_go(look(true, 10), 0, 0, 1, 100); /* the packets before 10 lie behind no cut */
    ck_assert(mst_gate_mark(&gate, 11, 110, true));
    mst_gate_cut(&gate, 11);
    ck_nothing(look(true, 10));
    ck_go(look(true, 11), 0, 1, 1, 110);
}
END_TEST

START_TEST(a_checkpoint_that_is_tried_again_takes_what_was_sent_meanwhile_along)
{
    mark(7, 70, true);
    mark(8, 80, true);
    mark(8, 85, true);
    ck_assert_uint_eq(gate.count, 1);
    ck_go(look(true, 8), 0, 1, 1, 85);
}
END_TEST

START_TEST(when_nobody_is_waited_for_any_more_everything_leaves_and_the_gate_is_closed_anew_for_the_next)
{
    mark(7, 70, true);
    mark(8, 80, true);
    ck_go(look(false, 0), 1, 0, 0, 0);
    ck_assert(!gate.closed);
    ck_nothing(look(false, 0));
    mark(20, 200, true);
    ck_assert(!mst_gate_covered(&gate, 19)); /* not by what was covered before */
    ck_nothing(look(true, 19));
    mark(21, 210, true);
    ck_go(look(true, 21), 0, 1, 1, 210);
}
END_TEST

START_TEST(a_gate_that_is_shut_lets_nothing_go_whatever_the_mirrors_have)
{
    mark(7, 70, true);
    mark(8, 80, true);
    mst_gate_shut(&gate);
    ck_nothing(look(true, 8));
    ck_nothing(look(false, 0));
    ck_assert(!mst_gate_mark(&gate, 9, 90, true));
    ck_assert_uint_eq(gate.count, 1);
}
END_TEST

START_TEST(a_release_that_failed_is_asked_for_again)
{
    mark(7, 70, true);
    mark(8, 80, true);
    ck_assert(mst_gate_look(&gate, true, 8).release);
    ck_assert(mst_gate_look(&gate, true, 8).release);
    ck_assert(!mst_gate_mark(&gate, 9, 90, true)); /* and no cut over it */
    mst_gate_released(&gate);
    ck_assert(!mst_gate_look(&gate, true, 8).release);
}
END_TEST

START_TEST(more_marks_than_there_is_room_for_make_output_late_and_never_early)
{
    mark(1, 0, true);
    for (uint64_t seq = 2; seq < 500; seq++)
        mark(seq, seq * 10, true);
    ck_assert_uint_eq(gate.count, MST_GATE_MARKS);
    for (uint64_t safe = 2; safe < 499; safe++) {
        struct mst_gate_go go = look(true, safe);

        ck_assert(!go.show || go.console <= safe * 10);
    }
    ck_go(look(true, 499), 0, 0, 1, 4990);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("keeper/gate");
    TCase *tcase = tcase_create("gate");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_add_checked_fixture(tcase, fresh, NULL);
    tcase_add_test(tcase, while_nobody_is_waited_for_the_gate_stays_open);
    tcase_add_test(tcase, a_mirror_covers_what_has_left_only_from_the_checkpoint_on_at_which_the_gate_was_closed);
    tcase_add_test(tcase, output_leaves_with_the_checkpoint_after_it_and_no_sooner);
    tcase_add_test(tcase, a_mark_that_comes_before_the_last_cut_has_left_passes_its_packets_on_to_a_later_one);
    tcase_add_test(tcase, a_checkpoint_that_is_tried_again_takes_what_was_sent_meanwhile_along);
    tcase_add_test(tcase, when_nobody_is_waited_for_any_more_everything_leaves_and_the_gate_is_closed_anew_for_the_next);
    tcase_add_test(tcase, a_gate_that_is_shut_lets_nothing_go_whatever_the_mirrors_have);
    tcase_add_test(tcase, a_release_that_failed_is_asked_for_again);
    tcase_add_test(tcase, more_marks_than_there_is_room_for_make_output_late_and_never_early);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
