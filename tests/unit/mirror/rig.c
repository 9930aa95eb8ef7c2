#include "rig.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EPOCH 5u

static void *pages_new(uint64_t bytes)
{
    void *at = aligned_alloc(MST_PAGE_BYTES, (bytes + MST_PAGE_BYTES - 1) / MST_PAGE_BYTES * MST_PAGE_BYTES);

    if (!at)
        abort();
    memset(at, 0, bytes);
    return at;
}

uint64_t rig_random(struct rig *rig, uint64_t below)
{
    uint64_t x = rig->random += UINT64_C(0x9e3779b97f4a7c15);

    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return (x ^ x >> 31) % below;
}

void rig_breach(struct rig *rig, const char *format, ...)
{
    va_list args;

    if (rig->breach[0])
        return;
    va_start(args, format);
    vsnprintf(rig->breach, sizeof(rig->breach), format, args);
    va_end(args);
}

void rig_open(struct rig *rig, uint64_t seed)
{
    memset(rig, 0, sizeof(*rig));
    rig->random = seed * 2 + 1;
    rig->grant = (struct mst_mlog_grant){.vm = "web-1",
                                         .epoch = EPOCH,
                                         .log_id = 1000,
                                         .source_node_id = 2,
                                         .source_instance = 77,
                                         .mirror_instance = 99,
                                         .ram_bytes = RIG_RAM_BYTES,
                                         .ring_bytes = RIG_RING,
                                         .delta_capacity = RIG_PAGES};
    if (mst_save_layout(RIG_RAM_BYTES, &rig->save_layout) < 0 || mst_delta_layout(RIG_PAGES, &rig->delta_layout) < 0)
        abort();
    rig->twin = pages_new(mst_mlog_bytes(RIG_RING));
    rig->log = pages_new(mst_mlog_bytes(RIG_RING));
    rig->save = pages_new(rig->save_layout.bytes);
    rig->shadow = pages_new(RIG_RAM_BYTES);
    rig->delta = pages_new(rig->delta_layout.bytes);
    rig->record = pages_new(MST_PAGE_BYTES);
    rig->truth = calloc(RIG_SEQS, sizeof(*rig->truth));
    if (!rig->truth || mst_image_new(&rig->image) < 0)
        abort();
    rig->map = (struct mst_save_map){.ram_bytes = RIG_RAM_BYTES,
                                     .save = rig->save,
                                     .shadow = rig->shadow,
                                     .delta = rig->delta,
                                     .delta_capacity = RIG_PAGES,
                                     .record = rig->record,
                                     .epoch = EPOCH,
                                     .instance = 99};
}

void rig_close(struct rig *rig)
{
    mst_msend_free(rig->send);
    mst_image_free(rig->image);
    free(rig->twin);
    free(rig->log);
    free(rig->save);
    free(rig->shadow);
    free(rig->delta);
    free(rig->record);
    free(rig->truth);
}

void rig_seed(struct rig *rig, bool next_epoch, uint64_t first_seq)
{
    struct mst_why why = {""};
    int r;

    rig->grant.log_id++;
    rig->grant.epoch += next_epoch;
    rig->map.epoch = rig->grant.epoch;
    r = mst_image_seed(rig->image, &rig->grant, rig->log, &rig->map, &why);
    if (r < 0)
        rig_breach(rig, "seed: %d %s", r, why.text);
    mst_msend_free(rig->send);
    rig->send = NULL;
    if (mst_msend_new(&rig->grant, rig->twin, &rig->send, &why) < 0)
        abort();
    rig->flying_count = rig->acks_count = 0;
    rig->seq = rig->committed = rig->told = 0;
    rig->first_seq = first_seq;
    rig->has_sent = false;
}

/* --- source --- */

