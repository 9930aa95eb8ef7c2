/* Checkpoints of a real guest in a real QEMU (TCG): taken while it beats, QEMU killed, resumed from shadow and delta in a new QEMU. */

#include "base/clock.h"
#include "shm/save.h"
#include "tests/lib/saved_vm.h"

#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static unsigned memory_mib = 16, disk_mib; /* as struct saved_vm_conf says */
static const Mainstay__VmDisk *disk;
#define RAM_BYTES ((uint64_t)(memory_mib + disk_mib) << 20)

static const char *const append_many_pages = "pages=512 interval_ms=50 hot=40";

static struct saved_vm *vm_new(uint32_t delta_capacity, const char *append)
{
    return saved_vm_new(&(struct saved_vm_conf){.memory_mib = memory_mib,
                                                .disk_mib = disk_mib,
                                                .delta_capacity = delta_capacity,
                                                .kernel = MST_TEST_WITNESS,
                                                .append = append,
                                                .disk = disk});
}

static void resume_from_save(struct saved_vm *w)
{
    struct saved_vm_resumed resumed;

    saved_vm_resume(w, &resumed);
    printf("load to running %.1f ms, %" PRIu64 " bytes of device state\n", (double)resumed.load_ns / 1e6, resumed.device_bytes);
}

static int by_size(const void *left, const void *right)
{
    const uint64_t *a = left, *b = right;

    return (*a > *b) - (*a < *b);
}

static void print_split(const char *name, uint64_t *values, unsigned count)
{
    qsort(values, count, sizeof(*values), by_size);
    printf("  %-8s p50 %8.3f ms  p99 %8.3f ms  max %8.3f ms\n", name, (double)values[count / 2] / 1e6,
           (double)values[count * 99 / 100] / 1e6, (double)values[count - 1] / 1e6);
}

#define ROUNDS 40u

START_TEST(killed_guest_goes_on_from_its_last_checkpoint_with_its_memory_intact)
{
    struct saved_vm *w = vm_new(mst_delta_capacity(RAM_BYTES), append_many_pages);
    static uint64_t stop[ROUNDS], device[ROUNDS], pages[ROUNDS], cont[ROUNDS], pause[ROUNDS];
    uint64_t early = 0, late = 0;
    unsigned count = 0;

    saved_vm_spawn(w, false);
    ck_assert_msg(loop_until(&w->loop, saved_vm_has_beats, w, 30000), "no beats");
    ck_assert_uint_eq(w->console.boots, 1);
    saved_vm_checkpoints(w);
    saved_vm_take(w, MST_CKPT_RUN_ON);
    ck_assert_msg(w->err == 0, "%s", w->why.text);
    ck_assert(w->report.first && !w->report.whole);
    printf("first: pause %.1f ms, marking %.1f ms, pages %.1f ms, %" PRIu64 " late pages\n", (double)w->report.pause_ns / 1e6,
           (double)w->report.mark_ns / 1e6, (double)w->report.pages_ns / 1e6, w->report.pages_late);
    for (; count < ROUNDS; count++) {
        loop_for(&w->loop, 100);
        saved_vm_take(w, MST_CKPT_RUN_ON);
        ck_assert_msg(w->err == 0, "%s", w->why.text);
        ck_assert(!w->report.whole);
        stop[count] = w->report.stop_ns;
        device[count] = w->report.device_ns;
        pages[count] = w->report.pages_ns;
        cont[count] = w->report.cont_ns;
        pause[count] = w->report.pause_ns;
        ck_assert_uint_ge(w->report.pages_dirty, w->report.pages_early + w->report.pages_late);
        early += w->report.pages_early;
        late += w->report.pages_late;
    }
    printf("%u checkpoints, %s, pages early %" PRIu64 " late %" PRIu64 "\n", count, w->dirty ? "soft-dirty" : "comparing", early,
           late);
    print_split("stop", stop, count);
    print_split("device", device, count);
    print_split("pages", pages, count);
    print_split("cont", cont, count);
    print_split("pause", pause, count);
    ck_assert_uint_eq(w->report.seq, ROUNDS + 1);
    loop_for(&w->loop, 70); /* beats that are lost with QEMU */
    saved_vm_end(w);
    resume_from_save(w);
    printf("beat %" PRIu64 " before the kill, %" PRIu64 " after resuming\n", w->console.beat_at_mark,
           w->console.first_beat_after_mark);
    ck_assert_uint_le(w->console.first_beat_after_mark, w->console.beat_at_mark + 1);
    ck_assert_uint_ge(w->console.first_beat_after_mark + 10, w->console.beat_at_mark);
    loop_for(&w->loop, 2000); /* the witness looks at all pages over and over */
    ck_assert_msg(w->console.broken == 0, "%s", w->console.bad);
    ck_assert_uint_eq(w->console.gaps, 0);
    ck_assert_uint_eq(w->console.boots, 1);
    saved_vm_free(w);
}
END_TEST

