#include "node/keeper/lease.h"
#include "shm/publish.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define INSTANCE    UINT64_C(0x1234567890abcdef)
#define COORDINATOR UINT64_C(0xfeedbeef00000001)
#define TERM        7u
#define LEASE_MS    10000u
#define NS          UINT64_C(1000000) /* per millisecond */
#define START_MS    100000u
/* L (1 - rho) - stop */
#define GOOD_MS (LEASE_MS - LEASE_MS / MST_LEASE_DRIFT_DIVISOR - MST_LEASE_STOP_MS)

static struct mst_lease lease;
static struct mst_why why;
static struct mst_lease_time now;
static uint64_t beat;
static uint32_t counter;
static const struct mst_lease_paths connected = {.control = true, .peers = 2, .peers_moving = 2}, cut_off = {.peers = 2};

static void setup(void)
{
    mst_lease_init(&lease, INSTANCE, MST_LEASE_LOST_STOP);
    now = (struct mst_lease_time){.boot_ns = START_MS * NS, .raw_ns = START_MS * NS / 2};
    beat = 0;
    counter = 0;
    why.text[0] = '\0';
}

/* Both clocks go on by so much without a beat. */
static void pass(uint64_t ms)
{
    now.boot_ns += ms * NS;
    now.raw_ns += ms * NS;
}

static void beats_for(uint64_t ms)
{
    for (uint64_t end = now.boot_ns + ms * NS; now.boot_ns < end;) {
        pass(20);
        mst_lease_beat(&lease, ++beat, &now);
    }
}

static struct mst_lease_line line_for(uint64_t seen_beat)
{
    struct mst_lease_line line = {.instance = INSTANCE,
                                  .term = TERM,
                                  .coordinator = COORDINATOR,
                                  .renewal = (COORDINATOR << 32) | ++counter,
                                  .beat = seen_beat,
                                  .lease_ms = LEASE_MS,
                                  .coordinator_id = 1,
                                  .version = MST_LEASE_VERSION};

    return line;
}

static int take(struct mst_lease_line line)
{
    line.crc32c = mst_crc32c(&line, offsetof(struct mst_lease_line, crc32c));
    return mst_lease_take(&lease, &line, 0, &why);
}

static void renew(void)
{
    ck_assert_int_eq(take(line_for(beat)), 1);
}

static enum mst_lease_verdict judge(const struct mst_lease_paths *paths)
{
    return mst_lease_judge(&lease, &now, paths, NULL);
}

/* --- when it ends --- */

START_TEST(nothing_depends_on_a_lease_before_there_was_one)
{
    beats_for(60000);
    ck_assert_int_eq(judge(&cut_off), MST_LEASE_NONE);
    pass(3600000);
    ck_assert_int_eq(judge(&cut_off), MST_LEASE_NONE);
    ck_assert(mst_lease_wake(&lease, &now));
    ck_assert(!lease.stale);
}
END_TEST

START_TEST(a_node_cut_off_stops_a_second_and_the_drift_before_its_lease_ends)
{
    beats_for(640); /* the last beat begins a new mark: its time is known exactly */
    ck_assert_uint_eq(beat % MST_LEASE_MARK_BEATS, 0);
    renew();
    ck_assert_int_eq(judge(&cut_off), MST_LEASE_HELD);
    ck_assert_uint_eq(mst_lease_left_ms(&lease, &now), GOOD_MS);
    pass(LEASE_MS / 2 - 1);
    ck_assert_int_eq(judge(&cut_off), MST_LEASE_HELD);
    pass(1);
    ck_assert_int_eq(judge(&cut_off), MST_LEASE_LATE);
    pass(GOOD_MS - LEASE_MS / 2 - 1);
    ck_assert_int_eq(judge(&cut_off), MST_LEASE_LATE);
    ck_assert_uint_eq(mst_lease_left_ms(&lease, &now), 1);
    pass(1);
    ck_assert_int_eq(judge(&cut_off), MST_LEASE_STOP);
    ck_assert_uint_eq(mst_lease_left_ms(&lease, &now), 0);
}
END_TEST

START_TEST(the_lease_counts_from_when_the_beat_was_written_however_late_the_renewal_comes)
{
    uint64_t seen;

    beats_for(640);
    seen = beat;
    beats_for(6000);
    ck_assert_int_eq(take(line_for(seen)), 1);
    ck_assert_uint_eq(mst_lease_left_ms(&lease, &now), GOOD_MS - 6000);
    beats_for(GOOD_MS - 6000);
    ck_assert_int_eq(judge(&cut_off), MST_LEASE_STOP);
}
END_TEST

