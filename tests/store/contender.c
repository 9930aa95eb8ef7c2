#include "base/clock.h"
#include "base/log.h"
#include "coordinator/io/store.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* contender CONFIG PACE_MS [large]: a coordinator reduced to its store. It campaigns; leading, it begins a term as the core does and then writes one fault row
 * after the other, as fast as PACE_MS allows, and says what became of each:
 * With "large", first the largest transaction that there can be and one that prunes history (large ERROR).
 *     up INSTANCE   lead ROWS   term T   try ID   ok ID   not ID ERROR   standing TEXT   confirmed ERROR   lost TEXT (exit 3)
 * tests/store/run compares that with what etcd has. */

struct contender {
    uv_loop_t *loop;
    struct mst_store *store;
    struct mst_coordinator_conf *conf;
    uint64_t instance, pace_ms, rows;
    struct mst_meta_row meta;
    struct mst_txn txn;
    uv_timer_t pace, look;
    uv_signal_t term;
    uint64_t id; /* of the fault row that is being written; never used twice */
    bool begun, busy, stopping;
    unsigned large; /* 3: the largest transaction comes next, 2: then one that prunes, 1: then the answer to that; 0: the usual */
    char standing[MST_WHY_BYTES + 128];
};

__attribute__((format(printf, 1, 2))) static void say(const char *fmt, ...)
{
    char line[1024];
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(line, sizeof(line) - 1, fmt, ap);
    va_end(ap);
    n = n < (int)sizeof(line) - 2 ? n : (int)sizeof(line) - 2;
    line[n++] = '\n';
    if (write(STDOUT_FILENO, line, (size_t)n) != n) /* one write: a line is whole, whatever kills us */
        _exit(4);
}

static void on_committed(void *arg, int err, const char *text)
{
    struct contender *c = arg;

    c->busy = false;
    if (!c->begun) {
        c->begun = err == 0;
        if (c->begun)
            say("term %" PRIu64, c->meta.term);
        else
            c->meta.term--;
    } else if (c->large > 1) {
        say("large %s %s", err == 0 ? "0" : mst_errname(err), text);
        c->large--;
    } else if (err == 0) {
        say("ok %" PRIu64, c->id);
    } else {
        say("not %" PRIu64 " %s %s", c->id, mst_errname(err), text);
    }
    if (c->stopping)
        uv_stop(c->loop);
}

static void on_confirmed(void *arg, int err, const char *text)
{
    (void)arg;
    say("confirmed %s %s", err == 0 ? "0" : mst_errname(err), text);
}

/* A transaction as large as the core's may be, every text full; a key named twice; history that the next one prunes. */
static void stage_largest(struct contender *c)
{
    static struct mst_definition definition;
    struct mst_txn *txn = &c->txn;

    memset(&definition, 'd', sizeof(definition));
    definition.protect = MST_PROTECT_LOCAL;
    definition.name[MST_NAME_BYTES - 1] = '\0';
    definition.allowed_count = 1;
    definition.packed_bytes = MST_DEFINITION_BYTES;
    for (unsigned i = txn->count; i < MST_TXN_ROWS; i++) {
        struct mst_row *row = &txn->rows[txn->count++];

        memset(row, 0, sizeof(*row));
        if (i == MST_TXN_ROWS - 1) {
            row->kind = MST_ROW_DEFINITION;
            row->definition = &definition;
        } else if (i <= 2) { /* the second replaces the first */
            row->kind = MST_ROW_STEP;
            row->step = (struct mst_step_row){.recovery_id = 2, .n = 31, .wall_ms = i};
        } else if (i <= 6) { /* 1 and 2 are done, 3 is open, 4 is done: only what is older than the open one may go */
            row->kind = MST_ROW_RECOVERY;
            row->recovery = (struct mst_recovery_row){.id = i - 2, .state = i == 5 ? MST_REC_HELD : MST_REC_DONE};
        } else if (i <= 20) {
            row->kind = MST_ROW_FAULT;
            row->fault.id = i;
            memset(row->fault.text, 'f', sizeof(row->fault.text) - 1);
        } else if (i % 2 == 0) {
            row->kind = MST_ROW_VM;
            memset(row->vm.name, 'v', MST_NAME_BYTES - 5);
            snprintf(row->vm.name + MST_NAME_BYTES - 5, 5, "%u", i);
            memset(row->vm.text, 't', sizeof(row->vm.text) - 1);
            row->vm.epoch = row->vm.instance = UINT64_MAX >> 1;
        } else {
            row->kind = MST_ROW_RVM;
            row->rvm.recovery_id = 3;
            memset(row->rvm.vm, 'v', MST_NAME_BYTES - 5);
            snprintf(row->rvm.vm + MST_NAME_BYTES - 5, 5, "%u", i);
            memset(row->rvm.text, 't', sizeof(row->rvm.text) - 1);
            memset(&row->rvm.start, 0x7f, sizeof(row->rvm.start));
        }
    }
}

