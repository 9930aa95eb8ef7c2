#ifndef MST_AGENT_QMP_H
#define MST_AGENT_QMP_H

#include "node/agent/patience.h"
#include "base/err.h"

#include <jansson.h>
#include <uv.h>

/* QMP client of one monitor socket: greeting, capabilities, commands with ids, events, file descriptors, deadlines.
 * What QEMU sends is hostile input: lines over MST_QMP_LINE_BYTES_MAX and anything that is not QMP end the connection.
 * Loop thread only. Callbacks run from the loop, never inside the call that asked for them; any of them may call
 * mst_qmp_close. */

#define MST_QMP_LINE_BYTES_MAX (1u << 20)
#define MST_QMP_PENDING_MAX    64u   /* commands that wait for their reply */
#define MST_QMP_SILENT_MS      5000u /* a monitor that takes longer to answer is silent */

struct mst_qmp;

struct mst_qmp_events {
    /* The greeting came and capabilities are agreed: commands may be sent. At most once. */
    void (*on_ready)(struct mst_qmp *qmp, void *arg);
    /* name and data are borrowed for the call; data is NULL when the event has none. */
    void (*on_event)(struct mst_qmp *qmp, const char *name, const json_t *data, void *arg);
    /* The connection is over: 0 QEMU closed it, or -errno: -ETIMEDOUT (no greeting), -EPROTO (not QMP), -EBADMSG (not JSON),
     * -EMSGSIZE (line too long), or of the socket. Every command still waiting has been answered with -ENOTCONN before.
     * Runs at most once, not after mst_qmp_close; the owner still has to call mst_qmp_close. why is never NULL. */
    void (*on_closed)(struct mst_qmp *qmp, int err, const struct mst_why *why, void *arg);
};

/* Takes over a connected stream socket (also on failure: it is closed). silent_ms: how long the greeting, and
 * then the capabilities, may take.
 * events, arg: borrowed until mst_qmp_close. -ENOMEM, -errno of the socket. */
int mst_qmp_open(uv_loop_t *loop, int fd, uint32_t silent_ms, const struct mst_qmp_events *events, void *arg,
                 struct mst_qmp **ret_qmp);
/* Connects to a monitor's Unix socket first, without waiting. Also -ENOENT, -ECONNREFUSED (QEMU is not there yet), -EAGAIN
 * (somebody else is connected and the queue is full), -ENAMETOOLONG. */
int mst_qmp_connect(uv_loop_t *loop, const char *path, uint32_t silent_ms, const struct mst_qmp_events *events, void *arg,
                    struct mst_qmp **ret_qmp);
/* Forgets everything that waits (no callback runs any more) and closes. NULL is fine. */
void mst_qmp_close(struct mst_qmp *qmp);

/* Runs exactly once for each command accepted, unless mst_qmp_close comes first:
 * 0 with ret (borrowed, what QEMU returned); -EREMOTEIO QEMU refused, why holds its words; -ETIMEDOUT no answer in time (a
 * later answer is dropped; whether the command took effect is unknown); -ENOTCONN the connection ended. */
typedef void (*mst_qmp_reply_fn)(struct mst_qmp *qmp, int err, const json_t *ret, const struct mst_why *why, void *arg);

/* Queues a command.
 *   arguments   NULL or an object, taken over (also on failure)
 *   fd          -1, or a descriptor that is passed along; the caller keeps its own
 *   timeout_ms  0: wait as long as the connection lasts
 *   reply       NULL: nobody is told
 * -ENOTCONN (not ready, or over), -EAGAIN (MST_QMP_PENDING_MAX wait already), -ENOMEM, -errno of duplicating fd. */
int mst_qmp_execute(struct mst_qmp *qmp, const char *command, json_t *arguments, int fd, uint32_t timeout_ms,
                    mst_qmp_reply_fn reply, void *arg);

/* No reply runs with this arg any more (the commands stay with QEMU). Also allowed after mst_qmp_close in the same turn of the loop. */
void mst_qmp_forget(struct mst_qmp *qmp, const void *arg);

/* From here on silence is counted as patience says (node/agent/patience.h); borrowed, until mst_qmp_close. Without, by mst_now_ms. */
void mst_qmp_patience(struct mst_qmp *qmp, const struct mst_patience *patience);
uint64_t mst_qmp_clock_ms(const struct mst_qmp *qmp); /* now, by that count */
bool mst_qmp_waits(const struct mst_qmp *qmp);        /* for an answer, or the greeting. NULL: false */

/* mst_now_ms of the last byte QEMU sent here. */
uint64_t mst_qmp_heard_ms(const struct mst_qmp *qmp);

#endif
