#include "tests/unit/core/world.h"

#include <errno.h>

/* Histories in which a save that somebody was told about could be lost, an old one be taken for the newest, or a VM run twice. */

static struct world *vm_on_n1(unsigned nodes, uint8_t on_vm_fault, bool protect)
{
    struct world *w = world_new(nodes);
    struct mst_definition def = world_def("web01", 16, protect);

    def.on_vm_fault = on_vm_fault;
    world_define(w, &def);
    world_start_vm(w, "web01", "n1");
    if (protect)
        world_checkpoint(w, "web01", 7);
    world_run(w, 1200);
    return w;
}

static struct world *protected_vm(unsigned nodes)
{
    return vm_on_n1(nodes, MST_ON_FAULT_RESUME, true);
}

static void resumed_from(struct world *w, uint64_t epoch, uint64_t seq)
{
    const struct world_event *start = world_last(w, MST_ORDER_START, "web01");

    ck_assert(start->has_source);
    ck_assert_uint_eq(start->source_epoch, epoch);
    ck_assert_uint_eq(start->source_seq, seq);
}

static bool ordered(struct world *w, const void *type)
{
    return world_orders(w, *(const enum mst_order_type *)type, "web01") > 0;
}

/* --- fencing --- */

START_TEST(a_node_seen_again_while_its_keeper_is_told_to_fence_is_no_false_alarm)
{
    static const enum mst_order_type fence = MST_ORDER_FENCE;
    struct world *w = protected_vm(2);

    w->nodes[0].orders_wait = true;
    w->nodes[0].cut = true; /* reads fail, the control link stays */
    ck_assert(world_until(w, 10000, ordered, &fence));
    w->nodes[0].cut = false; /* reads work again, the order is still on its way */
    world_run(w, 200);
    w->nodes[0].orders_wait = false;
    ck_assert(world_until(w, 5000, runs_somewhere, "web01"));
    world_run(w, 3000);
    ck_assert_uint_eq(world_recoveries(w), 1);
    ck_assert_int_eq(world_rvm(w, "web01")->outcome, MST_OUT_RESUMED);
    resumed_from(w, 1, 7);
    world_free(w);
}
END_TEST

static bool fenced_there(struct world *w, const void *node)
{
    const struct world_event *fence = world_last(w, MST_ORDER_FENCE, "web01");

    return fence && fence->node == *(const unsigned *)node;
}

static bool fences_again(struct world *w, const void *unused)
{
    const struct mst_recovery_row *row = NULL;

    (void)unused;
    for (unsigned i = 0; i < w->rows_count; i++)
        if (w->rows[i].kind == MST_ROW_RECOVERY)
            row = &w->rows[i].recovery;
    return row && row->state == MST_REC_FENCING;
}

static bool home_again(struct world *w, const void *epochs)
{
    const struct world_event *start = world_last(w, MST_ORDER_START, "web01");

    return start && start->node == 0 && start->epoch > *(const uint64_t *)epochs;
}

/* The node is fenced by its keeper, the start elsewhere fails, and the one on the node itself, which is well by then, is not answered: whether the VM runs
 * there its fence tells, not that the node was only away. (Seen in a lab under load: after two starts of a minute each the VM counted as running.)
 * _i 1: and the coordinator is another one by then, which has told nobody to fence. */
START_TEST(a_start_that_fails_on_the_node_itself_is_no_false_alarm)
{
    static const enum mst_order_type fence = MST_ORDER_FENCE;
    static const unsigned elsewhere = 1;
    static const uint64_t first = 1;
    struct world *w = protected_vm(2);
    unsigned fences;

    w->nodes[0].orders_wait = true;
    w->nodes[0].cut = true;
    ck_assert(world_until(w, 10000, ordered, &fence));
    w->nodes[0].cut = w->nodes[0].orders_wait = false;
    w->nodes[1].start_err = -EIO;
    ck_assert(world_until(w, 5000, fenced_there, &elsewhere));
    w->nodes[0].orders_wait = true;
    ck_assert(world_until(w, 20000, home_again, &first));
    fences = world_orders(w, MST_ORDER_FENCE, "web01");
    ck_assert(world_until(w, 120000, fences_again, NULL));
    if (_i == 1)
        world_restart(w);
    world_run(w, 20000);
    ck_assert_uint_gt(world_orders(w, MST_ORDER_FENCE, "web01"), fences);
    w->nodes[0].orders_wait = false;
    ck_assert(world_until(w, 60000, recovery_closed, NULL));
    ck_assert(runs_somewhere(w, "web01"));
    ck_assert_int_eq(world_rvm(w, "web01")->outcome, MST_OUT_RESUMED);
    resumed_from(w, 1, 7);
    world_free(w);
}
END_TEST

static struct mst_vm_row *stored(struct world *w)
{
    for (unsigned i = 0; i < w->rows_count; i++) {
        if (w->rows[i].kind == MST_ROW_VM && strcmp(w->rows[i].vm.name, "web01") == 0)
            return &w->rows[i].vm;
    }
    ck_abort_msg("web01 is not in the store");
    return NULL;
}

static struct mst_row *row_add(struct world *w, enum mst_row_kind kind)
{
    struct mst_row *row = &w->rows[w->rows_count++];

    ck_assert_uint_le(w->rows_count, w->rows_room);
    memset(row, 0, sizeof(*row));
    row->kind = kind;
    return row;
}

static void held_row(struct world *w, struct mst_row *row)
{
    for (unsigned i = 0; i < w->rows_count; i++) {
        if (w->rows[i].kind != MST_ROW_VM || strcmp(w->rows[i].vm.name, "web02") != 0)
            continue;
        w->rows[i].vm.fenced = true;
        w->rows[i].vm.proof_kind = MST_PROOF_KEEPER;
        w->rows[i].vm.phase = MST_VM_HELD;
    }
    row->rvm = (struct mst_rvm_row){.recovery_id = 100,
                                    .vm = "web02",
                                    .from_node_id = 1,
                                    .from_instance = w->nodes[0].hello.instance,
                                    .epoch_from = 1,
                                    .outcome = MST_OUT_HELD,
                                    .hold = MST_HOLD_NO_ROOM};
}

/* A recovery is fencing for the second time: a VM was started on its node again, another waits for room. */
START_TEST(a_false_alarm_leaves_held_what_the_recovery_holds)
{
    struct world *w = protected_vm(2);
    struct mst_definition def = world_def("web02", 16, false);

    world_define(w, &def);
    world_start_vm(w, "web02", "n1");
    world_vm_die(w, 0, "web02");
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++) {
        if (strcmp(w->nodes[0].slots[i].s.vm, "web02") == 0)
            w->nodes[0].slots[i].used = false;
    }
    for (unsigned i = 0; i < w->rows_count; i++) {
        if (w->rows[i].kind == MST_ROW_META)
            w->rows[i].meta.next_recovery = 100;
    }
    row_add(w, MST_ROW_RECOVERY)->recovery = (struct mst_recovery_row){.id = 100,
                                                                       .node_id = 1,
                                                                       .instance = w->nodes[0].hello.instance,
                                                                       .kind = MST_FAULT_NODE_UNREACHABLE,
                                                                       .scope = MST_SCOPE_NODE,
                                                                       .state = MST_REC_FENCING};
    row_add(w, MST_ROW_RVM)->rvm = (struct mst_rvm_row){
        .recovery_id = 100, .vm = "web01", .from_node_id = 1, .from_instance = w->nodes[0].hello.instance, .epoch_from = 1};
    held_row(w, row_add(w, MST_ROW_RVM));
    world_restart(w);
    ck_assert(world_until(w, 10000, runs_somewhere, "web02")); /* there is room */
    ck_assert(world_until(w, 5000, recovery_closed, NULL));
    ck_assert_int_eq(world_rvm(w, "web01")->outcome, MST_OUT_RUNS_ON);
    ck_assert_uint_eq(world_epoch(w, "web01"), 1);
    ck_assert_uint_eq(world_epoch(w, "web02"), 2);
    world_free(w);
}
END_TEST

START_TEST(a_vm_that_counts_as_running_but_is_fenced_goes_on_from_its_newest_save)
{
    struct world *w = protected_vm(2);

    world_vm_die(w, 0, "web01");
    w->nodes[0].slots[0].s.run_state = MST_RUN_FENCED;
    stored(w)->fenced = true; /* the coordinator died between two decisions */
    stored(w)->proof_kind = MST_PROOF_KEEPER;
    world_restart(w);
    ck_assert(world_until(w, 10000, runs_somewhere, "web01"));
    resumed_from(w, 1, 7);
    world_free(w);
}
END_TEST

START_TEST(an_answered_start_whose_grant_was_fenced_meanwhile_has_failed)
{
    struct world *w = protected_vm(2);

    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    while (world_orders(w, MST_ORDER_START, "web01") < 2)
        world_run(w, 10);
    w->commit_err = -EIO; /* it starts, which cannot be recorded */
    world_run(w, 50);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    world_checkpoint(w, "web01", 3);
    world_node_kill(w, 0); /* and its keeper comes back as another one, which proves it stopped */
    world_run(w, 300);
    world_node_return(w, 0, true);
    world_run(w, 100);
    w->commit_err = 0;
    ck_assert(world_until(w, 10000, runs_somewhere, "web01"));
    world_run(w, 1000);
    ck_assert_uint_eq(world_epoch(w, "web01"), 3);
    ck_assert_uint_eq(world_rvm(w, "web01")->epoch_to, 3); /* by the same recovery */
    ck_assert_int_eq(world_rvm(w, "web01")->outcome, MST_OUT_RESUMED);
    resumed_from(w, 2, 3);
    world_free(w);
}
END_TEST

