#include "fake_coordinator.h"

#include "base/clock.h"
#include "proto/socket.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define NODES      3
#define VMS        8
#define RECOVERIES 16
#define FOLLOWERS  32
#define BEAT_MS    50u
#define DOWN_MS    600u /* a killed coordinator */

struct fake_vm {
    Mainstay__VmDefinition *definition; /* NULL: free */
    int node;
    bool running;
    uint64_t epoch, n, beat_ms, old_n;
    int old_node;
    bool broken, boot;
    char text[1 << 16]; /* console of this epoch */
    size_t bytes;
    /* a move under way */
    uint64_t move_ms; /* 0: none */
    int to;
    Mainstay__Method method;
    unsigned recovery;
};

struct fake_recovery {
    Mainstay__FaultKind kind;
    int node;
    bool done;
    const char *proof;
    char vm[MST_NAME_BYTES];
    int from, to;
    uint64_t epoch_from, epoch_to;
    Mainstay__Method method;
};

static struct fake {
    struct fake_conf conf;
    uv_loop_t loop;
    struct mst_sockserv *serv;
    struct mst_sock *socks[64];
    Mainstay__NodeState nodes[NODES];
    struct fake_vm vms[VMS];
    struct fake_recovery recoveries[RECOVERIES];
    unsigned recoveries_count;
    struct follower {
        struct mst_sock *sock; /* NULL: free */
        char vm[MST_NAME_BYTES];
        uint64_t epoch;
        size_t sent;
    } followers[FOLLOWERS];
    int fifo;
    uint64_t back_ms;
    uint64_t last_epoch;
} fake;

static const char *const node_names[NODES] = {"n1", "n2", "n3"};

static int node_index(const char *name)
{
    for (int i = 0; i < NODES; i++)
        if (name && strcmp(node_names[i], name) == 0)
            return i;
    return -1;
}

static struct fake_vm *vm_named(const char *name)
{
    for (int i = 0; i < VMS; i++)
        if (fake.vms[i].definition && strcmp(fake.vms[i].definition->name, name) == 0)
            return &fake.vms[i];
    return NULL;
}

static char *word(const char *text)
{
    return (char *)(uintptr_t)text;
}

static void done(struct mst_sock *sock, uint64_t id, int error, const char *text)
{
    Mainstay__Done body = MAINSTAY__DONE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.error = error;
    body.text = word(text);
    env.has_reply_to = 1;
    env.reply_to = id;
    env.body_case = MAINSTAY__ENVELOPE__BODY_DONE;
    env.done = &body;
    mst_sock_send(sock, &env);
}

/* --- views --- */

static void view_nodes(Mainstay__View *view)
{
    static Mainstay__NodeView rows[NODES], *list[NODES];

    for (int i = 0; i < NODES; i++) {
        mainstay__node_view__init(&rows[i]);
        rows[i].node = word(node_names[i]);
        rows[i].node_id = (uint32_t)i + 1;
        rows[i].state = fake.nodes[i];
        rows[i].has_agent_up = rows[i].agent_up = 1;
        list[i] = &rows[i];
    }
    view->n_nodes = NODES;
    view->nodes = list;
}

static void view_vms(Mainstay__View *view)
{
    static Mainstay__VmView rows[VMS], *list[VMS];

    for (int i = 0; i < VMS; i++) {
        const struct fake_vm *vm = &fake.vms[i];
        Mainstay__VmView *row = &rows[view->n_vms];

        if (!vm->definition)
            continue;
        mainstay__vm_view__init(row);
        row->vm = vm->definition->name;
        row->state = vm->running ? MAINSTAY__VM_RUN_STATE__VM_RUNNING : MAINSTAY__VM_RUN_STATE__VM_STOPPED;
        row->node = vm->node >= 0 ? word(node_names[vm->node]) : NULL;
        row->has_epoch = 1;
        row->epoch = vm->epoch;
        row->has_save_seq = vm->n > 3;
        row->save_seq = vm->n;
        list[view->n_vms++] = row;
    }
    view->vms = list;
}

