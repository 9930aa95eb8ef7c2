#ifndef MST_AGENT_PACE_H
#define MST_AGENT_PACE_H

#include "shm/layout.h"

#include <stdint.h>

/* When the next checkpoint of a VM begins. Pure: what the last one took goes in, the time from its start to the next start comes out.
 *
 *   as set      the definition's interval, as long as that keeps
 *   stall       the guest may stand for at most stall_max_percent of the time: a pause of p asks for an interval of p x 100 / percent. It grows at once
 *               and shrinks by half of what is too much. More pages in a longer interval make the pause longer, never shorter, so an
 *               interval that is a growing function of the pause comes to rest from one side and does not swing
 *   copy, mirror  never before the last one has settled here, and its mirrors have taken it. That is waiting, not a choice, and nothing of it is kept
 *
 * One pause far out of line (the host was busy, a delta was too small) is paid off over the next intervals, each of which it at most doubles: a
 * save that is ten intervals old is a high price for one hiccup, and a guest that goes on writing through a long interval would fill its delta again.
 * The third before all is paid is no exception any more, so the guest is never owed more than two. */

#define MST_PACE_OUTLIER  4u /* a pause that asks for more than so many times the present interval ... */
#define MST_PACE_OUTLIERS 2u /* ... is paid off later, so often until nothing is owed */

struct mst_pace {
    uint64_t set_ns;
    uint32_t stall_max_percent;
    uint64_t stall_ns; /* interval that the pauses ask for */
    uint64_t debt_ns;  /* time the guest is still owed for pauses out of line */
    unsigned outliers;
};

struct mst_pace_took { /* by the last checkpoint */
    uint64_t pause_ns; /* the guest stood, all in all */
    uint64_t own_ns;   /* from its start until it had settled here */
    uint64_t put_ns;   /* from its start until the keeper had taken it for the mirrors; 0: there is none to wait for */
};

/* percent 1.. */
void mst_pace_init(struct mst_pace *pace, uint32_t interval_ms, uint32_t stall_max_percent);
/* From the start of the checkpoint that took so much to the start of the next. Never less than what is set or than what it took. */
uint64_t mst_pace_next_ns(struct mst_pace *pace, const struct mst_pace_took *took, enum mst_save_pace *ret_why);

#endif
