#ifndef MST_PROTO_SOCKET_CONN_H
#define MST_PROTO_SOCKET_CONN_H

#include "proto/socket.h"

#include <stdbool.h>
#include <sys/stat.h>
#include <sys/un.h>

/* Inside proto/ only: what Unix sockets (socket.c) and TCP (socket_tcp.c) share. */

/* A connection is open, then closing (what is queued still goes out, nothing is read), then closed (its two libuv handles are
 * going away; on_closed runs when both are gone). It never goes back, which is why on_closed runs once. */
enum mst_sock_phase { PHASE_OPEN, PHASE_CLOSING, PHASE_CLOSED };

struct mst_sock {
    union {
        uv_pipe_t pipe;
        uv_tcp_t tcp;
    };
    uv_timer_t linger; /* ends phase closing when the peer does not read */
    uv_shutdown_t shutdown;
    uv_connect_t connect; /* TCP */
    unsigned handles;     /* not yet closed by libuv */
    enum mst_sock_phase phase;
    bool silent; /* nobody was told of this connection: no on_closed */
    bool write_failed;
    int err; /* for on_closed */
    struct mst_why why;
    struct mst_stream *stream;
    struct mst_sockserv *serv; /* the one that accepted it, NULL otherwise */
    const struct mst_sock_events *events;
    void *arg;
};

struct mst_sockserv {
    union {
        uv_pipe_t pipe;
        uv_tcp_t tcp;
    };
    uv_timer_t retry; /* of a connection for which there was no memory */
    bool is_tcp, closing;
    unsigned connections;
    unsigned refs; /* connections, and one for each handle above until libuv has closed it */
    dev_t dev;
    ino_t ino; /* of the socket file: another one that took its place is not ours to remove */
    int (*on_accept)(struct mst_sock *sock, pid_t peer_pid, uid_t peer_uid, void *arg, const struct mst_sock_events **ret_events,
                     void **ret_arg);
    int (*on_accept_tcp)(struct mst_sock *sock, const char *peer_address, void *arg, const struct mst_sock_events **ret_events,
                         void **ret_arg);
    void *arg;
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)]; /* empty: TCP */
};

/* A connection without a descriptor yet. From here on mst_conn_drop is the only way to free it. */
int mst_conn_new(uv_loop_t *loop, bool is_tcp, struct mst_sock **ret_sock);
void mst_conn_drop(struct mst_sock *sock);
void mst_conn_fail(struct mst_sock *sock, int err, const struct mst_why *why);
int mst_conn_read(struct mst_sock *sock); /* begins to */
/* serv has its handle, refs 0; fd listens on nothing yet and is serv's from here on, also on failure. */
int mst_serv_listen(struct mst_sockserv *serv, int fd);
/* Who has connected is asked by on_accept_tcp whether it takes him. */
int mst_conn_accept_tcp(struct mst_sockserv *serv, struct mst_sock *sock);

#endif