static void guest_writes(struct rig *rig)
{
    uint64_t page = rig_random(rig, RIG_PAGES), how = rig_random(rig, 8);
    uint8_t *at = rig->ram + page * MST_PAGE_BYTES;

    if (how == 0) {
        memset(at, 0, MST_PAGE_BYTES);
        return;
    }
    for (unsigned i = 0; i < MST_PAGE_BYTES; i += 8) { /* every word says which page and when */
        uint64_t word = page << 56 | (rig->random & 0xffffffffffff00) | (i / 8 & 0xff);
        memcpy(at + i, &word, sizeof(word));
    }
}

/* The guest stands: this is what the checkpoint is. What is put is this copy, as the agent's delta is. */
static void checkpoint_take(struct rig *rig, uint64_t seq)
{
    struct rig_truth *truth = &rig->truth[seq % RIG_SEQS];
    uint32_t sums[RIG_PAGES];

    for (uint64_t writes = rig_random(rig, 4); writes > 0; writes--)
        guest_writes(rig);
    memcpy(truth->ram, rig->ram, sizeof(truth->ram));
    truth->device_bytes = rig_random(rig, 4) == 0 ? RIG_DEVICE - rig_random(rig, 100) : 1 + rig_random(rig, 200);
    for (uint64_t i = 0; i < truth->device_bytes; i++)
        truth->device[i] = (uint8_t)(seq * 31 + i * 7 + rig->random);
    for (unsigned page = 0; page < RIG_PAGES; page++)
        sums[page] = mst_page_sum(truth->ram + page * MST_PAGE_BYTES);
    rig->rest = (struct mst_msend_rest){.device = truth->device,
                                        .device_bytes = truth->device_bytes,
                                        .ram_digest = mst_save_digest(sums, 0, RIG_PAGES),
                                        .taken_wall_ms = seq};
}

static void checkpoint_begin(struct rig *rig)
{
    uint64_t seq = rig->committed ? rig->committed + 1 : rig->first_seq;

    checkpoint_take(rig, seq);
    if (mst_msend_begin(rig->send, seq) < 0)
        rig_breach(rig, "begin %lu refused", (unsigned long)seq);
    rig->seq = seq;
    rig->next_page = 0;
}

/* While it was being seeded the source has taken another checkpoint: that is what the seed becomes. */
static void seed_renew(struct rig *rig)
{
    const uint8_t *before = rig->truth[rig->seq % RIG_SEQS].ram;
    const struct rig_truth *now;

    checkpoint_take(rig, rig->seq + 1);
    if (mst_msend_renumber(rig->send, rig->seq + 1) < 0)
        rig_breach(rig, "renumber to %lu refused", (unsigned long)rig->seq + 1);
    now = &rig->truth[++rig->seq % RIG_SEQS];
    rig->renewed++;
    for (uint64_t page = 0; page < rig->next_page; page++)
        if (memcmp(before + page * MST_PAGE_BYTES, now->ram + page * MST_PAGE_BYTES, MST_PAGE_BYTES) != 0)
            rig->next_page = page; /* from here on again */
}

static void put_some(struct rig *rig)
{
    const uint8_t *from = rig->truth[rig->seq % RIG_SEQS].ram;
    int r = 0;

    for (uint64_t n = rig_random(rig, RIG_PAGES) + 1; n > 0 && r >= 0 && rig->next_page < RIG_PAGES; n--) {
        size_t at = rig->next_page * MST_PAGE_BYTES;
        uint8_t old[MST_PAGE_BYTES];

        if (!rig->has_sent && rig_random(rig, 3) == 0) { /* while seeding: as it was a moment ago, and then again */
            memset(old, (int)rig_random(rig, 256), sizeof(old));
            r = mst_msend_page(rig->send, rig->next_page, old, NULL);
        }
        if (r >= 0)
            r = mst_msend_page(rig->send, rig->next_page, from + at, rig->has_sent ? rig->sent + at : NULL);
        rig->next_page += r >= 0;
    }
    if (r < 0 && r != -EAGAIN)
        rig_breach(rig, "page %lu refused: %d", (unsigned long)rig->next_page, r);
    if (rig_random(rig, 6) == 0)
        mst_msend_flush(rig->send);
}

