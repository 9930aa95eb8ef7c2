#include "conf/conf.h"
#include "conf/yaml.h"

#include "base/text.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A definition as its file has it; the message is made from it. */
struct boot_yaml {
    char *kernel, *initrd, *append, *state;
};
struct network_yaml {
    char *bridge, *mac;
};
struct disk_yaml {
    char *path;
    int format, writable;
    uint32_t memory_mib;
    char *image;
};
struct vm_yaml {
    char *name;
    uint32_t memory_mib, vcpus;
    char *machine, *cpu;
    struct boot_yaml boot;
    int protect, mirror_apart, on_node_fault, on_vm_fault;
    uint32_t checkpoint_interval_ms, checkpoint_stall_max_percent, priority, restarts_max, restarts_window_s;
    struct network_yaml *network;
    int output_commit;
    struct disk_yaml *disks;
    unsigned disks_count;
    char **allowed_nodes;
    unsigned allowed_nodes_count;
};

#define REQUIRED CYAML_FLAG_POINTER
#define OPTIONAL (CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL)
#define WORD     (CYAML_FLAG_OPTIONAL | CYAML_FLAG_STRICT)

static const cyaml_strval_t protect_words[] = {
    {"none", MAINSTAY__PROTECT__PROTECT_NONE},
    {"local", MAINSTAY__PROTECT__PROTECT_LOCAL},
    {"mirror", MAINSTAY__PROTECT__PROTECT_MIRROR},
};
static const cyaml_strval_t mirror_apart_words[] = {
    {"node", MAINSTAY__MIRROR_APART__MIRROR_APART_NODE},
    {"rack", MAINSTAY__MIRROR_APART__MIRROR_APART_RACK},
};
static const cyaml_strval_t on_node_fault_words[] = {
    {"resume", MAINSTAY__ON_FAULT__ON_FAULT_RESUME},
    {"restart", MAINSTAY__ON_FAULT__ON_FAULT_RESTART},
    {"hold", MAINSTAY__ON_FAULT__ON_FAULT_HOLD},
    {"discard", MAINSTAY__ON_FAULT__ON_FAULT_DISCARD},
};
static const cyaml_strval_t on_vm_fault_words[] = {
    {"resume", MAINSTAY__ON_FAULT__ON_FAULT_RESUME},   {"resume-elsewhere", MAINSTAY__ON_FAULT__ON_FAULT_RESUME_ELSEWHERE},
    {"restart", MAINSTAY__ON_FAULT__ON_FAULT_RESTART}, {"hold", MAINSTAY__ON_FAULT__ON_FAULT_HOLD},
    {"discard", MAINSTAY__ON_FAULT__ON_FAULT_DISCARD},
};

static const cyaml_strval_t bool_words[] = {{"true", 1}, {"false", 0}};
static const cyaml_strval_t format_words[] = {
    {"raw", MAINSTAY__DISK_FORMAT__DISK_RAW},
    {"qcow2", MAINSTAY__DISK_FORMAT__DISK_QCOW2},
};

