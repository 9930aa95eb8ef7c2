#ifndef MST_AGENT_VMMAP_H
#define MST_AGENT_VMMAP_H

#include "mainstay.pb-c.h"
#include "shm/save.h"

/* The areas of one VM epoch, mapped. Sizes are checked against the files before anything is touched, as a short file would
 * end the agent with SIGBUS. Any thread. */
struct mst_vmmap {
    struct mst_save_map
        map; /* for mst_save_writer_new; record points into the status area. map.ram: RAM and the disk behind it */
    struct mst_save_layout layout; /* of map.save */
    int ram_fd;                    /* for finding QEMU's mapping of it */
    char *ram_path;
    int disk_fd;         /* -1: none; the last disk_bytes of map.ram are this file */
    char *disk_path;     /* NULL: none */
    uint64_t disk_bytes; /* 0: none */
    size_t save_bytes, delta_bytes;
};

struct mst_status_map { /* the node's status area as the agent maps it */
    struct mst_status_area *area;
    char folder[256]; /* main storage: what file names in Areas without a slash first are relative to */
};

/* -ENOENT, -EBADMSG (too short, not a status area, of another instance), -EACCES with why. */
int mst_status_map(const char *path, uint64_t instance, struct mst_status_map *ret_map, struct mst_why *why);
void mst_status_unmap(struct mst_status_map *map);

/* Maps the files of a definition's areas, as far as they are named: shadow and delta may come later. RAM is locked in memory (dirty.h says why); when that is not allowed, *ret_unlocked
 * is set to the errno, otherwise to 0.
 *   runs  its guest runs already, and its checkpoints go on: every page is locked now. Otherwise each is when it is first touched, which the first
 *         checkpoint does, as it copies all of them: what was written before is in the copy, whether the page has kept its bit or not. To lock all
 *         of them at once would make a resume wait for every page there is.
 * -EINVAL (sizes or slot do not fit the definition), -EBADMSG (a file is too short), -ENOMEM, -errno of opening; with why. */
int mst_vmmap_open(const struct mst_status_map *status, const Mainstay__Areas *areas, const Mainstay__VmDefinition *definition,
                   uint64_t epoch, uint64_t instance, bool runs, struct mst_vmmap **ret_areas, int *ret_unlocked,
                   struct mst_why *why);
/* Maps shadow and delta into areas that were opened without them. Errors as of mst_vmmap_open; nothing has changed then. */
int mst_vmmap_rest(const struct mst_status_map *status, const Mainstay__Areas *areas, const Mainstay__VmDefinition *definition,
                   struct mst_vmmap *mapped, struct mst_why *why);
void mst_vmmap_close(struct mst_vmmap *areas); /* NULL is fine */

#endif
