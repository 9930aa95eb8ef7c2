#include "tests/sim/oracle.h"

#include "node/keeper/images.h"
#include "node/keeper/mirrors.h"
#include "shm/save.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Mirrors: what their sources take for acknowledged is there (I4), none that is stale is resumed from (I5), nothing torn gets into an image (I6), and only
 * who was granted its log changes it, while it is granted (I14). Looked at after every event of a keeper, at every WRITE into a log, order and row. */

#define LOGS_MAX   128u
#define KEPT       64u /* checkpoints of a VM whose content is remembered */
#define LIVES_MAX  64u
#define IMAGES_MAX (16u << 10)

struct olog { /* one mirror: a log, from its grant on */
    uint64_t log_id, epoch;
    unsigned vm, source, mirror; /* hosts */
    uint32_t mirror_boot;
    uint64_t source_instance, mirror_instance;
    uint64_t taken;       /* position up to which its mirror has taken records */
    uint64_t acked;       /* newest checkpoint that its source takes for safe there */
    bool counts, counted; /* by the row; ever */
    bool rotted;          /* a fault flipped its bits */
    bool proved_dead;     /* what is left of its node's memory nobody may count on */
    /* its image, as it was looked at last */
    bool closed, verified;
    struct sim_moment moment; /* verified: what it holds */
    uint64_t seq;
};

struct okept {
    uint64_t epoch, seq;
    struct sim_moment moment;
};

static struct {
    struct olog logs[LOGS_MAX];
    unsigned logs_count;
    struct mst_mirror_row rows[SIM_VMS_MAX][MST_MIRRORS_MAX]; /* of the newest store */
    uint64_t counted_epoch[SIM_VMS_MAX];                      /* newest in which anybody ever counted */
    uint64_t outlived[SIM_VMS_MAX];                           /* images of earlier epochs are, by decision */
    struct okept kept[SIM_VMS_MAX][KEPT];
    unsigned kept_count[SIM_VMS_MAX];
    struct {
        uint64_t life, instance;
    } lives[LIVES_MAX];
    unsigned lives_count;
} M;

int product_pub_read(uint8_t (*slots)[MST_PUB_SLOT_BYTES], struct mst_pub_head *ret_head, void *ret_body, uint32_t body_bytes);

void oracle_mirror_begin(void)
{
    memset(&M, 0, sizeof(M));
}

void oracle_mirror_keeper_up(const struct sim_host *host, uint64_t instance)
{
    M.lives[M.lives_count % LIVES_MAX].life = host->keeper.life;
    M.lives[M.lives_count++ % LIVES_MAX].instance = instance;
}

static uint64_t instance_of(uint64_t life)
{
    for (unsigned i = 0; i < LIVES_MAX; i++) {
        if (M.lives[i].life == life)
            return M.lives[i].instance;
    }
    return 0;
}

/* --- what there is --- */

static struct olog *log_find(uint64_t log_id)
{
    for (unsigned i = M.logs_count; i > 0 && i + LOGS_MAX > M.logs_count; i--) {
        if (M.logs[(i - 1) % LOGS_MAX].log_id == log_id)
            return &M.logs[(i - 1) % LOGS_MAX];
    }
    return NULL;
}

/* Of an image that a later keeper took over: it has no log any more. */
static struct olog *log_of_image(const struct sim_host *host, const struct mst_held_image *held)
{
    unsigned vm = sim_vm_index(held->vm->name);

    if (held->grant.log_id != 0)
        return log_find(held->grant.log_id);
    for (unsigned i = M.logs_count; i > 0 && i + LOGS_MAX > M.logs_count; i--) {
        struct olog *log = &M.logs[(i - 1) % LOGS_MAX];

        if (log->vm == vm && log->mirror == host->index && log->epoch == held->vm->epoch && log->mirror_boot == host->boot)
            return log;
    }
    return NULL;
}

static const struct okept *kept_find(unsigned vm, uint64_t epoch, uint64_t seq)
{
    for (unsigned i = 0; i < KEPT; i++) {
        if (M.kept[vm][i].epoch == epoch && M.kept[vm][i].seq == seq)
            return &M.kept[vm][i];
    }
    return NULL;
}

