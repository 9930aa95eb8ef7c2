#include "coordinator/core/internal.h"

#include "base/mutant.h"
#include <errno.h>
#include <inttypes.h>

/* Leases of nodes: whose is renewed, and when the end of one is a proof. What the holder makes of it, and both sides of the arithmetic:
 * node/keeper/lease.h.
 *
 * A renewal follows from a successful read that shows a counter which has moved, and names that counter: a keeper that hangs gets none, however
 * well its memory can be read. Who is suspected as a whole, or about to be fenced, gets none either, until what ran there is proved stopped.
 *
 * The end of a lease frees nothing, but where a watchdog stands behind it (watchdog-proof-ms):
 *     t_proof = t_decide + L + L g + 2 T + 2 T g + 1 s,  g = 1/8
 * t_decide is of the last renewal that may have gone out, on our clock; L the lease; T what the operator says its watchdog takes at most. It counts only
 * for a keeper instance that has shown, in its beat line, that it lives by a strict lease of this run of ours and has armed a watchdog of at most T.
 * Whatever runs there has ended by then: its keeper stopped it, or the watchdog stopped the machine. */

#define RENEW_PARTS    4u   /* of the lease between renewals */
#define RENEW_AGAIN_MS 100u /* when a renewal could not be sent, or the node asks for one */
#define CALL_OFF_MS    1000u
#define GRANTER_PARTS  8u /* g = 1 / this: adjtimex's tenth, and what quartz adds on both sides */
#define PROOF_SLACK_MS 1000u
static_assert(MST_LEASE_MS_MIN / RENEW_PARTS > RENEW_AGAIN_MS, "renewals are rarer than their repetitions");
static_assert(10u > GRANTER_PARTS, "more than a clock may be off by adjtimex");

static uint64_t tag(const struct mst_core *core)
{
    return core->conf.coordinator_instance << 32;
}

/* Once its VMs are proved stopped, what is granted to it anew may run: a keeper that stood still waits for a renewal before it starts that. */
static bool being_given_up(const struct mst_core *core, unsigned index)
{
    int lost = node_lost(core, index);

    return lost >= 0 && core->recs[lost].d.state <= MST_REC_FENCING;
}

static bool may_have_one(const struct mst_core *core, unsigned index)
{
    const struct node *node = &core->nodes[index];

    if (!core->ready || core_outdated(core))
        return false;
    if (node_proved_dead(node) || node->d.instance != node->instance) /* proved dead; or not recorded yet */
        return false;
    return !node->fencing && !being_given_up(core, index) && !proof_waits(core, index);
}

/* Counts before it goes out, and also when it does not: some of it may have arrived all the same. */
static struct mst_lease_grant decided(struct mst_core *core, struct node *node, const struct mst_beat *beat, uint32_t lease_ms)
{
    node->lease.count++;
    if (node->lease.decided_ms == 0 || !MST_MUTANT(42))
        node->lease.decided_ms = MAX_OF(core->now_ms, 1);
    node->lease.beat = beat->keeper_beat;
    return (struct mst_lease_grant){.instance = node->instance,
                                    .term = core->meta.term,
                                    .decision = core->meta.decision,
                                    .renewal = tag(core) | (uint32_t)node->lease.count,
                                    .beat = beat->keeper_beat,
                                    .lease_ms = lease_ms,
                                    .strict = lease_ms != 0 && node->conf.watchdog_ms != 0};
}

static void send(struct mst_core *core, unsigned index, const struct mst_beat *beat, uint32_t lease_ms)
{
    struct node *node = &core->nodes[index];
    struct mst_lease_grant grant = decided(core, node, beat, lease_ms);
    int r = core->io.lease(core->io.impl, index, &grant);

    node->lease.next_ms = core->now_ms + (r < 0 ? RENEW_AGAIN_MS : lease_ms == 0 ? CALL_OFF_MS : lease_ms / RENEW_PARTS);
}

void lease_note(struct mst_core *core, unsigned index, const struct mst_beat *beat)
{
    struct node *node = &core->nodes[index];
    bool ours = beat->lease_renewal != 0 && beat->lease_renewal >> 32 == tag(core) >> 32;
    bool bound = ours && beat->lease_strict && beat->watchdog_ms != 0 && beat->watchdog_ms <= node->conf.watchdog_ms;

    if (bound != node->lease.bound && node->conf.watchdog_ms != 0)
        core_log(core, MST_LOG_NOTICE, "node=%s watchdog_ms=%u strict=%d: the end of its lease %s", node->conf.name,
                 beat->watchdog_ms, beat->lease_strict, bound ? "is a proof" : "is none");
    node->lease.bound = bound;
}

void lease_beat(struct mst_core *core, unsigned index, const struct mst_beat *beat)
{
    struct node *node = &core->nodes[index];
    bool wanted = beat->lease_wanted && core->now_ms - node->lease.decided_ms >= RENEW_AGAIN_MS;

    lease_note(core, index, beat);
    if (!core->io.lease || node->link == 0 || !may_have_one(core, index))
        return;
    if (mst_detect_keeper(&node->detect, core->conf.keeper_silent_ms) != MST_LIFE_MOVING || beat->keeper_beat == node->lease.beat)
        return;
    if (core->now_ms < node->lease.next_ms && !wanted)
        return;
    if (core->conf.lease_ms != 0)
        send(core, index, beat, core->conf.lease_ms);
    else if (beat->lease_renewal != 0) /* of an earlier run, which gave leases */
        send(core, index, beat, 0);
}

/* The beat is of an answer that came before now, so it was written before this is decided, as with a READ; and a keeper that hangs answers nothing. */
bool lease_managed(struct mst_core *core, unsigned index, const struct mst_beat *beat, struct mst_lease_grant *ret)
{
    struct node *node = &core->nodes[index];
    uint64_t before_ms;

    if (core->conf.lease_ms == 0 || beat->keeper_beat <= node->lease.beat || !may_have_one(core, index))
        return false;
    before_ms = MST_MUTANT(59) ? node->lease.decided_ms : 0;
    *ret = decided(core, node, beat, core->conf.lease_ms);
    if (before_ms != 0)
        node->lease.decided_ms = before_ms;
    return true;
}

void lease_reset(struct node *node)
{
    node->lease = (struct node_lease){0};
}

bool lease_proves(const struct mst_core *core, unsigned index, uint64_t *ret_left_ms)
{
    const struct node *node = &core->nodes[index];
    uint64_t lease_ms = core->conf.lease_ms;
    uint64_t watchdog_ms = 2 * (uint64_t)node->conf.watchdog_ms;
    uint64_t true_ms = lease_ms + watchdog_ms;
    uint64_t wait_ms = true_ms + (MST_MUTANT(41) ? 0 : true_ms / GRANTER_PARTS) + PROOF_SLACK_MS;
    uint64_t waited_ms = core->now_ms - node->lease.decided_ms;

    *ret_left_ms = 0;
    if (node->conf.watchdog_ms == 0 || lease_ms == 0 || !node->lease.bound || node->lease.decided_ms == 0)
        return false;
    if (waited_ms >= wait_ms)
        return true;
    *ret_left_ms = wait_ms - waited_ms;
    return false;
}
