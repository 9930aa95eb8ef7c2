#ifndef MST_KEEPER_TAKEOVER_H
#define MST_KEEPER_TAKEOVER_H

#include "node/keeper/storage.h"
#include "shm/save.h"

/* What an earlier keeper instance left in main storage. The old bytes are hostile: the keeper was killed, perhaps in the middle of a write,
 * and perhaps because it was broken. Only a VM whose slot, save record and files agree with each other in every size is kept.
 * The caller has proved before that no QEMU of the earlier instance lives. Start only (blocking). Logs what is kept and what is dropped. */

struct mst_identity {
    const char *cluster, *node;
    uint32_t node_id;
    uint8_t host_boot_id[16];
};

struct mst_kept {
    struct mst_areas areas; /* mapped; the caller's */
    struct mst_vm_slot slot;
    struct mst_save_record record;
};

/* Reads FOLDER/status. budget is charged for what is kept. 0 and *ret_count (0 when there is no status file or it does not check);
 * -errno only when the folder cannot be read. */
int mst_takeover_read(const char *folder, const struct mst_identity *identity, struct mst_budget *budget,
                      struct mst_kept kept[MST_VMS_PER_NODE], unsigned *ret_count, struct mst_why *why);

/* Removes every file of FOLDER that is neither kept nor named in keep (NULL-terminated). Returns the number removed or -errno. */
int mst_takeover_sweep(const char *folder, const struct mst_kept *kept, unsigned count, const char *const *keep);

#endif
