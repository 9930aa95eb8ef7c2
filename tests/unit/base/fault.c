#include "base/fault.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static int work(void)
{
    MST_FAULT("test.work", return -EIO);
    return 0;
}

#ifdef MST_FAULT_POINTS

static void arm(const char *fault, const char *kill_at)
{
    unsetenv("MST_FAULT");
    unsetenv("MST_FAULT_KILL");
    if (fault)
        setenv("MST_FAULT", fault, 1);
    if (kill_at)
        setenv("MST_FAULT_KILL", kill_at, 1);
    mst_fault_reload();
}

START_TEST(unarmed_point_does_nothing)
{
    arm(NULL, NULL);
    ck_assert_int_eq(work(), 0);
    arm("test.other,test.workshop,test", NULL);
    ck_assert_int_eq(work(), 0);
    arm(",,:,:3,", NULL);
    ck_assert_int_eq(work(), 0);
}
END_TEST

START_TEST(armed_point_fires_once_at_its_hit)
{
    arm("test.work", NULL);
    ck_assert_int_eq(work(), -EIO);
    ck_assert_int_eq(work(), 0);
    arm("test.other,test.work:3", NULL);
    ck_assert_int_eq(work(), 0);
    ck_assert_int_eq(work(), 0);
    ck_assert_int_eq(work(), -EIO);
    ck_assert_int_eq(work(), 0);
}
END_TEST

START_TEST(one_point_can_be_armed_for_several_hits)
{
    arm("test.work:1,test.work:3", NULL);
    ck_assert_int_eq(work(), -EIO);
    ck_assert_int_eq(work(), 0);
    ck_assert_int_eq(work(), -EIO);
    ck_assert_int_eq(work(), 0);
}
END_TEST

START_TEST(kill_point_ends_the_process_with_sigkill_there)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        arm(NULL, "test.work:2");
        if (work() != 0)
            _exit(1);
        work();
        _exit(2);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFSIGNALED(status));
    ck_assert_int_eq(WTERMSIG(status), SIGKILL);
}
END_TEST

START_TEST(hits_count_once_the_file_is_there)
{
    char path[] = "/tmp/mst-fault-XXXXXX";
    int fd = mkstemp(path);

    ck_assert_int_ge(fd, 0);
    close(fd);
    unlink(path);
    setenv("MST_FAULT_AFTER", path, 1);
    arm("test.work:2", NULL);
    for (int i = 0; i < 5; i++)
        ck_assert_int_eq(work(), 0);
    fd = open(path, O_CREAT | O_WRONLY, 0600);
    ck_assert_int_ge(fd, 0);
    close(fd);
    ck_assert_int_eq(work(), 0);
    ck_assert_int_eq(work(), -EIO);
    unlink(path);
    unsetenv("MST_FAULT_AFTER");
}
END_TEST

START_TEST(environment_is_read_at_the_first_hit)
{
    setenv("MST_FAULT", "test.work", 1);
    ck_assert_int_eq(work(), -EIO);
}
END_TEST

#else

START_TEST(points_are_not_in_this_build)
{
    setenv("MST_FAULT", "test.work", 1);
    setenv("MST_FAULT_KILL", "test.work", 1);
    ck_assert_int_eq(work(), 0);
}
END_TEST

#endif

int main(void)
{
    Suite *suite = suite_create("base/fault");
    TCase *tc = tcase_create("all");
    SRunner *runner;
    int failed;

#ifdef MST_FAULT_POINTS
    tcase_add_test(tc, unarmed_point_does_nothing);
    tcase_add_test(tc, armed_point_fires_once_at_its_hit);
    tcase_add_test(tc, one_point_can_be_armed_for_several_hits);
    tcase_add_test(tc, kill_point_ends_the_process_with_sigkill_there);
    tcase_add_test(tc, hits_count_once_the_file_is_there);
    tcase_add_test(tc, environment_is_read_at_the_first_hit);
#else
    tcase_add_test(tc, points_are_not_in_this_build);
#endif
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
