#include "mirror/image.h"

#include "base/fault.h"
#include "base/mutant.h"
#include "base/state.h"
#include "shm/put.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const struct mst_state states[MST_IMAGE_STATES] = {
    [MST_IMAGE_EMPTY] = {"empty", MST_TO(MST_IMAGE_SEEDING) | MST_TO(MST_IMAGE_REVOKED)}, /* revoked: adopted */
    [MST_IMAGE_SEEDING] = {"seeding", MST_TO(MST_IMAGE_MIRRORING) | MST_TO(MST_IMAGE_REVOKED)},
    [MST_IMAGE_MIRRORING] = {"mirroring", MST_TO(MST_IMAGE_REVOKED)},
    [MST_IMAGE_REVOKED] = {"revoked", MST_TO(MST_IMAGE_VERIFIED) | MST_TO(MST_IMAGE_CLEARED)},
    [MST_IMAGE_VERIFIED] = {"verified", MST_TO(MST_IMAGE_USED) | MST_TO(MST_IMAGE_CLEARED)},
    [MST_IMAGE_USED] = {"used", MST_TO(MST_IMAGE_CLEARED)},
    [MST_IMAGE_CLEARED] = {"cleared", MST_TO(MST_IMAGE_SEEDING)},
};

struct mst_image {
    enum mst_image_state state;
    struct mst_mlog_grant grant;
    const uint8_t *log; /* the source writes there until it is revoked: looked at by ring_get alone */
    struct mst_save_map map;
    struct mst_save_writer *writer;
    int err; /* final: nothing is taken any more */
    struct mst_why why;

    bool head_seen, half;
    uint64_t consumed, sequence, prev_sum; /* of the last record that was taken */
    uint64_t open;                         /* checkpoint of which records were taken and no commit, 0: none */
    uint64_t device_off;                   /* of its device state that is there */
    uint64_t acked, credit;                /* what the source is told: checkpoint, and position up to which its ring is free */
    uint64_t scrubbed;                     /* page that is to be looked at next */

    uint8_t *copy; /* a record, private */
    uint64_t page_sums[MST_MLOG_PAGES_MAX];
    uint32_t zero_sum;
};

static const uint8_t zero_page[MST_PAGE_BYTES];

static void move(struct mst_image *image, enum mst_image_state next)
{
    if (!mst_state_may(states, MST_IMAGE_STATES, image->state, next))
        abort(); /* a hole in the table above: going on could resume half a checkpoint */
    image->state = next;
}

const char *mst_image_state_name(enum mst_image_state state)
{
    return mst_state_name(states, MST_IMAGE_STATES, state);
}

int mst_image_new(struct mst_image **ret_image)
{
    struct mst_image *image = calloc(1, sizeof(*image));

    if (!image)
        return -ENOMEM;
    image->copy = aligned_alloc(MST_MLOG_LINE, MST_MLOG_RECORD_MAX);
    if (!image->copy) {
        free(image);
        return -ENOMEM;
    }
    image->zero_sum = mst_page_sum(zero_page);
    *ret_image = image;
    return 0;
}

void mst_image_free(struct mst_image *image)
{
    if (!image)
        return;
    mst_save_writer_free(image->writer);
    free(image->copy);
    free(image);
}

enum mst_image_state mst_image_state(const struct mst_image *image)
{
    return image->state;
}

uint64_t mst_image_seq(const struct mst_image *image)
{
    return image->writer && mst_save_source(image->writer) != MST_SAVE_NONE ? mst_save_seq(image->writer) : 0;
}

uint64_t mst_image_epoch(const struct mst_image *image)
{
    return image->map.epoch;
}

bool mst_image_half(const struct mst_image *image)
{
    return image->half;
}

/* --- beginning --- */

int mst_image_seed(struct mst_image *image, const struct mst_mlog_grant *grant, uint8_t *log, const struct mst_save_map *map,
                   struct mst_why *why)
{
    struct mst_save_writer *writer;
    int r;

