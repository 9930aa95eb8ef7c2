#include "node/keeper/keeper.h"

#include "base/clock.h"
#include "base/log.h"
#include "node/keeper/lease.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Pull links to the other keepers. They are made when a coordinator names a peer and kept, so that a fault finds them connected and with Keys.
 * A peer that is no longer named is not connected to again, but a link to it is left alone while it lives: a node that hangs is taken off
 * the list of the joined ones at the very moment its memory is wanted. */

struct peer {
    struct mst_peers *peers;
    struct mst_keeper *keeper;
    bool used, listed;
    char node[MST_NAME_BYTES];
    uint32_t node_id;
    char address[64];
    uint16_t port;
    struct mst_link *link; /* NULL: none; retry is running when listed */
    bool open;
    mst_envelope *keys; /* NULL: none yet */
    int last_error;
    /* whether it beats, for leases: its line comes into peers->lines at its index */
    struct mst_region *line; /* of the link; NULL: not registered yet */
    bool reading;
    uint64_t beat;     /* last that was read over this link, 0: none */
    uint64_t moved_ms; /* when a READ that showed another one was finished, 0: never */
    uv_timer_t retry;
};

struct mst_peers {
    struct mst_keeper *keeper;
    unsigned closing;
    struct mst_beat_line *lines; /* one for each of the list; shared pages, because fork(2) copies pinned private ones */
    struct peer list[MST_NODES_MAX];
};
#define LINES_BYTES (MST_NODES_MAX * sizeof(struct mst_beat_line))

#define KEYS_MS 3000 /* Keys are sent when a link opens; without them by then the other end does not know that it has */

#define BEAT_READ_MS 1000 /* a peer whose memory does not answer by then has no link any more */

static void on_retry(uv_timer_t *timer);

static void keys_forget(struct peer *p)
{
    mst_envelope_free(p->keys);
    p->keys = NULL;
}

static void retry_later(struct peer *p, uint64_t ms)
{
    if (p->listed && !p->keeper->stopping)
        uv_timer_start(&p->retry, on_retry, ms, 0);
    else if (!p->listed)
        p->used = false;
}

static void failed(struct peer *p, int err, const struct mst_why *why)
{
    if (err != p->last_error)
        log_notice("node=%s no pull link: %s", p->node, why && why->text[0] ? why->text : strerror(-err));
    p->last_error = err;
    retry_later(p, MST_RETRY_MS);
}

static void on_open(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct peer *p = arg;

    (void)link;
    if (err < 0) {
        p->link = NULL;
        failed(p, err, why);
        return;
    }
    p->open = true;
    p->last_error = 0;
    uv_timer_start(&p->retry, on_retry, KEYS_MS, 0);
    log_info("node=%s pull link open", p->node);
}

static void on_message(struct mst_link *link, const void *data, size_t len, void *arg)
{
    struct peer *p = arg;
    struct mst_why why = {0};
    mst_envelope *env;
    int r;

    r = mst_frame_unpack(data, len, &env, &why);
    if (r < 0) {
        log_warning("node=%s sent what is no message, closing the link: %s", p->node, why.text);
        mst_link_close(link);
        return;
    }
    if (env->body_case != MAINSTAY__ENVELOPE__BODY_KEYS) {
        log_notice("node=%s sent message %d on a pull link: ignored", p->node, (int)env->body_case);
        mst_envelope_free(env);
        return;
    }
    mst_log(p->keys ? MST_LOG_DEBUG : MST_LOG_INFO, "node=%s instance=%016" PRIx64 " its keys, of %zu VMs", p->node,
            env->keys->instance, env->keys->n_vms);
    keys_forget(p);
    p->keys = env;
    uv_timer_stop(&p->retry);
    mst_pulls_wake(p->keeper);
}

static void on_closed(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct peer *p = arg;

    mst_pulls_link_gone(p->keeper, link);
    log_info("node=%s pull link closed: %s", p->node, err ? (why->text[0] ? why->text : strerror(-err)) : "by us");
    p->link = NULL;
    p->open = false;
    p->line = NULL; /* gone with the link, and its READs have ended */
    p->beat = 0;
    keys_forget(p);
    retry_later(p, MST_RETRY_MS);
}

static const struct mst_link_events peer_events = {.on_open = on_open, .on_message = on_message, .on_closed = on_closed};

static void on_retry(uv_timer_t *timer)
{
    struct peer *p = timer->data;
    struct mst_keeper *k = p->keeper;
    struct mst_why why = {0};
    int r;

    if (p->open && !p->keys) {
        log_notice("node=%s its keys have not come within %d ms: the link is made anew", p->node, KEYS_MS);
        mst_link_close(p->link);
        return;
    }
    if (p->link || !k->fabric)
        return; /* device_up tries again */
    r = mst_fabric_connect(k->fabric, p->address, p->port, MST_ROLE_PULL, NULL, 0, MST_CONNECT_DEADLINE_MS, &peer_events, p,
                           &p->link, &why);
    if (r < 0) {
        p->link = NULL;
        failed(p, r, &why);
    }
}

