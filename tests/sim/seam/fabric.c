#include "fabric/fabric.h"
#include "tests/sim/oracle.h"
#include "tests/sim/points.h"
#include "tests/sim/seam/seam_calls.h"
#include "tests/sim/world.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The fabric as the product sees it (fabric/fabric.h), between simulated hosts, with what rxe and hardware do:
 *   - messages of a link keep their order; what the network loses costs retries, and after some of them the queue pair is dead;
 *   - a READ is served by the card: a stopped process answers too, with whatever lies in its memory; the lines of 64 bytes come in any order and
 *     at two moments, so that what is written meanwhile is seen in part;
 *   - a WRITE is completed before it can be seen; longer ones come in lines of 64 bytes, in any order, some of which may be seen while it is on its way,
 *     also when its sender dies in the midst of it; they complete in the order in which they were posted;
 *   - a killed process is told of by its kernel after some ms, lost power by nobody;
 *   - connecting to a silent host takes for ever, that is until the caller's deadline. */

#define RETRY_MIN_MS 78u
#define RETRY_MAX_MS 300u
#define LOST_MS      8u /* one packet sent again */
#define LOST_MAX     5u /* then the queue pair gives up */
#define LINE_BYTES   64u
#define GOODBYE_MS   4000u /* a disconnect request that is lost is sent again */
#define GOODBYES_MAX 15u

enum link_state { LINK_CONNECTING, LINK_ACCEPTED, LINK_OPEN, LINK_DEAD };

struct mst_region {
    struct mst_region *next;
    struct mst_link *link;
    uint8_t *addr;
    size_t len;
    enum mst_access access;
    uint32_t rkey;
    bool alive;
};

struct op { /* READ, WRITE, or one of a stream */
    struct op *next;
    struct mst_link *link;
    bool over, write;
    uint8_t *local;
    uint64_t remote;
    uint32_t rkey, len;
    uint64_t *half;         /* bit for each line that the first moment took */
    struct op *next_unseen; /* a WRITE that is completed and not all seen: of its link, oldest first */
    bool unseen;
    uint8_t *copy;           /* WRITE: the bytes on their way */
    struct mst_region *from; /* WRITE: what they are of; they must not change there before it has completed */
    mst_io_fn done;
    void *arg;
    int err;
    /* stream */
    struct mst_region *region;
    int (*on_chunk)(void *arg, uint64_t offset, uint32_t len);
    uint64_t local_off, total, at;
    uint32_t chunk;
};

struct mst_link {
    struct mst_link *next; /* all of the run */
    struct mst_fabric *fabric;
    struct sim_proc *proc;
    uint64_t life;
    struct mst_link *peer; /* NULL: not accepted yet */
    unsigned host, to, goodbyes;
    uint32_t boot;
    enum mst_role role;
    enum link_state state;
    bool connector, told; /* on_open(0) has run */
    const struct mst_link_events *events;
    void *arg;
    uint64_t arrival_ns; /* of the last message sent: order is kept */
    uint64_t retried_ns; /* then one is tried again that found no way, and those behind it after it */
    struct op *unseen;   /* WRITEs that are completed and not all seen, oldest first */
    uint64_t write_ns;   /* same, of WRITEs; stuck: one has found no way, and those behind it neither */
    bool write_stuck;
    struct mst_region *regions;
    struct op *ops;
    int err;
    struct mst_why why;
    struct mst_watcher *watcher; /* that reads over it */
};

struct mst_fabric {
    struct mst_fabric *next;
    struct sim_proc *proc;
    uint64_t life;
    struct sim_host *host;
    bool closed;
    uint16_t port; /* 0: does not listen */
    int (*on_accept)(struct mst_link *link, const struct mst_link_request *request, void *arg,
                     const struct mst_link_events **ret_events, void **ret_arg, struct mst_why *why);
    void *accept_arg;
    void (*on_gone)(void *arg);
    void *gone_arg;
    void (*on_closed)(void *arg);
    void *closed_arg;
};

static struct mst_link *links;
static struct mst_fabric *fabrics;

void sim_fabric_reset(void)
{
    links = NULL;
    fabrics = NULL;
}

/* --- the network --- */

bool sim_net_ok(unsigned from, unsigned to)
{
    const struct sim_host *a = &W->hosts[from], *b = &W->hosts[to];

    return a->powered && b->powered && a->rdma_up && b->rdma_up && W->net.blocked[from][to] == 0;
}

static uint64_t delay_ns(unsigned from, unsigned to)
{
    uint32_t slow = W->net.slow_us[from] + W->net.slow_us[to];

    return (sim_between(8, 60) + (slow ? sim_between(slow / 4, slow) : 0)) * SIM_US;
}

static bool too_long(unsigned host, size_t bytes)
{
    return W->net.narrow_bytes[host] != 0 && bytes > W->net.narrow_bytes[host];
}

/* How much later what is lost on the way arrives; false: not before the queue pair has given up. */
static bool lost_ns(unsigned from, unsigned to, size_t bytes, uint64_t *ret_ns)
{
    uint32_t loss = W->net.loss[from] + W->net.loss[to];
    unsigned times = too_long(from, bytes) || too_long(to, bytes) ? LOST_MAX : 0;

    while (loss && times < LOST_MAX && sim_chance(loss))
        times++;
    *ret_ns = (uint64_t)times * LOST_MS * SIM_MS;
    return times < LOST_MAX;
}

