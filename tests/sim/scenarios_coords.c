#include "tests/sim/etcd.h"
#include "tests/sim/stage.h"

#include "node/keeper/keeper.h"
#include "node/keeper/lease.h"
#include "shm/layout.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Scenarios with three coordinators over etcd (rows 16, 18, 19), and of leases that count as proof (I9). */

static void stage_three(void)
{
    struct sim_conf conf = {.nodes = 3, .coords = 3, .vms = 3, .watch_interval_ms = 100};

    stage_make(&conf);
    stage_start();
    sim_run_ms(1500);
    epoch_before = epoch_of("vm0");
}

static struct sim_coord *leader_before;
static uint64_t term_before;

static bool another_leads(void)
{
    const struct sim_coord *leader = sim_coord_leader();

    return leader && leader->term > term_before;
}

/* Remembers who leads now. */
static struct sim_coord *the_leader(void)
{
    leader_before = sim_coord_leader();
    EXPECT(leader_before != NULL, "nobody leads");
    term_before = leader_before ? leader_before->term : 0;
    return leader_before ? leader_before : W->coords[0];
}

static void coord_off(struct sim_coord *coord)
{
    sim_coord_kill(coord, 10000000);
    sim_power_off(coord->host, "the script");
}

static void coord_on(struct sim_coord *coord)
{
    sim_power_on(coord->host);
    sim_coord_kill(coord, 300);
}

/* A leader ends at one of its first 120 points in the recovery of a VM, or of a node; who comes after it finishes, once. */
static void scenario_16_leader_killed_at_any_point_its_successor_finishes_once(void)
{
    stage_three();
    for (unsigned i = 0; i < 6 && !K.over; i++) {
        (void)the_leader();
        epoch_before = epoch_of("vm0");
        sim_points.kill_at[WHO_COORD] = sim_points.count[WHO_COORD] + 1 + sim_dice(120);
        if (i % 2)
            sim_keeper_kill(host_of("vm0"), 600);
        else
            sim_task_kill(task_of("vm0"));
        until_recovered(40000);
        EXPECT(epoch_of("vm0") <= epoch_before + 2, "vm0 went from epoch %u to %u for one fault", (unsigned)epoch_before,
               (unsigned)epoch_of("vm0"));
        sim_points.kill_at[WHO_COORD] = 0;
        sim_run_ms(4000);
    }
    EXPECT(oracle_counts.power_fences == 0, "a change of leaders cost a node its power");
    well();
}

static void scenario_16_leader_stopped_beyond_its_lease_wakes_and_is_harmless(void)
{
    struct sim_coord *old;

    stage_three();
    old = the_leader();
    sim_task_kill(task_of("vm0")); /* it hears of it, and has orders to send when it wakes */
    sim_run_ms(sim_dice(25));
    sim_proc_stop(&old->host->coord);
    EXPECT(until(another_leads, 15000), "nobody leads after the leader was stopped");
    until_recovered(20000);
    sim_proc_cont(&old->host->coord);
    sim_run_ms(100);
    EXPECT(!sim_coord_core(old) || old->term > term_before, "a leader whose lease is over goes on leading");
    EXPECT(oracle_counts.power_fences == 0, "a change of leaders cost a node its power");
    well();
}

static void scenario_18_one_of_three_coordinators_lost_service_goes_on(void)
{
    stage_three();
    coord_off(the_leader());
    EXPECT(until(another_leads, 15000), "nobody leads after the leader was lost");
    sim_run_ms(2000);
    sim_task_kill(task_of("vm0"));
    until_recovered(15000);
    coord_on(leader_before);
    sim_run_ms(3000);
    for (unsigned i = 0; i < W->conf.coords; i++) { /* and a standby */
        if (W->coords[i] != sim_coord_leader() && W->coords[i] != leader_before) {
            coord_off(W->coords[i]);
            break;
        }
    }
    epoch_before = epoch_of("vm0");
    sim_task_kill(task_of("vm0"));
    until_recovered(5000);
    EXPECT(oracle_counts.power_fences == 0, "a coordinator's death cost a node its power");
    well();
}

