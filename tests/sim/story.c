#include "tests/sim/story.h"
#include "tests/sim/coord.h"
#include "tests/sim/etcd.h"
#include "tests/sim/oracle.h"
#include "tests/sim/seam/records.h"

#include "mainstay.pb-c.h"
#include "node/keeper/keeper.h"
#include "shm/layout.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[FAULT_KINDS] = {
    [FAULT_QEMU_KILL] = "qemu-kill",
    [FAULT_QEMU_STOP] = "qemu-stop",
    [FAULT_GUEST_PANIC] = "guest-panic",
    [FAULT_AGENT_KILL] = "agent-kill",
    [FAULT_AGENT_STOP] = "agent-stop",
    [FAULT_KEEPER_KILL] = "keeper-kill",
    [FAULT_KEEPER_STOP] = "keeper-stop",
    [FAULT_KEEPER_TORN] = "keeper-torn",
    [FAULT_HOST_OFF] = "host-off",
    [FAULT_HOST_REBOOT] = "host-reboot",
    [FAULT_ALL_OFF] = "all-off",
    [FAULT_CUT] = "cut",
    [FAULT_CUT_ONE_WAY] = "cut-one-way",
    [FAULT_CUT_PAIR] = "cut-pair",
    [FAULT_FLAP] = "flap",
    [FAULT_LOSS] = "loss",
    [FAULT_SLOW] = "slow",
    [FAULT_DEVICE_GONE] = "device-gone",
    [FAULT_COORD_KILL] = "coord-kill",
    [FAULT_COORD_STOP] = "coord-stop",
    [FAULT_COORD_POINT] = "coord-point",
    [FAULT_KEEPER_POINT] = "keeper-point",
    [FAULT_DISK_REFUSES] = "disk-refuses",
    [FAULT_DISK_SLOW] = "disk-slow",
    [FAULT_DISK_HANGS] = "disk-hangs",
    [FAULT_OLD_COPY] = "old-copy",
    [FAULT_FENCE_MODE] = "fence-mode",
    [FAULT_START_FAILS] = "start-fails",
    [FAULT_SAVE_FAILS] = "save-fails",
    [FAULT_SLOW_SPAWN] = "slow-spawn",
    [FAULT_STUCK_QEMU] = "stuck-qemu",
    [FAULT_CLOCK] = "clock",
    [FAULT_PROCESSOR] = "processor",
    [FAULT_LIES] = "lies",
    [FAULT_REPORT_STORM] = "report-storm",
    [FAULT_SPOIL] = "spoil",
    [FAULT_OP_STOP] = "op-stop",
    [FAULT_OP_START] = "op-start",
    [FAULT_OP_DRAIN] = "op-drain",
    [FAULT_OP_UNDRAIN] = "op-undrain",
    [FAULT_OP_CONFIRM] = "op-confirm",
    [FAULT_OP_REDEFINE] = "op-redefine",
    [FAULT_COORD_OFF] = "coord-off",
    [FAULT_COORD_CUT_STORE] = "coord-cut-store",
    [FAULT_COORD_CUT_NODES] = "coord-cut-nodes",
    [FAULT_COORD_CUT] = "coord-cut",
    [FAULT_COORD_CLOCK] = "coord-clock",
    [FAULT_STORE_MEMBER] = "store-member",
    [FAULT_STORE_MAJORITY] = "store-majority",
    [FAULT_STORE_LOSES] = "store-loses",
    [FAULT_STORE_LATE] = "store-late",
    [FAULT_SOURCE_OFF] = "source-off",
    [FAULT_MIRROR_OFF] = "mirror-off",
    [FAULT_BOTH_OFF] = "both-off",
    [FAULT_MIRROR_KEEPER] = "mirror-keeper",
    [FAULT_MIRROR_CUT] = "mirror-cut",
    [FAULT_IMAGE_ROTS] = "image-rots",
};

const char *sim_fault_name(unsigned kind)
{
    return kind < FAULT_KINDS ? names[kind] : "?";
}

/* --- making one up: from the seed alone, so that parts of it can be told again --- */

static uint64_t maker;

static uint32_t pick(uint32_t n)
{
    return n ? (uint32_t)(sim_mix(&maker) >> 32) % n : 0;
}

static uint32_t pick_ms(uint32_t low, uint32_t high)
{
    return low + pick(high - low + 1);
}

static uint32_t length_of(unsigned kind)
{
    switch (kind) {
    case FAULT_KEEPER_KILL:
    case FAULT_KEEPER_TORN:
        return pick(3) ? pick_ms(100, 2500) : pick_ms(2500, 9000);
    case FAULT_COORD_KILL:
    case FAULT_COORD_POINT:
        return pick_ms(100, 3000);
    case FAULT_COORD_CLOCK:
        return 60000;
    case FAULT_OLD_COPY:
        return pick_ms(500, 4000);
    case FAULT_CLOCK:
        return 60000;
    case FAULT_FLAP:
        return pick_ms(1000, 12000);
    default:
        return pick(2) ? pick_ms(100, 4000) : pick_ms(2000, 16000);
    }
}

