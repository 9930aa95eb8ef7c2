#include "coordinator/io/fence_runner.h"

#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* posix_spawn and not uv_spawn, which forks: the process holds RDMA memory. The program gets a process group of its own, so that what it
 * started itself dies with it. */

#define INPUT_BYTES  4096u
#define OUTPUT_BYTES 160u /* the end of what it printed */
#define EXIT_OFF     2    /* FenceAgentAPI: status of a node that is off */

enum step { STEP_OFF, STEP_MONITOR, STEP_STATUS };
static const char *const step_action[] = {[STEP_OFF] = "off", [STEP_MONITOR] = "monitor", [STEP_STATUS] = "status"};

struct mst_fence_run {
    uv_loop_t *loop;
    const struct mst_fence_conf *conf;
    uint32_t timeout_ms;
    mst_fence_done_fn done; /* NULL: cancelled */
    void *arg;
    enum step step;
    bool look;
    pid_t pid; /* 0: none runs */
    int pidfd, output_fd;
    uv_poll_t exited, output;
    uv_timer_t timer;
    unsigned open_handles;
    bool timed_out, closing;
    char text[OUTPUT_BYTES + 1];
    size_t text_bytes;
};

/* --- ending --- */

static void handle_closed(uv_handle_t *handle)
{
    struct mst_fence_run *run = handle->data;

    if (--run->open_handles > 0)
        return;
    free(run);
}

static void run_close(struct mst_fence_run *run)
{
    if (run->closing)
        return;
    run->closing = true;
    uv_close((uv_handle_t *)&run->timer, handle_closed);
}

static void program_kill(struct mst_fence_run *run)
{
    if (run->pid <= 0)
        return;
    kill(-run->pid, SIGKILL);
    kill(run->pid, SIGKILL);
}

static void finish(struct mst_fence_run *run, int err, const char *text)
{
    mst_fence_done_fn done = run->done;

    run->done = NULL;
    uv_timer_stop(&run->timer);
    if (done)
        done(run->arg, err, text);
    run_close(run);
}

/* --- one step --- */

static int step_start(struct mst_fence_run *run, struct mst_why *why);

static void step_ended(struct mst_fence_run *run, int status)
{
    const char *agent = run->conf->agent, *action = step_action[run->step];
    struct mst_why why = {0};
    int r;

    if (!run->done) {
        run_close(run);
        return;
    }
    if (run->timed_out) {
        r = mst_why_set(&why, -ETIMEDOUT, "%s action=%s took longer than %u ms and was killed", agent, action, run->timeout_ms);
    } else if (run->step != STEP_STATUS && WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        run->step = STEP_STATUS;
        r = step_start(run, &why);
        if (r == 0)
            return;
    } else if (run->step == STEP_STATUS && WIFEXITED(status) && WEXITSTATUS(status) == EXIT_OFF) {
        r = mst_why_set(&why, 0, run->look ? "%s: the status is off" : "%s: off, and the status asked afterwards says off",
                        agent);
    } else if (run->look && WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        r = mst_why_set(&why, -EAGAIN, "%s: the status is on", agent);
    } else if (run->step == STEP_STATUS && WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        r = mst_why_set(&why, -EIO, "%s: said it switched the node off, but the status asked afterwards says on", agent);
    } else if (WIFEXITED(status)) {
        r = mst_why_set(&why, -EIO, "%s action=%s failed with exit status %d: %s", agent, action, WEXITSTATUS(status), run->text);
    } else {
        r = mst_why_set(&why, -EIO, "%s action=%s was ended by signal %d", agent, action, WTERMSIG(status));
    }
    finish(run, r, why.text);
}

static void exited_closed(uv_handle_t *handle)
{
    struct mst_fence_run *run = handle->data;
    int status = 0;

    close(run->pidfd);
    kill(-run->pid, SIGKILL); /* what it left behind; until it is waited for, its number is nobody else's */
    while (waitpid(run->pid, &status, 0) < 0 && errno == EINTR)
        ;
    run->pid = 0;
    step_ended(run, status);
    handle_closed(handle);
}

/* Keeps the end of the output, as one line of printable characters. False at the end of it. */
static bool output_take(struct mst_fence_run *run)
{
    char part[512];
    ssize_t n;

    while ((n = read(run->output_fd, part, sizeof(part))) > 0) {
        for (ssize_t i = 0; i < n; i++) {
            if (run->text_bytes == OUTPUT_BYTES) {
                memmove(run->text, run->text + 1, OUTPUT_BYTES - 1);
                run->text_bytes--;
            }
            run->text[run->text_bytes++] = part[i];
            if (part[i] < ' ' || part[i] > '~')
                run->text[run->text_bytes - 1] = ' ';
        }
        run->text[run->text_bytes] = '\0';
    }
    return n < 0 && (errno == EAGAIN || errno == EINTR);
}

static void output_closed(uv_handle_t *handle)
{
    struct mst_fence_run *run = handle->data;

    close(run->output_fd);
    uv_close((uv_handle_t *)&run->exited, exited_closed);
    handle_closed(handle);
}

static void on_exited(uv_poll_t *poll, int status, int events)
{
    struct mst_fence_run *run = poll->data;

    (void)status;
    (void)events;
    uv_poll_stop(poll);
    uv_timer_stop(&run->timer);
    output_take(run);
    uv_poll_stop(&run->output);
    uv_close((uv_handle_t *)&run->output, output_closed);
}

static void on_output(uv_poll_t *poll, int status, int events)
{
    struct mst_fence_run *run = poll->data;

    (void)events;
    if (!output_take(run) || status < 0)
        uv_poll_stop(poll); /* or the end would stay readable for ever */
}

