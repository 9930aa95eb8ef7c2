#include "node/keeper/images.h"

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

/* This node as a mirror: images of VMs that run elsewhere (mirror/image.h), each with a slot, a log that one source may write over one link, and a
 * worker. What the order of things is, and who counts, the coordinator knows; here is only: one log, one writer, one key; closed before it is
 * verified; verified before it is read. */

#define RING_MIN (1u << 20)
#define RING_MAX (16u << 20)

/* --- life --- */

static void freed(uv_handle_t *handle)
{
    struct mst_held_image *held = handle->data;
    uint64_t bytes = held->log ? mst_mlog_bytes(held->grant.ring_bytes) : 0;

    if (--held->closing > 0)
        return;
    mst_image_free(held->image);
    if (held->log) {
        munmap(held->log, bytes);
        mst_budget_give(&held->keeper->budget, bytes);
    }
    free(held);
}

void mst_held_image_unused(struct mst_held_image *held)
{
    if (held->freeing || held->vm || held->link || held->registering || held->job != IMAGE_IDLE)
        return;
    held->freeing = true;
    held->closing = 2;
    uv_close((uv_handle_t *)&held->timer, freed);
    uv_close((uv_handle_t *)&held->scrub_timer, freed);
}

static struct mst_held_image *held_new(struct mst_keeper *k, struct mst_vm *vm)
{
    struct mst_held_image *held = calloc(1, sizeof(*held));

    if (!held)
        return NULL;
    held->keeper = k;
    held->vm = vm;
    uv_timer_init(k->loop, &held->timer);
    held->timer.data = held;
    uv_timer_init(k->loop, &held->scrub_timer);
    held->scrub_timer.data = held;
    vm->image = held;
    return held;
}

/* From here on the source has no access, whatever else still has the image in hand. */
static void log_close(struct mst_held_image *held)
{
    if (MST_MUTANT(71)) {
        held->revoked = true;
        return;
    }
    mst_region_free(held->region);
    held->region = NULL;
    held->revoked = true;
    uv_timer_stop(&held->timer);
    uv_timer_stop(&held->scrub_timer);
    if (held->link)
        mst_link_close(held->link);
}

void mst_images_close(struct mst_vm *vm)
{
    if (vm->image)
        log_close(vm->image);
}

void mst_images_gone(struct mst_vm *vm)
{
    struct mst_held_image *held = vm->image;

    if (!held)
        return;
    vm->image = NULL;
    held->vm = NULL;
    mst_held_image_unused(held);
}

void mst_images_free(struct mst_keeper *k)
{
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++)
        if (k->vms[i].image && k->vms[i].image->job == IMAGE_IDLE) /* otherwise with its worker, or with the process */
            mst_images_gone(&k->vms[i]);
}

/* --- what others ask of it --- */

void mst_images_fill(const struct mst_vm *vm, struct mst_vm_slot *slot)
{
    if (!vm->image)
        return;
    slot->image_state = vm->image->state;
    slot->image_source = vm->image->grant.source_node_id;
    slot->log_id = vm->image->grant.log_id;
}

void mst_images_hello(const struct mst_vm *vm, Mainstay__HeldVm *held)
{
    if (!vm->image)
        return;
    held->has_image_state = held->has_log_id = 1;
    held->image_state = vm->image->state;
    held->log_id = vm->image->grant.log_id;
}

bool mst_images_mirroring(const struct mst_vm *vm)
{
    return vm->image && vm->image->state == MST_IMAGE_MIRRORING && !vm->image->revoked && vm->image->err == 0;
}

bool mst_images_readable(const struct mst_vm *vm)
{
    return vm->image && (vm->image->state == MST_IMAGE_VERIFIED || vm->image->state == MST_IMAGE_USED);
}

int mst_images_use(struct mst_vm *vm, uint64_t epoch, struct mst_why *why)
{
    struct mst_held_image *held = vm->image;
    int r;

    if (!mst_images_readable(vm))
        return mst_why_set(why, -ESTALE, "the image of %s epoch %" PRIu64 " is %s: it is resumed from only when verified",
                           vm->name, vm->epoch, mst_image_state_name(held->state));
    if (held->state == MST_IMAGE_USED)
        return 0;
    r = mst_image_use(held->image, epoch);
    if (r < 0)
        return mst_why_set(why, r, "the image of %s is of epoch %" PRIu64 ", not %" PRIu64, vm->name, vm->epoch, epoch);
    held->state = MST_IMAGE_USED;
    mst_slot_publish(vm);
    return 0;
}

