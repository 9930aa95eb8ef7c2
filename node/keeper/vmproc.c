#include "node/keeper/keeper.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mutant.h"
#include "node/keeper/cgroup.h"
#include "node/keeper/spawn.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct mst_proc {
    struct mst_vm *vm; /* a slot is not dropped while it has a process */
    pid_t pid;
    int pidfd;
    bool ordered; /* we or the agent asked for its end */
    bool waits;   /* beside the image in vm's slot: it is nobody's yet (standby.c) */
    uv_poll_t poll;
};

/* A kill that waits for its proof. */
struct kill_job {
    struct kill_job *next;
    char vm[MST_NAME_BYTES];
    uint64_t end_ms;
    void (*done)(void *arg, int err); /* NULL: nobody waits */
    void *arg;
};

struct mst_kills {
    struct mst_keeper *keeper;
    struct kill_job *jobs;
    uv_timer_t timer;
};

#define LOG_TAIL_BYTES 1024

pid_t mst_proc_pid(const struct mst_vm *vm)
{
    return vm->proc ? vm->proc->pid : 0;
}

int mst_vm_path(const struct mst_vm *vm, const char *file, char *buf, size_t size)
{
    return mst_path(buf, size, "%s/vm/%s/%s", vm->keeper->conf->run_dir, vm->name, file);
}

static int cgroup_path(const struct mst_keeper *k, const char *vm, char *buf, size_t size)
{
    return mst_path(buf, size, "%s/vm-%s", k->conf->cgroup, vm);
}

bool mst_proc_waits(const struct mst_vm *vm)
{
    return vm->proc && vm->proc->waits && !vm->proc->ordered;
}

static const char *pid_file(const struct mst_proc *proc)
{
    return proc->waits ? "standby.pid" : "qemu.pid";
}

/* --- the end of a process --- */

/* Last line of qemu.log, without bytes a terminal would act on. */
static void log_tail(const struct mst_vm *vm, char *out, size_t size)
{
    char path[PATH_MAX], tail[LOG_TAIL_BYTES + 1], *line;
    ssize_t n = 0;
    FILE *file;
    size_t i;

    out[0] = '\0';
    if (mst_vm_path(vm, "qemu.log", path, sizeof(path)) < 0 || !(file = fopen(path, "re")))
        return;
    if (fseek(file, -LOG_TAIL_BYTES, SEEK_END) == 0 || fseek(file, 0, SEEK_SET) == 0)
        n = (ssize_t)fread(tail, 1, LOG_TAIL_BYTES, file);
    fclose(file);
    while (n > 0 && (tail[n - 1] == '\n' || tail[n - 1] == '\r'))
        n--;
    tail[n] = '\0';
    line = strrchr(tail, '\n');
    snprintf(out, size, "%s", line ? line + 1 : tail);
    for (i = 0; out[i]; i++)
        if ((unsigned char)out[i] < ' ' || (unsigned char)out[i] >= 127)
            out[i] = '?';
}

static void report_exit(struct mst_vm *vm, const char *text)
{
    Mainstay__FaultReport report = MAINSTAY__FAULT_REPORT__INIT;

    report.kind = MAINSTAY__FAULT_KIND__FAULT_VM_EXITED;
    report.vm = vm->name;
    report.has_epoch = 1;
    report.epoch = vm->epoch;
    report.text = (char *)text;
    mst_control_report(vm->keeper, &report);
}

static void vm_exited(struct mst_vm *vm, int status, bool ordered)
{
    char text[600], tail[300], how[64];

    mst_status_text(status, how, sizeof(how));
    log_tail(vm, tail, sizeof(tail));
    snprintf(text, sizeof(text), "QEMU ended with %s%s%s", how, tail[0] ? ": " : "", tail);
    vm->exit_status = status;
    mst_event(&(struct mst_event){
        .kind = MST_EV_QEMU_EXITED, .vm = vm->name, .epoch = vm->epoch, .what = ordered ? "ordered" : "unordered", .text = text});
    mst_agent_exited(vm, status);
    if (mst_guard_fenced(vm->keeper->guard, vm->name, vm->epoch) || (ordered && vm->state == MST_RUN_STARTING)) {
        /* the fence moves it on when the cgroup is empty too; a start may try again */
        log_info("vm=%s epoch=%" PRIu64 " %s, as ordered", vm->name, vm->epoch, text);
        mst_slot_publish(vm);
        return;
    }
    if (ordered) {
        mst_slot_move(vm, MST_RUN_DEAD, text);
        return;
    }
    mst_slot_fault(vm, MAINSTAY__FAULT_KIND__FAULT_VM_EXITED);
    mst_slot_move(vm, MST_RUN_DEAD, text);
    /* a start that is under way answers for itself, with this text in qemu.log */
    if (vm->ran)
        report_exit(vm, text);
}

