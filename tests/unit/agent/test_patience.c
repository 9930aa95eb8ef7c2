/* What counts as the silence of a process, with real ones. */

#include "node/agent/patience.h"

#include "base/clock.h"

#include <check.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t children[8];
static unsigned children_count;

static void child_end(void)
{
    while (children_count > 0) {
        kill(children[--children_count], SIGKILL);
        waitpid(children[children_count], NULL, 0);
    }
}

/* On CPU 0, as this process is. */
static pid_t spinner(int policy)
{
    const struct sched_param none = {0};
    pid_t pid = fork();

    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        if (sched_setscheduler(0, policy, &none) < 0)
            _exit(1);
        for (volatile unsigned n = 0;; n++)
            ;
    }
    children[children_count++] = pid;
    return pid;
}

static void on_one_cpu(void)
{
    cpu_set_t one;

    CPU_ZERO(&one);
    CPU_SET(0, &one);
    ck_assert_int_eq(sched_setaffinity(0, sizeof(one), &one), 0);
}

/* How much of real_ms counts while an answer is awaited. */
static uint64_t counted(pid_t pid, uint64_t real_ms)
{
    struct mst_patience patience;
    uint64_t begin_ms = mst_now_ms(), before_ms, counts_ms;

    mst_patience_begin(&patience, pid);
    usleep(MST_PATIENCE_TICK_MS * 1000 + 1000);
    mst_patience_tick(&patience, true);
    begin_ms = mst_now_ms();
    counts_ms = before_ms = mst_patience_ms(&patience);
    while (mst_now_ms() < begin_ms + real_ms) {
        usleep(20000);
        mst_patience_tick(&patience, true);
        ck_assert_uint_ge(mst_patience_ms(&patience), counts_ms); /* it never goes back */
        counts_ms = mst_patience_ms(&patience);
        ck_assert_uint_le(counts_ms, mst_now_ms());
    }
    return counts_ms - before_ms;
}

START_TEST(time_counts_for_what_could_have_been_used)
{
    ck_assert_uint_eq(mst_patience_counts(100, 0), 100);
    ck_assert_uint_eq(mst_patience_counts(100, 40), 60);
    ck_assert_uint_eq(mst_patience_counts(120, 119), 20); /* never for less than a sixth */
    ck_assert_uint_eq(mst_patience_counts(120, 100000), 20);
    ck_assert_uint_eq(mst_patience_counts(60000, 0), 200); /* this process stood still */
    ck_assert_uint_eq(mst_patience_counts(60000, 100), 100);
}
END_TEST

START_TEST(a_process_that_does_nothing_is_silent_all_the_time)
{
    pid_t pid = spinner(SCHED_OTHER);

    kill(pid, SIGSTOP); /* wants no CPU */
    ck_assert_uint_ge(counted(pid, 1500), 900);
    child_end();
}
END_TEST

START_TEST(a_process_that_gets_no_cpu_is_hardly_silent)
{
    pid_t hungry;
    uint64_t counts_ms;

    on_one_cpu();
    hungry = spinner(SCHED_IDLE);
    spinner(SCHED_OTHER);
    counts_ms = counted(hungry, 1500);
    ck_assert_msg(counts_ms >= 1500 / MST_PATIENCE_STRETCH - 150 && counts_ms <= 750, "%lu of 1500 ms count",
                  (unsigned long)counts_ms);
    child_end();
}
END_TEST

START_TEST(while_nobody_is_awaited_time_is_time)
{
    struct mst_patience patience;
    uint64_t begin_ms;

    mst_patience_begin(&patience, getpid());
    begin_ms = mst_patience_ms(&patience);
    for (unsigned i = 0; i < 4; i++) {
        usleep(MST_PATIENCE_TICK_MS * 3000);
        mst_patience_tick(&patience, false);
    }
    ck_assert_uint_ge(mst_patience_ms(&patience) - begin_ms, 1200);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("patience");
    TCase *tests = tcase_create("patience");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tests, 60);
    tcase_add_checked_fixture(tests, NULL, child_end);
    tcase_add_test(tests, time_counts_for_what_could_have_been_used);
    tcase_add_test(tests, a_process_that_does_nothing_is_silent_all_the_time);
    tcase_add_test(tests, a_process_that_gets_no_cpu_is_hardly_silent);
    tcase_add_test(tests, while_nobody_is_awaited_time_is_time);
    suite_add_tcase(suite, tests);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
