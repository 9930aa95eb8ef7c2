/* Checkpoints of a real guest in a real QEMU (TCG): taken while it beats, QEMU killed, resumed from shadow and delta in a new QEMU. */

#include "base/clock.h"
#include "base/file.h"
#include "node/agent/checkpoint.h"
#include "node/agent/load.h"
#include "node/agent/qemu_args.h"
#include "node/agent/resume.h"
#include "tests/lib/guest.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static unsigned memory_mib = 16;
#define RAM_BYTES ((uint64_t)memory_mib << 20)

static const char *const append_many_pages = "pages=512 interval_ms=50 hot=40";

struct world {
    uv_loop_t loop;
    char dir[128];
    Mainstay__VmDefinition definition;
    struct mst_save_map map;
    struct mst_save_layout save_layout;
    struct mst_delta_layout delta_layout;
    uint8_t record[2][MST_PUB_SLOT_BYTES];
    int ram_fd;
    char ram_path[160];
    struct guest guest;
    struct guest_console console;
    struct mst_qmp *qmp;
    bool qmp_ready, qmp_closed;
    struct mst_save_writer *writer;
    struct mst_dirty *dirty;
    struct mst_ckpt *ckpt;
    struct mst_load *load;
    /* of the last thing waited for */
    bool done;
    int err;
    struct mst_why why;
    struct mst_ckpt_report report;
    unsigned panics;
    int marks; /* what on_stands says */
    uint64_t stands_seq;
};

static uint8_t *map_new(const char *path, size_t bytes, int *ret_fd)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    uint8_t *data;

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(ftruncate(fd, (off_t)bytes), 0);
    data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    ck_assert_ptr_ne(data, MAP_FAILED);
    if (ret_fd)
        *ret_fd = fd;
    else
        close(fd);
    return data;
}

static struct world *world_new(uint32_t delta_capacity, const char *append)
{
    struct world *w = calloc(1, sizeof(*w));
    char path[200];

