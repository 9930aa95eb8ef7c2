#include "node/keeper/keeper.h"

#include "base/file.h"
#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What the agent may ask for. It is trusted to drive QEMU, not to decide what runs: each request about a VM names the epoch it was granted,
 * and is refused once that is fenced or superseded. */

static int starting_slot(struct mst_keeper *k, const char *vm, uint64_t epoch, bool with_areas, struct mst_vm **ret_vm,
                         struct mst_why *why)
{
    int r = mst_slot_granted(k, vm, epoch, ret_vm, why);

    if (r < 0)
        return r;
    if ((*ret_vm)->state != MST_RUN_STARTING)
        return mst_why_set(why, -EBUSY, "%s epoch %" PRIu64 " is %s, not starting", vm, epoch,
                           mst_slot_state_name((*ret_vm)->state));
    if (with_areas && !(*ret_vm)->areas_ready)
        return mst_why_set(why, -ENODATA, "%s epoch %" PRIu64 " has no areas yet", vm, epoch);
    return 0;
}

/* --- areas --- */

struct areas_message {
    Mainstay__Areas body;
    char path[MST_AREA_KINDS][PATH_MAX], disk_path[PATH_MAX];
};

static void areas_fill(struct areas_message *m, const struct mst_vm *vm)
{
    char **to[MST_AREA_KINDS] = {&m->body.ram, &m->body.save, &m->body.shadow, &m->body.delta};
    unsigned kind;

    mainstay__areas__init(&m->body);
    m->body.ram = m->body.save = (char *)"";
    for (kind = 0; kind < MST_AREA_KINDS; kind++)
        if (vm->areas.area[kind].addr && mst_area_path(vm->keeper->conf->main_storage, &vm->areas, (enum mst_area_kind)kind,
                                                       m->path[kind], sizeof(m->path[kind])) == 0)
            *to[kind] = m->path[kind];
    m->body.ram_bytes = vm->areas.area[MST_AREA_RAM].bytes;
    if (vm->areas.disk_bytes &&
        mst_disk_path(vm->keeper->conf->main_storage, &vm->areas, m->disk_path, sizeof(m->disk_path)) == 0) {
        m->body.disk = m->disk_path;
        m->body.has_disk_bytes = 1;
        m->body.disk_bytes = vm->areas.disk_bytes;
    }
    m->body.has_delta_capacity = 1;
    m->body.delta_capacity = vm->areas.delta_capacity;
    m->body.slot = vm->index;
}

void mst_agent_areas_made(struct mst_vm *vm, int err, const struct mst_why *why)
{
    Mainstay__AreasCreated body = MAINSTAY__AREAS_CREATED__INIT;
    mst_envelope env = MST_ENVELOPE(AREAS_CREATED, areas_created, &body);
    struct areas_message m;

    if (err < 0) {
        log_error("vm=%s epoch=%" PRIu64 " areas not made: %s", vm->name, vm->epoch, why->text[0] ? why->text : strerror(-err));
        mst_agent_reply_error(vm->keeper, vm->areas_reply_to, err, why);
    } else if (vm->areas_reply_to) {
        areas_fill(&m, vm);
        body.areas = &m.body;
        env.has_reply_to = 1;
        env.reply_to = vm->areas_reply_to;
        mst_agent_send(vm->keeper, &env);
    }
    vm->areas_reply_to = 0;
}

static enum mst_areas_for areas_for(Mainstay__Protect protect)
{
    switch (protect) {
    case MAINSTAY__PROTECT__PROTECT_LOCAL:
        return MST_AREAS_LOCAL;
    case MAINSTAY__PROTECT__PROTECT_MIRROR:
        return MST_AREAS_MIRROR;
    default:
        return MST_AREAS_NONE;
    }
}

/* The sizes are those of the order, whatever the agent says. */
static int plan_areas(struct mst_vm *vm, const Mainstay__VmDefinition *said, struct mst_why *why)
{
    Mainstay__VmDefinition *def = mainstay__vm_definition__unpack(NULL, vm->definition_bytes, vm->definition);
    int r;

    if (!def)
        return -ENOMEM;
    if (said->memory_mib != def->memory_mib || mst_vm_disk_mib(said) != mst_vm_disk_mib(def) || said->protect != def->protect)
        r = mst_why_set(why, -EINVAL, "%s was ordered with %u MiB, a disk of %u and protect %d, the agent asks for %u, %u and %d",
                        vm->name, def->memory_mib, mst_vm_disk_mib(def), (int)def->protect, said->memory_mib,
                        mst_vm_disk_mib(said), (int)said->protect);
    else
        r = mst_areas_plan(&vm->areas, vm->name, vm->epoch, (uint64_t)mst_vm_area_mib(def) << 20, areas_for(def->protect));
    if (r == 0)
        vm->areas.disk_bytes = (uint64_t)mst_vm_disk_mib(def) << 20;
    mainstay__vm_definition__free_unpacked(def, NULL);
    return r;
}

