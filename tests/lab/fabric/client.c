#include "common.h"

#include "base/clock.h"
#include "base/err.h"
#include "fabric/internal.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* --- tools --- */

static void on_fabric_closed(void *arg)
{
    *(bool *)arg = true;
}

struct mst_fabric *fabric_open(const char *address)
{
    struct mst_fabric *fabric = NULL;
    struct mst_why why = {""};

    if (mst_fabric_open(loop, address, &fabric, &why) < 0)
        printf("client: %s\n", why.text);
    return fabric;
}

void fabric_close(struct mst_fabric *fabric)
{
    bool closed = false;

    mst_fabric_close(fabric, on_fabric_closed, &closed);
    WAIT(closed, 5000);
}

struct conn *conn_start(struct mst_fabric *fabric, const char *address, uint16_t port, enum mst_role role, const char *data,
                        uint32_t deadline_ms)
{
    struct conn *conn = calloc(1, sizeof(*conn));
    int r;

    conn->start_ms = mst_now_ms();
    r = mst_fabric_connect(fabric, address, port, role, data, strlen(data), deadline_ms, &conn_events, conn, &conn->link,
                           &conn->why);
    if (r < 0) {
        conn->opened = true;
        conn->open_err = r;
    }
    return conn;
}

struct conn *conn_open(struct mst_fabric *fabric, const char *server, uint16_t port, enum mst_role role)
{
    struct conn *conn = NULL;

    for (int i = 0; i < 300; i++) { /* the server may just be starting again */
        conn = conn_start(fabric, server, port, role, "hello", 5000);
        WAIT(conn->opened, 6000);
        if (!conn->open_err)
            break;
        if (conn->open_err != -ECONNREFUSED && conn->open_err != -ETIMEDOUT)
            printf("client: %s\n", conn->why.text);
        conn_free(conn);
        conn = NULL;
        WAIT(false, 100);
    }
    if (!conn) {
        check(false, "a link opens", "gave up");
        exit(1);
    }
    if (role != MST_ROLE_CONTROL)
        WAIT(conn->messages > 0, 3000);
    return conn;
}

void conn_end(struct conn *conn)
{
    if (conn->link)
        mst_link_close(conn->link);
    WAIT(conn->closed || (conn->opened && conn->open_err), 5000);
    conn_free(conn);
}

const char *ask(struct conn *control, const char *fmt, ...)
{
    unsigned before = control->messages;
    char text[200];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (!control->link || mst_link_send(control->link, text, strlen(text)) < 0)
        return "not sent";
    return WAIT(control->messages > before, 5000) ? control->text : "no answer";
}

struct io {
    bool done;
    int err;
};

static void on_io(void *arg, int err)
{
    *(struct io *)arg = (struct io){.done = true, .err = err};
}

/* --- connecting --- */

static void check_connect(struct mst_fabric *fabric, const char *server, uint16_t port)
{
    struct conn *conn = conn_open(fabric, server, port, MST_ROLE_CONTROL);

    check(!strcmp(ask(conn, "echo this"), "echo this"), "a control link opens and carries a message to and fro", "%s",
          conn->text);
    conn_end(conn);
    conn = conn_start(fabric, server, port, MST_ROLE_CONTROL, "refuse", 5000);
    WAIT(conn->opened, 6000);
    check(conn->open_err == -EACCES && strstr(conn->why.text, "is not a member of cluster lab"),
          "a refused side gets the sentence of who refused", "%s \"%s\"", mst_errname(conn->open_err), conn->why.text);
    conn_free(conn);
    conn = conn_start(fabric, server, (uint16_t)(port + 1), MST_ROLE_CONTROL, "", 5000);
    WAIT(conn->opened, 6000);
    check(conn->open_err == -ECONNREFUSED && conn->opened_ms - conn->start_ms < 2000, "a port without listener refuses at once",
          "%s after %lu ms \"%s\"", mst_errname(conn->open_err), conn->opened_ms - conn->start_ms, conn->why.text);
    conn_free(conn);
}

