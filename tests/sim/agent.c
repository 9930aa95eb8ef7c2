#include "tests/sim/seam/seam_calls.h"
#include "tests/sim/world.h"

#include "base/clock.h"
#include "node/keeper/keeper.h"
#include "proto/socket.h"
#include "shm/save.h"
#include "tests/sim/oracle.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The agent, written by hand: it speaks the keeper's protocol over the same socket and keeps checkpoints with the real writer of save areas
 * (shm/save_write.c), but drives a QEMU that is a few bytes. What the real one does between two answers of QEMU is one event here.
 *
 * start     AreasCreate -> [Pull] -> Spawn -> load -> run -> VmState, Done; a failure: Kill -> AreasDrop -> Done
 * running   a checkpoint every interval: stage while the guest runs; stop, stage the rest, commit; go on; apply. Each is an event of its own, so that
 *           a death between any two of them is one of the stories. Under protect mirror the keeper is told of it when the guest goes on, and the next
 *           one waits for its answer
 * again     a new agent takes up what runs, and begins anew what was being started, when that is ordered again */

void *sim_calloc(size_t count, size_t bytes);

enum vm_state {
    AVM_FREE,
    AVM_ORPHAN,
    AVM_CLEAN_KILL,
    AVM_CLEAN_DROP,
    AVM_CREATING,
    AVM_PULLING,
    AVM_SPAWNING,
    AVM_LOADING,
    AVM_RUNNING,
    AVM_SAVING,
    AVM_SAVED,
    AVM_PANICKED,
    AVM_FAIL_KILL,
    AVM_FAIL_DROP,
};

struct avm {
    struct sim_agent *agent;
    enum vm_state state;
    char vm[MST_NAME_BYTES];
    uint64_t epoch;
    bool protect, mirror;          /* mirror: and its keeper hands them on */
    bool output_commit;            /* and holds back what it sends */
    uint64_t mark_id, mark_serial; /* OutputMark that is open, 0: none; of which checkpoint */
    uint64_t put_id;               /* CheckpointPut that is open, 0: none */
    uint64_t rest_id;              /* AreasCreate for shadow and delta that is open, 0: none */
    uint64_t put_seq;              /* checkpoint that is committed and not handed on yet, 0: none */
    bool put_whole, due;           /* due: a checkpoint waits for the answer */
    bool save_put;                 /* what was saved by order is handed on */
    uint32_t interval_ms, memory_mib;
    uint8_t *order, *definition; /* packed OrderStart, NULL: it was taken up; and VmDefinition */
    size_t order_bytes, definition_bytes;
    uint64_t start_ids[4], save_id, continue_id;
    unsigned starts;
    Mainstay__StartResult result;
    bool started;
    uint64_t request; /* towards the keeper, open */
    pid_t pid;
    unsigned slot;
    char path[MST_AREA_KINDS][120];
    uint64_t ram_bytes;
    uint32_t delta_capacity;
    bool mapped;
    struct mst_save_writer *writer;
    bool pulled;
    uint64_t load_epoch, load_seq;
    uint32_t device_slot, device_crc;
    uint64_t device_bytes;
    bool has_crc;
    int err;
    char text[200];
    uint64_t serial; /* of the checkpoint that is under way */
    bool told_silent;
};

struct sim_agent {
    struct sim_host *host;
    struct sim_task *task;
    struct mst_sock *sock;
    bool welcomed;
    uint64_t next_id, born_ns;
    uint64_t instance;
    struct mst_status_area *status;
    struct avm vms[MST_VMS_PER_NODE];
};

struct later { /* an event about a VM */
    struct avm *vm;
    uint64_t epoch, serial;
    enum vm_state state;
};

#define MST_MSG(case_, member_, body_)                                                                                           \
    {                                                                                                                            \
        .base = PROTOBUF_C_MESSAGE_INIT(&mainstay__envelope__descriptor), .body_case = MAINSTAY__ENVELOPE__BODY_##case_,         \
        .member_ = (body_)                                                                                                       \
    }

static void vm_fail(struct avm *vm, int err, const char *text);
static void checkpoint_later(struct avm *vm);

/* --- sending --- */

static void send_env(struct sim_agent *agent, mst_envelope *env)
{
    if (agent->sock)
        (void)mst_sock_send(agent->sock, env);
}

static void ask(struct avm *vm, mst_envelope *env)
{
    vm->request = ++vm->agent->next_id;
    env->has_id = 1;
    env->id = vm->request;
    send_env(vm->agent, env);
}

static void answer(struct sim_agent *agent, uint64_t id, int err, const char *text, Mainstay__StartResult *start, uint64_t seq)
{
    Mainstay__Done done = MAINSTAY__DONE__INIT;
    Mainstay__SaveResult save = MAINSTAY__SAVE_RESULT__INIT;
    mst_envelope env = MST_MSG(DONE, done, &done);

    if (!id)
        return;
    done.error = -err;
    done.text = (char *)text;
    done.start = start;
    save.seq = seq;
    if (seq)
        done.save = &save;
    env.has_reply_to = 1;
    env.reply_to = id;
    send_env(agent, &env);
}

