#include "node/keeper/keeper.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* QEMU blocks a guest's serial port when nobody reads, so we always read: into a ring of the newest bytes and into a file that is moved aside
 * at 1 MiB. Followers are sent to from a timer, so a talkative guest costs messages by time and not by byte.
 *
 * Under output commit (gated) all of them get only what has been shown. What waits for that is in the ring, at most HELD_BYTES_MAX of it; then we read no
 * more, and QEMU's serial port is as slow as the mirrors. */

#define READ_BYTES     (16u << 10)
#define READS_PER_WAKE 4 /* then the other handles of the loop have their turn */
#define FILE_BYTES_MAX (1u << 20)
#define CHUNK_BYTES    4096u
#define FOLLOW_MS      50
#define HELD_BYTES_MAX (MST_RING_BYTES / 2) /* the other half is what readers may still have to fetch */
#define FOLLOWERS_MAX  128u

struct mst_console {
    struct mst_vm *vm;
    uv_poll_t *poll; /* ends with fd: an old handle closed later would take a new descriptor of the same number out of the loop */
    int fd;          /* -1: QEMU is gone */
    int file;
    size_t file_bytes;
    bool gated;
    uint64_t shown; /* offset; not gated: the end of the ring */
    uint64_t beat_wall_ms;
    struct mst_ring ring;
};

struct follower {
    struct mst_control *control; /* NULL: free */
    char vm[MST_NAME_BYTES];
    uint64_t epoch, offset;
};

struct mst_followers {
    struct mst_keeper *keeper;
    uv_timer_t timer;
    struct follower list[FOLLOWERS_MAX];
};

uint64_t mst_console_bytes(const struct mst_vm *vm)
{
    return vm->console ? vm->console->shown : 0;
}

uint64_t mst_console_beat_ms(const struct mst_vm *vm)
{
    return vm->console ? vm->console->beat_wall_ms : 0;
}

/* --- the file --- */

static void file_open(struct mst_console *console)
{
    char path[PATH_MAX], old[PATH_MAX];

    if (mst_vm_path(console->vm, "console.log", path, sizeof(path)) < 0 || mst_path(old, sizeof(old), "%s.1", path) < 0)
        return;
    if (console->file >= 0) {
        close(console->file);
        rename(path, old);
    }
    console->file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    console->file_bytes = 0;
    if (console->file >= 0) {
        off_t end = lseek(console->file, 0, SEEK_END);

        console->file_bytes = end > 0 ? (size_t)end : 0;
    } else {
        log_warning("vm=%s its console is not written to %s: %s", console->vm->name, path, strerror(errno));
    }
}

static void file_append(struct mst_console *console, const uint8_t *data, size_t len)
{
    int r;

    if (console->file < 0)
        return;
    if (console->file_bytes + len > FILE_BYTES_MAX)
        file_open(console);
    r = console->file < 0 ? 0 : mst_write_all(console->file, data, len);
    if (r < 0) {
        log_warning("vm=%s its console is no longer written to a file: %s", console->vm->name, strerror(-r));
        close(console->file);
        console->file = -1;
    }
    console->file_bytes += len;
}

/* --- reading --- */

static void show(struct mst_console *console, uint64_t upto)
{
    uint8_t data[CHUNK_BYTES];

    while (console->shown < upto) {
        uint64_t at = console->shown, left = upto - at;
        size_t n = mst_ring_read(&console->ring, &at, data, left < sizeof(data) ? (size_t)left : sizeof(data));

        if (n == 0 || at + n > upto)
            break; /* never: what waits is in the ring */
        file_append(console, data, n);
        console->shown = at + n;
        console->beat_wall_ms = mst_wall_ms();
    }
}

static uint64_t room(const struct mst_console *console)
{
    uint64_t held = console->ring.end - console->shown;

    return console->gated ? (held < HELD_BYTES_MAX ? HELD_BYTES_MAX - held : 0) : READ_BYTES;
}

/* 1 there may be more, 0 nothing now, or no room; -errno or -EPIPE the other end is gone. */
static int take(struct mst_console *console)
{
    uint64_t most = room(console);
    uint8_t data[READ_BYTES];
    ssize_t n;

    if (most == 0)
        return 0;
    do {
        n = read(console->fd, data, most < sizeof(data) ? (size_t)most : sizeof(data));
    } while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == EAGAIN ? 0 : -errno;
    if (n == 0)
        return -EPIPE;
    mst_ring_append(&console->ring, data, (size_t)n);
    if (!console->gated)
        show(console, console->ring.end);
    return 1;
}

static void poll_closed(uv_handle_t *handle)
{
    free(handle);
}

static void fd_close(struct mst_console *console)
{
    if (console->fd < 0)
        return;
    uv_close((uv_handle_t *)console->poll, poll_closed);
    console->poll = NULL;
    close(console->fd);
    console->fd = -1;
}

