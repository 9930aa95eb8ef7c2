/* Connection manager: listening, connecting, accepting, refusing, and the news about connections. Every event is copied and acknowledged
 * before it is acted upon, because rdma_destroy_id waits for events that are not. */

#include "base/clock.h"
#include "fabric/internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Reasons of a REJ that the connection manager itself gives (InfiniBand architecture, 12.6.7.2). */
#define REJECT_NO_LISTENER 8 /* invalid service ID */
#define REJECT_BY_CONSUMER 28

struct news { /* an event, copied */
    enum rdma_cm_event_type type;
    int status;
    struct rdma_cm_id *id;
    uint8_t reads_in;             /* request: READs that the peer will have in flight */
    uint8_t retries, rnr_retries; /* request: what our QP is to use */
    size_t data_bytes;
    uint8_t data[256];
};

static int set_ack_timeout(struct rdma_cm_id *id)
{
    uint8_t timeout = MST_QP_TIMEOUT;

    return rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &timeout, sizeof(timeout)) ? -errno : 0;
}

/* --- accepting --- */

static void refuse(struct rdma_cm_id *id, int err, const struct mst_why *why)
{
    uint8_t data[MST_WIRE_REJECT_BYTES];
    size_t n = mst_wire_reject_put(err, why->text[0] ? why->text : strerror(err < 0 ? -err : err), data);

    rdma_reject(id, data, (uint8_t)n);
}

/* Sends the acceptance. The peer's access is narrowed before the peer can know a key. */
static int accept_request(struct mst_link *link, const struct news *news, struct mst_why *why)
{
    struct mst_fabric *fabric = link->fabric;
    struct mst_wire_hello hello = {.version = MST_WIRE_VERSION, .role = (uint8_t)link->role, .recvs = (uint8_t)link->row->recvs};
    uint8_t data[MST_WIRE_REQ_BYTES];
    struct rdma_conn_param param = {
        .private_data = data,
        .private_data_len = (uint8_t)mst_wire_hello_put(&hello, NULL, data),
        .flow_control = 1,
        .rnr_retry_count = MST_QP_RNR_RETRIES,
    };
    int r = set_ack_timeout(link->id);

    if (r < 0)
        return mst_why_set(why, r, "RDMA_OPTION_ID_ACK_TIMEOUT: %s", strerror(-r));
    if (link->row->access & IBV_ACCESS_REMOTE_READ)
        param.responder_resources = news->reads_in < fabric->reads_in_max ? news->reads_in : fabric->reads_in_max;
    if (rdma_accept(link->id, &param))
        return mst_why_set(why, -errno, "rdma_accept: %s", strerror(errno));
    r = mst_link_narrow(link);
    if (r < 0)
        return mst_why_set(why, r, "access of the peer cannot be narrowed: %s", strerror(-r));
    return 0;
}

static int check_request(struct mst_fabric *fabric, const struct news *news, struct mst_wire_hello *ret_hello,
                         struct mst_why *why)
{
    if (fabric->closing || fabric->gone)
        return mst_why_set(why, -ESHUTDOWN, "this side is closing");
    if (fabric->accepting >= MST_ACCEPTING_MAX)
        return mst_why_set(why, -EBUSY, "%u links are being accepted already: try again", fabric->accepting);
    if (news->retries > MST_QP_RETRIES || news->rnr_retries > MST_QP_RNR_RETRIES) /* 7 is for ever: our SENDs would never fail */
        return mst_why_set(why, -EPROTO, "%u retries and %u RNR retries are asked for, at most %u and %u are granted",
                           news->retries, news->rnr_retries, MST_QP_RETRIES, MST_QP_RNR_RETRIES);
    return mst_wire_hello_get(news->data, news->data_bytes, ret_hello, why);
}

