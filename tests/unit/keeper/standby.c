/* QEMUs that wait beside images: see rig.h. */
#include "rig.h"

#include <check.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define MIRROR MAINSTAY__PROTECT__PROTECT_MIRROR
#define SURE   MAINSTAY__MIRROR_PHASE__MIRROR_SURE

static Mainstay__MirrorGrant granted;

struct said {
    const char *vm;
    uint64_t epoch;
    unsigned standby;
};

static bool is_said(void *arg)
{
    const struct said *said = arg;
    struct mst_vm_slot info;

    return rig_slot(2, said->vm, said->epoch, &info) >= 0 && info.standby == said->standby;
}

static void wait_said(const char *vm, unsigned standby)
{
    struct said said = {vm, 5, standby};
    struct mst_vm_slot info = {.standby = 99};

    if (!rig_until(is_said, &said, 20000)) {
        (void)rig_slot(2, vm, 5, &info);
        ck_abort_msg("the slot of %s says %u, not %u", vm, info.standby, standby);
    }
}

/* vm runs on node 1 as epoch 5 and has a mirror on node 2, which counts. */
static void mirrored(const char *vm)
{
    const Mainstay__Done *done;

    ck_done_ok(rig_start(1, vm, 5, MIRROR, "x", NULL));
    done = rig_mirror(2, vm, 5, 1, 0);
    ck_done_ok(done);
    granted = *done->grant;
    ck_done_ok(rig_mirror_to(1, vm, 5, 2, &granted));
    rig_wait_mirror(1, MAINSTAY__MIRROR_PHASE__MIRROR_JOINED, 1);
    ck_done_ok(rig_mirror_sure(1, vm, 5, granted.log_id));
    rig_wait_mirror(1, SURE, 5);
}

static void keepers_start(void)
{
    rig_keeper_start(1);
    rig_keeper_start(2);
    rig_agent_tell(2, "standby", true);
}

static long warm(void)
{
    long pid;

    keepers_start();
    mirrored("web01");
    wait_said("web01", MST_STANDBY_WARM);
    pid = rig_pid_of(2, "vm/web01/standby.pid");
    ck_assert(rig_alive(pid));
    return pid;
}

/* Node 1 is lost; its VM goes on at its mirror, or boots there. Returns its pid. */
static long takeover(bool resume)
{
    Mainstay__SaveSource source = MAINSTAY__SAVE_SOURCE__INIT;
    const Mainstay__Done *done;

    rig_keeper_signal(1, SIGKILL);
    rig_keeper_wait(1, 5000);
    done = rig_mirror_revoke(2, "web01", 5);
    ck_done_ok(done);
    source.node = (char *)"n2";
    source.node_id = 2;
    source.instance = rig->nodes[2].instance;
    source.epoch = 5;
    source.has_min_seq = source.has_image = 1;
    source.min_seq = done->image->seq;
    source.image = 1;
    ck_done_ok(rig_start(2, "web01", 6, MIRROR, "x", resume ? &source : NULL));
    rig_wait_state(2, "web01", 6, MST_RUN_RUNNING);
    return rig_pid_of(2, "vm/web01/qemu.pid");
}

static bool is_gone(void *arg)
{
    return !rig_alive(*(long *)arg);
}

static void wait_gone(long pid)
{
    ck_assert_msg(rig_until(is_gone, &pid, 10000), "process %ld lives", pid);
}

/* Its console says something, so it runs. */
static bool has_console(void *arg)
{
    struct mst_vm_slot info;

    (void)arg;
    return rig_slot(2, "web01", 6, &info) >= 0 && info.console_bytes > 0;
}

/* It goes on all the same, in a QEMU of its own, and the one that waited has ended before. */
static void takeover_without(long waited)
{
    long used = takeover(true);

    ck_assert_int_ne(used, waited);
    ck_assert(!rig_alive(waited));
    ck_assert(rig_alive(used));
    ck_assert(rig_until(has_console, NULL, 10000));
}

