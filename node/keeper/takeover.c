#include "node/keeper/takeover.h"

#include "base/file.h"
#include "base/log.h"
#include "proto/frame.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int status_read(const char *folder, struct mst_status_area **ret_area, struct mst_why *why)
{
    struct mst_status_area *area;
    char path[PATH_MAX], *data;
    size_t len;
    int r;

    r = mst_path(path, sizeof(path), "%s/status", folder);
    if (r < 0)
        return r;
    r = mst_file_read(path, sizeof(*area), &data, &len);
    if (r == -ENOENT)
        return r;
    if (r < 0 && r != -EFBIG)
        return mst_why_set(why, r, "%s: %s", path, strerror(-r));
    if (r == -EFBIG || len != sizeof(*area)) {
        if (r == 0)
            free(data);
        return mst_why_set(why, -EBADMSG, "%s is not %zu bytes long", path, sizeof(*area));
    }
    area = aligned_alloc(64, sizeof(*area));
    if (area)
        memcpy(area, data, sizeof(*area));
    free(data);
    if (!area)
        return -ENOMEM;
    *ret_area = area;
    return 0;
}

static int identity_check(const struct mst_superblock *super, const struct mst_identity *id, struct mst_why *why)
{
    int r = mst_superblock_check(super, why);

    if (r < 0)
        return r;
    if (strcmp(super->cluster, id->cluster) != 0 || strcmp(super->node, id->node) != 0 || super->node_id != id->node_id)
        return mst_why_set(why, -EBADMSG, "it is of node %s (%u) of cluster %s", super->node, super->node_id, super->cluster);
    if (memcmp(super->host_boot_id, id->host_boot_id, sizeof(id->host_boot_id)) != 0)
        return mst_why_set(why, -EBADMSG, "it is of another boot of this host");
    return 0;
}

/* What the sizes in a slot say that it was made for. */
static int areas_plan(const struct mst_vm_slot *slot, uint64_t epoch, uint64_t ram_bytes, struct mst_areas *areas)
{
    enum mst_areas_for what = slot->run_state == MST_RUN_IMAGE ? MST_AREAS_IMAGE
                              : slot->shadow_bytes             ? MST_AREAS_LOCAL
                                                               : MST_AREAS_NONE;
    int r = mst_areas_plan(areas, slot->vm, epoch, ram_bytes, what);

    if (r == 0 && what == MST_AREAS_LOCAL && slot->delta_bytes != areas->area[MST_AREA_DELTA].bytes)
        r = mst_areas_plan(areas, slot->vm, epoch, ram_bytes, MST_AREAS_MIRROR);
    return r;
}

