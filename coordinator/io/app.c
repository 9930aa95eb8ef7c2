#include "coordinator/io/app.h"

#include "base/clock.h"
#include "base/event.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TICK_MS          50u
#define READ_DEADLINE_MS 500u /* of one READ of a beat line */

struct mst_time app_now(void)
{
    struct mst_time now = {.us = mst_now_ns() / 1000, .wall_ms = mst_wall_ms()};

    return now;
}

/* --- the core's actions --- */

static void listen_on(struct app *app)
{
    struct mst_why why = {0};
    int r = mst_fabric_listen(app->fabric, app->conf->port, links_accept, app, &why);

    if (r < 0) {
        log_error("cannot listen on %s port %u: %s", app->conf->address, app->conf->port, why.text);
        exit(EXIT_FAILURE); /* nothing is under way; whoever watches over us starts us again */
    }
    app->listening = true;
}

static void committed(void *arg, int err, const char *text)
{
    struct app *app = arg;
    struct mst_time now = app_now();

    app->store_busy = false;
    if (err == 0)
        MST_POINT("commit.durable");
    if (app->stopping)
        return;
    mst_core_committed(app->core, &now, err, text);
    if (!mst_core_ready(app->core) || app->listening)
        return;
    listen_on(app);
    log_notice("coordinator=%u term=%" PRIu64 " listens on %s port %u", app->conf->id, mst_core_term(app->core),
               app->conf->address, app->conf->port);
}

static void io_commit(void *impl, const struct mst_txn *txn)
{
    struct app *app = impl;

    lead_check(app);
    MST_POINT("commit.begun");
    app->store_busy = true;
    mst_store_commit(app->store, txn, committed, app);
}

static int io_order(void *impl, const struct mst_order *order)
{
    lead_check(impl);
    return links_order(impl, order);
}

static void on_fenced(void *arg, int err, const char *text)
{
    struct fence_wait *wait = arg;
    struct app *app = wait->app;
    struct mst_time now = app_now();

    app->fences[wait->node] = NULL;
    MST_POINT("fence.ended");
    log_notice("node=%s fence: %s", app->conf->nodes[wait->node].name, text);
    mst_core_fence_done(app->core, &now, wait->token, err, text);
}

/* Confirmed: we lead. The decision to fence is durable, or the core would not have asked. */
static void fence_run(void *arg, int err, const char *text)
{
    struct fence_wait *wait = arg;
    struct app *app = wait->app;
    struct mst_why why = {0};
    bool wanted = wait->wanted;

    wait->asking = wait->wanted = false;
    if (!wanted || app->stopping)
        return; /* cancelled meanwhile */
    if (err < 0) {
        wait->start_err = err;
        snprintf(wait->text, sizeof(wait->text), "%s", text);
        return;
    }
    lead_check(app);
    MST_POINT("fence.begun");
    wait->start_err = mst_fence_run(app->loop, app->conf->nodes[wait->node].fence, app->conf->fence_timeout_ms, wait->look,
                                    on_fenced, wait, &app->fences[wait->node], &why);
    if (wait->start_err < 0)
        snprintf(wait->text, sizeof(wait->text), "%s", why.text);
    MST_POINT("fence.asked");
}

static void io_fence(void *impl, unsigned node, uint64_t token, bool look)
{
    struct app *app = impl;
    struct fence_wait *wait = &app->fence_waits[node];
    bool asking = wait->asking;

    wait->app = app;
    wait->node = node;
    wait->token = token;
    wait->look = look;
    wait->start_err = 0;
    wait->wanted = wait->asking = true;
    if (asking) /* for an earlier fence that was cancelled: its answer will do */
        return;
    lead_check(app);
    mst_store_confirm(app->store, fence_run, wait);
}

static void io_fence_cancel(void *impl, unsigned node, uint64_t token)
{
    struct app *app = impl;

    if (app->fence_waits[node].token != token)
        return;
    app->fence_waits[node].start_err = 0;
    app->fence_waits[node].wanted = false;
    if (app->fences[node])
        mst_fence_cancel(app->fences[node]);
    app->fences[node] = NULL;
}

static void io_read_slots(void *impl, unsigned node)
{
    watch_read_slots(impl, node);
}

static int io_lease(void *impl, unsigned node, const struct mst_lease_grant *grant)
{
    return watch_lease(impl, node, grant);
}

static void io_manage(void *impl, unsigned node, const struct mst_lease_grant *lease)
{
    manage_ask(impl, node, lease);
}

static void io_close_link(void *impl, uint64_t link)
{
    links_close(impl, link);
}

static void io_peers(void *impl)
{
    ((struct app *)impl)->peers_changed = true; /* sent once the core has said all it has to say */
}

static void io_reply(void *impl, uint64_t token, int err, const char *text)
{
    MST_POINT("reply.begun");
    app_reply(impl, token, err, text);
    MST_POINT("reply.sent");
}

