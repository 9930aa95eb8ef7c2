#include "tests/sim/coord.h"
#include "coordinator/io/app.h"
#include "coordinator/io/convert.h"
#include "tests/sim/etcd.h"
#include "tests/sim/oracle.h"
#include "tests/sim/seam/seam_calls.h"

#include "base/clock.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TICK_MS          100u
#define READ_DEADLINE_MS 500u
#define FENCE_TIMEOUT_MS 8000u

void *sim_calloc(size_t count, size_t bytes);

void (*sim_on_lease)(unsigned node);

static struct {
    uint64_t token;
    int err;
} replies[1024];
static unsigned replies_count;
static struct mst_coordinator_conf confs[SIM_COORDS_MAX];
static struct mst_member_conf members[SIM_NODES_MAX];
static struct mst_fence_conf fence_conf;
static char *endpoints[] = {(char *)"http://etcd-0", (char *)"http://etcd-1", (char *)"http://etcd-2"};
static struct mst_etcd_conf etcd_conf = {.prefix = (char *)"/mainstay/sim", .endpoints = endpoints, .lease_ms = 5000};
static struct mst_store_conf store_conf = {.etcd = &etcd_conf};

static struct sim_coord *coord_here(void)
{
    return W->coords[K.current->host - W->conf.nodes];
}

struct mst_core *sim_coord_core(const struct sim_coord *coord)
{
    return coord->host->coord.alive && coord->app ? coord->app->core : NULL;
}

struct mst_time sim_coord_time(const struct sim_coord *coord)
{
    struct mst_time now = {.us = sim_local_ns(coord->host) / 1000};

    now.wall_ms = (uint64_t)((int64_t)(UINT64_C(1700000000000) + K.now_ns / SIM_MS) + coord->host->wall_ms);
    return now;
}

struct mst_time app_now(void)
{
    return sim_coord_time(coord_here());
}

/* --- store --- */

struct commit {
    struct sim_coord *coord;
    const struct mst_txn *txn;
    int err;
};

static void listen_on(struct app *app)
{
    struct mst_why why = {0};

    if (!app->listening && !sim_muted() && mst_fabric_listen(app->fabric, app->conf->port, links_accept, app, &why) == 0)
        app->listening = true;
}

static void after_commit(struct sim_coord *coord, int err, const char *text)
{
    struct app *app = coord->app;
    struct mst_time now = app_now();

    mst_core_committed(app->core, &now, err, text);
    if (err == 0 && coord->term != mst_core_term(app->core)) {
        coord->term = mst_core_term(app->core);
        sim_say("term %" PRIu64, coord->term);
    }
    if (!mst_core_ready(app->core))
        return;
    listen_on(app);
}

static void commit_ends(void *arg)
{
    struct commit *commit = arg;

    commit->coord->txn = NULL;
    after_commit(commit->coord, commit->err, commit->err ? "disk full" : "");
}

static void commit_durable(void *arg)
{
    struct commit *commit = arg;
    struct sim_coord *coord = commit->coord;

    if (coord->disk == DISK_HANGS) { /* until sim_coord_disk_goes_on */
        coord->hung = true;
        return;
    }
    if (coord->disk == DISK_REFUSES) {
        commit->err = sim_dice(2) ? -ENOSPC : -EIO;
    } else {
        oracle_commit(coord, commit->txn);
        sim_store_commit(coord->store, commit->txn);
    }
    if (commit->err == 0 && sim_point("commit.durable"))
        return;
    sim_at(&coord->host->coord, sim_between(50, 2000) * SIM_US, commit_ends, commit);
}

static void commit_begin(struct sim_coord *coord)
{
    struct commit *commit = sim_keep(sizeof(*commit));
    uint64_t us = sim_between(200, 9000);

    commit->coord = coord;
    commit->txn = coord->txn;
    if (coord->disk == DISK_SLOW)
        us += sim_between(1000, 5000) * 1000;
    sim_at(&coord->host->coord, us * SIM_US, commit_durable, commit);
}

