#include "fuzz.h"

#include "coordinator/io/app.h"
#include "proto/frame.h"
#include "shm/publish.h"
#include "tests/sim/seam/seam_calls.h"
#include "tests/sim/world.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The coordinator without its store: control links, watch links with what is read and written over them, operator, consoles, views and core, on
 * the simulator's machine. Three nodes with their main storage and an operator are the input. Messages are any bytes; what a real peer would
 * know and a fuzzer cannot guess (instance, number of the order it answers, keys of memory) is put in where the input asks for it. */

enum { NODE, KEYS, MEMORY, OPERATOR, OBEY, TIME, LINK, FENCE, STORE, NEW_LIFE, MANAGE, OPS };
enum { NODE_MASK = 3, FIX_REPLY = 4, FIX_INSTANCE = 8, FIX_KEYS = 16, LEG = 32 };
enum { BEAT, INFO, SAVE, STATUS, RAW, MEMORIES };
enum { CALL, CLOSE_CONTROL, CLOSE_LEG, OPERATOR_GOES, OPERATOR_COMES, CARD, LINKS };

#define NODES      3u
#define ORDERS_MAX 8u
#define TICK_MS    50u

struct order { /* as the node got it */
    uint64_t id;
    bool fence;
    unsigned vms_count;
    char vm[4][MST_NAME_BYTES];
    uint64_t epoch[4];
};

static struct node {
    struct sim_host *host;
    struct mst_link *control, *leg[2];
    struct mst_sock *manage; /* the last that has asked at its management address */
    struct mst_region *status_region[2], *grant_region[2];
    struct mst_status_area status;
    struct mst_grant_area grants;
    uint64_t instance, asked;
    struct order orders[ORDERS_MAX];
    unsigned orders_count;
    bool fencing;
    uint64_t fence_token;
} nodes[NODES];
static struct {
    struct sim_host *host;
    struct mst_sock *sock;
    struct app *app;
    const struct mst_txn *txn;
    int store_err;
} us;

void *sim_calloc(size_t count, size_t bytes);

/* --- the coordinator's process, as coordinator/io/app.c makes it --- */

struct mst_time app_now(void)
{
    return (struct mst_time){.us = sim_local_ns(us.host) / 1000, .wall_ms = UINT64_C(1700000000000) + K.now_ns / SIM_MS};
}

const char *lead_standby_text(const struct app *app, struct mst_why *ret_text)
{
    (void)app;
    mst_why_set(ret_text, -EAGAIN, "not ready yet");
    return ret_text->text;
}

static void committed(void *arg)
{
    struct mst_time now = app_now();
    struct mst_why why;

    (void)arg;
    us.txn = NULL;
    mst_core_committed(us.app->core, &now, us.store_err, us.store_err ? "the disk is full" : "");
    if (mst_core_ready(us.app->core) && !us.app->listening)
        us.app->listening = mst_fabric_listen(us.app->fabric, us.app->conf->port, links_accept, us.app, &why) == 0;
}

static void io_commit(void *impl, const struct mst_txn *txn)
{
    (void)impl;
    FUZZ_CHECK(!us.txn);
    us.txn = txn;
    sim_at(&us.host->coord, SIM_MS, committed, NULL);
}

static int io_order(void *impl, const struct mst_order *order)
{
    return links_order(impl, order);
}

static void io_fence(void *impl, unsigned node, uint64_t token, bool look)
{
    (void)look;
    (void)impl;
    FUZZ_CHECK(node < NODES && !nodes[node].fencing);
    nodes[node].fencing = true;
    nodes[node].fence_token = token;
}

static void io_fence_cancel(void *impl, unsigned node, uint64_t token)
{
    (void)impl, (void)token;
    nodes[node].fencing = false;
}

static void io_read_slots(void *impl, unsigned node)
{
    watch_read_slots(impl, node);
}

static int io_lease(void *impl, unsigned node, const struct mst_lease_grant *grant)
{
    return watch_lease(impl, node, grant);
}

static void io_manage(void *impl, unsigned node, const struct mst_lease_grant *lease)
{
    manage_ask(impl, node, lease);
}

static void io_close_link(void *impl, uint64_t link)
{
    links_close(impl, link);
}

static void io_peers(void *impl)
{
    ((struct app *)impl)->peers_changed = true;
}

static void io_reply(void *impl, uint64_t token, int err, const char *text)
{
    app_reply(impl, token, err, text);
}

static void io_vm_moved(void *impl, const char *vm, int node, uint64_t epoch)
{
    console_moved(impl, vm, node, epoch);
}

static void io_log(void *impl, enum mst_log_level level, const char *text)
{
    (void)impl;
    mst_log(level, "%s", text);
}

