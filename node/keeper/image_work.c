#include "node/keeper/images.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/priority.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* What is done to an image, by a worker thread that has it alone: taking a record copies and sums up to a MiB, applying and verifying all of the RAM.
 *
 *   SEED    an empty log and an empty record; then the source may be told
 *   TAKE    what has come, at most TAKES records or one checkpoint; then it is acknowledged
 *   APPLY   delta to shadow, after the acknowledgement has left
 *   SCRUB   a few pages of the shadow against their sums, round and round: what has rotted is replaced while there is something to replace it from
 *   VERIFY  after the log was closed: every byte */

#define TAKES   8
#define LOOK_MS 5u    /* what the source says it has written is not there yet: again */
#define HALF_MS 3000u /* and so long at most: a NIC that has completed a WRITE shows it within microseconds */

#define SCRUB_PAGES  256u /* at a time, or more when a round would otherwise want them ... */
#define SCRUB_MIN_MS 100u /* ... more often than this */

static void on_look(uv_timer_t *timer)
{
    struct mst_held_image *held = timer->data;

    held->look = true;
    mst_held_image_go(held);
}

static void on_scrub(uv_timer_t *timer)
{
    struct mst_held_image *held = timer->data;

    held->scrub = true;
    mst_held_image_go(held);
}

/* A round takes mirror-scrub-s. */
static void scrub_begin(struct mst_held_image *held)
{
    uint64_t round_ms = held->keeper->conf->mirror_scrub_s * UINT64_C(1000);
    uint64_t pages = held->grant.ram_bytes / MST_PAGE_BYTES, period_ms = round_ms * SCRUB_PAGES / pages;

    period_ms = period_ms > round_ms ? round_ms : period_ms < SCRUB_MIN_MS ? SCRUB_MIN_MS : period_ms;
    held->scrub_pages = (pages * period_ms + round_ms - 1) / round_ms;
    uv_timer_start(&held->scrub_timer, on_scrub, period_ms, period_ms);
}

/* --- worker --- */

static struct mst_save_map map_of(const struct mst_held_image *held)
{
    const struct mst_vm *vm = held->vm;

    return (struct mst_save_map){.ram_bytes = vm->areas.area[MST_AREA_SHADOW].bytes,
                                 .save = vm->areas.area[MST_AREA_SAVE].addr,
                                 .shadow = vm->areas.area[MST_AREA_SHADOW].addr,
                                 .delta = vm->areas.area[MST_AREA_DELTA].addr,
                                 .delta_capacity = vm->areas.delta_capacity,
                                 .record = held->keeper->status->vms[vm->index].save,
                                 .epoch = vm->epoch,
                                 .instance = held->keeper->instance};
}

static int seed(struct mst_held_image *held)
{
    struct mst_save_map map = map_of(held);
    int r = mst_image_new(&held->image);

    return r < 0 ? r : mst_image_seed(held->image, &held->grant, held->log, &map, &held->job_why);
}

static int take(struct mst_held_image *held)
{
    int r = 1;

    for (held->job_taken = 0; held->job_taken < TAKES && r == 1; held->job_taken += r > 0)
        r = mst_image_take(held->image, mst_now_ns(), &held->job_why);
    return r;
}

static int verify(struct mst_held_image *held)
{
    struct mst_save_map map = map_of(held);
    uint64_t begin_ns = mst_now_ns();
    int r = 0;

    if (!held->image) {
        r = mst_image_new(&held->image);
        if (r == 0)
            r = mst_image_adopt(held->image, &map, &held->job_why);
        if (r < 0) {
            mst_image_free(held->image);
            held->image = NULL;
            return r;
        }
    }
    r = mst_image_verify(held->image, mst_now_ns(), &held->found_epoch, &held->found_seq, &held->job_why);
    held->verify_ns = mst_now_ns() - begin_ns;
    return r;
}

static void work(uv_work_t *work)
{
    struct mst_held_image *held = work->data;

    mst_priority_worker();
    held->job_why.text[0] = '\0';
    switch (held->job) {
    case IMAGE_SEED:
        held->job_err = seed(held);
        break;
    case IMAGE_TAKE:
        held->job_err = take(held);
        break;
    case IMAGE_VERIFY:
        held->job_err = verify(held);
        break;
    case IMAGE_SCRUB:
        held->job_err = mst_image_scrub(held->image, held->scrub_pages, &held->job_why);
        break;
    default:
        held->job_err = 0;
        mst_image_apply(held->image);
    }
}

/* --- loop --- */

