#include "node/agent/agent.h"

#include "base/file.h"
#include "base/log.h"
#include "base/priority.h"
#include "base/state.h"
#include "conf/conf.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

/*  order:    (CLEANING) CREATING MAPPING (PULLING | UNPACKING) SPAWNING CONNECTING PREPARING (LOADING RESUMING) RUNNING
 *  restart:  MAPPING CONNECTING PREPARING (MENDING) (RESUMING) RUNNING | SAVED | PANICKED
 *  RUNNING <-> SAVING SAVED UNDOING; a lost monitor leads back to CONNECTING; the end of QEMU to ENDING from anywhere */
#define OVER (MST_TO(VM_FAILING) | MST_TO(VM_ENDING))

static const struct mst_state states[VM_STATES] = {
    [VM_ORPHAN] = {"orphan", MST_TO(VM_CLEANING) | MST_TO(VM_ENDING)},
    [VM_CLEANING] = {"cleaning", MST_TO(VM_CREATING) | OVER},
    [VM_CREATING] = {"creating", MST_TO(VM_MAPPING) | OVER},
    [VM_MAPPING] = {"mapping", MST_TO(VM_PULLING) | MST_TO(VM_UNPACKING) | MST_TO(VM_SPAWNING) | MST_TO(VM_CONNECTING) | OVER},
    [VM_PULLING] = {"pulling", MST_TO(VM_SPAWNING) | OVER},
    [VM_UNPACKING] = {"unpacking", MST_TO(VM_SPAWNING) | OVER},
    [VM_SPAWNING] = {"spawning", MST_TO(VM_CONNECTING) | OVER},
    [VM_CONNECTING] = {"connecting", MST_TO(VM_PREPARING) | OVER},
    [VM_PREPARING] = {"preparing", MST_TO(VM_LOADING) | MST_TO(VM_MENDING) | MST_TO(VM_RESUMING) | MST_TO(VM_RUNNING) |
                                       MST_TO(VM_SAVED) | MST_TO(VM_PANICKED) | MST_TO(VM_CONNECTING) | OVER},
    [VM_MENDING] = {"mending", MST_TO(VM_RESUMING) | MST_TO(VM_CONNECTING) | OVER},
    [VM_LOADING] = {"loading", MST_TO(VM_RESUMING) | OVER},
    [VM_RESUMING] = {"resuming", MST_TO(VM_RUNNING) | MST_TO(VM_PANICKED) | MST_TO(VM_CONNECTING) | OVER},
    [VM_RUNNING] = {"running", MST_TO(VM_SAVING) | MST_TO(VM_PANICKED) | MST_TO(VM_CONNECTING) | MST_TO(VM_ENDING)},
    [VM_SAVING] = {"saving",
                   MST_TO(VM_SAVED) | MST_TO(VM_RUNNING) | MST_TO(VM_PANICKED) | MST_TO(VM_CONNECTING) | MST_TO(VM_ENDING)},
    [VM_SAVED] = {"saved", MST_TO(VM_UNDOING) | MST_TO(VM_CONNECTING) | MST_TO(VM_ENDING)},
    [VM_UNDOING] = {"undoing",
                    MST_TO(VM_RUNNING) | MST_TO(VM_SAVED) | MST_TO(VM_PANICKED) | MST_TO(VM_CONNECTING) | MST_TO(VM_ENDING)},
    [VM_PANICKED] = {"panicked", MST_TO(VM_CONNECTING) | MST_TO(VM_ENDING)},
    [VM_FAILING] = {"failing", MST_TO(VM_ENDING)},
    [VM_ENDING] = {"ending", 0},
};

static void maybe_free(struct mst_vm *vm);

const char *mst_vm_state_name(enum mst_vm_state state)
{
    return mst_state_name(states, VM_STATES, state);
}

