#include "node/keeper/mirrors.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/mutant.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* This node as a source: the mirrors of the VMs that run here. Each has one link, over one log, and one try: what goes wrong after it was begun
 * ends it, and the coordinator orders another one. Who counts is the coordinator's to know and to tell.
 *
 *   SEEDING ----------> JOINED ------------> SURE          any: FAILED, until OrderMirrorDrop
 *           first ack          the store
 */

#define CONNECT_TRIES 6u
#define ANSWER_MS     5000u /* a mirror whose link has opened sends its key, and one that was asked to look answers, within */
#define MOVE_MS       10000u /* so long a checkpoint may wait for ring space without anything being given back, or for leave to send */
#define STOOD_MS      2500u /* this loop, when a second took so long */
#define TELL_MS       10000u /* so often also what has not changed: a coordinator that has just come knows only what a Hello says */

static const char *phase_name(Mainstay__MirrorPhase phase)
{
    static const char *const names[] = {[MAINSTAY__MIRROR_PHASE__MIRROR_SEEDING] = "seeding",
                                        [MAINSTAY__MIRROR_PHASE__MIRROR_JOINED] = "joined",
                                        [MAINSTAY__MIRROR_PHASE__MIRROR_SURE] = "sure",
                                        [MAINSTAY__MIRROR_PHASE__MIRROR_FAILED] = "failed"};

    return names[phase];
}

/* --- what is told --- */

static uint64_t sent_seq(const struct mst_mirror *m)
{
    struct mst_save_record record;

    return mst_mirror_record(m->vm, &record) == 0 ? record.seq : m->put_seq;
}

static void state_tell(struct mst_mirror *m)
{
    Mainstay__MirrorState body = MAINSTAY__MIRROR_STATE__INIT;
    mst_envelope env = MST_ENVELOPE(MIRROR_STATE, mirror_state, &body);
    uint64_t stamp = m->stamps[m->acked % MST_MIRROR_STAMPS], pages = m->grant.ram_bytes / MST_PAGE_BYTES;
    char text[64] = "";

    body.vm = m->vm->name;
    body.epoch = m->vm->epoch;
    body.node = (char *)m->node;
    body.log_id = m->grant.log_id;
    body.phase = m->phase;
    body.acked_seq = m->acked;
    body.sent_seq = sent_seq(m);
    body.has_acked_age_ms = m->acked != 0 && stamp != 0;
    body.acked_age_ms = (mst_now_ns() - stamp) / MST_NS_PER_MS;
    body.has_sent_bytes = body.has_sending_us = 1;
    body.sent_bytes = m->sent_bytes;
    body.sending_us = mst_mirror_sending_ns(m) / 1000;
    body.has_acked_after_us = m->acked_after_ns != 0;
    body.acked_after_us = m->acked_after_ns / 1000;
    if (m->phase == MAINSTAY__MIRROR_PHASE__MIRROR_SEEDING)
        snprintf(text, sizeof(text), "%" PRIu64 " of %" PRIu64 " pages", m->filled, pages);
    body.text = m->phase == MAINSTAY__MIRROR_PHASE__MIRROR_FAILED ? (char *)m->why.text : text;
    m->told.phase = m->phase;
    m->told.acked = m->acked;
    m->told.sent = body.sent_seq;
    m->told.filled = m->filled;
    m->told.ms = mst_now_ms();
    mst_control_tell(m->keeper, &env);
}

static bool is_news(const struct mst_mirror *m, uint64_t now_ms)
{
    return m->told.phase != m->phase || m->told.acked != m->acked || m->told.filled != m->filled || m->told.sent != sent_seq(m) ||
           m->told.ms + TELL_MS <= now_ms;
}

void mst_mirror_phase(struct mst_mirror *m, Mainstay__MirrorPhase phase)
{
    mst_log(phase == MAINSTAY__MIRROR_PHASE__MIRROR_FAILED ? MST_LOG_WARNING : MST_LOG_NOTICE,
            "vm=%s epoch=%" PRIu64 " mirror on %s %s -> %s: checkpoint %" PRIu64 "%s%s", m->vm->name, m->vm->epoch, m->node,
            phase_name(m->phase), phase_name(phase), m->acked, m->why.text[0] ? ", " : "", m->why.text);
    mst_event(&(struct mst_event){.kind = MST_EV_MIRROR_PHASE,
                                  .vm = m->vm->name,
                                  .epoch = m->vm->epoch,
                                  .node = m->node,
                                  .seq = m->acked,
                                  .what = phase_name(phase),
                                  .text = m->why.text[0] ? m->why.text : NULL});
    m->phase = phase;
    state_tell(m);
}