static void tell_state(struct avm *vm, unsigned run_state, uint32_t fault)
{
    Mainstay__VmState body = MAINSTAY__VM_STATE__INIT;
    mst_envelope env = MST_MSG(VM_STATE, vm_state, &body);

    body.vm = vm->vm;
    body.epoch = vm->epoch;
    body.run_state = run_state;
    body.has_fault = fault != 0;
    body.fault = (Mainstay__FaultKind)fault;
    send_env(vm->agent, &env);
}

void sim_agent_report(struct sim_host *host, uint32_t kind, const char *vm, uint64_t epoch, const char *text)
{
    Mainstay__FaultReport body = MAINSTAY__FAULT_REPORT__INIT;
    mst_envelope env = MST_MSG(FAULT_REPORT, fault_report, &body);

    if (!host->a || !host->agent.alive)
        return;
    body.kind = (Mainstay__FaultKind)kind;
    body.node = host->name;
    body.vm = (char *)vm;
    body.has_epoch = vm != NULL;
    body.epoch = epoch;
    body.text = (char *)text;
    send_env(host->a, &env);
}

/* --- table, events --- */

static struct avm *avm_find(struct sim_agent *agent, const char *name, uint64_t epoch)
{
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++) {
        struct avm *vm = &agent->vms[i];

        if (vm->state != AVM_FREE && (epoch == 0 || vm->epoch == epoch) && strcmp(vm->vm, name) == 0)
            return vm;
    }
    return NULL;
}

static struct avm *avm_new(struct sim_agent *agent, const char *name, uint64_t epoch)
{
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++) {
        struct avm *vm = &agent->vms[i];

        if (vm->state != AVM_FREE)
            continue;
        memset(vm, 0, sizeof(*vm));
        vm->agent = agent;
        vm->epoch = epoch;
        snprintf(vm->vm, sizeof(vm->vm), "%s", name);
        return vm;
    }
    abort(); /* the keeper has as many slots */
}

static void avm_end(struct avm *vm)
{
    mst_save_writer_free(vm->writer);
    vm->writer = NULL;
    vm->state = AVM_FREE;
}

static struct sim_task *qemu_of(const struct avm *vm)
{
    struct sim_task *task = vm->pid ? sim_task_by_pid(vm->pid) : NULL;

    return task && task->alive ? task : NULL;
}

static void later(struct avm *vm, uint64_t ns, sim_fn fn)
{
    struct later *one = sim_keep(sizeof(*one));

    *one = (struct later){.vm = vm, .epoch = vm->epoch, .serial = vm->serial, .state = vm->state};
    sim_at(K.current, ns, fn, one);
}

static bool still(const struct later *one)
{
    return one->vm->state == one->state && one->vm->epoch == one->epoch && one->vm->serial == one->serial;
}

/* --- main storage --- */

static uint8_t *area(const struct avm *vm, enum mst_area_kind kind)
{
    struct sim_file *file = vm->path[kind][0] ? sim_file_find(vm->agent->host, vm->path[kind]) : NULL;

    return file && file->named ? sim_file_data(file) : NULL;
}

static struct mst_save_map map_of(const struct avm *vm)
{
    return (struct mst_save_map){.ram_bytes = vm->ram_bytes,
                                 .ram = area(vm, MST_AREA_RAM),
                                 .save = area(vm, MST_AREA_SAVE),
                                 .shadow = area(vm, MST_AREA_SHADOW),
                                 .delta = area(vm, MST_AREA_DELTA),
                                 .delta_capacity = vm->delta_capacity,
                                 .record = vm->agent->status->vms[vm->slot].save,
                                 .epoch = vm->epoch,
                                 .instance = vm->agent->instance};
}

static void take_areas(struct avm *vm, const Mainstay__Areas *areas)
{
    const char *path[MST_AREA_KINDS] = {areas->ram, areas->save, areas->shadow, areas->delta};

    for (int i = 0; i < MST_AREA_KINDS; i++)
        snprintf(vm->path[i], sizeof(vm->path[i]), "%s", path[i] ? path[i] : "");
    vm->ram_bytes = areas->ram_bytes;
    vm->delta_capacity = areas->delta_capacity;
    vm->slot = areas->slot;
    vm->mapped = true;
}

/* What the keeper frees, nobody may write to: a real agent would have its own mapping of a file without a name. */
void sim_agent_unmap(struct sim_host *host, const struct sim_file *file)
{
    for (unsigned i = 0; host->a && host->agent.alive && i < MST_VMS_PER_NODE; i++) {
        struct avm *vm = &host->a->vms[i];

        for (int kind = 0; vm->state != AVM_FREE && vm->mapped && kind < MST_AREA_KINDS; kind++) {
            if (strcmp(vm->path[kind], file->path) == 0)
                vm->mapped = false;
        }
    }
}

static bool can_write(const struct avm *vm)
{
    return vm->mapped && vm->writer;
}

/* --- checkpoints --- */

static uint64_t put_device(struct avm *vm, const struct sim_task *task)
{
    struct sim_moment moment = {.vm = task->vm_index, .lineage = task->lineage, .tick = task->tick};
    uint64_t room;

    memcpy(mst_save_device(vm->writer, &room), &moment, sizeof(moment));
    return sizeof(moment);
}

static void committed(struct avm *vm, const struct sim_task *task, bool whole)
{
    struct sim_moment moment = {.vm = task->vm_index, .lineage = task->lineage, .tick = task->tick};

    if (sim_muted()) /* it was killed meanwhile */
        return;
    oracle_checkpoint(vm->agent->host, vm->vm, vm->epoch, mst_save_seq(vm->writer), &moment, vm->protect);
    vm->put_seq = vm->mirror ? mst_save_seq(vm->writer) : 0;
    vm->put_whole = whole;
}

