#include "shm/publish.h"
#include "base/fault.h"
#include "base/mutant.h"
#include "shm/put.h"

#include <errno.h>
#include <isa-l.h>
#include <limits.h>

#define READ_TRIES 8

#ifdef MST_FAULT_POINTS
void (*mst_put_hook)(enum mst_put_kind kind, void *dst, const void *src, size_t len);
#endif

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "main storage is little-endian and is written as it lies in memory");

/* Running CRC32C, not yet inverted at the end: ISA-L's function neither inverts the seed nor the result. */
static uint32_t crc_add(uint32_t crc, const void *data, size_t len)
{
    const uint8_t *at = data;

    while (len > 0) {
        int part = len > INT_MAX ? INT_MAX : (int)len;
        crc = crc32_iscsi((unsigned char *)at, part, crc); /* it only reads; the cast drops const */
        at += part;
        len -= (size_t)part;
    }
    return crc;
}

uint32_t mst_crc32c(const void *data, size_t len)
{
    return ~crc_add(~UINT32_C(0), data, len);
}

/* Sum over the head, but for the sum itself, and the body. */
static uint32_t record_sum(const struct mst_pub_head *head, const void *body)
{
    const uint8_t *bytes = (const uint8_t *)head;
    size_t after = offsetof(struct mst_pub_head, crc32c) + sizeof(head->crc32c);
    uint32_t crc = ~UINT32_C(0);

    crc = crc_add(crc, bytes, offsetof(struct mst_pub_head, crc32c));
    crc = crc_add(crc, bytes + after, sizeof(*head) - after);
    return ~crc_add(crc, body, MST_MUTANT(14) ? 0 : head->body_bytes);
}

/* slot: a private copy. */
static bool slot_whole(const uint8_t slot[MST_PUB_SLOT_BYTES], struct mst_pub_head *ret_head)
{
    memcpy(ret_head, slot, sizeof(*ret_head));
    if (ret_head->version == 0 || (ret_head->version & 1) != 0)
        return false;
    if (ret_head->body_bytes == 0 || ret_head->body_bytes > MST_PUB_BODY_MAX)
        return false;
    return MST_MUTANT(15) || record_sum(ret_head, slot + sizeof(*ret_head)) == ret_head->crc32c;
}

/* Index of the newest whole slot of a private copy whose body has body_bytes (0: any), -1 when there is none. */
static int newest_whole(const uint8_t copy[2][MST_PUB_SLOT_BYTES], uint32_t body_bytes, struct mst_pub_head *ret_head)
{
    int newest = -1;

    for (int i = 0; i < 2; i++) {
        struct mst_pub_head head;
        if (!slot_whole(copy[i], &head) || (body_bytes != 0 && head.body_bytes != body_bytes))
            continue;
        if (newest >= 0 && (MST_MUTANT(13) ? head.version >= ret_head->version : head.version <= ret_head->version))
            continue;
        newest = i;
        *ret_head = head;
    }
    return newest;
}

/* The slot that no reader needs: not the newest whole one; without a whole one, the one of the smaller version. */
static int older_slot(const uint8_t copy[2][MST_PUB_SLOT_BYTES], uint64_t *ret_base)
{
    struct mst_pub_head published = {0}, heads[2];
    int newest = newest_whole(copy, 0, &published);
    int older;

    memcpy(&heads[0], copy[0], sizeof(heads[0]));
    memcpy(&heads[1], copy[1], sizeof(heads[1]));
    if (newest >= 0)
        older = 1 - newest;
    else
        older = heads[1].version < heads[0].version ? 1 : 0;
    /* New versions stay above those of both slots, also above one that was left half written. A version near the end can only be
     * damage: counting on from it would wrap below the published one. */
    *ret_base = published.version;
    for (int i = 0; i < 2; i++) {
        if (heads[i].version > *ret_base && heads[i].version < UINT64_MAX / 2)
            *ret_base = heads[i].version;
    }
    return older;
}

