#include "coordinator/io/store_json.h"

#include "coordinator/io/etcd.h"
#include "coordinator/io/store_rows.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct mst_definition definition, definition_back;

/* --- base64 --- */

START_TEST(base64_is_that_of_rfc_4648)
{
    static const struct {
        const char *plain, *coded;
    } vectors[] = {{"", ""},
                   {"f", "Zg=="},
                   {"fo", "Zm8="},
                   {"foo", "Zm9v"},
                   {"foob", "Zm9vYg=="},
                   {"fooba", "Zm9vYmE="},
                   {"foobar", "Zm9vYmFy"},
                   {"\xff\xfe\xfd", "//79"}};

    for (unsigned i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++) {
        char *text = mst_base64(vectors[i].plain, strlen(vectors[i].plain));
        char *back;
        size_t n;

        ck_assert_str_eq(text, vectors[i].coded);
        ck_assert_int_eq(mst_base64_read(text, &back, &n), 0);
        ck_assert_uint_eq(n, strlen(vectors[i].plain));
        ck_assert_mem_eq(back, vectors[i].plain, n + 1); /* with its terminating zero */
        free(back);
        free(text);
    }
}
END_TEST

START_TEST(what_is_no_base64_is_refused)
{
    static const char *const bads[] = {"Z",    "Zg",   "Zg=",  "Zg==Zg==",        "=Zg=", "====", "Zm9v\n", " Zm9v", "Zm9v ",
                                       "Z===", "Zm9*", "Zm-v", "\xc3\xa4\xc3\xa4"};

    for (unsigned i = 0; i < sizeof(bads) / sizeof(bads[0]); i++) {
        char *back = NULL;
        size_t n;

        ck_assert_msg(mst_base64_read(bads[i], &back, &n) == -EBADMSG, "'%s' was taken", bads[i]);
    }
}
END_TEST

/* --- rows --- */

/* Every field of the table gets another value; the largest with full. */
static void fill(const struct mst_table *table, struct mst_row *row, bool full)
{
    uint8_t *data = table->kind == MST_ROW_DEFINITION ? (uint8_t *)&definition : (uint8_t *)&row->meta;

    memset(row, 0, sizeof(*row));
    memset(&definition, 0, sizeof(definition));
    row->kind = table->kind;
    for (unsigned i = 0; i < table->count; i++) {
        const struct mst_field *field = &table->fields[i];
        uint8_t *at = data + field->offset;

        if (field->type == MST_FIELD_TEXT) {
            memset(at, full ? 'z' : 'a', full ? field->bytes - 1 : 3);
        } else if (field->type == MST_FIELD_BLOB) {
            for (size_t k = 0; k < mst_field_bytes(field, data); k++)
                at[k] = (uint8_t)(k * 7 + i);
        } else if (full && field->type == MST_FIELD_U64) {
            memset(at, 0xff, 8);
        } else if (field->type == MST_FIELD_U64 || field->type == MST_FIELD_U32) {
            at[0] = (uint8_t)(i + 1);
        } else {
            *at = 1;
        }
    }
    if (table->kind == MST_ROW_DEFINITION) {
        definition.allowed_count = 2;
        definition.packed_bytes = full ? MST_DEFINITION_BYTES : 5;
        memset(definition.packed, 0, sizeof(definition.packed));
        memset(definition.packed, 0xa5, definition.packed_bytes);
        row->definition = &definition;
    }
    if (table->kind == MST_ROW_STEP)
        row->step.n = 5;
    if (table->kind == MST_ROW_MIRROR)
        row->mirror.n = MST_MIRRORS_MAX - 1;
}

static bool same(const struct mst_row *a, const struct mst_row *b)
{
    if (a->kind == MST_ROW_DEFINITION)
        return memcmp(a->definition, b->definition, sizeof(*a->definition)) == 0;
    return memcmp(&a->meta, &b->meta, sizeof(*a) - offsetof(struct mst_row, meta)) == 0;
}

