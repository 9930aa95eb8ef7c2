/* Messages: a fixed set of registered buffers, credits (credits.h), and a queue for what must wait. */

#include "base/fault.h"
#include "fabric/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

bool mst_messages_idle(const struct mst_link *link)
{
    return STAILQ_EMPTY(&link->messages) && link->sends_posted == 0;
}

int mst_recv_post(struct mst_link *link, struct mst_slot *slot)
{
    struct ibv_sge sge = {.addr = (uintptr_t)slot->data, .length = MST_MESSAGE_SLOT, .lkey = link->pool_mr->lkey};
    struct ibv_recv_wr wr = {.wr_id = (uintptr_t)&slot->wr, .sg_list = &sge, .num_sge = 1}, *bad;
    int r = -ibv_post_recv(link->qp, &wr, &bad);

    if (!r)
        link->recvs_posted++;
    return r;
}

/* Posts slot with len bytes of payload already in place behind the header. */
static int post_send(struct mst_link *link, struct mst_slot *slot, enum mst_wire_kind kind, size_t len)
{
    struct mst_wire_send send = {.kind = kind, .bytes = (uint32_t)len, .credits = mst_credits_take(&link->credits)};
    struct ibv_sge sge = {
        .addr = (uintptr_t)slot->data, .length = (uint32_t)(MST_WIRE_SEND_BYTES + len), .lkey = link->pool_mr->lkey};
    struct ibv_send_wr wr = {
        .wr_id = (uintptr_t)&slot->wr, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED};
    struct ibv_send_wr *bad;
    int r;

    mst_wire_send_put(&send, slot->data);
    r = -ibv_post_send(link->qp, &wr, &bad);
    if (r < 0) {
        SLIST_INSERT_HEAD(&link->free_sends, slot, entry);
        mst_link_failf(link, -EIO, "posting a message to %s failed: %s", link->address, strerror(-r));
        return r;
    }
    link->sends_posted++;
    return 0;
}

static struct mst_slot *take_slot(struct mst_link *link)
{
    struct mst_slot *slot = SLIST_FIRST(&link->free_sends);

    if (slot)
        SLIST_REMOVE_HEAD(&link->free_sends, entry);
    return slot;
}

/* The last free buffer is kept for credits, as the last credit is: otherwise messages that wait for credits could hold all buffers. */
static bool may_post_message(const struct mst_link *link)
{
    return mst_credits_may_send(&link->credits) && link->sends_posted < link->row->sends;
}

static void post_message(struct mst_link *link, const void *data, size_t len)
{
    struct mst_slot *slot = take_slot(link);

    memcpy(slot->data + MST_WIRE_SEND_BYTES, data, len);
    post_send(link, slot, MST_WIRE_MESSAGE, len);
}

/* Posts what may go now. */
static void pump(struct mst_link *link)
{
    struct mst_message *message;
    struct mst_slot *slot;

    while (mst_link_live(link) && (message = STAILQ_FIRST(&link->messages)) && may_post_message(link)) {
        STAILQ_REMOVE_HEAD(&link->messages, entry);
        link->messages_waiting--;
        post_message(link, message->data, message->len);
        free(message);
    }
    if (mst_link_live(link) && mst_credits_must_tell(&link->credits) && (slot = take_slot(link)))
        post_send(link, slot, MST_WIRE_CREDIT, 0);
}

int mst_link_send(struct mst_link *link, const void *data, size_t len)
{
    struct mst_message *message;

    if (len < 1 || len > MST_MESSAGE_BYTES_MAX)
        return -EMSGSIZE;
    if (link->state != LINK_OPEN)
        return -ENOTCONN;
    if (STAILQ_EMPTY(&link->messages) && may_post_message(link)) {
        post_message(link, data, len);
        return 0; /* should posting have failed, the link is on its way down and says so */
    }
    if (link->messages_waiting >= MST_MESSAGES_MAX)
        return -ENOBUFS;
    message = malloc(sizeof(*message) + len);
    if (!message)
        return -ENOMEM;
    message->len = len;
    memcpy(message->data, data, len);
    STAILQ_INSERT_TAIL(&link->messages, message, entry);
    link->messages_waiting++;
    return 0;
}

void mst_send_done(struct mst_link *link, struct mst_slot *slot, const struct ibv_wc *wc)
{
    link->sends_posted--;
    SLIST_INSERT_HEAD(&link->free_sends, slot, entry);
    if (wc->status != IBV_WC_SUCCESS) {
        mst_link_failf(link, -EIO, "message to %s was not delivered: %s", link->address, ibv_wc_status_str(wc->status));
        return;
    }
    pump(link);
    if (link->state == LINK_LINGER && mst_messages_idle(link))
        mst_link_fail(link, 0, NULL);
}