static void proc_closed(uv_handle_t *handle)
{
    struct mst_proc *proc = handle->data;

    close(proc->pidfd);
    free(proc);
}

static void on_pidfd(uv_poll_t *poll, int err, int events)
{
    struct mst_proc *proc = poll->data;
    struct mst_vm *vm = proc->vm;
    bool ordered = proc->ordered, waits = proc->waits;
    char path[PATH_MAX];
    int status = 0, r;

    (void)err, (void)events;
    r = mst_reap(proc->pid, &status);
    if (r == 0)
        return;
    if (r < 0)
        log_error("vm=%s pid=%ld is no child of ours: %s", vm->name, (long)proc->pid, strerror(-r));
    uv_poll_stop(poll);
    vm->proc = NULL;
    uv_close((uv_handle_t *)poll, proc_closed);
    if (mst_vm_path(vm, pid_file(proc), path, sizeof(path)) == 0)
        unlink(path);
    mst_console_hangup(vm);
    mst_net_close(vm);
    if (waits)
        mst_standby_exited(vm, status, ordered);
    else
        vm_exited(vm, status, ordered);
    /* Nothing should be left in the cgroup; the grant of a newer epoch waits for the proof. */
    if (!vm->keeper->stopping)
        mst_proc_kill(vm->keeper, vm->name, NULL, NULL);
    if (waits)
        mst_slot_release(vm); /* the slot may be gone now */
}

/* --- kill --- */

static struct mst_vm *vm_with_process(struct mst_keeper *k, const char *name)
{
    unsigned i;

    for (i = 0; i < MST_VMS_PER_NODE; i++)
        if (k->vms[i].used && k->vms[i].proc && strcmp(k->vms[i].name, name) == 0)
            return &k->vms[i];
    return NULL;
}

/* 0 proved gone, -EAGAIN not yet. A child that has not joined its cgroup yet is killed by its pidfd: the cgroup alone is no proof. */
static int kill_step(struct mst_keeper *k, const char *name)
{
    struct mst_vm *vm = vm_with_process(k, name);
    char path[PATH_MAX];
    int r;

    if (MST_MUTANT(2))
        return 0;
    if (vm) {
        vm->proc->ordered = true;
        mst_pidfd_kill(vm->proc->pidfd);
    }
    r = cgroup_path(k, name, path, sizeof(path));
    if (r == 0)
        r = mst_cgroup_populated(path);
    if (r == 0 && !vm)
        return 0;
    if (r != 0)
        mst_cgroup_kill(path);
    return -EAGAIN;
}

static void on_kill_timer(uv_timer_t *timer)
{
    struct mst_kills *kills = timer->data;
    struct kill_job **at = &kills->jobs, *job, *ended = NULL, **last = &ended;
    uint64_t now_ms = mst_now_ms();

    while ((job = *at)) {
        int r = kill_step(kills->keeper, job->vm);

        if (r == -EAGAIN && now_ms < job->end_ms) {
            at = &job->next;
            continue;
        }
        *at = job->next;
        job->next = NULL;
        job->end_ms = r == 0; /* from here on: whether it is proved */
        *last = job;
        last = &job->next;
    }
    if (!kills->jobs)
        uv_timer_stop(timer);
    /* Callbacks may start what was waited for: nothing of this round may be taken for its end. */
    for (job = ended; job; job = job->next) {
        if (job->end_ms)
            MST_POINT("kill.proved");
        mst_event(&(struct mst_event){.kind = MST_EV_KILL_PROVED, .vm = job->vm, .err = job->end_ms ? 0 : -ETIMEDOUT});
        if (job->end_ms)
            mst_guard_gone(kills->keeper->guard, job->vm);
        else
            log_error("vm=%s its processes did not end in %d ms: nothing is proved", job->vm, MST_KILL_DEADLINE_MS);
    }
    /* They may ask for further kills as well: only now that the list is whole again. */
    while ((job = ended)) {
        ended = job->next;
        if (job->done)
            job->done(job->arg, job->end_ms ? 0 : -ETIMEDOUT);
        free(job);
    }
}

