#ifndef SIM_SEAM_CALLS_H
#define SIM_SEAM_CALLS_H

#include "node/keeper/storage.h"

#include <stdint.h>
#include <sys/types.h>

struct sim_proc;

/* Between the files of seam/ and the world. */

void sim_fabric_reset(void);
void sim_socket_reset(void);
void sim_socket_proc_gone(const struct sim_proc *proc);

/* product_*: functions of the product that seam/ wraps (CMakeLists.txt renames them). */
int product_areas_plan(struct mst_areas *areas, const char *vm, uint64_t epoch, uint64_t ram_bytes, enum mst_areas_for what);

struct mst_lease;
struct mst_lease_line;
struct mst_lease_time;
struct mst_why;
int product_lease_take(struct mst_lease *lease, const struct mst_lease_line *line, uint64_t min_term, struct mst_why *why);
void product_lease_beat(struct mst_lease *lease, uint64_t beat, const struct mst_lease_time *now);

/* Simulated RAM is so many times smaller than what definitions say. */
#define SIM_RAM_SHRINK 256u
/* And the ring of a mirror's log: a record has room for one page, or three, and a checkpoint of all pages goes around it. */
#define SIM_RING_BYTES(memory_mib) ((memory_mib) % 2 ? 16u << 10 : 32u << 10)

#endif
