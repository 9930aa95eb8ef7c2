#include "base/event.h"

#include "base/clock.h"
#include "base/file.h"

#include <check.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64], path[128], old[136];

static void make_folder(void)
{
    unsetenv("JOURNAL_STREAM");
    snprintf(folder, sizeof(folder), "/tmp/mst-event-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/events.jsonl", folder);
    snprintf(old, sizeof(old), "%s.1", path);
}

static void drop_folder(void)
{
    mst_event_close();
    unlink(path);
    unlink(old);
    rmdir(folder);
}

static void open_it(uint64_t max_bytes)
{
    ck_assert_int_eq(mst_event_open(path, max_bytes, "test", "n1", 0xabc), 0);
}

/* All lines of a text, each checked to be one JSON object. */
static json_t *lines_of(char *text)
{
    json_t *lines = json_array();
    char *rest = text;
    char *line;

    while ((line = strsep(&rest, "\n")) && rest) {
        json_error_t error;
        json_t *object = json_loads(line, JSON_REJECT_DUPLICATES, &error);

        ck_assert_msg(object != NULL, "%s: %s", error.text, line);
        json_array_append_new(lines, object);
    }
    ck_assert_str_eq(line, ""); /* the last line is whole */
    return lines;
}

static json_t *lines_in(const char *file)
{
    char *text;
    size_t len;
    json_t *lines;

    ck_assert_int_eq(mst_file_read(file, 64 << 20, &text, &len), 0);
    ck_assert_uint_eq(strlen(text), len);
    lines = lines_of(text);
    free(text);
    return lines;
}

static const char *string(const json_t *line, const char *key)
{
    return json_string_value(json_object_get(line, key));
}

static json_int_t number(const json_t *line, const char *key)
{
    return json_integer_value(json_object_get(line, key));
}

START_TEST(a_line_says_what_when_where_and_nothing_that_does_not_apply)
{
    json_t *lines, *line;
    uint64_t before_ns = mst_now_ns();

    open_it(0);
    mst_event(&(struct mst_event){.kind = MST_EV_GRANT_GIVEN,
                                  .vm = "web01",
                                  .epoch = 7,
                                  .node = "n2",
                                  .instance = UINT64_MAX,
                                  .term = 3,
                                  .err = -2,
                                  .what = "x"});
    mst_event_close();
    lines = lines_in(path);
    ck_assert_uint_eq(json_array_size(lines), 3);
    ck_assert_str_eq(string(json_array_get(lines, 0), "event"), "process.started");
    ck_assert_str_eq(string(json_array_get(lines, 2), "event"), "process.stopped");
    line = json_array_get(lines, 1);
    ck_assert_str_eq(string(line, "event"), "grant.given");
    ck_assert_str_eq(string(line, "host"), "n1");
    ck_assert_str_eq(string(line, "self"), "0000000000000abc");
    ck_assert_str_eq(string(line, "vm"), "web01");
    ck_assert_str_eq(string(line, "instance"), "ffffffffffffffff");
    ck_assert_str_eq(string(line, "err"), "ENOENT");
    ck_assert_int_eq(number(line, "epoch"), 7);
    ck_assert_int_eq(number(line, "term"), 3);
    ck_assert_int_eq(number(line, "n"), 2);
    ck_assert_uint_eq(strlen(string(line, "boot_id")), 32);
    ck_assert_int_ge(number(line, "boot_ns"), (json_int_t)before_ns);
    ck_assert_ptr_null(json_object_get(line, "seq"));
    ck_assert_ptr_null(json_object_get(line, "text"));
    json_decref(lines);
}
END_TEST

START_TEST(no_bytes_of_a_peer_can_forge_or_break_a_line)
{
    json_t *lines;
    char text[600];
    unsigned rounds = 500;

    srand((unsigned)_i);
    open_it(0);
    for (unsigned i = 0; i < rounds; i++) {
        unsigned len = (unsigned)rand() % (sizeof(text) - 1);

        for (unsigned k = 0; k < len; k++)
            text[k] = (char)(1 + rand() % 255);
        text[len] = 0;
        mst_event(&(struct mst_event){.kind = MST_EV_ORDER_REFUSED, .vm = text, .text = text});
        usleep(i % 50 == 0 ? 1000 : 0);
    }
    mst_event(&(struct mst_event){.kind = MST_EV_ORDER_REFUSED, .text = "a\"b\\c\n\xc3\xa9\xff"});
    mst_event_close();
    lines = lines_in(path);
    ck_assert_uint_eq(json_array_size(lines), rounds + 3);
    ck_assert_str_eq(string(json_array_get(lines, rounds + 1), "text"), "a\"b\\c\n\xc3\xa9\xef\xbf\xbd");
    json_decref(lines);
}
END_TEST

START_TEST(the_file_and_the_one_before_it_stay_within_their_bound)
{
    uint64_t max = 20000;
    struct stat now, before;
    json_t *lines, *older;

    open_it(max);
    for (unsigned i = 0; i < 1000; i++) {
        mst_event(&(struct mst_event){.kind = MST_EV_SLOT_STATE, .vm = "web01", .seq = i + 1});
        usleep(100);
    }
    mst_event_close();
    ck_assert_int_eq(stat(path, &now), 0);
    ck_assert_int_eq(stat(old, &before), 0);
    ck_assert_uint_le((uint64_t)now.st_size, max);
    ck_assert_uint_le((uint64_t)before.st_size, max);
    lines = lines_in(path);
    older = lines_in(old);
    ck_assert_int_eq(number(json_array_get(lines, 0), "n"),
                     number(json_array_get(older, json_array_size(older) - 1), "n") + 1); /* nothing between is lost */
    json_decref(lines);
    json_decref(older);
}
END_TEST

