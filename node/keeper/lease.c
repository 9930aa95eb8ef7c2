#include "node/keeper/lease.h"

#include "base/mutant.h"
#include "shm/publish.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define NS_PER_MS UINT64_C(1000000)

void mst_lease_init(struct mst_lease *lease, uint64_t instance, enum mst_lease_policy policy)
{
    memset(lease, 0, sizeof(*lease));
    lease->instance = instance;
    lease->policy = policy;
}

/* The longer of what two clocks say, so that one which stands still or runs slow does not lengthen a lease. A clock that went back proves
 * nothing: then all the time in the world may have passed. */
static uint64_t passed_ns(const struct mst_lease_time *since, const struct mst_lease_time *now)
{
    uint64_t boot = now->boot_ns - since->boot_ns, raw = now->raw_ns - since->raw_ns;

    if (now->boot_ns < since->boot_ns || now->raw_ns < since->raw_ns)
        return UINT64_MAX;
    return boot > raw || MST_MUTANT(39) ? boot : raw;
}

/* --- beats --- */

void mst_lease_beat(struct mst_lease *lease, uint64_t beat, const struct mst_lease_time *now)
{
    struct mst_lease_mark *mark = &lease->marks[beat / MST_LEASE_MARK_BEATS % MST_LEASE_MARKS];

    mst_lease_wake(lease, now);
    lease->beat = beat;
    lease->beat_when = *now;
    /* The first beat of each sixteen gives the time of all of them: earlier than true, which is the safe side. After a pause that would be
     * too early by all of it: another begins. */
    if (mark->beat == 0 || mark->beat / MST_LEASE_MARK_BEATS != beat / MST_LEASE_MARK_BEATS || mark->beat < lease->wake_beat)
        *mark = (struct mst_lease_mark){.beat = beat, .when = *now};
}

static const struct mst_lease_mark *mark_of(const struct mst_lease *lease, uint64_t beat)
{
    const struct mst_lease_mark *mark = &lease->marks[beat / MST_LEASE_MARK_BEATS % MST_LEASE_MARKS];

    if (mark->beat == 0 || mark->beat > beat || mark->beat / MST_LEASE_MARK_BEATS != beat / MST_LEASE_MARK_BEATS)
        return NULL;
    return mark;
}

bool mst_lease_wake(struct mst_lease *lease, const struct mst_lease_time *now)
{
    uint64_t gap = passed_ns(&lease->beat_when, now);

    if (lease->beat == 0 || gap <= MST_LEASE_PAUSE_MS * NS_PER_MS || lease->wake_beat == lease->beat + 1 || MST_MUTANT(40))
        return false;
    lease->wakes++;
    lease->wake_beat = lease->beat + 1; /* the first that is written after the pause */
    lease->paused_ns = gap;
    lease->stale = lease->given;
    return true;
}

void mst_lease_welcomed(struct mst_lease *lease, uint64_t wakes_at_hello)
{
    if (wakes_at_hello == lease->wakes)
        lease->stale = false;
}

/* --- renewals --- */

static int check_sense(const struct mst_lease *lease, const struct mst_lease_line *line, struct mst_why *why)
{
    if (line->version != MST_LEASE_VERSION)
        return mst_why_set(why, -EPROTO, "lease of version %u, this keeper reads version %u", line->version, MST_LEASE_VERSION);
    if (line->lease_ms != 0 && (line->lease_ms < MST_LEASE_MS_MIN || line->lease_ms > MST_LEASE_MS_MAX))
        return mst_why_set(why, -EPROTO, "lease of %u ms, allowed 0 and %u..%u", line->lease_ms, MST_LEASE_MS_MIN,
                           MST_LEASE_MS_MAX);
    if (!line->term || !line->coordinator || !line->renewal)
        return mst_why_set(why, -EPROTO, "lease without term, coordinator or number");
    if (line->beat == 0 || line->beat > lease->beat)
        return mst_why_set(why, -EPROTO, "lease for beat %" PRIu64 ", the newest is %" PRIu64, line->beat, lease->beat);
    return 0;
}

static int check_age(const struct mst_lease *lease, const struct mst_lease_line *line, uint64_t min_term, struct mst_why *why)
{
    if (line->instance != lease->instance)
        return mst_why_set(why, -ESTALE, "lease for keeper instance %016" PRIx64, line->instance);
    if (line->term < min_term || line->term < lease->term)
        return mst_why_set(why, -ESTALE, "lease of term %" PRIu64 ", term %" PRIu64 " was seen before", line->term,
                           min_term > lease->term ? min_term : lease->term);
    if (line->term == lease->term && line->coordinator != lease->coordinator)
        return mst_why_set(why, -ESTALE, "lease of term %" PRIu64 " by coordinator %016" PRIx64 ", the term is %016" PRIx64 "'s",
                           line->term, line->coordinator, lease->coordinator);
    if (line->term == lease->term && line->renewal < lease->renewal)
        return mst_why_set(why, -ESTALE, "renewal %016" PRIx64 " is older than %016" PRIx64, line->renewal, lease->renewal);
    return 0;
}

