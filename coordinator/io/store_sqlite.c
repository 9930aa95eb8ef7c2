#include "coordinator/io/store.h"

#include "base/fault.h"
#include "base/file.h"
#include "coordinator/io/store_rows.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* 1: without restarts_max, restarts_window_s; 2: without decision, terms; 3: without mirrors; 4: without mirror_apart, exposed_wall_ms */
#define SCHEMA_VERSION 5
#define APPLICATION_ID 0x4d4e5354 /* "MNST" */
#define FAULTS_SHOWN   512
#define HISTORY_KEPT   10000 /* recoveries and faults kept in the file */

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* What is read back of each table of mst_tables, in its order; ?1 is number. */
static const struct shown {
    const char *which;
    int64_t number;
} shown[MST_TABLES] = {
    {"", 0},
    {"ORDER BY id", 0},
    {"ORDER BY name", 0},
    {"ORDER BY name", 0},
    {"WHERE id > (SELECT max(id) FROM faults) - ?1 ORDER BY id", FAULTS_SHOWN},
    {"WHERE id IN shown ORDER BY id", 0},
    {"WHERE recovery_id IN shown ORDER BY recovery_id, n", 0},
    {"WHERE recovery_id IN shown ORDER BY recovery_id, rowid", 0},
    {"WHERE id > (SELECT max(id) FROM proofs) - ?1 ORDER BY id", 128},
    {"ORDER BY vm, n", 0},
};

struct sqlite {
    struct mst_store head; /* first */
    uv_loop_t *loop;
    sqlite3 *db;
    sqlite3_stmt *put[MST_TABLES];
    sqlite3_stmt *begin, *commit, *rollback, *delete_vm, *delete_definition, *delete_mirrors;
    sqlite3_stmt *prune[5];
    uv_work_t work;
    const struct mst_txn *txn;
    mst_commit_fn done;
    void *arg;
    int err;
    struct mst_why why;
};

static int to_errno(int rc)
{
    switch (rc & 0xff) {
    case SQLITE_OK:
    case SQLITE_DONE:
    case SQLITE_ROW:
        return 0;
    case SQLITE_FULL:
        return -ENOSPC;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    case SQLITE_FORMAT:
        return -EBADMSG;
    case SQLITE_PERM:
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
    case SQLITE_AUTH:
        return -EACCES;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return -EBUSY;
    case SQLITE_NOMEM:
        return -ENOMEM;
    default:
        return -EIO;
    }
}

static int fail(const struct sqlite *store, int rc, struct mst_why *why)
{
    if (to_errno(rc) == -ENOSPC)
        return mst_why_set(why, -ENOSPC, "%s: free room in state-dir", sqlite3_errmsg(store->db));
    return mst_why_set(why, to_errno(rc), "%s", sqlite3_errmsg(store->db));
}

static int run(struct sqlite *store, const char *sql, struct mst_why *why)
{
    int rc = sqlite3_exec(store->db, sql, NULL, NULL, NULL);

    return rc == SQLITE_OK ? 0 : fail(store, rc, why);
}

/* --- schema --- */

static int make_table(struct sqlite *store, const struct mst_table *table, struct mst_why *why)
{
    static const char *const types[] = {"INTEGER", "INTEGER", "INTEGER", "INTEGER", "TEXT", "BLOB"};
    char sql[2048];
    size_t used = (size_t)snprintf(sql, sizeof(sql), "CREATE TABLE %s (", table->name);

    for (unsigned i = 0; i < table->count; i++)
        used += (size_t)snprintf(sql + used, sizeof(sql) - used, "%s%s %s NOT NULL", i ? ", " : "", table->fields[i].name,
                                 types[table->fields[i].type]);
    if (table->key)
        used += (size_t)snprintf(sql + used, sizeof(sql) - used, ", PRIMARY KEY (%s)", table->key);
    (void)snprintf(sql + used, sizeof(sql) - used, ")");
    return run(store, sql, why);
}

static int read_number(struct sqlite *store, const char *sql, int64_t *ret, struct mst_why *why)
{
    sqlite3_stmt *stmt;
    int rc = sqlite3_prepare_v2(store->db, sql, -1, &stmt, NULL);

    if (rc != SQLITE_OK)
        return fail(store, rc, why);
    rc = sqlite3_step(stmt);
    *ret = rc == SQLITE_ROW ? sqlite3_column_int64(stmt, 0) : 0;
    sqlite3_finalize(stmt);
    return rc == SQLITE_ROW ? 0 : fail(store, rc, why);
}

