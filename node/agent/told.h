#ifndef MST_AGENT_TOLD_H
#define MST_AGENT_TOLD_H

#include "node/agent/mce.h"

#include <stdbool.h>
#include <stdint.h>

/* Which hardware errors were reported lately: the same one is reported once in MST_TOLD_AGAIN_MS. Plain data; zeroed is empty. Pure. */

#define MST_TOLD_AGAIN_MS 10000u
#define MST_TOLD_KEPT     16u /* kinds remembered; the one reported longest ago gives way */

struct mst_told_list {
    struct {
        uint64_t key, at_ms, held_back;
    } told[MST_TOLD_KEPT];
};

/* Everything a person would call the same error has the same key: place, status, address, not the counters. */
uint64_t mst_told_key(const struct mst_hw_error *error);
/* Whether this one may be reported now (and then it counts as reported). *ret_held: how many like it were held back since the
 * last report. now_ms: not 0, never going back. */
bool mst_told_may(struct mst_told_list *list, uint64_t key, uint64_t now_ms, uint64_t *ret_held);

#endif
