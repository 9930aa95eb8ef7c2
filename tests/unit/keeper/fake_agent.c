/* An agent without QMP for the keeper's tests. It asks for areas, pulls or fills the RAM with a pattern, spawns the keeper's "QEMU", writes two
 * checkpoints with shm/save.h (the second one committed and not applied, so that a reader needs the delta) and answers the order. What it is to do
 * wrong stands in the definition's boot_append:
 *     agent=die         ends once after its areas were made        agent=old-epoch   spawns under the epoch before
 *     agent=late-spawn  spawns once RUN-DIR/spawn-now is there
 *     agent=refuse      answers the order with an error at the end   agent=silent     never answers the order
 *     agent=stands      says that the VM is paused, and never answers
 *     agent=first       asks for no shadow and no delta               agent=rest      asks for them when its QEMU is there
 * Under protect: mirror it goes on taking checkpoints: in the one of number N, word 0 of page 5 and of page 50 + N % 100 is N. Files in
 * RUN-DIR tell it more: `standby`, it says how QEMUs are started that are to wait; `standby-other`, in other words than it starts them with later;
 * `standby-none`, that it cannot; `memory-twice`, the memory of the next start is dropped and asked for once more before it is used. None (checkpoints) while `hold` is there; `large`, `rot`, for the next one alone: 100 more pages, and it is said to be whole; its device state
 * is damaged after its commit. `silent`, `answers`, once each: its QEMUs are reported silent; that is taken back. `drop-first`: what an agent
 * before made for the next start is dropped. `anew`: its writers count from 1 again, as after a save that has rotted. */
#include "base/clock.h"
#include "base/file.h"
#include "proto/socket.h"
#include "shm/save.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEVICE_BYTES 50000u

struct vm {
    bool used;
    char name[MST_NAME_BYTES], append[256];
    uint64_t epoch, order; /* id of the open order; 0: none */
    Mainstay__VmDefinition *definition;
    Mainstay__SaveSource source;
    char source_node[MST_NAME_BYTES];
    bool has_source;
    unsigned slot;
    char ram[PATH_MAX];
    struct mst_save_map map;
    struct mst_save_writer *writer;
    Mainstay__StartResult result;
};

static uv_loop_t *loop;
static struct mst_sock *sock;
static struct mst_status_area *status;
static uint64_t instance;
static char qemu[PATH_MAX], run_dir[PATH_MAX];
static struct vm vms[MST_VMS_PER_NODE];
static uv_timer_t beat, next[MST_VMS_PER_NODE]; /* next: checkpoint of a VM under protect: mirror */

static void fatal(const char *text)
{
    fprintf(stderr, "fake agent: %s\n", text);
    exit(1);
}

static void send_env(mst_envelope *env)
{
    if (mst_sock_send(sock, env) < 0)
        fatal("cannot send");
}

#define ENVELOPE(name, case_, member_, body_)                                                                                    \
    mst_envelope name = {.base = PROTOBUF_C_MESSAGE_INIT(&mainstay__envelope__descriptor),                                       \
                         .body_case = MAINSTAY__ENVELOPE__BODY_##case_,                                                          \
                         .member_ = (body_)}

static void done(uint64_t order, int error, const char *text, Mainstay__StartResult *start, Mainstay__SaveResult *save)
{
    Mainstay__Done body = MAINSTAY__DONE__INIT;
    ENVELOPE(env, DONE, done, &body);

    if (!order)
        return;
    body.error = error;
    body.text = (char *)text;
    body.start = start;
    body.save = save;
    env.has_reply_to = 1;
    env.reply_to = order;
    send_env(&env);
}

static struct vm *find(const char *name, uint64_t epoch)
{
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++)
        if (vms[i].used && vms[i].epoch == epoch && strcmp(vms[i].name, name) == 0)
            return &vms[i];
    return NULL;
}

static bool wants(const struct vm *vm, const char *what)
{
    return strstr(vm->append, what) != NULL;
}