void oracle_mirror_checkpoint(const char *vm, uint64_t epoch, uint64_t seq, const struct sim_moment *moment)
{
    unsigned index = sim_vm_index(vm);

    if (index < SIM_VMS_MAX)
        M.kept[index][M.kept_count[index]++ % KEPT] = (struct okept){.epoch = epoch, .seq = seq, .moment = *moment};
}

static bool spoilt(const struct olog *log)
{
    return log->rotted || oracle_is_spoilt(W->vms[log->vm].name);
}

/* Its bytes can still be had, as far as the cluster may know. */
static bool lives(const struct olog *log)
{
    const struct sim_host *host = &W->hosts[log->mirror];

    return host->powered && host->boot == log->mirror_boot && !log->proved_dead && !spoilt(log);
}

static const struct mst_vm *image_slot(const struct sim_host *host, const struct olog *log)
{
    for (unsigned i = 0; host->k && i < MST_VMS_PER_NODE; i++) {
        const struct mst_vm *vm = &host->k->vms[i];

        if (vm->used && !vm->drop_pending && vm->image && vm->epoch == log->epoch && strcmp(vm->name, W->vms[log->vm].name) == 0)
            return vm;
    }
    return NULL;
}

/* --- an image's bytes --- */

static uint64_t record_of(const struct mst_vm *vm, struct mst_save_record *ret)
{
    struct mst_pub_head head;

    if (product_pub_read(vm->keeper->status->vms[vm->index].save, &head, ret, sizeof(*ret)) < 0 || head.epoch != vm->epoch ||
        ret->source != MST_SAVE_SHADOW)
        return 0;
    return ret->seq;
}

/* RAM as the record says it is: the shadow with the delta over it. */
static bool image_ram(const struct mst_vm *vm, const struct mst_save_record *record, uint8_t ram[IMAGES_MAX])
{
    const struct mst_areas *areas = &vm->areas;
    const uint8_t *delta = areas->area[MST_AREA_DELTA].addr;
    struct mst_delta_layout layout;

    if (record->ram_bytes > IMAGES_MAX || record->ram_bytes != areas->area[MST_AREA_SHADOW].bytes)
        return false;
    memcpy(ram, areas->area[MST_AREA_SHADOW].addr, record->ram_bytes);
    if (record->delta_pages == 0 || mst_delta_layout(areas->delta_capacity, &layout) < 0)
        return record->delta_pages == 0;
    for (uint32_t i = 0; i < record->delta_pages && i < areas->delta_capacity; i++) {
        const struct mst_delta_entry *entry = (const struct mst_delta_entry *)(const void *)(delta + layout.table_off) + i;

        if ((uint64_t)entry->page * MST_PAGE_BYTES < record->ram_bytes)
            memcpy(ram + (size_t)entry->page * MST_PAGE_BYTES, delta + layout.data_off + (size_t)i * MST_PAGE_BYTES,
                   MST_PAGE_BYTES);
    }
    return true;
}

/* The checkpoint that the image holds must be one that its source took, and all of it. */
static void image_look(const struct sim_host *host, const struct mst_vm *vm, struct olog *log, const char *when)
{
    static uint8_t ram[IMAGES_MAX];
    struct sim_moment memory, device;
    struct mst_save_record record;
    struct mst_save_layout layout;
    const struct okept *kept;

    log->seq = record_of(vm, &record);
    if (log->seq == 0 || spoilt(log) || !image_ram(vm, &record, ram))
        return;
    if (!sim_ram_read(ram, record.ram_bytes, &memory)) {
        oracle_breach("I6", "%s: the image of %s checkpoint %" PRIu64 "/%" PRIu64 " is not of one moment when it is %s",
                      host->name, vm->name, vm->epoch, log->seq, when);
        return;
    }
    if (mst_save_layout(record.ram_bytes, &layout) < 0)
        return;
    memcpy(&device, vm->areas.area[MST_AREA_SAVE].addr + layout.device_off[record.device_slot], sizeof(device));
    kept = kept_find(log->vm, log->epoch, log->seq);
    if (memcmp(&device, &memory, sizeof(device)) != 0 || (kept && memcmp(&kept->moment, &memory, sizeof(memory)) != 0))
        oracle_breach("I6",
                      "%s: the image of %s checkpoint %" PRIu64 "/%" PRIu64 " has memory of tick %" PRIu64 ", devices of %" PRIu64
                      ", the guest was at %" PRIu64 ", when it is %s",
                      host->name, vm->name, vm->epoch, log->seq, memory.tick, device.tick, kept ? kept->moment.tick : 0, when);
    log->moment = memory;
}