/* Asks the owner only when everything that can fail for want of resources is made. */
static int ask_owner(struct mst_link *link, const struct news *news, const struct mst_wire_hello *hello, struct mst_why *why)
{
    struct mst_fabric *fabric = link->fabric;
    struct mst_link_request request = {
        .role = link->role, .data = news->data + MST_WIRE_HELLO_BYTES, .data_bytes = hello->data_bytes};
    const struct mst_link_events *events = NULL;
    void *arg = NULL;
    int r;

    memcpy(request.address, link->address, sizeof(request.address));
    r = fabric->on_accept(link, &request, fabric->accept_arg, &events, &arg, why);
    if (r < 0)
        return r;
    if (link->state != LINK_ACCEPTING || !events)
        return mst_why_set(why, -ECANCELED, "closed while being accepted");
    link->events = *events;
    link->arg = arg;
    return 0;
}

static void on_request(struct mst_fabric *fabric, const struct news *news)
{
    struct mst_wire_hello hello;
    struct mst_why why = {""};
    struct mst_link *link;
    int r;

    r = check_request(fabric, news, &hello, &why);
    if (r >= 0)
        r = mst_link_new(fabric, hello.role, true, news->id, &link);
    if (r < 0) {
        refuse(news->id, r, &why);
        rdma_destroy_id(news->id);
        return;
    }
    mst_address_text(rdma_get_peer_addr(news->id), link->address, sizeof(link->address));
    mst_credits_init(&link->credits, link->row->recvs, hello.recvs);
    r = mst_link_make_qp(link, &why);
    if (!r)
        r = ask_owner(link, news, &hello, &why);
    if (r < 0) {
        refuse(news->id, r, &why);
        mst_link_fail(link, r, &why); /* its events are empty: it goes without a word */
        return;
    }
    r = accept_request(link, news, &why);
    if (r < 0) {
        mst_link_fail(link, r, &why);
        return;
    }
    link->connect_deadline_ns = mst_now_ns() + MST_ACCEPT_MS * MST_NS_PER_MS;
    mst_link_arm(link, link->connect_deadline_ns);
}

int mst_fabric_listen(struct mst_fabric *fabric, uint16_t port,
                      int (*on_accept)(struct mst_link *link, const struct mst_link_request *request, void *arg,
                                       const struct mst_link_events **ret_events, void **ret_arg, struct mst_why *why),
                      void *arg, struct mst_why *why)
{
    struct sockaddr_storage address = fabric->address;
    struct rdma_cm_id *id;
    int r;

    if (fabric->listener)
        return mst_why_set(why, -EALREADY, "already listening on %s", fabric->address_text);
    if (fabric->gone || fabric->closing)
        return mst_why_set(why, -ENODEV, "the RDMA device of %s is gone", fabric->address_text);
    if (address.ss_family == AF_INET)
        ((struct sockaddr_in *)&address)->sin_port = htons(port);
    else
        ((struct sockaddr_in6 *)&address)->sin6_port = htons(port);
    if (rdma_create_id(fabric->channel, &id, NULL, RDMA_PS_TCP))
        return mst_why_set(why, -errno, "rdma_create_id: %s", strerror(errno));
    if (rdma_bind_addr(id, (struct sockaddr *)&address) || rdma_listen(id, 64)) {
        r = -errno;
        rdma_destroy_id(id);
        return mst_why_set(why, r, "cannot listen on %s port %u: %s", fabric->address_text, port, strerror(-r));
    }
    fabric->listener = id;
    fabric->on_accept = on_accept;
    fabric->accept_arg = arg;
    return 0;
}

/* --- connecting --- */

int mst_fabric_connect(struct mst_fabric *fabric, const char *address, uint16_t port, enum mst_role role, const void *data,
                       size_t data_bytes, uint32_t deadline_ms, const struct mst_link_events *events, void *arg,
                       struct mst_link **ret_link, struct mst_why *why)
{
    struct sockaddr_storage from = fabric->address, to;
    struct mst_wire_hello hello;
    struct rdma_cm_id *id;
    struct mst_link *link;
    int r;

