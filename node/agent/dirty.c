#include "node/agent/dirty.h"

#include "base/file.h"
#include "base/limits.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define PAGEMAP_SOFT_DIRTY (UINT64_C(1) << 55)
#define LOOK_ENTRIES       4096u /* pagemap entries read at once: 32 KiB */
#define CLEAR_SOFT_DIRTY   "4"

/* PAGEMAP_SCAN of Linux 6.7 and newer (Documentation/admin-guide/mm/pagemap.rst), which the headers of Debian 12 do not know: it names ranges of
 * pages that have the bit, instead of 8 bytes for every page there is. */
struct scan_range {
    uint64_t start, end, categories;
};
struct scan {
    uint64_t size, flags;
    uint64_t start, end, walk_end; /* addresses; walk_end: how far it got */
    uint64_t ranges, ranges_max;
    uint64_t pages_max;
    uint64_t inverted, mask, any, returned; /* categories */
};
#define SCAN            _IOWR('f', 16, struct scan)
#define SCAN_SOFT_DIRTY (UINT64_C(1) << 7)
#define SCAN_RANGES     1024u

struct range { /* one mapping of one of the files */
    uint64_t address;
    uint64_t first_page, pages; /* in the RAM area */
};

struct file {
    struct stat st;
    uint64_t first_page, pages; /* in the RAM area */
};

struct mst_dirty {
    int pagemap_fd, clear_fd;
    uint64_t pages;
    uint64_t *set; /* one bit for each page */
    uint64_t in_set;
    struct range *ranges;
    unsigned range_count;
    bool no_scan; /* this kernel has no PAGEMAP_SCAN, or not for these bits */
    uint64_t entries[LOOK_ENTRIES];
    struct scan_range found[SCAN_RANGES];
};

int mst_dirty_probe(struct mst_why *why)
{
    volatile uint8_t *page = mmap(NULL, MST_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    off_t at = (off_t)((uintptr_t)page / MST_PAGE_BYTES * sizeof(uint64_t));
    uint64_t before = 0, after = 0;
    int pagemap_fd = -1, r;

    if (page == MAP_FAILED)
        return mst_why_set(why, -errno, "cannot map a page to try soft-dirty bits with");
    page[0] = 1;
    pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (pagemap_fd < 0) {
        r = mst_why_set(why, -errno, "cannot read /proc/self/pagemap: %s", mst_errname(errno));
        goto unmap;
    }
    r = mst_file_poke("/proc/self/clear_refs", CLEAR_SOFT_DIRTY);
    if (r < 0) {
        mst_why_set(why, r, "cannot write /proc/self/clear_refs: %s", mst_errname(r));
        goto close_fd;
    }
    if (pread(pagemap_fd, &before, sizeof(before), at) != sizeof(before)) {
        r = mst_why_set(why, -EIO, "cannot read /proc/self/pagemap");
        goto close_fd;
    }
    page[0] = 2;
    if (pread(pagemap_fd, &after, sizeof(after), at) != sizeof(after)) {
        r = mst_why_set(why, -EIO, "cannot read /proc/self/pagemap");
        goto close_fd;
    }
    r = 0;
    if ((before & PAGEMAP_SOFT_DIRTY) || !(after & PAGEMAP_SOFT_DIRTY))
        r = mst_why_set(why, -EOPNOTSUPP, "this kernel keeps no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)");
close_fd:
    close(pagemap_fd);
unmap:
    munmap((void *)page, MST_PAGE_BYTES);
    return r;
}

static int add_range(struct mst_dirty *dirty, const struct file *file, uint64_t start, uint64_t end, uint64_t offset)
{
    struct range *grown;
    uint64_t first = offset / MST_PAGE_BYTES, pages = (end - start) / MST_PAGE_BYTES;

    if (first >= file->pages)
        return 0;
    if (pages > file->pages - first)
        pages = file->pages - first;
    grown = reallocarray(dirty->ranges, dirty->range_count + 1, sizeof(*grown));
    if (!grown)
        return -ENOMEM;
    dirty->ranges = grown;
    dirty->ranges[dirty->range_count++] =
        (struct range){.address = start, .first_page = file->first_page + first, .pages = pages};
    return 0;
}

static int range_order(const void *left, const void *right)
{
    const struct range *a = left, *b = right;

    return (a->first_page > b->first_page) - (a->first_page < b->first_page);
}

/* Writable mappings of the files, by device and inode: the path in maps may be another name of one. */
static int find_ranges(struct mst_dirty *dirty, pid_t pid, const struct file files[], unsigned count, struct mst_why *why)
{
    char path[64], *line = NULL;
    uint64_t covered = 0;
    size_t room = 0;
    FILE *maps;
    int r = 0;

    snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
    maps = fopen(path, "re");
    if (!maps)
        return mst_why_set(why, -errno, "cannot read %s: %s", path, mst_errname(errno));
    while (r == 0 && getline(&line, &room, maps) > 0) {
        uint64_t start, end, offset, inode;
        unsigned major_number, minor_number;
        char mode[5];

        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64, &start, &end, mode, &offset, &major_number,
                   &minor_number, &inode) != 7)
            continue;
        if (mode[1] != 'w' || mode[3] != 's' || end <= start)
            continue;
        for (unsigned i = 0; i < count && r == 0; i++)
            if (inode == files[i].st.st_ino && makedev(major_number, minor_number) == files[i].st.st_dev)
                r = add_range(dirty, &files[i], start, end, offset);
    }
    free(line);
    fclose(maps);
    if (r < 0)
        return mst_why_set(why, r, "no memory for the mappings of process %d", (int)pid);
    if (dirty->range_count > 0)
        qsort(dirty->ranges, dirty->range_count, sizeof(*dirty->ranges), range_order);
    for (unsigned i = 0; i < dirty->range_count && dirty->ranges[i].first_page <= covered; i++)
        if (dirty->ranges[i].first_page + dirty->ranges[i].pages > covered)
            covered = dirty->ranges[i].first_page + dirty->ranges[i].pages;
    if (covered < dirty->pages)
        return mst_why_set(why, -ENXIO, "process %d maps only the first %" PRIu64 " of %" PRIu64 " pages of its RAM", (int)pid,
                           covered, dirty->pages);
    return 0;
}

