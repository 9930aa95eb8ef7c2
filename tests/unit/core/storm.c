#include "tests/unit/core/world.h"

#include <errno.h>

/* What is right for one node that fails, and wrong when it is done to many at once. */

static void vm_on(struct world *w, const char *name, const char *node, uint32_t priority)
{
    struct mst_definition def = world_def(name, 16, true);

    def.priority = priority;
    world_define(w, &def);
    world_start_vm(w, name, node);
    world_checkpoint(w, name, 7);
}

/* web1 on n1, web2 on n2, ... */
static struct world *world_of(unsigned nodes, unsigned vms)
{
    struct world *w = world_new(nodes);

    for (unsigned i = 1; i <= vms; i++) {
        char vm[MST_NAME_BYTES], node[MST_NAME_BYTES];

        snprintf(vm, sizeof(vm), "web%u", i);
        snprintf(node, sizeof(node), "n%u", i);
        vm_on(w, vm, node, 10 * i);
    }
    world_run(w, 1200);
    return w;
}

static bool says(struct world *w, const void *text)
{
    return strstr(mst_core_trouble(w->core), text) != NULL;
}

static bool recovery_waits_for(struct world *w, const char *text)
{
    struct mst_recovery_look look;

    for (unsigned i = 0; mst_core_recovery(w->core, i, &look); i++) {
        if (strstr(look.why, text))
            return true;
    }
    return false;
}

static unsigned fences_running(const struct world *w)
{
    unsigned count = 0;

    for (unsigned i = 0; i < w->nodes_count; i++)
        count += w->fences[i].running ? 1 : 0;
    return count;
}

/* The node whose fence was asked for as the n-th, -1: none. */
static int nth_fence(const struct world *w, unsigned n)
{
    for (unsigned i = 0; i < w->events_count; i++) {
        if (strcmp(w->events[i].what, "fence") == 0 && n-- == 0)
            return (int)w->events[i].node;
    }
    return -1;
}

/* --- mass loss --- */

#define LONG_MS 90000u /* longer than any window */

static struct world *two_of_three_cut(uint32_t for_ms)
{
    struct world *w = world_of(3, 2);

    world_cut(w, 0, true);
    world_cut(w, 1, true);
    ck_assert(world_until(w, 10000, says, "2 of 3 nodes vanished at once (n1, n2)"));
    world_run(w, for_ms);
    ck_assert_uint_eq(w->fence_asked, 0);
    ck_assert(says(w, "cluster resume"));
    ck_assert(recovery_waits_for(w, "waits: most nodes vanished at once"));
    ck_assert_int_eq(world_where(w, "web1"), 0);
    return w;
}

START_TEST(when_two_of_three_nodes_vanish_nobody_is_fenced_until_the_operator_says_so)
{
    struct world *w = two_of_three_cut(_i == 0 ? LONG_MS : 2000);

    ck_assert_int_eq(world_request(w, MST_REQ_GO_ON, "cluster", NULL), 0);
    ck_assert(world_until(w, 10000, runs_somewhere, "web1"));
    ck_assert(world_until(w, 10000, runs_somewhere, "web2"));
    world_run(w, 5000);
    ck_assert_int_eq(world_where(w, "web1"), 2);
    ck_assert_int_eq(world_where(w, "web2"), 2);
    ck_assert_uint_eq(w->fence_asked, 2);
    ck_assert_str_eq(mst_core_trouble(w->core), "");
    world_free(w);
}
END_TEST

/* What was seen before it proves nothing, so for a moment nobody is missing: that is no end of it. */
START_TEST(a_pause_of_our_own_does_not_end_the_freeze)
{
    struct world *w = two_of_three_cut(LONG_MS);

    w->now_us += 1500000;
    world_run(w, 20000);
    ck_assert_uint_eq(w->fence_asked, 0);
    ck_assert(says(w, "cluster resume"));
    world_free(w);
}
END_TEST

START_TEST(a_node_that_is_back_for_a_moment_does_not_end_the_freeze_for_good)
{
    struct world *w = two_of_three_cut(LONG_MS);

    world_cut(w, 0, false);
    world_run(w, 1000);
    world_cut(w, 0, true);
    world_run(w, 20000);
    ck_assert_uint_eq(w->fence_asked, 0);
    world_free(w);
}
END_TEST

