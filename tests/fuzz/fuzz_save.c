#include "fuzz.h"

#include "shm/save.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* A VM's save area, changed by the input and read back in the order of shm/save.h, as a pull and a takeover do; then taken up again by a writer, as
 * an agent does that was restarted. What is accepted must be whole. First byte: which checkpoint is there: shadow and delta, shadow alone, the
 * RAM itself. Sums can be made right again by the input: whoever writes the area can. */

#define PAGES     8u
#define RAM_BYTES (PAGES * MST_PAGE_BYTES)
#define CAPACITY  4u
#define DEVICE    96u
#define EPOCH     7u
#define INSTANCE  99u

enum { RECORD, SLOTS, CRCS, TABLE, DELTA, SHADOW, RAM, DEVICE_STATE, SUM_TABLE, SUM_ALL, SUM_DEVICE, OPS };
enum { WITH_DELTA, SETTLED, IN_RAM, STATES };

struct area { /* the parts of one VM's areas that are in use, small enough to be copied for each input */
    uint8_t ram[RAM_BYTES], shadow[RAM_BYTES];
    uint8_t delta_data[CAPACITY * MST_PAGE_BYTES];
    struct mst_delta_entry table[CAPACITY];
    uint32_t shadow_sums[PAGES], ram_sums[PAGES];
    uint8_t device[2][DEVICE];
    _Alignas(8) uint8_t record[2][MST_PUB_SLOT_BYTES];
};

static struct mst_save_layout save_layout;
static struct mst_delta_layout delta_layout;
static uint8_t *map_ram, *map_save, *map_shadow, *map_delta;
static _Alignas(8) uint8_t map_record[2][MST_PUB_SLOT_BYTES];
static struct area templates[STATES], area;

static struct mst_save_map map_of(void)
{
    return (struct mst_save_map){.ram_bytes = RAM_BYTES,
                                 .ram = map_ram,
                                 .save = map_save,
                                 .shadow = map_shadow,
                                 .delta = map_delta,
                                 .delta_capacity = CAPACITY,
                                 .record = map_record,
                                 .epoch = EPOCH,
                                 .instance = INSTANCE};
}

/* Between the areas as they lie and the parts of them: to_map false takes, true puts. */
static void move(void *part, void *at, size_t bytes, bool to_map)
{
    memcpy(to_map ? at : part, to_map ? part : at, bytes);
}

static void parts(struct area *a, bool to_map)
{
    move(a->ram, map_ram, RAM_BYTES, to_map);
    move(a->shadow, map_shadow, RAM_BYTES, to_map);
    move(a->delta_data, map_delta + delta_layout.data_off, sizeof(a->delta_data), to_map);
    move(a->table, map_delta + delta_layout.table_off, sizeof(a->table), to_map);
    move(a->shadow_sums, map_save + save_layout.shadow_sums_off, sizeof(a->shadow_sums), to_map);
    move(a->ram_sums, map_save + save_layout.ram_sums_off, sizeof(a->ram_sums), to_map);
    for (unsigned i = 0; i < 2; i++)
        move(a->device[i], map_save + save_layout.device_off[i], DEVICE, to_map);
    move(a->record, map_record, sizeof(a->record), to_map);
}

static uint8_t *region(size_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    FUZZ_CHECK(at != MAP_FAILED);
    return at;
}

static void checkpoint(struct mst_save_writer *writer, unsigned page)
{
    uint64_t room;

    map_ram[page * MST_PAGE_BYTES]++;
    mst_save_begin(writer);
    memset(mst_save_device(writer, &room), (int)page, DEVICE);
    FUZZ_CHECK(room >= DEVICE && mst_save_stage(writer, page) == 0 && mst_save_stage(writer, 0) == 0);
    FUZZ_CHECK(mst_save_commit(writer, DEVICE, 1, 2, 3) == 0);
}

static void templates_make(void)
{
    struct mst_save_map map;
    struct mst_save_writer *writer;
    uint64_t room;

    FUZZ_CHECK(mst_save_layout(RAM_BYTES, &save_layout) == 0 && mst_delta_layout(CAPACITY, &delta_layout) == 0);
    map_ram = region(RAM_BYTES);
    map_shadow = region(RAM_BYTES);
    map_save = region(save_layout.bytes);
    map_delta = region(delta_layout.bytes);
    map = map_of();
    for (unsigned i = 0; i < RAM_BYTES; i += 8)
        map_ram[i] = (uint8_t)(i >> 3);
    FUZZ_CHECK(mst_save_writer_new(&map, &writer) == 0);
    memset(mst_save_device(writer, &room), 1, DEVICE);
    FUZZ_CHECK(mst_save_commit_ram(writer, DEVICE, 1, 2, 3) == 0);
    parts(&templates[IN_RAM], false);
    mst_save_shadow_from_ram(writer);
    parts(&templates[SETTLED], false);
    checkpoint(writer, 5);
    parts(&templates[WITH_DELTA], false);
    mst_save_writer_free(writer);
}

