#ifndef MST_FABRIC_INTERNAL_H
#define MST_FABRIC_INTERNAL_H

#include "fabric/credits.h"
#include "fabric/fabric.h"
#include "fabric/wire.h"

#include <infiniband/verbs.h>
#include <netinet/in.h>
#include <pthread.h>
#include <rdma/rdma_cma.h>
#include <sys/queue.h>

/* Shared between the files of fabric/; nobody else includes this. All of it belongs to the loop thread, except what watcher.c says. */

/* Timing of a QP, set before connecting. One attempt lasts 4.096 us x 2^16 = 268 ms, 7 attempts 1.9 s: a host that stalls for half a
 * second keeps its QPs. It is the last resort only; each work request has a deadline of ours. */
#define MST_QP_TIMEOUT     16u
#define MST_QP_RETRIES     6u
#define MST_QP_RNR_RETRIES 6u
#define MST_QP_MIN_RNR     12u /* 0.64 ms; rdma_cm leaves 0, which means 655 ms */

#define MST_READS_MAX        16u   /* READs and WRITEs in flight on a link */
#define MST_MESSAGES_MAX     256u  /* messages waiting on a link */
#define MST_ACCEPTING_MAX    32u   /* links being accepted at one time */
#define MST_ACCEPT_MS        6000u /* for the last step of the handshake */
#define MST_RESOLVE_SLACK_MS 2000  /* the kernel's own time-outs end later than ours: one deadline, one error */
#define MST_LINGER_MS        500u  /* mst_link_close waits so long for messages to leave */
#define MST_DRAIN_MS         300u  /* flushes of a dead QP are awaited so long, then the QP is destroyed without them */
#define MST_CQ_BATCH         16
#define MST_CQ_BUDGET        256 /* completions handled before other work of the loop gets its turn */
#define MST_MESSAGE_SLOT     (((MST_MESSAGE_BYTES_MAX + MST_WIRE_SEND_BYTES) + 63u) & ~63u)
#define MST_SEND_SLOTS(row)  ((row)->sends + 1u) /* the one more is for credit messages */
#define MST_RECV_SLOTS(row)  ((row)->recvs + 1u) /* the one more is the canary: always posted, its flush says that the QP died */
#define MST_SQ_DEPTH(row)    (MST_SEND_SLOTS(row) + MST_READS_MAX + 1u) /* and one READ of the watcher */
#define MST_SQ_DEPTH_MAX     (32u + MST_READS_MAX + 1u)

struct mst_role_row { /* link.c holds the table */
    const char *name;
    uint16_t recvs, sends; /* message buffers of each side; recvs are told to the peer */
    unsigned access;       /* what the connecting side may do to memory of the accepting side: enum ibv_access_flags */
};
const struct mst_role_row *mst_role_row(enum mst_role role);

struct mst_fabric {
    uv_loop_t *loop;
    struct sockaddr_storage address;
    char address_text[64];
    struct rdma_event_channel *channel;
    struct rdma_cm_id *anchor; /* bound to address: keeps context, and gets DEVICE_REMOVAL even when nothing listens */
    struct rdma_cm_id *listener;
    struct ibv_context *context; /* librdmacm's, shared by all ids of the device */
    int async_fd;
    uint8_t reads_out_max, reads_in_max; /* of one QP, by the device */
    uv_poll_t cm_poll, async_poll;
    uv_timer_t step;
    unsigned handles;
    TAILQ_HEAD(mst_link_list, mst_link) links;
    struct mst_fabric_counts counts;
    unsigned watchers, accepting;
    bool gone, gone_told, closing;
    struct mst_why gone_why;
    void (*on_gone)(void *arg);
    void *gone_arg;
    void (*on_closed)(void *arg);
    void *closed_arg;
    int (*on_accept)(struct mst_link *link, const struct mst_link_request *request, void *arg,
                     const struct mst_link_events **ret_events, void **ret_arg, struct mst_why *why);
    void *accept_arg;
};

