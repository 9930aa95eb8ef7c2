#ifndef MST_AGENT_LOAD_H
#define MST_AGENT_LOAD_H

#include "node/agent/qmp.h"

/* Feeds a device state stream to a QEMU that was started with -incoming defer and whose RAM file is filled already. The guest stands
 * afterwards (mst_resume_start lets it run). Loop thread only. The bytes must have been checked: QEMU's loader is not hardened. */

struct mst_load;

/* Runs exactly once, from the loop, unless mst_load_cancel comes first; the load is gone afterwards.
 * 0; -EREMOTEIO QEMU refused or failed (it usually exits then, and its log says why); -ETIMEDOUT; -ENOTCONN. */
typedef void (*mst_load_fn)(int err, const struct mst_why *why, void *arg);

/* stream: copied. timeout_ms: for the whole. -EMSGSIZE (0 bytes, or over MST_DEVICE_BYTES_MAX), -ENOMEM, -errno. */
int mst_load_start(uv_loop_t *loop, struct mst_qmp *qmp, const void *stream, uint64_t bytes, uint32_t timeout_ms,
                   mst_load_fn done, void *arg, struct mst_load **ret_load);
/* Events of the monitor are handed on here. */
void mst_load_event(struct mst_load *load, const char *name, const json_t *data);
void mst_load_cancel(struct mst_load *load); /* NULL is fine */

#endif