static int make_schema(struct sqlite *store, struct mst_why *why)
{
    char sql[128];
    int r = run(store, "BEGIN IMMEDIATE", why);

    for (unsigned i = 0; r == 0 && i < MST_TABLES; i++)
        r = make_table(store, &mst_tables[i], why);
    snprintf(sql, sizeof(sql), "PRAGMA application_id = %d; PRAGMA user_version = %d", APPLICATION_ID, SCHEMA_VERSION);
    if (r == 0)
        r = run(store, sql, why);
    if (r == 0)
        r = run(store, "COMMIT", why);
    if (r < 0)
        (void)run(store, "ROLLBACK", NULL);
    return r;
}

/* A store of an older version, whose VMs have what was fixed then and no mirrors, and whose decisions were not counted. */
static int upgrade_schema(struct sqlite *store, int64_t version, struct mst_why *why)
{
    char sql[2 * sizeof(((struct mst_meta_row *)0)->terms) + 256];
    int r = run(store, "BEGIN IMMEDIATE", why);

    if (r == 0 && version < 2)
        r = run(store,
                "ALTER TABLE definitions ADD COLUMN restarts_max INTEGER NOT NULL DEFAULT 5; "
                "ALTER TABLE definitions ADD COLUMN restarts_window_s INTEGER NOT NULL DEFAULT 300",
                why);
    (void)snprintf(sql, sizeof(sql),
                   "ALTER TABLE meta ADD COLUMN decision INTEGER NOT NULL DEFAULT 0; "
                   "ALTER TABLE meta ADD COLUMN terms BLOB NOT NULL DEFAULT x'%0*d'",
                   (int)(2 * sizeof(((struct mst_meta_row *)0)->terms)), 0);
    if (r == 0 && version < 3)
        r = run(store, sql, why);
    if (r == 0 && version < 4)
        r = make_table(store, mst_table_of(MST_ROW_MIRROR), why);
    if (r == 0 && version < 4)
        r = run(store,
                "ALTER TABLE vms ADD COLUMN save_image INTEGER NOT NULL DEFAULT 0; "
                "ALTER TABLE vms ADD COLUMN image_floor INTEGER NOT NULL DEFAULT 0",
                why);
    (void)snprintf(sql, sizeof(sql),
                   "ALTER TABLE definitions ADD COLUMN mirror_apart INTEGER NOT NULL DEFAULT 0; "
                   "ALTER TABLE vms ADD COLUMN exposed_wall_ms INTEGER NOT NULL DEFAULT 0; PRAGMA user_version = %d; COMMIT",
                   SCHEMA_VERSION);
    if (r == 0)
        r = run(store, sql, why);
    if (r < 0)
        (void)run(store, "ROLLBACK", NULL);
    return r;
}

static int check_schema(struct sqlite *store, const char *path, struct mst_why *why)
{
    int64_t version = 0, application = 0, tables_there = 0;
    int r = read_number(store, "PRAGMA user_version", &version, why);

    if (r == 0)
        r = read_number(store, "PRAGMA application_id", &application, why);
    if (r == 0)
        r = read_number(store, "SELECT count(*) FROM sqlite_schema", &tables_there, why);
    if (r < 0)
        return r;
    if (tables_there == 0)
        return make_schema(store, why);
    if (application != APPLICATION_ID)
        return mst_why_set(why, -EBADMSG, "%s is a database of something else", path);
    if (version > SCHEMA_VERSION)
        return mst_why_set(why, -EPROTONOSUPPORT,
                           "%s was written by a newer version of mainstay (schema %" PRId64 ", this one knows %d)", path, version,
                           SCHEMA_VERSION);
    return version < SCHEMA_VERSION ? upgrade_schema(store, version, why) : 0;
}

