#include "node/agent/keeper_port.h"

#include <errno.h>
#include <stdlib.h>

struct request {
    struct request *next;
    uint64_t id;
    mst_port_reply_fn reply;
    void *arg;
};

struct mst_port {
    struct mst_sock *sock;
    const struct mst_port_events *events;
    void *arg;
    uint64_t next_id;
    struct request *requests;
};

static void on_reply(struct mst_port *port, const mst_envelope *env)
{
    struct request **at = &port->requests, *request;
    struct mst_why why = {""};
    int err = 0;

    while (*at && (*at)->id != env->reply_to)
        at = &(*at)->next;
    request = *at;
    if (!request)
        return; /* forgotten: its VM is gone */
    *at = request->next;
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_DONE && env->done->error != 0) {
        err = env->done->error > 0 ? -env->done->error : -EPROTO;
        mst_why_set(&why, err, "%s", env->done->text && env->done->text[0] ? env->done->text : mst_errname(err));
    }
    if (request->reply)
        request->reply(err, env, &why, request->arg);
    free(request);
}

static void on_message(struct mst_sock *sock, const mst_envelope *env, void *arg)
{
    struct mst_port *port = arg;

    (void)sock;
    if (env->has_reply_to)
        on_reply(port, env);
    else
        port->events->on_message(port, env, port->arg);
}

static void on_closed(struct mst_sock *sock, int err, const struct mst_why *why, void *arg)
{
    struct mst_port *port = arg;

    (void)sock;
    while (port->requests) {
        struct request *next = port->requests->next;

        free(port->requests);
        port->requests = next;
    }
    port->events->on_closed(port, err, why, port->arg);
    free(port);
}

static const struct mst_sock_events sock_events = {on_message, on_closed};

int mst_port_open(uv_loop_t *loop, const char *path, const struct mst_port_events *events, void *arg, struct mst_port **ret_port,
                  struct mst_why *why)
{
    struct mst_port *port = calloc(1, sizeof(*port));
    int r;

    if (!port)
        return mst_why_set(why, -ENOMEM, "no memory for the connection to the keeper");
    port->events = events;
    port->arg = arg;
    r = mst_sock_connect(loop, path, &sock_events, port, &port->sock, why);
    if (r < 0) {
        free(port);
        return r;
    }
    *ret_port = port;
    return 0;
}

void mst_port_close(struct mst_port *port)
{
    mst_sock_close(port->sock);
}

int mst_port_request(struct mst_port *port, mst_envelope *env, mst_port_reply_fn reply, void *arg)
{
    struct request *request;
    int r;

    if (!port)
        return -ENOTCONN;
    request = calloc(1, sizeof(*request));
    if (!request)
        return -ENOMEM;
    request->id = ++port->next_id;
    request->reply = reply;
    request->arg = arg;
    env->has_id = 1;
    env->id = request->id;
    r = mst_sock_send(port->sock, env);
    if (r < 0) {
        free(request);
        return r;
    }
    request->next = port->requests;
    port->requests = request;
    return 0;
}

void mst_port_forget(struct mst_port *port, const void *arg)
{
    for (struct request *request = port ? port->requests : NULL; request; request = request->next)
        if (request->arg == arg)
            request->reply = NULL;
}

int mst_port_send(struct mst_port *port, const mst_envelope *env)
{
    return port ? mst_sock_send(port->sock, env) : -ENOTCONN;
}

int mst_port_done(struct mst_port *port, uint64_t reply_to, int err, const struct mst_why *why, Mainstay__StartResult *start,
                  Mainstay__SaveResult *save)
{
    Mainstay__Done done = MAINSTAY__DONE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    done.error = -err;
    if (why && why->text[0])
        done.text = (char *)(uintptr_t)why->text;
    else if (err)
        done.text = (char *)(uintptr_t)mst_errname(err);
    done.start = start;
    done.save = save;
    env.has_reply_to = 1;
    env.reply_to = reply_to;
    env.body_case = MAINSTAY__ENVELOPE__BODY_DONE;
    env.done = &done;
    return mst_port_send(port, &env);
}
