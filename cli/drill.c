#include "cli/drill_run.h"

#include "base/clock.h"
#include "base/file.h"
#include "cli/show.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define TICK_MS 50u

uint64_t drill_offset_ms(const struct drill *d, uint64_t at_ns)
{
    return at_ns > d->rec.begin_ns ? (at_ns - d->rec.begin_ns) / MST_NS_PER_MS : 0;
}

void drill_event(struct drill *d, json_t *event)
{
    if (event && !json_object_get(event, "at_ms"))
        json_object_set_new(event, "at_ms", json_integer((json_int_t)drill_offset_ms(d, mst_now_ns())));
    if (event && d->events) {
        json_dumpf(event, d->events, JSON_COMPACT);
        fputc('\n', d->events);
    }
    json_decref(event);
}

void drill_say(struct drill *d, const char *fmt, ...)
{
    uint64_t ms = drill_offset_ms(d, mst_now_ns());
    char text[600];
    json_t *value;
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    fprintf(stderr, "[%4u.%03u s] %s\n", (unsigned)(ms / 1000), (unsigned)(ms % 1000), text);
    value = json_string(text);
    if (value)
        drill_event(d, json_pack("{s:s, s:o}", "event", "stage", "text", value));
}

/* --- life --- */

static void on_tick(uv_timer_t *timer)
{
    (void)timer; /* uv_run(ONCE) returns at least this often */
}

static void on_signal(uv_signal_t *handle, int signum)
{
    struct drill *d = handle->data;

    d->signals++;
    drill_say(d, "%s: %s", signum == SIGINT ? "interrupted" : "told to end",
              d->signals == 1 ? "cleaning up first; once more ends the waiting" : "not waiting any longer");
}

static void handles_open(struct drill *d)
{
    uv_timer_init(d->ctx->loop, &d->tick);
    uv_signal_init(d->ctx->loop, &d->sigint);
    uv_signal_init(d->ctx->loop, &d->sigterm);
    d->tick.data = d->sigint.data = d->sigterm.data = d;
    d->handles = 3;
    uv_timer_start(&d->tick, on_tick, TICK_MS, TICK_MS);
    uv_signal_start(&d->sigint, on_signal, SIGINT);
    uv_signal_start(&d->sigterm, on_signal, SIGTERM);
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct drill *d = handle->data;

    d->handles--;
}

static void handles_close(struct drill *d)
{
    uv_close((uv_handle_t *)&d->tick, on_handle_closed);
    uv_close((uv_handle_t *)&d->sigint, on_handle_closed);
    uv_close((uv_handle_t *)&d->sigterm, on_handle_closed);
    for (unsigned i = 0; i < d->fault_timers_count; i++)
        uv_close((uv_handle_t *)&d->fault_timers[i], on_handle_closed);
    while (d->handles > 0)
        uv_run(d->ctx->loop, UV_RUN_ONCE);
}

static int report_dir(struct drill *d, const char *dir, struct mst_why *why)
{
    char stamp[32], path[PATH_MAX];
    time_t now = (time_t)(mst_wall_ms() / 1000);
    struct tm utc;
    int r;

    gmtime_r(&now, &utc);
    strftime(stamp, sizeof(stamp), "%Y%m%dT%H%M%SZ", &utc);
    r = dir ? mst_path(d->dir, sizeof(d->dir), "%s", dir)
            : mst_path(d->dir, sizeof(d->dir), "drill-%s-%s", d->plan->conf->name, stamp);
    if (r >= 0)
        r = mst_mkdirs(d->dir, 0755);
    if (r >= 0)
        r = mst_path(path, sizeof(path), "%s/events.jsonl", d->dir);
    if (r < 0)
        return mst_why_set(why, r, "%s: %s", d->dir, strerror(-r));
    d->events = fopen(path, "we");
    return d->events ? 0 : mst_why_set(why, -errno, "%s: %s", path, strerror(errno));
}