void mst_pub_write(uint8_t slots[2][MST_PUB_SLOT_BYTES], uint64_t epoch, uint64_t instance, const void *body, uint32_t body_bytes)
{
    _Alignas(8) uint8_t copy[2][MST_PUB_SLOT_BYTES];
    _Alignas(8) uint8_t next[MST_PUB_SLOT_BYTES] = {0};
    struct mst_pub_head head = {.body_bytes = body_bytes, .epoch = epoch, .instance = instance};
    uint64_t base;
    uint8_t *slot;

    assert(body_bytes > 0 && body_bytes <= MST_PUB_BODY_MAX);
    mst_get_words(copy, slots, sizeof(copy));
    slot = slots[older_slot((const uint8_t(*)[MST_PUB_SLOT_BYTES])copy, &base)];
    head.version = (base & ~UINT64_C(1)) + 2;
    head.crc32c = record_sum(&head, body);
    memcpy(next, &head, sizeof(head));
    memcpy(next + sizeof(head), body, body_bytes);

    mst_put_u64(slot, head.version - 1);
    MST_POINT("pub.inside");
    mst_put_words(slot + 8, next + 8, sizeof(next) - 8);
    mst_put_u64(slot, head.version);
    mst_put_barrier(); /* the caller may now overwrite what only the record before this one needed */
}

void mst_pub_clear(uint8_t slots[2][MST_PUB_SLOT_BYTES])
{
    static const uint8_t zero[MST_PUB_SLOT_BYTES - 8];
    _Alignas(8) uint8_t copy[2][MST_PUB_SLOT_BYTES];
    uint64_t base;
    int older;

    mst_get_words(copy, slots, sizeof(copy));
    older = older_slot((const uint8_t(*)[MST_PUB_SLOT_BYTES])copy, &base);
    mst_put_u64(slots[older], 0);
    mst_put_u64(slots[1 - older], 0);
    mst_put_words(slots[older] + 8, zero, sizeof(zero));
    mst_put_words(slots[1 - older] + 8, zero, sizeof(zero));
    mst_put_barrier();
}

int mst_pub_pick(const uint8_t copy[2][MST_PUB_SLOT_BYTES], struct mst_pub_head *ret_head, void *ret_body, uint32_t body_bytes)
{
    struct mst_pub_head head = {0};
    uint64_t versions[2];
    int newest;

    if (body_bytes == 0 || body_bytes > MST_PUB_BODY_MAX)
        return -EBADMSG;
    newest = newest_whole(copy, body_bytes, &head);
    if (newest < 0) {
        memcpy(&versions[0], copy[0], 8);
        memcpy(&versions[1], copy[1], 8);
        return versions[0] == 0 && versions[1] == 0 ? -ENODATA : -EBADMSG;
    }
    *ret_head = head;
    memcpy(ret_body, copy[newest] + sizeof(head), body_bytes);
    return 0;
}

int mst_pub_confirm(const uint8_t again[2][MST_PUB_SLOT_BYTES], const struct mst_pub_head *picked)
{
    static const uint64_t never;

    if (!picked)
        return memcmp(again[0], &never, 8) == 0 && memcmp(again[1], &never, 8) == 0 ? 0 : -EAGAIN;
    for (int i = 0; i < 2; i++) {
        if (memcmp(again[i], picked, sizeof(*picked)) == 0)
            return 0;
    }
    return -EAGAIN;
}

int mst_pub_read(uint8_t (*slots)[MST_PUB_SLOT_BYTES], struct mst_pub_head *ret_head, void *ret_body, uint32_t body_bytes)
{
    _Alignas(8) uint8_t copy[2][MST_PUB_SLOT_BYTES], body[MST_PUB_BODY_MAX];
    const uint8_t(*view)[MST_PUB_SLOT_BYTES] = (const uint8_t(*)[MST_PUB_SLOT_BYTES])copy;
    struct mst_pub_head head;
    int r = -EBADMSG;

    for (int tries = 0; tries < READ_TRIES; tries++) {
        mst_get_words(copy, slots, sizeof(copy));
        r = mst_pub_pick(view, &head, body, body_bytes);
        if (r == -EBADMSG)
            continue;
        if (r < 0)
            return r;
        mst_get_words(copy, slots, sizeof(copy));
        r = mst_pub_confirm(view, &head);
        if (r == 0) {
            *ret_head = head;
            memcpy(ret_body, body, body_bytes);
            return 0;
        }
    }
    return r;
}
