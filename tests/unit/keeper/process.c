/* mainstay-exec, spawn and cgroups, for real: on this host's cgroup v2 where there is one, and against a folder that looks like one. */
#include "base/clock.h"
#include "base/file.h"
#include "node/keeper/cgroup.h"
#include "node/keeper/spawn.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[] = "/tmp/mst-keeper-XXXXXX", path[PATH_MAX], log_path[PATH_MAX];
static struct mst_why why;

static void setup(void)
{
    strcpy(folder + strlen(folder) - 6, "XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    ck_assert_int_eq(mst_path(log_path, sizeof(log_path), "%s/log", folder), 0);
    why.text[0] = '\0';
}

static void teardown(void)
{
    char command[PATH_MAX + 16];

    snprintf(command, sizeof(command), "rm -rf %s", folder);
    ck_assert_int_eq(system(command), 0);
}

static void wait_readable(int fd, int timeout_ms)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};

    ck_assert_int_eq(poll(&wait, 1, timeout_ms), 1);
}

/* Runs to the end; returns the wait status. */
static int run(const char *cgroup, int fd, const char *const *argv, size_t argc)
{
    struct mst_spawn spawn = {.exec = MST_TEST_EXEC, .cgroup = cgroup, .log = log_path, .fd = fd, .argv = argv, .argc = argc};
    int pidfd, status = -1;
    pid_t pid;

    ck_assert_msg(mst_spawn(&spawn, &pid, &pidfd, &why) == 0, "%s", why.text);
    wait_readable(pidfd, 10000);
    ck_assert_int_eq(mst_reap(pid, &status), 1);
    close(pidfd);
    return status;
}

static char *log_text(void)
{
    char *text;
    size_t len;

    ck_assert_int_eq(mst_file_read(log_path, 65536, &text, &len), 0);
    return text;
}

static void write_file(const char *name, const char *text)
{
    FILE *file;

    ck_assert_int_eq(mst_path(path, sizeof(path), "%s/%s", folder, name), 0);
    file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    fputs(text, file);
    fclose(file);
}

static bool alive(pid_t pid)
{
    char stat[64], *text, *state;
    size_t len;
    bool is;

    snprintf(stat, sizeof(stat), "/proc/%ld/stat", (long)pid);
    if (mst_file_read(stat, 4096, &text, &len) < 0)
        return false;
    state = strrchr(text, ')');
    is = state && state[2] != 'Z' && state[2] != 'X';
    free(text);
    return is;
}

static void wait_dead(pid_t pid)
{
    uint64_t end = mst_now_ms() + 5000;

    while (alive(pid) && mst_now_ms() < end)
        poll(NULL, 0, 5);
    ck_assert(!alive(pid));
}

START_TEST(the_program_gets_its_console_as_fd_3_and_no_other_descriptor)
{
    const char *argv[] = {"/bin/sh", "-c", "echo hello >&3; ls /proc/self/fd | tr '\\n' ' '; cat"};
    int pair[2], leaked;
    char data[16] = "", *text;

    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    leaked = open("/dev/null", O_RDONLY); /* on purpose without O_CLOEXEC */
    ck_assert_int_eq(run(NULL, pair[1], argv, 3), 0);
    ck_assert_int_eq(read(pair[0], data, sizeof(data)), 6);
    ck_assert_str_eq(data, "hello\n");
    text = log_text();
    ck_assert_str_eq(text, "0 1 2 3 4 "); /* 4 is the folder that ls reads */
    free(text);
    close(leaked);
    close(pair[0]);
    close(pair[1]);
}
END_TEST

