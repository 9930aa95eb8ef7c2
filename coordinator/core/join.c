#include "coordinator/core/internal.h"

#include "base/mutant.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

static int check_hello(const struct mst_core *core, const struct mst_hello *hello, int *ret_index, struct mst_why *why)
{
    const struct node *node;
    int index = node_find(core, hello->node);

    if (!core->ready)
        return mst_why_set(why, -EAGAIN, "the coordinator is not ready yet: %s", core->trouble[0] ? core->trouble : "starting");
    if (strcmp(hello->cluster, core->conf.cluster) != 0)
        return mst_why_set(why, -EINVAL, "this coordinator serves cluster %s, not %s: set cluster in node.yaml",
                           core->conf.cluster, hello->cluster);
    if (index < 0)
        return mst_why_set(why, -ENOENT, "node %s is not in coordinator.yaml", hello->node);
    node = &core->nodes[index];
    if (node->conf.id != hello->node_id)
        return mst_why_set(why, -EINVAL, "node %s has id %u in coordinator.yaml, not %u", hello->node, node->conf.id,
                           hello->node_id);
    if (strcmp(node->conf.address, hello->address) != 0 || node->conf.port != hello->port)
        return mst_why_set(why, -EINVAL, "node %s is at %s port %u in coordinator.yaml, not at %s port %u", hello->node,
                           node->conf.address, node->conf.port, hello->address, hello->port);
    if (hello->instance == 0 || hello->held_count > MST_VMS_PER_NODE)
        return mst_why_set(why, -EINVAL, "node %s sends a Hello without instance or with too many VMs", hello->node);
    if (proof_waits(core, (unsigned)index))
        return mst_why_set(why, -EBUSY, "node %s was just fenced: call again when that is recorded", hello->node);
    if (node->link != 0 && node->instance != hello->instance && node_alive(core, (unsigned)index) &&
        mst_detect_keeper(&node->detect, core->conf.keeper_silent_ms) == MST_LIFE_MOVING)
        return mst_why_set(why, -EEXIST,
                           "node %s is here already and beats (instance %016" PRIx64 "): is the name or id used twice?",
                           hello->node, node->instance);
    *ret_index = index;
    return 0;
}

static const struct mst_term_mark *term_mark(const struct mst_core *core, uint64_t term)
{
    const struct mst_term_mark *mark = &core->meta.terms[term % MST_TERMS_KEPT];

    return term != 0 && mark->term == term ? mark : NULL;
}

/* The newest decision of a term that our store has: nobody was ever told of a decision before it was durable, so whoever knows of a later one has it
 * from a store that went on where this one was copied. Of a term that is no more among those kept only an upper bound is known. */
static uint64_t last_decision(const struct mst_core *core, uint64_t term)
{
    const struct mst_term_mark *next = term_mark(core, term + 1);

    return next && !MST_MUTANT(52) ? next->first - 1 : core->meta.decision;
}

/* Why our store is an old copy, by what a node has seen. False: it is none. */
static bool old_copy(const struct mst_core *core, const char *node, uint64_t term, uint64_t by, uint64_t decision,
                     struct mst_why *why)
{
    const struct mst_term_mark *mark = term_mark(core, term);
    uint64_t last = last_decision(core, term);
    bool newer = term > core->meta.term;
    bool others = term != 0 && by != 0 && mark && mark->coordinator != by;
    bool later = decision > last && !MST_MUTANT(50);

    if (newer)
        mst_why_set(why, -ESTALE, "node %s has seen term %" PRIu64 " of another coordinator, this one has term %" PRIu64, node,
                    term, core->meta.term);
    else if (others)
        mst_why_set(why, -ESTALE, "node %s has seen term %" PRIu64 " of coordinator %016" PRIx64 ", here it was %016" PRIx64 "'s",
                    node, term, by, mark->coordinator);
    else if (later)
        mst_why_set(why, -ESTALE,
                    "node %s has heard of decision %" PRIu64 " in term %" PRIu64 ", this store has none there after %" PRIu64,
                    node, decision, term, last);
    return newer || others || later;
}

