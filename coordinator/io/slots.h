#ifndef MST_IO_SLOTS_H
#define MST_IO_SLOTS_H

#include "coordinator/core/core.h"
#include "shm/layout.h"

/* Node status and VM slots out of private copies of a status area. Every byte is hostile. Pure. */

struct mst_slots_read {
    struct mst_node_info info;
    struct mst_slot slots[MST_VMS_PER_NODE];
    unsigned count;
    unsigned unsure;  /* records that were torn or had changed between the copies: worth another copy */
    unsigned refused; /* records that are whole and say what cannot be */
    unsigned damaged; /* final: VM slots and the node status that are still unsure; unsure without end means overwritten */
};

/* Reads slots 0..slots_count-1. again is a later copy than first of the same area. final: no other copy will come, so that what is still
 * unsure counts as it stands: a VM slot is left out, a save record is corrupt. */
void mst_slots_parse(const struct mst_status_area *first, const struct mst_status_area *again, unsigned slots_count, bool final,
                     struct mst_slots_read *ret);

#endif
