#include "proto/socket_conn.h"

#include "base/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define ACCEPT_RETRY_MS 100

struct write {
    uv_write_t req;
    uint8_t bytes[];
};

static void serv_unref(struct mst_sockserv *serv)
{
    if (--serv->refs == 0)
        free(serv);
}

/* ---------------------------------------------------------------- closing */

static void handle_closed(uv_handle_t *handle)
{
    struct mst_sock *sock = handle->data;

    if (--sock->handles > 0)
        return;
    if (!sock->silent && sock->events && sock->events->on_closed)
        sock->events->on_closed(sock, sock->err, &sock->why, sock->arg);
    if (sock->serv) {
        sock->serv->connections--;
        serv_unref(sock->serv);
    }
    mst_stream_free(sock->stream);
    free(sock);
}

void mst_conn_drop(struct mst_sock *sock)
{
    if (sock->phase == PHASE_CLOSED)
        return;
    sock->phase = PHASE_CLOSED;
    uv_close((uv_handle_t *)&sock->pipe, handle_closed);
    uv_close((uv_handle_t *)&sock->linger, handle_closed);
}

/* The first reason is the one that is told; but what the peer's last words were wrong about goes before a write that failed. */
void mst_conn_fail(struct mst_sock *sock, int err, const struct mst_why *why)
{
    if (sock->phase == PHASE_OPEN) {
        sock->err = err;
        sock->why = *why;
    }
    mst_conn_drop(sock);
}

static void on_linger(uv_timer_t *timer)
{
    mst_conn_drop(timer->data);
}

static void on_shutdown(uv_shutdown_t *req, int status)
{
    (void)status;
    mst_conn_drop(req->data);
}

/* The loop's time is that of its last turn, and the caller may have been busy since. */
static void linger_start(struct mst_sock *sock)
{
    uv_update_time(sock->linger.loop);
    uv_timer_start(&sock->linger, on_linger, MST_SOCK_LINGER_MS, 0);
}

void mst_sock_close(struct mst_sock *sock)
{
    if (!sock || sock->phase != PHASE_OPEN)
        return;
    sock->phase = PHASE_CLOSING;
    if (!sock->write_failed) {
        sock->err = 0;
        mst_why_set(&sock->why, 0, "closed by this side");
    }
    uv_read_stop((uv_stream_t *)&sock->pipe);
    sock->shutdown.data = sock;
    if (sock->write_failed || uv_shutdown(&sock->shutdown, (uv_stream_t *)&sock->pipe, on_shutdown) < 0)
        mst_conn_drop(sock);
    else
        linger_start(sock);
}

/* ---------------------------------------------------------------- reading and writing */

static void on_room(uv_handle_t *handle, size_t suggested, uv_buf_t *ret_buf)
{
    struct mst_sock *sock = handle->data;
    size_t room;

    (void)suggested;
    ret_buf->base = mst_stream_room(sock->stream, &room);
    ret_buf->len = room;
}

static void read_ended(struct mst_sock *sock, int err)
{
    size_t partial = mst_stream_partial(sock->stream);
    struct mst_why why;

    if (sock->write_failed && (err == UV_EOF || err == -ECONNRESET)) {
        mst_conn_drop(sock); /* err and why say what was lost */
        return;
    }
    if (err == UV_EOF && partial > 0)
        err = mst_why_set(&why, -ECONNRESET, "peer closed in the middle of a message, %zu bytes of it arrived", partial);
    else if (err == UV_EOF)
        err = mst_why_set(&why, 0, "closed by the peer");
    else if (err == -ECONNRESET)
        mst_why_set(&why, err, "peer closed without reading all that was sent to it");
    else
        mst_why_set(&why, err, "read: %s", strerror(-err));
    mst_conn_fail(sock, err, &why);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct mst_sock *sock = stream->data;
    mst_envelope *env;
    struct mst_why why;
    int r = 0;

    (void)buf;
    if (n < 0) {
        read_ended(sock, (int)n);
        return;
    }
    mst_stream_filled(sock->stream, (size_t)n);
    /* on_message may close the connection; what came behind that message is then dropped. */
    while (sock->phase == PHASE_OPEN && (r = mst_stream_next(sock->stream, &env, &why)) > 0) {
        if (sock->events && sock->events->on_message)
            sock->events->on_message(sock, env, sock->arg);
        mst_envelope_free(env);
    }
    if (sock->phase == PHASE_OPEN && r < 0)
        mst_conn_fail(sock, r, &why);
}

