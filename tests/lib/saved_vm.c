#include "tests/lib/saved_vm.h"

#include "base/clock.h"
#include "node/agent/qemu_args.h"
#include "node/agent/resume.h"
#include "shm/save.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

void saved_vm_die(const char *file, int line, const char *fmt, ...)
{
    va_list args;

    fprintf(stderr, "%s:%d: ", file, line);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
    abort();
}

static uint8_t *map_new_at(const char *path, size_t bytes, uint8_t *at, int *ret_fd)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    uint8_t *data;

    must(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0, "%s: %s", path, strerror(errno));
    data = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | (at ? MAP_FIXED : 0), fd, 0);
    must(data != MAP_FAILED, "%s: %s", path, strerror(errno));
    if (ret_fd)
        *ret_fd = fd;
    else
        close(fd);
    return data;
}

static uint8_t *map_new(const struct saved_vm *vm, const char *name, size_t bytes)
{
    char path[200];

    snprintf(path, sizeof(path), "%s/%s", vm->dir, name);
    return map_new_at(path, bytes, NULL, NULL);
}

static void map_ram(struct saved_vm *vm)
{
    uint64_t memory_bytes = vm->map.ram_bytes - vm->disk_bytes;
    uint8_t *range = mmap(NULL, vm->map.ram_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    must(range != MAP_FAILED, "%s", strerror(errno));
    vm->disk_fd = -1;
    snprintf(vm->ram_path, sizeof(vm->ram_path), "%s/ram", vm->dir);
    snprintf(vm->disk_path, sizeof(vm->disk_path), "%s/disk", vm->dir);
    vm->map.ram = map_new_at(vm->ram_path, memory_bytes, range, &vm->ram_fd);
    if (vm->disk_bytes)
        map_new_at(vm->disk_path, vm->disk_bytes, range + memory_bytes, &vm->disk_fd);
}

static void unmap_ram(struct saved_vm *vm)
{
    munmap((void *)(uintptr_t)vm->map.ram, vm->map.ram_bytes);
    close(vm->ram_fd);
    if (vm->disk_fd >= 0)
        close(vm->disk_fd);
}

void saved_vm_new_ram(struct saved_vm *vm)
{
    unmap_ram(vm);
    must(unlink(vm->ram_path) == 0 && (!vm->disk_bytes || unlink(vm->disk_path) == 0), "%s", strerror(errno));
    map_ram(vm);
}

static void define(struct saved_vm *vm, const struct saved_vm_conf *conf)
{
    mainstay__vm_definition__init(&vm->definition);
    vm->definition.name = (char *)(uintptr_t) "probe";
    vm->definition.memory_mib = conf->memory_mib;
    vm->definition.boot_kernel = (char *)(uintptr_t)conf->kernel;
    vm->definition.boot_append = (char *)(uintptr_t)conf->append;
    if (!conf->disk && !conf->disk_mib)
        return;
    mainstay__vm_disk__init(&vm->disk);
    if (conf->disk)
        vm->disk = *conf->disk;
    vm->disk.has_memory_mib = conf->disk_mib != 0;
    vm->disk.memory_mib = conf->disk_mib;
    vm->disks[0] = &vm->disk;
    vm->definition.disks = vm->disks;
    vm->definition.n_disks = 1;
}

struct saved_vm *saved_vm_new(const struct saved_vm_conf *conf)
{
    struct saved_vm *vm = calloc(1, sizeof(*vm));

    must(vm, "no memory");
    uv_loop_init(&vm->loop);
    snprintf(vm->dir, sizeof(vm->dir), "/dev/shm/mst-test-XXXXXX");
    must(mkdtemp(vm->dir), "%s: %s", vm->dir, strerror(errno));
    define(vm, conf);
    vm->disk_bytes = (uint64_t)conf->disk_mib << 20;
    vm->map.ram_bytes = ((uint64_t)conf->memory_mib << 20) + vm->disk_bytes;
    vm->map.delta_capacity = conf->delta_capacity;
    must(mst_save_layout(vm->map.ram_bytes, &vm->save_layout) == 0 &&
             mst_delta_layout(conf->delta_capacity, &vm->delta_layout) == 0,
         "no layout for %u MiB with a delta of %u pages", conf->memory_mib, conf->delta_capacity);
    map_ram(vm);
    vm->map.save = map_new(vm, "save", vm->save_layout.bytes);
    vm->map.shadow = map_new(vm, "shadow", vm->map.ram_bytes);
    vm->map.delta = map_new(vm, "delta", vm->delta_layout.bytes);
    vm->map.record = vm->record;
    vm->map.epoch = 1;
    vm->map.instance = 7;
    return vm;
}

/* --- monitor --- */

static void on_ready(struct mst_qmp *qmp, void *arg)
{
    (void)qmp;
    ((struct saved_vm *)arg)->qmp_ready = true;
}

static void on_event(struct mst_qmp *qmp, const char *name, const json_t *data, void *arg)
{
    const char *status = json_string_value(json_object_get(data, "status"));
    struct saved_vm *vm = arg;

    (void)qmp;
    if (strcmp(name, "GUEST_PANICKED") == 0)
        vm->panics++;
    if (strcmp(name, "MIGRATION") == 0 && status && strcmp(status, "completed") == 0)
        vm->migrated = true;
    if (vm->ckpt)
        mst_ckpt_event(vm->ckpt, name, data);
    if (vm->load)
        mst_load_event(vm->load, name, data);
}

static void on_closed(struct mst_qmp *qmp, int err, const struct mst_why *why, void *arg)
{
    (void)qmp;
    (void)err;
    (void)why;
    ((struct saved_vm *)arg)->qmp_closed = true;
}

static const struct mst_qmp_events qmp_events = {on_ready, on_event, on_closed};

bool saved_vm_is_done(void *arg)
{
    return ((struct saved_vm *)arg)->done;
}

static bool is_ready(void *arg)
{
    return ((struct saved_vm *)arg)->qmp_ready;
}

static void on_reply(struct mst_qmp *qmp, int err, const json_t *ret, const struct mst_why *why, void *arg)
{
    struct saved_vm *vm = arg;

    (void)qmp;
    (void)ret;
    vm->done = true;
    vm->err = err;
    vm->why = *why;
}

void saved_vm_ask(struct saved_vm *vm, const char *command, json_t *arguments, int fd, unsigned timeout_ms)
{
    int r;

    vm->done = false;
    r = mst_qmp_execute(vm->qmp, command, arguments, fd, timeout_ms, on_reply, vm);
    must(r == 0, "%s: %s", command, mst_errname(r));
    must(loop_until(&vm->loop, saved_vm_is_done, vm, 2 * timeout_ms), "%s: no answer", command);
    must(vm->err == 0, "%s: %s", command, vm->why.text);
}

static bool try_connect(void *arg)
{
    struct saved_vm *vm = arg;
    char path[200];

    must(!guest_gone(&vm->guest), "QEMU ended: see %s/qemu.log", vm->dir);
    snprintf(path, sizeof(path), "%s/qmp.sock", vm->dir);
    return mst_qmp_connect(&vm->loop, path, 20000, &qmp_events, vm, &vm->qmp) == 0;
}

void saved_vm_share_ram(struct saved_vm *vm, bool share)
{
    saved_vm_ask(vm, "migrate-set-capabilities",
                 json_pack("{s:[{s:s,s:b},{s:s,s:b}]}", "capabilities", "capability", "x-ignore-shared", "state", share,
                           "capability", "events", "state", 1),
                 -1, 10000);
}

void saved_vm_spawn(struct saved_vm *vm, bool incoming)
{
    struct mst_qemu_where where = {.qemu = "qemu-system-x86_64",
                                   .accel = "tcg",
                                   .vm_dir = vm->dir,
                                   .ram_path = vm->ram_path,
                                   .disk_path = vm->disk_path,
                                   .incoming = incoming};
    struct mst_why why;
    char log_path[200], **argv;

    snprintf(log_path, sizeof(log_path), "%s/qemu.log", vm->dir);
    must(mst_qemu_args(&vm->definition, "probe", &where, &argv, &why) == 0, "%s", why.text);
    must(guest_spawn(&vm->guest, &vm->loop, argv, log_path, &vm->console) == 0, "QEMU cannot be started");
    mst_qemu_args_free(argv);
    vm->qmp_ready = vm->qmp_closed = vm->migrated = false;
    must(loop_until(&vm->loop, try_connect, vm, 20000), "QEMU opens no monitor");
    must(loop_until(&vm->loop, is_ready, vm, 20000), "QEMU does not greet");
    saved_vm_share_ram(vm, true);
    saved_vm_ask(vm, "migrate-set-parameters", json_pack("{s:I}", "max-bandwidth", (json_int_t)1 << 40), -1, 10000);
}

/* --- checkpoints --- */

static void on_ckpt(struct mst_ckpt *ckpt, int err, const struct mst_ckpt_report *report, const struct mst_why *why, void *arg)
{
    struct saved_vm *vm = arg;

    (void)ckpt;
    vm->done = true;
    vm->err = err;
    vm->why = *why;
    vm->report = *report;
}

static void on_silent(struct mst_ckpt *ckpt, const struct mst_why *why, void *arg)
{
    (void)ckpt;
    (void)why;
    (void)arg;
}

static int on_stands(struct mst_ckpt *ckpt, uint64_t seq, void *arg)
{
    struct saved_vm *vm = arg;

    (void)ckpt;
    vm->stands_seq = seq;
    return vm->marks;
}

static const struct mst_ckpt_events ckpt_events = {on_ckpt, on_silent, NULL, on_stands};

void saved_vm_checkpoints(struct saved_vm *vm)
{
    struct mst_ckpt_conf conf = {.loop = &vm->loop, .qmp = vm->qmp, .map = &vm->map, .silent_ms = MST_QMP_SILENT_MS};
    const struct mst_dirty_file files[MST_DIRTY_FILES_MAX] = {{vm->ram_fd, vm->map.ram_bytes - vm->disk_bytes},
                                                              {vm->disk_fd, vm->disk_bytes}};
    struct mst_why why;

    if (mst_dirty_probe(&why) == 0)
        must(mst_dirty_open(vm->guest.pid, files, &vm->dirty, &why) == 0, "%s", why.text);
    must(mst_save_writer_new(&vm->map, &vm->writer) == 0, "no writer");
    conf.writer = vm->writer;
    conf.dirty = vm->dirty;
    must(mst_ckpt_new(&conf, &ckpt_events, vm, &vm->ckpt) == 0, "no checkpointer");
}

void saved_vm_take(struct saved_vm *vm, enum mst_ckpt_mode mode)
{
    vm->done = false;
    must(mst_ckpt_take(vm->ckpt, mode) == 0, "a checkpoint cannot be begun: %s", mst_ckpt_state(vm->ckpt));
    must(loop_until(&vm->loop, saved_vm_is_done, vm, 60000), "a checkpoint does not end: %s", mst_ckpt_state(vm->ckpt));
}

static void on_freed(void *arg)
{
    ((struct saved_vm *)arg)->done = true;
}

void saved_vm_end(struct saved_vm *vm)
{
    guest_kill(&vm->guest);
    if (vm->ckpt) {
        vm->done = false;
        mst_ckpt_free(vm->ckpt, on_freed, vm);
        vm->ckpt = NULL;
        must(loop_until(&vm->loop, saved_vm_is_done, vm, 10000), "the checkpointer does not let go");
    }
    mst_save_writer_free(vm->writer);
    vm->writer = NULL;
    mst_dirty_close(vm->dirty);
    vm->dirty = NULL;
    mst_qmp_close(vm->qmp);
    vm->qmp = NULL;
}

/* --- resuming --- */

/* RAM as the newest record has it, put into the RAM file; the stream into ret_stream. As a keeper does after a pull. */
void saved_vm_fill(struct saved_vm *vm, uint8_t *ret_stream, uint64_t *ret_bytes)
{
    uint8_t *ram = (uint8_t *)(uintptr_t)vm->map.ram;
    struct mst_save_record record;
    struct mst_pub_head head;
    struct mst_why why = {""};

    must(mst_pub_read(vm->record, &head, &record, sizeof(record)) == 0, "no record is published");
    must(mst_save_record_check(&record, vm->map.ram_bytes, vm->map.delta_capacity, &why) == 0, "%s", why.text);
    if (record.source == MST_SAVE_SHADOW) {
        const struct mst_delta_entry *table = (const void *)(vm->map.delta + vm->delta_layout.table_off);

        memcpy(ram, vm->map.shadow, vm->map.ram_bytes);
        must(mst_delta_table_check(&record, table, &why) == 0, "%s", why.text);
        must(mst_delta_overlay(&record, table, vm->map.delta + vm->delta_layout.data_off, ram, &why) == 0, "%s", why.text);
    }
    memcpy(ret_stream, vm->map.save + vm->save_layout.device_off[record.device_slot], record.device_bytes);
    must(mst_save_device_check(&record, ret_stream, &why) == 0, "%s", why.text);
    *ret_bytes = record.device_bytes;
}

static void on_end(int err, const struct mst_why *why, void *arg)
{
    struct saved_vm *vm = arg;

    vm->done = true;
    vm->err = err;
    vm->why = *why;
    vm->load = NULL;
}

void saved_vm_load(struct saved_vm *vm, uint8_t *stream, uint64_t bytes)
{
    vm->done = false;
    must(mst_load_start(&vm->loop, vm->qmp, stream, bytes, 20000, on_end, vm, &vm->load) == 0, "load cannot begin");
    must(loop_until(&vm->loop, saved_vm_is_done, vm, 30000), "load: no end");
    must(vm->err == 0, "load: %s", vm->why.text);
}

void saved_vm_cont(struct saved_vm *vm)
{
    struct mst_resume *resume;

    vm->done = false;
    must(mst_resume_start(&vm->loop, vm->qmp, MST_RESUME_FAST, 10000, on_end, vm, &resume) == 0, "cont cannot be sent");
    must(loop_until(&vm->loop, saved_vm_is_done, vm, 30000), "cont: no answer");
    must(vm->err == 0, "cont: %s", vm->why.text);
}

bool saved_vm_has_beat_after_mark(void *arg)
{
    return ((struct saved_vm *)arg)->console.first_beat_after_mark != 0;
}

void saved_vm_resume(struct saved_vm *vm, struct saved_vm_resumed *ret_resumed)
{
    static uint8_t stream[MST_DEVICE_BYTES_MAX];
    uint64_t start_ns = mst_now_ns(), bytes;

    saved_vm_fill(vm, stream, &bytes);
    ret_resumed->fill_ns = mst_now_ns() - start_ns;
    ret_resumed->device_bytes = bytes;
    guest_mark(&vm->console);
    saved_vm_spawn(vm, true);
    start_ns = mst_now_ns();
    saved_vm_load(vm, stream, bytes);
    saved_vm_cont(vm);
    ret_resumed->load_ns = mst_now_ns() - start_ns;
    must(loop_until(&vm->loop, saved_vm_has_beat_after_mark, vm, 20000), "no beat after resuming");
}

bool saved_vm_has_beats(void *arg)
{
    return ((struct saved_vm *)arg)->console.beats >= 5;
}

void saved_vm_free(struct saved_vm *vm)
{
    char command[200];

    saved_vm_end(vm);
    uv_run(&vm->loop, UV_RUN_DEFAULT);
    must(uv_loop_close(&vm->loop) == 0, "a handle was left open");
    unmap_ram(vm);
    munmap(vm->map.save, vm->save_layout.bytes);
    munmap(vm->map.shadow, vm->map.ram_bytes);
    munmap(vm->map.delta, vm->delta_layout.bytes);
    snprintf(command, sizeof(command), "rm -rf %s", vm->dir);
    must(system(command) == 0, "%s: cannot be removed", vm->dir);
    free(vm);
}