static void scenario_19_majority_lost_nothing_is_decided_and_it_goes_on_at_its_return(void)
{
    uint64_t commits, orders;
    struct sim_task *other;

    stage_three();
    (void)the_leader();
    for (unsigned i = 0; i < W->conf.coords; i++) {
        if (W->coords[i] != leader_before)
            coord_off(W->coords[i]);
    }
    sim_run_ms(200);
    commits = oracle_counts.commits;
    sim_task_kill(task_of("vm0"));
    other = task_of("vm1");
    sim_run_ms(6000);
    orders = oracle_counts.orders;
    sim_run_ms(40000);
    EXPECT(oracle_counts.commits == commits, "%u transactions without a majority", (unsigned)(oracle_counts.commits - commits));
    EXPECT(oracle_counts.orders == orders && oracle_counts.power_fences == 0, "orders or fences without a majority");
    EXPECT(!sim_coord_leader(), "somebody leads without a majority");
    EXPECT(other && other->alive && other == task_of("vm1"), "a VM that ran does not run on");
    for (unsigned i = 0; i < W->conf.coords; i++) {
        if (!W->coords[i]->host->powered)
            coord_on(W->coords[i]);
    }
    until_recovered(30000);
    well();
}

static void scenario_70_leader_cut_off_from_the_store_is_replaced(void)
{
    struct sim_coord *old;

    stage_three();
    old = the_leader();
    for (unsigned i = 0; i < W->conf.coords; i++) {
        unsigned a = old->host->index, b = W->coords[i]->host->index;

        if (a != b)
            W->net.blocked[a][b] = W->net.blocked[b][a] = 1;
    }
    sim_task_kill(task_of("vm0"));
    EXPECT(until(another_leads, 15000), "nobody else leads");
    until_recovered(15000);
    EXPECT(oracle_counts.power_fences == 0, "a change of leaders cost a node its power");
    well();
}

static void scenario_71_leader_cut_off_from_the_nodes_fences_nobody(void)
{
    struct sim_coord *old;

    stage_three();
    old = the_leader();
    for (unsigned i = 0; i < W->conf.nodes; i++)
        W->net.blocked[i][old->host->index] = W->net.blocked[old->host->index][i] = 1;
    sim_run_ms(40000);
    EXPECT(oracle_counts.power_fences == 0, "nodes that only the leader does not see were fenced");
    for (unsigned i = 0; i < W->conf.vms; i++)
        EXPECT(task_of(W->vms[i].name), "%s does not run on", W->vms[i].name);
    well();
}

static void scenario_72_lost_answers_of_the_store_are_settled(void)
{
    stage_three();
    for (unsigned i = 0; i < 5 && !K.over; i++) {
        epoch_before = epoch_of("vm0");
        sim_etcd_faults.lost = 700;
        sim_etcd_faults.late = 100;
        sim_task_kill(task_of("vm0"));
        sim_run_ms(2500);
        sim_etcd_faults.lost = sim_etcd_faults.late = 0;
        until_recovered(30000);
        EXPECT(epoch_of("vm0") <= epoch_before + 2, "vm0 went from epoch %u to %u for one fault", (unsigned)epoch_before,
               (unsigned)epoch_of("vm0"));
        sim_run_ms(2000);
    }
    EXPECT(oracle_counts.power_fences == 0, "lost answers cost a node its power");
    well();
}

/* The order to start is long on its way; meanwhile its leader is replaced, and the node has heard of that. */
static void scenario_73_an_order_of_an_older_term_that_comes_late_is_refused(void)
{
    struct sim_coord *old;
    uint64_t orders;

    stage_three();
    old = the_leader();
    orders = oracle_counts.orders;
    W->net.slow_us[old->host->index] = 16000000;
    sim_task_kill(task_of("vm0"));
    for (unsigned i = 0; i < 200 && oracle_counts.orders == orders; i++)
        sim_run_ms(100);
    sim_proc_stop(&old->host->coord);
    EXPECT(until(another_leads, 15000), "nobody else leads");
    sim_run_ms(20000);
    sim_proc_cont(&old->host->coord);
    well();
}