/* Of a story with one coordinator; with several, those of its disk and store are of etcd instead, and those of the leader come often. */
static unsigned kind_of(const struct sim_story *story)
{
    static const uint8_t often[] = {FAULT_COORD_KILL, FAULT_COORD_STOP, FAULT_COORD_POINT};
    unsigned kind = pick(SIM_FAULTS_ALONE);

    if (story->conf.mirrors > 0 && pick(3) == 0)
        return SIM_FAULTS_COORDS + pick(FAULT_KINDS - SIM_FAULTS_COORDS);
    if (story->conf.coords == 1)
        return kind;
    if ((kind >= FAULT_DISK_REFUSES && kind <= FAULT_OLD_COPY) || pick(4) == 0)
        return SIM_FAULTS_ALONE + pick(SIM_FAULTS_COORDS - SIM_FAULTS_ALONE);
    return pick(8) ? kind : often[pick(sizeof(often))];
}

bool sim_all_mirrored;

/* In every fifth story. */
static bool mirrored(uint64_t seed)
{
    return seed % 5 == 2 || sim_all_mirrored;
}

void sim_story_make(uint64_t seed, struct sim_story *story)
{
    uint64_t on = 0;
    unsigned bursts;

    memset(story, 0, sizeof(*story));
    story->seed = seed;
    maker = seed * UINT64_C(0xd1342543de82ef95) + 7;
    story->conf = (struct sim_conf){.nodes = 3 + pick(2), .coords = 1, .vms = 3 + pick(4), .watch_interval_ms = 100};
    story->conf.coords = seed % 3 == 0 ? SIM_COORDS_MAX : 1;
    if (mirrored(seed)) {
        story->conf.nodes = 3 + pick(3);
        story->conf.mirrors = 1 + pick(3);
    }
    story->window_ms = pick_ms(8000, 30000);
    story->count = 4 + pick(16);
    /* Few kinds at a time: each story has its own mixture, and so gets far into it. */
    for (unsigned i = 3 + pick(8); i > 0; i--)
        on |= UINT64_C(1) << kind_of(story);
    if (pick(2))
        on |= UINT64_C(1) << FAULT_KEEPER_KILL | UINT64_C(1) << FAULT_HOST_REBOOT | UINT64_C(1) << FAULT_CUT;
    bursts = 1 + pick(4);
    for (unsigned i = 0; i < story->count; i++) {
        struct sim_fault *fault = &story->faults[i];
        uint32_t base = story->window_ms / bursts * (i % bursts);

        do
            fault->kind = (uint8_t)pick(story->conf.mirrors > 0   ? FAULT_KINDS
                                        : story->conf.coords == 1 ? SIM_FAULTS_ALONE
                                                                  : SIM_FAULTS_COORDS);
        while (!(on >> fault->kind & 1));
        fault->at_ms = pick(3) ? base + pick(4000) : pick(story->window_ms);
        fault->a = (uint8_t)pick(64);
        fault->b = (uint8_t)pick(64);
        fault->x = pick(1u << 30);
        fault->ms = length_of(fault->kind);
    }
    for (unsigned i = 1; i < story->count; i++) { /* by time */
        for (unsigned k = i; k > 0 && story->faults[k].at_ms < story->faults[k - 1].at_ms; k--) {
            struct sim_fault swap = story->faults[k];

            story->faults[k] = story->faults[k - 1];
            story->faults[k - 1] = swap;
        }
    }
}

void sim_fault_text(const struct sim_story *story, unsigned i, char *text, size_t size)
{
    const struct sim_fault *f = &story->faults[i];

    snprintf(text, size, "%2u  at %6u ms  %-13s a=%u b=%u for %u ms x=%u", i, f->at_ms, names[f->kind], f->a, f->b, f->ms, f->x);
}

/* --- the cluster --- */

jmp_buf *sim_scene_out;

void sim_scene_leave(void)
{
    if (K.over && sim_scene_out)
        longjmp(*sim_scene_out, 1);
}

void sim_run_ms(uint32_t ms)
{
    sim_run_until(K.now_ns + ms * SIM_MS);
    sim_scene_leave();
}

void sim_vm_define(unsigned index, const struct mst_definition *def, uint32_t interval_ms)
{
    Mainstay__VmDefinition message = MAINSTAY__VM_DEFINITION__INIT;
    struct sim_vm *vm = &W->vms[index];
    char *allowed[SIM_NODES_MAX];

    vm->def = *def;
    vm->interval_ms = interval_ms;
    snprintf(vm->name, sizeof(vm->name), "%.15s", def->name);
    message.name = vm->def.name;
    message.memory_mib = def->memory_mib;
    message.has_vcpus = message.has_protect = message.has_checkpoint_interval_ms = 1;
    message.has_on_node_fault = message.has_on_vm_fault = message.has_priority = 1;
    message.vcpus = def->vcpus;
    message.boot_kernel = (char *)"/sim/kernel";
    message.protect = (Mainstay__Protect)def->protect;
    message.checkpoint_interval_ms = interval_ms;
    message.on_node_fault = (Mainstay__OnFault)def->on_node_fault;
    message.on_vm_fault = (Mainstay__OnFault)def->on_vm_fault;
    message.priority = def->priority;
    message.has_mirror_apart = def->mirror_apart != 0;
    message.mirror_apart = (Mainstay__MirrorApart)def->mirror_apart;
    for (uint32_t i = 0; i < def->allowed_count; i++)
        allowed[i] = W->hosts[def->allowed[i] - 1].name;
    message.n_allowed_nodes = def->allowed_count;
    message.allowed_nodes = allowed;
    vm->def.packed_bytes = (uint32_t)mainstay__vm_definition__pack(&message, vm->def.packed);
}

