#include "fuzz.h"

#include "node/keeper/images.h"
#include "node/keeper/mirrors.h"
#include "proto/socket.h"
#include "shm/save.h"
#include "tests/sim/seam/seam_calls.h"
#include "tests/sim/world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* The whole keeper (control links, orders, peers, pulls, mirrors, served links, lease, agent's requests) on the simulator's machine, and everybody it talks
 * to is the input: two coordinators, its agent, another node's keeper with its memory. Messages are any bytes; what a real peer would know
 * and a fuzzer cannot guess (instance, term, number of the request it answers, keys of memory) is put in where the input asks for it. */

enum { CONTROL, AGENT, KEYS, LEASE, MEMORY, TIME, LINK, STOP, QEMU_ENDS, SAVE, MANAGE, OPS };
enum { FIX_INSTANCE = 1, FIX_TERM = 2, FIX_REPLY = 4, FIX_ID = 8, FIX_KEYS = 16, FIX_SOURCE = 32, SECOND = 64 };
enum {
    CLOSE_1,
    CLOSE_2,
    WATCH,
    WATCH_STRANGER,
    PULL,
    CONTROL_ROLE,
    CLOSE_WATCH,
    CLOSE_PULL,
    SAY_WATCH,
    SAY_PULL,
    CLOSE_AGENT,
    CARD,
    MIRROR_CALL, /* the other node writes a log here; SAY_LOG, CLOSE_LOG: over that link */
    SAY_LOG,
    CLOSE_LOG,
    SAY_MIRROR, /* over the link by which the keeper writes the other node's log */
    CLOSE_MIRROR,
    LINKS
};
enum { BEAT, RECORD, SLOTS, SUMS, RAM, SHADOW, DELTA, MEMORIES };

#define PEER_INSTANCE 77u
#define PEER_EPOCH    3u
#define VM_MIB        1u
#define RAM_BYTES     ((VM_MIB << 20) / SIM_RAM_SHRINK)
#define DEVICE        64u
#define QEMU          "/sim/qemu"

struct memory { /* of the other node */
    struct mst_status_area *status;
    uint8_t *area[MST_AREA_KINDS];
};

static struct {
    struct sim_host *n1, *n2, *c[2];
    struct mst_link *control[2], *watch, *pull, *pulled; /* pull: ours to the keeper; pulled: the keeper's to us */
    struct mst_link *log, *mirror;                       /* the same, of mirrors */
    struct mst_region *log_region;
    struct mst_sock *agent, *manage;
    uint64_t asked_by_control[2], asked_by_agent, next_id; /* newest request of the keeper, to be answered */
    struct mst_region *region[MST_AREA_KINDS], *status, *line_region;
    uint64_t grant_addr;
    uint32_t grant_rkey;
    struct mst_lease_line line;
    uint64_t renewal;
} us;
static struct memory memory;
static size_t area_bytes[MST_AREA_KINDS];
static uint8_t other_log[MST_MLOG_RING_OFF + MST_MLOG_RING_MIN];
static struct mst_save_layout save_layout;
static struct mst_status_area whole_status;
static uint8_t whole_ram[RAM_BYTES], whole_shadow[RAM_BYTES], whole_delta[MST_PAGE_BYTES],
    whole_sums[2][RAM_BYTES / MST_PAGE_BYTES * 4];

static struct mst_keeper *keeper(void)
{
    return us.n1->keeper.alive ? us.n1->k : NULL;
}

/* --- the memory of the other node: a real save --- */

static void *pages(size_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    FUZZ_CHECK(at != MAP_FAILED);
    return at;
}

