/* Life of a link: states, verbs objects, completions, end.
 *
 *   connect: RESOLVING -> CONNECTING -+
 *   accept:               ACCEPTING --+-> OPEN -> LINGER -> DRAIN -> GONE -> on_closed, freed
 *                any state before OPEN ---------------------> DRAIN -> GONE -> on_open(error), freed
 *
 * Only timers and libuv's close callbacks move a link beyond DRAIN, so nothing is freed under a caller. */

#include "base/clock.h"
#include "base/fault.h"
#include "base/state.h"
#include "fabric/internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct mst_state states[] = {
    [LINK_RESOLVING] = {"resolving", MST_TO(LINK_CONNECTING) | MST_TO(LINK_DRAIN)},
    [LINK_CONNECTING] = {"connecting", MST_TO(LINK_OPEN) | MST_TO(LINK_DRAIN)},
    [LINK_ACCEPTING] = {"accepting", MST_TO(LINK_OPEN) | MST_TO(LINK_DRAIN)},
    [LINK_OPEN] = {"open", MST_TO(LINK_LINGER) | MST_TO(LINK_DRAIN)},
    [LINK_LINGER] = {"lingering", MST_TO(LINK_DRAIN)},
    [LINK_DRAIN] = {"draining", MST_TO(LINK_GONE)},
    [LINK_GONE] = {"gone", 0},
};

/* access is what the side that connects may do to the side that accepts; nobody may do anything to the side that connects. Control
 * links carry most messages; the others a list of keys now and then. Buffers are pinned memory: about 1.7 MiB a control
 * link, 0.5 MiB another. */
static const struct mst_role_row roles[] = {
    [MST_ROLE_CONTROL] = {.name = "control", .recvs = 16, .sends = 8, .access = 0},
    [MST_ROLE_WATCH] = {.name = "watch", .recvs = 4, .sends = 2, .access = IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE},
    [MST_ROLE_PULL] = {.name = "pull", .recvs = 4, .sends = 2, .access = IBV_ACCESS_REMOTE_READ},
    [MST_ROLE_MIRROR] = {.name = "mirror", .recvs = 4, .sends = 2, .access = IBV_ACCESS_REMOTE_WRITE},
};

const struct mst_role_row *mst_role_row(enum mst_role role)
{
    return role >= MST_ROLE_CONTROL && role <= MST_ROLE_MIRROR ? &roles[role] : NULL;
}

enum mst_role mst_link_role(const struct mst_link *link)
{
    return link->role;
}

const char *mst_link_address(const struct mst_link *link)
{
    return link->address;
}

bool mst_link_live(const struct mst_link *link)
{
    return link->state == LINK_OPEN || link->state == LINK_LINGER;
}

void mst_link_move(struct mst_link *link, enum mst_link_state state)
{
    assert(mst_state_may(states, sizeof(states) / sizeof(states[0]), link->state, state));
    link->state = state;
}

/* --- the end --- */

static void on_handle_closed(uv_handle_t *handle)
{
    struct mst_link *link = handle->data;
    struct mst_fabric *fabric = link->fabric;

    if (--link->handles > 0)
        return;
    TAILQ_REMOVE(&fabric->links, link, entry);
    fabric->counts.links--;
    if (!link->told_open && link->events.on_open)
        link->events.on_open(link, link->end_err ? link->end_err : -ECANCELED, &link->end_why, link->arg);
    else if (link->told_open && link->events.on_closed)
        link->events.on_closed(link, link->end_err, &link->end_why, link->arg);
    mst_regions_free(link); /* only now: until it is told, an owner may free one as well */
    free(link);
    mst_fabric_link_ended(fabric);
}

static void close_polls(struct mst_link *link)
{
    if (link->poll_made)
        uv_close((uv_handle_t *)&link->poll, on_handle_closed);
    if (link->send_poll_made)
        uv_close((uv_handle_t *)&link->send_poll, on_handle_closed);
}

static void destroy_cq(struct mst_link *link, struct ibv_cq **cq, struct ibv_comp_channel **channel)
{
    if (*cq) {
        ibv_destroy_cq(*cq);
        link->fabric->counts.cqs--;
    }
    if (*channel)
        ibv_destroy_comp_channel(*channel);
    *cq = NULL;
    *channel = NULL;
}

/* Frees what there is of the verbs objects, in the order that leaves nothing in use. With the QP destroyed no NIC touches memory
 * of this link any more, so only then callbacks run that give memory back to callers. */
