#ifndef MST_SHM_SAVE_H
#define MST_SHM_SAVE_H

#include "shm/publish.h"

/* VM save area: how a checkpoint is written, and how it is read back. Bytes only: no QEMU, no RDMA, no files.
 *
 * Checkpoint (vm, epoch, seq), protect local. The shadow is never half new without a way back:
 *   stage   dirty pages -> delta (guest running, then paused)    the record still names the previous checkpoint
 *   commit  device state in the free slot, record published       readers: shadow + delta
 *   apply   delta -> shadow and its checksum table                readers still overlay the delta: a torn shadow page is covered
 *   settle  record published again with delta_pages = 0           readers: shadow alone; delta may be used again
 * The first checkpoint of a VM, and one whose pages do not fit into the delta: with the guest stopped, publish source RAM (ram
 * region + device state are a whole checkpoint while the guest stands), write the pages straight into the shadow, publish source
 * SHADOW, continue:
 *   mst_save_device, mst_save_commit_ram, mst_save_shadow_from_ram
 *
 * The writer may die between any two of its stores: a reader then finds the checkpoint of the last published record, whole, and
 * nothing else. The record carries a digest of the checksums of all pages, so that also a reader of a writer that goes on is told
 * -EBADMSG and never gets a mixture of two checkpoints. */

/* ram_bytes: multiple of MST_PAGE_BYTES, 1 page .. MST_VM_MEMORY_MIB_MAX. -EINVAL otherwise. */
int mst_save_layout(uint64_t ram_bytes, struct mst_save_layout *ret_layout);
/* capacity in pages, 1 .. the pages of the largest VM. -EINVAL otherwise. */
int mst_delta_layout(uint32_t capacity, struct mst_delta_layout *ret_layout);
/* The capacity this version gives a VM: a quarter of its pages, at least 256, at most all of them. */
uint32_t mst_delta_capacity(uint64_t ram_bytes);

struct mst_save_map { /* the regions of one VM as mapped by the writer; all borrowed, page-aligned */
    uint64_t ram_bytes;
    const uint8_t *ram; /* NULL: the pages come from elsewhere (a mirror's image; then there is a shadow) */
    uint8_t *save;
    uint8_t *shadow; /* NULL for protect none */
    uint8_t *delta;  /* NULL for protect none */
    uint32_t delta_capacity;
    uint8_t (*record)[MST_PUB_SLOT_BYTES]; /* save record slots in the status area */
    uint64_t epoch, instance;
};

/* Writer of checkpoints for one VM. Opaque; one thread; the only writer of the record, save, shadow and delta of its VM: the
 * agent before it must be dead. */
struct mst_save_writer;
/* Starts from nothing (seq 0): the first checkpoint is a full one. Clears the record. -ENOMEM, -EINVAL. */
int mst_save_writer_new(const struct mst_save_map *map, struct mst_save_writer **ret_writer);
/* Shadow and delta, for a writer that was made without: map is the one it was made with, and they are in it now. What is published stays. Not while
 * another thread uses the writer. -EINVAL another map, or it has them; -ENOMEM: nothing has changed. */
int mst_save_writer_rest(struct mst_save_writer *writer, const struct mst_save_map *map);
bool mst_save_is_whole(const struct mst_save_writer *writer); /* it has shadow and delta */
/* Takes up after the agent was restarted: reads the published record and applies a committed delta that was not settled. 0: continues after seq;
 * look at mst_save_source: RAM means that the guest was left stopped inside a full checkpoint: call mst_save_shadow_from_ram (or mst_save_withdraw
 * for protect none) before it continues. NONE: seq goes on, the next checkpoint is full. -ENODATA no record at all; -EBADMSG record, tables or
 * delta are damaged, of another epoch or instance, or name a RAM that map has not; -ENOMEM, -EINVAL. On error no writer is made and nothing was
 * changed: after -ENODATA and -EBADMSG call mst_save_writer_new. */
int mst_save_writer_attach(const struct mst_save_map *map, struct mst_save_writer **ret_writer);
void mst_save_writer_free(struct mst_save_writer *writer);   /* NULL is fine; the regions stay as they are */
uint64_t mst_save_seq(const struct mst_save_writer *writer); /* of the last published checkpoint, 0: none */
/* What the published record names now. */
enum mst_save_source mst_save_source(const struct mst_save_writer *writer);
uint32_t mst_save_delta(const struct mst_save_writer *writer, uint32_t *ret_table_crc32c); /* pages of it */

