#include "tests/unit/core/world.h"

#include <errno.h>

static int define(struct world *w, const struct mst_definition *def, bool replace)
{
    struct mst_request request = {.type = MST_REQ_DEFINE, .definition = def, .replace = replace};
    struct mst_time t = {.us = w->now_us, .wall_ms = 1};
    uint64_t token = ++w->next_token;
    int err = -ETIME;

    memcpy(request.name, def->name, sizeof(request.name));
    ck_assert_int_eq(mst_core_request(w->core, &t, token, &request), 0);
    for (int i = 0; i < 100 && !world_replied(w, token, &err); i++)
        world_run(w, 10);
    return err;
}

START_TEST(a_definition_is_replaced_only_when_asked_and_only_while_stopped)
{
    struct world *w = world_new(2);
    struct mst_definition def = world_def("web01", 16, true);
    struct mst_definition other = world_def("web01", 32, true);

    ck_assert_int_eq(define(w, &def, false), 0);
    ck_assert_int_eq(define(w, &def, false), 0); /* the same again */
    ck_assert_int_eq(define(w, &other, false), -EEXIST);
    world_start_vm(w, "web01", NULL);
    ck_assert_int_eq(define(w, &other, true), -EBUSY);
    ck_assert_int_eq(world_request(w, MST_REQ_STOP, "web01", NULL), 0);
    ck_assert_int_eq(define(w, &other, true), 0);
    world_free(w);
}
END_TEST

START_TEST(epochs_go_on_growing_over_undefine_and_define)
{
    struct world *w = world_new(2);
    struct mst_definition def = world_def("web01", 16, true);
    uint64_t epoch;

    world_define(w, &def);
    for (int i = 0; i < 3; i++) {
        world_start_vm(w, "web01", NULL);
        ck_assert_int_eq(world_request(w, MST_REQ_UNDEFINE, "web01", NULL), -EBUSY);
        ck_assert_int_eq(world_request(w, MST_REQ_STOP, "web01", NULL), 0);
    }
    epoch = world_epoch(w, "web01");
    ck_assert_int_eq(world_request(w, MST_REQ_UNDEFINE, "web01", NULL), 0);
    ck_assert_int_eq(world_request(w, MST_REQ_START, "web01", NULL), -ENOENT);
    world_restart(w);
    world_run(w, 2000);
    world_define(w, &def);
    world_start_vm(w, "web01", NULL);
    ck_assert_uint_gt(world_epoch(w, "web01"), epoch);
    world_free(w);
}
END_TEST

START_TEST(stopped_vms_leave_nothing_in_main_storage)
{
    struct world *w = world_new(2);
    struct mst_definition def = world_def("web01", 16, true);

    world_define(w, &def);
    world_start_vm(w, "web01", "n2");
    world_checkpoint(w, "web01", 4);
    ck_assert_int_eq(world_request(w, MST_REQ_STOP, "web01", NULL), 0);
    ck_assert_int_eq(world_where(w, "web01"), -1);
    world_run(w, 3000);
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++)
        ck_assert(!w->nodes[1].slots[i].used);
    world_start_vm(w, "web01", "n1");
    ck_assert(!world_last(w, MST_ORDER_START, "web01")->has_source); /* stopped for good: it boots */
    world_free(w);
}
END_TEST

START_TEST(a_vm_nobody_has_room_for_says_why_and_starts_when_there_is)
{
    struct world *w = world_new(2);
    struct mst_definition big = world_def("big", 700, false);
    struct mst_definition second = world_def("second", 700, false);
    struct mst_definition third = world_def("third", 700, false);

    world_define(w, &big);
    world_define(w, &second);
    world_define(w, &third);
    world_start_vm(w, "big", NULL);
    world_start_vm(w, "second", NULL);
    ck_assert_int_eq(world_request(w, MST_REQ_START, "third", NULL), -ENOSPC);
    ck_assert_ptr_nonnull(strstr(world_reply_text(w), "MiB left"));
    ck_assert_int_eq(world_phase(w, "third"), MST_VM_HELD);
    ck_assert_int_eq(world_request(w, MST_REQ_STOP, "big", NULL), 0);
    ck_assert(world_until(w, 4000, runs_somewhere, "third"));
    world_free(w);
}
END_TEST

