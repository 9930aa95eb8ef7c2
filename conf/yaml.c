#include "conf/yaml.h"

#include "base/file.h"
#include "conf/document.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define DEPTH_MAX  16
#define NO_ALIASES "anchors and aliases (&, *) are not supported, write the value where it belongs"

yaml_node_t *mst_yaml_node(const struct mst_yaml *yaml, int index)
{
    return &yaml->doc.nodes.start[index - 1];
}

bool mst_yaml_is(const yaml_node_t *node, const char *text)
{
    return node->type == YAML_SCALAR_NODE && node->data.scalar.length == strlen(text) &&
           memcmp(node->data.scalar.value, text, node->data.scalar.length) == 0;
}

/* ---------------------------------------------------------------- where a key stands */

static yaml_node_t *pair_find(const struct mst_yaml *yaml, const yaml_node_t *mapping, const char *name, unsigned *ret_line)
{
    if (mapping->type != YAML_MAPPING_NODE)
        return NULL;
    for (const yaml_node_pair_t *pair = mapping->data.mapping.pairs.start; pair < mapping->data.mapping.pairs.top; pair++) {
        const yaml_node_t *key = mst_yaml_node(yaml, pair->key);
        if (!mst_yaml_is(key, name))
            continue;
        *ret_line = (unsigned)key->start_mark.line + 1;
        return mst_yaml_node(yaml, pair->value);
    }
    return NULL;
}

static yaml_node_t *item_find(const struct mst_yaml *yaml, const yaml_node_t *sequence, unsigned long index, unsigned *ret_line)
{
    yaml_node_t *node;

    if (sequence->type != YAML_SEQUENCE_NODE ||
        index >= (unsigned long)(sequence->data.sequence.items.top - sequence->data.sequence.items.start))
        return NULL;
    node = mst_yaml_node(yaml, sequence->data.sequence.items.start[index]);
    *ret_line = (unsigned)node->start_mark.line + 1;
    return node;
}

/* Follows key from the root. NULL when it is not all there; *ret_line is then of the last part that is. */
static yaml_node_t *find(const struct mst_yaml *yaml, const char *key, unsigned *ret_line)
{
    yaml_node_t *node = yaml->root;
    char name[MST_YAML_PATH];

    *ret_line = (unsigned)node->start_mark.line + 1;
    while (node && *key) {
        if (*key == '[') {
            char *end;
            node = item_find(yaml, node, strtoul(key + 1, &end, 10), ret_line);
            key = *end == ']' ? end + 1 : end;
        } else {
            size_t len = strcspn(key, ".[");
            if (len >= sizeof(name))
                return NULL;
            memcpy(name, key, len);
            name[len] = '\0';
            node = pair_find(yaml, node, name, ret_line);
            key += len;
        }
        key += *key == '.';
    }
    return node;
}

bool mst_yaml_has(const struct mst_yaml *yaml, const char *key)
{
    unsigned line;

    return find(yaml, key, &line) != NULL;
}

unsigned mst_yaml_line(const struct mst_yaml *yaml, const char *key)
{
    unsigned line;

    find(yaml, key, &line);
    return line;
}

bool mst_yaml_pair(const struct mst_yaml *yaml, const char *key, unsigned index, const char **ret_name, const char **ret_value)
{
    unsigned line;
    const yaml_node_t *node = find(yaml, key, &line);
    const yaml_node_pair_t *pair;

    if (!node || node->type != YAML_MAPPING_NODE ||
        index >= (size_t)(node->data.mapping.pairs.top - node->data.mapping.pairs.start))
        return false;
    pair = &node->data.mapping.pairs.start[index];
    *ret_name = (const char *)mst_yaml_node(yaml, pair->key)->data.scalar.value;
    *ret_value = (const char *)mst_yaml_node(yaml, pair->value)->data.scalar.value;
    return true;
}

int mst_yaml_refuse(const struct mst_yaml *yaml, struct mst_why *why, const char *key, const char *fmt, ...)
{
    char text[MST_WHY_BYTES];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    return mst_why_set(why, -EINVAL, "%s:%u: %s: %s", yaml->path, mst_yaml_line(yaml, key), key, text);
}

int mst_yaml_place(const struct mst_yaml *yaml, struct mst_why *why, int err)
{
    char key[MST_YAML_PATH];
    size_t len;

    if (!why)
        return err;
    len = strcspn(why->text, ":");
    snprintf(key, sizeof(key), "%.*s", (int)len, why->text);
    return mst_why_set(why, err, "%s:%u: %s", yaml->path, mst_yaml_line(yaml, key), why->text);
}

