/* pauses --memory-mib M --dirty-pages P [--rounds N] [--seconds S] [--restores R]
 *
 * One VM with M MiB whose guest writes P pages between two saves, on this very machine (or in a machine of a lab): how long it stands still for a
 * checkpoint, by the agent's own code (tests/lib/saved_vm.h), and for `stop`, `migrate` of all of it to a file, `cont`, by QEMU alone; what finding the
 * written pages costs; and how long each kind of save takes until its guest runs again. Both kinds in turn, of the same guest in the same QEMU, and
 * measured alike: from telling QEMU to stop until it has answered `cont`.
 *
 * One JSON object on stdout, times in microseconds. N rounds, fewer of a kind that takes more than S seconds in all (3 at least). tests/bench/mirror
 * runs this and takes percentiles. */

#include "base/clock.h"
#include "shm/save.h"
#include "tests/lib/saved_vm.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LEAST_ROUNDS 3u
#define BEATS        10u /* the work between two saves is spread over so many */
#define BEAT_MS      50u
#define WORK_MS      120000u
#define SAVE_MS      600000u
#define TRACKINGS    10u

struct options {
    unsigned memory_mib, dirty_pages, rounds, seconds, restores;
};

static struct options opt = {.rounds = 40, .seconds = 120, .restores = 5};

static json_int_t us(uint64_t ns)
{
    return (json_int_t)(ns / 1000);
}

static void add(json_t *object, const char *key, json_int_t value)
{
    json_t *list = json_object_get(object, key);

    if (!list) {
        list = json_array();
        json_object_set_new(object, key, list);
    }
    json_array_append_new(list, json_integer(value));
}

/* --- the guest --- */

struct work {
    const struct saved_vm *vm;
    uint64_t until;
};

static bool worked(void *arg)
{
    const struct work *work = arg;

    return work->vm->console.work >= work->until;
}

/* All of the memory is there, as if it were locked, and in use: pages that are zero are next to nothing for QEMU's own save. */
static void ram_fill(struct saved_vm *vm)
{
    uint64_t *ram = (uint64_t *)(void *)(uintptr_t)vm->map.ram;

    for (uint64_t i = 0; i < vm->map.ram_bytes / sizeof(*ram); i++)
        ram[i] = (i + 1) * UINT64_C(0x9e3779b97f4a7c15);
}

/* The guest has written its pages once more. */
static void work(struct saved_vm *vm)
{
    struct work work = {.vm = vm, .until = vm->console.work + opt.dirty_pages};

    must(loop_until(&vm->loop, worked, &work, WORK_MS), "the guest has not written %u pages in %u s", opt.dirty_pages,
         WORK_MS / 1000);
    must(vm->console.broken == 0, "%s", vm->console.bad);
}

static bool has_beat_after_mark(void *arg)
{
    return ((struct saved_vm *)arg)->console.first_beat_after_mark != 0;
}

/* --- QEMU's own save --- */

static bool is_migrated(void *arg)
{
    return ((struct saved_vm *)arg)->migrated;
}

/* To a file whose pages are there already, and by a descriptor: of QEMU 7.2's ways, exec: takes twice as long, and it has no file:. */
static int full_open(const struct saved_vm *vm)
{
    char path[200];
    int fd;

    snprintf(path, sizeof(path), "%s/full", vm->dir);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    must(fd >= 0, "%s: %s", path, strerror(errno));
    return fd;
}

static void full_save(struct saved_vm *vm, int fd, json_t *result)
{
    uint64_t start_ns;

    saved_vm_share_ram(vm, false);
    must(lseek(fd, 0, SEEK_SET) == 0, "%s", strerror(errno));
    saved_vm_ask(vm, "getfd", json_pack("{s:s}", "fdname", "full"), fd, 10000);
    vm->migrated = false;
    start_ns = mst_now_ns();
    saved_vm_ask(vm, "stop", NULL, -1, 10000);
    saved_vm_ask(vm, "migrate", json_pack("{s:s}", "uri", "fd:full"), -1, 10000);
    must(loop_until(&vm->loop, is_migrated, vm, SAVE_MS), "QEMU's own save does not end");
    saved_vm_cont(vm);
    add(result, "pause_us", us(mst_now_ns() - start_ns));
    json_object_set_new(result, "bytes", json_integer((json_int_t)lseek(fd, 0, SEEK_CUR)));
    saved_vm_share_ram(vm, true);
}

