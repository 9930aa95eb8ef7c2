/* Latency of small READs through the fabric, to be held against perftest's ib_read_lat: one READ in flight, the next one when it is done.
 *
 *     read_lat serve ADDRESS PORT                        serves one client after the other, for ever
 *     read_lat read ADDRESS SERVER PORT BYTES COUNT      READs by mst_link_read (event-driven, from the loop)
 *     read_lat watch ADDRESS SERVER PORT BYTES COUNT     READs of the watcher's thread, one a millisecond
 *
 * Prints one JSON object in microseconds; typical is the median, as ib_read_lat has it. The first tenth is not counted. */

#include "base/clock.h"
#include "fabric/fabric.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT_MAX 1000000u
#define IO_MS     5000u

static uv_loop_t *loop;
static uint8_t page[4096] __attribute__((aligned(4096)));

/* --- server --- */

struct served {
    struct mst_region *region;
};

static void served_open(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct served *served = arg;
    struct mst_why reason = {""};
    uint64_t addr;
    uint32_t rkey;
    char text[64];

    if (err < 0) {
        fprintf(stderr, "read_lat: %s\n", why->text);
        free(served);
        return;
    }
    if (mst_region_new(link, page, sizeof(page), MST_ACCESS_REMOTE_READ, &served->region, &reason) < 0) {
        fprintf(stderr, "read_lat: %s\n", reason.text);
        mst_link_close(link);
        return;
    }
    mst_region_key(served->region, &addr, &rkey);
    mst_link_send(link, text, (size_t)snprintf(text, sizeof(text), "%" PRIx64 " %" PRIx32, addr, rkey));
}

static void served_message(struct mst_link *link, const void *data, size_t len, void *arg)
{
    (void)link, (void)data, (void)len, (void)arg;
}

static void served_closed(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    (void)link, (void)err, (void)why;
    free(arg);
}

static const struct mst_link_events served_events = {
    .on_open = served_open, .on_message = served_message, .on_closed = served_closed};

static int on_accept(struct mst_link *link, const struct mst_link_request *request, void *arg,
                     const struct mst_link_events **ret_events, void **ret_arg, struct mst_why *why)
{
    (void)link, (void)request, (void)arg, (void)why;
    *ret_events = &served_events;
    *ret_arg = calloc(1, sizeof(struct served));
    return *ret_arg ? 0 : -1;
}

static int serve(struct mst_fabric *fabric, uint16_t port)
{
    struct mst_why why = {""};

    if (mst_fabric_listen(fabric, port, on_accept, NULL, &why) < 0) {
        fprintf(stderr, "read_lat: %s\n", why.text);
        return 1;
    }
    puts("listening");
    return uv_run(loop, UV_RUN_DEFAULT);
}

/* --- client --- */

struct client {
    struct mst_link *link;
    struct mst_region *local;
    struct mst_watcher *watcher;
    uint64_t addr;
    uint32_t rkey, bytes, count, skip, taken, seen;
    uint64_t posted_ns, last_reads;
    uint64_t *took_ns;
    bool watch, over;
    int err;
};

static void fail(struct client *client, int err, const char *text)
{
    fprintf(stderr, "read_lat: %s: %s\n", mst_errname(err), text);
    client->err = err;
    client->over = true;
}

static void note(struct client *client, uint64_t took_ns)
{
    if (client->seen++ >= client->skip)
        client->took_ns[client->taken++] = took_ns;
    client->over = client->taken == client->count;
}

static void read_next(struct client *client);

static void on_read(void *arg, int err)
{
    struct client *client = arg;

    if (err < 0) {
        fail(client, err, "a READ failed");
        return;
    }
    note(client, mst_now_ns() - client->posted_ns);
    if (!client->over)
        read_next(client);
}

static void read_next(struct client *client)
{
    int r;

    client->posted_ns = mst_now_ns();
    r = mst_link_read(client->link, client->local, 0, client->addr, client->rkey, client->bytes, IO_MS, on_read, client);
    if (r < 0)
        fail(client, r, "a READ was not posted");
}

static void on_sample(void *arg)
{
    struct client *client = arg;
    struct mst_watch_sample sample;

    if (client->over || mst_watcher_sample(client->watcher, 1, &sample) < 0)
        return;
    if (sample.error < 0)
        fail(client, sample.error, "the watched link ended");
    else if (sample.reads != client->last_reads)
        note(client, sample.latency_ns);
    client->last_reads = sample.reads;
}