/* access: 2 remote write, 4 remote read */
static void check_qps(struct mst_fabric *fabric, const char *server, uint16_t port)
{
    static const struct {
        enum mst_role role;
        const char *here, *there;
    } want[] = {
        {MST_ROLE_CONTROL, "access 0 min-rnr 12 timeout 16 retries 6 rnr-retries 6 reads 0/0",
         "access 0 min-rnr 12 timeout 16 retries 6 rnr-retries 6 reads 0/0"},
        {MST_ROLE_WATCH, "access 0 min-rnr 12 timeout 16 retries 6 rnr-retries 6 reads 16/0",
         "access 6 min-rnr 12 timeout 16 retries 6 rnr-retries 6 reads 0/16"},
        {MST_ROLE_PULL, "access 0 min-rnr 12 timeout 16 retries 6 rnr-retries 6 reads 16/0",
         "access 4 min-rnr 12 timeout 16 retries 6 rnr-retries 6 reads 0/16"},
        {MST_ROLE_MIRROR, "access 0 min-rnr 12 timeout 16 retries 6 rnr-retries 6 reads 0/0",
         "access 2 min-rnr 12 timeout 16 retries 6 rnr-retries 6 reads 0/0"},
    };

    for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
        struct conn *conn = conn_open(fabric, server, port, want[i].role);
        const char *there = ask(conn, "qp");
        char here[200];

        qp_text(conn->link, here, sizeof(here));
        check(!strcmp(here, want[i].here) && !strcmp(there, want[i].there),
              "queue pairs have the access and the timing of their role", "%s: here %s, there %s",
              mst_role_row(want[i].role)->name, here, there);
        conn_end(conn);
    }
}

static void check_silent_host(struct mst_fabric *fabric, const char *address, uint16_t port, const char *sentence)
{
    struct conn *conn;
    uint64_t took_ms;

    gap_reset();
    conn = conn_start(fabric, address, port, MST_ROLE_CONTROL, "", 1000);
    WAIT(conn->opened, 4000);
    WAIT(false, 50);
    took_ms = conn->opened_ms - conn->start_ms;
    check(conn->open_err == -ETIMEDOUT && took_ms >= 1000 && took_ms < 2000 && longest_gap_ms < TEST_STALL_MS, sentence,
          "%s after %lu ms, longest stall of the loop %lu ms \"%s\"", mst_errname(conn->open_err), took_ms, longest_gap_ms,
          conn->why.text);
    conn_free(conn);
}

static void check_cancel(struct mst_fabric *fabric, uint16_t port)
{
    struct conn *conn = conn_start(fabric, "10.7.0.250", port, MST_ROLE_CONTROL, "", 30000);
    uint64_t start_ms;

    WAIT(false, 300);
    start_ms = mst_now_ms();
    mst_link_close(conn->link);
    mst_link_close(conn->link);
    check(!conn->opened && WAIT(conn->opened, 1000) && conn->open_err == -ECANCELED, "closing a connecting link cancels it",
          "%s after %lu ms", mst_errname(conn->open_err), mst_now_ms() - start_ms);
    conn_free(conn);
}

static void check_silence(struct mst_fabric *fabric, uint16_t port)
{
    shell("ip neigh replace 10.7.0.250 lladdr 02:00:00:00:00:fa dev eth0 nud permanent");
    check_silent_host(fabric, "10.7.0.250", port, "connecting to a silent host is given up at the deadline, the loop goes on");
    check_silent_host(fabric, "10.7.0.251", port, "connecting to an address without a host is given up at the deadline");
    check_cancel(fabric, port);
}

/* --- messages --- */

#define STORM        2000u
#define STORM_WINDOW 200u /* fewer than MST_MESSAGES_MAX: the server's queue of echoes never overflows */

struct storm {
    struct conn *conn;
    unsigned sent, back, wrong;
};

static uint32_t storm_size(unsigned i)
{
    return i % 97 == 0 ? MST_MESSAGE_BYTES_MAX : 9 + i * 37 % 1500;
}

static void storm_send(struct storm *storm)
{
    static uint8_t data[MST_MESSAGE_BYTES_MAX];

    while (storm->sent < STORM && storm->sent - storm->back < STORM_WINDOW) {
        uint32_t len = storm_size(storm->sent);

        memset(data, 0x80 | (int)(storm->sent & 0x7f), len);
        memcpy(data + 4, &storm->sent, 4);
        if (!storm->conn->link || mst_link_send(storm->conn->link, data, len) < 0)
            return;
        storm->sent++;
    }
}

static void storm_back(struct conn *conn, const void *data, size_t len)
{
    struct storm *storm = conn->arg;
    uint32_t number;

    memcpy(&number, (const uint8_t *)data + 4, 4);
    if (number != storm->back || len != storm_size(number) || ((const uint8_t *)data)[len - 1] != (0x80 | (number & 0x7f)))
        storm->wrong++;
    storm->back++;
    storm_send(storm);
}

