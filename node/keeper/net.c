#include "node/keeper/keeper.h"

#include "base/log.h"
#include "node/keeper/netdev.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The network of a VM on this node: a tap, made before its QEMU and gone with it. Devices are named after this node and a number that is not used
 * again by this keeper, so that one which is still being removed is in nobody's way. */

#define NAME_FMT "%s%" PRIu32 ".%" PRIx32 /* mt1023.ffffffff: 15 bytes at most */

struct mst_net {
    char tap[IF_NAMESIZE];
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

int mst_net_open(struct mst_vm *vm, const Mainstay__VmDefinition *def, int *ret_fd, struct mst_why *why)
{
    struct mst_keeper *k = vm->keeper;
    const char *bridge;
    struct mst_net *net;
    int r;

    mst_net_close(vm); /* of an earlier try at this epoch */
    *ret_fd = -1;
    if (!def->network)
        return 0;
    bridge = def->network->bridge ? def->network->bridge : k->conf->bridge;
    net = calloc(1, sizeof(*net));
    if (!net)
        return -ENOMEM;
    name(k, "mt", k->net_number++, net->tap);
    r = mst_tap_open(net->tap, bridge, ret_fd, why);
    if (r < 0) {
        free(net);
        return r;
    }
    log_info("vm=%s epoch=%" PRIu64 " tap=%s bridge=%s", vm->name, vm->epoch, net->tap, bridge);
    vm->net = net;
    return 0;
}

void mst_net_close(struct mst_vm *vm)
{
    free(vm->net); /* its tap is gone with its QEMU */
    vm->net = NULL;
}
