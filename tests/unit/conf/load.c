#include "base/file.h"
#include "files.h"

#include <check.h>
#include <errno.h>
#include <glob.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct mst_why why;

#define load_ok(call) ck_assert_msg((call) == 0, "%s", why.text)

START_TEST(sample_node_file_is_loaded_whole)
{
    struct mst_node_conf *conf;

    load_ok(mst_node_conf_load(SOURCE_DIR "/deploy/config/node.yaml", &conf, &why));
    ck_assert_str_eq(conf->cluster, "lab");
    ck_assert_str_eq(conf->node, "n1");
    ck_assert_uint_eq(conf->id, 1);
    ck_assert_str_eq(conf->address, "10.7.0.1");
    ck_assert_uint_eq(conf->port, 7471);
    ck_assert_str_eq(conf->rack, "r1");
    ck_assert_uint_eq(conf->coordinators_count, 1);
    ck_assert_str_eq(conf->coordinators[0].address, "10.7.0.101");
    ck_assert_uint_eq(conf->coordinators[0].port, 7470);
    ck_assert_uint_eq(conf->memory_mib, 768);
    ck_assert_uint_eq(conf->vcpus, 8);
    mst_node_conf_free(conf);
}
END_TEST

START_TEST(node_file_takes_its_defaults)
{
    struct mst_node_conf *conf;
    const char *path = file_make("node.yaml",
                                 "cluster: lab\nnode: n1\nid: 1\naddress: fd00::1\nmemory-mib: 1\nvcpus: 1\n"
                                 "coordinators:\n- address: 10.0.0.1\n- {address: 10.0.0.2, port: 1}\n",
                                 0);

    load_ok(mst_node_conf_load(path, &conf, &why));
    ck_assert_uint_eq(conf->port, 7471);
    ck_assert_ptr_null(conf->rack);
    ck_assert_uint_eq(conf->coordinators_count, 2);
    ck_assert_uint_eq(conf->coordinators[0].port, 7470);
    ck_assert_uint_eq(conf->coordinators[1].port, 1);
    ck_assert_str_eq(conf->main_storage, "/dev/shm/mainstay");
    ck_assert_str_eq(conf->run_dir, "/run/mainstay");
    ck_assert_str_eq(conf->state_dir, "/var/lib/mainstay");
    ck_assert_str_eq(conf->cgroup, "/sys/fs/cgroup/mainstay");
    ck_assert_str_eq(conf->agent, "/usr/libexec/mainstay/mainstay-node");
    ck_assert_str_eq(conf->exec, "/usr/libexec/mainstay/mainstay-exec");
    ck_assert_str_eq(conf->qemu, "/usr/bin/qemu-system-x86_64");
    ck_assert_str_eq(conf->accel, "auto");
    ck_assert_str_eq(conf->bridge, "mainstay0");
    ck_assert_uint_eq(conf->mirror_scrub_s, 30);
    ck_assert_uint_eq(conf->standby_memory_mib, 256);
    mst_node_conf_free(conf);
}
END_TEST

START_TEST(sample_coordinator_file_is_loaded_whole)
{
    struct mst_coordinator_conf *conf;

    load_ok(mst_coordinator_conf_load(SOURCE_DIR "/deploy/config/coordinator.yaml", &conf, &why));
    ck_assert_str_eq(conf->cluster, "lab");
    ck_assert_uint_eq(conf->id, 1);
    ck_assert_str_eq(conf->address, "10.7.0.101");
    ck_assert_uint_eq(conf->watch_interval_ms, 50);
    ck_assert_uint_eq(conf->nodes_count, 3);
    ck_assert_str_eq(conf->nodes[0].name, "n1");
    ck_assert_str_eq(conf->nodes[0].fence->agent, "fence_ipmilan");
    ck_assert_uint_eq(conf->nodes[0].fence->options_count, 6);
    ck_assert_str_eq(conf->nodes[0].fence->options[0].key, "ip");
    ck_assert_str_eq(conf->nodes[0].fence->options[0].value, "10.7.0.201");
    ck_assert_str_eq(conf->nodes[0].fence->options[5].key, "power_wait");
    ck_assert_str_eq(conf->nodes[0].fence->options[5].value, "0");
    ck_assert_str_eq(conf->nodes[1].fence->options[0].value, "10.7.0.202");
    ck_assert_uint_eq(conf->nodes[1].port, 7471);
    ck_assert_ptr_null(conf->nodes[2].fence);
    ck_assert_uint_eq(conf->nodes[2].id, 3);
    mst_coordinator_conf_free(conf);
}
END_TEST