static int check_whole(struct sqlite *store, const char *path, struct mst_why *why)
{
    sqlite3_stmt *stmt;
    int rc = sqlite3_prepare_v2(store->db, "PRAGMA quick_check(1)", -1, &stmt, NULL);
    const char *text;
    int r = 0;

    if (rc != SQLITE_OK)
        return fail(store, rc, why);
    rc = sqlite3_step(stmt);
    text = rc == SQLITE_ROW ? (const char *)sqlite3_column_text(stmt, 0) : NULL;
    if (rc != SQLITE_ROW)
        r = fail(store, rc, why);
    else if (!text || strcmp(text, "ok") != 0)
        r = mst_why_set(why, -EBADMSG, "%s is damaged (%s): restore it from a copy, or move it away and define the VMs anew",
                        path, text ? text : "?");
    sqlite3_finalize(stmt);
    return r;
}

static int prepare(struct sqlite *store, const char *sql, sqlite3_stmt **ret, struct mst_why *why)
{
    int rc = sqlite3_prepare_v3(store->db, sql, -1, SQLITE_PREPARE_PERSISTENT, ret, NULL);

    return rc == SQLITE_OK ? 0 : fail(store, rc, why);
}

static int prepare_put(struct sqlite *store, unsigned index, struct mst_why *why)
{
    const struct mst_table *table = &mst_tables[index];
    char sql[1024];
    size_t used = (size_t)snprintf(sql, sizeof(sql), "INSERT OR REPLACE INTO %s (%s", table->name, table->key ? "" : "rowid, ");

    for (unsigned i = 0; i < table->count; i++)
        used += (size_t)snprintf(sql + used, sizeof(sql) - used, "%s%s", i ? ", " : "", table->fields[i].name);
    used += (size_t)snprintf(sql + used, sizeof(sql) - used, ") VALUES (%s", table->key ? "" : "1, ");
    for (unsigned i = 0; i < table->count; i++)
        used += (size_t)snprintf(sql + used, sizeof(sql) - used, "%s?%u", i ? ", " : "", i + 1);
    (void)snprintf(sql + used, sizeof(sql) - used, ")");
    return prepare(store, sql, &store->put[index], why);
}

static int prepare_all(struct sqlite *store, struct mst_why *why)
{
    static const char *const prunes[] = {
        "DELETE FROM faults WHERE id <= (SELECT max(id) FROM faults) - ?1",
        "DELETE FROM recovery_steps WHERE recovery_id IN (SELECT id FROM recoveries WHERE state = ?2 AND id <= (SELECT max(id) "
        "FROM recoveries) - ?1)",
        "DELETE FROM recovery_vms WHERE recovery_id IN (SELECT id FROM recoveries WHERE state = ?2 AND id <= (SELECT max(id) "
        "FROM recoveries) - ?1)",
        "DELETE FROM recoveries WHERE state = ?2 AND id <= (SELECT max(id) FROM recoveries) - ?1",
        "DELETE FROM proofs WHERE id <= (SELECT max(id) FROM proofs) - ?1",
    };
    int r = prepare(store, "BEGIN IMMEDIATE", &store->begin, why);

    if (r == 0)
        r = prepare(store, "COMMIT", &store->commit, why);
    if (r == 0)
        r = prepare(store, "ROLLBACK", &store->rollback, why);
    if (r == 0)
        r = prepare(store, "DELETE FROM vms WHERE name = ?1", &store->delete_vm, why);
    if (r == 0)
        r = prepare(store, "DELETE FROM definitions WHERE name = ?1", &store->delete_definition, why);
    if (r == 0)
        r = prepare(store, "DELETE FROM mirrors WHERE vm = ?1", &store->delete_mirrors, why);
    for (unsigned i = 0; r == 0 && i < COUNT(prunes); i++)
        r = prepare(store, prunes[i], &store->prune[i], why);
    for (unsigned i = 0; r == 0 && i < MST_TABLES; i++)
        r = prepare_put(store, i, why);
    return r;
}

static int configure(struct sqlite *store, struct mst_why *why)
{
    /* Exclusive: two coordinators on one store would be two deciders. It also keeps the WAL index out of shared memory. */
    static const char *const pragmas[] = {"PRAGMA locking_mode = EXCLUSIVE", "PRAGMA journal_mode = WAL",
                                          "PRAGMA synchronous = FULL",       "PRAGMA foreign_keys = OFF",
                                          "PRAGMA cell_size_check = ON",     "PRAGMA trusted_schema = OFF"};
    int r = 0;

    for (unsigned i = 0; r == 0 && i < COUNT(pragmas); i++)
        r = run(store, pragmas[i], why);
    /* Takes the lock now rather than at the first decision. */
    if (r == 0)
        r = run(store, "BEGIN EXCLUSIVE; COMMIT", why);
    return r;
}