static const cyaml_schema_field_t boot_fields[] = {
    CYAML_FIELD_STRING_PTR("kernel", OPTIONAL, struct boot_yaml, kernel, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("initrd", OPTIONAL, struct boot_yaml, initrd, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("append", OPTIONAL, struct boot_yaml, append, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("state", OPTIONAL, struct boot_yaml, state, 0, CYAML_UNLIMITED),
    CYAML_FIELD_END,
};

static const cyaml_schema_field_t network_fields[] = {
    CYAML_FIELD_STRING_PTR("bridge", OPTIONAL, struct network_yaml, bridge, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("mac", OPTIONAL, struct network_yaml, mac, 0, CYAML_UNLIMITED),
    CYAML_FIELD_END,
};

static const cyaml_schema_field_t disk_fields[] = {
    CYAML_FIELD_STRING_PTR("path", OPTIONAL, struct disk_yaml, path, 0, CYAML_UNLIMITED),
    CYAML_FIELD_ENUM("format", WORD, struct disk_yaml, format, format_words, CYAML_ARRAY_LEN(format_words)),
    CYAML_FIELD_ENUM("writable", WORD, struct disk_yaml, writable, bool_words, CYAML_ARRAY_LEN(bool_words)),
    CYAML_FIELD_UINT("memory-mib", CYAML_FLAG_OPTIONAL, struct disk_yaml, memory_mib),
    CYAML_FIELD_STRING_PTR("image", OPTIONAL, struct disk_yaml, image, 0, CYAML_UNLIMITED),
    CYAML_FIELD_END,
};

static const cyaml_schema_value_t disk_schema = {CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct disk_yaml, disk_fields)};

static const cyaml_schema_value_t node_name_schema = {CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char, 0, CYAML_UNLIMITED)};

static const cyaml_schema_field_t vm_fields[] = {
    CYAML_FIELD_STRING_PTR("name", REQUIRED, struct vm_yaml, name, 0, CYAML_UNLIMITED),
    CYAML_FIELD_UINT("memory-mib", CYAML_FLAG_DEFAULT, struct vm_yaml, memory_mib),
    CYAML_FIELD_UINT("vcpus", CYAML_FLAG_OPTIONAL, struct vm_yaml, vcpus),
    CYAML_FIELD_STRING_PTR("machine", OPTIONAL, struct vm_yaml, machine, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("cpu", OPTIONAL, struct vm_yaml, cpu, 0, CYAML_UNLIMITED),
    CYAML_FIELD_MAPPING("boot", CYAML_FLAG_DEFAULT, struct vm_yaml, boot, boot_fields),
    CYAML_FIELD_ENUM("protect", WORD, struct vm_yaml, protect, protect_words, CYAML_ARRAY_LEN(protect_words)),
    CYAML_FIELD_ENUM("mirror-apart", WORD, struct vm_yaml, mirror_apart, mirror_apart_words, CYAML_ARRAY_LEN(mirror_apart_words)),
    CYAML_FIELD_UINT("checkpoint-interval-ms", CYAML_FLAG_OPTIONAL, struct vm_yaml, checkpoint_interval_ms),
    CYAML_FIELD_UINT("checkpoint-stall-max-percent", CYAML_FLAG_OPTIONAL, struct vm_yaml, checkpoint_stall_max_percent),
    CYAML_FIELD_ENUM("on-node-fault", WORD, struct vm_yaml, on_node_fault, on_node_fault_words,
                     CYAML_ARRAY_LEN(on_node_fault_words)),
    CYAML_FIELD_ENUM("on-vm-fault", WORD, struct vm_yaml, on_vm_fault, on_vm_fault_words, CYAML_ARRAY_LEN(on_vm_fault_words)),
    CYAML_FIELD_UINT("priority", CYAML_FLAG_OPTIONAL, struct vm_yaml, priority),
    CYAML_FIELD_UINT("restarts-max", CYAML_FLAG_OPTIONAL, struct vm_yaml, restarts_max),
    CYAML_FIELD_UINT("restarts-window-s", CYAML_FLAG_OPTIONAL, struct vm_yaml, restarts_window_s),
    CYAML_FIELD_MAPPING_PTR("network", CYAML_FLAG_OPTIONAL, struct vm_yaml, network, network_fields),
    CYAML_FIELD_ENUM("output-commit", WORD, struct vm_yaml, output_commit, bool_words, CYAML_ARRAY_LEN(bool_words)),
    CYAML_FIELD_SEQUENCE("disks", OPTIONAL, struct vm_yaml, disks, &disk_schema, 0, MST_DISKS_MAX),
    CYAML_FIELD_SEQUENCE("allowed-nodes", OPTIONAL, struct vm_yaml, allowed_nodes, &node_name_schema, 0, MST_NODES_MAX),
    CYAML_FIELD_END,
};

static const cyaml_schema_value_t vm_schema = {CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct vm_yaml, vm_fields)};

/* For the file and for the message alike. The machine and the CPU become parts of QEMU's comma-separated arguments: no comma in the
 * machine, properties only in the CPU. */
static const struct mst_rule rules[] = {
    {"name", MST_RULE_NAME, 0, 0, NULL},
    {"memory-mib", MST_RULE_NUMBER, 1, MST_VM_MEMORY_MIB_MAX, NULL},
    {"vcpus", MST_RULE_NUMBER, 1, MST_VM_VCPUS_MAX, NULL},
    {"machine", MST_RULE_TOKEN, 1, 63, "-._"},
    {"cpu", MST_RULE_TOKEN, 1, 255, "-._,+="},
    {"boot.kernel", MST_RULE_PATH, 1, MST_CONF_PATH_MAX, NULL},
    {"boot.initrd", MST_RULE_PATH, 1, MST_CONF_PATH_MAX, NULL},
    {"boot.append", MST_RULE_LINE, 0, 2047, NULL},
    {"boot.state", MST_RULE_PATH, 1, MST_CONF_PATH_MAX, NULL},
    {"checkpoint-interval-ms", MST_RULE_NUMBER, MST_CHECKPOINT_MS_MIN, MST_CHECKPOINT_MS_MAX, NULL},
    {"checkpoint-stall-max-percent", MST_RULE_NUMBER, 1, MST_STALL_PERCENT_MAX, NULL},
    {"priority", MST_RULE_NUMBER, 0, MST_VM_PRIORITY_MAX, NULL},
    {"restarts-max", MST_RULE_NUMBER, 1, MST_VM_RESTARTS_MAX, NULL},
    {"restarts-window-s", MST_RULE_NUMBER, 1, MST_VM_RESTARTS_S_MAX, NULL},
    {"network.bridge", MST_RULE_TOKEN, 1, MST_BRIDGE_BYTES_MAX, "-_."},
    {"network.mac", MST_RULE_TOKEN, MST_MAC_TEXT_BYTES, MST_MAC_TEXT_BYTES, ":"},
    {"disks[].path", MST_RULE_PATH, 1, MST_CONF_PATH_MAX, NULL},
    {"disks[].memory-mib", MST_RULE_NUMBER, 1, MST_VM_MEMORY_MIB_MAX, NULL},
    {"disks[].image", MST_RULE_PATH, 1, MST_CONF_PATH_MAX, NULL},
    {"allowed-nodes[]", MST_RULE_NAME, 0, 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

/* ---------------------------------------------------------------- the message */

static int check_number(const char *key, uint32_t value, struct mst_why *why)
{
    char what[MST_RULE_TEXT_BYTES];

    if (mst_rule_number(mst_rule_find(rules, key), value, what) == 0)
        return 0;
    return mst_why_set(why, -EINVAL, "%s: %s", key, what);
}

/* An optional string may be absent. */
static int check_string(const char *key, const char *value, struct mst_why *why)
{
    char what[MST_RULE_TEXT_BYTES];

    if (!value || mst_rule_string(mst_rule_find(rules, key), value, what) == 0)
        return 0;
    return mst_why_set(why, -EINVAL, "%s: %s", key, what);
}

static int check_word(const char *key, int value, const cyaml_strval_t *words, unsigned count, struct mst_why *why)
{
    struct mst_words all = {.list = ""};

    for (unsigned i = 0; i < count; i++) {
        if (words[i].val == value)
            return 0;
        mst_words_add(&all, words[i].str, strlen(words[i].str), "");
    }
    return mst_why_set(why, -EINVAL, "%s: value %d is not allowed here; allowed: %s", key, value, all.list);
}

static int check_boot(const Mainstay__VmDefinition *def, struct mst_why *why)
{
    int r;

    if (def->boot_kernel && def->boot_state)
        return mst_why_set(why, -EINVAL, "boot.state: is given together with boot.kernel, allowed is exactly one of them");
    if (!def->boot_kernel && !def->boot_state)
        return mst_why_set(why, -EINVAL, "boot: has neither kernel nor state, allowed is exactly one of them");
    if (def->boot_state && def->boot_initrd)
        return mst_why_set(why, -EINVAL, "boot.initrd: is given with boot.state, allowed only with boot.kernel");
    if (def->boot_state && def->boot_append)
        return mst_why_set(why, -EINVAL, "boot.append: is given with boot.state, allowed only with boot.kernel");
    r = check_string("boot.kernel", def->boot_kernel, why);
    r = r < 0 ? r : check_string("boot.initrd", def->boot_initrd, why);
    r = r < 0 ? r : check_string("boot.append", def->boot_append, why);
    return r < 0 ? r : check_string("boot.state", def->boot_state, why);
}

/* A card's address is one device's: neither a group's nor nobody's. */
static int mac_parse(const char *text, uint8_t mac[6])
{
    unsigned byte[6], any = 0;
    int end = 0;

    if (strlen(text) != MST_MAC_TEXT_BYTES ||
        sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%n", &byte[0], &byte[1], &byte[2], &byte[3], &byte[4], &byte[5], &end) != 6 ||
        end != (int)MST_MAC_TEXT_BYTES)
        return -EINVAL;
    for (size_t i = 0; i < 6; i++) {
        if (!isxdigit((unsigned char)text[3 * i]) || !isxdigit((unsigned char)text[3 * i + 1]))
            return -EINVAL; /* "%x" takes signs and spaces as well */
        mac[i] = (uint8_t)byte[i];
        any |= byte[i];
    }
    return any == 0 || byte[0] & 1 ? -EINVAL : 0;
}

void mst_vm_mac(const Mainstay__VmDefinition *def, uint8_t ret_mac[6])
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325); /* FNV-1a */

    if (def->network && def->network->mac && mac_parse(def->network->mac, ret_mac) == 0)
        return;
    for (const char *c = def->name; *c; c++)
        hash = (hash ^ (uint8_t)*c) * UINT64_C(0x100000001b3);
    ret_mac[0] = 0x02; /* administered locally, one device's */
    for (unsigned i = 1; i < 6; i++)
        ret_mac[i] = (uint8_t)(hash >> 8 * i);
}

int mst_bridge_check(const char *bridge)
{
    return isalnum((unsigned char)bridge[0]) ? 0 : -EINVAL; /* never "." or "..", which the kernel refuses */
}

static int check_network(const Mainstay__VmDefinition *def, struct mst_why *why)
{
    const Mainstay__VmNetwork *net = def->network;
    uint8_t mac[6];
    int r;

    if (!net)
        return 0;
    r = check_string("network.bridge", net->bridge, why);
    if (r == 0 && net->bridge && mst_bridge_check(net->bridge) < 0)
        r = mst_why_set(why, -EINVAL, "network.bridge: '%s' is no name of a network device: it begins with a letter or a digit",
                        net->bridge);
    r = r < 0 ? r : check_string("network.mac", net->mac, why);
    if (r == 0 && net->mac && mac_parse(net->mac, mac) < 0)
        r = mst_why_set(
            why, -EINVAL,
            "network.mac: '%s' is not the address of one card: six pairs of 0-9 a-f with : between, the first one even",
            net->mac);
    if (r == 0 && net->mac && def->boot_state)
        r = mst_why_set(why, -EINVAL,
                        "network.mac: is given with boot.state, whose memory holds the address already; allowed only "
                        "with boot.kernel");
    return r;
}

uint32_t mst_vm_disk_mib(const Mainstay__VmDefinition *def)
{
    for (size_t i = 0; i < def->n_disks; i++)
        if (def->disks[i]->has_memory_mib)
            return def->disks[i]->memory_mib;
    return 0;
}

uint32_t mst_vm_area_mib(const Mainstay__VmDefinition *def)
{
    return def->memory_mib + mst_vm_disk_mib(def);
}

/* A file: one that is never written to may be anybody's; one that is written to is newer than any checkpoint. */
static int check_disk_file(const Mainstay__VmDefinition *def, const char *at, const Mainstay__VmDisk *disk, struct mst_why *why)
{
    bool writable = disk->has_writable && disk->writable;
    char key[32];

    snprintf(key, sizeof(key), "%s.format", at);
    if (!disk->has_format)
        return mst_why_set(why, -EINVAL,
                           "%s.format: is missing, it has to be given with path: raw or qcow2; nothing looks into the file to "
                           "find out",
                           at);
    if (check_word(key, disk->format, format_words, CYAML_ARRAY_LEN(format_words), why) < 0)
        return -EINVAL;
    if (disk->image)
        return mst_why_set(why, -EINVAL, "%s.image: is given with path, allowed only with memory-mib", at);
    if (writable && def->protect != MAINSTAY__PROTECT__PROTECT_NONE)
        return mst_why_set(
            why, -EINVAL,
            "%s.writable: is true under protect: %s, but what is written to a file is not part of a checkpoint, so a "
            "takeover would find a disk from after it; allowed are writable: false, a disk with memory-mib, and "
            "protect: none",
            at, protect_words[def->protect].str);
    if (writable && def->boot_state)
        return mst_why_set(why, -EINVAL,
                           "%s.writable: is true with boot.state, whose memory knows the disk as it was then; allowed only with "
                           "boot.kernel",
                           at);
    return 0;
}

/* A piece of main storage. */
static int check_disk_memory(const Mainstay__VmDefinition *def, const char *at, const Mainstay__VmDisk *disk, struct mst_why *why)
{
    if (disk->has_format)
        return mst_why_set(why, -EINVAL, "%s.format: is given with memory-mib, allowed only with path", at);
    if (disk->has_writable)
        return mst_why_set(why, -EINVAL,
                           "%s.writable: is given with memory-mib, which is always writable; allowed only with path", at);
    if (def->protect == MAINSTAY__PROTECT__PROTECT_NONE)
        return mst_why_set(why, -EINVAL,
                           "%s.memory-mib: is given with protect: none, where nothing would keep it when QEMU ends; allowed with "
                           "protect: local and mirror",
                           at);
    if (disk->image && def->boot_state)
        return mst_why_set(why, -EINVAL,
                           "%s.image: is given with boot.state, which has the disk's content; allowed only with boot.kernel", at);
    if (disk->memory_mib > MST_VM_MEMORY_MIB_MAX - def->memory_mib)
        return mst_why_set(why, -EINVAL, "%s.memory-mib: %u and memory-mib %u are more than the %u that are allowed together", at,
                           disk->memory_mib, def->memory_mib, MST_VM_MEMORY_MIB_MAX);
    return 0;
}

static int check_disk(const Mainstay__VmDefinition *def, size_t index, struct mst_why *why)
{
    const Mainstay__VmDisk *disk = def->disks[index];
    char at[16], what[MST_RULE_TEXT_BYTES];

    snprintf(at, sizeof(at), "disks[%zu]", index);
    if (disk->path && disk->has_memory_mib)
        return mst_why_set(why, -EINVAL, "%s.memory-mib: is given together with path, allowed is exactly one of them", at);
    if (!disk->path && !disk->has_memory_mib)
        return mst_why_set(why, -EINVAL, "%s: has neither path nor memory-mib, allowed is exactly one of them", at);
    if (disk->path && mst_rule_string(mst_rule_find(rules, "disks[0].path"), disk->path, what) < 0)
        return mst_why_set(why, -EINVAL, "%s.path: %s", at, what);
    if (disk->has_memory_mib && mst_rule_number(mst_rule_find(rules, "disks[0].memory-mib"), disk->memory_mib, what) < 0)
        return mst_why_set(why, -EINVAL, "%s.memory-mib: %s", at, what);
    if (disk->image && mst_rule_string(mst_rule_find(rules, "disks[0].image"), disk->image, what) < 0)
        return mst_why_set(why, -EINVAL, "%s.image: %s", at, what);
    for (size_t i = 0; i < index; i++) {
        if (disk->path && def->disks[i]->path && strcmp(disk->path, def->disks[i]->path) == 0)
            return mst_why_set(why, -EINVAL, "%s.path: is the same as disks[%zu].path, allowed is one disk for each file", at, i);
        if (disk->has_memory_mib && def->disks[i]->has_memory_mib)
            return mst_why_set(why, -EINVAL, "%s.memory-mib: disks[%zu] is in main storage already, allowed is one such disk", at,
                               i);
    }
    return disk->path ? check_disk_file(def, at, disk, why) : check_disk_memory(def, at, disk, why);
}

static int check_disks(const Mainstay__VmDefinition *def, struct mst_why *why)
{
    int r = 0;

    if (def->n_disks > MST_DISKS_MAX)
        return mst_why_set(why, -EINVAL, "disks: has %zu entries, allowed 0..%u", def->n_disks, MST_DISKS_MAX);
    for (size_t i = 0; i < def->n_disks && r == 0; i++)
        r = check_disk(def, i, why);
    return r;
}

/* Only who has mirrors can wait for them. */
static int check_output_commit(const Mainstay__VmDefinition *def, struct mst_why *why)
{
    if (!def->has_output_commit || def->protect == MAINSTAY__PROTECT__PROTECT_MIRROR)
        return 0;
    return mst_why_set(why, -EINVAL, "output-commit: is given without mirrors to wait for, allowed only with protect: mirror");
}

static int check_allowed_nodes(const Mainstay__VmDefinition *def, struct mst_why *why)
{
    char what[MST_RULE_TEXT_BYTES];

    if (def->n_allowed_nodes > MST_NODES_MAX)
        return mst_why_set(why, -EINVAL, "allowed-nodes: has %zu entries, allowed 0..%d", def->n_allowed_nodes, MST_NODES_MAX);
    for (size_t i = 0; i < def->n_allowed_nodes; i++) {
        if (mst_rule_string(mst_rule_find(rules, "allowed-nodes[0]"), def->allowed_nodes[i], what) < 0)
            return mst_why_set(why, -EINVAL, "allowed-nodes[%zu]: %s", i, what);
        for (size_t j = 0; j < i; j++) {
            if (strcmp(def->allowed_nodes[i], def->allowed_nodes[j]) == 0)
                return mst_why_set(why, -EINVAL, "allowed-nodes[%zu]: '%s' is listed twice, each node is allowed once", i,
                                   def->allowed_nodes[i]);
        }
    }
    return 0;
}

int mst_vm_definition_check(const Mainstay__VmDefinition *def, struct mst_why *why)
{
    int r;

    if (!def->name)
        return mst_why_set(why, -EINVAL, "name: is missing, it has to be given");
    r = check_string("name", def->name, why);
    r = r < 0 ? r : check_number("memory-mib", def->memory_mib, why);
    r = r < 0 ? r : check_number("vcpus", def->vcpus, why);
    r = r < 0 ? r : check_string("machine", def->machine, why);
    r = r < 0 ? r : check_string("cpu", def->cpu, why);
    r = r < 0 ? r : check_boot(def, why);
    r = r < 0 ? r : check_word("protect", def->protect, protect_words, CYAML_ARRAY_LEN(protect_words), why);
    r = r < 0 ? r : check_word("mirror-apart", def->mirror_apart, mirror_apart_words, CYAML_ARRAY_LEN(mirror_apart_words), why);
    if (r == 0 && def->mirror_apart != MAINSTAY__MIRROR_APART__MIRROR_APART_NODE &&
        def->protect != MAINSTAY__PROTECT__PROTECT_MIRROR)
        return mst_why_set(why, -EINVAL, "mirror-apart: is rack without protect: mirror, allowed only with it");
    r = r < 0 ? r : check_number("checkpoint-interval-ms", def->checkpoint_interval_ms, why);
    r = r < 0 ? r : check_number("checkpoint-stall-max-percent", def->checkpoint_stall_max_percent, why);
    r = r < 0 ? r
              : check_word("on-node-fault", def->on_node_fault, on_node_fault_words, CYAML_ARRAY_LEN(on_node_fault_words), why);
    r = r < 0 ? r : check_word("on-vm-fault", def->on_vm_fault, on_vm_fault_words, CYAML_ARRAY_LEN(on_vm_fault_words), why);
    r = r < 0 ? r : check_number("priority", def->priority, why);
    r = r < 0 ? r : check_number("restarts-max", def->restarts_max, why);
    r = r < 0 ? r : check_number("restarts-window-s", def->restarts_window_s, why);
    r = r < 0 ? r : check_network(def, why);
    r = r < 0 ? r : check_output_commit(def, why);
    r = r < 0 ? r : check_disks(def, why);
    return r < 0 ? r : check_allowed_nodes(def, why);
}

/* ---------------------------------------------------------------- the file */

/* What a message is made from while its strings are still the file's. */
struct parts {
    Mainstay__VmDefinition def;
    Mainstay__VmNetwork network;
    Mainstay__VmDisk disk[MST_DISKS_MAX], *disks[MST_DISKS_MAX];
};

static void disks_fill(const struct mst_yaml *yaml, const struct vm_yaml *vm, struct parts *parts)
{
    char key[32];

    for (unsigned i = 0; i < vm->disks_count; i++) {
        const struct disk_yaml *from = &vm->disks[i];
        Mainstay__VmDisk *disk = parts->disks[i] = &parts->disk[i];

        mainstay__vm_disk__init(disk);
        disk->path = from->path;
        disk->image = from->image;
        snprintf(key, sizeof(key), "disks[%u].format", i);
        disk->has_format = mst_yaml_has(yaml, key);
        disk->format = (Mainstay__DiskFormat)from->format;
        snprintf(key, sizeof(key), "disks[%u].writable", i);
        disk->has_writable = mst_yaml_has(yaml, key);
        disk->writable = from->writable != 0;
        snprintf(key, sizeof(key), "disks[%u].memory-mib", i);
        disk->has_memory_mib = mst_yaml_has(yaml, key);
        disk->memory_mib = from->memory_mib;
    }
    parts->def.disks = parts->disks;
    parts->def.n_disks = vm->disks_count;
}

/* What is absent stays at the message's default. */
static void definition_fill(const struct mst_yaml *yaml, const struct vm_yaml *vm, struct parts *parts)
{
    Mainstay__VmDefinition *def = &parts->def;

    mainstay__vm_definition__init(def);
    def->name = vm->name;
    def->memory_mib = vm->memory_mib;
    if (vm->machine)
        def->machine = vm->machine;
    if (vm->cpu)
        def->cpu = vm->cpu;
    def->boot_kernel = vm->boot.kernel;
    def->boot_initrd = vm->boot.initrd;
    def->boot_append = vm->boot.append;
    def->boot_state = vm->boot.state;
    /* Every value goes out, also those that are today's defaults: another version may have other ones. */
    def->has_vcpus = def->has_protect = def->has_checkpoint_interval_ms = def->has_checkpoint_stall_max_percent = 1;
    def->has_on_node_fault = def->has_on_vm_fault = def->has_priority = 1;
    def->has_restarts_max = def->has_restarts_window_s = def->has_mirror_apart = 1;
    if (mst_yaml_has(yaml, "vcpus"))
        def->vcpus = vm->vcpus;
    if (mst_yaml_has(yaml, "protect"))
        def->protect = (Mainstay__Protect)vm->protect;
    if (mst_yaml_has(yaml, "mirror-apart"))
        def->mirror_apart = (Mainstay__MirrorApart)vm->mirror_apart;
    if (mst_yaml_has(yaml, "checkpoint-interval-ms"))
        def->checkpoint_interval_ms = vm->checkpoint_interval_ms;
    if (mst_yaml_has(yaml, "checkpoint-stall-max-percent"))
        def->checkpoint_stall_max_percent = vm->checkpoint_stall_max_percent;
    if (mst_yaml_has(yaml, "on-node-fault"))
        def->on_node_fault = (Mainstay__OnFault)vm->on_node_fault;
    if (mst_yaml_has(yaml, "on-vm-fault"))
        def->on_vm_fault = (Mainstay__OnFault)vm->on_vm_fault;
    if (mst_yaml_has(yaml, "priority"))
        def->priority = vm->priority;
    if (mst_yaml_has(yaml, "restarts-max"))
        def->restarts_max = vm->restarts_max;
    if (mst_yaml_has(yaml, "restarts-window-s"))
        def->restarts_window_s = vm->restarts_window_s;
    def->has_output_commit = mst_yaml_has(yaml, "output-commit") || def->protect == MAINSTAY__PROTECT__PROTECT_MIRROR;
    if (mst_yaml_has(yaml, "output-commit"))
        def->output_commit = vm->output_commit != 0;
    if (vm->network) {
        mainstay__vm_network__init(&parts->network);
        parts->network.bridge = vm->network->bridge;
        parts->network.mac = vm->network->mac;
        def->network = &parts->network;
    }
    disks_fill(yaml, vm, parts);
    def->allowed_nodes = vm->allowed_nodes;
    def->n_allowed_nodes = vm->allowed_nodes_count;
}

Mainstay__VmDefinition *mst_vm_definition_copy(const Mainstay__VmDefinition *def)
{
    size_t bytes = mainstay__vm_definition__get_packed_size(def);
    uint8_t *packed = malloc(bytes + 1);
    Mainstay__VmDefinition *copy = NULL;

    if (packed) {
        mainstay__vm_definition__pack(def, packed);
        copy = mainstay__vm_definition__unpack(NULL, bytes, packed);
    }
    free(packed);
    return copy;
}

int mst_vm_definition_load(const char *path, Mainstay__VmDefinition **ret_def, struct mst_why *why)
{
    struct mst_yaml *yaml;
    struct vm_yaml *vm = NULL;
    struct parts parts;
    int r;

    r = mst_yaml_open(path, &yaml, why);
    if (r < 0)
        return r;
    r = mst_yaml_load(yaml, &vm_schema, rules, (void **)&vm, why);
    if (r < 0)
        goto close_yaml;
    definition_fill(yaml, vm, &parts);
    r = mst_vm_definition_check(&parts.def, why);
    if (r < 0) {
        mst_yaml_place(yaml, why, r);
        goto free_vm;
    }
    *ret_def = mst_vm_definition_copy(&parts.def);
    if (!*ret_def)
        r = mst_why_set(why, -ENOMEM, "%s: no memory", path);
free_vm:
    mst_yaml_free(&vm_schema, vm);
close_yaml:
    mst_yaml_close(yaml);
    return r;
}
