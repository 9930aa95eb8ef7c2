#include "proto/socket.h"
#include "base/fault.h"
#include "sample.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define ENDS_MAX 128

/* One end of a connection as its owner sees it. */
struct end {
    struct mst_sock *sock;
    unsigned messages, closed;
    uint64_t last_id;
    int err;
    struct mst_why why;
    bool close_on_message; /* closes its connection from inside on_message */
    bool answer;           /* sends every message back */
    bool inside;           /* a call of ours is running: no callback may come */
};

static uv_loop_t loop;
static char folder[64], path[100];
static struct mst_sockserv *serv;
static struct end accepted[ENDS_MAX];
static unsigned accepted_count;
static int accept_result;
static bool accept_sends;
static pid_t accept_pid;
static uid_t accept_uid;
static struct mst_why why;

static void on_message(struct mst_sock *sock, const mst_envelope *env, void *arg)
{
    struct end *end = arg;

    ck_assert_ptr_eq(sock, end->sock);
    ck_assert(!end->inside);
    ck_assert_uint_eq(end->closed, 0);
    end->messages++;
    end->last_id = env->id;
    if (end->answer)
        ck_assert_int_eq(mst_sock_send(sock, env), 0);
    if (end->close_on_message)
        mst_sock_close(sock);
}

static void on_closed(struct mst_sock *sock, int err, const struct mst_why *reason, void *arg)
{
    struct end *end = arg;

    ck_assert_ptr_eq(sock, end->sock);
    ck_assert(!end->inside);
    ck_assert_ptr_nonnull(reason);
    ck_assert_int_eq(mst_sock_send(sock, NULL), -ENOTCONN);
    mst_sock_close(sock); /* nothing happens */
    end->closed++;
    end->err = err;
    end->why = *reason;
    end->sock = NULL;
}

static const struct mst_sock_events events = {on_message, on_closed};

static int on_accept(struct mst_sock *sock, pid_t pid, uid_t uid, void *arg, const struct mst_sock_events **ret_events,
                     void **ret_arg)
{
    struct end *end = &accepted[accepted_count];
    mst_envelope *env;

    ck_assert_ptr_eq(arg, accepted);
    ck_assert_uint_lt(accepted_count, ENDS_MAX);
    accept_pid = pid;
    accept_uid = uid;
    if (accept_sends) {
        env = sample_new(0);
        ck_assert_int_eq(mst_sock_send(sock, env), 0);
        sample_free(env);
    }
    if (accept_result < 0)
        return accept_result;
    accepted_count++;
    end->sock = sock;
    *ret_events = &events;
    *ret_arg = end;
    return 0;
}

static void on_timeout(uv_timer_t *timer)
{
    *(bool *)timer->data = true;
}

static void on_timer_closed(uv_handle_t *handle)
{
    free(handle);
}

/* Turns the loop until condition holds; fails after ten seconds. */
#define run_until(condition)                                                                                                     \
    do {                                                                                                                         \
        bool timed_out = false;                                                                                                  \
        uv_timer_t *timer = malloc(sizeof(*timer));                                                                              \
        uv_timer_init(&loop, timer);                                                                                             \
        timer->data = &timed_out;                                                                                                \
        uv_timer_start(timer, on_timeout, 10000, 0);                                                                             \
        while (!(condition) && !timed_out)                                                                                       \
            uv_run(&loop, UV_RUN_ONCE);                                                                                          \
        uv_close((uv_handle_t *)timer, on_timer_closed);                                                                         \
        uv_run(&loop, UV_RUN_NOWAIT);                                                                                            \
        ck_assert_msg(!timed_out, "waited too long for: %s", #condition);                                                        \
    } while (0)

static void setup(void)
{
    signal(SIGPIPE, SIG_IGN);
    strcpy(folder, "/tmp/mst-socket-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/a.sock", folder);
    ck_assert_int_eq(uv_loop_init(&loop), 0);
    memset(accepted, 0, sizeof(accepted));
    accepted_count = 0;
    accept_result = 0;
    accept_sends = false;
    ck_assert_int_eq(mst_sockserv_open(&loop, path, 0600, on_accept, accepted, &serv, &why), 0);
}

/* Whatever a test leaves open is closed here, and then nothing may be left: no handle, no file. */
static void teardown(void)
{
    for (unsigned i = 0; i < accepted_count; i++)
        mst_sock_close(accepted[i].sock);
    mst_sockserv_close(serv);
    uv_run(&loop, UV_RUN_DEFAULT);
    for (unsigned i = 0; i < accepted_count; i++)
        ck_assert_uint_eq(accepted[i].closed, 1);
    ck_assert_int_eq(uv_loop_close(&loop), 0);
    unlink(path);
    ck_assert_int_eq(rmdir(folder), 0);
}

static void client_open(struct end *end)
{
    end->inside = true;
    ck_assert_msg(mst_sock_connect(&loop, path, &events, end, &end->sock, &why) == 0, "%s", why.text);
    end->inside = false;
}

static void pair_open(struct end *client)
{
    unsigned before = accepted_count;

    client_open(client);
    run_until(accepted_count == before + 1);
}

static int send_sample(struct end *end, unsigned i)
{
    mst_envelope *env = sample_new(i);
    int r;

    end->inside = true;
    r = mst_sock_send(end->sock, env);
    end->inside = false;
    sample_free(env);
    return r;
}

static int raw_connect(void)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    strcpy(addr.sun_path, path);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    return fd;
}