/* ---------------------------------------------------------------- reading and parsing */

static int read_text(struct mst_yaml *yaml, struct mst_why *why)
{
    struct stat st;
    int r;

    /* Opening a FIFO would wait for somebody to write to it. */
    if (stat(yaml->path, &st) < 0)
        return mst_why_set(why, -errno, "%s: cannot be read: %s", yaml->path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return mst_why_set(why, -EINVAL, "%s: is not a regular file", yaml->path);
    r = mst_file_read(yaml->path, MST_YAML_BYTES_MAX, &yaml->text, &yaml->len);
    if (r == -EFBIG)
        return mst_why_set(why, r, "%s: is larger than %u bytes, which is all a configuration may have", yaml->path,
                           MST_YAML_BYTES_MAX);
    if (r < 0)
        return mst_why_set(why, r, "%s: cannot be read: %s", yaml->path, strerror(-r));
    return 0;
}

static int refuse_line(const struct mst_yaml *yaml, struct mst_why *why, size_t line, const char *text)
{
    return mst_why_set(why, -EINVAL, "%s:%zu: YAML: %s", yaml->path, line, text);
}

/* What libyaml has against the text. Errors of its reader have a byte offset and no line. */
static int refuse_syntax(const struct mst_yaml *yaml, const yaml_parser_t *parser, struct mst_why *why)
{
    size_t line = parser->problem_mark.line + 1;

    if (parser->error == YAML_MEMORY_ERROR)
        return mst_why_set(why, -ENOMEM, "%s: no memory to parse it", yaml->path);
    if (parser->error == YAML_READER_ERROR) {
        line = 1;
        for (size_t i = 0; i < parser->problem_offset && i < yaml->len; i++)
            line += yaml->text[i] == '\n';
    }
    return refuse_line(yaml, why, line, parser->problem ? parser->problem : "cannot be parsed");
}

static int check_node(const struct mst_yaml *yaml, const yaml_event_t *event, const yaml_char_t *anchor, const yaml_char_t *tag,
                      struct mst_why *why)
{
    if (anchor)
        return refuse_line(yaml, why, event->start_mark.line + 1, NO_ALIASES);
    if (tag)
        return refuse_line(yaml, why, event->start_mark.line + 1, "tags (!...) are not supported, write the value alone");
    return 0;
}

static int check_event(const struct mst_yaml *yaml, const yaml_event_t *event, unsigned *depth, unsigned *documents,
                       struct mst_why *why)
{
    int r;

    switch (event->type) {
    case YAML_DOCUMENT_START_EVENT:
        if (++*documents > 1)
            return refuse_line(yaml, why, event->start_mark.line + 1, "a second document (---) follows, one is allowed");
        return 0;
    case YAML_ALIAS_EVENT:
        return refuse_line(yaml, why, event->start_mark.line + 1, NO_ALIASES);
    case YAML_SCALAR_EVENT:
        return check_node(yaml, event, event->data.scalar.anchor, event->data.scalar.tag, why);
    case YAML_SEQUENCE_START_EVENT:
        r = check_node(yaml, event, event->data.sequence_start.anchor, event->data.sequence_start.tag, why);
        break;
    case YAML_MAPPING_START_EVENT:
        r = check_node(yaml, event, event->data.mapping_start.anchor, event->data.mapping_start.tag, why);
        break;
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT:
        --*depth;
        return 0;
    default:
        return 0;
    }
    if (r == 0 && ++*depth > DEPTH_MAX)
        r = refuse_line(yaml, why, event->start_mark.line + 1, "lists and mappings are nested too deeply, allowed are 16 levels");
    return r;
}

/* Before the document is built: libyaml needs quadratic time for deep nesting ([[[[..., a minute and more for 256 KiB), and a document
 * with aliases is no tree. */
static int check_events(const struct mst_yaml *yaml, struct mst_why *why)
{
    unsigned depth = 0, documents = 0;
    yaml_parser_t parser;
    bool end = false;
    int r = 0;

    if (!yaml_parser_initialize(&parser))
        return mst_why_set(why, -ENOMEM, "%s: no memory to parse it", yaml->path);
    yaml_parser_set_encoding(&parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&parser, (const unsigned char *)yaml->text, yaml->len);
    while (r == 0 && !end) {
        yaml_event_t event;
        if (!yaml_parser_parse(&parser, &event)) {
            r = refuse_syntax(yaml, &parser, why);
            break;
        }
        r = check_event(yaml, &event, &depth, &documents, why);
        end = event.type == YAML_STREAM_END_EVENT;
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&parser);
    return r;
}

static int parse(struct mst_yaml *yaml, struct mst_why *why)
{
    yaml_parser_t parser;
    int r;

    r = check_events(yaml, why);
    if (r < 0)
        return r;
    if (!yaml_parser_initialize(&parser))
        return mst_why_set(why, -ENOMEM, "%s: no memory to parse it", yaml->path);
    yaml_parser_set_encoding(&parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&parser, (const unsigned char *)yaml->text, yaml->len);
    if (!yaml_parser_load(&parser, &yaml->doc)) {
        r = refuse_syntax(yaml, &parser, why);
        memset(&yaml->doc, 0, sizeof(yaml->doc));
        goto delete_parser;
    }
    yaml->root = yaml_document_get_root_node(&yaml->doc);
    if (!yaml->root || (yaml->root->type == YAML_SCALAR_NODE && yaml->root->data.scalar.length == 0))
        r = refuse_line(yaml, why, 1, "the file is empty, lines of KEY: VALUE are wanted");
    else if (yaml->root->type != YAML_MAPPING_NODE)
        r = refuse_line(yaml, why, yaml->root->start_mark.line + 1, "lines of KEY: VALUE are wanted");
delete_parser:
    yaml_parser_delete(&parser);
    return r;
}

int mst_yaml_open(const char *path, struct mst_yaml **ret_yaml, struct mst_why *why)
{
    struct mst_yaml *yaml = calloc(1, sizeof(*yaml));
    int r;

    if (!yaml)
        return mst_why_set(why, -ENOMEM, "%s: no memory", path);
    yaml->path = strdup(path);
    if (!yaml->path) {
        r = mst_why_set(why, -ENOMEM, "%s: no memory", path);
        goto close_yaml;
    }
    r = read_text(yaml, why);
    if (r < 0)
        goto close_yaml;
    r = parse(yaml, why);
    if (r < 0)
        goto close_yaml;
    *ret_yaml = yaml;
    return 0;
close_yaml:
    mst_yaml_close(yaml);
    return r;
}

void mst_yaml_close(struct mst_yaml *yaml)
{
    if (!yaml)
        return;
    yaml_document_delete(&yaml->doc);
    free(yaml->text);
    free(yaml->path);
    free(yaml);
}

/* ---------------------------------------------------------------- libcyaml */

/* Its first error; what follows is its backtrace. */
static void on_cyaml_log(cyaml_log_t level, void *ctx, const char *fmt, va_list ap)
{
    char *text = ctx;

    if (level < CYAML_LOG_ERROR || text[0] != '\0')
        return;
    vsnprintf(text, MST_RULE_TEXT_BYTES, fmt, ap);
    text[strcspn(text, "\n")] = '\0';
}

static void *cyaml_malloc(void *ctx, void *at, size_t size)
{
    (void)ctx;
    if (size == 0) {
        free(at);
        return NULL;
    }
    return realloc(at, size);
}

int mst_yaml_load(const struct mst_yaml *yaml, const cyaml_schema_value_t *schema, const struct mst_rule *rules, void **ret_data,
                  struct mst_why *why)
{
    char text[MST_RULE_TEXT_BYTES] = "";
    cyaml_config_t config = {.log_fn = on_cyaml_log,
                             .log_ctx = text,
                             .mem_fn = cyaml_malloc,
                             .log_level = CYAML_LOG_ERROR,
                             .flags = CYAML_CFG_NO_ALIAS};
    cyaml_err_t err;
    int r;

    r = mst_yaml_walk(yaml, schema, rules, why);
    if (r < 0)
        return r;
    err = cyaml_load_data((const uint8_t *)yaml->text, yaml->len, &config, schema, ret_data, NULL);
    if (err == CYAML_OK)
        return 0;
    /* The walk has found every mistake that libcyaml knows: this is want of memory, or a gap in the walk. */
    return mst_why_set(why, err == CYAML_ERR_OOM ? -ENOMEM : -EINVAL, "%s:1: YAML: %s (%s)", yaml->path, cyaml_strerror(err),
                       text);
}

int mst_default(char **value, const char *text)
{
    if (!*value)
        *value = strdup(text);
    return *value ? 0 : -ENOMEM;
}

void mst_yaml_free(const cyaml_schema_value_t *schema, void *data)
{
    cyaml_config_t config = {.mem_fn = cyaml_malloc};

    if (data)
        cyaml_free(&config, schema, data, 0);
}
