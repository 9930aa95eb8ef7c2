#include "base/file.h"

#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64];

static void make_folder(void)
{
    snprintf(folder, sizeof(folder), "/tmp/mst-file-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void drop_folder(void)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    ck_assert_int_eq(system(command), 0);
}

static const char *in(const char *name)
{
    static char path[2][256];
    static int turn;

    turn = 1 - turn;
    ck_assert_int_eq(mst_path(path[turn], sizeof(path[turn]), "%s/%s", folder, name), 0);
    return path[turn];
}

static unsigned entries(void)
{
    DIR *dir = opendir(folder);
    unsigned count = 0;

    ck_assert_ptr_nonnull(dir);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count - 2;
}

START_TEST(durable_file_reads_back_and_leaves_no_temporary)
{
    char *data;
    size_t len;
    struct stat st;

    umask(077);
    ck_assert_int_eq(mst_file_write_durable(in("a"), "hello", 5, 0640), 0);
    ck_assert_int_eq(mst_file_write_durable(in("a"), "again\0x", 7, 0640), 0);
    ck_assert_int_eq(mst_file_read(in("a"), 100, &data, &len), 0);
    ck_assert_uint_eq(len, 7);
    ck_assert_mem_eq(data, "again\0x\0", 8);
    free(data);
    ck_assert_uint_eq(entries(), 1);
    ck_assert_int_eq(stat(in("a"), &st), 0);
    ck_assert_uint_eq(st.st_mode & 07777, 0640);
}
END_TEST

START_TEST(failed_durable_write_leaves_the_old_file_and_no_temporary)
{
    ck_assert_int_eq(mkdir(in("a"), 0755), 0); /* rename of a file over a folder fails */
    ck_assert_int_eq(mst_file_write_durable(in("a"), "x", 1, 0600), -EISDIR);
    ck_assert_uint_eq(entries(), 1);
    ck_assert_int_eq(mst_file_write_durable(in("no/such"), "x", 1, 0600), -ENOENT);
}
END_TEST

START_TEST(file_larger_than_wanted_is_refused)
{
    static const size_t sizes[] = {0, 1, 4094, 4095, 4096, 4097, 8191, 8192, 100000};
    char *data, *big = calloc(1, 100000);
    size_t len;

    memset(big, 'b', 100000);
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        ck_assert_int_eq(mst_file_write_durable(in("a"), big, sizes[i], 0600), 0);
        ck_assert_int_eq(mst_file_read(in("a"), sizes[i], &data, &len), 0);
        ck_assert_uint_eq(len, sizes[i]);
        ck_assert_int_eq(data[len], 0);
        ck_assert_int_eq(memcmp(data, big, len), 0);
        free(data);
        ck_assert_int_eq(mst_file_read(in("a"), SIZE_MAX, &data, &len), 0);
        ck_assert_uint_eq(len, sizes[i]);
        free(data);
        if (sizes[i] > 0)
            ck_assert_int_eq(mst_file_read(in("a"), sizes[i] - 1, &data, &len), -EFBIG);
    }
    free(big);
    ck_assert_int_eq(mst_file_read(in("none"), 10, &data, &len), -ENOENT);
    ck_assert_int_eq(mst_file_read(folder, 10, &data, &len), -EISDIR);
}
END_TEST

START_TEST(file_of_proc_without_a_size_is_read_whole)
{
    char *data;
    size_t len;

    ck_assert_int_eq(mst_file_read("/proc/self/status", 1 << 20, &data, &len), 0);
    ck_assert_ptr_nonnull(strstr(data, "Name:"));
    ck_assert_uint_gt(len, 500);
    free(data);
}
END_TEST

START_TEST(poke_writes_once_and_does_not_create)
{
    char *data;
    size_t len;

    ck_assert_int_eq(mst_file_poke(in("a"), "1\n"), -ENOENT);
    ck_assert_int_eq(mst_file_write_durable(in("a"), "xxxx", 4, 0600), 0);
    ck_assert_int_eq(mst_file_poke(in("a"), "1\n"), 0);
    ck_assert_int_eq(mst_file_read(in("a"), 100, &data, &len), 0);
    ck_assert_str_eq(data, "1\nxx");
    free(data);
    ck_assert_int_eq(mst_file_poke("/dev/full", "1\n"), -ENOSPC);
}
END_TEST

