#include "cli/events.h"

#include "base/clock.h"
#include "base/file.h"
#include "cli/commands.h"
#include "cli/show.h"

#include <errno.h>
#include <fts.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FILE_MAX  (256u << 20)
#define FILE_NAME "events.jsonl"

struct row {
    uint64_t wall_ns, boot_ns, n;
    json_t *event;
};

struct load {
    const struct events_filter *filter;
    struct row *rows;
    size_t count, room;
    unsigned files, bad;
    struct mst_why *why;
};

static bool is(const json_t *event, const char *key, const char *want)
{
    const char *value = json_string_value(json_object_get(event, key));

    return value && strcmp(value, want) == 0;
}

static bool wanted(const struct load *load, const json_t *event, uint64_t wall_ns)
{
    const struct events_filter *f = load->filter;

    return wall_ns >= f->since_ns && (!f->vm || is(event, "vm", f->vm)) &&
           (!f->node || is(event, "host", f->node) || is(event, "node", f->node));
}

/* Takes the reference. */
static int add(struct load *load, json_t *event)
{
    const json_t *wall = json_object_get(event, "wall_ns");
    struct row row = {.wall_ns = (uint64_t)json_integer_value(wall),
                      .boot_ns = (uint64_t)json_integer_value(json_object_get(event, "boot_ns")),
                      .n = (uint64_t)json_integer_value(json_object_get(event, "n")),
                      .event = event};

    if (!json_is_integer(wall) || !json_is_string(json_object_get(event, "event"))) {
        load->bad++;
        json_decref(event);
        return 0;
    }
    if (!wanted(load, event, row.wall_ns)) {
        json_decref(event);
        return 0;
    }
    if (load->count == load->room) {
        size_t room = load->room ? 2 * load->room : 1024;
        struct row *rows = reallocarray(load->rows, room, sizeof(*rows));

        if (!rows) {
            json_decref(event);
            return mst_why_set(load->why, -ENOMEM, "no memory for more than %zu events: use --since, --vm or --node",
                               load->count);
        }
        load->rows = rows;
        load->room = room;
    }
    load->rows[load->count++] = row;
    return 0;
}

static int load_file(struct load *load, const char *path)
{
    const char *at, *end;
    char *text;
    size_t len;
    int r = mst_file_read(path, FILE_MAX, &text, &len);

    if (r < 0)
        return mst_why_set(load->why, r, "%s: %s", path, strerror(-r));
    load->files++;
    /* By length: a machine that lost its power leaves bytes of zero, and what was written after its return lies behind them. */
    for (at = text; r == 0 && at < text + len; at = end + 1) {
        size_t left = (size_t)(text + len - at);
        json_t *event;

        end = memchr(at, '\n', left);
        if (!end)
            end = at + left;
        event = end > at ? json_loadb(at, (size_t)(end - at), JSON_REJECT_DUPLICATES, NULL) : NULL;
        if (event)
            r = add(load, event);
        else
            load->bad += end > at ? 1 : 0;
    }
    free(text);
    return r;
}

