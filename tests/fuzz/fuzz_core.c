#include "core_rig.h"

#include "coordinator/io/convert.h"
#include "proto/frame.h"
#include "shm/layout.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The coordinator's core under whatever keepers, agents, operators, the store and the fence devices say, in any order: as plain structs with small
 * numbers, so that epochs and instances meet, and as messages, with any. */

enum {
    TIME,
    COMMIT,
    HELLO,
    BEAT,
    BEAT_FAILED,
    SLOTS,
    ANSWER,
    FENCE_DONE,
    LINK_CLOSED,
    READABLE,
    VM_EVENT,
    REPORT,
    REQUEST,
    MESSAGE,
    OBEY,
    MANAGED,
    OPS
};

static struct rig rig;

static void name_vm(char name[MST_NAME_BYTES], unsigned which)
{
    snprintf(name, MST_NAME_BYTES, "v%u", which < 200 ? which % 5 : which); /* few that meet, and more than the cluster takes */
}

static unsigned node_of(struct fuzz_in *in)
{
    return fuzz_u8(in) % RIG_NODES;
}

static struct mst_definition *definition(unsigned which, unsigned how)
{
    static struct mst_definition def;

    memset(&def, 0, sizeof(def));
    name_vm(def.name, which);
    def.memory_mib = 64 + (how & 3) * 300;
    def.vcpus = 1;
    def.protect = how & 4 ? (which & 1 ? MST_PROTECT_MIRROR : MST_PROTECT_LOCAL) : MST_PROTECT_NONE;
    def.on_node_fault = (uint8_t)((how >> 3) % 5);
    def.on_vm_fault = (uint8_t)((how >> 5) % 5);
    if (how & 0x80)
        def.allowed[def.allowed_count++] = 1 + which % RIG_NODES;
    return &def;
}

static void hello(struct fuzz_in *in)
{
    static struct mst_hello to;
    unsigned flags;

    rig_hello_of(&to, node_of(in), fuzz_u8(in));
    flags = fuzz_u8(in);
    to.earlier_vms_dead = flags & 1;
    to.highest_term = flags >> 1 & 3;
    to.highest_term_by = flags & 8 ? 77 : 0;
    to.highest_decision = flags >> 4 & 7;
    to.host_boot_id[0] = (uint8_t)(flags >> 4);
    to.held_count = fuzz_u8(in) % 6;
    for (unsigned i = 0; i < to.held_count; i++) {
        name_vm(to.held[i].vm, fuzz_u8(in));
        to.held[i].epoch = fuzz_u8(in);
        to.held[i].run_state = fuzz_u8(in) % 32;
        to.held[i].save_seq = fuzz_u8(in);
        to.held[i].image_state = to.held[i].run_state >> 2;
        to.held[i].log_id = to.held[i].save_seq & 3;
        to.held[i].mirrors_count = to.held[i].save_seq % (MST_MIRRORS_MAX + 1);
        for (unsigned k = 0; k < to.held[i].mirrors_count; k++)
            to.held[i].mirrors[k] =
                (struct mst_held_mirror){.node_id = 1 + k, .phase = (uint32_t)(to.held[i].save_seq + k) % 6, .log_id = k};
    }
    (void)rig_hello(&rig, &to);
}

static void beat(struct fuzz_in *in)
{
    unsigned node = node_of(in);
    struct mst_beat to = {
        .read_us = rig.now.us, .keeper_beat = fuzz_u8(in), .agent_beat = fuzz_u8(in), .generation = fuzz_u8(in)};

    to.vm_fault_flags = fuzz_u8(in);
    to.instance = to.generation & 0x80 ? fuzz_u8(in) : rig.instances[node];
    to.agent_up = !(to.generation & 0x40);
    mst_core_beat(rig.core, &rig.now, node, &to);
}

static void slots(struct fuzz_in *in)
{
    static struct mst_slot list[MST_VMS_PER_NODE];
    unsigned node = node_of(in), count = fuzz_u8(in);
    int err = count & 0x80 ? -EIO : 0;

    count = err ? 0 : count % 8;
    memset(list, 0, sizeof(list));
    for (unsigned i = 0; i < count; i++) {
        name_vm(list[i].vm, fuzz_u8(in));
        list[i].epoch = fuzz_u8(in);
        list[i].run_state = 1 + fuzz_u8(in) % MST_RUN_IMAGE;
        list[i].fault_kind = fuzz_u8(in);
        list[i].save_seq = fuzz_u8(in);
        list[i].save_corrupt = list[i].save_seq == 0xff;
        list[i].save_epoch = list[i].save_seq ? list[i].epoch : 0;
        list[i].save_source = 1 + (list[i].save_seq & 1);
        list[i].bytes = 64u << 20;
        list[i].image_state = list[i].run_state == MST_RUN_IMAGE ? list[i].save_seq % 7 : 0;
        list[i].log_id = list[i].fault_kind & 3;
    }
    rig_slots(&rig, node, err, list, count);
}

