#ifndef MST_CLI_DRILL_RECORD_H
#define MST_CLI_DRILL_RECORD_H

#include "base/limits.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a drill saw: beats of its VMs with the time at which they arrived on this machine, faults with the time at which they were begun,
 * recoveries as the coordinator shows them. Pure: bytes and times in, records out. One thread. All times are mst_now_ns of this machine. */

#define DRILL_LINE_BYTES  512u
#define DRILL_STREAMS_MAX 16u
#define DRILL_HITS_MAX    16u
#define DRILL_OUTAGES_MAX 16u
#define DRILL_TEXT_BYTES  400u
#define DRILL_FAULTS_MAX  64u
#define DRILL_BEATS_MAX   200000u

struct drill_beat {
    uint64_t at_ns;    /* arrival of the line's last byte */
    uint64_t n;        /* beat number, from 1 */
    uint64_t guest_ms; /* t= of the line; 0 when it has none */
    uint64_t epoch;
    char node[MST_NAME_BYTES]; /* "" when the coordinator did not say */
    bool ok;                   /* witness=ok */
    bool boot;                 /* "guest boot" was printed between the beat before and this one */
    bool late;                 /* part of what came when the console was opened again: it may be older than at_ns says */
    bool joined;               /* the line began on one node and ended on another */
};

enum drill_line { DRILL_LINE_OTHER = 0, DRILL_LINE_BEAT = 1, DRILL_LINE_BOOT = 2 };

/* Reads one line of a guest without its newline. Something else in front of a beat or boot line is skipped. ret_beat gets n, guest_ms, ok. */
enum drill_line drill_line_parse(const char *line, struct drill_beat *ret_beat);

struct drill_stream {     /* console bytes of one epoch */
    uint64_t epoch, next; /* next offset that is expected */
    char part[DRILL_LINE_BYTES];
    size_t part_bytes;
    bool first_line;
    bool boot;
};

struct drill_hit {  /* a fault that struck this VM */
    unsigned fault; /* index of drill_record.faults */
    uint64_t t0_ns;
    uint64_t epoch;            /* of the VM then */
    char node[MST_NAME_BYTES]; /* where it ran then */
};

struct drill_vm_record {
    char name[MST_NAME_BYTES];
    char node[MST_NAME_BYTES]; /* where it runs, as far as is known: of the newest epoch */
    uint64_t epoch;
    uint64_t save_seq, save_age_ms, pause_us; /* last seen before the first fault */
    bool exposed;                             /* under protect mirror, and nobody has its checkpoints; before the first fault */
    char mirror[MST_NAME_BYTES];              /* who has them, as last seen; "": nobody */
    char standby[64];                         /* the QEMU that waits there, in the coordinator's words; before the first fault */
    uint64_t mirrored_ns;                     /* since when one has them whom no fault had struck; 0: none has */
    struct drill_beat *beats;
    size_t beats_count, beats_room;
    struct drill_hit hits[DRILL_HITS_MAX];
    unsigned hits_count;
    struct drill_stream streams[DRILL_STREAMS_MAX];
    unsigned streams_count;
    struct drill_beat pending; /* joined line that waits for the next beat to bear it out; n 0: none */
    uint64_t holes;            /* console bytes that never came */
};

struct drill_fault_record {
    char kind[MST_NAME_BYTES], node[MST_NAME_BYTES], vm[MST_NAME_BYTES]; /* vm "": none */
    char mirror_of[MST_NAME_BYTES];                                      /* the VM by which node was found, "": none */
    uint64_t planned_ms;
    uint64_t t0_ns; /* just before the injector was started; 0: not begun */
    uint64_t t0_wall_ms;
    uint64_t returned_ns; /* 0: has not */
    int status;           /* exit status of the injector, -errno when it could not be started */
    char text[DRILL_TEXT_BYTES];
};

struct drill_outage {        /* the coordinator's socket gave nothing */
    uint64_t from_ns, to_ns; /* to_ns 0: not over */
};

struct drill_record {
    uint64_t begin_ns, begin_wall_ms, end_ns; /* end: of watching */
    struct drill_vm_record *vms;
    unsigned vms_count;
    struct drill_fault_record faults[DRILL_FAULTS_MAX];
    unsigned faults_count;
    struct drill_outage outages[DRILL_OUTAGES_MAX];
    unsigned outages_count;
    json_t *recoveries; /* array of RecoveryView as JSON, those of this drill only, oldest first */
    char cluster[MST_NAME_BYTES];
};

/* Calls for the VMs' reader: on_beat and on_boot run inside drill_record_feed for each one that was taken. May be NULL. */
struct drill_record_events {
    void (*on_beat)(const struct drill_vm_record *vm, const struct drill_beat *beat, void *arg);
    void (*on_other)(const struct drill_vm_record *vm, const char *line, uint64_t epoch, void *arg);
    void *arg;
};

/* 0 or -ENOMEM. */
int drill_record_init(struct drill_record *rec, unsigned vms_count);
void drill_record_free(struct drill_record *rec);
struct drill_vm_record *drill_record_vm(struct drill_record *rec, const char *name); /* NULL: none of the drill's */

/* Console bytes as they came. Bytes seen already (same epoch, smaller offset) are dropped. node may be NULL.
 * 0, -ENOMEM, -ENOSPC (more than DRILL_BEATS_MAX beats). */
int drill_record_feed(struct drill_vm_record *vm, uint64_t epoch, uint64_t offset, const char *node, const void *data, size_t len,
                      uint64_t now_ns, bool late, const struct drill_record_events *events);
/* A view said that vm runs there. */
void drill_record_place(struct drill_vm_record *vm, const char *node, uint64_t epoch);
/* A view said who holds vm's checkpoints ("": nobody) at now_ns. A mirror that a fault has struck, but for a link that was made slow, is as good as none. */
void drill_record_mirror(const struct drill_record *rec, struct drill_vm_record *vm, const char *node, uint64_t now_ns);
/* Notes fault number i on every VM it strikes: its vm, or all that run on its node. Kinds that undo a fault strike none. */
int drill_record_strike(struct drill_record *rec, unsigned fault);
bool drill_kind_undoes(const char *kind); /* power-on, heal, ...-continue */
bool drill_kind_known(const char *kind, bool *ret_of_vm, bool *ret_of_coordinator);
/* Last beat, NULL: none yet. */
const struct drill_beat *drill_last_beat(const struct drill_vm_record *vm);

#endif
