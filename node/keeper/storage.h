#ifndef MST_KEEPER_STORAGE_H
#define MST_KEEPER_STORAGE_H

#include "base/err.h"
#include "shm/layout.h"

#include <stdbool.h>
#include <stdint.h>

/* Main storage: the files of one node on tmpfs, their mappings, and the budget they are counted against.
 * Names as in shm/layout.h: FOLDER/VM.eEPOCH.{ram,save,shadow,delta}, and .disk for the end of the RAM area of a VM with a disk in main storage: two
 * files, because QEMU maps a file from its beginning, and one range of addresses, because everybody else sees one area (docs/decisions/0010). Files are
 * never truncated after they were made. */

enum mst_area_kind { MST_AREA_RAM, MST_AREA_SAVE, MST_AREA_SHADOW, MST_AREA_DELTA, MST_AREA_KINDS };
extern const char *const mst_area_suffix[MST_AREA_KINDS];

/* --- budget; loop thread --- */

struct mst_budget {
    uint64_t total_bytes, used_bytes;
};
/* 0, or -ENOSPC with the numbers in why. */
int mst_budget_take(struct mst_budget *budget, uint64_t bytes, struct mst_why *why);
void mst_budget_give(struct mst_budget *budget, uint64_t bytes);

/* --- areas of one (vm, epoch) --- */

struct mst_areas {
    char vm[MST_NAME_BYTES];
    uint64_t epoch;
    uint32_t delta_capacity; /* 0: no delta */
    uint64_t bytes;          /* sum of all */
    uint64_t
        disk_bytes; /* of the RAM area, at its end; 0: none. Whole pages, fewer than the area has. Set between plan, which sets 0, and make or adopt */
    bool ram_there; /* mst_ram_hand_over has made the RAM's file already, and the disk's */
    struct {
        uint8_t *addr; /* NULL: absent */
        uint64_t bytes;
    } area[MST_AREA_KINDS];
};

enum mst_areas_for {
    MST_AREAS_NONE,   /* protect none: RAM and save */
    MST_AREAS_LOCAL,  /* and shadow and delta */
    MST_AREAS_MIRROR, /* the same, with a delta for all pages: a checkpoint that does not fit could not be mirrored */
    MST_AREAS_IMAGE,  /* of a VM elsewhere: as mirror, without RAM */
};
/* Fills names and sizes; maps nothing. ram_bytes: with the disk. -EINVAL for a RAM size that is no VM's. Any thread, pure. */
int mst_areas_plan(struct mst_areas *areas, const char *vm, uint64_t epoch, uint64_t ram_bytes, enum mst_areas_for what);
/* Which of them: a guest runs with the first, its first checkpoint needs the rest. */
#define MST_AREAS_FIRST (1u << MST_AREA_RAM | 1u << MST_AREA_SAVE)
#define MST_AREAS_REST  (1u << MST_AREA_SHADOW | 1u << MST_AREA_DELTA)
#define MST_AREAS_ALL   (MST_AREAS_FIRST | MST_AREAS_REST)
bool mst_areas_whole(const struct mst_areas *areas); /* all that were planned are mapped */
/* Makes the planned files of these kinds, allocates every page and maps them shared. Takes about 0.3 s per GB: call it from a worker thread.
 * Leftovers of the same name are removed first, but for a RAM that is there: -EBADMSG when it is not as it was made. -ENOSPC the tmpfs is full, -errno; nothing is left on failure. Any thread. */
int mst_areas_make(const char *folder, struct mst_areas *areas, unsigned kinds, struct mst_why *why);
/* Maps the planned files that an earlier keeper made. -EBADMSG when a file is missing, not a regular file of ours, or of another size. */
int mst_areas_adopt(const char *folder, struct mst_areas *areas, struct mst_why *why);
/* Unmaps and, if unlink_files, removes the files. RDMA regions over them must have been freed. Any thread. */
void mst_areas_unmap(const char *folder, struct mst_areas *areas, bool unlink_files);
/* Removes the files of mapped areas; the memory stays until it is unmapped. */
void mst_areas_unlink(const char *folder, const struct mst_areas *areas);
int mst_area_path(const char *folder, const struct mst_areas *areas, enum mst_area_kind kind, char *buf, size_t size);
int mst_disk_path(const char *folder, const struct mst_areas *areas, char *buf, size_t size);

/* --- RAM, and the disk behind it, of a QEMU that waits beside the image of areas --- */

/* Makes its files, bytes of which the last disk_bytes are the disk's, all holes: they take no memory before mst_areas_make allocates them. Leftovers
 * are removed first. -errno: none is there. */
int mst_ram_make(const char *folder, const struct mst_areas *image, uint64_t bytes, uint64_t disk_bytes, struct mst_why *why);
void mst_ram_remove(const char *folder, const struct mst_areas *image); /* their names, when they have one */
/* The files become those of the RAM planned in areas; whoever has them mapped keeps them. 0 or -errno: nothing has changed. */
int mst_ram_hand_over(const char *folder, const struct mst_areas *image, struct mst_areas *areas);

/* --- fixed files --- */

/* Makes FOLDER/name anew (zeroed, exactly bytes) and maps it. */
int mst_fixed_make(const char *folder, const char *name, size_t bytes, void **ret_addr, struct mst_why *why);
/* Main-storage folder: made when missing, mode 0700, ours, on tmpfs or hugetlbfs (a warning is the caller's: 1 is returned when it is not). */
int mst_folder_make(const char *folder, struct mst_why *why);

#endif