static void vms_make(uint64_t seed)
{
    bool racks = seed / 2 % 3 == 0;

    maker = seed * UINT64_C(0xa0761d6478bd642f) + 3;
    for (unsigned i = 0; i < W->conf.nodes; i++) {
        W->hosts[i].has_fence = pick(8) != 0;
        W->hosts[i].reboot_ns = pick(3) ? 1 : 0;
        W->hosts[i].conf.memory_mib = 24 + pick(3) * 24 + 48 * W->conf.mirrors;
        W->hosts[i].conf.vcpus = 1 + pick(2);
    }
    for (unsigned i = 0; seed / 3 % 3 == 0 && i < W->conf.nodes; i++) {
        if ((seed / 9 + i) % 2)
            sim_watchdog(&W->hosts[i], 1 + (uint32_t)(seed / 18 + i) % 4);
    }
    for (unsigned i = 0; seed % 4 == 1 && i < W->conf.nodes; i++) {
        if ((seed / 4 + i) % 3)
            sim_managed(&W->hosts[i]);
    }
    for (unsigned i = 0; racks && i < W->conf.nodes; i++)
        W->hosts[i].rack = 1 + i % 2;
    for (unsigned i = 0; i < W->conf.vms; i++) {
        struct mst_definition def = {.memory_mib = 1 + pick(4), .vcpus = 1 + pick(2), .priority = pick(5)};

        snprintf(def.name, sizeof(def.name), "vm%u", i);
        def.protect = pick(3) != 0 ? MST_PROTECT_LOCAL : MST_PROTECT_NONE;
        if (i < W->conf.mirrors) {
            def.protect = MST_PROTECT_MIRROR;
            def.mirror_apart = racks && (seed / 6 + i) % 3 == 0 ? MST_MIRROR_APART_RACK : MST_MIRROR_APART_NODE;
        }
        if (pick(4) == 0)
            def.on_node_fault = (uint8_t)pick(4);
        if (pick(4) == 0)
            def.on_vm_fault = (uint8_t)pick(5);
        if (pick(5) == 0) {
            def.allowed_count = 2;
            def.allowed[0] = 1 + pick(W->conf.nodes);
            def.allowed[1] = 1 + def.allowed[0] % W->conf.nodes;
        }
        sim_vm_define(i, &def, pick_ms(100, 900));
    }
}

static bool started(void)
{
    unsigned running = 0;

    for (unsigned i = 0; i < W->conf.vms; i++) {
        struct mst_vm_look look;
        struct sim_coord *coord = sim_coord_leader();

        running +=
            coord && mst_core_vm_by_name(sim_coord_core(coord), W->vms[i].name, &look) && look.row->phase == MST_VM_RUNNING;
    }
    return running == W->conf.vms;
}

static void boot_all(void)
{
    for (unsigned i = 0; i < W->conf.nodes; i++)
        sim_keeper_start(&W->hosts[i]);
    for (unsigned i = 0; i < W->conf.coords; i++) {
        W->coords[i] = sim_coord_new(i, &W->hosts[W->conf.nodes + i]);
        sim_coord_start(W->coords[i]);
    }
    sim_run_ms(2500);
    for (unsigned i = 0; i < 100 && !sim_coord_leader() && !K.over; i++)
        sim_run_ms(100);
    if (W->conf.coords > 1)
        sim_run_ms(1500); /* the nodes find who leads */
}

void sim_vms_start(void)
{
    for (unsigned i = 0; i < W->conf.vms; i++) {
        (void)sim_operator(MST_REQ_DEFINE, W->vms[i].name, NULL, &W->vms[i].def);
        sim_run_ms(40);
        (void)sim_operator(MST_REQ_START, W->vms[i].name, NULL, NULL);
    }
    for (unsigned i = 0; i < 40 && !started() && !K.over; i++)
        sim_run_ms(100);
}

void sim_cluster(const struct sim_story *story)
{
    oracle_begin();
    (void)sim_world_new(&story->conf);
    vms_make(story->seed);
    boot_all();
    sim_vms_start();
    sim_run_ms(500);
}

/* --- faults --- */

static struct sim_host *node_of(const struct sim_fault *fault)
{
    return &W->hosts[fault->a % W->conf.nodes];
}

static const char *vm_name(const struct sim_fault *fault)
{
    return W->vms[fault->a % W->conf.vms].name;
}

static struct sim_task *qemu_anywhere(const char *vm)
{
    for (unsigned h = 0; h < W->conf.nodes; h++) {
        struct sim_task *task = sim_task_of_vm(&W->hosts[h], vm, 0);

        if (task)
            return task;
    }
    return NULL;
}

/* While an operator's mistake is under way, the nodes that could tell are left in peace: without a witness nobody could know. */
static bool mistake(void)
{
    for (unsigned i = 0; i < W->conf.coords; i++) {
        if (W->coords[i]->on_old_copy)
            return true;
    }
    return false;
}

struct undo {
    struct sim_fault fault;
    unsigned left;
    struct sim_coord *coord;
};

/* Whom a fault of a coordinator hits: mostly the leader. */
static struct sim_coord *coord_of(const struct sim_fault *fault)
{
    struct sim_coord *leader = sim_coord_leader();

    return W->conf.coords == 1 ? W->coords[0] : leader && fault->x % 3 ? leader : W->coords[fault->a % W->conf.coords];
}

static void block(unsigned from, unsigned to, bool on)
{
    if (from == to)
        return;
    if (on)
        W->net.blocked[from][to]++;
    else if (W->net.blocked[from][to] > 0)
        W->net.blocked[from][to]--;
}

