#include "coordinator/io/app.h"

#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Consoles: the operator asks us, we ask the VM's keeper, and hand its ConsoleData on. Followers stay when the VM moves: they are subscribed
 * again at its new node. A keeper follows once per VM and link, so that several followers of one VM share what it sends; each keeps the offset
 * it has got to, and what it has had already is cut off. */

/* Asking again moves what the keeper sends to all who follow there: back to the one who has had least. */
static uint64_t offset_for_all(const struct app *app, const struct app_console *console, uint64_t link)
{
    uint64_t offset = console->offset;

    for (unsigned i = 0; console->follow && i < CONSOLES_MAX; i++) {
        const struct app_console *other = &app->consoles[i];

        if (other->used && other->follow && other->link == link && other->offset < offset && strcmp(other->vm, console->vm) == 0)
            offset = other->offset;
    }
    return offset;
}

static void send_order(struct app *app, struct app_console *console)
{
    Mainstay__OrderConsole body = MAINSTAY__ORDER_CONSOLE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    struct mst_node_look look;
    struct mst_time now = app_now();

    if (console->node < 0)
        return;
    mst_core_node(app->core, &now, (unsigned)console->node, &look);
    if (look.link == 0)
        return;
    body.vm = console->vm;
    body.has_from = body.has_follow = 1;
    body.from = offset_for_all(app, console, look.link);
    body.follow = console->follow;
    env.has_id = env.has_instance = env.has_term = 1;
    env.id = console->order_id = ++app->next_token | APP_CONSOLE_ID_BIT;
    env.instance = look.instance;
    env.term = mst_core_term(app->core);
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_CONSOLE;
    env.order_console = &body;
    if (links_send(app, look.link, &env) < 0)
        return;
    console->link = look.link;
}

static void end(struct app_console *console, int err, const char *text)
{
    (void)session_done(console->session, console->request_id, err, text);
    console->used = false;
}

void console_request(struct app *app, struct session *session, uint64_t request_id, const Mainstay__ConsoleRequest *request)
{
    struct app_console *console = NULL;
    struct mst_vm_look look;

    for (unsigned i = 0; i < CONSOLES_MAX && !console; i++) {
        if (!app->consoles[i].used)
            console = &app->consoles[i];
    }
    if (!console) {
        (void)session_done(session, request_id, -EBUSY, "too many consoles are followed");
        return;
    }
    if (!mst_core_vm_by_name(app->core, request->vm, &look)) {
        (void)session_done(session, request_id, -ENOENT, "no VM has this name");
        return;
    }
    *console = (struct app_console){.used = true,
                                    .follow = request->has_follow && request->follow,
                                    .session = session,
                                    .request_id = request_id,
                                    .node = look.row->fenced ? -1 : look.node,
                                    .epoch = look.row->epoch};
    snprintf(console->vm, sizeof(console->vm), "%s", request->vm);
    /* Past any end: only what is written from now on. */
    if (console->follow && !(request->has_from_start && request->from_start))
        console->offset = UINT64_MAX;
    send_order(app, console);
    if (console->link == 0 && !console->follow)
        end(console, -EHOSTUNREACH, "the VM runs nowhere that can be reached now");
}

static void hand_on(struct app_console *console, const Mainstay__ConsoleData *data)
{
    Mainstay__ConsoleData body = *data;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    uint64_t skip = 0;

    if (data->epoch != console->epoch) { /* another life of the VM: its console counts from 0 */
        if (data->epoch < console->epoch)
            return;
        console->epoch = data->epoch;
        console->offset = 0;
    }
    if (console->offset != UINT64_MAX && data->offset < console->offset)
        skip = console->offset - data->offset;
    if (skip >= data->data.len && data->data.len > 0)
        return;
    body.data.data += skip;
    body.data.len -= skip;
    body.offset += skip;
    console->offset = body.offset + body.data.len;
    env.has_reply_to = 1;
    env.reply_to = console->request_id;
    env.body_case = MAINSTAY__ENVELOPE__BODY_CONSOLE_DATA;
    env.console_data = &body;
    (void)session_send(console->session, &env);
}

void console_data(struct app *app, unsigned node, const Mainstay__ConsoleData *data)
{
    for (unsigned i = 0; i < CONSOLES_MAX; i++) {
        struct app_console *console = &app->consoles[i];

        if (console->used && console->node == (int)node && strcmp(console->vm, data->vm) == 0)
            hand_on(console, data);
    }
}

void console_answered(struct app *app, uint64_t order_id, const Mainstay__Done *done)
{
    for (unsigned i = 0; i < CONSOLES_MAX; i++) {
        struct app_console *console = &app->consoles[i];

        if (!console->used || console->order_id != order_id)
            continue;
        console->order_id = 0;
        if (!console->follow)
            end(console, -done->error, done->text);
        else if (done->error != 0)
            console->link = 0; /* not there yet: the tick asks again */
        return;
    }
}

void console_moved(struct app *app, const char *vm, int node, uint64_t epoch)
{
    for (unsigned i = 0; i < CONSOLES_MAX; i++) {
        struct app_console *console = &app->consoles[i];

        if (!console->used || strcmp(console->vm, vm) != 0)
            continue;
        console->node = node;
        console->link = 0;
        if (!console->follow) { /* whom it was asked of does not answer any more, and nobody asks again */
            end(console, -ECONNRESET, "the VM has moved: ask again");
            continue;
        }
        if (epoch > console->epoch) {
            console->epoch = epoch;
            console->offset = 0;
        }
        send_order(app, console);
    }
}

void console_link_gone(struct app *app, uint64_t link)
{
    for (unsigned i = 0; i < CONSOLES_MAX; i++) {
        struct app_console *console = &app->consoles[i];

        if (!console->used || console->link != link)
            continue;
        console->link = 0;
        if (!console->follow)
            end(console, -ECONNRESET, "the node was lost");
    }
}

void console_session_gone(struct app *app, const struct session *session)
{
    for (unsigned i = 0; i < CONSOLES_MAX; i++) {
        if (app->consoles[i].used && app->consoles[i].session == session)
            app->consoles[i].used = false;
    }
}

void console_tick(struct app *app)
{
    for (unsigned i = 0; i < CONSOLES_MAX; i++) {
        struct app_console *console = &app->consoles[i];

        if (console->used && console->follow && console->link == 0 && console->node >= 0)
            send_order(app, console);
    }
}
