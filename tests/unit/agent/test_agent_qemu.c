/* mainstay-node as a program, with a fake keeper (tests/lib/fake_keeper.h) and real QEMUs. */

#include "base/file.h"
#include "conf/conf.h"
#include "node/agent/qmp.h"
#include "tests/guest/witness.h"
#include "tests/lib/fake_keeper.h"

#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zstd.h>

#define LONG_MS 40000u /* the machine may be shared by many */

static uv_loop_t loop;
static struct fake_keeper *keeper;
static Mainstay__VmDefinition web;
static struct guest_console *console;
static Mainstay__VmDisk disk, *disks[] = {&disk};
static char disk_path[200]; /* "": none */

static void setup(void)
{
    uv_loop_init(&loop);
    keeper = fake_keeper_new(&loop);
    mainstay__vm_definition__init(&web);
    web.name = (char *)(uintptr_t) "web01";
    web.memory_mib = 16;
    web.boot_kernel = (char *)(uintptr_t)MST_TEST_WITNESS;
    web.boot_append = (char *)(uintptr_t) "pages=512 interval_ms=50 hot=40";
    web.has_protect = 1;
    web.protect = MAINSTAY__PROTECT__PROTECT_LOCAL;
    web.has_checkpoint_interval_ms = 1;
    web.checkpoint_interval_ms = 100;
    mainstay__vm_disk__init(&disk);
    disk_path[0] = '\0';
    unsetenv("MST_FAULT_KILL");
    unsetenv("MST_FAULT");
}

static void teardown(void)
{
    if (disk_path[0])
        unlink(disk_path);
    fake_keeper_free(keeper);
    uv_run(&loop, UV_RUN_DEFAULT);
    ck_assert_int_eq(uv_loop_close(&loop), 0);
}

static const struct fake_done *await(uint64_t id)
{
    const struct fake_done *done = fake_wait_done(keeper, id, LONG_MS);

    ck_assert_msg(done != NULL, "the order was not answered");
    return done;
}

static struct fake_vm *start(uint64_t epoch, uint64_t source, bool remote, Mainstay__Method method)
{
    const struct fake_done *done = await(fake_order_start(keeper, &web, epoch, source, remote));
    struct fake_vm *vm = fake_vm_find(keeper, web.name, epoch);

    ck_assert_msg(done->error == 0, "%s", done->text);
    ck_assert(done->has_start);
    ck_assert_int_eq(done->start.method, method);
    console = vm->console;
    return vm;
}

static struct fake_vm *boot(void)
{
    struct fake_vm *vm;

    fake_agent_start(keeper, MST_TEST_AGENT);
    vm = start(1, 0, false, MAINSTAY__METHOD__METHOD_BOOTED);
    ck_assert(fake_wait_beats(keeper, console, 3, LONG_MS));
    return vm;
}

static void all_is_well(void)
{
    ck_assert(fake_wait_beats(keeper, console, 15, LONG_MS)); /* 512 pages, 40 a beat: every page was looked at and rewritten */
    ck_assert_msg(console->broken == 0, "%s", console->bad);
    ck_assert_uint_eq(console->gaps, 0);
    ck_assert_uint_eq(console->boots, 1);
}

static void agent_ends_well(void)
{
    int status = fake_agent_part(keeper);

    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the agent ended with status 0x%x", (unsigned)status);
}

static bool dead(void *arg)
{
    return ((struct fake_vm *)arg)->guest.pid == 0;
}

static void kill_qemu(struct fake_vm *vm)
{
    kill(vm->guest.pid, SIGKILL);
    ck_assert(loop_until(&loop, dead, vm, LONG_MS));
}

START_TEST(killed_qemu_is_resumed_in_place_from_its_last_checkpoint)
{
    struct fake_vm *vm = boot();

    ck_assert(fake_wait_seq(keeper, vm, 6, LONG_MS));
    kill_qemu(vm);
    start(2, 1, false, MAINSTAY__METHOD__METHOD_RESUMED_IN_PLACE);
    ck_assert_uint_ge(keeper->done.start.save_seq, 6);
    ck_assert(fake_wait_beats(keeper, console, 1, LONG_MS));
    ck_assert_uint_le(console->first_beat_after_mark, console->beat_at_mark + 1);
    all_is_well();
    ck_assert(fake_wait_seq(keeper, fake_vm_find(keeper, "web01", 2), 3, LONG_MS));
    agent_ends_well();
}
END_TEST

START_TEST(save_by_order_of_an_unprotected_vm_loses_no_beat_when_pulled)
{
    const struct fake_done *done;
    struct fake_vm *vm;
    uint32_t source;
    uint64_t beats;

    web.protect = MAINSTAY__PROTECT__PROTECT_NONE;
    vm = boot();
    done = await(fake_order_save(keeper, "web01", 1));
    ck_assert_msg(done->error == 0, "%s", done->text);
    ck_assert(done->has_save);
    ck_assert_uint_eq(done->save.seq, 1);
    ck_assert(fake_wait_state(keeper, vm, MST_RUN_PAUSED, LONG_MS));
    ck_assert_uint_eq(fake_seq(vm, &source), 1);
    ck_assert_uint_eq(source, MST_SAVE_RAM);
    loop_for(&loop, 50);
    beats = console->beats;
    loop_for(&loop, 300);
    ck_assert_uint_eq(console->beats, beats);
    done = await(fake_order_save(keeper, "web01", 1)); /* again: same answer */
    ck_assert_uint_eq(done->save.seq, 1);
    kill_qemu(vm);
    start(2, 1, true, MAINSTAY__METHOD__METHOD_PULLED_LIVE);
    ck_assert(fake_wait_beats(keeper, console, 1, LONG_MS));
    ck_assert_uint_eq(console->first_beat_after_mark, console->beat_at_mark + 1);
    all_is_well();
    agent_ends_well();
}
END_TEST

