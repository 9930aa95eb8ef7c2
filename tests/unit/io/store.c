#include "coordinator/io/store.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[64], path[128];
static struct mst_store *store;
static struct mst_why why;
static uv_loop_t loop;

static void setup(void)
{
    snprintf(folder, sizeof(folder), "/tmp/mst-store-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/coordinator.db", folder);
    why.text[0] = '\0';
    ck_assert_int_eq(uv_loop_init(&loop), 0);
    ck_assert_msg(mst_store_sqlite_open(&loop, folder, &store, &why) == 0, "%s", why.text);
}

static void teardown(void)
{
    static const char *const suffix[] = {"", "-wal", "-shm", "-journal"};
    char file[160];

    mst_store_close(store);
    store = NULL;
    ck_assert_int_eq(uv_loop_close(&loop), 0);
    for (unsigned i = 0; i < 4; i++) {
        snprintf(file, sizeof(file), "%s%s", path, suffix[i]);
        unlink(file);
    }
    rmdir(folder);
}

static void reopen(void)
{
    mst_store_close(store);
    store = NULL;
    ck_assert_msg(mst_store_sqlite_open(&loop, folder, &store, &why) == 0, "%s", why.text);
}

/* A row of each kind, every byte that is kept set to something that is not zero. */
static struct mst_definition definition;
static struct mst_txn txn;

static struct mst_row *add(enum mst_row_kind kind)
{
    struct mst_row *row = &txn.rows[txn.count++];

    memset(row, 0, sizeof(*row));
    row->kind = kind;
    return row;
}

static void one_of_each(void)
{
    struct mst_row *row;

    txn.count = 0;
    memset(&definition, 0, sizeof(definition));
    definition = (struct mst_definition){.name = "web01",
                                         .memory_mib = 16,
                                         .vcpus = 2,
                                         .priority = 7,
                                         .protect = MST_PROTECT_MIRROR,
                                         .on_node_fault = 3,
                                         .on_vm_fault = 4,
                                         .restarts_max = 6,
                                         .restarts_window_s = 61,
                                         .mirror_apart = MST_MIRROR_APART_RACK,
                                         .allowed_count = 2,
                                         .allowed = {5, 9},
                                         .packed_bytes = 3,
                                         .packed = {1, 0, 255}};
    add(MST_ROW_META)->meta = (struct mst_meta_row){
        1, 2, 3, 4, 5, .decision = 6, .terms = {[1] = {1, 77, 5}, [MST_TERMS_KEPT - 1] = {15, UINT64_MAX, 3}}};
    add(MST_ROW_NODE)->node = (struct mst_node_row){.id = 3,
                                                    .name = "n3",
                                                    .instance = UINT64_MAX,
                                                    .host_boot_id = {1, 2, 0, 255},
                                                    .drained = true,
                                                    .failing = true,
                                                    .fenced_instance = 9,
                                                    .text = "why"};
    row = add(MST_ROW_DEFINITION);
    row->definition = &definition;
    add(MST_ROW_VM)->vm = (struct mst_vm_row){.name = "web01",
                                              .wanted = true,
                                              .phase = 2,
                                              .node_id = 3,
                                              .instance = UINT64_MAX - 1,
                                              .epoch = 12,
                                              .fenced = true,
                                              .proof_id = 4,
                                              .proof_kind = 2,
                                              .save = {1, 2, 3, 4, true},
                                              .pin_node_id = 6,
                                              .image_floor = 11,
                                              .exposed_wall_ms = 1700000000123,
                                              .text = "t"};
    add(MST_ROW_FAULT)->fault = (struct mst_fault_row){.id = 1,
                                                       .kind = 8,
                                                       .node_id = 3,
                                                       .instance = 7,
                                                       .vm = "web01",
                                                       .epoch = 12,
                                                       .reporter = "n1",
                                                       .text = "e",
                                                       .wall_ms = 99,
                                                       .recovery_id = 1,
                                                       .verdict = "v"};
    add(MST_ROW_RECOVERY)->recovery = (struct mst_recovery_row){.id = 1,
                                                                .fault_id = 1,
                                                                .node_id = 3,
                                                                .instance = 7,
                                                                .kind = 8,
                                                                .scope = 1,
                                                                .state = 6,
                                                                .started_wall_ms = 100,
                                                                .proof = "keeper"};
    add(MST_ROW_STEP)->step =
        (struct mst_step_row){.recovery_id = 1, .n = 2, .state = 3, .wall_ms = 4, .offset_us = 5, .text = "s"};
    add(MST_ROW_RVM)->rvm = (struct mst_rvm_row){.recovery_id = 1,
                                                 .vm = "web01",
                                                 .from_node_id = 3,
                                                 .from_instance = 7,
                                                 .epoch_from = 12,
                                                 .to_node_id = 2,
                                                 .epoch_to = 13,
                                                 .proof_id = 4,
                                                 .tried = UINT64_C(1) << 63,
                                                 .attempts = 1,
                                                 .how = 1,
                                                 .outcome = 1,
                                                 .hold = 2,
                                                 .forced = true,
                                                 .start = {3, 1, 2, 3, 4, 5, 6, 7},
                                                 .text = "r"};
    add(MST_ROW_PROOF)->proof =
        (struct mst_proof_row){.id = 4, .kind = 1, .node_id = 3, .instance = 7, .host_boot_id = {9}, .wall_ms = 8, .text = "p"};
    add(MST_ROW_MIRROR)->mirror = (struct mst_mirror_row){.vm = "web01",
                                                          .n = 1,
                                                          .epoch = 12,
                                                          .node_id = 2,
                                                          .instance = UINT64_MAX - 2,
                                                          .log_id = UINT64_MAX - 3,
                                                          .counts = true,
                                                          .since_wall_ms = 98};
}

