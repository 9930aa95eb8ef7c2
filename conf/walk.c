#include "base/text.h"
#include "conf/document.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- words */

/* Levenshtein's distance, - and _ being the same; words longer than the row are far from everything. */
static unsigned distance(const char *a, size_t a_len, const char *b)
{
    unsigned row[64];
    size_t b_len = strlen(b);

    if (b_len >= 64 || a_len >= 64)
        return 64;
    for (unsigned j = 0; j <= b_len; j++)
        row[j] = j;
    for (unsigned i = 1; i <= a_len; i++) {
        unsigned corner = row[0];
        row[0] = i;
        for (unsigned j = 1; j <= b_len; j++) {
            char from = a[i - 1] == '_' ? '-' : (char)tolower((unsigned char)a[i - 1]);
            char to = b[j - 1] == '_' ? '-' : (char)tolower((unsigned char)b[j - 1]);
            unsigned change = corner + (from != to);
            corner = row[j];
            row[j] = change;
            if (row[j - 1] + 1 < row[j])
                row[j] = row[j - 1] + 1;
            if (corner + 1 < row[j])
                row[j] = corner + 1;
        }
    }
    return row[b_len];
}

void mst_words_add(struct mst_words *words, const char *word, size_t len, const char *given)
{
    size_t used = strlen(words->list);
    unsigned d = distance(word, len, given);

    snprintf(words->list + used, sizeof(words->list) - used, "%s%.*s", used ? ", " : "", (int)len, word);
    if (!words->nearest || d < words->distance) {
        words->nearest = word;
        words->nearest_len = len;
        words->distance = d;
    }
}

const char *mst_words_hint(const struct mst_words *words, const char *given, char buf[static 64])
{
    buf[0] = '\0';
    /* Up to a third of the letters may be wrong; more is another word. */
    if (words->nearest && words->distance <= 1 + strlen(given) / 3)
        snprintf(buf, 64, ", did you mean %.*s", (int)words->nearest_len, words->nearest);
    return buf;
}

const char *mst_excerpt(const char *value, char buf[static 44])
{
    size_t len = strnlen(value, 41);

    snprintf(buf, 44, "%.40s%s", value, len > 40 ? "..." : "");
    mst_text_repair(buf);
    return buf;
}

/* ---------------------------------------------------------------- rules */

/* Whether pattern ("nodes[].port") stands for key ("nodes[3].port"). */
static bool matches(const char *pattern, const char *key)
{
    for (; *pattern && *pattern == *key; pattern++, key++) {
        if (*key == '[')
            key += strspn(key + 1, "0123456789");
    }
    return *pattern == '\0' && *key == '\0';
}

const struct mst_rule *mst_rule_find(const struct mst_rule *rules, const char *key)
{
    for (; rules->key; rules++) {
        if (matches(rules->key, key))
            return rules;
    }
    return NULL;
}

int mst_rule_number(const struct mst_rule *rule, uint64_t value, char *what)
{
    if (value >= rule->min && value <= rule->max)
        return 0;
    snprintf(what, MST_RULE_TEXT_BYTES, "%" PRIu64 " is out of range, allowed %" PRIu32 "..%" PRIu32, value, rule->min,
             rule->max);
    return -EINVAL;
}

static int not_among(const struct mst_rule *rule, const char *value, char *what)
{
    struct mst_words words = {.list = ""};
    char shown[44], hint[64];

    for (const char *word = rule->words; *word;) {
        size_t len = strcspn(word, "|");
        if (strlen(value) == len && memcmp(value, word, len) == 0)
            return 0;
        mst_words_add(&words, word, len, value);
        word += len + (word[len] == '|');
    }
    snprintf(what, MST_RULE_TEXT_BYTES, "'%s' is not known%s; allowed: %s", mst_excerpt(value, shown),
             mst_words_hint(&words, value, hint), words.list);
    return -EINVAL;
}

static int not_printable(const char *value, bool lines)
{
    char *copy;
    int r;

    if (!lines)
        return mst_text_check(value);
    copy = strdup(value);
    if (!copy)
        return -ENOMEM;
    for (char *at = copy; *at; at++) {
        if (*at == '\n' || *at == '\t')
            *at = ' ';
    }
    r = mst_text_check(copy);
    free(copy);
    return r;
}

static bool is_token(const char *value, const char *more)
{
    for (; *value; value++) {
        if (!isascii((unsigned char)*value) || (!isalnum((unsigned char)*value) && !strchr(more, *value)))
            return false;
    }
    return true;
}

