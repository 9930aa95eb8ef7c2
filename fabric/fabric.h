#ifndef MST_FABRIC_FABRIC_H
#define MST_FABRIC_FABRIC_H

#include "base/err.h"
#include "base/limits.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

/* RDMA: the only user of libibverbs and librdmacm. One QP, CQ and PD per link; a link is one peer in one role.
 * Loop thread only, unless a function says otherwise. Callbacks run from the loop, never inside the call that asked for
 * them; every callback named "once" runs exactly once, also when the link dies, the deadline passes or the fabric closes.
 * What goes over the wire: docs/PROTOCOL.md (fabric). One fabric per device in a process. */

struct mst_fabric; /* one RDMA device, found by its address; listens and connects */
struct mst_link;   /* one connection: QP, CQ, PD, flow-controlled messages */
struct mst_region; /* memory registered on one link's PD */

enum mst_role {
    MST_ROLE_CONTROL = 1, /* keeper -> coordinator: messages only, no remote access */
    MST_ROLE_WATCH = 2,   /* coordinator -> keeper: READ of the status area, WRITE of the grant area */
    MST_ROLE_PULL = 3,    /* keeper -> keeper: READ of VM save areas */
    MST_ROLE_MIRROR = 4,  /* source's keeper -> mirror's keeper: WRITE of one log */
};

/* Private data of a connect request: at most 48 bytes of the caller (rdma_cm carries 56; the fabric needs 8). */
#define MST_CONNECT_DATA_MAX 48u

/* --- device --- */

/* Opens the RDMA device that carries address (numeric IPv4 or IPv6).
 * -ENODEV no RDMA device has this address (why: how to make one: `rdma link add ...`), -EACCES /dev/infiniband not permitted,
 * -ENOMEM RLIMIT_MEMLOCK, with why in every case. */
int mst_fabric_open(uv_loop_t *loop, const char *address, struct mst_fabric **ret_fabric, struct mst_why *why);
/* on_gone, once: the device was removed or failed (DEVICE_REMOVAL, DEVICE_FATAL); every link has been told before. Close the
 * fabric and open again (a new instance). Whoever removes the device (`rdma link delete`) waits until the fabric is closed. */
void mst_fabric_on_gone(struct mst_fabric *fabric, void (*on_gone)(void *arg), void *arg);
/* Closes listener and all links (their on_closed run first), then frees; on_closed (may be NULL) once. */
void mst_fabric_close(struct mst_fabric *fabric, void (*on_closed)(void *arg), void *arg);

struct mst_fabric_counts { /* for leak checks and status: things that exist now */
    uint32_t links, regions, qps, cqs, pds;
};
void mst_fabric_count(const struct mst_fabric *fabric, struct mst_fabric_counts *ret_counts);

/* --- links --- */

struct mst_link_events {
    /* once: 0 established; otherwise -ETIMEDOUT (deadline), -ECONNREFUSED (nobody listens), -EACCES (peer refused; why holds its
     * sentence), -EHOSTUNREACH, -ECANCELED (closed by us), -ENOMEM, ... and then the link is gone without on_closed. Accepted links:
     * 0, or an error when the peer went away before the last step of the handshake. */
    void (*on_open)(struct mst_link *link, int err, const struct mst_why *why, void *arg);
    /* One message as the peer sent it, borrowed for the call. */
    void (*on_message)(struct mst_link *link, const void *data, size_t len, void *arg);
    /* once, after on_open(0): 0 mst_link_close was called, -ECONNRESET peer disconnected or its process died, -EIO work request failed
     * (why says which status) or the peer tried what it may not, -ETIMEDOUT a work request passed its deadline, -EPROTO peer broke the
     * protocol, -ENODEV device gone. All done callbacks of this link have run before; its regions have given access to nobody for a
     * while, and are freed, with the link, after this (until then mst_region_free may free one as well). A peer that vanished without a word is
     * noticed only by a READ, WRITE or message to it. */
    void (*on_closed)(struct mst_link *link, int err, const struct mst_why *why, void *arg);
};

struct mst_link_request { /* what on_accept may look at */
    enum mst_role role;
    char address[64]; /* peer, numeric */
    const uint8_t *data;
    size_t data_bytes;
};