void rig_source_step(struct rig *rig)
{
    struct mst_msend_write writes[5];
    unsigned count;
    int r;

    if (!rig->seq) {
        checkpoint_begin(rig);
    } else if (rig->next_page < RIG_PAGES) {
        if (rig->renews && !rig->has_sent && rig_random(rig, 8) == 0 && rig->seq < rig->first_seq + 20)
            seed_renew(rig);
        put_some(rig);
    } else {
        r = mst_msend_commit(rig->send, &rig->rest);
        if (r == 0) {
            memcpy(rig->sent, rig->truth[rig->seq % RIG_SEQS].ram, sizeof(rig->sent));
            rig->has_sent = true;
            rig->committed = rig->seq;
            rig->seq = 0;
        } else if (r != -EAGAIN) {
            rig_breach(rig, "commit refused: %d", r);
        }
    }
    count = mst_msend_writes(rig->send, writes, 1 + (unsigned)rig_random(rig, 5));
    for (unsigned i = 0; i < count; i++) {
        const struct mst_msend_write *w = &writes[i];

        if (w->offset % MST_MLOG_LINE || w->len % MST_MLOG_LINE || w->len > MST_MLOG_RECORD_MAX ||
            w->bytes != rig->twin + w->offset || w->offset + w->len > mst_mlog_bytes(RIG_RING) ||
            rig->flying_count + w->len / MST_MLOG_LINE > RIG_FLYING) {
            rig_breach(rig, "a WRITE of %u bytes to %lu", w->len, (unsigned long)w->offset);
            return;
        }
        for (uint32_t at = 0; at < w->len; at += MST_MLOG_LINE) {
            struct rig_line *line = &rig->flying[rig->flying_count++];
            line->offset = w->offset + at;
            memcpy(line->bytes, w->bytes + at, sizeof(line->bytes));
        }
        mst_msend_completed(rig->send, w); /* before any of it is visible */
    }
}

void rig_ack_step(struct rig *rig)
{
    struct mst_why why = {""};
    int r;

    if (rig->acks_count == 0)
        return;
    r = mst_msend_ack(rig->send, &rig->acks[0], &why);
    if (r < 0)
        rig_breach(rig, "an acknowledgement was refused: %s", why.text);
    memmove(rig->acks, rig->acks + 1, --rig->acks_count * sizeof(rig->acks[0]));
}

/* --- between --- */

void rig_wire_step(struct rig *rig, unsigned lines)
{
    for (; lines > 0 && rig->flying_count > 0; lines--) {
        unsigned i = (unsigned)rig_random(rig, rig->flying_count);

        memcpy(rig->log + rig->flying[i].offset, rig->flying[i].bytes, MST_MLOG_LINE);
        rig->flying[i] = rig->flying[--rig->flying_count];
    }
}

/* --- mirror --- */

void rig_check_image(struct rig *rig, uint64_t seq)
{
    const struct rig_truth *truth = &rig->truth[seq % RIG_SEQS];
    struct mst_save_record record;
    struct mst_pub_head head;

    if (mst_pub_read(rig->record, &head, &record, sizeof(record)) < 0 || record.seq != seq || head.epoch != rig->grant.epoch) {
        rig_breach(rig, "the record of the image is not that of checkpoint %lu", (unsigned long)seq);
        return;
    }
    if (record.delta_pages == 0 && memcmp(rig->shadow, truth->ram, RIG_RAM_BYTES) != 0)
        rig_breach(rig, "the memory of the image is not that of checkpoint %lu", (unsigned long)seq);
    if (record.device_bytes != truth->device_bytes ||
        memcmp(rig->save + rig->save_layout.device_off[record.device_slot], truth->device, truth->device_bytes) != 0)
        rig_breach(rig, "the device state of the image is not that of checkpoint %lu", (unsigned long)seq);
}