START_TEST(nodes_that_vanish_while_we_stand_still_vanish_at_once)
{
    struct world *w = world_of(3, 2);

    w->now_us += 70000000;
    world_cut(w, 0, true);
    world_cut(w, 1, true);
    world_run(w, 30000);
    ck_assert_uint_eq(w->fence_asked, 0);
    world_free(w);
}
END_TEST

/* Only the one before could not reach them. */
START_TEST(a_coordinator_that_begins_gives_nodes_time_to_call_before_it_fences)
{
    struct world *w = two_of_three_cut(2000);

    w->nodes[0].cut = false;
    world_restart(w);
    world_run(w, 1000);
    w->nodes[1].cut = false;
    world_run(w, 10000);
    ck_assert_uint_eq(w->fence_asked, 0);
    ck_assert_uint_eq(world_epoch(w, "web1"), 1);
    ck_assert_uint_eq(world_epoch(w, "web2"), 1);
    world_free(w);
}
END_TEST

START_TEST(when_one_of_the_vanished_nodes_is_back_the_other_is_fenced)
{
    struct world *w = two_of_three_cut(LONG_MS);

    world_cut(w, 0, false);
    ck_assert(world_until(w, 15000, runs_somewhere, "web2"));
    world_run(w, 5000);
    while (world_where(w, "web2") != 2)
        world_run(w, 100);
    ck_assert_int_eq(world_where(w, "web1"), 0);
    ck_assert_uint_eq(world_epoch(w, "web1"), 1); /* it ran on all the time */
    ck_assert_uint_eq(w->fence_asked, 1);
    ck_assert_int_eq(nth_fence(w, 0), 1);
    ck_assert_str_eq(mst_core_trouble(w->core), "");
    world_free(w);
}
END_TEST

START_TEST(the_operator_need_not_wait_for_the_grace_that_follows_a_mass_loss)
{
    struct world *w = two_of_three_cut(LONG_MS);
    uint64_t back_us;

    world_cut(w, 0, false);
    while (!recovery_waits_for(w, "waits: most nodes were away until just now"))
        world_run(w, WORLD_STEP_MS);
    back_us = w->now_us;
    ck_assert_int_eq(world_request(w, MST_REQ_GO_ON, "cluster", NULL), 0);
    while (w->fence_asked == 0)
        world_run(w, WORLD_STEP_MS);
    ck_assert_uint_lt(w->now_us - back_us, UINT64_C(1000) * w->conf.keeper_return_ms / 2);
    ck_assert_int_eq(nth_fence(w, 0), 1);
    world_free(w);
}
END_TEST

START_TEST(a_vanished_node_that_is_confirmed_dead_leaves_one_that_is_fenced)
{
    struct world *w = two_of_three_cut(LONG_MS);

    w->nodes[0].up = w->nodes[0].powered = false;
    memset(w->nodes[0].slots, 0, sizeof(w->nodes[0].slots));
    ck_assert_int_eq(world_request(w, MST_REQ_CONFIRM_DEAD, "n1", NULL), 0);
    ck_assert(world_until(w, 10000, runs_somewhere, "web1"));
    while (world_where(w, "web2") != 2)
        world_run(w, 100);
    ck_assert_uint_eq(w->fence_asked, 1);
    ck_assert_int_eq(nth_fence(w, 0), 1);
    world_free(w);
}
END_TEST

START_TEST(a_coordinator_that_starts_anew_among_vanished_nodes_fences_nobody_either)
{
    struct world *w = two_of_three_cut(LONG_MS);

    world_restart(w);
    world_run(w, 90000);
    ck_assert_uint_eq(w->fence_asked, 0);
    ck_assert(says(w, "2 of 3 nodes vanished at once"));
    world_free(w);
}
END_TEST

START_TEST(nodes_that_are_noticed_one_after_the_other_have_still_vanished_at_once)
{
    struct world *w = world_of(3, 2);

    world_cut(w, 0, true);
    world_run(w, 1000 + 200u * (unsigned)_i);
    world_cut(w, 1, true);
    world_run(w, 30000);
    ck_assert_uint_eq(w->fence_asked, 0);
    world_free(w);
}
END_TEST

