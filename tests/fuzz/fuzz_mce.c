#include "fuzz.h"

#include "node/agent/mce.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Trace records of the kernel: machine checks and memory errors. First byte: which descriptions of the events are known, among them some
 * that another kernel might have: fields missing, of other sizes, at the very end. Then records, one behind the other. */

#define COMMON                                                                                                                   \
    "format:\n"                                                                                                                  \
    "\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n"                                                       \
    "\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;\n"                                                       \
    "\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;\n"                                               \
    "\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n"
#define MCE_HEAD                "name: mce_record\nID: 113\n" COMMON
#define MC_HEAD                 "name: mc_event\nID: 1227\n" COMMON
#define PRINT                   "\nprint fmt: \"%d\", REC->common_pid\n"
#define U(type, name, at, size) "\tfield:" #type " " #name ";\toffset:" #at ";\tsize:" #size ";\tsigned:0;\n"

static const char *const mce_formats[] = {
    MCE_HEAD U(u64, mcgcap, 8, 8) U(u64, mcgstatus, 16, 8) U(u64, status, 24, 8) U(u64, addr, 32, 8) U(u64, misc, 40, 8)
        U(u64, tsc, 72, 8) U(u32, cpu, 88, 4) U(u8, cs, 104, 1) U(u8, bank, 105, 1) PRINT,
    MCE_HEAD U(u64, mcgstatus, 8, 8) U(u64, status, 16, 8) U(u64, addr, 24, 8) U(u64, misc, 32, 8) U(u16, cpu, 40, 2)
        U(u8, bank, 42, 1) PRINT,
    MCE_HEAD U(u64, status, 24, 8) U(u64, addr, 32, 8) PRINT,
    NULL,
};
static const char *const mc_formats[] = {
    MC_HEAD U(unsigned int, error_type, 8, 4) U(__data_loc char[], msg, 12, 4) U(__data_loc char[], label, 16, 4)
        U(u16, error_count, 20, 2) U(long, address, 32, 8) U(__data_loc char[], driver_detail, 56, 4) PRINT,
    MC_HEAD U(u8, error_type, 8, 1) U(__data_loc char[], label, 12, 4) U(u8, error_count, 9, 1) U(u32, address, 16, 4) PRINT,
    NULL,
};
#define MCES (sizeof(mce_formats) / sizeof(mce_formats[0]))
#define MCS  (sizeof(mc_formats) / sizeof(mc_formats[0]))

static struct mst_trace_format *format_of(unsigned which)
{
    static struct mst_trace_format *made[MCES * MCS]; /* kept: reading them is libtraceevent's work, and slow */

    which %= MCES * MCS;
    if (which == MCES * MCS - 1)
        which = 0; /* a kernel that has neither has nothing to parse */
    if (!made[which])
        FUZZ_CHECK(mst_trace_format_new(mce_formats[which % MCES], mc_formats[which / MCES], &made[which]) == 0);
    return made[which];
}

static void judge(const struct mst_hw_error *error)
{
    char text[200];

    FUZZ_CHECK(memchr(error->label, '\0', sizeof(error->label)));
    for (const char *c = error->label; *c; c++)
        FUZZ_CHECK(*c >= ' ' && *c < 127);
    FUZZ_CHECK(error->severity == MST_HW_CORRECTED || error->severity == MST_HW_UNCORRECTED);
    FUZZ_CHECK(mst_hw_error_text(error, text, sizeof(text)) == text && text[0]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};
    struct mst_trace_format *format = format_of(fuzz_u8(&in));

    while (in.left > 0) {
        size_t len;
        const uint8_t *piece = fuzz_piece(&in, &len);
        uint8_t *record = fuzz_copy(piece, len);
        struct mst_hw_error error;
        int r = mst_trace_parse(format, record, len, &error);

        FUZZ_CHECK(r == 0 || r == -ENOMSG || r == -EBADMSG);
        if (r == 0)
            judge(&error);
        free(record);
    }
    return 0;
}

static void word(uint8_t *record, size_t at, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        record[at + i] = (uint8_t)(value >> 8 * i);
}

void fuzz_seeds(void)
{
    static struct fuzz_out out;
    uint8_t mce[112] = {0}, mc[96] = {0};
    char name[32];

    word(mce, 0, 113, 2);
    word(mce, 24, UINT64_C(0x9c00004000010092), 8);
    word(mce, 32, 0x12345000, 8);
    word(mce, 40, 0x8c, 8);
    mce[105] = 4;
    word(mc, 0, 1227, 2);
    word(mc, 8, 1, 4);
    word(mc, 16, 72 | 8u << 16, 4);
    word(mc, 20, 3, 2);
    word(mc, 32, 0x7000, 8);
    memcpy(mc + 72, "DIMM_A1", 8);
    for (unsigned i = 0; i < MCES * MCS; i++) {
        out.len = 0;
        fuzz_put(&out, i, 1);
        fuzz_put_piece(&out, mce, sizeof(mce));
        fuzz_put_piece(&out, mc, sizeof(mc));
        snprintf(name, sizeof(name), "both-%u", i);
        fuzz_seed(name, out.bytes, out.len);
    }
}
