#include "fuzz.h"

#include "base/file.h"
#include "node/agent/vmmap.h"
#include "node/keeper/takeover.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Files of main storage that an earlier keeper left, changed by the input: read by the next keeper, which keeps only what agrees with itself, and mapped
 * by an agent on the word of a message. Status records get right sums after most changes. */

enum { RAW, SUPER, INFO, SAVE, COPY, FILE_BYTES, FILE_CUT, FILE_GONE, FILE_LINK, OPS };

#define OLD       UINT64_C(7)
#define EPOCH     4u
#define RAM_BYTES (1u << 20)
#define DEVICE    64u

static const char *const vms[2] = {"web01", "db02"};
static struct mst_status_area whole, area;
static char folder[PATH_MAX];
static struct { /* the other files as they were made; only the beginning of a large one is in use */
    char path[PATH_MAX];
    uint64_t bytes;
    uint8_t *data; /* of all bytes */
    bool changed;
} files[8];
static unsigned files_count;

/* --- as an earlier keeper and agent left it --- */

static void file_note(const struct mst_areas *areas, enum mst_area_kind kind)
{
    if (!areas->area[kind].bytes)
        return;
    FUZZ_CHECK(mst_area_path(folder, areas, kind, files[files_count].path, sizeof(files[0].path)) == 0);
    files[files_count].bytes = areas->area[kind].bytes;
    files[files_count].data = fuzz_copy(areas->area[kind].addr, areas->area[kind].bytes);
    files_count++;
}

static void leave_vm(unsigned index, bool protect_local)
{
    struct mst_save_map map = {.ram_bytes = RAM_BYTES, .record = whole.vms[index].save, .epoch = EPOCH, .instance = OLD};
    struct mst_vm_slot slot = {.run_state = MST_RUN_RUNNING, .ram_bytes = RAM_BYTES};
    struct mst_save_writer *writer;
    struct mst_areas areas;
    struct mst_why why;
    uint64_t room;

    FUZZ_CHECK(mst_areas_plan(&areas, vms[index], EPOCH, RAM_BYTES, protect_local ? MST_AREAS_LOCAL : MST_AREAS_NONE) == 0 &&
               mst_areas_make(folder, &areas, MST_AREAS_ALL, &why) == 0);
    map.ram = areas.area[MST_AREA_RAM].addr;
    map.save = areas.area[MST_AREA_SAVE].addr;
    map.shadow = areas.area[MST_AREA_SHADOW].addr;
    map.delta = areas.area[MST_AREA_DELTA].addr;
    map.delta_capacity = areas.delta_capacity;
    FUZZ_CHECK(mst_save_writer_new(&map, &writer) == 0);
    memset(mst_save_device(writer, &room), 1, DEVICE);
    FUZZ_CHECK(mst_save_commit_ram(writer, DEVICE, 1, 1, 1) == 0);
    if (protect_local) {
        mst_save_shadow_from_ram(writer);
        areas.area[MST_AREA_RAM].addr[7 * MST_PAGE_BYTES]++;
        mst_save_begin(writer);
        memset(mst_save_device(writer, &room), 2, DEVICE);
        FUZZ_CHECK(mst_save_stage(writer, 7) == 0 && mst_save_commit(writer, DEVICE, 1, 1, 1) == 0);
    }
    mst_save_writer_free(writer);
    snprintf(slot.vm, sizeof(slot.vm), "%s", vms[index]);
    slot.save_bytes = areas.area[MST_AREA_SAVE].bytes;
    slot.shadow_bytes = areas.area[MST_AREA_SHADOW].bytes;
    slot.delta_bytes = areas.area[MST_AREA_DELTA].bytes;
    mst_pub_write(whole.vms[index].info, EPOCH, OLD, &slot, sizeof(slot));
    for (int kind = 0; kind < MST_AREA_KINDS; kind++)
        file_note(&areas, (enum mst_area_kind)kind);
    mst_areas_unmap(folder, &areas, false);
}

static void whole_make(void)
{
    static const uint8_t boot_id[16] = {1, 2, 3};

    FUZZ_CHECK(mst_path(folder, sizeof(folder), "%s/main", fuzz_folder()) == 0 && mst_mkdirs(folder, 0700) == 0);
    mst_status_init(&whole, "lab", "n1", 1, OLD, boot_id, 1000);
    leave_vm(0, true);
    leave_vm(1, false);
}

