#ifndef MST_TESTS_UNIT_MIRROR_RIG_H
#define MST_TESTS_UNIT_MIRROR_RIG_H

/* A guest, its source, what lies between (WRITEs that become visible line by line, in any order, or never) and a mirror. */

#include "mirror/image.h"
#include "mirror/send.h"

#define RIG_PAGES     24u
#define RIG_RAM_BYTES (RIG_PAGES * MST_PAGE_BYTES)
#define RIG_RING      (64u << 10)
#define RIG_SEQS      96u
#define RIG_DEVICE    20000u /* longest device state: more than one record's worth */
#define RIG_FLYING    8192u  /* lines on their way */
#define RIG_ACKS      64u

struct rig_truth { /* what a checkpoint was */
    uint8_t ram[RIG_RAM_BYTES];
    uint8_t device[RIG_DEVICE];
    uint64_t device_bytes;
};

struct rig_line {
    uint64_t offset;
    uint8_t bytes[MST_MLOG_LINE];
};

struct rig {
    uint64_t random;
    struct mst_mlog_grant grant;
    /* source */
    uint8_t ram[RIG_RAM_BYTES], sent[RIG_RAM_BYTES];
    bool has_sent, renews; /* renews: a seed becomes a later checkpoint now and then */
    uint8_t *twin;
    struct mst_msend *send;
    uint64_t seq, next_page; /* of the checkpoint that is being put, 0: none */
    struct rig_truth *truth; /* by seq */
    uint64_t first_seq, committed;
    struct mst_msend_rest rest;
    /* between */
    struct rig_line flying[RIG_FLYING];
    unsigned flying_count;
    struct mst_mlog_ack acks[RIG_ACKS];
    unsigned acks_count;
    /* mirror */
    uint8_t *log, *save, *shadow, *delta;
    struct mst_save_layout save_layout;
    struct mst_delta_layout delta_layout;
    uint8_t (*record)[MST_PUB_SLOT_BYTES];
    struct mst_save_map map;
    struct mst_image *image;
    uint64_t told; /* newest checkpoint in an acknowledgement that left */
    uint64_t records, commits, newer, half, renewed;
    char breach[300];
};

void rig_open(struct rig *rig, uint64_t seed);
void rig_close(struct rig *rig);
uint64_t rig_random(struct rig *rig, uint64_t below);
/* A new log for the next epoch (or the same one), and a source that knows nothing of what the mirror has. */
void rig_seed(struct rig *rig, bool next_epoch, uint64_t first_seq);

/* Steps; each does a little, or nothing. */
void rig_source_step(struct rig *rig);
void rig_wire_step(struct rig *rig, unsigned lines); /* so many lines become visible, in any order */
void rig_mirror_step(struct rig *rig);
void rig_ack_step(struct rig *rig); /* the source hears of an acknowledgement */
/* One whole checkpoint through everything, in order. Returns false after a breach. */
bool rig_checkpoint(struct rig *rig);
/* Shadow and device state of the published record against the truth. */
void rig_check_image(struct rig *rig, uint64_t seq);
void rig_breach(struct rig *rig, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A story: lives and deaths of sources and mirrors, from one seed. NULL, or what went wrong (in rig). */
const char *rig_story(struct rig *rig, uint64_t seed);
/* Records that are whole but not the granted source's next one must be refused. */
const char *rig_forgeries(struct rig *rig);

#endif
