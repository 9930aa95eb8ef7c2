#include "coordinator/io/store_rows.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#define PRUNE_EVERY 256u

/* --- rows as columns: each row type is a table of fields, so that writing and reading cannot disagree --- */

#define F_AS(row, kind, member, later)                                                                                           \
    {                                                                                                                            \
#member, kind, offsetof(struct row, member), sizeof(((struct row *)0)->member), later                                    \
    }
#define F(row, kind, member)       F_AS(row, kind, member, false)
#define F_LATER(row, kind, member) F_AS(row, kind, member, true)

static const struct mst_field meta_fields[] = {
    F(mst_meta_row, MST_FIELD_U64, term),          F(mst_meta_row, MST_FIELD_U64, next_fault),
    F(mst_meta_row, MST_FIELD_U64, next_recovery), F(mst_meta_row, MST_FIELD_U64, next_proof),
    F(mst_meta_row, MST_FIELD_U64, epoch_floor),   F_LATER(mst_meta_row, MST_FIELD_U64, decision),
    F_LATER(mst_meta_row, MST_FIELD_BLOB, terms),
};
static const struct mst_field node_fields[] = {
    F(mst_node_row, MST_FIELD_U32, id),
    F(mst_node_row, MST_FIELD_TEXT, name),
    F(mst_node_row, MST_FIELD_U64, instance),
    F(mst_node_row, MST_FIELD_BLOB, host_boot_id),
    F(mst_node_row, MST_FIELD_BOOL, drained),
    F(mst_node_row, MST_FIELD_BOOL, failing),
    F(mst_node_row, MST_FIELD_U64, fenced_instance),
    F(mst_node_row, MST_FIELD_TEXT, text),
};
static const struct mst_field definition_fields[] = {
    F(mst_definition, MST_FIELD_TEXT, name),
    F(mst_definition, MST_FIELD_U32, memory_mib),
    F(mst_definition, MST_FIELD_U32, vcpus),
    F(mst_definition, MST_FIELD_U32, priority),
    {"protect_local", MST_FIELD_U8, offsetof(struct mst_definition, protect), 1, false}, /* named when there was no third level */
    F(mst_definition, MST_FIELD_U8, on_node_fault),
    F(mst_definition, MST_FIELD_U8, on_vm_fault),
    F(mst_definition, MST_FIELD_U32, allowed_count),
    F(mst_definition, MST_FIELD_BLOB, allowed),
    F(mst_definition, MST_FIELD_U32, packed_bytes),
    F(mst_definition, MST_FIELD_BLOB, packed),
    F(mst_definition, MST_FIELD_U32, restarts_max),
    F(mst_definition, MST_FIELD_U32, restarts_window_s),
    F_LATER(mst_definition, MST_FIELD_U8, mirror_apart),
};
static const struct mst_field vm_fields[] = {
    F(mst_vm_row, MST_FIELD_TEXT, name),
    F(mst_vm_row, MST_FIELD_BOOL, wanted),
    F(mst_vm_row, MST_FIELD_U8, phase),
    F(mst_vm_row, MST_FIELD_U32, node_id),
    F(mst_vm_row, MST_FIELD_U64, instance),
    F(mst_vm_row, MST_FIELD_U64, epoch),
    F(mst_vm_row, MST_FIELD_BOOL, fenced),
    F(mst_vm_row, MST_FIELD_U64, proof_id),
    F(mst_vm_row, MST_FIELD_U8, proof_kind),
    {"save_node_id", MST_FIELD_U32, offsetof(struct mst_vm_row, save.node_id), 4, false},
    {"save_instance", MST_FIELD_U64, offsetof(struct mst_vm_row, save.instance), 8, false},
    {"save_epoch", MST_FIELD_U64, offsetof(struct mst_vm_row, save.epoch), 8, false},
    {"save_seq", MST_FIELD_U64, offsetof(struct mst_vm_row, save.seq), 8, false},
    F(mst_vm_row, MST_FIELD_U32, pin_node_id),
    F(mst_vm_row, MST_FIELD_TEXT, text),
    {"save_image", MST_FIELD_BOOL, offsetof(struct mst_vm_row, save.image), 1, true},
    F_LATER(mst_vm_row, MST_FIELD_U64, image_floor),
    F_LATER(mst_vm_row, MST_FIELD_U64, exposed_wall_ms),
};
static const struct mst_field fault_fields[] = {
    F(mst_fault_row, MST_FIELD_U64, id),        F(mst_fault_row, MST_FIELD_U32, kind),
    F(mst_fault_row, MST_FIELD_U32, node_id),   F(mst_fault_row, MST_FIELD_U64, instance),
    F(mst_fault_row, MST_FIELD_TEXT, vm),       F(mst_fault_row, MST_FIELD_U64, epoch),
    F(mst_fault_row, MST_FIELD_TEXT, reporter), F(mst_fault_row, MST_FIELD_TEXT, text),
    F(mst_fault_row, MST_FIELD_U64, wall_ms),   F(mst_fault_row, MST_FIELD_U64, recovery_id),
    F(mst_fault_row, MST_FIELD_TEXT, verdict),
};
static const struct mst_field recovery_fields[] = {
    F(mst_recovery_row, MST_FIELD_U64, id),      F(mst_recovery_row, MST_FIELD_U64, fault_id),
    F(mst_recovery_row, MST_FIELD_U32, node_id), F(mst_recovery_row, MST_FIELD_U64, instance),
    F(mst_recovery_row, MST_FIELD_U32, kind),    F(mst_recovery_row, MST_FIELD_U8, scope),
    F(mst_recovery_row, MST_FIELD_U8, state),    F(mst_recovery_row, MST_FIELD_U64, started_wall_ms),
    F(mst_recovery_row, MST_FIELD_TEXT, proof),
};
static const struct mst_field step_fields[] = {
    F(mst_step_row, MST_FIELD_U64, recovery_id), F(mst_step_row, MST_FIELD_U32, n),         F(mst_step_row, MST_FIELD_U8, state),
    F(mst_step_row, MST_FIELD_U64, wall_ms),     F(mst_step_row, MST_FIELD_U64, offset_us), F(mst_step_row, MST_FIELD_TEXT, text),
};
static const struct mst_field rvm_fields[] = {
    F(mst_rvm_row, MST_FIELD_U64, recovery_id),
    F(mst_rvm_row, MST_FIELD_TEXT, vm),
    F(mst_rvm_row, MST_FIELD_U32, from_node_id),
    F(mst_rvm_row, MST_FIELD_U64, from_instance),
    F(mst_rvm_row, MST_FIELD_U64, epoch_from),
    F(mst_rvm_row, MST_FIELD_U32, to_node_id),
    F(mst_rvm_row, MST_FIELD_U64, epoch_to),
    F(mst_rvm_row, MST_FIELD_U64, proof_id),
    F(mst_rvm_row, MST_FIELD_U64, tried),
    F(mst_rvm_row, MST_FIELD_U32, attempts),
    F(mst_rvm_row, MST_FIELD_U8, how),
    F(mst_rvm_row, MST_FIELD_U8, outcome),
    F(mst_rvm_row, MST_FIELD_U8, hold),
    F(mst_rvm_row, MST_FIELD_BOOL, forced),
    {"method", MST_FIELD_U32, offsetof(struct mst_rvm_row, start.method), 4, false},
    {"bytes_pulled", MST_FIELD_U64, offsetof(struct mst_rvm_row, start.bytes_pulled), 8, false},
    {"pull_us", MST_FIELD_U64, offsetof(struct mst_rvm_row, start.pull_us), 8, false},
    {"verify_us", MST_FIELD_U64, offsetof(struct mst_rvm_row, start.verify_us), 8, false},
    {"load_us", MST_FIELD_U64, offsetof(struct mst_rvm_row, start.load_us), 8, false},
    {"spawn_us", MST_FIELD_U64, offsetof(struct mst_rvm_row, start.spawn_us), 8, false},
    {"save_epoch", MST_FIELD_U64, offsetof(struct mst_rvm_row, start.save_epoch), 8, false},
    {"save_seq", MST_FIELD_U64, offsetof(struct mst_rvm_row, start.save_seq), 8, false},
    F(mst_rvm_row, MST_FIELD_TEXT, text),
};
static const struct mst_field proof_fields[] = {
    F(mst_proof_row, MST_FIELD_U64, id),
    F(mst_proof_row, MST_FIELD_U8, kind),
    F(mst_proof_row, MST_FIELD_U32, node_id),
    F(mst_proof_row, MST_FIELD_U64, instance),
    F(mst_proof_row, MST_FIELD_BLOB, host_boot_id),
    F(mst_proof_row, MST_FIELD_U64, wall_ms),
    F(mst_proof_row, MST_FIELD_TEXT, text),
};
static const struct mst_field mirror_fields[] = {
    F(mst_mirror_row, MST_FIELD_TEXT, vm),      F(mst_mirror_row, MST_FIELD_U32, n),
    F(mst_mirror_row, MST_FIELD_U64, epoch),    F(mst_mirror_row, MST_FIELD_U32, node_id),
    F(mst_mirror_row, MST_FIELD_U64, instance), F(mst_mirror_row, MST_FIELD_U64, log_id),
    F(mst_mirror_row, MST_FIELD_BOOL, counts),  F(mst_mirror_row, MST_FIELD_U64, since_wall_ms),
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define TABLE(kind, name, key, fields)                                                                                           \
    {                                                                                                                            \
        kind, name, key, fields, COUNT(fields)                                                                                   \
    }

const struct mst_table mst_tables[MST_TABLES] = {
    TABLE(MST_ROW_META, "meta", NULL, meta_fields),
    TABLE(MST_ROW_NODE, "nodes", "id", node_fields),
    TABLE(MST_ROW_DEFINITION, "definitions", "name", definition_fields),
    TABLE(MST_ROW_VM, "vms", "name", vm_fields),
    TABLE(MST_ROW_FAULT, "faults", "id", fault_fields),
    TABLE(MST_ROW_RECOVERY, "recoveries", "id", recovery_fields),
    TABLE(MST_ROW_STEP, "recovery_steps", "recovery_id, n", step_fields),
    TABLE(MST_ROW_RVM, "recovery_vms", "recovery_id, vm", rvm_fields),
    TABLE(MST_ROW_PROOF, "proofs", "id", proof_fields),
    TABLE(MST_ROW_MIRROR, "mirrors", "vm, n", mirror_fields),
};
static_assert(COUNT(vm_fields) <= MST_FIELDS_MAX && COUNT(rvm_fields) <= MST_FIELDS_MAX &&
                  COUNT(definition_fields) <= MST_FIELDS_MAX,
              "columns");

const struct mst_table *mst_table_of(enum mst_row_kind kind)
{
    for (unsigned i = 0; i < MST_TABLES; i++) {
        if (mst_tables[i].kind == kind)
            return &mst_tables[i];
    }
    return NULL;
}

const void *mst_row_data(const struct mst_row *row)
{
    return row->kind == MST_ROW_DEFINITION ? (const void *)row->definition : (const void *)&row->meta;
}

/* Arrays are kept as far as they are filled. */
size_t mst_field_bytes(const struct mst_field *field, const void *data)
{
    const struct mst_definition *def = data;

    if (field->offset == offsetof(struct mst_definition, packed) && field->bytes == sizeof(def->packed))
        return def->packed_bytes <= sizeof(def->packed) ? def->packed_bytes : 0;
    return field->bytes;
}

int mst_field_put_number(const struct mst_field *field, void *data, int64_t number)
{
    uint8_t *p = (uint8_t *)data + field->offset;

    if (field->type == MST_FIELD_U64) {
        memcpy(p, &number, sizeof(number));
        return 0;
    }
    if (number < 0 || (field->type == MST_FIELD_BOOL && number > 1) || (field->type == MST_FIELD_U8 && number > UINT8_MAX) ||
        number > UINT32_MAX)
        return -EBADMSG;
    if (field->type == MST_FIELD_U32) {
        uint32_t u32 = (uint32_t)number;

        memcpy(p, &u32, sizeof(u32));
    } else {
        *p = (uint8_t)number;
    }
    return 0;
}

int64_t mst_field_number(const struct mst_field *field, const void *data)
{
    const uint8_t *p = (const uint8_t *)data + field->offset;
    uint64_t u64;
    uint32_t u32;

    switch (field->type) {
    case MST_FIELD_U64:
        memcpy(&u64, p, sizeof(u64));
        return (int64_t)u64; /* keeps the bits */
    case MST_FIELD_U32:
        memcpy(&u32, p, sizeof(u32));
        return u32;
    default:
        return *p;
    }
}

int mst_field_put_bytes(const struct mst_field *field, void *data, const void *from, size_t bytes)
{
    if (bytes > field->bytes - (field->type == MST_FIELD_TEXT ? 1 : 0))
        return -EBADMSG;
    /* The packed definition is as long as the column before it says; other blobs have one length. */
    if (field->type == MST_FIELD_BLOB && bytes != mst_field_bytes(field, data))
        return -EBADMSG;
    if (bytes > 0)
        memcpy((uint8_t *)data + field->offset, from, bytes);
    return 0;
}

int mst_row_check(const struct mst_row *row)
{
    switch (row->kind) {
    case MST_ROW_DEFINITION:
        return row->definition->allowed_count <= MST_NODES_MAX && row->definition->packed_bytes <= MST_DEFINITION_BYTES &&
                       row->definition->protect < MST_PROTECTS && row->definition->mirror_apart < MST_MIRROR_APARTS
                   ? 0
                   : -EBADMSG;
    case MST_ROW_VM:
        return row->vm.phase <= MST_VM_STOPPING ? 0 : -EBADMSG;
    case MST_ROW_RECOVERY:
        return row->recovery.state < MST_REC_STATES && row->recovery.scope <= MST_SCOPE_STOP ? 0 : -EBADMSG;
    case MST_ROW_STEP:
        return row->step.n < MST_RECOVERY_STEPS && row->step.state < MST_REC_STATES ? 0 : -EBADMSG;
    case MST_ROW_MIRROR:
        return row->mirror.n < MST_MIRRORS_MAX ? 0 : -EBADMSG;
    case MST_ROW_RVM:
        return row->rvm.outcome <= MST_OUT_RUNS_ON ? 0 : -EBADMSG;
    default:
        return 0;
    }
}

bool mst_txn_prunes(const struct mst_txn *txn)
{
    for (uint32_t i = 0; i < txn->count; i++) {
        const struct mst_row *row = &txn->rows[i];

        if ((row->kind == MST_ROW_FAULT && row->fault.id % PRUNE_EVERY == 0) ||
            (row->kind == MST_ROW_RECOVERY && row->recovery.id % PRUNE_EVERY == 0) ||
            (row->kind == MST_ROW_PROOF && row->proof.id % PRUNE_EVERY == 0))
            return true;
    }
    return false;
}
