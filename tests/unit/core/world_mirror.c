#include "tests/unit/core/world.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>

#define SEED_MS 300u

static uint64_t ms_of(const struct world *w)
{
    return w->now_us / 1000;
}

__attribute__((format(printf, 2, 3))) static void breach(struct world *w, const char *fmt, ...)
{
    char text[200];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    if (!w->breach[0])
        snprintf(w->breach, sizeof(w->breach), "%s", text);
    ck_assert_msg(w->breach_is_told, "%s", text);
}

/* --- the store --- */

const struct mst_mirror_row *world_mirror(const struct world *w, const char *vm, unsigned n)
{
    for (unsigned i = 0; i < w->rows_count; i++) {
        const struct mst_mirror_row *row = &w->rows[i].mirror;

        if (w->rows[i].kind == MST_ROW_MIRROR && row->n == n && strcmp(row->vm, vm) == 0)
            return row;
    }
    return NULL;
}

static const struct mst_vm_row *vm_row(const struct world *w, const char *vm)
{
    for (unsigned i = 0; i < w->rows_count; i++) {
        if (w->rows[i].kind == MST_ROW_VM && strcmp(w->rows[i].vm.name, vm) == 0)
            return &w->rows[i].vm;
    }
    return NULL;
}

/* Whether the store says that the image on node counts; with log_id, that this log does. */
static bool stored_counts(const struct world *w, const char *vm, uint64_t epoch, uint32_t node_id, uint64_t log_id)
{
    for (unsigned n = 0; n < MST_MIRRORS_MAX; n++) {
        const struct mst_mirror_row *row = world_mirror(w, vm, n);

        if (row && row->counts && row->epoch == epoch && (node_id == 0 || row->node_id == node_id) &&
            (log_id == 0 || row->log_id == log_id))
            return true;
    }
    return false;
}

static struct world_log *log_of(struct world_node *n, const char *vm, uint64_t epoch, uint64_t log_id)
{
    for (unsigned i = 0; i < 8; i++) {
        if (n->logs[i].vm[0] && strcmp(n->logs[i].vm, vm) == 0 && n->logs[i].epoch == epoch && n->logs[i].log_id == log_id)
            return &n->logs[i];
    }
    return NULL;
}

void world_mirror_row(struct world *w, const struct mst_mirror_row *row)
{
    const struct mst_vm_row *vm = vm_row(w, row->vm);
    struct world_node *source = vm && vm->node_id ? &w->nodes[vm->node_id - 1] : NULL;
    struct mst_slot *slot = source && source->up && source->powered ? world_slot(source, row->vm, row->epoch) : NULL;
    struct world_log *log = slot ? log_of(source, row->vm, row->epoch, row->log_id) : NULL;

    if (row->counts && slot && slot->run_state == MST_RUN_RUNNING && (!log || log->acked_seq == 0))
        breach(w, "%s counts on n%u before its source waits for it", row->vm, row->node_id);
}

/* --- orders, as they are sent --- */

static void check_image(struct world *w, const char *vm, const struct mst_save_ref *from)
{
    struct mst_slot *slot = world_slot(&w->nodes[from->node_id - 1], vm, from->epoch);

    if (!stored_counts(w, vm, from->epoch, from->node_id, 0))
        breach(w, "%s is resumed from the image on n%u, which does not count", vm, from->node_id);
    for (unsigned n = 0; n < MST_MIRRORS_MAX; n++) {
        const struct mst_mirror_row *row = world_mirror(w, vm, n);

        if (row && row->epoch > from->epoch)
            breach(w, "%s is resumed from epoch %" PRIu64 ", somebody counted under %" PRIu64, vm, from->epoch, row->epoch);
    }
    if (slot && slot->image_state != MST_SLOT_IMAGE_VERIFIED && slot->image_state != MST_SLOT_IMAGE_USED)
        breach(w, "%s is resumed from the image on n%u, which was not verified", vm, from->node_id);
}

static struct world_acked *acked_of(struct world *w, const char *vm)
{
    for (unsigned i = 0; i < WORLD_VMS_MAX; i++) {
        if (!w->acked[i].vm[0])
            snprintf(w->acked[i].vm, sizeof(w->acked[i].vm), "%s", vm);
        if (strcmp(w->acked[i].vm, vm) == 0)
            return &w->acked[i];
    }
    ck_abort_msg("too many VMs");
}

