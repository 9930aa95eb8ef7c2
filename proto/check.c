#include "proto/check.h"

#include "base/limits.h"
#include "proto/frame.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum kind {
    KIND_NAME,    /* mst_name_check */
    KIND_ADDRESS, /* numeric IPv4 or IPv6 */
    KIND_TEXT,    /* for people: repaired when received */
    KIND_WORD,    /* printable, not empty */
    KIND_LINE,    /* printable, may be empty */
    KIND_PATH,    /* as word, longer */
    KIND_BYTES,   /* min..max bytes */
    KIND_NUMBER,  /* min..max */
    KIND_LIST,    /* of messages: only how many */
};

struct rule {
    const char *message; /* NULL: in whichever message the field stands */
    const char *field;
    enum kind kind;
    uint64_t min, max; /* bytes: length; number: value */
    unsigned list_max; /* repeated fields: how many */
};

/* Sorted by field, because every field of every message is looked up here. First match counts: of the rows of a field those that name a message stand
 * before the one that does not. */
static const struct rule rules[] = {
    {NULL, "accel", KIND_WORD, 1, MST_WORD_BYTES_MAX, 0},
    {NULL, "address", KIND_ADDRESS, 0, 0, 0},
    {"VmDefinition", "allowed_nodes", KIND_NAME, 0, 0, MST_NODES_MAX},
    {"Spawn", "argv", KIND_LINE, 0, MST_PATH_BYTES_MAX, MST_ARGV_MAX},
    {"StandbySpawn", "argv", KIND_LINE, 0, MST_PATH_BYTES_MAX, MST_ARGV_MAX},
    {"ManageAnswer", "beat", KIND_BYTES, MST_LINE_BYTES, MST_LINE_BYTES, 0},
    {NULL, "boot_append", KIND_LINE, 0, MST_PATH_BYTES_MAX, 0},
    {NULL, "boot_initrd", KIND_PATH, 1, MST_PATH_BYTES_MAX, 0},
    {NULL, "boot_kernel", KIND_PATH, 1, MST_PATH_BYTES_MAX, 0},
    {NULL, "boot_state", KIND_PATH, 1, MST_PATH_BYTES_MAX, 0},
    {NULL, "bridge", KIND_WORD, 1, MST_BRIDGE_BYTES_MAX, 0},
    {"VmDefinition", "checkpoint_interval_ms", KIND_NUMBER, MST_CHECKPOINT_MS_MIN, MST_CHECKPOINT_MS_MAX, 0},
    {"VmDefinition", "checkpoint_stall_max_percent", KIND_NUMBER, 1, MST_STALL_PERCENT_MAX, 0},
    {NULL, "cluster", KIND_NAME, 0, 0, 0},
    {NULL, "cpu", KIND_WORD, 1, MST_WORD_BYTES_MAX, 0},
    {"ConsoleData", "data", KIND_BYTES, 0, MST_MESSAGE_BYTES_MAX, 0},
    {"Areas", "delta", KIND_PATH, 1, MST_PATH_BYTES_MAX, 0},
    {NULL, "device_bytes", KIND_NUMBER, 0, MST_DEVICE_BYTES_MAX, 0},
    {"Pulled", "device_slot", KIND_NUMBER, 0, 1, 0},
    {"Areas", "disk", KIND_PATH, 1, MST_PATH_BYTES_MAX, 0},
    {"StandbyAsk", "disk", KIND_PATH, 1, MST_PATH_BYTES_MAX, 0},
    {"Areas", "disk_bytes", KIND_NUMBER, MST_PAGE_BYTES, (uint64_t)MST_VM_MEMORY_MIB_MAX << 20, 0},
    {"VmDefinition", "disks", KIND_LIST, 0, 0, MST_DISKS_MAX},
    {"Done", "error", KIND_NUMBER, 0, 4095, 0},
    {"Refuse", "error", KIND_NUMBER, 1, 4095, 0},
    {"View", "faults", KIND_LIST, 0, 0, MST_LIST_MAX},
    {NULL, "fence", KIND_TEXT, 0, MST_TEXT_BYTES_MAX, 0},
    {NULL, "fence_proof", KIND_TEXT, 0, MST_TEXT_BYTES_MAX, 0},
    {"RecoveryVm", "from", KIND_NAME, 0, 0, 0},
    {"Hello", "held", KIND_LIST, 0, 0, MST_VMS_PER_NODE},
    {NULL, "host_boot_id", KIND_BYTES, 16, 16, 0},
    {"VmDisk", "image", KIND_PATH, 1, MST_PATH_BYTES_MAX, 0},
    {NULL, "image_state", KIND_NUMBER, 0, 31, 0},
    {"ManageAsk", "lease", KIND_BYTES, MST_LINE_BYTES, MST_LINE_BYTES, 0},
    {NULL, "mac", KIND_WORD, 1, MST_MAC_TEXT_BYTES, 0},
    {NULL, "machine", KIND_WORD, 1, MST_WORD_BYTES_MAX, 0},
    {"VmDefinition", "memory_mib", KIND_NUMBER, 1, MST_VM_MEMORY_MIB_MAX, 0},
    {"VmDisk", "memory_mib", KIND_NUMBER, 1, MST_VM_MEMORY_MIB_MAX, 0},
    {"VmView", "mirror", KIND_TEXT, 0, MST_TEXT_BYTES_MAX, 0},
    {NULL, "mirrors", KIND_LIST, 0, 0, MST_MIRRORS_MAX},
    {NULL, "name", KIND_NAME, 0, 0, 0},
    {NULL, "node", KIND_NAME, 0, 0, 0},
    {NULL, "node_id", KIND_NUMBER, 1, MST_NODE_ID_MAX, 0},
    {"View", "nodes", KIND_LIST, 0, 0, MST_NODES_MAX},
    {NULL, "outcome", KIND_TEXT, 0, MST_TEXT_BYTES_MAX, 0},
    {"VmView", "pace", KIND_TEXT, 0, MST_TEXT_BYTES_MAX, 0},
    {"VmDisk", "path", KIND_PATH, 1, MST_PATH_BYTES_MAX, 0},
    {"Peers", "peers", KIND_LIST, 0, 0, MST_NODES_MAX},
    {"AgentHello", "pid", KIND_NUMBER, 1, INT32_MAX, 0},
    {"Spawned", "pid", KIND_NUMBER, 1, INT32_MAX, 0},
    {NULL, "port", KIND_NUMBER, 1, UINT16_MAX, 0},
    {"VmDefinition", "priority", KIND_NUMBER, 0, MST_VM_PRIORITY_MAX, 0},
    {NULL, "qemu", KIND_PATH, 1, MST_PATH_BYTES_MAX, 0},
    {"AgentVm", "qemu_pid", KIND_NUMBER, 0, INT32_MAX, 0},
    {NULL, "rack", KIND_TEXT, 0, MST_NAME_BYTES - 1, 0},
    {"Areas", "ram", KIND_PATH, 1, MST_PATH_BYTES_MAX, 0},
    {"StandbyAsk", "ram", KIND_PATH, 1, MST_PATH_BYTES_MAX, 0},
    {"Areas", "ram_bytes", KIND_NUMBER, MST_PAGE_BYTES, (uint64_t)MST_VM_MEMORY_MIB_MAX << 20, 0},
    {"View", "recoveries", KIND_LIST, 0, 0, MST_LIST_MAX},
    {NULL, "reporter", KIND_TEXT, 0, MST_WORD_BYTES_MAX, 0},
    {"VmDefinition", "restarts_max", KIND_NUMBER, 1, MST_VM_RESTARTS_MAX, 0},
    {"VmDefinition", "restarts_window_s", KIND_NUMBER, 1, MST_VM_RESTARTS_S_MAX, 0},
    {NULL, "ring_bytes", KIND_NUMBER, 0, UINT32_MAX, 0},
    {NULL, "run_dir", KIND_PATH, 1, MST_PATH_BYTES_MAX, 0},
    {NULL, "run_state", KIND_NUMBER, 0, 31, 0},
    {"Areas", "save", KIND_PATH, 1, MST_PATH_BYTES_MAX, 0},
    {"Areas", "shadow", KIND_PATH, 1, MST_PATH_BYTES_MAX, 0},
    {NULL, "slot", KIND_NUMBER, 0, MST_VMS_PER_NODE - 1, 0},
    {"OrderMirror", "source_boot_id", KIND_BYTES, 16, 16, 0},
    {"MirrorView", "standby", KIND_TEXT, 1, MST_TEXT_BYTES_MAX, 0},
    {"MirrorView", "state", KIND_TEXT, 1, MST_TEXT_BYTES_MAX, 0},
    {"RecoveryStep", "state", KIND_TEXT, 1, MST_TEXT_BYTES_MAX, 0},
    {"RecoveryView", "state", KIND_TEXT, 1, MST_TEXT_BYTES_MAX, 0},
    {NULL, "status_path", KIND_PATH, 1, MST_PATH_BYTES_MAX, 0},
    {"RecoveryView", "steps", KIND_LIST, 0, 0, MST_LIST_MAX},
    {NULL, "text", KIND_TEXT, 0, MST_TEXT_BYTES_MAX, 0},
    {"RecoveryVm", "to", KIND_NAME, 0, 0, 0},
    {"VmView", "trouble", KIND_TEXT, 0, MST_TEXT_BYTES_MAX, 0},
    {"VmDefinition", "vcpus", KIND_NUMBER, 1, MST_VM_VCPUS_MAX, 0},
    {NULL, "verdict", KIND_TEXT, 0, MST_TEXT_BYTES_MAX, 0},
    {NULL, "vm", KIND_NAME, 0, 0, 0},
    {"AgentWelcome", "vms", KIND_LIST, 0, 0, MST_VMS_PER_NODE},
    {"FenceResult", "vms", KIND_LIST, 0, 0, MST_VMS_PER_NODE},
    {"Keys", "vms", KIND_LIST, 0, 0, MST_VMS_PER_NODE},
    {"OrderFence", "vms", KIND_LIST, 0, 0, MST_VMS_PER_NODE},
    {"RecoveryView", "vms", KIND_LIST, 0, 0, MST_VMS_PER_NODE},
    {"View", "vms", KIND_LIST, 0, 0, MST_VMS_MAX},
    {NULL, "vms_running", KIND_NUMBER, 0, MST_VMS_PER_NODE, 0},
};

