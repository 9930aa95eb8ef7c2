#include "rig.h"

#include "base/clock.h"
#include "base/file.h"
#include "node/keeper/cgroup.h"
#include "shm/publish.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <glob.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PORT          "17471"
#define COORDINATOR   101 /* host part of its address */
#define ORDER_WAIT_MS 20000

struct rig *rig;
static unsigned net; /* of 127.0.0.0/8, so that several runs do not meet */
static char cgroup_base[128], folder_base[64];

bool rig_can_run(void)
{
    static const char *const bases[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"};
    struct mst_why why;

    for (int i = 0; i < 2; i++) {
        snprintf(cgroup_base, sizeof(cgroup_base), "%s/mst-rig-%ld", bases[i], (long)getpid());
        net = (unsigned)getpid();
        if (mst_cgroup_make(cgroup_base, &why) == 0) {
            snprintf(folder_base, sizeof(folder_base), "/dev/shm/mst-rig-%ld-", (long)getpid());
            return rmdir(cgroup_base) == 0;
        }
        rmdir(cgroup_base);
    }
    return false;
}

/* Folders that a keeper of this rig made, by the names it gives them, and nothing else. */
static int cgroup_end(const char *path, const char *name, void *arg)
{
    (void)name, (void)arg;
    mst_cgroup_clear(path, 5000);
    mst_cgroup_remove(path);
    return 0;
}

static void node_cgroup_end(const char *path)
{
    mst_cgroup_each(path, "vm-", cgroup_end, NULL);
    mst_cgroup_each(path, "agent", cgroup_end, NULL);
    mst_cgroup_remove(path);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path) == 0 || errno == ENOENT ? 0 : -1;
}

static void folder_remove(const char *path)
{
    /* by our own name only, whatever became of the variables */
    if (strncmp(path, "/dev/shm/mst-rig-", 17) == 0)
        nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}

static void folders_remove(void)
{
    char pattern[80];
    glob_t found;

    snprintf(pattern, sizeof(pattern), "%s*", folder_base);
    if (glob(pattern, GLOB_NOSORT, NULL, &found) != 0)
        return;
    for (size_t i = 0; i < found.gl_pathc; i++)
        folder_remove(found.gl_pathv[i]);
    globfree(&found);
}

void rig_sweep(void)
{
    char text[200];

    for (unsigned i = 1; i <= RIG_NODES; i++) {
        snprintf(text, sizeof(text), "%s-n%u", cgroup_base, i);
        node_cgroup_end(text);
    }
    folders_remove();
}

const char *rig_address(unsigned host)
{
    static char text[4][20];
    static unsigned next;
    char *out = text[next++ % 4];

    snprintf(out, sizeof(text[0]), "127.%u.%u.%u", 1 + net / 250 % 250, net % 250, host);
    return out;
}

/* --- loop --- */

static void on_tick(uv_timer_t *timer)
{
    (void)timer;
}

static void timer_closed(uv_handle_t *handle)
{
    free(handle);
}

bool rig_until(bool (*check)(void *arg), void *arg, int timeout_ms)
{
    uint64_t end = mst_now_ms() + (uint64_t)timeout_ms;
    uv_timer_t *tick = malloc(sizeof(*tick));
    bool is;

    uv_timer_init(&rig->loop, tick);
    uv_timer_start(tick, on_tick, 5, 5);
    while (!(is = check(arg)) && mst_now_ms() < end)
        uv_run(&rig->loop, UV_RUN_ONCE);
    uv_close((uv_handle_t *)tick, timer_closed);
    return is;
}

static bool never(void *arg)
{
    (void)arg;
    return false;
}

void rig_run_ms(int ms)
{
    rig_until(never, NULL, ms);
}

/* --- coordinator --- */

static void send_env(struct rig_node *node, const mst_envelope *env)
{
    static uint8_t frame[MST_MESSAGE_BYTES_MAX];
    int n = mst_frame_pack(env, frame, sizeof(frame));

    ck_assert_int_gt(n, 0);
    ck_assert_ptr_nonnull(node->link);
    ck_assert_int_eq(mst_link_send(node->link, frame, (size_t)n), 0);
}

