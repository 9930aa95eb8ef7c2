#ifndef MST_MIRROR_LOG_H
#define MST_MIRROR_LOG_H

#include "base/err.h"
#include "base/limits.h"

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

/* The log of one mirror: a region of the mirror's main storage that exactly one source writes, by RDMA WRITE and with a key of its own. A wire
 * format, little-endian, described in docs/PROTOCOL.md. Checkpoints (vm, epoch, seq) go through it as records, one behind the other in a ring.
 *
 *        0  log head       256   written once by the source, before its first record
 *     4096  ring    ring_bytes   records, each a multiple of 64 bytes; position P of the stream lies at P mod ring_bytes
 *
 * record:  head 128 | pages with data, 4096 each | runs, 8 each | commit 64, when flagged | device state | zeros up to 64
 *
 * What a WRITE leaves behind when its source dies, and what a reader sees while it arrives, is any part of it, in lines of 64 bytes, in any order.
 * So nothing here is taken for there by one of its bytes: a reader takes a private copy of a whole record and compares its sum. */
#define MST_MLOG_MAGIC    UINT64_C(0x474f4c4d54534e4d) /* "MNSTMLOG" */
#define MST_MLOG_VERSION  1u
#define MST_MLOG_RING_OFF 4096u
#ifndef MST_MLOG_RING_MIN /* the simulator sets a smaller one */
#define MST_MLOG_RING_MIN (64u << 10)
#endif
#define MST_MLOG_RING_MAX   (64u << 20)        /* a keeper's loop makes and frees it */
#define MST_MLOG_RECORD_MAX MST_READ_BYTES_MAX /* one record is at most one WRITE, or two where the ring begins anew */
#define MST_MLOG_LINE       64u
#define MST_MLOG_PAGES_MAX  ((MST_MLOG_RECORD_MAX - 128u) / MST_PAGE_BYTES)
#define MST_MLOG_RUNS_MAX   1024u

struct mst_mlog_head {
    uint64_t magic;
    uint32_t layout_version;
    uint32_t page_bytes;
    uint64_t ring_bytes; /* multiple of 4096 */
    uint64_t ram_bytes;
    uint32_t delta_capacity; /* pages that one checkpoint may have, but for the first */
    uint32_t source_node_id;
    uint64_t epoch;
    uint64_t
        log_id; /* random, new for each log: no page of a guest, and no record of another log, can pose as a record of this one */
    uint64_t source_instance; /* of the source's keeper */
    uint64_t mirror_instance; /* of the mirror's keeper */
    char vm[MST_NAME_BYTES];
    uint8_t source_boot_id[16];
    uint8_t reserved[96];
    uint64_t sum; /* XXH64 of all bytes above */
};
static_assert(sizeof(struct mst_mlog_head) == 256 && offsetof(struct mst_mlog_head, sum) == 248, "wire layout");

enum mst_mlog_flag {
    MST_MLOG_SEED = 1,   /* of the log's first checkpoint: all pages of the RAM, once or more often */
    MST_MLOG_COMMIT = 2, /* the last one of its checkpoint; a struct mst_mlog_commit follows the runs */
};

struct mst_mlog_record { /* head of a record */
    uint64_t log_id;
    uint64_t epoch;
    uint64_t source_instance;
    uint64_t sequence; /* 1, 2, ... within the log */
    uint64_t position; /* of this record in the stream */
    uint64_t
        prev_sum; /* of the record before; of the log head for the first: the sum of a commit stands for all that led there */
    uint64_t checkpoint; /* seq of the checkpoint that it belongs to; may grow within a seed */
    uint32_t record_bytes;
    uint32_t flags;
    uint32_t runs;
    uint32_t data_pages;
    uint32_t device_bytes; /* of device state in this record, */
    uint32_t device_off;   /* which begin here in the device state */
    uint8_t reserved[40];  /* zero */
    uint64_t sum;          /* mst_mlog_sum */
};
static_assert(sizeof(struct mst_mlog_record) == 128 && offsetof(struct mst_mlog_record, sum) == 120, "wire layout");

enum mst_mlog_kind {
    MST_MLOG_DATA = 1, /* each page of the run has 4096 bytes in the record, in the order of the runs */
    MST_MLOG_ZERO = 2, /* the pages of the run are zero */
};

