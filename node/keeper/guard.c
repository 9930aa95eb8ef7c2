#include "node/keeper/guard.h"

#include "base/mutant.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct guard_vm {
    char name[MST_NAME_BYTES]; /* empty: free place */
    uint64_t known;            /* highest epoch ever granted or left behind here */
    uint64_t granted;          /* present grant; 0: none */
    uint64_t fenced;           /* this epoch and all older ones never run again */
    uint64_t process;          /* epoch whose process is not proved gone; 0: none */
};

#define PLACES (2u * MST_GUARD_VMS_MAX) /* half empty, so that probing stays short; a power of two */
static_assert((PLACES & (PLACES - 1)) == 0, "masking wants a power of two");

struct mst_guard {
    uint64_t instance;
    uint64_t term, term_by, decision;
    uint32_t count;
    struct guard_vm vms[PLACES];
};

int mst_guard_new(uint64_t instance, struct mst_guard **ret_guard)
{
    struct mst_guard *guard = calloc(1, sizeof(*guard));

    if (!guard)
        return -ENOMEM;
    guard->instance = instance;
    *ret_guard = guard;
    return 0;
}

void mst_guard_free(struct mst_guard *guard)
{
    free(guard);
}

static uint32_t hash(const char *name)
{
    uint32_t h = 2166136261u; /* FNV-1a */

    for (; *name; name++)
        h = (h ^ (uint8_t)*name) * 16777619u;
    return h;
}

/* Place of a name, or the free place where it would go. Entries are never removed, so a free place ends the search. */
static uint32_t place(const struct mst_guard *guard, const char *vm)
{
    uint32_t i = hash(vm) & (PLACES - 1);

    while (guard->vms[i].name[0] && strcmp(guard->vms[i].name, vm) != 0)
        i = (i + 1) & (PLACES - 1);
    return i;
}

static const struct guard_vm *find(const struct mst_guard *guard, const char *vm)
{
    const struct guard_vm *v = &guard->vms[place(guard, vm)];

    return v->name[0] ? v : NULL;
}

static struct guard_vm *find_mut(struct mst_guard *guard, const char *vm)
{
    struct guard_vm *v = &guard->vms[place(guard, vm)];

    return v->name[0] ? v : NULL;
}

static int add(struct mst_guard *guard, const char *vm, struct guard_vm **ret_vm, struct mst_why *why)
{
    struct guard_vm *v = &guard->vms[place(guard, vm)];
    size_t len = strlen(vm);

    if (v->name[0]) {
        *ret_vm = v;
        return 0;
    }
    if (!len || len >= MST_NAME_BYTES)
        return mst_why_set(why, -EINVAL, "name of a VM is empty or longer than %u bytes", MST_NAME_BYTES - 1);
    if (guard->count >= MST_GUARD_VMS_MAX)
        return mst_why_set(why, -ENOSPC, "the guard remembers %u VM names already: restart the keeper after moving its VMs",
                           guard->count);
    memcpy(v->name, vm, len + 1);
    guard->count++;
    *ret_vm = v;
    return 0;
}

int mst_guard_order(struct mst_guard *guard, const uint64_t *instance, const uint64_t *term, struct mst_why *why)
{
    if (!instance || *instance != guard->instance)
        return mst_why_set(why, -ESTALE, "order is for keeper instance %016" PRIx64 ", this is %016" PRIx64,
                           instance ? *instance : 0, guard->instance);
    if (!term || (*term < guard->term && !MST_MUTANT(45)))
        return mst_why_set(why, -ESTALE, "order is of term %" PRIu64 ", term %" PRIu64 " was seen before", term ? *term : 0,
                           guard->term);
    mst_guard_welcome(guard, *term, 0);
    return 0;
}

void mst_guard_welcome(struct mst_guard *guard, uint64_t term, uint64_t coordinator)
{
    if (term <= guard->term)
        return;
    guard->term = term;
    guard->term_by = coordinator;
    guard->decision = 0; /* of the older term; those who have the newer say their own */
}

void mst_guard_decided(struct mst_guard *guard, uint64_t term, uint64_t decision)
{
    if (term == guard->term && decision > guard->decision)
        guard->decision = decision;
}

/* Nearest number at or above what is known that ends so: leases come often, so less than half of all lows lie between two. One that lies below by less
 * than that is an older line. */
void mst_guard_decided_low(struct mst_guard *guard, uint64_t term, uint32_t low)
{
    uint32_t ahead = low - (uint32_t)guard->decision;

    if (low != 0 && ahead < UINT32_MAX / 2)
        mst_guard_decided(guard, term, guard->decision + ahead);
}

