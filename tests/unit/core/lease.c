#include "tests/unit/core/world.h"

#include <errno.h>

/* Who gets a renewal, and when the end of a lease is a proof. The world checks after every turn that no VM runs twice, with machines whose strict
 * leases end them as late as they may. */

#define LEASE_MS    10000u
#define WATCHDOG_MS 10000u
/* coordinator/core/lease.c: L (1 + 1/8) + 2 T (1 + 1/8) + 1 s */
#define PROOF_MS (LEASE_MS + LEASE_MS / 8 + 2 * WATCHDOG_MS + WATCHDOG_MS / 4 + 1000u)

static struct world *with_leases(uint32_t lease_ms, uint32_t watchdog_ms, bool fence)
{
    struct world *w = world_new(3);

    w->conf.lease_ms = lease_ms;
    for (unsigned i = 0; i < w->nodes_count; i++) {
        w->conf.nodes[i].watchdog_ms = watchdog_ms;
        w->conf.nodes[i].has_fence = fence;
        w->nodes[i].watchdog_ms = watchdog_ms;
    }
    world_restart(w);
    world_run(w, 1500);
    return w;
}

static struct world *vm_on_n1(uint32_t watchdog_ms, bool fence)
{
    struct world *w = with_leases(LEASE_MS, watchdog_ms, fence);
    struct mst_definition def = world_def("web01", 16, false);

    def.on_node_fault = MST_ON_FAULT_RESTART;
    world_define(w, &def);
    world_start_vm(w, "web01", "n1");
    world_run(w, 3000);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    return w;
}

static bool elsewhere(struct world *w, const void *unused)
{
    (void)unused;
    for (unsigned i = 1; i < w->nodes_count; i++)
        for (unsigned k = 0; k < MST_VMS_PER_NODE; k++)
            if (w->nodes[i].slots[k].used && w->nodes[i].slots[k].s.run_state == MST_RUN_RUNNING)
                return true;
    return false;
}

static bool is_fencing(struct world *w, const void *unused)
{
    (void)unused;
    return w->fences[0].running;
}

/* --- who is renewed --- */

START_TEST(a_node_that_beats_is_renewed_at_a_quarter_of_its_lease)
{
    struct world *w = with_leases(LEASE_MS, 0, true);
    unsigned before = w->nodes[0].leases_asked;
    uint64_t renewal = w->nodes[0].lease.renewal;

    ck_assert_uint_ge(before, 1);
    ck_assert_uint_eq(w->nodes[0].lease.lease_ms, LEASE_MS);
    ck_assert_uint_eq(w->nodes[0].lease.term, mst_core_term(w->core));
    ck_assert(!w->nodes[0].lease.strict);
    world_run(w, 2 * LEASE_MS);
    ck_assert_uint_ge(w->nodes[0].leases_asked - before, 7);
    ck_assert_uint_le(w->nodes[0].leases_asked - before, 8);
    ck_assert_uint_gt(w->nodes[0].lease.renewal, renewal);
    ck_assert_uint_eq(w->nodes[0].lease.renewal >> 32, w->conf.coordinator_instance);
    world_free(w);
}
END_TEST

START_TEST(without_leases_nobody_gets_one)
{
    struct world *w = with_leases(0, 0, true);

    world_run(w, 20000);
    ck_assert_uint_eq(w->nodes[0].leases_asked, 0);
    world_free(w);
}
END_TEST

START_TEST(leases_of_an_earlier_run_are_called_off)
{
    struct world *w = with_leases(LEASE_MS, 0, true);

    ck_assert_uint_ne(w->nodes[0].lease.lease_ms, 0);
    w->conf.lease_ms = 0;
    world_restart(w);
    world_run(w, 3000);
    ck_assert_uint_eq(w->nodes[0].lease.lease_ms, 0);
    w->nodes[0].leases_asked = 0;
    world_run(w, 5000);
    ck_assert_uint_eq(w->nodes[0].leases_asked, 0); /* once is enough when it has arrived */
    world_free(w);
}
END_TEST

