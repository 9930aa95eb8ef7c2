#include "tests/sim/oracle.h"
#include "tests/sim/etcd.h"

#include "coordinator/core/plan.h"
#include "node/keeper/keeper.h"
#include "node/keeper/storage.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct oracle_verdict oracle_verdict;
struct oracle_counts oracle_counts;

#define EPOCHS_MAX 128u

struct oepoch { /* one grant of a VM, as it really went */
    uint64_t epoch;
    bool ran, ordered, withdrawn;
    uint64_t proof_kind; /* enum mst_proof_kind, once durable */
    unsigned host;
    uint32_t boot;
    uint64_t seq; /* newest checkpoint, 0: none */
    struct sim_moment moment;
    bool protect, booted, from_image;
    pid_t pid;
    uint64_t ordered_life; /* of the keeper it was granted to */
    uint64_t recovery;
};

struct ovm {
    char name[MST_NAME_BYTES];
    struct sim_task *on; /* its vCPUs run there */
    uint64_t ran_epoch;  /* highest */
    struct oepoch epochs[EPOCHS_MAX];
    unsigned epochs_count;
    struct mst_vm_row row; /* of the ledger */
    bool known;
    uint64_t granted;             /* highest epoch that any store ever gave */
    bool stop_proved;             /* the operator was told that it is stopped, and has not started it since */
    bool start_asked, stop_asked; /* ever */
    bool spoilt, panicked;
};

struct orequest {
    uint64_t token;
    enum mst_request_type type;
    char name[MST_NAME_BYTES];
    uint64_t asked_ns;
};

static struct {
    struct ovm vms[SIM_VMS_MAX * 2];
    unsigned vms_count;
    uint64_t term; /* highest that became durable in the newest store */
    struct orequest requests[1024];
    unsigned requests_count;
    uint64_t started_ns[SIM_VMS_MAX * 2]; /* when the last start of it was asked for */
    uint64_t *set;                        /* hashes of all records that were published */
    unsigned set_room, set_count;
    uint64_t keeper_instance[SIM_NODES_MAX];
    uint64_t keeper_life[SIM_NODES_MAX];
    uint64_t fence_ordered_ns[SIM_NODES_MAX];
} O;

void oracle_begin(void)
{
    memset(&O, 0, sizeof(O));
    memset(&oracle_verdict, 0, sizeof(oracle_verdict));
    memset(&oracle_counts, 0, sizeof(oracle_counts));
    oracle_lease_begin();
    oracle_mirror_begin();
    O.set_room = 1u << 12;
    O.set = sim_keep(O.set_room * sizeof(*O.set));
}

void oracle_breach(const char *invariant, const char *fmt, ...)
{
    va_list args;

    if (oracle_verdict.breach)
        return;
    oracle_verdict.breach = true;
    oracle_verdict.at_ns = K.now_ns;
    snprintf(oracle_verdict.invariant, sizeof(oracle_verdict.invariant), "%s", invariant);
    va_start(args, fmt);
    vsnprintf(oracle_verdict.text, sizeof(oracle_verdict.text), fmt, args);
    va_end(args);
    sim_say("BREACH of %s: %s", invariant, oracle_verdict.text);
    K.over = true;
}

static struct ovm *ovm_of(const char *name)
{
    for (unsigned i = 0; i < O.vms_count; i++) {
        if (strcmp(O.vms[i].name, name) == 0)
            return &O.vms[i];
    }
    if (O.vms_count == sizeof(O.vms) / sizeof(O.vms[0]))
        abort();
    snprintf(O.vms[O.vms_count].name, MST_NAME_BYTES, "%s", name);
    return &O.vms[O.vms_count++];
}

static struct oepoch *epoch_of(struct ovm *vm, uint64_t epoch, bool make)
{
    for (unsigned i = vm->epochs_count; i > 0; i--) {
        if (vm->epochs[i - 1].epoch == epoch)
            return &vm->epochs[i - 1];
    }
    if (!make)
        return NULL;
    if (vm->epochs_count == EPOCHS_MAX) {
        memmove(&vm->epochs[0], &vm->epochs[EPOCHS_MAX / 2], EPOCHS_MAX / 2 * sizeof(vm->epochs[0]));
        vm->epochs_count = EPOCHS_MAX / 2;
    }
    memset(&vm->epochs[vm->epochs_count], 0, sizeof(vm->epochs[0]));
    vm->epochs[vm->epochs_count].epoch = epoch;
    return &vm->epochs[vm->epochs_count++];
}

/* The last epoch before this one in which the guest ran. */
static struct oepoch *ran_before(struct ovm *vm, uint64_t epoch)
{
    struct oepoch *found = NULL;

    for (unsigned i = 0; i < vm->epochs_count; i++) {
        struct oepoch *one = &vm->epochs[i];

        if (one->ran && one->epoch < epoch && (!found || one->epoch > found->epoch))
            found = one;
    }
    return found;
}

static const struct sim_vm *vm_conf(const char *name)
{
    for (unsigned i = 0; i < W->conf.vms; i++) {
        if (strcmp(W->vms[i].name, name) == 0)
            return &W->vms[i];
    }
    return NULL;
}

/* --- processes --- */

void oracle_keeper_up(struct sim_host *host, uint64_t instance)
{
    O.keeper_instance[host->index] = instance;
    O.keeper_life[host->index] = host->keeper.life;
    oracle_mirror_keeper_up(host, instance);
}

void oracle_keeper_down(struct sim_host *host)
{
    oracle_mirror_sources(host); /* it may have taken an acknowledgement, and told of it, in the event in which it dies */
    O.keeper_instance[host->index] = 0;
    O.keeper_life[host->index] = 0;
}

void oracle_host_down(struct sim_host *host)
{
    if (host->is_node)
        oracle_keeper_down(host);
}

void oracle_coord_up(struct sim_coord *coord)
{
    coord->led_ns = K.now_ns;
}

void oracle_coord_down(struct sim_coord *coord)
{
    (void)coord;
}

void oracle_fence_says(struct sim_host *host, int err)
{
    if (err == 0 && host->powered)
        oracle_breach("SIM", "the fence device of %s said off while it is on", host->name);
}

/* --- I1: the vCPUs of a VM run at one place only. I8, I2, I3: and under a grant that is durable, new and not stopped --- */

