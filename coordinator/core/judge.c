#include "coordinator/core/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* A node nobody depends on may be away: its absence is shown, not recovered from. */
bool runs_anything(const struct mst_core *core, const struct node *node)
{
    for (unsigned i = 0; i < core->vms_end; i++) {
        if (core->vms[i].used && !core->vms[i].d.fenced && core->vms[i].d.node_id == node->conf.id)
            return true;
    }
    return false;
}

/* Returns the fault that the evidence amounts to now, with its words. */
static uint32_t judge_keeper(const struct mst_core *core, const struct node *node, char *text, size_t size)
{
    const struct mst_core_conf *conf = &core->conf;
    enum mst_life life = mst_detect_keeper(&node->detect, conf->keeper_silent_ms);
    uint64_t grace_ms = MAX_OF(conf->keeper_silent_ms, conf->keeper_return_ms);
    uint64_t away_ms = core->now_ms - node->link_closed_ms;

    if (life == MST_LIFE_FROZEN) {
        text_set(text, size, "keeper counter stood at %" PRIu64 " in successful reads %" PRIu64 " ms apart",
                 node->detect.keeper_beat, node->detect.last_ok_ms - node->detect.keeper_since_ms);
        return MST_FAULT_KEEPER_SILENT;
    }
    if (node->link != 0) {
        if (life != MST_LIFE_UNREADABLE)
            return MST_FAULT_NONE;
        text_set(text, size, "reads have failed for %" PRIu64 " ms although the control link is up",
                 node->detect.last_fail_ms - node->detect.failing_since_ms);
        return MST_FAULT_NODE_UNREACHABLE;
    }
    if (!node->joined) {
        if (core->now_ms - core->started_ms < grace_ms)
            return MST_FAULT_NONE;
        text_set(text, size, "has not come back within %" PRIu64 " ms after the coordinator's start", grace_ms);
        return MST_FAULT_NODE_UNREACHABLE;
    }
    if (away_ms < conf->keeper_return_ms)
        return MST_FAULT_NONE;
    /* The control link alone proves little: while reads show a moving counter, its keeper lives and will call again. */
    if (life == MST_LIFE_MOVING && node->detect.failing_since_ms == 0 &&
        core->now_ms - node->detect.last_ok_ms < conf->keeper_silent_ms)
        return MST_FAULT_NONE;
    text_set(text, size, "control link closed (%s) and no return within %" PRIu64 " ms", node->link_text, away_ms);
    return node->link_err == -ECONNRESET ? MST_FAULT_KEEPER_DEAD : MST_FAULT_NODE_UNREACHABLE;
}

static void judge_agent(struct mst_core *core, unsigned index)
{
    struct node *node = &core->nodes[index];
    char text[MST_TEXT_BYTES];

    if (node->link == 0 || mst_detect_agent(&node->detect, core->conf.agent_silent_ms) != MST_LIFE_FROZEN ||
        mst_detect_keeper(&node->detect, core->conf.keeper_silent_ms) != MST_LIFE_MOVING)
        return;
    if (node->d.failing || report_waits(core, MST_FAULT_AGENT_SILENT, node->conf.name, "") ||
        node_has_open(core, node->conf.id, 1u << MST_SCOPE_AGENT) || node_lost(core, index) >= 0)
        return;
    text_set(text, sizeof(text), "agent counter stood at %" PRIu64 " for %" PRIu64 " ms while the keeper's moved",
             node->detect.agent_beat, node->detect.last_ok_ms - node->detect.agent_since_ms);
    report_self(core, MST_FAULT_AGENT_SILENT, index, -1, text);
}

/* A node of before that has neither called since our start nor is proved dead. */
static bool node_is_missed(const struct mst_core *core, const char **ret_name)
{
    for (unsigned i = 0; i < core->nodes_count; i++) {
        const struct node *node = &core->nodes[i];

        *ret_name = node->conf.name;
        if (node->d.instance != 0 && !node->joined && node->d.instance != node->d.fenced_instance)
            return true;
    }
    return false;
}

/* What ended while nobody listened. A new instance is another matter: join_step. A keeper forgets no VM of its own accord, so one that does not
 * know the VM may mean that our store is an old copy and the VM has long been elsewhere: all nodes are heard before that is judged. */
static void missed_exits(struct mst_core *core, unsigned index)
{
    struct node *node = &core->nodes[index];
    const char *missed = "";

    if (!node->exits_unjudged || node->link == 0)
        return;
    node->exits_unjudged = false;
    for (unsigned i = 0; i < core->vms_end; i++) {
        const struct vm *vm = &core->vms[i];

        if (!vm->used || vm->d.phase != MST_VM_RUNNING || vm->rec >= 0 || vm->d.fenced || vm->d.node_id != node->conf.id ||
            vm->d.instance != node->instance || vm->running_ms > node->link_since_ms || held_find(node, vm->d.name, vm->d.epoch))
            continue;
        node->exits_unjudged = true; /* until a recovery has it: a report may find no room */
        if (!node_is_missed(core, &missed)) {
            report_self(core, MST_FAULT_VM_EXITED, index, (int)i, "its keeper does not hold it any more");
            continue;
        }
        if (node->exits_told_ms != node->link_since_ms)
            core_log(core, MST_LOG_ERROR,
                     "vm=%s node=%s does not hold it although it ought to run there; the store may be an old copy: "
                     "not judged before node %s has called or is confirmed dead",
                     vm->d.name, node->conf.name, missed);
    }
    node->exits_told_ms = node->link_since_ms;
}

void judge_nodes(struct mst_core *core)
{
    char text[MST_TEXT_BYTES];

    storm_watch(core);
    manage_watch(core);
    for (unsigned i = 0; i < core->nodes_count; i++) {
        struct node *node = &core->nodes[i];
        uint32_t kind = judge_keeper(core, node, text, sizeof(text));
        bool usable = node_usable(core, i, NULL);

        missed_exits(core, i);
        if (kind == MST_FAULT_NODE_UNREACHABLE)
            node->unreached_ms = core->now_ms;
        if (usable != node->usable_before) {
            node->usable_before = usable;
            core->view_generation++;
        }
        if (kind == MST_FAULT_NONE) {
            judge_agent(core, i);
            continue;
        }
        if (manage_holds(core, i, kind, text))
            continue;
        if (runs_anything(core, node) && node_lost(core, i) < 0 && !report_waits(core, kind, node->conf.name, ""))
            report_self(core, kind, i, -1, text);
    }
}