static void keep(bool back)
{
    const struct {
        void *at, *copy;
        size_t bytes;
    } parts[] = {{memory.status, &whole_status, sizeof(whole_status)},
                 {memory.area[MST_AREA_RAM], whole_ram, sizeof(whole_ram)},
                 {memory.area[MST_AREA_SHADOW], whole_shadow, sizeof(whole_shadow)},
                 {memory.area[MST_AREA_DELTA], whole_delta, sizeof(whole_delta)},
                 {memory.area[MST_AREA_SAVE] + save_layout.shadow_sums_off, whole_sums[0], sizeof(whole_sums[0])},
                 {memory.area[MST_AREA_SAVE] + save_layout.ram_sums_off, whole_sums[1], sizeof(whole_sums[1])}};

    for (unsigned i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
        memcpy(back ? parts[i].at : parts[i].copy, back ? parts[i].copy : parts[i].at, parts[i].bytes);
}

static void memory_make(void)
{
    struct mst_areas areas;
    struct mst_save_map map;
    struct mst_save_writer *writer;
    struct mst_vm_slot slot = {0};
    uint8_t boot[16] = {2, 1};
    uint64_t room;

    FUZZ_CHECK(product_areas_plan(&areas, "v1", PEER_EPOCH, RAM_BYTES, MST_AREAS_LOCAL) == 0 &&
               mst_save_layout(RAM_BYTES, &save_layout) == 0);
    memory.status = pages(sizeof(*memory.status));
    for (unsigned i = 0; i < MST_AREA_KINDS; i++)
        memory.area[i] = pages(area_bytes[i] = areas.area[i].bytes);
    mst_status_init(memory.status, "sim", "n2", 2, PEER_INSTANCE, boot, 1);
    map = (struct mst_save_map){.ram_bytes = RAM_BYTES,
                                .ram = memory.area[MST_AREA_RAM],
                                .save = memory.area[MST_AREA_SAVE],
                                .shadow = memory.area[MST_AREA_SHADOW],
                                .delta = memory.area[MST_AREA_DELTA],
                                .delta_capacity = areas.delta_capacity,
                                .record = memory.status->vms[0].save,
                                .epoch = PEER_EPOCH,
                                .instance = PEER_INSTANCE};
    memset(memory.area[MST_AREA_RAM], 7, RAM_BYTES);
    FUZZ_CHECK(mst_save_writer_new(&map, &writer) == 0);
    memset(mst_save_device(writer, &room), 1, DEVICE);
    FUZZ_CHECK(mst_save_commit_ram(writer, DEVICE, 1, 2, 3) == 0);
    mst_save_shadow_from_ram(writer);
    memory.area[MST_AREA_RAM][MST_PAGE_BYTES]++;
    mst_save_begin(writer);
    memset(mst_save_device(writer, &room), 2, DEVICE);
    FUZZ_CHECK(mst_save_stage(writer, 1) == 0 && mst_save_commit(writer, DEVICE, 1, 2, 3) == 0);
    mst_save_writer_free(writer);
    strcpy(slot.vm, "v1");
    slot.run_state = MST_RUN_FENCED;
    slot.ram_bytes = RAM_BYTES;
    slot.save_bytes = area_bytes[MST_AREA_SAVE];
    slot.shadow_bytes = area_bytes[MST_AREA_SHADOW];
    slot.delta_bytes = area_bytes[MST_AREA_DELTA];
    mst_pub_write(memory.status->vms[0].info, PEER_EPOCH, PEER_INSTANCE, &slot, sizeof(slot));
    keep(false);
}

static void patch(void *to, size_t bytes, size_t offset, const uint8_t *piece, size_t len)
{
    offset %= bytes;
    memcpy((uint8_t *)to + offset, piece, len < bytes - offset ? len : bytes - offset);
}

static void change(unsigned what, size_t offset, const uint8_t *piece, size_t len)
{
    struct mst_beat_line beat = {.keeper_beat = memory.status->beat.keeper_beat + 1, .instance = PEER_INSTANCE};
    struct mst_save_record record = {0};
    struct mst_pub_head head = {.epoch = PEER_EPOCH, .instance = PEER_INSTANCE};

    switch (what % MEMORIES) {
    case BEAT:
        mst_beat_write(&memory.status->beat, &beat);
        break;
    case RECORD:
        (void)mst_pub_read(memory.status->vms[0].save, &head, &record, sizeof(record));
        patch(&record, sizeof(record), offset, piece, len);
        mst_pub_write(memory.status->vms[0].save, head.epoch, head.instance, &record, sizeof(record));
        break;
    case SLOTS:
        patch(memory.status->vms[0].save, sizeof(memory.status->vms[0].save), offset, piece, len);
        break;
    case SUMS:
        patch(memory.area[MST_AREA_SAVE] + (offset & 0x8000 ? save_layout.ram_sums_off : save_layout.shadow_sums_off),
              sizeof(whole_sums[0]), offset, piece, len);
        break;
    case RAM:
        patch(memory.area[MST_AREA_RAM], RAM_BYTES, offset, piece, len);
        break;
    case SHADOW:
        patch(memory.area[MST_AREA_SHADOW], RAM_BYTES, offset, piece, len);
        break;
    default: /* table of the delta */
        patch(memory.area[MST_AREA_DELTA], sizeof(whole_delta), offset, piece, len);
    }
}

/* --- what the keeper says is a message, and true --- */

/* A VM that the keeper says is fenced: no process of this epoch is left. */
static void fenced(const Mainstay__FenceResult *fence)
{
    const struct mst_keeper *k = keeper();

    for (size_t i = 0; k && fence->instance == k->instance && i < fence->n_vms; i++) {
        uint64_t lives = mst_guard_process(k->guard, fence->vms[i]->vm);

        FUZZ_CHECK(lives == 0 || lives > fence->vms[i]->epoch);
    }
}

static void one_process_to_a_vm(void)
{
    for (const struct sim_task *a = us.n1->tasks; a; a = a->next)
        for (const struct sim_task *b = a->next; b; b = b->next)
            FUZZ_CHECK(!a->alive || !b->alive || a->is_agent || b->is_agent || strcmp(a->cgroup, b->cgroup) != 0);
}

static void control_message(struct mst_link *link, const void *data, size_t len, void *arg)
{
    uint64_t *asked = arg;
    struct mst_why why;
    mst_envelope *env;

    (void)link;
    FUZZ_CHECK(mst_frame_unpack(data, len, &env, &why) == 0);
    if (env->has_id)
        *asked = env->id;
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_DONE && env->done->fence)
        fenced(env->done->fence);
    mst_envelope_free(env);
}

static void served_message(struct mst_link *link, const void *data, size_t len, void *arg)
{
    struct mst_why why;
    mst_envelope *env;

    (void)arg;
    FUZZ_CHECK(mst_frame_unpack(data, len, &env, &why) == 0);
    FUZZ_CHECK(env->body_case == (link == us.mirror ? MAINSTAY__ENVELOPE__BODY_MIRROR_WRITTEN : MAINSTAY__ENVELOPE__BODY_KEYS) ||
               (link == us.log &&
                (env->body_case == MAINSTAY__ENVELOPE__BODY_MIRROR_KEY || env->body_case == MAINSTAY__ENVELOPE__BODY_MIRROR_ACK ||
                 env->body_case == MAINSTAY__ENVELOPE__BODY_REFUSE)));
    if (link == us.watch && env->keys->grant) {
        us.grant_addr = env->keys->grant->addr;
        us.grant_rkey = env->keys->grant->rkey;
    }
    mst_envelope_free(env);
}

static void forget(struct mst_link *link)
{
    for (unsigned i = 0; i < 2; i++)
        if (us.control[i] == link)
            us.control[i] = NULL;
    if (us.watch == link)
        us.watch = NULL;
    if (us.pull == link)
        us.pull = NULL;
    if (us.pulled == link)
        us.pulled = NULL;
    if (us.log == link)
        us.log = NULL;
    if (us.mirror == link)
        us.mirror = NULL;
}

static void on_closed(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    (void)err, (void)why, (void)arg;
    forget(link);
}

static void on_open(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct mst_why text;

    (void)why, (void)arg;
    if (err < 0) {
        forget(link);
        return;
    }
    if (link == us.watch)
        FUZZ_CHECK(mst_region_new(link, &us.line, sizeof(us.line), MST_ACCESS_LOCAL, &us.line_region, &text) == 0);
    if (link == us.mirror)
        FUZZ_CHECK(mst_region_new(link, other_log, sizeof(other_log), MST_ACCESS_REMOTE_WRITE, &us.log_region, &text) == 0);
    if (link != us.pulled)
        return;
    FUZZ_CHECK(mst_region_new(link, memory.status, sizeof(*memory.status), MST_ACCESS_REMOTE_READ, &us.status, &text) == 0);
    for (unsigned i = 0; i < MST_AREA_KINDS; i++)
        FUZZ_CHECK(mst_region_new(link, memory.area[i], area_bytes[i], MST_ACCESS_REMOTE_READ, &us.region[i], &text) == 0);
}

static const struct mst_link_events control_events = {on_open, control_message, on_closed};
static const struct mst_link_events served_events = {on_open, served_message, on_closed};

