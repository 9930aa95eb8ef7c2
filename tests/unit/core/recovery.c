#include "tests/unit/core/world.h"

#include <errno.h>

/* One VM, protected, on n1 with a checkpoint. */
static struct world *one_vm(unsigned nodes)
{
    struct world *w = world_new(nodes);
    struct mst_definition def = world_def("web01", 16, true);

    world_define(w, &def);
    world_start_vm(w, "web01", "n1");
    world_checkpoint(w, "web01", 7);
    world_run(w, 1200);
    return w;
}

static void proof_is(struct world *w, const char *kind)
{
    ck_assert_ptr_nonnull(world_recovery(w));
    ck_assert_msg(strncmp(world_recovery(w)->proof, kind, strlen(kind)) == 0, "proof is %s", world_recovery(w)->proof);
}

/* --- VM faults --- */

START_TEST(a_dead_vm_is_fenced_and_resumed_in_place_from_its_checkpoint)
{
    struct world *w = one_vm(2);
    const struct world_event *start;

    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    ck_assert(world_until(w, 2000, runs_somewhere, "web01"));
    ck_assert_int_eq(world_where(w, "web01"), 0);
    ck_assert_uint_eq(world_epoch(w, "web01"), 2);
    start = world_last(w, MST_ORDER_START, "web01");
    ck_assert(start->has_source);
    ck_assert_uint_eq(start->source_epoch, 1);
    ck_assert_uint_eq(start->source_seq, 7);
    ck_assert(world_until(w, 500, recovery_closed, NULL));
    proof_is(w, "keeper");
    ck_assert_int_eq(world_rvm(w, "web01")->outcome, MST_OUT_RESUMED);
    world_free(w);
}
END_TEST

START_TEST(a_dead_vm_is_found_in_main_storage_when_nobody_reports_it)
{
    struct world *w = one_vm(2);

    world_vm_die(w, 0, "web01");
    ck_assert(world_until(w, 3000, runs_somewhere, "web01"));
    ck_assert_uint_eq(world_recoveries(w), 1);
    world_free(w);
}
END_TEST

START_TEST(ten_copies_of_a_report_make_one_recovery)
{
    struct world *w = one_vm(2);
    struct mst_report report = {.node = "n1", .vm = "web01", .epoch = 1};

    world_vm_die(w, 0, "web01");
    report.instance = w->nodes[0].hello.instance;
    for (int i = 0; i < 30; i++) { /* now, in the middle, and long after */
        struct mst_time t = {.us = w->now_us, .wall_ms = 1};

        report.kind = i % 3 ? MST_FAULT_VM_SILENT : MST_FAULT_VM_EXITED;
        mst_core_report(w->core, &t, w->nodes[0].link, 0, &report);
        if (i >= 10)
            world_run(w, i < 20 ? 10 : 100);
    }
    world_run(w, 3000);
    ck_assert_uint_eq(world_recoveries(w), 1);
    ck_assert_uint_eq(world_epoch(w, "web01"), 2);
    ck_assert_ptr_null(mst_core_fault(w->core, 1));
    world_free(w);
}
END_TEST

START_TEST(a_report_of_an_earlier_instance_or_epoch_is_refused)
{
    struct world *w = one_vm(2);
    struct mst_report report = {.kind = MST_FAULT_VM_EXITED, .node = "n1", .vm = "web01", .epoch = 1, .instance = 0x55};
    struct mst_time t = {.us = w->now_us, .wall_ms = 1};
    int err = 0;

    mst_core_report(w->core, &t, w->nodes[0].link, ++w->next_token, &report);
    world_run(w, 300);
    ck_assert(world_replied(w, w->next_token, &err));
    ck_assert_int_eq(err, -ESTALE);
    report.instance = 0;
    report.epoch = 77;
    t.us = w->now_us;
    mst_core_report(w->core, &t, w->nodes[0].link, ++w->next_token, &report);
    world_run(w, 300);
    ck_assert(world_replied(w, w->next_token, &err));
    ck_assert_int_eq(err, -ESTALE);
    ck_assert_uint_eq(world_recoveries(w), 0);
    world_free(w);
}
END_TEST

START_TEST(a_peer_that_reports_another_node_dead_is_not_believed)
{
    struct world *w = one_vm(2);
    struct mst_report report = {.kind = MST_FAULT_KEEPER_DEAD, .node = "n1"};
    struct mst_time t = {.us = w->now_us, .wall_ms = 1};

    mst_core_report(w->core, &t, w->nodes[1].link, 0, &report);
    world_run(w, 3000);
    ck_assert_uint_eq(world_recoveries(w), 0);
    ck_assert_uint_eq(w->fence_asked, 0);
    world_free(w);
}
END_TEST

START_TEST(without_a_usable_save_it_is_restarted_and_said_so)
{
    struct world *w = one_vm(2);

    world_checkpoint(w, "web01", 0);
    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    ck_assert(world_until(w, 2000, runs_somewhere, "web01"));
    ck_assert(!world_last(w, MST_ORDER_START, "web01")->has_source);
    ck_assert(world_until(w, 500, recovery_closed, NULL));
    ck_assert_int_eq(world_rvm(w, "web01")->outcome, MST_OUT_RESTARTED);
    ck_assert_ptr_nonnull(strstr(world_rvm(w, "web01")->text, "no usable save"));
    world_free(w);
}
END_TEST

START_TEST(what_its_node_says_of_a_boot_stands_behind_the_reason_for_it)
{
    struct world *w = one_vm(2);

    world_checkpoint(w, "web01", 0);
    for (unsigned n = 0; n < 2; n++)
        snprintf(w->nodes[n].start_text, sizeof(w->nodes[n].start_text), "its disk in main storage begins anew, with zeros");
    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    ck_assert(world_until(w, 2000, runs_somewhere, "web01"));
    ck_assert(world_until(w, 500, recovery_closed, NULL));
    ck_assert_msg(strstr(world_rvm(w, "web01")->text, "no usable save") != NULL, "it says %s", world_rvm(w, "web01")->text);
    ck_assert_ptr_nonnull(strstr(world_rvm(w, "web01")->text, "; its disk in main storage begins anew, with zeros"));
    world_free(w);
}
END_TEST

START_TEST(a_save_record_that_does_not_check_is_no_save)
{
    struct world *w = one_vm(2);

    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++)
        w->nodes[0].slots[i].s.save_corrupt = w->nodes[0].slots[i].used;
    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    ck_assert(world_until(w, 2000, runs_somewhere, "web01"));
    ck_assert(!world_last(w, MST_ORDER_START, "web01")->has_source);
    world_run(w, 500);
    ck_assert_uint_eq(mst_core_fault(w->core, 0)->kind, MST_FAULT_AREA_CORRUPT);
    world_free(w);
}
END_TEST

