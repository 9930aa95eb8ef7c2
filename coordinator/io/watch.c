#include "coordinator/io/app.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/state.h"
#include "shm/layout.h"
#include "shm/publish.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Two WATCH links to each node: one that the watcher's thread reads beat lines over, one for everything else.
 *
 *   DOWN --connect--> CONNECTING --open--> OPEN (waits for Keys) --Keys, superblock checked--> READY
 *    ^                     |                 |                                                   |
 *    +---------------------+-----------------+---------------------------------------------------+   again after RETRY_MS
 *
 * A connection that cannot be made is a failed read: what detection sees is whether the node's memory can be reached at all. */
enum watch_state { WATCH_DOWN, WATCH_CONNECTING, WATCH_OPEN, WATCH_READY };

static const struct mst_state watch_states[] = {
    [WATCH_DOWN] = {"down", MST_TO(WATCH_CONNECTING)},
    [WATCH_CONNECTING] = {"connecting", MST_TO(WATCH_OPEN) | MST_TO(WATCH_DOWN)},
    [WATCH_OPEN] = {"open", MST_TO(WATCH_READY) | MST_TO(WATCH_DOWN)},
    [WATCH_READY] = {"ready", MST_TO(WATCH_DOWN)},
};
#define WATCH_STATES (sizeof(watch_states) / sizeof(watch_states[0]))

#define CONNECT_MS     800u
#define KEYS_MS        2000u
#define RETRY_MS       200u
#define READ_MS        500u /* one READ of the slots */
#define LEASE_WRITE_MS 1000u
#define ROUNDS_MAX     8u /* copies of the slots before what is still torn is given up */
#define SLOTS_AT_LEAST 8u

enum leg { LEG_BEAT, LEG_READ };

struct leg_state {
    struct watch *watch;
    enum leg leg;
    unsigned state;
    struct mst_link *link;
    uint64_t since_ms; /* of the state */
    uint64_t retry_ms;
    uint64_t status_addr;
    uint32_t status_rkey;
    uint64_t grant_addr; /* 0: an old keeper, which has none */
    uint32_t grant_rkey;
    uint64_t instance;
    int last_error;
};

struct watch {
    struct app *app;
    unsigned node;
    uint64_t instance; /* of the Hello */
    struct leg_state legs[2];
    uint64_t reads, failures; /* of the watcher's sample, already told */
    bool bad_sum;
    /* reading slots: two private copies, the older and the newer */
    struct mst_status_area *copies[2];
    struct mst_region *regions[2];
    /* writing leases */
    struct mst_lease_line *line; /* a page of its own; untouched while it is written */
    struct mst_region *line_region;
    bool writing;
    bool reading;
    bool damage_told;       /* in the log and as a fault; again only after all was well */
    unsigned round, hint;   /* slots that are read: the highest in use and some */
    unsigned parts, failed; /* READs under way, and failed, of this round */
    struct mst_slots_read result;
};

static void leg_move(struct leg_state *leg, unsigned next)
{
    if (!mst_state_may(watch_states, WATCH_STATES, leg->state, next))
        log_error("watch of node %u: %s -> %s is not a step", leg->watch->node,
                  mst_state_name(watch_states, WATCH_STATES, leg->state), mst_state_name(watch_states, WATCH_STATES, next));
    leg->state = next;
    leg->since_ms = mst_now_ms();
}

static const char *name_of(const struct watch *watch)
{
    return watch->app->conf->nodes[watch->node].name;
}

/* --- damage --- */

/* Main storage that does not check is a fault of its own: what is left of it goes on being used. */
static void damage_tell(struct watch *watch, const char *text)
{
    struct mst_report report = {.kind = MST_FAULT_AREA_CORRUPT, .instance = watch->instance, .reporter = "coordinator"};
    struct mst_time now = app_now();

    if (watch->damage_told)
        return;
    watch->damage_told = true;
    log_error("node=%s main storage is damaged: %s; a restart of its keeper makes it anew", name_of(watch), text);
    memcpy(report.node, name_of(watch), strlen(name_of(watch)));
    snprintf(report.text, sizeof(report.text), "%.*s; restart its keeper", (int)sizeof(report.text) - 32, text);
    mst_core_report(watch->app->core, &now, 0, 0, &report);
}

