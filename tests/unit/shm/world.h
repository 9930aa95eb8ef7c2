#ifndef MST_TESTS_UNIT_SHM_WORLD_H
#define MST_TESTS_UNIT_SHM_WORLD_H

/* One VM's main storage with its guest, its agent (writer) and a reader that follows the rules of shm/save.h. */

#include "shm/save.h"

#define WORLD_PAGES     8u
#define WORLD_RAM_BYTES (WORLD_PAGES * MST_PAGE_BYTES)
#define WORLD_CAPACITY  4u
#define WORLD_DEVICE    96u /* bytes of device state; it differs with every checkpoint */
#define WORLD_SEQS      1024u

struct world_regions {
    uint8_t *ram, *save, *shadow, *delta;
    uint8_t (*record)[MST_PUB_SLOT_BYTES];
};

struct world_truth { /* what checkpoint seq was, taken while the guest stood still */
    bool taken;
    uint8_t ram[WORLD_RAM_BYTES];
    uint8_t device[WORLD_DEVICE];
};

struct world {
    struct mst_save_layout save;
    struct mst_delta_layout delta;
    struct world_regions at;
    struct mst_save_map map;
    struct mst_save_writer *writer;
    struct world_truth *truth; /* by seq */
    bool guest_runs;
    bool agent_dead; /* set by a test's hook: nothing the agent does any more reaches memory or the guest */
    uint64_t random;
    uint64_t device_count;
};

enum world_protect { WORLD_NONE, WORLD_LOCAL };

void world_open(struct world *world, enum world_protect protect, uint64_t seed);
void world_close(struct world *world);
uint64_t world_random(struct world *world);

/* Guest. */
void world_dirty(struct world *world, unsigned page); /* changes some bytes there, when the guest runs */
void world_stop(struct world *world);
void world_continue(struct world *world);

/* Agent: one checkpoint each; the guest changes pages at every moment at which it runs. */
void world_delta_checkpoint(struct world *world);                 /* a full one when the pages do not fit */
void world_full_checkpoint(struct world *world);                  /* protect local: RAM, shadow, continue */
void world_ram_checkpoint(struct world *world);                   /* protect none: RAM, withdraw, continue */
int world_ram_save(struct world *world);                          /* RAM, stays stopped */
int world_stage_all(struct world *world);                         /* what differs from the shadow; -ENOSPC */
uint64_t world_put_device(struct world *world, uint64_t for_seq); /* new device state; returns its length */
void world_note(struct world *world, uint64_t seq);               /* the guest stands: this is what checkpoint seq is */

/* Reader: one piece of the reading order each step, so that a test can let the writer go on between them. */
struct world_reader {
    const struct world_regions *from;
    const struct world *world;
    unsigned step;
    struct mst_pub_head head;
    struct mst_save_record record;
    uint32_t sums[WORLD_PAGES];
    struct mst_delta_entry table[WORLD_CAPACITY];
    uint8_t delta[WORLD_CAPACITY * MST_PAGE_BYTES];
    uint8_t ram[WORLD_RAM_BYTES];
    uint8_t device[WORLD_DEVICE];
    struct mst_why why;
};

void world_reader_begin(struct world_reader *reader, const struct world *world, const struct world_regions *from);
/* 1 more to do, 0 a checkpoint was accepted, or -errno (refused). */
int world_reader_step(struct world_reader *reader);
/* Whether an accepted checkpoint is what it says to be, to the byte. */
bool world_reader_true(const struct world_reader *reader);
/* Reads all at once, fails the test on a checkpoint that never was. Returns its seq, 0: none (-ENODATA or -EBADMSG in *ret_err). */
uint64_t world_read(const struct world *world, const struct world_regions *from, int *ret_err);

#endif