/* Listens on the fabric's address. on_accept: 0 to accept (fill *ret_events and *ret_arg), -errno to refuse (why is sent to the
 * peer, cut to 140 bytes). Access that the peer gets on the link's QP follows from the role (table in fabric/link.c).
 * -EADDRINUSE, -EACCES, -EALREADY (one listener per fabric), -ENODEV. */
int mst_fabric_listen(struct mst_fabric *fabric, uint16_t port,
                      int (*on_accept)(struct mst_link *link, const struct mst_link_request *request, void *arg,
                                       const struct mst_link_events **ret_events, void **ret_arg, struct mst_why *why),
                      void *arg, struct mst_why *why);

/* Connects. deadline_ms: from now, 10..60000; the result comes by on_open. 0 and *ret_link, or -EINVAL, -ENOMEM, -EHOSTUNREACH, -ENODEV.
 * A request that is lost is repeated by the kernel after 4 to 6 s only: try again with a short deadline rather than wait. */
int mst_fabric_connect(struct mst_fabric *fabric, const char *address, uint16_t port, enum mst_role role, const void *data,
                       size_t data_bytes, uint32_t deadline_ms, const struct mst_link_events *events, void *arg,
                       struct mst_link **ret_link, struct mst_why *why);
/* Ends the link: messages given to mst_link_send before leave first (at most 500 ms), READs and WRITEs are cancelled, then on_closed(0), within
 * 1 s whatever the peer does. No message is delivered any more. A link still connecting gets on_open(-ECANCELED). Safe to call twice, and
 * inside callbacks. */
void mst_link_close(struct mst_link *link);
enum mst_role mst_link_role(const struct mst_link *link);
const char *mst_link_address(const struct mst_link *link); /* peer */

/* --- messages: SEND/RECV with credits, so that a slow receiver never causes RNR; order is kept --- */

/* Copies and queues data. len 1..MST_MESSAGE_BYTES_MAX. 0, -EMSGSIZE, -ENOTCONN, -ENOMEM, -ENOBUFS (more than 256 messages wait: who answers
 * each message it gets must bound its peer, or be ready for this). */
int mst_link_send(struct mst_link *link, const void *data, size_t len);

/* --- memory --- */

enum mst_access { MST_ACCESS_LOCAL = 0, MST_ACCESS_REMOTE_READ = 1, MST_ACCESS_REMOTE_WRITE = 2 };

/* Registers exactly len bytes at addr on the link's PD. The memory stays mapped and is not truncated until the region is freed
 * or the link is gone. Keep it MAP_SHARED or MADV_DONTFORK: fork(2) copies pinned private pages. -ENOMEM (why names RLIMIT_MEMLOCK when
 * that is it), -EINVAL (also: an access that the role gives nobody), -ENOTCONN. */
int mst_region_new(struct mst_link *link, void *addr, size_t len, enum mst_access access, struct mst_region **ret_region,
                   struct mst_why *why);
/* The same on a worker thread, for memory so large that the loop would stand still (about 80 ms per GB). done, once, from the loop: the region,
 * or NULL and -errno with why (-ECANCELED: the link ended meanwhile; on_closed follows later). The memory stays mapped until done has run.
 * 0 (done follows), or as mst_region_new. */
typedef void (*mst_region_fn)(void *arg, struct mst_region *region, int err, const struct mst_why *why);
int mst_region_new_async(struct mst_link *link, void *addr, size_t len, enum mst_access access, mst_region_fn done, void *arg,
                         struct mst_why *why);
void mst_region_free(
    struct mst_region *region); /* NULL is fine; only when no work request uses it. After it returns the peer has no access. */
void mst_region_key(const struct mst_region *region, uint64_t *ret_addr, uint32_t *ret_rkey);

/* --- one-sided --- */

/* done, once: 0, or -EIO (failed: the link closes), -ETIMEDOUT, -ECANCELED (flushed because the link ended). */
typedef void (*mst_io_fn)(void *arg, int err);