/* --- etcd --- */

struct commit_copy { /* handed to etcd; done at some moment, or never, whatever becomes of the process meanwhile */
    struct commit_copy *next;
    char name[64];
    uint64_t term;
    struct mst_txn *txn;
};

static void copy_commit(struct sim_coord *coord, const struct mst_txn *txn)
{
    struct commit_copy *copy = sim_keep(sizeof(*copy));
    size_t bytes = offsetof(struct mst_txn, rows) + txn->count * sizeof(txn->rows[0]);

    copy->txn = memcpy(sim_keep(bytes), txn, bytes);
    copy->term = mst_core_term(coord->app->core);
    for (uint32_t i = 0; i < txn->count; i++) {
        struct mst_definition *definition;

        if (txn->rows[i].kind == MST_ROW_META)
            copy->term = txn->rows[i].meta.term;
        if (txn->rows[i].kind != MST_ROW_DEFINITION)
            continue;
        definition = sim_keep(sizeof(*definition));
        *definition = *txn->rows[i].definition;
        copy->txn->rows[i].definition = definition;
    }
    snprintf(copy->name, sizeof(copy->name), "%016" PRIx64 "-%" PRIu64, coord->instance, ++coord->commits);
    copy->next = coord->copies;
    coord->copies = copy;
}

void sim_coord_applied(const char *commit)
{
    for (unsigned i = 0; i < W->conf.coords; i++) {
        struct sim_coord *coord = W->coords[i];

        for (struct commit_copy **at = &coord->copies; *at; at = &(*at)->next) {
            struct commit_copy *copy = *at;

            if (strcmp(copy->name, commit) != 0)
                continue;
            *at = copy->next;
            oracle_term(coord, copy->term);
            oracle_commit(coord, copy->txn);
            sim_store_commit(coord->store, copy->txn);
            return;
        }
    }
}

static void committed(void *arg, int err, const char *text)
{
    if (!sim_muted())
        after_commit(arg, err, text);
}

static void io_commit(void *impl, const struct mst_txn *txn)
{
    struct app *app = impl;
    struct sim_coord *coord = coord_here();

    if (sim_muted() || sim_point("commit.begun"))
        return;
    lead_check(app);
    oracle_decides(coord);
    if (W->conf.coords > 1) {
        copy_commit(coord, txn);
        mst_store_commit(app->store, txn, committed, coord);
        return;
    }
    coord->txn = txn;
    commit_begin(coord);
}

static void disk_event(void *arg)
{
    commit_begin(arg);
}

void sim_coord_disk_goes_on(struct sim_coord *coord)
{
    if (coord->hung && coord->txn && coord->host->coord.alive)
        sim_at(&coord->host->coord, 0, disk_event, coord);
    coord->hung = false;
    coord->disk = DISK_WORKS;
}

/* --- orders, fences --- */

static int io_order(void *impl, const struct mst_order *order)
{
    int r;

    if (sim_muted())
        return -ENOTCONN;
    lead_check(impl);
    oracle_acts(coord_here(), "has an order to send");
    r = links_order(impl, order);
    if (r == 0)
        oracle_order(coord_here(), order);
    return r;
}

struct fencing {
    struct sim_coord *coord;
    struct sim_host *host;
    uint64_t token, serial;
    bool canceled, lost;
    int err;
};

static void fence_tells(void *arg)
{
    struct fencing *f = arg;
    struct app *app = f->coord->app;
    struct mst_time now = app_now();

    if (f->canceled || f->host->fence_serial != f->serial)
        return;
    f->host->fence_running = false;
    if (sim_point("fence.ended"))
        return;
    mst_core_fence_done(app->core, &now, f->token, f->err, f->err ? "the device does not do it" : "off, and status says off");
}

static void fence_status(void *arg)
{
    struct fencing *f = arg;

    f->err = f->host->powered ? -EAGAIN : 0;
    oracle_fence_says(f->host, f->err);
    fence_tells(f);
}