static void on_readable(uv_poll_t *poll, int err, int events)
{
    struct mst_console *console = poll->data;
    int i, r = err;

    (void)events;
    for (i = 0; i < READS_PER_WAKE && r >= 0; i++) {
        r = take(console);
        if (r == 0)
            break;
    }
    if (r < 0)
        fd_close(console);
    else if (room(console) == 0)
        uv_poll_stop(poll); /* reading_go */
}

static void reading_go(struct mst_console *console)
{
    if (console->poll && room(console) > 0)
        uv_poll_start(console->poll, UV_READABLE, on_readable);
}

void mst_console_gate(struct mst_vm *vm, bool closed)
{
    struct mst_console *console = vm->console;

    if (!console)
        return;
    console->gated = closed;
    if (!closed)
        show(console, console->ring.end);
    reading_go(console);
}

uint64_t mst_console_take(struct mst_vm *vm)
{
    struct mst_console *console = vm->console;

    if (!console)
        return 0;
    /* The bound is the socket's buffer, as the guest stands. What does not fit any more counts as written later: it is shown later, never earlier. */
    for (int i = 0; i < 1024 && console->fd >= 0 && take(console) > 0; i++)
        ;
    return console->ring.end;
}

void mst_console_show(struct mst_vm *vm, uint64_t offset)
{
    struct mst_console *console = vm->console;

    if (!console)
        return;
    show(console, offset < console->ring.end ? offset : console->ring.end);
    reading_go(console);
}

static int poll_start(struct mst_console *console, int fd)
{
    uv_poll_t *poll = malloc(sizeof(*poll));
    int r;

    if (!poll)
        return -ENOMEM;
    r = uv_poll_init(console->vm->keeper->loop, poll, fd);
    if (r < 0) {
        free(poll);
        return r;
    }
    poll->data = console;
    console->poll = poll;
    console->fd = fd;
    uv_poll_start(poll, UV_READABLE, on_readable); /* cannot fail on a handle that was just made */
    return 0;
}

int mst_console_pair(const struct mst_vm *vm, int *ret_fd, int *ret_child_fd, struct mst_why *why)
{
    int pair[2], r;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return mst_why_set(why, -errno, "socketpair for the console of %s: %s", vm->name, strerror(errno));
    if (fcntl(pair[0], F_SETFL, O_NONBLOCK) < 0) { /* ours only: the flag belongs to each end */
        r = -errno;
        close(pair[0]);
        close(pair[1]);
        return r;
    }
    *ret_fd = pair[0];
    *ret_child_fd = pair[1];
    return 0;
}

int mst_console_begin(struct mst_vm *vm, int fd)
{
    struct mst_console *console;
    int r;

    mst_console_free(vm); /* of an earlier try at this epoch */
    console = calloc(1, sizeof(*console));
    if (!console)
        return -ENOMEM;
    console->vm = vm;
    console->fd = console->file = -1;
    r = poll_start(console, fd);
    if (r < 0) {
        free(console);
        return r;
    }
    file_open(console);
    vm->console = console;
    return 0;
}

int mst_console_open(struct mst_vm *vm, int *ret_child_fd, struct mst_why *why)
{
    int fd = -1, child_fd = -1, r = mst_console_pair(vm, &fd, &child_fd, why);

    if (r < 0)
        return r;
    r = mst_console_begin(vm, fd);
    if (r < 0) {
        close(fd);
        close(child_fd);
        return r;
    }
    *ret_child_fd = child_fd;
    return 0;
}

void mst_console_hangup(struct mst_vm *vm)
{
    struct mst_console *console = vm->console;
    int i;

    if (!console || console->fd < 0)
        return;
    /* What QEMU wrote before it ended is still in the socket; no more can come, so this ends. The bound is the socket's buffer. */
    for (i = 0; i < 1024 && take(console) > 0; i++)
        ;
    fd_close(console);
}

/* What nobody was shown, since a takeover would have undone it, may still say why the guest ended. */
static void held_keep(const struct mst_console *console)
{
    uint8_t data[HELD_BYTES_MAX];
    uint64_t at = console->shown;
    char path[PATH_MAX];
    size_t n = mst_ring_read(&console->ring, &at, data, sizeof(data));

    if (n > 0 && mst_vm_path(console->vm, "console.held", path, sizeof(path)) == 0)
        (void)mst_file_write_durable(path, data, n, 0600);
}

void mst_console_free(struct mst_vm *vm)
{
    struct mst_console *console = vm->console;

    if (!console)
        return;
    held_keep(console);
    vm->console = NULL;
    fd_close(console);
    if (console->file >= 0)
        close(console->file);
    free(console);
}

/* --- followers --- */

static int send_chunk(struct mst_control *control, struct mst_vm *vm, uint64_t offset, uint8_t *data, size_t len)
{
    Mainstay__ConsoleData body = MAINSTAY__CONSOLE_DATA__INIT;
    mst_envelope env = MST_ENVELOPE(CONSOLE_DATA, console_data, &body);

    body.vm = vm->name;
    body.epoch = vm->epoch;
    body.offset = offset;
    body.data = (ProtobufCBinaryData){.len = len, .data = data};
    body.node = vm->keeper->conf->node;
    return mst_control_send(control, &env);
}