START_TEST(a_pause_of_the_coordinator_does_not_end_the_final_reading)
{
    static const enum mst_rec_state reading2 = MST_REC_READING2;
    struct world *w = protected_vm(2);
    struct mst_time t;

    w->nodes[0].slots[0].s.save_seq = 0;
    world_run(w, 3000); /* nobody has seen a save */
    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    ck_assert(world_until(w, 3000, recovery_is, &reading2));
    w->nodes[0].slots[0].s.save_seq = 1; /* it died right after its first checkpoint */
    w->nodes[0].slots[0].s.save_epoch = 1;
    w->now_us += 8000000; /* stopped, or a slow store; the read has not been looked at */
    t = (struct mst_time){.us = w->now_us, .wall_ms = 1};
    mst_core_tick(w->core, &t);
    ck_assert(world_until(w, 5000, runs_somewhere, "web01"));
    resumed_from(w, 1, 1);
    world_free(w);
}
END_TEST

/* The return of the keeper that came in between never became durable: the recovery is of that keeper, the VM of the one before it. */
START_TEST(a_node_that_is_seen_again_is_asked_about_what_the_keeper_before_it_ran)
{
    static const enum mst_rec_state fencing = MST_REC_FENCING;
    struct world *w = protected_vm(2);

    w->power = POWER_FAILS;
    w->commit_err = -ENOSPC;
    world_node_kill(w, 0);
    w->nodes[0].slots[0].s.run_state = MST_RUN_RUNNING; /* what the new keeper cannot vouch for */
    world_node_return(w, 0, false);
    world_run(w, 1000);
    world_cut(w, 0, true);
    world_run(w, 4000);
    w->commit_err = 0;
    ck_assert(world_until(w, 8000, recovery_is, &fencing));
    ck_assert_uint_eq(world_recovery(w)->instance, w->nodes[0].hello.instance);
    w->nodes[0].no_fence_answer = true;
    world_cut(w, 0, false);
    world_run(w, 8000); /* that it beats and says nothing is no proof */
    ck_assert(recovery_is(w, &fencing));
    ck_assert_uint_ge(world_orders(w, MST_ORDER_FENCE, "web01"), 1);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_START, "web01"), 1);
    w->nodes[0].no_fence_answer = false;
    ck_assert(world_until(w, 15000, runs_somewhere, "web01"));
    ck_assert_ptr_nonnull(strstr(world_recovery(w)->proof, "keeper"));
    ck_assert_uint_eq(world_recoveries(w), 1);
    resumed_from(w, 1, 7);
    world_free(w);
}
END_TEST

START_TEST(what_the_present_keeper_runs_goes_on_while_it_is_asked_about_what_was_before_it)
{
    struct world *w = protected_vm(2);
    struct mst_definition def = world_def("web02", 16, false);

    world_define(w, &def);
    world_start_vm(w, "web02", "n1");
    for (unsigned i = 0; i < w->rows_count; i++) {
        if (w->rows[i].kind == MST_ROW_META)
            w->rows[i].meta.next_recovery = 100;
    }
    stored(w)->instance = w->nodes[0].hello.instance - 1;
    row_add(w, MST_ROW_RECOVERY)->recovery = (struct mst_recovery_row){.id = 100,
                                                                       .node_id = 1,
                                                                       .instance = w->nodes[0].hello.instance,
                                                                       .kind = MST_FAULT_NODE_UNREACHABLE,
                                                                       .scope = MST_SCOPE_NODE,
                                                                       .state = MST_REC_FENCING};
    row_add(w, MST_ROW_RVM)->rvm = (struct mst_rvm_row){
        .recovery_id = 100, .vm = "web01", .from_node_id = 1, .from_instance = w->nodes[0].hello.instance - 1, .epoch_from = 1};
    row_add(w, MST_ROW_RVM)->rvm = (struct mst_rvm_row){
        .recovery_id = 100, .vm = "web02", .from_node_id = 1, .from_instance = w->nodes[0].hello.instance, .epoch_from = 1};
    w->nodes[0].hello.earlier_vms_dead = false;
    world_restart(w);
    ck_assert(world_until(w, 10000, recovery_closed, NULL));
    ck_assert_int_eq(world_recovery(w)->state, MST_REC_DONE);
    ck_assert_int_eq(world_rvm(w, "web02")->outcome, MST_OUT_RUNS_ON);
    ck_assert_uint_eq(world_epoch(w, "web02"), 1);
    ck_assert_int_eq(world_where(w, "web02"), 0);
    ck_assert_int_eq(world_rvm(w, "web01")->outcome, MST_OUT_RESUMED);
    ck_assert_uint_eq(world_epoch(w, "web01"), 2);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_FENCE, NULL), 1);
    resumed_from(w, 1, 7);
    world_free(w);
}
END_TEST

START_TEST(a_start_whose_keeper_was_replaced_is_fenced_by_the_new_one_before_another)
{
    static const enum mst_rec_state reading2 = MST_REC_READING2;
    static const enum mst_rec_state fencing = MST_REC_FENCING;
    struct world *w = protected_vm(2);

    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    ck_assert(world_until(w, 3000, recovery_is, &reading2));
    w->nodes[0].orders_wait = true;
    while (world_orders(w, MST_ORDER_START, "web01") < 2)
        world_run(w, 10);
    world_node_kill(w, 0);
    if (_i) /* the order came, its answer did not, and the new keeper cannot vouch for what became of it */
        world_slot_new(&w->nodes[0], "web01", 2)->run_state = MST_RUN_RUNNING;
    w->nodes[0].orders_wait = false;
    w->nodes[0].no_fence_answer = true;
    world_node_return(w, 0, false);
    world_run(w, 8000);
    ck_assert(recovery_is(w, &fencing));
    ck_assert_uint_eq(world_last(w, MST_ORDER_FENCE, "web01")->epoch, 2);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_START, "web01"), 2); /* silence is no proof */
    w->nodes[0].no_fence_answer = false;
    ck_assert(world_until(w, 15000, runs_somewhere, "web01"));
    ck_assert_uint_eq(world_epoch(w, "web01"), 3);
    ck_assert_uint_eq(world_recoveries(w), 1);
    ck_assert_uint_eq(w->fence_asked, 0);
    resumed_from(w, 1, 7);
    world_free(w);
}
END_TEST

/* --- saves that are away --- */

START_TEST(a_save_whose_keeper_restarts_during_the_pull_is_waited_for)
{
    struct world *w = vm_on_n1(3, MST_ON_FAULT_RESUME_ELSEWHERE, true);

    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    w->nodes[1].start_err = w->nodes[2].start_err = -EHOSTUNREACH; /* what a pull from a dead keeper ends with */
    while (world_orders(w, MST_ORDER_START, "web01") < 2)
        world_run(w, 10);
    world_node_kill(w, 0);
    world_run(w, 20);
    w->nodes[1].start_err = w->nodes[2].start_err = 0;
    world_run(w, 500);
    world_node_return(w, 0, true); /* with its memory */
    ck_assert(world_until(w, 8000, runs_somewhere, "web01"));
    resumed_from(w, 1, 7);
    world_free(w);
}
END_TEST

/* The keeper has stopped the VM and said so; then nobody hears of its node any more. */
static void cut_when_fenced(struct world *w, unsigned node, uint64_t epoch)
{
    for (int i = 0; i < 500; i++) {
        for (unsigned k = 0; k < MST_VMS_PER_NODE; k++) {
            struct world_vm *vm = &w->nodes[node].slots[k];

            if (!vm->used || vm->s.epoch != epoch || vm->s.run_state != MST_RUN_FENCED)
                continue;
            world_cut(w, node, true);
            return;
        }
        world_run(w, 10);
    }
    ck_abort_msg("epoch %d was not fenced on n%u", (int)epoch, node + 1);
}

/* The VM is fenced on n1, which then falls silent with its save. */
static struct world *save_away(void)
{
    struct world *w = vm_on_n1(2, MST_ON_FAULT_RESUME_ELSEWHERE, true);

    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    cut_when_fenced(w, 0, 1);
    return w;
}

START_TEST(a_vm_whose_save_is_away_is_held_and_resumed_when_it_is_back)
{
    struct world *w = save_away();

    world_run(w, 20000);
    ck_assert_int_eq(world_phase(w, "web01"), MST_VM_HELD);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_START, "web01"), 1);
    ck_assert_ptr_nonnull(strstr(world_rvm(w, "web01")->text, "its newest save is on n1"));
    ck_assert_int_eq(world_request(w, MST_REQ_START, "web01", NULL), -ENOSPC); /* looked again: still away */
    world_restart(w);
    world_run(w, 10000);
    ck_assert_int_eq(world_phase(w, "web01"), MST_VM_HELD);
    world_cut(w, 0, false);
    ck_assert(world_until(w, 8000, runs_somewhere, "web01"));
    resumed_from(w, 1, 7);
    world_free(w);
}
END_TEST

START_TEST(a_save_that_is_away_is_given_up_when_its_node_is_confirmed_dead)
{
    struct world *w = save_away();

    world_run(w, 20000);
    w->nodes[0].up = w->nodes[0].powered = false;
    ck_assert_int_eq(world_request(w, MST_REQ_CONFIRM_DEAD, "n1", NULL), 0);
    ck_assert(world_until(w, 5000, runs_somewhere, "web01"));
    ck_assert(!world_last(w, MST_ORDER_START, "web01")->has_source);
    world_free(w);
}
END_TEST

START_TEST(a_vm_that_is_to_be_restarted_does_not_wait_for_its_save)
{
    struct world *w = vm_on_n1(2, MST_ON_FAULT_RESTART, true);

    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    cut_when_fenced(w, 0, 1);
    ck_assert(world_until(w, 1000, runs_somewhere, "web01"));
    ck_assert(!world_last(w, MST_ORDER_START, "web01")->has_source);
    world_free(w);
}
END_TEST

