#include "coordinator/io/store_etcd.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mutant.h"
#include "base/state.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Leadership. Whoever created PREFIX/leader, bound to a lease, leads until the lease ends. What the leader writes is conditional on that key's
 * create_revision (store_etcd_rows.c), so that safety needs no clock. The clock's part is only that an old leader falls silent in time:
 *
 *     t        the grant or keep-alive is sent (CLOCK_BOOTTIME: counts suspension, never steps)
 *     >= t     the leader of etcd starts the lease's TTL anew; a new leader of etcd starts it anew once more, which only makes it longer
 *     t + 4/5  we stop deciding, unless a later keep-alive was answered: 1/5 is for clocks that drift by up to a tenth against each other,
 *              and for the time between the look at the clock and the effect
 *     t + TTL  the earliest moment, by etcd's clock, that the key can vanish and another can lead
 */
#define GOOD_PART(ttl_ms)  ((ttl_ms) - (ttl_ms) / 5)
#define KEEP_EVERY(ttl_ms) ((ttl_ms) / 6)

static const struct mst_state states[ETCD_STATES] = {
    [ETCD_IDLE] = {"idle", MST_TO(ETCD_WATCHING)},
    [ETCD_WATCHING] = {"watching", MST_TO(ETCD_PROBING)},
    [ETCD_PROBING] = {"probing", MST_TO(ETCD_WATCHING) | MST_TO(ETCD_GRANTING)},
    [ETCD_GRANTING] = {"granting", MST_TO(ETCD_WATCHING) | MST_TO(ETCD_CAMPAIGNING)},
    [ETCD_CAMPAIGNING] = {"campaigning", MST_TO(ETCD_WATCHING) | MST_TO(ETCD_READING)},
    [ETCD_READING] = {"reading", MST_TO(ETCD_LEADING) | MST_TO(ETCD_LOST)},
    [ETCD_LEADING] = {"leading", MST_TO(ETCD_LOST)},
    [ETCD_LOST] = {"lost", 0},
};

void etcd_move(struct etcd_store *store, enum etcd_state next)
{
    if (!mst_state_may(states, ETCD_STATES, store->state, next))
        abort(); /* deciding on in a state that cannot be is worse than ending */
    store->state = next;
}

const char *etcd_key(const struct etcd_store *store, const char *name, char buf[static ETCD_KEY_BYTES])
{
    snprintf(buf, ETCD_KEY_BYTES, "%s/%s", store->prefix, name);
    return buf;
}

uint32_t etcd_timeout(const struct etcd_store *store)
{
    return mst_etcd_timeout_ms(store->conf->store->etcd->lease_ms);
}

static void on_step(uv_timer_t *timer);

static void step_in(struct etcd_store *store, uint64_t ms)
{
    (void)uv_timer_start(&store->step, on_step, ms, 0);
}

static uint64_t watch_every_ms(const struct etcd_store *store)
{
    uint64_t ms = store->conf->store->etcd->lease_ms / 10;

    return ms < 250 ? 250 : ms > 1000 ? 1000 : ms;
}

/* Back to watching, and again after a while. */
static void retreat(struct etcd_store *store)
{
    if (store->state != ETCD_WATCHING)
        etcd_move(store, ETCD_WATCHING);
    step_in(store, watch_every_ms(store));
}

void etcd_lost(struct etcd_store *store, const char *fmt, ...)
{
    char text[MST_WHY_BYTES];
    va_list ap;

    if (store->state == ETCD_LOST)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    etcd_move(store, ETCD_LOST);
    (void)uv_timer_stop(&store->step);
    (void)uv_timer_stop(&store->keep);
    (void)uv_timer_stop(&store->again);
    store->events->on_lost(store->arg, text);
}

/* --- trouble --- */

static void answered(struct etcd_store *store)
{
    store->silent = 0;
    store->trouble[0] = '\0';
}

static void unanswered(struct etcd_store *store, const char *text)
{
    unsigned all = store->conf->store->etcd->endpoints_count;

    store->silent++;
    if (store->silent < all && store->trouble[0] == '\0')
        return; /* the others have not been asked yet */
    store->leader_known = false;
    snprintf(store->trouble, sizeof(store->trouble),
             "etcd does not answer, or has no majority: nothing is decided until it does; VMs run on (%s)", text);
}

/* --- the leader key --- */

static char *leader_value(const struct etcd_store *store)
{
    char instance[20];
    json_t *value;
    char *text;

    snprintf(instance, sizeof(instance), "%016" PRIx64, store->instance);
    value = json_pack("{s:i,s:s,s:i,s:s}", "id", (int)store->conf->id, "address", store->conf->address, "port",
                      (int)store->conf->port, "instance", instance);
    text = value ? json_dumps(value, JSON_COMPACT) : NULL;
    json_decref(value);
    return text;
}

