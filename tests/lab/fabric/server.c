#include "common.h"

#include "base/clock.h"
#include "fabric/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* One link of the server. Its memory: a status page whose first word counts, 32 MiB of pattern, a page that a watch link may write, and a
 * page whose region goes on the command "revoke". */
struct peer {
    struct mst_link *link;
    struct mst_region *status, *data, *grant, *revocable;
    struct ibv_mr *leak; /* pull: memory that anybody could write if the QP allowed it */
};

static struct mst_fabric *fabric;
static uint8_t *status_page, *data_area, *grant_page, *revocable_page, *leak_page;
static uv_timer_t beat;
static struct peer *last_pull;
static unsigned slow_us;

static void on_beat(uv_timer_t *timer)
{
    (void)timer;
    (*(uint64_t *)status_page)++;
}

/* Shared, as main storage is: fork(2) copies pinned private pages at once. */
static void *area(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        abort();
    return p;
}

static void region(struct peer *peer, void *addr, size_t len, enum mst_access access, struct mst_region **ret)
{
    struct mst_why why;

    if (mst_region_new(peer->link, addr, len, access, ret, &why) < 0)
        printf("server: %s\n", why.text);
}

static void send_keys(struct peer *peer)
{
    uint64_t addr[4] = {0};
    uint32_t rkey[4] = {0};
    char text[300];
    int n;

    if (mst_link_role(peer->link) != MST_ROLE_MIRROR) { /* nothing can be read over a mirror link */
        region(peer, status_page, TEST_STATUS_BYTES, MST_ACCESS_REMOTE_READ, &peer->status);
        region(peer, data_area, TEST_DATA_BYTES, MST_ACCESS_REMOTE_READ, &peer->data);
        region(peer, revocable_page, 4096, MST_ACCESS_REMOTE_READ, &peer->revocable);
        mst_region_key(peer->status, &addr[0], &rkey[0]);
        mst_region_key(peer->data, &addr[1], &rkey[1]);
        mst_region_key(peer->revocable, &addr[3], &rkey[3]);
    }
    if (mst_link_role(peer->link) != MST_ROLE_PULL) {
        region(peer, grant_page, 4096, MST_ACCESS_REMOTE_WRITE, &peer->grant);
        mst_region_key(peer->grant, &addr[2], &rkey[2]);
    } else { /* past the fabric's own check, to see the QP refuse */
        peer->leak = ibv_reg_mr(peer->link->pd, leak_page, 4096, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
        addr[2] = (uintptr_t)leak_page;
        rkey[2] = peer->leak->rkey;
        last_pull = peer;
    }
    n = snprintf(text, sizeof(text), "keys %" PRIx64 " %x %" PRIx64 " %x %" PRIx64 " %x %" PRIx64 " %x", addr[0], rkey[0],
                 addr[1], rkey[1], addr[2], rkey[2], addr[3], rkey[3]);
    mst_link_send(peer->link, text, (size_t)n);
}

static void on_open(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct peer *peer = arg;

    if (err) {
        printf("server: accepted link did not open: %s\n", why->text);
        free(peer);
        return;
    }
    peer->link = link;
    if (mst_link_role(link) != MST_ROLE_CONTROL)
        send_keys(peer);
}

static void on_closed(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct peer *peer = arg;

    (void)link;
    (void)why;
    if (err && err != -ECONNRESET)
        printf("server: link closed with %s: %s\n", mst_errname(err), why->text);
    if (last_pull == peer)
        last_pull = NULL;
    free(peer);
}

/* Stops this process and lets it go on after ms: done by a child, since a stopped process cannot. */
static void stop_for(unsigned ms)
{
    char pid[20], text[20];
    char *args[] = {"/proc/self/exe", "pause", pid, text, NULL};
    uv_process_options_t options = {.file = "/proc/self/exe", .args = args};
    static uv_process_t process;

    snprintf(pid, sizeof(pid), "%d", (int)getpid());
    snprintf(text, sizeof(text), "%u", ms);
    uv_spawn(loop, &process, &options);
}

static void reply_counts(struct mst_link *link)
{
    struct mst_fabric_counts counts;
    char text[200];
    int n;

    mst_fabric_count(fabric, &counts);
    n = snprintf(text, sizeof(text), "counts %u %u %u %u %u %u", counts.links, counts.regions, counts.qps, counts.cqs, counts.pds,
                 open_fds());
    mst_link_send(link, text, (size_t)n);
}

static void command(struct mst_link *link, const char *text)
{
    struct timespec delay = {.tv_nsec = (long)slow_us * 1000};
    unsigned n, size;
    char reply[100];

    if (sscanf(text, "slow %u", &n) == 1) {
        slow_us = n;
    } else if (sscanf(text, "stop %u", &n) == 1) {
        stop_for(n);
    } else if (!strcmp(text, "die")) {
        raise(SIGKILL);
    } else if (!strcmp(text, "counts")) {
        reply_counts(link);
        return;
    } else if (!strcmp(text, "qp")) {
        qp_text(link, reply, sizeof(reply));
        mst_link_send(link, reply, strlen(reply));
        return;
    } else if (!strcmp(text, "grant")) {
        snprintf(reply, sizeof(reply), "grant %" PRIu64, *(uint64_t *)grant_page);
        mst_link_send(link, reply, strlen(reply));
        return;
    } else if (!strcmp(text, "leak")) {
        snprintf(reply, sizeof(reply), "leak %" PRIu64, *(uint64_t *)leak_page);
        mst_link_send(link, reply, strlen(reply));
        return;
    } else if (!strcmp(text, "revoke") && last_pull) {
        mst_region_free(last_pull->revocable);
    } else if (sscanf(text, "burst %u %u", &n, &size) == 2) {
        char *data = calloc(1, size);

        for (unsigned i = 0; i < n; i++) {
            *(uint32_t *)data = i;
            mst_link_send(link, data, size);
        }
        free(data);
        return;
    } else {
        nanosleep(&delay, NULL);
    }
    mst_link_send(link, text, strlen(text));
}

static void on_message(struct mst_link *link, const void *data, size_t len, void *arg)
{
    struct timespec delay = {.tv_nsec = (long)slow_us * 1000};
    const char *bytes = data;
    char text[100];
    int r;

    (void)arg;
    if (len < sizeof(text) && bytes[0] >= 'a' && bytes[0] <= 'z') {
        memcpy(text, data, len);
        text[len] = '\0';
        command(link, text);
        return;
    }
    nanosleep(&delay, NULL); /* a receiver that is slow */
    r = mst_link_send(link, data, len);
    if (r < 0)
        printf("server: echo of %zu bytes failed: %s\n", len, mst_errname(r));
}

static const struct mst_link_events events = {.on_open = on_open, .on_message = on_message, .on_closed = on_closed};

static int on_accept(struct mst_link *link, const struct mst_link_request *request, void *arg,
                     const struct mst_link_events **ret_events, void **ret_arg, struct mst_why *why)
{
    (void)link;
    (void)arg;
    if (request->data_bytes == 6 && !memcmp(request->data, "refuse", 6))
        return mst_why_set(why, -EPERM, "node n9 (%s) is not a member of cluster lab", request->address);
    *ret_events = &events;
    *ret_arg = calloc(1, sizeof(struct peer));
    return 0;
}

int serve(const char *address, uint16_t port)
{
    struct mst_why why;

    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    status_page = area(TEST_STATUS_BYTES);
    data_area = area(TEST_DATA_BYTES);
    grant_page = area(4096);
    revocable_page = area(4096);
    leak_page = area(4096);
    for (uint64_t i = 0; i < TEST_DATA_BYTES; i++)
        data_area[i] = pattern(i);
    loop_start();
    if (mst_fabric_open(loop, address, &fabric, &why) < 0 || mst_fabric_listen(fabric, port, on_accept, NULL, &why) < 0) {
        printf("server: %s\n", why.text);
        return 1;
    }
    uv_timer_init(loop, &beat);
    uv_timer_start(&beat, on_beat, 5, 5);
    printf("server: listening on %s port %u\n", address, port);
    return uv_run(loop, UV_RUN_DEFAULT);
}
