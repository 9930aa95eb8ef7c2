#include "coordinator/core/internal.h"

#include "base/mutant.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* One recovery: every move is a transaction, and what a state does follows from its rows, so that it can be done again after a crash.
 *
 *   REPORTED --> READING --> FENCING --> READING2 --> PLANNING --> COMMITTING --> RESUMING --> DONE
 *      |            |          ^  ^                    |   ^                        |
 *      |            +-> SAVING-+  |                    |   +---- HELD <-------------+ (nobody has room, starts failed, or its save is
 *      |           (live move)    |                    |                            |  away, or became so: then READING2 again)
 *      |                          +--------------------|----------------------------+ (a start failed: its grant is fenced first)
 *      +--> RESTARTING --> DONE    (agent)             +--> DONE, HELD
 *
 * Several moves go into one transaction where nothing is done and nothing waited for between them: each transaction is a wait for the disk, and
 * VMs stand still meanwhile. So READING2, PLANNING and COMMITTING become durable together, and RESUMING with the first answer; its orders
 * follow from COMMITTING, which has the grants.
 */
const struct mst_state rec_states[MST_REC_STATES] = {
    [MST_REC_REPORTED] = {"reported", MST_TO(MST_REC_READING) | MST_TO(MST_REC_RESTARTING)},
    [MST_REC_READING] = {"reading",
                         MST_TO(MST_REC_SAVING) | MST_TO(MST_REC_FENCING) | MST_TO(MST_REC_HELD) | MST_TO(MST_REC_DONE)},
    [MST_REC_SAVING] = {"saving", MST_TO(MST_REC_FENCING) | MST_TO(MST_REC_HELD) | MST_TO(MST_REC_DONE)},
    [MST_REC_FENCING] = {"fencing", MST_TO(MST_REC_READING2) | MST_TO(MST_REC_HELD) | MST_TO(MST_REC_DONE)},
    [MST_REC_READING2] = {"reading-final", MST_TO(MST_REC_PLANNING) | MST_TO(MST_REC_FENCING)},
    [MST_REC_PLANNING] = {"planning", MST_TO(MST_REC_READING2) | MST_TO(MST_REC_COMMITTING) | MST_TO(MST_REC_FENCING) |
                                          MST_TO(MST_REC_HELD) | MST_TO(MST_REC_DONE)},
    [MST_REC_COMMITTING] = {"committing", MST_TO(MST_REC_RESUMING)},
    [MST_REC_RESUMING] = {"resuming", MST_TO(MST_REC_FENCING) | MST_TO(MST_REC_HELD) | MST_TO(MST_REC_DONE)},
    [MST_REC_RESTARTING] = {"restarting-agent", MST_TO(MST_REC_DONE)},
    [MST_REC_HELD] = {"held",
                      MST_TO(MST_REC_READING) | MST_TO(MST_REC_READING2) | MST_TO(MST_REC_PLANNING) | MST_TO(MST_REC_DONE)},
    [MST_REC_DONE] = {"done", 0},
};

bool rec_open(const struct rec *rec)
{
    return rec->d.state != MST_REC_DONE;
}

struct rec *rec_by_id(struct mst_core *core, uint64_t id)
{
    for (unsigned i = 0; i < core->recs_end; i++) {
        if (core->recs[i].used && core->recs[i].d.id == id)
            return &core->recs[i];
    }
    return NULL;
}

uint64_t rec_elapsed_us(const struct rec *rec, const struct mst_time *when)
{
    uint64_t last = rec->steps_count ? rec->steps[rec->steps_count - 1].offset_us : 0;
    uint64_t us;

    if (rec->started_us != 0)
        return when->us - rec->started_us;
    /* It began in an earlier run: only the wall clock spans both. */
    us = when->wall_ms > rec->d.started_wall_ms ? (when->wall_ms - rec->d.started_wall_ms) * 1000 : 0;
    return MAX_OF(us, last);
}

