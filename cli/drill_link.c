#include "cli/drill_run.h"

#include "base/clock.h"
#include "cli/show.h"

#include <errno.h>
#include <string.h>

/* The coordinator may be one of the things that a drill breaks: its connection comes and goes, and whatever was asked for is asked for again. */

#define BACKOFF_MIN_MS   100u
#define BACKOFF_MAX_MS   1600u
#define SILENT_MS        5000u /* a question open for so long: the other end is gone without a word */
#define CONSOLE_RETRY_MS 500u
#define LATE_MS          1000u /* after a console was opened again: what comes now may be older */

static const char *const row_keys[DRILL_POLLS] = {"nodes", "vms", "recoveries"};

bool drill_connected(const struct drill *d)
{
    return d->ctx->client && client_alive(d->ctx->client);
}

const json_t *drill_row(const struct drill *d, unsigned poll, const char *key, const char *name)
{
    size_t i;
    json_t *row;

    json_array_foreach(d->polls[poll].rows, i, row)
    {
        const char *value = json_string_value(json_object_get(row, key));
        if (value && strcmp(value, name) == 0)
            return row;
    }
    return NULL;
}

bool drill_polled_since(const struct drill *d, unsigned poll, uint64_t at_ns)
{
    return d->polls[poll].answered_ns > at_ns;
}

/* --- answers --- */

/* What the view says of the mirror whose copy counts: "node", "standby"; "": nothing, or none does. */
static const char *mirror_in(const json_t *row, const char *key)
{
    const json_t *mirrors = json_object_get(row, "mirrors");
    const char *text = "";

    for (size_t i = 0; i < json_array_size(mirrors); i++) {
        const json_t *mirror = json_array_get(mirrors, i);

        if (json_is_true(json_object_get(mirror, "counts")) && json_is_string(json_object_get(mirror, key)))
            text = json_string_value(json_object_get(mirror, key));
    }
    return text;
}

static void take_vms(struct drill *d, const json_t *rows)
{
    size_t i;
    json_t *row;

    json_array_foreach((json_t *)rows, i, row)
    {
        const char *name = json_string_value(json_object_get(row, "vm"));
        const char *node = json_string_value(json_object_get(row, "node"));
        const char *state = json_string_value(json_object_get(row, "state"));
        struct drill_vm_record *vm = name ? drill_record_vm(&d->rec, name) : NULL;

        if (!vm || !state)
            continue;
        if (strcmp(state, "running") == 0)
            drill_record_place(vm, node, (uint64_t)json_integer_value(json_object_get(row, "epoch")));
        drill_record_mirror(&d->rec, vm, mirror_in(row, "node"), mst_now_ns());
        if (!d->faults_begun) {
            snprintf(vm->standby, sizeof(vm->standby), "%s", mirror_in(row, "standby"));
            vm->save_seq = (uint64_t)json_integer_value(json_object_get(row, "save_seq"));
            vm->exposed = json_object_get(row, "exposed_ms") != NULL;
            vm->save_age_ms = (uint64_t)json_integer_value(json_object_get(row, "save_age_ms"));
            vm->pause_us = (uint64_t)json_integer_value(json_object_get(row, "pause_us"));
        }
    }
}

static void say_recovery(struct drill *d, const json_t *now, const json_t *before)
{
    const char *state = json_string_value(json_object_get(now, "state"));
    const char *was = json_string_value(json_object_get(before, "state"));
    const char *node = json_string_value(json_object_get(now, "node")), *kind = json_string_value(json_object_get(now, "kind"));

    if (!state || (was && strcmp(was, state) == 0))
        return;
    drill_say(d, "recovery %lld of %s (%s): %s", json_integer_value(json_object_get(now, "id")), node ? node : "?",
              kind ? kind : "?", state);
    drill_event(d, json_pack("{s:s, s:O}", "event", "recovery", "recovery", now));
}

