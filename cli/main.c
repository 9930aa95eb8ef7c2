#include "cli/commands.h"

#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *noun, *verb; /* verb NULL: the noun stands alone */
    const char *words, *help;
    int min_args, max_args;
    bool offline; /* needs no coordinator */
    verb_fn run;
} commands[] = {
    {"status", NULL, "", "the cluster at a glance", 0, 0, false, cmd_status},
    {"node", "list", "", "nodes and what they carry", 0, 0, false, cmd_node_list},
    {"node", "show", "NODE", "all that is known of one node", 1, 1, false, cmd_node_show},
    {"node", "drain", "NODE [--undo]", "move all VMs away with their memory, place none there", 1, 1, false, cmd_node_drain},
    {"node", "confirm-dead", "NODE [--text WHY]", "you have seen that it is off: counts as proof of fencing", 1, 1, false,
     cmd_node_confirm_dead},
    {"cluster", "resume", "[--text WHY]", "after most nodes vanished at once: fence what is missing", 0, 0, false,
     cmd_cluster_resume},
    {"vm", "define", "FILE... [--replace]", "store definitions", 1, 1000, false, cmd_vm_define},
    {"vm", "undefine", "VM", "remove the definition of a stopped VM", 1, 1, false, cmd_vm_undefine},
    {"vm", "start", "VM [--node NODE]", "run it", 1, 1, false, cmd_vm_start},
    {"vm", "stop", "VM", "stop it for good", 1, 1, false, cmd_vm_stop},
    {"vm", "list", "", "VMs, where they run, how they are protected", 0, 0, false, cmd_vm_list},
    {"vm", "show", "VM", "all that is known of one VM", 1, 1, false, cmd_vm_show},
    {"vm", "console", "VM [--follow] [--from-start]", "what the guest printed; --follow goes on, also after a move", 1, 1, false,
     cmd_vm_console},
    {"fault", "list", "", "fault records", 0, 0, false, cmd_fault_list},
    {"fault", "report", "--node NODE [--vm VM] [--kind KIND] [--text WHY]", "report a fault by hand or from a monitor", 0, 0,
     false, cmd_fault_report},
    {"recovery", "list", "", "recoveries, newest first", 0, 0, false, cmd_recovery_list},
    {"recovery", "show", "ID", "steps and VMs of one recovery", 1, 1, false, cmd_recovery_show},
    {"events", NULL, "[--since TIME] [--vm VM] [--node NODE] FILE|FOLDER...", "events files of several machines, merged by time",
     1, 1000, true, cmd_events},
    {"drill", "check", "FILE", "read a drill and its VM definitions, inject nothing", 1, 1, true, cmd_drill_check},
    {"drill", "run", "FILE --injector PROGRAM [--report DIR]", "inject real faults, watch the beats, judge the objectives", 1, 1,
     false, cmd_drill_run},
};

static void usage(FILE *out)
{
    fprintf(out, "usage: mainstayctl [--socket PATH] [--json] [--timeout SECONDS] NOUN [VERB] ...\n\n");
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        char words[96];
        snprintf(words, sizeof(words), "%s%s%s %s", commands[i].noun, commands[i].verb ? " " : "",
                 commands[i].verb ? commands[i].verb : "", commands[i].words);
        fprintf(out, "  %-60s %s\n", words, commands[i].help);
    }
    fprintf(out, "\n--socket: the coordinator's operator socket, default $MAINSTAY_SOCKET or /run/mainstay/coordinator.sock\n"
                 "Exit: 0 done, 1 refused or an objective failed, 2 wrong words or a file with mistakes, 3 no answer.\n");
}

enum {
    OPT_SOCKET = 256,
    OPT_JSON,
    OPT_TIMEOUT,
    OPT_UNDO,
    OPT_NODE,
    OPT_VM,
    OPT_KIND,
    OPT_TEXT,
    OPT_FROM_START,
    OPT_REPLACE,
    OPT_INJECTOR,
    OPT_REPORT,
    OPT_SINCE
};