void rec_entered(struct mst_core *core, struct rec *rec)
{
    rec->entered_ms = core->now_ms;
    rec->held_ms = core->now_ms;
    rec->read_want = 0;
    rec->fence_order = 0;
    rec->fence_retry_ms = 0;
    rec->fence_tries = 0;
    rec->agent_order = 0;
    rec->agent_asked = false;
    rec->counted = rec->counted && rec->d.state == MST_REC_RESUMING; /* the same round of grants as in COMMITTING */
    rec->resuming.us = 0;
    rec->hold_generation = core->view_generation;
    rec->why[0] = 0;
    for (unsigned i = 0; i < rec->vms_count && rec->d.state != MST_REC_RESUMING; i++) { /* there the orders are out already */
        struct rvm *rvm = &rec->vms[i];

        rvm->order = 0;
        rvm->ordered = rvm->answered = false;
        rvm->err = 0;
        rvm->why[0] = 0;
        rvm->retry_ms = 0;
        rvm->read_want = 0;
        rvm->seen = false;
        rvm->away_node = 0;
        memset(rvm->images, 0, sizeof(rvm->images));
        memset(&rvm->start, 0, sizeof(rvm->start));
    }
}

bool read_ready(struct mst_core *core, const struct rec *rec, uint64_t *want, unsigned node, uint64_t deadline_ms, bool *ret_good)
{
    struct node *n = &core->nodes[node];

    *ret_good = false;
    if (*want == 0) {
        *want = n->read_started + 1;
        n->read_wanted = true;
        n->read_ms = 0; /* now */
        return false;
    }
    if (n->read_finished >= *want) {
        *ret_good = n->read_err == 0;
        if (*ret_good || core->now_ms - rec->entered_ms >= deadline_ms)
            return true;
        *want = 0; /* failed: once more within the deadline */
        return false;
    }
    return core->now_ms - rec->entered_ms >= deadline_ms;
}

bool stays_for_now(const struct mst_rvm_row *rvm)
{
    return rvm->outcome == MST_OUT_RUNS_ON && (rvm->hold == MST_HOLD_NO_ROOM || rvm->hold == MST_HOLD_SAVE);
}

bool rec_close(struct mst_core *core, struct rec *rec, const char *text)
{
    unsigned held = 0;
    unsigned done = 0;

    for (unsigned i = 0; i < rec->vms_count; i++) {
        const struct mst_rvm_row *rvm = staged_rvm(core, rec, i);

        if (rvm->outcome == MST_OUT_PENDING)
            return false;
        if ((rvm->outcome == MST_OUT_HELD && !MST_MUTANT(33)) || stays_for_now(rvm))
            held++;
        else
            done++;
    }
    if (held > 0)
        txn_move(core, rec, MST_REC_HELD, "%s%s%u held, %u done", text, text[0] ? ": " : "", held, done);
    else
        txn_move(core, rec, MST_REC_DONE, "%s", text);
    return true;
}

/* --- REPORTED, READING --- */

static bool step_reported(struct mst_core *core, struct rec *rec)
{
    if (!txn_free(core))
        return false;
    txn_begin(core);
    txn_move(core, rec, rec->d.scope == MST_SCOPE_AGENT ? MST_REC_RESTARTING : MST_REC_READING, "%s", "");
    txn_submit(core, "%s", "");
    return true;
}

static void look_text(struct mst_core *core, const struct rec *rec, bool good, char *text, size_t size)
{
    int index = node_find_id(core, rec->d.node_id);
    unsigned saves = 0;

    for (unsigned i = 0; i < rec->vms_count && index >= 0; i++) {
        const struct held *held =
            rec->vms[i].vm < 0 ? NULL : held_find(&core->nodes[index], rec->vms[i].d.vm, core->vms[rec->vms[i].vm].d.epoch);

        saves += held && held->s.save_seq > 0 && !held->s.save_corrupt ? 1 : 0;
    }
    if (good)
        text_set(text, size, "memory of %s is readable, %u of %u VMs have a usable save", node_name(core, rec->d.node_id), saves,
                 rec->vms_count);
    else
        text_set(text, size, "memory of %s cannot be read%s%.100s", node_name(core, rec->d.node_id),
                 index >= 0 && core->nodes[index].read_text[0] ? ": " : "", index >= 0 ? core->nodes[index].read_text : "");
}

