#include "proto/frame.h"
#include "proto/check.h"
#include "sample.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static uint8_t frame[MST_MESSAGE_BYTES_MAX + 1];
static size_t frame_bytes;
static struct mst_why why;

static int unpack(void)
{
    /* A copy of exactly these bytes, so that AddressSanitizer sees a read behind them. */
    uint8_t *copy = malloc(frame_bytes ? frame_bytes : 1);
    mst_envelope *env = NULL;
    int r;

    memcpy(copy, frame, frame_bytes);
    why.text[0] = '\0';
    r = mst_frame_unpack(copy, frame_bytes, &env, &why);
    free(copy);
    ck_assert(r == 0 ? env != NULL : env == NULL && why.text[0] != '\0');
    mst_envelope_free(env);
    return r;
}

#define body_bytes_set(n)                                                                                                        \
    do {                                                                                                                         \
        frame[4] = (uint8_t)(n);                                                                                                 \
        frame[5] = (uint8_t)((n) >> 8);                                                                                          \
        frame[6] = (uint8_t)((n) >> 16);                                                                                         \
        frame[7] = (uint8_t)((n) >> 24);                                                                                         \
    } while (0)

/* A frame around a body packed without any check. */
static void pack_raw(const mst_envelope *env)
{
    size_t n = mainstay__envelope__get_packed_size(env);

    ck_assert_uint_le(n, MST_ENVELOPE_BYTES_MAX);
    frame_bytes = sample_frame(0, frame); /* for its header */
    body_bytes_set(n);
    mainstay__envelope__pack(env, frame + MST_FRAME_HEADER_BYTES);
    frame_bytes = n + MST_FRAME_HEADER_BYTES;
}

static mst_envelope hello_env;
static Mainstay__Hello hello;

static void hello_setup(void)
{
    static uint8_t boot_id[16];

    mainstay__envelope__init(&hello_env);
    mainstay__hello__init(&hello);
    hello.protocol_version = MST_PROTOCOL_VERSION;
    hello.cluster = (char *)"lab";
    hello.node = (char *)"n1";
    hello.node_id = 1;
    hello.host_boot_id = (ProtobufCBinaryData){sizeof(boot_id), boot_id};
    hello.address = (char *)"10.7.0.1";
    hello.port = 7471;
    hello.memory_mib = 768;
    hello.vcpus = 8;
    hello_env.hello = &hello;
    hello_env.body_case = MAINSTAY__ENVELOPE__BODY_HELLO;
}

/* Both ends refuse, and both name the field. */
static void refused_by_both_ends(const mst_envelope *env, const char *text)
{
    uint8_t out[MST_MESSAGE_BYTES_MAX];

    why.text[0] = '\0';
    ck_assert_int_eq(mst_frame_pack_why(env, out, sizeof(out), &why), -EINVAL);
    ck_assert_str_eq(why.text, text);
    ck_assert_int_eq(mst_frame_pack(env, out, sizeof(out)), -EINVAL);
    pack_raw(env);
    ck_assert_int_eq(unpack(), -EBADMSG);
    ck_assert_str_eq(why.text, text);
}

START_TEST(every_kind_of_message_comes_back_as_it_was_sent)
{
    uint8_t again[MST_MESSAGE_BYTES_MAX];
    mst_envelope *env = NULL;

    frame_bytes = sample_frame((unsigned)_i, frame);
    ck_assert_int_eq(mst_frame_unpack(frame, frame_bytes, &env, &why), 0);
    ck_assert_int_eq(mst_frame_pack(env, again, sizeof(again)), (int)frame_bytes);
    ck_assert_mem_eq(again, frame, frame_bytes);
    mst_envelope_free(env);
}
END_TEST

START_TEST(header_is_little_endian_magic_version_length)
{
    static const uint8_t want[] = {0x4d, 0x53, 1, 0};

    frame_bytes = sample_frame(0, frame);
    ck_assert_mem_eq(frame, want, sizeof(want));
    ck_assert_uint_eq(frame[4] | (unsigned)frame[5] << 8, frame_bytes - MST_FRAME_HEADER_BYTES);
}
END_TEST

