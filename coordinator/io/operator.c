#include "coordinator/io/app.h"
#include "coordinator/io/convert.h"

#include "base/file.h"
#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct session {
    struct app *app;
    struct mst_sock *sock;
    uid_t uid;
    pid_t pid;
};

/* --- answers --- */

int session_send(struct session *session, mst_envelope *env)
{
    int r = mst_sock_send(session->sock, env);

    if (r < 0 && r != -ENOTCONN && r != -ENOBUFS)
        log_error("answer %d to the operator cannot be sent: %s", (int)env->body_case, strerror(-r));
    return r;
}

int session_done(struct session *session, uint64_t request_id, int err, const char *text)
{
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    Mainstay__Done done;

    mst_done_set(&done, err, text);
    env.has_reply_to = 1;
    env.reply_to = request_id;
    env.body_case = MAINSTAY__ENVELOPE__BODY_DONE;
    env.done = &done;
    return session_send(session, &env);
}

uint64_t app_reply_add(struct app *app, struct session *session, uint64_t link, uint64_t request_id)
{
    for (unsigned i = 0; i < APP_REPLIES_MAX; i++) {
        struct app_reply *reply = &app->replies[i];

        if (reply->token != 0)
            continue;
        *reply = (struct app_reply){.token = ++app->next_token, .session = session, .link = link, .request_id = request_id};
        return reply->token;
    }
    return 0;
}

void app_reply(struct app *app, uint64_t token, int err, const char *text)
{
    for (unsigned i = 0; i < APP_REPLIES_MAX; i++) {
        struct app_reply *reply = &app->replies[i];
        mst_envelope env = MAINSTAY__ENVELOPE__INIT;
        Mainstay__Done done;

        if (reply->token != token)
            continue;
        reply->token = 0;
        if (reply->session)
            (void)session_done(reply->session, reply->request_id, err, text);
        if (reply->link == 0)
            return;
        mst_done_set(&done, err, text);
        env.has_reply_to = 1;
        env.reply_to = reply->request_id;
        env.body_case = MAINSTAY__ENVELOPE__BODY_DONE;
        env.done = &done;
        (void)links_send(app, reply->link, &env);
        return;
    }
}

/* --- requests --- */

static void ask(struct session *session, uint64_t id, const struct mst_request *request)
{
    struct app *app = session->app;
    struct mst_time now = app_now();
    uint64_t token = app_reply_add(app, session, 0, id);

    if (token == 0) {
        (void)session_done(session, id, -EBUSY, "too many requests wait for an answer: try again");
        return;
    }
    log_info("operator uid=%u pid=%d request=%d name=%s", (unsigned)session->uid, (int)session->pid, (int)request->type,
             request->name);
    if (mst_core_request(app->core, &now, token, request) < 0)
        app_reply(app, token, -EBUSY, "too many requests wait: try again");
}

static void on_define(struct session *session, uint64_t id, const Mainstay__VmDefine *message)
{
    struct mst_definition *def = malloc(sizeof(*def));
    struct mst_request request = {.type = MST_REQ_DEFINE, .replace = message->has_replace && message->replace, .definition = def};
    struct mst_why why = {0};
    int r = def ? mst_convert_definition(message->definition, session->app->core, def, &why) : -ENOMEM;

    if (r < 0) {
        (void)session_done(session, id, r, why.text);
    } else {
        memcpy(request.name, def->name, sizeof(request.name));
        ask(session, id, &request);
    }
    free(def);
}

static void on_named(struct session *session, uint64_t id, enum mst_request_type type, const char *name, const char *node,
                     const char *text)
{
    struct mst_request request = {.type = type};

    snprintf(request.name, sizeof(request.name), "%s", name);
    snprintf(request.node, sizeof(request.node), "%s", node ? node : "");
    snprintf(request.text, sizeof(request.text), "%s", text ? text : "");
    ask(session, id, &request);
}

static void on_report(struct session *session, uint64_t id, const Mainstay__FaultReport *message)
{
    struct app *app = session->app;
    struct mst_time now = app_now();
    struct mst_report report;
    uint64_t token = app_reply_add(app, session, 0, id);

    if (token == 0) {
        (void)session_done(session, id, -EBUSY, "too many requests wait for an answer: try again");
        return;
    }
    mst_convert_report(message, &report);
    if (!report.reporter[0])
        snprintf(report.reporter, sizeof(report.reporter), "operator");
    mst_core_report(app->core, &now, 0, token, &report);
}

