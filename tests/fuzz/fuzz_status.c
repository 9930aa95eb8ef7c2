#include "fuzz.h"

#include "base/text.h"
#include "coordinator/io/slots.h"
#include "shm/publish.h"
#include "shm/save.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The status area of a node as a reader gets it: a whole one, changed by the input. Most changes are to what a record says, and its sum is made
 * right afterwards, as a sum keeps nobody out who can write; others are to bytes as they lie, as a torn read has them. */

enum { RAW, SUPER, BEAT, NODE, INFO, SAVE, FAULT, SHORT, LATER, OPS };

#define VM "web01"

static struct mst_status_area whole, first, again;

static void whole_make(void)
{
    static const uint8_t boot_id[16] = {1, 2, 3};
    struct mst_beat_line beat = {.keeper_beat = 9, .agent_beat = 8, .generation = 3, .instance = 7, .agent_state = 1, .vms = 2};
    struct mst_node_status node = {.node_id = 1, .vcpus = 8, .vms = 2, .memory_bytes = 1u << 30};
    struct mst_fault_entry fault = {.fault_id = 4, .kind = 2, .vm = VM, .text = "QEMU ended"};
    struct mst_save_layout save;
    struct mst_delta_layout delta;

    mst_status_init(&whole, "lab", "n1", 1, 7, boot_id, 1000);
    mst_beat_write(&whole.beat, &beat);
    mst_pub_write(whole.node, 0, 7, &node, sizeof(node));
    for (unsigned i = 0; i < 3; i++)
        mst_fault_log_append(&whole, &fault);
    FUZZ_CHECK(mst_save_layout(4u << 20, &save) == 0 && mst_delta_layout(mst_delta_capacity(4u << 20), &delta) == 0);
    for (unsigned i = 0; i < 2; i++) {
        struct mst_vm_slot slot = {.vm = VM,
                                   .run_state = MST_RUN_RUNNING,
                                   .qemu_pid = 5,
                                   .ram_bytes = 4u << 20,
                                   .save_bytes = save.bytes,
                                   .shadow_bytes = 4u << 20,
                                   .delta_bytes = delta.bytes};
        struct mst_save_record record = {.seq = 3,
                                         .source = MST_SAVE_SHADOW,
                                         .device_bytes = 77,
                                         .page_bytes = MST_PAGE_BYTES,
                                         .ram_bytes = 4u << 20,
                                         .delta_pages = 2};

        mst_pub_write(whole.vms[i].info, 4 + i, 7, &slot, sizeof(slot));
        mst_pub_write(whole.vms[i].save, 4 + i, 7, &record, sizeof(record));
    }
}

/* --- changes --- */

/* Puts piece over body at offset, as far as it fits. */
static void patch(void *body, size_t body_bytes, size_t offset, const uint8_t *piece, size_t len)
{
    offset %= body_bytes;
    if (len > body_bytes - offset)
        len = body_bytes - offset;
    memcpy((uint8_t *)body + offset, piece, len);
}

static void republish(uint8_t slots[2][MST_PUB_SLOT_BYTES], size_t offset, const uint8_t *piece, size_t len)
{
    _Alignas(8) uint8_t body[MST_PUB_BODY_MAX] = {0};
    struct mst_pub_head head = {.epoch = 1, .instance = 7};

    (void)mst_pub_read(slots, &head, body, sizeof(body));
    patch(body, sizeof(body), offset, piece, len);
    mst_pub_write(slots, head.epoch + (offset >> 15), head.instance, body, sizeof(body));
}

static void change(struct mst_status_area *area, unsigned op, unsigned index, uint32_t offset, const uint8_t *piece, size_t len)
{
    struct mst_vm_entry *vm = &area->vms[index % MST_VMS_PER_NODE];
    struct mst_fault_entry *fault = &area->faults[index % MST_FAULT_LOG_ENTRIES];
    struct mst_beat_line beat;

    switch (op) {
    case RAW:
        patch(area, sizeof(*area), offset, piece, len);
        break;
    case SUPER:
        patch(&area->super, sizeof(area->super), offset, piece, len);
        area->super.crc32c = mst_crc32c(&area->super, offsetof(struct mst_superblock, crc32c));
        break;
    case BEAT:
        beat = area->beat;
        patch(&beat, sizeof(beat), offset, piece, len);
        mst_beat_write(&area->beat, &beat);
        break;
    case NODE:
        republish(area->node, offset, piece, len);
        break;
    case INFO:
        republish(vm->info, offset, piece, len);
        break;
    case SAVE:
        republish(vm->save, offset, piece, len);
        break;
    case FAULT:
        patch(fault, sizeof(*fault), offset, piece, len);
        fault->crc32c = mst_crc32c(fault, offsetof(struct mst_fault_entry, crc32c));
        break;
    default: /* a record of another length */
        if (len > 0)
            mst_pub_write(index & 1 ? vm->info : vm->save, offset, 7, piece,
                          (uint32_t)(len < MST_PUB_BODY_MAX ? len : MST_PUB_BODY_MAX));
    }
}