/* Two QEMUs must not have the same memory mapped, whichever of them waits. */
void oracle_qemu_new(struct sim_task *task)
{
    const struct sim_host *host = &W->hosts[task->host];

    for (const struct sim_task *other = host->tasks; other; other = other->next) {
        if (other != task && other->alive && !other->is_agent && task->ram && other->ram == task->ram)
            oracle_breach("I1", "%s: %s epoch %" PRIu64 " is started over memory that a QEMU of epoch %" PRIu64 " still has",
                          host->name, task->vm, task->epoch, other->epoch);
    }
    oracle_lease_start(host, task->vm, task->epoch);
}

/* The QEMU that waited is the one of (vm, epoch) from here on. */
void oracle_standby_used(const struct sim_host *host, const char *vm, uint64_t epoch)
{
    char ram[120];

    oracle_counts.standbys++;
    snprintf(ram, sizeof(ram), "/%s.e%" PRIu64 ".ram", vm, epoch);
    for (struct sim_task *task = host->tasks; task; task = task->next) { /* never two: they share the names of their monitors */
        if (!task->alive || !task->waits || strcmp(task->vm, vm) != 0)
            continue;
        if (!task->ram || !task->ram->named || !strstr(task->ram->path, ram))
            oracle_breach("I6", "%s: %s epoch %" PRIu64 " gets a QEMU that has other memory", host->name, vm, epoch);
        else if (!task->ram_open)
            oracle_breach("I6", "%s: %s epoch %" PRIu64 " gets a QEMU that has not opened its memory yet", host->name, vm, epoch);
        task->waits = false;
        task->epoch = epoch;
    }
    oracle_lease_start(host, vm, epoch);
}

void oracle_qemu_dead(struct sim_task *task)
{
    (void)task;
}

/* Its agent died between letting the guest run and saying so: its successor ends that process and starts once more, as ordered. */
static bool start_untold(const struct sim_task *task, const struct oepoch *epoch)
{
    const struct sim_host *host = &W->hosts[task->host];

    for (unsigned i = 0; host->k && i < MST_VMS_PER_NODE; i++) {
        const struct mst_vm *vm = &host->k->vms[i];

        if (vm->used && vm->epoch == task->epoch && strcmp(vm->name, task->vm) == 0)
            return !vm->ran && epoch->host == task->host && epoch->seq == 0;
    }
    return false;
}

void oracle_vcpu_on(struct sim_task *task)
{
    struct ovm *vm = ovm_of(task->vm);
    struct oepoch *epoch = epoch_of(vm, task->epoch, true);

    oracle_counts.vcpu_starts++;
    sim_say("%s: the vCPUs of %s run, epoch %" PRIu64, W->hosts[task->host].name, task->vm, task->epoch);
    sim_hash_u64(task->epoch * 1000 + task->host);
    if (task->waits)
        oracle_breach("I2", "%s: a QEMU that waits beside the image of %s runs", W->hosts[task->host].name, task->vm);
    if (vm->on && vm->on != task)
        oracle_breach("I1", "%s runs on %s (epoch %" PRIu64 ") and on %s (epoch %" PRIu64 ") at once", task->vm,
                      W->hosts[vm->on->host].name, vm->on->epoch, W->hosts[task->host].name, task->epoch);
    if (task->epoch < vm->ran_epoch)
        oracle_breach("I8", "%s runs under epoch %" PRIu64 " after it ran under %" PRIu64, task->vm, task->epoch, vm->ran_epoch);
    if (epoch->ran && epoch->pid != task->pid && !start_untold(task, epoch))
        oracle_breach("I8", "%s runs a second time under epoch %" PRIu64 ", which has ended", task->vm, task->epoch);
    if (!vm->known || vm->row.epoch < task->epoch)
        oracle_breach("I3", "%s runs under epoch %" PRIu64 ", which no store has granted", task->vm, task->epoch);
    else if (vm->row.epoch > task->epoch)
        oracle_breach("I2", "%s runs under epoch %" PRIu64 " although %" PRIu64 " is granted", task->vm, task->epoch,
                      vm->row.epoch);
    else if (vm->row.fenced)
        oracle_breach("I2", "%s runs under epoch %" PRIu64 ", which is recorded as proved stopped", task->vm, task->epoch);
    if (vm->stop_proved)
        oracle_breach("I13", "%s runs although the operator was told that it is stopped", task->vm);
    vm->on = task;
    epoch->ran = true;
    epoch->pid = task->pid;
    epoch->host = task->host;
    epoch->boot = W->hosts[task->host].boot;
    if (task->epoch > vm->ran_epoch)
        vm->ran_epoch = task->epoch;
}

void oracle_vcpu_off(struct sim_task *task)
{
    struct ovm *vm = ovm_of(task->vm);

    if (vm->on == task)
        vm->on = NULL;
    sim_say("%s: the vCPUs of %s stand, epoch %" PRIu64, W->hosts[task->host].name, task->vm, task->epoch);
}

/* A QEMU of this VM that could run under epoch or an older one. */
static const struct sim_task *living(const char *vm, uint64_t up_to_epoch)
{
    for (unsigned h = 0; h < W->conf.nodes; h++) {
        for (const struct sim_task *task = W->hosts[h].tasks; task; task = task->next) {
            if (task->alive && !task->is_agent && !task->waits && task->epoch <= up_to_epoch && strcmp(task->vm, vm) == 0)
                return task;
        }
    }
    return NULL;
}

/* --- I4, I5, I6: saves --- */

void oracle_checkpoint(struct sim_host *host, const char *vm, uint64_t epoch, uint64_t seq, const struct sim_moment *moment,
                       bool protect)
{
    struct oepoch *one = epoch_of(ovm_of(vm), epoch, true);

    oracle_counts.checkpoints++;
    one->seq = seq;
    one->moment = *moment;
    one->host = host->index;
    one->boot = host->boot;
    one->protect = protect;
    one->withdrawn = false;
    oracle_mirror_checkpoint(vm, epoch, seq, moment);
}

void oracle_withdrawn(const char *vm, uint64_t epoch, bool protect)
{
    struct oepoch *one = epoch_of(ovm_of(vm), epoch, true);

    if (!protect)
        one->withdrawn = true;
}

void oracle_spoilt(const char *vm)
{
    ovm_of(vm)->spoilt = true;
}

bool oracle_is_spoilt(const char *vm)
{
    return ovm_of(vm)->spoilt;
}

const struct mst_vm_row *oracle_vm_row(const char *name)
{
    const struct ovm *vm = ovm_of(name);

    return vm->known ? &vm->row : NULL;
}

void oracle_panicked(const char *vm)
{
    ovm_of(vm)->panicked = true;
}