static void answer(struct fuzz_in *in)
{
    static struct mst_answer to;
    unsigned which = fuzz_u8(in), how = fuzz_u8(in);

    if (rig.orders_count == 0)
        return;
    memset(&to, 0, sizeof(to));
    to.err = how & 1 ? -(int)(how >> 1) : 0;
    to.start.method = how >> 1 & 7;
    to.save_seq = how >> 4;
    to.start.save_epoch = to.start.save_seq = how >> 4;
    to.has_grant = to.has_image = how & 16;
    to.grant.log_id = how >> 5;
    to.grant.mirror_instance = to.image_instance = rig.orders[which % rig.orders_count].instance;
    to.image_epoch = to.image_seq = how >> 5;
    if (how & 8) { /* a FenceResult of its own making */
        to.has_fence = true;
        to.fence_instance = fuzz_u8(in);
        to.fenced_count = fuzz_u8(in) % 6;
        for (unsigned i = 0; i < to.fenced_count; i++) {
            name_vm(to.fenced[i].vm, fuzz_u8(in));
            to.fenced[i].epoch = fuzz_u8(in);
        }
    }
    rig_answer(&rig, which % rig.orders_count, &to);
}

static void report(struct fuzz_in *in)
{
    struct mst_report to = {.kind = fuzz_u8(in) % 16, .text = "seen"};
    unsigned node = node_of(in), how = fuzz_u8(in);

    snprintf(to.node, sizeof(to.node), "n%u", node + 1);
    if (how & 1)
        name_vm(to.vm, fuzz_u8(in));
    to.epoch = how & 2 ? fuzz_u8(in) : 0;
    to.instance = how & 4 ? fuzz_u8(in) : rig.instances[node];
    snprintf(to.reporter, sizeof(to.reporter), "n1");
    mst_core_report(rig.core, &rig.now, how & 8 ? rig.links[node] : 0, how & 16 ? rig_token(&rig) : 0, &to);
}

static void request(struct fuzz_in *in)
{
    struct mst_request to = {.type = (enum mst_request_type)(1 + fuzz_u8(in) % MST_REQ_CONFIRM_DEAD), .text = "seen to be off"};
    unsigned which = fuzz_u8(in), how = fuzz_u8(in);
    uint64_t token = rig_token(&rig);

    if (token == 0)
        return;
    if (to.type >= MST_REQ_DRAIN)
        snprintf(to.name, sizeof(to.name), "n%u", which % (RIG_NODES + 1) + 1);
    else
        name_vm(to.name, which);
    if (to.type == MST_REQ_DEFINE)
        to.definition = definition(which, how);
    to.replace = how & 1;
    if (to.type == MST_REQ_START && how & 1)
        snprintf(to.node, sizeof(to.node), "n%u", (how >> 1) % 4 + 1);
    (void)mst_core_request(rig.core, &rig.now, token, &to);
}

static void vm_event(struct fuzz_in *in)
{
    struct mst_vm_event to = {.text = ""};
    struct mst_mirror_news news = {.text = ""};
    unsigned node = node_of(in);

    name_vm(to.vm, fuzz_u8(in));
    to.epoch = fuzz_u8(in);
    to.run_state = fuzz_u8(in) % 32;
    mst_core_vm_event(rig.core, &rig.now, rig.links[node], &to);
    news.phase = to.run_state % 6;
    news.log_id = to.run_state >> 2 & 3;
    news.epoch = to.epoch;
    news.acked_seq = to.run_state;
    memcpy(news.vm, to.vm, sizeof(news.vm));
    snprintf(news.node, sizeof(news.node), "n%u", 1 + (to.run_state >> 1) % RIG_NODES);
    mst_core_mirror(rig.core, &rig.now, rig.links[node], &news);
}