static int super_check(struct watch *watch, const struct mst_superblock *super, struct mst_why *why)
{
    const struct mst_member_conf *member = &watch->app->conf->nodes[watch->node];
    int r = mst_superblock_check(super, why);

    if (r < 0)
        return mst_why_prefix(why, r, "its superblock does not check");
    if (super->instance != watch->legs[LEG_READ].instance || super->node_id != member->id ||
        strcmp(super->node, member->name) != 0 || strcmp(super->cluster, watch->app->conf->cluster) != 0)
        return mst_why_set(why, -EPROTO, "its superblock says node %s id %u of cluster %s instance %016" PRIx64, super->node,
                           super->node_id, super->cluster, super->instance);
    return 0;
}

/* After the last round of a reading. */
static void damage_look(struct watch *watch, const struct mst_status_area *area)
{
    struct mst_why why = {0};

    if (super_check(watch, &area->super, &why) < 0)
        damage_tell(watch, why.text);
    else if (watch->result.damaged > 0) {
        mst_why_set(&why, 0, "%u of its records (VM slots, node status) do not check", watch->result.damaged);
        damage_tell(watch, why.text);
    } else {
        watch->damage_told = false;
    }
}

/* --- slots --- */

static void slots_finish(struct watch *watch, int err, const char *text)
{
    struct mst_time now = app_now();

    if (!watch->reading)
        return;
    watch->reading = false;
    if (err == 0 && watch->result.refused > 0)
        log_warning("node=%s %u records of its main storage are whole and say what cannot be: not used", name_of(watch),
                    watch->result.refused);
    mst_core_slots(watch->app->core, &now, watch->node, err, text, &watch->result.info, watch->result.slots, watch->result.count);
}

static void slots_round(struct watch *watch);

static void slots_round_done(struct watch *watch)
{
    unsigned newer = watch->round & 1;
    unsigned used = 0;
    bool final;

    if (watch->failed > 0) {
        slots_finish(watch, -EIO, "a READ of its main storage failed");
        return;
    }
    watch->round++;
    if (watch->round < 2) {
        slots_round(watch);
        return;
    }
    final = watch->round >= ROUNDS_MAX;
    mst_slots_parse(watch->copies[!newer], watch->copies[newer], watch->hint, final, &watch->result);
    if (watch->result.unsure > 0 && !final) {
        slots_round(watch);
        return;
    }
    for (unsigned i = 0; i < watch->hint; i++) {
        const struct mst_vm_entry *entry = &watch->copies[newer]->vms[i];
        const struct mst_pub_head *a = (const void *)entry->info[0];
        const struct mst_pub_head *b = (const void *)entry->info[1];

        if (a->version != 0 || b->version != 0)
            used = i + 1;
    }
    if (used == watch->hint && watch->hint < MST_VMS_PER_NODE) { /* there may be more behind */
        watch->hint = watch->hint * 2 < MST_VMS_PER_NODE ? watch->hint * 2 : MST_VMS_PER_NODE;
        watch->round = 0;
        slots_round(watch);
        return;
    }
    watch->hint = used + 1 < SLOTS_AT_LEAST ? SLOTS_AT_LEAST : used + 1 < MST_VMS_PER_NODE ? used + 1 : MST_VMS_PER_NODE;
    damage_look(watch, watch->copies[newer]);
    slots_finish(watch, 0, NULL);
}

static void on_part(void *arg, int err)
{
    struct watch *watch = arg;

    if (err < 0)
        watch->failed++;
    if (--watch->parts > 0 || !watch->reading)
        return;
    MST_POINT("slots.read");
    slots_round_done(watch);
}

static void post_part(struct watch *watch, unsigned copy, uint64_t offset, uint32_t bytes)
{
    struct leg_state *leg = &watch->legs[LEG_READ];

    if (mst_link_read(leg->link, watch->regions[copy], offset, leg->status_addr + offset, leg->status_rkey, bytes, READ_MS,
                      on_part, watch) < 0)
        watch->failed++;
    else
        watch->parts++;
}

static void slots_round(struct watch *watch)
{
    unsigned copy = watch->round & 1;

    watch->parts = 0;
    watch->failed = 0;
    post_part(watch, copy, 0, sizeof(struct mst_superblock));
    post_part(watch, copy, offsetof(struct mst_status_area, node), 2 * MST_PUB_SLOT_BYTES);
    post_part(watch, copy, offsetof(struct mst_status_area, vms), watch->hint * (uint32_t)sizeof(struct mst_vm_entry));
    /* Nothing posted: the tick says so, for this may run inside a call of the core's. */
}

void watch_read_slots(struct app *app, unsigned node)
{
    struct watch *watch = app->watches[node];

    if (!watch)
        return; /* the core asks for nodes that it was told to be readable, and those have one */
    watch->reading = true;
    watch->round = 0;
    if (watch->parts == 0 && watch->legs[LEG_READ].state == WATCH_READY)
        slots_round(watch);
}

