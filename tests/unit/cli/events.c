#include "cli/events.h"

#include "base/clock.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64];
static struct mst_why why;

static void write_file(const char *name, const char *text)
{
    char path[128];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    fputs(text, file);
    fclose(file);
}

static void make_folder(void)
{
    char path[128];

    snprintf(folder, sizeof(folder), "/tmp/mst-events-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/n1", folder);
    ck_assert_int_eq(mkdir(path, 0700), 0);
    write_file("n1/events.jsonl.1", "{\"n\":1,\"wall_ns\":100,\"boot_ns\":1,\"event\":\"a\",\"host\":\"n1\"}\n");
    write_file("n1/events.jsonl", "{\"n\":2,\"wall_ns\":300,\"boot_ns\":3,\"event\":\"c\",\"host\":\"n1\",\"vm\":\"web\"}\n"
                                  "{\"n\":4,\"wall_ns\":400,\"boot_ns\":4,\"event\":\"e\",\"host\":\"n1\"}\n"
                                  "{\"n\":3,\"wall_ns\":400,\"boot_ns\":4,\"event\":\"d\",\"host\":\"n1\"}\n{\"n\":5,\"wal");
    write_file("n1/keeper.log", "{\"n\":1,\"wall_ns\":1,\"event\":\"not an events file\"}\n");
    write_file("coordinator",
               "{\"n\":1,\"wall_ns\":200,\"boot_ns\":9,\"event\":\"b\",\"host\":\"c1\",\"node\":\"n1\",\"vm\":\"web\"}\n7\n");
}

static void drop_folder(void)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    ck_assert_int_eq(system(command), 0);
}

/* Names of the events that are left, in order. */
static void loaded(const struct events_filter *filter, const char *want, unsigned want_bad)
{
    char file[128], names[64] = "";
    char *const paths[] = {folder, file};
    unsigned bad;
    json_t *events, *event;
    size_t i;

    snprintf(file, sizeof(file), "%s/coordinator", folder); /* named: whatever it is called */
    ck_assert_msg(events_load(paths, 2, filter, &events, &bad, &why) == 0, "%s", why.text);
    json_array_foreach(events, i, event) strcat(names, json_string_value(json_object_get(event, "event")));
    ck_assert_str_eq(names, want);
    ck_assert_uint_eq(bad, want_bad);
    json_decref(events);
}

START_TEST(files_of_several_machines_become_one_story_in_order_of_time)
{
    loaded(&(struct events_filter){0}, "abcde", 2);
}
END_TEST

START_TEST(a_story_can_be_cut_down_to_a_vm_a_node_and_a_time)
{
    loaded(&(struct events_filter){.vm = "web"}, "bc", 2);
    loaded(&(struct events_filter){.node = "n1"}, "abcde", 2);
    loaded(&(struct events_filter){.node = "c1"}, "b", 2);
    loaded(&(struct events_filter){.since_ns = 300}, "cde", 2);
    loaded(&(struct events_filter){.vm = "web", .since_ns = 300}, "c", 2);
}
END_TEST

/* A machine that loses its power leaves bytes of zero where a line was not written yet; the next start goes on behind them. */
START_TEST(lines_behind_bytes_of_zero_are_read_and_those_count_as_bad)
{
    static const char text[] = "{\"wall_ns\":500,\"event\":\"f\",\"host\":\"n1\"}\n{\"wall\0\0\0\0\0\n\0\n"
                               "{\"wall_ns\":600,\"event\":\"g\",\"host\":\"n1\"}\n";
    char path[128];
    FILE *file;

    snprintf(path, sizeof(path), "%s/n1/events.jsonl.2", folder);
    file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(text, 1, sizeof(text) - 1, file), sizeof(text) - 1);
    fclose(file);
    loaded(&(struct events_filter){.since_ns = 450}, "fg", 4);
}
END_TEST

START_TEST(a_folder_without_events_and_a_path_that_is_not_there_are_refused)
{
    char empty[128], *paths[] = {empty};
    unsigned bad;
    json_t *events;

    snprintf(empty, sizeof(empty), "%s/empty", folder);
    ck_assert_int_eq(events_load(paths, 1, &(struct events_filter){0}, &events, &bad, &why), -ENOENT);
    ck_assert_int_eq(mkdir(empty, 0700), 0);
    ck_assert_int_eq(events_load(paths, 1, &(struct events_filter){0}, &events, &bad, &why), -ENODATA);
    ck_assert_ptr_nonnull(strstr(why.text, "events.jsonl"));
}
END_TEST

START_TEST(times_are_dates_or_so_long_ago)
{
    static const char *const wrong[] = {"", "x", "10", "10x", "-5m", "5mm", "2026-11-23", "2026-13-23T00:00:00", "999999999d"};
    uint64_t now = UINT64_C(2000000) * MST_NS_PER_S, ns;

    ck_assert_int_eq(events_time("10m", now, &ns), 0);
    ck_assert_uint_eq(ns, UINT64_C(1999400) * MST_NS_PER_S);
    ck_assert_int_eq(events_time("1970-01-02T00:00:01Z", now, &ns), 0);
    ck_assert_uint_eq(ns, UINT64_C(86401) * MST_NS_PER_S);
    for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        ck_assert_msg(events_time(wrong[i], now, &ns) == -EINVAL, "'%s' was taken", wrong[i]);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("events");
    TCase *tcase = tcase_create("events");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_add_checked_fixture(tcase, make_folder, drop_folder);
    tcase_add_test(tcase, files_of_several_machines_become_one_story_in_order_of_time);
    tcase_add_test(tcase, a_story_can_be_cut_down_to_a_vm_a_node_and_a_time);
    tcase_add_test(tcase, lines_behind_bytes_of_zero_are_read_and_those_count_as_bad);
    tcase_add_test(tcase, a_folder_without_events_and_a_path_that_is_not_there_are_refused);
    tcase_add_test(tcase, times_are_dates_or_so_long_ago);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
