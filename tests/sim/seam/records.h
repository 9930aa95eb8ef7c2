#ifndef SIM_RECORDS_H
#define SIM_RECORDS_H

#include "tests/sim/kernel.h"

/* proc dies after so many more stores into main storage; kill does it. proc NULL: nobody does. */
void sim_die_publishing(struct sim_proc *proc, unsigned words, void (*kill)(void *arg), void *arg);
/* What a process stores that was killed in the middle of the code that is running now does not get into main storage. */
void sim_dead_stores(void);

#endif
