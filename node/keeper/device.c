#include "node/keeper/keeper.h"

#include "base/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The RDMA device may be missing at the start (rxe not made yet) and may go away (driver reload, link deleted). VMs run on meanwhile: losing the
 * device is no reason to lose them. It is opened again for as long as it takes; links, registrations and Keys are then made anew. The keeper
 * instance stays: it names this process and its VMs, not the device. */

struct mst_device {
    struct mst_keeper *keeper;
    uv_timer_t retry;
    struct mst_fabric *closing; /* being closed; opened again when it is gone */
    int last_error;             /* logged when it changes */
    void (*closed)(struct mst_keeper *k);
};

static void on_retry(uv_timer_t *timer);

static void device_closed(uv_handle_t *handle)
{
    free(handle->data);
}

static void finish(struct mst_device *device)
{
    struct mst_keeper *k = device->keeper;
    void (*closed)(struct mst_keeper *) = device->closed;

    k->device = NULL;
    uv_close((uv_handle_t *)&device->retry, device_closed);
    closed(k);
}

static void on_closed(void *arg)
{
    struct mst_device *device = arg;

    device->closing = NULL;
    if (device->closed)
        finish(device);
    else
        uv_timer_start(&device->retry, on_retry, MST_RETRY_MS, 0);
}

static void on_gone(void *arg)
{
    struct mst_device *device = arg;

    log_error("RDMA device with address %s went away: VMs run on, opening it again", device->keeper->conf->address);
    device->closing = device->keeper->fabric;
    device->keeper->fabric = NULL;
    mst_fabric_close(device->closing, on_closed, device);
}

static int device_open(struct mst_device *device, struct mst_why *why)
{
    struct mst_keeper *k = device->keeper;
    struct mst_fabric *fabric;
    int r;

    r = mst_fabric_open(k->loop, k->conf->address, &fabric, why);
    if (r < 0)
        return r;
    r = mst_fabric_listen(fabric, k->conf->port, mst_server_accept, k, why);
    if (r < 0) {
        device->closing = fabric;
        mst_fabric_close(fabric, on_closed, device); /* on_closed retries */
        return r;
    }
    mst_fabric_on_gone(fabric, on_gone, device);
    k->fabric = fabric;
    return 0;
}

static void on_retry(uv_timer_t *timer)
{
    struct mst_device *device = timer->data;
    struct mst_keeper *k = device->keeper;
    struct mst_why why = {0};
    int r = device_open(device, &why);

    if (r < 0) {
        if (r != device->last_error)
            log_error("cannot open the RDMA device, trying again every %d ms: %s", MST_RETRY_MS,
                      why.text[0] ? why.text : strerror(-r));
        device->last_error = r;
        if (!device->closing)
            uv_timer_start(timer, on_retry, MST_RETRY_MS, 0);
        return;
    }
    device->last_error = 0;
    log_notice("RDMA device with %s is open, listening on port %u", k->conf->address, k->conf->port);
    mst_controls_device_up(k);
    mst_peers_device_up(k);
}

int mst_device_new(struct mst_keeper *k)
{
    struct mst_device *device = calloc(1, sizeof(*device));

    if (!device)
        return -ENOMEM;
    device->keeper = k;
    k->device = device;
    uv_timer_init(k->loop, &device->retry);
    device->retry.data = device;
    uv_timer_start(&device->retry, on_retry, 0, 0);
    return 0;
}

void mst_device_close(struct mst_keeper *k, void (*closed)(struct mst_keeper *k))
{
    struct mst_device *device = k->device;

    if (!device) {
        closed(k);
        return;
    }
    device->closed = closed;
    uv_timer_stop(&device->retry);
    if (device->closing)
        return;
    if (!k->fabric) {
        finish(device);
        return;
    }
    device->closing = k->fabric;
    k->fabric = NULL;
    mst_fabric_close(device->closing, on_closed, device);
}