/* Of a VM that runs: its first checkpoint waits for them. */
static int run_areas_rest(struct mst_keeper *k, const mst_envelope *env, struct mst_why *why)
{
    const Mainstay__AreasCreate *request = env->areas_create;
    struct mst_vm *vm;
    int r = mst_slot_granted(k, request->definition->name, request->epoch, &vm, why);

    if (r < 0)
        return r;
    if (!vm->areas_ready)
        return mst_why_set(why, -ENODATA, "%s epoch %" PRIu64 " has no areas yet", vm->name, vm->epoch);
    if (!vm->areas_making && !mst_areas_whole(&vm->areas)) {
        r = mst_vm_areas_make(vm, MST_AREAS_REST, env->id, why);
        return r < 0 ? r : 1;
    }
    vm->areas_reply_to = env->id;
    if (!vm->areas_making)
        mst_agent_areas_made(vm, 0, NULL);
    return 1;
}

static int run_areas_create(struct mst_keeper *k, const mst_envelope *env, struct mst_why *why)
{
    const Mainstay__AreasCreate *request = env->areas_create;
    Mainstay__AreasPart part = request->has_part ? request->part : MAINSTAY__AREAS_PART__AREAS_ALL;
    struct mst_vm *vm;
    int r;

    if (part == MAINSTAY__AREAS_PART__AREAS_REST)
        return run_areas_rest(k, env, why);
    r = starting_slot(k, request->definition->name, request->epoch, false, &vm, why);
    if (r < 0)
        return r;
    if (vm->areas_making) {
        vm->areas_reply_to = env->id; /* the agent was restarted meanwhile and asks again */
        return 1;
    }
    if (vm->areas_ready) {
        vm->areas_reply_to = env->id;
        mst_agent_areas_made(vm, 0, NULL);
        return 1;
    }
    r = plan_areas(vm, request->definition, why);
    if (r == 0) {
        mst_standby_ram(vm);
        r = mst_vm_areas_make(vm, part == MAINSTAY__AREAS_PART__AREAS_FIRST ? MST_AREAS_FIRST : MST_AREAS_ALL, env->id, why);
        if (r < 0 && vm->areas.ram_there)
            mst_ram_remove(k->conf->main_storage, &vm->areas);
    }
    return r < 0 ? r : 1;
}

static int areas_drop(struct mst_vm *vm, struct mst_why *why)
{
    if (vm->proc || vm->users || vm->ran)
        return mst_why_set(why, -EBUSY, "areas of %s epoch %" PRIu64 " are in use, or hold a save", vm->name, vm->epoch);
    mst_server_vm_gone(vm);
    mst_vm_areas_drop(vm);
    mst_pub_clear(vm->keeper->status->vms[vm->index].save);
    mst_slot_publish(vm);
    return 0;
}

void mst_agent_areas_unused(struct mst_vm *vm)
{
    uint64_t reply_to = vm->areas_drop_to;
    struct mst_why why = {0};
    int r;

    if (!reply_to)
        return;
    vm->areas_drop_to = 0;
    r = mst_guard_check(vm->keeper->guard, vm->name, vm->epoch, &why);
    if (r == 0)
        r = areas_drop(vm, &why);
    mst_agent_reply_error(vm->keeper, reply_to, r, &why);
}

/* What an agent that has died had asked for (its memory is made, a pull runs) is no reason to fail the start that its successor begins anew. */
static int run_areas_drop(struct mst_keeper *k, const mst_envelope *env, struct mst_why *why)
{
    struct mst_vm *vm;
    int r = mst_slot_granted(k, env->areas_drop->vm, env->areas_drop->epoch, &vm, why);

    if (r < 0)
        return r;
    if (!vm->users || !env->has_id || vm->proc || vm->ran)
        return areas_drop(vm, why);
    vm->areas_drop_to = env->id;
    mst_pull_cancel(vm, "its start is begun anew");
    return 1;
}

