#include "coordinator/io/slots.h"

#include "base/text.h"
#include "shm/publish.h"
#include "shm/save.h"

#include <errno.h>
#include <string.h>

#define MIB             (UINT64_C(1) << 20)
#define IMAGE_STATE_MAX 6 /* cleared */

/* 0 whole and unchanged; -ENODATA never written; -EAGAIN torn or changed. */
static int pick(const uint8_t first[2][MST_PUB_SLOT_BYTES], const uint8_t again[2][MST_PUB_SLOT_BYTES],
                struct mst_pub_head *ret_head, void *body)
{
    int r = mst_pub_pick(first, ret_head, body, MST_PUB_BODY_MAX);

    if (r == -EBADMSG)
        return -EAGAIN;
    if ((r == 0 || r == -ENODATA) && mst_pub_confirm(again, r == 0 ? ret_head : NULL) < 0)
        return -EAGAIN;
    return r;
}

static bool vm_slot_sane(const struct mst_vm_slot *slot)
{
    if (memchr(slot->vm, 0, sizeof(slot->vm)) == NULL || mst_name_check(slot->vm) < 0 || slot->run_state > MST_RUN_IMAGE ||
        slot->image_state > IMAGE_STATE_MAX)
        return false;
    return slot->ram_bytes <= MST_VM_MEMORY_MIB_MAX * MIB && slot->save_bytes <= MST_VM_MEMORY_MIB_MAX * MIB &&
           slot->shadow_bytes <= MST_VM_MEMORY_MIB_MAX * MIB && slot->delta_bytes <= UINT64_C(2) * MST_VM_MEMORY_MIB_MAX * MIB;
}

/* A VM under protect mirror has a delta for all pages. */
static uint32_t delta_capacity(const struct mst_vm_slot *slot)
{
    uint32_t all = (uint32_t)(slot->ram_bytes / MST_PAGE_BYTES);
    struct mst_delta_layout layout;

    if (slot->delta_bytes == 0 || slot->ram_bytes == 0)
        return 0;
    return mst_delta_layout(all, &layout) == 0 && layout.bytes == slot->delta_bytes ? all : mst_delta_capacity(slot->ram_bytes);
}

/* Of no matter for any decision: what is not known here is not shown. */
static void parse_note(const struct mst_save_record *record, struct mst_slot *ret)
{
    static_assert(MST_SLOT_PACE_STALL == (int)MST_SAVE_PACE_STALL && MST_SLOT_PACE_COPY == (int)MST_SAVE_PACE_COPY &&
                      MST_SLOT_PACE_MIRROR == (int)MST_SAVE_PACE_MIRROR,
                  "core.h repeats shm/layout.h");
    static_assert(
        MST_SLOT_TROUBLE_FAILED == (int)MST_SAVE_TROUBLE_FAILED && MST_SLOT_TROUBLE_SILENT == (int)MST_SAVE_TROUBLE_SILENT &&
            MST_SLOT_TROUBLE_STOPPED == (int)MST_SAVE_TROUBLE_STOPPED && MST_SLOT_TROUBLE_LATE == (int)MST_SAVE_TROUBLE_LATE &&
            MST_SLOT_TROUBLE_MIRROR == (int)MST_SAVE_TROUBLE_MIRROR && MST_SLOT_TROUBLE_WHOLE == (int)MST_SAVE_TROUBLE_WHOLE,
        "core.h repeats shm/layout.h");

    if (record->interval_ms > MST_CHECKPOINT_MS_MAX * 10 || record->pace >= MST_SLOT_PACES ||
        record->trouble >= MST_SLOT_TROUBLES || record->pause_p50_us > record->pause_p99_us ||
        record->dirty_pages > UINT64_MAX / MST_PAGE_BYTES)
        return;
    ret->interval_ms = record->interval_ms;
    ret->pace = record->pace;
    ret->pages = record->pages;
    ret->dirty_pages = record->dirty_pages;
    ret->pause_p50_us = record->pause_p50_us;
    ret->pause_p99_us = record->pause_p99_us;
    ret->trouble = record->trouble;
    ret->trouble_wall_ms = record->trouble_wall_ms;
}

