#include "coordinator/io/app.h"
#include "coordinator/io/convert.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* A keeper has this long to say Hello, and strangers get so many links. */
#define HELLO_MS      2000u
#define STRANGERS_MAX 32u
#define PER_ADDRESS   4u

struct control {
    struct app *app;
    struct mst_link *link;
    uint64_t id;
    int node; /* -1: has not said Hello yet, or was refused */
    bool refused;
    uint64_t opened_ms;
};

static struct control *find(const struct app *app, uint64_t id)
{
    for (unsigned i = 0; id != 0 && i < APP_CONTROLS_MAX; i++) {
        if (app->controls[i] && app->controls[i]->id == id)
            return app->controls[i];
    }
    return NULL;
}

static int send_env(struct control *control, const mst_envelope *env)
{
    struct mst_why why = {0};
    int n = mst_frame_pack_why(env, control->app->frame, sizeof(control->app->frame), &why);

    if (n < 0) {
        log_error("peer=%s message %d cannot be packed: %s", mst_link_address(control->link), (int)env->body_case, why.text);
        return n;
    }
    return mst_link_send(control->link, control->app->frame, (size_t)n);
}

int links_send(struct app *app, uint64_t link, const mst_envelope *env)
{
    struct control *control = find(app, link);

    return control ? send_env(control, env) : -ENOTCONN;
}

static uint64_t link_of_node(const struct app *app, unsigned node)
{
    struct mst_node_look look;
    struct mst_time now = app_now();

    mst_core_node(app->core, &now, node, &look);
    return look.link;
}

int links_order(struct app *app, const struct mst_order *order)
{
    struct control *control = find(app, link_of_node(app, order->node));
    int n;

    if (!control)
        return -ENOTCONN;
    n = mst_convert_order(order, app->conf->nodes[order->node].name, app->frame, sizeof(app->frame));
    return n < 0 ? n : mst_link_send(control->link, app->frame, (size_t)n);
}

void links_close(struct app *app, uint64_t link)
{
    struct control *control = find(app, link);

    if (!control)
        return;
    console_link_gone(app, control->id);
    control->node = -1;
    control->id = 0;
    mst_link_close(control->link);
}

void links_peers(struct app *app)
{
    Mainstay__Peers peers = MAINSTAY__PEERS__INIT;
    Mainstay__Peer list[MST_NODES_MAX], *pointers[MST_NODES_MAX];
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    struct mst_time now = app_now();

    app->peers_changed = false;
    for (unsigned i = 0; i < mst_core_nodes(app->core); i++) {
        struct mst_node_look look;

        mst_core_node(app->core, &now, i, &look);
        if (look.link == 0)
            continue;
        mainstay__peer__init(&list[peers.n_peers]);
        list[peers.n_peers].node = (char *)look.member->name;
        list[peers.n_peers].node_id = look.member->id;
        list[peers.n_peers].address = (char *)look.member->address;
        list[peers.n_peers].port = look.member->port;
        list[peers.n_peers].instance = look.instance;
        pointers[peers.n_peers] = &list[peers.n_peers];
        peers.n_peers++;
    }
    peers.peers = pointers;
    env.body_case = MAINSTAY__ENVELOPE__BODY_PEERS;
    env.peers = &peers;
    env.has_decision = 1;
    env.decision = mst_core_decision(app->core);
    for (unsigned i = 0; i < APP_CONTROLS_MAX; i++) {
        if (app->controls[i] && app->controls[i]->node >= 0)
            (void)send_env(app->controls[i], &env);
    }
}

/* --- Hello --- */

static void refuse(struct control *control, int err, const char *text)
{
    Mainstay__Refuse body = MAINSTAY__REFUSE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.error = -err;
    body.text = (char *)text;
    env.body_case = MAINSTAY__ENVELOPE__BODY_REFUSE;
    env.refuse = &body;
    control->refused = true;
    if (err != -EAGAIN) /* a standby refuses all the time */
        log_notice("peer=%s refused: %s", mst_link_address(control->link), text);
    (void)send_env(control, &env);
    mst_link_close(control->link); /* after what is queued */
}