    ck_assert_ptr_nonnull(w);
    uv_loop_init(&w->loop);
    snprintf(w->dir, sizeof(w->dir), "/dev/shm/mst-test-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(w->dir));
    mainstay__vm_definition__init(&w->definition);
    w->definition.name = "probe";
    w->definition.memory_mib = memory_mib;
    w->definition.boot_kernel = MST_TEST_WITNESS;
    w->definition.boot_append = (char *)(uintptr_t)append;
    ck_assert_int_eq(mst_save_layout(RAM_BYTES, &w->save_layout), 0);
    ck_assert_int_eq(mst_delta_layout(delta_capacity, &w->delta_layout), 0);
    snprintf(w->ram_path, sizeof(w->ram_path), "%s/ram", w->dir);
    w->map.ram_bytes = RAM_BYTES;
    w->map.ram = map_new(w->ram_path, RAM_BYTES, &w->ram_fd);
    snprintf(path, sizeof(path), "%s/save", w->dir);
    w->map.save = map_new(path, w->save_layout.bytes, NULL);
    snprintf(path, sizeof(path), "%s/shadow", w->dir);
    w->map.shadow = map_new(path, RAM_BYTES, NULL);
    snprintf(path, sizeof(path), "%s/delta", w->dir);
    w->map.delta = map_new(path, w->delta_layout.bytes, NULL);
    w->map.delta_capacity = delta_capacity;
    w->map.record = w->record;
    w->map.epoch = 1;
    w->map.instance = 7;
    return w;
}

static void on_ready(struct mst_qmp *qmp, void *arg)
{
    (void)qmp;
    ((struct world *)arg)->qmp_ready = true;
}

static void on_event(struct mst_qmp *qmp, const char *name, const json_t *data, void *arg)
{
    struct world *w = arg;

    (void)qmp;
    if (strcmp(name, "GUEST_PANICKED") == 0)
        w->panics++;
    if (w->ckpt)
        mst_ckpt_event(w->ckpt, name, data);
    if (w->load)
        mst_load_event(w->load, name, data);
}

static void on_closed(struct mst_qmp *qmp, int err, const struct mst_why *why, void *arg)
{
    (void)qmp;
    (void)err;
    (void)why;
    ((struct world *)arg)->qmp_closed = true;
}

static const struct mst_qmp_events qmp_events = {on_ready, on_event, on_closed};

static bool is_done(void *arg)
{
    return ((struct world *)arg)->done;
}

static bool is_ready(void *arg)
{
    return ((struct world *)arg)->qmp_ready;
}

static void on_reply(struct mst_qmp *qmp, int err, const json_t *ret, const struct mst_why *why, void *arg)
{
    struct world *w = arg;

    (void)qmp;
    (void)ret;
    w->done = true;
    w->err = err;
    w->why = *why;
}

static void ask(struct world *w, const char *command, json_t *arguments)
{
    w->done = false;
    ck_assert_int_eq(mst_qmp_execute(w->qmp, command, arguments, -1, 10000, on_reply, w), 0);
    ck_assert(loop_until(&w->loop, is_done, w, 20000));
    ck_assert_msg(w->err == 0, "%s: %s", command, w->why.text);
}

static bool try_connect(void *arg)
{
    struct world *w = arg;
    char path[200];

    ck_assert_msg(!guest_gone(&w->guest), "QEMU ended: see %s/qemu.log", w->dir);
    snprintf(path, sizeof(path), "%s/qmp.sock", w->dir);
    return mst_qmp_connect(&w->loop, path, 20000, &qmp_events, w, &w->qmp) == 0;
}

static void vm_spawn(struct world *w, bool incoming)
{
    struct mst_qemu_where where = {
        .qemu = "qemu-system-x86_64", .accel = "tcg", .vm_dir = w->dir, .ram_path = w->ram_path, .incoming = incoming};
    struct mst_why why;
    char log_path[200], **argv;

    snprintf(log_path, sizeof(log_path), "%s/qemu.log", w->dir);
    ck_assert_int_eq(mst_qemu_args(&w->definition, "probe", &where, &argv, &why), 0);
    ck_assert_int_eq(guest_spawn(&w->guest, &w->loop, argv, log_path, &w->console), 0);
    mst_qemu_args_free(argv);
    w->qmp_ready = w->qmp_closed = false;
    ck_assert(loop_until(&w->loop, try_connect, w, 20000));
    ck_assert(loop_until(&w->loop, is_ready, w, 20000));
    ask(w, "migrate-set-capabilities",
        json_pack("{s:[{s:s,s:b},{s:s,s:b}]}", "capabilities", "capability", "x-ignore-shared", "state", 1, "capability",
                  "events", "state", 1));
    ask(w, "migrate-set-parameters", json_pack("{s:I}", "max-bandwidth", (json_int_t)1 << 40));
}

static void on_ckpt(struct mst_ckpt *ckpt, int err, const struct mst_ckpt_report *report, const struct mst_why *why, void *arg)
{
    struct world *w = arg;

    (void)ckpt;
    w->done = true;
    w->err = err;
    w->why = *why;
    w->report = *report;
}

static void on_silent(struct mst_ckpt *ckpt, const struct mst_why *why, void *arg)
{
    (void)ckpt;
    (void)why;
    (void)arg;
}

static int on_stands(struct mst_ckpt *ckpt, uint64_t seq, void *arg)
{
    struct world *w = arg;

    (void)ckpt;
    w->stands_seq = seq;
    return w->marks;
}

static const struct mst_ckpt_events ckpt_events = {on_ckpt, on_silent, NULL, on_stands};

static void ckpt_new(struct world *w)
{
    struct mst_ckpt_conf conf = {.loop = &w->loop, .qmp = w->qmp, .map = &w->map, .silent_ms = MST_QMP_SILENT_MS};
    struct mst_why why;

    if (mst_dirty_probe(&why) == 0)
        ck_assert_msg(mst_dirty_open(w->guest.pid, w->ram_fd, RAM_BYTES, &w->dirty, &why) == 0, "%s", why.text);
    ck_assert_int_eq(mst_save_writer_new(&w->map, &w->writer), 0);
    conf.writer = w->writer;
    conf.dirty = w->dirty;
    ck_assert_int_eq(mst_ckpt_new(&conf, &ckpt_events, w, &w->ckpt), 0);
}

static void on_freed(void *arg)
{
    ((struct world *)arg)->done = true;
}

static void vm_end(struct world *w)
{
    guest_kill(&w->guest);
    if (w->ckpt) {
        w->done = false;
        mst_ckpt_free(w->ckpt, on_freed, w);
        w->ckpt = NULL;
        ck_assert(loop_until(&w->loop, is_done, w, 10000));
    }
    mst_save_writer_free(w->writer);
    w->writer = NULL;
    mst_dirty_close(w->dirty);
    w->dirty = NULL;
    mst_qmp_close(w->qmp);
    w->qmp = NULL;
}

static void take(struct world *w, enum mst_ckpt_mode mode)
{
    w->done = false;
    ck_assert_int_eq(mst_ckpt_take(w->ckpt, mode), 0);
    ck_assert(loop_until(&w->loop, is_done, w, 20000));
}

static bool has_beats(void *arg)
{
    return ((struct world *)arg)->console.beats >= 5;
}

static bool has_beat_after_mark(void *arg)
{
    return ((struct world *)arg)->console.first_beat_after_mark != 0;
}

/* RAM as the newest record has it, put into the RAM file; the stream into ret_stream. As a keeper does after a pull. */
static void rebuild(struct world *w, uint8_t *ret_stream, uint64_t *ret_bytes)
{
    uint8_t *ram = (uint8_t *)(uintptr_t)w->map.ram;
    struct mst_save_record record;
    struct mst_pub_head head;
    struct mst_why why = {""};

    ck_assert_int_eq(mst_pub_read(w->record, &head, &record, sizeof(record)), 0);
    ck_assert_msg(mst_save_record_check(&record, RAM_BYTES, w->map.delta_capacity, &why) == 0, "%s", why.text);
    if (record.source == MST_SAVE_SHADOW) {
        const struct mst_delta_entry *table = (const void *)(w->map.delta + w->delta_layout.table_off);

        memcpy(ram, w->map.shadow, RAM_BYTES);
        ck_assert_msg(mst_delta_table_check(&record, table, &why) == 0, "%s", why.text);
        ck_assert_msg(mst_delta_overlay(&record, table, w->map.delta + w->delta_layout.data_off, ram, &why) == 0, "%s", why.text);
    }
    memcpy(ret_stream, w->map.save + w->save_layout.device_off[record.device_slot], record.device_bytes);
    ck_assert_uint_eq(mst_crc32c(ret_stream, record.device_bytes), record.device_crc32c);
    *ret_bytes = record.device_bytes;
}

static void on_end(int err, const struct mst_why *why, void *arg)
{
    struct world *w = arg;

    w->done = true;
    w->err = err;
    w->why = *why;
    w->load = NULL;
}

static void resume_from_save(struct world *w)
{
    static uint8_t stream[MST_DEVICE_BYTES_MAX];
    struct mst_resume *resume;
    uint64_t bytes, start_ns;

    rebuild(w, stream, &bytes);
    guest_mark(&w->console);
    vm_spawn(w, true);
    w->done = false;
    start_ns = mst_now_ns();
    ck_assert_int_eq(mst_load_start(&w->loop, w->qmp, stream, bytes, 20000, on_end, w, &w->load), 0);
    ck_assert(loop_until(&w->loop, is_done, w, 30000));
    ck_assert_msg(w->err == 0, "load: %s", w->why.text);
    w->done = false;
    ck_assert_int_eq(mst_resume_start(&w->loop, w->qmp, MST_RESUME_FAST, 10000, on_end, w, &resume), 0);
    ck_assert(loop_until(&w->loop, is_done, w, 30000));
    ck_assert_msg(w->err == 0, "cont: %s", w->why.text);
    printf("load to running %.1f ms, %" PRIu64 " bytes of device state\n", (double)(mst_now_ns() - start_ns) / 1e6, bytes);
    ck_assert_msg(loop_until(&w->loop, has_beat_after_mark, w, 20000), "no beat after resuming");
}

static void world_free(struct world *w)
{
    char command[200];

    vm_end(w);
    uv_run(&w->loop, UV_RUN_DEFAULT);
    ck_assert_int_eq(uv_loop_close(&w->loop), 0);
    munmap((void *)(uintptr_t)w->map.ram, RAM_BYTES);
    munmap(w->map.save, w->save_layout.bytes);
    munmap(w->map.shadow, RAM_BYTES);
    munmap(w->map.delta, w->delta_layout.bytes);
    close(w->ram_fd);
    snprintf(command, sizeof(command), "rm -rf %s", w->dir);
    ck_assert_int_eq(system(command), 0);
    free(w);
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
    struct world *w = world_new(mst_delta_capacity(RAM_BYTES), append_many_pages);
    static uint64_t stop[ROUNDS], device[ROUNDS], pages[ROUNDS], cont[ROUNDS], pause[ROUNDS];
    uint64_t early = 0, late = 0;
    unsigned count = 0;

    vm_spawn(w, false);
    ck_assert_msg(loop_until(&w->loop, has_beats, w, 30000), "no beats");
    ck_assert_uint_eq(w->console.boots, 1);
    ckpt_new(w);
    take(w, MST_CKPT_RUN_ON);
    ck_assert_msg(w->err == 0, "%s", w->why.text);
    ck_assert(w->report.first && !w->report.whole);
    printf("first: pause %.1f ms, marking %.1f ms, pages %.1f ms, %" PRIu64 " late pages\n", (double)w->report.pause_ns / 1e6,
           (double)w->report.mark_ns / 1e6, (double)w->report.pages_ns / 1e6, w->report.pages_late);
    for (; count < ROUNDS; count++) {
        loop_for(&w->loop, 100);
        take(w, MST_CKPT_RUN_ON);
        ck_assert_msg(w->err == 0, "%s", w->why.text);
        ck_assert(!w->report.whole);
        stop[count] = w->report.stop_ns;
        device[count] = w->report.device_ns;
        pages[count] = w->report.pages_ns;
        cont[count] = w->report.cont_ns;
        pause[count] = w->report.pause_ns;
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
    vm_end(w);
    resume_from_save(w);
    printf("beat %" PRIu64 " before the kill, %" PRIu64 " after resuming\n", w->console.beat_at_mark,
           w->console.first_beat_after_mark);
    ck_assert_uint_le(w->console.first_beat_after_mark, w->console.beat_at_mark + 1);
    ck_assert_uint_ge(w->console.first_beat_after_mark + 10, w->console.beat_at_mark);
    loop_for(&w->loop, 2000); /* the witness looks at all pages over and over */
    ck_assert_msg(w->console.broken == 0, "%s", w->console.bad);
    ck_assert_uint_eq(w->console.gaps, 0);
    ck_assert_uint_eq(w->console.boots, 1);
    world_free(w);
}
END_TEST

START_TEST(guest_that_never_stops_writing_is_never_saved_torn)
{
    /* It writes most of the time, so nearly every checkpoint has pages that change between their early copy and the pause. */
    struct world *w = world_new(mst_delta_capacity(RAM_BYTES), "pages=600 interval_ms=5 hot=100");

    vm_spawn(w, false);
    ck_assert(loop_until(&w->loop, has_beats, w, 30000));
    for (unsigned life = 0; life < 6; life++) {
        ckpt_new(w);
        for (unsigned i = 0; i < 12; i++) {
            take(w, MST_CKPT_RUN_ON);
            ck_assert_msg(w->err == 0, "%s", w->why.text);
            loop_for(&w->loop, 7 + life);
        }
        vm_end(w);
        resume_from_save(w);
        loop_for(&w->loop, 400);
        ck_assert_msg(w->console.broken == 0, "life %u: %s", life, w->console.bad);
        ck_assert_uint_eq(w->console.gaps, 0);
    }
    world_free(w);
}
END_TEST

START_TEST(delta_too_small_for_the_dirty_pages_falls_back_to_a_whole_checkpoint)
{
    struct world *w = world_new(8, append_many_pages);

    vm_spawn(w, false);
    ck_assert(loop_until(&w->loop, has_beats, w, 30000));
    ckpt_new(w);
    for (unsigned i = 0; i < 6; i++) {
        take(w, MST_CKPT_RUN_ON);
        ck_assert_msg(w->err == 0, "%s", w->why.text);
        ck_assert(w->report.whole == (i > 0));
        loop_for(&w->loop, 100);
    }
    vm_end(w);
    resume_from_save(w);
    loop_for(&w->loop, 1500);
    ck_assert_msg(w->console.broken == 0, "%s", w->console.bad);
    ck_assert_uint_eq(w->console.gaps, 0);
    world_free(w);
}
END_TEST

START_TEST(held_guest_stands_until_it_is_resumed_and_loses_no_beat)
{
    struct world *w = world_new(mst_delta_capacity(RAM_BYTES), append_many_pages);
    uint64_t beats;

    vm_spawn(w, false);
    ck_assert(loop_until(&w->loop, has_beats, w, 30000));
    ckpt_new(w);
    take(w, MST_CKPT_STAY);
    ck_assert_msg(w->err == 0, "%s", w->why.text);
    ck_assert(w->report.stands);
    loop_for(&w->loop, 50);
    beats = w->console.beats;
    loop_for(&w->loop, 400);
    ck_assert_uint_eq(w->console.beats, beats);
    ck_assert_int_eq(mst_ckpt_take(w->ckpt, MST_CKPT_RUN_ON), -EBUSY);
    w->done = false;
    ck_assert_int_eq(mst_ckpt_resume(w->ckpt), 0);
    ck_assert(loop_until(&w->loop, is_done, w, 10000));
    ck_assert_msg(w->err == 0, "%s", w->why.text);
    loop_for(&w->loop, 500);
    ck_assert_uint_gt(w->console.beats, beats);
    ck_assert_uint_eq(w->console.gaps, 0);
    take(w, MST_CKPT_RUN_ON);
    ck_assert_msg(w->err == 0, "%s", w->why.text);
    world_free(w);
}
END_TEST

static bool stands(void *arg)
{
    return ((struct world *)arg)->stands_seq != 0;
}

START_TEST(a_guest_stands_and_nothing_is_committed_until_its_output_is_marked)
{
    struct world *w = world_new(mst_delta_capacity(RAM_BYTES), append_many_pages);
    uint64_t seq, beats;

    vm_spawn(w, false);
    ck_assert(loop_until(&w->loop, has_beats, w, 30000));
    ckpt_new(w);
    take(w, MST_CKPT_RUN_ON);
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
    ck_assert(loop_until(&w->loop, is_done, w, 20000));
    ck_assert_msg(w->err == 0, "%s", w->why.text);
    ck_assert_uint_eq(w->report.seq, seq + 1);
    mst_ckpt_marked(w->ckpt); /* once more: nothing */
    loop_for(&w->loop, 500);
    ck_assert_uint_gt(w->console.beats, beats);
    w->marks = -ENOTCONN; /* it cannot be marked: not committed, and the guest runs */
    take(w, MST_CKPT_RUN_ON);
    ck_assert_int_eq(w->err, -EIO);
    ck_assert(!w->report.stands);
    ck_assert_uint_eq(mst_save_seq(w->writer), seq + 1);
    world_free(w);
}
END_TEST

static bool has_panicked(void *arg)
{
    return ((struct world *)arg)->panics > 0;
}

START_TEST(panicked_guest_is_not_saved_over_its_last_good_checkpoint)
{
    struct world *w = world_new(mst_delta_capacity(RAM_BYTES), "pages=64 interval_ms=50 hot=8 panic_at=20");
    uint64_t seq;

    vm_spawn(w, false);
    ck_assert(loop_until(&w->loop, has_beats, w, 30000));
    ckpt_new(w);
    take(w, MST_CKPT_RUN_ON);
    ck_assert_msg(w->err == 0, "%s", w->why.text);
    seq = w->report.seq;
    ck_assert(loop_until(&w->loop, has_panicked, w, 20000));
    ck_assert_int_eq(mst_ckpt_take(w->ckpt, MST_CKPT_RUN_ON), -ECANCELED);
    ck_assert_uint_eq(mst_save_seq(w->writer), seq);
    vm_end(w);
    resume_from_save(w);
    ck_assert_uint_lt(w->console.first_beat_after_mark, 20);
    world_free(w);
}
END_TEST

/* The same guest with the same pages written, with more and more memory that it does not write: what the pause has of that. */
START_TEST(pause_by_size_of_memory)
{
    static const unsigned sizes_mib[] = {16, 128, 1024};
    static uint64_t device[ROUNDS], pages[ROUNDS], pause[ROUNDS], early[ROUNDS];

    for (unsigned s = 0; s < sizeof(sizes_mib) / sizeof(sizes_mib[0]); s++) {
        uint64_t copied = 0;
        struct world *w;

        memory_mib = sizes_mib[s];
        w = world_new(mst_delta_capacity(RAM_BYTES), append_many_pages);
        memset((void *)(uintptr_t)w->map.ram, 0, RAM_BYTES); /* as if locked: all of it is there */
        vm_spawn(w, false);
        ck_assert_msg(loop_until(&w->loop, has_beats, w, 30000), "no beats");
        ckpt_new(w);
        take(w, MST_CKPT_RUN_ON);
        ck_assert_msg(w->err == 0, "%s", w->why.text);
        for (unsigned i = 0; i < ROUNDS; i++) {
            loop_for(&w->loop, 100);
            take(w, MST_CKPT_RUN_ON);
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
        world_free(w);
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

/* What decisions/0011 leans on: it may wait over any memory, and what came there meanwhile is what it resumes from. */
START_TEST(qemu_that_waits_writes_nothing_and_goes_on_from_what_was_put_under_it)
{
    static uint8_t stream[MST_DEVICE_BYTES_MAX];
    struct world *w = world_new(1024, append_many_pages);
    struct mst_resume *resume;
    uint64_t bytes, start_ns, spawned_ns;
    struct stat st;

    vm_spawn(w, false);
    ck_assert_msg(loop_until(&w->loop, has_beats, w, 30000), "no beats");
    ckpt_new(w);
    take(w, MST_CKPT_RUN_ON);
    loop_for(&w->loop, 300);
    take(w, MST_CKPT_STAY);
    ck_assert_msg(w->err == 0 && !w->report.whole, "%s", w->why.text);
    vm_end(w);
    ck_assert_int_eq(unlink(w->ram_path), 0); /* the old file goes; the one that waits has another, without a page */
    munmap((void *)(uintptr_t)w->map.ram, RAM_BYTES);
    w->map.ram = map_new(w->ram_path, RAM_BYTES, NULL);
    guest_mark(&w->console);
    start_ns = mst_now_ns();
    vm_spawn(w, true);
    spawned_ns = mst_now_ns();
    ask(w, "query-status", NULL);
    loop_for(&w->loop, 1500); /* whatever it may be about to do */
    ck_assert_int_eq(stat(w->ram_path, &st), 0);
    ck_assert_int_eq(st.st_blocks, 0);
    ck_assert_uint_eq(w->console.first_beat_after_mark, 0);
    printf("start %.1f ms, waiting: %ld KiB resident, %ld of them its own\n", (double)(spawned_ns - start_ns) / 1e6,
           status_kib(w->guest.pid, "VmRSS"), status_kib(w->guest.pid, "RssAnon"));

    start_ns = mst_now_ns();
    rebuild(w, stream, &bytes); /* under it */
    w->done = false;
    ck_assert_int_eq(mst_load_start(&w->loop, w->qmp, stream, bytes, 20000, on_end, w, &w->load), 0);
    ck_assert(loop_until(&w->loop, is_done, w, 30000));
    ck_assert_msg(w->err == 0, "load: %s", w->why.text);
    loop_for(&w->loop, 500);
    ck_assert_uint_eq(w->console.first_beat_after_mark, 0); /* nor does it run because it is loaded */
    w->done = false;
    ck_assert_int_eq(mst_resume_start(&w->loop, w->qmp, MST_RESUME_FAST, 10000, on_end, w, &resume), 0);
    ck_assert(loop_until(&w->loop, is_done, w, 30000));
    ck_assert_msg(w->err == 0, "cont: %s", w->why.text);
    ck_assert_msg(loop_until(&w->loop, has_beat_after_mark, w, 20000), "no beat after resuming");
    ck_assert_uint_le(w->console.first_beat_after_mark, w->console.beat_at_mark + 1);
    ck_assert_uint_eq(w->console.broken, 0);
    world_free(w);
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
        suite_add_tcase(suite, tcase);
        srunner_run_all(runner, CK_NORMAL);
        failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed ? 1 : 0;
    }
    tcase_set_timeout(tcase, 100);
    tcase_add_test(tcase, killed_guest_goes_on_from_its_last_checkpoint_with_its_memory_intact);
    tcase_add_test(tcase, guest_that_never_stops_writing_is_never_saved_torn);
    tcase_add_test(tcase, delta_too_small_for_the_dirty_pages_falls_back_to_a_whole_checkpoint);
    tcase_add_test(tcase, held_guest_stands_until_it_is_resumed_and_loses_no_beat);
    tcase_add_test(tcase, a_guest_stands_and_nothing_is_committed_until_its_output_is_marked);
    tcase_add_test(tcase, panicked_guest_is_not_saved_over_its_last_good_checkpoint);
    tcase_add_test(tcase, qemu_that_waits_writes_nothing_and_goes_on_from_what_was_put_under_it);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
