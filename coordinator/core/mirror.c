#include "coordinator/core/internal.h"

#include "base/mutant.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Mirrors of running VMs under protect mirror (docs/PROTOCOL.md, Mirrors; tests/model/checkpoint.pml).
 *
 *             choose              grant             it seeds          first acknowledged       the row is durable      source told
 *     idle ----------> asked ----------> given ----------> seeding ----------> joined ----------> counts ----------> sure
 *      ^                 |                 |                  |                   |                  |                 |
 *      |   refused       |                 |                  |      lost, lagged, damaged           |                 |
 *      |<----------------+                 +------------------+---------+---------+------------------+-----------------+
 *      |                                                                v
 *      +------------------------- leaving <-------------------------- failed <--- another one is sure in its place
 *               left out by its source       the row says that it does not count, or never said that it does
 *
 * The source waits for a mirror before that counts, and leaves one out only after that counts no more. What follows from a row follows when it is durable.
 * Nothing is done while a recovery has the VM: then the rows are what is needed (images.c). What another run of the coordinator had begun is taken up from
 * rows and from what the source says in its Hello. The image of one that left is forgotten like any save that nobody needs (join.c). */
static const struct mst_state states[MIRROR_STATES] = {
    [MIRROR_IDLE] = {"idle", MST_TO(MIRROR_ASKED) | MST_TO(MIRROR_SEEDING) | MST_TO(MIRROR_JOINED) | MST_TO(MIRROR_COUNTS) |
                                 MST_TO(MIRROR_FAILED)},
    [MIRROR_ASKED] = {"asked", MST_TO(MIRROR_GIVEN) | MST_TO(MIRROR_IDLE)},
    [MIRROR_GIVEN] = {"given", MST_TO(MIRROR_SEEDING) | MST_TO(MIRROR_JOINED) | MST_TO(MIRROR_FAILED) | MST_TO(MIRROR_IDLE)},
    [MIRROR_SEEDING] = {"seeding", MST_TO(MIRROR_JOINED) | MST_TO(MIRROR_FAILED) | MST_TO(MIRROR_IDLE)},
    [MIRROR_JOINED] = {"joined", MST_TO(MIRROR_COUNTS) | MST_TO(MIRROR_FAILED) | MST_TO(MIRROR_IDLE)},
    [MIRROR_COUNTS] = {"counts", MST_TO(MIRROR_SURE) | MST_TO(MIRROR_FAILED) | MST_TO(MIRROR_IDLE)},
    [MIRROR_SURE] = {"sure", MST_TO(MIRROR_FAILED) | MST_TO(MIRROR_IDLE)},
    [MIRROR_FAILED] = {"failed", MST_TO(MIRROR_LEAVING) | MST_TO(MIRROR_IDLE)},
    [MIRROR_LEAVING] = {"leaving", MST_TO(MIRROR_IDLE)},
};

const char *mst_mirror_state_name(unsigned state)
{
    return mst_state_name(states, MIRROR_STATES, state);
}

bool mirror_active(const struct mirror *m)
{
    return m->state != MIRROR_IDLE && m->state != MIRROR_LEAVING;
}

/* The only writer of a mirror's state. */
void mirror_state_move(struct mst_core *core, struct vm *vm, struct mirror *m, enum mirror_state next, const char *why)
{
    if (!mst_state_may(states, MIRROR_STATES, m->state, next))
        abort();
    core_log(core, next == MIRROR_FAILED && !m->retired ? MST_LOG_WARNING : MST_LOG_NOTICE,
             "vm=%s epoch=%" PRIu64 " mirror=%s log=%016" PRIx64 " state=%s%s%s", vm->d.name, m->epoch,
             node_name(core, m->node_id), m->log_id, states[next].name, why[0] ? " " : "", why);
    m->state = next;
    core->view_generation += next == MIRROR_IDLE; /* what was kept free for it is free */
    m->retry_ms = 0;
    m->order = 0;
    m->sure_ms = next == MIRROR_SURE ? MAX_OF(core->now_ms, 1) : 0;
    m->lags_ms = 0;
}