START_TEST(a_node_whose_memory_cannot_be_read_has_not_lost_its_saves)
{
    static const enum mst_order_type fence = MST_ORDER_FENCE;
    struct world *w = vm_on_n1(2, MST_ON_FAULT_RESUME_ELSEWHERE, true);

    w->nodes[0].slots[0].s.save_seq = 0;
    world_run(w, 3000);
    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    ck_assert(world_until(w, 3000, ordered, &fence));
    w->nodes[0].reads_fail = 1; /* its keeper answers all the same */
    w->nodes[0].slots[0].s.save_seq = 1;
    world_run(w, 15000);
    ck_assert_int_eq(world_phase(w, "web01"), MST_VM_HELD);
    w->nodes[0].reads_fail = 0;
    ck_assert(world_until(w, 5000, runs_somewhere, "web01"));
    resumed_from(w, 1, 1);
    world_free(w);
}
END_TEST

START_TEST(a_bad_target_does_not_throw_a_good_save_away)
{
    static const int errs[] = {-EBADMSG, -ENODATA, -EUCLEAN};
    struct world *w = protected_vm(2);

    w->nodes[0].start_err = errs[_i]; /* n1, where it would be resumed in place */
    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    ck_assert(world_until(w, 8000, runs_somewhere, "web01"));
    ck_assert_int_eq(world_where(w, "web01"), 1);
    resumed_from(w, 1, 7);
    world_free(w);
}
END_TEST

/* --- saves that are too old --- */

START_TEST(the_newest_save_is_waited_for_although_an_older_one_is_at_hand)
{
    struct world *w = vm_on_n1(3, MST_ON_FAULT_RESUME_ELSEWHERE, true);
    int at;

    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    ck_assert(world_until(w, 3000, runs_somewhere, "web01"));
    resumed_from(w, 1, 7);
    at = world_where(w, "web01");
    world_checkpoint(w, "web01", 3); /* of epoch 2; n1 has still that of epoch 1 */
    world_vm_die(w, (unsigned)at, "web01");
    world_report(w, MST_FAULT_VM_EXITED, (unsigned)at, "web01");
    cut_when_fenced(w, (unsigned)at, 2);
    world_run(w, 15000);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_START, "web01"), 2);
    world_cut(w, (unsigned)at, false);
    ck_assert(world_until(w, 8000, runs_somewhere, "web01"));
    resumed_from(w, 2, 3);
    world_free(w);
}
END_TEST

START_TEST(a_vm_that_has_run_on_is_never_resumed_from_what_it_was_before)
{
    struct world *w = vm_on_n1(3, MST_ON_FAULT_RESUME_ELSEWHERE, true);
    int at;

    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    ck_assert(world_until(w, 3000, runs_somewhere, "web01"));
    at = world_where(w, "web01");
    world_cut(w, 0, true); /* it runs nothing, and could not be told to forget the old save */
    world_run(w, 1000);
    world_checkpoint(w, "web01", 5000);
    world_run(w, 60000);
    if (_i)
        world_restart(w);
    w->fence_takes_ms = 4000;
    world_cut(w, (unsigned)at, true); /* its node is lost ... */
    world_run(w, 4500);
    world_cut(w, 0, false); /* ... and n1 comes back before the recovery is over */
    ck_assert(world_until(w, 20000, runs_somewhere, "web01"));
    ck_assert_uint_eq(world_epoch(w, "web01"), 3);
    ck_assert(!world_last(w, MST_ORDER_START, "web01")->has_source);
    world_free(w);
}
END_TEST

START_TEST(a_restarted_vm_is_not_resumed_from_the_life_before)
{
    struct world *w = vm_on_n1(2, MST_ON_FAULT_RESUME_ELSEWHERE, true);

    world_report(w, MST_FAULT_VM_PANICKED, 0, "web01");
    world_run(w, 2000);
    world_checkpoint(w, "web01", 3);
    world_run(w, 2000);
    ck_assert_int_eq(world_where(w, "web01"), 1);
    world_report(w, MST_FAULT_VM_PANICKED, 1, "web01"); /* the second: booted */
    world_run(w, 500);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    ck_assert(!world_last(w, MST_ORDER_START, "web01")->has_source);
    world_vm_die(w, 0, "web01"); /* before its first checkpoint */
    world_run(w, 3000);
    ck_assert_uint_eq(world_epoch(w, "web01"), 4);
    ck_assert(!world_last(w, MST_ORDER_START, "web01")->has_source);
    world_free(w);
}
END_TEST

/* --- an old copy of the store --- */

static struct mst_row *copy_of_store(const struct world *w, unsigned *ret_count)
{
    struct mst_row *copy = malloc(w->rows_count * sizeof(*copy));

    ck_assert_ptr_nonnull(copy);
    memcpy(copy, w->rows, w->rows_count * sizeof(*copy));
    *ret_count = w->rows_count;
    return copy;
}

static void put_back(struct world *w, struct mst_row *copy, unsigned count)
{
    memcpy(w->rows, copy, count * sizeof(*copy));
    w->rows_count = count;
    memset(w->highest_epoch, 0, sizeof(w->highest_epoch));
    free(copy);
}

START_TEST(a_vm_that_runs_under_a_newer_epoch_than_an_old_store_knows_runs_on)
{
    struct world *w = protected_vm(3);
    unsigned count;
    struct mst_row *copy = copy_of_store(w, &count); /* epoch 1 on n1 */
    int at;

    ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n1", NULL), 0);
    world_run(w, 20000);
    at = world_where(w, "web01");
    ck_assert_int_gt(at, 0);
    ck_assert_uint_eq(world_epoch(w, "web01"), 2);
    put_back(w, copy, count);
    w->nodes[at].cut = _i; /* its node calls with all others, or long after them */
    world_restart(w);
    world_run(w, 4500);
    w->nodes[at].cut = false;
    world_run(w, 20000);
    ck_assert_uint_eq(world_epoch(w, "web01"), 2);
    ck_assert_int_eq(world_where(w, "web01"), at); /* never twice: the world looks */
    ck_assert_int_eq(world_phase(w, "web01"), MST_VM_RUNNING);
    world_free(w);
}
END_TEST

START_TEST(a_recovery_of_an_old_store_leaves_alone_what_runs_under_a_newer_epoch)
{
    static const enum mst_rec_state states[] = {MST_REC_SAVING, MST_REC_FENCING, MST_REC_READING2};
    struct world *w = protected_vm(3);
    struct mst_row *copy;
    unsigned count;
    int at;

    (void)world_ask(w, MST_REQ_DRAIN, "n1", NULL);
    ck_assert(world_until(w, 3000, recovery_is, &states[_i]));
    copy = copy_of_store(w, &count); /* in the middle of the drain */
    world_run(w, 20000);
    at = world_where(w, "web01");
    ck_assert_int_gt(at, 0);
    ck_assert_uint_eq(world_epoch(w, "web01"), 2);
    put_back(w, copy, count);
    world_restart(w);
    world_run(w, 20000);
    ck_assert_uint_eq(world_epoch(w, "web01"), 2);
    ck_assert_int_eq(world_where(w, "web01"), at);
    ck_assert_int_eq(world_phase(w, "web01"), MST_VM_RUNNING);
    ck_assert_int_eq(world_recovery(w)->state, MST_REC_DONE);
    world_free(w);
}
END_TEST

START_TEST(what_is_left_of_a_stopped_vm_under_a_newer_epoch_does_not_revive_it)
{
    struct world *w = protected_vm(2);

    ck_assert_int_eq(world_request(w, MST_REQ_STOP, "web01", NULL), 0);
    world_run(w, 12000);
    ck_assert(!w->nodes[0].slots[0].used);
    w->nodes[0].slots[0].used = true; /* it was started and stopped again after the copy of this store was made */
    snprintf(w->nodes[0].slots[0].s.vm, MST_NAME_BYTES, "web01");
    w->nodes[0].slots[0].s.epoch = w->nodes[0].slots[0].s.save_epoch = 9;
    w->nodes[0].slots[0].s.save_seq = 5;
    w->nodes[0].slots[0].s.run_state = MST_RUN_FENCED;
    world_restart(w);
    world_run(w, 20000);
    ck_assert_uint_eq(world_epoch(w, "web01"), 9);
    ck_assert_int_eq(world_where(w, "web01"), -1);
    ck_assert_int_eq(world_phase(w, "web01"), MST_VM_STOPPED);
    world_start_vm(w, "web01", NULL);
    ck_assert_uint_eq(world_epoch(w, "web01"), 10);
    ck_assert(!world_last(w, MST_ORDER_START, "web01")->has_source);
    world_free(w);
}
END_TEST

START_TEST(a_store_older_than_what_a_keeper_has_obeyed_decides_nothing)
{
    struct world *w = protected_vm(3);
    struct mst_row *copy;
    unsigned count, orders, commits;

    copy = copy_of_store(w, &count);
    world_restart(w);
    world_run(w, 3000);
    if (_i)
        world_restart(w);
    world_run(w, 3000);
    put_back(w, copy, count);
    world_restart(w); /* of the same term as the one before, or of an older */
    world_run(w, 1500);
    ck_assert_ptr_nonnull(strstr(mst_core_trouble(w->core), "old copy"));
    orders = w->events_count;
    commits = w->commits;
    world_vm_die(w, 0, "web01");
    world_cut(w, 1, true);
    world_run(w, 30000);
    ck_assert_uint_eq(w->events_count, orders); /* no order, no fence */
    ck_assert_uint_eq(w->commits, commits);
    ck_assert_int_eq(world_request(w, MST_REQ_STOP, "web01", NULL), -ESTALE);
    ck_assert_ptr_nonnull(strstr(world_reply_text(w), "old copy"));
    world_free(w);
}
END_TEST

