#include "tests/sim/etcd.h"
#include "tests/sim/coord.h"
#include "tests/sim/oracle.h"

#include "coordinator/io/http.h"
#include "coordinator/io/store_json.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Keys are kept as texts, values as they came, in base64: nobody here looks into them, but for the name of a transaction in the meta key. */

void sim_free(void *at);
void *sim_calloc(size_t count, size_t bytes);
void *sim_malloc(size_t bytes);

#define LEASES_MAX 256u

struct key {
    char *name;
    const char *name64, *value64;
    int64_t created, modified, lease;
    uint64_t at_ns; /* written last */
};

struct lease {
    int64_t id; /* 0: free */
    uint64_t ttl_ns, end_ns;
};

static struct {
    struct key *keys; /* by name */
    unsigned count, room;
    int64_t revision, next_lease;
    struct lease leases[LEASES_MAX];
    bool majority;
    int64_t leader_modified; /* of the leader key, whose writer is known */
    uint64_t leader_instance;
} E;
struct sim_etcd_faults sim_etcd_faults;

/* --- who reaches whom: over the network that is not RDMA --- */

static bool way(unsigned from, unsigned to)
{
    return W->hosts[from].powered && W->hosts[to].powered && W->net.blocked[from][to] == 0;
}

static bool member_up(unsigned member)
{
    return W->hosts[W->conf.nodes + member].powered && sim_etcd_faults.down[member] == 0;
}

/* It has a majority: itself and those it talks with. */
static bool member_serves(unsigned member)
{
    unsigned at = W->conf.nodes + member, seen = 0;

    for (unsigned i = 0; member_up(member) && i < W->conf.coords; i++)
        seen += member_up(i) && way(at, W->conf.nodes + i) && way(W->conf.nodes + i, at);
    return 2 * seen > W->conf.coords;
}

bool sim_etcd_majority(void)
{
    for (unsigned i = 0; i < W->conf.coords; i++) {
        if (member_serves(i))
            return true;
    }
    return false;
}

/* --- keys --- */

static char *keep_text(const char *text)
{
    size_t n = strlen(text) + 1;

    return memcpy(sim_keep(n), text, n);
}

/* Decoded; to be given back with sim_free. */
static char *decoded(const json_t *text64)
{
    const char *text = json_string_value(text64);
    char *name = NULL;
    size_t n;

    if (!text || mst_base64_read(text, &name, &n) < 0)
        abort(); /* the product's own encoder wrote it */
    return name;
}