/* Rows come newest first; the record keeps those of this drill, oldest first. */
static void take_recoveries(struct drill *d, const json_t *rows)
{
    json_t *ours = json_array();
    size_t i, j;
    json_t *row, *before;

    json_array_foreach((json_t *)rows, i, row)
    {
        uint64_t id = (uint64_t)json_integer_value(json_object_get(row, "id"));
        if (!d->recoveries_based && id > d->recoveries_base)
            d->recoveries_base = id;
        if (!d->recoveries_based || id <= d->recoveries_base)
            continue;
        const json_t *known = NULL;
        json_array_foreach(d->rec.recoveries, j,
                           before) if (json_equal(json_object_get(before, "id"), json_object_get(row, "id"))) known = before;
        say_recovery(d, row, known);
        json_array_insert(ours, 0, row);
    }
    d->recoveries_based = true;
    json_decref(d->rec.recoveries);
    d->rec.recoveries = ours;
}

static void poll_done(struct drill *d, unsigned index)
{
    struct drill_poll *poll = &d->polls[index];

    json_decref(poll->rows);
    poll->rows = poll->pages;
    poll->pages = NULL;
    poll->id = 0;
    poll->offset = 0;
    poll->answered_ns = poll->asked_ns;
    if (index == DRILL_POLL_VMS)
        take_vms(d, poll->rows);
    else if (index == DRILL_POLL_RECOVERIES && !d->recoveries_frozen)
        take_recoveries(d, poll->rows);
}

static void poll_ask(struct drill *d, struct drill_poll *poll)
{
    Mainstay__Query query = MAINSTAY__QUERY__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    query.what = poll->what;
    query.has_offset = poll->offset != 0;
    query.offset = poll->offset;
    env.body_case = MAINSTAY__ENVELOPE__BODY_QUERY;
    env.query = &query;
    if (client_post(d->ctx->client, &env, &poll->id) < 0)
        poll->id = 0;
}

static void poll_answer(struct drill *d, unsigned index, const mst_envelope *env)
{
    struct drill_poll *poll = &d->polls[index];
    json_t *view, *rows, *last;
    bool more;

    if (env->body_case != MAINSTAY__ENVELOPE__BODY_VIEW) { /* refused for now: asked again at the next round */
        poll->id = 0;
        return;
    }
    view = show_message_json(&env->view->base);
    rows = json_object_get(view, row_keys[index]);
    if (!poll->pages)
        poll->pages = json_array();
    json_array_extend(poll->pages, rows);
    more = env->view->has_next_offset && env->view->next_offset > poll->offset;
    /* History before this drill need not be read to its end. */
    last = json_array_get(rows, json_array_size(rows) > 0 ? json_array_size(rows) - 1 : 0);
    if (index == DRILL_POLL_RECOVERIES &&
        (!d->recoveries_based || (uint64_t)json_integer_value(json_object_get(last, "id")) <= d->recoveries_base))
        more = false;
    if (env->view->cluster)
        snprintf(d->rec.cluster, sizeof(d->rec.cluster), "%s", env->view->cluster);
    json_decref(view);
    if (more) {
        poll->offset = env->view->next_offset;
        poll_ask(d, poll);
    } else {
        poll_done(d, index);
    }
}

/* --- consoles --- */

static void on_beat(const struct drill_vm_record *vm, const struct drill_beat *beat, void *arg)
{
    struct drill *d = arg;
    const struct drill_beat *before = vm->beats_count > 1 ? &vm->beats[vm->beats_count - 2] : NULL;
    json_t *event = json_pack("{s:I, s:s, s:s, s:I, s:I, s:I, s:s, s:b}", "at_ms", (json_int_t)drill_offset_ms(d, beat->at_ns),
                              "event", "beat", "vm", vm->name, "n", (json_int_t)beat->n, "epoch", (json_int_t)beat->epoch,
                              "guest_ms", (json_int_t)beat->guest_ms, "node", beat->node, "ok", beat->ok);

    if (beat->boot)
        json_object_set_new(event, "boot", json_true());
    if (beat->late)
        json_object_set_new(event, "late", json_true());
    drill_event(d, event);
    if (!before || before->epoch != beat->epoch)
        drill_say(d, "%s beats%s%s, epoch %llu, beat %llu%s", vm->name, beat->node[0] ? " on " : "", beat->node,
                  (unsigned long long)beat->epoch, (unsigned long long)beat->n, beat->boot ? ", booted anew" : "");
    if (!beat->ok)
        drill_say(d, "%s: its witness is BROKEN at beat %llu", vm->name, (unsigned long long)beat->n);
}