int mst_dirty_open(pid_t pid, const struct mst_dirty_file files[MST_DIRTY_FILES_MAX], struct mst_dirty **ret_dirty,
                   struct mst_why *why)
{
    struct mst_dirty *dirty = calloc(1, sizeof(*dirty));
    struct file looked[MST_DIRTY_FILES_MAX];
    unsigned count = 0;
    char path[64];
    int r;

    if (!dirty)
        return mst_why_set(why, -ENOMEM, "no memory for dirty page tracking");
    dirty->pagemap_fd = dirty->clear_fd = -1;
    for (; count < MST_DIRTY_FILES_MAX && files[count].fd >= 0; count++) {
        struct file *file = &looked[count];

        if (fstat(files[count].fd, &file->st) < 0) {
            r = mst_why_set(why, -errno, "cannot look at the RAM file: %s", mst_errname(errno));
            goto fail;
        }
        file->first_page = dirty->pages;
        file->pages = files[count].bytes / MST_PAGE_BYTES;
        dirty->pages += file->pages;
    }
    if (dirty->pages == 0) {
        r = mst_why_set(why, -EINVAL, "no memory to look at");
        goto fail;
    }
    dirty->set = calloc((dirty->pages + 63) / 64, sizeof(*dirty->set));
    if (!dirty->set) {
        r = mst_why_set(why, -ENOMEM, "no memory for dirty page tracking");
        goto fail;
    }
    r = find_ranges(dirty, pid, looked, count, why);
    if (r < 0)
        goto fail;
    snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
    dirty->pagemap_fd = open(path, O_RDONLY | O_CLOEXEC);
    if (dirty->pagemap_fd < 0) {
        r = mst_why_set(why, -errno, "cannot read %s: %s", path, mst_errname(errno));
        goto fail;
    }
    /* Kept open: should the process end and its number be used again, these still mean the old process. */
    snprintf(path, sizeof(path), "/proc/%d/clear_refs", (int)pid);
    dirty->clear_fd = open(path, O_WRONLY | O_CLOEXEC);
    if (dirty->clear_fd < 0) {
        r = mst_why_set(why, -errno, "cannot write %s: %s", path, mst_errname(errno));
        goto fail;
    }
    *ret_dirty = dirty;
    return 0;
fail:
    mst_dirty_close(dirty);
    return r;
}

