#include "sample.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

static void fill_message(ProtobufCMessage *msg);

static const ProtobufCFieldDescriptor *body(unsigned i)
{
    const ProtobufCMessageDescriptor *desc = &mainstay__envelope__descriptor;

    for (unsigned f = 0; f < desc->n_fields; f++) {
        if (!(desc->fields[f].flags & PROTOBUF_C_FIELD_FLAG_ONEOF))
            continue;
        if (i-- == 0)
            return &desc->fields[f];
    }
    return NULL;
}

unsigned sample_count(void)
{
    unsigned count = 0;

    while (body(count))
        count++;
    return count;
}

static void *message_new(const ProtobufCMessageDescriptor *desc)
{
    ProtobufCMessage *msg = calloc(1, desc->sizeof_message);

    ck_assert_ptr_nonnull(msg);
    protobuf_c_message_init(desc, msg);
    return msg;
}

static const char *sample_string(const char *field)
{
    if (strcmp(field, "address") == 0)
        return "10.7.0.1";
    if (strstr(field, "path") || strstr(field, "dir") || strncmp(field, "boot_", 5) == 0)
        return "/srv/thing";
    return "n1-x";
}

static size_t value_bytes(const ProtobufCFieldDescriptor *field)
{
    switch (field->type) {
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(ProtobufCBinaryData);
    case PROTOBUF_C_TYPE_ENUM:
    case PROTOBUF_C_TYPE_BOOL:
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        return 4;
    default:
        return 8;
    }
}

static void fill_value(const ProtobufCFieldDescriptor *field, void *at)
{
    ProtobufCBinaryData *bytes;
    uint32_t number = strcmp(field->name, "ram_bytes") == 0                ? MST_PAGE_BYTES
                      : strcmp(field->name, "disk_bytes") == 0             ? MST_PAGE_BYTES
                      : strcmp(field->name, "checkpoint_interval_ms") == 0 ? 500
                                                                           : 1;

    switch (field->type) {
    case PROTOBUF_C_TYPE_MESSAGE:
        *(void **)at = message_new(field->descriptor);
        fill_message(*(void **)at);
        break;
    case PROTOBUF_C_TYPE_STRING:
        *(char **)at = strdup(sample_string(field->name));
        break;
    case PROTOBUF_C_TYPE_BYTES:
        bytes = at;
        bytes->len = strcmp(field->name, "beat") == 0 || strcmp(field->name, "lease") == 0 ? MST_LINE_BYTES : 16;
        bytes->data = calloc(1, bytes->len);
        break;
    case PROTOBUF_C_TYPE_ENUM:
        *(int *)at = ((const ProtobufCEnumDescriptor *)field->descriptor)->values[0].value;
        break;
    default:
        if (value_bytes(field) == 8)
            *(uint64_t *)at = number;
        else
            *(uint32_t *)at = number;
    }
}

static void fill_field(ProtobufCMessage *msg, const ProtobufCFieldDescriptor *field)
{
    char *at = (char *)msg + field->offset, *quantifier = (char *)msg + field->quantifier_offset;
    char *list;

    if (field->label == PROTOBUF_C_LABEL_REPEATED) {
        list = calloc(2, value_bytes(field));
        ck_assert_ptr_nonnull(list);
        for (unsigned i = 0; i < 2; i++)
            fill_value(field, list + i * value_bytes(field));
        *(char **)(void *)at = list;
        *(size_t *)(void *)quantifier = 2;
        return;
    }
    fill_value(field, at);
    if (field->label == PROTOBUF_C_LABEL_OPTIONAL && field->type != PROTOBUF_C_TYPE_MESSAGE &&
        field->type != PROTOBUF_C_TYPE_STRING)
        *(protobuf_c_boolean *)(void *)quantifier = 1;
}

static void fill_message(ProtobufCMessage *msg)
{
    for (unsigned f = 0; f < msg->descriptor->n_fields; f++)
        fill_field(msg, &msg->descriptor->fields[f]);
}

mst_envelope *sample_new(unsigned i)
{
    mst_envelope *env = message_new(&mainstay__envelope__descriptor);
    const ProtobufCFieldDescriptor *field = body(i);

    ck_assert_ptr_nonnull(field);
    env->has_id = env->has_term = env->has_instance = 1;
    env->id = 7 + i;
    env->term = 3;
    env->instance = UINT64_C(0x0123456789abcdef);
    fill_value(field, (char *)env + field->offset);
    env->body_case = (Mainstay__Envelope__BodyCase)field->id;
    return env;
}

void sample_free(mst_envelope *env)
{
    mainstay__envelope__free_unpacked(env, NULL);
}

size_t sample_frame(unsigned i, uint8_t *out)
{
    static uint8_t frames[128][2048]; /* packed once: tests ask hundreds of thousands of times */
    static size_t bytes[128];
    uint8_t whole[MST_MESSAGE_BYTES_MAX];
    struct mst_why why = {""};
    mst_envelope *env;
    int len;

    ck_assert_uint_lt(i, 128);
    if (bytes[i] == 0) {
        env = sample_new(i);
        len = mst_frame_pack_why(env, whole, sizeof(whole), &why);
        ck_assert_msg(len > 0 && (size_t)len <= sizeof(frames[i]), "%s: %d %s", body(i)->name, len, why.text);
        memcpy(frames[i], whole, (size_t)len);
        bytes[i] = (size_t)len;
        sample_free(env);
    }
    memcpy(out, frames[i], bytes[i]);
    return bytes[i];
}