static void io_vm_moved(void *impl, const char *vm, int node, uint64_t epoch)
{
    console_moved(impl, vm, node, epoch);
}

static void io_log(void *impl, enum mst_log_level level, const char *text)
{
    (void)impl;
    mst_log(level, "%s", text);
}

static void io_event(void *impl, const struct mst_event *event)
{
    (void)impl;
    mst_event(event);
}

/* --- the tick --- */

static void fences_tick(struct app *app)
{
    struct mst_time now = app_now();

    for (unsigned i = 0; i < app->conf->nodes_count; i++) {
        struct fence_wait *wait = &app->fence_waits[i];
        int err = wait->start_err;

        if (err == 0)
            continue;
        wait->start_err = 0;
        mst_core_fence_done(app->core, &now, wait->token, err, wait->text);
    }
}

static void on_tick(uv_timer_t *timer)
{
    struct app *app = timer->data;
    struct mst_time now = app_now();

    if (app->stopping) {
        if (!app->store_busy && !app->fabric)
            uv_stop(app->loop);
        return;
    }
    if (!app->core) {
        links_tick(app);
        return;
    }
    lead_check(app);
    watch_on_sample(app);
    mst_core_tick(app->core, &now);
    fences_tick(app);
    watch_tick(app);
    manage_tick(app);
    links_tick(app);
    console_tick(app);
}

/* --- start and stop --- */

static void on_fabric_closed(void *arg)
{
    struct app *app = arg;

    app->fabric = NULL;
}

static void on_fabric_gone(void *arg)
{
    struct app *app = arg;

    /* Everything that matters is in the store: starting again is the same as opening the device again, and is tested more. */
    log_error("the RDMA device is gone: ending, to be started again");
    app_fences_cancel(app); /* nobody would end them in time */
    if (app->conf->store)
        mst_store_close(app->store); /* etcd: another one may lead at once */
    exit(EXIT_FAILURE);
}

void app_fences_cancel(struct app *app)
{
    for (unsigned i = 0; i < MST_NODES_MAX; i++) {
        if (app->fences[i])
            mst_fence_cancel(app->fences[i]);
        app->fences[i] = NULL;
    }
}

static void on_signal(uv_signal_t *signal, int number)
{
    struct app *app = signal->data;

    if (app->stopping)
        return;
    log_notice("signal %d: stopping; VMs run on", number);
    app->stopping = true;
    app_fences_cancel(app);
    operator_close(app);
    mst_watcher_free(app->watcher);
    app->watcher = NULL;
    mst_fabric_close(app->fabric, on_fabric_closed, app);
}

static int on_row(void *arg, const struct mst_row *row, struct mst_why *why)
{
    return mst_core_load(arg, row, why);
}

static_assert(MST_NODE_STARTS_MAX == MST_JOINS_KEPT, "every value of node-starts-max can be counted");

static void core_conf(const struct mst_coordinator_conf *conf, struct mst_core_conf *ret)
{
    memset(ret, 0, sizeof(*ret));
    ret->coordinator_id = conf->id;
    snprintf(ret->cluster, sizeof(ret->cluster), "%s", conf->cluster);
    ret->watch_interval_ms = conf->watch_interval_ms;
    ret->agent_silent_ms = conf->agent_silent_ms;
    ret->keeper_silent_ms = conf->keeper_silent_ms;
    ret->keeper_return_ms = conf->keeper_return_ms;
    ret->node_starts_max = conf->node_starts_max;
    ret->node_starts_window_ms = conf->node_starts_window_ms;
    ret->fences_max = conf->fences_max;
    ret->starts_max = conf->starts_max;
    ret->mass_loss_percent = conf->mass_loss_percent;
    ret->lease_ms = conf->lease_ms;
    ret->mirror_lag_ms = conf->mirror_lag_ms;
    ret->fence_timeout_ms = conf->fence_timeout_ms;
    ret->nodes_count = conf->nodes_count;
    for (unsigned i = 0; i < conf->nodes_count; i++) {
        struct mst_member *to = &ret->nodes[i];

        snprintf(to->name, sizeof(to->name), "%s", conf->nodes[i].name);
        snprintf(to->address, sizeof(to->address), "%s", conf->nodes[i].address);
        snprintf(to->rack, sizeof(to->rack), "%s", conf->nodes[i].rack ? conf->nodes[i].rack : "");
        to->id = conf->nodes[i].id;
        to->port = conf->nodes[i].port;
        to->has_fence = conf->nodes[i].fence != NULL;
        to->watchdog_ms = conf->nodes[i].watchdog_proof_ms;
        to->managed = conf->nodes[i].management != NULL;
        if (!to->has_fence && to->watchdog_ms == 0)
            log_warning("node=%s has no fence agent: if it dies, its VMs wait for `mainstayctl node confirm-dead %s`", to->name,
                        to->name);
    }
}

