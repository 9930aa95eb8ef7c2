#include "fabric/fabric.h"
#include "fabric/credits.h"
#include "fabric/wire.h"

#include <check.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What of fabric/ needs no RDMA device: its wire formats, the credits, and what it says where there is no device. The rest is
 * tests/lab/fabric. */

/* --- wire --- */

static size_t put_hello(uint8_t out[static MST_WIRE_REQ_BYTES])
{
    struct mst_wire_hello hello = {.version = MST_WIRE_VERSION, .role = MST_ROLE_WATCH, .recvs = 4, .data_bytes = 5};

    return mst_wire_hello_put(&hello, "token", out);
}

START_TEST(hello_comes_back_as_it_was_put)
{
    static const uint8_t want[] = {0x4d, 0x46, 1, 2, 4, 5, 0, 0, 't', 'o', 'k', 'e', 'n'};
    uint8_t bytes[MST_WIRE_REQ_BYTES];
    struct mst_wire_hello got;

    ck_assert_uint_eq(put_hello(bytes), sizeof(want));
    ck_assert_mem_eq(bytes, want, sizeof(want));
    ck_assert_int_eq(mst_wire_hello_get(bytes, sizeof(bytes), &got, NULL), 0);
    ck_assert_uint_eq(got.role, MST_ROLE_WATCH);
    ck_assert_uint_eq(got.recvs, 4);
    ck_assert_uint_eq(got.data_bytes, 5);
}
END_TEST

START_TEST(hello_that_is_not_ours_is_refused)
{
    static const struct {
        uint8_t at, value;
        int err;
    } bad[] = {
        {0, 0, -EPROTO}, {1, 0, -EPROTO}, {2, 2, -EPROTONOSUPPORT}, {2, 0, -EPROTONOSUPPORT}, {3, 0, -EPROTO},
        {3, 5, -EPROTO}, {4, 3, -EPROTO}, {4, 0, -EPROTO},          {5, 49, -EPROTO},         {5, 255, -EPROTO},
    };
    uint8_t bytes[MST_WIRE_REQ_BYTES];
    struct mst_wire_hello got;
    struct mst_why why = {""};

    put_hello(bytes);
    bytes[bad[_i].at] = bad[_i].value;
    ck_assert_int_eq(mst_wire_hello_get(bytes, sizeof(bytes), &got, &why), bad[_i].err);
    ck_assert_uint_gt(strlen(why.text), 10);
}
END_TEST

START_TEST(hello_that_is_cut_short_is_refused)
{
    uint8_t bytes[MST_WIRE_REQ_BYTES];
    size_t whole = put_hello(bytes);
    struct mst_wire_hello got;

    ck_assert_int_eq(mst_wire_hello_get(NULL, 0, &got, NULL), -EPROTO);
    for (size_t len = 0; len < whole; len++) {
        uint8_t *exact = malloc(len ? len : 1); /* so that a sanitizer sees each byte read beyond */

        memcpy(exact, bytes, len);
        ck_assert_int_eq(mst_wire_hello_get(exact, len, &got, NULL), -EPROTO);
        free(exact);
    }
}
END_TEST

START_TEST(refusal_carries_its_sentence_cut_to_what_fits)
{
    uint8_t bytes[MST_WIRE_REJECT_BYTES];
    struct mst_why why = {""};
    char tall[300];
    int err = 0;

    ck_assert_uint_eq(mst_wire_reject_put(-EPERM, "node n9 is no member", bytes), 28);
    ck_assert_int_eq(mst_wire_reject_get(bytes, sizeof(bytes), &err, &why), 0);
    ck_assert_int_eq(err, -EPERM);
    ck_assert_str_eq(why.text, "node n9 is no member");
    memset(tall, 'x', sizeof(tall) - 1);
    tall[sizeof(tall) - 1] = '\0';
    ck_assert_uint_eq(mst_wire_reject_put(EBUSY, tall, bytes), MST_WIRE_REJECT_BYTES);
    ck_assert_int_eq(mst_wire_reject_get(bytes, sizeof(bytes), &err, &why), 0);
    ck_assert_uint_eq(strlen(why.text), MST_WIRE_REJECT_BYTES - 8);
}
END_TEST

