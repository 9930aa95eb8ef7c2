#ifndef MST_KEEPER_LEASE_H
#define MST_KEEPER_LEASE_H

#include "base/err.h"
#include "shm/layout.h"

#include <stdbool.h>
#include <stdint.h>

/* Lease: may the VMs of this node go on although nobody has spoken to it for a while. Pure: no clock, no I/O, no allocation, so that the same
 * code runs in a simulator. One thread.
 *
 * Safety does not rest on it: a takeover waits for a proof that the VMs have stopped. It makes a node that is cut off from everybody stop them
 * early, and it is a proof only where the operator has put a hardware watchdog behind it (a strict lease).
 *
 * When does it end? Times in the order in which they happen; the clocks of the two machines are never compared.
 *
 *   holder (keeper)                                                granter (coordinator)
 *   t_base    writes beat b                                        .
 *             .                                                    t_decide  has read b, decides to renew, sends {b, L}
 *   t_take    finds {b, L}, and looks up when it wrote b           .         (any delay here costs the holder, never the granter)
 *   t_stop    = t_base + L (1 - rho) - stop: kills its VMs         .
 *   t_end     = t_base + L: none of them runs any more             .
 *             strict: the watchdog is not touched from t_stop on   .
 *   t_reset   the watchdog has reset the machine, also one whose   t_proof   = t_decide + L (1 + g) + 2 T (1 + g) + 1 s
 *             keeper hangs                                                   (coordinator/core/lease.c)
 *
 *   quantity  value        what it pays for
 *   L         lease-ms     5 s to 300 s
 *   rho       1/1000       how much slower than true time a clock of the holder may run. Quartz is within 1/10000. CLOCK_BOOTTIME follows
 *                          adjtimex, up to 1/10 off, and counts while suspended; CLOCK_MONOTONIC_RAW follows nothing, and does not count
 *                          then: the holder takes whichever says that more time has passed.
 *   stop      1000 ms      from the decision to stop until no vCPU runs: one turn of the loop (20 ms), SIGKILL to the whole cgroup; what does
 *                          not die by then is the watchdog's
 *   g         1/8          how much faster a clock of the granter may run: adjtimex's 1/10, and rho of both sides
 *   T         watchdog     twice: a keeper that was stopped between looking at its lease and touching the watchdog touches it up to T late
 *   t_base    beat         at or before t_decide, by the order of write and read alone. Known to MARK_BEATS beats (320 ms), rounded down.
 *   pause     2000 ms      a longer gap between two turns of the keeper's loop: it asks for a renewal before it does anything that others see
 *
 * What no clock here sees: a node that is a VM itself, stopped by its hypervisor together with its clocks. Its lease stands still with it.
 * Nothing is built on leases for it: no watchdog of it counts as proof, and it is fenced by power as any other. */

#define MST_LEASE_DRIFT_DIVISOR 1000u /* rho = 1 / this */
#define MST_LEASE_STOP_MS       1000u
#define MST_LEASE_PAUSE_MS      2000u
#define MST_LEASE_MARK_BEATS    16u /* one time is kept for so many beats */
#define MST_LEASE_MARKS         1024u
#define MST_LEASE_PEER_MS       3000u /* a peer whose counter has not moved for so long counts as not seen */
#define MST_LEASE_PEER_READ_MS  250u  /* so often is it read while that matters */
static_assert(MST_LEASE_MS_MIN / 2 + MST_LEASE_MS_MIN / MST_LEASE_DRIFT_DIVISOR + MST_LEASE_STOP_MS + 4 * MST_LEASE_PEER_READ_MS <
                  MST_LEASE_MS_MIN,
              "from the half of the shortest lease, when peers begin to be read, to its end: four readings");
static_assert(MST_LEASE_STOP_MS + MST_LEASE_PAUSE_MS < MST_LEASE_MS_MIN / 4 * 3,
              "a pause that is not asked about ends before a lease renewed at its quarter does");