START_TEST(save_by_order_can_be_undone_and_taken_again)
{
    const struct fake_done *done;
    struct fake_vm *vm;
    uint32_t source;

    if (_i)
        web.protect = MAINSTAY__PROTECT__PROTECT_NONE;
    vm = boot();
    for (unsigned round = 0; round < 3; round++) {
        done = await(fake_order_save(keeper, "web01", 1));
        ck_assert_msg(done->error == 0, "%s", done->text);
        fake_seq(vm, &source);
        ck_assert_uint_eq(source, _i ? MST_SAVE_RAM : MST_SAVE_SHADOW);
        done = await(fake_order_continue(keeper, "web01", 1));
        ck_assert_msg(done->error == 0, "%s", done->text);
        ck_assert(fake_wait_state(keeper, vm, MST_RUN_RUNNING, LONG_MS));
        if (_i)
            ck_assert_uint_eq(fake_seq(vm, NULL), 0); /* RAM runs away from it */
        ck_assert(fake_wait_beats(keeper, console, 3, LONG_MS));
    }
    done = await(fake_order_continue(keeper, "web01", 1)); /* it runs: nothing to do */
    ck_assert_int_eq(done->error, 0);
    done = await(fake_order_save(keeper, "web01", 1));
    ck_assert_int_eq(done->error, 0);
    kill_qemu(vm);
    start(2, 1, true, _i ? MAINSTAY__METHOD__METHOD_PULLED_LIVE : MAINSTAY__METHOD__METHOD_PULLED_SHADOW);
    ck_assert(fake_wait_beats(keeper, console, 1, LONG_MS));
    ck_assert_uint_eq(console->first_beat_after_mark, console->beat_at_mark + 1);
    all_is_well();
    agent_ends_well();
}
END_TEST

#ifdef MST_FAULT_POINTS /* without them the agent cannot be killed at a place of our choice */

/* Where an agent may die in a checkpoint; after each its successor must find a running guest and a usable save. */
static const struct {
    const char *point;
    uint32_t delta_capacity;
} points[] = {
    {"save.fill:100", 0},
    {"save.fill:4100", 0},
    {"checkpoint.before_commit:1", 0},
    {"checkpoint.after_commit:1", 0},
    {"save.stage:200", 0},
    {"checkpoint.before_commit:3", 0},
    {"save.commit:3", 0},
    {"checkpoint.after_commit:3", 0},
    {"checkpoint.before_apply:2", 0},
    {"save.apply:100", 0},
    {"save.settle:2", 0},
    /* the delta is too small, RAM is taken whole */
    {"checkpoint.after_commit_ram:1", 8},
    {"save.shadow:1000", 8},
    {"checkpoint.after_commit:3", 8},
};

/* The agent was told to kill itself at a point: waits for that, and starts another. */
static void replace_agent(const char *point)
{
    for (unsigned waited = 0; keeper->agent && waited < LONG_MS; waited += 50)
        loop_for(&loop, 50);
    ck_assert_msg(!keeper->agent, "point %s was not passed", point);
    ck_assert_int_eq(waitpid(keeper->agent_pid, NULL, 0), keeper->agent_pid);
    keeper->agent_pid = 0;
    fake_agent_start(keeper, MST_TEST_AGENT);
}

START_TEST(agent_that_dies_anywhere_in_a_checkpoint_is_replaced_without_a_loss)
{
    struct fake_vm *vm;
    uint64_t seq;

    keeper->delta_capacity = points[_i].delta_capacity;
    setenv("MST_FAULT_KILL", points[_i].point, 1);
    fake_agent_start(keeper, MST_TEST_AGENT);
    unsetenv("MST_FAULT_KILL");
    vm = start(1, 0, false, MAINSTAY__METHOD__METHOD_BOOTED);
    replace_agent(points[_i].point);
    seq = fake_seq(vm, NULL);
    ck_assert(fake_wait_beats(keeper, console, 3, LONG_MS));
    ck_assert(fake_wait_seq(keeper, vm, seq + 3, LONG_MS));
    all_is_well();
    kill_qemu(vm);
    start(2, 1, false, MAINSTAY__METHOD__METHOD_RESUMED_IN_PLACE);
    all_is_well();
    agent_ends_well();
}
END_TEST

START_TEST(agent_that_dies_in_a_save_by_order_lets_its_successor_save)
{
    static const char *const where[] = {"checkpoint.before_commit:1", "checkpoint.after_commit_ram:1"};
    const struct fake_done *done;
    struct fake_vm *vm;
    uint32_t source;

    web.protect = MAINSTAY__PROTECT__PROTECT_NONE;
    setenv("MST_FAULT_KILL", where[_i], 1);
    vm = boot();
    unsetenv("MST_FAULT_KILL");
    fake_order_save(keeper, "web01", 1);
    replace_agent(where[_i]);
    ck_assert(fake_wait_beats(keeper, console, 3, LONG_MS)); /* nobody has told the new one to save: the guest runs */
    fake_seq(vm, &source);
    ck_assert_uint_ne(source, MST_SAVE_RAM);
    done = await(fake_order_save(keeper, "web01", 1));
    ck_assert_msg(done->error == 0, "%s", done->text);
    kill_qemu(vm);
    start(2, 1, true, MAINSTAY__METHOD__METHOD_PULLED_LIVE);
    ck_assert(fake_wait_beats(keeper, console, 1, LONG_MS));
    ck_assert_uint_eq(console->first_beat_after_mark, console->beat_at_mark + 1);
    all_is_well();
    agent_ends_well();
}
END_TEST

/* What was withdrawn because the guest was to continue is no save any more, whatever became of the continuing. */
START_TEST(save_that_was_withdrawn_is_not_told_of_again)
{
    const struct fake_done *done;
    uint64_t seq;

    web.protect = MAINSTAY__PROTECT__PROTECT_NONE;
    setenv(_i ? "MST_FAULT_KILL" : "MST_FAULT", "checkpoint.continue:1", 1);
    (void)boot();
    unsetenv("MST_FAULT_KILL");
    unsetenv("MST_FAULT");
    seq = await(fake_order_save(keeper, "web01", 1))->save.seq;
    if (_i) { /* the agent dies there: its successor goes on with what had been ordered */
        fake_order_continue(keeper, "web01", 1);
        replace_agent("checkpoint.continue");
        ck_assert(fake_wait_beats(keeper, console, 3, LONG_MS));
    } else {
        ck_assert_int_ne(await(fake_order_continue(keeper, "web01", 1))->error, 0);
        ck_assert_int_eq(await(fake_order_save(keeper, "web01", 1))->error, ENODATA);
        ck_assert_int_eq(await(fake_order_continue(keeper, "web01", 1))->error, 0);
    }
    done = await(fake_order_save(keeper, "web01", 1));
    ck_assert_msg(done->error == 0, "%s", done->text);
    ck_assert_uint_gt(done->save.seq, seq);
    ck_assert_int_eq(await(fake_order_continue(keeper, "web01", 1))->error, 0);
    all_is_well();
    agent_ends_well();
}
END_TEST