/* A RECV failed: the QP is dead. When it was flushed, the cause lies elsewhere: our own failed request, which the send CQ knows, or
 * the peer's request that our NIC refused. */
static void recv_failed(struct mst_link *link, const struct ibv_wc *wc)
{
    struct mst_why why = {""};
    int r;

    if (!mst_link_live(link))
        return;
    if (link->watch.watcher) {
        r = mst_watch_poll(link, &why);
        if (r < 0)
            mst_link_fail(link, r, &why);
    }
    mst_link_failf(link, -EIO,
                   "queue pair to %s broke down without a failed request of ours (%s): most likely the peer tried what its role "
                   "or key does not allow",
                   link->address, ibv_wc_status_str(wc->status));
}

void mst_recv_done(struct mst_link *link, struct mst_slot *slot, const struct ibv_wc *wc)
{
    struct mst_wire_send send;
    struct mst_why why;
    int r;

    link->recvs_posted--;
    if (wc->status != IBV_WC_SUCCESS) {
        recv_failed(link, wc);
        return;
    }
    if (link->state == LINK_ACCEPTING) { /* the message may overtake the last step of the handshake */
        rdma_notify(link->id, IBV_EVENT_COMM_EST);
        mst_link_established(link);
    }
    if (!mst_link_live(link))
        return;
    r = mst_wire_send_get(slot->data, wc->byte_len, &send, &why);
    if (!r && (r = mst_credits_given(&link->credits, send.credits)) < 0)
        mst_why_set(&why, r, "%s gave back %u message credits, more than it has", link->address, send.credits);
    if (r < 0) {
        mst_link_fail(link, r, &why);
        return;
    }
    if (send.kind == MST_WIRE_MESSAGE && link->state == LINK_OPEN && link->events.on_message)
        link->events.on_message(link, slot->data + MST_WIRE_SEND_BYTES, send.bytes, link->arg);
    if (!mst_link_live(link))
        return;
    r = mst_recv_post(link, slot);
    if (r < 0) {
        mst_link_failf(link, -EIO, "posting a receive buffer for %s failed: %s", link->address, strerror(-r));
        return;
    }
    mst_credits_reposted(&link->credits);
    pump(link);
}

int mst_messages_new(struct mst_link *link, struct mst_why *why)
{
    unsigned recvs = MST_RECV_SLOTS(link->row), count = recvs + MST_SEND_SLOTS(link->row);
    int r = 0;

    link->slots = calloc(count, sizeof(*link->slots));
    if (!link->slots)
        return mst_why_set(why, -ENOMEM, "no memory");
    link->pool_bytes = (size_t)count * MST_MESSAGE_SLOT;
    link->pool = mmap(NULL, link->pool_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (link->pool == MAP_FAILED) {
        link->pool = NULL;
        return mst_why_set(why, -ENOMEM, "no memory for message buffers");
    }
    madvise(link->pool, link->pool_bytes, MADV_DONTFORK); /* fork(2) would copy each pinned page at once */
    MST_FAULT("fabric.pool", return mst_why_locked(why, -ENOMEM, "message buffers", link->pool_bytes));
    link->pool_mr = ibv_reg_mr(link->pd, link->pool, link->pool_bytes, IBV_ACCESS_LOCAL_WRITE);
    if (!link->pool_mr)
        return mst_why_locked(why, -errno, "message buffers", link->pool_bytes);
    for (unsigned i = 0; i < count; i++) {
        struct mst_slot *slot = &link->slots[i];

        slot->data = link->pool + (size_t)i * MST_MESSAGE_SLOT;
        slot->wr.kind = i < recvs ? MST_WR_RECV : MST_WR_SEND;
        if (i >= recvs)
            SLIST_INSERT_HEAD(&link->free_sends, slot, entry);
        else if (!r)
            r = mst_recv_post(link, slot);
    }
    return r < 0 ? mst_why_set(why, r, "receive buffers cannot be posted: %s", strerror(-r)) : 0;
}

void mst_messages_free(struct mst_link *link)
{
    struct mst_message *message;

    while ((message = STAILQ_FIRST(&link->messages))) {
        STAILQ_REMOVE_HEAD(&link->messages, entry);
        free(message);
    }
    if (link->pool_mr)
        ibv_dereg_mr(link->pool_mr);
    if (link->pool)
        munmap(link->pool, link->pool_bytes);
    free(link->slots);
    link->pool_mr = NULL;
    link->pool = NULL;
    link->slots = NULL;
}
