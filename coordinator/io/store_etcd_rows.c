#include "coordinator/io/store_etcd.h"

#include "base/fault.h"
#include "base/log.h"
#include "base/mutant.h"
#include "coordinator/io/store_json.h"
#include "coordinator/io/store_rows.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Rows: one key each below PREFIX, its value a JSON object. One transaction of the core is one transaction of etcd, under two conditions:
 *     create_revision of PREFIX/leader  is what it was when we became leader
 *     mod_revision of PREFIX/meta       is what we wrote or read last
 * Every transaction writes the meta key, with its own number in it. So a leader that is one no more commits nothing, a transaction cannot be done twice,
 * and one whose answer was lost is settled by the next: a transaction that only rewrites the meta key under the same conditions.
 *     it goes through      the one in doubt has not been done, and never will be: its condition on the meta key is broken
 *     it does not          the meta key says whose number it has: the one in doubt was done, or an earlier try to settle it
 * Reading the meta key alone would settle nothing, because what is in doubt may still be on its way. */

#define PAGE_ROWS 256u
#define AGAIN_MS  50u

/* --- meta key --- */

static void commit_name(const struct etcd_store *store, unsigned resolve, char buf[static 64])
{
    int n = snprintf(buf, 64, "%016" PRIx64 "-%" PRIu64, store->instance, store->commits);

    if (resolve > 0)
        snprintf(buf + n, 64 - (size_t)n, "-settled%u", resolve);
}

static char *meta_value(const struct etcd_store *store, const struct mst_meta_row *meta, const char *name)
{
    struct mst_row row = {.kind = MST_ROW_META};
    json_t *value;
    char *text;

    if (meta)
        row.meta = *meta;
    value = json_pack("{s:i,s:s,s:b,s:o}", "schema", ETCD_SCHEMA_VERSION, "commit", name, "migrating", store->migrating, "row",
                      meta ? mst_row_json(&row) : json_null());
    text = value ? json_dumps(value, JSON_COMPACT) : NULL;
    json_decref(value);
    return text;
}

/* ret_name: the number of the transaction that wrote it. */
static int meta_read(struct etcd_store *store, const struct mst_etcd_kv *kv, char ret_name[static 64], struct mst_why *why)
{
    json_t *value = json_loadb(kv->value, kv->value_bytes, JSON_REJECT_DUPLICATES, NULL);
    const char *name = json_string_value(json_object_get(value, "commit"));
    const json_t *row_json = json_object_get(value, "row");
    struct mst_definition *none = malloc(sizeof(*none));
    struct mst_row row = {0};
    int r = none ? 0 : -ENOMEM;

    if (r == 0 && json_integer_value(json_object_get(value, "schema")) > ETCD_SCHEMA_VERSION)
        r = mst_why_set(why, -EPROTONOSUPPORT, "%s in etcd was written by a newer version of mainstay", store->prefix);
    else if (r == 0 && (!name || strlen(name) >= 64 || !json_is_integer(json_object_get(value, "schema"))))
        r = mst_why_set(why, -EBADMSG, "%s in etcd does not check: the store is damaged", kv->key);
    else if (r == 0 && json_is_true(json_object_get(value, "migrating")) && !store->may_migrate)
        r = mst_why_set(why, -EINPROGRESS,
                        "%s in etcd is a copy that was not finished: run the migration again, or remove all keys below it",
                        store->prefix);
    store->unfinished = json_is_true(json_object_get(value, "migrating"));
    if (r == 0)
        snprintf(ret_name, 64, "%s", name);
    if (r == 0 && !json_is_null(row_json)) {
        r = mst_row_read(MST_ROW_META, row_json, &row, none);
        if (r < 0)
            mst_why_set(why, r, "%s in etcd does not check: the store is damaged", kv->key);
        store->meta = row.meta;
        store->meta_known = r == 0;
    }
    json_decref(value);
    free(none);
    return r;
}

/* --- recoveries that must not be pruned --- */