/* The node has heard of the n-th decision after (before) the end of the store; a start of the coordinator lies between, or none does. */
START_TEST(a_decision_that_a_keeper_has_heard_of_and_the_store_lacks_shows_an_old_copy)
{
    static const struct {
        int beyond;
        unsigned restarts;
        bool old;
    } cases[] = {{0, 0, false}, {1, 0, true}, {-3, 0, false}, {0, 1, false},
                 {1, 1, true},  {1, 2, true}, {1, 5, true},   {30, 5, true}};
    struct world *w = protected_vm(3);
    struct mst_hello *hello = &w->nodes[1].hello;

    w->nodes[1].cut = true; /* it calls again when the coordinator has been started so often */
    world_run(w, 100);
    for (unsigned i = 0; i <= cases[_i].restarts; i++) {
        if (i == 0) {
            ck_assert_uint_eq(hello->highest_term, mst_core_term(w->core));
            hello->highest_decision = (uint64_t)((int64_t)mst_core_decision(w->core) + cases[_i].beyond);
        }
        world_restart(w);
        world_run(w, 300);
    }
    ck_assert_uint_lt(hello->highest_term, mst_core_term(w->core));
    w->nodes[1].cut = false;
    world_run(w, 1500);
    ck_assert_msg((strstr(mst_core_trouble(w->core), "old copy") != NULL) == cases[_i].old, "%s", mst_core_trouble(w->core));
    ck_assert_int_eq(world_request(w, MST_REQ_STOP, "web01", NULL), cases[_i].old ? -ESTALE : 0);
    if (cases[_i].old)
        ck_assert_ptr_nonnull(strstr(world_reply_text(w), "heard of decision"));
    world_free(w);
}
END_TEST

START_TEST(a_term_of_the_past_that_somebody_else_had_shows_an_old_copy)
{
    struct world *w = protected_vm(3);

    w->nodes[1].cut = true;
    world_run(w, 100);
    w->nodes[1].hello.highest_term_by += _i ? 1000 : 0;
    for (unsigned i = 0; i < 3; i++) {
        world_restart(w);
        world_run(w, 300);
    }
    w->nodes[1].cut = false;
    world_run(w, 1500);
    ck_assert_int_eq(world_request(w, MST_REQ_STOP, "web01", NULL), _i ? -ESTALE : 0);
    world_free(w);
}
END_TEST

/* A node that had forgotten all was led by an old copy, and the newest store is back: nobody but the operator can know that it is. The node has seen a term
 * that this store gave to another, or one that it has not reached, or a decision that it has not. Following the sentence helps, and nothing less does. */
START_TEST(a_node_that_an_old_copy_led_is_named_and_taken_back_once_its_keeper_is_restarted)
{
    struct world *w = protected_vm(3);
    struct mst_hello *hello = &w->nodes[1].hello;

    world_restart(w);
    world_run(w, 1500);
    if (_i == 0)
        hello->highest_term_by += 1000;
    else if (_i == 1)
        hello->highest_term += 1;
    else
        hello->highest_decision = mst_core_decision(w->core) + 30;
    world_restart(w);
    world_run(w, 1500);
    ck_assert_ptr_nonnull(strstr(mst_core_trouble(w->core), "old copy"));
    ck_assert_ptr_nonnull(strstr(mst_core_trouble(w->core), "or one has led that node"));
    ck_assert_ptr_nonnull(strstr(mst_core_trouble(w->core), "If this is the newest, restart the keeper of node n2,"));
    ck_assert_ptr_nonnull(strstr(mst_core_trouble(w->core), "then the coordinator"));
    world_restart(w);
    world_run(w, 1500);
    ck_assert_int_eq(world_request(w, MST_REQ_STOP, "web01", NULL), -ESTALE);
    world_node_kill(w, 1);
    world_node_return(w, 1, true);
    world_restart(w);
    world_run(w, 1500);
    ck_assert_str_eq(mst_core_trouble(w->core), "");
    ck_assert_int_eq(world_request(w, MST_REQ_STOP, "web01", NULL), 0);
    world_free(w);
}
END_TEST

/* An upgrade, and a keeper of before it. */
START_TEST(who_counts_no_decisions_is_no_witness)
{
    struct world *w = protected_vm(2);

    for (unsigned i = 0; i < w->rows_count; i++) {
        if (w->rows[i].kind != MST_ROW_META)
            continue;
        w->rows[i].meta.decision = 0;
        memset(w->rows[i].meta.terms, 0, sizeof(w->rows[i].meta.terms));
    }
    world_restart(w);
    world_run(w, 1500);
    ck_assert_int_eq(world_request(w, MST_REQ_STOP, "web01", NULL), 0);
    world_free(w);
}
END_TEST

/* --- moves of VMs that run --- */

START_TEST(a_drain_leaves_a_vm_running_that_it_cannot_save)
{
    struct world *w = vm_on_n1(2, MST_ON_FAULT_RESUME, false);

    w->nodes[0].save_fails = true;
    if (_i)
        world_report(w, MST_FAULT_PROCESSOR, 0, NULL);
    else
        ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n1", NULL), 0);
    world_run(w, 20000);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    ck_assert_uint_eq(world_epoch(w, "web01"), 1);
    ck_assert_int_eq(world_phase(w, "web01"), MST_VM_RUNNING);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_FENCE, NULL), 0);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_SAVE, NULL), 1); /* not again and again */
    ck_assert_int_eq(world_recovery(w)->state, MST_REC_HELD);
    ck_assert_ptr_nonnull(strstr(world_rvm(w, "web01")->text, "cannot be saved"));
    w->nodes[0].save_fails = false; /* tried again after a while */
    world_run(w, 20000);
    ck_assert_int_eq(world_where(w, "web01"), 1);
    ck_assert(world_last(w, MST_ORDER_START, "web01")->has_source);
    ck_assert_int_eq(world_recovery(w)->state, MST_REC_DONE);
    world_free(w);
}
END_TEST

START_TEST(a_drain_that_cannot_save_is_over_when_the_node_is_taken_back)
{
    struct world *w = vm_on_n1(2, MST_ON_FAULT_RESUME, false);

    w->nodes[0].save_fails = true;
    ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n1", NULL), 0);
    world_run(w, 5000);
    ck_assert_int_eq(world_request(w, MST_REQ_UNDRAIN, "n1", NULL), 0);
    world_run(w, 3000);
    ck_assert_int_eq(world_recovery(w)->state, MST_REC_DONE);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    world_free(w);
}
END_TEST

START_TEST(a_hung_agent_does_not_cost_an_unprotected_vm_its_state)
{
    struct world *w = vm_on_n1(2, MST_ON_FAULT_RESUME, false);

    w->nodes[0].agent_frozen = true;
    w->nodes[0].agent_restart_helps = false;
    world_run(w, 60000);
    ck_assert_uint_eq(w->nodes[0].agent_restarts_ordered, 3);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    ck_assert_uint_eq(world_epoch(w, "web01"), 1);
    ck_assert_int_eq(world_phase(w, "web01"), MST_VM_RUNNING);
    world_free(w);
}
END_TEST

START_TEST(an_order_to_save_whose_answer_was_lost_with_the_link_is_given_again)
{
    static const enum mst_order_type save = MST_ORDER_SAVE;
    struct world *w = vm_on_n1(2, MST_ON_FAULT_RESUME, false);

    w->nodes[0].orders_wait = true;
    (void)world_ask(w, MST_REQ_DRAIN, "n1", NULL);
    ck_assert(world_until(w, 3000, ordered, &save));
    world_cut(w, 0, true);
    world_run(w, 1000);
    w->nodes[0].orders_wait = false;
    world_cut(w, 0, false);
    world_run(w, 5000);
    ck_assert_int_eq(world_where(w, "web01"), 1);
    ck_assert(world_last(w, MST_ORDER_START, "web01")->has_source);
    world_free(w);
}
END_TEST

START_TEST(a_keeper_that_freezes_during_a_drain_has_one_recovery_until_the_drain_gives_up_or_it_goes_on)
{
    static const enum mst_order_type save = MST_ORDER_SAVE;
    struct world *w = protected_vm(3);

    (void)world_ask(w, MST_REQ_DRAIN, "n1", NULL);
    w->nodes[0].orders_wait = true;
    ck_assert(world_until(w, 3000, ordered, &save));
    w->nodes[0].orders_wait = false;
    w->nodes[0].frozen = true;
    world_run(w, 10000);
    ck_assert_uint_eq(world_recoveries(w), 2); /* the drain, the node */
    ck_assert_uint_eq(world_orders(w, MST_ORDER_RECORD_FAULT, NULL), 1);
    ck_assert_uint_eq(w->fence_asked, 0); /* the save may still come */
    w->nodes[0].orders_wait = _i == 1;    /* its beat is read before it answers, or behind that */
    w->nodes[0].frozen = _i == 0;
    world_run(w, 200);
    w->nodes[0].orders_wait = false;
    ck_assert(world_until(w, 20000, runs_somewhere, "web01"));
    world_run(w, 3000);
    ck_assert_int_ne(world_where(w, "web01"), 0);
    ck_assert_uint_eq(world_epoch(w, "web01"), 2);
    ck_assert_uint_eq(w->fence_asked, _i == 0 ? 1 : 0);
    ck_assert_int_eq(world_rvm(w, "web01")->outcome, _i == 0 ? MST_OUT_RESTARTED : MST_OUT_RESUMED);
    for (unsigned i = 0; i < w->rows_count; i++) {
        if (w->rows[i].kind == MST_ROW_RECOVERY)
            ck_assert_int_eq(w->rows[i].recovery.state, MST_REC_DONE);
    }
    world_free(w);
}
END_TEST