/* A node with a management address has two networks: both are cut, or one alone. All other faults of the network are of RDMA alone. */
static bool cut_management(const struct sim_fault *fault, unsigned a, bool on)
{
    unsigned way = fault->kind == FAULT_CUT && W->hosts[a].conf.management ? fault->x % 4 : 0;

    if (way != 0 && on)
        W->net.manage_cut[a]++;
    else if (way != 0 && W->net.manage_cut[a] > 0)
        W->net.manage_cut[a]--;
    return way == 1;
}

static void cut(const struct sim_fault *fault, bool on)
{
    unsigned a = fault->a % W->conf.nodes, b = fault->b % W->hosts_count;
    bool alone = cut_management(fault, a, on);

    for (unsigned i = 0; !alone && i < W->hosts_count; i++) {
        if (fault->kind == FAULT_CUT || fault->kind == FAULT_FLAP) {
            block(a, i, on);
            block(i, a, on);
        } else if (fault->kind == FAULT_CUT_ONE_WAY && fault->x % 2) {
            block(a, i, on);
        } else if (fault->kind == FAULT_CUT_ONE_WAY) {
            block(i, a, on);
        }
    }
    if (fault->kind == FAULT_CUT_PAIR) {
        block(a, b, on);
        if (fault->x % 3)
            block(b, a, on);
    }
}

/* A coordinator, and the member of etcd beside it, from others. */
static void coord_cut(const struct sim_fault *fault, const struct sim_coord *coord, bool on)
{
    unsigned c = coord->host->index;

    for (unsigned i = 0; i < W->hosts_count; i++) {
        bool node = W->hosts[i].is_node;

        if (fault->kind == FAULT_COORD_CUT || (fault->kind == FAULT_COORD_CUT_NODES) == node) {
            block(c, i, on);
            block(i, c, on);
        }
    }
}

static void members_down(const struct sim_fault *fault, bool down)
{
    unsigned count = fault->kind == FAULT_STORE_MAJORITY ? W->conf.coords - 1 : 1;

    for (unsigned i = 0; i < count; i++) {
        unsigned *at = &sim_etcd_faults.down[(fault->a + i) % W->conf.coords];

        if (down)
            ++*at;
        else if (*at > 0)
            --*at;
    }
}

static void undo_event(void *arg)
{
    struct undo *undo = arg;
    const struct sim_fault *fault = &undo->fault;
    struct sim_host *host = node_of(fault);
    struct sim_coord *coord = undo->coord ? undo->coord : W->coords[0];

    if (W->mended)
        return;
    if (fault->kind != FAULT_FLAP)
        sim_say("mended: %s", names[fault->kind]);
    switch (fault->kind) {
    case FAULT_AGENT_STOP:
        sim_proc_cont(&host->agent);
        break;
    case FAULT_KEEPER_STOP:
        sim_proc_cont(&host->keeper);
        break;
    case FAULT_QEMU_STOP: {
        struct sim_task *task = qemu_anywhere(vm_name(fault));

        if (task)
            task->stopped = false;
        break;
    }
    case FAULT_CUT:
    case FAULT_CUT_ONE_WAY:
    case FAULT_CUT_PAIR:
        cut(fault, false);
        break;
    case FAULT_FLAP:
        cut(fault, undo->left % 2 == 0);
        if (undo->left > 0) {
            undo->left--;
            sim_at(NULL, 50 * SIM_MS, undo_event, undo);
        }
        break;
    case FAULT_LOSS:
        W->net.loss[host->index] = 0;
        break;
    case FAULT_SLOW:
        W->net.slow_us[host->index] = 0;
        break;
    case FAULT_DEVICE_GONE:
        if (host->powered)
            sim_fabric_device(host, true);
        break;
    case FAULT_COORD_STOP:
        sim_proc_cont(&coord->host->coord);
        break;
    case FAULT_DISK_REFUSES:
    case FAULT_DISK_SLOW:
    case FAULT_DISK_HANGS:
        sim_coord_disk_goes_on(coord);
        break;
    case FAULT_OLD_COPY:
        sim_newest_store(coord);
        break;
    case FAULT_FENCE_MODE:
        host->power = POWER_WORKS;
        break;
    case FAULT_START_FAILS:
        host->start_err = 0;
        break;
    case FAULT_SAVE_FAILS:
        host->save_err = 0;
        break;
    case FAULT_SLOW_SPAWN:
        host->spawn_ms = 0;
        break;
    case FAULT_STUCK_QEMU:
        host->stuck_qemu = false;
        break;
    case FAULT_CLOCK:
        sim_drift(host, 0);
        break;
    case FAULT_HOST_OFF:
        sim_power_on(host);
        break;
    case FAULT_ALL_OFF:
        for (unsigned i = 0; i < W->hosts_count; i++)
            sim_power_on(&W->hosts[i]);
        for (unsigned i = 0; i < W->conf.coords; i++)
            sim_coord_kill(W->coords[i], sim_between(100, 3000));
        break;
    case FAULT_COORD_OFF:
        sim_power_on(coord->host);
        sim_coord_kill(coord, sim_between(100, 3000));
        break;
    case FAULT_COORD_CUT:
    case FAULT_COORD_CUT_STORE:
    case FAULT_COORD_CUT_NODES:
        coord_cut(fault, coord, false);
        break;
    case FAULT_COORD_CLOCK:
        sim_drift(coord->host, 0);
        sim_etcd_faults.drift_ppm = 0;
        break;
    case FAULT_STORE_MEMBER:
    case FAULT_STORE_MAJORITY:
        members_down(fault, false);
        break;
    case FAULT_STORE_LOSES:
        sim_etcd_faults.lost = 0;
        break;
    case FAULT_STORE_LATE:
        sim_etcd_faults.late = 0;
        break;
    default:
        break;
    }
}