START_TEST(every_truncation_of_a_frame_is_refused)
{
    size_t whole = sample_frame((unsigned)_i, frame);

    for (frame_bytes = 0; frame_bytes < whole; frame_bytes++)
        ck_assert_int_eq(unpack(), -EPROTO);
    frame_bytes = whole + 1;
    frame[whole] = 0;
    ck_assert_int_eq(unpack(), -EPROTO);
}
END_TEST

START_TEST(every_truncation_of_the_body_is_refused_or_a_shorter_valid_message)
{
    size_t whole = sample_frame((unsigned)_i, frame);

    for (size_t n = 0; n < whole - MST_FRAME_HEADER_BYTES; n++) {
        frame_bytes = n + MST_FRAME_HEADER_BYTES;
        body_bytes_set(n);
        int r = unpack();
        ck_assert(r == -EBADMSG || r == 0);
    }
    frame_bytes = MST_FRAME_HEADER_BYTES;
    body_bytes_set(0);
    ck_assert_int_eq(unpack(), -EBADMSG);
}
END_TEST

START_TEST(wrong_magic_is_refused)
{
    frame_bytes = sample_frame(0, frame);
    frame[0] = 'X';
    ck_assert_int_eq(unpack(), -EPROTO);
    ck_assert_str_eq(why.text, "frame starts with 0x5358, wanted 0x534d: this is not a Mainstay peer");
}
END_TEST

START_TEST(another_version_is_refused_and_both_are_named)
{
    frame_bytes = sample_frame(0, frame);
    frame[2] = 7;
    frame[3] = 1;
    ck_assert_int_eq(unpack(), -EPROTONOSUPPORT);
    ck_assert_str_eq(why.text, "peer speaks protocol version 263, this program speaks version 1");
}
END_TEST

START_TEST(announced_length_beyond_the_limit_is_refused)
{
    frame_bytes = sample_frame(0, frame);
    body_bytes_set(MST_ENVELOPE_BYTES_MAX + 1);
    ck_assert_int_eq(unpack(), -EMSGSIZE);
    ck_assert_str_eq(why.text, "frame announces 65529 bytes, allowed 65528");
    body_bytes_set(UINT32_MAX);
    ck_assert_int_eq(unpack(), -EMSGSIZE);
    body_bytes_set(frame_bytes - MST_FRAME_HEADER_BYTES + 1);
    ck_assert_int_eq(unpack(), -EPROTO);
}
END_TEST

static mst_envelope *console_new(size_t data_bytes)
{
    mst_envelope *env = malloc(sizeof(*env));
    Mainstay__ConsoleData *console = malloc(sizeof(*console));

    mainstay__envelope__init(env);
    mainstay__console_data__init(console);
    console->vm = strdup("web01");
    console->data = (ProtobufCBinaryData){data_bytes, calloc(1, data_bytes)};
    env->console_data = console;
    env->body_case = MAINSTAY__ENVELOPE__BODY_CONSOLE_DATA;
    return env;
}

START_TEST(largest_message_fits_and_one_byte_more_does_not)
{
    mst_envelope *env = console_new(MST_ENVELOPE_BYTES_MAX - 20);

    frame_bytes = MST_MESSAGE_BYTES_MAX;
    ck_assert_int_eq(mst_frame_pack(env, frame, sizeof(frame)), MST_MESSAGE_BYTES_MAX);
    ck_assert_int_eq(unpack(), 0);
    ck_assert_int_eq(mst_frame_pack(env, frame, MST_MESSAGE_BYTES_MAX - 1), -EMSGSIZE);
    mst_envelope_free(env);
    env = console_new(MST_ENVELOPE_BYTES_MAX - 19);
    ck_assert_int_eq(mst_frame_pack(env, frame, sizeof(frame)), -EMSGSIZE);
    mst_envelope_free(env);
}
END_TEST

START_TEST(message_without_a_body_is_refused)
{
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    env.has_id = 1;
    ck_assert_int_eq(mst_frame_pack(&env, frame, sizeof(frame)), -EINVAL);
    pack_raw(&env);
    ck_assert_int_eq(unpack(), -EBADMSG);
    ck_assert_str_eq(why.text, "message without a body");
}
END_TEST

