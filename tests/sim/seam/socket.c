#include "proto/socket.h"
#include "tests/sim/points.h"
#include "tests/sim/seam/seam_calls.h"
#include "tests/sim/world.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Unix sockets between the processes of one host: keeper and agent. Whole messages, in order. And TCP between a coordinator and the management address
 * of a keeper, over a network that faults of the RDMA network leave alone: what is lost on it is lost, for nobody waits long enough for more. */

struct mst_sock {
    struct mst_sock *next;
    struct sim_proc *proc;
    uint64_t life;
    struct mst_sock *peer;
    const struct mst_sock_events *events; /* NULL: nobody listens */
    void *arg;
    bool tcp, closed;
    uint64_t arrival_ns;
};

struct mst_sockserv {
    struct sim_proc *proc;
    uint64_t life;
    int (*on_accept)(struct mst_sock *sock, pid_t peer_pid, uid_t peer_uid, void *arg, const struct mst_sock_events **ret_events,
                     void **ret_arg);
    int (*on_accept_tcp)(struct mst_sock *sock, const char *peer_address, void *arg, const struct mst_sock_events **ret_events,
                         void **ret_arg);
    void *arg;
};

static struct mst_sock *socks;

void sim_socket_reset(void)
{
    socks = NULL;
}

static bool ours(const struct mst_sock *sock)
{
    return sock->proc->alive && sock->proc->life == sock->life;
}

int mst_sockserv_open(uv_loop_t *loop, const char *path, mode_t mode,
                      int (*on_accept)(struct mst_sock *sock, pid_t peer_pid, uid_t peer_uid, void *arg,
                                       const struct mst_sock_events **ret_events, void **ret_arg),
                      void *arg, struct mst_sockserv **ret_serv, struct mst_why *why)
{
    struct mst_sockserv *serv = sim_keep(sizeof(*serv));

    (void)loop, (void)path, (void)mode, (void)why;
    serv->proc = K.current;
    serv->life = K.current->life;
    serv->on_accept = on_accept;
    serv->arg = arg;
    sim_here()->sockserv = serv;
    *ret_serv = serv;
    return 0;
}

void mst_sockserv_close(struct mst_sockserv *serv)
{
    if (serv->on_accept_tcp)
        sim_here()->manageserv = NULL;
    else
        sim_here()->sockserv = NULL;
}

static struct mst_sock *sock_new(struct sim_proc *proc)
{
    struct mst_sock *sock = sim_keep(sizeof(*sock));

    sock->next = socks;
    socks = sock;
    sock->proc = proc;
    sock->life = proc->life;
    return sock;
}

static void closed_event(void *arg)
{
    struct mst_sock *sock = arg;
    struct mst_why why = {0};

    if (sock->events)
        sock->events->on_closed(sock, 0, &why, sock->arg);
}

static void sock_end(struct mst_sock *sock, uint64_t after_ns)
{
    if (sock->closed)
        return;
    sock->closed = true;
    if (ours(sock))
        sim_at(sock->proc, after_ns, closed_event, sock);
}

static bool manage_ok(const struct sim_host *host)
{
    return host->powered && W->net.manage_cut[host->index] == 0;
}

/* Whether what one end says, also that it is closed, gets to the other. */
static bool gets_there(const struct mst_sock *sock)
{
    return sock->peer && (!sock->tcp || (manage_ok(&W->hosts[sock->proc->host]) && manage_ok(&W->hosts[sock->peer->proc->host])));
}

void mst_sock_close(struct mst_sock *sock)
{
    if (sim_muted())
        return;
    sock_end(sock, 20 * SIM_US);
    if (gets_there(sock))
        sock_end(sock->peer, 100 * SIM_US);
}

void mst_sock_set(struct mst_sock *sock, const struct mst_sock_events *events, void *arg)
{
    sock->events = events;
    sock->arg = arg;
}

static void accept_event(void *arg)
{
    struct mst_sock *sock = arg; /* the server's end */
    struct mst_sockserv *serv = W->hosts[sock->proc->host].sockserv;
    struct sim_task *task = NULL;

    if (sock->closed || !serv)
        return;
    for (struct sim_task *one = W->hosts[sock->proc->host].tasks; one; one = one->next) {
        if (one->is_agent && one->alive)
            task = one;
    }
    if (!task || !ours(sock->peer) || serv->on_accept(sock, task->pid, geteuid(), serv->arg, &sock->events, &sock->arg) < 0) {
        sock_end(sock->peer, 100 * SIM_US);
        sock->events = NULL;
        sock->closed = true;
    }
}

int mst_sock_connect(uv_loop_t *loop, const char *path, const struct mst_sock_events *events, void *arg,
                     struct mst_sock **ret_sock, struct mst_why *why)
{
    struct mst_sockserv *serv = sim_here()->sockserv;
    struct mst_sock *here, *there;

    (void)loop, (void)path;
    if (!serv || !serv->proc->alive || serv->proc->life != serv->life || sim_muted())
        return mst_why_set(why, -ECONNREFUSED, "nobody listens");
    here = sock_new(K.current);
    there = sock_new(serv->proc);
    here->peer = there;
    there->peer = here;
    here->events = events;
    here->arg = arg;
    sim_at(serv->proc, sim_between(20, 200) * SIM_US, accept_event, there);
    here->arrival_ns = there->arrival_ns = K.now_ns + 200 * SIM_US;
    *ret_sock = here;
    return 0;
}

