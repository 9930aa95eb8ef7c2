#include "node/keeper/guard.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define INSTANCE UINT64_C(0x1234567890abcdef)

static struct mst_guard *guard;
static struct mst_why why;

static void setup(void)
{
    ck_assert_int_eq(mst_guard_new(INSTANCE, &guard), 0);
    why.text[0] = '\0';
}

static void teardown(void)
{
    mst_guard_free(guard);
}

static int order(uint64_t instance, uint64_t term)
{
    return mst_guard_order(guard, &instance, &term, &why);
}

START_TEST(an_order_for_another_instance_is_refused)
{
    uint64_t term = 1, instance = INSTANCE;

    ck_assert_int_eq(order(INSTANCE, 1), 0);
    ck_assert_int_eq(order(INSTANCE + 1, 1), -ESTALE);
    ck_assert_int_eq(mst_guard_order(guard, NULL, &term, &why), -ESTALE);
    ck_assert_int_eq(mst_guard_order(guard, &instance, NULL, &why), -ESTALE);
    ck_assert_str_ne(why.text, "");
}
END_TEST

START_TEST(an_order_of_an_older_term_is_refused_once_a_newer_one_was_seen)
{
    ck_assert_int_eq(order(INSTANCE, 5), 0);
    ck_assert_int_eq(order(INSTANCE, 4), -ESTALE);
    ck_assert_int_eq(order(INSTANCE, 5), 0);
    ck_assert_int_eq(order(INSTANCE, 9), 0);
    ck_assert_int_eq(order(INSTANCE, 5), -ESTALE);
    ck_assert_uint_eq(mst_guard_term(guard), 9);
}
END_TEST

START_TEST(the_newest_term_and_who_had_it_first_are_remembered)
{
    mst_guard_welcome(guard, 5, 0xa);
    ck_assert_uint_eq(mst_guard_term(guard), 5);
    ck_assert_uint_eq(mst_guard_term_by(guard), 0xa);
    mst_guard_welcome(guard, 5, 0xb);
    mst_guard_welcome(guard, 4, 0xc);
    ck_assert_uint_eq(mst_guard_term(guard), 5);
    ck_assert_uint_eq(mst_guard_term_by(guard), 0xa);
    ck_assert_int_eq(order(INSTANCE, 4), -ESTALE);
    ck_assert_int_eq(order(INSTANCE, 5), 0);
    ck_assert_uint_eq(mst_guard_term_by(guard), 0xa);
    mst_guard_welcome(guard, 6, 0xb);
    ck_assert_uint_eq(mst_guard_term_by(guard), 0xb);
    ck_assert_int_eq(order(INSTANCE, 5), -ESTALE);
}
END_TEST

START_TEST(the_newest_decision_of_the_newest_term_is_remembered)
{
    mst_guard_welcome(guard, 5, 0xa);
    ck_assert_uint_eq(mst_guard_decision(guard), 0);
    mst_guard_decided(guard, 5, 40);
    mst_guard_decided(guard, 5, 39);
    mst_guard_decided(guard, 4, 90); /* of a leader that is none any more */
    mst_guard_decided(guard, 6, 90); /* nobody has welcomed us with that term */
    ck_assert_uint_eq(mst_guard_decision(guard), 40);
    mst_guard_welcome(guard, 5, 0xb);
    ck_assert_uint_eq(mst_guard_decision(guard), 40);
    mst_guard_welcome(guard, 6, 0xb); /* numbers go on over terms, but who says this one may not count them */
    ck_assert_uint_eq(mst_guard_decision(guard), 0);
    mst_guard_decided(guard, 6, 41);
    ck_assert_uint_eq(mst_guard_decision(guard), 41);
}
END_TEST

START_TEST(the_low_half_of_a_decision_is_enough_to_go_on)
{
    static const uint64_t before = UINT64_C(0x5fffffff0);

    mst_guard_welcome(guard, 5, 0xa);
    mst_guard_decided(guard, 5, before);
    mst_guard_decided_low(guard, 5, 0);                    /* not said */
    mst_guard_decided_low(guard, 5, (uint32_t)before - 1); /* an older line */
    mst_guard_decided_low(guard, 4, (uint32_t)before + 1);
    ck_assert_uint_eq(mst_guard_decision(guard), before);
    mst_guard_decided_low(guard, 5, (uint32_t)before + 2);
    ck_assert_uint_eq(mst_guard_decision(guard), before + 2);
    mst_guard_decided_low(guard, 5, 7); /* the low half has come round */
    ck_assert_uint_eq(mst_guard_decision(guard), UINT64_C(0x600000007));
}
END_TEST

START_TEST(an_order_for_another_instance_does_not_raise_the_term)
{
    ck_assert_int_eq(order(INSTANCE + 1, 99), -ESTALE);
    ck_assert_int_eq(order(INSTANCE, 1), 0);
}
END_TEST

