#include "tests/unit/core/world.h"

#include "base/err.h"

#include <errno.h>
#include <inttypes.h>

static struct mst_time time_of(const struct world *w)
{
    struct mst_time t = {.us = w->now_us, .wall_ms = 1700000000000u + w->now_us / 1000};

    return t;
}

static uint64_t ms_of(const struct world *w)
{
    return w->now_us / 1000;
}

static struct world_event *seen(struct world *w, const char *what)
{
    struct world_event *e;

    ck_assert_uint_lt(w->events_count, sizeof(w->events) / sizeof(w->events[0]));
    e = &w->events[w->events_count++];
    memset(e, 0, sizeof(*e));
    e->what = what;
    e->at_ms = ms_of(w);
    return e;
}

/* --- store --- */

static bool same_key(const struct mst_row *a, const struct mst_row *b)
{
    if (a->kind != b->kind)
        return false;
    switch (a->kind) {
    case MST_ROW_META:
        return true;
    case MST_ROW_NODE:
        return a->node.id == b->node.id;
    case MST_ROW_DEFINITION:
        return strcmp(a->definition->name, b->definition->name) == 0;
    case MST_ROW_VM:
        return strcmp(a->vm.name, b->vm.name) == 0;
    case MST_ROW_FAULT:
        return a->fault.id == b->fault.id;
    case MST_ROW_RECOVERY:
        return a->recovery.id == b->recovery.id;
    case MST_ROW_STEP:
        return a->step.recovery_id == b->step.recovery_id && a->step.n == b->step.n;
    case MST_ROW_RVM:
        return a->rvm.recovery_id == b->rvm.recovery_id && strcmp(a->rvm.vm, b->rvm.vm) == 0;
    case MST_ROW_PROOF:
        return a->proof.id == b->proof.id;
    case MST_ROW_MIRROR:
        return a->mirror.n == b->mirror.n && strcmp(a->mirror.vm, b->mirror.vm) == 0;
    default:
        return false;
    }
}

static void row_delete(struct world *w, const char *vm)
{
    unsigned kept = 0;

    for (unsigned i = 0; i < w->rows_count; i++) {
        bool gone = (w->rows[i].kind == MST_ROW_VM && strcmp(w->rows[i].vm.name, vm) == 0) ||
                    (w->rows[i].kind == MST_ROW_DEFINITION && strcmp(w->rows[i].definition->name, vm) == 0) ||
                    (w->rows[i].kind == MST_ROW_MIRROR && strcmp(w->rows[i].mirror.vm, vm) == 0);

        if (!gone)
            w->rows[kept++] = w->rows[i];
    }
    w->rows_count = kept;
}

static void row_put(struct world *w, const struct mst_row *row)
{
    struct mst_row copy = *row;

    if (row->kind == MST_ROW_VM_DELETE) {
        row_delete(w, row->vm_delete);
        return;
    }
    if (row->kind == MST_ROW_DEFINITION) {
        ck_assert_uint_lt(w->definitions_count, WORLD_VMS_MAX);
        w->definitions[w->definitions_count] = *row->definition;
        copy.definition = &w->definitions[w->definitions_count++];
    }
    for (unsigned i = 0; i < w->rows_count; i++) {
        if (!same_key(&w->rows[i], &copy))
            continue;
        if (copy.kind == MST_ROW_VM)
            ck_assert_uint_ge(copy.vm.epoch, w->rows[i].vm.epoch); /* I8 */
        w->rows[i] = copy;
        return;
    }
    if (w->rows_count == w->rows_room) {
        w->rows_room = w->rows_room ? 2 * w->rows_room : 256;
        w->rows = realloc(w->rows, w->rows_room * sizeof(*w->rows));
    }
    w->rows[w->rows_count++] = copy;
}

static const struct mst_vm_row *stored_vm(const struct world *w, const char *name)
{
    for (unsigned i = 0; i < w->rows_count; i++) {
        if (name && w->rows[i].kind == MST_ROW_VM && strcmp(w->rows[i].vm.name, name) == 0)
            return &w->rows[i].vm;
    }
    return NULL;
}

static void io_commit(void *impl, const struct mst_txn *txn)
{
    struct world *w = impl;

    ck_assert_ptr_null(w->pending); /* one at a time */
    ck_assert_uint_gt(txn->count, 0);
    w->pending = txn;
}

/* --- actions --- */

static uint64_t durable_decision(const struct world *w)
{
    for (unsigned i = 0; i < w->rows_count; i++) {
        if (w->rows[i].kind == MST_ROW_META)
            return w->rows[i].meta.decision;
    }
    return 0;
}