/* Round 1: what it writes to is its disk. */
START_TEST(guest_that_never_stops_writing_is_never_saved_torn)
{
    /* It writes most of the time, so nearly every checkpoint has pages that change between their early copy and the pause. */
    static const char *const append[] = {"pages=600 interval_ms=5 hot=100", "pages=600 interval_ms=5 hot=100 pmem_mib=3"};
    struct saved_vm *w;

    disk_mib = _i ? 3 : 0;
    w = vm_new(mst_delta_capacity(RAM_BYTES), append[_i]);
    saved_vm_spawn(w, false);
    ck_assert(loop_until(&w->loop, saved_vm_has_beats, w, 30000));
    for (unsigned life = 0; life < 6; life++) {
        saved_vm_checkpoints(w);
        for (unsigned i = 0; i < 12; i++) {
            saved_vm_take(w, MST_CKPT_RUN_ON);
            ck_assert_msg(w->err == 0, "%s", w->why.text);
            loop_for(&w->loop, 7 + life);
        }
        saved_vm_end(w);
        resume_from_save(w);
        loop_for(&w->loop, 400);
        ck_assert_msg(w->console.broken == 0, "life %u: %s", life, w->console.bad);
        ck_assert_uint_eq(w->console.gaps, 0);
    }
    saved_vm_free(w);
    disk_mib = 0;
}
END_TEST

START_TEST(delta_too_small_for_the_dirty_pages_falls_back_to_a_whole_checkpoint)
{
    struct saved_vm *w = vm_new(8, append_many_pages);

    saved_vm_spawn(w, false);
    ck_assert(loop_until(&w->loop, saved_vm_has_beats, w, 30000));
    saved_vm_checkpoints(w);
    for (unsigned i = 0; i < 6; i++) {
        saved_vm_take(w, MST_CKPT_RUN_ON);
        ck_assert_msg(w->err == 0, "%s", w->why.text);
        ck_assert(w->report.whole == (i > 0));
        loop_for(&w->loop, 100);
    }
    saved_vm_end(w);
    resume_from_save(w);
    loop_for(&w->loop, 1500);
    ck_assert_msg(w->console.broken == 0, "%s", w->console.bad);
    ck_assert_uint_eq(w->console.gaps, 0);
    saved_vm_free(w);
}
END_TEST

START_TEST(held_guest_stands_until_it_is_resumed_and_loses_no_beat)
{
    struct saved_vm *w = vm_new(mst_delta_capacity(RAM_BYTES), append_many_pages);
    uint64_t beats;

    saved_vm_spawn(w, false);
    ck_assert(loop_until(&w->loop, saved_vm_has_beats, w, 30000));
    saved_vm_checkpoints(w);
    saved_vm_take(w, MST_CKPT_STAY);
    ck_assert_msg(w->err == 0, "%s", w->why.text);
    ck_assert(w->report.stands);
    loop_for(&w->loop, 50);
    beats = w->console.beats;
    loop_for(&w->loop, 400);
    ck_assert_uint_eq(w->console.beats, beats);
    ck_assert_int_eq(mst_ckpt_take(w->ckpt, MST_CKPT_RUN_ON), -EBUSY);
    w->done = false;
    ck_assert_int_eq(mst_ckpt_resume(w->ckpt), 0);
    ck_assert(loop_until(&w->loop, saved_vm_is_done, w, 10000));
    ck_assert_msg(w->err == 0, "%s", w->why.text);
    loop_for(&w->loop, 500);
    ck_assert_uint_gt(w->console.beats, beats);
    ck_assert_uint_eq(w->console.gaps, 0);
    saved_vm_take(w, MST_CKPT_RUN_ON);
    ck_assert_msg(w->err == 0, "%s", w->why.text);
    saved_vm_free(w);
}
END_TEST

