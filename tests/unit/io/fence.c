#include "coordinator/io/fence_runner.h"

#include "base/clock.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A fake fence agent: a shell script that behaves as FenceAgentAPI says, or as the test wants it to misbehave. */
static char folder[64], program[128], log_path[128];
static struct mst_option options[] = {{(char[]){"ip"}, (char[]){"10.0.0.1"}}, {(char[]){"plug"}, (char[]){"n1"}}};
static struct mst_fence_conf conf = {.agent = program, .options = options, .options_count = 2};
static uv_loop_t loop;
static struct mst_why why;

static struct {
    unsigned count;
    int err;
    char text[512];
} result;

static void on_done(void *arg, int err, const char *text)
{
    (void)arg;
    result.count++;
    result.err = err;
    snprintf(result.text, sizeof(result.text), "%s", text);
}

static void setup(void)
{
    snprintf(folder, sizeof(folder), "/tmp/mst-fence-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(program, sizeof(program), "%s/fence_fake", folder);
    snprintf(log_path, sizeof(log_path), "%s/log", folder);
    memset(&result, 0, sizeof(result));
    ck_assert_int_eq(uv_loop_init(&loop), 0);
}

static void teardown(void)
{
    ck_assert_int_eq(uv_loop_close(&loop), 0); /* no handle is left */
    unlink(program);
    unlink(log_path);
    rmdir(folder);
}

/* body sees $action, and all options as shell variables */
static void fake(const char *body)
{
    FILE *file = fopen(program, "w");

    ck_assert_ptr_nonnull(file);
    fprintf(file, "#!/bin/sh\nwhile IFS='=' read -r key value; do eval \"$key=\\$value\"; echo \"$key=$value\" >> %s; done\n%s\n",
            log_path, body);
    fclose(file);
    chmod(program, 0700);
}

static void run(uint32_t timeout_ms)
{
    struct mst_fence_run *fence = NULL;

    ck_assert_msg(mst_fence_run(&loop, &conf, timeout_ms, false, on_done, NULL, &fence, &why) == 0, "%s", why.text);
    uv_run(&loop, UV_RUN_DEFAULT);
}

START_TEST(off_and_a_status_that_agrees_is_success)
{
    char got[256] = "";
    FILE *file;

    fake("[ $action = off ] && exit 0; [ $action = status ] && exit 2; exit 9");
    run(5000);
    ck_assert_uint_eq(result.count, 1);
    ck_assert_msg(result.err == 0, "%s", result.text);
    file = fopen(log_path, "r");
    ck_assert_ptr_nonnull(file);
    got[fread(got, 1, sizeof(got) - 1, file)] = '\0';
    fclose(file);
    ck_assert_str_eq(got, "action=off\nip=10.0.0.1\nplug=n1\naction=status\nip=10.0.0.1\nplug=n1\n");
}
END_TEST

START_TEST(a_look_switches_nothing)
{
    static const struct {
        const char *body;
        int err;
    } rows[] = {{"[ $action = monitor ] || exit 2", 0}, {"exit 0", -EAGAIN}, {"[ $action = monitor ] || exit 1", -EIO}};

    for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct mst_fence_run *fence = NULL;
        char got[256] = "";
        FILE *file;

        unlink(log_path);
        fake(rows[i].body);
        ck_assert_int_eq(mst_fence_run(&loop, &conf, 5000, true, on_done, NULL, &fence, &why), 0);
        uv_run(&loop, UV_RUN_DEFAULT);
        ck_assert_uint_eq(result.count, i + 1);
        ck_assert_msg(result.err == rows[i].err, "%s", result.text);
        file = fopen(log_path, "r");
        ck_assert_ptr_nonnull(file);
        got[fread(got, 1, sizeof(got) - 1, file)] = '\0';
        fclose(file);
        ck_assert_str_eq(got, "action=monitor\nip=10.0.0.1\nplug=n1\naction=status\nip=10.0.0.1\nplug=n1\n");
    }
}
END_TEST

START_TEST(off_that_is_contradicted_by_the_status_is_no_success)
{
    fake("exit 0");
    run(5000);
    ck_assert_uint_eq(result.count, 1);
    ck_assert_int_eq(result.err, -EIO);
    ck_assert_ptr_nonnull(strstr(result.text, "says on"));
}
END_TEST

/* A shell that does not understand its script exits with 2: FenceAgentAPI's "off". */
START_TEST(an_agent_that_is_broken_proves_nothing)
{
    struct mst_fence_run *fence = NULL;

    fake("if");
    ck_assert_int_eq(mst_fence_run(&loop, &conf, 5000, true, on_done, NULL, &fence, &why), 0);
    uv_run(&loop, UV_RUN_DEFAULT);
    ck_assert_uint_eq(result.count, 1);
    ck_assert_msg(result.err == -EIO, "%d %s", result.err, result.text);
}
END_TEST

static uv_idle_t idle; /* the loop does not wait for anything */

static void on_idle(uv_idle_t *handle)
{
    (void)handle;
}

/* Behind the first look at what has ended, and before the timers. */
static void stand_still(uv_check_t *check)
{
    usleep(1500000);
    uv_close((uv_handle_t *)check, NULL);
    uv_close((uv_handle_t *)&idle, NULL);
}