/* What a mirror that counts has acknowledged may have been let out: nobody goes back before it. */
static void check_undone(struct world *w, const char *vm, const struct mst_save_ref *from)
{
    const struct world_acked *acked = acked_of(w, vm);

    if (from->epoch < acked->epoch || (from->epoch == acked->epoch && from->seq < acked->seq))
        breach(w, "%s is resumed from epoch %" PRIu64 " seq %" PRIu64 ", epoch %" PRIu64 " seq %" PRIu64 " was acknowledged", vm,
               from->epoch, from->seq, acked->epoch, acked->seq);
}

void world_mirror_order(struct world *w, const struct mst_order *order)
{
    const struct mst_vm_row *vm = order->vm ? vm_row(w, order->vm) : NULL;

    switch (order->type) {
    case MST_ORDER_START:
        if (order->source.image)
            check_image(w, order->vm, &order->source);
        if (order->source.node_id != 0)
            check_undone(w, order->vm, &order->source);
        break;
    case MST_ORDER_MIRROR_SURE:
        if (!stored_counts(w, order->vm, order->epoch, 0, order->log_id))
            breach(w, "the source of %s is told that a mirror counts which does not", order->vm);
        break;
    case MST_ORDER_MIRROR_DROP:
        if (stored_counts(w, order->vm, order->epoch, 0, order->log_id))
            breach(w, "the source of %s is to leave a mirror out that counts", order->vm);
        break;
    case MST_ORDER_MIRROR_REVOKE:
        if (!vm->fenced)
            breach(w, "the log of %s is closed while it may run", order->vm);
        break;
    case MST_ORDER_FORGET:
        if (vm && vm->wanted && !vm->fenced && order->node + 1 != vm->node_id && order->epoch >= vm->epoch &&
            stored_counts(w, order->vm, vm->epoch, order->node + 1, 0))
            breach(w, "the image of %s that counts is forgotten", order->vm);
        break;
    default:
        break;
    }
}

/* --- keepers --- */

static void obey_mirror(struct world *w, struct world_node *n, const struct mst_order *o, const char *vm, struct mst_answer *a)
{
    struct mst_slot *slot = world_slot(n, vm, o->epoch);

    ck_assert_ptr_nonnull(o->peer);
    ck_assert_uint_ne(o->grant.ring_bytes, 0);
    ck_assert_uint_ne(o->peer->id, n->hello.node_id);
    a->err = n->mirror_err != 0 ? n->mirror_err : slot && slot->image_state != MST_SLOT_IMAGE_SEEDING ? -EBUSY : 0;
    if (a->err != 0) {
        snprintf(a->text, sizeof(a->text), "1 MiB left");
        return;
    }
    if (!slot) {
        slot = world_slot_new(n, vm, o->epoch);
        slot->run_state = MST_RUN_IMAGE;
        slot->image_state = MST_SLOT_IMAGE_SEEDING;
        slot->log_id = UINT64_C(0x1000) * n->hello.node_id + ++n->images_made + 0x100000 * w->next_link;
    }
    a->has_grant = true;
    a->grant = (struct mst_mirror_grant){
        .log_id = slot->log_id, .mirror_instance = n->hello.instance, .ring_bytes = o->grant.ring_bytes, .delta_capacity = 16};
}

static void obey_mirror_to(struct world *w, struct world_node *n, const struct mst_order *o, const char *vm, struct mst_answer *a)
{
    struct mst_slot *slot = world_slot(n, vm, o->epoch);

    if (!slot || slot->run_state != MST_RUN_RUNNING) {
        a->err = -ESTALE;
        return;
    }
    if (log_of(n, vm, o->epoch, o->grant.log_id))
        return;
    for (unsigned i = 0; i < 8; i++) {
        struct world_log *log = &n->logs[i];

        if (log->vm[0])
            continue;
        *log = (struct world_log){.epoch = o->epoch,
                                  .log_id = o->grant.log_id,
                                  .begun_ms = ms_of(w),
                                  .node = o->peer->id - 1,
                                  .phase = MST_MIRROR_SEEDING};
        snprintf(log->vm, sizeof(log->vm), "%s", vm);
        return;
    }
    a->err = -ENOSPC;
}