static void tick(void *arg)
{
    struct mst_time now = app_now();

    (void)arg;
    sim_at(&us.host->coord, TICK_MS * SIM_MS, tick, NULL);
    watch_on_sample(us.app);
    mst_core_tick(us.app->core, &now);
    watch_tick(us.app);
    manage_tick(us.app);
    links_tick(us.app);
    console_tick(us.app);
}

static const struct mst_coordinator_conf *conf_make(void)
{
    static struct mst_member_conf members[NODES];
    static struct mst_management_conf management[NODES];
    static struct mst_fence_conf fence;
    static struct mst_coordinator_conf conf;

    for (unsigned i = 0; i < NODES; i++)
        management[i] = (struct mst_management_conf){nodes[i].host->management, MST_MANAGEMENT_PORT};
    for (unsigned i = 0; i < NODES; i++)
        members[i] = (struct mst_member_conf){.name = nodes[i].host->name,
                                              .id = i + 1,
                                              .address = nodes[i].host->address,
                                              .port = MST_NODE_PORT,
                                              .management = i < 2 ? &management[i] : NULL,
                                              .fence = i + 1 < NODES ? &fence : NULL};
    conf = (struct mst_coordinator_conf){.cluster = (char *)"sim",
                                         .id = 1,
                                         .address = us.host->address,
                                         .port = MST_COORDINATOR_PORT,
                                         .run_dir = (char *)"/sim/c1",
                                         .watch_interval_ms = 50,
                                         .nodes = members,
                                         .nodes_count = NODES};
    return &conf;
}

static void boot(void *arg)
{
    static const struct mst_core_io none = {.commit = io_commit,
                                            .order = io_order,
                                            .fence = io_fence,
                                            .fence_cancel = io_fence_cancel,
                                            .read_slots = io_read_slots,
                                            .lease = io_lease,
                                            .manage = io_manage,
                                            .close_link = io_close_link,
                                            .peers = io_peers,
                                            .reply = io_reply,
                                            .vm_moved = io_vm_moved,
                                            .log = io_log};
    static struct mst_core_conf conf;
    struct mst_core_io io = none;
    struct mst_time now = app_now();
    struct mst_why why;

    (void)arg;
    io.impl = us.app = sim_calloc(1, sizeof(*us.app));
    us.app->conf = conf_make();
    us.app->instance = 9;
    conf = (struct mst_core_conf){.coordinator_id = 1,
                                  .coordinator_instance = 9,
                                  .cluster = "sim",
                                  .watch_interval_ms = 50,
                                  .agent_silent_ms = 3000,
                                  .keeper_silent_ms = 3000,
                                  .keeper_return_ms = 3000,
                                  .node_starts_max = 4,
                                  .node_starts_window_ms = 120000,
                                  .fences_max = 2,
                                  .starts_max = 8,
                                  .mass_loss_percent = 50,
                                  .lease_ms = 10000,
                                  .nodes_count = NODES};
    for (unsigned i = 0; i < NODES; i++) {
        conf.nodes[i] = (struct mst_member){.id = i + 1, .port = MST_NODE_PORT, .has_fence = i + 1 < NODES, .managed = i < 2};
        snprintf(conf.nodes[i].name, sizeof(conf.nodes[i].name), "n%u", i + 1);
        snprintf(conf.nodes[i].address, sizeof(conf.nodes[i].address), "%s", nodes[i].host->address);
    }
    FUZZ_CHECK(mst_core_new(&conf, &io, &us.app->core) == 0);
    FUZZ_CHECK(mst_fabric_open(NULL, us.host->address, &us.app->fabric, &why) == 0);
    FUZZ_CHECK(mst_watcher_new(us.app->fabric, 50, 500, watch_on_sample, us.app, &us.app->watcher, &why) == 0);
    FUZZ_CHECK(operator_open(us.app, &why) == 0);
    mst_core_start(us.app->core, &now);
    sim_at(&us.host->coord, TICK_MS * SIM_MS, tick, NULL);
}

/* --- nodes --- */

static void forget(struct mst_link *link)
{
    for (unsigned i = 0; i < NODES; i++) {
        if (nodes[i].control == link)
            nodes[i].control = NULL;
        for (unsigned leg = 0; leg < 2; leg++)
            if (nodes[i].leg[leg] == link)
                nodes[i].leg[leg] = NULL;
    }
}

static void order_note(struct node *node, const mst_envelope *env)
{
    struct order *order = &node->orders[node->orders_count < ORDERS_MAX ? node->orders_count++ : ORDERS_MAX - 1];

    /* An order without these would be obeyed by a keeper that has long been given up, or by another one. */
    FUZZ_CHECK(env->has_instance && env->has_term && env->term > 0);
    *order = (struct order){.id = env->id, .fence = env->body_case == MAINSTAY__ENVELOPE__BODY_ORDER_FENCE};
    for (size_t i = 0; order->fence && i < env->order_fence->n_vms && i < 4; i++) {
        snprintf(order->vm[i], sizeof(order->vm[i]), "%s", env->order_fence->vms[i]->vm);
        order->epoch[i] = env->order_fence->vms[i]->epoch;
        order->vms_count++;
    }
}

