#include "fuzz.h"

#include "base/file.h"
#include "proto/socket.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Frames over a Unix socket, from both ends of it: a peer that writes any bytes in any pieces, stops reading, half closes or goes, while our side
 * answers and closes when it likes. First byte: whether we listen or connect. */

enum { WRITE, FRAME, TURN, SEND, CLOSE, SHUT, GO, SILENCE, OPS };

static uv_loop_t loop;
static struct {
    struct mst_sock *sock;
    unsigned messages, closed;
    bool close_in_message;
    int err;
} side;

static void on_message(struct mst_sock *sock, const mst_envelope *env, void *arg)
{
    FUZZ_CHECK(arg == &side && sock == side.sock && side.closed == 0 && env->body_case != MAINSTAY__ENVELOPE__BODY__NOT_SET);
    side.messages++;
    if (side.close_in_message)
        mst_sock_close(sock);
}

static void on_closed(struct mst_sock *sock, int err, const struct mst_why *why, void *arg)
{
    FUZZ_CHECK(arg == &side && sock == side.sock && why && why->text[0] && err <= 0);
    side.closed++;
    side.err = err;
    side.sock = NULL;
}

static const struct mst_sock_events events = {on_message, on_closed};

static int on_accept(struct mst_sock *sock, pid_t pid, uid_t uid, void *arg, const struct mst_sock_events **ret_events,
                     void **ret_arg)
{
    FUZZ_CHECK(pid == getpid() && uid == getuid() && !side.sock);
    if (arg)
        return -EACCES;
    side.sock = sock;
    *ret_events = &events;
    *ret_arg = &side;
    return 0;
}

static void answer(unsigned how)
{
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    Mainstay__Done done = MAINSTAY__DONE__INIT;
    char text[256];
    int r;

    memset(text, 'x', sizeof(text));
    text[how] = '\0';
    done.text = text;
    env.has_id = 1;
    env.body_case = MAINSTAY__ENVELOPE__BODY_DONE;
    env.done = &done;
    for (unsigned i = 0; side.sock && i < 1 + how % 8; i++) {
        r = mst_sock_send(side.sock, &env);
        FUZZ_CHECK(r == 0 || r == -ENOTCONN || r == -EPIPE);
    }
}

static void put(int peer, const uint8_t *piece, size_t len)
{
    if (len > 0)
        (void)!send(peer, piece, len, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void step(struct fuzz_in *in, int *peer)
{
    uint8_t head[MST_FRAME_HEADER_BYTES] = {'M', 'S', 1};
    char drain[4096];
    size_t len;
    const uint8_t *piece;

    switch (fuzz_u8(in) % OPS) {
    case WRITE:
        piece = fuzz_piece(in, &len);
        put(*peer, piece, len);
        break;
    case FRAME:
        piece = fuzz_piece(in, &len);
        head[4] = (uint8_t)len;
        head[5] = (uint8_t)(len >> 8);
        put(*peer, head, sizeof(head));
        put(*peer, piece, len);
        break;
    case TURN:
        uv_run(&loop, UV_RUN_NOWAIT);
        while (recv(*peer, drain, sizeof(drain), MSG_DONTWAIT) > 0)
            ;
        break;
    case SEND:
        answer(fuzz_u8(in));
        break;
    case CLOSE:
        if (side.sock && fuzz_u8(in) & 1)
            mst_sock_close(side.sock);
        side.close_in_message = true;
        break;
    case SHUT:
        shutdown(*peer, fuzz_u8(in) & 1 ? SHUT_WR : SHUT_RD);
        break;
    case GO:
        close(*peer);
        *peer = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0); /* what is written now goes nowhere */
        FUZZ_CHECK(*peer >= 0);
        break;
    default: /* nobody is told any more, until the end */
        if (side.sock && fuzz_u8(in) == 0xff) {
            mst_sock_set(side.sock, NULL, NULL);
            mst_sock_close(side.sock);
            side.closed = 1;
            side.sock = NULL;
        }
    }
}

/* A connection between us and a plain socket. */
static int connection(const char *path, bool listens, bool refuse, struct mst_sockserv **ret_serv)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct mst_why why = {""};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), peer = fd;

    memcpy(addr.sun_path, path, strlen(path) + 1);
    FUZZ_CHECK(fd >= 0);
    *ret_serv = NULL;
    if (listens) {
        FUZZ_CHECK(mst_sockserv_open(&loop, path, 0600, on_accept, refuse ? &side : NULL, ret_serv, &why) == 0);
        FUZZ_CHECK(connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) == 0);
        uv_run(&loop, UV_RUN_NOWAIT);
        FUZZ_CHECK(refuse == !side.sock);
        return peer;
    }
    FUZZ_CHECK(bind(fd, (const struct sockaddr *)&addr, sizeof(addr)) == 0 && listen(fd, 1) == 0);
    FUZZ_CHECK(mst_sock_connect(&loop, path, &events, &side, &side.sock, &why) == 0);
    peer = accept(fd, NULL, NULL);
    FUZZ_CHECK(peer >= 0);
    close(fd);
    unlink(path);
    return peer;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};
    uint8_t how = fuzz_u8(&in);
    bool listens = how & 1, refuse = listens && how & 0x80;
    struct mst_sockserv *serv;
    char path[100];
    int peer;

    memset(&side, 0, sizeof(side));
    FUZZ_CHECK(mst_path(path, sizeof(path), "%s/socket", fuzz_folder()) == 0 && uv_loop_init(&loop) == 0);
    peer = connection(path, listens, refuse, &serv);
    while (in.left > 0)
        step(&in, &peer);
    uv_run(&loop, UV_RUN_NOWAIT);
    close(peer);
    if (side.sock)
        mst_sock_close(side.sock);
    mst_sockserv_close(serv);
    uv_run(&loop, UV_RUN_DEFAULT);
    FUZZ_CHECK(side.closed == (refuse ? 0 : 1) && !side.sock && uv_loop_close(&loop) == 0);
    FUZZ_CHECK(access(path, F_OK) < 0);
    return 0;
}