/* --- the link --- */

static int send_env(struct mst_held_image *held, const mst_envelope *env)
{
    struct mst_keeper *k = held->keeper;
    int n;

    if (!held->link)
        return -ENOTCONN;
    n = mst_frame_pack(env, k->frame, sizeof(k->frame));
    return n < 0 ? n : mst_link_send(held->link, k->frame, (size_t)n);
}

void mst_held_image_ack(struct mst_held_image *held)
{
    Mainstay__MirrorAck body = MAINSTAY__MIRROR_ACK__INIT;
    mst_envelope env = MST_ENVELOPE(MIRROR_ACK, mirror_ack, &body);

    held->ack_owed = false;
    if (!held->region)
        return; /* closed: nobody waits for it */
    body.log_id = held->ack.log_id;
    body.epoch = held->ack.epoch;
    body.seq = held->ack.seq;
    body.consumed = held->ack.consumed;
    MST_POINT("image.acked");
    if (send_env(held, &env) < 0)
        mst_link_close(held->link); /* its source would wait for ever */
}

void mst_held_image_fail(struct mst_held_image *held, int err, const char *text)
{
    Mainstay__Refuse body = MAINSTAY__REFUSE__INIT;
    mst_envelope env = MST_ENVELOPE(REFUSE, refuse, &body);

    if (held->err == 0)
        log_warning("vm=%s epoch=%" PRIu64 " image of node %s takes no more: %s", held->vm->name, held->vm->epoch,
                    held->source_node, text[0] ? text : strerror(-err));
    held->err = err;
    body.error = -err;
    body.text = (char *)(text[0] ? text : strerror(-err));
    (void)send_env(held, &env);
    if (held->link)
        mst_link_close(held->link);
}

static void registered(void *arg, struct mst_region *region, int err, const struct mst_why *why)
{
    struct mst_held_image *held = arg;
    Mainstay__MirrorKey body = MAINSTAY__MIRROR_KEY__INIT;
    Mainstay__Region log = MAINSTAY__REGION__INIT;
    mst_envelope env = MST_ENVELOPE(MIRROR_KEY, mirror_key, &body);

    held->registering = false;
    if (err < 0 || !held->vm || held->revoked) {
        mst_region_free(region);
        if (err < 0 && err != -ECANCELED && held->vm)
            mst_held_image_fail(held, err, why->text);
        mst_held_image_unused(held);
        return;
    }
    held->region = region;
    held->keyed = true;
    body.instance = held->keeper->instance;
    body.log_id = held->grant.log_id;
    body.log = &log;
    log.bytes = mst_mlog_bytes(held->grant.ring_bytes);
    mst_region_key(region, &log.addr, &log.rkey);
    if (send_env(held, &env) < 0)
        mst_link_close(held->link);
}

static void on_open(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct mst_held_image *held = arg;
    struct mst_why reason = {0};

    if (err < 0) {
        log_notice("peer=%s its mirror link did not open: %s", mst_link_address(link),
                   why && why->text[0] ? why->text : strerror(-err));
        held->link = NULL;
        mst_held_image_unused(held);
        return;
    }
    if (!held->vm || held->revoked) {
        mst_link_close(link);
        return;
    }
    err = mst_region_new_async(link, held->log, mst_mlog_bytes(held->grant.ring_bytes), MST_ACCESS_REMOTE_WRITE, registered, held,
                               &reason);
    if (err < 0)
        mst_held_image_fail(held, err, reason.text);
    else
        held->registering = true;
}

static void written(struct mst_held_image *held, const Mainstay__MirrorWritten *said)
{
    if (said->log_id != held->grant.log_id || !held->vm || held->err < 0)
        return;
    if (said->position > held->ack.consumed + held->grant.ring_bytes && held->job == IMAGE_IDLE) {
        mst_held_image_fail(held, -EPROTO, "its source says it has written more than the log has room for");
        return;
    }
    if (held->written <= held->ack.consumed)
        held->moved_ms = mst_now_ms();
    if (said->position > held->written)
        held->written = said->position;
    if (held->job != IMAGE_IDLE)
        mst_held_image_ack(held); /* as it was: its worker may be a while, and no answer would look as if nobody were here */
    held->look = held->ack_owed = true;
    mst_held_image_go(held);
}

