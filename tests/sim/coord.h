#ifndef SIM_COORD_H
#define SIM_COORD_H

#include "coordinator/core/core.h"
#include "tests/sim/points.h"
#include "tests/sim/store.h"
#include "tests/sim/world.h"

/* A coordinator's process: the real core, control links and watch over a simulated fence device. One alone has a simulated disk. Several share etcd:
 * leading, campaigning and the whole of that store are the product's, down to its HTTP (etcd.h); what it has committed is kept as rows as well (store.h),
 * for the checkers. */

enum sim_disk { DISK_WORKS, DISK_REFUSES, DISK_SLOW, DISK_HANGS };

struct app;

struct sim_coord {
    unsigned index;
    struct sim_host *host;
    struct sim_store *store, *old_copy;
    bool on_old_copy;                /* it runs on one, by the operator's mistake */
    uint64_t witness[SIM_NODES_MAX]; /* keeper instances that have heard of decisions which the copy lacks; 0: not this node */
    struct sim_store *set_aside;
    enum sim_disk disk;
    bool hung;       /* a transaction waits for it */
    struct app *app; /* of the living process; no core: a standby */
    const struct mst_txn *txn;
    uint64_t up_ns;
    unsigned starts;
    uint64_t term; /* of this process, once durable */
    uint64_t tokens;
    uint64_t instance; /* of the living process */
    uint64_t led_ns;   /* when it had read its store and began to decide */
    uint64_t commits;  /* that it handed to etcd */
    struct commit_copy *copies;
};

extern void (*sim_on_lease)(unsigned node); /* a renewal is on its way to the node; NULL: nobody wants to know. Of one run */

struct sim_coord *sim_coord_new(unsigned index, struct sim_host *host);
void sim_coord_start(struct sim_coord *coord);
void sim_coord_kill(struct sim_coord *coord, uint64_t back_after_ms);
void sim_coord_disk_goes_on(struct sim_coord *coord);           /* a disk that hung answers */
struct mst_core *sim_coord_core(const struct sim_coord *coord); /* NULL: dead */
struct mst_time sim_coord_time(const struct sim_coord *coord);
struct sim_coord *sim_coord_leader(void); /* the one of the newest term that lives and is ready; NULL: none */

/* The operator: token of the answer (oracle_reply), 0: nobody takes it. */
uint64_t sim_operator(enum mst_request_type type, const char *name, const char *node, const struct mst_definition *definition);
void sim_operator_report(uint32_t kind, const char *node, const char *vm, uint64_t epoch, uint64_t instance,
                         const char *reporter);
bool sim_replied(uint64_t token, int *ret_err);

#endif
