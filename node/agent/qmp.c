#include "node/agent/qmp.h"

#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define READ_BYTES     (64u << 10) /* at most so much in one turn of the loop: a monitor that floods us starves nobody */
#define BUFFER_BYTES_0 4096u

struct pending {
    struct pending *next;
    uint64_t id;
    uint64_t deadline_ms; /* 0: none */
    mst_qmp_reply_fn reply;
    void *arg;
    char command[48];
};

struct outgoing {
    struct outgoing *next;
    char *data;
    size_t len, off;
    int fd; /* goes with the first byte */
};

struct mst_qmp {
    const struct mst_qmp_events *events;
    void *arg;
    uv_poll_t poll;
    uv_timer_t timer;
    unsigned handles; /* open libuv handles; the last one to close frees the struct */
    int fd;
    bool greeted, ready; /* greeting seen; capabilities agreed */
    bool over;           /* the connection ended by itself; the owner has been told, or is about to be */
    bool closed;         /* mst_qmp_close was called */
    uint64_t next_id, heard_ms;
    uint32_t silent_ms; /* of the greeting and of the capabilities: a QEMU that starts is slow */
    uint64_t greeting_deadline_ms; /* this and those of commands: by mst_qmp_clock_ms */
    const struct mst_patience *patience;
    struct pending *pending; /* oldest first */
    unsigned pending_count;
    struct outgoing *out;
    char *buffer; /* bytes of an unfinished line */
    size_t used, room, scanned;
};

static void poll_again(struct mst_qmp *qmp);
static void timer_again(struct mst_qmp *qmp);

/* --- end of a connection --- */

static void outgoing_free(struct outgoing *out)
{
    if (out->fd >= 0)
        close(out->fd);
    free(out->data);
    free(out);
}

static void handle_closed(uv_handle_t *handle)
{
    struct mst_qmp *qmp = handle->data;

    if (--qmp->handles > 0)
        return;
    close(qmp->fd);
    while (qmp->pending) {
        struct pending *next = qmp->pending->next;

        free(qmp->pending);
        qmp->pending = next;
    }
    while (qmp->out) {
        struct outgoing *next = qmp->out->next;

        outgoing_free(qmp->out);
        qmp->out = next;
    }
    free(qmp->buffer);
    free(qmp);
}

void mst_qmp_close(struct mst_qmp *qmp)
{
    if (!qmp || qmp->closed)
        return;
    qmp->closed = true;
    uv_close((uv_handle_t *)&qmp->poll, handle_closed);
    uv_close((uv_handle_t *)&qmp->timer, handle_closed);
}

static void answer(struct mst_qmp *qmp, struct pending *pending, int err, const json_t *ret, const struct mst_why *why)
{
    if (pending->reply && !qmp->closed)
        pending->reply(qmp, err, ret, why, pending->arg);
    free(pending);
}

/* The connection ends from our side or QEMU's: stop listening, answer what waits, tell the owner. */
static void end(struct mst_qmp *qmp, int err, const struct mst_why *why)
{
    if (qmp->over || qmp->closed)
        return;
    qmp->over = true;
    qmp->ready = false;
    uv_poll_stop(&qmp->poll);
    uv_timer_stop(&qmp->timer);
    while (qmp->pending && !qmp->closed) {
        struct pending *first = qmp->pending;

        qmp->pending = first->next;
        qmp->pending_count--;
        answer(qmp, first, -ENOTCONN, NULL, why);
    }
    if (!qmp->closed)
        qmp->events->on_closed(qmp, err, why, qmp->arg);
}

/* --- what QEMU says --- */

static struct pending *pending_take(struct mst_qmp *qmp, uint64_t id)
{
    for (struct pending **at = &qmp->pending; *at; at = &(*at)->next) {
        if ((*at)->id == id) {
            struct pending *found = *at;

            *at = found->next;
            qmp->pending_count--;
            return found;
        }
    }
    return NULL;
}

static void on_reply(struct mst_qmp *qmp, const json_t *message)
{
    const json_t *id = json_object_get(message, "id"), *error = json_object_get(message, "error");
    struct pending *pending;
    struct mst_why why = {""};

    if (!json_is_integer(id) || json_integer_value(id) <= 0 || (uint64_t)json_integer_value(id) >= qmp->next_id) {
        /* QEMU answers without an id when it could not read our command: the stream is out of step. */
        const char *desc = json_string_value(json_object_get(error, "desc"));

        mst_why_set(&why, -EPROTO, "QEMU's monitor answered something that was never asked: %s", desc ? desc : "no id");
        end(qmp, -EPROTO, &why);
        return;
    }
    pending = pending_take(qmp, (uint64_t)json_integer_value(id));
    if (!pending)
        return; /* its deadline passed; the owner has been told already */
    if (error) {
        const char *desc = json_string_value(json_object_get(error, "desc"));

        mst_why_set(&why, -EREMOTEIO, "QEMU refused %s: %s", pending->command, desc ? desc : "no reason given");
        answer(qmp, pending, -EREMOTEIO, NULL, &why);
    } else {
        answer(qmp, pending, 0, json_object_get(message, "return"), &why);
    }
}

