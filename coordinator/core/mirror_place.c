#include "coordinator/core/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* Where the mirror of a VM goes, when it is moved to another node, and which of two goes then. What becomes of one once it is chosen: mirror.c. */

/* Nodes that have the VM, another mirror of it, or an image under this epoch that is to be forgotten first. */
static uint64_t taken(const struct mst_core *core, const struct vm *vm)
{
    uint64_t bits = 0;

    for (unsigned i = 0; i < core->nodes_count; i++) {
        bool is =
            core->nodes[i].conf.id == vm->d.node_id || held_find((struct node *)&core->nodes[i], vm->d.name, vm->d.epoch) != NULL;

        for (unsigned n = 0; n < MST_MIRRORS_MAX; n++)
            is |= vm->mirrors[n].state != MIRROR_IDLE && vm->mirrors[n].node_id == core->nodes[i].conf.id;
        bits |= is ? UINT64_C(1) << i : 0;
    }
    return bits;
}

static enum mst_racks racks_demanded(const struct vm *vm)
{
    return vm->def.mirror_apart == MST_MIRROR_APART_RACK ? MST_RACKS_OTHER : MST_RACKS_SAME;
}

/* The numbers change with everything that starts and stops: an event for the first, and then now and then. */
static void refused(struct mst_core *core, struct vm *vm, const char *text)
{
    bool again = vm->refused_ms != 0 && core->now_ms - vm->refused_ms < MIRROR_TELL_MS && vm->refused_epoch == vm->d.epoch;

    if (strcmp(text, vm->mirror_why) == 0)
        return;
    text_set(vm->mirror_why, sizeof(vm->mirror_why), "%s", text);
    if (again)
        return;
    vm->refused_ms = MAX_OF(core->now_ms, 1);
    vm->refused_epoch = vm->d.epoch;
    core_log(core, MST_LOG_WARNING, "vm=%s epoch=%" PRIu64 " has no mirror: %s", vm->d.name, vm->d.epoch, text);
    core_event(core, &(struct mst_event){.kind = MST_EV_MIRROR_REFUSED, .vm = vm->d.name, .epoch = vm->d.epoch, .text = text});
}

struct move { /* why one that counts is to be replaced */
    const struct mirror *from;
    char why[MST_TEXT_BYTES / 2];
    enum mst_racks racks_min; /* of the new one */
    uint64_t never;           /* bit per node index */
    bool urgent;              /* its node is on its way out */
};

static bool node_leaves(const struct mst_core *core, uint32_t node_id)
{
    int index = node_find_id(core, node_id);

    return index >= 0 && (core->nodes[index].d.drained || core->nodes[index].d.failing);
}

/* There is no use in moving to a node that lags for others. */
static uint64_t nodes_lagging(const struct mst_core *core)
{
    uint64_t bits = 0;

    for (unsigned i = 0; i < core->vms_end; i++) {
        for (unsigned n = 0; core->vms[i].used && n < MST_MIRRORS_MAX; n++) {
            int index = core->vms[i].mirrors[n].lags_ms != 0 ? node_find_id(core, core->vms[i].mirrors[n].node_id) : -1;

            bits |= index >= 0 ? UINT64_C(1) << index : 0;
        }
    }
    return bits;
}

static bool any_rack_but(const struct mst_core *core, const char *rack)
{
    for (unsigned i = 0; i < core->nodes_count; i++) {
        if (core->nodes[i].link != 0 && mst_plan_racks(rack, node_rack(&core->nodes[i])) == MST_RACKS_OTHER)
            return true;
    }
    return false;
}

/* Whether there is reason to replace it. What is not urgent waits until it has been one for a while: nothing goes back and forth. */
static bool move_wanted(const struct mst_core *core, const struct vm *vm, const struct mirror *m, unsigned source,
                        struct move *ret)
{
    const char *name = node_name(core, m->node_id);
    enum mst_racks racks = racks_of(core, vm->d.node_id, m->node_id);

