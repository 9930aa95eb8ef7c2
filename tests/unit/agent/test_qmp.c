/* QMP client against a fake QMP server at the other end of a socketpair. */

#include "node/agent/qmp.h"
#include "tests/lib/guest.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define GREETING                                                                                                                 \
    "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, \"package\": \"\"}, \"capabilities\": "     \
    "[\"oob\"]}}\r\n"

static uv_loop_t loop;
static int server; /* the fake QEMU's end */
static struct mst_qmp *qmp;

static struct seen {
    unsigned ready, closed, replies;
    int closed_err, reply_err;
    char why[400], events[400], order[400];
    json_int_t answer;
} seen;

static void on_ready(struct mst_qmp *q, void *arg)
{
    (void)q;
    (void)arg;
    seen.ready++;
}

static void on_event(struct mst_qmp *q, const char *name, const json_t *data, void *arg)
{
    (void)q;
    (void)arg;
    (void)data;
    snprintf(seen.events + strlen(seen.events), sizeof(seen.events) - strlen(seen.events), "%s ", name);
    snprintf(seen.order + strlen(seen.order), sizeof(seen.order) - strlen(seen.order), "%s ", name);
}

static void on_closed(struct mst_qmp *q, int err, const struct mst_why *why, void *arg)
{
    (void)arg;
    ck_assert_ptr_eq(q, qmp);
    seen.closed++;
    seen.closed_err = err;
    snprintf(seen.why, sizeof(seen.why), "%s", why->text);
    mst_qmp_close(qmp);
    qmp = NULL;
}

static const struct mst_qmp_events events = {on_ready, on_event, on_closed};

static void on_reply(struct mst_qmp *q, int err, const json_t *ret, const struct mst_why *why, void *arg)
{
    (void)q;
    seen.replies++;
    seen.reply_err = err;
    seen.answer = json_integer_value(ret);
    if (err)
        snprintf(seen.why, sizeof(seen.why), "%s", why->text);
    snprintf(seen.order + strlen(seen.order), sizeof(seen.order) - strlen(seen.order), "%s ", arg ? (const char *)arg : "reply");
}

static void setup(void)
{
    int ends[2];

    signal(SIGPIPE, SIG_IGN);
    memset(&seen, 0, sizeof(seen));
    uv_loop_init(&loop);
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    server = ends[0];
    ck_assert_int_eq(mst_qmp_open(&loop, ends[1], 300, &events, NULL, &qmp), 0);
}

static void teardown(void)
{
    mst_qmp_close(qmp);
    uv_run(&loop, UV_RUN_DEFAULT);
    ck_assert_int_eq(uv_loop_close(&loop), 0);
    if (server >= 0)
        close(server);
}

static void say(const char *text)
{
    ck_assert_int_eq(write(server, text, strlen(text)), (ssize_t)strlen(text));
}

/* Reads one command, with a descriptor if one came along. */
static json_t *hear(int *ret_fd)
{
    static char line[4096];
    char control[CMSG_SPACE(sizeof(int))];
    struct iovec iov = {.iov_base = line, .iov_len = sizeof(line) - 1};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    struct cmsghdr *head;
    ssize_t n = recvmsg(server, &message, MSG_DONTWAIT);

    if (ret_fd)
        *ret_fd = -1;
    if (n <= 0)
        return NULL;
    head = CMSG_FIRSTHDR(&message);
    if (ret_fd && head && head->cmsg_type == SCM_RIGHTS)
        memcpy(ret_fd, CMSG_DATA(head), sizeof(int));
    return json_loadb(line, (size_t)n, JSON_DISABLE_EOF_CHECK, NULL);
}

static json_int_t hear_command(const char *name)
{
    json_t *message;
    json_int_t id;

    loop_for(&loop, 10);
    message = hear(NULL);
    ck_assert_ptr_nonnull(message);
    ck_assert_str_eq(json_string_value(json_object_get(message, "execute")), name);
    id = json_integer_value(json_object_get(message, "id"));
    json_decref(message);
    return id;
}

