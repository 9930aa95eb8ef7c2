#ifndef MST_CONF_YAML_H
#define MST_CONF_YAML_H

#include "base/err.h"

#include <cyaml/cyaml.h>
#include <stdbool.h>
#include <stdint.h>

/* Inside conf/ only. A file is read once and parsed twice: libyaml's document says where each key stands and is held against the
 * schema and the rules, which gives every refusal its line; libcyaml, with the same schema, then fills the struct. */

#define MST_YAML_BYTES_MAX (1u << 20)
#define MST_YAML_PATH      256 /* a key with all above it: "nodes[3].fence.agent" */

enum mst_rule_kind {
    MST_RULE_NUMBER,  /* min..max */
    MST_RULE_NAME,    /* mst_name_check */
    MST_RULE_ADDRESS, /* mst_address_check */
    MST_RULE_PATH,    /* absolute; at most max bytes */
    MST_RULE_FILE,    /* absolute or relative; at most max bytes */
    MST_RULE_LINE,    /* printable, min..max bytes */
    MST_RULE_TEXT,    /* the same, line ends and tabs allowed */
    MST_RULE_TOKEN,   /* min..max of letters, digits, and the characters of words */
    MST_RULE_WORDS,   /* one of words */
};

struct mst_rule {
    const char *key; /* with [] for every index: "nodes[].port"; NULL ends the table */
    enum mst_rule_kind kind;
    uint32_t min, max;
    const char *words; /* "auto|kvm|tcg" */
};

struct mst_yaml;

/* -ENOENT, -EACCES, -EFBIG, -ENOMEM, other errno of reading, -EINVAL: not YAML, or not one mapping. */
int mst_yaml_open(const char *path, struct mst_yaml **ret_yaml, struct mst_why *why);
void mst_yaml_close(struct mst_yaml *yaml);
/* Checks the file against schema (a mapping) and rules, and loads it into a new struct, all of whose strings are allocated by malloc(3).
 * What the file does not give is zero. -EINVAL with why. */
int mst_yaml_load(const struct mst_yaml *yaml, const cyaml_schema_value_t *schema, const struct mst_rule *rules, void **ret_data,
                  struct mst_why *why);
void mst_yaml_free(const cyaml_schema_value_t *schema, void *data); /* NULL is fine */

/* *value becomes a copy of text when it is NULL. 0 or -ENOMEM. */
int mst_default(char **value, const char *text);

/* Whether the file gives this key ("nodes[0].fence"). */
bool mst_yaml_has(const struct mst_yaml *yaml, const char *key);
/* The index-th pair of the mapping at key; false behind the last one. Borrowed. */
bool mst_yaml_pair(const struct mst_yaml *yaml, const char *key, unsigned index, const char **ret_name, const char **ret_value);
/* Line of key, or of what is nearest above it; from 1. */
unsigned mst_yaml_line(const struct mst_yaml *yaml, const char *key);
/* why becomes `FILE:LINE: KEY: text`. Returns -EINVAL. */
__attribute__((format(printf, 4, 5))) int mst_yaml_refuse(const struct mst_yaml *yaml, struct mst_why *why, const char *key,
                                                          const char *fmt, ...);
/* why holds `KEY: text` and becomes `FILE:LINE: KEY: text`. Returns err. */
int mst_yaml_place(const struct mst_yaml *yaml, struct mst_why *why, int err);

/* The rules alone, for values that do not come from a file. what: at least MST_RULE_TEXT_BYTES; gets the sentence on -EINVAL. */
#define MST_RULE_TEXT_BYTES 340
const struct mst_rule *mst_rule_find(const struct mst_rule *rules, const char *key);
int mst_rule_number(const struct mst_rule *rule, uint64_t value, char *what);
int mst_rule_string(const struct mst_rule *rule, const char *value, char *what);
/* value for a message: at most 40 bytes, printable. */
const char *mst_excerpt(const char *value, char buf[static 44]);

/* A list of words for a message, and the one that somebody may have meant. */
struct mst_words {
    char list[280]; /* "a, b, c" */
    const char *nearest;
    size_t nearest_len;
    unsigned distance;
};
void mst_words_add(struct mst_words *words, const char *word, size_t len, const char *given);
/* ", did you mean X" or nothing. */
const char *mst_words_hint(const struct mst_words *words, const char *given, char buf[static 64]);

#endif
