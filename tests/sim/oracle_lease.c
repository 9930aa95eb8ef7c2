#include "tests/sim/oracle.h"

#include "node/keeper/lease.h"
#include "tests/sim/seam/seam_calls.h"

#include <inttypes.h>
#include <string.h>

/* I9, and the terms that nodes have seen (I10), by true time: what no clock in the cluster shows. node/keeper/lease.h has the arithmetic.
 *     t_base   when the beat was written that a renewal names; no VM of a strict lease runs past t_base + L, unless its keeper is hindered: then the
 *              watchdog ends it by t_base + L + 2 T
 *     t_proof  no coordinator counts the end of it as proof before that */

#define BEATS_KEPT 4096u
#define PAUSE_NS   (2500 * SIM_MS) /* longer than a keeper may stand still unnoticed */

static struct onode {
    struct {
        uint64_t beat, ns;
    } beats[BEATS_KEPT];
    uint64_t life; /* of the keeper all of this is about */
    uint64_t term; /* newest that it has seen */
    bool given, strict;
    uint64_t base_ns, end_ns; /* of the lease it took last */
    uint64_t instance;
    uint64_t welcomed_ns;
} nodes[SIM_NODES_MAX];

void oracle_lease_begin(void)
{
    memset(nodes, 0, sizeof(nodes));
}

static struct onode *node_of(const struct sim_host *host)
{
    struct onode *node = &nodes[host->index];

    if (node->life != host->keeper.life) {
        memset(node, 0, sizeof(*node));
        node->life = host->keeper.life;
    }
    return node;
}

static uint64_t dog_ns(const struct sim_host *host)
{
    return host->conf.watchdog ? 2 * host->conf.watchdog->timeout_s * SIM_S : 0;
}

static const struct sim_task *living_on(const struct sim_host *host)
{
    for (const struct sim_task *task = host->tasks; task; task = task->next) {
        if (task->alive && !task->is_agent && !task->waits)
            return task;
    }
    return NULL;
}

/* --- terms --- */

static void saw_term(const struct sim_host *host, uint64_t term, const char *what)
{
    struct onode *node = node_of(host);

    if (term < node->term)
        oracle_breach("I10", "%s obeys %s of term %" PRIu64 " after it has seen term %" PRIu64, host->name, what, term,
                      node->term);
    else
        node->term = term;
}

void oracle_event(const struct sim_host *host, const struct mst_event *event)
{
    if (event->kind == MST_EV_ORDER_RECEIVED)
        saw_term(host, event->term, event->what);
    if (event->kind == MST_EV_STANDBY_USED)
        oracle_standby_used(host, event->vm, event->epoch);
    if (event->kind != MST_EV_HELLO_WELCOMED)
        return;
    saw_term(host, event->term, "the welcome");
    node_of(host)->welcomed_ns = K.now_ns;
}

/* --- leases --- */

struct lease_end {
    const struct sim_host *host;
    uint64_t life, end_ns;
    uint32_t boot;
    bool last; /* the watchdog's time is over as well */
};

static bool hindered(const struct sim_host *host)
{
    const struct sim_proc *keeper = &host->keeper;

    if (keeper->stopped || (keeper->continued_ns != 0 && K.now_ns - keeper->continued_ns < SIM_S) || host->stuck_qemu)
        return true;
    for (const struct sim_task *task = host->tasks; task; task = task->next) {
        if (task->alive && task->unkillable_ns > K.now_ns)
            return true;
    }
    return false;
}

static void end_event(void *arg)
{
    struct lease_end *end = arg;
    const struct sim_host *host = end->host;
    const struct onode *node = &nodes[host->index];
    const struct sim_task *task = living_on(host);

    if (!task || !host->powered || host->boot != end->boot || node->life != end->life || node->end_ns != end->end_ns)
        return; /* nothing runs, or by another lease */
    if (host->keeper.life != end->life)
        return; /* the next keeper empties the cgroups before anything else */
    if (end->last) {
        oracle_breach("I9", "%s lives on %s %" PRIu64 " ms after the end of its strict lease, and no watchdog has ended it",
                      task->vm, host->name, (K.now_ns - end->end_ns) / SIM_MS);
        return;
    }
    if (!hindered(host)) {
        oracle_breach("I9", "%s lives on %s past the end of its strict lease", task->vm, host->name);
        return;
    }
    end->last = true;
    sim_at(NULL, dog_ns(host) + 10 * SIM_MS, end_event, end);
}

static void taken(struct sim_host *host, const struct mst_lease_line *line)
{
    struct onode *node = node_of(host);
    struct lease_end *end;

    saw_term(host, line->term, "a lease");
    node->given = line->lease_ms != 0;
    node->strict = node->given && (line->flags & MST_LEASE_STRICT);
    node->base_ns = node->beats[line->beat % BEATS_KEPT].beat == line->beat ? node->beats[line->beat % BEATS_KEPT].ns : 0;
    node->end_ns = node->base_ns + line->lease_ms * SIM_MS;
    node->instance = line->instance;
    if (!node->strict)
        return;
    end = sim_keep(sizeof(*end));
    *end = (struct lease_end){.host = host, .life = node->life, .end_ns = node->end_ns, .boot = host->boot};
    sim_at(NULL, node->end_ns > K.now_ns ? node->end_ns - K.now_ns : 0, end_event, end);
}

int mst_lease_take(struct mst_lease *lease, const struct mst_lease_line *line, uint64_t min_term, struct mst_why *why)
{
    int r = product_lease_take(lease, line, min_term, why);

    if (r == 1 && !sim_muted())
        taken(sim_here(), line);
    return r;
}

void mst_lease_beat(struct mst_lease *lease, uint64_t beat, const struct mst_lease_time *now)
{
    struct onode *node = node_of(sim_here());

    node->beats[beat % BEATS_KEPT].beat = beat;
    node->beats[beat % BEATS_KEPT].ns = K.now_ns;
    product_lease_beat(lease, beat, now);
}

/* The end of a lease is recorded as the proof that nothing runs there. */
void oracle_lease_proof(const struct sim_host *host, uint64_t instance)
{
    const struct onode *node = &nodes[host->index];
    const struct sim_task *task = living_on(host);

    oracle_counts.lease_proofs++;
    if (node->instance != instance)
        return; /* another keeper runs there, or it never took one */
    if (K.now_ns < node->end_ns + dog_ns(host))
        oracle_breach("I9", "the end of the lease of %s counts as proof %" PRIu64 " ms before it is one", host->name,
                      (node->end_ns + dog_ns(host) - K.now_ns) / SIM_MS);
    else if (task && host->keeper.life == node->life)
        oracle_breach("I9", "the end of the lease of %s counts as proof while %s lives there", host->name, task->vm);
}

/* What a keeper begins after a pause waits until a coordinator has seen it again. */
void oracle_lease_start(const struct sim_host *host, const char *vm, uint64_t epoch)
{
    const struct onode *node = node_of(host);
    const struct sim_proc *keeper = &host->keeper;

    if (!node->given || keeper->continued_ns == 0 || keeper->continued_ns - keeper->stopped_ns < PAUSE_NS)
        return;
    if (node->base_ns < keeper->continued_ns && node->welcomed_ns < keeper->continued_ns)
        oracle_breach("I9", "%s starts %s epoch %" PRIu64 " after it stood still, and no coordinator has seen it since",
                      host->name, vm, epoch);
}