/* The row of its place is about this mirror and says that it counts. */
bool mirror_row_counts(const struct mirror *m)
{
    return m->d.node_id != 0 && m->d.counts && m->d.epoch == m->epoch && m->d.log_id == m->log_id;
}

/* It runs, and nobody but us decides about it. */
static bool settled(const struct vm *vm)
{
    return vm->used && vm->rec < 0 && !vm->d.fenced && vm->d.wanted && vm->d.phase == MST_VM_RUNNING;
}

static bool protects(const struct mirror *m)
{
    return (m->state == MIRROR_COUNTS || m->state == MIRROR_SURE) && mirror_row_counts(m);
}

/* Nothing came of it: another try, elsewhere if possible, in a while. What was protected until now is tried again at once. */
static void try_again(struct mst_core *core, struct vm *vm, const struct mirror *m, bool at_once)
{
    uint64_t wait = MIRROR_RETRY_MIN_MS << MIN_OF(vm->mirror_tries, 5);
    int node = node_find_id(core, m->node_id);

    if (node >= 0)
        vm->mirror_avoid |= UINT64_C(1) << node;
    if (at_once) {
        vm->mirror_next_ms = core->now_ms;
        return;
    }
    vm->mirror_tries++;
    vm->mirror_next_ms = core->now_ms + MIN_OF(wait, MIRROR_RETRY_MAX_MS);
}

static void fail(struct mst_core *core, struct vm *vm, struct mirror *m, const char *why)
{
    text_set(m->text, sizeof(m->text), "%s", why);
    text_set(vm->mirror_why, sizeof(vm->mirror_why), "%s was left: %.150s", node_name(core, m->node_id), why);
    try_again(core, vm, m, mirror_row_counts(m));
    mirror_state_move(core, vm, m, MIRROR_FAILED, why);
}

static void give_up(struct mst_core *core, struct vm *vm, struct mirror *m, int err, const char *why)
{
    text_set(vm->mirror_why, sizeof(vm->mirror_why), "%s does not take its image: %s %.130s", node_name(core, m->node_id),
             mst_errname(err), why);
    try_again(core, vm, m, false);
    mirror_state_move(core, vm, m, MIRROR_IDLE, vm->mirror_why);
}

/* --- what the source says --- */

static struct mirror *by_log(struct vm *vm, uint64_t log_id)
{
    for (unsigned n = 0; n < MST_MIRRORS_MAX; n++) {
        if (vm->mirrors[n].state > MIRROR_ASKED && vm->mirrors[n].log_id == log_id)
            return &vm->mirrors[n];
    }
    return NULL;
}

/* One that an earlier run of the coordinator had begun. Its keeper's instance is that of the image with this log (effects look for it). */
static struct mirror *adopt(struct mst_core *core, struct vm *vm, uint32_t node_id, uint64_t log_id, uint32_t phase)
{
    struct mirror *m = NULL;

    for (unsigned n = 0; n < MST_MIRRORS_MAX && !m; n++) {
        if (vm->mirrors[n].state == MIRROR_IDLE)
            m = &vm->mirrors[n];
    }
    if (!m)
        return NULL;
    m->node_id = node_id;
    m->instance = 0;
    m->epoch = vm->d.epoch;
    m->log_id = log_id;
    m->acked_seq = m->sent_seq = m->acked_age_ms = m->waits_seq = 0;
    m->sent_bytes = m->sending_us = m->acked_after_us = 0;
    m->text[0] = 0;
    m->retired = false;
    mirror_state_move(core, vm, m,
                      phase == MST_MIRROR_FAILED    ? MIRROR_FAILED
                      : phase == MST_MIRROR_SEEDING ? MIRROR_SEEDING
                                                    : MIRROR_JOINED,
                      "its source has it");
    return m;
}

