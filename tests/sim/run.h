#ifndef SIM_RUN_H
#define SIM_RUN_H

#include <stdbool.h>
#include <stdint.h>

/* Whole runs; each returns the exit status: 0 all is well, 1 an invariant was broken. */
int run_one(uint64_t seed, const char *schedule, bool verbose); /* schedule: numbers of the faults that are kept, NULL: all */
int run_seeds(uint64_t from, uint64_t to, unsigned jobs, bool stop_at_first);
int run_twice(uint64_t from, uint64_t to, unsigned jobs);
int run_crash_points(unsigned count, unsigned jobs);

#endif
