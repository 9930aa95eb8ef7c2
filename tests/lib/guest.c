#include "tests/lib/guest.h"

#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void take_line(struct guest_console *console)
{
    uint64_t beat;
    char witness[16];

    if (strncmp(console->line, "guest boot ", 11) == 0)
        console->boots++;
    if (strncmp(console->line, "guest disk ", 11) == 0)
        snprintf(console->disk, sizeof(console->disk), "%s", console->line);
    if (sscanf(console->line, "work %" SCNu64, &console->work) == 1)
        return;
    if (sscanf(console->line, "beat %" SCNu64 " t=%*s witness=%15s", &beat, witness) != 2)
        return;
    if (strcmp(witness, "ok") != 0 && console->broken++ == 0)
        snprintf(console->bad, sizeof(console->bad), "%s", console->line);
    if (console->marked)
        console->first_beat_after_mark = beat;
    else if (console->beats > 0 && beat != console->last_beat + 1)
        console->gaps++;
    console->marked = false;
    console->beats++;
    console->last_beat = beat;
}

void guest_console_feed(struct guest_console *console, const char *data, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (data[i] == '\n' || console->used == sizeof(console->line) - 1) {
            console->line[console->used] = '\0';
            take_line(console);
            console->used = 0;
        } else if (data[i] != '\r') {
            console->line[console->used++] = data[i];
        }
    }
}

void guest_mark(struct guest_console *console)
{
    console->marked = true;
    console->first_beat_after_mark = 0;
    console->beat_at_mark = console->last_beat;
    console->used = 0; /* a line cut off by the end of its QEMU */
}

static void on_console(uv_poll_t *poll, int status, int events)
{
    struct guest *guest = poll->data;
    char data[4096];
    ssize_t n = 1;

    (void)events;
    while (status == 0 && (n = recv(guest->console_fd, data, sizeof(data), MSG_DONTWAIT)) > 0)
        guest_console_feed(guest->console, data, (size_t)n);
    if (status < 0 || n == 0)
        uv_poll_stop(poll);
}

int guest_spawn(struct guest *guest, uv_loop_t *loop, char *const argv[], const char *log_path, struct guest_console *console)
{
    int ends[2], log_fd;
    pid_t parent = getpid();

    memset(guest, 0, sizeof(*guest));
    guest->console = console;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        return -errno;
    log_fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    guest->pid = fork();
    if (guest->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(127);
        dup2(open("/dev/null", O_RDONLY), 0);
        dup2(log_fd, 1);
        dup2(log_fd, 2);
        if (ends[1] == 3)
            fcntl(3, F_SETFD, 0);
        else
            dup2(ends[1], 3);
        execvp(argv[0], argv);
        _exit(127);
    }
    close(ends[1]);
    close(log_fd);
    if (guest->pid < 0) {
        close(ends[0]);
        guest->pid = 0;
        return -errno;
    }
    guest->console_fd = ends[0];
    guest->polling = true;
    uv_poll_init(loop, &guest->poll, guest->console_fd);
    guest->poll.data = guest;
    uv_poll_start(&guest->poll, UV_READABLE, on_console);
    return 0;
}

static void on_poll_closed(uv_handle_t *handle)
{
    ((struct guest *)handle->data)->polling = false;
}

static void gone(struct guest *guest)
{
    guest->pid = 0;
    on_console(&guest->poll, 0, UV_READABLE);
    uv_close((uv_handle_t *)&guest->poll, on_poll_closed);
    while (guest->polling)
        uv_run(guest->poll.loop, UV_RUN_NOWAIT);
    close(guest->console_fd);
}

void guest_kill(struct guest *guest)
{
    if (guest->pid == 0)
        return;
    kill(guest->pid, SIGKILL);
    waitpid(guest->pid, &guest->wait_status, 0);
    gone(guest);
}

bool guest_gone(struct guest *guest)
{
    if (guest->pid != 0 && waitpid(guest->pid, &guest->wait_status, WNOHANG) == guest->pid)
        gone(guest);
    return guest->pid == 0;
}

static void on_tick(uv_timer_t *timer)
{
    (void)timer;
}

static void on_timer_closed(uv_handle_t *handle)
{
    *(bool *)handle->data = true;
}

bool loop_until(uv_loop_t *loop, bool (*done)(void *arg), void *arg, unsigned timeout_ms)
{
    uint64_t deadline_ms = mst_now_ms() + timeout_ms;
    bool closed = false, met;
    uv_timer_t tick;

    uv_timer_init(loop, &tick);
    tick.data = &closed;
    uv_timer_start(&tick, on_tick, 5, 5);
    while (!(met = done(arg)) && mst_now_ms() < deadline_ms)
        uv_run(loop, UV_RUN_ONCE);
    uv_close((uv_handle_t *)&tick, on_timer_closed);
    while (!closed)
        uv_run(loop, UV_RUN_NOWAIT);
    return met;
}

static bool never(void *arg)
{
    (void)arg;
    return false;
}

void loop_for(uv_loop_t *loop, unsigned ms)
{
    loop_until(loop, never, NULL, ms);
}
