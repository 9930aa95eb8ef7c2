#ifndef MST_KEEPER_GUARD_H
#define MST_KEEPER_GUARD_H

#include "base/err.h"
#include "base/limits.h"

#include <stdbool.h>
#include <stdint.h>

/* Guard: which (vm, epoch) may run on this node, and whose orders are obeyed. Pure: no clock, no I/O, so that the same code runs in a
 * simulator. Every rule against running a VM twice that a single node can enforce is here:
 *   - an order is for this keeper instance and not from an older term than one seen before;
 *   - the epoch of a VM never goes back, and an epoch that was fenced never runs again;
 *   - a newer epoch starts only when the process of the older one has been proved gone;
 *   - the agent's primitives work only for the VM's present grant.
 * One thread. */

#define MST_GUARD_VMS_MAX                                                                                                        \
    4096u /* names remembered for the life of one instance; a cluster has at most MST_VMS_MAX VMs at a time */
static_assert(MST_GUARD_VMS_MAX >= 4 * MST_VMS_MAX, "room for every VM of the cluster and for names of the past");

struct mst_guard;

/* Allocates the whole table. instance is never 0. -ENOMEM. */
int mst_guard_new(uint64_t instance, struct mst_guard **ret_guard);
void mst_guard_free(struct mst_guard *guard);

/* Whether an order may be looked at. 0; -ESTALE: no instance or another one, no term or an older one. A newer term is remembered. */
int mst_guard_order(struct mst_guard *guard, const uint64_t *instance, const uint64_t *term, struct mst_why *why);

/* A VM that an earlier instance left behind, its process proved gone: its epoch is known and may not run again. -ENOSPC. */
int mst_guard_held(struct mst_guard *guard, const char *vm, uint64_t epoch);

/* Grants (vm, epoch). 0 granted now, 1 this very grant stands already; -ESTALE older than known, or fenced; -EBUSY the process of
 * another epoch has not been proved gone; -EINVAL epoch 0; -ENOSPC table full. Nothing changes on failure. */
int mst_guard_grant(struct mst_guard *guard, const char *vm, uint64_t epoch, struct mst_why *why);
/* Takes the grant back after a start that failed: the same epoch may be granted again. Other grants stay. */
void mst_guard_revoke(struct mst_guard *guard, const char *vm, uint64_t epoch);
/* 0 when (vm, epoch) is the present grant and not fenced, -ESTALE otherwise. */
int mst_guard_check(const struct mst_guard *guard, const char *vm, uint64_t epoch, struct mst_why *why);

/* From now on nothing of epoch or older runs. Also for a VM never heard of. Newer grants stay. 0, -ENOSPC, -EINVAL. */
int mst_guard_fence(struct mst_guard *guard, const char *vm, uint64_t epoch, struct mst_why *why);
bool mst_guard_fenced(const struct mst_guard *guard, const char *vm, uint64_t epoch);

/* The process of (vm, epoch) is about to be made. 0; -ESTALE as check; -EEXIST one is there, not proved gone. */
int mst_guard_spawning(struct mst_guard *guard, const char *vm, uint64_t epoch, struct mst_why *why);
/* It was seen gone: reaped, and the cgroup empty. */
void mst_guard_gone(struct mst_guard *guard, const char *vm);

uint64_t mst_guard_known(const struct mst_guard *guard,
                         const char *vm); /* highest epoch ever granted, held or fenced here, 0: none */
uint64_t mst_guard_granted(const struct mst_guard *guard, const char *vm); /* epoch of the present grant; 0: none, or fenced */
uint64_t mst_guard_process(const struct mst_guard *guard, const char *vm); /* epoch of a process not proved gone; 0: none */
/* A coordinator (its instance) says which term it has. An older one than seen before changes nothing. */
void mst_guard_welcome(struct mst_guard *guard, uint64_t term, uint64_t coordinator);
uint64_t mst_guard_term(const struct mst_guard *guard);    /* highest seen, 0: none */
uint64_t mst_guard_term_by(const struct mst_guard *guard); /* instance of the coordinator that had it first, 0: not known */
/* A coordinator says which durable decision of that term is its newest. What is of another term than the highest, or older than known, changes nothing. */
void mst_guard_decided(struct mst_guard *guard, uint64_t term, uint64_t decision);
/* The same by the low half of its number, as lease lines have it; 0: not said. */
void mst_guard_decided_low(struct mst_guard *guard, uint64_t term, uint32_t low);
uint64_t mst_guard_decision(const struct mst_guard *guard); /* newest heard of in the highest term, 0: none */

#endif
