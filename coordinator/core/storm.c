#include "coordinator/core/internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Against storms: what is right for one node that fails is wrong when it is done to all of them at once.
 *
 *     mass loss  When more than mass_loss_percent of the nodes that were up go at the same time, our own network is the likelier culprit, and power
 *                fences would turn its failure into theirs. No node is fenced then, until enough of them are back, are proved dead, or the
 *                operator says go on (cluster resume). What was begun before goes on. Those who come back come back within moments of each other:
 *                when enough are there, the others are waited for as for a keeper that returns.
 *     fences     no more than fences_max fence agents at a time: they share power switches, and each takes a node away.
 *     starts     no more than starts_max orders to start under way to one node: each pulls memory and loads it.
 *
 * Who waits is told why; who is served first is decided by the priority of the VMs. */

/* --- mass loss --- */

/* Whether the node is not seen to be well. sure: by the evidence that opens a recovery; otherwise by half of it, which is what a fence waits to be
 * cleared up: nodes that go together are noticed one after the other. */
bool node_away(const struct mst_core *core, const struct node *node, bool sure)
{
    const struct mst_core_conf *conf = &core->conf;
    uint32_t silent_ms = sure ? conf->keeper_silent_ms : conf->keeper_silent_ms / 2;
    enum mst_life life = mst_detect_keeper(&node->detect, silent_ms);

    if (life == MST_LIFE_FROZEN || life == MST_LIFE_UNREADABLE)
        return true;
    if (node->link != 0)
        return false;
    if (!sure)
        return true;
    if (!node->joined)
        return core->now_ms - core->started_ms >= MAX_OF(conf->keeper_silent_ms, conf->keeper_return_ms);
    if (life == MST_LIFE_MOVING && node->detect.failing_since_ms == 0 && core->now_ms - node->detect.last_ok_ms < silent_ms)
        return false;
    return core->now_ms - node->link_closed_ms >= conf->keeper_return_ms;
}

/* A loss that counts: not proved, not accepted by the operator, and not one of long ago that nobody cared about. */
static bool counts(const struct mst_core *core, const struct node *node)
{
    return node->instance != 0 && node->instance != node->d.fenced_instance && !node->loss_accepted &&
           (node->mass_lost || (node->well_ms != 0 && core->now_ms - node->well_ms < MASS_WINDOW_MS));
}

static bool most_are_away(const struct mst_core *core, bool sure, unsigned *ret_lost, unsigned *ret_of)
{
    *ret_lost = *ret_of = 0;
    for (unsigned i = 0; i < core->nodes_count; i++) {
        const struct node *node = &core->nodes[i];
        bool gone = node_away(core, node, sure);
        bool lost = gone && counts(core, node);

        *ret_lost += lost ? 1 : 0;
        *ret_of += lost || (!gone && node->link != 0) ? 1 : 0;
    }
    return core->conf.mass_loss_percent != 0 && *ret_lost >= MASS_LOSS_MIN &&
           *ret_lost * 100 > *ret_of * core->conf.mass_loss_percent;
}

static void freeze_text(struct mst_core *core, unsigned lost, unsigned of)
{
    char names[MST_TEXT_BYTES] = "";
    size_t used = 0;

    for (unsigned i = 0; i < core->nodes_count; i++) {
        const struct node *node = &core->nodes[i];

        if (!node_away(core, node, true) || !counts(core, node))
            continue;
        if (used < sizeof(names))
            used += (size_t)snprintf(names + used, sizeof(names) - used, "%s%s", used ? ", " : "", node->conf.name);
    }
    text_set(core->frozen_text, sizeof(core->frozen_text),
             "%u of %u nodes vanished at once (%.180s): nothing is fenced until enough of them are back, mainstayctl node "
             "confirm-dead, or mainstayctl cluster resume",
             lost, of, names);
}

