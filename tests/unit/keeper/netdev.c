/* Taps, bridges and plugs of the real kernel, in a network namespace of this test's own. The plug needs sch_plug, which the kernels of the lab's nodes have
 * (tests/lab/output-commit runs this there, with MST_TEST_PLUG=must) and this machine's may not. */
#include "node/keeper/netdev.h"
#include "node/keeper/plug.h"

#include <check.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HEADER_BYTES 10 /* of virtio-net, before each frame of a tap */

static struct mst_why why;
static int from, to; /* two taps in one bridge */

static void ip(const char *arguments)
{
    char command[200];

    snprintf(command, sizeof(command), "ip %s", arguments);
    ck_assert_msg(system(command) == 0, "%s", command);
}

static bool is_there(const char *name)
{
    return if_nametoindex(name) != 0;
}

static void network_up(void)
{
    ck_assert_int_eq(unshare(CLONE_NEWNET), 0);
    ip("link set lo up");
    ip("link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0");
    ip("link set br0 mtu 1400 up");
    ck_assert_msg(mst_tap_open("mt1.0", "br0", &from, &why) == 0, "%s", why.text);
    ck_assert_msg(mst_tap_open("mt1.1", "br0", &to, &why) == 0, "%s", why.text);
}

static void network_down(void)
{
    close(from);
    close(to);
}

static void frame_send(uint32_t number)
{
    uint8_t frame[HEADER_BYTES + 60] = {0};

    memset(frame + HEADER_BYTES, 0xff, 6); /* to all */
    memcpy(frame + HEADER_BYTES + 6, "\x02\x00\x00\x00\x00\x01\x88\xb5", 8);
    memcpy(frame + HEADER_BYTES + 14, &number, sizeof(number));
    ck_assert_int_eq(write(from, frame, sizeof(frame)), sizeof(frame));
}

/* The number of the next frame that arrives within ms; 0: none. Frames of others (the bridge's own) are passed over. */
static uint32_t frame_next(int ms)
{
    uint8_t frame[2000];
    struct pollfd wait = {.fd = to, .events = POLLIN};
    uint32_t number;

    while (poll(&wait, 1, ms) == 1) {
        if (read(to, frame, sizeof(frame)) < HEADER_BYTES + 18 || memcmp(frame + HEADER_BYTES + 12, "\x88\xb5", 2) != 0)
            continue;
        memcpy(&number, frame + HEADER_BYTES + 14, sizeof(number));
        return number;
    }
    return 0;
}

START_TEST(frames_go_from_one_tap_of_a_bridge_to_the_other)
{
    frame_send(7);
    ck_assert_uint_eq(frame_next(5000), 7);
    ip("link show mt1.0 | grep -q 'UP,LOWER_UP> mtu 1400 .*master br0'");
}
END_TEST

START_TEST(a_tap_that_has_not_joined_carries_nothing_and_does_once_it_has)
{
    int fd = -1;

    ck_assert_msg(mst_tap_make("mt1.5", &fd, &why) == 0, "%s", why.text);
    ip("link show mt1.5 | grep 'state DOWN' | grep -qv master");
    close(from);
    from = fd; /* a card that nobody sees */
    ck_assert_int_lt(write(from, "x", 1), 0);
    ck_assert_msg(mst_tap_join("mt1.5", "br0", &why) == 0, "%s", why.text);
    frame_send(8);
    ck_assert_uint_eq(frame_next(5000), 8);
    ck_assert_int_eq(mst_tap_join("mt1.5", "br9", &why), -ENODEV);
}
END_TEST

START_TEST(a_tap_is_gone_with_its_last_descriptor)
{
    int other = dup(from);

    close(from);
    ck_assert(is_there("mt1.0"));
    close(other);
    ck_assert(!is_there("mt1.0"));
    from = -1;
}
END_TEST

START_TEST(what_is_missing_is_said_and_nothing_is_left)
{
    int fd = -1;

    ck_assert_int_eq(mst_tap_open("mt1.2", "br9", &fd, &why), -ENODEV);
    ck_assert_ptr_nonnull(strstr(why.text, "bridge br9: "));
    ck_assert_ptr_nonnull(strstr(why.text, "make it, or name another one"));
    ck_assert(!is_there("mt1.2"));
    ck_assert_int_lt(mst_tap_open("mt1.2", "lo", &fd, &why), 0);
    ck_assert_ptr_nonnull(strstr(why.text, "tap mt1.2 does not become a port of lo"));
    ck_assert(!is_there("mt1.2"));
    ck_assert_int_lt(mst_tap_open("mt1.1", "br0", &fd, &why), 0);
    ck_assert(is_there("mt1.1")); /* the other one's */
    ck_assert_int_eq(fd, -1);
}
END_TEST

START_TEST(what_an_earlier_keeper_left_is_removed_and_nothing_else)
{
    ip("link add mi1.0 type ifb");
    ip("link add mi1.a7 type ifb");
    ip("link add mi10.0 type ifb");
    ck_assert_int_eq(mst_netdev_sweep("mi1."), 2);
    ck_assert(!is_there("mi1.0") && !is_there("mi1.a7"));
    ck_assert(is_there("mi10.0"));
    ck_assert_int_eq(mst_netdev_sweep("mi1."), 0);
    ck_assert_int_eq(mst_netdev_delete("mi10.0"), 0);
    ck_assert(!is_there("mi10.0"));
    ck_assert_int_eq(mst_netdev_delete("mi10.0"), -ENODEV);
}
END_TEST