/* Live move: who cannot or must not leave stays where it runs. Nothing has been stopped yet. */
static unsigned stage_who_stays(struct mst_core *core, struct rec *rec)
{
    struct mst_placement placed[MST_VMS_PER_NODE];
    unsigned which[MST_VMS_PER_NODE] = {0};
    unsigned count = 0;
    unsigned leaving = 0;

    for (unsigned i = 0; i < rec->vms_count; i++) {
        const struct vm *vm = rec->vms[i].vm >= 0 ? &core->vms[rec->vms[i].vm] : NULL;
        struct mst_rvm_row *row;

        if (rec->vms[i].d.outcome != MST_OUT_PENDING)
            continue;
        if (vm && vm->d.wanted && !vm->d.fenced && rec->d.kind != MST_FAULT_OPERATOR &&
            (vm->def.on_node_fault == MST_ON_FAULT_HOLD || vm->def.on_node_fault == MST_ON_FAULT_DISCARD)) {
            row = txn_rvm(core, rec, i);
            row->outcome = MST_OUT_RUNS_ON;
            row->hold = MST_HOLD_ATTRIBUTE;
            text_set(row->text, sizeof(row->text), "left running on %s: its on-node-fault does not move it",
                     node_name(core, vm->d.node_id));
            continue;
        }
        if (!vm || !vm->d.wanted || vm->d.fenced) {
            leaving++; /* to be stopped, or already stopped: nothing to find room for now */
            continue;
        }
        which[count++] = i;
    }
    leaving += place(core, rec, which, count, true, placed);
    for (unsigned k = 0; k < count; k++) {
        struct mst_rvm_row *row;

        if (placed[k].node >= 0)
            continue;
        row = txn_rvm(core, rec, which[k]);
        row->outcome = MST_OUT_RUNS_ON;
        row->hold = MST_HOLD_NO_ROOM;
        text_set(row->text, sizeof(row->text), "left running, nobody else has room: %.150s", placed[k].why);
    }
    return leaving;
}

static bool step_reading(struct mst_core *core, struct rec *rec)
{
    int index = node_find_id(core, rec->d.node_id);
    char text[MST_TEXT_BYTES];
    bool good = false;

    if (index >= 0 && (core->nodes[index].readable || core->nodes[index].link != 0) &&
        !read_ready(core, rec, &rec->read_want, (unsigned)index, READ_DEADLINE_MS, &good))
        return false;
    if (!txn_free(core))
        return false;
    txn_begin(core);
    look_text(core, rec, good, text, sizeof(text));
    if (rec->d.scope != MST_SCOPE_MOVE) {
        txn_move(core, rec, MST_REC_FENCING, "%s", text);
    } else if (stage_who_stays(core, rec) == 0) {
        (void)rec_close(core, rec, "nothing can leave");
    } else {
        for (unsigned i = 0; i < rec->vms_count; i++) {
            if (rec->vms[i].vm >= 0 && staged_rvm(core, rec, i)->outcome == MST_OUT_PENDING)
                txn_vm(core, rec->vms[i].vm)->phase = MST_VM_RECOVERING;
        }
        txn_move(core, rec, MST_REC_SAVING, "%s", text);
    }
    txn_submit(core, "%s", "");
    return true;
}

/* --- SAVING --- */

static bool save_wanted(const struct mst_core *core, const struct rec *rec, unsigned i)
{
    const struct vm *vm = rec->vms[i].vm >= 0 ? &core->vms[rec->vms[i].vm] : NULL;

    return rec->vms[i].d.outcome == MST_OUT_PENDING && vm && vm->d.wanted && !vm->d.fenced &&
           !(rec->d.kind != MST_FAULT_OPERATOR && vm->def.on_node_fault == MST_ON_FAULT_RESTART);
}