static void on_other_line(const struct drill_vm_record *vm, const char *line, uint64_t epoch, void *arg)
{
    json_t *text = json_string(line);

    if (!text)
        text = json_string("(not UTF-8)");
    drill_event(arg,
                json_pack("{s:s, s:s, s:I, s:o}", "event", "console", "vm", vm->name, "epoch", (json_int_t)epoch, "text", text));
}

static void console_data(struct drill *d, const Mainstay__ConsoleData *data)
{
    struct drill_record_events events = {.on_beat = on_beat, .on_other = on_other_line, .arg = d};
    struct drill_vm_record *vm = drill_record_vm(&d->rec, data->vm);
    uint64_t now_ns = mst_now_ns();
    int r;

    if (!vm)
        return;
    r = drill_record_feed(vm, data->epoch, data->offset, data->node, data->data.data, data->data.len, now_ns,
                          now_ns < d->consoles[vm - d->rec.vms].late_until_ns, &events);
    if (r < 0 && !d->broken.text[0])
        mst_why_set(&d->broken, r, "%s: its beats cannot be kept: %s", vm->name, strerror(-r));
}

static void console_open(struct drill *d, unsigned index)
{
    struct drill_console *console = &d->consoles[index];
    Mainstay__ConsoleRequest body = MAINSTAY__CONSOLE_REQUEST__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    uint64_t now_ns = mst_now_ns();

    body.vm = d->rec.vms[index].name;
    body.has_follow = body.follow = 1;
    /* From the start, or beats of the time without a connection would be missing; what is known already is dropped by its offset. */
    body.has_from_start = body.from_start = 1;
    env.body_case = MAINSTAY__ENVELOPE__BODY_CONSOLE_REQUEST;
    env.console_request = &body;
    if (client_post(d->ctx->client, &env, &console->id) < 0) {
        console->retry_ns = now_ns + CONSOLE_RETRY_MS * MST_NS_PER_MS;
        return;
    }
    console->open = true;
    if (console->opened_before)
        console->late_until_ns = now_ns + LATE_MS * MST_NS_PER_MS;
    console->opened_before = true;
}

/* --- the connection --- */

static void outage_begin(struct drill *d)
{
    struct drill_record *rec = &d->rec;

    if (rec->outages_count > 0 && rec->outages[rec->outages_count - 1].to_ns == 0)
        return;
    drill_say(d, "the coordinator's socket is gone, connecting again");
    if (rec->outages_count < DRILL_OUTAGES_MAX)
        rec->outages[rec->outages_count++] = (struct drill_outage){.from_ns = mst_now_ns()};
}

static void outage_end(struct drill *d)
{
    struct drill_record *rec = &d->rec;

    d->answered = true;
    d->backoff_ms = BACKOFF_MIN_MS;
    if (rec->outages_count == 0 || rec->outages[rec->outages_count - 1].to_ns != 0)
        return;
    rec->outages[rec->outages_count - 1].to_ns = mst_now_ns();
    drill_say(d, "the coordinator answers again");
}

static void on_message(const mst_envelope *env, void *arg)
{
    struct drill *d = arg;

    if (!d->answered)
        outage_end(d);
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_CONSOLE_DATA) {
        console_data(d, env->console_data);
        return;
    }
    if (!env->has_reply_to)
        return;
    for (unsigned i = 0; i < DRILL_POLLS; i++)
        if (d->polls[i].id != 0 && d->polls[i].id == env->reply_to) {
            poll_answer(d, i, env);
            return;
        }
    for (unsigned i = 0; i < d->rec.vms_count; i++)
        if (d->consoles[i].open && d->consoles[i].id == env->reply_to) { /* it ended: the VM does not run, for now */
            d->consoles[i].open = false;
            d->consoles[i].retry_ns = mst_now_ns() + CONSOLE_RETRY_MS * MST_NS_PER_MS;
        }
}