static void destroy_verbs(struct mst_link *link)
{
    if (link->qp) {
        rdma_destroy_qp(link->id);
        link->qp = NULL;
        link->fabric->counts.qps--;
        mst_link_poll(link);
        mst_io_cancel_all(link);
    }
    mst_watch_free(link);
    mst_regions_deregister(link);
    mst_messages_free(link);
    if (link->send_cq != link->cq)
        destroy_cq(link, &link->send_cq, &link->send_channel);
    link->send_cq = NULL;
    destroy_cq(link, &link->cq, &link->channel);
    if (link->pd) {
        ibv_dealloc_pd(link->pd);
        link->fabric->counts.pds--;
    }
    link->pd = NULL;
}

static void tear_down(struct mst_link *link)
{
    if (link->acceptor && !link->told_open)
        link->fabric->accepting--;
    mst_link_move(link, LINK_GONE);
    close_polls(link);
    destroy_verbs(link);
    rdma_destroy_id(link->id);
    link->id = NULL;
    uv_close((uv_handle_t *)&link->deadline, on_handle_closed);
    uv_close((uv_handle_t *)&link->step, on_handle_closed);
    uv_close((uv_handle_t *)&link->kick, on_handle_closed);
}

static void on_step(uv_timer_t *timer)
{
    struct mst_link *link = timer->data;

    if (link->state == LINK_LINGER)
        mst_link_fail(link, 0, NULL);
    else if (link->state == LINK_DRAIN && link->registering)
        uv_timer_start(timer, on_step, MST_DRAIN_MS, 0); /* a worker uses the PD; it calls mst_link_drained when it is done */
    else if (link->state == LINK_DRAIN)
        tear_down(link);
}

void mst_link_drained(struct mst_link *link)
{
    if (link->state == LINK_DRAIN && !link->recvs_posted && !link->sends_posted && !link->io_in_flight &&
        !link->watch.in_flight && !link->registering)
        uv_timer_start(&link->step, on_step, 0, 0);
}

void mst_link_fail(struct mst_link *link, int err, const struct mst_why *why)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};
    bool was_live = mst_link_live(link);

    if (link->state == LINK_DRAIN || link->state == LINK_GONE)
        return;
    if (link->state != LINK_LINGER) { /* whoever has closed a link is told 0 */
        link->end_err = err;
        if (why)
            link->end_why = *why;
    }
    mst_watch_detach(link, err);
    mst_link_move(link, LINK_DRAIN);
    uv_timer_stop(&link->deadline);
    if (!was_live) { /* nothing posted but RECVs; destroying the id tells the peer */
        uv_timer_start(&link->step, on_step, 0, 0);
        return;
    }
    ibv_modify_qp(link->qp, &attr, IBV_QP_STATE);
    if (!link->fabric->gone)
        rdma_disconnect(link->id); /* tells the peer at once; fails harmlessly when there is no connection any more */
    uv_timer_start(&link->step, on_step, MST_DRAIN_MS, 0);
    mst_link_drained(link);
}

void mst_link_failf(struct mst_link *link, int err, const char *fmt, ...)
{
    struct mst_why why;
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(why.text, sizeof(why.text), fmt, ap);
    va_end(ap);
    mst_link_fail(link, err, &why);
}

void mst_link_close(struct mst_link *link)
{
    if (link->state == LINK_OPEN && !mst_messages_idle(link)) {
        mst_link_move(link, LINK_LINGER);
        uv_timer_start(&link->step, on_step, MST_LINGER_MS, 0);
    } else if (link->state != LINK_LINGER) {
        mst_link_fail(link, 0, NULL);
    }
}

/* --- deadlines --- */

static void on_deadline(uv_timer_t *timer);

void mst_link_arm(struct mst_link *link, uint64_t deadline_ns)
{
    uint64_t now_ns = mst_now_ns();

    if (link->armed_ns && link->armed_ns <= deadline_ns)
        return;
    link->armed_ns = deadline_ns;
    uv_update_time(link->fabric->loop); /* the loop's clock stands still during callbacks; the timer would be early */
    uv_timer_start(&link->deadline, on_deadline, deadline_ns > now_ns ? (deadline_ns - now_ns) / MST_NS_PER_MS + 1 : 0, 0);
}