static unsigned place_of(const char *name)
{
    unsigned low = 0, high = E.count;

    while (low < high) {
        unsigned middle = (low + high) / 2;

        if (strcmp(E.keys[middle].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct key *key_find(const char *name)
{
    unsigned at = place_of(name);

    return at < E.count && strcmp(E.keys[at].name, name) == 0 ? &E.keys[at] : NULL;
}

static void key_put(const char *name, const char *name64, const char *value64, int64_t lease)
{
    unsigned at = place_of(name);
    struct key *key = key_find(name);

    if (!key) {
        if (E.count == E.room) {
            unsigned room = E.room ? 2 * E.room : 256;
            struct key *keys = sim_keep(room * sizeof(*keys));

            if (E.count > 0)
                memcpy(keys, E.keys, E.count * sizeof(*keys));
            E.keys = keys;
            E.room = room;
        }
        memmove(&E.keys[at + 1], &E.keys[at], (E.count - at) * sizeof(*key));
        E.count++;
        key = &E.keys[at];
        *key = (struct key){.name = keep_text(name), .name64 = keep_text(name64), .created = E.revision};
    }
    key->value64 = keep_text(value64);
    key->modified = E.revision;
    key->at_ns = K.now_ns;
    key->lease = lease;
}

static void keys_delete(unsigned from, unsigned to)
{
    memmove(&E.keys[from], &E.keys[to], (E.count - to) * sizeof(*E.keys));
    E.count -= to - from;
}

/* --- leases --- */

static struct lease *lease_find(int64_t id)
{
    for (unsigned i = 0; id != 0 && i < LEASES_MAX; i++) {
        if (E.leases[i].id == id)
            return &E.leases[i];
    }
    return NULL;
}

static void lease_end(struct lease *lease)
{
    bool any = false;

    for (unsigned i = 0; i < E.count; i++)
        any = any || E.keys[i].lease == lease->id;
    E.revision += any;
    for (unsigned i = 0; i < E.count; i++) {
        if (E.keys[i].lease == lease->id) {
            keys_delete(i, i + 1);
            i--;
        }
    }
    lease->id = 0;
}

/* By the clock of etcd's leader. */
static uint64_t by_its_clock(uint64_t ns)
{
    return (uint64_t)((double)ns / (1.0 + (double)sim_etcd_faults.drift_ppm / 1e6));
}

static void leases_expire(void)
{
    for (unsigned i = 0; i < LEASES_MAX; i++) {
        if (E.leases[i].id != 0 && K.now_ns >= E.leases[i].end_ns)
            lease_end(&E.leases[i]);
    }
}

/* Nobody ends leases while there is no majority, and the leader after it begins them anew. */
static void majority_event(void *arg)
{
    bool now = sim_etcd_majority();

    (void)arg;
    for (unsigned i = 0; now && !E.majority && i < LEASES_MAX; i++) {
        if (E.leases[i].id != 0)
            E.leases[i].end_ns = K.now_ns + by_its_clock(E.leases[i].ttl_ns);
    }
    if (now != E.majority)
        sim_say("etcd has %s", now ? "a majority again" : "no majority");
    E.majority = now;
    sim_at(NULL, 100 * SIM_MS, majority_event, NULL);
}

/* Which coordinator wrote it. */
static uint64_t instance_in(const struct key *key)
{
    char *value;
    json_t *json;
    const char *text;
    uint64_t instance;
    size_t n;

    if (!key || mst_base64_read(key->value64, &value, &n) < 0)
        return 0;
    json = json_loads(value, 0, NULL);
    text = json_string_value(json_object_get(json, "instance"));
    instance = text ? strtoull(text, NULL, 16) : 0;
    json_decref(json);
    sim_free(value);
    return instance;
}

uint64_t sim_etcd_leader(void)
{
    const struct key *key;

    if (E.majority)
        leases_expire();
    key = key_find("/mainstay/sim/leader");
    if (key && key->modified != E.leader_modified) {
        E.leader_instance = instance_in(key);
        E.leader_modified = key->modified;
    }
    return key ? E.leader_instance : 0;
}

uint64_t sim_etcd_confirmed(uint64_t instance)
{
    const struct key *leader = key_find("/mainstay/sim/leader"), *key = key_find("/mainstay/sim/confirmed");
    uint64_t led_ns = leader && instance_in(leader) == instance ? leader->at_ns : 0;
    uint64_t asked_ns = key && instance_in(key) == instance ? key->at_ns : 0;

    return asked_ns > led_ns ? asked_ns : led_ns;
}

/* --- requests --- */

static json_t *number(int64_t value)
{
    char text[24];

    snprintf(text, sizeof(text), "%" PRId64, value);
    return json_string(text);
}

static int64_t number_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));

    return text ? strtoll(text, NULL, 10) : 0;
}

static json_t *header(void)
{
    return json_pack("{s:o}", "revision", number(E.revision));
}

static json_t *range(const json_t *ask)
{
    char *from = decoded(json_object_get(ask, "key"));
    char *end = json_object_get(ask, "range_end") ? decoded(json_object_get(ask, "range_end")) : NULL;
    int64_t limit = number_of(ask, "limit");
    json_t *list = json_array();
    bool more = false;

    for (unsigned i = place_of(from); i < E.count && (end ? strcmp(E.keys[i].name, end) < 0 : strcmp(E.keys[i].name, from) == 0);
         i++) {
        const struct key *key = &E.keys[i];

        more = limit != 0 && (int64_t)json_array_size(list) == limit;
        if (more)
            break;
        (void)json_array_append_new(list,
                                    json_pack("{s:s,s:o,s:o,s:s}", "key", key->name64, "create_revision", number(key->created),
                                              "mod_revision", number(key->modified), "value", key->value64));
    }
    sim_free(from);
    sim_free(end);
    return more ? json_pack("{s:o,s:b}", "kvs", list, "more", 1) : json_pack("{s:o}", "kvs", list);
}

static bool holds(const json_t *condition)
{
    char *name = decoded(json_object_get(condition, "key"));
    const struct key *key = key_find(name);
    bool created = json_object_get(condition, "create_revision") != NULL;
    int64_t wanted = number_of(condition, created ? "create_revision" : "mod_revision");

    sim_free(name);
    return wanted == (!key ? 0 : created ? key->created : key->modified);
}

static json_t *operate(const json_t *operation)
{
    const json_t *put = json_object_get(operation, "request_put"), *drop = json_object_get(operation, "request_delete_range");
    char *name, *end;

    if (put) {
        name = decoded(json_object_get(put, "key"));
        key_put(name, json_string_value(json_object_get(put, "key")), json_string_value(json_object_get(put, "value")),
                number_of(put, "lease"));
        sim_free(name);
        return json_pack("{s:{}}", "response_put");
    }
    if (drop) {
        unsigned from, to;

        name = decoded(json_object_get(drop, "key"));
        end = json_object_get(drop, "range_end") ? decoded(json_object_get(drop, "range_end")) : NULL;
        from = place_of(name);
        to = end ? place_of(end) : from + (key_find(name) != NULL);
        if (to > from)
            keys_delete(from, to);
        sim_free(name);
        sim_free(end);
        return json_pack("{s:{}}", "response_delete_range");
    }
    return json_pack("{s:o}", "response_range", range(json_object_get(operation, "request_range")));
}

/* The transaction of a coordinator, if this is one: its name is in the meta key. */
static bool is_meta(const json_t *put)
{
    char *name = put ? decoded(json_object_get(put, "key")) : NULL;
    bool is = name && strcmp(name, "/mainstay/sim/meta") == 0;

    sim_free(name);
    return is;
}

static void tell_commit(const json_t *operations)
{
    for (size_t i = 0; i < json_array_size(operations); i++) {
        const json_t *put = json_object_get(json_array_get(operations, i), "request_put");
        json_t *meta;
        char *value;

        if (!is_meta(put))
            continue;
        value = decoded(json_object_get(put, "value"));
        meta = json_loads(value, 0, NULL);
        sim_free(value);
        sim_coord_applied(json_string_value(json_object_get(meta, "commit")));
        json_decref(meta);
        return;
    }
}

static json_t *txn(const json_t *ask)
{
    const json_t *conditions = json_object_get(ask, "compare"), *operations, *one;
    json_t *responses = json_array();
    bool good = true;
    size_t i;

    json_array_foreach(conditions, i, one) good = good && holds(one);
    operations = json_object_get(ask, good ? "success" : "failure");
    json_array_foreach(operations, i, one)
    {
        int64_t lease = number_of(json_object_get(one, "request_put"), "lease");

        if (lease != 0 && !lease_find(lease)) {
            json_decref(responses);
            return json_pack("{s:s,s:i}", "error", "etcdserver: requested lease not found", "code", 5);
        }
    }
    if (good)
        tell_commit(operations);
    json_array_foreach(operations, i, one)
    {
        if (!json_object_get(one, "request_range")) {
            E.revision++; /* of the whole transaction */
            break;
        }
    }
    json_array_foreach(operations, i, one)(void) json_array_append_new(responses, operate(one));
    return json_pack("{s:o,s:b,s:o}", "header", header(), "succeeded", good, "responses", responses);
}

static json_t *lease_grant(const json_t *ask)
{
    for (unsigned i = 0; i < LEASES_MAX; i++) {
        struct lease *lease = &E.leases[i];

        if (lease->id != 0)
            continue;
        lease->id = ++E.next_lease;
        lease->ttl_ns = (uint64_t)number_of(ask, "TTL") * SIM_S;
        lease->end_ns = K.now_ns + by_its_clock(lease->ttl_ns);
        return json_pack("{s:o,s:o,s:o}", "header", header(), "ID", number(lease->id), "TTL",
                         number((int64_t)(lease->ttl_ns / SIM_S)));
    }
    abort(); /* leases end */
}

static json_t *serve(const char *path, const json_t *ask)
{
    struct lease *lease;
    json_t *answer;

    leases_expire();
    if (strcmp(path, "kv/range") == 0) {
        answer = range(ask);
        (void)json_object_set_new(answer, "header", header());
        return answer;
    }
    if (strcmp(path, "kv/txn") == 0)
        return txn(ask);
    if (strcmp(path, "lease/grant") == 0)
        return lease_grant(ask);
    lease = lease_find(number_of(ask, "ID"));
    if (strcmp(path, "lease/keepalive") == 0) {
        if (!lease)
            return json_pack("{s:{s:o,s:o}}", "result", "header", header(), "ID", number(number_of(ask, "ID")));
        lease->end_ns = K.now_ns + by_its_clock(lease->ttl_ns);
        return json_pack("{s:{s:o,s:o,s:o}}", "result", "header", header(), "ID", number(lease->id), "TTL",
                         number((int64_t)(lease->ttl_ns / SIM_S)));
    }
    if (strcmp(path, "lease/revoke") != 0)
        abort(); /* the product asks for nothing else */
    if (lease)
        lease_end(lease);
    return json_pack("{s:o}", "header", header());
}

/* The answer's text, of the run. */
static char *serve_text(const char *path, const char *body)
{
    json_t *ask = json_loads(body, 0, NULL), *answer = serve(path, ask);
    char *text = json_dumps(answer, JSON_COMPACT), *kept;

    if (!ask || !answer || !text)
        abort();
    kept = keep_text(text);
    json_decref(ask);
    json_decref(answer);
    sim_free(text);
    return kept;
}

/* --- the seam: coordinator/io/http.h --- */

struct mst_http {
    struct mst_http_call *calls; /* under way */
};

struct mst_http_call { /* of the run, not of the process */
    struct mst_http_call *next;
    struct sim_proc *proc;
    uint64_t life; /* of it: another is nobody's to call */
    unsigned from, member;
    char path[32];
    const char *body;
    char *answer;
    uint64_t begun_ns, timeout_ns;
    mst_http_fn done;
    void *arg;
    bool dropped, told;
    unsigned tries;
    struct mst_http_reply reply;
};

int mst_http_new(uv_loop_t *loop, const struct mst_http_tls *tls, struct mst_http **ret_http, struct mst_why *why)
{
    (void)loop, (void)tls, (void)why;
    *ret_http = sim_calloc(1, sizeof(**ret_http));
    return 0;
}

void mst_http_free(struct mst_http *http)
{
    for (struct mst_http_call *call = http ? http->calls : NULL; call; call = call->next)
        call->dropped = true;
    sim_free(http);
}

void mst_http_drop(struct mst_http_call *call)
{
    call->dropped = true;
}

static void call_tells(void *arg)
{
    struct mst_http_call *call = arg;

    if (call->told || call->dropped || call->proc->life != call->life)
        return;
    call->told = true;
    if (sim_point("store.answered"))
        return;
    call->done(call->arg, &call->reply);
}

/* What the client learns, and when. */
static void tell_failed(struct mst_http_call *call, int err, bool not_sent, bool at_once)
{
    uint64_t passed = K.now_ns - call->begun_ns;
    uint64_t wait = at_once || passed >= call->timeout_ns ? sim_between(50, 500) * SIM_US : call->timeout_ns - passed;

    call->reply = (struct mst_http_reply){.err = err, .not_sent = not_sent, .text = strerror(-err)};
    sim_at(call->proc, wait, call_tells, call);
}

static void tell_text(struct mst_http_call *call, long status, char *text)
{
    call->answer = text;
    call->reply = (struct mst_http_reply){.status = status, .body = text, .bytes = strlen(text)};
    sim_at(call->proc, sim_between(50, 900) * SIM_US, call_tells, call);
}

static bool back_lost(const struct mst_http_call *call)
{
    return !way(W->conf.nodes + call->member, call->from) || sim_chance(sim_etcd_faults.lost) || sim_chance(2);
}

/* At a member. */
static void call_served(void *arg)
{
    struct mst_http_call *call = arg;
    bool late = K.now_ns - call->begun_ns > call->timeout_ns;
    char *text;

    if (!member_serves(call->member)) {
        /* A proposal may linger and be done when nobody waits any more. */
        if (call->tries++ < 3 && sim_dice(2)) {
            sim_at(NULL, sim_between(200, 2500) * SIM_MS, call_served, call);
            return;
        }
        if (late || back_lost(call))
            tell_failed(call, -ETIMEDOUT, false, late);
        else
            tell_text(call, 503, keep_text("{\"error\":\"etcdserver: request timed out\",\"code\":14}"));
        return;
    }
    text = serve_text(call->path, call->body);
    if (late || back_lost(call))
        tell_failed(call, -ETIMEDOUT, false, late);
    else
        tell_text(call, strncmp(text, "{\"error\"", 8) == 0 ? 400 : 200, text);
}

static void call_arrives(void *arg)
{
    struct mst_http_call *call = arg;
    unsigned at = W->conf.nodes + call->member;

    if (!way(call->from, at)) {
        if (sim_dice(2))
            tell_failed(call, -ETIMEDOUT, true, false); /* no connection was made */
        else
            tell_failed(call, -ETIMEDOUT, false, false); /* over one that there was */
        return;
    }
    if (!member_up(call->member)) {
        tell_failed(call, -ECONNREFUSED, true, true);
        return;
    }
    if (sim_chance(sim_etcd_faults.late)) {
        tell_failed(call, -ETIMEDOUT, false, false);
        call->timeout_ns = 0; /* whoever waited is told by then */
        sim_at(NULL, sim_between(20, 4000) * SIM_MS, call_served, call);
        return;
    }
    call_served(call);
}

static struct mst_http_call *call_new(const char *url, const char *body, uint32_t timeout_ms, mst_http_fn done, void *arg)
{
    struct mst_http_call *call = sim_keep(sizeof(*call));

    *call = (struct mst_http_call){.proc = K.current, .from = K.current->host, .body = keep_text(body), .done = done, .arg = arg};
    call->life = K.current->life;
    call->begun_ns = K.now_ns;
    call->timeout_ns = sim_world_ns(sim_here(), timeout_ms * SIM_MS);
    if (sscanf(url, "http://etcd-%u/v3/%31s", &call->member, call->path) != 2 || call->member >= W->conf.coords)
        abort(); /* endpoints are world.c's */
    return call;
}

struct mst_http_call *mst_http_post(struct mst_http *http, const char *url, const char *body, uint32_t timeout_ms,
                                    mst_http_fn done, void *arg)
{
    struct mst_http_call *call = call_new(url, body, timeout_ms, done, arg);

    if (sim_muted() || sim_point("store.asked"))
        return call;
    call->next = http->calls;
    http->calls = call;
    sim_at(NULL, sim_between(150, 4000) * SIM_US, call_arrives, call);
    return call;
}

/* Without the time that the waiting takes. */
void mst_http_post_now(struct mst_http *http, const char *url, const char *body, uint32_t timeout_ms, mst_http_fn done, void *arg)
{
    struct mst_http_call *call = call_new(url, body, timeout_ms, done, arg);
    char *text;

    (void)http;
    if (sim_muted() || !way(call->from, W->conf.nodes + call->member) || !member_up(call->member) ||
        !member_serves(call->member) || sim_chance(sim_etcd_faults.late)) {
        call->reply = (struct mst_http_reply){.err = -ETIMEDOUT, .text = "timed out"};
    } else {
        text = serve_text(call->path, call->body);
        if (back_lost(call))
            call->reply = (struct mst_http_reply){.err = -ETIMEDOUT, .text = "timed out"};
        else
            call->reply = (struct mst_http_reply){.status = 200, .body = text, .bytes = strlen(text)};
    }
    done(arg, &call->reply);
}

void sim_etcd_begin(void)
{
    json_set_alloc_funcs(sim_malloc, sim_free);
    json_object_seed(1);
    memset(&E, 0, sizeof(E));
    memset(&sim_etcd_faults, 0, sizeof(sim_etcd_faults));
    E.revision = 1;
    E.majority = true;
    if (W->conf.coords > 1)
        sim_at(NULL, 100 * SIM_MS, majority_event, NULL);
}
