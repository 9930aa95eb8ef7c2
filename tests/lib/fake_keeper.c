#include "tests/lib/fake_keeper.h"

#include "base/clock.h"
#include "conf/conf.h"
#include "proto/socket.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const suffix[4] = {"ram", "save", "shadow", "delta"};

static void die(const char *what)
{
    fprintf(stderr, "fake keeper: %s: %s\n", what, strerror(errno));
    abort();
}

static void send_env(struct fake_keeper *k, mst_envelope *env)
{
    if (k->agent)
        if (mst_sock_send(k->agent, env) < 0)
            fprintf(stderr, "fake keeper: message %d not sent\n", (int)env->body_case);
}

static void reply_done(struct fake_keeper *k, uint64_t to, int error, const char *text)
{
    Mainstay__Done done = MAINSTAY__DONE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    done.error = error;
    done.text = (char *)(uintptr_t)text;
    env.has_reply_to = 1;
    env.reply_to = to;
    env.body_case = MAINSTAY__ENVELOPE__BODY_DONE;
    env.done = &done;
    send_env(k, &env);
}

/* --- VMs and areas --- */

struct fake_vm *fake_vm_find(struct fake_keeper *k, const char *name, uint64_t epoch)
{
    for (unsigned i = 0; i < FAKE_VMS_MAX; i++)
        if (k->vms[i].used && k->vms[i].epoch == epoch && strcmp(k->vms[i].name, name) == 0)
            return &k->vms[i];
    return NULL;
}

static struct fake_vm *vm_new(struct fake_keeper *k, const Mainstay__VmDefinition *definition, uint64_t epoch)
{
    struct fake_vm *vm = NULL;
    uint8_t packed[4096];
    size_t bytes = mainstay__vm_definition__pack(definition, packed);
    struct guest_console *console = NULL;

    for (unsigned i = 0; i < FAKE_VMS_MAX; i++) {
        if (!k->vms[i].used && !vm)
            vm = &k->vms[i];
        if (k->vms[i].used && strcmp(k->vms[i].name, definition->name) == 0)
            console = k->vms[i].console;
    }
    if (!vm)
        die("too many VMs");
    memset(vm, 0, sizeof(*vm));
    vm->used = true;
    snprintf(vm->name, sizeof(vm->name), "%s", definition->name);
    vm->epoch = epoch;
    vm->slot = (unsigned)(vm - k->vms);
    vm->definition = mainstay__vm_definition__unpack(NULL, bytes, packed);
    vm->console = console ? console : &k->consoles[vm->slot];
    vm->run_state = MST_RUN_STARTING;
    return vm;
}

static uint8_t *map_file_at(const char *path, size_t bytes, uint8_t *at)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    uint8_t *data;

    if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
        die(path);
    data = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | (at ? MAP_FIXED : 0), fd, 0);
    if (data == MAP_FAILED)
        die(path);
    close(fd);
    return data;
}

static uint8_t *map_file(const char *path, size_t bytes)
{
    return map_file_at(path, bytes, NULL);
}