enum mst_link_state {
    LINK_RESOLVING,  /* address, then route */
    LINK_CONNECTING, /* request sent */
    LINK_ACCEPTING,  /* acceptance sent */
    LINK_OPEN,
    LINK_LINGER, /* closed by us: waiting messages still leave */
    LINK_DRAIN,  /* QP is in ERR (or never left INIT): flushes come in */
    LINK_GONE,   /* nothing of RDMA left; libuv closes the handles, then the last callback runs */
};

enum mst_wr_kind { MST_WR_RECV, MST_WR_SEND, MST_WR_IO, MST_WR_WATCH };

/* wr_id of every work request points to one of these. */
struct mst_wr {
    enum mst_wr_kind kind;
};

struct mst_slot { /* a message buffer */
    struct mst_wr wr;
    uint8_t *data; /* MST_MESSAGE_SLOT bytes in the pool */
    SLIST_ENTRY(mst_slot) entry;
};

struct mst_message { /* waits for a credit or a buffer */
    STAILQ_ENTRY(mst_message) entry;
    size_t len;
    uint8_t data[];
};

struct mst_region {
    struct mst_link *link;
    struct ibv_mr *mr;
    uint8_t *addr;
    size_t len;
    unsigned uses; /* work requests that name it */
    LIST_ENTRY(mst_region) entry;
};

struct mst_io_op {
    struct mst_wr wr;
    enum ibv_wr_opcode opcode;
    struct mst_region *local;
    uint64_t local_off, remote_addr;
    uint32_t rkey, len, deadline_ms;
    uint64_t deadline_ns;
    bool expired;
    const uint64_t *progress_ns; /* stream: when its last chunk finished; the deadline runs from there */
    mst_io_fn done;
    void *arg;
    TAILQ_ENTRY(mst_io_op) entry;
};
TAILQ_HEAD(mst_io_list, mst_io_op);

struct mst_forwarded { /* completions that the watcher's thread met and that belong to the loop */
    unsigned count;
    struct ibv_wc wc[MST_SQ_DEPTH_MAX];
};

/* The watcher's side of a WATCH link. While watcher is set, send CQ, forwarded and everything here belong to who holds the watcher's
 * mutex; otherwise to the loop. */
struct mst_watch_side {
    struct mst_watcher *watcher;
    struct mst_wr wr;
    struct mst_region *region; /* made by the first add, lives as long as the link */
    uint8_t *buffer;
    bool in_flight;
    bool stale; /* the READ in flight was for a target removed meanwhile */
    uint64_t posted_ns;
    struct mst_forwarded forwarded;
};

struct mst_link {
    struct mst_fabric *fabric;
    TAILQ_ENTRY(mst_link) entry;
    enum mst_link_state state;
    enum mst_role role;
    const struct mst_role_row *row;
    bool acceptor;
    bool told_open;
    char address[64];
    struct mst_link_events events; /* all NULL as long as nobody knows the link */
    void *arg;
    int end_err;
    struct mst_why end_why;

    struct rdma_cm_id *id;
    struct ibv_pd *pd;
    struct ibv_comp_channel *channel, *send_channel; /* the send pair is its own on the connecting side of a WATCH link */
    struct ibv_cq *cq, *send_cq;
    struct ibv_qp *qp;
    uv_poll_t poll, send_poll;
    bool poll_made, send_poll_made;
    uv_timer_t deadline, step, kick;
    unsigned handles;
    uint64_t connect_deadline_ns;
    uint64_t armed_ns; /* deadline timer runs until then; 0: not running */
    uint8_t hello[MST_WIRE_REQ_BYTES];
    size_t hello_bytes;

    uint8_t *pool;
    size_t pool_bytes;
    struct ibv_mr *pool_mr;
    struct mst_slot *slots; /* RECV slots, then SEND slots */
    SLIST_HEAD(, mst_slot) free_sends;
    unsigned recvs_posted, sends_posted;
    struct mst_credits credits;
    STAILQ_HEAD(, mst_message) messages;
    unsigned messages_waiting;

