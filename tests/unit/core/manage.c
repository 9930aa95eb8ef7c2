#include "tests/unit/core/world.h"

#include <errno.h>

/* Row 28: a node whose RDMA is away while its keeper answers at its management address; and the reverse. */

#define LEASE_MS    10000u
#define WATCHDOG_MS 5000u
/* coordinator/core/lease.c: L (1 + 1/8) + 2 T (1 + 1/8) + 1 s */
#define PROOF_MS (LEASE_MS + LEASE_MS / 8 + 2 * WATCHDOG_MS + WATCHDOG_MS / 4 + 1000u)

static struct world *world_of(unsigned managed, uint32_t lease_ms, uint32_t watchdog_ms)
{
    struct world *w = world_new(3);
    struct mst_definition def = world_def("web01", 16, true);

    w->conf.lease_ms = lease_ms;
    for (unsigned i = 0; i < w->nodes_count; i++) {
        w->conf.nodes[i].managed = i < managed;
        w->conf.nodes[i].watchdog_ms = w->nodes[i].watchdog_ms = watchdog_ms;
        w->conf.nodes[i].has_fence = watchdog_ms == 0;
    }
    world_restart(w);
    world_run(w, 1500);
    world_define(w, &def);
    world_start_vm(w, "web01", "n1");
    world_checkpoint(w, "web01", 7);
    world_run(w, 3000);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    return w;
}

static struct world *managed_world(void)
{
    return world_of(3, 0, 0);
}

static struct mst_node_look look(const struct world *w, unsigned node)
{
    struct mst_time now = {.us = w->now_us};
    struct mst_node_look found;

    mst_core_node(w->core, &now, node, &found);
    return found;
}

static bool taken_over(struct world *w, const void *unused)
{
    (void)unused;
    return world_where(w, "web01") > 0;
}

static void nothing_was_done(struct world *w)
{
    ck_assert_uint_eq(w->fence_asked, 0);
    ck_assert_uint_eq(world_recoveries(w), 0);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_FENCE, "web01"), 0);
    ck_assert_uint_eq(world_epoch(w, "web01"), 1);
    ck_assert_int_eq(world_where(w, "web01"), 0);
}

/* 0: its link is closed; 1: it stays, and reads fail; 2: it is closed as if the keeper had died, which is how a deleted RDMA device looks */
START_TEST(a_node_whose_keeper_answers_is_degraded_and_its_vms_run_on)
{
    struct world *w = managed_world();

    if (_i == 2) {
        mst_core_link_closed(w->core, &(struct mst_time){.us = w->now_us, .wall_ms = 1}, w->nodes[0].link, -ECONNRESET, "gone");
        w->nodes[0].link = 0;
    }
    if (_i != 1)
        world_cut(w, 0, true);
    else
        w->nodes[0].reads_fail = w->nodes[0].orders_wait = true;
    world_run(w, 2900);
    ck_assert_int_ne(look(w, 0).state, MST_NODE_DEGRADED); /* not before it would have been given up */
    world_run(w, 30000);
    nothing_was_done(w);
    ck_assert_int_eq(look(w, 0).state, MST_NODE_DEGRADED);
    ck_assert_ptr_nonnull(strstr(look(w, 0).text, "RDMA is away"));
    ck_assert_ptr_nonnull(strstr(look(w, 0).text, "switch its power off"));
    ck_assert_ptr_nonnull(strstr(mst_core_trouble(w->core), "n1"));
    ck_assert_uint_eq(mst_core_fault(w->core, 0)->kind, MST_FAULT_NODE_UNREACHABLE);
    ck_assert_uint_eq(mst_core_fault(w->core, 0)->recovery_id, 0);
    ck_assert_ptr_nonnull(strstr(mst_core_fault(w->core, 0)->verdict, "degraded"));
    ck_assert_ptr_null(mst_core_fault(w->core, 1)); /* said once */
    ck_assert_int_eq(look(w, 1).state, MST_NODE_UP);
    world_free(w);
}
END_TEST