static void view_recoveries(Mainstay__View *view)
{
    static Mainstay__RecoveryView rows[RECOVERIES], *list[RECOVERIES];
    static Mainstay__RecoveryVm vms[RECOVERIES], *vm_lists[RECOVERIES][1];
    static Mainstay__StartResult starts[RECOVERIES];

    for (unsigned i = 0; i < fake.recoveries_count; i++) {
        const struct fake_recovery *rec = &fake.recoveries[fake.recoveries_count - 1 - i]; /* newest first */
        Mainstay__RecoveryView *row = &rows[i];

        mainstay__recovery_view__init(row);
        mainstay__recovery_vm__init(&vms[i]);
        mainstay__start_result__init(&starts[i]);
        row->id = row->fault_id = fake.recoveries_count - i;
        row->node = word(node_names[rec->node]);
        row->state = word(rec->done ? "done" : "resuming");
        row->has_kind = 1;
        row->kind = rec->kind;
        row->fence_proof = word(rec->proof);
        vms[i].vm = word(rec->vm);
        vms[i].from = word(node_names[rec->from]);
        vms[i].to = word(node_names[rec->to]);
        vms[i].has_epoch_from = vms[i].has_epoch_to = 1;
        vms[i].epoch_from = rec->epoch_from;
        vms[i].epoch_to = rec->epoch_to;
        vms[i].outcome = word(rec->done ? "resumed" : "pending");
        starts[i].method = rec->method;
        starts[i].has_bytes_pulled = 1;
        starts[i].bytes_pulled = 16u << 20;
        vms[i].start = rec->done ? &starts[i] : NULL;
        vm_lists[i][0] = &vms[i];
        row->n_vms = 1;
        row->vms = vm_lists[i];
        list[i] = row;
    }
    view->n_recoveries = fake.recoveries_count;
    view->recoveries = list;
}

static void answer_query(struct mst_sock *sock, uint64_t id, const Mainstay__Query *query)
{
    Mainstay__View view = MAINSTAY__VIEW__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    view.cluster = word("fake");
    if (query->what == MAINSTAY__WHAT__WHAT_NODES)
        view_nodes(&view);
    else if (query->what == MAINSTAY__WHAT__WHAT_VMS)
        view_vms(&view);
    else
        view_recoveries(&view);
    env.has_reply_to = 1;
    env.reply_to = id;
    env.body_case = MAINSTAY__ENVELOPE__BODY_VIEW;
    env.view = &view;
    mst_sock_send(sock, &env);
}

/* --- VMs --- */

static void vm_say(struct fake_vm *vm, const char *line)
{
    size_t len = strlen(line);

    if (vm->bytes + len > sizeof(vm->text))
        abort();
    memcpy(vm->text + vm->bytes, line, len);
    vm->bytes += len;
}

static void vm_run(struct fake_vm *vm, int node, uint64_t n, bool boot)
{
    vm->node = node;
    vm->running = true;
    vm->epoch = ++fake.last_epoch;
    vm->n = n;
    vm->bytes = 0;
    vm->beat_ms = mst_now_ms() + BEAT_MS;
    if (boot)
        vm_say(vm, "guest boot kind=fake pages=1 interval_ms=50\n");
}

static void send_data(struct follower *follower, const struct fake_vm *vm, uint64_t epoch, uint64_t offset, const char *node,
                      const char *data, size_t len)
{
    Mainstay__ConsoleData body = MAINSTAY__CONSOLE_DATA__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.vm = vm->definition->name;
    body.epoch = epoch;
    body.offset = offset;
    body.data.data = (uint8_t *)word(data);
    body.data.len = len;
    body.node = word(node);
    env.body_case = MAINSTAY__ENVELOPE__BODY_CONSOLE_DATA;
    env.console_data = &body;
    mst_sock_send(follower->sock, &env);
}