struct seen {
    unsigned count, kinds;
    bool equal;
};

static int compare(void *arg, const struct mst_row *row, struct mst_why *w)
{
    struct seen *seen = arg;

    (void)w;
    seen->count++;
    seen->kinds |= 1u << row->kind;
    for (uint32_t i = 0; i < txn.count; i++) {
        if (txn.rows[i].kind != row->kind)
            continue;
        if (row->kind == MST_ROW_DEFINITION)
            seen->equal = seen->equal && memcmp(row->definition, &definition, sizeof(definition)) == 0;
        else
            seen->equal =
                seen->equal && memcmp(&row->meta, &txn.rows[i].meta, sizeof(*row) - offsetof(struct mst_row, meta)) == 0;
    }
    return 0;
}

static struct seen load(void)
{
    struct seen seen = {.equal = true};

    ck_assert_msg(mst_store_load(store, compare, &seen, &why) == 0, "%s", why.text);
    return seen;
}

START_TEST(every_member_of_every_row_comes_back_after_reopening)
{
    struct seen seen;

    one_of_each();
    ck_assert_msg(mst_store_commit_now(store, &txn, &why) == 0, "%s", why.text);
    reopen();
    seen = load();
    ck_assert_uint_eq(seen.count, txn.count);
    ck_assert(seen.equal);
    txn.rows[0].meta.term++; /* the comparison can fail */
    ck_assert(!load().equal);
}
END_TEST

START_TEST(a_row_replaces_the_row_of_its_key_and_delete_takes_vm_definition_and_mirrors)
{
    one_of_each();
    ck_assert_int_eq(mst_store_commit_now(store, &txn, &why), 0);
    ck_assert_int_eq(mst_store_commit_now(store, &txn, &why), 0);
    ck_assert_uint_eq(load().count, txn.count);
    txn.count = 0;
    snprintf(add(MST_ROW_VM_DELETE)->vm_delete, MST_NAME_BYTES, "web01");
    ck_assert_int_eq(mst_store_commit_now(store, &txn, &why), 0);
    reopen();
    ck_assert_uint_eq(load().kinds & (1u << MST_ROW_VM | 1u << MST_ROW_DEFINITION | 1u << MST_ROW_MIRROR), 0);
}
END_TEST

