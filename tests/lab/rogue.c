/* A peer that does not keep to the rules, for tests/lab/bad-input: one connection, one kind of misbehaviour, and what the other side said to it.
 *
 *     rogue --from ADDRESS --coordinator ADDRESS:PORT [--cluster C] [--node N --id I --node-address A --node-port P] CASE
 *     rogue --from ADDRESS --keeper ADDRESS:PORT CASE
 *
 * Prints one line: `refused: ERRNO: sentence`, `closed: ERRNO: sentence`, `accepted: ...` or `silent: ...`.
 * Exit: 0 refused or closed, 1 accepted or no answer in time, 2 wrong usage or no RDMA device. */

#include "base/clock.h"
#include "fabric/fabric.h"
#include "proto/frame.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ANSWER_MS   10000u /* an emulated coordinator under load answers within a second */
#define CONNECT_MS  10000u
#define FLOOD_LINKS 20u  /* one after the other */
#define FLOOD_SENDS 200u /* messages on each */

struct options {
    const char *from, *cluster, *node, *node_address;
    char address[64];
    uint16_t port, node_port;
    uint32_t id;
};

struct result {
    bool opened, over;
    int err;            /* of on_open, on_closed, or of a Refuse */
    bool refused;       /* by a sentence, before or after the link opened */
    bool accepted;      /* Welcome */
    struct mst_why why; /* the sentence */
};

struct rogue_case {
    const char *name;
    bool keeper; /* who is meant */
    enum mst_role role;
    /* Writes what is sent into out (MST_MESSAGE_BYTES_MAX bytes) and returns its length; NULL: nothing is sent. */
    size_t (*make)(const struct options *opt, uint8_t *out);
    const char *help;
};

static uint8_t frame[MST_MESSAGE_BYTES_MAX];
static const struct rogue_case *chosen;
static size_t frame_bytes;
static unsigned repeat = 1;

/* --- what is sent --- */

static size_t noise(uint8_t *out, size_t len)
{
    uint64_t x = mst_random_u64();

    for (size_t i = 0; i < len; i++) {
        x = x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        out[i] = (uint8_t)(x >> 56);
    }
    return len;
}

static size_t hello(const struct options *opt, uint8_t *out, uint32_t version, const char *cluster, const char *node, uint32_t id)
{
    Mainstay__Hello body = MAINSTAY__HELLO__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    static uint8_t boot_id[16] = {0x66};
    struct mst_why why = {""};
    int n;

    body.protocol_version = version;
    body.cluster = (char *)(uintptr_t)cluster; /* packed, never written to */
    body.node = (char *)(uintptr_t)node;
    body.node_id = id;
    body.host_boot_id.data = boot_id;
    body.host_boot_id.len = sizeof(boot_id);
    body.instance = mst_random_u64();
    body.address = (char *)(uintptr_t)opt->node_address;
    body.port = opt->node_port;
    body.memory_mib = 1024;
    body.vcpus = 1;
    env.body_case = MAINSTAY__ENVELOPE__BODY_HELLO;
    env.hello = &body;
    n = mst_frame_pack_why(&env, out, MST_MESSAGE_BYTES_MAX, &why);
    if (n < 0) {
        fprintf(stderr, "rogue: Hello cannot be packed: %s\n", why.text);
        exit(2);
    }
    return (size_t)n;
}

static size_t good_hello(const struct options *opt, uint8_t *out)
{
    return hello(opt, out, MST_PROTOCOL_VERSION, opt->cluster, opt->node, opt->id);
}

static size_t wrong_version(const struct options *opt, uint8_t *out)
{
    return hello(opt, out, 99, opt->cluster, opt->node, opt->id);
}

static size_t wrong_frame_version(const struct options *opt, uint8_t *out)
{
    size_t len = good_hello(opt, out);

    out[2] = 99;
    return len;
}

static size_t unknown_node(const struct options *opt, uint8_t *out)
{
    return hello(opt, out, MST_PROTOCOL_VERSION, opt->cluster, "n777", 777);
}

static size_t wrong_cluster(const struct options *opt, uint8_t *out)
{
    return hello(opt, out, MST_PROTOCOL_VERSION, "elsewhere", opt->node, opt->id);
}

static size_t truncated(const struct options *opt, uint8_t *out)
{
    return good_hello(opt, out) - 7;
}

static size_t header_alone(const struct options *opt, uint8_t *out)
{
    good_hello(opt, out);
    return 5;
}

static size_t oversized_length(const struct options *opt, uint8_t *out)
{
    size_t len = good_hello(opt, out);

    memset(out + 4, 0xff, 4);
    return len;
}

static size_t oversized_noise(const struct options *opt, uint8_t *out)
{
    uint32_t body = MST_ENVELOPE_BYTES_MAX;

    good_hello(opt, out);
    for (unsigned i = 0; i < 4; i++)
        out[4 + i] = (uint8_t)(body >> (8 * i));
    noise(out + MST_FRAME_HEADER_BYTES, body);
    return MST_MESSAGE_BYTES_MAX;
}

static size_t garbage(const struct options *opt, uint8_t *out)
{
    (void)opt;
    return noise(out, 333);
}