/* found: an agent before committed it; then the record alone says what is in it. */
static void put_send(struct avm *vm, bool found)
{
    Mainstay__CheckpointPut body = MAINSTAY__CHECKPOINT_PUT__INIT;
    mst_envelope env = MST_MSG(CHECKPOINT_PUT, checkpoint_put, &body);
    uint32_t table_crc32c = 0, pages;

    if (!vm->mirror || !vm->writer || (!found && vm->put_seq == 0))
        return;
    pages = mst_save_delta(vm->writer, &table_crc32c);
    body.vm = vm->vm;
    body.epoch = vm->epoch;
    body.seq = mst_save_seq(vm->writer);
    if (!found || pages > 0) {
        body.has_delta_pages = body.has_delta_table_crc32c = body.has_whole = 1;
        body.delta_pages = pages;
        body.delta_table_crc32c = table_crc32c;
        body.whole = !found && vm->put_whole;
    }
    vm->put_seq = 0;
    vm->put_id = ++vm->agent->next_id;
    env.has_id = 1;
    env.id = vm->put_id;
    send_env(vm->agent, &env);
}

static void stage_all(struct avm *vm)
{
    for (uint64_t page = 0; page < vm->ram_bytes / MST_PAGE_BYTES; page++) {
        if (mst_save_source(vm->writer) == MST_SAVE_NONE)
            (void)mst_save_fill(vm->writer, page);
        else
            (void)mst_save_stage_if_changed(vm->writer, page);
    }
}

static int commit_staged(struct avm *vm, const struct sim_task *task)
{
    bool first = mst_save_source(vm->writer) == MST_SAVE_NONE;
    int r = first ? mst_save_commit_filled(vm->writer, put_device(vm, task), 0, 0, mst_now_ns())
                  : mst_save_commit(vm->writer, put_device(vm, task), 0, 0, mst_now_ns());

    if (r == 0)
        committed(vm, task, first);
    return r;
}

static void checkpoint_apply(void *arg)
{
    struct later *one = arg;

    if (!still(one))
        return;
    if (can_write(one->vm))
        mst_save_apply(one->vm->writer);
    checkpoint_later(one->vm);
}

static void checkpoint_go_on(void *arg)
{
    struct later *one = arg;
    struct sim_task *task = qemu_of(one->vm);

    if (!still(one) || !task)
        return;
    if (!task->stopped && task->guest == GUEST_PAUSED)
        sim_guest_run(task);
    put_send(one->vm, false);
    later(one->vm, sim_between(1, 8) * SIM_MS, checkpoint_apply);
}

static void checkpoint_commit(void *arg)
{
    struct later *one = arg;
    struct avm *vm = one->vm;
    struct sim_task *task = qemu_of(vm);

    if (!still(one) || !task || !can_write(vm) || task->stopped)
        return;
    stage_all(vm);
    commit_staged(vm, task);
    later(vm, sim_between(20, 400) * SIM_US, checkpoint_go_on);
}

static void saved(void *arg);

static void marked(struct avm *vm)
{
    vm->mark_id = 0;
    if (vm->mark_serial != vm->serial)
        return; /* of a checkpoint that is over */
    if (vm->state == AVM_RUNNING)
        later(vm, sim_between(200, 3000) * SIM_US, checkpoint_commit);
    else if (vm->state == AVM_SAVING)
        later(vm, sim_between(1, 40) * SIM_MS, saved);
}

/* The guest stands: what it has sent until now belongs to this checkpoint. Goes on in marked. */
static void mark(struct avm *vm)
{
    Mainstay__OutputMark body = MAINSTAY__OUTPUT_MARK__INIT;
    mst_envelope env = MST_MSG(OUTPUT_MARK, output_mark, &body);

    vm->mark_serial = vm->serial;
    if (!vm->output_commit || !vm->writer) {
        marked(vm);
        return;
    }
    body.vm = vm->vm;
    body.epoch = vm->epoch;
    body.seq = mst_save_seq(vm->writer) + 1;
    vm->mark_id = ++vm->agent->next_id;
    env.has_id = 1;
    env.id = vm->mark_id;
    send_env(vm->agent, &env);
}

static void checkpoint_pause(void *arg)
{
    struct later *one = arg;
    struct sim_task *task = qemu_of(one->vm);

    if (!still(one) || !task || task->stopped || task->guest != GUEST_RUNNING)
        return;
    sim_guest_pause(task, GUEST_PAUSED);
    mark(one->vm);
}

/* Shadow and delta: the first checkpoint waits for them. */
static void rest_ask(struct avm *vm)
{
    Mainstay__VmDefinition *definition = mainstay__vm_definition__unpack(NULL, vm->definition_bytes, vm->definition);
    Mainstay__AreasCreate body = MAINSTAY__AREAS_CREATE__INIT;
    mst_envelope env = MST_MSG(AREAS_CREATE, areas_create, &body);

    if (vm->rest_id)
        return;
    body.definition = definition;
    body.epoch = vm->epoch;
    body.has_part = 1;
    body.part = MAINSTAY__AREAS_PART__AREAS_REST;
    vm->rest_id = ++vm->agent->next_id;
    env.has_id = 1;
    env.id = vm->rest_id;
    send_env(vm->agent, &env);
    mainstay__vm_definition__free_unpacked(definition, NULL);
}

