#include "coordinator/io/store_json.h"

#include "coordinator/io/store_rows.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- base64 --- */

char *mst_base64(const void *data, size_t bytes)
{
    char *text = bytes <= INT_MAX / 2 ? malloc(4 * ((bytes + 2) / 3) + 1) : NULL;

    if (!text)
        return NULL;
    text[0] = '\0';
    if (bytes > 0)
        (void)EVP_EncodeBlock((unsigned char *)text, data, (int)bytes);
    return text;
}

int mst_base64_read(const char *text, char **ret_data, size_t *ret_bytes)
{
    size_t len = strlen(text);
    size_t padding = 0;
    char *data;
    int n = 0;

    /* libcrypto skips spaces in front and takes padding anywhere: neither is base64 here. */
    while (padding < 2 && padding < len && text[len - 1 - padding] == '=')
        padding++;
    if (len % 4 != 0 || len > INT_MAX / 2 || strcspn(text, "= \t\r\n-") != len - padding)
        return -EBADMSG;
    data = malloc(len / 4 * 3 + 1);
    if (!data)
        return -ENOMEM;
    if (len > 0)
        n = EVP_DecodeBlock((unsigned char *)data, (const unsigned char *)text, (int)len);
    if (n < 0 || (size_t)n < padding) {
        free(data);
        return -EBADMSG;
    }
    *ret_bytes = (size_t)n - padding;
    data[*ret_bytes] = '\0';
    *ret_data = data;
    return 0;
}

/* --- rows --- */

int mst_row_key(const struct mst_row *row, char *buf, size_t size)
{
    const struct mst_table *table = mst_table_of(row->kind);
    int n = -1;

    if (!table)
        return -EINVAL;
    switch (row->kind) {
    case MST_ROW_META:
        n = snprintf(buf, size, "%s", table->name);
        break;
    case MST_ROW_NODE:
        n = snprintf(buf, size, "%s/%016" PRIx64, table->name, (uint64_t)row->node.id);
        break;
    case MST_ROW_DEFINITION:
        n = snprintf(buf, size, "%s/%s", table->name, row->definition->name);
        break;
    case MST_ROW_VM:
        n = snprintf(buf, size, "%s/%s", table->name, row->vm.name);
        break;
    case MST_ROW_STEP:
        n = snprintf(buf, size, "%s/%016" PRIx64 "/%04" PRIx32, table->name, row->step.recovery_id, row->step.n);
        break;
    case MST_ROW_MIRROR:
        n = snprintf(buf, size, "%s/%s/%04" PRIx32, table->name, row->mirror.vm, row->mirror.n);
        break;
    case MST_ROW_RVM:
        n = snprintf(buf, size, "%s/%016" PRIx64 "/%s", table->name, row->rvm.recovery_id, row->rvm.vm);
        break;
    default: /* fault, recovery, proof: the id comes first */
        n = snprintf(buf, size, "%s/%016" PRIx64, table->name, row->fault.id);
    }
    return n < 0 || (size_t)n >= size ? -EINVAL : 0;
}
static_assert(offsetof(struct mst_fault_row, id) == 0 && offsetof(struct mst_recovery_row, id) == 0 &&
                  offsetof(struct mst_proof_row, id) == 0,
              "one read serves all three");

static json_t *base64_json(const void *data, size_t bytes)
{
    char *text = mst_base64(data, bytes);
    json_t *value = text ? json_string(text) : NULL;

    free(text);
    return value;
}

static json_t *field_json(const struct mst_field *field, const void *data)
{
    const char *p = (const char *)data + field->offset;
    json_t *value;
    size_t len;

    if (field->type == MST_FIELD_BLOB)
        return base64_json(p, mst_field_bytes(field, data));
    if (field->type == MST_FIELD_TEXT) {
        len = strnlen(p, field->bytes);
        value = json_stringn(p, len); /* NULL also when it is no UTF-8 */
        return value ? value : json_pack("[o]", base64_json(p, len));
    }
    return json_integer(mst_field_number(field, data));
}

json_t *mst_row_json(const struct mst_row *row)
{
    const struct mst_table *table = mst_table_of(row->kind);
    const void *data = mst_row_data(row);
    json_t *object = json_object();

    for (unsigned i = 0; object && table && i < table->count; i++) {
        if (json_object_set_new(object, table->fields[i].name, field_json(&table->fields[i], data)) < 0) {
            json_decref(object);
            object = NULL;
        }
    }
    return object;
}

static int field_read(const struct mst_field *field, const json_t *value, void *data)
{
    bool coded = field->type == MST_FIELD_BLOB;
    const char *text;
    char *bytes;
    size_t n;
    int r;

    if (field->type != MST_FIELD_TEXT && field->type != MST_FIELD_BLOB)
        return json_is_integer(value) ? mst_field_put_number(field, data, json_integer_value(value)) : -EBADMSG;
    if (field->type == MST_FIELD_TEXT && json_array_size(value) == 1) {
        coded = true;
        value = json_array_get(value, 0);
    }
    text = json_string_value(value);
    if (!text)
        return -EBADMSG;
    if (!coded)
        return mst_field_put_bytes(field, data, text, json_string_length(value));
    r = mst_base64_read(text, &bytes, &n);
    if (r < 0)
        return r;
    r = field->type == MST_FIELD_TEXT && memchr(bytes, 0, n) ? -EBADMSG : mst_field_put_bytes(field, data, bytes, n);
    free(bytes);
    return r;
}

int mst_row_read(enum mst_row_kind kind, const json_t *object, struct mst_row *row, struct mst_definition *def)
{
    const struct mst_table *table = mst_table_of(kind);
    void *data = kind == MST_ROW_DEFINITION ? (void *)def : (void *)&row->meta;
    size_t read = 0;
    int r = 0;

    memset(row, 0, sizeof(*row));
    memset(def, 0, sizeof(*def));
    row->kind = kind;
    if (!table || !json_is_object(object) || json_object_size(object) > table->count)
        return -EBADMSG;
    for (unsigned i = 0; r == 0 && i < table->count; i++) {
        const json_t *value = json_object_get(object, table->fields[i].name);

        read += value ? 1 : 0;
        r = value ? field_read(&table->fields[i], value, data) : table->fields[i].later ? 0 : -EBADMSG;
    }
    if (r == 0 && read != json_object_size(object)) /* a field that we do not know */
        r = -EBADMSG;
    if (kind == MST_ROW_DEFINITION)
        row->definition = def;
    return r < 0 ? r : mst_row_check(row);
}