/* --- TCP --- */

int mst_sockserv_open_tcp(uv_loop_t *loop, const char *address, uint16_t port,
                          int (*on_accept)(struct mst_sock *sock, const char *peer_address, void *arg,
                                           const struct mst_sock_events **ret_events, void **ret_arg),
                          void *arg, struct mst_sockserv **ret_serv, struct mst_why *why)
{
    struct mst_sockserv *serv = sim_keep(sizeof(*serv));

    (void)loop, (void)address, (void)port, (void)why;
    serv->proc = K.current;
    serv->life = K.current->life;
    serv->on_accept_tcp = on_accept;
    serv->arg = arg;
    sim_here()->manageserv = serv;
    *ret_serv = serv;
    return 0;
}

static void accept_tcp_event(void *arg)
{
    struct mst_sock *sock = arg; /* the server's end */
    struct mst_sockserv *serv = W->hosts[sock->proc->host].manageserv;

    if (sock->closed || !serv || !ours(sock->peer))
        return;
    if (serv->on_accept_tcp(sock, W->hosts[sock->peer->proc->host].management, serv->arg, &sock->events, &sock->arg) < 0)
        mst_sock_close(sock);
}

static void refused_event(void *arg)
{
    struct mst_sock *sock = arg;
    struct mst_why why = {0};

    if (sock->closed)
        return;
    sock->closed = true;
    mst_why_set(&why, 0, "cannot connect: nobody listens there");
    if (sock->events)
        sock->events->on_closed(sock, -ECONNREFUSED, &why, sock->arg);
}

int mst_sock_connect_tcp(uv_loop_t *loop, const char *address, uint16_t port, const struct mst_sock_events *events, void *arg,
                         struct mst_sock **ret_sock, struct mst_why *why)
{
    struct mst_sockserv *serv = NULL;
    const struct sim_host *to = NULL;
    struct mst_sock *here, *there;

    (void)loop, (void)port;
    if (sim_muted())
        return mst_why_set(why, -ECANCELED, "killed");
    for (unsigned i = 0; i < W->hosts_count && !to; i++)
        to = strcmp(W->hosts[i].management, address) == 0 ? &W->hosts[i] : NULL;
    here = sock_new(K.current);
    here->tcp = true;
    here->events = events;
    here->arg = arg;
    *ret_sock = here;
    if (!to || !manage_ok(to) || !manage_ok(sim_here()))
        return 0; /* no answer at all */
    serv = to->manageserv;
    if (!serv || !serv->proc->alive || serv->proc->life != serv->life) {
        sim_at(K.current, sim_between(50, 400) * SIM_US, refused_event, here);
        return 0;
    }
    there = sock_new(serv->proc);
    there->tcp = true;
    here->peer = there;
    there->peer = here;
    sim_at(serv->proc, sim_between(50, 400) * SIM_US, accept_tcp_event, there);
    here->arrival_ns = there->arrival_ns = K.now_ns + 400 * SIM_US;
    return 0;
}

struct frame {
    struct mst_sock *to;
    size_t len;
    uint8_t data[];
};

static void frame_comes(void *arg)
{
    struct frame *frame = arg;
    struct mst_why why = {0};
    mst_envelope *env;

    if (frame->to->closed || !frame->to->events || (frame->to->tcp && !gets_there(frame->to)))
        return;
    sim_hash(frame->data, frame->len);
    if (mst_frame_unpack(frame->data, frame->len, &env, &why) < 0) {
        mst_sock_close(frame->to);
        return;
    }
    frame->to->events->on_message(frame->to, env, frame->to->arg);
    mst_envelope_free(env);
}

int mst_sock_send(struct mst_sock *sock, const mst_envelope *env)
{
    static uint8_t buffer[MST_MESSAGE_BYTES_MAX];
    struct frame *frame;
    uint64_t at = K.now_ns + sim_between(10, 200) * SIM_US;
    int n;

    if (sim_muted() || sock->closed)
        return -ENOTCONN;
    if (sock->tcp && !gets_there(sock))
        return 0;
    if (!sock->peer || sock->peer->closed || (!sock->tcp && sim_point("agent.told")))
        return -ENOTCONN;
    n = mst_frame_pack(env, buffer, sizeof(buffer));
    if (n < 0)
        return n;
    frame = sim_keep(sizeof(*frame) + (size_t)n);
    frame->to = sock->peer;
    frame->len = (size_t)n;
    memcpy(frame->data, buffer, (size_t)n);
    if (at <= sock->arrival_ns)
        at = sock->arrival_ns + 1;
    sock->arrival_ns = at;
    if (ours(sock->peer))
        sim_at(sock->peer->proc, at - K.now_ns, frame_comes, frame);
    return 0;
}

void sim_socket_proc_gone(const struct sim_proc *proc)
{
    for (struct mst_sock *sock = socks; sock; sock = sock->next) {
        if (sock->proc != proc || sock->closed)
            continue;
        sock->closed = true;
        if (gets_there(sock))
            sock_end(sock->peer, 200 * SIM_US);
    }
}