static int on_accept(struct mst_link *link, const struct mst_link_request *request, void *arg,
                     const struct mst_link_events **ret_events, void **ret_arg, struct mst_why *why)
{
    const struct sim_host *host = arg;
    unsigned i = host == us.c[1];

    (void)why;
    FUZZ_CHECK(host == us.n2 ? request->role == MST_ROLE_PULL || request->role == MST_ROLE_MIRROR
                             : request->role == MST_ROLE_CONTROL);
    *ret_events = host == us.n2 ? &served_events : &control_events;
    *ret_arg = &us.asked_by_control[i];
    if (request->role == MST_ROLE_MIRROR)
        us.mirror = link;
    else if (host == us.n2)
        us.pulled = link;
    else
        us.control[i] = link;
    return 0;
}

/* --- the agent --- */

static void agent_message(struct mst_sock *sock, const mst_envelope *env, void *arg)
{
    (void)sock, (void)arg;
    FUZZ_CHECK(env->body_case != MAINSTAY__ENVELOPE__BODY__NOT_SET);
    if (env->has_id)
        us.asked_by_agent = env->id;
}

static void agent_closed(struct mst_sock *sock, int err, const struct mst_why *why, void *arg)
{
    (void)sock, (void)err, (void)why, (void)arg;
    us.agent = NULL;
}

static void agent_born(void *arg)
{
    static const struct mst_sock_events events = {agent_message, agent_closed};
    struct mst_why why;

    (void)arg;
    if (mst_sock_connect(NULL, "keeper.sock", &events, NULL, &us.agent, &why) < 0)
        us.agent = NULL;
}

static void agent_starts(void *arg)
{
    const struct sim_task *task = arg;

    if (!task->alive || us.n1->agent.alive)
        return;
    sim_proc_start(&us.n1->agent);
    sim_as(&us.n1->agent, agent_born, NULL);
}

void sim_agent_started(struct sim_host *host, struct sim_task *task)
{
    (void)host;
    sim_at(NULL, SIM_MS, agent_starts, task);
}

void sim_agent_gone(struct sim_host *host)
{
    if (!host->agent.alive)
        return;
    us.agent = NULL;
    sim_proc_kill(&host->agent);
    sim_socket_proc_gone(&host->agent);
}

void sim_agent_beat(struct sim_host *host)
{
    (void)host;
}

void sim_agent_unmap(struct sim_host *host, const struct sim_file *file)
{
    (void)host, (void)file;
}

/* --- whoever asks at the management address --- */

static void manage_message(struct mst_sock *sock, const mst_envelope *env, void *arg)
{
    struct mst_beat_line beat;

    (void)sock, (void)arg;
    FUZZ_CHECK(env->body_case == MAINSTAY__ENVELOPE__BODY_MANAGE_ANSWER);
    memcpy(&beat, env->manage_answer->beat.data, sizeof(beat));
    FUZZ_CHECK(mst_beat_check(&beat) == 0 && beat.instance == env->manage_answer->instance);
}

static void manage_closed(struct mst_sock *sock, int err, const struct mst_why *why, void *arg)
{
    (void)err, (void)why, (void)arg;
    if (us.manage == sock)
        us.manage = NULL;
}

static void manage_call(void *arg)
{
    static const struct mst_sock_events events = {manage_message, manage_closed};
    struct mst_why why;

    (void)arg;
    if (mst_sock_connect_tcp(NULL, us.n1->management, MST_MANAGEMENT_PORT, &events, NULL, &us.manage, &why) < 0)
        us.manage = NULL;
}

/* --- saying --- */

struct said { /* by a process of ours */
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

static void fix_region(Mainstay__Region *to, const struct mst_region *region)
{
    if (to && region)
        mst_region_key(region, &to->addr, &to->rkey);
}

static void fix_keys(Mainstay__Keys *keys)
{
    if (!us.pulled)
        return;
    fix_region(keys->status, us.status);
    for (size_t i = 0; i < keys->n_vms; i++) {
        fix_region(keys->vms[i]->ram, us.region[MST_AREA_RAM]);
        fix_region(keys->vms[i]->save, us.region[MST_AREA_SAVE]);
        fix_region(keys->vms[i]->shadow, us.region[MST_AREA_SHADOW]);
        fix_region(keys->vms[i]->delta, us.region[MST_AREA_DELTA]);
    }
}

static void fix_source(mst_envelope *env)
{
    Mainstay__SaveSource *source = NULL;

    if (env->body_case == MAINSTAY__ENVELOPE__BODY_PULL)
        source = env->pull->source;
    else if (env->body_case == MAINSTAY__ENVELOPE__BODY_ORDER_START)
        source = env->order_start->source;
    if (source)
        source->instance = keeper()->instance; /* an older epoch of its own */
}

static void line_make(uint32_t flags, uint32_t lease_ms, uint32_t back)
{
    const struct mst_keeper *k = keeper();

    us.line = (struct mst_lease_line){.instance = k->instance,
                                      .term = mst_guard_term(k->guard),
                                      .coordinator = mst_guard_term_by(k->guard),
                                      .renewal = (mst_guard_term_by(k->guard) & UINT32_MAX) << 32 | ++us.renewal,
                                      .beat = k->beat - back,
                                      .lease_ms = lease_ms,
                                      .flags = flags,
                                      .coordinator_id = 1,
                                      .version = MST_LEASE_VERSION};
}

/* What a mirror, or its source, was told. */
static void fix_mirror(mst_envelope *env)
{
    const struct mst_mirror *mirror = keeper()->mirrors ? keeper()->mirrors->first : NULL;
    const struct mst_held_image *held = keeper()->vms[0].image ? keeper()->vms[0].image : keeper()->vms[1].image;

    if (env->body_case == MAINSTAY__ENVELOPE__BODY_MIRROR_WRITTEN && held)
        env->mirror_written->log_id = held->grant.log_id;
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_MIRROR_ACK && mirror) {
        env->mirror_ack->log_id = mirror->grant.log_id;
        env->mirror_ack->epoch = mirror->grant.epoch;
    }
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_MIRROR_KEY && mirror && us.mirror) {
        env->mirror_key->log_id = mirror->grant.log_id;
        env->mirror_key->instance = mirror->grant.mirror_instance;
        fix_region(env->mirror_key->log, us.log_region);
    }
}