static void control_message(struct mst_link *link, const void *data, size_t len, void *arg)
{
    struct node *node = arg;
    struct mst_why why;
    mst_envelope *env;

    (void)link;
    FUZZ_CHECK(mst_frame_unpack(data, len, &env, &why) == 0);
    if (env->has_id) {
        node->asked = env->id;
        order_note(node, env);
    }
    mst_envelope_free(env);
}

static void leg_message(struct mst_link *link, const void *data, size_t len, void *arg)
{
    (void)link, (void)data, (void)len, (void)arg;
    FUZZ_CHECK(false); /* a coordinator says nothing there */
}

static void on_open(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct node *node = arg;
    struct mst_why text;

    (void)why;
    if (err < 0) {
        forget(link);
        return;
    }
    for (unsigned leg = 0; leg < 2; leg++) {
        if (node->leg[leg] != link)
            continue;
        FUZZ_CHECK(mst_region_new(link, &node->status, sizeof(node->status), MST_ACCESS_REMOTE_READ, &node->status_region[leg],
                                  &text) == 0);
        FUZZ_CHECK(mst_region_new(link, &node->grants, sizeof(node->grants), MST_ACCESS_REMOTE_WRITE, &node->grant_region[leg],
                                  &text) == 0);
    }
}

static void on_closed(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    (void)err, (void)why, (void)arg;
    forget(link);
}

static const struct mst_link_events control_events = {on_open, control_message, on_closed};
static const struct mst_link_events leg_events = {on_open, leg_message, on_closed};

static int on_accept(struct mst_link *link, const struct mst_link_request *request, void *arg,
                     const struct mst_link_events **ret_events, void **ret_arg, struct mst_why *why)
{
    struct node *node = arg;

    FUZZ_CHECK(request->role == MST_ROLE_WATCH);
    if (node->leg[0] && node->leg[1])
        return mst_why_set(why, -EBUSY, "two are enough");
    node->leg[node->leg[0] ? 1 : 0] = link;
    *ret_events = &leg_events;
    *ret_arg = node;
    return 0;
}

static void life_new(struct node *node)
{
    unsigned index = (unsigned)(node - nodes);

    node->instance = node->instance ? node->instance + 16 : 100 + index;
    memset(&node->status, 0, sizeof(node->status));
    mst_status_init(&node->status, "sim", node->host->name, index + 1, node->instance, node->host->boot_id, 1);
    node->orders_count = 0;
}

static void manage_message(struct mst_sock *sock, const mst_envelope *env, void *arg)
{
    struct node *node = arg;

    FUZZ_CHECK(env->body_case == MAINSTAY__ENVELOPE__BODY_MANAGE_ASK && strcmp(env->manage_ask->node, node->host->name) == 0);
    node->manage = sock;
}

static void manage_closed(struct mst_sock *sock, int err, const struct mst_why *why, void *arg)
{
    struct node *node = arg;

    (void)err, (void)why;
    if (node->manage == sock)
        node->manage = NULL;
}

static int manage_accept(struct mst_sock *sock, const char *peer_address, void *arg, const struct mst_sock_events **ret_events,
                         void **ret_arg)
{
    static const struct mst_sock_events events = {manage_message, manage_closed};

    (void)sock, (void)peer_address;
    *ret_events = &events;
    *ret_arg = arg;
    return 0;
}

static void listens(void *arg)
{
    struct node *node = arg;
    struct mst_sockserv *serv;
    struct mst_why why;

    FUZZ_CHECK(mst_sockserv_open_tcp(NULL, node->host->management, MST_MANAGEMENT_PORT, manage_accept, node, &serv, &why) == 0);

    FUZZ_CHECK(mst_fabric_open(NULL, node->host->address, &node->host->fabric, &why) == 0);
    FUZZ_CHECK(mst_fabric_listen(node->host->fabric, MST_NODE_PORT, on_accept, node, &why) == 0);
}

static void calls(void *arg)
{
    struct node *node = arg;
    struct mst_why why;

    if (node->control || mst_fabric_connect(node->host->fabric, us.host->address, MST_COORDINATOR_PORT, MST_ROLE_CONTROL, NULL, 0,
                                            500, &control_events, node, &node->control, &why) < 0)
        return;
}

static void patch(void *to, size_t bytes, size_t offset, const uint8_t *piece, size_t len)
{
    offset %= bytes;
    memcpy((uint8_t *)to + offset, piece, len < bytes - offset ? len : bytes - offset);
}