START_TEST(sample_of_several_coordinators_is_loaded_whole)
{
    struct mst_coordinator_conf *conf;
    const struct mst_etcd_conf *etcd;

    load_ok(mst_coordinator_conf_load(SOURCE_DIR "/deploy/config/coordinator-etcd.yaml", &conf, &why));
    ck_assert_ptr_nonnull(conf->store);
    etcd = conf->store->etcd;
    ck_assert_uint_eq(etcd->endpoints_count, 3);
    ck_assert_str_eq(etcd->endpoints[0], "https://10.8.0.101:2379");
    ck_assert_str_eq(etcd->endpoints[2], "https://10.8.0.103:2379");
    ck_assert_str_eq(etcd->prefix, "/mainstay/lab");
    ck_assert_str_eq(etcd->ca_file, "/etc/mainstay/etcd/ca.pem");
    ck_assert_str_eq(etcd->cert_file, "/etc/mainstay/etcd/client.pem");
    ck_assert_str_eq(etcd->key_file, "/etc/mainstay/etcd/client-key.pem");
    ck_assert_uint_eq(etcd->lease_ms, 5000);
    mst_coordinator_conf_free(conf);
}
END_TEST

START_TEST(etcd_takes_its_defaults_and_without_it_there_is_none)
{
    struct mst_coordinator_conf *conf;

    load_ok(mst_coordinator_conf_load(file_make("c.yaml",
                                                "cluster: lab\nid: 1\naddress: 10.0.0.1\n"
                                                "store: {etcd: {endpoints: [\"http://[::1]:2379\"]}}\n"
                                                "nodes: [{name: n1, id: 1, address: 10.0.0.2}]\n",
                                                0),
                                      &conf, &why));
    ck_assert_str_eq(conf->store->etcd->prefix, "/mainstay/lab");
    ck_assert_uint_eq(conf->store->etcd->lease_ms, 5000);
    ck_assert_ptr_null(conf->store->etcd->ca_file);
    mst_coordinator_conf_free(conf);
    load_ok(mst_coordinator_conf_load(SOURCE_DIR "/deploy/config/coordinator.yaml", &conf, &why));
    ck_assert_ptr_null(conf->store);
    mst_coordinator_conf_free(conf);
}
END_TEST

START_TEST(coordinator_file_takes_its_defaults)
{
    struct mst_coordinator_conf *conf;
    const char *path = file_make("c.yaml",
                                 "cluster: lab\nid: 1023\naddress: 10.0.0.1\nkeeper-return-ms: 0\n"
                                 "nodes:\n- {name: n1, id: 1, address: 10.0.0.2, fence: {agent: /opt/fence_x}}\n",
                                 0);

    load_ok(mst_coordinator_conf_load(path, &conf, &why));
    ck_assert_uint_eq(conf->port, 7470);
    ck_assert_str_eq(conf->state_dir, "/var/lib/mainstay");
    ck_assert_str_eq(conf->run_dir, "/run/mainstay");
    ck_assert_uint_eq(conf->watch_interval_ms, 50);
    ck_assert_uint_eq(conf->agent_silent_ms, 3000);
    ck_assert_uint_eq(conf->keeper_silent_ms, 3000);
    ck_assert_uint_eq(conf->keeper_return_ms, 0);
    ck_assert_uint_eq(conf->fence_timeout_ms, 30000);
    ck_assert_uint_eq(conf->node_starts_max, 4);
    ck_assert_uint_eq(conf->node_starts_window_ms, 120000);
    ck_assert_uint_eq(conf->fences_max, 2);
    ck_assert_uint_eq(conf->starts_max, 8);
    ck_assert_uint_eq(conf->mass_loss_percent, 50);
    ck_assert_uint_eq(conf->mirror_lag_ms, 10000);
    ck_assert_uint_eq(conf->lease_ms, 30000);
    ck_assert_uint_eq(conf->nodes[0].watchdog_proof_ms, 0);
    ck_assert_uint_eq(conf->nodes[0].fence->options_count, 0);
    ck_assert_str_eq(conf->nodes[0].fence->agent, "/opt/fence_x");
    mst_coordinator_conf_free(conf);
}
END_TEST