/* As coordinator/io/links.c and operator.c hand them on. */
static void dispatch(const mst_envelope *env, unsigned node)
{
    static union {
        struct mst_hello hello;
        struct mst_report report;
        struct mst_answer answer;
        struct mst_vm_event event;
        struct mst_mirror_news news;
        struct mst_definition definition;
    } to;
    struct mst_request request = {.type = MST_REQ_DEFINE, .definition = &to.definition};
    struct mst_why why;
    uint64_t token;

    switch (env->body_case) {
    case MAINSTAY__ENVELOPE__BODY_HELLO:
        mst_convert_hello(env->hello, &to.hello);
        (void)rig_hello(&rig, &to.hello);
        break;
    case MAINSTAY__ENVELOPE__BODY_FAULT_REPORT:
        mst_convert_report(env->fault_report, &to.report);
        mst_core_report(rig.core, &rig.now, rig.links[node], rig_token(&rig), &to.report);
        break;
    case MAINSTAY__ENVELOPE__BODY_VM_EVENT:
        mst_convert_event(env->vm_event, &to.event);
        mst_core_vm_event(rig.core, &rig.now, rig.links[node], &to.event);
        break;
    case MAINSTAY__ENVELOPE__BODY_MIRROR_STATE:
        mst_convert_mirror(env->mirror_state, &to.news);
        mst_core_mirror(rig.core, &rig.now, rig.links[node], &to.news);
        break;
    case MAINSTAY__ENVELOPE__BODY_DONE:
        mst_convert_answer(env->done, &to.answer);
        if (env->has_reply_to && env->reply_to < rig.orders_count)
            rig_answer(&rig, (unsigned)env->reply_to, &to.answer);
        else
            mst_core_answer(rig.core, &rig.now, env->reply_to, &to.answer);
        break;
    case MAINSTAY__ENVELOPE__BODY_VM_DEFINE:
        token = rig_token(&rig);
        if (token == 0 || mst_convert_definition(env->vm_define->definition, rig.core, &to.definition, &why) < 0)
            break;
        memcpy(request.name, to.definition.name, sizeof(request.name));
        (void)mst_core_request(rig.core, &rig.now, token, &request);
        break;
    default:
        break;
    }
}

static void message(struct fuzz_in *in)
{
    unsigned node = node_of(in);
    struct mst_why why;
    mst_envelope *env;
    uint8_t *frame;
    size_t len;
    const uint8_t *piece = fuzz_piece(in, &len);

    frame = malloc(len + MST_FRAME_HEADER_BYTES);
    FUZZ_CHECK(frame);
    memcpy(frame, "MS\1\0", 4);
    for (unsigned i = 0; i < 4; i++)
        frame[4 + i] = (uint8_t)(len >> 8 * i);
    memcpy(frame + MST_FRAME_HEADER_BYTES, piece, len);
    if (mst_frame_unpack(frame, len + MST_FRAME_HEADER_BYTES, &env, &why) == 0) {
        dispatch(env, node);
        mst_envelope_free(env);
    }
    free(frame);
}

static void managed(struct fuzz_in *in)
{
    unsigned node = node_of(in), how = fuzz_u8(in);
    struct mst_managed answer = {.instance = rig.instances[node] + (how & 3), .vms_running = how >> 4};

    answer.boot_id[0] = (uint8_t)(how >> 4);
    answer.highest_decision = how & 8 ? fuzz_u8(in) : 0;
    answer.beat.instance = answer.instance;
    answer.beat.keeper_beat = fuzz_u16(in);
    rig_managed(&rig, node, how == 0xff ? NULL : &answer);
}

static void link_closed(struct fuzz_in *in)
{
    unsigned node = node_of(in);
    uint64_t link = rig.links[node];

    rig.links[node] = 0;
    if (link)
        mst_core_link_closed(rig.core, &rig.now, link, -ECONNRESET, "gone");
}

static void step(struct fuzz_in *in)
{
    unsigned byte;

    switch (fuzz_u8(in) % OPS) {
    case TIME:
        rig_tick(&rig, fuzz_u16(in));
        break;
    case COMMIT:
        byte = fuzz_u8(in);
        rig_commit(&rig, byte >= 0xf0 ? -ENOSPC : 0);
        break;
    case HELLO:
        hello(in);
        break;
    case BEAT:
        beat(in);
        break;
    case BEAT_FAILED:
        mst_core_beat_failed(rig.core, &rig.now, node_of(in), rig.now.us);
        break;
    case SLOTS:
        slots(in);
        break;
    case ANSWER:
        answer(in);
        break;
    case FENCE_DONE:
        byte = fuzz_u8(in);
        rig_fence_done(&rig, byte % RIG_NODES, byte & 0x80 ? -EIO : 0);
        break;
    case LINK_CLOSED:
        link_closed(in);
        break;
    case READABLE:
        byte = fuzz_u8(in);
        mst_core_readable(rig.core, &rig.now, byte % RIG_NODES, byte & 0x80);
        break;
    case VM_EVENT:
        vm_event(in);
        break;
    case REPORT:
        report(in);
        break;
    case REQUEST:
        request(in);
        break;
    case MESSAGE:
        message(in);
        break;
    case MANAGED:
        managed(in);
        break;
    default:
        rig_obey(&rig);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};

    rig_open(&rig);
    mst_core_start(rig.core, &rig.now);
    rig_commit(&rig, 0);
    while (in.left > 0)
        step(&in);
    rig_look(&rig);
    rig_close(&rig);
    return 0;
}