START_TEST(folders_are_made_to_any_depth_and_again)
{
    struct stat st;

    ck_assert_int_eq(mst_mkdirs(in("a/b//c/"), 0755), 0);
    ck_assert_int_eq(mst_mkdirs(in("a/b/c"), 0755), 0);
    ck_assert_int_eq(stat(in("a/b/c"), &st), 0);
    ck_assert(S_ISDIR(st.st_mode));
    ck_assert_int_eq(mst_mkdirs("/proc", 0755), 0);
    ck_assert_int_eq(mst_mkdirs("", 0755), -EINVAL);
    ck_assert_int_eq(mst_file_write_durable(in("f"), "x", 1, 0600), 0);
    ck_assert_int_eq(mst_mkdirs(in("f"), 0755), -ENOTDIR);
    ck_assert_int_eq(mst_mkdirs(in("f/g"), 0755), -ENOTDIR);
}
END_TEST

START_TEST(pidfile_holds_the_number)
{
    char *data;
    size_t len;

    ck_assert_int_eq(mst_pidfile_write(in("pid"), 4242), 0);
    ck_assert_int_eq(mst_file_read(in("pid"), 100, &data, &len), 0);
    ck_assert_str_eq(data, "4242\n");
    free(data);
    ck_assert_uint_eq(entries(), 1);
}
END_TEST

START_TEST(path_that_does_not_fit_is_refused)
{
    char buf[6];

    ck_assert_int_eq(mst_path(buf, sizeof(buf), "%s/%s", "ab", "cd"), 0);
    ck_assert_str_eq(buf, "ab/cd");
    ck_assert_int_eq(mst_path(buf, sizeof(buf), "%s/%s", "ab", "cde"), -ENAMETOOLONG);
}
END_TEST

START_TEST(boot_id_is_that_of_the_kernel_and_stays)
{
    uint8_t id[16], again[16];
    char text[40] = "", *data;
    size_t len;

    ck_assert_int_eq(mst_host_boot_id(id), 0);
    ck_assert_int_eq(mst_host_boot_id(again), 0);
    ck_assert_mem_eq(id, again, 16);
    for (int i = 0, at = 0; i < 16; i++)
        at += sprintf(text + at, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", id[i]);
    ck_assert_int_eq(mst_file_read("/proc/sys/kernel/random/boot_id", 64, &data, &len), 0);
    ck_assert_int_eq(strncmp(data, text, 36), 0);
    free(data);
}
END_TEST

static void nothing(int signal)
{
    (void)signal;
}

static void *slow_reader(void *arg)
{
    int *fds = arg;
    static uint8_t data[65536];
    size_t total = 0;

    for (;;) {
        ssize_t n = read(fds[0], data, sizeof(data));
        if (n <= 0)
            break;
        total += (size_t)n;
        kill(getpid(), SIGUSR1); /* the writer is inside write(2) most of the time */
    }
    return (void *)total;
}

START_TEST(everything_is_written_through_a_full_pipe_and_signals)
{
    struct sigaction act = {.sa_handler = nothing}; /* no SA_RESTART */
    size_t len = 4u << 20;
    uint8_t *data = calloc(1, len);
    sigset_t blocked;
    pthread_t thread;
    void *total;
    int fds[2];

    ck_assert_int_eq(pipe(fds), 0);
    sigaction(SIGUSR1, &act, NULL);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);
    pthread_create(&thread, NULL, slow_reader, fds);
    pthread_sigmask(SIG_UNBLOCK, &blocked, NULL);
    ck_assert_int_eq(mst_write_all(fds[1], data, len), 0);
    close(fds[1]);
    pthread_join(thread, &total);
    ck_assert_uint_eq((size_t)total, len);
    close(fds[0]);
    free(data);
    ck_assert_int_eq(mst_write_all(-1, "x", 1), -EBADF);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("base/file");
    TCase *tc = tcase_create("all");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tc, make_folder, drop_folder);
    tcase_add_test(tc, durable_file_reads_back_and_leaves_no_temporary);
    tcase_add_test(tc, failed_durable_write_leaves_the_old_file_and_no_temporary);
    tcase_add_test(tc, file_larger_than_wanted_is_refused);
    tcase_add_test(tc, file_of_proc_without_a_size_is_read_whole);
    tcase_add_test(tc, poke_writes_once_and_does_not_create);
    tcase_add_test(tc, folders_are_made_to_any_depth_and_again);
    tcase_add_test(tc, pidfile_holds_the_number);
    tcase_add_test(tc, path_that_does_not_fit_is_refused);
    tcase_add_test(tc, boot_id_is_that_of_the_kernel_and_stays);
    tcase_add_test(tc, everything_is_written_through_a_full_pipe_and_signals);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