void save_answered(struct mst_core *core, const struct pending *order, const struct mst_answer *answer)
{
    struct rec *rec = rec_by_id(core, order->recovery_id);

    for (unsigned i = 0; rec && rec->d.state == MST_REC_SAVING && i < rec->vms_count; i++) {
        struct rvm *rvm = &rec->vms[i];

        if (rvm->order != order->token)
            continue;
        rvm->order = 0;
        if (answer->err == -ECONNRESET) { /* unknown; when the same keeper calls again it is asked again */
            rvm->ordered = false;
            return;
        }
        rvm->answered = true;
        rvm->err = answer->err;
        if (answer->err == 0)
            text_set(rvm->why, sizeof(rvm->why), "saved alive, seq %" PRIu64, answer->save_seq);
        else
            text_set(rvm->why, sizeof(rvm->why), "cannot be saved alive (%s %.120s)", mst_errname(answer->err), answer->text);
    }
}

/* Somebody else took the room while a VM was being saved: it goes on where it is. slots_judge orders it to continue
 * once that is durable. */
static void stage_saved_stay(struct mst_core *core, struct rec *rec, int index)
{
    struct mst_placement placed[MST_VMS_PER_NODE];
    unsigned which[MST_VMS_PER_NODE] = {0};
    unsigned count = 0;

    for (unsigned i = 0; i < rec->vms_count; i++) {
        if (save_wanted(core, rec, i))
            which[count++] = i;
    }
    (void)place(core, rec, which, count, true, placed);
    for (unsigned k = 0; k < count; k++) {
        struct mst_rvm_row *row;

        if (placed[k].node >= 0)
            continue;
        row = txn_rvm(core, rec, which[k]);
        row->outcome = MST_OUT_RUNS_ON;
        row->hold = MST_HOLD_NO_ROOM;
        text_set(row->text, sizeof(row->text), "goes on where it is, nobody else has room: %.140s", placed[k].why);
        txn_vm(core, rec->vms[which[k]].vm)->phase = MST_VM_RUNNING;
        core->nodes[index].read_wanted = true;
    }
}

/* What could not be saved and has no checkpoint runs on: a move must not cost a VM what the fault may leave it. It is tried again later. */
static unsigned stage_unsaved_stay(struct mst_core *core, struct rec *rec, unsigned index)
{
    unsigned count = 0;

    for (unsigned i = 0; i < rec->vms_count; i++) {
        struct rvm *rvm = &rec->vms[i];
        const struct held *held;
        struct mst_rvm_row *row;

        if (!save_wanted(core, rec, i) || staged_rvm(core, rec, i)->outcome != MST_OUT_PENDING ||
            (rvm->answered && rvm->err == 0))
            continue;
        held = held_find(&core->nodes[index], rvm->d.vm, core->vms[rvm->vm].d.epoch);
        if (!held || (held->s.run_state != MST_RUN_RUNNING && held->s.run_state != MST_RUN_PAUSED) ||
            (held->s.save_seq > 0 && !held->s.save_corrupt))
            continue;
        row = txn_rvm(core, rec, i);
        row->outcome = MST_OUT_RUNS_ON;
        row->hold = MST_HOLD_SAVE;
        text_set(row->text, sizeof(row->text), "goes on where it is and has no checkpoint: %.140s",
                 rvm->why[0] ? rvm->why : "it cannot be saved, its agent does not run");
        txn_vm(core, rvm->vm)->phase = MST_VM_RUNNING;
        core->nodes[index].read_wanted = true;
        count++;
    }
    return count;
}

/* The link went, perhaps with an answer: the same keeper is asked again when it is back and seen. */
static bool keeper_is_awaited(const struct mst_core *core, const struct rec *rec, unsigned index)
{
    const struct node *node = &core->nodes[index];

    if (node->instance != rec->d.instance)
        return false;
    if (node->link == 0)
        return core->now_ms - (node->joined ? node->link_closed_ms : core->started_ms) < core->conf.keeper_return_ms;
    return core->now_ms - node->link_since_ms < SEEN_AGAIN_MS;
}