static long rnr_count(void)
{
    return hw_counter("rcvd_rnr_err") + hw_counter("send_rnr_err") + hw_counter("retry_rnr_exceeded_err");
}

static void check_full_queue(struct conn *conn)
{
    unsigned accepted = 0, before = conn->messages;
    int r;

    while (!(r = mst_link_send(conn->link, "echo", 4)))
        accepted++;
    check(r == -ENOBUFS && accepted > 256 && accepted < 300 && WAIT(conn->messages == before + accepted, 10000),
          "a queue that is full says so and loses nothing it took", "%s after %u", mst_errname(r), accepted);
}

static void check_messages(struct mst_fabric *fabric, const char *server, uint16_t port)
{
    struct conn *conn = conn_open(fabric, server, port, MST_ROLE_CONTROL);
    struct storm storm = {.conn = conn};
    long rnr = rnr_count();
    static char big[MST_MESSAGE_BYTES_MAX + 1];
    uint64_t start_ms;
    unsigned got;

    check(mst_link_send(conn->link, big, 0) == -EMSGSIZE && mst_link_send(conn->link, big, sizeof(big)) == -EMSGSIZE,
          "messages of 0 and of 65537 bytes are refused", "%s", "");
    ask(conn, "slow 2000");
    conn->arg = &storm;
    conn->on_message = storm_back;
    start_ms = mst_now_ms();
    storm_send(&storm);
    WAIT(storm.back == STORM || conn->closed, 120000);
    check(storm.back == STORM && !storm.wrong && conn->link, "2000 messages to a slow receiver and back keep order and content",
          "%u back, %u wrong, %lu ms", storm.back, storm.wrong, mst_now_ms() - start_ms);
    check(rnr >= 0 && rnr_count() == rnr, "no message met a receiver that was not ready", "rnr counters %ld -> %ld", rnr,
          rnr_count());
    conn->on_message = NULL;
    check_full_queue(conn);
    ask(conn, "slow 0");
    conn->messages = 0;
    got = conn->messages;
    mst_link_send(conn->link, "burst 200 3000", 14);
    WAIT(conn->messages == got + 200, 20000);
    check(conn->messages == got + 200 && *(uint32_t *)(void *)conn->text == 199,
          "a burst of 200 messages from one call arrives whole", "%u", conn->messages - got);
    conn_end(conn);
}

static void check_last_words(struct mst_fabric *fabric, const char *server, uint16_t port)
{
    struct conn *conn = conn_open(fabric, server, port, MST_ROLE_CONTROL);
    struct conn *watch = conn_open(fabric, server, port, MST_ROLE_WATCH);
    struct mst_region *region;
    struct mst_why why;
    struct io io = {false, 0};
    uint64_t *word = aligned_alloc(4096, 4096);

    *word = 4711;
    mst_region_new(watch->link, word, 8, MST_ACCESS_LOCAL, &region, &why);
    mst_link_write(watch->link, region, 0, watch->keys.grant_addr, watch->keys.grant_rkey, 8, 2000, on_io, &io);
    WAIT(io.done, 3000);
    check(!io.err && !strcmp(ask(conn, "grant"), "grant 4711"), "a WRITE lands in the grant area", "%s", "");
    for (int i = 0; i < 20; i++)
        mst_link_send(conn->link, "burst 1 8", 9);
    mst_link_send(conn->link, "die", 3);
    mst_link_close(conn->link); /* 21 messages wait for 8 buffers: they leave first */
    WAIT(conn->closed, 3000);
    check(conn->close_err == 0, "closing lets waiting messages leave", "%s", mst_errname(conn->close_err));
    check(WAIT(watch->closed, 3000) && watch->close_err == -ECONNRESET,
          "the last message before the close was received: it told the server to kill itself", "%s",
          mst_errname(watch->close_err));
    conn_free(conn);
    conn_free(watch);
    free(word);
}

/* --- one-sided --- */

static int read_now(struct conn *conn, struct mst_region *region, uint64_t off, uint64_t addr, uint32_t rkey, uint32_t len)
{
    struct io io = {false, 0};
    int r = conn->link ? mst_link_read(conn->link, region, off, addr, rkey, len, 3000, on_io, &io) : -ENOTCONN;

    if (r < 0)
        return r;
    return WAIT(io.done, 10000) ? io.err : 1;
}

static bool content_is(const uint8_t *got, uint64_t from, uint64_t len)
{
    for (uint64_t i = 0; i < len; i++)
        if (got[i] != pattern(from + i))
            return false;
    return true;
}