static void *map_file(const char *path, size_t *ret_bytes)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    struct stat st;
    void *addr;

    if (fd < 0 || fstat(fd, &st) < 0)
        fatal(path);
    addr = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (addr == MAP_FAILED)
        fatal(path);
    close(fd);
    if (ret_bytes)
        *ret_bytes = (size_t)st.st_size;
    return addr;
}

/* RAM, and the disk behind it when there is one. */
static uint8_t *map_ram(const Mainstay__Areas *areas)
{
    size_t bytes = areas->ram_bytes - areas->disk_bytes;
    uint8_t *range;
    int fd;

    if (!areas->disk)
        return map_file(areas->ram, NULL);
    range = mmap(NULL, areas->ram_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fd = open(areas->ram, O_RDWR | O_CLOEXEC);
    if (range == MAP_FAILED || mmap(range, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
        fatal(areas->ram);
    close(fd);
    fd = open(areas->disk, O_RDWR | O_CLOEXEC);
    if (mmap(range + bytes, areas->disk_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
        fatal(areas->disk);
    close(fd);
    return range;
}

/* --- steps of a start; ids of requests tell which VM and which step --- */

enum step { STEP_AREAS = 1, STEP_PULL, STEP_SPAWN, STEP_PUT, STEP_MARK, STEP_REST, STEP_DROP };

static uint64_t id_of(const struct vm *vm, enum step step)
{
    return (uint64_t)(vm - vms) * 10 + 1000 + step;
}

static void areas_ask(struct vm *vm, Mainstay__AreasPart part, enum step step)
{
    Mainstay__AreasCreate body = MAINSTAY__AREAS_CREATE__INIT;
    ENVELOPE(env, AREAS_CREATE, areas_create, &body);

    body.definition = vm->definition;
    body.epoch = vm->epoch;
    body.has_part = part != MAINSTAY__AREAS_PART__AREAS_ALL;
    body.part = part;
    env.has_id = 1;
    env.id = id_of(vm, step);
    send_env(&env);
}

static void pull_ask(struct vm *vm)
{
    Mainstay__Pull body = MAINSTAY__PULL__INIT;
    ENVELOPE(env, PULL, pull, &body);

    body.vm = vm->name;
    body.epoch = vm->epoch;
    body.source = &vm->source;
    env.has_id = 1;
    env.id = id_of(vm, STEP_PULL);
    send_env(&env);
}

struct words { /* a command line, as far as the keeper looks at it */
    char *argv[5], ram[PATH_MAX + 16], monitor[PATH_MAX + 128], spare[PATH_MAX + 128];
};

static size_t words_make(struct words *w, const char *vm, const char *append, const char *ram, const char *prefix)
{
    snprintf(w->ram, sizeof(w->ram), "mem-path=%s", ram);
    snprintf(w->monitor, sizeof(w->monitor), "path=%s/vm/%s/%s" MST_QMP_SOCK, run_dir, vm, prefix);
    snprintf(w->spare, sizeof(w->spare), "path=%s/vm/%s/%s" MST_QMP_SPARE_SOCK, run_dir, vm, prefix);
    w->argv[0] = qemu;
    w->argv[1] = (char *)append;
    w->argv[2] = w->ram;
    w->argv[3] = w->spare; /* the first one is there last: the test's QEMU waits for its name to go */
    w->argv[4] = w->monitor;
    return 5;
}

static void spawn_ask(struct vm *vm)
{
    Mainstay__Spawn body = MAINSTAY__SPAWN__INIT;
    struct words words;
    ENVELOPE(env, SPAWN, spawn, &body);

    body.vm = vm->name;
    body.epoch = wants(vm, "agent=old-epoch") ? vm->epoch - 1 : vm->epoch;
    body.n_argv = words_make(&words, vm->name, vm->append, vm->ram, "");
    body.argv = words.argv;
    env.has_id = 1;
    env.id = id_of(vm, STEP_SPAWN);
    send_env(&env);
}

static bool is_told(const char *what, bool once);

static void standby_asked(const Mainstay__StandbyAsk *ask)
{
    Mainstay__StandbySpawn body = MAINSTAY__STANDBY_SPAWN__INIT;
    ENVELOPE(env, STANDBY_SPAWN, standby_spawn, &body);
    const char *append = ask->definition->boot_append ? ask->definition->boot_append : "";
    struct words words;

    if (!is_told("standby", false))
        return;
    body.vm = ask->definition->name;
    body.epoch = ask->epoch;
    body.argv = words.argv;
    if (is_told("standby-none", false))
        body.text = (char *)"told to have none";
    else
        body.n_argv = words_make(&words, ask->definition->name, is_told("standby-other", false) ? "other" : append, ask->ram,
                                 MST_STANDBY_PREFIX);
    send_env(&env);
}

static void state_say(struct vm *vm, uint32_t run_state)
{
    Mainstay__VmState body = MAINSTAY__VM_STATE__INIT;
    ENVELOPE(env, VM_STATE, vm_state, &body);

    body.vm = vm->name;
    body.epoch = vm->epoch;
    body.run_state = run_state;
    send_env(&env);
}

static void fault_say(const struct vm *vm)
{
    Mainstay__FaultReport body = MAINSTAY__FAULT_REPORT__INIT;
    ENVELOPE(env, FAULT_REPORT, fault_report, &body);

    body.kind = MAINSTAY__FAULT_KIND__FAULT_VM_SILENT;
    body.node = (char *)"n1";
    body.vm = (char *)vm->name;
    body.has_epoch = true;
    body.epoch = vm->epoch;
    body.text = (char *)"told to be silent";
    send_env(&env);
}

static void fault_take_back(const struct vm *vm)
{
    Mainstay__VmState body = MAINSTAY__VM_STATE__INIT;
    ENVELOPE(env, VM_STATE, vm_state, &body);

    body.vm = (char *)vm->name;
    body.epoch = vm->epoch;
    body.run_state = MST_RUN_RUNNING;
    body.has_fault = true;
    body.fault = MAINSTAY__FAULT_KIND__FAULT_NONE;
    send_env(&env);
}

static void silence_say(void)
{
    bool silent = is_told("silent", true), answers = is_told("answers", true);

    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++) {
        if (vms[i].used && silent)
            fault_say(&vms[i]);
        if (vms[i].used && answers)
            fault_take_back(&vms[i]);
    }
}

static void pattern(struct vm *vm)
{
    uint64_t *ram = (uint64_t *)(void *)vm->map.ram;

    for (uint64_t i = 0; i < vm->map.ram_bytes / 8; i++)
        ram[i] = i * 0x9e3779b97f4a7c15u + vm->epoch;
}

static void checkpoints(struct vm *vm)
{
    uint64_t room;
    uint8_t *device;

    if (mst_save_writer_new(&vm->map, &vm->writer) < 0)
        fatal("writer");
    device = mst_save_device(vm->writer, &room);
    memset(device, 0xd1, DEVICE_BYTES);
    if (mst_save_commit_ram(vm->writer, DEVICE_BYTES, 1, mst_wall_ms(), mst_now_ns()) < 0)
        fatal("commit_ram");
    if (!vm->map.shadow)
        return; /* the guest stays as it is in these tests, so its RAM save stays true */
    mst_save_shadow_from_ram(vm->writer);
    mst_save_begin(vm->writer);
    for (uint64_t page = 3; page < 40; page += 4) {
        ((uint8_t *)vm->map.ram)[page * MST_PAGE_BYTES + 9] ^= 0x77;
        if (mst_save_stage(vm->writer, page) < 0)
            fatal("stage");
    }
    device = mst_save_device(vm->writer, &room);
    memset(device, 0xd2, DEVICE_BYTES);
    if (mst_save_commit(vm->writer, DEVICE_BYTES, 1, mst_wall_ms(), mst_now_ns()) < 0)
        fatal("commit");
}

/* --- checkpoints that are mirrored --- */

static bool is_told(const char *what, bool once)
{
    char path[PATH_MAX + 16];

    snprintf(path, sizeof(path), "%s/%s", run_dir, what);
    return access(path, F_OK) == 0 && (!once || unlink(path) == 0);
}

static void put_ask(struct vm *vm, bool whole)
{
    Mainstay__CheckpointPut body = MAINSTAY__CHECKPOINT_PUT__INIT;
    ENVELOPE(env, CHECKPOINT_PUT, checkpoint_put, &body);

    body.vm = vm->name;
    body.epoch = vm->epoch;
    body.seq = mst_save_seq(vm->writer);
    body.has_delta_pages = body.has_delta_table_crc32c = body.has_whole = 1;
    body.whole = whole;
    body.delta_pages = mst_save_delta(vm->writer, &body.delta_table_crc32c);
    env.has_id = 1;
    env.id = id_of(vm, STEP_PUT);
    send_env(&env);
    mst_save_apply(vm->writer); /* at once: the keeper may be reading the shadow */
}

/* What QEMU wrote until now belongs to the checkpoint that is about to be committed. Not waited for: nobody stands here. */
static void mark(struct vm *vm)
{
    Mainstay__OutputMark body = MAINSTAY__OUTPUT_MARK__INIT;
    ENVELOPE(env, OUTPUT_MARK, output_mark, &body);

    body.vm = vm->name;
    body.epoch = vm->epoch;
    body.seq = mst_save_seq(vm->writer) + 1;
    env.has_id = 1;
    env.id = id_of(vm, STEP_MARK);
    send_env(&env);
}

static void count_anew(struct vm *vm)
{
    mst_save_writer_free(vm->writer);
    if (mst_save_writer_new(&vm->map, &vm->writer) < 0)
        fatal("writer");
    mark(vm);
    mst_save_writer_free(vm->writer);
    checkpoints(vm);
    put_ask(vm, true);
}

static void on_next(uv_timer_t *timer)
{
    struct vm *vm = timer->data;
    uint64_t room, seq = mst_save_seq(vm->writer) + 1, pages[2] = {5, 50 + seq % 100};
    bool large = false;
    uint8_t *device;

    if (!vm->used)
        return;
    if (is_told("anew", true)) {
        count_anew(vm);
        return;
    }
    if (is_told("hold", false) && !is_told("one", true)) {
        uv_timer_start(timer, on_next, 30, 0);
        return;
    }
    mst_save_begin(vm->writer);
    if (is_told("large", true)) {
        large = true;
        for (uint64_t page = 200; page < 300; page++)
            if (mst_save_stage(vm->writer, page) < 0)
                fatal("stage");
    }
    for (int i = 0; i < 2; i++) {
        memcpy((uint8_t *)(uintptr_t)vm->map.ram + pages[i] * MST_PAGE_BYTES, &seq, sizeof(seq));
        if (mst_save_stage(vm->writer, pages[i]) < 0)
            fatal("stage");
    }
    device = mst_save_device(vm->writer, &room);
    memset(device, (int)seq & 0xff, DEVICE_BYTES);
    mark(vm);
    if (mst_save_commit(vm->writer, DEVICE_BYTES, 1, mst_wall_ms(), mst_now_ns()) < 0)
        fatal("commit");
    if (is_told("rot", true))
        device[DEVICE_BYTES / 2] ^= 1;
    put_ask(vm, large);
}

static void put(struct vm *vm)
{
    uv_timer_start(&next[vm - vms], on_next, 30, 0);
}

static void rest_map(struct vm *vm, const Mainstay__Areas *areas)
{
    vm->map.shadow = areas->shadow ? map_file(areas->shadow, NULL) : NULL;
    vm->map.delta = areas->delta ? map_file(areas->delta, NULL) : NULL;
}

static void areas_drop_ask(struct vm *vm)
{
    Mainstay__AreasDrop body = MAINSTAY__AREAS_DROP__INIT;
    ENVELOPE(env, AREAS_DROP, areas_drop, &body);

    body.vm = vm->name;
    body.epoch = vm->epoch;
    env.has_id = 1;
    env.id = id_of(vm, STEP_DROP);
    send_env(&env);
}

static void areas_made(struct vm *vm, const Mainstay__Areas *areas)
{
    char marker[PATH_MAX + 16];

    if (is_told("memory-twice", true)) {
        areas_drop_ask(vm);
        return;
    }
    if (wants(vm, "agent=die")) {
        snprintf(marker, sizeof(marker), "%s/agent-died", run_dir);
        if (access(marker, F_OK) < 0) {
            mst_file_write_durable(marker, "x", 1, 0600);
            exit(7);
        }
    }
    vm->slot = areas->slot;
    snprintf(vm->ram, sizeof(vm->ram), "%s", areas->ram);
    vm->map = (struct mst_save_map){.ram_bytes = areas->ram_bytes,
                                    .delta_capacity = areas->delta_capacity,
                                    .epoch = vm->epoch,
                                    .instance = instance,
                                    .record = status->vms[areas->slot].save};
    vm->map.ram = map_ram(areas);
    vm->map.save = map_file(areas->save, NULL);
    rest_map(vm, areas);
    if (vm->has_source) {
        pull_ask(vm);
        return;
    }
    pattern(vm);
    if (wants(vm, "agent=late-spawn")) {
        snprintf(marker, sizeof(marker), "%s/spawn-now", run_dir);
        while (access(marker, F_OK) < 0)
            usleep(10000);
    }
    spawn_ask(vm);
}

static void pulled(struct vm *vm, const Mainstay__Pulled *p)
{
    vm->result.has_bytes_pulled = vm->result.has_pull_us = vm->result.has_save_seq = vm->result.has_save_epoch = 1;
    vm->result.bytes_pulled = p->bytes;
    vm->result.pull_us = p->pull_us;
    vm->result.save_seq = p->save_seq;
    vm->result.save_epoch = p->save_epoch;
    vm->result.method = p->local                    ? MAINSTAY__METHOD__METHOD_RESUMED_IN_PLACE
                        : p->source == MST_SAVE_RAM ? MAINSTAY__METHOD__METHOD_PULLED_LIVE
                                                    : MAINSTAY__METHOD__METHOD_PULLED_SHADOW;
    spawn_ask(vm);
}

static void spawned(struct vm *vm)
{
    if (wants(vm, "qemu=exit"))
        return; /* VmExited answers */
    if (wants(vm, "agent=rest") && !vm->map.shadow) {
        areas_ask(vm, MAINSTAY__AREAS_PART__AREAS_REST, STEP_REST);
        return;
    }
    checkpoints(vm);
    if (wants(vm, "agent=refuse")) {
        done(vm->order, EIO, "told to refuse", NULL, NULL);
        return;
    }
    if (wants(vm, "agent=stands"))
        state_say(vm, MST_RUN_PAUSED);
    if (wants(vm, "agent=silent") || wants(vm, "agent=stands"))
        return;
    state_say(vm, MST_RUN_RUNNING);
    done(vm->order, 0, NULL, &vm->result, NULL);
    vm->order = 0;
    if (vm->definition->protect == MAINSTAY__PROTECT__PROTECT_MIRROR)
        put_ask(vm, false);
}

/* --- messages --- */

static void areas_first_ask(struct vm *vm)
{
    areas_ask(vm,
              wants(vm, "agent=first") || wants(vm, "agent=rest") ? MAINSTAY__AREAS_PART__AREAS_FIRST
                                                                  : MAINSTAY__AREAS_PART__AREAS_ALL,
              STEP_AREAS);
}

static void start(const mst_envelope *env)
{
    const Mainstay__OrderStart *order = env->order_start;
    struct vm *vm = find(order->definition->name, order->epoch);
    static uint8_t packed[MST_MESSAGE_BYTES_MAX];

    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++)
        if (vms[i].used && vms[i].order && vms[i].epoch != order->epoch && strcmp(vms[i].name, order->definition->name) == 0)
            fatal("two epochs of one VM are ordered at a time");
    for (unsigned i = 0; !vm && i < MST_VMS_PER_NODE; i++)
        if (!vms[i].used)
            vm = &vms[i];
    if (vm->used)
        return;
    *vm = (struct vm){.used = true, .epoch = order->epoch, .order = env->id};
    snprintf(vm->name, sizeof(vm->name), "%s", order->definition->name);
    snprintf(vm->append, sizeof(vm->append), "%s", order->definition->boot_append ? order->definition->boot_append : "");
    vm->definition = mainstay__vm_definition__unpack(NULL, mainstay__vm_definition__pack(order->definition, packed), packed);
    mainstay__start_result__init(&vm->result);
    vm->result.method = MAINSTAY__METHOD__METHOD_BOOTED;
    if (order->source) {
        vm->has_source = true;
        vm->source = *order->source;
        snprintf(vm->source_node, sizeof(vm->source_node), "%s", order->source->node);
        vm->source.node = vm->source_node;
    }
    if (is_told("drop-first", true))
        areas_drop_ask(vm);
    else
        areas_first_ask(vm);
}

static void save(const mst_envelope *env)
{
    struct vm *vm = find(env->order_save->vm, env->order_save->epoch);
    Mainstay__SaveResult result = MAINSTAY__SAVE_RESULT__INIT;
    uint64_t room;

    if (!vm || !vm->writer) {
        done(env->id, ENOENT, "not mine", NULL, NULL);
        return;
    }
    memset(mst_save_device(vm->writer, &room), 0xd3, DEVICE_BYTES);
    mst_save_apply(vm->writer);
    if (mst_save_commit_ram(vm->writer, DEVICE_BYTES, 1, mst_wall_ms(), mst_now_ns()) < 0)
        fatal("commit_ram");
    state_say(vm, MST_RUN_PAUSED);
    result.seq = mst_save_seq(vm->writer);
    done(env->id, 0, NULL, NULL, &result);
}

static void exited(const Mainstay__VmExited *e)
{
    struct vm *vm = find(e->vm, e->epoch);

    if (!vm)
        return;
    if (vm->order)
        done(vm->order, EIO, "QEMU ended", NULL, NULL);
    mst_save_writer_free(vm->writer);
    uv_timer_stop(&next[vm - vms]);
    vm->used = false;
}

static void answered(const mst_envelope *env)
{
    struct vm *vm = &vms[(env->reply_to - 1000) / 10];

    if (env->reply_to < 1000 || !vm->used)
        return;
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_AREAS_CREATED && env->reply_to == id_of(vm, STEP_REST)) {
        rest_map(vm, env->areas_created->areas);
        if (!vm->map.shadow || !vm->map.delta)
            fatal("no shadow, no delta");
        spawned(vm);
    } else if (env->body_case == MAINSTAY__ENVELOPE__BODY_AREAS_CREATED) {
        areas_made(vm, env->areas_created->areas);
    } else if (env->body_case == MAINSTAY__ENVELOPE__BODY_PULLED) {
        pulled(vm, env->pulled);
    } else if (env->body_case == MAINSTAY__ENVELOPE__BODY_SPAWNED) {
        spawned(vm);
    } else if (env->reply_to == id_of(vm, STEP_PUT)) {
        put(vm);
    } else if (env->reply_to == id_of(vm, STEP_MARK)) {
        return; /* refused: it was fenced meanwhile */
    } else if (env->reply_to == id_of(vm, STEP_DROP) && env->done->error == 0) {
        areas_first_ask(vm);
    } else if (env->done->error) {
        done(vm->order, env->done->error, env->done->text, NULL, NULL);
        vm->used = false;
    }
}

static void welcome(const Mainstay__AgentWelcome *w)
{
    static size_t all; /* there may be several, one behind the other */
    char path[PATH_MAX + 16], number[24];
    size_t bytes;

    status = map_file(w->status_path, &bytes);
    if (bytes != sizeof(*status) || (strcmp(w->accel, "tcg") != 0 && strcmp(w->accel, "kvm") != 0))
        fatal("welcome");
    instance = w->instance;
    snprintf(qemu, sizeof(qemu), "%s", w->qemu);
    snprintf(run_dir, sizeof(run_dir), "%s", w->run_dir);
    fprintf(stderr, "fake agent: welcomed with %zu VMs\n", w->n_vms);
    all += w->n_vms;
    snprintf(path, sizeof(path), "%s/agent-vms", run_dir);
    snprintf(number, sizeof(number), "%zu", all);
    mst_file_write_durable(path, number, strlen(number), 0600);
}

/* Which orders came, in order: the test reads it. */
static void note(const char *order)
{
    char path[PATH_MAX + 16];
    FILE *file;

    snprintf(path, sizeof(path), "%s/agent-orders", run_dir);
    file = fopen(path, "a");
    if (!file)
        fatal(path);
    fputs(order, file);
    fclose(file);
}

static void on_message(struct mst_sock *s, const mst_envelope *env, void *arg)
{
    (void)s, (void)arg;
    switch (env->body_case) {
    case MAINSTAY__ENVELOPE__BODY_AGENT_WELCOME:
        welcome(env->agent_welcome);
        break;
    case MAINSTAY__ENVELOPE__BODY_ORDER_START:
        start(env);
        break;
    case MAINSTAY__ENVELOPE__BODY_ORDER_SAVE:
        note("save\n");
        save(env);
        break;
    case MAINSTAY__ENVELOPE__BODY_ORDER_CONTINUE:
        note("continue\n");
        done(env->id, 0, NULL, NULL, NULL);
        break;
    case MAINSTAY__ENVELOPE__BODY_VM_EXITED:
        exited(env->vm_exited);
        break;
    case MAINSTAY__ENVELOPE__BODY_STANDBY_ASK:
        standby_asked(env->standby_ask);
        break;
    default:
        if (env->has_reply_to)
            answered(env);
    }
}

static void on_closed(struct mst_sock *s, int err, const struct mst_why *why, void *arg)
{
    (void)s, (void)err, (void)why, (void)arg;
    exit(0);
}

static void on_beat(uv_timer_t *timer)
{
    (void)timer;
    if (!status)
        return;
    __atomic_fetch_add(&status->agent.beat, 1, __ATOMIC_RELAXED);
    silence_say();
}

int main(int argc, char **argv)
{
    static const struct mst_sock_events events = {.on_message = on_message, .on_closed = on_closed};
    Mainstay__AgentHello hello = MAINSTAY__AGENT_HELLO__INIT;
    ENVELOPE(env, AGENT_HELLO, agent_hello, &hello);
    struct mst_why why = {0};

    if (argc != 5 || strcmp(argv[1], "--keeper") != 0 || strcmp(argv[3], "--events") != 0)
        fatal("usage");
    loop = uv_default_loop();
    if (mst_sock_connect(loop, argv[2], &events, NULL, &sock, &why) < 0)
        fatal(why.text);
    hello.pid = getpid();
    hello.protocol_version = MST_PROTOCOL_VERSION;
    send_env(&env);
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++) {
        uv_timer_init(loop, &next[i]);
        next[i].data = &vms[i];
    }
    uv_timer_init(loop, &beat);
    uv_timer_start(&beat, on_beat, 20, 20);
    return uv_run(loop, UV_RUN_DEFAULT);
}