/* A reader that does not read stands for a disk that hangs. */
START_TEST(a_disk_that_hangs_costs_lines_and_no_time_and_the_loss_is_told)
{
    static char text[1 << 20];
    char padding[300];
    uint64_t start_ns, took_ms;
    size_t used = 0;
    json_int_t holes = 0, last = 0, told = 0;
    json_t *lines, *line;
    size_t i;
    int fd;

    memset(padding, 'x', sizeof(padding) - 1);
    padding[sizeof(padding) - 1] = 0;
    ck_assert_int_eq(mkfifo(path, 0600), 0);
    fd = open(path, O_RDONLY | O_NONBLOCK);
    ck_assert_int_ge(fd, 0);
    open_it(UINT64_MAX);
    start_ns = mst_now_ns();
    for (i = 0; i < 2000; i++)
        mst_event(&(struct mst_event){.kind = MST_EV_SLOT_STATE, .text = padding});
    took_ms = (mst_now_ns() - start_ns) / MST_NS_PER_MS;
    ck_assert_uint_le(took_ms, 2000);
    for (int empty = 0; empty < 200;) {
        ssize_t n = read(fd, text + used, sizeof(text) - 1 - used);

        if (n > 0)
            used += (size_t)n;
        empty = n > 0 ? 0 : empty + 1;
        usleep(1000);
    }
    mst_event(&(struct mst_event){.kind = MST_EV_SLOT_STATE, .text = "after"});
    for (int k = 0; k < 500 && !strstr(text, "after"); k++) {
        ssize_t n = read(fd, text + used, sizeof(text) - 1 - used);

        used += n > 0 ? (size_t)n : 0;
        usleep(1000);
    }
    lines = lines_of(text);
    json_array_foreach(lines, i, line)
    {
        holes += number(line, "n") - last - 1;
        told += number(line, "dropped");
        last = number(line, "n");
    }
    ck_assert_int_gt(holes, 100);
    ck_assert_int_eq(holes, told);
    ck_assert_str_eq(string(json_array_get(lines, json_array_size(lines) - 1), "text"), "after");
    json_decref(lines);
    close(fd);
}
END_TEST

START_TEST(who_it_is_may_become_known_later)
{
    json_t *lines;

    ck_assert_int_eq(mst_event_open(path, 0, "test", NULL, 0), 0);
    mst_event_identity("n3", 5);
    mst_event(&(struct mst_event){.kind = MST_EV_CPU_RUN});
    mst_event_close();
    lines = lines_in(path);
    ck_assert_ptr_null(string(json_array_get(lines, 0), "host"));
    ck_assert_str_eq(string(json_array_get(lines, 1), "host"), "n3");
    json_decref(lines);
}
END_TEST

START_TEST(without_a_place_to_write_to_nothing_happens)
{
    ck_assert_int_eq(mst_event_open("/nonexistent/events.jsonl", 0, "test", "n1", 1), -2);
    mst_event(&(struct mst_event){.kind = MST_EV_CPU_RUN});
    mst_event_close();
    mst_event(&(struct mst_event){.kind = MST_EV_CPU_RUN}); /* closed */
    open_it(0);
}
END_TEST

START_TEST(every_event_has_a_name_of_its_own_and_a_line_in_the_document)
{
    char *text;
    size_t len;

    ck_assert_int_eq(mst_file_read(SOURCE_DIR "/docs/EVENTS.md", 1 << 20, &text, &len), 0);
    for (unsigned i = 0; i < MST_EV_COUNT; i++) {
        const char *name = mst_event_name((enum mst_event_kind)i);
        char want[64];

        snprintf(want, sizeof(want), "| `%s` |", name);
        ck_assert_msg(strstr(text, want) != NULL, "%s is not in docs/EVENTS.md", name);
        ck_assert_uint_eq(mst_event_by_name(name), i); /* the first of that name */
        ck_assert_uint_gt(strlen(mst_event_text((enum mst_event_kind)i)), 10);
    }
    ck_assert_uint_eq(mst_event_by_name("no.such"), MST_EV_COUNT);
    free(text);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("event");
    TCase *tcase = tcase_create("event");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_add_checked_fixture(tcase, make_folder, drop_folder);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, a_line_says_what_when_where_and_nothing_that_does_not_apply);
    tcase_add_loop_test(tcase, no_bytes_of_a_peer_can_forge_or_break_a_line, 0, 4);
    tcase_add_test(tcase, the_file_and_the_one_before_it_stay_within_their_bound);
    tcase_add_test(tcase, a_disk_that_hangs_costs_lines_and_no_time_and_the_loss_is_told);
    tcase_add_test(tcase, who_it_is_may_become_known_later);
    tcase_add_test(tcase, without_a_place_to_write_to_nothing_happens);
    tcase_add_test(tcase, every_event_has_a_name_of_its_own_and_a_line_in_the_document);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
