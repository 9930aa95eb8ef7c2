#include "node/keeper/pull.h"

#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Life of a pull: waiting for its source, running its steps (pull_steps.c), answering the agent. */

#define SOURCE_MS 5000u /* for a link and Keys to appear: a keeper that was just restarted */

struct mst_pulls {
    struct pull *first;
};

/* --- the end --- */

static void pull_closed(uv_handle_t *handle)
{
    struct pull *p = handle->data;

    free(p->buffer[BUFFER_SCRATCH].addr);
    free(p);
}

static void pull_free(struct pull *p)
{
    struct pull **at = &p->keeper->pulls->first;

    while (*at != p)
        at = &(*at)->next;
    *at = p->next;
    mst_pull_release(p);
    if (p->local)
        mst_slot_release(p->local);
    mst_slot_release(p->vm);
    uv_close((uv_handle_t *)&p->timer, pull_closed);
}

static void pull_failed(struct pull *p, int err)
{
    if (!p->why.text[0])
        mst_why_set(&p->why, err, "%s", strerror(-err));
    mst_why_prefix(&p->why, err, "pull of %s epoch %" PRIu64 " from %s", p->vm->name, p->epoch, p->node);
    log_warning("vm=%s epoch=%" PRIu64 " %s", p->vm->name, p->vm->epoch, p->why.text);
    if (p->session == mst_agent_session(p->keeper))
        mst_agent_reply_error(p->keeper, p->reply_to, err, &p->why);
    pull_free(p);
}

static void pull_done(struct pull *p)
{
    Mainstay__Pulled body = MAINSTAY__PULLED__INIT;
    mst_envelope env = MST_ENVELOPE(PULLED, pulled, &body);
    uint64_t all_ns = mst_now_ns() - p->start_ns;

    body.save_epoch = p->epoch;
    body.save_seq = p->record.seq;
    body.source = p->record.source;
    body.device_slot = p->record.device_slot;
    body.device_bytes = p->record.device_bytes;
    body.bytes = p->local ? 0 : p->bytes;
    body.pull_us = (all_ns - p->verify_ns) / 1000;
    body.verify_us = p->verify_ns / 1000;
    body.has_local = 1;
    body.local = p->local != NULL;
    log_notice("vm=%s epoch=%" PRIu64 " pulled save %" PRIu64 "/%" PRIu64 " from %s: %" PRIu64 " bytes in %" PRIu64
               " us, checks %" PRIu64 " us",
               p->vm->name, p->vm->epoch, p->epoch, p->record.seq, p->node, p->bytes, body.pull_us, body.verify_us);
    env.has_reply_to = 1;
    env.reply_to = p->reply_to;
    if (p->session == mst_agent_session(p->keeper))
        mst_agent_send(p->keeper, &env);
    pull_free(p);
}

void mst_pull_ended(struct pull *p, int err)
{
    if (err < 0)
        pull_failed(p, err);
    else
        pull_done(p);
}

/* --- the source --- */

static int source_find(struct pull *p)
{
    struct mst_keeper *k = p->keeper;
    int r;

    if (p->node_id != k->conf->id)
        return mst_peers_source(k, p->node_id, p->instance, p->vm->name, p->epoch, &p->remote, &p->why);
    if (p->instance != k->instance)
        return mst_why_set(&p->why, -ESTALE, "this keeper is another instance than the save's");
    p->local = mst_slot_find(k, p->vm->name, p->epoch);
    if (!p->local || !p->local->areas_ready || p->local == p->vm) {
        p->local = NULL;
        return mst_why_set(&p->why, -ENODATA, "its areas are not here any more");
    }
    if (p->image != (p->local->image != NULL)) {
        p->local = NULL;
        return mst_why_set(&p->why, -ESTALE, "what is here of epoch %" PRIu64 " is %san image", p->epoch, p->image ? "not " : "");
    }
    if (p->image && (r = mst_images_use(p->local, p->epoch, &p->why)) < 0) {
        p->local = NULL;
        return r;
    }
    p->local->users++;
    return 0;
}

static void try_source(struct pull *p)
{
    int r;

    p->why.text[0] = '\0';
    r = p->canceled ? mst_why_set(&p->why, -ESTALE, "%s", p->canceled) : source_find(p);
    if (r == 0) {
        p->waiting = false;
        uv_timer_stop(&p->timer);
        p->start_ns = mst_now_ns();
        r = mst_pull_begin(p);
        if (r == 0)
            return;
    } else if (!p->canceled && p->node_id != p->keeper->conf->id && mst_now_ms() < p->wait_end_ms) {
        return; /* mst_pulls_wake or the timer comes back */
    }
    uv_timer_stop(&p->timer);
    pull_failed(p, r);
}

static void on_timer(uv_timer_t *timer)
{
    struct pull *p = timer->data;

    if (p->waiting)
        try_source(p);
}

