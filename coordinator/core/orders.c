#include "coordinator/core/internal.h"

#include "base/mutant.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

static const char *const order_names[] = {"?",           "start",         "save",         "continue", "fence",
                                          "forget",      "restart-agent", "record-fault", "mirror",   "mirror-to",
                                          "mirror-sure", "mirror-drop",   "mirror-revoke"};

/* One event for each VM that an order names. */
static void trace_sent(struct mst_core *core, const struct mst_order *order, uint64_t recovery_id)
{
    struct mst_event event = {.vm = order->vm,
                              .epoch = order->epoch,
                              .instance = order->instance,
                              .order = order->token,
                              .recovery = recovery_id,
                              .what = order_names[order->type]};

    if (order->fence_count == 0)
        trace_order(core, MST_EV_ORDER_SENT, &event, order->node);
    for (unsigned i = 0; i < order->fence_count; i++) {
        event.vm = order->fence[i].vm;
        event.epoch = order->fence[i].epoch;
        trace_order(core, MST_EV_ORDER_SENT, &event, order->node);
    }
}

uint64_t order_send(struct mst_core *core, struct mst_order *order, uint64_t recovery_id, uint32_t deadline_ms)
{
    struct node *node = &core->nodes[order->node];
    struct pending *free_entry = NULL;
    int r;

    for (unsigned i = 0; i < ORDERS_MAX && !free_entry; i++) {
        if (core->orders[i].token == 0)
            free_entry = &core->orders[i];
    }
    if (!free_entry || node->link == 0)
        return 0;
    order->token = ++core->next_token;
    order->instance = node->instance;
    order->term = core->meta.term;
    order->decision = MST_MUTANT(51) ? core->meta.decision + 1 : core->meta.decision;
    MST_POINT("order.begun");
    r = core->io.order(core->io.impl, order);
    if (r == 0)
        MST_POINT("order.sent");
    core_log(core, order->type == MST_ORDER_RECORD_FAULT ? MST_LOG_INFO : MST_LOG_NOTICE,
             "order=%s node=%s vm=%s epoch=%" PRIu64 " recovery=%" PRIu64 " %s", order_names[order->type], node->conf.name,
             order->vm            ? order->vm
             : order->fence_count ? order->fence[0].vm
                                  : "-",
             order->fence_count && !order->vm ? order->fence[0].epoch : order->epoch, recovery_id,
             r < 0 ? mst_errname(r) : "sent");
    if (r < 0)
        return 0;
    trace_sent(core, order, recovery_id);
    memset(free_entry, 0, sizeof(*free_entry));
    core->orders_end = MAX_OF(core->orders_end, (unsigned)(free_entry - core->orders) + 1);
    free_entry->token = order->token;
    free_entry->type = order->type;
    free_entry->node = order->node;
    free_entry->instance = order->instance;
    free_entry->recovery_id = recovery_id;
    free_entry->epoch = order->epoch;
    free_entry->deadline_ms = core->now_ms + deadline_ms;
    if (order->vm)
        text_set(free_entry->vm, sizeof(free_entry->vm), "%s", order->vm);
    return order->token;
}

bool order_pending(const struct mst_core *core, uint64_t token)
{
    for (unsigned i = 0; token != 0 && i < core->orders_end; i++) {
        if (core->orders[i].token == token)
            return true;
    }
    return false;
}

static void forget_answered(struct mst_core *core, const struct pending *order, const struct mst_answer *answer)
{
    struct node *node = &core->nodes[order->node];
    unsigned kept = 0;

    if (answer->err != 0) {
        core_log(core, MST_LOG_WARNING, "node=%s vm=%s epoch=%" PRIu64 " not forgotten: %s %s", node->conf.name, order->vm,
                 order->epoch, mst_errname(answer->err), answer->text);
        return;
    }
    for (unsigned i = 0; i < node->held_count; i++) {
        if (node->held[i].s.epoch <= order->epoch && strcmp(node->held[i].s.vm, order->vm) == 0)
            continue;
        node->held[kept++] = node->held[i];
    }
    if (kept != node->held_count)
        core->view_generation++;
    node->held_count = kept;
}

void order_answered(struct mst_core *core, const struct pending *order, const struct mst_answer *answer)
{
    trace_order(core, MST_EV_ORDER_ANSWERED,
                &(struct mst_event){.vm = order->vm,
                                    .epoch = order->epoch,
                                    .instance = order->instance,
                                    .order = order->token,
                                    .recovery = order->recovery_id,
                                    .err = answer->err,
                                    .what = order_names[order->type],
                                    .text = answer->text},
                order->node);
    switch (order->type) {
    case MST_ORDER_START:
        start_answered(core, order, answer);
        break;
    case MST_ORDER_SAVE:
        save_answered(core, order, answer);
        break;
    case MST_ORDER_FENCE:
        fence_answered(core, order, answer);
        break;
    case MST_ORDER_FORGET:
        forget_answered(core, order, answer);
        break;
    case MST_ORDER_CONTINUE:
    case MST_ORDER_RESTART_AGENT:
        if (answer->err != 0)
            core_log(core, MST_LOG_WARNING, "node=%s order refused: %s %s", core->nodes[order->node].conf.name,
                     mst_errname(answer->err), answer->text);
        break;
    case MST_ORDER_MIRROR:
    case MST_ORDER_MIRROR_TO:
    case MST_ORDER_MIRROR_SURE:
    case MST_ORDER_MIRROR_DROP:
        mirror_answered(core, order, answer);
        break;
    case MST_ORDER_MIRROR_REVOKE:
        revoke_answered(core, order, answer);
        break;
    case MST_ORDER_RECORD_FAULT:
        break;
    }
}

void orders_fail(struct mst_core *core, unsigned node, const char *text)
{
    struct mst_answer answer = {.err = -ECONNRESET};

    text_set(answer.text, sizeof(answer.text), "%s", text);
    for (unsigned i = 0; i < core->orders_end; i++) {
        struct pending order = core->orders[i];

        if (order.token == 0 || order.node != node)
            continue;
        core->orders[i].token = 0;
        order_answered(core, &order, &answer);
    }
}

void orders_expire(struct mst_core *core)
{
    struct mst_answer answer = {.err = -ETIMEDOUT};

    for (unsigned i = 0; i < core->orders_end; i++) {
        struct pending order = core->orders[i];

        if (order.token == 0 || core->now_ms < order.deadline_ms)
            continue;
        core->orders[i].token = 0;
        text_set(answer.text, sizeof(answer.text), "no answer from %s in time", core->nodes[order.node].conf.name);
        order_answered(core, &order, &answer);
    }
}

void orders_delay(struct mst_core *core, uint64_t ms)
{
    for (unsigned i = 0; i < core->orders_end; i++)
        core->orders[i].deadline_ms += ms;
}
