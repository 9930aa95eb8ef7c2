#include "conf/conf.h"
#include "conf/yaml.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REQUIRED CYAML_FLAG_POINTER
#define OPTIONAL (CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL)

#define STANDBY_MEMORY_MIB (4 * MST_STANDBY_MIB)

static const cyaml_schema_field_t coordinator_fields[] = {
    CYAML_FIELD_STRING_PTR("address", REQUIRED, struct mst_coordinator_addr, address, 0, CYAML_UNLIMITED),
    CYAML_FIELD_UINT("port", CYAML_FLAG_OPTIONAL, struct mst_coordinator_addr, port),
    CYAML_FIELD_STRING_PTR("management-address", OPTIONAL, struct mst_coordinator_addr, management_address, 0, CYAML_UNLIMITED),
    CYAML_FIELD_END,
};

static const cyaml_schema_field_t management_fields[] = {
    CYAML_FIELD_STRING_PTR("address", REQUIRED, struct mst_management_conf, address, 0, CYAML_UNLIMITED),
    CYAML_FIELD_UINT("port", CYAML_FLAG_OPTIONAL, struct mst_management_conf, port),
    CYAML_FIELD_END,
};

static const cyaml_schema_value_t coordinator_schema = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct mst_coordinator_addr, coordinator_fields)};

static const cyaml_schema_field_t watchdog_fields[] = {
    CYAML_FIELD_STRING_PTR("device", REQUIRED, struct mst_watchdog_conf, device, 0, CYAML_UNLIMITED),
    CYAML_FIELD_UINT("timeout-s", CYAML_FLAG_DEFAULT, struct mst_watchdog_conf, timeout_s),
    CYAML_FIELD_STRING_PTR("kind", OPTIONAL, struct mst_watchdog_conf, kind, 0, CYAML_UNLIMITED),
    CYAML_FIELD_END,
};

