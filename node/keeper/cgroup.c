#include "node/keeper/cgroup.h"

#include "base/clock.h"
#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define EVENTS_BYTES_MAX  4096u
#define PROCS_BYTES_MAX   (1u << 20)
#define CLEAR_INTERVAL_MS 5

int mst_cgroup_make(const char *path, struct mst_why *why)
{
    char procs[PATH_MAX];
    int r;

    r = mst_mkdirs(path, 0755);
    if (r < 0)
        return mst_why_set(why, r, "cannot make the cgroup %s: %s", path, strerror(-r));
    r = mst_path(procs, sizeof(procs), "%s/cgroup.procs", path);
    if (r < 0)
        return r;
    if (access(procs, W_OK) != 0)
        return mst_why_set(why, -ENOTSUP, "%s is not a writable cgroup v2 folder (no %s): mount cgroup2 there, or set `cgroup`",
                           path, procs);
    return 0;
}

/* Text of cgroup.procs, or NULL and *ret_err. */
static char *procs_read(const char *path, int *ret_err)
{
    char procs[PATH_MAX], *text = NULL;
    size_t len;

    *ret_err = mst_path(procs, sizeof(procs), "%s/cgroup.procs", path);
    if (*ret_err == 0)
        *ret_err = mst_file_read(procs, PROCS_BYTES_MAX, &text, &len);
    return text;
}

/* Calls each for every pid of the list, until one returns non-zero, which is returned. */
static int pids_each(const char *text, int (*each)(long pid))
{
    char *end;
    int r = 0;

    for (; *text && r == 0; text = end) {
        long pid = strtol(text, &end, 10);

        if (end == text)
            break;
        r = each(pid);
    }
    return r;
}

static int is_us(long pid)
{
    return pid == (long)getpid();
}

static int kill_one(long pid)
{
    /* 0 and 1 would hit our own group or everybody; a process of another pid namespace shows as 0 */
    return pid > 1 && kill((pid_t)pid, SIGKILL) < 0 && errno != ESRCH ? -errno : 0;
}

/* What is killed here is a cgroup made for one VM or for the agent. Never the root (it alone has no cgroup.events), and never one that we
 * live in: a wrong path must be an error and not the end of everything on the host. */
static int may_kill(const char *path, const char *procs)
{
    char events[PATH_MAX];
    int r;

    r = mst_path(events, sizeof(events), "%s/cgroup.events", path);
    if (r < 0)
        return r;
    if (access(events, F_OK) < 0)
        return -EPERM;
    return pids_each(procs, is_us) ? -EDEADLK : 0;
}

int mst_cgroup_kill(const char *path)
{
    char file[PATH_MAX], *procs;
    int r;

    procs = procs_read(path, &r);
    if (!procs)
        return r == -ENOENT || r == -ENODEV ? 0 : r;
    r = may_kill(path, procs);
    if (r == 0)
        r = mst_path(file, sizeof(file), "%s/cgroup.kill", path);
    if (r == 0 && mst_file_poke(file, "1") < 0)
        r = pids_each(procs, kill_one);
    free(procs);
    return r;
}

int mst_cgroup_populated(const char *path)
{
    char file[PATH_MAX], *text, *at;
    size_t len;
    int r;

    r = mst_path(file, sizeof(file), "%s/cgroup.events", path);
    if (r < 0)
        return r;
    r = mst_file_read(file, EVENTS_BYTES_MAX, &text, &len);
    if (r == -ENOENT && access(path, F_OK) < 0 && errno == ENOENT)
        return 0;
    if (r == -ENODEV) /* removed between open and read */
        return 0;
    if (r < 0)
        return r;
    r = -EBADMSG;
    for (at = text; at; at = strchr(at, '\n')) {
        if (*at == '\n')
            at++;
        if (strncmp(at, "populated 0", 11) == 0)
            r = 0;
        else if (strncmp(at, "populated 1", 11) == 0)
            r = 1;
    }
    free(text);
    return r;
}

int mst_cgroup_clear(const char *path, uint32_t timeout_ms)
{
    uint64_t end = mst_now_ms() + timeout_ms;
    int r, killed;

    for (;;) {
        killed = mst_cgroup_kill(path);
        if (killed == -EPERM || killed == -EDEADLK)
            return killed;
        r = mst_cgroup_populated(path);
        if (r == 0)
            return 0;
        if (mst_now_ms() >= end)
            return r < 0 ? r : killed < 0 ? killed : -ETIMEDOUT;
        poll(NULL, 0, CLEAR_INTERVAL_MS);
    }
}

int mst_cgroup_remove(const char *path)
{
    return rmdir(path) == 0 || errno == ENOENT ? 0 : -errno;
}

int mst_cgroup_each(const char *base, const char *prefix, int (*each)(const char *path, const char *name, void *arg), void *arg)
{
    char path[PATH_MAX];
    struct dirent *entry;
    struct stat st;
    int r = 0;
    DIR *dir = opendir(base);

    if (!dir)
        return errno == ENOENT ? 0 : -errno;
    while (r == 0 && (errno = 0, entry = readdir(dir))) {
        /* "." and ".." are folders too, and nobody means them */
        if (entry->d_name[0] == '.' || strncmp(entry->d_name, prefix, strlen(prefix)) != 0)
            continue;
        r = mst_path(path, sizeof(path), "%s/%s", base, entry->d_name);
        if (r == 0 && lstat(path, &st) == 0 && S_ISDIR(st.st_mode))
            r = each(path, entry->d_name, arg);
    }
    if (r == 0 && errno)
        r = -errno;
    closedir(dir);
    return r;
}
