#include "cli/show.h"
#include "mainstay.pb-c.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

static char *word(const char *text)
{
    return (char *)(uintptr_t)text;
}

static Mainstay__VmView sample(Mainstay__VmDefinition *definition)
{
    Mainstay__VmView view = MAINSTAY__VM_VIEW__INIT;

    mainstay__vm_definition__init(definition);
    definition->name = word("web");
    definition->memory_mib = 16;
    definition->has_protect = 1;
    definition->protect = MAINSTAY__PROTECT__PROTECT_LOCAL;
    view.vm = word("web");
    view.state = MAINSTAY__VM_RUN_STATE__VM_RUNNING;
    view.node = word("n1");
    view.has_epoch = 1;
    view.epoch = 7;
    view.definition = definition;
    return view;
}

START_TEST(message_becomes_an_object_with_the_names_of_the_protocol)
{
    Mainstay__VmDefinition definition;
    Mainstay__VmView view = sample(&definition);
    json_t *object = show_message_json(&view.base);
    char buf[64];

    ck_assert_str_eq(show_value(object, "vm", buf, sizeof(buf)), "web");
    ck_assert_str_eq(show_value(object, "state", buf, sizeof(buf)), "running");
    ck_assert_str_eq(show_value(object, "definition.protect", buf, sizeof(buf)), "local");
    ck_assert_str_eq(show_value(object, "epoch", buf, sizeof(buf)), "7");
    json_decref(object);
}
END_TEST

START_TEST(unset_fields_are_left_out_and_shown_as_a_dash)
{
    Mainstay__VmDefinition definition;
    Mainstay__VmView view = sample(&definition);
    json_t *object = show_message_json(&view.base);
    char buf[64];

    ck_assert_ptr_null(json_object_get(object, "save_seq"));
    ck_assert_str_eq(show_value(object, "save_seq", buf, sizeof(buf)), "-");
    ck_assert_str_eq(show_value(object, "definition.boot_kernel.x", buf, sizeof(buf)), "-");
    json_decref(object);
}
END_TEST

START_TEST(identities_are_hexadecimal_and_booleans_words)
{
    Mainstay__NodeView node = MAINSTAY__NODE_VIEW__INIT;
    json_t *object;
    char buf[64];

    node.node = word("n1");
    node.node_id = 1;
    node.state = MAINSTAY__NODE_STATE__NODE_FAILING;
    node.has_instance = 1;
    node.instance = 0xab;
    node.has_agent_up = node.agent_up = 1;
    object = show_message_json(&node.base);
    ck_assert_str_eq(show_value(object, "instance", buf, sizeof(buf)), "0x00000000000000ab");
    ck_assert_str_eq(show_value(object, "agent_up", buf, sizeof(buf)), "yes");
    ck_assert_str_eq(show_value(object, "state", buf, sizeof(buf)), "failing");
    json_decref(object);
}
END_TEST

START_TEST(lists_are_arrays_also_when_empty)
{
    Mainstay__View view = MAINSTAY__VIEW__INIT;
    json_t *object = show_message_json(&view.base);

    ck_assert(json_is_array(json_object_get(object, "nodes")));
    ck_assert_uint_eq(json_array_size(json_object_get(object, "nodes")), 0);
    json_decref(object);
}
END_TEST

START_TEST(bytes_are_hex_and_repeated_strings_a_list)
{
    Mainstay__VmDefinition definition = MAINSTAY__VM_DEFINITION__INIT;
    Mainstay__ConsoleData data = MAINSTAY__CONSOLE_DATA__INIT;
    char *nodes[] = {word("n1"), word("n2")};
    uint8_t bytes[] = {0, 0xff};
    json_t *object;

    definition.name = data.vm = word("web");
    definition.n_allowed_nodes = 2;
    definition.allowed_nodes = nodes;
    object = show_message_json(&definition.base);
    ck_assert_str_eq(json_string_value(json_array_get(json_object_get(object, "allowed_nodes"), 1)), "n2");
    json_decref(object);
    data.data.data = bytes;
    data.data.len = sizeof(bytes);
    object = show_message_json(&data.base);
    ck_assert_str_eq(json_string_value(json_object_get(object, "data")), "00ff");
    json_decref(object);
}
END_TEST

START_TEST(table_and_json_say_the_same)
{
    static const struct show_column columns[] = {{"VM", "vm", NULL, 0}, {"AGE", "age", " ms", 1}, {"NOTE", "text", NULL, 0}};
    json_t *rows = json_pack("[{s:s, s:i}, {s:s, s:s}]", "vm", "web", "age", 12, "vm", "db", "text", "held");
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);

    ck_assert_int_eq(show_table(out, rows, columns, 3, 0), 0);
    fclose(out);
    ck_assert_ptr_nonnull(strstr(text, "VM"));
    ck_assert_ptr_nonnull(strstr(text, "web 12 ms -"));
    ck_assert_ptr_nonnull(strstr(text, "db      - held"));
    free(text);
    json_decref(rows);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cli_show");
    TCase *tcase = tcase_create("show");
    SRunner *runner;
    int failed;

    tcase_add_test(tcase, message_becomes_an_object_with_the_names_of_the_protocol);
    tcase_add_test(tcase, unset_fields_are_left_out_and_shown_as_a_dash);
    tcase_add_test(tcase, identities_are_hexadecimal_and_booleans_words);
    tcase_add_test(tcase, lists_are_arrays_also_when_empty);
    tcase_add_test(tcase, bytes_are_hex_and_repeated_strings_a_list);
    tcase_add_test(tcase, table_and_json_say_the_same);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