static void on_message(struct mst_link *link, const void *data, size_t len, void *arg)
{
    struct mst_held_image *held = arg;
    struct mst_why why = {0};
    mst_envelope *env;

    if (mst_frame_unpack(data, len, &env, &why) < 0) {
        log_warning("peer=%s sent what is no message on a mirror link, closing it: %s", mst_link_address(link), why.text);
        mst_link_close(link);
        return;
    }
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_MIRROR_WRITTEN)
        written(held, env->mirror_written);
    else
        log_notice("peer=%s sent message %d on a mirror link: ignored", mst_link_address(link), (int)env->body_case);
    mst_envelope_free(env);
}

static void on_closed(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct mst_held_image *held = arg;

    held->link = NULL;
    held->region = NULL; /* went with the link */
    if (held->vm && !held->revoked) {
        log_notice("vm=%s epoch=%" PRIu64 " mirror link of %s closed: %s", held->vm->name, held->vm->epoch,
                   mst_link_address(link), err ? (why->text[0] ? why->text : strerror(-err)) : "by us");
        held->look = true; /* what is whole in the log is taken now: a takeover then has less to do */
        mst_held_image_go(held);
    }
    mst_held_image_unused(held);
}

static const struct mst_link_events events = {.on_open = on_open, .on_message = on_message, .on_closed = on_closed};

int mst_images_accept(struct mst_keeper *k, struct mst_link *link, const struct mst_link_request *request,
                      const struct mst_link_events **ret_events, void **ret_arg, struct mst_why *why)
{
    struct mst_held_image *held = NULL;
    uint64_t log_id = 0;

    if (request->data_bytes == sizeof(log_id))
        memcpy(&log_id, request->data, sizeof(log_id));
    for (unsigned i = 0; i < MST_VMS_PER_NODE && log_id; i++)
        if (k->vms[i].image && k->vms[i].image->grant.log_id == log_id)
            held = k->vms[i].image;
    if (!held || strcmp(held->source_address, request->address) != 0)
        return mst_why_set(why, -EACCES, "%s may write no log of that number on node %s", request->address, k->conf->node);
    if (held->keyed || held->link || held->registering || held->revoked || held->err < 0 || held->state != MST_IMAGE_SEEDING)
        return mst_why_set(why, -EACCES,
                           "the log of %s epoch %" PRIu64 " has had its writer: another one is ordered for the next",
                           held->grant.vm, held->grant.epoch);
    held->link = link;
    *ret_events = &events;
    *ret_arg = held;
    return 0;
}

/* --- orders --- */

static void grant_reply(struct mst_held_image *held)
{
    Mainstay__MirrorGrant grant = MAINSTAY__MIRROR_GRANT__INIT;
    Mainstay__Done done;

    grant.log_id = held->grant.log_id;
    grant.mirror_instance = held->grant.mirror_instance;
    grant.ring_bytes = held->grant.ring_bytes;
    grant.delta_capacity = held->grant.delta_capacity;
    mst_done_fill(&done, 0, NULL);
    done.grant = &grant;
    mst_control_reply(&held->order_asker, &done);
    held->order_asker = (struct mst_asker){0};
}

/* It could not be made: nothing of it stays. */
static void order_failed(struct mst_held_image *held, int err, const struct mst_why *why)
{
    struct mst_asker asker = held->order_asker;

    log_warning("vm=%s epoch=%" PRIu64 " no image for node %s: %s", held->vm->name, held->vm->epoch, held->source_node,
                why->text[0] ? why->text : strerror(-err));
    mst_slot_drop(held->vm);
    mst_control_reply_error(&asker, err, why);
}

void mst_images_areas_made(struct mst_vm *vm, int err, const struct mst_why *why)
{
    if (err < 0)
        order_failed(vm->image, err, why);
    else
        mst_held_image_go(vm->image);
}

