#include "cli/client.h"

#include "base/clock.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

struct client {
    uv_loop_t *loop;
    struct mst_sock *sock; /* NULL once closed */
    uv_timer_t timer;
    bool timer_open, timed_out, answered;
    uint64_t last_id, waiting_id;
    mst_envelope *reply;
    int err;
    struct mst_why why;
    void (*on_event)(const mst_envelope *env, void *arg);
    void *event_arg;
};

/* The callback's message is borrowed and the answer must outlive it: pack and unpack is the copy protobuf-c offers. */
static mst_envelope *envelope_copy(const mst_envelope *env)
{
    size_t len = mainstay__envelope__get_packed_size(env);
    uint8_t *bytes = malloc(len > 0 ? len : 1);
    mst_envelope *copy;

    if (!bytes)
        return NULL;
    mainstay__envelope__pack(env, bytes);
    copy = mainstay__envelope__unpack(NULL, len, bytes);
    free(bytes);
    return copy;
}

static void on_message(struct mst_sock *sock, const mst_envelope *env, void *arg)
{
    struct client *client = arg;

    (void)sock;
    if (client->waiting_id != 0 && env->has_reply_to && env->reply_to == client->waiting_id && !client->reply) {
        client->reply = envelope_copy(env);
        if (!client->reply)
            client->err = -ENOMEM;
        uv_stop(client->loop);
        return;
    }
    if (client->on_event)
        client->on_event(env, client->event_arg);
}

static void on_closed(struct mst_sock *sock, int err, const struct mst_why *why, void *arg)
{
    struct client *client = arg;

    (void)sock;
    client->sock = NULL;
    client->err = err < 0 ? err : -ECONNRESET;
    client->why = *why;
    uv_stop(client->loop);
}

static const struct mst_sock_events client_events = {.on_message = on_message, .on_closed = on_closed};

static void on_timer(uv_timer_t *timer)
{
    struct client *client = timer->data;

    client->timed_out = true;
    uv_stop(client->loop);
}

int client_open(uv_loop_t *loop, const char *path, struct client **ret_client, struct mst_why *why)
{
    struct client *client = calloc(1, sizeof(*client));
    int r;

    if (!client)
        return mst_why_set(why, -ENOMEM, "out of memory");
    client->loop = loop;
    r = mst_sock_connect(loop, path, &client_events, client, &client->sock, why);
    if (r < 0) {
        free(client);
        return r;
    }
    uv_timer_init(loop, &client->timer);
    client->timer.data = client;
    client->timer_open = true;
    *ret_client = client;
    return 0;
}

static void on_timer_closed(uv_handle_t *handle)
{
    struct client *client = handle->data;

    client->timer_open = false;
}

void client_free(struct client *client)
{
    if (!client)
        return;
    client->on_event = NULL;
    client->waiting_id = 0;
    if (client->sock)
        mst_sock_close(client->sock);
    uv_close((uv_handle_t *)&client->timer, on_timer_closed);
    while (client->sock || client->timer_open)
        uv_run(client->loop, UV_RUN_ONCE);
    mst_envelope_free(client->reply);
    free(client);
}

void client_on_event(struct client *client, void (*on_event)(const mst_envelope *env, void *arg), void *arg)
{
    client->on_event = on_event;
    client->event_arg = arg;
}

int client_post(struct client *client, mst_envelope *env, uint64_t *ret_id)
{
    if (!client->sock)
        return -ENOTCONN;
    env->has_id = 1;
    env->id = ++client->last_id;
    if (ret_id)
        *ret_id = env->id;
    return mst_sock_send(client->sock, env);
}

int client_request(struct client *client, mst_envelope *env, uint32_t deadline_ms, mst_envelope **ret_reply, struct mst_why *why)
{
    uint64_t id;
    int r = client_post(client, env, &id);

    client->answered = false;
    if (r < 0)
        return mst_why_set(why, r, "the connection to the coordinator is gone");
    client->waiting_id = id;
    client->timed_out = false;
    uv_timer_start(&client->timer, on_timer, deadline_ms, 0);
    while (!client->reply && client->sock && !client->timed_out && client->err != -ENOMEM)
        uv_run(client->loop, UV_RUN_DEFAULT);
    uv_timer_stop(&client->timer);
    client->waiting_id = 0;
    if (client->reply) {
        *ret_reply = client->reply;
        client->reply = NULL;
        client->answered = true;
        return 0;
    }
    if (client->timed_out)
        return mst_why_set(why, -ETIMEDOUT, "the coordinator did not answer within %u ms; is it running and not stopped?",
                           deadline_ms);
    return mst_why_set(why, client->err < 0 ? client->err : -ECONNRESET, "the coordinator closed the connection%s%s",
                       client->why.text[0] ? ": " : "", client->why.text);
}

int client_order(struct client *client, mst_envelope *env, uint32_t deadline_ms, struct mst_why *ret_said, struct mst_why *why)
{
    mst_envelope *reply = NULL;
    int r = client_request(client, env, deadline_ms, &reply, why);

    if (r < 0)
        return r;
    if (reply->body_case != MAINSTAY__ENVELOPE__BODY_DONE)
        r = mst_why_set(why, -EPROTO,
                        "the coordinator answered with another message than Done: do its version and this one fit?");
    else if (reply->done->error != 0)
        r = mst_why_set(why, reply->done->error > 0 ? -reply->done->error : -EPROTO, "%s",
                        reply->done->text && reply->done->text[0] ? reply->done->text
                                                                  : "the coordinator refused without a reason");
    else if (ret_said)
        mst_why_set(ret_said, 0, "%s", reply->done->text ? reply->done->text : "");
    mst_envelope_free(reply);
    return r;
}

int client_answered(const struct client *client)
{
    return client->answered;
}

int client_alive(const struct client *client)
{
    return client->sock != NULL;
}