static void link_forget(struct drill *d)
{
    if (d->ctx->client)
        client_free(d->ctx->client);
    d->ctx->client = NULL;
    d->answered = false;
    for (unsigned i = 0; i < DRILL_POLLS; i++) {
        json_decref(d->polls[i].pages);
        d->polls[i].pages = NULL;
        d->polls[i].id = 0;
        d->polls[i].offset = 0;
    }
    for (unsigned i = 0; i < d->rec.vms_count; i++)
        d->consoles[i].open = false;
}

void drill_link_up(struct drill *d)
{
    static const Mainstay__What whats[DRILL_POLLS] = {MAINSTAY__WHAT__WHAT_NODES, MAINSTAY__WHAT__WHAT_VMS,
                                                      MAINSTAY__WHAT__WHAT_RECOVERIES};

    for (unsigned i = 0; i < DRILL_POLLS; i++)
        d->polls[i].what = whats[i];
    d->backoff_ms = BACKOFF_MIN_MS;
    if (d->ctx->client)
        client_on_event(d->ctx->client, on_message, d);
}

static void link_try(struct drill *d)
{
    uint64_t now_ns = mst_now_ns();
    struct mst_why why;

    if (now_ns < d->try_ns)
        return;
    d->try_ns = now_ns + d->backoff_ms * MST_NS_PER_MS;
    d->backoff_ms = d->backoff_ms * 2 < BACKOFF_MAX_MS ? d->backoff_ms * 2 : BACKOFF_MAX_MS;
    if (client_open(d->ctx->loop, d->ctx->opt->socket, &d->ctx->client, &why) < 0)
        d->ctx->client = NULL;
    else
        client_on_event(d->ctx->client, on_message, d);
}

static void polls_run(struct drill *d)
{
    uint64_t now_ns = mst_now_ns();

    for (unsigned i = 0; i < DRILL_POLLS; i++) {
        struct drill_poll *poll = &d->polls[i];
        if (poll->id != 0 || now_ns - poll->asked_ns < DRILL_POLL_MS * MST_NS_PER_MS)
            continue;
        poll->asked_ns = now_ns;
        poll_ask(d, poll);
    }
}

static bool link_silent(const struct drill *d)
{
    uint64_t now_ns = mst_now_ns();

    for (unsigned i = 0; i < DRILL_POLLS; i++)
        if (d->polls[i].id != 0 && now_ns - d->polls[i].asked_ns > SILENT_MS * MST_NS_PER_MS)
            return true;
    return false;
}

void drill_pump(struct drill *d)
{
    uint64_t now_ns = mst_now_ns();

    if (!drill_connected(d) || link_silent(d)) {
        outage_begin(d);
        link_forget(d);
        link_try(d);
    }
    if (drill_connected(d)) {
        polls_run(d);
        for (unsigned i = 0; i < d->rec.vms_count; i++)
            if (d->consoles[i].wanted && !d->consoles[i].open && now_ns >= d->consoles[i].retry_ns)
                console_open(d, i);
    }
    uv_run(d->ctx->loop, UV_RUN_ONCE);
}

int drill_order(struct drill *d, mst_envelope *env, uint32_t deadline_ms, struct mst_why *why)
{
    uint64_t end_ns = mst_now_ns() + deadline_ms * MST_NS_PER_MS;

    while (!drill_connected(d) || !d->answered) {
        if (mst_now_ns() > end_ns)
            return mst_why_set(why, -ETIMEDOUT, "the coordinator did not answer within %u ms", deadline_ms);
        drill_pump(d);
    }
    return client_order(d->ctx->client, env, deadline_ms, NULL, why);
}