static int io_order(void *impl, const struct mst_order *order)
{
    struct world *w = impl;
    struct world_event *e = seen(w, "order");

    ck_assert_uint_eq(order->decision, mst_core_decision(w->core));
    ck_assert_uint_eq(order->decision, durable_decision(w)); /* nobody hears of what may still be lost */
    e->type = order->type;
    e->node = order->node;
    e->epoch = order->epoch;
    e->has_source = order->source.node_id != 0;
    e->source_epoch = order->source.epoch;
    e->source_seq = order->source.seq;
    e->source_node = order->source.node_id;
    e->image = order->source.image;
    world_mirror_order(w, order);
    if (order->type == MST_ORDER_FENCE) {
        ck_assert_uint_gt(order->fence_count, 0);
        snprintf(e->vm, sizeof(e->vm), "%s", order->fence[0].vm);
        e->epoch = order->fence[0].epoch;
    } else if (order->vm) {
        snprintf(e->vm, sizeof(e->vm), "%s", order->vm);
    }
    if (order->type == MST_ORDER_START) {
        const struct mst_vm_row *row = stored_vm(w, order->vm);

        ck_assert_ptr_nonnull(row);
        ck_assert_uint_eq(row->epoch, order->epoch); /* I3: the grant is durable */
        ck_assert_uint_eq(row->node_id, order->node + 1);
        ck_assert(!row->fenced);
    }
    for (unsigned i = 0; i < 256; i++) {
        if (w->mail[i].used)
            continue;
        w->mail[i].used = true;
        w->mail[i].o = *order;
        snprintf(w->mail[i].vm, sizeof(w->mail[i].vm), "%s", order->vm ? order->vm : "");
        if (order->definition)
            w->mail[i].def = *order->definition;
        return 0;
    }
    ck_abort_msg("too many orders under way");
    return -ENOBUFS;
}

static void io_fence(void *impl, unsigned node, uint64_t token, bool look)
{
    struct world *w = impl;

    seen(w, look ? "look" : "fence")->node = node;
    w->fence_asked += look ? 0 : 1;
    w->looks_asked += look ? 1 : 0;
    w->fences[node].look = look;
    w->fences[node].was_on = w->nodes[node].powered;
    ck_assert(!w->fences[node].running);
    w->fences[node].running = true;
    w->fences[node].token = token;
    w->fences[node].done_ms = ms_of(w) + w->fence_takes_ms;
}

static void io_fence_cancel(void *impl, unsigned node, uint64_t token)
{
    struct world *w = impl;

    if (w->fences[node].token == token)
        w->fences[node].running = false;
}

static void io_read_slots(void *impl, unsigned node)
{
    struct world *w = impl;

    ck_assert(!w->reads[node]); /* one at a time */
    w->reads[node] = true;
}

static int io_lease(void *impl, unsigned node, const struct mst_lease_grant *grant)
{
    struct world *w = impl;
    struct world_node *n = &w->nodes[node];

    n->leases_asked++;
    n->lease_asked_ms = ms_of(w);
    if (!n->up || n->cut || !n->powered || n->reads_fail || grant->instance != n->hello.instance)
        return -ENOTCONN;
    ck_assert_uint_le(grant->beat, n->beat); /* a counter that it has shown */
    n->lease = *grant;
    n->lease_ms = ms_of(w);
    n->lease_wanted = false;
    return 0;
}

static void io_manage(void *impl, unsigned node, const struct mst_lease_grant *lease)
{
    struct world *w = impl;
    struct world_node *n = &w->nodes[node];

    ck_assert(!n->question.used); /* one at a time */
    n->questions++;
    n->question.used = true;
    n->question.ms = ms_of(w);
    n->question.renews = lease != NULL;
    if (lease)
        n->question.lease = *lease;
}

static void io_close_link(void *impl, uint64_t link)
{
    struct world *w = impl;

    for (unsigned i = 0; i < w->nodes_count; i++) {
        if (w->nodes[i].link == link)
            w->nodes[i].link = 0;
    }
}

static void io_peers(void *impl)
{
    (void)impl;
}

static void io_reply(void *impl, uint64_t token, int err, const char *text)
{
    struct world *w = impl;

    ck_assert_uint_ne(token, 0);
    for (unsigned i = 0; i < w->replies_count; i++)
        ck_assert_uint_ne(w->replies[i].token, token); /* exactly once */
    ck_assert_uint_lt(w->replies_count, 512);
    w->replies[w->replies_count].token = token;
    w->replies[w->replies_count].err = err;
    snprintf(w->replies[w->replies_count++].text, sizeof(w->replies[0].text), "%s", text);
}

static void io_vm_moved(void *impl, const char *vm, int node, uint64_t epoch)
{
    (void)impl, (void)vm, (void)node, (void)epoch;
}

static void io_log(void *impl, enum mst_log_level level, const char *text)
{
    struct world *w = impl;

    (void)level;
    snprintf(w->last_log, sizeof(w->last_log), "%s", text);
    if (w->verbose || getenv("WORLD_VERBOSE"))
        fprintf(stderr, "%8" PRIu64 " %s\n", ms_of(w), text);
}

static uint64_t stored_term(const struct world *w)
{
    for (unsigned i = 0; i < w->rows_count; i++) {
        if (w->rows[i].kind == MST_ROW_META)
            return w->rows[i].meta.term;
    }
    return 0;
}