/* In a fork, because fd 3 of this process is libcheck's. */
START_TEST(a_descriptor_that_is_3_already_is_passed_too)
{
    const char *argv[] = {"/bin/sh", "-c", "echo x >&3"};
    int pair[2], status;
    char data[4];
    pid_t pid;

    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        struct mst_spawn spawn = {.exec = MST_TEST_EXEC, .log = log_path, .fd = 3, .argv = argv, .argc = 3};
        struct pollfd wait = {.events = POLLIN};
        pid_t child;

        if (pair[1] != 3 && dup3(pair[1], 3, O_CLOEXEC) != 3)
            _exit(1);
        _exit(mst_spawn(&spawn, &child, &wait.fd, &why) == 0 && poll(&wait, 1, 10000) == 1 && mst_reap(child, &status) == 1 ? 0
                                                                                                                            : 1);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    ck_assert_int_eq(read(pair[0], data, sizeof(data)), 2);
    close(pair[0]);
    close(pair[1]);
}
END_TEST

/* The first one's place, 3, is taken by the second: neither may close the other. */
START_TEST(two_descriptors_are_passed_in_their_order_and_no_third)
{
    const char *argv[] = {"/bin/sh", "-c", "echo a >&3; echo bc >&4; [ ! -e /proc/self/fd/5 ] && echo d >&3"};
    int first[2], second[2], status;
    char data[8] = "";
    pid_t pid;

    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, first), 0);
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, second), 0);
    pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        struct mst_spawn spawn = {.exec = MST_TEST_EXEC, .log = log_path, .fd = 40, .fd2 = 3, .argv = argv, .argc = 3};
        struct pollfd wait = {.events = POLLIN};
        pid_t child;

        if (dup3(first[1], 40, O_CLOEXEC) != 40 || (second[1] != 3 && dup3(second[1], 3, O_CLOEXEC) != 3))
            _exit(1);
        _exit(mst_spawn(&spawn, &child, &wait.fd, &why) == 0 && poll(&wait, 1, 10000) == 1 && mst_reap(child, &status) == 1 ? 0
                                                                                                                            : 1);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    ck_assert_int_eq(read(first[0], data, sizeof(data)), 4);
    ck_assert_str_eq(data, "a\nd\n");
    ck_assert_int_eq(read(second[0], data, sizeof(data)), 3);
    ck_assert_int_eq(memcmp(data, "bc\n", 3), 0);
    close(first[0]);
    close(first[1]);
    close(second[0]);
    close(second[1]);
}
END_TEST

START_TEST(signals_and_core_limit_are_as_for_a_fresh_program)
{
    const char *argv[] = {"/bin/sh", "-c",
                          "ulimit -c; grep -E 'Sig(Ign|Blk)' /proc/self/status; ps -o sid= -p $$ | tr -d ' '; echo $$"};
    sigset_t blocked, old;
    unsigned long long blk, ign;
    long sid = -1, pid = -2;
    int core = -1;
    char *text;

    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigprocmask(SIG_BLOCK, &blocked, &old);
    ck_assert_int_eq(run(NULL, -1, argv, 3), 0);
    sigprocmask(SIG_SETMASK, &old, NULL);
    text = log_text();
    ck_assert_msg(sscanf(text, "%d SigBlk: %llx SigIgn: %llx %ld %ld", &core, &blk, &ign, &sid, &pid) == 5, "%s", text);
    ck_assert_int_eq(core, 0);
    ck_assert_uint_eq(blk, 0);
    ck_assert_uint_eq(ign & ~(UINT64_C(3) << 31), 0); /* 32 and 33 are libc's own: whatever this test inherited */
    ck_assert_int_eq(sid, pid);
    free(text);
}
END_TEST

START_TEST(a_program_that_is_missing_says_so_in_the_log)
{
    const char *argv[] = {"/nowhere/qemu"};
    char *text;
    int status = run(NULL, -1, argv, 1);

    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 127);
    text = log_text();
    ck_assert_ptr_nonnull(strstr(text, "/nowhere/qemu"));
    free(text);
}
END_TEST

START_TEST(a_cgroup_that_cannot_be_joined_stops_the_start)
{
    const char *argv[] = {"/bin/sh", "-c", "echo must not run"};
    char *text;
    int status = run("/nowhere/cgroup", -1, argv, 3);

    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 126);
    text = log_text();
    ck_assert_ptr_null(strstr(text, "must not run"));
    free(text);
}
END_TEST