static uint8_t *map_ram(struct fake_keeper *k, struct fake_vm *vm, size_t ram_bytes)
{
    uint8_t *range;

    if (!vm->disk_bytes)
        return map_file(vm->path[0], ram_bytes);
    snprintf(vm->disk_path, sizeof(vm->disk_path), "%s/%s.e%lu.disk", k->dir, vm->name, (unsigned long)vm->epoch);
    range = mmap(NULL, ram_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (range == MAP_FAILED)
        die("mmap");
    map_file_at(vm->path[0], ram_bytes - vm->disk_bytes, range);
    map_file_at(vm->disk_path, vm->disk_bytes, range + ram_bytes - vm->disk_bytes);
    return range;
}

static void areas_make(struct fake_keeper *k, struct fake_vm *vm)
{
    uint64_t ram_bytes = (uint64_t)mst_vm_area_mib(vm->definition) << 20;
    bool local = vm->definition->protect != MAINSTAY__PROTECT__PROTECT_NONE;

    if (vm->has_areas)
        return;
    for (unsigned i = 0; i < (local ? 4u : 2u); i++)
        snprintf(vm->path[i], sizeof(vm->path[i]), "%s/%s.e%lu.%s", k->dir, vm->name, (unsigned long)vm->epoch, suffix[i]);
    mst_save_layout(ram_bytes, &vm->save_layout);
    vm->map.ram_bytes = ram_bytes;
    vm->disk_bytes = (uint64_t)mst_vm_disk_mib(vm->definition) << 20;
    vm->map.ram = map_ram(k, vm, ram_bytes);
    vm->map.save = map_file(vm->path[1], vm->save_layout.bytes);
    if (local) {
        vm->map.delta_capacity = k->delta_capacity ? k->delta_capacity : mst_delta_capacity(ram_bytes);
        mst_delta_layout(vm->map.delta_capacity, &vm->delta_layout);
        vm->map.shadow = map_file(vm->path[2], ram_bytes);
        vm->map.delta = map_file(vm->path[3], vm->delta_layout.bytes);
    }
    vm->map.record = k->status->vms[vm->slot].save;
    vm->has_areas = true;
}

static void areas_drop(struct fake_vm *vm)
{
    if (!vm->has_areas)
        return;
    munmap((void *)(uintptr_t)vm->map.ram, vm->map.ram_bytes);
    munmap(vm->map.save, vm->save_layout.bytes);
    if (vm->map.shadow)
        munmap(vm->map.shadow, vm->map.ram_bytes);
    if (vm->map.delta)
        munmap(vm->map.delta, vm->delta_layout.bytes);
    for (unsigned i = 0; i < 4; i++)
        if (vm->path[i][0])
            unlink(vm->path[i]);
    if (vm->disk_bytes)
        unlink(vm->disk_path);
    mst_pub_clear(vm->map.record);
    memset(&vm->map, 0, sizeof(vm->map));
    vm->has_areas = false;
}

static void areas_name(struct fake_vm *vm, Mainstay__Areas *areas)
{
    mainstay__areas__init(areas);
    areas->ram = vm->path[0];
    areas->save = vm->path[1];
    areas->shadow = vm->path[2][0] ? vm->path[2] : NULL;
    areas->delta = vm->path[3][0] ? vm->path[3] : NULL;
    areas->ram_bytes = vm->map.ram_bytes;
    areas->has_delta_capacity = 1;
    areas->delta_capacity = vm->map.delta_capacity;
    areas->slot = vm->slot;
    areas->disk = vm->disk_bytes ? vm->disk_path : NULL;
    areas->has_disk_bytes = vm->disk_bytes != 0;
    areas->disk_bytes = vm->disk_bytes;
}

/* --- processes --- */

static void tell_exit(struct fake_keeper *k, struct fake_vm *vm)
{
    Mainstay__VmExited exited = MAINSTAY__VM_EXITED__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    vm->run_state = MST_RUN_DEAD;
    exited.vm = vm->name;
    exited.epoch = vm->epoch;
    exited.wait_status = vm->guest.wait_status;
    env.body_case = MAINSTAY__ENVELOPE__BODY_VM_EXITED;
    env.vm_exited = &exited;
    send_env(k, &env);
}

static void on_reaper(uv_timer_t *timer)
{
    struct fake_keeper *k = timer->data;

    for (unsigned i = 0; i < FAKE_VMS_MAX; i++)
        if (k->vms[i].used && k->vms[i].guest.pid != 0 && guest_gone(&k->vms[i].guest))
            tell_exit(k, &k->vms[i]);
}

/* --- requests of the agent --- */

static void on_pull(struct fake_keeper *k, const mst_envelope *env)
{
    const Mainstay__Pull *pull = env->pull;
    struct fake_vm *to = fake_vm_find(k, pull->vm, pull->epoch), *from = fake_vm_find(k, pull->vm, pull->source->epoch);
    Mainstay__Pulled pulled = MAINSTAY__PULLED__INIT;
    mst_envelope answer = MAINSTAY__ENVELOPE__INIT;
    struct mst_save_record record;
    struct mst_pub_head head;
    struct mst_why why = {""};
    uint8_t *ram, *device;
    int r;

    if (!to || !from || !from->has_areas) {
        reply_done(k, env->id, ENOENT, "fake keeper: no such save");
        return;
    }
    ram = (uint8_t *)(uintptr_t)to->map.ram;
    r = mst_pub_read(from->map.record, &head, &record, sizeof(record));
    if (r == 0)
        r = mst_save_record_check(&record, from->map.ram_bytes, from->map.delta_capacity, &why);
    if (r == 0 && record.source == MST_SAVE_RAM) {
        memcpy(ram, from->map.ram, from->map.ram_bytes);
    } else if (r == 0) {
        const struct mst_delta_entry *table = (const void *)(from->map.delta + from->delta_layout.table_off);

        memcpy(ram, from->map.shadow, from->map.ram_bytes);
        r = mst_delta_table_check(&record, table, &why);
        if (r == 0)
            r = mst_delta_overlay(&record, table, from->map.delta + from->delta_layout.data_off, ram, &why);
    }
    if (r < 0) {
        reply_done(k, env->id, -r, why.text[0] ? why.text : strerror(-r));
        return;
    }
    device = to->map.save + to->save_layout.device_off[0];
    memcpy(device, from->map.save + from->save_layout.device_off[record.device_slot], record.device_bytes);
    if (k->spoil_device || k->spoil_device_sum)
        memset(device, 0x5a, 64);
    pulled.has_device_crc32c = 1;
    pulled.device_crc32c = k->spoil_device_sum ? mst_crc32c(device, record.device_bytes) : record.device_crc32c;
    pulled.save_epoch = from->epoch;
    pulled.save_seq = record.seq;
    pulled.source = record.source;
    pulled.device_slot = 0;
    pulled.device_bytes = record.device_bytes;
    pulled.bytes = from->map.ram_bytes + record.device_bytes;
    pulled.pull_us = pulled.verify_us = 1;
    pulled.has_local = 1;
    pulled.local = strcmp(pull->source->node, "fake") == 0;
    answer.has_reply_to = 1;
    answer.reply_to = env->id;
    answer.body_case = MAINSTAY__ENVELOPE__BODY_PULLED;
    answer.pulled = &pulled;
    send_env(k, &answer);
}

static void on_spawn(struct fake_keeper *k, const mst_envelope *env)
{
    const Mainstay__Spawn *spawn = env->spawn;
    struct fake_vm *vm = fake_vm_find(k, spawn->vm, spawn->epoch);
    Mainstay__Spawned spawned = MAINSTAY__SPAWNED__INIT;
    mst_envelope answer = MAINSTAY__ENVELOPE__INIT;
    char *argv[120] = {NULL}, path[300];
    int r;

    if (!vm || k->refuse_spawn) {
        reply_done(k, env->id, EPERM, "fake keeper: spawn refused");
        return;
    }
    for (size_t i = 0; i < spawn->n_argv && i < 119; i++)
        argv[i] = spawn->argv[i];
    snprintf(path, sizeof(path), "%s/vm/%s", k->dir, vm->name);
    mkdir(path, 0700);
    snprintf(path, sizeof(path), "%s/vm/%s/qemu.log", k->dir, vm->name);
    unlink(path);
    guest_mark(vm->console);
    r = guest_spawn(&vm->guest, k->loop, argv, path, vm->console);
    if (r < 0)
        die("spawn");
    if (k->hold_spawned)
        return;
    spawned.pid = vm->guest.pid;
    answer.has_reply_to = 1;
    answer.reply_to = env->id;
    answer.body_case = MAINSTAY__ENVELOPE__BODY_SPAWNED;
    answer.spawned = &spawned;
    send_env(k, &answer);
}

static void areas_tell(struct fake_keeper *k, struct fake_vm *vm, uint64_t id, bool whole)
{
    Mainstay__AreasCreated created = MAINSTAY__AREAS_CREATED__INIT;
    mst_envelope answer = MAINSTAY__ENVELOPE__INIT;
    Mainstay__Areas areas;

    areas_name(vm, &areas);
    if (!whole)
        areas.shadow = areas.delta = NULL;
    created.areas = &areas;
    answer.has_reply_to = 1;
    answer.reply_to = id;
    answer.body_case = MAINSTAY__ENVELOPE__BODY_AREAS_CREATED;
    answer.areas_created = &created;
    send_env(k, &answer);
}

static void on_areas_create(struct fake_keeper *k, const mst_envelope *env)
{
    const Mainstay__AreasCreate *asked = env->areas_create;
    struct fake_vm *vm = fake_vm_find(k, asked->definition->name, asked->epoch);

    if (!vm) {
        reply_done(k, env->id, ENOENT, "fake keeper: no such grant");
    } else if (asked->part == MAINSTAY__AREAS_PART__AREAS_REST && k->hold_rest) {
        k->rest_id = env->id;
        k->rest_vm = vm;
    } else {
        if (asked->part != MAINSTAY__AREAS_PART__AREAS_REST)
            areas_make(k, vm);
        areas_tell(k, vm, env->id, asked->part != MAINSTAY__AREAS_PART__AREAS_FIRST);
    }
}

void fake_rest_release(struct fake_keeper *k)
{
    k->hold_rest = false;
    if (k->rest_id != 0)
        areas_tell(k, k->rest_vm, k->rest_id, true);
    k->rest_id = 0;
}

static void on_kill(struct fake_keeper *k, const mst_envelope *env)
{
    struct fake_vm *vm = fake_vm_find(k, env->kill->vm, env->kill->epoch);

    if (vm && vm->guest.pid != 0) {
        guest_kill(&vm->guest);
        tell_exit(k, vm);
        vm->run_state = MST_RUN_STARTING;
    }
    reply_done(k, env->id, 0, NULL);
}

static void on_hello(struct fake_keeper *k)
{
    Mainstay__AgentWelcome welcome = MAINSTAY__AGENT_WELCOME__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    Mainstay__AgentVm vms[FAKE_VMS_MAX], *list[FAKE_VMS_MAX];
    Mainstay__Areas areas[FAKE_VMS_MAX];
    char status[200];

    snprintf(status, sizeof(status), "%s/status", k->dir);
    welcome.node = (char *)(uintptr_t) "fake";
    welcome.instance = k->instance;
    welcome.status_path = status;
    welcome.run_dir = k->dir;
    welcome.qemu = (char *)(uintptr_t) "qemu-system-x86_64";
    welcome.accel = (char *)(uintptr_t) "tcg";
    welcome.vms = list;
    for (unsigned i = 0; i < FAKE_VMS_MAX; i++) {
        struct fake_vm *vm = &k->vms[i];

        if (!vm->used)
            continue;
        mainstay__agent_vm__init(&vms[i]);
        vms[i].definition = vm->definition;
        vms[i].epoch = vm->epoch;
        vms[i].slot = vm->slot;
        vms[i].run_state = vm->run_state;
        vms[i].has_qemu_pid = vm->guest.pid != 0;
        vms[i].qemu_pid = vm->guest.pid;
        if (vm->has_areas) {
            areas_name(vm, &areas[i]);
            vms[i].areas = &areas[i];
        }
        list[welcome.n_vms++] = &vms[i];
    }
    env.body_case = MAINSTAY__ENVELOPE__BODY_AGENT_WELCOME;
    env.agent_welcome = &welcome;
    if (k->welcome_in_parts) {
        size_t count = welcome.n_vms;

        welcome.n_vms = 0;
        send_env(k, &env);
        welcome.n_vms = count;
    }
    send_env(k, &env);
}

static void on_done(struct fake_keeper *k, const mst_envelope *env)
{
    const Mainstay__Done *done = env->done;
    struct fake_vm *vm;

    if (env->reply_to != k->done.id)
        return;
    k->done.here = true;
    k->done.error = done->error;
    snprintf(k->done.text, sizeof(k->done.text), "%s", done->text ? done->text : "");
    k->done.has_start = done->start != NULL;
    if (done->start)
        k->done.start = *done->start;
    k->done.has_save = done->save != NULL;
    if (done->save)
        k->done.save = *done->save;
    for (unsigned i = 0; i < FAKE_VMS_MAX && done->start; i++) {
        vm = &k->vms[i];
        if (vm->used && vm->run_state == MST_RUN_STARTING && vm->guest.pid != 0)
            vm->run_state = MST_RUN_RUNNING;
    }
}

static void on_vm_state(struct fake_keeper *k, const mst_envelope *env)
{
    struct fake_vm *vm = fake_vm_find(k, env->vm_state->vm, env->vm_state->epoch);

    if (vm) {
        vm->run_state = env->vm_state->run_state;
        vm->states_told++;
        if (env->vm_state->has_fault)
            vm->fault = env->vm_state->fault;
    }
    reply_done(k, env->id, 0, NULL);
}

static void on_fault(struct fake_keeper *k, const mst_envelope *env)
{
    struct fake_fault *fault = &k->faults[k->fault_count % FAKE_FAULTS_MAX];

    k->fault_count++;
    fault->kind = env->fault_report->kind;
    snprintf(fault->vm, sizeof(fault->vm), "%s", env->fault_report->vm ? env->fault_report->vm : "");
    snprintf(fault->text, sizeof(fault->text), "%s", env->fault_report->text ? env->fault_report->text : "");
    reply_done(k, env->id, 0, NULL);
}

static void on_put_late(uv_timer_t *timer)
{
    struct fake_keeper *k = timer->data;

    if (k->put_id != 0)
        reply_done(k, k->put_id, 0, NULL);
    k->put_id = 0;
}

void fake_puts_release(struct fake_keeper *k)
{
    k->hold_puts = false;
    on_put_late(&k->put_timer);
}

static void on_message(struct mst_sock *sock, const mst_envelope *env, void *arg)
{
    struct fake_keeper *k = arg;
    struct fake_vm *vm;

    (void)sock;
    switch (env->body_case) {
    case MAINSTAY__ENVELOPE__BODY_AGENT_HELLO:
        k->agents_seen++;
        on_hello(k);
        break;
    case MAINSTAY__ENVELOPE__BODY_AREAS_CREATE:
        on_areas_create(k, env);
        break;
    case MAINSTAY__ENVELOPE__BODY_AREAS_DROP:
        vm = fake_vm_find(k, env->areas_drop->vm, env->areas_drop->epoch);
        if (vm)
            areas_drop(vm);
        reply_done(k, env->id, 0, NULL);
        break;
    case MAINSTAY__ENVELOPE__BODY_PULL:
        on_pull(k, env);
        break;
    case MAINSTAY__ENVELOPE__BODY_SPAWN:
        on_spawn(k, env);
        break;
    case MAINSTAY__ENVELOPE__BODY_KILL:
        on_kill(k, env);
        break;
    case MAINSTAY__ENVELOPE__BODY_VM_STATE:
        on_vm_state(k, env);
        break;
    case MAINSTAY__ENVELOPE__BODY_FAULT_REPORT:
        on_fault(k, env);
        break;
    case MAINSTAY__ENVELOPE__BODY_NODE_HEALTH:
        k->health_count++;
        k->health = env->node_health->health;
        reply_done(k, env->id, 0, NULL);
        break;
    case MAINSTAY__ENVELOPE__BODY_DONE:
        on_done(k, env);
        break;
    case MAINSTAY__ENVELOPE__BODY_CHECKPOINT_PUT:
        k->put_id = env->id;
        if (k->hold_puts)
            break;
        if (k->put_ms == 0)
            on_put_late(&k->put_timer);
        else
            uv_timer_start(&k->put_timer, on_put_late, k->put_ms, 0);
        break;
    default:
        reply_done(k, env->id, EOPNOTSUPP, "fake keeper: not known");
    }
}

static void on_closed(struct mst_sock *sock, int err, const struct mst_why *why, void *arg)
{
    struct fake_keeper *k = arg;

    (void)err;
    (void)why;
    if (k->agent == sock)
        k->agent = NULL;
}

static int on_accept(struct mst_sock *sock, pid_t pid, uid_t uid, void *arg, const struct mst_sock_events **ret_events,
                     void **ret_arg)
{
    static const struct mst_sock_events events = {on_message, on_closed};
    struct fake_keeper *k = arg;

    (void)pid;
    (void)uid;
    if (k->agent)
        return -EBUSY;
    k->agent = sock;
    *ret_events = &events;
    *ret_arg = k;
    return 0;
}

/* --- interface --- */

struct fake_keeper *fake_keeper_new(uv_loop_t *loop)
{
    static const uint8_t boot_id[16] = {1};
    struct fake_keeper *k = calloc(1, sizeof(*k));
    struct mst_why why;
    char path[200];

    if (!k)
        die("calloc");
    k->loop = loop;
    k->instance = mst_random_u64();
    snprintf(k->dir, sizeof(k->dir), "/dev/shm/mst-fake-XXXXXX");
    if (!mkdtemp(k->dir))
        die("mkdtemp");
    snprintf(path, sizeof(path), "%s/vm", k->dir);
    mkdir(path, 0700);
    snprintf(path, sizeof(path), "%s/status", k->dir);
    k->status = (struct mst_status_area *)(void *)map_file(path, sizeof(*k->status));
    mst_status_init(k->status, "fake", "fake", 1, k->instance, boot_id, mst_wall_ms());
    snprintf(path, sizeof(path), "%s/keeper.sock", k->dir);
    if (mst_sockserv_open(loop, path, 0600, on_accept, k, &k->serv, &why) < 0)
        die(why.text);
    uv_timer_init(loop, &k->reaper);
    k->reaper.data = k;
    uv_timer_start(&k->reaper, on_reaper, 5, 5);
    uv_timer_init(loop, &k->put_timer);
    k->put_timer.data = k;
    return k;
}

struct beat_wait {
    struct fake_keeper *k;
    uint64_t beat;
};

static bool beats(void *arg)
{
    struct beat_wait *wait = arg;

    return wait->k->agent && __atomic_load_n(&wait->k->status->agent.beat, __ATOMIC_RELAXED) > wait->beat + 2;
}

void fake_agent_start(struct fake_keeper *k, const char *program)
{
    struct beat_wait wait = {.k = k, .beat = k->status->agent.beat};
    char path[200];
    pid_t parent = getpid();

    snprintf(path, sizeof(path), "%s/keeper.sock", k->dir);
    k->agent_pid = fork();
    if (k->agent_pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(127);
        execl(program, program, "--keeper", path, (char *)NULL);
        _exit(127);
    }
    if (k->agent_pid < 0 || !loop_until(k->loop, beats, &wait, 20000))
        die("the agent does not beat");
}

static bool no_agent(void *arg)
{
    return ((struct fake_keeper *)arg)->agent == NULL;
}

void fake_agent_kill(struct fake_keeper *k, int signal_number)
{
    kill(k->agent_pid, signal_number);
    if (signal_number != SIGKILL)
        return;
    waitpid(k->agent_pid, NULL, 0);
    k->agent_pid = 0;
    loop_until(k->loop, no_agent, k, 10000);
}

static bool agent_ended(void *arg)
{
    struct fake_keeper *k = arg;
    int status;

    if (k->agent_pid != 0 && waitpid(k->agent_pid, &status, WNOHANG) == k->agent_pid) {
        k->agent_pid = 0;
        k->done.error = status; /* a place to keep it */
    }
    return k->agent_pid == 0;
}

int fake_agent_part(struct fake_keeper *k)
{
    if (k->agent)
        mst_sock_close(k->agent);
    if (!loop_until(k->loop, agent_ended, k, 20000))
        die("the agent does not end");
    loop_until(k->loop, no_agent, k, 10000);
    return k->done.error;
}

static void on_timer_closed(uv_handle_t *handle)
{
    *(bool *)handle->data = true;
}

static bool is_true(void *arg)
{
    return *(bool *)arg;
}

void fake_keeper_free(struct fake_keeper *k)
{
    bool closed = false;
    char command[200];

    if (k->agent_pid)
        fake_agent_kill(k, SIGKILL);
    for (unsigned i = 0; i < FAKE_VMS_MAX; i++) {
        if (!k->vms[i].used)
            continue;
        guest_kill(&k->vms[i].guest);
        areas_drop(&k->vms[i]);
        mainstay__vm_definition__free_unpacked(k->vms[i].definition, NULL);
    }
    k->reaper.data = &closed;
    uv_close((uv_handle_t *)&k->put_timer, NULL);
    uv_close((uv_handle_t *)&k->reaper, on_timer_closed);
    loop_until(k->loop, is_true, &closed, 5000);
    mst_sockserv_close(k->serv);
    uv_run(k->loop, UV_RUN_DEFAULT);
    munmap(k->status, sizeof(*k->status));
    snprintf(command, sizeof(command), "rm -rf %s", k->dir);
    if (system(command) != 0)
        die(command);
    free(k);
}

static uint64_t new_order(struct fake_keeper *k, mst_envelope *env)
{
    memset(&k->done, 0, sizeof(k->done));
    k->done.id = ++k->next_id;
    env->has_id = 1;
    env->id = k->done.id;
    send_env(k, env);
    return k->done.id;
}

uint64_t fake_order_start(struct fake_keeper *k, const Mainstay__VmDefinition *definition, uint64_t epoch, uint64_t source_epoch,
                          bool remote)
{
    Mainstay__OrderStart order = MAINSTAY__ORDER_START__INIT;
    Mainstay__SaveSource source = MAINSTAY__SAVE_SOURCE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    if (!fake_vm_find(k, definition->name, epoch))
        vm_new(k, definition, epoch);
    order.definition = (Mainstay__VmDefinition *)(uintptr_t)definition;
    order.epoch = epoch;
    source.node = (char *)(uintptr_t)(remote ? "elsewhere" : "fake");
    source.node_id = remote ? 2 : 1;
    source.instance = k->instance;
    source.epoch = source_epoch;
    if (source_epoch)
        order.source = &source;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_START;
    env.order_start = &order;
    return new_order(k, &env);
}

void fake_order_again(struct fake_keeper *k, uint64_t id, const Mainstay__VmDefinition *definition, uint64_t epoch)
{
    k->next_id = id - 1;
    fake_order_start(k, definition, epoch, 0, false);
}

uint64_t fake_order_save(struct fake_keeper *k, const char *vm, uint64_t epoch)
{
    Mainstay__OrderSave order = MAINSTAY__ORDER_SAVE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    order.vm = (char *)(uintptr_t)vm;
    order.epoch = epoch;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_SAVE;
    env.order_save = &order;
    return new_order(k, &env);
}

uint64_t fake_order_continue(struct fake_keeper *k, const char *vm, uint64_t epoch)
{
    Mainstay__OrderContinue order = MAINSTAY__ORDER_CONTINUE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    order.vm = (char *)(uintptr_t)vm;
    order.epoch = epoch;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_CONTINUE;
    env.order_continue = &order;
    return new_order(k, &env);
}

static bool done_here(void *arg)
{
    return ((struct fake_keeper *)arg)->done.here;
}

const struct fake_done *fake_wait_done(struct fake_keeper *k, uint64_t id, unsigned timeout_ms)
{
    if (k->done.id != id || !loop_until(k->loop, done_here, k, timeout_ms))
        return NULL;
    return &k->done;
}

uint64_t fake_seq(struct fake_vm *vm, uint32_t *ret_source)
{
    struct mst_save_record record;
    struct mst_pub_head head;

    if (!vm->has_areas || mst_pub_read(vm->map.record, &head, &record, sizeof(record)) != 0)
        return 0;
    if (ret_source)
        *ret_source = record.source;
    return record.source == MST_SAVE_NONE ? 0 : record.seq;
}

struct wait {
    struct fake_keeper *k;
    struct fake_vm *vm;
    const struct guest_console *console;
    uint64_t number;
};

static bool seq_there(void *arg)
{
    struct wait *wait = arg;

    return fake_seq(wait->vm, NULL) >= wait->number;
}

bool fake_wait_seq(struct fake_keeper *k, struct fake_vm *vm, uint64_t seq, unsigned timeout_ms)
{
    struct wait wait = {.vm = vm, .number = seq};

    return loop_until(k->loop, seq_there, &wait, timeout_ms);
}

static bool fault_there(void *arg)
{
    struct wait *wait = arg;

    for (unsigned i = 0; i < wait->k->fault_count && i < FAKE_FAULTS_MAX; i++)
        if (wait->k->faults[i].kind == wait->number)
            return true;
    return false;
}

bool fake_wait_fault(struct fake_keeper *k, Mainstay__FaultKind kind, unsigned timeout_ms)
{
    struct wait wait = {.k = k, .number = kind};

    return loop_until(k->loop, fault_there, &wait, timeout_ms);
}

static bool beats_there(void *arg)
{
    struct wait *wait = arg;

    return wait->console->beats >= wait->number;
}

bool fake_wait_beats(struct fake_keeper *k, struct guest_console *console, uint64_t more, unsigned timeout_ms)
{
    struct wait wait = {.console = console, .number = console->beats + more};

    return loop_until(k->loop, beats_there, &wait, timeout_ms);
}

static bool state_there(void *arg)
{
    struct wait *wait = arg;

    return wait->vm->run_state == wait->number;
}

bool fake_wait_state(struct fake_keeper *k, struct fake_vm *vm, uint32_t run_state, unsigned timeout_ms)
{
    struct wait wait = {.vm = vm, .number = run_state};

    return loop_until(k->loop, state_there, &wait, timeout_ms);
}