START_TEST(the_time_of_any_beat_is_never_taken_for_later_than_it_was)
{
    uint64_t written_ns[2000];

    for (beat = 1; beat < 2000; beat++) {
        pass(20 + beat % 7);
        mst_lease_beat(&lease, beat, &now);
        written_ns[beat] = now.boot_ns;
    }
    beat--;
    for (uint64_t seen = 1; seen < 2000; seen++) {
        ck_assert_int_eq(take(line_for(seen)), 1);
        ck_assert_uint_le(lease.base.boot_ns, written_ns[seen]);
        ck_assert_uint_ge(lease.base.boot_ns + MST_LEASE_MARK_BEATS * 26 * NS, written_ns[seen]);
    }
}
END_TEST

START_TEST(a_renewal_about_a_beat_of_too_long_ago_is_refused)
{
    beats_for(20 * MST_LEASE_MARK_BEATS * (MST_LEASE_MARKS + 2));
    ck_assert_int_eq(take(line_for(5)), -ESTALE);
    ck_assert(!lease.given);
    ck_assert_int_eq(take(line_for(3 * MST_LEASE_MARK_BEATS)), 1); /* the oldest whose time is known */
}
END_TEST

START_TEST(renewals_keep_it_going_and_the_end_of_leases_ends_it)
{
    struct mst_lease_line off;

    for (unsigned i = 0; i < 20; i++) {
        beats_for(LEASE_MS / 4);
        renew();
        ck_assert_int_eq(judge(&cut_off), MST_LEASE_HELD);
    }
    off = line_for(beat);
    off.lease_ms = 0;
    ck_assert_int_eq(take(off), 1);
    pass(3600000);
    ck_assert_int_eq(judge(&cut_off), MST_LEASE_NONE);
}
END_TEST

/* --- clocks --- */

START_TEST(a_clock_that_runs_slow_or_stands_still_does_not_lengthen_it)
{
    /* boot, raw: how much of true time each shows, in thousandths */
    static const struct {
        unsigned boot, raw;
    } clocks[] = {{1000, 1000}, {900, 1000}, {1100, 1000}, {999, 999}, {900, 999}, {1000, 0}, {0, 1000}};

    beats_for(640);
    renew();
    for (uint64_t true_ms = 0; true_ms <= LEASE_MS - MST_LEASE_STOP_MS; true_ms++) {
        struct mst_lease_time seen = {.boot_ns = now.boot_ns + true_ms * clocks[_i].boot * NS / 1000,
                                      .raw_ns = now.raw_ns + true_ms * clocks[_i].raw * NS / 1000};

        if (mst_lease_judge(&lease, &seen, &cut_off, NULL) == MST_LEASE_STOP)
            return; /* in time: what is left pays for the stopping */
    }
    ck_abort_msg("still held when its end is nearer than the stopping takes");
}
END_TEST

START_TEST(a_clock_that_goes_back_ends_it)
{
    struct mst_lease_time back;

    beats_for(640);
    renew();
    back = now;
    back.boot_ns -= 1;
    ck_assert_int_eq(mst_lease_judge(&lease, &back, &cut_off, NULL), MST_LEASE_STOP);
    back = now;
    back.raw_ns -= 1;
    ck_assert_int_eq(mst_lease_judge(&lease, &back, &cut_off, NULL), MST_LEASE_STOP);
}
END_TEST

START_TEST(suspend_counts)
{
    beats_for(640);
    renew();
    now.boot_ns += GOOD_MS * NS; /* raw stood still */
    ck_assert_int_eq(judge(&cut_off), MST_LEASE_STOP);
}
END_TEST

/* --- what running out means --- */

/* The rule in words, against the table, for every case. */
static enum mst_lease_verdict by_rule(bool strict, bool run_on, bool control, bool peers, bool moving)
{
    if (strict)
        return MST_LEASE_STOP;
    if (run_on || control || !peers || moving)
        return MST_LEASE_RUN_ON;
    return MST_LEASE_STOP;
}

START_TEST(only_a_node_that_sees_nobody_of_those_it_knows_stops)
{
    bool strict = _i & 1, run_on = _i & 2, control = _i & 4, peers = _i & 8, moving = _i & 16;
    struct mst_lease_paths paths = {.control = control, .peers = peers ? 3 : 0, .peers_moving = peers && moving ? 1 : 0};
    struct mst_lease_line line;
    const char *text = NULL;

    mst_lease_init(&lease, INSTANCE, run_on ? MST_LEASE_LOST_RUN_ON : MST_LEASE_LOST_STOP);
    beats_for(640);
    line = line_for(beat);
    line.flags = strict ? MST_LEASE_STRICT : 0;
    ck_assert_int_eq(take(line), 1);
    ck_assert_int_eq(mst_lease_judge(&lease, &now, &paths, &text), MST_LEASE_HELD);
    ck_assert_str_eq(text, "");
    beats_for(LEASE_MS);
    ck_assert_int_eq(mst_lease_judge(&lease, &now, &paths, &text), by_rule(strict, run_on, control, peers, moving));
    ck_assert_uint_ge(strlen(text), 20);
}
END_TEST