static void followers_serve(void)
{
    for (int i = 0; i < FOLLOWERS; i++) {
        struct follower *follower = &fake.followers[i];
        struct fake_vm *vm = follower->sock ? vm_named(follower->vm) : NULL;

        if (!vm || vm->epoch == 0)
            continue;
        if (follower->epoch != vm->epoch)
            follower->sent = 0;
        follower->epoch = vm->epoch;
        if (follower->sent < vm->bytes)
            send_data(follower, vm, vm->epoch, follower->sent, node_names[vm->node], vm->text + follower->sent,
                      vm->bytes - follower->sent);
        follower->sent = vm->bytes;
        if (fake.conf.leave_old && vm->old_n > 0) { /* the copy that should be dead */
            char line[64];
            snprintf(line, sizeof(line), "beat %lu t=1.000 witness=ok\n", vm->old_n);
            send_data(follower, vm, vm->epoch - 1, 1000000 + vm->old_n * 100, node_names[vm->old_node], line, strlen(line));
            vm->old_n++;
        }
    }
}

static void vm_tick(struct fake_vm *vm)
{
    char line[96];
    uint64_t now_ms = mst_now_ms();

    if (vm->move_ms != 0 && now_ms >= vm->move_ms) {
        struct fake_recovery *rec = &fake.recoveries[vm->recovery];
        bool boot = vm->method == MAINSTAY__METHOD__METHOD_RESTARTED;
        uint64_t back = vm->method == MAINSTAY__METHOD__METHOD_PULLED_SHADOW ? 2 : 0;

        vm->move_ms = 0;
        vm->old_node = vm->node;
        vm->old_n = vm->n + 1;
        vm->broken = fake.conf.break_witness;
        vm_run(vm, vm->to, boot ? 0 : vm->n - back, boot);
        rec->epoch_to = vm->epoch;
        rec->done = true;
    }
    if (!vm->running || now_ms < vm->beat_ms)
        return;
    vm->beat_ms += BEAT_MS;
    vm->n++;
    snprintf(line, sizeof(line), "beat %lu t=%lu.%03lu witness=%s\n", vm->n, vm->n * BEAT_MS / 1000, vm->n * BEAT_MS % 1000,
             vm->broken ? "BROKEN page=1 want=2 have=3" : "ok");
    vm_say(vm, line);
}

static void vm_move(struct fake_vm *vm, Mainstay__FaultKind kind, Mainstay__Method method, const char *proof, uint64_t after_ms)
{
    struct fake_recovery *rec = &fake.recoveries[fake.recoveries_count];

    vm->to = (vm->node + 1) % NODES;
    vm->method = method;
    vm->recovery = fake.recoveries_count++;
    vm->move_ms = mst_now_ms() + after_ms;
    vm->running = method == MAINSTAY__METHOD__METHOD_PULLED_LIVE;
    *rec = (struct fake_recovery){.kind = kind,
                                  .node = vm->node,
                                  .proof = proof,
                                  .from = vm->node,
                                  .to = vm->to,
                                  .epoch_from = vm->epoch,
                                  .method = method};
    snprintf(rec->vm, sizeof(rec->vm), "%s", vm->definition->name);
}

/* --- requests --- */

static Mainstay__VmDefinition *definition_copy(const Mainstay__VmDefinition *definition)
{
    static uint8_t bytes[MST_MESSAGE_BYTES_MAX];

    return mainstay__vm_definition__unpack(NULL, mainstay__vm_definition__pack(definition, bytes), bytes);
}