int mst_rule_string(const struct mst_rule *rule, const char *value, char *what)
{
    size_t len = strlen(value);
    const char *wanted = NULL;
    char shown[44];

    if (rule->kind == MST_RULE_WORDS)
        return not_among(rule, value, what);
    if (rule->kind == MST_RULE_NAME && mst_name_check(value) < 0)
        wanted = "a name, allowed 1..63 of a-z 0-9 -, not starting with -";
    else if (rule->kind == MST_RULE_ADDRESS && mst_address_check(value) < 0)
        wanted = "a numeric address, allowed are addresses like 10.7.0.1 and fd00::1";
    else if (rule->kind == MST_RULE_PATH && value[0] != '/')
        wanted = "an absolute path, allowed are paths that start with /";
    else if (not_printable(value, rule->kind == MST_RULE_TEXT) < 0)
        wanted = "allowed, it has control characters or is not UTF-8";
    if (!wanted && rule->kind != MST_RULE_NAME && rule->kind != MST_RULE_ADDRESS && (len < rule->min || len > rule->max)) {
        snprintf(what, MST_RULE_TEXT_BYTES, "'%s' has %zu bytes, allowed %" PRIu32 "..%" PRIu32, mst_excerpt(value, shown), len,
                 rule->min, rule->max);
        return -EINVAL;
    }
    if (!wanted && rule->kind == MST_RULE_TOKEN && !is_token(value, rule->words)) {
        snprintf(what, MST_RULE_TEXT_BYTES, "'%s' has characters that are not allowed, allowed are letters, digits and %s",
                 mst_excerpt(value, shown), rule->words);
        return -EINVAL;
    }
    if (!wanted)
        return 0;
    snprintf(what, MST_RULE_TEXT_BYTES, "'%s' is not %s", mst_excerpt(value, shown), wanted);
    return -EINVAL;
}

/* ---------------------------------------------------------------- walk */

struct walk {
    const struct mst_yaml *yaml;
    const struct mst_rule *rules;
    struct mst_why *why;
    char key[MST_YAML_PATH];
};

static int walk_value(struct walk *walk, const cyaml_schema_value_t *schema, const yaml_node_t *node);

__attribute__((format(printf, 3, 4))) static int refuse_at(const struct walk *walk, const yaml_node_t *node, const char *fmt, ...)
{
    char text[MST_WHY_BYTES];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    return mst_why_set(walk->why, -EINVAL, "%s:%zu: %s: %s", walk->yaml->path, node->start_mark.line + 1, walk->key, text);
}

/* Puts name behind the key; returns what cuts it off again. */
static size_t key_push(struct walk *walk, const char *name)
{
    size_t end = strlen(walk->key);

    snprintf(walk->key + end, sizeof(walk->key) - end, "%s%s", end > 0 && name[0] != '[' ? "." : "", name);
    return end;
}

/* The text of a scalar, or NULL with why: no scalar, no value, or a zero byte within. */
static const char *scalar(const struct walk *walk, const yaml_node_t *node, const char *wanted)
{
    const char *value = (const char *)node->data.scalar.value;

    if (node->type != YAML_SCALAR_NODE) {
        refuse_at(walk, node, "is a %s, wanted is %s", node->type == YAML_MAPPING_NODE ? "mapping" : "list", wanted);
        return NULL;
    }
    if (strlen(value) != node->data.scalar.length) {
        refuse_at(walk, node, "has a zero byte, wanted is %s", wanted);
        return NULL;
    }
    if (node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
        (value[0] == '\0' || strcmp(value, "~") == 0 || strcasecmp(value, "null") == 0)) {
        refuse_at(walk, node, "has no value, wanted is %s", wanted);
        return NULL;
    }
    return value;
}

