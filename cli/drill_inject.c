#include "cli/drill_run.h"

#include "base/clock.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* PROGRAM KIND NODE [VM], one process per fault, in a session of its own: Ctrl-C is for us, and an injection that has begun is finished. */

#define LAST_WORDS_MS 1000u

struct drill_injection {
    struct drill *drill;
    struct drill_injection *next;
    struct drill_fault_record *fault;
    uv_process_t process;
    uv_pipe_t out;
    uv_timer_t timeout;
    unsigned handles; /* not closed yet */
    bool exited;
    uint64_t exited_ns;
    char buffer[512];
};

static void on_handle_closed(uv_handle_t *handle)
{
    struct drill_injection *injection = handle->data, **at;

    if (--injection->handles > 0)
        return;
    for (at = &injection->drill->injections; *at != injection; at = &(*at)->next)
        ;
    *at = injection->next;
    free(injection);
}

/* The fault counts as returned when the process has ended and its last words are read. */
static void injection_done(struct drill_injection *injection)
{
    struct drill_fault_record *fault = injection->fault;
    char *text = fault->text;

    if (!injection->exited || !uv_is_closing((uv_handle_t *)&injection->out))
        return;
    for (size_t n = strlen(text); n > 0 && (text[n - 1] == '\n' || text[n - 1] == ' ');)
        text[--n] = '\0';
    fault->returned_ns = injection->exited_ns;
    drill_say(injection->drill, "%s %s%s%s %s", fault->kind, fault->node, fault->vm[0] ? " " : "", fault->vm,
              fault->status == 0 ? "injected" : "FAILED");
    drill_event(injection->drill, json_pack("{s:s, s:s, s:s, s:s, s:i, s:s%}", "event", "injected", "kind", fault->kind, "node",
                                            fault->node, "vm", fault->vm, "status", fault->status, "text", text, strlen(text)));
    if (!uv_is_closing((uv_handle_t *)&injection->timeout))
        uv_close((uv_handle_t *)&injection->timeout, on_handle_closed);
}

static void on_timeout(uv_timer_t *timer)
{
    struct drill_injection *injection = timer->data;

    if (!injection->exited)
        uv_kill(-injection->process.pid, SIGKILL); /* with all it has started */
    if (!uv_is_closing((uv_handle_t *)&injection->out))
        uv_close((uv_handle_t *)&injection->out, on_handle_closed);
    injection_done(injection);
}

static void on_exit_status(uv_process_t *process, int64_t status, int signal)
{
    struct drill_injection *injection = process->data;

    injection->exited = true;
    injection->exited_ns = mst_now_ns();
    /* Something it has started may keep the pipe open: its last words are waited for this long. */
    uv_timer_start(&injection->timeout, on_timeout, LAST_WORDS_MS, 0);
    injection->fault->status = signal != 0 ? 128 + signal : (int)status;
    uv_close((uv_handle_t *)process, on_handle_closed);
    injection_done(injection);
}

static void on_room(uv_handle_t *handle, size_t suggested, uv_buf_t *ret_buf)
{
    struct drill_injection *injection = handle->data;

    (void)suggested;
    *ret_buf = uv_buf_init(injection->buffer, sizeof(injection->buffer));
}

static void on_output(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct drill_injection *injection = stream->data;
    struct drill_fault_record *fault = injection->fault;

    if (n < 0) {
        uv_close((uv_handle_t *)stream, on_handle_closed);
        injection_done(injection);
        return;
    }
    for (ssize_t i = 0; i < n; i++) {
        size_t have = strlen(fault->text);
        if (have + 1 < sizeof(fault->text)) {
            fault->text[have] = buf->base[i] == '\n' || (unsigned char)buf->base[i] < ' ' ? ' ' : buf->base[i];
            fault->text[have + 1] = '\0';
        }
    }
}

static void refuse(struct drill *d, struct drill_fault_record *fault, int err, const char *text)
{
    fault->status = err;
    fault->returned_ns = mst_now_ns();
    snprintf(fault->text, sizeof(fault->text), "%s", text);
    drill_say(d, "%s %s %s: could not be injected: %s", fault->kind, fault->node, fault->vm, text);
}

/* Undoing (index negative): whom a fault of this drill has struck as the mirror of that VM. */
static void mirror_find(struct drill *d, struct drill_fault_record *fault, int index)
{
    const struct drill_vm_record *vm = drill_record_vm(&d->rec, fault->mirror_of);
    const char *node = vm && index >= 0 ? vm->mirror : "";

    for (unsigned i = 0; i < d->rec.faults_count && index < 0; i++)
        if (strcmp(d->rec.faults[i].mirror_of, fault->mirror_of) == 0 && d->rec.faults[i].node[0])
            node = d->rec.faults[i].node;
    snprintf(fault->node, sizeof(fault->node), "%s", node);
}