static void request_vm(struct mst_sock *sock, const mst_envelope *env)
{
    struct fake_vm *vm = NULL;

    switch (env->body_case) {
    case MAINSTAY__ENVELOPE__BODY_VM_DEFINE:
        for (int i = 0; i < VMS && !vm; i++)
            if (!fake.vms[i].definition)
                vm = &fake.vms[i];
        if (vm_named(env->vm_define->definition->name) || !vm) {
            done(sock, env->id, EEXIST, "it is there already");
            return;
        }
        memset(vm, 0, sizeof(*vm));
        vm->node = -1;
        vm->definition = definition_copy(env->vm_define->definition);
        break;
    case MAINSTAY__ENVELOPE__BODY_VM_START:
        vm = vm_named(env->vm_start->vm);
        if (vm)
            vm_run(vm, env->vm_start->node ? node_index(env->vm_start->node) : 0, 0, true);
        break;
    case MAINSTAY__ENVELOPE__BODY_VM_STOP:
        vm = vm_named(env->vm_stop->vm);
        if (vm)
            vm->running = false;
        break;
    default:
        vm = vm_named(env->vm_undefine->vm);
        if (vm && (vm->running || fake.conf.refuse_undefine)) {
            done(sock, env->id, EBUSY, "it runs");
            return;
        }
        if (vm) {
            mainstay__vm_definition__free_unpacked(vm->definition, NULL);
            vm->definition = NULL;
        }
        break;
    }
    done(sock, env->id, vm ? 0 : ENOENT, vm ? NULL : "no such VM");
}

static void on_message(struct mst_sock *sock, const mst_envelope *env, void *arg)
{
    (void)arg;
    switch (env->body_case) {
    case MAINSTAY__ENVELOPE__BODY_QUERY:
        answer_query(sock, env->id, env->query);
        break;
    case MAINSTAY__ENVELOPE__BODY_CONSOLE_REQUEST:
        for (int i = 0; i < FOLLOWERS; i++)
            if (!fake.followers[i].sock) {
                fake.followers[i] = (struct follower){.sock = sock};
                snprintf(fake.followers[i].vm, MST_NAME_BYTES, "%s", env->console_request->vm);
                break;
            }
        break;
    case MAINSTAY__ENVELOPE__BODY_NODE_DRAIN:
        fake.nodes[node_index(env->node_drain->node)] = MAINSTAY__NODE_STATE__NODE_UP;
        done(sock, env->id, 0, NULL);
        break;
    default:
        request_vm(sock, env);
        break;
    }
}

static void on_closed(struct mst_sock *sock, int err, const struct mst_why *why, void *arg)
{
    (void)err;
    (void)why;
    (void)arg;
    for (int i = 0; i < 64; i++)
        if (fake.socks[i] == sock)
            fake.socks[i] = NULL;
    for (int i = 0; i < FOLLOWERS; i++)
        if (fake.followers[i].sock == sock)
            fake.followers[i].sock = NULL;
}

static const struct mst_sock_events sock_events = {.on_message = on_message, .on_closed = on_closed};

static int on_accept(struct mst_sock *sock, pid_t pid, uid_t uid, void *arg, const struct mst_sock_events **ret_events,
                     void **ret_arg)
{
    (void)pid;
    (void)uid;
    (void)arg;
    for (int i = 0; i < 64; i++)
        if (!fake.socks[i]) {
            fake.socks[i] = sock;
            break;
        }
    *ret_events = &sock_events;
    *ret_arg = NULL;
    return 0;
}

/* --- faults --- */