/* It said what it has saved, and by what was read before that it stands still: its beat is read again within a moment. Going on to the fence now would
 * cut its power, and the saves go with that. */
static bool answers_before_its_beat(const struct mst_core *core, const struct rec *rec, unsigned index)
{
    const struct node *node = &core->nodes[index];

    return node->link != 0 && node->instance == rec->d.instance && core->now_ms - rec->entered_ms < SAVE_DEADLINE_MS + 1000 &&
           mst_detect_keeper(&node->detect, core->conf.keeper_silent_ms) == MST_LIFE_FROZEN;
}

static void send_saves(struct mst_core *core, struct rec *rec, unsigned index)
{
    for (unsigned i = 0; i < rec->vms_count; i++) {
        struct mst_order order = {.type = MST_ORDER_SAVE, .node = index};
        struct rvm *rvm = &rec->vms[i];

        if (rvm->ordered || !save_wanted(core, rec, i))
            continue;
        order.vm = core->vms[rvm->vm].d.name;
        order.epoch = core->vms[rvm->vm].d.epoch;
        rvm->ordered = true;
        rvm->order = order_send(core, &order, rec->d.id, SAVE_DEADLINE_MS);
        if (rvm->order == 0) {
            rvm->answered = true;
            rvm->err = -ENOTCONN;
        }
    }
}

static bool step_saving(struct mst_core *core, struct rec *rec)
{
    int index = node_find_id(core, rec->d.node_id);
    bool can = index >= 0 && node_alive(core, (unsigned)index) && core->nodes[index].agent_up &&
               core->nodes[index].instance == rec->d.instance &&
               mst_detect_agent(&core->nodes[index].detect, core->conf.agent_silent_ms) != MST_LIFE_FROZEN;
    unsigned saved = 0;
    unsigned asked = 0;
    unsigned unsaved = 0;

    if (can)
        send_saves(core, rec, (unsigned)index);
    else if (index >= 0 && keeper_is_awaited(core, rec, (unsigned)index))
        return false;
    for (unsigned i = 0; i < rec->vms_count; i++) {
        if (rec->vms[i].ordered && !rec->vms[i].answered && core->now_ms - rec->entered_ms < SAVE_DEADLINE_MS + 1000)
            return false;
        asked += rec->vms[i].ordered ? 1 : 0;
        saved += rec->vms[i].answered && rec->vms[i].err == 0 ? 1 : 0;
    }
    if (saved > 0 && index >= 0 && answers_before_its_beat(core, rec, (unsigned)index))
        return false;
    if (!txn_free(core))
        return false;
    txn_begin(core);
    if (can)
        stage_saved_stay(core, rec, index);
    if (index >= 0 && node_alive(core, (unsigned)index) && core->nodes[index].instance == rec->d.instance)
        unsaved = stage_unsaved_stay(core, rec, (unsigned)index);
    for (unsigned i = 0; i < rec->vms_count; i++) {
        if (rec->vms[i].why[0] && staged_rvm(core, rec, i)->outcome == MST_OUT_PENDING)
            text_set(txn_rvm(core, rec, i)->text, MST_TEXT_BYTES, "%.160s%s", rec->vms[i].why,
                     rec->vms[i].err != 0 ? ": its last checkpoint is used" : "");
    }
    if (!rec_close(core, rec, unsaved > 0 ? "what cannot be saved stays" : "nobody has room any more")) {
        if (can)
            txn_move(core, rec, MST_REC_FENCING, "%u of %u VMs saved alive", saved, asked);
        else
            txn_move(core, rec, MST_REC_FENCING, "the agent of %s cannot save: last checkpoints are used",
                     node_name(core, rec->d.node_id));
    }
    txn_submit(core, "%s", "");
    return true;
}

/* --- RESTARTING: the agent --- */

static bool agent_done(struct mst_core *core, struct rec *rec, const char *text)
{
    if (!txn_free(core))
        return false;
    txn_begin(core);
    txn_move(core, rec, MST_REC_DONE, "%s", text);
    txn_submit(core, "%s", "");
    return true;
}