START_TEST(a_keeper_that_hangs_gets_no_renewal_however_readable_it_is)
{
    struct world *w = vm_on_n1(0, true);
    uint64_t frozen_ms;

    w->power = POWER_HANGS;
    w->nodes[0].frozen = true;
    frozen_ms = w->now_us / 1000;
    world_run(w, 20000);
    ck_assert_uint_le(w->nodes[0].lease_asked_ms, frozen_ms + 50);
    ck_assert_uint_gt(w->nodes[1].lease_asked_ms, frozen_ms + 15000); /* the others do */
    world_free(w);
}
END_TEST

START_TEST(a_node_whose_power_is_being_cut_gets_no_renewal_even_when_it_beats_again)
{
    struct world *w = vm_on_n1(0, true);
    uint64_t fencing_ms;

    w->power = POWER_HANGS;
    w->nodes[0].frozen = true;
    ck_assert(world_until(w, 20000, is_fencing, NULL));
    fencing_ms = w->now_us / 1000;
    w->nodes[0].frozen = false;
    world_run(w, 10000);
    ck_assert(w->fences[0].running);
    ck_assert_uint_le(w->nodes[0].lease_asked_ms, fencing_ms);
    world_free(w);
}
END_TEST

START_TEST(a_node_that_woke_from_a_pause_is_renewed_at_once)
{
    struct world *w = vm_on_n1(0, true);
    uint64_t woke_ms;

    world_run(w, 10);
    while (w->now_us / 1000 - w->nodes[0].lease_asked_ms != 300) /* the next would come in two seconds */
        world_run(w, 10);
    w->nodes[0].lease_wanted = true;
    woke_ms = w->now_us / 1000;
    world_run(w, 100);
    ck_assert(!w->nodes[0].lease_wanted);
    ck_assert_uint_ge(w->nodes[0].lease_asked_ms, woke_ms);
    world_free(w);
}
END_TEST

START_TEST(a_coordinator_with_an_old_store_gives_no_leases)
{
    struct world *w = with_leases(LEASE_MS, 0, true);
    unsigned asked;

    world_node_kill(w, 1);
    w->nodes[1].hello.highest_term = mst_core_term(w->core) + 5;
    w->nodes[1].up = true;
    world_run(w, 1000); /* it calls, and has seen a newer term */
    asked = w->nodes[0].leases_asked;
    world_run(w, 2 * LEASE_MS);
    ck_assert_uint_eq(w->nodes[0].leases_asked, asked);
    world_free(w);
}
END_TEST

/* --- when it is a proof --- */

START_TEST(the_end_of_a_lease_alone_frees_nothing)
{
    struct world *w = vm_on_n1(0, false);

    world_cut(w, 0, true);
    ck_assert(!world_until(w, 100000, elsewhere, NULL));
    ck_assert_int_eq(world_where(w, "web01"), 0);
    world_free(w);
}
END_TEST

START_TEST(with_a_watchdog_behind_it_the_end_of_a_lease_is_a_proof)
{
    struct world *w = vm_on_n1(WATCHDOG_MS, false);
    uint64_t last_ms;

    ck_assert(w->nodes[0].lease.strict);
    world_cut(w, 0, true);
    last_ms = w->nodes[0].lease_asked_ms;
    ck_assert(world_until(w, 120000, elsewhere, NULL));
    ck_assert_uint_ge(w->now_us / 1000, last_ms + PROOF_MS);
    ck_assert_uint_le(w->now_us / 1000, last_ms + PROOF_MS + 2000);
    ck_assert_msg(strstr(world_recovery(w)->proof, "watchdog"), "%s", world_recovery(w)->proof);
    ck_assert_uint_eq(w->fence_asked, 0);
    world_free(w);
}
END_TEST

START_TEST(a_watchdog_that_is_not_armed_or_slower_than_the_operator_says_proves_nothing)
{
    struct world *w = with_leases(LEASE_MS, WATCHDOG_MS, false);
    struct mst_definition def = world_def("web01", 16, false);

    w->nodes[0].watchdog_ms = _i ? WATCHDOG_MS + 1000 : 0;
    def.on_node_fault = MST_ON_FAULT_RESTART;
    world_define(w, &def);
    world_start_vm(w, "web01", "n1");
    world_run(w, 3000);
    w->nodes[0].watchdog_ms = 0; /* the world would end it, and that too nobody here could know */
    world_cut(w, 0, true);
    ck_assert(!world_until(w, 100000, elsewhere, NULL));
    world_free(w);
}
END_TEST

