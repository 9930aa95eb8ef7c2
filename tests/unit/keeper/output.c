/* Output commit between two keepers: what a VM says on its console, and when that is shown. See rig.h. */
#include "rig.h"

#include <check.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIRROR  MAINSTAY__PROTECT__PROTECT_MIRROR
#define SEEDING MAINSTAY__MIRROR_PHASE__MIRROR_SEEDING
#define JOINED  MAINSTAY__MIRROR_PHASE__MIRROR_JOINED
#define SURE    MAINSTAY__MIRROR_PHASE__MIRROR_SURE
#define FAILED  MAINSTAY__MIRROR_PHASE__MIRROR_FAILED

static Mainstay__MirrorGrant granted;
static struct rig_node *node;

static void console_follow(void)
{
    Mainstay__OrderConsole body = MAINSTAY__ORDER_CONSOLE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.vm = (char *)(uintptr_t) "web01";
    body.has_follow = body.follow = 1;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_CONSOLE;
    env.order_console = &body;
    rig_order_send(1, &env);
}

/* web01 runs on node 1 as epoch 5, is followed, and may have a mirror on node 2. */
static void started(const char *append)
{
    node = &rig->nodes[1];
    rig_keeper_start(1);
    rig_keeper_start(2);
    ck_done_ok(rig_start(1, "web01", 5, MIRROR, append, NULL));
    console_follow();
}

static void mirror_ordered(void)
{
    const Mainstay__Done *done = rig_mirror(2, "web01", 5, 1, 0);

    ck_done_ok(done);
    granted = *done->grant;
    ck_done_ok(rig_mirror_to(1, "web01", 5, 2, &granted));
}

static void mirrored(const char *append)
{
    started(append);
    mirror_ordered();
    rig_wait_mirror(1, JOINED, 1);
    ck_done_ok(rig_mirror_sure(1, "web01", 5, granted.log_id));
    rig_wait_mirror(1, SURE, 1);
}

static size_t mark_bytes;

static bool has_more(void *arg)
{
    (void)arg;
    return node->console_bytes > mark_bytes;
}

static bool shows_more(int ms)
{
    mark_bytes = node->console_bytes;
    return rig_until(has_more, NULL, ms);
}

/* What was on its way when something was stopped has arrived. */
static void settled(void)
{
    rig_run_ms(300);
}

/* Every beat that was ever shown, one after the other. */
static unsigned check_beats(void)
{
    unsigned count = 0, number;
    char *line;

    node->console[node->console_bytes] = '\0';
    for (line = node->console; sscanf(line, "beat %u\n", &number) == 1 && strchr(line, '\n'); line = strchr(line, '\n') + 1)
        ck_assert_uint_eq(number, ++count);
    return count;
}

START_TEST(what_a_guest_says_is_shown_once_its_mirror_has_the_checkpoint_after_it_and_nothing_is_lost)
{
    struct mst_vm_slot info;
    uint64_t bytes;
    unsigned beats;

    mirrored("x");
    ck_assert(shows_more(3000));
    rig_keeper_signal(2, SIGSTOP); /* checkpoints still arrive in its memory */
    settled();
    ck_assert(!shows_more(1500));
    ck_assert_int_ge(rig_slot(1, "web01", 5, &info), 0);
    bytes = info.console_bytes;
    beats = check_beats();
    rig_keeper_signal(2, SIGCONT);
    ck_assert(shows_more(3000));
    rig_run_ms(1500);
    ck_assert_uint_ge(check_beats(), beats + 60); /* those of the time in between, too */
    ck_assert_int_ge(rig_slot(1, "web01", 5, &info), 0);
    ck_assert_uint_gt(info.console_bytes, bytes + 400);
}
END_TEST

START_TEST(without_output_commit_it_is_shown_at_once)
{
    rig->output_at_once = true;
    mirrored("x");
    rig_keeper_signal(2, SIGSTOP);
    settled();
    ck_assert(shows_more(500));
    ck_assert(shows_more(500));
    rig_keeper_signal(2, SIGCONT);
}
END_TEST

START_TEST(a_vm_without_a_mirror_waits_for_nobody)
{
    started("x");
    ck_assert(shows_more(1000));
    rig_agent_tell(1, "hold", true); /* no checkpoints */
    settled();
    ck_assert(shows_more(500));
}
END_TEST

START_TEST(a_mirror_that_has_failed_is_waited_for_until_it_is_left_out)
{
    mirrored("x");
    rig_keeper_signal(2, SIGKILL);
    rig_keeper_wait(2, 5000);
    rig_wait_mirror(1, FAILED, 1);
    settled();
    ck_assert(!shows_more(1500)); /* the store may still say that it counts */
    ck_done_ok(rig_mirror_drop(1, "web01", 5, granted.log_id));
    ck_assert(shows_more(1000));
    rig_run_ms(500);
    ck_assert_uint_gt(check_beats(), 50);
}
END_TEST

/* What it has of the numbers of before is no reason to let anything go. */
START_TEST(a_mirror_is_waited_for_until_it_is_left_out_when_checkpoints_are_counted_anew)
{
    size_t shown;

    mirrored("x");
    ck_assert(shows_more(3000));
    rig_agent_tell(1, "hold", true);
    settled();
    shown = node->console_bytes;
    rig_agent_tell(1, "anew", true);
    rig_wait_mirror(1, FAILED, 3);
    rig_run_ms(2500); /* what may go goes within a second */
    ck_assert_uint_eq(node->console_bytes, shown);
    ck_done_ok(rig_mirror_drop(1, "web01", 5, granted.log_id));
    ck_assert(shows_more(1000));
    check_beats();
}
END_TEST