/* Its bytes can still be had, as far as the cluster may know. */
static bool save_lives(const struct oepoch *one)
{
    const struct sim_host *host = &W->hosts[one->host];

    return one->seq > 0 && !one->withdrawn && host->powered && host->boot == one->boot && one->proof_kind < MST_PROOF_POWER;
}

/* The newest epoch before this one that has made what came before it old: it booted, or had a checkpoint of its own. */
static uint64_t life_since(const struct ovm *vm, uint64_t epoch)
{
    uint64_t since = 0;

    for (unsigned i = 0; i < vm->epochs_count; i++) {
        const struct oepoch *one = &vm->epochs[i];

        if (one->ran && one->epoch < epoch && one->epoch > since && (one->booted || one->seq > 0))
            since = one->epoch;
    }
    return since;
}

static bool booted_since(const struct ovm *vm, uint64_t load_epoch, uint64_t epoch)
{
    for (unsigned i = 0; i < vm->epochs_count; i++) {
        if (vm->epochs[i].ran && vm->epochs[i].booted && vm->epochs[i].epoch > load_epoch && vm->epochs[i].epoch < epoch)
            return true;
    }
    return false;
}

void oracle_loaded(struct sim_host *host, const char *name, uint64_t epoch, uint64_t load_epoch, uint64_t load_seq,
                   const struct sim_moment *memory, const struct sim_moment *device)
{
    struct ovm *vm = ovm_of(name);
    struct oepoch *last = ran_before(vm, epoch), *from = epoch_of(vm, load_epoch, false), *one = epoch_of(vm, epoch, true);
    char text[120];

    oracle_counts.resumes++;
    sim_say("%s: %s epoch %" PRIu64 " is loaded from save %" PRIu64 "/%" PRIu64, host->name, name, epoch, load_epoch, load_seq);
    if (!memory) {
        oracle_breach("I6",
                      "%s epoch %" PRIu64 " is resumed from memory that is not of one moment (save %" PRIu64 "/%" PRIu64 ")",
                      name, epoch, load_epoch, load_seq);
        return;
    }
    if (memcmp(memory, device, sizeof(*memory)) != 0)
        oracle_breach("I6",
                      "%s epoch %" PRIu64 ": memory is of tick %" PRIu64 " of life %" PRIu64 ", its devices of %" PRIu64
                      " of %" PRIu64,
                      name, epoch, memory->tick, memory->lineage, device->tick, device->lineage);
    if (!from || (from->seq == load_seq && memcmp(&from->moment, memory, sizeof(*memory)) != 0))
        oracle_breach("I6", "%s epoch %" PRIu64 ": save %" PRIu64 "/%" PRIu64 " never had this content", name, epoch, load_epoch,
                      load_seq);
    if (oracle_mirror_lost(name, life_since(vm, epoch), load_epoch, load_seq, text, sizeof(text)))
        oracle_breach("I4", "%s epoch %" PRIu64 " is resumed from save %" PRIu64 "/%" PRIu64 ", and %s", name, epoch, load_epoch,
                      load_seq, text);
    /* A mirror that counts is enough when the node of the newest save is away (saves.c). */
    if (last && !one->from_image && save_lives(last) && (load_epoch < last->epoch || load_seq < last->seq))
        oracle_breach("I5",
                      "%s epoch %" PRIu64 " is resumed from save %" PRIu64 "/%" PRIu64 ", but %" PRIu64 "/%" PRIu64 " lies on %s",
                      name, epoch, load_epoch, load_seq, last->epoch, last->seq, W->hosts[last->host].name);
    if (booted_since(vm, load_epoch, epoch))
        oracle_breach("I5", "%s epoch %" PRIu64 " is resumed from save %" PRIu64 "/%" PRIu64 ", and it has booted since", name,
                      epoch, load_epoch, load_seq);
    if (last && load_epoch > last->epoch)
        oracle_breach("I6", "%s epoch %" PRIu64 " is resumed from epoch %" PRIu64 ", in which it never ran", name, epoch,
                      load_epoch);
}

void oracle_booted(struct sim_host *host, const char *name, uint64_t epoch)
{
    struct ovm *vm = ovm_of(name);
    const struct sim_vm *conf = vm_conf(name);
    struct oepoch *last = ran_before(vm, epoch);
    char text[120];

    oracle_counts.boots++;
    epoch_of(vm, epoch, true)->booted = true;
    sim_say("%s: %s epoch %" PRIu64 " boots", host->name, name, epoch);
    /* Attributes (discard drops the save, too), panics, broken saves and stops have their own rules; what is left has none but this. */
    if (!conf || !last || vm->spoilt || vm->panicked || vm->stop_asked || conf->def.on_node_fault == MST_ON_FAULT_RESTART ||
        conf->def.on_vm_fault == MST_ON_FAULT_RESTART || conf->def.on_node_fault == MST_ON_FAULT_DISCARD ||
        conf->def.on_vm_fault == MST_ON_FAULT_DISCARD)
        return;
    if (save_lives(last))
        oracle_breach("I4", "%s epoch %" PRIu64 " boots, although its save %" PRIu64 "/%" PRIu64 " lies on %s", name, epoch,
                      last->epoch, last->seq, W->hosts[last->host].name);
    if (oracle_mirror_lost(name, life_since(vm, epoch), 0, 0, text, sizeof(text)))
        oracle_breach("I4", "%s epoch %" PRIu64 " boots, although %s", name, epoch, text);
}

static uint64_t hash_bytes(const void *data, size_t bytes)
{
    const uint8_t *at = data;
    uint64_t hash = UINT64_C(0x9ae16a3b2f90404f) ^ bytes, word;

    for (; bytes >= 8; bytes -= 8, at += 8) {
        memcpy(&word, at, 8);
        hash = (hash ^ word) * UINT64_C(0x9fb21c651e98df25);
        hash ^= hash >> 31;
    }
    word = 0;
    memcpy(&word, at, bytes);
    hash = (hash ^ word) * UINT64_C(0x9fb21c651e98df25);
    return hash | 1;
}

static bool set_has(uint64_t hash, bool add)
{
    unsigned i = (unsigned)hash & (O.set_room - 1);

    while (O.set[i] && O.set[i] != hash)
        i = (i + 1) & (O.set_room - 1);
    if (O.set[i] || !add)
        return O.set[i] != 0;
    O.set[i] = hash;
    O.set_count++;
    return false;
}

