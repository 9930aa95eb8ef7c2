#include "tests/sim/mutants.h"
#include "base/mutant.h"
#include "tests/sim/scenarios.h"
#include "tests/sim/story.h"

#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const struct mutant {
    unsigned number;
    const char *invariant, *what;
    enum { CHECKER, CRASH } by; /* CRASH: ending by a signal is what this bug does to a process, and counts as caught as well */
} mutants[] = {
    {1, "I1", "a fence that failed or timed out counts as done", CHECKER},
    {2, "I1", "a kill is proved without looking at the cgroup", CHECKER},
    {3, "I1", "the fence is skipped: asking for it is proof enough", CHECKER},
    {4, "I2", "an operator may confirm the death of a node that is connected", CHECKER},
    {5, "I2", "FenceResult is sent without having killed", CHECKER},
    {6, "I2", "earlier_vms_dead is said without clearing the cgroups", CHECKER},
    {8, "I3", "the store's error is ignored", CHECKER},
    {9, "I3", "rows are believed when they are proposed", CHECKER},
    {10, "I4", "forgetting an epoch takes an older save along that is needed", CHECKER},
    {11, "I4", "a save that could not be read counts as none", CHECKER},
    {12, "I5", "the save a VM came from is preferred to its own newer one", CHECKER},
    {13, "I5", "of two records the older is read", CHECKER},
    {14, "I6", "the checksum covers the head of a record only", CHECKER},
    {15, "I6", "the checksum of a record is not compared", CHECKER},
    {16, "I6", "a pull leaves the delta out", CHECKER},
    {17, "I7", "a restarted coordinator plans anew what was committed", CHECKER},
    {18, "I7", "a second try takes two epochs", CHECKER},
    {19, "I8", "the term of a restored store is trusted", CHECKER},
    {20, "I8", "epochs of an undefined VM are given again", CHECKER},
    {21, "I8", "newer epochs that a node holds are not taken over", CHECKER},
    {22, "I10", "a coordinator that knows its store is an old copy goes on", CHECKER},
    {23, "I10", "power is cut although no other node is seen", CHECKER},
    {37, "I10", "a node that has just called is fenced before it is read", CHECKER},
    {24, "I11", "reports of an earlier keeper instance are believed", CHECKER},
    {25, "I11", "a report about a VM under recovery begins another", CHECKER},
    {26, "I11", "reports about an earlier epoch are believed", CHECKER},
    {27, "I12", "eight MiB more than there are fit", CHECKER},
    {28, "I12", "allowed nodes are a wish", CHECKER},
    {29, "I12", "lower priority chooses first", CHECKER},
    {30, "I12", "a drained node takes VMs", CHECKER},
    {31, "I13", "a VM that was stopped during its recovery is placed", CHECKER},
    {32, "I13", "a stop is answered when it is decided, not when it is proved", CHECKER},
    {33, "I13", "a recovery with held VMs is closed", CHECKER},
    {34, "I15", "memory regions stay when a VM's memory goes", CHECKER},
    {35, "I15", "memory regions of a pull stay", CHECKER},
    {36, "I15", "orders that were answered are not freed", CHECKER},
    {38, "I9", "a lease counts from when it was taken, not from the beat it names", CHECKER},
    {39, "I9", "of two clocks the one that can be slewed is believed", CHECKER},
    {40, "I9", "a keeper does not look whether it stood still", CHECKER},
    {41, "I9", "the proof by lease allows for no drift of the granter's clock", CHECKER},
    {42, "I9", "the proof by lease counts from the first renewal", CHECKER},
    {43, "I9", "the watchdog is touched although VMs that had to stop live", CHECKER},
    {44, "I10", "transactions of etcd are written without their conditions", CHECKER},
    {45, "I10", "keepers obey orders of an older term", CHECKER},
    {46, "I10", "a leader whose lease may have ended goes on", CHECKER},
    {47, "I10", "etcd is not asked before power is cut", CHECKER},
    {48, "I3", "an answer of etcd that was lost counts as yes", CHECKER},
    {53, "I10", "a leader that stood still goes on without asking", CHECKER},
    {50, "I10", "the decision that a node has heard of is not compared with the store's", CHECKER},
    {51, "I3", "an order tells of a decision that is not durable yet", CHECKER},
    {52, "I10", "an old copy that was started often enough counts as new", CHECKER},
    {55, "I3", "a recovery is acted for while its next step is under way", CHECKER},
    {58, "LIVE", "whoever answers at a management address is the keeper that is missed", CHECKER},
    {59, "I9", "the proof by lease does not count from renewals that went over the management address", CHECKER},
    {60, "I4", "a source takes a completed WRITE for an acknowledgement", CHECKER},
    {61, "I4", "a mirror acknowledges a commit before it has summed it", CHECKER},
    {63, "I6", "a mirror does not compare the sum of a record", CHECKER},
    {64, "I6", "the sum of a record does not cover its pages", CHECKER},
    {66, "I6", "a mirror gives ring space back before it has taken the record", CHECKER},
    {71, "I14", "the log of an image stays open while it is verified", CHECKER},
    {72, "I14", "a source that was fenced goes on writing into its mirrors", CHECKER},
    {73, "I6", "the agent may write the delta again before it is sent", CHECKER},
    {74, "I6", "a seed takes from the shadow what has come from a delta", CHECKER},
    {76, "I4", "output waits no more for a mirror that failed, and the store may say that it counts", CHECKER},
    {77, "I4", "a mirror may count that lacks what has left", CHECKER},
    {78, "I4", "frames leave once their checkpoint is cut, whoever has it", CHECKER},
    {79, "I4", "the console shows what no mirror has yet", CHECKER},
    {75, "LIVE", "a mirror that looks at its image at rest does not compare", CHECKER},
    {90, "I5", "a mirror that does not count is resumed from", CHECKER},
    {91, "I4", "a mirror counts while it is seeded", CHECKER},
    {92, "I4", "a mirror is left out before the row says that it does not count", CHECKER},
    {93, "I5", "what an image says of itself is believed without asking its keeper", CHECKER},
    {95, "I5", "an image outlives a boot of its VM", CHECKER},
    {96, "I4", "the image of a mirror that counts is forgotten", CHECKER},
    {97, "I4", "a mirror that cannot be reached counts as lost", CHECKER},
    {98, "I14", "a log is granted to another keeper than the source's", CHECKER},
    {99, "I3", "a source is told that a mirror counts before that is durable", CHECKER},
    {112, "I12", "a mirror may be in the VM's own rack whatever its definition says", CHECKER},
    {113, "I12", "a mirror may be on any node whatever its definition says", CHECKER},
    {110, "I1", "a VM is started beside the QEMU that waits over its memory", CHECKER},
    {111, "I6", "a QEMU that waits is used before it has opened its memory", CHECKER},
    {54, "I2", "a plan does not look whether a newer grant is to be fenced first", CRASH}, /* grant() does */
};
#define MUTANTS (sizeof(mutants) / sizeof(mutants[0]))