static uint8_t *memory;

static struct mst_region *local_region(struct conn *conn)
{
    struct mst_region *region = NULL;
    struct mst_why why;

    if (!memory)
        memory = mmap(NULL, TEST_DATA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(memory, 0xee, TEST_DATA_BYTES);
    if (mst_region_new(conn->link, memory, TEST_DATA_BYTES, MST_ACCESS_LOCAL, &region, &why) < 0)
        printf("client: %s\n", why.text);
    return region;
}

static void check_reads(struct mst_fabric *fabric, const char *server, uint16_t port)
{
    struct conn *pull = conn_open(fabric, server, port, MST_ROLE_PULL),
                *control = conn_open(fabric, server, port, MST_ROLE_CONTROL);
    struct mst_region *region = local_region(pull), *refused;
    const struct keys *k = &pull->keys;
    static const uint32_t sizes[] = {1, 63, 4096, 65537, MST_READ_BYTES_MAX};
    struct mst_why why;
    unsigned good = 0;
    uint64_t off = 12345;

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++, off += 1000003)
        if (!read_now(pull, region, off, k->data_addr + off, k->data_rkey, sizes[i]) && content_is(memory + off, off, sizes[i]) &&
            memory[off - 1] == 0xee && memory[off + sizes[i]] == 0xee)
            good++;
    check(good == 5, "READs of 1 byte to 1 MiB bring what is there and touch nothing else", "%u of 5", good);
    check(read_now(pull, region, TEST_DATA_BYTES - 8, k->data_addr, k->data_rkey, 9) == -ERANGE &&
              read_now(pull, region, UINT64_MAX, k->data_addr, k->data_rkey, 9) == -ERANGE &&
              read_now(pull, region, 0, k->data_addr, k->data_rkey, MST_READ_BYTES_MAX + 1) == -ERANGE &&
              read_now(pull, region, 0, UINT64_MAX - 3, k->data_rkey, 8) == -ERANGE && pull->link,
          "ranges outside the local region are refused and nothing is posted", "%s", "");
    check(mst_region_new(pull->link, memory, 4096, MST_ACCESS_REMOTE_READ, &refused, &why) == -EINVAL,
          "a region that the role gives nobody access to is refused", "%s", why.text);
    check(mst_link_read(control->link, region, 0, k->data_addr, k->data_rkey, 8, 100, on_io, NULL) == -EOPNOTSUPP,
          "a control link reads nothing", "%s", "");
    conn_end(pull);
    conn_end(control);
}

/* Does one forbidden thing on a link of its own and looks that only this link ends. */
static void forbidden(struct mst_fabric *fabric, const char *server, uint16_t port, const char *sentence, bool write,
                      uint64_t (*addr)(const struct keys *k), uint32_t (*rkey)(const struct keys *k))
{
    struct conn *bystander = conn_open(fabric, server, port, MST_ROLE_PULL),
                *bad = conn_open(fabric, server, port, MST_ROLE_PULL);
    struct mst_region *near = local_region(bystander), *far = local_region(bad);
    struct io io = {false, 0}, later = {false, 0};
    int left;

    if (write)
        mst_link_write(bad->link, far, 0, addr(&bad->keys), rkey(&bad->keys), 64, 3000, on_io, &io);
    else
        mst_link_read(bad->link, far, 0, addr(&bad->keys), rkey(&bad->keys), 64, 3000, on_io, &io);
    mst_link_read(bad->link, far, 0, bad->keys.data_addr, bad->keys.data_rkey, 64, 3000, on_io, &later);
    WAIT(bad->closed, 5000);
    left = read_now(bystander, near, 0, bystander->keys.data_addr, bystander->keys.data_rkey, 4096);
    check(io.done && io.err == -EIO && later.done && later.err == -ECANCELED && bad->close_err == -EIO && !left &&
              bystander->link,
          sentence, "%s, link: %s \"%s\", other link: %d", mst_errname(io.err), mst_errname(bad->close_err), bad->why.text, left);
    conn_end(bystander);
    conn_end(bad);
}

static uint64_t data_addr(const struct keys *k)
{
    return k->data_addr;
}

static uint64_t beyond_data(const struct keys *k)
{
    return k->data_addr + TEST_DATA_BYTES - 63;
}

static uint32_t wrong_rkey(const struct keys *k)
{
    return k->data_rkey ^ 0x5a;
}

static uint32_t data_rkey(const struct keys *k)
{
    return k->data_rkey;
}