static int drill_open(struct drill *d, struct context *ctx, const struct drill_plan *plan, const char *dir, struct mst_why *why)
{
    const struct mst_drill_conf *conf = plan->conf;
    int r;

    d->ctx = ctx;
    d->plan = plan;
    r = drill_record_init(&d->rec, conf->vms_count);
    if (r < 0)
        return mst_why_set(why, r, "out of memory");
    d->consoles = calloc(conf->vms_count, sizeof(*d->consoles));
    d->started = calloc(conf->vms_count, sizeof(*d->started));
    if (!d->consoles || !d->started)
        return mst_why_set(why, -ENOMEM, "out of memory");
    for (unsigned i = 0; i < conf->vms_count; i++)
        snprintf(d->rec.vms[i].name, sizeof(d->rec.vms[i].name), "%s", plan->definitions[i]->name);
    d->rec.begin_ns = mst_now_ns();
    d->rec.begin_wall_ms = mst_wall_ms();
    d->deadline_ns = d->rec.begin_ns + conf->timeout_ms * MST_NS_PER_MS;
    return report_dir(d, dir, why);
}

static void drill_close(struct drill *d)
{
    if (d->events)
        fclose(d->events);
    for (unsigned i = 0; i < DRILL_POLLS; i++) {
        json_decref(d->polls[i].pages);
        json_decref(d->polls[i].rows);
    }
    json_decref(d->barred);
    free(d->consoles);
    free(d->started);
    drill_record_free(&d->rec);
}

static int report(struct drill *d, bool judged, struct mst_why *why)
{
    struct drill_result result = {0};
    bool passed = false;
    json_t *object;
    int r = judged ? drill_judge(d->plan->conf, &d->rec, &result) : 0;

    if (r < 0)
        return mst_why_set(why, r, "out of memory");
    object = drill_report_json(d, judged ? &result : NULL);
    if (!object) {
        r = mst_why_set(why, -ENOMEM, "the report cannot be made");
        goto free_result;
    }
    passed = strcmp(json_string_value(json_object_get(object, "verdict")), "PASSED") == 0;
    r = drill_report_write(d, object, why);
    if (d->ctx->opt->json) {
        show_json(stdout, object);
    } else {
        drill_report_summary(stdout, object);
        printf("report: %s/report.json\n", d->dir);
    }
    json_decref(object);
free_result:
    drill_result_free(&result);
    if (r < 0)
        return r;
    return passed && !d->cleanup_failed ? EXIT_OK : EXIT_FAILED;
}

int drill_run_plan(struct context *ctx, const struct drill_plan *plan, const char *dir)
{
    struct drill *d = calloc(1, sizeof(*d));
    struct mst_why why = {0};
    bool watched = false;
    int r;

    if (!d)
        return complain(-ENOMEM, &why);
    r = drill_open(d, ctx, plan, dir, &why);
    if (r < 0)
        goto close_drill;
    handles_open(d);
    drill_link_up(d);
    r = drill_set_up(d);
    if (r == 0) {
        r = drill_watch(d);
        watched = true;
    }
    d->interrupted = r == -EINTR;
    d->rec.end_ns = d->rec.end_ns ? d->rec.end_ns : mst_now_ns();
    drill_clean_up(d);
    r = report(d, watched && d->rec.faults_count > 0, &why);
    if (ctx->client)
        client_on_event(ctx->client, NULL, NULL);
    handles_close(d);
close_drill:
    drill_close(d);
    free(d);
    return r < 0 ? complain(r, &why) : r;
}

int cmd_drill_run(struct context *ctx)
{
    struct drill_plan plan;
    struct mst_why why = {0};
    int r;

    if (!ctx->opt->injector) {
        fprintf(stderr, "mainstayctl: drill run: --injector PROGRAM is missing; it is run as PROGRAM KIND NODE [VM]\n");
        return EXIT_USAGE;
    }
    if (strchr(ctx->opt->injector, '/') && access(ctx->opt->injector, X_OK) < 0) {
        fprintf(stderr, "mainstayctl: drill run: --injector %s: %s\n", ctx->opt->injector, strerror(errno));
        return EXIT_USAGE;
    }
    r = drill_plan_load(ctx->opt->args[0], &plan, &why);
    if (r < 0) {
        complain(r, &why);
        return EXIT_USAGE;
    }
    r = drill_run_plan(ctx, &plan, ctx->opt->report);
    drill_plan_free(&plan);
    return r;
}