static void undo_later(const struct sim_fault *fault, struct sim_coord *coord, uint64_t ms)
{
    struct undo *undo = sim_keep(sizeof(*undo));

    undo->fault = *fault;
    undo->coord = coord;
    sim_at(NULL, ms * SIM_MS, undo_event, undo);
}

static void kill_keeper(void *arg)
{
    sim_keeper_kill(arg, sim_between(200, 3000));
}

/* Reports about what is over: another instance, another epoch; and ten times the same. */
static void lie(const struct sim_fault *fault)
{
    struct sim_host *host = node_of(fault);
    static const uint32_t kinds[] = {MST_FAULT_VM_EXITED, MST_FAULT_VM_SILENT,   MST_FAULT_VM_PANICKED,
                                     MST_FAULT_PROCESSOR, MST_FAULT_KEEPER_DEAD, MST_FAULT_NODE_UNREACHABLE};
    uint32_t kind = kinds[fault->x % (sizeof(kinds) / sizeof(kinds[0]))];
    bool of_vm = kind <= MST_FAULT_VM_PANICKED;
    struct sim_task *task = of_vm ? qemu_anywhere(W->vms[fault->b % W->conf.vms].name) : NULL;

    if (of_vm && task && task->epoch > 1)
        sim_operator_report(kind, W->hosts[task->host].name, task->vm, task->epoch - 1, 0, "liar");
    sim_operator_report(kind, host->name, of_vm && task ? task->vm : of_vm ? "vm0" : NULL, 0, 0x1234567, "liar");
}

static void storm(const struct sim_fault *fault)
{
    struct sim_task *task = qemu_anywhere(vm_name(fault));

    if (!task)
        return;
    for (int i = 0; i < 10; i++)
        sim_operator_report(MST_FAULT_VM_EXITED, W->hosts[task->host].name, task->vm, task->epoch, 0, "storm");
}

/* A bit flips in one of the shadows there; vm: of that VM. */
static void spoil(struct sim_host *host, const char *of_vm, const struct sim_fault *fault)
{
    char name[40], vm[32], *at;
    unsigned n = 0;

    snprintf(name, sizeof(name), "/%.20s.e", of_vm ? of_vm : "");
    for (struct sim_file *file = host->files; file; file = file->next) {
        if (file->named && strstr(file->path, ".shadow") && (!of_vm || strstr(file->path, name)))
            n++;
    }
    n = n ? fault->x % n : 0;
    for (struct sim_file *file = host->files; file; file = file->next) {
        if (!file->named || !strstr(file->path, ".shadow") || (of_vm && !strstr(file->path, name)) || n-- > 0)
            continue;
        sim_file_data(file)[(of_vm ? fault->x / 7 : fault->b) % file->bytes] ^= 0x10;
        snprintf(vm, sizeof(vm), "%.30s", strrchr(file->path, '/') + 1);
        at = strchr(vm, '.');
        *at = '\0';
        sim_say("a bit flips in %s", file->path);
        if (!oracle_image_rots(host, vm, strtoull(at + 2, NULL, 10)))
            oracle_spoilt(vm);
        return;
    }
}

/* What a node has heard of that the copy lacks. */
static bool knows_better(const struct sim_host *host, const struct sim_store *copy)
{
    const struct mst_meta_row *meta = sim_store_meta(copy);
    uint64_t term = mst_guard_term(host->k->guard);

    return term > meta->term || (term == meta->term && mst_guard_decision(host->k->guard) > meta->decision);
}

void sim_old_copy(struct sim_coord *coord, const struct sim_store *copy)
{
    for (unsigned i = 0; i < W->conf.nodes; i++) {
        const struct sim_host *host = &W->hosts[i];

        coord->witness[i] = host->k && knows_better(host, copy) ? host->k->instance : 0;
    }
    sim_coord_kill(coord, 200);
    coord->set_aside = coord->store;
    coord->store = sim_store_copy(copy);
    coord->on_old_copy = true;
}

void sim_newest_store(struct sim_coord *coord)
{
    oracle_old_copy(coord);
    if (!coord->on_old_copy)
        return;
    sim_coord_kill(coord, 300);
    coord->store = coord->set_aside;
    coord->on_old_copy = false;
}

/* An operator's mistake: the coordinator is started on a copy of its store, from before its last start or not, while the nodes know better. */
static void old_copy_event(void *arg)
{
    const struct sim_fault *fault = arg;
    struct sim_coord *coord = W->coords[0];

    if (W->mended || !coord->old_copy || coord->on_old_copy || !coord->host->coord.alive)
        return;
    for (unsigned i = 0; i < W->conf.nodes; i++) {
        struct sim_host *host = &W->hosts[i];

        if (!host->k || host->keeper.stopped || !sim_net_ok(i, coord->host->index) || !sim_net_ok(coord->host->index, i) ||
            !knows_better(host, coord->old_copy))
            return; /* somebody has to know better, and every node is somebody */
    }
    sim_old_copy(coord, coord->old_copy);
    undo_later(fault, coord, 300 + fault->ms);
}

static void old_copy(const struct sim_fault *fault)
{
    struct sim_coord *coord = W->coords[0];

    if (coord->on_old_copy || !coord->host->coord.alive || !sim_store_meta(coord->store) || W->mended)
        return;
    coord->old_copy = sim_store_copy(coord->store);
    if (fault->x % 2)
        sim_coord_kill(coord, 300);
    sim_at(NULL, (3000 + fault->x % 4000) * SIM_MS, old_copy_event, (void *)fault);
}