/* --- readers --- */

static void read_fixed(void)
{
    static struct mst_fault_entry out[MST_FAULT_LOG_ENTRIES];
    struct mst_why why = {""};
    unsigned max = (unsigned)(first.beat.generation % (MST_FAULT_LOG_ENTRIES + 1)), count;
    int r = mst_superblock_check(&first.super, &why);

    FUZZ_CHECK(r == 0 || (why.text[0] && (r == -EBADMSG || r == -EPROTONOSUPPORT)));
    if (r == 0)
        FUZZ_CHECK(memchr(first.super.node, '\0', MST_NAME_BYTES) && first.super.node_id >= 1 &&
                   first.super.node_id <= MST_NODE_ID_MAX);
    r = mst_beat_check(&first.beat);
    FUZZ_CHECK(r == 0 || r == -EBADMSG);
    count = mst_fault_log_list(first.faults, out, max);
    FUZZ_CHECK(count <= max);
    for (unsigned i = 0; i < count; i++)
        FUZZ_CHECK(memchr(out[i].vm, '\0', MST_NAME_BYTES) && memchr(out[i].text, '\0', sizeof(out[i].text)) &&
                   (i == 0 || out[i].sequence < out[i - 1].sequence));
}

static void read_slots(unsigned count, bool final)
{
    static struct mst_slots_read got;

    mst_slots_parse(&first, &again, count, final, &got);
    FUZZ_CHECK(got.count + got.refused <= 2 * MST_VMS_PER_NODE && got.count <= count && got.count <= MST_VMS_PER_NODE);
    for (unsigned i = 0; i < got.count; i++) {
        const struct mst_slot *slot = &got.slots[i];

        FUZZ_CHECK(mst_name_check(slot->vm) == 0 && slot->run_state > MST_RUN_EMPTY && slot->run_state <= MST_RUN_IMAGE);
        FUZZ_CHECK(slot->save_seq == 0 || (slot->save_epoch == slot->epoch && !slot->save_corrupt &&
                                           (slot->save_source == MST_SAVE_SHADOW || slot->save_source == MST_SAVE_RAM)));
        FUZZ_CHECK(slot->bytes <= UINT64_C(5) * MST_VM_MEMORY_MIB_MAX << 20);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};
    uint8_t how = fuzz_u8(&in);
    struct mst_pub_head head;
    uint8_t body[MST_PUB_BODY_MAX];

    if (whole.super.magic == 0)
        whole_make();
    memcpy(&first, &whole, sizeof(first));
    memcpy(&again, &whole, sizeof(again));
    while (in.left > 0) {
        unsigned op = fuzz_u8(&in) % OPS, index = fuzz_u8(&in);
        uint32_t offset = fuzz_u32(&in);
        size_t len;
        const uint8_t *piece = fuzz_piece(&in, &len);

        if (op != LATER)
            change(&first, op, index, offset, piece, len);
        change(&again, op == LATER ? index % LATER : op, index, offset, piece, len);
    }
    read_fixed();
    read_slots(how & 0x7f, how & 0x80);
    if (mst_pub_read(first.vms[0].info, &head, body, how ? how : 1) == 0)
        FUZZ_CHECK(head.body_bytes == (how ? how : 1) && head.version != 0 && head.version % 2 == 0);
    return 0;
}

static struct fuzz_out out;

static void op(unsigned what, unsigned index, uint32_t offset, const void *piece, size_t len)
{
    fuzz_put(&out, what, 1);
    fuzz_put(&out, index, 1);
    fuzz_put(&out, offset, 4);
    fuzz_put_piece(&out, piece, len);
}

static void done(const char *name)
{
    fuzz_seed(name, out.bytes, out.len);
    out.len = 0;
}

void fuzz_seeds(void)
{
    static const uint32_t one = 1, big = UINT32_MAX;

    fuzz_put(&out, 0x82, 1);
    done("whole");
    for (unsigned what = RAW; what < LATER; what++) {
        char name[32];

        fuzz_put(&out, what % 2 ? 0xff : 0x40, 1);
        op(what, 1, 64, &one, sizeof(one));
        op(what, 0, 0, "n1", 3);
        snprintf(name, sizeof(name), "op-%u", what);
        done(name);
    }
    fuzz_put(&out, 0x7f, 1);
    op(INFO, 3, 0, "db-2", 5);
    op(INFO, 3, offsetof(struct mst_vm_slot, run_state), &one, sizeof(one));
    op(SAVE, 0, offsetof(struct mst_save_record, delta_pages), &big, sizeof(big));
    op(LATER, INFO, 0, "later", 6);
    done("slots");
}
