#include "coordinator/core/internal.h"

#include "base/mutant.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Nodes that cannot be read and have a management address: before one is taken for lost its keeper is asked there, over TCP. Who answers as the same
 * instance lives, and so do its VMs: the node is degraded, nothing is fenced and nothing taken over, for as long as it is asked every second
 * and answers within keeper-silent-ms.
 *
 *     seen --not seen for half of the silence, or link closed--> missed: asked --a verdict, and it answers--> degraded
 *      ^                                                           |  ^                                       |
 *      +------------------- RDMA is back --------------------------+  +---- no answer for the silence: the usual way
 *
 * An answer only ever puts a fence off. It proves nothing: no death, and not that what else is known of the node is wrong. */

static_assert(MST_MANAGE_ASK_MS < MANAGE_LOOK_MS, "a node that is missed is asked more often");
static_assert(MST_MANAGE_ASK_MS <= ORDER_DEADLINE_MS && MST_MANAGE_ASK_MS <= FENCE_DEADLINE_MS,
              "sooner than anything it puts off");

bool manage_answers(const struct mst_core *core, const struct node *node)
{
    return node->manage.answered_ms != 0 && core->now_ms - node->manage.answered_ms < core->conf.keeper_silent_ms;
}

static void ask(struct mst_core *core, unsigned index)
{
    struct node *node = &core->nodes[index];
    struct mst_lease_grant grant;
    bool renew = node->manage.missed_ms != 0 && node->manage.last.instance == node->instance &&
                 lease_managed(core, index, &node->manage.last.beat, &grant);

    node->manage.asking = true;
    node->manage.asked_ms = MAX_OF(core->now_ms, 1);
    core->io.manage(core->io.impl, index, renew ? &grant : NULL);
}

/* Seen by RDMA again: what follows is another absence. */
static void seen(struct mst_core *core, struct node *node)
{
    if (node->manage.degraded)
        core_log(core, MST_LOG_NOTICE, "node=%s is no longer degraded: it is read by RDMA again", node->conf.name);
    node->manage.missed_ms = node->manage.answered_ms = 0;
    node->manage.resolved = node->manage.degraded = node->manage.told = false;
}

static void degraded_list(struct mst_core *core)
{
    char names[MST_TEXT_BYTES] = "";
    size_t used = 0;

    for (unsigned i = 0; i < core->nodes_count; i++) {
        if (core->nodes[i].manage.degraded && used < sizeof(names))
            used += (size_t)snprintf(names + used, sizeof(names) - used, "%s%s", used ? ", " : "", core->nodes[i].conf.name);
    }
    core->degraded_text[0] = 0;
    if (used)
        text_set(core->degraded_text, sizeof(core->degraded_text),
                 "RDMA of %.180s is away, the keeper answers at its management address: its VMs run on, nothing is taken over",
                 names);
}

void manage_watch(struct mst_core *core)
{
    for (unsigned i = 0; i < core->nodes_count; i++) {
        struct node *node = &core->nodes[i];
        bool missed = node->instance != 0 && node->instance != node->d.fenced_instance && node_away(core, node, false);

        if (!core->io.manage || !node->conf.managed)
            continue;
        if (!missed) {
            seen(core, node);
        } else if (node->manage.missed_ms == 0) {
            node->manage.missed_ms = MAX_OF(core->now_ms, 1);
            node->manage.answered_ms = 0;
            node->manage.resolved = false;
        }
        if (node->manage.degraded && !manage_answers(core, node) && node->manage.resolved)
            node->manage.degraded = node->manage.told = false;
        if (!node->manage.asking &&
            (node->manage.asked_ms == 0 || core->now_ms - node->manage.asked_ms >= (missed ? MST_MANAGE_ASK_MS : MANAGE_LOOK_MS)))
            ask(core, i);
    }
    degraded_list(core);
}