void mst_peers_device_up(struct mst_keeper *k)
{
    unsigned i;

    for (i = 0; k->peers && i < MST_NODES_MAX; i++)
        if (k->peers->list[i].used && k->peers->list[i].listed && !k->peers->list[i].link)
            uv_timer_start(&k->peers->list[i].retry, on_retry, 0, 0);
}

bool mst_peers_known(const struct mst_keeper *k, const char *address)
{
    unsigned i;

    for (i = 0; i < MST_NODES_MAX; i++)
        if (k->peers->list[i].used && strcmp(k->peers->list[i].address, address) == 0)
            return true;
    return false;
}

static struct peer *place_of(struct mst_peers *peers, uint32_t node_id)
{
    struct peer *free_place = NULL;
    unsigned i;

    for (i = 0; i < MST_NODES_MAX; i++) {
        if (peers->list[i].used && peers->list[i].node_id == node_id)
            return &peers->list[i];
        if (!peers->list[i].used && !free_place)
            free_place = &peers->list[i];
    }
    return free_place;
}

static void peer_take(struct mst_peers *peers, const Mainstay__Peer *one)
{
    struct peer *p = place_of(peers, one->node_id);
    bool fresh, moved, replaced;

    if (!p || !one->port || one->port > UINT16_MAX || strlen(one->address) >= sizeof(p->address)) {
        log_warning("node=%s not taken as a peer: no room, or no usable address", one->node);
        return;
    }
    fresh = !p->used;
    if (fresh)
        p->beat = p->moved_ms = 0;
    p->used = p->listed = true;
    moved = !fresh && (strcmp(p->address, one->address) != 0 || p->port != one->port);
    /* A machine that lost power says no goodbye, and an idle link notices nothing: it may lead to a keeper that is gone. */
    replaced = p->keys && p->keys->keys->instance != one->instance;
    if (p->link && (moved || replaced))
        mst_link_close(p->link); /* on_closed connects again */
    p->node_id = one->node_id;
    p->port = (uint16_t)one->port;
    snprintf(p->node, sizeof(p->node), "%s", one->node);
    snprintf(p->address, sizeof(p->address), "%s", one->address);
    if (!p->link && !uv_is_active((uv_handle_t *)&p->retry))
        uv_timer_start(&p->retry, on_retry, 0, 0);
}

void mst_peers_list(struct mst_keeper *k, const Mainstay__Peers *list)
{
    struct mst_peers *peers = k->peers;
    size_t n;
    unsigned i;

    for (i = 0; i < MST_NODES_MAX; i++)
        peers->list[i].listed = false;
    for (n = 0; n < list->n_peers; n++)
        if (list->peers[n]->node_id != k->conf->id)
            peer_take(peers, list->peers[n]);
    for (i = 0; i < MST_NODES_MAX; i++) {
        struct peer *p = &peers->list[i];

        if (!p->used || p->listed)
            continue;
        uv_timer_stop(&p->retry);
        if (!p->link)
            p->used = false;
    }
    log_info("%zu nodes are joined", list->n_peers);
}

/* --- does it beat? --- */

static void beat_read(void *arg, int err)
{
    struct peer *p = arg;
    struct mst_beat_line line;

    p->reading = false;
    if (err < 0)
        return;
    memcpy(&line, &p->peers->lines[p - p->peers->list], sizeof(line));
    if (mst_beat_check(&line) < 0 || !p->keys || line.instance != p->keys->keys->instance)
        return;
    /* That its memory answers says nothing: only what moves is alive. */
    if (p->beat != 0 && line.keeper_beat != p->beat)
        p->moved_ms = mst_now_ms();
    p->beat = line.keeper_beat;
}

static void beat_ask(struct peer *p)
{
    const Mainstay__Region *status = p->keys->keys->status;
    size_t index = (size_t)(p - p->peers->list);
    int r = 0;

    if (status->bytes < sizeof(struct mst_status_area))
        return;
    if (!p->line)
        r = mst_region_new(p->link, &p->peers->lines[index], sizeof(p->peers->lines[0]), MST_ACCESS_LOCAL, &p->line, NULL);
    if (r == 0)
        r = mst_link_read(p->link, p->line, 0, status->addr + offsetof(struct mst_status_area, beat), status->rkey,
                          sizeof(struct mst_beat_line), BEAT_READ_MS, beat_read, p);
    p->reading = r == 0;
}

void mst_peers_read(struct mst_keeper *k)
{
    for (unsigned i = 0; k->peers && i < MST_NODES_MAX; i++) {
        struct peer *p = &k->peers->list[i];

        if (p->used && p->listed && p->open && p->keys && !p->reading)
            beat_ask(p);
    }
}

