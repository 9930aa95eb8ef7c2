#ifndef MST_IO_STORE_JSON_H
#define MST_IO_STORE_JSON_H

#include "coordinator/core/rows.h"

#include <jansson.h>
#include <stddef.h>

/* Inside io/ only. Rows and what surrounds them as etcd keeps them: names and values in base64, rows as JSON objects by the tables of
 * store_rows.h. What is read comes from outside and is checked. Any thread. */

/* --- base64 (RFC 4648, with padding, no line ends) --- */

/* New text (free(3)), NULL: no memory. */
char *mst_base64(const void *data, size_t bytes);
/* New buffer (free(3)) with a zero byte behind *ret_bytes. 0, -EBADMSG, -ENOMEM. */
int mst_base64_read(const char *text, char **ret_data, size_t *ret_bytes);

/* --- rows --- */

#define MST_ROW_KEY_BYTES (2 * MST_NAME_BYTES + 64)

/* Name of a row's key below the prefix: "vms/web01", "recovery_steps/0000000000000007/0003"; order of names is order of numbers.
 * VM_DELETE has none (-EINVAL). */
int mst_row_key(const struct mst_row *row, char *buf, size_t size);
/* New object, NULL: no memory. Nothing is lost: numbers keep their bits, a text that is no UTF-8 becomes a list of one base64 text. */
json_t *mst_row_json(const struct mst_row *row);
/* Fills row (zeroed here; a definition goes to def, which row then points to). 0, -EBADMSG: a field is missing, of another type, out of
 * range, unknown, or the row does not check. */
int mst_row_read(enum mst_row_kind kind, const json_t *object, struct mst_row *row, struct mst_definition *def);

#endif