#endif

START_TEST(killed_agent_is_replaced_while_vms_run_on)
{
    struct fake_vm *vm = boot();

    keeper->welcome_in_parts = _i;
    for (unsigned round = 0; round < 4; round++) {
        loop_for(&loop, 130 + round * 37);
        fake_agent_kill(keeper, SIGKILL);
        loop_for(&loop, 100);
        fake_agent_start(keeper, MST_TEST_AGENT);
        ck_assert(fake_wait_beats(keeper, console, 3, LONG_MS));
        ck_assert(fake_wait_seq(keeper, vm, fake_seq(vm, NULL) + 2, LONG_MS));
    }
    all_is_well();
    agent_ends_well();
}
END_TEST

START_TEST(agent_restarted_over_a_saved_vm_leaves_it_standing_until_told)
{
    const struct fake_done *done;
    uint64_t beats, seq;

    if (_i)
        web.protect = MAINSTAY__PROTECT__PROTECT_NONE;
    boot();
    done = await(fake_order_save(keeper, "web01", 1));
    seq = done->save.seq;
    fake_agent_kill(keeper, SIGKILL);
    loop_for(&loop, 50);
    beats = console->beats;
    fake_agent_start(keeper, MST_TEST_AGENT);
    loop_for(&loop, 500);
    ck_assert_uint_eq(console->beats, beats);
    done = await(fake_order_save(keeper, "web01", 1));
    ck_assert_int_eq(done->error, 0);
    ck_assert_uint_eq(done->save.seq, seq);
    done = await(fake_order_continue(keeper, "web01", 1));
    ck_assert_msg(done->error == 0, "%s", done->text);
    all_is_well();
    agent_ends_well();
}
END_TEST

START_TEST(start_left_unfinished_by_a_dead_agent_is_begun_anew)
{
    const struct fake_done *done;
    struct fake_vm *vm;
    uint64_t id;

    fake_agent_start(keeper, MST_TEST_AGENT);
    keeper->hold_spawned = true;
    id = fake_order_start(keeper, &web, 1, 0, false);
    vm = fake_vm_find(keeper, "web01", 1);
    ck_assert(fake_wait_beats(keeper, vm->console, 2, LONG_MS));
    fake_agent_kill(keeper, SIGKILL);
    keeper->hold_spawned = false;
    fake_agent_start(keeper, MST_TEST_AGENT);
    fake_order_again(keeper, id, &web, 1);
    done = await(id);
    ck_assert_msg(done->error == 0, "%s", done->text);
    console = vm->console;
    ck_assert(fake_wait_beats(keeper, console, 3, LONG_MS));
    ck_assert_uint_eq(console->boots, 2);
    agent_ends_well();
}
END_TEST

START_TEST(start_repeated_while_it_runs_is_answered_at_once)
{
    struct fake_vm *vm = boot();
    const struct fake_done *done = await(fake_order_start(keeper, &web, 1, 0, false));

    ck_assert_int_eq(done->error, 0);
    ck_assert_int_eq(done->start.method, MAINSTAY__METHOD__METHOD_BOOTED);
    done = await(fake_order_start(keeper, &web, 2, 0, false));
    ck_assert_int_eq(done->error, EEXIST);
    ck_assert_int_ne(vm->guest.pid, 0);
    all_is_well();
    agent_ends_well();
}
END_TEST

START_TEST(start_that_fails_says_why_and_leaves_nothing)
{
    const struct fake_done *done;
    struct fake_vm *vm;

    fake_agent_start(keeper, MST_TEST_AGENT);
    web.boot_kernel = (char *)(uintptr_t) "/nowhere/kernel";
    done = await(fake_order_start(keeper, &web, 1, 0, false));
    ck_assert_int_eq(done->error, ENOENT);
    ck_assert_ptr_nonnull(strstr(done->text, "/nowhere/kernel"));
    vm = fake_vm_find(keeper, "web01", 1);
    ck_assert(!vm->has_areas);

    web.boot_kernel = (char *)(uintptr_t)MST_TEST_WITNESS;
    keeper->refuse_spawn = true;
    done = await(fake_order_start(keeper, &web, 2, 0, false));
    ck_assert_int_eq(done->error, EPERM);
    keeper->refuse_spawn = false;

    web.machine = (char *)(uintptr_t) "no-such-machine";
    done = await(fake_order_start(keeper, &web, 3, 0, false));
    ck_assert_int_ne(done->error, 0);
    ck_assert_msg(strstr(done->text, "machine") != NULL, "%s", done->text);
    ck_assert_int_eq(fake_vm_find(keeper, "web01", 3)->guest.pid, 0);

    web.machine = (char *)(uintptr_t) "pc-i440fx-7.2";
    done = await(fake_order_start(keeper, &web, 4, 1, false)); /* a save that is not there */
    ck_assert_int_eq(done->error, ENOENT);
    web.boot_state = (char *)(uintptr_t) "/state"; /* a kernel and a state: one too many */
    done = await(fake_order_start(keeper, &web, 5, 0, false));
    ck_assert_int_eq(done->error, EINVAL);
    web.boot_state = NULL;
    start(6, 0, false, MAINSTAY__METHOD__METHOD_BOOTED);
    ck_assert(fake_wait_beats(keeper, console, 3, LONG_MS));
    agent_ends_well();
}
END_TEST

