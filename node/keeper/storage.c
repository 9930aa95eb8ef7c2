#include "node/keeper/storage.h"

#include "base/file.h"
#include "shm/save.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

const char *const mst_area_suffix[MST_AREA_KINDS] = {"ram", "save", "shadow", "delta"};

static uint64_t mib_up(uint64_t bytes)
{
    return (bytes >> 20) + ((bytes & ((1u << 20) - 1)) != 0);
}

int mst_budget_take(struct mst_budget *budget, uint64_t bytes, struct mst_why *why)
{
    if (bytes > budget->total_bytes - budget->used_bytes)
        return mst_why_set(why, -ENOSPC, "needs %" PRIu64 " MiB of main storage; %" PRIu64 " of %" PRIu64 " MiB are in use",
                           mib_up(bytes), mib_up(budget->used_bytes), budget->total_bytes >> 20);
    budget->used_bytes += bytes;
    return 0;
}

void mst_budget_give(struct mst_budget *budget, uint64_t bytes)
{
    budget->used_bytes -= bytes < budget->used_bytes ? bytes : budget->used_bytes;
}

int mst_areas_plan(struct mst_areas *areas, const char *vm, uint64_t epoch, uint64_t ram_bytes, enum mst_areas_for what)
{
    struct mst_save_layout save;
    struct mst_delta_layout delta;
    int r, i;

    *areas = (struct mst_areas){.epoch = epoch};
    if (strlen(vm) >= sizeof(areas->vm))
        return -EINVAL;
    memcpy(areas->vm, vm, strlen(vm) + 1);
    r = mst_save_layout(ram_bytes, &save);
    if (r < 0)
        return r;
    areas->area[MST_AREA_RAM].bytes = what == MST_AREAS_IMAGE ? 0 : ram_bytes;
    areas->area[MST_AREA_SAVE].bytes = save.bytes;
    if (what != MST_AREAS_NONE) {
        /* an image's, and its source's, has room for all pages: docs/decisions/0007 */
        areas->delta_capacity = what == MST_AREAS_LOCAL ? mst_delta_capacity(ram_bytes) : (uint32_t)(ram_bytes / MST_PAGE_BYTES);
        r = mst_delta_layout(areas->delta_capacity, &delta);
        if (r < 0)
            return r;
        areas->area[MST_AREA_SHADOW].bytes = ram_bytes;
        areas->area[MST_AREA_DELTA].bytes = delta.bytes;
    }
    for (i = 0; i < MST_AREA_KINDS; i++)
        areas->bytes += areas->area[i].bytes;
    return 0;
}

static int area_path(const char *folder, const struct mst_areas *areas, const char *suffix, char *buf, size_t size)
{
    return mst_path(buf, size, "%s/%s.e%" PRIu64 ".%s", folder, areas->vm, areas->epoch, suffix);
}

int mst_area_path(const char *folder, const struct mst_areas *areas, enum mst_area_kind kind, char *buf, size_t size)
{
    return area_path(folder, areas, mst_area_suffix[kind], buf, size);
}

int mst_disk_path(const char *folder, const struct mst_areas *areas, char *buf, size_t size)
{
    return area_path(folder, areas, "disk", buf, size);
}

/* at: NULL, or where in a range that was reserved for it. */
static int map_fd(int fd, uint64_t bytes, uint8_t *at, uint8_t **ret_addr)
{
    void *addr = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | (at ? MAP_FIXED : 0), fd, 0);

    if (addr == MAP_FAILED)
        return -errno;
    /* A core of the keeper with every guest in it helps nobody. */
    madvise(addr, bytes, MADV_DONTDUMP);
    *ret_addr = addr;
    return 0;
}

/* at: as of map_fd. */
typedef int (*file_map_fn)(const char *path, uint64_t bytes, uint8_t *at, uint8_t **ret_addr, struct mst_why *why);

/* Of its size, all holes. Its descriptor, or -errno. */
static int file_new(const char *path, uint64_t bytes, struct mst_why *why)
{
    int fd, r;

    if (bytes > INT64_MAX)
        return -EFBIG;
    if (unlink(path) < 0 && errno != ENOENT)
        return mst_why_set(why, -errno, "%s: cannot remove the old file: %s", path, strerror(errno));
    fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return mst_why_set(why, -errno, "%s: %s", path, strerror(errno));
    if (ftruncate(fd, (off_t)bytes) == 0)
        return fd;
    r = mst_why_set(why, -errno, "%s: %" PRIu64 " bytes: %s", path, bytes, strerror(errno));
    close(fd);
    unlink(path);
    return r;
}

