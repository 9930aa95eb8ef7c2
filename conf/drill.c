#include "conf/conf.h"
#include "conf/yaml.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REQUIRED CYAML_FLAG_POINTER
#define OPTIONAL (CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL)

static const cyaml_schema_field_t vm_fields[] = {
    CYAML_FIELD_STRING_PTR("definition", REQUIRED, struct mst_drill_vm, definition, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("name", OPTIONAL, struct mst_drill_vm, name, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("node", OPTIONAL, struct mst_drill_vm, node, 0, CYAML_UNLIMITED),
    CYAML_FIELD_UINT("rto-ms", CYAML_FLAG_OPTIONAL, struct mst_drill_vm, rto_ms),
    CYAML_FIELD_UINT("rpo-ms", CYAML_FLAG_OPTIONAL, struct mst_drill_vm, rpo_ms),
    CYAML_FIELD_STRING_PTR("memory", OPTIONAL, struct mst_drill_vm, memory, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("method", OPTIONAL, struct mst_drill_vm, method, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("placed", OPTIONAL, struct mst_drill_vm, placed, 0, CYAML_UNLIMITED),
    CYAML_FIELD_UINT("lost-beats-max", CYAML_FLAG_OPTIONAL, struct mst_drill_vm, lost_beats_max),
    CYAML_FIELD_UINT("mirrored-ms", CYAML_FLAG_OPTIONAL, struct mst_drill_vm, mirrored_ms),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t vm_schema = {CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct mst_drill_vm, vm_fields)};

static const cyaml_schema_field_t fault_fields[] = {
    CYAML_FIELD_UINT("at-ms", CYAML_FLAG_OPTIONAL, struct mst_drill_fault, at_ms),
    CYAML_FIELD_STRING_PTR("kind", REQUIRED, struct mst_drill_fault, kind, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("node", OPTIONAL, struct mst_drill_fault, node, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("vm", OPTIONAL, struct mst_drill_fault, vm, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("mirror-of", OPTIONAL, struct mst_drill_fault, mirror_of, 0, CYAML_UNLIMITED),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t fault_schema = {CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct mst_drill_fault, fault_fields)};

/* Without at-ms: undoing happens at the end, in the order of the list. */
static const cyaml_schema_value_t undo_schema = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct mst_drill_fault, fault_fields + 1)};

static const cyaml_schema_field_t drill_fields[] = {
    CYAML_FIELD_STRING_PTR("name", REQUIRED, struct mst_drill_conf, name, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("text", OPTIONAL, struct mst_drill_conf, text, 0, CYAML_UNLIMITED),
    CYAML_FIELD_UINT("settle-ms", CYAML_FLAG_OPTIONAL, struct mst_drill_conf, settle_ms),
    CYAML_FIELD_UINT("timeout-ms", CYAML_FLAG_OPTIONAL, struct mst_drill_conf, timeout_ms),
    CYAML_FIELD_UINT("observe-ms", CYAML_FLAG_OPTIONAL, struct mst_drill_conf, observe_ms),
    CYAML_FIELD_STRING_PTR("fence", OPTIONAL, struct mst_drill_conf, fence, 0, CYAML_UNLIMITED),
    CYAML_FIELD_SEQUENCE("vms", CYAML_FLAG_POINTER, struct mst_drill_conf, vms, &vm_schema, 1, MST_VMS_MAX),
    CYAML_FIELD_SEQUENCE("faults", OPTIONAL, struct mst_drill_conf, faults, &fault_schema, 0, MST_DRILL_FAULTS_MAX),
    CYAML_FIELD_SEQUENCE("undo", OPTIONAL, struct mst_drill_conf, undo, &undo_schema, 0, MST_DRILL_FAULTS_MAX),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t drill_schema = {CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct mst_drill_conf, drill_fields)};

#define KINDS_OF_VMS "qemu-kill|qemu-stop"
#define KINDS_OF_NODES                                                                                                           \
    "agent-kill|agent-stop|keeper-kill|keeper-stop|machine-check|panic|power-off|cut|link-slow|"                                 \
    "coordinator-kill|coordinator-stop|etcd-kill|etcd-stop"
#define KINDS_OF_UNDO "power-on|heal|link-well|keeper-continue|agent-continue|coordinator-continue|etcd-continue"

static const struct mst_rule rules[] = {
    {"name", MST_RULE_NAME, 0, 0, NULL},
    {"text", MST_RULE_TEXT, 0, 4000, NULL},
    {"settle-ms", MST_RULE_NUMBER, 0, 3600000, NULL},
    {"timeout-ms", MST_RULE_NUMBER, 1000, 86400000, NULL},
    {"observe-ms", MST_RULE_NUMBER, 0, 3600000, NULL},
    {"fence", MST_RULE_WORDS, 0, 0, "keeper|power|watchdog|operator"},
    {"vms[].definition", MST_RULE_FILE, 1, MST_CONF_PATH_MAX, NULL},
    {"vms[].name", MST_RULE_NAME, 0, 0, NULL},
    {"vms[].node", MST_RULE_NAME, 0, 0, NULL},
    {"vms[].rto-ms", MST_RULE_NUMBER, 1, 86400000, NULL},
    {"vms[].rpo-ms", MST_RULE_NUMBER, 0, 86400000, NULL},
    {"vms[].memory", MST_RULE_WORDS, 0, 0, "kept|lost|any"},
    {"vms[].method", MST_RULE_WORDS, 0, 0, "none|booted|pulled-live|pulled-shadow|in-place|restarted"},
    {"vms[].placed", MST_RULE_NAME, 0, 0, NULL}, /* same, other, or a node */
    {"vms[].lost-beats-max", MST_RULE_NUMBER, 0, 1000000, NULL},
    {"vms[].mirrored-ms", MST_RULE_NUMBER, 1, 86400000, NULL},
    {"faults[].at-ms", MST_RULE_NUMBER, 0, 86400000, NULL},
    {"faults[].kind", MST_RULE_WORDS, 0, 0, KINDS_OF_VMS "|" KINDS_OF_NODES "|" KINDS_OF_UNDO},
    {"faults[].node", MST_RULE_NAME, 0, 0, NULL},
    {"faults[].vm", MST_RULE_NAME, 0, 0, NULL},
    {"faults[].mirror-of", MST_RULE_NAME, 0, 0, NULL},
    {"undo[].kind", MST_RULE_WORDS, 0, 0, KINDS_OF_UNDO},
    {"undo[].node", MST_RULE_NAME, 0, 0, NULL},
    {"undo[].vm", MST_RULE_NAME, 0, 0, NULL},
    {"undo[].mirror-of", MST_RULE_NAME, 0, 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static const struct mst_rule of_vms = {"", MST_RULE_WORDS, 0, 0, KINDS_OF_VMS};

/* Whether the drill has a VM of this name; true also when one goes by the name in its definition, which is not read here. */
static bool vm_known(const struct mst_drill_conf *conf, const char *name)
{
    for (unsigned i = 0; i < conf->vms_count; i++) {
        if (!conf->vms[i].name || strcmp(conf->vms[i].name, name) == 0)
            return true;
    }
    return false;
}

static int check_fault(const struct mst_yaml *yaml, const struct mst_drill_conf *conf, const char *list, unsigned i,
                       const struct mst_drill_fault *fault, struct mst_why *why)
{
    char what[MST_RULE_TEXT_BYTES], key[MST_YAML_PATH];
    bool of_vm = mst_rule_string(&of_vms, fault->kind, what) == 0;

    snprintf(key, sizeof(key), "%s[%u].vm", list, i);
    if (of_vm && !fault->vm)
        return mst_yaml_refuse(yaml, why, key, "is missing, %s strikes a VM and has to name it", fault->kind);
    if (!of_vm && fault->vm)
        return mst_yaml_refuse(
            yaml, why, key, "is given with %s, which strikes a whole node; allowed only with qemu-kill, qemu-stop", fault->kind);
    if (fault->vm && !vm_known(conf, fault->vm))
        return mst_yaml_refuse(yaml, why, key, "'%s' is none of the drill's vms, allowed are their names", fault->vm);
    snprintf(key, sizeof(key), "%s[%u].mirror-of", list, i);
    if (fault->mirror_of && (of_vm || fault->node))
        return mst_yaml_refuse(yaml, why, key, "is given with %s, allowed is one of them", of_vm ? "a fault of a VM" : "node");
    if (fault->mirror_of && !vm_known(conf, fault->mirror_of))
        return mst_yaml_refuse(yaml, why, key, "'%s' is none of the drill's vms, allowed are their names", fault->mirror_of);
    snprintf(key, sizeof(key), "%s[%u].node", list, i);
    if (!of_vm && !fault->node && !fault->mirror_of)
        return mst_yaml_refuse(yaml, why, key, "is missing, %s strikes a node and has to name it", fault->kind);
    snprintf(key, sizeof(key), "%s[%u].at-ms", list, i);
    if ((uint64_t)conf->settle_ms + fault->at_ms >= conf->timeout_ms)
        return mst_yaml_refuse(yaml, why, key, "%u is too late, allowed is less than timeout-ms %u less settle-ms %u",
                               fault->at_ms, conf->timeout_ms, conf->settle_ms);
    return 0;
}

static int check_vms(const struct mst_yaml *yaml, const struct mst_drill_conf *conf, struct mst_why *why)
{
    char key[MST_YAML_PATH];

    for (unsigned i = 0; i < conf->vms_count; i++) {
        for (unsigned j = 0; j < i && conf->vms[i].name; j++) {
            if (!conf->vms[j].name || strcmp(conf->vms[i].name, conf->vms[j].name) != 0)
                continue;
            snprintf(key, sizeof(key), "vms[%u].name", i);
            return mst_yaml_refuse(yaml, why, key, "'%s' is the name of vms[%u] too, each is allowed once", conf->vms[i].name, j);
        }
    }
    return 0;
}

static int check(const struct mst_yaml *yaml, const struct mst_drill_conf *conf, struct mst_why *why)
{
    int r;

    if ((uint64_t)conf->settle_ms + conf->observe_ms >= conf->timeout_ms)
        return mst_yaml_refuse(yaml, why, "timeout-ms",
                               "%u is too short, allowed is more than settle-ms %u and observe-ms %u together", conf->timeout_ms,
                               conf->settle_ms, conf->observe_ms);
    r = check_vms(yaml, conf, why);
    for (unsigned i = 0; i < conf->faults_count && r == 0; i++)
        r = check_fault(yaml, conf, "faults", i, &conf->faults[i], why);
    for (unsigned i = 0; i < conf->undo_count && r == 0; i++)
        r = check_fault(yaml, conf, "undo", i, &conf->undo[i], why);
    return r;
}

static void fill(const struct mst_yaml *yaml, struct mst_drill_conf *conf)
{
    char key[MST_YAML_PATH];

    if (!mst_yaml_has(yaml, "settle-ms"))
        conf->settle_ms = 3000;
    if (!mst_yaml_has(yaml, "timeout-ms"))
        conf->timeout_ms = 120000;
    if (!mst_yaml_has(yaml, "observe-ms"))
        conf->observe_ms = 3000;
    for (unsigned i = 0; i < conf->vms_count; i++) {
        snprintf(key, sizeof(key), "vms[%u].rto-ms", i);
        conf->vms[i].has_rto_ms = mst_yaml_has(yaml, key);
        snprintf(key, sizeof(key), "vms[%u].rpo-ms", i);
        conf->vms[i].has_rpo_ms = mst_yaml_has(yaml, key);
        snprintf(key, sizeof(key), "vms[%u].lost-beats-max", i);
        conf->vms[i].has_lost_beats_max = mst_yaml_has(yaml, key);
        snprintf(key, sizeof(key), "vms[%u].mirrored-ms", i);
        conf->vms[i].has_mirrored_ms = mst_yaml_has(yaml, key);
    }
}

int mst_drill_conf_load(const char *path, struct mst_drill_conf **ret_conf, struct mst_why *why)
{
    struct mst_drill_conf *conf = NULL;
    struct mst_yaml *yaml;
    int r;

    r = mst_yaml_open(path, &yaml, why);
    if (r < 0)
        return r;
    r = mst_yaml_load(yaml, &drill_schema, rules, (void **)&conf, why);
    if (r == 0) {
        fill(yaml, conf);
        r = check(yaml, conf, why);
    }
    mst_yaml_close(yaml);
    if (r < 0) {
        mst_drill_conf_free(conf);
        return r;
    }
    *ret_conf = conf;
    return 0;
}

void mst_drill_conf_free(struct mst_drill_conf *conf)
{
    mst_yaml_free(&drill_schema, conf);
}