    struct mst_io_list io_waiting, io_posted;
    unsigned io_in_flight;
    LIST_HEAD(, mst_region) regions;
    unsigned registering; /* worker threads that use the PD */
    struct mst_watch_side watch;
};

/* device.c */
void mst_fabric_gone(struct mst_fabric *fabric, const char *text);
void mst_fabric_link_ended(struct mst_fabric *fabric); /* a link has left fabric->links */
int mst_address_parse(const char *text, uint16_t port, struct sockaddr_storage *ret_address);
void mst_address_text(const struct sockaddr *address, char *buf, size_t size);

/* cm.c */
void mst_cm_ready(struct mst_fabric *fabric); /* handles all waiting events */

/* link.c */
int mst_link_new(struct mst_fabric *fabric, enum mst_role role, bool acceptor, struct rdma_cm_id *id, struct mst_link **ret_link);
int mst_link_make_qp(struct mst_link *link, struct mst_why *why);     /* PD, CQs, QP, message buffers, RECVs posted */
int mst_link_narrow(struct mst_link *link);                           /* access of the peer as the role says */
void mst_link_move(struct mst_link *link, enum mst_link_state state); /* the only writer of state; the table must allow it */
void mst_link_established(struct mst_link *link);
/* Ends the link whatever its state; the first reason stays. Never calls back. */
void mst_link_fail(struct mst_link *link, int err, const struct mst_why *why);
__attribute__((format(printf, 3, 4))) void mst_link_failf(struct mst_link *link, int err, const char *fmt, ...);
void mst_link_poll(struct mst_link *link);                 /* handles what lies in the CQs that belong to the loop */
void mst_link_kick(struct mst_link *link);                 /* polls again from the loop */
void mst_link_watch_sends(struct mst_link *link, bool on); /* whether the loop is woken by a send CQ of its own */
void mst_link_drained(struct mst_link *link);
bool mst_link_live(const struct mst_link *link); /* work may be posted: open or lingering */
void mst_link_arm(struct mst_link *link, uint64_t deadline_ns);

/* message.c */
int mst_messages_new(struct mst_link *link, struct mst_why *why);
void mst_messages_free(struct mst_link *link);
int mst_recv_post(struct mst_link *link, struct mst_slot *slot);
void mst_recv_done(struct mst_link *link, struct mst_slot *slot, const struct ibv_wc *wc);
void mst_send_done(struct mst_link *link, struct mst_slot *slot, const struct ibv_wc *wc);
bool mst_messages_idle(const struct mst_link *link); /* everything given to mst_link_send has reached the peer's NIC */

/* io.c */
void mst_io_done(struct mst_link *link, struct mst_io_op *op, const struct ibv_wc *wc);
void mst_io_cancel_all(struct mst_link *link); /* QP is destroyed: runs what is left */
void mst_io_check_deadlines(struct mst_link *link, uint64_t now_ns, uint64_t *ret_next_ns);
void mst_regions_deregister(struct mst_link *link); /* no peer has access any more; they stay until their owners are told */
void mst_regions_free(struct mst_link *link);
int mst_why_locked(struct mst_why *why, int err, const char *what, size_t bytes);

/* watcher.c */
void mst_watch_detach(struct mst_link *link, int err); /* the link ends: the send CQ is the loop's again */
unsigned mst_watch_take_forwarded(struct mst_link *link,
                                  struct ibv_wc *wc); /* into at least MST_SQ_DEPTH_MAX; returns their number */
/* Polls the send CQ on behalf of the thread; 0, or the error by which the watcher's READ failed. */
int mst_watch_poll(struct mst_link *link, struct mst_why *why);
void mst_watch_done(struct mst_link *link); /* its READ finished after the link was taken from the watcher */
void mst_watch_free(struct mst_link *link);

#endif