/* A keeper (a fork of this test) starts a program through mainstay-exec and is killed: the program must be gone. */
START_TEST(the_program_dies_with_its_keeper)
{
    pid_t keeper, child = 0;
    int report[2], pair[2];
    char data[4];

    ck_assert_int_eq(pipe2(report, O_CLOEXEC), 0);
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    keeper = fork();
    ck_assert_int_ge(keeper, 0);
    if (keeper == 0) {
        const char *argv[] = {"/bin/sh", "-c", "echo up >&3; exec sleep 600"};
        struct mst_spawn spawn = {.exec = MST_TEST_EXEC, .log = log_path, .fd = pair[1], .argv = argv, .argc = 3};
        int pidfd;
        pid_t pid;

        if (mst_spawn(&spawn, &pid, &pidfd, &why) < 0 || write(report[1], &pid, sizeof(pid)) != sizeof(pid))
            _exit(1);
        for (;;)
            pause();
    }
    ck_assert_int_eq(read(report[0], &child, sizeof(child)), sizeof(child));
    ck_assert_int_eq(read(pair[0], data, sizeof(data)), 3); /* it runs, so the death signal was asked for */
    ck_assert(alive(child));
    ck_assert_int_eq(kill(keeper, SIGKILL), 0);
    ck_assert_int_eq(waitpid(keeper, NULL, 0), keeper);
    wait_dead(child);
    close(report[0]);
    close(report[1]);
    close(pair[0]);
    close(pair[1]);
}
END_TEST

START_TEST(a_program_is_not_started_for_a_keeper_that_is_gone)
{
    pid_t pid = fork();
    int status;

    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        execl(MST_TEST_EXEC, MST_TEST_EXEC, "--parent", "1", "--log", log_path, "--", "/bin/echo", "must not run", NULL);
        _exit(99);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 126);
    ck_assert_int_ne(access(log_path, F_OK), 0);
}
END_TEST

START_TEST(a_stopped_program_dies_of_its_pidfd)
{
    const char *argv[] = {"/bin/sleep", "600"};
    struct mst_spawn spawn = {.exec = MST_TEST_EXEC, .log = log_path, .fd = -1, .argv = argv, .argc = 2};
    int pidfd, status;
    char text[64];
    pid_t pid;

    ck_assert_int_eq(mst_spawn(&spawn, &pid, &pidfd, &why), 0);
    ck_assert_int_eq(mst_reap(pid, &status), 0);
    ck_assert_int_eq(kill(pid, SIGSTOP), 0);
    ck_assert_int_eq(mst_pidfd_kill(pidfd), 0);
    wait_readable(pidfd, 5000);
    ck_assert_int_eq(mst_reap(pid, &status), 1);
    ck_assert_str_eq(mst_status_text(status, text, sizeof(text)), "signal 9 (Killed)");
    ck_assert_int_eq(mst_pidfd_kill(pidfd), -ESRCH);
    close(pidfd);
}
END_TEST

/* --- cgroups: a folder that looks like one --- */

START_TEST(killing_a_cgroup_writes_its_kill_file)
{
    char *text;
    size_t len;

    write_file("cgroup.procs", "");
    write_file("cgroup.events", "populated 1\n");
    write_file("cgroup.kill", "");
    ck_assert_int_eq(mst_cgroup_kill(folder), 0);
    ck_assert_int_eq(mst_file_read(path, 16, &text, &len), 0);
    ck_assert_str_eq(text, "1");
    free(text);
}
END_TEST

static pid_t victim_new(char *list, size_t size)
{
    pid_t pid = fork();

    ck_assert_int_ge(pid, 0);
    if (pid == 0)
        for (;;)
            pause();
    snprintf(list, size, "0\n%ld\n", (long)pid); /* 0: a process of another namespace, which must not hit our own group */
    return pid;
}