START_TEST(messages_of_every_kind_come_back)
{
    struct end client = {0};

    pair_open(&client);
    accepted[0].answer = true;
    for (unsigned i = 0; i < sample_count(); i++)
        ck_assert_int_eq(send_sample(&client, i), 0);
    run_until(client.messages == sample_count());
    ck_assert_uint_eq(accepted[0].messages, sample_count());
    ck_assert_uint_eq(client.last_id, 7 + sample_count() - 1);
    mst_sock_close(client.sock);
    run_until(client.closed && accepted[0].closed);
    ck_assert_int_eq(client.err, 0);
    ck_assert_str_eq(client.why.text, "closed by this side");
    ck_assert_int_eq(accepted[0].err, 0);
    ck_assert_str_eq(accepted[0].why.text, "closed by the peer");
}
END_TEST

START_TEST(peer_is_known_by_its_credentials)
{
    struct end client = {0};

    pair_open(&client);
    ck_assert_int_eq(accept_pid, getpid());
    ck_assert_uint_eq(accept_uid, getuid());
    mst_sock_close(client.sock);
    run_until(client.closed);
}
END_TEST

START_TEST(queued_messages_go_out_before_the_connection_closes)
{
    struct end client = {0};

    pair_open(&client);
    for (unsigned i = 0; i < 5000; i++)
        ck_assert_int_eq(send_sample(&client, 0), 0);
    client.inside = true;
    mst_sock_close(client.sock);
    mst_sock_close(client.sock);
    client.inside = false;
    ck_assert_int_eq(send_sample(&client, 0), -ENOTCONN);
    run_until(client.closed && accepted[0].closed);
    ck_assert_uint_eq(accepted[0].messages, 5000);
    ck_assert_uint_eq(client.closed, 1);
    ck_assert_int_eq(client.err, 0);
}
END_TEST

START_TEST(closing_inside_on_message_drops_what_came_behind_it)
{
    struct end client = {0};

    pair_open(&client);
    accepted[0].close_on_message = true;
    for (unsigned i = 0; i < 10; i++)
        send_sample(&client, 0);
    run_until(client.closed && accepted[0].closed);
    ck_assert_uint_eq(accepted[0].messages, 1);
    ck_assert_int_eq(accepted[0].err, 0);
}
END_TEST