START_TEST(damaged_device_state_never_reaches_a_running_guest)
{
    const struct fake_done *done;
    struct fake_vm *vm = boot();

    /* Not one of before it said that it boots: the last of two that were begun since. */
    ck_assert(fake_wait_seq(keeper, vm, fake_seq(vm, NULL) + 2, LONG_MS));
    kill_qemu(vm);
    keeper->spoil_device = true;
    done = await(fake_order_start(keeper, &web, 2, 1, false));
    ck_assert_int_eq(done->error, EBADMSG);
    keeper->spoil_device = false;
    keeper->spoil_device_sum = true; /* then QEMU is the one that notices */
    done = await(fake_order_start(keeper, &web, 3, 1, false));
    ck_assert_int_ne(done->error, 0);
    ck_assert_int_eq(fake_vm_find(keeper, "web01", 3)->guest.pid, 0);
    keeper->spoil_device_sum = false;
    start(4, 1, false, MAINSTAY__METHOD__METHOD_RESUMED_IN_PLACE);
    all_is_well();
    agent_ends_well();
}
END_TEST

static bool panicked_again(void *arg)
{
    (void)arg;
    return keeper->fault_count >= 2;
}

START_TEST(panicked_guest_is_reported_and_resumed_from_before_the_panic)
{
    struct fake_vm *vm;

    web.boot_append = (char *)(uintptr_t) "pages=64 interval_ms=50 hot=8 panic_at=60";
    vm = boot();
    ck_assert(fake_wait_fault(keeper, MAINSTAY__FAULT_KIND__FAULT_VM_PANICKED, LONG_MS));
    ck_assert(fake_wait_state(keeper, vm, MST_RUN_PAUSED, LONG_MS));
    ck_assert_int_eq(vm->fault, MAINSTAY__FAULT_KIND__FAULT_VM_PANICKED);
    ck_assert_int_eq(await(fake_order_save(keeper, "web01", 1))->error, EBUSY);
    kill_qemu(vm);
    start(2, 1, false, MAINSTAY__METHOD__METHOD_RESUMED_IN_PLACE);
    ck_assert(loop_until(&loop, panicked_again, NULL, LONG_MS)); /* at the same place: it ran on from before it, not from after */
    ck_assert_uint_le(console->first_beat_after_mark, 60);
    ck_assert_uint_eq(console->broken, 0);
    agent_ends_well();
}
END_TEST

START_TEST(stopped_qemu_is_reported_silent_and_goes_on_when_it_is_continued)
{
    struct fake_vm *vm;
    uint64_t seq;

    if (_i)
        web.protect = MAINSTAY__PROTECT__PROTECT_NONE;
    vm = boot();
    kill(vm->guest.pid, SIGSTOP);
    ck_assert(fake_wait_fault(keeper, MAINSTAY__FAULT_KIND__FAULT_VM_SILENT, LONG_MS));
    loop_for(&loop, 300);
    ck_assert_uint_eq(keeper->fault_count, 1);
    kill(vm->guest.pid, SIGCONT);
    ck_assert(fake_wait_beats(keeper, console, 5, LONG_MS));
    if (!_i) {
        seq = fake_seq(vm, NULL);
        ck_assert(fake_wait_seq(keeper, vm, seq + 3, LONG_MS));
    }
    all_is_well();
    agent_ends_well();
}
END_TEST

static bool has_no_fault(void *arg)
{
    return ((struct fake_vm *)arg)->fault == MAINSTAY__FAULT_KIND__FAULT_NONE;
}

START_TEST(silence_of_before_the_agent_was_replaced_is_taken_back)
{
    struct fake_vm *vm = boot();

    kill(vm->guest.pid, SIGSTOP);
    ck_assert(fake_wait_fault(keeper, MAINSTAY__FAULT_KIND__FAULT_VM_SILENT, LONG_MS));
    vm->fault = MAINSTAY__FAULT_KIND__FAULT_VM_SILENT; /* as a keeper's slot says */
    fake_agent_kill(keeper, SIGKILL);
    kill(vm->guest.pid, SIGCONT);
    fake_agent_start(keeper, MST_TEST_AGENT);
    ck_assert(loop_until(&loop, has_no_fault, vm, LONG_MS));
    all_is_well();
    agent_ends_well();
}
END_TEST

START_TEST(qemu_that_hangs_is_reported_as_soon_when_the_agent_is_replaced_meanwhile)
{
    struct fake_vm *vm = boot();

    kill(vm->guest.pid, SIGSTOP);
    fake_agent_kill(keeper, SIGKILL);
    ck_assert_uint_eq(keeper->fault_count, 0);
    fake_agent_start(keeper, MST_TEST_AGENT);
    ck_assert(fake_wait_fault(keeper, MAINSTAY__FAULT_KIND__FAULT_VM_SILENT, MST_QMP_SILENT_MS * 4));
    kill(vm->guest.pid, SIGCONT);
    all_is_well();
    agent_ends_well();
}
END_TEST

struct wanted { /* of the save record */
    struct fake_vm *vm;
    enum mst_save_trouble trouble;
    uint32_t above_ms; /* the interval at present is that, or longer */
    struct mst_save_record record;
};

static bool is_as_wanted(void *arg)
{
    struct wanted *wanted = arg;
    struct mst_pub_head head;

    if (mst_pub_read(wanted->vm->map.record, &head, &wanted->record, sizeof(wanted->record)) != 0)
        return false;
    return wanted->record.trouble == wanted->trouble && wanted->record.interval_ms >= wanted->above_ms;
}

static bool is_not_for_its_mirrors(void *arg)
{
    struct wanted *wanted = arg;

    wanted->above_ms = 1;
    return is_as_wanted(arg) && wanted->record.pace != MST_SAVE_PACE_MIRROR;
}

static bool is_late_or_silent(void *arg)
{
    struct wanted *wanted = arg;

    wanted->trouble = MST_SAVE_TROUBLE_LATE;
    if (is_as_wanted(arg))
        return true;
    wanted->trouble = MST_SAVE_TROUBLE_SILENT; /* its deadline was sooner */
    return is_as_wanted(arg);
}