static void rest_answered(struct avm *vm, const mst_envelope *env)
{
    struct mst_save_map map;

    vm->rest_id = 0;
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_AREAS_CREATED && vm->mapped) {
        take_areas(vm, env->areas_created->areas);
        map = map_of(vm);
        if (vm->writer && mst_save_writer_rest(vm->writer, &map) < 0)
            abort(); /* an agent would say that there are no checkpoints; here nothing can be missing */
    }
    if (vm->state == AVM_RUNNING)
        checkpoint_later(vm);
}

static void checkpoint_stage(void *arg)
{
    struct later *one = arg;
    struct avm *vm = one->vm;
    struct sim_task *task = qemu_of(vm);

    if (!still(one) || !task || !can_write(vm))
        return;
    if (!area(vm, MST_AREA_SHADOW)) {
        rest_ask(vm);
        return;
    }
    if (task->stopped || task->guest != GUEST_RUNNING) { /* the monitor is silent */
        checkpoint_later(vm);
        return;
    }
    if (vm->put_id) { /* its mirrors have not taken the one before: put_answered goes on */
        vm->due = true;
        return;
    }
    mst_save_begin(vm->writer);
    sim_guest_advance(task);
    stage_all(vm);
    later(vm, sim_between(500, 4000) * SIM_US, checkpoint_pause);
}

static void checkpoint_later(struct avm *vm)
{
    vm->serial++;
    if (vm->protect && vm->state == AVM_RUNNING)
        later(vm, vm->interval_ms * SIM_MS + sim_between(0, 20) * SIM_MS, checkpoint_stage);
}

static void save_begin(struct avm *vm);

/* The delta may be written again. */
static void put_answered(struct avm *vm)
{
    bool due = vm->due;

    vm->put_id = 0;
    vm->due = false;
    if (vm->state == AVM_SAVING)
        save_begin(vm);
    else if (due && vm->state == AVM_RUNNING)
        later(vm, SIM_MS, checkpoint_stage);
}

/* --- a running VM --- */

static void ping(void *arg)
{
    struct later *one = arg;
    struct avm *vm = one->vm;
    struct sim_task *task = vm->state == AVM_FREE ? NULL : qemu_of(vm);

    if (vm->epoch != one->epoch || vm->state < AVM_RUNNING || vm->state > AVM_PANICKED || !task)
        return;
    if (task->stopped && !vm->told_silent) {
        vm->told_silent = true;
        sim_agent_report(vm->agent->host, MST_FAULT_VM_SILENT, vm->vm, vm->epoch, "QMP does not answer");
    }
    if (task->guest == GUEST_PANICKED && vm->state == AVM_RUNNING) {
        vm->state = AVM_PANICKED;
        vm->serial++;
        tell_state(vm, MST_RUN_PAUSED, MST_FAULT_VM_PANICKED);
        sim_agent_report(vm->agent->host, MST_FAULT_VM_PANICKED, vm->vm, vm->epoch, "guest panicked");
    }
    sim_at(K.current, SIM_S, ping, one);
}

static void runs(struct avm *vm)
{
    vm->state = AVM_RUNNING;
    checkpoint_later(vm);
    later(vm, sim_between(100, 1000) * SIM_MS, ping);
}

static void started(struct avm *vm)
{
    vm->started = true;
    tell_state(vm, MST_RUN_RUNNING, 0);
    for (unsigned i = 0; i < vm->starts; i++)
        answer(vm->agent, vm->start_ids[i], 0, NULL, &vm->result, 0);
    vm->starts = 0;
    runs(vm);
}

/* --- starting --- */

static void make_writer(struct avm *vm)
{
    struct mst_save_map map = map_of(vm);

    mst_save_writer_free(vm->writer);
    vm->writer = NULL;
    if (!map.ram || mst_save_writer_new(&map, &vm->writer) < 0)
        vm->writer = NULL;
}

static void load_done(void *arg)
{
    struct later *one = arg;
    struct avm *vm = one->vm;
    struct sim_task *task = qemu_of(vm);
    struct sim_host *host = vm->agent->host;
    struct sim_moment memory, device;

    if (!still(one))
        return;
    if (host->start_err) {
        vm_fail(vm, host->start_err, "QEMU does not start");
        return;
    }
    if (!task || task->stopped || !area(vm, MST_AREA_RAM)) {
        vm_fail(vm, -EPIPE, "QEMU ended");
        return;
    }
    if (vm->pulled) {
        struct mst_save_layout layout;
        const uint8_t *from = area(vm, MST_AREA_SAVE);

        if (mst_save_layout(vm->ram_bytes, &layout) < 0 || !from) {
            vm_fail(vm, -EPIPE, "its areas are gone");
            return;
        }
        from += layout.device_off[vm->device_slot];
        if (vm->has_crc && mst_crc32c(from, vm->device_bytes) != vm->device_crc) {
            vm_fail(vm, -EUCLEAN, "the device state does not check");
            return;
        }
        memcpy(&device, from, sizeof(device));
        oracle_loaded(host, vm->vm, vm->epoch, vm->load_epoch, vm->load_seq,
                      sim_ram_read(area(vm, MST_AREA_RAM), vm->ram_bytes, &memory) ? &memory : NULL, &device);
        task->lineage = device.lineage;
        task->tick = device.tick;
    } else {
        memory = (struct sim_moment){.vm = task->vm_index, .lineage = ++W->next_lineage};
        task->lineage = memory.lineage;
        task->tick = 0;
        sim_ram_write(area(vm, MST_AREA_RAM), vm->ram_bytes, &memory);
        oracle_booted(host, vm->vm, vm->epoch);
    }
    make_writer(vm);
    sim_guest_run(task);
    started(vm);
}