/* What a field is held to when somebody added it to the .proto and forgot this table. */
static const struct rule rule_other_string = {NULL, NULL, KIND_LINE, 0, MST_TEXT_BYTES_MAX, MST_LIST_MAX};
static const struct rule rule_other_bytes = {NULL, NULL, KIND_BYTES, 0, MST_MESSAGE_BYTES_MAX, MST_LIST_MAX};
static const struct rule rule_other = {NULL, NULL, KIND_NUMBER, 0, UINT64_MAX, MST_LIST_MAX};

#define DEPTH_MAX    8
#define PATH_BYTES   128
#define KNOWN_FIELDS 256u

struct walk {
    bool repair;
    struct mst_why *why;
    char path[PATH_BYTES]; /* of the message being walked: "peers.peers[3]." */
};

static int walk_message(struct walk *walk, ProtobufCMessage *msg, unsigned depth);

static const struct rule *rule_find(const char *message, const char *field)
{
    size_t low = 0, high = sizeof(rules) / sizeof(rules[0]);

    while (low < high) { /* the first row that is not before the field */
        size_t middle = (low + high) / 2;

        if (strcmp(rules[middle].field, field) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < sizeof(rules) / sizeof(rules[0]) && strcmp(rules[low].field, field) == 0; low++) {
        if (!rules[low].message || strcmp(rules[low].message, message) == 0)
            return &rules[low];
    }
    return NULL;
}

bool mst_check_rules_sorted(void)
{
    for (size_t i = 1; i < sizeof(rules) / sizeof(rules[0]); i++) {
        int order = strcmp(rules[i - 1].field, rules[i].field);

        if (order > 0 || (order == 0 && !rules[i - 1].message))
            return false;
    }
    return true;
}

bool mst_check_has_rule(const char *message, const char *field)
{
    return rule_find(message, field) != NULL;
}

static const struct rule *rule_look(const char *message, const ProtobufCFieldDescriptor *field)
{
    const struct rule *rule = rule_find(message, field->name);

    if (rule)
        return rule;
    if (field->type == PROTOBUF_C_TYPE_STRING)
        return &rule_other_string;
    return field->type == PROTOBUF_C_TYPE_BYTES ? &rule_other_bytes : &rule_other;
}

/* The same fields come again and again. A field belongs to one message, so its address says which. */
static const struct rule *rule_for(const char *message, const ProtobufCFieldDescriptor *field)
{
    static _Thread_local struct {
        const ProtobufCFieldDescriptor *field;
        const struct rule *rule;
    } known[KNOWN_FIELDS];
    size_t i = (uintptr_t)field / sizeof(*field) % KNOWN_FIELDS;

    if (known[i].field != field) {
        known[i].rule = rule_look(message, field);
        known[i].field = field;
    }
    return known[i].rule;
}

static int refuse(const struct walk *walk, const ProtobufCFieldDescriptor *field, const char *what)
{
    return mst_why_set(walk->why, -EBADMSG, "%s%s: %s", walk->path, field->name, what);
}

static int check_length(const struct walk *walk, const ProtobufCFieldDescriptor *field, const struct rule *rule, size_t len)
{
    if (len >= rule->min && len <= rule->max)
        return 0;
    return mst_why_set(walk->why, -EBADMSG, "%s%s: %zu bytes, allowed %" PRIu64 "..%" PRIu64, walk->path, field->name, len,
                       rule->min, rule->max);
}

static int check_string(const struct walk *walk, const ProtobufCFieldDescriptor *field, const struct rule *rule, char *text)
{
    int r;

    if (!text)
        return refuse(walk, field, "is missing");
    switch (rule->kind) {
    case KIND_NAME:
        return mst_name_check(text) < 0 ? refuse(walk, field, "is not a name: wanted 1..63 of a-z 0-9 -, not starting with -")
                                        : 0;
    case KIND_ADDRESS:
        return mst_address_check(text) == 0 ? 0 : refuse(walk, field, "is not a numeric address");
    case KIND_TEXT:
        r = check_length(walk, field, rule, strlen(text));
        if (r == 0 && walk->repair && text != field->default_value)
            mst_text_repair(text);
        return r;
    default:
        r = check_length(walk, field, rule, strlen(text));
        if (r == 0 && mst_text_check(text) < 0)
            r = refuse(walk, field, "is not UTF-8, or has control characters");
        return r;
    }
}

static int check_number(const struct walk *walk, const ProtobufCFieldDescriptor *field, const struct rule *rule, uint64_t value,
                        bool negative)
{
    if (rule->kind != KIND_NUMBER || rule == &rule_other || (!negative && value >= rule->min && value <= rule->max))
        return 0;
    return mst_why_set(walk->why, -EBADMSG, "%s%s: %s%" PRIu64 " is out of range, allowed %" PRIu64 "..%" PRIu64, walk->path,
                       field->name, negative ? "-" : "", negative ? -value : value, rule->min, rule->max);
}

/* Walks one sub-message; its name (and index when it is in a list) is put behind the path for as long. */
static int check_sub(struct walk *walk, const ProtobufCFieldDescriptor *field, ProtobufCMessage *sub, size_t index,
                     unsigned depth)
{
    size_t end = strlen(walk->path);
    size_t room = sizeof(walk->path) - end, len = strlen(field->name);
    int r;

    if (!sub)
        return refuse(walk, field, "is missing");
    if (sub->descriptor != field->descriptor)
        return refuse(walk, field, "was not initialised");
    if (field->label == PROTOBUF_C_LABEL_REPEATED)
        snprintf(walk->path + end, room, "%s[%zu].", field->name, index);
    else if (len + 2 <= room) /* every message goes this way, and hardly any path is ever told */
        memcpy(mempcpy(walk->path + end, field->name, len), ".", 2);
    r = walk_message(walk, sub, depth + 1);
    walk->path[end] = '\0';
    return r;
}

/* Checks one value; at points to it, in the message or in a list. */
static int check_value(struct walk *walk, const ProtobufCFieldDescriptor *field, const struct rule *rule, void *at, size_t index,
                       unsigned depth)
{
    switch (field->type) {
    case PROTOBUF_C_TYPE_MESSAGE:
        return check_sub(walk, field, *(ProtobufCMessage **)at, index, depth);
    case PROTOBUF_C_TYPE_STRING:
        return check_string(walk, field, rule, *(char **)at);
    case PROTOBUF_C_TYPE_BYTES: {
        const ProtobufCBinaryData *bytes = at;
        return bytes->len > 0 && !bytes->data ? refuse(walk, field, "is missing") : check_length(walk, field, rule, bytes->len);
    }
    case PROTOBUF_C_TYPE_ENUM:
        return protobuf_c_enum_descriptor_get_value(field->descriptor, *(int *)at) ? 0
                                                                                   : refuse(walk, field, "is not a known value");
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32: {
        int64_t value = *(int32_t *)at;
        return check_number(walk, field, rule, (uint64_t)value, value < 0);
    }
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        return check_number(walk, field, rule, (uint64_t) * (int64_t *)at, *(int64_t *)at < 0);
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        return check_number(walk, field, rule, *(uint32_t *)at, false);
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        return check_number(walk, field, rule, *(uint64_t *)at, false);
    default: /* bool, float, double: every value is one */
        return 0;
    }
}

static size_t value_bytes(const ProtobufCFieldDescriptor *field)
{
    switch (field->type) {
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(ProtobufCBinaryData);
    case PROTOBUF_C_TYPE_MESSAGE:
    case PROTOBUF_C_TYPE_STRING:
        return sizeof(void *);
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return 8;
    default:
        return 4;
    }
}

static int check_list(struct walk *walk, const ProtobufCMessageDescriptor *desc, const ProtobufCFieldDescriptor *field,
                      size_t count, char *list, unsigned depth)
{
    const struct rule *rule;
    int r = 0;

    if (count == 0)
        return 0;
    rule = rule_for(desc->short_name, field);
    if (count > rule->list_max)
        return mst_why_set(walk->why, -EBADMSG, "%s%s: a list of %zu, allowed 0..%u", walk->path, field->name, count,
                           rule->list_max);
    if (!list)
        return refuse(walk, field, "is missing");
    for (size_t i = 0; i < count && r == 0; i++)
        r = check_value(walk, field, rule, list + i * value_bytes(field), i, depth);
    return r;
}

/* Whether an optional or oneof field is there. */
static bool present(const ProtobufCMessage *msg, const ProtobufCFieldDescriptor *field)
{
    const char *base = (const char *)msg;

    if (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
        return *(const uint32_t *)(const void *)(base + field->quantifier_offset) == field->id;
    if (field->type == PROTOBUF_C_TYPE_MESSAGE || field->type == PROTOBUF_C_TYPE_STRING)
        return *(void *const *)(const void *)(base + field->offset) != NULL;
    return *(const protobuf_c_boolean *)(const void *)(base + field->quantifier_offset) != 0;
}

/* Fields that this version does not know are kept, so that a newer peer's message can be stored and passed on whole. Number 0 is no
 * field's: libprotobuf-c takes it in a long spelling and refuses the short one, in which it would pack it again. */
static int check_unknown(const struct walk *walk, const ProtobufCMessage *msg)
{
    for (unsigned i = 0; i < msg->n_unknown_fields; i++)
        if (msg->unknown_fields[i].tag == 0)
            return mst_why_set(walk->why, -EBADMSG, "%sfield number 0: there is no such field", walk->path);
    return 0;
}

static int walk_message(struct walk *walk, ProtobufCMessage *msg, unsigned depth)
{
    const ProtobufCMessageDescriptor *desc = msg->descriptor;
    int r;

    if (depth > DEPTH_MAX)
        return mst_why_set(walk->why, -EBADMSG, "%s: nested too deeply", walk->path);
    r = check_unknown(walk, msg);
    for (unsigned i = 0; i < desc->n_fields && r == 0; i++) {
        const ProtobufCFieldDescriptor *field = &desc->fields[i];
        void *at = (char *)msg + field->offset;

        if (field->label == PROTOBUF_C_LABEL_REPEATED)
            r = check_list(walk, desc, field, *(size_t *)(void *)((char *)msg + field->quantifier_offset), *(char **)at, depth);
        else if (field->label == PROTOBUF_C_LABEL_REQUIRED || present(msg, field))
            r = check_value(walk, field, rule_for(desc->short_name, field), at, 0, depth);
    }
    return r;
}

int mst_check_message(ProtobufCMessage *msg, bool repair_texts, struct mst_why *why)
{
    struct walk walk = {.repair = repair_texts, .why = why};

    return walk_message(&walk, msg, 0);
}
