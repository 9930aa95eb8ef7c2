#ifndef MST_AGENT_SAVED_STATE_H
#define MST_AGENT_SAVED_STATE_H

#include "base/err.h"
#include "mainstay.pb-c.h"

#include <stddef.h>
#include <stdint.h>

/* A saved state on disk (`boot: state`): DIR/ram.zst, DIR/device, DIR/definition.yaml. Any thread. */

/* Unpacks PATH, which must hold exactly ram_bytes (memory, and behind it the disk in main storage), into ram. -EBADMSG (no zstd stream, damaged, another size), -errno; with why. */
int mst_saved_ram_unpack(const char *path, uint8_t *ram, uint64_t ram_bytes, struct mst_why *why);
/* Reads DIR/device; *ret_stream is freed with free(3). -EFBIG over MST_DEVICE_BYTES_MAX, -ENODATA empty, -errno; with why. */
int mst_saved_device_read(const char *dir, char **ret_stream, size_t *ret_bytes, struct mst_why *why);

/* The machine that a definition builds: the definition itself, or, when it starts from a saved state, the one the state was saved
 * with (machine, cpu, vcpus, boot files), as a state loads only into the machine it was saved from. Its disks have the paths of definition.
 * *ret_machine is freed with mainstay__vm_definition__free_unpacked(m, NULL).
 * -EINVAL (memory or disks differ, no kernel), and of mst_vm_definition_load; with why. */
int mst_saved_machine(const Mainstay__VmDefinition *definition, Mainstay__VmDefinition **ret_machine, struct mst_why *why);

#endif