static void on_capabilities(struct mst_qmp *qmp, int err, const json_t *ret, const struct mst_why *why, void *arg)
{
    (void)ret;
    (void)arg;
    if (qmp->over)
        return; /* end() answered; on_closed follows */
    if (err) {
        end(qmp, err, why);
        return;
    }
    qmp->events->on_ready(qmp, qmp->arg);
}

static void on_greeting(struct mst_qmp *qmp, const json_t *message)
{
    struct mst_why why;
    int r;

    if (!json_is_object(json_object_get(message, "QMP"))) {
        mst_why_set(&why, -EPROTO, "what listens on the monitor socket does not greet as QMP");
        end(qmp, -EPROTO, &why);
        return;
    }
    qmp->greeted = true;
    qmp->ready = true;
    r = mst_qmp_execute(qmp, "qmp_capabilities", NULL, -1, qmp->silent_ms, on_capabilities, NULL);
    if (r < 0) {
        mst_why_set(&why, r, "cannot ask for QMP capabilities: %s", mst_errname(r));
        end(qmp, r, &why);
    }
}

static void on_line(struct mst_qmp *qmp, const char *line, size_t len)
{
    struct mst_why why;
    json_error_t error;
    json_t *message;
    const char *event;

    while (len > 0 && (line[len - 1] == '\r' || line[len - 1] == ' '))
        len--;
    if (len == 0)
        return;
    message = json_loadb(line, len, JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(message)) {
        mst_why_set(&why, -EBADMSG, "QEMU's monitor sent what is not a JSON object: %s", message ? "another value" : error.text);
        json_decref(message);
        end(qmp, -EBADMSG, &why);
        return;
    }
    event = json_string_value(json_object_get(message, "event"));
    if (!qmp->greeted) {
        on_greeting(qmp, message);
    } else if (event) {
        const json_t *data = json_object_get(message, "data");

        qmp->events->on_event(qmp, event, json_is_object(data) ? data : NULL, qmp->arg);
    } else {
        on_reply(qmp, message);
    }
    json_decref(message);
}

/* Hands out whole lines of the buffer; what is left of the last one moves to its front. */
static void cut_lines(struct mst_qmp *qmp)
{
    size_t start = 0;

    while (!qmp->over && !qmp->closed) {
        char *newline = memchr(qmp->buffer + qmp->scanned, '\n', qmp->used - qmp->scanned);

        if (!newline)
            break;
        on_line(qmp, qmp->buffer + start, (size_t)(newline - qmp->buffer) - start);
        start = (size_t)(newline - qmp->buffer) + 1;
        qmp->scanned = start;
    }
    memmove(qmp->buffer, qmp->buffer + start, qmp->used - start);
    qmp->used -= start;
    qmp->scanned = qmp->used;
}

static int buffer_grow(struct mst_qmp *qmp)
{
    size_t room = qmp->room ? qmp->room * 2 : BUFFER_BYTES_0;
    char *grown;

    if (qmp->room >= MST_QMP_LINE_BYTES_MAX)
        return -EMSGSIZE;
    if (room > MST_QMP_LINE_BYTES_MAX)
        room = MST_QMP_LINE_BYTES_MAX;
    grown = realloc(qmp->buffer, room);
    if (!grown)
        return -ENOMEM;
    qmp->buffer = grown;
    qmp->room = room;
    return 0;
}

static void on_readable(struct mst_qmp *qmp)
{
    size_t budget = READ_BYTES;
    struct mst_why why;

    while (budget > 0 && !qmp->over && !qmp->closed) {
        int r = qmp->used == qmp->room ? buffer_grow(qmp) : 0;
        ssize_t n;

        if (r < 0) {
            mst_why_set(&why, r, "QEMU's monitor sent a line of more than %u bytes", MST_QMP_LINE_BYTES_MAX);
            end(qmp, r, &why);
            return;
        }
        n = recv(qmp->fd, qmp->buffer + qmp->used, qmp->room - qmp->used < budget ? qmp->room - qmp->used : budget, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            int err = n < 0 ? -errno : 0;

            mst_why_set(&why, err, "QEMU's monitor closed the connection%s%s", err ? ": " : "", err ? mst_errname(err) : "");
            end(qmp, err, &why);
            return;
        }
        qmp->used += (size_t)n;
        budget -= (size_t)n;
        qmp->heard_ms = mst_now_ms();
        cut_lines(qmp);
    }
}

