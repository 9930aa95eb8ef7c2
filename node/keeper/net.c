#include "node/keeper/keeper.h"

#include "base/log.h"
#include "base/priority.h"
#include "node/keeper/netdev.h"
#include "node/keeper/plug.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The network of a VM on this node: a tap, made before its QEMU and gone with it; under output commit a plug behind it. Devices are named after this node and a number that is not used
 * again by this keeper, so that one which is still being removed is in nobody's way. */

#define NAME_FMT "%s%" PRIu32 ".%" PRIx32 /* mt1023.ffffffff: 15 bytes at most */

/* What a gigabit link carries in a quarter of a second: more than most guests send in the time that their mirrors take. Beyond it frames are dropped. */
#define HELD_BYTES_MAX (32u << 20)

struct mst_net {
    char tap[IF_NAMESIZE], ifb[IF_NAMESIZE];
    struct mst_plug *plug; /* NULL: frames go straight into the bridge */
};

static void name(const struct mst_keeper *k, const char *kind, uint32_t number, char out[IF_NAMESIZE])
{
    snprintf(out, IF_NAMESIZE, NAME_FMT, kind, k->conf->id, number);
}

/* Taps went with the QEMUs of an earlier keeper; what is left all the same is nobody's. */
void mst_net_sweep(const struct mst_keeper *k)
{
    static const char *const kinds[] = {"mt", "mi"};
    char prefix[IF_NAMESIZE];
    int r;

    for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        snprintf(prefix, sizeof(prefix), "%s%" PRIu32 ".", kinds[i], k->conf->id);
        r = mst_netdev_sweep(prefix);
        if (r > 0)
            log_notice("removed %d network devices %s* of an earlier keeper", r, prefix);
        else if (r < 0)
            log_warning("network devices %s* of an earlier keeper are not removed: %s", prefix, strerror(-r));
    }
}

int mst_net_make(struct mst_vm *vm, const Mainstay__VmDefinition *def, int *ret_fd, struct mst_why *why)
{
    struct mst_keeper *k = vm->keeper;
    struct mst_net *net;
    int r;

    mst_net_close(vm); /* of an earlier try at this epoch */
    *ret_fd = -1;
    if (!def->network)
        return 0;
    net = calloc(1, sizeof(*net));
    if (!net)
        return -ENOMEM;
    name(k, "mt", k->net_number, net->tap);
    name(k, "mi", k->net_number++, net->ifb);
    r = mst_tap_make(net->tap, ret_fd, why);
    if (r < 0) {
        free(net);
        return r;
    }
    vm->net = net;
    return 0;
}

int mst_net_join(struct mst_vm *vm, const Mainstay__VmDefinition *def, struct mst_why *why)
{
    struct mst_net *net = vm->net;
    const char *bridge;
    int r;

    if (!def->network || !net)
        return 0;
    bridge = def->network->bridge ? def->network->bridge : vm->keeper->conf->bridge;
    r = mst_tap_join(net->tap, bridge, why);
    if (r == 0 && mst_output_wanted(def))
        r = mst_plug_new(net->tap, net->ifb, HELD_BYTES_MAX, &net->plug, why);
    if (r == 0)
        log_info("vm=%s epoch=%" PRIu64 " tap=%s bridge=%s", vm->name, vm->epoch, net->tap, bridge);
    return r;
}

int mst_net_open(struct mst_vm *vm, const Mainstay__VmDefinition *def, int *ret_fd, struct mst_why *why)
{
    int r = mst_net_make(vm, def, ret_fd, why);

    if (r == 0)
        r = mst_net_join(vm, def, why);
    if (r < 0 && *ret_fd >= 0) {
        close(*ret_fd);
        *ret_fd = -1;
    }
    if (r < 0)
        mst_net_close(vm);
    return r;
}

void mst_net_move(struct mst_vm *from, struct mst_vm *to)
{
    mst_net_close(to);
    to->net = from->net;
    from->net = NULL;
}

/* --- the end: the tap is gone with QEMU, the ifb is removed by a worker --- */

struct removal {
    uv_work_t work;
    char ifb[IF_NAMESIZE];
    int err;
};

static void remove_work(uv_work_t *work)
{
    struct removal *one = work->data;

    mst_priority_worker();
    one->err = mst_netdev_delete(one->ifb);
}

static void removed(uv_work_t *work, int status)
{
    struct removal *one = work->data;

    if (status == 0 && one->err < 0 && one->err != -ENODEV)
        log_warning("network device %s is not removed: %s", one->ifb, strerror(-one->err));
    free(one);
}

void mst_net_close(struct mst_vm *vm)
{
    struct mst_net *net = vm->net;
    struct removal *one;

    vm->net = NULL;
    if (net && net->plug) {
        mst_plug_free(net->plug);
        one = calloc(1, sizeof(*one));
        if (one) {
            memcpy(one->ifb, net->ifb, sizeof(one->ifb));
            one->work.data = one;
            uv_queue_work(vm->keeper->loop, &one->work, remove_work, removed); /* fails only without a callback */
        }
    }
    free(net);
}

/* --- what it sends --- */

static struct mst_plug *plug_of(const struct mst_vm *vm)
{
    return vm->net ? vm->net->plug : NULL;
}

int mst_net_cut(struct mst_vm *vm)
{
    return plug_of(vm) ? mst_plug_cut(plug_of(vm)) : 0;
}

int mst_net_release(struct mst_vm *vm)
{
    return plug_of(vm) ? mst_plug_release(plug_of(vm)) : 0;
}

int mst_net_let(struct mst_vm *vm)
{
    return plug_of(vm) ? mst_plug_open(plug_of(vm)) : 0;
}

int mst_net_held(struct mst_vm *vm)
{
    return plug_of(vm) ? mst_plug_held(plug_of(vm)) : 0;
}
