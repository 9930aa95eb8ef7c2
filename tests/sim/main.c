#include "base/mutant.h"
#include "tests/sim/mutants.h"
#include "tests/sim/run.h"
#include "tests/sim/scenarios.h"
#include "tests/sim/story.h"

#include <getopt.h>
#include <inttypes.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: mainstay-sim --seed S [--schedule I,K,...] [--verbose]   tells one story\n"
    "       mainstay-sim --seeds A..B [--jobs N] [--stop-at-first]   tells many, shrinks what fails\n"
    "       mainstay-sim --determinism A..B [--jobs N]               tells each twice: the traces must be the same\n"
    "       mainstay-sim --scenarios [NAME] | --list                 the scripted ones\n"
    "       mainstay-sim --crash-points N [--jobs N]                 kills coordinator, keeper, agent N times each in each of 15 "
    "recoveries\n"
    "       mainstay-sim --mutants SEEDS [--jobs N] [--mutant M]     wakes every seeded bug: scenarios or seeds 1..SEEDS must "
    "catch it\n"
    "       --mutant M   with any of them: seeded bug M is awake\n"
    "       --mirrors    with any of them: VMs under protect: mirror in every story, and not only in every fifth\n";

static bool range(const char *text, uint64_t *ret_from, uint64_t *ret_to)
{
    return sscanf(text, "%" SCNu64 "..%" SCNu64, ret_from, ret_to) == 2 && *ret_from <= *ret_to;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"seed", required_argument, NULL, 's'},
                                            {"schedule", required_argument, NULL, 'c'},
                                            {"verbose", no_argument, NULL, 'v'},
                                            {"seeds", required_argument, NULL, 'r'},
                                            {"jobs", required_argument, NULL, 'j'},
                                            {"stop-at-first", no_argument, NULL, 'f'},
                                            {"determinism", required_argument, NULL, 'd'},
                                            {"scenarios", optional_argument, NULL, 'S'},
                                            {"list", no_argument, NULL, 'l'},
                                            {"crash-points", required_argument, NULL, 'p'},
                                            {"mutants", required_argument, NULL, 'M'},
                                            {"mutant", required_argument, NULL, 'm'},
                                            {"mirrors", no_argument, NULL, 'i'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    const char *schedule = NULL, *seed = NULL, *seeds = NULL, *twice = NULL, *points = NULL, *scenario = NULL, *hunt = NULL;
    bool verbose = false, stop = false, list = false, scenarios = false;
    unsigned jobs = 1;
    uint64_t from, to;
    int c;

    /* Large blocks are fresh pages each time: most of them is never touched, and clearing them would cost more than the pages that are. */
    (void)mallopt(M_MMAP_THRESHOLD, 256 << 10);
    (void)mallopt(M_TRIM_THRESHOLD, 256 << 20);
    setvbuf(stdout, NULL, _IOLBF, 0);
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 's':
            seed = optarg;
            break;
        case 'c':
            schedule = optarg;
            break;
        case 'v':
            verbose = true;
            break;
        case 'r':
            seeds = optarg;
            break;
        case 'j':
            jobs = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'f':
            stop = true;
            break;
        case 'd':
            twice = optarg;
            break;
        case 'S':
            scenarios = true;
            break;
        case 'l':
            list = true;
            break;
        case 'p':
            points = optarg;
            break;
        case 'M':
            hunt = optarg;
            break;
        case 'i':
            sim_all_mirrored = true;
            break;
        case 'm':
            mst_mutant = (unsigned)strtoul(optarg, NULL, 10);
            break;
        default:
            fputs(usage, stderr);
            return c == 'h' ? 0 : 2;
        }
    }
    if (optind < argc)
        scenario = argv[optind];
    if (hunt)
        return mutants_run(jobs, (unsigned)strtoul(hunt, NULL, 10), mst_mutant);
    if (seed)
        return run_one(strtoull(seed, NULL, 10), schedule, verbose);
    if (seeds && range(seeds, &from, &to))
        return run_seeds(from, to, jobs, stop);
    if (twice && range(twice, &from, &to))
        return run_twice(from, to, jobs);
    if (list)
        return scenarios_list();
    if (scenarios)
        return scenarios_run(scenario, verbose);
    if (points)
        return run_crash_points((unsigned)strtoul(points, NULL, 10), jobs);
    fputs(usage, stderr);
    return 2;
}