static void fence_cuts(void *arg)
{
    struct fencing *f = arg;

    if (!f->lost)
        sim_power_off(f->host, "its fence device was told so");
}

/* Changes nothing; a device that does not work does not answer either. */
static void fence_looks(struct sim_coord *coord, unsigned node, uint64_t token)
{
    struct sim_host *host = &W->hosts[node];
    struct fencing *f = sim_keep(sizeof(*f));

    *f = (struct fencing){.coord = coord, .host = host, .token = token, .serial = ++host->fence_serial};
    host->fence_token = token;
    host->fence_coord = coord->index;
    host->fence_running = true;
    if (host->power == POWER_WORKS || host->power == POWER_LATE_ANSWER) {
        sim_at(&coord->host->coord, sim_between(50, 300) * SIM_MS, fence_status, f);
    } else {
        f->err = -EIO;
        sim_at(&coord->host->coord, sim_between(50, 300) * SIM_MS, fence_tells, f);
    }
}

static void fence_device(struct sim_coord *coord, unsigned node, uint64_t token)
{
    struct sim_host *host = &W->hosts[node];
    struct sim_proc *proc = &coord->host->coord;
    struct fencing *f;
    uint64_t off_ms = sim_between(100, 2500);

    oracle_fence(coord, node);
    sim_say("fence device of %s is asked to cut its power", host->name);
    f = sim_keep(sizeof(*f));
    *f = (struct fencing){.coord = coord, .host = host, .token = token, .serial = ++host->fence_serial};
    host->fence_token = token;
    host->fence_coord = coord->index;
    host->fence_running = true;
    if (host->power == POWER_WORKS && host->power_fails > 0) {
        host->power_fails--;
        f->err = -EIO;
        sim_at(proc, off_ms * SIM_MS, fence_tells, f);
    } else if (host->power == POWER_WORKS || host->power == POWER_LATE_ANSWER) {
        sim_at(NULL, off_ms * SIM_MS, fence_cuts, f);
        sim_at(proc, (off_ms + sim_between(50, 300) + (host->power == POWER_LATE_ANSWER ? sim_between(2000, 4000) : 0)) * SIM_MS,
               fence_status, f);
    } else if (host->power == POWER_FAILS || host->power == POWER_LATE_CUT) {
        f->err = -EIO;
        sim_at(proc, off_ms * SIM_MS, fence_tells, f);
        if (host->power == POWER_LATE_CUT)
            sim_at(NULL, (off_ms + sim_between(500, 20000)) * SIM_MS, fence_cuts, f);
    } else {
        f->err = -ETIMEDOUT;
        sim_at(proc, FENCE_TIMEOUT_MS * SIM_MS, fence_tells, f);
    }
    (void)sim_point("fence.asked");
}

/* As in app.c: who leads is asked first; the decision is durable. */
static void fence_run(void *arg, int err, const char *text)
{
    struct fence_wait *wait = arg;
    struct app *app = wait->app;
    bool wanted = wait->wanted;

    if (sim_muted())
        return;
    wait->asking = wait->wanted = false;
    if (!wanted)
        return;
    if (err < 0) {
        wait->start_err = err;
        snprintf(wait->text, sizeof(wait->text), "%s", text);
        return;
    }
    lead_check(app);
    if (wait->look)
        fence_looks(coord_here(), wait->node, wait->token);
    else
        fence_device(coord_here(), wait->node, wait->token);
}

static void fences_tick(struct app *app)
{
    struct mst_time now = app_now();

    for (unsigned i = 0; i < W->conf.nodes; i++) {
        struct fence_wait *wait = &app->fence_waits[i];
        int err = wait->start_err;

        if (err == 0)
            continue;
        wait->start_err = 0;
        mst_core_fence_done(app->core, &now, wait->token, err, wait->text);
    }
}