int mst_proc_kill(struct mst_keeper *k, const char *vm, void (*done)(void *arg, int err), void *arg)
{
    struct mst_kills *kills = k->kills;
    struct kill_job *job = calloc(1, sizeof(*job));

    if (!job)
        return -ENOMEM;
    snprintf(job->vm, sizeof(job->vm), "%s", vm);
    job->end_ms = mst_now_ms() + MST_KILL_DEADLINE_MS;
    job->done = done;
    job->arg = arg;
    job->next = kills->jobs;
    kills->jobs = job;
    mst_event(&(struct mst_event){.kind = MST_EV_KILL_ASKED, .vm = vm});
    MST_POINT("kill.begun");
    /* The signal goes out now, only the looking waits for the timer. */
    kill_step(k, vm);
    MST_POINT("kill.sent");
    if (!uv_is_active((uv_handle_t *)&kills->timer))
        uv_timer_start(&kills->timer, on_kill_timer, 0, MST_KILL_POLL_MS);
    return 0;
}

bool mst_proc_killing(const struct mst_keeper *k, const char *vm)
{
    for (const struct kill_job *job = k->kills->jobs; job; job = job->next)
        if (strcmp(job->vm, vm) == 0)
            return true;
    return false;
}

int mst_kills_new(struct mst_keeper *k)
{
    struct mst_kills *kills = calloc(1, sizeof(*kills));

    if (!kills)
        return -ENOMEM;
    kills->keeper = k;
    uv_timer_init(k->loop, &kills->timer);
    kills->timer.data = kills;
    k->kills = kills;
    return 0;
}

static void kills_closed(uv_handle_t *handle)
{
    free(handle->data);
}

void mst_kills_free(struct mst_keeper *k)
{
    struct mst_kills *kills = k->kills;
    struct kill_job *job;

    if (!kills)
        return;
    k->kills = NULL;
    while ((job = kills->jobs)) {
        kills->jobs = job->next;
        if (job->done)
            job->done(job->arg, -ECANCELED);
        free(job);
    }
    uv_close((uv_handle_t *)&kills->timer, kills_closed);
}

/* --- spawn --- */

static int folders_make(struct mst_vm *vm, const char *log_name, char *cgroup, char *log, size_t size, struct mst_why *why)
{
    char path[PATH_MAX];
    int r;

    r = mst_vm_path(vm, "", path, sizeof(path));
    if (r == 0)
        r = mst_mkdirs(path, 0700);
    if (r < 0)
        return mst_why_set(why, r, "%s: %s", path, strerror(-r));
    r = mst_vm_path(vm, log_name, log, size);
    if (r == 0)
        r = cgroup_path(vm->keeper, vm->name, cgroup, size);
    if (r < 0)
        return r;
    unlink(log); /* of an earlier epoch: its last line is evidence for this one's end */
    return mst_cgroup_make(cgroup, why);
}

static int proc_watch(struct mst_vm *vm, pid_t pid, int pidfd, bool waits)
{
    struct mst_proc *proc = calloc(1, sizeof(*proc));
    char path[PATH_MAX];
    int r;

    if (!proc)
        return -ENOMEM;
    proc->vm = vm;
    proc->pid = pid;
    proc->pidfd = pidfd;
    proc->waits = waits;
    proc->poll.data = proc;
    r = uv_poll_init(vm->keeper->loop, &proc->poll, pidfd);
    if (r < 0) {
        free(proc);
        return r;
    }
    vm->proc = proc;
    uv_poll_start(&proc->poll, UV_READABLE, on_pidfd);
    if (mst_vm_path(vm, pid_file(proc), path, sizeof(path)) == 0)
        mst_pidfile_write(path, pid);
    return 0;
}

/* A child that nobody watches must not be: here it is killed and reaped in line (it is at most some ms old). */
static void child_end(pid_t pid, int pidfd)
{
    int status;

    mst_pidfd_kill(pidfd);
    while (mst_reap(pid, &status) == 0)
        usleep(1000);
    close(pidfd);
}

static int net_open(struct mst_vm *vm, int *ret_fd, struct mst_why *why)
{
    Mainstay__VmDefinition *def = mainstay__vm_definition__unpack(NULL, vm->definition_bytes, vm->definition);
    int r = def ? mst_output_open(vm, def) : -ENOMEM;

    *ret_fd = -1;
    if (r == 0)
        r = mst_net_open(vm, def, ret_fd, why);
    mainstay__vm_definition__free_unpacked(def, NULL);
    return r;
}