struct mst_mlog_run {
    uint32_t page;  /* the first one's number in RAM */
    uint16_t pages; /* 1.. */
    uint16_t kind;  /* enum mst_mlog_kind */
};
static_assert(sizeof(struct mst_mlog_run) == 8, "wire layout");

struct mst_mlog_commit {
    uint64_t ram_digest;   /* mst_save_digest of the whole RAM at this checkpoint: what the image must have when it is applied */
    uint64_t device_bytes; /* of the whole device state */
    uint64_t taken_wall_ms;
    uint64_t pause_ns;
    uint8_t reserved[32]; /* zero */
};
static_assert(sizeof(struct mst_mlog_commit) == 64, "wire layout");

static_assert((MST_MLOG_PAGES_MAX == 255 || MST_PAGE_BYTES != 4096) && MST_MLOG_RECORD_MAX % MST_MLOG_LINE == 0 &&
                  MST_MLOG_RING_OFF % MST_PAGE_BYTES == 0,
              "a record is whole lines");

/* What both sides were told before, each for itself: who may write which log. */
struct mst_mlog_grant {
    char vm[MST_NAME_BYTES];
    uint64_t epoch;
    uint64_t log_id; /* drawn by the mirror's keeper, never 0 */
    uint32_t source_node_id;
    uint64_t source_instance, mirror_instance;
    uint8_t source_boot_id[16];
    uint64_t ram_bytes;
    uint64_t ring_bytes;
    uint32_t delta_capacity;
};

/* What the mirror gives back: how far its image is, and ring space. Travels as a message, of the mirror's keeper to the source's. */
struct mst_mlog_ack {
    uint64_t log_id, epoch;
    uint64_t seq;      /* newest checkpoint that is verified and kept, 0: none */
    uint64_t consumed; /* position in the stream up to which the ring is free again */
};

/* Sizes that make sense: RAM of a VM, ring a multiple of 4096 within its limits, capacity 1..pages, epoch, log id and name given. 0 or -EINVAL with
 * why. Pure. */
int mst_mlog_grant_check(const struct mst_mlog_grant *grant, struct mst_why *why);
/* Bytes of the whole region. */
uint64_t mst_mlog_bytes(uint64_t ring_bytes);
/* Most bytes of one record: a quarter of the ring, so that one is written while another is read, at most MST_MLOG_RECORD_MAX. */
uint32_t mst_mlog_record_max(uint64_t ring_bytes);

/* The head of the log that grant describes. */
void mst_mlog_head_make(const struct mst_mlog_grant *grant, struct mst_mlog_head *ret_head);
/* A private copy of what the source wrote. 0; -EAGAIN it is not there, or not whole yet; -EPROTONOSUPPORT another version; -ESTALE it is whole and
 * of another log than grant says. */
int mst_mlog_head_check(const struct mst_mlog_head *copy, const struct mst_mlog_grant *grant, struct mst_why *why);

/* Bytes of a record with this content; its parts begin at 128, in the order above. */
uint64_t mst_mlog_record_bytes(uint32_t data_pages, uint32_t runs, uint32_t device_bytes, uint32_t flags);
/* Whether a head's counts are within limits and its length is that of its content. 0 or -EBADMSG. Pure; hostile input is fine. */
int mst_mlog_record_check(const struct mst_mlog_record *record, uint32_t record_max, struct mst_why *why);
/* Whether the runs, of a checked record, are within the RAM (pages) and have the pages of data that the head says. 0 or -EBADMSG. Pure. */
int mst_mlog_runs_check(const struct mst_mlog_record *record, const struct mst_mlog_run *runs, uint64_t pages,
                        struct mst_why *why);
/* XXH64 of one page, seed 0: its low half is mst_page_sum. */
uint64_t mst_mlog_page_sum(const uint8_t *page);
/* Sum over all of a record: XXH64 of its head (the 120 bytes before sum), seed 0; with that as seed of the list of its pages' own sums; with that
 * as seed of what follows the pages. So a page is summed once, for the record and for the image. record_bytes has been checked; rest: the bytes
 * after the pages. */
uint64_t mst_mlog_sum(const struct mst_mlog_record *record, const uint64_t *page_sums, const void *rest);

#endif