START_TEST(a_takeover_gets_the_qemu_that_waits_and_its_memory_is_the_images)
{
    static const char *const story[] = {"standby.started", "standby.used", "qemu.spawned", NULL};
    struct mst_vm_slot info;
    size_t bytes, image_bytes;
    uint8_t *ram, *shadow;
    long pid = warm();
    struct stat st;
    char path[300];

    snprintf(path, sizeof(path), "%s/web01.e5.ram", rig->nodes[2].main_storage);
    ck_assert_int_eq(stat(path, &st), 0);
    ck_assert_int_eq(st.st_size, 4 << 20);
    ck_assert_int_eq(st.st_blocks, 0); /* it costs no memory while it waits */
    ck_assert_int_ge(rig_slot(2, "web01", 5, &info), 0);
    ck_assert_int_eq(info.qemu_pid, pid);
    ck_assert_uint_eq(info.run_state, MST_RUN_IMAGE);

    ck_assert_int_eq(takeover(true), pid);
    ck_assert(rig_until(has_console, NULL, 10000));
    ck_assert_int_eq(rig_pid_of(2, "vm/web01/standby.pid"), 0);
    ck_assert(!rig_file_there(2, "web01.e5.ram"));
    ram = rig_map(2, "web01.e6.ram", &bytes);
    shadow = rig_map(2, "web01.e5.shadow", &image_bytes);
    ck_assert_uint_eq(bytes, image_bytes);
    ck_assert(memcmp(ram + (1u << 20), shadow + (1u << 20), bytes - (1u << 20)) == 0); /* in the first pages the guest goes on */
    munmap(ram, bytes);
    munmap(shadow, image_bytes);
    ck_assert_int_ge(rig_slot(2, "web01", 5, &info), 0);
    ck_assert_int_eq(info.qemu_pid, 0);
    rig_wait_told(2, "", story);
    ck_done_ok(rig_forget(2, "web01", 5)); /* and the image goes without it */
    ck_assert(rig_alive(pid));
    ck_done_ok(rig_fence(2, "web01", 6));
    ck_assert(!rig_alive(pid));
}
END_TEST

START_TEST(a_qemu_that_waits_and_ends_is_started_again_and_a_takeover_does_without_it)
{
    long pid = warm(), other;

    ck_assert_int_eq(kill((pid_t)pid, SIGKILL), 0);
    wait_said("web01", MST_STANDBY_FAILED);
    ck_assert(!rig_file_there(2, "web01.e5.ram"));
    if (_i == 0) { /* after a while another one waits */
        wait_said("web01", MST_STANDBY_WARM);
        other = rig_pid_of(2, "vm/web01/standby.pid");
        ck_assert_int_ne(other, pid);
        ck_assert_int_eq(takeover(true), other);
    } else {
        ck_assert_int_gt(takeover(true), 0);
    }
    ck_assert(rig_until(has_console, NULL, 10000));
}
END_TEST

START_TEST(a_qemu_of_other_words_is_ended_before_one_is_started_over_the_same_memory)
{
    rig_keeper_start(1);
    rig_keeper_start(2);
    rig_agent_tell(2, "standby", true);
    rig_agent_tell(2, "standby-other", true);
    mirrored("web01");
    wait_said("web01", MST_STANDBY_WARM);
    takeover_without(rig_pid_of(2, "vm/web01/standby.pid"));
}
END_TEST

/* It would make a file of that name for itself, and the guest would go on in empty memory. */
START_TEST(a_qemu_that_has_not_opened_its_memory_yet_is_not_used)
{
    char path[300];
    FILE *file;

    keepers_start();
    snprintf(path, sizeof(path), "%s/slow", rig->nodes[2].main_storage);
    file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    fclose(file);
    mirrored("web01");
    wait_said("web01", MST_STANDBY_WARM);
    takeover_without(rig_pid_of(2, "vm/web01/standby.pid"));
}
END_TEST