static void sqlite_close(struct mst_store *head)
{
    struct sqlite *store = (struct sqlite *)head;

    for (unsigned i = 0; i < MST_TABLES; i++)
        sqlite3_finalize(store->put[i]);
    for (unsigned i = 0; i < COUNT(store->prune); i++)
        sqlite3_finalize(store->prune[i]);
    sqlite3_finalize(store->begin);
    sqlite3_finalize(store->commit);
    sqlite3_finalize(store->rollback);
    sqlite3_finalize(store->delete_vm);
    sqlite3_finalize(store->delete_definition);
    sqlite3_finalize(store->delete_mirrors);
    sqlite3_close(store->db);
    free(store);
}

/* --- writing --- */

static void bind_field(sqlite3_stmt *stmt, int at, const struct mst_field *field, const void *row)
{
    const char *p = (const char *)row + field->offset;

    if (field->type == MST_FIELD_TEXT)
        (void)sqlite3_bind_text(stmt, at, p, (int)strnlen(p, field->bytes), SQLITE_STATIC);
    else if (field->type == MST_FIELD_BLOB)
        (void)sqlite3_bind_blob(stmt, at, p, (int)mst_field_bytes(field, row), SQLITE_STATIC);
    else
        (void)sqlite3_bind_int64(stmt, at, mst_field_number(field, row));
}

static int step(struct sqlite *store, sqlite3_stmt *stmt, struct mst_why *why)
{
    int rc = sqlite3_step(stmt);
    int r = rc == SQLITE_DONE || rc == SQLITE_ROW ? 0 : fail(store, rc, why);

    (void)sqlite3_reset(stmt);
    return r;
}

static int put(struct sqlite *store, const struct mst_row *row, struct mst_why *why)
{
    const void *data = mst_row_data(row);
    int r;

    if (row->kind == MST_ROW_VM_DELETE) {
        (void)sqlite3_bind_text(store->delete_vm, 1, row->vm_delete, -1, SQLITE_STATIC);
        (void)sqlite3_bind_text(store->delete_definition, 1, row->vm_delete, -1, SQLITE_STATIC);
        (void)sqlite3_bind_text(store->delete_mirrors, 1, row->vm_delete, -1, SQLITE_STATIC);
        r = step(store, store->delete_vm, why);
        r = r < 0 ? r : step(store, store->delete_definition, why);
        return r < 0 ? r : step(store, store->delete_mirrors, why);
    }
    for (unsigned i = 0; i < MST_TABLES; i++) {
        if (mst_tables[i].kind != row->kind)
            continue;
        for (unsigned k = 0; k < mst_tables[i].count; k++)
            bind_field(store->put[i], (int)k + 1, &mst_tables[i].fields[k], data);
        return step(store, store->put[i], why);
    }
    return mst_why_set(why, -EINVAL, "a row of kind %d has no table", (int)row->kind);
}

static int prune(struct sqlite *store, struct mst_why *why)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < COUNT(store->prune); i++) {
        (void)sqlite3_bind_int64(store->prune[i], 1, HISTORY_KEPT);
        if (sqlite3_bind_parameter_count(store->prune[i]) > 1)
            (void)sqlite3_bind_int64(store->prune[i], 2, MST_REC_DONE);
        r = step(store, store->prune[i], why);
    }
    return r;
}

static int sqlite_commit_now(struct mst_store *head, const struct mst_txn *txn, struct mst_why *why)
{
    struct sqlite *store = (struct sqlite *)head;
    int r;

    MST_FAULT("store.begin", return mst_why_set(why, -EIO, "fault point store.begin"));
    r = step(store, store->begin, why);
    if (r < 0)
        return r;
    for (uint32_t i = 0; r == 0 && i < txn->count; i++)
        r = put(store, &txn->rows[i], why);
    if (r == 0 && mst_txn_prunes(txn))
        r = prune(store, why);
    MST_FAULT("store.full", r = mst_why_set(why, -ENOSPC, "fault point store.full"));
    MST_POINT("store.before_commit");
    if (r == 0)
        r = step(store, store->commit, why);
    MST_POINT("store.after_commit");
    if (r < 0 && !sqlite3_get_autocommit(store->db))
        (void)step(store, store->rollback, NULL);
    return r;
}

