#ifndef MST_AGENT_KEEPER_PORT_H
#define MST_AGENT_KEEPER_PORT_H

#include "proto/socket.h"

/* The agent's end of keeper.sock: requests with replies, and what the keeper sends by itself. Loop thread only. */

struct mst_port;

struct mst_port_events {
    /* Everything that is no reply to a request of ours: AgentWelcome, orders, VmExited. env is borrowed. */
    void (*on_message)(struct mst_port *port, const mst_envelope *env, void *arg);
    /* The keeper is gone: runs once; no reply runs any more. The port is gone afterwards. */
    void (*on_closed)(struct mst_port *port, int err, const struct mst_why *why, void *arg);
};

/* Errors as mst_sock_connect. events, arg: borrowed until on_closed. */
int mst_port_open(uv_loop_t *loop, const char *path, const struct mst_port_events *events, void *arg, struct mst_port **ret_port,
                  struct mst_why *why);
void mst_port_close(struct mst_port *port); /* on_closed follows */

/* Runs once for each request, unless mst_port_forget or the end of the port comes first. err: 0 and the reply (borrowed), or the
 * keeper's refusal as -errno with its sentence (reply is then its Done). No deadline: the keeper answers every request, or its
 * socket closes. */
typedef void (*mst_port_reply_fn)(int err, const mst_envelope *reply, const struct mst_why *why, void *arg);

/* From here on port may be NULL (the keeper is gone): -ENOTCONN.
 * Sends a request; env->id is filled in. Errors as mst_sock_send, -ENOMEM; reply does not run then. */
int mst_port_request(struct mst_port *port, mst_envelope *env, mst_port_reply_fn reply, void *arg);
void mst_port_forget(struct mst_port *port, const void *arg); /* no reply runs with this arg any more */
/* Sends what wants no answer. Errors as mst_sock_send. */
int mst_port_send(struct mst_port *port, const mst_envelope *env);
/* Answers an order. err: 0 or -errno; why, start, save: may be NULL. */
int mst_port_done(struct mst_port *port, uint64_t reply_to, int err, const struct mst_why *why, Mainstay__StartResult *start,
                  Mainstay__SaveResult *save);

#endif
