#include "node/keeper/images.h"
#include "node/keeper/mirrors.h"
#include "tests/sim/points.h"
#include "tests/sim/stage.h"

#include <string.h>

/* Rows that need a mirror: vm0 is under protect: mirror, vm1 under local. */

static struct sim_host *source, *mirror;
static uint64_t resumes_before, boots_before;

static struct mst_vm_look look_at(const char *vm)
{
    struct sim_coord *coord = sim_coord_leader();
    struct mst_vm_look look = {0};

    if (coord)
        (void)mst_core_vm_by_name(sim_coord_core(coord), vm, &look);
    return look;
}

static bool mirrored(void)
{
    struct mst_vm_look look = look_at("vm0");

    return look.row && look.row->phase == MST_VM_RUNNING && !look.exposed && oracle_mirror_of("vm0") >= 0;
}

static bool mirrored_elsewhere(void)
{
    return mirrored() && &W->hosts[oracle_mirror_of("vm0")] != mirror;
}

static void note(void)
{
    int at = oracle_mirror_of("vm0");

    source = host_of("vm0");
    mirror = at >= 0 ? &W->hosts[at] : NULL;
    epoch_before = epoch_of("vm0");
    resumes_before = oracle_counts.resumes;
    boots_before = oracle_counts.boots;
}

static void mirrored_stage_of(unsigned nodes, uint32_t memory_mib, unsigned on_node_fault, uint32_t interval_ms)
{
    struct sim_conf conf = {.nodes = nodes, .coords = 1, .vms = 2, .mirrors = 1, .watch_interval_ms = 100};
    struct mst_definition def = {.memory_mib = memory_mib, .vcpus = 1, .priority = 10, .protect = MST_PROTECT_MIRROR};

    stage_make(&conf);
    memcpy(def.name, "vm0", 4);
    def.on_node_fault = (uint8_t)on_node_fault;
    sim_vm_define(0, &def, interval_ms);
    stage_start();
    EXPECT(until(mirrored, 20000), "vm0 gets no mirror: %s", look_at("vm0").protection);
    sim_run_ms(1000);
    note();
    source = source ? source : &W->hosts[0]; /* it has failed by now, and its script goes on to its end */
    mirror = mirror ? mirror : &W->hosts[1];
}

static void mirrored_stage(unsigned nodes)
{
    mirrored_stage_of(nodes, 2, 0, 300);
}

/* As the source's keeper has it. */
static const struct mst_mirror *mirror_of_vm0(void)
{
    for (const struct mst_mirror *m = source->k ? source->k->mirrors->first : NULL; m; m = m->next) {
        if (m->vm && strcmp(m->vm->name, "vm0") == 0)
            return m;
    }
    return NULL;
}

static const struct mst_held_image *image_of_vm0(void)
{
    for (unsigned i = 0; mirror->k && i < MST_VMS_PER_NODE; i++) {
        if (mirror->k->vms[i].used && mirror->k->vms[i].image && strcmp(mirror->k->vms[i].name, "vm0") == 0)
            return mirror->k->vms[i].image;
    }
    return NULL;
}

static bool is_writing(void)
{
    return mirror_of_vm0() && mirror_of_vm0()->writing > 0;
}

static bool until_soon(bool (*cond)(void), uint32_t ms)
{
    for (uint64_t end_ns = K.now_ns + ms * SIM_MS; !cond() && K.now_ns < end_ns && !K.over;) {
        sim_run_until(K.now_ns + 20 * SIM_US);
        sim_scene_leave();
    }
    return cond();
}

static void resumed_from_a_save(void)
{
    EXPECT(oracle_counts.boots == boots_before && oracle_counts.resumes == resumes_before + 1,
           "vm0 was not resumed once: %u resumes, %u boots", (unsigned)(oracle_counts.resumes - resumes_before),
           (unsigned)(oracle_counts.boots - boots_before));
}

/* What the newest recovery of vm0 says of its start. */
static bool loss_is_said(const char *how)
{
    struct sim_coord *coord = sim_coord_leader();
    struct mst_recovery_look recovery;
    const struct mst_rvm_row *row;

    for (unsigned i = 0; coord && mst_core_recovery(sim_coord_core(coord), i, &recovery); i++) {
        for (unsigned k = 0; (row = mst_core_recovery_vm(sim_coord_core(coord), recovery.key, k)) != NULL; k++) {
            if (strcmp(row->vm, "vm0") == 0 && row->outcome == MST_OUT_RESTARTED)
                return strstr(row->text, how) != NULL;
        }
    }
    return false;
}