static void on_timer(uv_timer_t *timer)
{
    struct mst_fence_run *run = timer->data;
    siginfo_t info = {0};

    /* Timers come first in a loop that has stood still: it may have ended in time. */
    if (waitid(P_PIDFD, (id_t)run->pidfd, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0)
        return;
    run->timed_out = true;
    program_kill(run); /* on_exited follows */
}

/* The options as the program reads them. -E2BIG when they do not fit one pipe write. */
static int input_make(const struct mst_fence_run *run, char *text, size_t size, size_t *ret_bytes)
{
    int n = snprintf(text, size, "action=%s\n", step_action[run->step]);

    for (unsigned i = 0; i < run->conf->options_count && n >= 0 && (size_t)n < size; i++)
        n += snprintf(text + n, size - (size_t)n, "%s=%s\n", run->conf->options[i].key, run->conf->options[i].value);
    if (n < 0 || (size_t)n >= size)
        return -E2BIG;
    *ret_bytes = (size_t)n;
    return 0;
}

static int program_spawn(struct mst_fence_run *run, int in, int out, struct mst_why *why)
{
    static char path_variable[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                locale[] = "LC_ALL=C.UTF-8";
    char *const argv[] = {run->conf->agent, NULL}, *const env[] = {path_variable, locale, NULL};
    char path[512];
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    sigset_t none, all;
    int r;

    if (strchr(run->conf->agent, '/'))
        snprintf(path, sizeof(path), "%s", run->conf->agent);
    else
        snprintf(path, sizeof(path), "/usr/sbin/%s", run->conf->agent);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attr);
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_adddup2(&actions, in, 0);
    posix_spawn_file_actions_adddup2(&actions, out, 1);
    posix_spawn_file_actions_adddup2(&actions, out, 2);
    posix_spawnattr_setpgroup(&attr, 0);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &all);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    r = posix_spawn(&run->pid, path, &actions, &attr, argv, env);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&actions);
    if (r != 0) {
        run->pid = 0;
        return mst_why_set(why, -r, "fence agent %s cannot be started: %s; is the package fence-agents installed?", path,
                           strerror(r));
    }
    return 0;
}

static int pidfd_of(pid_t pid)
{
    return (int)syscall(SYS_pidfd_open, pid, 0);
}

static int step_start(struct mst_fence_run *run, struct mst_why *why)
{
    char input[INPUT_BYTES];
    size_t bytes;
    int in[2] = {-1, -1}, out[2] = {-1, -1}, r;

    run->text_bytes = 0;
    run->text[0] = '\0';
    r = input_make(run, input, sizeof(input), &bytes);
    if (r < 0)
        return mst_why_set(why, r, "the options of fence agent %s are longer than %u bytes", run->conf->agent, INPUT_BYTES);
    if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC | O_NONBLOCK) < 0) {
        r = mst_why_set(why, -errno, "no pipe for fence agent %s", run->conf->agent);
        goto close_pipes;
    }
    /* Fits into the pipe's buffer, so this never blocks. */
    r = mst_write_all(in[1], input, bytes);
    if (r == 0)
        r = program_spawn(run, in[0], out[1], why);
    if (r < 0)
        goto close_pipes;
    run->pidfd = pidfd_of(run->pid);
    if (run->pidfd < 0) {
        r = mst_why_set(why, -errno, "no pidfd for fence agent %s", run->conf->agent);
        program_kill(run);
        waitpid(run->pid, NULL, 0);
        run->pid = 0;
        goto close_pipes;
    }
    close(in[0]);
    close(in[1]);
    close(out[1]);
    run->output_fd = out[0];
    uv_poll_init(run->loop, &run->exited, run->pidfd);
    uv_poll_init(run->loop, &run->output, run->output_fd);
    run->exited.data = run->output.data = run;
    run->open_handles += 2;
    uv_poll_start(&run->exited, UV_READABLE, on_exited);
    uv_poll_start(&run->output, UV_READABLE, on_output);
    uv_update_time(run->loop);
    uv_timer_start(&run->timer, on_timer, run->timeout_ms, 0);
    return 0;
close_pipes:
    for (unsigned i = 0; i < 2; i++) {
        if (in[i] >= 0)
            close(in[i]);
        if (out[i] >= 0)
            close(out[i]);
    }
    return r;
}

int mst_fence_run(uv_loop_t *loop, const struct mst_fence_conf *conf, uint32_t timeout_ms, bool look, mst_fence_done_fn done,
                  void *arg, struct mst_fence_run **ret_run, struct mst_why *why)
{
    struct mst_fence_run *run = calloc(1, sizeof(*run));
    int r;

    if (!run)
        return mst_why_set(why, -ENOMEM, "out of memory");
    run->loop = loop;
    run->conf = conf;
    run->timeout_ms = timeout_ms;
    run->done = done;
    run->arg = arg;
    run->look = look;
    run->step = look ? STEP_MONITOR
                     : STEP_OFF; /* an agent that is broken may exit with 2, too: it has to have done something well before */
    uv_timer_init(loop, &run->timer);
    run->timer.data = run;
    run->open_handles = 1;
    r = step_start(run, why);
    if (r < 0) {
        run_close(run);
        return r;
    }
    *ret_run = run;
    return 0;
}

void mst_fence_cancel(struct mst_fence_run *run)
{
    run->done = NULL;
    uv_timer_stop(&run->timer);
    program_kill(run); /* on_exited follows and frees */
}
