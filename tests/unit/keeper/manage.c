/* The management address of a whole keeper, see rig.h: the test asks over TCP as a coordinator would. */
#include "rig.h"

#include "node/keeper/lease.h"
#include "shm/publish.h"

#include <arpa/inet.h>
#include <check.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PORT        17472
#define COORDINATOR 99u /* the rig's instance */
#define ANSWER_MS   5000

static mst_envelope *last;

static void setup(void)
{
    static char more[200];

    rig_setup();
    snprintf(more, sizeof(more), "management: { address: %s, port: %d }\n", rig_address(1), PORT);
    rig->config_more = more;
    last = NULL;
}

static void teardown(void)
{
    mst_envelope_free(last);
    rig_teardown();
}

/* Connected from that address of ours. */
static int called_from(const char *from)
{
    struct sockaddr_in at = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    inet_pton(AF_INET, from, &at.sin_addr);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&at, sizeof(at)), 0);
    inet_pton(AF_INET, rig_address(1), &at.sin_addr);
    at.sin_port = htons(PORT);
    ck_assert_msg(connect(fd, (struct sockaddr *)&at, sizeof(at)) == 0, "%s", strerror(errno));
    return fd;
}

static void put(int fd, const mst_envelope *env)
{
    uint8_t frame[MST_MESSAGE_BYTES_MAX];
    struct mst_why why = {{0}};
    int n = mst_frame_pack_why(env, frame, sizeof(frame), &why);

    ck_assert_msg(n > 0, "%s", why.text);
    ck_assert_int_eq((int)send(fd, frame, (size_t)n, MSG_NOSIGNAL), n);
}

struct waiting {
    int fd;
    struct mst_stream *stream;
    bool ended;
};

static bool has_come(void *arg)
{
    struct waiting *waiting = arg;
    struct mst_why why = {{0}};
    size_t room;
    void *at = mst_stream_room(waiting->stream, &room);
    ssize_t n = recv(waiting->fd, at, room, MSG_DONTWAIT);

    if (n > 0)
        mst_stream_filled(waiting->stream, (size_t)n);
    waiting->ended = n == 0 || (n < 0 && errno != EAGAIN);
    return mst_stream_next(waiting->stream, &last, &why) != 0 || waiting->ended;
}

/* The next message, NULL: it has closed. */
static const mst_envelope *next(int fd)
{
    struct waiting waiting = {.fd = fd};

    mst_envelope_free(last);
    last = NULL;
    ck_assert_int_eq(mst_stream_new(&waiting.stream), 0);
    ck_assert(rig_until(has_come, &waiting, ANSWER_MS));
    mst_stream_free(waiting.stream);
    return last;
}

static mst_envelope question(Mainstay__ManageAsk *body)
{
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    mainstay__manage_ask__init(body);
    body->cluster = (char *)"rig";
    body->node = (char *)"n1";
    env.body_case = MAINSTAY__ENVELOPE__BODY_MANAGE_ASK;
    env.manage_ask = body;
    return env;
}

static struct mst_beat_line ask(int fd, const struct mst_lease_line *lease)
{
    Mainstay__ManageAsk body;
    mst_envelope env = question(&body);
    const mst_envelope *got;
    struct mst_beat_line beat;

    if (lease) {
        body.has_lease = 1;
        body.lease = (ProtobufCBinaryData){.len = sizeof(*lease), .data = (uint8_t *)lease};
    }
    put(fd, &env);
    got = next(fd);
    ck_assert_ptr_nonnull(got);
    ck_assert_int_eq(got->body_case, MAINSTAY__ENVELOPE__BODY_MANAGE_ANSWER);
    memcpy(&beat, got->manage_answer->beat.data, sizeof(beat));
    ck_assert_int_eq(mst_beat_check(&beat), 0);
    return beat;
}

START_TEST(a_coordinator_is_told_who_answers_and_that_it_lives)
{
    struct mst_status_area area;
    struct mst_beat_line first, second;
    int fd;

    rig_keeper_start(1);
    ck_assert_int_eq(rig_start(1, "web01", 1, MAINSTAY__PROTECT__PROTECT_NONE, "x", NULL)->error, 0);
    rig_wait_state(1, "web01", 1, MST_RUN_RUNNING);
    fd = called_from(rig_address(101));
    first = ask(fd, NULL);
    rig_status(1, &area);
    ck_assert_uint_eq(last->manage_answer->instance, rig->nodes[1].instance);
    ck_assert_uint_eq(first.instance, rig->nodes[1].instance);
    ck_assert_mem_eq(last->manage_answer->host_boot_id.data, area.super.host_boot_id, 16);
    ck_assert_str_eq(last->manage_answer->cluster, "rig");
    ck_assert_str_eq(last->manage_answer->node, "n1");
    ck_assert(last->manage_answer->rdma_up);
    ck_assert_uint_eq(last->manage_answer->vms_running, 1);
    ck_assert_uint_eq(last->manage_answer->highest_term, RIG_TERM);
    ck_assert_uint_eq(last->manage_answer->highest_term_by, COORDINATOR);
    rig_run_ms(200);
    second = ask(fd, NULL);
    ck_assert_uint_gt(second.keeper_beat, first.keeper_beat);
    close(fd);
}
END_TEST

