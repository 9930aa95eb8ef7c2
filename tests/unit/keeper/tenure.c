/* Leases and pauses of a whole keeper, see rig.h: the test writes into the grant area what a coordinator would. */
#include "rig.h"

#include "base/clock.h"
#include "base/file.h"
#include "node/keeper/lease.h"
#include "shm/publish.h"

#include <check.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define NONE     MAINSTAY__PROTECT__PROTECT_NONE
#define LEASE_MS MST_LEASE_MS_MIN
/* after this a keeper that had its last renewal now has stopped its VMs, with the time that a busy machine may take on top */
#define OVER_MS  (LEASE_MS + 3000)
#define PAUSE_MS (MST_LEASE_PAUSE_MS + 500)

/* Gives or renews node 1's lease and waits until its keeper lives by it. */
static void renew(uint32_t flags)
{
    rig_renew(LEASE_MS, flags);
}

static long vm_on_n1(void)
{
    long pid;

    ck_done_ok(rig_start(1, "web01", 1, NONE, "x", NULL));
    pid = rig_pid_of(1, "vm/web01/qemu.pid");
    ck_assert(rig_alive(pid));
    return pid;
}

static bool is_dead(void *pid)
{
    return !rig_alive(*(long *)pid);
}

static bool has_peer_link(void *arg)
{
    (void)arg;
    return rig->nodes[1].link && rig->nodes[2].link;
}

static void two_nodes(void)
{
    rig_keeper_start(1);
    rig_keeper_start(2);
    ck_assert(rig_until(has_peer_link, NULL, 5000));
    rig_run_ms(700); /* the peers' links and Keys; nothing shows them from outside */
}

static bool said_hello(void *arg)
{
    struct rig_node *node = arg;

    return node->link && node->hello && node->report_count > 0;
}

static void coordinator_back(void)
{
    mst_envelope_free(rig->nodes[1].hello);
    rig->nodes[1].hello = NULL;
    rig_coordinator_up();
    ck_assert(rig_until(said_hello, &rig->nodes[1], 15000));
}

/* --- running out --- */

static bool is_answered(void *arg)
{
    (void)arg;
    return rig->nodes[1].done != NULL;
}

START_TEST(a_node_cut_off_from_everybody_stops_its_vms_before_its_lease_ends_and_says_so_later)
{
    uint64_t renewed_ms;
    long pid;

    two_nodes();
    pid = vm_on_n1();
    renew(0);
    renewed_ms = mst_now_ms();
    rig_coordinator_down();
    rig_keeper_signal(2, SIGSTOP);                     /* its memory answers, and shows that it does not beat */
    while (mst_now_ms() - renewed_ms < LEASE_MS / 2) { /* not a moment too early */
        ck_assert(rig_alive(pid));
        rig_run_ms(50);
    }
    ck_assert(rig_until(is_dead, &pid, OVER_MS));
    ck_assert_uint_le(mst_now_ms() - renewed_ms, OVER_MS); /* to the millisecond: lease.c */
    rig_wait_state(1, "web01", 1, MST_RUN_FENCED);
    coordinator_back();
    ck_assert_uint_eq(rig->nodes[1].hello->hello->n_held, 1);
    ck_assert_uint_eq(rig->nodes[1].hello->hello->held[0]->run_state, MST_RUN_FENCED);
    ck_assert_str_eq(rig->nodes[1].reports[0]->fault_report->vm, "web01");
    ck_assert_ptr_nonnull(strstr(rig->nodes[1].reports[0]->fault_report->text, "cut off"));
    ck_assert_int_eq(rig_start(1, "web01", 1, NONE, "x", NULL)->error, ESTALE); /* that epoch is over */
    renew(0);
    ck_done_ok(rig_start(1, "web01", 2, NONE, "x", NULL));
}
END_TEST

static void runs_on_without_coordinator(long pid)
{
    rig_coordinator_down();
    rig_run_ms(OVER_MS);
    ck_assert(rig_alive(pid));
    ck_assert_uint_ne(rig_beat(1).lease_renewal, 0); /* it had one */
}

