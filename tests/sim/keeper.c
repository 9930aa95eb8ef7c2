#include "tests/sim/seam/seam_calls.h"
#include "tests/sim/world.h"

#include "node/keeper/keeper.h"
#include "tests/sim/oracle.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Life of the real keeper on a simulated host: what node/keeper/main.c does around its loop, and systemd around that. */

void *sim_calloc(size_t count, size_t bytes);

/* Beats are written when somebody looks (uv.c), and so often at least: leases end and watchdogs bite where nobody looks. */
#define BEAT_MS 100u

static void beat_event(void *arg)
{
    struct sim_host *host = arg;

    sim_at(&host->keeper, BEAT_MS * SIM_MS, beat_event, host);
    sim_lazy_run(&host->keeper);
}

static void boot(void *arg)
{
    struct sim_host *host = arg;
    struct mst_keeper *k = sim_calloc(1, sizeof(*k));
    struct mst_why why = {0};
    int r;

    k->conf = &host->conf;
    r = mst_keeper_prepare(k, &why);
    if (r == 0)
        r = mst_keeper_parts_open(k, &why);
    if (sim_muted())
        return;
    if (r < 0) {
        sim_say("keeper does not start: %s", why.text);
        sim_keeper_kill(host, 1000);
        return;
    }
    mst_slots_start(k);
    if (sim_muted())
        return;
    host->k = k;
    sim_say("keeper instance %016llx up", (unsigned long long)k->instance);
    oracle_keeper_up(host, k->instance);
    sim_at(&host->keeper, BEAT_MS * SIM_MS, beat_event, host);
}

static void boot_event(void *arg)
{
    struct sim_host *host = arg;

    if (host->powered && host->keeper_wanted && !host->keeper.alive && K.now_ns >= host->keeper_up_ns)
        sim_keeper_start(host);
}

void sim_keeper_start(struct sim_host *host)
{
    host->keeper_wanted = true;
    if (host->keeper.alive || !host->powered)
        return;
    sim_proc_start(&host->keeper);
    sim_as(&host->keeper, boot, host);
}

void sim_keeper_kill(struct sim_host *host, uint64_t back_after_ms)
{
    if (host->keeper.alive) {
        sim_say("%s: its keeper is killed", host->name);
        oracle_keeper_down(host);
        sim_proc_kill(&host->keeper);
        host->k = NULL;
        host->lock_life = 0;
        host->sockserv = host->manageserv = NULL;
        sim_fabric_proc_gone(host, &host->keeper);
        sim_socket_proc_gone(&host->keeper);
        sim_tasks_orphaned(host);
    }
    host->keeper_up_ns = K.now_ns + back_after_ms * SIM_MS;
    sim_at(NULL, back_after_ms * SIM_MS, boot_event, host);
}

/* --- power --- */

static void reboot_event(void *arg)
{
    struct sim_host *host = arg;

    if (!host->powered && host->reboot_ns && K.now_ns >= host->reboot_ns)
        sim_power_on(host);
}

void sim_power_off(struct sim_host *host, const char *why)
{
    if (!host->powered)
        return;
    sim_say("%s loses power: %s", host->name, why);
    host->powered = host->dog_armed = host->dog_waits = false;
    oracle_host_down(host);
    sim_fabric_host_gone(host);
    for (struct sim_task *task = host->tasks; task; task = task->next) {
        task->watch = NULL;
        sim_task_end(task, 9);
    }
    host->tasks = NULL;
    sim_proc_kill(&host->keeper);
    sim_proc_kill(&host->agent);
    sim_socket_proc_gone(&host->keeper);
    sim_socket_proc_gone(&host->agent);
    host->k = NULL;
    host->a = NULL;
    host->sockserv = host->manageserv = NULL;
    host->lock_life = 0;
    sim_files_gone(host);
    if (host->reboot_ns) {
        host->reboot_ns = K.now_ns + sim_between(3000, 12000) * SIM_MS;
        sim_at(NULL, host->reboot_ns - K.now_ns, reboot_event, host);
    }
}

void sim_power_on(struct sim_host *host)
{
    if (host->powered)
        return;
    host->powered = true;
    host->boot++;
    host->rdma_up = true;
    host->boot_id[1] = (uint8_t)host->boot;
    host->boot_id[2] = (uint8_t)(host->boot >> 8);
    host->clock_ns = SIM_S * 10; /* the boot clock begins anew */
    host->clock_at_ns = K.now_ns;
    sim_say("%s has power again", host->name);
    host->keeper_up_ns = K.now_ns;
    sim_at(NULL, sim_between(200, 1500) * SIM_MS, boot_event, host);
}

unsigned sim_keeper_leaks(const struct sim_host *host, char *text, size_t size)
{
    unsigned regions, vms = 0, expected, links = sim_links_of(&host->keeper, &regions);

    for (unsigned i = 0; host->k && i < MST_VMS_PER_NODE; i++)
        vms += host->k->vms[i].used;
    expected = links * (2 + vms * MST_AREA_KINDS) + 3 * MST_AREA_KINDS;
    snprintf(text, size, "%u links, %u regions (at most %u), %llu blocks of memory", links, regions, expected,
             (unsigned long long)host->keeper.blocks_count);
    return host->keeper.alive && (regions > expected || links > 4 * SIM_HOSTS_MAX || host->keeper.blocks_count > 400);
}