void oracle_published(const void *head_and_body, size_t bytes)
{
    if (2 * O.set_count > O.set_room) {
        uint64_t *old = O.set;
        unsigned room = O.set_room;

        O.set_room *= 2;
        O.set = sim_keep(O.set_room * sizeof(*O.set));
        O.set_count = 0;
        for (unsigned i = 0; i < room; i++) {
            if (old[i])
                (void)set_has(old[i], true);
        }
    }
    (void)set_has(hash_bytes(head_and_body, bytes), true);
}

void oracle_picked(const void *head_and_body, size_t bytes, const char *what)
{
    oracle_counts.picks++;
    if (!set_has(hash_bytes(head_and_body, bytes), false))
        oracle_breach("I6", "a reader takes a %s for whole that nobody ever wrote", what);
}

/* --- I15 --- */

void oracle_unmap(struct sim_host *host, const struct mst_areas *areas, int kind)
{
    unsigned over = sim_regions_over(areas->area[kind].addr, areas->area[kind].bytes);

    if (over > 0)
        oracle_breach("I15", "%s: %s epoch %" PRIu64 ": memory is given back that %u RDMA regions still open", host->name,
                      areas->vm, areas->epoch, over);
}

/* --- decisions --- */

static unsigned node_index(uint32_t id)
{
    return id >= 1 && id <= W->conf.nodes ? id - 1 : SIM_NODES_MAX;
}

static bool pending_in(const struct sim_store *store, const char *vm, uint64_t epoch, uint64_t not_recovery, uint8_t *ret_outcome)
{
    const struct sim_table *table = &store->tables[MST_ROW_RVM];

    for (unsigned i = table->count; i > 0; i--) {
        const struct mst_rvm_row *rvm = &table->rows[i - 1].rvm;
        const struct mst_recovery_row *recovery;

        if (rvm->recovery_id == not_recovery || strcmp(rvm->vm, vm) != 0)
            continue;
        if (epoch != 0 && rvm->epoch_from != epoch && rvm->epoch_to != epoch)
            continue;
        recovery = sim_store_recovery(store, rvm->recovery_id);
        *ret_outcome = rvm->outcome;
        if (recovery && recovery->state != MST_REC_DONE && (rvm->outcome == MST_OUT_PENDING || rvm->outcome == MST_OUT_HELD))
            return true;
    }
    return false;
}

/* I12: what is granted must fit. rows: of the transaction, over the store's. */
static const struct mst_vm_row *row_after(const struct sim_store *store, const struct mst_txn *txn, const char *name)
{
    for (uint32_t i = 0; i < txn->count; i++) {
        if (txn->rows[i].kind == MST_ROW_VM && strcmp(txn->rows[i].vm.name, name) == 0)
            return &txn->rows[i].vm;
    }
    return sim_store_vm(store, name);
}

static const struct mst_rvm_row *granting(const struct mst_txn *txn, const struct mst_vm_row *row)
{
    for (uint32_t i = 0; i < txn->count; i++) {
        const struct mst_rvm_row *rvm = &txn->rows[i].rvm;

        if (txn->rows[i].kind == MST_ROW_RVM && rvm->epoch_to == row->epoch && strcmp(rvm->vm, row->name) == 0)
            return rvm;
    }
    return NULL;
}

static uint64_t there_bytes(const struct mst_definition *def)
{
    struct mst_areas areas;
    enum mst_areas_for what = def->protect == MST_PROTECT_MIRROR  ? MST_AREAS_MIRROR
                              : def->protect == MST_PROTECT_LOCAL ? MST_AREAS_LOCAL
                                                                  : MST_AREAS_NONE;

    return mst_areas_plan(&areas, def->name, 1, (uint64_t)def->memory_mib << 20, what) == 0 ? areas.bytes : 0;
}

static void check_place(struct sim_coord *coord, const struct mst_txn *txn, const struct mst_vm_row *row,
                        const struct mst_rvm_row *rvm)
{
    const struct sim_vm *conf = vm_conf(row->name);
    unsigned node = node_index(row->node_id);
    const struct sim_table *nodes = &coord->store->tables[MST_ROW_NODE];
    uint64_t bytes = 0, vcpus = 0;
    bool allowed;

    if (!conf || node == SIM_NODES_MAX)
        return;
    allowed = conf->def.allowed_count == 0 || row->pin_node_id == row->node_id; /* an operator may name any */
    for (uint32_t i = 0; i < conf->def.allowed_count; i++)
        allowed = allowed || conf->def.allowed[i] == row->node_id;
    if (!allowed)
        oracle_breach("I12", "%s is granted to %s, which is not among its allowed nodes", row->name, W->hosts[node].name);
    if (row->pin_node_id != 0 && row->pin_node_id != row->node_id)
        oracle_breach("I12", "%s is granted to %s, but the operator asked for another node", row->name, W->hosts[node].name);
    for (unsigned i = 0; i < W->conf.vms; i++) {
        const struct mst_vm_row *other = row_after(coord->store, txn, W->vms[i].name);

        if (!other || other->fenced || other->node_id != row->node_id)
            continue;
        /* What is there already is as large as simulated memory is, what is only granted as large as its definition says. */
        if (granting(txn, other))
            bytes += mst_plan_need_bytes(W->vms[i].def.memory_mib, (enum mst_protect)W->vms[i].def.protect);
        else
            bytes += there_bytes(&W->vms[i].def);
        vcpus += W->vms[i].def.vcpus;
    }
    if (bytes > (uint64_t)W->hosts[node].conf.memory_mib << 20)
        oracle_breach("I12", "%s gets %s: its VMs need %" PRIu64 " MiB of %u", W->hosts[node].name, row->name, bytes >> 20,
                      W->hosts[node].conf.memory_mib);
    if (vcpus > (uint64_t)W->hosts[node].conf.vcpus * MST_PLAN_VCPU_OVERCOMMIT)
        oracle_breach("I12", "%s gets %s: its VMs have %" PRIu64 " vCPUs of %u", W->hosts[node].name, row->name, vcpus,
                      W->hosts[node].conf.vcpus * MST_PLAN_VCPU_OVERCOMMIT);
    for (unsigned i = 0; i < nodes->count; i++) {
        const struct mst_node_row *n = &nodes->rows[i].node;

        /* Where it came from it may stay when nobody else has room. */
        if (n->id == row->node_id && n->drained && rvm->from_node_id != row->node_id)
            oracle_breach("I12", "%s is granted to %s, which is drained", row->name, W->hosts[node].name);
    }
}