static const cyaml_schema_field_t node_fields[] = {
    CYAML_FIELD_STRING_PTR("cluster", REQUIRED, struct mst_node_conf, cluster, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("node", REQUIRED, struct mst_node_conf, node, 0, CYAML_UNLIMITED),
    CYAML_FIELD_UINT("id", CYAML_FLAG_DEFAULT, struct mst_node_conf, id),
    CYAML_FIELD_STRING_PTR("address", REQUIRED, struct mst_node_conf, address, 0, CYAML_UNLIMITED),
    CYAML_FIELD_UINT("port", CYAML_FLAG_OPTIONAL, struct mst_node_conf, port),
    CYAML_FIELD_STRING_PTR("rack", OPTIONAL, struct mst_node_conf, rack, 0, CYAML_UNLIMITED),
    CYAML_FIELD_SEQUENCE("coordinators", CYAML_FLAG_POINTER, struct mst_node_conf, coordinators, &coordinator_schema, 1,
                         MST_COORDINATORS_MAX),
    CYAML_FIELD_STRING_PTR("main-storage", OPTIONAL, struct mst_node_conf, main_storage, 0, CYAML_UNLIMITED),
    CYAML_FIELD_UINT("memory-mib", CYAML_FLAG_DEFAULT, struct mst_node_conf, memory_mib),
    CYAML_FIELD_UINT("vcpus", CYAML_FLAG_DEFAULT, struct mst_node_conf, vcpus),
    CYAML_FIELD_STRING_PTR("run-dir", OPTIONAL, struct mst_node_conf, run_dir, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("state-dir", OPTIONAL, struct mst_node_conf, state_dir, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("events-file", OPTIONAL, struct mst_node_conf, events_file, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("cgroup", OPTIONAL, struct mst_node_conf, cgroup, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("agent", OPTIONAL, struct mst_node_conf, agent, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("exec", OPTIONAL, struct mst_node_conf, exec, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("qemu", OPTIONAL, struct mst_node_conf, qemu, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("accel", OPTIONAL, struct mst_node_conf, accel, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("on-lease-lost", OPTIONAL, struct mst_node_conf, on_lease_lost, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("bridge", OPTIONAL, struct mst_node_conf, bridge, 0, CYAML_UNLIMITED),
    CYAML_FIELD_UINT("mirror-scrub-s", CYAML_FLAG_OPTIONAL, struct mst_node_conf, mirror_scrub_s),
    CYAML_FIELD_UINT("standby-memory-mib", CYAML_FLAG_OPTIONAL, struct mst_node_conf, standby_memory_mib),
    CYAML_FIELD_MAPPING_PTR("watchdog", CYAML_FLAG_OPTIONAL, struct mst_node_conf, watchdog, watchdog_fields),
    CYAML_FIELD_MAPPING_PTR("management", CYAML_FLAG_OPTIONAL, struct mst_node_conf, management, management_fields),
    CYAML_FIELD_END,
};

static const cyaml_schema_value_t node_schema = {CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct mst_node_conf, node_fields)};

static const struct mst_rule rules[] = {
    {"cluster", MST_RULE_NAME, 0, 0, NULL},
    {"node", MST_RULE_NAME, 0, 0, NULL},
    {"id", MST_RULE_NUMBER, 1, MST_NODE_ID_MAX, NULL},
    {"address", MST_RULE_ADDRESS, 0, 0, NULL},
    {"port", MST_RULE_NUMBER, 1, UINT16_MAX, NULL},
    {"rack", MST_RULE_LINE, 1, MST_NAME_BYTES - 1, NULL},
    {"coordinators[].address", MST_RULE_ADDRESS, 0, 0, NULL},
    {"coordinators[].port", MST_RULE_NUMBER, 1, UINT16_MAX, NULL},
    {"coordinators[].management-address", MST_RULE_ADDRESS, 0, 0, NULL},
    {"main-storage", MST_RULE_PATH, 1, MST_CONF_PATH_MAX, NULL},
    {"memory-mib", MST_RULE_NUMBER, 1, MST_NODE_MEMORY_MIB_MAX, NULL},
    {"vcpus", MST_RULE_NUMBER, 1, MST_NODE_VCPUS_MAX, NULL},
    {"run-dir", MST_RULE_PATH, 1, MST_RUN_DIR_MAX, NULL},
    {"state-dir", MST_RULE_PATH, 1, MST_CONF_PATH_MAX, NULL},
    {"events-file", MST_RULE_PATH, 1, MST_CONF_PATH_MAX, NULL},
    {"cgroup", MST_RULE_PATH, 1, MST_CONF_PATH_MAX, NULL},
    {"agent", MST_RULE_PATH, 1, MST_CONF_PATH_MAX, NULL},
    {"exec", MST_RULE_PATH, 1, MST_CONF_PATH_MAX, NULL},
    {"qemu", MST_RULE_PATH, 1, MST_CONF_PATH_MAX, NULL},
    {"accel", MST_RULE_WORDS, 0, 0, "auto|kvm|tcg"},
    {"on-lease-lost", MST_RULE_WORDS, 0, 0, "stop|run-on"},
    {"bridge", MST_RULE_TOKEN, 1, MST_BRIDGE_BYTES_MAX, "-_."},
    {"mirror-scrub-s", MST_RULE_NUMBER, 1, MST_MIRROR_SCRUB_S_MAX, NULL},
    {"standby-memory-mib", MST_RULE_NUMBER, 0, MST_NODE_MEMORY_MIB_MAX, NULL},
    {"watchdog.device", MST_RULE_PATH, 1, MST_CONF_PATH_MAX, NULL},
    {"watchdog.timeout-s", MST_RULE_NUMBER, 1, MST_WATCHDOG_S_MAX, NULL},
    {"watchdog.kind", MST_RULE_WORDS, 0, 0, "hardware|softdog"},
    {"management.address", MST_RULE_ADDRESS, 0, 0, NULL},
    {"management.port", MST_RULE_NUMBER, 1, UINT16_MAX, NULL},
    {NULL, 0, 0, 0, NULL},
};

static int check(const struct mst_yaml *yaml, const struct mst_node_conf *conf, struct mst_why *why)
{
    char key[MST_YAML_PATH];

    if (mst_bridge_check(conf->bridge) < 0)
        return mst_yaml_refuse(yaml, why, "bridge", "'%s' is no name of a network device: it begins with a letter or a digit",
                               conf->bridge);
    for (unsigned i = 0; i < conf->coordinators_count; i++) {
        for (unsigned k = 0; k < i; k++) {
            if (strcmp(conf->coordinators[i].address, conf->coordinators[k].address) != 0 ||
                conf->coordinators[i].port != conf->coordinators[k].port)
                continue;
            snprintf(key, sizeof(key), "coordinators[%u]", i);
            return mst_yaml_refuse(yaml, why, key, "%s port %u is listed twice, each coordinator is allowed once",
                                   conf->coordinators[i].address, conf->coordinators[i].port);
        }
    }
    return 0;
}

static int fill_defaults(const struct mst_yaml *yaml, struct mst_node_conf *conf)
{
    int r = 0;

    if (conf->port == 0)
        conf->port = MST_NODE_PORT;
    if (conf->mirror_scrub_s == 0)
        conf->mirror_scrub_s = MST_MIRROR_SCRUB_S;
    if (!mst_yaml_has(yaml, "standby-memory-mib"))
        conf->standby_memory_mib = STANDBY_MEMORY_MIB;
    for (unsigned i = 0; i < conf->coordinators_count; i++) {
        if (conf->coordinators[i].port == 0)
            conf->coordinators[i].port = MST_COORDINATOR_PORT;
        r = r < 0 ? r : mst_default(&conf->coordinators[i].management_address, conf->coordinators[i].address);
    }
    if (conf->management && conf->management->port == 0)
        conf->management->port = MST_MANAGEMENT_PORT;
    r = r < 0 ? r : mst_default(&conf->main_storage, "/dev/shm/mainstay");
    r = r < 0 ? r : mst_default(&conf->run_dir, "/run/mainstay");
    r = r < 0 ? r : mst_default(&conf->state_dir, "/var/lib/mainstay");
    r = r < 0 ? r : mst_default(&conf->cgroup, "/sys/fs/cgroup/mainstay");
    r = r < 0 ? r : mst_default(&conf->agent, "/usr/libexec/mainstay/mainstay-node");
    r = r < 0 ? r : mst_default(&conf->exec, "/usr/libexec/mainstay/mainstay-exec");
    r = r < 0 ? r : mst_default(&conf->qemu, "/usr/bin/qemu-system-x86_64");
    r = r < 0 ? r : mst_default(&conf->accel, "auto");
    r = r < 0 ? r : mst_default(&conf->bridge, "mainstay0");
    if (conf->watchdog)
        r = r < 0 ? r : mst_default(&conf->watchdog->kind, "hardware");
    return r < 0 ? r : mst_default(&conf->on_lease_lost, "stop");
}

int mst_node_conf_load(const char *path, struct mst_node_conf **ret_conf, struct mst_why *why)
{
    struct mst_node_conf *conf = NULL;
    struct mst_yaml *yaml;
    int r;

    r = mst_yaml_open(path, &yaml, why);
    if (r < 0)
        return r;
    r = mst_yaml_load(yaml, &node_schema, rules, (void **)&conf, why);
    if (r == 0 && fill_defaults(yaml, conf) < 0)
        r = mst_why_set(why, -ENOMEM, "%s: no memory", path);
    if (r == 0)
        r = check(yaml, conf, why);
    mst_yaml_close(yaml);
    if (r < 0) {
        mst_node_conf_free(conf);
        return r;
    }
    *ret_conf = conf;
    return 0;
}

void mst_node_conf_free(struct mst_node_conf *conf)
{
    mst_yaml_free(&node_schema, conf);
}