/* Their monitors have the same names, and whoever ends one means the other. */
START_TEST(one_qemu_of_a_vm_waits_however_many_images_it_has)
{
    const Mainstay__Done *done;
    Mainstay__MirrorGrant grant;
    struct said next = {"web01", 6, MST_STANDBY_WARM};
    struct mst_vm_slot info;
    long pid = warm();

    ck_done_ok(rig_fence(1, "web01", 5));
    ck_done_ok(rig_start(1, "web01", 6, MIRROR, "x", NULL));
    done = rig_mirror(2, "web01", 6, 1, 0);
    ck_done_ok(done);
    grant = *done->grant;
    ck_done_ok(rig_mirror_to(1, "web01", 6, 2, &grant));
    rig_wait_mirror(1, MAINSTAY__MIRROR_PHASE__MIRROR_JOINED, 1);
    rig_run_ms(3000); /* three looks of the keeper */
    ck_assert_int_eq(rig_pid_of(2, "vm/web01/standby.pid"), pid);
    ck_assert(rig_alive(pid));
    ck_assert_int_ge(rig_slot(2, "web01", 6, &info), 0);
    ck_assert_uint_eq(info.standby, MST_STANDBY_NONE);
    ck_done_ok(rig_forget(2, "web01", 5));
    ck_assert(!rig_alive(pid));
    ck_assert(rig_until(is_said, &next, 20000));
    ck_assert(rig_alive(rig_pid_of(2, "vm/web01/standby.pid")));
}
END_TEST

START_TEST(a_qemu_that_waits_is_not_used_over_memory_that_is_not_the_vms_any_more)
{
    long pid = warm();

    rig_agent_tell(2, "memory-twice", true);
    takeover_without(pid); /* its RAM was dropped, and the VM has another */
}
END_TEST

START_TEST(a_vm_that_boots_does_not_get_the_qemu_that_waits)
{
    long pid = warm(), used = takeover(false);

    ck_assert_int_ne(used, pid);
    ck_assert(!rig_alive(pid));
    ck_assert(rig_alive(used));
}
END_TEST

START_TEST(a_fence_of_the_vm_ends_the_qemu_that_waits_and_leaves_the_image)
{
    struct mst_vm_slot info;
    long pid = warm();

    ck_done_ok(rig_fence(2, "web01", 4));
    ck_assert(!rig_alive(pid));
    ck_assert_int_ge(rig_slot(2, "web01", 5, &info), 0);
    ck_assert_uint_eq(info.image_state, 2); /* mirroring */
    rig_wait_mirror(1, SURE, rig->nodes[1].mirror->mirror_state->acked_seq + 3);
    wait_said("web01", MST_STANDBY_WARM); /* another one */
}
END_TEST

/* 5 s each time, and not twice as long as the time before. */
START_TEST(an_end_that_was_ordered_puts_off_the_next_qemu_no_further)
{
    struct said next = {"web01", 5, MST_STANDBY_WARM};

    warm();
    for (int i = 0; i < 3; i++) {
        ck_done_ok(rig_fence(2, "web01", 4));
        ck_assert(!is_said(&next));
        ck_assert(rig_until(is_said, &next, 14000));
    }
}
END_TEST

START_TEST(an_image_is_forgotten_with_the_qemu_that_waits_beside_it)
{
    const Mainstay__Done *done;
    uint64_t used;
    long pid;

    keepers_start();
    used = rig_memory_used(2);
    mirrored("web01");
    wait_said("web01", MST_STANDBY_WARM);
    pid = rig_pid_of(2, "vm/web01/standby.pid");
    ck_done_ok(rig_forget(2, "web01", 5));
    ck_assert(!rig_alive(pid));
    ck_assert(!rig_file_there(2, "web01.e5.ram"));
    ck_assert_uint_eq(rig_memory_used(2), used);
    done = rig_mirror(2, "web01", 5, 1, 0); /* at once: nothing of it is in the way */
    ck_done_ok(done);
}
END_TEST

