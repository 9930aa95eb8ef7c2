#include "node/keeper/gate.h"

#include "base/mutant.h"

bool mst_gate_mark(struct mst_gate *gate, uint64_t seq, uint64_t console, bool waits)
{
    uint64_t newest = gate->count > 0 ? gate->marks[gate->count - 1].seq : 0;

    if (gate->shut)
        return false;
    if (!gate->closed)
        return waits;
    /* Once more for the same checkpoint (the one before it failed): what was sent since belongs to it as well. A full list grows no further: its newest
     * output leaves later. */
    if (newest >= seq || gate->count == MST_GATE_MARKS)
        gate->count--;
    gate->marks[gate->count].seq = newest > seq ? newest : seq;
    gate->marks[gate->count].console = console;
    gate->count++;
    return gate->cut == 0;
}

void mst_gate_cut(struct mst_gate *gate, uint64_t seq)
{
    if (!gate->closed) {
        gate->closed = true;
        gate->left = seq; /* all before this mark has left already */
        gate->count = 0;
        gate->cut = 0;
        return;
    }
    gate->cut = seq;
}

struct mst_gate_go mst_gate_look(struct mst_gate *gate, bool waits, uint64_t safe)
{
    struct mst_gate_go go = {0};
    unsigned past = 0;

    if (gate->shut || !gate->closed)
        return go;
    if (!waits) {
        go.open = true;
        return go;
    }
    while (past < gate->count && (gate->marks[past].seq <= safe || MST_MUTANT(79)))
        past++;
    if (past > 0) {
        go.show = true;
        go.console = gate->marks[past - 1].console;
        if (gate->marks[past - 1].seq > gate->left)
            gate->left = gate->marks[past - 1].seq;
        for (unsigned i = past; i < gate->count; i++)
            gate->marks[i - past] = gate->marks[i];
        gate->count -= past;
    }
    go.release = gate->cut != 0 && (gate->cut <= safe || MST_MUTANT(78));
    return go;
}

void mst_gate_opened(struct mst_gate *gate)
{
    gate->closed = false;
    gate->cut = 0;
    gate->count = 0;
}

void mst_gate_released(struct mst_gate *gate)
{
    if (gate->cut > gate->left)
        gate->left = gate->cut;
    gate->cut = 0;
}

void mst_gate_shut(struct mst_gate *gate)
{
    gate->shut = true;
}

bool mst_gate_covered(const struct mst_gate *gate, uint64_t seq)
{
    return gate->closed && seq >= gate->left;
}