void mst_vm_move(struct mst_vm *vm, enum mst_vm_state next)
{
    if (!mst_state_may(states, VM_STATES, vm->state, next)) {
        log_error("vm=%s epoch=%" PRIu64 " %s may not become %s: a bug, the keeper will restart the agent", vm->definition->name,
                  vm->epoch, mst_vm_state_name(vm->state), mst_vm_state_name(next));
        abort();
    }
    log_debug("vm=%s epoch=%" PRIu64 " %s -> %s", vm->definition->name, vm->epoch, mst_vm_state_name(vm->state),
              mst_vm_state_name(next));
    vm->state = next;
}

/* --- table --- */

int mst_vm_dir(const struct mst_agent *agent, const char *name, char *buf, size_t size)
{
    return mst_path(buf, size, "%s/vm/%s", agent->run_dir, name);
}

int mst_vm_new(struct mst_agent *agent, const Mainstay__VmDefinition *definition, uint64_t epoch, struct mst_vm **ret_vm)
{
    struct mst_vm *vm = calloc(1, sizeof(*vm));
    int r = -ENOMEM;

    if (!vm)
        return -ENOMEM;
    vm->agent = agent;
    vm->epoch = epoch;
    mainstay__start_result__init(&vm->start);
    mainstay__save_result__init(&vm->save_result);
    vm->definition = mst_vm_definition_copy(definition);
    if (!vm->definition)
        goto free_vm;
    r = mst_vm_dir(agent, definition->name, vm->dir, sizeof(vm->dir));
    if (r < 0)
        goto free_definition;
    uv_timer_init(agent->loop, &vm->timer);
    uv_timer_init(agent->loop, &vm->ping);
    vm->timer.data = vm->ping.data = vm->work.data = vm;
    vm->handles = 2;
    vm->next = agent->vms;
    agent->vms = vm;
    *ret_vm = vm;
    return 0;
free_definition:
    mainstay__vm_definition__free_unpacked(vm->definition, NULL);
free_vm:
    free(vm);
    return r;
}

struct mst_vm *mst_vm_find(struct mst_agent *agent, const char *name, uint64_t epoch)
{
    for (struct mst_vm *vm = agent->vms; vm; vm = vm->next)
        if (vm->epoch == epoch && vm->state != VM_ENDING && strcmp(vm->definition->name, name) == 0)
            return vm;
    return NULL;
}

/* --- orders that wait --- */

void mst_waiters_add(struct mst_waiters *waiters, uint64_t id)
{
    for (unsigned i = 0; i < waiters->count; i++)
        if (waiters->ids[i] == id)
            return;
    if (waiters->count == MST_WAITERS_MAX) { /* the oldest has been given up by the keeper long ago */
        memmove(&waiters->ids[0], &waiters->ids[1], (MST_WAITERS_MAX - 1) * sizeof(waiters->ids[0]));
        waiters->count--;
    }
    waiters->ids[waiters->count++] = id;
}

void mst_waiters_answer(struct mst_vm *vm, struct mst_waiters *waiters, int err, const struct mst_why *why,
                        Mainstay__StartResult *start, Mainstay__SaveResult *save)
{
    for (unsigned i = 0; i < waiters->count; i++) {
        int r = mst_port_done(vm->agent->port, waiters->ids[i], err, why, start, save);

        if (r < 0)
            log_warning("vm=%s epoch=%" PRIu64 " answer to order %" PRIu64 " not sent: %s", vm->definition->name, vm->epoch,
                        waiters->ids[i], mst_errname(r));
    }
    waiters->count = 0;
}

static void on_told(int err, const mst_envelope *reply, const struct mst_why *why, void *arg)
{
    struct mst_vm *vm = arg;

    (void)reply;
    if (err)
        log_notice("vm=%s epoch=%" PRIu64 " keeper refused the state of the VM: %s", vm->definition->name, vm->epoch, why->text);
}