    if (image->state != MST_IMAGE_EMPTY && image->state != MST_IMAGE_CLEARED)
        return mst_why_set(why, -EBUSY, "mirror: the image is %s", mst_image_state_name(image->state));
    if ((grant->epoch < image->map.epoch && !MST_MUTANT(68)) || grant->log_id == image->grant.log_id)
        return mst_why_set(why, -ESTALE, "mirror: epoch %" PRIu64 " is asked for, the image was of epoch %" PRIu64, grant->epoch,
                           image->map.epoch);
    r = mst_mlog_grant_check(grant, why);
    if (r < 0)
        return r;
    if (map->ram || !map->shadow || map->ram_bytes != grant->ram_bytes || map->epoch != grant->epoch ||
        map->delta_capacity != grant->delta_capacity || map->instance != grant->mirror_instance)
        return mst_why_set(why, -EINVAL, "mirror: the regions do not fit what is granted");
    r = mst_save_writer_new(map, &writer);
    if (r < 0)
        return r;
    mst_save_writer_free(image->writer);
    image->writer = writer;
    image->grant = *grant;
    image->map = *map;
    image->log = log;
    memset(log, 0, mst_mlog_bytes(grant->ring_bytes));
    image->err = 0;
    image->head_seen = image->half = false;
    image->consumed = image->sequence = image->prev_sum = image->open = image->device_off = 0;
    image->acked = image->credit = image->scrubbed = 0;
    move(image, MST_IMAGE_SEEDING);
    return 0;
}

int mst_image_adopt(struct mst_image *image, const struct mst_save_map *map, struct mst_why *why)
{
    struct mst_save_writer *writer;
    int r;

    if (image->state != MST_IMAGE_EMPTY || map->ram || !map->shadow)
        return mst_why_set(why, -EINVAL, "mirror: the image is %s", mst_image_state_name(image->state));
    r = mst_save_writer_attach(map, &writer);
    if (r < 0)
        return mst_why_set(why, r, "mirror: what an earlier keeper left of epoch %" PRIu64 " is not usable", map->epoch);
    if (mst_save_source(writer) != MST_SAVE_SHADOW) {
        mst_save_writer_free(writer);
        return mst_why_set(why, -ENODATA, "mirror: an earlier keeper left no checkpoint of epoch %" PRIu64, map->epoch);
    }
    image->writer = writer;
    image->map = *map;
    move(image, MST_IMAGE_REVOKED);
    return 0;
}

/* --- a record --- */

static void ring_get(const struct mst_image *image, uint64_t position, void *to, uint64_t len)
{
    uint64_t at = position % image->grant.ring_bytes, first = image->grant.ring_bytes - at;

    if (first > len)
        first = len;
    mst_get_words(to, image->log + MST_MLOG_RING_OFF + at, first);
    mst_get_words((uint8_t *)to + first, image->log + MST_MLOG_RING_OFF, len - first);
}

static struct mst_mlog_record *record_of(const struct mst_image *image)
{
    return (struct mst_mlog_record *)(void *)image->copy;
}

/* Whether its first checkpoint is not whole yet: pages go straight into the shadow, which no record names. */
static bool is_seeding(const struct mst_image *image)
{
    return mst_save_source(image->writer) == MST_SAVE_NONE;
}

static uint8_t *rest_of(const struct mst_image *image)
{
    return image->copy + sizeof(struct mst_mlog_record) + (size_t)record_of(image)->data_pages * MST_PAGE_BYTES;
}

/* 0 there, or was; -EAGAIN not yet, -errno. */
static int head_look(struct mst_image *image, struct mst_why *why)
{
    struct mst_mlog_head head;
    int r;

    if (image->head_seen)
        return 0;
    mst_get_words(&head, image->log, sizeof(head));
    r = mst_mlog_head_check(&head, &image->grant, why);
    if (r == 0) {
        image->prev_sum = head.sum;
        image->head_seen = true;
    }
    return r;
}

/* Copies what may be the next record; its sum decides. 1 it is whole, in image->copy; 0 it is not there. No byte of it is believed before, but for
 * its length, which is checked against what there is room for. */
static int record_look(struct mst_image *image)
{
    struct mst_mlog_record *record = record_of(image);
    const uint8_t *pages = image->copy + sizeof(*record);

    image->half = false;
    ring_get(image, image->consumed, record, sizeof(*record));
    if (record->log_id != image->grant.log_id || record->sequence <= image->sequence)
        return 0;
    image->half = true;
    if (mst_mlog_record_check(record, mst_mlog_record_max(image->grant.ring_bytes), NULL) < 0)
        return 0;
    if (MST_MUTANT(61) && (record->flags & MST_MLOG_COMMIT))
        image->acked = record->checkpoint;
    if (MST_MUTANT(66))
        image->credit = image->consumed + record->record_bytes;
    ring_get(image, image->consumed + sizeof(*record), image->copy + sizeof(*record), record->record_bytes - sizeof(*record));
    for (uint32_t i = 0; i < record->data_pages; i++)
        image->page_sums[i] = mst_mlog_page_sum(pages + (size_t)i * MST_PAGE_BYTES);
    if (mst_mlog_sum(record, image->page_sums, rest_of(image)) != record->sum && !MST_MUTANT(63))
        return 0;
    image->half = false;
    return 1;
}

