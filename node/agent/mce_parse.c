#include "node/agent/mce.h"

#include <errno.h>
#include <event-parse.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- IA32_MCi_STATUS (Intel SDM volume 3B, chapter 16; AMD's is the same in these bits) --- */

#define STATUS_OVERFLOW (UINT64_C(1) << 62)
#define STATUS_UC       (UINT64_C(1) << 61)
#define STATUS_MISCV    (UINT64_C(1) << 59)
#define STATUS_ADDRV    (UINT64_C(1) << 58)
#define STATUS_PCC      (UINT64_C(1) << 57) /* processor context corrupt */

void mst_mce_decode(uint64_t status, struct mst_hw_error *error)
{
    error->status = status;
    error->severity = status & (STATUS_UC | STATUS_PCC) ? MST_HW_UNCORRECTED : MST_HW_CORRECTED;
    error->has_addr = (status & STATUS_ADDRV) != 0;
    error->has_misc = (status & STATUS_MISCV) != 0;
}

static const char *code_text(uint64_t status)
{
    unsigned code = status & 0xefff; /* bit 12 only says that similar ones are filtered */

    if (code == 0)
        return "no error code";
    if (code >= 0x0080 && code <= 0x00ff)
        return "memory controller";
    if (code >= 0x0010 && code <= 0x001f)
        return "TLB";
    if ((code & 0xff00) == 0x0100)
        return "cache";
    if ((code & 0xf800) == 0x0800)
        return "bus or interconnect";
    if (code == 0x0400)
        return "internal timer";
    if ((code & 0xfc00) == 0x0400)
        return "internal";
    return "unclassified";
}

const char *mst_hw_error_text(const struct mst_hw_error *error, char *buf, size_t size)
{
    const char *severity = error->severity == MST_HW_CORRECTED ? "corrected" : "uncorrected";
    char addr[40] = "", misc[40] = "";

    if (error->has_addr)
        snprintf(addr, sizeof(addr), " addr 0x%" PRIx64, error->addr);
    if (error->has_misc)
        snprintf(misc, sizeof(misc), " misc 0x%" PRIx64, error->misc);
    if (error->memory_controller)
        snprintf(buf, size, "%s memory error on %s, %" PRIu32 " time%s,%s", severity,
                 error->label[0] ? error->label : "unknown module", error->count, error->count == 1 ? "" : "s",
                 addr[0] ? addr : " address unknown");
    else
        snprintf(buf, size, "machine check on CPU %" PRIu32 " bank %" PRIu32 ": %s %s error, status 0x%016" PRIx64 "%s%s%s%s",
                 error->cpu, error->bank, severity, code_text(error->status), error->status, addr, misc,
                 error->status & STATUS_PCC ? ", processor context corrupt" : "",
                 error->status & STATUS_OVERFLOW ? ", earlier ones were lost" : "");
    return buf;
}

/* --- records --- */

struct mst_trace_format {
    struct tep_handle *tep;
    struct tep_event *mce, *mc; /* NULL: this kernel has none */
};

int mst_trace_format_new(const char *mce, const char *mc, struct mst_trace_format **ret_format)
{
    struct mst_trace_format *format = calloc(1, sizeof(*format));
    int r = -ENOMEM;

    if (!format)
        return -ENOMEM;
    format->tep = tep_alloc();
    if (!format->tep)
        goto fail;
    tep_set_long_size(format->tep, (int)sizeof(long));
    r = -EINVAL;
    if (mce && tep_parse_event(format->tep, mce, strlen(mce), "mce") != TEP_ERRNO__SUCCESS)
        goto fail;
    if (mc && tep_parse_event(format->tep, mc, strlen(mc), "ras") != TEP_ERRNO__SUCCESS)
        goto fail;
    format->mce = tep_find_event_by_name(format->tep, "mce", "mce_record");
    format->mc = tep_find_event_by_name(format->tep, "ras", "mc_event");
    if (!format->mce && !format->mc)
        goto fail;
    *ret_format = format;
    return 0;
fail:
    mst_trace_format_free(format);
    return r;
}

