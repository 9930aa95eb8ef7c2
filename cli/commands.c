#include "cli/commands.h"

#include "cli/show.h"
#include "conf/conf.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <unistd.h>

int complain(int err, const struct mst_why *why)
{
    fprintf(stderr, "mainstayctl: %s\n", why->text[0] ? why->text : mst_errname(err));
    switch (-err) {
    case ENOENT:
    case ECONNREFUSED:
    case ECONNRESET:
    case ENOTCONN:
    case ETIMEDOUT:
        return EXIT_NO_ANSWER;
    default:
        return EXIT_FAILED;
    }
}

/* A refusal is an answer, whatever its errno is called. */
static int complain_of_request(struct context *ctx, int err, const struct mst_why *why)
{
    int code = complain(err, why);

    return client_answered(ctx->client) ? EXIT_FAILED : code;
}

/* --- views --- */

/* Adds the lists and fields of one page to what came before. */
static int view_add(json_t *all, const Mainstay__View *page)
{
    json_t *part = show_message_json(&page->base), *value;
    const char *key;

    if (!part)
        return -ENOMEM;
    json_object_foreach(part, key, value)
    {
        json_t *have = json_object_get(all, key);
        if (json_is_array(have))
            json_array_extend(have, value);
        else
            json_object_set(all, key, value);
    }
    json_decref(part);
    return 0;
}

int fetch_view(struct context *ctx, Mainstay__What what, const char *name, uint64_t id, json_t **ret_view, struct mst_why *why)
{
    json_t *all = json_object();
    uint32_t offset = 0;
    bool more = true;
    int r = 0;

    while (r == 0 && more) {
        Mainstay__Query query = MAINSTAY__QUERY__INIT;
        mst_envelope env = MAINSTAY__ENVELOPE__INIT, *reply = NULL;

        query.what = what;
        query.name = (char *)name; /* packed, never written to */
        query.has_id = id != 0;
        query.id = id;
        query.has_offset = offset != 0;
        query.offset = offset;
        env.body_case = MAINSTAY__ENVELOPE__BODY_QUERY;
        env.query = &query;
        r = client_request(ctx->client, &env, ctx->opt->timeout_ms, &reply, why);
        if (r < 0)
            break;
        more = false;
        if (reply->body_case == MAINSTAY__ENVELOPE__BODY_VIEW) {
            r = view_add(all, reply->view);
            /* An offset that does not grow would ask for ever. */
            more = reply->view->has_next_offset && reply->view->next_offset > offset;
            offset = reply->view->next_offset;
        } else if (reply->body_case == MAINSTAY__ENVELOPE__BODY_DONE && reply->done->error != 0) {
            r = mst_why_set(why, reply->done->error > 0 ? -reply->done->error : -EPROTO, "%s",
                            reply->done->text ? reply->done->text : "refused");
        } else {
            r = mst_why_set(why, -EPROTO,
                            "the coordinator answered with an unexpected message: do its version and this one fit?");
        }
        mst_envelope_free(reply);
    }
    if (r < 0) {
        json_decref(all);
        return r;
    }
    json_object_del(all, "next_offset");
    *ret_view = all;
    return 0;
}