static int run_pull(struct mst_keeper *k, const mst_envelope *env, struct mst_why *why)
{
    const Mainstay__Pull *request = env->pull;
    struct mst_vm *vm;
    int r = starting_slot(k, request->vm, request->epoch, true, &vm, why);

    if (r < 0)
        return r;
    if (vm->proc)
        return mst_why_set(why, -EBUSY, "%s has a QEMU already: its memory is not filled from elsewhere", vm->name);
    mst_pull_start(vm, request->source, env->id);
    return 1;
}

/* --- processes --- */

static void spawned(struct mst_keeper *k, uint64_t reply_to, pid_t pid, bool standby)
{
    Mainstay__Spawned body = MAINSTAY__SPAWNED__INIT;
    mst_envelope answer = MST_ENVELOPE(SPAWNED, spawned, &body);

    body.pid = pid;
    body.has_standby = standby;
    body.standby = standby;
    answer.has_reply_to = 1;
    answer.reply_to = reply_to;
    mst_agent_send(k, &answer);
}

/* One that waits and is not used has the VM's memory mapped, perhaps, and is in its cgroup: the new one is started when that is proved gone. */
struct spawn_request {
    struct mst_keeper *keeper;
    uint64_t session, reply_to;
    Mainstay__Spawn *spawn;
};

static void spawn_request_free(struct spawn_request *request)
{
    mainstay__spawn__free_unpacked(request->spawn, NULL);
    free(request);
}

static void spawn_after_kill(void *arg, int err)
{
    struct spawn_request *request = arg;
    struct mst_keeper *k = request->keeper;
    const Mainstay__Spawn *spawn = request->spawn;
    struct mst_why why = {0};
    struct mst_vm *vm;
    pid_t pid = 0;
    int r = err;

    if (err != -ECANCELED && request->session == mst_agent_session(k)) {
        if (r == 0)
            r = mst_tenure_settled(k, &why) ? starting_slot(k, spawn->vm, spawn->epoch, true, &vm, &why) : -ESTALE;
        if (r == 0)
            r = mst_proc_spawn(vm, spawn->argv, spawn->n_argv, &pid, &why);
        if (r == 0)
            spawned(k, request->reply_to, pid, false);
        else
            mst_agent_reply_error(k, request->reply_to, r, &why);
    }
    spawn_request_free(request);
}

static int spawn_later(struct mst_keeper *k, const mst_envelope *env)
{
    struct spawn_request *request = calloc(1, sizeof(*request));
    int r = -ENOMEM;

    if (!request)
        return r;
    *request = (struct spawn_request){
        .keeper = k, .session = mst_agent_session(k), .reply_to = env->id, .spawn = mst_message_copy(&env->spawn->base)};
    if (request->spawn)
        r = mst_proc_kill(k, env->spawn->vm, spawn_after_kill, request);
    if (r < 0)
        spawn_request_free(request);
    return r;
}

static int run_spawn(struct mst_keeper *k, const mst_envelope *env, struct mst_why *why)
{
    const Mainstay__Spawn *request = env->spawn;
    struct mst_vm *vm;
    bool standby;
    pid_t pid = 0;
    int r;

    r = starting_slot(k, request->vm, request->epoch, true, &vm, why);
    if (r < 0)
        return r;
    if (!request->n_argv || strcmp(request->argv[0], k->conf->qemu) != 0)
        return mst_why_set(why, -EPERM, "the only program a VM is started with is %s", k->conf->qemu);
    if (mst_guard_process(k->guard, vm->name) == 0) {
        r = mst_standby_use(vm, request->argv, request->n_argv, &pid, why);
        if (r == -EAGAIN) {
            r = spawn_later(k, env);
            return r < 0 ? r : 1;
        }
    }
    standby = r == 1;
    if (!standby)
        r = mst_proc_spawn(vm, request->argv, request->n_argv, &pid, why);
    if (r < 0)
        return r;
    spawned(k, env->id, pid, standby);
    return 1;
}

struct kill_request {
    struct mst_keeper *keeper;
    uint64_t session, reply_to;
};

static void killed(void *arg, int err)
{
    struct kill_request *request = arg;

    if (err != -ECANCELED && request->session == mst_agent_session(request->keeper))
        mst_agent_reply_error(request->keeper, request->reply_to, err, NULL);
    free(request);
}

