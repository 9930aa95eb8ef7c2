#include "node/agent/checkpoint_impl.h"

#include "base/clock.h"
#include "base/fault.h"

#include <errno.h>
#include <string.h>

#define EARLY_PASSES_MAX 3u  /* looks at the bits while the guest runs */
#define EARLY_WORTH      64u /* so few new pages are cheaper in the pause than one more look */

static bool early_get(const struct mst_ckpt *ckpt, uint64_t page)
{
    return ckpt->early[page / 64] >> (page % 64) & 1;
}

static void early_set(struct mst_ckpt *ckpt, uint64_t page)
{
    ckpt->early[page / 64] |= UINT64_C(1) << (page % 64);
}

/* Copies one page the way this checkpoint goes. False: the delta is full, from here on RAM is taken whole. */
static bool take(struct mst_ckpt *ckpt, uint64_t page, uint64_t *copied)
{
    int r;

    if (ckpt->way == WAY_FILL) {
        *copied += mst_save_fill(ckpt->conf.writer, page) == 0;
        return true;
    }
    r = mst_save_stage_if_changed(ckpt->conf.writer, page);
    *copied += r == 1;
    if (r != -ENOSPC)
        return true;
    ckpt->way = WAY_RAM;
    return false;
}

static void take_all(struct mst_ckpt *ckpt, uint64_t *copied)
{
    for (uint64_t page = 0; page < ckpt->pages; page++)
        if (!take(ckpt, page, copied))
            return;
}

/* Guest standing, before any page is filled: see dirty.h. When it fails the set is larger than it need be. */
void mst_ckpt_mark_work(uv_work_t *work)
{
    struct mst_ckpt *ckpt = work->data;

    mst_dirty_clear(ckpt->conf.dirty);
    ckpt->marked = true;
}

/* Guest running. What is copied here may be torn or old by the time of the pause: take_late looks at it again. */
void mst_ckpt_early_work(uv_work_t *work)
{
    struct mst_ckpt *ckpt = work->data;
    uint64_t start_ns = mst_now_ns(), ignored = 0;

    if (ckpt->way == WAY_FILL || ckpt->doubt || !ckpt->conf.dirty)
        take_all(ckpt, &ckpt->report.pages_early);
    for (unsigned pass = 0; pass < EARLY_PASSES_MAX && ckpt->conf.dirty && ckpt->way != WAY_RAM; pass++) {
        uint64_t fresh = 0;

        if (mst_dirty_look(ckpt->conf.dirty) < 0)
            break; /* the pause compares all */
        for (uint64_t page = mst_dirty_next(ckpt->conf.dirty, 0); page != UINT64_MAX;
             page = mst_dirty_next(ckpt->conf.dirty, page + 1)) {
            if (early_get(ckpt, page))
                continue;
            early_set(ckpt, page);
            fresh++;
            if (!take(ckpt, page, ckpt->way == WAY_FILL ? &ignored : &ckpt->report.pages_early))
                break;
        }
        if (fresh < EARLY_WORTH)
            break;
    }
    ckpt->work_ns = mst_now_ns() - start_ns;
}

/* Guest standing. Every page written since the last checkpoint (the marking) is in the set now, those that were copied early too. Returns how many
 * they are, -1: the kernel does not say. */
static int64_t take_late(struct mst_ckpt *ckpt)
{
    int64_t dirty = ckpt->conf.dirty ? mst_dirty_look(ckpt->conf.dirty) : -1;

    if (dirty < 0) {
        take_all(ckpt, &ckpt->report.pages_late);
        return -1;
    }
    for (uint64_t page = mst_dirty_next(ckpt->conf.dirty, 0); page != UINT64_MAX;
         page = mst_dirty_next(ckpt->conf.dirty, page + 1))
        if (!take(ckpt, page, &ckpt->report.pages_late))
            break;
    return dirty;
}

static int put_device(struct mst_ckpt *ckpt)
{
    uint64_t room = 0;
    uint8_t *slot = mst_save_device(ckpt->conf.writer, &room);

    if (ckpt->report.device_bytes == 0 || ckpt->report.device_bytes > room)
        return -EMSGSIZE;
    memcpy(slot, ckpt->device, ckpt->report.device_bytes);
    return 0;
}

static int commit(struct mst_ckpt *ckpt)
{
    uint64_t now_ns = mst_now_ns(), wall_ms = mst_wall_ms(), bytes = ckpt->report.device_bytes;
    struct mst_save_writer *writer = ckpt->conf.writer;
    int r;

    if (ckpt->way == WAY_DELTA)
        ckpt->report.pages_late = mst_save_staged(writer) - ckpt->report.pages_early; /* many were looked at twice */
    if (ckpt->way == WAY_DELTA)
        return mst_save_commit(writer, bytes, now_ns - ckpt->stop_sent_ns, wall_ms, now_ns);
    if (ckpt->way == WAY_FILL)
        return mst_save_commit_filled(writer, bytes, now_ns - ckpt->stop_sent_ns, wall_ms, now_ns);
    r = mst_save_commit_ram(writer, bytes, now_ns - ckpt->stop_sent_ns, wall_ms, now_ns);
    MST_POINT("checkpoint.after_commit_ram");
    if (r == 0 && ckpt->conf.map->shadow)
        ckpt->report.pages_late = mst_save_shadow_from_ram(writer);
    return r;
}

/* Guest standing. */
void mst_ckpt_staging_work(uv_work_t *work)
{
    struct mst_ckpt *ckpt = work->data;
    uint64_t start_ns = mst_now_ns();
    int64_t dirty = -1;

    ckpt->work_err = put_device(ckpt);
    if (ckpt->work_err < 0)
        return;
    if (ckpt->way != WAY_RAM)
        dirty = take_late(ckpt);
    MST_FAULT("checkpoint.commit", {
        ckpt->work_err = -EIO;
        return;
    });
    MST_POINT("checkpoint.before_commit");
    ckpt->work_err = commit(ckpt);
    MST_POINT("checkpoint.after_commit");
    ckpt->report.pages_dirty = dirty < 0 ? ckpt->report.pages_early + ckpt->report.pages_late : (uint64_t)dirty;
    /* Only now, see dirty.h. When it fails the next set is larger than it need be. */
    if (ckpt->work_err == 0 && ckpt->conf.dirty)
        mst_dirty_clear(ckpt->conf.dirty);
    ckpt->work_ns = mst_now_ns() - start_ns;
}

/* Guest running again or held. */
void mst_ckpt_apply_work(uv_work_t *work)
{
    struct mst_ckpt *ckpt = work->data;
    uint64_t start_ns = mst_now_ns();

    MST_POINT("checkpoint.before_apply");
    mst_save_apply(ckpt->conf.writer);
    ckpt->work_ns = mst_now_ns() - start_ns;
}
