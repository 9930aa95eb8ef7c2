#include "fuzz.h"

#include "mirror/image.h"
#include "mirror/send.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* The log of a mirror, by RDMA WRITE from another node, and acknowledgements, from the other side. First byte: an honest source between which and
 * the mirror bytes are changed, or one that writes what it likes with sums that are right. Whatever comes: the image's record names a whole
 * checkpoint or none, nothing is acknowledged that it does not have, a log that erred stays closed, and a revoked image does not change. */

#define PAGES     4u
#define RAM_BYTES (PAGES * MST_PAGE_BYTES)
#define RING      MST_MLOG_RING_MIN
#define RECORD    (16u << 10)

enum { HONEST, FORGED, KINDS };
enum { OP_PUT, OP_COMMIT, OP_SEND, OP_TAKE, OP_PATCH, OP_ACK, OP_APPLY, OP_END, OP_AGAIN, OP_ADOPT, OPS };

static const struct mst_mlog_grant granted = {.vm = "fuzz",
                                              .epoch = 7,
                                              .log_id = 11,
                                              .source_node_id = 3,
                                              .source_instance = 5,
                                              .mirror_instance = 6,
                                              .ram_bytes = RAM_BYTES,
                                              .ring_bytes = RING,
                                              .delta_capacity = 3};

static struct {
    struct mst_mlog_grant grant;
    struct mst_save_map map;
    struct mst_save_layout save;
    uint64_t delta_bytes;
    uint8_t *log, *twin;
    _Alignas(8) uint8_t record[2][MST_PUB_SLOT_BYTES];
    struct mst_image *image;
    int err; /* final error of the log */
    struct mst_mlog_ack told;
    /* honest */
    struct mst_msend *send;
    uint8_t ram[RAM_BYTES];
    bool begun, sent_all; /* sent_all: the first checkpoint is in */
    uint64_t next_seq;
    /* forged: what the next record must be */
    uint64_t sequence, position, prev_sum, checkpoint, device_off;
    bool seeded;
    uint32_t sums[PAGES];
} f;

static void *region(size_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    FUZZ_CHECK(at != MAP_FAILED);
    return at;
}

static void regions_make(void)
{
    struct mst_delta_layout delta;

    FUZZ_CHECK(mst_save_layout(RAM_BYTES, &f.save) == 0 && mst_delta_layout(granted.delta_capacity, &delta) == 0);
    f.delta_bytes = delta.bytes;
    f.log = region(mst_mlog_bytes(RING));
    f.twin = region(mst_mlog_bytes(RING));
    f.map = (struct mst_save_map){.ram_bytes = RAM_BYTES,
                                  .save = region(f.save.bytes),
                                  .shadow = region(RAM_BYTES),
                                  .delta = region(delta.bytes),
                                  .delta_capacity = granted.delta_capacity,
                                  .record = f.record,
                                  .epoch = granted.epoch,
                                  .instance = granted.mirror_instance};
}

static void open_log(void)
{
    struct mst_mlog_head head;

    FUZZ_CHECK(mst_image_seed(f.image, &f.grant, f.log, &f.map, NULL) == 0);
    mst_msend_free(f.send);
    FUZZ_CHECK(mst_msend_new(&f.grant, f.twin, &f.send, NULL) == 0);
    mst_mlog_head_make(&f.grant, &head);
    f.err = 0;
    f.begun = f.sent_all = f.seeded = false;
    f.next_seq = 4;
    f.sequence = 1;
    f.position = f.device_off = 0;
    f.prev_sum = head.sum;
    f.checkpoint = 9;
    memset(f.sums, 0, sizeof(f.sums));
    memset(&f.told, 0, sizeof(f.told));
}

/* --- the mirror --- */

/* What somebody finds who reads the image by its record. */
static bool readable(uint64_t seq)
{
    struct mst_save_record record;
    struct mst_pub_head head;

    if (mst_pub_read(f.record, &head, &record, sizeof(record)) < 0 || record.source == MST_SAVE_NONE)
        return seq == 0;
    return head.epoch == f.map.epoch && record.seq == seq &&
           mst_save_record_check(&record, RAM_BYTES, f.map.delta_capacity, NULL) == 0 &&
           mst_save_device_check(&record, f.map.save + f.save.device_off[record.device_slot], NULL) == 0;
}