static void scenario_77_a_leader_is_asked_for_before_it_cuts_power(void)
{
    stage_three();
    sim_power_off(host_of("vm0"), "the script");
    until_recovered(30000);
    EXPECT(oracle_counts.power_fences > 0, "it was taken over without a fence");
    well();
}

/* Shorter than its lease: it leads on, once it has asked. */
static void scenario_78_a_leader_that_stood_still_asks_first(void)
{
    struct sim_coord *leader;

    stage_three();
    leader = the_leader();
    sim_proc_stop(&leader->host->coord);
    sim_task_kill(task_of("vm0")); /* it finds the report when it wakes */
    sim_run_ms(2000);
    sim_proc_cont(&leader->host->coord);
    until_recovered(15000);
    well();
}

static struct sim_coord *elected(void)
{
    for (unsigned i = 0; i < W->conf.coords; i++) {
        if (W->coords[i]->instance == sim_etcd_leader() && W->coords[i]->host->coord.alive)
            return W->coords[i];
    }
    return NULL;
}

/* It is elected, and has not read yet what was decided before: shorter than its lease, and longer. */
static void scenario_79_a_leader_that_stands_still_while_it_reads_the_store(void)
{
    static const uint32_t lengths_ms[] = {3500, 9000};

    stage_three();
    for (unsigned i = 0; i < sizeof(lengths_ms) / sizeof(lengths_ms[0]); i++) {
        struct sim_coord *old = the_leader(), *coord = old;

        epoch_before = epoch_of("vm0");
        sim_coord_kill(old, 20000);
        for (unsigned k = 0; k < 20000 && (!coord || coord == old); k++) {
            sim_run_ms(1);
            coord = elected();
        }
        EXPECT(coord && !sim_coord_core(coord), "nobody is elected, or it has read everything within 1 ms");
        sim_proc_stop(&coord->host->coord);
        sim_task_kill(task_of("vm0"));
        sim_run_ms(lengths_ms[i]);
        sim_proc_cont(&coord->host->coord);
        until_recovered(20000);
        sim_run_ms(20000);
    }
    EXPECT(oracle_counts.power_fences == 0, "a change of leaders cost a node its power");
    well();
}

static bool linked(const struct sim_host *node)
{
    struct sim_coord *leader = sim_coord_leader();
    struct mst_node_look look = {0};
    struct mst_time now;

    if (!leader)
        return false;
    now = sim_coord_time(leader);
    mst_core_node(sim_coord_core(leader), &now, node->index, &look);
    return look.link != 0;
}

/* That the node is back and its VMs run on is durable, and the answer is lost; then its keeper is another one. */
static void scenario_87_what_is_on_its_way_to_the_store_is_not_acted_against(void)
{
    struct sim_host *host;

    stage_three();
    host = host_of("vm0");
    host->power = POWER_FAILS;
    cut_host(host->index, true, true, true);
    for (unsigned i = 0; i < 2000 && oracle_counts.power_fences == 0; i++)
        sim_run_ms(10);
    EXPECT(oracle_counts.power_fences > 0, "nobody fenced it");
    cut_host(host->index, true, true, false);
    for (unsigned i = 0; i < 500 && !linked(host); i++)
        sim_run_ms(10);
    sim_etcd_faults.lost = 1000;
    sim_run_ms(1000);
    sim_keeper_kill(host, 200);
    sim_run_ms(2000);
    sim_etcd_faults.lost = 0;
    until_all_run(30000);
    well();
}