void mst_vm_tell(struct mst_vm *vm, enum mst_run_state run_state, bool has_fault, Mainstay__FaultKind fault)
{
    Mainstay__VmState state = MAINSTAY__VM_STATE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    int r;

    state.vm = vm->definition->name;
    state.epoch = vm->epoch;
    state.run_state = run_state;
    state.has_fault = has_fault;
    state.fault = fault;
    env.body_case = MAINSTAY__ENVELOPE__BODY_VM_STATE;
    env.vm_state = &state;
    r = mst_port_request(vm->agent->port, &env, on_told, vm);
    if (r < 0)
        log_warning("vm=%s epoch=%" PRIu64 " state not sent to the keeper: %s", vm->definition->name, vm->epoch, mst_errname(r));
}

/* --- workers --- */

static void work_done(uv_work_t *work, int status)
{
    struct mst_vm *vm = work->data;
    void (*then)(struct mst_vm *) = vm->work_then;

    (void)status;
    vm->working = false;
    if (vm->state == VM_ENDING)
        maybe_free(vm);
    else
        then(vm);
}

static void work_run(uv_work_t *work)
{
    mst_priority_worker();
    ((struct mst_vm *)work->data)->work_do(work);
}

void mst_vm_work(struct mst_vm *vm, void (*work)(uv_work_t *work), void (*then)(struct mst_vm *vm))
{
    vm->working = true;
    vm->work_do = work;
    vm->work_then = then;
    vm->work_err = 0;
    vm->work_why.text[0] = '\0';
    uv_queue_work(vm->agent->loop, &vm->work, work_run, work_done); /* fails only without a callback */
}

/* --- monitors --- */

static bool starting(const struct mst_vm *vm)
{
    return vm->state < VM_RUNNING && !vm->attaching;
}

/* QEMU usually closes its monitor because it ends: the keeper's VmExited, with the better reason, is then on its way. */
static void on_closed_long_ago(uv_timer_t *timer)
{
    struct mst_vm *vm = timer->data;

    mst_vm_start_fail(vm, vm->fail_err, &vm->fail_why);
}

static void monitor_closed(struct mst_vm *vm, int err, const struct mst_why *why)
{
    mst_vm_disconnect(vm);
    if (vm->state == VM_FAILING || vm->state == VM_ENDING)
        return;
    if (!starting(vm)) {
        mst_vm_run_disconnected(vm, why);
        return;
    }
    vm->fail_err = err ? err : -ECONNRESET;
    vm->fail_why = *why;
    uv_timer_start(&vm->timer, on_closed_long_ago, MST_VM_RECONNECT_MS, 0);
}

static void on_closed(struct mst_qmp *qmp, int err, const struct mst_why *why, void *arg)
{
    (void)qmp;
    monitor_closed(arg, err, why);
}

static void on_event(struct mst_qmp *qmp, const char *name, const json_t *data, void *arg)
{
    struct mst_vm *vm = arg;

    (void)qmp;
    log_debug("vm=%s epoch=%" PRIu64 " event %s", vm->definition->name, vm->epoch, name);
    if (vm->ckpt)
        mst_ckpt_event(vm->ckpt, name, data);
    if (vm->load)
        mst_load_event(vm->load, name, data);
    mst_vm_run_event(vm, name, data);
}

static void on_spare_ready(struct mst_qmp *qmp, void *arg)
{
    (void)qmp;
    (void)arg;
}

static void on_spare_event(struct mst_qmp *qmp, const char *name, const json_t *data, void *arg)
{
    (void)qmp;
    (void)name;
    (void)data;
    (void)arg; /* the same as on the first monitor */
}

static void on_spare_closed(struct mst_qmp *qmp, int err, const struct mst_why *why, void *arg)
{
    struct mst_vm *vm = arg;

    (void)err;
    log_info("vm=%s epoch=%" PRIu64 " spare monitor closed: %s", vm->definition->name, vm->epoch, why->text);
    mst_qmp_close(qmp);
    vm->spare = NULL;
}