static void answered(struct mst_core *core, unsigned index, const struct mst_managed *answer)
{
    struct node *node = &core->nodes[index];
    const uint8_t *boot_id = node->joined ? node->boot_id : node->d.host_boot_id;

    if (MST_MUTANT(58)) {
        node->manage.answered_ms = MAX_OF(core->now_ms, 1);
        return;
    }
    if (witness_outdated(core, node->conf.name, answer->highest_term, answer->highest_term_by, answer->highest_decision))
        return;
    if (answer->instance != node->instance || memcmp(answer->boot_id, boot_id, sizeof(answer->boot_id)) != 0) {
        if (node->instance != 0 && node->manage.stranger != answer->instance)
            core_log(core, MST_LOG_WARNING,
                     "node=%s its management address is answered by another keeper (instance %016" PRIx64
                     "): the one we know, %016" PRIx64 ", is gone",
                     node->conf.name, answer->instance, node->instance);
        node->manage.stranger = answer->instance;
        node->manage.answered_ms = 0;
        node->manage.last.instance = 0;
        return;
    }
    node->manage.last = *answer;
    node->manage.answered_ms = MAX_OF(core->now_ms, 1);
    if (node->manage.missed_ms != 0)
        lease_note(core, index, &answer->beat);
}

void mst_core_managed(struct mst_core *core, const struct mst_time *now, unsigned node, int err, const char *text,
                      const struct mst_managed *answer)
{
    struct node *n;

    core_time(core, now);
    if (node >= core->nodes_count || !core->nodes[node].manage.asking)
        return;
    n = &core->nodes[node];
    n->manage.asking = false;
    if (err != n->manage.err)
        core_log(core, err ? MST_LOG_WARNING : MST_LOG_NOTICE, "node=%s its management address %s%s", n->conf.name,
                 err ? "does not answer: " : "answers", err ? text : "");
    n->manage.err = err;
    text_set(n->manage.err_text, sizeof(n->manage.err_text), "%s", err ? text : "");
    if (err == 0)
        answered(core, node, answer);
    /* One that was put before the absence began, or before a pause of our own, tells nothing about it. */
    if (n->manage.missed_ms == 0 || n->manage.asked_ms < n->manage.missed_ms)
        n->manage.answered_ms = 0;
    else
        n->manage.resolved = true;
    core_run(core);
}

bool manage_holds(struct mst_core *core, unsigned index, uint32_t kind, const char *text)
{
    struct node *node = &core->nodes[index];
    struct mst_report report = {.kind = MST_FAULT_NODE_UNREACHABLE, .instance = node->instance}; /* whatever kind says */

    if (!core->io.manage || !node->conf.managed || kind == MST_FAULT_KEEPER_SILENT || node_lost(core, index) >= 0)
        return false;
    if (!manage_answers(core, node)) /* one may be under way still; nobody waits for ever for who keeps no deadline */
        return !node->manage.resolved && core->now_ms - node->manage.missed_ms < UINT64_C(3) * MST_MANAGE_ASK_MS;
    if (!node->manage.degraded)
        core_log(core, MST_LOG_ERROR, "node=%s degraded: %s; its keeper answers at its management address, %u VMs run on",
                 node->conf.name, text, node->manage.last.vms_running);
    node->manage.degraded = true;
    if (node->manage.told || !runs_anything(core, node))
        return true;
    node->manage.told = true;
    text_set(report.text, sizeof(report.text), "%.100s; its keeper answers at its management address", text);
    text_set(report.node, sizeof(report.node), "%s", node->conf.name);
    text_set(report.reporter, sizeof(report.reporter), "coordinator");
    if (!report_waits(core, report.kind, node->conf.name, ""))
        report_queue(core, &report, 0, 0, -1);
    return true;
}

void manage_text(const struct node *node, char *text, size_t size)
{
    if (node->manage.degraded)
        text_set(text, size,
                 "RDMA is away, the keeper answers at its management address: its %u VMs run on, nothing is taken over; to give "
                 "it up, switch its power off",
                 node->manage.last.vms_running);
    else if (node->manage.err != 0 && node->manage.missed_ms == 0)
        text_set(text, size, "its management address does not answer: %.140s", node->manage.err_text);
}