    memset(ret, 0, sizeof(*ret));
    ret->from = m;
    ret->racks_min = racks_demanded(vm);
    if (node_leaves(core, m->node_id)) {
        ret->urgent = true;
        text_set(ret->why, sizeof(ret->why), "%s %s", name,
                 core->nodes[node_find_id(core, m->node_id)].d.drained ? "is drained" : "is failing");
        return true;
    }
    if (core->now_ms - m->sure_ms < MIRROR_SETTLED_MS)
        return false;
    if (m->lags_ms != 0 && core->now_ms - m->lags_ms >= MAX_OF(core->conf.mirror_lag_ms, MIRROR_LAG_HOLD_MS)) {
        ret->racks_min = MAX_OF(racks, ret->racks_min);
        ret->never = nodes_lagging(core) | vm->mirror_avoid;
        text_set(ret->why, sizeof(ret->why), "%s lags", name);
        return true;
    }
    if (racks == MST_RACKS_OTHER || (racks == MST_RACKS_UNKNOWN && ret->racks_min != MST_RACKS_OTHER) ||
        !any_rack_but(core, node_rack(&core->nodes[source])))
        return false;
    ret->racks_min = MST_RACKS_OTHER;
    ret->never = vm->mirror_avoid;
    text_set(ret->why, sizeof(ret->why), "%s is %s", name, racks == MST_RACKS_SAME ? "in the VM's own rack" : "in no known rack");
    return true;
}

static unsigned moves_under_way(const struct mst_core *core)
{
    unsigned count = 0;

    for (unsigned i = 0; i < core->vms_end; i++) {
        unsigned active = 0;

        for (unsigned n = 0; core->vms[i].used && n < MST_MIRRORS_MAX; n++)
            active += mirror_active(&core->vms[i].mirrors[n]) ? 1 : 0;
        count += active > MIRRORS_WANTED ? 1 : 0;
    }
    return count;
}

/* Nobody can take it; it stays where it is, if it is anywhere. */
static void choose_failed(struct mst_core *core, struct vm *vm, const struct move *move, bool other_rack, const char *why)
{
    char text[MST_TEXT_BYTES];

    text_set(text, sizeof(text), "nobody %s%scan take its image: %.150s", move ? "else " : "",
             other_rack ? "in another rack " : "", why);
    if (!move) {
        refused(core, vm, text);
        vm->mirror_next_ms = core->now_ms + MIRROR_RETRY_MIN_MS;
        return;
    }
    text_set(vm->move_why, sizeof(vm->move_why), "%s, and %.150s", move->why, text);
    vm->mirror_next_ms = core->now_ms + (move->urgent ? MIRROR_RETRY_MIN_MS : MIRROR_LOOK_MS);
}

static void move_begun(struct mst_core *core, struct vm *vm, const struct move *move, const char *to)
{
    text_set(vm->move_why, sizeof(vm->move_why), "%s: %s takes its image", move->why, to);
    core_event(core, &(struct mst_event){.kind = MST_EV_MIRROR_MOVES,
                                         .vm = vm->d.name,
                                         .epoch = vm->d.epoch,
                                         .node = node_name(core, move->from->node_id),
                                         .instance = move->from->instance,
                                         .text = vm->move_why});
    if (move->urgent)
        return;
    /* When its source, or the network, is the cause, the next one is no better: less and less often. */
    if (core->now_ms > vm->move_next_ms + MIRROR_CALM_MS)
        vm->moves = 0;
    vm->move_next_ms = core->now_ms + (MIRROR_SETTLED_MS << MIN_OF(vm->moves, 4));
    vm->moves++;
}