START_TEST(reads_that_fail_on_most_nodes_stop_no_vm)
{
    struct world *w = world_of(3, 2);

    w->nodes[0].reads_fail = w->nodes[1].reads_fail = 1; /* their control links stay */
    world_run(w, 30000);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_FENCE, NULL), 0);
    ck_assert_uint_eq(w->fence_asked, 0);
    ck_assert(says(w, "2 of 3 nodes vanished at once"));
    w->nodes[0].reads_fail = w->nodes[1].reads_fail = 0;
    world_run(w, 10000);
    ck_assert_str_eq(mst_core_trouble(w->core), "");
    ck_assert_uint_eq(world_epoch(w, "web1"), 1);
    ck_assert_uint_eq(world_epoch(w, "web2"), 1);
    ck_assert(recovery_closed(w, NULL));
    world_free(w);
}
END_TEST

START_TEST(the_timeline_tells_of_freeze_and_grants)
{
    struct world *w = two_of_three_cut(2000);
    unsigned grants = w->told_grants;

    ck_assert_uint_ge(grants, 2);
    ck_assert_int_eq(world_request(w, MST_REQ_GO_ON, "cluster", NULL), 0);
    ck_assert(world_until(w, 20000, runs_somewhere, "web2"));
    world_run(w, 3000);
    ck_assert_uint_eq(w->told_grants, grants + 2);
    ck_assert_uint_gt(w->told_events, 30);
    world_free(w);
}
END_TEST

START_TEST(one_node_of_two_or_three_that_is_lost_is_fenced)
{
    struct world *w = world_of((unsigned)_i, 1);

    w->conf.mass_loss_percent = _i == 3 ? 10 : 50; /* one alone is never most */
    world_restart(w);
    world_run(w, 5000);
    world_cut(w, 0, true);
    world_run(w, 10000);
    ck_assert_uint_eq(w->fence_asked, 1);
    ck_assert_int_eq(world_where(w, "web1"), 1);
    ck_assert(!says(w, "vanished"));
    world_free(w);
}
END_TEST

START_TEST(half_of_the_nodes_is_not_most)
{
    struct world *w = world_of(4, 2);

    world_cut(w, 0, true);
    world_cut(w, 1, true);
    world_run(w, 10000);
    ck_assert_uint_eq(w->fence_asked, 2);
    ck_assert(runs_somewhere(w, "web1") && runs_somewhere(w, "web2"));
    world_free(w);
}
END_TEST

START_TEST(nodes_that_are_lost_one_by_one_are_fenced_one_by_one)
{
    struct world *w = world_of(4, 1);

    world_cut(w, 0, true);
    world_run(w, 10000);
    ck_assert_int_eq(world_where(w, "web1"), 1);
    world_cut(w, 1, true); /* n1 is still off */
    world_run(w, 10000);
    ck_assert_int_eq(world_where(w, "web1"), 2);
    world_cut(w, 2, true);
    world_run(w, 10000);
    ck_assert_int_eq(world_where(w, "web1"), 3);
    ck_assert_uint_eq(w->fence_asked, 3);
    world_free(w);
}
END_TEST

START_TEST(a_node_that_was_switched_off_long_ago_does_not_count)
{
    struct world *w = world_of(3, 1);

    world_node_kill(w, 2); /* nothing ran there: nobody fences it */
    world_run(w, 120000);
    world_cut(w, 0, true);
    world_run(w, 10000);
    ck_assert_uint_eq(w->fence_asked, 1);
    ck_assert_int_eq(world_where(w, "web1"), 1);
    world_free(w);
}
END_TEST

START_TEST(after_a_go_on_the_next_mass_loss_holds_fences_back_again)
{
    struct world *w = two_of_three_cut(LONG_MS);

    ck_assert_int_eq(world_request(w, MST_REQ_GO_ON, "cluster", NULL), 0);
    world_run(w, 10000);
    ck_assert_uint_eq(w->fence_asked, 2);
    world_cut(w, 0, false);
    world_cut(w, 1, false);
    world_node_power_on(w, 0);
    world_node_power_on(w, 1);
    world_run(w, 10000);
    ck_assert_str_eq(mst_core_trouble(w->core), "");
    world_start_vm(w, "web1", NULL);
    world_cut(w, 1, true);
    world_cut(w, 2, true);
    world_run(w, 30000);
    ck_assert_uint_eq(w->fence_asked, 2);
    ck_assert(says(w, "2 of 3 nodes vanished at once (n2, n3)"));
    world_free(w);
}
END_TEST

/* --- fences --- */

