/* The tables of docs/PROTOCOL.md say what shm/layout.h and mirror/log.h say. */

#include "shm/layout.h"
#include "base/file.h"
#include "mirror/log.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct field {
    const char *name;
    size_t offset, bytes;
};

struct record {
    const char *name;
    size_t bytes;
    const struct field *fields;
    unsigned fields_count;
};

#define F(type, field)                                                                                                           \
    {                                                                                                                            \
#field, offsetof(struct type, field), sizeof(((struct type *)0)->field)                                                  \
    }
#define RECORD(type, field_list)                                                                                                 \
    {                                                                                                                            \
#type, sizeof(struct type), field_list, sizeof(field_list) / sizeof(field_list[0])                                       \
    }

#define T mst_superblock
static const struct field superblock[] = {
    F(T, magic), F(T, layout_version), F(T, area_bytes),      F(T, instance), F(T, host_boot_id), F(T, node_id), F(T, reserved0),
    F(T, node),  F(T, cluster),        F(T, started_wall_ms), F(T, reserved), F(T, reserved1),    F(T, crc32c)};
#undef T
#define T mst_beat_line
static const struct field beat_line[] = {F(T, keeper_beat), F(T, agent_beat),  F(T, generation), F(T, vm_fault_flags),
                                         F(T, instance),    F(T, agent_state), F(T, vms),        F(T, lease_renewal),
                                         F(T, flags),       F(T, crc32c)};
#undef T
#define T mst_agent_line
static const struct field agent_line[] = {F(T, beat), F(T, reserved)};
#undef T
#define T mst_pub_head
static const struct field pub_head[] = {F(T, version), F(T, body_bytes), F(T, crc32c), F(T, epoch), F(T, instance)};
#undef T
#define T mst_node_status
static const struct field node_status[] = {F(T, node_id),         F(T, health),
                                           F(T, vcpus),           F(T, vms),
                                           F(T, memory_bytes),    F(T, memory_used_bytes),
                                           F(T, started_wall_ms), F(T, load_milli),
                                           F(T, agent_restarts),  F(T, machine_checks),
                                           F(T, wall_ms),         F(T, reserved)};
#undef T
#define T mst_vm_slot
static const struct field vm_slot[] = {
    F(T, vm),          F(T, run_state),    F(T, qemu_pid),    F(T, exit_status),   F(T, fault_kind),      F(T, ram_bytes),
    F(T, save_bytes),  F(T, shadow_bytes), F(T, delta_bytes), F(T, console_bytes), F(T, console_beat_ms), F(T, changed_wall_ms),
    F(T, image_state), F(T, image_source), F(T, log_id),      F(T, disk_bytes),    F(T, standby),         F(T, reserved)};
#undef T
#define T mst_save_record
static const struct field save_record[] = {F(T, seq),           F(T, source),        F(T, device_slot),
                                           F(T, device_bytes),  F(T, device_crc32c), F(T, page_bytes),
                                           F(T, ram_bytes),     F(T, delta_pages),   F(T, delta_table_crc32c),
                                           F(T, taken_wall_ms), F(T, pause_ns),      F(T, taken_boot_ns),
                                           F(T, ram_digest),    F(T, pages),         F(T, interval_ms),
                                           F(T, pace),          F(T, trouble),       F(T, trouble_wall_ms),
                                           F(T, dirty_pages),   F(T, pause_p50_us),  F(T, pause_p99_us),
                                           F(T, reserved)};
#undef T
#define T mst_fault_entry
static const struct field fault_entry[] = {F(T, sequence), F(T, fault_id), F(T, wall_ms),   F(T, kind),  F(T, reserved),
                                           F(T, vm),       F(T, text),     F(T, reserved1), F(T, crc32c)};
#undef T
#define T mst_lease_line
static const struct field lease_line[] = {F(T, instance), F(T, term),     F(T, coordinator), F(T, renewal),
                                          F(T, beat),     F(T, lease_ms), F(T, flags),       F(T, coordinator_id),
                                          F(T, decision), F(T, version),  F(T, crc32c)};
#undef T
#define T mst_mlog_head
static const struct field mlog_head[] = {F(T, magic),           F(T, layout_version),  F(T, page_bytes),
                                         F(T, ring_bytes),      F(T, ram_bytes),       F(T, delta_capacity),
                                         F(T, source_node_id),  F(T, epoch),           F(T, log_id),
                                         F(T, source_instance), F(T, mirror_instance), F(T, vm),
                                         F(T, source_boot_id),  F(T, reserved),        F(T, sum)};
#undef T
#define T mst_mlog_record
static const struct field mlog_record[] = {
    F(T, log_id),     F(T, epoch),        F(T, source_instance), F(T, sequence), F(T, position),
    F(T, prev_sum),   F(T, checkpoint),   F(T, record_bytes),    F(T, flags),    F(T, runs),
    F(T, data_pages), F(T, device_bytes), F(T, device_off),      F(T, reserved), F(T, sum)};