/* The timeline has to tell the story right: a start after its grant, a grant after the fence of the one before, epochs that grow. */
static void io_event(void *impl, const struct mst_event *event)
{
    struct world *w = impl;
    struct world_told *told = NULL;

    w->told_events++;
    ck_assert_uint_le(event->term, stored_term(w)); /* no term before it is durable */
    for (unsigned i = 0; event->vm && i < WORLD_VMS_MAX && !told; i++) {
        if (!w->told[i].vm[0])
            snprintf(w->told[i].vm, sizeof(w->told[i].vm), "%s", event->vm);
        if (strcmp(w->told[i].vm, event->vm) == 0)
            told = &w->told[i];
    }
    w->mirrors_joined += event->kind == MST_EV_MIRROR_JOINED ? 1 : 0;
    w->mirrors_refused += event->kind == MST_EV_MIRROR_REFUSED ? 1 : 0;
    w->mirrors_moved += event->kind == MST_EV_MIRROR_MOVES ? 1 : 0;
    if (event->kind == MST_EV_MIRROR_MOVES)
        snprintf(w->move_event, sizeof(w->move_event), "%s %s", event->node, event->text);
    if (strncmp(mst_event_name(event->kind), "mirror.", 7) == 0)
        snprintf(w->mirror_event, sizeof(w->mirror_event), "%s %s %s", mst_event_name(event->kind),
                 event->node ? event->node : "-", event->text ? event->text : "");
    w->mirrors_left += event->kind == MST_EV_MIRROR_LEFT ? 1 : 0;
    w->mirrors_used += event->kind == MST_EV_MIRROR_USED ? 1 : 0;
    if (!told)
        return; /* of no VM */
    switch (event->kind) {
    case MST_EV_GRANT_GIVEN:
        ck_assert_uint_gt(event->epoch, told->epoch);
        ck_assert(told->epoch == 0 || told->fenced);
        ck_assert(told->wanted);
        told->epoch = event->epoch;
        told->fenced = false;
        w->told_grants++;
        break;
    case MST_EV_GRANT_ADOPTED:
    case MST_EV_GRANT_LOADED:
        ck_assert(event->kind == MST_EV_GRANT_LOADED || event->epoch > told->epoch); /* loaded: perhaps from an old copy */
        told->epoch = event->epoch;
        told->fenced = event->kind == MST_EV_GRANT_LOADED && strcmp(event->what, "fenced") == 0;
        break;
    case MST_EV_GRANT_FENCED:
        ck_assert_uint_eq(event->epoch, told->epoch);
        ck_assert_uint_ne(event->proof, 0);
        told->fenced = true;
        break;
    case MST_EV_VM_WANTED:
        told->wanted = strcmp(event->what, "yes") == 0;
        break;
    case MST_EV_ORDER_SENT:
        if (strcmp(event->what, "start") != 0)
            break;
        ck_assert_uint_eq(event->epoch, told->epoch);
        ck_assert(!told->fenced && told->wanted);
        break;
    default:
        break;
    }
}

static struct mst_core_io io_of(struct world *w)
{
    struct mst_core_io io = {.impl = w,
                             .commit = io_commit,
                             .order = io_order,
                             .fence = io_fence,
                             .fence_cancel = io_fence_cancel,
                             .read_slots = io_read_slots,
                             .lease = io_lease,
                             .manage = io_manage,
                             .close_link = io_close_link,
                             .peers = io_peers,
                             .reply = io_reply,
                             .vm_moved = io_vm_moved,
                             .log = io_log,
                             .event = io_event};

    return io;
}

/* --- nodes --- */

struct mst_slot *world_slot(struct world_node *n, const char *vm, uint64_t epoch)
{
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++) {
        if (n->slots[i].used && n->slots[i].s.epoch == epoch && strcmp(n->slots[i].s.vm, vm) == 0)
            return &n->slots[i].s;
    }
    return NULL;
}

struct mst_slot *world_slot_new(struct world_node *n, const char *vm, uint64_t epoch)
{
    char name[MST_NAME_BYTES]; /* vm may lie in the slot that is cleared */

    snprintf(name, sizeof(name), "%s", vm);
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++) {
        if (n->slots[i].used)
            continue;
        memset(&n->slots[i], 0, sizeof(n->slots[i]));
        n->slots[i].used = true;
        snprintf(n->slots[i].s.vm, MST_NAME_BYTES, "%s", name);
        n->slots[i].s.epoch = epoch;
        n->generation++;
        return &n->slots[i].s;
    }
    return NULL;
}

static void check_single(struct world *w)
{
    for (unsigned a = 0; a < w->nodes_count; a++) {
        for (unsigned i = 0; i < MST_VMS_PER_NODE; i++) {
            const struct world_vm *va = &w->nodes[a].slots[i];

            if (!va->used || va->s.run_state != MST_RUN_RUNNING || !w->nodes[a].powered)
                continue;
            for (unsigned b = 0; b < w->nodes_count; b++) {
                for (unsigned k = 0; k < MST_VMS_PER_NODE; k++) {
                    const struct world_vm *vb = &w->nodes[b].slots[k];

                    if ((a == b && i == k) || !vb->used || vb->s.run_state != MST_RUN_RUNNING || !w->nodes[b].powered)
                        continue;
                    if (strcmp(va->s.vm, vb->s.vm) == 0)
                        w->two_at_once++;
                }
            }
        }
    }
    ck_assert_uint_eq(w->two_at_once, 0); /* I1 */
}