static void welcome(struct control *control)
{
    Mainstay__Welcome body = MAINSTAY__WELCOME__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.coordinator_id = control->app->conf->id;
    body.coordinator_instance = control->app->instance;
    body.term = mst_core_term(control->app->core);
    env.body_case = MAINSTAY__ENVELOPE__BODY_WELCOME;
    env.welcome = &body;
    env.has_decision = 1;
    env.decision = mst_core_decision(control->app->core);
    (void)send_env(control, &env);
}

static void on_hello(struct control *control, const Mainstay__Hello *message)
{
    struct app *app = control->app;
    struct mst_hello hello;
    struct mst_why why = {0};
    struct mst_time now = app_now();
    int r;

    if (message->protocol_version != MST_PROTOCOL_VERSION) {
        mst_why_set(&why, -EPROTONOSUPPORT, "this coordinator speaks protocol version %u, node %s version %u",
                    MST_PROTOCOL_VERSION, message->node, message->protocol_version);
        refuse(control, -EPROTONOSUPPORT, why.text);
        return;
    }
    if (!app->core || !mst_core_ready(app->core)) { /* -EAGAIN: it calls again soon, and tries the others */
        refuse(control, -EAGAIN, lead_standby_text(app, &why));
        return;
    }
    if (strcmp(message->address, mst_link_address(control->link)) != 0) {
        mst_why_set(&why, -EACCES, "node %s says it is at %s but calls from %s", message->node, message->address,
                    mst_link_address(control->link));
        refuse(control, -EACCES, why.text);
        return;
    }
    mst_convert_hello(message, &hello);
    r = mst_core_hello(app->core, &now, control->id, &hello, &why);
    if (r < 0) {
        refuse(control, r, why.text);
        return;
    }
    control->node = mst_core_node_by_name(app->core, hello.node);
    welcome(control);
    r = watch_start(app, (unsigned)control->node, hello.instance);
    if (r < 0)
        log_error("node=%s cannot be watched: %s", hello.node, strerror(-r));
    links_peers(app);
    mst_core_tick(app->core, &now); /* what follows from its joining */
}

/* --- messages --- */

static void on_report(struct control *control, const mst_envelope *env)
{
    struct app *app = control->app;
    struct mst_time now = app_now();
    struct mst_report report;
    uint64_t token = env->has_id ? app_reply_add(app, NULL, control->id, env->id) : 0;

    mst_convert_report(env->fault_report, &report);
    mst_core_report(app->core, &now, control->id, token, &report);
}

static void on_done(struct control *control, const mst_envelope *env)
{
    struct app *app = control->app;
    struct mst_time now = app_now();
    struct mst_answer answer;

    if (!env->has_reply_to)
        return;
    if (env->reply_to & APP_CONSOLE_ID_BIT) {
        console_answered(app, env->reply_to, env->done);
        return;
    }
    mst_convert_answer(env->done, &answer);
    mst_core_answer(app->core, &now, env->reply_to, &answer);
}

static void dispatch(struct control *control, const mst_envelope *env)
{
    struct app *app = control->app;
    struct mst_time now = app_now();
    struct mst_vm_event event;
    struct mst_mirror_news news;

    if (control->node < 0) {
        if (control->refused || control->id == 0)
            return;
        if (env->body_case == MAINSTAY__ENVELOPE__BODY_HELLO)
            on_hello(control, env->hello);
        else
            refuse(control, -EPROTO, "say Hello first");
        return;
    }
    switch (env->body_case) {
    case MAINSTAY__ENVELOPE__BODY_FAULT_REPORT:
        on_report(control, env);
        break;
    case MAINSTAY__ENVELOPE__BODY_VM_EVENT:
        mst_convert_event(env->vm_event, &event);
        mst_core_vm_event(app->core, &now, control->id, &event);
        break;
    case MAINSTAY__ENVELOPE__BODY_MIRROR_STATE:
        mst_convert_mirror(env->mirror_state, &news);
        mst_core_mirror(app->core, &now, control->id, &news);
        break;
    case MAINSTAY__ENVELOPE__BODY_DONE:
        on_done(control, env);
        break;
    case MAINSTAY__ENVELOPE__BODY_CONSOLE_DATA:
        console_data(app, (unsigned)control->node, env->console_data);
        break;
    default:
        log_notice("node=%s message %d is none a keeper sends: ignored", app->conf->nodes[control->node].name,
                   (int)env->body_case);
    }
}