int mst_lease_take(struct mst_lease *lease, const struct mst_lease_line *line, uint64_t min_term, struct mst_why *why)
{
    const struct mst_lease_mark *mark;
    bool first;
    int r;

    if (line->crc32c != mst_crc32c(line, offsetof(struct mst_lease_line, crc32c)))
        return -EBADMSG;
    r = check_age(lease, line, min_term, why);
    if (r < 0)
        return r;
    if (line->term == lease->term && line->renewal == lease->renewal)
        return 0;
    r = check_sense(lease, line, why);
    if (r < 0)
        return r;
    mark = mark_of(lease, line->beat);
    if (!mark)
        return mst_why_set(why, -ESTALE, "lease for beat %" PRIu64 ", too long ago to know when that was (now %" PRIu64 ")",
                           line->beat, lease->beat);
    first = !lease->given;
    lease->given = line->lease_ms != 0;
    lease->strict = lease->given && (line->flags & MST_LEASE_STRICT);
    lease->lease_ms = line->lease_ms;
    lease->term = line->term;
    lease->coordinator = line->coordinator;
    lease->renewal = line->renewal;
    lease->base = MST_MUTANT(38) ? lease->beat_when : mark->when;
    if (!lease->given || line->beat >= lease->wake_beat)
        lease->stale = false;
    else if (first)
        lease->stale = true; /* it was on its way while we stood still: only now is there somebody who could say more */
    return 1;
}

/* --- judging --- */

static uint64_t good_for_ns(const struct mst_lease *lease)
{
    uint64_t ns = lease->lease_ms * NS_PER_MS;

    return ns - ns / MST_LEASE_DRIFT_DIVISOR - MST_LEASE_STOP_MS * NS_PER_MS;
}

uint64_t mst_lease_left_ms(const struct mst_lease *lease, const struct mst_lease_time *now)
{
    uint64_t passed = passed_ns(&lease->base, now), good = good_for_ns(lease);

    return passed >= good ? 0 : (good - passed) / NS_PER_MS;
}

/* What a lease that has run out means. The first row that fits; ANY fits all. A coordinator that is gone is no reason to stop anything: losing
 * it stops decisions, not VMs. Only a node that neither it nor any other node answers is likely to be the one that is cut off. */
enum { NO, YES, ANY };
static const struct lost_row {
    uint8_t strict, run_on, control, peers, moving;
    enum mst_lease_verdict verdict;
    const char *why;
} lost_rows[] = {
    {YES, ANY, ANY, ANY, ANY, MST_LEASE_STOP, "the lease has run out, and the coordinator counts that as proof"},
    {NO, YES, ANY, ANY, ANY, MST_LEASE_RUN_ON, "the lease has run out; on-lease-lost says run-on"},
    {NO, NO, YES, ANY, ANY, MST_LEASE_RUN_ON,
     "the lease has run out, but a coordinator is connected: it can say what is to stop"},
    {NO, NO, NO, NO, ANY, MST_LEASE_RUN_ON, "the lease has run out; no other node is known that could have taken over"},
    {NO, NO, NO, YES, YES, MST_LEASE_RUN_ON,
     "the lease has run out, but other nodes are seen: the coordinator is missing, not we"},
    {NO, NO, NO, YES, NO, MST_LEASE_STOP,
     "the lease has run out, and neither a coordinator nor any other node is seen: we are cut off"},
};

static bool fits(uint8_t cell, bool value)
{
    return cell == ANY || (cell == YES) == value;
}

enum mst_lease_verdict mst_lease_judge(const struct mst_lease *lease, const struct mst_lease_time *now,
                                       const struct mst_lease_paths *paths, const char **ret_why)
{
    const struct lost_row *row = lost_rows;
    const char *ignored;
    uint64_t passed = passed_ns(&lease->base, now);

    ret_why = ret_why ? ret_why : &ignored;
    *ret_why = "";
    if (!lease->given)
        return MST_LEASE_NONE;
    if (passed < good_for_ns(lease)) {
        if (passed < lease->lease_ms * NS_PER_MS / 2)
            return MST_LEASE_HELD;
        *ret_why = "half of the lease has passed without a renewal";
        return MST_LEASE_LATE;
    }
    while (!(fits(row->strict, lease->strict) && fits(row->run_on, lease->policy == MST_LEASE_LOST_RUN_ON) &&
             fits(row->control, paths->control) && fits(row->peers, paths->peers > 0) &&
             fits(row->moving, paths->peers_moving > 0)))
        row++; /* the rows cover every case: tests/unit/keeper/lease.c */
    *ret_why = row->why;
    return row->verdict;
}

const char *mst_lease_verdict_name(enum mst_lease_verdict verdict)
{
    static const char *const names[] = {"none", "held", "late", "run-on", "stop"};

    return (unsigned)verdict < sizeof(names) / sizeof(names[0]) ? names[verdict] : "?";
}