static bool stands(void *arg)
{
    return ((struct saved_vm *)arg)->stands_seq != 0;
}

START_TEST(a_guest_stands_and_nothing_is_committed_until_its_output_is_marked)
{
    struct saved_vm *w = vm_new(mst_delta_capacity(RAM_BYTES), append_many_pages);
    uint64_t seq, beats;

    saved_vm_spawn(w, false);
    ck_assert(loop_until(&w->loop, saved_vm_has_beats, w, 30000));
    saved_vm_checkpoints(w);
    saved_vm_take(w, MST_CKPT_RUN_ON);
    ck_assert_msg(w->err == 0, "%s", w->why.text);
    seq = w->report.seq;
    w->marks = 1;
    w->done = false;
    w->stands_seq = 0;
    ck_assert_int_eq(mst_ckpt_take(w->ckpt, MST_CKPT_RUN_ON), 0);
    ck_assert(loop_until(&w->loop, stands, w, 20000));
    ck_assert_uint_eq(w->stands_seq, seq + 1);
    loop_for(&w->loop, 50);
    beats = w->console.beats;
    loop_for(&w->loop, 500);
    ck_assert(!w->done);
    ck_assert_uint_eq(w->console.beats, beats);
    ck_assert_uint_eq(mst_save_seq(w->writer), seq);
    mst_ckpt_marked(w->ckpt);
    ck_assert(loop_until(&w->loop, saved_vm_is_done, w, 20000));
    ck_assert_msg(w->err == 0, "%s", w->why.text);
    ck_assert_uint_eq(w->report.seq, seq + 1);
    mst_ckpt_marked(w->ckpt); /* once more: nothing */
    loop_for(&w->loop, 500);
    ck_assert_uint_gt(w->console.beats, beats);
    w->marks = -ENOTCONN; /* it cannot be marked: not committed, and the guest runs */
    saved_vm_take(w, MST_CKPT_RUN_ON);
    ck_assert_int_eq(w->err, -EIO);
    ck_assert(!w->report.stands);
    ck_assert_uint_eq(mst_save_seq(w->writer), seq + 1);
    saved_vm_free(w);
}
END_TEST

static bool has_panicked(void *arg)
{
    return ((struct saved_vm *)arg)->panics > 0;
}

START_TEST(panicked_guest_is_not_saved_over_its_last_good_checkpoint)
{
    struct saved_vm *w = vm_new(mst_delta_capacity(RAM_BYTES), "pages=64 interval_ms=50 hot=8 panic_at=20");
    uint64_t seq;

    saved_vm_spawn(w, false);
    ck_assert(loop_until(&w->loop, saved_vm_has_beats, w, 30000));
    saved_vm_checkpoints(w);
    saved_vm_take(w, MST_CKPT_RUN_ON);
    ck_assert_msg(w->err == 0, "%s", w->why.text);
    seq = w->report.seq;
    ck_assert(loop_until(&w->loop, has_panicked, w, 20000));
    ck_assert_int_eq(mst_ckpt_take(w->ckpt, MST_CKPT_RUN_ON), -ECANCELED);
    ck_assert_uint_eq(mst_save_seq(w->writer), seq);
    saved_vm_end(w);
    resume_from_save(w);
    ck_assert_uint_lt(w->console.first_beat_after_mark, 20);
    saved_vm_free(w);
}
END_TEST

/* The same guest with the same pages written, with more and more memory that it does not write: what the pause has of that. */
START_TEST(pause_by_size_of_memory)
{
    static const unsigned sizes_mib[] = {16, 128, 1024};
    static uint64_t device[ROUNDS], pages[ROUNDS], pause[ROUNDS], early[ROUNDS];

    for (unsigned s = 0; s < sizeof(sizes_mib) / sizeof(sizes_mib[0]); s++) {
        uint64_t copied = 0;
        struct saved_vm *w;

        memory_mib = sizes_mib[s];
        w = vm_new(mst_delta_capacity(RAM_BYTES), append_many_pages);
        memset((void *)(uintptr_t)w->map.ram, 0, RAM_BYTES); /* as if locked: all of it is there */
        saved_vm_spawn(w, false);
        ck_assert_msg(loop_until(&w->loop, saved_vm_has_beats, w, 30000), "no beats");
        saved_vm_checkpoints(w);
        saved_vm_take(w, MST_CKPT_RUN_ON);
        ck_assert_msg(w->err == 0, "%s", w->why.text);
        for (unsigned i = 0; i < ROUNDS; i++) {
            loop_for(&w->loop, 100);
            saved_vm_take(w, MST_CKPT_RUN_ON);
            ck_assert_msg(w->err == 0 && !w->report.whole, "%s", w->why.text);
            device[i] = w->report.device_ns;
            pages[i] = w->report.pages_ns;
            pause[i] = w->report.pause_ns;
            early[i] = w->report.early_ns;
            copied += w->report.pages_early + w->report.pages_late;
        }
        printf("%u MiB, %s, %" PRIu64 " pages a checkpoint\n", memory_mib, w->dirty ? "soft-dirty" : "comparing",
               copied / ROUNDS);
        print_split("early", early, ROUNDS);
        print_split("device", device, ROUNDS);
        print_split("pages", pages, ROUNDS);
        print_split("pause", pause, ROUNDS);
        saved_vm_free(w);
    }
}
END_TEST