static void obey_revoke(struct world_node *n, const struct mst_order *o, const char *vm, struct mst_answer *a)
{
    struct mst_slot *slot = world_slot(n, vm, o->epoch);

    if (!slot || slot->run_state != MST_RUN_IMAGE) {
        a->err = -ENOENT;
    } else if (n->revoke_err != 0 || slot->save_seq == 0) {
        a->err = n->revoke_err != 0 ? n->revoke_err : -ENODATA;
    } else {
        if (slot->image_state != MST_SLOT_IMAGE_USED)
            slot->image_state = MST_SLOT_IMAGE_VERIFIED;
        a->has_image = true;
        a->image_instance = n->hello.instance;
        a->image_epoch = o->epoch;
        a->image_seq = slot->save_seq;
    }
    n->generation++;
}

void world_mirror_obey(struct world *w, struct world_node *n, const struct mst_order *o, const char *vm, struct mst_answer *a)
{
    struct world_log *log = log_of(n, vm, o->epoch, o->log_id);

    switch (o->type) {
    case MST_ORDER_MIRROR:
        obey_mirror(w, n, o, vm, a);
        break;
    case MST_ORDER_MIRROR_TO:
        obey_mirror_to(w, n, o, vm, a);
        break;
    case MST_ORDER_MIRROR_SURE:
        a->err = !log ? -ENOENT : log->acked_seq == 0 || log->phase == MST_MIRROR_FAILED ? -ESTALE : 0;
        if (a->err == 0)
            log->phase = MST_MIRROR_SURE;
        break;
    case MST_ORDER_MIRROR_DROP:
        if (log)
            log->vm[0] = 0;
        break;
    default:
        obey_revoke(n, o, vm, a);
    }
}

bool world_image_pulled(struct world *w, struct world_node *src, const struct mst_slot *slot, const struct mst_save_ref *from)
{
    struct mst_slot *own = world_slot(src, slot->vm, from->epoch);

    (void)w;
    if (own->run_state != MST_RUN_IMAGE ||
        (own->image_state != MST_SLOT_IMAGE_VERIFIED && own->image_state != MST_SLOT_IMAGE_USED))
        return false;
    own->image_state = MST_SLOT_IMAGE_USED;
    return true;
}

void world_mirror_hello(const struct world_node *n, const struct mst_slot *slot, struct mst_hello_vm *held)
{
    held->image_state = slot->image_state;
    held->log_id = slot->log_id;
    held->mirrors_count = 0;
    for (unsigned i = 0; slot->run_state != MST_RUN_IMAGE && i < 8 && held->mirrors_count < MST_MIRRORS_MAX; i++) {
        const struct world_log *log = &n->logs[i];

        if (log->vm[0] && strcmp(log->vm, slot->vm) == 0 && log->epoch == slot->epoch)
            held->mirrors[held->mirrors_count++] = (struct mst_held_mirror){
                .node_id = log->node + 1, .phase = log->phase, .log_id = log->log_id, .acked_seq = log->acked_seq};
    }
}

/* Images outlive it, revoked; logs do not. */
void world_mirrors_keeper_died(struct world_node *n)
{
    memset(n->logs, 0, sizeof(n->logs));
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++) {
        struct mst_slot *s = &n->slots[i].s;

        if (!n->slots[i].used || s->run_state != MST_RUN_IMAGE)
            continue;
        s->log_id = 0;
        s->image_state = MST_SLOT_IMAGE_REVOKED;
        n->slots[i].used = s->save_seq > 0;
    }
}

/* --- what goes on between source and mirror --- */

