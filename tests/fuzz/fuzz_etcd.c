/* An answer of etcd's JSON gateway: what the store's back end reads of it, down to the rows. The first byte picks the table that keys are read as. */
#include "fuzz.h"

#include "coordinator/io/etcd.h"
#include "coordinator/io/store_json.h"
#include "coordinator/io/store_rows.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct mst_definition definition, again_definition;

/* A row that was taken is written as it was read. */
static void row_promise(const struct mst_row *row)
{
    struct mst_row again;
    json_t *json = mst_row_json(row);
    char key[MST_ROW_KEY_BYTES];
    json_t *second;

    FUZZ_CHECK(json != NULL && mst_row_key(row, key, sizeof(key)) == 0);
    FUZZ_CHECK(mst_row_read(row->kind, json, &again, &again_definition) == 0);
    second = mst_row_json(&again);
    FUZZ_CHECK(json_equal(json, second));
    json_decref(second);
    json_decref(json);
}

static void one_key(const json_t *entry, enum mst_row_kind kind)
{
    struct mst_etcd_kv kv;
    struct mst_row row;
    json_t *value;

    if (mst_etcd_kv_read(entry, &kv) < 0)
        return;
    FUZZ_CHECK(kv.create_revision > 0 && kv.mod_revision > 0 && kv.value[kv.value_bytes] == '\0');
    value = json_loadb(kv.value, kv.value_bytes, JSON_REJECT_DUPLICATES, NULL);
    if (mst_row_read(kind, value, &row, &definition) == 0)
        row_promise(&row);
    json_decref(value);
    mst_etcd_kv_clear(&kv);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};
    enum mst_row_kind kind = mst_tables[fuzz_u8(&in) % MST_TABLES].kind;
    char *text = fuzz_copy(in.at, in.left);
    json_t *json = json_loadb(text, in.left, JSON_DISABLE_EOF_CHECK | JSON_REJECT_DUPLICATES, NULL);
    const json_t *entry;
    int64_t number;
    size_t i;

    (void)mst_etcd_revision(json);
    (void)mst_etcd_number(json, "TTL", &number);
    for (unsigned at = 0; at < 3; at++) {
        (void)mst_etcd_more(json, at);
        json_array_foreach(mst_etcd_keys(json, at), i, entry) one_key(entry, kind);
    }
    json_decref(json);
    free(text);
    return 0;
}

static void seed_row(unsigned table, const struct mst_row *row, const char *name)
{
    struct fuzz_out *out = calloc(1, sizeof(*out));
    json_t *object = mst_row_json(row);
    char *plain = json_dumps(object, JSON_COMPACT);
    char *value = mst_base64(plain, strlen(plain));
    json_t *answer =
        json_pack("{s:{s:s},s:b,s:[{s:{s:[{s:s,s:s,s:s,s:s}],s:b}}]}", "header", "revision", "7", "succeeded", 1, "responses",
                  "response_range", "kvs", "key", "L2E=", "value", value, "create_revision", "3", "mod_revision", "4", "more", 1);
    char *text = json_dumps(answer, JSON_COMPACT);

    FUZZ_CHECK(text != NULL);
    fuzz_put(out, table, 1);
    fuzz_put_bytes(out, text, strlen(text));
    fuzz_seed(name, out->bytes, out->len);
    free(text);
    json_decref(answer);
    free(value);
    free(plain);
    json_decref(object);
    free(out);
}

void fuzz_seeds(void)
{
    char name[32];

    snprintf(definition.name, sizeof(definition.name), "web01");
    definition.packed_bytes = 3;
    for (unsigned i = 0; i < MST_TABLES; i++) {
        struct mst_row row = {.kind = mst_tables[i].kind};

        if (row.kind == MST_ROW_DEFINITION)
            row.definition = &definition;
        if (row.kind == MST_ROW_FAULT)
            memset(row.fault.text, 0xff, 5); /* no UTF-8 */
        snprintf(name, sizeof(name), "%s", mst_tables[i].name);
        seed_row(i, &row, name);
    }
}
