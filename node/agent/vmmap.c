#include "node/agent/vmmap.h"

#include "base/file.h"
#include "conf/conf.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int mst_status_map(const char *path, uint64_t instance, struct mst_status_map *ret_map, struct mst_why *why)
{
    struct mst_status_area *area;
    struct mst_superblock super;
    const char *slash = strrchr(path, '/');
    struct stat st;
    int fd, r;

    if (!slash || slash == path || (size_t)(slash - path) >= sizeof(ret_map->folder))
        return mst_why_set(why, -EINVAL, "status area %s: not an absolute path that can be used", path);
    fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return mst_why_set(why, -errno, "status area %s: %s", path, mst_errname(errno));
    if (fstat(fd, &st) < 0 || st.st_size < (off_t)sizeof(*area)) {
        close(fd);
        return mst_why_set(why, -EBADMSG, "status area %s: shorter than %zu bytes", path, sizeof(*area));
    }
    area = mmap(NULL, sizeof(*area), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    r = -errno;
    close(fd);
    if (area == MAP_FAILED)
        return mst_why_set(why, r, "status area %s: cannot map: %s", path, mst_errname(r));
    memcpy(&super, &area->super, sizeof(super));
    r = mst_superblock_check(&super, why);
    if (r == 0 && super.instance != instance)
        r = mst_why_set(why, -EBADMSG, "status area %s belongs to keeper instance %016" PRIx64 ", not %016" PRIx64, path,
                        super.instance, instance);
    if (r < 0) {
        munmap(area, sizeof(*area));
        return r;
    }
    ret_map->area = area;
    memcpy(ret_map->folder, path, (size_t)(slash - path));
    ret_map->folder[slash - path] = '\0';
    return 0;
}

void mst_status_unmap(struct mst_status_map *map)
{
    if (map->area)
        munmap(map->area, sizeof(*map->area));
    map->area = NULL;
}

/* Opens and maps one file, at at when that is not NULL: a range reserved for it. *ret_fd may be NULL (then it is closed again). */
static int map_file(const char *folder, const char *name, size_t bytes, void *at, void **ret_data, int *ret_fd, char **ret_path,
                    struct mst_why *why)
{
    char path[512];
    struct stat st;
    void *data;
    int fd, r;

    r = name[0] == '/' ? mst_path(path, sizeof(path), "%s", name) : mst_path(path, sizeof(path), "%s/%s", folder, name);
    if (r < 0)
        return mst_why_set(why, r, "area %s: name too long", name);
    fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return mst_why_set(why, -errno, "area %s: %s", path, mst_errname(errno));
    if (fstat(fd, &st) < 0 || st.st_size < (off_t)bytes) {
        r = mst_why_set(why, -EBADMSG, "area %s: shorter than the %zu bytes it must have", path, bytes);
        goto close_fd;
    }
    data = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | (at ? MAP_FIXED : 0), fd, 0);
    if (data == MAP_FAILED) {
        r = mst_why_set(why, -errno, "area %s: cannot map: %s", path, mst_errname(errno));
        goto close_fd;
    }
    if (ret_path) {
        *ret_path = strdup(path);
        if (!*ret_path) {
            if (!at)
                munmap(data, bytes);
            r = mst_why_set(why, -ENOMEM, "no memory for a path");
            goto close_fd;
        }
    }
    *ret_data = data;
    if (ret_fd)
        *ret_fd = fd;
    else
        close(fd);
    return 0;
close_fd:
    close(fd);
    return r;
}

/* Shadow and delta; a VM that is not protected has none, and those of one that is may come later. */
static bool rest_is_named(const Mainstay__Areas *areas, const Mainstay__VmDefinition *definition)
{
    return definition->protect != MAINSTAY__PROTECT__PROTECT_NONE && (areas->shadow || areas->delta);
}

static int check_sizes(const Mainstay__Areas *areas, const Mainstay__VmDefinition *definition, struct mst_why *why)
{
    uint64_t ram_bytes = (uint64_t)mst_vm_area_mib(definition) << 20, disk_bytes = (uint64_t)mst_vm_disk_mib(definition) << 20;
    bool has_shadow = rest_is_named(areas, definition);

    if (areas->slot >= MST_VMS_PER_NODE)
        return mst_why_set(why, -EINVAL, "VM %s: slot %" PRIu32 " does not exist", definition->name, areas->slot);
    if (areas->ram_bytes != ram_bytes)
        return mst_why_set(why, -EINVAL, "VM %s: RAM area of %" PRIu64 " bytes for a VM of %" PRIu64, definition->name,
                           areas->ram_bytes, ram_bytes);
    if ((areas->has_disk_bytes ? areas->disk_bytes : 0) != disk_bytes || (disk_bytes && !areas->disk))
        return mst_why_set(why, -EINVAL, "VM %s: its areas have no usable disk of %" PRIu64 " bytes", definition->name,
                           disk_bytes);
    if (has_shadow &&
        (!areas->shadow || !areas->delta || areas->delta_capacity == 0 || areas->delta_capacity > ram_bytes / MST_PAGE_BYTES))
        return mst_why_set(why, -EINVAL, "VM %s: its areas have no usable shadow and delta", definition->name);
    return 0;
}