/* Whoever acts on an old copy of the store gives epochs that were given before, and shoots nodes for what they ran long ago. Which of two stores is the old
 * one cannot be seen from here: a node that has forgotten, or was alone, may have followed a copy, and what that one decided counts here for nothing. So
 * nobody decides but the operator. */
bool witness_outdated(struct mst_core *core, const char *node, uint64_t term, uint64_t by, uint64_t decision)
{
    struct mst_why why = {0};

    if (core_outdated(core) || MST_MUTANT(19) || !old_copy(core, node, term, by, decision, &why))
        return core_outdated(core);
    text_set(
        core->outdated, sizeof(core->outdated),
        "%s: its store is an old copy, or one has led that node (or two coordinators run). Nothing is decided. Start it with the "
        "newest store. If this is the newest, restart the keeper of node %s, if the newest is lost, all keepers (their VMs end); "
        "then the coordinator",
        why.text, node);
    core_log(core, MST_LOG_ERROR, "%s", core->outdated);
    for (unsigned i = 0; i < core->nodes_count; i++) {
        power_cancel(core, i);
    }
    for (unsigned i = 0; i < WAITERS_MAX; i++) {
        if (core->waiters[i].token != 0)
            core->io.reply(core->io.impl, core->waiters[i].token, -ESTALE, core->outdated);
        core->waiters[i].token = 0;
    }
    for (; core->requests_count > 0; core->requests_count--) {
        core->io.reply(core->io.impl, core->requests[core->requests_head].token, -ESTALE, core->outdated);
        core->requests_head = (core->requests_head + 1) % REQUESTS_MAX;
    }
    return true;
}

/* Its coming back is better evidence than what the fence agent might still say, and its memory is worth more than its being off. The power
 * may go all the same, so nobody is put there for a while. */
static void call_fence_off(struct mst_core *core, unsigned index)
{
    struct node *node = &core->nodes[index];

    if (!node->fencing)
        return;
    power_cancel(core, index);
    core_log(core, MST_LOG_NOTICE, "node=%s has come back: its fencing is called off", node->conf.name);
}

static void take_held(struct mst_core *core, struct node *node, const struct mst_hello *hello)
{
    node->held_count = hello->held_count;
    memset(node->held, 0, sizeof(node->held));
    for (unsigned i = 0; i < hello->held_count; i++) {
        struct mst_slot *s = &node->held[i].s;

        memcpy(s->vm, hello->held[i].vm, sizeof(s->vm));
        s->epoch = hello->held[i].epoch;
        s->run_state = hello->held[i].run_state;
        s->save_seq = hello->held[i].save_seq;
        s->save_epoch = s->epoch;
        s->image_state = hello->held[i].image_state;
        s->log_id = hello->held[i].log_id;
    }
    core->view_generation++;
}

static void drop_link(struct mst_core *core, unsigned index, int err, const char *text)
{
    struct node *node = &core->nodes[index];

    trace_node(core, MST_EV_NODE_LINK_CLOSED, index, 0, err, text);
    node->link = 0;
    node->link_closed_ms = core->now_ms;
    node->link_err = err;
    text_set(node->link_text, sizeof(node->link_text), "%s", text);
    orders_fail(core, index, text);
    core->view_generation++;
    core->io.peers(core->io.impl);
}

int mst_core_hello(struct mst_core *core, const struct mst_time *now, uint64_t link, const struct mst_hello *hello,
                   struct mst_why *why)
{
    struct node *node;
    int index;
    int r;