/* index: of rec.faults when it is one of the drill's faults (it then strikes VMs), negative for undoing. */
static void inject(struct drill *d, struct drill_fault_record *fault, int index)
{
    struct drill_injection *injection;
    char *args[] = {(char *)d->ctx->opt->injector, fault->kind, fault->node, fault->vm[0] ? fault->vm : NULL, NULL};
    uv_stdio_container_t stdio[3] = {{.flags = UV_IGNORE}, {.flags = UV_IGNORE}};
    uv_process_options_t options = {
        .exit_cb = on_exit_status, .file = args[0], .args = args, .flags = UV_PROCESS_DETACHED, .stdio = stdio, .stdio_count = 3};
    int r;

    if (fault->vm[0] && !fault->node[0]) {
        const struct drill_vm_record *vm = drill_record_vm(&d->rec, fault->vm);
        snprintf(fault->node, sizeof(fault->node), "%s", vm ? vm->node : "");
    }
    if (fault->mirror_of[0])
        mirror_find(d, fault, index);
    fault->t0_wall_ms = mst_wall_ms();
    injection = fault->node[0] ? calloc(1, sizeof(*injection)) : NULL;
    if (!injection) {
        refuse(d, fault, -ENOENT,
               fault->node[0]        ? "out of memory"
               : fault->mirror_of[0] ? "the VM has no mirror"
                                     : "it is not known where the VM runs");
        return;
    }
    injection->drill = d;
    injection->fault = fault;
    injection->next = d->injections;
    d->injections = injection;
    injection->process.data = injection->out.data = injection->timeout.data = injection;
    uv_pipe_init(d->ctx->loop, &injection->out, 0);
    uv_timer_init(d->ctx->loop, &injection->timeout);
    injection->handles = 3;
    stdio[2] = (uv_stdio_container_t){.flags = UV_CREATE_PIPE | UV_WRITABLE_PIPE, .data.stream = (uv_stream_t *)&injection->out};
    fault->t0_ns = mst_now_ns();
    r = uv_spawn(d->ctx->loop, &injection->process, &options);
    if (r == 0 && index >= 0)
        drill_record_strike(&d->rec, (unsigned)index);
    if (r < 0) {
        char text[DRILL_TEXT_BYTES];
        snprintf(text, sizeof(text), "%s: %s", args[0], uv_strerror(r));
        refuse(d, fault, r, text);
        injection->exited = true;
        uv_close((uv_handle_t *)&injection->process, on_handle_closed);
        uv_close((uv_handle_t *)&injection->out, on_handle_closed);
        uv_close((uv_handle_t *)&injection->timeout, on_handle_closed);
        return;
    }
    uv_timer_start(&injection->timeout, on_timeout, DRILL_INJECTOR_MS, 0);
    uv_read_start((uv_stream_t *)&injection->out, on_room, on_output);
    drill_say(d, "injecting %s %s%s%s", fault->kind, fault->node, fault->vm[0] ? " " : "", fault->vm);
}

/* --- the drill's faults, by timers: they are on time whatever else is being waited for --- */

static void on_fault_due(uv_timer_t *timer)
{
    struct drill *d = timer->data;
    unsigned index = (unsigned)(timer - d->fault_timers);

    inject(d, &d->rec.faults[index], (int)index);
}

static void fault_fill(struct drill_fault_record *record, const struct mst_drill_fault *fault)
{
    *record = (struct drill_fault_record){.planned_ms = fault->at_ms};
    snprintf(record->kind, sizeof(record->kind), "%s", fault->kind);
    snprintf(record->node, sizeof(record->node), "%s", fault->node ? fault->node : "");
    snprintf(record->vm, sizeof(record->vm), "%s", fault->vm ? fault->vm : "");
    snprintf(record->mirror_of, sizeof(record->mirror_of), "%s", fault->mirror_of ? fault->mirror_of : "");
}

void drill_faults_begin(struct drill *d)
{
    const struct mst_drill_conf *conf = d->plan->conf;

    d->faults_begun = true;
    d->rec.faults_count = conf->faults_count < DRILL_FAULTS_MAX ? conf->faults_count : DRILL_FAULTS_MAX;
    uv_update_time(d->ctx->loop);
    for (unsigned i = 0; i < d->rec.faults_count; i++) {
        fault_fill(&d->rec.faults[i], &conf->faults[i]);
        uv_timer_init(d->ctx->loop, &d->fault_timers[i]);
        d->fault_timers[i].data = d;
        d->handles++;
        d->fault_timers_count++;
        uv_timer_start(&d->fault_timers[i], on_fault_due, conf->faults[i].at_ms, 0);
    }
}

bool drill_faults_done(const struct drill *d)
{
    for (unsigned i = 0; i < d->rec.faults_count; i++)
        if (d->rec.faults[i].returned_ns == 0)
            return false;
    return true;
}

void drill_faults_stop(struct drill *d)
{
    for (unsigned i = 0; i < d->fault_timers_count; i++)
        uv_timer_stop(&d->fault_timers[i]);
}

int drill_inject_wait(struct drill *d, const struct mst_drill_fault *fault, struct mst_why *why)
{
    struct drill_fault_record record;

    fault_fill(&record, fault);
    inject(d, &record, -1);
    while (record.returned_ns == 0)
        drill_pump(d);
    if (record.status == 0)
        return 0;
    return mst_why_set(why, -EIO, "%s %s %s: status %d: %s", record.kind, record.node, record.vm, record.status,
                       record.text[0] ? record.text : "it said nothing");
}

void drill_injections_close(struct drill *d)
{
    while (d->injections)
        drill_pump(d);
}
