#include "fuzz.h"

#include "node/keeper/lease.h"
#include "shm/publish.h"

#include <string.h>

/* Lines of the grant area, which others write: raw ones, and ones whose sum is right, between beats, pauses and welcomes. What is refused changes
 * nothing; what is taken never counts from later than now, never from an older term, and never lasts longer than it says. */

#define INSTANCE UINT64_C(0x1122334455667788)
#define START_NS UINT64_C(1000000000000)

enum { OP_BEATS, OP_PASS, OP_RAW, OP_LINE, OP_WELCOME, OP_WAKE, OPS };

static struct mst_lease lease, before;
static struct mst_lease_time now;
static uint64_t beat;

static void pass(uint64_t ms)
{
    now.boot_ns += ms * 1000000;
    now.raw_ns += ms * 1000000;
}

static void take(const struct mst_lease_line *line, uint64_t min_term)
{
    struct mst_why why = {0};
    int r;

    before = lease;
    r = mst_lease_take(&lease, line, min_term, &why);
    if (r <= 0) {
        FUZZ_CHECK(memcmp(&before, &lease, sizeof(lease)) == 0);
        return;
    }
    FUZZ_CHECK(line->instance == INSTANCE && line->term >= before.term && line->term >= min_term && lease.term == line->term);
    FUZZ_CHECK(lease.term > before.term || (lease.coordinator == before.coordinator && lease.renewal > before.renewal));
    FUZZ_CHECK(line->beat <= beat && lease.base.boot_ns <= now.boot_ns && lease.base.raw_ns <= now.raw_ns);
    FUZZ_CHECK(!lease.given || (lease.lease_ms >= MST_LEASE_MS_MIN && lease.lease_ms <= MST_LEASE_MS_MAX));
    FUZZ_CHECK(!(before.stale && !lease.stale) || !lease.given || line->beat >= lease.wake_beat);
}

static void judge(uint8_t seen)
{
    struct mst_lease_paths paths = {.control = seen & 1, .peers = seen & 2 ? 3 : 0, .peers_moving = (seen & 6) == 6 ? 1 : 0};
    const char *why;
    enum mst_lease_verdict verdict = mst_lease_judge(&lease, &now, &paths, &why);
    uint64_t passed_ms = (now.raw_ns - lease.base.raw_ns) / 1000000;

    FUZZ_CHECK((verdict == MST_LEASE_NONE) == !lease.given);
    FUZZ_CHECK((verdict != MST_LEASE_HELD && verdict != MST_LEASE_LATE) || passed_ms + MST_LEASE_STOP_MS <= lease.lease_ms);
    FUZZ_CHECK(verdict != MST_LEASE_STOP || lease.strict || (paths.peers > 0 && !paths.control && !paths.peers_moving));
    FUZZ_CHECK(verdict != MST_LEASE_RUN_ON || !lease.strict);
    FUZZ_CHECK(why && mst_lease_verdict_name(verdict)[0] != '?');
}

static void line_step(struct fuzz_in *in)
{
    struct mst_lease_line line = {.instance = INSTANCE, .version = MST_LEASE_VERSION};
    uint64_t back;

    line.term = fuzz_u8(in);
    line.coordinator = fuzz_u8(in);
    line.renewal = fuzz_u16(in);
    back = fuzz_u16(in);
    line.beat = beat - back; /* may well be one that was never written */
    line.lease_ms = fuzz_u32(in);
    line.flags = fuzz_u8(in);
    if (fuzz_u8(in) == 1)
        line.instance ^= fuzz_u64(in);
    line.crc32c = mst_crc32c(&line, offsetof(struct mst_lease_line, crc32c));
    take(&line, fuzz_u8(in));
}

static void raw_step(struct fuzz_in *in)
{
    struct mst_lease_line line = {0};
    size_t len;
    const uint8_t *bytes = fuzz_piece(in, &len);

    memcpy(&line, bytes, len < sizeof(line) ? len : sizeof(line));
    take(&line, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};

    mst_lease_init(&lease, INSTANCE, fuzz_u8(&in) & 1 ? MST_LEASE_LOST_RUN_ON : MST_LEASE_LOST_STOP);
    now = (struct mst_lease_time){.boot_ns = START_NS, .raw_ns = START_NS / 2};
    beat = 0;
    while (in.left > 0) {
        unsigned op = fuzz_u8(&in) % OPS;

        if (op == OP_BEATS) {
            for (unsigned n = fuzz_u8(&in); n > 0; n--) {
                pass(20);
                mst_lease_beat(&lease, ++beat, &now);
            }
        } else if (op == OP_PASS) {
            pass(fuzz_u16(&in));
        } else if (op == OP_RAW) {
            raw_step(&in);
        } else if (op == OP_LINE) {
            line_step(&in);
        } else if (op == OP_WELCOME) {
            mst_lease_welcomed(&lease, fuzz_u8(&in));
        } else {
            (void)mst_lease_wake(&lease, &now);
            FUZZ_CHECK(!mst_lease_wake(&lease, &now)); /* each pause once */
        }
        judge(fuzz_u8(&in));
    }
    return 0;
}

static void put_line(struct fuzz_out *out, uint64_t term, uint64_t renewal, uint64_t back, uint64_t lease_ms)
{
    fuzz_put(out, OP_LINE, 1);
    fuzz_put(out, term, 1);
    fuzz_put(out, 9, 1); /* coordinator */
    fuzz_put(out, renewal, 2);
    fuzz_put(out, back, 2);
    fuzz_put(out, lease_ms, 4);
    fuzz_put(out, MST_LEASE_STRICT, 1);
    fuzz_put(out, 0, 1); /* the right instance */
    fuzz_put(out, 0, 1); /* no newer term is known */
    fuzz_put(out, 2, 1); /* what is seen: peers that do not beat */
}

void fuzz_seeds(void)
{
    static struct fuzz_out out;
    struct mst_lease_line line = {.instance = INSTANCE,
                                  .term = 7,
                                  .coordinator = 9,
                                  .renewal = 3,
                                  .beat = 50,
                                  .lease_ms = 10000,
                                  .coordinator_id = 1,
                                  .decision = 30,
                                  .version = MST_LEASE_VERSION};

    fuzz_put(&out, 0, 1);
    fuzz_put(&out, OP_BEATS, 1);
    fuzz_put(&out, 100, 1);
    fuzz_put(&out, 0, 1);
    put_line(&out, 7, 1, 4, 10000);
    fuzz_put(&out, OP_PASS, 1);
    fuzz_put(&out, 4000, 2);
    fuzz_put(&out, 2, 1);
    fuzz_put(&out, OP_WAKE, 1);
    fuzz_put(&out, 2, 1);
    fuzz_put(&out, OP_BEATS, 1);
    fuzz_put(&out, 3, 1);
    fuzz_put(&out, 2, 1);
    put_line(&out, 7, 2, 1, 10000);
    put_line(&out, 8, 1, 0, 0);
    fuzz_seed("a pause between renewals", out.bytes, out.len);
    line.crc32c = mst_crc32c(&line, offsetof(struct mst_lease_line, crc32c));
    out.len = 0;
    fuzz_put(&out, 1, 1);
    fuzz_put(&out, OP_BEATS, 1);
    fuzz_put(&out, 60, 1);
    fuzz_put(&out, 0, 1);
    fuzz_put(&out, OP_RAW, 1);
    fuzz_put_piece(&out, &line, sizeof(line));
    fuzz_put(&out, 1, 1);
    fuzz_seed("a line as it is written", out.bytes, out.len);
}
