#include "serve.h"

#include <errno.h>
#include <inttypes.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    PORT = 7778,
    KEY_COUNT = 64,
    CONNECTIONS_MAX = 64,
    LINE_BYTES_MAX = 64,
    FILL_BYTES_MAX = 1 << 20,
    FILL_PIECE_BYTES = 4096,
    BACKLOG = 64,
};

// A page each: pages of different moments in one memory give values that do not belong together.
static union {
    uint64_t number;
    uint8_t page[4096];
} values[KEY_COUNT] __attribute__((aligned(4096)));
static uint64_t life; // 0: nobody has said hello yet

static struct connection {
    int fd;             // -1: free
    uint64_t heard;     // number of the last reading from it, of all
    uint32_t fill_left; // bytes of a long answer that are still to be sent; the next line waits for them
    uint32_t length;    // of what has come of the next line
    char line[LINE_BYTES_MAX];
} connections[CONNECTIONS_MAX];
static uint64_t readings;

_Noreturn static void end(const char *what)
{
    dprintf(STDOUT_FILENO, "guest error: serve: %s: %s\n", what, strerror(errno));
    _exit(1);
}

static int network_up(uint32_t host)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), r = -1;
    struct sockaddr_in address = {.sin_family = AF_INET};
    struct ifreq request = {.ifr_name = "eth0"};
    if (fd < 0)
        return -1;
    address.sin_addr.s_addr = htonl(10u << 24 | 9u << 16 | host);
    memcpy(&request.ifr_addr, &address, sizeof(address));
    if (ioctl(fd, SIOCSIFADDR, &request) != 0)
        goto out;
    address.sin_addr.s_addr = htonl(0xffffff00);
    memcpy(&request.ifr_netmask, &address, sizeof(address));
    if (ioctl(fd, SIOCSIFNETMASK, &request) != 0)
        goto out;
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    r = ioctl(fd, SIOCSIFFLAGS, &request);
out:
    close(fd);
    return r;
}

static int listener_open(void)
{
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0 && (bind(fd, (struct sockaddr *)&any, sizeof(any)) != 0 || listen(fd, BACKLOG) != 0)) {
        int err = errno;
        close(fd);
        errno = err;
        return -1;
    }
    return fd;
}

// What is left of a long answer, as far as it goes now. False: the connection has ended.
static bool fill(struct connection *c)
{
    while (c->fill_left > 0) {
        char piece[FILL_PIECE_BYTES];
        uint32_t bytes = c->fill_left < sizeof(piece) ? c->fill_left : (uint32_t)sizeof(piece);
        for (uint32_t i = 0, left = c->fill_left; i < bytes; i++, left--)
            piece[i] = left == 1 ? '\n' : (char)('a' + left % 26);
        ssize_t sent = send(c->fd, piece, bytes, MSG_NOSIGNAL);
        if (sent < 0)
            return errno == EAGAIN || errno == EINTR;
        c->fill_left -= (uint32_t)sent;
    }
    return true;
}

// One line. False: the connection is to end. A client has one question under way, so there is always room for a short answer.
static bool obey(struct connection *c, const char *line)
{
    char answer[2 * LINE_BYTES_MAX], more;
    uint64_t number;
    uint32_t key;
    int bytes;
    if (sscanf(line, "hello %" SCNu64 "%c", &number, &more) == 1 && number != 0) {
        if (life == 0)
            life = number;
        bytes = snprintf(answer, sizeof(answer), "life %" PRIu64 "\n", life);
    } else if (sscanf(line, "set %" SCNu32 " %" SCNu64 "%c", &key, &number, &more) == 2 && key < KEY_COUNT) {
        uint64_t was = values[key].number;
        if (number > was)
            values[key].number = number;
        bytes = snprintf(answer, sizeof(answer), "%s %" PRIu32 " %" PRIu64 " %" PRIu64 "\n", number > was ? "ok" : "old", key,
                         number, was);
    } else if (sscanf(line, "get %" SCNu32 "%c", &key, &more) == 1 && key < KEY_COUNT) {
        bytes = snprintf(answer, sizeof(answer), "is %" PRIu32 " %" PRIu64 "\n", key, values[key].number);
    } else if (sscanf(line, "fill %" SCNu64 "%c", &number, &more) == 1 && number > 0 && number <= FILL_BYTES_MAX) {
        c->fill_left = (uint32_t)number;
        return fill(c);
    } else {
        return false;
    }
    return send(c->fd, answer, (size_t)bytes, MSG_NOSIGNAL) == bytes;
}

// The lines that have come, up to one with a long answer. False: the connection is to end.
static bool obey_all(struct connection *c)
{
    char *newline;
    while (c->fill_left == 0 && (newline = memchr(c->line, '\n', c->length)) != NULL) {
        char line[LINE_BYTES_MAX];
        uint32_t bytes = (uint32_t)(newline - c->line);
        memcpy(line, c->line, bytes);
        line[bytes] = '\0';
        c->length -= bytes + 1;
        memmove(c->line, newline + 1, c->length);
        if (!obey(c, line))
            return false;
    }
    return c->length < sizeof(c->line) || c->fill_left > 0; // else a line that is too long
}

static bool hear(struct connection *c)
{
    ssize_t n = recv(c->fd, c->line + c->length, sizeof(c->line) - c->length, 0);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    if (n == 0)
        return false;
    c->heard = ++readings;
    c->length += (uint32_t)n;
    return obey_all(c);
}

static void take_in(int listener)
{
    struct connection *place = &connections[0];
    int one = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return; // it has gone again
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    for (struct connection *c = connections; c < connections + CONNECTIONS_MAX && place->fd >= 0; c++)
        if (c->fd < 0 || c->heard < place->heard)
            place = c;
    if (place->fd >= 0)
        close(place->fd);
    *place = (struct connection){.fd = fd, .heard = ++readings};
}

_Noreturn static void serve(int listener)
{
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++)
        connections[i].fd = -1;
    for (;;) {
        struct pollfd polled[CONNECTIONS_MAX + 1];
        for (unsigned i = 0; i < CONNECTIONS_MAX; i++)
            polled[i] = (struct pollfd){.fd = connections[i].fd, .events = connections[i].fill_left > 0 ? POLLOUT : POLLIN};
        polled[CONNECTIONS_MAX] = (struct pollfd){.fd = listener, .events = POLLIN};
        if (poll(polled, CONNECTIONS_MAX + 1, -1) < 0 && errno != EINTR)
            end("poll");
        for (unsigned i = 0; i < CONNECTIONS_MAX; i++) {
            struct connection *c = &connections[i];
            if (polled[i].revents == 0 || (c->fill_left > 0 ? fill(c) && obey_all(c) : hear(c)))
                continue;
            close(c->fd);
            c->fd = -1;
        }
        if (polled[CONNECTIONS_MAX].revents != 0)
            take_in(listener);
    }
}

pid_t serve_start(uint32_t host)
{
    if (network_up(host) != 0)
        return -1;
    int listener = listener_open();
    if (listener < 0)
        return -1;
    pid_t pid = fork();
    if (pid == 0)
        serve(listener);
    close(listener);
    return pid;
}