/* Remembers who leads; true: we do. */
static bool read_leader(struct etcd_store *store, const struct mst_etcd_kv *kv)
{
    char ours[20];
    json_t *value = json_loadb(kv->value, kv->value_bytes, 0, NULL);
    const char *address = json_string_value(json_object_get(value, "address"));
    const char *instance = json_string_value(json_object_get(value, "instance"));
    json_int_t id = json_integer_value(json_object_get(value, "id"));
    json_int_t port = json_integer_value(json_object_get(value, "port"));
    bool is_us;

    snprintf(ours, sizeof(ours), "%016" PRIx64, store->instance);
    is_us = instance && strcmp(instance, ours) == 0;
    store->leader_known = !is_us;
    store->leader_id = id > 0 && id <= UINT32_MAX ? (uint32_t)id : 0;
    store->leader_port = port > 0 && port <= UINT16_MAX ? (uint32_t)port : 0;
    snprintf(store->leader_address, sizeof(store->leader_address), "%s", address ? address : "an unknown address");
    json_decref(value);
    return is_us;
}

bool etcd_other_leads(struct etcd_store *store, const json_t *answer, unsigned index)
{
    const json_t *keys = mst_etcd_keys(answer, index);
    struct mst_etcd_kv kv;
    bool other;

    if (json_array_size(keys) == 0)
        return true; /* our key is gone, and with it our right */
    if (mst_etcd_kv_read(json_array_get(keys, 0), &kv) < 0)
        return true;
    other = kv.create_revision != store->leader_revision;
    if (other)
        (void)read_leader(store, &kv);
    mst_etcd_kv_clear(&kv);
    return other;
}

/* --- keeping the lease --- */

static void on_kept(void *arg, const struct mst_etcd_reply *reply)
{
    struct etcd_store *store = arg;
    const json_t *result = json_object_get(reply->json, "result");
    int64_t ttl_s = 0;

    store->keep_busy = false;
    if (store->state == ETCD_LOST)
        return;
    if (reply->outcome != MST_ETCD_ANSWER) {
        unanswered(store, reply->text);
        store->keep_next_ms = mst_now_ms() + 50; /* another endpoint, soon */
        return;
    }
    if (!result || !mst_etcd_number(result, "TTL", &ttl_s) || ttl_s <= 0) {
        etcd_lost(store, "our lease has ended: etcd knows it no more");
        return;
    }
    answered(store);
    store->good_until_ms = store->asked_ms + GOOD_PART((uint64_t)ttl_s * 1000);
}

static void keep_send(struct etcd_store *store, uint64_t now_ms)
{
    char id[24];

    snprintf(id, sizeof(id), "%" PRId64, store->lease);
    store->asked_ms = now_ms;
    store->keep_next_ms = now_ms + KEEP_EVERY(store->ttl_ms);
    store->keep_busy =
        mst_etcd_call(store->etcd, "lease/keepalive", json_pack("{s:s}", "ID", id), etcd_timeout(store), on_kept, store) == 0;
}

static void on_keep(uv_timer_t *timer)
{
    struct etcd_store *store = timer->data;
    uint64_t now_ms = mst_now_ms();

    if (now_ms >= store->good_until_ms && !MST_MUTANT(46)) {
        etcd_lost(store, "our lease may have ended: etcd has not confirmed it for %" PRIu64 " ms%s%s",
                  now_ms - (store->good_until_ms - GOOD_PART(store->ttl_ms)), store->trouble[0] ? "; " : "", store->trouble);
        return;
    }
    if (!store->keep_busy && now_ms >= store->keep_next_ms)
        keep_send(store, now_ms);
}

static void on_revoked(void *arg, const struct mst_etcd_reply *reply)
{
    (void)arg; /* a lease that is not given back ends by itself */
    (void)reply;
}

static json_t *revoke_body(const struct etcd_store *store)
{
    char id[24];

    snprintf(id, sizeof(id), "%" PRId64, store->lease);
    return json_pack("{s:s}", "ID", id);
}

/* --- campaigning --- */

