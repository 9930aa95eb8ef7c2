#include "core_rig.h"

#include "base/text.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- what the core asks for --- */

static void io_commit(void *impl, const struct mst_txn *txn)
{
    struct rig *rig = impl;

    FUZZ_CHECK(!rig->txn && txn->count > 0 && txn->count <= MST_TXN_ROWS);
    rig->txn = txn;
}

static int io_order(void *impl, const struct mst_order *order)
{
    struct rig *rig = impl;
    struct rig_order *o;

    FUZZ_CHECK(order->node < RIG_NODES && order->token != 0 && order->fence_count <= MST_VMS_PER_NODE);
    FUZZ_CHECK(order->type != MST_ORDER_START || (order->definition && order->vm));
    FUZZ_CHECK(order->type != MST_ORDER_RECORD_FAULT || order->fault);
    if (rig->links[order->node] == 0)
        return -ENOTCONN;
    if (rig->orders_count == RIG_ORDERS)
        return -ENOBUFS;
    o = &rig->orders[rig->orders_count++];
    *o = (struct rig_order){.type = order->type,
                            .token = order->token,
                            .node = order->node,
                            .instance = order->instance,
                            .fence_count = order->fence_count};
    memcpy(o->fence, order->fence, order->fence_count * sizeof(o->fence[0]));
    return 0;
}

static void io_fence(void *impl, unsigned node, uint64_t token, bool look)
{
    (void)look;
    struct rig *rig = impl;

    FUZZ_CHECK(node < RIG_NODES && !rig->fences[node].waits && token != 0);
    rig->fences[node].waits = true;
    rig->fences[node].token = token;
}

static void io_fence_cancel(void *impl, unsigned node, uint64_t token)
{
    struct rig *rig = impl;

    FUZZ_CHECK(node < RIG_NODES && rig->fences[node].waits && rig->fences[node].token == token);
    rig->fences[node].waits = false;
}

static void io_read_slots(void *impl, unsigned node)
{
    struct rig *rig = impl;

    FUZZ_CHECK(node < RIG_NODES);
    rig->reads[node]++;
}

static void io_manage(void *impl, unsigned node, const struct mst_lease_grant *lease)
{
    struct rig *rig = impl;

    FUZZ_CHECK(node < RIG_NODES && !rig->questions[node] && (!lease || lease->instance != 0));
    rig->questions[node] = true;
}

static void io_close_link(void *impl, uint64_t link)
{
    struct rig *rig = impl;

    FUZZ_CHECK(link != 0);
    for (unsigned i = 0; i < RIG_NODES; i++)
        if (rig->links[i] == link)
            rig->links[i] = 0;
}

static void io_peers(void *impl)
{
    (void)impl;
}

static void io_reply(void *impl, uint64_t token, int err, const char *text)
{
    struct rig *rig = impl;

    FUZZ_CHECK(token > 0 && token <= rig->next_token && !rig->replied[token] && err <= 0 && text);
    rig->replied[token] = true;
}

static void io_vm_moved(void *impl, const char *vm, int node, uint64_t epoch)
{
    (void)impl;
    (void)epoch;
    FUZZ_CHECK(vm && node >= -1 && node < (int)RIG_NODES);
}

static void io_log(void *impl, enum mst_log_level level, const char *text)
{
    (void)impl;
    (void)level;
    FUZZ_CHECK(text);
}

/* --- life --- */