static void note_recovery(struct etcd_store *store, const struct mst_row *row)
{
    unsigned at = 0;

    if (row->kind != MST_ROW_RECOVERY)
        return;
    while (at < store->open_count && store->open[at] != row->recovery.id)
        at++;
    if (row->recovery.state == MST_REC_DONE) {
        if (at < store->open_count)
            store->open[at] = store->open[--store->open_count];
    } else if (at == store->open_count) {
        if (at < ETCD_OPEN_MAX)
            store->open[store->open_count++] = row->recovery.id;
        else
            store->open_overflow = true; /* then nothing is pruned until the next leader has read them all */
    }
}

static uint64_t prune_below(uint64_t newest)
{
    return newest > ETCD_HISTORY_KEPT ? newest - ETCD_HISTORY_KEPT : 0;
}

static void prune_table(const struct etcd_store *store, const char *table, uint64_t below, json_t *then)
{
    char name[64], from[ETCD_KEY_BYTES], to[ETCD_KEY_BYTES];

    if (below == 0)
        return;
    snprintf(name, sizeof(name), "%s/", table);
    (void)etcd_key(store, name, from);
    snprintf(name, sizeof(name), "%s/%016" PRIx64, table, below);
    (void)etcd_key(store, name, to);
    (void)json_array_append_new(then, mst_etcd_delete(from, to)); /* history that stays longer does no harm */
}

static void prune(const struct etcd_store *store, const struct mst_txn *txn, const struct mst_meta_row *meta, json_t *then)
{
    uint64_t recoveries = prune_below(meta->next_recovery);

    if (!mst_txn_prunes(txn))
        return;
    for (unsigned i = 0; i < store->open_count; i++)
        recoveries = store->open[i] < recoveries ? store->open[i] : recoveries;
    if (store->open_overflow)
        recoveries = 0;
    prune_table(store, "faults", prune_below(meta->next_fault), then);
    prune_table(store, "proofs", prune_below(meta->next_proof), then);
    prune_table(store, "recovery_steps", recoveries, then);
    prune_table(store, "recovery_vms", recoveries, then);
    prune_table(store, "recoveries", recoveries, then);
}

/* --- building a transaction --- */

static int append(json_t *list, json_t *operation)
{
    return json_array_append_new(list, operation); /* -1 also when operation is NULL: no memory */
}

/* etcd refuses a transaction that names a key twice, and the core may replace a row that it has just staged: the last one counts. */
static int place(json_t *then, json_t *seen, const char *key, json_t *operation)
{
    const json_t *at = json_object_get(seen, key);

    if (at)
        return json_array_set_new(then, (size_t)json_integer_value(at), operation);
    if (json_object_set_new(seen, key, json_integer((json_int_t)json_array_size(then))) < 0) {
        json_decref(operation);
        return -1;
    }
    return append(then, operation);
}

static int place_row(const struct etcd_store *store, const struct mst_row *row, json_t *then, json_t *seen)
{
    char name[MST_ROW_KEY_BYTES], key[ETCD_KEY_BYTES], end[ETCD_KEY_BYTES];
    json_t *value;
    char *text;
    int r;

    if (row->kind == MST_ROW_VM_DELETE) {
        snprintf(name, sizeof(name), "vms/%s", row->vm_delete);
        (void)etcd_key(store, name, key);
        r = place(then, seen, key, mst_etcd_delete(key, NULL));
        snprintf(name, sizeof(name), "definitions/%s", row->vm_delete);
        (void)etcd_key(store, name, key);
        r = r < 0 ? r : place(then, seen, key, mst_etcd_delete(key, NULL));
        snprintf(name, sizeof(name), "mirrors/%s0", row->vm_delete); /* '0' follows '/' */
        (void)etcd_key(store, name, end);
        snprintf(name, sizeof(name), "mirrors/%s/", row->vm_delete);
        (void)etcd_key(store, name, key);
        return r < 0 ? r : place(then, seen, key, mst_etcd_delete(key, end));
    }
    if (mst_row_key(row, name, sizeof(name)) < 0)
        return -1;
    (void)etcd_key(store, name, key);
    value = mst_row_json(row);
    text = value ? json_dumps(value, JSON_COMPACT) : NULL;
    json_decref(value);
    r = text ? place(then, seen, key, mst_etcd_put(key, text, 0)) : -1;
    free(text);
    return r;
}

