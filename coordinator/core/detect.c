#include "coordinator/core/detect.h"

#include <string.h>

/* Two reads of a moving counter may fall between two beats of a busy node: that is not yet "still". */
#define STILL_AFTER_MS 500u

void mst_detect_read(struct mst_detect *detect, uint64_t read_ms, uint64_t keeper_beat, uint64_t agent_beat)
{
    if (detect->any && read_ms <= detect->last_ok_ms)
        return;
    if (!detect->any) {
        detect->keeper_since_ms = read_ms;
        detect->agent_since_ms = read_ms;
    } else {
        if (keeper_beat != detect->keeper_beat) {
            detect->keeper_since_ms = read_ms;
            detect->keeper_moved = true;
        }
        if (agent_beat != detect->agent_beat) {
            detect->agent_since_ms = read_ms;
            detect->agent_moved = true;
        }
    }
    detect->any = true;
    detect->keeper_beat = keeper_beat;
    detect->agent_beat = agent_beat;
    detect->last_ok_ms = read_ms;
    detect->failing_since_ms = 0;
    detect->last_fail_ms = 0;
}

void mst_detect_failed(struct mst_detect *detect, uint64_t ms)
{
    if (detect->any && ms <= detect->last_ok_ms)
        return;
    if (detect->failing_since_ms == 0)
        detect->failing_since_ms = ms;
    if (ms > detect->last_fail_ms)
        detect->last_fail_ms = ms;
}

void mst_detect_reset(struct mst_detect *detect)
{
    memset(detect, 0, sizeof(*detect));
}

static enum mst_life judge(const struct mst_detect *detect, bool moved, uint64_t since_ms, uint32_t silent_ms)
{
    uint64_t same_ms = detect->last_ok_ms - since_ms;

    if (!detect->any)
        return MST_LIFE_UNKNOWN;
    if (same_ms >= silent_ms)
        return MST_LIFE_FROZEN;
    if (!moved)
        return MST_LIFE_UNKNOWN;
    return same_ms >= STILL_AFTER_MS ? MST_LIFE_STILL : MST_LIFE_MOVING;
}

enum mst_life mst_detect_keeper(const struct mst_detect *detect, uint32_t silent_ms)
{
    if (detect->failing_since_ms != 0 && detect->last_fail_ms - detect->failing_since_ms >= silent_ms)
        return MST_LIFE_UNREADABLE;
    return judge(detect, detect->keeper_moved, detect->keeper_since_ms, silent_ms);
}

enum mst_life mst_detect_agent(const struct mst_detect *detect, uint32_t silent_ms)
{
    return judge(detect, detect->agent_moved, detect->agent_since_ms, silent_ms);
}

const char *mst_life_name(enum mst_life life)
{
    static const char *const names[] = {"unknown", "moving", "still", "frozen", "unreadable"};

    return (unsigned)life < sizeof(names) / sizeof(names[0]) ? names[life] : "?";
}
