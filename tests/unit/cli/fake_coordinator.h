#ifndef FAKE_COORDINATOR_H
#define FAKE_COORDINATOR_H

#include <stdbool.h>
#include <sys/types.h>

/* A fake: a process that speaks the operator's protocol and only pretends to have nodes n1 n2 n3 and VMs. It stands in for the coordinator
 * in tests of the drill engine, which cannot tell. Faults come as lines "KIND NODE [VM]" through a FIFO, where the tests' injector writes them. */

struct fake_conf {
    const char *socket, *fifo;
    bool break_witness;    /* a VM that was moved says BROKEN */
    bool leave_old;        /* the old copy beats on after a move: two at once */
    bool refuse_undefine;  /* cleaning up fails */
    bool failing_at_first; /* n1 is failing from the start */
    const char *left_over; /* name of a VM that is there already, NULL: none */
};

/* Forks; returns once its socket answers. */
pid_t fake_coordinator_start(const struct fake_conf *conf);
void fake_coordinator_stop(pid_t pid);

#endif