static void take_phase(struct mst_core *core, struct vm *vm, struct mirror *m, uint32_t phase, const char *text)
{
    switch (phase) {
    case MST_MIRROR_SEEDING:
        if (m->state == MIRROR_GIVEN)
            mirror_state_move(core, vm, m, MIRROR_SEEDING, text);
        break;
    case MST_MIRROR_JOINED:
    case MST_MIRROR_SURE: /* without our row: the store was older than the cluster; it is made to count anew */
        if (m->state == MIRROR_GIVEN || m->state == MIRROR_SEEDING)
            mirror_state_move(core, vm, m, MIRROR_JOINED, text);
        else if (m->state == MIRROR_COUNTS && phase == MST_MIRROR_SURE)
            mirror_state_move(core, vm, m, MIRROR_SURE, "");
        break;
    case MST_MIRROR_FAILED:
        if (m->state >= MIRROR_GIVEN && m->state < MIRROR_FAILED)
            fail(core, vm, m, text[0] ? text : "its source says that it failed");
        break;
    default:
        break;
    }
}

/* It lags when a checkpoint has waited for longer than the bound, and no more when one was acknowledged within half of it, or was never seen to wait. How
 * old its newest checkpoint is says less: the VM may make one in ten minutes. */
static void note_lag(const struct mst_core *core, struct mirror *m, uint64_t acked_before)
{
    if (m->waits_seq == 0 && m->acked_seq > acked_before)
        m->lags_ms = 0;
    if (m->waits_seq != 0 && m->acked_seq >= m->waits_seq) {
        if (core->now_ms - m->waits_ms < core->conf.mirror_lag_ms / 2)
            m->lags_ms = 0;
        m->waits_seq = 0;
    }
    if (m->waits_seq == 0 && m->sent_seq > m->acked_seq) {
        m->waits_seq = m->sent_seq;
        m->waits_ms = core->now_ms;
    }
}

void mst_core_mirror(struct mst_core *core, const struct mst_time *now, uint64_t link, const struct mst_mirror_news *news)
{
    int index = vm_find(core, news->vm);
    struct vm *vm = index >= 0 ? &core->vms[index] : NULL;
    int source = vm ? node_find_id(core, vm->d.node_id) : -1;
    int node = node_find(core, news->node);
    uint64_t acked_before;
    struct mirror *m;

    core_time(core, now);
    if (!vm || source < 0 || node < 0 || link == 0 || core->nodes[source].link != link || vm->d.epoch != news->epoch ||
        vm->d.fenced)
        return;
    m = by_log(vm, news->log_id);
    if (!m)
        m = adopt(core, vm, core->nodes[node].conf.id, news->log_id, news->phase);
    if (!m)
        return;
    acked_before = m->acked_seq;
    m->acked_seq = news->acked_seq;
    m->sent_seq = news->sent_seq;
    m->acked_age_ms = news->acked_age_ms;
    m->sent_bytes = news->sent_bytes;
    m->sending_us = news->sending_us;
    m->acked_after_us = news->acked_after_us;
    m->told_ms = MAX_OF(core->now_ms, 1);
    note_lag(core, m, acked_before);
    if (m->state < MIRROR_FAILED)
        text_set(m->text, sizeof(m->text), "%s", news->text);
    take_phase(core, vm, m, news->phase, news->text);
    core_run(core);
}

static void hello_of_vm(struct mst_core *core, struct vm *vm, const struct mst_hello_vm *held)
{
    bool seen[MST_MIRRORS_MAX] = {0};

    for (unsigned i = 0; i < held->mirrors_count && i < MST_MIRRORS_MAX; i++) {
        const struct mst_held_mirror *said = &held->mirrors[i];
        struct mirror *m = by_log(vm, said->log_id);

        if (!m)
            m = adopt(core, vm, said->node_id, said->log_id, said->phase);
        if (!m)
            continue;
        m->acked_seq = said->acked_seq;
        m->sent_seq = MAX_OF(m->sent_seq, held->save_seq);
        m->waits_seq = m->lags_ms = 0; /* while its source was away nothing was told */
        take_phase(core, vm, m, said->phase, "");
        seen[m - vm->mirrors] = true;
    }
    for (unsigned n = 0; n < MST_MIRRORS_MAX; n++) {
        struct mirror *m = &vm->mirrors[n];

        if (seen[n] || m->epoch != vm->d.epoch)
            continue;
        if (m->state >= MIRROR_SEEDING && m->state < MIRROR_FAILED)
            fail(core, vm, m, "its source does not know it");
        else if (m->state == MIRROR_LEAVING)
            mirror_state_move(core, vm, m, MIRROR_IDLE, "its source has left it out");
    }
}