START_TEST(every_field_of_every_row_comes_back)
{
    for (unsigned i = 0; i < 2 * MST_TABLES; i++) {
        const struct mst_table *table = &mst_tables[i / 2];
        struct mst_row row, back;
        char *text;
        json_t *json, *again;

        fill(table, &row, i % 2);
        json = mst_row_json(&row);
        ck_assert_ptr_nonnull(json);
        text = json_dumps(json, JSON_COMPACT);
        again = json_loads(text, 0, NULL);
        ck_assert_msg(mst_row_read(table->kind, again, &back, &definition_back) == 0, "%s: %s", table->name, text);
        ck_assert_msg(same(&row, &back), "%s: %s", table->name, text);
        /* The comparison can fail. */
        ((uint8_t *)(table->kind == MST_ROW_DEFINITION ? (void *)&definition_back : &back.meta))[table->fields[0].offset] ^= 1;
        ck_assert(!same(&row, &back));
        json_decref(again);
        json_decref(json);
        free(text);
    }
}
END_TEST

START_TEST(a_text_that_is_no_utf8_comes_back_byte_by_byte)
{
    struct mst_row row = {.kind = MST_ROW_FAULT, .fault = {.id = 1, .text = "cut in the middle of an \xc3"}};
    struct mst_row back;
    json_t *json = mst_row_json(&row);

    ck_assert(json_is_array(json_object_get(json, "text")));
    ck_assert_int_eq(mst_row_read(MST_ROW_FAULT, json, &back, &definition_back), 0);
    ck_assert_str_eq(back.fault.text, row.fault.text);
    json_decref(json);
}
END_TEST

START_TEST(a_row_that_is_not_whole_or_not_ours_is_refused)
{
    static const struct {
        const char *field;
        const char *value; /* NULL: left out */
    } bads[] = {{"id", NULL},        {"id", "\"1\""},
                {"id", "1.5"},       {"id", "null"},
                {"kind", "-1"},      {"kind", "4294967296"},
                {"vm", "5"},         {"vm", "[]"},
                {"vm", "[\"Zg=\"]"}, {"vm", "[\"AGE=\"]"},
                {"vm", "[1]"},       {"vm", "[\"YQ==\",\"YQ==\"]"},
                {"stranger", "1"},   {"vm", "\"0123456789012345678901234567890123456789012345678901234567890123\""}};
    struct mst_row row = {.kind = MST_ROW_FAULT, .fault = {.id = 1, .vm = "web"}};
    struct mst_row back;

    for (unsigned i = 0; i < sizeof(bads) / sizeof(bads[0]); i++) {
        json_t *json = mst_row_json(&row);

        ck_assert_int_eq(mst_row_read(MST_ROW_FAULT, json, &back, &definition_back), 0);
        if (bads[i].value)
            json_object_set_new(json, bads[i].field, json_loads(bads[i].value, JSON_DECODE_ANY, NULL));
        else
            json_object_del(json, bads[i].field);
        ck_assert_msg(mst_row_read(MST_ROW_FAULT, json, &back, &definition_back) == -EBADMSG, "%s %s was taken", bads[i].field,
                      bads[i].value ? bads[i].value : "left out");
        json_decref(json);
    }
    ck_assert_int_eq(mst_row_read(MST_ROW_FAULT, NULL, &back, &definition_back), -EBADMSG);
}
END_TEST

START_TEST(what_an_older_version_did_not_write_is_zero_and_what_it_wrote_is_wanted)
{
    struct mst_row row = {.kind = MST_ROW_META, .meta = {.term = 3, .decision = 9, .terms = {[3] = {3, 7, 8}}}};
    struct mst_row back;
    json_t *json = mst_row_json(&row);

    json_object_del(json, "decision");
    json_object_del(json, "terms");
    ck_assert_int_eq(mst_row_read(MST_ROW_META, json, &back, &definition_back), 0);
    ck_assert_uint_eq(back.meta.term, 3);
    ck_assert_uint_eq(back.meta.decision, 0);
    ck_assert_uint_eq(back.meta.terms[3].term, 0);
    json_object_set_new(json, "stranger", json_integer(1)); /* as many fields as there may be, but not ours */
    ck_assert_int_eq(mst_row_read(MST_ROW_META, json, &back, &definition_back), -EBADMSG);
    json_object_del(json, "stranger");
    json_object_del(json, "epoch_floor");
    ck_assert_int_eq(mst_row_read(MST_ROW_META, json, &back, &definition_back), -EBADMSG);
    json_decref(json);
}
END_TEST