static void take(void)
{
    enum mst_image_state state = mst_image_state(f.image);
    uint64_t seq = mst_image_seq(f.image), position = f.told.consumed;
    struct mst_mlog_record record;
    struct mst_mlog_ack ack;
    int r = mst_image_take(f.image, 1, NULL);

    mst_image_ack(f.image, &ack);
    FUZZ_CHECK((r == -EBUSY) == (state != MST_IMAGE_SEEDING && state != MST_IMAGE_MIRRORING));
    FUZZ_CHECK(r == -EBUSY || f.err == 0 || r == f.err);
    FUZZ_CHECK(ack.seq <= mst_image_seq(f.image) && ack.consumed >= f.told.consumed && ack.consumed - f.told.consumed <= RECORD);
    FUZZ_CHECK((r == 2) == (mst_image_seq(f.image) != seq) && (seq == 0 || mst_image_seq(f.image) - seq <= 1));
    FUZZ_CHECK((r > 0) == (ack.consumed > f.told.consumed));
    FUZZ_CHECK(r != 2 || (ack.seq == mst_image_seq(f.image) && mst_image_state(f.image) == MST_IMAGE_MIRRORING));
    FUZZ_CHECK(readable(mst_image_seq(f.image)));
    if (r < 0 && r != -EBUSY)
        f.err = r;
    if (r <= 0)
        return;
    f.told = ack;
    for (size_t i = 0; i < sizeof(record); i++)
        ((uint8_t *)&record)[i] = f.log[MST_MLOG_RING_OFF + (position + i) % RING];
    f.sequence = record.sequence + 1;
    f.position = ack.consumed;
    f.prev_sum = record.sum;
    f.device_off += record.device_bytes;
    if (r == 2) {
        f.seeded = true;
        f.checkpoint = record.checkpoint + 1;
        f.device_off = 0;
    }
}

static void end(uint8_t how)
{
    uint64_t epoch = 0, seq = 0, digest;
    int r;

    FUZZ_CHECK(mst_image_state(f.image) == MST_IMAGE_REVOKED || mst_image_verify(f.image, 1, &epoch, &seq, NULL) == -EBUSY ||
               mst_image_state(f.image) == MST_IMAGE_VERIFIED);
    if (mst_image_revoke(f.image) < 0)
        return;
    r = mst_image_verify(f.image, 1, &epoch, &seq, NULL);
    FUZZ_CHECK(r == 0 || r == -ENODATA); /* nobody but the mirror writes the image */
    FUZZ_CHECK((r == 0) == (seq != 0) && seq >= f.told.seq && readable(seq) && (r < 0 || epoch == f.map.epoch));
    digest = mst_crc32c(f.map.shadow, RAM_BYTES);
    mst_image_ack(f.image, &f.told); /* what was in the log only is in it, too */
    take();
    FUZZ_CHECK(mst_crc32c(f.map.shadow, RAM_BYTES) == digest);
    if (how & 1)
        FUZZ_CHECK(mst_image_use(f.image, f.map.epoch) == (r == 0 ? 0 : -EBUSY));
    if (how & 2)
        FUZZ_CHECK(mst_image_clear(f.image) == 0 && readable(0) && mst_image_seq(f.image) == 0);
}

static void again(uint8_t how)
{
    if (mst_image_state(f.image) != MST_IMAGE_CLEARED)
        return;
    FUZZ_CHECK(mst_image_seed(f.image, &f.grant, f.log, &f.map, NULL) == -ESTALE); /* under the same log */
    f.grant.log_id++;
    f.grant.epoch += how & 1;
    f.map.epoch = f.grant.epoch;
    open_log();
}

/* Another keeper finds the regions as they are, changed by the input. */
static void adopt(uint32_t offset, const uint8_t *piece, size_t len)
{
    struct mst_image *image;
    uint64_t epoch, seq;
    int r;

    offset %= sizeof(f.record);
    memcpy((uint8_t *)f.record + offset, piece, len < sizeof(f.record) - offset ? len : sizeof(f.record) - offset);
    FUZZ_CHECK(mst_image_new(&image) == 0);
    r = mst_image_adopt(image, &f.map, NULL);
    FUZZ_CHECK(r == 0 || r == -ENODATA || r == -EBADMSG);
    if (r == 0) {
        FUZZ_CHECK(mst_image_state(image) == MST_IMAGE_REVOKED);
        r = mst_image_verify(image, 1, &epoch, &seq, NULL);
        FUZZ_CHECK(r == -EBADMSG || (r == 0 && readable(seq)));
    }
    mst_image_free(image);
}