    core_time(core, now);
    r = check_hello(core, hello, &index, why);
    if (r < 0)
        return r;
    if (witness_outdated(core, hello->node, hello->highest_term, hello->highest_term_by, hello->highest_decision) &&
        !MST_MUTANT(22))
        return mst_why_set(why, -ESTALE, "%s", core->outdated);
    node = &core->nodes[index];
    if (node->link != 0) {
        core->io.close_link(core->io.impl, node->link);
        drop_link(core, (unsigned)index, -ECONNRESET, "replaced by a new link");
    }
    if (node->instance != hello->instance) {
        mst_detect_reset(&node->detect);
        lease_reset(node);
        memmove(&node->joins_ms[1], &node->joins_ms[0], sizeof(node->joins_ms) - sizeof(node->joins_ms[0]));
        node->joins_ms[0] = core->now_ms;
        node->agent_up = false;
        node->unreached_ms = 0;
        memset(&node->info, 0, sizeof(node->info));
        memset(node->agent_restarts_ms, 0, sizeof(node->agent_restarts_ms));
    }
    call_fence_off(core, (unsigned)index);
    node->link = link;
    node->link_since_ms = core->now_ms;
    node->joined = true;
    node->instance = hello->instance;
    memcpy(node->boot_id, hello->host_boot_id, sizeof(node->boot_id));
    node->memory_mib = hello->memory_mib;
    node->vcpus = hello->vcpus;
    memcpy(node->rack, hello->rack, sizeof(node->rack));
    if (node->conf.rack[0] && node->rack[0] && strcmp(node->conf.rack, node->rack) != 0)
        core_log(core, MST_LOG_WARNING, "node=%s says that it is in rack %s; coordinator.yaml says %s, which counts", hello->node,
                 node->rack, node->conf.rack);
    node->earlier_dead = hello->earlier_vms_dead;
    take_held(core, node, hello);
    note_own_saves(core, (unsigned)index);
    mirrors_hello(core, (unsigned)index, hello);
    node->read_err = -EAGAIN; /* not read yet over this link */
    if (node_proved_dead(node))
        core_log(core, MST_LOG_ERROR,
                 "node=%s instance=%016" PRIx64 " is back although it was proved dead: what it runs is stopped", hello->node,
                 hello->instance);
    core_log(core, MST_LOG_NOTICE, "node=%s joined instance=%016" PRIx64 " memory_mib=%u vcpus=%u held=%u earlier_vms_dead=%d",
             hello->node, hello->instance, hello->memory_mib, hello->vcpus, hello->held_count, hello->earlier_vms_dead);
    trace_node(core, MST_EV_NODE_JOINED, (unsigned)index, 0, 0, "");
    node->exits_unjudged = true;
    core->io.peers(core->io.impl);
    return 0;
}

void mst_core_link_closed(struct mst_core *core, const struct mst_time *now, uint64_t link, int err, const char *text)
{
    core_time(core, now);
    for (unsigned i = 0; link != 0 && i < core->nodes_count; i++) {
        if (core->nodes[i].link != link)
            continue;
        core_log(core, MST_LOG_NOTICE, "node=%s control link closed: %s %s; its return is awaited for %u ms",
                 core->nodes[i].conf.name, mst_errname(err), text, core->conf.keeper_return_ms);
        drop_link(core, i, err, text);
    }
    core_run(core);
}

/* --- what a join decides --- */

static bool runs(uint32_t run_state)
{
    return run_state == MST_RUN_STARTING || run_state == MST_RUN_RUNNING || run_state == MST_RUN_PAUSED;
}

static bool earlier_grants(const struct mst_core *core, const struct node *node, bool only_free, uint64_t *ret_instance)
{
    for (unsigned i = 0; i < core->vms_end; i++) {
        const struct vm *vm = &core->vms[i];

        if (!vm->used || vm->d.fenced || vm->d.node_id != node->conf.id || vm->d.instance == node->instance)
            continue;
        if (only_free && vm->rec >= 0)
            continue;
        if (ret_instance)
            *ret_instance = vm->d.instance;
        return true;
    }
    return false;
}

static void stage_runs_on(struct mst_core *core, const struct rec *rec, int vm, const char *text)
{
    for (unsigned i = 0; i < rec->vms_count; i++) {
        struct mst_rvm_row *row;

        if (rec->vms[i].vm != vm)
            continue;
        row = txn_rvm(core, rec, i);
        row->outcome = MST_OUT_RUNS_ON;
        row->hold = MST_HOLD_NONE;
        text_set(row->text, sizeof(row->text), "%s", text);
    }
}

