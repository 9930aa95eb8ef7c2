#include "node/agent/patience.h"

#include "base/clock.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LATE_MS (2 * MST_PATIENCE_TICK_MS) /* a tick that comes later: this process stood still, or its loop did */

uint64_t mst_patience_counts(uint64_t elapsed_ms, uint64_t starved_ms)
{
    uint64_t elapsed = elapsed_ms > LATE_MS ? LATE_MS : elapsed_ms, least = elapsed / MST_PATIENCE_STRETCH;

    if (starved_ms >= elapsed || elapsed - starved_ms < least)
        return least;
    return elapsed - starved_ms;
}

void mst_patience_begin(struct mst_patience *patience, pid_t pid)
{
    memset(patience, 0, sizeof(*patience));
    patience->pid = pid;
    patience->ms = patience->seen_ms = mst_now_ms();
}

uint64_t mst_patience_ms(const struct mst_patience *patience)
{
    uint64_t since_ms = mst_now_ms() - patience->seen_ms;

    return patience->ms + (since_ms > LATE_MS ? LATE_MS : since_ms) / MST_PATIENCE_STRETCH;
}

/* --- threads --- */

static bool text_of(pid_t pid, const char *tid, const char *what, char *buf, size_t size)
{
    char path[80];
    size_t n;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/task/%.16s/%s", (int)pid, tid, what);
    file = fopen(path, "re");
    if (!file)
        return false;
    n = fread(buf, 1, size - 1, file);
    fclose(file);
    buf[n] = '\0';
    return n > 0;
}

/* What the kernel says of one thread: whether it is on a CPU or wants one, how long it was on one, and how long it has waited before that. */
static bool thread_read(pid_t pid, const char *tid, bool *ret_wants, struct mst_patience_thread *ret)
{
    char text[512], *end;

    if (!text_of(pid, tid, "schedstat", text, sizeof(text)) ||
        sscanf(text, "%" SCNu64 " %" SCNu64, &ret->ran_ns, &ret->queued_ns) != 2 ||
        !text_of(pid, tid, "stat", text, sizeof(text)))
        return false;
    end = strrchr(text, ')'); /* of the thread's name, which may have anything in it */
    *ret_wants = end && end[1] == ' ' && end[2] == 'R';
    ret->tid = (pid_t)strtol(tid, NULL, 10);
    return true;
}

/* The wait that is not over yet stands in no counter: who wants a CPU now, and was on none, has waited. */
static uint64_t starved_ms(const struct mst_patience_thread *before, const struct mst_patience_thread *now, bool wants,
                           uint64_t elapsed_ms)
{
    uint64_t ran_ms = (now->ran_ns - before->ran_ns) / MST_NS_PER_MS, queued_ms = (now->queued_ns - before->queued_ns) / MST_NS_PER_MS;
    uint64_t waits_ms = wants && ran_ms < elapsed_ms ? elapsed_ms - ran_ms : 0;

    return waits_ms > queued_ms ? waits_ms : queued_ms;
}

/* Of the thread that waited longest; 0 when nothing is known. */
static uint64_t look(struct mst_patience *patience, uint64_t elapsed_ms)
{
    struct mst_patience_thread now[MST_PATIENCE_THREADS];
    const struct dirent *entry;
    uint64_t most_ms = 0, ms;
    unsigned count = 0;
    char path[40];
    bool wants;
    DIR *dir;

    snprintf(path, sizeof(path), "/proc/%d/task", (int)patience->pid);
    dir = opendir(path);
    while (dir && count < MST_PATIENCE_THREADS && (entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] == '.' || !thread_read(patience->pid, entry->d_name, &wants, &now[count]))
            continue;
        for (unsigned i = 0; i < patience->threads_count; i++) {
            if (patience->threads[i].tid != now[count].tid)
                continue;
            ms = starved_ms(&patience->threads[i], &now[count], wants, elapsed_ms);
            most_ms = ms > most_ms ? ms : most_ms;
        }
        count++;
    }
    if (dir)
        closedir(dir);
    memcpy(patience->threads, now, count * sizeof(now[0]));
    patience->threads_count = count;
    return most_ms;
}

void mst_patience_tick(struct mst_patience *patience, bool waits)
{
    uint64_t now_ms = mst_now_ms(), elapsed_ms = now_ms - patience->seen_ms, starved = 0;

    if (elapsed_ms < MST_PATIENCE_TICK_MS)
        return;
    if (!waits)
        patience->threads_count = 0;
    else if (patience->pid > 0)
        starved = look(patience, elapsed_ms);
    patience->ms += waits && patience->waited ? mst_patience_counts(elapsed_ms, starved) : elapsed_ms;
    patience->waited = waits;
    patience->seen_ms = now_ms;
}