static const struct mst_meta_row *meta_after(const struct etcd_store *store, const struct mst_txn *txn)
{
    const struct mst_meta_row *meta = store->meta_known ? &store->meta : NULL;

    for (uint32_t i = 0; txn && i < txn->count; i++) {
        if (txn->rows[i].kind == MST_ROW_META)
            meta = &txn->rows[i].meta;
    }
    return meta;
}

static int wipe_table(const struct etcd_store *store, const char *table, json_t *then)
{
    char name[64], from[ETCD_KEY_BYTES], to[ETCD_KEY_BYTES];

    snprintf(name, sizeof(name), "%s/", table);
    (void)etcd_key(store, name, from);
    snprintf(name, sizeof(name), "%s0", table); /* '0' follows '/' */
    return append(then, mst_etcd_delete(from, etcd_key(store, name, to)));
}

/* The transaction; txn NULL: the one that settles. NULL: no memory. */
static json_t *build(const struct etcd_store *store, const struct mst_txn *txn, unsigned resolve)
{
    const struct mst_meta_row *meta = meta_after(store, txn);
    char leader[ETCD_KEY_BYTES], meta_key[ETCD_KEY_BYTES], name[64];
    json_t *then = json_array();
    json_t *seen = json_object();
    char *value;
    int r = 0;

    (void)etcd_key(store, "leader", leader);
    (void)etcd_key(store, "meta", meta_key);
    commit_name(store, resolve, name);
    value = meta_value(store, meta, name);
    if (!value || append(then, mst_etcd_put(meta_key, value, 0)) < 0)
        r = -ENOMEM;
    free(value);
    for (uint32_t i = 0; r == 0 && txn && i < txn->count; i++) {
        if (txn->rows[i].kind != MST_ROW_META)
            r = place_row(store, &txn->rows[i], then, seen);
    }
    json_decref(seen);
    for (unsigned i = 1; r == 0 && txn && store->wipe && i < MST_TABLES; i++)
        r = wipe_table(store, mst_tables[i].name, then);
    if (r == 0 && txn && meta)
        prune(store, txn, meta, then);
    if (r != 0) {
        json_decref(then);
        return NULL;
    }
    if (MST_MUTANT(44))
        return mst_etcd_txn(json_array(), then, json_array());
    return mst_etcd_txn(
        json_pack("[o,o]", mst_etcd_created(leader, store->leader_revision), mst_etcd_modified(meta_key, store->meta_revision)),
        then, json_pack("[o,o]", mst_etcd_range(leader, NULL, 0), mst_etcd_range(meta_key, NULL, 0)));
}

/* --- committing --- */

static void finish(struct etcd_store *store, int err, const char *text)
{
    const struct mst_txn *txn = store->commit.txn;
    const struct mst_meta_row *meta = meta_after(store, txn);

    store->commit.txn = NULL;
    if (err == 0) {
        for (uint32_t i = 0; i < txn->count; i++)
            note_recovery(store, &txn->rows[i]);
        store->wipe = false;
        store->meta_known = meta != NULL;
        if (meta)
            store->meta = *meta;
    }
    store->commit.done(store->commit.arg, err, text);
}

static void send_now(struct etcd_store *store);

static void send_again(struct etcd_store *store)
{
    (void)uv_timer_start(&store->again, etcd_on_again, AGAIN_MS, 0);
}

void etcd_on_again(uv_timer_t *timer)
{
    send_now(timer->data);
}

/* From now on it has to be settled before anything else is decided. */
static void in_doubt(struct etcd_store *store, int err, const char *text)
{
    if (!store->commit.resolving) {
        store->commit.err = err;
        snprintf(store->commit.text, sizeof(store->commit.text), "%s", text);
        log_warning("commit %" PRIu64 " is in doubt (%s): it is settled before anything else is decided", store->commits, text);
    }
    store->commit.resolving = true;
    send_again(store);
}