START_TEST(the_attribute_decides_what_follows_a_vm_fault)
{
    static const struct {
        uint8_t attr;
        enum mst_vm_phase phase;
        int where;
        bool source;
    } rows[] = {
        {MST_ON_FAULT_RESUME, MST_VM_RUNNING, 0, true},    {MST_ON_FAULT_RESUME_ELSEWHERE, MST_VM_RUNNING, 1, true},
        {MST_ON_FAULT_RESTART, MST_VM_RUNNING, 0, false},  {MST_ON_FAULT_HOLD, MST_VM_HELD, -1, false},
        {MST_ON_FAULT_DISCARD, MST_VM_STOPPED, -1, false},
    };
    struct world *w = world_new(2);
    struct mst_definition def = world_def("web01", 16, true);

    def.on_vm_fault = rows[_i].attr;
    world_define(w, &def);
    world_start_vm(w, "web01", "n1");
    world_checkpoint(w, "web01", 7);
    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    world_run(w, 2000);
    ck_assert_int_eq(world_phase(w, "web01"), rows[_i].phase);
    ck_assert_int_eq(world_where(w, "web01"), rows[_i].where);
    if (rows[_i].where >= 0)
        ck_assert_int_eq(world_last(w, MST_ORDER_START, "web01")->has_source, rows[_i].source);
    if (rows[_i].phase == MST_VM_HELD) { /* the operator may have it resumed all the same */
        ck_assert_int_eq(world_request(w, MST_REQ_START, "web01", NULL), 0);
        ck_assert_int_eq(world_where(w, "web01"), 0);
        ck_assert(world_last(w, MST_ORDER_START, "web01")->has_source);
    }
    world_free(w);
}
END_TEST

START_TEST(a_second_panic_within_a_minute_restarts)
{
    struct world *w = one_vm(2);

    world_report(w, MST_FAULT_VM_PANICKED, 0, "web01");
    world_run(w, 2000);
    ck_assert_uint_eq(world_epoch(w, "web01"), 2);
    ck_assert(world_last(w, MST_ORDER_START, "web01")->has_source);
    world_checkpoint(w, "web01", 3);
    world_run(w, 10000);
    world_report(w, MST_FAULT_VM_PANICKED, 0, "web01");
    world_run(w, 2000);
    ck_assert_uint_eq(world_epoch(w, "web01"), 3);
    ck_assert(!world_last(w, MST_ORDER_START, "web01")->has_source);
    world_free(w);
}
END_TEST

START_TEST(a_vm_that_fails_again_and_again_is_held)
{
    struct world *w = one_vm(2);

    for (int i = 0; i < 5; i++) {
        world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
        world_run(w, 2000);
        ck_assert_int_ge(world_where(w, "web01"), 0);
    }
    world_report(w, MST_FAULT_VM_EXITED, (unsigned)world_where(w, "web01"), "web01");
    world_run(w, 2000);
    ck_assert_int_eq(world_phase(w, "web01"), MST_VM_HELD);
    ck_assert_int_eq(world_where(w, "web01"), -1);
    world_free(w);
}
END_TEST

/* --- starts that fail --- */

START_TEST(a_failed_start_is_fenced_and_tried_elsewhere_with_a_new_epoch)
{
    struct world *w = one_vm(2);
    uint64_t fenced_ms, started_ms;

    w->nodes[0].start_err = -ENOMEM;
    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    ck_assert(world_until(w, 5000, runs_somewhere, "web01"));
    ck_assert_int_eq(world_where(w, "web01"), 1);
    ck_assert_uint_eq(world_epoch(w, "web01"), 3);
    fenced_ms = world_last(w, MST_ORDER_FENCE, "web01")->at_ms; /* of epoch 2, on n1 */
    started_ms = world_last(w, MST_ORDER_START, "web01")->at_ms;
    ck_assert_uint_eq(world_orders(w, MST_ORDER_FENCE, "web01"), 2);
    ck_assert_uint_gt(started_ms, fenced_ms);
    ck_assert_uint_eq(world_last(w, MST_ORDER_START, "web01")->source_epoch, 1); /* the only save there is */
    world_free(w);
}
END_TEST

START_TEST(a_start_has_time_for_the_memory_of_its_vm)
{
    struct world *w = world_new(2);
    struct mst_definition def = world_def("big01", 600, false); /* 60 s, and 60 s for 600 MiB at 10 MB/s */

    world_define(w, &def);
    w->nodes[0].orders_wait = w->nodes[1].orders_wait = true;
    (void)world_ask(w, MST_REQ_START, "big01", NULL);
    world_run(w, 110000);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_START, "big01"), 1);
    world_run(w, 20000);
    ck_assert_uint_gt(world_orders(w, MST_ORDER_FENCE, "big01"), 0);
    world_free(w);
}
END_TEST

START_TEST(after_three_failed_starts_it_is_held_with_the_reason)
{
    struct world *w = one_vm(2);

    w->nodes[0].start_err = w->nodes[1].start_err = -EIO;
    snprintf(w->nodes[0].start_text, sizeof(w->nodes[0].start_text), "no QEMU");
    snprintf(w->nodes[1].start_text, sizeof(w->nodes[1].start_text), "no QEMU");
    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    ck_assert(world_until(w, 10000, is_held, "web01"));
    ck_assert_uint_eq(world_orders(w, MST_ORDER_START, "web01"), 1 + 3);
    ck_assert_ptr_nonnull(strstr(world_rvm(w, "web01")->text, "no QEMU"));
    w->nodes[1].start_err = 0;
    ck_assert_int_eq(world_request(w, MST_REQ_START, "web01", NULL), 0); /* a person may try again */
    world_free(w);
}
END_TEST

START_TEST(a_save_that_is_refused_twice_when_it_is_pulled_leads_to_a_restart)
{
    struct world *w = one_vm(2);

    w->nodes[0].start_err = w->nodes[1].start_err = -EUCLEAN;
    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    while (world_orders(w, MST_ORDER_START, "web01") < 3)
        world_run(w, 10);
    ck_assert(world_last(w, MST_ORDER_START, "web01")->has_source); /* the second try, elsewhere */
    world_run(w, 20);
    w->nodes[0].start_err = w->nodes[1].start_err = 0;
    ck_assert(world_until(w, 5000, runs_somewhere, "web01"));
    ck_assert(!world_last(w, MST_ORDER_START, "web01")->has_source);
    world_free(w);
}
END_TEST