struct mst_lease_time { /* both of the same moment */
    uint64_t boot_ns;   /* CLOCK_BOOTTIME */
    uint64_t raw_ns;    /* CLOCK_MONOTONIC_RAW */
};

enum mst_lease_policy {
    MST_LEASE_LOST_STOP = 0, /* VMs of a node that sees nobody any more end with its lease */
    MST_LEASE_LOST_RUN_ON,   /* they run on, unless the lease is strict */
};

/* What the keeper sees of the others. */
struct mst_lease_paths {
    bool control;   /* a coordinator has welcomed us and the link is up */
    unsigned peers; /* other nodes that a coordinator named last */
    unsigned
        peers_moving; /* of these: two successful READs of its beat line, the later within MST_LEASE_PEER_MS, showed it moving */
};

enum mst_lease_verdict {
    MST_LEASE_NONE, /* never had one, or leases were called off: nothing depends on it */
    MST_LEASE_HELD,
    MST_LEASE_LATE,   /* held, but half of it has passed without a renewal: look who else is there */
    MST_LEASE_RUN_ON, /* run out, and that is no reason to stop: why says it */
    MST_LEASE_STOP,   /* run out: no VM may run, none may be started */
};

struct mst_lease_mark {
    uint64_t beat; /* 0: none */
    struct mst_lease_time when;
};

struct mst_lease { /* zero it, then mst_lease_init; fields are for reading only */
    uint64_t instance;
    enum mst_lease_policy policy;
    /* the lease */
    bool given;
    bool strict;
    uint32_t lease_ms;
    uint64_t term, coordinator, renewal;
    struct mst_lease_time base;
    /* our own beats */
    uint64_t beat; /* newest */
    struct mst_lease_time beat_when;
    struct mst_lease_mark marks[MST_LEASE_MARKS];
    /* pauses */
    bool stale;
    uint64_t wakes; /* pauses seen */
    uint64_t wake_beat;
    uint64_t paused_ns; /* how long the last one was */
};

void mst_lease_init(struct mst_lease *lease, uint64_t instance, enum mst_lease_policy policy);

/* Beat is about to be published for the first time (beats grow by 1). The same as mst_lease_wake before it. */
void mst_lease_beat(struct mst_lease *lease, uint64_t beat, const struct mst_lease_time *now);

/* Call it when the loop turns, before anything is done that others see. True: the keeper stood still for longer than MST_LEASE_PAUSE_MS since
 * its last beat and had not noticed before. If it has a lease, it is stale from then on: until a renewal that was decided after a beat
 * written after the pause, a Welcome to a Hello sent after it, or the end of all leases. Without a lease nobody could say more; a first
 * one that is about a beat of before the pause is stale as well. */
bool mst_lease_wake(struct mst_lease *lease, const struct mst_lease_time *now);

/* line: a private copy of a line of the grant area. 1 the lease is renewed (or given, or called off); 0 this very renewal was taken before;
 * -EBADMSG never written, or torn: look again at the next turn; -ESTALE with why: of another keeper instance, an older term (min_term: the
 * highest seen by the guard), a coordinator that is not the term's, or about a beat of too long ago; -EPROTO with why: says what cannot be. Nothing
 * changes on failure. */
int mst_lease_take(struct mst_lease *lease, const struct mst_lease_line *line, uint64_t min_term, struct mst_why *why);

/* A coordinator welcomed the Hello that was sent when lease->wakes was wakes_at_hello. */
void mst_lease_welcomed(struct mst_lease *lease, uint64_t wakes_at_hello);

/* What follows at this moment. *ret_why (may be NULL): a sentence, static. */
enum mst_lease_verdict mst_lease_judge(const struct mst_lease *lease, const struct mst_lease_time *now,
                                       const struct mst_lease_paths *paths, const char **ret_why);

/* Milliseconds until the VMs have to be stopped, 0: now. Meaningless without a lease. */
uint64_t mst_lease_left_ms(const struct mst_lease *lease, const struct mst_lease_time *now);
const char *mst_lease_verdict_name(enum mst_lease_verdict verdict);

#endif