static void io_fence(void *impl, unsigned node, uint64_t token, bool look)
{
    struct app *app = impl;
    struct fence_wait *wait = &app->fence_waits[node];
    bool asking = wait->asking;

    if (sim_muted() || sim_point("fence.begun"))
        return;
    if (W->conf.coords == 1) {
        if (look)
            fence_looks(coord_here(), node, token);
        else
            fence_device(coord_here(), node, token);
        return;
    }
    wait->app = app;
    wait->node = node;
    wait->token = token;
    wait->look = look;
    wait->start_err = 0;
    wait->wanted = wait->asking = true;
    if (asking)
        return;
    lead_check(app);
    mst_store_confirm(app->store, fence_run, wait);
}

static void io_fence_cancel(void *impl, unsigned node, uint64_t token)
{
    struct app *app = impl;
    struct sim_host *host = &W->hosts[node];

    if (sim_muted())
        return;
    if (W->conf.coords > 1 && app->fence_waits[node].token == token) {
        app->fence_waits[node].start_err = 0;
        app->fence_waits[node].wanted = false;
    }
    if (host->fence_token != token || host->fence_coord != coord_here()->index)
        return;
    host->fence_running = false;
    host->fence_serial++; /* nobody waits; what the device was told, it may do all the same */
}

/* --- the rest of the core's table --- */

static void io_read_slots(void *impl, unsigned node)
{
    watch_read_slots(impl, node);
}

static int io_lease(void *impl, unsigned node, const struct mst_lease_grant *grant)
{
    int r;

    if (sim_muted())
        return -ENOTCONN;
    r = watch_lease(impl, node, grant);
    if (r == 0 && sim_on_lease)
        sim_on_lease(node);
    return r;
}

static void io_manage(void *impl, unsigned node, const struct mst_lease_grant *lease)
{
    if (sim_muted())
        return;
    manage_ask(impl, node, lease);
    if (lease && sim_on_lease)
        sim_on_lease(node);
}

static void io_close_link(void *impl, uint64_t link)
{
    links_close(impl, link);
}

static void io_peers(void *impl)
{
    ((struct app *)impl)->peers_changed = true;
}

static void io_reply(void *impl, uint64_t token, int err, const char *text)
{
    if (sim_muted() || sim_point("reply.begun"))
        return;
    app_reply(impl, token, err, text);
    (void)sim_point("reply.sent");
}

static void io_vm_moved(void *impl, const char *vm, int node, uint64_t epoch)
{
    (void)impl, (void)vm, (void)node, (void)epoch;
}

static void io_log(void *impl, enum mst_log_level level, const char *text)
{
    (void)impl;
    mst_log(level, "%s", text);
}

/* --- operator.c and console.c of the coordinator: not simulated --- */

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
        if (reply->link == 0) { /* the operator's */
            sim_say("answer to the operator: %s %s", err ? strerror(-err) : "ok", text ? text : "");
            oracle_reply(coord_here(), reply->request_id, err);
            if (replies_count < sizeof(replies) / sizeof(replies[0])) {
                replies[replies_count].token = reply->request_id;
                replies[replies_count++].err = err;
            }
            return;
        }
        mst_done_set(&done, err, text);
        env.has_reply_to = 1;
        env.reply_to = reply->request_id;
        env.body_case = MAINSTAY__ENVELOPE__BODY_DONE;
        env.done = &done;
        (void)links_send(app, reply->link, &env);
        return;
    }
}

void console_data(struct app *app, unsigned node, const Mainstay__ConsoleData *data)
{
    (void)app, (void)node, (void)data;
}

void console_answered(struct app *app, uint64_t order_id, const Mainstay__Done *done)
{
    (void)app, (void)order_id, (void)done;
}

void console_link_gone(struct app *app, uint64_t link)
{
    (void)app, (void)link;
}

/* --- the process --- */

static void tick(void *arg)
{
    struct sim_coord *coord = arg;
    struct app *app = coord->app;
    struct mst_time now = app_now();

    sim_at(&coord->host->coord, TICK_MS * SIM_MS, tick, coord);
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
}