START_TEST(peer_that_does_not_read_is_held_to_four_mebibytes)
{
    struct end client = {0};
    int fd, r, sent = 0;
    uint8_t frame[MST_MESSAGE_BYTES_MAX];
    size_t frame_bytes = sample_frame(0, frame);

    mst_sockserv_close(serv);
    ck_assert_int_eq(mst_sockserv_open(&loop, path, 0600, on_accept, accepted, &serv, &why), 0);
    fd = raw_connect();
    run_until(accepted_count == 1);
    while ((r = send_sample(&accepted[0], 0)) == 0)
        sent++;
    ck_assert_int_eq(r, -ENOBUFS);
    ck_assert_uint_ge((size_t)sent * frame_bytes, MST_SOCK_QUEUE_BYTES_MAX);
    ck_assert_uint_le((size_t)sent * frame_bytes, MST_SOCK_QUEUE_BYTES_MAX + (1u << 20)); /* the kernel's buffer is on top */
    uv_run(&loop, UV_RUN_NOWAIT);
    ck_assert_int_eq(send_sample(&accepted[0], 0), -ENOBUFS);
    /* It reads again: the connection is good as before. */
    for (size_t got = 0; got < 1u << 20;) {
        uint8_t sink[65536];
        ssize_t n = recv(fd, sink, sizeof(sink), MSG_DONTWAIT);
        if (n > 0)
            got += (size_t)n;
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    ck_assert_int_eq(send_sample(&accepted[0], 0), 0);
    close(fd);
    run_until(accepted[0].closed);
    ck_assert_int_lt(accepted[0].err, 0);
    (void)client;
}
END_TEST

START_TEST(peer_that_never_reads_does_not_hold_up_closing)
{
    uint64_t start;
    int fd = raw_connect();

    run_until(accepted_count == 1);
    while (send_sample(&accepted[0], 0) == 0)
        ;
    start = uv_hrtime();
    mst_sock_close(accepted[0].sock);
    run_until(accepted[0].closed);
    ck_assert_uint_ge((uv_hrtime() - start) / 1000000, MST_SOCK_LINGER_MS - 100);
    ck_assert_int_eq(accepted[0].err, 0);
    close(fd);
}
END_TEST

START_TEST(last_words_of_a_peer_are_read_though_writing_fails)
{
    uint8_t frame[MST_MESSAGE_BYTES_MAX];
    size_t n = sample_frame(3, frame);
    int fd = raw_connect();

    run_until(accepted_count == 1);
    ck_assert_int_eq(write(fd, frame, n), (ssize_t)n);
    close(fd);
    /* The loop has not turned since: the write fails first. */
    send_sample(&accepted[0], 0);
    run_until(accepted[0].closed);
    ck_assert_uint_eq(accepted[0].messages, 1);
    ck_assert_uint_eq(accepted[0].last_id, 10);
    ck_assert_int_eq(accepted[0].err, -EPIPE);
    ck_assert_str_eq(accepted[0].why.text, "write: Broken pipe, messages to the peer were lost");
}
END_TEST

START_TEST(peer_that_closes_unread_is_told_apart)
{
    int fd = raw_connect();

    run_until(accepted_count == 1);
    ck_assert_int_eq(send_sample(&accepted[0], 0), 0);
    close(fd);
    run_until(accepted[0].closed);
    ck_assert_int_eq(accepted[0].err, -ECONNRESET);
    ck_assert_str_eq(accepted[0].why.text, "peer closed without reading all that was sent to it");
}
END_TEST

START_TEST(peer_that_closes_within_a_message_is_told_apart)
{
    uint8_t frame[MST_MESSAGE_BYTES_MAX];
    int fd = raw_connect();

    sample_frame(0, frame);
    run_until(accepted_count == 1);
    ck_assert_int_eq(write(fd, frame, 20), 20);
    close(fd);
    run_until(accepted[0].closed);
    ck_assert_int_eq(accepted[0].err, -ECONNRESET);
    ck_assert_str_eq(accepted[0].why.text, "peer closed in the middle of a message, 20 bytes of it arrived");
}
END_TEST

START_TEST(malformed_message_ends_its_connection_only)
{
    uint8_t frame[MST_MESSAGE_BYTES_MAX];
    size_t n = sample_frame(0, frame);
    struct end client = {0};
    int fd = raw_connect();

    run_until(accepted_count == 1);
    pair_open(&client);
    ck_assert_int_eq(write(fd, frame, n), (ssize_t)n);
    frame[2] = 9;
    ck_assert_int_eq(write(fd, frame, n), (ssize_t)n);
    run_until(accepted[0].closed);
    ck_assert_uint_eq(accepted[0].messages, 1);
    ck_assert_int_eq(accepted[0].err, -EPROTONOSUPPORT);
    ck_assert_str_eq(accepted[0].why.text, "peer speaks protocol version 9, this program speaks version 1");
    ck_assert_int_eq(read(fd, frame, sizeof(frame)), 0);
    close(fd);
    send_sample(&client, 0);
    run_until(accepted[1].messages == 1);
    mst_sock_close(client.sock);
    run_until(client.closed);
}
END_TEST

START_TEST(random_bytes_end_the_connection_cleanly)
{
    uint8_t noise[300], frame[MST_MESSAGE_BYTES_MAX];

    srandom(42);
    for (unsigned i = 0; i < 60; i++) {
        size_t n = sample_frame((unsigned)random() % sample_count(), frame);
        int fd = raw_connect();
        run_until(accepted_count == i + 1);
        for (size_t b = 0; b < sizeof(noise); b++)
            noise[b] = (uint8_t)random();
        ck_assert_int_eq(write(fd, frame, n), (ssize_t)n);
        ck_assert_int_eq(write(fd, noise, sizeof(noise)), (ssize_t)sizeof(noise));
        run_until(accepted[i].closed);
        ck_assert_uint_eq(accepted[i].messages, 1);
        ck_assert_int_lt(accepted[i].err, 0);
        close(fd);
    }
}
END_TEST

START_TEST(message_that_the_peer_would_refuse_is_not_sent)
{
    struct end client = {0};
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    pair_open(&client);
    ck_assert_int_eq(mst_sock_send(client.sock, &env), -EINVAL);
    ck_assert_int_eq(send_sample(&client, 0), 0);
    run_until(accepted[0].messages == 1);
    mst_sock_close(client.sock);
    run_until(client.closed);
}
END_TEST

START_TEST(refused_connection_sees_the_last_word_and_then_the_end)
{
    struct end client = {0};

    accept_result = -EPERM;
    accept_sends = true;
    client_open(&client);
    run_until(client.closed);
    ck_assert_uint_eq(client.messages, 1);
    ck_assert_int_eq(client.err, 0);
    ck_assert_uint_eq(accepted_count, 0);
}
END_TEST

START_TEST(too_many_connections_are_closed_at_once)
{
    static struct end clients[MST_SOCK_CONNECTIONS_MAX + 2];

    for (unsigned i = 0; i < MST_SOCK_CONNECTIONS_MAX; i++)
        pair_open(&clients[i]);
    client_open(&clients[MST_SOCK_CONNECTIONS_MAX]);
    run_until(clients[MST_SOCK_CONNECTIONS_MAX].closed);
    ck_assert_uint_eq(accepted_count, MST_SOCK_CONNECTIONS_MAX);
    mst_sock_close(clients[0].sock);
    run_until(accepted[0].closed);
    pair_open(&clients[MST_SOCK_CONNECTIONS_MAX + 1]);
    for (unsigned i = 0; i < MST_SOCK_CONNECTIONS_MAX + 2; i++)
        mst_sock_close(clients[i].sock);
    run_until(clients[MST_SOCK_CONNECTIONS_MAX + 1].closed);
}
END_TEST

#ifdef MST_FAULT_POINTS
START_TEST(want_of_memory_delays_a_connection_and_loses_none)
{
    struct end client = {0};

    client_open(&client);
    setenv("MST_FAULT", "sock.new", 1); /* the next one is the server's */
    mst_fault_reload();
    send_sample(&client, 0);
    run_until(accepted_count == 1 && accepted[0].messages == 1);
    mst_sock_close(client.sock);
    run_until(client.closed);
}
END_TEST
#endif

START_TEST(connections_outlive_their_listener)
{
    struct end client = {0};

    pair_open(&client);
    mst_sockserv_close(serv);
    ck_assert_int_eq(access(path, F_OK), -1);
    serv = NULL;
    uv_run(&loop, UV_RUN_NOWAIT);
    send_sample(&client, 0);
    run_until(accepted[0].messages == 1);
    mst_sock_close(client.sock);
    run_until(client.closed && accepted[0].closed);
}
END_TEST

static void on_message_other(struct mst_sock *sock, const mst_envelope *env, void *arg)
{
    (void)sock;
    (void)env;
    ++*(unsigned *)arg;
}

START_TEST(events_can_be_exchanged_on_the_way)
{
    static const struct mst_sock_events other = {on_message_other, NULL};
    struct end client = {0};
    unsigned messages = 0;

    pair_open(&client);
    mst_sock_set(accepted[0].sock, &other, &messages);
    send_sample(&client, 0);
    run_until(messages == 1);
    mst_sock_set(accepted[0].sock, &events, &accepted[0]);
    send_sample(&client, 0);
    run_until(accepted[0].messages == 1);
    mst_sock_close(client.sock);
    run_until(client.closed);
}
END_TEST

START_TEST(nobody_listening_is_said_at_once)
{
    struct mst_sock *sock;
    char want[200];

    mst_sockserv_close(serv);
    serv = NULL;
    ck_assert_int_eq(mst_sock_connect(&loop, path, &events, NULL, &sock, &why), -ENOENT);
    snprintf(want, sizeof(want), "%s: nobody listens there (No such file or directory)", path);
    ck_assert_str_eq(why.text, want);
}
END_TEST

START_TEST(path_beyond_107_bytes_is_refused)
{
    struct mst_sockserv *other = NULL;
    struct mst_sock *sock;
    char longer[200];

    memset(longer, 'x', sizeof(longer));
    longer[108] = '\0';
    ck_assert_int_eq(mst_sockserv_open(&loop, longer, 0600, on_accept, accepted, &other, &why), -ENAMETOOLONG);
    ck_assert_int_eq(mst_sock_connect(&loop, longer, &events, NULL, &sock, &why), -ENAMETOOLONG);
}
END_TEST

START_TEST(mode_is_applied_whatever_the_umask)
{
    struct mst_sockserv *other;
    struct stat st;
    mode_t mask;

    snprintf(path, sizeof(path), "%s/b.sock", folder);
    mask = umask(0077);
    ck_assert_int_eq(mst_sockserv_open(&loop, path, 0660, on_accept, accepted, &other, &why), 0);
    umask(mask);
    ck_assert_int_eq(stat(path, &st), 0);
    ck_assert_uint_eq(st.st_mode & 07777, 0660);
    mst_sockserv_close(other);
}
END_TEST

START_TEST(live_socket_is_left_to_its_owner)
{
    struct mst_sockserv *other = NULL;
    struct end client = {0};
    char want[200];

    ck_assert_int_eq(mst_sockserv_open(&loop, path, 0600, on_accept, accepted, &other, &why), -EADDRINUSE);
    snprintf(want, sizeof(want), "%s: another process listens there", path);
    ck_assert_str_eq(why.text, want);
    /* The question itself was a connection; ours comes after it. */
    client_open(&client);
    run_until(accepted_count == 2);
    mst_sock_close(client.sock);
    run_until(client.closed);
}
END_TEST

START_TEST(stale_socket_is_replaced)
{
    struct mst_sockserv *other;
    int status;
    pid_t pid = fork();

    if (pid == 0) { /* dies without a chance to clean up */
        struct sockaddr_un addr = {.sun_family = AF_UNIX};
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/b.sock", folder);
        if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0 && listen(fd, 1) == 0)
            kill(getpid(), SIGKILL);
        _exit(1);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFSIGNALED(status));
    snprintf(path, sizeof(path), "%s/b.sock", folder);
    ck_assert_int_eq(access(path, F_OK), 0);
    ck_assert_msg(mst_sockserv_open(&loop, path, 0600, on_accept, accepted, &other, &why) == 0, "%s", why.text);
    struct end client = {0};
    pair_open(&client);
    mst_sock_close(client.sock);
    run_until(client.closed);
    mst_sockserv_close(other);
    ck_assert_int_eq(access(path, F_OK), -1);
}
END_TEST

