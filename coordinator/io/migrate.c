#include "coordinator/io/migrate.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "coordinator/io/store.h"
#include "coordinator/io/store_json.h"
#include "coordinator/io/store_rows.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS_AT_ONCE 64u
#define ANSWER_MS    30000u /* etcd has to answer within this */

/*    reading the source -> leading: is the target empty? -> copying, ROWS_AT_ONCE at a time -> the last commit, with the meta row, ends the copy
 *    -> leading once more: reading back and comparing -> putting the source away */

struct source_row {
    struct mst_row row;
    struct mst_definition *definition; /* that row points to, NULL: none */
};

struct migrate {
    uv_loop_t loop;
    struct mst_store *target;
    const struct mst_coordinator_conf *conf;
    struct source_row *rows;
    size_t count, room, at; /* at: rows before it are in the target */
    size_t back;            /* rows read back */
    struct mst_txn txn;
    uv_timer_t deadline;
    uint64_t begun_ms;
    bool finished, ended; /* ended: the last commit, the one with the meta row, is under way or done */
    int err;
    struct mst_why why;
};

static void finish(struct migrate *m, int err)
{
    m->err = err;
    m->finished = true;
    uv_stop(&m->loop);
}

static int on_source_row(void *arg, const struct mst_row *row, struct mst_why *why)
{
    struct migrate *m = arg;
    struct mst_definition *def = NULL;

    (void)why;
    if (m->count == m->room) {
        size_t room = m->room ? 2 * m->room : 256;
        struct source_row *rows = realloc(m->rows, room * sizeof(*rows));

        if (!rows)
            return -ENOMEM;
        m->rows = rows;
        m->room = room;
    }
    if (row->kind == MST_ROW_DEFINITION) {
        def = malloc(sizeof(*def));
        if (!def)
            return -ENOMEM;
        *def = *row->definition;
    }
    m->rows[m->count] = (struct source_row){.row = *row, .definition = def};
    if (def)
        m->rows[m->count].row.definition = def;
    m->count++;
    return 0;
}

/* --- copying --- */

static void copy_next(struct migrate *m);

static void on_copied(void *arg, int err, const char *text)
{
    struct migrate *m = arg;

    if (err < 0) {
        mst_why_set(&m->why, err, "etcd refuses the copy, which stays unfinished: %s", text);
        finish(m, err);
    } else if (m->ended) {
        finish(m, 0);
    } else {
        copy_next(m);
    }
}

static void copy_next(struct migrate *m)
{
    m->txn.count = 0;
    while (m->at < m->count && m->txn.count < ROWS_AT_ONCE) {
        if (m->rows[m->at].row.kind != MST_ROW_META)
            m->txn.rows[m->txn.count++] = m->rows[m->at].row;
        m->at++;
    }
    if (m->txn.count == 0) { /* the meta row goes last */
        for (size_t i = 0; i < m->count; i++) {
            if (m->rows[i].row.kind == MST_ROW_META)
                m->txn.rows[m->txn.count++] = m->rows[i].row;
        }
        m->ended = true;
        mst_store_etcd_migrated(m->target);
    }
    mst_store_commit(m->target, &m->txn, on_copied, m);
}

static int on_row_there(void *arg, const struct mst_row *row, struct mst_why *why)
{
    const struct migrate *m = arg;

    (void)row;
    return mst_why_set(why, -EEXIST, "there are rows below %s in etcd already: nothing was changed",
                       m->conf->store->etcd->prefix);
}

static void on_lead_copy(void *arg)
{
    struct migrate *m = arg;
    int r;

    if (mst_store_etcd_unfinished(m->target)) {
        log_notice("an unfinished copy of an earlier run is taken away first");
        mst_store_etcd_wipe(m->target);
        m->txn.count = 0;
        mst_store_commit(m->target, &m->txn, on_copied, m);
        return;
    }
    r = mst_store_load(m->target, on_row_there, m, &m->why);
    if (r < 0)
        finish(m, r);
    else
        copy_next(m);
}

/* --- comparing --- */

static bool rows_same(const struct mst_row *a, const struct mst_row *b)
{
    json_t *left = mst_row_json(a);
    json_t *right = mst_row_json(b);
    bool same = left && right && json_equal(left, right);

    json_decref(left);
    json_decref(right);
    return same;
}

static int on_row_back(void *arg, const struct mst_row *row, struct mst_why *why)
{
    struct migrate *m = arg;
    char key[MST_ROW_KEY_BYTES], other[MST_ROW_KEY_BYTES];
    int r = mst_row_key(row, key, sizeof(key));

    m->back++;
    for (size_t i = 0; r == 0 && i < m->count; i++) {
        if (m->rows[i].row.kind != row->kind || mst_row_key(&m->rows[i].row, other, sizeof(other)) < 0 || strcmp(key, other) != 0)
            continue;
        return rows_same(&m->rows[i].row, row) ? 0 : mst_why_set(why, -EBADMSG, "%s has come back as something else", key);
    }
    return mst_why_set(why, -EBADMSG, "%s is in etcd, but not in the source", key);
}