static void spawn_send(struct avm *vm)
{
    Mainstay__Spawn body = MAINSTAY__SPAWN__INIT;
    mst_envelope env = MST_MSG(SPAWN, spawn, &body);
    char monitor[] = "/" MST_QMP_SOCK;
    char *argv[4] = {vm->agent->host->conf.qemu, vm->vm, vm->path[MST_AREA_RAM], monitor};

    body.vm = vm->vm;
    body.epoch = vm->epoch;
    body.n_argv = 4;
    body.argv = argv;
    vm->state = AVM_SPAWNING;
    ask(vm, &env);
}

static void create_send(struct avm *vm)
{
    Mainstay__OrderStart *order = mainstay__order_start__unpack(NULL, vm->order_bytes, vm->order);
    Mainstay__AreasCreate body = MAINSTAY__AREAS_CREATE__INIT;
    mst_envelope env = MST_MSG(AREAS_CREATE, areas_create, &body);

    body.definition = order->definition;
    body.epoch = vm->epoch;
    body.has_part = vm->protect;
    body.part = MAINSTAY__AREAS_PART__AREAS_FIRST;
    vm->state = AVM_CREATING;
    vm->pid = 0;
    vm->pulled = false;
    ask(vm, &env);
    mainstay__order_start__free_unpacked(order, NULL);
}

static void areas_there(struct avm *vm)
{
    Mainstay__OrderStart *order = mainstay__order_start__unpack(NULL, vm->order_bytes, vm->order);
    Mainstay__Pull body = MAINSTAY__PULL__INIT;
    mst_envelope env = MST_MSG(PULL, pull, &body);

    if (order->source) {
        body.vm = vm->vm;
        body.epoch = vm->epoch;
        body.source = order->source;
        vm->state = AVM_PULLING;
        ask(vm, &env);
    } else {
        vm->result.method = MAINSTAY__METHOD__METHOD_BOOTED;
        spawn_send(vm);
    }
    mainstay__order_start__free_unpacked(order, NULL);
}

static void drop_send(struct avm *vm, enum vm_state state)
{
    Mainstay__AreasDrop body = MAINSTAY__AREAS_DROP__INIT;
    mst_envelope env = MST_MSG(AREAS_DROP, areas_drop, &body);

    body.vm = vm->vm;
    body.epoch = vm->epoch;
    vm->state = state;
    mst_save_writer_free(vm->writer);
    vm->writer = NULL;
    ask(vm, &env);
}

static void kill_send(struct avm *vm, enum vm_state state)
{
    Mainstay__Kill body = MAINSTAY__KILL__INIT;
    mst_envelope env = MST_MSG(KILL, kill, &body);

    body.vm = vm->vm;
    body.epoch = vm->epoch;
    vm->state = state;
    ask(vm, &env);
}

static void vm_fail(struct avm *vm, int err, const char *text)
{
    vm->err = err;
    snprintf(vm->text, sizeof(vm->text), "%s", text);
    kill_send(vm, AVM_FAIL_KILL);
}

static void fail_over(struct avm *vm)
{
    for (unsigned i = 0; i < vm->starts; i++)
        answer(vm->agent, vm->start_ids[i], vm->err, vm->text, NULL, 0);
    avm_end(vm);
}

/* --- orders --- */

static void protection(struct avm *vm, const Mainstay__VmDefinition *definition)
{
    vm->mirror = definition->protect == MAINSTAY__PROTECT__PROTECT_MIRROR;
    vm->protect = vm->mirror || definition->protect == MAINSTAY__PROTECT__PROTECT_LOCAL;
    vm->output_commit = vm->mirror && definition->output_commit;
    vm->definition_bytes = mainstay__vm_definition__get_packed_size(definition);
    vm->definition = sim_calloc(1, vm->definition_bytes + 1);
    mainstay__vm_definition__pack(definition, vm->definition);
}

static void order_start(struct sim_agent *agent, const mst_envelope *env)
{
    const Mainstay__OrderStart *order = env->order_start;
    const char *name = order->definition->name;
    struct avm *vm = avm_find(agent, name, order->epoch);
    struct avm *other = vm ? NULL : avm_find(agent, name, 0);

    if (other && other->state == AVM_ORPHAN)
        other = NULL;
    if (other) {
        answer(agent, env->id, other->epoch > order->epoch ? -ESTALE : -EEXIST, "another epoch is here", NULL, 0);
        return;
    }
    if (!vm) {
        vm = avm_new(agent, name, order->epoch);
        vm->state = AVM_CREATING;
    } else if (vm->state >= AVM_RUNNING && vm->state <= AVM_PANICKED) {
        answer(agent, env->id, 0, NULL, &vm->result, 0);
        return;
    }
    if (vm->starts < 4)
        vm->start_ids[vm->starts++] = env->id;
    if (vm->order)
        return; /* under way: the same answer */
    vm->order_bytes = mainstay__order_start__get_packed_size(order);
    vm->order = sim_calloc(1, vm->order_bytes + 1);
    mainstay__order_start__pack(order, vm->order);
    protection(vm, order->definition);
    vm->memory_mib = order->definition->memory_mib;
    vm->interval_ms = order->definition->checkpoint_interval_ms;
    mainstay__start_result__init(&vm->result);
    if (vm->state == AVM_ORPHAN)
        kill_send(vm, AVM_CLEAN_KILL);
    else
        create_send(vm);
}

