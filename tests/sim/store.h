#ifndef SIM_STORE_H
#define SIM_STORE_H

#include "coordinator/core/rows.h"

/* A coordinator's disk: the rows of coordinator/core/rows.h, transaction by transaction. */

struct sim_table {
    struct mst_row *rows;
    unsigned count, room;
};

struct sim_store {
    struct sim_table tables[MST_ROW_KINDS];
    struct mst_definition *definitions[64]; /* what the rows of that kind point to */
    unsigned definitions_count;
    uint64_t commits;
};

struct sim_store *sim_store_new(void);
struct sim_store *sim_store_copy(const struct sim_store *store);
void sim_store_commit(struct sim_store *store, const struct mst_txn *txn);
const struct mst_vm_row *sim_store_vm(const struct sim_store *store, const char *name);
const struct mst_meta_row *sim_store_meta(const struct sim_store *store);
const struct mst_recovery_row *sim_store_recovery(const struct sim_store *store, uint64_t id);
const struct mst_proof_row *sim_store_proof(const struct sim_store *store, uint64_t id);

#endif