void rig_mirror_step(struct rig *rig)
{
    struct mst_why why = {""};
    int r = mst_image_take(rig->image, 1, &why);

    rig->half += mst_image_half(rig->image);
    if (r < 0) {
        rig_breach(rig, "the mirror gave up: %d %s", r, why.text);
        return;
    }
    rig->records += r > 0;
    rig->commits += r == 2;
    if (rig->acks_count < RIG_ACKS && (r > 0 || rig_random(rig, 4) == 0)) {
        struct mst_mlog_ack *ack = &rig->acks[rig->acks_count++];
        mst_image_ack(rig->image, ack);
        rig->told = ack->seq;
    }
    if (r != 2)
        return;
    if (rig_random(rig, 2))
        mst_image_apply(rig->image);
    rig_check_image(rig, mst_image_seq(rig->image));
}

/* What is left to send, at once. */
static void send_rest(struct rig *rig)
{
    struct mst_msend_write write;

    while (rig->flying_count > 0)
        rig_wire_step(rig, RIG_FLYING);
    while (mst_msend_writes(rig->send, &write, 1) == 1) {
        memcpy(rig->log + write.offset, write.bytes, write.len);
        mst_msend_completed(rig->send, &write);
    }
}

bool rig_checkpoint(struct rig *rig)
{
    uint64_t before = rig->committed, steps = 0;

    while (!rig->breach[0] && (rig->committed == before || mst_msend_acked(rig->send) != rig->committed)) {
        if (rig->committed == before)
            rig_source_step(rig);
        else
            send_rest(rig);
        rig_wire_step(rig, RIG_FLYING);
        rig_mirror_step(rig);
        rig_ack_step(rig);
        if (++steps > 10000)
            rig_breach(rig, "no progress");
    }
    return !rig->breach[0];
}

/* --- stories --- */

static bool frozen(const struct rig *rig, uint64_t sums[4])
{
    uint64_t now[4] = {mst_crc32c(rig->shadow, RIG_RAM_BYTES), mst_crc32c(rig->save, rig->save_layout.bytes),
                       mst_crc32c(rig->record, 2 * MST_PUB_SLOT_BYTES), mst_crc32c(rig->delta, rig->delta_layout.bytes)};
    bool same = memcmp(now, sums, sizeof(now)) == 0;

    memcpy(sums, now, sizeof(now));
    return same;
}

/* The source is gone: some of what was on its way still arrives, until the log is revoked. What the image then has is checked. */
static void takeover(struct rig *rig, bool keeper_died)
{
    uint64_t released = mst_msend_acked(rig->send), epoch = 0, seq = 0, sums[4] = {0};
    struct mst_why why = {""};
    int r;

    rig_wire_step(rig, (unsigned)rig_random(rig, rig->flying_count + 1));
    if (keeper_died) {
        mst_image_free(rig->image);
        if (mst_image_new(&rig->image) < 0)
            abort();
        r = mst_image_adopt(rig->image, &rig->map, &why);
        if (r < 0 && rig->told == 0) { /* still being seeded: no mirror, and seeded anew */
            rig->grant.epoch++;
            return;
        }
    } else {
        if (mst_image_verify(rig->image, 1, &epoch, &seq, NULL) != -EBUSY || mst_image_clear(rig->image) != -EBUSY)
            rig_breach(rig, "an image was verified or cleared while its source could still write");
        r = mst_image_revoke(rig->image);
    }
    if (r < 0)
        rig_breach(rig, "revoke or adopt: %d %s", r, why.text);
    r = mst_image_verify(rig->image, 1, &epoch, &seq, &why);
    if (r == 0) {
        rig_check_image(rig, seq);
        rig->newer += seq > rig->told;
        if (memcmp(rig->shadow, rig->truth[seq % RIG_SEQS].ram, RIG_RAM_BYTES) != 0)
            rig_breach(rig, "verified, and not checkpoint %lu", (unsigned long)seq);
    }
    if (seq < released || seq < rig->told || (r < 0 && (r != -ENODATA || rig->told != 0)))
        rig_breach(rig, "acknowledged %lu, to the source's knowledge %lu; the image has %lu (%d %s)", (unsigned long)rig->told,
                   (unsigned long)released, (unsigned long)seq, r, why.text);
    frozen(rig, sums);
    rig_wire_step(rig, RIG_FLYING); /* as if the key were still good */
    rig->told = 0;
    if (mst_image_take(rig->image, 1, NULL) != -EBUSY || !frozen(rig, sums))
        rig_breach(rig, "the image changed after it was revoked");
    if (r == 0 && (epoch != rig->grant.epoch || mst_image_use(rig->image, epoch - 1) != -ESTALE ||
                   (rig_random(rig, 2) && mst_image_use(rig->image, epoch) < 0)))
        rig_breach(rig, "use of epoch %lu", (unsigned long)epoch);
    if (mst_image_clear(rig->image) < 0 || mst_image_seq(rig->image) != 0)
        rig_breach(rig, "clear");
}