static void off(struct sim_host *host)
{
    host->reboot_ns = 0;
    sim_power_off(host, "the script says so");
}

static void scenario_43_mirror_dies_during_a_write_and_another_one_takes_its_place(void)
{
    mirrored_stage(4);
    EXPECT(until_soon(is_writing, 3000), "nothing is written into the mirror's log");
    off(mirror);
    EXPECT(until(mirrored_elsewhere, 40000), "vm0 is not protected again: %s", look_at("vm0").protection);
    EXPECT(epoch_of("vm0") == epoch_before, "the loss of its mirror cost vm0 its grant");
    note();
    off(source);
    until_recovered(30000);
    resumed_from_a_save();
    well();
}

static void scenario_43_mirror_dies_before_it_acknowledges(void)
{
    mirrored_stage(4);
    sim_die_at(WHO_KEEPER, "image.acked");
    sim_run_ms(4000);
    EXPECT(sim_points.died, "no keeper passed image.acked");
    EXPECT(until(mirrored, 40000), "vm0 is not protected again: %s", look_at("vm0").protection);
    EXPECT(epoch_of("vm0") == epoch_before, "the loss of its mirror cost vm0 its grant");
    well();
}

static void scenario_44_source_dies_in_mid_checkpoint_and_what_was_acknowledged_is_resumed(void)
{
    mirrored_stage(4);
    EXPECT(until_soon(is_writing, 3000), "nothing is written into the mirror's log");
    off(source);
    until_recovered(30000);
    resumed_from_a_save();
    EXPECT(until(mirrored, 40000), "vm0 is not protected again: %s", look_at("vm0").protection);
    well();
}

static void rot(void)
{
    struct sim_fault fault = {.kind = FAULT_IMAGE_ROTS, .x = 7 * (3 * MST_PAGE_BYTES + 100)};

    sim_fault_apply(&fault);
}

static void scenario_47_bit_flips_in_a_mirror_at_rest_it_is_not_used_and_the_loss_is_said(void)
{
    mirrored_stage(4);
    rot();
    off(source);
    until_recovered(40000);
    EXPECT(oracle_counts.resumes == resumes_before && oracle_counts.boots == boots_before + 1,
           "a damaged image was resumed from");
    EXPECT(loss_is_said("is lost too"), "the loss is not said");
    well();
}

static void scenario_47_bit_flips_in_a_mirror_the_other_copy_is_used(void)
{
    mirrored_stage(4);
    rot();
    sim_task_kill(task_of("vm0"));
    until_recovered(20000);
    resumed_from_a_save();
    well();
}

static bool exposed(void)
{
    return look_at("vm0").exposed;
}

static void scenario_47_bit_flips_in_a_mirror_at_rest_are_found_and_it_is_made_anew(void)
{
    mirrored_stage(4);
    rot();
    EXPECT(until(exposed, 60000), "nobody has found what rots in the image");
    EXPECT(until(mirrored, 40000), "vm0 is not protected again: %s", look_at("vm0").protection);
    EXPECT(epoch_of("vm0") == epoch_before, "the loss of its mirror cost vm0 its grant");
    note();
    off(source);
    until_recovered(30000);
    resumed_from_a_save();
    well();
}

static bool clean(void)
{
    for (const struct sim_file *file = source->files; file; file = file->next) {
        if (file->named && strstr(file->path, "/vm0.e1."))
            return false;
    }
    return true;
}

static void scenario_88_source_without_power_goes_on_from_its_mirror_and_never_at_its_return(void)
{
    struct sim_host *old;

    mirrored_stage(4);
    off(source);
    until_recovered(30000);
    resumed_from_a_save();
    EXPECT(oracle_counts.images == 1, "%u images were verified for one takeover", (unsigned)oracle_counts.images);
    EXPECT(until(mirrored, 40000), "vm0 is not protected again: %s", look_at("vm0").protection);
    old = source;
    note();
    sim_power_on(old);
    sim_run_ms(20000);
    EXPECT(epoch_of("vm0") == epoch_before && host_of("vm0") == source && task_of("vm0"),
           "the return of its old node cost vm0 its grant");
    EXPECT(!sim_task_of_vm(old, "vm0", 0), "its old node runs vm0");
    well();
}