uint64_t mst_guard_decision(const struct mst_guard *guard)
{
    return guard->decision;
}

int mst_guard_held(struct mst_guard *guard, const char *vm, uint64_t epoch)
{
    struct guard_vm *v;
    int r = add(guard, vm, &v, NULL);

    if (r < 0)
        return r;
    if (epoch > v->known)
        v->known = epoch;
    if (epoch > v->fenced)
        v->fenced = epoch;
    return 0;
}

int mst_guard_grant(struct mst_guard *guard, const char *vm, uint64_t epoch, struct mst_why *why)
{
    struct guard_vm *v = find_mut(guard, vm);
    int r;

    if (!epoch)
        return mst_why_set(why, -EINVAL, "epoch 0 is no grant");
    if (v && epoch < v->known)
        return mst_why_set(why, -ESTALE, "epoch %" PRIu64 " of %s is older than %" PRIu64 ", known here", epoch, vm, v->known);
    if (v && epoch <= v->fenced)
        return mst_why_set(why, -ESTALE, "%s is fenced here up to epoch %" PRIu64 ", so epoch %" PRIu64 " may not run", vm,
                           v->fenced, epoch);
    if (v && v->process && v->process != epoch)
        return mst_why_set(why, -EBUSY, "%s still runs here as epoch %" PRIu64 ": fence it before epoch %" PRIu64, vm, v->process,
                           epoch);
    if (v && v->granted == epoch)
        return 1;
    r = add(guard, vm, &v, why);
    if (r < 0)
        return r;
    v->granted = epoch;
    v->known = epoch;
    return 0;
}

void mst_guard_revoke(struct mst_guard *guard, const char *vm, uint64_t epoch)
{
    struct guard_vm *v = find_mut(guard, vm);

    if (v && v->granted == epoch)
        v->granted = 0;
}

int mst_guard_check(const struct mst_guard *guard, const char *vm, uint64_t epoch, struct mst_why *why)
{
    const struct guard_vm *v = find(guard, vm);

    if (v && epoch && epoch <= v->fenced)
        return mst_why_set(why, -ESTALE, "%s is fenced here up to epoch %" PRIu64, vm, v->fenced);
    if (!v || !epoch || v->granted != epoch)
        return mst_why_set(why, -ESTALE, "epoch %" PRIu64 " of %s is not granted here (the grant is %" PRIu64 ")", epoch, vm,
                           v ? v->granted : 0);
    return 0;
}

int mst_guard_fence(struct mst_guard *guard, const char *vm, uint64_t epoch, struct mst_why *why)
{
    struct guard_vm *v;
    int r;

    if (!epoch)
        return mst_why_set(why, -EINVAL, "epoch 0 cannot be fenced");
    r = add(guard, vm, &v, why);
    if (r < 0)
        return r;
    if (epoch > v->fenced)
        v->fenced = epoch;
    if (epoch > v->known)
        v->known = epoch;
    if (v->granted <= v->fenced)
        v->granted = 0;
    return 0;
}

bool mst_guard_fenced(const struct mst_guard *guard, const char *vm, uint64_t epoch)
{
    const struct guard_vm *v = find(guard, vm);

    return v && epoch <= v->fenced;
}

int mst_guard_spawning(struct mst_guard *guard, const char *vm, uint64_t epoch, struct mst_why *why)
{
    int r = mst_guard_check(guard, vm, epoch, why);
    struct guard_vm *v;

    if (r < 0)
        return r;
    v = find_mut(guard, vm);
    if (v->process)
        return mst_why_set(why, -EEXIST, "%s has a process already (epoch %" PRIu64 ")", vm, v->process);
    v->process = epoch;
    return 0;
}

void mst_guard_gone(struct mst_guard *guard, const char *vm)
{
    struct guard_vm *v = find_mut(guard, vm);

    if (v)
        v->process = 0;
}

uint64_t mst_guard_known(const struct mst_guard *guard, const char *vm)
{
    const struct guard_vm *v = find(guard, vm);

    return v ? v->known : 0;
}

uint64_t mst_guard_granted(const struct mst_guard *guard, const char *vm)
{
    const struct guard_vm *v = find(guard, vm);

    return v ? v->granted : 0;
}

uint64_t mst_guard_process(const struct mst_guard *guard, const char *vm)
{
    const struct guard_vm *v = find(guard, vm);

    return v ? v->process : 0;
}

uint64_t mst_guard_term(const struct mst_guard *guard)
{
    return guard->term;
}

uint64_t mst_guard_term_by(const struct mst_guard *guard)
{
    return guard->term_by;
}