START_TEST(blobs_have_one_length_and_states_are_checked)
{
    struct mst_row row = {.kind = MST_ROW_NODE, .node = {.id = 1}};
    struct mst_row back;
    json_t *json = mst_row_json(&row);

    json_object_set_new(json, "host_boot_id", json_string("AAAA"));
    ck_assert_int_eq(mst_row_read(MST_ROW_NODE, json, &back, &definition_back), -EBADMSG);
    json_decref(json);
    row = (struct mst_row){.kind = MST_ROW_RECOVERY, .recovery = {.id = 1, .state = MST_REC_STATES}};
    json = mst_row_json(&row);
    ck_assert_int_eq(mst_row_read(MST_ROW_RECOVERY, json, &back, &definition_back), -EBADMSG);
    json_decref(json);
}
END_TEST

static void key_is(const struct mst_row *row, const char *want)
{
    char key[MST_ROW_KEY_BYTES];

    ck_assert_int_eq(mst_row_key(row, key, sizeof(key)), 0);
    ck_assert_str_eq(key, want);
}

START_TEST(keys_sort_as_numbers_do)
{
    struct mst_row deleted = {.kind = MST_ROW_VM_DELETE};
    char key[MST_ROW_KEY_BYTES];

    snprintf(definition.name, sizeof(definition.name), "web01");
    key_is(&(struct mst_row){.kind = MST_ROW_META}, "meta");
    key_is(&(struct mst_row){.kind = MST_ROW_NODE, .node = {.id = 17}}, "nodes/0000000000000011");
    key_is(&(struct mst_row){.kind = MST_ROW_DEFINITION, .definition = &definition}, "definitions/web01");
    key_is(&(struct mst_row){.kind = MST_ROW_VM, .vm = {.name = "web01"}}, "vms/web01");
    key_is(&(struct mst_row){.kind = MST_ROW_FAULT, .fault = {.id = UINT64_MAX}}, "faults/ffffffffffffffff");
    key_is(&(struct mst_row){.kind = MST_ROW_RECOVERY, .recovery = {.id = 9}}, "recoveries/0000000000000009");
    key_is(&(struct mst_row){.kind = MST_ROW_STEP, .step = {.recovery_id = 9, .n = 10}}, "recovery_steps/0000000000000009/000a");
    key_is(&(struct mst_row){.kind = MST_ROW_RVM, .rvm = {.recovery_id = 9, .vm = "a"}}, "recovery_vms/0000000000000009/a");
    key_is(&(struct mst_row){.kind = MST_ROW_PROOF, .proof = {.id = 3}}, "proofs/0000000000000003");
    key_is(&(struct mst_row){.kind = MST_ROW_MIRROR, .mirror = {.vm = "web01", .n = 3}}, "mirrors/web01/0003");
    ck_assert_int_eq(mst_row_key(&deleted, key, sizeof(key)), -EINVAL);
    ck_assert_int_eq(mst_row_key(&(struct mst_row){.kind = MST_ROW_META}, key, 4), -EINVAL);
}
END_TEST

/* --- etcd's answers --- */

START_TEST(numbers_of_the_gateway_are_texts_and_what_is_none_is_refused)
{
    static const char *const bads[] = {"\"\"", "\" 1\"", "\"+1\"", "\"1x\"", "\"9223372036854775808\"", "true", "[]", "1.5"};
    json_t *good = json_loads("{\"a\":\"12\",\"b\":7,\"c\":\"-3\"}", 0, NULL);
    int64_t n;

    ck_assert(mst_etcd_number(good, "a", &n) && n == 12);
    ck_assert(mst_etcd_number(good, "b", &n) && n == 7);
    ck_assert(mst_etcd_number(good, "c", &n) && n == -3);
    ck_assert(mst_etcd_number(good, "absent", &n) && n == 0);
    for (unsigned i = 0; i < sizeof(bads) / sizeof(bads[0]); i++) {
        json_object_set_new(good, "a", json_loads(bads[i], JSON_DECODE_ANY, NULL));
        ck_assert_msg(!mst_etcd_number(good, "a", &n), "%s was taken", bads[i]);
    }
    json_decref(good);
}
END_TEST

