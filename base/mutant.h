#ifndef MST_BASE_MUTANT_H
#define MST_BASE_MUTANT_H

/* Seeded bugs: `if (MST_MUTANT(7)) ...` is a mistake somebody could have made. One build of the tests has them all, asleep, and wakes one at a time
 * to see whether the checkers notice: tests/sim/mutants.c; those of mirrors, from 60 on, in tests/unit/mirror (60 to 70) and tests/unit/core/mirror.c (90 to
 * 94) as well, or only there. Everywhere else the condition is the constant 0 and nothing of it is compiled. */
#ifdef MST_MUTANTS
extern unsigned mst_mutant; /* number of the one that is awake, 0: none */
#define MST_MUTANT(n) (mst_mutant == (n))
#else
#define MST_MUTANT(n) 0
#endif

#endif