START_TEST(no_more_fences_run_at_once_than_allowed_and_the_important_go_first)
{
    struct world *w = world_of(8, 5); /* web5 on n5 is the most important */
    unsigned most = 0;
    bool told = false;

    w->conf.mass_loss_percent = 100;
    world_restart(w);
    world_run(w, 5000);
    w->fence_takes_ms = 1000;
    for (unsigned i = 0; i < 5; i++)
        world_cut(w, i, true);
    for (unsigned i = 0; i < 2000; i++) {
        world_run(w, WORLD_STEP_MS);
        most = fences_running(w) > most ? fences_running(w) : most;
        told = told || recovery_waits_for(w, "waits: 2 of 2 fences are under way");
    }
    ck_assert_uint_eq(most, 2);
    ck_assert(told);
    ck_assert_uint_eq(w->fence_asked, 5);
    ck_assert_int_ge(nth_fence(w, 0), 3); /* n4 and n5 in either order, then n3 ... */
    ck_assert_int_ge(nth_fence(w, 1), 3);
    ck_assert_int_eq(nth_fence(w, 2) + nth_fence(w, 3), 2 + 1);
    ck_assert_int_eq(nth_fence(w, 4), 0);
    ck_assert(runs_somewhere(w, "web1") && runs_somewhere(w, "web5"));
    world_free(w);
}
END_TEST

START_TEST(a_fence_that_fails_gives_way_while_it_rests)
{
    struct world *w = world_of(8, 3);

    w->conf.fences_max = 1;
    world_restart(w);
    world_run(w, 5000);
    w->fences_left_to_fail = 1;
    for (unsigned i = 0; i < 3; i++)
        world_cut(w, i, true);
    world_run(w, 12000);
    ck_assert_uint_eq(w->fence_asked, 4);
    ck_assert_int_eq(nth_fence(w, 0), 2); /* fails */
    ck_assert_int_eq(nth_fence(w, 1), 1);
    ck_assert(runs_somewhere(w, "web1") && runs_somewhere(w, "web2") && runs_somewhere(w, "web3"));
    world_free(w);
}
END_TEST

/* --- starts --- */

static unsigned starts_to(const struct world *w, unsigned node)
{
    unsigned count = 0;

    for (unsigned i = 0; i < w->events_count; i++)
        count += w->events[i].type == MST_ORDER_START && w->events[i].node == node ? 1 : 0;
    return count;
}

START_TEST(no_more_starts_are_under_way_to_a_node_than_allowed_and_the_important_go_first)
{
    struct world *w = world_new(2);
    char vm[MST_NAME_BYTES];

    w->conf.starts_max = 3;
    world_restart(w);
    world_run(w, 2000);
    for (unsigned i = 0; i < 8; i++) {
        snprintf(vm, sizeof(vm), "web%u", i);
        vm_on(w, vm, "n1", i < 5 ? 10 : 20 + i);
    }
    world_run(w, 1200);
    w->nodes[1].orders_wait = true;
    world_cut(w, 0, true);
    world_run(w, 10000);
    ck_assert_uint_eq(starts_to(w, 1), 3);
    for (unsigned i = 5; i < 8; i++) {
        snprintf(vm, sizeof(vm), "web%u", i);
        ck_assert_uint_eq(world_orders(w, MST_ORDER_START, vm), 2);
    }
    ck_assert(recovery_waits_for(w, "waits: 3 of 3 starts on n2 are under way"));
    w->nodes[1].orders_wait = false;
    world_run(w, 3000);
    ck_assert_uint_eq(starts_to(w, 1), 8);
    for (unsigned i = 0; i < 8; i++) {
        snprintf(vm, sizeof(vm), "web%u", i);
        ck_assert(runs_somewhere(w, vm));
    }
    ck_assert(recovery_closed(w, NULL));
    world_free(w);
}
END_TEST

START_TEST(a_start_that_waits_for_its_turn_survives_a_restart_of_the_coordinator)
{
    struct world *w = world_new(2);
    char vm[MST_NAME_BYTES];

    w->conf.starts_max = 1;
    world_restart(w);
    world_run(w, 2000);
    for (unsigned i = 0; i < 4; i++) {
        snprintf(vm, sizeof(vm), "web%u", i);
        vm_on(w, vm, "n1", 10);
    }
    world_run(w, 1200);
    w->nodes[1].orders_wait = true;
    world_cut(w, 0, true);
    world_run(w, 10000);
    ck_assert_uint_eq(starts_to(w, 1), 1);
    w->nodes[1].orders_wait = false;
    world_run(w, 20 * (unsigned)_i);
    world_restart(w);
    world_run(w, 10000);
    for (unsigned i = 0; i < 4; i++) {
        snprintf(vm, sizeof(vm), "web%u", i);
        ck_assert(runs_somewhere(w, vm));
        ck_assert_uint_eq(world_epoch(w, vm), 2);
    }
    world_free(w);
}
END_TEST