static void save_told(struct avm *vm)
{
    vm->state = AVM_SAVED;
    tell_state(vm, MST_RUN_PAUSED, 0);
    answer(vm->agent, vm->save_id, 0, NULL, NULL, mst_save_seq(vm->writer));
    vm->save_id = 0;
}

/* Under protect mirror: a checkpoint like any other, but for that the guest stands, and that its mirrors have it before it is told of. */
static bool save_staged(struct avm *vm, const struct sim_task *task)
{
    if (!vm->mirror || mst_save_source(vm->writer) != MST_SAVE_SHADOW)
        return false;
    stage_all(vm);
    return commit_staged(vm, task) == 0;
}

static void saved(void *arg)
{
    struct later *one = arg;
    struct avm *vm = one->vm;
    struct sim_task *task = qemu_of(vm);

    if (!still(one))
        return;
    if (!task || task->stopped || !can_write(vm) || vm->agent->host->save_err) {
        answer(vm->agent, vm->save_id, -EIO, "it cannot be saved", NULL, 0);
        vm->save_id = 0;
        if (task && !task->stopped)
            sim_guest_run(task);
        runs(vm);
        return;
    }
    if (!save_staged(vm, task) && mst_save_commit_ram(vm->writer, put_device(vm, task), 0, 0, mst_now_ns()) == 0)
        committed(vm, task, true);
    put_send(vm, false);
    if (vm->put_id)
        vm->save_put = true;
    else
        save_told(vm);
}

static void save_begin(struct avm *vm)
{
    struct sim_task *task = qemu_of(vm);

    if (vm->save_put) { /* that was it */
        vm->save_put = false;
        if (can_write(vm))
            mst_save_apply(vm->writer);
        save_told(vm);
        return;
    }
    if (!task || task->stopped || !can_write(vm)) {
        answer(vm->agent, vm->save_id, -EIO, "it cannot be saved", NULL, 0);
        vm->save_id = 0;
        runs(vm);
        return;
    }
    mst_save_begin(vm->writer);
    sim_guest_pause(task, GUEST_PAUSED);
    mark(vm);
}

static void order_save(struct sim_agent *agent, const mst_envelope *env)
{
    struct avm *vm = avm_find(agent, env->order_save->vm, env->order_save->epoch);
    struct sim_task *task = vm ? qemu_of(vm) : NULL;

    if (vm && vm->state == AVM_SAVED) {
        answer(agent, env->id, 0, NULL, NULL, mst_save_seq(vm->writer));
        return;
    }
    if (vm && vm->state == AVM_SAVING) {
        vm->save_id = env->id;
        return;
    }
    if (!vm || vm->state != AVM_RUNNING || !task || task->stopped || agent->host->save_err) {
        answer(agent, env->id, -EIO, "it cannot be saved", NULL, 0);
        return;
    }
    vm->save_id = env->id;
    vm->serial++;        /* a checkpoint that is under way is over */
    put_send(vm, false); /* unless it is committed */
    vm->state = AVM_SAVING;
    if (!vm->put_id)
        save_begin(vm);
}

static void order_continue(struct sim_agent *agent, const mst_envelope *env)
{
    struct avm *vm = avm_find(agent, env->order_continue->vm, env->order_continue->epoch);
    struct sim_task *task = vm ? qemu_of(vm) : NULL;

    if (!vm || !task || (vm->state != AVM_SAVED && vm->state != AVM_RUNNING)) {
        answer(agent, env->id, -EIO, "it is not standing", NULL, 0);
        return;
    }
    if (vm->state == AVM_SAVED) {
        if (can_write(vm) && area(vm, MST_AREA_SHADOW))
            (void)mst_save_shadow_from_ram(vm->writer);
        else if (can_write(vm))
            mst_save_withdraw(vm->writer);
        if (sim_muted())
            return;
        oracle_withdrawn(vm->vm, vm->epoch, area(vm, MST_AREA_SHADOW) != NULL);
        sim_guest_run(task);
        runs(vm);
        tell_state(vm, MST_RUN_RUNNING, 0);
    }
    answer(agent, env->id, 0, NULL, NULL, 0);
}

/* --- the keeper's messages --- */