/* A whole record: whether it is the source's next one. Epoch before everything else that could make it look new. */
static int record_is_next(const struct mst_image *image, struct mst_why *why)
{
    const struct mst_mlog_record *record = record_of(image);

    if ((record->epoch != image->grant.epoch && !MST_MUTANT(62)) ||
        (record->source_instance != image->grant.source_instance && !MST_MUTANT(70)))
        return mst_why_set(why, -ESTALE,
                           "mirror log: record of epoch %" PRIu64 " instance %016" PRIx64 ", granted are %" PRIu64 " %016" PRIx64,
                           record->epoch, record->source_instance, image->grant.epoch, image->grant.source_instance);
    if (!MST_MUTANT(67) &&
        (record->sequence != image->sequence + 1 || record->position != image->consumed || record->prev_sum != image->prev_sum))
        return mst_why_set(why, -EBADMSG, "mirror log: record %" PRIu64 " at %" PRIu64 " is not the one after %" PRIu64,
                           record->sequence, record->position, image->sequence);
    return 0;
}

/* Whether it belongs where the image is. */
static int record_fits(const struct mst_image *image, struct mst_why *why)
{
    const struct mst_mlog_record *record = record_of(image);
    bool seed = (record->flags & MST_MLOG_SEED) != 0, seeding = is_seeding(image);
    uint64_t expected = image->open ? image->open : seeding ? record->checkpoint : mst_save_seq(image->writer) + 1;

    if (seeding && image->device_off == 0 && record->checkpoint > expected)
        expected = record->checkpoint; /* while it was seeded the source has taken a later one */
    if (seed != seeding || record->checkpoint == 0 || record->checkpoint != expected)
        return mst_why_set(why, -EBADMSG, "mirror log: record %" PRIu64 " is of checkpoint %" PRIu64 "%s, expected is %" PRIu64,
                           record->sequence, record->checkpoint, seed ? " (seed)" : "", expected);
    if (record->device_bytes &&
        (record->device_off != image->device_off || (uint64_t)record->device_off + record->device_bytes > MST_DEVICE_BYTES_MAX))
        return mst_why_set(why, -EBADMSG, "mirror log: record %" PRIu64 " has device state from %" PRIu32 ", there are %" PRIu64,
                           record->sequence, record->device_off, image->device_off);
    return mst_mlog_runs_check(record, (const struct mst_mlog_run *)(const void *)rest_of(image),
                               image->grant.ram_bytes / MST_PAGE_BYTES, why);
}

static int page_put(struct mst_image *image, uint64_t page, const uint8_t *bytes, uint32_t sum)
{
    if (is_seeding(image))
        return mst_save_fill_page(image->writer, page, bytes, sum);
    return mst_save_stage_page(image->writer, page, bytes, sum);
}

/* Into shadow (seed) or delta and the free device slot: nothing that the published record names. */
static int record_put(struct mst_image *image, struct mst_why *why)
{
    const struct mst_mlog_record *record = record_of(image);
    const struct mst_mlog_run *runs = (const struct mst_mlog_run *)(const void *)rest_of(image);
    const uint8_t *data = image->copy + sizeof(*record), *device;
    uint64_t room, page;
    uint32_t at = 0;
    int r = 0;

    for (uint32_t i = 0; i < record->runs; i++)
        for (page = runs[i].page; page < (uint64_t)runs[i].page + runs[i].pages && r == 0; page++) {
            if (runs[i].kind == MST_MLOG_ZERO) {
                r = page_put(image, page, zero_page, image->zero_sum);
                continue;
            }
            r = page_put(image, page, data + (size_t)at * MST_PAGE_BYTES, (uint32_t)image->page_sums[at]);
            at++;
        }
    if (r < 0)
        return mst_why_set(why, r, "mirror: checkpoint %" PRIu64 " has more than %" PRIu32 " pages", record->checkpoint,
                           image->map.delta_capacity);
    device = (const uint8_t *)(runs + record->runs);
    if (record->flags & MST_MLOG_COMMIT)
        device += sizeof(struct mst_mlog_commit);
    if (record->device_bytes)
        mst_put_bytes(mst_save_device(image->writer, &room) + image->device_off, device, record->device_bytes);
    image->device_off += record->device_bytes;
    return 0;
}