static void thaw(struct mst_core *core)
{
    for (unsigned i = 0; i < core->nodes_count; i++) {
        struct node *node = &core->nodes[i];

        /* One that is still missing may go on missing with others that were seen for a moment, or whose windows our own pause began anew. */
        if (core->frozen && node->mass_lost && node_away(core, node, false))
            node->well_ms = MAX_OF(core->now_ms, 1);
        node->mass_lost = false;
    }
    if (core->frozen)
        core_event(core, &(struct mst_event){.kind = MST_EV_STORM_OVER});
    core->frozen = false;
    core->frozen_text[0] = 0;
}

void storm_begin(struct mst_core *core)
{
    for (unsigned i = 0; i < core->nodes_count; i++) {
        for (unsigned k = 0; k < core->vms_end; k++) {
            const struct vm *vm = &core->vms[k];

            /* Whether it is up is not known yet; that it was is what its VMs say. */
            if (vm->used && !vm->d.fenced && vm->d.node_id == core->nodes[i].conf.id)
                core->nodes[i].well_ms = MAX_OF(core->now_ms, 1);
        }
    }
}

void storm_watch(struct mst_core *core)
{
    bool was = core->frozen;
    unsigned lost, of;

    for (unsigned i = 0; i < core->nodes_count; i++) {
        struct node *node = &core->nodes[i];

        if (node_away(core, node, false))
            continue;
        node->well_ms = MAX_OF(core->now_ms, 1);
        node->mass_lost = false;
        node->loss_accepted = false;
    }
    if (!most_are_away(core, true, &lost, &of)) {
        thaw(core);
        if (was) {
            core->thawed_ms = MAX_OF(core->now_ms, 1);
            core_log(core, MST_LOG_NOTICE, "no more than %u of %u nodes are missing: fences go on in %u ms", lost, of,
                     core->conf.keeper_return_ms);
        }
        return;
    }
    core->frozen = true;
    for (unsigned i = 0; i < core->nodes_count; i++) {
        struct node *node = &core->nodes[i];

        node->mass_lost |= node_away(core, node, true) && counts(core, node);
    }
    freeze_text(core, lost, of);
    if (was)
        return;
    core_log(core, MST_LOG_ERROR, "%s", core->frozen_text);
    core_event(core, &(struct mst_event){.kind = MST_EV_STORM_FROZEN, .text = core->frozen_text});
}

bool storm_holds(const struct mst_core *core, char *text, size_t size)
{
    unsigned lost, of;

    if (core->frozen) {
        text_set(text, size, "waits: most nodes vanished at once, so nothing is fenced before mainstayctl cluster resume");
        return true;
    }
    if (core->thawed_ms != 0 && core->now_ms - core->thawed_ms < core->conf.keeper_return_ms) {
        text_set(text, size, "waits: most nodes were away until just now, and it may be coming back as well");
        return true;
    }
    if (!most_are_away(core, false, &lost, &of))
        return false;
    text_set(text, size, "waits: %u of %u nodes are not seen to be well just now", lost, of);
    return true;
}

void storm_accept(struct mst_core *core)
{
    for (unsigned i = 0; i < core->nodes_count; i++) {
        struct node *node = &core->nodes[i];

        node->loss_accepted = node->loss_accepted || (node_away(core, node, false) && counts(core, node));
    }
    core->thawed_ms = 0;
    thaw(core);
}

/* --- fences --- */

static uint32_t node_priority(const struct mst_core *core, unsigned index)
{
    uint32_t highest = 0;

    for (unsigned i = 0; i < core->vms_end; i++) {
        const struct vm *vm = &core->vms[i];

        if (vm->used && !vm->d.fenced && vm->d.wanted && vm->d.node_id == core->nodes[index].conf.id)
            highest = MAX_OF(highest, vm->def.priority);
    }
    return highest;
}