/* --- node faults --- */

START_TEST(a_dead_node_is_power_fenced_before_anything_is_restarted)
{
    struct world *w = one_vm(2);
    const struct world_event *start;
    unsigned fence = 0;

    w->fence_takes_ms = 2000;
    world_node_kill(w, 0);
    world_run(w, 3500);
    ck_assert_uint_eq(w->fence_asked, 1);
    world_run(w, 1000);
    ck_assert_int_eq(world_where(w, "web01"), -1); /* asked is not done */
    ck_assert(world_until(w, 5000, runs_somewhere, "web01"));
    ck_assert_int_eq(world_where(w, "web01"), 1);
    start = world_last(w, MST_ORDER_START, "web01");
    ck_assert(!start->has_source); /* its memory went with the power */
    ck_assert(world_until(w, 500, recovery_closed, NULL));
    proof_is(w, "power");
    ck_assert_int_eq(world_rvm(w, "web01")->outcome, MST_OUT_RESTARTED);
    for (unsigned i = 0; i < w->events_count; i++)
        fence = strcmp(w->events[i].what, "fence") == 0 ? i : fence;
    ck_assert_uint_ge(start->at_ms, w->events[fence].at_ms + 2000);
    world_free(w);
}
END_TEST

START_TEST(unconfirmed_fence_holds_recovery_and_starts_no_vm)
{
    struct world *w = one_vm(3);
    enum mst_rec_state fencing = MST_REC_FENCING;
    struct mst_recovery_look look;

    w->power = POWER_FAILS;
    world_cut(w, 0, true); /* it runs on, unseen */
    world_run(w, 120000);
    ck_assert(recovery_is(w, &fencing));
    ck_assert_uint_eq(world_orders(w, MST_ORDER_START, "web01"), 1);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    ck_assert_uint_gt(w->fence_asked, 4);
    ck_assert_uint_lt(w->fence_asked, 16); /* backoff */
    ck_assert(mst_core_recovery(w->core, 0, &look));
    ck_assert_ptr_nonnull(strstr(look.why, "device does not answer"));
    /* The operator pulls the plug and says so. */
    w->nodes[0].up = w->nodes[0].powered = false;
    ck_assert_int_eq(world_request(w, MST_REQ_CONFIRM_DEAD, "n1", NULL), 0);
    ck_assert(world_until(w, 2000, runs_somewhere, "web01"));
    proof_is(w, "operator");
    world_free(w);
}
END_TEST

START_TEST(a_fence_that_fails_three_times_and_then_works_is_enough)
{
    struct world *w = one_vm(2);

    w->fences_left_to_fail = 3;
    world_node_kill(w, 0);
    ck_assert(world_until(w, 30000, runs_somewhere, "web01"));
    ck_assert_uint_eq(w->fence_asked, 4);
    world_free(w);
}
END_TEST

START_TEST(without_a_fence_device_only_the_operator_helps)
{
    struct world *w = world_new(2);
    struct mst_definition def = world_def("web01", 16, true);

    w->conf.nodes[0].has_fence = false;
    world_restart(w);
    world_run(w, 1500);
    world_define(w, &def);
    world_start_vm(w, "web01", "n1");
    world_node_kill(w, 0);
    world_run(w, 20000);
    ck_assert_uint_eq(w->fence_asked, 0);
    ck_assert_int_eq(world_where(w, "web01"), -1);
    ck_assert_int_eq(world_request(w, MST_REQ_CONFIRM_DEAD, "n1", NULL), 0);
    ck_assert(world_until(w, 2000, runs_somewhere, "web01"));
    world_free(w);
}
END_TEST

START_TEST(a_beating_node_cannot_be_confirmed_dead)
{
    struct world *w = one_vm(2);

    ck_assert_int_eq(world_request(w, MST_REQ_CONFIRM_DEAD, "n1", NULL), -EBUSY);
    world_run(w, 1000);
    ck_assert_uint_eq(world_recoveries(w), 0);
    world_free(w);
}
END_TEST

START_TEST(with_no_other_node_up_nothing_is_powered_off)
{
    struct world *w = one_vm(1);

    world_node_kill(w, 0);
    world_run(w, 30000);
    ck_assert_uint_eq(w->fence_asked, 0);
    world_free(w);
}
END_TEST

START_TEST(a_keeper_that_comes_back_is_proof_and_its_memory_is_used)
{
    struct world *w = one_vm(2);

    world_node_kill(w, 0);
    world_run(w, 500);
    world_node_return(w, 0, true);
    ck_assert(world_until(w, 3000, runs_somewhere, "web01"));
    ck_assert_uint_eq(w->fence_asked, 0);
    ck_assert(world_last(w, MST_ORDER_START, "web01")->has_source);
    ck_assert_uint_eq(world_last(w, MST_ORDER_START, "web01")->source_seq, 7);
    ck_assert(world_until(w, 500, recovery_closed, NULL));
    proof_is(w, "return");
    ck_assert_uint_eq(world_recovery(w)->kind, MST_FAULT_KEEPER_DEAD);
    ck_assert_uint_eq(world_recoveries(w), 1);
    world_free(w);
}
END_TEST

START_TEST(a_keeper_that_cannot_vouch_for_its_past_is_asked_to_fence)
{
    struct world *w = one_vm(2);

    world_node_kill(w, 0);
    world_run(w, 500);
    world_node_return(w, 0, false);
    ck_assert(world_until(w, 3000, runs_somewhere, "web01"));
    ck_assert(world_until(w, 500, recovery_closed, NULL));
    proof_is(w, "keeper");
    ck_assert_uint_eq(w->fence_asked, 0);
    world_free(w);
}
END_TEST

START_TEST(a_node_that_is_powered_off_and_on_again_gets_its_vm_restarted)
{
    struct world *w = one_vm(2);

    world_node_kill(w, 0);
    w->nodes[0].powered = false;
    memset(w->nodes[0].slots, 0, sizeof(w->nodes[0].slots));
    world_run(w, 1500);
    world_node_power_on(w, 0);
    ck_assert(world_until(w, 3000, runs_somewhere, "web01"));
    ck_assert_uint_eq(w->fence_asked, 0);
    ck_assert(!world_last(w, MST_ORDER_START, "web01")->has_source);
    ck_assert(world_until(w, 500, recovery_closed, NULL));
    proof_is(w, "return");
    world_free(w);
}
END_TEST