int mst_conn_read(struct mst_sock *sock)
{
    return uv_read_start((uv_stream_t *)&sock->pipe, on_room, on_read);
}

static void on_written(uv_write_t *req, int status)
{
    struct mst_sock *sock = req->data;

    free(req);
    if (status == 0 || sock->phase != PHASE_OPEN || sock->write_failed)
        return;
    /* The peer may have said why before it went: read that first. It ends by EOF, or by the timer when the peer lives on. */
    sock->write_failed = true;
    sock->err = status;
    mst_why_set(&sock->why, status, "write: %s, messages to the peer were lost", strerror(-status));
    linger_start(sock);
}

int mst_sock_send(struct mst_sock *sock, const mst_envelope *env)
{
    uint8_t frame[MST_MESSAGE_BYTES_MAX]; /* most messages are small and many may wait: only what is used is kept */
    struct write *write;
    uv_buf_t buf;
    int len, r;

    if (sock->phase != PHASE_OPEN || sock->write_failed)
        return -ENOTCONN;
    if (uv_stream_get_write_queue_size((uv_stream_t *)&sock->pipe) > MST_SOCK_QUEUE_BYTES_MAX)
        return -ENOBUFS;
    len = mst_frame_pack(env, frame, sizeof(frame));
    if (len < 0)
        return len;
    write = malloc(sizeof(*write) + (size_t)len);
    if (!write)
        return -ENOMEM;
    memcpy(write->bytes, frame, (size_t)len);
    write->req.data = sock;
    buf = uv_buf_init((char *)write->bytes, (unsigned)len);
    r = uv_write(&write->req, (uv_stream_t *)&sock->pipe, &buf, 1, on_written);
    if (r < 0)
        free(write);
    return r;
}

void mst_sock_set(struct mst_sock *sock, const struct mst_sock_events *events, void *arg)
{
    sock->events = events;
    sock->arg = arg;
}

/* ---------------------------------------------------------------- opening */

int mst_conn_new(uv_loop_t *loop, bool is_tcp, struct mst_sock **ret_sock)
{
    struct mst_sock *sock;
    int r;

    MST_FAULT("sock.new", return -ENOMEM);
    sock = calloc(1, sizeof(*sock));
    if (!sock)
        return -ENOMEM;
    r = mst_stream_new(&sock->stream);
    if (r < 0)
        goto free_sock;
    r = is_tcp ? uv_tcp_init(loop, &sock->tcp) : uv_pipe_init(loop, &sock->pipe, 0);
    if (r < 0)
        goto free_stream;
    sock->pipe.data = sock;
    uv_timer_init(loop, &sock->linger); /* cannot fail */
    sock->linger.data = sock;
    sock->handles = 2;
    sock->silent = true;
    *ret_sock = sock;
    return 0;
free_stream:
    mst_stream_free(sock->stream);
free_sock:
    free(sock);
    return r;
}

static int socket_address(const char *path, struct sockaddr_un *ret_addr, struct mst_why *why)
{
    size_t len = strlen(path);

    if (len == 0 || len >= sizeof(ret_addr->sun_path))
        return mst_why_set(why, -ENAMETOOLONG, "%s: a socket path has %zu bytes, allowed 1..%zu", path, len,
                           sizeof(ret_addr->sun_path) - 1);
    memset(ret_addr, 0, sizeof(*ret_addr));
    ret_addr->sun_family = AF_UNIX;
    memcpy(ret_addr->sun_path, path, len);
    return 0;
}

/* Returns a connected descriptor or -errno; never waits (-EAGAIN: the other end accepts too slowly). */
static int connect_now(const struct sockaddr_un *addr)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int r;

    if (fd < 0)
        return -errno;
    if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0)
        return fd;
    r = -errno;
    close(fd);
    return r;
}

int mst_sock_connect(uv_loop_t *loop, const char *path, const struct mst_sock_events *events, void *arg,
                     struct mst_sock **ret_sock, struct mst_why *why)
{
    struct sockaddr_un addr;
    struct mst_sock *sock;
    int fd, r;

