#include "core_rig.h"

#include "base/file.h"
#include "coordinator/io/store.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A coordinator that finds a damaged database: a whole one, changed by the input as bytes of the file and as values of its rows, is opened, loaded
 * into the core, and the core goes to work on what it was told and writes back. First byte: whether it goes to work. */

enum { BYTES, VALUE_INT, VALUE_TEXT, VALUE_BLOB, DELETE, CUT, OPS };

#define COLUMNS_MAX 128u

static char path[128];
static char *whole;
static size_t whole_bytes;
static struct {
    char table[32], column[32];
} columns[COLUMNS_MAX];
static unsigned columns_count;
static struct rig rig;

/* --- the whole one --- */

static struct mst_txn txn;
static struct mst_definition definitions[3];

static struct mst_row *add(enum mst_row_kind kind)
{
    struct mst_row *row = &txn.rows[txn.count++];

    memset(row, 0, sizeof(*row));
    row->kind = kind;
    return row;
}

static void vm_rows(unsigned i)
{
    struct mst_definition *def = &definitions[i];
    struct mst_vm_row vm = {.wanted = true,
                            .phase = (uint8_t)(i + 1),
                            .node_id = i + 1,
                            .instance = 10 + i,
                            .epoch = 4 + i,
                            .save = {.node_id = 1, .instance = 10, .epoch = 4, .seq = 2}};
    struct mst_rvm_row rvm = {.recovery_id = i + 1,
                              .from_node_id = 1,
                              .from_instance = 10,
                              .epoch_from = 4,
                              .to_node_id = 2,
                              .epoch_to = 9,
                              .how = MST_HOW_RESUME,
                              .outcome = (uint8_t)i};
    struct mst_mirror_row mirror = {.n = i, .epoch = 3, .node_id = 2, .instance = 10, .log_id = 77, .counts = i != 1};

    memset(def, 0, sizeof(*def));
    snprintf(def->name, sizeof(def->name), "v%u", i);
    def->memory_mib = 64;
    def->vcpus = 1;
    def->protect = MST_PROTECT_MIRROR;
    def->allowed_count = i;
    def->allowed[0] = 1;
    def->packed_bytes = 4;
    add(MST_ROW_DEFINITION)->definition = def;
    memcpy(vm.name, def->name, sizeof(vm.name));
    add(MST_ROW_VM)->vm = vm;
    add(MST_ROW_FAULT)->fault =
        (struct mst_fault_row){.id = i + 1, .kind = 1 + i, .node_id = 1, .instance = 10, .recovery_id = i + 1, .reporter = "n1"};
    add(MST_ROW_RECOVERY)->recovery =
        (struct mst_recovery_row){.id = i + 1,
                                  .fault_id = i + 1,
                                  .node_id = 1,
                                  .instance = 10,
                                  .kind = 1 + i,
                                  .scope = (uint8_t)i,
                                  .state = i == 2 ? MST_REC_DONE : (uint8_t)(MST_REC_READING + 4 * i)};
    for (uint32_t n = 0; n < 2; n++)
        add(MST_ROW_STEP)->step = (struct mst_step_row){.recovery_id = i + 1, .n = n, .state = (uint8_t)n};
    memcpy(rvm.vm, def->name, sizeof(rvm.vm));
    add(MST_ROW_RVM)->rvm = rvm;
    add(MST_ROW_PROOF)->proof = (struct mst_proof_row){.id = i + 1, .kind = (uint8_t)(1 + i), .node_id = 1, .instance = 9};
    memcpy(mirror.vm, def->name, sizeof(mirror.vm));
    add(MST_ROW_MIRROR)->mirror = mirror;
}

static void columns_read(sqlite3 *db)
{
    sqlite3_stmt *stmt;

    FUZZ_CHECK(
        sqlite3_prepare_v2(
            db,
            "SELECT m.name, p.name FROM sqlite_schema m, pragma_table_info(m.name) p WHERE m.type = 'table' ORDER BY 1, p.cid",
            -1, &stmt, NULL) == SQLITE_OK);
    while (sqlite3_step(stmt) == SQLITE_ROW && columns_count < COLUMNS_MAX) {
        snprintf(columns[columns_count].table, sizeof(columns[0].table), "%s", (const char *)sqlite3_column_text(stmt, 0));
        snprintf(columns[columns_count].column, sizeof(columns[0].column), "%s", (const char *)sqlite3_column_text(stmt, 1));
        columns_count++;
    }
    sqlite3_finalize(stmt);
    FUZZ_CHECK(columns_count > 60);
}