START_TEST(proof_of_previous_instance_does_not_count)
{
    struct world *w = one_vm(2);
    enum mst_rec_state fencing = MST_REC_FENCING;

    /* The keeper answers the fence as another instance than the one that was asked. */
    w->nodes[0].fence_wrong_instance = true;
    world_report(w, MST_FAULT_VM_SILENT, 0, "web01");
    world_run(w, 8000);
    ck_assert(recovery_is(w, &fencing));
    ck_assert_uint_eq(world_orders(w, MST_ORDER_START, "web01"), 1);
    w->nodes[0].fence_wrong_instance = false;
    ck_assert(world_until(w, 20000, runs_somewhere, "web01"));
    world_free(w);
}
END_TEST

START_TEST(a_power_proof_of_the_old_instance_does_not_cover_what_runs_since)
{
    struct world *w = one_vm(2);
    unsigned starts;

    world_node_kill(w, 0);
    ck_assert(world_until(w, 10000, runs_somewhere, "web01")); /* on n2, by power fence */
    world_node_power_on(w, 0);
    world_run(w, 1000);
    ck_assert_int_eq(world_request(w, MST_REQ_STOP, "web01", NULL), 0);
    world_start_vm(w, "web01", "n1");
    starts = world_orders(w, MST_ORDER_START, "web01");
    world_cut(w, 0, true);
    w->power = POWER_FAILS;
    world_run(w, 30000);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_START, "web01"), starts); /* the old proof is worth nothing */
    world_free(w);
}
END_TEST

START_TEST(a_frozen_keeper_is_power_fenced_although_reads_succeed)
{
    struct world *w = one_vm(2);

    w->nodes[0].frozen = true;
    ck_assert(world_until(w, 6000, runs_somewhere, "web01"));
    ck_assert(world_until(w, 6000, recovery_closed, NULL));
    ck_assert_uint_eq(world_recovery(w)->kind, MST_FAULT_KEEPER_SILENT);
    proof_is(w, "power");
    ck_assert_int_eq(world_where(w, "web01"), 1);
    world_free(w);
}
END_TEST

START_TEST(a_node_that_is_back_before_it_was_fenced_keeps_its_vms)
{
    struct world *w = one_vm(2);

    w->power = POWER_FAILS;
    world_cut(w, 0, true);
    world_run(w, 5000);
    world_cut(w, 0, false);
    world_run(w, 12000); /* between two tries of the fence agent */
    ck_assert_int_eq(world_recovery(w)->state, MST_REC_DONE);
    ck_assert_int_eq(world_rvm(w, "web01")->outcome, MST_OUT_RUNS_ON);
    ck_assert_int_eq(world_phase(w, "web01"), MST_VM_RUNNING);
    ck_assert_uint_eq(world_epoch(w, "web01"), 1);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    world_free(w);
}
END_TEST

START_TEST(a_short_absence_is_no_fault)
{
    struct world *w = one_vm(2);

    for (int i = 0; i < 10; i++) {
        world_cut(w, 0, true);
        world_run(w, 1500);
        world_cut(w, 0, false);
        world_run(w, 1500);
    }
    ck_assert_uint_eq(world_recoveries(w), 0);
    ck_assert_uint_eq(world_epoch(w, "web01"), 1);
    world_free(w);
}
END_TEST

START_TEST(a_pause_of_the_coordinator_declares_nobody_dead)
{
    struct world *w = one_vm(3);

    for (int i = 0; i < 5; i++) {
        w->now_us += 30000000; /* stopped; nodes went on */
        world_run(w, 500);
    }
    ck_assert_uint_eq(world_recoveries(w), 0);
    ck_assert_uint_eq(w->fence_asked, 0);
    world_free(w);
}
END_TEST

START_TEST(a_failed_read_before_our_pause_and_one_after_it_are_not_a_long_silence)
{
    struct world *w = one_vm(3);

    if (_i == 0)
        world_cut(w, 0, true);
    else
        w->nodes[0].reads_fail = 1; /* the control link stays */
    world_run(w, 300);
    w->now_us += 30000000;
    world_run(w, 1000);
    world_cut(w, 0, false);
    w->nodes[0].reads_fail = 0;
    world_run(w, 4000);
    ck_assert_uint_eq(world_recoveries(w), 0);
    ck_assert_uint_eq(w->fence_asked, 0);
    world_free(w);
}
END_TEST

START_TEST(a_save_record_of_another_epoch_is_not_used)
{
    struct world *w = one_vm(2);

    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++)
        w->nodes[0].slots[i].s.save_epoch = 77;
    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    ck_assert(world_until(w, 3000, runs_somewhere, "web01"));
    ck_assert(!world_last(w, MST_ORDER_START, "web01")->has_source);
    world_free(w);
}
END_TEST

START_TEST(a_keeper_that_returns_while_its_power_is_being_cut_is_taken_back)
{
    struct world *w = one_vm(2);

    w->power = POWER_HANGS;
    world_node_kill(w, 0);
    world_run(w, 5000);
    ck_assert_uint_eq(w->fence_asked, 1);
    world_node_return(w, 0, true);
    ck_assert(world_until(w, 3000, runs_somewhere, "web01"));
    ck_assert(world_last(w, MST_ORDER_START, "web01")->has_source); /* nothing was lost */
    ck_assert_int_eq(world_where(w, "web01"), 1);                   /* its power may still go */
    ck_assert(!w->fences[0].running);
    world_free(w);
}
END_TEST

START_TEST(an_idle_node_that_goes_away_is_not_shot)
{
    struct world *w = one_vm(3);

    world_node_kill(w, 2);
    world_run(w, 10000);
    ck_assert_uint_eq(w->fence_asked, 0);
    ck_assert_uint_eq(world_recoveries(w), 0);
    world_free(w);
}
END_TEST

START_TEST(the_target_dies_while_it_resumes_and_the_vm_goes_on_elsewhere)
{
    struct world *w = one_vm(3);

    w->nodes[1].start_err = 1; /* never answers: taken out of its mail below */
    w->nodes[0].hello.memory_mib = 768;
    world_node_kill(w, 0);
    while (world_orders(w, MST_ORDER_START, "web01") < 2)
        world_run(w, 10);
    {
        unsigned target = world_last(w, MST_ORDER_START, "web01")->node;

        ck_assert_uint_ne(target, 0);
        world_node_kill(w, target);
        w->nodes[1].start_err = 0;
        ck_assert(world_until(w, 20000, runs_somewhere, "web01"));
        ck_assert_int_ne(world_where(w, "web01"), (int)target);
        ck_assert_int_ne(world_where(w, "web01"), 0);
    }
    ck_assert_uint_eq(world_epoch(w, "web01"), 3);
    world_free(w);
}
END_TEST