/* --- leases --- */

static void lease_written(void *arg, int err)
{
    struct watch *watch = arg;

    watch->writing = false;
    MST_POINT("lease.completed");
    if (err < 0)
        log_debug("node=%s its lease was not written: %s", name_of(watch), mst_errname(err));
}

void watch_lease_line(const struct app *app, const struct mst_lease_grant *grant, struct mst_lease_line *ret)
{
    *ret = (struct mst_lease_line){.instance = grant->instance,
                                   .term = grant->term,
                                   .coordinator = app->instance,
                                   .renewal = grant->renewal,
                                   .beat = grant->beat,
                                   .lease_ms = grant->lease_ms,
                                   .flags = grant->strict ? MST_LEASE_STRICT : 0,
                                   .coordinator_id = app->conf->id,
                                   .decision = (uint32_t)grant->decision,
                                   .version = MST_LEASE_VERSION};
    ret->crc32c = mst_crc32c(ret, offsetof(struct mst_lease_line, crc32c));
}

int watch_lease(struct app *app, unsigned node, const struct mst_lease_grant *grant)
{
    struct watch *watch = app->watches[node];
    struct leg_state *leg = watch ? &watch->legs[LEG_READ] : NULL;
    uint64_t offset = app->conf->id % MST_LEASE_LINES * sizeof(struct mst_lease_line);
    int r = 0;

    if (!leg || leg->state != WATCH_READY || leg->instance != grant->instance || leg->grant_addr == 0)
        return -ENOTCONN;
    if (watch->writing)
        return -EBUSY;
    if (!watch->line_region)
        r = mst_region_new(leg->link, watch->line, sizeof(*watch->line), MST_ACCESS_LOCAL, &watch->line_region, NULL);
    if (r < 0)
        return r;
    watch_lease_line(app, grant, watch->line);
    r = mst_link_write(leg->link, watch->line_region, 0, leg->grant_addr + offset, leg->grant_rkey, sizeof(*watch->line),
                       LEASE_WRITE_MS, lease_written, watch);
    watch->writing = r == 0;
    if (r == 0)
        MST_POINT("lease.posted");
    return r;
}

/* --- superblock --- */

static void super_done(void *arg, int err)
{
    struct watch *watch = arg;
    struct leg_state *leg = &watch->legs[LEG_READ];
    struct mst_why why = {0};
    struct mst_time now = app_now();

    if (err < 0 || leg->state != WATCH_OPEN)
        return;
    if (super_check(watch, &watch->copies[0]->super, &why) < 0) {
        damage_tell(watch, why.text);
        mst_link_close(leg->link);
        return;
    }
    leg_move(leg, WATCH_READY);
    mst_core_readable(watch->app->core, &now, watch->node, true);
}

static void super_read(struct watch *watch)
{
    struct leg_state *leg = &watch->legs[LEG_READ];
    struct mst_why why = {0};
    int r = 0;

    for (unsigned i = 0; r == 0 && i < 2; i++) {
        if (!watch->regions[i])
            r = mst_region_new(leg->link, watch->copies[i], sizeof(*watch->copies[i]), MST_ACCESS_LOCAL, &watch->regions[i],
                               &why);
    }
    if (r == 0)
        r = mst_link_read(leg->link, watch->regions[0], 0, leg->status_addr, leg->status_rkey, sizeof(struct mst_superblock),
                          READ_MS, super_done, watch);
    if (r < 0) {
        log_error("node=%s its main storage cannot be read: %s", name_of(watch), why.text[0] ? why.text : strerror(-r));
        mst_link_close(leg->link);
    }
}

/* --- links --- */