/* It boots where it left memory behind, which is dropped for it alone. */
static bool has_room_of_its_own(const struct mst_rvm_row *placed, const struct mst_vm_row *row)
{
    const struct mst_keeper *k = W->hosts[node_index(row->node_id)].k;

    if (placed->how != MST_HOW_BOOT || placed->from_node_id != row->node_id)
        return false;
    for (unsigned i = 0; k && i < MST_VMS_PER_NODE; i++) {
        if (k->vms[i].used && strcmp(k->vms[i].name, placed->vm) == 0)
            return true;
    }
    return false;
}

/* A VM that waits for room while a lower one of the same plan got a place that it could have had. */
static void check_priority(struct sim_coord *coord, const struct mst_txn *txn)
{
    for (uint32_t i = 0; i < txn->count; i++) {
        const struct mst_rvm_row *held = &txn->rows[i].rvm;
        const struct sim_vm *a = txn->rows[i].kind == MST_ROW_RVM ? vm_conf(held->vm) : NULL;

        if (!a || held->outcome != MST_OUT_HELD || held->hold != MST_HOLD_NO_ROOM)
            continue;
        for (uint32_t k = 0; k < txn->count; k++) {
            const struct mst_rvm_row *placed = &txn->rows[k].rvm;
            const struct sim_vm *b = txn->rows[k].kind == MST_ROW_RVM ? vm_conf(placed->vm) : NULL;
            const struct mst_vm_row *row = b ? row_after(coord->store, txn, placed->vm) : NULL;
            bool allowed = a->def.allowed_count == 0;

            if (!b || placed->recovery_id != held->recovery_id || placed->outcome != MST_OUT_PENDING || !row || row->fenced ||
                placed->epoch_to != row->epoch || b->def.priority >= a->def.priority || has_room_of_its_own(placed, row))
                continue;
            for (uint32_t n = 0; n < a->def.allowed_count; n++)
                allowed = allowed || a->def.allowed[n] == row->node_id;
            if (allowed && a->def.vcpus <= b->def.vcpus &&
                mst_plan_need_bytes(a->def.memory_mib, (enum mst_protect)a->def.protect) <=
                    mst_plan_need_bytes(b->def.memory_mib, (enum mst_protect)b->def.protect))
                oracle_breach("I12", "%s (priority %u) waits for room while %s (priority %u) gets %s", held->vm, a->def.priority,
                              placed->vm, b->def.priority, W->hosts[node_index(row->node_id)].name);
        }
    }
}

static void check_grant(struct sim_coord *coord, const struct mst_txn *txn, const struct mst_vm_row *before,
                        const struct mst_vm_row *row, const struct mst_rvm_row *rvm)
{
    struct ovm *vm = ovm_of(row->name);
    struct oepoch *one, *old = epoch_of(vm, before->epoch, false);
    const struct mst_proof_row *proof = sim_store_proof(coord->store, before->proof_id);
    const struct sim_task *task = living(row->name, before->epoch);
    unsigned node = node_index(before->node_id);

    oracle_counts.grants++;
    if (!before->wanted && !row->wanted)
        oracle_breach("I13", "%s is granted epoch %" PRIu64 " although the operator has stopped it", row->name, row->epoch);
    sim_say("granted: %s epoch %" PRIu64 " to %s", row->name, row->epoch,
            node_index(row->node_id) < SIM_NODES_MAX ? W->hosts[node_index(row->node_id)].name : "?");
    if (!before->fenced)
        oracle_breach("I2", "%s epoch %" PRIu64 " is granted before epoch %" PRIu64 " is proved stopped", row->name, row->epoch,
                      before->epoch);
    if (before->node_id != 0 && (!proof || proof->node_id != before->node_id))
        oracle_breach("I2", "%s epoch %" PRIu64 " is granted, and no proof speaks of epoch %" PRIu64 " on its node", row->name,
                      row->epoch, before->epoch);
    if (task)
        oracle_breach("I2", "%s epoch %" PRIu64 " is granted while a QEMU of epoch %" PRIu64 " lives on %s", row->name,
                      row->epoch, task->epoch, W->hosts[task->host].name);
    if (row->epoch <= vm->granted)
        oracle_breach("I8", "%s epoch %" PRIu64 " is granted a second time (highest so far %" PRIu64 ")", row->name, row->epoch,
                      vm->granted);
    /* I7: the grant before was of this very recovery, nobody was ever told of it, and its node was there all the time */
    if (old && old->recovery == rvm->recovery_id && !old->ordered && node < SIM_NODES_MAX && old->ordered_life != 0 &&
        O.keeper_life[node] == old->ordered_life && before->proof_kind != MST_PROOF_OPERATOR && vm->known && vm->row.wanted &&
        rvm->attempts == 0)
        oracle_breach("I7",
                      "recovery %" PRIu64 " grants %s epoch %" PRIu64 " and then %" PRIu64 " without ever having used the first",
                      rvm->recovery_id, row->name, before->epoch, row->epoch);
    if (row->epoch != before->epoch + 1)
        oracle_breach("I7", "recovery %" PRIu64 " takes %s from epoch %" PRIu64 " to %" PRIu64, rvm->recovery_id, row->name,
                      before->epoch, row->epoch);
    one = epoch_of(vm, row->epoch, true);
    one->recovery = rvm->recovery_id;
    one->ordered_life = node_index(row->node_id) < SIM_NODES_MAX ? O.keeper_life[node_index(row->node_id)] : 0;
    check_place(coord, txn, row, rvm);
}

static void commit_vm(struct sim_coord *coord, const struct mst_txn *txn, const struct mst_vm_row *row)
{
    struct ovm *vm = ovm_of(row->name);
    const struct mst_vm_row *before = sim_store_vm(coord->store, row->name);
    const struct mst_rvm_row *rvm;
    struct oepoch *one;

    if (before && row->epoch < before->epoch)
        oracle_breach("I8", "%s goes back from epoch %" PRIu64 " to %" PRIu64, row->name, before->epoch, row->epoch);
    rvm = before && row->epoch > before->epoch ? granting(txn, row) : NULL;
    if (rvm)
        check_grant(coord, txn, before, row, rvm);
    if (!before && row->epoch < vm->granted)
        oracle_breach("I8", "%s is defined anew from epoch %" PRIu64 ", but had %" PRIu64 " before", row->name, row->epoch,
                      vm->granted);
    if (before && !before->fenced && row->fenced && row->epoch == before->epoch) {
        const struct sim_task *task = living(row->name, row->epoch);

        oracle_counts.fenced++;
        if (task)
            oracle_breach("I2", "%s epoch %" PRIu64 " is recorded as stopped while its QEMU lives on %s", row->name, row->epoch,
                          W->hosts[task->host].name);
        one = epoch_of(vm, row->epoch, true);
        one->proof_kind = row->proof_kind;
    }
    if (before && !before->wanted && row->wanted && !vm->start_asked)
        oracle_breach("I13", "%s is wanted all of a sudden", row->name);
    if (before && before->wanted && !row->wanted && !vm->stop_asked) {
        const struct sim_vm *conf = vm_conf(row->name);

        if (!conf || (conf->def.on_node_fault != MST_ON_FAULT_DISCARD && conf->def.on_vm_fault != MST_ON_FAULT_DISCARD))
            oracle_breach("I13", "%s is not wanted any more, and nobody said so", row->name);
    }
    if (row->epoch > vm->granted)
        vm->granted = row->epoch;
    oracle_mirror_vm(coord, before, row);
    if (!coord->on_old_copy) {
        vm->row = *row;
        vm->known = true;
    }
}

