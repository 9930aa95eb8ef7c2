#include "cli/show.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <libsmartcols/libsmartcols.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Length of the prefix, up to and with an underscore, that all names of an enum share. */
static size_t enum_prefix(const ProtobufCEnumDescriptor *desc)
{
    const char *first = desc->values[0].name;
    size_t len = strlen(first);

    for (unsigned i = 1; i < desc->n_values; i++) {
        size_t same = 0;
        while (same < len && desc->values[i].name[same] == first[same])
            same++;
        len = same;
    }
    while (len > 0 && first[len - 1] != '_')
        len--;
    return len;
}

static json_t *enum_json(const ProtobufCEnumDescriptor *desc, int value)
{
    const ProtobufCEnumValue *found = protobuf_c_enum_descriptor_get_value(desc, value);
    char word[64];
    size_t n = 0;

    if (!found)
        return json_integer(value);
    for (const char *c = found->name + enum_prefix(desc); *c && n + 1 < sizeof(word); c++)
        word[n++] = (char)tolower((unsigned char)*c);
    word[n] = '\0';
    return json_string(word);
}

static json_t *bytes_json(const ProtobufCBinaryData *data)
{
    char *hex = malloc(data->len * 2 + 1);
    json_t *value;

    if (!hex)
        return NULL;
    hex[0] = '\0';
    for (size_t i = 0; i < data->len; i++)
        snprintf(hex + 2 * i, 3, "%02x", data->data[i]);
    value = json_string(hex);
    free(hex);
    return value;
}

static json_t *scalar_json(const ProtobufCFieldDescriptor *field, const void *at)
{
    char text[24];

    switch (field->type) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
        return json_integer(*(const int32_t *)at);
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        return json_integer(*(const uint32_t *)at);
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        return json_integer(*(const int64_t *)at);
    case PROTOBUF_C_TYPE_UINT64:
        return json_integer((json_int_t) * (const uint64_t *)at);
    case PROTOBUF_C_TYPE_FIXED64:
        snprintf(text, sizeof(text), "0x%016" PRIx64, *(const uint64_t *)at);
        return json_string(text);
    case PROTOBUF_C_TYPE_BOOL:
        return json_boolean(*(const protobuf_c_boolean *)at);
    case PROTOBUF_C_TYPE_FLOAT:
        return json_real((double)*(const float *)at);
    case PROTOBUF_C_TYPE_DOUBLE:
        return json_real(*(const double *)at);
    case PROTOBUF_C_TYPE_ENUM:
        return enum_json(field->descriptor, *(const int *)at);
    case PROTOBUF_C_TYPE_STRING: {
        const char *string = *(char *const *)at;
        json_t *value = json_string(string);
        return value ? value : json_string("(not UTF-8)");
    }
    case PROTOBUF_C_TYPE_BYTES:
        return bytes_json(at);
    case PROTOBUF_C_TYPE_MESSAGE:
        return show_message_json(*(ProtobufCMessage *const *)at);
    }
    return json_null();
}

static bool field_is_set(const ProtobufCMessage *message, const ProtobufCFieldDescriptor *field)
{
    const uint8_t *base = (const uint8_t *)message;
    const void *at = base + field->offset;

    if (field->label == PROTOBUF_C_LABEL_REQUIRED)
        return true;
    if (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
        return *(const uint32_t *)(const void *)(base + field->quantifier_offset) == field->id;
    if (field->type == PROTOBUF_C_TYPE_STRING || field->type == PROTOBUF_C_TYPE_MESSAGE)
        return *(const void *const *)at && *(const void *const *)at != field->default_value;
    return *(const protobuf_c_boolean *)(base + field->quantifier_offset);
}

static json_t *repeated_json(const ProtobufCMessage *message, const ProtobufCFieldDescriptor *field)
{
    const uint8_t *base = (const uint8_t *)message;
    size_t count = *(const size_t *)(const void *)(base + field->quantifier_offset);
    const uint8_t *items = *(const uint8_t *const *)(const void *)(base + field->offset);
    bool pointers = field->type == PROTOBUF_C_TYPE_MESSAGE || field->type == PROTOBUF_C_TYPE_STRING;
    json_t *list = json_array();

    /* Lists in mainstay.proto hold messages or strings; both are arrays of pointers. */
    for (size_t i = 0; list && pointers && i < count; i++)
        json_array_append_new(list, scalar_json(field, items + i * sizeof(void *)));
    return list;
}

json_t *show_message_json(const ProtobufCMessage *message)
{
    json_t *object = json_object();

    for (unsigned i = 0; object && i < message->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &message->descriptor->fields[i];
        const uint8_t *at = (const uint8_t *)message + field->offset;

        if (field->label == PROTOBUF_C_LABEL_REPEATED)
            json_object_set_new(object, field->name, repeated_json(message, field));
        else if (field_is_set(message, field))
            json_object_set_new(object, field->name, scalar_json(field, at));
    }
    return object;
}

json_t *show_list_json(size_t count, const ProtobufCMessage *const *messages)
{
    json_t *list = json_array();

    for (size_t i = 0; list && i < count; i++)
        json_array_append_new(list, show_message_json(messages[i]));
    return list;
}

const char *show_value(const json_t *row, const char *key, char *buf, size_t size)
{
    const json_t *value = row;
    char part[64];

    while (value && *key) {
        size_t n = strcspn(key, ".");
        if (n >= sizeof(part))
            return "-";
        memcpy(part, key, n);
        part[n] = '\0';
        value = json_object_get(value, part);
        key += n + (key[n] == '.');
    }
    if (json_is_string(value))
        snprintf(buf, size, "%s", json_string_value(value));
    else if (json_is_integer(value))
        snprintf(buf, size, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    else if (json_is_boolean(value))
        snprintf(buf, size, "%s", json_is_true(value) ? "yes" : "no");
    else
        snprintf(buf, size, "-");
    return buf;
}

int show_table(FILE *out, const json_t *rows, const struct show_column *columns, size_t count, size_t width)
{
    struct libscols_table *table = scols_new_table();
    size_t index;
    json_t *row;
    int r = 0;

    if (!table)
        return -ENOMEM;
    scols_table_set_stream(table, out);
    if (width > 0) {
        scols_table_set_termwidth(table, width);
        scols_table_set_termforce(table, SCOLS_TERMFORCE_ALWAYS);
    }
    for (size_t c = 0; c < count && r == 0; c++)
        if (!scols_table_new_column(table, columns[c].title, 0, columns[c].right ? SCOLS_FL_RIGHT : 0))
            r = -ENOMEM;
    json_array_foreach(rows, index, row)
    {
        struct libscols_line *line = r == 0 ? scols_table_new_line(table, NULL) : NULL;
        if (!line)
            break;
        for (size_t c = 0; c < count; c++) {
            char text[512], cell[544];
            show_value(row, columns[c].key, text, sizeof(text));
            snprintf(cell, sizeof(cell), "%s%s", text, columns[c].suffix && strcmp(text, "-") != 0 ? columns[c].suffix : "");
            scols_line_set_data(line, c, cell);
        }
    }
    if (r == 0)
        r = scols_print_table(table);
    scols_unref_table(table);
    return r;
}

int show_json(FILE *out, const json_t *value)
{
    if (json_dumpf(value, out, JSON_INDENT(2)) < 0)
        return -EIO;
    return fputc('\n', out) == EOF ? -EIO : 0;
}
