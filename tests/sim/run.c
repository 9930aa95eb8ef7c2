#include "tests/sim/run.h"
#include "base/mutant.h"
#include "tests/sim/coord.h"
#include "tests/sim/oracle.h"
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

unsigned mst_mutant;

static double now_s(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* --- one --- */

static void header(const struct sim_story *story, const bool *keep, FILE *out)
{
    char text[200];

    fprintf(out, "seed %" PRIu64 ": %u nodes, %u VMs, %u faults in %u ms\n", story->seed, story->conf.nodes, story->conf.vms,
            story->count, story->window_ms);
    for (unsigned i = 0; i < story->count; i++) {
        if (keep && !keep[i])
            continue;
        sim_fault_text(story, i, text, sizeof(text));
        fprintf(out, "%s\n", text);
    }
}

static void footer(const struct sim_result *result, FILE *out)
{
    fprintf(out, "trace %016" PRIx64 ", %" PRIu64 " events, %" PRIu64 ".%03" PRIu64 " s simulated\n", result->hash,
            result->events, result->simulated_ms / 1000, result->simulated_ms % 1000);
    if (result->breach)
        fprintf(out, "BREACH of %s: %s\n", result->invariant, result->text);
    else
        fprintf(out, "all is well\n");
}

int run_one(uint64_t seed, const char *schedule, bool verbose)
{
    struct sim_story story;
    struct sim_result result;
    bool keep[SIM_FAULTS_MAX];

    sim_story_make(seed, &story);
    for (unsigned i = 0; i < SIM_FAULTS_MAX; i++)
        keep[i] = schedule == NULL;
    for (const char *at = schedule; at && *at;) {
        char *end;
        unsigned long i = strtoul(at, &end, 10);

        if (end == at)
            break;
        if (i < SIM_FAULTS_MAX)
            keep[i] = true;
        at = *end == ',' ? end + 1 : end;
    }
    header(&story, keep, stdout);
    sim_story_tell(&story, keep, verbose ? stdout : NULL, &result);
    footer(&result, stdout);
    return result.breach ? 1 : 0;
}

/* --- shrinking: as few faults as still break the same invariant (delta debugging) --- */

static bool still_breaks(const struct sim_story *story, const bool *keep, const char *invariant)
{
    struct sim_result result;

    sim_story_tell(story, keep, NULL, &result);
    return result.breach && strcmp(result.invariant, invariant) == 0;
}

static void shrink(const struct sim_story *story, bool *keep, const char *invariant)
{
    unsigned left = story->count;

    for (unsigned chunk = (left + 1) / 2; chunk > 0;) {
        bool less = false;

        for (unsigned from = 0; from < story->count; from += chunk) {
            bool try[SIM_FAULTS_MAX];
            bool any = false;

            memcpy(try, keep, sizeof(try));
            for (unsigned i = from; i < from + chunk && i < story->count; i++) {
                any = any || try[i];
                try[i] = false;
            }
            if (!any || !still_breaks(story, try, invariant))
                continue;
            memcpy(keep, try, sizeof(try));
            less = true;
        }
        if (!less || chunk == 1)
            chunk = chunk == 1 && less ? 1 : chunk / 2;
    }
}

/* The seed, the shrunk schedule, and the story as it is then told. */
static void explain(uint64_t seed)
{
    struct sim_story story;
    struct sim_result result;
    bool keep[SIM_FAULTS_MAX];
    unsigned n = 0;

    sim_story_make(seed, &story);
    sim_story_tell(&story, NULL, NULL, &result);
    if (!result.breach)
        return;
    memset(keep, 1, sizeof(keep));
    shrink(&story, keep, result.invariant);
    printf("\nFAILED seed %" PRIu64 ", invariant %s: %s\nreplay: mainstay-sim --seed %" PRIu64 " --verbose --schedule ", seed,
           result.invariant, result.text, seed);
    for (unsigned i = 0; i < story.count; i++) {
        if (keep[i])
            printf("%s%u", n++ ? "," : "", i);
    }
    printf("%s\n", n ? "" : "none");
    header(&story, keep, stdout);
    sim_story_tell(&story, keep, stdout, &result);
    footer(&result, stdout);
}

/* --- many: several processes, each with every n-th seed, told of over pipes --- */

struct note {
    uint64_t seed, hash, hash_again, events, simulated_ms;
    struct oracle_counts counts;
    bool breach;
    char invariant[8], text[200], where[120];
    uint8_t who, point; /* of a sweep: who dies where */
};

typedef void (*work_fn)(uint64_t number, struct note *note);

static void note_result(struct note *note, const struct sim_result *result)
{
    note->breach = result->breach;
    note->hash = result->hash;
    note->events = result->events;
    note->simulated_ms = result->simulated_ms;
    memcpy(note->invariant, result->invariant, sizeof(note->invariant));
    snprintf(note->text, sizeof(note->text), "%.199s", result->text);
    note->counts = oracle_counts;
}

static void work_seed(uint64_t number, struct note *note)
{
    struct sim_story story;
    struct sim_result result;

    sim_story_make(number, &story);
    sim_story_tell(&story, NULL, NULL, &result);
    note_result(note, &result);
}

static void work_twice(uint64_t number, struct note *note)
{
    work_seed(number, note);
    note->hash_again = note->hash;
    work_seed(number, note);
    if (note->hash == note->hash_again || note->breach)
        return;
    note->breach = true;
    snprintf(note->invariant, sizeof(note->invariant), "TRACE");
    snprintf(note->text, sizeof(note->text), "the same seed gave trace %016" PRIx64 " and then %016" PRIx64, note->hash_again,
             note->hash);
}

static void worker(uint64_t from, uint64_t to, unsigned job, unsigned jobs, work_fn work, int fd)
{
    for (uint64_t number = from + job; number <= to; number += jobs) {
        struct note note = {.seed = number};

        work(number, &note);
        if (write(fd, &note, sizeof(note)) != sizeof(note))
            _exit(1);
    }
    _exit(0);
}

struct sum {
    uint64_t done, events, simulated_ms, failed, died;
    struct oracle_counts counts;
    uint64_t first[8];
    unsigned firsts;
    uint64_t deaths[WHOS][SIM_POINTS_MAX], deaths_failed[WHOS][SIM_POINTS_MAX]; /* of a sweep */
};

static void sum_add(struct sum *sum, const struct note *note, const char *what)
{
    const uint64_t *from = (const uint64_t *)&note->counts;
    uint64_t *to = (uint64_t *)&sum->counts;

    sum->done++;
    sum->events += note->events;
    sum->simulated_ms += note->simulated_ms;
    sum->died += note->where[0] && note->hash_again;
    sum->deaths[note->who][note->point] += note->hash_again && note->where[0];
    sum->deaths_failed[note->who][note->point] += note->breach;
    for (size_t i = 0; i < sizeof(note->counts) / sizeof(*from); i++)
        to[i] += from[i];
    if (!note->breach)
        return;
    sum->failed++;
    printf("%s %" PRIu64 ": BREACH of %s: %s\n", what, note->seed, note->invariant, note->text);
    if (sum->firsts < sizeof(sum->first) / sizeof(sum->first[0]))
        sum->first[sum->firsts++] = note->seed;
}

/* False when a worker died: that is a failure too. */
static bool run_many(uint64_t from, uint64_t to, unsigned jobs, bool stop_at_first, work_fn work, const char *what,
                     struct sum *sum)
{
    struct pollfd fds[64];
    pid_t pids[64];
    unsigned open = 0;
    double begin = now_s(), told = begin;
    bool good = true, tty = isatty(STDOUT_FILENO);

    memset(sum, 0, sizeof(*sum));
    jobs = jobs < 1 ? 1 : jobs > 64 ? 64 : jobs;
    fflush(stdout);
    for (unsigned i = 0; i < jobs; i++) {
        int pipes[2];

        if (pipe(pipes) < 0)
            return false;
        pids[i] = fork();
        if (pids[i] == 0) {
            close(pipes[0]);
            worker(from, to, i, jobs, work, pipes[1]);
        }
        close(pipes[1]);
        fds[i] = (struct pollfd){.fd = pipes[0], .events = POLLIN};
        open++;
    }
    while (open > 0) {
        (void)poll(fds, jobs, 1000);
        for (unsigned i = 0; i < jobs; i++) {
            struct note note;
            ssize_t n;

            if (fds[i].fd < 0 || !(fds[i].revents & (POLLIN | POLLHUP)))
                continue;
            n = read(fds[i].fd, &note, sizeof(note));
            if (n == sizeof(note)) {
                sum_add(sum, &note, what);
                continue;
            }
            close(fds[i].fd);
            fds[i].fd = -1;
            open--;
        }
        if (now_s() - told > (tty ? 1 : 30)) {
            told = now_s();
            printf("  %" PRIu64 " of %" PRIu64 ", %.1f/s, %" PRIu64 " failed\n", sum->done, to - from + 1,
                   (double)sum->done / (told - begin), sum->failed);
        }
        for (unsigned i = 0; stop_at_first && sum->failed > 0 && i < jobs; i++)
            kill(pids[i], SIGKILL);
    }
    for (unsigned i = 0; i < jobs; i++) {
        int status;

        if (waitpid(pids[i], &status, 0) == pids[i] && status == 0)
            continue;
        if (stop_at_first && sum->failed > 0)
            continue;
        printf("worker %u of %u died (status %d): the %s after its last one broke the simulator or the product\n", i, jobs,
               status, what);
        good = false;
    }
    printf("%" PRIu64 " %ss in %.1f s, %.1f/s; %.0f s simulated, %" PRIu64 " events\n", sum->done, what, now_s() - begin,
           (double)sum->done / (now_s() - begin), (double)sum->simulated_ms / 1000, sum->events);
    return good;
}

static void counts_print(const struct oracle_counts *c)
{
    printf("seen: %" PRIu64 " vCPU starts, %" PRIu64 " transactions, %" PRIu64 " orders, %" PRIu64 " grants, %" PRIu64
           " proofs of a stopped VM, %" PRIu64 " power fences, %" PRIu64 " recoveries, %" PRIu64 " checkpoints, %" PRIu64
           " resumes, %" PRIu64 " boots, %" PRIu64 " stops, %" PRIu64 " records read; of mirrors %" PRIu64
           " that came to count, %" PRIu64 " acknowledgements, %" PRIu64 " images verified, %" PRIu64
           " times output that waited left\n",
           c->vcpu_starts, c->commits, c->orders, c->grants, c->fenced, c->power_fences, c->recoveries, c->checkpoints,
           c->resumes, c->boots, c->stops, c->picks, c->joins, c->acks, c->images, c->left);
}

int run_seeds(uint64_t from, uint64_t to, unsigned jobs, bool stop_at_first)
{
    struct sum sum;
    bool good = run_many(from, to, jobs, stop_at_first, work_seed, "seed", &sum);

    counts_print(&sum.counts);
    printf("%" PRIu64 " failed\n", sum.failed);
    for (unsigned i = 0; i < sum.firsts && i < 2 && mst_mutant == 0; i++)
        explain(sum.first[i]);
    return good && sum.failed == 0 && sum.done == to - from + 1 ? 0 : 1;
}

int run_twice(uint64_t from, uint64_t to, unsigned jobs)
{
    struct sum sum;
    bool good = run_many(from, to, jobs, false, work_twice, "seed", &sum);

    printf("each told twice: %" PRIu64 " differ or fail\n", sum.failed);
    return good && sum.failed == 0 && sum.done == to - from + 1 ? 0 : 1;
}

/* --- crash points: scripted recoveries, and a coordinator, a keeper or an agent is killed at a named point --- */

struct plot {
    const char *name;
    void (*run)(void);
    unsigned coords;
    bool mirrored; /* vm0 is under protect: mirror */
};

#define PINNED "vm3" /* may run on n1 alone */

static uint8_t home; /* index of the node of vm0 */

static void plot_qemu(void)
{
    sim_fault_apply(&(struct sim_fault){.kind = FAULT_QEMU_KILL, .a = 0});
}

static void plot_keeper(void)
{
    sim_fault_apply(&(struct sim_fault){.kind = FAULT_KEEPER_KILL, .a = home, .ms = 700});
}

static void plot_power(void)
{
    sim_fault_apply(&(struct sim_fault){.kind = FAULT_HOST_OFF, .a = home, .ms = 40000});
}

/* What may run nowhere else is held until the node is back. */
static void plot_held(void)
{
    sim_fault_apply(&(struct sim_fault){.kind = FAULT_HOST_OFF, .a = 0, .ms = 25000});
}

static void plot_isolated(void)
{
    sim_fault_apply(&(struct sim_fault){.kind = FAULT_CUT, .a = home, .ms = 30000});
}

static void plot_drain(void)
{
    sim_fault_apply(&(struct sim_fault){.kind = FAULT_OP_DRAIN, .a = home});
}

static void plot_failing(void)
{
    sim_fault_apply(&(struct sim_fault){.kind = FAULT_PROCESSOR, .a = home});
}

static void plot_agent(void)
{
    sim_fault_apply(&(struct sim_fault){.kind = FAULT_AGENT_STOP, .a = home, .ms = 60000});
}

static void plot_stop(void)
{
    sim_fault_apply(&(struct sim_fault){.kind = FAULT_OP_STOP, .a = 0});
    sim_run_ms(3000);
    sim_fault_apply(&(struct sim_fault){.kind = FAULT_OP_START, .a = 0});
}

/* The coordinator goes down while VMs stand saved for a move that is called off meanwhile: they are told to go on. */
static void plot_called_off(void)
{
    struct sim_fault drain = {.kind = FAULT_OP_DRAIN, .a = home};

    sim_fault_apply(&drain);
    sim_run_ms(60);
    sim_coord_kill(W->coords[0], 200);
    sim_run_ms(3000);
}

static void plot_mirror(void)
{
    sim_fault_apply(&(struct sim_fault){.kind = FAULT_MIRROR_KEEPER, .a = 0, .ms = 700});
}

static const struct plot plots[] = {
    {"qemu killed", plot_qemu, 1, false},
    {"keeper killed", plot_keeper, 1, false},
    {"node without power", plot_power, 1, false},
    {"node of the pinned VM without power", plot_held, 1, false},
    {"node isolated", plot_isolated, 1, false},
    {"node drained", plot_drain, 1, false},
    {"processor failing", plot_failing, 1, false},
    {"agent stopped", plot_agent, 1, false},
    {"vm stopped and started", plot_stop, 1, false},
    {"coordinator killed in a drain", plot_called_off, 1, false},
    {"qemu killed, three coordinators", plot_qemu, 3, false},
    {"node without power, three coordinators", plot_power, 3, false},
    {"node drained, three coordinators", plot_drain, 3, false},
    {"source of a mirror without power", plot_power, 1, true},
    {"keeper of a mirror killed", plot_mirror, 1, true},
};
#define PLOTS (sizeof(plots) / sizeof(plots[0]))

static void stage(unsigned coords, bool mirrored)
{
    struct sim_conf conf = {.nodes = 3, .coords = coords, .vms = 4, .mirrors = mirrored, .watch_interval_ms = 100};

    oracle_begin();
    (void)sim_world_new(&conf);
    for (unsigned i = 0; i < conf.vms; i++) {
        struct mst_definition def = {.memory_mib = 2, .vcpus = 1, .priority = 10, .protect = MST_PROTECT_LOCAL};

        snprintf(def.name, sizeof(def.name), "vm%u", i);
        if (strcmp(def.name, PINNED) == 0)
            def.allowed[def.allowed_count++] = 1;
        if (i < conf.mirrors)
            def.protect = MST_PROTECT_MIRROR;
        sim_vm_define(i, &def, 300);
    }
    for (unsigned i = 0; i < conf.nodes; i++)
        sim_keeper_start(&W->hosts[i]);
    for (unsigned i = 0; i < coords; i++) {
        W->coords[i] = sim_coord_new(i, &W->hosts[conf.nodes + i]);
        sim_coord_start(W->coords[i]);
    }
    sim_run_ms(coords > 1 ? 6000 : 2500); /* somebody leads, and the nodes have found out */
    sim_vms_start();
    sim_run_ms(2000);
    for (unsigned i = 0; i < conf.nodes; i++) {
        if (sim_task_of_vm(&W->hosts[i], "vm0", 0))
            home = (uint8_t)i;
    }
}

/* Who dies where in which plot: planned from a telling of each plot in which nobody dies. Every point a process passed gets its turn, then each again at another
 * of its passings, until there are so many deaths for the process in the plot. */
struct death {
    uint8_t plot, who, point;
    uint64_t nth;
};
static struct {
    struct death *deaths;
    uint64_t count;
    uint64_t reached[WHOS][SIM_POINTS_MAX];
} plan;

static void plot_begin(const struct plot *plot)
{
    sim_begin(7, getenv("SIM_VERBOSE") ? stdout : NULL);
    stage(plot->coords, plot->mirrored);
    sim_points.from_ns = K.now_ns;
    sim_points.by_name = true;
}

static void plot_end(const struct plot *plot, struct sim_result *ret)
{
    plot->run();
    sim_run_ms(45000);
    if (!K.over) {
        sim_mend();
        sim_until_well(300000);
    }
    if (!K.over) {
        sim_run_ms(5000);
        oracle_final();
    }
    sim_world_end(ret);
}

/* The k-th of count passings to die at: the first, the last, then in between, ever closer. */
static uint64_t passing(uint64_t count, unsigned k)
{
    uint64_t at = 0, part = count;

    if (k < 2)
        return k == 0 ? 1 : count;
    for (unsigned bits = k - 1; bits > 0 && part > 1; bits >>= 1) {
        part = (part + 1) / 2;
        at += bits & 1 ? part : 0;
    }
    return 1 + at % count;
}

static bool planned(uint64_t from, const struct death *death)
{
    for (uint64_t i = from; i < plan.count; i++) {
        if (plan.deaths[i].point == death->point && plan.deaths[i].nth == death->nth)
            return true;
    }
    return false;
}

static void plan_deaths(unsigned plot, unsigned who, const uint64_t *reached, unsigned each)
{
    uint64_t from = plan.count;
    bool more = true;

    for (unsigned k = 0; more; k++) {
        more = false;
        for (unsigned point = 0; point < sim_points_count() && plan.count - from < each; point++) {
            struct death death = {.plot = (uint8_t)plot, .who = (uint8_t)who, .point = (uint8_t)point};

            if (k >= reached[point])
                continue;
            more = true;
            death.nth = passing(reached[point], k);
            if (!planned(from, &death))
                plan.deaths[plan.count++] = death;
        }
    }
}

/* False: a plot does not end well by itself, or passes a point that points.c does not know. */
static bool plan_make(unsigned each)
{
    plan.deaths = calloc((size_t)PLOTS * WHOS * each, sizeof(*plan.deaths));
    if (!plan.deaths)
        abort();
    for (unsigned plot = 0; plot < PLOTS; plot++) {
        struct sim_result result;

        plot_begin(&plots[plot]);
        plot_end(&plots[plot], &result);
        if (result.breach || sim_points.stranger[0]) {
            printf("%s: %s\n", plots[plot].name, result.breach ? result.text : sim_points.stranger);
            printf(result.breach ? "" : "this point is not listed in tests/sim/points.c\n");
            return false;
        }
        for (unsigned who = 0; who < WHOS; who++) {
            for (unsigned point = 0; point < sim_points_count(); point++)
                plan.reached[who][point] += sim_points.reached[who][point];
            plan_deaths(plot, who, sim_points.reached[who], each);
        }
    }
    return true;
}

static void work_point(uint64_t number, struct note *note)
{
    const struct death *death = &plan.deaths[number];
    struct sim_result result;

    plot_begin(&plots[death->plot]);
    sim_points.kill_who = death->who;
    sim_points.kill_point = death->point;
    sim_points.kill_nth = death->nth;
    plot_end(&plots[death->plot], &result);
    note->hash_again = sim_points.died;
    note->who = death->who;
    note->point = death->point;
    snprintf(note->where, sizeof(note->where), "%s: dies at passing %u of it: %.40s", plots[death->plot].name,
             (unsigned)death->nth, sim_points.last);
    note_result(note, &result);
    if (!sim_points.died && !note->breach) {
        note->breach = true;
        snprintf(note->invariant, sizeof(note->invariant), "TRACE");
        snprintf(note->text, sizeof(note->text), "%s: the %s did not pass %s a %u. time", plots[death->plot].name,
                 sim_who_names[death->who], sim_point_name(death->point), (unsigned)death->nth);
    } else if (note->breach) {
        char text[200];

        snprintf(text, sizeof(text), "%.110s; %.80s", note->where, result.text);
        memcpy(note->text, text, sizeof(note->text));
    }
}

/* False: a point was never reached. */
static bool points_print(const struct sum *sum)
{
    bool all = true;

    printf("%-26s %-12s %9s %7s %7s\n", "point", "process", "reached", "deaths", "failed");
    for (unsigned who = 0; who < WHOS; who++) {
        for (unsigned point = 0; point < sim_points_count(); point++) {
            uint64_t reached = plan.reached[who][point];

            if (!sim_point_of(point, (enum sim_who)who))
                continue;
            printf("%-26s %-12s %9" PRIu64 " %7" PRIu64 " %7" PRIu64 "%s\n", sim_point_name(point), sim_who_names[who], reached,
                   sum->deaths[who][point], sum->deaths_failed[who][point], reached == 0 ? "  NEVER REACHED" : "");
            all = all && reached > 0;
        }
    }
    return all;
}

int run_crash_points(unsigned count, unsigned jobs)
{
    struct sum sum;
    bool good;

    if (!plan_make(count ? count : 1))
        return 1;
    good = run_many(0, plan.count - 1, jobs, false, work_point, "point", &sum);
    good = points_print(&sum) && good;
    printf("%" PRIu64 " recoveries with a death at a named point, %" PRIu64 " died there, %" PRIu64 " failed\n", sum.done,
           sum.died, sum.failed);
    free(plan.deaths);
    return good && sum.failed == 0 && sum.done == sum.died && sum.done > 0 ? 0 : 1;
}