static uint64_t retry_ns(void)
{
    return sim_between(RETRY_MIN_MS, RETRY_MAX_MS) * SIM_MS;
}

/* --- the end of a link --- */

static bool ours(const struct mst_link *link)
{
    return link->proc->alive && link->proc->life == link->life;
}

static void regions_end(struct mst_link *link)
{
    for (struct mst_region *region = link->regions; region; region = region->next)
        region->alive = false;
    link->regions = NULL;
}

static void op_done(void *arg)
{
    struct op *op = arg;

    if (!sim_point("post.completed"))
        op->done(op->arg, op->err);
}

static void op_over(struct op *op, int err)
{
    struct op **at = &op->link->ops;

    if (op->over)
        return;
    op->over = true;
    while (*at && *at != op)
        at = &(*at)->next;
    if (*at)
        *at = op->next;
    op->err = err;
    sim_at(op->link->proc, 500, op_done, op);
}

static void closed_event(void *arg)
{
    struct mst_link *link = arg;

    if (link->told)
        link->events->on_closed(link, link->err, &link->why, link->arg);
    else
        link->events->on_open(link, link->err ? link->err : -ECANCELED, &link->why, link->arg);
}

static void link_down(struct mst_link *link, int err, const char *why)
{
    if (link->state == LINK_DEAD)
        return;
    link->state = LINK_DEAD;
    link->err = err;
    mst_why_set(&link->why, 0, "%s", why);
    while (link->ops)
        op_over(link->ops, err == -EIO ? -EIO : -ECANCELED);
    regions_end(link);
    if (ours(link))
        sim_at(link->proc, SIM_US, closed_event, link);
    W->link_breaks++;
}

/* The kernel of the side that closed asks 15 times, 4 s apart; then nobody does any more. */
static void peer_event(void *arg)
{
    struct mst_link *link = arg;

    if (link->state == LINK_DEAD || !link->peer)
        return;
    if (sim_net_ok(link->to, link->host))
        link_down(link, -ECONNRESET, "peer disconnected");
    else if (link->goodbyes++ < GOODBYES_MAX && W->hosts[link->to].boot == link->peer->boot && W->hosts[link->to].powered)
        sim_at(NULL, GOODBYE_MS * SIM_MS, peer_event, link);
}

/* The other end hears of it, if anything gets there. The event is the world's: its card, not its process, takes the news. */
static void peer_tell(struct mst_link *link, uint64_t after_ns)
{
    if (link->peer && link->peer->state != LINK_DEAD)
        sim_at(NULL, after_ns + delay_ns(link->host, link->to), peer_event, link->peer);
}

static void link_broke(struct mst_link *link, const char *why)
{
    if (link->state == LINK_DEAD)
        return;
    link_down(link, -EIO, why);
    peer_tell(link, SIM_MS); /* our side disconnects */
}

/* --- opening --- */

int mst_fabric_open(uv_loop_t *loop, const char *address, struct mst_fabric **ret_fabric, struct mst_why *why)
{
    struct sim_host *host = sim_here();
    struct mst_fabric *fabric;

    (void)loop;
    if (!host || !host->rdma_up || sim_muted())
        return mst_why_set(why, -ENODEV, "no RDMA device has address %s", address);
    fabric = sim_keep(sizeof(*fabric));
    fabric->next = fabrics;
    fabrics = fabric;
    fabric->proc = K.current;
    fabric->life = K.current->life;
    fabric->host = host;
    *ret_fabric = fabric;
    return 0;
}

void mst_fabric_on_gone(struct mst_fabric *fabric, void (*on_gone)(void *arg), void *arg)
{
    fabric->on_gone = on_gone;
    fabric->gone_arg = arg;
}

static void fabric_closed(void *arg)
{
    struct mst_fabric *fabric = arg;

    fabric->on_closed(fabric->closed_arg);
}

void mst_fabric_close(struct mst_fabric *fabric, void (*on_closed)(void *arg), void *arg)
{
    fabric->closed = true;
    for (struct mst_link *link = links; link; link = link->next) {
        if (link->fabric != fabric || link->state == LINK_DEAD)
            continue;
        peer_tell(link, 0);
        link_down(link, 0, "closed");
    }
    fabric->on_closed = on_closed;
    fabric->closed_arg = arg;
    if (on_closed)
        sim_at(fabric->proc, SIM_MS, fabric_closed, fabric);
}

int mst_fabric_listen(struct mst_fabric *fabric, uint16_t port,
                      int (*on_accept)(struct mst_link *link, const struct mst_link_request *request, void *arg,
                                       const struct mst_link_events **ret_events, void **ret_arg, struct mst_why *why),
                      void *arg, struct mst_why *why)
{
    (void)why;
    fabric->port = port;
    fabric->on_accept = on_accept;
    fabric->accept_arg = arg;
    return 0;
}

static struct mst_link *link_new(struct mst_fabric *fabric, unsigned to, enum mst_role role, enum link_state state)
{
    struct mst_link *link = sim_keep(sizeof(*link));