static void obey_start(struct world *w, struct world_node *n, unsigned i, struct mst_answer *a)
{
    const struct mst_order *o = &w->mail[i].o;
    struct mst_slot *slot = world_slot(n, w->mail[i].vm, o->epoch);

    snprintf(a->text, sizeof(a->text), "%s", n->start_text);
    if (n->start_err != 0) {
        a->err = n->start_err;
        return;
    }
    if (o->source.node_id != 0) {
        struct world_node *src = &w->nodes[o->source.node_id - 1];
        struct mst_slot *from = world_slot(src, w->mail[i].vm, o->source.epoch);

        if (!src->powered || !src->up || src->cut || !from || from->save_seq < o->source.seq ||
            (o->source.image && !world_image_pulled(w, src, from, &o->source)) || src->hello.instance != o->source.instance) {
            a->err = -EHOSTUNREACH;
            snprintf(a->text, sizeof(a->text), "save cannot be pulled");
            return;
        }
        a->start.method = 3;
        a->start.save_epoch = o->source.epoch;
        a->start.save_seq = from->save_seq;
    }
    if (slot && (slot->run_state == MST_RUN_DEAD || slot->run_state == MST_RUN_FENCED)) {
        a->err = -ESTALE;
        return;
    }
    if (!slot)
        slot = world_slot_new(n, w->mail[i].vm, o->epoch);
    slot->run_state = MST_RUN_RUNNING;
    check_single(w);
}

static void obey_fence(struct world_node *n, const struct mst_order *o, struct mst_answer *a)
{
    a->has_fence = true;
    a->fence_instance = n->fence_wrong_instance ? n->hello.instance + 7 : n->hello.instance;
    for (unsigned k = 0; k < o->fence_count; k++) {
        struct mst_slot *slot = world_slot(n, o->fence[k].vm, o->fence[k].epoch);

        if (slot)
            slot->run_state = MST_RUN_FENCED;
        a->fenced[a->fenced_count++] = o->fence[k];
    }
    n->generation++;
}

static void obey(struct world *w, unsigned i)
{
    struct mst_order *o = &w->mail[i].o;
    struct world_node *n = &w->nodes[o->node];
    struct mst_slot *slot = world_slot(n, w->mail[i].vm, o->epoch);
    struct mst_answer a = {0};
    struct mst_time t = time_of(w);

    w->mail[i].used = false;
    if (o->instance != n->hello.instance) {
        a.err = -ESTALE;
    } else {
        switch (o->type) {
        case MST_ORDER_START:
            obey_start(w, n, i, &a);
            break;
        case MST_ORDER_SAVE:
            if (n->save_fails || !slot || n->agent_frozen) {
                a.err = -EIO;
            } else {
                slot->run_state = MST_RUN_PAUSED;
                slot->save_seq++;
                slot->save_epoch = slot->epoch;
                a.save_seq = slot->save_seq;
            }
            break;
        case MST_ORDER_CONTINUE:
            if (slot)
                slot->run_state = MST_RUN_RUNNING;
            check_single(w);
            break;
        case MST_ORDER_FENCE:
            if (n->no_fence_answer)
                return;
            obey_fence(n, o, &a);
            break;
        case MST_ORDER_FORGET:
            for (unsigned k = 0; k < MST_VMS_PER_NODE; k++) {
                if (n->slots[k].used && n->slots[k].s.epoch <= o->epoch && strcmp(n->slots[k].s.vm, w->mail[i].vm) == 0) {
                    ck_assert_uint_ne(n->slots[k].s.run_state, MST_RUN_RUNNING);
                    n->slots[k].used = false;
                }
            }
            break;
        case MST_ORDER_RESTART_AGENT:
            n->agent_restarts_ordered++;
            if (n->agent_restart_helps)
                n->agent_frozen = false;
            break;
        case MST_ORDER_RECORD_FAULT:
            break;
        case MST_ORDER_MIRROR:
        case MST_ORDER_MIRROR_TO:
        case MST_ORDER_MIRROR_SURE:
        case MST_ORDER_MIRROR_DROP:
        case MST_ORDER_MIRROR_REVOKE:
            world_mirror_obey(w, n, o, w->mail[i].vm, &a);
            break;
        }
    }
    if (!w->crashed) /* otherwise nobody is there to hear it */
        mst_core_answer(w->core, &t, o->token, &a);
}

static void join(struct world *w, unsigned index)
{
    struct world_node *n = &w->nodes[index];
    struct mst_time t = time_of(w);
    struct mst_why why;
    uint64_t link = ++w->next_link;

    n->hello.held_count = 0;
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++) {
        struct mst_hello_vm *held = &n->hello.held[n->hello.held_count];

        if (!n->slots[i].used)
            continue;
        memcpy(held->vm, n->slots[i].s.vm, sizeof(held->vm));
        held->epoch = n->slots[i].s.epoch;
        held->run_state = n->slots[i].s.run_state;
        held->save_seq = n->slots[i].s.save_seq;
        world_mirror_hello(n, &n->slots[i].s, held);
        n->hello.held_count++;
    }
    if (mst_core_hello(w->core, &t, link, &n->hello, &why) == 0) {
        n->link = link;
        if (mst_core_term(w->core) > n->hello.highest_term) {
            n->hello.highest_term = mst_core_term(w->core);
            n->hello.highest_term_by = w->conf.coordinator_instance;
        }
        mst_core_tick(w->core, &t);
        mst_core_readable(w->core, &t, index, true);
    } else {
        snprintf(w->last_log, sizeof(w->last_log), "%s", why.text);
    }
}

