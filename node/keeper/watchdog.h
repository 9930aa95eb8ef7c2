#ifndef MST_KEEPER_WATCHDOG_H
#define MST_KEEPER_WATCHDOG_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

/* A kernel watchdog (Documentation/watchdog/watchdog-api.rst): once open it resets the machine when it is not touched for its timeout. A keeper
 * that dies leaves it running. Loop thread; the calls are short. */

struct mst_watchdog;

/* Opens and arms it, and touches it once. The timeout is what the device made of timeout_s, never longer: -ERANGE then. -ENOENT, -EBUSY
 * (somebody else, systemd perhaps, has it), -EACCES, -ENOTTY (no watchdog); with why. On failure after it was open it has been disarmed again. */
int mst_watchdog_open(const char *device, uint32_t timeout_s, struct mst_watchdog **ret_watchdog, struct mst_why *why);
uint32_t mst_watchdog_timeout_s(const struct mst_watchdog *watchdog);
const char *mst_watchdog_identity(const struct mst_watchdog *watchdog);
/* It is an hrtimer of this very kernel and cannot fire in one that no longer runs timers: no hardware. */
bool mst_watchdog_is_software(const struct mst_watchdog *watchdog);
/* Puts off the reset by the timeout. 0, -errno. */
int mst_watchdog_touch(struct mst_watchdog *watchdog);
/* disarm: it stops, where the kernel allows that (nowayout); otherwise the machine is reset unless another keeper opens it in time. NULL is fine. */
void mst_watchdog_close(struct mst_watchdog *watchdog, bool disarm);

#endif