static const char *const disk_words[] = {"no disk", "raw, read only", "qcow2, read only", "64 MiB of main storage"};

/* The same guest, which reads a sector of its disk or writes its pages there: what a disk costs the pause. */
START_TEST(pause_by_kind_of_disk)
{
    static const char *const append[] = {"pages=512 interval_ms=50 hot=40", "pages=512 interval_ms=50 hot=40 read_disk=1",
                                         "pages=512 interval_ms=50 hot=40 read_disk=1",
                                         "pages=512 interval_ms=50 hot=40 pmem_mib=64"};
    static uint64_t stop[ROUNDS], device[ROUNDS], pages[ROUNDS], cont[ROUNDS], pause[ROUNDS];
    Mainstay__VmDisk file = MAINSTAY__VM_DISK__INIT;
    char path[64], command[300];
    struct saved_vm *w;

    snprintf(path, sizeof(path), "/var/tmp/mst-bench-disk-%d", (int)getpid());
    for (unsigned k = 0; k < 4; k++) {
        if (k == 1 || k == 2) {
            snprintf(command, sizeof(command), "qemu-img create -q -f %s %s 64M", k == 1 ? "raw" : "qcow2", path);
            ck_assert_int_eq(system(command), 0);
            file.path = path;
            file.has_format = 1;
            file.format = k == 1 ? MAINSTAY__DISK_FORMAT__DISK_RAW : MAINSTAY__DISK_FORMAT__DISK_QCOW2;
        }
        disk = k == 1 || k == 2 ? &file : NULL;
        disk_mib = k == 3 ? 64 : 0;
        w = vm_new(mst_delta_capacity(RAM_BYTES), append[k]);
        memset((void *)(uintptr_t)w->map.ram, 0, RAM_BYTES);
        saved_vm_spawn(w, false);
        ck_assert_msg(loop_until(&w->loop, saved_vm_has_beats, w, 30000), "no beats");
        saved_vm_checkpoints(w);
        saved_vm_take(w, MST_CKPT_RUN_ON);
        ck_assert_msg(w->err == 0, "%s", w->why.text);
        for (unsigned i = 0; i < ROUNDS; i++) {
            loop_for(&w->loop, 100);
            saved_vm_take(w, MST_CKPT_RUN_ON);
            ck_assert_msg(w->err == 0 && !w->report.whole, "%s", w->why.text);
            stop[i] = w->report.stop_ns;
            device[i] = w->report.device_ns;
            pages[i] = w->report.pages_ns;
            cont[i] = w->report.cont_ns;
            pause[i] = w->report.pause_ns;
        }
        printf("%s, %s\n", disk_words[k], w->dirty ? "soft-dirty" : "comparing");
        print_split("stop", stop, ROUNDS);
        print_split("device", device, ROUNDS);
        print_split("pages", pages, ROUNDS);
        print_split("cont", cont, ROUNDS);
        print_split("pause", pause, ROUNDS);
        saved_vm_free(w);
        unlink(path);
    }
}
END_TEST

static long status_kib(pid_t pid, const char *key)
{
    char path[64], line[200];
    long kib = -1;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    file = fopen(path, "r");
    ck_assert_ptr_nonnull(file);
    while (fgets(line, sizeof(line), file))
        if (strncmp(line, key, strlen(key)) == 0)
            sscanf(line + strlen(key), ": %ld", &kib);
    fclose(file);
    return kib;
}