/* --- ours --- */

static void our_save(struct saved_vm *vm, json_t *result)
{
    saved_vm_take(vm, MST_CKPT_RUN_ON);
    must(vm->err == 0 && !vm->report.whole, "checkpoint: %s", vm->err ? vm->why.text : "its pages did not fit the delta");
    add(result, "pause_us", us(vm->report.pause_ns));
    add(result, "stop_us", us(vm->report.stop_ns));
    add(result, "device_us", us(vm->report.device_ns));
    add(result, "pages_us", us(vm->report.pages_ns));
    add(result, "cont_us", us(vm->report.cont_ns));
    add(result, "early_us", us(vm->report.early_ns));
    add(result, "dirty_pages", (json_int_t)vm->report.pages_dirty);
    add(result, "pages", (json_int_t)(vm->report.pages_early + vm->report.pages_late));
    add(result, "pages_late", (json_int_t)vm->report.pages_late);
    json_object_set_new(result, "device_bytes", json_integer((json_int_t)vm->report.device_bytes));
}

static void saves(struct saved_vm *vm, json_t *ours, json_t *theirs, int full_fd)
{
    uint64_t ours_ns = 0, theirs_ns = 0, limit_ns = (uint64_t)opt.seconds * 1000 * MST_NS_PER_MS, start_ns;
    json_t *unused = json_object();

    saved_vm_take(vm, MST_CKPT_RUN_ON); /* fills the shadow: not one of those that follow */
    must(vm->err == 0 && vm->report.first, "first checkpoint: %s", vm->why.text);
    json_object_set_new(ours, "first_pause_us", json_integer(us(vm->report.mark_ns + vm->report.pause_ns)));
    full_save(vm, full_fd, unused); /* makes its file */
    json_decref(unused);
    for (unsigned i = 0; i < opt.rounds; i++) {
        if (i < LEAST_ROUNDS || ours_ns < limit_ns) {
            work(vm);
            start_ns = mst_now_ns();
            our_save(vm, ours);
            ours_ns += mst_now_ns() - start_ns;
        }
        if (i < LEAST_ROUNDS || theirs_ns < limit_ns) {
            work(vm);
            start_ns = mst_now_ns();
            full_save(vm, full_fd, theirs);
            theirs_ns += mst_now_ns() - start_ns;
        }
    }
}

/* What it costs to ask the kernel, and to clear: of a guest that boots anew, as no checkpoint may follow a clearing that follows none. */
static void tracking(struct saved_vm *vm, json_t *result)
{
    saved_vm_end(vm);
    vm->console.work = 0;
    guest_mark(&vm->console);
    saved_vm_spawn(vm, false);
    must(loop_until(&vm->loop, has_beat_after_mark, vm, WORK_MS), "the guest does not beat");
    saved_vm_checkpoints(vm);
    for (unsigned i = 0; i < TRACKINGS; i++) {
        uint64_t start_ns, looked_ns;
        int64_t pages;

        work(vm);
        start_ns = mst_now_ns();
        pages = mst_dirty_look(vm->dirty);
        looked_ns = mst_now_ns();
        must(pages >= 0 && mst_dirty_clear(vm->dirty) == 0, "soft-dirty bits cannot be read or cleared");
        add(result, "clear_us", us(mst_now_ns() - looked_ns));
        add(result, "look_us", us(looked_ns - start_ns));
        add(result, "pages", (json_int_t)pages);
    }
}

/* --- until its guest runs again --- */

static void full_restore(struct saved_vm *vm, int fd, json_t *result)
{
    uint64_t start_ns;

    saved_vm_end(vm);
    guest_mark(&vm->console);
    saved_vm_spawn(vm, true);
    saved_vm_share_ram(vm, false);
    must(lseek(fd, 0, SEEK_SET) == 0, "%s", strerror(errno));
    start_ns = mst_now_ns();
    saved_vm_ask(vm, "getfd", json_pack("{s:s}", "fdname", "full"), fd, 10000);
    saved_vm_ask(vm, "migrate-incoming", json_pack("{s:s}", "uri", "fd:full"), -1, SAVE_MS);
    must(loop_until(&vm->loop, is_migrated, vm, SAVE_MS), "QEMU's own load does not end");
    saved_vm_cont(vm);
    add(result, "restore_us", us(mst_now_ns() - start_ns));
    must(loop_until(&vm->loop, has_beat_after_mark, vm, WORK_MS), "no beat after QEMU's own load");
}

