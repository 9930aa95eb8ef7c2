#ifndef MST_CLI_COMMANDS_H
#define MST_CLI_COMMANDS_H

#include "cli/client.h"

#include <stdbool.h>

/* Exit codes of mainstayctl, the same for every verb (docs/OPERATING.md). */
enum exit_code {
    EXIT_OK = 0,
    EXIT_FAILED = 1,   /* refused, or an objective of a drill did not hold */
    EXIT_USAGE = 2,    /* wrong words, or a file with mistakes */
    EXIT_NO_ANSWER = 3 /* no coordinator there, or it did not answer */
};

struct options { /* what was given on the command line; all borrowed from argv */
    const char *socket;
    bool json, undo, follow, from_start, replace;
    const char *node, *vm, *kind, *text, *injector, *report, *since;
    uint32_t timeout_ms;
    char **args; /* words after noun and verb */
    int args_count;
};

struct context {
    const struct options *opt;
    uv_loop_t *loop;
    struct client *client; /* NULL for verbs that need none */
};

/* Each verb: returns an exit code, has printed what there is to say. */
typedef int (*verb_fn)(struct context *ctx);

int cmd_status(struct context *ctx);
int cmd_node_list(struct context *ctx);
int cmd_node_show(struct context *ctx);
int cmd_node_drain(struct context *ctx);
int cmd_node_confirm_dead(struct context *ctx);
int cmd_cluster_resume(struct context *ctx);
int cmd_vm_define(struct context *ctx);
int cmd_vm_undefine(struct context *ctx);
int cmd_vm_start(struct context *ctx);
int cmd_vm_stop(struct context *ctx);
int cmd_vm_list(struct context *ctx);
int cmd_vm_show(struct context *ctx);
int cmd_vm_console(struct context *ctx);
int cmd_fault_list(struct context *ctx);
int cmd_fault_report(struct context *ctx);
int cmd_recovery_list(struct context *ctx);
int cmd_recovery_show(struct context *ctx);
int cmd_events(struct context *ctx);
int cmd_drill_run(struct context *ctx);
int cmd_drill_check(struct context *ctx);

/* Prints "mainstayctl: sentence" to stderr and turns err into an exit code. */
int complain(int err, const struct mst_why *why);

/* Asks for all pages of one kind of view and returns them as one JSON object {cluster, nodes, vms, faults, recoveries, ...}. New
 * reference in *ret_view. name NULL and id 0: all. */
struct json_t;
int fetch_view(struct context *ctx, Mainstay__What what, const char *name, uint64_t id, struct json_t **ret_view,
               struct mst_why *why);

#endif