/* --- after every event of a keeper --- */

static struct olog *log_of_mirror(const struct sim_host *host, const struct mst_mirror *m)
{
    struct olog *log = log_find(m->grant.log_id);
    unsigned mirror = m->node_id - 1, vm = sim_vm_index(m->grant.vm);

    if (log || mirror >= W->conf.nodes || vm >= SIM_VMS_MAX)
        return log;
    log = &M.logs[M.logs_count++ % LOGS_MAX];
    *log = (struct olog){.log_id = m->grant.log_id,
                         .epoch = m->grant.epoch,
                         .vm = vm,
                         .source = host->index,
                         .mirror = mirror,
                         .mirror_boot = W->hosts[mirror].boot,
                         .source_instance = m->grant.source_instance,
                         .mirror_instance = m->grant.mirror_instance};
    return log;
}

static void acknowledged(const struct sim_host *host, struct olog *log, uint64_t seq)
{
    const struct sim_host *mirror = &W->hosts[log->mirror];
    const struct mst_vm *vm = image_slot(mirror, log);

    oracle_counts.acks++;
    log->acked = seq;
    if (!vm || mirror->k->instance != log->mirror_instance)
        return; /* lost, or left, while the acknowledgement was on its way */
    image_look(mirror, vm, log, "acknowledged");
    if (log->seq < seq && !spoilt(log))
        oracle_breach("I4", "%s takes checkpoint %" PRIu64 "/%" PRIu64 " of %s for safe on %s, which holds %" PRIu64, host->name,
                      log->epoch, seq, W->vms[log->vm].name, mirror->name, log->seq);
}

static void source_look(const struct sim_host *host, const struct mst_mirror *m)
{
    struct olog *log = log_of_mirror(host, m);

    if (!log)
        return;
    if (m->acked > log->acked)
        acknowledged(host, log, m->acked);
    if (m->phase == MAINSTAY__MIRROR_PHASE__MIRROR_FAILED && strstr(m->why.text, "acknowledgement of") && !spoilt(log))
        oracle_breach("I4", "%s and the mirror of %s on %s disagree: %s", host->name, m->grant.vm, m->node, m->why.text);
    if (m->phase == MAINSTAY__MIRROR_PHASE__MIRROR_SURE && !log->counted)
        oracle_breach("I3", "%s is told that the mirror of %s on %s counts, and no store says so", host->name, m->grant.vm,
                      m->node);
}

static void closed_look(const struct sim_host *host, const struct mst_held_image *held, struct olog *log)
{
    if (!held->revoked || log->closed)
        return;
    log->closed = true;
    if (held->log && sim_regions_over(held->log, mst_mlog_bytes(held->grant.ring_bytes)) > 0)
        oracle_breach("I14", "%s: the log of %s epoch %" PRIu64 " is closed, and can still be written", host->name,
                      held->vm->name, held->vm->epoch);
}

