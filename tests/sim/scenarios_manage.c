#include "tests/sim/stage.h"

#include <errno.h>
#include <string.h>

/* Row 28: RDMA away, the management address there; and the reverse. */

static void managed_stage(unsigned nodes, unsigned vms)
{
    struct sim_conf conf = {.nodes = nodes, .coords = 1, .vms = vms, .watch_interval_ms = 100};

    stage_make(&conf);
    for (unsigned i = 0; i < nodes; i++)
        sim_managed(&W->hosts[i]);
    stage_start();
}

static struct mst_node_look look_at(const struct sim_host *host)
{
    struct mst_time now = sim_coord_time(W->coords[0]);
    struct mst_node_look look = {0};

    if (sim_coord_core(W->coords[0]))
        mst_core_node(sim_coord_core(W->coords[0]), &now, host->index, &look);
    return look;
}

/* Records about the node that began no recovery because it answered. */
static unsigned degraded_faults(const struct sim_host *host)
{
    const struct mst_fault_row *fault;
    unsigned count = 0;

    for (unsigned i = 0; (fault = mst_core_fault(sim_coord_core(W->coords[0]), i)) != NULL; i++)
        count += fault->node_id == host->index + 1 && fault->recovery_id == 0 && strncmp(fault->verdict, "degraded", 8) == 0;
    return count;
}

static void runs_on(const struct sim_host *host, uint64_t epoch)
{
    EXPECT(oracle_counts.power_fences == 0 && recoveries(1u << MST_SCOPE_NODE) == 0,
           "%u fences, %u recoveries of a node that answers", (unsigned)oracle_counts.power_fences,
           recoveries(1u << MST_SCOPE_NODE));
    EXPECT(epoch_of("vm0") == epoch && host_of("vm0") == host && task_of("vm0"), "vm0 does not run on where it was");
}

static void scenario_28_rdma_away_while_management_answers_takes_nothing_over(void)
{
    struct sim_host *host;

    managed_stage(3, 4);
    host = host_of("vm0");
    epoch_before = epoch_of("vm0");
    sim_fabric_device(host, false);
    sim_run_ms(20000); /* twice its lease */
    runs_on(host, epoch_before);
    EXPECT(look_at(host).state == MST_NODE_DEGRADED && strstr(look_at(host).text, "nothing is taken over"), "it is %u: %s",
           look_at(host).state, look_at(host).text);
    EXPECT(strstr(mst_core_trouble(sim_coord_core(W->coords[0])), "is away"), "the status has no alarm");
    EXPECT(degraded_faults(host) == 1, "%u fault records of one absence", degraded_faults(host));
    W->net.manage_cut[host->index] = 1;
    until_recovered(20000);
    EXPECT(oracle_counts.power_fences == 1 && !host->powered, "%u fences", (unsigned)oracle_counts.power_fences);
    EXPECT(epoch_of("vm0") == epoch_before + 1 && host_of("vm0") != host, "vm0 was not taken over once");
    well();
}

static void scenario_28_rdma_that_is_back_finds_all_as_it_was(void)
{
    struct sim_host *host;
    uint64_t epoch;

    managed_stage(3, 4);
    host = host_of("vm0");
    epoch = epoch_of("vm0");
    sim_fabric_device(host, false);
    sim_run_ms(6000);
    sim_coord_kill(W->coords[0], 500); /* the next one has never seen it, and has leases of its own to give */
    sim_run_ms(14000);
    runs_on(host, epoch);
    EXPECT(look_at(host).state == MST_NODE_DEGRADED, "it is %u", look_at(host).state);
    sim_proc_stop(&W->coords[0]->host->coord);
    sim_run_ms(5000);
    sim_proc_cont(&W->coords[0]->host->coord);
    sim_run_ms(8000);
    runs_on(host, epoch);
    sim_fabric_device(host, true);
    sim_run_ms(4000);
    runs_on(host, epoch);
    EXPECT(look_at(host).state == MST_NODE_UP && !look_at(host).text[0], "it is %u: %s", look_at(host).state, look_at(host).text);
    EXPECT(!mst_core_trouble(sim_coord_core(W->coords[0]))[0], "the alarm stays");
    well();
}

/* It had welcomed the node, and nobody told that node that it is gone: the lease that its successor renews over management hides it. */
static void scenario_28_a_link_to_a_coordinator_without_power_is_found_out_while_leases_come(void)
{
    struct sim_host *host;
    uint64_t epoch;

    managed_stage(3, 4);
    host = host_of("vm0");
    epoch = epoch_of("vm0");
    sim_power_off(W->coords[0]->host, "the script");
    sim_coord_kill(W->coords[0], 1000);
    sim_run_ms(500);
    sim_power_on(W->coords[0]->host);
    sim_run_ms(15000);
    runs_on(host, epoch);
    for (unsigned i = 0; i < W->conf.nodes; i++)
        EXPECT(look_at(&W->hosts[i]).state == MST_NODE_UP, "%s is %u: %s", W->hosts[i].name, look_at(&W->hosts[i]).state,
               look_at(&W->hosts[i]).text);
    well();
}