START_TEST(strangers_and_questions_for_others_are_not_answered)
{
    Mainstay__ManageAsk body;
    mst_envelope env;
    int fd;

    rig_keeper_start(1);
    fd = called_from(rig_address(66));
    ck_assert_ptr_null(next(fd));
    close(fd);
    fd = called_from(rig_address(101));
    env = question(&body);
    body.node = (char *)"n2";
    put(fd, &env);
    ck_assert_ptr_null(next(fd));
    close(fd);
    fd = called_from(rig_address(101)); /* an order is none that may come this way */
    env = (mst_envelope)MAINSTAY__ENVELOPE__INIT;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_FENCE;
    env.order_fence =
        &(Mainstay__OrderFence){.base = PROTOBUF_C_MESSAGE_INIT(&mainstay__order_fence__descriptor), .has_all = 1, .all = 1};
    put(fd, &env);
    ck_assert_ptr_null(next(fd));
    close(fd);
    fd = called_from(rig_address(101));
    (void)ask(fd, NULL);
    close(fd);
}
END_TEST

START_TEST(who_connects_and_says_nothing_keeps_nobody_out)
{
    int fds[20], fd;

    rig_keeper_start(1);
    for (unsigned i = 0; i < 20; i++)
        fds[i] = called_from(rig_address(101));
    fd = called_from(rig_address(101));
    (void)ask(fd, NULL);
    ck_assert_ptr_null(next(fds[0])); /* the oldest gave way */
    for (unsigned i = 0; i < 20; i++)
        close(fds[i]);
    close(fd);
}
END_TEST

static bool lives_by(void *arg)
{
    const struct mst_lease_line *line = arg;
    static struct mst_status_area area;

    rig_status(1, &area);
    return mst_beat_check(&area.beat) == 0 && area.beat.lease_renewal == line->renewal;
}

static struct mst_lease_line line_for(const struct mst_beat_line *beat, uint32_t counter)
{
    struct mst_lease_line line = {.instance = beat->instance,
                                  .term = RIG_TERM,
                                  .coordinator = COORDINATOR,
                                  .renewal = ((uint64_t)COORDINATOR << 32) | counter,
                                  .beat = beat->keeper_beat,
                                  .lease_ms = MST_LEASE_MS_MIN,
                                  .flags = MST_LEASE_STRICT,
                                  .coordinator_id = 1,
                                  .version = MST_LEASE_VERSION};

    line.crc32c = mst_crc32c(&line, offsetof(struct mst_lease_line, crc32c));
    return line;
}

static bool is_dead(void *pid)
{
    return !rig_alive(*(long *)pid);
}

START_TEST(a_strict_lease_that_questions_renew_is_kept_and_ends_without_them)
{
    struct mst_beat_line beat;
    struct mst_lease_line line;
    int fd;
    long pid;

    rig_keeper_start(1);
    ck_assert_int_eq(rig_start(1, "web01", 1, MAINSTAY__PROTECT__PROTECT_NONE, "x", NULL)->error, 0);
    pid = rig_pid_of(1, "vm/web01/qemu.pid");
    fd = called_from(rig_address(101));
    beat = ask(fd, NULL);
    for (uint32_t i = 1; i <= MST_LEASE_MS_MIN / 1000 * 2; i++) { /* two leases long */
        line = line_for(&beat, i);
        beat = ask(fd, &line);
        ck_assert(rig_until(lives_by, &line, 2000));
        rig_run_ms(1000);
        ck_assert(rig_alive(pid));
    }
    ck_assert(rig_until(is_dead, &pid, MST_LEASE_MS_MIN + 3000));
    close(fd);
}
END_TEST

/* 0: another instance; 1: a wrong sum; 2: an older term; 3: a coordinator that the term is not of; 4: a beat that was never written */
START_TEST(a_renewal_is_held_to_the_same_checks_as_one_by_rdma)
{
    struct mst_beat_line beat;
    struct mst_lease_line line, good;
    int fd;

    rig_keeper_start(1);
    fd = called_from(rig_address(101));
    beat = ask(fd, NULL);
    good = line_for(&beat, 1);
    beat = ask(fd, &good);
    ck_assert(rig_until(lives_by, &good, 2000));
    line = line_for(&beat, 2);
    line.instance += _i == 0 ? 1 : 0;
    line.term -= _i == 2 ? 1 : 0;
    line.coordinator += _i == 3 ? 1 : 0;
    line.beat += _i == 4 ? 100000 : 0;
    line.crc32c = mst_crc32c(&line, offsetof(struct mst_lease_line, crc32c)) + (_i == 1 ? 1 : 0);
    (void)ask(fd, &line);
    rig_run_ms(300);
    ck_assert(lives_by(&good));
    close(fd);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("manage");
    TCase *tc = tcase_create("manage");
    SRunner *runner;
    int failed;

    if (!rig_can_run()) {
        fprintf(stderr, "SKIPPED: cgroup v2 is not writable here, and a keeper fences with it\n");
        return 77;
    }
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, a_coordinator_is_told_who_answers_and_that_it_lives);
    tcase_add_test(tc, strangers_and_questions_for_others_are_not_answered);
    tcase_add_test(tc, who_connects_and_says_nothing_keeps_nobody_out);
    tcase_add_test(tc, a_strict_lease_that_questions_renew_is_kept_and_ends_without_them);
    tcase_add_loop_test(tc, a_renewal_is_held_to_the_same_checks_as_one_by_rdma, 0, 5);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    rig_sweep();
    return failed ? 1 : 0;
}
