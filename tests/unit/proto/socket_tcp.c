#include "proto/socket.h"
#include "sample.h"

#include <arpa/inet.h>
#include <check.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Frames over TCP: what differs from Unix sockets (socket.c). */

#define ADDRESS "127.77.0.1"

struct end { /* of a connection, as its owner sees it */
    struct mst_sock *sock;
    unsigned messages, closed;
    int err;
};

static uv_loop_t loop;
static uv_timer_t tick;
static struct mst_sockserv *serv;
static uint16_t port;
static struct end here, accepted[80];
static unsigned accepted_count;
static int accept_result;
static char peer[64];
static struct mst_why why;

static void on_message(struct mst_sock *sock, const mst_envelope *env, void *arg)
{
    struct end *end = arg;

    end->messages++;
    if (end != &here)
        ck_assert_int_eq(mst_sock_send(sock, env), 0);
}

static void on_closed(struct mst_sock *sock, int err, const struct mst_why *reason, void *arg)
{
    struct end *end = arg;

    ck_assert_ptr_eq(sock, end->sock);
    ck_assert_ptr_nonnull(reason);
    end->closed++;
    end->err = err;
    end->sock = NULL;
}

static const struct mst_sock_events events = {on_message, on_closed};

static int on_accept(struct mst_sock *sock, const char *peer_address, void *arg, const struct mst_sock_events **ret_events,
                     void **ret_arg)
{
    struct end *end = &accepted[accepted_count];

    ck_assert_ptr_eq(arg, accepted);
    ck_assert_uint_lt(accepted_count, 80);
    snprintf(peer, sizeof(peer), "%s", peer_address);
    if (accept_result < 0)
        return accept_result;
    accepted_count++;
    end->sock = sock;
    *ret_events = &events;
    *ret_arg = end;
    return 0;
}

static void on_tick(uv_timer_t *timer)
{
    (void)timer;
}

static void run_until_(bool (*condition)(void), const char *what)
{
    uint64_t end = uv_hrtime() + UINT64_C(10000000000);

    while (!condition() && uv_hrtime() < end)
        uv_run(&loop, UV_RUN_ONCE);
    ck_assert_msg(condition(), "waited too long for: %s", what);
}
#define run_until(condition) run_until_(condition, #condition)

static bool here_has_answer(void)
{
    return here.messages > 0;
}

static bool here_is_closed(void)
{
    return here.closed > 0;
}

static bool first_is_closed(void)
{
    return accepted_count > 0 && accepted[0].closed > 0;
}

static bool somebody_called(void)
{
    return peer[0] != '\0';
}

static bool all_are_there(void)
{
    return accepted_count >= MST_SOCK_CONNECTIONS_MAX;
}

/* A port that is free just now. */
static uint16_t free_port(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t len = sizeof(at);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    inet_pton(AF_INET, ADDRESS, &at.sin_addr);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&at, sizeof(at)), 0);
    ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&at, &len), 0);
    close(fd);
    return ntohs(at.sin_port);
}

static void setup(void)
{
    signal(SIGPIPE, SIG_IGN);
    ck_assert_int_eq(uv_loop_init(&loop), 0);
    uv_timer_init(&loop, &tick);
    uv_timer_start(&tick, on_tick, 5, 5);
    memset(accepted, 0, sizeof(accepted));
    memset(&here, 0, sizeof(here));
    accepted_count = 0;
    accept_result = 0;
    peer[0] = '\0';
    port = free_port();
    ck_assert_msg(mst_sockserv_open_tcp(&loop, ADDRESS, port, on_accept, accepted, &serv, &why) == 0, "%s", why.text);
}

/* Whatever a test leaves open is closed here, and then nothing may be left. */
static void teardown(void)
{
    mst_sockserv_close(serv);
    mst_sock_close(here.sock);
    for (unsigned i = 0; i < accepted_count; i++)
        mst_sock_close(accepted[i].sock);
    uv_close((uv_handle_t *)&tick, NULL);
    uv_run(&loop, UV_RUN_DEFAULT);
    ck_assert_int_eq(uv_loop_close(&loop), 0);
}

static void call(void)
{
    ck_assert_msg(mst_sock_connect_tcp(&loop, ADDRESS, port, &events, &here, &here.sock, &why) == 0, "%s", why.text);
}

static void say(unsigned message)
{
    mst_envelope *env = sample_new(message);

    ck_assert_int_eq(mst_sock_send(here.sock, env), 0);
    sample_free(env);
}