void mst_pulls_wake(struct mst_keeper *k)
{
    struct pull *p;

    /* From the timer, because a pull that fails here takes itself out of the list. */
    for (p = k->pulls->first; p; p = p->next)
        if (p->waiting)
            uv_timer_start(&p->timer, on_timer, 0, SOURCE_MS);
}

void mst_pulls_link_gone(struct mst_keeper *k, const struct mst_link *link)
{
    struct pull *p;

    for (p = k->pulls->first; p; p = p->next)
        if (p->remote.link == link)
            mst_pull_link_gone(p);
}

static_assert(2 * sizeof(struct mst_vm_entry) <= MST_PAGE_BYTES, "the scratch page takes a slot twice");

static int pull_new(struct mst_vm *vm, const Mainstay__SaveSource *source, struct pull **ret_pull)
{
    struct pull *p = calloc(1, sizeof(*p));

    if (!p)
        return -ENOMEM;
    p->buffer[BUFFER_SCRATCH].bytes = MST_PAGE_BYTES;
    p->buffer[BUFFER_SCRATCH].addr = aligned_alloc(MST_PAGE_BYTES, MST_PAGE_BYTES);
    if (!p->buffer[BUFFER_SCRATCH].addr) {
        free(p);
        return -ENOMEM;
    }
    memset(p->buffer[BUFFER_SCRATCH].addr, 0, MST_PAGE_BYTES);
    p->buffer[BUFFER_RAM].addr = vm->areas.area[MST_AREA_RAM].addr;
    p->buffer[BUFFER_RAM].bytes = vm->areas.area[MST_AREA_RAM].bytes;
    p->buffer[BUFFER_SAVE].addr = vm->areas.area[MST_AREA_SAVE].addr;
    p->buffer[BUFFER_SAVE].bytes = vm->areas.area[MST_AREA_SAVE].bytes;
    p->keeper = vm->keeper;
    p->vm = vm;
    snprintf(p->node, sizeof(p->node), "%s", source->node);
    p->node_id = source->node_id;
    p->instance = source->instance;
    p->epoch = source->epoch;
    p->min_seq = source->has_min_seq ? source->min_seq : 0;
    p->image = source->has_image && source->image;
    *ret_pull = p;
    return 0;
}

void mst_pull_start(struct mst_vm *vm, const Mainstay__SaveSource *source, uint64_t reply_to)
{
    struct mst_keeper *k = vm->keeper;
    struct mst_why why = {0};
    struct pull *p;
    int r;

    for (p = k->pulls->first; p; p = p->next) {
        if (p->vm != vm)
            continue;
        if (p->epoch != source->epoch || p->node_id != source->node_id || p->instance != source->instance) {
            r = mst_why_set(&why, -EBUSY, "%s is being pulled from %s", vm->name, p->node);
            mst_agent_reply_error(k, reply_to, r, &why);
            return;
        }
        p->reply_to = reply_to; /* a new agent asks for what is under way */
        p->session = mst_agent_session(k);
        return;
    }
    r = pull_new(vm, source, &p);
    if (r < 0) {
        mst_agent_reply_error(k, reply_to, r, &why);
        return;
    }
    p->reply_to = reply_to;
    p->session = mst_agent_session(k);
    p->next = k->pulls->first;
    k->pulls->first = p;
    vm->users++;
    uv_timer_init(k->loop, &p->timer);
    p->timer.data = p;
    p->waiting = true;
    p->wait_end_ms = mst_now_ms() + SOURCE_MS;
    uv_timer_start(&p->timer, on_timer, 0, SOURCE_MS);
}

static void cancel(struct pull *p, const char *why)
{
    struct mst_why reason;

    log_notice("vm=%s epoch=%" PRIu64 " pull canceled: %s", p->vm->name, p->vm->epoch, why);
    p->canceled = why;
    mst_why_set(&reason, -ESTALE, "pull of %s epoch %" PRIu64 " from %s: %s", p->vm->name, p->epoch, p->node, why);
    if (p->session == mst_agent_session(p->keeper))
        mst_agent_reply_error(p->keeper, p->reply_to, -ESTALE, &reason); /* now: the end of what is under way may take a while */
    p->reply_to = 0;
    if (p->waiting)
        uv_timer_start(&p->timer, on_timer, 0, 0); /* what is under way ends with its next chunk */
}

void mst_pull_cancel(struct mst_vm *vm, const char *why)
{
    struct pull *p;

    for (p = vm->keeper->pulls->first; p; p = p->next)
        if (p->vm == vm && !p->canceled)
            cancel(p, why);
}

void mst_pulls_stop(struct mst_keeper *k)
{
    struct pull *p;

    for (p = k->pulls->first; p; p = p->next)
        if (!p->canceled)
            cancel(p, "the keeper stops");
}

int mst_pulls_new(struct mst_keeper *k)
{
    k->pulls = calloc(1, sizeof(*k->pulls));
    return k->pulls ? 0 : -ENOMEM;
}

/* After the loop has ended: every pull has, too. */
void mst_pulls_free(struct mst_keeper *k)
{
    free(k->pulls);
    k->pulls = NULL;
}
