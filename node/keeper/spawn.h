#ifndef MST_KEEPER_SPAWN_H
#define MST_KEEPER_SPAWN_H

#include "base/err.h"

#include <stddef.h>
#include <sys/types.h>

struct mst_spawn {
    const char *exec;        /* mainstay-exec */
    const char *cgroup;      /* folder to join, must exist; NULL: none */
    const char *log;         /* stdout and stderr; NULL: inherited */
    int fd, fd2;             /* become fd 3 and, behind it, 4 of the program; borrowed; -1 and 0: none */
    const char *const *argv; /* PROGRAM (absolute path) and its arguments */
    size_t argc;             /* 1.. */
};

/* Starts a program through mainstay-exec, with posix_spawn because RDMA contexts do not survive fork. The program dies with the *thread*
 * that calls this (PR_SET_PDEATHSIG): main thread only. *ret_pidfd becomes readable when the process has ended; close it, reap by pid.
 * The pid is in the cgroup only some time after this returned: to end it, kill the pid as well as the cgroup, and reap it.
 * 0, -ENOMEM, -EINVAL, or what posix_spawn and pidfd_open say (nothing runs then). */
int mst_spawn(const struct mst_spawn *spawn, pid_t *ret_pid, int *ret_pidfd, struct mst_why *why);

/* SIGKILL through the pidfd, so that a reused pid is never hit. 0, -ESRCH ended already, -errno. */
int mst_pidfd_kill(int pidfd);
/* Reaps an ended child. 1 and its wait status, 0 still running, -ECHILD. */
int mst_reap(pid_t pid, int *ret_status);
/* Whether it has that very file open: 1, 0 no, or not any more; -errno. */
int mst_pid_has_open(pid_t pid, const char *path);
/* "exit status 1", "signal 9 (Killed)" into buf; returns buf. */
const char *mst_status_text(int wait_status, char *buf, size_t size);

#endif