static void commit_work(uv_work_t *work)
{
    struct sqlite *store = work->data;

    store->why.text[0] = 0;
    store->err = sqlite_commit_now(&store->head, store->txn, &store->why);
}

static void commit_after(uv_work_t *work, int status)
{
    struct sqlite *store = work->data;

    store->txn = NULL;
    if (status < 0)
        store->err = status;
    store->done(store->arg, store->err, store->why.text);
}

static void sqlite_commit(struct mst_store *head, const struct mst_txn *txn, mst_commit_fn done, void *arg)
{
    struct sqlite *store = (struct sqlite *)head;

    store->txn = txn;
    store->done = done;
    store->arg = arg;
    store->work.data = store;
    /* Fails only without a work function. */
    (void)uv_queue_work(store->loop, &store->work, commit_work, commit_after);
}

/* --- reading --- */

static int fetch(sqlite3_stmt *stmt, int at, const struct mst_field *field, void *row)
{
    bool text = field->type == MST_FIELD_TEXT;
    int type = sqlite3_column_type(stmt, at);
    const void *data;
    int bytes;

    if (text || field->type == MST_FIELD_BLOB) {
        data = text ? (const void *)sqlite3_column_text(stmt, at) : sqlite3_column_blob(stmt, at);
        bytes = sqlite3_column_bytes(stmt, at);
        if (type != (text ? SQLITE_TEXT : SQLITE_BLOB) && bytes > 0)
            return -EBADMSG;
        return mst_field_put_bytes(field, row, data, (size_t)bytes);
    }
    return type == SQLITE_INTEGER ? mst_field_put_number(field, row, sqlite3_column_int64(stmt, at)) : -EBADMSG;
}