static void fix(mst_envelope *env, unsigned how, uint64_t asked)
{
    const struct mst_keeper *k = keeper();

    if (how & FIX_INSTANCE && k) {
        env->has_instance = 1;
        env->instance = k->instance;
    }
    if (how & FIX_TERM && k) {
        env->has_term = 1;
        env->term = mst_guard_term(k->guard);
    }
    if (how & FIX_REPLY) {
        env->has_reply_to = 1;
        env->reply_to = asked;
    }
    if (how & FIX_ID) {
        env->has_id = 1;
        env->id = ++us.next_id;
    }
    if (how & FIX_KEYS && env->body_case == MAINSTAY__ENVELOPE__BODY_KEYS)
        fix_keys(env->keys);
    if (how & FIX_KEYS && k)
        fix_mirror(env);
    if (how & FIX_SOURCE && k)
        fix_source(env);
    if (how & FIX_TERM && k && env->body_case == MAINSTAY__ENVELOPE__BODY_MANAGE_ASK && env->manage_ask->has_lease) {
        line_make(how >> 7, MST_LEASE_MS_MIN, 1);
        us.line.crc32c = mst_crc32c(&us.line, offsetof(struct mst_lease_line, crc32c));
        memcpy(env->manage_ask->lease.data, &us.line, sizeof(us.line));
    }
}

/* A body with a header made for it, corrected as how says; what is no message goes out as it is. */
static void message(struct fuzz_in *in, struct sim_proc *proc, struct mst_link *link, struct mst_sock *sock, uint64_t asked,
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
        fix(env, how, asked);
        n = mst_frame_pack(env, frame, sizeof(frame));
        said.env = env;
        said.len = n > 0 ? (size_t)n : said.len;
        sim_as(proc, say, &said);
        mst_envelope_free(env);
    } else if (link) {
        sim_as(proc, say, &said);
    }
}

/* --- the rest of what peers do --- */

static void written(void *arg, int err)
{
    (void)arg, (void)err;
}

static void lease_write(void *arg)
{
    (void)arg;
    (void)mst_link_write(us.watch, us.line_region, 0, us.grant_addr + sizeof(us.line), us.grant_rkey, sizeof(us.line), 1000,
                         written, NULL);
}

/* The line of coordinator 1. */
static void lease(struct fuzz_in *in)
{
    const struct mst_keeper *k = keeper();
    unsigned how = fuzz_u8(in);
    uint32_t lease_ms = fuzz_u16(in) * 4u, back = fuzz_u8(in);
    size_t len;
    const uint8_t *piece = fuzz_piece(in, &len);

    if (!k || !us.watch || us.grant_addr == 0)
        return;
    line_make(how & 1, lease_ms, back);
    patch(&us.line, sizeof(us.line), how >> 2, piece, len);
    if (!(how & 2))
        us.line.crc32c = mst_crc32c(&us.line, offsetof(struct mst_lease_line, crc32c));
    sim_as(&us.c[0]->coord, lease_write, NULL);
}

static struct sim_proc *proc_of(const struct mst_link *link)
{
    return link == us.control[1]                                                         ? &us.c[1]->coord
           : link == us.pull || link == us.pulled || link == us.log || link == us.mirror ? &us.n2->keeper
                                                                                         : &us.c[0]->coord;
}

static void close_it(void *arg)
{
    mst_link_close(arg);
}

static void end_link(struct mst_link *link)
{
    if (link)
        sim_as(proc_of(link), close_it, link);
}

struct calling {
    struct sim_host *host;
    enum mst_role role;
    struct mst_link **to;
};

static void call_it(void *arg)
{
    const struct calling *calling = arg;
    const struct mst_held_image *held =
        keeper() ? keeper()->vms[0].image ? keeper()->vms[0].image : keeper()->vms[1].image : NULL;
    uint64_t log_id = held ? held->grant.log_id : 0;
    struct mst_link *link;
    struct mst_why why;

    if (mst_fabric_connect(calling->host->fabric, us.n1->address, MST_NODE_PORT, calling->role, &log_id,
                           calling->role == MST_ROLE_MIRROR ? sizeof(log_id) : 0, 500, &served_events, NULL, &link, &why) == 0 &&
        calling->to)
        *calling->to = link;
}

static void call(struct sim_host *host, struct sim_proc *proc, enum mst_role role, struct mst_link **to)
{
    struct calling calling = {host, role, to};

    sim_as(proc, call_it, &calling);
}

static void agent_close(void *arg)
{
    mst_sock_close(arg);
}

static void linking(struct fuzz_in *in)
{
    unsigned what = fuzz_u8(in) % LINKS;

    switch (what) {
    case CLOSE_1:
    case CLOSE_2:
        end_link(us.control[what - CLOSE_1]);
        break;
    case WATCH:
        us.grant_addr = 0;
        call(us.c[0], &us.c[0]->coord, MST_ROLE_WATCH, &us.watch);
        break;
    case WATCH_STRANGER:
        call(us.n2, &us.n2->keeper, MST_ROLE_WATCH, NULL);
        break;
    case PULL:
        call(us.n2, &us.n2->keeper, MST_ROLE_PULL, &us.pull);
        break;
    case CONTROL_ROLE:
        call(us.c[0], &us.c[0]->coord, MST_ROLE_CONTROL, NULL);
        break;
    case CLOSE_WATCH:
        end_link(us.watch);
        break;
    case CLOSE_PULL:
        end_link(us.pulled);
        break;
    case SAY_WATCH:
        message(in, &us.c[0]->coord, us.watch, NULL, 0, 0);
        break;
    case SAY_PULL:
        message(in, &us.n2->keeper, us.pull, NULL, 0, 0);
        break;
    case CLOSE_AGENT:
        if (us.agent)
            sim_as(&us.n1->agent, agent_close, us.agent);
        break;
    case MIRROR_CALL:
        if (!us.log)
            call(us.n2, &us.n2->keeper, MST_ROLE_MIRROR, &us.log);
        break;
    case SAY_LOG:
        message(in, &us.n2->keeper, us.log, NULL, 0, FIX_KEYS);
        break;
    case CLOSE_LOG:
        end_link(us.log);
        break;
    case SAY_MIRROR:
        message(in, &us.n2->keeper, us.mirror, NULL, 0, FIX_KEYS);
        break;
    case CLOSE_MIRROR:
        end_link(us.mirror);
        break;
    default:
        sim_fabric_device(us.n1, !us.n1->rdma_up);
    }
}

/* With the keeper's beats, which the simulator runs only when somebody looks. */
static void pass(uint64_t ms)
{
    uint64_t until_ns = K.now_ns + ms * SIM_MS, every_ns = (ms > 1000 ? 250 : 20) * SIM_MS;

    do {
        sim_run_until(until_ns - K.now_ns < every_ns ? until_ns : K.now_ns + every_ns);
        sim_lazy_run(&us.n1->keeper);
    } while (K.now_ns < until_ns);
}