START_TEST(a_lease_of_an_earlier_run_of_the_coordinator_proves_nothing)
{
    struct world *w = vm_on_n1(WATCHDOG_MS, false);

    world_cut(w, 0, true);
    world_restart(w); /* it does not know what its predecessor gave, and when */
    ck_assert(!world_until(w, 100000, elsewhere, NULL));
    world_free(w);
}
END_TEST

START_TEST(power_comes_before_the_watchdog)
{
    struct world *w = vm_on_n1(WATCHDOG_MS, true);

    w->power = _i ? POWER_FAILS : POWER_WORKS;
    w->fences_left_to_fail = _i ? 1000 : 0;
    world_cut(w, 0, true);
    ck_assert(world_until(w, 120000, elsewhere, NULL));
    ck_assert_uint_ge(w->fence_asked, 1);
    ck_assert_msg(strstr(world_recovery(w)->proof, _i ? "watchdog" : "power"), "%s", world_recovery(w)->proof);
    world_free(w);
}
END_TEST

START_TEST(a_node_that_comes_back_in_time_is_a_false_alarm_and_renewed)
{
    struct world *w = vm_on_n1(WATCHDOG_MS, false);
    uint64_t back_ms;

    world_cut(w, 0, true);
    world_run(w, 8000);
    world_cut(w, 0, false);
    back_ms = w->now_us / 1000;
    world_run(w, 60000);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    ck_assert_uint_gt(w->nodes[0].lease_asked_ms, back_ms + 50000);
    world_free(w);
}
END_TEST

/* A keeper that stood still meanwhile starts them only with a lease that is renewed. */
START_TEST(a_node_that_gets_its_vms_back_is_renewed_before_they_run)
{
    struct world *w = with_leases(LEASE_MS, 0, false);
    struct mst_definition def = world_def("web01", 16, false);
    enum mst_rec_state state = MST_REC_FENCING;
    unsigned before;

    def.on_node_fault = MST_ON_FAULT_RESTART;
    def.allowed[def.allowed_count++] = 1;
    world_define(w, &def);
    world_start_vm(w, "web01", "n1");
    w->nodes[0].reads_fail = 1; /* its keeper answers, and stops its VMs as it is told */
    ck_assert(world_until(w, 30000, recovery_is, &state));
    while (world_recovery(w)->state == MST_REC_FENCING)
        world_run(w, 10);
    w->nodes[0].reads_fail = 0;
    w->nodes[0].orders_wait = true;
    state = MST_REC_COMMITTING;
    ck_assert(world_until(w, 30000, recovery_is, &state));
    before = w->nodes[0].leases_asked;
    world_run(w, 4000);
    ck_assert(recovery_is(w, &state));
    ck_assert_uint_gt(w->nodes[0].leases_asked, before);
    w->nodes[0].orders_wait = false;
    ck_assert(world_until(w, 60000, runs_somewhere, "web01"));
    world_free(w);
}
END_TEST

/* Its keeper stopped them in time, so that its watchdog had nothing to end: the same keeper instance comes back. */
START_TEST(a_node_whose_lease_proved_it_dead_is_used_again_once_it_is_back_and_runs_nothing)
{
    struct world *w = vm_on_n1(WATCHDOG_MS, false);
    struct mst_definition def = world_def("web02", 16, false);
    unsigned before;

    def.allowed[def.allowed_count++] = 1;
    world_define(w, &def);
    world_cut(w, 0, true);
    world_run(w, LEASE_MS);
    w->nodes[0].watchdog_ms = 0; /* the world's would reset it */
    world_vm_die(w, 0, "web01");
    ck_assert(world_until(w, 120000, elsewhere, NULL));
    ck_assert_msg(strstr(world_recovery(w)->proof, "watchdog"), "%s", world_recovery(w)->proof);
    before = w->nodes[0].leases_asked;
    if (_i) { /* something stands there still, and is told to stop: it does not answer */
        world_slot(&w->nodes[0], "web01", 1)->run_state = MST_RUN_PAUSED;
        w->nodes[0].no_fence_answer = true;
        world_cut(w, 0, false);
        world_run(w, 20000);
        ck_assert_uint_eq(w->nodes[0].leases_asked, before);
        ck_assert_int_eq(world_request(w, MST_REQ_START, "web02", NULL), -ENOSPC);
        w->nodes[0].no_fence_answer = false;
    }
    world_cut(w, 0, false);
    world_run(w, 10000);
    ck_assert_uint_gt(w->nodes[0].leases_asked, before);
    ck_assert_int_eq(world_request(w, MST_REQ_START, "web02", NULL), 0);
    ck_assert(world_until(w, 20000, runs_somewhere, "web02"));
    world_free(w);
}
END_TEST