    link->next = links;
    links = link;
    link->fabric = fabric;
    link->proc = fabric->proc;
    link->life = fabric->proc->life;
    link->host = fabric->host->index;
    link->boot = fabric->host->boot;
    link->to = to;
    link->role = role;
    link->state = state;
    return link;
}

static bool fabric_lives(const struct mst_fabric *fabric)
{
    return !fabric->closed && fabric->proc->alive && fabric->proc->life == fabric->life;
}

static struct mst_fabric *listener_of(unsigned host, uint16_t port)
{
    for (struct mst_fabric *fabric = fabrics; fabric; fabric = fabric->next) {
        if (fabric->host->index == host && fabric->port == port && fabric_lives(fabric))
            return fabric;
    }
    return NULL;
}

struct asking { /* a connect request on its way */
    struct mst_link *link;
    uint16_t port;
    uint8_t data[MST_CONNECT_DATA_MAX];
    size_t data_bytes;
};

static void connect_late(void *arg)
{
    struct mst_link *link = arg;

    if (link->state == LINK_CONNECTING)
        link_down(link, -ETIMEDOUT, "no answer to the connect request");
}

static void connect_refused(void *arg)
{
    struct mst_link *link = arg;

    if (link->state == LINK_CONNECTING)
        link_down(link, link->err, link->why.text);
}

static void open_accepted(void *arg)
{
    struct mst_link *link = arg;

    if (link->state != LINK_ACCEPTED)
        return;
    if (link->peer->state != LINK_OPEN || !sim_net_ok(link->to, link->host)) {
        link_down(link, -ECONNRESET, "the peer went away during the handshake");
        return;
    }
    link->state = LINK_OPEN;
    link->told = true;
    link->events->on_open(link, 0, &link->why, link->arg);
}

static void open_connector(void *arg)
{
    struct mst_link *link = arg;

    if (link->state != LINK_CONNECTING || !sim_net_ok(link->to, link->host))
        return;
    link->state = LINK_OPEN;
    link->told = true;
    link->events->on_open(link, 0, &link->why, link->arg);
}

static void accept_arrives(void *arg)
{
    struct asking *asking = arg;
    struct mst_link *from = asking->link;
    struct mst_fabric *fabric = listener_of(from->to, asking->port);
    struct mst_link_request request = {.role = from->role, .data = asking->data, .data_bytes = asking->data_bytes};
    struct mst_link *link;
    uint64_t back_ns = delay_ns(from->to, from->host);
    int r;

    if (from->state != LINK_CONNECTING || !fabric)
        return; /* its deadline tells it */
    memcpy(request.address, W->hosts[from->host].address, sizeof(W->hosts[from->host].address));
    link = link_new(fabric, from->host, from->role, LINK_ACCEPTED);
    link->peer = from;
    r = fabric->on_accept(link, &request, fabric->accept_arg, &link->events, &link->arg, &link->why);
    if (r < 0) {
        link->state = LINK_DEAD;
        from->err = -EACCES;
        from->why = link->why;
        if (ours(from))
            sim_at(from->proc, back_ns, connect_refused, from);
        return;
    }
    from->peer = link;
    from->arrival_ns = K.now_ns + 2 * back_ns + SIM_US; /* nothing of it comes before we have opened */
    link->arrival_ns = K.now_ns + back_ns + SIM_US;
    if (ours(from))
        sim_at(from->proc, back_ns, open_connector, from);
    sim_at(link->proc, 2 * back_ns, open_accepted, link);
}

static void connect_arrives(void *arg)
{
    struct asking *asking = arg;
    struct mst_link *link = asking->link;
    struct mst_fabric *fabric = listener_of(link->to, asking->port);

    if (link->state != LINK_CONNECTING || !sim_net_ok(link->host, link->to) || !ours(link))
        return;
    if (fabric) {
        sim_at(fabric->proc, 0, accept_arrives, asking); /* user space has to accept: a stopped process does so when it goes on */
        return;
    }
    if (!sim_net_ok(link->to, link->host))
        return;
    link->err = -ECONNREFUSED;
    mst_why_set(&link->why, 0, "nobody listens there");
    sim_at(link->proc, 3500 * SIM_US, connect_refused, link);
}

int mst_fabric_connect(struct mst_fabric *fabric, const char *address, uint16_t port, enum mst_role role, const void *data,
                       size_t data_bytes, uint32_t deadline_ms, const struct mst_link_events *events, void *arg,
                       struct mst_link **ret_link, struct mst_why *why)
{
    struct mst_link *link;
    struct asking *asking;
    unsigned to = SIM_HOSTS_MAX;

    if (data_bytes > MST_CONNECT_DATA_MAX)
        return -EINVAL;
    for (unsigned i = 0; i < W->hosts_count; i++) {
        if (strcmp(W->hosts[i].address, address) == 0)
            to = i;
    }
    if (to == SIM_HOSTS_MAX || sim_muted() || !fabric_lives(fabric))
        return mst_why_set(why, -EHOSTUNREACH, "%s cannot be reached", address);
    link = link_new(fabric, to, role, LINK_CONNECTING);
    link->connector = true;
    link->events = events;
    link->arg = arg;
    asking = sim_keep(sizeof(*asking));
    asking->link = link;
    asking->port = port;
    asking->data_bytes = data_bytes;
    if (data_bytes)
        memcpy(asking->data, data, data_bytes);
    sim_at(NULL, delay_ns(link->host, to) + sim_between(100, 900) * SIM_US, connect_arrives, asking);
    sim_at(link->proc, deadline_ms * SIM_MS, connect_late, link);
    *ret_link = link;
    return 0;
}