START_TEST(vms_run_on_without_a_coordinator_while_another_node_beats)
{
    long pid;

    two_nodes();
    pid = vm_on_n1();
    renew(0);
    runs_on_without_coordinator(pid);
}
END_TEST

START_TEST(vms_of_the_only_node_run_on_without_a_coordinator)
{
    long pid;

    rig_keeper_start(1);
    pid = vm_on_n1();
    renew(0);
    runs_on_without_coordinator(pid);
}
END_TEST

START_TEST(vms_run_on_when_the_operator_wants_it_so)
{
    long pid;

    rig->config_more = "on-lease-lost: run-on\n";
    two_nodes();
    pid = vm_on_n1();
    renew(0);
    rig_keeper_signal(2, SIGSTOP);
    runs_on_without_coordinator(pid);
}
END_TEST

START_TEST(a_coordinator_that_gives_no_leases_changes_nothing)
{
    long pid;

    two_nodes();
    pid = vm_on_n1();
    rig_keeper_signal(2, SIGSTOP);
    rig_coordinator_down();
    rig_run_ms(OVER_MS);
    ck_assert(rig_alive(pid));
    ck_assert_uint_eq(rig_beat(1).lease_renewal, 0);
}
END_TEST

START_TEST(leases_that_were_called_off_end_nothing)
{
    struct mst_lease_line off;
    long pid;

    two_nodes();
    pid = vm_on_n1();
    renew(0);
    off = rig_lease_line(0, 0);
    rig_lease_write(off, 1);
    ck_assert(rig_until(rig_renewal_arrived, &off, 2000));
    rig_keeper_signal(2, SIGSTOP);
    rig_coordinator_down();
    rig_run_ms(OVER_MS);
    ck_assert(rig_alive(pid));
}
END_TEST

START_TEST(a_strict_lease_ends_the_vms_whatever_else_is_seen)
{
    long pid;

    two_nodes();
    pid = vm_on_n1();
    renew(MST_LEASE_STRICT);
    ck_assert_uint_eq(rig_beat(1).flags, MST_BEAT_LEASE_STRICT);
    rig_run_ms(LEASE_MS / 4);
    ck_assert_uint_eq(rig->nodes[1].probes, 0); /* it has no doubts yet */
    ck_assert(rig_until(is_dead, &pid, LEASE_MS));
    ck_assert_uint_ge(rig->nodes[1].probes, 1);
    rig_wait_state(1, "web01", 1, MST_RUN_FENCED);
    rig_start_send(1, "web02", 2, NONE, "x", NULL);
    ck_assert(!rig_until(is_answered, NULL, 2000)); /* no VM is started without it */
    ck_assert_int_eq(rig_pid_of(1, "vm/web02/qemu.pid"), 0);
    renew(MST_LEASE_STRICT);
    ck_done_ok(rig_order_wait(1, 5000));
    ck_assert(rig_alive(rig_pid_of(1, "vm/web02/qemu.pid")));
}
END_TEST

START_TEST(a_line_for_another_instance_or_of_an_older_term_gives_no_lease)
{
    struct mst_lease_line line;

    rig_keeper_start(1);
    line = rig_lease_line(LEASE_MS, 0);
    line.instance++;
    rig_lease_write(line, 1);
    line = rig_lease_line(LEASE_MS, 0);
    line.term = RIG_TERM - 1; /* Welcome said RIG_TERM */
    rig_lease_write(line, 2);
    line = rig_lease_line(LEASE_MS, 0);
    line.beat += 1000000;
    rig_lease_write(line, 3);
    rig_run_ms(300);
    ck_assert_uint_eq(rig_beat(1).lease_renewal, 0);
    renew(0); /* and the right one does */
}
END_TEST

static bool said_hello_again(void *arg)
{
    (void)arg;
    return rig->nodes[1].link && rig->nodes[1].hello;
}

START_TEST(a_lease_tells_of_decisions_too)
{
    struct mst_lease_line line;

    rig_keeper_start(1);
    line = rig_lease_line(LEASE_MS, 0);
    line.decision = 12;
    rig_lease_write(line, 1);
    ck_assert(rig_until(rig_renewal_arrived, &line, 2000));
    mst_envelope_free(rig->nodes[1].hello);
    rig->nodes[1].hello = NULL;
    mst_link_close(rig->nodes[1].link);
    ck_assert(rig_until(said_hello_again, NULL, 5000));
    ck_assert_uint_eq(rig->nodes[1].hello->hello->highest_term, RIG_TERM);
    ck_assert_uint_eq(rig->nodes[1].hello->hello->highest_decision, 12);
}
END_TEST