START_TEST(the_default_lease_outlasts_the_silence_that_makes_a_node_suspect)
{
    static const struct {
        const char *silent;
        uint32_t lease_ms;
    } cases[] = {{"3000", 30000}, {"60000", 82667}, {"222000", 298667}, {"223000", 0}};
    struct mst_coordinator_conf *conf;
    char text[300];

    snprintf(text, sizeof(text),
             "cluster: lab\nid: 1\naddress: 10.0.0.1\nkeeper-silent-ms: %s\n"
             "nodes:\n- {name: n1, id: 1, address: 10.0.0.2}\n",
             cases[_i].silent);
    load_ok(mst_coordinator_conf_load(file_make("c.yaml", text, 0), &conf, &why));
    ck_assert_uint_eq(conf->lease_ms, cases[_i].lease_ms);
    mst_coordinator_conf_free(conf);
}
END_TEST

START_TEST(leases_and_watchdogs_are_loaded)
{
    struct mst_coordinator_conf *conf;
    struct mst_node_conf *node;

    load_ok(mst_coordinator_conf_load(file_make("c.yaml",
                                                "cluster: lab\nid: 1\naddress: 10.0.0.1\nlease-ms: 10000\n"
                                                "nodes:\n- {name: n1, id: 1, address: 10.0.0.2, watchdog-proof-ms: 20000}\n",
                                                0),
                                      &conf, &why));
    ck_assert_uint_eq(conf->lease_ms, 10000);
    ck_assert_uint_eq(conf->nodes[0].watchdog_proof_ms, 20000);
    mst_coordinator_conf_free(conf);
    load_ok(mst_node_conf_load(file_make("n.yaml",
                                         "cluster: lab\nnode: n1\nid: 1\naddress: 10.7.0.1\nmemory-mib: 16\nvcpus: 1\n"
                                         "coordinators: [{address: 10.7.0.101}]\non-lease-lost: run-on\nstandby-memory-mib: 0\n"
                                         "watchdog: {device: /dev/watchdog0, timeout-s: 20}\n",
                                         0),
                               &node, &why));
    ck_assert_str_eq(node->on_lease_lost, "run-on");
    ck_assert_uint_eq(node->standby_memory_mib, 0);
    ck_assert_str_eq(node->watchdog->device, "/dev/watchdog0");
    ck_assert_uint_eq(node->watchdog->timeout_s, 20);
    ck_assert_str_eq(node->watchdog->kind, "hardware");
    mst_node_conf_free(node);
}
END_TEST

START_TEST(definition_takes_its_defaults_and_says_them)
{
    Mainstay__VmDefinition *def;

    load_ok(mst_vm_definition_load(SOURCE_DIR "/deploy/config/vm-minimal.yaml", &def, &why));
    ck_assert_str_eq(def->name, "web01");
    ck_assert_uint_eq(def->memory_mib, 512);
    ck_assert(def->has_vcpus && def->vcpus == 1);
    ck_assert_str_eq(def->machine, "pc-i440fx-7.2");
    ck_assert_str_eq(def->cpu, "max");
    ck_assert_str_eq(def->boot_kernel, "/srv/mainstay/vmlinuz");
    ck_assert_ptr_null(def->boot_initrd);
    ck_assert_ptr_null(def->boot_append);
    ck_assert_ptr_null(def->boot_state);
    ck_assert(def->has_protect && def->protect == MAINSTAY__PROTECT__PROTECT_NONE);
    ck_assert(def->has_mirror_apart && def->mirror_apart == MAINSTAY__MIRROR_APART__MIRROR_APART_NODE);
    ck_assert(def->has_checkpoint_interval_ms && def->checkpoint_interval_ms == 100);
    ck_assert(def->has_checkpoint_stall_max_percent && def->checkpoint_stall_max_percent == 20);
    ck_assert(def->has_on_node_fault && def->on_node_fault == MAINSTAY__ON_FAULT__ON_FAULT_RESUME);
    ck_assert(def->has_on_vm_fault && def->on_vm_fault == MAINSTAY__ON_FAULT__ON_FAULT_RESUME);
    ck_assert(def->has_priority && def->priority == 10);
    ck_assert(def->has_restarts_max && def->restarts_max == 5);
    ck_assert(def->has_restarts_window_s && def->restarts_window_s == 300);
    ck_assert_uint_eq(def->n_allowed_nodes, 0);
    ck_assert_ptr_null(def->network);
    ck_assert_uint_eq(def->n_disks, 0);
    ck_assert(!def->has_output_commit);
    mainstay__vm_definition__free_unpacked(def, NULL);
}
END_TEST

