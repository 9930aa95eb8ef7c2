#ifndef MST_CLI_EVENTS_H
#define MST_CLI_EVENTS_H

#include "base/err.h"

#include <jansson.h>
#include <stdint.h>

/* Merging events files of several machines (docs/EVENTS.md). */

struct events_filter { /* NULL and 0: all */
    const char *vm;
    const char *node;  /* written there, or about it */
    uint64_t since_ns; /* by the wall clock of each machine */
};

/* Reads each path, and in folders every file below that is called events.jsonl*, and sorts by time. *ret_events: array of the lines' objects,
 * new reference; *ret_bad: lines that are no events (the last one of a machine that lost power, for example). -ENOENT, -EACCES,
 * -EFBIG (a file over 256 MiB), -ENOMEM with why; -ENODATA: no events file there. */
int events_load(char *const *paths, int count, const struct events_filter *filter, json_t **ret_events, unsigned *ret_bad,
                struct mst_why *why);
/* "2026-11-23T14:05:01" (UTC), or so long before now_ns: "90s", "10m", "2h". 0 or -EINVAL. */
int events_time(const char *text, uint64_t now_ns, uint64_t *ret_ns);

#endif