static void send_peers(struct rig_node *to)
{
    Mainstay__Peer peers[RIG_NODES], *list[RIG_NODES];
    Mainstay__Peers body = MAINSTAY__PEERS__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.peers = list;
    for (unsigned i = 1; i <= RIG_NODES; i++) {
        struct rig_node *node = &rig->nodes[i];
        Mainstay__Peer *peer = &peers[body.n_peers];

        if (!node->hello)
            continue;
        mainstay__peer__init(peer);
        peer->node = node->hello->hello->node;
        peer->node_id = i;
        peer->address = node->hello->hello->address;
        peer->port = node->hello->hello->port;
        peer->instance = node->instance;
        list[body.n_peers++] = peer;
    }
    env.body_case = MAINSTAY__ENVELOPE__BODY_PEERS;
    env.peers = &body;
    send_env(to, &env);
}

static void hello(struct mst_link *link, mst_envelope *env)
{
    Mainstay__Welcome body = MAINSTAY__WELCOME__INIT;
    mst_envelope answer = MAINSTAY__ENVELOPE__INIT;
    struct rig_node *node;

    ck_assert_uint_ge(env->hello->node_id, 1);
    ck_assert_uint_le(env->hello->node_id, RIG_NODES);
    node = &rig->nodes[env->hello->node_id];
    node->link = link;
    mst_envelope_free(node->hello);
    node->hello = env;
    node->instance = env->hello->instance;
    if (rig->silent)
        return;
    body.coordinator_id = 1;
    body.coordinator_instance = RIG_COORDINATOR;
    body.term = RIG_TERM;
    answer.body_case = MAINSTAY__ENVELOPE__BODY_WELCOME;
    answer.welcome = &body;
    send_env(node, &answer);
    for (unsigned i = 1; i <= RIG_NODES; i++)
        if (rig->nodes[i].link)
            send_peers(&rig->nodes[i]);
}

static struct rig_node *node_of(const struct mst_link *link)
{
    for (unsigned i = 1; i <= RIG_NODES; i++)
        if (rig->nodes[i].link == link)
            return &rig->nodes[i];
    return NULL;
}

static void console_take(struct rig_node *node, const Mainstay__ConsoleData *data)
{
    ck_assert_uint_le(data->data.len, 4096);
    if (node->console_bytes + data->data.len > sizeof(node->console))
        node->console_bytes = 0;
    memcpy(node->console + node->console_bytes, data->data.data, data->data.len);
    node->console_bytes += data->data.len;
}

static void on_message(struct mst_link *link, const void *data, size_t len, void *arg)
{
    struct rig_node *node = node_of(link);
    struct mst_why why = {0};
    mst_envelope *env;

    (void)arg;
    ck_assert_msg(mst_frame_unpack(data, len, &env, &why) == 0, "%s", why.text);
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_HELLO) {
        hello(link, env);
        return;
    }
    ck_assert_ptr_nonnull(node);
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_DONE && !env->has_reply_to)
        node->probes++;
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_DONE && env->has_reply_to && env->reply_to == node->asked) {
        mst_envelope_free(node->done);
        node->done = env;
        return;
    }
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_FAULT_REPORT && node->report_count < 64) {
        node->reports[node->report_count++] = env;
        return;
    }
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_MIRROR_STATE) {
        mst_envelope_free(node->mirror);
        node->mirror = env;
        return;
    }
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_CONSOLE_DATA)
        console_take(node, env->console_data);
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_VM_EVENT) {
        node->event_count++;
        node->last_event = env->vm_event->run_state;
    }
    mst_envelope_free(env);
}

static void on_closed(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct rig_node *node = node_of(link);

    (void)err, (void)why, (void)arg;
    if (node)
        node->link = NULL;
}

static const struct mst_link_events events = {.on_message = on_message, .on_closed = on_closed};

static int on_accept(struct mst_link *link, const struct mst_link_request *request, void *arg,
                     const struct mst_link_events **ret_events, void **ret_arg, struct mst_why *why)
{
    (void)link, (void)arg, (void)why;
    ck_assert_int_eq(request->role, MST_ROLE_CONTROL);
    *ret_events = &events;
    *ret_arg = NULL;
    return 0;
}

void rig_coordinator_up(void)
{
    struct mst_why why = {0};

    ck_assert_int_eq(mst_fabric_open(&rig->loop, rig_address(COORDINATOR), &rig->fabric, &why), 0);
    ck_assert_msg(mst_fabric_listen(rig->fabric, 17470, on_accept, NULL, &why) == 0, "%s", why.text);
}

static void fabric_closed(void *arg)
{
    *(bool *)arg = true;
}

