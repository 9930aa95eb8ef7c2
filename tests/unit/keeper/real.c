/* The keeper with the real agent and real QEMUs (TCG) and the witness guest: what the fake agent of node.c cannot show. Only RDMA is stood in for. */
#include "rig.h"

#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *append; /* the guest's */

/* The guest works on a disk in main storage instead of RAM. */
static void with_disk(bool wanted)
{
    rig->vm_disk_mib = wanted ? 2 : 0;
    if (wanted)
        append = "pages=256 pmem_mib=2";
}

static void setup(void)
{
    append = "pages=64";
    rig_setup();
    rig->agent = MST_TEST_REAL_AGENT;
    rig->qemu = "/usr/bin/qemu-system-x86_64";
    rig->kernel = MST_TEST_WITNESS;
    rig->vm_memory_mib = 16;
    rig->nodes[1].memory_mib = rig->nodes[2].memory_mib = 192;
}

static void console_follow(unsigned node)
{
    Mainstay__OrderConsole body = MAINSTAY__ORDER_CONSOLE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    rig->nodes[node].console_bytes = 0;
    body.vm = (char *)"web01";
    body.has_follow = 1;
    body.follow = 1;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_CONSOLE;
    env.order_console = &body;
    rig_order_send(node, &env);
}

/* Number of the last (or first) whole beat line of a node's console; 0: none. A broken witness fails the test. */
static unsigned beat_of(unsigned node, bool first)
{
    struct rig_node *n = &rig->nodes[node];
    unsigned number, last = 0;
    char *line;

    n->console[n->console_bytes] = '\0';
    ck_assert_msg(strstr(n->console, "BROKEN") == NULL, "%s", n->console);
    for (line = n->console; line; line = strchr(line, '\n')) {
        if (*line == '\n')
            line++;
        if (sscanf(line, "beat %u t=", &number) != 1 || !strstr(line, "witness=ok"))
            continue;
        last = number;
        if (first)
            break;
    }
    return last;
}

struct beats {
    unsigned node, at_least;
};

static bool has_beats(void *arg)
{
    struct beats *b = arg;

    return beat_of(b->node, false) >= b->at_least;
}

static void wait_beat(unsigned node, unsigned at_least)
{
    struct beats b = {.node = node, .at_least = at_least};

    if (!rig_until(has_beats, &b, 60000))
        ck_abort_msg("beat %u not seen on node %u, last is %u: %s", at_least, node, beat_of(node, false),
                     rig->nodes[node].console);
}

static uint64_t save_seq(unsigned node, uint64_t epoch)
{
    static struct mst_status_area area;
    struct mst_save_record record;
    struct mst_vm_slot info;
    struct mst_pub_head head;
    int slot = rig_slot(node, "web01", epoch, &info);

    rig_status(node, &area);
    if (slot < 0 || mst_pub_pick(area.vms[slot].save, &head, &record, sizeof(record)) < 0)
        return 0;
    return record.seq;
}

static bool has_saves(void *arg)
{
    return save_seq(1, 5) >= *(uint64_t *)arg;
}

static Mainstay__SaveSource source_of(unsigned node, uint64_t epoch)
{
    Mainstay__SaveSource source = MAINSTAY__SAVE_SOURCE__INIT;

    source.node = (char *)(node == 1 ? "n1" : "n2");
    source.node_id = node;
    source.instance = rig->nodes[node].instance;
    source.epoch = epoch;
    return source;
}

static unsigned started(void)
{
    static const char *const story[] = {"process.started", "vm.runs", "checkpoint.published", NULL};
    uint64_t saves = 3;

    ck_done_ok(rig_start(1, "web01", 5, MAINSTAY__PROTECT__PROTECT_LOCAL, append, NULL));
    rig_wait_told(1, ".agent", story);
    console_follow(1);
    wait_beat(1, 3);
    ck_assert(rig_until(has_saves, &saves, 60000));
    return beat_of(1, false);
}