static int raw(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    inet_pton(AF_INET, ADDRESS, &at.sin_addr);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&at, sizeof(at)), 0);
    return fd;
}

START_TEST(what_is_sent_before_the_connection_is_there_arrives_and_is_answered)
{
    call();
    say(0);
    run_until(here_has_answer);
    ck_assert_uint_eq(accepted_count, 1);
    ck_assert_uint_eq(accepted[0].messages, 1);
    ck_assert_msg(strncmp(peer, "127.", 4) == 0, "%s", peer);
    mst_sock_close(here.sock);
    run_until(first_is_closed);
    ck_assert_int_eq(accepted[0].err, 0);
    ck_assert_uint_eq(here.closed, 1);
}
END_TEST

START_TEST(who_is_not_taken_is_closed_without_a_word)
{
    accept_result = -EACCES;
    call();
    run_until(somebody_called);
    run_until(here_is_closed);
    ck_assert_uint_eq(here.messages, 0);
    ck_assert_uint_eq(accepted_count, 0);
}
END_TEST

START_TEST(where_nobody_listens_the_end_is_told_once)
{
    uint16_t listening = port;

    port = free_port();
    call();
    say(0);
    run_until(here_is_closed);
    ck_assert_int_eq(here.err, -ECONNREFUSED);
    ck_assert_uint_eq(here.closed, 1);
    port = listening;
}
END_TEST

START_TEST(who_gives_up_before_he_is_connected_is_told_once)
{
    call();
    say(0);
    mst_sock_close(here.sock);
    run_until(here_is_closed);
    ck_assert_int_eq(here.err, 0);
    ck_assert_uint_eq(here.closed, 1);
}
END_TEST

START_TEST(what_is_no_message_ends_its_connection_and_no_other)
{
    static const char junk[] = "GET / HTTP/1.1\r\n\r\n";
    int fd = raw();

    ck_assert_int_eq((int)write(fd, junk, sizeof(junk)), (int)sizeof(junk));
    run_until(first_is_closed);
    ck_assert_int_eq(accepted[0].err, -EPROTO);
    close(fd);
    call();
    say(1);
    run_until(here_has_answer);
}
END_TEST

START_TEST(there_are_no_more_connections_than_allowed)
{
    int fds[MST_SOCK_CONNECTIONS_MAX + 4];
    char byte;

    for (unsigned i = 0; i < MST_SOCK_CONNECTIONS_MAX + 4; i++) {
        fds[i] = raw();
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    run_until(all_are_there);
    for (unsigned i = 0; i < 20; i++)
        uv_run(&loop, UV_RUN_ONCE);
    ck_assert_uint_eq(accepted_count, MST_SOCK_CONNECTIONS_MAX);
    ck_assert_int_le((int)read(fds[MST_SOCK_CONNECTIONS_MAX + 3], &byte, 1), 0);
    for (unsigned i = 0; i < MST_SOCK_CONNECTIONS_MAX + 4; i++)
        close(fds[i]);
}
END_TEST

START_TEST(an_address_may_come_up_later_than_its_listener)
{
    struct mst_sockserv *other;

    ck_assert_msg(mst_sockserv_open_tcp(&loop, "192.0.2.77", port, on_accept, accepted, &other, &why) == 0, "%s", why.text);
    mst_sockserv_close(other);
    ck_assert_int_eq(mst_sockserv_open_tcp(&loop, ADDRESS, port, on_accept, accepted, &other, &why), -EADDRINUSE);
    ck_assert_int_eq(mst_sockserv_open_tcp(&loop, "localhost", port, on_accept, accepted, &other, &why), -EINVAL);
    ck_assert_int_eq(mst_sock_connect_tcp(&loop, "localhost", port, &events, &here, &here.sock, &why), -EINVAL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("socket_tcp");
    TCase *tc = tcase_create("socket_tcp");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, what_is_sent_before_the_connection_is_there_arrives_and_is_answered);
    tcase_add_test(tc, who_is_not_taken_is_closed_without_a_word);
    tcase_add_test(tc, where_nobody_listens_the_end_is_told_once);
    tcase_add_test(tc, who_gives_up_before_he_is_connected_is_told_once);
    tcase_add_test(tc, what_is_no_message_ends_its_connection_and_no_other);
    tcase_add_test(tc, there_are_no_more_connections_than_allowed);
    tcase_add_test(tc, an_address_may_come_up_later_than_its_listener);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