static void close_event(void *arg)
{
    link_down(arg, 0, "closed by us");
}

void mst_link_close(struct mst_link *link)
{
    if (link->state == LINK_DEAD || sim_muted())
        return;
    peer_tell(link, link->arrival_ns > K.now_ns ? link->arrival_ns - K.now_ns : 0);
    if (link->state == LINK_CONNECTING) {
        link_down(link, -ECANCELED, "closed by us");
        return;
    }
    close_event(link);
}

enum mst_role mst_link_role(const struct mst_link *link)
{
    return link->role;
}

const char *mst_link_address(const struct mst_link *link)
{
    return W->hosts[link->to].address;
}

/* --- messages --- */

struct message {
    struct mst_link *link; /* the sender's */
    uint64_t life;         /* of the receiver */
    size_t len;
    bool retried;
    uint8_t data[];
};

static void message_comes(void *arg)
{
    struct message *message = arg;
    struct mst_link *to = message->link->peer;

    if (to->state != LINK_OPEN || !to->told)
        return;
    sim_hash(message->data, message->len);
    to->events->on_message(to, message->data, message->len, to->arg);
}

static void message_lost(void *arg)
{
    link_broke(((struct message *)arg)->link, "a message found no way: retries exceeded");
}

static void message_crosses(void *arg);

static void message_retry(struct message *message)
{
    if (message->retried) {
        message_lost(message);
        return;
    }
    message->retried = true;
    message->link->retried_ns = K.now_ns + retry_ns();
    sim_at(NULL, message->link->retried_ns - K.now_ns, message_crosses, message);
}

/* At the moment it would arrive. */
static void message_crosses(void *arg)
{
    struct message *message = arg;
    struct mst_link *link = message->link, *to = link->peer;

    if (link->state == LINK_DEAD && !sim_net_ok(link->host, link->to))
        return;                                             /* it left before the link was closed, and is lost */
    if (!message->retried && K.now_ns < link->retried_ns) { /* none overtakes another */
        sim_at(NULL, link->retried_ns - K.now_ns, message_crosses, message);
        return;
    }
    if (!sim_net_ok(link->host, link->to) || !to || (to->state == LINK_DEAD && sim_net_ok(link->host, link->to))) {
        if (link->state != LINK_DEAD)
            message_retry(message);
        return;
    }
    if (!ours(to)) {
        if (link->state != LINK_DEAD)
            message_retry(message);
        return;
    }
    sim_at(to->proc, 0, message_comes, message);
    if (!sim_net_ok(link->to, link->host) && link->state != LINK_DEAD) /* it is there, and its acknowledgement never comes back */
        sim_at(NULL, retry_ns(), message_lost, message);
}

int mst_link_send(struct mst_link *link, const void *data, size_t len)
{
    struct message *message;
    uint64_t lost, at;
    bool crosses;

    if (sim_muted() || link->state != LINK_OPEN)
        return -ENOTCONN;
    if (len == 0 || len > MST_MESSAGE_BYTES_MAX)
        return -EMSGSIZE;
    if (sim_point("send.begun"))
        return -ENOTCONN;
    message = sim_keep(sizeof(*message) + len);
    message->link = link;
    message->len = len;
    memcpy(message->data, data, len);
    crosses = lost_ns(link->host, link->to, len, &lost);
    at = K.now_ns + delay_ns(link->host, link->to) + lost;
    if (at <= link->arrival_ns)
        at = link->arrival_ns + 1;
    link->arrival_ns = at;
    sim_at(NULL, at - K.now_ns, crosses ? message_crosses : message_lost, message);
    (void)sim_point("send.posted");
    return 0;
}

/* --- memory --- */

int mst_region_new(struct mst_link *link, void *addr, size_t len, enum mst_access access, struct mst_region **ret_region,
                   struct mst_why *why)
{
    struct mst_region *region;

    if (link->state == LINK_DEAD || sim_muted() || sim_point("region.begun"))
        return mst_why_set(why, -ENOTCONN, "the link is gone");
    region = sim_keep(sizeof(*region));
    region->link = link;
    region->addr = addr;
    region->len = len;
    region->access = access;
    region->rkey = (uint32_t)++W->next_rkey;
    region->alive = true;
    region->next = link->regions;
    link->regions = region;
    *ret_region = region;
    return 0;
}

struct registering {
    struct mst_link *link;
    void *addr, *arg;
    size_t len;
    enum mst_access access;
    mst_region_fn done;
};

static void registered(void *arg)
{
    struct registering *job = arg;
    struct mst_region *region = NULL;
    struct mst_why why = {0};
    int r = mst_region_new(job->link, job->addr, job->len, job->access, &region, &why);

    job->done(job->arg, region, r < 0 ? -ECANCELED : 0, &why);
}