static void answer(json_int_t id, const char *what)
{
    char text[300];

    snprintf(text, sizeof(text), "{%s, \"id\": %lld}\r\n", what, (long long)id);
    say(text);
}

static void become_ready(void)
{
    say(GREETING);
    answer(hear_command("qmp_capabilities"), "\"return\": {}");
    loop_for(&loop, 10);
    ck_assert_uint_eq(seen.ready, 1);
}

static void ask(const char *command, unsigned timeout_ms, const char *name)
{
    ck_assert_int_eq(mst_qmp_execute(qmp, command, NULL, -1, timeout_ms, on_reply, (void *)(uintptr_t)name), 0);
}

START_TEST(greeting_and_capabilities_make_it_ready)
{
    ck_assert_int_eq(mst_qmp_execute(qmp, "stop", NULL, -1, 0, on_reply, NULL), -ENOTCONN);
    become_ready();
    ask("query-status", 1000, NULL);
    answer(hear_command("query-status"), "\"return\": 7");
    loop_for(&loop, 10);
    ck_assert_uint_eq(seen.replies, 1);
    ck_assert_int_eq(seen.reply_err, 0);
    ck_assert_int_eq(seen.answer, 7);
    ck_assert_uint_eq(seen.closed, 0);
}
END_TEST

START_TEST(refused_command_carries_qemus_words)
{
    become_ready();
    ask("cont", 1000, NULL);
    answer(hear_command("cont"), "\"error\": {\"class\": \"GenericError\", \"desc\": \"Migration is not finalized yet\"}");
    loop_for(&loop, 10);
    ck_assert_int_eq(seen.reply_err, -EREMOTEIO);
    ck_assert_ptr_nonnull(strstr(seen.why, "cont: Migration is not finalized yet"));
}
END_TEST

START_TEST(events_between_replies_come_in_their_order)
{
    json_int_t first, second;

    become_ready();
    ask("stop", 1000, "stop");
    ask("migrate", 1000, "migrate");
    loop_for(&loop, 10);
    first = 2; /* ids count up from the capabilities' 1 */
    second = 3;
    say("{\"event\": \"STOP\"}\r\n");
    answer(first, "\"return\": {}");
    say("{\"event\": \"MIGRATION\", \"data\": {\"status\": \"setup\"}}\r\n");
    answer(second, "\"return\": {}");
    say("{\"event\": \"MIGRATION\", \"data\": {\"status\": \"completed\"}}\r\n");
    loop_for(&loop, 20);
    ck_assert_str_eq(seen.order, "STOP stop MIGRATION migrate MIGRATION ");
}
END_TEST

START_TEST(line_in_pieces_is_put_together)
{
    static const char text[] = "{\"event\": \"RESUME\"}\r\n{\"event\": \"RESET\"}\r\n";

    become_ready();
    for (size_t i = 0; i < sizeof(text) - 1; i++) {
        ck_assert_int_eq(write(server, &text[i], 1), 1);
        loop_for(&loop, 1);
    }
    loop_for(&loop, 10);
    ck_assert_str_eq(seen.events, "RESUME RESET ");
}
END_TEST

START_TEST(descriptor_goes_with_its_command)
{
    int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC), got;
    json_t *message;
    uint32_t zero = 1;

    become_ready();
    ck_assert_int_eq(mst_qmp_execute(qmp, "getfd", json_pack("{s:s}", "fdname", "x"), fd, 1000, on_reply, NULL), 0);
    close(fd); /* the client keeps its own */
    loop_for(&loop, 10);
    message = hear(&got);
    ck_assert_ptr_nonnull(message);
    ck_assert_str_eq(json_string_value(json_object_get(json_object_get(message, "arguments"), "fdname")), "x");
    ck_assert_int_ge(got, 0);
    ck_assert_int_eq(read(got, &zero, sizeof(zero)), sizeof(zero));
    ck_assert_uint_eq(zero, 0);
    close(got);
    json_decref(message);
}
END_TEST