static void held_look(const struct sim_host *host, const struct mst_held_image *held)
{
    struct olog *log = log_of_image(host, held);
    bool verified = mst_images_readable(held->vm);
    struct sim_moment before;

    if (!log)
        return;
    closed_look(host, held, log);
    if (verified && !held->revoked)
        oracle_breach("I14", "%s: the image of %s is %s while its source may write it", host->name, held->vm->name,
                      mst_image_state_name(held->state));
    if (verified) {
        before = log->moment;
        image_look(host, held->vm, log, log->verified ? "verified, some time later" : "verified");
        if (log->verified && memcmp(&before, &log->moment, sizeof(before)) != 0)
            oracle_breach("I14", "%s: the image of %s changes after it was verified", host->name, held->vm->name);
        if (!log->verified)
            oracle_counts.images++;
        if (!log->verified && log->seq < log->acked && !spoilt(log))
            oracle_breach("I4", "%s: the image of %s is verified with checkpoint %" PRIu64 ", and %" PRIu64 " was acknowledged",
                          host->name, held->vm->name, log->seq, log->acked);
    }
    log->verified = verified;
    if ((held->err == -EBADMSG || held->err == -EUCLEAN || held->err == -ENOSPC || held->err == -EPROTO ||
         held->err == -ETIMEDOUT) &&
        !spoilt(log))
        oracle_breach("I6", "%s: the log of %s epoch %" PRIu64 " does not become what its source wrote: %s", host->name,
                      held->vm->name, held->vm->epoch, strerror(-held->err));
}

void oracle_mirror_sources(const struct sim_host *host)
{
    for (const struct mst_mirror *m = host->k && host->k->mirrors ? host->k->mirrors->first : NULL; m; m = m->next) {
        if (m->vm)
            source_look(host, m);
    }
}

static void after_event(struct sim_proc *proc)
{
    const struct sim_host *host = &W->hosts[proc->host];

    if (proc != &host->keeper || !proc->alive || !host->k)
        return;
    oracle_mirror_sources(host);
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++) {
        const struct mst_vm *vm = &host->k->vms[i];

        if (vm->image && vm->used && !vm->drop_pending)
            held_look(host, vm->image);
    }
}

/* --- output --- */

/* What its source goes by: within an event that is newer than what was looked at after the last one, and is looked at after this one. */
static uint64_t acked_now(const struct olog *log)
{
    const struct mst_keeper *k = W->hosts[log->source].k;

    for (const struct mst_mirror *m = k && k->mirrors ? k->mirrors->first : NULL; m; m = m->next) {
        if (m->grant.log_id == log->log_id)
            return m->acked;
    }
    return log->acked;
}

/* Whether it has the checkpoint after all that anybody can have seen. -1: that checkpoint was taken too long ago to know. */
static int covers(const struct olog *log, uint64_t tick)
{
    const struct okept *kept = kept_find(log->vm, log->epoch, acked_now(log));

    return kept ? kept->moment.tick >= tick : -1;
}

void oracle_left(const struct sim_task *task, uint64_t tick)
{
    if (sim_output_held(task))
        oracle_counts.left++;
    for (unsigned i = 0; i < LOGS_MAX; i++) {
        const struct olog *log = &M.logs[i];

        if (log->log_id != 0 && log->counts && log->vm == task->vm_index && log->epoch == task->epoch && covers(log, tick) == 0)
            oracle_breach("I4",
                          "%s: output of %s of tick %" PRIu64 " leaves, and %s, which counts, has acknowledged %" PRIu64
                          "/%" PRIu64 " only",
                          W->hosts[task->host].name, task->vm, tick, W->hosts[log->mirror].name, log->epoch, acked_now(log));
    }
}

/* It begins to count. */
static void counts_look(const struct olog *log)
{
    struct sim_task *task = sim_task_of_vm(&W->hosts[log->source], W->vms[log->vm].name, log->epoch);

    if (task && covers(log, sim_output_left(task)) == 0)
        oracle_breach("I4",
                      "the mirror of %s on %s counts with checkpoint %" PRIu64 "/%" PRIu64 ", and output of tick %" PRIu64
                      " has left, which is newer",
                      task->vm, W->hosts[log->mirror].name, log->epoch, log->acked, sim_output_left(task));
}

void oracle_taken(const struct mst_mlog_ack *ack, bool taken)
{
    struct olog *log = log_find(ack->log_id);

    if (log && taken)
        log->taken = ack->consumed;
    else if (log && ack->consumed > log->taken)
        oracle_breach("I6", "%s gives room in the log of %s back, and has not taken what is there", W->hosts[log->mirror].name,
                      W->vms[log->vm].name);
}

/* --- WRITEs --- */