/* QEMU killed on one node; the guest goes on at its last checkpoint on another one, or in place. From round 2 on with a disk. */
START_TEST(a_guest_goes_on_where_its_checkpoint_was)
{
    const Mainstay__Done *done;
    Mainstay__SaveSource source;
    unsigned last, first, to = _i % 2 ? 1 : 2;

    with_disk(_i >= 2);
    rig_keeper_start(1);
    rig_keeper_start(2);
    started();
    ck_assert_int_eq(kill((pid_t)rig_pid_of(1, "vm/web01/qemu.pid"), SIGKILL), 0);
    rig_wait_state(1, "web01", 5, MST_RUN_DEAD);
    rig_run_ms(200);
    last = beat_of(1, false);
    source = source_of(1, 5);
    ck_done_ok(rig_fence(1, "web01", 5));
    done = rig_start(to, "web01", 6, MAINSTAY__PROTECT__PROTECT_LOCAL, append, &source);
    ck_done_ok(done);
    fprintf(stderr, "pulled %llu bytes in %llu us, checks %llu us, spawn %llu us, load %llu us\n",
            (unsigned long long)done->start->bytes_pulled, (unsigned long long)done->start->pull_us,
            (unsigned long long)done->start->verify_us, (unsigned long long)done->start->spawn_us,
            (unsigned long long)done->start->load_us);
    console_follow(to);
    wait_beat(to, last + 3);
    first = beat_of(to, true);
    ck_assert_uint_gt(first, 1); /* not booted anew */
    ck_assert_uint_le(first, last + 2);
}
END_TEST

START_TEST(a_guest_that_was_saved_on_order_goes_on_elsewhere_without_a_lost_beat)
{
    Mainstay__OrderSave body = MAINSTAY__ORDER_SAVE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    const Mainstay__Done *done;
    Mainstay__SaveSource source;
    unsigned last, first;

    rig_keeper_start(1);
    rig_keeper_start(2);
    started();
    body.vm = (char *)"web01";
    body.epoch = 5;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_SAVE;
    env.order_save = &body;
    done = rig_order(1, &env);
    ck_done_ok(done);
    source = source_of(1, 5);
    source.has_min_seq = 1;
    source.min_seq = done->save->seq;
    rig_run_ms(200);
    last = beat_of(1, false);
    ck_done_ok(rig_fence(1, "web01", 5));
    ck_done_ok(rig_start(2, "web01", 6, MAINSTAY__PROTECT__PROTECT_LOCAL, append, &source));
    console_follow(2);
    wait_beat(2, last + 3);
    first = beat_of(2, true);
    ck_assert_uint_ge(first, last); /* a line may have been cut by the move */
    ck_assert_uint_le(first, last + 2);
}
END_TEST

START_TEST(checkpoints_go_on_under_the_next_agent)
{
    uint64_t seq;
    long pid;

    rig_keeper_start(1);
    started();
    pid = rig_pid_of(1, "vm/web01/qemu.pid");
    ck_assert_int_eq(kill((pid_t)rig_pid_of(1, "agent.pid"), SIGKILL), 0);
    rig_run_ms(100);
    seq = save_seq(1, 5) + 3;
    ck_assert(rig_until(has_saves, &seq, 60000));
    wait_beat(1, beat_of(1, false) + 3);
    ck_assert_int_eq(rig_pid_of(1, "vm/web01/qemu.pid"), pid);
}
END_TEST

START_TEST(a_guest_comes_back_from_what_a_killed_keeper_left)
{
    Mainstay__SaveSource source;
    unsigned last;

    with_disk(_i);
    rig_keeper_start(1);
    started();
    rig_run_ms(300);
    last = beat_of(1, false);
    rig_keeper_signal(1, SIGKILL);
    rig_keeper_wait(1, 5000);
    rig_keeper_start(1);
    ck_assert_uint_eq(rig->nodes[1].hello->hello->n_held, 1);
    source = source_of(1, 5);
    ck_done_ok(rig_start(1, "web01", 6, MAINSTAY__PROTECT__PROTECT_LOCAL, append, &source));
    console_follow(1);
    wait_beat(1, last + 3);
    ck_assert_uint_gt(beat_of(1, true), 1);
}
END_TEST