int mst_region_new_async(struct mst_link *link, void *addr, size_t len, enum mst_access access, mst_region_fn done, void *arg,
                         struct mst_why *why)
{
    struct registering *job;

    if (link->state == LINK_DEAD || sim_muted())
        return mst_why_set(why, -ENOTCONN, "the link is gone");
    job = sim_keep(sizeof(*job));
    *job = (struct registering){.link = link, .addr = addr, .arg = arg, .len = len, .access = access, .done = done};
    sim_at(link->proc, sim_between(1, 80) * SIM_MS, registered, job);
    return 0;
}

void mst_region_free(struct mst_region *region)
{
    struct mst_region **at;

    if (!region || !region->alive || sim_muted())
        return;
    region->alive = false;
    for (at = &region->link->regions; *at && *at != region; at = &(*at)->next)
        ;
    if (*at)
        *at = region->next;
}

/* Addresses travel in messages: made of the key, so that they are the same whenever the story is told. */
static uint64_t region_base(const struct mst_region *region)
{
    return (uint64_t)region->rkey << 32;
}

void mst_region_key(const struct mst_region *region, uint64_t *ret_addr, uint32_t *ret_rkey)
{
    *ret_addr = region_base(region);
    *ret_rkey = region->rkey;
}

unsigned sim_regions_over(const void *addr, size_t bytes)
{
    const uint8_t *from = addr, *to = from + bytes;
    unsigned count = 0;

    for (struct mst_link *link = links; link; link = link->next) {
        for (struct mst_region *region = link->regions; region; region = region->next)
            count += region->alive && ours(link) && region->addr < to && region->addr + region->len > from;
    }
    return count;
}

unsigned sim_links_of(const struct sim_proc *proc, unsigned *ret_regions)
{
    unsigned count = 0;

    *ret_regions = 0;
    for (struct mst_link *link = links; link; link = link->next) {
        if (link->proc != proc || !ours(link) || link->state == LINK_DEAD)
            continue;
        count++;
        for (struct mst_region *region = link->regions; region; region = region->next)
            ++*ret_regions;
    }
    return count;
}

/* --- one-sided --- */

static struct mst_region *remote_region(const struct op *op)
{
    const struct mst_link *peer = op->link->peer;
    enum mst_access want = op->write ? MST_ACCESS_REMOTE_WRITE : MST_ACCESS_REMOTE_READ;

    for (struct mst_region *region = peer->regions; region; region = region->next) {
        uint64_t start = region_base(region);

        if (region->rkey == op->rkey && region->access == want && op->remote >= start && op->len <= region->len &&
            op->remote - start <= region->len - op->len)
            return region;
    }
    return NULL;
}

static void op_fail(void *arg)
{
    struct op *op = arg;

    if (op->over)
        return;
    link_broke(op->link, op->write ? "WRITE failed: retries exceeded" : "READ failed: retries exceeded");
}

static bool served(const struct mst_link *link)
{
    return link->peer && link->peer->state == LINK_OPEN && ours(link->peer) && sim_net_ok(link->host, link->to) &&
           sim_net_ok(link->to, link->host);
}

static uint8_t *remote_bytes(const struct op *op, const struct mst_region *region)
{
    return region->addr + (op->remote - region_base(region));
}

/* Lines that the first moment takes, or all that are left. */
static void lines_copy(struct op *op, const struct mst_region *region, bool last)
{
    const uint8_t *source = remote_bytes(op, region);
    uint32_t first = LINE_BYTES - (uint32_t)(op->remote % LINE_BYTES);
    uint32_t lines = 1 + (op->len > first ? (op->len - first + LINE_BYTES - 1) / LINE_BYTES : 0);

    for (uint32_t group = 0; group * 64 < lines; group++) {
        uint64_t taken = op->half[group] = last ? ~op->half[group] : sim_random();

        if (lines - group * 64 < 64)
            taken &= (UINT64_C(1) << (lines - group * 64)) - 1;
        for (; taken; taken &= taken - 1) {
            uint32_t line = group * 64 + (uint32_t)__builtin_ctzll(taken);
            uint32_t from = line > 0 ? first + (line - 1) * LINE_BYTES : 0;
            uint32_t to = first + line * LINE_BYTES < op->len ? first + line * LINE_BYTES : op->len;

            if (to - from == LINE_BYTES) /* a few instructions, where the other one is a call */
                memcpy(op->local + from, source + from, LINE_BYTES);
            else
                memcpy(op->local + from, source + from, to - from);
        }
    }
}

static void wrong_key(struct op *op)
{
    struct mst_link *link = op->link;

    op_over(op, -EIO);
    link_down(link->peer, -EIO, "the peer tried what it may not");
    link_broke(link, "remote access error");
}

static void read_last(void *arg)
{
    const struct mst_region *region;
    struct op *op = arg;

    if (op->over || op->link->state == LINK_DEAD) /* with the process its memory has gone */
        return;
    if (!served(op->link)) {
        sim_at(NULL, retry_ns(), op_fail, op);
        return;
    }
    region = remote_region(op);
    if (!region) {
        wrong_key(op);
        return;
    }
    lines_copy(op, region, true);
    op_over(op, 0);
}