START_TEST(a_node_that_stopped_may_go_on_once_it_is_renewed)
{
    beats_for(640);
    renew();
    beats_for(LEASE_MS);
    ck_assert_int_eq(judge(&cut_off), MST_LEASE_STOP);
    renew();
    ck_assert_int_eq(judge(&cut_off), MST_LEASE_HELD);
}
END_TEST

START_TEST(strictness_is_that_of_the_newest_renewal)
{
    struct mst_lease_line strict;

    beats_for(640);
    strict = line_for(beat);
    strict.flags = MST_LEASE_STRICT;
    ck_assert_int_eq(take(strict), 1);
    ck_assert(lease.strict);
    renew();
    ck_assert(!lease.strict);
    beats_for(LEASE_MS);
    ck_assert_int_eq(judge(&connected), MST_LEASE_RUN_ON);
}
END_TEST

/* --- pauses --- */

START_TEST(a_pause_makes_it_stale_until_somebody_saw_us_after_it)
{
    uint64_t before;

    beats_for(640);
    renew();
    before = beat;
    pass(MST_LEASE_PAUSE_MS);
    ck_assert(!mst_lease_wake(&lease, &now));
    pass(1);
    ck_assert(mst_lease_wake(&lease, &now));
    ck_assert(lease.stale);
    ck_assert_uint_eq(lease.paused_ns, (MST_LEASE_PAUSE_MS + 1) * NS);
    ck_assert(!mst_lease_wake(&lease, &now)); /* the same pause */
    ck_assert_int_eq(take(line_for(before)), 1);
    ck_assert(lease.stale); /* decided on what was read before the pause */
    mst_lease_beat(&lease, ++beat, &now);
    ck_assert_uint_eq(lease.wakes, 1);
    ck_assert(lease.stale);
    renew();
    ck_assert(!lease.stale);
}
END_TEST

START_TEST(the_first_lease_is_stale_when_it_is_about_a_beat_of_before_a_pause)
{
    uint64_t before;

    beats_for(640);
    before = beat;
    pass(MST_LEASE_PAUSE_MS + 1);
    ck_assert(mst_lease_wake(&lease, &now));
    ck_assert(!lease.stale); /* nobody could say more */
    ck_assert_int_eq(take(line_for(before)), 1);
    ck_assert(lease.stale);
    mst_lease_beat(&lease, ++beat, &now);
    renew();
    ck_assert(!lease.stale);
}
END_TEST

START_TEST(the_beat_itself_notices_a_pause)
{
    beats_for(640);
    renew();
    pass(5000);
    mst_lease_beat(&lease, ++beat, &now);
    ck_assert_uint_eq(lease.wakes, 1);
    ck_assert(lease.stale);
}
END_TEST

START_TEST(after_a_pause_a_renewal_counts_from_after_it)
{
    beats_for(700); /* in the middle of a mark */
    ck_assert_uint_ne(beat % MST_LEASE_MARK_BEATS, 0);
    renew();
    pass(8000);
    mst_lease_beat(&lease, ++beat, &now);
    renew();
    ck_assert_uint_eq(mst_lease_left_ms(&lease, &now), GOOD_MS);
}
END_TEST

START_TEST(a_lease_that_ran_out_during_a_pause_has_run_out_when_the_node_wakes)
{
    beats_for(640);
    renew();
    pass(GOOD_MS);
    ck_assert_int_eq(judge(&cut_off), MST_LEASE_STOP);
    ck_assert(mst_lease_wake(&lease, &now));
    ck_assert_int_eq(judge(&connected), MST_LEASE_RUN_ON);
    ck_assert(lease.stale);
}
END_TEST

START_TEST(a_welcome_ends_staleness_only_for_a_hello_after_the_pause)
{
    uint64_t at_hello;

    beats_for(640);
    renew();
    at_hello = lease.wakes;
    pass(MST_LEASE_PAUSE_MS + 1);
    ck_assert(mst_lease_wake(&lease, &now));
    mst_lease_welcomed(&lease, at_hello);
    ck_assert(lease.stale);
    mst_lease_welcomed(&lease, lease.wakes);
    ck_assert(!lease.stale);
}
END_TEST