static int load_path(struct load *load, char *path)
{
    char *const paths[] = {path, NULL};
    FTS *fts = fts_open(paths, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
    FTSENT *entry;
    int r = fts ? 0 : mst_why_set(load->why, -errno, "%s: %s", path, strerror(errno));

    while (r == 0 && (entry = fts_read(fts))) {
        bool named = entry->fts_level == 0 || strncmp(entry->fts_name, FILE_NAME, strlen(FILE_NAME)) == 0;

        if (entry->fts_info == FTS_NS || entry->fts_info == FTS_DNR || entry->fts_info == FTS_ERR)
            r = mst_why_set(load->why, -entry->fts_errno, "%s: %s", entry->fts_path, strerror(entry->fts_errno));
        else if (entry->fts_info == FTS_F && named)
            r = load_file(load, entry->fts_path);
    }
    if (fts)
        fts_close(fts);
    return r;
}

static int compare_number(uint64_t a, uint64_t b)
{
    return a < b ? -1 : a > b;
}

static int compare(const void *a, const void *b)
{
    const struct row *ra = a, *rb = b;
    int r = compare_number(ra->wall_ns, rb->wall_ns);

    r = r ? r : compare_number(ra->boot_ns, rb->boot_ns);
    return r ? r : compare_number(ra->n, rb->n);
}

int events_load(char *const *paths, int count, const struct events_filter *filter, json_t **ret_events, unsigned *ret_bad,
                struct mst_why *why)
{
    struct load load = {.filter = filter, .why = why};
    json_t *events;
    int r = 0;

    for (int i = 0; i < count && r == 0; i++)
        r = load_path(&load, paths[i]);
    if (r == 0 && load.files == 0)
        r = mst_why_set(why, -ENODATA, "%s: no file is called " FILE_NAME " there", paths[0]);
    if (r == 0 && load.count > 0)
        qsort(load.rows, load.count, sizeof(*load.rows), compare);
    events = json_array();
    for (size_t i = 0; i < load.count; i++)
        json_array_append_new(events, load.rows[i].event);
    free(load.rows);
    if (r < 0) {
        json_decref(events);
        return r;
    }
    *ret_events = events;
    *ret_bad = load.bad;
    return 0;
}

int events_time(const char *text, uint64_t now_ns, uint64_t *ret_ns)
{
    static const struct {
        char unit;
        uint64_t seconds;
    } units[] = {{'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}};
    struct tm tm = {0};
    char *end;
    uint64_t number = strtoull(text, &end, 10);

    for (unsigned i = 0; end != text && text[0] != '-' && i < sizeof(units) / sizeof(units[0]); i++) {
        if (end[0] != units[i].unit || end[1] != '\0')
            continue;
        if (number > now_ns / MST_NS_PER_S / units[i].seconds)
            return -EINVAL;
        *ret_ns = now_ns - number * units[i].seconds * MST_NS_PER_S;
        return 0;
    }
    end = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);
    if (!end || (strcmp(end, "") != 0 && strcmp(end, "Z") != 0) || timegm(&tm) < 0)
        return -EINVAL;
    *ret_ns = (uint64_t)timegm(&tm) * MST_NS_PER_S;
    return 0;
}

/* --- the command --- */

static const struct show_column columns[] = {
    {"TIME", "time", NULL, 0},    {"HOST", "host", NULL, 0},   {"PROGRAM", "program", NULL, 0}, {"EVENT", "event", NULL, 0},
    {"VM", "vm", NULL, 0},        {"EPOCH", "epoch", NULL, 1}, {"NODE", "node", NULL, 0},       {"TERM", "term", NULL, 1},
    {"REC", "recovery", NULL, 1}, {"WHAT", "what", NULL, 0},   {"ERR", "err", NULL, 0},         {"TEXT", "text", NULL, 0},
};

static void add_times(json_t *events)
{
    size_t i;
    json_t *event;

    json_array_foreach(events, i, event)
    {
        char text[25];

        mst_wall_text((uint64_t)json_integer_value(json_object_get(event, "wall_ns")) / MST_NS_PER_MS, text);
        json_object_set_new(event, "time", json_string(text));
    }
}

int cmd_events(struct context *ctx)
{
    struct events_filter filter = {.vm = ctx->opt->vm, .node = ctx->opt->node};
    struct mst_why why = {0};
    json_t *events = NULL;
    unsigned bad = 0;
    int r;

    if (ctx->opt->since && events_time(ctx->opt->since, mst_wall_ns(), &filter.since_ns) < 0) {
        fprintf(stderr, "mainstayctl: --since %s: wants a time like 2026-11-23T14:05:01 (UTC), or 90s, 10m, 2h, 1d before now\n",
                ctx->opt->since);
        return EXIT_USAGE;
    }
    r = events_load(ctx->opt->args, ctx->opt->args_count, &filter, &events, &bad, &why);
    if (r < 0) {
        fprintf(stderr, "mainstayctl: %s\n", why.text);
        return EXIT_FAILED;
    }
    if (bad > 0)
        fprintf(stderr, "mainstayctl: %u lines are no events and are left out\n", bad);
    if (ctx->opt->json) {
        r = show_json(stdout, events);
    } else if (json_array_size(events) == 0) {
        puts("no events");
    } else {
        add_times(events);
        r = show_table(stdout, events, columns, sizeof(columns) / sizeof(columns[0]), 0);
    }
    json_decref(events);
    return r < 0 ? EXIT_FAILED : EXIT_OK;
}