/* Waited for from the first checkpoint that it has; said, so that it may count, when it has all that the output that has left came from. */
void mst_mirror_maybe_join(struct mst_mirror *m)
{
    if (m->acked == 0 || m->phase != MAINSTAY__MIRROR_PHASE__MIRROR_SEEDING)
        return;
    m->waited = true;
    if (mst_output_covered(m->vm, m->acked))
        mst_mirror_phase(m, MAINSTAY__MIRROR_PHASE__MIRROR_JOINED);
}

bool mst_mirrors_safe(const struct mst_vm *vm, uint64_t *ret_seq)
{
    uint64_t acked;
    bool any = false;

    for (const struct mst_mirror *m = vm->keeper->mirrors ? vm->keeper->mirrors->first : NULL; m; m = m->next) {
        if (m->vm != vm || !m->waited || (MST_MUTANT(76) && m->phase == MAINSTAY__MIRROR_PHASE__MIRROR_FAILED))
            continue;
        acked = m->outcounted ? 0 : m->acked;
        if (!any || acked < *ret_seq)
            *ret_seq = acked;
        any = true;
    }
    return any;
}

void mst_mirrors_marked(const struct mst_vm *vm, uint64_t seq)
{
    for (struct mst_mirror *m = vm->keeper->mirrors ? vm->keeper->mirrors->first : NULL; m; m = m->next)
        if (m->vm == vm && m->acked >= seq)
            m->outcounted = true; /* CheckpointPut ends it; whoever takes the VM over may resume from it until it is left out */
}

unsigned mst_mirrors_hello(const struct mst_vm *vm, Mainstay__HeldMirror bodies[MST_MIRRORS_MAX],
                           Mainstay__HeldMirror *list[MST_MIRRORS_MAX])
{
    unsigned n = 0;

    for (const struct mst_mirror *m = vm->keeper->mirrors->first; m && n < MST_MIRRORS_MAX; m = m->next) {
        if (m->vm != vm)
            continue;
        mainstay__held_mirror__init(&bodies[n]);
        bodies[n].node_id = m->node_id;
        bodies[n].log_id = m->grant.log_id;
        bodies[n].phase = m->phase;
        bodies[n].acked_seq = m->acked;
        list[n] = &bodies[n];
        n++;
    }
    return n;
}

/* --- the end --- */

static void freed(uv_handle_t *handle)
{
    free(handle->data);
}

void mst_mirror_unused(struct mst_mirror *m)
{
    struct mst_mirror **at = &m->keeper->mirrors->first;
    uint64_t bytes = mst_mlog_bytes(m->grant.ring_bytes);

    if (m->freeing || m->link || m->registering || m->job != MIRROR_IDLE ||
        (m->vm && m->phase != MAINSTAY__MIRROR_PHASE__MIRROR_FAILED))
        return;
    mst_msend_free(m->send);
    m->send = NULL;
    free(m->from_delta);
    m->from_delta = NULL;
    if (m->twin) {
        munmap(m->twin, bytes);
        m->twin = NULL;
    }
    if (m->budgeted)
        mst_budget_give(&m->keeper->budget, bytes);
    m->budgeted = false;
    if (m->vm)
        return; /* failed: it is told of until it is dropped */
    while (*at != m)
        at = &(*at)->next;
    *at = m->next;
    m->freeing = true;
    uv_close((uv_handle_t *)&m->retry, freed);
}

static void end(struct mst_mirror *m)
{
    struct mst_vm *vm = m->vm;

    uv_timer_stop(&m->retry);
    m->vm = NULL;
    m->pending = m->ready = m->waited = false;
    if (m->link)
        mst_link_close(m->link);
    mst_mirror_put_done(vm);
    mst_output_go(vm);
    mst_mirror_unused(m);
}