/* Begins checkpoint seq + 1: the delta is empty. Settles the previous one when that was not done. */
void mst_save_begin(struct mst_save_writer *writer);
/* Copies page (number) of ram into the delta, or again over its place there when it was staged before in this checkpoint.
 * 0, -ENOSPC delta full (nothing changed), -ERANGE, -EBUSY the delta is committed and not yet applied, -ENODATA no delta
 * (protect none), or no RAM. */
int mst_save_stage(struct mst_save_writer *writer, uint64_t page);
/* As stage, but first compares with the shadow: 1 staged, 0 equal to the shadow and not staged before, errors as stage. */
int mst_save_stage_if_changed(struct mst_save_writer *writer, uint64_t page);
uint32_t mst_save_staged(const struct mst_save_writer *writer); /* pages in the delta */
/* Where to put the device state of this checkpoint (MST_DEVICE_BYTES_MAX bytes; the slot no reader uses). Changes with every
 * commit and commit_ram. */
uint8_t *mst_save_device(struct mst_save_writer *writer, uint64_t *ret_room);
/* Commits: publishes the record, source SHADOW, with what is staged (which may be nothing). Guest stopped.
 * -ENODATA there is no shadow of an earlier checkpoint to lay the delta over: the first checkpoint, after a RAM save that was not
 * brought into the shadow, after withdraw, protect none; use commit_ram. -EMSGSIZE device_bytes is 0 or over the room. -EBUSY the
 * previous checkpoint is not applied. On error nothing was published and what was staged stays. */
int mst_save_commit(struct mst_save_writer *writer, uint64_t device_bytes, uint64_t pause_ns, uint64_t wall_ms, uint64_t boot_ns);
/* Copies delta into shadow and settles; nothing to do is fine. The guest may run. */
void mst_save_apply(struct mst_save_writer *writer);
/* Publishes source RAM: computes the checksum of every page of ram. Guest stopped, and it must stay so until the next publish.
 * What was staged is dropped. Also the way to the first checkpoint of a VM with a shadow: shadow_from_ram follows.
 * -EMSGSIZE device_bytes is 0 or over the room; -ENODATA the map has no RAM (nothing was published). */
int mst_save_commit_ram(struct mst_save_writer *writer, uint64_t device_bytes, uint64_t pause_ns, uint64_t wall_ms,
                        uint64_t boot_ns);
/* After commit_ram with a shadow: makes shadow equal to ram (the pages that differ), publishes source SHADOW under the same seq.
 * Guest stopped. Returns the number of pages written; 0 and nothing is done when the record's source is not RAM, or without shadow. */
uint64_t mst_save_shadow_from_ram(struct mst_save_writer *writer);
/* The first checkpoint of a VM with a shadow without standing still for all of its RAM: as long as no record names the shadow (source
 * NONE), pages are copied straight into it, the guest running or not, again and again. 0; 1 the page was the same since it was
 * filled last; -EBUSY a record names the shadow; -ERANGE; -ENODATA no shadow, or no RAM. */
int mst_save_fill(struct mst_save_writer *writer, uint64_t page);
/* Publishes the filled shadow as checkpoint seq + 1, source SHADOW. Guest stopped; every page that was written has been filled after
 * that. -EAGAIN a page was never filled; -EBUSY, -ENODATA as fill; -EMSGSIZE. On error nothing was published. */
int mst_save_commit_filled(struct mst_save_writer *writer, uint64_t device_bytes, uint64_t pause_ns, uint64_t wall_ms,
                           uint64_t boot_ns);
/* The same for a writer without RAM, whose pages come from elsewhere together with their sums (checked by the caller; not computed again, so that
 * what is damaged from here on is noticed by whoever reads). As mst_save_stage and mst_save_fill. bytes: MST_PAGE_BYTES, borrowed for the call. */