/* --- pauses --- */

static bool wants_renewal(void *arg)
{
    (void)arg;
    return rig_beat(1).flags & MST_BEAT_LEASE_WANTED;
}

static bool renewed_after_pause(void *arg)
{
    (void)arg;
    return !(rig_beat(1).flags & MST_BEAT_LEASE_WANTED);
}

START_TEST(after_a_pause_a_start_waits_until_a_coordinator_has_seen_the_node_again)
{
    long pid;

    rig_keeper_start(1);
    pid = vm_on_n1();
    renew(0);
    rig_keeper_signal(1, SIGSTOP);
    rig_run_ms(PAUSE_MS);
    rig_start_send(1, "web02", 2, NONE, "x", NULL); /* waits in its socket, so it is the first that the keeper sees */
    rig_run_ms(100);
    rig_keeper_signal(1, SIGCONT);
    ck_assert(rig_until(wants_renewal, NULL, 2000));
    ck_assert(!rig_until(is_answered, NULL, 700));
    ck_assert_int_eq(rig_pid_of(1, "vm/web02/qemu.pid"), 0);
    ck_assert(rig_alive(pid)); /* what ran runs on */
    renew(0);
    ck_assert(rig_until(renewed_after_pause, NULL, 1000));
    ck_done_ok(rig_order_wait(1, 5000));
    ck_assert(rig_alive(rig_pid_of(1, "vm/web02/qemu.pid")));
}
END_TEST

START_TEST(after_a_pause_the_agent_may_not_spawn)
{
    const Mainstay__Done *done;
    char path[PATH_MAX];

    rig_keeper_start(1);
    renew(0);
    rig_start_send(1, "web01", 1, NONE, "agent=late-spawn", NULL);
    rig_wait_state(1, "web01", 1, MST_RUN_STARTING);
    for (int i = 0; i < 100 && !rig_file_there(1, "web01.e1.save"); i++)
        rig_run_ms(20);
    rig_run_ms(300);
    rig_keeper_signal(1, SIGSTOP);
    snprintf(path, sizeof(path), "%s/spawn-now", rig->nodes[1].run_dir);
    ck_assert_int_eq(mst_file_write_durable(path, "x", 1, 0600), 0);
    rig_run_ms(PAUSE_MS);
    rig_keeper_signal(1, SIGCONT);
    done = rig_order_wait(1, 5000);
    ck_assert_int_ne(done->error, 0);
    ck_assert_ptr_nonnull(done->text);
    ck_assert_msg(strstr(done->text, "stood still"), "%s", done->text);
    ck_assert_int_eq(rig_pid_of(1, "vm/web01/qemu.pid"), 0);
    renew(0);
    ck_assert(rig_until(renewed_after_pause, NULL, 1000));
    ck_done_ok(rig_start(1, "web01", 2, NONE, "x", NULL));
}
END_TEST

static bool console_grew(void *arg)
{
    return rig->nodes[1].console_bytes > *(size_t *)arg;
}

START_TEST(after_a_pause_a_console_is_not_let_out_before_a_coordinator_has_seen_the_node_again)
{
    Mainstay__OrderConsole body = MAINSTAY__ORDER_CONSOLE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    size_t before = 0;

    rig_keeper_start(1);
    vm_on_n1();
    renew(0);
    body.vm = (char *)"web01";
    body.has_follow = body.follow = 1;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_CONSOLE;
    env.order_console = &body;
    rig_order_send(1, &env);
    ck_assert(rig_until(console_grew, &before, 3000));
    rig_keeper_signal(1, SIGSTOP);
    rig_run_ms(PAUSE_MS);
    before = rig->nodes[1].console_bytes;
    rig_keeper_signal(1, SIGCONT);
    ck_assert(rig_until(wants_renewal, NULL, 2000));
    ck_assert(!rig_until(console_grew, &before, 500));
    renew(0);
    ck_assert(rig_until(console_grew, &before, 2000));
}
END_TEST