void mst_dirty_close(struct mst_dirty *dirty)
{
    if (!dirty)
        return;
    if (dirty->pagemap_fd >= 0)
        close(dirty->pagemap_fd);
    if (dirty->clear_fd >= 0)
        close(dirty->clear_fd);
    free(dirty->ranges);
    free(dirty->set);
    free(dirty);
}

static void put(struct mst_dirty *dirty, uint64_t page)
{
    uint64_t bit = UINT64_C(1) << (page % 64);

    dirty->in_set += !(dirty->set[page / 64] & bit);
    dirty->set[page / 64] |= bit;
}

/* Entries for want pages of a mapping from its page done on. Their number, or -errno. */
static ssize_t entries_read(struct mst_dirty *dirty, const struct range *range, uint64_t done, uint64_t want)
{
    off_t at = (off_t)((range->address / MST_PAGE_BYTES + done) * sizeof(uint64_t));
    ssize_t n;

    do
        n = pread(dirty->pagemap_fd, dirty->entries, want * sizeof(uint64_t), at);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    return n < (ssize_t)sizeof(uint64_t) ? -ENXIO : n / (ssize_t)sizeof(uint64_t); /* -ENXIO: the process is gone */
}

/* -EOPNOTSUPP: nothing was looked at; -ESRCH: the process is gone. */
static int scan_range(struct mst_dirty *dirty, const struct range *range)
{
    uint64_t end = range->address + range->pages * MST_PAGE_BYTES;
    struct scan scan = {.size = sizeof(scan),
                        .start = range->address,
                        .end = end,
                        .ranges = (uintptr_t)dirty->found,
                        .ranges_max = SCAN_RANGES,
                        .mask = SCAN_SOFT_DIRTY,
                        .returned = SCAN_SOFT_DIRTY};

    while (scan.start < end) {
        int count = ioctl(dirty->pagemap_fd, SCAN, &scan);

        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return scan.start == range->address && (errno == ENOTTY || errno == EINVAL) ? -EOPNOTSUPP : -errno;
        for (int i = 0; i < count; i++)
            for (uint64_t at = dirty->found[i].start; at < dirty->found[i].end; at += MST_PAGE_BYTES)
                put(dirty, range->first_page + (at - range->address) / MST_PAGE_BYTES);
        if (scan.walk_end <= scan.start)
            return -EIO;
        scan.start = scan.walk_end;
    }
    return 0;
}

static int look_range(struct mst_dirty *dirty, const struct range *range)
{
    uint64_t done = 0;

    if (!dirty->no_scan) {
        int r = scan_range(dirty, range);

        if (r != -EOPNOTSUPP)
            return r;
        dirty->no_scan = true;
    }
    while (done < range->pages) {
        ssize_t n = entries_read(dirty, range, done, range->pages - done < LOOK_ENTRIES ? range->pages - done : LOOK_ENTRIES);

        if (n < 0)
            return (int)n;
        for (uint64_t i = 0; i < (uint64_t)n; i++)
            if (dirty->entries[i] & PAGEMAP_SOFT_DIRTY)
                put(dirty, range->first_page + done + i);
        done += (uint64_t)n;
    }
    return 0;
}

int64_t mst_dirty_look(struct mst_dirty *dirty)
{
    for (unsigned i = 0; i < dirty->range_count; i++) {
        int r = look_range(dirty, &dirty->ranges[i]);

        if (r < 0)
            return r;
    }
    return (int64_t)dirty->in_set;
}

int mst_dirty_clear(struct mst_dirty *dirty)
{
    memset(dirty->set, 0, (dirty->pages + 63) / 64 * sizeof(*dirty->set));
    dirty->in_set = 0;
    return mst_write_all(dirty->clear_fd, CLEAR_SOFT_DIRTY, 1);
}

uint64_t mst_dirty_next(const struct mst_dirty *dirty, uint64_t page)
{
    for (uint64_t word = page / 64; word < (dirty->pages + 63) / 64; word++) {
        uint64_t bits = dirty->set[word];

        if (word == page / 64)
            bits &= ~UINT64_C(0) << (page % 64);
        if (bits)
            return word * 64 + (uint64_t)__builtin_ctzll(bits);
    }
    return UINT64_MAX;
}
