#include "common.h"

#include "base/clock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct reader {
    struct conn *conn;
    struct mst_region *region;
    uint64_t *word;
    bool done;
    int err;
};

static void on_read(void *arg, int err)
{
    struct reader *reader = arg;

    reader->done = true;
    reader->err = err;
}

static struct reader *reader_open(struct mst_fabric *fabric, const char *server, uint16_t port)
{
    struct reader *reader = calloc(1, sizeof(*reader));
    struct mst_why why;

    reader->conn = conn_open(fabric, server, port, MST_ROLE_PULL);
    reader->word = aligned_alloc(4096, 4096);
    if (mst_region_new(reader->conn->link, reader->word, 4096, MST_ACCESS_LOCAL, &reader->region, &why) < 0)
        printf("client: %s\n", why.text);
    return reader;
}

static void reader_end(struct reader *reader)
{
    conn_end(reader->conn);
    free(reader->word);
    free(reader);
}

static int reader_start(struct reader *reader, uint32_t deadline_ms)
{
    const struct keys *k = &reader->conn->keys;

    reader->done = false;
    if (!reader->conn->link)
        return -ENOTCONN;
    return mst_link_read(reader->conn->link, reader->region, 0, k->status_addr, k->status_rkey, 8, deadline_ms, on_read, reader);
}

static int read_counter(struct reader *reader, uint64_t *ret)
{
    int r = reader_start(reader, 2000);

    if (r < 0)
        return r;
    WAIT(reader->done, 5000);
    *ret = *reader->word;
    return reader->err;
}

/* The NIC of a stopped process still takes what its posted buffers hold; nobody takes a connect request. */
static void check_stopped_peer(struct mst_fabric *fabric, const char *server, uint16_t port, struct conn *chatter)
{
    struct conn *late = conn_start(fabric, server, port, MST_ROLE_CONTROL, "", 500);
    uint64_t start_ms = mst_now_ms();

    for (int i = 0; i < 30; i++)
        mst_link_send(chatter->link, "burst 1 8", 9);
    mst_link_close(chatter->link);
    WAIT(chatter->closed && late->opened, 5000);
    check(!chatter->close_err && chatter->closed_ms - start_ms < 1600, "closing does not wait for a peer that is stopped",
          "%s after %lu ms", mst_errname(chatter->close_err), chatter->closed_ms - start_ms);
    check(late->open_err == -ETIMEDOUT && late->opened_ms - start_ms < 1300, "nor does connecting to it", "%s after %lu ms",
          mst_errname(late->open_err), late->opened_ms - start_ms);
    conn_free(chatter);
    conn_free(late);
}

/* Links, regions, QPs, CQs and PDs of the server, without its descriptors. */
static const char *server_counts(struct conn *control)
{
    static char text[200];

    snprintf(text, sizeof(text), "%s", ask(control, "counts"));
    if (strrchr(text, ' '))
        *strrchr(text, ' ') = '\0';
    return text;
}

static void check_stop(struct mst_fabric *fabric, const char *server, uint16_t port)
{
    struct conn *control = conn_open(fabric, server, port, MST_ROLE_CONTROL), *chatter;
    struct reader *reader;
    uint64_t first, value, last = 0, end_ms;
    unsigned reads = 0, bad = 0, moved = 0;
    char counts[200];

    snprintf(counts, sizeof(counts), "%s", server_counts(control));
    chatter = conn_open(fabric, server, port, MST_ROLE_CONTROL);
    reader = reader_open(fabric, server, port);
    control->messages = 0;
    bad += read_counter(reader, &first) != 0;
    mst_link_send(control->link, "stop 4000", 9);
    do { /* until it stands: starting the child that stops it takes a while, too */
        bad += read_counter(reader, &last) != 0;
        WAIT(false, 400);
        bad += read_counter(reader, &value) != 0;
    } while (value != last && !bad);
    for (end_ms = mst_now_ms() + 700; mst_now_ms() < end_ms; reads++) {
        bad += read_counter(reader, &value) != 0;
        moved += value != last;
    }
    check(!bad && !moved && last > first && reads > 20, "a stopped process still answers READs, with a frozen counter",
          "%u reads, %u failed, %u moved", reads, bad, moved);
    check_stopped_peer(fabric, server, port, chatter);
    WAIT(read_counter(reader, &value) || value > last, 8000);
    check(value > last, "and its counter moves again when it goes on", "%lu -> %lu", last, value);
    WAIT(control->messages > 0, 3000);
    reader_end(reader);
    check(WAIT(!strcmp(server_counts(control), counts), 12000), "and nothing is left there of the links that gave up", "%s",
          counts);
    conn_end(control);
}