/* What the agent writes into main storage itself. */
static void save(unsigned how)
{
    struct mst_keeper *k = keeper();
    struct mst_vm *vm = k ? &k->vms[how % 2] : NULL;
    struct mst_save_writer *writer;
    struct mst_save_map map;
    uint64_t room;

    if (!vm || !vm->used || !vm->areas_ready || vm->drop_pending || vm->image)
        return;
    map = (struct mst_save_map){.ram_bytes = vm->areas.area[MST_AREA_RAM].bytes,
                                .ram = vm->areas.area[MST_AREA_RAM].addr,
                                .save = vm->areas.area[MST_AREA_SAVE].addr,
                                .shadow = vm->areas.area[MST_AREA_SHADOW].addr,
                                .delta = vm->areas.area[MST_AREA_DELTA].addr,
                                .delta_capacity = vm->areas.delta_capacity,
                                .record = k->status->vms[vm->index].save,
                                .epoch = vm->epoch,
                                .instance = k->instance};
    FUZZ_CHECK(mst_save_writer_new(&map, &writer) == 0);
    memset(mst_save_device(writer, &room), 1, DEVICE);
    FUZZ_CHECK(mst_save_commit_ram(writer, DEVICE, 1, 2, 3) == 0);
    if (how & 2)
        mst_save_shadow_from_ram(writer);
    mst_save_writer_free(writer);
}

static void step(struct fuzz_in *in)
{
    unsigned what = fuzz_u8(in) % OPS, how;
    size_t len;
    const uint8_t *piece;

    switch (what) {
    case CONTROL:
        how = fuzz_u8(in);
        message(in, &us.c[how & SECOND ? 1 : 0]->coord, us.control[how & SECOND ? 1 : 0], NULL,
                us.asked_by_control[how & SECOND ? 1 : 0], how);
        break;
    case AGENT:
        how = fuzz_u8(in);
        message(in, &us.n1->agent, NULL, us.agent, us.asked_by_agent, how);
        break;
    case KEYS:
        how = fuzz_u8(in);
        message(in, &us.n2->keeper, us.pulled, NULL, 0, how);
        break;
    case LEASE:
        lease(in);
        break;
    case MEMORY:
        how = fuzz_u8(in);
        len = fuzz_u16(in);
        change(how, len, piece = fuzz_piece(in, &len), len);
        break;
    case TIME:
        pass(fuzz_u16(in) % 20000);
        break;
    case LINK:
        linking(in);
        break;
    case STOP: /* pauses, or dies and comes back */
        how = fuzz_u8(in);
        if (how & 0x80) {
            sim_keeper_kill(us.n1, how & 0x7f);
        } else {
            sim_proc_stop(&us.n1->keeper);
            sim_run_until(K.now_ns + how * 50 * SIM_MS);
            sim_proc_cont(&us.n1->keeper);
        }
        break;
    case SAVE:
        save(fuzz_u8(in));
        break;
    case MANAGE: /* a stranger, or a coordinator */
        how = fuzz_u8(in);
        sim_as(how & SECOND ? &us.n2->keeper : &us.c[0]->coord, manage_call, NULL);
        message(in, how & SECOND ? &us.n2->keeper : &us.c[0]->coord, NULL, us.manage, 0, how);
        break;
    default:
        for (struct sim_task *task = us.n1->tasks; task; task = task->next)
            if (!task->is_agent && task->alive)
                sim_task_end(task, fuzz_u8(in));
    }
    pass(3); /* what was sent arrives */
    one_process_to_a_vm();
}

static void listens(void *arg)
{
    struct sim_host *host = arg;
    struct mst_why why;

    FUZZ_CHECK(mst_fabric_open(NULL, host->address, &host->fabric, &why) == 0);
    FUZZ_CHECK(mst_fabric_listen(host->fabric, host == us.n2 ? MST_NODE_PORT : MST_COORDINATOR_PORT, on_accept, host, &why) == 0);
}

static void begin(void)
{
    static const struct sim_conf conf = {.nodes = 2, .coords = 2, .watch_interval_ms = 100};
    struct sim_proc *procs[3];

    sim_begin(1, getenv("MST_FUZZ_STORY") ? stdout : NULL);
    sim_world_new(&conf);
    memset(&us, 0, sizeof(us));
    us.n1 = &W->hosts[0];
    us.n2 = &W->hosts[1];
    us.c[0] = &W->hosts[2];
    us.c[1] = &W->hosts[3];
    sim_managed(us.n1);
    if (!memory.status)
        memory_make();
    keep(true);
    procs[0] = &us.n2->keeper;
    procs[1] = &us.c[0]->coord;
    procs[2] = &us.c[1]->coord;
    for (unsigned i = 0; i < 3; i++) {
        sim_proc_start(procs[i]);
        sim_as(procs[i], listens, &W->hosts[i + 1]);
    }
    sim_keeper_start(us.n1);
    pass(60); /* it has called the coordinators, and its agent is there */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};

    begin();
    while (in.left > 0)
        step(&in);
    pass(200);
    one_process_to_a_vm();
    sim_world_free();
    sim_end();
    return 0;
}

/* --- seeds: how a node lives --- */

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
        env_.body_case = MAINSTAY__ENVELOPE__BODY_##case_;                                                                       \
        env_.member_ = __VA_ARGS__;                                                                                              \
        put(who, how, &env_);                                                                                                    \
    } while (0)
#define ORDER (FIX_INSTANCE | FIX_TERM | FIX_ID)

static void time_passes(unsigned ms)
{
    fuzz_put(&out, TIME, 1);
    fuzz_put(&out, ms, 2);
}

static void link_op(unsigned what)
{
    fuzz_put(&out, LINK, 1);
    fuzz_put(&out, what, 1);
}

static bool mirror_definition;

static Mainstay__VmDefinition *definition(void)
{
    static Mainstay__VmDefinition def;

    mainstay__vm_definition__init(&def);
    def.name = (char *)"v1";
    def.memory_mib = VM_MIB;
    def.has_protect = 1;
    def.protect = mirror_definition ? MAINSTAY__PROTECT__PROTECT_MIRROR : MAINSTAY__PROTECT__PROTECT_LOCAL;
    def.boot_kernel = (char *)"/k";
    return &def;
}