void mirrors_hello(struct mst_core *core, unsigned index, const struct mst_hello *hello)
{
    for (unsigned i = 0; i < hello->held_count; i++) {
        const struct mst_hello_vm *held = &hello->held[i];
        int found = vm_find(core, held->vm);
        struct vm *vm = found >= 0 ? &core->vms[found] : NULL;

        if (vm && !vm->d.fenced && vm->d.node_id == core->nodes[index].conf.id && vm->d.instance == hello->instance &&
            vm->d.epoch == held->epoch && held->run_state != MST_RUN_IMAGE)
            hello_of_vm(core, vm, held);
    }
}

/* --- rows --- */

void mirror_applied(struct mst_core *core, const struct mst_mirror_row *row)
{
    int index = vm_find(core, row->vm);
    struct vm *vm = index >= 0 ? &core->vms[index] : NULL;
    struct mirror *m = vm && row->n < MST_MIRRORS_MAX ? &vm->mirrors[row->n] : NULL;

    if (!m)
        return;
    m->d = *row;
    if (row->counts && m->state == MIRROR_JOINED && m->log_id == row->log_id) {
        vm->mirror_tries = 0;
        vm->mirror_avoid = 0;
        mirror_state_move(core, vm, m, MIRROR_COUNTS, "");
    } else if (row->counts && m->state == MIRROR_IDLE && row->epoch == vm->d.epoch && !vm->d.fenced) { /* loading */
        m->node_id = row->node_id;
        m->instance = row->instance;
        m->epoch = row->epoch;
        m->log_id = row->log_id;
        m->state = MIRROR_COUNTS;
    }
}

static bool row_to_write(const struct mst_core *core, const struct vm *vm, const struct mirror *m)
{
    int node = node_find_id(core, m->node_id);
    int source = node_find_id(core, vm->d.node_id);

    if (m->epoch != vm->d.epoch)
        return false;
    if (m->state == MIRROR_FAILED)
        return mirror_row_counts(m);
    if (source < 0 || core->nodes[source].link == 0 || core->nodes[source].instance != vm->d.instance)
        return false; /* whether it still waits for it is not known */
    if (m->state != MIRROR_JOINED && !(MST_MUTANT(91) && m->state == MIRROR_SEEDING))
        return false;
    return m->instance != 0 && node >= 0 && core->nodes[node].link != 0 && core->nodes[node].instance == m->instance;
}

/* Stages what is to be said of the VM's mirrors. *ret_protected: whether somebody counts then. */
static unsigned stage_mirrors(struct mst_core *core, int index, bool begin, bool *ret_protected)
{
    const struct vm *vm = &core->vms[index];
    unsigned count = 0;

    *ret_protected = false;
    for (unsigned n = 0; n < MST_MIRRORS_MAX; n++) {
        const struct mirror *m = &vm->mirrors[n];
        struct mst_mirror_row *row;

        if (!row_to_write(core, vm, m)) {
            *ret_protected |= protects(m);
            continue;
        }
        if (count++ == 0 && begin)
            txn_begin(core);
        row = txn_mirror(core, index, n);
        row->epoch = m->epoch;
        row->node_id = m->node_id;
        row->instance = m->instance;
        row->log_id = m->log_id;
        row->counts = m->state != MIRROR_FAILED;
        row->since_wall_ms = core->now.wall_ms;
        *ret_protected |= row->counts;
    }
    return count;
}