static bool agent_given_up(struct mst_core *core, struct rec *rec, unsigned index)
{
    struct mst_node_row *row;
    uint64_t id;

    if (!txn_free(core) || !rec_room(core, MST_SCOPE_MOVE) || node_awaits(core, index))
        return false;
    txn_begin(core);
    row = txn_node(core, index);
    row->failing = true;
    text_set(row->text, sizeof(row->text), "its agent was restarted %u times within %u s and hangs again", AGENT_TRIES_MAX,
             AGENT_TRIES_WINDOW_MS / 1000);
    id = open_recovery(core, MST_SCOPE_MOVE, MST_FAULT_AGENT_SILENT, (int)index, rec->d.fault_id, -1, row->text);
    txn_move(core, rec, MST_REC_DONE, "restarting does not help: recovery %" PRIu64 " moves its VMs", id);
    txn_submit(core, "node=%s failing: its agent cannot be brought back", core->nodes[index].conf.name);
    return true;
}

static bool step_restarting(struct mst_core *core, struct rec *rec)
{
    int found = node_find_id(core, rec->d.node_id);
    struct mst_order order = {.type = MST_ORDER_RESTART_AGENT, .text = "its counter does not move"};
    struct node *node;

    if (found < 0 || core->nodes[found].instance != rec->d.instance)
        return agent_done(core, rec, "the keeper is another instance now");
    node = &core->nodes[found];
    if (node_lost(core, (unsigned)found) >= 0)
        return agent_done(core, rec, "the node as a whole is lost");
    if (rec->agent_asked && node->agent_up && node->detect.any && node->detect.agent_beat != rec->agent_beat)
        return agent_done(core, rec, "the agent runs again");
    if (!rec->agent_asked && node->agent_up && mst_detect_agent(&node->detect, core->conf.agent_silent_ms) == MST_LIFE_MOVING)
        return agent_done(core, rec, "the agent moves again");
    if (rec->agent_asked && core->now_ms < rec->fence_retry_ms)
        return false;
    if (node->agent_restarts_ms[AGENT_TRIES_MAX - 1] != 0 &&
        core->now_ms - node->agent_restarts_ms[AGENT_TRIES_MAX - 1] < AGENT_TRIES_WINDOW_MS)
        return agent_given_up(core, rec, (unsigned)found);
    if (node->link == 0)
        return false;
    order.node = (unsigned)found;
    rec->agent_beat = node->detect.agent_beat;
    rec->agent_order = order_send(core, &order, rec->d.id, ORDER_DEADLINE_MS);
    rec->agent_asked = true;
    rec->fence_retry_ms = core->now_ms + core->conf.agent_silent_ms + 5000; /* starting it takes a while */
    memmove(&node->agent_restarts_ms[1], &node->agent_restarts_ms[0],
            sizeof(node->agent_restarts_ms) - sizeof(node->agent_restarts_ms[0]));
    node->agent_restarts_ms[0] = MAX_OF(core->now_ms, 1);
    return false;
}

bool rec_step(struct mst_core *core, struct rec *rec)
{
    switch ((enum mst_rec_state)rec->d.state) {
    case MST_REC_REPORTED:
        return step_reported(core, rec);
    case MST_REC_READING:
        return step_reading(core, rec);
    case MST_REC_SAVING:
        return step_saving(core, rec);
    case MST_REC_FENCING:
        return rec_fence_step(core, rec);
    case MST_REC_READING2:
        return rec_reading2(core, rec);
    case MST_REC_PLANNING:
        return rec_planning(core, rec);
    case MST_REC_COMMITTING:
    case MST_REC_RESUMING:
        return rec_resuming(core, rec);
    case MST_REC_RESTARTING:
        return step_restarting(core, rec);
    case MST_REC_HELD:
        return rec_held(core, rec);
    case MST_REC_DONE:
    case MST_REC_STATES:
        break;
    }
    return false;
}