void oracle_write(const struct sim_host *to, const uint8_t *at, unsigned from, uint64_t life)
{
    for (unsigned i = 0; to->k && i < MST_VMS_PER_NODE; i++) {
        const struct mst_held_image *held = to->k->vms[i].used ? to->k->vms[i].image : NULL;

        if (!held || !held->log || at < held->log || at >= held->log + mst_mlog_bytes(held->grant.ring_bytes))
            continue;
        if (held->revoked || (held->state != MST_IMAGE_SEEDING && held->state != MST_IMAGE_MIRRORING))
            oracle_breach("I14", "%s: the log of %s epoch %" PRIu64 " is written by %s, and its image is %s", to->name,
                          to->k->vms[i].name, to->k->vms[i].epoch, W->hosts[from].name, mst_image_state_name(held->state));
        if (instance_of(life) != held->grant.source_instance)
            oracle_breach("I14", "%s: the log of %s epoch %" PRIu64 " is written by %s, to whom it was not granted", to->name,
                          to->k->vms[i].name, to->k->vms[i].epoch, W->hosts[from].name);
        return;
    }
}

void oracle_posted(const struct sim_host *host, const struct mst_link *link)
{
    for (const struct mst_mirror *m = host->k && host->k->mirrors ? host->k->mirrors->first : NULL; m; m = m->next) {
        const struct mst_vm_row *row = m->link == link ? oracle_vm_row(m->grant.vm) : NULL;

        if (row && (row->epoch > m->grant.epoch || (row->epoch == m->grant.epoch && row->fenced)))
            oracle_breach("I14", "%s writes into the mirror of %s epoch %" PRIu64 " on %s, which is proved stopped", host->name,
                          m->grant.vm, m->grant.epoch, m->node);
    }
}

/* --- rows and orders --- */

static const struct mst_mirror_row *row_of(const struct sim_store *store, const char *vm, uint32_t node_id, uint64_t epoch)
{
    const struct sim_table *table = &store->tables[MST_ROW_MIRROR];

    for (unsigned i = 0; i < table->count; i++) {
        const struct mst_mirror_row *row = &table->rows[i].mirror;

        if (row->node_id == node_id && row->epoch == epoch && strcmp(row->vm, vm) == 0)
            return row;
    }
    return NULL;
}

void oracle_mirror_commit(const struct sim_coord *coord, const struct mst_mirror_row *row)
{
    unsigned vm = sim_vm_index(row->vm);
    struct olog *log = log_find(row->log_id), *old;

    if (vm >= SIM_VMS_MAX || row->n >= MST_MIRRORS_MAX)
        return;
    if (row->counts && (!log || log->acked == 0))
        oracle_breach("I4", "the mirror of %s on node %u counts, and its source has no checkpoint acknowledged by it", row->vm,
                      row->node_id);
    if (coord->on_old_copy)
        return;
    old = log_find(M.rows[vm][row->n].log_id);
    if (old)
        old->counts = false;
    M.rows[vm][row->n] = *row;
    if (log)
        log->counts = row->counts;
    if (row->counts && log)
        log->counted = true;
    if (row->counts && row->epoch > M.counted_epoch[vm])
        M.counted_epoch[vm] = row->epoch;
    if (row->counts)
        oracle_counts.joins++;
    if (row->counts && log)
        counts_look(log);
    if (!K.after)
        K.after = after_event;
    sim_say("row: the mirror of %s epoch %" PRIu64 " on node %u %s", row->vm, row->epoch, row->node_id,
            row->counts ? "counts" : "does not count");
}

void oracle_mirror_vm(const struct sim_coord *coord, const struct mst_vm_row *before, const struct mst_vm_row *row)
{
    unsigned vm = sim_vm_index(row->name);

    /* Of the grant that a plan gives it is decided in the same breath, and that is what the checkers judge. */
    if (vm < SIM_VMS_MAX && !coord->on_old_copy && before && before->epoch == row->epoch &&
        row->image_floor > before->image_floor)
        M.outlived[vm] = row->image_floor;
}

void oracle_mirror_undefined(const char *name)
{
    unsigned vm = sim_vm_index(name);

    if (vm >= SIM_VMS_MAX)
        return;
    for (unsigned n = 0; n < MST_MIRRORS_MAX; n++) {
        struct olog *log = log_find(M.rows[vm][n].log_id);

        if (log)
            log->counts = false;
    }
    memset(M.rows[vm], 0, sizeof(M.rows[vm]));
    M.counted_epoch[vm] = 0;
}

