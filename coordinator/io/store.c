#include "coordinator/io/store.h"

#include <errno.h>
#include <string.h>

void mst_store_campaign(struct mst_store *store, const struct mst_store_events *events, void *arg)
{
    store->ops->campaign(store, events, arg);
}

int mst_store_load(struct mst_store *store, mst_row_fn on_row, void *arg, struct mst_why *why)
{
    return store->ops->load(store, on_row, arg, why);
}

void mst_store_commit(struct mst_store *store, const struct mst_txn *txn, mst_commit_fn done, void *arg)
{
    store->ops->commit(store, txn, done, arg);
}

int mst_store_commit_now(struct mst_store *store, const struct mst_txn *txn, struct mst_why *why)
{
    return store->ops->commit_now ? store->ops->commit_now(store, txn, why)
                                  : mst_why_set(why, -EOPNOTSUPP, "this store cannot wait for a commit");
}

void mst_store_confirm(struct mst_store *store, mst_commit_fn done, void *arg)
{
    store->ops->confirm(store, done, arg);
}

int mst_store_confirm_now(struct mst_store *store, struct mst_why *why)
{
    return store->ops->confirm_now(store, why);
}

bool mst_store_leads(const struct mst_store *store)
{
    return store->ops->leads(store);
}

void mst_store_standing(const struct mst_store *store, struct mst_store_standing *ret)
{
    memset(ret, 0, sizeof(*ret));
    store->ops->standing(store, ret);
}

void mst_store_close(struct mst_store *store)
{
    if (store)
        store->ops->close(store);
}