START_TEST(so_many_wait_as_the_node_has_memory_for)
{
    struct mst_vm_slot info;

    rig->config_more = _i ? "standby-memory-mib: 64\n" : "standby-memory-mib: 0\n";
    keepers_start();
    mirrored("web01");
    wait_said("web01", _i ? MST_STANDBY_WARM : MST_STANDBY_OFF);
    if (_i == 0) {
        ck_assert_int_eq(rig_pid_of(2, "vm/web01/standby.pid"), 0);
        return;
    }
    mirrored("web02");
    wait_said("web02", MST_STANDBY_FULL);
    ck_assert_int_eq(rig_pid_of(2, "vm/web02/standby.pid"), 0);
    ck_done_ok(rig_forget(2, "web01", 5));
    wait_said("web02", MST_STANDBY_WARM); /* there is room now */
    ck_assert_int_ge(rig_slot(2, "web02", 5, &info), 0);
}
END_TEST

START_TEST(an_agent_that_cannot_say_how_is_asked_again_and_costs_nothing_else)
{
    rig_keeper_start(1);
    rig_keeper_start(2);
    rig_agent_tell(2, "standby", true);
    rig_agent_tell(2, "standby-none", true);
    mirrored("web01");
    wait_said("web01", MST_STANDBY_FAILED);
    rig_agent_tell(2, "standby-none", false);
    wait_said("web01", MST_STANDBY_WARM);
    ck_assert_int_gt(takeover(true), 0);
}
END_TEST

START_TEST(a_qemu_that_waits_dies_with_its_keeper_and_the_next_one_clears_what_it_left)
{
    long pid = warm();

    rig_keeper_signal(2, SIGKILL);
    rig_keeper_wait(2, 5000);
    wait_gone(pid);
    rig_keeper_start(2);
    ck_assert(rig->nodes[2].hello->hello->earlier_vms_dead);
    ck_assert(!rig_file_there(2, "web01.e5.ram"));
    ck_assert_int_gt(takeover(true), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("standby");
    TCase *tc = tcase_create("standby");
    SRunner *runner;
    int failed;

    if (!rig_can_run()) {
        fprintf(stderr, "SKIPPED: cgroup v2 is not writable here, and a keeper fences with it\n");
        return 77;
    }
    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, rig_setup, rig_teardown);
    tcase_add_test(tc, a_takeover_gets_the_qemu_that_waits_and_its_memory_is_the_images);
    tcase_add_loop_test(tc, a_qemu_that_waits_and_ends_is_started_again_and_a_takeover_does_without_it, 0, 2);
    tcase_add_test(tc, a_qemu_of_other_words_is_ended_before_one_is_started_over_the_same_memory);
    tcase_add_test(tc, a_qemu_that_has_not_opened_its_memory_yet_is_not_used);
    tcase_add_test(tc, one_qemu_of_a_vm_waits_however_many_images_it_has);
    tcase_add_test(tc, a_qemu_that_waits_is_not_used_over_memory_that_is_not_the_vms_any_more);
    tcase_add_test(tc, a_vm_that_boots_does_not_get_the_qemu_that_waits);
    tcase_add_test(tc, a_fence_of_the_vm_ends_the_qemu_that_waits_and_leaves_the_image);
    tcase_add_test(tc, an_end_that_was_ordered_puts_off_the_next_qemu_no_further);
    tcase_add_test(tc, an_image_is_forgotten_with_the_qemu_that_waits_beside_it);
    tcase_add_loop_test(tc, so_many_wait_as_the_node_has_memory_for, 0, 2);
    tcase_add_test(tc, an_agent_that_cannot_say_how_is_asked_again_and_costs_nothing_else);
    tcase_add_test(tc, a_qemu_that_waits_dies_with_its_keeper_and_the_next_one_clears_what_it_left);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    rig_sweep();
    return failed ? 1 : 0;
}
