#ifndef MST_AGENT_MCE_H
#define MST_AGENT_MCE_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

/* Machine checks (mce:mce_record) and memory errors (ras:mc_event) from the kernel's trace events, in a tracefs instance of our own
 * named "mainstay". Needs root and /sys/kernel/tracing. */

enum mst_hw_severity { MST_HW_CORRECTED, MST_HW_UNCORRECTED };

struct mst_hw_error {
    enum mst_hw_severity severity;
    bool memory_controller; /* mc_event; otherwise a machine check */
    uint32_t cpu, bank;     /* machine check */
    uint64_t status, addr, misc, mcgstatus;
    bool has_addr, has_misc;
    uint32_t count; /* mc_event: errors in this event */
    char label[64]; /* mc_event: which module, as EDAC names it; printable */
};

/* What an IA32_MCi_STATUS value says: severity and the parts that have a bit for being valid. Pure. */
void mst_mce_decode(uint64_t status, struct mst_hw_error *error);
/* One sentence for people; returns buf. Pure. */
const char *mst_hw_error_text(const struct mst_hw_error *error, char *buf, size_t size);

/* Reading trace records by the kernel's own description of them (events/SYSTEM/NAME/format). */
struct mst_trace_format;
/* mce, mc: text of the two format files, NULL where the kernel has none. -EINVAL, -ENOMEM. */
int mst_trace_format_new(const char *mce, const char *mc, struct mst_trace_format **ret_format);
void mst_trace_format_free(struct mst_trace_format *format); /* NULL is fine */
/* Parses one raw record. 0, -ENOMSG (another event), -EBADMSG (too short, or fields are missing). */
int mst_trace_parse(const struct mst_trace_format *format, const void *record, size_t bytes, struct mst_hw_error *ret_error);

struct mst_mce;
typedef void (*mst_mce_fn)(const struct mst_hw_error *error, void *arg);
/* Runs once, from the loop, unless mst_mce_unwatch comes first: 0 it is watched; -EACCES, -ENOENT (no tracefs, or neither event),
 * -errno; why is never NULL. */
typedef void (*mst_mce_started_fn)(int err, const struct mst_why *why, void *arg);
/* Begins to watch; on_error runs from the loop. Events that came while nobody watched are delivered first, as far as the instance still
 * holds them. The kernel takes up to seconds to make the instance, which a worker thread waits for. -ENOMEM. */
int mst_mce_watch(uv_loop_t *loop, mst_mce_fn on_error, mst_mce_started_fn started, void *arg, struct mst_mce **ret_mce);
void mst_mce_unwatch(struct mst_mce *mce); /* NULL is fine; the instance stays, so that events between two agents are kept */

#endif