/* Nobody tells the node, and it has no lease yet that would run out. */
static void scenario_88_a_node_whose_coordinator_vanished_before_it_gave_a_lease_calls_again(void)
{
    struct sim_host *node;

    stage(2, 1);
    node = &W->hosts[!host_of("vm0")->index];
    for (uint32_t answered = 0; answered < 2; answered++) { /* its Hello: the Welcome is on its way, or there */
        sim_keeper_kill(node, 300);
        sim_run_ms(100);
        EXPECT(!linked(node), "the coordinator has not heard of a keeper's death");
        for (unsigned i = 0; i < 300000 && !linked(node); i++)
            sim_run_until(K.now_ns + SIM_MS / 100);
        EXPECT(linked(node), "its next keeper has not called");
        sim_run_ms(answered);
        coord_off(W->coords[0]);
        sim_run_ms(2000);
        coord_on(W->coords[0]);
        sim_run_ms(15000);
        EXPECT(linked(node), "it has not noticed that its coordinator was away");
    }
    well();
}

/* --- leases --- */

static void stage_strict(uint32_t lease_ms, uint32_t watchdog_s, bool fences)
{
    struct sim_conf conf = {.nodes = 3, .coords = 1, .vms = 3, .watch_interval_ms = 100, .lease_ms = lease_ms};

    stage_make(&conf);
    for (unsigned i = 0; i < 3; i++) {
        sim_watchdog(&W->hosts[i], watchdog_s);
        W->hosts[i].has_fence = fences;
    }
    stage_start();
    sim_run_ms(1000);
    epoch_before = epoch_of("vm0");
}

static void scenario_24_strict_lease_ends_in_time_by_a_slow_clock(void)
{
    struct sim_host *host;

    stage_strict(30000, 3, true);
    host = host_of("vm0");
    sim_drift(host, -100000); /* CLOCK_BOOTTIME; the raw one follows nothing */
    host->power = POWER_FAILS;
    cut_host(host->index, true, true, true);
    sim_run_ms(40000);
    EXPECT(!sim_task_of_vm(host, "vm0", 0), "it still runs where its strict lease is over");
    well();
}

static void scenario_24_the_end_of_a_lease_is_no_proof_too_early_by_a_fast_clock(void)
{
    struct sim_host *host;

    stage_strict(10000, 3, false);
    host = host_of("vm0");
    sim_drift(W->coords[0]->host, 100000);
    cut_host(host->index, true, true, true);
    until_recovered(60000);
    EXPECT(oracle_counts.lease_proofs == 1, "%u leases proved something", (unsigned)oracle_counts.lease_proofs);
    EXPECT(host_of("vm0") != host, "vm0 runs where it ran");
    well();
}

static void scenario_25_a_hung_keeper_of_a_strict_lease_is_ended_by_its_watchdog(void)
{
    struct sim_host *host;

    stage_strict(10000, 3, false);
    host = host_of("vm0");
    sim_proc_stop(&host->keeper);
    until_recovered(60000);
    EXPECT(host->boot > 1 || !host->powered, "its watchdog has not reset it");
    well();
}

static void scenario_25_a_qemu_that_does_not_die_is_ended_by_the_watchdog(void)
{
    struct sim_host *host;

    stage_strict(10000, 3, false);
    host = host_of("vm0");
    host->stuck_qemu = true;
    for (struct sim_task *task = host->tasks; task; task = task->next)
        task->unkillable_ns = K.now_ns + 100 * SIM_S;
    cut_host(host->index, true, true, true);
    until_recovered(60000);
    EXPECT(host->boot > 1 || !host->powered, "its watchdog has not reset it");
    well();
}

/* A renewal is written while the keeper stands still: what it is worth is counted from the beat that it names. */
static struct sim_host *to_stop;

static void stop_it(unsigned node)
{
    /* The last of its sixteen: what is written after the pause does not overwrite when it was. */
    if (node == to_stop->index && to_stop->k && to_stop->k->beat % MST_LEASE_MARK_BEATS == MST_LEASE_MARK_BEATS - 1) {
        sim_on_lease = NULL;
        sim_proc_stop(&to_stop->keeper);
    }
}

static void scenario_74_a_renewal_taken_late_is_no_longer_than_one_taken_at_once(void)
{
    stage_strict(5000, 20, true);
    to_stop = host_of("vm0");
    to_stop->power = POWER_FAILS;
    sim_on_lease = stop_it;
    for (unsigned i = 0; i < 240 && !to_stop->keeper.stopped && !K.over; i++)
        sim_run_ms(1000);
    EXPECT(to_stop->keeper.stopped, "no lease was renewed");
    sim_run_ms(2700);
    cut_host(to_stop->index, true, true, true);
    sim_proc_cont(&to_stop->keeper);
    sim_run_ms(9000);
    to_stop->power = POWER_WORKS;
    well();
}

