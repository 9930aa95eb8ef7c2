#include "node/keeper/keeper.h"

#include "base/log.h"
#include "base/mutant.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Links that others opened to us. Each has its own PD, so every area is registered once per link: pulling works the moment a fault is seen.
 *
 * Registering pins memory and takes about 80 ms per GB. Small regions are registered here, one per turn of the loop (an idle handle that is active
 * only while something waits), so that beats and orders get in between; large ones by a worker thread, one at a time per link. */

#define WATCH_LINKS_PER_COORDINATOR 4u
#define LINKS_MAX                   (WATCH_LINKS_PER_COORDINATOR * 8u + MST_NODES_MAX)

struct served {
    struct mst_server *server;
    struct mst_link *link; /* NULL: free place */
    uint64_t number;       /* grows with every link */
    bool closing;          /* by us: it counts no more */
    bool open, keys_wanted;
    bool registering;  /* a worker is at it, for... */
    struct mst_vm *vm; /* held by vm->users */
    unsigned kind;
    struct mst_region *status, *grant;
    struct {
        struct mst_region *region[MST_AREA_KINDS];
        bool wanted;
    } vms[MST_VMS_PER_NODE];
};

struct mst_server {
    struct mst_keeper *keeper;
    uv_idle_t idle;
    uint64_t numbers; /* of links, given so far */
    char refused[64]; /* whom, last: it asks again every half second, and one line is enough */
    struct served links[LINKS_MAX];
};

static void on_idle(uv_idle_t *idle);

static bool is_pull(const struct served *s)
{
    return mst_link_role(s->link) == MST_ROLE_PULL;
}

/* --- Keys --- */

static void region_fill(Mainstay__Region *out, const struct mst_region *region, uint64_t bytes)
{
    mainstay__region__init(out);
    mst_region_key(region, &out->addr, &out->rkey);
    out->bytes = bytes;
}

struct keys_buffer {
    Mainstay__Keys keys;
    Mainstay__Region status, grant;
    Mainstay__VmKeys vms[MST_VMS_PER_NODE], *list[MST_VMS_PER_NODE];
    Mainstay__Region regions[MST_VMS_PER_NODE][MST_AREA_KINDS];
};

static void vm_keys_fill(struct keys_buffer *b, const struct served *s, struct mst_vm *vm)
{
    Mainstay__VmKeys *out = &b->vms[vm->index];
    Mainstay__Region **to[MST_AREA_KINDS] = {&out->ram, &out->save, &out->shadow, &out->delta};
    unsigned kind;

    mainstay__vm_keys__init(out);
    out->vm = vm->name;
    out->epoch = vm->epoch;
    out->slot = vm->index;
    for (kind = 0; kind < MST_AREA_KINDS; kind++) {
        const struct mst_region *region = s->vms[vm->index].region[kind];

        if (!region)
            continue;
        region_fill(&b->regions[vm->index][kind], region, vm->areas.area[kind].bytes);
        *to[kind] = &b->regions[vm->index][kind];
    }
    b->list[b->keys.n_vms++] = out;
}

static void keys_send(struct served *s)
{
    struct mst_keeper *k = s->server->keeper;
    struct keys_buffer *b = calloc(1, sizeof(*b));
    mst_envelope env = MST_ENVELOPE(KEYS, keys, NULL);
    unsigned i;
    int n;

    if (!b) {
        mst_link_close(s->link); /* it would wait for Keys for ever */
        return;
    }
    mainstay__keys__init(&b->keys);
    env.keys = &b->keys;
    b->keys.instance = k->instance;
    region_fill(&b->status, s->status, sizeof(*k->status));
    b->keys.status = &b->status;
    if (s->grant) {
        region_fill(&b->grant, s->grant, sizeof(*k->grants));
        b->keys.grant = &b->grant;
    }
    b->keys.vms = b->list;
    for (i = 0; i < MST_VMS_PER_NODE; i++)
        if (s->vms[i].region[MST_AREA_SAVE] && !s->vms[i].wanted)
            vm_keys_fill(b, s, &k->vms[i]);
    n = mst_frame_pack(&env, k->frame, sizeof(k->frame));
    if (n > 0)
        n = mst_link_send(s->link, k->frame, (size_t)n);
    if (n < 0) {
        log_warning("peer=%s cannot send Keys, closing the link: %s", mst_link_address(s->link), strerror(-n));
        mst_link_close(s->link);
    }
    s->keys_wanted = false;
    free(b);
}

/* --- registering --- */

static void registered(void *arg, struct mst_region *region, int err, const struct mst_why *why)
{
    struct served *s = arg;
    struct mst_vm *vm = s->vm;

    s->registering = false;
    s->vm = NULL;
    if (err < 0 && err != -ECANCELED) {
        log_error("vm=%s cannot be registered for %s, so it cannot be pulled from there: %s", vm->name, mst_link_address(s->link),
                  why->text[0] ? why->text : strerror(-err));
        s->vms[vm->index].wanted = false;
        s->keys_wanted = true;
    }
    if (vm->drop_pending)
        mst_region_free(region);
    else
        s->vms[vm->index].region[s->kind] = region;
    mst_slot_release(vm);
    uv_idle_start(&s->server->idle, on_idle);
}