static long blocks_of(const char *path)
{
    struct stat st;

    ck_assert_int_eq(stat(path, &st), 0);
    return (long)st.st_blocks;
}

/* What decisions/0011 leans on: it may wait over any memory, and what came there meanwhile is what it resumes from. Round 1: with a disk in it. */
START_TEST(qemu_that_waits_writes_nothing_and_goes_on_from_what_was_put_under_it)
{
    static const char *const append[] = {"pages=512 interval_ms=50 hot=40", "pages=512 interval_ms=50 hot=40 pmem_mib=3"};
    static uint8_t stream[MST_DEVICE_BYTES_MAX];
    struct saved_vm *w;
    uint64_t bytes, start_ns;

    disk_mib = _i ? 3 : 0;
    w = vm_new(mst_delta_capacity(RAM_BYTES), append[_i]);
    saved_vm_spawn(w, false);
    ck_assert_msg(loop_until(&w->loop, saved_vm_has_beats, w, 30000), "no beats");
    saved_vm_checkpoints(w);
    saved_vm_take(w, MST_CKPT_RUN_ON);
    loop_for(&w->loop, 300);
    saved_vm_take(w, MST_CKPT_STAY);
    ck_assert_msg(w->err == 0 && !w->report.whole, "%s", w->why.text);
    saved_vm_end(w);
    saved_vm_new_ram(w);
    guest_mark(&w->console);
    start_ns = mst_now_ns();
    saved_vm_spawn(w, true);
    printf("start %.1f ms", (double)(mst_now_ns() - start_ns) / 1e6);
    loop_for(&w->loop, 1500); /* whatever it may be about to do */
    ck_assert_int_eq(blocks_of(w->ram_path), 0);
    ck_assert_int_eq(_i ? blocks_of(w->disk_path) : 0, 0);
    ck_assert_uint_eq(w->console.first_beat_after_mark, 0);
    printf(", waiting: %ld KiB resident, %ld of them its own\n", status_kib(w->guest.pid, "VmRSS"),
           status_kib(w->guest.pid, "RssAnon"));

    saved_vm_fill(w, stream, &bytes); /* under it */
    saved_vm_load(w, stream, bytes);
    loop_for(&w->loop, 500);
    ck_assert_uint_eq(w->console.first_beat_after_mark, 0); /* nor does it run because it is loaded */
    saved_vm_cont(w);
    ck_assert_msg(loop_until(&w->loop, saved_vm_has_beat_after_mark, w, 20000), "no beat after resuming");
    ck_assert_uint_le(w->console.first_beat_after_mark, w->console.beat_at_mark + 1);
    loop_for(&w->loop, 1500); /* it looks at all of its pages */
    ck_assert_msg(w->console.broken == 0, "%s", w->console.bad);
    saved_vm_free(w);
    disk_mib = 0;
}
END_TEST

/* bench: measure instead. */
int main(int argc, char **argv)
{
    Suite *suite = suite_create("checkpoint with QEMU");
    TCase *tcase = tcase_create("qemu");
    SRunner *runner = srunner_create(suite);
    int failed;

    if (argc == 2 && strcmp(argv[1], "bench") == 0) {
        tcase_set_timeout(tcase, 600);
        tcase_add_test(tcase, pause_by_size_of_memory);
        tcase_add_test(tcase, pause_by_kind_of_disk);
        suite_add_tcase(suite, tcase);
        srunner_run_all(runner, CK_NORMAL);
        failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed ? 1 : 0;
    }
    tcase_set_timeout(tcase, 100);
    tcase_add_test(tcase, killed_guest_goes_on_from_its_last_checkpoint_with_its_memory_intact);
    tcase_add_loop_test(tcase, guest_that_never_stops_writing_is_never_saved_torn, 0, 2);
    tcase_add_test(tcase, delta_too_small_for_the_dirty_pages_falls_back_to_a_whole_checkpoint);
    tcase_add_test(tcase, held_guest_stands_until_it_is_resumed_and_loses_no_beat);
    tcase_add_test(tcase, a_guest_stands_and_nothing_is_committed_until_its_output_is_marked);
    tcase_add_test(tcase, panicked_guest_is_not_saved_over_its_last_good_checkpoint);
    tcase_add_loop_test(tcase, qemu_that_waits_writes_nothing_and_goes_on_from_what_was_put_under_it, 0, 2);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