static void on_pace(uv_timer_t *timer)
{
    struct contender *c = timer->data;
    struct mst_row *row;

    if (c->busy || c->stopping)
        return;
    c->txn.count = 0;
    row = &c->txn.rows[c->txn.count++];
    memset(row, 0, sizeof(*row));
    row->kind = MST_ROW_META;
    if (c->begun && c->large == 3) {
        stage_largest(c);
    } else if (c->begun && c->large == 2) {
        c->meta.next_recovery = 2500;
        c->meta.next_fault = 2304;
        c->txn.rows[c->txn.count++] = (struct mst_row){.kind = MST_ROW_FAULT, .fault = {.id = 2304}};
    } else if (c->begun) {
        struct mst_row *fault = &c->txn.rows[c->txn.count++];

        memset(fault, 0, sizeof(*fault));
        fault->kind = MST_ROW_FAULT;
        fault->fault.id = c->id = ++c->meta.next_fault;
        fault->fault.instance = c->instance;
        fault->fault.epoch = c->meta.term;
        say("try %" PRIu64, c->id);
        if (c->id % 16 == 0)
            mst_store_confirm(c->store, on_confirmed, c);
    } else {
        c->meta.term++;
    }
    row->meta = c->meta;
    c->busy = true;
    mst_store_commit(c->store, &c->txn, on_committed, c);
}

static int on_row(void *arg, const struct mst_row *row, struct mst_why *why)
{
    struct contender *c = arg;

    (void)why;
    c->rows++;
    if (row->kind == MST_ROW_META)
        c->meta = row->meta;
    if (row->kind == MST_ROW_FAULT && row->fault.id > c->meta.next_fault) {
        say("lost fault %" PRIu64 " is beyond the meta row", row->fault.id);
        exit(5);
    }
    return 0;
}

static void on_lead(void *arg)
{
    struct contender *c = arg;
    struct mst_why why = {0};
    int r = mst_store_load(c->store, on_row, c, &why);

    if (r < 0) {
        say("unreadable %s %s", mst_errname(r), why.text);
        exit(6);
    }
    say("lead %" PRIu64, c->rows);
    (void)uv_timer_start(&c->pace, on_pace, 0, c->pace_ms);
}

static void on_lost(void *arg, const char *text)
{
    (void)arg;
    say("lost %s", text);
    _exit(3);
}

static void on_look(uv_timer_t *timer)
{
    struct contender *c = timer->data;
    struct mst_store_standing standing;
    char text[sizeof(c->standing)];

    mst_store_standing(c->store, &standing);
    snprintf(text, sizeof(text), "%s%s%.64s %s", standing.leads ? "leads" : "stands by", standing.leader ? ", leader at " : "",
             standing.leader ? standing.address : "", standing.text);
    if (strcmp(text, c->standing) == 0)
        return;
    memcpy(c->standing, text, sizeof(text));
    say("standing %s", text);
}

static void on_term(uv_signal_t *signal, int number)
{
    struct contender *c = signal->data;

    (void)number;
    c->stopping = true;
    if (!c->busy)
        uv_stop(c->loop);
}