START_TEST(refusal_from_a_hostile_peer_cannot_write_to_a_terminal_or_beyond_its_bytes)
{
    uint8_t bytes[MST_WIRE_REJECT_BYTES];
    struct mst_why why = {""};
    int err = 0;

    mst_wire_reject_put(-EPERM,
                        "a\033[2Jb\xff"
                        "c\n",
                        bytes);
    memset(bytes + 4, 0xff, 4);
    ck_assert_int_eq(mst_wire_reject_get(bytes, sizeof(bytes), &err, &why), 0);
    ck_assert_str_eq(why.text, "a?[2Jb?c?");
    ck_assert_int_eq(err, -EACCES);
    bytes[3] = 141;
    ck_assert_int_eq(mst_wire_reject_get(bytes, sizeof(bytes), &err, &why), -EPROTO);
    ck_assert_int_eq(mst_wire_reject_get(bytes, 7, &err, &why), -EPROTO);
    ck_assert_int_eq(mst_wire_reject_get(NULL, 0, &err, &why), -EPROTO);
    bytes[0] = 0;
    ck_assert_int_eq(mst_wire_reject_get(bytes, sizeof(bytes), &err, &why), -EPROTO);
}
END_TEST

START_TEST(send_header_must_agree_with_what_the_nic_received)
{
    static const struct {
        uint16_t kind;
        uint32_t bytes;
        size_t len;
        int err;
    } cases[] = {
        {MST_WIRE_MESSAGE, 10, 18, 0},
        {MST_WIRE_MESSAGE, MST_MESSAGE_BYTES_MAX, MST_MESSAGE_BYTES_MAX + 8, 0},
        {MST_WIRE_CREDIT, 0, 8, 0},
        {MST_WIRE_MESSAGE, 10, 17, -EPROTO},
        {MST_WIRE_MESSAGE, 10, 19, -EPROTO},
        {MST_WIRE_MESSAGE, 0, 8, -EPROTO},
        {MST_WIRE_MESSAGE, MST_MESSAGE_BYTES_MAX + 1, MST_MESSAGE_BYTES_MAX + 9, -EPROTO},
        {MST_WIRE_CREDIT, 1, 9, -EPROTO},
        {0, 10, 18, -EPROTO},
        {3, 10, 18, -EPROTO},
        {MST_WIRE_MESSAGE, UINT32_MAX, 7, -EPROTO},
    };
    static uint8_t bytes[MST_MESSAGE_BYTES_MAX + 16];
    struct mst_wire_send got;

    memcpy(bytes, &(uint16_t){htole16(cases[_i].kind)}, 2);
    memcpy(bytes + 2, &(uint16_t){htole16(513)}, 2);
    memcpy(bytes + 4, &(uint32_t){htole32(cases[_i].bytes)}, 4);
    ck_assert_int_eq(mst_wire_send_get(bytes, cases[_i].len, &got, NULL), cases[_i].err);
    if (!cases[_i].err) {
        ck_assert_uint_eq(got.credits, 513);
        ck_assert_uint_eq(got.bytes, cases[_i].bytes);
    }
}
END_TEST

/* --- credits: two sides and the wire between them --- */

struct side {
    struct mst_credits credits;
    unsigned posted; /* RECVs of this side that a SEND may take */
    unsigned want;   /* messages to send */
    unsigned got;    /* messages received */
    unsigned tells;  /* credit messages sent */
    struct {
        bool message;
        uint16_t credits;
    } wire[64]; /* SENDs of this side on their way, in order */
    unsigned wire_first, wire_count;
};

/* As ck_assert, which tells its parent of each one that passes: too slow for millions. */
static void must(bool holds, const char *what)
{
    if (!holds)
        ck_abort_msg("%s", what);
}

static void put_on_wire(struct side *from, struct side *to, bool message)
{
    unsigned at = (from->wire_first + from->wire_count++) % 64;

    must(from->wire_count <= to->posted, "more SENDs than RECVs would be RNR");
    from->wire[at].message = message;
    from->wire[at].credits = mst_credits_take(&from->credits);
}

/* One step of a side: 0 sends a message, 1 tells credits, 2 receives one from the other. False when it cannot. */
static bool step(struct side *me, struct side *other, unsigned what)
{
    unsigned at = other->wire_first;

    if (what == 0 && me->want && mst_credits_may_send(&me->credits)) {
        me->want--;
        put_on_wire(me, other, true);
        return true;
    }
    if (what == 1 && mst_credits_must_tell(&me->credits)) {
        me->tells++;
        put_on_wire(me, other, false);
        return true;
    }
    if (what == 2 && other->wire_count) {
        other->wire_first = (at + 1) % 64;
        other->wire_count--;
        me->got += other->wire[at].message;
        must(mst_credits_given(&me->credits, other->wire[at].credits) == 0, "credits that are owed are taken");
        mst_credits_reposted(&me->credits);
        return true;
    }
    return false;
}