static void read_first(void *arg)
{
    struct op *op = arg;
    const struct mst_region *region;
    uint64_t gap = sim_chance(80) ? sim_between(100, 9000) * SIM_US : sim_between(5, 40) * SIM_US;

    if (op->over || op->link->state == LINK_DEAD) /* with the process its memory has gone */
        return;
    if (!served(op->link)) {
        sim_at(NULL, retry_ns(), op_fail, op);
        return;
    }
    region = remote_region(op);
    if (!region) {
        wrong_key(op);
        return;
    }
    if (op->len > LINE_BYTES) {
        lines_copy(op, region, false);
        sim_at(NULL, gap, read_last, op);
        return;
    }
    lines_copy(op, region, true);
    op_over(op, 0);
}

static void unseen_drop(struct op *op)
{
    struct op **at = &op->link->unseen;

    while (*at && *at != op)
        at = &(*at)->next_unseen;
    if (*at)
        *at = op->next_unseen;
    op->unseen = false;
}

static void lines_put(struct op *op, bool last);

/* Late as it may be seen, a WRITE never lands over one that came behind it on the same link. */
static void older_first(const struct op *op)
{
    struct op *next;

    for (struct op *old = op->link->unseen; old; old = next) {
        next = old->next_unseen;
        if (old == op || old->remote + old->len <= op->remote || op->remote + op->len <= old->remote)
            continue;
        unseen_drop(old);
        lines_put(old, true);
    }
}

static void lines_put(struct op *op, bool last)
{
    const struct mst_region *region = op->link->peer ? remote_region(op) : NULL;
    uint32_t lines = (op->len + LINE_BYTES - 1) / LINE_BYTES;
    uint8_t *to;

    if (!region || !ours(op->link->peer) || !W->hosts[op->link->to].powered)
        return;
    if (!last)
        older_first(op);
    to = remote_bytes(op, region);
    if (op->link->role == MST_ROLE_MIRROR)
        oracle_write(&W->hosts[op->link->to], to, op->link->host, op->link->life);
    for (uint32_t i = 0; i < lines; i++) {
        uint64_t bit = UINT64_C(1) << i % 64;

        if (i % 64 == 0)
            op->half[i / 64] = last ? ~op->half[i / 64] : sim_random();
        if (op->half[i / 64] & bit)
            memcpy(to + i * LINE_BYTES, op->copy + i * LINE_BYTES,
                   op->len - i * LINE_BYTES < LINE_BYTES ? op->len - i * LINE_BYTES : LINE_BYTES);
    }
}

static void write_seen(void *arg)
{
    struct op *op = arg;

    if (!op->unseen)
        return;
    unseen_drop(op);
    lines_put(op, true);
}

/* After what came before it and lands in the same place. */
static void write_unseen(struct op *op)
{
    struct op **at = &op->link->unseen;

    older_first(op);
    while (*at)
        at = &(*at)->next_unseen;
    op->next_unseen = NULL;
    *at = op;
    op->unseen = true;
}

/* True: it goes no further. */
static bool write_ends(struct op *op)
{
    if (op->over)
        return true;
    if (op->link->write_stuck || !served(op->link)) {
        op->link->write_stuck = true;
        sim_at(NULL, retry_ns(), op_fail, op);
        return true;
    }
    if (!remote_region(op)) {
        wrong_key(op);
        return true;
    }
    return false;
}

static void write_completes(void *arg)
{
    struct op *op = arg;

    if (write_ends(op))
        return;
    if (op->from->alive && memcmp(op->copy, op->local, op->len) != 0)
        oracle_breach("I6", "%s writes into what the WRITE before has not taken yet", W->hosts[op->link->host].name);
    write_unseen(op);
    sim_at(NULL, (sim_chance(20) ? sim_between(3000, 100000) : sim_between(0, 3000)) * SIM_US, write_seen, op);
    op_over(op, 0);
}

/* The first of it: more is to come, unless its sender dies. */
static void write_comes(void *arg)
{
    struct op *op = arg;
    bool some = sim_dice(2);

    if (op->over && some && !op->link->write_stuck && served(op->link))
        lines_put(op, false); /* it was on its way when the link ended */
    else if (!write_ends(op) && some)
        lines_put(op, false);
}

static void write_lands(void *arg)
{
    struct op *op = arg;

    if (op->over)
        return;
    if (!served(op->link)) {
        sim_at(NULL, retry_ns(), op_fail, op);
        return;
    }
    if (!remote_region(op)) {
        wrong_key(op);
        return;
    }
    write_unseen(op);
    sim_at(NULL, sim_between(0, 3000) * SIM_US, write_seen, op);
    op_over(op, 0);
}

/* A longer one, behind those that were posted before. */
static void write_begin(struct op *op, bool crosses, uint64_t lost_ns)
{
    struct mst_link *link = op->link;
    uint64_t at_ns = K.now_ns + delay_ns(link->host, link->to) + lost_ns;
    uint64_t gap_ns = sim_chance(40) ? sim_between(100, 6000) * SIM_US : sim_between(5, 40) * SIM_US;

    if (at_ns <= link->write_ns)
        at_ns = link->write_ns + 1;
    link->write_ns = at_ns + gap_ns;
    if (!crosses)
        link->write_stuck = true;
    sim_at(NULL, at_ns - K.now_ns, write_comes, op);
    sim_at(NULL, at_ns + gap_ns - K.now_ns, write_completes, op);
}