/* I11: one recovery for what happened to one grant. */
static void commit_rvm(struct sim_coord *coord, const struct mst_rvm_row *row)
{
    const struct sim_table *table = &coord->store->tables[MST_ROW_RVM];
    struct ovm *vm = ovm_of(row->vm);
    uint8_t outcome = 0;

    for (unsigned i = table->count; i > 0; i--) {
        const struct mst_rvm_row *old = &table->rows[i - 1].rvm;

        if (old->recovery_id != row->recovery_id || strcmp(old->vm, row->vm) != 0)
            continue;
        if (old->outcome == MST_OUT_PENDING && (row->outcome == MST_OUT_RESUMED || row->outcome == MST_OUT_RESTARTED)) {
            struct oepoch *one = epoch_of(vm, row->epoch_to, false);

            if (!one || !one->ran)
                oracle_breach("I13", "recovery %" PRIu64 " says that %s runs under epoch %" PRIu64 ", but it never did",
                              row->recovery_id, row->vm, row->epoch_to);
        }
        return;
    }
    if (pending_in(coord->store, row->vm, row->epoch_from, row->recovery_id, &outcome))
        oracle_breach("I11", "recovery %" PRIu64 " takes %s epoch %" PRIu64 ", which another open recovery has", row->recovery_id,
                      row->vm, row->epoch_from);
}

static void commit_recovery(struct sim_coord *coord, const struct mst_txn *txn, const struct mst_recovery_row *row)
{
    const struct mst_recovery_row *before = sim_store_recovery(coord->store, row->id);
    const struct mst_fault_row *fault = NULL;

    if (before) {
        if (before->state == MST_REC_DONE)
            oracle_breach("I7", "recovery %" PRIu64 " was done and goes on", row->id);
        return;
    }
    oracle_counts.recoveries++;
    for (uint32_t i = 0; i < txn->count; i++) {
        if (txn->rows[i].kind == MST_ROW_FAULT && txn->rows[i].fault.id == row->fault_id)
            fault = &txn->rows[i].fault;
    }
    /* Reports that the story made up about what is over (another instance, another epoch) begin nothing. */
    if (fault && strcmp(fault->reporter, "liar") == 0)
        oracle_breach("I11", "recovery %" PRIu64 " follows from a report about an earlier life of %s", row->id,
                      node_index(row->node_id) < SIM_NODES_MAX ? W->hosts[node_index(row->node_id)].name : "?");
}

void oracle_commit(struct sim_coord *coord, const struct mst_txn *txn)
{
    oracle_counts.commits++;
    for (uint32_t i = 0; i < txn->count && !K.over; i++) {
        const struct mst_row *row = &txn->rows[i];

        sim_hash_u64(row->kind);
        switch (row->kind) {
        case MST_ROW_META: {
            const struct mst_meta_row *before = sim_store_meta(coord->store);

            if (before && (row->meta.term < before->term || row->meta.next_recovery < before->next_recovery ||
                           row->meta.epoch_floor < before->epoch_floor))
                oracle_breach("I8", "term, numbers or the floor of epochs go back (term %" PRIu64 " after %" PRIu64 ")",
                              row->meta.term, before->term);
            if (!coord->on_old_copy && row->meta.term < O.term)
                oracle_breach("I8", "term %" PRIu64 " begins after term %" PRIu64, row->meta.term, O.term);
            if (!coord->on_old_copy)
                O.term = row->meta.term;
            break;
        }
        case MST_ROW_VM:
            commit_vm(coord, txn, &row->vm);
            break;
        case MST_ROW_VM_DELETE: {
            struct ovm *vm = ovm_of(row->vm_delete);

            if (living(row->vm_delete, UINT64_MAX))
                oracle_breach("I13", "%s is undefined while it lives", row->vm_delete);
            vm->known = false;
            if (!coord->on_old_copy)
                oracle_mirror_undefined(row->vm_delete);
            break;
        }
        case MST_ROW_RVM:
            commit_rvm(coord, &row->rvm);
            break;
        case MST_ROW_RECOVERY:
            commit_recovery(coord, txn, &row->recovery);
            break;
        case MST_ROW_PROOF:
            if (row->proof.kind == MST_PROOF_WATCHDOG && node_index(row->proof.node_id) < SIM_NODES_MAX)
                oracle_lease_proof(&W->hosts[node_index(row->proof.node_id)], row->proof.instance);
            oracle_mirror_proof(&row->proof);
            break;
        case MST_ROW_MIRROR:
            oracle_mirror_commit(coord, &row->mirror);
            break;
        default:
            break;
        }
    }
    check_priority(coord, txn);
}

/* A copy of the store is noticed as soon as a node calls that has heard of a decision which it lacks. */
void oracle_old_copy(const struct sim_coord *coord)
{
    struct mst_core *core = sim_coord_core(coord);
    struct mst_time now = sim_coord_time(coord);

    for (unsigned i = 0; coord->on_old_copy && core && i < W->conf.nodes; i++) {
        struct mst_node_look look;

        mst_core_node(core, &now, i, &look);
        if (look.link != 0 && coord->witness[i] != 0 && look.instance == coord->witness[i])
            oracle_breach(
                "I10", "coordinator %u does not notice that its store is an old copy, although %s has heard of newer decisions",
                coord->index + 1, W->hosts[i].name);
    }
}

#define PAUSE_NS (1300 * SIM_MS) /* of a leader: longer than it may stand still unnoticed */