static const struct option long_options[] = {
    {"socket", required_argument, NULL, OPT_SOCKET},
    {"json", no_argument, NULL, OPT_JSON},
    {"timeout", required_argument, NULL, OPT_TIMEOUT},
    {"undo", no_argument, NULL, OPT_UNDO},
    {"node", required_argument, NULL, OPT_NODE},
    {"vm", required_argument, NULL, OPT_VM},
    {"kind", required_argument, NULL, OPT_KIND},
    {"text", required_argument, NULL, OPT_TEXT},
    {"since", required_argument, NULL, OPT_SINCE},
    {"follow", no_argument, NULL, 'f'},
    {"from-start", no_argument, NULL, OPT_FROM_START},
    {"replace", no_argument, NULL, OPT_REPLACE},
    {"injector", required_argument, NULL, OPT_INJECTOR},
    {"report", required_argument, NULL, OPT_REPORT},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

/* 1 go on, 0 help was asked for, -1 wrong. */
static int parse(int argc, char **argv, struct options *opt)
{
    int c;

    while ((c = getopt_long(argc, argv, "fh", long_options, NULL)) != -1) {
        char *end;
        switch (c) {
        case OPT_SOCKET:
            opt->socket = optarg;
            break;
        case OPT_JSON:
            opt->json = true;
            break;
        case OPT_UNDO:
            opt->undo = true;
            break;
        case OPT_NODE:
            opt->node = optarg;
            break;
        case OPT_VM:
            opt->vm = optarg;
            break;
        case OPT_KIND:
            opt->kind = optarg;
            break;
        case OPT_TEXT:
            opt->text = optarg;
            break;
        case 'f':
            opt->follow = true;
            break;
        case OPT_FROM_START:
            opt->from_start = true;
            break;
        case OPT_REPLACE:
            opt->replace = true;
            break;
        case OPT_INJECTOR:
            opt->injector = optarg;
            break;
        case OPT_REPORT:
            opt->report = optarg;
            break;
        case OPT_SINCE:
            opt->since = optarg;
            break;
        case OPT_TIMEOUT:
            opt->timeout_ms = (uint32_t)(strtoul(optarg, &end, 10) * 1000);
            if (*end != '\0' || opt->timeout_ms == 0) {
                fprintf(stderr, "mainstayctl: --timeout %s: wants whole seconds, at least 1\n", optarg);
                return -1;
            }
            break;
        case 'h':
            return 0;
        default:
            return -1;
        }
    }
    return 1;
}

/* Index of the command that the words name, -1 with a complaint. */
static int find_command(int words, char **word)
{
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
        if (words > 0 && strcmp(word[0], commands[i].noun) == 0 &&
            (!commands[i].verb || (words > 1 && strcmp(word[1], commands[i].verb) == 0)))
            return (int)i;
    if (words == 0)
        fprintf(stderr, "mainstayctl: what is to be done? Try `mainstayctl status` or `mainstayctl --help`\n");
    else
        fprintf(stderr, "mainstayctl: there is no command '%s%s%s'; `mainstayctl --help` lists them\n", word[0],
                words > 1 ? " " : "", words > 1 ? word[1] : "");
    return -1;
}

static int run(const struct options *opt, int command)
{
    struct context ctx = {.opt = opt};
    struct mst_why why = {0};
    uv_loop_t loop;
    int r, code;

    uv_loop_init(&loop);
    ctx.loop = &loop;
    if (!commands[command].offline) {
        r = client_open(&loop, opt->socket, &ctx.client, &why);
        if (r < 0) {
            code = complain(r, &why);
            goto close_loop;
        }
    }
    code = commands[command].run(&ctx);
    client_free(ctx.client);
close_loop:
    uv_loop_close(&loop);
    return code;
}

int main(int argc, char **argv)
{
    struct options opt = {.socket = getenv("MAINSTAY_SOCKET"),
                          .timeout_ms = 75000}; /* more than the coordinator takes for an answer (60 s) */
    int command, words, taken;

    signal(SIGPIPE, SIG_IGN);
    if (!opt.socket)
        opt.socket = "/run/mainstay/coordinator.sock";
    switch (parse(argc, argv, &opt)) {
    case 0:
        usage(stdout);
        return EXIT_OK;
    case -1:
        fprintf(stderr, "`mainstayctl --help` lists commands and options\n");
        return EXIT_USAGE;
    default:
        break;
    }
    words = argc - optind;
    command = find_command(words, argv + optind);
    if (command < 0)
        return EXIT_USAGE;
    taken = commands[command].verb ? 2 : 1;
    opt.args = argv + optind + taken;
    opt.args_count = words - taken;
    if (opt.args_count < commands[command].min_args || opt.args_count > commands[command].max_args) {
        fprintf(stderr, "usage: mainstayctl %s %s %s\n", commands[command].noun,
                commands[command].verb ? commands[command].verb : "", commands[command].words);
        return EXIT_USAGE;
    }
    return run(&opt, command);
}