/* Back in FENCING for a start that failed elsewhere, its recovery says nothing of the node any more. */
START_TEST(a_node_that_is_well_again_keeps_its_lease_while_its_recovery_fences_another)
{
    struct world *w = with_leases(LEASE_MS, 0, false);
    struct mst_definition def = world_def("web01", 16, false);
    enum mst_rec_state state = MST_REC_FENCING;
    unsigned before;

    def.on_node_fault = MST_ON_FAULT_RESTART;
    def.allowed[def.allowed_count++] = 1;
    def.allowed[def.allowed_count++] = 2;
    world_define(w, &def);
    world_start_vm(w, "web01", "n1");
    w->nodes[0].reads_fail = 1; /* its keeper stops its VM, and says so */
    w->nodes[1].start_err = -ETIMEDOUT;
    w->nodes[1].no_fence_answer = true;
    while (world_epoch(w, "web01") == 1)
        world_run(w, 10);
    w->nodes[0].reads_fail = 0;
    ck_assert(world_until(w, 120000, recovery_is, &state));
    world_run(w, 1000);
    before = w->nodes[0].leases_asked;
    world_run(w, 2 * LEASE_MS);
    ck_assert(recovery_is(w, &state));
    ck_assert_uint_ge(w->nodes[0].leases_asked - before, 7);
    world_free(w);
}
END_TEST

START_TEST(renewals_that_may_have_gone_out_put_the_proof_off)
{
    struct world *w = vm_on_n1(WATCHDOG_MS, false);
    uint64_t deaf_ms;

    w->nodes[0].lease_wanted = true; /* asks again and again; the last one that reaches it is decided right before the cut */
    world_run(w, 500);
    world_cut(w, 0, true);
    deaf_ms = w->nodes[0].lease_ms;
    ck_assert(world_until(w, 120000, elsewhere, NULL));
    ck_assert_uint_ge(w->now_us / 1000, deaf_ms + PROOF_MS);
    world_free(w);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("lease");
    TCase *tc = tcase_create("lease");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tc, 110);
    tcase_add_test(tc, a_node_that_beats_is_renewed_at_a_quarter_of_its_lease);
    tcase_add_test(tc, without_leases_nobody_gets_one);
    tcase_add_test(tc, leases_of_an_earlier_run_are_called_off);
    tcase_add_test(tc, a_keeper_that_hangs_gets_no_renewal_however_readable_it_is);
    tcase_add_test(tc, a_node_whose_power_is_being_cut_gets_no_renewal_even_when_it_beats_again);
    tcase_add_test(tc, a_node_that_woke_from_a_pause_is_renewed_at_once);
    tcase_add_test(tc, a_coordinator_with_an_old_store_gives_no_leases);
    tcase_add_test(tc, the_end_of_a_lease_alone_frees_nothing);
    tcase_add_test(tc, with_a_watchdog_behind_it_the_end_of_a_lease_is_a_proof);
    tcase_add_loop_test(tc, a_watchdog_that_is_not_armed_or_slower_than_the_operator_says_proves_nothing, 0, 2);
    tcase_add_test(tc, a_lease_of_an_earlier_run_of_the_coordinator_proves_nothing);
    tcase_add_loop_test(tc, power_comes_before_the_watchdog, 0, 2);
    tcase_add_test(tc, a_node_that_comes_back_in_time_is_a_false_alarm_and_renewed);
    tcase_add_test(tc, a_node_that_gets_its_vms_back_is_renewed_before_they_run);
    tcase_add_loop_test(tc, a_node_whose_lease_proved_it_dead_is_used_again_once_it_is_back_and_runs_nothing, 0, 2);
    tcase_add_test(tc, a_node_that_is_well_again_keeps_its_lease_while_its_recovery_fences_another);
    tcase_add_test(tc, renewals_that_may_have_gone_out_put_the_proof_off);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