/* A process that was stopped for a while finds its timers expired and its answers waiting: the answers come first. */
static void on_deadline(uv_timer_t *timer)
{
    struct mst_link *link = timer->data;
    uint64_t next_ns = 0;

    link->armed_ns = 0;
    if (link->state < LINK_OPEN)
        mst_cm_ready(link->fabric);
    if (link->qp)
        mst_link_poll(link);
    if (link->state < LINK_OPEN) {
        if (mst_now_ns() >= link->connect_deadline_ns)
            mst_link_failf(link, -ETIMEDOUT, "%s did not answer in time (link was %s)", link->address,
                           mst_state_name(states, sizeof(states) / sizeof(states[0]), link->state));
        else
            next_ns = link->connect_deadline_ns;
    } else if (mst_link_live(link)) {
        mst_io_check_deadlines(link, mst_now_ns(), &next_ns);
    }
    if (next_ns)
        mst_link_arm(link, next_ns);
}

/* --- completions --- */

static void handle(struct mst_link *link, const struct ibv_wc *wc)
{
    struct mst_wr *wr = (struct mst_wr *)(uintptr_t)wc->wr_id;

    switch (wr->kind) {
    case MST_WR_RECV:
        mst_recv_done(link, (struct mst_slot *)wr, wc);
        break;
    case MST_WR_SEND:
        mst_send_done(link, (struct mst_slot *)wr, wc);
        break;
    case MST_WR_IO:
        mst_io_done(link, (struct mst_io_op *)wr, wc);
        break;
    case MST_WR_WATCH:
        mst_watch_done(link);
        break;
    }
    mst_link_drained(link);
}

static unsigned poll_cq(struct mst_link *link, struct ibv_cq *cq)
{
    struct ibv_wc wc[MST_CQ_BATCH];
    unsigned total = 0;
    int n;

    while (total < MST_CQ_BUDGET && (n = ibv_poll_cq(cq, MST_CQ_BATCH, wc)) != 0) {
        if (n < 0) {
            mst_link_failf(link, -EIO, "completion queue of the link to %s cannot be read", link->address);
            break;
        }
        for (int i = 0; i < n; i++)
            handle(link, &wc[i]);
        total += (unsigned)n;
    }
    return total;
}

void mst_link_poll(struct mst_link *link)
{
    struct ibv_wc wc[MST_SQ_DEPTH_MAX];
    unsigned n = mst_watch_take_forwarded(link, wc);

    for (unsigned i = 0; i < n; i++)
        handle(link, &wc[i]);
    if (link->send_cq != link->cq && !link->watch.watcher)
        n += poll_cq(link, link->send_cq); /* first: it knows why a QP died, the flushed RECVs do not */
    n += poll_cq(link, link->cq);
    if (n >= MST_CQ_BUDGET)
        mst_link_kick(link);
}

static void on_kick(uv_timer_t *timer)
{
    struct mst_link *link = timer->data;

    if (link->qp)
        mst_link_poll(link);
}

void mst_link_kick(struct mst_link *link)
{
    if (link->state != LINK_GONE)
        uv_timer_start(&link->kick, on_kick, 0, 0);
}

static void on_completions(uv_poll_t *poll, int status, int events)
{
    struct mst_link *link = poll->data;
    bool sends = poll == &link->send_poll;
    struct ibv_comp_channel *channel = sends ? link->send_channel : link->channel;
    struct ibv_cq *cq;
    void *context;

    (void)events;
    errno = status < 0 ? -status : EAGAIN;
    while (status >= 0 && ibv_get_cq_event(channel, &cq, &context) == 0)
        ibv_ack_cq_events(cq, 1);
    if (errno != EAGAIN && errno != EINTR) {
        uv_poll_stop(poll); /* the device was taken away */
        mst_link_failf(link, -ENODEV, "completions of the link to %s can no longer be read: %s", link->address, strerror(errno));
        return;
    }
    ibv_req_notify_cq(sends ? link->send_cq : link->cq, 0); /* before polling: what comes later wakes us again */
    mst_link_poll(link);
}

void mst_link_watch_sends(struct mst_link *link, bool on)
{
    if (on)
        uv_poll_start(&link->send_poll, UV_READABLE, on_completions);
    else
        uv_poll_stop(&link->send_poll);
}

/* --- making --- */

static int make_cq(struct mst_link *link, unsigned depth, uv_poll_t *poll, bool *made, struct ibv_comp_channel **ret_channel,
                   struct ibv_cq **ret_cq)
{
    struct mst_fabric *fabric = link->fabric;
    int r;

    MST_FAULT("fabric.cq", return -ENOMEM);
    *ret_channel = ibv_create_comp_channel(fabric->context);
    if (!*ret_channel)
        return -errno;
    *ret_cq = ibv_create_cq(fabric->context, (int)depth, link, *ret_channel, 0);
    if (!*ret_cq)
        return -errno;
    fabric->counts.cqs++;
    r = -ibv_req_notify_cq(*ret_cq, 0);
    if (r < 0)
        return r;
    r = uv_poll_init(fabric->loop, poll, (*ret_channel)->fd); /* makes it non-blocking */
    if (r < 0)
        return r;
    poll->data = link;
    *made = true;
    link->handles++;
    return uv_poll_start(poll, UV_READABLE, on_completions);
}