START_TEST(two_sides_never_overrun_each_other_never_block_and_fall_silent)
{
    static const uint16_t sizes[] = {4, 5, 16};
    struct side sides[2] = {{.want = 300}, {.want = _i % 4 == 0 ? 0 : 300}};
    uint16_t recvs[2] = {sizes[_i % 3], sizes[_i / 3 % 3]};
    unsigned idle = 0, steps = 0, messages = sides[0].want + sides[1].want;

    srandom((unsigned)_i);
    for (int i = 0; i < 2; i++) {
        mst_credits_init(&sides[i].credits, recvs[i], recvs[1 - i]);
        sides[i].posted = recvs[i];
    }
    while (idle < 400) { /* nothing possible for any of the six steps, many times over */
        int me = (int)(random() & 1);
        unsigned what = (unsigned)random() % (3 + (unsigned)_i % 10); /* the higher, the slower the receivers */

        idle = step(&sides[me], &sides[1 - me], what < 3 ? what : 0) ? 0 : idle + 1;
        must(steps++ < 100000, "it comes to an end");
    }
    ck_assert_uint_eq(sides[0].got + sides[1].got, messages);
    ck_assert_uint_eq(sides[0].want + sides[1].want, 0);
    ck_assert_uint_le(sides[0].tells + sides[1].tells, messages);
}
END_TEST

START_TEST(peer_that_gives_back_more_than_it_has_is_caught)
{
    struct mst_credits credits;

    mst_credits_init(&credits, 4, 4);
    ck_assert_int_eq(mst_credits_given(&credits, 1), -EPROTO);
    mst_credits_take(&credits);
    ck_assert_int_eq(mst_credits_given(&credits, 2), -EPROTO);
    ck_assert_int_eq(mst_credits_given(&credits, 1), 0);
    ck_assert_int_eq(mst_credits_given(&credits, UINT16_MAX), -EPROTO);
}
END_TEST

/* --- no device --- */

START_TEST(opening_without_a_device_says_what_to_do)
{
    struct mst_fabric *fabric = NULL;
    struct mst_why why = {""};
    uv_loop_t loop;

    uv_loop_init(&loop);
    ck_assert_int_eq(mst_fabric_open(&loop, "127.0.0.1", &fabric, &why), -ENODEV);
    ck_assert_ptr_nonnull(strstr(why.text, "rdma link add rxe0 type rxe netdev lo"));
    ck_assert_int_eq(mst_fabric_open(&loop, "192.0.2.77", &fabric, &why), -ENODEV);
    ck_assert_ptr_nonnull(strstr(why.text, "no interface of this host has the fabric address 192.0.2.77"));
    ck_assert_int_eq(mst_fabric_open(&loop, "node-1", &fabric, &why), -EINVAL);
    ck_assert_ptr_nonnull(strstr(why.text, "not a numeric"));
    ck_assert_ptr_null(fabric);
    ck_assert_int_eq(uv_loop_close(&loop), 0); /* no handle is left */
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("fabric");
    TCase *wire = tcase_create("wire"), *credits = tcase_create("credits"), *device = tcase_create("device");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_add_test(wire, hello_comes_back_as_it_was_put);
    tcase_add_loop_test(wire, hello_that_is_not_ours_is_refused, 0, 10);
    tcase_add_test(wire, hello_that_is_cut_short_is_refused);
    tcase_add_test(wire, refusal_carries_its_sentence_cut_to_what_fits);
    tcase_add_test(wire, refusal_from_a_hostile_peer_cannot_write_to_a_terminal_or_beyond_its_bytes);
    tcase_add_loop_test(wire, send_header_must_agree_with_what_the_nic_received, 0, 11);
    tcase_add_loop_test(credits, two_sides_never_overrun_each_other_never_block_and_fall_silent, 0, 300);
    tcase_add_test(credits, peer_that_gives_back_more_than_it_has_is_caught);
    if (access("/dev/infiniband/rdma_cm", F_OK)) /* where there is one, tests/lab/fabric says more */
        tcase_add_test(device, opening_without_a_device_says_what_to_do);
    suite_add_tcase(suite, wire);
    suite_add_tcase(suite, credits);
    suite_add_tcase(suite, device);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
