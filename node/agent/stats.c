#include "node/agent/stats.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t to_us(uint64_t ns)
{
    return ns / 1000 > UINT32_MAX ? UINT32_MAX : (uint32_t)(ns / 1000);
}

void mst_stats_add(struct mst_stats *stats, const struct mst_ckpt_report *report)
{
    uint64_t at = stats->seen++ % MST_STATS_KEPT;

    stats->taken++;
    stats->us[MST_STAT_PAUSE][at] = to_us(report->pause_ns);
    stats->us[MST_STAT_STOP][at] = to_us(report->stop_ns);
    stats->us[MST_STAT_DEVICE][at] = to_us(report->device_ns);
    stats->us[MST_STAT_PAGES][at] = to_us(report->pages_ns);
    stats->us[MST_STAT_CONT][at] = to_us(report->cont_ns);
    stats->whole += report->whole;
    stats->pages += report->pages_early + report->pages_late;
    stats->dirty += report->pages_dirty;
}

static int by_size(const void *left, const void *right)
{
    const uint32_t *a = left, *b = right;

    return (*a > *b) - (*a < *b);
}

uint32_t mst_stats_percentile(const struct mst_stats *stats, enum mst_stat stat, unsigned percent)
{
    size_t count = stats->seen < MST_STATS_KEPT ? stats->seen : MST_STATS_KEPT, rank;
    uint32_t sorted[MST_STATS_KEPT];

    if (count == 0)
        return 0;
    memcpy(sorted, stats->us[stat], count * sizeof(sorted[0]));
    qsort(sorted, count, sizeof(sorted[0]), by_size);
    rank = (count * percent + 99) / 100;
    return sorted[rank > 0 ? rank - 1 : 0];
}

const char *mst_stats_text(struct mst_stats *stats, char *buf, size_t size)
{
    static const char *const names[MST_STAT_COUNT] = {"pause", "stop", "device", "pages", "cont"};
    uint64_t taken = stats->taken ? stats->taken : 1;
    int used = snprintf(buf, size,
                        "checkpoints=%" PRIu64 " failed=%" PRIu64 " late=%" PRIu64 " whole=%" PRIu64 " pages=%" PRIu64
                        " dirty=%" PRIu64 " us(p50/p99)",
                        stats->taken, stats->failed, stats->late, stats->whole, stats->pages / taken, stats->dirty / taken);

    for (unsigned i = 0; i < MST_STAT_COUNT && used > 0 && (size_t)used < size; i++)
        used += snprintf(buf + used, size - (size_t)used, " %s=%" PRIu32 "/%" PRIu32, names[i],
                         mst_stats_percentile(stats, (enum mst_stat)i, 50), mst_stats_percentile(stats, (enum mst_stat)i, 99));
    stats->taken = stats->failed = stats->whole = stats->late = stats->pages = stats->dirty = 0;
    return buf;
}