/* Since when nobody has its checkpoints is durable too: the time goes on when another coordinator takes over. */
static bool stage_exposed(struct mst_core *core, int index, bool begin, bool protected_then)
{
    const struct vm *vm = &core->vms[index];
    bool exposed = !protected_then && vm->def.protect == MST_PROTECT_MIRROR;
    uint64_t age_ms = vm->exposed_ms != 0 ? core->now_ms - vm->exposed_ms : 0;

    if (exposed == (vm->d.exposed_wall_ms != 0))
        return false;
    if (begin)
        txn_begin(core);
    txn_vm(core, index)->exposed_wall_ms = exposed ? MAX_OF(core->now.wall_ms - MIN_OF(age_ms, core->now.wall_ms), 1) : 0;
    return true;
}

bool mirrors_step(struct mst_core *core)
{
    unsigned mirrors = 0;
    unsigned vms = 0;

    for (unsigned i = 0; i < core->vms_end && mirrors + vms < MST_VMS_PER_NODE; i++) {
        bool protected_then;

        if (!settled(&core->vms[i]))
            continue;
        mirrors += stage_mirrors(core, (int)i, mirrors + vms == 0, &protected_then);
        vms += stage_exposed(core, (int)i, mirrors + vms == 0, protected_then) ? 1 : 0;
    }
    if (mirrors > 0)
        txn_submit(core, "%u mirrors count now, or no more", mirrors);
    else if (vms > 0)
        txn_submit(core, "%u VMs are exposed", vms);
    return mirrors + vms > 0;
}
static_assert(2 * MST_VMS_PER_NODE + MST_MIRRORS_MAX + 2 <= MST_TXN_ROWS, "one VM more than the limit, and the meta row");

/* --- orders --- */

static void order_to(struct mst_core *core, struct vm *vm, struct mirror *m, struct mst_order *order, unsigned node)
{
    order->node = node;
    order->vm = vm->d.name;
    order->epoch = m->epoch;
    m->order = order_send(core, order, 0, ORDER_DEADLINE_MS + vm->def.memory_mib * MST_PULL_MS_PER_MIB);
    m->retry_ms = core->now_ms + MIRROR_RETRY_MIN_MS;
}

void mirror_ask(struct mst_core *core, struct vm *vm, struct mirror *m, unsigned source)
{
    struct mst_order order = {.type = MST_ORDER_MIRROR,
                              .definition = &vm->def,
                              .peer = &core->nodes[source].conf,
                              .peer_instance = core->nodes[source].instance + (MST_MUTANT(98) ? 1 : 0),
                              .grant.ring_bytes = mst_plan_ring_bytes(vm->def.memory_mib)};
    int node = node_find_id(core, m->node_id);

    memcpy(order.peer_boot_id, core->nodes[source].boot_id, sizeof(order.peer_boot_id));
    order_to(core, vm, m, &order, (unsigned)node);
    if (m->order == 0)
        give_up(core, vm, m, -ENOTCONN, "it is not connected");
}

static void asked_answered(struct mst_core *core, struct vm *vm, struct mirror *m, const struct pending *order,
                           const struct mst_answer *answer)
{
    if (answer->err != 0) {
        core->nodes[order->node].read_wanted = true; /* what an earlier try left there is forgotten when it is seen */
        give_up(core, vm, m, answer->err, answer->text);
        return;
    }
    if (!answer->has_grant || answer->grant.log_id == 0 || answer->grant.mirror_instance != order->instance) {
        give_up(core, vm, m, -EPROTO, "its answer has no grant, or another keeper's");
        return;
    }
    m->grant = answer->grant;
    m->log_id = answer->grant.log_id;
    m->instance = answer->grant.mirror_instance;
    mirror_state_move(core, vm, m, MIRROR_GIVEN, "");
}