static size_t terminal_width(void)
{
    const char *columns = getenv("COLUMNS");
    struct winsize size;

    if (columns && atoi(columns) > 0)
        return (size_t)atoi(columns);
    if (isatty(STDOUT_FILENO) && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
        return size.ws_col;
    return 0;
}

static const struct show_column node_columns[] = {
    {"NODE", "node", NULL, 0},           {"STATE", "state", NULL, 0},
    {"AGENT", "agent_up", NULL, 0},      {"VMS", "vms", NULL, 1},
    {"MEMORY", "memory_mib", " MiB", 1}, {"USED", "memory_used_mib", " MiB", 1},
    {"VCPUS", "vcpus", NULL, 1},         {"BEAT", "beat_age_ms", " ms", 1},
    {"READS", "beat_reads", NULL, 1},    {"GAP", "beat_gap_max_ms", " ms", 1},
    {"RACK", "rack", NULL, 0},           {"FENCE", "fence", NULL, 0},
    {"NOTE", "text", NULL, 0},
};
static const struct show_column vm_columns[] = {
    {"VM", "vm", NULL, 0},
    {"STATE", "state", NULL, 0},
    {"NODE", "node", NULL, 0},
    {"EPOCH", "epoch", NULL, 1},
    {"PROTECT", "definition.protect", NULL, 0},
    {"CHECKPOINT", "save_seq", NULL, 1},
    {"AGE", "save_age_ms", " ms", 1},
    {"PAUSE", "pause_us", " us", 1},
    {"EVERY", "interval_ms", " ms", 1},
    {"MIRROR", "mirror", NULL, 0},
    {"NOTE", "text", NULL, 0},
};
static const struct show_column fault_columns[] = {
    {"ID", "id", NULL, 1},           {"KIND", "report.kind", NULL, 0},         {"NODE", "report.node", NULL, 0},
    {"VM", "report.vm", NULL, 0},    {"REPORTER", "report.reporter", NULL, 0}, {"RECOVERY", "recovery_id", NULL, 1},
    {"VERDICT", "verdict", NULL, 0}, {"EVIDENCE", "report.text", NULL, 0},
};
static const struct show_column recovery_columns[] = {
    {"ID", "id", NULL, 1},     {"FAULT", "fault_id", NULL, 1}, {"KIND", "kind", NULL, 0},
    {"NODE", "node", NULL, 0}, {"STATE", "state", NULL, 0},    {"PROOF", "fence_proof", NULL, 0},
};
static const struct show_column step_columns[] = {
    {"STATE", "state", NULL, 0},
    {"AFTER", "offset_us", " us", 1},
    {"WHY", "text", NULL, 0},
};
static const struct show_column recovery_vm_columns[] = {
    {"VM", "vm", NULL, 0},
    {"FROM", "from", NULL, 0},
    {"TO", "to", NULL, 0},
    {"EPOCH", "epoch_to", NULL, 1},
    {"HOW", "start.method", NULL, 0},
    {"PULLED", "start.bytes_pulled", " B", 1},
    {"PULL", "start.pull_us", " us", 1},
    {"SPAWN", "start.spawn_us", " us", 1},
    {"STANDBY", "start.standby", NULL, 0},
    {"LOAD", "start.load_us", " us", 1},
    {"OUTCOME", "outcome", NULL, 0},
    {"NOTE", "text", NULL, 0},
};
static const struct show_column mirror_columns[] = {
    {"MIRROR", "node", NULL, 0},
    {"STATE", "state", NULL, 0},
    {"COUNTS", "counts", NULL, 0},
    {"SINCE", "since_wall_ms", " ms", 1},
    {"CHECKPOINT", "acked_seq", NULL, 1},
    {"OF", "sent_seq", NULL, 1},
    {"BEHIND", "behind_ms", " ms", 1},
    {"ACKED-AFTER", "acked_after_us", " us", 1},
    {"SENT", "sent_bytes", " B", 1},
    {"STANDBY", "standby", NULL, 0},
    {"NOTE", "text", NULL, 0},
};
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static int print_rows(const json_t *view, const char *key, const struct show_column *columns, size_t count)
{
    const json_t *rows = json_object_get(view, key);

    if (json_array_size(rows) == 0) {
        printf("no %s\n", key);
        return EXIT_OK;
    }
    return show_table(stdout, rows, columns, count, terminal_width()) < 0 ? EXIT_FAILED : EXIT_OK;
}

/* A list: the whole view as JSON, or one table of it. */
static int list(struct context *ctx, Mainstay__What what, const char *key, const struct show_column *columns, size_t count)
{
    struct mst_why why = {0};
    json_t *view = NULL;
    int r = fetch_view(ctx, what, NULL, 0, &view, &why), code;

    if (r < 0)
        return complain_of_request(ctx, r, &why);
    code = ctx->opt->json ? (show_json(stdout, json_object_get(view, key)) < 0 ? EXIT_FAILED : EXIT_OK)
                          : print_rows(view, key, columns, count);
    json_decref(view);
    return code;
}

int cmd_node_list(struct context *ctx)
{
    return list(ctx, MAINSTAY__WHAT__WHAT_NODES, "nodes", node_columns, COUNT(node_columns));
}

int cmd_vm_list(struct context *ctx)
{
    return list(ctx, MAINSTAY__WHAT__WHAT_VMS, "vms", vm_columns, COUNT(vm_columns));
}

int cmd_fault_list(struct context *ctx)
{
    return list(ctx, MAINSTAY__WHAT__WHAT_FAULTS, "faults", fault_columns, COUNT(fault_columns));
}

int cmd_recovery_list(struct context *ctx)
{
    return list(ctx, MAINSTAY__WHAT__WHAT_RECOVERIES, "recoveries", recovery_columns, COUNT(recovery_columns));
}

int cmd_status(struct context *ctx)
{
    struct mst_why why = {0};
    json_t *view = NULL, *vms = NULL;
    char cluster[MST_NAME_BYTES], text[512];
    int r = fetch_view(ctx, MAINSTAY__WHAT__WHAT_STATUS, NULL, 0, &view, &why), code;

    if (r == 0)
        r = fetch_view(ctx, MAINSTAY__WHAT__WHAT_VMS, NULL, 0, &vms, &why); /* the status view has nodes and recoveries only */
    if (r < 0) {
        json_decref(view);
        return complain_of_request(ctx, r, &why);
    }
    json_object_set(view, "vms", json_object_get(vms, "vms"));
    json_decref(vms);
    if (ctx->opt->json) {
        code = show_json(stdout, view) < 0 ? EXIT_FAILED : EXIT_OK;
    } else {
        printf("cluster %s: %s\n\n", show_value(view, "cluster", cluster, sizeof(cluster)),
               json_object_get(view, "text") ? show_value(view, "text", text, sizeof(text)) : "nothing to report");
        code = print_rows(view, "nodes", node_columns, COUNT(node_columns));
        putchar('\n');
        if (code == EXIT_OK)
            code = print_rows(view, "vms", vm_columns, COUNT(vm_columns));
        if (code == EXIT_OK && json_array_size(json_object_get(view, "recoveries")) > 0) {
            printf("\nrecoveries under way\n");
            code = print_rows(view, "recoveries", recovery_columns, COUNT(recovery_columns));
        }
    }
    json_decref(view);
    return code;
}

/* key = value lines of one object; nested objects are shown with dotted keys. */
static void print_object(const json_t *object, const char *prefix)
{
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)object, key, value)
    {
        char name[128], text[512];
        snprintf(name, sizeof(name), "%s%s%s", prefix, prefix[0] ? "." : "", key);
        if (json_is_object(value)) {
            print_object(value, name);
        } else if (json_is_array(value)) {
            size_t i;
            json_t *item;
            json_array_foreach(value, i, item) if (json_is_string(item)) printf("%-32s %s\n", name, json_string_value(item));
        } else {
            printf("%-32s %s\n", name, show_value(object, key, text, sizeof(text)));
        }
    }
}