START_TEST(the_same_grant_again_is_the_same_answer)
{
    ck_assert_int_eq(mst_guard_grant(guard, "vm", 3, &why), 0);
    ck_assert_int_eq(mst_guard_grant(guard, "vm", 3, &why), 1);
    ck_assert_int_eq(mst_guard_check(guard, "vm", 3, &why), 0);
    ck_assert_uint_eq(mst_guard_granted(guard, "vm"), 3);
}
END_TEST

START_TEST(epochs_never_go_back)
{
    ck_assert_int_eq(mst_guard_grant(guard, "vm", 0, &why), -EINVAL);
    ck_assert_int_eq(mst_guard_grant(guard, "vm", 7, &why), 0);
    ck_assert_int_eq(mst_guard_grant(guard, "vm", 6, &why), -ESTALE);
    mst_guard_revoke(guard, "vm", 7);
    ck_assert_int_eq(mst_guard_grant(guard, "vm", 6, &why), -ESTALE);
    ck_assert_int_eq(mst_guard_grant(guard, "vm", 7, &why), 0);
    ck_assert_int_eq(mst_guard_grant(guard, "other", 1, &why), 0);
}
END_TEST

START_TEST(a_fenced_epoch_never_runs_again)
{
    ck_assert_int_eq(mst_guard_grant(guard, "vm", 3, &why), 0);
    ck_assert_int_eq(mst_guard_fence(guard, "vm", 3, &why), 0);
    ck_assert_int_eq(mst_guard_check(guard, "vm", 3, &why), -ESTALE);
    ck_assert_int_eq(mst_guard_spawning(guard, "vm", 3, &why), -ESTALE);
    ck_assert_int_eq(mst_guard_grant(guard, "vm", 3, &why), -ESTALE);
    ck_assert(mst_guard_fenced(guard, "vm", 3));
    ck_assert(!mst_guard_fenced(guard, "vm", 4));
    ck_assert_int_eq(mst_guard_grant(guard, "vm", 4, &why), 0);
}
END_TEST

START_TEST(a_start_that_was_overtaken_by_its_fence_is_refused)
{
    ck_assert_int_eq(mst_guard_fence(guard, "never-heard-of", 8, &why), 0);
    ck_assert_int_eq(mst_guard_grant(guard, "never-heard-of", 8, &why), -ESTALE);
    ck_assert_int_eq(mst_guard_grant(guard, "never-heard-of", 7, &why), -ESTALE);
    ck_assert_int_eq(mst_guard_grant(guard, "never-heard-of", 9, &why), 0);
    ck_assert_int_eq(mst_guard_fence(guard, "vm", 0, &why), -EINVAL);
}
END_TEST

START_TEST(a_fence_of_an_older_epoch_leaves_the_newer_grant)
{
    ck_assert_int_eq(mst_guard_grant(guard, "vm", 5, &why), 0);
    ck_assert_int_eq(mst_guard_fence(guard, "vm", 4, &why), 0);
    ck_assert_int_eq(mst_guard_check(guard, "vm", 5, &why), 0);
    ck_assert_int_eq(mst_guard_fence(guard, "vm", 2, &why), 0);
    ck_assert(mst_guard_fenced(guard, "vm", 4));
}
END_TEST

START_TEST(a_newer_epoch_waits_for_the_proof_that_the_older_process_is_gone)
{
    ck_assert_int_eq(mst_guard_grant(guard, "vm", 1, &why), 0);
    ck_assert_int_eq(mst_guard_spawning(guard, "vm", 1, &why), 0);
    ck_assert_uint_eq(mst_guard_process(guard, "vm"), 1);
    ck_assert_int_eq(mst_guard_grant(guard, "vm", 2, &why), -EBUSY);
    ck_assert_int_eq(mst_guard_fence(guard, "vm", 1, &why), 0);
    ck_assert_int_eq(mst_guard_grant(guard, "vm", 2, &why), -EBUSY);
    mst_guard_gone(guard, "vm");
    ck_assert_int_eq(mst_guard_grant(guard, "vm", 2, &why), 0);
    ck_assert_int_eq(mst_guard_check(guard, "vm", 1, &why), -ESTALE);
}
END_TEST

START_TEST(a_vm_has_one_process_at_a_time)
{
    ck_assert_int_eq(mst_guard_spawning(guard, "vm", 1, &why), -ESTALE);
    ck_assert_int_eq(mst_guard_grant(guard, "vm", 1, &why), 0);
    ck_assert_int_eq(mst_guard_spawning(guard, "vm", 1, &why), 0);
    ck_assert_int_eq(mst_guard_spawning(guard, "vm", 1, &why), -EEXIST);
    mst_guard_gone(guard, "vm");
    ck_assert_int_eq(mst_guard_spawning(guard, "vm", 1, &why), 0);
}
END_TEST

START_TEST(what_an_earlier_instance_left_may_not_run_under_its_old_epoch)
{
    ck_assert_int_eq(mst_guard_held(guard, "vm", 6), 0);
    ck_assert_int_eq(mst_guard_grant(guard, "vm", 6, &why), -ESTALE);
    ck_assert_int_eq(mst_guard_grant(guard, "vm", 5, &why), -ESTALE);
    ck_assert_int_eq(mst_guard_grant(guard, "vm", 7, &why), 0);
}
END_TEST