START_TEST(an_agent_that_ended_while_we_stood_still_has_ended_in_time)
{
    struct mst_fence_run *fence = NULL;
    uv_check_t check;

    fake("[ $action = off ] || exit 2");
    ck_assert_int_eq(mst_fence_run(&loop, &conf, 1000, false, on_done, NULL, &fence, &why), 0);
    uv_idle_init(&loop, &idle);
    uv_idle_start(&idle, on_idle);
    uv_check_init(&loop, &check);
    uv_check_start(&check, stand_still);
    uv_run(&loop, UV_RUN_DEFAULT);
    ck_assert_uint_eq(result.count, 1);
    ck_assert_msg(result.err == 0, "%d %s", result.err, result.text);
}
END_TEST

START_TEST(failing_agent_is_no_success_and_its_words_are_kept)
{
    fake("echo 'Failed: Unable to obtain correct plug status' >&2; exit 1");
    run(5000);
    ck_assert_int_eq(result.err, -EIO);
    ck_assert_ptr_nonnull(strstr(result.text, "Unable to obtain"));
    ck_assert_ptr_nonnull(strstr(result.text, "action=off"));
}
END_TEST

START_TEST(off_that_answers_like_a_status_is_no_success)
{
    fake("exit 2");
    run(5000);
    ck_assert_int_eq(result.err, -EIO);
}
END_TEST

START_TEST(status_that_fails_is_no_success)
{
    fake("[ $action = off ] && exit 0; exit 1");
    run(5000);
    ck_assert_int_eq(result.err, -EIO);
    ck_assert_ptr_nonnull(strstr(result.text, "action=status"));
}
END_TEST

START_TEST(hanging_agent_is_killed_with_its_children)
{
    uint64_t start_ms = mst_now_ms();

    fake("sleep 1000 & echo $! > \"${0%/*}/child\"; wait");
    run(300);
    ck_assert_uint_eq(result.count, 1);
    ck_assert_int_eq(result.err, -ETIMEDOUT);
    ck_assert_uint_lt(mst_now_ms() - start_ms, 20000);
    {
        char child_path[160], stat_path[64], state[256] = "";
        int child = 0;
        FILE *file;

        snprintf(child_path, sizeof(child_path), "%s/child", folder);
        file = fopen(child_path, "r");
        ck_assert_ptr_nonnull(file);
        ck_assert_int_eq(fscanf(file, "%d", &child), 1);
        fclose(file);
        unlink(child_path);
        snprintf(stat_path, sizeof(stat_path), "/proc/%d/stat", child);
        /* SIGKILL has been sent; the kernel ends it in its own time: gone, or a zombie that init has not reaped. */
        for (start_ms = mst_now_ms(); mst_now_ms() - start_ms < 10000; usleep(1000)) {
            file = fopen(stat_path, "r");
            if (!file)
                break;
            state[fread(state, 1, sizeof(state) - 1, file)] = '\0';
            fclose(file);
            if (strstr(state, ") Z"))
                break;
        }
        ck_assert_msg(!file || strstr(state, ") Z"), "%s", state);
    }
}
END_TEST

START_TEST(agent_that_dies_by_a_signal_is_no_success)
{
    fake("kill -9 $$");
    run(5000);
    ck_assert_int_eq(result.err, -EIO);
    ck_assert_ptr_nonnull(strstr(result.text, "signal 9"));
}
END_TEST

START_TEST(endless_output_is_bounded)
{
    fake("[ $action = status ] && exit 2; head -c 3000000 /dev/zero | tr '\\0' x; exit 0");
    run(20000);
    ck_assert_msg(result.err == 0, "%s", result.text);
}
END_TEST

START_TEST(missing_agent_is_refused_with_a_sentence)
{
    struct mst_fence_run *fence = NULL;

    ck_assert_int_eq(mst_fence_run(&loop, &conf, 1000, false, on_done, NULL, &fence, &why), -ENOENT);
    ck_assert_ptr_nonnull(strstr(why.text, "fence-agents"));
    uv_run(&loop, UV_RUN_DEFAULT);
    ck_assert_uint_eq(result.count, 0);
}
END_TEST

START_TEST(cancelled_fence_says_nothing)
{
    struct mst_fence_run *fence = NULL;

    fake("sleep 1000");
    ck_assert_int_eq(mst_fence_run(&loop, &conf, 60000, false, on_done, NULL, &fence, &why), 0);
    mst_fence_cancel(fence);
    uv_run(&loop, UV_RUN_DEFAULT);
    ck_assert_uint_eq(result.count, 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("fence");
    TCase *tcase = tcase_create("fence");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, off_and_a_status_that_agrees_is_success);
    tcase_add_test(tcase, a_look_switches_nothing);
    tcase_add_test(tcase, an_agent_that_is_broken_proves_nothing);
    tcase_add_test(tcase, an_agent_that_ended_while_we_stood_still_has_ended_in_time);
    tcase_add_test(tcase, off_that_is_contradicted_by_the_status_is_no_success);
    tcase_add_test(tcase, failing_agent_is_no_success_and_its_words_are_kept);
    tcase_add_test(tcase, off_that_answers_like_a_status_is_no_success);
    tcase_add_test(tcase, status_that_fails_is_no_success);
    tcase_add_test(tcase, hanging_agent_is_killed_with_its_children);
    tcase_add_test(tcase, agent_that_dies_by_a_signal_is_no_success);
    tcase_add_test(tcase, endless_output_is_bounded);
    tcase_add_test(tcase, missing_agent_is_refused_with_a_sentence);
    tcase_add_test(tcase, cancelled_fence_says_nothing);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