START_TEST(when_the_answers_stop_it_is_fenced_and_taken_over_once)
{
    struct world *w = managed_world();

    world_cut(w, 0, true);
    world_run(w, 20000);
    nothing_was_done(w);
    w->nodes[0].manage_cut = true;
    world_run(w, 1900);
    nothing_was_done(w);
    ck_assert(world_until(w, 5000, taken_over, NULL));
    world_run(w, 10000);
    ck_assert_uint_eq(w->fence_asked, 1);
    ck_assert_uint_eq(world_epoch(w, "web01"), 2);
    ck_assert_uint_eq(world_recoveries(w), 1);
    ck_assert_str_eq(mst_core_trouble(w->core), "");
    world_free(w);
}
END_TEST

START_TEST(a_dead_node_is_given_up_no_later_than_without_a_management_address)
{
    static uint64_t at_ms[2];

    for (unsigned i = 0; i < 2; i++) {
        struct world *w = world_of(i == 0 ? 0 : 3, 0, 0);
        uint64_t begun_us = w->now_us;

        w->nodes[0].manage_cut = true;
        world_cut(w, 0, true);
        ck_assert(world_until(w, 20000, taken_over, NULL));
        at_ms[i] = (w->now_us - begun_us) / 1000;
        ck_assert_uint_eq(w->fence_asked, 1);
        world_free(w);
    }
    ck_assert_uint_le(at_ms[1], at_ms[0] + 2 * WORLD_STEP_MS);
}
END_TEST

START_TEST(a_node_without_a_management_address_is_not_asked)
{
    struct world *w = world_of(0, 0, 0);

    world_cut(w, 0, true);
    ck_assert(world_until(w, 20000, taken_over, NULL));
    ck_assert_uint_eq(w->nodes[0].questions, 0);
    world_free(w);
}
END_TEST

/* 0: another instance; 1: another boot of the host */
START_TEST(another_keeper_that_answers_does_not_speak_for_the_old_one)
{
    struct world *w = world_of(3, LEASE_MS, 0);

    world_cut(w, 0, true);
    world_run(w, 8000);
    nothing_was_done(w);
    w->nodes[0].manage_instance = _i == 0 ? 0x999 : 0;
    w->nodes[0].manage_boot = _i == 0 ? 0 : 7;
    w->nodes[0].leases_managed = 0;
    ck_assert(world_until(w, 4000, taken_over, NULL));
    ck_assert_uint_eq(w->fence_asked, 1);
    ck_assert_uint_le(w->nodes[0].leases_managed, 1); /* one that was decided before */
    world_free(w);
}
END_TEST

START_TEST(a_keeper_that_is_read_and_stands_still_is_fenced_whatever_answers)
{
    struct world *w = managed_world();

    w->nodes[0].beats_fail = false;
    w->nodes[0].frozen = true;
    for (unsigned i = 0; i < 2000 && w->fence_asked == 0; i++) {
        struct mst_time t;
        struct mst_managed answer = {.instance = w->nodes[0].hello.instance};

        world_run(w, 10);
        t = (struct mst_time){.us = w->now_us};
        if (!w->nodes[0].question.used)
            continue;
        w->nodes[0].question.used = false;
        memcpy(answer.boot_id, w->nodes[0].hello.host_boot_id, sizeof(answer.boot_id));
        mst_core_managed(w->core, &t, 0, 0, "", &answer);
    }
    ck_assert_uint_eq(w->fence_asked, 1);
    ck_assert(world_until(w, 5000, taken_over, NULL));
    world_free(w);
}
END_TEST