START_TEST(a_held_vm_can_be_stopped)
{
    struct world *w = world_new(1);
    struct mst_definition big = world_def("big", 900, false);

    world_define(w, &big);
    ck_assert_int_eq(world_request(w, MST_REQ_START, "big", NULL), -ENOSPC);
    ck_assert_int_eq(world_request(w, MST_REQ_STOP, "big", NULL), 0);
    ck_assert_int_eq(world_phase(w, "big"), MST_VM_STOPPED);
    ck_assert_int_eq(world_request(w, MST_REQ_UNDEFINE, "big", NULL), 0);
    world_free(w);
}
END_TEST

START_TEST(a_node_that_is_named_is_heeded_for_a_vm_that_a_fault_has_left_held)
{
    struct world *w = world_new(3);
    struct mst_definition def = world_def("web01", 16, true);

    def.on_vm_fault = MST_ON_FAULT_HOLD;
    world_define(w, &def);
    world_start_vm(w, "web01", "n1");
    world_checkpoint(w, "web01", 7); /* its save is an argument for n1 */
    world_run(w, 1200);
    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    ck_assert(world_until(w, 10000, is_held, "web01"));
    world_start_vm(w, "web01", "n3");
    ck_assert_int_eq(world_where(w, "web01"), 2);
    world_free(w);
}
END_TEST

START_TEST(a_node_that_is_named_is_the_only_one_and_must_exist)
{
    struct world *w = world_new(2);
    struct mst_definition def = world_def("web01", 16, true);

    world_define(w, &def);
    ck_assert_int_eq(world_request(w, MST_REQ_START, "web01", "n9"), -ENOENT);
    ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n2", NULL), 0);
    ck_assert_int_eq(world_request(w, MST_REQ_START, "web01", "n2"), -ENOSPC);
    ck_assert_ptr_nonnull(strstr(world_reply_text(w), "n2: is drained"));
    ck_assert_int_eq(world_request(w, MST_REQ_START, "web01", "n1"), 0);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    world_free(w);
}
END_TEST

static struct world *on_its_way_to_n2(void)
{
    struct world *w = world_new(2);
    struct mst_definition def = world_def("web01", 16, true);

    world_define(w, &def);
    w->nodes[1].orders_wait = true;
    (void)world_ask(w, MST_REQ_START, "web01", "n2");
    world_run(w, 500);
    return w;
}

static void arrives(struct world *w)
{
    w->nodes[1].orders_wait = false;
    ck_assert(world_until(w, 5000, runs_somewhere, "web01"));
    world_run(w, 1200);
}

START_TEST(a_node_to_which_a_vm_is_on_its_way_is_not_drained_yet)
{
    struct world *w = on_its_way_to_n2();

    ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n2", NULL), -EBUSY);
    ck_assert_str_eq(world_reply_text(w), "web01 is being started on n2: try again when it runs");
    arrives(w);
    ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n2", NULL), 0);
    world_run(w, 10000);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    world_free(w);
}
END_TEST

START_TEST(a_failing_node_to_which_a_vm_is_on_its_way_is_told_of_again)
{
    struct world *w = on_its_way_to_n2();

    world_report(w, MST_FAULT_PROCESSOR, 1, NULL);
    world_run(w, 500);
    arrives(w);
    world_report(w, MST_FAULT_PROCESSOR, 1, NULL);
    world_run(w, 10000);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    world_free(w);
}
END_TEST

START_TEST(a_held_vm_is_not_forgotten_when_the_store_refuses_to_take_it_up)
{
    struct world *w = world_new(2);
    struct mst_definition def = world_def("web01", 16, true);

    def.allowed[def.allowed_count++] = 2;
    world_define(w, &def);
    world_cut(w, 1, true);
    world_run(w, 5000);
    ck_assert_int_eq(world_request(w, MST_REQ_START, "web01", NULL), -ENOSPC);
    w->commit_err = -ENOSPC;
    world_cut(w, 1, false);
    world_run(w, 4000);
    w->commit_err = 0;
    ck_assert(world_until(w, 40000, runs_somewhere, "web01"));
    world_free(w);
}
END_TEST

/* n1 is lost: web01 is being started elsewhere, and web02 of the same recovery is held. */
static struct world *held_beside_a_start(void)
{
    struct world *w = world_new(3);
    struct mst_definition a = world_def("web01", 16, true), b = world_def("web02", 16, true);