START_TEST(the_end_of_leases_ends_staleness)
{
    struct mst_lease_line off;

    beats_for(640);
    renew();
    off = line_for(beat);
    off.lease_ms = 0;
    pass(MST_LEASE_PAUSE_MS + 1);
    ck_assert(mst_lease_wake(&lease, &now));
    ck_assert_int_eq(take(off), 1);
    ck_assert(!lease.stale);
}
END_TEST

/* --- lines that are not for us, or nonsense --- */

START_TEST(the_same_renewal_counts_once)
{
    struct mst_lease_line line;

    beats_for(640);
    line = line_for(beat);
    ck_assert_int_eq(take(line), 1);
    ck_assert_int_eq(take(line), 0);
    line.beat -= 20; /* the number decides, not what else it says */
    ck_assert_int_eq(take(line), 0);
}
END_TEST

START_TEST(a_torn_line_is_not_taken)
{
    struct mst_lease_line older, newer, mixed;

    beats_for(640);
    older = line_for(beat - 1);
    newer = line_for(beat);
    older.crc32c = mst_crc32c(&older, offsetof(struct mst_lease_line, crc32c));
    newer.crc32c = mst_crc32c(&newer, offsetof(struct mst_lease_line, crc32c));
    memset(&mixed, 0, sizeof(mixed));
    ck_assert_int_eq(mst_lease_take(&lease, &mixed, 0, &why), -EBADMSG); /* never written */
    for (size_t cut = 33; cut < 64; cut++) {                             /* the first 32 bytes are the same but for the counter */
        memcpy(&mixed, &newer, sizeof(mixed));
        memcpy((uint8_t *)&mixed + cut, (const uint8_t *)&older + cut, sizeof(mixed) - cut);
        if (memcmp(&mixed, &newer, sizeof(mixed)) != 0)
            ck_assert_int_eq(mst_lease_take(&lease, &mixed, 0, &why), -EBADMSG);
    }
    ck_assert(!lease.given);
}
END_TEST

START_TEST(lines_of_others_and_of_the_past_are_refused)
{
    struct mst_lease_line line;

    beats_for(640);
    renew();
    line = line_for(beat);
    line.instance++;
    ck_assert_int_eq(take(line), -ESTALE);
    line = line_for(beat);
    line.term--;
    ck_assert_int_eq(take(line), -ESTALE);
    line = line_for(beat);
    line.coordinator++;
    ck_assert_int_eq(take(line), -ESTALE);
    line = line_for(beat);
    line.renewal = lease.renewal - 1;
    ck_assert_int_eq(take(line), -ESTALE);
    line = line_for(beat);
    line.crc32c = mst_crc32c(&line, offsetof(struct mst_lease_line, crc32c));
    ck_assert_int_eq(mst_lease_take(&lease, &line, TERM + 1, &why), -ESTALE); /* the guard has seen a newer term */
    line = line_for(beat);
    line.term++;
    line.coordinator++;
    line.renewal = 1;
    ck_assert_int_eq(take(line), 1); /* a new leader */
    line = line_for(beat);
    ck_assert_int_eq(take(line), -ESTALE); /* and the old one goes on writing */
}
END_TEST

START_TEST(what_cannot_be_is_refused)
{
    struct mst_lease_line line;

    beats_for(640);
    line = line_for(beat + 1);
    ck_assert_int_eq(take(line), -EPROTO);
    line = line_for(0);
    ck_assert_int_eq(take(line), -EPROTO);
    line = line_for(beat);
    line.lease_ms = MST_LEASE_MS_MIN - 1;
    ck_assert_int_eq(take(line), -EPROTO);
    line = line_for(beat);
    line.lease_ms = MST_LEASE_MS_MAX + 1;
    ck_assert_int_eq(take(line), -EPROTO);
    line = line_for(beat);
    line.version++;
    ck_assert_int_eq(take(line), -EPROTO);
    line = line_for(beat);
    line.renewal = 0;
    ck_assert_int_eq(take(line), -EPROTO);
    ck_assert(!lease.given);
}
END_TEST

/* --- both sides on two clocks --- */

/* A granter that waits L (1 + 1/8) on its clock from its last decision never says "over" before the holder's VMs have stopped, for any pair
 * of clocks that keep within what the table allows, and any delay and pause. */