static int show_one(struct context *ctx, Mainstay__What what, const char *key, const char *noun, const char *name, uint64_t id)
{
    struct mst_why why = {0};
    json_t *view = NULL, *row;
    int r = fetch_view(ctx, what, name, id, &view, &why), code = EXIT_OK;

    if (r < 0)
        return complain_of_request(ctx, r, &why);
    row = json_array_get(json_object_get(view, key), 0);
    if (!row) {
        fprintf(stderr, "mainstayctl: there is no %s '%s'; `mainstayctl %s list` shows what there is\n", noun, ctx->opt->args[0],
                noun);
        code = EXIT_FAILED;
    } else if (ctx->opt->json) {
        code = show_json(stdout, row) < 0 ? EXIT_FAILED : EXIT_OK;
    } else {
        print_object(row, "");
        if (json_array_size(json_object_get(row, "mirrors")) > 0) {
            putchar('\n');
            show_table(stdout, json_object_get(row, "mirrors"), mirror_columns, COUNT(mirror_columns), terminal_width());
        }
        if (json_array_size(json_object_get(row, "steps")) > 0) {
            putchar('\n');
            show_table(stdout, json_object_get(row, "steps"), step_columns, COUNT(step_columns), terminal_width());
        }
        if (what == MAINSTAY__WHAT__WHAT_RECOVERIES && json_array_size(json_object_get(row, "vms")) > 0) {
            putchar('\n');
            show_table(stdout, json_object_get(row, "vms"), recovery_vm_columns, COUNT(recovery_vm_columns), terminal_width());
        }
    }
    json_decref(view);
    return code;
}

int cmd_node_show(struct context *ctx)
{
    return show_one(ctx, MAINSTAY__WHAT__WHAT_NODES, "nodes", "node", ctx->opt->args[0], 0);
}

int cmd_vm_show(struct context *ctx)
{
    return show_one(ctx, MAINSTAY__WHAT__WHAT_VMS, "vms", "vm", ctx->opt->args[0], 0);
}

int cmd_recovery_show(struct context *ctx)
{
    char *end;
    uint64_t id = strtoull(ctx->opt->args[0], &end, 10);

    if (*end != '\0' || id == 0) {
        fprintf(stderr, "mainstayctl: '%s' is not the number of a recovery; `mainstayctl recovery list` shows them\n",
                ctx->opt->args[0]);
        return EXIT_USAGE;
    }
    return show_one(ctx, MAINSTAY__WHAT__WHAT_RECOVERIES, "recoveries", "recovery", NULL, id);
}