/* A condition did not hold: who wrote the meta key? */
static void judge_refused(struct etcd_store *store, const json_t *answer)
{
    const json_t *keys = mst_etcd_keys(answer, 1);
    char ours[64], name[64];
    struct mst_why why = {0};
    struct mst_etcd_kv kv;
    int64_t revision;
    size_t n;
    int r;

    if (etcd_other_leads(store, answer, 0)) {
        etcd_lost(store, "another coordinator leads, or our lease has ended");
        return;
    }
    r = json_array_size(keys) == 1 ? mst_etcd_kv_read(json_array_get(keys, 0), &kv) : -EBADMSG;
    if (r < 0) {
        etcd_lost(store, "the meta key is gone: somebody else has written to the store");
        return;
    }
    revision = kv.mod_revision;
    r = meta_read(store, &kv, name, &why);
    mst_etcd_kv_clear(&kv);
    commit_name(store, 0, ours);
    n = strlen(ours);
    if (r < 0 || strncmp(name, ours, n) != 0 || (name[n] != '\0' && name[n] != '-')) {
        etcd_lost(store, "the meta key is not as we left it: somebody else has written to the store (%s)",
                  r < 0 ? why.text : name);
        return;
    }
    store->meta_revision = revision;
    if (name[n] == '\0') {
        log_notice("commit %" PRIu64 " is settled: it was done", store->commits);
        finish(store, 0, "");
    } else {
        log_notice("commit %" PRIu64 " is settled: it was not done", store->commits);
        finish(store, store->commit.err, store->commit.text);
    }
}

static void on_settled(struct etcd_store *store, const struct mst_etcd_reply *reply)
{
    if (reply->outcome == MST_ETCD_UNKNOWN || reply->outcome == MST_ETCD_NOT_SENT) {
        send_again(store);
        return;
    }
    if (reply->outcome == MST_ETCD_REFUSED) { /* nothing is written at all now: the quota of etcd's database */
        if (store->commit.err != reply->err)
            send_again(store);
        else
            finish(store, reply->err, reply->text);
        return;
    }
    if (!json_is_true(json_object_get(reply->json, "succeeded"))) {
        judge_refused(store, reply->json);
        return;
    }
    store->meta_revision = mst_etcd_revision(reply->json);
    log_notice("commit %" PRIu64 " is settled: it was not done, and will not be", store->commits);
    finish(store, store->commit.err, store->commit.text);
}

static void on_committed(void *arg, const struct mst_etcd_reply *reply)
{
    struct etcd_store *store = arg;

    if (store->state == ETCD_LOST || !store->commit.txn)
        return;
    if (store->commit.resolving) {
        on_settled(store, reply);
        return;
    }
    MST_POINT("store.etcd.answered");
    switch (reply->outcome) {
    case MST_ETCD_ANSWER:
        if (!json_is_true(json_object_get(reply->json, "succeeded"))) {
            store->commit.err = -EIO;
            judge_refused(store, reply->json);
            return;
        }
        store->meta_revision = mst_etcd_revision(reply->json);
        finish(store, 0, "");
        break;
    case MST_ETCD_NOT_SENT:
        send_again(store);
        break;
    case MST_ETCD_REFUSED:
        /* A member with a lower limit of operations than the others; one that takes them may be next. */
        if (reply->err == -E2BIG && ++store->commit.refusals < store->conf->store->etcd->endpoints_count) {
            mst_etcd_leave(store->etcd, reply->endpoint);
            send_again(store);
            break;
        }
        in_doubt(store, reply->err, reply->text);
        break;
    default:
        if (MST_MUTANT(48))
            finish(store, 0, "");
        else
            in_doubt(store, reply->err, reply->text);
    }
}

static void send_now(struct etcd_store *store)
{
    const struct mst_txn *txn = store->commit.resolving ? NULL : store->commit.txn;
    json_t *body;

    if (store->commit.resolving)
        store->commit.resolves++;
    body = build(store, txn, store->commit.resolves);
    MST_POINT("store.etcd.before_send");
    if (mst_etcd_call(store->etcd, "kv/txn", body, etcd_timeout(store), on_committed, store) < 0)
        send_again(store);
}