static void parse_save(const struct mst_vm_entry *first, const struct mst_vm_entry *again, bool final,
                       const struct mst_vm_slot *slot, struct mst_slot *ret, struct mst_slots_read *read)
{
    struct mst_save_record record;
    struct mst_pub_head head;
    uint32_t capacity = delta_capacity(slot);
    int r = slot->ram_bytes == 0 ? -ENODATA : pick(first->save, again->save, &head, &record);

    if (r == -ENODATA)
        return;
    if (r < 0) {
        read->unsure++;
        ret->save_corrupt = final;
        return;
    }
    if (head.epoch != ret->epoch)
        return; /* of whoever had the slot before */
    parse_note(&record, ret);
    r = mst_save_record_check(&record, slot->ram_bytes, capacity, NULL);
    if (r == -ENODATA)
        return;
    if (r < 0) {
        ret->save_corrupt = true;
        read->refused++;
        return;
    }
    /* A save in the RAM itself is one only as long as the guest stands. */
    if (record.source == MST_SAVE_RAM && (slot->run_state == MST_RUN_RUNNING || slot->run_state == MST_RUN_STARTING))
        return;
    ret->save_epoch = head.epoch;
    ret->save_seq = record.seq;
    ret->save_source = record.source;
    ret->taken_wall_ms = record.taken_wall_ms;
    ret->pause_us = record.pause_ns / 1000;
}

/* The same. */
static void parse_standby(const struct mst_vm_slot *slot, struct mst_slot *ret)
{
    static_assert(MST_SLOT_STANDBY_WARM == (int)MST_STANDBY_WARM && MST_SLOT_STANDBY_STARTING == (int)MST_STANDBY_STARTING &&
                      MST_SLOT_STANDBY_OFF == (int)MST_STANDBY_OFF && MST_SLOT_STANDBY_FULL == (int)MST_STANDBY_FULL &&
                      MST_SLOT_STANDBY_FAILED == (int)MST_STANDBY_FAILED && MST_SLOT_STANDBYS == (int)MST_STANDBYS,
                  "core.h repeats shm/layout.h");

    if (slot->run_state == MST_RUN_IMAGE && slot->standby < MST_SLOT_STANDBYS)
        ret->standby = slot->standby;
}

static void parse_entry(const struct mst_vm_entry *first, const struct mst_vm_entry *again, bool final,
                        struct mst_slots_read *read)
{
    struct mst_slot *ret = &read->slots[read->count];
    struct mst_vm_slot slot;
    struct mst_pub_head head;
    int r = pick(first->info, again->info, &head, &slot);

    if (r == -EAGAIN) {
        read->unsure++;
        read->damaged += final;
    }
    if (r < 0)
        return;
    if (slot.run_state == MST_RUN_EMPTY)
        return;
    if (!vm_slot_sane(&slot)) {
        read->refused++;
        return;
    }
    memset(ret, 0, sizeof(*ret));
    memcpy(ret->vm, slot.vm, strlen(slot.vm));
    ret->epoch = head.epoch;
    ret->run_state = slot.run_state;
    ret->fault_kind = slot.fault_kind;
    ret->bytes = slot.ram_bytes + slot.save_bytes + slot.shadow_bytes + slot.delta_bytes;
    ret->image_state = slot.run_state == MST_RUN_IMAGE ? slot.image_state : 0;
    ret->log_id = slot.run_state == MST_RUN_IMAGE ? slot.log_id : 0;
    parse_standby(&slot, ret);
    parse_save(first, again, final, &slot, ret, read);
    read->count++;
}

void mst_slots_parse(const struct mst_status_area *first, const struct mst_status_area *again, unsigned slots_count, bool final,
                     struct mst_slots_read *ret)
{
    struct mst_node_status status;
    struct mst_pub_head head;
    int r;

    memset(ret, 0, sizeof(*ret));
    r = pick(first->node, again->node, &head, &status);
    if (r == 0) {
        ret->info.known = true;
        ret->info.health = status.health;
        ret->info.load_milli = status.load_milli;
        ret->info.agent_restarts = status.agent_restarts;
        ret->info.machine_checks = status.machine_checks;
        ret->info.memory_used_bytes = status.memory_used_bytes;
    } else if (r == -EAGAIN) {
        ret->unsure++;
        ret->damaged += final;
    }
    for (unsigned i = 0; i < slots_count && i < MST_VMS_PER_NODE; i++)
        parse_entry(&first->vms[i], &again->vms[i], final, ret);
}