static void on_lead_compare(void *arg)
{
    struct migrate *m = arg;
    int r = mst_store_load(m->target, on_row_back, m, &m->why);

    if (r == 0 && m->back != m->count)
        r = mst_why_set(&m->why, -EBADMSG, "%zu rows have come back of %zu", m->back, m->count);
    finish(m, r);
}

/* --- the target --- */

static void on_lost(void *arg, const char *text)
{
    struct migrate *m = arg;

    finish(m, mst_why_set(&m->why, -ECANCELED, "interrupted: %s", text));
}

static void on_deadline(uv_timer_t *timer)
{
    struct migrate *m = timer->data;
    struct mst_store_standing standing;

    mst_store_standing(m->target, &standing);
    if (standing.leads || (!standing.leader && mst_now_ms() - m->begun_ms < ANSWER_MS))
        return;          /* it goes on, row by row; or etcd may still answer */
    if (standing.leader) /* for longer than a dead leader's lease */
        mst_why_set(&m->why, 0, "coordinator %u at %s leads on this etcd: it is in use", standing.id, standing.address);
    else
        mst_why_set(&m->why, 0, "%s", standing.text);
    finish(m, standing.leader ? -EBUSY : -ETIMEDOUT);
}

/* Leads, does what on_lead does, and gives the leadership back. */
static int with_target(struct migrate *m, const struct mst_store_events *events, bool copying)
{
    int r = mst_store_etcd_open(&m->loop, m->conf, mst_random_u64(), &m->target, &m->why);

    if (r < 0)
        return r;
    if (copying)
        mst_store_etcd_migrate(m->target);
    m->finished = false;
    (void)uv_timer_init(&m->loop, &m->deadline);
    m->deadline.data = m;
    m->begun_ms = mst_now_ms();
    (void)uv_timer_start(&m->deadline, on_deadline, m->conf->store->etcd->lease_ms + 2000, 1000);
    mst_store_campaign(m->target, events, m);
    while (!m->finished)
        (void)uv_run(&m->loop, UV_RUN_DEFAULT);
    mst_store_close(m->target);
    uv_close((uv_handle_t *)&m->deadline, NULL);
    (void)uv_run(&m->loop, UV_RUN_DEFAULT);
    return m->err;
}

static int put_away(const char *folder, struct mst_why *why)
{
    char from[PATH_MAX], to[PATH_MAX];
    int r = mst_path(from, sizeof(from), "%s/coordinator.db", folder);

    if (r == 0)
        r = mst_path(to, sizeof(to), "%s/coordinator.db.moved-to-etcd", folder);
    if (r == 0 && rename(from, to) < 0)
        r = -errno;
    return r < 0 ? mst_why_set(why, r, "%s/coordinator.db is copied, but cannot be renamed (%s): move it away by hand", folder,
                               strerror(-r))
                 : 0;
}

static int move_all(struct migrate *m, const char *folder)
{
    static const struct mst_store_events copying = {.on_lead = on_lead_copy, .on_lost = on_lost};
    static const struct mst_store_events comparing = {.on_lead = on_lead_compare, .on_lost = on_lost};
    struct mst_store *source = NULL;
    int r = mst_store_sqlite_open_existing(&m->loop, folder, &source, &m->why);

    if (r < 0)
        return r;
    r = mst_store_load(source, on_source_row, m, &m->why);
    if (r == 0 && m->count == 0)
        r = mst_why_set(&m->why, -ENODATA, "%s/coordinator.db has no rows: there is nothing to move", folder);
    if (r == 0)
        r = with_target(m, &copying, true);
    if (r == 0)
        r = with_target(m, &comparing, false);
    mst_store_close(source); /* only now: until here nobody else could decide on it */
    return r == 0 ? put_away(folder, &m->why) : r;
}

int mst_migrate(const struct mst_coordinator_conf *conf, const char *folder)
{
    static struct migrate m;
    int r;

    m.conf = conf;
    if (!conf->store) {
        log_error("the configuration has no store.etcd: there is nowhere to move to");
        return EXIT_FAILURE;
    }
    if (uv_loop_init(&m.loop) < 0)
        return EXIT_FAILURE;
    r = move_all(&m, folder);
    if (r == 0)
        printf("%zu rows moved from %s/coordinator.db to %s in etcd, read back and compared; the file is now "
               "coordinator.db.moved-to-etcd\n",
               m.count, folder, conf->store->etcd->prefix);
    else
        log_error("not moved: %s", m.why.text[0] ? m.why.text : strerror(-r));
    for (size_t i = 0; i < m.count; i++)
        free(m.rows[i].definition);
    free(m.rows);
    (void)uv_loop_close(&m.loop);
    return r == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
