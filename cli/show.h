#ifndef MST_CLI_SHOW_H
#define MST_CLI_SHOW_H

#include <jansson.h>
#include <protobuf-c/protobuf-c.h>
#include <stdio.h>

/* What mainstayctl prints. Messages become JSON by their descriptors; tables are made from that same JSON, so that both
 * always say the same. */

/* JSON object of a message: field names as in mainstay.proto, unset optional fields left out, enums as lower-case words without
 * their common prefix ("vm_exited"), bytes as hex, 64-bit identities (fixed64) as "0x...". New reference; NULL: out of memory. */
json_t *show_message_json(const ProtobufCMessage *message);
/* JSON array of a repeated message field. */
json_t *show_list_json(size_t count, const ProtobufCMessage *const *messages);

struct show_column {
    const char *title;
    const char *key;    /* "node", "definition.protect" */
    const char *suffix; /* unit after a value, may be NULL */
    int right;          /* numbers */
};
/* Prints rows (array of objects) as a table; a missing value is "-". width: of the terminal in columns, 0: as wide as needed. */
int show_table(FILE *out, const json_t *rows, const struct show_column *columns, size_t count, size_t width);
/* Prints a JSON value, indented, with a newline. */
int show_json(FILE *out, const json_t *value);

/* Value at a dotted key as text into buf; "-" when it is absent. Returns buf. */
const char *show_value(const json_t *row, const char *key, char *buf, size_t size);

#endif
