#include "fabric/wire.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

struct hello_wire {
    uint16_t magic;
    uint8_t version, role, recvs, data_bytes;
    uint16_t reserved;
};
struct reject_wire {
    uint16_t magic;
    uint8_t version, text_bytes;
    uint32_t error;
};
struct send_wire {
    uint16_t kind, credits;
    uint32_t bytes;
};

static_assert(sizeof(struct hello_wire) == MST_WIRE_HELLO_BYTES && offsetof(struct hello_wire, data_bytes) == 5, "wire layout");
static_assert(sizeof(struct reject_wire) == 8 && offsetof(struct reject_wire, error) == 4, "wire layout");
static_assert(sizeof(struct send_wire) == MST_WIRE_SEND_BYTES && offsetof(struct send_wire, bytes) == 4, "wire layout");

size_t mst_wire_hello_put(const struct mst_wire_hello *hello, const void *data, uint8_t out[static MST_WIRE_REQ_BYTES])
{
    struct hello_wire wire = {
        .magic = htole16(MST_WIRE_MAGIC),
        .version = hello->version,
        .role = hello->role,
        .recvs = hello->recvs,
        .data_bytes = hello->data_bytes,
    };

    assert(hello->data_bytes <= MST_CONNECT_DATA_MAX);
    memset(out, 0, MST_WIRE_REQ_BYTES);
    memcpy(out, &wire, sizeof(wire));
    if (hello->data_bytes)
        memcpy(out + sizeof(wire), data, hello->data_bytes);
    return sizeof(wire) + hello->data_bytes;
}

int mst_wire_hello_get(const void *in, size_t len, struct mst_wire_hello *ret_hello, struct mst_why *why)
{
    struct hello_wire wire;

    if (!in || len < sizeof(wire))
        return mst_why_set(why, -EPROTO, "private data of %zu bytes is too short: the other side is not a mainstay fabric", len);
    memcpy(&wire, in, sizeof(wire));
    if (le16toh(wire.magic) != MST_WIRE_MAGIC)
        return mst_why_set(why, -EPROTO, "private data does not begin with \"MF\": the other side is not a mainstay fabric");
    if (wire.version != MST_WIRE_VERSION)
        return mst_why_set(why, -EPROTONOSUPPORT, "the other side speaks fabric version %u, this one %u", wire.version,
                           MST_WIRE_VERSION);
    if (wire.role < MST_ROLE_CONTROL || wire.role > MST_ROLE_MIRROR)
        return mst_why_set(why, -EPROTO, "unknown link role %u", wire.role);
    if (wire.recvs < MST_WIRE_RECVS_MIN)
        return mst_why_set(why, -EPROTO, "%u receive buffers, at least %u are needed", wire.recvs, MST_WIRE_RECVS_MIN);
    if (wire.data_bytes > MST_CONNECT_DATA_MAX || wire.data_bytes > len - sizeof(wire))
        return mst_why_set(why, -EPROTO, "%u bytes of data announced, %zu came", wire.data_bytes, len - sizeof(wire));
    *ret_hello =
        (struct mst_wire_hello){.version = wire.version, .role = wire.role, .recvs = wire.recvs, .data_bytes = wire.data_bytes};
    return 0;
}

size_t mst_wire_reject_put(int err, const char *text, uint8_t out[static MST_WIRE_REJECT_BYTES])
{
    size_t room = MST_WIRE_REJECT_BYTES - sizeof(struct reject_wire);
    size_t n = strnlen(text, room);
    struct reject_wire wire = {
        .magic = htole16(MST_WIRE_MAGIC),
        .version = MST_WIRE_VERSION,
        .text_bytes = (uint8_t)n,
        .error = htole32((uint32_t)(err < 0 ? -err : err)),
    };

    memset(out, 0, MST_WIRE_REJECT_BYTES);
    memcpy(out, &wire, sizeof(wire));
    memcpy(out + sizeof(wire), text, n);
    return sizeof(wire) + n;
}

int mst_wire_reject_get(const void *in, size_t len, int *ret_err, struct mst_why *why)
{
    char text[MST_WIRE_REJECT_BYTES];
    struct reject_wire wire;
    uint32_t error;

    if (!in || len < sizeof(wire))
        return -EPROTO;
    memcpy(&wire, in, sizeof(wire));
    if (le16toh(wire.magic) != MST_WIRE_MAGIC || wire.text_bytes > len - sizeof(wire) || wire.text_bytes >= sizeof(text))
        return -EPROTO;
    memcpy(text, (const uint8_t *)in + sizeof(wire), wire.text_bytes);
    text[wire.text_bytes] = '\0';
    for (size_t i = 0; i < wire.text_bytes; i++) /* it ends in logs and on terminals */
        if ((unsigned char)text[i] < 0x20 || (unsigned char)text[i] > 0x7e)
            text[i] = '?';
    error = le32toh(wire.error);
    *ret_err = error > 0 && error < 4096 ? -(int)error : -EACCES;
    mst_why_set(why, 0, "%s", text);
    return 0;
}

void mst_wire_send_put(const struct mst_wire_send *send, uint8_t out[static MST_WIRE_SEND_BYTES])
{
    struct send_wire wire = {
        .kind = htole16((uint16_t)send->kind), .credits = htole16(send->credits), .bytes = htole32(send->bytes)};

    memcpy(out, &wire, sizeof(wire));
}

int mst_wire_send_get(const void *in, size_t len, struct mst_wire_send *ret_send, struct mst_why *why)
{
    struct send_wire wire;
    uint32_t bytes;
    uint16_t kind;

    if (len < sizeof(wire))
        return mst_why_set(why, -EPROTO, "peer sent %zu bytes, less than a header", len);
    memcpy(&wire, in, sizeof(wire));
    kind = le16toh(wire.kind);
    bytes = le32toh(wire.bytes);
    if (bytes != len - sizeof(wire))
        return mst_why_set(why, -EPROTO, "peer announced a message of %u bytes and sent %zu", bytes, len - sizeof(wire));
    if (kind != MST_WIRE_MESSAGE && kind != MST_WIRE_CREDIT)
        return mst_why_set(why, -EPROTO, "peer sent a message of unknown kind %u", kind);
    if ((kind == MST_WIRE_MESSAGE && (bytes < 1 || bytes > MST_MESSAGE_BYTES_MAX)) || (kind == MST_WIRE_CREDIT && bytes != 0))
        return mst_why_set(why, -EPROTO, "peer sent a message of kind %u with %u bytes", kind, bytes);
    *ret_send = (struct mst_wire_send){.kind = kind, .credits = le16toh(wire.credits), .bytes = bytes};
    return 0;
}
