#include "node/keeper/lease.h"
#include "tests/sim/coord.h"
#include "tests/sim/etcd.h"
#include "tests/sim/oracle.h"
#include "tests/sim/points.h"
#include "tests/sim/seam/seam_calls.h"

#include <stdlib.h>

/* For targets over the simulator's seam: no checker watches (a peer that lies breaks the invariants of a cluster, and may), no process dies at a
 * point, no agent is written by hand. A target that plays the agent says so itself (fuzz_keeper.c). */

struct sim_points sim_points;
void (*sim_on_lease)(unsigned node);

bool sim_point(const char *name)
{
    (void)name;
    return false;
}

/* The product's own points. */
int mst_fault_hit(const char *name);
int mst_fault_hit(const char *name)
{
    (void)name;
    return 0;
}

void oracle_breach(const char *invariant, const char *fmt, ...)
{
    (void)invariant, (void)fmt;
}

void oracle_write(const struct sim_host *to, const uint8_t *at, unsigned from, uint64_t life)
{
    (void)to, (void)at, (void)from, (void)life;
}

void oracle_posted(const struct sim_host *host, const struct mst_link *link)
{
    (void)host, (void)link;
}

void oracle_left(const struct sim_task *task, uint64_t tick)
{
    (void)task, (void)tick;
}

void oracle_taken(const struct mst_mlog_ack *ack, bool taken)
{
    (void)ack, (void)taken;
}

void oracle_keeper_up(struct sim_host *host, uint64_t instance)
{
    (void)host, (void)instance;
}

void oracle_keeper_down(struct sim_host *host)
{
    (void)host;
}

void oracle_host_down(struct sim_host *host)
{
    (void)host;
}

void oracle_qemu_new(struct sim_task *task)
{
    (void)task;
}

void oracle_qemu_dead(struct sim_task *task)
{
    (void)task;
}

void oracle_vcpu_on(struct sim_task *task)
{
    (void)task;
}

void oracle_vcpu_off(struct sim_task *task)
{
    (void)task;
}

void oracle_panicked(const char *vm)
{
    (void)vm;
}

void oracle_unmap(struct sim_host *host, const struct mst_areas *areas, int kind)
{
    (void)host, (void)areas, (void)kind;
}

void oracle_published(const void *head_and_body, size_t bytes)
{
    (void)head_and_body, (void)bytes;
}

void oracle_picked(const void *head_and_body, size_t bytes, const char *what)
{
    (void)head_and_body, (void)bytes, (void)what;
}

void oracle_event(const struct sim_host *host, const struct mst_event *event)
{
    (void)host, (void)event;
}

int mst_lease_take(struct mst_lease *lease, const struct mst_lease_line *line, uint64_t min_term, struct mst_why *why)
{
    return product_lease_take(lease, line, min_term, why);
}

void mst_lease_beat(struct mst_lease *lease, uint64_t beat, const struct mst_lease_time *now)
{
    product_lease_beat(lease, beat, now);
}

/* No coordinator of several, which alone ends itself, and no etcd. */
void sim_coord_ended(void)
{
    abort();
}

void sim_etcd_begin(void)
{
}

/* --- what tests/sim/main.c and base/log.c would bring --- */

extern unsigned mst_mutant;
unsigned mst_mutant; /* the seeded bug that is awake (base/mutant.h): none, but in the test of the harness */

__attribute__((constructor)) static void mutant_wake(void)
{
    const char *number = getenv("MST_FUZZ_MUTANT");

    if (number)
        mst_mutant = (unsigned)strtoul(number, NULL, 10);
}

void mst_log_level_set(enum mst_log_level level)
{
    (void)level; /* the log is the simulator's: a story, or nothing */
}