    r = socket_address(path, &addr, why);
    if (r < 0)
        return r;
    fd = connect_now(&addr);
    if (fd == -ENOENT || fd == -ECONNREFUSED)
        return mst_why_set(why, fd, "%s: nobody listens there (%s)", path, strerror(-fd));
    if (fd < 0)
        return mst_why_set(why, fd, "%s: cannot connect: %s", path, strerror(-fd));
    r = mst_conn_new(loop, false, &sock);
    if (r < 0)
        goto close_fd;
    r = uv_pipe_open(&sock->pipe, fd);
    if (r < 0)
        goto drop_sock;
    fd = -1; /* the pipe has it now */
    r = mst_conn_read(sock);
    if (r < 0)
        goto drop_sock;
    sock->silent = false;
    sock->events = events;
    sock->arg = arg;
    *ret_sock = sock;
    return 0;
drop_sock:
    mst_conn_drop(sock);
close_fd:
    if (fd >= 0)
        close(fd);
    return mst_why_set(why, r, "%s: cannot use the connection: %s", path, strerror(-r));
}

static void on_retry(uv_timer_t *timer);

static int accept_unix(struct mst_sockserv *serv, struct mst_sock *sock)
{
    struct ucred peer;
    socklen_t peer_bytes = sizeof(peer);
    uv_os_fd_t fd;

    if (uv_fileno((uv_handle_t *)&sock->pipe, &fd) < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &peer_bytes) < 0)
        return -EIO;
    return serv->on_accept(sock, peer.pid, peer.uid, serv->arg, &sock->events, &sock->arg);
}

/* Takes one waiting connection. Refused ones are closed without a word: on_accept knows why, and says so if it wants to. */
static void on_connection(uv_stream_t *stream, int status)
{
    struct mst_sockserv *serv = stream->data;
    struct mst_sock *sock;

    if (status < 0)
        return; /* accept(2) failed; libuv goes on listening */
    if (mst_conn_new(stream->loop, serv->is_tcp, &sock) < 0) {
        /* libuv accepts no further connection until this one has been taken */
        uv_timer_start(&serv->retry, on_retry, ACCEPT_RETRY_MS, 0);
        return;
    }
    if (uv_accept(stream, (uv_stream_t *)&sock->pipe) < 0) {
        mst_conn_drop(sock);
        return;
    }
    sock->serv = serv;
    serv->connections++;
    serv->refs++;
    if (serv->connections > MST_SOCK_CONNECTIONS_MAX) {
        mst_conn_drop(sock);
        return;
    }
    if ((serv->is_tcp ? mst_conn_accept_tcp(serv, sock) : accept_unix(serv, sock)) < 0) {
        mst_sock_close(sock); /* still silent; what on_accept has sent goes out */
        return;
    }
    sock->silent = false;
    if (sock->phase == PHASE_OPEN && mst_conn_read(sock) < 0)
        mst_conn_fail(sock, -EIO, &(struct mst_why){"cannot read from the connection"});
}

static void on_retry(uv_timer_t *timer)
{
    struct mst_sockserv *serv = timer->data;

    on_connection((uv_stream_t *)&serv->pipe, 0);
}

/* Locks the folder of path, so that of two programs that find the same stale socket one replaces it and the other sees it live.
 * Anybody who may read the folder may hold the lock: wait one second at most. */
static int folder_lock(const char *path)
{
    char folder[sizeof(((struct sockaddr_un *)0)->sun_path)];
    const struct timespec pause = {.tv_nsec = 10000000L};
    char *slash;
    int fd, r;

    snprintf(folder, sizeof(folder), "%s", path);
    slash = strrchr(folder, '/');
    if (slash)
        slash[slash == folder ? 1 : 0] = '\0';
    fd = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    for (int tries = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; tries++) {
        r = -errno;
        if (tries == 100 || (r != -EWOULDBLOCK && r != -EINTR)) {
            close(fd);
            return r;
        }
        nanosleep(&pause, NULL);
    }
    return fd;
}

/* Removes a socket that nobody listens on. The folder is locked. */
static int stale_remove(const struct sockaddr_un *addr, struct mst_why *why)
{
    const char *path = addr->sun_path;
    struct stat st;
    int fd;

    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : mst_why_set(why, -errno, "%s: %s", path, strerror(errno));
    if (!S_ISSOCK(st.st_mode))
        return mst_why_set(why, -EEXIST, "%s: is not a socket, and will not be replaced", path);
    fd = connect_now(addr);
    if (fd >= 0)
        close(fd);
    if (fd >= 0 || fd == -EAGAIN)
        return mst_why_set(why, -EADDRINUSE, "%s: another process listens there", path);
    if (fd != -ECONNREFUSED && fd != -ENOENT)
        return mst_why_set(why, fd, "%s: cannot tell whether another process listens there: %s", path, strerror(-fd));
    if (unlink(path) < 0 && errno != ENOENT)
        return mst_why_set(why, -errno, "%s: cannot remove the stale socket: %s", path, strerror(errno));
    return 0;
}

