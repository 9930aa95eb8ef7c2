#include "fuzz.h"

#include "base/clock.h"
#include "coordinator/io/store.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* A coordinator's store on etcd, whole: HTTP by libcurl, the client of the gateway, leadership, reading of all rows, commits and their settling. The
 * other end of the connections is the input: answers of any bytes, or the right one where the input says so. Timers run 50 times as fast
 * (CMakeLists.txt wraps uv_timer_start). */

enum { RIGHT, BODY, STATUS, RAW, DROP, COMMIT, CONFIRM, TIME, OPS };

#define FASTER    50u
#define CONNS     4u
#define STEPS_MAX 40u /* each may wait for some ms */
#define HTTP_MAX  65536u
#define PREFIX    "/m"

static uv_loop_t loop;
static int listens = -1;
static struct mst_etcd_conf etcd_conf;
static struct mst_coordinator_conf conf;
static struct mst_txn txn;
static struct {
    struct mst_store *store;
    struct {
        int fd;
        char in[HTTP_MAX];
        size_t len;
    } conn[CONNS];
    bool leads, lost, committing;
    unsigned confirms, rows;
} us;

int __real_uv_timer_start(uv_timer_t *timer, uv_timer_cb cb, uint64_t timeout, uint64_t repeat);
int __wrap_uv_timer_start(uv_timer_t *timer, uv_timer_cb cb, uint64_t timeout, uint64_t repeat);
int __wrap_uv_timer_start(uv_timer_t *timer, uv_timer_cb cb, uint64_t timeout, uint64_t repeat)
{
    return __real_uv_timer_start(timer, cb, timeout ? timeout / FASTER + 1 : 0, repeat ? repeat / FASTER + 1 : 0);
}

/* --- the coordinator's side --- */

static int on_row(void *arg, const struct mst_row *row, struct mst_why *why)
{
    (void)arg, (void)why;
    FUZZ_CHECK(row->kind != MST_ROW_VM_DELETE && (row->kind != MST_ROW_DEFINITION || row->definition));
    us.rows++;
    return 0;
}

static void on_lead(void *arg)
{
    struct mst_why why = {""};
    int r;

    (void)arg;
    FUZZ_CHECK(!us.leads && !us.lost);
    us.leads = true;
    r = mst_store_load(us.store, on_row, NULL, &why);
    FUZZ_CHECK(r == 0 || why.text[0]);
    us.lost = r < 0; /* a coordinator ends then */
}

static void on_lost(void *arg, const char *text)
{
    (void)arg;
    FUZZ_CHECK(!us.lost && text[0]);
    us.lost = true;
}

static void on_committed(void *arg, int err, const char *text)
{
    (void)arg;
    FUZZ_CHECK(us.committing && !us.lost && err <= 0 && (err == 0 || text[0]));
    us.committing = false;
}

static void on_confirmed(void *arg, int err, const char *text)
{
    (void)arg;
    FUZZ_CHECK(us.confirms > 0 && (err == 0 || text[0]));
    us.confirms--;
}

/* --- etcd's side --- */

static void node_make(void)
{
    static char url[64], *urls[] = {url};
    static struct mst_store_conf store_conf;
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(addr);

    listens = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    FUZZ_CHECK(listens >= 0 && bind(listens, (const struct sockaddr *)&addr, len) == 0 && listen(listens, 16) == 0 &&
               getsockname(listens, (struct sockaddr *)&addr, &len) == 0);
    snprintf(url, sizeof(url), "http://127.0.0.1:%u", ntohs(addr.sin_port));
    etcd_conf = (struct mst_etcd_conf){.endpoints = urls, .endpoints_count = 1, .prefix = (char *)PREFIX, .lease_ms = 10000};
    store_conf.etcd = &etcd_conf;
    conf = (struct mst_coordinator_conf){
        .cluster = (char *)"lab", .id = 1, .address = (char *)"10.7.0.101", .port = 7470, .store = &store_conf};
    txn.count = 1;
    txn.rows[0].kind = MST_ROW_NODE;
    txn.rows[0].node.id = 3;
}

static void closes(unsigned i)
{
    if (us.conn[i].fd >= 0)
        close(us.conn[i].fd);
    us.conn[i].fd = -1;
    us.conn[i].len = 0;
}