    b.on_node_fault = MST_ON_FAULT_HOLD;
    world_define(w, &a);
    world_define(w, &b);
    world_start_vm(w, "web01", "n1");
    world_start_vm(w, "web02", "n1");
    world_checkpoint(w, "web01", 7);
    world_run(w, 1200);
    w->nodes[1].orders_wait = w->nodes[2].orders_wait = true;
    world_cut(w, 0, true);
    ck_assert(world_until(w, 30000, is_held, "web02"));
    return w;
}

/* Held while the recovery that has it is still busy with another VM: what it is held for stays to be read, and it is said why. */
START_TEST(a_held_vm_is_not_started_before_its_recovery_has_done_with_the_others)
{
    struct world *w = held_beside_a_start();
    struct mst_vm_look look;

    ck_assert_int_eq(world_request(w, MST_REQ_START, "web02", NULL), -EBUSY);
    ck_assert_ptr_nonnull(strstr(world_reply_text(w), "which still has other VMs to start"));
    ck_assert(mst_core_vm_by_name(w->core, "web02", &look));
    ck_assert_int_ne(look.text[0], 0);
    w->nodes[1].orders_wait = w->nodes[2].orders_wait = false;
    ck_assert(world_until(w, 10000, runs_somewhere, "web01"));
    world_run(w, 2000);
    ck_assert_int_eq(world_request(w, MST_REQ_START, "web02", NULL), 0);
    ck_assert(runs_somewhere(w, "web02"));
    world_free(w);
}
END_TEST

START_TEST(a_held_vm_is_stopped_while_its_recovery_is_busy_with_another)
{
    struct world *w = held_beside_a_start();

    ck_assert_int_eq(world_request(w, MST_REQ_STOP, "web02", NULL), 0);
    ck_assert_int_eq(world_phase(w, "web02"), MST_VM_STOPPED);
    w->nodes[1].orders_wait = w->nodes[2].orders_wait = false;
    ck_assert(world_until(w, 10000, runs_somewhere, "web01"));
    ck_assert(world_until(w, 10000, recovery_closed, NULL));
    ck_assert_int_eq(world_request(w, MST_REQ_UNDEFINE, "web02", NULL), 0);
    world_free(w);
}
END_TEST

START_TEST(start_and_stop_again_change_nothing)
{
    struct world *w = world_new(2);
    struct mst_definition def = world_def("web01", 16, true);

    world_define(w, &def);
    ck_assert_int_eq(world_request(w, MST_REQ_STOP, "web01", NULL), 0);
    world_start_vm(w, "web01", NULL);
    ck_assert_int_eq(world_request(w, MST_REQ_START, "web01", NULL), 0);
    ck_assert_uint_eq(world_epoch(w, "web01"), 1);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_START, "web01"), 1);
    world_free(w);
}
END_TEST

START_TEST(a_stop_that_cannot_be_proved_says_so_and_is_carried_out_later)
{
    struct world *w = world_new(2);
    struct mst_definition def = world_def("web01", 16, true);

    world_define(w, &def);
    world_start_vm(w, "web01", "n1");
    w->nodes[0].no_fence_answer = true;
    ck_assert_int_eq(world_request(w, MST_REQ_STOP, "web01", NULL), -EINPROGRESS);
    ck_assert_int_eq(world_request(w, MST_REQ_START, "web01", NULL), -EBUSY);
    w->nodes[0].no_fence_answer = false;
    world_run(w, 30000);
    ck_assert_int_eq(world_phase(w, "web01"), MST_VM_STOPPED);
    ck_assert_int_eq(world_where(w, "web01"), -1);
    world_free(w);
}
END_TEST

START_TEST(a_stop_while_the_vm_is_still_starting_ends_it)
{
    struct world *w = world_new(2);
    struct mst_definition def = world_def("web01", 16, true);
    uint64_t start, stop;
    int err = 1;

    world_define(w, &def);
    start = world_ask(w, MST_REQ_START, "web01", NULL);
    world_run(w, 10 * (uint32_t)_i);
    stop = world_ask(w, MST_REQ_STOP, "web01", NULL);
    world_run(w, 5000);
    ck_assert(world_replied(w, stop, &err));
    ck_assert_int_eq(err, 0);
    ck_assert(world_replied(w, start, &err));
    ck_assert_int_eq(world_where(w, "web01"), -1);
    ck_assert_int_eq(world_phase(w, "web01"), MST_VM_STOPPED);
    world_free(w);
}
END_TEST

/* --- Hello --- */