void oracle_mirror_proof(const struct mst_proof_row *proof)
{
    for (unsigned i = 0; proof->kind >= MST_PROOF_POWER && i < LOGS_MAX; i++) {
        if (M.logs[i].log_id != 0 && M.logs[i].mirror == proof->node_id - 1)
            M.logs[i].proved_dead = true;
    }
}

/* again: a successor asks what became of an order. Whatever the image is by now, a pull looks for itself. */
static void start_look(const struct sim_coord *coord, const struct mst_order *order, bool again)
{
    const struct mst_save_ref *from = &order->source;
    const struct mst_mirror_row *row = row_of(coord->store, order->vm, from->node_id, from->epoch);
    const struct sim_table *table = &coord->store->tables[MST_ROW_MIRROR];
    const struct sim_host *host = &W->hosts[from->node_id - 1];
    unsigned vm = sim_vm_index(order->vm);

    if (!row || !row->counts)
        oracle_breach("I5",
                      "%s epoch %" PRIu64 " is to be resumed from the image %" PRIu64 "/%" PRIu64 " on %s, which does not count",
                      order->vm, order->epoch, from->epoch, from->seq, host->name);
    for (unsigned i = 0; i < table->count; i++) {
        const struct mst_mirror_row *other = &table->rows[i].mirror;

        if (strcmp(other->vm, order->vm) == 0 && other->epoch > from->epoch)
            oracle_breach("I5",
                          "%s epoch %" PRIu64 " is to be resumed from an image of epoch %" PRIu64
                          ", and somebody counted under %" PRIu64,
                          order->vm, order->epoch, from->epoch, other->epoch);
    }
    if (vm < SIM_VMS_MAX && from->epoch < M.outlived[vm])
        oracle_breach("I5", "%s epoch %" PRIu64 " is to be resumed from an image of epoch %" PRIu64 ", which is outlived",
                      order->vm, order->epoch, from->epoch);
    for (unsigned i = 0; i < LOGS_MAX && !again && host->k && host->k->instance == from->instance; i++) {
        const struct olog *log = &M.logs[i];
        const struct mst_vm *slot = log->log_id != 0 && log->vm == vm && log->mirror == host->index && log->epoch == from->epoch
                                        ? image_slot(host, log)
                                        : NULL;

        if (slot && !mst_images_readable(slot))
            oracle_breach("I5", "%s epoch %" PRIu64 " is to be resumed from the image on %s, which nobody has verified",
                          order->vm, order->epoch, host->name);
    }
}

static void forget_look(const struct sim_coord *coord, const struct mst_order *order)
{
    const struct mst_vm_row *vm = sim_store_vm(coord->store, order->vm);
    const struct sim_table *table = &coord->store->tables[MST_ROW_MIRROR];

    for (unsigned i = 0; vm && vm->wanted && i < table->count; i++) {
        const struct mst_mirror_row *row = &table->rows[i].mirror;
        unsigned index = sim_vm_index(row->vm);

        if (row->counts && row->node_id == order->node + 1 && row->epoch <= order->epoch && row->epoch >= vm->image_floor &&
            index < SIM_VMS_MAX && row->epoch == M.counted_epoch[index] && strcmp(row->vm, order->vm) == 0 &&
            log_find(row->log_id) && image_slot(&W->hosts[order->node], log_find(row->log_id)))
            oracle_breach("I4", "the image of %s epoch %" PRIu64 " on %s is ordered to be forgotten, and it counts", order->vm,
                          row->epoch, W->hosts[order->node].name);
    }
}