static void on_campaigned(void *arg, const struct mst_etcd_reply *reply)
{
    struct etcd_store *store = arg;
    const json_t *keys = mst_etcd_keys(reply->json, 0);
    struct mst_etcd_kv kv = {0};
    bool won = false;

    if (store->state != ETCD_CAMPAIGNING)
        return;
    if (reply->outcome == MST_ETCD_UNKNOWN || reply->outcome == MST_ETCD_NOT_SENT) {
        /* Whether our key is there shows the same question asked again: only we can have written our instance into it. */
        unanswered(store, reply->text);
        step_in(store, 50);
        return;
    }
    if (reply->outcome == MST_ETCD_ANSWER && json_is_true(json_object_get(reply->json, "succeeded"))) {
        store->leader_revision = mst_etcd_revision(reply->json);
        won = store->leader_revision > 0;
    } else if (reply->outcome == MST_ETCD_ANSWER && json_array_size(keys) == 1 &&
               mst_etcd_kv_read(json_array_get(keys, 0), &kv) == 0) {
        won = read_leader(store, &kv);
        store->leader_revision = kv.create_revision;
        mst_etcd_kv_clear(&kv);
    }
    if (!won) {
        (void)mst_etcd_call(store->etcd, "lease/revoke", revoke_body(store), etcd_timeout(store), on_revoked, store);
        (void)uv_timer_stop(&store->keep);
        retreat(store);
        return;
    }
    answered(store);
    store->leader_known = false;
    etcd_move(store, ETCD_READING);
    log_notice("coordinator=%u leads: lease %016" PRIx64 " of %" PRIu32 " ms, leader revision %" PRId64, store->conf->id,
               (uint64_t)store->lease, store->ttl_ms, store->leader_revision);
    store->keep_next_ms = mst_now_ms() + KEEP_EVERY(store->ttl_ms);
    (void)uv_timer_start(&store->keep, on_keep, 20, 20);
    etcd_read_begin(store);
}

static void campaign_send(struct etcd_store *store)
{
    char key[ETCD_KEY_BYTES];
    char *value = leader_value(store);
    json_t *txn;

    /* Late: the key could be written after the lease's end, and stay for ever; etcd refuses that, and we would lead with no time left. */
    if (mst_now_ms() >= store->good_until_ms) {
        free(value);
        retreat(store);
        return;
    }
    (void)etcd_key(store, "leader", key);
    txn = mst_etcd_txn(json_pack("[o]", mst_etcd_created(key, 0)),
                       json_pack("[o]", mst_etcd_put(key, value ? value : "", store->lease)),
                       json_pack("[o]", mst_etcd_range(key, NULL, 0)));
    if (!value || mst_etcd_call(store->etcd, "kv/txn", txn, etcd_timeout(store), on_campaigned, store) < 0)
        retreat(store);
    free(value);
}

static void on_granted(void *arg, const struct mst_etcd_reply *reply)
{
    struct etcd_store *store = arg;
    int64_t ttl_s = 0;

    if (store->state != ETCD_GRANTING)
        return;
    if (reply->outcome != MST_ETCD_ANSWER || !mst_etcd_number(reply->json, "ID", &store->lease) || store->lease == 0 ||
        !mst_etcd_number(reply->json, "TTL", &ttl_s) || ttl_s <= 0 || ttl_s > 3600) {
        unanswered(store, reply->outcome == MST_ETCD_ANSWER ? "its lease makes no sense" : reply->text);
        retreat(store);
        return;
    }
    store->ttl_ms = (uint32_t)ttl_s * 1000;
    store->good_until_ms = store->asked_ms + GOOD_PART(store->ttl_ms);
    etcd_move(store, ETCD_CAMPAIGNING);
    campaign_send(store);
}

static void grant_send(struct etcd_store *store)
{
    char ttl[16];

    snprintf(ttl, sizeof(ttl), "%u", store->conf->store->etcd->lease_ms / 1000);
    store->asked_ms = mst_now_ms();
    if (mst_etcd_call(store->etcd, "lease/grant", json_pack("{s:s}", "TTL", ttl), etcd_timeout(store), on_granted, store) < 0)
        retreat(store);
}

/* A member that takes fewer operations than our largest transaction would refuse just the recovery of a full node. */
static void on_probed(void *arg, const struct mst_etcd_reply *reply)
{
    struct etcd_store *store = arg;

    if (store->state != ETCD_PROBING)
        return;
    if (reply->outcome == MST_ETCD_ANSWER) {
        etcd_move(store, ETCD_GRANTING);
        grant_send(store);
        return;
    }
    if (reply->outcome == MST_ETCD_REFUSED && reply->err == -E2BIG) {
        snprintf(store->trouble, sizeof(store->trouble),
                 "%s takes fewer than %u operations in a transaction: start every member of etcd with --max-txn-ops=512",
                 store->conf->store->etcd->endpoints[reply->endpoint], ETCD_TXN_OPS);
        log_error("%s", store->trouble);
        mst_etcd_leave(store->etcd, reply->endpoint);
    } else {
        unanswered(store, reply->text);
    }
    retreat(store);
}