START_TEST(message_of_an_unknown_kind_is_refused_and_named)
{
    static const uint8_t field_999[] = {0xba, 0x3e, 0x01, 0x00}; /* length-delimited, one byte */

    frame_bytes = sample_frame(0, frame);
    memcpy(frame + MST_FRAME_HEADER_BYTES, field_999, sizeof(field_999));
    body_bytes_set(sizeof(field_999));
    frame_bytes = MST_FRAME_HEADER_BYTES + sizeof(field_999);
    ck_assert_int_eq(unpack(), -EBADMSG);
    ck_assert_str_eq(why.text, "message of an unknown kind (field 999)");
}
END_TEST

/* Found by fuzzing: libprotobuf-c takes the long spelling, packs it again in the short one, and then refuses its own message: a VM
 * definition that was stored with such a field could never be sent to a node. */
START_TEST(field_number_0_is_refused_however_it_is_spelt)
{
    static const uint8_t spelt[2][4] = {{0x02, 0x01, 0x41}, {0x82, 0x00, 0x01, 0x41}};

    for (unsigned i = 0; i < 2; i++) {
        frame_bytes = sample_frame(0, frame);
        memcpy(frame + frame_bytes, spelt[i], 3 + i);
        frame_bytes += 3 + i;
        body_bytes_set(frame_bytes - MST_FRAME_HEADER_BYTES);
        ck_assert_int_eq(unpack(), -EBADMSG);
    }
    ck_assert_str_eq(why.text, "field number 0: there is no such field");
}
END_TEST

START_TEST(bad_names_are_refused)
{
    static const char *const bad[] = {"",      "N1",        "n_1",
                                      "-n1",   "n 1",       "n1\n",
                                      "../n1", "n\xc3\xa9", "1234567890123456789012345678901234567890123456789012345678901234",
                                      "n.1"};

    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        hello.node = (char *)(uintptr_t)bad[i];
        ck_assert_int_eq(mst_name_check(bad[i]), -EINVAL);
        refused_by_both_ends(&hello_env, "hello.node: is not a name: wanted 1..63 of a-z 0-9 -, not starting with -");
    }
    ck_assert_int_eq(mst_name_check("123456789012345678901234567890123456789012345678901234567890123"), 0);
    ck_assert_int_eq(mst_name_check("0-a-"), 0);
}
END_TEST

START_TEST(numbers_out_of_range_are_refused)
{
    hello.port = 0;
    refused_by_both_ends(&hello_env, "hello.port: 0 is out of range, allowed 1..65535");
    hello.port = 65536;
    refused_by_both_ends(&hello_env, "hello.port: 65536 is out of range, allowed 1..65535");
    hello.port = 1;
    hello.node_id = 1024;
    refused_by_both_ends(&hello_env, "hello.node_id: 1024 is out of range, allowed 1..1023");
}
END_TEST

START_TEST(negative_errors_and_pids_are_refused)
{
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    Mainstay__Done done = MAINSTAY__DONE__INIT;
    Mainstay__Spawned spawned = MAINSTAY__SPAWNED__INIT;

    env.done = &done;
    env.body_case = MAINSTAY__ENVELOPE__BODY_DONE;
    done.error = INT32_MIN;
    refused_by_both_ends(&env, "done.error: -2147483648 is out of range, allowed 0..4095");
    env.spawned = &spawned;
    env.body_case = MAINSTAY__ENVELOPE__BODY_SPAWNED;
    spawned.pid = -1; /* kill(-1, ...) would end the node */
    refused_by_both_ends(&env, "spawned.pid: -1 is out of range, allowed 1..2147483647");
}
END_TEST

START_TEST(address_that_is_not_numeric_is_refused)
{
    hello.address = (char *)"localhost";
    refused_by_both_ends(&hello_env, "hello.address: is not a numeric address");
    hello.address = (char *)"";
    refused_by_both_ends(&hello_env, "hello.address: is not a numeric address");
    hello.address = (char *)"10.7.1"; /* not a short form of 10.7.0.1 */
    refused_by_both_ends(&hello_env, "hello.address: is not a numeric address");
    hello.address = (char *)"fd00::7";
    ck_assert_int_gt(mst_frame_pack(&hello_env, frame, sizeof(frame)), 0);
}
END_TEST

