#include "tests/sim/oracle.h"

#include "node/keeper/keeper.h"

#include <errno.h>

/* What a guest sends, as its keeper's queues hold it back: one frame, and one line for the console, at every tick, so a tick says which they are. The
 * kernel's plug (node/keeper/plug.h) and the console's gate (console.c), as far as output commit goes; when anything leaves, the checkers are told. */

static struct sim_task *task_of(const struct mst_vm *vm)
{
    struct sim_task *task = sim_muted() ? NULL : sim_task_of_vm(sim_here(), vm->name, vm->epoch);

    if (task)
        sim_guest_advance(task);
    return task;
}

bool sim_output_held(const struct sim_task *task)
{
    return task->frames_held && task->console_held;
}

uint64_t sim_output_left(struct sim_task *task)
{
    sim_guest_advance(task);
    if (!sim_output_held(task))
        return task->tick;
    return task->frames_left > task->lines_left ? task->frames_left : task->lines_left;
}

/* --- net.h --- */

int mst_net_cut(struct mst_vm *vm)
{
    struct sim_task *task = task_of(vm);

    if (!task)
        return 0; /* its tap went with it */
    if (sim_chance(3))
        return -ENOBUFS;
    if (!task->frames_held)
        task->frames_left = task->tick;
    task->frames_held = true;
    task->frames_cut = task->tick;
    return 0;
}

int mst_net_release(struct mst_vm *vm)
{
    struct sim_task *task = task_of(vm);

    if (!task || !task->frames_held)
        return 0;
    if (sim_chance(3))
        return -ENOBUFS;
    task->frames_left = task->frames_cut;
    oracle_left(task, task->frames_left);
    return 0;
}

int mst_net_let(struct mst_vm *vm)
{
    struct sim_task *task = task_of(vm);

    if (!task)
        return 0;
    if (sim_chance(3))
        return -ENOBUFS;
    task->frames_held = false;
    oracle_left(task, task->tick);
    return 0;
}

/* Those of an open queue, behind a bridge that is congested. */
int mst_net_held(struct mst_vm *vm)
{
    return task_of(vm) && sim_chance(20) ? 1 + (int)sim_between(0, 9) : 0;
}

/* --- console.h --- */

void mst_console_gate(struct mst_vm *vm, bool closed)
{
    struct sim_task *task = task_of(vm);

    if (!task)
        return;
    if (closed && !task->console_held)
        task->lines_left = task->tick;
    task->console_held = closed;
    if (!closed)
        oracle_left(task, task->tick);
}

uint64_t mst_console_take(struct mst_vm *vm)
{
    struct sim_task *task = task_of(vm);

    return task ? task->tick : 0;
}

void mst_console_show(struct mst_vm *vm, uint64_t offset)
{
    struct sim_task *task = task_of(vm);

    if (!task || !task->console_held)
        return;
    if (offset > task->lines_left)
        task->lines_left = offset;
    oracle_left(task, task->lines_left);
}