void mst_mirror_fail(struct mst_mirror *m, int err, const char *text)
{
    if (!m->vm || m->phase == MAINSTAY__MIRROR_PHASE__MIRROR_FAILED)
        return;
    mst_why_set(&m->why, err, "%s", text[0] ? text : strerror(-err));
    m->pending = m->ready = false;
    if (m->phase == MAINSTAY__MIRROR_PHASE__MIRROR_SEEDING)
        m->waited =
            false; /* nobody was told that it may count. Of one that has joined the store may say so: waited for until it is dropped */
    uv_timer_stop(&m->retry);
    mst_mirror_phase(m, MAINSTAY__MIRROR_PHASE__MIRROR_FAILED);
    if (m->link)
        mst_link_close(m->link);
    mst_mirror_put_done(m->vm);
    mst_output_go(m->vm);
    mst_mirror_unused(m);
}

void mst_mirrors_vm_gone(struct mst_vm *vm)
{
    struct mst_mirror *m, *next;

    mst_output_shut(vm); /* that nobody is waited for any more is no reason to let anything go */
    for (m = vm->keeper->mirrors ? vm->keeper->mirrors->first : NULL; m; m = next) {
        next = m->next;
        if (m->vm == vm)
            end(m);
    }
    if (vm->keeper->mirrors)
        vm->keeper->mirrors->puts[vm->index].open = false;
}

/* --- the link --- */

static int send_env(struct mst_mirror *m, const mst_envelope *env)
{
    struct mst_keeper *k = m->keeper;
    int n = mst_frame_pack(env, k->frame, sizeof(k->frame));

    return n < 0 ? n : mst_link_send(m->link, k->frame, (size_t)n);
}

void mst_mirror_ask(struct mst_mirror *m, bool anyway)
{
    Mainstay__MirrorWritten body = MAINSTAY__MIRROR_WRITTEN__INIT;
    mst_envelope env = MST_ENVELOPE(MIRROR_WRITTEN, mirror_written, &body);

    if (!m->ready || m->asked || (m->written <= m->said && !anyway))
        return;
    body.log_id = m->grant.log_id;
    body.position = m->written;
    if (send_env(m, &env) < 0) {
        mst_mirror_fail(m, -EIO, "nothing can be sent to it");
        return;
    }
    m->said = m->written;
    m->asked = true;
    m->asked_ms = mst_now_ms();
}

static void maybe_ready(struct mst_mirror *m)
{
    if (!m->region || !m->keyed || m->ready)
        return;
    m->ready = true;
    m->moved_ms = mst_now_ms();
    log_info("vm=%s epoch=%" PRIu64 " mirror on %s: its log is open, seeding begins with the next checkpoint", m->vm->name,
             m->vm->epoch, m->node);
}

static void registered(void *arg, struct mst_region *region, int err, const struct mst_why *why)
{
    struct mst_mirror *m = arg;

    m->registering = false;
    m->region = region;
    if (err == 0 && m->vm)
        maybe_ready(m);
    else if (err < 0 && err != -ECANCELED)
        mst_mirror_fail(m, err, why->text);
    mst_mirror_unused(m);
}

static void on_open(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct mst_mirror *m = arg;
    struct mst_why here = {0};

    if (err < 0) {
        m->link = NULL;
        if (m->vm && (err == -EACCES || m->keeper->stopping || ++m->tries >= CONNECT_TRIES))
            mst_mirror_fail(m, err, why && why->text[0] ? why->text : "it cannot be connected to");
        else if (m->vm && m->phase != MAINSTAY__MIRROR_PHASE__MIRROR_FAILED)
            uv_timer_start(&m->retry, mst_mirror_on_retry, MST_RETRY_MS, 0);
        mst_mirror_unused(m);
        return;
    }
    if (!m->vm || m->phase == MAINSTAY__MIRROR_PHASE__MIRROR_FAILED) {
        mst_link_close(link);
        return;
    }
    err = mst_region_new_async(link, m->twin, mst_mlog_bytes(m->grant.ring_bytes), MST_ACCESS_LOCAL, registered, m, &here);
    m->registering = err == 0;
    m->asked = true; /* for its key */
    m->asked_ms = mst_now_ms();
    if (err < 0)
        mst_mirror_fail(m, err, here.text);
}

static void key_take(struct mst_mirror *m, const Mainstay__MirrorKey *key)
{
    if (key->instance != m->grant.mirror_instance || key->log_id != m->grant.log_id ||
        key->log->bytes != mst_mlog_bytes(m->grant.ring_bytes) || key->log->addr > UINT64_MAX - key->log->bytes) {
        mst_mirror_fail(m, -EPROTO, "its key is not of the log that was granted");
        return;
    }
    m->log_addr = key->log->addr;
    m->log_rkey = key->log->rkey;
    m->keyed = true;
    m->asked = false;
    maybe_ready(m);
}