/* web02 is held by recovery 101 and not proved stopped on n1; recovery 100 is of n1 as a whole, and fencing. */
static struct world *lost_beside_a_held_vm(uint64_t instance)
{
    struct world *w = protected_vm(2);
    struct mst_definition def = world_def("web02", 16, false);

    world_define(w, &def);
    for (unsigned i = 0; i < w->rows_count; i++) {
        struct mst_row *row = &w->rows[i];

        if (row->kind == MST_ROW_META)
            row->meta.next_recovery = 101;
        if (row->kind != MST_ROW_VM || strcmp(row->vm.name, "web02") != 0)
            continue;
        row->vm.node_id = 1;
        row->vm.instance = w->nodes[0].hello.instance;
        row->vm.epoch = 1;
        row->vm.fenced = false;
        row->vm.wanted = true;
        row->vm.phase = MST_VM_HELD;
    }
    row_add(w, MST_ROW_RECOVERY)->recovery = (struct mst_recovery_row){.id = 100,
                                                                       .node_id = 1,
                                                                       .instance = instance,
                                                                       .kind = MST_FAULT_NODE_UNREACHABLE,
                                                                       .scope = MST_SCOPE_NODE,
                                                                       .state = MST_REC_FENCING};
    row_add(w, MST_ROW_RECOVERY)->recovery = (struct mst_recovery_row){
        .id = 101, .node_id = 1, .kind = MST_FAULT_VM_EXITED, .scope = MST_SCOPE_VM, .state = MST_REC_HELD};
    row_add(w, MST_ROW_RVM)->rvm = (struct mst_rvm_row){.recovery_id = 101,
                                                        .vm = "web02",
                                                        .from_node_id = 1,
                                                        .epoch_from = 1,
                                                        .outcome = MST_OUT_HELD,
                                                        .hold = MST_HOLD_ATTRIBUTE};
    return w;
}

static bool recovery_100_is_over(struct world *w, const void *unused)
{
    (void)unused;
    for (unsigned i = 0; i < w->rows_count; i++) {
        if (w->rows[i].kind == MST_ROW_RECOVERY && w->rows[i].recovery.id == 100)
            return w->rows[i].recovery.state == MST_REC_DONE;
    }
    return false;
}

START_TEST(a_lost_node_goes_on_for_its_own_vms_beside_one_that_is_held)
{
    struct world *w = lost_beside_a_held_vm(0x100);

    if (_i) { /* recovery 100 has it, and its proof */
        row_add(w, MST_ROW_RVM)->rvm =
            (struct mst_rvm_row){.recovery_id = 100, .vm = "web01", .from_node_id = 1, .from_instance = 0x100, .epoch_from = 1};
        stored(w)->fenced = true;
        stored(w)->proof_kind = MST_PROOF_POWER;
    }
    w->nodes[0].up = w->nodes[0].powered = false;
    world_restart(w);
    ck_assert(world_until(w, 20000, runs_somewhere, "web01"));
    ck_assert_int_eq(world_where(w, "web01"), 1);
    world_free(w);
}
END_TEST

static void is_proved_stopped(struct world *w, const char *vm)
{
    for (unsigned i = 0; i < w->rows_count; i++) {
        if (w->rows[i].kind != MST_ROW_VM || strcmp(w->rows[i].vm.name, vm) != 0)
            continue;
        w->rows[i].vm.fenced = true;
        w->rows[i].vm.proof_kind = MST_PROOF_KEEPER;
    }
}

START_TEST(a_recovery_of_a_node_ends_when_nothing_is_left_for_it)
{
    struct world *w = lost_beside_a_held_vm(_i ? 0x100 : 0xff); /* web02 is the present keeper's */

    is_proved_stopped(w, "web01");
    stored(w)->wanted = false;
    stored(w)->phase = MST_VM_STOPPED;
    if (_i) {
        is_proved_stopped(w, "web02");
        w->nodes[0].up = w->nodes[0].powered = false;
    }
    w->nodes[0].slots[0].used = false;
    world_restart(w);
    ck_assert(world_until(w, 10000, recovery_100_is_over, NULL));
    world_free(w);
}
END_TEST

/* --- the operator --- */

START_TEST(a_vm_that_was_stopped_while_it_was_fenced_boots_when_it_is_started_again)
{
    struct world *w = protected_vm(2);
    struct mst_vm_row *row;

    world_vm_die(w, 0, "web01");
    w->nodes[0].slots[0].s.run_state = MST_RUN_FENCED;
    row = stored(w);
    row->fenced = true;
    row->proof_kind = MST_PROOF_KEEPER;
    row->phase = MST_VM_HELD; /* in no recovery that is known any more */
    row->save = (struct mst_save_ref){.node_id = 1, .instance = row->instance, .epoch = 1, .seq = 7};
    world_restart(w);
    world_run(w, 1500);
    ck_assert_int_eq(world_request(w, MST_REQ_STOP, "web01", NULL), 0);
    ck_assert_int_eq(world_phase(w, "web01"), MST_VM_STOPPED);
    ck_assert_int_eq(world_request(w, MST_REQ_START, "web01", NULL), 0);
    ck_assert(!world_last(w, MST_ORDER_START, "web01")->has_source);
    world_free(w);
}
END_TEST

START_TEST(a_node_that_has_not_called_yet_cannot_be_confirmed_dead_right_after_a_start)
{
    struct world *w = protected_vm(2);

    w->nodes[0].cut = true; /* its keeper is about to call, it runs its VM */
    world_restart(w);
    world_run(w, 1000);
    ck_assert_int_eq(world_request(w, MST_REQ_CONFIRM_DEAD, "n1", NULL), -EBUSY);
    ck_assert_ptr_nonnull(strstr(world_reply_text(w), "has not called yet"));
    w->nodes[0].cut = false;
    world_run(w, 5000);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    ck_assert_uint_eq(world_epoch(w, "web01"), 1);
    w->power = POWER_FAILS;
    world_cut(w, 0, true);
    world_restart(w);
    world_run(w, 4000); /* it had its time */
    w->nodes[0].powered = w->nodes[0].up = false;
    ck_assert_int_eq(world_request(w, MST_REQ_CONFIRM_DEAD, "n1", NULL), 0);
    ck_assert(world_until(w, 5000, runs_somewhere, "web01"));
    world_free(w);
}
END_TEST

/* --- found by mainstay-sim --- */

/* An order to forget an epoch takes all older ones along. */
START_TEST(forgetting_a_dead_epoch_leaves_the_older_save_that_is_still_needed)
{
    struct world *w = protected_vm(1); /* one node: what is swept lies beside what is needed */

    for (uint64_t epoch = 2; epoch <= 4; epoch++) { /* each dies before its first checkpoint */
        world_vm_die(w, 0, "web01");
        world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
        while (world_epoch(w, "web01") < epoch)
            world_run(w, 10);
        ck_assert(world_until(w, 10000, runs_somewhere, "web01"));
        resumed_from(w, 1, 7);
        world_run(w, 5000); /* what is left of the epoch before is swept, when that may be */
    }
    world_free(w);
}
END_TEST

/* All nodes vanish, so that nobody is fenced, and call again. */
static struct world *all_called_again(bool pause)
{
    struct world *w = protected_vm(3);

    for (unsigned i = 0; i < 3; i++)
        world_cut(w, i, true);
    world_run(w, 9000);
    ck_assert_uint_eq(world_recoveries(w), 1);
    for (unsigned i = 0; i < 3; i++)
        world_cut(w, i, false);
    w->nodes[0].reads_fail = 1; /* the memory of n1, whose recovery is open, is read a moment later than that of the others */
    while (w->nodes[0].link == 0 || w->nodes[1].link == 0 || w->nodes[2].link == 0)
        world_run(w, 10);
    if (pause)
        w->now_us += UINT64_C(2500000); /* of the coordinator: for longer than its windows */
    world_run(w, 500);
    w->nodes[0].reads_fail = 0;
    world_run(w, 5000);
    return w;
}

static void untouched(struct world *w)
{
    ck_assert_uint_eq(w->fence_asked, 0);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_FENCE, "web01"), 0);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    ck_assert_uint_eq(world_epoch(w, "web01"), 1);
    world_free(w);
}

START_TEST(a_node_that_has_just_called_is_read_before_it_is_judged)
{
    untouched(all_called_again(false));
}
END_TEST

START_TEST(a_connected_node_that_was_not_read_since_our_own_pause_keeps_its_power)
{
    untouched(all_called_again(true));
}
END_TEST

static bool suspected(struct world *w, const void *unused)
{
    (void)unused;
    return world_recoveries(w) > 0;
}

/* A cable that flaps: reads fail for long enough, and go on in the very moment of the verdict. */
START_TEST(a_node_whose_slots_are_read_after_the_verdict_is_not_told_to_stop_before_its_beat_is_read)
{
    struct world *w = protected_vm(3);

    w->nodes[0].reads_fail = 1;
    ck_assert(world_until(w, 20000, suspected, NULL));
    w->nodes[0].reads_fail = 0;
    world_run(w, 5000);
    untouched(w);
}
END_TEST

/* Slots are read every second: that alone is no sign that its beat will come. */
START_TEST(a_node_whose_slots_alone_are_read_is_given_up_all_the_same)
{
    struct world *w = protected_vm(3);

    w->nodes[0].beats_fail = true;
    ck_assert(world_until(w, 20000, suspected, NULL));
    world_run(w, 5000);
    ck_assert_uint_gt(world_orders(w, MST_ORDER_FENCE, "web01"), 0);
    world_free(w);
}
END_TEST

static bool fence_asked(struct world *w, const void *unused)
{
    (void)unused;
    return w->fence_asked > 0;
}

