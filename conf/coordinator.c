#include "conf/conf.h"
#include "conf/yaml.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REQUIRED          CYAML_FLAG_POINTER
#define MIRROR_LAG_MS_MIN 4000u
#define LEASE_MS          30000u /* outlasts what a network takes to find itself anew */
#define OPTIONAL          (CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL)

static const cyaml_schema_field_t fence_fields[] = {
    CYAML_FIELD_STRING_PTR("agent", REQUIRED, struct mst_fence_conf, agent, 0, CYAML_UNLIMITED),
    CYAML_FIELD_IGNORE("options", CYAML_FLAG_OPTIONAL), /* free keys, which no schema can name: taken from the document */
    CYAML_FIELD_END,
};

static const cyaml_schema_field_t management_fields[] = {
    CYAML_FIELD_STRING_PTR("address", REQUIRED, struct mst_management_conf, address, 0, CYAML_UNLIMITED),
    CYAML_FIELD_UINT("port", CYAML_FLAG_OPTIONAL, struct mst_management_conf, port),
    CYAML_FIELD_END,
};

static const cyaml_schema_field_t member_fields[] = {
    CYAML_FIELD_STRING_PTR("name", REQUIRED, struct mst_member_conf, name, 0, CYAML_UNLIMITED),
    CYAML_FIELD_UINT("id", CYAML_FLAG_DEFAULT, struct mst_member_conf, id),
    CYAML_FIELD_STRING_PTR("address", REQUIRED, struct mst_member_conf, address, 0, CYAML_UNLIMITED),
    CYAML_FIELD_UINT("port", CYAML_FLAG_OPTIONAL, struct mst_member_conf, port),
    CYAML_FIELD_STRING_PTR("rack", OPTIONAL, struct mst_member_conf, rack, 0, CYAML_UNLIMITED),
    CYAML_FIELD_UINT("watchdog-proof-ms", CYAML_FLAG_OPTIONAL, struct mst_member_conf, watchdog_proof_ms),
    CYAML_FIELD_MAPPING_PTR("management", CYAML_FLAG_OPTIONAL, struct mst_member_conf, management, management_fields),
    CYAML_FIELD_MAPPING_PTR("fence", CYAML_FLAG_OPTIONAL, struct mst_member_conf, fence, fence_fields),
    CYAML_FIELD_END,
};

static const cyaml_schema_value_t member_schema = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct mst_member_conf, member_fields)};

static const cyaml_schema_value_t endpoint_schema = {CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char, 0, CYAML_UNLIMITED)};