/* Decimal only: libcyaml would take 010 for eight. */
static int walk_number(struct walk *walk, const yaml_node_t *node)
{
    static const struct mst_rule any = {"", MST_RULE_NUMBER, 0, UINT32_MAX, NULL};
    const struct mst_rule *rule = mst_rule_find(walk->rules, walk->key);
    char wanted[80], what[MST_RULE_TEXT_BYTES], shown[44];
    const char *value;
    size_t len;

    if (!rule)
        rule = &any;
    snprintf(wanted, sizeof(wanted), "a whole number %" PRIu32 "..%" PRIu32, rule->min, rule->max);
    value = scalar(walk, node, wanted);
    if (!value)
        return -EINVAL;
    len = strlen(value);
    if (len == 0 || strspn(value, "0123456789") != len || (value[0] == '0' && len > 1))
        return refuse_at(walk, node, "'%s' is not %s", mst_excerpt(value, shown), wanted);
    if (len > 18)
        return refuse_at(walk, node, "%s is out of range, allowed %" PRIu32 "..%" PRIu32, mst_excerpt(value, shown), rule->min,
                         rule->max);
    return mst_rule_number(rule, strtoull(value, NULL, 10), what) < 0 ? refuse_at(walk, node, "%s", what) : 0;
}

static int walk_string(struct walk *walk, const yaml_node_t *node)
{
    const struct mst_rule *rule = mst_rule_find(walk->rules, walk->key);
    const char *value = scalar(walk, node, "a text");
    char what[MST_RULE_TEXT_BYTES];

    if (!value)
        return -EINVAL;
    return rule && mst_rule_string(rule, value, what) < 0 ? refuse_at(walk, node, "%s", what) : 0;
}

static int walk_enum(struct walk *walk, const cyaml_schema_value_t *schema, const yaml_node_t *node)
{
    struct mst_words words = {.list = ""};
    const char *value = scalar(walk, node, "a word");
    char shown[44], hint[64];

    if (!value)
        return -EINVAL;
    for (uint32_t i = 0; i < schema->enumeration.count; i++) {
        const char *word = schema->enumeration.strings[i].str;
        if (strcmp(word, value) == 0)
            return 0;
        mst_words_add(&words, word, strlen(word), value);
    }
    return refuse_at(walk, node, "'%s' is not known%s; allowed: %s", mst_excerpt(value, shown),
                     mst_words_hint(&words, value, hint), words.list);
}

static int walk_sequence(struct walk *walk, const cyaml_schema_value_t *schema, const yaml_node_t *node)
{
    size_t count;
    char index[24];
    int r = 0;

    if (node->type != YAML_SEQUENCE_NODE)
        return refuse_at(walk, node, "is not a list, wanted is a list of %" PRIu32 "..%" PRIu32 " entries", schema->sequence.min,
                         schema->sequence.max);
    count = (size_t)(node->data.sequence.items.top - node->data.sequence.items.start);
    if (count < schema->sequence.min || count > schema->sequence.max)
        return refuse_at(walk, node, "has %zu entries, allowed %" PRIu32 "..%" PRIu32, count, schema->sequence.min,
                         schema->sequence.max);
    for (size_t i = 0; i < count && r == 0; i++) {
        snprintf(index, sizeof(index), "[%zu]", i);
        size_t end = key_push(walk, index);
        r = walk_value(walk, schema->sequence.entry, mst_yaml_node(walk->yaml, node->data.sequence.items.start[i]));
        walk->key[end] = '\0';
    }
    return r;
}

/* A key of a mapping: a scalar that stands there once. The walk's key is that of the mapping; on success of the pair. */
static int walk_key(struct walk *walk, const yaml_node_t *mapping, const yaml_node_pair_t *pair)
{
    const yaml_node_t *node = mst_yaml_node(walk->yaml, pair->key);
    const char *name = (const char *)node->data.scalar.value;
    char shown[44];

    if (node->type != YAML_SCALAR_NODE || strlen(name) != node->data.scalar.length) {
        key_push(walk, "?");
        return refuse_at(walk, node, "is not a key, wanted are lines of KEY: VALUE");
    }
    key_push(walk, mst_excerpt(name, shown));
    for (const yaml_node_pair_t *other = mapping->data.mapping.pairs.start; other < pair; other++) {
        const yaml_node_t *first = mst_yaml_node(walk->yaml, other->key);
        if (mst_yaml_is(first, name))
            return refuse_at(walk, node, "is given twice, the first time in line %zu", first->start_mark.line + 1);
    }
    return 0;
}

static int refuse_unknown(const struct walk *walk, const cyaml_schema_field_t *fields, const yaml_node_t *node)
{
    const char *name = (const char *)node->data.scalar.value;
    struct mst_words words = {.list = ""};
    char hint[64];

    for (; fields->key; fields++)
        mst_words_add(&words, fields->key, strlen(fields->key), name);
    return refuse_at(walk, node, "is not a key%s; allowed: %s", mst_words_hint(&words, name, hint), words.list);
}