static int run_kill(struct mst_keeper *k, const mst_envelope *env, struct mst_why *why)
{
    struct kill_request *request;
    struct mst_vm *vm;
    int r = mst_slot_granted(k, env->kill->vm, env->kill->epoch, &vm, why);

    if (r < 0)
        return r;
    request = calloc(1, sizeof(*request));
    if (!request)
        return -ENOMEM;
    *request = (struct kill_request){.keeper = k, .session = mst_agent_session(k), .reply_to = env->id};
    log_notice("vm=%s epoch=%" PRIu64 " the agent asks to kill its QEMU", vm->name, vm->epoch);
    r = mst_proc_kill(k, vm->name, killed, request);
    if (r < 0) {
        free(request);
        return r;
    }
    return 1;
}

/* --- news --- */

static int run_vm_state(struct mst_keeper *k, const mst_envelope *env, struct mst_why *why)
{
    const Mainstay__VmState *news = env->vm_state;
    struct mst_vm *vm;
    int r = mst_slot_granted(k, news->vm, news->epoch, &vm, why);

    if (r < 0)
        return r;
    if (news->run_state != MST_RUN_RUNNING && news->run_state != MST_RUN_PAUSED)
        return mst_why_set(why, -EINVAL, "an agent reports running or paused, not state %u", news->run_state);
    if (!vm->proc)
        return mst_why_set(why, -ESRCH, "%s epoch %" PRIu64 " has no QEMU here", vm->name, vm->epoch);
    if (news->has_fault && news->fault == MAINSTAY__FAULT_KIND__FAULT_NONE)
        mst_control_report_over(k, vm->name, vm->epoch);
    if (news->has_fault && news->fault != vm->fault_kind)
        mst_slot_fault(vm, news->fault);
    mst_slot_move(vm, news->run_state, "the agent says so");
    return 0;
}

static int run_node_health(struct mst_keeper *k, const mst_envelope *env, struct mst_why *why)
{
    const Mainstay__NodeHealth *news = env->node_health;

    if (news->health > MST_HEALTH_FAILING)
        return mst_why_set(why, -EINVAL, "health %u is not known", news->health);
    if (news->health != k->health)
        log_warning("health of this node: %u -> %u", k->health, news->health);
    k->health = news->health;
    if (news->has_machine_checks)
        k->machine_checks = news->machine_checks;
    mst_node_publish(k);
    return 0;
}

static int run_fault_report(struct mst_keeper *k, const mst_envelope *env, struct mst_why *why)
{
    const Mainstay__FaultReport *report = env->fault_report;
    struct mst_vm *vm;
    int r;

    if (report->vm) {
        if (!report->has_epoch)
            return mst_why_set(why, -EINVAL, "report about %s names no epoch", report->vm);
        r = mst_slot_granted(k, report->vm, report->epoch, &vm, why);
        if (r < 0)
            return r;
        mst_slot_fault(vm, report->kind);
    }
    mst_control_report(k, report);
    return 0;
}

static int run_done(struct mst_keeper *k, const mst_envelope *env, struct mst_why *why)
{
    (void)why;
    if (env->has_reply_to)
        mst_relay_done(k, env->reply_to, env->done);
    return 1;
}

static const struct request_row {
    unsigned body_case;
    const char *name;
    bool gives_life; /* not while the lease is over, or after a pause before a coordinator has seen us again */
    /* 0 done, answered by the caller; 1 answered, or will be; -errno refused, answered by the caller */
    int (*run)(struct mst_keeper *k, const mst_envelope *env, struct mst_why *why);
} requests[] = {
    {MAINSTAY__ENVELOPE__BODY_DONE, "done", false, run_done},
    {MAINSTAY__ENVELOPE__BODY_AREAS_CREATE, "areas-create", true, run_areas_create},
    {MAINSTAY__ENVELOPE__BODY_AREAS_DROP, "areas-drop", false, run_areas_drop},
    {MAINSTAY__ENVELOPE__BODY_PULL, "pull", true, run_pull},
    {MAINSTAY__ENVELOPE__BODY_SPAWN, "spawn", true, run_spawn},
    {MAINSTAY__ENVELOPE__BODY_STANDBY_SPAWN, "standby-spawn", true, mst_standby_spawn},
    {MAINSTAY__ENVELOPE__BODY_KILL, "kill", false, run_kill},
    {MAINSTAY__ENVELOPE__BODY_VM_STATE, "vm-state", false, run_vm_state},
    {MAINSTAY__ENVELOPE__BODY_NODE_HEALTH, "node-health", false, run_node_health},
    {MAINSTAY__ENVELOPE__BODY_FAULT_REPORT, "fault-report", false, run_fault_report},
    {MAINSTAY__ENVELOPE__BODY_CHECKPOINT_PUT, "checkpoint-put", false, mst_mirrors_put},
    {MAINSTAY__ENVELOPE__BODY_OUTPUT_MARK, "output-mark", false, mst_output_mark},
};