    if (!mst_role_row(role) || data_bytes > MST_CONNECT_DATA_MAX || deadline_ms < 10 || deadline_ms > 60000)
        return mst_why_set(why, -EINVAL, "role %d, %zu bytes of data, deadline %u ms: out of range", (int)role, data_bytes,
                           deadline_ms);
    if (mst_address_parse(address, port, &to) < 0)
        return mst_why_set(why, -EINVAL, "\"%s\" is not a numeric IPv4 or IPv6 address", address);
    if (to.ss_family != from.ss_family)
        return mst_why_set(why, -EINVAL, "%s and %s are not of one family", address, fabric->address_text);
    if (fabric->gone || fabric->closing)
        return mst_why_set(why, -ENODEV, "the RDMA device of %s is gone", fabric->address_text);
    if (rdma_create_id(fabric->channel, &id, NULL, RDMA_PS_TCP))
        return mst_why_set(why, -errno, "rdma_create_id: %s", strerror(errno));
    r = mst_link_new(fabric, role, false, id, &link);
    if (r < 0) {
        rdma_destroy_id(id);
        return mst_why_set(why, r, "no memory");
    }
    snprintf(link->address, sizeof(link->address), "%s", address);
    link->connect_deadline_ns = mst_now_ns() + deadline_ms * MST_NS_PER_MS;
    hello = (struct mst_wire_hello){.version = MST_WIRE_VERSION,
                                    .role = (uint8_t)role,
                                    .recvs = (uint8_t)link->row->recvs,
                                    .data_bytes = (uint8_t)data_bytes};
    link->hello_bytes = mst_wire_hello_put(&hello, data, link->hello);
    r = set_ack_timeout(id);
    if (!r && rdma_resolve_addr(id, (struct sockaddr *)&from, (struct sockaddr *)&to, (int)deadline_ms + MST_RESOLVE_SLACK_MS))
        r = -errno;
    if (r < 0) {
        mst_link_fail(link, r, NULL); /* its events are empty: it goes without a word */
        return mst_why_set(why, r == -ENETUNREACH ? -EHOSTUNREACH : r, "no way from %s to %s: %s", fabric->address_text, address,
                           strerror(-r));
    }
    link->events = *events;
    link->arg = arg;
    mst_link_arm(link, link->connect_deadline_ns);
    *ret_link = link;
    return 0;
}

static void on_address(struct mst_link *link)
{
    if (rdma_resolve_route(link->id, MST_RESOLVE_SLACK_MS))
        mst_link_failf(link, -EHOSTUNREACH, "no route to %s: %s", link->address, strerror(errno));
}

static void on_route(struct mst_link *link)
{
    struct rdma_conn_param param = {
        .private_data = link->hello,
        .private_data_len = (uint8_t)link->hello_bytes,
        .initiator_depth = link->row->access & IBV_ACCESS_REMOTE_READ ? link->fabric->reads_out_max : 0,
        .flow_control = 1,
        .retry_count = MST_QP_RETRIES,
        .rnr_retry_count = MST_QP_RNR_RETRIES,
    };
    struct mst_why why = {""};
    int r = mst_link_make_qp(link, &why);

    if (r < 0) {
        mst_link_fail(link, r, &why);
        return;
    }
    mst_link_move(link, LINK_CONNECTING);
    if (rdma_connect(link->id, &param))
        mst_link_failf(link, -EHOSTUNREACH, "connecting to %s failed: %s", link->address, strerror(errno));
}

