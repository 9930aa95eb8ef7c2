#include "fuzz.h"

#include "cli/show.h"
#include "coordinator/io/convert.h"
#include "proto/check.h"
#include "tests/unit/proto/sample.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Control messages: frames cut out of a stream that comes in pieces, unpacked, checked, and given to everything that reads checked messages
 * without state: the coordinator's conversions and mainstayctl's output. First byte: size of the pieces; its top bit: the header of
 * the one frame is made here, so that the length need not be guessed. */

static void convert(const mst_envelope *env)
{
    static union {
        struct mst_hello hello;
        struct mst_report report;
        struct mst_answer answer;
        struct mst_vm_event event;
    } to;

    switch (env->body_case) {
    case MAINSTAY__ENVELOPE__BODY_HELLO:
        mst_convert_hello(env->hello, &to.hello);
        FUZZ_CHECK(to.hello.held_count == env->hello->n_held && mst_name_check(to.hello.node) == 0);
        break;
    case MAINSTAY__ENVELOPE__BODY_FAULT_REPORT:
        mst_convert_report(env->fault_report, &to.report);
        FUZZ_CHECK(memchr(to.report.text, '\0', sizeof(to.report.text)));
        break;
    case MAINSTAY__ENVELOPE__BODY_DONE:
        mst_convert_answer(env->done, &to.answer);
        FUZZ_CHECK(to.answer.err <= 0 && to.answer.err > -4096 && to.answer.fenced_count <= MST_VMS_PER_NODE);
        break;
    case MAINSTAY__ENVELOPE__BODY_VM_EVENT:
        mst_convert_event(env->vm_event, &to.event);
        FUZZ_CHECK(mst_name_check(to.event.vm) == 0);
        break;
    default:
        break;
    }
}

/* What was taken can be sent on, and comes back as it was. */
static void again(const mst_envelope *env)
{
    static uint8_t first[MST_MESSAGE_BYTES_MAX], second[MST_MESSAGE_BYTES_MAX];
    struct mst_why why = {""};
    mst_envelope *copy;
    int n = mst_frame_pack_why(env, first, sizeof(first), &why);

    if (n == -EMSGSIZE)
        return; /* its sender packed numbers of a list more tightly */
    FUZZ_CHECK(n > (int)MST_FRAME_HEADER_BYTES);
    FUZZ_CHECK(mst_frame_unpack(first, (size_t)n, &copy, &why) == 0);
    FUZZ_CHECK(mst_frame_pack(copy, second, sizeof(second)) == n && memcmp(first, second, (size_t)n) == 0);
    mst_envelope_free(copy);
}

static void show(const mst_envelope *env)
{
    json_t *json = show_message_json(&env->base);
    char *text;

    FUZZ_CHECK(json);
    text = json_dumps(json, 0);
    FUZZ_CHECK(text); /* every string was UTF-8 */
    free(text);
    json_decref(json);
}

static void take(const mst_envelope *env)
{
    FUZZ_CHECK(env->body_case != MAINSTAY__ENVELOPE__BODY__NOT_SET);
    again(env);
    convert(env);
    show(env);
}

static void stream(const uint8_t *data, size_t size, size_t step)
{
    struct mst_stream *in;
    struct mst_why why = {""};
    int r = 0;

    FUZZ_CHECK(mst_stream_new(&in) == 0);
    while (size > 0 && r >= 0) {
        mst_envelope *env;
        size_t room, n = size < step ? size : step;
        void *to = mst_stream_room(in, &room);

        FUZZ_CHECK(room > 0);
        n = n < room ? n : room;
        memcpy(to, data, n);
        mst_stream_filled(in, n);
        data += n;
        size -= n;
        while ((r = mst_stream_next(in, &env, &why)) > 0) {
            take(env);
            mst_envelope_free(env);
        }
        FUZZ_CHECK(r == 0 || (why.text[0] && mst_stream_next(in, &env, &why) == r));
    }
    mst_stream_free(in);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *frame;

    if (size == 0)
        return 0;
    if (!(data[0] & 0x80)) {
        stream(data + 1, size - 1, (size_t)data[0] + 1);
        return 0;
    }
    frame = malloc(size - 1 + MST_FRAME_HEADER_BYTES);
    FUZZ_CHECK(frame);
    memcpy(frame, "MS\1\0", 4);
    for (unsigned i = 0; i < 4; i++)
        frame[4 + i] = (uint8_t)((size - 1) >> 8 * i);
    memcpy(frame + MST_FRAME_HEADER_BYTES, data + 1, size - 1);
    stream(frame, size - 1 + MST_FRAME_HEADER_BYTES, (size_t)((data[0] & 0x7f) + 1) * 64);
    free(frame);
    return 0;
}

START_TEST(seeds) /* what makes the samples is a helper of unit tests, and asserts as they do */
{
    static uint8_t seed[1 + 2 * MST_MESSAGE_BYTES_MAX];
    char name[32];
    size_t n;

    for (unsigned i = 0; i < sample_count(); i++) {
        n = sample_frame(i, seed + MST_FRAME_HEADER_BYTES);
        /* the body alone, behind the byte that asks for a header */
        seed[2 * MST_FRAME_HEADER_BYTES - 1] = 0xff;
        snprintf(name, sizeof(name), "body-%02u", i);
        fuzz_seed(name, seed + 2 * MST_FRAME_HEADER_BYTES - 1, n - MST_FRAME_HEADER_BYTES + 1);
    }
    seed[0] = 6;
    n = sample_frame(0, seed + 1);
    fuzz_seed("stream", seed, 1 + n + sample_frame(3, seed + 1 + n));
}
END_TEST

void fuzz_seeds(void)
{
    Suite *suite = suite_create("seeds");
    TCase *tcase = tcase_create("seeds");
    SRunner *runner = srunner_create(suite);

    tcase_add_test(tcase, seeds);
    suite_add_tcase(suite, tcase);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_ENV);
    if (srunner_ntests_failed(runner) > 0)
        exit(1);
    srunner_free(runner);
}