static void drop_mail(struct world *w, unsigned node)
{
    for (unsigned i = 0; i < 256; i++) {
        if (w->mail[i].used && w->mail[i].o.node == node)
            w->mail[i].used = false;
    }
}

static void link_lost(struct world *w, unsigned index, int err)
{
    struct world_node *n = &w->nodes[index];
    struct mst_time t = time_of(w);
    uint64_t link = n->link;

    n->link = 0;
    drop_mail(w, index);
    if (link == 0)
        return;
    mst_core_readable(w->core, &t, index, false);
    mst_core_link_closed(w->core, &t, link, err, "link lost");
}

/* --- the turn of time --- */

static void finish_commit(struct world *w)
{
    const struct mst_txn *txn = w->pending;
    struct mst_time t = time_of(w);

    if (!txn || w->store_hangs)
        return;
    w->pending = NULL;
    if (w->commit_err != 0) {
        mst_core_committed(w->core, &t, w->commit_err, "disk full");
        return;
    }
    for (uint32_t i = 0; i < txn->count; i++) {
        row_put(w, &txn->rows[i]);
        if (txn->rows[i].kind == MST_ROW_MIRROR)
            world_mirror_row(w, &txn->rows[i].mirror);
    }
    w->commits++;
    if (w->crash_at != 0 && w->commits == w->crash_at) {
        w->crashed = true;
        w->crash_at = 0;
        for (unsigned i = 0; w->crash_delivers && i < 256; i++) {
            if (w->mail[i].used && w->nodes[w->mail[i].o.node].up && !w->nodes[w->mail[i].o.node].frozen)
                obey(w, i);
        }
        world_restart(w); /* durable, and nothing of what follows from it has happened */
        w->crashed = false;
        return;
    }
    mst_core_committed(w->core, &t, 0, "");
}

static void finish_fence(struct world *w, unsigned node)
{
    struct mst_time t = time_of(w);

    if (!w->fences[node].running || ms_of(w) < w->fences[node].done_ms || w->power == POWER_HANGS)
        return;
    w->fences[node].running = false;
    if (w->power == POWER_FAILS || w->fences_left_to_fail > 0) {
        w->fences_left_to_fail -= w->fences_left_to_fail > 0 ? 1 : 0;
        mst_core_fence_done(w->core, &t, w->fences[node].token, -EIO, "device does not answer");
        return;
    }
    if (w->fences[node].look) {
        bool on = w->fences[node].was_on;

        mst_core_fence_done(w->core, &t, w->fences[node].token, on ? -EAGAIN : 0, on ? "the status is on" : "the status is off");
        return;
    }
    w->nodes[node].powered = w->nodes[node].up = false;
    memset(w->nodes[node].slots, 0, sizeof(w->nodes[node].slots));
    memset(w->nodes[node].logs, 0, sizeof(w->nodes[node].logs));
    link_lost(w, node, -ETIMEDOUT);
    mst_core_fence_done(w->core, &t, w->fences[node].token, 0, "fence agent said off, status said off");
}

static void finish_reads(struct world *w)
{
    for (unsigned i = 0; i < w->nodes_count; i++) {
        struct world_node *n = &w->nodes[i];
        struct mst_slot slots[MST_VMS_PER_NODE];
        struct mst_time t = time_of(w);
        struct mst_node_info info = {.known = true};
        unsigned count = 0;

        if (!w->reads[i])
            continue;
        w->reads[i] = false;
        for (unsigned k = 0; k < MST_VMS_PER_NODE; k++) {
            if (n->slots[k].used)
                slots[count++] = n->slots[k].s;
        }
        if (!n->up || n->cut || !n->powered || n->reads_fail)
            mst_core_slots(w->core, &t, i, -EIO, "read failed", NULL, NULL, 0);
        else
            mst_core_slots(w->core, &t, i, 0, NULL, &info, slots, count);
    }
}

static void beat_of(const struct world_node *n, struct mst_beat *ret)
{
    *ret = (struct mst_beat){.instance = n->hello.instance,
                             .agent_up = true,
                             .keeper_beat = n->beat,
                             .agent_beat = n->agent_beat,
                             .generation = n->generation,
                             .lease_wanted = n->lease_wanted,
                             .watchdog_ms = n->watchdog_ms};
    if (n->lease.instance != n->hello.instance || n->lease.lease_ms == 0)
        return;
    ret->lease_renewal = n->lease.renewal;
    ret->lease_strict = n->lease.strict;
}

static void beats(struct world *w)
{
    struct mst_time t = time_of(w);

    for (unsigned i = 0; i < w->nodes_count; i++) {
        struct world_node *n = &w->nodes[i];
        struct mst_beat beat;

        if (!n->up || n->cut || !n->powered || n->reads_fail || n->beats_fail) {
            mst_core_beat_failed(w->core, &t, i, w->now_us);
            continue;
        }
        if (!n->frozen)
            n->beat++;
        if (!n->frozen && !n->agent_frozen)
            n->agent_beat++;
        beat_of(n, &beat);
        beat.read_us = w->now_us;
        mst_core_beat(w->core, &t, i, &beat);
    }
}