START_TEST(definition_with_a_mirror_and_a_network_is_loaded_whole)
{
    static const uint8_t given[6] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};
    Mainstay__VmDefinition *def;
    uint8_t mac[6];

    load_ok(mst_vm_definition_load(SOURCE_DIR "/deploy/config/vm-mirror.yaml", &def, &why));
    ck_assert_int_eq(def->protect, MAINSTAY__PROTECT__PROTECT_MIRROR);
    ck_assert(def->has_output_commit && def->output_commit);
    ck_assert_str_eq(def->network->bridge, "mainstay0");
    mst_vm_mac(def, mac);
    ck_assert_mem_eq(mac, given, sizeof(mac));
    mainstay__vm_definition__free_unpacked(def, NULL);
}
END_TEST

#define MIRROR_HEAD "name: web01\nmemory-mib: 16\nboot: {kernel: /k}\nprotect: mirror\n"

START_TEST(output_waits_for_mirrors_unless_told_otherwise_and_that_is_said)
{
    Mainstay__VmDefinition *def;

    load_ok(mst_vm_definition_load(file_make("vm.yaml", MIRROR_HEAD, 0), &def, &why));
    ck_assert(def->has_output_commit && def->output_commit);
    mainstay__vm_definition__free_unpacked(def, NULL);
    load_ok(mst_vm_definition_load(file_make("vm.yaml", MIRROR_HEAD "output-commit: false\n", 0), &def, &why));
    ck_assert(def->has_output_commit && !def->output_commit);
    mainstay__vm_definition__free_unpacked(def, NULL);
}
END_TEST

START_TEST(disks_are_loaded_in_their_order)
{
    Mainstay__VmDefinition *def;

    load_ok(mst_vm_definition_load(SOURCE_DIR "/deploy/config/vm-shared.yaml", &def, &why));
    ck_assert(def->n_disks == 1 && def->disks[0]->writable);
    mainstay__vm_definition__free_unpacked(def, NULL);
    load_ok(mst_vm_definition_load(SOURCE_DIR "/deploy/config/vm-disks.yaml", &def, &why));
    ck_assert_uint_eq(mst_vm_area_mib(def), 1024 + 512);
    mainstay__vm_definition__free_unpacked(def, NULL);

    load_ok(mst_vm_definition_load(file_make("vm.yaml",
                                             MIRROR_HEAD "disks:\n- {path: /tools, format: qcow2}\n"
                                                         "- {memory-mib: 64, image: /data}\n"
                                                         "- {path: /more, format: raw, writable: false}\n",
                                             0),
                                   &def, &why));
    ck_assert_uint_eq(def->n_disks, 3);
    ck_assert_str_eq(def->disks[0]->path, "/tools");
    ck_assert(def->disks[0]->has_format && def->disks[0]->format == MAINSTAY__DISK_FORMAT__DISK_QCOW2);
    ck_assert(!def->disks[0]->writable && !def->disks[0]->has_memory_mib);
    ck_assert(def->disks[1]->has_memory_mib && def->disks[1]->memory_mib == 64);
    ck_assert_str_eq(def->disks[1]->image, "/data");
    ck_assert_ptr_null(def->disks[1]->path);
    ck_assert(def->disks[2]->has_writable && !def->disks[2]->writable);
    ck_assert_uint_eq(mst_vm_area_mib(def), 16 + 64);
    mainstay__vm_definition__free_unpacked(def, NULL);
    load_ok(mst_vm_definition_load(
        file_make("vm.yaml", "name: a\nmemory-mib: 16\nboot: {kernel: /k}\ndisks: [{path: /d, format: raw, writable: true}]\n",
                  0),
        &def, &why));
    ck_assert(def->disks[0]->writable && def->protect == MAINSTAY__PROTECT__PROTECT_NONE);
    ck_assert_uint_eq(mst_vm_area_mib(def), 16);
    mainstay__vm_definition__free_unpacked(def, NULL);
    load_ok(mst_vm_definition_load(file_make("vm.yaml", MIRROR_HEAD "disks: []\n", 0), &def, &why));
    ck_assert_uint_eq(def->n_disks, 0);
    mainstay__vm_definition__free_unpacked(def, NULL);
}
END_TEST