static void scenario_88_source_whose_keeper_alone_dies_clears_what_it_has_when_it_is_outlived(void)
{
    mirrored_stage(4);
    cut_host(source->index, true, true, true);
    until_recovered(60000);
    EXPECT(until(mirrored, 60000), "vm0 is not protected again: %s", look_at("vm0").protection);
    cut_host(source->index, true, true, false);
    sim_power_on(source);
    EXPECT(until(clean, 60000), "what it had of vm0 epoch 1 is still there");
    well();
}

/* --- the QEMU that waits beside an image --- */

static bool runs_anew(void)
{
    return phase_of("vm0") == MST_VM_RUNNING && epoch_of("vm0") > epoch_before && task_of("vm0");
}

static struct sim_task *waiting(void)
{
    for (struct sim_task *task = mirror->tasks; task; task = task->next) {
        if (task->alive && task->waits && strcmp(task->vm, "vm0") == 0)
            return task;
    }
    return NULL;
}

static bool one_waits(void)
{
    return waiting() != NULL;
}

static uint64_t standbys_before;

static void waiting_stage(unsigned nodes, unsigned on_node_fault)
{
    mirrored_stage_of(nodes, 2, on_node_fault, 300);
    EXPECT(until(one_waits, 40000), "no QEMU waits beside the image of vm0");
    standbys_before = oracle_counts.standbys;
}

static void scenario_88_a_takeover_uses_the_qemu_that_waits(void)
{
    pid_t pid;

    waiting_stage(3, 0);
    pid = waiting() ? waiting()->pid : 0;
    off(source);
    until_recovered(30000);
    resumed_from_a_save();
    EXPECT(oracle_counts.standbys == standbys_before + 1 && task_of("vm0") && task_of("vm0")->pid == pid,
           "the QEMU that waited was not used");
    EXPECT(until(mirrored, 40000), "vm0 is not protected again: %s", look_at("vm0").protection);
    well();
}

static void scenario_88_a_qemu_that_waits_and_dies_costs_no_takeover(void)
{
    waiting_stage(3, 0);
    sim_task_kill(waiting());
    sim_run_ms(5);
    off(source);
    until_recovered(30000);
    resumed_from_a_save();
    well();
}

/* It would make a file of that name for itself. */
static void scenario_88_a_qemu_that_has_not_opened_its_memory_is_not_used(void)
{
    mirrored_stage_of(3, 2, 0, 300);
    for (unsigned i = 0; i < W->conf.nodes; i++)
        W->hosts[i].ram_opens_ms = 60000;
    if (waiting())
        sim_task_kill(waiting()); /* it has it open by now: the next one has not */
    sim_run_ms(100);
    EXPECT(until(one_waits, 40000), "no QEMU waits beside the image of vm0");
    standbys_before = oracle_counts.standbys;
    off(source);
    until_recovered(30000);
    resumed_from_a_save();
    EXPECT(oracle_counts.standbys == standbys_before, "it got the QEMU that waits");
    well();
}

/* Its memory is no save's: the QEMU that waits is ended before another one is started. */
static void scenario_88_a_vm_that_boots_gets_no_qemu_that_waits(void)
{
    waiting_stage(2, MST_ON_FAULT_RESTART);
    off(source);
    EXPECT(until(runs_anew, 40000), "vm0 has not been restarted");
    EXPECT(oracle_counts.standbys == standbys_before && host_of("vm0") == mirror && !one_waits(), "it got the QEMU that waits");
    well();
}

/* Its image is forgotten, and it boots: both wait for the end of the QEMU that waits. What the one starts is not what the other has ended. */
static void scenario_88_what_starts_when_two_kills_end_is_not_taken_for_gone(void)
{
    waiting_stage(2, MST_ON_FAULT_RESTART);
    waiting()->unkillable_ns = K.now_ns + 9 * SIM_S; /* longer than its source is taken for well */
    off(source);
    EXPECT(until(runs_anew, 60000), "vm0 has not been restarted");
    EXPECT(mirror->k && mst_guard_process(mirror->k->guard, "vm0") == epoch_of("vm0"),
           "its keeper does not know that it has a process");
    well();
}

static void scenario_88_a_vm_that_is_stopped_leaves_no_qemu_that_waits(void)
{
    waiting_stage(3, 0);
    (void)sim_operator(MST_REQ_STOP, "vm0", NULL, NULL);
    sim_run_ms(20000);
    EXPECT(!one_waits() && phase_of("vm0") == MST_VM_STOPPED, "vm0 was stopped, and a QEMU waits for it");
}

