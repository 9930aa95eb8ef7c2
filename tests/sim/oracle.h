#ifndef SIM_ORACLE_H
#define SIM_ORACLE_H

#include "tests/sim/coord.h"
#include "tests/sim/world.h"

/* The checkers. They see what nobody in the cluster can: every QEMU, every transaction of every store, every order, at the moment it happens. Each is
 * told of what concerns it and speaks the invariant's name (docs of the invariants: DESIGN 9) when it is broken; the run ends there. */

struct mst_areas;

struct oracle_verdict {
    bool breach;
    char invariant[8]; /* "I1"; "LIVE": not all was well in the end; "LOAD" */
    char text[400];
    uint64_t at_ns;
};
extern struct oracle_verdict oracle_verdict;

void oracle_begin(void);
void oracle_breach(const char *invariant, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* processes and power */
void oracle_keeper_up(struct sim_host *host, uint64_t instance);
void oracle_keeper_down(struct sim_host *host);
void oracle_host_down(struct sim_host *host);
void oracle_coord_up(struct sim_coord *coord);
void oracle_coord_down(struct sim_coord *coord);
/* QEMUs */
void oracle_qemu_new(struct sim_task *task);
void oracle_qemu_dead(struct sim_task *task);
void oracle_standby_used(const struct sim_host *host, const char *vm, uint64_t epoch);
void oracle_vcpu_on(struct sim_task *task);
void oracle_vcpu_off(struct sim_task *task);
/* saves */
void oracle_checkpoint(struct sim_host *host, const char *vm, uint64_t epoch, uint64_t seq, const struct sim_moment *moment,
                       bool protect);
void oracle_withdrawn(const char *vm, uint64_t epoch, bool protect); /* a save in the RAM itself is over: the guest runs on */
void oracle_loaded(struct sim_host *host, const char *vm, uint64_t epoch, uint64_t load_epoch, uint64_t load_seq,
                   const struct sim_moment *memory, const struct sim_moment *device); /* memory NULL: not of one moment */
void oracle_booted(struct sim_host *host, const char *vm, uint64_t epoch);
void oracle_spoilt(const char *vm); /* a fault flipped bits of its saves: what they are worth is no more promised */
void oracle_panicked(const char *vm);
void oracle_unmap(struct sim_host *host, const struct mst_areas *areas, int kind);
/* decisions */
void oracle_commit(struct sim_coord *coord, const struct mst_txn *txn); /* becomes durable now; the store is as it was before */
void oracle_old_copy(const struct sim_coord *coord); /* whoever runs on an old copy, and had a witness call, knows it by now */
void oracle_decides(struct sim_coord *coord);        /* a transaction is handed to its store */
void oracle_acts(struct sim_coord *coord, const char *what); /* is about to have an effect outside */
void oracle_term(struct sim_coord *coord, uint64_t term);    /* etcd takes a transaction of that term */
void oracle_order(struct sim_coord *coord, const struct mst_order *order);
void oracle_fence(struct sim_coord *coord, unsigned node);
void oracle_fence_says(struct sim_host *host, int err);
void oracle_request(uint64_t token, enum mst_request_type type, const char *name);
void oracle_reply(struct sim_coord *coord, uint64_t token, int err);
/* leases and terms, by true time (oracle_lease.c) */
struct mst_event;
void oracle_lease_begin(void);
void oracle_event(const struct sim_host *host, const struct mst_event *event); /* a keeper's timeline */
void oracle_lease_proof(const struct sim_host *host, uint64_t instance);       /* the end of its lease becomes a durable proof */
void oracle_lease_start(const struct sim_host *host, const char *vm, uint64_t epoch);
/* mirrors (oracle_mirror.c) */
struct mst_link;
void oracle_mirror_begin(void);
void oracle_mirror_keeper_up(const struct sim_host *host, uint64_t instance);
void oracle_mirror_sources(const struct sim_host *host); /* what its keeper knows, as long as that can be read */
void oracle_mirror_checkpoint(const char *vm, uint64_t epoch, uint64_t seq, const struct sim_moment *moment);
void oracle_mirror_commit(const struct sim_coord *coord, const struct mst_mirror_row *row);
void oracle_mirror_vm(const struct sim_coord *coord, const struct mst_vm_row *before, const struct mst_vm_row *row);
void oracle_mirror_undefined(const char *name);
void oracle_mirror_proof(const struct mst_proof_row *proof);
void oracle_mirror_order(const struct sim_coord *coord, const struct mst_order *order, bool again); /* again: sent before */
void oracle_write(const struct sim_host *to, const uint8_t *at, unsigned from,
                  uint64_t life);                                             /* bytes of a WRITE become visible there */
void oracle_posted(const struct sim_host *host, const struct mst_link *link); /* a WRITE into a log */
struct mst_mlog_ack;
void oracle_left(const struct sim_task *task,
                 uint64_t tick); /* what its guest has sent up to this tick has left the node by now */
void oracle_taken(const struct mst_mlog_ack *ack, bool taken); /* an image has looked for a record; it took it */
/* Whether a checkpoint that was acknowledged by a mirror that counts, and lives, is newer than load; of the last life of the VM, from since_epoch on. */
bool oracle_mirror_lost(const char *name, uint64_t since_epoch, uint64_t load_epoch, uint64_t load_seq, char *text, size_t size);
bool oracle_image_rots(const struct sim_host *host, const char *name,
                       uint64_t epoch); /* a bit flips: true when it is an image there */
int oracle_mirror_of(const char *name); /* host of the mirror that counts, -1: none does */
bool oracle_is_spoilt(const char *vm);
const struct mst_vm_row *oracle_vm_row(const char *name); /* of the newest store; NULL: not defined */
/* records: what is published, and what a reader takes for whole */
void oracle_published(const void *head_and_body, size_t bytes);
void oracle_picked(const void *head_and_body, size_t bytes, const char *what);

/* All faults are mended and time has passed: is all well? Empty text: yes. */
bool oracle_all_well(char *text, size_t size);
void oracle_final(void); /* what must hold at the end: I15 */
bool oracle_vm_wanted(const char *vm);

struct oracle_counts {
    uint64_t vcpu_starts, commits, grants, fenced, checkpoints, resumes, boots, orders, power_fences, recoveries, picks, stops,
        lease_proofs, acks, joins, images, left, /* mirrors: acknowledged, counting, verified; output that waited and has left */
        standbys;                                /* QEMUs that had waited and were used */
};
extern struct oracle_counts oracle_counts;

#endif