void rig_open(struct rig *rig)
{
    static const struct mst_core_io none = {.commit = io_commit,
                                            .order = io_order,
                                            .fence = io_fence,
                                            .fence_cancel = io_fence_cancel,
                                            .read_slots = io_read_slots,
                                            .manage = io_manage,
                                            .close_link = io_close_link,
                                            .peers = io_peers,
                                            .reply = io_reply,
                                            .vm_moved = io_vm_moved,
                                            .log = io_log};
    struct mst_core_io io = none;
    struct mst_core_conf conf = {.coordinator_id = 1,
                                 .coordinator_instance = 77,
                                 .cluster = "lab",
                                 .watch_interval_ms = 50,
                                 .agent_silent_ms = 3000,
                                 .keeper_silent_ms = 3000,
                                 .keeper_return_ms = 3000,
                                 .node_starts_max = 4,
                                 .node_starts_window_ms = 120000,
                                 .nodes_count = RIG_NODES};

    memset(rig, 0, sizeof(*rig));
    for (unsigned i = 0; i < RIG_NODES; i++) {
        struct mst_member *node = &conf.nodes[i];

        snprintf(node->name, sizeof(node->name), "n%u", i + 1);
        snprintf(node->address, sizeof(node->address), "10.7.0.%u", i + 1);
        node->id = i + 1;
        node->port = 7471;
        node->has_fence = i + 1 < RIG_NODES;
        node->managed = i > 0;
    }
    io.impl = rig;
    rig->now.us = 1000000;
    rig->now.wall_ms = UINT64_C(1700000000000);
    FUZZ_CHECK(mst_core_new(&conf, &io, &rig->core) == 0);
}

void rig_close(struct rig *rig)
{
    mst_core_free(rig->core);
    rig->core = NULL;
}

void rig_tick(struct rig *rig, uint32_t ms)
{
    rig->now.us += UINT64_C(1000) * ms;
    rig->now.wall_ms += ms;
    mst_core_tick(rig->core, &rig->now);
}

void rig_commit(struct rig *rig, int err)
{
    const struct mst_txn *txn = rig->txn;

    if (!txn)
        return;
    if (err == 0 && rig->commit)
        err = rig->commit(rig->arg, txn);
    rig->txn = NULL;
    mst_core_committed(rig->core, &rig->now, err, err ? "the disk is full" : "");
}

/* --- nodes --- */

void rig_hello_of(struct mst_hello *hello, unsigned node, uint64_t instance)
{
    memset(hello, 0, sizeof(*hello));
    strcpy(hello->cluster, "lab");
    snprintf(hello->node, sizeof(hello->node), "n%u", node + 1);
    snprintf(hello->address, sizeof(hello->address), "10.7.0.%u", node + 1);
    hello->node_id = node + 1;
    hello->port = 7471;
    hello->instance = instance;
    hello->memory_mib = 1024;
    hello->vcpus = 8;
}

int rig_hello(struct rig *rig, struct mst_hello *hello)
{
    struct mst_why why = {""};
    uint64_t link = ++rig->next_link;
    int node = mst_core_node_by_name(rig->core, hello->node);
    int r = mst_core_hello(rig->core, &rig->now, link, hello, &why);

    FUZZ_CHECK(r == 0 || why.text[0]);
    if (r < 0)
        return r;
    FUZZ_CHECK(node >= 0 && node < (int)RIG_NODES);
    rig->links[node] = link;
    rig->instances[node] = hello->instance;
    mst_core_readable(rig->core, &rig->now, (unsigned)node, true);
    mst_core_tick(rig->core, &rig->now);
    return 0;
}

void rig_answer(struct rig *rig, unsigned i, struct mst_answer *answer)
{
    struct rig_order order = rig->orders[i];

    memmove(&rig->orders[i], &rig->orders[i + 1], (rig->orders_count - i - 1) * sizeof(order));
    rig->orders_count--;
    if (order.type == MST_ORDER_FENCE && answer->err == 0 && !answer->has_fence) {
        answer->has_fence = true;
        answer->fence_instance = order.instance;
        answer->fenced_count = order.fence_count;
        memcpy(answer->fenced, order.fence, sizeof(answer->fenced));
    }
    mst_core_answer(rig->core, &rig->now, order.token, answer);
}

void rig_fence_done(struct rig *rig, unsigned node, int err)
{
    if (!rig->fences[node].waits)
        return;
    rig->fences[node].waits = false;
    mst_core_fence_done(rig->core, &rig->now, rig->fences[node].token, err, err ? "no power switch" : "off");
}