/* --- honest source --- */

static void put(uint32_t page, const uint8_t *piece, size_t len)
{
    uint8_t *at = f.ram + page % PAGES * MST_PAGE_BYTES, sent[MST_PAGE_BYTES];
    int r;

    memcpy(sent, at, sizeof(sent));
    memcpy(at, piece, len < MST_PAGE_BYTES ? len : MST_PAGE_BYTES);
    if (!f.begun)
        FUZZ_CHECK(mst_msend_begin(f.send, f.next_seq) == 0);
    f.begun = true;
    r = mst_msend_page(f.send, page % PAGES, at, f.sent_all ? sent : NULL);
    FUZZ_CHECK(r == 0 || r == 1 || r == -EAGAIN || r == -EMSGSIZE || r == -EINVAL);
}

static void commit(uint32_t device_bytes)
{
    static const uint8_t device[MST_DEVICE_BYTES_MAX];
    uint32_t sums[PAGES];
    struct mst_msend_rest rest = {.device = device, .device_bytes = device_bytes % 9000};

    for (unsigned i = 0; i < PAGES; i++)
        sums[i] = mst_page_sum(f.ram + i * MST_PAGE_BYTES);
    rest.ram_digest = mst_save_digest(sums, 0, PAGES);
    if (mst_msend_commit(f.send, &rest) == 0) {
        f.begun = false;
        f.sent_all = true;
        f.next_seq++;
    }
}

static void send_some(uint32_t keep)
{
    struct mst_msend_write write;

    /* keep: lines that do not arrive */
    while (mst_msend_writes(f.send, &write, 1) == 1) {
        FUZZ_CHECK(write.offset + write.len <= mst_mlog_bytes(RING) && write.bytes == f.twin + write.offset);
        for (uint32_t at = 0; at < write.len; at += MST_MLOG_LINE, keep = keep >> 1 | keep << 31)
            if ((keep & 1) == 0)
                memcpy(f.log + write.offset + at, write.bytes + at, MST_MLOG_LINE);
        mst_msend_completed(f.send, &write);
    }
}

static void acknowledge(uint32_t offset, const uint8_t *piece, size_t len)
{
    struct mst_mlog_ack ack;
    uint64_t acked = mst_msend_acked(f.send);

    mst_image_ack(f.image, &ack);
    offset %= sizeof(ack);
    memcpy((uint8_t *)&ack + offset, piece, len < sizeof(ack) - offset ? len : sizeof(ack) - offset);
    if (mst_msend_ack(f.send, &ack, NULL) < 0)
        FUZZ_CHECK(mst_msend_acked(f.send) == acked);
    else
        FUZZ_CHECK(mst_msend_acked(f.send) >= acked && mst_msend_acked(f.send) == ack.seq);
}

/* --- a source that writes what it likes --- */

/* A record with these runs and this device state, changed at offset, its sum right where it has one. flags: bit 0 commit, bit 1 another flag than
 * belongs, bit 2 digest as it would be, bit 3 whole pages of ones. */