/* --- what we say --- */

static ssize_t send_some(int socket_fd, const struct outgoing *out)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec iov = {.iov_base = out->data + out->off, .iov_len = out->len - out->off};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

    if (out->fd >= 0) {
        struct cmsghdr *head;

        message.msg_control = control.bytes;
        message.msg_controllen = sizeof(control.bytes);
        head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(head), &out->fd, sizeof(int));
    }
    return sendmsg(socket_fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void on_writable(struct mst_qmp *qmp)
{
    while (qmp->out) {
        struct outgoing *out = qmp->out;
        ssize_t n = send_some(qmp->fd, out);

        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            break;
        if (n < 0) {
            struct mst_why why;
            int err = -errno;

            mst_why_set(&why, err, "cannot write to QEMU's monitor: %s", mst_errname(err));
            end(qmp, err, &why);
            return;
        }
        if (out->fd >= 0) { /* it went with the first byte */
            close(out->fd);
            out->fd = -1;
        }
        out->off += (size_t)n;
        if (out->off == out->len) {
            qmp->out = out->next;
            outgoing_free(out);
        }
    }
    poll_again(qmp);
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct mst_qmp *qmp = poll->data;
    struct mst_why why;

    if (status < 0) {
        /* libuv's EBADF for POLLERR: QEMU ended with something of ours unread. What it said before that comes first. */
        on_readable(qmp);
        mst_why_set(&why, -ECONNRESET, "QEMU's monitor broke the connection");
        end(qmp, -ECONNRESET, &why);
        return;
    }
    if (events & UV_READABLE)
        on_readable(qmp);
    if ((events & UV_WRITABLE) && !qmp->over && !qmp->closed)
        on_writable(qmp);
}

static void poll_again(struct mst_qmp *qmp)
{
    if (!qmp->over && !qmp->closed)
        uv_poll_start(&qmp->poll, UV_READABLE | (qmp->out ? UV_WRITABLE : 0), on_poll);
}

/* --- deadlines --- */

static void on_timer(uv_timer_t *timer)
{
    struct mst_qmp *qmp = timer->data;
    uint64_t now_ms = mst_qmp_clock_ms(qmp);
    struct mst_why why;
    struct pending **at = &qmp->pending;

    if (!qmp->greeted && now_ms >= qmp->greeting_deadline_ms) {
        mst_why_set(&why, -ETIMEDOUT, "QEMU's monitor did not greet in time");
        end(qmp, -ETIMEDOUT, &why);
        return;
    }
    while (*at && !qmp->over && !qmp->closed) {
        struct pending *late = *at;

        if (late->deadline_ms == 0 || now_ms < late->deadline_ms) {
            at = &late->next;
            continue;
        }
        *at = late->next;
        qmp->pending_count--;
        mst_why_set(&why, -ETIMEDOUT, "QEMU did not answer %s in time", late->command);
        answer(qmp, late, -ETIMEDOUT, NULL, &why);
        at = &qmp->pending; /* the callback may have changed the list */
    }
    timer_again(qmp);
}

static void timer_again(struct mst_qmp *qmp)
{
    uint64_t first_ms = qmp->greeted ? UINT64_MAX : qmp->greeting_deadline_ms, now_ms = mst_qmp_clock_ms(qmp);

    if (qmp->over || qmp->closed)
        return;
    for (const struct pending *p = qmp->pending; p; p = p->next)
        if (p->deadline_ms != 0 && p->deadline_ms < first_ms)
            first_ms = p->deadline_ms;
    if (first_ms == UINT64_MAX)
        uv_timer_stop(&qmp->timer);
    else
        uv_timer_start(&qmp->timer, on_timer, first_ms > now_ms ? first_ms - now_ms : 0, 0);
}

/* --- interface --- */

int mst_qmp_open(uv_loop_t *loop, int fd, uint32_t silent_ms, const struct mst_qmp_events *events, void *arg,
                 struct mst_qmp **ret_qmp)
{
    struct mst_qmp *qmp = calloc(1, sizeof(*qmp));
    int r = -ENOMEM;

    if (!qmp)
        goto close_fd;
    qmp->events = events;
    qmp->arg = arg;
    qmp->fd = fd;
    qmp->next_id = 1;
    qmp->heard_ms = mst_now_ms();
    qmp->silent_ms = silent_ms;
    qmp->greeting_deadline_ms = qmp->heard_ms + silent_ms;
    r = uv_poll_init(loop, &qmp->poll, fd); /* makes fd non-blocking; libuv's errors are -errno */
    if (r < 0)
        goto free_qmp;
    uv_timer_init(loop, &qmp->timer); /* cannot fail */
    qmp->poll.data = qmp->timer.data = qmp;
    qmp->handles = 2;
    poll_again(qmp);
    timer_again(qmp);
    *ret_qmp = qmp;
    return 0;
free_qmp:
    free(qmp);
close_fd:
    close(fd);
    return r;
}

int mst_qmp_connect(uv_loop_t *loop, const char *path, uint32_t silent_ms, const struct mst_qmp_events *events, void *arg,
                    struct mst_qmp **ret_qmp)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t len = strlen(path);
    int fd, r;

    if (len >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    memcpy(address.sun_path, path, len + 1);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0) {
        r = -errno;
        close(fd);
        return r;
    }
    return mst_qmp_open(loop, fd, silent_ms, events, arg, ret_qmp);
}