START_TEST(a_full_table_refuses_new_names_and_still_serves_the_known_ones)
{
    char name[MST_NAME_BYTES];
    unsigned i;

    for (i = 0; i < MST_GUARD_VMS_MAX; i++) {
        snprintf(name, sizeof(name), "vm-%u", i);
        ck_assert_int_eq(mst_guard_grant(guard, name, 1, &why), 0);
    }
    ck_assert_int_eq(mst_guard_grant(guard, "one-more", 1, &why), -ENOSPC);
    ck_assert_int_eq(mst_guard_fence(guard, "one-more", 1, &why), -ENOSPC);
    ck_assert_int_eq(mst_guard_held(guard, "one-more", 1), -ENOSPC);
    ck_assert_int_eq(mst_guard_fence(guard, "vm-77", 1, &why), 0);
    ck_assert_int_eq(mst_guard_grant(guard, "vm-78", 2, &why), 0);
}
END_TEST

START_TEST(a_name_that_is_too_long_is_refused)
{
    char name[MST_NAME_BYTES + 1];

    for (unsigned i = 0; i < MST_NAME_BYTES; i++)
        name[i] = 'a';
    name[MST_NAME_BYTES] = '\0';
    ck_assert_int_eq(mst_guard_grant(guard, name, 1, &why), -EINVAL);
    ck_assert_int_eq(mst_guard_grant(guard, "", 1, &why), -EINVAL);
}
END_TEST

/* One node, any order of calls: what must hold after each. _i is the seed. */
START_TEST(no_order_of_calls_lets_two_epochs_run_or_a_fenced_one_start)
{
    uint64_t process = 0, fenced = 0, known = 0;
    unsigned step;

    srandom((unsigned)_i + 1);
    for (step = 0; step < 2000; step++) {
        uint64_t epoch = 1 + (uint64_t)random() % 40;
        int r;

        switch (random() % 5) {
        case 0:
            r = mst_guard_grant(guard, "vm", epoch, NULL);
            if (r >= 0) {
                ck_assert_uint_gt(epoch, fenced);
                ck_assert_uint_ge(epoch, known);
                ck_assert(!process || process == epoch);
                known = epoch;
            }
            break;
        case 1:
            ck_assert_int_eq(mst_guard_fence(guard, "vm", epoch, NULL), 0);
            fenced = epoch > fenced ? epoch : fenced;
            known = epoch > known ? epoch : known;
            break;
        case 2:
            r = mst_guard_spawning(guard, "vm", epoch, NULL);
            if (r == 0) {
                ck_assert_uint_eq(process, 0);
                ck_assert_uint_gt(epoch, fenced);
                ck_assert_uint_eq(epoch, known);
                process = epoch;
            }
            break;
        case 3:
            mst_guard_gone(guard, "vm");
            process = 0;
            break;
        default:
            mst_guard_revoke(guard, "vm", epoch);
        }
        ck_assert_uint_eq(mst_guard_process(guard, "vm"), process);
        if (step % 500 == 499) { /* epochs only grow, so a run ends: another VM would go on */
            mst_guard_free(guard);
            ck_assert_int_eq(mst_guard_new(INSTANCE, &guard), 0);
            process = fenced = known = 0;
        }
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("guard");
    TCase *tc = tcase_create("guard");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, an_order_for_another_instance_is_refused);
    tcase_add_test(tc, an_order_of_an_older_term_is_refused_once_a_newer_one_was_seen);
    tcase_add_test(tc, the_newest_term_and_who_had_it_first_are_remembered);
    tcase_add_test(tc, the_newest_decision_of_the_newest_term_is_remembered);
    tcase_add_test(tc, the_low_half_of_a_decision_is_enough_to_go_on);
    tcase_add_test(tc, an_order_for_another_instance_does_not_raise_the_term);
    tcase_add_test(tc, the_same_grant_again_is_the_same_answer);
    tcase_add_test(tc, epochs_never_go_back);
    tcase_add_test(tc, a_fenced_epoch_never_runs_again);
    tcase_add_test(tc, a_start_that_was_overtaken_by_its_fence_is_refused);
    tcase_add_test(tc, a_fence_of_an_older_epoch_leaves_the_newer_grant);
    tcase_add_test(tc, a_newer_epoch_waits_for_the_proof_that_the_older_process_is_gone);
    tcase_add_test(tc, a_vm_has_one_process_at_a_time);
    tcase_add_test(tc, what_an_earlier_instance_left_may_not_run_under_its_old_epoch);
    tcase_add_test(tc, a_full_table_refuses_new_names_and_still_serves_the_known_ones);
    tcase_add_test(tc, a_name_that_is_too_long_is_refused);
    tcase_add_loop_test(tc, no_order_of_calls_lets_two_epochs_run_or_a_fenced_one_start, 0, 20);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
