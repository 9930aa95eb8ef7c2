#ifndef MST_BASE_STATE_H
#define MST_BASE_STATE_H

#include <stdbool.h>
#include <stdint.h>

/* State machines as tables: a row per state, its name and the set of states that may follow. At most 32 states.
 *     static const struct mst_state states[] = { [S_A] = { "a", MST_TO(S_B) | MST_TO(S_C) }, ... };
 */
struct mst_state {
    const char *name;
    uint32_t next; /* MST_TO() of every legal successor */
};

#define MST_TO(state) (UINT32_C(1) << (state))

/* Whether the table allows from -> to. Both must be below count, otherwise false. Pure. */
bool mst_state_may(const struct mst_state *table, unsigned count, unsigned from, unsigned to);
/* Name of a state, "?" when it is outside the table. */
const char *mst_state_name(const struct mst_state *table, unsigned count, unsigned state);

#endif