static uint64_t leak_addr(const struct keys *k)
{
    return k->grant_addr;
}

static uint32_t leak_rkey(const struct keys *k)
{
    return k->grant_rkey;
}

static void check_forbidden(struct mst_fabric *fabric, const char *server, uint16_t port)
{
    struct conn *control = conn_open(fabric, server, port, MST_ROLE_CONTROL), *pull;
    struct mst_region *region;
    int before, after;

    forbidden(fabric, server, port, "a wrong rkey ends the link that used it and no other", false, data_addr, wrong_rkey);
    forbidden(fabric, server, port, "a READ that ends one byte beyond the region is refused", false, beyond_data, data_rkey);
    forbidden(fabric, server, port, "a WRITE over a pull link is refused although the key would allow it", true, leak_addr,
              leak_rkey);
    check(!strcmp(ask(control, "leak"), "leak 0"), "and nothing was written", "%s", "");
    pull = conn_open(fabric, server, port, MST_ROLE_PULL);
    region = local_region(pull);
    before = read_now(pull, region, 0, pull->keys.revocable_addr, pull->keys.revocable_rkey, 64);
    ask(control, "revoke");
    after = read_now(pull, region, 0, pull->keys.revocable_addr, pull->keys.revocable_rkey, 64);
    check(!before && after == -EIO, "freeing a region revokes it", "before %d, after %s", before, mst_errname(after));
    conn_end(pull);
    conn_end(control);
}

/* --- streams --- */

struct stream_state {
    uint64_t next, stop_at;
    unsigned chunks, wrong;
};

static int on_chunk(void *arg, uint64_t offset, uint32_t len)
{
    struct stream_state *state = arg;

    state->wrong += offset != state->next;
    state->next = offset + len;
    state->chunks++;
    return state->stop_at && state->next >= state->stop_at ? -EDOM : 0;
}

struct stream_io {
    struct stream_state state;
    struct io io;
};

static int on_stream_chunk(void *arg, uint64_t offset, uint32_t len)
{
    return on_chunk(&((struct stream_io *)arg)->state, offset, len);
}

static void on_stream_done(void *arg, int err)
{
    on_io(&((struct stream_io *)arg)->io, err);
}

static void check_streams(struct mst_fabric *fabric, const char *server, uint16_t port)
{
    struct conn *pull = conn_open(fabric, server, port, MST_ROLE_PULL);
    struct mst_region *region = local_region(pull);
    const struct keys *k = &pull->keys;
    const uint64_t total = TEST_DATA_BYTES - 777;
    struct stream_io whole = {.state = {.stop_at = 0}}, cut = {.state = {.stop_at = 3u << 20}};

    mst_link_read_stream(pull->link, region, 700, k->data_addr, k->data_rkey, total, 256u << 10, 8, 3000, on_stream_chunk,
                         on_stream_done, &whole);
    WAIT(whole.io.done, 60000);
    check(whole.io.done && !whole.io.err && whole.state.next == total && !whole.state.wrong &&
              content_is(memory + 700, 0, total) && memory[699] == 0xee,
          "a stream brings everything, chunk by chunk in order", "%s, %u chunks, %u out of order", mst_errname(whole.io.err),
          whole.state.chunks, whole.state.wrong);
    mst_link_read_stream(pull->link, region, 0, k->data_addr, k->data_rkey, total, 1u << 20, 4, 3000, on_stream_chunk,
                         on_stream_done, &cut);
    WAIT(cut.io.done, 60000);
    check(cut.io.err == -EDOM && cut.state.chunks == 3 && !read_now(pull, region, 0, k->data_addr, k->data_rkey, 64),
          "a stream ends when its owner says so, the link stays", "%s after %u chunks", mst_errname(cut.io.err),
          cut.state.chunks);
    conn_end(pull);
}

/* --- cycles --- */