/* Slot info and record of one entry, checked as far as sizes go. -ENODATA: nothing there. */
static int entry_check(const struct mst_vm_entry *entry, struct mst_kept *kept, struct mst_why *why)
{
    struct mst_pub_head info, save;
    struct mst_vm_slot *slot = &kept->slot;
    uint64_t ram_bytes;
    int r;

    r = mst_pub_pick(entry->info, &info, slot, sizeof(*slot));
    if (r == -ENODATA || (r == 0 && slot->run_state == MST_RUN_EMPTY))
        return -ENODATA;
    if (r < 0)
        return mst_why_set(why, r, "slot info is torn");
    if (!memchr(slot->vm, '\0', sizeof(slot->vm)) || mst_name_check(slot->vm) < 0 || !info.epoch)
        return mst_why_set(why, -EBADMSG, "slot info names no VM");
    r = mst_pub_pick(entry->save, &save, &kept->record, sizeof(kept->record));
    if (r < 0)
        return mst_why_set(why, r, "%s has no whole save record", slot->vm);
    if (save.epoch != info.epoch)
        return mst_why_set(why, -EBADMSG, "%s: save record is of epoch %" PRIu64 ", the slot of %" PRIu64, slot->vm, save.epoch,
                           info.epoch);
    ram_bytes = slot->run_state == MST_RUN_IMAGE ? slot->shadow_bytes : slot->ram_bytes;
    r = areas_plan(slot, info.epoch, ram_bytes, &kept->areas);
    if (r < 0)
        return mst_why_set(why, -EBADMSG, "%s: %" PRIu64 " bytes of RAM", slot->vm, ram_bytes);
    if (slot->disk_bytes && (slot->disk_bytes % MST_PAGE_BYTES || slot->disk_bytes >= slot->ram_bytes))
        return mst_why_set(why, -EBADMSG, "%s: a disk of %" PRIu64 " in %" PRIu64 " bytes of RAM", slot->vm, slot->disk_bytes,
                           slot->ram_bytes);
    kept->areas.disk_bytes = slot->disk_bytes;
    if (slot->ram_bytes != kept->areas.area[MST_AREA_RAM].bytes || slot->save_bytes != kept->areas.area[MST_AREA_SAVE].bytes ||
        slot->shadow_bytes != kept->areas.area[MST_AREA_SHADOW].bytes ||
        slot->delta_bytes != kept->areas.area[MST_AREA_DELTA].bytes)
        return mst_why_set(why, -EBADMSG, "%s: sizes of its areas do not fit each other", slot->vm);
    r = mst_save_record_check(&kept->record, ram_bytes, kept->areas.delta_capacity, why);
    if (r < 0)
        return r;
    if (kept->record.source == MST_SAVE_SHADOW && !slot->shadow_bytes)
        return mst_why_set(why, -EBADMSG, "%s: the record names a shadow that is not there", slot->vm);
    return 0;
}

/* Page checksums (with the delta's over them) against the record's digest. */
static int sums_check(const struct mst_kept *kept, const struct mst_save_layout *layout, struct mst_why *why)
{
    const struct mst_save_record *record = &kept->record;
    uint64_t off = record->source == MST_SAVE_RAM ? layout->ram_sums_off : layout->shadow_sums_off;
    size_t bytes = record->ram_bytes / MST_PAGE_BYTES * sizeof(uint32_t),
           table_bytes = record->delta_pages * sizeof(struct mst_delta_entry);
    uint32_t *sums = malloc(bytes);
    struct mst_delta_entry *table = malloc(table_bytes ? table_bytes : 1);
    struct mst_delta_layout delta;
    int r = sums && table ? 0 : -ENOMEM;

    if (r == 0 && record->delta_pages)
        r = mst_delta_layout(kept->areas.delta_capacity, &delta);
    if (r < 0)
        goto out;
    memcpy(sums, kept->areas.area[MST_AREA_SAVE].addr + off, bytes);
    if (record->delta_pages)
        memcpy(table, kept->areas.area[MST_AREA_DELTA].addr + delta.table_off, table_bytes);
    r = mst_delta_table_check(record, table, why);
    if (r < 0)
        goto out;
    mst_delta_sums(record, table, sums);
    r = mst_save_sums_check(record, sums, why);
out:
    free(table);
    free(sums);
    return r;
}

/* Device state and checksums of the mapped files against the record. The pages themselves are checked by whoever loads them. */
static int content_check(const struct mst_kept *kept, struct mst_why *why)
{
    const struct mst_save_record *record = &kept->record;
    struct mst_save_layout layout;
    int r;

    r = mst_save_layout(record->ram_bytes, &layout);
    if (r == 0)
        r = mst_save_device_check(record, kept->areas.area[MST_AREA_SAVE].addr + layout.device_off[record->device_slot], why);
    if (r == 0)
        r = sums_check(kept, &layout, why);
    return r < 0 ? mst_why_prefix(why, r, "%s", kept->slot.vm) : 0;
}

static bool known(const struct mst_kept *kept, unsigned count, const struct mst_kept *one)
{
    unsigned i;

    for (i = 0; i < count; i++)
        if (kept[i].areas.epoch == one->areas.epoch && strcmp(kept[i].areas.vm, one->areas.vm) == 0)
            return true;
    return false;
}

