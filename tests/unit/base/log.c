#include "base/log.h"

#include <check.h>
#include <errno.h>
#include <regex.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What was written to stderr since begin_capture; the tests run in processes of their own. */
static int capture[2];
static int real_stderr;
static char text[8192];

static void begin_capture(void)
{
    ck_assert_int_eq(pipe(capture), 0);
    real_stderr = dup(STDERR_FILENO);
    dup2(capture[1], STDERR_FILENO);
}

static const char *end_capture(void)
{
    ssize_t n;

    dup2(real_stderr, STDERR_FILENO);
    close(real_stderr);
    close(capture[1]);
    n = read(capture[0], text, sizeof(text) - 1);
    ck_assert_int_ge(n, 0);
    text[n] = '\0';
    close(capture[0]);
    return text;
}

START_TEST(line_has_time_level_program_and_text)
{
    regex_t want;
    const char *line;

    mst_log_init("prog");
    begin_capture();
    log_notice("node=%s up", "n1");
    line = end_capture();
    ck_assert_int_eq(regcomp(&want,
                             "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{6}Z notice prog\\[[0-9]+\\] "
                             "node=n1 up\n$",
                             REG_EXTENDED | REG_NOSUB),
                     0);
    ck_assert_msg(regexec(&want, line, 0, NULL, 0) == 0, "line is: %s", line);
    regfree(&want);
}
END_TEST

START_TEST(levels_above_the_chosen_one_are_silent)
{
    setenv("MST_LOG", "warning", 1);
    mst_log_init("prog");
    begin_capture();
    log_error("one");
    log_warning("two");
    log_notice("three");
    log_debug("four");
    mst_log_level_set(MST_LOG_DEBUG);
    log_debug("five");
    end_capture();
    ck_assert_ptr_nonnull(strstr(text, "one\n"));
    ck_assert_ptr_nonnull(strstr(text, "two\n"));
    ck_assert_ptr_null(strstr(text, "three"));
    ck_assert_ptr_null(strstr(text, "four"));
    ck_assert_ptr_nonnull(strstr(text, "five\n"));
}
END_TEST

START_TEST(text_of_a_peer_cannot_forge_a_line)
{
    mst_log_init("prog");
    begin_capture();
    log_notice("peer says: %s", "x\n2026-01-01T00:00:00.000000Z error prog[1] forged\x1b[31m\r");
    end_capture();
    ck_assert_ptr_eq(strchr(text, '\n'), text + strlen(text) - 1);
    ck_assert_ptr_null(strchr(text, '\x1b'));
    ck_assert_ptr_null(strchr(text, '\r'));
}
END_TEST

START_TEST(long_line_is_cut_and_still_ends)
{
    char *long_text = malloc(10000);

    memset(long_text, 'a', 9999);
    long_text[9999] = '\0';
    mst_log_init("prog");
    begin_capture();
    log_notice("%s", long_text);
    end_capture();
    ck_assert_uint_lt(strlen(text), 4096);
    ck_assert_int_eq(text[strlen(text) - 1], '\n');
    ck_assert_int_eq(text[strlen(text) - 2], 'a');
    free(long_text);
}
END_TEST

START_TEST(errno_survives_logging)
{
    mst_log_init("prog");
    begin_capture();
    close(STDERR_FILENO);
    errno = ENOSPC;
    log_error("nobody reads this");
    ck_assert_int_eq(errno, ENOSPC);
    end_capture();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("base/log");
    TCase *tc = tcase_create("all");
    SRunner *runner;
    int failed;

    tcase_add_test(tc, line_has_time_level_program_and_text);
    tcase_add_test(tc, levels_above_the_chosen_one_are_silent);
    tcase_add_test(tc, text_of_a_peer_cannot_forge_a_line);
    tcase_add_test(tc, long_line_is_cut_and_still_ends);
    tcase_add_test(tc, errno_survives_logging);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
