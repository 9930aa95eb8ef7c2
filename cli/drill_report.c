#include "cli/drill_run.h"

#include "base/clock.h"
#include "base/file.h"
#include "cli/show.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

/* The report is one JSON object; what people read is made from it alone, so that both say the same. */

#define REPORT_SCHEMA 1

static json_int_t offset_of(const struct drill *d, uint64_t at_ns)
{
    return (json_int_t)drill_offset_ms(d, at_ns);
}

/* Text of anybody: JSON wants UTF-8. */
static json_t *text_json(const char *text)
{
    json_t *value = json_string(text);

    return value ? value : json_string("(not UTF-8)");
}

static json_t *beat_json(const struct drill *d, const struct drill_beat *beat)
{
    json_t *object;

    if (!beat)
        return json_null();
    object = json_pack("{s:I, s:I, s:I, s:s, s:I}", "n", (json_int_t)beat->n, "at_ms", offset_of(d, beat->at_ns), "epoch",
                       (json_int_t)beat->epoch, "node", beat->node, "guest_ms", (json_int_t)beat->guest_ms);
    if (beat->late)
        json_object_set_new(object, "late", json_true());
    return object;
}

static json_t *checks_json(const struct drill_check *checks, unsigned count)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < count; i++)
        json_array_append_new(list,
                              json_pack("{s:s, s:o, s:s, s:b}", "objective", checks[i].name, "measured",
                                        text_json(checks[i].measured), "allowed", checks[i].allowed, "passed", checks[i].passed));
    return list;
}

static json_t *episode_json(const struct drill *d, const struct drill_episode *ep)
{
    json_t *object =
        json_pack("{s:s, s:s, s:I, s:I, s:b, s:s, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "from", ep->from, "to", ep->to,
                  "epoch_from", (json_int_t)ep->epoch_from, "epoch_to", (json_int_t)ep->epoch_to, "moved", ep->moved, "how",
                  ep->struck && !ep->moved && strcmp(ep->method, "none") == 0 ? "ran on"
                  : ep->struck                                                ? ep->method
                  : ep->moved                                                 ? ep->method
                                                                              : "undisturbed",
                  "memory_lost", ep->memory_lost, "t0_ms", offset_of(d, ep->t0_ns), "rto_ms", (json_int_t)ep->rto_ms, "gap_ms",
                  (json_int_t)ep->gap_ms, "lost_beats", (json_int_t)ep->lost_beats, "missed_beats", (json_int_t)ep->missed_beats,
                  "rpo_ms", (json_int_t)ep->rpo_ms, "recovery", (json_int_t)ep->recovery_id);

    if (ep->struck)
        json_object_set_new(object, "fault", json_integer(ep->fault));
    json_object_set_new(object, "last_beat", beat_json(d, ep->last));
    json_object_set_new(object, "first_beat", beat_json(d, ep->first));
    if (ep->start)
        json_object_set(object, "start", (json_t *)ep->start); /* where the time went: pull, verify, spawn, load */
    return object;
}

static const struct drill_episode *worst_episode(const struct drill_vm_result *res)
{
    const struct drill_episode *worst = &res->episodes[0];

    for (unsigned i = 1; i < res->episodes_count; i++)
        if (res->episodes[i].moved > worst->moved ||
            (res->episodes[i].moved == worst->moved && res->episodes[i].rto_ms > worst->rto_ms))
            worst = &res->episodes[i];
    return worst;
}

static json_t *vm_json(const struct drill *d, const struct drill_vm_result *res)
{
    const struct drill_vm_record *vm = res->vm;
    json_t *object = episode_json(d, worst_episode(res)), *episodes = json_array(), *struck_by = json_array();

    for (unsigned i = 0; i < res->episodes_count; i++)
        json_array_append_new(episodes, episode_json(d, &res->episodes[i]));
    for (unsigned i = 0; i < vm->hits_count; i++)
        json_array_append_new(struck_by, json_integer(vm->hits[i].fault));
    json_object_set_new(object, "vm", json_string(vm->name));
    json_object_set_new(object, "struck_by", struck_by);
    json_object_set_new(object, "episodes", episodes);
    json_object_set_new(object, "beats", json_integer((json_int_t)vm->beats_count));
    json_object_set_new(object, "console_bytes_missed", json_integer((json_int_t)vm->holes));
    json_object_set_new(object, "before",
                        json_pack("{s:I, s:I, s:I, s:s*}", "save_seq", (json_int_t)vm->save_seq, "save_age_ms",
                                  (json_int_t)vm->save_age_ms, "pause_us", (json_int_t)vm->pause_us, "standby",
                                  vm->standby[0] ? vm->standby : NULL));
    json_object_set_new(object, "objectives", checks_json(res->checks, res->checks_count));
    json_object_set_new(object, "verdict", json_string(res->passed ? "passed" : "FAILED"));
    return object;
}