static int core_open(struct app *app, struct mst_why *why)
{
    struct mst_core_io io = {.impl = app,
                             .commit = io_commit,
                             .order = io_order,
                             .fence = io_fence,
                             .fence_cancel = io_fence_cancel,
                             .read_slots = io_read_slots,
                             .lease = io_lease,
                             .manage = io_manage,
                             .close_link = io_close_link,
                             .peers = io_peers,
                             .reply = io_reply,
                             .vm_moved = io_vm_moved,
                             .log = io_log,
                             .event = io_event};
    struct mst_core_conf *conf = calloc(1, sizeof(*conf));
    int r;

    if (!conf)
        return -ENOMEM;
    core_conf(app->conf, conf);
    conf->coordinator_instance = app->instance;
    r = mst_core_new(conf, &io, &app->core);
    free(conf);
    if (r < 0)
        return mst_why_set(why, r, "nodes: two have the same name or id");
    r = mst_store_load(app->store, on_row, app->core, why);
    return r == 0 ? mst_watcher_new(app->fabric, app->conf->watch_interval_ms, READ_DEADLINE_MS, watch_on_sample, app,
                                    &app->watcher, why)
                  : r;
}

void app_lead(struct app *app)
{
    struct mst_why why = {0};
    struct mst_time now = app_now();
    int r;

    if (app->stopping)
        return;
    r = core_open(app, &why);
    if (r < 0) {
        log_error("cannot start: %s", why.text[0] ? why.text : strerror(-r));
        mst_store_close(app->store); /* another need not wait for the end of our lease */
        exit(EXIT_FAILURE);
    }
    mst_core_start(app->core, &now);
}

static int parts_open(struct app *app, struct mst_why *why)
{
    char path[PATH_MAX];
    int r;

    if (app->conf->store) {
        (void)mst_mkdirs(app->conf->state_dir,
                         0700); /* for the timeline alone; whether it is there is said when that is opened */
        r = mst_store_etcd_open(app->loop, app->conf, app->instance, &app->store, why);
    } else {
        r = mst_store_sqlite_open(app->loop, app->conf->state_dir, &app->store, why);
    }
    if (r == 0)
        r = mst_fabric_open(app->loop, app->conf->address, &app->fabric, why);
    if (r < 0)
        return r;
    mst_fabric_on_gone(app->fabric, on_fabric_gone, app);
    r = operator_open(app, why);
    if (r == 0)
        r = mst_path(path, sizeof(path), "%s/coordinator.pid", app->conf->run_dir);
    if (r == 0)
        r = mst_pidfile_write(path, getpid());
    return r;
}

static void loop_start(struct app *app)
{
    (void)uv_timer_init(app->loop, &app->tick);
    (void)uv_signal_init(app->loop, &app->term);
    (void)uv_signal_init(app->loop, &app->interrupt);
    app->tick.data = app->term.data = app->interrupt.data = app;
    (void)uv_timer_start(&app->tick, on_tick, TICK_MS, TICK_MS);
    (void)uv_signal_start(&app->term, on_signal, SIGTERM);
    (void)uv_signal_start(&app->interrupt, on_signal, SIGINT);
}

/* Without its timeline a coordinator does its work all the same. */
static void events_open(const struct app *app)
{
    char path[PATH_MAX], host[MST_NAME_BYTES];
    int r = app->conf->events_file ? mst_path(path, sizeof(path), "%s", app->conf->events_file)
                                   : mst_path(path, sizeof(path), "%s/events.jsonl", app->conf->state_dir);

    snprintf(host, sizeof(host), "coordinator-%u", app->conf->id);
    if (r == 0)
        r = mst_event_open(path, 0, "mainstay-coordinator", host, app->instance);
    if (r < 0)
        log_warning("no events are kept: %s: %s", path, strerror(-r));
}

int app_run(const struct mst_coordinator_conf *conf)
{
    static struct app app; /* half a megabyte; it lives as long as the process */
    struct mst_why why = {0};
    int r;

    app.loop = uv_default_loop();
    app.conf = conf;
    app.instance = mst_random_u64();
    r = parts_open(&app, &why);
    if (r < 0) {
        log_error("cannot start: %s", why.text[0] ? why.text : strerror(-r));
        return EXIT_FAILURE; /* what is open goes with the process */
    }
    loop_start(&app);
    events_open(&app);
    log_notice("coordinator=%u cluster=%s instance=%016" PRIx64 " starts with %u nodes", conf->id, conf->cluster, app.instance,
               conf->nodes_count);
    if (conf->store) /* a standby says who leads; alone, we are called when we can answer */
        listen_on(&app);
    lead_begin(&app);
    (void)uv_run(app.loop, UV_RUN_DEFAULT);
    watch_free_all(&app);
    mst_store_close(app.store);
    mst_core_free(app.core);
    mst_event_close();
    log_notice("stopped");
    return EXIT_SUCCESS;
}
