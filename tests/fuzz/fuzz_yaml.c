#include "fuzz.h"

#include "base/file.h"
#include "base/text.h"
#include "conf/conf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* The four kinds of YAML file that people write: node, coordinator, VM definition, drill. First byte: which. */

enum { NODE, COORDINATOR, VM, DRILL, KINDS };

static void node(const char *path, struct mst_why *why, int *ret)
{
    struct mst_node_conf *conf;

    *ret = mst_node_conf_load(path, &conf, why);
    if (*ret < 0)
        return;
    FUZZ_CHECK(mst_name_check(conf->cluster) == 0 && mst_name_check(conf->node) == 0 && mst_address_check(conf->address) == 0);
    FUZZ_CHECK(conf->id >= 1 && conf->id <= MST_NODE_ID_MAX && conf->port > 0 && conf->coordinators_count > 0 &&
               conf->coordinators_count <= MST_COORDINATORS_MAX);
    FUZZ_CHECK(conf->main_storage && conf->run_dir && conf->state_dir && conf->cgroup && conf->agent && conf->exec &&
               conf->qemu && conf->accel);
    mst_node_conf_free(conf);
}

static void coordinator(const char *path, struct mst_why *why, int *ret)
{
    struct mst_coordinator_conf *conf;

    *ret = mst_coordinator_conf_load(path, &conf, why);
    if (*ret < 0)
        return;
    FUZZ_CHECK(conf->nodes_count > 0 && conf->nodes_count <= MST_NODES_MAX && conf->watch_interval_ms > 0);
    for (unsigned i = 0; i < conf->nodes_count; i++) {
        const struct mst_fence_conf *fence = conf->nodes[i].fence;

        FUZZ_CHECK(mst_name_check(conf->nodes[i].name) == 0 && mst_address_check(conf->nodes[i].address) == 0);
        for (unsigned k = 0; fence && k < fence->options_count; k++) /* a line for each goes to the fence agent */
            FUZZ_CHECK(!strpbrk(fence->options[k].key, "=\n") && !strchr(fence->options[k].value, '\n'));
    }
    mst_coordinator_conf_free(conf);
}

static void vm(const char *path, struct mst_why *why, int *ret)
{
    Mainstay__VmDefinition *def;
    struct mst_why again;
    uint8_t *packed;
    size_t len;

    *ret = mst_vm_definition_load(path, &def, why);
    if (*ret < 0)
        return;
    FUZZ_CHECK(mst_vm_definition_check(def, &again) == 0);
    len = mainstay__vm_definition__get_packed_size(def);
    packed = malloc(len + 1);
    FUZZ_CHECK(packed && mainstay__vm_definition__pack(def, packed) == len);
    free(packed);
    mainstay__vm_definition__free_unpacked(def, NULL);
}

static void drill(const char *path, struct mst_why *why, int *ret)
{
    struct mst_drill_conf *conf;

    *ret = mst_drill_conf_load(path, &conf, why);
    if (*ret < 0)
        return;
    FUZZ_CHECK(conf->faults_count + conf->undo_count <= 2 * MST_DRILL_FAULTS_MAX && conf->timeout_ms > 0);
    for (unsigned i = 0; i < conf->faults_count; i++)
        FUZZ_CHECK(conf->faults[i].kind);
    mst_drill_conf_free(conf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const load[KINDS])(const char *path, struct mst_why *why, int *ret) = {node, coordinator, vm, drill};
    struct mst_why why = {""};
    char path[64];
    int fd, r = 0;

    if (size == 0)
        return 0;
    fd = memfd_create("fuzz", MFD_CLOEXEC);
    FUZZ_CHECK(fd >= 0 && mst_write_all(fd, data + 1, size - 1) == 0);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    load[data[0] % KINDS](path, &why, &r);
    FUZZ_CHECK(r == 0 || (r == -EINVAL && strncmp(why.text, path, strlen(path)) == 0)); /* every refusal says where */
    close(fd);
    return 0;
}

static void from_file(unsigned kind, const char *folder, const char *file)
{
    char path[512], name[128], *text;
    uint8_t *seed;
    size_t len;

    snprintf(path, sizeof(path), "%s/%s/%s", SOURCE_DIR, folder, file);
    if (mst_file_read(path, MST_DEVICE_BYTES_MAX, &text, &len) < 0) {
        fprintf(stderr, "%s cannot be read\n", path);
        exit(1);
    }
    seed = malloc(len + 1);
    FUZZ_CHECK(seed);
    seed[0] = (uint8_t)kind;
    memcpy(seed + 1, text, len);
    snprintf(name, sizeof(name), "%u-%s", kind, file);
    fuzz_seed(name, seed, len + 1);
    free(seed);
    free(text);
}

void fuzz_seeds(void)
{
    from_file(NODE, "deploy/config", "node.yaml");
    from_file(COORDINATOR, "deploy/config", "coordinator.yaml");
    from_file(VM, "deploy/config", "vm-minimal.yaml");
    from_file(VM, "deploy/config", "vm-protected.yaml");
    from_file(VM, "deploy/config", "vm-state.yaml");
    from_file(VM, "deploy/config", "vm-mirror.yaml");
    from_file(VM, "deploy/config", "vm-disks.yaml");
    from_file(VM, "deploy/config", "vm-shared.yaml");
    from_file(DRILL, "deploy/config", "drill.yaml");
    from_file(DRILL, "deploy/drills", "quickstart.yaml");
    from_file(DRILL, "deploy/drills", "node-cut.yaml");
}