/* A frame that says what it should, around what is no Envelope. */
static size_t garbage_in_frame(const struct options *opt, uint8_t *out)
{
    good_hello(opt, out);
    out[4] = 100;
    out[5] = out[6] = out[7] = 0;
    return MST_FRAME_HEADER_BYTES + noise(out + MST_FRAME_HEADER_BYTES, 100);
}

static size_t no_hello(const struct options *opt, uint8_t *out)
{
    Mainstay__FaultReport body = MAINSTAY__FAULT_REPORT__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    int n;

    body.kind = MAINSTAY__FAULT_KIND__FAULT_OPERATOR;
    body.node = (char *)(uintptr_t)opt->node;
    env.has_id = 1;
    env.id = 1;
    env.body_case = MAINSTAY__ENVELOPE__BODY_FAULT_REPORT;
    env.fault_report = &body;
    n = mst_frame_pack(&env, out, MST_MESSAGE_BYTES_MAX);
    return n > 0 ? (size_t)n : 0;
}

static const struct rogue_case cases[] = {
    {"wrong-version", false, MST_ROLE_CONTROL, wrong_version, "Hello with protocol_version 99"},
    {"wrong-frame-version", false, MST_ROLE_CONTROL, wrong_frame_version, "frame header of version 99"},
    {"id-taken", false, MST_ROLE_CONTROL, good_hello, "Hello of a node that is here already"},
    {"unknown-node", false, MST_ROLE_CONTROL, unknown_node, "Hello of node n777"},
    {"wrong-cluster", false, MST_ROLE_CONTROL, wrong_cluster, "Hello of cluster elsewhere"},
    {"truncated", false, MST_ROLE_CONTROL, truncated, "a Hello without its last 7 bytes"},
    {"header-alone", false, MST_ROLE_CONTROL, header_alone, "5 bytes of a header"},
    {"oversized-length", false, MST_ROLE_CONTROL, oversized_length, "a Hello that announces 4 GiB"},
    {"oversized-noise", false, MST_ROLE_CONTROL, oversized_noise, "64 KiB of noise in a frame"},
    {"garbage", false, MST_ROLE_CONTROL, garbage, "333 bytes of noise"},
    {"garbage-in-frame", false, MST_ROLE_CONTROL, garbage_in_frame, "100 bytes of noise in a frame"},
    {"no-hello", false, MST_ROLE_CONTROL, no_hello, "a fault report before any Hello"},
    {"flood", false, MST_ROLE_CONTROL, garbage, "20 links with 200 messages of noise each"},
    {"watch-at-coordinator", false, MST_ROLE_WATCH, NULL, "a watch link to a coordinator"},
    {"watch", true, MST_ROLE_WATCH, NULL, "a watch link from an address that is no coordinator"},
    {"control", true, MST_ROLE_CONTROL, good_hello, "a control link to a keeper"},
    {"pull-stranger", true, MST_ROLE_PULL, NULL, "a pull link from an address that is no peer"},
    {"pull-garbage", true, MST_ROLE_PULL, garbage, "noise on a pull link"},
    {"watch-garbage", true, MST_ROLE_WATCH, garbage, "noise on a watch link (from the coordinator's address)"},
};

/* --- the link --- */

static void on_open(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct result *result = arg;
    int r = 0;

    result->opened = true;
    if (err < 0) {
        result->over = true;
        result->err = err;
        result->refused = err != -ETIMEDOUT && err != -EHOSTUNREACH;
        result->why = *why;
        return;
    }
    for (unsigned i = 0; i < repeat && r == 0 && frame_bytes > 0; i++)
        r = mst_link_send(link, frame, frame_bytes);
}

static void on_message(struct mst_link *link, const void *data, size_t len, void *arg)
{
    struct result *result = arg;
    struct mst_why why = {""};
    mst_envelope *env;

    (void)link;
    if (mst_frame_unpack(data, len, &env, &why) < 0) {
        fprintf(stderr, "rogue: the answer is no message: %s\n", why.text);
        return;
    }
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_REFUSE) {
        result->refused = true;
        result->err = -env->refuse->error;
        mst_why_set(&result->why, 0, "%s", env->refuse->text);
    } else if (env->body_case == MAINSTAY__ENVELOPE__BODY_DONE && env->done->error != 0) {
        result->refused = true;
        result->err = -env->done->error;
        mst_why_set(&result->why, 0, "%s", env->done->text ? env->done->text : "");
    } else if (env->body_case == MAINSTAY__ENVELOPE__BODY_WELCOME || env->body_case == MAINSTAY__ENVELOPE__BODY_DONE) {
        result->accepted = true;
    } else {
        fprintf(stderr, "rogue: got message %d\n", (int)env->body_case);
    }
    mst_envelope_free(env);
}

static void on_closed(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct result *result = arg;

    (void)link;
    result->over = true;
    if (!result->refused) {
        result->err = err;
        result->why = *why;
    }
}

static const struct mst_link_events events = {.on_open = on_open, .on_message = on_message, .on_closed = on_closed};