/* What runs there goes on; what does not is what the store wants it to be, once it is fenced under its new number. */
static void stage_newer(struct mst_core *core, unsigned index, int vm, const struct mst_slot *s)
{
    const struct node *node = &core->nodes[index];
    const struct rec *rec = core->vms[vm].rec >= 0 ? &core->recs[core->vms[vm].rec] : NULL;
    struct mst_vm_row *row = txn_vm(core, vm);

    row->epoch = s->epoch;
    row->node_id = node->conf.id;
    row->instance = node->instance;
    row->fenced = false;
    row->proof_id = 0;
    row->proof_kind = MST_PROOF_NONE;
    memset(&row->save, 0, sizeof(row->save)); /* of an older epoch */
    row->image_floor = row->epoch;            /* nor is it known who counts under this one */
    text_set(row->text, sizeof(row->text), "epoch taken over from %s: the store was older than the cluster", node->conf.name);
    if (!rec && runs(s->run_state))
        row->wanted = true;
    if (!rec)
        row->phase = row->wanted ? MST_VM_RUNNING : MST_VM_STOPPING;
    if (rec && runs(s->run_state) && rec->d.scope != MST_SCOPE_STOP) {
        row->phase = MST_VM_RUNNING;
        stage_runs_on(core, rec, vm, row->text);
    }
}

/* The store may be older than the cluster (restored from a copy): epochs never go back, so the node's number is taken over. This comes before
 * any plan (core.c), so that nothing is granted beside a newer grant that is known. */
static bool adopt_newer(struct mst_core *core, unsigned index)
{
    struct node *node = &core->nodes[index];

    for (unsigned i = 0; i < node->held_count; i++) {
        const struct mst_slot *s = &node->held[i].s;
        int vm = vm_find(core, s->vm);

        if (vm < 0 || s->run_state == MST_RUN_IMAGE || s->epoch <= core->vms[vm].d.epoch || MST_MUTANT(21))
            continue;
        txn_begin(core);
        stage_newer(core, index, vm, s);
        core_log(core, MST_LOG_ERROR,
                 "vm=%s node=%s holds epoch %" PRIu64 ", newer than the store's %" PRIu64
                 ": the store is an old copy; taken over",
                 s->vm, node->conf.name, s->epoch, core->vms[vm].d.epoch);
        txn_submit(core, "vm=%s epoch=%" PRIu64 " taken over from node=%s", s->vm, s->epoch, node->conf.name);
        return true;
    }
    return false;
}

/* id: of the recovery that was staged for what is proved dead here, 0: others have it. */
static void stage_return(struct mst_core *core, unsigned index, uint64_t instance, uint64_t id)
{
    struct node *node = &core->nodes[index];
    char text[MST_TEXT_BYTES];

    text_set(text, sizeof(text), "the keeper came back as instance %016" PRIx64 " and saw the cgroups of all earlier VMs empty",
             node->instance);
    (void)stage_node_proof(core, MST_PROOF_RETURN, index, instance, text);
    if (id == 0)
        return;
    recovery_go_on(core, id, MST_REC_READING, "");
    recovery_go_on(core, id, MST_REC_FENCING, "");
    text_set(text, sizeof(text), "fenced: proof %" PRIu64 " by return", txn_meta(core)->next_proof);
    recovery_go_on(core, id, MST_REC_READING2, text);
    for (uint32_t i = 0; i < core->txn.count; i++) {
        struct mst_row *row = &core->txn.rows[i];

        if (row->kind == MST_ROW_RVM && row->rvm.recovery_id == id)
            row->rvm.proof_id = txn_meta(core)->next_proof;
        else if (row->kind == MST_ROW_RECOVERY && row->recovery.id == id)
            text_set(row->recovery.proof, sizeof(row->recovery.proof), "return (proof %" PRIu64 ")", txn_meta(core)->next_proof);
    }
}

/* Proved dead by what ends its VMs and not always its keeper (a lease that ran out, the operator's word), it is back. Once nothing runs there
 * it is a node as any other: until then it gets neither a lease nor a VM. */
static bool lives_on(struct mst_core *core, unsigned index)
{
    struct node *node = &core->nodes[index];

    if (!node_proved_dead(node) || proof_waits(core, index))
        return false;
    for (unsigned i = 0; i < node->held_count; i++) {
        const struct mst_slot *s = &node->held[i].s;
        int vm = vm_find(core, s->vm);

        /* One that is not defined is left alone (sweep_one), and one that was taken over since is meant to run here (adopt_newer). */
        if (vm >= 0 && runs(s->run_state) &&
            (core->vms[vm].d.node_id != node->conf.id || core->vms[vm].d.epoch != s->epoch || core->vms[vm].d.fenced))
            return false;
    }
    txn_begin(core);
    txn_node(core, index)->fenced_instance = 0;
    txn_submit(core, "node=%s instance=%016" PRIx64 " runs nothing of what it was proved dead for: it is used again",
               node->conf.name, node->instance);
    return true;
}