/* I10: what is written for a term is written before the next has begun. */
void oracle_term(struct sim_coord *coord, uint64_t term)
{
    if (term < O.term)
        oracle_breach("I10",
                      "the store takes a transaction of coordinator %u for term %" PRIu64 " after term %" PRIu64 " has begun",
                      coord->index + 1, term, O.term);
}

/* I10: an old copy of the store decides nothing once it is known to be one; and of several, only that one has effects whose leader key is in the store.
 * A lease of leadership ends by etcd's clock, and its holder has stopped before: so exactly that is asked. */
static void check_right(struct sim_coord *coord, const char *what)
{
    const struct sim_proc *proc = &coord->host->coord;
    struct mst_core *core = sim_coord_core(coord);

    /* A pause before it led: its first transaction, that of its term, asks by its condition, and nothing is done before that is durable. */
    if (W->conf.coords > 1 && proc->continued_ns - proc->stopped_ns > PAUSE_NS && proc->continued_ns > proc->stopped_ns &&
        proc->continued_ns > coord->led_ns && sim_etcd_confirmed(coord->instance) < proc->continued_ns)
        oracle_breach("I10", "coordinator %u stood still, and %s before it has asked whether it still leads", coord->index + 1,
                      what);
    if (W->conf.coords > 1 && sim_etcd_leader() != coord->instance)
        oracle_breach("I10", "coordinator %u %s, and it does not lead (term %" PRIu64 ", the newest is %" PRIu64 ")",
                      coord->index + 1, what, coord->term, O.term);
    oracle_old_copy(coord);
    if (coord->on_old_copy && core && strstr(mst_core_trouble(core), "old copy"))
        oracle_breach("I10", "coordinator %u knows that its store is an old copy, and %s all the same", coord->index + 1, what);
}

void oracle_acts(struct sim_coord *coord, const char *what)
{
    check_right(coord, what);
}

void oracle_decides(struct sim_coord *coord)
{
    check_right(coord, "decides");
}

static void order_start(struct sim_coord *coord, const struct mst_order *order)
{
    const struct mst_vm_row *row = sim_store_vm(coord->store, order->vm);
    struct oepoch *one = epoch_of(ovm_of(order->vm), order->epoch, true);

    one->ordered = true;
    one->from_image = order->source.node_id != 0 && order->source.image;
    if (!row || row->epoch != order->epoch || node_index(row->node_id) != order->node || row->fenced)
        oracle_breach("I3", "%s epoch %" PRIu64 " is ordered to start on %s before that grant is durable", order->vm,
                      order->epoch, W->hosts[order->node].name);
}

static void order_fence(struct sim_coord *coord, const struct mst_order *order)
{
    for (unsigned i = 0; i < order->fence_count; i++) {
        const struct mst_vm_row *row = sim_store_vm(coord->store, order->fence[i].vm);
        uint8_t outcome;

        if (!row || row->epoch != order->fence[i].epoch || node_index(row->node_id) != order->node || row->fenced)
            continue;                                             /* what is over anyway */
        if (!pending_in(coord->store, row->name, 0, 0, &outcome)) /* its epoch may have been taken over meanwhile */
            oracle_breach("I3", "%s epoch %" PRIu64 " is ordered to stop, and no durable recovery says why", row->name,
                          row->epoch);
    }
}

static void order_forget(struct sim_coord *coord, const struct mst_order *order)
{
    const struct mst_vm_row *row = sim_store_vm(coord->store, order->vm);

    if (!row)
        return;
    if (!row->fenced && node_index(row->node_id) == order->node && order->epoch >= row->epoch)
        oracle_breach("I4", "%s epoch %" PRIu64 " is ordered to be forgotten where it has its grant", order->vm, order->epoch);
    if (row->save.node_id != 0 && node_index(row->save.node_id) == order->node && order->epoch >= row->save.epoch)
        oracle_breach("I4", "the save %" PRIu64 "/%" PRIu64 " of %s is ordered to be forgotten while it is needed",
                      row->save.epoch, row->save.seq, order->vm);
}

void oracle_order(struct sim_coord *coord, const struct mst_order *order)
{
    bool again = order->type == MST_ORDER_START && epoch_of(ovm_of(order->vm), order->epoch, true)->ordered;

    oracle_counts.orders++;
    sim_hash_u64(order->type * 64 + order->node);
    check_right(coord, "orders");
    if (order->type == MST_ORDER_START)
        order_start(coord, order);
    else if (order->type == MST_ORDER_FENCE) {
        O.fence_ordered_ns[order->node] = K.now_ns;
        order_fence(coord, order);
    } else if (order->type == MST_ORDER_FORGET)
        order_forget(coord, order);
    oracle_mirror_order(coord, order, again);
}

#define SEEN_NS (SIM_S / 2) /* until readings show that a keeper that stood still goes on */

/* Nothing is wrong with the node at this moment, and its keeper was not asked to stop its VMs, which it might have failed to do. */
static bool well_enough(const struct sim_coord *coord, unsigned node)
{
    const struct sim_host *host = &W->hosts[node];
    unsigned c = coord->host->index;

    return host->keeper.alive && !host->keeper.stopped &&
           (host->keeper.continued_ns == 0 || K.now_ns - host->keeper.continued_ns > SEEN_NS) && sim_net_ok(node, c) &&
           sim_net_ok(c, node) && W->net.loss[node] == 0 && W->net.slow_us[node] == 0 &&
           (O.fence_ordered_ns[node] == 0 || K.now_ns - O.fence_ordered_ns[node] > 60 * SIM_S);
}

void oracle_fence(struct sim_coord *coord, unsigned node)
{
    const struct sim_table *table = &coord->store->tables[MST_ROW_RECOVERY];
    struct mst_core *core = sim_coord_core(coord);
    struct mst_time now = sim_coord_time(coord);
    bool why = false, other = false;

    oracle_counts.power_fences++;
    check_right(coord, "cuts power");
    if (W->conf.coords > 1 && K.now_ns - sim_etcd_confirmed(coord->instance) > 4 * SIM_S)
        oracle_breach("I10", "coordinator %u cuts the power of %s, and has not asked whether it leads", coord->index + 1,
                      W->hosts[node].name);
    for (unsigned i = 0; i < table->count; i++) {
        const struct mst_recovery_row *row = &table->rows[i].recovery;

        why = why || (row->scope == MST_SCOPE_NODE && row->state == MST_REC_FENCING && node_index(row->node_id) == node);
    }
    if (!why)
        oracle_breach("I3", "the power of %s is cut, and no durable recovery says why", W->hosts[node].name);
    for (unsigned i = 0; i < W->conf.nodes; i++) {
        struct mst_node_look look;

        mst_core_node(core, &now, i, &look);
        if (i != node)
            other = other || look.link != 0;
        else if (look.link != 0 && well_enough(coord, node))
            oracle_breach("I10", "the power of %s is cut, which is well, is connected and has not been asked",
                          W->hosts[node].name);
    }
    if (!other)
        oracle_breach("I10", "the power of %s is cut by a coordinator that sees no other node", W->hosts[node].name);
}

