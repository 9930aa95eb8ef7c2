#include "proto/socket_conn.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int address_of(const char *address, uint16_t port, struct sockaddr_storage *ret, struct mst_why *why)
{
    memset(ret, 0, sizeof(*ret));
    if (uv_ip4_addr(address, port, (struct sockaddr_in *)ret) == 0 || uv_ip6_addr(address, port, (struct sockaddr_in6 *)ret) == 0)
        return 0;
    return mst_why_set(why, -EINVAL, "%s: is not a numeric address", address);
}

static socklen_t address_bytes(const struct sockaddr_storage *at)
{
    return at->ss_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
}

/* --- connecting --- */

static void on_connect(uv_connect_t *req, int status)
{
    struct mst_sock *sock = req->data;
    struct mst_why why;

    if (sock->phase != PHASE_OPEN)
        return; /* given up meanwhile */
    if (status == 0)
        status = mst_conn_read(sock);
    if (status < 0) {
        mst_why_set(&why, status, "cannot connect: %s", strerror(-status));
        mst_conn_fail(sock, status, &why);
    }
}

int mst_sock_connect_tcp(uv_loop_t *loop, const char *address, uint16_t port, const struct mst_sock_events *events, void *arg,
                         struct mst_sock **ret_sock, struct mst_why *why)
{
    struct sockaddr_storage at;
    struct mst_sock *sock;
    int r = address_of(address, port, &at, why);

    if (r < 0)
        return r;
    r = mst_conn_new(loop, true, &sock);
    if (r == 0) {
        sock->connect.data = sock;
        r = uv_tcp_connect(&sock->connect, &sock->tcp, (const struct sockaddr *)&at, on_connect);
        if (r < 0)
            mst_conn_drop(sock);
    }
    if (r < 0)
        return mst_why_set(why, r, "%s port %u: cannot connect: %s", address, port, strerror(-r));
    sock->silent = false;
    sock->events = events;
    sock->arg = arg;
    *ret_sock = sock;
    return 0;
}

/* --- listening --- */

int mst_conn_accept_tcp(struct mst_sockserv *serv, struct mst_sock *sock)
{
    struct sockaddr_storage peer;
    int bytes = sizeof(peer);
    char text[INET6_ADDRSTRLEN];
    int r = uv_tcp_getpeername(&sock->tcp, (struct sockaddr *)&peer, &bytes);

    if (r == 0)
        r = peer.ss_family == AF_INET ? uv_ip4_name((const struct sockaddr_in *)&peer, text, sizeof(text))
                                      : uv_ip6_name((const struct sockaddr_in6 *)&peer, text, sizeof(text));
    return r < 0 ? r : serv->on_accept_tcp(sock, text, serv->arg, &sock->events, &sock->arg);
}

/* The address may come up later than we do: FREEBIND. */
static int listen_fd(const struct sockaddr_storage *at)
{
    const int on = 1;
    int fd = socket(at->ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int r;

    if (fd < 0)
        return -errno;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == 0 &&
        setsockopt(fd, at->ss_family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6,
                   at->ss_family == AF_INET ? IP_FREEBIND : IPV6_FREEBIND, &on, sizeof(on)) == 0 &&
        bind(fd, (const struct sockaddr *)at, address_bytes(at)) == 0)
        return fd;
    r = -errno;
    close(fd);
    return r;
}

int mst_sockserv_open_tcp(uv_loop_t *loop, const char *address, uint16_t port,
                          int (*on_accept)(struct mst_sock *sock, const char *peer_address, void *arg,
                                           const struct mst_sock_events **ret_events, void **ret_arg),
                          void *arg, struct mst_sockserv **ret_serv, struct mst_why *why)
{
    struct sockaddr_storage at;
    struct mst_sockserv *serv;
    int fd, r = address_of(address, port, &at, why);

    if (r < 0)
        return r;
    serv = calloc(1, sizeof(*serv));
    fd = serv ? listen_fd(&at) : -ENOMEM;
    r = fd < 0 ? fd : uv_tcp_init(loop, &serv->tcp);
    if (r < 0) {
        if (fd >= 0)
            close(fd);
        free(serv);
        return mst_why_set(why, r, "%s port %u: cannot listen: %s", address, port, strerror(-r));
    }
    serv->is_tcp = true;
    serv->on_accept_tcp = on_accept;
    serv->arg = arg;
    r = mst_serv_listen(serv, fd);
    if (r < 0)
        return mst_why_set(why, r, "%s port %u: cannot listen: %s", address, port, strerror(-r));
    *ret_serv = serv;
    return 0;
}