bool join_step(struct mst_core *core, unsigned index)
{
    struct node *node = &core->nodes[index];
    struct mst_fault_row *fault;
    uint64_t instance = 0;
    uint64_t id = 0;
    bool changed;
    bool proof, lost;

    if (node->link == 0)
        return false;
    changed = node->d.instance != node->instance || memcmp(node->d.host_boot_id, node->boot_id, sizeof(node->boot_id)) != 0;
    lost = earlier_grants(core, node, true, &instance);
    proof = node->earlier_dead && earlier_grants(core, node, false, &instance);
    if (lost && !rec_room(core, MST_SCOPE_NODE)) /* proved dead without a recovery, they would be forgotten */
        lost = proof = false;
    if (!changed && !proof && !lost)
        return adopt_newer(core, index) || lives_on(core, index);
    txn_begin(core);
    if (changed) {
        struct mst_node_row *row = txn_node(core, index);

        row->instance = node->instance;
        memcpy(row->host_boot_id, node->boot_id, sizeof(node->boot_id));
    }
    if (lost) {
        fault = txn_fault(core);
        fault->kind = MST_FAULT_KEEPER_DEAD;
        fault->node_id = node->conf.id;
        fault->instance = instance;
        text_set(fault->reporter, sizeof(fault->reporter), "coordinator");
        text_set(fault->text, sizeof(fault->text), "keeper came back as another instance (%016" PRIx64 " after %016" PRIx64 ")",
                 node->instance, instance);
        fault->recovery_id = id = open_recovery_of(core, instance, index, fault->id, fault->text);
        text_set(fault->verdict, sizeof(fault->verdict), "recovery %" PRIu64, fault->recovery_id);
    }
    if (proof)
        stage_return(core, index, instance, id);
    txn_submit(core, "node=%s instance=%016" PRIx64 " is the newest%s%s", node->conf.name, node->instance,
               proof ? ", earlier VMs proved dead" : "", lost ? ", recovery opened" : "");
    return true;
}

/* --- reading --- */

void mst_core_readable(struct mst_core *core, const struct mst_time *now, unsigned node, bool readable)
{
    core_time(core, now);
    if (node >= core->nodes_count)
        return;
    core->nodes[node].readable = readable;
    core_run(core);
}

/* Read before our own pause, and told behind it: as if it were the first of the new windows, the pause would count as silence. */
static bool before_pause(const struct mst_core *core, uint64_t at_us)
{
    return at_us / 1000 < core->windows_ms;
}

void mst_core_beat(struct mst_core *core, const struct mst_time *now, unsigned node, const struct mst_beat *beat)
{
    struct node *n = &core->nodes[node];

    core_time(core, now);
    if (node >= core->nodes_count || beat->instance != n->instance || before_pause(core, beat->read_us))
        return;
    n->beat_reads++;
    if (n->detect.any && beat->read_us / 1000 > n->detect.last_ok_ms)
        n->beat_gap_max_ms = MAX_OF(n->beat_gap_max_ms, beat->read_us / 1000 - n->detect.last_ok_ms);
    mst_detect_read(&n->detect, beat->read_us / 1000, beat->keeper_beat, beat->agent_beat);
    n->agent_up = beat->agent_up;
    lease_beat(core, node, beat);
    if (beat->generation == n->generation)
        return;
    n->generation = beat->generation;
    n->read_wanted = true;
    core_run(core);
}

void mst_core_beat_failed(struct mst_core *core, const struct mst_time *now, unsigned node, uint64_t at_us)
{
    core_time(core, now);
    if (node < core->nodes_count && !before_pause(core, at_us))
        mst_detect_failed(&core->nodes[node].detect, at_us / 1000);
}