void mst_trace_format_free(struct mst_trace_format *format)
{
    if (!format)
        return;
    tep_free(format->tep);
    free(format);
}

static int number(struct tep_event *event, const char *name, const void *record, size_t bytes, uint64_t *ret_value)
{
    struct tep_format_field *field = tep_find_any_field(event, name);
    unsigned long long value;

    if (!field || field->offset < 0 || field->size <= 0 || (size_t)field->offset + (size_t)field->size > bytes ||
        tep_read_number_field(field, record, &value) != 0)
        return -EBADMSG;
    *ret_value = value;
    return 0;
}

static int number32(struct tep_event *event, const char *name, const void *record, size_t bytes, uint32_t *ret_value)
{
    uint64_t value;
    int r = number(event, name, record, bytes, &value);

    if (r == 0)
        *ret_value = (uint32_t)value;
    return r;
}

/* A __data_loc string: the field holds offset and length of the bytes within the record. */
static int text(struct tep_event *event, const char *name, const void *record, size_t bytes, char *buf, size_t size)
{
    uint64_t where;
    size_t offset, len;
    int r = number(event, name, record, bytes, &where);

    if (r < 0)
        return r;
    offset = where & 0xffff;
    len = where >> 16 & 0xffff;
    if (offset + len > bytes)
        return -EBADMSG;
    if (len >= size)
        len = size - 1;
    memcpy(buf, (const char *)record + offset, len);
    buf[len] = '\0';
    for (char *c = buf; *c; c++)
        if ((unsigned char)*c < ' ' || (unsigned char)*c >= 127)
            *c = '?';
    return 0;
}

static int parse_mce(struct tep_event *event, const void *record, size_t bytes, struct mst_hw_error *error)
{
    uint64_t status = 0;
    int r = number(event, "status", record, bytes, &status);

    if (r == 0)
        r = number32(event, "cpu", record, bytes, &error->cpu);
    if (r == 0)
        r = number32(event, "bank", record, bytes, &error->bank);
    if (r == 0)
        r = number(event, "addr", record, bytes, &error->addr);
    if (r == 0)
        r = number(event, "misc", record, bytes, &error->misc);
    if (r == 0)
        r = number(event, "mcgstatus", record, bytes, &error->mcgstatus);
    if (r == 0)
        mst_mce_decode(status, error);
    return r;
}

static int parse_mc(struct tep_event *event, const void *record, size_t bytes, struct mst_hw_error *error)
{
    uint32_t type = 0; /* enum hw_event_mc_err_type: 0 corrected, 1 uncorrected, 2 deferred, 3 fatal, 4 info */
    int r = number32(event, "error_type", record, bytes, &type);

    if (r == 0)
        r = number32(event, "error_count", record, bytes, &error->count);
    if (r == 0)
        r = number(event, "address", record, bytes, &error->addr);
    if (r == 0)
        r = text(event, "label", record, bytes, error->label, sizeof(error->label));
    error->memory_controller = true;
    error->has_addr = error->addr != 0;
    error->severity = type == 1 || type == 3 ? MST_HW_UNCORRECTED : MST_HW_CORRECTED;
    return r;
}

int mst_trace_parse(const struct mst_trace_format *format, const void *record, size_t bytes, struct mst_hw_error *ret_error)
{
    struct mst_hw_error error = {.severity = MST_HW_CORRECTED};
    uint16_t type;
    int r;

    if (bytes < sizeof(type))
        return -EBADMSG;
    memcpy(&type, record, sizeof(type)); /* common_type is the first field of every event */
    if (format->mce && type == format->mce->id)
        r = parse_mce(format->mce, record, bytes, &error);
    else if (format->mc && type == format->mc->id)
        r = parse_mc(format->mc, record, bytes, &error);
    else
        return -ENOMSG;
    if (r == 0)
        *ret_error = error;
    return r;
}