static void joins(void)
{
    Mainstay__Welcome welcome = MAINSTAY__WELCOME__INIT;
    Mainstay__Peer peer = MAINSTAY__PEER__INIT, *list[] = {&peer};
    Mainstay__Peers peers = MAINSTAY__PEERS__INIT;
    Mainstay__AgentHello hello = MAINSTAY__AGENT_HELLO__INIT;

    out.len = 0;
    welcome.coordinator_id = 1;
    welcome.coordinator_instance = 9;
    welcome.term = 5;
    SAY(CONTROL, 0, WELCOME, welcome, &welcome);
    peer.node = (char *)"n2";
    peer.node_id = 2;
    peer.address = (char *)"10.9.0.2";
    peer.port = MST_NODE_PORT;
    peer.instance = PEER_INSTANCE;
    peers.n_peers = 1;
    peers.peers = list;
    SAY(CONTROL, 0, PEERS, peers, &peers);
    hello.pid = 1001;
    hello.protocol_version = MST_PROTOCOL_VERSION;
    SAY(AGENT, 0, AGENT_HELLO, agent_hello, &hello);
    time_passes(20);
}

static void keys(void)
{
    Mainstay__Region status = MAINSTAY__REGION__INIT, regions[MST_AREA_KINDS];
    Mainstay__VmKeys vm = MAINSTAY__VM_KEYS__INIT, *vms[] = {&vm};
    Mainstay__Keys body = MAINSTAY__KEYS__INIT;
    Mainstay__Region **to[MST_AREA_KINDS] = {&vm.ram, &vm.save, &vm.shadow, &vm.delta};
    struct mst_areas areas;

    FUZZ_CHECK(product_areas_plan(&areas, "v1", PEER_EPOCH, RAM_BYTES, true) == 0);
    for (unsigned i = 0; i < MST_AREA_KINDS; i++) {
        mainstay__region__init(&regions[i]);
        regions[i].bytes = areas.area[i].bytes;
        *to[i] = &regions[i];
    }
    status.bytes = sizeof(struct mst_status_area);
    vm.vm = (char *)"v1";
    vm.epoch = PEER_EPOCH;
    body.instance = PEER_INSTANCE;
    body.status = &status;
    body.n_vms = 1;
    body.vms = vms;
    SAY(KEYS, FIX_KEYS, KEYS, keys, &body);
}

static void ordered(uint64_t epoch, bool pull)
{
    Mainstay__OrderStart start = MAINSTAY__ORDER_START__INIT;
    Mainstay__SaveSource source = MAINSTAY__SAVE_SOURCE__INIT;
    Mainstay__AreasCreate create = MAINSTAY__AREAS_CREATE__INIT;
    Mainstay__Pull body = MAINSTAY__PULL__INIT;

    source.node = (char *)"n2";
    source.node_id = 2;
    source.instance = PEER_INSTANCE;
    source.epoch = PEER_EPOCH;
    start.definition = create.definition = definition();
    start.epoch = create.epoch = body.epoch = epoch;
    start.source = pull ? &source : NULL;
    SAY(CONTROL, ORDER, ORDER_START, order_start, &start);
    SAY(AGENT, FIX_ID, AREAS_CREATE, areas_create, &create);
    time_passes(20);
    if (!pull)
        return;
    body.vm = (char *)"v1";
    body.source = &source;
    SAY(AGENT, FIX_ID, PULL, pull, &body);
    time_passes(100);
}

static void spawned(uint64_t epoch, unsigned state)
{
    char *argv[] = {(char *)QEMU, (char *)"v1", (char *)"1", (char *)"ram"};
    Mainstay__Spawn spawn = MAINSTAY__SPAWN__INIT;
    Mainstay__VmState news = MAINSTAY__VM_STATE__INIT;
    Mainstay__StartResult result = MAINSTAY__START_RESULT__INIT;
    Mainstay__Done answer = MAINSTAY__DONE__INIT;

    spawn.vm = news.vm = (char *)"v1";
    spawn.epoch = news.epoch = epoch;
    spawn.n_argv = 4;
    spawn.argv = argv;
    news.run_state = state;
    SAY(AGENT, FIX_ID, SPAWN, spawn, &spawn);
    time_passes(10);
    SAY(AGENT, FIX_ID, VM_STATE, vm_state, &news);
    result.method = MAINSTAY__METHOD__METHOD_BOOTED;
    answer.start = &result;
    SAY(AGENT, FIX_REPLY, DONE, done, &answer);
}

static void fence(uint64_t epoch, bool all)
{
    Mainstay__VmEpoch vm = MAINSTAY__VM_EPOCH__INIT, *vms[] = {&vm};
    Mainstay__OrderFence order = MAINSTAY__ORDER_FENCE__INIT;

    vm.vm = (char *)"v1";
    vm.epoch = epoch;
    order.n_vms = all ? 0 : 1;
    order.vms = vms;
    order.has_all = order.all = all;
    SAY(CONTROL, ORDER, ORDER_FENCE, order_fence, &order);
    time_passes(100);
}

static void forget_order(uint64_t epoch)
{
    Mainstay__OrderForget order = MAINSTAY__ORDER_FORGET__INIT;

    order.vm = (char *)"v1";
    order.epoch = epoch;
    SAY(CONTROL, ORDER, ORDER_FORGET, order_forget, &order);
}

static void report(bool by_agent)
{
    Mainstay__FaultReport body = MAINSTAY__FAULT_REPORT__INIT;
    Mainstay__OrderRecordFault order = MAINSTAY__ORDER_RECORD_FAULT__INIT;
    Mainstay__Done done = MAINSTAY__DONE__INIT;

    body.kind = MAINSTAY__FAULT_KIND__FAULT_PROCESSOR;
    body.node = (char *)"n1";
    body.text = (char *)"machine check";
    order.fault_id = 4;
    order.report = &body;
    if (!by_agent) {
        SAY(CONTROL, ORDER, ORDER_RECORD_FAULT, order_record_fault, &order);
        return;
    }
    SAY(AGENT, FIX_ID, FAULT_REPORT, fault_report, &body);
    SAY(CONTROL, FIX_REPLY, DONE, done, &done);
}

