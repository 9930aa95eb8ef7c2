#include "base/err.h"

#include <check.h>
#include <errno.h>
#include <string.h>

START_TEST(reason_is_formatted_and_error_handed_back)
{
    struct mst_why why;

    ck_assert_int_eq(mst_why_set(&why, -EINVAL, "page %d of %d", 3, 2), -EINVAL);
    ck_assert_str_eq(why.text, "page 3 of 2");
}
END_TEST

START_TEST(reason_nobody_wants_is_dropped)
{
    ck_assert_int_eq(mst_why_set(NULL, -EIO, "%s", "x"), -EIO);
    ck_assert_int_eq(mst_why_prefix(NULL, -EIO, "%s", "x"), -EIO);
}
END_TEST

START_TEST(prefix_goes_in_front)
{
    struct mst_why why;

    mst_why_set(&why, -EIO, "no answer");
    ck_assert_int_eq(mst_why_prefix(&why, -EIO, "node %s", "n1"), -EIO);
    ck_assert_str_eq(why.text, "node n1: no answer");
}
END_TEST

START_TEST(reason_may_quote_itself)
{
    struct mst_why why;

    mst_why_set(&why, -EIO, "no answer");
    mst_why_set(&why, -EIO, "first: %s", why.text);
    ck_assert_str_eq(why.text, "first: no answer");
    mst_why_prefix(&why, -EIO, "twice %s", why.text);
    ck_assert_str_eq(why.text, "twice first: no answer: first: no answer");
}
END_TEST

START_TEST(long_reason_is_cut_and_terminated)
{
    struct mst_why why;
    char text[2 * MST_WHY_BYTES];

    memset(text, 'a', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    mst_why_set(&why, -EIO, "%s", text);
    ck_assert_uint_eq(strlen(why.text), MST_WHY_BYTES - 1);
    mst_why_prefix(&why, -EIO, "node");
    ck_assert_uint_eq(strlen(why.text), MST_WHY_BYTES - 1);
    ck_assert_int_eq(strncmp(why.text, "node: aaa", 9), 0);
    mst_why_prefix(&why, -EIO, "%s", text);
    ck_assert_uint_eq(strlen(why.text), MST_WHY_BYTES - 1);
}
END_TEST

START_TEST(errors_have_names_with_either_sign)
{
    ck_assert_str_eq(mst_errname(-ENOENT), "ENOENT");
    ck_assert_str_eq(mst_errname(ENOENT), "ENOENT");
    ck_assert_str_eq(mst_errname(-99999), "E?");
    ck_assert_str_eq(mst_errname(-2147483647 - 1), "E?");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("base/err");
    TCase *tc = tcase_create("all");
    SRunner *runner;
    int failed;

    tcase_add_test(tc, reason_is_formatted_and_error_handed_back);
    tcase_add_test(tc, reason_nobody_wants_is_dropped);
    tcase_add_test(tc, prefix_goes_in_front);
    tcase_add_test(tc, reason_may_quote_itself);
    tcase_add_test(tc, long_reason_is_cut_and_terminated);
    tcase_add_test(tc, errors_have_names_with_either_sign);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