static int commit(struct mst_image *image, uint64_t boot_ns, struct mst_why *why)
{
    const struct mst_mlog_record *record = record_of(image);
    struct mst_mlog_commit c;
    int r;

    memcpy(&c, rest_of(image) + record->runs * sizeof(struct mst_mlog_run), sizeof(c));
    if (c.device_bytes != image->device_off || c.device_bytes == 0)
        return mst_why_set(why, -EBADMSG, "mirror log: checkpoint %" PRIu64 " has %" PRIu64 " bytes of device state of %" PRIu64,
                           record->checkpoint, image->device_off, c.device_bytes);
    if (c.ram_digest != mst_save_next_digest(image->writer) && !MST_MUTANT(69))
        return mst_why_set(why, -EUCLEAN, "mirror: with checkpoint %" PRIu64 " the image is not what the source has",
                           record->checkpoint);
    MST_POINT("mirror.commit");
    if (!is_seeding(image)) {
        r = mst_save_commit(image->writer, c.device_bytes, c.pause_ns, c.taken_wall_ms, boot_ns);
    } else {
        r = mst_save_number(image->writer, record->checkpoint);
        if (r == 0)
            r = mst_save_commit_filled(image->writer, c.device_bytes, c.pause_ns, c.taken_wall_ms, boot_ns);
    }
    if (r < 0)
        return mst_why_set(why, r == -EAGAIN ? -EBADMSG : r, "mirror: checkpoint %" PRIu64 " cannot be committed: %s",
                           record->checkpoint, r == -EAGAIN ? "not all pages came" : mst_errname(r));
    if (image->state == MST_IMAGE_SEEDING)
        move(image, MST_IMAGE_MIRRORING);
    image->acked = record->checkpoint;
    image->open = 0;
    image->device_off = 0;
    return 0;
}

static int record_take(struct mst_image *image, uint64_t boot_ns, struct mst_why *why)
{
    const struct mst_mlog_record *record = record_of(image);
    int r = record_is_next(image, why);

    if (r == 0)
        r = record_fits(image, why);
    if (r < 0)
        return r;
    if (!image->open)
        mst_save_begin(image->writer); /* the delta of the one before goes into the shadow */
    image->open = record->checkpoint;
    r = record_put(image, why);
    if (r == 0 && (record->flags & MST_MLOG_COMMIT))
        r = commit(image, boot_ns, why);
    if (r < 0)
        return r;
    image->consumed += record->record_bytes;
    image->credit = image->consumed;
    image->sequence = record->sequence;
    image->prev_sum = record->sum;
    return record->flags & MST_MLOG_COMMIT ? 2 : 1;
}

/* Without looking at the state. */
static int take(struct mst_image *image, uint64_t boot_ns)
{
    int r;

    if (image->err < 0)
        return image->err;
    r = head_look(image, &image->why);
    if (r == 0)
        r = record_look(image);
    if (r == 1)
        r = record_take(image, boot_ns, &image->why);
    if (r == -EAGAIN)
        return 0;
    image->err = r < 0 ? r : 0;
    return r;
}

int mst_image_take(struct mst_image *image, uint64_t boot_ns, struct mst_why *why)
{
    int r;

    if (image->state != MST_IMAGE_SEEDING && image->state != MST_IMAGE_MIRRORING && !MST_MUTANT(65))
        return mst_why_set(why, -EBUSY, "mirror: the image is %s", mst_image_state_name(image->state));
    r = take(image, boot_ns);
    return r < 0 ? mst_why_set(why, r, "%s", image->why.text) : r;
}

void mst_image_ack(const struct mst_image *image, struct mst_mlog_ack *ret_ack)
{
    *ret_ack = (struct mst_mlog_ack){
        .log_id = image->grant.log_id, .epoch = image->grant.epoch, .seq = image->acked, .consumed = image->credit};
}

void mst_image_apply(struct mst_image *image)
{
    if (image->writer)
        mst_save_apply(image->writer);
}

/* What the published record says, and the device state that it names. */
static int named(const struct mst_save_map *map, struct mst_save_record *ret_record, struct mst_save_layout *ret_layout,
                 struct mst_why *why)
{
    struct mst_pub_head head;
    int r = mst_pub_read(map->record, &head, ret_record, sizeof(*ret_record));

    if (r < 0)
        return mst_why_set(why, r, "mirror: the image's record is %s", r == -ENODATA ? "not there" : "torn");
    r = mst_save_record_check(ret_record, map->ram_bytes, map->delta_capacity, why);
    if (r == 0)
        r = mst_save_layout(map->ram_bytes, ret_layout);
    if (r < 0)
        return r;
    if (head.epoch != map->epoch || ret_record->source != MST_SAVE_SHADOW)
        return mst_why_set(why, -EBADMSG, "mirror: the image's record is not that of a checkpoint of epoch %" PRIu64, map->epoch);
    return mst_save_device_check(ret_record, map->save + ret_layout->device_off[ret_record->device_slot], why);
}

