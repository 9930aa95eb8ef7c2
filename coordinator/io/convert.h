#ifndef MST_IO_CONVERT_H
#define MST_IO_CONVERT_H

#include "coordinator/core/core.h"
#include "proto/frame.h"

/* Between messages and the core's plain structs. What comes in has passed mst_frame_unpack, so names, lists and numbers are within their
 * bounds; texts are cut to fit. Any thread. */

/* Node ids of the names in allowed_nodes. -EINVAL a name is no node of this cluster, or boot and limits do not check; -E2BIG packed it is
 * larger than a row takes. why says which. */
int mst_convert_definition(const Mainstay__VmDefinition *def, const struct mst_core *core, struct mst_definition *ret,
                           struct mst_why *why);
void mst_convert_hello(const Mainstay__Hello *hello, struct mst_hello *ret);
void mst_convert_report(const Mainstay__FaultReport *report, struct mst_report *ret);
void mst_convert_answer(const Mainstay__Done *done, struct mst_answer *ret);
void mst_convert_mirror(const Mainstay__MirrorState *state, struct mst_mirror_news *ret);
void mst_convert_event(const Mainstay__VmEvent *event, struct mst_vm_event *ret);

/* Packs an order into a frame of at most MST_MESSAGE_BYTES_MAX bytes. Returns its length, -EMSGSIZE, -EINVAL, -ENOMEM, -EBADMSG (the stored definition
 * does not unpack). node_name: of the node that a fault record speaks of. */
int mst_convert_order(const struct mst_order *order, const char *node_name, uint8_t *out, size_t size);

/* Fills a Done on the stack: text is borrowed. */
void mst_done_set(Mainstay__Done *done, int err, const char *text);

#endif