int mst_proc_spawn(struct mst_vm *vm, char **argv, size_t argc, pid_t *ret_pid, struct mst_why *why)
{
    struct mst_keeper *k = vm->keeper;
    char cgroup[PATH_MAX], log[PATH_MAX];
    struct mst_spawn spawn = {
        .exec = k->conf->exec, .cgroup = cgroup, .log = log, .fd = -1, .argv = (const char *const *)argv, .argc = argc};
    int r, pidfd;
    pid_t pid;

    r = mst_guard_spawning(k->guard, vm->name, vm->epoch, why);
    if (r < 0)
        return r;
    r = folders_make(vm, "qemu.log", cgroup, log, sizeof(log), why);
    if (r < 0)
        goto gone;
    r = mst_console_open(vm, &spawn.fd, why);
    if (r < 0)
        goto gone;
    r = net_open(vm, &spawn.fd2, why);
    if (r < 0) {
        close(spawn.fd);
        goto hangup;
    }
    MST_POINT("spawn.begun");
    r = mst_spawn(&spawn, &pid, &pidfd, why);
    if (r == 0)
        MST_POINT("spawn.done");
    close(spawn.fd);
    if (spawn.fd2 >= 0)
        close(spawn.fd2);
    if (r < 0)
        goto net_close;
    r = proc_watch(vm, pid, pidfd, false);
    if (r < 0) {
        child_end(pid, pidfd);
        goto net_close;
    }
    log_info("vm=%s epoch=%" PRIu64 " pid=%ld spawned %s", vm->name, vm->epoch, (long)pid, argv[0]);
    mst_event(&(struct mst_event){.kind = MST_EV_QEMU_SPAWNED, .vm = vm->name, .epoch = vm->epoch});
    mst_slot_publish(vm);
    *ret_pid = pid;
    return 0;
net_close:
    mst_net_close(vm);
hangup:
    mst_console_hangup(vm);
gone:
    mst_guard_gone(k->guard, vm->name);
    return r;
}

/* --- a QEMU that waits --- */

int mst_proc_spawn_waiting(struct mst_vm *image, char **argv, size_t argc, int console_fd, int net_fd, struct mst_why *why)
{
    char cgroup[PATH_MAX], log[PATH_MAX];
    struct mst_spawn spawn = {.exec = image->keeper->conf->exec,
                              .cgroup = cgroup,
                              .log = log,
                              .fd = console_fd,
                              .fd2 = net_fd,
                              .argv = (const char *const *)argv,
                              .argc = argc};
    int r, pidfd;
    pid_t pid;

    r = folders_make(image, "standby.log", cgroup, log, sizeof(log), why);
    if (r < 0)
        return r;
    MST_POINT("standby.begun");
    r = mst_spawn(&spawn, &pid, &pidfd, why);
    if (r < 0)
        return r;
    MST_POINT("standby.spawned");
    r = proc_watch(image, pid, pidfd, true);
    if (r < 0) {
        child_end(pid, pidfd);
        return r;
    }
    image->users++; /* on_pidfd gives it back */
    return 0;
}

int mst_proc_adopt(struct mst_vm *image, struct mst_vm *vm, struct mst_why *why)
{
    struct mst_proc *proc = image->proc;
    char from[PATH_MAX], to[PATH_MAX];
    int r = mst_guard_spawning(vm->keeper->guard, vm->name, vm->epoch, why);

    if (r < 0)
        return r;
    if (mst_vm_path(image, "standby.log", from, sizeof(from)) == 0 && mst_vm_path(vm, "qemu.log", to, sizeof(to)) == 0)
        rename(from, to); /* its last line is evidence for the VM's end */
    if (mst_vm_path(image, pid_file(proc), from, sizeof(from)) == 0)
        unlink(from);
    image->proc = NULL;
    vm->proc = proc;
    proc->vm = vm;
    proc->waits = false;
    if (mst_vm_path(vm, pid_file(proc), to, sizeof(to)) == 0)
        mst_pidfile_write(to, proc->pid);
    log_info("vm=%s epoch=%" PRIu64 " pid=%ld is the QEMU that waited", vm->name, vm->epoch, (long)proc->pid);
    mst_event(&(struct mst_event){.kind = MST_EV_STANDBY_USED, .vm = vm->name, .epoch = vm->epoch});
    mst_event(&(struct mst_event){.kind = MST_EV_QEMU_SPAWNED, .vm = vm->name, .epoch = vm->epoch});
    mst_slot_publish(vm);
    return 0;
}
