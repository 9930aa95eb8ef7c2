#include "node/keeper/watchdog.h"
#include "tests/sim/world.h"

#include <errno.h>

/* A hardware watchdog: untouched for its timeout, it resets the host. It runs on when its keeper dies, and knows nothing of the host's clocks. */

void *sim_calloc(size_t count, size_t bytes);
void sim_free(void *at);

struct mst_watchdog {
    struct sim_host *host;
};

static void power_event(void *arg)
{
    sim_power_on(arg);
}

struct bite {
    struct sim_host *host;
    uint32_t boot;
};

static void bite_event(void *arg)
{
    struct bite *bite = arg;
    struct sim_host *host = bite->host;
    uint64_t end_ns = host->dog_touched_ns + host->conf.watchdog->timeout_s * SIM_S;

    if (!host->powered || host->boot != bite->boot || !host->dog_armed) {
        host->dog_waits = host->boot != bite->boot && host->dog_waits;
        return;
    }
    if (K.now_ns < end_ns) {
        sim_at(NULL, end_ns - K.now_ns, bite_event, bite);
        return;
    }
    host->dog_waits = false;
    sim_power_off(host, "its watchdog resets it");
    if (!host->reboot_ns)
        sim_at(NULL, sim_between(3000, 8000) * SIM_MS, power_event, host);
}

int mst_watchdog_open(const char *device, uint32_t timeout_s, struct mst_watchdog **ret_watchdog, struct mst_why *why)
{
    struct sim_host *host = sim_here();
    struct mst_watchdog *watchdog = sim_calloc(1, sizeof(*watchdog));
    struct bite *bite;

    (void)device, (void)why;
    if (sim_muted())
        return -EBUSY;
    watchdog->host = host;
    *ret_watchdog = watchdog;
    host->dog_armed = true;
    host->dog_touched_ns = K.now_ns;
    if (host->dog_waits)
        return 0; /* it runs since an earlier keeper of this boot */
    host->dog_waits = true;
    bite = sim_keep(sizeof(*bite));
    *bite = (struct bite){.host = host, .boot = host->boot};
    sim_at(NULL, timeout_s * SIM_S, bite_event, bite);
    return 0;
}

uint32_t mst_watchdog_timeout_s(const struct mst_watchdog *watchdog)
{
    return watchdog->host->conf.watchdog->timeout_s;
}

const char *mst_watchdog_identity(const struct mst_watchdog *watchdog)
{
    (void)watchdog;
    return "simulated";
}

bool mst_watchdog_is_software(const struct mst_watchdog *watchdog)
{
    (void)watchdog;
    return false;
}

int mst_watchdog_touch(struct mst_watchdog *watchdog)
{
    if (!sim_muted())
        watchdog->host->dog_touched_ns = K.now_ns;
    return 0;
}

void mst_watchdog_close(struct mst_watchdog *watchdog, bool disarm)
{
    if (!watchdog || sim_muted())
        return;
    if (disarm)
        watchdog->host->dog_armed = false;
    sim_free(watchdog);
}
