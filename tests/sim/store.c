#include "tests/sim/store.h"
#include "tests/sim/kernel.h"

#include <stdlib.h>
#include <string.h>

struct sim_store *sim_store_new(void)
{
    return sim_keep(sizeof(struct sim_store));
}

struct sim_store *sim_store_copy(const struct sim_store *store)
{
    struct sim_store *copy = sim_keep(sizeof(*copy));

    *copy = *store;
    for (unsigned kind = 0; kind < MST_ROW_KINDS; kind++) {
        struct sim_table *table = &copy->tables[kind];

        if (table->count == 0)
            continue;
        table->rows = sim_keep(table->room * sizeof(*table->rows));
        memcpy(table->rows, store->tables[kind].rows, table->count * sizeof(*table->rows));
    }
    return copy;
}

static bool same_key(const struct mst_row *a, const struct mst_row *b)
{
    switch (a->kind) {
    case MST_ROW_META:
        return true;
    case MST_ROW_NODE:
        return a->node.id == b->node.id;
    case MST_ROW_DEFINITION:
        return strcmp(a->definition->name, b->definition->name) == 0;
    case MST_ROW_VM:
        return strcmp(a->vm.name, b->vm.name) == 0;
    case MST_ROW_FAULT:
        return a->fault.id == b->fault.id;
    case MST_ROW_RECOVERY:
        return a->recovery.id == b->recovery.id;
    case MST_ROW_STEP:
        return a->step.n == b->step.n && a->step.recovery_id == b->step.recovery_id;
    case MST_ROW_RVM:
        return a->rvm.recovery_id == b->rvm.recovery_id && strcmp(a->rvm.vm, b->rvm.vm) == 0;
    case MST_ROW_PROOF:
        return a->proof.id == b->proof.id;
    case MST_ROW_MIRROR:
        return a->mirror.n == b->mirror.n && strcmp(a->mirror.vm, b->mirror.vm) == 0;
    default:
        return false;
    }
}

/* What is written again was mostly written not long ago. */
static struct mst_row *find(const struct sim_table *table, const struct mst_row *key)
{
    for (unsigned i = table->count; i > 0; i--) {
        if (same_key(&table->rows[i - 1], key))
            return &table->rows[i - 1];
    }
    return NULL;
}

static void vm_delete(struct sim_store *store, const char *name)
{
    struct sim_table *vms = &store->tables[MST_ROW_VM];
    struct sim_table *definitions = &store->tables[MST_ROW_DEFINITION];
    struct sim_table *mirrors = &store->tables[MST_ROW_MIRROR];

    for (unsigned i = 0; i < vms->count; i++) {
        if (strcmp(vms->rows[i].vm.name, name) == 0)
            vms->rows[i--] = vms->rows[--vms->count];
    }
    for (unsigned i = 0; i < definitions->count; i++) {
        if (strcmp(definitions->rows[i].definition->name, name) == 0)
            definitions->rows[i--] = definitions->rows[--definitions->count];
    }
    for (unsigned i = 0; i < mirrors->count; i++) {
        if (strcmp(mirrors->rows[i].mirror.vm, name) == 0)
            mirrors->rows[i--] = mirrors->rows[--mirrors->count];
    }
}

static void put(struct sim_store *store, const struct mst_row *row)
{
    struct sim_table *table = &store->tables[row->kind];
    struct mst_row copy = *row, *place;

    if (row->kind == MST_ROW_VM_DELETE) {
        vm_delete(store, row->vm_delete);
        return;
    }
    if (row->kind == MST_ROW_DEFINITION) {
        struct mst_definition *definition = sim_keep(sizeof(*definition));

        *definition = *row->definition;
        copy.definition = definition;
    }
    place = find(table, &copy);
    if (place) {
        *place = copy;
        return;
    }
    if (table->count == table->room || !table->rows) {
        unsigned room = table->room ? 2 * table->room : 16;
        struct mst_row *rows = sim_keep(room * sizeof(*rows));

        if (table->rows)
            memcpy(rows, table->rows, table->count * sizeof(*rows));
        table->rows = rows;
        table->room = room;
    }
    table->rows[table->count++] = copy;
}

void sim_store_commit(struct sim_store *store, const struct mst_txn *txn)
{
    for (uint32_t i = 0; i < txn->count; i++)
        put(store, &txn->rows[i]);
    store->commits++;
}

const struct mst_vm_row *sim_store_vm(const struct sim_store *store, const char *name)
{
    const struct sim_table *table = &store->tables[MST_ROW_VM];

    for (unsigned i = 0; i < table->count; i++) {
        if (strcmp(table->rows[i].vm.name, name) == 0)
            return &table->rows[i].vm;
    }
    return NULL;
}

const struct mst_meta_row *sim_store_meta(const struct sim_store *store)
{
    const struct sim_table *table = &store->tables[MST_ROW_META];

    return table->count ? &table->rows[0].meta : NULL;
}

const struct mst_recovery_row *sim_store_recovery(const struct sim_store *store, uint64_t id)
{
    const struct sim_table *table = &store->tables[MST_ROW_RECOVERY];

    for (unsigned i = table->count; i > 0; i--) {
        if (table->rows[i - 1].recovery.id == id)
            return &table->rows[i - 1].recovery;
    }
    return NULL;
}

const struct mst_proof_row *sim_store_proof(const struct sim_store *store, uint64_t id)
{
    const struct sim_table *table = &store->tables[MST_ROW_PROOF];

    for (unsigned i = table->count; i > 0; i--) {
        if (table->rows[i - 1].proof.id == id)
            return &table->rows[i - 1].proof;
    }
    return NULL;
}