#ifdef MST_FAULT_POINTS
START_TEST(checkpoint_that_fails_is_told_of_until_there_is_a_good_one)
{
    struct wanted wanted = {.trouble = MST_SAVE_TROUBLE_FAILED};
    uint64_t seq;

    setenv("MST_FAULT", "checkpoint.commit:4", 1);
    wanted.vm = boot();
    ck_assert(loop_until(&loop, is_as_wanted, &wanted, LONG_MS));
    seq = wanted.record.seq;
    ck_assert_uint_eq(seq, 3);
    ck_assert_uint_ne(wanted.record.trouble_wall_ms, 0);
    wanted.trouble = MST_SAVE_TROUBLE_NONE;
    ck_assert(loop_until(&loop, is_as_wanted, &wanted, LONG_MS));
    ck_assert_uint_gt(wanted.record.seq, seq);
    ck_assert_uint_eq(wanted.record.trouble_wall_ms, 0);
    all_is_well();
    agent_ends_well();
}
END_TEST
#endif

START_TEST(checkpoint_that_qemu_does_not_end_is_told_of_while_it_is_under_way)
{
    struct wanted wanted = {.trouble = MST_SAVE_TROUBLE_NONE, .above_ms = 1};
    uint64_t seq;

    wanted.vm = boot();
    ck_assert(loop_until(&loop, is_as_wanted, &wanted, LONG_MS));
    kill(wanted.vm->guest.pid, SIGSTOP);
    loop_for(&loop, 300);
    seq = fake_seq(wanted.vm, NULL);
    ck_assert(loop_until(&loop, is_late_or_silent, &wanted, LONG_MS));
    ck_assert_uint_eq(wanted.record.seq, seq);
    kill(wanted.vm->guest.pid, SIGCONT);
    wanted.trouble = MST_SAVE_TROUBLE_NONE;
    ck_assert(loop_until(&loop, is_as_wanted, &wanted, LONG_MS));
    ck_assert_uint_gt(wanted.record.seq, seq);
    all_is_well();
    agent_ends_well();
}
END_TEST

START_TEST(checkpoint_that_fits_no_delta_is_told_of_and_is_one_all_the_same)
{
    struct wanted wanted = {.trouble = MST_SAVE_TROUBLE_WHOLE};

    keeper->delta_capacity = 8;
    wanted.vm = boot();
    ck_assert(loop_until(&loop, is_as_wanted, &wanted, LONG_MS));
    ck_assert(fake_wait_seq(keeper, wanted.vm, wanted.record.seq + 2, LONG_MS));
    all_is_well();
    agent_ends_well();
}
END_TEST

START_TEST(guest_runs_before_its_shadow_is_made_and_can_be_saved_meanwhile)
{
    struct fake_vm *vm;
    uint32_t source;

    keeper->hold_rest = true;
    vm = boot();
    ck_assert(fake_wait_beats(keeper, console, 3, LONG_MS));
    ck_assert(keeper->rest_id != 0);
    ck_assert_uint_eq(fake_seq(vm, NULL), 0);
    ck_assert_int_eq(await(fake_order_save(keeper, "web01", 1))->error, 0);
    ck_assert_uint_eq(fake_seq(vm, &source), 1);
    ck_assert_uint_eq(source, MST_SAVE_RAM);
    fake_rest_release(keeper); /* it stands: they are taken up when it goes on */
    ck_assert_int_eq(await(fake_order_continue(keeper, "web01", 1))->error, 0);
    ck_assert(fake_wait_seq(keeper, vm, 4, LONG_MS));
    (void)fake_seq(vm, &source);
    ck_assert_uint_eq(source, MST_SAVE_SHADOW);
    kill_qemu(vm);
    start(2, 1, false, MAINSTAY__METHOD__METHOD_RESUMED_IN_PLACE);
    ck_assert(fake_wait_beats(keeper, console, 1, LONG_MS));
    all_is_well();
    agent_ends_well();
}
END_TEST

START_TEST(mirrors_that_take_no_checkpoint_are_told_of_until_they_do)
{
    struct wanted wanted = {.trouble = MST_SAVE_TROUBLE_NONE, .above_ms = 1};
    uint64_t seq;

    web.protect = MAINSTAY__PROTECT__PROTECT_MIRROR;
    wanted.vm = boot();
    ck_assert(loop_until(&loop, is_as_wanted, &wanted, LONG_MS));
    keeper->hold_puts = true;
    wanted.trouble = MST_SAVE_TROUBLE_MIRROR;
    ck_assert(loop_until(&loop, is_as_wanted, &wanted, LONG_MS));
    seq = wanted.record.seq;
    loop_for(&loop, 500);
    ck_assert_uint_eq(fake_seq(wanted.vm, NULL), seq);
    fake_puts_release(keeper);
    wanted.trouble = MST_SAVE_TROUBLE_NONE;
    ck_assert(loop_until(&loop, is_as_wanted, &wanted, LONG_MS));
    ck_assert(fake_wait_seq(keeper, wanted.vm, seq + 2, LONG_MS));
    all_is_well();
    agent_ends_well();
}
END_TEST

START_TEST(mirrors_that_take_long_make_checkpoints_less_often_and_the_record_says_why)
{
    struct wanted wanted = {.trouble = MST_SAVE_TROUBLE_NONE, .above_ms = 600};

    web.protect = MAINSTAY__PROTECT__PROTECT_MIRROR;
    keeper->put_ms = 600;
    wanted.vm = boot();
    ck_assert(loop_until(&loop, is_as_wanted, &wanted, LONG_MS));
    ck_assert_uint_eq(wanted.record.pace, MST_SAVE_PACE_MIRROR);
    keeper->put_ms = 0;
    ck_assert(loop_until(&loop, is_not_for_its_mirrors, &wanted, LONG_MS));
    all_is_well();
    agent_ends_well();
}
END_TEST

START_TEST(checkpoints_come_less_often_than_they_should_when_the_guest_would_stand_for_too_long)
{
    struct wanted wanted = {.trouble = MST_SAVE_TROUBLE_NONE, .above_ms = 9}; /* a pause of 1 ms asks for 10 */

    web.checkpoint_interval_ms = 5;
    web.has_checkpoint_stall_max_percent = 1;
    web.checkpoint_stall_max_percent = 10;
    wanted.vm = boot();
    do {
        ck_assert(loop_until(&loop, is_as_wanted, &wanted, LONG_MS));
        loop_for(&loop, 10);
    } while (wanted.record.pace != MST_SAVE_PACE_STALL); /* the first one copies all of its memory, too */
    ck_assert(fake_wait_seq(keeper, wanted.vm, wanted.record.seq + 1, LONG_MS));
    all_is_well();
    agent_ends_well();
}
END_TEST

