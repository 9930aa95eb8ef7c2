#include "rig.h"

#include "base/clock.h"

#include <check.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Two coordinators: the rig's, and one more that refuses as a standby does or welcomes, as the test wants. */

static struct second {
    struct mst_fabric *fabric;
    struct mst_link *link; /* the last one that said Hello, NULL: gone */
    uint64_t term;         /* it welcomes with; 0: it stands by */
    unsigned hellos, welcomes, pulls;
    uint64_t decision;                 /* that it welcomes with */
    uint64_t seen_term, seen_decision; /* that the last Hello carried */
} second;

static void send_env(struct mst_link *link, const mst_envelope *env)
{
    static uint8_t frame[MST_MESSAGE_BYTES_MAX];
    int n = mst_frame_pack(env, frame, sizeof(frame));

    ck_assert_int_gt(n, 0);
    ck_assert_int_eq(mst_link_send(link, frame, (size_t)n), 0);
}

static void on_message(struct mst_link *link, const void *data, size_t len, void *arg)
{
    Mainstay__Refuse refuse = MAINSTAY__REFUSE__INIT;
    Mainstay__Welcome welcome = MAINSTAY__WELCOME__INIT;
    mst_envelope answer = MAINSTAY__ENVELOPE__INIT;
    struct mst_why why = {0};
    mst_envelope *env;

    (void)arg;
    ck_assert_msg(mst_frame_unpack(data, len, &env, &why) == 0, "%s", why.text);
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_HELLO) {
        second.hellos++;
        second.seen_term = env->hello->highest_term;
        second.seen_decision = env->hello->highest_decision;
        second.link = link;
        if (second.term == 0) {
            refuse.error = EAGAIN;
            refuse.text = (char *)"standby: the leader is coordinator 1";
            answer.body_case = MAINSTAY__ENVELOPE__BODY_REFUSE;
            answer.refuse = &refuse;
        } else {
            second.welcomes++;
            welcome.coordinator_id = 2;
            welcome.coordinator_instance = 100;
            welcome.term = second.term;
            answer.body_case = MAINSTAY__ENVELOPE__BODY_WELCOME;
            answer.welcome = &welcome;
            answer.has_decision = 1;
            answer.decision = second.decision;
        }
        send_env(link, &answer);
    }
    mst_envelope_free(env);
}

static void on_closed(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    (void)err, (void)why, (void)arg;
    if (second.link == link)
        second.link = NULL;
}

static const struct mst_link_events events = {.on_message = on_message, .on_closed = on_closed};

static int on_accept(struct mst_link *link, const struct mst_link_request *request, void *arg,
                     const struct mst_link_events **ret_events, void **ret_arg, struct mst_why *why)
{
    (void)link, (void)arg, (void)why;
    second.pulls += request->role == MST_ROLE_PULL;
    *ret_events = &events;
    *ret_arg = NULL;
    return 0;
}

static void setup(void)
{
    struct mst_why why = {0};

    rig_setup();
    memset(&second, 0, sizeof(second));
    rig->second = true;
    ck_assert_int_eq(mst_fabric_open(&rig->loop, rig_address(102), &second.fabric, &why), 0);
    ck_assert_msg(mst_fabric_listen(second.fabric, 17470, on_accept, NULL, &why) == 0, "%s", why.text);
}

static void fabric_closed(void *arg)
{
    *(bool *)arg = true;
}

static bool is_set(void *arg)
{
    return *(bool *)arg;
}

static void teardown(void)
{
    bool closed = false;

    mst_fabric_close(second.fabric, fabric_closed, &closed);
    ck_assert(rig_until(is_set, &closed, 5000));
    rig_teardown();
}

static bool second_has_it(void *arg)
{
    (void)arg;
    return second.link != NULL && second.welcomes > 0;
}

static bool first_lost_it(void *arg)
{
    (void)arg;
    return rig->nodes[1].link == NULL;
}

static bool asked_more(void *arg)
{
    return second.hellos > *(unsigned *)arg;
}

START_TEST(a_standby_is_asked_all_the_time_because_a_leader_that_hangs_keeps_its_link)
{
    unsigned before;
    uint64_t start;

    rig_keeper_start(1);
    rig_run_ms(1500); /* also to get over the start, when nobody leads */
    before = second.hellos;
    rig_run_ms(2500);
    ck_assert_uint_ge(second.hellos, before + 3); /* every 500 ms */
    second.term = RIG_TERM + 1;
    start = mst_now_ms();
    rig_coordinator_down();
    ck_assert(rig_until(second_has_it, NULL, 5000));
    ck_assert_uint_lt(mst_now_ms() - start, 1500);
    ck_assert_uint_eq(second.seen_term, RIG_TERM);
}
END_TEST