static void on_keys(struct leg_state *leg, const Mainstay__Keys *keys)
{
    struct watch *watch = leg->watch;
    int r;

    if (leg->state != WATCH_OPEN)
        return; /* again, with other VMs: the status area stays where it is */
    if (keys->status->bytes < sizeof(struct mst_status_area) || keys->instance != watch->instance) {
        if (leg->instance != keys->instance)
            log_notice("node=%s keys are of instance %016" PRIx64 " with %" PRIu64 " bytes, awaited is %016" PRIx64,
                       name_of(watch), keys->instance, keys->status->bytes, watch->instance);
        leg->instance = keys->instance;
        mst_link_close(leg->link);
        return;
    }
    leg->status_addr = keys->status->addr;
    leg->status_rkey = keys->status->rkey;
    leg->grant_addr = keys->grant && keys->grant->bytes >= sizeof(struct mst_grant_area) ? keys->grant->addr : 0;
    leg->grant_rkey = keys->grant ? keys->grant->rkey : 0;
    leg->instance = keys->instance;
    if (leg->leg == LEG_READ) {
        super_read(watch);
        return;
    }
    mst_watcher_remove(watch->app->watcher, watch->node);
    watch->reads = watch->failures = 0;
    r = mst_watcher_add(watch->app->watcher, watch->node, leg->link, leg->status_addr + offsetof(struct mst_status_area, beat),
                        leg->status_rkey, sizeof(struct mst_beat_line));
    if (r < 0) {
        log_error("node=%s its beat line cannot be watched: %s", name_of(watch), strerror(-r));
        mst_link_close(leg->link);
        return;
    }
    leg_move(leg, WATCH_READY);
    log_info("node=%s beat line is watched", name_of(watch));
}

static void on_message(struct mst_link *link, const void *data, size_t len, void *arg)
{
    struct leg_state *leg = arg;
    struct mst_why why = {0};
    mst_envelope *env;
    int r = mst_frame_unpack(data, len, &env, &why);

    if (r < 0) {
        log_warning("node=%s sent what is no message on a watch link: %s", name_of(leg->watch), why.text);
        mst_link_close(link);
        return;
    }
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_KEYS)
        on_keys(leg, env->keys);
    else if (env->body_case == MAINSTAY__ENVELOPE__BODY_REFUSE)
        log_notice("node=%s refuses to be watched: %s", name_of(leg->watch), env->refuse->text);
    mst_envelope_free(env);
}

static void leg_down(struct leg_state *leg, int err, const char *text)
{
    struct watch *watch = leg->watch;
    struct mst_time now = app_now();
    bool was_ready = leg->state == WATCH_READY;

    if (err != leg->last_error || was_ready)
        log_notice("node=%s %s link down: %s %s", name_of(watch), leg->leg == LEG_BEAT ? "beat" : "read", mst_errname(err), text);
    leg->last_error = err;
    leg->link = NULL;
    leg_move(leg, WATCH_DOWN);
    leg->retry_ms = mst_now_ms() + RETRY_MS;
    if (watch->app->stopping)
        return;
    mst_core_beat_failed(watch->app->core, &now, watch->node, now.us);
    if (leg->leg != LEG_READ)
        return;
    watch->regions[0] = watch->regions[1] = watch->line_region = NULL; /* gone with the link, and their work has ended */
    mst_core_readable(watch->app->core, &now, watch->node, false);
    slots_finish(watch, err < 0 ? err : -ECONNRESET, text[0] ? text : "the link to its main storage is gone");
}

static void on_open(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct leg_state *leg = arg;

    (void)link;
    if (err < 0) {
        leg_down(leg, err, why ? why->text : "");
        return;
    }
    leg->last_error = 0;
    leg_move(leg, WATCH_OPEN);
}

static void on_closed(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    (void)link;
    leg_down(arg, err, why->text);
}

static const struct mst_link_events events = {.on_open = on_open, .on_message = on_message, .on_closed = on_closed};

static void leg_connect(struct leg_state *leg)
{
    struct watch *watch = leg->watch;
    const struct mst_member_conf *member = &watch->app->conf->nodes[watch->node];
    struct mst_why why = {0};
    int r;

    leg_move(leg, WATCH_CONNECTING);
    r = mst_fabric_connect(watch->app->fabric, member->address, member->port, MST_ROLE_WATCH, NULL, 0, CONNECT_MS, &events, leg,
                           &leg->link, &why);
    if (r < 0)
        leg_down(leg, r, why.text);
}

static void leg_tick(struct leg_state *leg, uint64_t now_ms)
{
    if (leg->state == WATCH_DOWN && now_ms >= leg->retry_ms && leg->watch->app->fabric)
        leg_connect(leg);
    else if (leg->state == WATCH_OPEN && now_ms - leg->since_ms > KEYS_MS) {
        leg->since_ms = now_ms;
        mst_link_close(leg->link);
    }
}

/* --- beats --- */

void watch_beat(const struct mst_beat_line *line, uint64_t read_us, struct mst_beat *ret)
{
    *ret = (struct mst_beat){.read_us = read_us,
                             .keeper_beat = line->keeper_beat,
                             .agent_beat = line->agent_beat,
                             .generation = line->generation,
                             .vm_fault_flags = line->vm_fault_flags,
                             .instance = line->instance,
                             .agent_up = line->agent_state == MST_AGENT_UP,
                             .lease_renewal = line->lease_renewal,
                             .lease_wanted = (line->flags & MST_BEAT_LEASE_WANTED) != 0,
                             .lease_strict = (line->flags & MST_BEAT_LEASE_STRICT) != 0,
                             .watchdog_ms = (line->flags >> MST_BEAT_WATCHDOG_SHIFT) * 1000u};
}