static void write_file(const char *dir, const char *name, const void *data, size_t len)
{
    char path[300];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    ck_assert_int_eq(mst_file_write_durable(path, data, len, 0600), 0);
}

#define DISK_MIB 2u

/* web gets a disk in main storage, in which the witness keeps all of its pages. */
static void memory_disk(const char *image)
{
    disk.has_memory_mib = 1;
    disk.memory_mib = DISK_MIB;
    disk.image = (char *)(uintptr_t)image;
    web.disks = disks;
    web.n_disks = 1;
    web.boot_append = (char *)(uintptr_t) "pages=512 interval_ms=50 hot=40 pmem_mib=2";
}

START_TEST(saved_state_on_disk_goes_on_where_it_was_saved)
{
    static uint8_t packed[32 << 20];
    const struct fake_done *done;
    struct mst_save_record record;
    struct mst_pub_head head;
    char dir[200], text[600];
    struct fake_vm *vm;
    uint64_t beat;
    size_t bytes;

    if (_i) /* RAM and the disk behind it are one piece there, too */
        memory_disk(NULL);
    else
        web.protect = MAINSTAY__PROTECT__PROTECT_NONE;
    vm = boot();
    done = await(fake_order_save(keeper, "web01", 1));
    ck_assert_int_eq(done->error, 0);
    loop_for(&loop, 50);
    beat = console->last_beat;
    ck_assert_int_eq(mst_pub_read(vm->map.record, &head, &record, sizeof(record)), 0);
    snprintf(dir, sizeof(dir), "%s/state", keeper->dir);
    ck_assert_int_eq(mkdir(dir, 0700), 0);
    bytes = ZSTD_compress(packed, sizeof(packed), vm->map.ram, vm->map.ram_bytes, 1);
    ck_assert(!ZSTD_isError(bytes));
    write_file(dir, "ram.zst", packed, bytes);
    write_file(dir, "device", vm->map.save + vm->save_layout.device_off[record.device_slot], record.device_bytes);
    snprintf(text, sizeof(text), "name: other\nmemory-mib: 16\nboot:\n  kernel: %s\n  append: \"%s\"\n%s", MST_TEST_WITNESS,
             web.boot_append, _i ? "protect: local\ndisks:\n- memory-mib: 2\n" : "");
    write_file(dir, "definition.yaml", text, strlen(text));
    kill_qemu(vm);
    web.boot_kernel = web.boot_append = NULL;
    web.boot_state = dir;
    web.protect = MAINSTAY__PROTECT__PROTECT_LOCAL;
    start(2, 0, false, MAINSTAY__METHOD__METHOD_BOOTED);
    ck_assert(fake_wait_beats(keeper, console, 1, LONG_MS));
    ck_assert_uint_eq(console->first_beat_after_mark, beat + 1);
    all_is_well();
    vm = fake_vm_find(keeper, "web01", 2);
    ck_assert(fake_wait_seq(keeper, vm, 2, LONG_MS));
    kill_qemu(vm); /* and a checkpoint of it loads into the same machine */
    start(3, 2, false, MAINSTAY__METHOD__METHOD_RESUMED_IN_PLACE);
    all_is_well();
    packed[bytes / 2] ^= 1;
    write_file(dir, "ram.zst", packed, bytes / 2 + 1);
    kill_qemu(fake_vm_find(keeper, "web01", 3));
    done = await(fake_order_start(keeper, &web, 4, 0, false));
    ck_assert_int_eq(done->error, EBADMSG);
    agent_ends_well();
}
END_TEST

START_TEST(agent_without_a_keeper_ends_with_an_error)
{
    char command[300];

    snprintf(command, sizeof(command), "%s --keeper %s/nothing.sock 2>/dev/null", MST_TEST_AGENT, keeper->dir);
    ck_assert_int_eq(WEXITSTATUS(system(command)), 1);
    fake_agent_start(keeper, MST_TEST_AGENT);
    agent_ends_well();
}
END_TEST

/* --- disks --- */

#define SECTORS 256u

/* web gets a disk on a file that the test makes: where direct I/O is possible, which tmpfs learned only in Linux 6.6. */
static void file_disk(Mainstay__DiskFormat format, bool writable)
{
    static const char *const formats[] = {"raw", "qcow2"};
    static uint32_t sectors[SECTORS][512 / 4];
    char command[900], raw[220];
    FILE *file;

    for (uint32_t s = 0; s < SECTORS; s++)
        for (uint32_t i = 0; i < 512 / 4; i++)
            sectors[s][i] = witness_mix(s, i);
    ck_assert_ptr_nonnull(getcwd(command, 160));
    snprintf(disk_path, sizeof(disk_path), "%.160s/mst-disk-%d", command, (int)getpid());
    snprintf(raw, sizeof(raw), "%s.raw", disk_path);
    file = fopen(raw, "we");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(sectors, sizeof(sectors), 1, file), 1);
    ck_assert_int_eq(fclose(file), 0);
    snprintf(command, sizeof(command), "qemu-img convert -f raw -O %s %s %s && rm %s", formats[format], raw, disk_path, raw);
    ck_assert_int_eq(system(command), 0);
    disk.path = disk_path;
    disk.has_format = 1;
    disk.format = format;
    disk.has_writable = 1;
    disk.writable = writable;
    web.disks = disks;
    web.n_disks = 1;
    web.boot_append = (char *)(uintptr_t)(writable ? "pages=512 interval_ms=50 hot=40 write_disk=1"
                                                   : "pages=512 interval_ms=50 hot=40 read_disk=1");
}

static void disk_said(const char *kind, uint32_t first, bool witness)
{
    char want[100];

    snprintf(want, sizeof(want), "guest disk kind=%s first=%" PRIu32 " witness=%s", kind, first, witness ? "yes" : "no");
    ck_assert_str_eq(console->disk, want);
}