/* --- plug --- */

static struct mst_plug *plug;

static bool plug_made(uint32_t limit_bytes)
{
    const char *must = getenv("MST_TEST_PLUG");
    int r = mst_plug_new("mt1.0", "mi1.0", limit_bytes, &plug, &why);

    if (r == 0)
        return true;
    ck_assert_msg(!must, "%s", why.text);
    ck_assert_ptr_nonnull(strstr(why.text, "does this kernel have sch_plug"));
    ck_assert(!is_there("mi1.0"));
    fprintf(stderr, "skipped: %s\n", why.text);
    return false;
}

static void plug_gone(void)
{
    mst_plug_free(plug);
    ck_assert_int_eq(mst_netdev_delete("mi1.0"), 0);
}

START_TEST(an_open_plug_lets_everything_through)
{
    if (!plug_made(1u << 20))
        return;
    for (uint32_t n = 1; n <= 100; n++) {
        frame_send(n);
        ck_assert_uint_eq(frame_next(5000), n);
    }
    ck_assert_int_eq(mst_plug_held(plug), 0);
    plug_gone();
    frame_send(101); /* without the device that it is redirected to, nothing gets past it */
    ck_assert_uint_eq(frame_next(100), 0);
}
END_TEST

START_TEST(what_came_before_a_cut_leaves_with_the_release_and_what_came_after_it_stays)
{
    if (!plug_made(1u << 20))
        return;
    ck_assert_int_eq(mst_plug_cut(plug), 0); /* closed */
    frame_send(1);
    frame_send(2);
    ck_assert_uint_eq(frame_next(100), 0);
    ck_assert_int_eq(mst_plug_cut(plug), 0);
    frame_send(3);
    ck_assert_uint_eq(frame_next(100), 0);
    ck_assert_int_eq(mst_plug_held(plug), 3);
    ck_assert_int_eq(mst_plug_release(plug), 0);
    ck_assert_uint_eq(frame_next(5000), 1);
    ck_assert_uint_eq(frame_next(5000), 2);
    ck_assert_uint_eq(frame_next(100), 0);
    ck_assert_int_eq(mst_plug_release(plug), 0); /* again: nothing more */
    ck_assert_uint_eq(frame_next(100), 0);
    ck_assert_int_eq(mst_plug_cut(plug), 0);
    ck_assert_int_eq(mst_plug_release(plug), 0);
    ck_assert_uint_eq(frame_next(5000), 3);
    frame_send(4);
    ck_assert_int_eq(mst_plug_open(plug), 0);
    ck_assert_uint_eq(frame_next(5000), 4);
    frame_send(5);
    ck_assert_uint_eq(frame_next(5000), 5);
    ck_assert_int_eq(mst_plug_cut(plug), 0); /* closed again */
    frame_send(6);
    ck_assert_uint_eq(frame_next(100), 0);
    plug_gone();
}
END_TEST

START_TEST(what_is_longer_than_the_limit_is_dropped_and_nothing_leaves_early)
{
    if (!plug_made(10 * 60))
        return;
    ck_assert_int_eq(mst_plug_cut(plug), 0);
    for (uint32_t n = 1; n <= 50; n++)
        frame_send(n);
    ck_assert_uint_eq(frame_next(100), 0);
    ck_assert_int_eq(mst_plug_held(plug), 10);
    ck_assert_int_eq(mst_plug_cut(plug), 0);
    ck_assert_int_eq(mst_plug_release(plug), 0);
    for (uint32_t n = 1; n <= 10; n++)
        ck_assert_uint_eq(frame_next(5000), n);
    ck_assert_uint_eq(frame_next(100), 0);
    plug_gone();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("keeper/netdev");
    TCase *links = tcase_create("links"), *plugs = tcase_create("plug");
    SRunner *runner = srunner_create(suite);
    int failed;

    if (geteuid() != 0 || access("/dev/net/tun", R_OK | W_OK) < 0) {
        fprintf(stderr, "skipped: needs root and /dev/net/tun\n");
        return 77;
    }
    tcase_add_checked_fixture(links, network_up, network_down);
    tcase_set_timeout(links, 100);
    tcase_add_test(links, frames_go_from_one_tap_of_a_bridge_to_the_other);
    tcase_add_test(links, a_tap_that_has_not_joined_carries_nothing_and_does_once_it_has);
    tcase_add_test(links, a_tap_is_gone_with_its_last_descriptor);
    tcase_add_test(links, what_is_missing_is_said_and_nothing_is_left);
    tcase_add_test(links, what_an_earlier_keeper_left_is_removed_and_nothing_else);
    suite_add_tcase(suite, links);
    tcase_add_checked_fixture(plugs, network_up, network_down);
    tcase_set_timeout(plugs, 100); /* in an emulated node */
    tcase_add_test(plugs, an_open_plug_lets_everything_through);
    tcase_add_test(plugs, what_came_before_a_cut_leaves_with_the_release_and_what_came_after_it_stays);
    tcase_add_test(plugs, what_is_longer_than_the_limit_is_dropped_and_nothing_leaves_early);
    suite_add_tcase(suite, plugs);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