static int register_later(struct served *s, struct mst_vm *vm, unsigned kind, struct mst_why *why)
{
    int r = mst_region_new_async(s->link, vm->areas.area[kind].addr, vm->areas.area[kind].bytes, MST_ACCESS_REMOTE_READ,
                                 registered, s, why);

    if (r < 0)
        return r;
    s->registering = true;
    s->vm = vm;
    s->kind = kind;
    vm->users++;
    return 1;
}

/* Registers the next region of a VM on this link. 1 one was registered, or a worker is at it; 0 none is missing; -errno. */
static int vm_step(struct served *s, struct mst_vm *vm, struct mst_why *why)
{
    unsigned kind;
    int r;

    for (kind = 0; kind < MST_AREA_KINDS; kind++) {
        if (!vm->areas.area[kind].addr || s->vms[vm->index].region[kind])
            continue;
        if (vm->areas.area[kind].bytes >= MST_REGISTER_LATER_BYTES)
            return register_later(s, vm, kind, why);
        r = mst_region_new(s->link, vm->areas.area[kind].addr, vm->areas.area[kind].bytes, MST_ACCESS_REMOTE_READ,
                           &s->vms[vm->index].region[kind], why);
        return r < 0 ? r : 1;
    }
    return 0;
}

/* One registration, or one Keys. True when something was done. */
static bool link_step(struct served *s)
{
    struct mst_keeper *k = s->server->keeper;
    struct mst_why why = {0};
    unsigned i;
    int r;

    for (i = 0; i < MST_VMS_PER_NODE; i++) {
        if (!s->vms[i].wanted)
            continue;
        r = vm_step(s, &k->vms[i], &why);
        if (r > 0)
            return true;
        s->vms[i].wanted = false;
        s->keys_wanted = true;
        if (r < 0)
            log_error("vm=%s cannot be registered for %s, so it cannot be pulled from there: %s", k->vms[i].name,
                      mst_link_address(s->link), why.text[0] ? why.text : strerror(-r));
    }
    if (!s->keys_wanted)
        return false;
    keys_send(s);
    return true;
}

static void on_idle(uv_idle_t *idle)
{
    struct mst_server *server = idle->data;
    unsigned i;

    for (i = 0; i < LINKS_MAX; i++)
        if (server->links[i].link && server->links[i].open && !server->links[i].registering && link_step(&server->links[i]))
            return;
    uv_idle_stop(idle);
}

static void vm_want(struct served *s, const struct mst_vm *vm)
{
    if (!s->link || !s->open || !is_pull(s))
        return;
    s->vms[vm->index].wanted = true;
    uv_idle_start(&s->server->idle, on_idle);
}

void mst_server_vm_ready(struct mst_vm *vm)
{
    struct mst_server *server = vm->keeper->server;
    unsigned i;

    for (i = 0; server && i < LINKS_MAX; i++)
        vm_want(&server->links[i], vm);
}

void mst_server_vm_gone(struct mst_vm *vm)
{
    struct mst_server *server = vm->keeper->server;
    unsigned i, kind;

    for (i = 0; server && i < LINKS_MAX; i++) {
        struct served *s = &server->links[i];

        for (kind = 0; kind < MST_AREA_KINDS; kind++) {
            if (!s->vms[vm->index].region[kind])
                continue;
            if (!MST_MUTANT(34))
                mst_region_free(s->vms[vm->index].region[kind]);
            s->vms[vm->index].region[kind] = NULL;
            s->keys_wanted = true;
        }
        s->vms[vm->index].wanted = false;
        if (s->keys_wanted && s->open)
            uv_idle_start(&server->idle, on_idle);
    }
}

/* --- links --- */

static void on_open(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct served *s = arg;
    struct mst_keeper *k = s->server->keeper;
    struct mst_why reason = {0};
    unsigned i;
    int r;

    if (err < 0) {
        log_notice("peer=%s its link did not open: %s", mst_link_address(link), why && why->text[0] ? why->text : strerror(-err));
        s->link = NULL;
        return;
    }
    r = mst_region_new(link, k->status, sizeof(*k->status), MST_ACCESS_REMOTE_READ, &s->status, &reason);
    if (r == 0 && !is_pull(s))
        r = mst_region_new(link, k->grants, sizeof(*k->grants), MST_ACCESS_REMOTE_WRITE, &s->grant, &reason);
    if (r < 0) {
        log_error("peer=%s status area cannot be registered, closing the link: %s", mst_link_address(link),
                  reason.text[0] ? reason.text : strerror(-r));
        mst_link_close(link);
        return;
    }
    log_info("peer=%s %s link open", mst_link_address(link), is_pull(s) ? "pull" : "watch");
    s->open = true;
    keys_send(s); /* what there is at once; VMs follow as they are registered */
    for (i = 0; i < MST_VMS_PER_NODE; i++)
        if (k->vms[i].used && k->vms[i].areas_ready && !k->vms[i].drop_pending &&
            (!k->vms[i].image || mst_images_readable(&k->vms[i])))
            vm_want(s, &k->vms[i]);
}