/* The other side accepted; librdmacm has brought the QP to RTS. */
static void on_accepted(struct mst_link *link, const struct news *news)
{
    struct mst_wire_hello hello;
    struct mst_why why = {""};
    int r = mst_wire_hello_get(news->data, news->data_bytes, &hello, &why);

    if (!r && hello.role != link->role)
        r = mst_why_set(&why, -EPROTO, "accepted as another role (%u)", hello.role);
    if (!r && (r = mst_link_narrow(link)) < 0)
        mst_why_set(&why, r, "access of the peer cannot be narrowed: %s", strerror(-r));
    if (r < 0) {
        mst_why_prefix(&why, r, "%s", link->address);
        mst_link_fail(link, r, &why);
        return;
    }
    mst_credits_init(&link->credits, link->row->recvs, hello.recvs);
    mst_link_established(link);
}

static void on_rejected(struct mst_link *link, const struct news *news)
{
    struct mst_why why = {""};
    int err;

    if (news->status == REJECT_NO_LISTENER)
        mst_link_failf(link, -ECONNREFUSED, "nobody listens at %s", link->address);
    else if (news->status == REJECT_BY_CONSUMER && !mst_wire_reject_get(news->data, news->data_bytes, &err, &why))
        mst_link_failf(link, -EACCES, "%s refused: %s", link->address, why.text);
    else
        mst_link_failf(link, -ECONNREFUSED, "%s rejected the connection (reason %d)", link->address, news->status);
}

/* --- events --- */

static void on_link_news(struct mst_link *link, const struct news *news)
{
    bool opening = link->state < LINK_OPEN;
    int error = news->status < 0 ? -news->status : EHOSTUNREACH;

    switch (news->type) {
    case RDMA_CM_EVENT_ADDR_RESOLVED:
        if (link->state == LINK_RESOLVING)
            on_address(link);
        break;
    case RDMA_CM_EVENT_ROUTE_RESOLVED:
        if (link->state == LINK_RESOLVING)
            on_route(link);
        break;
    case RDMA_CM_EVENT_ESTABLISHED:
        if (link->state == LINK_CONNECTING)
            on_accepted(link, news);
        else
            mst_link_established(link);
        break;
    case RDMA_CM_EVENT_REJECTED:
        on_rejected(link, news);
        break;
    case RDMA_CM_EVENT_ADDR_ERROR:
    case RDMA_CM_EVENT_ROUTE_ERROR:
    case RDMA_CM_EVENT_UNREACHABLE:
    case RDMA_CM_EVENT_CONNECT_ERROR:
        if (opening)
            mst_link_failf(link, -EHOSTUNREACH, "%s cannot be reached: %s (%s)", link->address, strerror(error),
                           rdma_event_str(news->type));
        break;
    case RDMA_CM_EVENT_DISCONNECTED:
        if (link->qp)
            mst_link_poll(link); /* what the peer sent before it went */
        mst_link_failf(link, -ECONNRESET, "%s disconnected, or its process died", link->address);
        break;
    default: /* ADDR_CHANGE (bonding), TIMEWAIT_EXIT: nothing to do */
        break;
    }
}

static void handle(struct mst_fabric *fabric, const struct news *news)
{
    if (news->type == RDMA_CM_EVENT_DEVICE_REMOVAL)
        mst_fabric_gone(fabric, "it was removed");
    else if (news->type == RDMA_CM_EVENT_CONNECT_REQUEST)
        on_request(fabric, news);
    else if (news->id->context) /* anchor and listener have none */
        on_link_news(news->id->context, news);
}

void mst_cm_ready(struct mst_fabric *fabric)
{
    struct rdma_cm_event *event;

    while (!rdma_get_cm_event(fabric->channel, &event)) {
        struct news news = {
            .type = event->event,
            .status = event->status,
            .id = event->id,
            .reads_in = event->param.conn.responder_resources,
            .retries = event->param.conn.retry_count,
            .rnr_retries = event->param.conn.rnr_retry_count,
        };

        news.data_bytes = event->param.conn.private_data_len;
        if (event->param.conn.private_data)
            memcpy(news.data, event->param.conn.private_data, news.data_bytes);
        else
            news.data_bytes = 0;
        rdma_ack_cm_event(event);
        handle(fabric, &news);
    }
}
