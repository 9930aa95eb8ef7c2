#include "node/keeper/keeper.h"

#include "base/fault.h"
#include "base/log.h"
#include "base/mutant.h"
#include "node/keeper/gate.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Output commit of a VM under protect: mirror: gate.h decides, the console (console.c) and the network (net.c) hold back, mirrors.c knows who is waited
 * for and what they have. Any failure of a queue leaves it as it is: what should have left stays, and is tried again; what should stay never leaves. */

struct mst_output {
    struct mst_gate gate;
    int told; /* the error of a queue that the log has last */
};

static void queue_failed(struct mst_vm *vm, const char *what, int err)
{
    if (vm->output->told != err)
        log_error("vm=%s epoch=%" PRIu64 " its frames cannot be %s: %s", vm->name, vm->epoch, what, strerror(-err));
    vm->output->told = err;
}

bool mst_output_wanted(const Mainstay__VmDefinition *def)
{
    return def->protect == MAINSTAY__PROTECT__PROTECT_MIRROR && def->output_commit;
}

int mst_output_open(struct mst_vm *vm, const Mainstay__VmDefinition *def)
{
    mst_output_free(vm); /* of an earlier try at this epoch */
    if (!mst_output_wanted(def))
        return 0;
    vm->output = calloc(1, sizeof(*vm->output));
    return vm->output ? 0 : -ENOMEM;
}

void mst_output_free(struct mst_vm *vm)
{
    free(vm->output);
    vm->output = NULL;
}

/* The guest stands. An open queue is empty when it is closed: what lay in it still would be taken for output of after the mark, and stay behind. */
static int cut(struct mst_vm *vm)
{
    bool closed = vm->output->gate.closed;
    int r = mst_net_cut(vm), held = r == 0 && !closed ? mst_net_held(vm) : r;

    if (held > 0) {
        r = mst_net_let(vm);
        return r < 0 ? r : -EAGAIN; /* at the next mark */
    }
    return held;
}

int mst_output_mark(struct mst_keeper *k, const mst_envelope *env, struct mst_why *why)
{
    const Mainstay__OutputMark *request = env->output_mark;
    struct mst_gate *gate;
    struct mst_vm *vm;
    uint64_t safe;
    int r = mst_slot_granted(k, request->vm, request->epoch, &vm, why);

    if (r < 0 || !vm->output)
        return r;
    gate = &vm->output->gate;
    mst_mirrors_marked(vm, request->seq);
    if (!mst_gate_mark(gate, request->seq, mst_console_take(vm), mst_mirrors_safe(vm, &safe)))
        return 0;
    r = cut(vm);
    if (r < 0) {
        if (r != -EAGAIN)
            queue_failed(vm, "held back", r);
        return 0; /* nobody is told that this VM is protected before it is */
    }
    if (!gate->closed) {
        log_info("vm=%s epoch=%" PRIu64 " its output waits for its mirrors from checkpoint %" PRIu64 " on", vm->name, vm->epoch,
                 request->seq);
        mst_console_gate(vm, true);
    }
    mst_gate_cut(gate, request->seq);
    MST_POINT("output.cut");
    return 0;
}

static void let(struct mst_vm *vm)
{
    int r = mst_net_let(vm);

    if (r < 0) {
        queue_failed(vm, "let go", r);
        return;
    }
    log_notice("vm=%s epoch=%" PRIu64 " its output waits for nobody: it has no mirror", vm->name, vm->epoch);
    mst_gate_opened(&vm->output->gate);
    mst_console_gate(vm, false);
}

void mst_output_go(struct mst_vm *vm)
{
    struct mst_gate_go go;
    uint64_t safe = 0;
    bool waits;
    int r;

    if (!vm->output || !vm->output->gate.closed || vm->output->gate.shut)
        return;
    /* A node that may have been given up says nothing, whoever has acknowledged what. mst_mirrors_go, once that is over. */
    if (!mst_tenure_settled(vm->keeper, NULL) || mst_guard_check(vm->keeper->guard, vm->name, vm->epoch, NULL) < 0)
        return;
    waits = mst_mirrors_safe(vm, &safe);
    go = mst_gate_look(&vm->output->gate, waits, safe);
    if (go.show)
        mst_console_show(vm, go.console);
    if (go.release) {
        r = mst_net_release(vm);
        if (r < 0) {
            queue_failed(vm, "let go", r);
        } else {
            mst_gate_released(&vm->output->gate);
            MST_POINT("output.released");
        }
    }
    if (go.open)
        let(vm);
}

void mst_output_shut(struct mst_vm *vm)
{
    if (!vm->output || vm->output->gate.shut)
        return;
    if (!vm->output->gate.closed) {
        mst_net_cut(vm); /* when it fails, killing its QEMU is what ends its output, as of any VM */
        mst_console_gate(vm, true);
    }
    mst_gate_shut(&vm->output->gate);
}

bool mst_output_covered(const struct mst_vm *vm, uint64_t seq)
{
    return !vm->output || mst_gate_covered(&vm->output->gate, seq) || MST_MUTANT(77);
}