static void scenario_28_a_strict_lease_is_renewed_over_management(void)
{
    struct sim_conf conf = {.nodes = 3, .coords = 1, .vms = 3, .watch_interval_ms = 100};
    struct sim_host *host;

    stage_make(&conf);
    for (unsigned i = 0; i < conf.nodes; i++) {
        sim_managed(&W->hosts[i]);
        sim_watchdog(&W->hosts[i], 2);
        W->hosts[i].has_fence = false;
    }
    stage_start();
    host = host_of("vm0");
    epoch_before = epoch_of("vm0");
    sim_fabric_device(host, false);
    sim_run_ms(40000);
    runs_on(host, epoch_before);
    EXPECT(oracle_counts.lease_proofs == 0, "a lease that was renewed counts as proof");
    W->net.manage_cut[host->index] = 1;
    until_recovered(40000); /* no fence device: by the end of the lease, which is counted from the last renewal over management */
    EXPECT(oracle_counts.lease_proofs == 1 && host_of("vm0") != host, "%u proofs by lease", (unsigned)oracle_counts.lease_proofs);
    well();
}

static void scenario_28_another_keeper_that_answers_is_no_life_of_the_old_one(void)
{
    struct sim_host *host;

    managed_stage(3, 4);
    host = host_of("vm0");
    epoch_before = epoch_of("vm0");
    sim_fabric_device(host, false);
    sim_run_ms(8000);
    runs_on(host, epoch_before);
    sim_keeper_kill(host, 300); /* the next one cannot call */
    until_recovered(20000);
    EXPECT(oracle_counts.power_fences == 1 && host_of("vm0") != host, "%u fences", (unsigned)oracle_counts.power_fences);
    well();
}

static void scenario_28_a_keeper_that_hangs_answers_nobody(void)
{
    struct sim_host *host;

    managed_stage(3, 4);
    host = host_of("vm0");
    epoch_before = epoch_of("vm0");
    sim_fabric_device(host, false);
    sim_proc_stop(&host->keeper);
    until_recovered(20000);
    EXPECT(oracle_counts.power_fences == 1 && host_of("vm0") != host, "%u fences", (unsigned)oracle_counts.power_fences);
    well();
}

static void scenario_28_confirming_the_death_of_a_degraded_node_is_refused(void)
{
    struct sim_host *host;
    uint64_t token;
    int err = 0;

    managed_stage(3, 3);
    host = host_of("vm0");
    epoch_before = epoch_of("vm0");
    host->power = POWER_FAILS;
    sim_fabric_device(host, false);
    sim_run_ms(10000);
    token = sim_operator(MST_REQ_CONFIRM_DEAD, host->name, NULL, NULL);
    sim_run_ms(500);
    EXPECT(sim_replied(token, &err) && err == -EBUSY, "the death of a node that answers was confirmed (%d)", err);
    runs_on(host, epoch_before);
    sim_power_off(host, "the operator, by hand");
    sim_run_ms(6000);
    (void)sim_operator(MST_REQ_CONFIRM_DEAD, host->name, NULL, NULL);
    until_recovered(20000);
    well();
}

static void scenario_28_management_away_alone_is_told_and_nothing_else(void)
{
    struct sim_host *host;
    uint64_t epoch;

    managed_stage(3, 4);
    host = host_of("vm0");
    epoch = epoch_of("vm0");
    W->net.manage_cut[host->index] = 1;
    sim_run_ms(25000);
    runs_on(host, epoch);
    EXPECT(look_at(host).state == MST_NODE_UP && strstr(look_at(host).text, "management address"), "it is %u: %s",
           look_at(host).state, look_at(host).text);
    W->net.manage_cut[host->index] = 0;
    sim_run_ms(15000);
    EXPECT(!look_at(host).text[0], "it answers again, and its status says: %s", look_at(host).text);
    well();
}

const struct scenario scenarios_manage[] = {
    ROW(scenario_28_rdma_away_while_management_answers_takes_nothing_over),
    ROW(scenario_28_rdma_that_is_back_finds_all_as_it_was),
    ROW(scenario_28_a_link_to_a_coordinator_without_power_is_found_out_while_leases_come),
    ROW(scenario_28_a_strict_lease_is_renewed_over_management),
    ROW(scenario_28_another_keeper_that_answers_is_no_life_of_the_old_one),
    ROW(scenario_28_a_keeper_that_hangs_answers_nobody),
    ROW(scenario_28_confirming_the_death_of_a_degraded_node_is_refused),
    ROW(scenario_28_management_away_alone_is_told_and_nothing_else),
};
const size_t scenarios_manage_count = sizeof(scenarios_manage) / sizeof(scenarios_manage[0]);