int mst_save_stage_page(struct mst_save_writer *writer, uint64_t page, const uint8_t *bytes, uint32_t sum);
int mst_save_fill_page(struct mst_save_writer *writer, uint64_t page, const uint8_t *bytes, uint32_t sum);
/* The next checkpoint gets number seq, 1..; it is the first here, but not the first of its VM. -EBUSY a record names a checkpoint, -EINVAL. */
int mst_save_number(struct mst_save_writer *writer, uint64_t seq);
/* The digest that the next commit (source NONE: commit_filled) would publish with what is staged (filled) now. */
uint64_t mst_save_next_digest(const struct mst_save_writer *writer);
/* A RAM save is over because the guest is about to run on: withdraws the record by publishing source NONE (no checkpoint remains for
 * protect none; for protect local call shadow_from_ram instead). Must be called before the guest continues. */
void mst_save_withdraw(struct mst_save_writer *writer);

/* For people: rides on every record from here on. Published at once when now, and as the same checkpoint: seq, pages and state stay. */
struct mst_save_note {
    uint32_t interval_ms;
    enum mst_save_pace pace;
    enum mst_save_trouble trouble;
    uint64_t trouble_wall_ms;
    uint64_t dirty_pages; /* so far */
    uint32_t pause_p50_us, pause_p99_us;
};
void mst_save_note(struct mst_save_writer *writer, const struct mst_save_note *note, bool now);

/* --- reading back (private copies; every byte is hostile) ---
 *
 *   1 the record: copy both slots, mst_pub_pick, mst_save_record_check
 *   2 the checksums: copy shadow_sums (source RAM: ram_sums) and delta_pages entries of the delta table; mst_delta_table_check,
 *     mst_delta_sums, mst_save_sums_check: now sums[] is what every page of this very checkpoint must be
 *   3 the pages: copy shadow (source RAM: ram) and delta data; mst_delta_overlay; then mst_pages_check over all pages. A shadow page
 *     that the delta covers may be torn: check after the overlay, or leave such pages out
 *   4 the device state: copy device_bytes of device_slot; mst_save_device_check
 * A failure of 2..4 means that the bytes are damaged or that the writer went on meanwhile: begin again at 1, a bounded number of times. */

/* Checks a picked record against what the reader knows. ram_bytes, delta_capacity: of the VM's definition.
 * 0, -ENODATA (source NONE), -EBADMSG with why. */
int mst_save_record_check(const struct mst_save_record *record, uint64_t ram_bytes, uint32_t delta_capacity, struct mst_why *why);
/* Checksum of one page (MST_PAGE_BYTES): the low half of its XXH64 with seed 0 (libxxhash). Not CRC32C: docs/decisions/0006. */
uint32_t mst_page_sum(const void *page);
/* Verifies count pages at data against sums. Returns count when all are right, or the index of the first wrong one. */
uint64_t mst_pages_check(const uint8_t *data, const uint32_t *sums, uint64_t count);
/* Digest of count page checksums, the first being that of page first; digests of ranges are joined by xor. */
uint64_t mst_save_digest(const uint32_t *sums, uint64_t first, uint64_t count);
/* Puts the checksums of the delta's pages over the shadow's: sums has one for each page of ram. The table has been checked. */
void mst_delta_sums(const struct mst_save_record *record, const struct mst_delta_entry *table, uint32_t *sums);
/* Whether sums, after mst_delta_sums, are those of the record's checkpoint. 0 or -EBADMSG. */
int mst_save_sums_check(const struct mst_save_record *record, const uint32_t *sums, struct mst_why *why);
/* device: record->device_bytes bytes. 0 or -EBADMSG. */
int mst_save_device_check(const struct mst_save_record *record, const uint8_t *device, struct mst_why *why);
/* Checks a delta table of record->delta_pages entries against the record (sum, page numbers in range, no page twice).
 * The record has been checked. 0, -EBADMSG, -ENOMEM. */
int mst_delta_table_check(const struct mst_save_record *record, const struct mst_delta_entry *table, struct mst_why *why);
/* Puts delta pages over ram (record->ram_bytes) once all of their sums are right. -EBADMSG names the page; ram is then untouched. */
int mst_delta_overlay(const struct mst_save_record *record, const struct mst_delta_entry *table, const uint8_t *data,
                      uint8_t *ram, struct mst_why *why);

#endif
