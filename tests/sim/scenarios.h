#ifndef SIM_SCENARIOS_H
#define SIM_SCENARIOS_H

#include <stdbool.h>
#include <stddef.h>

struct sim_result;

int scenarios_list(void);
int scenarios_run(const char *name, bool verbose); /* NULL: all; otherwise those whose name contains it */
/* Until the first that fails, whose name it says. */
bool scenarios_catch(char *name, size_t size, struct sim_result *ret);

#endif