/* Returns a listening descriptor. Never through a moment in which the file has more rights than mode. */
static int listen_fd(struct mst_sockserv *serv, mode_t mode, struct mst_why *why)
{
    struct sockaddr_un addr;
    struct stat st;
    int lock, fd, r;

    r = socket_address(serv->path, &addr, why);
    if (r < 0)
        return r;
    lock = folder_lock(serv->path);
    if (lock < 0)
        return mst_why_set(why, lock, "%s: cannot lock its folder: %s", serv->path, strerror(-lock));
    r = stale_remove(&addr, why);
    if (r < 0)
        goto close_lock;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        r = mst_why_set(why, -errno, "socket: %s", strerror(errno));
        goto close_lock;
    }
    /* The file takes the socket's mode, less umask: chmod gives back what umask took. */
    if (fchmod(fd, mode) < 0 || bind(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0) {
        r = mst_why_set(why, -errno, "%s: cannot bind: %s", serv->path, strerror(errno));
        goto close_fd;
    }
    if (chmod(serv->path, mode) < 0 || lstat(serv->path, &st) < 0 || listen(fd, 64) < 0) {
        r = mst_why_set(why, -errno, "%s: cannot listen: %s", serv->path, strerror(errno));
        unlink(serv->path);
        goto close_fd;
    }
    serv->dev = st.st_dev;
    serv->ino = st.st_ino;
    close(lock);
    return fd;
close_fd:
    close(fd);
close_lock:
    close(lock);
    return r;
}

static void serv_closed(uv_handle_t *handle)
{
    serv_unref(handle->data);
}

int mst_serv_listen(struct mst_sockserv *serv, int fd)
{
    int r;

    uv_timer_init(serv->pipe.loop, &serv->retry); /* cannot fail */
    serv->refs = 2;
    serv->pipe.data = serv->retry.data = serv;
    r = serv->is_tcp ? uv_tcp_open(&serv->tcp, fd) : uv_pipe_open(&serv->pipe, fd);
    if (r < 0)
        close(fd);
    else
        r = uv_listen((uv_stream_t *)&serv->pipe, 64, on_connection);
    if (r < 0)
        mst_sockserv_close(serv);
    return r;
}

int mst_sockserv_open(uv_loop_t *loop, const char *path, mode_t mode,
                      int (*on_accept)(struct mst_sock *sock, pid_t peer_pid, uid_t peer_uid, void *arg,
                                       const struct mst_sock_events **ret_events, void **ret_arg),
                      void *arg, struct mst_sockserv **ret_serv, struct mst_why *why)
{
    struct mst_sockserv *serv;
    int fd, r;

    if (strlen(path) >= sizeof(serv->path))
        return mst_why_set(why, -ENAMETOOLONG, "%s: a socket path has at most %zu bytes", path, sizeof(serv->path) - 1);
    serv = calloc(1, sizeof(*serv));
    if (!serv)
        return mst_why_set(why, -ENOMEM, "%s: %s", path, strerror(ENOMEM));
    snprintf(serv->path, sizeof(serv->path), "%s", path);
    serv->on_accept = on_accept;
    serv->arg = arg;
    fd = listen_fd(serv, mode, why);
    if (fd < 0) {
        free(serv);
        return fd;
    }
    r = uv_pipe_init(loop, &serv->pipe, 0);
    if (r < 0) {
        close(fd);
        free(serv);
        return mst_why_set(why, r, "%s: %s", path, strerror(-r));
    }
    r = mst_serv_listen(serv, fd);
    if (r < 0)
        return mst_why_set(why, r, "%s: cannot listen: %s", path, strerror(-r));
    *ret_serv = serv;
    return 0;
}

void mst_sockserv_close(struct mst_sockserv *serv)
{
    struct stat st;

    if (!serv || serv->closing)
        return;
    serv->closing = true;
    if (!serv->is_tcp && lstat(serv->path, &st) == 0 && st.st_dev == serv->dev && st.st_ino == serv->ino)
        unlink(serv->path);
    uv_close((uv_handle_t *)&serv->pipe, serv_closed);
    uv_close((uv_handle_t *)&serv->retry, serv_closed);
}