static void scenario_89_mirror_without_power_is_replaced_and_its_return_changes_nothing(void)
{
    struct sim_host *old;

    mirrored_stage(4);
    off(mirror);
    EXPECT(until(mirrored_elsewhere, 40000), "vm0 is not protected again: %s", look_at("vm0").protection);
    old = mirror;
    sim_power_on(old);
    sim_run_ms(10000);
    EXPECT(epoch_of("vm0") == epoch_before && mirrored(), "the return of a mirror cost vm0 something");
    EXPECT(oracle_counts.resumes == resumes_before && oracle_counts.boots == boots_before, "vm0 was started again");
    well();
}

static bool is_held(void)
{
    return phase_of("vm0") == MST_VM_HELD;
}

/* A mirror runs no VM, so nothing but an operator says that its memory is lost; until then it may come back. */
static void scenario_90_both_lost_it_is_restarted_and_the_loss_is_said(void)
{
    mirrored_stage(5);
    off(source);
    off(mirror);
    EXPECT(until(is_held, 60000), "vm0 is not held: phase %u", phase_of("vm0"));
    EXPECT(strstr(look_at("vm0").text, "confirm-dead") && strstr(look_at("vm0").text, mirror->name), "nobody says what to do: %s",
           look_at("vm0").text);
    (void)sim_operator(MST_REQ_CONFIRM_DEAD, mirror->name, NULL, NULL);
    until_recovered(60000);
    EXPECT(oracle_counts.resumes == resumes_before && oracle_counts.boots > boots_before, "what is lost was resumed");
    EXPECT(loss_is_said("is lost too") || loss_is_said("it was exposed"), "the loss is not said");
    well();
}

static bool looks_in_vain(void)
{
    const struct mst_held_image *held = image_of_vm0();

    return held && held->job == IMAGE_TAKE && held->job_taken == 0 && held->job_err == 0 && held->written > held->ack.consumed;
}

/* The time in which it stood still is not the source's. */
static void scenario_91_mirror_that_stood_still_takes_what_came_meanwhile(void)
{
    mirrored_stage(3);
    for (unsigned i = 0; i < 12 && !K.over; i++) {
        if (!until_soon(looks_in_vain, 2000))
            continue;
        sim_proc_stop(&mirror->keeper);
        sim_run_ms(3200);
        sim_proc_cont(&mirror->keeper);
        sim_run_ms(2000);
    }
    EXPECT(until(mirrored, 20000), "vm0 is not protected any more: %s", look_at("vm0").protection);
    well();
}

/* An image that was left, and could not be forgotten as its node was away. */
static void scenario_92_mirror_that_returns_with_an_old_image_is_not_resumed_from(void)
{
    struct sim_host *old;

    mirrored_stage(5);
    cut_host(mirror->index, true, true, true);
    sim_keeper_kill(mirror, 500);
    EXPECT(until(mirrored_elsewhere, 60000), "vm0 is not protected again: %s", look_at("vm0").protection);
    old = mirror;
    sim_run_ms(3000);
    note();
    cut_host(old->index, true, true, false);
    off(source);
    until_recovered(40000);
    resumed_from_a_save();
    well();
}

static void scenario_93_source_cut_off_from_all_is_fenced_and_its_mirror_goes_on(void)
{
    mirrored_stage(4);
    cut_host(source->index, true, true, true);
    until_recovered(60000);
    EXPECT(oracle_counts.resumes > resumes_before, "it was not resumed");
    well();
}

static void scenario_94_source_and_mirror_that_do_not_see_each_other_cost_no_vm(void)
{
    mirrored_stage(4);
    W->net.blocked[source->index][mirror->index] = W->net.blocked[mirror->index][source->index] = 1;
    EXPECT(until(mirrored_elsewhere, 60000), "vm0 is not protected again: %s", look_at("vm0").protection);
    EXPECT(epoch_of("vm0") == epoch_before && host_of("vm0") == source, "vm0 was moved");
    well();
}