START_TEST(read_only_disk_is_read_at_every_beat_and_a_resumed_guest_reads_on)
{
    struct fake_vm *vm;

    file_disk((Mainstay__DiskFormat)_i, false);
    vm = boot();
    disk_said("virtio", witness_mix(0, 0), true);
    ck_assert(fake_wait_seq(keeper, vm, 6, LONG_MS));
    all_is_well();
    kill_qemu(vm);
    start(2, 1, false, MAINSTAY__METHOD__METHOD_RESUMED_IN_PLACE);
    ck_assert(fake_wait_beats(keeper, console, 1, LONG_MS));
    all_is_well();
    ck_assert(fake_wait_seq(keeper, fake_vm_find(keeper, "web01", 2), 3, LONG_MS));
    agent_ends_well();
}
END_TEST

START_TEST(guest_cannot_write_to_a_read_only_disk)
{
    file_disk(MAINSTAY__DISK_FORMAT__DISK_RAW, false);
    web.boot_append = (char *)(uintptr_t) "pages=64 interval_ms=50 write_disk=1";
    fake_agent_start(keeper, MST_TEST_AGENT);
    start(1, 0, false, MAINSTAY__METHOD__METHOD_BOOTED);
    ck_assert(fake_wait_beats(keeper, console, 4, LONG_MS));
    ck_assert_uint_gt(console->broken, 0);
    agent_ends_well();
}
END_TEST

/* What the newest beat wrote lies in the first sector. */
static uint32_t first_word_on_disk(void)
{
    uint32_t word = 0;
    FILE *file = fopen(disk_path, "re");

    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fread(&word, sizeof(word), 1, file), 1);
    fclose(file);
    return word;
}

START_TEST(writable_disk_of_an_unprotected_vm_goes_with_it_when_it_is_moved)
{
    const struct fake_done *done;
    struct fake_vm *vm;

    web.protect = MAINSTAY__PROTECT__PROTECT_NONE;
    file_disk((Mainstay__DiskFormat)_i, true);
    vm = boot();
    for (unsigned round = 0; round < 2; round++) { /* QEMU gives the image out of its hands with each save, and takes it back */
        ck_assert_int_eq(await(fake_order_save(keeper, "web01", 1))->error, 0);
        ck_assert_int_eq(await(fake_order_continue(keeper, "web01", 1))->error, 0);
        ck_assert(fake_wait_beats(keeper, console, 3, LONG_MS));
    }
    done = await(fake_order_save(keeper, "web01", 1));
    ck_assert_msg(done->error == 0, "%s", done->text);
    loop_for(&loop, 50);
    if (disk.format == MAINSTAY__DISK_FORMAT__DISK_RAW)
        ck_assert_uint_eq(first_word_on_disk(), console->last_beat);
    kill_qemu(vm);
    start(2, 1, true, MAINSTAY__METHOD__METHOD_PULLED_LIVE);
    ck_assert(fake_wait_beats(keeper, console, 1, LONG_MS));
    ck_assert_uint_eq(console->first_beat_after_mark, console->beat_at_mark + 1);
    all_is_well();                               /* each beat has read what the one before wrote, also the first one */
    kill_qemu(fake_vm_find(keeper, "web01", 2)); /* nothing is saved: it boots, from what is there */
    done = await(fake_order_start(keeper, &web, 3, 0, false));
    ck_assert_msg(done->error == 0, "%s", done->text);
    ck_assert_str_eq(done->text, "");
    ck_assert(fake_wait_beats(keeper, console, 3, LONG_MS));
    ck_assert_uint_eq(console->boots, 2);
    ck_assert_ptr_nonnull(strstr(console->disk, "kind=virtio first="));
    ck_assert_ptr_nonnull(strstr(console->disk, "witness=yes"));
    ck_assert_ptr_null(strstr(console->disk, "first=0 "));
    agent_ends_well();
}
END_TEST

START_TEST(image_that_another_qemu_on_this_node_writes_to_is_refused)
{
    const struct fake_done *done;

    web.protect = MAINSTAY__PROTECT__PROTECT_NONE;
    file_disk(MAINSTAY__DISK_FORMAT__DISK_RAW, true);
    boot();
    web.name = (char *)(uintptr_t) "web02";
    done = await(fake_order_start(keeper, &web, 1, 0, false));
    ck_assert_int_ne(done->error, 0);
    ck_assert_msg(strstr(done->text, "lock") != NULL, "%s", done->text);
    all_is_well();
    agent_ends_well();
}
END_TEST

START_TEST(disk_that_this_node_does_not_have_is_said_before_qemu_is_started)
{
    const struct fake_done *done;

    disk.path = (char *)(uintptr_t) "/no/such/disk";
    disk.has_format = 1;
    web.disks = disks;
    web.n_disks = 1;
    fake_agent_start(keeper, MST_TEST_AGENT);
    done = await(fake_order_start(keeper, &web, 1, 0, false));
    ck_assert_int_eq(done->error, ENOENT);
    ck_assert_ptr_nonnull(strstr(done->text, "disks[0]: /no/such/disk"));
    agent_ends_well();
}
END_TEST

START_TEST(what_a_guest_writes_to_its_disk_in_main_storage_is_in_its_checkpoint_and_back_with_it)
{
    const uint32_t *words;
    struct fake_vm *vm;

    memory_disk(NULL);
    vm = boot();
    disk_said("pmem", 0, false);
    ck_assert_str_eq(keeper->done.text, "its disk in main storage begins anew, with zeros");
    ck_assert(fake_wait_seq(keeper, vm, 6, LONG_MS));
    if (_i) { /* and an agent that takes it up finds both files of it */
        fake_agent_kill(keeper, SIGKILL);
        fake_agent_start(keeper, MST_TEST_AGENT);
        ck_assert(fake_wait_seq(keeper, vm, fake_seq(vm, NULL) + 3, LONG_MS));
    }
    kill_qemu(vm);
    ck_assert_uint_eq(vm->map.ram_bytes, (16u + DISK_MIB) << 20);
    words = (const uint32_t *)(const void *)(vm->map.shadow + (16u << 20));
    for (size_t page = 0; page < 512; page++) /* the checkpoint has them where the disk is */
        ck_assert_uint_eq(words[page * WITNESS_PAGE_WORDS + WORD_MAGIC], WITNESS_MAGIC);
    start(2, 1, _i != 0, _i ? MAINSTAY__METHOD__METHOD_PULLED_SHADOW : MAINSTAY__METHOD__METHOD_RESUMED_IN_PLACE);
    ck_assert_str_eq(keeper->done.text, ""); /* nothing is new */
    ck_assert(fake_wait_beats(keeper, console, 1, LONG_MS));
    ck_assert_uint_le(console->first_beat_after_mark, console->beat_at_mark + 1);
    all_is_well();
    ck_assert(fake_wait_seq(keeper, fake_vm_find(keeper, "web01", 2), 3, LONG_MS));
    agent_ends_well();
}
END_TEST