/* The answer of the source; -ECONNRESET and what else says nothing about the order is sent again. */
static void source_answered(struct mst_core *core, struct vm *vm, struct mirror *m, const struct mst_answer *answer)
{
    char text[MST_TEXT_BYTES];
    bool refused = answer->err == -ESTALE || answer->err == -ENOENT || answer->err == -ENOSPC || answer->err == -EINVAL;

    text_set(text, sizeof(text), "its source says %s %.140s", mst_errname(answer->err), answer->text);
    switch ((enum mirror_state)m->state) {
    case MIRROR_GIVEN:
        if (answer->err == 0)
            mirror_state_move(core, vm, m, MIRROR_SEEDING, "");
        else if (refused)
            fail(core, vm, m, text);
        break;
    case MIRROR_COUNTS:
        if (answer->err == 0)
            mirror_state_move(core, vm, m, MIRROR_SURE, "");
        else if (refused)
            fail(core, vm, m, text);
        break;
    case MIRROR_LEAVING:
        if (answer->err == 0 || refused)
            mirror_state_move(core, vm, m, MIRROR_IDLE, "its source has left it out");
        break;
    default:
        break;
    }
}

void mirror_answered(struct mst_core *core, const struct pending *order, const struct mst_answer *answer)
{
    int index = vm_find(core, order->vm);
    struct vm *vm = index >= 0 ? &core->vms[index] : NULL;

    for (unsigned n = 0; vm && n < MST_MIRRORS_MAX; n++) {
        struct mirror *m = &vm->mirrors[n];

        if (m->order != order->token)
            continue;
        m->order = 0;
        if (answer->err != 0)
            core_log(core, MST_LOG_WARNING, "node=%s vm=%s epoch=%" PRIu64 " mirror on %s: order refused: %s %s",
                     core->nodes[order->node].conf.name, vm->d.name, order->epoch, node_name(core, m->node_id),
                     mst_errname(answer->err), answer->text);
        if (m->state == MIRROR_ASKED)
            asked_answered(core, vm, m, order, answer);
        else
            source_answered(core, vm, m, answer);
        return;
    }
}

/* --- what follows from the state --- */

static void look_for_loss(struct mst_core *core, struct vm *vm, struct mirror *m)
{
    int index = node_find_id(core, m->node_id);
    const struct held *held;
    struct node *node;

    if (m->state < MIRROR_GIVEN || m->state > MIRROR_SURE)
        return;
    if (index < 0) {
        fail(core, vm, m, "its node is not in the configuration");
        return;
    }
    node = &core->nodes[index];
    held = held_find(node, vm->d.name, m->epoch);
    if (m->instance == 0 && node->link != 0 && held && held->s.run_state == MST_RUN_IMAGE && held->s.log_id == m->log_id)
        m->instance = node->instance;
    if (memory_gone(node))
        fail(core, vm, m, "its node is proved dead");
    else if (node->link != 0 && m->instance != 0 && node->instance != m->instance)
        fail(core, vm, m, "its keeper has started anew: the log went with the one before");
}

static void look_for_lag(const struct mst_core *core, struct mirror *m)
{
    if (core->conf.mirror_lag_ms != 0 && m->state == MIRROR_SURE && m->lags_ms == 0 && m->waits_seq != 0 &&
        core->now_ms - m->waits_ms >= core->conf.mirror_lag_ms)
        m->lags_ms = core->now_ms;
}

static void act(struct mst_core *core, struct vm *vm, struct mirror *m, unsigned source)
{
    int peer = node_find_id(core, m->node_id);
    struct mst_order order = {.log_id = m->log_id};

    look_for_loss(core, vm, m);
    look_for_lag(core, m);
    if (m->state == MIRROR_FAILED && !txn_has_mirror(core, vm->d.name, (uint32_t)(m - vm->mirrors)) &&
        (!mirror_row_counts(m) || MST_MUTANT(92)))
        mirror_state_move(core, vm, m, MIRROR_LEAVING, "");
    if (m->order != 0 || core->now_ms < m->retry_ms)
        return;
    switch ((enum mirror_state)m->state) {
    case MIRROR_GIVEN:
        order.type = MST_ORDER_MIRROR_TO;
        order.peer = &core->nodes[peer].conf;
        order.peer_instance = m->instance;
        order.grant = m->grant;
        order_to(core, vm, m, &order, source);
        break;
    case MIRROR_JOINED:
    case MIRROR_COUNTS:
        if (m->state == MIRROR_JOINED && !MST_MUTANT(99))
            break;
        order.type = MST_ORDER_MIRROR_SURE;
        order_to(core, vm, m, &order, source);
        break;
    case MIRROR_LEAVING:
        order.type = MST_ORDER_MIRROR_DROP;
        order_to(core, vm, m, &order, source);
        break;
    default:
        break;
    }
}

