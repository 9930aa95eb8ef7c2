#include "proto/frame.h"

#include "proto/check.h"

#include <errno.h>
#include <inttypes.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

static_assert(MST_MESSAGE_BYTES_MAX > MST_FRAME_HEADER_BYTES, "room for an envelope");

static uint16_t get_le16(const uint8_t *at)
{
    return (uint16_t)(at[0] | at[1] << 8);
}

static uint32_t get_le32(const uint8_t *at)
{
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static void put_header(uint8_t *at, uint32_t body_bytes)
{
    at[0] = MST_FRAME_MAGIC & 0xff;
    at[1] = MST_FRAME_MAGIC >> 8;
    at[2] = MST_PROTOCOL_VERSION & 0xff;
    at[3] = MST_PROTOCOL_VERSION >> 8;
    for (unsigned i = 0; i < 4; i++)
        at[4 + i] = (uint8_t)(body_bytes >> (8 * i));
}

void *mst_message_copy(const ProtobufCMessage *message)
{
    size_t bytes = protobuf_c_message_get_packed_size(message);
    uint8_t *packed = malloc(bytes ? bytes : 1);
    void *copy = NULL;

    if (packed) {
        protobuf_c_message_pack(message, packed);
        copy = protobuf_c_message_unpack(message->descriptor, NULL, bytes, packed);
    }
    free(packed);
    return copy;
}

int mst_frame_pack_why(const mst_envelope *env, uint8_t *out, size_t out_bytes, struct mst_why *why)
{
    size_t bytes;
    int r;

    if (env->body_case == MAINSTAY__ENVELOPE__BODY__NOT_SET)
        return mst_why_set(why, -EINVAL, "the message has no body");
    /* Without repair nothing is written to: the cast only lets sender and receiver share one walk. */
    r = mst_check_message((ProtobufCMessage *)env, false, why);
    if (r < 0)
        return r == -EBADMSG ? -EINVAL : r;
    bytes = mainstay__envelope__get_packed_size(env);
    if (bytes > MST_ENVELOPE_BYTES_MAX || bytes + MST_FRAME_HEADER_BYTES > out_bytes)
        return mst_why_set(why, -EMSGSIZE, "the message has %zu bytes, allowed %u", bytes, MST_ENVELOPE_BYTES_MAX);
    put_header(out, (uint32_t)bytes);
    mainstay__envelope__pack(env, out + MST_FRAME_HEADER_BYTES);
    return (int)(bytes + MST_FRAME_HEADER_BYTES);
}

int mst_frame_pack(const mst_envelope *env, uint8_t *out, size_t out_bytes)
{
    return mst_frame_pack_why(env, out, out_bytes, NULL);
}

int mst_frame_header(const uint8_t *data, size_t len, size_t *ret_frame_bytes, struct mst_why *why)
{
    uint32_t body_bytes;

    if (len < MST_FRAME_HEADER_BYTES)
        return mst_why_set(why, -EPROTO, "a frame of %zu bytes is shorter than its header of %u", len, MST_FRAME_HEADER_BYTES);
    if (get_le16(data) != MST_FRAME_MAGIC)
        return mst_why_set(why, -EPROTO, "frame starts with 0x%04x, wanted 0x%04x: this is not a Mainstay peer", get_le16(data),
                           MST_FRAME_MAGIC);
    if (get_le16(data + 2) != MST_PROTOCOL_VERSION)
        return mst_why_set(why, -EPROTONOSUPPORT, "peer speaks protocol version %u, this program speaks version %u",
                           get_le16(data + 2), MST_PROTOCOL_VERSION);
    body_bytes = get_le32(data + 4);
    if (body_bytes > MST_ENVELOPE_BYTES_MAX)
        return mst_why_set(why, -EMSGSIZE, "frame announces %" PRIu32 " bytes, allowed %u", body_bytes, MST_ENVELOPE_BYTES_MAX);
    *ret_frame_bytes = MST_FRAME_HEADER_BYTES + body_bytes;
    return 0;
}

/* What one unpack holds at most: a small message can ask for a lot (each empty element of a list costs a whole struct).
 * Plain malloc(3) underneath, so that what is unpacked is freed without this allocator. */
struct budget {
    size_t used;
    bool out_of_memory;
};

static void *budget_alloc(void *data, size_t size)
{
    struct budget *budget = data;
    void *at;

    if (size > MST_UNPACK_BYTES_MAX || budget->used > MST_UNPACK_BYTES_MAX - size)
        return NULL;
    at = malloc(size ? size : 1);
    if (at)
        budget->used += malloc_usable_size(at);
    else
        budget->out_of_memory = true;
    return at;
}

static void budget_free(void *data, void *at)
{
    struct budget *budget = data;

    if (!at)
        return;
    budget->used -= malloc_usable_size(at);
    free(at);
}

static int refuse_no_body(const mst_envelope *env, struct mst_why *why)
{
    if (env->base.n_unknown_fields > 0)
        return mst_why_set(why, -EBADMSG, "message of an unknown kind (field %" PRIu32 ")", env->base.unknown_fields[0].tag);
    return mst_why_set(why, -EBADMSG, "message without a body");
}

int mst_frame_unpack(const void *data, size_t len, mst_envelope **ret_env, struct mst_why *why)
{
    struct budget budget = {0};
    ProtobufCAllocator allocator = {.alloc = budget_alloc, .free = budget_free, .allocator_data = &budget};
    mst_envelope *env;
    size_t frame_bytes;
    int r;

    r = mst_frame_header(data, len, &frame_bytes, why);
    if (r < 0)
        return r;
    if (frame_bytes != len)
        return mst_why_set(why, -EPROTO, "frame of %zu bytes announces %zu", len, frame_bytes);
    env = mainstay__envelope__unpack(&allocator, len - MST_FRAME_HEADER_BYTES, (const uint8_t *)data + MST_FRAME_HEADER_BYTES);
    if (!env && budget.out_of_memory)
        return mst_why_set(why, -ENOMEM, "no memory to unpack a message of %zu bytes", len);
    if (!env)
        return mst_why_set(why, -EBADMSG, "not a message, or one that takes more than %u bytes unpacked", MST_UNPACK_BYTES_MAX);
    if (env->body_case == MAINSTAY__ENVELOPE__BODY__NOT_SET)
        r = refuse_no_body(env, why);
    else
        r = mst_check_message(&env->base, true, why);
    if (r < 0) {
        mst_envelope_free(env);
        return r;
    }
    *ret_env = env;
    return 0;
}

void mst_envelope_free(mst_envelope *env)
{
    if (env)
        mainstay__envelope__free_unpacked(env, NULL);
}
