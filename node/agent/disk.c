#include "node/agent/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <unistd.h>

/* Looked at before it is opened: opening a device that is no disk may do something. */
static int check_file(const char *path, size_t index, bool writable, bool *ret_device, struct mst_why *why)
{
    struct stat st;
    int fd;

    if (stat(path, &st) < 0)
        return mst_why_set(why, -errno, "disks[%zu]: %s: %s on this node", index, path, mst_errname(errno));
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return mst_why_set(why, -EINVAL, "disks[%zu]: %s is neither a file nor a block device", index, path);
    fd = open(path, (writable ? O_RDWR | O_DIRECT : O_RDONLY) | O_CLOEXEC);
    if (fd < 0 && errno == EINVAL && writable)
        return mst_why_set(why, -EINVAL, "disks[%zu]: %s is on a file system without direct I/O, which a writable disk needs",
                           index, path);
    if (fd < 0)
        return mst_why_set(why, -errno, "disks[%zu]: %s: %s on this node", index, path, mst_errname(errno));
    *ret_device = S_ISBLK(st.st_mode);
    close(fd);
    return 0;
}

int mst_disks_check(const Mainstay__VmDefinition *machine, uint32_t *ret_devices, struct mst_why *why)
{
    int r = 0;

    *ret_devices = 0;
    for (size_t i = 0; i < machine->n_disks && r == 0; i++) {
        const Mainstay__VmDisk *disk = machine->disks[i];
        bool device = false;

        if (disk->path)
            r = check_file(disk->path, i, disk->has_writable && disk->writable, &device, why);
        *ret_devices |= device ? UINT32_C(1) << i : 0;
    }
    return r;
}

int mst_disk_fill(const char *path, uint8_t *disk, uint64_t bytes, struct mst_why *why)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC), r = 0;
    uint64_t done = 0;
    uint8_t over;

    if (fd < 0)
        return mst_why_set(why, -errno, "image %s: %s on this node", path, mst_errname(errno));
    for (;;) {
        ssize_t n = done < bytes ? read(fd, disk + done, bytes - done) : read(fd, &over, 1);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            r = mst_why_set(why, -errno, "cannot read the image %s: %s", path, mst_errname(errno));
        else if (n > 0 && done == bytes)
            r = mst_why_set(why, -EFBIG, "image %s is larger than its disk, which has %" PRIu64 " MiB", path, bytes >> 20);
        if (n <= 0 || r < 0)
            break;
        done += (uint64_t)n;
    }
    close(fd);
    return r;
}
