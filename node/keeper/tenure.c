#include "node/keeper/keeper.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/mutant.h"
#include "node/keeper/lease.h"
#include "node/keeper/watchdog.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Whether what runs here may go on: reads the grant area, looks for peers when it matters, stops the VMs when their lease has run out, and touches
 * the watchdog. What follows from what is node/keeper/lease.h, which does nothing but say it. */

#define FENCE_AGAIN_MS 1000 /* VMs that did not end are killed again */
#define PROBE_MS                                                                                                                 \
    1000 /* a control link has credit for 16 messages: enough for half a lease of 30 s even when the coordinator hangs */

#define PROBE_IDLE_MS 10000 /* without a lease: there are none, or the coordinator vanished before it gave one */

struct mst_tenure {
    struct mst_keeper *keeper;
    struct mst_lease lease;
    enum mst_lease_verdict verdict;
    uint64_t fence_ms, peers_ms, probe_ms;
    bool settled, fencing;
    int refused[MST_LEASE_LINES];  /* error of the last line that was not taken; one log line each is enough */
    struct mst_watchdog *watchdog; /* NULL: none */
    bool counts;                   /* as proof */
    bool withheld;                 /* the watchdog is not touched, which was logged */
};

static struct mst_lease_time lease_now(void)
{
    return (struct mst_lease_time){.boot_ns = mst_now_ns(), .raw_ns = mst_raw_ns()};
}

static unsigned vms_living(const struct mst_keeper *k)
{
    unsigned i, n = 0;

    for (i = 0; i < MST_VMS_PER_NODE; i++)
        n += k->vms[i].used && mst_guard_process(k->guard, k->vms[i].name) != 0;
    return n;
}

/* --- the grant area --- */

static void line_take(struct mst_tenure *t, unsigned index)
{
    struct mst_keeper *k = t->keeper;
    struct mst_lease_line line;
    struct mst_why why = {0};
    bool had = t->lease.given;
    int r;

    /* A private copy, whatever the other side stores meanwhile; the sum decides. */
    memcpy(&line, &k->grants->lease[index], sizeof(line));
    r = mst_lease_take(&t->lease, &line, mst_guard_term(k->guard), &why);
    if (r == 1) {
        MST_POINT("lease.taken");
        mst_guard_welcome(k->guard, line.term, line.coordinator);
        mst_guard_decided_low(k->guard, line.term, line.decision);
        if (had != t->lease.given)
            log_notice("lease of %u ms%s by coordinator=%u term=%" PRIu64 "%s", line.lease_ms, t->lease.strict ? ", strict," : "",
                       line.coordinator_id, line.term, t->lease.given ? "" : ": there are no leases any more");
    } else if (r < 0 && r != -EBADMSG && r != t->refused[index]) {
        log_notice("line %u of the grant area is not taken: %s", index, why.text);
    }
    t->refused[index] = r == -EBADMSG ? t->refused[index] : r;
}

/* --- the end --- */

static void fence_over(void *arg, int err)
{
    struct mst_tenure *t = arg;

    t->fencing = false;
    if (err == 0)
        log_notice("lease: no VM runs here any more");
}

static void vms_stop(struct mst_tenure *t, uint64_t now_ms, const char *why)
{
    if (t->fencing || now_ms - t->fence_ms < FENCE_AGAIN_MS)
        return;
    t->fence_ms = now_ms;
    t->fencing = true;
    if (mst_fence_own(t->keeper, why, fence_over, t) <= 0)
        t->fencing = false; /* nothing to wait for, or no memory: again in a second */
}

static void verdict_tell(struct mst_tenure *t, enum mst_lease_verdict verdict, const char *why)
{
    static const enum mst_log_level levels[] = {[MST_LEASE_NONE] = MST_LOG_NOTICE,
                                                [MST_LEASE_HELD] = MST_LOG_INFO,
                                                [MST_LEASE_LATE] = MST_LOG_INFO,
                                                [MST_LEASE_RUN_ON] = MST_LOG_WARNING,
                                                [MST_LEASE_STOP] = MST_LOG_ERROR};
    bool lost = t->verdict == MST_LEASE_RUN_ON || t->verdict == MST_LEASE_STOP;

    mst_log(lost ? MST_LOG_NOTICE : levels[verdict], "lease %s -> %s%s%s", mst_lease_verdict_name(t->verdict),
            mst_lease_verdict_name(verdict), why[0] ? ": " : "", why);
    t->verdict = verdict;
}

/* --- the watchdog --- */

/* It is touched unless the VMs had to stop and do not: then the machine ends with them. */
static void watchdog_touch(struct mst_tenure *t)
{
    bool withhold = t->verdict == MST_LEASE_STOP && vms_living(t->keeper) > 0 && !MST_MUTANT(43);
    int r;

    if (!t->watchdog)
        return;
    if (withhold && !t->withheld)
        log_error("the watchdog is not touched until no VM runs here: it resets this machine in %u s",
                  mst_watchdog_timeout_s(t->watchdog));
    t->withheld = withhold;
    r = withhold ? 0 : mst_watchdog_touch(t->watchdog);
    if (r < 0)
        log_error("the watchdog cannot be touched: %s", strerror(-r));
}

