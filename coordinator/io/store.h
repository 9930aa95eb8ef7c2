#ifndef MST_IO_STORE_H
#define MST_IO_STORE_H

#include "base/err.h"
#include "conf/conf.h"
#include "coordinator/core/rows.h"

#include <stdbool.h>
#include <uv.h>

/* Where the coordinator keeps its rows. One interface, two back ends:
 *     SQLite  one coordinator; a file on its disk (store_sqlite.c)
 *     etcd    three or more; the leader's alone to write (store_etcd.c, docs/decisions/0004)
 * A transaction is durable when it has been reported as committed, and only who leads commits: open, campaign, on_lead, load, commit.
 * Loop thread only. */

struct mst_store;

typedef int (*mst_row_fn)(void *arg, const struct mst_row *row, struct mst_why *why);
typedef void (*mst_commit_fn)(void *arg, int err, const char *text);

struct mst_store_events {
    void (*on_lead)(void *arg); /* the rows may be loaded, and are ours to change, from now on */
    /* We lead no more, or cannot be sure that we do: nothing may be decided, ordered or shot from now on. Nothing else is called after it;
     * what was under way stays without an answer. text says why. */
    void (*on_lost)(void *arg, const char *text);
};

/* Who leads, as far as is known here. */
struct mst_store_standing {
    bool leads;  /* we do, by our clock: the lease cannot have ended yet */
    bool leader; /* somebody else does; the members below say who */
    uint32_t id, port;
    char address[64];
    char text[MST_WHY_BYTES]; /* what stands against our leading: "no endpoint of etcd answers: ..."; empty: nothing */
};

/* --- back ends --- */

/* Opens or makes FOLDER/coordinator.db and checks it: write-ahead log, synchronous=FULL, one process at a time; writing happens on a worker
 * thread, so that a slow disk does not stop the loop. Blocks. why says what to do: -EACCES no permission, -EBUSY another coordinator has
 * it, -EBADMSG damaged, -EPROTONOSUPPORT made by a newer version, -ENOSPC, -EIO. */
int mst_store_sqlite_open(uv_loop_t *loop, const char *folder, struct mst_store **ret_store, struct mst_why *why);
/* The same, but -ENOENT when there is none yet: for reading out. */
int mst_store_sqlite_open_existing(uv_loop_t *loop, const char *folder, struct mst_store **ret_store, struct mst_why *why);

/* Who we are is told to those who ask a standby. conf (its etcd and cluster members) is borrowed for the life of the store. Talks to nobody yet:
 * endpoints that do not answer are tried for ever. -ENOMEM, -EINVAL a file of the TLS configuration cannot be read (why). */
int mst_store_etcd_open(uv_loop_t *loop, const struct mst_coordinator_conf *conf, uint64_t instance, struct mst_store **ret_store,
                        struct mst_why *why);

/* For the command that moves a store into etcd (migrate.c). Before campaign: what is there may be an unfinished copy, and every commit leaves the
 * store marked as one, which nobody else then reads. */
void mst_store_etcd_migrate(struct mst_store *store);
bool mst_store_etcd_unfinished(const struct mst_store *store); /* after on_lead: what is there is one */
void mst_store_etcd_wipe(struct mst_store *store);             /* the next commit, which has no rows, empties it */
void mst_store_etcd_migrated(struct mst_store *store);         /* the next commit takes the mark away */

/* --- both --- */

/* Once: from now on we lead whenever nobody else does. events is borrowed. May call on_lead before it returns. */
void mst_store_campaign(struct mst_store *store, const struct mst_store_events *events, void *arg);
/* After on_lead: all rows that are kept in memory, in the order that mst_core_load wants. on_row: 0, or -errno to stop.
 * -EBADMSG a row does not check, -EPROTONOSUPPORT written by a newer version. SQLite blocks for it. */
int mst_store_load(struct mst_store *store, mst_row_fn on_row, void *arg, struct mst_why *why);
/* Commits txn, which stays untouched until done runs (once, from the loop, unless on_lost comes). One at a time. err: 0, -ENOSPC, -EIO, ...: then
 * nothing of it was written and nothing of it will be. SQLite only: should this process die before the next commit, all of it may be. */
void mst_store_commit(struct mst_store *store, const struct mst_txn *txn, mst_commit_fn done, void *arg);
/* Asks whether we still lead, before something that cannot be undone: done with 0, or with what kept the question from being answered; on_lost when
 * another leads. May run done before it returns. One at a time for each token; any number of tokens up to MST_NODES_MAX. */
void mst_store_confirm(struct mst_store *store, mst_commit_fn done, void *arg);
/* The same, waiting, and within a few seconds: for a process that finds that it stood still. 0; -EAGAIN not answered, -ESTALE another leads. */
int mst_store_confirm_now(struct mst_store *store, struct mst_why *why);
/* Whether we lead, by the clock alone: false from shortly before our lease can have ended. Cheap. */
bool mst_store_leads(const struct mst_store *store);
void mst_store_standing(const struct mst_store *store, struct mst_store_standing *ret);
/* Not while a commit is under way. Gives the leadership up, so that another need not wait for the end of our lease. */
void mst_store_close(struct mst_store *store);

/* For tests and migration: a commit that waits. SQLite only; -EOPNOTSUPP. */
int mst_store_commit_now(struct mst_store *store, const struct mst_txn *txn, struct mst_why *why);

/* --- for back ends --- */

struct mst_store_ops {
    void (*campaign)(struct mst_store *store, const struct mst_store_events *events, void *arg);
    int (*load)(struct mst_store *store, mst_row_fn on_row, void *arg, struct mst_why *why);
    void (*commit)(struct mst_store *store, const struct mst_txn *txn, mst_commit_fn done, void *arg);
    int (*commit_now)(struct mst_store *store, const struct mst_txn *txn, struct mst_why *why); /* NULL: not supported */
    void (*confirm)(struct mst_store *store, mst_commit_fn done, void *arg);
    int (*confirm_now)(struct mst_store *store, struct mst_why *why);
    bool (*leads)(const struct mst_store *store);
    void (*standing)(const struct mst_store *store, struct mst_store_standing *ret);
    void (*close)(struct mst_store *store);
};
struct mst_store { /* first member of a back end's own struct */
    const struct mst_store_ops *ops;
};

#endif
