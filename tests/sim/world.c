#include "tests/sim/world.h"
#include "coordinator/core/plan.h"
#include "tests/sim/coord.h"
#include "tests/sim/etcd.h"
#include "tests/sim/oracle.h"
#include "tests/sim/seam/seam_calls.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Making a cluster, and letting it go. */

static void node_conf(struct sim_host *host)
{
    struct mst_node_conf *conf = &host->conf;
    char(*text)[48] = host->conf_text;
    unsigned id = host->index + 1;

    snprintf(text[0], sizeof(text[0]), "/sim/n%u/shm", id);
    snprintf(text[1], sizeof(text[1]), "/sim/n%u/run", id);
    snprintf(text[2], sizeof(text[2]), "/sim/n%u/cg", id);
    conf->cluster = (char *)"sim";
    conf->node = host->name;
    conf->id = host->index + 1;
    conf->address = host->address;
    conf->port = MST_NODE_PORT;
    conf->main_storage = text[0];
    conf->run_dir = conf->state_dir = text[1];
    conf->cgroup = text[2];
    conf->agent = (char *)"/sim/agent";
    conf->exec = (char *)"/sim/exec";
    conf->qemu = (char *)"/sim/qemu";
    conf->accel = (char *)"kvm";
    conf->on_lease_lost = (char *)"stop";
    conf->coordinators = host->coordinators;
    conf->coordinators_count = W->conf.coords;
    for (unsigned i = 0; i < W->conf.coords; i++)
        host->coordinators[i] = (struct mst_coordinator_addr){W->hosts[W->conf.nodes + i].address, MST_COORDINATOR_PORT,
                                                              W->hosts[W->conf.nodes + i].management};
}

static void host_init(struct sim_host *host, unsigned index)
{
    host->index = index;
    host->is_node = index < W->conf.nodes;
    if (host->is_node)
        snprintf(host->name, sizeof(host->name), "n%u", index + 1);
    else
        snprintf(host->name, sizeof(host->name), "c%u", index - W->conf.nodes + 1);
    snprintf(host->address, sizeof(host->address), "10.9.%u.%u", host->is_node ? 0 : 1,
             host->is_node ? index + 1 : index - W->conf.nodes + 1);
    snprintf(host->management, sizeof(host->management), "10.8%.20s", host->address + 4);
    snprintf(host->keeper.name, sizeof(host->keeper.name), "n%u.keeper", index + 1);
    snprintf(host->agent.name, sizeof(host->agent.name), "n%u.agent", index + 1);
    snprintf(host->coord.name, sizeof(host->coord.name), "c%u.coord", index - W->conf.nodes + 1);
    host->keeper.host = host->agent.host = host->coord.host = index;
    host->powered = host->rdma_up = true;
    host->boot = 1;
    host->boot_id[0] = (uint8_t)(index + 1);
    host->boot_id[1] = 1;
    host->clock_ns = 100 * SIM_S + sim_between(0, 5000) * SIM_S;
    host->clock_at_ns = K.now_ns;
    host->has_fence = host->is_node;
    host->conf.memory_mib = 256;
    host->conf.vcpus = 4;
    host->conf.mirror_scrub_s = 1; /* guests write each page anew within 6 s */
    host->conf.standby_memory_mib = 4 * MST_STANDBY_MIB;
}

struct sim_world *sim_world_new(const struct sim_conf *conf)
{
    static struct sim_world world;

    memset(&world, 0, sizeof(world));
    W = &world;
    W->conf = *conf;
    W->next_pid = 1000;
    W->hosts_count = conf->nodes + conf->coords;
    sim_fabric_reset();
    sim_socket_reset();
    memset(&sim_points, 0, sizeof(sim_points));
    sim_on_lease = NULL;
    for (unsigned i = 0; i < W->hosts_count; i++)
        host_init(&W->hosts[i], i);
    for (unsigned i = 0; i < W->hosts_count; i++)
        node_conf(&W->hosts[i]);
    sim_etcd_begin();
    return W;
}

uint64_t mst_plan_ring_bytes(uint32_t memory_mib)
{
    return SIM_RING_BYTES(memory_mib);
}

unsigned sim_vm_index(const char *name)
{
    for (unsigned i = 0; i < W->conf.vms; i++) {
        if (strcmp(W->vms[i].name, name) == 0)
            return i;
    }
    return SIM_VMS_MAX;
}

void sim_managed(struct sim_host *host)
{
    host->management_conf = (struct mst_management_conf){host->management, MST_MANAGEMENT_PORT};
    host->conf.management = &host->management_conf;
}

void sim_watchdog(struct sim_host *host, uint32_t timeout_s)
{
    host->dog_conf =
        (struct mst_watchdog_conf){.device = (char *)"/dev/watchdog0", .timeout_s = timeout_s, .kind = (char *)"hardware"};
    host->conf.watchdog = &host->dog_conf;
}

void sim_world_free(void)
{
    for (unsigned i = 0; i < W->hosts_count; i++) {
        struct sim_host *host = &W->hosts[i];

        sim_proc_kill(&host->keeper);
        sim_proc_kill(&host->agent);
        sim_proc_kill(&host->coord);
        free(host->keeper.held);
        free(host->agent.held);
        free(host->coord.held);
        sim_files_gone(host);
    }
}