static json_t *faults_json(const struct drill *d)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < d->rec.faults_count; i++) {
        const struct drill_fault_record *fault = &d->rec.faults[i];
        char wall[25];
        json_t *object = json_pack("{s:s, s:s, s:I, s:i, s:o}", "kind", fault->kind, "node", fault->node, "planned_ms",
                                   (json_int_t)fault->planned_ms, "status", fault->status, "text", text_json(fault->text));

        if (fault->vm[0])
            json_object_set_new(object, "vm", json_string(fault->vm));
        if (fault->t0_ns > 0) {
            json_object_set_new(object, "t0_ms", json_integer(offset_of(d, fault->t0_ns)));
            json_object_set_new(object, "t0_wall", json_string(mst_wall_text(fault->t0_wall_ms, wall)));
        }
        if (fault->returned_ns > 0)
            json_object_set_new(object, "returned_ms", json_integer(offset_of(d, fault->returned_ns)));
        json_array_append_new(list, object);
    }
    return list;
}

static json_t *measurement_json(const struct drill *d)
{
    json_t *outages = json_array();
    char host[64] = "";

    gethostname(host, sizeof(host) - 1);
    for (unsigned i = 0; i < d->rec.outages_count; i++)
        json_array_append_new(
            outages, json_pack("{s:I, s:o}", "from_ms", offset_of(d, d->rec.outages[i].from_ns), "to_ms",
                               d->rec.outages[i].to_ns ? json_integer(offset_of(d, d->rec.outages[i].to_ns)) : json_null()));
    return json_pack(
        "{s:s, s:o, s:s, s:i, s:o}", "clock", "CLOCK_BOOTTIME of the one machine that ran the drill; no clocks are compared",
        "host", text_json(host), "note",
        "T0 is taken just before the injector is started and a beat when its line has arrived here, so the injector's start and "
        "the "
        "console's way count against us. Beats marked late came after the console was opened again and may be older.",
        "poll_ms", (int)DRILL_POLL_MS, "outages", outages);
}

static void reasons_add(json_t *reasons, const char *who, const struct drill_check *checks, unsigned count)
{
    char text[300];

    for (unsigned i = 0; i < count; i++) {
        if (checks[i].passed)
            continue;
        snprintf(text, sizeof(text), "%s%s%s: %s (allowed: %s)", who, who[0] ? " " : "", checks[i].name, checks[i].measured,
                 checks[i].allowed);
        json_array_append_new(reasons, text_json(text));
    }
}

static json_t *reasons_json(const struct drill *d, const struct drill_result *result)
{
    json_t *reasons = json_array();
    char text[DRILL_TEXT_BYTES + 200];

    if (d->broken.text[0]) {
        snprintf(text, sizeof(text), "%s%s", d->timed_out ? "time is up: " : "", d->broken.text);
        json_array_append_new(reasons, text_json(text));
    }
    for (unsigned i = 0; result && i < result->vms_count; i++)
        reasons_add(reasons, result->vms[i].vm->name, result->vms[i].checks, result->vms[i].checks_count);
    if (result)
        reasons_add(reasons, "", result->checks, result->checks_count);
    for (unsigned i = 0; i < d->steps_count; i++) {
        if (d->steps[i].ok)
            continue;
        snprintf(text, sizeof(text), "clean-up: %s: %s", d->steps[i].what, d->steps[i].text);
        json_array_append_new(reasons, text_json(text));
    }
    return reasons;
}

static json_t *steps_json(const struct drill *d)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < d->steps_count; i++)
        json_array_append_new(list, json_pack("{s:s, s:b, s:o}", "step", d->steps[i].what, "ok", d->steps[i].ok, "text",
                                              text_json(d->steps[i].text)));
    return list;
}

static const char *verdict_of(const struct drill *d, const struct drill_result *result)
{
    if (d->interrupted)
        return "INTERRUPTED";
    if (!result)
        return "COULD NOT RUN";
    return result->passed && !d->timed_out && !d->broken.text[0] ? "PASSED" : "FAILED";
}

json_t *drill_report_json(const struct drill *d, const struct drill_result *result)
{
    const struct mst_drill_conf *conf = d->plan->conf;
    json_t *vms = json_array();
    char wall[25];

    for (unsigned i = 0; result && i < result->vms_count; i++)
        json_array_append_new(vms, vm_json(d, &result->vms[i]));
    return json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:I, s:s, s:b, s:o, s:o, s:o, s:o, s:O, s:o, s:o}", "schema", REPORT_SCHEMA,
                     "drill", conf->name, "text", conf->text ? conf->text : "", "file", d->plan->file ? d->plan->file : "",
                     "cluster", d->rec.cluster, "begun", mst_wall_text(d->rec.begin_wall_ms, wall), "duration_ms",
                     offset_of(d, d->rec.end_ns), "verdict", verdict_of(d, result), "cleaned_up", !d->cleanup_failed, "reasons",
                     reasons_json(d, result), "faults", faults_json(d), "vms", vms, "objectives",
                     result ? checks_json(result->checks, result->checks_count) : json_array(), "recoveries", d->rec.recoveries,
                     "clean_up", steps_json(d), "measurement", measurement_json(d));
}