static int op_post(struct mst_link *link, struct mst_region *local, uint64_t local_off, uint64_t remote_addr, uint32_t rkey,
                   uint32_t len, bool write, mst_io_fn done, void *arg, struct op **ret_op)
{
    struct op *op;
    uint64_t lost;
    uint32_t words;
    bool crosses;

    if (sim_muted() || link->state != LINK_OPEN)
        return -ENOTCONN;
    if (!link->connector || link->role == MST_ROLE_CONTROL)
        return -EOPNOTSUPP;
    if (len == 0 || len > MST_READ_BYTES_MAX || local_off > local->len || len > local->len - local_off)
        return -ERANGE;
    if (sim_point("post.begun"))
        return -ENOTCONN;
    words = len / LINE_BYTES / 64 + 2;
    op = sim_keep(sizeof(*op) + words * sizeof(*op->half) + (write ? len : 0));
    op->link = link;
    op->write = write;
    op->local = local->addr + local_off;
    op->remote = remote_addr;
    op->rkey = rkey;
    op->len = len;
    op->half = (uint64_t *)(op + 1);
    op->copy = (uint8_t *)(op->half + words);
    op->from = local;
    if (write)
        memcpy(op->copy, op->local, len);
    if (write && link->role == MST_ROLE_MIRROR)
        oracle_posted(sim_here(), link);
    op->done = done;
    op->arg = arg;
    op->next = link->ops;
    link->ops = op;
    crosses = lost_ns(link->host, link->to, len, &lost);
    if (write && link->role == MST_ROLE_MIRROR)
        write_begin(op, crosses, lost);
    else
        sim_at(NULL, crosses ? delay_ns(link->host, link->to) + lost : retry_ns(),
               !crosses ? op_fail
               : write  ? write_lands
                        : read_first,
               op);
    *ret_op = op;
    (void)sim_point("post.posted");
    return 0;
}

int mst_link_read(struct mst_link *link, struct mst_region *local, uint64_t local_off, uint64_t remote_addr, uint32_t rkey,
                  uint32_t len, uint32_t deadline_ms, mst_io_fn done, void *arg)
{
    struct op *op;

    (void)deadline_ms; /* the queue pair gives up before any that the product uses */
    return op_post(link, local, local_off, remote_addr, rkey, len, false, done, arg, &op);
}

int mst_link_write(struct mst_link *link, struct mst_region *local, uint64_t local_off, uint64_t remote_addr, uint32_t rkey,
                   uint32_t len, uint32_t deadline_ms, mst_io_fn done, void *arg)
{
    struct op *op;

    (void)deadline_ms;
    return op_post(link, local, local_off, remote_addr, rkey, len, true, done, arg, &op);
}

struct stream {
    struct mst_link *link;
    struct mst_region *local;
    uint64_t local_off, remote, total, at;
    uint32_t rkey, chunk, len;
    int (*on_chunk)(void *arg, uint64_t offset, uint32_t len);
    mst_io_fn done;
    void *arg;
};

static void stream_part(void *arg, int err);

static int stream_next(struct stream *s)
{
    struct op *op;

    s->len = s->total - s->at < s->chunk ? (uint32_t)(s->total - s->at) : s->chunk;
    return op_post(s->link, s->local, s->local_off + s->at, s->remote + s->at, s->rkey, s->len, false, stream_part, s, &op);
}

static void stream_part(void *arg, int err)
{
    struct stream *s = arg;
    uint64_t at = s->at;

    if (err == 0 && s->on_chunk)
        err = s->on_chunk(s->arg, at, s->len);
    s->at += s->len;
    if (err == 0 && s->at < s->total)
        err = stream_next(s);
    else if (err == 0) {
        s->done(s->arg, 0);
        return;
    }
    if (err < 0)
        s->done(s->arg, err);
}

int mst_link_read_stream(struct mst_link *link, struct mst_region *local, uint64_t local_off, uint64_t remote_addr, uint32_t rkey,
                         uint64_t total, uint32_t chunk_bytes, uint32_t depth, uint32_t deadline_ms,
                         int (*on_chunk)(void *arg, uint64_t offset, uint32_t len), mst_io_fn done, void *arg)
{
    struct stream *s = sim_keep(sizeof(*s));

    (void)depth, (void)deadline_ms;
    *s = (struct stream){.link = link,
                         .local = local,
                         .local_off = local_off,
                         .remote = remote_addr,
                         .total = total,
                         .rkey = rkey,
                         .chunk = chunk_bytes,
                         .on_chunk = on_chunk,
                         .done = done,
                         .arg = arg};
    return stream_next(s);
}

/* --- watcher --- */

struct target {
    bool used, failing;
    uint32_t id, rkey, len;
    struct mst_link *link;
    uint64_t addr;
    struct mst_watch_sample sample;
};

struct mst_watcher {
    struct sim_proc *proc;
    uint32_t interval_ms;
    void (*on_sample)(void *arg);
    void *arg;
    bool freed;
    struct target targets[SIM_NODES_MAX];
};