START_TEST(boot_id_of_another_length_is_refused)
{
    hello.host_boot_id.len = 15;
    refused_by_both_ends(&hello_env, "hello.host_boot_id: 15 bytes, allowed 16..16");
}
END_TEST

START_TEST(lists_beyond_their_bound_are_refused)
{
    Mainstay__HeldVm held[MST_VMS_PER_NODE + 1], *list[MST_VMS_PER_NODE + 1];

    for (unsigned i = 0; i <= MST_VMS_PER_NODE; i++) {
        mainstay__held_vm__init(&held[i]);
        held[i].vm = (char *)"v";
        list[i] = &held[i];
    }
    hello.held = list;
    hello.n_held = MST_VMS_PER_NODE;
    ck_assert_int_gt(mst_frame_pack(&hello_env, frame, sizeof(frame)), 0);
    hello.n_held++;
    refused_by_both_ends(&hello_env, "hello.held: a list of 65, allowed 0..64");
    hello.n_held = 4;
    held[3].vm = (char *)"V";
    refused_by_both_ends(&hello_env, "hello.held[3].vm: is not a name: wanted 1..63 of a-z 0-9 -, not starting with -");
}
END_TEST

START_TEST(unknown_enum_value_is_refused)
{
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    Mainstay__FaultReport report = MAINSTAY__FAULT_REPORT__INIT;

    env.fault_report = &report;
    env.body_case = MAINSTAY__ENVELOPE__BODY_FAULT_REPORT;
    report.node = (char *)"n1";
    report.kind = (Mainstay__FaultKind)77;
    refused_by_both_ends(&env, "fault_report.kind: is not a known value");
}
END_TEST

START_TEST(sender_learns_of_a_missing_field)
{
    hello.cluster = NULL;
    ck_assert_int_eq(mst_frame_pack_why(&hello_env, frame, sizeof(frame), &why), -EINVAL);
    ck_assert_str_eq(why.text, "hello.cluster: is missing");
    hello_env.hello = NULL;
    ck_assert_int_eq(mst_frame_pack_why(&hello_env, frame, sizeof(frame), &why), -EINVAL);
    ck_assert_str_eq(why.text, "hello: is missing");
}
END_TEST

START_TEST(control_characters_in_a_path_are_refused)
{
    mst_envelope *env = NULL;
    Mainstay__Areas *areas;

    for (unsigned i = 0; i < sample_count(); i++) {
        env = sample_new(i);
        if (env->body_case == MAINSTAY__ENVELOPE__BODY_AREAS_CREATED)
            break;
        sample_free(env);
    }
    areas = env->areas_created->areas;
    free(areas->ram);
    areas->ram = strdup("/dev/shm/x\n");
    refused_by_both_ends(env, "areas_created.areas.ram: is not UTF-8, or has control characters");
    areas->ram[0] = '\0';
    refused_by_both_ends(env, "areas_created.areas.ram: 0 bytes, allowed 1..4095");
    sample_free(env);
}
END_TEST

START_TEST(texts_for_people_arrive_printable)
{
    static const struct {
        const char *sent, *got;
    } texts[] = {
        {"plain", "plain"},
        {"two\nlines\tand \x1b[31mred", "two?lines?and ?[31mred"},
        {"caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80", "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80"},
        {"\xc3", "?"},
        {"\xe2\x82", "??"},
        {"\xc0\xaf", "??"},
        {"\xed\xa0\x80", "???"},
        {"\xf4\x90\x80\x80", "????"},
        {"\xc2\x9b", "??"},
        {"\xff\x7f", "??"},
    };
    mst_envelope env = MAINSTAY__ENVELOPE__INIT, *ret;
    Mainstay__Done done = MAINSTAY__DONE__INIT;

    env.done = &done;
    env.body_case = MAINSTAY__ENVELOPE__BODY_DONE;
    for (unsigned i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        done.text = (char *)(uintptr_t)texts[i].sent;
        int len = mst_frame_pack(&env, frame, sizeof(frame));
        ck_assert_int_gt(len, 0);
        ck_assert_int_eq(mst_frame_unpack(frame, (size_t)len, &ret, &why), 0);
        ck_assert_str_eq(ret->done->text, texts[i].got);
        mst_envelope_free(ret);
    }
}
END_TEST

