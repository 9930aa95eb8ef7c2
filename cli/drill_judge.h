#ifndef MST_CLI_DRILL_JUDGE_H
#define MST_CLI_DRILL_JUDGE_H

#include "cli/drill_record.h"
#include "conf/conf.h"

/* Whether the objectives of a drill held: a pure function of what was seen. One thread. */

#define DRILL_EPISODES_MAX DRILL_HITS_MAX
#define DRILL_CHECKS_MAX   16u
#define DRILL_FRESH_MS     2000u /* a VM whose last beat is older does not beat any more */

/* What one fault did to one VM; also one for a VM that nothing struck, from the first fault to the end. Faults that strike while the VM
 * has not yet been seen in a new epoch belong to the same episode: RTO counts from the first of them. */
struct drill_episode {
    bool struck;
    unsigned fault; /* the first; only when struck */
    uint64_t t0_ns, end_ns;
    char from[MST_NAME_BYTES], to[MST_NAME_BYTES];
    uint64_t epoch_from, epoch_to;
    bool moved;                            /* a beat of a newer epoch arrived: it was resumed or restarted, here or elsewhere */
    const struct drill_beat *last, *first; /* last beat of the old epoch and first of the new one; not moved: the two around the
                                              largest gap. NULL: none */
    uint64_t rto_ms;       /* moved: T0 to first; not moved: largest gap, also the one that was still open at the end */
    uint64_t gap_ms;       /* largest gap between two beats that touches this episode */
    uint64_t lost_beats;   /* beats the guest had to do again; all of its life when its memory was lost */
    uint64_t missed_beats; /* numbers never seen: the console's loss, or the guest's */
    uint64_t rpo_ms;       /* age of the save that was resumed, by the guest's own clock */
    bool memory_lost;
    char method[32];     /* none, pulled-live, pulled-shadow, in-place, restarted */
    const json_t *start; /* StartResult of the recovery, NULL: none; borrowed from the record */
    uint64_t recovery_id;
};

struct drill_check {
    char name[24];
    bool passed;
    char measured[128], allowed[64];
};

struct drill_vm_result {
    const struct drill_vm_record *vm;
    struct drill_episode episodes[DRILL_EPISODES_MAX];
    unsigned episodes_count;
    struct drill_check checks[DRILL_CHECKS_MAX];
    unsigned checks_count;
    bool passed;
};

struct drill_result {
    struct drill_vm_result *vms; /* as many as the record has */
    unsigned vms_count;
    struct drill_check checks[DRILL_CHECKS_MAX]; /* of the whole drill */
    unsigned checks_count;
    bool passed;
};

/* conf->vms and rec->vms: the same VMs in the same order. The record is borrowed by the result. 0 or -ENOMEM. */
int drill_judge(const struct mst_drill_conf *conf, const struct drill_record *rec, struct drill_result *ret);
void drill_result_free(struct drill_result *result);
/* Whether vm, once struck, is to be resumed or restarted under a new epoch, so that it must be watched until then: method other than none,
 * or, without a method, placed on another node or memory kept or lost. */
bool drill_expects_move(const struct mst_drill_vm *vm);

#endif