static void on_message(struct mst_link *link, const void *data, size_t len, void *arg)
{
    struct control *control = arg;
    struct mst_why why = {0};
    mst_envelope *env;
    int r = mst_frame_unpack(data, len, &env, &why);

    if (r < 0) {
        log_warning("peer=%s sent what is no message, closing the link: %s", mst_link_address(link), why.text);
        if (control->node < 0)
            refuse(control, r, why.text);
        else
            mst_link_close(link);
        return;
    }
    MST_POINT("message.received");
    dispatch(control, env);
    mst_envelope_free(env);
}

/* --- links --- */

static void drop(struct control *control)
{
    struct app *app = control->app;

    for (unsigned i = 0; i < APP_CONTROLS_MAX; i++) {
        if (app->controls[i] == control)
            app->controls[i] = NULL;
    }
    free(control);
}

static void on_open(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct control *control = arg;

    if (err == 0)
        return;
    log_info("peer=%s its link did not open: %s", mst_link_address(link), why->text);
    drop(control);
}

static void on_closed(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct control *control = arg;
    struct app *app = control->app;
    struct mst_time now = app_now();
    uint64_t id = control->id;
    bool joined = control->node >= 0;

    (void)link;
    drop(control);
    if (!joined || id == 0)
        return;
    console_link_gone(app, id);
    mst_core_link_closed(app->core, &now, id, err != 0 ? err : -ECONNRESET,
                         why->text[0] ? why->text : strerror(err ? -err : ECONNRESET));
    if (app->peers_changed && !app->stopping)
        links_peers(app);
}

static const struct mst_link_events events = {.on_open = on_open, .on_message = on_message, .on_closed = on_closed};

int links_accept(struct mst_link *link, const struct mst_link_request *request, void *arg,
                 const struct mst_link_events **ret_events, void **ret_arg, struct mst_why *why)
{
    struct app *app = arg;
    struct control *control;
    unsigned strangers = 0;
    unsigned same = 0;
    unsigned place = APP_CONTROLS_MAX;

    if (request->role != MST_ROLE_CONTROL)
        return mst_why_set(why, -EACCES, "a coordinator takes control links only");
    if (app->stopping)
        return mst_why_set(why, -EAGAIN, "the coordinator is stopping");
    for (unsigned i = 0; i < APP_CONTROLS_MAX; i++) {
        if (!app->controls[i]) {
            place = i;
            continue;
        }
        strangers += app->controls[i]->node < 0 ? 1 : 0;
        same += strcmp(mst_link_address(app->controls[i]->link), request->address) == 0 ? 1 : 0;
    }
    if (place == APP_CONTROLS_MAX || strangers >= STRANGERS_MAX || same >= PER_ADDRESS)
        return mst_why_set(why, -EBUSY, "%u links are open, %u of them from %s, %u without a Hello: no more now",
                           APP_CONTROLS_MAX, same, request->address, strangers);
    control = calloc(1, sizeof(*control));
    if (!control)
        return -ENOMEM;
    control->app = app;
    control->link = link;
    control->id = ++app->next_token;
    control->node = -1;
    control->opened_ms = mst_now_ms();
    app->controls[place] = control;
    *ret_events = &events;
    *ret_arg = control;
    return 0;
}

void links_tick(struct app *app)
{
    uint64_t now_ms = mst_now_ms();

    for (unsigned i = 0; i < APP_CONTROLS_MAX; i++) {
        struct control *control = app->controls[i];

        if (control && control->node < 0 && now_ms - control->opened_ms > HELLO_MS) {
            control->opened_ms = now_ms;
            mst_link_close(control->link);
        }
    }
    if (app->peers_changed)
        links_peers(app);
}