/* As mst_ring_read, of what is shown. */
static size_t shown_read(const struct mst_console *console, uint64_t *offset, uint8_t *data, size_t max)
{
    uint64_t begin = mst_ring_begin(&console->ring);

    if (*offset < begin)
        *offset = begin;
    if (*offset >= console->shown) {
        *offset = console->shown;
        return 0;
    }
    return mst_ring_read(&console->ring, offset, data, console->shown - *offset < max ? (size_t)(console->shown - *offset) : max);
}

/* Sends what is there from *offset on and moves it. -ENOBUFS: the link is full, *offset says how far it went. */
static int send_rest(struct mst_control *control, struct mst_vm *vm, uint64_t *offset)
{
    uint8_t data[CHUNK_BYTES];
    size_t len;
    int r;

    while (vm->console && (len = shown_read(vm->console, offset, data, sizeof(data))) > 0) {
        r = send_chunk(control, vm, *offset, data, len);
        if (r < 0)
            return r;
        *offset += len;
    }
    return 0;
}

static void on_follow(uv_timer_t *timer)
{
    struct mst_followers *f = timer->data;
    struct mst_vm *vm;
    unsigned i, active = 0;
    bool may = mst_tenure_settled(f->keeper, NULL);

    for (i = 0; i < FOLLOWERS_MAX; i++) {
        struct follower *one = &f->list[i];

        if (!one->control)
            continue;
        active++;
        if (!may)
            continue; /* what a VM said may be another's to say by now */
        vm = mst_slot_newest(f->keeper, one->vm);
        if (!vm || !vm->console)
            continue;
        if (vm->epoch != one->epoch) {
            one->epoch = vm->epoch; /* came back in place under a new epoch: its console begins anew */
            one->offset = 0;
        }
        send_rest(one->control, vm, &one->offset); /* -ENOBUFS: the rest at the next turn */
    }
    if (!active)
        uv_timer_stop(timer);
}

static int follow(struct mst_followers *f, struct mst_control *control, struct mst_vm *vm, uint64_t offset)
{
    struct follower *free_place = NULL, *gone = NULL;
    unsigned i;

    for (i = 0; i < FOLLOWERS_MAX; i++) {
        struct follower *one = &f->list[i];

        if (one->control == control && strcmp(one->vm, vm->name) == 0) {
            free_place = one; /* asked again: goes on from the new offset */
            break;
        }
        if (!one->control && !free_place)
            free_place = one;
        if (one->control && !gone && !mst_slot_newest(f->keeper, one->vm))
            gone = one;
    }
    /* One whose VM is gone may be followed again under its next epoch: it goes only when its place is needed. */
    if (!free_place)
        free_place = gone;
    if (!free_place)
        return -ENOBUFS;
    *free_place = (struct follower){.control = control, .epoch = vm->epoch, .offset = offset};
    snprintf(free_place->vm, sizeof(free_place->vm), "%s", vm->name);
    if (!uv_is_active((uv_handle_t *)&f->timer))
        uv_timer_start(&f->timer, on_follow, FOLLOW_MS, FOLLOW_MS);
    return 0;
}

int mst_console_send(struct mst_keeper *k, struct mst_control *control, const char *vm, uint64_t from, bool follow_on,
                     struct mst_why *why)
{
    struct mst_vm *v = mst_slot_newest(k, vm);
    int r;

    if (!v)
        return mst_why_set(why, -ENOENT, "%s is not on this node", vm);
    if (!mst_tenure_settled(k, why)) {
        if (!follow_on)
            return -ESTALE;
        return follow(k->followers, control, v, from); /* sends it once that is over */
    }
    r = send_rest(control, v, &from);
    if (r < 0 && !(r == -ENOBUFS && follow_on))
        return r;
    if (!follow_on)
        return 0;
    r = follow(k->followers, control, v, from);
    if (r < 0)
        mst_why_set(why, r, "%u consoles are followed already", FOLLOWERS_MAX);
    return r;
}

void mst_console_unfollow(struct mst_keeper *k, const struct mst_control *control)
{
    unsigned i;

    for (i = 0; k->followers && i < FOLLOWERS_MAX; i++)
        if (k->followers->list[i].control == control)
            k->followers->list[i].control = NULL;
}

int mst_followers_new(struct mst_keeper *k)
{
    struct mst_followers *f = calloc(1, sizeof(*f));

    if (!f)
        return -ENOMEM;
    f->keeper = k;
    uv_timer_init(k->loop, &f->timer);
    f->timer.data = f;
    k->followers = f;
    return 0;
}

static void followers_closed(uv_handle_t *handle)
{
    free(handle->data);
}

void mst_followers_free(struct mst_keeper *k)
{
    if (!k->followers)
        return;
    uv_close((uv_handle_t *)&k->followers->timer, followers_closed);
    k->followers = NULL;
}