static void on_ready(struct mst_qmp *qmp, void *arg)
{
    static const struct mst_qmp_events spare_events = {on_spare_ready, on_spare_event, on_spare_closed};
    struct mst_vm *vm = arg;
    char path[300];
    int r;

    (void)qmp;
    vm->qmp_ready = true;
    uv_timer_stop(&vm->timer);
    r = mst_path(path, sizeof(path), "%s/" MST_QMP_SPARE_SOCK, vm->dir);
    if (r == 0)
        r = mst_qmp_connect(vm->agent->loop, path, MST_VM_CONNECT_MS, &spare_events, vm, &vm->spare);
    if (r == 0)
        mst_qmp_patience(vm->spare, &vm->patience);
    else
        log_warning("vm=%s epoch=%" PRIu64 " no spare monitor: %s", vm->definition->name, vm->epoch, mst_errname(r));
    mst_vm_move(vm, VM_PREPARING);
    if (vm->attaching)
        mst_vm_attach_connected(vm);
    else
        mst_vm_start_connected(vm);
}

static const struct mst_qmp_events monitor_events = {on_ready, on_event, on_closed};

/* One that runs already has no reason to be slow. One that is stopped takes a connection as well: the kernel does, on its behalf. */
uint32_t mst_vm_silent_ms(const struct mst_vm *vm)
{
    return vm->attaching ? MST_QMP_SILENT_MS : MST_VM_CONNECT_MS;
}

static void try_connect(uv_timer_t *timer)
{
    struct mst_vm *vm = timer->data;
    struct mst_why why;
    char path[300];
    int r = mst_path(path, sizeof(path), "%s/" MST_QMP_SOCK, vm->dir);

    if (r == 0)
        r = mst_qmp_connect(vm->agent->loop, path, mst_vm_silent_ms(vm), &monitor_events, vm, &vm->qmp);
    if (r == 0) {
        mst_qmp_patience(vm->qmp, &vm->patience);
        return; /* its greeting has a deadline of its own */
    }
    if ((r == -ENOENT || r == -ECONNREFUSED || r == -EAGAIN) && mst_now_ms() < vm->deadline_ms) {
        uv_timer_start(timer, try_connect, MST_VM_CONNECT_POLL_MS, 0);
        return;
    }
    mst_why_set(&why, r, "cannot connect to the monitor %s: %s", path, mst_errname(r));
    monitor_closed(vm, r, &why);
}

void mst_vm_connect(struct mst_vm *vm, uint32_t for_ms, uint32_t delay_ms)
{
    vm->deadline_ms = mst_now_ms() + delay_ms + for_ms;
    uv_timer_start(&vm->timer, try_connect, delay_ms, 0);
}

void mst_vm_disconnect(struct mst_vm *vm)
{
    mst_load_cancel(vm->load);
    vm->load = NULL;
    mst_resume_cancel(vm->resume);
    vm->resume = NULL;
    uv_timer_stop(&vm->timer);
    uv_timer_stop(&vm->ping);
    mst_qmp_close(vm->qmp);
    mst_qmp_close(vm->spare);
    vm->qmp = vm->spare = NULL;
    vm->qmp_ready = false;
}

/* --- end --- */

static void ckpt_freed(void *arg)
{
    struct mst_vm *vm = arg;
    void (*then)(struct mst_vm *) = vm->ckpt_gone;

    vm->ckpt = NULL;
    vm->ckpt_gone = NULL;
    mst_dirty_close(vm->dirty);
    vm->dirty = NULL;
    then(vm);
}

void mst_vm_drop_ckpt(struct mst_vm *vm, void (*then)(struct mst_vm *vm))
{
    bool asked = vm->ckpt_gone != NULL;

    vm->ckpt_gone = then; /* the latest wish counts: an end replaces a reconnect */
    if (!vm->ckpt)
        ckpt_freed(vm);
    else if (!asked)
        mst_ckpt_free(vm->ckpt, ckpt_freed, vm);
}

