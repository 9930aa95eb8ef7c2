#ifndef MST_CONF_DOCUMENT_H
#define MST_CONF_DOCUMENT_H

#include "conf/yaml.h"

#include <yaml.h>

/* Between conf/yaml.c and conf/walk.c. */

struct mst_yaml {
    char *path; /* of the file */
    char *text;
    size_t len;
    yaml_document_t doc;
    yaml_node_t *root; /* a mapping */
};

/* Node by its number in doc, from 1; only numbers that doc itself holds. */
yaml_node_t *mst_yaml_node(const struct mst_yaml *yaml, int index);
/* Whether node is a scalar with this text. */
bool mst_yaml_is(const yaml_node_t *node, const char *text);
/* Holds yaml against schema and rules. 0 or -EINVAL with why. */
int mst_yaml_walk(const struct mst_yaml *yaml, const cyaml_schema_value_t *schema, const struct mst_rule *rules,
                  struct mst_why *why);

#endif
