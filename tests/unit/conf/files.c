#include "files.h"

#include <check.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

char folder[64];

void folder_make(void)
{
    strcpy(folder, "/tmp/mst-conf-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    ck_assert_int_eq(chmod(folder, 0755), 0);
}

void folder_remove(void)
{
    char path[600];
    DIR *dir = opendir(folder);
    struct dirent *entry;

    while ((entry = readdir(dir))) {
        snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
        if (entry->d_name[0] != '.')
            ck_assert_int_eq(remove(path), 0);
    }
    closedir(dir);
    ck_assert_int_eq(rmdir(folder), 0);
}

const char *file_make(const char *name, const void *text, unsigned long len)
{
    static char path[128];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    len = len ? len : strlen(text);
    ck_assert_uint_eq(fwrite(text, 1, len, file), len);
    ck_assert_int_eq(fclose(file), 0);
    return path;
}

int load(enum kind kind, const char *path, struct mst_why *why)
{
    struct mst_node_conf *node = NULL;
    struct mst_coordinator_conf *coordinator = NULL;
    struct mst_drill_conf *drill = NULL;
    Mainstay__VmDefinition *def = NULL;
    int r = 0;

    switch (kind) {
    case NODE:
        r = mst_node_conf_load(path, &node, why);
        mst_node_conf_free(node);
        break;
    case COORDINATOR:
        r = mst_coordinator_conf_load(path, &coordinator, why);
        mst_coordinator_conf_free(coordinator);
        break;
    case VM:
        r = mst_vm_definition_load(path, &def, why);
        mainstay__vm_definition__free_unpacked(def, NULL);
        break;
    case DRILL:
        r = mst_drill_conf_load(path, &drill, why);
        mst_drill_conf_free(drill);
        break;
    }
    return r;
}