static void answer_question(struct world *w, unsigned index)
{
    struct world_node *n = &w->nodes[index];
    struct mst_managed answer = {.instance = n->manage_instance ? n->manage_instance : n->hello.instance,
                                 .vms_running = 1,
                                 .highest_term = n->hello.highest_term,
                                 .highest_term_by = n->hello.highest_term_by,
                                 .highest_decision = n->hello.highest_decision};
    struct mst_time t = time_of(w);

    if (!n->question.used || n->manage_mute)
        return;
    if (!n->up || !n->powered || n->manage_cut || n->frozen) {
        if (ms_of(w) - n->question.ms < MST_MANAGE_ASK_MS)
            return;
        n->question.used = false;
        mst_core_managed(w->core, &t, index, -ETIMEDOUT, "no answer in time", NULL);
        return;
    }
    n->question.used = false;
    if (n->question.renews && n->question.lease.instance == n->hello.instance && !n->manage_instance) {
        ck_assert_uint_le(n->question.lease.beat, n->beat);
        n->lease = n->question.lease;
        n->lease_ms = n->question.ms;
        n->leases_managed++;
    }
    n->beat++;
    memcpy(answer.boot_id, n->hello.host_boot_id, sizeof(answer.boot_id));
    answer.boot_id[1] = n->manage_boot;
    beat_of(n, &answer.beat);
    mst_core_managed(w->core, &t, index, 0, "", &answer);
}

/* The very last moment: the keeper hung right after it had looked, and touched the watchdog once more when it was all but over. */
static void watchdogs(struct world *w)
{
    for (unsigned i = 0; i < w->nodes_count; i++) {
        struct world_node *n = &w->nodes[i];

        if (!n->powered || n->watchdog_ms == 0 || !n->lease.strict || n->lease.instance != n->hello.instance ||
            ms_of(w) < n->lease_ms + n->lease.lease_ms + 2 * (uint64_t)n->watchdog_ms)
            continue;
        n->powered = n->up = false;
        memset(n->slots, 0, sizeof(n->slots));
    }
}

static void turn(struct world *w)
{
    struct mst_time t;

    w->now_us += UINT64_C(1000) * WORLD_STEP_MS;
    finish_commit(w);
    for (unsigned i = 0; i < 256; i++) {
        struct world_node *n = &w->nodes[w->mail[i].o.node];

        if (w->mail[i].used && n->up && !n->frozen && !n->cut && !n->orders_wait && n->link != 0)
            obey(w, i);
    }
    for (unsigned i = 0; i < w->nodes_count; i++)
        finish_fence(w, i);
    finish_reads(w);
    for (unsigned i = 0; i < w->nodes_count; i++)
        answer_question(w, i);
    watchdogs(w);
    if (w->now_us / 1000 % 50 == 0)
        beats(w);
    for (unsigned i = 0; i < w->nodes_count; i++) {
        if (w->nodes[i].up && w->nodes[i].link == 0 && !w->nodes[i].cut && !w->nodes[i].frozen && w->now_us / 1000 % 500 == 0)
            join(w, i);
    }
    world_mirrors_turn(w);
    t = time_of(w);
    mst_core_tick(w->core, &t);
    check_single(w);
}

void world_run(struct world *w, uint32_t ms)
{
    for (uint32_t i = 0; i < ms / WORLD_STEP_MS; i++)
        turn(w);
}

bool world_until(struct world *w, uint32_t ms, bool (*cond)(struct world *w, const void *arg), const void *arg)
{
    for (uint32_t i = 0; i < ms / WORLD_STEP_MS; i++) {
        if (cond(w, arg))
            return true;
        turn(w);
    }
    return cond(w, arg);
}

void world_restart(struct world *w)
{
    struct mst_core_io io = io_of(w);
    struct mst_time t;
    static const enum mst_row_kind order[] = {MST_ROW_META,     MST_ROW_NODE, MST_ROW_DEFINITION, MST_ROW_VM,    MST_ROW_FAULT,
                                              MST_ROW_RECOVERY, MST_ROW_STEP, MST_ROW_RVM,        MST_ROW_PROOF, MST_ROW_MIRROR};

    mst_core_free(w->core);
    w->pending = NULL;
    memset(w->fences, 0, sizeof(w->fences));
    memset(w->reads, 0, sizeof(w->reads));
    memset(w->mail, 0, sizeof(w->mail));
    for (unsigned i = 0; i < w->nodes_count; i++) {
        w->nodes[i].link = 0;
        w->nodes[i].question.used = false;
    }
    w->now_us += 200000;
    w->conf.coordinator_instance++;
    ck_assert_int_eq(mst_core_new(&w->conf, &io, &w->core), 0);
    for (unsigned k = 0; k < sizeof(order) / sizeof(order[0]); k++) {
        for (unsigned i = 0; i < w->rows_count; i++) {
            if (w->rows[i].kind == order[k])
                ck_assert_int_eq(mst_core_load(w->core, &w->rows[i], NULL), 0);
        }
    }
    t = time_of(w);
    mst_core_start(w->core, &t);
}

struct world *world_new(unsigned nodes)
{
    struct world *w = calloc(1, sizeof(*w));

