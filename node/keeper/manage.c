#include "node/keeper/keeper.h"

#include "base/clock.h"
#include "base/log.h"
#include "proto/socket.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The management address: TCP, beside the RDMA network, for coordinators only. A question brings a renewal of the lease, if there is one, and its answer the
 * beat line: what a READ and a WRITE would have done, were RDMA not away. What is brought goes into the grant area as it is; whether it is taken is
 * decided there as always (tenure.c). Nothing else can be asked for or ordered here. */

#define PROBE_MS   3000u /* control links, so often at most */
#define ASKERS_MAX 8u    /* at a time; the oldest gives way: nobody needs a connection for longer than a question */

struct mst_manage {
    struct mst_keeper *keeper;
    struct mst_sockserv *serv;
    struct {
        struct mst_sock *sock; /* NULL: free */
        uint64_t number;
    } askers[ASKERS_MAX];
    uint64_t numbers, probe_ms;
    bool told; /* of a question for somebody else */
};

static unsigned vms_running(const struct mst_keeper *k)
{
    unsigned i, n = 0;

    for (i = 0; i < MST_VMS_PER_NODE; i++)
        n += k->vms[i].used && k->vms[i].state == MST_RUN_RUNNING;
    return n;
}

static void lease_bring(struct mst_keeper *k, const ProtobufCBinaryData *bytes)
{
    struct mst_lease_line line;

    static_assert(sizeof(line) == MST_LINE_BYTES && sizeof(struct mst_beat_line) == MST_LINE_BYTES, "as proto/check.c has it");
    memcpy(&line, bytes->data, sizeof(line));
    memcpy(&k->grants->lease[line.coordinator_id % MST_LEASE_LINES], &line, sizeof(line));
}

static void answer(struct mst_keeper *k, struct mst_sock *sock)
{
    Mainstay__ManageAnswer body = MAINSTAY__MANAGE_ANSWER__INIT;
    mst_envelope env = MST_ENVELOPE(MANAGE_ANSWER, manage_answer, &body);
    struct mst_beat_line beat = k->status->beat; /* we are its only writer */
    int r;

    body.instance = k->instance;
    body.host_boot_id = (ProtobufCBinaryData){.len = sizeof(k->host_boot_id), .data = k->host_boot_id};
    body.cluster = k->conf->cluster;
    body.node = k->conf->node;
    body.rdma_up = k->fabric != NULL;
    body.vms_running = vms_running(k);
    body.beat = (ProtobufCBinaryData){.len = sizeof(beat), .data = (uint8_t *)&beat};
    body.has_highest_term = body.has_highest_term_by = body.has_highest_decision = 1;
    body.highest_term = mst_guard_term(k->guard);
    body.highest_term_by = mst_guard_term_by(k->guard);
    body.highest_decision = mst_guard_decision(k->guard);
    r = mst_sock_send(sock, &env);
    if (r < 0)
        log_notice("a question to the management address is not answered: %s", strerror(-r));
}

/* Whoever asks here may do so because it has no link to us, while we wait on one to what it was before it lost its power. The leases that come
 * this way would hide that from the tenure, which looks when they do not. */
static void links_doubt(struct mst_manage *manage)
{
    uint64_t now_ms = mst_now_ms();

    if (now_ms - manage->probe_ms < PROBE_MS)
        return;
    manage->probe_ms = now_ms;
    mst_controls_probe(manage->keeper);
}

static void on_message(struct mst_sock *sock, const mst_envelope *env, void *arg)
{
    struct mst_manage *manage = arg;
    struct mst_keeper *k = manage->keeper;
    const Mainstay__ManageAsk *ask = env->manage_ask;

    (void)mst_tenure_settled(k, NULL); /* the first that comes after a pause finds out about it */
    if (env->body_case != MAINSTAY__ENVELOPE__BODY_MANAGE_ASK || strcmp(ask->cluster, k->conf->cluster) != 0 ||
        strcmp(ask->node, k->conf->node) != 0) {
        if (!manage->told)
            log_notice("the management address takes questions for node %s of cluster %s only: closed", k->conf->node,
                       k->conf->cluster);
        manage->told = true;
        mst_sock_close(sock);
        return;
    }
    if (k->stopping)
        return;
    if (ask->has_lease)
        lease_bring(k, &ask->lease);
    answer(k, sock);
    links_doubt(manage);
}

static void on_closed(struct mst_sock *sock, int err, const struct mst_why *why, void *arg)
{
    struct mst_manage *manage = arg;

    (void)err, (void)why;
    for (unsigned i = 0; i < ASKERS_MAX; i++)
        if (manage->askers[i].sock == sock)
            manage->askers[i].sock = NULL;
}

static const struct mst_sock_events events = {.on_message = on_message, .on_closed = on_closed};

static void let_go(struct mst_manage *manage, unsigned i)
{
    struct mst_sock *sock = manage->askers[i].sock;

    if (!sock)
        return;
    manage->askers[i].sock = NULL;
    mst_sock_set(sock, NULL, NULL);
    mst_sock_close(sock);
}

static bool is_coordinator(const struct mst_keeper *k, const char *address)
{
    for (unsigned i = 0; i < k->conf->coordinators_count; i++)
        if (strcmp(k->conf->coordinators[i].management_address, address) == 0)
            return true;
    return false;
}

static int on_accept(struct mst_sock *sock, const char *peer_address, void *arg, const struct mst_sock_events **ret_events,
                     void **ret_arg)
{
    struct mst_manage *manage = arg;
    unsigned place = 0;

    if (!is_coordinator(manage->keeper, peer_address)) {
        log_debug("%s is no coordinator's management address: not answered", peer_address);
        return -EACCES;
    }
    for (unsigned i = 1; i < ASKERS_MAX && manage->askers[place].sock; i++)
        if (!manage->askers[i].sock || manage->askers[i].number < manage->askers[place].number)
            place = i;
    let_go(manage, place);
    manage->askers[place].sock = sock;
    manage->askers[place].number = ++manage->numbers;
    *ret_events = &events;
    *ret_arg = manage;
    return 0;
}

int mst_manage_new(struct mst_keeper *k)
{
    const struct mst_management_conf *conf = k->conf->management;
    struct mst_why why = {0};
    struct mst_manage *manage;
    int r;

    if (!conf)
        return 0;
    manage = calloc(1, sizeof(*manage));
    if (!manage)
        return -ENOMEM;
    manage->keeper = k;
    r = mst_sockserv_open_tcp(k->loop, conf->address, conf->port, on_accept, manage, &manage->serv, &why);
    if (r < 0) { /* VMs run without it: what is lost is only what it spares a node whose RDMA is away */
        log_error("nobody can ask at the management address: %s", why.text);
        free(manage);
        return 0;
    }
    log_notice("management address %s port %u", conf->address, conf->port);
    k->manage = manage;
    return 0;
}

void mst_manage_free(struct mst_keeper *k)
{
    struct mst_manage *manage = k->manage;

    if (!manage)
        return;
    k->manage = NULL;
    mst_sockserv_close(manage->serv);
    for (unsigned i = 0; i < ASKERS_MAX; i++)
        let_go(manage, i);
    free(manage);
}