static void on_message(struct mst_sock *sock, const mst_envelope *env, void *arg)
{
    struct session *session = arg;
    uint64_t id = env->has_id ? env->id : 0;
    struct mst_why why;

    if (!session->app->core) {
        (void)session_done(session, id, -EAGAIN, lead_standby_text(session->app, &why));
        mst_sock_close(sock); /* whoever asks again may have found the leader by then */
        return;
    }
    switch (env->body_case) {
    case MAINSTAY__ENVELOPE__BODY_QUERY:
        views_answer(session->app, session, id, env->query);
        break;
    case MAINSTAY__ENVELOPE__BODY_VM_DEFINE:
        on_define(session, id, env->vm_define);
        break;
    case MAINSTAY__ENVELOPE__BODY_VM_START:
        on_named(session, id, MST_REQ_START, env->vm_start->vm, env->vm_start->node, NULL);
        break;
    case MAINSTAY__ENVELOPE__BODY_VM_STOP:
        on_named(session, id, MST_REQ_STOP, env->vm_stop->vm, NULL, NULL);
        break;
    case MAINSTAY__ENVELOPE__BODY_VM_UNDEFINE:
        on_named(session, id, MST_REQ_UNDEFINE, env->vm_undefine->vm, NULL, NULL);
        break;
    case MAINSTAY__ENVELOPE__BODY_NODE_DRAIN:
        on_named(session, id, env->node_drain->has_undo && env->node_drain->undo ? MST_REQ_UNDRAIN : MST_REQ_DRAIN,
                 env->node_drain->node, NULL, NULL);
        break;
    case MAINSTAY__ENVELOPE__BODY_NODE_CONFIRM_DEAD:
        on_named(session, id, MST_REQ_CONFIRM_DEAD, env->node_confirm_dead->node, NULL, env->node_confirm_dead->text);
        break;
    case MAINSTAY__ENVELOPE__BODY_CLUSTER_RESUME:
        on_named(session, id, MST_REQ_GO_ON, "cluster", NULL, env->cluster_resume->text);
        break;
    case MAINSTAY__ENVELOPE__BODY_FAULT_REPORT:
        on_report(session, id, env->fault_report);
        break;
    case MAINSTAY__ENVELOPE__BODY_CONSOLE_REQUEST:
        console_request(session->app, session, id, env->console_request);
        break;
    default:
        (void)session_done(session, id, -EOPNOTSUPP, "no request of an operator");
    }
}

static void on_closed(struct mst_sock *sock, int err, const struct mst_why *why, void *arg)
{
    struct session *session = arg;
    struct app *app = session->app;

    (void)sock;
    if (err < 0)
        log_info("operator connection ended: %s %s", strerror(-err), why->text);
    for (unsigned i = 0; i < APP_REPLIES_MAX; i++) {
        if (app->replies[i].session == session)
            app->replies[i].session = NULL; /* the decision stands, nobody listens any more */
    }
    console_session_gone(app, session);
    app->sessions--;
    free(session);
}

static const struct mst_sock_events events = {.on_message = on_message, .on_closed = on_closed};

static int on_accept(struct mst_sock *sock, pid_t pid, uid_t uid, void *arg, const struct mst_sock_events **ret_events,
                     void **ret_arg)
{
    struct app *app = arg;
    struct session *session = calloc(1, sizeof(*session));

    if (!session)
        return -ENOMEM;
    session->app = app;
    session->sock = sock;
    session->pid = pid;
    session->uid = uid;
    app->sessions++;
    *ret_events = &events;
    *ret_arg = session;
    return 0;
}

int operator_open(struct app *app, struct mst_why *why)
{
    char path[PATH_MAX];
    int r = mst_mkdirs(app->conf->run_dir, 0755);

    if (r < 0)
        return mst_why_set(why, r, "run-dir %s: %s", app->conf->run_dir, strerror(-r));
    r = mst_path(path, sizeof(path), "%s/coordinator.sock", app->conf->run_dir);
    if (r == 0)
        r = mst_sockserv_open(app->loop, path, 0660, on_accept, app, &app->serv, why);
    return r;
}

void operator_close(struct app *app)
{
    if (app->serv)
        mst_sockserv_close(app->serv);
    app->serv = NULL;
}