/* --- I13: the operator --- */

void oracle_request(uint64_t token, enum mst_request_type type, const char *name)
{
    struct orequest *request = &O.requests[O.requests_count++ % (sizeof(O.requests) / sizeof(O.requests[0]))];
    bool of_vm = type == MST_REQ_START || type == MST_REQ_STOP || type == MST_REQ_DEFINE || type == MST_REQ_UNDEFINE;

    request->token = token;
    request->type = type;
    request->asked_ns = K.now_ns;
    snprintf(request->name, sizeof(request->name), "%s", name);
    sim_say("operator asks: %s %s",
            type == MST_REQ_DEFINE     ? "vm define"
            : type == MST_REQ_UNDEFINE ? "vm undefine"
            : type == MST_REQ_START    ? "vm start"
            : type == MST_REQ_STOP     ? "vm stop"
            : type == MST_REQ_DRAIN    ? "node drain"
            : type == MST_REQ_UNDRAIN  ? "node undrain"
                                       : "node confirm-dead",
            name);
    if (!of_vm)
        return;
    if (type == MST_REQ_START) {
        ovm_of(name)->start_asked = true;
        ovm_of(name)->stop_proved = false;
        O.started_ns[ovm_of(name) - O.vms] = K.now_ns;
    }
    if (type == MST_REQ_STOP)
        ovm_of(name)->stop_asked = true;
}

void oracle_reply(struct sim_coord *coord, uint64_t token, int err)
{
    for (unsigned i = 0; i < sizeof(O.requests) / sizeof(O.requests[0]); i++) {
        struct orequest *request = &O.requests[i];
        struct ovm *vm;

        if (request->token != token || token == 0)
            continue;
        request->token = 0;
        if (err != 0 || (request->type != MST_REQ_STOP && request->type != MST_REQ_START) || coord->on_old_copy)
            return;
        vm = ovm_of(request->name);
        if (request->type == MST_REQ_START)
            return;
        oracle_counts.stops++;
        if (O.started_ns[vm - O.vms] >= request->asked_ns)
            return; /* started again meanwhile */
        if (living(vm->name, UINT64_MAX))
            oracle_breach("I13", "the operator is told that %s is stopped, and it lives", vm->name);
        vm->stop_proved = true;
        return;
    }
}

bool oracle_vm_wanted(const char *name)
{
    const struct ovm *vm = ovm_of(name);

    return vm->known && vm->row.wanted;
}

/* --- the end --- */

static bool no_room_for_image(const char *protection)
{
    const char *has = strstr(protection, "has it, or an image");

    if (has && strstr(has + 1, "has it, or an image")) /* the VM, and what is to be forgotten there first */
        return false;
    return strstr(protection, "nobody can take its image") && !strstr(protection, "is not connected") &&
           !strstr(protection, "is drained") && !strstr(protection, "does not");
}

bool oracle_all_well(char *text, size_t size)
{
    struct sim_coord *coord = sim_coord_leader();
    struct mst_core *core = coord ? sim_coord_core(coord) : NULL;
    struct mst_recovery_look recovery;

    if (!core) {
        snprintf(text, size, "no coordinator is up");
        return false;
    }
    if (strstr(mst_core_trouble(core), "old copy")) { /* all may run, but the next fault finds nobody who decides */
        snprintf(text, size, "coordinator %u says: %s", coord->index + 1, mst_core_trouble(core));
        return false;
    }
    for (unsigned i = 0; i < O.vms_count; i++) {
        const struct ovm *vm = &O.vms[i];
        struct mst_vm_look look;

        if (!vm->known)
            continue;
        if (!mst_core_vm_by_name(core, vm->name, &look)) {
            snprintf(text, size, "%s is forgotten", vm->name);
            return false;
        }
        if (look.row->wanted ? look.row->phase != MST_VM_RUNNING : look.row->phase != MST_VM_STOPPED) {
            snprintf(text, size, "%s: wanted=%d phase=%u node=%u epoch=%" PRIu64 " fenced=%d: %s", vm->name, look.row->wanted,
                     look.row->phase, look.row->node_id, look.row->epoch, look.row->fenced, look.text);
            return false;
        }
        if (look.row->wanted && (!vm->on || vm->on->stopped || vm->on->epoch != look.row->epoch)) {
            snprintf(text, size, "%s ought to run on node %u under epoch %" PRIu64 " and does not", vm->name, look.row->node_id,
                     look.row->epoch);
            return false;
        }
        if (!look.row->wanted && living(vm->name, UINT64_MAX)) {
            snprintf(text, size, "%s ought to be stopped and lives", vm->name);
            return false;
        }
        if (look.exposed && !no_room_for_image(look.protection)) {
            snprintf(text, size, "%s: %s", vm->name, look.protection);
            return false;
        }
    }
    for (unsigned i = 0; mst_core_recovery(core, i, &recovery); i++) {
        if (recovery.row->state == MST_REC_DONE)
            continue;
        snprintf(text, size, "recovery %" PRIu64 " (scope %u, node %u) stands in %s: %s", recovery.row->id, recovery.row->scope,
                 recovery.row->node_id, mst_rec_state_name(recovery.row->state), recovery.why);
        return false;
    }
    text[0] = '\0';
    return true;
}

void oracle_final(void)
{
    char text[200];

    for (unsigned i = 0; i < W->conf.nodes && !K.over; i++) {
        if (sim_keeper_leaks(&W->hosts[i], text, sizeof(text)))
            oracle_breach("I15", "the keeper of %s holds %s", W->hosts[i].name, text);
    }
    for (unsigned i = 0; i < W->conf.coords && !K.over; i++) {
        unsigned regions, links = sim_links_of(&W->coords[i]->host->coord, &regions);

        if (links > 3 * W->conf.nodes + 4 || regions > 2 * links + 4 || W->coords[i]->host->coord.blocks_count > 200)
            oracle_breach("I15", "coordinator %u holds %u links, %u regions, %" PRIu64 " blocks of memory", i + 1, links, regions,
                          W->coords[i]->host->coord.blocks_count);
    }
}