START_TEST(the_node_attribute_decides_what_follows_a_node_fault)
{
    static const struct {
        uint8_t attr;
        enum mst_vm_phase phase;
    } rows[] = {{MST_ON_FAULT_RESUME, MST_VM_RUNNING},
                {MST_ON_FAULT_RESTART, MST_VM_RUNNING},
                {MST_ON_FAULT_HOLD, MST_VM_HELD},
                {MST_ON_FAULT_DISCARD, MST_VM_STOPPED}};
    struct world *w = world_new(2);
    struct mst_definition def = world_def("web01", 16, true);

    def.on_node_fault = rows[_i].attr;
    world_define(w, &def);
    world_start_vm(w, "web01", "n1");
    world_node_kill(w, 0);
    world_run(w, 8000);
    ck_assert_int_eq(world_phase(w, "web01"), rows[_i].phase);
    world_free(w);
}
END_TEST

START_TEST(all_vms_of_a_node_are_one_recovery_and_priority_gets_the_room)
{
    struct world *w = world_new(2);
    struct mst_definition low = world_def("low", 300, false);
    struct mst_definition high = world_def("high", 300, false);
    struct mst_definition here = world_def("here", 300, false);

    high.priority = 50;
    world_define(w, &low);
    world_define(w, &high);
    world_define(w, &here);
    world_start_vm(w, "low", "n1");
    world_start_vm(w, "high", "n1");
    world_start_vm(w, "here", "n2");
    world_node_kill(w, 0);
    ck_assert(world_until(w, 8000, runs_somewhere, "high"));
    world_run(w, 1000);
    ck_assert_uint_eq(world_recoveries(w), 1);
    ck_assert_int_eq(world_phase(w, "low"), MST_VM_HELD);
    ck_assert_ptr_nonnull(strstr(world_rvm(w, "low")->text, "MiB left"));
    ck_assert_int_eq(world_recovery(w)->state, MST_REC_HELD);
    /* Room appears: it goes on by itself. */
    world_node_power_on(w, 0);
    ck_assert(world_until(w, 5000, runs_somewhere, "low"));
    ck_assert(world_until(w, 1000, recovery_closed, NULL));
    ck_assert_int_eq(world_recovery(w)->state, MST_REC_DONE);
    world_free(w);
}
END_TEST

/* --- live moves --- */

START_TEST(a_failing_processor_has_its_vms_saved_fenced_and_resumed_elsewhere)
{
    struct world *w = one_vm(2);
    struct mst_definition def = world_def("plain", 16, false);

    world_define(w, &def);
    world_start_vm(w, "plain", "n1");
    world_report(w, MST_FAULT_PROCESSOR, 0, NULL);
    world_report(w, MST_FAULT_PROCESSOR, 0, NULL);
    world_run(w, 3000);
    ck_assert_int_eq(world_where(w, "web01"), 1);
    ck_assert_int_eq(world_where(w, "plain"), 1);
    ck_assert(world_last(w, MST_ORDER_START, "web01")->has_source);
    ck_assert_uint_eq(world_last(w, MST_ORDER_START, "web01")->source_seq, 8);
    ck_assert(world_last(w, MST_ORDER_START, "plain")->has_source); /* protect none: saved alive */
    ck_assert_uint_eq(world_recoveries(w), 1);
    proof_is(w, "keeper");
    /* No new VM goes there until the operator says so. */
    def = world_def("next", 16, false);
    world_define(w, &def);
    ck_assert_int_eq(world_request(w, MST_REQ_START, "next", "n1"), -ENOSPC);
    ck_assert_int_eq(world_request(w, MST_REQ_UNDRAIN, "n1", NULL), 0);
    ck_assert(world_until(w, 5000, runs_somewhere, "next"));
    ck_assert_int_eq(world_where(w, "next"), 0);
    world_free(w);
}
END_TEST

START_TEST(a_save_that_fails_falls_back_to_the_last_checkpoint)
{
    struct world *w = one_vm(2);

    w->nodes[0].save_fails = true;
    world_report(w, MST_FAULT_PROCESSOR, 0, NULL);
    ck_assert(world_until(w, 3000, recovery_closed, NULL));
    ck_assert_int_eq(world_where(w, "web01"), 1);
    ck_assert_uint_eq(world_last(w, MST_ORDER_START, "web01")->source_seq, 7);
    world_free(w);
}
END_TEST

START_TEST(with_no_room_elsewhere_vms_run_on_where_they_are)
{
    struct world *w = one_vm(2);
    struct mst_definition big = world_def("big", 740, false);

    world_define(w, &big);
    world_start_vm(w, "big", "n2");
    world_report(w, MST_FAULT_PROCESSOR, 0, NULL);
    world_run(w, 3000);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    ck_assert_int_eq(world_phase(w, "web01"), MST_VM_RUNNING);
    ck_assert_uint_eq(world_epoch(w, "web01"), 1);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_SAVE, NULL), 0);
    ck_assert_int_eq(world_recovery(w)->state, MST_REC_HELD);
    ck_assert_ptr_nonnull(strstr(world_rvm(w, "web01")->text, "nobody else has room"));
    ck_assert_int_eq(world_request(w, MST_REQ_STOP, "big", NULL), 0);
    world_run(w, 4000);
    ck_assert_int_eq(world_where(w, "web01"), 1);
    ck_assert_int_eq(world_recovery(w)->state, MST_REC_DONE);
    world_free(w);
}
END_TEST

static void hang_the_store(struct world *w)
{
    struct mst_definition other = world_def("other", 16, false);

    world_define(w, &other);
    w->store_hangs = true;
    (void)world_ask(w, MST_REQ_UNDEFINE, "other", NULL);
    world_run(w, 100);
}

/* The decision waited for the store longer than the silence lasted. */
START_TEST(a_vm_that_answers_again_before_its_silence_is_decided_on_runs_on)
{
    struct world *w = one_vm(2);
    struct mst_slot *slot = world_slot(&w->nodes[0], "web01", 1);

    hang_the_store(w);
    slot->fault_kind = MST_FAULT_VM_SILENT;
    w->nodes[0].generation++;
    world_run(w, 2000);
    slot->fault_kind = 0;
    w->nodes[0].generation++;
    world_run(w, 2000);
    w->store_hangs = false;
    world_run(w, 10000);
    ck_assert_uint_eq(world_epoch(w, "web01"), 1);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    world_free(w);
}
END_TEST

