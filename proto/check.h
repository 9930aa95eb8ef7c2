#ifndef MST_PROTO_CHECK_H
#define MST_PROTO_CHECK_H

#include "base/err.h"
#include "mainstay.pb-c.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Inside proto/ only. Walks a message by its descriptors and checks every field against the table of bounds in check.c. */

/* Checks msg and everything in it. repair: replace bytes that people should not see in texts by '?' (received messages,
 * whose strings are ours to write to); without it texts are checked for their length only.
 * 0, or -EBADMSG with why ("peers.peers[3].node: ..."). Pure but for the repair. */
int mst_check_message(ProtobufCMessage *msg, bool repair, struct mst_why *why);

/* Whether the table bounds this field by a rule of its own: true for every string, bytes and repeated field (a unit test
 * walks all messages and insists). */
bool mst_check_has_rule(const char *message, const char *field);

/* Whether the table is in the order that its search wants: another one would leave fields without their bounds. */
bool mst_check_rules_sorted(void);

/* Checks the head of a frame of which len bytes are there, and says how long the whole frame is (at most MST_MESSAGE_BYTES_MAX).
 * -EPROTO, -EPROTONOSUPPORT, -EMSGSIZE as mst_frame_unpack; -EPROTO also when len is below MST_FRAME_HEADER_BYTES. */
int mst_frame_header(const uint8_t *data, size_t len, size_t *ret_frame_bytes, struct mst_why *why);

#endif
