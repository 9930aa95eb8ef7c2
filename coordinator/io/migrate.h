#ifndef MST_IO_MIGRATE_H
#define MST_IO_MIGRATE_H

#include "conf/conf.h"

/* Moves the rows of the SQLite store in folder into the etcd of conf, reads them back, compares, and puts the file away under another name, so that nobody
 * decides on the old copy. Refuses when the source is in use or absent, or the target is in use or not empty; takes an unfinished copy of an earlier
 * run away first. Says on standard output what it did. Blocks, up to minutes. Returns the exit status. */
int mst_migrate(const struct mst_coordinator_conf *conf, const char *folder);

#endif
