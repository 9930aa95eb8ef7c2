#ifndef MST_IO_STORE_ETCD_H
#define MST_IO_STORE_ETCD_H

#include "coordinator/io/etcd.h"
#include "coordinator/io/store.h"

/* Inside the etcd back end only: store_etcd.c (lease, leadership), store_etcd_rows.c (rows: load, commit). */

/* 1: meta without decision, terms; 2: without mirrors; 3: without mirror_apart, exposed_wall_ms */
#define ETCD_SCHEMA_VERSION 4
#define ETCD_TXN_OPS        256u  /* what every member has to take in one transaction */
#define ETCD_HISTORY_KEPT   2000u /* recoveries, faults and proofs */
#define ETCD_OPEN_MAX       512u  /* recoveries that are not done */
#define ETCD_KEY_BYTES      (128 + 160)
static_assert(MST_TXN_ROWS + 24 <= ETCD_TXN_OPS, "every transaction of the core, its meta row, deletions and pruning");

/*            campaign        key is gone         has room for our transactions    lease
 *     IDLE ----------> WATCHING ----------> PROBING ----------> GRANTING ----------> CAMPAIGNING
 *                        ^  ^                  | no                | fails               |  somebody was faster: lease given back
 *                        |  +------------------+-------------------+---------------------+
 *                        |                                                               | our key is there
 *                        |                        LOST <------ READING, LEADING <--------+
 *                        |                         (ends the process)
 */
enum etcd_state {
    ETCD_IDLE,
    ETCD_WATCHING,
    ETCD_PROBING,
    ETCD_GRANTING,
    ETCD_CAMPAIGNING,
    ETCD_READING,
    ETCD_LEADING,
    ETCD_LOST,
    ETCD_STATES
};

struct etcd_loaded { /* a row that was read and waits for mst_store_load */
    struct mst_row row;
    struct mst_definition *definition; /* NULL: another kind of row */
};

struct etcd_store {
    struct mst_store head; /* first */
    uv_loop_t *loop;
    const struct mst_coordinator_conf *conf;
    const char *prefix;
    struct mst_etcd *etcd;
    uint64_t instance;
    const struct mst_store_events *events;
    void *arg;
    unsigned state;
    uv_timer_t step, keep;
    unsigned closing;

    /* standing */
    bool leader_known;
    uint32_t leader_id, leader_port;
    char leader_address[64];
    unsigned silent; /* requests in a row that nobody answered */
    char trouble[MST_WHY_BYTES];

    /* our lease and key; CLOCK_BOOTTIME */
    int64_t lease;
    uint32_t ttl_ms;
    uint64_t asked_ms;      /* when the newest grant or keep-alive was sent that was answered well, or the first is on its way */
    uint64_t good_until_ms; /* by our clock the lease has not ended before this */
    uint64_t keep_next_ms;
    bool keep_busy;
    int64_t leader_revision; /* create_revision of our leader key */

    /* rows */
    int64_t meta_revision; /* mod_revision of the meta key as we wrote or read it last, 0: there is none */
    bool meta_known;
    struct mst_meta_row meta;
    uint64_t commits;
    uint64_t open[ETCD_OPEN_MAX]; /* ids of recoveries that are not done: never pruned */
    unsigned open_count;
    bool open_overflow;

    /* reading */
    unsigned table;
    char from[ETCD_KEY_BYTES];
    struct etcd_loaded *loaded;
    size_t loaded_count, loaded_room;
    int load_err;
    struct mst_why load_why;
    bool migrating, may_migrate; /* our commits leave the mark of an unfinished copy; we may read one */
    bool unfinished, wipe;       /* what was read is one; the next commit empties all tables */

    /* the commit that is under way */
    struct {
        const struct mst_txn *txn; /* NULL: none */
        mst_commit_fn done;
        void *arg;
        unsigned resolves, refusals;
        bool resolving;
        int err; /* why it is in doubt */
        char text[MST_WHY_BYTES];
    } commit;
    uv_timer_t again; /* a commit or its resolution is sent again */
};

/* store_etcd.c */
void etcd_lost(struct etcd_store *store, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void etcd_move(struct etcd_store *store, enum etcd_state next);
const char *etcd_key(const struct etcd_store *store, const char *name, char buf[static ETCD_KEY_BYTES]);
uint32_t etcd_timeout(const struct etcd_store *store);
/* Whether answer, whose operation index ranges over the leader key, shows another leader than us, or none. */
bool etcd_other_leads(struct etcd_store *store, const json_t *answer, unsigned index);

/* store_etcd_rows.c */
void etcd_read_begin(struct etcd_store *store); /* reads everything; then state LEADING and on_lead */
int etcd_load(struct mst_store *head, mst_row_fn on_row, void *arg, struct mst_why *why);
void etcd_commit(struct mst_store *head, const struct mst_txn *txn, mst_commit_fn done, void *arg);
void etcd_rows_free(struct etcd_store *store);
void etcd_on_again(uv_timer_t *timer);

#endif
