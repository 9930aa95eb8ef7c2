#ifndef SIM_POINTS_H
#define SIM_POINTS_H

#include <stdbool.h>
#include <stdint.h>

/* Crash points: named places in the dealings of a process with the outside, at each of which it may be killed. Most are the fault points of base/fault.h in
 * the product's own code (MST_POINT), under the same names as in the real programs; those of what the simulator does by hand are in its seams. A sweep
 * (run.c) kills at every one; points.c lists them all, and the sweep wants each to have been reached. */

enum sim_who { WHO_COORD, WHO_KEEPER, WHO_AGENT, WHOS };

#define SIM_POINTS_MAX 112u

struct sim_points {
    uint64_t count[WHOS];   /* points passed */
    uint64_t kill_at[WHOS]; /* stories: dies at this one; 0: never */
    uint64_t from_ns;       /* counted from then on */
    /* The sweep: each name is counted for itself. */
    bool by_name;
    uint64_t reached[WHOS][SIM_POINTS_MAX];
    unsigned kill_who, kill_point;
    uint64_t kill_nth; /* 0: nobody dies */
    bool died;
    char stranger[48]; /* a name that points.c does not list; empty: none */
    char last[48];     /* where somebody was killed */
};
extern struct sim_points sim_points;

extern const char *const sim_who_names[WHOS];
unsigned sim_points_count(void);
const char *sim_point_name(unsigned point);
bool sim_point_of(unsigned point, enum sim_who who); /* that process has it */

/* Of scenarios: who passes this point next dies there; sim_points.died then says so. */
void sim_die_at(enum sim_who who, const char *name);

/* A point of the process whose code runs (any: the world's own has none). True: it was killed here, and nothing it still does has an effect. */
bool sim_point(const char *name);

#endif
