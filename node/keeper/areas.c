#include "node/keeper/keeper.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/priority.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Allocating and freeing gigabytes of tmpfs takes seconds, so worker threads do it; beats go on. Memory counts until it is really free; who
 * needs memory that is just being freed waits for it instead of being refused: an order to forget and one to start may follow each other. */

struct mst_make {
    uv_work_t work;
    struct mst_make *next; /* among those that wait */
    struct mst_vm *vm;     /* loop thread only; vm->users keeps the slot */
    const char *folder;
    struct mst_areas areas;
    unsigned kinds; /* to be made now */
    int err;
    struct mst_why why;
};

/* The first part does, for all of them: what a VM was started with must not be missing for its checkpoints. */
static bool takes_memory(const struct mst_make *job)
{
    return job->kinds & MST_AREAS_FIRST;
}

static void make_work(uv_work_t *work)
{
    struct mst_make *job = work->data;

    mst_priority_worker();
    job->err = mst_areas_make(job->folder, &job->areas, job->kinds, &job->why);
}

static void make_end(struct mst_make *job)
{
    struct mst_vm *vm = job->vm;

    vm->areas_making = false;
    if (job->err < 0 && job->areas.ram_there && takes_memory(job))
        mst_ram_remove(job->folder, &job->areas);
    if (job->err == 0) {
        vm->areas = job->areas;
        vm->areas_ready = true;
        mst_slot_publish(vm);
        if (!vm->drop_pending && !vm->image)
            mst_server_vm_ready(vm);
    }
    if (vm->drop_pending) /* the agent waits all the same, and takes no later epoch of this VM before it knows */
        job->err = mst_why_set(&job->why, -ESTALE, "its start was ended while its memory was made");
    if (!vm->image)
        mst_agent_areas_made(vm, job->err, &job->why);
    else if (!vm->drop_pending)
        mst_images_areas_made(vm, job->err, &job->why);
    mst_slot_release(vm);
    free(job);
}

static void make_after(uv_work_t *work, int status)
{
    struct mst_make *job = work->data;

    if (status < 0)
        job->err = status;
    if (job->err < 0 && takes_memory(job))
        mst_budget_give(&job->vm->keeper->budget, job->areas.bytes);
    make_end(job);
}

/* 0 a worker is at it, 1 has to wait for memory that is being freed, -errno. */
static int make_try(struct mst_make *job, struct mst_why *why)
{
    struct mst_keeper *k = job->vm->keeper;
    int r = takes_memory(job) ? mst_budget_take(&k->budget, job->areas.bytes, why) : 0;

    if (r < 0)
        return k->dropping ? 1 : r;
    job->why.text[0] = '\0';
    r = uv_queue_work(k->loop, &job->work, make_work, make_after);
    if (r < 0 && takes_memory(job))
        mst_budget_give(&k->budget, job->areas.bytes);
    return r;
}

/* Memory has become free: those that wait for it, in their order. */
static void make_waiting(struct mst_keeper *k)
{
    struct mst_make *job;
    int r;

    while ((job = k->makes_waiting)) {
        r = job->vm->drop_pending ? -ECANCELED : make_try(job, &job->why);
        if (r > 0)
            return;
        k->makes_waiting = job->next;
        if (r < 0) {
            job->err = r;
            make_end(job);
        }
    }
}

int mst_vm_areas_make(struct mst_vm *vm, unsigned kinds, uint64_t reply_to, struct mst_why *why)
{
    struct mst_keeper *k = vm->keeper;
    struct mst_make *job = calloc(1, sizeof(*job)), **last = &k->makes_waiting;
    int r;

    if (!job)
        return -ENOMEM;
    job->work.data = job;
    job->vm = vm;
    job->folder = k->conf->main_storage;
    job->areas = vm->areas;
    job->kinds = kinds;
    r = takes_memory(job) && k->makes_waiting && k->dropping ? 1 : make_try(job, why);
    if (r < 0) {
        free(job);
        return r;
    }
    vm->areas_making = true;
    vm->areas_reply_to = reply_to;
    vm->users++;
    if (r == 0)
        return 0;
    while (*last)
        last = &(*last)->next;
    *last = job;
    return 0;
}

struct drop_job {
    uv_work_t work;
    struct mst_keeper *keeper;
    struct mst_areas areas;
};

static void drop_work(uv_work_t *work)
{
    struct drop_job *job = work->data;

    mst_priority_worker();
    mst_areas_unmap(job->keeper->conf->main_storage, &job->areas, false);
}

/* The memory is free only now, so only now does the budget get it back. */
static void drop_after(uv_work_t *work, int status)
{
    struct drop_job *job = work->data;
    struct mst_keeper *k = job->keeper;

    (void)status;
    k->dropping--;
    mst_budget_give(&k->budget, job->areas.bytes);
    free(job);
    make_waiting(k);
}

void mst_vm_areas_drop(struct mst_vm *vm)
{
    struct mst_keeper *k = vm->keeper;
    struct drop_job *job;

    if (!vm->areas_ready)
        return;
    vm->areas_ready = false;
    /* Names go at once: the same (vm, epoch) may be made again while the worker still unmaps. */
    mst_areas_unlink(k->conf->main_storage, &vm->areas);
    job = calloc(1, sizeof(*job));
    if (job) {
        job->work.data = job;
        job->keeper = k;
        job->areas = vm->areas;
        k->dropping++;
        if (uv_queue_work(k->loop, &job->work, drop_work, drop_after) == 0)
            return;
        k->dropping--;
        free(job);
    }
    mst_areas_unmap(k->conf->main_storage, &vm->areas, false);
    mst_budget_give(&k->budget, vm->areas.bytes);
}