/* Each QEMU is there and waits, as a standby does. Ours: RAM from shadow and delta as well, as for an image that is resumed from on its own node. */
static void restores(struct saved_vm *vm, json_t *ours, json_t *theirs, int full_fd)
{
    struct saved_vm_resumed resumed;

    for (unsigned i = 0; i < opt.restores; i++) {
        saved_vm_end(vm);
        saved_vm_resume(vm, &resumed);
        add(ours, "restore_us", us(resumed.fill_ns + resumed.load_ns));
        add(ours, "load_us", us(resumed.load_ns));
        full_restore(vm, full_fd, theirs);
    }
    must(vm->console.broken == 0, "%s", vm->console.bad);
}

/* --- */

static unsigned number(const char *text, unsigned least, unsigned most)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);

    if (*end != '\0' || end == text || value < least || value > most) {
        fprintf(stderr, "pauses: %s: allowed are %u to %u\n", text, least, most);
        exit(2);
    }
    return (unsigned)value;
}

static void parse(int argc, char **argv)
{
    static const struct option names[] = {
        {"memory-mib", required_argument, NULL, 'm'}, {"dirty-pages", required_argument, NULL, 'd'},
        {"rounds", required_argument, NULL, 'n'},     {"seconds", required_argument, NULL, 's'},
        {"restores", required_argument, NULL, 'r'},   {NULL, 0, NULL, 0}};
    int c;

    while ((c = getopt_long(argc, argv, "", names, NULL)) != -1) {
        if (c == 'm')
            opt.memory_mib = number(optarg, 8, 3072); /* all of it below the hole of a 32-bit guest */
        else if (c == 'd')
            opt.dirty_pages = number(optarg, BEATS, 1u << 20);
        else if (c == 'n')
            opt.rounds = number(optarg, LEAST_ROUNDS, 1000);
        else if (c == 's')
            opt.seconds = number(optarg, 1, 3600);
        else if (c == 'r')
            opt.restores = number(optarg, 0, 100);
        else
            exit(2);
    }
    if (optind != argc || opt.memory_mib == 0 || opt.dirty_pages == 0 || opt.dirty_pages > opt.memory_mib * 224) {
        fprintf(stderr,
                "usage: pauses --memory-mib M --dirty-pages P [--rounds N] [--seconds S] [--restores R], P up to 7/8 of M\n");
        exit(2);
    }
}

int main(int argc, char **argv)
{
    json_t *ours = json_object(), *theirs = json_object(), *asked = json_object();
    struct saved_vm *vm;
    char append[120];
    bool soft_dirty;
    int full_fd;

    parse(argc, argv);
    snprintf(append, sizeof(append), "pages=64 interval_ms=%u hot=8 work=%u work_per_beat=%u", BEAT_MS, opt.dirty_pages,
             (opt.dirty_pages + BEATS - 1) / BEATS);
    /* A delta for all pages, as under protect: mirror. */
    vm = saved_vm_new(&(struct saved_vm_conf){
        .memory_mib = opt.memory_mib, .delta_capacity = opt.memory_mib * 256, .kernel = MST_TEST_WITNESS, .append = append});
    ram_fill(vm);
    full_fd = full_open(vm);
    saved_vm_spawn(vm, false);
    must(loop_until(&vm->loop, saved_vm_has_beats, vm, WORK_MS), "the guest does not beat");
    saved_vm_checkpoints(vm);
    soft_dirty = vm->dirty != NULL;
    saves(vm, ours, theirs, full_fd);
    restores(vm, ours, theirs, full_fd);
    if (soft_dirty)
        tracking(vm, asked);
    saved_vm_free(vm);
    close(full_fd);
    json_dumpf(json_pack("{s:i, s:i, s:s, s:o, s:o, s:o}", "memory_mib", (int)opt.memory_mib, "dirty_pages", (int)opt.dirty_pages,
                         "found_by", soft_dirty ? "soft-dirty" : "comparing", "ours", ours, "qemu", theirs, "tracking", asked),
               stdout, JSON_INDENT(2));
    putchar('\n');
    return 0;
}
