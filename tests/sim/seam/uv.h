#ifndef SIM_UV_H
#define SIM_UV_H

#include <stdbool.h>

struct sim_watch_fd { /* a pidfd */
    int fd;
    bool ready;
    void *poller;
};
struct sim_watch_fd *sim_watch_of(int fd);        /* NULL: unknown */
void sim_watch_ready(struct sim_watch_fd *watch); /* the process has ended */

#endif