/* contender fill FOLDER COUNT: a SQLite store with COUNT rows and a meta row. contender hold FOLDER: has it open until it is killed. */
static int sqlite_rows(const char *what, const char *folder, unsigned count)
{
    static struct mst_definition definition = {.name = "vm-0", .memory_mib = 16, .packed_bytes = 4, .packed = {1, 2, 0, 255}};
    static struct mst_txn txn;
    struct mst_store *store;
    struct mst_why why = {0};
    uv_loop_t *loop = uv_default_loop();

    if (mst_store_sqlite_open(loop, folder, &store, &why) < 0) {
        fprintf(stderr, "%s\n", why.text);
        return 1;
    }
    if (strcmp(what, "hold") == 0) {
        say("holds");
        (void)pause();
        return 1;
    }
    for (unsigned i = 0; i < count; i++) {
        struct mst_row *row = &txn.rows[txn.count++];

        memset(row, 0, sizeof(*row));
        if (i == 0) {
            row->kind = MST_ROW_DEFINITION;
            row->definition = &definition;
        } else if (i % 3 == 0) {
            row->kind = MST_ROW_VM;
            snprintf(row->vm.name, sizeof(row->vm.name), "vm-%u", i);
            row->vm.epoch = UINT64_MAX - i;
        } else if (i % 3 == 1) {
            row->kind = MST_ROW_RECOVERY;
            row->recovery.id = i;
            snprintf(row->recovery.proof, sizeof(row->recovery.proof), "no UTF-8: \xff\xc3");
        } else {
            row->kind = MST_ROW_FAULT;
            row->fault.id = i;
            memset(row->fault.text, 'x', sizeof(row->fault.text) - 1);
        }
        if (i + 1 == count) {
            row = &txn.rows[txn.count++];
            memset(row, 0, sizeof(*row));
            row->kind = MST_ROW_META;
            row->meta =
                (struct mst_meta_row){.term = 41, .next_fault = count, .next_recovery = count, .next_proof = 7, .epoch_floor = 9};
        }
        if (txn.count < 100 && i + 1 < count)
            continue;
        if (mst_store_commit_now(store, &txn, &why) < 0)
            return 1;
        txn.count = 0;
    }
    mst_store_close(store);
    return 0;
}

int main(int argc, char **argv)
{
    static struct contender c;
    static const struct mst_store_events events = {.on_lead = on_lead, .on_lost = on_lost};
    struct mst_why why = {0};
    int r;

    if (argc >= 3 && (strcmp(argv[1], "fill") == 0 || strcmp(argv[1], "hold") == 0))
        return sqlite_rows(argv[1], argv[2], argc == 4 ? (unsigned)strtoul(argv[3], NULL, 10) : 0);
    if (argc == 4 && strcmp(argv[3], "large") == 0)
        c.large = 3;
    else if (argc != 3)
        return 2;
    mst_log_init("contender");
    (void)signal(SIGPIPE, SIG_IGN);
    r = mst_coordinator_conf_load(argv[1], &c.conf, &why);
    if (r < 0) {
        fprintf(stderr, "%s\n", why.text);
        return 2;
    }
    c.loop = uv_default_loop();
    c.instance = mst_random_u64();
    c.pace_ms = strtoull(argv[2], NULL, 10);
    r = mst_store_etcd_open(c.loop, c.conf, c.instance, &c.store, &why);
    if (r < 0) {
        say("unopened %s %s", mst_errname(r), why.text);
        return 2;
    }
    say("up %016" PRIx64, c.instance);
    (void)uv_timer_init(c.loop, &c.pace);
    (void)uv_timer_init(c.loop, &c.look);
    (void)uv_signal_init(c.loop, &c.term);
    c.pace.data = c.look.data = c.term.data = &c;
    (void)uv_timer_start(&c.look, on_look, 20, 20);
    (void)uv_signal_start(&c.term, on_term, SIGTERM);
    mst_store_campaign(c.store, &events, &c);
    (void)uv_run(c.loop, UV_RUN_DEFAULT);
    mst_store_close(c.store);
    uv_close((uv_handle_t *)&c.pace, NULL);
    uv_close((uv_handle_t *)&c.look, NULL);
    uv_close((uv_handle_t *)&c.term, NULL);
    (void)uv_run(c.loop, UV_RUN_DEFAULT);
    mst_coordinator_conf_free(c.conf);
    return 0;
}
