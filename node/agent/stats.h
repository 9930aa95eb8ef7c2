#ifndef MST_AGENT_STATS_H
#define MST_AGENT_STATS_H

#include "node/agent/checkpoint.h"

/* What checkpoints of one VM took, for the log and for who asks. Plain data; zeroed is empty. */

#define MST_STATS_KEPT 512u /* newest checkpoints that percentiles are taken over */

enum mst_stat { MST_STAT_PAUSE, MST_STAT_STOP, MST_STAT_DEVICE, MST_STAT_PAGES, MST_STAT_CONT, MST_STAT_COUNT };

struct mst_stats {
    uint32_t us[MST_STAT_COUNT][MST_STATS_KEPT];
    uint64_t seen;                                     /* all of them; us has the newest */
    uint64_t taken, failed, whole, late, pages, dirty; /* since the last mst_stats_text */
};

void mst_stats_add(struct mst_stats *stats, const struct mst_ckpt_report *report);
/* percent 0..100 of the kept ones, nearest rank; 0 when there are none. */
uint32_t mst_stats_percentile(const struct mst_stats *stats, enum mst_stat stat, unsigned percent);
/* One line for the log, and counts anew; percentiles go on. Returns buf. */
const char *mst_stats_text(struct mst_stats *stats, char *buf, size_t size);

#endif