static int entry_take(const char *folder, const struct mst_vm_entry *entry, struct mst_budget *budget, struct mst_kept *kept,
                      unsigned count, struct mst_why *why)
{
    struct mst_kept *one = &kept[count];
    int r;

    r = entry_check(entry, one, why);
    if (r < 0)
        return r;
    if (known(kept, count, one))
        return mst_why_set(why, -EBADMSG, "%s epoch %" PRIu64 " is there twice", one->areas.vm, one->areas.epoch);
    r = mst_budget_take(budget, one->areas.bytes, why);
    if (r < 0)
        return r;
    r = mst_areas_adopt(folder, &one->areas, why);
    if (r < 0)
        goto give;
    r = content_check(one, why);
    if (r < 0)
        goto unmap;
    return 0;
unmap:
    mst_areas_unmap(folder, &one->areas, false);
give:
    mst_budget_give(budget, one->areas.bytes);
    return r;
}

int mst_takeover_read(const char *folder, const struct mst_identity *identity, struct mst_budget *budget,
                      struct mst_kept kept[MST_VMS_PER_NODE], unsigned *ret_count, struct mst_why *why)
{
    struct mst_status_area *area;
    struct mst_why reason = {0};
    unsigned i, count = 0;
    int r;

    *ret_count = 0;
    r = status_read(folder, &area, &reason);
    if (r == -ENOENT)
        return 0;
    if (r < 0 && r != -EBADMSG)
        return mst_why_set(why, r, "%s", reason.text);
    if (r == 0) {
        r = identity_check(&area->super, identity, &reason);
        if (r < 0)
            free(area);
    }
    if (r < 0) {
        log_warning("nothing is taken over: status area of the earlier instance is not usable: %s", reason.text);
        return 0;
    }
    for (i = 0; i < MST_VMS_PER_NODE; i++) {
        reason.text[0] = '\0';
        r = entry_take(folder, &area->vms[i], budget, kept, count, &reason);
        if (r == 0) {
            log_notice("vm=%s epoch=%" PRIu64 " taken over: save %" PRIu64 " of instance %016" PRIx64, kept[count].areas.vm,
                       kept[count].areas.epoch, kept[count].record.seq, area->super.instance);
            count++;
        } else if (r != -ENODATA || reason.text[0]) {
            log_notice("slot=%u not taken over: %s", i, reason.text[0] ? reason.text : strerror(-r));
        }
    }
    free(area);
    *ret_count = count;
    return 0;
}

static bool is_kept(const char *name, const struct mst_kept *kept, unsigned count, const char *const *keep)
{
    char path[PATH_MAX];
    unsigned i, kind;

    for (; *keep; keep++)
        if (strcmp(*keep, name) == 0)
            return true;
    for (i = 0; i < count; i++)
        for (kind = 0; kind < MST_AREA_KINDS; kind++)
            if (kept[i].areas.area[kind].bytes &&
                mst_area_path(".", &kept[i].areas, (enum mst_area_kind)kind, path, sizeof(path)) == 0 &&
                strcmp(path + 2, name) == 0)
                return true;
    for (i = 0; i < count; i++)
        if (kept[i].areas.disk_bytes && mst_disk_path(".", &kept[i].areas, path, sizeof(path)) == 0 &&
            strcmp(path + 2, name) == 0)
            return true;
    return false;
}

int mst_takeover_sweep(const char *folder, const struct mst_kept *kept, unsigned count, const char *const *keep)
{
    struct dirent *entry;
    int removed = 0;
    DIR *dir = opendir(folder);

    if (!dir)
        return -errno;
    while ((entry = readdir(dir))) {
        if (entry->d_type == DT_DIR || is_kept(entry->d_name, kept, count, keep))
            continue;
        if (unlinkat(dirfd(dir), entry->d_name, 0) == 0)
            removed++;
        else
            log_warning("cannot remove %s/%s: %s", folder, entry->d_name, strerror(errno));
    }
    closedir(dir);
    return removed;
}
