#include "node/keeper/keeper.h"

#include "base/log.h"

#include <errno.h>
#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

static bool may_lock(void)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {0};

    return syscall(SYS_capget, &head, data) == 0 && data[0].effective & 1u << CAP_IPC_LOCK;
}

/* Registered memory is pinned, once for each link it is registered on, and all of it counts; CAP_IPC_LOCK lifts the limit. */
int mst_memlock_check(const struct mst_node_conf *conf, struct mst_why *why)
{
    struct rlimit limit, raised = {RLIM_INFINITY, RLIM_INFINITY};
    uint64_t need = (uint64_t)conf->memory_mib << 20;

    if (may_lock() || setrlimit(RLIMIT_MEMLOCK, &raised) == 0)
        return 0;
    if (getrlimit(RLIMIT_MEMLOCK, &limit) < 0)
        return -errno;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_MEMLOCK, &limit) < 0)
        return -errno;
    if (limit.rlim_cur == RLIM_INFINITY)
        return 0;
    if (limit.rlim_cur < need)
        return mst_why_set(
            why, -ENOMEM,
            "RLIMIT_MEMLOCK is %llu MiB and cannot be raised; main storage of %u MiB must be pinned, once for each peer: "
            "set LimitMEMLOCK=infinity in the service",
            (unsigned long long)(limit.rlim_cur >> 20), conf->memory_mib);
    log_warning("RLIMIT_MEMLOCK is %llu MiB: enough for %llu peers; LimitMEMLOCK=infinity is meant",
                (unsigned long long)(limit.rlim_cur >> 20), (unsigned long long)(limit.rlim_cur / (need ? need : 1)));
    return 0;
}