static void victim_end(pid_t pid, bool was_killed)
{
    int status;

    if (!was_killed) {
        poll(NULL, 0, 100);
        ck_assert(alive(pid));
        kill(pid, SIGKILL);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

START_TEST(a_kernel_without_cgroup_kill_has_each_process_killed)
{
    char list[64];
    pid_t pid = victim_new(list, sizeof(list));

    write_file("cgroup.procs", list);
    write_file("cgroup.events", "populated 1\n");
    ck_assert_int_eq(mst_cgroup_kill(folder), 0);
    victim_end(pid, true);
}
END_TEST

/* The root cgroup is the only one without cgroup.events. */
START_TEST(the_root_cgroup_is_never_killed)
{
    char list[64], *text;
    pid_t pid = victim_new(list, sizeof(list));
    size_t len;

    write_file("cgroup.procs", list);
    if (_i)
        write_file("cgroup.kill", "");
    ck_assert_int_eq(mst_cgroup_kill(folder), -EPERM);
    ck_assert_int_eq(mst_cgroup_clear(folder, 30), -EPERM);
    if (_i) {
        ck_assert_int_eq(mst_file_read(path, 16, &text, &len), 0);
        ck_assert_str_eq(text, "");
        free(text);
    }
    victim_end(pid, false);
}
END_TEST

START_TEST(a_cgroup_that_we_live_in_is_never_killed)
{
    char list[64], *text;
    pid_t pid = victim_new(list, sizeof(list));
    size_t len = strlen(list);

    snprintf(list + len, sizeof(list) - len, "%ld\n",
             (long)getpid()); /* after the victim: nobody may be hit before we are seen */
    write_file("cgroup.procs", list);
    write_file("cgroup.events", "populated 1\n");
    if (_i)
        write_file("cgroup.kill", "");
    ck_assert_int_eq(mst_cgroup_kill(folder), -EDEADLK);
    ck_assert_int_eq(mst_cgroup_clear(folder, 30), -EDEADLK);
    if (_i) {
        ck_assert_int_eq(mst_file_read(path, 16, &text, &len), 0);
        ck_assert_str_eq(text, "");
        free(text);
    }
    victim_end(pid, false);
}
END_TEST

START_TEST(only_populated_0_is_a_proof)
{
    write_file("cgroup.events", "populated 1\nfrozen 0\n");
    ck_assert_int_eq(mst_cgroup_populated(folder), 1);
    write_file("cgroup.events", "frozen 0\npopulated 0\n");
    ck_assert_int_eq(mst_cgroup_populated(folder), 0);
    write_file("cgroup.events", "frozen 0\n");
    ck_assert_int_eq(mst_cgroup_populated(folder), -EBADMSG);
    write_file("cgroup.events", "");
    ck_assert_int_eq(mst_cgroup_populated(folder), -EBADMSG);
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(mst_cgroup_populated(folder), -ENOENT); /* the folder is there: not known who lives in it */
    ck_assert_int_eq(mst_path(path, sizeof(path), "%s/gone", folder), 0);
    ck_assert_int_eq(mst_cgroup_populated(path), 0);
}
END_TEST

START_TEST(a_cgroup_that_does_not_empty_is_reported)
{
    write_file("cgroup.procs", "");
    write_file("cgroup.kill", "");
    write_file("cgroup.events", "populated 1\n");
    ck_assert_int_eq(mst_cgroup_clear(folder, 30), -ETIMEDOUT);
}
END_TEST

static int count_one(const char *at, const char *name, void *arg)
{
    ck_assert_int_eq(strncmp(name, "vm-", 3), 0);
    ck_assert_int_eq(access(at, F_OK), 0);
    ++*(int *)arg;
    return 0;
}

static int count_folder(const char *at, const char *name, void *arg)
{
    (void)at;
    ck_assert_int_ne(name[0], '.');
    ++*(int *)arg;
    return 0;
}

START_TEST(only_folders_of_vms_are_visited)
{
    const char *names[] = {"vm-a", "vm-b", "agent"};
    int count = 0;

    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(mst_path(path, sizeof(path), "%s/%s", folder, names[i]), 0);
        ck_assert_int_eq(mkdir(path, 0700), 0);
    }
    write_file("vm-file", "");
    ck_assert_int_eq(mst_cgroup_each(folder, "vm-", count_one, &count), 0);
    ck_assert_int_eq(count, 2);
    count = 0;
    ck_assert_int_eq(mst_cgroup_each(folder, "", count_folder, &count), 0);
    ck_assert_int_eq(count, 3); /* not "." and not ".." */
    ck_assert_int_eq(mst_cgroup_each("/nowhere", "vm-", count_one, &count), 0);
    ck_assert_int_eq(mst_cgroup_make(folder, &why), -ENOTSUP);
}
END_TEST

/* --- cgroups: this host's --- */

static const char *real_cgroup(void)
{
    static char real[PATH_MAX];
    const char *base[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"};

    for (int i = 0; i < 2; i++) {
        snprintf(real, sizeof(real), "%s/mst-test-%ld", base[i], (long)getpid());
        if (mst_cgroup_make(real, &why) == 0)
            return real;
        rmdir(real);
    }
    return NULL;
}

START_TEST(a_fence_kills_the_program_and_all_its_children_and_proves_it)
{
    const char *cgroup = real_cgroup();
    const char *argv[] = {"/bin/sh", "-c", "(trap '' TERM HUP; setsid sleep 600) & (sleep 600) & echo up >&3; wait"};
    struct mst_spawn spawn = {.exec = MST_TEST_EXEC, .cgroup = cgroup, .log = log_path, .argv = argv, .argc = 3};
    int pair[2], pidfd, status;
    char data[4];
    pid_t pid;

    if (!cgroup) {
        fprintf(stderr, "SKIPPED: no writable cgroup v2 on this host: %s\n", why.text);
        return;
    }
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    spawn.fd = pair[1];
    ck_assert_int_eq(mst_spawn(&spawn, &pid, &pidfd, &why), 0);
    close(pair[1]);
    ck_assert_int_eq(read(pair[0], data, sizeof(data)), 3);
    ck_assert_int_eq(mst_cgroup_populated(cgroup), 1);
    ck_assert_int_eq(mst_cgroup_remove(cgroup), -EBUSY);
    ck_assert_int_eq(mst_cgroup_clear(cgroup, 5000), 0);
    wait_readable(pidfd, 5000);
    ck_assert_int_eq(mst_reap(pid, &status), 1);
    ck_assert_int_eq(mst_cgroup_remove(cgroup), 0);
    close(pidfd);
    close(pair[0]);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("process");
    TCase *tc = tcase_create("process");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tc, 30);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, the_program_gets_its_console_as_fd_3_and_no_other_descriptor);
    tcase_add_test(tc, a_descriptor_that_is_3_already_is_passed_too);
    tcase_add_test(tc, two_descriptors_are_passed_in_their_order_and_no_third);
    tcase_add_test(tc, signals_and_core_limit_are_as_for_a_fresh_program);
    tcase_add_test(tc, a_program_that_is_missing_says_so_in_the_log);
    tcase_add_test(tc, a_cgroup_that_cannot_be_joined_stops_the_start);
    tcase_add_test(tc, the_program_dies_with_its_keeper);
    tcase_add_test(tc, a_program_is_not_started_for_a_keeper_that_is_gone);
    tcase_add_test(tc, a_stopped_program_dies_of_its_pidfd);
    tcase_add_test(tc, killing_a_cgroup_writes_its_kill_file);
    tcase_add_test(tc, a_kernel_without_cgroup_kill_has_each_process_killed);
    tcase_add_loop_test(tc, the_root_cgroup_is_never_killed, 0, 2);
    tcase_add_loop_test(tc, a_cgroup_that_we_live_in_is_never_killed, 0, 2);
    tcase_add_test(tc, only_populated_0_is_a_proof);
    tcase_add_test(tc, a_cgroup_that_does_not_empty_is_reported);
    tcase_add_test(tc, only_folders_of_vms_are_visited);
    tcase_add_test(tc, a_fence_kills_the_program_and_all_its_children_and_proves_it);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