/* A fence of it is wanted, or will be in a moment: recoveries of nodes that went together are opened one after the other. */
static bool fence_comes(const struct mst_core *core, unsigned index)
{
    static const uint32_t kinds[] = {MST_FAULT_KEEPER_SILENT, MST_FAULT_KEEPER_DEAD, MST_FAULT_NODE_UNREACHABLE};
    const struct node *node = &core->nodes[index];
    int lost = node_lost(core, index);

    if (lost >= 0 && core->recs[lost].d.state < MST_REC_FENCING)
        return node->conf.has_fence && node->link == 0;
    for (unsigned i = 0; lost < 0 && i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (node->conf.has_fence && node->link == 0 && report_waits(core, kinds[i], node->conf.name, ""))
            return true;
    }
    return fence_power_wanted(core, index);
}

bool fence_turn(const struct mst_core *core, unsigned index, char *text, size_t size)
{
    unsigned running = 0;
    unsigned ahead = 0;
    uint32_t own;

    for (unsigned i = 0; i < core->nodes_count; i++)
        running += core->nodes[i].fencing ? 1 : 0;
    if (core->conf.fences_max == 0)
        return true;
    if (running >= core->conf.fences_max) {
        text_set(text, size, "waits: %u of %u fences are under way", running, core->conf.fences_max);
        return false;
    }
    own = node_priority(core, index);
    for (unsigned i = 0; i < core->nodes_count; i++) {
        uint32_t other;

        if (i == index || !fence_comes(core, i))
            continue;
        other = node_priority(core, i);
        ahead += other > own || (other == own && i < index) ? 1 : 0;
    }
    if (running + ahead < core->conf.fences_max)
        return true;
    text_set(text, size, "waits: %u of %u fences are under way, and nodes of more important VMs go first", running,
             core->conf.fences_max);
    return false;
}

/* --- starts --- */

bool start_ready(const struct mst_core *core, const struct rec *rec, unsigned i)
{
    const struct rvm *rvm = &rec->vms[i];
    const struct vm *vm = rvm->vm >= 0 ? &core->vms[rvm->vm] : NULL;
    int index = vm ? node_find_id(core, vm->d.node_id) : -1;

    return index >= 0 && rvm->d.outcome == MST_OUT_PENDING && !rvm->ordered && !rvm->answered && vm->d.wanted && !vm->d.fenced &&
           rvm->d.epoch_to == vm->d.epoch && core->nodes[index].link != 0 && core->nodes[index].instance == vm->d.instance;
}

static bool starts_first(const struct mst_core *core, const struct rec *rec, unsigned i, const struct rec *other, unsigned k)
{
    uint32_t own = core->vms[rec->vms[i].vm].def.priority;
    uint32_t its = core->vms[other->vms[k].vm].def.priority;

    if (its != own)
        return its > own;
    return other->d.id != rec->d.id ? other->d.id < rec->d.id : k < i;
}

bool start_turn(const struct mst_core *core, const struct rec *rec, unsigned i, unsigned index, char *text, size_t size)
{
    unsigned max = core->conf.starts_max;
    unsigned running = 0;
    unsigned ahead = 0;

    if (max == 0)
        return true;
    for (unsigned k = 0; k < ORDERS_MAX; k++)
        running += core->orders[k].token != 0 && core->orders[k].type == MST_ORDER_START && core->orders[k].node == index ? 1 : 0;
    for (unsigned r = 0; running < max && r < core->recs_end; r++) {
        const struct rec *other = &core->recs[r];

        if (!other->used || (other->d.state != MST_REC_COMMITTING && other->d.state != MST_REC_RESUMING))
            continue;
        for (unsigned k = 0; k < other->vms_count; k++) {
            if ((other != rec || k != i) && start_ready(core, other, k) &&
                core->vms[other->vms[k].vm].d.node_id == core->nodes[index].conf.id && starts_first(core, rec, i, other, k))
                ahead++;
        }
    }
    if (running + ahead < max)
        return true;
    text_set(text, size, "waits: %u of %u starts on %s are under way%s", running, max, core->nodes[index].conf.name,
             running < max ? ", and more important VMs go first" : "");
    return false;
}
