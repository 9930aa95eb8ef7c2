#ifndef MST_IO_STORE_ROWS_H
#define MST_IO_STORE_ROWS_H

#include "coordinator/core/rows.h"

#include <stddef.h>

/* Inside io/ only. The rows as tables of fields: each back end of the store writes and reads by these tables, so that writing and reading
 * cannot disagree, and no back end knows more fields than another. Any thread. */

enum mst_field_type { MST_FIELD_U64, MST_FIELD_U32, MST_FIELD_U8, MST_FIELD_BOOL, MST_FIELD_TEXT, MST_FIELD_BLOB };

struct mst_field {
    const char *name;
    enum mst_field_type type;
    size_t offset, bytes;
    bool later; /* stores of an older version lack it: zero there */
};

#define MST_FIELDS_MAX 24
#define MST_TABLES     10

struct mst_table {
    enum mst_row_kind kind;
    const char *name, *key; /* columns of the primary key; NULL: there is one row */
    const struct mst_field *fields;
    unsigned count;
};
extern const struct mst_table mst_tables[MST_TABLES]; /* in the order that mst_core_load wants */

const struct mst_table *mst_table_of(enum mst_row_kind kind); /* NULL: a row of this kind is not kept (VM_DELETE) */
const void *mst_row_data(const struct mst_row *row);          /* what the offsets of the fields count from */

/* Bytes of a TEXT or BLOB field that are kept: the packed definition only as far as it is filled. */
size_t mst_field_bytes(const struct mst_field *field, const void *data);
int64_t mst_field_number(const struct mst_field *field, const void *data); /* a U64 keeps its bits */
/* Into a row that was zeroed, its fields in the order of the table. 0; -EBADMSG: no value of this field. */
int mst_field_put_number(const struct mst_field *field, void *data, int64_t number);
int mst_field_put_bytes(const struct mst_field *field, void *data, const void *from, size_t bytes);

/* History is pruned with this transaction: each 256th fault, recovery or proof. Starts and stops leave no fault. */
bool mst_txn_prunes(const struct mst_txn *txn);

/* A row that was read: the limits that its fields alone do not show. 0, -EBADMSG. */
int mst_row_check(const struct mst_row *row);

#endif
