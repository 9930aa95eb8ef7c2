/* Machine checks: records as the kernel wrote them (Debian 6.1.0-56, captured in the lab), and damaged ones. */

#include "node/agent/told.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COMMON                                                                                                                   \
    "format:\n"                                                                                                                  \
    "\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n"                                                       \
    "\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;\n"                                                       \
    "\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;\n"                                               \
    "\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n"

/* events/mce/mce_record/format */
static const char mce_format[] = "name: mce_record\nID: 113\n" COMMON "\tfield:u64 mcgcap;\toffset:8;\tsize:8;\tsigned:0;\n"
                                 "\tfield:u64 mcgstatus;\toffset:16;\tsize:8;\tsigned:0;\n"
                                 "\tfield:u64 status;\toffset:24;\tsize:8;\tsigned:0;\n"
                                 "\tfield:u64 addr;\toffset:32;\tsize:8;\tsigned:0;\n"
                                 "\tfield:u64 misc;\toffset:40;\tsize:8;\tsigned:0;\n"
                                 "\tfield:u64 synd;\toffset:48;\tsize:8;\tsigned:0;\n"
                                 "\tfield:u64 ipid;\toffset:56;\tsize:8;\tsigned:0;\n"
                                 "\tfield:u64 ip;\toffset:64;\tsize:8;\tsigned:0;\n"
                                 "\tfield:u64 tsc;\toffset:72;\tsize:8;\tsigned:0;\n"
                                 "\tfield:u64 walltime;\toffset:80;\tsize:8;\tsigned:0;\n"
                                 "\tfield:u32 cpu;\toffset:88;\tsize:4;\tsigned:0;\n"
                                 "\tfield:u32 cpuid;\toffset:92;\tsize:4;\tsigned:0;\n"
                                 "\tfield:u32 apicid;\toffset:96;\tsize:4;\tsigned:0;\n"
                                 "\tfield:u32 socketid;\toffset:100;\tsize:4;\tsigned:0;\n"
                                 "\tfield:u8 cs;\toffset:104;\tsize:1;\tsigned:0;\n"
                                 "\tfield:u8 bank;\toffset:105;\tsize:1;\tsigned:0;\n"
                                 "\tfield:u8 cpuvendor;\toffset:106;\tsize:1;\tsigned:0;\n\n"
                                 "print fmt: \"CPU: %d, MC%d: %016Lx\", REC->cpu, REC->bank, REC->status\n";

/* events/ras/mc_event/format */
static const char mc_format[] =
    "name: mc_event\nID: 1227\n" COMMON "\tfield:unsigned int error_type;\toffset:8;\tsize:4;\tsigned:0;\n"
    "\tfield:__data_loc char[] msg;\toffset:12;\tsize:4;\tsigned:1;\n"
    "\tfield:__data_loc char[] label;\toffset:16;\tsize:4;\tsigned:1;\n"
    "\tfield:u16 error_count;\toffset:20;\tsize:2;\tsigned:0;\n"
    "\tfield:u8 mc_index;\toffset:22;\tsize:1;\tsigned:0;\n"
    "\tfield:s8 top_layer;\toffset:23;\tsize:1;\tsigned:1;\n"
    "\tfield:s8 middle_layer;\toffset:24;\tsize:1;\tsigned:1;\n"
    "\tfield:s8 lower_layer;\toffset:25;\tsize:1;\tsigned:1;\n"
    "\tfield:long address;\toffset:32;\tsize:8;\tsigned:1;\n"
    "\tfield:u8 grain_bits;\toffset:40;\tsize:1;\tsigned:0;\n"
    "\tfield:long syndrome;\toffset:48;\tsize:8;\tsigned:1;\n"
    "\tfield:__data_loc char[] driver_detail;\toffset:56;\tsize:4;\tsigned:1;\n\n"
    "print fmt: \"%d on %s\", REC->error_count, __get_str(label)\n";

/* What `lab mce n1` (QEMU: mce 0 4 0x9c00004000010092 0 0x12345000 0x8c) left in trace_pipe_raw, from common_type on. */
static const uint8_t corrected[112] = {
    0x71, 0x00, 0x00, 0x00, 0x30, 0x00, 0x00, 0x00, 0x0a, 0x01, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x92, 0x00, 0x01, 0x00, 0x40, 0x00, 0x00, 0x9c, 0x00, 0x50, 0x34, 0x12, 0x00, 0x00,
    0x00, 0x00, 0x8c, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x34, 0x57, 0x04, 0x6b, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xb1, 0x0f, 0x06,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x04, 0x02, 0x00, 0x00, 0x00, 0x00, 0x00,
};