void mst_agent_request(struct mst_keeper *k, const mst_envelope *env)
{
    struct mst_why why = {0};
    size_t i;
    int r = mst_why_set(&why, -EOPNOTSUPP, "message %d is no request of an agent", (int)env->body_case);
    const char *name = "?";

    for (i = 0; i < sizeof(requests) / sizeof(requests[0]); i++) {
        if (requests[i].body_case != env->body_case)
            continue;
        why.text[0] = '\0';
        name = requests[i].name;
        r = mst_tenure_settled(k, &why) || !requests[i].gives_life ? requests[i].run(k, env, &why) : -ESTALE;
    }
    if (r < 0)
        log_notice("agent request %s refused: %s", name, why.text[0] ? why.text : strerror(-r));
    if (r <= 0)
        mst_agent_reply_error(k, env->has_id ? env->id : 0, r, &why);
}

/* --- welcome --- */

struct welcome_buffer {
    Mainstay__AgentWelcome welcome;
    Mainstay__AgentVm vms[MST_VMS_PER_NODE], *list[MST_VMS_PER_NODE];
    Mainstay__VmDefinition *definitions[MST_VMS_PER_NODE];
    struct areas_message areas[MST_VMS_PER_NODE];
    char status[PATH_MAX];
};

static void welcome_vm(struct welcome_buffer *b, struct mst_vm *vm)
{
    Mainstay__AgentVm *out = &b->vms[vm->index];

    b->definitions[vm->index] = mainstay__vm_definition__unpack(NULL, vm->definition_bytes, vm->definition);
    if (!b->definitions[vm->index])
        return;
    mainstay__agent_vm__init(out);
    out->definition = b->definitions[vm->index];
    out->epoch = vm->epoch;
    out->slot = vm->index;
    out->run_state = vm->state;
    out->has_qemu_pid = vm->proc != NULL;
    out->qemu_pid = mst_proc_pid(vm);
    if (vm->areas_ready) {
        areas_fill(&b->areas[vm->index], vm);
        out->areas = &b->areas[vm->index].body;
    }
    b->list[b->welcome.n_vms++] = out;
}

/* One more VM: what does not fit with those before goes into the next welcome. */
static int welcome_more(struct mst_keeper *k, struct welcome_buffer *b, const mst_envelope *env, struct mst_vm *vm)
{
    int r;

    welcome_vm(b, vm);
    if (b->welcome.n_vms < 2 || mainstay__envelope__get_packed_size(env) <= MST_ENVELOPE_BYTES_MAX)
        return 0;
    b->welcome.n_vms--;
    r = mst_agent_send(k, env);
    b->list[0] = b->list[b->welcome.n_vms];
    b->welcome.n_vms = 1;
    return r;
}

void mst_agent_welcome(struct mst_keeper *k)
{
    struct welcome_buffer *b = calloc(1, sizeof(*b));
    mst_envelope env = MST_ENVELOPE(AGENT_WELCOME, agent_welcome, NULL);
    unsigned i;
    int r;

    if (!b)
        return; /* it hangs without its welcome, its beat stands still, and it is restarted */
    mainstay__agent_welcome__init(&b->welcome);
    env.agent_welcome = &b->welcome;
    r = mst_path(b->status, sizeof(b->status), "%s/status", k->conf->main_storage);
    b->welcome.node = k->conf->node;
    b->welcome.instance = k->instance;
    b->welcome.status_path = b->status;
    b->welcome.run_dir = k->conf->run_dir;
    b->welcome.qemu = k->conf->qemu;
    b->welcome.accel = (char *)k->accel;
    b->welcome.vms = b->list;
    for (i = 0; i < MST_VMS_PER_NODE; i++) {
        k->vms[i].areas_reply_to = k->vms[i].areas_drop_to = 0; /* asked by its predecessor */
        if (r == 0 && k->vms[i].used && !k->vms[i].drop_pending &&
            mst_guard_check(k->guard, k->vms[i].name, k->vms[i].epoch, NULL) == 0)
            r = welcome_more(k, b, &env, &k->vms[i]);
    }
    if (r == 0)
        r = mst_agent_send(k, &env);
    if (r < 0)
        log_error("agent not welcomed: %s", strerror(-r));
    for (i = 0; i < MST_VMS_PER_NODE; i++)
        mainstay__vm_definition__free_unpacked(b->definitions[i], NULL);
    free(b);
}