static void device_gone(void *arg)
{
    sim_coord_kill(arg, 500);
}

static void core_conf(const struct sim_coord *coord, struct mst_core_conf *conf)
{
    memset(conf, 0, sizeof(*conf));
    conf->coordinator_id = coord->index + 1;
    conf->coordinator_instance = coord->app->instance;
    snprintf(conf->cluster, sizeof(conf->cluster), "sim");
    conf->watch_interval_ms = W->conf.watch_interval_ms;
    conf->agent_silent_ms = 3000;
    conf->keeper_silent_ms = 3000;
    conf->keeper_return_ms = 3000;
    conf->node_starts_max = 4;
    conf->node_starts_window_ms = 120000;
    conf->fences_max = 2;
    conf->starts_max = 8;
    conf->mass_loss_percent = 50;
    conf->mirror_lag_ms = 10000;
    conf->lease_ms = W->conf.lease_ms ? W->conf.lease_ms : 10000;
    conf->nodes_count = W->conf.nodes;
    for (unsigned i = 0; i < W->conf.nodes; i++) {
        struct mst_member *to = &conf->nodes[i];

        snprintf(to->name, sizeof(to->name), "%s", members[i].name);
        snprintf(to->address, sizeof(to->address), "%s", members[i].address);
        to->id = members[i].id;
        to->port = members[i].port;
        to->has_fence = members[i].fence != NULL;
        to->watchdog_ms = members[i].watchdog_proof_ms;
        to->managed = members[i].management != NULL;
        if (W->hosts[i].rack != 0)
            snprintf(to->rack, sizeof(to->rack), "rack%u", W->hosts[i].rack);
    }
}

static int row_load(void *arg, const struct mst_row *row, struct mst_why *why)
{
    int r = mst_core_load(arg, row, why);

    if (r < 0)
        oracle_breach("LOAD", "a row of its own store is refused: %s", why->text);
    return r;
}

static void rows_load(struct sim_coord *coord)
{
    static const enum mst_row_kind order[] = {MST_ROW_META,     MST_ROW_NODE, MST_ROW_DEFINITION, MST_ROW_VM,    MST_ROW_FAULT,
                                              MST_ROW_RECOVERY, MST_ROW_STEP, MST_ROW_RVM,        MST_ROW_PROOF, MST_ROW_MIRROR};
    struct mst_why why = {0};

    for (unsigned k = 0; k < sizeof(order) / sizeof(order[0]); k++) {
        const struct sim_table *table = &coord->store->tables[order[k]];

        for (unsigned i = 0; i < table->count; i++)
            (void)row_load(coord->app->core, &table->rows[i], &why);
    }
}

/* It decides from now on: a coordinator alone, or one that has become the leader. */
void app_lead(struct app *app)
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
                             .log = io_log};
    static struct mst_core_conf conf;
    struct sim_coord *coord = coord_here();
    struct mst_why why = {0};
    struct mst_time now = app_now();

    if (sim_muted())
        return;
    core_conf(coord, &conf);
    if (mst_core_new(&conf, &io, &app->core) < 0)
        abort();
    if (W->conf.coords == 1)
        rows_load(coord);
    else if (mst_store_load(app->store, row_load, app->core, &why) < 0)
        oracle_breach("LOAD", "the store cannot be read: %s", why.text);
    (void)mst_watcher_new(app->fabric, W->conf.watch_interval_ms, READ_DEADLINE_MS, watch_on_sample, app, &app->watcher, &why);
    oracle_coord_up(coord);
    mst_core_start(app->core, &now);
}

static void alone_stands(const struct mst_store *store, struct mst_store_standing *ret)
{
    (void)store;
    ret->leads = true;
}