static void whole_make(void)
{
    struct mst_store *store;
    struct mst_why why = {""};
    uv_loop_t loop;
    sqlite3 *db;

    snprintf(path, sizeof(path), "%s/coordinator.db", fuzz_folder());
    FUZZ_CHECK(uv_loop_init(&loop) == 0 && mst_store_sqlite_open(&loop, fuzz_folder(), &store, &why) == 0);
    add(MST_ROW_META)->meta =
        (struct mst_meta_row){.term = 3, .next_fault = 3, .next_recovery = 3, .next_proof = 3, .epoch_floor = 2};
    for (unsigned i = 0; i < 3; i++) {
        add(MST_ROW_NODE)->node = (struct mst_node_row){.id = i + 1, .name = "n", .instance = 10 + i};
        vm_rows(i);
    }
    FUZZ_CHECK(mst_store_commit_now(store, &txn, &why) == 0);
    mst_store_close(store);
    FUZZ_CHECK(uv_loop_close(&loop) == 0);
    FUZZ_CHECK(sqlite3_open(path, &db) == SQLITE_OK);
    columns_read(db);
    /* A WAL of its own for every small change would be most of the work. The store puts it back into WAL mode. */
    FUZZ_CHECK(sqlite3_exec(db, "PRAGMA journal_mode = DELETE", NULL, NULL, NULL) == SQLITE_OK);
    sqlite3_close(db);
    FUZZ_CHECK(mst_file_read(path, MST_DEVICE_BYTES_MAX, &whole, &whole_bytes) == 0);
}

/* --- changes --- */

static void change_value(sqlite3 *db, unsigned op, unsigned column, unsigned row, const uint8_t *piece, size_t len)
{
    sqlite3_stmt *stmt = NULL;
    char sql[256];
    uint64_t number = 0;

    column %= columns_count;
    if (op == DELETE)
        snprintf(sql, sizeof(sql), "DELETE FROM %s WHERE rowid = (SELECT rowid FROM %s LIMIT 1 OFFSET ?2)", columns[column].table,
                 columns[column].table);
    else
        snprintf(sql, sizeof(sql), "UPDATE OR IGNORE %s SET %s = ?1 WHERE rowid = (SELECT rowid FROM %s LIMIT 1 OFFSET ?2)",
                 columns[column].table, columns[column].column, columns[column].table);
    if (sqlite3_prepare_v2(db, sql, -1, &stmt, NULL) != SQLITE_OK)
        return; /* the bytes were changed so that this is no database any more */
    memcpy(&number, piece, len < sizeof(number) ? len : sizeof(number));
    if (op == VALUE_INT)
        sqlite3_bind_int64(stmt, 1, (sqlite3_int64)number);
    else if (op == VALUE_TEXT)
        sqlite3_bind_text(stmt, 1, (const char *)piece, (int)len, SQLITE_STATIC);
    else if (op == VALUE_BLOB)
        sqlite3_bind_blob(stmt, 1, piece, (int)len, SQLITE_STATIC);
    sqlite3_bind_int64(stmt, 2, row % 6);
    (void)sqlite3_step(stmt);
    sqlite3_finalize(stmt);
}

static sqlite3 *db_open(void)
{
    sqlite3 *db;

    FUZZ_CHECK(sqlite3_open(path, &db) == SQLITE_OK);
    (void)sqlite3_exec(db, "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF", NULL, NULL, NULL);
    return db;
}

static void change(struct fuzz_in *in)
{
    sqlite3 *db = NULL;
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    FUZZ_CHECK(fd >= 0 && mst_write_all(fd, whole, whole_bytes) == 0);
    while (in->left > 0) {
        unsigned op = fuzz_u8(in) % OPS, row = fuzz_u8(in);
        uint16_t where = fuzz_u16(in);
        size_t len;
        const uint8_t *piece = fuzz_piece(in, &len);
        off_t at = (off_t)(((size_t)row << 16 | where) % whole_bytes);

        if (op != BYTES && op != CUT) {
            if (!db)
                db = db_open();
            change_value(db, op, where, row, piece, len);
            continue;
        }
        sqlite3_close(db);
        db = NULL;
        if (op == CUT)
            FUZZ_CHECK(ftruncate(fd, at) == 0);
        else
            FUZZ_CHECK(pwrite(fd, piece, len, at) == (ssize_t)len);
    }
    sqlite3_close(db);
    close(fd);
}