/* One of ours that is there already, of exactly that size. Its descriptor, or -EBADMSG. */
static int file_open(const char *path, uint64_t bytes, struct mst_why *why)
{
    struct stat st;
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);

    if (fd < 0)
        return mst_why_set(why, -EBADMSG, "%s: %s", path, strerror(errno));
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_uid == geteuid() && (uint64_t)st.st_size == bytes)
        return fd;
    close(fd);
    return mst_why_set(why, -EBADMSG, "%s is not a file of ours with %" PRIu64 " bytes", path, bytes);
}

/* All its pages now: a full tmpfs must be an error here and not a SIGBUS in QEMU. fd is closed; the file is removed on failure. */
static int file_fill(int fd, const char *path, uint64_t bytes, uint8_t *at, uint8_t **ret_addr, struct mst_why *why)
{
    int r;

    do
        r = -posix_fallocate(fd, 0, (off_t)bytes);
    while (r == -EINTR);
    if (r == 0)
        r = map_fd(fd, bytes, at, ret_addr);
    close(fd);
    if (r < 0) {
        unlink(path);
        return mst_why_set(why, r, "%s: %" PRIu64 " bytes: %s", path, bytes, strerror(-r));
    }
    return 0;
}

static int file_make(const char *path, uint64_t bytes, uint8_t *at, uint8_t **ret_addr, struct mst_why *why)
{
    int fd = file_new(path, bytes, why);

    return fd < 0 ? fd : file_fill(fd, path, bytes, at, ret_addr, why);
}

/* One that was handed over. */
static int file_take(const char *path, uint64_t bytes, uint8_t *at, uint8_t **ret_addr, struct mst_why *why)
{
    int fd = file_open(path, bytes, why);

    return fd < 0 ? fd : file_fill(fd, path, bytes, at, ret_addr, why);
}

static int file_adopt(const char *path, uint64_t bytes, uint8_t *at, uint8_t **ret_addr, struct mst_why *why)
{
    int fd = file_open(path, bytes, why), r;

    if (fd < 0)
        return fd;
    r = map_fd(fd, bytes, at, ret_addr);
    close(fd);
    return r;
}

/* RAM and the disk behind it: both files into one range, which counts as mapped as soon as it is reserved. */
static int map_with_disk(const char *folder, struct mst_areas *areas, file_map_fn map, struct mst_why *why)
{
    uint64_t bytes = areas->area[MST_AREA_RAM].bytes, ram_bytes = bytes - areas->disk_bytes;
    uint8_t *range = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0), *at;
    char path[PATH_MAX];
    int r;

    if (range == MAP_FAILED)
        return mst_why_set(why, -errno, "no addresses for %" PRIu64 " bytes: %s", bytes, strerror(errno));
    areas->area[MST_AREA_RAM].addr = range;
    r = mst_area_path(folder, areas, MST_AREA_RAM, path, sizeof(path));
    if (r == 0)
        r = map(path, ram_bytes, range, &at, why);
    if (r == 0)
        r = mst_disk_path(folder, areas, path, sizeof(path));
    return r < 0 ? r : map(path, areas->disk_bytes, range + ram_bytes, &at, why);
}

bool mst_areas_whole(const struct mst_areas *areas)
{
    for (int i = 0; i < MST_AREA_KINDS; i++)
        if (areas->area[i].bytes && !areas->area[i].addr)
            return false;
    return true;
}

/* ram_map: how the files of RAM and disk are had, map: all others. */
static int map_kinds(const char *folder, struct mst_areas *areas, unsigned kinds, file_map_fn ram_map, file_map_fn map,
                     struct mst_why *why)
{
    char path[PATH_MAX];
    int r = 0, i;

    for (i = 0; i < MST_AREA_KINDS && r == 0; i++) {
        if (!areas->area[i].bytes || !(kinds & 1u << i))
            continue;
        if (i == MST_AREA_RAM && areas->disk_bytes) {
            r = map_with_disk(folder, areas, ram_map, why);
            continue;
        }
        r = mst_area_path(folder, areas, (enum mst_area_kind)i, path, sizeof(path));
        if (r == 0)
            r = (i == MST_AREA_RAM ? ram_map : map)(path, areas->area[i].bytes, NULL, &areas->area[i].addr, why);
    }
    return r;
}

static void unlink_kinds(const char *folder, const struct mst_areas *areas, unsigned kinds)
{
    char path[PATH_MAX];
    int i;

    for (i = 0; i < MST_AREA_KINDS; i++)
        if (kinds & 1u << i && areas->area[i].addr &&
            mst_area_path(folder, areas, (enum mst_area_kind)i, path, sizeof(path)) == 0)
            unlink(path);
    if (kinds & 1u << MST_AREA_RAM && areas->area[MST_AREA_RAM].addr && areas->disk_bytes &&
        mst_disk_path(folder, areas, path, sizeof(path)) == 0)
        unlink(path);
}