static void check_kill(struct mst_fabric *fabric, const char *server, uint16_t port)
{
    struct conn *control = conn_open(fabric, server, port, MST_ROLE_CONTROL),
                *watch = conn_open(fabric, server, port, MST_ROLE_WATCH);
    uint64_t start_ms = mst_now_ms();

    mst_link_send(control->link, "die", 3);
    WAIT(control->closed && watch->closed, 5000);
    check(control->close_err == -ECONNRESET && watch->close_err == -ECONNRESET && watch->closed_ms - start_ms < 1500,
          "a killed peer is news at once", "%s after %lu ms \"%s\"", mst_errname(watch->close_err), watch->closed_ms - start_ms,
          watch->why.text);
    conn_free(control);
    conn_free(watch);
}

static void cut(bool on)
{
    shell(on ? "tc qdisc replace dev eth0 root netem loss 100%%" : "tc qdisc del dev eth0 root");
}

static void check_short_cut(struct mst_fabric *fabric, const char *server, uint16_t port)
{
    uint64_t start_ms, cut_ms, took_ms;
    struct reader *reader;

    for (int i = 0; i < 5; i++) { /* starting tc in a loaded machine can take a second: then the cut was not short */
        reader = reader_open(fabric, server, port);
        start_ms = mst_now_ms();
        cut(true);
        reader_start(reader, 4000);
        WAIT(false, 600);
        cut(false);
        cut_ms = mst_now_ms() - start_ms;
        WAIT(reader->done, 5000);
        took_ms = mst_now_ms() - start_ms;
        if (cut_ms < 1300)
            check(!reader->err && reader->conn->link, "a cut of a second does not end a link that can wait",
                  "%s after %lu ms, cut %lu ms", mst_errname(reader->err), took_ms, cut_ms);
        reader_end(reader);
        if (cut_ms < 1300)
            return;
    }
    check(false, "a cut of a second does not end a link that can wait", "the machine is too slow to make a short cut");
}

static void check_cut(struct mst_fabric *fabric, const char *server, uint16_t port)
{
    struct reader *reader = reader_open(fabric, server, port);
    struct conn *closing = conn_open(fabric, server, port, MST_ROLE_CONTROL);
    uint64_t start_ms, took_ms, value;

    cut(true);
    gap_reset();
    start_ms = mst_now_ms();
    reader_start(reader, 400);
    WAIT(reader->conn->closed, 5000);
    took_ms = reader->conn->closed_ms - start_ms;
    check(reader->err == -ETIMEDOUT && reader->conn->close_err == -ETIMEDOUT && took_ms >= 400 && took_ms < 1300,
          "with the network cut a READ ends at its deadline, and its link", "%s, %s after %lu ms \"%s\"",
          mst_errname(reader->err), mst_errname(reader->conn->close_err), took_ms, reader->conn->why.text);
    mst_link_send(closing->link, "echo", 4);
    start_ms = mst_now_ms();
    mst_link_close(closing->link);
    WAIT(closing->closed, 5000);
    took_ms = closing->closed_ms - start_ms;
    check(!closing->close_err && took_ms < 1600, "closing does not wait for a peer that is silent", "%s after %lu ms",
          mst_errname(closing->close_err), took_ms);
    check(longest_gap_ms < TEST_STALL_MS, "and the loop went on meanwhile", "longest stall %lu ms", longest_gap_ms);
    cut(false);
    reader_end(reader);
    conn_free(closing);
    check_short_cut(fabric, server, port);
    reader = reader_open(fabric, server, port);
    check(!read_counter(reader, &value), "after the cut a new link opens and reads", "%s", "");
    reader_end(reader);
}

/* --- a region of a link that has ended --- */

struct late_free {
    struct mst_fabric *fabric;
    struct reader *reader;
    uint32_t regions; /* while the link was open */
    bool done, turned;
};

/* Between the end of the link's objects, in a timer, and on_closed, in a close callback of the same turn. */
static void on_turn(uv_check_t *turn)
{
    struct late_free *late = turn->data;
    struct mst_fabric_counts counts;

    mst_fabric_count(late->fabric, &counts);
    if (late->done || late->reader->conn->closed || counts.regions >= late->regions)
        return;
    mst_region_free(late->reader->region);
    late->done = true;
}

static void on_turns_over(uv_handle_t *handle)
{
    struct late_free *late = handle->data;

    late->turned = true;
}

static void check_late_free(struct mst_fabric *fabric, const char *server, uint16_t port)
{
    struct late_free late = {.fabric = fabric, .reader = reader_open(fabric, server, port)};
    struct mst_fabric_counts counts;
    uv_check_t turn;

    mst_fabric_count(fabric, &counts);
    late.regions = counts.regions;
    uv_check_init(loop, &turn);
    turn.data = &late;
    uv_check_start(&turn, on_turn);
    mst_link_close(late.reader->conn->link);
    WAIT(late.reader->conn->closed, 5000);
    uv_close((uv_handle_t *)&turn, on_turns_over);
    WAIT(late.turned, 1000);
    mst_fabric_count(fabric, &counts);
    check(late.done && late.reader->conn->closed && counts.regions < late.regions,
          "an owner may free a region of a link that has ended before it is told", "freed then: %d, closed: %d", late.done,
          late.reader->conn->closed);
    reader_end(late.reader);
}

