#ifndef MST_KEEPER_CGROUP_H
#define MST_KEEPER_CGROUP_H

#include "base/err.h"

#include <stdint.h>

/* cgroup v2 folders: the fence's hand and its proof. A process cannot leave its cgroup on its own without the rights we do not give it, so
 * "the cgroup is empty" covers every child QEMU may have made. Any thread. */

/* Makes the folder (parents too). 0 or -errno; -ENOTSUP when the filesystem there is not cgroup v2 (no cgroup.procs appeared). */
int mst_cgroup_make(const char *path, struct mst_why *why);
/* SIGKILL to all in it: cgroup.kill, or each pid of cgroup.procs when the kernel has no cgroup.kill (before 5.14; call again until empty).
 * A folder that is not there is fine: 0. -EPERM the root cgroup, -EDEADLK this process lives in it: nobody was killed. */
int mst_cgroup_kill(const char *path);
/* 1 somebody lives in it, 0 nobody (or the folder is not there), -errno: not known, which is not a proof. */
int mst_cgroup_populated(const char *path);
/* Kills and waits until it is empty, at most timeout_ms (blocking: start only). 0, -ETIMEDOUT, -errno as kill. */
int mst_cgroup_clear(const char *path, uint32_t timeout_ms);
/* rmdir; not being there is fine. -EBUSY when populated. */
int mst_cgroup_remove(const char *path);
/* Calls each(path, name, arg) for every folder in base whose name begins with prefix (never "." and ".."), until one returns non-zero, which is returned. */
int mst_cgroup_each(const char *base, const char *prefix, int (*each)(const char *path, const char *name, void *arg), void *arg);

#endif