static void scenario_75_an_order_that_waited_through_a_pause_waits_for_a_renewal(void)
{
    struct sim_host *host;

    stage_strict(10000, 20, true);
    host = host_of("vm0");
    (void)sim_operator(MST_REQ_STOP, "vm1", NULL, NULL);
    sim_run_ms(1500);
    sim_proc_stop(&host->keeper);
    (void)sim_operator(MST_REQ_START, "vm1", host->name, NULL);
    sim_run_ms(2800);
    sim_proc_cont(&host->keeper);
    sim_run_ms(3000);
    until_all_run(10000);
    well();
}

/* A node is given up and gets its VMs back: it waits for a lease, and has to get it. */
static void scenario_76_a_node_that_gets_its_vms_back_gets_its_lease_back(void)
{
    struct mst_definition def = {.name = "vm0", .memory_mib = 2, .vcpus = 1, .protect = MST_PROTECT_LOCAL, .allowed_count = 1};
    struct sim_conf conf = {.nodes = 3, .coords = 1, .vms = 3, .watch_interval_ms = 100};
    struct sim_host *host;

    def.allowed[0] = 1;
    stage_make(&conf);
    W->hosts[0].has_fence = false;
    sim_vm_define(0, &def, 300);
    stage_start();
    epoch_before = epoch_of("vm0");
    host = host_of("vm0");
    cut_host(host->index, true, true, true); /* for too short a time for its control link to notice */
    sim_proc_stop(&host->keeper);
    sim_run_ms(2700);
    cut_host(host->index, true, true, false);
    sim_proc_cont(&host->keeper);
    sim_run_ms(8000);
    until_all_run(20000);
    well();
}

const struct scenario scenarios_coords[] = {
    ROW(scenario_16_leader_killed_at_any_point_its_successor_finishes_once),
    ROW(scenario_16_leader_stopped_beyond_its_lease_wakes_and_is_harmless),
    ROW(scenario_18_one_of_three_coordinators_lost_service_goes_on),
    ROW(scenario_19_majority_lost_nothing_is_decided_and_it_goes_on_at_its_return),
    ROW(scenario_70_leader_cut_off_from_the_store_is_replaced),
    ROW(scenario_71_leader_cut_off_from_the_nodes_fences_nobody),
    ROW(scenario_72_lost_answers_of_the_store_are_settled),
    ROW(scenario_73_an_order_of_an_older_term_that_comes_late_is_refused),
    ROW(scenario_77_a_leader_is_asked_for_before_it_cuts_power),
    ROW(scenario_78_a_leader_that_stood_still_asks_first),
    ROW(scenario_79_a_leader_that_stands_still_while_it_reads_the_store),
    ROW(scenario_87_what_is_on_its_way_to_the_store_is_not_acted_against),
    ROW(scenario_88_a_node_whose_coordinator_vanished_before_it_gave_a_lease_calls_again),
    ROW(scenario_24_strict_lease_ends_in_time_by_a_slow_clock),
    ROW(scenario_24_the_end_of_a_lease_is_no_proof_too_early_by_a_fast_clock),
    ROW(scenario_25_a_hung_keeper_of_a_strict_lease_is_ended_by_its_watchdog),
    ROW(scenario_25_a_qemu_that_does_not_die_is_ended_by_the_watchdog),
    ROW(scenario_74_a_renewal_taken_late_is_no_longer_than_one_taken_at_once),
    ROW(scenario_75_an_order_that_waited_through_a_pause_waits_for_a_renewal),
    ROW(scenario_76_a_node_that_gets_its_vms_back_gets_its_lease_back),
};
const size_t scenarios_coords_count = sizeof(scenarios_coords) / sizeof(scenarios_coords[0]);