START_TEST(disk_in_main_storage_begins_with_its_image_at_every_boot_and_that_is_said)
{
    static uint32_t image[WITNESS_PAGE_WORDS] = {[WORD_GENERATION] = 4242, [WORD_MAGIC] = WITNESS_MAGIC};
    const struct fake_done *done;
    char path[200], want[300];

    snprintf(path, sizeof(path), "%s/image", keeper->dir);
    memory_disk(path);
    fake_agent_start(keeper, MST_TEST_AGENT);
    ck_assert_int_eq(await(fake_order_start(keeper, &web, 1, 0, false))->error, ENOENT);
    write_file(keeper->dir, "image", image, sizeof(image));
    for (uint64_t epoch = 2; epoch < 4; epoch++) {
        struct fake_vm *vm = start(epoch, 0, false, MAINSTAY__METHOD__METHOD_BOOTED);

        snprintf(want, sizeof(want), "its disk in main storage begins anew, with %s", path);
        ck_assert_str_eq(keeper->done.text, want);
        ck_assert(fake_wait_beats(keeper, console, 20, LONG_MS)); /* the first page has another generation by now */
        disk_said("pmem", 4242, true);
        kill_qemu(vm);
    }
    ck_assert_int_eq(truncate(path, ((off_t)DISK_MIB << 20) + 1), 0);
    done = await(fake_order_start(keeper, &web, 4, 0, false));
    ck_assert_int_eq(done->error, EFBIG);
    ck_assert_ptr_nonnull(strstr(done->text, "is larger than its disk"));
    agent_ends_well();
}
END_TEST

/* One test case for each test: CK_RUN_CASE=name runs that one. */
static void add(Suite *suite, const char *name, const TTest *test, int rounds)
{
    TCase *tcase = tcase_create(name);

    tcase_set_timeout(tcase, 150);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_loop_test(tcase, test, 0, rounds);
    suite_add_tcase(suite, tcase);
}
#define ADD(test)              add(suite, #test, test, 1)
#define ADD_ROUNDS(test, many) add(suite, #test, test, many)

int main(void)
{
    Suite *suite = suite_create("agent with QEMU");
    SRunner *runner = srunner_create(suite);
    int failed;

    ADD(agent_without_a_keeper_ends_with_an_error);
    ADD(killed_qemu_is_resumed_in_place_from_its_last_checkpoint);
    ADD(save_by_order_of_an_unprotected_vm_loses_no_beat_when_pulled);
    ADD_ROUNDS(save_by_order_can_be_undone_and_taken_again, 2);
#ifdef MST_FAULT_POINTS
    ADD_ROUNDS(agent_that_dies_anywhere_in_a_checkpoint_is_replaced_without_a_loss, (int)(sizeof(points) / sizeof(points[0])));
    ADD_ROUNDS(agent_that_dies_in_a_save_by_order_lets_its_successor_save, 2);
    ADD(checkpoint_that_fails_is_told_of_until_there_is_a_good_one);
    ADD_ROUNDS(save_that_was_withdrawn_is_not_told_of_again, 2);
#endif
    ADD_ROUNDS(killed_agent_is_replaced_while_vms_run_on, 2);
    ADD_ROUNDS(agent_restarted_over_a_saved_vm_leaves_it_standing_until_told, 2);
    ADD(start_left_unfinished_by_a_dead_agent_is_begun_anew);
    ADD(start_repeated_while_it_runs_is_answered_at_once);
    ADD(start_that_fails_says_why_and_leaves_nothing);
    ADD(damaged_device_state_never_reaches_a_running_guest);
    ADD(panicked_guest_is_reported_and_resumed_from_before_the_panic);
    ADD_ROUNDS(stopped_qemu_is_reported_silent_and_goes_on_when_it_is_continued, 2);
    ADD(silence_of_before_the_agent_was_replaced_is_taken_back);
    ADD(qemu_that_hangs_is_reported_as_soon_when_the_agent_is_replaced_meanwhile);
    ADD(checkpoint_that_qemu_does_not_end_is_told_of_while_it_is_under_way);
    ADD(checkpoint_that_fits_no_delta_is_told_of_and_is_one_all_the_same);
    ADD(guest_runs_before_its_shadow_is_made_and_can_be_saved_meanwhile);
    ADD(mirrors_that_take_no_checkpoint_are_told_of_until_they_do);
    ADD(mirrors_that_take_long_make_checkpoints_less_often_and_the_record_says_why);
    ADD(checkpoints_come_less_often_than_they_should_when_the_guest_would_stand_for_too_long);
    ADD_ROUNDS(saved_state_on_disk_goes_on_where_it_was_saved, 2);
    ADD_ROUNDS(read_only_disk_is_read_at_every_beat_and_a_resumed_guest_reads_on, 2);
    ADD(guest_cannot_write_to_a_read_only_disk);
    ADD_ROUNDS(writable_disk_of_an_unprotected_vm_goes_with_it_when_it_is_moved, 2);
    ADD(image_that_another_qemu_on_this_node_writes_to_is_refused);
    ADD(disk_that_this_node_does_not_have_is_said_before_qemu_is_started);
    ADD_ROUNDS(what_a_guest_writes_to_its_disk_in_main_storage_is_in_its_checkpoint_and_back_with_it, 2);
    ADD(disk_in_main_storage_begins_with_its_image_at_every_boot_and_that_is_said);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