/* One line of JSON with its newline; NULL when there is no memory. Takes arguments over. */
static char *command_text(const char *command, json_t *arguments, uint64_t id, size_t *ret_len)
{
    json_t *message;
    char *text, *line;
    size_t len;

    message = json_pack("{s:s, s:o*, s:I}", "execute", command, "arguments", arguments, "id", (json_int_t)id);
    if (!message)
        return NULL;
    text = json_dumps(message, JSON_COMPACT);
    json_decref(message);
    if (!text)
        return NULL;
    len = strlen(text);
    line = realloc(text, len + 2);
    if (!line) {
        free(text);
        return NULL;
    }
    line[len] = '\n';
    line[len + 1] = '\0';
    *ret_len = len + 1;
    return line;
}

int mst_qmp_execute(struct mst_qmp *qmp, const char *command, json_t *arguments, int fd, uint32_t timeout_ms,
                    mst_qmp_reply_fn reply, void *arg)
{
    struct pending *pending = NULL, **last;
    struct outgoing *out = NULL, **end_of_out;
    int r;

    if (!qmp->ready || qmp->over || qmp->closed) {
        json_decref(arguments);
        return -ENOTCONN;
    }
    if (qmp->pending_count >= MST_QMP_PENDING_MAX) {
        json_decref(arguments);
        return -EAGAIN;
    }
    pending = calloc(1, sizeof(*pending));
    out = calloc(1, sizeof(*out));
    r = -ENOMEM;
    if (!pending || !out) {
        json_decref(arguments);
        goto free_both;
    }
    out->fd = -1;
    out->data = command_text(command, arguments, qmp->next_id, &out->len);
    if (!out->data)
        goto free_both;
    if (fd >= 0) {
        out->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        if (out->fd < 0) {
            r = -errno;
            goto free_both;
        }
    }
    pending->id = qmp->next_id++;
    pending->deadline_ms = timeout_ms ? mst_qmp_clock_ms(qmp) + timeout_ms : 0;
    pending->reply = reply;
    pending->arg = arg;
    strncpy(pending->command, command, sizeof(pending->command) - 1);
    for (last = &qmp->pending; *last; last = &(*last)->next)
        ;
    *last = pending;
    qmp->pending_count++;
    for (end_of_out = &qmp->out; *end_of_out; end_of_out = &(*end_of_out)->next)
        ;
    *end_of_out = out;
    poll_again(qmp);
    timer_again(qmp);
    return 0;
free_both:
    if (out)
        free(out->data);
    free(out);
    free(pending);
    return r;
}

void mst_qmp_forget(struct mst_qmp *qmp, const void *arg)
{
    for (struct pending *p = qmp->pending; p; p = p->next)
        if (p->arg == arg)
            p->reply = NULL;
}

void mst_qmp_patience(struct mst_qmp *qmp, const struct mst_patience *patience)
{
    uint64_t before_ms = mst_qmp_clock_ms(qmp);

    qmp->patience = patience;
    qmp->greeting_deadline_ms += mst_qmp_clock_ms(qmp) - before_ms;
    for (struct pending *p = qmp->pending; p; p = p->next)
        p->deadline_ms += p->deadline_ms != 0 ? mst_qmp_clock_ms(qmp) - before_ms : 0;
    timer_again(qmp);
}

uint64_t mst_qmp_clock_ms(const struct mst_qmp *qmp)
{
    return qmp->patience ? mst_patience_ms(qmp->patience) : mst_now_ms();
}

bool mst_qmp_waits(const struct mst_qmp *qmp)
{
    return qmp && !qmp->over && !qmp->closed && (qmp->pending_count > 0 || !qmp->greeted);
}

uint64_t mst_qmp_heard_ms(const struct mst_qmp *qmp)
{
    return qmp->heard_ms;
}