static bool is_set(void *arg)
{
    return *(bool *)arg;
}

void rig_coordinator_down(void)
{
    bool closed = false;

    mst_fabric_close(rig->fabric, fabric_closed, &closed);
    ck_assert(rig_until(is_set, &closed, 5000));
    rig->fabric = NULL;
}

/* --- keepers --- */

static void config_write(struct rig_node *node)
{
    char path[PATH_MAX], text[4096];
    int n;

    n = snprintf(text, sizeof(text),
                 "cluster: rig\nnode: n%u\nid: %u\naddress: %s\nport: " PORT "\n"
                 "coordinators:\n  - { address: %s, port: 17470 }\n%s%s%s"
                 "main-storage: %s\nmemory-mib: %u\nvcpus: 4\nrun-dir: %s\nstate-dir: %s/state%u\n"
                 "cgroup: %s\nagent: %s\nexec: %s\nqemu: %s\naccel: tcg\n%s",
                 node->number, node->number, rig_address(node->number), rig_address(COORDINATOR),
                 rig->second ? "  - { address: " : "", rig->second ? rig_address(COORDINATOR + 1) : "",
                 rig->second ? ", port: 17470 }\n" : "", node->main_storage, node->memory_mib, node->run_dir, rig->folder,
                 node->number, node->cgroup, rig->agent, MST_TEST_EXEC, rig->qemu, rig->config_more ? rig->config_more : "");
    ck_assert_int_lt(n, (int)sizeof(text));
    snprintf(path, sizeof(path), "%s/n%u.yaml", rig->folder, node->number);
    ck_assert_int_eq(mst_file_write_durable(path, text, (size_t)n, 0600), 0);
}

void rig_setup(void)
{
    rig = calloc(1, sizeof(*rig));
    rig->agent = MST_TEST_AGENT;
    rig->qemu = MST_TEST_QEMU;
    rig->kernel = "/boot/kernel";
    rig->vm_memory_mib = 4;
    rig->checkpoint_interval_ms = 500;
    snprintf(rig->folder, sizeof(rig->folder), "%sXXXXXX", folder_base);
    ck_assert_ptr_nonnull(mkdtemp(rig->folder));
    uv_loop_init(&rig->loop);
    for (unsigned i = 1; i <= RIG_NODES; i++) {
        struct rig_node *node = &rig->nodes[i];

        node->number = i;
        node->memory_mib = 64;
        snprintf(node->main_storage, sizeof(node->main_storage), "%s/n%u-storage", rig->folder, i);
        snprintf(node->run_dir, sizeof(node->run_dir), "%s/n%u", rig->folder, i);
        snprintf(node->cgroup, sizeof(node->cgroup), "%s-n%u", cgroup_base, i);
    }
    rig_coordinator_up();
}

static bool welcomed(void *arg)
{
    struct rig_node *node = arg;

    return node->link && node->hello;
}

void rig_keeper_spawn(unsigned number)
{
    struct rig_node *node = &rig->nodes[number];
    char config[PATH_MAX];
    char parent[24];
    /* by mainstay-exec, so that it dies with a test that fails */
    char *argv[] = {(char *)MST_TEST_EXEC,   (char *)"--parent", parent, (char *)"--",
                    (char *)MST_TEST_KEEPER, (char *)"--config", config, NULL};
    extern char **environ;

    config_write(node);
    snprintf(config, sizeof(config), "%s/n%u.yaml", rig->folder, number);
    snprintf(parent, sizeof(parent), "%ld", (long)getpid());
    ck_assert_int_eq(posix_spawn(&node->pid, argv[0], NULL, NULL, argv, environ), 0);
    node->stopped = false;
}

void rig_keeper_start(unsigned number)
{
    struct rig_node *node = &rig->nodes[number];

    mst_envelope_free(node->hello);
    node->hello = NULL;
    rig_keeper_spawn(number);
    ck_assert_msg(rig_until(welcomed, node, 20000), "keeper %u said no Hello", number);
}

void rig_keeper_signal(unsigned number, int sig)
{
    ck_assert_int_eq(kill(rig->nodes[number].pid, sig), 0);
    rig->nodes[number].stopped = sig == SIGSTOP;
}

struct wait {
    struct rig_node *node;
    int status;
};

static bool reaped(void *arg)
{
    struct wait *w = arg;

    return waitpid(w->node->pid, &w->status, WNOHANG) == w->node->pid;
}