START_TEST(second_coordinator_on_the_same_file_is_refused)
{
    int status;
    pid_t pid = fork(); /* another process: SQLite's locks are per process */

    if (pid == 0) {
        struct mst_store *second = NULL;
        _exit(mst_store_sqlite_open(&loop, folder, &second, &why) == -EBUSY && strstr(why.text, "another coordinator") ? 0 : 1);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
END_TEST

START_TEST(garbage_in_place_of_the_file_is_refused_with_a_sentence)
{
    int fd;

    mst_store_close(store);
    store = NULL;
    fd = open(path, O_WRONLY | O_TRUNC);
    ck_assert_int_ge(fd, 0);
    for (unsigned i = 0; i < 200; i++)
        ck_assert_int_eq(write(fd, "this is not a database, sorry ", 30), 30);
    close(fd);
    ck_assert_int_eq(mst_store_sqlite_open(&loop, folder, &store, &why), -EBADMSG);
    ck_assert_ptr_nonnull(strstr(why.text, path));
}
END_TEST

START_TEST(newer_layout_and_foreign_database_are_refused)
{
    static const struct {
        const char *sql;
        int err;
    } cases[] = {{"PRAGMA user_version=99", -EPROTONOSUPPORT}, {"PRAGMA application_id=7", -EBADMSG}};

    for (unsigned i = 0; i < 2; i++) {
        sqlite3 *db;

        mst_store_close(store);
        store = NULL;
        ck_assert_int_eq(sqlite3_open(path, &db), SQLITE_OK);
        ck_assert_int_eq(sqlite3_exec(db, cases[i].sql, NULL, NULL, NULL), SQLITE_OK);
        sqlite3_close(db);
        ck_assert_int_eq(mst_store_sqlite_open(&loop, folder, &store, &why), cases[i].err);
    }
}
END_TEST

START_TEST(a_store_of_an_older_version_is_taken_over)
{
    static const char *const older[] = {("ALTER TABLE definitions DROP COLUMN restarts_max; "
                                         "ALTER TABLE definitions DROP COLUMN restarts_window_s; PRAGMA user_version = 1"),
                                        "PRAGMA user_version = 2", "PRAGMA user_version = 3", "PRAGMA user_version = 4"};
    sqlite3 *db;

    one_of_each();
    ck_assert_int_eq(mst_store_commit_now(store, &txn, &why), 0);
    mst_store_close(store);
    store = NULL;
    ck_assert_int_eq(sqlite3_open(path, &db), SQLITE_OK);
    ck_assert_int_eq(sqlite3_exec(db,
                                  "ALTER TABLE definitions DROP COLUMN mirror_apart; "
                                  "ALTER TABLE vms DROP COLUMN exposed_wall_ms",
                                  NULL, NULL, NULL),
                     SQLITE_OK);
    if (_i < 3)
        ck_assert_int_eq(sqlite3_exec(db,
                                      "DROP TABLE mirrors; ALTER TABLE vms DROP COLUMN save_image; ALTER TABLE vms DROP COLUMN "
                                      "image_floor",
                                      NULL, NULL, NULL),
                         SQLITE_OK);
    if (_i < 2)
        ck_assert_int_eq(
            sqlite3_exec(db, "ALTER TABLE meta DROP COLUMN decision; ALTER TABLE meta DROP COLUMN terms", NULL, NULL, NULL),
            SQLITE_OK);
    ck_assert_int_eq(sqlite3_exec(db, older[_i], NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    reopen();
    if (_i == 0) { /* what was fixed then */
        definition.restarts_max = 5;
        definition.restarts_window_s = 300;
    }
    definition.mirror_apart = 0;
    for (uint32_t i = 0; i < txn.count; i++) { /* nobody counted, and there were no mirrors */
        if (txn.rows[i].kind == MST_ROW_META && _i < 2) {
            txn.rows[i].meta.decision = 0;
            memset(txn.rows[i].meta.terms, 0, sizeof(txn.rows[i].meta.terms));
        } else if (txn.rows[i].kind == MST_ROW_VM) {
            txn.rows[i].vm.exposed_wall_ms = 0;
            if (_i < 3) {
                txn.rows[i].vm.save.image = false;
                txn.rows[i].vm.image_floor = 0;
            }
        }
    }
    ck_assert(load().equal);
    ck_assert_uint_eq(load().kinds & (1u << MST_ROW_MIRROR), _i < 3 ? 0 : 1u << MST_ROW_MIRROR);
    reopen(); /* and it is of this version now */
    ck_assert(load().equal);
    ck_assert_int_eq(mst_store_commit_now(store, &txn, &why), 0); /* with mirrors */
    ck_assert_uint_eq(load().kinds & (1u << MST_ROW_MIRROR), 1u << MST_ROW_MIRROR);
}
END_TEST

START_TEST(value_that_cannot_be_is_refused_at_loading)
{
    sqlite3 *db;
    struct seen seen = {0};

    one_of_each();
    ck_assert_int_eq(mst_store_commit_now(store, &txn, &why), 0);
    mst_store_close(store);
    store = NULL;
    ck_assert_int_eq(sqlite3_open(path, &db), SQLITE_OK);
    ck_assert_int_eq(sqlite3_exec(db, "UPDATE nodes SET host_boot_id = x'00'", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    ck_assert_int_eq(mst_store_sqlite_open(&loop, folder, &store, &why), 0);
    ck_assert_int_eq(mst_store_load(store, compare, &seen, &why), -EBADMSG);
    ck_assert_ptr_nonnull(strstr(why.text, "nodes"));
}
END_TEST

static void on_committed(void *arg, int err, const char *text)
{
    (void)text;
    *(int *)arg = err;
}

START_TEST(commit_answers_from_the_loop_and_not_before)
{
    int err = 1;

    one_of_each();
    mst_store_commit(store, &txn, on_committed, &err);
    ck_assert_int_eq(err, 1);
    uv_run(&loop, UV_RUN_DEFAULT);
    ck_assert_int_eq(err, 0);
    ck_assert(load().equal);
}
END_TEST

START_TEST(bits_that_flip_in_the_file_are_found_at_the_start_or_do_no_harm)
{
    struct seen seen = {.equal = true};
    uint8_t byte;
    struct stat st;
    int fd, r;

    one_of_each();
    ck_assert_int_eq(mst_store_commit_now(store, &txn, &why), 0);
    mst_store_close(store);
    store = NULL;
    fd = open(path, O_RDWR);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(fstat(fd, &st), 0);
    for (off_t at = _i * 64; at < st.st_size; at += 4096) { /* the head of a page, the cell pointers, ... */
        ck_assert_int_eq(pread(fd, &byte, 1, at), 1);
        byte ^= 0x41;
        ck_assert_int_eq(pwrite(fd, &byte, 1, at), 1);
    }
    close(fd);
    r = mst_store_sqlite_open(&loop, folder, &store, &why);
    if (r < 0)
        ck_assert_ptr_nonnull(strstr(why.text, path)); /* refused, and said which file */
    else
        (void)mst_store_load(store, compare, &seen, &why); /* any answer but a crash */
}
END_TEST

START_TEST(missing_folder_is_refused_with_a_sentence)
{
    struct mst_store *other = NULL;

    ck_assert_int_lt(mst_store_sqlite_open(&loop, "/proc/nonexistent", &other, &why), 0);
    ck_assert_ptr_nonnull(strstr(why.text, "state-dir"));
}
END_TEST

START_TEST(full_disk_refuses_and_loses_nothing_and_works_again_when_there_is_room)
{
    char mount_point[96], file[128], filler[128], block[4096];
    struct mst_store *small = NULL;
    struct seen seen = {.equal = true};
    int fd, r = 0;
    uint64_t written = 0, acknowledged;

    snprintf(mount_point, sizeof(mount_point), "%s/small", folder);
    snprintf(file, sizeof(file), "%s/coordinator.db", mount_point);
    snprintf(filler, sizeof(filler), "%s/filler", mount_point);
    ck_assert_int_eq(mkdir(mount_point, 0700), 0);
    ck_assert_msg(mount("none", mount_point, "tmpfs", 0, "size=1m") == 0, "mount: %s (this test needs root)", strerror(errno));
    ck_assert_int_eq(mst_store_sqlite_open(&loop, mount_point, &small, &why), 0);
    one_of_each();
    ck_assert_int_eq(mst_store_commit_now(small, &txn, &why), 0);
    memset(block, 1, sizeof(block));
    fd = open(filler, O_WRONLY | O_CREAT, 0600);
    while (write(fd, block, sizeof(block)) > 0)
        ;
    close(fd);
    for (uint64_t id = 10; r == 0 && id < 10000; id++) {
        txn.count = 0;
        add(MST_ROW_FAULT)->fault =
            (struct mst_fault_row){.id = id, .text = "a fault that needs some room in the file, as faults do"};
        r = mst_store_commit_now(small, &txn, &why);
        if (r == 0)
            written = id;
    }
    ck_assert_int_eq(r, -ENOSPC);
    ck_assert_ptr_nonnull(strstr(why.text, "full"));
    unlink(filler);
    ck_assert_msg(mst_store_commit_now(small, &txn, &why) == 0, "%s", why.text);
    mst_store_close(small);
    ck_assert_int_eq(mst_store_sqlite_open(&loop, mount_point, &small, &why), 0);
    txn.count = 0;
    ck_assert_int_eq(mst_store_load(small, compare, &seen, &why), 0);
    mst_store_close(small);
    umount(mount_point);
    rmdir(mount_point);
    /* the ten of the beginning, those that were acknowledged, and the one after room was made */
    acknowledged = written >= 10 ? written - 9 : 0;
    ck_assert_uint_le(acknowledged + 2, 512u);
    ck_assert_uint_eq(seen.count, 10 + acknowledged + 1);
}
END_TEST

START_TEST(only_the_newest_faults_and_finished_recoveries_are_loaded_but_every_open_one)
{
    struct seen seen;

    one_of_each(); /* recovery 1 is open */
    ck_assert_int_eq(mst_store_commit_now(store, &txn, &why), 0);
    for (uint64_t id = 2; id < 702; id++) {
        txn.count = 0;
        add(MST_ROW_FAULT)->fault = (struct mst_fault_row){.id = id};
        add(MST_ROW_RECOVERY)->recovery = (struct mst_recovery_row){.id = id, .state = MST_REC_DONE};
        ck_assert_int_eq(mst_store_commit_now(store, &txn, &why), 0);
    }
    txn.count = 0;
    seen = load();
    /* meta node definition vm proof mirror; step and rvm of recovery 1; faults; recoveries and the open one */
    ck_assert_uint_eq(seen.count, 6 + 2 + 512u + 96u + 1);
}
END_TEST

static int64_t rows_in(const char *table)
{
    sqlite3 *db;
    sqlite3_stmt *statement;
    char sql[64];
    int64_t count;

    snprintf(sql, sizeof(sql), "SELECT count(*) FROM %s", table);
    ck_assert_int_eq(sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, NULL), SQLITE_OK);
    ck_assert_int_eq(sqlite3_prepare_v2(db, sql, -1, &statement, NULL), SQLITE_OK);
    ck_assert_int_eq(sqlite3_step(statement), SQLITE_ROW);
    count = sqlite3_column_int64(statement, 0);
    sqlite3_finalize(statement);
    sqlite3_close(db);
    return count;
}

/* VMs that are started and stopped, and never a fault. */
START_TEST(history_is_bounded_where_nothing_fails)
{
    for (uint64_t id = 1; id <= 21000;) {
        txn.count = 0;
        for (; id <= 21000 && txn.count + 2 < MST_TXN_ROWS; id++) {
            add(MST_ROW_RECOVERY)->recovery = (struct mst_recovery_row){.id = id, .state = MST_REC_DONE};
            add(MST_ROW_PROOF)->proof = (struct mst_proof_row){.id = id};
        }
        ck_assert_int_eq(mst_store_commit_now(store, &txn, &why), 0);
    }
    txn.count = 0;
    mst_store_close(store);
    store = NULL;
    ck_assert_int_le(rows_in("recoveries"), 10500);
    ck_assert_int_ge(rows_in("recoveries"), 10000);
    ck_assert_int_le(rows_in("proofs"), 10500);
    reopen();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("store");
    TCase *tcase = tcase_create("store");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, every_member_of_every_row_comes_back_after_reopening);
    tcase_add_test(tcase, a_row_replaces_the_row_of_its_key_and_delete_takes_vm_definition_and_mirrors);
    tcase_add_test(tcase, second_coordinator_on_the_same_file_is_refused);
    tcase_add_test(tcase, garbage_in_place_of_the_file_is_refused_with_a_sentence);
    tcase_add_test(tcase, newer_layout_and_foreign_database_are_refused);
    tcase_add_loop_test(tcase, a_store_of_an_older_version_is_taken_over, 0, 4);
    tcase_add_test(tcase, value_that_cannot_be_is_refused_at_loading);
    tcase_add_test(tcase, commit_answers_from_the_loop_and_not_before);
    tcase_add_loop_test(tcase, bits_that_flip_in_the_file_are_found_at_the_start_or_do_no_harm, 0, 64);
    tcase_add_test(tcase, missing_folder_is_refused_with_a_sentence);
    tcase_add_test(tcase, full_disk_refuses_and_loses_nothing_and_works_again_when_there_is_room);
    tcase_add_test(tcase, history_is_bounded_where_nothing_fails);
    tcase_add_test(tcase, only_the_newest_faults_and_finished_recoveries_are_loaded_but_every_open_one);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