    w->nodes_count = nodes;
    w->now_us = 1000000;
    w->fence_takes_ms = 200;
    w->conf = (struct mst_core_conf){.coordinator_id = 1,
                                     .cluster = "lab",
                                     .watch_interval_ms = 50,
                                     .agent_silent_ms = 3000,
                                     .keeper_silent_ms = 3000,
                                     .keeper_return_ms = 3000,
                                     .fences_max = 2,
                                     .starts_max = 8,
                                     .mass_loss_percent = 50,
                                     .node_starts_max = 4,
                                     .node_starts_window_ms = 120000,
                                     .nodes_count = nodes};
    for (unsigned i = 0; i < nodes; i++) {
        struct mst_member *m = &w->conf.nodes[i];
        struct mst_hello *h = &w->nodes[i].hello;

        snprintf(m->name, sizeof(m->name), "n%u", i + 1);
        snprintf(m->address, sizeof(m->address), "10.7.0.%u", i + 1);
        m->id = i + 1;
        m->port = 7471;
        m->has_fence = true;
        snprintf(h->cluster, sizeof(h->cluster), "lab");
        memcpy(h->node, m->name, sizeof(h->node));
        memcpy(h->address, m->address, sizeof(h->address));
        h->node_id = m->id;
        h->port = m->port;
        h->instance = UINT64_C(0x100) * (i + 1);
        h->host_boot_id[0] = (uint8_t)(i + 1);
        h->memory_mib = 768;
        h->vcpus = 8;
        h->earlier_vms_dead = true;
        w->nodes[i].up = w->nodes[i].powered = true;
        w->nodes[i].agent_restart_helps = true;
    }
    world_restart(w);
    world_run(w, 1500);
    ck_assert(mst_core_ready(w->core));
    return w;
}

void world_free(struct world *w)
{
    mst_core_free(w->core);
    free(w->rows);
    free(w);
}

/* --- the operator --- */

struct mst_definition world_def(const char *name, uint32_t mib, bool protect)
{
    struct mst_definition def = {.memory_mib = mib,
                                 .vcpus = 1,
                                 .priority = 10,
                                 .protect = protect ? MST_PROTECT_LOCAL : MST_PROTECT_NONE,
                                 .packed_bytes = 64,
                                 .restarts_max = 5,
                                 .restarts_window_s = 300};

    snprintf(def.name, sizeof(def.name), "%s", name);
    snprintf((char *)def.packed, 64, "%s %u %d", name, mib, protect);
    return def;
}

struct mst_definition world_mirror_def(const char *name, uint32_t mib)
{
    struct mst_definition def = world_def(name, mib, true);

    def.protect = MST_PROTECT_MIRROR;
    return def;
}

uint64_t world_ask(struct world *w, enum mst_request_type type, const char *name, const char *node)
{
    struct mst_request request = {.type = type};
    struct mst_time t = time_of(w);
    uint64_t token = ++w->next_token;

    snprintf(request.name, sizeof(request.name), "%s", name);
    snprintf(request.node, sizeof(request.node), "%s", node ? node : "");
    ck_assert_int_eq(mst_core_request(w->core, &t, token, &request), 0);
    return token;
}

bool world_replied(struct world *w, uint64_t token, int *ret_err)
{
    for (unsigned i = 0; i < w->replies_count; i++) {
        if (w->replies[i].token != token)
            continue;
        *ret_err = w->replies[i].err;
        return true;
    }
    return false;
}

const char *world_reply_text(struct world *w)
{
    return w->replies_count ? w->replies[w->replies_count - 1].text : "";
}

int world_request(struct world *w, enum mst_request_type type, const char *name, const char *node)
{
    uint64_t token = world_ask(w, type, name, node);
    int err = -ETIME;

    for (int i = 0; i < 9000 && !world_replied(w, token, &err); i++)
        turn(w);
    return err;
}

void world_define(struct world *w, const struct mst_definition *def)
{
    struct mst_request request = {.type = MST_REQ_DEFINE, .definition = def};
    struct mst_time t = time_of(w);
    uint64_t token = ++w->next_token;
    int err = -ETIME;

    snprintf(request.name, sizeof(request.name), "%s", def->name);
    ck_assert_int_eq(mst_core_request(w->core, &t, token, &request), 0);
    for (int i = 0; i < 100 && !world_replied(w, token, &err); i++)
        turn(w);
    ck_assert_int_eq(err, 0);
}

void world_start_vm(struct world *w, const char *vm, const char *node)
{
    ck_assert_msg(world_request(w, MST_REQ_START, vm, node) == 0, "%s: %s", vm, world_reply_text(w));
    ck_assert_int_ge(world_where(w, vm), 0);
}

/* --- faults --- */

void world_node_kill(struct world *w, unsigned node)
{
    struct world_node *n = &w->nodes[node];

    n->up = false;
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++) {
        if (n->slots[i].used && n->slots[i].s.run_state != MST_RUN_FENCED && n->slots[i].s.run_state != MST_RUN_IMAGE)
            n->slots[i].s.run_state = MST_RUN_DEAD;
    }
    world_mirrors_keeper_died(n);
    link_lost(w, node, -ECONNRESET);
}

void world_node_return(struct world *w, unsigned node, bool earlier_dead)
{
    struct world_node *n = &w->nodes[node];

    n->up = n->powered = true;
    n->frozen = n->agent_frozen = false;
    n->hello.instance++;
    n->hello.highest_term = n->hello.highest_term_by = n->hello.highest_decision = 0;
    n->hello.earlier_vms_dead = earlier_dead;
    n->beat = n->agent_beat = 0;
    join(w, node);
}