static void probe_send(struct etcd_store *store)
{
    char key[ETCD_KEY_BYTES];
    json_t *reads = json_array();

    (void)etcd_key(store, "leader", key);
    for (unsigned i = 0; i < ETCD_TXN_OPS; i++)
        (void)json_array_append_new(reads,
                                    mst_etcd_range(key, NULL, 0)); /* too few after all: the call fails or the probe is weaker */
    if (json_array_size(reads) != ETCD_TXN_OPS) {
        json_decref(reads);
        retreat(store);
        return;
    }
    if (mst_etcd_call(store->etcd, "kv/txn", mst_etcd_txn(json_array(), reads, json_array()), etcd_timeout(store), on_probed,
                      store) < 0)
        retreat(store);
}

static void on_watched(void *arg, const struct mst_etcd_reply *reply)
{
    struct etcd_store *store = arg;
    const json_t *keys = mst_etcd_keys(reply->json, 0);
    struct mst_etcd_kv kv;

    if (store->state != ETCD_WATCHING)
        return;
    if (reply->outcome != MST_ETCD_ANSWER) {
        unanswered(store, reply->text);
        step_in(store, watch_every_ms(store));
        return;
    }
    if (json_array_size(keys) > 0) {
        answered(store);
        if (mst_etcd_kv_read(json_array_get(keys, 0), &kv) == 0) {
            (void)read_leader(store, &kv);
            mst_etcd_kv_clear(&kv);
        }
        step_in(store, watch_every_ms(store));
        return;
    }
    store->silent = 0;
    store->leader_known = false;
    etcd_move(store, ETCD_PROBING);
    probe_send(store);
}

static void on_step(uv_timer_t *timer)
{
    struct etcd_store *store = timer->data;
    char key[ETCD_KEY_BYTES];
    json_t *body;

    if (store->state == ETCD_CAMPAIGNING) {
        campaign_send(store);
        return;
    }
    /* An old answer only delays us by a round: what decides is the transaction that creates the key. */
    (void)etcd_key(store, "leader", key);
    body = mst_etcd_range(key, NULL, 0);
    if (mst_etcd_call(store->etcd, "kv/range", json_incref(json_object_get(body, "request_range")), etcd_timeout(store),
                      on_watched, store) < 0)
        step_in(store, watch_every_ms(store));
    json_decref(body);
}

static void etcd_campaign(struct mst_store *head, const struct mst_store_events *events, void *arg)
{
    struct etcd_store *store = (struct etcd_store *)head;

    store->events = events;
    store->arg = arg;
    etcd_move(store, ETCD_WATCHING);
    step_in(store, 0);
}

/* --- confirming --- */

struct confirm {
    struct etcd_store *store;
    mst_commit_fn done;
    void *arg;
    bool finished;
    int err;
    char text[MST_WHY_BYTES];
};

/* A write, so that no member can answer it out of what it remembers. */
static json_t *confirm_body(const struct etcd_store *store)
{
    char leader[ETCD_KEY_BYTES], key[ETCD_KEY_BYTES], value[64];

    (void)etcd_key(store, "leader", leader);
    (void)etcd_key(store, "confirmed", key);
    snprintf(value, sizeof(value), "{\"id\":%u,\"instance\":\"%016" PRIx64 "\"}", store->conf->id, store->instance);
    return mst_etcd_txn(json_pack("[o]", mst_etcd_created(leader, store->leader_revision)),
                        json_pack("[o]", mst_etcd_put(key, value, 0)), json_pack("[o]", mst_etcd_range(leader, NULL, 0)));
}

static void confirm_judge(struct confirm *confirm, const struct mst_etcd_reply *reply)
{
    if (reply->outcome != MST_ETCD_ANSWER) {
        confirm->err = -EAGAIN;
        snprintf(confirm->text, sizeof(confirm->text), "leadership is not confirmed: %.300s", reply->text);
    } else if (json_is_true(json_object_get(reply->json, "succeeded"))) {
        confirm->err = 0;
        confirm->text[0] = '\0';
    } else {
        (void)etcd_other_leads(confirm->store, reply->json, 0);
        confirm->err = -ESTALE;
        snprintf(confirm->text, sizeof(confirm->text), "another coordinator leads, or our lease has ended");
    }
    confirm->finished = true;
}

