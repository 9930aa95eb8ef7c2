#ifndef MST_CLI_DRILL_RUN_H
#define MST_CLI_DRILL_RUN_H

#include "cli/commands.h"
#include "cli/drill_judge.h"
#include "cli/drill_record.h"

#include <limits.h>
#include <stdio.h>

/* A drill while it runs. Inside the drill engine only. Main thread; libuv callbacks never wait, the functions that wait (stages) are
 * straight lines of code that turn the loop by drill_pump. */

#define DRILL_POLL_MS     250u
#define DRILL_NODES_MS    90000u  /* nodes are waited for so long before the drill */
#define DRILL_START_MS    90000u  /* one VM's start */
#define DRILL_CLEANUP_MS  150000u /* all of the cleaning up but the injectors; less when the drill's timeout-ms is less */
#define DRILL_INJECTOR_MS 120000u /* an injector that takes longer is killed */

struct drill_plan { /* what is to be done; vms and definitions in the same order */
    struct mst_drill_conf *conf;
    Mainstay__VmDefinition **definitions;
    const char *file; /* for the report; borrowed */
};

struct drill_poll { /* one kind of view that is asked for again and again */
    Mainstay__What what;
    uint64_t id; /* of the request under way, 0: none */
    uint64_t asked_ns, answered_ns;
    uint32_t offset;
    json_t *pages, *rows; /* being collected; complete of the last round (array, NULL before the first) */
};
enum { DRILL_POLL_NODES, DRILL_POLL_VMS, DRILL_POLL_RECOVERIES, DRILL_POLLS };

struct drill_console {
    bool wanted, open;
    bool opened_before;
    uint64_t id; /* of the request */
    uint64_t retry_ns, late_until_ns;
};

struct drill_step { /* of cleaning up */
    char what[120];
    bool ok;
    char text[DRILL_TEXT_BYTES];
};

struct drill {
    struct context *ctx;
    const struct drill_plan *plan;
    struct drill_record rec;
    struct drill_console *consoles; /* one per VM */
    bool *started;                  /* VMs that this drill has defined */
    json_t *barred;                 /* object: names of nodes that took no VMs before the drill; they are left so */
    uint64_t undrain_ns;            /* when nodes were last told to take VMs again */
    char dir[PATH_MAX];
    FILE *events; /* events.jsonl */
    uint64_t deadline_ns;
    /* connection */
    struct drill_poll polls[DRILL_POLLS];
    uint64_t try_ns, backoff_ms;
    bool answered; /* since the connection was opened */
    bool recoveries_frozen;
    uint64_t recoveries_base; /* those up to this id were there before */
    bool recoveries_based;
    /* injections */
    struct drill_injection *injections; /* list; freed once their process has ended */
    uv_timer_t fault_timers[DRILL_FAULTS_MAX];
    unsigned fault_timers_count;
    bool faults_begun;
    /* loop */
    uv_timer_t tick;
    uv_signal_t sigint, sigterm;
    unsigned signals;
    unsigned handles; /* open ones of the three above and the fault timers */
    /* outcome */
    bool interrupted, timed_out;
    struct mst_why broken; /* why the drill could not go on; "" it could */
    struct drill_step steps[64];
    unsigned steps_count;
    bool cleanup_failed;
};

/* drill.c */
uint64_t drill_offset_ms(const struct drill *d, uint64_t at_ns); /* since the drill began */
/* Progress on stderr and an event. */
__attribute__((format(printf, 2, 3))) void drill_say(struct drill *d, const char *fmt, ...);
void drill_event(struct drill *d, json_t *event); /* takes the reference; adds at_ms unless there */
/* The engine: sets up, injects, watches, judges, cleans up, reports. Returns an exit code. dir: report folder, NULL for the default. */
int drill_run_plan(struct context *ctx, const struct drill_plan *plan, const char *dir);
/* Loads drill and definitions and checks them against each other. 0, -EINVAL and errors of conf/conf.h with why. */
int drill_plan_load(const char *path, struct drill_plan *ret_plan, struct mst_why *why);
int drill_plan_check(const struct drill_plan *plan, struct mst_why *why);
void drill_plan_free(struct drill_plan *plan);

/* drill_link.c */
void drill_link_up(struct drill *d); /* takes over ctx->client */
/* Turns the loop once (at most about 50 ms) and does what cannot be done in callbacks: connects again, asks again. */
void drill_pump(struct drill *d);
/* Sends one order and waits for its answer; connects first when that is needed. As client_order. */
int drill_order(struct drill *d, mst_envelope *env, uint32_t deadline_ms, struct mst_why *why);
bool drill_connected(const struct drill *d);
const json_t *drill_row(const struct drill *d, unsigned poll, const char *key, const char *name); /* NULL: none */
/* Whether poll has been answered by a request that was sent after at_ns. */
bool drill_polled_since(const struct drill *d, unsigned poll, uint64_t at_ns);

/* drill_inject.c */
void drill_faults_begin(struct drill *d); /* starts the timers of all faults */
bool drill_faults_done(const struct drill *d);
void drill_faults_stop(struct drill *d); /* those that have not begun will not */
/* Runs one injection now and waits for it. 0 or -EIO with why. */
int drill_inject_wait(struct drill *d, const struct mst_drill_fault *fault, struct mst_why *why);
void drill_injections_close(struct drill *d); /* waits until all injectors have ended */

/* drill_stages.c: 0, or -errno with d->broken said */
int drill_set_up(struct drill *d);
int drill_watch(struct drill *d);
void drill_clean_up(struct drill *d);

/* drill_report.c */
json_t *drill_report_json(const struct drill *d, const struct drill_result *result); /* new reference */
/* The summary for people, made from the report alone. */
void drill_report_summary(FILE *out, const json_t *report);
/* report.json and summary.txt into d->dir. 0 or -errno with why. */
int drill_report_write(const struct drill *d, const json_t *report, struct mst_why *why);

#endif