static void fault(const char *kind, const char *node, const char *name)
{
    int index = node_index(node);

    if (strcmp(kind, "coordinator-kill") == 0) {
        for (int i = 0; i < 64; i++)
            if (fake.socks[i])
                mst_sock_close(fake.socks[i]);
        mst_sockserv_close(fake.serv);
        fake.serv = NULL;
        fake.back_ms = mst_now_ms() + DOWN_MS;
        return;
    }
    if (index < 0)
        return;
    if (strcmp(kind, "machine-check") == 0)
        fake.nodes[index] = MAINSTAY__NODE_STATE__NODE_FAILING;
    else if (strcmp(kind, "power-off") == 0)
        fake.nodes[index] = MAINSTAY__NODE_STATE__NODE_ABSENT;
    else if (strcmp(kind, "power-on") == 0)
        fake.nodes[index] = MAINSTAY__NODE_STATE__NODE_UP;
    for (int i = 0; i < VMS; i++) {
        struct fake_vm *vm = &fake.vms[i];

        if (!vm->definition || !vm->running || vm->node != index)
            continue;
        if (strcmp(kind, "machine-check") == 0)
            vm_move(vm, MAINSTAY__FAULT_KIND__FAULT_PROCESSOR, MAINSTAY__METHOD__METHOD_PULLED_LIVE, "keeper: stopped", 300);
        else if (strcmp(kind, "power-off") == 0)
            vm_move(vm, MAINSTAY__FAULT_KIND__FAULT_NODE_UNREACHABLE, MAINSTAY__METHOD__METHOD_RESTARTED, "power: off", 500);
        else if (strcmp(kind, "qemu-kill") == 0 && strcmp(name, vm->definition->name) == 0)
            vm_move(vm, MAINSTAY__FAULT_KIND__FAULT_VM_EXITED, MAINSTAY__METHOD__METHOD_PULLED_SHADOW, "keeper: stopped", 300);
    }
}

static void on_tick(uv_timer_t *timer)
{
    char line[256] = "", kind[64], node[64], vm[64];
    ssize_t n = read(fake.fifo, line, sizeof(line) - 1);
    struct mst_why why;

    (void)timer;
    for (char *at = n > 0 ? strtok(line, "\n") : NULL; at; at = strtok(NULL, "\n")) {
        vm[0] = '\0';
        if (sscanf(at, "%63s %63s %63s", kind, node, vm) >= 2)
            fault(kind, node, vm);
    }
    if (!fake.serv && mst_now_ms() >= fake.back_ms &&
        mst_sockserv_open(&fake.loop, fake.conf.socket, 0600, on_accept, NULL, &fake.serv, &why) < 0) {
        fprintf(stderr, "fake coordinator: %s\n", why.text);
        exit(1);
    }
    for (int i = 0; i < VMS; i++)
        if (fake.vms[i].definition)
            vm_tick(&fake.vms[i]);
    followers_serve();
}

static void serve(const struct fake_conf *conf)
{
    uv_timer_t timer;

    fake.conf = *conf;
    signal(SIGPIPE, SIG_IGN);
    uv_loop_init(&fake.loop);
    fake.fifo = open(conf->fifo, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    for (int i = 0; i < NODES; i++)
        fake.nodes[i] = MAINSTAY__NODE_STATE__NODE_UP;
    if (conf->failing_at_first)
        fake.nodes[0] = MAINSTAY__NODE_STATE__NODE_FAILING;
    if (conf->left_over) {
        Mainstay__VmDefinition definition = MAINSTAY__VM_DEFINITION__INIT;
        definition.name = word(conf->left_over);
        definition.memory_mib = 16;
        definition.boot_kernel = word("/x");
        fake.vms[0].definition = definition_copy(&definition);
        vm_run(&fake.vms[0], 1, 100, false);
    }
    uv_timer_init(&fake.loop, &timer);
    uv_timer_start(&timer, on_tick, 0, 10);
    uv_run(&fake.loop, UV_RUN_DEFAULT);
}

pid_t fake_coordinator_start(const struct fake_conf *conf)
{
    pid_t pid;

    unlink(conf->fifo);
    if (mkfifo(conf->fifo, 0600) < 0)
        return -errno;
    pid = fork();
    if (pid == 0) {
        serve(conf);
        _exit(1);
    }
    for (int i = 0; i < 500 && access(conf->socket, F_OK) < 0; i++)
        usleep(10000);
    return pid;
}

void fake_coordinator_stop(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}