/* Made by hand after the format above: no machine of ours has EDAC. */
struct mc_record {
    uint16_t type;
    uint8_t flags, preempt;
    int32_t pid;
    uint32_t error_type, msg, label;
    uint16_t error_count;
    uint8_t mc_index;
    int8_t layers[3];
    uint8_t pad[6];
    int64_t address;
    uint8_t grain_bits, pad2[7];
    int64_t syndrome;
    uint32_t driver_detail;
    char strings[36];
};

static struct mst_trace_format *format;

static void setup(void)
{
    ck_assert_int_eq(mst_trace_format_new(mce_format, mc_format, &format), 0);
}

static void teardown(void)
{
    mst_trace_format_free(format);
}

START_TEST(corrected_machine_check_is_read)
{
    struct mst_hw_error error;
    char text[200];

    ck_assert_int_eq(mst_trace_parse(format, corrected, sizeof(corrected), &error), 0);
    ck_assert_int_eq(error.severity, MST_HW_CORRECTED);
    ck_assert_uint_eq(error.cpu, 0);
    ck_assert_uint_eq(error.bank, 4);
    ck_assert_uint_eq(error.status, UINT64_C(0x9c00004000010092));
    ck_assert(error.has_addr);
    ck_assert_uint_eq(error.addr, 0x12345000);
    ck_assert(error.has_misc);
    ck_assert_uint_eq(error.misc, 0x8c);
    ck_assert_str_eq(
        mst_hw_error_text(&error, text, sizeof(text)),
        "machine check on CPU 0 bank 4: corrected memory controller error, status 0x9c00004000010092 addr 0x12345000 misc 0x8c");
}
END_TEST

START_TEST(uncorrected_bits_make_it_uncorrected)
{
    uint8_t record[sizeof(corrected)];
    struct mst_hw_error error;
    char text[200];

    memcpy(record, corrected, sizeof(record));
    record[24 + 7] = 0xbe; /* VAL UC EN MISCV ADDRV PCC */
    ck_assert_int_eq(mst_trace_parse(format, record, sizeof(record), &error), 0);
    ck_assert_int_eq(error.severity, MST_HW_UNCORRECTED);
    ck_assert_ptr_nonnull(strstr(mst_hw_error_text(&error, text, sizeof(text)), "processor context corrupt"));
    record[24 + 7] = 0x90; /* VAL EN: address and misc mean nothing */
    ck_assert_int_eq(mst_trace_parse(format, record, sizeof(record), &error), 0);
    ck_assert(!error.has_addr && !error.has_misc);
    ck_assert_ptr_null(strstr(mst_hw_error_text(&error, text, sizeof(text)), "addr"));
}
END_TEST

static struct mc_record memory_error(uint32_t type)
{
    struct mc_record record = {.type = 1227,
                               .error_type = type,
                               .msg = 60 | 12u << 16,
                               .label = 72 | 8u << 16,
                               .error_count = 3,
                               .address = 0x7000,
                               .driver_detail = 80 | 1u << 16};

    memcpy(record.strings, "memory read\0DIMM_A1", 20);
    return record;
}

START_TEST(memory_controller_event_is_read)
{
    static const struct {
        uint32_t type;
        enum mst_hw_severity severity;
    } kinds[] = {
        {0, MST_HW_CORRECTED}, {1, MST_HW_UNCORRECTED}, {2, MST_HW_CORRECTED}, {3, MST_HW_UNCORRECTED}, {4, MST_HW_CORRECTED}};

    for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        struct mc_record record = memory_error(kinds[i].type);
        struct mst_hw_error error;
        char text[200];

        ck_assert_int_eq(mst_trace_parse(format, &record, sizeof(record), &error), 0);
        ck_assert_int_eq(error.severity, kinds[i].severity);
        ck_assert(error.memory_controller);
        ck_assert_uint_eq(error.count, 3);
        ck_assert_str_eq(error.label, "DIMM_A1");
        ck_assert_ptr_nonnull(strstr(mst_hw_error_text(&error, text, sizeof(text)), "DIMM_A1, 3 times, addr 0x7000"));
    }
}
END_TEST

