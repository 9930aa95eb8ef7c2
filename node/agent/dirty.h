#ifndef MST_AGENT_DIRTY_H
#define MST_AGENT_DIRTY_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* Which pages of a guest's RAM were written, from outside of QEMU: soft-dirty bits (Documentation/admin-guide/mm/soft-dirty.rst).
 *
 * The kernel sets bit 55 in /proc/PID/pagemap when a page is written and clears it for the whole process when 4 is written
 * to /proc/PID/clear_refs. Reading and clearing are two steps: a page written between them would be forgotten. So the rule:
 *
 *   The bits are cleared only while the guest stands still, and only after the checkpoint that holds every page they
 *   named has been committed (mst_dirty_clear).
 *   Before the first checkpoint there is nothing to lose: then they are cleared, the guest standing still, before the first page
 *   is copied (marking). All pages are copied after that; one that was written since its copy, or while it was copied, has its bit.
 *
 * Proof that no write is lost. Let P be the last pause in which the bits were cleared, C the checkpoint committed in it.
 * C holds RAM as of P. Nobody writes RAM between the last look in P and the clearing: vCPUs stand, and `stop` has drained QEMU's
 * own I/O (a device write in flight would also hold a writable pin, and could write after the clearing without a fault). So
 * after P, bits = pages written since C was taken. The set only grows until the next clearing: looking is free
 * of effects. If the agent dies anywhere, the bits name at least all pages written since the last committed
 * checkpoint: when it dies between commit and clearing they name more, never fewer. Nothing that must survive is in
 * the agent's own memory.
 *
 * The price: pages copied early, while the guest runs, are looked at again in the pause, as the bits cannot say whether a page was
 * written before or after its copy. Looking again is a comparison of 4 KiB.
 *
 * Looking costs time for every page of RAM, in the pause, too: PAGEMAP_SCAN (Linux 6.7) a sixth to a thirtieth of what reading the pagemap does.
 *
 * What would break it: another program that clears this process's bits (CRIU), or the kernel taking a mapped page away under
 * memory pressure (the bit goes with the page table entry of a shared mapping): mapped RAM is locked for that (mst_vmmap).
 *
 * Any one thread at a time. */

/* Whether this kernel keeps soft-dirty bits: tried on a page of our own. 0, -EOPNOTSUPP it does not, or -errno. */
int mst_dirty_probe(struct mst_why *why);

struct mst_dirty;

#define MST_DIRTY_FILES_MAX 2u
struct mst_dirty_file { /* a VM's RAM area consists of one file, or of two with a disk behind its RAM */
    int fd;             /* -1: no such file */
    uint64_t bytes;     /* whole pages */
};

/* Finds where process pid maps these files, and checks that they are mapped whole, from 0 to their bytes. Pages are counted on from one to the next.
 * fds are borrowed for the call. -ENXIO (not mapped whole), -EACCES, -ENOENT (no such process), -ENOMEM. */
int mst_dirty_open(pid_t pid, const struct mst_dirty_file files[MST_DIRTY_FILES_MAX], struct mst_dirty **ret_dirty,
                   struct mst_why *why);
void mst_dirty_close(struct mst_dirty *dirty); /* NULL is fine */

/* Looks at the bits: after it, the set holds every page written since the last clearing and before the call began. The set
 * only grows. Returns the number of pages in it, or -errno (the set is then incomplete: take all pages). */
int64_t mst_dirty_look(struct mst_dirty *dirty);
/* The set is empty from here on and the bits are cleared. Only as said above: guest stopped, looked at, committed.
 * On -errno the bits stay set, so that the next set is larger than need be, never smaller. */
int mst_dirty_clear(struct mst_dirty *dirty);

/* First page of the set at or after page, or UINT64_MAX. */
uint64_t mst_dirty_next(const struct mst_dirty *dirty, uint64_t page);

#endif