START_TEST(file_that_is_no_socket_is_not_replaced)
{
    struct mst_sockserv *other = NULL;
    FILE *file;

    snprintf(path, sizeof(path), "%s/file", folder);
    file = fopen(path, "w");
    fclose(file);
    ck_assert_int_eq(mst_sockserv_open(&loop, path, 0600, on_accept, accepted, &other, &why), -EEXIST);
    ck_assert_int_eq(access(path, F_OK), 0);
}
END_TEST

START_TEST(socket_of_a_successor_is_not_removed)
{
    struct mst_sockserv *successor;
    struct end client = {0};

    ck_assert_int_eq(unlink(path), 0); /* somebody cleaned up /run */
    ck_assert_int_eq(mst_sockserv_open(&loop, path, 0600, on_accept, accepted, &successor, &why), 0);
    mst_sockserv_close(serv);
    serv = successor;
    pair_open(&client);
    mst_sock_close(client.sock);
    run_until(client.closed);
}
END_TEST

/* Between seeing a socket stale and replacing it nobody else may do the same: the folder is locked for so long. */
START_TEST(opening_waits_for_the_lock_of_the_folder_but_not_for_ever)
{
    struct mst_sockserv *other;
    int fd = open(folder, O_RDONLY | O_DIRECTORY);

    snprintf(path, sizeof(path), "%s/b.sock", folder);
    ck_assert_int_eq(flock(fd, LOCK_EX), 0);
    ck_assert_int_eq(mst_sockserv_open(&loop, path, 0600, on_accept, accepted, &other, &why), -EWOULDBLOCK);
    ck_assert_ptr_nonnull(strstr(why.text, "/b.sock: cannot lock its folder: "));
    ck_assert_int_eq(access(path, F_OK), -1);
    close(fd);
    ck_assert_int_eq(mst_sockserv_open(&loop, path, 0600, on_accept, accepted, &other, &why), 0);
    mst_sockserv_close(other);
}
END_TEST