void etcd_commit(struct mst_store *head, const struct mst_txn *txn, mst_commit_fn done, void *arg)
{
    struct etcd_store *store = (struct etcd_store *)head;

    store->commits++;
    memset(&store->commit, 0, sizeof(store->commit));
    store->commit.txn = txn;
    store->commit.done = done;
    store->commit.arg = arg;
    if (store->state == ETCD_LEADING)
        send_now(store);
}

/* --- reading --- */

static void read_send(struct etcd_store *store);

static int keep_row(struct etcd_store *store, const struct mst_etcd_kv *kv)
{
    const struct mst_table *table = &mst_tables[store->table];
    struct mst_definition *def = calloc(1, sizeof(*def));
    json_t *value = json_loadb(kv->value, kv->value_bytes, JSON_REJECT_DUPLICATES, NULL);
    struct etcd_loaded *at;
    char name[MST_ROW_KEY_BYTES], key[ETCD_KEY_BYTES];
    int r = -ENOMEM;

    if (!def)
        goto out;
    if (store->loaded_count == store->loaded_room) {
        size_t room = store->loaded_room ? 2 * store->loaded_room : 256;

        at = realloc(store->loaded, room * sizeof(*at));
        if (!at)
            goto out;
        store->loaded = at;
        store->loaded_room = room;
    }
    at = &store->loaded[store->loaded_count];
    r = mst_row_read(table->kind, value, &at->row, def);
    /* A row under another's name would be two rows of one thing. */
    if (r == 0 && (mst_row_key(&at->row, name, sizeof(name)) < 0 || strcmp(etcd_key(store, name, key), kv->key) != 0))
        r = -EBADMSG;
    if (r < 0) {
        mst_why_set(&store->load_why, r, "%s in etcd does not check: the store is damaged", kv->key);
        goto out;
    }
    at->definition = NULL;
    if (table->kind == MST_ROW_DEFINITION) {
        at->definition = def;
        def = NULL;
    }
    store->loaded_count++;
    note_recovery(store, &at->row);
out:
    json_decref(value);
    free(def);
    return r;
}

static void read_end(struct etcd_store *store, int err)
{
    store->load_err = err;
    etcd_move(store, ETCD_LEADING);
    log_notice("coordinator=%u has read %zu rows from etcd", store->conf->id, store->loaded_count);
    store->events->on_lead(store->arg); /* load says what was wrong */
}

static int read_page(struct etcd_store *store, const json_t *answer)
{
    const json_t *meta = mst_etcd_keys(answer, 0);
    const json_t *keys = mst_etcd_keys(answer, 1);
    struct mst_etcd_kv kv;
    const json_t *entry;
    char name[64];
    size_t i;
    int r = 0;

    store->meta_revision = 0;
    if (json_array_size(meta) > 0) {
        r = mst_etcd_kv_read(json_array_get(meta, 0), &kv);
        if (r < 0)
            return mst_why_set(&store->load_why, r, "the meta key in etcd does not check");
        store->meta_revision = kv.mod_revision;
        r = meta_read(store, &kv, name, &store->load_why);
        mst_etcd_kv_clear(&kv);
    }
    json_array_foreach(keys, i, entry)
    {
        if (r == 0)
            r = mst_etcd_kv_read(entry, &kv);
        if (r < 0)
            break;
        r = keep_row(store, &kv);
        /* Next page: from behind this key. */
        snprintf(store->from, sizeof(store->from), "%s\x01", kv.key);
        mst_etcd_kv_clear(&kv);
    }
    return r;
}

static void table_begin(struct etcd_store *store, unsigned table)
{
    char name[64];

    store->table = table;
    if (table < MST_TABLES) {
        snprintf(name, sizeof(name), "%s/", mst_tables[table].name);
        (void)etcd_key(store, name, store->from);
    }
}

static void on_again_read(uv_timer_t *timer)
{
    read_send(timer->data);
}