static void confirm(const struct sim_fault *fault)
{
    struct sim_host *host = node_of(fault);

    if (!host->powered) /* a person looks before he says so */
        (void)sim_operator(MST_REQ_CONFIRM_DEAD, host->name, NULL, NULL);
}

static void redefine(const struct sim_fault *fault)
{
    const char *vm = vm_name(fault);

    if (fault->x % 3 == 0)
        (void)sim_operator(MST_REQ_STOP, vm, NULL, NULL);
    else if (fault->x % 3 == 1)
        (void)sim_operator(MST_REQ_UNDEFINE, vm, NULL, NULL);
    else
        (void)sim_operator(MST_REQ_DEFINE, vm, NULL, &W->vms[fault->a % W->conf.vms].def);
}

static void off(unsigned index, const char *why, uint32_t ms)
{
    struct sim_fault back = {.kind = FAULT_HOST_OFF, .a = (uint8_t)index};

    sim_power_off(&W->hosts[index], why);
    undo_later(&back, NULL, ms);
}

/* Of a VM, the node on which it runs, and the one that mirrors it: of those under protect: mirror. */
static void mirror_fault(const struct sim_fault *fault)
{
    const char *vm = W->vms[fault->a % (W->conf.mirrors ? W->conf.mirrors : 1)].name;
    const struct sim_task *task = qemu_anywhere(vm);
    int mirror = oracle_mirror_of(vm);

    if (task && (fault->kind == FAULT_SOURCE_OFF || fault->kind == FAULT_BOTH_OFF))
        off(task->host, "it is the source of a mirror", fault->ms);
    if (mirror < 0)
        return;
    if (fault->kind == FAULT_MIRROR_OFF || fault->kind == FAULT_BOTH_OFF)
        off((unsigned)mirror, "it is a mirror", fault->ms);
    else if (fault->kind == FAULT_MIRROR_KEEPER)
        sim_keeper_kill(&W->hosts[mirror], fault->ms);
    else if (fault->kind == FAULT_IMAGE_ROTS)
        spoil(&W->hosts[mirror], vm, fault);
    if (fault->kind == FAULT_MIRROR_CUT && task) {
        struct sim_fault pair = {.kind = FAULT_CUT_PAIR, .a = (uint8_t)task->host, .b = (uint8_t)mirror, .x = fault->x};

        cut(&pair, true);
        undo_later(&pair, NULL, fault->ms);
    }
}