START_TEST(when_rdma_is_back_all_is_as_before_and_another_absence_is_said_again)
{
    struct world *w = managed_world();

    for (unsigned i = 0; i < 2; i++) {
        world_cut(w, 0, true);
        world_run(w, 8000);
        ck_assert_int_eq(look(w, 0).state, MST_NODE_DEGRADED);
        world_cut(w, 0, false);
        world_run(w, 2000);
        ck_assert_int_eq(look(w, 0).state, MST_NODE_UP);
        ck_assert_str_eq(mst_core_trouble(w->core), "");
        nothing_was_done(w);
    }
    ck_assert_ptr_nonnull(mst_core_fault(w->core, 1));
    ck_assert_ptr_null(mst_core_fault(w->core, 2));
    world_free(w);
}
END_TEST

START_TEST(a_coordinator_that_starts_anew_asks_before_it_gives_a_node_up)
{
    struct world *w = managed_world();

    world_cut(w, 0, true);
    world_run(w, 5000);
    world_restart(w);
    world_run(w, 15000);
    nothing_was_done(w);
    ck_assert_int_eq(look(w, 0).state, MST_NODE_DEGRADED);
    w->nodes[0].manage_cut = true;
    ck_assert(world_until(w, 6000, taken_over, NULL));
    world_free(w);
}
END_TEST

START_TEST(after_a_pause_of_its_own_the_coordinator_asks_anew)
{
    struct world *w = managed_world();

    world_cut(w, 0, true);
    world_run(w, 5000);
    w->now_us += 20000000; /* answers of before it are old */
    world_run(w, 10000);
    nothing_was_done(w);
    ck_assert_int_eq(look(w, 0).state, MST_NODE_DEGRADED);
    ck_assert_ptr_null(mst_core_fault(w->core, 1)); /* it is the same absence */
    world_free(w);
}
END_TEST

START_TEST(a_question_that_is_never_ended_holds_nobody_for_ever)
{
    struct world *w = managed_world();

    world_run(w, 10000); /* its last regular question is over */
    w->nodes[0].manage_mute = true;
    world_cut(w, 0, true);
    ck_assert(world_until(w, 8000, taken_over, NULL));
    world_free(w);
}
END_TEST

START_TEST(the_death_of_a_node_that_answers_cannot_be_confirmed)
{
    struct world *w = managed_world();

    world_cut(w, 0, true);
    world_run(w, 5000);
    ck_assert_int_eq(world_request(w, MST_REQ_CONFIRM_DEAD, "n1", NULL), -EBUSY);
    ck_assert_ptr_nonnull(strstr(world_reply_text(w), "power"));
    nothing_was_done(w);
    world_free(w);
}
END_TEST

START_TEST(a_management_address_that_alone_is_away_is_shown_and_nothing_else)
{
    struct world *w = managed_world();

    w->nodes[0].manage_cut = true;
    world_run(w, 25000);
    nothing_was_done(w);
    ck_assert_int_eq(look(w, 0).state, MST_NODE_UP);
    ck_assert_ptr_nonnull(strstr(look(w, 0).text, "management address does not answer"));
    ck_assert_ptr_null(mst_core_fault(w->core, 0));
    w->nodes[0].manage_cut = false;
    world_run(w, 12000);
    ck_assert_str_eq(look(w, 0).text, "");
    ck_assert_uint_le(w->nodes[0].questions, 6); /* rarely: nothing depends on it */
    world_free(w);
}
END_TEST

START_TEST(an_answer_can_show_that_the_store_is_an_old_copy)
{
    struct world *w = managed_world();

    w->nodes[0].hello.highest_term = mst_core_term(w->core) + 1;
    w->nodes[0].hello.highest_term_by = 0x77;
    world_cut(w, 0, true);
    world_run(w, 20000);
    ck_assert_ptr_nonnull(strstr(mst_core_trouble(w->core), "old copy"));
    nothing_was_done(w);
    ck_assert_uint_eq(w->nodes[0].leases_managed, 0);
    world_free(w);
}
END_TEST

/* --- leases --- */

