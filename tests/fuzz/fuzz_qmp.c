#include "fuzz.h"

#include "node/agent/load.h"
#include "node/agent/qmp.h"
#include "node/agent/resume.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* A QEMU that says anything on its monitor, in any pieces, while the agent sends commands, loads a device state and lets the guest run. First byte: what
 * the agent does; then lines, which may end in the middle. Every command is answered exactly once, or the connection was closed by us. */

enum { DO_COMMANDS = 1, DO_LOAD = 2, DO_RESUME = 4, CLOSE_IN_REPLY = 8, CLOSE_IN_EVENT = 16, CLOSE_WHEN_READY = 32 };

#define SILENT_MS 100000u /* nothing here waits for time */

static uv_loop_t loop;
static struct {
    struct mst_qmp *qmp;
    struct mst_load *load;
    struct mst_resume *resume;
    unsigned how, ready, over, asked, answered, loads, resumes;
    bool closed;
} us;

static void close_all(void)
{
    if (us.closed)
        return;
    us.closed = true;
    if (us.load)
        mst_load_cancel(us.load);
    if (us.resume)
        mst_resume_cancel(us.resume);
    us.load = NULL;
    us.resume = NULL;
    mst_qmp_close(us.qmp);
}

static void on_reply(struct mst_qmp *qmp, int err, const json_t *ret, const struct mst_why *why, void *arg)
{
    FUZZ_CHECK(qmp == us.qmp && !us.closed && arg == &us && (err == 0 || (why && why->text[0] && !ret)));
    FUZZ_CHECK(err == 0 || err == -EREMOTEIO || err == -ENOTCONN);
    us.answered++;
    if (us.how & CLOSE_IN_REPLY)
        close_all();
    else if (err == 0 && us.asked < 8 && mst_qmp_execute(qmp, "query-status", NULL, -1, 0, on_reply, &us) == 0)
        us.asked++;
}

static void on_loaded(int err, const struct mst_why *why, void *arg)
{
    FUZZ_CHECK(arg == &us && !us.closed && (err == 0 || why->text[0]));
    us.load = NULL;
    us.loads++;
}

static void on_resumed(int err, const struct mst_why *why, void *arg)
{
    FUZZ_CHECK(arg == &us && !us.closed && (err == 0 || why->text[0]));
    us.resume = NULL;
    us.resumes++;
}

static void on_ready(struct mst_qmp *qmp, void *arg)
{
    FUZZ_CHECK(arg == &us && us.ready == 0 && us.over == 0 && !us.closed);
    us.ready++;
    if (us.how & CLOSE_WHEN_READY) {
        close_all();
        return;
    }
    for (unsigned i = 0; us.how & DO_COMMANDS && i < 3; i++)
        if (mst_qmp_execute(qmp, "query-status", json_pack("{s:i}", "i", (int)i), i == 1 ? 2 : -1, SILENT_MS, on_reply, &us) == 0)
            us.asked++;
    if (us.how & DO_LOAD)
        FUZZ_CHECK(mst_load_start(&loop, qmp, "state", 5, SILENT_MS, on_loaded, &us, &us.load) == 0);
    if (us.how & DO_RESUME)
        FUZZ_CHECK(mst_resume_start(&loop, qmp, MST_RESUME_CAREFUL, SILENT_MS, on_resumed, &us, &us.resume) == 0);
}

static void on_event(struct mst_qmp *qmp, const char *name, const json_t *data, void *arg)
{
    FUZZ_CHECK(qmp == us.qmp && arg == &us && name && (!data || json_is_object(data)) && !us.closed);
    if (us.load)
        mst_load_event(us.load, name, data);
    if (us.how & CLOSE_IN_EVENT)
        close_all();
}

static void on_closed(struct mst_qmp *qmp, int err, const struct mst_why *why, void *arg)
{
    FUZZ_CHECK(qmp == us.qmp && arg == &us && err <= 0 && why->text[0] && us.over == 0 && us.answered == us.asked);
    us.over++;
}

static const struct mst_qmp_events events = {on_ready, on_event, on_closed};