void sim_fault_apply(const struct sim_fault *fault)
{
    struct sim_host *host = node_of(fault);
    struct sim_coord *coord = coord_of(fault);
    struct sim_task *task = qemu_anywhere(vm_name(fault));
    bool lasts = true;

    if (mistake() && fault->kind != FAULT_QEMU_KILL && fault->kind != FAULT_LIES && fault->kind < FAULT_OP_STOP)
        return;
    sim_say("FAULT %s (%s, %s) for %u ms", names[fault->kind], host->name, vm_name(fault), fault->ms);
    switch ((enum sim_fault_kind)fault->kind) {
    case FAULT_QEMU_KILL:
        if (task)
            sim_task_kill(task);
        return;
    case FAULT_QEMU_STOP:
        if (task)
            task->stopped = true;
        break;
    case FAULT_GUEST_PANIC:
        if (task && task->guest == GUEST_RUNNING)
            sim_guest_pause(task, GUEST_PANICKED);
        return;
    case FAULT_AGENT_KILL:
        sim_agent_kill(host);
        return;
    case FAULT_AGENT_STOP:
        sim_proc_stop(&host->agent);
        break;
    case FAULT_KEEPER_KILL:
        sim_keeper_kill(host, fault->ms);
        return;
    case FAULT_KEEPER_STOP:
        sim_proc_stop(&host->keeper);
        break;
    case FAULT_KEEPER_TORN:
        if (host->keeper.alive)
            sim_die_publishing(&host->keeper, 1 + fault->x % 120, kill_keeper, host);
        return;
    case FAULT_HOST_OFF:
        sim_power_off(host, "a fault");
        break;
    case FAULT_HOST_REBOOT:
        sim_power_off(host, "it crashed and boots again");
        if (!host->reboot_ns)
            undo_later(&(struct sim_fault){.kind = FAULT_HOST_OFF, .a = fault->a}, NULL, sim_between(2000, 9000));
        return;
    case FAULT_ALL_OFF:
        for (unsigned i = 0; i < W->conf.coords; i++) {
            sim_coord_kill(W->coords[i], 1000000);
            sim_power_off(W->coords[i]->host, "all");
        }
        for (unsigned i = 0; i < W->conf.nodes; i++)
            sim_power_off(&W->hosts[i], "all");
        break;
    case FAULT_CUT:
    case FAULT_CUT_ONE_WAY:
    case FAULT_CUT_PAIR:
        cut(fault, true);
        break;
    case FAULT_FLAP: {
        struct undo *undo = sim_keep(sizeof(*undo));

        undo->fault = *fault;
        undo->left = fault->ms / 50 / 2 * 2;
        cut(fault, true);
        sim_at(NULL, 50 * SIM_MS, undo_event, undo);
        undo->left++;
        return;
    }
    case FAULT_LOSS:
        W->net.loss[host->index] = (uint16_t)(10 + fault->x % 400);
        break;
    case FAULT_SLOW:
        W->net.slow_us[host->index] = 1000 + fault->x % 200000;
        break;
    case FAULT_DEVICE_GONE:
        if (host->powered)
            sim_fabric_device(host, false);
        break;
    case FAULT_COORD_KILL:
        sim_coord_kill(coord, fault->ms);
        return;
    case FAULT_COORD_STOP:
        sim_proc_stop(&coord->host->coord);
        break;
    case FAULT_COORD_POINT:
        sim_points.kill_at[WHO_COORD] = sim_points.count[WHO_COORD] + 1 + fault->x % 200;
        return;
    case FAULT_KEEPER_POINT:
        sim_points.kill_at[WHO_KEEPER] = sim_points.count[WHO_KEEPER] + 1 + fault->x % 200;
        return;
    case FAULT_DISK_REFUSES:
        coord->disk = DISK_REFUSES;
        break;
    case FAULT_DISK_SLOW:
        coord->disk = DISK_SLOW;
        break;
    case FAULT_DISK_HANGS:
        coord->disk = DISK_HANGS;
        break;
    case FAULT_OLD_COPY:
        old_copy(fault);
        return;
    case FAULT_FENCE_MODE:
        host->power = (enum sim_power)(1 + fault->x % 4);
        if (fault->x % 5 == 0) {
            host->power = POWER_WORKS;
            host->power_fails = 1 + fault->x % 4;
            return;
        }
        break;
    case FAULT_START_FAILS:
        host->start_err = fault->x % 3 ? -EIO : -EPIPE;
        break;
    case FAULT_SAVE_FAILS:
        host->save_err = -EIO;
        break;
    case FAULT_SLOW_SPAWN:
        host->spawn_ms = 200 + fault->x % 5000;
        break;
    case FAULT_STUCK_QEMU:
        host->stuck_qemu = true;
        break;
    case FAULT_CLOCK:
        sim_drift(host, (int32_t)(fault->x % 200001) - 100000);
        host->wall_ms += (int64_t)(fault->x % 7200001) - 3600000;
        break;
    case FAULT_PROCESSOR:
        sim_agent_report(host, MST_FAULT_PROCESSOR, NULL, 0, "machine check");
        return;
    case FAULT_LIES:
        lie(fault);
        return;
    case FAULT_REPORT_STORM:
        storm(fault);
        return;
    case FAULT_SPOIL:
        spoil(host, NULL, fault);
        return;
    case FAULT_OP_STOP:
        (void)sim_operator(MST_REQ_STOP, vm_name(fault), NULL, NULL);
        return;
    case FAULT_OP_START:
        (void)sim_operator(MST_REQ_START, vm_name(fault), fault->x % 3 ? NULL : W->hosts[fault->b % W->conf.nodes].name, NULL);
        return;
    case FAULT_OP_DRAIN:
        (void)sim_operator(MST_REQ_DRAIN, host->name, NULL, NULL);
        return;
    case FAULT_OP_UNDRAIN:
        (void)sim_operator(MST_REQ_UNDRAIN, host->name, NULL, NULL);
        return;
    case FAULT_OP_CONFIRM:
        confirm(fault);
        return;
    case FAULT_OP_REDEFINE:
        redefine(fault);
        return;
    case FAULT_COORD_OFF:
        sim_coord_kill(coord, 1000000);
        sim_power_off(coord->host, "a fault");
        break;
    case FAULT_COORD_CUT:
    case FAULT_COORD_CUT_STORE:
    case FAULT_COORD_CUT_NODES:
        coord_cut(fault, coord, true);
        break;
    case FAULT_COORD_CLOCK: /* adjtimex allows a tenth, on either side */
        sim_drift(coord->host, (int32_t)(fault->x % 200001) - 100000);
        sim_etcd_faults.drift_ppm = (int32_t)(fault->x / 7 % 200001) - 100000;
        break;
    case FAULT_STORE_MEMBER:
    case FAULT_STORE_MAJORITY:
        members_down(fault, true);
        break;
    case FAULT_STORE_LOSES:
        sim_etcd_faults.lost = 50 + fault->x % 500;
        break;
    case FAULT_STORE_LATE:
        sim_etcd_faults.late = 20 + fault->x % 300;
        break;
    case FAULT_SOURCE_OFF:
    case FAULT_MIRROR_OFF:
    case FAULT_BOTH_OFF:
    case FAULT_MIRROR_KEEPER:
    case FAULT_MIRROR_CUT:
    case FAULT_IMAGE_ROTS:
        mirror_fault(fault);
        return;
    case FAULT_KINDS:
        lasts = false;
        break;
    }
    if (lasts)
        undo_later(fault, coord, fault->ms);
}

/* --- the end --- */