static void tell(struct world *w, struct world_node *n, struct world_log *log, const struct mst_slot *source, const char *text)
{
    struct mst_mirror_news news = {.epoch = log->epoch,
                                   .log_id = log->log_id,
                                   .phase = log->phase,
                                   .acked_seq = log->acked_seq,
                                   .sent_seq = source->save_seq,
                                   .acked_age_ms = 100,
                                   .sent_bytes = log->acked_seq * 1000,
                                   .sending_us = log->acked_seq * 10,
                                   .acked_after_us = log->acked_seq ? 1500 : 0};
    struct mst_time t = {.us = w->now_us, .wall_ms = 1700000000000u + w->now_us / 1000};

    log->told_ms = ms_of(w);
    if (n->link == 0)
        return;
    memcpy(news.vm, log->vm, sizeof(news.vm));
    memcpy(news.node, w->nodes[log->node].hello.node, sizeof(news.node));
    snprintf(news.text, sizeof(news.text), "%s", text);
    mst_core_mirror(w->core, &t, n->link, &news);
}

/* The newest that all have for whom their source waits: from joined on, failed ones that count among them. */
static struct world_acked acked_now(const struct world *w, const struct world_node *n, const struct world_log *log)
{
    struct world_acked ret = {.epoch = log->epoch, .seq = log->acked_seq};

    memcpy(ret.vm, log->vm, sizeof(ret.vm));
    for (unsigned i = 0; i < 8; i++) {
        const struct world_log *other = &n->logs[i];

        if (other->vm[0] && strcmp(other->vm, log->vm) == 0 && other->epoch == log->epoch && other->acked_seq < ret.seq &&
            (other->acked_seq > 0 || stored_counts(w, log->vm, log->epoch, 0, other->log_id)))
            ret.seq = other->acked_seq;
    }
    return ret;
}

static bool ack_due(const struct world *w, const struct world_node *to, struct world_log *log, const struct mst_slot *source)
{
    if (source->save_seq <= log->acked_seq || source->save_epoch != log->epoch) {
        log->waits_ms = 0;
        return false;
    }
    if (log->waits_ms == 0)
        log->waits_ms = ms_of(w);
    return ms_of(w) - log->begun_ms >= SEED_MS && (log->acked_seq == 0 || ms_of(w) - log->waits_ms >= to->ack_takes_ms);
}

static void log_turn(struct world *w, struct world_node *n, struct world_log *log)
{
    struct world_node *to = &w->nodes[log->node];
    struct mst_slot *source = world_slot(n, log->vm, log->epoch);
    struct mst_slot *image = world_slot(to, log->vm, log->epoch);
    bool open = to->up && to->powered && !to->cut && image && image->log_id == log->log_id &&
                (image->image_state == MST_SLOT_IMAGE_SEEDING || image->image_state == MST_SLOT_IMAGE_MIRRORING);
    bool said = false;

    if (!source || source->run_state == MST_RUN_FENCED || source->run_state == MST_RUN_DEAD) {
        log->vm[0] = 0;
        return;
    }
    if (log->phase != MST_MIRROR_FAILED && !open) {
        log->phase = MST_MIRROR_FAILED;
        tell(w, n, log, source, "its link has ended");
        return;
    }
    if (log->phase != MST_MIRROR_FAILED && !to->image_stuck && !to->frozen && ack_due(w, to, log, source)) {
        image->image_state = MST_SLOT_IMAGE_MIRRORING;
        image->save_seq = log->acked_seq = source->save_seq;
        image->save_epoch = log->epoch;
        log->waits_ms = 0;
        if (stored_counts(w, log->vm, log->epoch, 0, log->log_id))
            *acked_of(w, log->vm) = acked_now(w, n, log);
        if (log->phase == MST_MIRROR_SEEDING) {
            log->phase = MST_MIRROR_JOINED;
            said = true;
        }
    }
    if (said || ms_of(w) - log->told_ms >= 1000)
        tell(w, n, log, source, log->phase == MST_MIRROR_SEEDING ? "40 %" : "");
}

void world_mirrors_turn(struct world *w)
{
    for (unsigned i = 0; i < w->nodes_count; i++) {
        struct world_node *n = &w->nodes[i];

        for (unsigned k = 0; n->up && n->powered && !n->cut && !n->frozen && k < 8; k++) {
            if (n->logs[k].vm[0])
                log_turn(w, n, &n->logs[k]);
        }
    }
}

bool is_mirrored(struct world *w, const void *vm)
{
    struct mst_vm_look look;

    return mst_core_vm_by_name(w->core, vm, &look) && look.mirrors_count > 0 && look.mirrors[0].counts &&
           strcmp(look.mirrors[0].state, "sure") == 0;
}
