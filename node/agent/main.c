#include "base/event.h"
#include "base/log.h"
#include "base/priority.h"
#include "node/agent/agent.h"

#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void usage(FILE *out)
{
    fprintf(out,
            "usage: mainstay-node --keeper SOCKET [--events FILE]\n"
            "The agent of one node: drives QEMU, takes checkpoints, finds faults, obeys orders. Started by mainstay-keeper,\n"
            "whose socket it is given; it ends when that closes. MST_LOG=error|warning|notice|info|debug sets what is logged.\n");
}

static int parse(int argc, char **argv, const char **ret_socket, const char **ret_events)
{
    static const struct option options[] = {{"keeper", required_argument, NULL, 'k'},
                                            {"events", required_argument, NULL, 'e'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    int option;

    *ret_socket = *ret_events = NULL;
    while ((option = getopt_long(argc, argv, "k:e:h", options, NULL)) != -1) {
        if (option == 'h') {
            usage(stdout);
            exit(0);
        }
        if (option == 'k')
            *ret_socket = optarg;
        else if (option == 'e')
            *ret_events = optarg;
        else
            return -1;
    }
    return *ret_socket && optind == argc ? 0 : -1;
}

int main(int argc, char **argv)
{
    struct mst_agent *agent;
    const char *socket_path, *events;
    struct mst_why why;
    uv_loop_t loop;
    int status, r;

    signal(SIGPIPE, SIG_IGN);
    mst_log_init("mainstay-node");
    if (parse(argc, argv, &socket_path, &events) < 0) {
        usage(stderr);
        return 2;
    }
    if (events && mst_event_open(events, 0, "mainstay-node", NULL, 0) < 0)
        log_warning("no events are kept in %s", events);
    r = mst_priority_raise();
    if (r < 0)
        log_warning("cannot raise the priority: on a loaded node this agent may be taken for hung: %s", strerror(-r));
    /* Page copies in a pause must not queue behind long jobs of other VMs (unpacking a saved state). */
    setenv("UV_THREADPOOL_SIZE", "16", 0);
    if (uv_loop_init(&loop) < 0) {
        log_error("no event loop");
        return 1;
    }
    if (mst_agent_new(&loop, socket_path, &agent, &why) < 0) {
        log_error("%s", why.text);
        uv_loop_close(&loop);
        return 1;
    }
    uv_run(&loop, UV_RUN_DEFAULT);
    status = agent->exit_status;
    mst_event_close();
    mst_agent_free(agent);
    uv_loop_close(&loop);
    return status;
}