START_TEST(a_card_without_an_address_gets_one_from_its_vms_name)
{
    Mainstay__VmDefinition *def;
    uint8_t mac[6], again[6];

    load_ok(mst_vm_definition_load(file_make("vm.yaml", MIRROR_HEAD "network: {}\n", 0), &def, &why));
    ck_assert_ptr_nonnull(def->network);
    ck_assert_ptr_null(def->network->bridge);
    mst_vm_mac(def, mac);
    mst_vm_mac(def, again);
    ck_assert_mem_eq(mac, again, sizeof(mac));
    ck_assert_uint_eq(mac[0], 0x02);
    def->name[0] = 'v';
    mst_vm_mac(def, again);
    ck_assert_mem_ne(mac, again, sizeof(mac));
    mainstay__vm_definition__free_unpacked(def, NULL);
}
END_TEST

START_TEST(definition_is_loaded_whole_and_packs)
{
    Mainstay__VmDefinition *def, *again;
    uint8_t packed[1024];
    size_t n;

    load_ok(mst_vm_definition_load(SOURCE_DIR "/deploy/config/vm-protected.yaml", &def, &why));
    n = mainstay__vm_definition__get_packed_size(def);
    ck_assert_uint_le(n, sizeof(packed));
    mainstay__vm_definition__pack(def, packed);
    again = mainstay__vm_definition__unpack(NULL, n, packed);
    ck_assert_ptr_nonnull(again);
    mainstay__vm_definition__free_unpacked(def, NULL);
    ck_assert_str_eq(again->name, "db01");
    ck_assert_uint_eq(again->vcpus, 2);
    ck_assert_str_eq(again->boot_initrd, "/srv/mainstay/initrd.img");
    ck_assert_str_eq(again->boot_append, "console=ttyS0 panic=-1");
    ck_assert_int_eq(again->protect, MAINSTAY__PROTECT__PROTECT_LOCAL);
    ck_assert_uint_eq(again->checkpoint_stall_max_percent, 25);
    ck_assert_int_eq(again->on_vm_fault, MAINSTAY__ON_FAULT__ON_FAULT_RESUME_ELSEWHERE);
    ck_assert_uint_eq(again->priority, 100);
    ck_assert_uint_eq(again->n_allowed_nodes, 2);
    ck_assert_str_eq(again->allowed_nodes[1], "n2");
    ck_assert_int_eq(mst_vm_definition_check(again, &why), 0);
    mainstay__vm_definition__free_unpacked(again, NULL);
}
END_TEST

START_TEST(racks_and_what_a_mirror_may_not_share_are_loaded)
{
    struct mst_coordinator_conf *conf;
    Mainstay__VmDefinition *def;

    load_ok(mst_coordinator_conf_load(file_make("c.yaml",
                                                "cluster: lab\nid: 1\naddress: 10.0.0.1\nmirror-lag-ms: 0\nnodes:\n"
                                                "- {name: n1, id: 1, address: 10.0.0.2, rack: Row 3/7}\n"
                                                "- {name: n2, id: 2, address: 10.0.0.3}\n",
                                                0),
                                      &conf, &why));
    ck_assert_str_eq(conf->nodes[0].rack, "Row 3/7");
    ck_assert_uint_eq(conf->mirror_lag_ms, 0);
    ck_assert_ptr_null(conf->nodes[1].rack);
    mst_coordinator_conf_free(conf);
    load_ok(mst_vm_definition_load(
        file_make("v.yaml", "name: a\nmemory-mib: 16\nboot: {kernel: /k}\nprotect: mirror\nmirror-apart: rack\n", 0), &def,
        &why));
    ck_assert_int_eq(def->mirror_apart, MAINSTAY__MIRROR_APART__MIRROR_APART_RACK);
    mainstay__vm_definition__free_unpacked(def, NULL);
}
END_TEST