static void note_exposed(const struct mst_core *core, struct vm *vm)
{
    bool exposed = vm->d.phase == MST_VM_RUNNING && vm->def.protect == MST_PROTECT_MIRROR;

    for (unsigned n = 0; n < MST_MIRRORS_MAX; n++)
        exposed &= !protects(&vm->mirrors[n]);
    if (!exposed)
        vm->exposed_ms = 0;
    if (!exposed || vm->exposed_ms != 0)
        return;
    vm->exposed_ms = MAX_OF(core->now_ms, 1);
    vm->exposed_before_ms =
        vm->d.exposed_wall_ms != 0 && core->now.wall_ms > vm->d.exposed_wall_ms ? core->now.wall_ms - vm->d.exposed_wall_ms : 0;
}

unsigned mirrors_on(const struct mst_core *core, unsigned index)
{
    unsigned count = 0;

    for (unsigned i = 0; i < core->vms_end; i++) {
        for (unsigned n = 0; core->vms[i].used && n < MST_MIRRORS_MAX; n++)
            count += core->vms[i].mirrors[n].node_id == core->nodes[index].conf.id && protects(&core->vms[i].mirrors[n]) ? 1 : 0;
    }
    return count;
}

void mirrors_effects(struct mst_core *core, int index)
{
    struct vm *vm = &core->vms[index];
    int source = vm->used ? node_find_id(core, vm->d.node_id) : -1;
    struct mirror *free_place = NULL;
    unsigned busy = 0;

    if (!vm->used)
        return;
    for (unsigned n = 0; n < MST_MIRRORS_MAX; n++) {
        struct mirror *m = &vm->mirrors[n];

        if (m->state != MIRROR_IDLE && (vm->d.fenced || m->epoch != vm->d.epoch))
            mirror_state_move(core, vm, m, MIRROR_IDLE, "its source is over");
    }
    note_exposed(core, vm);
    if (!settled(vm) || source < 0 || core->nodes[source].link == 0 || core->nodes[source].instance != vm->d.instance)
        return;
    for (unsigned n = 0; n < MST_MIRRORS_MAX; n++) {
        struct mirror *m = &vm->mirrors[n];

        if (m->state != MIRROR_IDLE)
            act(core, vm, m, (unsigned)source);
        busy += m->state != MIRROR_IDLE ? 1 : 0;
        if (m->state == MIRROR_IDLE && !free_place && !txn_has_mirror(core, vm->d.name, n))
            free_place = m;
    }
    mirrors_retire(core, vm);
    if (vm->def.protect != MST_PROTECT_MIRROR)
        return;
    if (busy < MIRRORS_WANTED && free_place && core->now_ms >= vm->mirror_next_ms)
        mirror_choose(core, vm, free_place, (unsigned)source);
    else if (busy == MIRRORS_WANTED)
        mirror_replace(core, vm, free_place, (unsigned)source);
    note_exposed(core, vm);
}

/* --- looking --- */