static int make_qp(struct mst_link *link)
{
    struct ibv_qp_init_attr init = {
        /* fresh for each: librdmacm writes into it */
        .qp_context = link,
        .send_cq = link->send_cq,
        .recv_cq = link->cq,
        .cap =
            {
                .max_send_wr = MST_SQ_DEPTH(link->row),
                .max_recv_wr = MST_RECV_SLOTS(link->row),
                .max_send_sge = 1,
                .max_recv_sge = 1,
            },
        .qp_type = IBV_QPT_RC,
    };

    MST_FAULT("fabric.qp", return -ENOMEM);
    link->pd = ibv_alloc_pd(link->fabric->context);
    if (!link->pd)
        return -errno;
    link->fabric->counts.pds++;
    if (rdma_create_qp(link->id, link->pd, &init))
        return -errno;
    link->qp = link->id->qp;
    link->fabric->counts.qps++;
    return 0;
}

/* What was made is freed with the link. */
int mst_link_make_qp(struct mst_link *link, struct mst_why *why)
{
    unsigned sends = MST_SQ_DEPTH(link->row), recvs = MST_RECV_SLOTS(link->row);
    bool own_send_cq = link->role == MST_ROLE_WATCH && !link->acceptor;
    int r;

    if (link->id->verbs != link->fabric->context)
        return mst_why_set(why, -EHOSTUNREACH, "the way to %s does not start at the RDMA device of %s", link->address,
                           link->fabric->address_text);
    r = make_cq(link, own_send_cq ? recvs : sends + recvs, &link->poll, &link->poll_made, &link->channel, &link->cq);
    if (r < 0)
        return mst_why_locked(why, r, "a completion queue", 0);
    if (own_send_cq)
        r = make_cq(link, sends, &link->send_poll, &link->send_poll_made, &link->send_channel, &link->send_cq);
    else
        link->send_cq = link->cq;
    if (r < 0)
        return mst_why_locked(why, r, "a completion queue", 0);
    r = make_qp(link);
    if (r < 0)
        return mst_why_locked(why, r, "a queue pair", 0);
    return mst_messages_new(link, why);
}

int mst_link_narrow(struct mst_link *link)
{
    struct ibv_qp_attr attr = {
        .qp_access_flags = link->acceptor ? link->row->access : 0,
        .min_rnr_timer = MST_QP_MIN_RNR,
    };

    return -ibv_modify_qp(link->qp, &attr, IBV_QP_ACCESS_FLAGS | IBV_QP_MIN_RNR_TIMER);
}

int mst_link_new(struct mst_fabric *fabric, enum mst_role role, bool acceptor, struct rdma_cm_id *id, struct mst_link **ret_link)
{
    struct mst_link *link = calloc(1, sizeof(*link));
    uv_timer_t *timers[] = {&link->deadline, &link->step, &link->kick};

    if (!link)
        return -ENOMEM;
    link->fabric = fabric;
    link->state = acceptor ? LINK_ACCEPTING : LINK_RESOLVING;
    link->role = role;
    link->row = mst_role_row(role);
    link->acceptor = acceptor;
    link->id = id;
    id->context = link;
    SLIST_INIT(&link->free_sends);
    STAILQ_INIT(&link->messages);
    TAILQ_INIT(&link->io_waiting);
    TAILQ_INIT(&link->io_posted);
    LIST_INIT(&link->regions);
    link->watch.wr.kind = MST_WR_WATCH;
    for (size_t i = 0; i < sizeof(timers) / sizeof(timers[0]); i++) {
        uv_timer_init(fabric->loop, timers[i]);
        timers[i]->data = link;
        link->handles++;
    }
    TAILQ_INSERT_TAIL(&fabric->links, link, entry);
    fabric->counts.links++;
    if (acceptor)
        fabric->accepting++;
    *ret_link = link;
    return 0;
}

void mst_link_established(struct mst_link *link)
{
    if (link->state != LINK_CONNECTING && link->state != LINK_ACCEPTING)
        return;
    if (link->acceptor)
        link->fabric->accepting--;
    mst_link_move(link, LINK_OPEN);
    uv_timer_stop(&link->deadline);
    link->armed_ns = 0;
    link->told_open = true;
    if (link->events.on_open)
        link->events.on_open(link, 0, &link->end_why, link->arg);
}