START_TEST(a_new_welcome_ends_the_wait_too)
{
    rig_keeper_start(1);
    renew(0);
    rig_keeper_signal(1, SIGSTOP);
    rig_run_ms(PAUSE_MS);
    rig_keeper_signal(1, SIGCONT);
    ck_assert(rig_until(wants_renewal, NULL, 2000));
    rig_coordinator_down();
    rig->nodes[1].link = NULL;
    mst_envelope_free(rig->nodes[1].hello);
    rig->nodes[1].hello = NULL;
    rig_coordinator_up();
    ck_assert(rig_until(renewed_after_pause, NULL, 10000));
    vm_on_n1();
}
END_TEST

START_TEST(a_pause_without_leases_stops_nothing)
{
    rig_keeper_start(1);
    rig_keeper_signal(1, SIGSTOP);
    rig_run_ms(PAUSE_MS);
    rig_keeper_signal(1, SIGCONT);
    vm_on_n1();
    ck_assert_uint_eq(rig_beat(1).flags, 0);
}
END_TEST

START_TEST(a_strict_lease_that_ran_out_in_a_pause_ends_the_vms_when_the_node_wakes)
{
    long pid;

    rig_keeper_start(1);
    pid = vm_on_n1();
    renew(MST_LEASE_STRICT);
    rig_keeper_signal(1, SIGSTOP);
    rig_run_ms(LEASE_MS + 100);
    ck_assert(rig_alive(pid));
    rig_keeper_signal(1, SIGCONT);
    ck_assert(rig_until(is_dead, &pid, 1000));
}
END_TEST

START_TEST(a_watchdog_that_is_none_is_not_armed_and_does_not_count)
{
    rig->config_more = "watchdog: { device: /dev/null, timeout-s: 10 }\n";
    rig_keeper_start(1);
    vm_on_n1();
    ck_assert_uint_eq(rig_beat(1).flags, 0);
}
END_TEST

static void add_tests(TCase *tc)
{
    tcase_add_test(tc, a_node_cut_off_from_everybody_stops_its_vms_before_its_lease_ends_and_says_so_later);
    tcase_add_test(tc, vms_run_on_without_a_coordinator_while_another_node_beats);
    tcase_add_test(tc, vms_of_the_only_node_run_on_without_a_coordinator);
    tcase_add_test(tc, vms_run_on_when_the_operator_wants_it_so);
    tcase_add_test(tc, a_coordinator_that_gives_no_leases_changes_nothing);
    tcase_add_test(tc, leases_that_were_called_off_end_nothing);
    tcase_add_test(tc, a_strict_lease_ends_the_vms_whatever_else_is_seen);
    tcase_add_test(tc, a_line_for_another_instance_or_of_an_older_term_gives_no_lease);
    tcase_add_test(tc, a_lease_tells_of_decisions_too);
    tcase_add_test(tc, after_a_pause_a_start_waits_until_a_coordinator_has_seen_the_node_again);
    tcase_add_test(tc, after_a_pause_the_agent_may_not_spawn);
    tcase_add_test(tc, after_a_pause_a_console_is_not_let_out_before_a_coordinator_has_seen_the_node_again);
    tcase_add_test(tc, a_new_welcome_ends_the_wait_too);
    tcase_add_test(tc, a_pause_without_leases_stops_nothing);
    tcase_add_test(tc, a_strict_lease_that_ran_out_in_a_pause_ends_the_vms_when_the_node_wakes);
    tcase_add_test(tc, a_watchdog_that_is_none_is_not_armed_and_does_not_count);
}

int main(void)
{
    Suite *suite = suite_create("tenure");
    TCase *tc = tcase_create("tenure");
    SRunner *runner;
    int failed;

    if (!rig_can_run()) {
        fprintf(stderr, "SKIPPED: cgroup v2 is not writable here, and a keeper fences with it\n");
        return 77;
    }
    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, rig_setup, rig_teardown);
    add_tests(tc);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    rig_sweep();
    return failed ? 1 : 0;
}
