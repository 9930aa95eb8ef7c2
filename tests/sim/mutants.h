#ifndef SIM_MUTANTS_H
#define SIM_MUTANTS_H

/* Wakes every seeded bug (base/mutant.h), one at a time, and tells stories and scenarios until a checker speaks. 0: all were caught. */
int mutants_run(unsigned jobs, unsigned seeds, unsigned only); /* only: this one, 0: all */

#endif