static void vm_answered(struct avm *vm, const mst_envelope *env)
{
    int err = env->body_case == MAINSTAY__ENVELOPE__BODY_DONE ? -env->done->error : 0;
    const char *text = env->body_case == MAINSTAY__ENVELOPE__BODY_DONE && env->done->text ? env->done->text : "";
    uint64_t spawn_ms = sim_between(5, 60) + vm->agent->host->spawn_ms;

    vm->request = 0;
    switch (vm->state) {
    case AVM_CLEAN_KILL:
        if (err < 0)
            vm_fail(vm, err, text);
        else
            drop_send(vm, AVM_CLEAN_DROP);
        break;
    case AVM_CLEAN_DROP:
        if (err < 0)
            vm_fail(vm, err, text);
        else
            create_send(vm);
        break;
    case AVM_CREATING:
        if (err < 0) {
            vm_fail(vm, err, text);
            break;
        }
        take_areas(vm, env->areas_created->areas);
        areas_there(vm);
        break;
    case AVM_PULLING:
        if (err < 0) {
            vm_fail(vm, err, text);
            break;
        }
        vm->pulled = true;
        vm->load_epoch = env->pulled->save_epoch;
        vm->load_seq = env->pulled->save_seq;
        vm->device_slot = env->pulled->device_slot;
        vm->device_bytes = env->pulled->device_bytes;
        vm->has_crc = env->pulled->has_device_crc32c;
        vm->device_crc = env->pulled->device_crc32c;
        vm->result.method = MAINSTAY__METHOD__METHOD_PULLED_SHADOW;
        vm->result.has_save_epoch = vm->result.has_save_seq = 1;
        vm->result.save_epoch = vm->load_epoch;
        vm->result.save_seq = vm->load_seq;
        spawn_send(vm);
        break;
    case AVM_SPAWNING:
        if (err < 0) {
            vm_fail(vm, err, text);
            break;
        }
        vm->pid = env->spawned->pid;
        if (env->spawned->has_standby && env->spawned->standby)
            spawn_ms = sim_between(1, 8); /* it is there already */
        vm->state = AVM_LOADING;
        later(vm, spawn_ms * SIM_MS, load_done);
        break;
    case AVM_FAIL_KILL:
        drop_send(vm, AVM_FAIL_DROP);
        break;
    case AVM_FAIL_DROP:
        fail_over(vm);
        break;
    default:
        break;
    }
}

static void answered(struct sim_agent *agent, const mst_envelope *env)
{
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++) {
        struct avm *vm = &agent->vms[i];

        if (vm->state == AVM_FREE)
            continue;
        if (vm->request == env->reply_to) {
            vm_answered(vm, env);
            return;
        }
        if (vm->rest_id == env->reply_to) {
            rest_answered(vm, env);
            return;
        }
        if (vm->put_id == env->reply_to) {
            put_answered(vm);
            return;
        }
        if (vm->mark_id == env->reply_to) {
            marked(vm);
            return;
        }
    }
}

static void vm_exited(struct sim_agent *agent, const Mainstay__VmExited *news)
{
    struct avm *vm = avm_find(agent, news->vm, news->epoch);

    if (!vm)
        return;
    vm->pid = 0;
    if (vm->state == AVM_LOADING || vm->state == AVM_SPAWNING)
        vm_fail(vm, -EPIPE, "QEMU ended");
    else if (vm->state >= AVM_RUNNING && vm->state <= AVM_PANICKED) {
        answer(agent, vm->save_id, -EPIPE, "QEMU ended", NULL, 0);
        avm_end(vm);
    }
}

/* --- taking up --- */

static void attach(struct sim_agent *agent, const Mainstay__AgentVm *left)
{
    struct avm *vm = avm_new(agent, left->definition->name, left->epoch);
    struct sim_task *task = left->has_qemu_pid ? sim_task_by_pid(left->qemu_pid) : NULL;
    struct mst_save_map map;
    int r;

    protection(vm, left->definition);
    vm->interval_ms = left->definition->checkpoint_interval_ms;
    vm->slot = left->slot;
    mainstay__start_result__init(&vm->result);
    if (left->areas)
        take_areas(vm, left->areas);
    if (!task || !task->alive || !left->areas || left->run_state == MST_RUN_STARTING || task->guest == GUEST_EMPTY) {
        vm->state = left->run_state == MST_RUN_STARTING ? AVM_ORPHAN : AVM_FREE;
        return;
    }
    vm->pid = task->pid;
    map = map_of(vm);
    if (!map.ram) {
        vm->state = AVM_FREE;
        return;
    }
    r = mst_save_writer_attach(&map, &vm->writer);
    if (r < 0) {
        r = mst_save_writer_new(&map, &vm->writer);
        if (r < 0)
            vm->writer = NULL;
    }
    if (task->guest == GUEST_PANICKED) {
        vm->state = AVM_RUNNING;
        put_send(vm, true);
        runs(vm);
        return;
    }
    if (left->run_state == MST_RUN_PAUSED && task->guest == GUEST_PAUSED && vm->writer &&
        (mst_save_source(vm->writer) == MST_SAVE_RAM || (vm->mirror && mst_save_source(vm->writer) == MST_SAVE_SHADOW))) {
        vm->state = AVM_SAVED;
        put_send(vm, true);
        later(vm, SIM_S, ping);
        return;
    }
    if (vm->writer &&
        mst_save_source(vm->writer) == MST_SAVE_RAM) { /* left standing inside a full checkpoint, or before it was told */
        if (area(vm, MST_AREA_SHADOW))
            (void)mst_save_shadow_from_ram(vm->writer);
        else
            mst_save_withdraw(vm->writer);
        if (sim_muted())
            return;
        oracle_withdrawn(vm->vm, vm->epoch, area(vm, MST_AREA_SHADOW) != NULL);
    }
    put_send(vm, true);
    if (task->guest == GUEST_PAUSED && !task->stopped)
        sim_guest_run(task);
    started(vm);
}