/* move NULL: it has none. */
static void choose(struct mst_core *core, struct vm *vm, struct mirror *m, unsigned source, const struct move *move)
{
    struct mst_plan_node nodes[MST_NODES_MAX];
    struct mst_plan_mirror wanted = {.need_bytes = mst_plan_image_bytes(vm->def.memory_mib),
                                     .allowed = vm->def.allowed,
                                     .allowed_count = vm->def.allowed_count,
                                     .never = taken(core, vm) | (move ? move->never : 0),
                                     .avoid = vm->mirror_avoid | nodes_flapping(core),
                                     .rack = node_rack(&core->nodes[source]),
                                     .racks_min = move ? move->racks_min : racks_demanded(vm),
                                     .vm_bytes = vm_need_bytes(vm),
                                     .vcpus = vm->def.vcpus};
    struct mst_placement placed;

    plan_nodes_fill(core, nodes);
    if (mst_plan_mirror(nodes, core->nodes_count, &wanted, &placed) < 0) {
        choose_failed(core, vm, move, wanted.racks_min == MST_RACKS_OTHER, placed.why);
        return;
    }
    if (move && !mst_plan_log_fits(&nodes[source], vm->def.memory_mib, &placed)) {
        choose_failed(core, vm, move, false, placed.why);
        return;
    }
    m->node_id = core->nodes[placed.node].conf.id;
    m->instance = core->nodes[placed.node].instance;
    m->epoch = vm->d.epoch;
    m->log_id = 0;
    m->acked_seq = m->sent_seq = m->acked_age_ms = m->told_ms = m->waits_seq = 0;
    m->sent_bytes = m->sending_us = m->acked_after_us = 0;
    m->text[0] = 0;
    m->retired = false;
    if (move)
        move_begun(core, vm, move, core->nodes[placed.node].conf.name);
    mirror_state_move(core, vm, m, MIRROR_ASKED, placed.why);
    mirror_ask(core, vm, m, source);
}

/* Whether a is the one to go, of two that are sure. */
static bool worse(const struct mst_core *core, const struct vm *vm, const struct mirror *a, const struct mirror *b)
{
    bool leaves_a = node_leaves(core, a->node_id);
    bool leaves_b = node_leaves(core, b->node_id);
    enum mst_racks racks_a = racks_of(core, vm->d.node_id, a->node_id);
    enum mst_racks racks_b = racks_of(core, vm->d.node_id, b->node_id);

    if (leaves_a != leaves_b)
        return leaves_a;
    if ((a->lags_ms != 0) != (b->lags_ms != 0))
        return a->lags_ms != 0;
    if (racks_a != racks_b)
        return racks_a < racks_b;
    return a->d.since_wall_ms < b->d.since_wall_ms;
}

/* One more is sure than is needed: the row of the worst says that it does not count any more, and so on as if it had failed. This follows from the rows
 * alone, whichever run of the coordinator had begun to replace it. */
void mirrors_retire(struct mst_core *core, struct vm *vm)
{
    struct mirror *worst = NULL;
    unsigned sure = 0;

    for (unsigned n = 0; n < MST_MIRRORS_MAX; n++) {
        struct mirror *m = &vm->mirrors[n];

        if (m->state != MIRROR_SURE || !mirror_row_counts(m))
            continue;
        sure++;
        if (!worst || worse(core, vm, m, worst))
            worst = m;
    }
    if (sure <= MIRRORS_WANTED)
        return;
    text_set(worst->text, sizeof(worst->text), "replaced: %.180s", vm->move_why[0] ? vm->move_why : "another one is sure");
    worst->retired = true;
    vm->move_why[0] = 0;
    mirror_state_move(core, vm, worst, MIRROR_FAILED, worst->text);
}

/* The only one it has is to go, for a better one or because its node does: that is seeded first. */
void mirror_replace(struct mst_core *core, struct vm *vm, struct mirror *place, unsigned source)
{
    const struct mirror *sole = NULL;
    struct move move;

    for (unsigned n = 0; n < MST_MIRRORS_MAX; n++)
        sole = vm->mirrors[n].state == MIRROR_SURE && mirror_row_counts(&vm->mirrors[n]) ? &vm->mirrors[n] : sole;
    if (!sole || !move_wanted(core, vm, sole, source, &move)) {
        vm->move_why[0] = 0;
        return;
    }
    if (core->now_ms < vm->mirror_next_ms && vm->mirror_tries > 0 && vm->mirror_why[0])
        text_set(vm->move_why, sizeof(vm->move_why), "%s; %.120s", move.why, vm->mirror_why);
    if (!place || core->now_ms < vm->mirror_next_ms || (!move.urgent && core->now_ms < vm->move_next_ms))
        return;
    if (moves_under_way(core) >= MIRROR_MOVES_MAX) {
        text_set(vm->move_why, sizeof(vm->move_why), "%s: waits, %u of %u mirrors are being replaced", move.why, MIRROR_MOVES_MAX,
                 MIRROR_MOVES_MAX);
        return;
    }
    choose(core, vm, place, source, &move);
}

void mirror_choose(struct mst_core *core, struct vm *vm, struct mirror *place, unsigned source)
{
    choose(core, vm, place, source, NULL);
}