static void named(void)
{
    Mainstay__OrderSave save = MAINSTAY__ORDER_SAVE__INIT;
    Mainstay__OrderContinue go_on = MAINSTAY__ORDER_CONTINUE__INIT;
    Mainstay__SaveResult result = MAINSTAY__SAVE_RESULT__INIT;
    Mainstay__Done done = MAINSTAY__DONE__INIT;
    Mainstay__Kill kill = MAINSTAY__KILL__INIT;
    Mainstay__NodeHealth health = MAINSTAY__NODE_HEALTH__INIT;
    Mainstay__OrderRestartAgent restart = MAINSTAY__ORDER_RESTART_AGENT__INIT;

    save.vm = go_on.vm = kill.vm = (char *)"v1";
    save.epoch = go_on.epoch = kill.epoch = 4;
    SAY(CONTROL, ORDER, ORDER_SAVE, order_save, &save);
    result.seq = 3;
    done.save = &result;
    SAY(AGENT, FIX_REPLY, DONE, done, &done);
    SAY(CONTROL, ORDER, ORDER_CONTINUE, order_continue, &go_on);
    health.health = MST_HEALTH_FAILING;
    SAY(AGENT, FIX_ID, NODE_HEALTH, node_health, &health);
    SAY(AGENT, FIX_ID, KILL, kill, &kill);
    SAY(CONTROL, ORDER, ORDER_RESTART_AGENT, order_restart_agent, &restart);
}

static void leases(unsigned ms4)
{
    link_op(WATCH);
    time_passes(10);
    for (unsigned i = 0; i < 2; i++) {
        fuzz_put(&out, LEASE, 1);
        fuzz_put(&out, 0, 1);
        fuzz_put(&out, ms4, 2);
        fuzz_put(&out, 1, 1);
        fuzz_put_piece(&out, "", 0);
        time_passes(500);
    }
}

static void memory_op(unsigned what, unsigned offset, const void *piece, size_t len)
{
    fuzz_put(&out, MEMORY, 1);
    fuzz_put(&out, what, 1);
    fuzz_put(&out, offset, 2);
    fuzz_put_piece(&out, piece, len);
}

static void done(const char *name)
{
    fuzz_seed(name, out.bytes, out.len);
}

/* The keeper dies, the next one takes the save over, and the VM goes on from it where it was. */
static void seed_takeover(void)
{
    Mainstay__OrderStart start = MAINSTAY__ORDER_START__INIT;
    Mainstay__AreasCreate create = MAINSTAY__AREAS_CREATE__INIT;
    Mainstay__Pull pull = MAINSTAY__PULL__INIT;
    Mainstay__SaveSource source = MAINSTAY__SAVE_SOURCE__INIT;
    Mainstay__Welcome welcome = MAINSTAY__WELCOME__INIT;
    Mainstay__AgentHello hello = MAINSTAY__AGENT_HELLO__INIT;

    joins();
    ordered(4, false);
    fuzz_put(&out, SAVE, 1);
    fuzz_put(&out, 2, 1);
    spawned(4, MST_RUN_RUNNING);
    fuzz_put(&out, STOP, 1);
    fuzz_put(&out, 0x82, 1);
    time_passes(100);
    welcome.coordinator_id = 1;
    welcome.coordinator_instance = 9;
    welcome.term = 5;
    SAY(CONTROL, 0, WELCOME, welcome, &welcome);
    hello.pid = 1003;
    hello.protocol_version = MST_PROTOCOL_VERSION;
    SAY(AGENT, 0, AGENT_HELLO, agent_hello, &hello);
    source.node = (char *)"n1";
    source.node_id = 1;
    source.epoch = 4;
    start.definition = create.definition = definition();
    start.epoch = create.epoch = pull.epoch = 5;
    start.source = pull.source = &source;
    SAY(CONTROL, ORDER | FIX_SOURCE, ORDER_START, order_start, &start);
    SAY(AGENT, FIX_ID, AREAS_CREATE, areas_create, &create);
    time_passes(20);
    pull.vm = (char *)"v1";
    SAY(AGENT, FIX_ID | FIX_SOURCE, PULL, pull, &pull);
    time_passes(100);
    spawned(5, MST_RUN_PAUSED);
    done("takeover");
}

static void say_over(unsigned link, mst_envelope *env)
{
    uint8_t frame[MST_MESSAGE_BYTES_MAX];
    int n = mst_frame_pack(env, frame, sizeof(frame));

    FUZZ_CHECK(n > 0);
    link_op(link);
    fuzz_put_piece(&out, frame + MST_FRAME_HEADER_BYTES, (size_t)n - MST_FRAME_HEADER_BYTES);
}

static Mainstay__Peer *other_node(void)
{
    static Mainstay__Peer peer;

    mainstay__peer__init(&peer);
    peer.node = (char *)"n2";
    peer.node_id = 2;
    peer.address = (char *)"10.9.0.2";
    peer.port = MST_NODE_PORT;
    peer.instance = PEER_INSTANCE;
    return &peer;
}

/* This node is a mirror: an image, its link, a source that says more than is true; revoked, forgotten. */
static void seed_image(void)
{
    Mainstay__OrderMirror order = MAINSTAY__ORDER_MIRROR__INIT;
    Mainstay__OrderMirrorRevoke revoke = MAINSTAY__ORDER_MIRROR_REVOKE__INIT;
    Mainstay__MirrorWritten written_ = MAINSTAY__MIRROR_WRITTEN__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    uint8_t boot[16] = {1};

    joins();
    order.definition = definition();
    order.definition->protect = MAINSTAY__PROTECT__PROTECT_MIRROR;
    order.epoch = revoke.epoch = 4;
    order.source = other_node();
    order.source_boot_id = (ProtobufCBinaryData){sizeof(boot), boot};
    order.has_ring_bytes = 1;
    order.ring_bytes = MST_MLOG_RING_MIN;
    SAY(CONTROL, ORDER, ORDER_MIRROR, order_mirror, &order);
    time_passes(30);
    link_op(MIRROR_CALL);
    time_passes(30);
    env.body_case = MAINSTAY__ENVELOPE__BODY_MIRROR_WRITTEN;
    env.mirror_written = &written_;
    written_.position = 4096;
    say_over(SAY_LOG, &env);
    time_passes(500);
    revoke.vm = (char *)"v1";
    SAY(CONTROL, ORDER, ORDER_MIRROR_REVOKE, order_mirror_revoke, &revoke);
    time_passes(30);
    forget_order(4);
    time_passes(30);
    done("image");
}