static void on_read(void *arg, const struct mst_etcd_reply *reply)
{
    struct etcd_store *store = arg;
    const json_t *leader;
    struct mst_etcd_kv kv;
    bool newer = false;
    int r;

    if (store->state != ETCD_READING)
        return;
    if (reply->outcome != MST_ETCD_ANSWER) { /* until the lease ends */
        (void)uv_timer_start(&store->again, on_again_read, AGAIN_MS, 0);
        return;
    }
    if (!json_is_true(json_object_get(reply->json, "succeeded"))) {
        /* A member that lags does not know our key yet; one that knows a newer key tells that we have lost. */
        leader = mst_etcd_keys(reply->json, 0);
        if (json_array_size(leader) > 0 && mst_etcd_kv_read(json_array_get(leader, 0), &kv) == 0) {
            newer = kv.create_revision > store->leader_revision;
            mst_etcd_kv_clear(&kv);
        }
        if (newer) {
            etcd_lost(store, "another coordinator leads, or our lease has ended");
            return;
        }
        mst_etcd_leave(store->etcd, reply->endpoint);
        (void)uv_timer_start(&store->again, on_again_read, AGAIN_MS, 0);
        return;
    }
    r = read_page(store, reply->json);
    if (r < 0) {
        read_end(store, r);
        return;
    }
    if (!mst_etcd_more(reply->json, 1))
        table_begin(store, store->table + 1);
    if (store->table < MST_TABLES)
        read_send(store);
    else
        read_end(store, 0);
}

/* Nobody can have written since our leader key was made but us: what a member shows that knows our key is all there is. */
static void read_send(struct etcd_store *store)
{
    char leader[ETCD_KEY_BYTES], meta[ETCD_KEY_BYTES], end[ETCD_KEY_BYTES], name[64];
    json_t *then;

    snprintf(name, sizeof(name), "%s0", mst_tables[store->table].name); /* '0' follows '/' */
    (void)etcd_key(store, name, end);
    (void)etcd_key(store, "leader", leader);
    (void)etcd_key(store, "meta", meta);
    then = json_pack("[o,o]", mst_etcd_range(meta, NULL, 0), mst_etcd_range(store->from, end, PAGE_ROWS));
    if (mst_etcd_call(store->etcd, "kv/txn",
                      mst_etcd_txn(json_pack("[o]", mst_etcd_created(leader, store->leader_revision)), then,
                                   json_pack("[o]", mst_etcd_range(leader, NULL, 0))),
                      etcd_timeout(store), on_read, store) < 0)
        (void)uv_timer_start(&store->again, on_again_read, AGAIN_MS, 0);
}

void etcd_read_begin(struct etcd_store *store)
{
    table_begin(store, 1); /* the meta row comes with every page */
    read_send(store);
}

int etcd_load(struct mst_store *head, mst_row_fn on_row, void *arg, struct mst_why *why)
{
    struct etcd_store *store = (struct etcd_store *)head;
    struct mst_row meta = {.kind = MST_ROW_META};
    int r = store->load_err;

    if (r < 0)
        return mst_why_set(why, r, "%s", store->load_why.text[0] ? store->load_why.text : strerror(-r));
    meta.meta = store->meta;
    if (store->meta_known)
        r = on_row(arg, &meta, why);
    for (size_t i = 0; r == 0 && i < store->loaded_count; i++) {
        struct etcd_loaded *at = &store->loaded[i];

        if (at->definition)
            at->row.definition = at->definition;
        r = on_row(arg, &at->row, why);
    }
    etcd_rows_free(store);
    return r;
}

void etcd_rows_free(struct etcd_store *store)
{
    for (size_t i = 0; i < store->loaded_count; i++)
        free(store->loaded[i].definition);
    free(store->loaded);
    store->loaded = NULL;
    store->loaded_count = store->loaded_room = 0;
}

void mst_store_etcd_migrate(struct mst_store *store)
{
    ((struct etcd_store *)store)->may_migrate = true;
    ((struct etcd_store *)store)->migrating = true;
}

bool mst_store_etcd_unfinished(const struct mst_store *store)
{
    return ((const struct etcd_store *)store)->unfinished;
}

void mst_store_etcd_wipe(struct mst_store *store)
{
    ((struct etcd_store *)store)->wipe = true;
    ((struct etcd_store *)store)->meta_known = false;
}

void mst_store_etcd_migrated(struct mst_store *store)
{
    ((struct etcd_store *)store)->migrating = false;
}