static void taken(struct mst_held_image *held, int r)
{
    if (held->job_taken > 0) {
        held->moved_ms = mst_now_ms();
        held->ack_owed = true;
    }
    if (held->ack_owed)
        mst_held_image_ack(held);
    held->unapplied = held->unapplied || r == 2;
    if (r < 0) {
        mst_held_image_fail(held, r, held->job_why.text);
        return;
    }
    held->look = r > 0;
    if (r > 0 || held->ack.consumed >= held->written || !held->link)
        return;
    if (held->look_ms >= held->moved_ms + HALF_MS) /* by when the look began: this loop may have stood still since */
        mst_held_image_fail(held, -ETIMEDOUT, "what its source says it has written has not come");
    else
        uv_timer_start(&held->timer, on_look, LOOK_MS, 0);
}

/* It goes like one whose source writes nonsense: the source hears of it, and the coordinator has another one made. */
static void scrubbed(struct mst_held_image *held, int r)
{
    held->scrub = false;
    if (r >= 0 || held->revoked)
        return; /* revoked meanwhile: verified next, every byte */
    uv_timer_stop(&held->scrub_timer);
    mst_event(&(struct mst_event){.kind = MST_EV_IMAGE_ROTTEN,
                                  .vm = held->vm->name,
                                  .epoch = held->vm->epoch,
                                  .text = held->job_why.text,
                                  .seq = mst_slot_save_seq(held->vm)});
    mst_held_image_fail(held, r, held->job_why.text);
}

static void job_ended(struct mst_held_image *held, enum mst_image_job job, int err)
{
    enum mst_image_state before = held->state;

    if (held->image) {
        held->state = mst_image_state(held->image);
        mst_image_ack(held->image, &held->ack);
    }
    if (held->state != before) {
        log_notice("vm=%s epoch=%" PRIu64 " image %s -> %s, checkpoint %" PRIu64, held->vm->name, held->vm->epoch,
                   mst_image_state_name(before), mst_image_state_name(held->state), held->ack.seq);
        mst_event(&(struct mst_event){.kind = MST_EV_IMAGE_STATE,
                                      .vm = held->vm->name,
                                      .epoch = held->vm->epoch,
                                      .what = mst_image_state_name(held->state),
                                      .seq = mst_slot_save_seq(held->vm)});
        mst_slot_publish(held->vm);
        if (held->state == MST_IMAGE_MIRRORING && !held->revoked)
            scrub_begin(held);
    }
    if (job == IMAGE_SEED)
        mst_held_image_seeded(held, err, &held->job_why);
    else if (job == IMAGE_VERIFY)
        mst_held_image_verified(held, err, &held->job_why);
    else if (job == IMAGE_TAKE)
        taken(held, err);
    else if (job == IMAGE_SCRUB)
        scrubbed(held, err);
    else
        held->unapplied = false;
}

static void after(uv_work_t *work, int status)
{
    struct mst_held_image *held = work->data;
    enum mst_image_job job = held->job;
    struct mst_vm *vm = held->vm;

    held->job = IMAGE_IDLE;
    if (!vm->drop_pending && !held->keeper->stopping)
        job_ended(held, job, status < 0 ? status : held->job_err);
    mst_slot_release(vm); /* the slot may be gone now, and with it all but the log */
    if (held->vm && held->keeper->stopping)
        mst_images_gone(vm);
    if (held->vm)
        mst_held_image_go(held);
    else
        mst_held_image_unused(held);
}

static void start(struct mst_held_image *held, enum mst_image_job job)
{
    held->job = job;
    held->look_ms = mst_now_ms();
    held->work.data = held;
    held->vm->users++;
    uv_queue_work(held->keeper->loop, &held->work, work, after); /* fails only without a callback */
}

void mst_held_image_go(struct mst_held_image *held)
{
    bool taking = held->state == MST_IMAGE_SEEDING || held->state == MST_IMAGE_MIRRORING;

    if (held->job != IMAGE_IDLE || !held->vm || held->vm->drop_pending || !held->vm->areas_ready)
        return;
    if (!held->image && held->grant.log_id != 0) {
        start(held, IMAGE_SEED);
    } else if (held->revoked && taking) {
        MST_POINT("image.revoked");
        mst_image_revoke(held->image);
        held->state = MST_IMAGE_REVOKED;
        mst_slot_publish(held->vm);
        mst_held_image_go(held);
    } else if (held->revoked && held->state == MST_IMAGE_REVOKED && held->revoke_asker.control) {
        start(held, IMAGE_VERIFY);
    } else if (taking && held->unapplied) {
        start(held, IMAGE_APPLY);
    } else if (held->state == MST_IMAGE_MIRRORING && held->scrub && held->err == 0) {
        start(held, IMAGE_SCRUB); /* before what has come: that may be so all the time */
    } else if (taking && held->look && held->err == 0) {
        start(held, IMAGE_TAKE);
    }
}
