#include "tests/sim/world.h"

/* No keeper of the product runs, so nobody starts an agent. */

void sim_agent_started(struct sim_host *host, struct sim_task *task)
{
    (void)host, (void)task;
}

void sim_agent_gone(struct sim_host *host)
{
    (void)host;
}

void sim_agent_beat(struct sim_host *host)
{
    (void)host;
}

void sim_agent_unmap(struct sim_host *host, const struct sim_file *file)
{
    (void)host, (void)file;
}