START_TEST(drill_is_loaded_whole)
{
    struct mst_drill_conf *conf;

    load_ok(mst_drill_conf_load(SOURCE_DIR "/deploy/config/drill.yaml", &conf, &why));
    ck_assert_str_eq(conf->name, "qemu-killed");
    ck_assert_ptr_nonnull(strstr(conf->text, "checkpoint"));
    ck_assert_uint_eq(conf->settle_ms, 3000);
    ck_assert_uint_eq(conf->timeout_ms, 120000);
    ck_assert_uint_eq(conf->observe_ms, 3000);
    ck_assert_ptr_null(conf->fence);
    ck_assert_uint_eq(conf->vms_count, 1);
    ck_assert_str_eq(conf->vms[0].definition, "vm-protected.yaml");
    ck_assert(conf->vms[0].has_rto_ms && conf->vms[0].rto_ms == 5000);
    ck_assert(conf->vms[0].has_rpo_ms && conf->vms[0].rpo_ms == 1000);
    ck_assert(conf->vms[0].has_lost_beats_max && conf->vms[0].lost_beats_max == 20);
    ck_assert_str_eq(conf->vms[0].memory, "kept");
    ck_assert_str_eq(conf->vms[0].method, "in-place");
    ck_assert_str_eq(conf->vms[0].placed, "same");
    ck_assert_uint_eq(conf->faults_count, 1);
    ck_assert_uint_eq(conf->faults[0].at_ms, 1000);
    ck_assert_str_eq(conf->faults[0].kind, "qemu-kill");
    ck_assert_ptr_null(conf->faults[0].node);
    ck_assert_str_eq(conf->faults[0].vm, "drill-db01");
    ck_assert_uint_eq(conf->undo_count, 0);
    mst_drill_conf_free(conf);
}
END_TEST

START_TEST(drill_takes_its_defaults)
{
    struct mst_drill_conf *conf;
    const char *path =
        file_make("d.yaml",
                  "name: d\nvms:\n- definition: a.yaml\n- {definition: b.yaml, rpo-ms: 0, mirrored-ms: 7}\n"
                  "faults:\n- {kind: power-off, node: n1}\n- {kind: cut, mirror-of: b}\nundo:\n- {kind: power-on, node: n1}\n",
                  0);

    load_ok(mst_drill_conf_load(path, &conf, &why));
    ck_assert_ptr_null(conf->text);
    ck_assert_uint_eq(conf->settle_ms, 3000);
    ck_assert_uint_eq(conf->timeout_ms, 120000);
    ck_assert_uint_eq(conf->observe_ms, 3000);
    ck_assert(!conf->vms[0].has_rto_ms && !conf->vms[0].has_rpo_ms && !conf->vms[0].has_lost_beats_max);
    ck_assert(!conf->vms[0].has_mirrored_ms && conf->vms[1].has_mirrored_ms && conf->vms[1].mirrored_ms == 7);
    ck_assert(conf->vms[1].has_rpo_ms && conf->vms[1].rpo_ms == 0);
    ck_assert_ptr_null(conf->faults[0].mirror_of);
    ck_assert_str_eq(conf->faults[1].mirror_of, "b");
    ck_assert_uint_eq(conf->faults[0].at_ms, 0);
    ck_assert_str_eq(conf->undo[0].kind, "power-on");
    mst_drill_conf_free(conf);
}
END_TEST