static const struct {
    const char *text;
    int err;
} garbage[] = {
    {"hello\n", -EBADMSG},
    {"[1, 2]\n", -EBADMSG},
    {"{\"return\": {}, \n", -EBADMSG},
    {"{\"a\": 1, \"a\": 2}\n", -EBADMSG},
    {"{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\n", -EPROTO},
    {"{\"return\": {}, \"id\": 99}\n", -EPROTO},
    {"{\"return\": {}, \"id\": -1}\n", -EPROTO},
    {"{\"return\": {}, \"id\": \"x\"}\n", -EPROTO},
    {"{}\n", -EPROTO},
};

START_TEST(garbage_ends_the_connection_and_answers_what_waits)
{
    become_ready();
    ask("query-status", 0, NULL);
    loop_for(&loop, 10);
    say(garbage[_i].text);
    loop_for(&loop, 20);
    ck_assert_uint_eq(seen.closed, 1);
    ck_assert_int_eq(seen.closed_err, garbage[_i].err);
    ck_assert_uint_eq(seen.replies, 1);
    ck_assert_int_eq(seen.reply_err, -ENOTCONN);
}
END_TEST

START_TEST(other_greeting_is_refused)
{
    say("{\"hello\": 1}\n");
    loop_for(&loop, 20);
    ck_assert_uint_eq(seen.closed, 1);
    ck_assert_int_eq(seen.closed_err, -EPROTO);
    ck_assert_uint_eq(seen.ready, 0);
}
END_TEST

static bool is_closed(void *arg)
{
    (void)arg;
    return seen.closed > 0;
}

