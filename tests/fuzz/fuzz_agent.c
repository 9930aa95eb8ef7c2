#include "fuzz.h"

#include "base/file.h"
#include "node/agent/agent.h"
#include "node/agent/dirty.h"
#include "node/keeper/storage.h"
#include "proto/socket.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* The whole agent between a keeper and a QEMU that are the input: welcome, orders, answers to its requests, monitors. Messages and monitor lines are any
 * bytes; what a real peer would know and a fuzzer cannot guess (numbers of requests, the instance) is put in where the input asks for it.
 * File names in messages are cut to their last part and lie in the target's folder: the agent opens for writing what its keeper names.
 *
 * Real threads and sockets, so time is real: the loop's timers run 50 times as fast (CMakeLists.txt wraps uv_timer_start). */

enum { KEEPER, OBEY, LINE, ANSWER, TIME, SILENCE, LAST_WORDS, OPS };
enum { FIX_REPLY = 1, FIX_ID = 2, FIX_INSTANCE = 4 };

#define INSTANCE  UINT64_C(7)
#define FASTER    50u
#define VM_MIB    1u
#define RAM_BYTES ((uint64_t)VM_MIB << 20)
#define MONITORS  2u
#define ASKED_MAX 16u

static uv_loop_t loop;
static struct mst_areas areas;
static struct mst_status_area whole, *status; /* as a keeper makes it; the file that the agent maps */
static int keeper_listens = -1, monitor_listens[MONITORS] = {-1, -1};
static struct {
    struct mst_agent *agent;
    int fd;
    struct mst_stream *in;
    struct {
        uint64_t id;
        unsigned body_case;
    } asked[ASKED_MAX];
    unsigned asked_count;
    uint64_t next_id;
    int monitor[MONITORS];
    char lines[MONITORS][4096];
    size_t lines_len[MONITORS];
    int passed; /* descriptor that came with getfd, -1: none */
} us;

/* --- what is not tried here: the tracepoints of this very kernel, soft-dirty bits of this very process --- */

int mst_mce_watch(uv_loop_t *on, mst_mce_fn fn, mst_mce_started_fn started, void *arg, struct mst_mce **ret_mce)
{
    (void)on, (void)fn, (void)started, (void)arg;
    *ret_mce = NULL;
    return 0;
}

void mst_mce_unwatch(struct mst_mce *mce)
{
    (void)mce;
}

int __wrap_mst_dirty_probe(struct mst_why *why);
int __wrap_mst_dirty_probe(struct mst_why *why)
{
    return mst_why_set(why, -ENOTSUP, "not here");
}

int __real_uv_timer_start(uv_timer_t *timer, uv_timer_cb cb, uint64_t timeout, uint64_t repeat);
int __wrap_uv_timer_start(uv_timer_t *timer, uv_timer_cb cb, uint64_t timeout, uint64_t repeat);
int __wrap_uv_timer_start(uv_timer_t *timer, uv_timer_cb cb, uint64_t timeout, uint64_t repeat)
{
    return __real_uv_timer_start(timer, cb, timeout ? timeout / FASTER + 1 : 0, repeat ? repeat / FASTER + 1 : 0);
}

/* --- the node --- */

static int listens(const char *name)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    FUZZ_CHECK(mst_path(addr.sun_path, sizeof(addr.sun_path), "%s/%s", fuzz_folder(), name) == 0);
    FUZZ_CHECK(fd >= 0 && bind(fd, (const struct sockaddr *)&addr, sizeof(addr)) == 0 && listen(fd, 4) == 0);
    return fd;
}