START_TEST(overlong_text_is_refused)
{
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    Mainstay__Done done = MAINSTAY__DONE__INIT;

    env.done = &done;
    env.body_case = MAINSTAY__ENVELOPE__BODY_DONE;
    done.text = malloc(MST_TEXT_BYTES_MAX + 2);
    memset(done.text, 'x', MST_TEXT_BYTES_MAX + 1);
    done.text[MST_TEXT_BYTES_MAX + 1] = '\0';
    refused_by_both_ends(&env, "done.text: 4097 bytes, allowed 0..4096");
    free(done.text);
}
END_TEST

START_TEST(small_message_that_unpacks_to_megabytes_is_refused)
{
    /* View (61) with 16000 empty-looking rows: 3 bytes each, 150 bytes of struct each. The rows lack a required field too, but
     * nothing may be allocated for all of them before that is seen. */
    uint8_t *at = frame + MST_FRAME_HEADER_BYTES;
    unsigned rows = 9000;
    size_t view_bytes = rows * 7u;

    frame_bytes = sample_frame(0, frame);
    *at++ = 0xea; /* field 61, length-delimited */
    *at++ = 0x03;
    *at++ = (uint8_t)(view_bytes | 0x80);
    *at++ = (uint8_t)(view_bytes >> 7 | 0x80);
    *at++ = (uint8_t)(view_bytes >> 14);
    for (unsigned i = 0; i < rows; i++) {
        memcpy(at, "\x12\x05\x0a\x01v\x10\x00", 7); /* vms { vm: "v" state: 0 } */
        at += 7;
    }
    frame_bytes = (size_t)(at - frame);
    body_bytes_set(frame_bytes - MST_FRAME_HEADER_BYTES);
    ck_assert_int_eq(unpack(), -EBADMSG);
    ck_assert_str_eq(why.text, "not a message, or one that takes more than 1048576 bytes unpacked");
}
END_TEST

START_TEST(random_bytes_are_refused)
{
    srandom(4711);
    for (unsigned i = 0; i < 50000; i++) {
        sample_frame(0, frame);
        size_t n = (size_t)random() % 200;
        for (size_t b = 0; b < n; b++)
            frame[MST_FRAME_HEADER_BYTES + b] = (uint8_t)random();
        body_bytes_set(n);
        frame_bytes = n + MST_FRAME_HEADER_BYTES;
        unpack();
    }
}
END_TEST

static size_t mutate(size_t len)
{
    for (long times = 1 + random() % 4; times > 0; times--) {
        size_t at = (size_t)random() % len;
        size_t other = (size_t)random() % len;
        switch (random() % 6) {
        case 0:
            frame[at] = (uint8_t)random();
            break;
        case 1:
            frame[at] ^= (uint8_t)(1u << (random() % 8));
            break;
        case 2: /* a stretch moves, or is there twice: fields repeated, lists in pieces */
            memmove(frame + at, frame + other, (size_t)random() % (len - (at > other ? at : other)));
            break;
        case 3:
            frame[at] = (random() & 1) ? 0xff : 0x80;
            break;
        case 4: /* shorter */
            len = at > MST_FRAME_HEADER_BYTES ? at : len;
            break;
        default: /* longer: the body once more behind itself, which protobuf merges */
            if (2 * len < MST_MESSAGE_BYTES_MAX) {
                memcpy(frame + len, frame + MST_FRAME_HEADER_BYTES, len - MST_FRAME_HEADER_BYTES);
                len += len - MST_FRAME_HEADER_BYTES;
            }
        }
    }
    return len;
}