/* --- seeds: how a cluster lives --- */

static struct fuzz_out out;

static void op(unsigned what, const void *args, size_t len)
{
    fuzz_put(&out, what, 1);
    fuzz_put_bytes(&out, args, len);
}

#define OP(what, ...) op(what, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

static void cluster_begins(void)
{
    out.len = 0;
    for (uint8_t i = 0; i < RIG_NODES; i++) {
        OP(HELLO, i, (uint8_t)(10 + i), 1, 0);
        OP(OBEY, OBEY);
        OP(BEAT, i, 1, 1, 1, 0);
        OP(TIME, 50, 0);
        OP(BEAT, i, 2, 2, 1, 0);
    }
    OP(REQUEST, MST_REQ_DEFINE - 1, 1, 4);
    OP(OBEY, OBEY);
    OP(REQUEST, MST_REQ_START - 1, 1, 1);
    OP(OBEY, OBEY);
    OP(TIME, 100, 0);
    OP(OBEY, OBEY);
}

static void done(const char *name)
{
    OP(OBEY, OBEY);
    OP(TIME, 0xe8, 3);
    OP(OBEY, OBEY);
    OP(TIME, 0xe8, 3);
    OP(OBEY, OBEY);
    fuzz_seed(name, out.bytes, out.len);
}

static void put_message(mst_envelope *env)
{
    uint8_t frame[MST_MESSAGE_BYTES_MAX];
    int n = mst_frame_pack(env, frame, sizeof(frame));

    FUZZ_CHECK(n > 0);
    OP(MESSAGE, 0);
    fuzz_put_piece(&out, frame + MST_FRAME_HEADER_BYTES, (size_t)n - MST_FRAME_HEADER_BYTES);
}

static void seed_messages(void)
{
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    Mainstay__FaultReport report = MAINSTAY__FAULT_REPORT__INIT;
    Mainstay__VmEvent event = MAINSTAY__VM_EVENT__INIT;
    Mainstay__Done answer = MAINSTAY__DONE__INIT;

    cluster_begins();
    report.kind = MAINSTAY__FAULT_KIND__FAULT_PROCESSOR;
    report.node = (char *)"n1";
    report.reporter = (char *)"n1";
    report.text = (char *)"machine check";
    env.body_case = MAINSTAY__ENVELOPE__BODY_FAULT_REPORT;
    env.fault_report = &report;
    put_message(&env);
    event.vm = (char *)"v1";
    event.epoch = 1;
    event.run_state = MST_RUN_DEAD;
    env.body_case = MAINSTAY__ENVELOPE__BODY_VM_EVENT;
    env.vm_event = &event;
    put_message(&env);
    OP(COMMIT, 0);
    env.has_reply_to = 1;
    env.body_case = MAINSTAY__ENVELOPE__BODY_DONE;
    env.done = &answer;
    put_message(&env);
    done("messages");
}

void fuzz_seeds(void)
{
    cluster_begins();
    done("start");
    cluster_begins();
    OP(SLOTS, 0, 1, 1, 1, 2, 0, 3);
    OP(REPORT, 1, 0, 3, 1, 1); /* QEMU of v1 ended on n1 */
    OP(OBEY, OBEY);
    OP(ANSWER, 0, 0);
    done("vm-fault");
    cluster_begins();
    OP(LINK_CLOSED, 0);
    OP(TIME, 0x88, 0x13);
    OP(BEAT_FAILED, 0);
    OP(TIME, 0x88, 0x13);
    OP(FENCE_DONE, 0);
    done("node-lost");
    cluster_begins();
    OP(REQUEST, MST_REQ_DRAIN - 1, 0, 0);
    OP(OBEY, OBEY);
    OP(REQUEST, MST_REQ_STOP - 1, 1, 0);
    OP(REQUEST, MST_REQ_UNDEFINE - 1, 1, 0);
    done("drain");
    cluster_begins();
    OP(LINK_CLOSED, 2);
    OP(TIME, 0x88, 0x13);
    OP(REQUEST, MST_REQ_CONFIRM_DEAD - 1, 2, 0);
    OP(HELLO, 2, 99, 0, 2, 1, 1, 2, 3, 2, 1, 3, 0);
    done("return");
    cluster_begins();
    OP(LINK_CLOSED, 1);
    for (unsigned i = 0; i < 5; i++) {
        OP(TIME, 0xe8, 0x03);
        OP(MANAGED, 1, 0, 9, (uint8_t)i);
        OP(COMMIT, 0);
    }
    OP(MANAGED, 1, 0xff, 0, 0);
    OP(TIME, 0x88, 0x13);
    OP(OBEY, OBEY);
    done("degraded");
    seed_messages();
}