static void maybe_free(struct mst_vm *vm)
{
    struct mst_vm **at = &vm->agent->vms;

    if (vm->state != VM_ENDING || vm->handles > 0 || vm->working || vm->ckpt)
        return;
    while (*at != vm)
        at = &(*at)->next;
    *at = vm->next;
    mst_port_forget(vm->agent->port, vm);
    mst_save_writer_free(vm->writer);
    mst_vmmap_close(vm->map);
    if (vm->order)
        mainstay__order_start__free_unpacked(vm->order, NULL);
    if (vm->areas_named)
        mainstay__areas__free_unpacked(vm->areas_named, NULL);
    if (vm->machine)
        mainstay__vm_definition__free_unpacked(vm->machine, NULL);
    mainstay__vm_definition__free_unpacked(vm->definition, NULL);
    free(vm->stream);
    free(vm);
}

static void timer_closed(uv_handle_t *handle)
{
    struct mst_vm *vm = handle->data;

    vm->handles--;
    maybe_free(vm);
}

void mst_vm_end(struct mst_vm *vm)
{
    if (vm->state == VM_ENDING)
        return;
    mst_vm_run_stop(vm);
    mst_vm_disconnect(vm);
    mst_vm_move(vm, VM_ENDING);
    mst_vm_drop_ckpt(vm, maybe_free);
    uv_close((uv_handle_t *)&vm->timer, timer_closed);
    uv_close((uv_handle_t *)&vm->ping, timer_closed);
}

/* The last line of QEMU's log in which it speaks for itself ("qemu-system-x86_64: ..."), or else the last one: why it ended. */
static void log_tail(const struct mst_vm *vm, char *buf, size_t size)
{
    char path[300], *text, *rest, *line, *last = NULL;
    bool last_is_qemu = false;
    size_t len;

    buf[0] = '\0';
    if (mst_path(path, sizeof(path), "%s/qemu.log", vm->dir) < 0 || mst_file_read(path, 1 << 20, &text, &len) < 0)
        return;
    rest = text;
    while ((line = strsep(&rest, "\r\n"))) {
        bool is_qemu = strncmp(line, "qemu", 4) == 0;

        if (line[0] && (is_qemu || !last_is_qemu)) {
            last = line;
            last_is_qemu = is_qemu;
        }
    }
    snprintf(buf, size, "%s", last ? last : "");
    for (char *c = buf; *c; c++)
        if ((unsigned char)*c < ' ' || (unsigned char)*c >= 127)
            *c = '?';
    free(text);
}

void mst_vm_exited(struct mst_vm *vm, int wait_status)
{
    char tail[200], how[64];
    struct mst_why why;

    if (WIFSIGNALED(wait_status))
        snprintf(how, sizeof(how), "signal %d", WTERMSIG(wait_status));
    else
        snprintf(how, sizeof(how), "exit status %d", WEXITSTATUS(wait_status));
    log_tail(vm, tail, sizeof(tail));
    log_notice("vm=%s epoch=%" PRIu64 " pid=%d %s: QEMU ended with %s%s%s", vm->definition->name, vm->epoch, (int)vm->pid,
               mst_vm_state_name(vm->state), how, tail[0] ? ": " : "", tail);
    vm->pid = 0;
    if (vm->state == VM_FAILING || vm->state == VM_CLEANING || vm->state == VM_ORPHAN)
        return; /* as wished, or of no matter: the order that comes again starts a new one */
    if (starting(vm)) {
        mst_why_set(&why, -ECHILD, "QEMU ended with %s while the VM was %s%s%s", how, mst_vm_state_name(vm->state),
                    tail[0] ? ": " : "", tail);
        mst_vm_start_fail(vm, -ECHILD, &why);
    } else {
        mst_vm_end(vm);
    }
}