static void welcomed(struct sim_agent *agent, const Mainstay__AgentWelcome *welcome)
{
    struct sim_file *file = sim_file_find(agent->host, welcome->status_path);

    agent->welcomed = true;
    agent->instance = welcome->instance;
    agent->status = file ? (struct mst_status_area *)(void *)sim_file_data(file) : NULL;
    for (size_t i = 0; agent->status && i < welcome->n_vms; i++)
        attach(agent, welcome->vms[i]);
}

/* A QEMU is to wait beside an image: as spawn_send, but for the names. */
static void standby_asked(struct sim_agent *agent, const Mainstay__StandbyAsk *asked)
{
    Mainstay__StandbySpawn body = MAINSTAY__STANDBY_SPAWN__INIT;
    mst_envelope env = MST_MSG(STANDBY_SPAWN, standby_spawn, &body);
    char monitor[] = "/" MST_STANDBY_PREFIX MST_QMP_SOCK;
    char *argv[4] = {agent->host->conf.qemu, asked->definition->name, asked->ram, monitor};

    body.vm = asked->definition->name;
    body.epoch = asked->epoch;
    body.n_argv = 4;
    body.argv = argv;
    send_env(agent, &env);
}

static void on_message(struct mst_sock *sock, const mst_envelope *env, void *arg)
{
    struct sim_agent *agent = arg;

    (void)sock;
    switch (env->body_case) {
    case MAINSTAY__ENVELOPE__BODY_STANDBY_ASK:
        standby_asked(agent, env->standby_ask);
        break;
    case MAINSTAY__ENVELOPE__BODY_AGENT_WELCOME:
        welcomed(agent, env->agent_welcome);
        break;
    case MAINSTAY__ENVELOPE__BODY_ORDER_START:
        order_start(agent, env);
        break;
    case MAINSTAY__ENVELOPE__BODY_ORDER_SAVE:
        order_save(agent, env);
        break;
    case MAINSTAY__ENVELOPE__BODY_ORDER_CONTINUE:
        order_continue(agent, env);
        break;
    case MAINSTAY__ENVELOPE__BODY_VM_EXITED:
        vm_exited(agent, env->vm_exited);
        break;
    default:
        if (env->has_reply_to)
            answered(agent, env);
        break;
    }
}

static void end_event(void *arg)
{
    sim_agent_kill(arg);
}

static void on_closed(struct mst_sock *sock, int err, const struct mst_why *why, void *arg)
{
    struct sim_agent *agent = arg;

    (void)sock, (void)err, (void)why;
    agent->sock = NULL;
    sim_at(NULL, SIM_MS, end_event, agent->host); /* an agent without its keeper ends */
}

static const struct mst_sock_events events = {.on_message = on_message, .on_closed = on_closed};

/* --- life --- */

static void hello(void *arg)
{
    struct sim_host *host = arg;
    struct sim_agent *agent = host->a;
    Mainstay__AgentHello body = MAINSTAY__AGENT_HELLO__INIT;
    mst_envelope env = MST_MSG(AGENT_HELLO, agent_hello, &body);
    struct mst_why why = {0};

    if (mst_sock_connect(NULL, "keeper.sock", &events, agent, &agent->sock, &why) < 0) {
        sim_at(&host->agent, 100 * SIM_MS, hello, host);
        return;
    }
    body.pid = agent->task->pid;
    body.protocol_version = MST_PROTOCOL_VERSION;
    send_env(agent, &env);
}

static void born(void *arg)
{
    struct sim_host *host = arg;

    host->a = sim_calloc(1, sizeof(*host->a));
    host->a->host = host;
    host->a->born_ns = K.now_ns;
    for (struct sim_task *task = host->tasks; task; task = task->next) {
        if (task->is_agent && task->alive)
            host->a->task = task;
    }
    sim_at(&host->agent, sim_between(5, 80) * SIM_MS, hello, host);
}

static void born_event(void *arg)
{
    struct sim_task *task = arg;
    struct sim_host *host = &W->hosts[task->host];

    if (!task->alive || host->agent.alive || !host->powered)
        return;
    sim_proc_start(&host->agent);
    sim_as(&host->agent, born, host);
}

void sim_agent_started(struct sim_host *host, struct sim_task *task)
{
    (void)host;
    sim_at(NULL, sim_between(1, 30) * SIM_MS, born_event, task);
}

/* The task has ended, or is about to. */
void sim_agent_gone(struct sim_host *host)
{
    if (!host->agent.alive)
        return;
    sim_proc_kill(&host->agent);
    sim_socket_proc_gone(&host->agent);
    host->a = NULL;
}

void sim_agent_kill(struct sim_host *host)
{
    for (struct sim_task *task = host->tasks; task; task = task->next) {
        if (task->is_agent)
            sim_task_kill(task);
    }
}

/* The counter moves while nobody looks: it is brought up to date when somebody does. */
void sim_agent_beat(struct sim_host *host)
{
    if (!host->agent.alive || host->agent.stopped || !host->a || !host->a->status)
        return;
    host->a->status->agent.beat = 1 + (K.now_ns - host->a->born_ns) / (20 * SIM_MS);
}
