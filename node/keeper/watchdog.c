#include "node/keeper/watchdog.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/watchdog.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define SOFTDOG "Software Watchdog" /* drivers/watchdog/softdog.c */

struct mst_watchdog {
    int fd;
    uint32_t timeout_s;
    char identity[33];
};

static int arm(struct mst_watchdog *watchdog, const char *device, uint32_t timeout_s, struct mst_why *why)
{
    struct watchdog_info info = {0};
    int seconds = (int)timeout_s;

    if (ioctl(watchdog->fd, WDIOC_GETSUPPORT, &info) < 0)
        return mst_why_set(why, -errno, "%s is no watchdog: %s", device, strerror(errno));
    memcpy(watchdog->identity, info.identity, sizeof(info.identity));
    /* A driver without a timeout that can be set has one all the same. */
    if (ioctl(watchdog->fd, WDIOC_SETTIMEOUT, &seconds) < 0 && errno != EOPNOTSUPP && errno != ENOTTY)
        return mst_why_set(why, -errno, "%s (%s) does not take a timeout of %u s: %s", device, watchdog->identity, timeout_s,
                           strerror(errno));
    if (ioctl(watchdog->fd, WDIOC_GETTIMEOUT, &seconds) < 0)
        return mst_why_set(why, -errno, "%s (%s) does not say its timeout: %s", device, watchdog->identity, strerror(errno));
    if (seconds < 1 || (uint32_t)seconds > timeout_s)
        return mst_why_set(why, -ERANGE, "%s (%s) has a timeout of %d s, longer than timeout-s %u", device, watchdog->identity,
                           seconds, timeout_s);
    watchdog->timeout_s = (uint32_t)seconds;
    if (mst_watchdog_touch(watchdog) < 0)
        return mst_why_set(why, -errno, "%s (%s) cannot be touched: %s", device, watchdog->identity, strerror(errno));
    return 0;
}

int mst_watchdog_open(const char *device, uint32_t timeout_s, struct mst_watchdog **ret_watchdog, struct mst_why *why)
{
    struct mst_watchdog *watchdog = calloc(1, sizeof(*watchdog));
    int r;

    if (!watchdog)
        return -ENOMEM;
    watchdog->fd = open(device, O_WRONLY | O_CLOEXEC);
    if (watchdog->fd < 0) {
        r = mst_why_set(why, -errno, "%s: %s", device, strerror(errno));
        free(watchdog);
        return r;
    }
    r = arm(watchdog, device, timeout_s, why);
    if (r < 0) {
        mst_watchdog_close(watchdog, true);
        return r;
    }
    *ret_watchdog = watchdog;
    return 0;
}

uint32_t mst_watchdog_timeout_s(const struct mst_watchdog *watchdog)
{
    return watchdog->timeout_s;
}

const char *mst_watchdog_identity(const struct mst_watchdog *watchdog)
{
    return watchdog->identity;
}

bool mst_watchdog_is_software(const struct mst_watchdog *watchdog)
{
    return strcmp(watchdog->identity, SOFTDOG) == 0;
}

int mst_watchdog_touch(struct mst_watchdog *watchdog)
{
    return ioctl(watchdog->fd, WDIOC_KEEPALIVE, 0) < 0 ? -errno : 0;
}

void mst_watchdog_close(struct mst_watchdog *watchdog, bool disarm)
{
    if (!watchdog)
        return;
    /* The magic close: without it the driver takes the end of its user for a crash. */
    if (disarm && write(watchdog->fd, "V", 1) != 1)
        (void)!ioctl(watchdog->fd, WDIOC_SETOPTIONS, &(int){WDIOS_DISABLECARD});
    close(watchdog->fd);
    free(watchdog);
}