/* It waits for room, with its save on a node that loses its power meanwhile; back: and comes back without it, or its link does not notice. */
static void held_and_lost(bool back)
{
    mirrored_stage(4);
    for (unsigned i = 0; i < W->conf.nodes; i++) {
        if (&W->hosts[i] != source)
            (void)sim_operator(MST_REQ_DRAIN, W->hosts[i].name, NULL, NULL);
    }
    sim_run_ms(3000);
    EXPECT(host_of("vm0") == source, "vm0 was moved");
    source->conf.memory_mib = 7; /* when its keeper comes back there is no room either */
    sim_keeper_kill(source, 500);
    EXPECT(until(is_held, 60000), "vm0 is not held: phase %u", phase_of("vm0"));
    EXPECT(oracle_counts.images == 0, "a mirror was asked although the save of its source is there");
    off(source);
    sim_run_ms(1000);
    if (back)
        sim_power_on(source);
    sim_run_ms(8000);
    for (unsigned i = 0; i < W->conf.nodes; i++)
        (void)sim_operator(MST_REQ_UNDRAIN, W->hosts[i].name, NULL, NULL);
    until_recovered(60000);
    EXPECT(oracle_counts.images == 1 && oracle_counts.resumes > resumes_before, "it was not resumed from its mirror");
    well();
}

static void scenario_95_a_held_vm_whose_save_is_lost_goes_on_from_its_mirror(void)
{
    held_and_lost(true);
}

static void scenario_95_a_held_vm_whose_save_cannot_be_read_goes_on_from_its_mirror(void)
{
    held_and_lost(false);
}

static void scenario_96_a_drained_source_takes_its_protection_along(void)
{
    mirrored_stage(4);
    (void)sim_operator(MST_REQ_DRAIN, source->name, NULL, NULL);
    until_recovered(30000);
    resumed_from_a_save();
    EXPECT(until(mirrored, 40000), "vm0 is not protected again: %s", look_at("vm0").protection);
    well();
}

/* Row 32, as far as a simulated link is thin: each way takes up to 150 ms, and a checkpoint goes around the ring. */
static void scenario_97_a_slow_mirror_slows_checkpoints_down_and_gets_them_whole(void)
{
    uint64_t acks;

    mirrored_stage_of(4, 3, 0, 100);
    W->net.slow_us[mirror->index] = 150000;
    acks = oracle_counts.acks;
    sim_run_ms(15000);
    EXPECT(oracle_counts.acks > acks + 5, "%u checkpoints in 15 s", (unsigned)(oracle_counts.acks - acks));
    EXPECT(mirrored() && epoch_of("vm0") == epoch_before, "vm0 is not protected any more: %s", look_at("vm0").protection);
    W->net.slow_us[mirror->index] = 0;
    off(source);
    until_recovered(40000);
    resumed_from_a_save();
    well();
}

/* Its RAM does not come through within the time that a mirror may lag, and another node is as near. */
static void scenario_97_a_mirror_that_lags_for_long_is_replaced_while_the_vm_runs(void)
{
    mirrored_stage_of(4, 3, 0, 100);
    W->net.slow_us[mirror->index] = 3500000;
    EXPECT(until(mirrored_elsewhere, 120000), "the mirror that lags is kept: %s", look_at("vm0").protection);
    EXPECT(epoch_of("vm0") == epoch_before, "vm0 was disturbed");
    W->net.slow_us[mirror->index] = 0;
    off(source);
    until_recovered(40000);
    resumed_from_a_save();
    well();
}

/* n1 and n3 are in one rack, n2 and n4 in the other. */
static void scenario_100_a_mirror_is_kept_in_another_rack(void)
{
    struct sim_conf conf = {.nodes = 4, .coords = 1, .vms = 1, .mirrors = 1, .watch_interval_ms = 100};
    struct mst_definition def = {.name = "vm0", .memory_mib = 2, .vcpus = 1, .priority = 10, .protect = MST_PROTECT_MIRROR};

    stage_make(&conf);
    for (unsigned i = 0; i < conf.nodes; i++)
        W->hosts[i].rack = 1 + i % 2;
    def.mirror_apart = MST_MIRROR_APART_RACK;
    sim_vm_define(0, &def, 300);
    stage_start();
    EXPECT(until(mirrored, 20000), "vm0 gets no mirror: %s", look_at("vm0").protection);
    note();
    EXPECT(mirror->rack != source->rack, "the mirror is in the VM's rack");
    off(mirror);
    EXPECT(until(mirrored_elsewhere, 40000), "no other mirror: %s", look_at("vm0").protection);
    note();
    EXPECT(mirror->rack != source->rack, "the second mirror is in the VM's rack");
    off(mirror); /* nobody else is left in that rack */
    sim_run_ms(20000);
    EXPECT(!mirrored(), "it is kept in the VM's own rack");
    well();
}