/* Everything is delivered: then everything must be acknowledged, or it never will be. */
static void quiesce(struct rig *rig)
{
    for (unsigned i = 0; i < 400 && !rig->breach[0]; i++) {
        if (rig->seq)
            rig_source_step(rig);
        send_rest(rig);
        rig_mirror_step(rig);
        rig_ack_step(rig);
    }
    if (rig->committed != mst_msend_acked(rig->send))
        rig_breach(rig, "checkpoint %lu of %lu is acknowledged, and nothing is under way",
                   (unsigned long)mst_msend_acked(rig->send), (unsigned long)rig->committed);
}

const char *rig_story(struct rig *rig, uint64_t seed)
{
    rig_open(rig, seed);
    rig->renews = true;
    for (unsigned life = 0; life < 6 && !rig->breach[0]; life++) {
        uint64_t steps = 20 + rig_random(rig, 400), hurry = 1 + rig_random(rig, 300);

        rig_seed(rig, life > 0, 1 + rig_random(rig, 50));
        for (; steps > 0 && !rig->breach[0]; steps--) {
            uint64_t what = rig_random(rig, 8);

            if (what < 2 && rig->committed < mst_msend_acked(rig->send) + 8)
                rig_source_step(rig);
            else if (what < 5)
                rig_wire_step(rig, (unsigned)(1 + rig_random(rig, hurry)));
            else if (what < 7)
                rig_mirror_step(rig);
            else
                rig_ack_step(rig);
        }
        if (!rig->breach[0] && rig_random(rig, 3) == 0)
            quiesce(rig);
        if (!rig->breach[0])
            takeover(rig, rig_random(rig, 4) == 0);
    }
    rig_close(rig);
    return rig->breach[0] ? rig->breach : NULL;
}

/* --- forgeries --- */

/* Brings the next record into the log, changed by 64 or 32 bits at off and summed again, and takes it. */
static int forged(struct rig *rig, size_t off, size_t bytes, uint64_t change)
{
    struct mst_mlog_record record;
    uint64_t sums[MST_MLOG_PAGES_MAX], value = 0, at;
    uint8_t whole[RIG_RING];
    struct mst_mlog_ack ack;

    for (uint64_t seed = 3;; seed++) { /* until the third checkpoint is a single record */
        rig_open(rig, seed);
        rig_seed(rig, false, 4);
        if (!rig_checkpoint(rig) || !rig_checkpoint(rig))
            return 1;
        do
            rig_source_step(rig);
        while (rig->seq);
        mst_image_ack(rig->image, &ack);
        at = ack.consumed;
        for (uint64_t i = 0; i < RIG_RING; i++)
            whole[i] = rig->twin[MST_MLOG_RING_OFF + (at + i) % RIG_RING];
        memcpy(&record, whole, sizeof(record));
        if (record.flags & MST_MLOG_COMMIT && record.data_pages > 0)
            break;
        rig_close(rig);
    }
    for (uint32_t i = 0; i < record.data_pages; i++)
        sums[i] = mst_mlog_page_sum(whole + sizeof(record) + (size_t)i * MST_PAGE_BYTES);
    memcpy(&value, whole + off, bytes);
    value += change;
    memcpy(whole + off, &value, bytes);
    memcpy(&record, whole, sizeof(record));
    record.sum = mst_mlog_sum(&record, sums, whole + sizeof(record) + (size_t)record.data_pages * MST_PAGE_BYTES);
    memcpy(whole, &record, sizeof(record));
    for (uint64_t i = 0; i < record.record_bytes; i++)
        rig->log[MST_MLOG_RING_OFF + (at + i) % RIG_RING] = whole[i];
    return mst_image_take(rig->image, 1, NULL);
}