static int begin_watch(struct client *client, struct mst_fabric *fabric, struct mst_why *why)
{
    int r = mst_watcher_new(fabric, 1, IO_MS, on_sample, client, &client->watcher, why);

    return r < 0 ? r : mst_watcher_add(client->watcher, 1, client->link, client->addr, client->rkey, client->bytes);
}

static void on_open(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct client *client = arg;

    client->link = link;
    if (err < 0)
        fail(client, err, why->text);
}

static void on_message(struct mst_link *link, const void *data, size_t len, void *arg)
{
    struct client *client = arg;
    char text[64] = "";

    (void)link;
    memcpy(text, data, len < sizeof(text) - 1 ? len : sizeof(text) - 1);
    if (sscanf(text, "%" SCNx64 " %" SCNx32, &client->addr, &client->rkey) != 2)
        fail(client, -71, "the server sent no key");
}

static void on_closed(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct client *client = arg;

    (void)link;
    client->link = NULL;
    if (!client->over)
        fail(client, err, why->text);
}

static const struct mst_link_events client_events = {.on_open = on_open, .on_message = on_message, .on_closed = on_closed};

static int by_size(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

    return (a > b) - (a < b);
}

static double at_us(const struct client *client, double part)
{
    uint32_t rank = (uint32_t)(part * (client->taken - 1) + 0.5);

    return (double)client->took_ns[rank] / 1000;
}

static void print(struct client *client)
{
    double sum = 0;

    qsort(client->took_ns, client->taken, sizeof(client->took_ns[0]), by_size);
    for (uint32_t i = 0; i < client->taken; i++)
        sum += (double)client->took_ns[i] / 1000;
    printf("{\"reads\": %u, \"bytes\": %u, \"min_us\": %.1f, \"typical_us\": %.1f, \"average_us\": %.1f, \"p99_us\": %.1f, "
           "\"p999_us\": %.1f, \"max_us\": %.1f}\n",
           client->taken, client->bytes, at_us(client, 0), at_us(client, 0.5), sum / client->taken, at_us(client, 0.99),
           at_us(client, 0.999), at_us(client, 1));
}

static int measure(struct mst_fabric *fabric, struct client *client, const char *server, uint16_t port)
{
    struct mst_why why = {""};
    int r;

    r = mst_fabric_connect(fabric, server, port, client->watch ? MST_ROLE_WATCH : MST_ROLE_PULL, NULL, 0, 10000, &client_events,
                           client, &client->link, &why);
    if (r < 0)
        fail(client, r, why.text);
    while (!client->over && !client->addr)
        uv_run(loop, UV_RUN_ONCE);
    if (!client->over && client->watch)
        r = begin_watch(client, fabric, &why);
    else if (!client->over)
        r = mst_region_new(client->link, page, sizeof(page), MST_ACCESS_LOCAL, &client->local, &why);
    if (r < 0)
        fail(client, r, why.text);
    else if (!client->over && !client->watch)
        read_next(client);
    while (!client->over)
        uv_run(loop, UV_RUN_ONCE);
    if (client->err < 0)
        return 1;
    print(client);
    return 0; /* the link goes with the process */
}

int main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";
    struct client client = {.watch = strcmp(verb, "watch") == 0};
    struct mst_fabric *fabric;
    struct mst_why why = {""};

    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    loop = uv_default_loop();
    if ((argc != 4 || strcmp(verb, "serve") != 0) && (argc != 7 || (strcmp(verb, "read") != 0 && !client.watch))) {
        fprintf(stderr, "usage: read_lat serve ADDRESS PORT\n       read_lat read|watch ADDRESS SERVER PORT BYTES COUNT\n");
        return 2;
    }
    if (mst_fabric_open(loop, argv[2], &fabric, &why) < 0) {
        fprintf(stderr, "read_lat: %s\n", why.text);
        return 1;
    }
    if (argc == 4)
        return serve(fabric, (uint16_t)atoi(argv[3]));
    client.bytes = (uint32_t)atoi(argv[5]);
    client.count = (uint32_t)atoi(argv[6]);
    if (client.bytes < 1 || client.bytes > (client.watch ? MST_WATCH_BYTES_MAX : sizeof(page)) || client.count < 10 ||
        client.count > COUNT_MAX) {
        fprintf(stderr, "read_lat: BYTES is 1..%u (4096 without the watcher), COUNT 10..%u\n", MST_WATCH_BYTES_MAX, COUNT_MAX);
        return 2;
    }
    client.skip = client.count / 10;
    client.took_ns = calloc(client.count, sizeof(client.took_ns[0]));
    return client.took_ns ? measure(fabric, &client, argv[3], (uint16_t)atoi(argv[4])) : 1;
}