void sim_mend(void)
{
    W->mended = true;
    memset(&W->net, 0, sizeof(W->net));
    memset(&sim_etcd_faults, 0, sizeof(sim_etcd_faults));
    sim_die_publishing(NULL, 0, NULL, NULL);
    memset(sim_points.kill_at, 0, sizeof(sim_points.kill_at));
    for (unsigned i = 0; i < W->hosts_count; i++) {
        struct sim_host *host = &W->hosts[i];

        host->power = POWER_WORKS;
        host->power_fails = 0;
        host->has_fence = host->is_node && host->has_fence;
        host->start_err = host->save_err = 0;
        host->spawn_ms = 0;
        host->stuck_qemu = false;
        sim_drift(host, 0);
        sim_power_on(host);
        sim_fabric_device(host, true);
        sim_proc_cont(&host->keeper);
        sim_proc_cont(&host->agent);
        sim_proc_cont(&host->coord);
        if (host->is_node && !host->keeper.alive)
            sim_keeper_kill(host, 500);
        for (struct sim_task *task = host->tasks; task; task = task->next) {
            task->stopped = false;
            if (task->alive && task->dying && task->unkillable_ns > K.now_ns)
                sim_task_end(task, SIGKILL); /* it was killed long ago */
            task->unkillable_ns = 0;
        }
    }
    for (unsigned i = 0; i < W->conf.coords; i++) {
        struct sim_coord *coord = W->coords[i];

        sim_newest_store(coord);
        sim_coord_disk_goes_on(coord);
        if (!coord->host->coord.alive)
            sim_coord_kill(coord, 300);
    }
    sim_say("everything is mended");
}

/* The newest store is back, and a node was led by the old copy meanwhile: the operator knows which is which, and does what he is told. */
static void end_mistake(struct sim_coord *coord)
{
    static const char told[] = "restart the keeper of node ";
    const char *at = strstr(mst_core_trouble(sim_coord_core(coord)), told);

    for (unsigned i = 0; at && i < W->conf.nodes; i++) {
        const char *name = W->hosts[i].name;
        size_t len = strlen(name);

        if (strncmp(at + sizeof(told) - 1, name, len) != 0 || at[sizeof(told) - 1 + len] != ',')
            continue;
        sim_keeper_kill(&W->hosts[i], 500);
        sim_coord_kill(coord, 1000);
        return;
    }
}

/* What an operator does who sees that something is not well. */
static void operator_round(unsigned round)
{
    struct sim_coord *coord = sim_coord_leader();

    for (unsigned i = 0; i < W->conf.nodes; i++) {
        sim_power_on(&W->hosts[i]);
        (void)sim_operator(MST_REQ_UNDRAIN, W->hosts[i].name, NULL, NULL);
    }
    (void)sim_operator(MST_REQ_GO_ON, "", NULL, NULL); /* most nodes were lost at once: they are back, or off for good */
    sim_run_ms(300);
    for (unsigned i = 0; coord && i < W->conf.vms; i++) {
        struct mst_vm_look look;

        coord = sim_coord_leader();
        if (!coord || !mst_core_vm_by_name(sim_coord_core(coord), W->vms[i].name, &look))
            continue;
        if (look.row->phase == MST_VM_HELD)
            (void)sim_operator(MST_REQ_START, W->vms[i].name, NULL, NULL);
    }
    coord = sim_coord_leader();
    if (coord)
        end_mistake(coord);
    (void)round;
}

/* A VM that no node has room for may stay held: that is an answer. */
static bool only_unplaceable(void)
{
    struct sim_coord *coord = sim_coord_leader();
    struct mst_core *core = coord ? sim_coord_core(coord) : NULL;
    struct mst_recovery_look recovery;

    if (core && strstr(mst_core_trouble(core), "old copy"))
        return false;
    for (unsigned i = 0; core && i < W->conf.vms; i++) {
        struct mst_vm_look look;

        if (!mst_core_vm_by_name(core, W->vms[i].name, &look) || look.row->phase == MST_VM_RUNNING || !look.row->wanted)
            continue;
        if (look.row->phase != MST_VM_HELD || !strstr(look.text, "nobody can take it") || strstr(look.text, "is not connected") ||
            strstr(look.text, "is drained") || strstr(look.text, "does not"))
            return false;
    }
    for (unsigned i = 0; core && mst_core_recovery(core, i, &recovery); i++) {
        if (recovery.row->state != MST_REC_DONE && recovery.row->state != MST_REC_HELD)
            return false;
    }
    return core != NULL;
}

void sim_until_well(uint32_t max_ms)
{
    uint64_t end_ns = K.now_ns + max_ms * SIM_MS;
    char text[300] = "";
    unsigned round = 0;

    while (!K.over && K.now_ns < end_ns) {
        sim_run_ms(1000);
        if (K.over || oracle_all_well(text, sizeof(text)))
            return;
        if (++round % 16 == 8)
            operator_round(round);
    }
    if (!K.over && !only_unplaceable())
        oracle_breach("LIVE", "%.300s", text);
}

void sim_world_end(struct sim_result *ret)
{
    ret->breach = oracle_verdict.breach;
    memcpy(ret->invariant, oracle_verdict.invariant, sizeof(ret->invariant));
    memcpy(ret->text, oracle_verdict.text, sizeof(ret->text));
    ret->hash = K.hash;
    ret->events = K.events;
    ret->simulated_ms = (K.now_ns - 1000 * SIM_S) / SIM_MS;
    sim_world_free();
    sim_end();
}

static void fault_event(void *arg)
{
    sim_fault_apply(arg);
}

void sim_story_tell(const struct sim_story *story, const bool *keep, FILE *out, struct sim_result *ret)
{
    sim_begin(story->seed, out);
    sim_cluster(story);
    for (unsigned i = 0; i < story->count; i++) {
        if (keep && !keep[i])
            continue;
        sim_at(NULL, story->faults[i].at_ms * SIM_MS, fault_event, (void *)&story->faults[i]);
    }
    sim_run_ms(story->window_ms + 4000);
    if (!K.over) {
        sim_mend();
        sim_until_well(500000);
    }
    if (!K.over) {
        sim_run_ms(6000);
        oracle_final();
    }
    sim_world_end(ret);
}