/* The source leaves out a page as equal which is not: the image would not be what the source has. */
static int left_out(struct rig *rig)
{
    rig_open(rig, 3);
    rig_seed(rig, false, 4);
    if (!rig_checkpoint(rig))
        return 1;
    rig->ram[5]++;
    rig_source_step(rig); /* begins */
    memcpy(rig->sent, rig->truth[rig->seq % RIG_SEQS].ram, MST_PAGE_BYTES);
    while (rig->seq)
        rig_source_step(rig);
    send_rest(rig);
    return mst_image_take(rig->image, 1, NULL);
}

/* A log of an epoch that was before. */
static int stale_seed(struct rig *rig)
{
    struct mst_mlog_grant grant;
    struct mst_save_map map;

    rig_open(rig, 3);
    rig_seed(rig, false, 4);
    if (!rig_checkpoint(rig) || mst_image_revoke(rig->image) < 0 || mst_image_clear(rig->image) < 0)
        return 1;
    grant = rig->grant;
    map = rig->map;
    grant.log_id++;
    map.epoch = --grant.epoch;
    return mst_image_seed(rig->image, &grant, rig->log, &map, NULL);
}

const char *rig_forgeries(struct rig *rig)
{
    const struct {
        const char *what;
        int (*of)(struct rig *rig);
        int expected;
    } others[] = {{"a page that was left out", left_out, -EUCLEAN}, {"an epoch that was", stale_seed, -ESTALE}};
#define HEAD(field) offsetof(struct mst_mlog_record, field), sizeof(((struct mst_mlog_record *)0)->field)
    const struct {
        const char *what;
        size_t off, bytes;
        uint64_t change;
        int expected;
    } cases[] = {
        {"none", HEAD(log_id), 0, 2},
        {"another log", HEAD(log_id), 1, 0},
        {"an older epoch", HEAD(epoch), UINT64_MAX, -ESTALE},
        {"a newer epoch", HEAD(epoch), 1, -ESTALE},
        {"another instance", HEAD(source_instance), 1, -ESTALE},
        {"a number too far", HEAD(sequence), 1, -EBADMSG},
        {"a number that was", HEAD(sequence), UINT64_MAX, 0},
        {"another place", HEAD(position), RIG_RING, -EBADMSG},
        {"another one before it", HEAD(prev_sum), 1, -EBADMSG},
        {"a checkpoint too far", HEAD(checkpoint), 1, -EBADMSG},
        {"a checkpoint that was", HEAD(checkpoint), UINT64_MAX, -EBADMSG},
        {"a seed", HEAD(flags), MST_MLOG_SEED, -EBADMSG},
        {"device state from further on", HEAD(device_off), 1, -EBADMSG},
    };
#undef HEAD
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        int r = forged(rig, cases[i].off, cases[i].bytes, cases[i].change);

        if (r != cases[i].expected)
            rig_breach(rig, "a record with %s: %d, expected %d", cases[i].what, r, cases[i].expected);
        rig_close(rig);
        if (rig->breach[0])
            return rig->breach;
    }
    for (unsigned i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        int r = others[i].of(rig);

        if (r != others[i].expected)
            rig_breach(rig, "%s: %d, expected %d", others[i].what, r, others[i].expected);
        rig_close(rig);
        if (rig->breach[0])
            return rig->breach;
    }
    return NULL;
}