/* --- seeds --- */

static struct fuzz_out out;

static void put_frame(unsigned what, size_t from, size_t to)
{
    uint8_t frame[MST_MESSAGE_BYTES_MAX];
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    Mainstay__FaultReport report = MAINSTAY__FAULT_REPORT__INIT;
    int n;

    report.kind = MAINSTAY__FAULT_KIND__FAULT_OPERATOR;
    report.node = (char *)"n1";
    report.text = (char *)"smoke";
    env.body_case = MAINSTAY__ENVELOPE__BODY_FAULT_REPORT;
    env.fault_report = &report;
    n = mst_frame_pack(&env, frame, sizeof(frame));
    FUZZ_CHECK(n > 0);
    if (to == 0 || to > (size_t)n)
        to = (size_t)n;
    fuzz_put(&out, what, 1);
    fuzz_put_piece(&out, frame + from, to - from);
}

static void op(unsigned what, unsigned arg, bool has_arg)
{
    fuzz_put(&out, what, 1);
    if (has_arg)
        fuzz_put(&out, arg, 1);
}

static void begin(unsigned how)
{
    out.len = 0;
    fuzz_put(&out, how, 1);
}

void fuzz_seeds(void)
{
    for (unsigned listens = 0; listens < 2; listens++) {
        begin(listens);
        put_frame(WRITE, 0, 0);
        op(TURN, 0, false);
        put_frame(WRITE, 0, 11);
        op(TURN, 0, false);
        put_frame(WRITE, 11, 0);
        op(SEND, 77, true);
        op(TURN, 0, false);
        op(SHUT, 1, true);
        op(TURN, 0, false);
        fuzz_seed(listens ? "listens" : "connects", out.bytes, out.len);
        begin(listens);
        put_frame(FRAME, MST_FRAME_HEADER_BYTES, 0);
        op(CLOSE, 0, true);
        put_frame(WRITE, 0, 0);
        op(SEND, 255, true);
        op(GO, 0, false);
        op(TURN, 0, false);
        fuzz_seed(listens ? "listens-closes" : "connects-closes", out.bytes, out.len);
        begin(listens);
        put_frame(WRITE, 0, 9);
        op(SEND, 7, true);
        op(SHUT, 0, true);
        op(TURN, 0, false);
        op(SILENCE, 0xff, true);
        fuzz_seed(listens ? "listens-lost" : "connects-lost", out.bytes, out.len);
    }
    begin(0x81);
    fuzz_seed("refused", out.bytes, out.len);
}