static void merge_slots(struct mst_core *core, struct node *node, const struct mst_slot *slots, unsigned count)
{
    struct held old[MST_VMS_PER_NODE];
    unsigned old_count = node->held_count;

    memcpy(old, node->held, sizeof(old));
    memset(node->held, 0, sizeof(node->held));
    node->held_count = 0;
    for (unsigned i = 0; i < count && i < MST_VMS_PER_NODE; i++) {
        struct held *to = &node->held[node->held_count++];

        for (unsigned k = 0; k < old_count; k++) {
            if (old[k].s.epoch == slots[i].epoch && strcmp(old[k].s.vm, slots[i].vm) == 0)
                *to = old[k];
        }
        to->s = slots[i];
    }
    if (node->held_count < old_count)
        core->view_generation++;
}

static void order_continue(struct mst_core *core, unsigned index, struct vm *vm)
{
    struct mst_order order = {.type = MST_ORDER_CONTINUE, .node = index, .vm = vm->d.name, .epoch = vm->d.epoch};

    if (vm->continue_ms != 0 && core->now_ms - vm->continue_ms < FORGET_RETRY_MS)
        return;
    vm->continue_ms = core->now_ms;
    (void)order_send(core, &order, 0, ORDER_DEADLINE_MS);
}

/* Faults that main storage shows, whether or not anybody reports them. */
void slots_judge(struct mst_core *core, unsigned index)
{
    struct node *node = &core->nodes[index];

    for (unsigned i = 0; i < node->held_count; i++) {
        const struct mst_slot *s = &node->held[i].s;
        int found = vm_find(core, s->vm);
        struct vm *vm = found >= 0 ? &core->vms[found] : NULL;

        if (!vm || vm->d.epoch != s->epoch || vm->d.node_id != node->conf.id)
            continue;
        if (s->save_corrupt && vm->corrupt_epoch != s->epoch) {
            vm->corrupt_epoch = s->epoch;
            report_self(core, MST_FAULT_AREA_CORRUPT, index, found,
                        "its save record does not check: no save of this epoch is used");
        }
        if (vm->d.fenced || vm->rec >= 0 || vm->d.phase != MST_VM_RUNNING || vm->d.instance != node->instance)
            continue;
        if (s->run_state == MST_RUN_DEAD || s->run_state == MST_RUN_FENCED)
            report_self(core, MST_FAULT_VM_EXITED, index, found, "its slot in main storage says so");
        else if (s->fault_kind == MST_FAULT_VM_PANICKED || s->fault_kind == MST_FAULT_VM_SILENT)
            report_self(core, s->fault_kind, index, found, "its slot in main storage says so");
        else if (s->run_state == MST_RUN_PAUSED && node->link != 0 && vm->d.wanted)
            order_continue(core, index, vm); /* saved for a move that did not come about */
    }
}

void mst_core_slots(struct mst_core *core, const struct mst_time *now, unsigned node, int err, const char *text,
                    const struct mst_node_info *info, const struct mst_slot *slots, unsigned count)
{
    struct node *n = &core->nodes[node];

    core_time(core, now);
    if (node >= core->nodes_count)
        return;
    n->reading = false;
    n->read_finished = n->read_started;
    if (err == 0 && n->read_err != 0)
        core->view_generation++;
    n->read_err = err;
    text_set(n->read_text, sizeof(n->read_text), "%s", text ? text : "");
    if (err == 0) {
        merge_slots(core, n, slots, count);
        note_own_saves(core, node);
        if (info && info->known)
            n->info = *info;
        slots_judge(core, node);
    }
    core_run(core);
}

void mst_core_vm_event(struct mst_core *core, const struct mst_time *now, uint64_t link, const struct mst_vm_event *event)
{
    int vm = vm_find(core, event->vm);

    core_time(core, now);
    for (unsigned i = 0; link != 0 && i < core->nodes_count; i++) {
        struct node *node = &core->nodes[i];
        struct held *held;

        if (node->link != link)
            continue;
        held = held_find(node, event->vm, event->epoch);
        if (held)
            held->s.run_state = event->run_state;
        node->read_wanted = true;
        if (event->run_state == MST_RUN_DEAD && vm >= 0 && core->vms[vm].d.epoch == event->epoch && core->vms[vm].rec < 0)
            report_self(core, MST_FAULT_VM_EXITED, i, vm, event->text[0] ? event->text : "its keeper says so");
    }
    core_run(core);
}