static void boot(void *arg)
{
    static const struct mst_store_ops alone_ops = {.standing = alone_stands};
    static struct mst_store alone = {.ops = &alone_ops};
    struct sim_coord *coord = arg;
    struct app *app = sim_calloc(1, sizeof(*app));
    struct mst_why why = {0};

    coord->app = app;
    app->conf = &confs[coord->index];
    app->instance = coord->instance = mst_random_u64();
    app->store = &alone;
    coord->txn = NULL;
    coord->hung = false;
    coord->commits = 0;
    coord->starts++;
    if (W->conf.coords > 1 && mst_store_etcd_open(NULL, app->conf, app->instance, &app->store, &why) < 0)
        abort();
    if (mst_fabric_open(NULL, app->conf->address, &app->fabric, &why) < 0) {
        sim_coord_kill(coord, 500);
        return;
    }
    mst_fabric_on_gone(app->fabric, device_gone, coord);
    sim_say("coordinator instance %016" PRIx64 " starts%s", app->instance,
            coord->on_old_copy ? " ON AN OLD COPY of its store" : "");
    sim_at(&coord->host->coord, TICK_MS * SIM_MS, tick, coord);
    if (W->conf.coords == 1) {
        app_lead(app);
        return;
    }
    listen_on(app); /* a standby says who leads */
    lead_begin(app);
}

void sim_coord_start(struct sim_coord *coord)
{
    if (coord->host->coord.alive || !coord->host->powered)
        return;
    sim_proc_start(&coord->host->coord);
    sim_as(&coord->host->coord, boot, coord);
}

static void back_event(void *arg)
{
    struct sim_coord *coord = arg;

    if (K.now_ns >= coord->up_ns)
        sim_coord_start(coord);
}

void sim_coord_kill(struct sim_coord *coord, uint64_t back_after_ms)
{
    if (coord->host->coord.alive) {
        sim_say("coordinator %u is killed", coord->index + 1);
        oracle_coord_down(coord);
        sim_proc_kill(&coord->host->coord);
        coord->app = NULL;
        sim_fabric_proc_gone(coord->host, &coord->host->coord);
        sim_socket_proc_gone(&coord->host->coord);
        for (unsigned i = 0; i < W->conf.nodes; i++) {
            if (W->hosts[i].fence_running && W->hosts[i].fence_coord == coord->index) {
                W->hosts[i].fence_running = false;
                W->hosts[i].fence_serial++;
            }
        }
    }
    coord->up_ns = K.now_ns + back_after_ms * SIM_MS;
    sim_at(NULL, back_after_ms * SIM_MS, back_event, coord);
}

void app_fences_cancel(struct app *app)
{
    const struct sim_coord *coord = coord_here();

    (void)app;
    for (unsigned i = 0; i < W->conf.nodes; i++) {
        if (W->hosts[i].fence_running && W->hosts[i].fence_coord == coord->index) {
            W->hosts[i].fence_running = false;
            W->hosts[i].fence_serial++;
        }
    }
}

void sim_coord_ended(void)
{
    sim_coord_kill(coord_here(), 300);
}

struct sim_coord *sim_coord_new(unsigned index, struct sim_host *host)
{
    struct sim_coord *coord = sim_keep(sizeof(*coord));

    coord->index = index;
    coord->host = host;
    coord->store = index == 0 ? sim_store_new() : W->coords[0]->store; /* several share it */
    host->coord.exits = W->conf.coords > 1;
    etcd_conf.endpoints_count = W->conf.coords;
    confs[index] = (struct mst_coordinator_conf){.cluster = (char *)"sim",
                                                 .id = index + 1,
                                                 .address = host->address,
                                                 .port = MST_COORDINATOR_PORT,
                                                 .store = W->conf.coords > 1 ? &store_conf : NULL,
                                                 .watch_interval_ms = W->conf.watch_interval_ms,
                                                 .agent_silent_ms = 3000,
                                                 .keeper_silent_ms = 3000,
                                                 .keeper_return_ms = 3000,
                                                 .fence_timeout_ms = FENCE_TIMEOUT_MS,
                                                 .nodes = members,
                                                 .nodes_count = W->conf.nodes};
    for (unsigned i = 0; i < W->conf.nodes; i++)
        members[i] = (struct mst_member_conf){.name = W->hosts[i].name,
                                              .id = i + 1,
                                              .address = W->hosts[i].address,
                                              .port = MST_NODE_PORT,
                                              .watchdog_proof_ms = W->hosts[i].dog_conf.timeout_s * 1000,
                                              .management = W->hosts[i].conf.management,
                                              .fence = W->hosts[i].has_fence ? &fence_conf : NULL};
    replies_count = 0;
    return coord;
}