static int hello(struct world *w, struct mst_hello *h, struct mst_why *why)
{
    struct mst_time t = {.us = w->now_us, .wall_ms = 1};

    return mst_core_hello(w->core, &t, 9999, h, why);
}

START_TEST(a_hello_that_does_not_fit_the_configuration_is_refused_with_a_sentence)
{
    struct world *w = world_new(2);
    struct mst_hello good = w->nodes[0].hello;
    struct mst_hello h;
    struct mst_why why;

    h = good;
    snprintf(h.cluster, sizeof(h.cluster), "other");
    ck_assert_int_eq(hello(w, &h, &why), -EINVAL);
    ck_assert_ptr_nonnull(strstr(why.text, "other"));
    h = good;
    snprintf(h.node, sizeof(h.node), "n9");
    ck_assert_int_eq(hello(w, &h, &why), -ENOENT);
    h = good;
    h.node_id = 2;
    ck_assert_int_eq(hello(w, &h, &why), -EINVAL);
    h = good;
    snprintf(h.address, sizeof(h.address), "10.7.0.2");
    ck_assert_int_eq(hello(w, &h, &why), -EINVAL);
    h = good;
    h.instance = 0;
    ck_assert_int_eq(hello(w, &h, &why), -EINVAL);
    world_free(w);
}
END_TEST

START_TEST(a_second_keeper_of_the_same_name_is_refused_while_the_first_beats)
{
    struct world *w = world_new(2);
    struct mst_hello h = w->nodes[0].hello;
    struct mst_why why;
    uint64_t link = w->nodes[0].link;

    h.instance = 0xbad;
    ck_assert_int_eq(hello(w, &h, &why), -EEXIST);
    ck_assert_uint_eq(w->nodes[0].link, link);
    h.instance = w->nodes[0].hello.instance; /* the same one over a new link: the old link is of no use */
    ck_assert_int_eq(hello(w, &h, &why), 0);
    ck_assert_uint_eq(w->nodes[0].link, 0);
    world_free(w);
}
END_TEST

static struct mst_node_look node_look(struct world *w, unsigned index)
{
    struct mst_time now = {.us = w->now_us};
    struct mst_node_look look;

    mst_core_node(w->core, &now, index, &look);
    return look;
}

START_TEST(a_node_says_how_often_its_beat_was_read_and_the_longest_time_between_two_readings)
{
    struct world *w = world_new(2);
    struct mst_node_look before, after;

    world_run(w, 2000);
    before = node_look(w, 0);
    ck_assert_uint_gt(before.beat_reads, 20);
    ck_assert_uint_ge(before.beat_gap_max_ms, 1);
    ck_assert_uint_lt(before.beat_gap_max_ms, 500);
    w->nodes[0].reads_fail = true;
    world_run(w, 800);
    after = node_look(w, 0);
    ck_assert_uint_eq(after.beat_reads, before.beat_reads);
    ck_assert_uint_eq(after.beat_gap_max_ms, before.beat_gap_max_ms); /* between two: it is not over */
    w->nodes[0].reads_fail = false;
    world_run(w, 2000);
    after = node_look(w, 0);
    ck_assert_uint_gt(after.beat_reads, before.beat_reads + 20);
    ck_assert_uint_ge(after.beat_gap_max_ms, 800);
    ck_assert_uint_lt(after.beat_gap_max_ms, 1300);
    ck_assert_uint_lt(node_look(w, 1).beat_gap_max_ms, 500);
    /* The time from one keeper to the next is none. */
    world_node_kill(w, 1);
    world_run(w, 1500);
    world_node_return(w, 1, true);
    world_run(w, 3000);
    ck_assert_uint_lt(node_look(w, 1).beat_gap_max_ms, 500);
    world_free(w);
}
END_TEST

START_TEST(an_agent_is_said_to_run_once_it_was_seen_to_and_takes_vms_from_then_on)
{
    struct world *w = world_new(2);
    struct mst_definition def = world_def("web01", 16, true);

    world_define(w, &def);
    world_node_kill(w, 0);
    world_run(w, 1500);
    world_node_return(w, 0, true);
    w->nodes[0].agent_frozen = true; /* the new keeper says that there is one */
    world_run(w, 1000);
    ck_assert_uint_eq(node_look(w, 0).state, MST_NODE_UP);
    ck_assert(!node_look(w, 0).agent_up);
    ck_assert_int_eq(world_request(w, MST_REQ_START, "web01", "n1"), -ENOSPC);
    ck_assert_ptr_nonnull(strstr(world_reply_text(w), "n1: its agent does not run"));
    w->nodes[0].agent_frozen = false;
    world_run(w, 500);
    ck_assert(node_look(w, 0).agent_up);
    world_start_vm(w, "web01", "n1");
    world_free(w);
}
END_TEST

