#ifndef MST_PROTO_FRAME_H
#define MST_PROTO_FRAME_H

#include "base/err.h"
#include "base/limits.h"
#include "base/text.h" /* mst_name_check */
#include "mainstay.pb-c.h"

#include <stddef.h>
#include <stdint.h>

/* Frame: 8 bytes, little-endian, then one packed Envelope (docs/PROTOCOL.md).
 *     0  u16  magic 0x534d ("MS")     2  u16  protocol version     4  u32  bytes that follow
 * The same frame goes over RDMA SEND/RECV (one frame per message) and over Unix sockets (a stream of frames). */
#define MST_FRAME_MAGIC        0x534du
#define MST_PROTOCOL_VERSION   1u
#define MST_FRAME_HEADER_BYTES 8u
#define MST_ENVELOPE_BYTES_MAX (MST_MESSAGE_BYTES_MAX - MST_FRAME_HEADER_BYTES)

typedef Mainstay__Envelope mst_envelope;

/* Bounds of what messages carry, in bytes without the terminating zero. Which field has which: proto/check.c. */
#define MST_TEXT_BYTES_MAX   4096u      /* texts for people */
#define MST_WORD_BYTES_MAX   255u       /* machine types, CPU models, accelerators */
#define MST_PATH_BYTES_MAX   4095u      /* paths, and each argument of a command line */
#define MST_ARGV_MAX         256u       /* arguments of one command line */
#define MST_LINE_BYTES       64u        /* beat and lease lines (shm/layout.h) */
#define MST_LIST_MAX         1024u      /* lists that have no limit of their own */
#define MST_UNPACK_BYTES_MAX (1u << 20) /* memory one received message may take */

/* A copy of any message, by packing and unpacking it; NULL: no memory. Freed by the free_unpacked of its type. Any thread. */
void *mst_message_copy(const ProtobufCMessage *message);

/* Packs env into out (at least MST_MESSAGE_BYTES_MAX bytes). Returns the frame's length, -EMSGSIZE when it does not fit,
 * -EINVAL when the other end would refuse it (no body, a required field missing, a bad name, a value beyond its bound): a
 * mistake of the sender shows at the sender. Any thread. */
int mst_frame_pack(const mst_envelope *env, uint8_t *out, size_t out_bytes);

/* Packs env as mst_frame_pack, and says in why what is wrong with it. Any thread. */
int mst_frame_pack_why(const mst_envelope *env, uint8_t *out, size_t out_bytes, struct mst_why *why);

/* Unpacks one whole frame of exactly len bytes. *ret_env is freed with mst_envelope_free.
 * -EPROTO bad magic or length, -EPROTONOSUPPORT another version (why names both), -EMSGSIZE too large, -EBADMSG not an
 * Envelope, no body or an unknown one, or a field beyond its bound, -ENOMEM. The bytes are hostile: nothing is allocated before
 * the length has been checked, and never more than MST_UNPACK_BYTES_MAX. On success every name (node, vm, cluster) has
 * passed mst_name_check, every address is numeric, every enum value is known, lists and numbers are within their bounds, and
 * every string is valid UTF-8 without control characters: in texts for people offending bytes were replaced by '?', anywhere
 * else they are refused. Exactly the member of body that body_case names is set. Parts of *ret_env were allocated by malloc(3)
 * each: a caller may keep one, when it puts NULL in its place, and free it with mainstay__X__free_unpacked(part, NULL). Any thread. */
int mst_frame_unpack(const void *data, size_t len, mst_envelope **ret_env, struct mst_why *why);

void mst_envelope_free(mst_envelope *env); /* NULL is fine */

/* Cutting frames out of a stream (Unix socket). Feed bytes as they come; next gives one envelope at a time.
 * Opaque, one per connection, bounded to one message of MST_MESSAGE_BYTES_MAX. Not thread safe. */
struct mst_stream;
int mst_stream_new(struct mst_stream **ret_stream);
void mst_stream_free(struct mst_stream *stream);
/* Where to read into: at most *ret_room bytes; then mst_stream_filled(n). *ret_room is never 0 after next has returned 0.
 * n above the room is cut to it. */
void *mst_stream_room(struct mst_stream *stream, size_t *ret_room);
void mst_stream_filled(struct mst_stream *stream, size_t n);
/* 1 and an envelope, 0 when more bytes are needed, or -errno as mst_frame_unpack (the connection is then unusable, and every
 * later call gives the same error). */
int mst_stream_next(struct mst_stream *stream, mst_envelope **ret_env, struct mst_why *why);
/* Bytes of an incomplete frame that wait for the rest; 0 between two frames. */
size_t mst_stream_partial(const struct mst_stream *stream);

#endif
