#ifndef MST_AGENT_DISK_H
#define MST_AGENT_DISK_H

#include "base/err.h"
#include "mainstay.pb-c.h"

#include <stddef.h>
#include <stdint.h>

/* What of a VM's disks has to do with this node's files. May wait for a network file system: worker threads only. */

/* Whether the paths of the machine's disks can be opened here as QEMU will open them, so that a refusal is a sentence of ours. *ret_devices: bit i for
 * disk i whose path is a block device. -errno of opening; -EINVAL neither a regular file nor a block device, or one to be written to on a file system
 * without direct I/O; with why. */
int mst_disks_check(const Mainstay__VmDefinition *machine, uint32_t *ret_devices, struct mst_why *why);

/* Fills disk (bytes, zero until now) from the raw image at path; behind its end it stays zero. -EFBIG (nothing behind the disk is
 * written), -errno; with why. */
int mst_disk_fill(const char *path, uint8_t *disk, uint64_t bytes, struct mst_why *why);

#endif