static void slot_change(struct node *node, unsigned what, size_t offset, const uint8_t *piece, size_t len)
{
    unsigned index = (unsigned)offset >> 8 & 3;
    struct mst_vm_entry *entry = &node->status.vms[index];
    uint64_t epoch = offset >> 10 & 15;
    struct mst_vm_slot slot = {.run_state = MST_RUN_RUNNING, .ram_bytes = 1u << 20, .save_bytes = 4096};
    struct mst_save_record record = {.seq = 1, .source = MST_SAVE_RAM, .page_bytes = MST_PAGE_BYTES, .ram_bytes = 1u << 20};
    struct mst_pub_head head;

    if (what == INFO) {
        snprintf(slot.vm, sizeof(slot.vm), "v%u", index);
        (void)mst_pub_read(entry->info, &head, &slot, sizeof(slot));
        patch(&slot, sizeof(slot), offset & 0xff, piece, len);
        mst_pub_write(entry->info, epoch, node->instance, &slot, sizeof(slot));
    } else {
        (void)mst_pub_read(entry->save, &head, &record, sizeof(record));
        patch(&record, sizeof(record), offset & 0xff, piece, len);
        mst_pub_write(entry->save, epoch, node->instance, &record, sizeof(record));
    }
}

static void change(struct node *node, unsigned what, size_t offset, const uint8_t *piece, size_t len)
{
    struct mst_beat_line beat = node->status.beat;
    struct mst_node_status body = {.node_id = 1, .vcpus = 4, .memory_bytes = 256u << 20};

    switch (what % MEMORIES) {
    case BEAT:
        beat.keeper_beat++;
        beat.agent_beat++;
        beat.instance = node->instance;
        beat.agent_state = MST_AGENT_UP;
        patch(&beat, sizeof(beat), offset, piece, len);
        mst_beat_write(&node->status.beat, &beat);
        break;
    case INFO:
    case SAVE:
        slot_change(node, what % MEMORIES, offset, piece, len);
        break;
    case STATUS:
        patch(&body, sizeof(body), offset, piece, len);
        mst_pub_write(node->status.node, 0, node->instance, &body, sizeof(body));
        break;
    default:
        patch(&node->status, sizeof(node->status), offset * 2, piece, len);
    }
}

/* --- the operator --- */

static void sock_message(struct mst_sock *sock, const mst_envelope *env, void *arg)
{
    (void)sock, (void)arg;
    FUZZ_CHECK(env->body_case != MAINSTAY__ENVELOPE__BODY__NOT_SET && env->has_reply_to);
}

static void sock_closed(struct mst_sock *sock, int err, const struct mst_why *why, void *arg)
{
    (void)err, (void)why, (void)arg;
    if (us.sock == sock)
        us.sock = NULL;
}

static void operator_comes(void *arg)
{
    static const struct mst_sock_events events = {sock_message, sock_closed};
    struct mst_why why;

    (void)arg;
    if (us.sock || mst_sock_connect(NULL, "coordinator.sock", &events, NULL, &us.sock, &why) < 0)
        return;
}

static void operator_goes(void *arg)
{
    (void)arg;
    if (us.sock)
        mst_sock_close(us.sock);
    us.sock = NULL;
}

/* --- saying --- */

struct said {
    struct mst_link *link;
    struct mst_sock *sock;
    const mst_envelope *env;
    const uint8_t *frame;
    size_t len;
};

static void say(void *arg)
{
    struct said *said = arg;

    if (said->sock)
        (void)mst_sock_send(said->sock, said->env);
    else
        (void)mst_link_send(said->link, said->frame, said->len);
}

static void fix(mst_envelope *env, struct node *node, unsigned how)
{
    unsigned leg = how & LEG ? 1 : 0;

    if (how & FIX_REPLY) {
        env->has_reply_to = 1;
        env->reply_to = node->asked;
    }
    if (how & FIX_INSTANCE) {
        env->has_instance = 1;
        env->instance = node->instance;
        if (env->body_case == MAINSTAY__ENVELOPE__BODY_HELLO)
            env->hello->instance = node->instance;
        else if (env->body_case == MAINSTAY__ENVELOPE__BODY_KEYS)
            env->keys->instance = node->instance;
    }
    if (how & FIX_INSTANCE && env->body_case == MAINSTAY__ENVELOPE__BODY_MANAGE_ANSWER) {
        struct mst_beat_line beat = node->status.beat, whole;

        beat.instance = env->manage_answer->instance = node->instance;
        mst_beat_write(&whole, &beat);
        memcpy(env->manage_answer->beat.data, &whole, sizeof(whole));
    }
    if (!(how & FIX_KEYS) || env->body_case != MAINSTAY__ENVELOPE__BODY_KEYS || !node->leg[leg] || !node->status_region[leg])
        return;
    mst_region_key(node->status_region[leg], &env->keys->status->addr, &env->keys->status->rkey);
    if (env->keys->grant)
        mst_region_key(node->grant_region[leg], &env->keys->grant->addr, &env->keys->grant->rkey);
}