static void turn(int qemu)
{
    char drain[4096];

    for (unsigned i = 0; i < 3; i++)
        uv_run(&loop, UV_RUN_NOWAIT);
    while (recv(qemu, drain, sizeof(drain), MSG_DONTWAIT) > 0)
        ;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};
    int ends[2];

    memset(&us, 0, sizeof(us));
    us.how = fuzz_u8(&in);
    FUZZ_CHECK(uv_loop_init(&loop) == 0 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    FUZZ_CHECK(mst_qmp_open(&loop, ends[1], SILENT_MS, &events, &us, &us.qmp) == 0);
    /* The agent reads after every line: what it sends depends on what it was told. */
    while (in.left > 0) {
        const uint8_t *end = memchr(in.at, '\n', in.left);
        size_t len = end ? (size_t)(end - in.at) + 1 : in.left;

        (void)!send(ends[0], in.at, len, MSG_DONTWAIT | MSG_NOSIGNAL);
        in.at += len;
        in.left -= len;
        turn(ends[0]);
    }
    close(ends[0]);
    for (unsigned i = 0; i < 4; i++)
        uv_run(&loop, UV_RUN_NOWAIT);
    FUZZ_CHECK(us.over == 1 || us.closed);
    FUZZ_CHECK(us.closed || us.answered == us.asked);
    close_all();
    uv_run(&loop, UV_RUN_DEFAULT);
    FUZZ_CHECK(uv_loop_close(&loop) == 0);
    return 0;
}

#define GREETING                                                                                                                 \
    "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, \"package\": \"\"}, \"capabilities\": "     \
    "[\"oob\"]}}\r\n{\"return\": {}, \"id\": 1}\r\n"

static void seed(const char *name, char how, const char *lines)
{
    static struct fuzz_out out;

    out.len = 0;
    fuzz_put(&out, (uint8_t)how, 1);
    fuzz_put_bytes(&out, lines, strlen(lines));
    fuzz_seed(name, out.bytes, out.len);
}

void fuzz_seeds(void)
{
    seed(
        "commands", DO_COMMANDS,
        GREETING
        "{\"return\": {\"running\": true, \"status\": \"running\"}, \"id\": 2}\r\n{\"event\": \"STOP\", \"timestamp\": {}}\r\n"
        "{\"id\": 3, \"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\r\n{\"return\": [1, 2.5, null], \"id\": 4}\r\n");
    seed("load", DO_LOAD,
         GREETING "{\"return\": {}, \"id\": 2}\r\n{\"return\": {}, \"id\": 3}\r\n"
                  "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"active\"}}\r\n"
                  "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"completed\"}}\r\n");
    seed("load-failed", DO_LOAD,
         GREETING "{\"return\": {}, \"id\": 2}\r\n{\"error\": {\"desc\": \"no such fd\"}, \"id\": 3}\r\n");
    seed("resume", DO_RESUME,
         GREETING "{\"return\": {\"status\": \"completed\"}, \"id\": 2}\r\n{\"return\": {\"status\": \"paused\", \"running\": "
                  "false}, \"id\": 3}\r\n"
                  "{\"return\": {}, \"id\": 4}\r\n{\"return\": {\"running\": true}, \"id\": 5}\r\n");
    seed("resume-cancels", DO_RESUME,
         GREETING "{\"return\": {\"status\": \"active\"}, \"id\": 2}\r\n{\"return\": {}, \"id\": 3}\r\n");
    seed("panicked", DO_RESUME,
         GREETING "{\"return\": {}, \"id\": 2}\r\n{\"return\": {}, \"id\": 3}\r\n{\"return\": {\"status\": \"guest-panicked\"}, "
                  "\"id\": 4}\r\n");
    seed("closes", DO_COMMANDS | CLOSE_IN_REPLY | CLOSE_IN_EVENT,
         GREETING "{\"event\": \"STOP\"}\r\n{\"return\": 1, \"id\": 2}\r\n");
    seed("not-json", DO_COMMANDS, GREETING "HTTP/1.1 400\r\n");
}