static void scenario_98_an_image_of_an_earlier_life_is_not_resumed_from(void)
{
    mirrored_stage_of(4, 2, MST_ON_FAULT_RESTART, 2000);
    off(source);
    EXPECT(until(runs_anew, 40000), "vm0 has not been restarted");
    epoch_before = epoch_of("vm0");
    sim_task_kill(task_of("vm0")); /* before it has a checkpoint of its own */
    until_recovered(20000);
    EXPECT(oracle_counts.resumes == resumes_before && oracle_counts.boots == boots_before + 2,
           "vm0 was resumed from an earlier life");
    well();
}

static bool is_seeding(void)
{
    const struct mst_mirror *m = mirror_of_vm0();

    return m && m->node_id != mirror->index + 1 && m->begun && !m->committed && m->writing > 0;
}

static void scenario_99_a_source_that_is_fenced_while_it_seeds_writes_no_more(void)
{
    mirrored_stage_of(4, 3, 0, 300);
    for (unsigned i = 0; i < W->conf.nodes; i++)
        W->net.slow_us[i] = &W->hosts[i] == source ? 0 : 150000;
    sim_keeper_kill(mirror, 60000);
    EXPECT(until_soon(is_seeding, 30000), "no other mirror is seeded");
    sim_task_kill(task_of("vm0"));
    until_recovered(30000);
    EXPECT(oracle_counts.resumes > resumes_before, "it was not resumed");
    well();
}

const struct scenario scenarios_mirror[] = {
    ROW(scenario_43_mirror_dies_during_a_write_and_another_one_takes_its_place),
    ROW(scenario_43_mirror_dies_before_it_acknowledges),
    ROW(scenario_44_source_dies_in_mid_checkpoint_and_what_was_acknowledged_is_resumed),
    ROW(scenario_47_bit_flips_in_a_mirror_at_rest_it_is_not_used_and_the_loss_is_said),
    ROW(scenario_47_bit_flips_in_a_mirror_the_other_copy_is_used),
    ROW(scenario_47_bit_flips_in_a_mirror_at_rest_are_found_and_it_is_made_anew),
    ROW(scenario_88_source_without_power_goes_on_from_its_mirror_and_never_at_its_return),
    ROW(scenario_88_source_whose_keeper_alone_dies_clears_what_it_has_when_it_is_outlived),
    ROW(scenario_88_a_takeover_uses_the_qemu_that_waits),
    ROW(scenario_88_a_qemu_that_waits_and_dies_costs_no_takeover),
    ROW(scenario_88_a_qemu_that_has_not_opened_its_memory_is_not_used),
    ROW(scenario_88_a_vm_that_boots_gets_no_qemu_that_waits),
    ROW(scenario_88_what_starts_when_two_kills_end_is_not_taken_for_gone),
    ROW(scenario_88_a_vm_that_is_stopped_leaves_no_qemu_that_waits),
    ROW(scenario_89_mirror_without_power_is_replaced_and_its_return_changes_nothing),
    ROW(scenario_90_both_lost_it_is_restarted_and_the_loss_is_said),
    ROW(scenario_91_mirror_that_stood_still_takes_what_came_meanwhile),
    ROW(scenario_92_mirror_that_returns_with_an_old_image_is_not_resumed_from),
    ROW(scenario_93_source_cut_off_from_all_is_fenced_and_its_mirror_goes_on),
    ROW(scenario_94_source_and_mirror_that_do_not_see_each_other_cost_no_vm),
    ROW(scenario_95_a_held_vm_whose_save_is_lost_goes_on_from_its_mirror),
    ROW(scenario_95_a_held_vm_whose_save_cannot_be_read_goes_on_from_its_mirror),
    ROW(scenario_96_a_drained_source_takes_its_protection_along),
    ROW(scenario_97_a_slow_mirror_slows_checkpoints_down_and_gets_them_whole),
    ROW(scenario_97_a_mirror_that_lags_for_long_is_replaced_while_the_vm_runs),
    ROW(scenario_100_a_mirror_is_kept_in_another_rack),
    ROW(scenario_98_an_image_of_an_earlier_life_is_not_resumed_from),
    ROW(scenario_99_a_source_that_is_fenced_while_it_seeds_writes_no_more),
};
const size_t scenarios_mirror_count = sizeof(scenarios_mirror) / sizeof(scenarios_mirror[0]);