static void take_sample(struct watch *watch)
{
    struct mst_watch_sample sample;
    struct mst_beat_line line;
    struct mst_time now = app_now();
    struct mst_beat beat;

    if (mst_watcher_sample(watch->app->watcher, watch->node, &sample) < 0)
        return;
    if (sample.failures > watch->failures) {
        watch->failures = sample.failures;
        mst_core_beat_failed(watch->app->core, &now, watch->node, now.us);
    }
    if (sample.reads == watch->reads || sample.bytes != sizeof(line))
        return;
    watch->reads = sample.reads;
    memcpy(&line, sample.data, sizeof(line));
    if (mst_beat_check(&line) < 0) { /* torn once in a while; for ever, it is no beat */
        if (!watch->bad_sum)
            log_warning("node=%s its beat line does not check", name_of(watch));
        watch->bad_sum = true;
        mst_core_beat_failed(watch->app->core, &now, watch->node, sample.last_read_ns / 1000);
        return;
    }
    watch->bad_sum = false;
    watch_beat(&line, sample.last_read_ns / 1000, &beat);
    mst_core_beat(watch->app->core, &now, watch->node, &beat);
}

void watch_on_sample(void *arg)
{
    struct app *app = arg;

    for (unsigned i = 0; i < app->conf->nodes_count && !app->stopping; i++) {
        if (app->watches[i])
            take_sample(app->watches[i]);
    }
}

/* --- life --- */

static struct watch *watch_new(struct app *app, unsigned node)
{
    struct watch *watch = calloc(1, sizeof(*watch));

    if (!watch)
        return NULL;
    watch->app = app;
    watch->node = node;
    watch->hint = SLOTS_AT_LEAST;
    for (unsigned i = 0; i < 2; i++) {
        watch->legs[i].watch = watch;
        watch->legs[i].leg = (enum leg)i;
        watch->copies[i] = aligned_alloc(MST_PAGE_BYTES, sizeof(*watch->copies[i]));
        if (!watch->copies[i])
            goto fail;
        memset(watch->copies[i], 0, sizeof(*watch->copies[i]));
    }
    watch->line = aligned_alloc(MST_PAGE_BYTES, MST_PAGE_BYTES);
    if (!watch->line)
        goto fail;
    return watch;
fail:
    free(watch->copies[0]);
    free(watch->copies[1]);
    free(watch);
    return NULL;
}
static_assert(sizeof(struct mst_status_area) % MST_PAGE_BYTES == 0, "aligned_alloc wants a multiple");

int watch_start(struct app *app, unsigned node, uint64_t instance)
{
    struct watch *watch = app->watches[node];
    uint64_t now_ms = mst_now_ms();

    if (!watch)
        watch = app->watches[node] = watch_new(app, node);
    if (!watch)
        return -ENOMEM;
    for (unsigned i = 0; i < 2; i++) {
        struct leg_state *leg = &watch->legs[i];

        if (watch->instance != instance && leg->link) /* of a keeper that is no more */
            mst_link_close(leg->link);
        leg->retry_ms = now_ms;
    }
    if (watch->instance != instance) {
        mst_watcher_remove(app->watcher, node);
        watch->damage_told = false;
    }
    watch->instance = instance;
    watch_tick(app);
    return 0;
}

void watch_tick(struct app *app)
{
    uint64_t now_ms = mst_now_ms();

    for (unsigned i = 0; i < app->conf->nodes_count && !app->stopping; i++) {
        struct watch *watch = app->watches[i];

        if (!watch)
            continue;
        leg_tick(&watch->legs[LEG_BEAT], now_ms);
        leg_tick(&watch->legs[LEG_READ], now_ms);
        if (watch->reading && watch->parts == 0)
            slots_finish(watch, -ENOTCONN, "no link to its main storage");
    }
}

void watch_free_all(struct app *app)
{
    for (unsigned i = 0; i < MST_NODES_MAX; i++) {
        if (!app->watches[i])
            continue;
        free(app->watches[i]->copies[0]);
        free(app->watches[i]->copies[1]);
        free(app->watches[i]->line);
        free(app->watches[i]);
        app->watches[i] = NULL;
    }
}