/* Shadow and its sums change together, in take and apply, so they fit each other whatever was staged or committed since. */
int mst_image_scrub(struct mst_image *image, uint64_t count, struct mst_why *why)
{
    uint64_t pages = image->map.ram_bytes / MST_PAGE_BYTES, first = image->scrubbed, good;
    struct mst_save_layout layout = {0};
    struct mst_save_record record;
    const uint32_t *sums;
    int r;

    if (image->state != MST_IMAGE_MIRRORING)
        return -EBUSY;
    r = first == 0 ? named(&image->map, &record, &layout, why) : mst_save_layout(image->map.ram_bytes, &layout);
    if (r < 0)
        return r == -ENODATA ? -EBADMSG : r;
    if (count > pages - first)
        count = pages - first;
    sums = (const uint32_t *)(const void *)(image->map.save + layout.shadow_sums_off);
    good = mst_pages_check(image->map.shadow + first * MST_PAGE_BYTES, sums + first, count);
    if (good != count && !MST_MUTANT(75))
        return mst_why_set(why, -EBADMSG, "mirror: page %" PRIu64 " of the image is not what came in: memory has rotted", first + good);
    image->scrubbed = (first + count) % pages;
    return image->scrubbed == 0;
}

/* --- the end --- */

int mst_image_revoke(struct mst_image *image)
{
    if (image->state == MST_IMAGE_REVOKED)
        return 0;
    if (image->state != MST_IMAGE_SEEDING && image->state != MST_IMAGE_MIRRORING)
        return -EBUSY;
    move(image, MST_IMAGE_REVOKED);
    return 0;
}

/* Every byte that the record names, as somebody reads it who does not know who wrote it. */
static int whole(const struct mst_save_map *map, struct mst_why *why)
{
    struct mst_save_layout layout = {0};
    struct mst_save_record record;
    const uint32_t *sums;
    uint64_t pages = map->ram_bytes / MST_PAGE_BYTES, good;
    int r = named(map, &record, &layout, why);

    if (r < 0)
        return r;
    if (record.delta_pages != 0)
        return mst_why_set(why, -EBADMSG, "mirror: the image's last checkpoint is not applied");
    sums = (const uint32_t *)(const void *)(map->save + layout.shadow_sums_off);
    r = mst_save_sums_check(&record, sums, why);
    if (r < 0)
        return r;
    good = mst_pages_check(map->shadow, sums, pages);
    return good == pages ? 0
                         : mst_why_set(why, -EBADMSG, "mirror: page %" PRIu64 " of the image does not match its checksum", good);
}

int mst_image_verify(struct mst_image *image, uint64_t boot_ns, uint64_t *ret_epoch, uint64_t *ret_seq, struct mst_why *why)
{
    int r;

    if (image->state == MST_IMAGE_VERIFIED)
        goto told;
    if (image->state != MST_IMAGE_REVOKED)
        return mst_why_set(why, -EBUSY, "mirror: the image is %s", mst_image_state_name(image->state));
    /* Whole but not taken yet: newer than what was acknowledged, and the source's own. */
    while (image->log && take(image, boot_ns) > 0)
        ;
    if (mst_image_seq(image) == 0)
        return mst_why_set(why, -ENODATA, "mirror: the image holds no checkpoint yet");
    mst_save_begin(image->writer); /* what has no commit is dropped, what has one is applied */
    r = whole(&image->map, why);
    if (r < 0)
        return r;
    move(image, MST_IMAGE_VERIFIED);
told:
    *ret_epoch = image->map.epoch;
    *ret_seq = mst_image_seq(image);
    return 0;
}

int mst_image_use(struct mst_image *image, uint64_t epoch)
{
    if (image->state != MST_IMAGE_VERIFIED)
        return -EBUSY;
    if (epoch != image->map.epoch)
        return -ESTALE;
    move(image, MST_IMAGE_USED);
    return 0;
}

int mst_image_clear(struct mst_image *image)
{
    if (image->state == MST_IMAGE_EMPTY || image->state == MST_IMAGE_CLEARED)
        return 0;
    if (image->state == MST_IMAGE_SEEDING || image->state == MST_IMAGE_MIRRORING)
        return -EBUSY;
    mst_save_withdraw(image->writer);
    image->log = NULL;
    image->acked = 0;
    move(image, MST_IMAGE_CLEARED);
    return 0;
}