/* --- requests --- */

/* Sends a request and says how it went: in the coordinator's words, or, when it has none, that name `what`. */
static int order(struct context *ctx, mst_envelope *env, const char *what, const char *name)
{
    struct mst_why why = {0}, answer = {0};
    int r = client_order(ctx->client, env, ctx->opt->timeout_ms, &answer, &why);
    char said[sizeof(answer.text) + 256];

    if (r < 0)
        return complain_of_request(ctx, r, &why);
    if (!answer.text[0])
        snprintf(said, sizeof(said), "%s %s", name, what);
    else if (strncmp(answer.text, name, strlen(name)) == 0)
        snprintf(said, sizeof(said), "%s", answer.text);
    else
        snprintf(said, sizeof(said), "%s: %s", name, answer.text);
    if (ctx->opt->json) {
        json_t *object = json_pack("{s:b, s:s}", "ok", 1, "text", said);
        show_json(stdout, object);
        json_decref(object);
    } else {
        puts(said);
    }
    return EXIT_OK;
}

int cmd_node_drain(struct context *ctx)
{
    Mainstay__NodeDrain body = MAINSTAY__NODE_DRAIN__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.node = ctx->opt->args[0];
    body.has_undo = body.undo = ctx->opt->undo;
    env.body_case = MAINSTAY__ENVELOPE__BODY_NODE_DRAIN;
    env.node_drain = &body;
    return order(ctx, &env, ctx->opt->undo ? "takes VMs again" : "is being drained; `mainstayctl recovery list` shows the moves",
                 body.node);
}

int cmd_node_confirm_dead(struct context *ctx)
{
    Mainstay__NodeConfirmDead body = MAINSTAY__NODE_CONFIRM_DEAD__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.node = ctx->opt->args[0];
    body.text = (char *)ctx->opt->text;
    env.body_case = MAINSTAY__ENVELOPE__BODY_NODE_CONFIRM_DEAD;
    env.node_confirm_dead = &body;
    return order(ctx, &env, "is taken for dead on your word", body.node);
}

int cmd_cluster_resume(struct context *ctx)
{
    Mainstay__ClusterResume body = MAINSTAY__CLUSTER_RESUME__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.text = (char *)ctx->opt->text;
    env.body_case = MAINSTAY__ENVELOPE__BODY_CLUSTER_RESUME;
    env.cluster_resume = &body;
    return order(ctx, &env, "is not held back any more", "the cluster");
}

int cmd_vm_define(struct context *ctx)
{
    for (int i = 0; i < ctx->opt->args_count; i++) {
        Mainstay__VmDefine body = MAINSTAY__VM_DEFINE__INIT;
        mst_envelope env = MAINSTAY__ENVELOPE__INIT;
        struct mst_why why = {0};
        int code, r = mst_vm_definition_load(ctx->opt->args[i], &body.definition, &why);

        if (r < 0) {
            complain(r, &why);
            return EXIT_USAGE;
        }
        body.has_replace = body.replace = ctx->opt->replace;
        env.body_case = MAINSTAY__ENVELOPE__BODY_VM_DEFINE;
        env.vm_define = &body;
        code = order(ctx, &env, "is defined", body.definition->name);
        mainstay__vm_definition__free_unpacked(body.definition, NULL);
        if (code != EXIT_OK)
            return code;
    }
    return EXIT_OK;
}

int cmd_vm_undefine(struct context *ctx)
{
    Mainstay__VmUndefine body = MAINSTAY__VM_UNDEFINE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.vm = ctx->opt->args[0];
    env.body_case = MAINSTAY__ENVELOPE__BODY_VM_UNDEFINE;
    env.vm_undefine = &body;
    return order(ctx, &env, "is no longer defined", body.vm);
}

int cmd_vm_start(struct context *ctx)
{
    Mainstay__VmStart body = MAINSTAY__VM_START__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.vm = ctx->opt->args[0];
    body.node = (char *)ctx->opt->node;
    env.body_case = MAINSTAY__ENVELOPE__BODY_VM_START;
    env.vm_start = &body;
    return order(ctx, &env, "is running", body.vm);
}