/* This node is a source, and the other one its mirror. */
static void seed_mirror(void)
{
    Mainstay__MirrorGrant grant = MAINSTAY__MIRROR_GRANT__INIT;
    Mainstay__OrderMirrorTo order = MAINSTAY__ORDER_MIRROR_TO__INIT;
    Mainstay__OrderMirrorSure sure = MAINSTAY__ORDER_MIRROR_SURE__INIT;
    Mainstay__OrderMirrorDrop drop = MAINSTAY__ORDER_MIRROR_DROP__INIT;
    Mainstay__CheckpointPut put_ = MAINSTAY__CHECKPOINT_PUT__INIT;
    Mainstay__OutputMark mark = MAINSTAY__OUTPUT_MARK__INIT;
    Mainstay__MirrorKey key = MAINSTAY__MIRROR_KEY__INIT;
    Mainstay__MirrorAck ack = MAINSTAY__MIRROR_ACK__INIT;
    Mainstay__Region log = MAINSTAY__REGION__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    joins();
    mirror_definition = true;
    ordered(4, false);
    spawned(4, MST_RUN_RUNNING);
    mirror_definition = false;
    order.vm = sure.vm = drop.vm = put_.vm = mark.vm = (char *)"v1";
    order.epoch = sure.epoch = drop.epoch = put_.epoch = mark.epoch = 4;
    order.mirror = other_node();
    order.grant = &grant;
    grant.log_id = sure.log_id = drop.log_id = 7;
    grant.mirror_instance = PEER_INSTANCE;
    grant.ring_bytes = MST_MLOG_RING_MIN;
    grant.delta_capacity = RAM_BYTES / MST_PAGE_BYTES;
    SAY(CONTROL, ORDER, ORDER_MIRROR_TO, order_mirror_to, &order);
    time_passes(30);
    log.bytes = sizeof(other_log);
    key.log = &log;
    env.body_case = MAINSTAY__ENVELOPE__BODY_MIRROR_KEY;
    env.mirror_key = &key;
    say_over(SAY_MIRROR, &env);
    time_passes(30);
    fuzz_put(&out, SAVE, 1);
    fuzz_put(&out, 2, 1);
    put_.seq = 1;
    put_.has_delta_pages = put_.has_whole = 1;
    put_.whole = 1;
    SAY(AGENT, FIX_ID, CHECKPOINT_PUT, checkpoint_put, &put_);
    mark.seq = 2;
    SAY(AGENT, FIX_ID, OUTPUT_MARK, output_mark, &mark);
    time_passes(60);
    env.body_case = MAINSTAY__ENVELOPE__BODY_MIRROR_ACK;
    env.mirror_ack = &ack;
    ack.seq = 1;
    say_over(SAY_MIRROR, &env);
    SAY(AGENT, FIX_ID, OUTPUT_MARK, output_mark, &mark); /* now somebody is waited for */
    mark.seq = 3;
    SAY(AGENT, FIX_ID, OUTPUT_MARK, output_mark, &mark);
    SAY(CONTROL, ORDER, ORDER_MIRROR_SURE, order_mirror_sure, &sure);
    time_passes(1500);
    link_op(CLOSE_MIRROR);
    SAY(CONTROL, ORDER, ORDER_MIRROR_DROP, order_mirror_drop, &drop);
    time_passes(30);
    done("mirror");
}

static void seed_drops(void)
{
    Mainstay__AreasDrop drop = MAINSTAY__AREAS_DROP__INIT;
    Mainstay__Done failed = MAINSTAY__DONE__INIT;
    Mainstay__Refuse refuse = MAINSTAY__REFUSE__INIT;

    joins();
    ordered(4, false);
    drop.vm = (char *)"v1";
    drop.epoch = 4;
    SAY(AGENT, FIX_ID, AREAS_DROP, areas_drop, &drop);
    failed.error = 5;
    SAY(AGENT, FIX_REPLY, DONE, done, &failed);
    refuse.error = 11;
    refuse.text = (char *)"standby";
    SAY(CONTROL, SECOND, REFUSE, refuse, &refuse);
    refuse.error = 1;
    SAY(CONTROL, 0, REFUSE, refuse, &refuse);
    time_passes(6000);
    done("drops");
}

static void seed_manage(void)
{
    Mainstay__ManageAsk ask = MAINSTAY__MANAGE_ASK__INIT;
    uint8_t line[MST_LINE_BYTES] = {0};

    joins();
    link_op(CARD);
    ask.cluster = (char *)"sim";
    ask.node = (char *)"n1";
    SAY(MANAGE, 0, MANAGE_ASK, manage_ask, &ask);
    ask.has_lease = 1;
    ask.lease = (ProtobufCBinaryData){.len = sizeof(line), .data = line};
    SAY(MANAGE, FIX_TERM, MANAGE_ASK, manage_ask, &ask);
    SAY(MANAGE, FIX_TERM | 0x80, MANAGE_ASK, manage_ask, &ask);
    SAY(MANAGE, 0, MANAGE_ASK, manage_ask, &ask);
    SAY(MANAGE, SECOND, MANAGE_ASK, manage_ask, &ask);
    time_passes(6000);
    done("managed");
}

void fuzz_seeds(void)
{
    static const uint32_t number = 3;

    joins();
    ordered(4, false);
    spawned(4, MST_RUN_RUNNING);
    fence(4, false);
    forget_order(4);
    done("start-fence-forget");
    joins();
    keys();
    ordered(4, true);
    spawned(4, MST_RUN_RUNNING);
    named();
    fence(4, true);
    done("pull-and-the-rest");
    for (unsigned what = RECORD; what < MEMORIES; what++) {
        char name[32];

        joins();
        keys();
        memory_op(what, 24, &number, sizeof(number));
        ordered(4, true);
        snprintf(name, sizeof(name), "pull-damaged-%u", what);
        done(name);
    }
    joins();
    keys();
    ordered(4, false);
    spawned(4, MST_RUN_RUNNING);
    leases(6000 / 4);
    memory_op(BEAT, 0, "", 0);
    time_passes(2000);
    memory_op(BEAT, 0, "", 0);
    link_op(CLOSE_1);
    time_passes(9000);
    done("lease-runs-out");
    joins();
    link_op(PULL);
    ordered(4, false);
    spawned(4, MST_RUN_RUNNING);
    report(true);
    report(false);
    leases(10000 / 4);
    fuzz_put(&out, STOP, 1);
    fuzz_put(&out, 60, 1);
    link_op(WATCH_STRANGER);
    fuzz_put(&out, QEMU_ENDS, 1);
    fuzz_put(&out, 1, 1);
    fuzz_put(&out, STOP, 1);
    fuzz_put(&out, 0x82, 1);
    time_passes(700);
    done("pauses-dies");
    seed_takeover();
    seed_image();
    seed_mirror();
    seed_drops();
    seed_manage();
    joins();
    keys();
    ordered(4, true);
    link_op(CLOSE_PULL);
    fence(4, false);
    ordered(5, false);
    time_passes(3000);
    link_op(CARD);
    link_op(CARD);
    time_passes(3000);
    done("links-end");
}