START_TEST(a_mirror_that_never_joined_holds_nothing_back)
{
    started("x");
    rig_agent_tell(1, "hold", true);
    mirror_ordered();
    rig_run_ms(1000);
    rig_agent_tell(1, "one", true); /* it is seeded, and no mark comes after that */
    rig_wait_mirror(1, SEEDING, 1);
    ck_assert(shows_more(1000));
    rig_keeper_signal(2, SIGKILL);
    rig_keeper_wait(2, 5000);
    rig_wait_mirror(1, FAILED, 1);
    rig_agent_tell(1, "hold", false);
    settled();
    ck_assert(shows_more(500));
}
END_TEST

/* A mirror is waited for from its first checkpoint on, and told to have joined when it has all that has left before. */
START_TEST(a_mirror_has_joined_only_when_output_has_waited_for_it)
{
    started("x");
    mirror_ordered();
    rig_wait_mirror(1, JOINED, 1);
    rig_keeper_signal(2, SIGSTOP); /* at once */
    settled();
    ck_assert(!shows_more(1000)); /* the coordinator has not said that it counts, but may be about to */
    rig_keeper_signal(2, SIGCONT);
    ck_assert(shows_more(3000));
}
END_TEST

START_TEST(what_waits_when_its_vm_is_fenced_is_never_shown)
{
    mirrored("x");
    rig_keeper_signal(2, SIGSTOP);
    settled();
    ck_assert(!shows_more(1000));
    ck_done_ok(rig_fence(1, "web01", 5));
    rig_keeper_signal(2, SIGCONT);
    ck_assert(!shows_more(1500));
    ck_done_ok(rig_forget(1, "web01", 5));
    rig_run_ms(200);
    ck_assert(rig_file_there(1, "../n1/vm/web01/console.held")); /* but by who looks on its node */
}
END_TEST

/* The file has all that was ever shown, but for what it has moved aside. */
static void check_file_counts(const char *name)
{
    unsigned long number, next = 0;
    unsigned lines = 0;
    char path[300], line[64];
    FILE *file;

    snprintf(path, sizeof(path), "%s/vm/web01/%s", node->run_dir, name);
    file = fopen(path, "re");
    if (!file)
        return;                                             /* nothing was moved aside yet */
    ck_assert_ptr_nonnull(fgets(line, sizeof(line), file)); /* may begin in the middle */
    while (fgets(line, sizeof(line), file) && strchr(line, '\n')) {
        number = strtoul(line, NULL, 10);
        ck_assert_msg(next == 0 || number == next, "%lu after %lu", number, next - 1);
        next = number + 1;
        lines++;
    }
    fclose(file);
    ck_assert_uint_gt(lines, 100);
}

START_TEST(a_guest_that_floods_its_console_waits_with_it_loses_nothing_and_stops_nothing)
{
    struct mst_vm_slot info;
    uint64_t bytes, seq;

    mirrored("qemu=count");
    rig_keeper_signal(2, SIGSTOP);
    settled();
    ck_assert(!shows_more(1500));
    ck_assert_int_ge(rig_slot(1, "web01", 5, &info), 0);
    bytes = info.console_bytes;
    seq = rig->nodes[1].mirror->mirror_state->acked_seq;
    rig_keeper_signal(2, SIGCONT);
    rig_wait_mirror(1, SURE, seq + 10);
    rig_run_ms(1100); /* the slot is published once a second */
    ck_assert_int_ge(rig_slot(1, "web01", 5, &info), 0);
    ck_assert_uint_gt(info.console_bytes, bytes + (32u << 10));
    check_file_counts("console.log.1");
    check_file_counts("console.log");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("output");
    TCase *tcase = tcase_create("console");
    SRunner *runner;
    int failed;

    if (!rig_can_run()) {
        fprintf(stderr, "SKIPPED: cgroup v2 is not writable here, and a keeper fences with it\n");
        return 77;
    }
    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, rig_setup, rig_teardown);
    tcase_add_test(tcase, what_a_guest_says_is_shown_once_its_mirror_has_the_checkpoint_after_it_and_nothing_is_lost);
    tcase_add_test(tcase, without_output_commit_it_is_shown_at_once);
    tcase_add_test(tcase, a_vm_without_a_mirror_waits_for_nobody);
    tcase_add_test(tcase, a_mirror_that_has_failed_is_waited_for_until_it_is_left_out);
    tcase_add_test(tcase, a_mirror_is_waited_for_until_it_is_left_out_when_checkpoints_are_counted_anew);
    tcase_add_test(tcase, a_mirror_that_never_joined_holds_nothing_back);
    tcase_add_test(tcase, a_mirror_has_joined_only_when_output_has_waited_for_it);
    tcase_add_test(tcase, what_waits_when_its_vm_is_fenced_is_never_shown);
    tcase_add_test(tcase, a_guest_that_floods_its_console_waits_with_it_loses_nothing_and_stops_nothing);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    rig_sweep();
    return failed ? 1 : 0;
}