START_TEST(before_its_store_works_the_coordinator_takes_nobody)
{
    struct world *w = world_new(2);
    struct mst_hello h = w->nodes[0].hello;
    struct mst_why why;

    w->commit_err = -EIO;
    world_restart(w);
    world_run(w, 5000);
    ck_assert(!mst_core_ready(w->core));
    ck_assert_int_eq(hello(w, &h, &why), -EAGAIN);
    ck_assert_ptr_nonnull(strstr(why.text, "store refuses"));
    w->commit_err = 0;
    world_run(w, 8000);
    ck_assert(mst_core_ready(w->core));
    world_free(w);
}
END_TEST

START_TEST(terms_grow_with_every_start)
{
    struct world *w = world_new(1);
    uint64_t term = mst_core_term(w->core);

    world_restart(w);
    world_run(w, 1000);
    ck_assert_uint_eq(mst_core_term(w->core), term + 1);
    world_free(w);
}
END_TEST

/* Three starts more in this world make the four that are too many. */
static void crash_loop(struct world *w, unsigned node)
{
    for (int i = 0; i < 3; i++) {
        world_node_kill(w, node);
        world_run(w, 500);
        world_node_return(w, node, true);
        world_run(w, 2500);
    }
}

static struct world *looping_world(void)
{
    struct world *w = world_new(2);
    struct mst_definition def = world_def("web01", 16, false);

    world_define(w, &def);
    world_run(w, 1000);
    crash_loop(w, 0);
    ck_assert_int_ne(world_request(w, MST_REQ_START, "web01", "n1"), 0);
    ck_assert_ptr_nonnull(strstr(world_reply_text(w), "started too often"));
    ck_assert_int_eq(world_where(w, "web01"), -1);
    return w;
}

START_TEST(a_node_whose_keeper_crashes_again_and_again_gets_no_vms_for_a_while)
{
    struct world *w = looping_world();

    world_run(w, w->conf.node_starts_window_ms);
    ck_assert_int_eq(world_request(w, MST_REQ_START, "web01", "n1"), 0);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    world_free(w);
}
END_TEST

START_TEST(the_operator_lifts_the_distrust_of_a_node_that_is_not_drained)
{
    struct world *w = looping_world();

    ck_assert_int_eq(world_request(w, MST_REQ_UNDRAIN, "n1", NULL), 0);
    ck_assert_int_eq(world_request(w, MST_REQ_START, "web01", "n1"), 0);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    world_free(w);
}
END_TEST

static struct mst_definition good_definition;

/* A row of this kind that loads. */
static struct mst_row good_row(enum mst_row_kind kind)
{
    struct mst_row row = {.kind = kind};

    good_definition = world_def("web01", 16, true);
    if (kind == MST_ROW_DEFINITION)
        row.definition = &good_definition;
    else if (kind == MST_ROW_VM)
        strcpy(row.vm.name, "web01");
    else if (kind == MST_ROW_RVM)
        strcpy(row.rvm.vm, "web01");
    return row;
}

