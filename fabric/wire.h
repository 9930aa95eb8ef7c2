#ifndef MST_FABRIC_WIRE_H
#define MST_FABRIC_WIRE_H

#include "base/err.h"
#include "base/limits.h"
#include "fabric/fabric.h"

#include <stddef.h>
#include <stdint.h>

/* What the fabric itself puts on the wire (docs/PROTOCOL.md, "Fabric"): private data of the connection manager's messages and
 * the header of each SEND. Little-endian. Pure functions, any thread; everything read is hostile and checked here. */

#define MST_WIRE_MAGIC        0x464du /* "MF" */
#define MST_WIRE_VERSION      1u
#define MST_WIRE_HELLO_BYTES  8u
#define MST_WIRE_REQ_BYTES    56u  /* what rdma_cm carries in a connect request over IP */
#define MST_WIRE_REJECT_BYTES 148u /* and in a refusal */
#define MST_WIRE_RECVS_MIN    4u   /* fewer would let two idle sides send credits to and fro for ever (fabric/credits.h) */

/* Private data of a connect request and of its acceptance:
 *     0 u16 magic   2 u8 version   3 u8 role   4 u8 RECV buffers of the sender   5 u8 bytes of caller's data   6 u16 zero
 * then the caller's data (request only). rdma_cm pads with zeros, so the length stands inside. */
struct mst_wire_hello {
    uint8_t version;
    uint8_t role;
    uint8_t recvs;
    uint8_t data_bytes;
};

static_assert(MST_WIRE_HELLO_BYTES + MST_CONNECT_DATA_MAX == MST_WIRE_REQ_BYTES, "a request fills rdma_cm's private data");

/* data: hello->data_bytes (at most MST_CONNECT_DATA_MAX) bytes, may be NULL when none. Returns the bytes written. */
size_t mst_wire_hello_put(const struct mst_wire_hello *hello, const void *data, uint8_t out[static MST_WIRE_REQ_BYTES]);
/* Data of the caller starts at in + MST_WIRE_HELLO_BYTES. -EPROTO (too short, other magic, field out of range),
 * -EPROTONOSUPPORT (other version; why names both). */
int mst_wire_hello_get(const void *in, size_t len, struct mst_wire_hello *ret_hello, struct mst_why *why);

/* Private data of a refusal: 0 u16 magic  2 u8 version  3 u8 bytes of text  4 u32 errno, positive  8 text, cut to what fits. */
size_t mst_wire_reject_put(int err, const char *text, uint8_t out[static MST_WIRE_REJECT_BYTES]);
/* *ret_err: -errno of the peer; why: the peer's sentence with unprintable bytes replaced. -EPROTO when it is not such a refusal. */
int mst_wire_reject_get(const void *in, size_t len, int *ret_err, struct mst_why *why);

/* Header of each SEND: 0 u16 kind  2 u16 credits (RECV buffers of the sender that are free again)  4 u32 bytes that follow */
#define MST_WIRE_SEND_BYTES 8u
enum mst_wire_kind { MST_WIRE_MESSAGE = 1, MST_WIRE_CREDIT = 2 };

struct mst_wire_send {
    enum mst_wire_kind kind;
    uint16_t credits;
    uint32_t bytes;
};
void mst_wire_send_put(const struct mst_wire_send *send, uint8_t out[static MST_WIRE_SEND_BYTES]);
/* len: what the NIC says it received. -EPROTO, why says what. */
int mst_wire_send_get(const void *in, size_t len, struct mst_wire_send *ret_send, struct mst_why *why);

#endif