/* --- protect: mirror --- */

static Mainstay__MirrorGrant mirrored_every(uint32_t interval_ms, uint64_t more)
{
    const Mainstay__Done *done;
    Mainstay__MirrorGrant grant;

    rig->checkpoint_interval_ms = interval_ms;
    rig->append = append;
    rig_keeper_start(1);
    rig_keeper_start(2);
    ck_done_ok(rig_start(1, "web01", 5, MAINSTAY__PROTECT__PROTECT_MIRROR, append, NULL));
    console_follow(1);
    wait_beat(1, 3);
    done = rig_mirror(2, "web01", 5, 1, 0);
    ck_done_ok(done);
    grant = *done->grant;
    ck_done_ok(rig_mirror_to(1, "web01", 5, 2, &grant));
    rig_wait_mirror(1, MAINSTAY__MIRROR_PHASE__MIRROR_JOINED, 1);
    ck_done_ok(rig_mirror_sure(1, "web01", 5, grant.log_id));
    rig_wait_mirror(1, MAINSTAY__MIRROR_PHASE__MIRROR_SURE, rig->nodes[1].mirror->mirror_state->acked_seq + more);
    return grant;
}

static Mainstay__MirrorGrant mirrored(void)
{
    return mirrored_every(100, 10);
}

static bool took_standby; /* the last takeover */

/* The last beat that was shown before the node died, and the first one afterwards. */
static void goes_on_at_its_mirror(unsigned *ret_last, unsigned *ret_first)
{
    unsigned first, last;
    const Mainstay__Done *done;
    Mainstay__SaveSource source;

    last = beat_of(1, false);
    rig_keeper_signal(1, SIGKILL); /* QEMU, agent and memory are gone with it */
    rig_keeper_wait(1, 5000);
    done = rig_mirror_revoke(2, "web01", 5);
    ck_done_ok(done);
    source = source_of(2, 5);
    source.has_image = source.has_min_seq = 1;
    source.image = 1;
    source.min_seq = done->image->seq;
    fprintf(stderr, "image verified in %llu us\n", (unsigned long long)done->image->verify_us);
    done = rig_start(2, "web01", 6, MAINSTAY__PROTECT__PROTECT_MIRROR, append, &source);
    ck_done_ok(done);
    took_standby = done->start->standby;
    fprintf(stderr, "pulled in %llu us, checks %llu us, spawn %llu us, load %llu us\n", (unsigned long long)done->start->pull_us,
            (unsigned long long)done->start->verify_us, (unsigned long long)done->start->spawn_us,
            (unsigned long long)done->start->load_us);
    console_follow(2);
    wait_beat(2, last + 3);
    first = beat_of(2, true);
    ck_assert_uint_gt(first, 1); /* not booted anew */
    *ret_first = first;
    *ret_last = last;
}

static bool is_warm(void *arg)
{
    struct mst_vm_slot info;

    (void)arg;
    return rig_slot(2, "web01", 5, &info) >= 0 && info.standby == MST_STANDBY_WARM;
}

static void loses_nothing_that_was_shown(void)
{
    unsigned first, last;

    goes_on_at_its_mirror(&last, &first);
    ck_assert_uint_gt(first, last);
    ck_assert_uint_le(
        first, last + 4); /* at 100 ms a checkpoint: one whose acknowledgement came too late, and a line that is not whole */
}

START_TEST(a_guest_goes_on_at_its_mirror_when_its_node_is_gone)
{
    with_disk(_i);
    mirrored();
    loses_nothing_that_was_shown();
}
END_TEST