void rig_slots(struct rig *rig, unsigned node, int err, const struct mst_slot *slots, unsigned count)
{
    struct mst_node_info info = {.known = err == 0};

    if (rig->reads[node] == 0)
        return;
    rig->reads[node]--;
    mst_core_slots(rig->core, &rig->now, node, err, err ? "it does not answer" : "", &info, slots, count);
}

void rig_managed(struct rig *rig, unsigned node, const struct mst_managed *answer)
{
    if (!rig->questions[node])
        return;
    rig->questions[node] = false;
    mst_core_managed(rig->core, &rig->now, node, answer ? 0 : -ETIMEDOUT, answer ? "" : "no answer in time", answer);
}

uint64_t rig_token(struct rig *rig)
{
    return rig->next_token + 1 < RIG_TOKENS ? ++rig->next_token : 0;
}

static bool waits(const struct rig *rig)
{
    bool any = rig->txn || rig->orders_count > 0;

    for (unsigned i = 0; i < RIG_NODES; i++)
        any = any || rig->reads[i] > 0 || rig->fences[i].waits;
    return any;
}

void rig_obey(struct rig *rig)
{
    static struct mst_answer answer;

    for (unsigned round = 0; round < 8 && waits(rig); round++) {
        rig_commit(rig, 0);
        while (rig->orders_count > 0) {
            memset(&answer, 0, sizeof(answer));
            answer.start.method = 1;
            answer.save_seq = 5;
            rig_answer(rig, 0, &answer);
        }
        for (unsigned i = 0; i < RIG_NODES; i++) {
            rig_slots(rig, i, 0, NULL, 0);
            rig_fence_done(rig, i, 0);
        }
    }
}

void rig_look(const struct rig *rig)
{
    struct mst_node_look node;
    struct mst_vm_look vm;
    struct mst_recovery_look rec;

    for (unsigned i = 0; i < mst_core_nodes(rig->core); i++) {
        mst_core_node(rig->core, &rig->now, i, &node);
        FUZZ_CHECK(node.state <= MST_NODE_DEGRADED && memchr(node.text, '\0', sizeof(node.text)));
    }
    /* What is shown goes into messages, which take names and known values only: one bad row would leave the operator without any view. */
    for (unsigned i = 0; mst_core_vm(rig->core, i, &vm); i++)
        FUZZ_CHECK(mst_name_check(vm.row->name) == 0 && vm.row->phase < MST_VM_PHASES && vm.row->proof_kind < MST_PROOF_KINDS &&
                   vm.definition->on_node_fault < MST_ON_FAULTS && vm.definition->on_vm_fault < MST_ON_FAULTS && vm.row &&
                   vm.definition && vm.node < (int)RIG_NODES && memchr(vm.text, '\0', sizeof(vm.text)));
    for (unsigned i = 0; mst_core_recovery(rig->core, i, &rec); i++) {
        FUZZ_CHECK(rec.row && rec.row->kind < MST_FAULT_KINDS && rec.state < MST_REC_STATES && mst_rec_state_name(rec.state) &&
                   mst_fault_kind_name(rec.row->kind) && rec.why && rec.steps_count <= MST_RECOVERY_STEPS);
        for (unsigned k = 0; k < rec.vms_count; k++) {
            const struct mst_rvm_row *row = mst_core_recovery_vm(rig->core, rec.key, k);

            FUZZ_CHECK(row && mst_name_check(row->vm) == 0 && row->how < MST_HOWS && row->hold < MST_HOLDS &&
                       mst_outcome_name(row->outcome));
        }
    }
    for (unsigned i = 0; i < 600 && mst_core_fault(rig->core, i); i++)
        FUZZ_CHECK(mst_core_fault(rig->core, i)->kind < MST_FAULT_KINDS);
}