static int walk_mapping(struct walk *walk, const cyaml_schema_value_t *schema, const yaml_node_t *node)
{
    size_t end = strlen(walk->key);
    int r = 0;

    if (node->type != YAML_MAPPING_NODE)
        return refuse_at(walk, node, "is not a mapping, wanted are lines of KEY: VALUE");
    for (const yaml_node_pair_t *pair = node->data.mapping.pairs.start; pair < node->data.mapping.pairs.top && r == 0; pair++) {
        const yaml_node_t *key = mst_yaml_node(walk->yaml, pair->key);
        const cyaml_schema_field_t *field = schema->mapping.fields;
        r = walk_key(walk, node, pair);
        if (r == 0) {
            while (field->key && !mst_yaml_is(key, field->key))
                field++;
            r = field->key ? walk_value(walk, &field->value, mst_yaml_node(walk->yaml, pair->value))
                           : refuse_unknown(walk, schema->mapping.fields, key);
        }
        walk->key[end] = '\0';
    }
    for (const cyaml_schema_field_t *field = schema->mapping.fields; field->key && r == 0; field++) {
        const yaml_node_pair_t *pair = node->data.mapping.pairs.start;
        while (pair < node->data.mapping.pairs.top && !mst_yaml_is(mst_yaml_node(walk->yaml, pair->key), field->key))
            pair++;
        if (pair < node->data.mapping.pairs.top || (field->value.flags & CYAML_FLAG_OPTIONAL))
            continue;
        key_push(walk, field->key);
        r = refuse_at(walk, node, "is missing, it has to be given");
        walk->key[end] = '\0';
    }
    return r;
}

#define OPTIONS_MAX 64

/* What libcyaml is told to ignore: a mapping of free keys. */
static int walk_options(struct walk *walk, const yaml_node_t *node)
{
    static const struct mst_rule name = {"", MST_RULE_TOKEN, 1, 63, "_-"};
    static const struct mst_rule line = {"", MST_RULE_LINE, 0, 1023, NULL};
    size_t end = strlen(walk->key);
    char what[MST_RULE_TEXT_BYTES];
    const char *value;
    int r = 0;

    if (node->type != YAML_MAPPING_NODE)
        return refuse_at(walk, node, "is not a mapping, wanted are lines of KEY: VALUE");
    if (node->data.mapping.pairs.top - node->data.mapping.pairs.start > OPTIONS_MAX)
        return refuse_at(walk, node, "has more than %d entries, which is all that is allowed", OPTIONS_MAX);
    for (const yaml_node_pair_t *pair = node->data.mapping.pairs.start; pair < node->data.mapping.pairs.top && r == 0; pair++) {
        const yaml_node_t *key = mst_yaml_node(walk->yaml, pair->key);
        r = walk_key(walk, node, pair);
        if (r == 0 && mst_rule_string(&name, (const char *)key->data.scalar.value, what) < 0)
            r = refuse_at(walk, key, "%s", what);
        if (r == 0) {
            value = scalar(walk, mst_yaml_node(walk->yaml, pair->value), "a text");
            r = value ? 0 : -EINVAL;
        }
        if (r == 0 && mst_rule_string(&line, value, what) < 0) /* which would show the value: it may be a password */
            r = refuse_at(walk, key, "is not UTF-8, has control characters or more than %" PRIu32 " bytes", line.max);
        walk->key[end] = '\0';
    }
    return r;
}

static int walk_value(struct walk *walk, const cyaml_schema_value_t *schema, const yaml_node_t *node)
{
    switch (schema->type) {
    case CYAML_UINT:
        return walk_number(walk, node);
    case CYAML_STRING:
        return walk_string(walk, node);
    case CYAML_ENUM:
        return walk_enum(walk, schema, node);
    case CYAML_SEQUENCE:
        return walk_sequence(walk, schema, node);
    case CYAML_MAPPING:
        return walk_mapping(walk, schema, node);
    case CYAML_IGNORE:
        return walk_options(walk, node);
    default:
        return refuse_at(walk, node, "has a type that conf/walk.c does not know");
    }
}

int mst_yaml_walk(const struct mst_yaml *yaml, const cyaml_schema_value_t *schema, const struct mst_rule *rules,
                  struct mst_why *why)
{
    struct walk walk = {.yaml = yaml, .rules = rules, .why = why};

    return walk_value(&walk, schema, yaml->root);
}