/* --- what needs no decision: reading again, and having dropped what nobody needs --- */

static bool is_needed(const struct mst_core *core, const struct node *node, const struct vm *vm, const struct mst_slot *slot)
{
    uint64_t epoch = slot->epoch;

    if (slot->run_state == MST_RUN_IMAGE)
        return image_needed(core, node, vm, slot);
    if (vm->d.node_id == node->conf.id && vm->d.epoch == epoch && (!vm->d.fenced || vm->d.phase != MST_VM_STOPPED))
        return true;
    if (vm->rec >= 0 || epoch > vm->d.epoch)
        return true;
    return vm->d.save.node_id == node->conf.id && vm->d.save.epoch == epoch;
}

/* An order to forget an epoch takes all older ones along. */
static bool needs_any(const struct mst_core *core, const struct node *node, const struct vm *vm, uint64_t up_to_epoch)
{
    for (unsigned i = 0; i < node->held_count; i++) {
        const struct mst_slot *s = &node->held[i].s;

        if (s->epoch <= up_to_epoch && strcmp(s->vm, vm->d.name) == 0 && is_needed(core, node, vm, s))
            return true;
    }
    return false;
}

static void sweep_one(struct mst_core *core, unsigned index, struct held *held)
{
    struct node *node = &core->nodes[index];
    struct mst_order order = {.type = MST_ORDER_FORGET, .node = index, .vm = held->s.vm, .epoch = held->s.epoch};
    int found = vm_find(core, held->s.vm);
    const struct vm *vm = found >= 0 ? &core->vms[found] : NULL;
    bool stale = vm && (held->s.epoch < vm->d.epoch || (held->s.epoch == vm->d.epoch && vm->d.node_id != node->conf.id));
    bool back = node_proved_dead(node); /* what it was proved dead for, it may still run */

    if (held->sweep_ms != 0 && core->now_ms - held->sweep_ms < FORGET_RETRY_MS)
        return;
    if (!vm && (held->s.epoch > core->meta.epoch_floor || runs(held->s.run_state))) {
        if (!held->told)
            core_log(core, MST_LOG_ERROR,
                     "node=%s holds vm=%s epoch=%" PRIu64 " run_state=%u, which is not defined here: left alone", node->conf.name,
                     held->s.vm, held->s.epoch, held->s.run_state);
        held->told = true;
        return;
    }
    if (vm && runs(held->s.run_state) && (stale || (vm->d.fenced && (vm->rec < 0 || back)))) {
        order.type = MST_ORDER_FENCE;
        order.fence_count = 1;
        memcpy(order.fence[0].vm, held->s.vm, sizeof(order.fence[0].vm));
        order.fence[0].epoch = held->s.epoch;
        if (stale)
            core_log(core, MST_LOG_ERROR,
                     "node=%s has vm=%s under epoch %" PRIu64 ", which is over (now %" PRIu64 "): stopped there", node->conf.name,
                     held->s.vm, held->s.epoch, vm->d.epoch);
    } else if (vm && (MST_MUTANT(10) ? is_needed(core, node, vm, &held->s) : needs_any(core, node, vm, held->s.epoch))) {
        return;
    }
    held->sweep_ms = MAX_OF(core->now_ms, 1);
    (void)order_send(core, &order, 0, ORDER_DEADLINE_MS);
}

void node_effects(struct mst_core *core, unsigned index)
{
    struct node *node = &core->nodes[index];
    uint64_t since_ms = core->now_ms - node->read_ms;

    if (node->readable && !node->reading &&
        (node->read_ms == 0 || since_ms >= READ_AGAIN_MS || (node->read_wanted && since_ms >= READ_GAP_MS))) {
        node->reading = true;
        node->read_wanted = false;
        node->read_started++;
        node->read_ms = MAX_OF(core->now_ms, 1);
        core->io.read_slots(core->io.impl, index);
    }
    fence_power_step(core, index);
    for (unsigned i = 0; node->link != 0 && i < node->held_count; i++)
        sweep_one(core, index, &node->held[i]);
}