static void message(struct fuzz_in *in, struct sim_proc *proc, struct mst_link *link, struct mst_sock *sock, struct node *node,
                    unsigned how)
{
    static uint8_t frame[MST_MESSAGE_BYTES_MAX];
    struct said said = {.link = link, .sock = sock, .frame = frame};
    struct mst_why why;
    mst_envelope *env;
    size_t len;
    const uint8_t *piece = fuzz_piece(in, &len);
    int n;

    if ((!link && !sock) || len > sizeof(frame) - MST_FRAME_HEADER_BYTES)
        return;
    memcpy(frame, "MS\1\0", 4);
    for (unsigned i = 0; i < 4; i++)
        frame[4 + i] = (uint8_t)(len >> 8 * i);
    memcpy(frame + MST_FRAME_HEADER_BYTES, piece, len);
    said.len = len + MST_FRAME_HEADER_BYTES;
    if (mst_frame_unpack(frame, said.len, &env, &why) == 0) {
        fix(env, node, how);
        n = mst_frame_pack(env, frame, sizeof(frame));
        said.env = env;
        said.len = n > 0 ? (size_t)n : said.len;
        sim_as(proc, say, &said);
        mst_envelope_free(env);
    } else if (link) {
        sim_as(proc, say, &said);
    }
}

/* Every order is carried out well. */
static void obey(struct node *node)
{
    for (unsigned i = 0; i < node->orders_count && node->control; i++) {
        const struct order *order = &node->orders[i];
        static uint8_t frame[MST_MESSAGE_BYTES_MAX];
        Mainstay__Done done = MAINSTAY__DONE__INIT;
        Mainstay__StartResult start = MAINSTAY__START_RESULT__INIT;
        Mainstay__FenceResult fence = MAINSTAY__FENCE_RESULT__INIT;
        Mainstay__VmEpoch vms[4], *list[4];
        mst_envelope env = MAINSTAY__ENVELOPE__INIT;
        struct said said = {.link = node->control, .frame = frame};
        int n;

        for (unsigned k = 0; k < order->vms_count; k++) {
            mainstay__vm_epoch__init(&vms[k]);
            vms[k].vm = (char *)order->vm[k];
            vms[k].epoch = order->epoch[k];
            list[k] = &vms[k];
        }
        start.method = MAINSTAY__METHOD__METHOD_BOOTED;
        fence.instance = node->instance;
        fence.host_boot_id = (ProtobufCBinaryData){.len = 16, .data = node->host->boot_id};
        fence.n_vms = order->vms_count;
        fence.vms = list;
        done.start = order->fence ? NULL : &start;
        done.fence = order->fence ? &fence : NULL;
        env.has_reply_to = 1;
        env.reply_to = order->id;
        env.body_case = MAINSTAY__ENVELOPE__BODY_DONE;
        env.done = &done;
        n = mst_frame_pack(&env, frame, sizeof(frame));
        FUZZ_CHECK(n > 0);
        said.len = (size_t)n;
        sim_as(&node->host->keeper, say, &said);
    }
    node->orders_count = 0;
}

static void close_it(void *arg)
{
    mst_link_close(arg);
}

static void linking(struct node *node, unsigned what, unsigned leg)
{
    switch (what % LINKS) {
    case CALL:
        sim_as(&node->host->keeper, calls, node);
        break;
    case CLOSE_CONTROL:
        if (node->control)
            sim_as(&node->host->keeper, close_it, node->control);
        break;
    case CLOSE_LEG:
        if (node->leg[leg])
            sim_as(&node->host->keeper, close_it, node->leg[leg]);
        break;
    case OPERATOR_GOES:
        sim_as(&us.host->agent, operator_goes, NULL);
        break;
    case OPERATOR_COMES:
        sim_as(&us.host->agent, operator_comes, NULL);
        break;
    default: /* its cable: nobody is told */
        node->host->rdma_up = !node->host->rdma_up;
    }
}

struct fence_told {
    unsigned node;
    int err;
};

static void fence_done(void *arg)
{
    const struct fence_told *told = arg;
    struct mst_time now = app_now();

    nodes[told->node].fencing = false;
    mst_core_fence_done(us.app->core, &now, nodes[told->node].fence_token, told->err, told->err ? "no power switch" : "off");
}

static void pass(uint64_t ms)
{
    sim_run_until(K.now_ns + ms * SIM_MS);
}

/* All nodes are alive for so long. */
static void beating(uint64_t ms)
{
    for (; ms > 0; ms -= ms < 100 ? ms : 100) {
        for (unsigned i = 0; i < NODES; i++)
            change(&nodes[i], BEAT, 0, (const uint8_t *)"", 0);
        pass(ms < 100 ? ms : 100);
    }
}

