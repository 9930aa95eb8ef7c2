#include "base/clock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

static uint64_t clock_ns(clockid_t id)
{
    struct timespec ts;

    /* Fails only for an unknown clock or a bad pointer: neither can happen, and no caller could go on without a clock. */
    if (clock_gettime(id, &ts) < 0)
        abort();
    return (uint64_t)ts.tv_sec * MST_NS_PER_S + (uint64_t)ts.tv_nsec;
}

uint64_t mst_now_ns(void)
{
    return clock_ns(CLOCK_BOOTTIME);
}

uint64_t mst_raw_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC_RAW);
}

uint64_t mst_now_ms(void)
{
    return mst_now_ns() / MST_NS_PER_MS;
}

uint64_t mst_wall_ms(void)
{
    return clock_ns(CLOCK_REALTIME) / MST_NS_PER_MS;
}

uint64_t mst_wall_ns(void)
{
    return clock_ns(CLOCK_REALTIME);
}

uint64_t mst_random_u64(void)
{
    uint64_t value = 0;

    while (value == 0) {
        ssize_t n = getrandom(&value, sizeof(value), 0);
        if (n < 0 && errno != EINTR)
            abort(); /* instances and epochs must not be guessable: no fallback */
        if (n != (ssize_t)sizeof(value))
            value = 0;
    }
    return value;
}

const char *mst_wall_text(uint64_t wall_ms, char buf[static 25])
{
    time_t seconds = (time_t)(wall_ms / 1000);
    struct tm tm;
    char date[20];

    /* Years past 9999 do not fit the format: a hostile record must not overrun buf. */
    if (wall_ms / 1000 > UINT64_C(253402300799) || !gmtime_r(&seconds, &tm) ||
        strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%S", &tm) == 0) {
        snprintf(buf, 25, "?");
        return buf;
    }
    snprintf(buf, 25, "%s.%03uZ", date, (unsigned)(wall_ms % 1000));
    return buf;
}