/* --- changes --- */

static void patch(void *to, size_t bytes, size_t offset, const uint8_t *piece, size_t len)
{
    offset %= bytes;
    if (len > bytes - offset)
        len = bytes - offset;
    memcpy((uint8_t *)to + offset, piece, len);
}

static void record_patch(size_t offset, const void *piece, size_t len)
{
    struct mst_save_record record = {0};
    struct mst_pub_head head = {.epoch = EPOCH, .instance = INSTANCE};

    (void)mst_pub_read(area.record, &head, &record, sizeof(record));
    patch(&record, sizeof(record), offset, piece, len);
    mst_pub_write(area.record, head.epoch, head.instance, &record, sizeof(record));
}

/* Makes sums right for what is there now. */
static void sums(unsigned op)
{
    struct mst_save_record record = {0};
    struct mst_pub_head head;
    uint32_t crcs[PAGES], crc;
    uint64_t digest;

    if (mst_pub_read(area.record, &head, &record, sizeof(record)) < 0)
        return;
    if (op == SUM_TABLE) {
        crc = mst_crc32c(area.table, (record.delta_pages < CAPACITY ? record.delta_pages : CAPACITY) * sizeof(area.table[0]));
        record_patch(offsetof(struct mst_save_record, delta_table_crc32c), &crc, sizeof(crc));
    } else if (op == SUM_DEVICE) {
        crc = mst_crc32c(area.device[record.device_slot & 1], record.device_bytes < DEVICE ? record.device_bytes : DEVICE);
        record_patch(offsetof(struct mst_save_record, device_crc32c), &crc, sizeof(crc));
    } else {
        memcpy(crcs, record.source == MST_SAVE_RAM ? area.ram_sums : area.shadow_sums, sizeof(crcs));
        for (uint32_t i = 0; i < record.delta_pages && i < CAPACITY; i++) {
            area.table[i].sum = mst_page_sum(area.delta_data + (size_t)i * MST_PAGE_BYTES);
            if (area.table[i].page < PAGES)
                crcs[area.table[i].page] = area.table[i].sum;
        }
        digest = mst_save_digest(crcs, 0, PAGES);
        record_patch(offsetof(struct mst_save_record, ram_digest), &digest, sizeof(digest));
    }
}

static void change(unsigned op, uint32_t offset, const uint8_t *piece, size_t len)
{
    switch (op) {
    case RECORD:
        record_patch(offset, piece, len);
        break;
    case SLOTS:
        patch(area.record, sizeof(area.record), offset, piece, len);
        break;
    case CRCS:
        patch(offset & 0x8000 ? area.ram_sums : area.shadow_sums, sizeof(area.ram_sums), offset, piece, len);
        break;
    case TABLE:
        patch(area.table, sizeof(area.table), offset, piece, len);
        break;
    case DELTA:
        patch(area.delta_data, sizeof(area.delta_data), offset, piece, len);
        break;
    case SHADOW:
        patch(area.shadow, sizeof(area.shadow), offset, piece, len);
        break;
    case RAM:
        patch(area.ram, sizeof(area.ram), offset, piece, len);
        break;
    case DEVICE_STATE:
        patch(area.device, sizeof(area.device), offset, piece, len);
        break;
    default:
        sums(op);
    }
}

/* --- reading --- */

static bool accepted(const struct mst_save_record *record, uint32_t *crcs, struct mst_delta_entry *table, uint8_t *ram)
{
    struct mst_why why;
    uint8_t *data = fuzz_copy(area.delta_data, record->delta_pages * (size_t)MST_PAGE_BYTES);
    uint8_t *device = calloc(1, record->device_bytes);
    int r = mst_delta_table_check(record, table, &why);

    FUZZ_CHECK(device);
    memcpy(device, area.device[record->device_slot], record->device_bytes < DEVICE ? record->device_bytes : DEVICE);
    if (r == 0) {
        mst_delta_sums(record, table, crcs);
        r = mst_save_sums_check(record, crcs, &why);
    }
    if (r == 0)
        r = mst_delta_overlay(record, table, data, ram, &why);
    if (r == 0 && mst_pages_check(ram, crcs, PAGES) != PAGES)
        r = -EBADMSG;
    if (r == 0)
        r = mst_save_device_check(record, device, &why);
    for (uint32_t i = 0; r == 0 && i < record->delta_pages; i++)
        FUZZ_CHECK(memcmp(ram + (size_t)table[i].page * MST_PAGE_BYTES, data + (size_t)i * MST_PAGE_BYTES, MST_PAGE_BYTES) == 0);
    free(data);
    free(device);
    return r == 0;
}