static void check_cycles(struct mst_fabric *fabric, const char *server, uint16_t port)
{
    struct conn *control = conn_open(fabric, server, port, MST_ROLE_CONTROL);
    struct mst_fabric_counts before, after;
    unsigned fds, cycles = 500, failed = 0;
    char there_before[200], there_after[200];
    uint64_t start_ms = mst_now_ms();
    static const enum mst_role roles[] = {MST_ROLE_CONTROL, MST_ROLE_WATCH, MST_ROLE_PULL, MST_ROLE_MIRROR};

    WAIT(false, 300);
    snprintf(there_before, sizeof(there_before), "%s", ask(control, "counts"));
    mst_fabric_count(fabric, &before);
    fds = open_fds();
    for (unsigned i = 0; i < cycles; i++) {
        struct conn *conn = conn_start(fabric, server, port, roles[i % 4], "", 10000);

        WAIT(conn->opened, 11000);
        if (conn->open_err)
            printf("client: cycle %u: %s\n", i, conn->why.text);
        failed += conn->open_err != 0;
        conn_end(conn);
    }
    start_ms = mst_now_ms() - start_ms;
    mst_fabric_count(fabric, &after);
    WAIT((snprintf(there_after, sizeof(there_after), "%s", ask(control, "counts")), !strcmp(there_before, there_after)), 3000);
    check(!failed && !memcmp(&before, &after, sizeof(before)) && open_fds() == fds,
          "500 connects and disconnects leave nothing behind here", "%u failed, fds %u -> %u, links %u -> %u, %lu ms each",
          failed, fds, open_fds(), before.links, after.links, start_ms / cycles);
    check(!strcmp(there_before, there_after), "nor at the other side", "\"%s\" -> \"%s\"", there_before, there_after);
    conn_end(control);
}

static void check_close_with_links(const char *address, const char *server, uint16_t port)
{
    struct mst_fabric *fabric = fabric_open(address);
    struct conn *a = conn_open(fabric, server, port, MST_ROLE_CONTROL), *b = conn_open(fabric, server, port, MST_ROLE_WATCH);
    struct conn *c = conn_start(fabric, "10.7.0.250", port, MST_ROLE_PULL, "", 20000);
    struct mst_region *region = local_region(b);
    struct io io = {false, 0};

    mst_link_read(b->link, region, 0, b->keys.data_addr, b->keys.data_rkey, MST_READ_BYTES_MAX, 3000, on_io, &io);
    fabric_close(fabric);
    check(a->closed && b->closed && c->opened && !a->close_err && !b->close_err && c->open_err == -ECANCELED && io.done,
          "closing the fabric closes all links first", "%s %s %s, READ under way: %s", mst_errname(a->close_err),
          mst_errname(b->close_err), mst_errname(c->open_err), mst_errname(io.err));
    conn_free(a);
    conn_free(b);
    conn_free(c);
}

/* --- whole --- */

int client(const char *self, const char *address, const char *server, uint16_t port)
{
    struct mst_fabric *fabric;
    unsigned fds;

    (void)self;
    signal(SIGPIPE, SIG_IGN);
    loop_start();
    fabric = fabric_open(address);
    check(fabric != NULL, "the fabric opens", "%s", address);
    if (!fabric)
        return 1;
    check_connect(fabric, server, port);
    check_qps(fabric, server, port);
    check_silence(fabric, port);
    check_messages(fabric, server, port);
    check_last_words(fabric, server, port);
    check_reads(fabric, server, port);
    check_forbidden(fabric, server, port);
    check_streams(fabric, server, port);
    check_cycles(fabric, server, port);
    check_watcher(fabric, server, port);
    check_faults(fabric, address, server, port);
    fabric_close(fabric);
    fds = open_fds();
    check_close_with_links(address, server, port);
    check(open_fds() == fds, "a fabric closed leaves no descriptor", "%u -> %u", fds, open_fds());
    check_device_removal(address, server, port);
    printf("%s: %d failed\n", failures ? "FAIL" : "ok", failures);
    return failures ? 1 : 0;
}

int client_with_faults(const char *address, const char *server, uint16_t port, const char *expect, bool once)
{
    struct mst_fabric_counts counts;
    struct mst_fabric *fabric;
    struct conn *conn;

    loop_start();
    fabric = fabric_open(address);
    if (!fabric)
        return 1;
    conn = conn_start(fabric, server, port, MST_ROLE_WATCH, "", 5000);
    WAIT(conn->opened, 6000);
    mst_fabric_count(fabric, &counts);
    check(conn->open_err && strstr(conn->why.text, expect) && !counts.links && !counts.qps && !counts.cqs && !counts.pds,
          "a link that lacks a resource fails with a sentence and leaves nothing", "%s \"%s\"", mst_errname(conn->open_err),
          conn->why.text);
    conn_free(conn);
    if (once) {
        conn = conn_open(fabric, server, port, MST_ROLE_WATCH);
        check(conn->link != NULL, "and the next one opens", "%s", "");
        conn_end(conn);
    }
    fabric_close(fabric);
    return failures ? 1 : 0;
}