START_TEST(of_many_openers_at_once_one_wins)
{
    pid_t pids[8];
    int go[2], winners = 0;
    char done;

    snprintf(path, sizeof(path), "%s/b.sock", folder);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    strcpy(addr.sun_path, path);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    close(fd); /* stale for all of them */
    ck_assert_int_eq(pipe(go), 0);
    for (unsigned i = 0; i < 8; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            struct mst_sockserv *other;
            uv_loop_t mine;
            close(go[1]);
            uv_loop_init(&mine);
            int r = mst_sockserv_open(&mine, path, 0600, on_accept, accepted, &other, NULL);
            ssize_t n = read(go[0], &done, 1); /* a winner listens until all have tried */
            _exit(n != 0 ? 3 : r == 0 ? 0 : r == -EADDRINUSE ? 1 : 2);
        }
    }
    close(go[0]);
    sleep(1);
    close(go[1]);
    for (unsigned i = 0; i < 8; i++) {
        int status;
        ck_assert_int_eq(waitpid(pids[i], &status, 0), pids[i]);
        ck_assert(WIFEXITED(status));
        ck_assert_int_lt(WEXITSTATUS(status), 2);
        winners += WEXITSTATUS(status) == 0;
    }
    ck_assert_int_eq(winners, 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("proto/socket");
    TCase *tcase = tcase_create("socket");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tcase, 30);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, messages_of_every_kind_come_back);
    tcase_add_test(tcase, peer_is_known_by_its_credentials);
    tcase_add_test(tcase, queued_messages_go_out_before_the_connection_closes);
    tcase_add_test(tcase, closing_inside_on_message_drops_what_came_behind_it);
    tcase_add_test(tcase, peer_that_does_not_read_is_held_to_four_mebibytes);
    tcase_add_test(tcase, peer_that_never_reads_does_not_hold_up_closing);
    tcase_add_test(tcase, last_words_of_a_peer_are_read_though_writing_fails);
    tcase_add_test(tcase, peer_that_closes_unread_is_told_apart);
    tcase_add_test(tcase, peer_that_closes_within_a_message_is_told_apart);
    tcase_add_test(tcase, malformed_message_ends_its_connection_only);
    tcase_add_test(tcase, random_bytes_end_the_connection_cleanly);
    tcase_add_test(tcase, message_that_the_peer_would_refuse_is_not_sent);
    tcase_add_test(tcase, refused_connection_sees_the_last_word_and_then_the_end);
    tcase_add_test(tcase, too_many_connections_are_closed_at_once);
#ifdef MST_FAULT_POINTS
    tcase_add_test(tcase, want_of_memory_delays_a_connection_and_loses_none);
#endif
    tcase_add_test(tcase, connections_outlive_their_listener);
    tcase_add_test(tcase, events_can_be_exchanged_on_the_way);
    tcase_add_test(tcase, nobody_listening_is_said_at_once);
    tcase_add_test(tcase, path_beyond_107_bytes_is_refused);
    tcase_add_test(tcase, mode_is_applied_whatever_the_umask);
    tcase_add_test(tcase, live_socket_is_left_to_its_owner);
    tcase_add_test(tcase, stale_socket_is_replaced);
    tcase_add_test(tcase, file_that_is_no_socket_is_not_replaced);
    tcase_add_test(tcase, socket_of_a_successor_is_not_removed);
    tcase_add_test(tcase, opening_waits_for_the_lock_of_the_folder_but_not_for_ever);
    tcase_add_test(tcase, of_many_openers_at_once_one_wins);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