/* --- the coordinator --- */

static int on_row(void *arg, const struct mst_row *row, struct mst_why *why)
{
    (void)arg;
    FUZZ_CHECK(row->kind >= MST_ROW_META && row->kind < MST_ROW_KINDS);
    return mst_core_load(rig.core, row, why);
}

static int commit(void *store, const struct mst_txn *t)
{
    struct mst_why why;

    return mst_store_commit_now(store, t, &why); /* a file that is damaged further down may refuse */
}

static void work(struct mst_store *store)
{
    static struct mst_hello hello;

    rig.commit = commit;
    rig.arg = store;
    mst_core_start(rig.core, &rig.now);
    rig_commit(&rig, 0);
    rig_look(&rig);
    for (unsigned i = 0; i < RIG_NODES; i++) {
        rig_hello_of(&hello, i, 20 + i);
        hello.earlier_vms_dead = i != 1;
        (void)rig_hello(&rig, &hello);
        rig_obey(&rig);
    }
    for (unsigned i = 0; i < 6; i++) {
        rig_tick(&rig, 1500);
        rig_obey(&rig);
    }
    rig_look(&rig);
}

static void clean(void)
{
    static const char *const suffix[] = {"", "-wal", "-shm", "-journal"};
    char file[160];

    for (unsigned i = 0; i < sizeof(suffix) / sizeof(suffix[0]); i++) {
        snprintf(file, sizeof(file), "%s%s", path, suffix[i]);
        unlink(file);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};
    uint8_t how = fuzz_u8(&in);
    struct mst_store *store = NULL;
    struct mst_why why = {""};
    uv_loop_t loop;
    int r;

    if (!whole)
        whole_make();
    clean();
    change(&in);
    FUZZ_CHECK(uv_loop_init(&loop) == 0);
    rig_open(&rig);
    r = mst_store_sqlite_open(&loop, fuzz_folder(), &store, &why);
    FUZZ_CHECK(r == 0 || why.text[0]);
    if (r == 0) {
        r = mst_store_load(store, on_row, NULL, &why);
        FUZZ_CHECK(r == 0 || why.text[0]);
        if (r == 0 && how & 1)
            work(store);
    }
    mst_store_close(store);
    rig_close(&rig);
    FUZZ_CHECK(uv_loop_close(&loop) == 0);
    return 0;
}

static struct fuzz_out out;

static void op(unsigned what, unsigned row, unsigned where, const void *piece, size_t len)
{
    fuzz_put(&out, what, 1);
    fuzz_put(&out, row, 1);
    fuzz_put(&out, where, 2);
    fuzz_put_piece(&out, piece, len);
}

static void done(const char *name)
{
    fuzz_seed(name, out.bytes, out.len);
    out.len = 0;
}

void fuzz_seeds(void)
{
    char name[32];

    fuzz_put(&out, 1, 1);
    done("whole");
    for (unsigned i = 0; i < 72; i += 3) {
        fuzz_put(&out, 1, 1);
        for (unsigned k = 0; k < 3; k++)
            op(VALUE_INT + i / 3 % 3, k, i + k, i % 2 ? "\7\0\0\0\0\0\0\0" : "v1", i % 2 ? 8 : 2);
        snprintf(name, sizeof(name), "values-%02u", i);
        done(name);
    }
    fuzz_put(&out, 0, 1);
    op(BYTES, 0, 100, "\0\0\0\1", 4);
    op(BYTES, 0, 4096, "\15", 1);
    done("bytes");
    fuzz_put(&out, 0, 1);
    op(CUT, 0, 9000, "", 0);
    done("cut");
    fuzz_put(&out, 1, 1);
    op(DELETE, 0, 30, "", 0);
    op(DELETE, 0, 0, "", 0);
    done("deleted");
}