void mst_held_image_seeded(struct mst_held_image *held, int err, const struct mst_why *why)
{
    struct mst_why here;

    if (err < 0) {
        order_failed(held, err, why);
    } else if (held->revoked) { /* meanwhile */
        mst_why_set(&here, -EBUSY, "the image of %s epoch %" PRIu64 " was revoked while it was made: forget it first",
                    held->vm->name, held->vm->epoch);
        mst_control_reply_error(&held->order_asker, -EBUSY, &here);
        held->order_asker = (struct mst_asker){0};
    } else {
        grant_reply(held);
    }
}

static int log_make(struct mst_held_image *held, struct mst_why *why)
{
    uint64_t bytes = mst_mlog_bytes(held->grant.ring_bytes);
    void *log;
    int r = mst_budget_take(&held->keeper->budget, bytes, why);

    if (r < 0)
        return r;
    log = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (log == MAP_FAILED) {
        mst_budget_give(&held->keeper->budget, bytes);
        return mst_why_set(why, -ENOMEM, "no memory for a log of %" PRIu64 " bytes: free some on this node", bytes);
    }
    madvise(log, bytes, MADV_DONTDUMP);
    held->log = log;
    return 0;
}

static uint64_t ring_bytes(const Mainstay__OrderMirror *order, uint64_t ram_bytes)
{
    uint64_t bytes = ram_bytes / 8 / 4096 * 4096;

    if (order->has_ring_bytes)
        return order->ring_bytes;
    return bytes < RING_MIN ? RING_MIN : bytes > RING_MAX ? RING_MAX : bytes;
}

/* Fills held from the order. */
static int image_plan(struct mst_held_image *held, const Mainstay__OrderMirror *order, struct mst_why *why)
{
    struct mst_vm *vm = held->vm;
    int r = mst_areas_plan(&vm->areas, vm->name, vm->epoch, (uint64_t)mst_vm_area_mib(order->definition) << 20, MST_AREAS_IMAGE);

    if (r < 0)
        return r;
    held->grant = (struct mst_mlog_grant){.epoch = vm->epoch,
                                          .log_id = mst_random_u64(),
                                          .source_node_id = order->source->node_id,
                                          .source_instance = order->source->instance,
                                          .mirror_instance = held->keeper->instance,
                                          .ram_bytes = vm->areas.area[MST_AREA_SHADOW].bytes,
                                          .delta_capacity = vm->areas.delta_capacity};
    held->grant.ring_bytes = ring_bytes(order, held->grant.ram_bytes);
    memcpy(held->grant.vm, vm->name, sizeof(held->grant.vm));
    memcpy(held->grant.source_boot_id, order->source_boot_id.data, sizeof(held->grant.source_boot_id));
    snprintf(held->source_node, sizeof(held->source_node), "%s", order->source->node);
    snprintf(held->source_address, sizeof(held->source_address), "%s", order->source->address);
    r = mst_mlog_grant_check(&held->grant, why);
    if (r == 0)
        r = log_make(held, why);
    return r < 0 ? r : mst_vm_areas_make(vm, MST_AREAS_ALL, 0, why);
}

static int image_new(struct mst_keeper *k, const struct mst_asker *asker, const Mainstay__OrderMirror *order, struct mst_why *why)
{
    struct mst_held_image *held;
    struct mst_vm *vm = NULL;
    int r = mst_guard_held(k->guard, order->definition->name, order->epoch);

    if (r == 0)
        r = mst_slot_new_image(k, order->definition->name, order->epoch, &vm, why);
    if (r < 0 || !vm)
        return r;
    held = held_new(k, vm);
    r = held ? mst_slot_define(vm, order->definition) : -ENOMEM;
    r = r == 0 ? image_plan(held, order, why) : mst_why_set(why, r, "no memory for one more image");
    if (r < 0) {
        mst_slot_drop(vm);
        return r;
    }
    held->order_asker = *asker;
    log_notice("vm=%s epoch=%" PRIu64 " an image is made for node %s, its log has %" PRIu64 " KiB", vm->name, vm->epoch,
               held->source_node, held->grant.ring_bytes >> 10);
    return 0;
}

