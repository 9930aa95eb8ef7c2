#ifndef MST_AGENT_PATIENCE_H
#define MST_AGENT_PATIENCE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* How long a QEMU has been silent though it could have answered. Its deadlines are counted in this time: an agent that stands still itself, because its
 * machine does or has too much to do, has not waited; and a QEMU whose threads want a CPU and get none (/proc/PID/task/TID/stat, schedstat: proc(5),
 * sched-stats.rst) is not hung. Time that is lost to QEMU's waiting never counts for less than 1/MST_PATIENCE_STRETCH of itself, so that a QEMU that spins on
 * a crowded machine is found out as well. Loop thread. */

#define MST_PATIENCE_TICK_MS 100u
#define MST_PATIENCE_STRETCH 6u
#define MST_PATIENCE_THREADS 64u /* of QEMU that are looked at: main loop, vCPUs, migration */

struct mst_patience {
    pid_t pid;
    uint64_t ms;      /* of this time */
    uint64_t seen_ms; /* mst_now_ms of the last tick */
    bool waited;      /* so at the last tick: threads[] is of then */
    unsigned threads_count;
    struct mst_patience_thread {
        pid_t tid;
        uint64_t ran_ns, queued_ns;
    } threads[MST_PATIENCE_THREADS];
};

void mst_patience_begin(struct mst_patience *patience, pid_t pid);
/* Every MST_PATIENCE_TICK_MS, more often does no harm. waits: an answer is awaited; else time counts as it is, and nobody is looked at. */
void mst_patience_tick(struct mst_patience *patience, bool waits);
/* Now. It never goes back, nor faster than mst_now_ms. */
uint64_t mst_patience_ms(const struct mst_patience *patience);

/* Pure: what a tick makes of elapsed_ms, of which QEMU's hungriest thread wanted a CPU for starved_ms. */
uint64_t mst_patience_counts(uint64_t elapsed_ms, uint64_t starved_ms);

#endif