static void forge(uint8_t flags, uint32_t offset, struct fuzz_in *in)
{
    static uint8_t whole[RECORD];
    uint64_t page_sums[MST_MLOG_PAGES_MAX] = {0}, bytes;
    size_t runs_len, change_len, at = sizeof(struct mst_mlog_record);
    const uint8_t *runs = fuzz_piece(in, &runs_len), *change;
    struct mst_mlog_record record = {.log_id = f.grant.log_id,
                                     .epoch = f.grant.epoch,
                                     .source_instance = f.grant.source_instance,
                                     .sequence = f.sequence,
                                     .position = f.position,
                                     .prev_sum = f.prev_sum,
                                     .checkpoint = f.checkpoint,
                                     .device_off = (uint32_t)f.device_off};
    struct mst_mlog_commit c = {0};

    record.runs = (uint32_t)(runs_len / sizeof(struct mst_mlog_run) > 8 ? 8 : runs_len / sizeof(struct mst_mlog_run));
    record.device_bytes = fuzz_u16(in) % 2048;
    record.flags = (f.seeded == ((flags & 2) != 0) ? (uint32_t)MST_MLOG_SEED : 0) | (flags & 1 ? (uint32_t)MST_MLOG_COMMIT : 0);
    for (uint32_t i = 0; i < record.runs; i++) {
        struct mst_mlog_run run;
        memcpy(&run, runs + i * sizeof(run), sizeof(run));
        for (uint32_t page = run.page; run.page < PAGES && page < run.page + run.pages && page < PAGES && record.data_pages < 3;
             page++) {
            uint8_t *to = whole + at;
            if (run.kind == MST_MLOG_DATA) {
                memset(to, flags & 8 ? 0xff : (int)(page + i), MST_PAGE_BYTES);
                page_sums[record.data_pages++] = mst_mlog_page_sum(to);
                at += MST_PAGE_BYTES;
            }
            f.sums[page] = run.kind == MST_MLOG_DATA ? mst_page_sum(to) : UINT32_C(0x32d8bbdb);
        }
    }
    c.device_bytes = f.device_off + record.device_bytes;
    c.ram_digest = flags & 4 ? mst_save_digest(f.sums, 0, PAGES) : 1;
    bytes = mst_mlog_record_bytes(record.data_pages, record.runs, record.device_bytes, record.flags);
    FUZZ_CHECK(bytes <= RECORD);
    record.record_bytes = (uint32_t)bytes;
    memset(whole + at, 0, bytes - at);
    memcpy(whole + at, runs, record.runs * sizeof(struct mst_mlog_run));
    if (flags & 1)
        memcpy(whole + at + record.runs * sizeof(struct mst_mlog_run), &c, sizeof(c));
    change = fuzz_piece(in, &change_len);
    offset %= sizeof(record);
    memcpy((uint8_t *)&record + offset, change, change_len < sizeof(record) - offset ? change_len : sizeof(record) - offset);
    if (mst_mlog_record_check(&record, RECORD, NULL) == 0) {
        for (uint32_t i = 0; i < record.data_pages; i++)
            page_sums[i] = mst_mlog_page_sum(whole + sizeof(record) + i * MST_PAGE_BYTES);
        record.sum = mst_mlog_sum(&record, page_sums, whole + sizeof(record) + (size_t)record.data_pages * MST_PAGE_BYTES);
    }
    memcpy(whole, &record, sizeof(record));
    for (uint64_t i = 0; i < RECORD; i++)
        f.log[MST_MLOG_RING_OFF + (f.position + i) % RING] = whole[i];
}

/* --- --- */

static void step(unsigned kind, struct fuzz_in *in)
{
    unsigned op = fuzz_u8(in) % OPS;
    uint8_t how = fuzz_u8(in);
    uint32_t offset = fuzz_u32(in);
    size_t len;
    const uint8_t *piece;

    if (op <= OP_SEND && kind == FORGED) {
        forge(how, offset, in);
        return;
    }
    piece = fuzz_piece(in, &len);
    switch (op) {
    case OP_PUT:
        put(offset, piece, len);
        break;
    case OP_COMMIT:
        commit(offset);
        break;
    case OP_SEND:
        send_some(offset);
        break;
    case OP_TAKE:
        take();
        break;
    case OP_PATCH:
        offset %= (uint32_t)mst_mlog_bytes(RING);
        memcpy(f.log + offset, piece, len < mst_mlog_bytes(RING) - offset ? len : mst_mlog_bytes(RING) - offset);
        break;
    case OP_ACK:
        acknowledge(offset, piece, len);
        break;
    case OP_APPLY:
        mst_image_apply(f.image);
        break;
    case OP_END:
        end(how);
        break;
    case OP_AGAIN:
        again(how);
        break;
    default:
        in->left = 0; /* the regions are not the image's any more */
        adopt(offset, piece, len);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};
    unsigned kind = fuzz_u8(&in) % KINDS;

    if (!f.log)
        regions_make();
    f.grant = granted;
    f.map.epoch = granted.epoch;
    memset(f.ram, 0, sizeof(f.ram));
    memset(f.map.shadow, 0, RAM_BYTES);
    memset(f.map.delta, 0, f.delta_bytes);
    memset(f.record, 0, sizeof(f.record));
    memset(f.map.save + f.save.shadow_sums_off, 0, f.save.bytes - f.save.shadow_sums_off);
    FUZZ_CHECK(mst_image_new(&f.image) == 0);
    f.send = NULL;
    open_log();
    if (kind == FORGED) {
        struct mst_mlog_head head;
        mst_mlog_head_make(&f.grant, &head);
        memcpy(f.log, &head, sizeof(head));
    }
    while (in.left > 0)
        step(kind, &in);
    mst_msend_free(f.send);
    mst_image_free(f.image);
    return 0;
}

