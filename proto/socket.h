#ifndef MST_PROTO_SOCKET_H
#define MST_PROTO_SOCKET_H

#include "proto/frame.h"

#include <sys/types.h>
#include <uv.h>

/* Frames over a Unix stream socket in a libuv loop. Used for keeper <-> agent and coordinator <-> mainstayctl; over TCP, for the keepers' management
 * addresses.
 * Loop thread only. Callbacks run from the loop, never inside the call that asked for them. */

#define MST_SOCK_QUEUE_BYTES_MAX (4u << 20) /* queued towards a peer that does not read */
#define MST_SOCK_LINGER_MS       2000       /* how long a closed connection waits for its peer to take what is queued */
#define MST_SOCK_CONNECTIONS_MAX 64u        /* per listening socket; further ones are closed at once */

/* The process must ignore SIGPIPE. A connection keeps the loop alive until on_closed has run, a listening socket until the loop
 * has turned once after mst_sockserv_close. */
struct mst_sock;     /* one connection */
struct mst_sockserv; /* a listening socket */

struct mst_sock_events {
    /* env is borrowed for the call. */
    void (*on_message)(struct mst_sock *sock, const mst_envelope *env, void *arg);
    /* Runs exactly once per connection, after which sock is gone. err: 0 peer closed or mst_sock_close, else -errno: of a message
     * that mst_frame_unpack refuses, -ECONNRESET peer closed in the middle of one or without reading ours, -EPIPE queued messages
     * were lost. why is never NULL. What is queued and has not been written by then is lost. */
    void (*on_closed)(struct mst_sock *sock, int err, const struct mst_why *why, void *arg);
};

/* Listens on path (mode applied; a stale socket file is replaced, a live one gives -EADDRINUSE, something that is no socket
 * -EEXIST). -ENAMETOOLONG over 107 bytes, -EWOULDBLOCK the folder stays
 * locked (flock) for a second, else the errno of the system call with why. */
int mst_sockserv_open(uv_loop_t *loop, const char *path, mode_t mode,
                      /* returns 0 and fills *ret_events, *ret_arg, or -errno to refuse: sock is then closed without on_closed,
                       * after what on_accept has sent on it went out; peer_pid and peer_uid from SO_PEERCRED */
                      int (*on_accept)(struct mst_sock *sock, pid_t peer_pid, uid_t peer_uid, void *arg,
                                       const struct mst_sock_events **ret_events, void **ret_arg),
                      void *arg, struct mst_sockserv **ret_serv, struct mst_why *why);
void mst_sockserv_close(struct mst_sockserv *serv); /* unlinks path; connections stay open */

/* Connects at once (Unix sockets do not wait). -ENOENT, -ECONNREFUSED, -EACCES, -EAGAIN (the other end does not accept) with
 * why. */
int mst_sock_connect(uv_loop_t *loop, const char *path, const struct mst_sock_events *events, void *arg,
                     struct mst_sock **ret_sock, struct mst_why *why);
/* The same over TCP. The address is numeric and may come up later. peer_address: of who has connected, numeric, borrowed for the call. */
int mst_sockserv_open_tcp(uv_loop_t *loop, const char *address, uint16_t port,
                          int (*on_accept)(struct mst_sock *sock, const char *peer_address, void *arg,
                                           const struct mst_sock_events **ret_events, void **ret_arg),
                          void *arg, struct mst_sockserv **ret_serv, struct mst_why *why);
/* What is sent meanwhile waits for the connection; when it does not come about, on_closed says why (-ECONNREFUSED, -ETIMEDOUT, ...). How long to wait
 * is the caller's business: mst_sock_close. -EINVAL no numeric address, -ENETUNREACH and the like with why. */
int mst_sock_connect_tcp(uv_loop_t *loop, const char *address, uint16_t port, const struct mst_sock_events *events, void *arg,
                         struct mst_sock **ret_sock, struct mst_why *why);
/* Queues one message (packed inside). -EMSGSIZE and -EINVAL as mst_frame_pack, -ENOBUFS (peer does not read: more than
 * MST_SOCK_QUEUE_BYTES_MAX wait; the connection stays good), -ENOTCONN (closing, or the peer is gone), -ENOMEM. */
int mst_sock_send(struct mst_sock *sock, const mst_envelope *env);
/* on_closed(0) follows, after what is queued was written, has failed, or MST_SOCK_LINGER_MS have passed. No on_message comes any
 * more. Again, or for a connection that is closing already: nothing happens. */
void mst_sock_close(struct mst_sock *sock);
/* From now on these are called. events may be NULL: messages are then dropped, and the end is not told. */
void mst_sock_set(struct mst_sock *sock, const struct mst_sock_events *events, void *arg);

#endif