void mst_peers_seen(const struct mst_keeper *k, uint64_t now_ms, unsigned *ret_listed, unsigned *ret_moving)
{
    *ret_listed = *ret_moving = 0;
    for (unsigned i = 0; k->peers && i < MST_NODES_MAX; i++) {
        const struct peer *p = &k->peers->list[i];

        if (!p->used || !p->listed)
            continue;
        ++*ret_listed;
        *ret_moving += p->moved_ms != 0 && now_ms - p->moved_ms <= MST_LEASE_PEER_MS;
    }
}

void mst_peers_forget_beats(struct mst_keeper *k)
{
    for (unsigned i = 0; k->peers && i < MST_NODES_MAX; i++)
        k->peers->list[i].beat = k->peers->list[i].moved_ms = 0;
}

/* --- Keys as a source --- */

static int region_take(const Mainstay__Region *region, unsigned kind, struct mst_peer_source *source)
{
    if (!region)
        return 0;
    if (!region->bytes || region->addr > UINT64_MAX - region->bytes)
        return -EBADMSG;
    source->area[kind].addr = region->addr;
    source->area[kind].bytes = region->bytes;
    source->area[kind].rkey = region->rkey;
    return 0;
}

static int vm_take(const Mainstay__VmKeys *vm, struct mst_peer_source *source)
{
    const Mainstay__Region *regions[MST_AREA_KINDS] = {vm->ram, vm->save, vm->shadow, vm->delta};
    unsigned kind;
    int r = vm->slot < MST_VMS_PER_NODE ? 0 : -EBADMSG;

    source->slot = vm->slot;
    for (kind = 0; kind < MST_AREA_KINDS && r == 0; kind++)
        r = region_take(regions[kind], kind, source);
    return r;
}

static int source_fill(const struct peer *p, const char *vm, uint64_t epoch, struct mst_peer_source *source, struct mst_why *why)
{
    const Mainstay__Keys *keys = p->keys->keys;
    size_t i;
    int r;

    *source = (struct mst_peer_source){.link = p->link, .status_addr = keys->status->addr, .status_rkey = keys->status->rkey};
    if (keys->status->bytes != sizeof(struct mst_status_area))
        return mst_why_set(why, -EBADMSG, "status area of %s has %" PRIu64 " bytes", p->node, keys->status->bytes);
    for (i = 0; i < keys->n_vms; i++) {
        if (keys->vms[i]->epoch != epoch || strcmp(keys->vms[i]->vm, vm) != 0)
            continue;
        r = vm_take(keys->vms[i], source);
        return r < 0 ? mst_why_set(why, r, "Keys of %s for %s do not make sense", p->node, vm) : 0;
    }
    return mst_why_set(why, -ENOENT, "%s holds no epoch %" PRIu64 " of %s", p->node, epoch, vm);
}

int mst_peers_source(struct mst_keeper *k, uint32_t node_id, uint64_t instance, const char *vm, uint64_t epoch,
                     struct mst_peer_source *ret_source, struct mst_why *why)
{
    struct peer *p = place_of(k->peers, node_id);
    int r;

    if (!p || !p->used)
        return mst_why_set(why, -ENOTCONN, "no coordinator named a node with id %u", node_id);
    if (!p->open || !p->keys)
        return mst_why_set(why, -ENOTCONN, "no pull link to node %s", p->node);
    if (p->keys->keys->instance != instance)
        r = mst_why_set(why, -ESTALE, "keeper of %s is instance %016" PRIx64 ", the save is of %016" PRIx64, p->node,
                        p->keys->keys->instance, instance);
    else
        r = source_fill(p, vm, epoch, ret_source, why);
    /* Old Keys may be those of a dead link: that its other end went without a word shows only when something is asked over it. */
    if (r < 0 && !p->reading)
        beat_ask(p);
    return r;
}

/* --- life --- */

int mst_peers_new(struct mst_keeper *k)
{
    struct mst_peers *peers = calloc(1, sizeof(*peers));
    unsigned i;

    if (!peers)
        return -ENOMEM;
    peers->keeper = k;
    peers->lines = mmap(NULL, LINES_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (peers->lines == MAP_FAILED) {
        free(peers);
        return -ENOMEM;
    }
    for (i = 0; i < MST_NODES_MAX; i++) {
        peers->list[i].peers = peers;
        peers->list[i].keeper = k;
        uv_timer_init(k->loop, &peers->list[i].retry);
        peers->list[i].retry.data = &peers->list[i];
    }
    k->peers = peers;
    return 0;
}

static void timer_closed(uv_handle_t *handle)
{
    struct peer *p = handle->data;
    struct mst_peers *peers = p->peers;

    if (--peers->closing != 0)
        return;
    munmap(peers->lines, LINES_BYTES);
    free(peers);
}

void mst_peers_free(struct mst_keeper *k)
{
    struct mst_peers *peers = k->peers;
    unsigned i;

    if (!peers)
        return;
    k->peers = NULL;
    peers->closing = MST_NODES_MAX;
    for (i = 0; i < MST_NODES_MAX; i++) {
        keys_forget(&peers->list[i]);
        uv_close((uv_handle_t *)&peers->list[i].retry, timer_closed);
    }
}