static void step(struct fuzz_in *in)
{
    unsigned what = fuzz_u8(in) % OPS, how = fuzz_u8(in);
    struct node *node = &nodes[(how & NODE_MASK) % NODES];
    struct fence_told told = {(unsigned)(node - nodes), how & 0x80 ? -EIO : 0};
    size_t len, offset;
    const uint8_t *piece;

    switch (what) {
    case NODE:
        message(in, &node->host->keeper, node->control, NULL, node, how);
        break;
    case KEYS:
        message(in, &node->host->keeper, node->leg[how & LEG ? 1 : 0], NULL, node, how);
        break;
    case MEMORY:
        offset = fuzz_u16(in);
        piece = fuzz_piece(in, &len);
        change(node, how >> 2, offset, piece, len);
        break;
    case OPERATOR:
        message(in, &us.host->agent, NULL, us.sock, node, how);
        break;
    case OBEY:
        obey(node);
        break;
    case TIME:
        if (how & 0x80)
            pass(fuzz_u16(in) % 10000);
        else
            beating(how * 20);
        break;
    case LINK:
        linking(node, how >> 3, how >> 2 & 1);
        break;
    case FENCE:
        if (node->fencing)
            sim_as(&us.host->coord, fence_done, &told);
        break;
    case STORE:
        us.store_err = how & 1 ? -ENOSPC : 0;
        break;
    case MANAGE:
        message(in, &node->host->keeper, NULL, node->manage, node, how);
        break;
    default:
        life_new(node);
    }
    pass(3);
}

static void begin(void)
{
    static const struct sim_conf conf = {.nodes = NODES, .coords = 1, .watch_interval_ms = 50};
    struct sim_task *task;

    sim_begin(1, getenv("MST_FUZZ_STORY") ? stdout : NULL);
    sim_world_new(&conf);
    memset(&us, 0, sizeof(us));
    us.host = &W->hosts[NODES];
    for (unsigned i = 0; i < NODES; i++) {
        nodes[i] = (struct node){.host = &W->hosts[i]};
        life_new(&nodes[i]);
        sim_proc_start(&nodes[i].host->keeper);
        sim_as(&nodes[i].host->keeper, listens, &nodes[i]);
    }
    task = sim_keep(sizeof(*task)); /* the operator's process */
    task->alive = task->is_agent = true;
    us.host->tasks = task;
    sim_proc_start(&us.host->coord);
    sim_proc_start(&us.host->agent);
    sim_as(&us.host->coord, boot, NULL);
    sim_as(&us.host->agent, operator_comes, NULL);
    pass(20);
    for (unsigned i = 0; i < NODES; i++)
        sim_as(&nodes[i].host->keeper, calls, &nodes[i]);
    pass(5);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};

    begin();
    while (in.left > 0)
        step(&in);
    pass(100);
    sim_world_free();
    sim_end();
    return 0;
}

/* --- seeds: how a cluster lives --- */

static struct fuzz_out out;

static void put(unsigned who, unsigned how, mst_envelope *env)
{
    uint8_t frame[MST_MESSAGE_BYTES_MAX];
    int n = mst_frame_pack(env, frame, sizeof(frame));

    FUZZ_CHECK(n > 0);
    fuzz_put(&out, who, 1);
    fuzz_put(&out, how, 1);
    fuzz_put_piece(&out, frame + MST_FRAME_HEADER_BYTES, (size_t)n - MST_FRAME_HEADER_BYTES);
}

#define SAY(who, how, case_, member_, ...)                                                                                       \
    do {                                                                                                                         \
        mst_envelope env_ = MAINSTAY__ENVELOPE__INIT;                                                                            \
        env_.has_id = (who) == OPERATOR;                                                                                         \
        env_.id = 7;                                                                                                             \
        env_.body_case = MAINSTAY__ENVELOPE__BODY_##case_;                                                                       \
        env_.member_ = __VA_ARGS__;                                                                                              \
        put(who, how, &env_);                                                                                                    \
    } while (0)

static void op(unsigned what, unsigned how)
{
    fuzz_put(&out, what, 1);
    fuzz_put(&out, how, 1);
}

static void memory_op(unsigned node, unsigned what, unsigned offset, const void *piece, size_t len)
{
    op(MEMORY, node | what << 2);
    fuzz_put(&out, offset, 2);
    fuzz_put_piece(&out, piece, len);
}