/* I12: where checkpoints are kept. A mirror that is asked to make an image, for the VM as it is granted in the store. */
static void place_look(const struct sim_coord *coord, const struct mst_order *order)
{
    const struct mst_vm_row *row = sim_store_vm(coord->store, order->vm);
    const struct mst_definition *def = &W->vms[sim_vm_index(order->vm)].def;
    const struct sim_host *to = &W->hosts[order->node], *home;
    bool allowed = def->allowed_count == 0;

    if (!row || row->node_id == 0 || row->epoch != order->epoch)
        return;
    home = &W->hosts[row->node_id - 1];
    for (uint32_t i = 0; i < def->allowed_count; i++)
        allowed = allowed || def->allowed[i] == to->index + 1;
    if (to == home)
        oracle_breach("I12", "the checkpoints of %s are to be kept on %s, where it runs", order->vm, to->name);
    else if (!allowed)
        oracle_breach("I12", "the checkpoints of %s are to be kept on %s, which is not among its allowed nodes", order->vm,
                      to->name);
    else if (def->mirror_apart == MST_MIRROR_APART_RACK && (to->rack == 0 || to->rack == home->rack))
        oracle_breach("I12", "the checkpoints of %s are to be kept on %s, in the rack of %s", order->vm, to->name, home->name);
}

void oracle_mirror_order(const struct sim_coord *coord, const struct mst_order *order, bool again)
{
    const struct sim_table *table = &coord->store->tables[MST_ROW_MIRROR];
    bool counts = false;

    if (coord->on_old_copy)
        return;
    for (unsigned i = 0; i < table->count; i++)
        counts = counts || (table->rows[i].mirror.counts && table->rows[i].mirror.log_id == order->log_id &&
                            table->rows[i].mirror.epoch == order->epoch && strcmp(table->rows[i].mirror.vm, order->vm) == 0);
    if (order->type == MST_ORDER_MIRROR && !again)
        place_look(coord, order);
    if (order->type == MST_ORDER_MIRROR_DROP && counts)
        oracle_breach("I4", "%s is told to leave out a mirror of %s epoch %" PRIu64 " that counts", W->hosts[order->node].name,
                      order->vm, order->epoch);
    else if (order->type == MST_ORDER_MIRROR_SURE && !counts)
        oracle_breach("I3", "%s is told that a mirror of %s counts before that is durable", W->hosts[order->node].name,
                      order->vm);
    else if (order->type == MST_ORDER_MIRROR && !K.after)
        K.after = after_event;
    else if (order->type == MST_ORDER_START && order->source.image && order->source.node_id != 0)
        start_look(coord, order, again);
    else if (order->type == MST_ORDER_FORGET)
        forget_look(coord, order);
}

/* --- what a VM goes on from --- */

bool oracle_mirror_lost(const char *name, uint64_t since_epoch, uint64_t load_epoch, uint64_t load_seq, char *text, size_t size)
{
    unsigned vm = sim_vm_index(name);

    for (unsigned i = 0; i < LOGS_MAX; i++) {
        const struct olog *log = &M.logs[i];

        if (log->log_id == 0 || log->vm != vm || !log->counts || log->epoch != M.counted_epoch[vm] ||
            log->epoch < M.outlived[vm] || log->epoch < since_epoch || !lives(log))
            continue;
        if (load_epoch > log->epoch || (load_epoch == log->epoch && load_seq >= log->acked))
            continue;
        snprintf(text, size, "checkpoint %" PRIu64 "/%" PRIu64 " was acknowledged and lies on %s, which counts", log->epoch,
                 log->acked, W->hosts[log->mirror].name);
        return true;
    }
    return false;
}

bool oracle_image_rots(const struct sim_host *host, const char *name, uint64_t epoch)
{
    unsigned vm = sim_vm_index(name);
    bool image = false;

    for (unsigned i = 0; i < LOGS_MAX; i++) {
        struct olog *log = &M.logs[i];

        if (log->log_id != 0 && log->vm == vm && log->mirror == host->index && log->epoch == epoch &&
            log->mirror_boot == host->boot) {
            log->rotted = true;
            image = true;
        }
    }
    return image;
}

int oracle_mirror_of(const char *name)
{
    unsigned vm = sim_vm_index(name);

    for (unsigned n = 0; vm < SIM_VMS_MAX && n < MST_MIRRORS_MAX; n++) {
        if (M.rows[vm][n].counts && M.rows[vm][n].epoch == M.counted_epoch[vm])
            return (int)M.rows[vm][n].node_id - 1;
    }
    return -1;
}