#undef T
static const struct field mlog_run[] = {F(mst_mlog_run, page), F(mst_mlog_run, pages), F(mst_mlog_run, kind)};
#define T mst_mlog_commit
static const struct field mlog_commit[] = {F(T, ram_digest), F(T, device_bytes), F(T, taken_wall_ms), F(T, pause_ns),
                                           F(T, reserved)};
#undef T
static const struct field delta_entry[] = {F(mst_delta_entry, page), F(mst_delta_entry, sum)};

static const struct record records[] = {
    RECORD(mst_superblock, superblock),   RECORD(mst_beat_line, beat_line),     RECORD(mst_agent_line, agent_line),
    RECORD(mst_pub_head, pub_head),       RECORD(mst_node_status, node_status), RECORD(mst_vm_slot, vm_slot),
    RECORD(mst_save_record, save_record), RECORD(mst_fault_entry, fault_entry), RECORD(mst_delta_entry, delta_entry),
    RECORD(mst_lease_line, lease_line),   RECORD(mst_mlog_head, mlog_head),     RECORD(mst_mlog_record, mlog_record),
    RECORD(mst_mlog_run, mlog_run),       RECORD(mst_mlog_commit, mlog_commit),
};

#define RECORDS (sizeof(records) / sizeof(records[0]))

static char *doc;

static void read_doc(void)
{
    size_t len;

    ck_assert_int_eq(mst_file_read(MST_SOURCE_DIR "/docs/PROTOCOL.md", 1 << 20, &doc, &len), 0);
}

static void drop_doc(void)
{
    free(doc);
}

START_TEST(every_record_is_full_of_named_fields)
{
    for (unsigned i = 0; i < RECORDS; i++) {
        size_t at = 0;
        for (unsigned k = 0; k < records[i].fields_count; k++) {
            ck_assert_msg(records[i].fields[k].offset == at, "%s.%s: padding before it", records[i].name,
                          records[i].fields[k].name);
            at += records[i].fields[k].bytes;
        }
        ck_assert_msg(at == records[i].bytes, "%s: padding or an unnamed field at its end", records[i].name);
    }
}
END_TEST

START_TEST(tables_of_the_protocol_are_those_of_the_code)
{
    for (unsigned i = 0; i < RECORDS; i++) {
        char line[160];
        const char *at;

        snprintf(line, sizeof(line),
                 "#### `struct %s`, %zu bytes\n\n| offset | bytes | field | meaning |\n| ---: | ---: | --- | --- |\n",
                 records[i].name, records[i].bytes);
        at = strstr(doc, line);
        ck_assert_msg(at, "docs/PROTOCOL.md lacks: %s", line);
        at += strlen(line);
        for (unsigned k = 0; k < records[i].fields_count; k++) {
            const struct field *field = &records[i].fields[k];
            snprintf(line, sizeof(line), "| %zu | %zu | `%s` | ", field->offset, field->bytes, field->name);
            ck_assert_msg(strncmp(at, line, strlen(line)) == 0, "docs/PROTOCOL.md, struct %s: %.60s..., the code says %s",
                          records[i].name, at, line);
            at = strchr(at, '\n') + 1;
        }
        ck_assert_msg(*at != '|', "docs/PROTOCOL.md, struct %s: a row too many", records[i].name);
    }
}
END_TEST

START_TEST(map_of_the_status_area_is_that_of_the_code)
{
    const struct {
        size_t offset;
        const char *rest;
    } rows[] = {
        {offsetof(struct mst_status_area, super), "256 | superblock"},
        {offsetof(struct mst_status_area, beat), "64 | beat line"},
        {offsetof(struct mst_status_area, agent), "64 | agent line"},
        {offsetof(struct mst_status_area, reserved0), "128 | reserved"},
        {offsetof(struct mst_status_area, node), "2 x 256 | node status"},
        {offsetof(struct mst_status_area, faults), "64 x 256 | fault log"},
        {offsetof(struct mst_status_area, reserved1), "3072 | reserved"},
        {offsetof(struct mst_status_area, vms), "64 x 1024 | VM slots"},
    };
    char line[100];

    for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        snprintf(line, sizeof(line), "\n| %zu | %s |", rows[i].offset, rows[i].rest);
        ck_assert_msg(strstr(doc, line), "docs/PROTOCOL.md lacks: %s", line + 1);
    }
    snprintf(line, sizeof(line), "\n%zu bytes.\n", sizeof(struct mst_status_area));
    ck_assert_msg(strstr(doc, line), "docs/PROTOCOL.md lacks: %s", line + 1);
    ck_assert_uint_eq(sizeof(((struct mst_status_area *)0)->vms), 64 * 1024);
    ck_assert_uint_eq(sizeof(((struct mst_status_area *)0)->faults), 64 * 256);
    ck_assert_uint_eq(offsetof(struct mst_vm_entry, save), 512);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("shm/layout");
    TCase *tc = tcase_create("all");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tc, read_doc, drop_doc);
    tcase_add_test(tc, every_record_is_full_of_named_fields);
    tcase_add_test(tc, tables_of_the_protocol_are_those_of_the_code);
    tcase_add_test(tc, map_of_the_status_area_is_that_of_the_code);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
