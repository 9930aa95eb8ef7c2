#ifndef MST_IO_FENCE_RUNNER_H
#define MST_IO_FENCE_RUNNER_H

#include "base/err.h"
#include "conf/conf.h"

#include <stdbool.h>
#include <uv.h>

/* Power fencing through a program of the fence-agents package: `action=off`, then `action=status` as a second question. Options go to the program's
 * standard input (FenceAgentAPI: key=value lines; status exits with 0 for on and 2 for off). Loop thread only. */

struct mst_fence_run;

/* done, once, unless cancelled: err 0 only when off was reported done *and* the status that was asked afterwards says off; text says so.
 * Otherwise -ETIMEDOUT (a step took longer than timeout_ms; the program and its children were killed), -EIO (the program failed, or says
 * the node is still on), -ENOENT, ... with the end of what the program printed. text is borrowed for the call. */
typedef void (*mst_fence_done_fn)(void *arg, int err, const char *text);

/* Starts. look: only asks for the status and changes nothing; err 0: it is off, -EAGAIN: it is on. conf is borrowed until done or cancel.
 * conf->agent: a file name looked up in PATH and /usr/sbin, or an absolute path.
 * 0 and *ret_run; -ENOMEM, -errno of starting the program, with why (done does not follow). */
int mst_fence_run(uv_loop_t *loop, const struct mst_fence_conf *conf, uint32_t timeout_ms, bool look, mst_fence_done_fn done,
                  void *arg, struct mst_fence_run **ret_run, struct mst_why *why);
/* Kills the program; done does not follow. */
void mst_fence_cancel(struct mst_fence_run *run);

#endif
