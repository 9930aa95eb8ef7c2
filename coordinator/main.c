#include "coordinator/io/app.h"
#include "coordinator/io/migrate.h"

#include "base/log.h"

#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct arguments {
    const char *config;
    const char *migrate; /* folder of the SQLite store; empty: state-dir; NULL: run as coordinator */
};

static bool read_arguments(int argc, char **argv, struct arguments *ret)
{
    static const struct option options[] = {{"config", required_argument, NULL, 'c'},
                                            {"migrate", no_argument, NULL, 'm'},
                                            {"from", required_argument, NULL, 'f'},
                                            {NULL, 0, NULL, 0}};
    const char *from = "";
    bool migrate = false;
    int c;

    *ret = (struct arguments){.config = "/etc/mainstay/coordinator.yaml"};
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == 'c')
            ret->config = optarg;
        else if (c == 'm')
            migrate = true;
        else if (c == 'f')
            from = optarg;
        else
            return false;
    }
    if (migrate)
        ret->migrate = from;
    return optind == argc && (migrate || !from[0]);
}

int main(int argc, char **argv)
{
    struct mst_coordinator_conf *conf = NULL;
    struct mst_why why = {0};
    struct arguments arguments;
    int r;

    (void)signal(SIGPIPE, SIG_IGN);
    mst_log_init("mainstay-coordinator");
    if (!read_arguments(argc, argv, &arguments)) {
        fprintf(
            stderr,
            "usage: mainstay-coordinator [--config FILE]\n"
            "       mainstay-coordinator [--config FILE] --migrate [--from FOLDER]   moves the SQLite store to etcd, and ends\n");
        return 2;
    }
    r = mst_coordinator_conf_load(arguments.config, &conf, &why);
    if (r < 0) {
        log_error("%s", why.text[0] ? why.text : strerror(-r));
        return EXIT_FAILURE;
    }
    if (arguments.migrate)
        r = mst_migrate(conf, arguments.migrate[0] ? arguments.migrate : conf->state_dir);
    else
        r = app_run(conf);
    mst_coordinator_conf_free(conf);
    return r;
}