/* Its image changes under the QEMU that waits, and that goes on from what the image has in the end. _i 1: its disk is a part of the image. */
START_TEST(a_takeover_uses_the_qemu_that_waits)
{
    long pid;

    with_disk(_i);
    mirrored();
    ck_assert(rig_until(is_warm, NULL, 30000));
    pid = rig_pid_of(2, "vm/web01/standby.pid");
    rig_wait_mirror(1, MAINSTAY__MIRROR_PHASE__MIRROR_SURE, rig->nodes[1].mirror->mirror_state->acked_seq + 10);
    loses_nothing_that_was_shown();
    ck_assert(took_standby);
    ck_assert_int_eq(rig_pid_of(2, "vm/web01/qemu.pid"), pid);
    wait_beat(2, beat_of(2, false) + 20); /* all of its memory has been looked at */
}
END_TEST

/* Long after a checkpoint, and before the next one: without output commit (_i 1) the same would come out the other way, so this can fail. */
START_TEST(what_was_shown_is_never_said_again_but_without_output_commit)
{
    unsigned first, last;

    rig->output_at_once = _i;
    mirrored_every(4000, 1);
    rig_run_ms(1500); /* an acknowledgement is told at most a second later */
    goes_on_at_its_mirror(&last, &first);
    if (_i)
        ck_assert_uint_le(first, last);
    else
        ck_assert_uint_gt(first, last);
}
END_TEST

START_TEST(a_mirror_stays_one_under_the_next_agent)
{
    uint64_t seq;

    mirrored();
    for (int i = 0; i < 3; i++) {
        seq = rig->nodes[1].mirror->mirror_state->acked_seq;
        ck_assert_int_eq(kill((pid_t)rig_pid_of(1, "agent.pid"), SIGKILL), 0);
        rig_run_ms(i == 1 ? 1100 : 50);
        rig_wait_mirror(1, MAINSTAY__MIRROR_PHASE__MIRROR_SURE, seq + 10);
    }
    loses_nothing_that_was_shown();
}
END_TEST

START_TEST(a_guest_that_is_saved_on_order_is_saved_at_its_mirror_too)
{
    Mainstay__OrderSave body = MAINSTAY__ORDER_SAVE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    const Mainstay__Done *done;

    mirrored();
    body.vm = (char *)"web01";
    body.epoch = 5;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_SAVE;
    env.order_save = &body;
    done = rig_order(1, &env);
    ck_done_ok(done);
    rig_wait_mirror(1, MAINSTAY__MIRROR_PHASE__MIRROR_SURE, done->save->seq);
    loses_nothing_that_was_shown();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("real");
    TCase *tc = tcase_create("real");
    SRunner *runner;
    int failed;

    if (!rig_can_run()) {
        fprintf(stderr, "SKIPPED: cgroup v2 is not writable here, and a keeper fences with it\n");
        return 77;
    }
    tcase_set_timeout(tc, 240);
    tcase_add_checked_fixture(tc, setup, rig_teardown);
    tcase_add_loop_test(tc, a_guest_goes_on_where_its_checkpoint_was, 0, 4);
    tcase_add_test(tc, a_guest_that_was_saved_on_order_goes_on_elsewhere_without_a_lost_beat);
    tcase_add_test(tc, checkpoints_go_on_under_the_next_agent);
    tcase_add_loop_test(tc, a_guest_comes_back_from_what_a_killed_keeper_left, 0, 2);
    tcase_add_loop_test(tc, a_guest_goes_on_at_its_mirror_when_its_node_is_gone, 0, 2);
    tcase_add_loop_test(tc, a_takeover_uses_the_qemu_that_waits, 0, 2);
    tcase_add_loop_test(tc, what_was_shown_is_never_said_again_but_without_output_commit, 0, 2);
    tcase_add_test(tc, a_mirror_stays_one_under_the_next_agent);
    tcase_add_test(tc, a_guest_that_is_saved_on_order_is_saved_at_its_mirror_too);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    rig_sweep();
    return failed ? 1 : 0;
}