/* Every sample, and every drill that is shipped. */
START_TEST(all_files_of_the_repository_load)
{
    static const struct {
        const char *pattern;
        enum kind kind;
        size_t least;
    } samples[] = {
        {SOURCE_DIR "/deploy/config/node*.yaml", NODE, 1},    {SOURCE_DIR "/deploy/config/coordinator*.yaml", COORDINATOR, 1},
        {SOURCE_DIR "/deploy/config/vm-*.yaml", VM, 3},       {SOURCE_DIR "/deploy/config/drill*.yaml", DRILL, 1},
        {SOURCE_DIR "/deploy/drills/*.yaml", DRILL, 1},       {SOURCE_DIR "/deploy/drills/vm/*.yaml", VM, 1},
        {SOURCE_DIR "/deploy/drills/three/*.yaml", DRILL, 4},
    };

    for (unsigned i = 0; i < sizeof(samples) / sizeof(samples[0]); i++) {
        glob_t found;
        int r = glob(samples[i].pattern, 0, NULL, &found);
        ck_assert(r == 0 || r == GLOB_NOMATCH);
        size_t count = r == 0 ? found.gl_pathc : 0;
        ck_assert_uint_ge(count, samples[i].least);
        for (size_t f = 0; f < count; f++)
            load_ok(load(samples[i].kind, found.gl_pathv[f], &why));
        globfree(&found);
    }
}
END_TEST

/* Checks each key that the schema in file names: docs/CONFIGURATION.md has it between backquotes, alone or with what is above it. */
static unsigned keys_described(const char *file, const char *docs)
{
    char *source, *at, described[80];
    unsigned count = 0;
    size_t n;

    ck_assert_int_eq(mst_file_read(file, 1u << 20, &source, &n), 0);
    for (at = source; (at = strstr(at, "CYAML_FIELD_")); at++) {
        const char *key = at + strcspn(at, "\"\n");
        size_t len = *key == '"' ? strcspn(key + 1, "\"") : 0;
        if (len == 0)
            continue;
        snprintf(described, sizeof(described), "`%.*s`", (int)len, key + 1);
        bool there = strstr(docs, described) != NULL;
        described[0] = '.';
        ck_assert_msg(there || strstr(docs, described), "%s: key %.*s is not in docs/CONFIGURATION.md", file, (int)len, key + 1);
        count++;
    }
    free(source);
    return count;
}

START_TEST(every_key_is_described)
{
    char *docs;
    size_t n;

    ck_assert_int_eq(mst_file_read(SOURCE_DIR "/docs/CONFIGURATION.md", 1u << 20, &docs, &n), 0);
    ck_assert_uint_ge(keys_described(SOURCE_DIR "/conf/node.c", docs), 19);
    ck_assert_uint_ge(keys_described(SOURCE_DIR "/conf/coordinator.c", docs), 19);
    ck_assert_uint_ge(keys_described(SOURCE_DIR "/conf/vm.c", docs), 16);
    ck_assert_uint_ge(keys_described(SOURCE_DIR "/conf/drill.c", docs), 22);
    free(docs);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("conf/load");
    TCase *tcase = tcase_create("load");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tcase, folder_make, folder_remove);
    tcase_add_test(tcase, sample_node_file_is_loaded_whole);
    tcase_add_test(tcase, node_file_takes_its_defaults);
    tcase_add_test(tcase, sample_coordinator_file_is_loaded_whole);
    tcase_add_test(tcase, sample_of_several_coordinators_is_loaded_whole);
    tcase_add_test(tcase, etcd_takes_its_defaults_and_without_it_there_is_none);
    tcase_add_test(tcase, coordinator_file_takes_its_defaults);
    tcase_add_loop_test(tcase, the_default_lease_outlasts_the_silence_that_makes_a_node_suspect, 0, 4);
    tcase_add_test(tcase, leases_and_watchdogs_are_loaded);
    tcase_add_test(tcase, definition_takes_its_defaults_and_says_them);
    tcase_add_test(tcase, definition_is_loaded_whole_and_packs);
    tcase_add_test(tcase, racks_and_what_a_mirror_may_not_share_are_loaded);
    tcase_add_test(tcase, definition_with_a_mirror_and_a_network_is_loaded_whole);
    tcase_add_test(tcase, disks_are_loaded_in_their_order);
    tcase_add_test(tcase, output_waits_for_mirrors_unless_told_otherwise_and_that_is_said);
    tcase_add_test(tcase, a_card_without_an_address_gets_one_from_its_vms_name);
    tcase_add_test(tcase, drill_is_loaded_whole);
    tcase_add_test(tcase, drill_takes_its_defaults);
    tcase_add_test(tcase, all_files_of_the_repository_load);
    tcase_add_test(tcase, every_key_is_described);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