int rig_keeper_wait(unsigned number, int timeout_ms)
{
    struct wait w = {.node = &rig->nodes[number]};

    ck_assert_msg(rig_until(reaped, &w, timeout_ms), "keeper %u does not end", number);
    w.node->pid = 0;
    return w.status;
}

static void close_handle(uv_handle_t *handle, void *arg)
{
    (void)arg;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

void rig_teardown(void)
{
    for (unsigned i = 1; i <= RIG_NODES; i++) {
        struct rig_node *node = &rig->nodes[i];

        if (node->pid) {
            if (node->stopped)
                rig_keeper_signal(i, SIGCONT);
            rig_keeper_signal(i, SIGTERM);
            ck_assert_int_eq(rig_keeper_wait(i, 15000), 0); /* ends by itself, and clean under ASan */
        }
    }
    /* Only now: while one keeper is waited for, another may say Hello, and all that are known are told to it. */
    for (unsigned i = 1; i <= RIG_NODES; i++) {
        struct rig_node *node = &rig->nodes[i];

        node_cgroup_end(node->cgroup);
        mst_envelope_free(node->hello);
        mst_envelope_free(node->done);
        mst_envelope_free(node->mirror);
        while (node->report_count)
            mst_envelope_free(node->reports[--node->report_count]);
    }
    if (rig->fabric)
        rig_coordinator_down();
    uv_walk(&rig->loop, close_handle, NULL);
    uv_run(&rig->loop, UV_RUN_DEFAULT);
    uv_loop_close(&rig->loop);
    folder_remove(rig->folder);
    free(rig);
    rig = NULL;
}

void rig_report_answer(unsigned number, unsigned report, int error)
{
    struct rig_node *node = &rig->nodes[number];
    Mainstay__Done body = MAINSTAY__DONE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    ck_assert_uint_lt(report, node->report_count);
    body.error = error;
    env.has_reply_to = 1;
    env.reply_to = node->reports[report]->id;
    env.body_case = MAINSTAY__ENVELOPE__BODY_DONE;
    env.done = &body;
    send_env(node, &env);
}

/* --- orders --- */

void rig_order_send(unsigned number, mst_envelope *env)
{
    struct rig_node *node = &rig->nodes[number];
    static uint64_t last;

    env->has_id = 1;
    env->id = node->asked = ++last;
    if (!env->has_instance) {
        env->has_instance = 1;
        env->instance = node->instance;
    }
    if (!env->has_term) {
        env->has_term = 1;
        env->term = RIG_TERM;
    }
    mst_envelope_free(node->done);
    node->done = NULL;
    send_env(node, env);
}

static bool answered(void *arg)
{
    return ((struct rig_node *)arg)->done != NULL;
}

const Mainstay__Done *rig_order_wait(unsigned number, int timeout_ms)
{
    struct rig_node *node = &rig->nodes[number];

    ck_assert_msg(rig_until(answered, node, timeout_ms), "keeper %u does not answer order %llu", number,
                  (unsigned long long)node->asked);
    return node->done->done;
}

const Mainstay__Done *rig_order(unsigned number, mst_envelope *env)
{
    rig_order_send(number, env);
    return rig_order_wait(number, ORDER_WAIT_MS);
}

static Mainstay__VmDefinition definition(const char *vm, Mainstay__Protect protect, const char *append)
{
    static Mainstay__VmDisk disk, *disks[] = {&disk};
    Mainstay__VmDefinition def = MAINSTAY__VM_DEFINITION__INIT;

    mainstay__vm_disk__init(&disk);
    disk.has_memory_mib = 1;
    disk.memory_mib = rig->vm_disk_mib;
    def.disks = disks;
    def.n_disks = rig->vm_disk_mib && protect != MAINSTAY__PROTECT__PROTECT_NONE ? 1 : 0;

    def.name = (char *)vm;
    def.memory_mib = rig->vm_memory_mib;
    def.boot_kernel = (char *)rig->kernel;
    def.boot_append = (char *)append;
    def.has_protect = 1;
    def.protect = protect;
    def.has_output_commit = protect == MAINSTAY__PROTECT__PROTECT_MIRROR;
    def.output_commit = !rig->output_at_once;
    def.has_checkpoint_interval_ms = 1;
    def.checkpoint_interval_ms = rig->checkpoint_interval_ms;
    return def;
}

void rig_start_send(unsigned node, const char *vm, uint64_t epoch, Mainstay__Protect protect, const char *append,
                    const Mainstay__SaveSource *source)
{
    Mainstay__VmDefinition def = definition(vm, protect, append);
    Mainstay__OrderStart body = MAINSTAY__ORDER_START__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.definition = &def;
    body.epoch = epoch;
    body.source = (Mainstay__SaveSource *)source;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_START;
    env.order_start = &body;
    rig_order_send(node, &env);
}

const Mainstay__Done *rig_start(unsigned node, const char *vm, uint64_t epoch, Mainstay__Protect protect, const char *append,
                                const Mainstay__SaveSource *source)
{
    rig_start_send(node, vm, epoch, protect, append, source);
    return rig_order_wait(node, ORDER_WAIT_MS);
}

const Mainstay__Done *rig_fence(unsigned node, const char *vm, uint64_t epoch)
{
    Mainstay__VmEpoch one = MAINSTAY__VM_EPOCH__INIT, *list[] = {&one};
    Mainstay__OrderFence body = MAINSTAY__ORDER_FENCE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    one.vm = (char *)vm;
    one.epoch = epoch;
    body.n_vms = vm ? 1 : 0;
    body.vms = list;
    body.has_all = !vm;
    body.all = !vm;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_FENCE;
    env.order_fence = &body;
    return rig_order(node, &env);
}

const Mainstay__Done *rig_forget(unsigned node, const char *vm, uint64_t epoch)
{
    Mainstay__OrderForget body = MAINSTAY__ORDER_FORGET__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.vm = (char *)vm;
    body.epoch = epoch;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_FORGET;
    env.order_forget = &body;
    return rig_order(node, &env);
}

/* --- mirrors --- */

static Mainstay__Peer peer_of(unsigned number)
{
    Mainstay__Peer peer = MAINSTAY__PEER__INIT;
    const Mainstay__Hello *hello = rig->nodes[number].hello->hello;

    peer.node = hello->node;
    peer.node_id = number;
    peer.address = hello->address;
    peer.port = hello->port;
    peer.instance = hello->instance;
    return peer;
}

void rig_mirror_send(unsigned mirror, const char *vm, uint64_t epoch, unsigned source, uint64_t ring_bytes)
{
    Mainstay__VmDefinition def = definition(vm, MAINSTAY__PROTECT__PROTECT_MIRROR, rig->append ? rig->append : "x");
    Mainstay__Peer peer = peer_of(source);
    Mainstay__OrderMirror body = MAINSTAY__ORDER_MIRROR__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.definition = &def;
    body.epoch = epoch;
    body.source = &peer;
    body.source_boot_id = rig->nodes[source].hello->hello->host_boot_id;
    body.has_ring_bytes = ring_bytes != 0;
    body.ring_bytes = ring_bytes;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_MIRROR;
    env.order_mirror = &body;
    rig_order_send(mirror, &env);
}

const Mainstay__Done *rig_mirror(unsigned mirror, const char *vm, uint64_t epoch, unsigned source, uint64_t ring_bytes)
{
    rig_mirror_send(mirror, vm, epoch, source, ring_bytes);
    return rig_order_wait(mirror, ORDER_WAIT_MS);
}

const Mainstay__Done *rig_mirror_to(unsigned source, const char *vm, uint64_t epoch, unsigned mirror,
                                    const Mainstay__MirrorGrant *grant)
{
    Mainstay__Peer peer = peer_of(mirror);
    Mainstay__OrderMirrorTo body = MAINSTAY__ORDER_MIRROR_TO__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.vm = (char *)vm;
    body.epoch = epoch;
    body.mirror = &peer;
    body.grant = (Mainstay__MirrorGrant *)grant;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_MIRROR_TO;
    env.order_mirror_to = &body;
    return rig_order(source, &env);
}

const Mainstay__Done *rig_mirror_sure(unsigned source, const char *vm, uint64_t epoch, uint64_t log_id)
{
    Mainstay__OrderMirrorSure body = MAINSTAY__ORDER_MIRROR_SURE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.vm = (char *)vm;
    body.epoch = epoch;
    body.log_id = log_id;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_MIRROR_SURE;
    env.order_mirror_sure = &body;
    return rig_order(source, &env);
}

const Mainstay__Done *rig_mirror_drop(unsigned source, const char *vm, uint64_t epoch, uint64_t log_id)
{
    Mainstay__OrderMirrorDrop body = MAINSTAY__ORDER_MIRROR_DROP__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.vm = (char *)vm;
    body.epoch = epoch;
    body.log_id = log_id;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_MIRROR_DROP;
    env.order_mirror_drop = &body;
    return rig_order(source, &env);
}

void rig_mirror_revoke_send(unsigned mirror, const char *vm, uint64_t epoch)
{
    Mainstay__OrderMirrorRevoke body = MAINSTAY__ORDER_MIRROR_REVOKE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.vm = (char *)vm;
    body.epoch = epoch;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_MIRROR_REVOKE;
    env.order_mirror_revoke = &body;
    rig_order_send(mirror, &env);
}

const Mainstay__Done *rig_mirror_revoke(unsigned mirror, const char *vm, uint64_t epoch)
{
    rig_mirror_revoke_send(mirror, vm, epoch);
    return rig_order_wait(mirror, ORDER_WAIT_MS);
}

struct mirror_wait {
    const struct rig_node *node;
    Mainstay__MirrorPhase phase;
    uint64_t at_least;
};

static bool mirror_is(void *arg)
{
    struct mirror_wait *w = arg;
    const Mainstay__MirrorState *state = w->node->mirror ? w->node->mirror->mirror_state : NULL;

    return state && state->phase == w->phase && state->acked_seq >= w->at_least;
}

void rig_wait_mirror(unsigned source, Mainstay__MirrorPhase phase, uint64_t at_least)
{
    struct mirror_wait w = {.node = &rig->nodes[source], .phase = phase, .at_least = at_least};
    const Mainstay__MirrorState *state;

    if (rig_until(mirror_is, &w, 20000))
        return;
    state = w.node->mirror ? w.node->mirror->mirror_state : NULL;
    ck_abort_msg("wanted phase %d with %llu, is %d with %llu: %s", (int)phase, (unsigned long long)at_least,
                 state ? (int)state->phase : 0, state ? (unsigned long long)state->acked_seq : 0, state ? state->text : "");
}

/* --- looking --- */

void rig_status(unsigned node, struct mst_status_area *ret_area)
{
    char path[PATH_MAX], *data;
    size_t len;

    snprintf(path, sizeof(path), "%s/status", rig->nodes[node].main_storage);
    ck_assert_int_eq(mst_file_read(path, sizeof(*ret_area), &data, &len), 0);
    ck_assert_uint_eq(len, sizeof(*ret_area));
    memcpy(ret_area, data, len);
    free(data);
}

int rig_slot(unsigned node, const char *vm, uint64_t epoch, struct mst_vm_slot *ret_info)
{
    static struct mst_status_area area;
    struct mst_pub_head head;

    rig_status(node, &area);
    for (int i = 0; i < (int)MST_VMS_PER_NODE; i++)
        if (mst_pub_pick(area.vms[i].info, &head, ret_info, sizeof(*ret_info)) == 0 && head.epoch == epoch &&
            strcmp(ret_info->vm, vm) == 0)
            return i;
    return -1;
}

struct state_wait {
    unsigned node, state;
    const char *vm;
    uint64_t epoch;
};

static bool in_state(void *arg)
{
    struct state_wait *w = arg;
    struct mst_vm_slot info;

    return rig_slot(w->node, w->vm, w->epoch, &info) >= 0 && info.run_state == w->state;
}

void rig_wait_state(unsigned node, const char *vm, uint64_t epoch, unsigned state)
{
    struct state_wait w = {.node = node, .state = state, .vm = vm, .epoch = epoch};

    ck_assert_msg(rig_until(in_state, &w, 10000), "%s epoch %llu does not come to state %u", vm, (unsigned long long)epoch,
                  state);
}

uint64_t rig_memory_used(unsigned node)
{
    static struct mst_status_area area;
    struct mst_node_status body;
    struct mst_pub_head head;

    rig_run_ms(1100); /* node status is published every second */
    rig_status(node, &area);
    ck_assert_int_eq(mst_pub_pick(area.node, &head, &body, sizeof(body)), 0);
    return body.memory_used_bytes;
}

uint8_t *rig_map(unsigned node, const char *name, size_t *ret_bytes)
{
    char path[PATH_MAX];
    struct stat st;
    void *addr;
    int fd;

    snprintf(path, sizeof(path), "%s/%s", rig->nodes[node].main_storage, name);
    fd = open(path, O_RDWR | O_CLOEXEC);
    ck_assert_msg(fd >= 0, "%s", path);
    ck_assert_int_eq(fstat(fd, &st), 0);
    addr = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    ck_assert(addr != MAP_FAILED);
    close(fd);
    *ret_bytes = (size_t)st.st_size;
    return addr;
}

bool rig_file_there(unsigned node, const char *name)
{
    char path[PATH_MAX];

    snprintf(path, sizeof(path), "%s/%s", rig->nodes[node].main_storage, name);
    return access(path, F_OK) == 0;
}

struct told {
    char path[200];
    const char *const *texts;
    const char *missing;
};

/* Each text in a line of its own behind the line before. */
static bool all_told(void *arg)
{
    struct told *told = arg;
    char *text, *rest, *line;
    const char *const *next = told->texts;
    size_t len;

    told->missing = *next;
    if (mst_file_read(told->path, 16 << 20, &text, &len) < 0)
        return false;
    rest = text;
    while (*next && (line = strsep(&rest, "\n")))
        next += strstr(line, *next) != NULL;
    told->missing = *next;
    free(text);
    return told->missing == NULL;
}

void rig_wait_told(unsigned node, const char *tail, const char *const *texts)
{
    struct told told = {.texts = texts};

    snprintf(told.path, sizeof(told.path), "%s/state%u/events.jsonl%s", rig->folder, node, tail);
    ck_assert_msg(rig_until(all_told, &told, 10000), "%s: no line with %s where it ought to be", told.path, told.missing);
}

long rig_pid_of(unsigned node, const char *file)
{
    char path[PATH_MAX], *text;
    size_t len;
    long pid;

    snprintf(path, sizeof(path), "%s/%s", rig->nodes[node].run_dir, file);
    if (mst_file_read(path, 64, &text, &len) < 0)
        return 0;
    pid = strtol(text, NULL, 10);
    free(text);
    return pid;
}

bool rig_alive(long pid)
{
    char path[64], *text, *state;
    size_t len;
    bool is;

    snprintf(path, sizeof(path), "/proc/%ld/stat", pid);
    if (!pid || mst_file_read(path, 4096, &text, &len) < 0)
        return false;
    state = strrchr(text, ')');
    is = state && state[2] != 'Z' && state[2] != 'X';
    free(text);
    return is;
}

void rig_agent_tell(unsigned node, const char *file, bool there)
{
    char path[PATH_MAX];

    snprintf(path, sizeof(path), "%s/%s", rig->nodes[node].run_dir, file);
    if (there)
        ck_assert_int_eq(mst_file_write_durable(path, "x", 1, 0600), 0);
    else
        ck_assert_int_eq(unlink(path), 0);
}

/* --- leases, of node 1 --- */

struct mst_beat_line rig_beat(unsigned node)
{
    static struct mst_status_area area;

    do
        rig_status(node, &area);
    while (mst_beat_check(&area.beat) < 0);
    return area.beat;
}

static uint64_t counter; /* of renewals */

bool rig_renewal_arrived(void *arg)
{
    const struct mst_lease_line *line = arg;

    return rig_beat(1).lease_renewal == (line->lease_ms ? line->renewal : 0);
}

void rig_lease_write(struct mst_lease_line line, unsigned at)
{
    size_t bytes;
    struct mst_grant_area *area = (void *)rig_map(1, "grant", &bytes);

    ck_assert_uint_eq(bytes, sizeof(*area));
    line.crc32c = mst_crc32c(&line, offsetof(struct mst_lease_line, crc32c));
    memcpy(&area->lease[at], &line, sizeof(line));
    munmap(area, bytes);
}

struct mst_lease_line rig_lease_line(uint32_t lease_ms, uint32_t flags)
{
    struct mst_beat_line beat = rig_beat(1);
    struct mst_lease_line line = {.instance = beat.instance,
                                  .term = RIG_TERM,
                                  .coordinator = RIG_COORDINATOR,
                                  .renewal = ((uint64_t)RIG_COORDINATOR << 32) | ++counter,
                                  .beat = beat.keeper_beat,
                                  .lease_ms = lease_ms,
                                  .flags = flags,
                                  .coordinator_id = 1,
                                  .version = MST_LEASE_VERSION};

    return line;
}

void rig_renew(uint32_t lease_ms, uint32_t flags)
{
    struct mst_lease_line line = rig_lease_line(lease_ms, flags);

    rig_lease_write(line, 1);
    ck_assert(rig_until(rig_renewal_arrived, &line, 2000));
}