START_TEST(an_agent_that_moves_again_before_its_silence_is_decided_on_is_left_alone)
{
    struct world *w = one_vm(2);

    world_run(w, 2000);
    hang_the_store(w);
    w->nodes[0].agent_frozen = true;
    world_run(w, 5000);
    w->nodes[0].agent_frozen = false;
    world_run(w, 1000);
    w->store_hangs = false;
    world_run(w, 5000);
    ck_assert_uint_eq(w->nodes[0].agent_restarts_ordered, 0);
    world_free(w);
}
END_TEST

START_TEST(a_drain_moves_everything_alive_and_leaves_nothing_behind)
{
    struct world *w = one_vm(3);
    struct mst_definition hold = world_def("hold", 16, false);

    hold.on_node_fault = MST_ON_FAULT_HOLD; /* speaks of faults; a drain is none */
    world_define(w, &hold);
    world_start_vm(w, "hold", "n1");
    ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n1", NULL), 0);
    world_run(w, 4000);
    ck_assert_int_gt(world_where(w, "web01"), 0);
    ck_assert_int_gt(world_where(w, "hold"), 0);
    world_checkpoint(w, "web01", 1);
    world_run(w, 12000);
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++)
        ck_assert(!w->nodes[0].slots[i].used);
    ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n1", NULL), 0); /* again: nothing to do */
    world_free(w);
}
END_TEST

START_TEST(a_node_that_dies_in_the_middle_of_a_drain_loses_no_vm)
{
    struct world *w = one_vm(2);

    (void)world_ask(w, MST_REQ_DRAIN, "n1", NULL);
    while (world_orders(w, MST_ORDER_SAVE, "web01") == 0)
        world_run(w, 10);
    world_node_kill(w, 0);
    ck_assert(world_until(w, 15000, runs_somewhere, "web01"));
    ck_assert_int_eq(world_where(w, "web01"), 1);
    world_free(w);
}
END_TEST

/* --- agent --- */

START_TEST(a_hung_agent_is_restarted_and_its_vms_run_on)
{
    struct world *w = one_vm(2);

    w->nodes[0].agent_frozen = true;
    world_run(w, 6000);
    ck_assert_uint_eq(w->nodes[0].agent_restarts_ordered, 1);
    ck_assert_int_eq(world_recovery(w)->state, MST_REC_DONE);
    ck_assert_uint_eq(world_recovery(w)->kind, MST_FAULT_AGENT_SILENT);
    ck_assert_uint_eq(world_epoch(w, "web01"), 1);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_FENCE, NULL), 0);
    world_free(w);
}
END_TEST

START_TEST(an_agent_that_three_restarts_do_not_help_costs_the_node_its_vms)
{
    struct world *w = one_vm(2);

    w->nodes[0].agent_frozen = true;
    w->nodes[0].agent_restart_helps = false;
    ck_assert(!world_until(w, 20000, recovery_closed, NULL) || world_where(w, "web01") == 0);
    world_run(w, 30000);
    ck_assert_uint_eq(w->nodes[0].agent_restarts_ordered, 3);
    ck_assert_int_eq(world_where(w, "web01"), 1);
    ck_assert_uint_eq(world_last(w, MST_ORDER_START, "web01")->source_seq, 7);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_SAVE, NULL), 0); /* nobody could do it */
    ck_assert_uint_eq(w->fence_asked, 0);
    world_free(w);
}
END_TEST

/* --- the operator in between --- */

START_TEST(stop_during_recovery_is_not_revived)
{
    struct world *w = one_vm(2);
    uint64_t token;
    int err = 1;

    /* _i: how far the recovery has come when the operator stops the VM. */
    world_node_kill(w, 0);
    world_run(w, 2900 + 20 * (uint32_t)_i);
    token = world_ask(w, MST_REQ_STOP, "web01", NULL);
    world_run(w, 15000);
    ck_assert(world_replied(w, token, &err));
    ck_assert_int_eq(err, 0);
    ck_assert_int_eq(world_phase(w, "web01"), MST_VM_STOPPED);
    ck_assert_int_eq(world_where(w, "web01"), -1);
    world_restart(w);
    world_run(w, 10000);
    ck_assert_int_eq(world_where(w, "web01"), -1);
    ck_assert_int_eq(world_phase(w, "web01"), MST_VM_STOPPED);
    world_free(w);
}
END_TEST

/* --- the coordinator dies --- */

struct crash_case {
    const char *name;
    void (*fault)(struct world *w);
    uint32_t run_ms;
    uint64_t epochs; /* most that the VM may have used */
};

static void fault_vm(struct world *w)
{
    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
}

static void fault_node(struct world *w)
{
    world_node_kill(w, 0);
}

static void fault_return(struct world *w)
{
    world_node_kill(w, 0);
    world_run(w, 300);
    world_node_return(w, 0, true);
}

static void fault_processor(struct world *w)
{
    world_report(w, MST_FAULT_PROCESSOR, 0, NULL);
}

static void fault_bad_start(struct world *w)
{
    w->nodes[0].start_err = -EIO;
    fault_vm(w);
}

static const struct crash_case crashes[] = {
    {"vm", fault_vm, 12000, 2},
    {"node", fault_node, 25000, 2},
    {"return", fault_return, 12000, 2},
    {"processor", fault_processor, 12000, 2},
    {"bad start", fault_bad_start, 12000, 3},
};
#define CRASH_CASES (sizeof(crashes) / sizeof(crashes[0]))
#define CRASH_STEPS 14

START_TEST(restart_at_every_durable_step_finishes_once)
{
    const struct crash_case *c = &crashes[(unsigned)_i / 2 % CRASH_CASES];
    unsigned step = (unsigned)_i / 2 / CRASH_CASES;
    struct world *w = one_vm(2);
    unsigned running = 0;

    w->crash_delivers = _i % 2 != 0;
    w->crash_at = w->commits + 1 + step;
    c->fault(w);
    world_run(w, c->run_ms);
    ck_assert_msg(runs_somewhere(w, "web01"), "%s, crash after commit %u: %s", c->name, step, w->last_log);
    ck_assert_uint_le(world_epoch(w, "web01"), c->epochs);
    ck_assert_int_eq(world_recovery(w)->state, MST_REC_DONE);
    ck_assert_uint_eq(world_recoveries(w), 1);
    for (unsigned i = 0; i < MST_VMS_PER_NODE * 2; i++)
        running += w->nodes[i / MST_VMS_PER_NODE].slots[i % MST_VMS_PER_NODE].used &&
                   w->nodes[i / MST_VMS_PER_NODE].slots[i % MST_VMS_PER_NODE].s.run_state == MST_RUN_RUNNING;
    ck_assert_uint_eq(running, 1);
    world_free(w);
}
END_TEST