static void joins(unsigned node)
{
    static char name[] = "n1", address[] = "10.9.0.1";
    uint8_t boot[16] = {0};
    Mainstay__Hello hello = MAINSTAY__HELLO__INIT;
    Mainstay__Region status = MAINSTAY__REGION__INIT, grant = MAINSTAY__REGION__INIT;
    Mainstay__Keys keys = MAINSTAY__KEYS__INIT;
    Mainstay__HeldVm held = MAINSTAY__HELD_VM__INIT, *list[] = {&held};

    name[1] = address[7] = (char)('1' + node);
    boot[0] = (uint8_t)(node + 1);
    boot[1] = 1;
    held.vm = (char *)"v1";
    held.epoch = 1;
    held.run_state = MST_RUN_FENCED;
    hello.protocol_version = MST_PROTOCOL_VERSION;
    hello.cluster = (char *)"sim";
    hello.node = name;
    hello.node_id = node + 1;
    hello.host_boot_id = (ProtobufCBinaryData){.len = sizeof(boot), .data = boot};
    hello.address = address;
    hello.port = MST_NODE_PORT;
    hello.memory_mib = 256;
    hello.vcpus = 4;
    hello.has_earlier_vms_dead = hello.earlier_vms_dead = 1;
    hello.n_held = node == 2;
    hello.held = list;
    SAY(NODE, node | FIX_INSTANCE, HELLO, hello, &hello);
    op(TIME, 5);
    status.bytes = sizeof(struct mst_status_area);
    grant.bytes = sizeof(struct mst_grant_area);
    keys.status = &status;
    keys.grant = &grant;
    SAY(KEYS, node | FIX_INSTANCE | FIX_KEYS, KEYS, keys, &keys);
    SAY(KEYS, node | FIX_INSTANCE | FIX_KEYS | LEG, KEYS, keys, &keys);
    memory_op(node, STATUS, 0, "", 0);
}

static void cluster(void)
{
    Mainstay__VmDefinition def = MAINSTAY__VM_DEFINITION__INIT;
    Mainstay__VmNetwork network = MAINSTAY__VM_NETWORK__INIT;
    Mainstay__VmDefine define = MAINSTAY__VM_DEFINE__INIT;
    Mainstay__VmStart start = MAINSTAY__VM_START__INIT;

    out.len = 0;
    for (unsigned i = 0; i < NODES; i++)
        joins(i);
    op(TIME, 20);
    def.name = start.vm = (char *)"v1";
    def.memory_mib = 1;
    def.boot_kernel = (char *)"/k";
    network.bridge = (char *)"mainstay0";
    network.mac = (char *)"52:54:00:12:34:56";
    def.network = &network;
    define.definition = &def;
    start.node = (char *)"n1";
    SAY(OPERATOR, 0, VM_DEFINE, vm_define, &define);
    SAY(OPERATOR, 0, VM_START, vm_start, &start);
    op(TIME, 10);
    op(OBEY, 0);
    memory_op(0, INFO, 1u << 8 | 1u << 10, "v1", 3);
    op(TIME, 20);
}

static void query(void)
{
    Mainstay__Query body = MAINSTAY__QUERY__INIT;

    for (unsigned what = 0; what <= MAINSTAY__WHAT__WHAT_RECOVERIES; what++) {
        body.what = (Mainstay__What)what;
        SAY(OPERATOR, 0, QUERY, query, &body);
    }
}

static void done(const char *name)
{
    op(OBEY, 0);
    op(OBEY, 1);
    op(OBEY, 2);
    op(TIME, 30);
    query();
    op(TIME, 1);
    fuzz_seed(name, out.bytes, out.len);
}

static void seed_consoles(void)
{
    Mainstay__ConsoleRequest request = MAINSTAY__CONSOLE_REQUEST__INIT;
    Mainstay__ConsoleData data = MAINSTAY__CONSOLE_DATA__INIT;
    Mainstay__Done end = MAINSTAY__DONE__INIT;

    cluster();
    request.vm = data.vm = (char *)"v1";
    SAY(OPERATOR, 0, CONSOLE_REQUEST, console_request, &request);
    request.has_follow = request.follow = request.has_from_start = request.from_start = 1;
    SAY(OPERATOR, 0, CONSOLE_REQUEST, console_request, &request);
    data.epoch = 1;
    data.data = (ProtobufCBinaryData){.len = 5, .data = (uint8_t *)"hello"};
    SAY(NODE, 0, CONSOLE_DATA, console_data, &data);
    data.offset = 3;
    SAY(NODE, 0, CONSOLE_DATA, console_data, &data);
    SAY(NODE, FIX_REPLY, DONE, done, &end);
    op(LINK, OPERATOR_GOES << 3);
    op(LINK, OPERATOR_COMES << 3);
    done("consoles");
}

