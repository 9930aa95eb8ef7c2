#ifndef SIM_STAGE_H
#define SIM_STAGE_H

#include "tests/sim/coord.h"
#include "tests/sim/oracle.h"
#include "tests/sim/story.h"

/* What scenarios are written with (scenarios.c, scenarios_coords.c). */

#define EXPECT(what, ...)                                                                                                        \
    do {                                                                                                                         \
        if (!(what) && !K.over)                                                                                                  \
            oracle_breach("SCENE", __VA_ARGS__);                                                                                 \
        sim_scene_leave();                                                                                                       \
    } while (0)

#define ROW(fn)                                                                                                                  \
    {                                                                                                                            \
#fn, fn                                                                                                                  \
    }
struct scenario {
    const char *name;
    void (*run)(void);
};
extern const struct scenario scenarios_coords[];
extern const size_t scenarios_coords_count;
extern const struct scenario scenarios_manage[];
extern const size_t scenarios_manage_count;
extern const struct scenario scenarios_mirror[];
extern const size_t scenarios_mirror_count;

/* n1 n2 n3 (4 for what is larger), each with room for everything; vm0, vm1, ... with a checkpoint every 300 ms */
void stage(unsigned nodes, unsigned vms);
/* The same in two steps, for who changes something between: nodes are made, but not started. */
void stage_make(const struct sim_conf *conf);
void stage_start(void);
struct sim_task *task_of(const char *vm);
struct sim_host *host_of(const char *vm);
unsigned phase_of(const char *vm);
uint64_t epoch_of(const char *vm);
unsigned recoveries(unsigned scopes);
bool all_run(void);
bool until(bool (*cond)(void), uint32_t ms);
void until_all_run(uint32_t ms);
void well(void);
extern uint64_t epoch_before; /* of vm0, when until_recovered is to wait for a newer one */
void until_recovered(uint32_t ms);
void cut_host(unsigned index, bool in, bool out, bool on);

#endif
