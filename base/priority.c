#include "base/priority.h"

#include <errno.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <unistd.h>

#define LOOP_NICE (-10)

int mst_priority_raise(void)
{
    return setpriority(PRIO_PROCESS, (id_t)gettid(), LOOP_NICE) < 0 ? -errno : 0;
}

void mst_priority_worker(void)
{
    setpriority(PRIO_PROCESS, (id_t)gettid(), 0);
}