/* Found by fuzzing a damaged store: such rows were taken, and then no view could be packed, as messages take names and known values only. */
START_TEST(a_row_that_says_what_cannot_be_is_refused_at_loading)
{
    static const enum mst_row_kind kinds[] = {MST_ROW_DEFINITION, MST_ROW_VM, MST_ROW_FAULT, MST_ROW_RECOVERY, MST_ROW_RVM};
    struct world *w = world_new(1);
    struct mst_core_io io = {0};
    struct mst_core *core;
    struct mst_row bad[14];
    struct mst_definition changed[3];
    struct mst_why why;
    unsigned n = 0;

    ck_assert_int_eq(mst_core_new(&w->conf, &io, &core), 0);
    for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        struct mst_row row = good_row(kinds[i]);

        ck_assert_int_eq(mst_core_load(core, &row, &why), 0);
    }
    for (unsigned i = 0; i < 3; i++) {
        bad[n] = good_row(MST_ROW_DEFINITION);
        changed[i] = good_definition;
        bad[n++].definition = &changed[i];
    }
    strcpy(changed[0].name, "../web");
    changed[1].on_node_fault = MST_ON_FAULTS;
    changed[2].on_vm_fault = UINT8_MAX;
    bad[n] = good_row(MST_ROW_VM);
    bad[n++].vm.name[0] = '\0';
    bad[n] = good_row(MST_ROW_VM);
    bad[n++].vm.proof_kind = MST_PROOF_KINDS;
    bad[n] = good_row(MST_ROW_VM);
    bad[n++].vm.phase = MST_VM_PHASES;
    bad[n] = good_row(MST_ROW_FAULT);
    bad[n++].fault.kind = MST_FAULT_KINDS;
    bad[n] = good_row(MST_ROW_FAULT);
    strcpy(bad[n++].fault.vm, "Web");
    bad[n] = good_row(MST_ROW_RECOVERY);
    bad[n++].recovery.kind = UINT32_MAX;
    bad[n] = good_row(MST_ROW_RECOVERY);
    bad[n++].recovery.state = MST_REC_STATES;
    bad[n] = good_row(MST_ROW_RVM);
    strcpy(bad[n++].rvm.vm, "web 01");
    bad[n] = good_row(MST_ROW_RVM);
    bad[n++].rvm.how = MST_HOWS;
    bad[n] = good_row(MST_ROW_RVM);
    bad[n++].rvm.hold = MST_HOLDS;
    for (unsigned i = 0; i < n; i++) {
        why.text[0] = '\0';
        ck_assert_msg(mst_core_load(core, &bad[i], &why) == -EINVAL, "bad row %u was taken", i);
        ck_assert_ptr_nonnull(strstr(why.text, "the store is damaged"));
    }
    mst_core_free(core);
    world_free(w);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("request");
    TCase *tcase = tcase_create("request");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, a_definition_is_replaced_only_when_asked_and_only_while_stopped);
    tcase_add_test(tcase, epochs_go_on_growing_over_undefine_and_define);
    tcase_add_test(tcase, stopped_vms_leave_nothing_in_main_storage);
    tcase_add_test(tcase, a_vm_nobody_has_room_for_says_why_and_starts_when_there_is);
    tcase_add_test(tcase, a_held_vm_can_be_stopped);
    tcase_add_test(tcase, a_node_that_is_named_is_the_only_one_and_must_exist);
    tcase_add_test(tcase, a_node_that_is_named_is_heeded_for_a_vm_that_a_fault_has_left_held);
    tcase_add_test(tcase, a_node_to_which_a_vm_is_on_its_way_is_not_drained_yet);
    tcase_add_test(tcase, a_failing_node_to_which_a_vm_is_on_its_way_is_told_of_again);
    tcase_add_test(tcase, a_held_vm_is_not_forgotten_when_the_store_refuses_to_take_it_up);
    tcase_add_test(tcase, a_held_vm_is_stopped_while_its_recovery_is_busy_with_another);
    tcase_add_test(tcase, a_held_vm_is_not_started_before_its_recovery_has_done_with_the_others);
    tcase_add_test(tcase, start_and_stop_again_change_nothing);
    tcase_add_test(tcase, a_stop_that_cannot_be_proved_says_so_and_is_carried_out_later);
    tcase_add_loop_test(tcase, a_stop_while_the_vm_is_still_starting_ends_it, 0, 12);
    tcase_add_test(tcase, a_hello_that_does_not_fit_the_configuration_is_refused_with_a_sentence);
    tcase_add_test(tcase, a_second_keeper_of_the_same_name_is_refused_while_the_first_beats);
    tcase_add_test(tcase, a_node_says_how_often_its_beat_was_read_and_the_longest_time_between_two_readings);
    tcase_add_test(tcase, an_agent_is_said_to_run_once_it_was_seen_to_and_takes_vms_from_then_on);
    tcase_add_test(tcase, before_its_store_works_the_coordinator_takes_nobody);
    tcase_add_test(tcase, terms_grow_with_every_start);
    tcase_add_test(tcase, a_node_whose_keeper_crashes_again_and_again_gets_no_vms_for_a_while);
    tcase_add_test(tcase, the_operator_lifts_the_distrust_of_a_node_that_is_not_drained);
    tcase_add_test(tcase, a_row_that_says_what_cannot_be_is_refused_at_loading);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