/* Posts one RDMA READ of len bytes at remote_addr into local (at local_off). len 1..MST_READ_BYTES_MAX.
 * deadline_ms: from now; on expiry the QP is moved to ERR and the link closes with -ETIMEDOUT. Work requests beyond the queue depth
 * wait inside (unbounded by the fabric: callers bound their own number).
 * Only the side that connected a WATCH, PULL or MIRROR link can (a MIRROR link grants no READ).
 * 0 (done follows), -ERANGE (outside local, or len), -ENOTCONN, -EOPNOTSUPP (wrong side or role), -EBUSY (watched), -ENOMEM. Nothing is
 * posted on failure. */
int mst_link_read(struct mst_link *link, struct mst_region *local, uint64_t local_off, uint64_t remote_addr, uint32_t rkey,
                  uint32_t len, uint32_t deadline_ms, mst_io_fn done, void *arg);
/* The same for WRITE. Completion says the peer's NIC has it, not that its CPU sees it. */
int mst_link_write(struct mst_link *link, struct mst_region *local, uint64_t local_off, uint64_t remote_addr, uint32_t rkey,
                   uint32_t len, uint32_t deadline_ms, mst_io_fn done, void *arg);

/* Streams total bytes from remote_addr into local from local_off on, with chunks of chunk_bytes (<= MST_READ_BYTES_MAX) and depth of them
 * in flight (more than 16 wait inside). Figures: docs/BENCHMARKS.md.
 * on_chunk (may be NULL) runs for each finished chunk in order; offset counts from the start of the stream. Returning non-zero ends the
 * stream with that error once what is in flight has landed; the link stays. done, once, after the last on_chunk.
 * deadline_ms: the longest time in which no chunk finishes. Errors as mst_link_read. */
int mst_link_read_stream(struct mst_link *link, struct mst_region *local, uint64_t local_off, uint64_t remote_addr, uint32_t rkey,
                         uint64_t total, uint32_t chunk_bytes, uint32_t depth, uint32_t deadline_ms,
                         int (*on_chunk)(void *arg, uint64_t offset, uint32_t len), mst_io_fn done, void *arg);

/* --- fast path of the watcher: its own thread and CQ; READs of one small record per target, every interval --- */

struct mst_watcher;

#define MST_WATCH_BYTES_MAX 256u

struct mst_watch_sample {
    uint64_t reads; /* finished well since the target was added */
    uint64_t failures;
    uint64_t last_read_ns; /* mst_now_ns when the last good READ finished; 0: none */
    uint64_t latency_ns;   /* of the last good READ */
    int error;             /* 0 while the link is good; the -errno that ended it, -ECANCELED when we closed it */
    uint32_t bytes;
    uint8_t data[MST_WATCH_BYTES_MAX]; /* private copy of the last good READ */
};

/* Starts the thread. interval_ms 1..10000 between READs of one target, read_deadline_ms for each.
 * on_sample runs on the loop thread (coalesced: at least once after new samples; ask with mst_watcher_sample). */
int mst_watcher_new(struct mst_fabric *fabric, uint32_t interval_ms, uint32_t read_deadline_ms, void (*on_sample)(void *arg),
                    void *arg, struct mst_watcher **ret_watcher, struct mst_why *why);
/* Watches len bytes at remote_addr. link: an established WATCH link; its one-sided READs have a CQ that the watcher's thread polls, so that
 * from now on mst_link_read on it is refused (-EBUSY) - open a second WATCH link for other READs.
 * When the link closes, the sample keeps the last data and error until mst_watcher_remove.
 * WRITEs, messages and closing stay as they are. id: caller's number, unique; one target per link.
 * -EEXIST (id or link), -ENOTCONN, -ERANGE (also: not the connecting side of a WATCH link), -ENOMEM. */
int mst_watcher_add(struct mst_watcher *watcher, uint32_t id, struct mst_link *link, uint64_t remote_addr, uint32_t rkey,
                    uint32_t len);
void mst_watcher_remove(struct mst_watcher *watcher, uint32_t id);                                     /* unknown id is fine */
int mst_watcher_sample(struct mst_watcher *watcher, uint32_t id, struct mst_watch_sample *ret_sample); /* -ENOENT */
void mst_watcher_free(struct mst_watcher *watcher);                                                    /* before its fabric */

#endif