static void on_tick(uv_timer_t *timer)
{
    (void)timer; /* wakes the loop, so that waiting ends in time */
}

/* One connection from beginning to end. */
static void attempt(uv_loop_t *loop, struct mst_fabric *fabric, const struct options *opt, struct result *result)
{
    uint64_t end_ms = mst_now_ms() + CONNECT_MS + ANSWER_MS;
    struct mst_link *link = NULL;
    int r;

    *result = (struct result){0};
    r = mst_fabric_connect(fabric, opt->address, opt->port, chosen->role, NULL, 0, CONNECT_MS, &events, result, &link,
                           &result->why);
    if (r < 0) {
        result->err = r;
        return;
    }
    while (!result->over && !result->accepted && mst_now_ms() < end_ms)
        uv_run(loop, UV_RUN_ONCE);
    if (result->over)
        return;
    end_ms = mst_now_ms() + 3000;
    result->err = -ETIMEDOUT;
    if (!result->accepted)
        mst_why_set(&result->why, 0, "link %s, no refusal within %u ms", result->opened ? "open" : "not open", ANSWER_MS);
    mst_link_close(link);
    while (!result->over && mst_now_ms() < end_ms)
        uv_run(loop, UV_RUN_ONCE);
    result->over = false; /* it was us */
}

static int judge(const struct result *result)
{
    if (result->accepted) {
        printf("accepted: the peer took %s for good\n", chosen->name);
        return 1;
    }
    if (result->refused)
        printf("refused: %s: %s\n", mst_errname(result->err), result->why.text);
    else if (result->over)
        printf("closed: %s: %s\n", mst_errname(result->err), result->why.text);
    else
        printf("silent: %s\n", result->why.text);
    return result->refused || result->over ? 0 : 1;
}

static int run(const struct options *opt)
{
    bool flood = strcmp(chosen->name, "flood") == 0;
    uv_loop_t *loop = uv_default_loop();
    struct mst_fabric *fabric;
    struct mst_why why = {""};
    struct result result;
    uv_timer_t ticker;
    int code = 0;

    if (mst_fabric_open(loop, opt->from, &fabric, &why) < 0) {
        fprintf(stderr, "rogue: %s\n", why.text);
        return 2;
    }
    uv_timer_init(loop, &ticker);
    uv_timer_start(&ticker, on_tick, 50, 50);
    if (chosen->make)
        frame_bytes = chosen->make(opt, frame);
    repeat = flood ? FLOOD_SENDS : 1;
    for (unsigned i = 0; i < (flood ? FLOOD_LINKS : 1) && code == 0; i++) {
        attempt(loop, fabric, opt, &result);
        if (!flood || i + 1 == FLOOD_LINKS || (!result.refused && !result.over))
            code = judge(&result);
    }
    return code; /* links and device go with the process */
}

/* --- command line --- */

static int usage(void)
{
    fprintf(stderr, "usage: rogue --from ADDRESS --coordinator|--keeper ADDRESS:PORT [--cluster C] [--node N] [--id I]\n"
                    "             [--node-address A] [--node-port P] CASE\n");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        fprintf(stderr, "  %-22s %s: %s\n", cases[i].name, cases[i].keeper ? "keeper" : "coordinator", cases[i].help);
    return 2;
}

static int parse_target(const char *text, struct options *opt)
{
    const char *colon = strrchr(text, ':');

    if (!colon || (size_t)(colon - text) >= sizeof(opt->address))
        return -1;
    memcpy(opt->address, text, (size_t)(colon - text));
    opt->port = (uint16_t)atoi(colon + 1);
    return opt->port ? 0 : -1;
}

int main(int argc, char **argv)
{
    static const struct option long_options[] = {
        {"from", required_argument, NULL, 'f'},
        {"coordinator", required_argument, NULL, 'c'},
        {"keeper", required_argument, NULL, 'k'},
        {"cluster", required_argument, NULL, 'C'},
        {"node", required_argument, NULL, 'n'},
        {"id", required_argument, NULL, 'i'},
        {"node-address", required_argument, NULL, 'a'},
        {"node-port", required_argument, NULL, 'p'},
        {NULL, 0, NULL, 0},
    };
    struct options opt = {.cluster = "lab", .node = "n1", .id = 1, .node_address = "10.7.0.1", .node_port = 7471};
    int c;

    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        if (c == 'f')
            opt.from = optarg;
        else if ((c == 'c' || c == 'k') && parse_target(optarg, &opt) < 0)
            return usage();
        else if (c == 'C')
            opt.cluster = optarg;
        else if (c == 'n')
            opt.node = optarg;
        else if (c == 'i')
            opt.id = (uint32_t)atoi(optarg);
        else if (c == 'a')
            opt.node_address = optarg;
        else if (c == 'p')
            opt.node_port = (uint16_t)atoi(optarg);
        else if (c == '?')
            return usage();
    }
    for (size_t i = 0; optind < argc && i < sizeof(cases) / sizeof(cases[0]); i++)
        if (strcmp(cases[i].name, argv[optind]) == 0)
            chosen = &cases[i];
    if (!chosen || !opt.from || !opt.port)
        return usage();
    return run(&opt);
}