/* --- seeds --- */

static struct fuzz_out out;

static void op(unsigned what, uint8_t how, uint32_t offset, const void *piece, size_t len)
{
    fuzz_put(&out, what, 1);
    fuzz_put(&out, how, 1);
    fuzz_put(&out, offset, 4);
    fuzz_put_piece(&out, piece, len);
}

static void done(const char *name)
{
    fuzz_seed(name, out.bytes, out.len);
    out.len = 0;
}

static void honest_checkpoint(unsigned pages, uint8_t value)
{
    for (unsigned page = 0; page < pages; page++)
        op(OP_PUT, 0, page, &value, 1);
    op(OP_COMMIT, 0, 100 + value, NULL, 0);
    op(OP_SEND, 0, 0, NULL, 0);
    for (unsigned i = 0; i < 3; i++)
        op(OP_TAKE, 0, 0, NULL, 0);
    op(OP_ACK, 0, 0, NULL, 0);
}

static void forged_record(uint8_t flags, const struct mst_mlog_run *runs, unsigned count, uint16_t device, uint32_t offset,
                          uint64_t change, size_t change_len)
{
    op(OP_PUT, flags, offset, runs, count * sizeof(*runs));
    fuzz_put(&out, device, 2);
    fuzz_put_piece(&out, &change, change_len);
    op(OP_TAKE, 0, 0, NULL, 0);
}

void fuzz_seeds(void)
{
    const struct mst_mlog_run all = {0, PAGES, MST_MLOG_ZERO}, some = {1, 2, MST_MLOG_DATA},
                              mixed[] = {{0, 1, MST_MLOG_DATA}, {1, 3, MST_MLOG_ZERO}};
    char name[40];

    fuzz_put(&out, HONEST, 1);
    honest_checkpoint(PAGES, 1);
    honest_checkpoint(2, 2);
    op(OP_APPLY, 0, 0, NULL, 0);
    honest_checkpoint(1, 3);
    op(OP_END, 3, 0, NULL, 0);
    op(OP_AGAIN, 1, 0, NULL, 0);
    honest_checkpoint(PAGES, 4);
    op(OP_END, 2, 0, NULL, 0);
    done("honest");
    fuzz_put(&out, HONEST, 1);
    honest_checkpoint(PAGES, 1);
    op(OP_ADOPT, 0, 0, "", 0);
    done("adopted");
    for (unsigned i = 0; i < 8; i++) { /* torn, patched, acknowledged wrongly */
        fuzz_put(&out, HONEST, 1);
        honest_checkpoint(PAGES, 1);
        op(OP_PUT, 0, 1, "x", 1);
        op(OP_COMMIT, 0, 10, NULL, 0);
        op(OP_SEND, 0, 1u << i, NULL, 0);
        op(OP_PATCH, 0, 4096 + 64 * i, "\1\2\3\4\5\6\7", 7);
        op(OP_TAKE, 0, 0, NULL, 0);
        op(OP_ACK, 0, 8 * (i % 4), "\1", 1);
        op(OP_END, 3, 0, NULL, 0);
        snprintf(name, sizeof(name), "torn-%u", i);
        done(name);
    }
    for (unsigned i = 0; i <= 16; i++) { /* whole, and one field of the second record wrong */
        fuzz_put(&out, FORGED, 1);
        forged_record(4, mixed, 2, 1000, 0, 0, 0);
        forged_record(5, &all, 1, 1000, 0, 0, 0);
        forged_record(5, &some, 1, 50, 8 * (i % 16), 1, i == 16 ? 0 : 1);
        op(OP_APPLY, 0, 0, NULL, 0);
        forged_record(5, mixed, 1, 50, 0, 0, 0);
        op(OP_END, 3, 0, NULL, 0);
        snprintf(name, sizeof(name), "forged-%u", i);
        done(name);
    }
}