static void on_message(struct mst_link *link, const void *data, size_t len, void *arg)
{
    (void)data, (void)len, (void)arg;
    log_notice("peer=%s sent a message on a link that has none in this direction: closing it", mst_link_address(link));
    mst_link_close(link);
}

static void on_closed(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct served *s = arg;
    struct mst_server *server = s->server;

    log_info("peer=%s link closed: %s", mst_link_address(link), err ? (why->text[0] ? why->text : strerror(-err)) : "by us");
    *s = (struct served){.server = server}; /* its regions went with the link */
}

static const struct mst_link_events served_events = {.on_open = on_open, .on_message = on_message, .on_closed = on_closed};

static bool is_coordinator(const struct mst_keeper *k, const char *address)
{
    unsigned i;

    for (i = 0; i < k->conf->coordinators_count; i++)
        if (strcmp(k->conf->coordinators[i].address, address) == 0)
            return true;
    return false;
}

static bool is_of(const struct served *s, const struct mst_link_request *request)
{
    return s->link && !s->closing && mst_link_role(s->link) == request->role &&
           strcmp(mst_link_address(s->link), request->address) == 0;
}

/* How many links this peer has in this role; *ret_free is a free place, NULL when there is none. */
static unsigned links_of(struct mst_server *server, const struct mst_link_request *request, struct served **ret_free)
{
    unsigned i, n = 0;

    *ret_free = NULL;
    for (i = 0; i < LINKS_MAX; i++) {
        struct served *s = &server->links[i];

        if (!s->link)
            *ret_free = s;
        else if (is_of(s, request))
            n++;
    }
    return n;
}

/* A peer that opens more links than it needs has lost the ones before, even if we have not been told: those go, the oldest first. */
static void older_close(struct mst_server *server, const struct mst_link_request *request, unsigned n, unsigned keep)
{
    for (; n > keep; n--) {
        struct served *oldest = NULL;

        for (unsigned i = 0; i < LINKS_MAX; i++) {
            struct served *s = &server->links[i];

            if (is_of(s, request) && (!oldest || s->number < oldest->number))
                oldest = s;
        }
        oldest->closing = true;
        mst_link_close(oldest->link);
    }
}

static int role_check(struct mst_keeper *k, const struct mst_link_request *request, struct mst_why *why)
{
    if (request->role == MST_ROLE_WATCH && !is_coordinator(k, request->address))
        return mst_why_set(why, -EACCES, "%s is no coordinator of node %s", request->address, k->conf->node);
    if (request->role == MST_ROLE_PULL && !mst_peers_known(k, request->address))
        return mst_why_set(why, -EACCES, "%s is no peer that a coordinator named to node %s", request->address, k->conf->node);
    if (request->role != MST_ROLE_WATCH && request->role != MST_ROLE_PULL)
        return mst_why_set(why, -EACCES, "a keeper takes watch, pull and mirror links only");
    return 0;
}

int mst_server_accept(struct mst_link *link, const struct mst_link_request *request, void *arg,
                      const struct mst_link_events **ret_events, void **ret_arg, struct mst_why *why)
{
    struct mst_keeper *k = arg;
    struct served *place;
    unsigned n = 0;
    int r;

    if (request->role == MST_ROLE_MIRROR) {
        r = mst_images_accept(k, link, request, ret_events, ret_arg, why);
        if (r < 0)
            log_notice("peer=%s refused: %s", request->address, why->text);
        return r;
    }
    r = role_check(k, request, why);
    if (r == 0) {
        n = links_of(k->server, request, &place);
        if (!place)
            r = mst_why_set(why, -EBUSY, "all %u links of node %s are in use", LINKS_MAX, k->conf->node);
    }
    if (r < 0) {
        mst_log(strcmp(k->server->refused, request->address) == 0 ? MST_LOG_DEBUG : MST_LOG_NOTICE, "peer=%s refused: %s",
                request->address, why->text);
        memcpy(k->server->refused, request->address, sizeof(k->server->refused));
        return r;
    }
    older_close(k->server, request, n, request->role == MST_ROLE_PULL ? 0 : WATCH_LINKS_PER_COORDINATOR - 1);
    k->server->refused[0] = '\0';
    *place = (struct served){.server = k->server, .link = link, .number = ++k->server->numbers};
    *ret_events = &served_events;
    *ret_arg = place;
    return 0;
}

int mst_server_new(struct mst_keeper *k)
{
    struct mst_server *server = calloc(1, sizeof(*server));
    unsigned i;

    if (!server)
        return -ENOMEM;
    server->keeper = k;
    for (i = 0; i < LINKS_MAX; i++)
        server->links[i].server = server;
    uv_idle_init(k->loop, &server->idle);
    server->idle.data = server;
    k->server = server;
    return 0;
}

static void server_closed(uv_handle_t *handle)
{
    free(handle->data);
}

/* After the fabric was closed: no link is left. */
void mst_server_free(struct mst_keeper *k)
{
    if (!k->server)
        return;
    uv_close((uv_handle_t *)&k->server->idle, server_closed);
    k->server = NULL;
}