static const cyaml_schema_field_t etcd_fields[] = {
    CYAML_FIELD_SEQUENCE("endpoints", CYAML_FLAG_POINTER, struct mst_etcd_conf, endpoints, &endpoint_schema, 1,
                         MST_ETCD_ENDPOINTS_MAX),
    CYAML_FIELD_STRING_PTR("prefix", OPTIONAL, struct mst_etcd_conf, prefix, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("ca-file", OPTIONAL, struct mst_etcd_conf, ca_file, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("cert-file", OPTIONAL, struct mst_etcd_conf, cert_file, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("key-file", OPTIONAL, struct mst_etcd_conf, key_file, 0, CYAML_UNLIMITED),
    CYAML_FIELD_UINT("lease-ms", CYAML_FLAG_OPTIONAL, struct mst_etcd_conf, lease_ms),
    CYAML_FIELD_END,
};

static const cyaml_schema_field_t store_fields[] = {
    CYAML_FIELD_MAPPING_PTR("etcd", CYAML_FLAG_POINTER, struct mst_store_conf, etcd, etcd_fields),
    CYAML_FIELD_END,
};

static const cyaml_schema_field_t coordinator_fields[] = {
    CYAML_FIELD_STRING_PTR("cluster", REQUIRED, struct mst_coordinator_conf, cluster, 0, CYAML_UNLIMITED),
    CYAML_FIELD_UINT("id", CYAML_FLAG_DEFAULT, struct mst_coordinator_conf, id),
    CYAML_FIELD_STRING_PTR("address", REQUIRED, struct mst_coordinator_conf, address, 0, CYAML_UNLIMITED),
    CYAML_FIELD_UINT("port", CYAML_FLAG_OPTIONAL, struct mst_coordinator_conf, port),
    CYAML_FIELD_STRING_PTR("state-dir", OPTIONAL, struct mst_coordinator_conf, state_dir, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("run-dir", OPTIONAL, struct mst_coordinator_conf, run_dir, 0, CYAML_UNLIMITED),
    CYAML_FIELD_STRING_PTR("events-file", OPTIONAL, struct mst_coordinator_conf, events_file, 0, CYAML_UNLIMITED),
    CYAML_FIELD_MAPPING_PTR("store", CYAML_FLAG_OPTIONAL, struct mst_coordinator_conf, store, store_fields),
    CYAML_FIELD_UINT("watch-interval-ms", CYAML_FLAG_OPTIONAL, struct mst_coordinator_conf, watch_interval_ms),
    CYAML_FIELD_UINT("agent-silent-ms", CYAML_FLAG_OPTIONAL, struct mst_coordinator_conf, agent_silent_ms),
    CYAML_FIELD_UINT("keeper-silent-ms", CYAML_FLAG_OPTIONAL, struct mst_coordinator_conf, keeper_silent_ms),
    CYAML_FIELD_UINT("keeper-return-ms", CYAML_FLAG_OPTIONAL, struct mst_coordinator_conf, keeper_return_ms),
    CYAML_FIELD_UINT("lease-ms", CYAML_FLAG_OPTIONAL, struct mst_coordinator_conf, lease_ms),
    CYAML_FIELD_UINT("fence-timeout-ms", CYAML_FLAG_OPTIONAL, struct mst_coordinator_conf, fence_timeout_ms),
    CYAML_FIELD_UINT("node-starts-max", CYAML_FLAG_OPTIONAL, struct mst_coordinator_conf, node_starts_max),
    CYAML_FIELD_UINT("node-starts-window-ms", CYAML_FLAG_OPTIONAL, struct mst_coordinator_conf, node_starts_window_ms),
    CYAML_FIELD_UINT("fences-max", CYAML_FLAG_OPTIONAL, struct mst_coordinator_conf, fences_max),
    CYAML_FIELD_UINT("starts-max", CYAML_FLAG_OPTIONAL, struct mst_coordinator_conf, starts_max),
    CYAML_FIELD_UINT("mass-loss-percent", CYAML_FLAG_OPTIONAL, struct mst_coordinator_conf, mass_loss_percent),
    CYAML_FIELD_UINT("mirror-lag-ms", CYAML_FLAG_OPTIONAL, struct mst_coordinator_conf, mirror_lag_ms),
    CYAML_FIELD_SEQUENCE("nodes", CYAML_FLAG_POINTER, struct mst_coordinator_conf, nodes, &member_schema, 1, MST_NODES_MAX),
    CYAML_FIELD_END,
};

static const cyaml_schema_value_t coordinator_schema = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct mst_coordinator_conf, coordinator_fields)};

static const struct mst_rule rules[] = {
    {"cluster", MST_RULE_NAME, 0, 0, NULL},
    {"id", MST_RULE_NUMBER, 1, MST_NODE_ID_MAX, NULL},
    {"address", MST_RULE_ADDRESS, 0, 0, NULL},
    {"port", MST_RULE_NUMBER, 1, UINT16_MAX, NULL},
    {"state-dir", MST_RULE_PATH, 1, MST_CONF_PATH_MAX, NULL},
    {"run-dir", MST_RULE_PATH, 1, MST_RUN_DIR_MAX, NULL},
    {"events-file", MST_RULE_PATH, 1, MST_CONF_PATH_MAX, NULL},
    {"store.etcd.endpoints[]", MST_RULE_TOKEN, 1, 255, ":/.-_[]"},
    {"store.etcd.prefix", MST_RULE_TOKEN, 1, 128, "/-_."},
    {"store.etcd.ca-file", MST_RULE_PATH, 1, MST_CONF_PATH_MAX, NULL},
    {"store.etcd.cert-file", MST_RULE_PATH, 1, MST_CONF_PATH_MAX, NULL},
    {"store.etcd.key-file", MST_RULE_PATH, 1, MST_CONF_PATH_MAX, NULL},
    {"store.etcd.lease-ms", MST_RULE_NUMBER, 2000, 60000, NULL},
    {"watch-interval-ms", MST_RULE_NUMBER, 5, 10000, NULL},
    {"agent-silent-ms", MST_RULE_NUMBER, 50, 600000, NULL},
    {"keeper-silent-ms", MST_RULE_NUMBER, 50, 600000, NULL},
    {"keeper-return-ms", MST_RULE_NUMBER, 0, 600000, NULL},
    {"lease-ms", MST_RULE_NUMBER, 0, MST_LEASE_MS_MAX, NULL},
    {"fence-timeout-ms", MST_RULE_NUMBER, 1000, 600000, NULL},
    {"node-starts-max", MST_RULE_NUMBER, 2, MST_NODE_STARTS_MAX, NULL},
    {"node-starts-window-ms", MST_RULE_NUMBER, 1000, 3600000, NULL},
    {"fences-max", MST_RULE_NUMBER, 1, MST_NODES_MAX, NULL},
    {"starts-max", MST_RULE_NUMBER, 1, MST_VMS_PER_NODE, NULL},
    {"mass-loss-percent", MST_RULE_NUMBER, 1, 100, NULL},
    {"mirror-lag-ms", MST_RULE_NUMBER, 0, 600000, NULL},
    {"nodes[].name", MST_RULE_NAME, 0, 0, NULL},
    {"nodes[].id", MST_RULE_NUMBER, 1, MST_NODE_ID_MAX, NULL},
    {"nodes[].address", MST_RULE_ADDRESS, 0, 0, NULL},
    {"nodes[].port", MST_RULE_NUMBER, 1, UINT16_MAX, NULL},
    {"nodes[].rack", MST_RULE_LINE, 1, MST_NAME_BYTES - 1, NULL},
    {"nodes[].watchdog-proof-ms", MST_RULE_NUMBER, 1000, MST_WATCHDOG_S_MAX * 1000, NULL},
    {"nodes[].management.address", MST_RULE_ADDRESS, 0, 0, NULL},
    {"nodes[].management.port", MST_RULE_NUMBER, 1, UINT16_MAX, NULL},
    {"nodes[].fence.agent", MST_RULE_TOKEN, 1, 255, "_-./"},
    {NULL, 0, 0, 0, NULL},
};

/* A still counter is judged by what three reads in a row have seen: below that, one late read is a fault. */
static int check_silent(const struct mst_yaml *yaml, const struct mst_coordinator_conf *conf, const char *key, uint32_t silent_ms,
                        struct mst_why *why)
{
    if (silent_ms > 3 * conf->watch_interval_ms)
        return 0;
    return mst_yaml_refuse(yaml, why, key,
                           "%u is too short for watch-interval-ms %u, allowed is more than 3 times as much: %u..600000",
                           silent_ms, conf->watch_interval_ms, 3 * conf->watch_interval_ms + 1);
}

/* Shortest lease that a node does not lose while it is not even suspected: renewed at its quarter, it must outlast keeper-silent-ms, and two
 * seconds in which the node stops what it runs and its clocks may disagree. */
static uint64_t lease_needs_ms(const struct mst_coordinator_conf *conf)
{
    uint64_t silent = ((uint64_t)conf->keeper_silent_ms + 2000) * 4 / 3 + 1, watch = 8 * (uint64_t)conf->watch_interval_ms;

    silent = silent > watch ? silent : watch;
    return silent > MST_LEASE_MS_MIN ? silent : MST_LEASE_MS_MIN;
}

static int check_lease(const struct mst_yaml *yaml, const struct mst_coordinator_conf *conf, struct mst_why *why)
{
    uint64_t needs_ms = lease_needs_ms(conf);
    char key[MST_YAML_PATH];

    if (conf->lease_ms != 0 && conf->lease_ms < needs_ms)
        return mst_yaml_refuse(
            yaml, why, "lease-ms", "%u is too short for keeper-silent-ms %u and watch-interval-ms %u, allowed are 0 and %llu..%u",
            conf->lease_ms, conf->keeper_silent_ms, conf->watch_interval_ms, (unsigned long long)needs_ms, MST_LEASE_MS_MAX);
    for (unsigned i = 0; conf->lease_ms == 0 && i < conf->nodes_count; i++) {
        if (conf->nodes[i].watchdog_proof_ms == 0)
            continue;
        snprintf(key, sizeof(key), "nodes[%u].watchdog-proof-ms", i);
        return mst_yaml_refuse(yaml, why, key, "there are no leases (lease-ms is 0), so none can run out");
    }
    return 0;
}

/* Answers count for keeper-silent-ms: a node that is asked every second must have had the time to give one more. */
static int check_management(const struct mst_yaml *yaml, const struct mst_coordinator_conf *conf, struct mst_why *why)
{
    char key[MST_YAML_PATH];

    for (unsigned i = 0; i < conf->nodes_count; i++) {
        const struct mst_management_conf *own = conf->nodes[i].management;

        if (!own)
            continue;
        snprintf(key, sizeof(key), "nodes[%u].management", i);
        if (conf->keeper_silent_ms < 2 * MST_MANAGE_ASK_MS)
            return mst_yaml_refuse(yaml, why, key, "needs a keeper-silent-ms of %u..600000, as it is asked every %u ms",
                                   2 * MST_MANAGE_ASK_MS, MST_MANAGE_ASK_MS);
        for (unsigned k = 0; k < i; k++) {
            const struct mst_management_conf *other = conf->nodes[k].management;

            if (other && strcmp(own->address, other->address) == 0 && own->port == other->port)
                return mst_yaml_refuse(yaml, why, key, "nodes[%u] has the same address and port, allowed is one node for each",
                                       k);
        }
    }
    return 0;
}

static int check_members(const struct mst_yaml *yaml, const struct mst_coordinator_conf *conf, struct mst_why *why)
{
    char key[MST_YAML_PATH];

    for (unsigned i = 0; i < conf->nodes_count; i++) {
        const struct mst_member_conf *node = &conf->nodes[i];
        for (unsigned j = 0; j < i; j++) {
            const struct mst_member_conf *other = &conf->nodes[j];
            const char *what = strcmp(node->name, other->name) == 0                                      ? "name"
                               : node->id == other->id                                                   ? "id"
                               : strcmp(node->address, other->address) == 0 && node->port == other->port ? "address"
                                                                                                         : NULL;
            if (!what)
                continue;
            snprintf(key, sizeof(key), "nodes[%u].%s", i, what);
            return mst_yaml_refuse(yaml, why, key, "nodes[%u] has the same %s%s, allowed is one node for each", j, what,
                                   strcmp(what, "address") == 0 ? " and port" : "");
        }
        if (strcmp(node->address, conf->address) == 0 && node->port == conf->port) {
            snprintf(key, sizeof(key), "nodes[%u].address", i);
            return mst_yaml_refuse(yaml, why, key, "this coordinator itself listens there, allowed is another address or port");
        }
        snprintf(key, sizeof(key), "nodes[%u].fence.agent", i);
        if (node->fence && node->fence->agent[0] != '/' && strchr(node->fence->agent, '/'))
            return mst_yaml_refuse(yaml, why, key,
                                   "'%s' is a relative path, allowed are the name of a program and absolute paths",
                                   node->fence->agent);
    }
    return 0;
}

static int check_endpoints(const struct mst_yaml *yaml, const struct mst_etcd_conf *etcd, struct mst_why *why)
{
    char key[MST_YAML_PATH];

    for (unsigned i = 0; i < etcd->endpoints_count; i++) {
        const char *endpoint = etcd->endpoints[i];
        bool tls = strncmp(endpoint, "https://", 8) == 0;

        snprintf(key, sizeof(key), "store.etcd.endpoints[%u]", i);
        if ((!tls && strncmp(endpoint, "http://", 7) != 0) || strchr(endpoint + (tls ? 8 : 7), '/') || !endpoint[tls ? 8 : 7])
            return mst_yaml_refuse(yaml, why, key, "'%s' is no endpoint, allowed are http://HOST:PORT and https://HOST:PORT",
                                   endpoint);
        if (etcd->ca_file && !tls)
            return mst_yaml_refuse(yaml, why, key, "'%s' is not encrypted, with ca-file allowed is https://HOST:PORT", endpoint);
        for (unsigned k = 0; k < i; k++) {
            if (strcmp(endpoint, etcd->endpoints[k]) == 0)
                return mst_yaml_refuse(yaml, why, key, "is endpoints[%u] once more, each is allowed once", k);
        }
    }
    return 0;
}

static int check_store(const struct mst_yaml *yaml, const struct mst_coordinator_conf *conf, struct mst_why *why)
{
    const struct mst_etcd_conf *etcd = conf->store ? conf->store->etcd : NULL;

    if (!etcd)
        return 0;
    if (!etcd->cert_file != !etcd->key_file)
        return mst_yaml_refuse(yaml, why, etcd->cert_file ? "store.etcd.cert-file" : "store.etcd.key-file",
                               "stands alone, allowed are cert-file and key-file together, or none");
    if (etcd->cert_file && !etcd->ca_file)
        return mst_yaml_refuse(yaml, why, "store.etcd.cert-file", "stands without ca-file, allowed is with it");
    if (etcd->lease_ms % 1000 != 0)
        return mst_yaml_refuse(yaml, why, "store.etcd.lease-ms",
                               "%u is no whole number of seconds, which is all etcd has: 2000..60000", etcd->lease_ms);
    if (etcd->prefix[0] != '/' || etcd->prefix[strlen(etcd->prefix) - 1] == '/')
        return mst_yaml_refuse(yaml, why, "store.etcd.prefix",
                               "'%s' has no / at its beginning or has one at its end, allowed is /NAME/...", etcd->prefix);
    return check_endpoints(yaml, etcd, why);
}

static int check(const struct mst_yaml *yaml, const struct mst_coordinator_conf *conf, struct mst_why *why)
{
    int r;

    r = check_silent(yaml, conf, "agent-silent-ms", conf->agent_silent_ms, why);
    if (r == 0)
        r = check_silent(yaml, conf, "keeper-silent-ms", conf->keeper_silent_ms, why);
    if (r == 0)
        r = check_lease(yaml, conf, why);
    if (r == 0 && conf->mirror_lag_ms != 0 && conf->mirror_lag_ms < MIRROR_LAG_MS_MIN)
        r = mst_yaml_refuse(yaml, why, "mirror-lag-ms",
                            "%u is too short, as mirrors are told of once a second; allowed are 0 and %u..600000",
                            conf->mirror_lag_ms, MIRROR_LAG_MS_MIN);
    if (r == 0)
        r = check_store(yaml, conf, why);
    if (r == 0)
        r = check_management(yaml, conf, why);
    return r < 0 ? r : check_members(yaml, conf, why);
}

static void options_free(struct mst_fence_conf *fence)
{
    for (unsigned i = 0; i < fence->options_count; i++) {
        free(fence->options[i].key);
        free(fence->options[i].value);
    }
    free(fence->options);
    fence->options = NULL;
    fence->options_count = 0;
}

static int options_load(const struct mst_yaml *yaml, unsigned node, struct mst_fence_conf *fence)
{
    char key[MST_YAML_PATH];
    const char *name, *value;
    unsigned count = 0;

    snprintf(key, sizeof(key), "nodes[%u].fence.options", node);
    while (mst_yaml_pair(yaml, key, count, &name, &value))
        count++;
    if (count == 0)
        return 0;
    fence->options = calloc(count, sizeof(*fence->options));
    if (!fence->options)
        return -ENOMEM;
    fence->options_count = count;
    for (unsigned i = 0; mst_yaml_pair(yaml, key, i, &name, &value); i++) {
        fence->options[i].key = strdup(name);
        fence->options[i].value = strdup(value);
        if (!fence->options[i].key || !fence->options[i].value)
            return -ENOMEM;
    }
    return 0;
}

static void default_number(const struct mst_yaml *yaml, const char *key, uint32_t *value, uint32_t number)
{
    if (!mst_yaml_has(yaml, key))
        *value = number;
}

static int fill_etcd(const struct mst_yaml *yaml, const char *cluster, struct mst_etcd_conf *etcd)
{
    char prefix[MST_NAME_BYTES + 16];

    default_number(yaml, "store.etcd.lease-ms", &etcd->lease_ms, 5000);
    snprintf(prefix, sizeof(prefix), "/mainstay/%s", cluster);
    return mst_default(&etcd->prefix, prefix);
}

static int fill(const struct mst_yaml *yaml, struct mst_coordinator_conf *conf)
{
    uint64_t lease_ms;
    int r = 0;

    if (conf->port == 0)
        conf->port = MST_COORDINATOR_PORT;
    default_number(yaml, "watch-interval-ms", &conf->watch_interval_ms, 50);
    default_number(yaml, "agent-silent-ms", &conf->agent_silent_ms, 3000);
    default_number(yaml, "keeper-silent-ms", &conf->keeper_silent_ms, 3000);
    default_number(yaml, "keeper-return-ms", &conf->keeper_return_ms, 3000);
    default_number(yaml, "fence-timeout-ms", &conf->fence_timeout_ms, 30000);
    default_number(yaml, "node-starts-max", &conf->node_starts_max, 4);
    default_number(yaml, "node-starts-window-ms", &conf->node_starts_window_ms, 120000);
    default_number(yaml, "fences-max", &conf->fences_max, 2);
    default_number(yaml, "starts-max", &conf->starts_max, 8);
    default_number(yaml, "mass-loss-percent", &conf->mass_loss_percent, 50);
    default_number(yaml, "mirror-lag-ms", &conf->mirror_lag_ms, 10000);
    lease_ms = lease_needs_ms(conf) > LEASE_MS ? lease_needs_ms(conf) : LEASE_MS;
    default_number(yaml, "lease-ms", &conf->lease_ms, lease_ms > MST_LEASE_MS_MAX ? 0 : (uint32_t)lease_ms);
    for (unsigned i = 0; i < conf->nodes_count && r == 0; i++) {
        if (conf->nodes[i].port == 0)
            conf->nodes[i].port = MST_NODE_PORT;
        if (conf->nodes[i].management && conf->nodes[i].management->port == 0)
            conf->nodes[i].management->port = MST_MANAGEMENT_PORT;
        if (conf->nodes[i].fence)
            r = options_load(yaml, i, conf->nodes[i].fence);
    }
    if (r == 0 && conf->store && conf->store->etcd)
        r = fill_etcd(yaml, conf->cluster, conf->store->etcd);
    r = r < 0 ? r : mst_default(&conf->state_dir, "/var/lib/mainstay");
    return r < 0 ? r : mst_default(&conf->run_dir, "/run/mainstay");
}

int mst_coordinator_conf_load(const char *path, struct mst_coordinator_conf **ret_conf, struct mst_why *why)
{
    struct mst_coordinator_conf *conf = NULL;
    struct mst_yaml *yaml;
    int r;

    r = mst_yaml_open(path, &yaml, why);
    if (r < 0)
        return r;
    r = mst_yaml_load(yaml, &coordinator_schema, rules, (void **)&conf, why);
    if (r == 0 && fill(yaml, conf) < 0)
        r = mst_why_set(why, -ENOMEM, "%s: no memory", path);
    if (r == 0)
        r = check(yaml, conf, why);
    mst_yaml_close(yaml);
    if (r < 0) {
        mst_coordinator_conf_free(conf);
        return r;
    }
    *ret_conf = conf;
    return 0;
}

void mst_coordinator_conf_free(struct mst_coordinator_conf *conf)
{
    if (!conf)
        return;
    for (unsigned i = 0; i < conf->nodes_count; i++) {
        if (conf->nodes[i].fence)
            options_free(conf->nodes[i].fence);
    }
    mst_yaml_free(&coordinator_schema, conf);
}
