#ifndef MST_KEEPER_GATE_H
#define MST_KEEPER_GATE_H

#include <stdbool.h>
#include <stdint.h>

/* When what a VM has sent may leave its node (output commit). Pure: somebody else has the queues, and says what the mirrors have.
 *
 *   OPEN ---------- a mark, while a mirror is waited for ---------> CLOSED      either: SHUT, for ever
 *        <--- nobody is waited for any more (the VM is exposed) ---
 *
 * A mark is the moment of a checkpoint: the guest stands, what it sent before is in the queues. Output before mark seq leaves when everybody who is waited
 * for has checkpoint seq. The packets' queue knows one cut at a time (plug.h): marks that come meanwhile are passed over, and their packets leave with a
 * later mark, never earlier. The console's knows them all. */

#define MST_GATE_MARKS 64u

struct mst_gate {
    bool closed, shut;
    uint64_t cut;  /* closed: the mark of the packets' cut; 0: none */
    uint64_t left; /* closed: output up to this mark has left the node */
    struct {
        uint64_t seq, console; /* console: offset */
    } marks[MST_GATE_MARKS];   /* not left, oldest first */
    unsigned count;
};

/* Mark seq. Returns whether the packets' queue is to be cut here; then mst_gate_cut says how that went. waits: a mirror is waited for. */
bool mst_gate_mark(struct mst_gate *gate, uint64_t seq, uint64_t console, bool waits);
/* The queue was cut at mark seq, and closed if it was open. */
void mst_gate_cut(struct mst_gate *gate, uint64_t seq);

struct mst_gate_go {
    bool open;    /* all queues, for good; then mst_gate_opened */
    bool release; /* the packets before the cut; then mst_gate_released */
    bool show;    /* the console up to this offset */
    uint64_t console;
};
/* Everybody who is waited for has checkpoint safe. waits false: nobody is. */
struct mst_gate_go mst_gate_look(struct mst_gate *gate, bool waits, uint64_t safe);
void mst_gate_opened(struct mst_gate *gate);
void mst_gate_released(struct mst_gate *gate);

void mst_gate_shut(
    struct mst_gate *gate); /* nothing leaves any more, whatever the mirrors have: the VM was fenced, or has ended */
/* Whether a mirror that has checkpoint seq has all that the output that has left came from. Not before the gate is closed: what leaves an open one is
 * not in any checkpoint yet. */
bool mst_gate_covered(const struct mst_gate *gate, uint64_t seq);

#endif
