#include "fuzz.h"

#include "base/file.h"
#include "base/limits.h"
#include "node/agent/saved_state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zstd.h>

/* A saved state on disk: packed RAM, as raw bytes or as a whole stream that was cut and changed; device state; the definition of its machine. First
 * byte: which. */

enum { RAW, PACKED, MACHINE, DEVICE, KINDS };

#define RAM_MAX (256u << 10)

static int memfd(const void *data, size_t len, char path[64])
{
    int fd = memfd_create("fuzz", MFD_CLOEXEC);

    FUZZ_CHECK(fd >= 0 && mst_write_all(fd, data, len) == 0);
    snprintf(path, 64, "/proc/self/fd/%d", fd);
    return fd;
}

static int unpack(const void *stream, size_t len, uint64_t ram_bytes, uint8_t **ret_ram)
{
    uint8_t *ram = malloc(ram_bytes ? ram_bytes : 1);
    struct mst_why why = {""};
    char path[64];
    int fd = memfd(stream, len, path), r;

    FUZZ_CHECK(ram);
    memset(ram, 0xee, ram_bytes);
    r = mst_saved_ram_unpack(path, ram, ram_bytes, &why);
    FUZZ_CHECK(r == 0 || (r == -EBADMSG && why.text[0]));
    close(fd);
    *ret_ram = ram;
    return r;
}

static void raw(struct fuzz_in *in)
{
    uint64_t ram_bytes = fuzz_u32(in) % RAM_MAX;
    uint8_t *ram;

    (void)unpack(in->at, in->left, ram_bytes, &ram);
    free(ram);
}

/* A stream of what the input says, so often; then cut, doubled or changed. Whole, and of the right size, it must be taken, and to the byte. */
static void packed(struct fuzz_in *in)
{
    static uint8_t plain[RAM_MAX], stream[2 * RAM_MAX];
    uint64_t ram_bytes = 1 + fuzz_u32(in) % RAM_MAX, plain_bytes = ram_bytes + fuzz_u8(in) % 3 - 1;
    unsigned how = fuzz_u8(in);
    size_t cut = fuzz_u16(in), at = fuzz_u16(in), len, n;
    uint8_t byte = fuzz_u8(in);
    const uint8_t *piece = fuzz_piece(in, &len);
    uint8_t *ram;
    int r;

    plain_bytes = plain_bytes > RAM_MAX ? RAM_MAX : plain_bytes;
    for (uint64_t i = 0; i < plain_bytes; i++)
        plain[i] = len > 0 ? piece[i % len] : 0;
    n = ZSTD_compress(stream, sizeof(stream), plain, plain_bytes, how % 3);
    FUZZ_CHECK(!ZSTD_isError(n));
    if (how & 0x80 && cut < n)
        n = cut;
    if (how & 0x40 && n > 0)
        stream[at % n] ^= byte;
    if (how & 0x20 && n <= sizeof(stream) / 2) {
        memcpy(stream + n, stream, n);
        n *= 2;
    }
    r = unpack(stream, n, ram_bytes, &ram);
    if (!(how & 0xe0))
        FUZZ_CHECK((r == 0) == (plain_bytes == ram_bytes) && (r < 0 || memcmp(ram, plain, ram_bytes) == 0));
    free(ram);
}

static void put_file(const char *name, const void *data, size_t len)
{
    char path[256];
    int fd;

    FUZZ_CHECK(mst_path(path, sizeof(path), "%s/%s", fuzz_folder(), name) == 0);
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    FUZZ_CHECK(fd >= 0 && mst_write_all(fd, data, len) == 0);
    close(fd);
}

static void machine(struct fuzz_in *in)
{
    Mainstay__VmDefinition def = MAINSTAY__VM_DEFINITION__INIT, *got;
    struct mst_why why = {""};
    int r;

    def.name = (char *)"web01";
    def.memory_mib = 1 + fuzz_u8(in);
    def.boot_state = (char *)fuzz_folder();
    put_file("definition.yaml", in->at, in->left);
    r = mst_saved_machine(&def, &got, &why);
    FUZZ_CHECK(r == 0 || why.text[0]);
    if (r < 0)
        return;
    FUZZ_CHECK(got->memory_mib == def.memory_mib && got->boot_kernel && got->boot_kernel[0]);
    mainstay__vm_definition__free_unpacked(got, NULL);
}

static void device(struct fuzz_in *in)
{
    struct mst_why why = {""};
    char *stream;
    size_t len;
    int r;

    put_file("device", in->at, in->left);
    r = mst_saved_device_read(fuzz_folder(), &stream, &len, &why);
    FUZZ_CHECK(r == (in->left > 0 ? 0 : -ENODATA));
    if (r < 0)
        return;
    FUZZ_CHECK(len == in->left && memcmp(stream, in->at, len) == 0);
    free(stream);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};

    switch (fuzz_u8(&in) % KINDS) {
    case RAW:
        raw(&in);
        break;
    case PACKED:
        packed(&in);
        break;
    case MACHINE:
        machine(&in);
        break;
    default:
        device(&in);
    }
    return 0;
}

static struct fuzz_out out;

static void packed_seed(const char *name, uint32_t ram_bytes, unsigned more, unsigned how, unsigned cut)
{
    out.len = 0;
    fuzz_put(&out, PACKED, 1);
    fuzz_put(&out, ram_bytes, 4);
    fuzz_put(&out, more, 1);
    fuzz_put(&out, how, 1);
    fuzz_put(&out, cut, 2);
    fuzz_put(&out, 9, 2);
    fuzz_put(&out, 1, 1);
    fuzz_put_piece(&out, "some memory of a guest ", 23);
    fuzz_seed(name, out.bytes, out.len);
}

void fuzz_seeds(void)
{
    static const char yaml[] =
        "name: linux\nmemory-mib: 8\nboot: { kernel: /boot/vmlinuz, initrd: /boot/initrd, append: quiet }\n";
    uint8_t stream[256];
    size_t n = ZSTD_compress(stream, sizeof(stream), "0123456789", 10, 3);

    fuzz_put(&out, RAW, 1);
    fuzz_put(&out, 10, 4);
    fuzz_put_bytes(&out, stream, n);
    fuzz_seed("raw", out.bytes, out.len);
    packed_seed("whole", 65535, 1, 1, 0);
    packed_seed("short", 65535, 0, 1, 0);
    packed_seed("long", 4095, 2, 1, 0);
    packed_seed("cut", 65535, 1, 0x80, 20);
    packed_seed("changed", 4095, 1, 0x40, 0);
    packed_seed("twice", 4095, 1, 0x20, 0);
    out.len = 0;
    fuzz_put(&out, MACHINE, 1);
    fuzz_put(&out, 7, 1);
    fuzz_put_bytes(&out, yaml, sizeof(yaml) - 1);
    fuzz_seed("machine", out.bytes, out.len);
    fuzz_seed("device", "\3QEVM", 5);
}
