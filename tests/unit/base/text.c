#include "base/text.h"
#include "base/limits.h"

#include <check.h>
#include <errno.h>
#include <string.h>

START_TEST(names_are_short_and_of_few_characters)
{
    char name[MST_NAME_BYTES + 1];

    ck_assert_int_eq(mst_name_check("web01"), 0);
    ck_assert_int_eq(mst_name_check("0"), 0);
    ck_assert_int_eq(mst_name_check("a-b-"), 0);
    ck_assert_int_eq(mst_name_check(""), -EINVAL);
    ck_assert_int_eq(mst_name_check("-a"), -EINVAL);
    ck_assert_int_eq(mst_name_check("Web"), -EINVAL);
    ck_assert_int_eq(mst_name_check("a_b"), -EINVAL);
    ck_assert_int_eq(mst_name_check("../a"), -EINVAL);
    ck_assert_int_eq(mst_name_check("a\n"), -EINVAL);
    ck_assert_int_eq(mst_name_check("\xc3\xa4"), -EINVAL);
    memset(name, 'a', sizeof(name));
    name[MST_NAME_BYTES] = '\0';
    ck_assert_int_eq(mst_name_check(name), -EINVAL);
    name[MST_NAME_BYTES - 1] = '\0';
    ck_assert_int_eq(mst_name_check(name), 0);
}
END_TEST

START_TEST(addresses_are_numeric_and_complete)
{
    ck_assert_int_eq(mst_address_check("10.7.0.1"), 0);
    ck_assert_int_eq(mst_address_check("fe80::1"), 0);
    ck_assert_int_eq(mst_address_check("::ffff:10.7.0.1"), 0);
    ck_assert_int_eq(mst_address_check(""), -EINVAL);
    ck_assert_int_eq(mst_address_check("10.7.1"), -EINVAL);
    ck_assert_int_eq(mst_address_check("10.7.0.256"), -EINVAL);
    ck_assert_int_eq(mst_address_check("10.7.0.1 "), -EINVAL);
    ck_assert_int_eq(mst_address_check("localhost"), -EINVAL);
    ck_assert_int_eq(mst_address_check("fe80::1::2"), -EINVAL);
    ck_assert_int_eq(mst_address_check("1:2"), -EINVAL);
}
END_TEST

static const char *const bad_texts[] = {
    "a\x1b[31m",        /* escape */
    "a\nb",             /* line end */
    "\x7f",             /* delete */
    "\xc2\x85",         /* next line, C1 */
    "\xc0\xaf",         /* overlong slash */
    "\xe0\x80\xaf",     /* the same, longer */
    "\xf0\x80\x80\xaf", /* and longer */
    "\xed\xa0\x80",     /* surrogate */
    "\xf4\x90\x80\x80", /* past the last character */
    "\xf5\x80\x80\x80", /* no such start */
    "\x80",             /* continuation alone */
    "\xe2\x82",         /* cut short by the end */
    "\xe2\x82x",        /* cut short by a letter */
    "\xff",
};

START_TEST(texts_are_printable_utf_8)
{
    ck_assert_int_eq(mst_text_check(""), 0);
    ck_assert_int_eq(mst_text_check("page 3: it's \"broken\" ~"), 0);
    ck_assert_int_eq(mst_text_check("\xc2\xa0 \xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80 \xf4\x8f\xbf\xbf"), 0);
    ck_assert_int_eq(mst_text_check(bad_texts[_i]), -EINVAL);
}
END_TEST

START_TEST(repaired_text_passes_and_keeps_what_was_good)
{
    char text[64];

    strcpy(text, "x ");
    strcat(text, bad_texts[_i]);
    mst_text_repair(text);
    ck_assert_int_eq(mst_text_check(text), 0);
    ck_assert_uint_eq(strlen(text), 2 + strlen(bad_texts[_i]));
    ck_assert_int_eq(strncmp(text, "x ", 2), 0);
    ck_assert_ptr_nonnull(strchr(text, '?'));
    strcpy(text, "good \xc3\xa4");
    mst_text_repair(text);
    ck_assert_str_eq(text, "good \xc3\xa4");
}
END_TEST

#define BAD_TEXTS ((int)(sizeof(bad_texts) / sizeof(bad_texts[0])))

int main(void)
{
    Suite *suite = suite_create("base/text");
    TCase *tc = tcase_create("all");
    SRunner *runner;
    int failed;

    tcase_add_test(tc, names_are_short_and_of_few_characters);
    tcase_add_test(tc, addresses_are_numeric_and_complete);
    tcase_add_loop_test(tc, texts_are_printable_utf_8, 0, BAD_TEXTS);
    tcase_add_loop_test(tc, repaired_text_passes_and_keeps_what_was_good, 0, BAD_TEXTS);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