START_TEST(keys_and_values_of_an_answer_are_checked)
{
    static const char *const bads[] = {
        "{}",
        "{\"key\":\"YQ==\"}", /* without revisions */
        "{\"key\":\"YQ=\",\"create_revision\":\"1\",\"mod_revision\":\"1\"}",
        "{\"key\":\"YQ==\",\"value\":5,\"create_revision\":\"1\",\"mod_revision\":\"1\"}",
        "{\"key\":\"AGE=\",\"create_revision\":\"1\",\"mod_revision\":\"1\"}", /* a zero byte in a key */
        "{\"key\":\"YQ==\",\"create_revision\":\"0\",\"mod_revision\":\"1\"}",
        "[]",
    };
    json_t *json =
        json_loads("{\"responses\":[{\"response_put\":{}},{\"response_range\":{\"more\":true,\"kvs\":[{\"key\":\"YQ==\","
                   "\"value\":\"YmM=\",\"create_revision\":\"3\",\"mod_revision\":\"4\"}]}}],\"header\":{\"revision\":\"9\"}}",
                   0, NULL);
    struct mst_etcd_kv kv;

    ck_assert_int_eq(mst_etcd_revision(json), 9);
    ck_assert_uint_eq(json_array_size(mst_etcd_keys(json, 0)), 0);
    ck_assert_uint_eq(json_array_size(mst_etcd_keys(json, 2)), 0);
    ck_assert_uint_eq(json_array_size(mst_etcd_keys(NULL, 0)), 0);
    ck_assert(mst_etcd_more(json, 1) && !mst_etcd_more(json, 0));
    ck_assert_int_eq(mst_etcd_kv_read(json_array_get(mst_etcd_keys(json, 1), 0), &kv), 0);
    ck_assert_str_eq(kv.key, "a");
    ck_assert_str_eq(kv.value, "bc");
    ck_assert_int_eq(kv.create_revision, 3);
    ck_assert_int_eq(kv.mod_revision, 4);
    mst_etcd_kv_clear(&kv);
    json_decref(json);
    for (unsigned i = 0; i < sizeof(bads) / sizeof(bads[0]); i++) {
        json = json_loads(bads[i], 0, NULL);
        ck_assert_msg(mst_etcd_kv_read(json, &kv) == -EBADMSG, "%s was taken", bads[i]);
        json_decref(json);
    }
}
END_TEST

START_TEST(a_transaction_is_what_etcd_wants_it_to_be)
{
    json_t *txn = mst_etcd_txn(json_pack("[o,o]", mst_etcd_created("a", 0), mst_etcd_modified("b", 7)),
                               json_pack("[o,o]", mst_etcd_put("c", "v", 5), mst_etcd_delete("d", "e")),
                               json_pack("[o,o]", mst_etcd_range("f", NULL, 0), mst_etcd_range("g", "h", 9)));
    char *text = json_dumps(txn, JSON_COMPACT | JSON_SORT_KEYS);

    ck_assert_str_eq(text,
                     "{\"compare\":[{\"create_revision\":\"0\",\"key\":\"YQ==\",\"result\":\"EQUAL\",\"target\":\"CREATE\"},"
                     "{\"key\":\"Yg==\",\"mod_revision\":\"7\",\"result\":\"EQUAL\",\"target\":\"MOD\"}],"
                     "\"failure\":[{\"request_range\":{\"key\":\"Zg==\"}},"
                     "{\"request_range\":{\"key\":\"Zw==\",\"limit\":\"9\",\"range_end\":\"aA==\"}}],"
                     "\"success\":[{\"request_put\":{\"key\":\"Yw==\",\"lease\":\"5\",\"value\":\"dg==\"}},"
                     "{\"request_delete_range\":{\"key\":\"ZA==\",\"range_end\":\"ZQ==\"}}]}");
    free(text);
    json_decref(txn);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("store_json");
    TCase *tcase = tcase_create("store_json");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_add_test(tcase, base64_is_that_of_rfc_4648);
    tcase_add_test(tcase, what_is_no_base64_is_refused);
    tcase_add_test(tcase, every_field_of_every_row_comes_back);
    tcase_add_test(tcase, a_text_that_is_no_utf8_comes_back_byte_by_byte);
    tcase_add_test(tcase, a_row_that_is_not_whole_or_not_ours_is_refused);
    tcase_add_test(tcase, what_an_older_version_did_not_write_is_zero_and_what_it_wrote_is_wanted);
    tcase_add_test(tcase, blobs_have_one_length_and_states_are_checked);
    tcase_add_test(tcase, keys_sort_as_numbers_do);
    tcase_add_test(tcase, numbers_of_the_gateway_are_texts_and_what_is_none_is_refused);
    tcase_add_test(tcase, keys_and_values_of_an_answer_are_checked);
    tcase_add_test(tcase, a_transaction_is_what_etcd_wants_it_to_be);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