static void on_confirmed(void *arg, const struct mst_etcd_reply *reply)
{
    struct confirm *confirm = arg;
    struct etcd_store *store = confirm->store;

    confirm_judge(confirm, reply);
    if (store->state != ETCD_LOST && confirm->err == -ESTALE)
        etcd_lost(store, "%s", confirm->text);
    else if (store->state != ETCD_LOST)
        confirm->done(confirm->arg, confirm->err, confirm->text);
    free(confirm);
}

static void etcd_confirm(struct mst_store *head, mst_commit_fn done, void *arg)
{
    struct etcd_store *store = (struct etcd_store *)head;
    struct confirm *confirm = MST_MUTANT(47) ? NULL : calloc(1, sizeof(*confirm));

    if (MST_MUTANT(47)) {
        done(arg, 0, "");
        return;
    }
    if (confirm) {
        *confirm = (struct confirm){.store = store, .done = done, .arg = arg};
        if (mst_etcd_call(store->etcd, "kv/txn", confirm_body(store), etcd_timeout(store), on_confirmed, confirm) == 0)
            return;
    }
    free(confirm);
    done(arg, -ENOMEM, "no memory");
}

static void on_confirmed_now(void *arg, const struct mst_etcd_reply *reply)
{
    confirm_judge(arg, reply);
}

static int etcd_confirm_now(struct mst_store *head, struct mst_why *why)
{
    struct etcd_store *store = (struct etcd_store *)head;
    struct confirm confirm = {.store = store, .err = -EAGAIN};

    for (unsigned i = 0; i < store->conf->store->etcd->endpoints_count && confirm.err == -EAGAIN; i++)
        mst_etcd_call_now(store->etcd, "kv/txn", confirm_body(store), etcd_timeout(store), on_confirmed_now, &confirm);
    return confirm.err < 0 ? mst_why_set(why, confirm.err, "%s", confirm.text) : 0;
}

/* --- looking --- */

static bool etcd_leads(const struct mst_store *head)
{
    const struct etcd_store *store = (const struct etcd_store *)head;

    return store->state == ETCD_LEADING && mst_now_ms() < store->good_until_ms;
}

static void etcd_standing(const struct mst_store *head, struct mst_store_standing *ret)
{
    const struct etcd_store *store = (const struct etcd_store *)head;

    ret->leads = etcd_leads(head);
    ret->leader = store->leader_known;
    ret->id = store->leader_id;
    ret->port = store->leader_port;
    memcpy(ret->address, store->leader_address, sizeof(ret->address));
    memcpy(ret->text, store->trouble, sizeof(ret->text));
}

/* --- life --- */

static void on_timer_closed(uv_handle_t *handle)
{
    struct etcd_store *store = handle->data;

    if (--store->closing == 0)
        free(store);
}

static void etcd_close(struct mst_store *head)
{
    struct etcd_store *store = (struct etcd_store *)head;
    uv_timer_t *timers[] = {&store->step, &store->keep, &store->again};

    if (store->state == ETCD_READING || store->state == ETCD_LEADING)
        mst_etcd_call_now(store->etcd, "lease/revoke", revoke_body(store), 1000, on_revoked, store);
    mst_etcd_free(store->etcd);
    etcd_rows_free(store);
    store->closing = 3;
    for (unsigned i = 0; i < 3; i++) {
        (void)uv_timer_stop(timers[i]);
        uv_close((uv_handle_t *)timers[i], on_timer_closed);
    }
}

static const struct mst_store_ops etcd_ops = {.campaign = etcd_campaign,
                                              .load = etcd_load,
                                              .commit = etcd_commit,
                                              .confirm = etcd_confirm,
                                              .confirm_now = etcd_confirm_now,
                                              .leads = etcd_leads,
                                              .standing = etcd_standing,
                                              .close = etcd_close};

int mst_store_etcd_open(uv_loop_t *loop, const struct mst_coordinator_conf *conf, uint64_t instance, struct mst_store **ret_store,
                        struct mst_why *why)
{
    struct etcd_store *store = calloc(1, sizeof(*store));
    int r;

    if (!store)
        return -ENOMEM;
    store->head.ops = &etcd_ops;
    store->loop = loop;
    store->conf = conf;
    store->prefix = conf->store->etcd->prefix;
    store->instance = instance;
    snprintf(store->trouble, sizeof(store->trouble), "etcd has not answered yet");
    r = mst_etcd_new(loop, conf->store->etcd, &store->etcd, why);
    if (r < 0) {
        free(store);
        return r;
    }
    (void)uv_timer_init(loop, &store->step);
    (void)uv_timer_init(loop, &store->keep);
    (void)uv_timer_init(loop, &store->again);
    store->step.data = store->keep.data = store->again.data = store;
    *ret_store = &store->head;
    return 0;
}
