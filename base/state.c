#include "base/state.h"

bool mst_state_may(const struct mst_state *table, unsigned count, unsigned from, unsigned to)
{
    if (from >= count || to >= count || to >= 32)
        return false;
    return (table[from].next & MST_TO(to)) != 0;
}

const char *mst_state_name(const struct mst_state *table, unsigned count, unsigned state)
{
    if (state >= count || !table[state].name)
        return "?";
    return table[state].name;
}