static void target_fails(void *arg)
{
    struct target *target = arg;

    if (!target->used || !target->failing)
        return;
    target->failing = false;
    target->sample.failures++;
    target->sample.error = -EIO;
    link_broke(target->link, "READ of the beat line failed: retries exceeded");
}

static void target_read(struct mst_watcher *watcher, struct target *target)
{
    struct op op = {.link = target->link, .remote = target->addr, .rkey = target->rkey, .len = target->len};
    struct sim_host *owner = &W->hosts[target->link->to];
    uint64_t half[MST_WATCH_BYTES_MAX / LINE_BYTES / 64 + 2] = {0};
    uint64_t lost;

    if (target->link->state == LINK_DEAD || target->failing) {
        if (target->link->state == LINK_DEAD && !target->sample.error)
            target->sample.error = target->link->err ? target->link->err : -ECANCELED;
        return;
    }
    sim_agent_beat(owner);
    sim_lazy_run(&owner->keeper); /* it may die of it */
    if (!lost_ns(target->link->host, target->link->to, target->len, &lost) || !served(target->link) || !remote_region(&op)) {
        target->failing = true;
        sim_at(watcher->proc, retry_ns(), target_fails, target);
        return;
    }
    op.local = target->sample.data;
    op.half = half;
    lines_copy(&op, remote_region(&op), true);
    target->sample.reads++;
    target->sample.bytes = target->len;
    target->sample.last_read_ns = sim_local_ns(sim_here());
    W->beats_read++;
}

static void watcher_turn(void *arg)
{
    struct mst_watcher *watcher = arg;

    if (watcher->freed)
        return;
    for (unsigned i = 0; i < SIM_NODES_MAX; i++) {
        if (watcher->targets[i].used)
            target_read(watcher, &watcher->targets[i]);
    }
    sim_at(watcher->proc, watcher->interval_ms * SIM_MS, watcher_turn, watcher);
    watcher->on_sample(watcher->arg);
}

int mst_watcher_new(struct mst_fabric *fabric, uint32_t interval_ms, uint32_t read_deadline_ms, void (*on_sample)(void *arg),
                    void *arg, struct mst_watcher **ret_watcher, struct mst_why *why)
{
    struct mst_watcher *watcher = sim_keep(sizeof(*watcher));

    (void)read_deadline_ms, (void)why;
    watcher->proc = fabric->proc;
    watcher->interval_ms = interval_ms;
    watcher->on_sample = on_sample;
    watcher->arg = arg;
    sim_at(watcher->proc, interval_ms * SIM_MS, watcher_turn, watcher);
    *ret_watcher = watcher;
    return 0;
}

int mst_watcher_add(struct mst_watcher *watcher, uint32_t id, struct mst_link *link, uint64_t remote_addr, uint32_t rkey,
                    uint32_t len)
{
    if (link->state != LINK_OPEN)
        return -ENOTCONN;
    if (id >= SIM_NODES_MAX || len > MST_WATCH_BYTES_MAX)
        return -ERANGE;
    if (watcher->targets[id].used)
        return -EEXIST;
    watcher->targets[id] = (struct target){.used = true, .id = id, .link = link, .addr = remote_addr, .rkey = rkey, .len = len};
    return 0;
}

void mst_watcher_remove(struct mst_watcher *watcher, uint32_t id)
{
    if (id < SIM_NODES_MAX)
        watcher->targets[id].used = watcher->targets[id].failing = false;
}

int mst_watcher_sample(struct mst_watcher *watcher, uint32_t id, struct mst_watch_sample *ret_sample)
{
    if (id >= SIM_NODES_MAX || !watcher->targets[id].used)
        return -ENOENT;
    *ret_sample = watcher->targets[id].sample;
    return 0;
}

void mst_watcher_free(struct mst_watcher *watcher)
{
    if (watcher)
        watcher->freed = true;
}

/* --- faults --- */

void sim_fabric_host_gone(struct sim_host *host)
{
    for (struct mst_link *link = links; link; link = link->next) {
        if (link->host != host->index || link->state == LINK_DEAD)
            continue;
        link->state = LINK_DEAD;
        regions_end(link);
    }
}

void sim_fabric_proc_gone(struct sim_host *host, const struct sim_proc *proc)
{
    for (struct mst_link *link = links; link; link = link->next) {
        if (link->host != host->index || link->proc != proc || link->state == LINK_DEAD)
            continue;
        link->state = LINK_DEAD;
        regions_end(link);
        peer_tell(link, sim_between(5, 9) * SIM_MS);
    }
}

static void gone_event(void *arg)
{
    struct mst_fabric *fabric = arg;

    if (fabric->on_gone && !fabric->closed)
        fabric->on_gone(fabric->gone_arg);
}

void sim_fabric_device(struct sim_host *host, bool up)
{
    if (host->rdma_up == up)
        return;
    host->rdma_up = up;
    if (up)
        return;
    for (struct mst_link *link = links; link; link = link->next) {
        if (link->host == host->index && ours(link) && link->state != LINK_DEAD)
            link_down(link, -ENODEV, "the device is gone");
    }
    for (struct mst_fabric *fabric = fabrics; fabric; fabric = fabric->next) {
        if (fabric->host == host && fabric_lives(fabric))
            sim_at(fabric->proc, 10 * SIM_US, gone_event, fabric);
    }
}