struct caught {
    bool breach;
    uint32_t seeds; /* told when it was caught */
    char by[80], invariant[8], text[200];
};

/* Scenarios first: all of them cost less than a hundred stories. */
static void hunt(unsigned number, unsigned seeds, int fd)
{
    struct caught caught = {0};
    struct sim_result result = {0};

    mst_mutant = number;
    (void)scenarios_catch(caught.by, sizeof(caught.by), &result);
    for (uint64_t seed = 1; seed <= seeds && !result.breach; seed++) {
        struct sim_story story;

        caught.seeds = (uint32_t)seed;
        snprintf(caught.by, sizeof(caught.by), "seed %" PRIu64, seed);
        if (write(fd, &caught, sizeof(caught)) != sizeof(caught)) /* so that a death is known by its seed */
            _exit(1);
        sim_story_make(seed, &story);
        sim_story_tell(&story, NULL, NULL, &result);
    }
    caught.breach = result.breach;
    memcpy(caught.invariant, result.invariant, sizeof(caught.invariant));
    snprintf(caught.text, sizeof(caught.text), "%.199s", result.text);
    if (write(fd, &caught, sizeof(caught)) != sizeof(caught))
        _exit(1);
    _exit(0);
}

struct hunter {
    pid_t pid; /* 0: free */
    int fd;
    size_t mutant;
    struct caught last;
};

/* False: it was not caught, or the hunter died of it where no crash is expected. */
static bool tell(const struct mutant *m, const struct caught *c, int status)
{
    if (status != 0)
        printf("%2u  %-4s  %-72s  %s (signal %d, status %d) in %s\n", m->number, m->invariant, m->what,
               m->by == CRASH && WIFSIGNALED(status) ? "caught by a crash" : "DIED", WIFSIGNALED(status) ? WTERMSIG(status) : 0,
               WIFEXITED(status) ? WEXITSTATUS(status) : 0, c->by[0] ? c->by : "a scenario");
    else if (c->breach)
        printf("%2u  %-4s  %-72s  caught as %s by %s: %.90s\n", m->number, m->invariant, m->what, c->invariant, c->by, c->text);
    else
        printf("%2u  %-4s  %-72s  SURVIVES all scenarios and %u seeds\n", m->number, m->invariant, m->what, c->seeds);
    return status != 0 ? m->by == CRASH && WIFSIGNALED(status) : c->breach;
}

int mutants_run(unsigned jobs, unsigned seeds, unsigned only)
{
    struct hunter hunters[16] = {0};
    struct timespec begin, end;
    size_t next = 0, done = 0, survivors = 0, total = 0;

    jobs = jobs < 1 ? 1 : jobs > 16 ? 16 : jobs;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (size_t i = 0; i < MUTANTS; i++)
        total += only == 0 || mutants[i].number == only;
    while (done < total) {
        for (unsigned i = 0; i < jobs; i++) {
            struct hunter *h = &hunters[i];
            int pipes[2], status = 0;

            while (next < MUTANTS && only != 0 && mutants[next].number != only)
                next++;
            if (h->pid == 0 && next < MUTANTS && pipe(pipes) == 0) {
                fflush(stdout);
                memset(h, 0, sizeof(*h));
                h->pid = fork();
                if (h->pid == 0) {
                    if (!freopen("/dev/null", "w", stderr))
                        _exit(1);
                    hunt(mutants[next].number, seeds, pipes[1]);
                }
                close(pipes[1]);
                h->fd = pipes[0];
                h->mutant = next++;
            }
            if (h->pid == 0)
                continue;
            struct pollfd fd = {.fd = h->fd, .events = POLLIN};

            if (poll(&fd, 1, 50) <= 0)
                continue;
            if (read(h->fd, &h->last, sizeof(h->last)) == sizeof(h->last))
                continue;
            close(h->fd);
            waitpid(h->pid, &status, 0);
            h->pid = 0;
            done++;
            survivors += !tell(&mutants[h->mutant], &h->last, status);
        }
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("%zu mutants, %zu not caught; %ld s\n", total, survivors, (long)(end.tv_sec - begin.tv_sec));
    return total > 0 && survivors == 0 ? 0 : 1;
}
