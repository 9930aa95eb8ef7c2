#include "node/agent/pace.h"

#include "base/clock.h"

void mst_pace_init(struct mst_pace *pace, uint32_t interval_ms, uint32_t stall_max_percent)
{
    *pace = (struct mst_pace){.set_ns = interval_ms * MST_NS_PER_MS, .stall_max_percent = stall_max_percent};
}

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* The interval that keeps to the bound, with what a pause out of line still asks for. */
static uint64_t stall_next(struct mst_pace *pace, uint64_t pause_ns)
{
    uint64_t asked_ns = pause_ns * 100 / pace->stall_max_percent, base_ns = larger(pace->set_ns, pace->stall_ns), extra_ns;

    if (asked_ns > MST_PACE_OUTLIER * base_ns && pace->outliers < MST_PACE_OUTLIERS) {
        pace->outliers++;
        pace->debt_ns += asked_ns - base_ns;
    } else {
        pace->stall_ns = asked_ns >= pace->stall_ns ? asked_ns : pace->stall_ns - (pace->stall_ns - asked_ns) / 2;
        base_ns = larger(pace->set_ns, pace->stall_ns);
    }
    extra_ns = pace->debt_ns < base_ns ? pace->debt_ns : base_ns;
    pace->debt_ns -= extra_ns;
    if (pace->debt_ns == 0)
        pace->outliers = 0;
    return base_ns + extra_ns;
}

uint64_t mst_pace_next_ns(struct mst_pace *pace, const struct mst_pace_took *took, enum mst_save_pace *ret_why)
{
    uint64_t next_ns = stall_next(pace, took->pause_ns), busy_ns = larger(took->own_ns, took->put_ns);

    if (busy_ns > next_ns) {
        *ret_why = took->put_ns > took->own_ns ? MST_SAVE_PACE_MIRROR : MST_SAVE_PACE_COPY;
        return busy_ns;
    }
    *ret_why = next_ns > pace->set_ns ? MST_SAVE_PACE_STALL : MST_SAVE_PACE_SET;
    return next_ns;
}