static const char *standby_words(const struct mst_core *core, const struct vm *vm, const struct mirror *m)
{
    static const char *const words[MST_SLOT_STANDBYS] = {
        [MST_SLOT_STANDBY_WARM] = "warm",
        [MST_SLOT_STANDBY_STARTING] = "starting",
        [MST_SLOT_STANDBY_OFF] = "cold: standby-memory-mib of its node is for none",
        [MST_SLOT_STANDBY_FULL] = "cold: others take the standby-memory-mib of its node",
        [MST_SLOT_STANDBY_FAILED] = "cold: its QEMU has ended, or cannot be started; tried again",
    };
    int index = node_find_id(core, m->node_id);
    const struct held *held = index >= 0 ? held_find((struct node *)&core->nodes[index], vm->d.name, m->epoch) : NULL;

    return held && held->s.standby < MST_SLOT_STANDBYS ? words[held->s.standby] : NULL;
}

static void mirror_look(const struct mst_core *core, const struct vm *vm, const struct mirror *m, struct mst_mirror_look *ret)
{
    ret->node = node_find_id(core, m->node_id);
    ret->same_rack = racks_of(core, vm->d.node_id, m->node_id) == MST_RACKS_SAME;
    ret->state = m->state == MIRROR_FAILED && m->retired ? "replaced" : states[m->state].name;
    ret->counts = mirror_row_counts(m);
    ret->since_wall_ms = ret->counts ? m->d.since_wall_ms : 0;
    ret->acked_seq = m->acked_seq;
    ret->sent_seq = m->sent_seq;
    ret->behind_ms = m->told_ms != 0 && m->acked_seq != 0 ? m->acked_age_ms + (core->now_ms - m->told_ms) : 0;
    ret->sent_bytes = m->sent_bytes;
    ret->sending_us = m->sending_us;
    ret->acked_after_us = m->acked_after_us;
    ret->text = m->text;
    ret->standby = standby_words(core, vm, m);
}

static void say(const struct mst_core *core, const struct vm *vm, struct mst_vm_look *ret)
{
    const struct mst_mirror_look *first = ret->mirrors_count > 0 ? &ret->mirrors[0] : NULL;
    const char *name = first && first->node >= 0 ? core->nodes[first->node].conf.name : "?";

    for (unsigned i = 0; i < ret->mirrors_count && !ret->exposed; i++) {
        const struct mst_mirror_look *m = &ret->mirrors[i];

        if (!m->counts)
            continue;
        text_set(ret->protection, sizeof(ret->protection),
                 "on %s since %" PRIu64 " s, checkpoint %" PRIu64 " of %" PRIu64 ", %" PRIu64 " ms behind%s%s%s%s%.180s",
                 m->node >= 0 ? core->nodes[m->node].conf.name : "?",
                 core->now.wall_ms > m->since_wall_ms ? (core->now.wall_ms - m->since_wall_ms) / 1000 : 0, m->acked_seq,
                 MAX_OF(m->sent_seq, m->acked_seq), m->behind_ms, m->same_rack ? "; in the VM's own rack (" : "",
                 m->same_rack ? node_rack(&core->nodes[m->node]) : "", m->same_rack ? ")" : "", vm->move_why[0] ? "; " : "",
                 vm->move_why);
        return;
    }
    if (!ret->exposed)
        return;
    text_set(ret->protection, sizeof(ret->protection), "exposed for %" PRIu64 ".%" PRIu64 " s: %s%s%s%s%.180s",
             ret->exposed_ms / 1000, ret->exposed_ms / 100 % 10, first ? name : "", first ? " is " : "",
             first ? first->state : "", first && first->text[0] ? ", " : "",
             first               ? first->text
             : vm->mirror_why[0] ? vm->mirror_why
                                 : "a mirror is looked for");
}

void mirrors_look(const struct mst_core *core, const struct vm *vm, struct mst_vm_look *ret)
{
    for (unsigned n = 0; n < MST_MIRRORS_MAX; n++) {
        if (vm->mirrors[n].state != MIRROR_IDLE)
            mirror_look(core, vm, &vm->mirrors[n], &ret->mirrors[ret->mirrors_count++]);
    }
    ret->exposed = vm->exposed_ms != 0;
    ret->exposed_ms = ret->exposed ? core->now_ms - vm->exposed_ms + vm->exposed_before_ms : 0;
    say(core, vm, ret);
}