START_TEST(the_holder_has_stopped_before_the_granter_thinks_so)
{
    unsigned state = (unsigned)_i * 7919u + 1;
    uint64_t true_ms = 0, decided_ms = 0, next_decision_ms = 500, stopped_ms = 0, silent_from_ms = 0;
    /* holder 1/1000 slow to 1/10 fast; granter 1/10 fast to slow */
    unsigned holder = 999 + (unsigned)_i % 102, granter = 900 + ((unsigned)_i * 37) % 201;
    struct mst_lease_line waiting = {0};
    uint64_t arrives_ms = UINT64_MAX, paused_until_ms = 0;

    silent_from_ms = 20000 + (unsigned)rand_r(&state) % 20000;
    for (true_ms = 20; stopped_ms == 0 && true_ms < 200000; true_ms += 20) {
        struct mst_lease_time at = {.boot_ns = START_MS * NS + true_ms * holder * NS / 1000,
                                    .raw_ns = START_MS * NS + true_ms * 999 * NS / 1000};

        if (true_ms >= next_decision_ms && true_ms < silent_from_ms && beat > 0) {
            decided_ms = true_ms;
            next_decision_ms = true_ms + LEASE_MS / 4;
            waiting = line_for(beat > 5 ? beat - (unsigned)rand_r(&state) % 5 : beat);
            arrives_ms = true_ms + (unsigned)rand_r(&state) % 9000;
        }
        if (true_ms >= paused_until_ms && (unsigned)rand_r(&state) % 400 == 0)
            paused_until_ms = true_ms + (unsigned)rand_r(&state) % (MST_LEASE_STOP_MS - 100);
        if (true_ms < paused_until_ms)
            continue;
        mst_lease_beat(&lease, ++beat, &at);
        if (true_ms >= arrives_ms) {
            int r = take(waiting);

            ck_assert(r == 1 || (r == -ESTALE && lease.wakes > 0)); /* about a beat before a pause: not counted */
            arrives_ms = UINT64_MAX;
        }
        if (true_ms > silent_from_ms && mst_lease_judge(&lease, &at, &cut_off, NULL) == MST_LEASE_STOP)
            stopped_ms = true_ms;
    }
    if (!lease.given)
        return;
    ck_assert_uint_ne(stopped_ms, 0);
    /* the granter's clock shows (stopped - decided) x granter / 1000 at that moment */
    ck_assert_uint_le((stopped_ms - decided_ms) * granter / 1000, LEASE_MS + LEASE_MS / 8);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("lease");
    TCase *tc = tcase_create("lease");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tc, setup, NULL);
    tcase_add_test(tc, nothing_depends_on_a_lease_before_there_was_one);
    tcase_add_test(tc, a_node_cut_off_stops_a_second_and_the_drift_before_its_lease_ends);
    tcase_add_test(tc, the_lease_counts_from_when_the_beat_was_written_however_late_the_renewal_comes);
    tcase_add_test(tc, the_time_of_any_beat_is_never_taken_for_later_than_it_was);
    tcase_add_test(tc, a_renewal_about_a_beat_of_too_long_ago_is_refused);
    tcase_add_test(tc, renewals_keep_it_going_and_the_end_of_leases_ends_it);
    tcase_add_loop_test(tc, a_clock_that_runs_slow_or_stands_still_does_not_lengthen_it, 0, 7);
    tcase_add_test(tc, a_clock_that_goes_back_ends_it);
    tcase_add_test(tc, suspend_counts);
    tcase_add_loop_test(tc, only_a_node_that_sees_nobody_of_those_it_knows_stops, 0, 32);
    tcase_add_test(tc, a_node_that_stopped_may_go_on_once_it_is_renewed);
    tcase_add_test(tc, strictness_is_that_of_the_newest_renewal);
    tcase_add_test(tc, a_pause_makes_it_stale_until_somebody_saw_us_after_it);
    tcase_add_test(tc, the_first_lease_is_stale_when_it_is_about_a_beat_of_before_a_pause);
    tcase_add_test(tc, the_beat_itself_notices_a_pause);
    tcase_add_test(tc, after_a_pause_a_renewal_counts_from_after_it);
    tcase_add_test(tc, a_lease_that_ran_out_during_a_pause_has_run_out_when_the_node_wakes);
    tcase_add_test(tc, a_welcome_ends_staleness_only_for_a_hello_after_the_pause);
    tcase_add_test(tc, the_end_of_leases_ends_staleness);
    tcase_add_test(tc, the_same_renewal_counts_once);
    tcase_add_test(tc, a_torn_line_is_not_taken);
    tcase_add_test(tc, lines_of_others_and_of_the_past_are_refused);
    tcase_add_test(tc, what_cannot_be_is_refused);
    tcase_add_loop_test(tc, the_holder_has_stopped_before_the_granter_thinks_so, 0, 300);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