START_TEST(its_lease_is_renewed_with_the_questions)
{
    struct world *w = world_of(3, LEASE_MS, 0);
    uint64_t renewal;

    ck_assert_uint_eq(w->nodes[0].leases_managed, 0); /* by RDMA, as long as that works */
    world_cut(w, 0, true);
    world_run(w, 20000);
    nothing_was_done(w);
    ck_assert_uint_ge(w->nodes[0].leases_managed, 15);
    ck_assert_uint_ge(w->nodes[0].lease_ms + 1100, w->now_us / 1000);
    renewal = w->nodes[0].lease.renewal;
    world_cut(w, 0, false);
    world_run(w, 5000);
    ck_assert_uint_gt(w->nodes[0].lease.renewal, renewal); /* by RDMA again, and newer */
    ck_assert_uint_ge(w->nodes[0].lease_asked_ms + LEASE_MS / 2, w->now_us / 1000);
    world_free(w);
}
END_TEST

START_TEST(who_is_being_given_up_gets_no_renewal_with_a_question)
{
    struct world *w = world_of(3, LEASE_MS, 0);
    unsigned renewals;

    w->power = POWER_HANGS;
    w->nodes[0].manage_cut = true;
    world_cut(w, 0, true);
    world_run(w, 6000);
    ck_assert_uint_eq(w->fence_asked, 1);
    renewals = w->nodes[0].leases_managed;
    w->nodes[0].manage_cut = false; /* it answers again, and its power is being cut */
    world_run(w, 6000);
    ck_assert_uint_eq(w->nodes[0].leases_managed, renewals);
    world_free(w);
}
END_TEST

/* The world ends the machine as late as its strict lease may, and checks that nothing runs twice. */
START_TEST(the_proof_by_lease_counts_from_the_last_renewal_with_a_question)
{
    struct world *w = world_of(3, LEASE_MS, WATCHDOG_MS);
    uint64_t cut_us;

    world_cut(w, 0, true);
    world_run(w, 40000);
    nothing_was_done(w);
    ck_assert(w->nodes[0].powered);
    w->nodes[0].manage_cut = true;
    cut_us = w->now_us;
    world_run(w, PROOF_MS - 2000);
    ck_assert_uint_eq(world_epoch(w, "web01"), 1);
    ck_assert(world_until(w, 10000, taken_over, NULL));
    ck_assert_uint_ge(w->now_us - cut_us, UINT64_C(1000) * (PROOF_MS - 2000));
    ck_assert(!w->nodes[0].powered);
    world_free(w);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("manage");
    TCase *tc = tcase_create("manage");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tc, 110);
    tcase_add_loop_test(tc, a_node_whose_keeper_answers_is_degraded_and_its_vms_run_on, 0, 3);
    tcase_add_test(tc, when_the_answers_stop_it_is_fenced_and_taken_over_once);
    tcase_add_test(tc, a_dead_node_is_given_up_no_later_than_without_a_management_address);
    tcase_add_test(tc, a_node_without_a_management_address_is_not_asked);
    tcase_add_loop_test(tc, another_keeper_that_answers_does_not_speak_for_the_old_one, 0, 2);
    tcase_add_test(tc, a_keeper_that_is_read_and_stands_still_is_fenced_whatever_answers);
    tcase_add_test(tc, when_rdma_is_back_all_is_as_before_and_another_absence_is_said_again);
    tcase_add_test(tc, a_coordinator_that_starts_anew_asks_before_it_gives_a_node_up);
    tcase_add_test(tc, after_a_pause_of_its_own_the_coordinator_asks_anew);
    tcase_add_test(tc, a_question_that_is_never_ended_holds_nobody_for_ever);
    tcase_add_test(tc, the_death_of_a_node_that_answers_cannot_be_confirmed);
    tcase_add_test(tc, a_management_address_that_alone_is_away_is_shown_and_nothing_else);
    tcase_add_test(tc, an_answer_can_show_that_the_store_is_an_old_copy);
    tcase_add_test(tc, its_lease_is_renewed_with_the_questions);
    tcase_add_test(tc, who_is_being_given_up_gets_no_renewal_with_a_question);
    tcase_add_test(tc, the_proof_by_lease_counts_from_the_last_renewal_with_a_question);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