static void ack_take(struct mst_mirror *m, const Mainstay__MirrorAck *said)
{
    struct mst_mlog_ack ack = {.log_id = said->log_id, .epoch = said->epoch, .seq = said->seq, .consumed = said->consumed};

    if (ack.log_id != m->grant.log_id || !m->keyed)
        return;
    m->asked = false;
    MST_POINT("mirror.acked");
    mst_mirror_acked(m, &ack);
    mst_mirror_ask(m, false);
    mst_mirror_go(m);
}

static void on_message(struct mst_link *link, const void *data, size_t len, void *arg)
{
    struct mst_mirror *m = arg;
    struct mst_why why = {0};
    mst_envelope *env;

    if (!m->vm || m->phase == MAINSTAY__MIRROR_PHASE__MIRROR_FAILED)
        return;
    if (mst_frame_unpack(data, len, &env, &why) < 0) {
        mst_mirror_fail(m, -EPROTO, why.text);
        return;
    }
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_MIRROR_KEY)
        key_take(m, env->mirror_key);
    else if (env->body_case == MAINSTAY__ENVELOPE__BODY_MIRROR_ACK)
        ack_take(m, env->mirror_ack);
    else if (env->body_case == MAINSTAY__ENVELOPE__BODY_REFUSE)
        mst_mirror_fail(m, -env->refuse->error, env->refuse->text);
    else
        log_notice("peer=%s sent message %d on a mirror link: ignored", mst_link_address(link), (int)env->body_case);
    mst_envelope_free(env);
}

static void on_closed(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct mst_mirror *m = arg;

    (void)link;
    m->link = NULL;
    m->region = NULL;
    mst_mirror_fail(m, err ? err : -ECANCELED, why->text[0] ? why->text : "the link was closed");
    mst_mirror_unused(m);
}

static const struct mst_link_events events = {.on_open = on_open, .on_message = on_message, .on_closed = on_closed};

void mst_mirror_connect(struct mst_mirror *m)
{
    struct mst_keeper *k = m->keeper;
    struct mst_why why = {0};
    int r = -ENODEV;

    if (m->link || !m->vm)
        return;
    if (k->fabric)
        r = mst_fabric_connect(k->fabric, m->address, m->port, MST_ROLE_MIRROR, &m->grant.log_id, sizeof(m->grant.log_id),
                               MST_CONNECT_DEADLINE_MS, &events, m, &m->link, &why);
    if (r == 0)
        return;
    m->link = NULL;
    if (++m->tries >= CONNECT_TRIES)
        mst_mirror_fail(m, r, why.text);
    else
        uv_timer_start(&m->retry, mst_mirror_on_retry, MST_RETRY_MS, 0);
}

void mst_mirror_on_retry(uv_timer_t *timer)
{
    mst_mirror_connect(timer->data);
}

/* --- orders --- */

static struct mst_mirror *find(struct mst_keeper *k, const char *vm, uint64_t epoch, uint64_t log_id)
{
    struct mst_mirror *m = k->mirrors->first;

    while (m && !(m->vm && m->grant.log_id == log_id && m->vm->epoch == epoch && strcmp(m->vm->name, vm) == 0))
        m = m->next;
    return m;
}

static unsigned count_of(const struct mst_keeper *k, const struct mst_vm *vm)
{
    unsigned n = 0;

    for (const struct mst_mirror *m = k->mirrors->first; m; m = m->next)
        n += m->vm == vm;
    return n;
}