START_TEST(line_without_end_is_refused_at_its_bound)
{
    static char piece[4096];
    size_t sent = 0;

    become_ready();
    fcntl(server, F_SETFL, O_NONBLOCK);
    memset(piece, ' ', sizeof(piece));
    piece[0] = '{';
    while (!seen.closed && sent < 4 * MST_QMP_LINE_BYTES_MAX) {
        ssize_t n = write(server, piece, sizeof(piece));

        sent += n > 0 ? (size_t)n : 0;
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    ck_assert(loop_until(&loop, is_closed, NULL, 1000));
    ck_assert_int_eq(seen.closed_err, -EMSGSIZE);
    ck_assert_uint_le(sent, MST_QMP_LINE_BYTES_MAX + (1 << 20)); /* and the socket's own buffer */
}
END_TEST

START_TEST(line_just_below_the_bound_is_read)
{
    size_t len = MST_QMP_LINE_BYTES_MAX - 2, sent = 0;
    char *line = malloc(len + 1);

    become_ready();
    fcntl(server, F_SETFL, O_NONBLOCK);
    memset(line, ' ', len);
    memcpy(line, "{\"event\": \"BIG\"", 15);
    line[len - 2] = '}';
    line[len - 1] = '\n';
    while (sent < len) {
        ssize_t n = write(server, line + sent, len - sent);

        sent += n > 0 ? (size_t)n : 0;
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    loop_for(&loop, 50);
    ck_assert_str_eq(seen.events, "BIG ");
    ck_assert_uint_eq(seen.closed, 0);
    free(line);
}
END_TEST

START_TEST(silent_peer_is_timed_out_and_its_late_answer_dropped)
{
    json_int_t id;

    become_ready();
    ask("stop", 50, NULL);
    id = hear_command("stop");
    loop_for(&loop, 100);
    ck_assert_uint_eq(seen.replies, 1);
    ck_assert_int_eq(seen.reply_err, -ETIMEDOUT);
    answer(id, "\"return\": {}");
    ask("cont", 1000, NULL);
    answer(hear_command("cont"), "\"return\": 3");
    loop_for(&loop, 20);
    ck_assert_uint_eq(seen.replies, 2);
    ck_assert_int_eq(seen.reply_err, 0);
    ck_assert_int_eq(seen.answer, 3);
    ck_assert_uint_eq(seen.closed, 0);
}
END_TEST

START_TEST(peer_that_never_greets_is_given_up)
{
    loop_for(&loop, 500);
    ck_assert_uint_eq(seen.closed, 1);
    ck_assert_int_eq(seen.closed_err, -ETIMEDOUT);
}
END_TEST

START_TEST(end_of_qemu_is_told_once)
{
    become_ready();
    ask("stop", 0, NULL);
    loop_for(&loop, 10);
    close(server);
    server = -1;
    loop_for(&loop, 20);
    ck_assert_uint_eq(seen.closed, 1);
    ck_assert_uint_eq(seen.replies, 1);
    ck_assert_int_eq(seen.reply_err, -ENOTCONN);
}
END_TEST

START_TEST(commands_that_wait_are_bounded)
{
    become_ready();
    for (unsigned i = 0; i < MST_QMP_PENDING_MAX; i++)
        ask("query-status", 0, NULL);
    ck_assert_int_eq(mst_qmp_execute(qmp, "query-status", json_object(), -1, 0, on_reply, NULL), -EAGAIN);
}
END_TEST

START_TEST(peer_that_does_not_read_holds_up_nothing)
{
    char big[2000];

    memset(big, 'x', sizeof(big) - 1);
    big[sizeof(big) - 1] = '\0';
    become_ready();
    for (unsigned i = 0; i < MST_QMP_PENDING_MAX - 1; i++)
        ck_assert_int_eq(mst_qmp_execute(qmp, "x", json_pack("{s:s}", "x", big), -1, 50, on_reply, NULL), 0);
    loop_for(&loop, 200);
    ck_assert_uint_eq(seen.replies, MST_QMP_PENDING_MAX - 1);
    ck_assert_uint_eq(seen.closed, 0);
}
END_TEST

START_TEST(forgotten_command_has_no_reply)
{
    static const char mine[] = "mine";

    become_ready();
    ask("stop", 0, mine);
    mst_qmp_forget(qmp, mine);
    answer(hear_command("stop"), "\"return\": {}");
    loop_for(&loop, 20);
    ck_assert_uint_eq(seen.replies, 0);
}
END_TEST

static void close_in_reply(struct mst_qmp *q, int err, const json_t *ret, const struct mst_why *why, void *arg)
{
    (void)err;
    (void)ret;
    (void)why;
    (void)arg;
    mst_qmp_close(q);
    qmp = NULL;
}

START_TEST(closing_inside_a_callback_is_safe)
{
    become_ready();
    ck_assert_int_eq(mst_qmp_execute(qmp, "stop", NULL, -1, 0, close_in_reply, NULL), 0);
    answer(hear_command("stop"), "\"return\": {}");
    say("{\"event\": \"LATE\"}\r\n");
    loop_for(&loop, 20);
    ck_assert_ptr_null(qmp);
    ck_assert_str_eq(seen.events, "");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("qmp");
    TCase *tcase = tcase_create("qmp");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_set_timeout(tcase, 20);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, greeting_and_capabilities_make_it_ready);
    tcase_add_test(tcase, refused_command_carries_qemus_words);
    tcase_add_test(tcase, events_between_replies_come_in_their_order);
    tcase_add_test(tcase, line_in_pieces_is_put_together);
    tcase_add_test(tcase, descriptor_goes_with_its_command);
    tcase_add_loop_test(tcase, garbage_ends_the_connection_and_answers_what_waits, 0,
                        (int)(sizeof(garbage) / sizeof(garbage[0])));
    tcase_add_test(tcase, other_greeting_is_refused);
    tcase_add_test(tcase, line_without_end_is_refused_at_its_bound);
    tcase_add_test(tcase, line_just_below_the_bound_is_read);
    tcase_add_test(tcase, silent_peer_is_timed_out_and_its_late_answer_dropped);
    tcase_add_test(tcase, peer_that_never_greets_is_given_up);
    tcase_add_test(tcase, end_of_qemu_is_told_once);
    tcase_add_test(tcase, commands_that_wait_are_bounded);
    tcase_add_test(tcase, peer_that_does_not_read_holds_up_nothing);
    tcase_add_test(tcase, forgotten_command_has_no_reply);
    tcase_add_test(tcase, closing_inside_a_callback_is_safe);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