static void seed_requests(void)
{
    Mainstay__VmStop stop = MAINSTAY__VM_STOP__INIT;
    Mainstay__VmUndefine undefine = MAINSTAY__VM_UNDEFINE__INIT;
    Mainstay__NodeDrain drain = MAINSTAY__NODE_DRAIN__INIT;
    Mainstay__NodeConfirmDead dead = MAINSTAY__NODE_CONFIRM_DEAD__INIT;
    Mainstay__ClusterResume resume = MAINSTAY__CLUSTER_RESUME__INIT;
    Mainstay__FaultReport report = MAINSTAY__FAULT_REPORT__INIT;

    cluster();
    stop.vm = undefine.vm = (char *)"v1";
    drain.node = dead.node = report.node = (char *)"n1";
    report.kind = MAINSTAY__FAULT_KIND__FAULT_OPERATOR;
    SAY(OPERATOR, 0, NODE_DRAIN, node_drain, &drain);
    op(TIME, 10);
    op(OBEY, 0);
    drain.has_undo = drain.undo = 1;
    SAY(OPERATOR, 0, NODE_DRAIN, node_drain, &drain);
    SAY(OPERATOR, 0, FAULT_REPORT, fault_report, &report);
    SAY(OPERATOR, 0, VM_STOP, vm_stop, &stop);
    op(TIME, 10);
    op(OBEY, 0);
    SAY(OPERATOR, 0, VM_UNDEFINE, vm_undefine, &undefine);
    SAY(OPERATOR, 0, NODE_CONFIRM_DEAD, node_confirm_dead, &dead);
    SAY(OPERATOR, 0, CLUSTER_RESUME, cluster_resume, &resume);
    done("requests");
}

static void seed_reports(void)
{
    Mainstay__FaultReport report = MAINSTAY__FAULT_REPORT__INIT;
    Mainstay__VmEvent event = MAINSTAY__VM_EVENT__INIT;
    static const uint32_t dead = MST_RUN_DEAD;

    cluster();
    report.kind = MAINSTAY__FAULT_KIND__FAULT_VM_EXITED;
    report.node = (char *)"n1";
    report.vm = event.vm = (char *)"v1";
    report.has_epoch = 1;
    report.epoch = event.epoch = 1;
    event.run_state = MST_RUN_DEAD;
    memory_op(0, INFO, offsetof(struct mst_vm_slot, run_state) | 1u << 8 | 1u << 10, &dead, sizeof(dead));
    SAY(NODE, 0, VM_EVENT, vm_event, &event);
    SAY(NODE, 0, FAULT_REPORT, fault_report, &report);
    op(TIME, 10);
    op(OBEY, 0);
    op(TIME, 10);
    op(OBEY, 0);
    done("vm-fault");
}

static void seed_degraded(void)
{
    Mainstay__ManageAnswer answer = MAINSTAY__MANAGE_ANSWER__INIT;
    uint8_t boot[16] = {1, 1}, beat[MST_LINE_BYTES] = {0};

    cluster();
    answer.host_boot_id = (ProtobufCBinaryData){.len = sizeof(boot), .data = boot};
    answer.beat = (ProtobufCBinaryData){.len = sizeof(beat), .data = beat};
    answer.cluster = (char *)"sim";
    answer.node = (char *)"n1";
    op(LINK, 0 | CLOSE_CONTROL << 3);
    op(LINK, 0 | CLOSE_LEG << 3);
    op(LINK, 4 | CLOSE_LEG << 3);
    op(LINK, 0 | CARD << 3);
    for (unsigned i = 0; i < 12; i++) {
        memory_op(0, BEAT, 0, "", 0);
        SAY(MANAGE, FIX_INSTANCE, MANAGE_ANSWER, manage_answer, &answer);
        op(TIME, 25);
    }
    SAY(MANAGE, 0, MANAGE_ANSWER, manage_answer, &answer); /* another instance, and a line that does not check */
    op(TIME, 200);
    done("degraded");
}

void fuzz_seeds(void)
{
    cluster();
    done("runs");
    seed_consoles();
    seed_requests();
    seed_reports();
    seed_degraded();
    cluster();
    memory_op(0, SAVE, 1u << 8 | 1u << 10, "", 0);
    memory_op(0, RAW, 128, "\1", 1);
    op(TIME, 20);
    op(LINK, 0 | CLOSE_CONTROL << 3);
    op(LINK, 0 | CLOSE_LEG << 3);
    op(LINK, 4 | CLOSE_LEG << 3);
    op(LINK, 0 | CARD << 3);
    op(TIME, 120);
    op(TIME, 120);
    op(TIME, 120);
    op(FENCE, 0);
    op(TIME, 30);
    op(OBEY, 1);
    op(OBEY, 2);
    done("node-lost");
    cluster();
    op(LINK, 0 | CLOSE_CONTROL << 3);
    op(LINK, 0 | CLOSE_LEG << 3);
    op(LINK, 4 | CLOSE_LEG << 3);
    op(NEW_LIFE, 0);
    op(STORE, 1);
    op(TIME, 10);
    op(STORE, 0);
    op(LINK, 0 | CALL << 3);
    joins(0);
    done("returns");
}