/* --- for people --- */

static void cell_bytes(char *buf, size_t size, json_int_t bytes)
{
    if (bytes <= 0)
        snprintf(buf, size, "-");
    else if (bytes < 1 << 20)
        snprintf(buf, size, "%.1f KiB", (double)bytes / 1024);
    else
        snprintf(buf, size, "%.1f MiB", (double)bytes / (1 << 20));
}

static json_t *table_row(const json_t *vm)
{
    json_int_t bytes = json_integer_value(json_object_get(json_object_get(vm, "start"), "bytes_pulled"));
    bool struck = json_array_size(json_object_get(vm, "struck_by")) > 0 || json_is_true(json_object_get(vm, "moved"));
    bool moved = json_is_true(json_object_get(vm, "moved"));
    char pulled[32], rto[32];

    cell_bytes(pulled, sizeof(pulled), bytes);
    snprintf(rto, sizeof(rto), "%s%" JSON_INTEGER_FORMAT " ms", moved || !struck ? "" : "gap ",
             json_integer_value(json_object_get(vm, "rto_ms")));
    return json_pack("{s:O, s:O, s:O, s:O, s:s, s:s, s:O, s:O, s:O, s:O}", "vm", json_object_get(vm, "vm"), "from",
                     json_object_get(vm, "from"), "to", json_object_get(vm, "to"), "how", json_object_get(vm, "how"), "pulled",
                     pulled, "rto", struck ? rto : "-", "last", json_object_get(vm, "last_beat"), "first",
                     json_object_get(vm, "first_beat"), "lost", json_object_get(vm, "lost_beats"), "verdict",
                     json_object_get(vm, "verdict"));
}

void drill_report_summary(FILE *out, const json_t *report)
{
    static const struct show_column columns[] = {
        {"VM", "vm", NULL, 0},
        {"FROM", "from", NULL, 0},
        {"TO", "to", NULL, 0},
        {"HOW", "how", NULL, 0},
        {"PULLED", "pulled", NULL, 1},
        {"RTO", "rto", NULL, 1},
        {"LAST-BEAT", "last.n", NULL, 1},
        {"FIRST-BEAT", "first.n", NULL, 1},
        {"LOST", "lost", NULL, 1},
        {"VERDICT", "verdict", NULL, 0},
    };
    const json_t *reasons = json_object_get(report, "reasons");
    json_t *rows = json_array(), *item;
    char text[600];
    size_t i;

    fprintf(out, "drill %s: %s\n", json_string_value(json_object_get(report, "drill")),
            json_string_value(json_object_get(report, "text")));
    json_array_foreach(json_object_get(report, "faults"), i, item)
    {
        char node[80], vm[80], at[32];
        bool begun = json_object_get(item, "t0_ms") != NULL;
        fprintf(out, "  %s %s ms: %s %s %s\n", begun ? "at" : "not injected, planned at",
                show_value(item, begun ? "t0_ms" : "planned_ms", at, sizeof(at)), show_value(item, "kind", text, sizeof(text)),
                show_value(item, "node", node, sizeof(node)),
                json_object_get(item, "vm") ? show_value(item, "vm", vm, sizeof(vm)) : "");
    }
    json_array_foreach(json_object_get(report, "vms"), i, item) json_array_append_new(rows, table_row(item));
    if (json_array_size(rows) > 0) {
        fputc('\n', out);
        show_table(out, rows, columns, sizeof(columns) / sizeof(columns[0]), 0);
    }
    json_decref(rows);
    fprintf(out, "\n%s%s\n", show_value(report, "verdict", text, sizeof(text)),
            json_is_true(json_object_get(report, "cleaned_up")) ? "" : ", and not everything could be cleaned up");
    json_array_foreach(reasons, i, item) fprintf(out, "  %s\n", json_string_value(item));
}

static int file_write(const struct drill *d, const char *name, const char *text, size_t bytes, struct mst_why *why)
{
    char path[PATH_MAX];
    int r = mst_path(path, sizeof(path), "%s/%s", d->dir, name);

    if (r >= 0)
        r = mst_file_write_durable(path, text, bytes, 0644);
    return r < 0 ? mst_why_set(why, r, "%s/%s: %s", d->dir, name, strerror(-r)) : 0;
}

int drill_report_write(const struct drill *d, const json_t *report, struct mst_why *why)
{
    char *json = json_dumps(report, JSON_INDENT(2)), *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    int r = -ENOMEM;

    if (!json || !out) {
        mst_why_set(why, r, "out of memory");
        goto free_texts;
    }
    drill_report_summary(out, report);
    fflush(out);
    r = file_write(d, "report.json", json, strlen(json), why);
    if (r == 0)
        r = file_write(d, "summary.txt", text, bytes, why);
free_texts:
    if (out)
        fclose(out);
    free(text);
    free(json);
    return r;
}