/* --- flapping --- */

/* Ten times a second for a minute. In this world nodes call every half second: with 0 they find the link up, with 1 never; with 2 all nodes
 * flap. */
START_TEST(a_link_that_flaps_moves_a_vm_once_at_most)
{
    struct world *w = world_of(3, 1);
    bool cut = _i != 1;

    while (w->now_us / 1000 % 100 != 0)
        world_run(w, WORLD_STEP_MS);
    for (unsigned i = 0; i < 60 * 20; i++) {
        for (unsigned k = 0; k < (_i == 2 ? 3 : 1); k++) {
            if (w->nodes[k].powered)
                world_cut(w, k, cut);
        }
        cut = !cut;
        world_run(w, 50);
    }
    for (unsigned k = 0; k < 3; k++)
        world_cut(w, k, false);
    world_run(w, 20000);
    ck_assert(runs_somewhere(w, "web1"));
    ck_assert_uint_le(world_orders(w, MST_ORDER_START, "web1"), 2);
    ck_assert_uint_le(world_epoch(w, "web1"), 2);
    ck_assert_uint_le(world_recoveries(w), 1);
    ck_assert(!world_recovery(w) || recovery_closed(w, NULL));
    world_free(w);
}
END_TEST

/* As seen in the lab: its memory cannot be read for a while, its control link holds, and all is well whenever it is decided who takes its VM. */
START_TEST(a_node_that_was_unreachable_a_moment_ago_takes_vms_only_when_nobody_else_can)
{
    struct world *w = world_of(2, 1);

    if (_i == 1)
        ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n2", NULL), 0);
    w->nodes[0].reads_fail = 1;
    w->nodes[0].orders_wait = true;
    while (world_orders(w, MST_ORDER_FENCE, "web1") == 0)
        world_run(w, WORLD_STEP_MS);
    w->nodes[0].reads_fail = 0;
    world_run(w, 500);
    w->nodes[0].orders_wait = false;
    while (world_epoch(w, "web1") == 1)
        world_run(w, WORLD_STEP_MS);
    ck_assert(world_until(w, 20000, runs_somewhere, "web1"));
    ck_assert_uint_eq(world_epoch(w, "web1"), 2);
    ck_assert_int_eq(world_where(w, "web1") == 0, _i == 1);
    world_free(w);
}
END_TEST

/* --- a VM that keeps crashing --- */

static struct world *crashing_vm(uint32_t restarts_max, uint32_t window_s)
{
    struct world *w = world_new(2);
    struct mst_definition def = world_def("web01", 16, true);

    def.restarts_max = restarts_max;
    def.restarts_window_s = window_s;
    world_define(w, &def);
    world_start_vm(w, "web01", "n1");
    return w;
}

static void crash(struct world *w)
{
    int node = world_where(w, "web01");

    ck_assert_int_ge(node, 0);
    world_vm_die(w, (unsigned)node, "web01");
    world_run(w, 5000);
}

START_TEST(a_vm_that_keeps_crashing_is_held_after_its_own_limit)
{
    struct world *w = crashing_vm((uint32_t)_i, 300);
    char text[64];

    for (int i = 0; i < _i; i++) {
        crash(w);
        ck_assert_msg(runs_somewhere(w, "web01"), "crash %d", i + 1);
    }
    crash(w);
    ck_assert(is_held(w, "web01"));
    snprintf(text, sizeof(text), "recovered %d times within 300 s", _i);
    ck_assert_ptr_nonnull(strstr(world_rvm(w, "web01")->text, text));
    ck_assert_int_eq(world_request(w, MST_REQ_START, "web01", NULL), 0);
    ck_assert(runs_somewhere(w, "web01"));
    world_free(w);
}
END_TEST