static int mirror_new(struct mst_vm *vm, const Mainstay__OrderMirrorTo *order, struct mst_why *why)
{
    struct mst_keeper *k = vm->keeper;
    struct mst_mirror *m;
    struct mst_mlog_grant grant = {.epoch = vm->epoch,
                                   .log_id = order->grant->log_id,
                                   .source_node_id = k->conf->id,
                                   .source_instance = k->instance,
                                   .mirror_instance = order->grant->mirror_instance,
                                   .ram_bytes = vm->areas.area[MST_AREA_RAM].bytes,
                                   .ring_bytes = order->grant->ring_bytes,
                                   .delta_capacity = order->grant->delta_capacity};
    int r;

    memcpy(grant.vm, vm->name, sizeof(grant.vm));
    memcpy(grant.source_boot_id, k->host_boot_id, sizeof(grant.source_boot_id));
    r = mst_mlog_grant_check(&grant, why);
    if (r == 0 && grant.delta_capacity != vm->areas.delta_capacity)
        r = mst_why_set(why, -EINVAL, "the image has a delta of %" PRIu32 " pages, the VM here one of %" PRIu32,
                        grant.delta_capacity, vm->areas.delta_capacity);
    if (r == 0 && (!order->mirror->port || order->mirror->port > UINT16_MAX))
        r = mst_why_set(why, -EINVAL, "port %" PRIu32 " of %s: allowed are 1 to 65535", order->mirror->port, order->mirror->node);
    if (r == 0)
        r = mst_budget_take(&k->budget, mst_mlog_bytes(grant.ring_bytes), why);
    if (r < 0)
        return r;
    m = calloc(1, sizeof(*m));
    if (!m) {
        mst_budget_give(&k->budget, mst_mlog_bytes(grant.ring_bytes));
        return mst_why_set(why, -ENOMEM, "no memory for one more mirror of %s", vm->name);
    }
    *m = (struct mst_mirror){.next = k->mirrors->first,
                             .keeper = k,
                             .vm = vm,
                             .node_id = order->mirror->node_id,
                             .port = (uint16_t)order->mirror->port,
                             .grant = grant,
                             .budgeted = true,
                             .phase = MAINSTAY__MIRROR_PHASE__MIRROR_SEEDING};
    snprintf(m->node, sizeof(m->node), "%s", order->mirror->node);
    snprintf(m->address, sizeof(m->address), "%s", order->mirror->address);
    uv_timer_init(k->loop, &m->retry);
    m->retry.data = m;
    k->mirrors->first = m;
    log_notice("vm=%s epoch=%" PRIu64 " gets a mirror on %s", vm->name, vm->epoch, m->node);
    mst_mirror_go(m);
    return 0;
}

int mst_mirrors_to(struct mst_keeper *k, const struct mst_asker *asker, const mst_envelope *env, struct mst_why *why)
{
    const Mainstay__OrderMirrorTo *order = env->order_mirror_to;
    struct mst_vm *vm;
    int r = mst_slot_granted(k, order->vm, order->epoch, &vm, why);

    if (r == 0 && !find(k, order->vm, order->epoch, order->grant->log_id)) {
        if (!vm->areas_ready || !mst_areas_whole(&vm->areas))
            r = mst_why_set(why, -EAGAIN, "%s epoch %" PRIu64 " has no memory yet", order->vm, order->epoch);
        else if (vm->state != MST_RUN_RUNNING && vm->state != MST_RUN_PAUSED)
            r = mst_why_set(why, -EAGAIN, "%s epoch %" PRIu64 " is %s: it is mirrored when it runs", order->vm, order->epoch,
                            mst_slot_state_name(vm->state));
        else if (!vm->areas.area[MST_AREA_SHADOW].addr)
            r = mst_why_set(why, -EINVAL, "%s has no checkpoints to mirror: set `protect: mirror`", order->vm);
        else if (count_of(k, vm) >= MST_MIRRORS_MAX)
            r = mst_why_set(why, -ENOSPC, "%s has %u mirrors already: drop one first", order->vm, MST_MIRRORS_MAX);
        else
            r = mirror_new(vm, order, why);
    }
    if (r == 0)
        mst_control_reply_error(asker, 0, NULL);
    return r;
}

int mst_mirrors_sure(struct mst_keeper *k, const struct mst_asker *asker, const mst_envelope *env, struct mst_why *why)
{
    const Mainstay__OrderMirrorSure *order = env->order_mirror_sure;
    struct mst_mirror *m = find(k, order->vm, order->epoch, order->log_id);

    if (!m)
        return mst_why_set(why, -ENOENT, "%s epoch %" PRIu64 " has no such mirror here: it was left out, or never ordered",
                           order->vm, order->epoch);
    if (m->phase != MAINSTAY__MIRROR_PHASE__MIRROR_JOINED && m->phase != MAINSTAY__MIRROR_PHASE__MIRROR_SURE)
        return mst_why_set(why, -ESTALE, "the mirror of %s on %s is %s: only one that has joined may count", order->vm, m->node,
                           phase_name(m->phase));
    if (m->phase == MAINSTAY__MIRROR_PHASE__MIRROR_JOINED)
        mst_mirror_phase(m, MAINSTAY__MIRROR_PHASE__MIRROR_SURE);
    mst_control_reply_error(asker, 0, NULL);
    return 0;
}

