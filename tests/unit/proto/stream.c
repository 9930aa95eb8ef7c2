#include "proto/frame.h"
#include "sample.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct mst_stream *stream;
static struct mst_why why;
static mst_envelope *env;

static void setup(void)
{
    ck_assert_int_eq(mst_stream_new(&stream), 0);
}

static void teardown(void)
{
    mst_stream_free(stream);
}

/* Feeds up to n bytes; returns how many there was room for. */
static size_t feed(const void *data, size_t n)
{
    size_t room;
    void *at = mst_stream_room(stream, &room);

    if (n > room)
        n = room;
    memcpy(at, data, n);
    mst_stream_filled(stream, n);
    return n;
}

/* All kinds of messages, one behind the other. Returns the length; data is freed by the caller. */
static size_t all_frames(uint8_t **ret_data)
{
    uint8_t *data = malloc((size_t)sample_count() * 2048);
    uint8_t one[MST_MESSAGE_BYTES_MAX];
    size_t len = 0, n;

    for (unsigned i = 0; i < sample_count(); i++) {
        n = sample_frame(i, one);
        ck_assert_uint_lt(n, 2048);
        memcpy(data + len, one, n);
        len += n;
    }
    *ret_data = data;
    return len;
}

START_TEST(frames_are_cut_out_whatever_the_pieces)
{
    uint8_t *data;
    size_t len = all_frames(&data), at = 0, piece = (size_t)_i;
    uint64_t id = 7;
    int r;

    while (at < len) {
        at += feed(data + at, piece < len - at ? piece : len - at);
        while ((r = mst_stream_next(stream, &env, &why)) > 0) {
            ck_assert_uint_eq(env->id, id);
            id++;
            mst_envelope_free(env);
        }
        ck_assert_int_eq(r, 0);
    }
    ck_assert_uint_eq(id, 7 + sample_count());
    ck_assert_uint_eq(mst_stream_partial(stream), 0);
    free(data);
}
END_TEST

START_TEST(room_is_left_whenever_more_bytes_are_needed)
{
    uint8_t *data;
    size_t len = all_frames(&data), room;
    unsigned got = 0;

    /* Until the buffer has been filled many times over, at every offset of a frame border. */
    for (size_t fed = 0; fed < 20 * MST_MESSAGE_BYTES_MAX;) {
        fed += feed(data + fed % len, len - fed % len);
        while (mst_stream_next(stream, &env, &why) > 0) {
            mst_envelope_free(env);
            got++;
        }
        mst_stream_room(stream, &room);
        ck_assert_uint_gt(room, 0);
    }
    ck_assert_uint_gt(got, 1000);
    free(data);
}
END_TEST

START_TEST(largest_frame_fits_byte_by_byte)
{
    static uint8_t bytes[MST_ENVELOPE_BYTES_MAX - 20], frame[MST_MESSAGE_BYTES_MAX];
    mst_envelope large = MAINSTAY__ENVELOPE__INIT;
    Mainstay__ConsoleData console = MAINSTAY__CONSOLE_DATA__INIT;

    console.vm = (char *)"web01";
    console.data = (ProtobufCBinaryData){sizeof(bytes), bytes};
    large.console_data = &console;
    large.body_case = MAINSTAY__ENVELOPE__BODY_CONSOLE_DATA;
    ck_assert_int_eq(mst_frame_pack(&large, frame, sizeof(frame)), MST_MESSAGE_BYTES_MAX);
    for (size_t i = 0; i < sizeof(frame); i++) {
        ck_assert_int_eq(mst_stream_next(stream, &env, &why), 0);
        ck_assert_uint_eq(mst_stream_partial(stream), i);
        ck_assert_uint_eq(feed(frame + i, 1), 1);
    }
    ck_assert_int_eq(mst_stream_next(stream, &env, &why), 1);
    mst_envelope_free(env);
}
END_TEST

START_TEST(header_is_judged_before_the_body_arrives)
{
    static const uint8_t too_long[] = {0x4d, 0x53, 1, 0, 0xf9, 0xff, 0, 0};

    feed(too_long, sizeof(too_long));
    ck_assert_int_eq(mst_stream_next(stream, &env, &why), -EMSGSIZE);
}
END_TEST

START_TEST(stream_stays_broken_after_an_error)
{
    uint8_t frame[MST_MESSAGE_BYTES_MAX];
    size_t n = sample_frame(0, frame);

    feed("XXXXXXXX", 8);
    ck_assert_int_eq(mst_stream_next(stream, &env, &why), -EPROTO);
    feed(frame, n);
    why.text[0] = '\0';
    ck_assert_int_eq(mst_stream_next(stream, &env, &why), -EPROTO);
    ck_assert_str_eq(why.text, "frame starts with 0x5858, wanted 0x534d: this is not a Mainstay peer");
}
END_TEST

START_TEST(more_than_the_room_is_never_taken)
{
    size_t room;

    mst_stream_room(stream, &room);
    mst_stream_filled(stream, room + 4711);
    ck_assert_uint_eq(mst_stream_partial(stream), room);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("proto/stream");
    TCase *tcase = tcase_create("stream");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_loop_test(tcase, frames_are_cut_out_whatever_the_pieces, 1, 40);
    tcase_add_test(tcase, room_is_left_whenever_more_bytes_are_needed);
    tcase_add_test(tcase, largest_frame_fits_byte_by_byte);
    tcase_add_test(tcase, header_is_judged_before_the_body_arrives);
    tcase_add_test(tcase, stream_stays_broken_after_an_error);
    tcase_add_test(tcase, more_than_the_room_is_never_taken);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