/* A recovery was fencing n1 when its coordinator died. n1 calls the new one, which cannot read its memory. */
static struct world *calls_anew_and_is_not_read(void)
{
    struct world *w = protected_vm(3);

    w->power = POWER_FAILS;
    world_cut(w, 0, true);
    ck_assert(world_until(w, 20000, fence_asked, NULL));
    w->power = POWER_WORKS;
    w->fence_asked = 0;
    w->nodes[0].cut = false;
    w->nodes[0].reads_fail = 1;
    world_restart(w);
    return w;
}

START_TEST(a_node_that_calls_a_new_coordinator_is_asked_to_stop_its_vms_before_its_power_is_cut)
{
    static const enum mst_order_type fence = MST_ORDER_FENCE;
    struct world *w = calls_anew_and_is_not_read();

    ck_assert(world_until(w, 10000, ordered, &fence));
    world_run(w, 500);
    w->nodes[0].reads_fail = 0;
    ck_assert(world_until(w, 20000, runs_somewhere, "web01"));
    ck_assert_uint_eq(w->fence_asked, 0);
    resumed_from(w, 1, 7); /* from the memory that its power would have taken */
    world_free(w);
}
END_TEST

START_TEST(a_node_that_calls_a_new_coordinator_and_does_not_answer_loses_its_power)
{
    struct world *w = calls_anew_and_is_not_read();

    w->nodes[0].no_fence_answer = true;
    ck_assert(world_until(w, 10000, fence_asked, NULL));
    ck_assert_uint_gt(world_orders(w, MST_ORDER_FENCE, "web01"), 0);
    ck_assert(world_until(w, 20000, runs_somewhere, "web01"));
    ck_assert_int_ne(world_where(w, "web01"), 0);
    world_free(w);
}
END_TEST

/* It stood still when it was read last; it has called since and cannot be read yet. */
START_TEST(a_node_that_calls_after_it_stood_still_is_asked_before_its_power_is_cut)
{
    static const enum mst_order_type fence = MST_ORDER_FENCE;
    struct world *w = protected_vm(3);

    w->power = POWER_HANGS;
    w->nodes[0].frozen = true;
    ck_assert(world_until(w, 20000, fence_asked, NULL));
    world_cut(w, 0, true);
    w->nodes[0].frozen = false;
    w->nodes[0].reads_fail = 1;
    world_cut(w, 0, false);
    for (unsigned i = 0; i < 500 && w->nodes[0].link == 0; i++)
        world_run(w, 10);
    ck_assert(!w->fences[0].running); /* called off */
    w->power = POWER_WORKS;
    w->fence_asked = 0;
    ck_assert(world_until(w, 10000, ordered, &fence));
    world_run(w, 500);
    w->nodes[0].reads_fail = 0;
    ck_assert(world_until(w, 20000, runs_somewhere, "web01"));
    ck_assert_uint_eq(w->fence_asked, 0);
    world_free(w);
}
END_TEST

static bool fence_ordered_again(struct world *w, const void *count)
{
    return world_orders(w, MST_ORDER_FENCE, "web01") > *(const unsigned *)count;
}

/* A start is on its way when the node is taken for lost: the recovery of the node has no VM, and its link is there. */
START_TEST(a_node_is_asked_about_the_start_of_another_recovery_before_its_power_is_cut)
{
    static const enum mst_rec_state reading2 = MST_REC_READING2;
    struct world *w = protected_vm(3);
    unsigned fences;

    world_vm_die(w, 0, "web01");
    world_report(w, MST_FAULT_VM_EXITED, 0, "web01");
    ck_assert(world_until(w, 3000, recovery_is, &reading2));
    w->nodes[0].orders_wait = true;
    while (world_orders(w, MST_ORDER_START, "web01") < 2)
        world_run(w, 10);
    fences = world_orders(w, MST_ORDER_FENCE, "web01");
    w->nodes[0].reads_fail = 1;
    ck_assert(world_until(w, 10000, fence_ordered_again, &fences));
    ck_assert_uint_eq(w->fence_asked, 0);
    w->nodes[0].orders_wait = false;
    w->nodes[0].reads_fail = 0;
    ck_assert(world_until(w, 20000, runs_somewhere, "web01"));
    ck_assert_uint_eq(w->fence_asked, 0);
    world_free(w);
}
END_TEST

/* The VM belongs to a recovery of its own, so that of its node has nobody to ask the keeper about. */
START_TEST(a_node_that_never_answers_for_a_vm_of_another_recovery_loses_its_power)
{
    struct world *w = protected_vm(3);

    w->nodes[0].no_fence_answer = true;
    world_report(w, MST_FAULT_VM_SILENT, 0, "web01");
    world_run(w, 1000);
    ck_assert_uint_gt(world_orders(w, MST_ORDER_FENCE, "web01"), 0);
    w->nodes[0].reads_fail = 1; /* its link stays */
    ck_assert(world_until(w, 60000, fence_asked, NULL));
    ck_assert(world_until(w, 20000, runs_somewhere, "web01"));
    ck_assert_int_ne(world_where(w, "web01"), 0);
    world_free(w);
}
END_TEST

static const struct mst_recovery_row *recovery_of_node(const struct world *w, uint32_t id)
{
    const struct mst_recovery_row *found = NULL;

    for (unsigned i = 0; i < w->rows_count; i++) {
        const struct mst_recovery_row *row = &w->rows[i].recovery;

        if (w->rows[i].kind == MST_ROW_RECOVERY && row->scope == MST_SCOPE_NODE && row->node_id == id &&
            (!found || row->id > found->id))
            found = row;
    }
    return found;
}

/* Its power is being cut because of it: closed, nothing durable would say why, and it would be opened again at once. */
START_TEST(a_recovery_of_a_node_stays_for_vms_of_others_when_another_node_proves_something)
{
    struct world *w = protected_vm(3);
    struct mst_definition db = world_def("db01", 64, true);

    world_define(w, &db);
    world_start_vm(w, "db01", "n2");
    w->nodes[0].no_fence_answer = true;
    world_report(w, MST_FAULT_VM_SILENT, 0, "web01");
    world_run(w, 1000);
    w->nodes[0].reads_fail = 1;
    w->fence_takes_ms = 20000;
    ck_assert(world_until(w, 60000, fence_asked, NULL));
    ck_assert_int_eq(recovery_of_node(w, 1)->state, MST_REC_FENCING);
    world_vm_die(w, 1, "db01");
    world_report(w, MST_FAULT_VM_EXITED, 1, "db01");
    ck_assert(world_until(w, 10000, runs_somewhere, "db01")); /* its keeper has proved that it ended */
    ck_assert_int_eq(recovery_of_node(w, 1)->state, MST_REC_FENCING);
    ck_assert(world_until(w, 40000, runs_somewhere, "web01"));
    ck_assert_int_ne(world_where(w, "web01"), 0);
    world_run(w, 1000);
    ck_assert_int_eq(recovery_of_node(w, 1)->state, MST_REC_DONE);
    world_free(w);
}
END_TEST

/* A recovery that has its proof, and is open still, speaks of what the node was then. */
START_TEST(a_node_is_lost_anew_while_an_earlier_recovery_of_it_holds_a_vm)
{
    struct world *w = protected_vm(3);
    struct mst_definition held = world_def("web02", 64, true);
    struct mst_definition next = world_def("web03", 64, true);

    held.on_node_fault = MST_ON_FAULT_HOLD;
    world_define(w, &held);
    world_define(w, &next);
    world_start_vm(w, "web02", "n1");
    w->nodes[0].reads_fail = 1; /* its link stays: its keeper stops its VMs and says so */
    ck_assert(world_until(w, 60000, is_held, "web02"));
    ck_assert(world_until(w, 10000, runs_somewhere, "web01"));
    w->nodes[0].reads_fail = 0;
    world_run(w, 5000);
    world_start_vm(w, "web03", "n1");
    world_checkpoint(w, "web03", 1);
    world_run(w, 2000);
    world_cut(w, 0, true);
    ck_assert(world_until(w, 60000, fence_asked, NULL));
    world_run(w, 20000);
    ck_assert_int_gt(world_where(w, "web03"), 0);
    ck_assert(is_held(w, "web02"));
    world_free(w);
}
END_TEST

START_TEST(a_node_that_is_lost_while_its_own_recovery_starts_a_vm_there_is_fenced_anew)
{
    enum mst_rec_state state = MST_REC_COMMITTING;
    struct world *w = protected_vm(2);

    ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n2", NULL), 0);
    w->nodes[0].reads_fail = 1;
    ck_assert(world_until(w, 60000, is_held, "web01")); /* nobody has room */
    w->nodes[0].reads_fail = 0;
    w->nodes[0].orders_wait = true;
    ck_assert(world_until(w, 30000, recovery_is, &state)); /* back to where it was */
    world_cut(w, 0, true);
    world_run(w, 1000);
    ck_assert_int_eq(world_request(w, MST_REQ_UNDRAIN, "n2", NULL), 0);
    ck_assert(world_until(w, 120000, runs_somewhere, "web01"));
    ck_assert_int_eq(world_where(w, "web01"), 1);
    world_free(w);
}
END_TEST

/* Said by mistake: it was cut off, and runs on. */
static struct world *confirmed_by_mistake(bool elsewhere_full)
{
    struct world *w = protected_vm(2);

    if (elsewhere_full)
        ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n2", NULL), 0);
    w->power = POWER_FAILS;
    world_cut(w, 0, true);
    ck_assert(world_until(w, 60000, fence_asked, NULL));
    ck_assert_int_eq(world_request(w, MST_REQ_CONFIRM_DEAD, "n1", NULL), 0);
    return w;
}