static void watchdog_open(struct mst_tenure *t)
{
    const struct mst_watchdog_conf *conf = t->keeper->conf->watchdog;
    struct mst_why why = {0};
    bool soft;
    int r;

    if (!conf)
        return;
    r = mst_watchdog_open(conf->device, conf->timeout_s, &t->watchdog, &why);
    if (r < 0) {
        log_error("watchdog not armed, so no coordinator will count it as proof: %s", why.text[0] ? why.text : strerror(-r));
        return;
    }
    soft = mst_watchdog_is_software(t->watchdog);
    t->counts = !soft || strcmp(conf->kind, "softdog") == 0;
    log_notice("watchdog %s (%s) armed with %u s%s", conf->device, mst_watchdog_identity(t->watchdog),
               mst_watchdog_timeout_s(t->watchdog),
               t->counts ? "" : "; it is no hardware and cannot fire in a kernel that hangs: it does not count as proof");
}

/* --- looking --- */

static void look(struct mst_tenure *t, const struct mst_lease_time *now)
{
    struct mst_keeper *k = t->keeper;
    uint64_t now_ms = now->boot_ns / MST_NS_PER_MS;
    struct mst_lease_paths paths = {.control = mst_controls_welcomed(k)};
    enum mst_lease_verdict verdict;
    bool settled;
    const char *why;
    unsigned i;

    for (i = 0; i < MST_LEASE_LINES; i++) {
        const struct mst_lease_line *line = &k->grants->lease[i];

        if (line->version != 0 || line->crc32c != 0) /* most were never written: no copy and no sum of them at every beat */
            line_take(t, i);
    }
    mst_peers_seen(k, now_ms, &paths.peers, &paths.peers_moving);
    verdict = mst_lease_judge(&t->lease, now, &paths, &why);
    if (verdict != t->verdict)
        verdict_tell(t, verdict, why);
    if (verdict >= MST_LEASE_LATE && now_ms - t->peers_ms >= MST_LEASE_PEER_READ_MS) {
        t->peers_ms = now_ms;
        mst_peers_read(k);
    }
    if (verdict != MST_LEASE_HELD && now_ms - t->probe_ms >= (verdict == MST_LEASE_NONE ? PROBE_IDLE_MS : PROBE_MS)) {
        t->probe_ms = now_ms;
        mst_controls_probe(k);
    }
    if (verdict == MST_LEASE_STOP)
        vms_stop(t, now_ms, why);
    settled = !t->lease.stale && verdict != MST_LEASE_STOP;
    if (settled == t->settled)
        return;
    t->settled = settled;
    if (settled) {
        mst_relay_go(k);
        mst_mirrors_go(k);
    }
}

static void woken(struct mst_tenure *t)
{
    log_warning("stood still for %" PRIu64 " ms%s", t->lease.paused_ns / MST_NS_PER_MS,
                t->lease.stale ? ": nothing is started or let out before a coordinator has seen this node again" : "");
    t->settled = t->settled && !t->lease.stale;
    mst_peers_forget_beats(t->keeper); /* what they showed before it proves nothing now */
}

void mst_tenure_beat(struct mst_keeper *k)
{
    struct mst_lease_time now = lease_now();
    struct mst_tenure *t = k->tenure;

    if (mst_lease_wake(&t->lease, &now))
        woken(t);
    mst_lease_beat(&t->lease, k->beat, &now);
    look(t, &now);
    watchdog_touch(t);
}

bool mst_tenure_settled(struct mst_keeper *k, struct mst_why *why)
{
    struct mst_lease_time now = lease_now();
    struct mst_tenure *t = k->tenure;
    bool woke = mst_lease_wake(&t->lease, &now);

    if (woke)
        woken(t);
    /* The lease may have run out since the last beat. */
    if (woke || (t->lease.given && t->verdict <= MST_LEASE_LATE && mst_lease_left_ms(&t->lease, &now) == 0))
        look(t, &now);
    if (!t->settled)
        mst_why_set(why, -ESTALE, "%s",
                    t->verdict == MST_LEASE_STOP ? "the lease of this node has run out"
                                                 : "this node stood still, and no coordinator has seen it again yet");
    return t->settled;
}

bool mst_tenure_holds_back(const struct mst_keeper *k)
{
    return !k->tenure->settled;
}

uint64_t mst_tenure_wakes(const struct mst_keeper *k)
{
    return k->tenure->lease.wakes;
}

void mst_tenure_welcomed(struct mst_keeper *k, uint64_t wakes_at_hello)
{
    struct mst_lease_time now = lease_now();

    mst_lease_welcomed(&k->tenure->lease, wakes_at_hello);
    look(k->tenure, &now);
}

void mst_tenure_publish(const struct mst_keeper *k, struct mst_beat_line *line)
{
    const struct mst_tenure *t = k->tenure;

    if (!t)
        return; /* at start, before anything can have happened */
    line->lease_renewal = t->lease.given ? t->lease.renewal : 0;
    line->flags = (t->lease.stale ? MST_BEAT_LEASE_WANTED : 0) | (t->lease.strict ? MST_BEAT_LEASE_STRICT : 0);
    if (t->watchdog && t->counts)
        line->flags |= mst_watchdog_timeout_s(t->watchdog) << MST_BEAT_WATCHDOG_SHIFT;
}

int mst_tenure_new(struct mst_keeper *k)
{
    struct mst_tenure *t = calloc(1, sizeof(*t));

    if (!t)
        return -ENOMEM;
    t->keeper = k;
    t->settled = true;
    mst_lease_init(&t->lease, k->instance,
                   strcmp(k->conf->on_lease_lost, "run-on") == 0 ? MST_LEASE_LOST_RUN_ON : MST_LEASE_LOST_STOP);
    watchdog_open(t);
    k->tenure = t;
    return 0;
}

void mst_tenure_free(struct mst_keeper *k)
{
    if (!k->tenure)
        return;
    mst_watchdog_close(k->tenure->watchdog, vms_living(k) == 0);
    free(k->tenure);
    k->tenure = NULL;
}