static void hears(void)
{
    for (unsigned i = 0; i < CONNS; i++) {
        size_t room = HTTP_MAX - 1 - us.conn[i].len;
        ssize_t n;

        if (us.conn[i].fd < 0) {
            us.conn[i].fd = accept4(listens, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
            us.conn[i].len = 0;
            continue;
        }
        n = recv(us.conn[i].fd, us.conn[i].in + us.conn[i].len, room, 0);
        if (n > 0)
            us.conn[i].len += (size_t)n;
        else if (n == 0)
            closes(i);
        us.conn[i].in[us.conn[i].len] = '\0';
    }
}

/* A connection with a whole request on it; CONNS: none. */
static unsigned asked(void)
{
    for (unsigned i = 0; i < CONNS; i++) {
        const char *body = us.conn[i].fd >= 0 ? strstr(us.conn[i].in, "\r\n\r\n") : NULL;
        const char *length = body ? strstr(us.conn[i].in, "Content-Length: ") : NULL;

        if (length && us.conn[i].len >= (size_t)(body + 4 - us.conn[i].in) + strtoul(length + 16, NULL, 10))
            return i;
    }
    return CONNS;
}

/* Sleeps until somebody has something to do, at most a millisecond. */
static void sleeps(void)
{
    struct pollfd fds[CONNS + 2] = {{.fd = listens, .events = POLLIN}, {.fd = uv_backend_fd(&loop), .events = POLLIN}};
    int timeout_ms = uv_backend_timeout(&loop);

    for (unsigned i = 0; i < CONNS; i++)
        fds[2 + i] = (struct pollfd){.fd = us.conn[i].fd, .events = POLLIN};
    (void)poll(fds, CONNS + 2, timeout_ms == 0 ? 0 : 1);
}

/* Until there is a request, at most so long. */
static unsigned turn(unsigned ms)
{
    uint64_t until_ms = mst_now_ms() + ms;

    do {
        uv_run(&loop, UV_RUN_NOWAIT);
        hears();
        if (asked() < CONNS)
            return asked();
        sleeps();
    } while (mst_now_ms() < until_ms);
    return CONNS;
}

static const char *right(const char *request)
{
    if (strstr(request, "kv/range"))
        return "{\"header\":{\"revision\":\"5\"},\"kvs\":[]}";
    if (strstr(request, "lease/grant"))
        return "{\"header\":{\"revision\":\"5\"},\"ID\":\"77\",\"TTL\":\"10\"}";
    if (strstr(request, "lease/keepalive"))
        return "{\"result\":{\"ID\":\"77\",\"TTL\":\"10\"}}";
    if (strstr(request, "kv/txn"))
        return "{\"header\":{\"revision\":\"6\"},\"succeeded\":true,\"responses\":[{\"response_range\":{}},{\"response_range\":{}"
               "}]}";
    return "{}";
}

static void sends(unsigned i, const void *bytes, size_t len)
{
    (void)!send(us.conn[i].fd, bytes, len, MSG_NOSIGNAL);
    us.conn[i].len = 0;
}

static void answers(unsigned i, unsigned status, const void *body, size_t len)
{
    static char out[70000];
    int n = snprintf(out, sizeof(out), "HTTP/1.1 %u Said\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
                     status, len);

    memcpy(out + n, body, len);
    sends(i, out, (size_t)n + len);
}

static void answer(struct fuzz_in *in, unsigned what)
{
    unsigned i = turn(6);
    size_t len = 0;
    const uint8_t *piece = what == BODY || what == STATUS || what == RAW ? fuzz_piece(in, &len) : NULL;
    const char *text;

    if (i == CONNS)
        return;
    switch (what) {
    case RIGHT:
        text = right(us.conn[i].in);
        answers(i, 200, text, strlen(text));
        break;
    case BODY:
        answers(i, 200, piece, len);
        break;
    case STATUS:
        answers(i, 100 + fuzz_u16(in) % 500, piece, len);
        break;
    case RAW:
        sends(i, piece, len);
        closes(i);
        break;
    default:
        closes(i);
    }
    (void)turn(1);
}

static void step(struct fuzz_in *in)
{
    unsigned what = fuzz_u8(in) % OPS;

    switch (what) {
    case COMMIT:
        if (!us.leads || us.lost || us.committing)
            break;
        us.committing = true;
        mst_store_commit(us.store, &txn, on_committed, NULL);
        break;
    case CONFIRM:
        if (!us.leads || us.lost || us.confirms > 2)
            break;
        us.confirms++;
        mst_store_confirm(us.store, on_confirmed, NULL);
        break;
    case TIME:
        (void)turn(fuzz_u8(in) % 16);
        break;
    default:
        answer(in, what);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct mst_store_events events = {.on_lead = on_lead, .on_lost = on_lost};
    struct fuzz_in in = {data, size};
    struct mst_store_standing standing;
    struct mst_why why;

    if (listens < 0)
        node_make();
    memset(&us, 0, sizeof(us));
    for (unsigned i = 0; i < CONNS; i++)
        us.conn[i].fd = -1;
    FUZZ_CHECK(uv_loop_init(&loop) == 0 && mst_store_etcd_open(&loop, &conf, 9, &us.store, &why) == 0);
    mst_store_campaign(us.store, &events, NULL);
    for (unsigned i = 0; in.left > 0 && !us.lost && i < STEPS_MAX; i++)
        step(&in);
    mst_store_standing(us.store, &standing);
    FUZZ_CHECK(memchr(standing.address, '\0', sizeof(standing.address)) && memchr(standing.text, '\0', sizeof(standing.text)));
    close(listens); /* from now on there is no etcd: nothing waits for it */
    listens = -1;
    for (unsigned i = 0; i < CONNS; i++)
        closes(i);
    for (unsigned i = 0; i < 400 && us.confirms > 0; i++) {
        uv_run(&loop, UV_RUN_NOWAIT);
        usleep(250);
    }
    mst_store_close(us.store);
    uv_run(&loop, UV_RUN_DEFAULT);
    FUZZ_CHECK(uv_loop_close(&loop) == 0);
    return 0;
}

/* --- seeds --- */

static struct fuzz_out out;

static void leads(void)
{
    out.len = 0;
    for (unsigned i = 0; i < 14; i++) /* watched, probed, granted, campaigned, ten tables */
        fuzz_put(&out, RIGHT, 1);
}

static void say(unsigned how, const char *text)
{
    fuzz_put(&out, how, 1);
    fuzz_put_piece(&out, text, strlen(text));
    if (how == STATUS)
        fuzz_put(&out, 403, 2); /* 503 */
}

void fuzz_seeds(void)
{
    leads();
    fuzz_put(&out, COMMIT, 1);
    fuzz_put(&out, RIGHT, 1);
    fuzz_put(&out, CONFIRM, 1);
    fuzz_put(&out, RIGHT, 1);
    fuzz_put(&out, TIME, 1);
    fuzz_put(&out, 15, 1);
    fuzz_seed("leads", out.bytes, out.len);
    leads();
    fuzz_put(&out, COMMIT, 1);
    fuzz_put(&out, DROP, 1);
    say(STATUS, "{\"error\":\"etcdserver: request timed out\",\"code\":14}");
    say(BODY, "{\"header\":{\"revision\":\"8\"},\"succeeded\":true,\"responses\":[{\"response_range\":{\"kvs\":[{\"key\":"
              "\"bS9tZXRh\",\"value\":"
              "\"e30=\",\"create_revision\":\"3\",\"mod_revision\":\"4\"}]}}]}");
    fuzz_put(&out, RIGHT, 1);
    fuzz_seed("in-doubt", out.bytes, out.len);
    leads();
    fuzz_put(&out, CONFIRM, 1);
    say(BODY, "{\"header\":{\"revision\":\"8\"},\"responses\":[{\"response_range\":{\"kvs\":[{\"key\":\"L20vbGVhZGVy\",\"value\":"
              "\"e30=\","
              "\"create_revision\":\"9\",\"mod_revision\":\"9\"}]}}]}");
    fuzz_seed("another-leads", out.bytes, out.len);
    out.len = 0;
    say(BODY, "{\"header\":{\"revision\":\"5\"},\"kvs\":[{\"key\":\"L20vbGVhZGVy\",\"value\":"
              "\"eyJpZCI6MiwiYWRkcmVzcyI6IjEwLjcuMC4xMDIiLCJwb3J0Ijo3NDcwfQ"
              "==\",\"create_revision\":\"3\",\"mod_revision\":\"3\"}],\"count\":\"1\"}");
    say(RAW, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"a\":\r\n2\r\n1}\r\n0\r\n\r\n");
    say(RAW, "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n");
    say(STATUS, "{\"error\":\"too many operations\",\"code\":3}");
    fuzz_put(&out, RIGHT, 1);
    fuzz_put(&out, RIGHT, 1);
    say(BODY, "{\"ID\":\"0\",\"TTL\":\"99999\"}");
    fuzz_seed("standby", out.bytes, out.len);
    out.len = 0;
    for (unsigned i = 0; i < 4; i++)
        fuzz_put(&out, RIGHT, 1);
    say(BODY, "{\"header\":{\"revision\":\"6\"},\"succeeded\":true,\"responses\":[{\"response_range\":{}},{\"response_range\":{"
              "\"kvs\":[{\"key\":"
              "\"L20vbm9kZXMvMw==\",\"value\":\"e30=\",\"create_revision\":\"3\",\"mod_revision\":\"3\"}],\"more\":true}}]}");
    fuzz_put(&out, RIGHT, 1);
    fuzz_seed("rows", out.bytes, out.len);
}