/* Each of them is a recovery that stays open, and none of them may be in the way of what is lost. */
START_TEST(starts_that_nobody_has_room_for_leave_room_for_recoveries)
{
    struct world *w = protected_vm(2);
    unsigned held = 0;
    int err = 0;

    for (unsigned i = 0; err == 0; i++) {
        char name[MST_NAME_BYTES];
        struct mst_definition def;

        snprintf(name, sizeof(name), "big%u", i);
        def = world_def(name, 4096, false);
        world_define(w, &def);
        (void)world_ask(w, MST_REQ_START, name, NULL);
        world_run(w, 100);
        held += is_held(w, name);
        if (i + 1 > held)
            err = -EBUSY; /* refused, and said so */
    }
    ck_assert_uint_eq(held, 128);
    ck_assert_ptr_nonnull(strstr(world_reply_text(w), "too much is under way"));
    world_vm_die(w, 0, "web01");
    ck_assert(world_until(w, 10000, recovery_closed, NULL));
    ck_assert(world_until(w, 10000, runs_somewhere, "web01"));
    ck_assert_uint_eq(world_epoch(w, "web01"), 2);
    world_run(w, 2000);
    world_cut(w, (unsigned)world_where(w, "web01"), true);
    for (unsigned i = 0; i < 6000 && world_epoch(w, "web01") < 3; i++)
        world_run(w, 10);
    ck_assert_uint_eq(world_epoch(w, "web01"), 3);
    ck_assert(world_until(w, 10000, runs_somewhere, "web01"));
    world_free(w);
}
END_TEST

/* All machines stood still together; the loop takes a beat that was read just before. */
START_TEST(a_beat_that_was_read_before_our_pause_does_not_make_the_pause_a_silence)
{
    struct world *w = protected_vm(2);
    struct mst_beat beat = {.instance = w->nodes[0].hello.instance,
                            .generation = w->nodes[0].generation,
                            .keeper_beat = w->nodes[0].beat,
                            .agent_beat = w->nodes[0].agent_beat,
                            .agent_up = true,
                            .read_us = w->now_us};
    struct mst_time t = {.wall_ms = 1};

    w->now_us += 20000000;
    t.us = w->now_us;
    mst_core_beat(w->core, &t, 0, &beat);
    w->nodes[0].frozen = true;
    world_run(w, 300);
    w->nodes[0].frozen = false;
    world_run(w, 5000);
    ck_assert_uint_eq(world_recoveries(w), 0);
    world_free(w);
}
END_TEST

/* It was true when he said it. The store takes its time with something else, and meanwhile the node is seen again. */
START_TEST(a_death_that_waits_for_the_store_is_not_recorded_once_the_node_beats)
{
    struct world *w = protected_vm(2);
    struct mst_definition a = world_def("a", 16, false), b = world_def("b", 16, false);

    world_define(w, &a);
    world_define(w, &b);
    w->power = POWER_FAILS;
    world_cut(w, 0, true);
    ck_assert(world_until(w, 60000, fence_asked, NULL));
    w->store_hangs = true;
    (void)world_ask(w, MST_REQ_UNDEFINE, "a", NULL);
    (void)world_ask(w, MST_REQ_CONFIRM_DEAD, "n1", NULL);
    (void)world_ask(w, MST_REQ_UNDEFINE, "b", NULL);
    w->store_hangs = false;
    world_run(w, 10);
    w->store_hangs = true;
    world_cut(w, 0, false);
    world_run(w, 1000);
    w->store_hangs = false;
    world_run(w, 20000);
    ck_assert_uint_eq(world_epoch(w, "web01"), 1);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    world_free(w);
}
END_TEST

/* What the fence agent of the dead coordinator does shows only later. */
START_TEST(a_node_whose_fence_outlives_its_coordinator_gets_nothing_for_a_while)
{
    struct world *w = protected_vm(2);
    struct mst_definition next = world_def("web02", 64, false);

    next.allowed[next.allowed_count++] = 1;
    world_define(w, &next);
    w->power = POWER_HANGS;
    world_cut(w, 0, true);
    ck_assert(world_until(w, 60000, fence_asked, NULL));
    world_restart(w);
    world_cut(w, 0, false);
    world_run(w, 5000);
    ck_assert_int_eq(world_where(w, "web01"), 0); /* a false alarm */
    (void)world_ask(w, MST_REQ_START, "web02", NULL);
    world_run(w, 20000);
    ck_assert(!runs_somewhere(w, "web02"));
    ck_assert(world_until(w, 40000, runs_somewhere, "web02"));
    world_free(w);
}
END_TEST

/* He is told that the store is full and nothing is decided; the node is well, and the store is, too, in the end. */
START_TEST(a_death_that_could_not_be_recorded_is_not_recorded_later)
{
    struct world *w = protected_vm(2);
    int err;

    w->power = POWER_FAILS;
    world_cut(w, 0, true);
    ck_assert(world_until(w, 60000, fence_asked, NULL));
    w->commit_err = -ENOSPC;
    err = world_request(w, MST_REQ_CONFIRM_DEAD, "n1", NULL);
    ck_assert_msg(err < 0, "answer %d", err);
    world_cut(w, 0, false);
    world_run(w, 1000);
    w->commit_err = 0;
    world_run(w, 20000);
    for (unsigned i = 0; i < w->rows_count; i++)
        ck_assert(w->rows[i].kind != MST_ROW_PROOF || w->rows[i].proof.kind != MST_PROOF_OPERATOR);
    ck_assert_uint_eq(world_epoch(w, "web01"), 1);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    world_free(w);
}
END_TEST

/* Its keeper has obeyed the fence, or stopped it because its lease was over; that it is back before anybody has proof of it makes that no false alarm:
 * what its node's loss was to do for it is done, not what a fault of its own would do. _i 1: the coordinator that sent the fence is gone. */
START_TEST(a_vm_that_its_keeper_has_stopped_already_does_not_run_on_when_its_node_is_back)
{
    struct world *w = vm_on_n1(2, MST_ON_FAULT_DISCARD, true);

    w->power = POWER_HANGS;
    world_cut(w, 0, true);
    ck_assert(world_until(w, 60000, fence_asked, NULL));
    world_slot(&w->nodes[0], "web01", 1)->run_state = MST_RUN_FENCED;
    if (_i == 1)
        world_restart(w);
    world_cut(w, 0, false);
    ck_assert(world_until(w, 60000, runs_somewhere, "web01"));
    ck_assert(world_until(w, 10000, recovery_closed, NULL));
    ck_assert_uint_eq(world_recoveries(w), 1);
    ck_assert_int_eq(world_rvm(w, "web01")->outcome, MST_OUT_RESUMED);
    resumed_from(w, 1, 7);
    world_free(w);
}
END_TEST

START_TEST(a_vm_that_is_back_on_a_node_proved_dead_is_stopped_while_its_recovery_waits)
{
    struct world *w = confirmed_by_mistake(true);

    ck_assert(world_until(w, 30000, is_held, "web01"));
    ck_assert_int_eq(world_where(w, "web01"), 0); /* it runs there all the same */
    world_cut(w, 0, false);
    world_run(w, 60000);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    ck_assert_uint_eq(world_epoch(w, "web01"), 2); /* stopped, and begun anew */
    ck_assert_uint_gt(world_orders(w, MST_ORDER_FENCE, "web01"), 0);
    world_free(w);
}
END_TEST

START_TEST(a_node_that_may_run_what_it_was_proved_dead_for_is_no_last_resort)
{
    struct world *w = vm_on_n1(2, MST_ON_FAULT_RESUME_ELSEWHERE, true);

    ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n2", NULL), 0);
    w->nodes[0].no_fence_answer = true;
    world_report(w, MST_FAULT_VM_SILENT, 0, "web01");
    world_run(w, 1000);
    w->power = POWER_FAILS;
    world_cut(w, 0, true);
    ck_assert(world_until(w, 60000, fence_asked, NULL));
    ck_assert_int_eq(world_request(w, MST_REQ_CONFIRM_DEAD, "n1", NULL), 0);
    ck_assert(world_until(w, 30000, is_held, "web01"));
    world_cut(w, 0, false);
    world_run(w, 60000);
    ck_assert_uint_eq(world_epoch(w, "web01"), 1);
    w->nodes[0].no_fence_answer = false;
    world_run(w, 60000);
    ck_assert_uint_eq(world_epoch(w, "web01"), 2);
    ck_assert_int_eq(world_where(w, "web01"), 0);
    world_free(w);
}
END_TEST

START_TEST(what_is_not_defined_any_more_does_not_keep_a_node_marked)
{
    struct world *w = confirmed_by_mistake(true);
    struct mst_definition next = world_def("web02", 64, true);

    next.allowed[next.allowed_count++] = 1;
    world_define(w, &next);
    ck_assert(world_until(w, 30000, is_held, "web01"));
    ck_assert_int_eq(world_request(w, MST_REQ_STOP, "web01", NULL), 0);
    ck_assert_int_eq(world_request(w, MST_REQ_UNDEFINE, "web01", NULL), 0);
    world_cut(w, 0, false);
    world_run(w, 40000); /* its fence was called off: its power might still have gone */
    ck_assert_int_eq(world_request(w, MST_REQ_START, "web02", NULL), 0);
    ck_assert(world_until(w, 40000, runs_somewhere, "web02"));
    world_free(w);
}
END_TEST

