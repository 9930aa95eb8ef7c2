#ifndef MST_AGENT_RESUME_H
#define MST_AGENT_RESUME_H

#include "node/agent/qmp.h"

#include <stdbool.h>

/* Makes a guest that stands still run. Loop thread only.
 *
 *   fast     after a save or load that went as it should: `cont`, again while QEMU says "not finalized yet"
 *   careful  when it is not known what QEMU was doing (failed checkpoint, restarted agent): ends a migration that is still going, waits for its end,
 *            then `cont`, then asks whether the guest really runs. A guest that panicked is left alone. */

enum mst_resume_how { MST_RESUME_FAST, MST_RESUME_CAREFUL };

struct mst_resume;

/* Runs exactly once, from the loop, unless mst_resume_cancel comes first; the resume is gone afterwards.
 * 0 the guest runs; -ECANCELED it panicked; -ETIMEDOUT QEMU did not answer, or never finalized; -ENOTCONN; -EREMOTEIO. */
typedef void (*mst_resume_fn)(int err, const struct mst_why *why, void *arg);

/* timeout_ms: for each command (0: as long as the connection lasts) and, unless 0, for the whole. -ENOMEM, and of
 * mst_qmp_execute; done does not run then. qmp must not be closed before the end or
 * mst_resume_cancel (the same turn of the loop will do). */
int mst_resume_start(uv_loop_t *loop, struct mst_qmp *qmp, enum mst_resume_how how, uint32_t timeout_ms, mst_resume_fn done,
                     void *arg, struct mst_resume **ret_resume);
/* done does not run any more. NULL is fine. */
void mst_resume_cancel(struct mst_resume *resume);

#endif