int cmd_vm_stop(struct context *ctx)
{
    Mainstay__VmStop body = MAINSTAY__VM_STOP__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.vm = ctx->opt->args[0];
    env.body_case = MAINSTAY__ENVELOPE__BODY_VM_STOP;
    env.vm_stop = &body;
    return order(ctx, &env, "is stopped", body.vm);
}

/* "vm-exited" or "VM_EXITED" -> the enum value, by the generated names. */
static int fault_kind(const char *word, Mainstay__FaultKind *ret_kind)
{
    const ProtobufCEnumDescriptor *desc = &mainstay__fault_kind__descriptor;
    char name[64] = "FAULT_";
    size_t n = strlen(name);

    for (; *word && n + 1 < sizeof(name); word++)
        name[n++] = (char)(*word == '-' ? '_' : toupper((unsigned char)*word));
    name[n] = '\0';
    for (unsigned i = 0; i < desc->n_values; i++)
        if (strcmp(desc->values[i].name, name) == 0 && desc->values[i].value != 0) {
            *ret_kind = (Mainstay__FaultKind)desc->values[i].value;
            return 0;
        }
    return -EINVAL;
}

int cmd_fault_report(struct context *ctx)
{
    Mainstay__FaultReport body = MAINSTAY__FAULT_REPORT__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    static char reporter[] = "operator";

    if (!ctx->opt->node) {
        fprintf(stderr, "mainstayctl: fault report: --node NODE is missing\n");
        return EXIT_USAGE;
    }
    body.kind = MAINSTAY__FAULT_KIND__FAULT_EXTERNAL;
    if (ctx->opt->kind && fault_kind(ctx->opt->kind, &body.kind) < 0) {
        fprintf(stderr, "mainstayctl: fault report: --kind %s is not a kind of fault; allowed:", ctx->opt->kind);
        for (unsigned i = 1; i < mainstay__fault_kind__descriptor.n_values; i++) {
            char word[64];
            snprintf(word, sizeof(word), "%s", mainstay__fault_kind__descriptor.values[i].name + strlen("FAULT_"));
            for (char *c = word; *c; c++)
                *c = (char)(*c == '_' ? '-' : tolower((unsigned char)*c));
            fprintf(stderr, " %s", word);
        }
        fputc('\n', stderr);
        return EXIT_USAGE;
    }
    body.node = (char *)ctx->opt->node;
    body.vm = (char *)ctx->opt->vm;
    body.text = (char *)ctx->opt->text;
    body.reporter = reporter;
    env.body_case = MAINSTAY__ENVELOPE__BODY_FAULT_REPORT;
    env.fault_report = &body;
    return order(ctx, &env, "fault report is stored", body.vm ? body.vm : body.node);
}

/* --- console --- */

struct console {
    struct context *ctx;
    uint64_t request_id;
    int code;
    bool ended;
};

static void on_console(const mst_envelope *env, void *arg)
{
    struct console *console = arg;

    if (env->body_case == MAINSTAY__ENVELOPE__BODY_CONSOLE_DATA) {
        fwrite(env->console_data->data.data, 1, env->console_data->data.len, stdout);
        fflush(stdout);
    } else if (env->has_reply_to && env->reply_to == console->request_id && env->body_case == MAINSTAY__ENVELOPE__BODY_DONE) {
        console->ended = true;
        if (env->done->error != 0) {
            fprintf(stderr, "mainstayctl: %s\n", env->done->text ? env->done->text : "the coordinator refused");
            console->code = EXIT_FAILED;
        }
        uv_stop(console->ctx->loop);
    }
}

int cmd_vm_console(struct context *ctx)
{
    Mainstay__ConsoleRequest body = MAINSTAY__CONSOLE_REQUEST__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    struct console console = {.ctx = ctx};

    body.vm = ctx->opt->args[0];
    body.has_follow = body.follow = ctx->opt->follow;
    body.has_from_start = body.from_start = !ctx->opt->follow || ctx->opt->from_start;
    env.body_case = MAINSTAY__ENVELOPE__BODY_CONSOLE_REQUEST;
    env.console_request = &body;
    client_on_event(ctx->client, on_console, &console);
    if (client_post(ctx->client, &env, &console.request_id) < 0) {
        fprintf(stderr, "mainstayctl: the connection to the coordinator is gone\n");
        return EXIT_NO_ANSWER;
    }
    while (!console.ended && client_alive(ctx->client))
        uv_run(ctx->loop, UV_RUN_DEFAULT);
    client_on_event(ctx->client, NULL, NULL);
    return console.ended ? console.code : EXIT_NO_ANSWER;
}
