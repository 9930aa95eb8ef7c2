#include "coordinator/io/app.h"

#include "shm/layout.h"
#include "shm/publish.h"

#include <errno.h>
#include <string.h>

/* Questions to the keepers' management addresses, over TCP. Each is a connection of its own, so that none is ever taken for good that is not. It ends
 * with the first answer, with the connection, or when its time is over; what comes later is not looked at. */

static void over(struct manage *manage, int err, const char *text, const struct mst_managed *answer)
{
    struct mst_time now = app_now();
    struct mst_sock *sock = manage->sock;

    if (!manage->asking)
        return;
    manage->asking = false;
    manage->sock = NULL;
    if (sock) {
        mst_sock_set(sock, NULL, NULL);
        mst_sock_close(sock);
    }
    if (manage->app->core && !manage->app->stopping)
        mst_core_managed(manage->app->core, &now, manage->node, err, text, answer);
}

static int take(const struct manage *manage, const Mainstay__ManageAnswer *from, struct mst_managed *ret, struct mst_why *why)
{
    const struct mst_coordinator_conf *conf = manage->app->conf;
    struct mst_beat_line line;

    if (strcmp(from->cluster, conf->cluster) != 0 || strcmp(from->node, conf->nodes[manage->node].name) != 0)
        return mst_why_set(why, -EPROTO, "node %s of cluster %s answers there", from->node, from->cluster);
    memcpy(&line, from->beat.data, sizeof(line));
    if (mst_beat_check(&line) < 0 || line.instance != from->instance)
        return mst_why_set(why, -EPROTO, "the beat line in the answer does not check");
    *ret = (struct mst_managed){.instance = from->instance,
                                .rdma_up = from->rdma_up,
                                .vms_running = from->vms_running,
                                .highest_term = from->highest_term,
                                .highest_term_by = from->highest_term_by,
                                .highest_decision = from->highest_decision};
    memcpy(ret->boot_id, from->host_boot_id.data, sizeof(ret->boot_id));
    watch_beat(&line, app_now().us, &ret->beat);
    return 0;
}

static void on_message(struct mst_sock *sock, const mst_envelope *env, void *arg)
{
    struct manage *manage = arg;
    struct mst_managed answer;
    struct mst_why why = {"no answer to a question"};
    int r = -EPROTO;

    (void)sock;
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_MANAGE_ANSWER)
        r = take(manage, env->manage_answer, &answer, &why);
    over(manage, r, why.text, &answer);
}

static void on_closed(struct mst_sock *sock, int err, const struct mst_why *why, void *arg)
{
    struct manage *manage = arg;

    (void)sock;
    manage->sock = NULL;
    over(manage, err ? err : -ECONNRESET, why->text, NULL);
}

static const struct mst_sock_events events = {.on_message = on_message, .on_closed = on_closed};

static int ask(struct manage *manage, const struct mst_lease_grant *lease)
{
    const struct mst_member_conf *member = &manage->app->conf->nodes[manage->node];
    Mainstay__ManageAsk body = MAINSTAY__MANAGE_ASK__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    struct mst_lease_line line;
    int r;

    r = mst_sock_connect_tcp(manage->app->loop, member->management->address, member->management->port, &events, manage,
                             &manage->sock, &manage->why);
    if (r < 0)
        return r;
    body.cluster = manage->app->conf->cluster;
    body.node = member->name;
    if (lease) {
        watch_lease_line(manage->app, lease, &line);
        body.has_lease = 1;
        body.lease = (ProtobufCBinaryData){.len = sizeof(line), .data = (uint8_t *)&line};
    }
    env.body_case = MAINSTAY__ENVELOPE__BODY_MANAGE_ASK;
    env.manage_ask = &body;
    r = mst_sock_send(manage->sock, &env);
    return r < 0 ? mst_why_set(&manage->why, r, "cannot send: %s", strerror(-r)) : 0;
}

void manage_ask(struct app *app, unsigned node, const struct mst_lease_grant *lease)
{
    struct manage *manage = &app->manages[node];

    manage->app = app;
    manage->node = node;
    manage->asking = true;
    manage->asked_us = app_now().us;
    manage->err = ask(manage, lease);
}

void manage_tick(struct app *app)
{
    uint64_t now_us = app_now().us;

    for (unsigned i = 0; i < app->conf->nodes_count && !app->stopping; i++) {
        struct manage *manage = &app->manages[i];

        if (!manage->asking)
            continue;
        if (manage->err < 0)
            over(manage, manage->err, manage->why.text, NULL);
        else if (now_us - manage->asked_us >= MST_MANAGE_ASK_MS * UINT64_C(1000))
            over(manage, -ETIMEDOUT, "no answer in time", NULL);
    }
}