static void files_restore(void)
{
    for (unsigned i = 0; i < files_count; i++) {
        int fd;

        if (!files[i].changed)
            continue;
        unlink(files[i].path);
        fd = open(files[i].path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        FUZZ_CHECK(fd >= 0 && ftruncate(fd, (off_t)files[i].bytes) == 0);
        for (uint64_t at = 0; at < files[i].bytes; at += MST_PAGE_BYTES) { /* sparse as it was */
            static const uint8_t zero[MST_PAGE_BYTES];

            if (memcmp(files[i].data + at, zero, sizeof(zero)) != 0)
                FUZZ_CHECK(pwrite(fd, files[i].data + at, sizeof(zero), (off_t)at) == (ssize_t)sizeof(zero));
        }
        close(fd);
        files[i].changed = false;
    }
}

/* --- changes --- */

static void patch(void *body, size_t body_bytes, size_t offset, const uint8_t *piece, size_t len)
{
    offset %= body_bytes;
    if (len > body_bytes - offset)
        len = body_bytes - offset;
    memcpy((uint8_t *)body + offset, piece, len);
}

static void republish(uint8_t slots[2][MST_PUB_SLOT_BYTES], size_t offset, const uint8_t *piece, size_t len)
{
    _Alignas(8) uint8_t body[MST_PUB_BODY_MAX] = {0};
    struct mst_pub_head head = {.epoch = EPOCH, .instance = OLD};

    (void)mst_pub_read(slots, &head, body, sizeof(body));
    patch(body, sizeof(body), offset, piece, len);
    mst_pub_write(slots, head.epoch, head.instance, body, sizeof(body));
}

static void change_file(unsigned op, unsigned index, uint32_t offset, const uint8_t *piece, size_t len)
{
    int fd;

    index %= files_count;
    files[index].changed = true;
    if (op == FILE_GONE || op == FILE_LINK) {
        unlink(files[index].path);
        if (op == FILE_LINK)
            FUZZ_CHECK(symlink(files[(index + 1) % files_count].path, files[index].path) == 0);
        return;
    }
    fd = open(files[index].path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return; /* gone, or a link */
    if (op == FILE_CUT)
        FUZZ_CHECK(ftruncate(fd, (off_t)(offset % (2 * files[index].bytes))) == 0);
    else
        FUZZ_CHECK(pwrite(fd, piece, len, (off_t)(offset % files[index].bytes)) == (ssize_t)len);
    close(fd);
}

static void change(unsigned op, unsigned index, uint32_t offset, const uint8_t *piece, size_t len)
{
    struct mst_vm_entry *vm = &area.vms[index % 4];

    switch (op) {
    case RAW:
        patch(&area, sizeof(area), offset, piece, len);
        break;
    case SUPER:
        patch(&area.super, sizeof(area.super), offset, piece, len);
        area.super.crc32c = mst_crc32c(&area.super, offsetof(struct mst_superblock, crc32c));
        break;
    case INFO:
        republish(vm->info, offset, piece, len);
        break;
    case SAVE:
        republish(vm->save, offset, piece, len);
        break;
    case COPY:
        *vm = area.vms[offset % 4];
        break;
    default:
        change_file(op, index, offset, piece, len);
    }
}

/* --- readers --- */

static void keeper(void)
{
    static const char *const keep[] = {"status", NULL};
    static struct mst_kept kept[MST_VMS_PER_NODE];
    struct mst_identity identity = {.cluster = "lab", .node = "n1", .node_id = 1, .host_boot_id = {1, 2, 3}};
    struct mst_budget budget = {.total_bytes = 64u << 20};
    struct mst_why why;
    uint64_t used = 0;
    unsigned count = 0;

    memset(kept, 0, sizeof(kept));
    FUZZ_CHECK(mst_takeover_read(folder, &identity, &budget, kept, &count, &why) == 0 && count <= MST_VMS_PER_NODE);
    for (unsigned i = 0; i < count; i++) {
        FUZZ_CHECK(kept[i].areas.area[MST_AREA_RAM].bytes == kept[i].record.ram_bytes && kept[i].areas.epoch != 0);
        for (unsigned kind = 0; kind < MST_AREA_KINDS; kind++) {
            FUZZ_CHECK(!kept[i].areas.area[kind].bytes == !kept[i].areas.area[kind].addr);
            if (kept[i].areas.area[kind].addr) /* mapped whole: the last byte is there */
                FUZZ_CHECK(kept[i].areas.area[kind].addr[kept[i].areas.area[kind].bytes - 1] <= UINT8_MAX);
        }
        used += kept[i].areas.bytes;
    }
    FUZZ_CHECK(budget.used_bytes == used && used <= budget.total_bytes);
    FUZZ_CHECK(mst_takeover_sweep(folder, kept, count, keep) >= 0);
    for (unsigned i = 0; i < files_count; i++) {
        struct stat st;

        if (lstat(files[i].path, &st) < 0) /* swept, as it was not kept */
            files[i].changed = true;
    }
    for (unsigned i = 0; i < count; i++)
        mst_areas_unmap(folder, &kept[i].areas, false);
}

static void agent(struct fuzz_in *in)
{
    Mainstay__VmDefinition def = MAINSTAY__VM_DEFINITION__INIT;
    Mainstay__Areas areas = MAINSTAY__AREAS__INIT;
    struct mst_status_map status;
    struct mst_vmmap *mapped;
    struct mst_why why = {""};
    char path[PATH_MAX];
    int unlocked, r;

    FUZZ_CHECK(mst_path(path, sizeof(path), "%s/status", folder) == 0);
    r = mst_status_map(path, OLD, &status, &why);
    FUZZ_CHECK(r == 0 || why.text[0]);
    if (r < 0)
        return;
    def.name = (char *)vms[0];
    def.memory_mib = 1 + (fuzz_u8(in) == 0xff);
    def.protect = fuzz_u8(in) & 1 ? MAINSTAY__PROTECT__PROTECT_NONE : MAINSTAY__PROTECT__PROTECT_LOCAL;
    areas.slot = fuzz_u8(in) % (MST_VMS_PER_NODE + 1);
    areas.ram_bytes = RAM_BYTES + (uint64_t)fuzz_u8(in) * MST_PAGE_BYTES;
    areas.ram = (char *)"web01.e4.ram";
    areas.save = (char *)"web01.e4.save";
    areas.shadow = (char *)"web01.e4.shadow";
    areas.delta = (char *)(fuzz_u8(in) & 1 ? "../main" : "web01.e4.delta");
    areas.has_delta_capacity = 1;
    areas.delta_capacity = fuzz_u32(in) ^ 256;
    r = mst_vmmap_open(&status, &areas, &def, EPOCH, OLD, false, &mapped, &unlocked, &why);
    FUZZ_CHECK(r == 0 || why.text[0]);
    if (r == 0) {
        FUZZ_CHECK(mapped->map.ram[mapped->map.ram_bytes - 1] <= UINT8_MAX &&
                   mapped->map.save[mapped->save_bytes - 1] <= UINT8_MAX);
        if (mapped->map.delta)
            FUZZ_CHECK(mapped->map.delta[mapped->delta_bytes - 1] <= UINT8_MAX);
        mst_vmmap_close(mapped);
    }
    mst_status_unmap(&status);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};
    char path[PATH_MAX];
    unsigned changes, cut;
    int fd;

    if (!folder[0])
        whole_make();
    files_restore();
    memcpy(&area, &whole, sizeof(area));
    changes = fuzz_u8(&in) % 16;
    cut = fuzz_u8(&in);
    for (; changes > 0 && in.left > 0; changes--) {
        unsigned op = fuzz_u8(&in) % OPS, index = fuzz_u8(&in);
        uint32_t offset = fuzz_u32(&in);
        size_t len;
        const uint8_t *piece = fuzz_piece(&in, &len);

        change(op, index, offset, piece, len);
    }
    FUZZ_CHECK(mst_path(path, sizeof(path), "%s/status", folder) == 0);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    FUZZ_CHECK(fd >= 0 && mst_write_all(fd, &area, sizeof(area) - (cut >= 0xf0 ? cut & 0xf : 0)) == 0);
    close(fd);
    agent(&in);
    keeper();
    return 0;
}

static struct fuzz_out out;

static void begin(unsigned changes)
{
    out.len = 0;
    fuzz_put(&out, changes, 1);
    fuzz_put(&out, 0, 1);
}

static void op(unsigned what, unsigned index, uint32_t offset, const void *piece, size_t len)
{
    fuzz_put(&out, what, 1);
    fuzz_put(&out, index, 1);
    fuzz_put(&out, offset, 4);
    fuzz_put_piece(&out, piece, len);
}

void fuzz_seeds(void)
{
    static const uint32_t number = 3;
    char name[32];

    begin(0);
    fuzz_seed("whole", out.bytes, out.len);
    for (unsigned what = 0; what < OPS; what++) {
        for (unsigned index = 0; index < 2; index++) {
            begin(1);
            op(what, index, 64 + 8 * what, &number, sizeof(number));
            snprintf(name, sizeof(name), "op-%u-%u", what, index);
            fuzz_seed(name, out.bytes, out.len);
        }
    }
    begin(3);
    op(COPY, 2, 0, "", 0);
    op(SAVE, 0, offsetof(struct mst_save_record, delta_pages), &number, sizeof(number));
    op(INFO, 1, offsetof(struct mst_vm_slot, ram_bytes), &number, sizeof(number));
    fuzz_seed("three", out.bytes, out.len);
}
