#include "node/agent/saved_state.h"

#include "base/file.h"
#include "base/limits.h"
#include "conf/conf.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

static int unpack_stream(int fd, const char *path, uint8_t *ram, uint64_t ram_bytes, struct mst_why *why)
{
    ZSTD_DStream *stream = ZSTD_createDStream();
    size_t in_room = ZSTD_DStreamInSize(), left = 1;
    uint8_t *in = malloc(in_room), spare;
    ZSTD_outBuffer out = {.dst = ram, .size = ram_bytes};
    ZSTD_outBuffer over = {.dst = &spare, .size = 1}; /* where a byte too many would go */
    int r = 0;

    if (!stream || !in) {
        r = mst_why_set(why, -ENOMEM, "no memory to unpack %s", path);
        goto out;
    }
    for (;;) {
        ssize_t n = read(fd, in, in_room);
        ZSTD_inBuffer piece = {.src = in, .size = n > 0 ? (size_t)n : 0};

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            r = mst_why_set(why, -errno, "cannot read %s: %s", path, mst_errname(errno));
            break;
        }
        if (n == 0)
            break;
        while (r == 0 && piece.pos < piece.size) {
            left = ZSTD_decompressStream(stream, out.pos < out.size ? &out : &over, &piece);
            if (ZSTD_isError(left))
                r = mst_why_set(why, -EBADMSG, "%s is damaged: %s", path, ZSTD_getErrorName(left));
            else if (over.pos > 0)
                r = mst_why_set(why, -EBADMSG, "%s holds more than the %" PRIu64 " bytes of the VM's memory", path, ram_bytes);
        }
        if (r < 0)
            break;
    }
    while (r == 0 && left != 0 && out.pos < out.size) { /* what the stream still holds back */
        ZSTD_inBuffer nothing = {0};
        size_t before = out.pos;

        left = ZSTD_decompressStream(stream, &out, &nothing);
        if (ZSTD_isError(left) || out.pos == before)
            break;
    }
    if (r == 0 && (left != 0 || out.pos != ram_bytes))
        r = mst_why_set(why, -EBADMSG, "%s ends after %zu of the %" PRIu64 " bytes of the VM's memory", path, out.pos, ram_bytes);
out:
    free(in);
    ZSTD_freeDStream(stream);
    return r;
}

int mst_saved_ram_unpack(const char *path, uint8_t *ram, uint64_t ram_bytes, struct mst_why *why)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC), r;

    if (fd < 0)
        return mst_why_set(why, -errno, "cannot open %s: %s", path, mst_errname(errno));
    r = unpack_stream(fd, path, ram, ram_bytes, why);
    close(fd);
    return r;
}

int mst_saved_device_read(const char *dir, char **ret_stream, size_t *ret_bytes, struct mst_why *why)
{
    char path[4096];
    int r = mst_path(path, sizeof(path), "%s/device", dir);

    if (r == 0)
        r = mst_file_read(path, MST_DEVICE_BYTES_MAX, ret_stream, ret_bytes);
    if (r < 0)
        return mst_why_set(why, r, "cannot read the device state %s/device: %s", dir, mst_errname(r));
    if (*ret_bytes == 0) {
        free(*ret_stream);
        *ret_stream = NULL;
        return mst_why_set(why, -ENODATA, "the device state %s is empty", path);
    }
    return 0;
}

/* The guest's memory knows its disks: as many, of the same kinds and formats. Their paths are the VM's own. */
static int take_disks(Mainstay__VmDefinition *machine, const Mainstay__VmDefinition *definition, struct mst_why *why)
{
    const char *dir = definition->boot_state;
    Mainstay__VmDefinition *own;
    Mainstay__VmDisk **disks = machine->disks;

    if (machine->n_disks != definition->n_disks)
        return mst_why_set(why, -EINVAL, "disks: VM %s has %zu, but the saved state %s was made with %zu", definition->name,
                           definition->n_disks, dir, machine->n_disks);
    for (size_t i = 0; i < machine->n_disks; i++) {
        const Mainstay__VmDisk *now = definition->disks[i], *then = disks[i];

        if (!now->path != !then->path || now->format != then->format || (now->has_writable && now->writable) ||
            (then->has_writable && then->writable))
            return mst_why_set(why, -EINVAL, "disks[%zu]: is of another kind than the one that the saved state %s was made with",
                               i, dir);
        if (now->memory_mib != then->memory_mib)
            return mst_why_set(why, -EINVAL,
                               "disks[%zu].memory-mib: is %" PRIu32 ", but the saved state %s was made with %" PRIu32, i,
                               now->memory_mib, dir, then->memory_mib);
    }
    own = mst_vm_definition_copy(definition);
    if (!own)
        return mst_why_set(why, -ENOMEM, "no memory for the definition of VM %s", definition->name);
    machine->disks = own->disks;
    own->disks = disks;
    mainstay__vm_definition__free_unpacked(own, NULL);
    return 0;
}

int mst_saved_machine(const Mainstay__VmDefinition *definition, Mainstay__VmDefinition **ret_machine, struct mst_why *why)
{
    const char *dir = definition->boot_state;
    Mainstay__VmDefinition *machine = NULL;
    char path[4096];
    int r;

    if (!dir || !dir[0]) {
        machine = mst_vm_definition_copy(definition);
        if (!machine)
            return mst_why_set(why, -ENOMEM, "no memory for the definition of VM %s", definition->name);
        *ret_machine = machine;
        return 0;
    }
    r = mst_path(path, sizeof(path), "%s/definition.yaml", dir);
    if (r < 0)
        return mst_why_set(why, r, "saved state %s: name too long", dir);
    r = mst_vm_definition_load(path, &machine, why);
    if (r < 0)
        return r;
    if (machine->memory_mib != definition->memory_mib) {
        r = mst_why_set(why, -EINVAL, "memory-mib: VM %s has %" PRIu32 ", but the saved state %s was made with %" PRIu32,
                        definition->name, definition->memory_mib, dir, machine->memory_mib);
        goto fail;
    }
    if (!machine->boot_kernel || !machine->boot_kernel[0]) {
        r = mst_why_set(why, -EINVAL, "%s names no boot kernel, which the machine of the saved state needs", path);
        goto fail;
    }
    if (!machine->network != !definition->network) {
        r = mst_why_set(why, -EINVAL, "network: VM %s has %s, but the saved state %s was made with %s", definition->name,
                        definition->network ? "one" : "none", dir, machine->network ? "one" : "none");
        goto fail;
    }
    r = take_disks(machine, definition, why);
    if (r < 0)
        goto fail;
    *ret_machine = machine;
    return 0;
fail:
    mainstay__vm_definition__free_unpacked(machine, NULL);
    return r;
}