void check_faults(struct mst_fabric *fabric, const char *address, const char *server, uint16_t port)
{
    (void)address;
    check_stop(fabric, server, port);
    check_kill(fabric, server, port);
    check_cut(fabric, server, port);
    check_late_free(fabric, server, port);
}

/* --- removal of the device --- */

static unsigned gone;

static void on_gone(void *arg)
{
    (void)arg;
    gone++;
}

struct flood {
    struct reader *reader;
    uint64_t chunks, rounds;
    bool ended;
    int err;
};

static void flood_start(struct flood *flood);

static void on_flood_done(void *arg, int err)
{
    struct flood *flood = arg;

    flood->rounds++;
    flood->err = err;
    if (err)
        flood->ended = true;
    else
        flood_start(flood);
}

static int on_flood_chunk(void *arg, uint64_t offset, uint32_t len)
{
    (void)offset;
    (void)len;
    ((struct flood *)arg)->chunks++;
    return 0;
}

static void flood_start(struct flood *flood)
{
    const struct keys *k = &flood->reader->conn->keys;
    int r = mst_link_read_stream(flood->reader->conn->link, flood->reader->region, 0, k->data_addr, k->data_rkey, 4096, 512, 8,
                                 3000, on_flood_chunk, on_flood_done, flood);

    if (r < 0) {
        flood->ended = true;
        flood->err = r;
    }
}

static void on_delete_exit(uv_process_t *process, int64_t status, int signal)
{
    *(int *)process->data = signal ? 128 + signal : (int)status;
    uv_close((uv_handle_t *)process, NULL);
}

static void delete_device(int *status)
{
    char *args[] = {"rdma", "link", "delete", "rxe0", NULL};
    uv_process_options_t options = {.file = "rdma", .args = args, .exit_cb = on_delete_exit};
    static uv_process_t process;

    *status = -1;
    process.data = status;
    if (uv_spawn(loop, &process, &options))
        *status = 999;
}

void check_device_removal(const char *address, const char *server, uint16_t port)
{
    struct mst_fabric *fabric = fabric_open(address);
    struct conn *control = conn_open(fabric, server, port, MST_ROLE_CONTROL),
                *watched = conn_open(fabric, server, port, MST_ROLE_WATCH);
    struct reader *reader = reader_open(fabric, server, port);
    struct flood flood = {.reader = reader};
    struct mst_watcher *watcher;
    struct mst_watch_sample sample;
    struct mst_why why;
    uint64_t start_ms, value = 0;
    int status;

    mst_fabric_on_gone(fabric, on_gone, NULL);
    mst_watcher_new(fabric, 5, 1000, NULL, NULL, &watcher, &why);
    mst_watcher_add(watcher, 1, watched->link, watched->keys.status_addr, watched->keys.status_rkey, 64);
    flood_start(&flood);
    WAIT(flood.chunks > 100, 5000);
    start_ms = mst_now_ms();
    delete_device(&status);
    WAIT(gone, 10000);
    mst_watcher_sample(watcher, 1, &sample);
    check(gone == 1 && control->close_err == -ENODEV && watched->close_err == -ENODEV && reader->conn->close_err == -ENODEV &&
              flood.ended && flood.err && sample.error == -ENODEV && sample.reads,
          "a device removed under load ends all links, then says so", "after %lu ms, %s, stream %s after %lu chunks \"%s\"",
          mst_now_ms() - start_ms, mst_errname(control->close_err), mst_errname(flood.err), flood.chunks, control->why.text);
    check(mst_fabric_connect(fabric, server, port, MST_ROLE_PULL, NULL, 0, 1000, &conn_events, control, &control->link, &why) ==
              -ENODEV,
          "nothing is connected over a device that is gone", "\"%s\"", why.text);
    mst_watcher_free(watcher);
    fabric_close(fabric);
    WAIT(status != -1, 10000);
    check(status == 0, "once the fabric is closed nothing holds the device any more", "rdma link delete: %d after %lu ms", status,
          mst_now_ms() - start_ms);
    reader_end(reader);
    conn_free(control);
    conn_free(watched);
    check(mst_fabric_open(loop, address, &fabric, &why) == -ENODEV && strstr(why.text, "rdma link add rxe0 type rxe netdev eth0"),
          "without a device opening fails and says what to do", "\"%s\"", why.text);
    shell("rdma link add rxe0 type rxe netdev eth0");
    fabric = fabric_open(address);
    check(fabric != NULL, "a new device can be opened by the same process", "%s", "");
    if (!fabric)
        return;
    reader = reader_open(fabric, server, port);
    check(!read_counter(reader, &value) && value, "and works", "counter %lu", value);
    reader_end(reader);
    fabric_close(fabric);
}
