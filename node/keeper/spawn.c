#include "node/keeper/spawn.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILD_FD    3   /* and the one behind it */
#define OPTIONS_MAX 10u /* our own arguments before PROGRAM, with the final NULL */

static char **arguments_new(const struct mst_spawn *spawn, const char *parent)
{
    char **argv = calloc(OPTIONS_MAX + spawn->argc + 1, sizeof(*argv));
    size_t n = 0, i;

    if (!argv)
        return NULL;
    /* posix_spawn does not write to them; its prototype is older than const */
    argv[n++] = (char *)spawn->exec;
    argv[n++] = (char *)"--parent";
    argv[n++] = (char *)parent;
    if (spawn->cgroup) {
        argv[n++] = (char *)"--cgroup";
        argv[n++] = (char *)spawn->cgroup;
    }
    if (spawn->log) {
        argv[n++] = (char *)"--log";
        argv[n++] = (char *)spawn->log;
    }
    if (spawn->fd >= 0) {
        argv[n++] = (char *)"--keep";
        argv[n++] = (char *)(spawn->fd2 > 0 ? "4" : "3");
    }
    argv[n++] = (char *)"--";
    for (i = 0; i < spawn->argc; i++)
        argv[n++] = (char *)spawn->argv[i];
    return argv;
}

int mst_spawn(const struct mst_spawn *spawn, pid_t *ret_pid, int *ret_pidfd, struct mst_why *why)
{
    extern char **environ;
    posix_spawn_file_actions_t actions;
    char parent[24], **argv;
    int r, pidfd, status, high = -1;
    pid_t pid = -1;

    if (!spawn->argc)
        return mst_why_set(why, -EINVAL, "no program to start");
    snprintf(parent, sizeof(parent), "%ld", (long)getpid());
    argv = arguments_new(spawn, parent);
    if (!argv)
        return -ENOMEM;
    r = -posix_spawn_file_actions_init(&actions);
    if (r < 0)
        goto free_argv;
    /* The second one first, to where nothing of ours is: making 3 of the first may close the second, if that is 3 itself. Clears CLOEXEC, also
     * when it is there already. */
    if (spawn->fd >= 0 && spawn->fd2 > 0) {
        high = fcntl(spawn->fd2, F_DUPFD_CLOEXEC, CHILD_FD + 2);
        r = high < 0 ? -errno : 0;
    }
    if (r == 0 && spawn->fd >= 0)
        r = -posix_spawn_file_actions_adddup2(&actions, spawn->fd, CHILD_FD);
    if (r == 0 && high >= 0)
        r = -posix_spawn_file_actions_adddup2(&actions, high, CHILD_FD + 1);
    if (r == 0)
        r = -posix_spawn(&pid, spawn->exec, &actions, NULL, argv, environ);
    if (r < 0) {
        mst_why_set(why, r, "cannot start %s: %s", spawn->exec, strerror(-r));
        goto free_actions;
    }
    pidfd = pidfd_open(pid, 0);
    if (pidfd < 0) {
        r = mst_why_set(why, -errno, "pidfd_open of %ld: %s", (long)pid, strerror(errno));
        kill(pid, SIGKILL); /* not reaped yet, so the pid is still our child's */
        waitpid(pid, &status, 0);
        goto free_actions;
    }
    *ret_pid = pid;
    *ret_pidfd = pidfd;
free_actions:
    if (high >= 0)
        close(high);
    posix_spawn_file_actions_destroy(&actions);
free_argv:
    free(argv);
    return r;
}

int mst_pidfd_kill(int pidfd)
{
    return pidfd_send_signal(pidfd, SIGKILL, NULL, 0) == 0 ? 0 : -errno;
}

int mst_reap(pid_t pid, int *ret_status)
{
    pid_t got;

    do {
        got = waitpid(pid, ret_status, WNOHANG);
    } while (got < 0 && errno == EINTR);
    return got < 0 ? -errno : got == pid;
}

int mst_pid_has_open(pid_t pid, const char *path)
{
    struct stat wanted, at;
    struct dirent *entry;
    char folder[40];
    DIR *dir;
    int found = 0;

    snprintf(folder, sizeof(folder), "/proc/%ld/fd", (long)pid);
    if (stat(path, &wanted) < 0)
        return errno == ENOENT ? 0 : -errno;
    dir = opendir(folder);
    if (!dir)
        return errno == ENOENT ? 0 : -errno;
    while (!found && (entry = readdir(dir)))
        found = fstatat(dirfd(dir), entry->d_name, &at, 0) == 0 && at.st_dev == wanted.st_dev && at.st_ino == wanted.st_ino;
    closedir(dir);
    return found;
}

const char *mst_status_text(int wait_status, char *buf, size_t size)
{
    if (WIFSIGNALED(wait_status))
        snprintf(buf, size, "signal %d (%s)", WTERMSIG(wait_status), strsignal(WTERMSIG(wait_status)));
    else
        snprintf(buf, size, "exit status %d", WEXITSTATUS(wait_status));
    return buf;
}