int mst_images_order(struct mst_keeper *k, const struct mst_asker *asker, const mst_envelope *env, struct mst_why *why)
{
    const Mainstay__OrderMirror *order = env->order_mirror;
    const char *name = order->definition->name;
    struct mst_held_image *held;
    struct mst_vm *vm;
    int r = mst_vm_definition_check(order->definition, why);

    if (r < 0)
        return r;
    if (order->definition->protect != MAINSTAY__PROTECT__PROTECT_MIRROR || order->epoch == 0 ||
        order->source->node_id == k->conf->id)
        return mst_why_set(why, -EINVAL, "%s: not protect: mirror, or no epoch, or its own mirror", name);
    if (order->epoch < mst_guard_known(k->guard, name))
        return mst_why_set(why, -ESTALE, "epoch %" PRIu64 " of %s is older than %" PRIu64 ", known here", order->epoch, name,
                           mst_guard_known(k->guard, name));
    vm = mst_slot_find(k, name, order->epoch);
    if (!vm && mst_guard_granted(k->guard, name) == order->epoch)
        return mst_why_set(why, -EBUSY, "%s has its grant of epoch %" PRIu64 " here: its mirror is on another node", name,
                           order->epoch);
    if (!vm)
        return image_new(k, asker, order, why);
    held = vm->image;
    if (!held || held->grant.log_id == 0 || held->grant.source_instance != order->source->instance || held->revoked ||
        held->err < 0 || (held->keyed && !held->link))
        return mst_why_set(why, -EBUSY, "%s epoch %" PRIu64 " is here, and not an image whose log is open: forget it first", name,
                           order->epoch);
    held->order_asker = *asker;
    if (held->job != IMAGE_SEED && held->image) /* image: the worker's while it seeds */
        grant_reply(held);
    return 0;
}

int mst_images_revoke(struct mst_keeper *k, const struct mst_asker *asker, const mst_envelope *env, struct mst_why *why)
{
    const Mainstay__OrderMirrorRevoke *order = env->order_mirror_revoke;
    struct mst_vm *vm = mst_slot_find(k, order->vm, order->epoch);
    struct mst_held_image *held = vm ? vm->image : NULL;

    if (!held)
        return mst_why_set(why, -ENOENT, "no image of %s epoch %" PRIu64 " is here", order->vm, order->epoch);
    if (!held->revoked) {
        log_notice("vm=%s epoch=%" PRIu64 " image revoked: node %s may not write it any more", vm->name, vm->epoch,
                   held->source_node[0] ? held->source_node : "-");
        log_close(held);
    }
    if (held->grant.log_id != 0 && (held->job == IMAGE_SEED || !held->image))
        return mst_why_set(why, -ENODATA, "the image of %s epoch %" PRIu64 " holds no checkpoint yet", order->vm, order->epoch);
    held->revoke_asker = *asker;
    if (mst_images_readable(vm))
        mst_held_image_verified(held, 0, NULL);
    else
        mst_held_image_go(held);
    return 0;
}

void mst_held_image_verified(struct mst_held_image *held, int err, const struct mst_why *why)
{
    Mainstay__ImageResult result = MAINSTAY__IMAGE_RESULT__INIT;
    struct mst_asker asker = held->revoke_asker;
    Mainstay__Done done;

    held->revoke_asker = (struct mst_asker){0};
    if (err < 0) {
        log_warning("vm=%s epoch=%" PRIu64 " image is of no use: %s", held->vm->name, held->vm->epoch,
                    why->text[0] ? why->text : strerror(-err));
        mst_control_reply_error(&asker, err, why);
        return;
    }
    if (why) /* now, and not before */
        mst_server_vm_ready(held->vm);
    result.instance = held->keeper->instance;
    result.epoch = held->found_epoch;
    result.seq = held->found_seq;
    result.has_verify_us = 1;
    result.verify_us = held->verify_ns / 1000;
    mst_done_fill(&done, 0, NULL);
    done.image = &result;
    mst_control_reply(&asker, &done);
}

/* --- at start --- */

int mst_images_new(struct mst_keeper *k)
{
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++) {
        struct mst_vm *vm = &k->vms[i];
        struct mst_held_image *held;

        if (!vm->used || vm->state != MST_RUN_IMAGE)
            continue;
        held = held_new(k, vm);
        if (!held)
            return -ENOMEM;
        held->state = MST_IMAGE_REVOKED; /* its log went with the keeper before */
        held->revoked = true;
        mst_slot_publish(vm);
    }
    return 0;
}