struct sim_coord *sim_coord_leader(void)
{
    struct sim_coord *found = NULL;

    for (unsigned i = 0; i < W->conf.coords; i++) {
        struct mst_core *core = sim_coord_core(W->coords[i]);

        if (core && !W->coords[i]->host->coord.stopped && mst_core_ready(core) && (!found || W->coords[i]->term > found->term))
            found = W->coords[i];
    }
    return found;
}

/* --- the operator --- */

struct asking {
    struct sim_coord *coord;
    uint64_t token;
    struct mst_request request;
    struct mst_definition *definition;
    struct mst_report report;
};

static void request_comes(void *arg)
{
    struct asking *asking = arg;
    struct app *app = asking->coord->app;
    struct mst_time now = app_now();
    uint64_t token = app_reply_add(app, NULL, 0, asking->token);

    asking->request.definition = asking->definition;
    if (!app->core) /* it leads no more */
        return;
    if (token == 0 || mst_core_request(app->core, &now, token, &asking->request) < 0)
        oracle_reply(asking->coord, asking->token, -ENOBUFS);
}

static void report_comes(void *arg)
{
    struct asking *asking = arg;
    struct app *app = asking->coord->app;
    struct mst_time now = app_now();
    uint64_t token = app_reply_add(app, NULL, 0, asking->token);

    mst_core_report(app->core, &now, 0, token, &asking->report);
}

static struct asking *asking_new(struct sim_coord *coord)
{
    struct asking *asking = sim_keep(sizeof(*asking));

    asking->coord = coord;
    asking->token = ++coord->tokens + coord->index * UINT64_C(1000000);
    return asking;
}

uint64_t sim_operator(enum mst_request_type type, const char *name, const char *node, const struct mst_definition *definition)
{
    struct sim_coord *coord = sim_coord_leader();
    struct asking *asking;

    if (!coord)
        return 0;
    asking = asking_new(coord);
    asking->request.type = type;
    snprintf(asking->request.name, sizeof(asking->request.name), "%s", name);
    snprintf(asking->request.node, sizeof(asking->request.node), "%s", node ? node : "");
    if (definition) {
        asking->definition = sim_keep(sizeof(*definition));
        *asking->definition = *definition;
    }
    oracle_request(asking->token, type, name);
    sim_at(&coord->host->coord, sim_between(10, 500) * SIM_US, request_comes, asking);
    return asking->token;
}

void sim_operator_report(uint32_t kind, const char *node, const char *vm, uint64_t epoch, uint64_t instance, const char *reporter)
{
    struct sim_coord *coord = sim_coord_leader();
    struct asking *asking;

    if (!coord)
        return;
    asking = asking_new(coord);
    asking->report.kind = kind;
    asking->report.epoch = epoch;
    asking->report.instance = instance;
    snprintf(asking->report.node, sizeof(asking->report.node), "%s", node);
    snprintf(asking->report.vm, sizeof(asking->report.vm), "%s", vm ? vm : "");
    snprintf(asking->report.reporter, sizeof(asking->report.reporter), "%s", reporter);
    sim_at(&coord->host->coord, sim_between(10, 500) * SIM_US, report_comes, asking);
}

bool sim_replied(uint64_t token, int *ret_err)
{
    for (unsigned i = replies_count; i > 0; i--) {
        if (replies[i - 1].token != token)
            continue;
        *ret_err = replies[i - 1].err;
        return true;
    }
    return false;
}