START_TEST(random_mutations_never_break_the_reader)
{
    unsigned accepted = 0, refused = 0;

    srandom((unsigned)_i);
    for (unsigned i = 0; i < 50000; i++) {
        frame_bytes = mutate(sample_frame(i % sample_count(), frame));
        if (random() % 8)
            body_bytes_set(frame_bytes - MST_FRAME_HEADER_BYTES);
        if (random() % 8)
            memcpy(frame, "MS\1\0", 4);
        if (unpack() == 0)
            accepted++;
        else
            refused++;
    }
    /* Both ways were tried, not only the first check. */
    ck_assert_uint_gt(accepted, 1000);
    ck_assert_uint_gt(refused, 10000);
}
END_TEST

static const ProtobufCMessageDescriptor *seen[128];
static unsigned seen_count, bounded;

static void check_rules(const ProtobufCMessageDescriptor *desc)
{
    for (unsigned i = 0; i < seen_count; i++) {
        if (seen[i] == desc)
            return;
    }
    ck_assert_uint_lt(seen_count, 128);
    seen[seen_count++] = desc;
    for (unsigned f = 0; f < desc->n_fields; f++) {
        const ProtobufCFieldDescriptor *field = &desc->fields[f];
        if (field->type == PROTOBUF_C_TYPE_MESSAGE)
            check_rules(field->descriptor);
        if (field->label != PROTOBUF_C_LABEL_REPEATED && field->type != PROTOBUF_C_TYPE_STRING &&
            field->type != PROTOBUF_C_TYPE_BYTES)
            continue;
        ck_assert_msg(mst_check_has_rule(desc->short_name, field->name), "%s.%s has no bound in proto/check.c", desc->short_name,
                      field->name);
        bounded++;
    }
}

START_TEST(every_string_and_list_of_the_protocol_has_a_bound)
{
    check_rules(&mainstay__envelope__descriptor);
    ck_assert_uint_gt(seen_count, 50);
    ck_assert_uint_gt(bounded, 80);
}
END_TEST

START_TEST(bounds_of_fields_stand_in_the_order_their_search_wants)
{
    ck_assert(mst_check_rules_sorted());
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("proto/frame");
    TCase *tcase = tcase_create("frame");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, hello_setup, NULL);
    tcase_add_loop_test(tcase, every_kind_of_message_comes_back_as_it_was_sent, 0, (int)sample_count());
    tcase_add_test(tcase, header_is_little_endian_magic_version_length);
    tcase_add_loop_test(tcase, every_truncation_of_a_frame_is_refused, 0, (int)sample_count());
    tcase_add_loop_test(tcase, every_truncation_of_the_body_is_refused_or_a_shorter_valid_message, 0, (int)sample_count());
    tcase_add_test(tcase, wrong_magic_is_refused);
    tcase_add_test(tcase, another_version_is_refused_and_both_are_named);
    tcase_add_test(tcase, announced_length_beyond_the_limit_is_refused);
    tcase_add_test(tcase, largest_message_fits_and_one_byte_more_does_not);
    tcase_add_test(tcase, message_without_a_body_is_refused);
    tcase_add_test(tcase, message_of_an_unknown_kind_is_refused_and_named);
    tcase_add_test(tcase, field_number_0_is_refused_however_it_is_spelt);
    tcase_add_test(tcase, bad_names_are_refused);
    tcase_add_test(tcase, numbers_out_of_range_are_refused);
    tcase_add_test(tcase, negative_errors_and_pids_are_refused);
    tcase_add_test(tcase, address_that_is_not_numeric_is_refused);
    tcase_add_test(tcase, boot_id_of_another_length_is_refused);
    tcase_add_test(tcase, lists_beyond_their_bound_are_refused);
    tcase_add_test(tcase, unknown_enum_value_is_refused);
    tcase_add_test(tcase, sender_learns_of_a_missing_field);
    tcase_add_test(tcase, control_characters_in_a_path_are_refused);
    tcase_add_test(tcase, texts_for_people_arrive_printable);
    tcase_add_test(tcase, overlong_text_is_refused);
    tcase_add_test(tcase, small_message_that_unpacks_to_megabytes_is_refused);
    tcase_add_test(tcase, random_bytes_are_refused);
    tcase_add_loop_test(tcase, random_mutations_never_break_the_reader, 1, 5);
    tcase_add_test(tcase, every_string_and_list_of_the_protocol_has_a_bound);
    tcase_add_test(tcase, bounds_of_fields_stand_in_the_order_their_search_wants);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
