#ifndef MST_TESTS_FUZZ_CORE_RIG_H
#define MST_TESTS_FUZZ_CORE_RIG_H

#include "coordinator/core/core.h"
#include "fuzz.h"

/* The real core of the coordinator with nothing behind it: what it asks for is noted, and answered when the target says so. Checks what core.h
 * promises of the calls it makes. */

#define RIG_NODES  3u /* n1, n2, n3; n3 has no fence device */
#define RIG_ORDERS 600u
#define RIG_TOKENS 1024u

struct rig_order {
    enum mst_order_type type;
    uint64_t token;
    unsigned node;
    uint64_t instance;
    struct mst_vm_epoch fence[MST_VMS_PER_NODE];
    unsigned fence_count;
};

struct rig {
    struct mst_core *core;
    struct mst_time now;
    const struct mst_txn *txn; /* waits for mst_core_committed */
    struct rig_order orders[RIG_ORDERS];
    unsigned orders_count;
    struct {
        bool waits;
        uint64_t token;
    } fences[RIG_NODES];
    unsigned reads[RIG_NODES]; /* read_slots not answered yet */
    bool questions[RIG_NODES]; /* at management addresses, not answered yet */
    uint64_t links[RIG_NODES], instances[RIG_NODES];
    uint64_t next_link, next_token;
    bool replied[RIG_TOKENS];
    int (*commit)(void *arg, const struct mst_txn *txn); /* NULL: the store takes everything */
    void *arg;
};

void rig_open(struct rig *rig);
void rig_close(struct rig *rig);
void rig_tick(struct rig *rig, uint32_t ms);
void rig_commit(struct rig *rig, int err); /* answers what waits */
/* 0 or -errno of the core. */
int rig_hello(struct rig *rig, struct mst_hello *hello);
void rig_hello_of(struct mst_hello *hello, unsigned node, uint64_t instance);
/* Answers order i, which is then forgotten; the answer's fence is filled in when it has none and err is 0. */
void rig_answer(struct rig *rig, unsigned i, struct mst_answer *answer);
void rig_fence_done(struct rig *rig, unsigned node, int err);
void rig_slots(struct rig *rig, unsigned node, int err, const struct mst_slot *slots, unsigned count);
/* NULL: no answer. Nothing when nobody asks. */
void rig_managed(struct rig *rig, unsigned node, const struct mst_managed *answer);
/* A number for mst_core_report and mst_core_request; 0 when there are no more. */
uint64_t rig_token(struct rig *rig);
/* Everything that waits is answered as a healthy cluster would. */
void rig_obey(struct rig *rig);
/* Reads all that can be looked at. */
void rig_look(const struct rig *rig);

#endif