/* One start at a time: the second VM is still waiting for its turn when the first one's answer moves the recovery on. */
START_TEST(a_loss_of_a_node_counts_once_for_each_of_its_vms)
{
    static const char *const names[] = {"web1", "web2"};
    struct world *w = world_new(2);

    w->conf.starts_max = 1;
    world_restart(w);
    world_run(w, 2000);
    for (unsigned i = 0; i < 2; i++) {
        struct mst_definition def = world_def(names[i], 16, true);

        def.restarts_max = 2;
        def.restarts_window_s = 3600;
        world_define(w, &def);
        world_start_vm(w, names[i], "n1");
        world_checkpoint(w, names[i], 7);
    }
    for (unsigned from = 0; from < 2; from++) {
        world_run(w, 2000);
        world_cut(w, from, true);
        world_run(w, 60000);
        for (unsigned i = 0; i < 2; i++)
            ck_assert_msg(world_where(w, names[i]) == 1 - (int)from, "%s after %u losses", names[i], from + 1);
        world_node_power_on(w, from);
        world_cut(w, from, false);
        world_run(w, 40000);
    }
    world_free(w);
}
END_TEST

START_TEST(crashes_further_apart_than_the_window_do_not_hold_a_vm)
{
    struct world *w = crashing_vm(2, 20);

    for (int i = 0; i < 5; i++) {
        crash(w);
        ck_assert_msg(runs_somewhere(w, "web01"), "crash %d", i + 1);
        world_run(w, 10000);
    }
    world_free(w);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("storm");
    TCase *tcase = tcase_create("storm");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_set_timeout(tcase, 60);
    tcase_add_loop_test(tcase, when_two_of_three_nodes_vanish_nobody_is_fenced_until_the_operator_says_so, 0, 2);
    tcase_add_test(tcase, a_pause_of_our_own_does_not_end_the_freeze);
    tcase_add_test(tcase, a_node_that_is_back_for_a_moment_does_not_end_the_freeze_for_good);
    tcase_add_test(tcase, nodes_that_vanish_while_we_stand_still_vanish_at_once);
    tcase_add_test(tcase, a_coordinator_that_begins_gives_nodes_time_to_call_before_it_fences);
    tcase_add_test(tcase, when_one_of_the_vanished_nodes_is_back_the_other_is_fenced);
    tcase_add_test(tcase, the_operator_need_not_wait_for_the_grace_that_follows_a_mass_loss);
    tcase_add_test(tcase, a_vanished_node_that_is_confirmed_dead_leaves_one_that_is_fenced);
    tcase_add_test(tcase, a_coordinator_that_starts_anew_among_vanished_nodes_fences_nobody_either);
    tcase_add_loop_test(tcase, nodes_that_are_noticed_one_after_the_other_have_still_vanished_at_once, 0, 4);
    tcase_add_test(tcase, reads_that_fail_on_most_nodes_stop_no_vm);
    tcase_add_test(tcase, the_timeline_tells_of_freeze_and_grants);
    tcase_add_loop_test(tcase, one_node_of_two_or_three_that_is_lost_is_fenced, 2, 4);
    tcase_add_test(tcase, half_of_the_nodes_is_not_most);
    tcase_add_test(tcase, nodes_that_are_lost_one_by_one_are_fenced_one_by_one);
    tcase_add_test(tcase, a_node_that_was_switched_off_long_ago_does_not_count);
    tcase_add_test(tcase, after_a_go_on_the_next_mass_loss_holds_fences_back_again);
    tcase_add_test(tcase, no_more_fences_run_at_once_than_allowed_and_the_important_go_first);
    tcase_add_test(tcase, a_fence_that_fails_gives_way_while_it_rests);
    tcase_add_test(tcase, no_more_starts_are_under_way_to_a_node_than_allowed_and_the_important_go_first);
    tcase_add_loop_test(tcase, a_start_that_waits_for_its_turn_survives_a_restart_of_the_coordinator, 0, 4);
    tcase_add_loop_test(tcase, a_link_that_flaps_moves_a_vm_once_at_most, 0, 3);
    tcase_add_loop_test(tcase, a_node_that_was_unreachable_a_moment_ago_takes_vms_only_when_nobody_else_can, 0, 2);
    tcase_add_loop_test(tcase, a_vm_that_keeps_crashing_is_held_after_its_own_limit, 1, 4);
    tcase_add_test(tcase, a_loss_of_a_node_counts_once_for_each_of_its_vms);
    tcase_add_test(tcase, crashes_further_apart_than_the_window_do_not_hold_a_vm);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