START_TEST(record_cut_off_anywhere_is_refused)
{
    struct mc_record record = memory_error(0);
    struct mst_hw_error error;

    for (size_t bytes = 0; bytes < 107; bytes++) {
        uint8_t *piece = malloc(bytes + 1); /* exact, so that a sanitizer sees a read behind it */
        int r;

        memcpy(piece, corrected, bytes);
        r = mst_trace_parse(format, piece, bytes, &error);
        ck_assert_msg(bytes >= 106 ? r == 0 : r == -EBADMSG, "%zu bytes: %d", bytes, r);
        free(piece);
    }
    record.label = 90 | 60u << 16;
    ck_assert_int_eq(mst_trace_parse(format, &record, sizeof(record), &error), -EBADMSG);
    record.label = 0xffff | 0xffffu << 16;
    ck_assert_int_eq(mst_trace_parse(format, &record, sizeof(record), &error), -EBADMSG);
}
END_TEST

START_TEST(other_event_is_left_alone)
{
    uint8_t record[sizeof(corrected)];
    struct mst_hw_error error;

    memcpy(record, corrected, sizeof(record));
    record[0] = 0x72;
    ck_assert_int_eq(mst_trace_parse(format, record, sizeof(record), &error), -ENOMSG);
}
END_TEST

START_TEST(label_is_printable)
{
    struct mc_record record = memory_error(0);
    struct mst_hw_error error;

    record.strings[14] = '\n';
    ck_assert_int_eq(mst_trace_parse(format, &record, sizeof(record), &error), 0);
    ck_assert_str_eq(error.label, "DI?M_A1");
}
END_TEST

START_TEST(kernel_with_one_of_the_two_events_will_do)
{
    struct mst_trace_format *one;
    struct mst_hw_error error;

    ck_assert_int_eq(mst_trace_format_new(mce_format, NULL, &one), 0);
    ck_assert_int_eq(mst_trace_parse(one, corrected, sizeof(corrected), &error), 0);
    mst_trace_format_free(one);
    ck_assert_int_eq(mst_trace_format_new(NULL, mc_format, &one), 0);
    ck_assert_int_eq(mst_trace_parse(one, corrected, sizeof(corrected), &error), -ENOMSG);
    mst_trace_format_free(one);
    ck_assert_int_eq(mst_trace_format_new(NULL, NULL, &one), -EINVAL);
    ck_assert_int_eq(mst_trace_format_new("nonsense", NULL, &one), -EINVAL);
}
END_TEST

START_TEST(same_error_is_told_once_in_a_while)
{
    static struct mst_told_list list;
    struct mst_hw_error error = {.cpu = 1, .bank = 4, .status = 7}, other = error;
    uint64_t held;

    memset(&list, 0, sizeof(list));
    other.bank = 5;
    ck_assert(mst_told_may(&list, mst_told_key(&error), 1000, &held));
    ck_assert(mst_told_may(&list, mst_told_key(&other), 1000, &held));
    for (unsigned i = 0; i < 5; i++)
        ck_assert(!mst_told_may(&list, mst_told_key(&error), 1000 + MST_TOLD_AGAIN_MS - 1, &held));
    error.count = 9; /* a counter makes no other error */
    ck_assert(mst_told_may(&list, mst_told_key(&error), 1000 + MST_TOLD_AGAIN_MS, &held));
    ck_assert_uint_eq(held, 5);
    ck_assert(mst_told_may(&list, mst_told_key(&error), 1000 + 2 * MST_TOLD_AGAIN_MS, &held));
    ck_assert_uint_eq(held, 0);
}
END_TEST

START_TEST(flood_of_different_errors_is_bounded_and_each_is_told)
{
    static struct mst_told_list list;
    uint64_t held;

    memset(&list, 0, sizeof(list));
    for (uint64_t key = 1; key <= 1000; key++)
        ck_assert(mst_told_may(&list, key, key, &held));
    ck_assert(!mst_told_may(&list, 1000, 1001, &held)); /* the newest are remembered */
    ck_assert(!mst_told_may(&list, 1000 - MST_TOLD_KEPT + 1, 1001, &held));
    ck_assert(mst_told_may(&list, 1, 1001, &held));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("mce");
    TCase *tcase = tcase_create("mce");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, corrected_machine_check_is_read);
    tcase_add_test(tcase, uncorrected_bits_make_it_uncorrected);
    tcase_add_test(tcase, memory_controller_event_is_read);
    tcase_add_test(tcase, record_cut_off_anywhere_is_refused);
    tcase_add_test(tcase, other_event_is_left_alone);
    tcase_add_test(tcase, label_is_printable);
    tcase_add_test(tcase, kernel_with_one_of_the_two_events_will_do);
    tcase_add_test(tcase, same_error_is_told_once_in_a_while);
    tcase_add_test(tcase, flood_of_different_errors_is_bounded_and_each_is_told);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