START_TEST(a_new_coordinator_waits_for_its_nodes_before_it_suspects_them)
{
    struct world *w = one_vm(2);

    world_restart(w);
    w->nodes[0].cut = true;
    world_run(w, 2500);
    ck_assert_uint_eq(world_recoveries(w), 0);
    world_cut(w, 0, false);
    world_run(w, 5000);
    ck_assert_uint_eq(world_recoveries(w), 0);
    ck_assert_uint_eq(world_epoch(w, "web01"), 1);
    /* And one that does not come back is missed. */
    world_restart(w);
    w->nodes[0].cut = true;
    world_run(w, 8000);
    ck_assert_uint_eq(world_recoveries(w), 1);
    world_free(w);
}
END_TEST

START_TEST(a_vm_that_died_while_no_coordinator_looked_is_found)
{
    struct world *w = one_vm(2);

    world_restart(w);
    memset(&w->nodes[0].slots, 0, sizeof(w->nodes[0].slots));
    world_run(w, 4000);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    ck_assert_uint_eq(world_epoch(w, "web01"), 2);
    world_free(w);
}
END_TEST

/* --- the store --- */

START_TEST(store_full_stops_decisions_without_effect)
{
    struct world *w = one_vm(2);
    unsigned orders;

    w->commit_err = -ENOSPC;
    orders = w->events_count;
    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    world_run(w, 20000);
    ck_assert_uint_eq(w->events_count, orders); /* not one order, not one fence */
    ck_assert_ptr_nonnull(strstr(mst_core_trouble(w->core), "ENOSPC"));
    ck_assert_int_eq(world_request(w, MST_REQ_STOP, "web01", NULL), -ENOSPC); /* said, not swallowed */
    w->commit_err = 0;
    ck_assert(world_until(w, 10000, runs_somewhere, "web01"));
    ck_assert_str_eq(mst_core_trouble(w->core), "");
    ck_assert_uint_eq(world_recoveries(w), 1);
    world_free(w);
}
END_TEST

START_TEST(a_report_that_the_store_refused_is_answered_once_and_decided_later)
{
    struct world *w = one_vm(2);
    struct mst_report report = {.kind = MST_FAULT_VM_EXITED, .node = "n1", .vm = "web01", .epoch = 1};
    struct mst_time t = {.us = w->now_us, .wall_ms = 1};
    int err = 0;

    w->commit_err = -ENOSPC;
    world_vm_die(w, 0, "web01");
    mst_core_report(w->core, &t, w->nodes[0].link, ++w->next_token, &report);
    world_run(w, 5000);
    ck_assert(world_replied(w, w->next_token, &err));
    ck_assert_int_eq(err, -ENOSPC);
    w->commit_err = 0; /* the rig refuses a second answer */
    ck_assert(world_until(w, 10000, runs_somewhere, "web01"));
    ck_assert_uint_eq(world_recoveries(w), 1);
    world_free(w);
}
END_TEST

START_TEST(a_store_that_does_not_answer_is_told_of_and_nothing_happens_meanwhile)
{
    struct world *w = one_vm(2);
    unsigned events = w->events_count;

    w->store_hangs = true;
    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    world_run(w, 1000);
    ck_assert_str_eq(mst_core_trouble(w->core), ""); /* slow is not yet trouble */
    world_run(w, 8000);
    ck_assert_ptr_nonnull(strstr(mst_core_trouble(w->core), "has not answered"));
    ck_assert_uint_eq(w->events_count, events);
    w->store_hangs = false;
    ck_assert(world_until(w, 3000, runs_somewhere, "web01"));
    ck_assert_str_eq(mst_core_trouble(w->core), "");
    world_free(w);
}
END_TEST

START_TEST(store_that_fails_at_any_moment_never_leads_to_an_effect_without_its_row)
{
    struct world *w = one_vm(2);

    world_node_kill(w, 0);
    for (int i = 0; i < 400; i++) { /* io_order checks that the grant is durable */
        w->commit_err = (i * 7 + _i) % 3 ? -EIO : 0;
        world_run(w, 50);
    }
    w->commit_err = 0;
    world_run(w, 15000);
    ck_assert(runs_somewhere(w, "web01"));
    ck_assert_uint_le(world_epoch(w, "web01"), 2);
    world_free(w);
}
END_TEST

/* --- leftovers --- */

START_TEST(what_a_returning_node_still_runs_under_an_old_epoch_is_stopped)
{
    struct world *w = one_vm(2);

    /* The operator was wrong: the node was only cut off. */
    w->power = POWER_FAILS;
    world_cut(w, 0, true);
    world_run(w, 6000);
    w->nodes[0].powered = false; /* out of sight of the oracle: this breach is the operator's */
    ck_assert_int_eq(world_request(w, MST_REQ_CONFIRM_DEAD, "n1", NULL), 0);
    ck_assert(world_until(w, 5000, runs_somewhere, "web01"));
    ck_assert_int_eq(world_where(w, "web01"), 1);
    w->nodes[0].cut = false;
    for (int i = 0; i < 300 && world_orders(w, MST_ORDER_FENCE, "web01") == 0; i++)
        world_run(w, 10);
    ck_assert_uint_eq(world_last(w, MST_ORDER_FENCE, "web01")->node, 0);
    ck_assert_uint_eq(world_last(w, MST_ORDER_FENCE, "web01")->epoch, 1);
    world_run(w, 15000);
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++)
        ck_assert(!w->nodes[0].slots[i].used); /* and forgotten */
    ck_assert_int_eq(world_where(w, "web01"), 1);
    world_free(w);
}
END_TEST

START_TEST(vms_that_are_not_defined_here_are_left_alone)
{
    struct world *w = one_vm(2);

    memcpy(&w->nodes[1].slots[5], &w->nodes[0].slots[0], sizeof(w->nodes[0].slots[0]));
    snprintf(w->nodes[1].slots[5].s.vm, MST_NAME_BYTES, "stranger");
    world_run(w, 12000);
    ck_assert(w->nodes[1].slots[5].used);
    ck_assert_int_eq(w->nodes[1].slots[5].s.run_state, MST_RUN_RUNNING);
    world_free(w);
}
END_TEST

