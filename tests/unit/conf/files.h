#ifndef TESTS_UNIT_CONF_FILES_H
#define TESTS_UNIT_CONF_FILES_H

#include "conf/conf.h"

/* A folder of files for one test. */
extern char folder[64];
void folder_make(void);
void folder_remove(void);
/* Writes text (len bytes, or strlen when 0) to NAME there; returns its path, good until the next call. */
const char *file_make(const char *name, const void *text, unsigned long len);

enum kind { NODE, COORDINATOR, VM, DRILL };
/* Loads and frees; 0 or what load returned. */
int load(enum kind kind, const char *path, struct mst_why *why);

#endif