static int load_table(struct sqlite *store, unsigned index, mst_row_fn on_row, void *arg, struct mst_why *why)
{
    /* Which recoveries are read back: every open one, and the newest of the others. */
    static const char with[] = "WITH shown AS (SELECT id FROM recoveries WHERE state != 10 UNION SELECT id FROM "
                               "(SELECT id FROM recoveries WHERE state = 10 AND scope < 4 ORDER BY id DESC LIMIT 96))";
    static_assert(MST_REC_DONE == 10 && MST_SCOPE_START == 4, "as in the text above");
    const struct mst_table *table = &mst_tables[index];
    struct mst_definition *def = calloc(1, sizeof(*def));
    sqlite3_stmt *stmt = NULL;
    char sql[1536];
    size_t used = (size_t)snprintf(sql, sizeof(sql), "%s SELECT ", with);
    int r = 0, rc;

    if (!def)
        return -ENOMEM;
    for (unsigned i = 0; i < table->count; i++)
        used += (size_t)snprintf(sql + used, sizeof(sql) - used, "%s%s", i ? ", " : "", table->fields[i].name);
    (void)snprintf(sql + used, sizeof(sql) - used, " FROM %s %s", table->name, shown[index].which);
    rc = sqlite3_prepare_v2(store->db, sql, -1, &stmt, NULL);
    if (rc != SQLITE_OK) {
        r = fail(store, rc, why);
        goto out;
    }
    if (sqlite3_bind_parameter_count(stmt) > 0)
        (void)sqlite3_bind_int64(stmt, 1, shown[index].number);
    while (r == 0 && (rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        struct mst_row row = {.kind = table->kind};
        void *to = table->kind == MST_ROW_DEFINITION ? (void *)def : (void *)&row.meta;

        memset(def, 0, sizeof(*def));
        for (unsigned i = 0; r == 0 && i < table->count; i++)
            r = fetch(stmt, (int)i, &table->fields[i], to);
        if (table->kind == MST_ROW_DEFINITION)
            row.definition = def;
        if (r == 0)
            r = mst_row_check(&row);
        if (r < 0)
            mst_why_set(why, r, "a row of table %s does not check: the store is damaged", table->name);
        else
            r = on_row(arg, &row, why);
    }
    if (r == 0 && rc != SQLITE_DONE)
        r = fail(store, rc, why);
out:
    sqlite3_finalize(stmt);
    free(def);
    return r;
}

static int sqlite_load(struct mst_store *head, mst_row_fn on_row, void *arg, struct mst_why *why)
{
    struct sqlite *store = (struct sqlite *)head;
    int r = 0;

    for (unsigned i = 0; r == 0 && i < MST_TABLES; i++)
        r = load_table(store, i, on_row, arg, why);
    return r;
}

/* --- leading: whoever has the file's lock does --- */

static void sqlite_campaign(struct mst_store *head, const struct mst_store_events *events, void *arg)
{
    (void)head;
    events->on_lead(arg);
}

static void sqlite_confirm(struct mst_store *head, mst_commit_fn done, void *arg)
{
    (void)head;
    done(arg, 0, "");
}

static int sqlite_confirm_now(struct mst_store *head, struct mst_why *why)
{
    (void)head;
    (void)why;
    return 0;
}

static bool sqlite_leads(const struct mst_store *head)
{
    (void)head;
    return true;
}

static void sqlite_standing(const struct mst_store *head, struct mst_store_standing *ret)
{
    (void)head;
    ret->leads = true;
}

static const struct mst_store_ops sqlite_ops = {.campaign = sqlite_campaign,
                                                .load = sqlite_load,
                                                .commit = sqlite_commit,
                                                .commit_now = sqlite_commit_now,
                                                .confirm = sqlite_confirm,
                                                .confirm_now = sqlite_confirm_now,
                                                .leads = sqlite_leads,
                                                .standing = sqlite_standing,
                                                .close = sqlite_close};

/* --- opening --- */

static int open_flags(uv_loop_t *loop, const char *folder, int flags, struct mst_store **ret_store, struct mst_why *why)
{
    struct sqlite *store;
    char path[PATH_MAX];
    int r, rc;

    r = mst_path(path, sizeof(path), "%s/coordinator.db", folder);
    if (r == 0)
        r = mst_mkdirs(folder, 0700);
    if (r < 0)
        return mst_why_set(why, r, "state-dir %s: %s", folder, strerror(-r));
    store = calloc(1, sizeof(*store));
    if (!store)
        return -ENOMEM;
    store->head.ops = &sqlite_ops;
    store->loop = loop;
    rc = sqlite3_open_v2(path, &store->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_FULLMUTEX | flags, NULL);
    if (rc != SQLITE_OK) {
        r = mst_why_set(why, to_errno(rc), "%s cannot be opened: %s", path, store->db ? sqlite3_errmsg(store->db) : "no memory");
        goto close;
    }
    (void)sqlite3_extended_result_codes(store->db, 1);
    r = configure(store, why);
    if (r == 0)
        r = check_schema(store, path, why);
    if (r == 0)
        r = check_whole(store, path, why);
    if (r == 0)
        r = prepare_all(store, why);
    if (r == -EBUSY)
        mst_why_set(why, r, "%s is in use by another coordinator", path);
    else if (r == -EBADMSG && why && !strstr(why->text, path))
        mst_why_set(why, r, "%s is damaged: restore it from a copy, or move it away and define the VMs anew", path);
    else if (r < 0 && why && !strstr(why->text, path))
        mst_why_prefix(why, r, "%s", path);
    if (r < 0)
        goto close;
    *ret_store = &store->head;
    return 0;
close:
    sqlite_close(&store->head);
    return r;
}

int mst_store_sqlite_open(uv_loop_t *loop, const char *folder, struct mst_store **ret_store, struct mst_why *why)
{
    return open_flags(loop, folder, SQLITE_OPEN_CREATE, ret_store, why);
}

int mst_store_sqlite_open_existing(uv_loop_t *loop, const char *folder, struct mst_store **ret_store, struct mst_why *why)
{
    char path[PATH_MAX];
    int r = mst_path(path, sizeof(path), "%s/coordinator.db", folder);

    if (r < 0 || access(path, F_OK) < 0)
        return mst_why_set(why, r < 0 ? r : -errno, "%s/coordinator.db: %s", folder, strerror(r < 0 ? -r : errno));
    return open_flags(loop, folder, 0, ret_store, why);
}