START_TEST(an_old_copy_of_the_store_does_not_take_epochs_back)
{
    struct world *w = one_vm(2);

    /* The node has the VM under epoch 9: it was moved after the copy of this store was made. */
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++) {
        if (w->nodes[0].slots[i].used)
            w->nodes[0].slots[i].s.epoch = w->nodes[0].slots[i].s.save_epoch = 9;
    }
    world_restart(w);
    world_run(w, 2000);
    ck_assert_uint_ge(world_epoch(w, "web01"), 9);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    world_vm_die(w, 0, "web01");
    world_run(w, 3000);
    ck_assert_uint_eq(world_epoch(w, "web01"), 10);
    world_free(w);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("recovery");
    TCase *tcase = tcase_create("recovery");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, a_dead_vm_is_fenced_and_resumed_in_place_from_its_checkpoint);
    tcase_add_test(tcase, a_dead_vm_is_found_in_main_storage_when_nobody_reports_it);
    tcase_add_test(tcase, ten_copies_of_a_report_make_one_recovery);
    tcase_add_test(tcase, a_report_of_an_earlier_instance_or_epoch_is_refused);
    tcase_add_test(tcase, a_peer_that_reports_another_node_dead_is_not_believed);
    tcase_add_test(tcase, without_a_usable_save_it_is_restarted_and_said_so);
    tcase_add_test(tcase, what_its_node_says_of_a_boot_stands_behind_the_reason_for_it);
    tcase_add_test(tcase, a_save_record_that_does_not_check_is_no_save);
    tcase_add_loop_test(tcase, the_attribute_decides_what_follows_a_vm_fault, 0, 5);
    tcase_add_test(tcase, a_second_panic_within_a_minute_restarts);
    tcase_add_test(tcase, a_vm_that_fails_again_and_again_is_held);
    tcase_add_test(tcase, a_failed_start_is_fenced_and_tried_elsewhere_with_a_new_epoch);
    tcase_add_test(tcase, a_start_has_time_for_the_memory_of_its_vm);
    tcase_add_test(tcase, after_three_failed_starts_it_is_held_with_the_reason);
    tcase_add_test(tcase, a_save_that_is_refused_twice_when_it_is_pulled_leads_to_a_restart);
    tcase_add_test(tcase, a_dead_node_is_power_fenced_before_anything_is_restarted);
    tcase_add_test(tcase, unconfirmed_fence_holds_recovery_and_starts_no_vm);
    tcase_add_test(tcase, a_fence_that_fails_three_times_and_then_works_is_enough);
    tcase_add_test(tcase, without_a_fence_device_only_the_operator_helps);
    tcase_add_test(tcase, a_beating_node_cannot_be_confirmed_dead);
    tcase_add_test(tcase, with_no_other_node_up_nothing_is_powered_off);
    tcase_add_test(tcase, a_keeper_that_comes_back_is_proof_and_its_memory_is_used);
    tcase_add_test(tcase, a_keeper_that_cannot_vouch_for_its_past_is_asked_to_fence);
    tcase_add_test(tcase, a_node_that_is_powered_off_and_on_again_gets_its_vm_restarted);
    tcase_add_test(tcase, proof_of_previous_instance_does_not_count);
    tcase_add_test(tcase, a_power_proof_of_the_old_instance_does_not_cover_what_runs_since);
    tcase_add_test(tcase, a_frozen_keeper_is_power_fenced_although_reads_succeed);
    tcase_add_test(tcase, a_node_that_is_back_before_it_was_fenced_keeps_its_vms);
    tcase_add_test(tcase, a_short_absence_is_no_fault);
    tcase_add_test(tcase, a_pause_of_the_coordinator_declares_nobody_dead);
    tcase_add_loop_test(tcase, a_failed_read_before_our_pause_and_one_after_it_are_not_a_long_silence, 0, 2);
    tcase_add_test(tcase, a_save_record_of_another_epoch_is_not_used);
    tcase_add_test(tcase, a_keeper_that_returns_while_its_power_is_being_cut_is_taken_back);
    tcase_add_test(tcase, an_idle_node_that_goes_away_is_not_shot);
    tcase_add_test(tcase, the_target_dies_while_it_resumes_and_the_vm_goes_on_elsewhere);
    tcase_add_loop_test(tcase, the_node_attribute_decides_what_follows_a_node_fault, 0, 4);
    tcase_add_test(tcase, all_vms_of_a_node_are_one_recovery_and_priority_gets_the_room);
    tcase_add_test(tcase, a_failing_processor_has_its_vms_saved_fenced_and_resumed_elsewhere);
    tcase_add_test(tcase, a_save_that_fails_falls_back_to_the_last_checkpoint);
    tcase_add_test(tcase, with_no_room_elsewhere_vms_run_on_where_they_are);
    tcase_add_test(tcase, a_vm_that_answers_again_before_its_silence_is_decided_on_runs_on);
    tcase_add_test(tcase, an_agent_that_moves_again_before_its_silence_is_decided_on_is_left_alone);
    tcase_add_test(tcase, a_drain_moves_everything_alive_and_leaves_nothing_behind);
    tcase_add_test(tcase, a_node_that_dies_in_the_middle_of_a_drain_loses_no_vm);
    tcase_add_test(tcase, a_hung_agent_is_restarted_and_its_vms_run_on);
    tcase_add_test(tcase, an_agent_that_three_restarts_do_not_help_costs_the_node_its_vms);
    tcase_add_loop_test(tcase, stop_during_recovery_is_not_revived, 0, 40);
    tcase_add_loop_test(tcase, restart_at_every_durable_step_finishes_once, 0, 2 * (int)CRASH_CASES * CRASH_STEPS);
    tcase_add_test(tcase, a_new_coordinator_waits_for_its_nodes_before_it_suspects_them);
    tcase_add_test(tcase, a_vm_that_died_while_no_coordinator_looked_is_found);
    tcase_add_test(tcase, store_full_stops_decisions_without_effect);
    tcase_add_test(tcase, a_report_that_the_store_refused_is_answered_once_and_decided_later);
    tcase_add_test(tcase, a_store_that_does_not_answer_is_told_of_and_nothing_happens_meanwhile);
    tcase_add_loop_test(tcase, store_that_fails_at_any_moment_never_leads_to_an_effect_without_its_row, 0, 12);
    tcase_add_test(tcase, what_a_returning_node_still_runs_under_an_old_epoch_is_stopped);
    tcase_add_test(tcase, vms_that_are_not_defined_here_are_left_alone);
    tcase_add_test(tcase, an_old_copy_of_the_store_does_not_take_epochs_back);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
