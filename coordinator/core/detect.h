#ifndef MST_CORE_DETECT_H
#define MST_CORE_DETECT_H

#include <stdbool.h>
#include <stdint.h>

/* Judging a node by its beat line. Pure: every time is an argument, in milliseconds of the reader's own clock.
 * A counter is called frozen when two *successful* reads, silent_ms apart or more, showed the same value and none between showed another.
 * The time since the last successful read proves nothing and is not used. Failed reads are counted apart: they make the node
 * unreadable, which is suspicion too. */

struct mst_detect {                        /* zero it to start */
    bool any;                              /* there was a successful read since the last reset */
    bool keeper_moved, agent_moved;        /* a change was seen since the last reset */
    uint64_t keeper_beat, keeper_since_ms; /* value, and local time of the first read that showed it */
    uint64_t agent_beat, agent_since_ms;
    uint64_t last_ok_ms;
    uint64_t failing_since_ms, last_fail_ms; /* of failures since the last success; 0: none */
};

enum mst_life {
    MST_LIFE_UNKNOWN, /* not two successful reads yet */
    MST_LIFE_MOVING,
    MST_LIFE_STILL, /* no change for a while, not yet for silent_ms */
    MST_LIFE_FROZEN,
    MST_LIFE_UNREADABLE, /* keeper only: reads have failed for silent_ms */
};

/* A successful read at read_ms. Reads older than the newest known are ignored. */
void mst_detect_read(struct mst_detect *detect, uint64_t read_ms, uint64_t keeper_beat, uint64_t agent_beat);
/* A read, or the attempt to connect for one, failed at ms. */
void mst_detect_failed(struct mst_detect *detect, uint64_t ms);
/* Forgets both windows: the reader itself was paused, or the node is another instance now. */
void mst_detect_reset(struct mst_detect *detect);

enum mst_life mst_detect_keeper(const struct mst_detect *detect, uint32_t silent_ms);
enum mst_life mst_detect_agent(const struct mst_detect *detect, uint32_t silent_ms);
const char *mst_life_name(enum mst_life life);

#endif