/* RAM and the disk behind it: both files into one range of addresses, which is mapped as soon as it is reserved. */
static int map_ram(const struct mst_status_map *status, const Mainstay__Areas *areas, struct mst_vmmap *mapped,
                   struct mst_why *why)
{
    size_t ram_bytes = areas->ram_bytes - mapped->disk_bytes;
    void *range = NULL, *data = NULL;
    int r;

    if (mapped->disk_bytes) {
        range = mmap(NULL, areas->ram_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (range == MAP_FAILED)
            return mst_why_set(why, -errno, "no addresses for %" PRIu64 " bytes: %s", areas->ram_bytes, mst_errname(errno));
        mapped->map.ram = range;
    }
    r = map_file(status->folder, areas->ram, ram_bytes, range, &data, &mapped->ram_fd, &mapped->ram_path, why);
    if (r == 0 && mapped->disk_bytes)
        return map_file(status->folder, areas->disk, mapped->disk_bytes, (uint8_t *)range + ram_bytes, &data, &mapped->disk_fd,
                        &mapped->disk_path, why);
    if (r == 0)
        mapped->map.ram = data;
    return r;
}

static int map_rest(const struct mst_status_map *status, const Mainstay__Areas *areas, struct mst_vmmap *mapped,
                    struct mst_why *why)
{
    struct mst_delta_layout delta;
    void *shadow, *data;
    int r = mst_delta_layout(areas->delta_capacity, &delta);

    if (r < 0)
        return mst_why_set(why, r, "a delta of %" PRIu32 " pages has no layout", areas->delta_capacity);
    r = map_file(status->folder, areas->shadow, areas->ram_bytes, NULL, &shadow, NULL, NULL, why);
    if (r < 0)
        return r;
    r = map_file(status->folder, areas->delta, delta.bytes, NULL, &data, NULL, NULL, why);
    if (r < 0) {
        munmap(shadow, areas->ram_bytes);
        return r;
    }
    mapped->map.shadow = shadow;
    mapped->map.delta = data;
    mapped->map.delta_capacity = areas->delta_capacity;
    mapped->delta_bytes = delta.bytes;
    return 0;
}

int mst_vmmap_rest(const struct mst_status_map *status, const Mainstay__Areas *areas, const Mainstay__VmDefinition *definition,
                   struct mst_vmmap *mapped, struct mst_why *why)
{
    int r = check_sizes(areas, definition, why);

    if (r == 0 && !rest_is_named(areas, definition))
        r = mst_why_set(why, -EINVAL, "VM %s: its areas have no shadow and no delta", definition->name);
    return r < 0 ? r : map_rest(status, areas, mapped, why);
}

int mst_vmmap_open(const struct mst_status_map *status, const Mainstay__Areas *areas, const Mainstay__VmDefinition *definition,
                   uint64_t epoch, uint64_t instance, bool runs, struct mst_vmmap **ret_areas, int *ret_unlocked,
                   struct mst_why *why)
{
    struct mst_vmmap *mapped;
    void *data = NULL;
    int r = check_sizes(areas, definition, why);

    if (r < 0)
        return r;
    mapped = calloc(1, sizeof(*mapped));
    if (!mapped)
        return mst_why_set(why, -ENOMEM, "no memory for the areas of VM %s", definition->name);
    mapped->ram_fd = mapped->disk_fd = -1;
    mapped->disk_bytes = areas->has_disk_bytes ? areas->disk_bytes : 0;
    mapped->map.ram_bytes = areas->ram_bytes;
    mapped->map.record = status->area->vms[areas->slot].save;
    mapped->map.epoch = epoch;
    mapped->map.instance = instance;
    r = mst_save_layout(areas->ram_bytes, &mapped->layout);
    if (r < 0) {
        mst_why_set(why, r, "VM %s: RAM of %" PRIu64 " bytes has no save layout", definition->name, areas->ram_bytes);
        goto fail;
    }
    mapped->save_bytes = mapped->layout.bytes;
    r = map_ram(status, areas, mapped, why);
    if (r < 0)
        goto fail;
    *ret_unlocked = mlock2(mapped->map.ram, areas->ram_bytes, runs ? 0 : MLOCK_ONFAULT) < 0 ? errno : 0;
    r = map_file(status->folder, areas->save, mapped->save_bytes, NULL, &data, NULL, NULL, why);
    if (r < 0)
        goto fail;
    mapped->map.save = data;
    if (rest_is_named(areas, definition)) {
        r = map_rest(status, areas, mapped, why);
        if (r < 0)
            goto fail;
    }
    *ret_areas = mapped;
    return 0;
fail:
    mst_vmmap_close(mapped);
    return r;
}

void mst_vmmap_close(struct mst_vmmap *areas)
{
    if (!areas)
        return;
    if (areas->map.ram)
        munmap((void *)(uintptr_t)areas->map.ram, areas->map.ram_bytes);
    if (areas->map.save)
        munmap(areas->map.save, areas->save_bytes);
    if (areas->map.shadow)
        munmap(areas->map.shadow, areas->map.ram_bytes);
    if (areas->map.delta)
        munmap(areas->map.delta, areas->delta_bytes);
    if (areas->ram_fd >= 0)
        close(areas->ram_fd);
    if (areas->disk_fd >= 0)
        close(areas->disk_fd);
    free(areas->ram_path);
    free(areas->disk_path);
    free(areas);
}