/* With etcd its proof may be durable while whoever leads is still being asked about, before the power goes. */
START_TEST(a_fence_is_called_off_as_soon_as_a_proof_is_on_its_way_to_the_store)
{
    struct world *w = protected_vm(2);

    w->fence_takes_ms = 30000;
    world_cut(w, 0, true);
    ck_assert(world_until(w, 60000, fence_asked, NULL));
    ck_assert(w->fences[0].running);
    world_vm_die(w, 0, "web01"); /* the operator is right */
    w->store_hangs = true;
    (void)world_ask(w, MST_REQ_CONFIRM_DEAD, "n1", NULL);
    world_run(w, 100);
    ck_assert(!w->fences[0].running);
    w->store_hangs = false;
    ck_assert(world_until(w, 10000, runs_somewhere, "web01"));
    world_free(w);
}
END_TEST

START_TEST(power_is_left_alone_while_the_proof_of_the_keeper_waits_for_the_store)
{
    struct world *w = protected_vm(2);
    unsigned orders, asked;

    w->power = POWER_FAILS;
    w->nodes[0].reads_fail = 1;
    w->nodes[0].orders_wait = true; /* its keeper does not answer in time: the fence agent is next, and fails */
    ck_assert(world_until(w, 20000, fence_asked, NULL));
    orders = world_orders(w, MST_ORDER_FENCE, "web01");
    w->nodes[0].orders_wait = false;
    w->store_hangs = true;
    (void)world_ask(w, MST_REQ_DRAIN, "n2", NULL); /* its transaction is first, and the proof waits behind it */
    ck_assert(world_until(w, 20000, fence_ordered_again, &orders));
    world_run(w, 100);
    asked = w->fence_asked;
    world_run(w, 20000);
    ck_assert_uint_eq(w->fence_asked, asked);
    w->store_hangs = false;
    w->nodes[0].reads_fail = 0;
    ck_assert(world_until(w, 10000, runs_somewhere, "web01"));
    resumed_from(w, 1, 7);
    world_free(w);
}
END_TEST

/* With etcd a decision may be durable long before its answer is here. */
START_TEST(nobody_is_told_to_stop_while_the_decision_that_it_runs_on_is_under_way)
{
    struct world *w = protected_vm(2);

    w->power = POWER_FAILS;
    world_cut(w, 0, true);
    ck_assert(world_until(w, 20000, fence_asked, NULL));
    w->store_hangs = true;
    world_cut(w, 0, false);
    world_run(w, 3000); /* a false alarm: its transaction hangs */
    world_node_kill(w, 0);
    world_node_return(w, 0, false);
    world_run(w, 10000);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_FENCE, "web01"), 0);
    w->store_hangs = false;
    ck_assert(world_until(w, 10000, runs_somewhere, "web01"));
    resumed_from(w, 1, 7);
    world_free(w);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("safety");
    TCase *tcase = tcase_create("safety");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, a_node_seen_again_while_its_keeper_is_told_to_fence_is_no_false_alarm);
    tcase_add_loop_test(tcase, a_start_that_fails_on_the_node_itself_is_no_false_alarm, 0, 2);
    tcase_add_test(tcase, a_false_alarm_leaves_held_what_the_recovery_holds);
    tcase_add_test(tcase, a_recovery_of_a_node_stays_for_vms_of_others_when_another_node_proves_something);
    tcase_add_test(tcase, a_node_is_lost_anew_while_an_earlier_recovery_of_it_holds_a_vm);
    tcase_add_test(tcase, a_node_that_is_lost_while_its_own_recovery_starts_a_vm_there_is_fenced_anew);
    tcase_add_test(tcase, starts_that_nobody_has_room_for_leave_room_for_recoveries);
    tcase_add_test(tcase, a_node_whose_fence_outlives_its_coordinator_gets_nothing_for_a_while);
    tcase_add_test(tcase, a_death_that_waits_for_the_store_is_not_recorded_once_the_node_beats);
    tcase_add_test(tcase, a_beat_that_was_read_before_our_pause_does_not_make_the_pause_a_silence);
    tcase_add_test(tcase, a_death_that_could_not_be_recorded_is_not_recorded_later);
    tcase_add_loop_test(tcase, a_vm_that_its_keeper_has_stopped_already_does_not_run_on_when_its_node_is_back, 0, 2);
    tcase_add_test(tcase, a_vm_that_is_back_on_a_node_proved_dead_is_stopped_while_its_recovery_waits);
    tcase_add_test(tcase, a_node_that_may_run_what_it_was_proved_dead_for_is_no_last_resort);
    tcase_add_test(tcase, what_is_not_defined_any_more_does_not_keep_a_node_marked);
    tcase_add_test(tcase, a_fence_is_called_off_as_soon_as_a_proof_is_on_its_way_to_the_store);
    tcase_add_test(tcase, power_is_left_alone_while_the_proof_of_the_keeper_waits_for_the_store);
    tcase_add_test(tcase, nobody_is_told_to_stop_while_the_decision_that_it_runs_on_is_under_way);
    tcase_add_test(tcase, a_vm_that_counts_as_running_but_is_fenced_goes_on_from_its_newest_save);
    tcase_add_test(tcase, an_answered_start_whose_grant_was_fenced_meanwhile_has_failed);
    tcase_add_test(tcase, a_node_that_is_seen_again_is_asked_about_what_the_keeper_before_it_ran);
    tcase_add_test(tcase, what_the_present_keeper_runs_goes_on_while_it_is_asked_about_what_was_before_it);
    tcase_add_loop_test(tcase, a_start_whose_keeper_was_replaced_is_fenced_by_the_new_one_before_another, 0, 2);
    tcase_add_test(tcase, a_pause_of_the_coordinator_does_not_end_the_final_reading);
    tcase_add_test(tcase, a_save_whose_keeper_restarts_during_the_pull_is_waited_for);
    tcase_add_test(tcase, a_vm_whose_save_is_away_is_held_and_resumed_when_it_is_back);
    tcase_add_test(tcase, a_save_that_is_away_is_given_up_when_its_node_is_confirmed_dead);
    tcase_add_test(tcase, a_vm_that_is_to_be_restarted_does_not_wait_for_its_save);
    tcase_add_test(tcase, a_node_whose_memory_cannot_be_read_has_not_lost_its_saves);
    tcase_add_test(tcase, the_newest_save_is_waited_for_although_an_older_one_is_at_hand);
    tcase_add_loop_test(tcase, a_vm_that_has_run_on_is_never_resumed_from_what_it_was_before, 0, 2);
    tcase_add_test(tcase, a_restarted_vm_is_not_resumed_from_the_life_before);
    tcase_add_loop_test(tcase, a_vm_that_runs_under_a_newer_epoch_than_an_old_store_knows_runs_on, 0, 2);
    tcase_add_loop_test(tcase, a_recovery_of_an_old_store_leaves_alone_what_runs_under_a_newer_epoch, 0, 3);
    tcase_add_test(tcase, what_is_left_of_a_stopped_vm_under_a_newer_epoch_does_not_revive_it);
    tcase_add_loop_test(tcase, a_drain_leaves_a_vm_running_that_it_cannot_save, 0, 2);
    tcase_add_test(tcase, a_drain_that_cannot_save_is_over_when_the_node_is_taken_back);
    tcase_add_test(tcase, a_hung_agent_does_not_cost_an_unprotected_vm_its_state);
    tcase_add_test(tcase, an_order_to_save_whose_answer_was_lost_with_the_link_is_given_again);
    tcase_add_loop_test(tcase, a_keeper_that_freezes_during_a_drain_has_one_recovery_until_the_drain_gives_up_or_it_goes_on, 0,
                        3);
    tcase_add_loop_test(tcase, a_lost_node_goes_on_for_its_own_vms_beside_one_that_is_held, 0, 2);
    tcase_add_loop_test(tcase, a_recovery_of_a_node_ends_when_nothing_is_left_for_it, 0, 2);
    tcase_add_loop_test(tcase, a_bad_target_does_not_throw_a_good_save_away, 0, 3);
    tcase_add_test(tcase, a_vm_that_was_stopped_while_it_was_fenced_boots_when_it_is_started_again);
    tcase_add_test(tcase, a_node_that_has_not_called_yet_cannot_be_confirmed_dead_right_after_a_start);
    tcase_add_loop_test(tcase, a_store_older_than_what_a_keeper_has_obeyed_decides_nothing, 0, 2);
    tcase_add_test(tcase, forgetting_a_dead_epoch_leaves_the_older_save_that_is_still_needed);
    tcase_add_test(tcase, a_node_that_has_just_called_is_read_before_it_is_judged);
    tcase_add_test(tcase, a_node_whose_slots_are_read_after_the_verdict_is_not_told_to_stop_before_its_beat_is_read);
    tcase_add_test(tcase, a_node_whose_slots_alone_are_read_is_given_up_all_the_same);
    tcase_add_test(tcase, a_connected_node_that_was_not_read_since_our_own_pause_keeps_its_power);
    tcase_add_test(tcase, a_node_that_calls_after_it_stood_still_is_asked_before_its_power_is_cut);
    tcase_add_test(tcase, a_node_is_asked_about_the_start_of_another_recovery_before_its_power_is_cut);
    tcase_add_test(tcase, a_node_that_calls_a_new_coordinator_is_asked_to_stop_its_vms_before_its_power_is_cut);
    tcase_add_test(tcase, a_node_that_calls_a_new_coordinator_and_does_not_answer_loses_its_power);
    tcase_add_test(tcase, a_node_that_never_answers_for_a_vm_of_another_recovery_loses_its_power);
    tcase_add_loop_test(tcase, a_decision_that_a_keeper_has_heard_of_and_the_store_lacks_shows_an_old_copy, 0, 8);
    tcase_add_loop_test(tcase, a_term_of_the_past_that_somebody_else_had_shows_an_old_copy, 0, 2);
    tcase_add_loop_test(tcase, a_node_that_an_old_copy_led_is_named_and_taken_back_once_its_keeper_is_restarted, 0, 3);
    tcase_add_test(tcase, who_counts_no_decisions_is_no_witness);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