START_TEST(standbys_are_asked_again_soon_while_nobody_leads)
{
    unsigned before;

    rig->silent = true;
    rig_keeper_start(1);
    before = second.hellos + 3;
    ck_assert(rig_until(asked_more, &before, 4000)); /* every 500 ms */
}
END_TEST

START_TEST(of_two_that_welcome_the_one_with_the_older_term_loses_its_link_and_is_told_the_newer_term)
{
    rig_keeper_start(1);
    second.term = RIG_TERM + 1;
    ck_assert(rig_until(second_has_it, NULL, 10000)); /* asked again after 5 s */
    ck_assert(rig_until(first_lost_it, NULL, 2000));
    mst_envelope_free(rig->nodes[1].hello);
    rig->nodes[1].hello = NULL;
    rig_run_ms(1500); /* it calls again, is welcomed with the old term, and does not stay */
    ck_assert_ptr_nonnull(rig->nodes[1].hello);
    ck_assert_uint_eq(rig->nodes[1].hello->hello->highest_term, RIG_TERM + 1);
    ck_assert(second_has_it(NULL));
}
END_TEST

START_TEST(the_newest_decision_that_was_heard_of_is_told_to_whoever_leads_next)
{
    mst_envelope peers = MAINSTAY__ENVELOPE__INIT;
    Mainstay__Peers none = MAINSTAY__PEERS__INIT;
    unsigned before;

    rig_keeper_start(1);
    second.term = RIG_TERM + 1;
    second.decision = 40;
    ck_assert(rig_until(second_has_it, NULL, 10000));
    peers.body_case = MAINSTAY__ENVELOPE__BODY_PEERS;
    peers.peers = &none;
    peers.has_decision = 1;
    peers.decision = 41;
    send_env(second.link, &peers);
    rig_run_ms(200);
    before = second.hellos;
    mst_link_close(second.link);
    ck_assert(rig_until(asked_more, &before, 10000));
    ck_assert_uint_eq(second.seen_term, RIG_TERM + 1);
    ck_assert_uint_eq(second.seen_decision, 41);
}
END_TEST

static bool pulled_again(void *arg)
{
    (void)arg;
    return second.pulls >= 2;
}

/* The last message of the handshake was lost: the peer has given the link up, and its goodbye was lost as well. */
START_TEST(a_pull_link_over_which_no_keys_come_is_made_anew)
{
    Mainstay__Peer peer = MAINSTAY__PEER__INIT, *list[] = {&peer};
    Mainstay__Peers body = MAINSTAY__PEERS__INIT;
    mst_envelope peers = MAINSTAY__ENVELOPE__INIT;

    rig_keeper_start(1);
    second.term = RIG_TERM + 1;
    ck_assert(rig_until(second_has_it, NULL, 10000));
    peer.node = (char *)"n2";
    peer.node_id = 2;
    peer.address = (char *)rig_address(102);
    peer.port = 17470;
    peer.instance = 7;
    body.peers = list;
    body.n_peers = 1;
    peers.body_case = MAINSTAY__ENVELOPE__BODY_PEERS;
    peers.peers = &body;
    send_env(second.link, &peers);
    ck_assert(rig_until(pulled_again, NULL, 10000));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("coordinators");
    TCase *tc = tcase_create("coordinators");
    SRunner *runner;
    int failed;

    signal(SIGPIPE, SIG_IGN); /* a keeper closes links that we write to */
    if (!rig_can_run()) {
        fprintf(stderr, "SKIPPED: cgroup v2 is not writable here, and a keeper fences with it\n");
        return 77;
    }
    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, a_standby_is_asked_all_the_time_because_a_leader_that_hangs_keeps_its_link);
    tcase_add_test(tc, standbys_are_asked_again_soon_while_nobody_leads);
    tcase_add_test(tc, the_newest_decision_that_was_heard_of_is_told_to_whoever_leads_next);
    tcase_add_test(tc, a_pull_link_over_which_no_keys_come_is_made_anew);
    tcase_add_test(tc, of_two_that_welcome_the_one_with_the_older_term_loses_its_link_and_is_told_the_newer_term);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    rig_sweep();
    return failed ? 1 : 0;
}