int mst_mirrors_drop(struct mst_keeper *k, const struct mst_asker *asker, const mst_envelope *env, struct mst_why *why)
{
    const Mainstay__OrderMirrorDrop *order = env->order_mirror_drop;
    struct mst_mirror *m = find(k, order->vm, order->epoch, order->log_id);

    (void)why;
    if (m) {
        log_notice("vm=%s epoch=%" PRIu64 " mirror on %s is left out, by order", m->vm->name, m->vm->epoch, m->node);
        end(m);
    }
    mst_control_reply_error(asker, 0, NULL);
    return 0;
}

/* --- time --- */

/* Whether it is us who keep mirrors waiting: by what mst_tenure_settled says, or because this loop stood still, and answers wait to be read. */
static bool is_our_wait(struct mst_keeper *k, uint64_t now_ms)
{
    struct mst_mirrors *mirrors = k->mirrors;
    bool stood = mirrors->second_ms != 0 && now_ms - mirrors->second_ms > STOOD_MS;

    mirrors->second_ms = now_ms;
    if (mst_tenure_settled(k, NULL))
        mirrors->held_ms = 0;
    else if (mirrors->held_ms == 0)
        mirrors->held_ms = now_ms;
    return mirrors->held_ms != 0 || stood;
}

static void outputs_go(struct mst_keeper *k)
{
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++)
        if (k->vms[i].used)
            mst_output_go(&k->vms[i]);
}

void mst_mirrors_second(struct mst_keeper *k)
{
    uint64_t now_ms = mst_now_ms();
    struct mst_mirror *m, *next;
    bool ours = is_our_wait(k, now_ms);

    for (m = k->mirrors->first; m; m = next) {
        next = m->next;
        if (!m->vm || m->phase == MAINSTAY__MIRROR_PHASE__MIRROR_FAILED)
            continue;
        if (ours)
            m->asked_ms = m->moved_ms = now_ms;
        else if (m->job != MIRROR_IDLE)
            m->moved_ms = now_ms;
        if (m->pending && k->mirrors->held_ms != 0 && now_ms - k->mirrors->held_ms >= MOVE_MS)
            mst_mirror_fail(m, -ETIMEDOUT,
                            "nothing may be sent to it since this node stood still, and checkpoints do not wait for it longer");
        else if (m->asked && now_ms - m->asked_ms >= ANSWER_MS)
            mst_mirror_fail(m, -ETIMEDOUT, "it does not answer");
        else if (m->pending && now_ms - m->moved_ms >= MOVE_MS)
            mst_mirror_fail(m, -ETIMEDOUT, "it has given back no room in its log for 10 s: is it overloaded?");
        else
            mst_mirror_ask(m, true); /* an idle link notices nothing of a peer that vanished */
    }
    for (m = k->mirrors->first; m; m = m->next)
        if (m->vm && is_news(m, now_ms))
            state_tell(m);
    outputs_go(k); /* what a queue refused */
}

void mst_mirrors_go(struct mst_keeper *k)
{
    struct mst_mirror *m, *next;

    for (m = k->mirrors ? k->mirrors->first : NULL; m; m = next) {
        next = m->next;
        mst_mirror_go(m);
    }
    outputs_go(k);
}

/* The loop goes on until their handles are closed. */
void mst_mirrors_close(struct mst_keeper *k)
{
    struct mst_mirror *m, *next;

    for (m = k->mirrors ? k->mirrors->first : NULL; m; m = next) {
        next = m->next;
        if (m->vm) {
            mst_output_shut(m->vm);
            end(m);
        }
    }
}

int mst_mirrors_new(struct mst_keeper *k)
{
    k->mirrors = calloc(1, sizeof(*k->mirrors));
    return k->mirrors ? 0 : -ENOMEM;
}

/* After the loop has ended. */
void mst_mirrors_free(struct mst_keeper *k)
{
    free(k->mirrors);
    k->mirrors = NULL;
}