void world_node_power_on(struct world *w, unsigned node)
{
    w->nodes[node].hello.host_boot_id[1]++;
    memset(w->nodes[node].slots, 0, sizeof(w->nodes[node].slots));
    memset(w->nodes[node].logs, 0, sizeof(w->nodes[node].logs));
    world_node_return(w, node, true);
}

void world_cut(struct world *w, unsigned node, bool cut)
{
    w->nodes[node].cut = cut;
    if (cut)
        link_lost(w, node, -ETIMEDOUT);
}

void world_vm_die(struct world *w, unsigned node, const char *vm)
{
    struct world_node *n = &w->nodes[node];

    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++) {
        if (n->slots[i].used && strcmp(n->slots[i].s.vm, vm) == 0 && n->slots[i].s.run_state == MST_RUN_RUNNING)
            n->slots[i].s.run_state = MST_RUN_DEAD;
    }
    n->generation++;
}

void world_report(struct world *w, uint32_t kind, unsigned node, const char *vm)
{
    struct mst_report report = {.kind = kind, .instance = w->nodes[node].hello.instance};
    struct mst_time t = time_of(w);

    memcpy(report.node, w->nodes[node].hello.node, sizeof(report.node));
    if (vm) {
        snprintf(report.vm, sizeof(report.vm), "%s", vm);
        report.epoch = world_epoch(w, vm);
    }
    snprintf(report.reporter, sizeof(report.reporter), "keeper");
    mst_core_report(w->core, &t, w->nodes[node].link, 0, &report);
}

void world_checkpoint(struct world *w, const char *vm, uint64_t seq)
{
    int node = world_where(w, vm);
    struct mst_slot *slot;

    ck_assert_int_ge(node, 0);
    slot = world_slot(&w->nodes[node], vm, world_epoch(w, vm));
    ck_assert_ptr_nonnull(slot);
    slot->save_seq = seq;
    slot->save_epoch = slot->epoch;
}

/* --- looking --- */

int world_where(const struct world *w, const char *vm)
{
    for (unsigned a = 0; a < w->nodes_count; a++) {
        for (unsigned i = 0; i < MST_VMS_PER_NODE; i++) {
            const struct world_vm *v = &w->nodes[a].slots[i];

            if (v->used && w->nodes[a].powered && v->s.run_state == MST_RUN_RUNNING && strcmp(v->s.vm, vm) == 0)
                return (int)a;
        }
    }
    return -1;
}

enum mst_vm_phase world_phase(const struct world *w, const char *vm)
{
    struct mst_vm_look look;

    ck_assert(mst_core_vm_by_name(w->core, vm, &look));
    return (enum mst_vm_phase)look.row->phase;
}

uint64_t world_epoch(const struct world *w, const char *vm)
{
    struct mst_vm_look look;

    return mst_core_vm_by_name(w->core, vm, &look) ? look.row->epoch : 0;
}

unsigned world_orders(const struct world *w, enum mst_order_type type, const char *vm)
{
    unsigned count = 0;

    for (unsigned i = 0; i < w->events_count; i++)
        count += w->events[i].type == type && (!vm || strcmp(w->events[i].vm, vm) == 0) ? 1 : 0;
    return count;
}

const struct world_event *world_last(const struct world *w, enum mst_order_type type, const char *vm)
{
    for (unsigned i = w->events_count; i > 0; i--) {
        if (w->events[i - 1].type == type && (!vm || strcmp(w->events[i - 1].vm, vm) == 0))
            return &w->events[i - 1];
    }
    return NULL;
}

unsigned world_recoveries(const struct world *w)
{
    struct mst_recovery_look look;
    unsigned i = 0;

    while (mst_core_recovery(w->core, i, &look))
        i++;
    return i;
}

const struct mst_recovery_row *world_recovery(const struct world *w)
{
    struct mst_recovery_look look;

    return mst_core_recovery(w->core, 0, &look) ? look.row : NULL;
}

const struct mst_rvm_row *world_rvm(const struct world *w, const char *vm)
{
    struct mst_recovery_look look;

    for (unsigned r = 0; mst_core_recovery(w->core, r, &look); r++) {
        for (unsigned i = 0; i < look.vms_count; i++) {
            const struct mst_rvm_row *row = mst_core_recovery_vm(w->core, look.key, i);

            if (strcmp(row->vm, vm) == 0)
                return row;
        }
    }
    return NULL;
}

bool runs_somewhere(struct world *w, const void *vm)
{
    return world_where(w, vm) >= 0 && world_phase(w, vm) == MST_VM_RUNNING;
}

bool is_held(struct world *w, const void *vm)
{
    return world_phase(w, vm) == MST_VM_HELD;
}

bool recovery_closed(struct world *w, const void *unused)
{
    const struct mst_recovery_row *row = world_recovery(w);

    (void)unused;
    return row && (row->state == MST_REC_DONE || row->state == MST_REC_HELD);
}

bool recovery_is(struct world *w, const void *state)
{
    const struct mst_recovery_row *row = world_recovery(w);

    return row && row->state == *(const enum mst_rec_state *)state;
}