static void unmap_kinds(struct mst_areas *areas, unsigned kinds)
{
    int i;

    for (i = 0; i < MST_AREA_KINDS; i++) {
        if (!(kinds & 1u << i) || !areas->area[i].addr)
            continue;
        munmap(areas->area[i].addr, areas->area[i].bytes);
        areas->area[i].addr = NULL;
    }
}

int mst_areas_make(const char *folder, struct mst_areas *areas, unsigned kinds, struct mst_why *why)
{
    int r = map_kinds(folder, areas, kinds, areas->ram_there ? file_take : file_make, file_make, why);

    if (r < 0) {
        unlink_kinds(folder, areas, kinds);
        unmap_kinds(areas, kinds);
    }
    return r;
}

int mst_areas_adopt(const char *folder, struct mst_areas *areas, struct mst_why *why)
{
    int r = map_kinds(folder, areas, MST_AREAS_ALL, file_adopt, file_adopt, why);

    if (r < 0)
        mst_areas_unmap(folder, areas, false);
    return r;
}

void mst_areas_unlink(const char *folder, const struct mst_areas *areas)
{
    unlink_kinds(folder, areas, MST_AREAS_ALL);
}

void mst_areas_unmap(const char *folder, struct mst_areas *areas, bool unlink_files)
{
    if (unlink_files)
        mst_areas_unlink(folder, areas);
    unmap_kinds(areas, MST_AREAS_ALL);
}

/* As paths of RAM and disk; 0 or -errno. */
static int ram_paths(const char *folder, const struct mst_areas *areas, char ram[PATH_MAX], char disk[PATH_MAX])
{
    int r = mst_area_path(folder, areas, MST_AREA_RAM, ram, PATH_MAX);

    return r < 0 ? r : mst_disk_path(folder, areas, disk, PATH_MAX);
}

int mst_ram_make(const char *folder, const struct mst_areas *image, uint64_t bytes, uint64_t disk_bytes, struct mst_why *why)
{
    char ram[PATH_MAX], disk[PATH_MAX];
    int r = ram_paths(folder, image, ram, disk);

    if (r == 0)
        r = file_new(ram, bytes - disk_bytes, why);
    if (r < 0)
        return r;
    close(r);
    r = disk_bytes ? file_new(disk, disk_bytes, why) : 0;
    if (r > 0)
        close(r);
    if (r < 0)
        unlink(ram);
    return r < 0 ? r : 0;
}

void mst_ram_remove(const char *folder, const struct mst_areas *image)
{
    char ram[PATH_MAX], disk[PATH_MAX];

    if (ram_paths(folder, image, ram, disk) < 0)
        return;
    unlink(ram);
    unlink(disk);
}

int mst_ram_hand_over(const char *folder, const struct mst_areas *image, struct mst_areas *areas)
{
    char from[PATH_MAX], from_disk[PATH_MAX], to[PATH_MAX], to_disk[PATH_MAX];
    int r = ram_paths(folder, image, from, from_disk);

    if (r == 0)
        r = ram_paths(folder, areas, to, to_disk);
    if (r == 0 && rename(from, to) < 0)
        r = -errno;
    if (r == 0 && areas->disk_bytes && rename(from_disk, to_disk) < 0) {
        r = -errno;
        rename(to, from);
    }
    if (r == 0)
        areas->ram_there = true;
    return r;
}

int mst_fixed_make(const char *folder, const char *name, size_t bytes, void **ret_addr, struct mst_why *why)
{
    char path[PATH_MAX];
    uint8_t *addr = NULL;
    int r;

    r = mst_path(path, sizeof(path), "%s/%s", folder, name);
    if (r == 0)
        r = file_make(path, bytes, NULL, &addr, why);
    if (r < 0)
        return r;
    *ret_addr = addr;
    return 0;
}

int mst_folder_make(const char *folder, struct mst_why *why)
{
    struct statfs fs;
    struct stat st;
    int r;

    r = mst_mkdirs(folder, 0700);
    if (r < 0)
        return mst_why_set(why, r, "cannot make the main-storage folder %s: %s", folder, strerror(-r));
    if (lstat(folder, &st) < 0)
        return mst_why_set(why, -errno, "%s: %s", folder, strerror(errno));
    if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid())
        return mst_why_set(why, -EPERM, "main-storage folder %s is not a folder of user %u: remove it, or set `main-storage`",
                           folder, geteuid());
    if (chmod(folder, 0700) < 0 || statfs(folder, &fs) < 0)
        return mst_why_set(why, -errno, "%s: %s", folder, strerror(errno));
    return fs.f_type == TMPFS_MAGIC || fs.f_type == HUGETLBFS_MAGIC ? 0 : 1;
}