static void node_make(void)
{
    static const uint8_t boot_id[16] = {1};
    char path[128];
    struct mst_why why;
    void *at;

    FUZZ_CHECK(mst_path(path, sizeof(path), "%s/vm/v1", fuzz_folder()) == 0 && mst_mkdirs(path, 0700) == 0);
    FUZZ_CHECK(mst_fixed_make(fuzz_folder(), "status", sizeof(*status), &at, &why) == 0);
    status = at;
    FUZZ_CHECK(mst_areas_plan(&areas, "v1", 1, RAM_BYTES, MST_AREAS_LOCAL) == 0 &&
               mst_areas_make(fuzz_folder(), &areas, MST_AREAS_ALL, &why) == 0);
    mst_status_init(&whole, "lab", "n1", 1, INSTANCE, boot_id, 1);
    keeper_listens = listens("keeper.sock");
    monitor_listens[0] = listens("vm/v1/qmp.sock");
    monitor_listens[1] = listens("vm/v1/qmp-spare.sock");
    FUZZ_CHECK(mst_path(path, sizeof(path), "%s/kernel", fuzz_folder()) == 0);
    close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
}

/* --- the keeper's end --- */

static void say(mst_envelope *env)
{
    static uint8_t frame[MST_MESSAGE_BYTES_MAX];
    int n = mst_frame_pack(env, frame, sizeof(frame));

    if (n > 0)
        (void)!send(us.fd, frame, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* Every message of the agent is one, and says its number where it wants an answer. */
static void listen_to_agent(void)
{
    struct mst_why why;
    mst_envelope *env;
    size_t room;
    void *to;
    ssize_t n;
    int r;

    for (;;) {
        to = mst_stream_room(us.in, &room);
        n = recv(us.fd, to, room, MSG_DONTWAIT);
        if (n <= 0)
            return;
        mst_stream_filled(us.in, (size_t)n);
        while ((r = mst_stream_next(us.in, &env, &why)) > 0) {
            if (env->has_id && us.asked_count < ASKED_MAX) {
                us.asked[us.asked_count].id = env->id;
                us.asked[us.asked_count++].body_case = env->body_case;
            }
            mst_envelope_free(env);
        }
        FUZZ_CHECK(r == 0);
    }
}

static void in_folder(char **path)
{
    static char names[8][200];
    static unsigned next;
    const char *last;

    if (!*path || protobuf_c_empty_string == *path)
        return;
    last = strrchr(*path, '/');
    last = last ? last + 1 : *path;
    if (strcmp(last, "..") == 0 || strlen(last) > 80)
        last = "x";
    next = (next + 1) % 8;
    FUZZ_CHECK(mst_path(names[next], sizeof(names[next]), "%s/%s", fuzz_folder(), last) == 0);
    free(*path);
    *path = strdup(names[next]);
    FUZZ_CHECK(*path);
}

static void fix_definition(Mainstay__VmDefinition *def)
{
    in_folder(&def->boot_kernel);
    in_folder(&def->boot_initrd);
    in_folder(&def->boot_state);
}

static void fix_areas(Mainstay__Areas *to)
{
    if (!to)
        return;
    in_folder(&to->ram);
    in_folder(&to->save);
    in_folder(&to->shadow);
    in_folder(&to->delta);
}

static void fix_welcome(Mainstay__AgentWelcome *welcome, bool instance)
{
    if (instance)
        welcome->instance = INSTANCE;
    in_folder(&welcome->status_path);
    free(welcome->run_dir);
    welcome->run_dir = strdup(fuzz_folder());
    for (size_t i = 0; i < welcome->n_vms; i++) {
        fix_definition(welcome->vms[i]->definition);
        fix_areas(welcome->vms[i]->areas);
    }
}

static void fix(mst_envelope *env, unsigned how)
{
    if (how & FIX_REPLY && us.asked_count > 0) {
        env->has_reply_to = 1;
        env->reply_to = us.asked[--us.asked_count].id;
    }
    if (how & FIX_ID) {
        env->has_id = 1;
        env->id = ++us.next_id;
    }
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_AGENT_WELCOME)
        fix_welcome(env->agent_welcome, how & FIX_INSTANCE);
    else if (env->body_case == MAINSTAY__ENVELOPE__BODY_ORDER_START)
        fix_definition(env->order_start->definition);
    else if (env->body_case == MAINSTAY__ENVELOPE__BODY_AREAS_CREATED)
        fix_areas(env->areas_created->areas);
}

static void message(struct fuzz_in *in, unsigned how)
{
    static uint8_t frame[MST_MESSAGE_BYTES_MAX];
    struct mst_why why;
    mst_envelope *env;
    size_t len;
    const uint8_t *piece = fuzz_piece(in, &len);

    if (len > sizeof(frame) - MST_FRAME_HEADER_BYTES)
        return;
    memcpy(frame, "MS\1\0", 4);
    for (unsigned i = 0; i < 4; i++)
        frame[4 + i] = (uint8_t)(len >> 8 * i);
    memcpy(frame + MST_FRAME_HEADER_BYTES, piece, len);
    if (mst_frame_unpack(frame, len + MST_FRAME_HEADER_BYTES, &env, &why) < 0) {
        (void)!send(us.fd, frame, len + MST_FRAME_HEADER_BYTES, MSG_DONTWAIT | MSG_NOSIGNAL);
        return;
    }
    fix(env, how);
    say(env);
    mst_envelope_free(env);
}

/* The oldest request is answered as a keeper would. */
static void obey(void)
{
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    Mainstay__Done done = MAINSTAY__DONE__INIT;
    Mainstay__Spawned spawned = MAINSTAY__SPAWNED__INIT;
    Mainstay__Pulled pulled = MAINSTAY__PULLED__INIT;
    Mainstay__Areas body = MAINSTAY__AREAS__INIT;
    Mainstay__AreasCreated created = MAINSTAY__AREAS_CREATED__INIT;
    char path[MST_AREA_KINDS][200];
    char **to[MST_AREA_KINDS] = {&body.ram, &body.save, &body.shadow, &body.delta};

    if (us.asked_count == 0)
        return;
    env.has_reply_to = 1;
    env.reply_to = us.asked[0].id;
    env.body_case = MAINSTAY__ENVELOPE__BODY_DONE;
    env.done = &done;
    for (unsigned i = 0; i < MST_AREA_KINDS; i++) {
        FUZZ_CHECK(mst_area_path(fuzz_folder(), &areas, (enum mst_area_kind)i, path[i], sizeof(path[i])) == 0);
        *to[i] = path[i];
    }
    body.ram_bytes = RAM_BYTES;
    body.has_delta_capacity = 1;
    body.delta_capacity = areas.delta_capacity;
    created.areas = &body;
    spawned.pid = getpid();
    pulled.save_epoch = pulled.save_seq = pulled.source = 1;
    pulled.device_bytes = 64;
    switch (us.asked[0].body_case) {
    case MAINSTAY__ENVELOPE__BODY_AREAS_CREATE:
        env.body_case = MAINSTAY__ENVELOPE__BODY_AREAS_CREATED;
        env.areas_created = &created;
        break;
    case MAINSTAY__ENVELOPE__BODY_SPAWN:
        env.body_case = MAINSTAY__ENVELOPE__BODY_SPAWNED;
        env.spawned = &spawned;
        break;
    case MAINSTAY__ENVELOPE__BODY_PULL:
        env.body_case = MAINSTAY__ENVELOPE__BODY_PULLED;
        env.pulled = &pulled;
        break;
    default:
        break;
    }
    say(&env);
    memmove(&us.asked[0], &us.asked[1], --us.asked_count * sizeof(us.asked[0]));
}

/* --- QEMU's end --- */

static void qemu_says(unsigned monitor, const void *text, size_t len)
{
    if (us.monitor[monitor] >= 0 && len > 0)
        (void)!send(us.monitor[monitor], text, len, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void device_state(void)
{
    if (us.passed < 0)
        return;
    (void)!write(us.passed, "device state", 12); /* one that QEMU is to read from takes nothing */
    close(us.passed);
    us.passed = -1;
}

static ssize_t hear(int fd, char *to, size_t room)
{
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {to, room};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    const struct cmsghdr *head = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL;

    if (!head || head->cmsg_type != SCM_RIGHTS)
        return n;
    device_state();
    memcpy(&us.passed, CMSG_DATA(head), sizeof(us.passed));
    return n;
}

static void qemu_hears(unsigned monitor)
{
    static const char greeting[] = "{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n";
    size_t room;
    ssize_t n;

    if (us.monitor[monitor] < 0) {
        us.monitor[monitor] = accept4(monitor_listens[monitor], NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (us.monitor[monitor] >= 0)
            qemu_says(monitor, greeting, sizeof(greeting) - 1);
        return;
    }
    room = sizeof(us.lines[0]) - 1 - us.lines_len[monitor];
    if (room == 0) { /* a QEMU that answers nothing reads nothing more either */
        us.lines_len[monitor] = 0;
        return;
    }
    n = hear(us.monitor[monitor], us.lines[monitor] + us.lines_len[monitor], room);
    if (n > 0)
        us.lines_len[monitor] += (size_t)n;
}

/* Answers the oldest command: text is what it returns. */
static void qemu_answers(unsigned monitor, const uint8_t *text, size_t len)
{
    char *line = us.lines[monitor], *end = memchr(line, '\n', us.lines_len[monitor]), *id;
    char out[8192];
    int n;

    if (!end)
        return;
    *end = '\0';
    id = strstr(line, "\"id\":");
    n = snprintf(out, sizeof(out), "{\"return\": %.*s, \"id\": %llu}\r\n", (int)(len < 4000 ? len : 4000),
                 len ? (const char *)text : "{}", id ? strtoull(id + 5, NULL, 10) : 0);
    if (len == 0)
        n = snprintf(out, sizeof(out), "{\"return\": {\"status\": \"running\", \"running\": true}, \"id\": %llu}\r\n",
                     id ? strtoull(id + 5, NULL, 10) : 0);
    qemu_says(monitor, out, n > 0 ? (size_t)n : 0);
    us.lines_len[monitor] -= (size_t)(end + 1 - line);
    memmove(line, end + 1, us.lines_len[monitor]);
}

static void last_words(const void *text, size_t len) /* in qemu.log */
{
    char path[128];
    int fd;

    FUZZ_CHECK(mst_path(path, sizeof(path), "%s/vm/v1/qemu.log", fuzz_folder()) == 0);
    fd = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600);
    FUZZ_CHECK(fd >= 0 && mst_write_all(fd, text, len) == 0);
    close(fd);
}

/* --- */

static bool works(void)
{
    for (const struct mst_vm *vm = us.agent->vms; vm; vm = vm->next)
        if (vm->working)
            return true;
    return false;
}

static void turn(void)
{
    for (unsigned i = 0; i < 3; i++)
        uv_run(&loop, UV_RUN_NOWAIT);
    while (us.agent->port && works())
        uv_run(&loop, UV_RUN_ONCE);
    listen_to_agent();
    qemu_hears(0);
    qemu_hears(1);
}

static void step(struct fuzz_in *in)
{
    unsigned what = fuzz_u8(in) % OPS, how = fuzz_u8(in);
    uint64_t until_ms = mst_now_ms() + how % 16;
    const uint8_t *piece;
    size_t len;

    switch (what) {
    case KEEPER:
        message(in, how);
        break;
    case OBEY:
        for (unsigned i = 0; i < how % 8; i++) {
            obey();
            turn();
        }
        break;
    case LINE:
        piece = fuzz_piece(in, &len);
        device_state();
        qemu_says(how & 1, piece, len);
        break;
    case ANSWER:
        piece = fuzz_piece(in, &len);
        for (unsigned i = 0; i < 1 + (how >> 1) % 8; i++) {
            qemu_answers(how & 1, piece, len);
            turn();
        }
        break;
    case TIME:
        while (mst_now_ms() < until_ms) {
            turn();
            usleep(200);
        }
        break;
    case LAST_WORDS:
        piece = fuzz_piece(in, &len);
        last_words(piece, len);
        break;
    default: /* a monitor ends */
        if (us.monitor[how & 1] >= 0)
            close(us.monitor[how & 1]);
        us.monitor[how & 1] = -1;
        us.lines_len[how & 1] = 0;
    }
    turn();
}

static void end(void)
{
    int fd;

    close(us.fd);
    device_state();
    for (unsigned i = 0; i < MONITORS; i++) {
        if (us.monitor[i] >= 0)
            close(us.monitor[i]);
        while ((fd = accept4(monitor_listens[i], NULL, NULL, SOCK_CLOEXEC)) >= 0)
            close(fd);
    }
    uv_run(&loop, UV_RUN_DEFAULT);
    FUZZ_CHECK(!us.agent->port && !us.agent->vms);
    mst_agent_free(us.agent);
    mst_stream_free(us.in);
    FUZZ_CHECK(uv_loop_close(&loop) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};
    struct mst_why why;
    char path[128];

    if (!status)
        node_make();
    memcpy(status, &whole, sizeof(whole));
    last_words("", 0);
    memset(&us, 0, sizeof(us));
    us.monitor[0] = us.monitor[1] = us.passed = -1;
    FUZZ_CHECK(uv_loop_init(&loop) == 0 && mst_stream_new(&us.in) == 0);
    FUZZ_CHECK(mst_path(path, sizeof(path), "%s/keeper.sock", fuzz_folder()) == 0);
    FUZZ_CHECK(mst_agent_new(&loop, path, &us.agent, &why) == 0);
    us.fd = accept4(keeper_listens, NULL, NULL, SOCK_CLOEXEC);
    FUZZ_CHECK(us.fd >= 0);
    turn();
    while (in.left > 0 && us.agent->port)
        step(&in);
    end();
    return 0;
}

/* --- seeds --- */

static struct fuzz_out out;

static void put(unsigned how, mst_envelope *env)
{
    uint8_t frame[MST_MESSAGE_BYTES_MAX];
    int n = mst_frame_pack(env, frame, sizeof(frame));

    FUZZ_CHECK(n > 0);
    fuzz_put(&out, KEEPER, 1);
    fuzz_put(&out, how, 1);
    fuzz_put_piece(&out, frame + MST_FRAME_HEADER_BYTES, (size_t)n - MST_FRAME_HEADER_BYTES);
}

#define SAY(how, case_, member_, ...)                                                                                            \
    do {                                                                                                                         \
        mst_envelope env_ = MAINSTAY__ENVELOPE__INIT;                                                                            \
        env_.body_case = MAINSTAY__ENVELOPE__BODY_##case_;                                                                       \
        env_.member_ = __VA_ARGS__;                                                                                              \
        put(how, &env_);                                                                                                         \
    } while (0)

static void op(unsigned what, unsigned how)
{
    fuzz_put(&out, what, 1);
    fuzz_put(&out, how, 1);
}

static void text_op(unsigned what, unsigned how, const char *text)
{
    op(what, how);
    fuzz_put_piece(&out, text, strlen(text));
}

static Mainstay__VmDefinition *definition(bool local)
{
    static Mainstay__VmDefinition def;

    mainstay__vm_definition__init(&def);
    def.name = (char *)"v1";
    def.memory_mib = VM_MIB;
    def.boot_kernel = (char *)"kernel";
    def.has_protect = local;
    def.protect = local ? MAINSTAY__PROTECT__PROTECT_LOCAL : MAINSTAY__PROTECT__PROTECT_NONE;
    return &def;
}

static void welcome(unsigned left_state)
{
    Mainstay__AgentWelcome body = MAINSTAY__AGENT_WELCOME__INIT;
    Mainstay__AgentVm vm = MAINSTAY__AGENT_VM__INIT, *list[] = {&vm};
    Mainstay__Areas named = MAINSTAY__AREAS__INIT;

    out.len = 0;
    body.node = (char *)"n1";
    body.status_path = (char *)"status";
    body.run_dir = (char *)"run";
    body.qemu = (char *)"/q";
    body.accel = (char *)"tcg";
    body.n_vms = left_state ? 1 : 0;
    body.vms = list;
    named.ram = (char *)"v1.e1.ram";
    named.save = (char *)"v1.e1.save";
    named.shadow = (char *)"v1.e1.shadow";
    named.delta = (char *)"v1.e1.delta";
    named.ram_bytes = RAM_BYTES;
    named.has_delta_capacity = 1;
    named.delta_capacity = 256;
    vm.definition = definition(true);
    vm.epoch = 1;
    vm.run_state = left_state;
    vm.has_qemu_pid = 1;
    vm.qemu_pid = 4242;
    vm.areas = &named;
    SAY(FIX_INSTANCE, AGENT_WELCOME, agent_welcome, &body);
}

static void start(bool pull, bool local)
{
    Mainstay__OrderStart order = MAINSTAY__ORDER_START__INIT;
    Mainstay__SaveSource source = MAINSTAY__SAVE_SOURCE__INIT;

    source.node = (char *)"n2";
    source.node_id = 2;
    source.epoch = 1;
    order.definition = definition(local);
    order.epoch = 2;
    order.source = pull ? &source : NULL;
    SAY(FIX_ID, ORDER_START, order_start, &order);
    op(OBEY, 4);
    op(TIME, 15);
    text_op(ANSWER, 0, ""); /* qmp_capabilities */
    text_op(ANSWER, 4, "");
    text_op(ANSWER, 1, "");
}

static void orders(void)
{
    Mainstay__OrderSave save = MAINSTAY__ORDER_SAVE__INIT;
    Mainstay__OrderContinue go_on = MAINSTAY__ORDER_CONTINUE__INIT;
    Mainstay__VmExited exited = MAINSTAY__VM_EXITED__INIT;

    save.vm = go_on.vm = exited.vm = (char *)"v1";
    save.epoch = go_on.epoch = exited.epoch = 2;
    op(TIME, 15);
    text_op(ANSWER, 14, "");
    SAY(FIX_ID, ORDER_SAVE, order_save, &save);
    text_op(LINE, 0, "{\"event\": \"STOP\", \"timestamp\": {}}\r\n");
    text_op(ANSWER, 14, "{\"status\": \"paused\", \"running\": false}");
    op(TIME, 10);
    text_op(LINE, 0, "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"completed\"}}\r\n");
    text_op(ANSWER, 14, "");
    SAY(FIX_ID, ORDER_CONTINUE, order_continue, &go_on);
    text_op(ANSWER, 14, "");
    text_op(LINE, 0, "{\"event\": \"GUEST_PANICKED\", \"data\": {\"action\": \"pause\"}}\r\n");
    op(OBEY, 7);
    text_op(LAST_WORDS, 0, "qemu-system-x86_64: -kernel: no such file\nsomething else\n");
    SAY(0, VM_EXITED, vm_exited, &exited);
}

void fuzz_seeds(void)
{
    char name[32];

    for (unsigned how = 0; how < 4; how++) {
        welcome(0);
        start(how & 1, how & 2);
        if (how & 1)
            text_op(LINE, 0, "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"completed\"}}\r\n");
        text_op(ANSWER, 8, "");
        orders();
        snprintf(name, sizeof(name), "start-%u", how);
        fuzz_seed(name, out.bytes, out.len);
    }
    for (unsigned state = MST_RUN_STARTING; state <= MST_RUN_FENCED; state++) {
        welcome(state);
        op(TIME, 5);
        text_op(ANSWER, 0, "");
        text_op(ANSWER, 0, state == MST_RUN_PAUSED ? "{\"status\": \"paused\", \"running\": false}" : "");
        text_op(ANSWER, 8, "");
        start(false, true);
        op(SILENCE, 0);
        op(TIME, 15);
        text_op(ANSWER, 2, "{\"status\": \"guest-panicked\", \"running\": false}");
        snprintf(name, sizeof(name), "left-%u", state);
        fuzz_seed(name, out.bytes, out.len);
    }
}