static void read_back(void)
{
    struct mst_save_record record;
    struct mst_pub_head head;
    struct mst_why why = {""};
    struct mst_delta_entry *table;
    uint32_t *crcs;
    uint8_t *ram;
    int r = mst_pub_read(area.record, &head, &record, sizeof(record));

    if (r == 0)
        r = mst_save_record_check(&record, RAM_BYTES, CAPACITY, &why);
    if (r < 0)
        return;
    FUZZ_CHECK(record.delta_pages <= CAPACITY && record.device_bytes <= MST_DEVICE_BYTES_MAX && record.device_slot <= 1);
    table = fuzz_copy(area.table, record.delta_pages * sizeof(*table));
    crcs = fuzz_copy(record.source == MST_SAVE_RAM ? area.ram_sums : area.shadow_sums, sizeof(area.ram_sums));
    ram = fuzz_copy(record.source == MST_SAVE_RAM ? area.ram : area.shadow, RAM_BYTES);
    if (accepted(&record, crcs, table, ram))
        FUZZ_CHECK(mst_save_digest(crcs, 0, PAGES) == record.ram_digest);
    free(table);
    free(crcs);
    free(ram);
}

static void take_up(bool protect_local)
{
    struct mst_save_map map = map_of();
    struct mst_save_writer *writer;
    int r;

    if (!protect_local) {
        map.shadow = map.delta = NULL;
        map.delta_capacity = 0;
    }
    parts(&area, true);
    r = mst_save_writer_attach(&map, &writer);
    FUZZ_CHECK(r == 0 || r == -ENODATA || r == -EBADMSG);
    if (r < 0)
        return;
    if (protect_local && mst_save_source(writer) == MST_SAVE_RAM)
        mst_save_shadow_from_ram(writer);
    if (protect_local && mst_save_source(writer) == MST_SAVE_SHADOW && mst_save_seq(writer) < UINT64_MAX) {
        checkpoint(writer, 3);
        mst_save_apply(writer);
        mst_save_writer_free(writer);
        FUZZ_CHECK(mst_save_writer_attach(&map, &writer) == 0); /* what a writer leaves, the next one takes */
    }
    mst_save_writer_free(writer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};
    uint8_t how = fuzz_u8(&in);

    if (!map_ram)
        templates_make();
    area = templates[how % STATES];
    while (in.left > 0) {
        unsigned op = fuzz_u8(&in) % OPS;
        uint32_t offset = fuzz_u16(&in);
        size_t len;
        const uint8_t *piece = fuzz_piece(&in, &len);

        change(op, offset, piece, len);
    }
    read_back();
    take_up(!(how & 0x80));
    return 0;
}

static struct fuzz_out out;

static void op(unsigned what, uint32_t offset, uint32_t value)
{
    fuzz_put(&out, what, 1);
    fuzz_put(&out, offset, 2);
    fuzz_put_piece(&out, &value, sizeof(value));
}

static void done(const char *name)
{
    fuzz_seed(name, out.bytes, out.len);
    out.len = 0;
}

void fuzz_seeds(void)
{
    char name[32];

    for (unsigned state = 0; state < STATES; state++) {
        fuzz_put(&out, state, 1);
        snprintf(name, sizeof(name), "whole-%u", state);
        done(name);
        for (unsigned what = 0; what < SUM_TABLE; what++) {
            fuzz_put(&out, state, 1);
            op(what, 4, 1);
            op(SUM_TABLE, 0, 0);
            op(SUM_ALL, 0, 0);
            op(SUM_DEVICE, 0, 0);
            snprintf(name, sizeof(name), "op-%u-%u", state, what);
            done(name);
        }
    }
    fuzz_put(&out, WITH_DELTA, 1);
    op(TABLE, 0, 8);
    op(TABLE, 8, 8);
    op(RECORD, offsetof(struct mst_save_record, delta_pages), CAPACITY);
    op(SUM_TABLE, 0, 0);
    op(SUM_ALL, 0, 0);
    done("table");
}
