/* A fabric: one RDMA device, its event channel and its end. */

#include "base/clock.h"
#include "fabric/internal.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int mst_address_parse(const char *text, uint16_t port, struct sockaddr_storage *ret_address)
{
    memset(ret_address, 0, sizeof(*ret_address));
    if (uv_ip4_addr(text, port, (struct sockaddr_in *)ret_address) == 0)
        return 0;
    memset(ret_address, 0, sizeof(*ret_address));
    if (uv_ip6_addr(text, port, (struct sockaddr_in6 *)ret_address) == 0)
        return 0;
    return -EINVAL;
}

void mst_address_text(const struct sockaddr *address, char *buf, size_t size)
{
    buf[0] = '\0';
    if (address->sa_family == AF_INET)
        uv_ip4_name((const struct sockaddr_in *)address, buf, size);
    else if (address->sa_family == AF_INET6)
        uv_ip6_name((const struct sockaddr_in6 *)address, buf, size);
}

/* Name of the interface that has the address, or an empty string. */
static void interface_of(const struct sockaddr_storage *address, char name[static IF_NAMESIZE])
{
    struct ifaddrs *all, *one;
    char want[64], have[64];

    name[0] = '\0';
    mst_address_text((const struct sockaddr *)address, want, sizeof(want));
    if (getifaddrs(&all))
        return;
    for (one = all; one; one = one->ifa_next) {
        if (!one->ifa_addr)
            continue;
        mst_address_text(one->ifa_addr, have, sizeof(have));
        if (have[0] && strcmp(want, have) == 0) {
            snprintf(name, IF_NAMESIZE, "%s", one->ifa_name);
            break;
        }
    }
    freeifaddrs(all);
}

/* -EACCES when a device file is there and may not be opened. Verbs report this as "no device", which sends people the wrong way. */
static int check_permission(struct mst_why *why)
{
    struct dirent *entry;
    char path[300];
    int r = 0;
    DIR *dir = opendir("/dev/infiniband");

    if (!dir)
        return 0;
    while (!r && (entry = readdir(dir))) {
        if (strncmp(entry->d_name, "uverbs", 6) != 0 && strcmp(entry->d_name, "rdma_cm") != 0)
            continue;
        snprintf(path, sizeof(path), "/dev/infiniband/%s", entry->d_name);
        if (access(path, R_OK | W_OK) && errno == EACCES)
            r = mst_why_set(why, -EACCES, "%s may not be opened for reading and writing: add the user to the group of the file",
                            path);
    }
    closedir(dir);
    return r;
}

static int say_no_device(const struct sockaddr_storage *address, const char *text, struct mst_why *why)
{
    char interface[IF_NAMESIZE];
    int r = check_permission(why);

    if (r < 0)
        return r;
    interface_of(address, interface);
    if (!interface[0])
        return mst_why_set(
            why, -ENODEV,
            "no interface of this host has the fabric address %s: correct the address, or set it with `ip addr add`", text);
    return mst_why_set(
        why, -ENODEV,
        "no RDMA device has the fabric address %s (interface %s): for RDMA in software run "
        "`modprobe rdma_rxe && modprobe rdma_ucm && rdma link add rxe0 type rxe netdev %s`, then look at `rdma link`",
        text, interface, interface);
}

/* --- end of a device --- */

static void on_step(uv_timer_t *timer);

static void step_soon(struct mst_fabric *fabric)
{
    uv_timer_start(&fabric->step, on_step, 0, 0);
}

void mst_fabric_gone(struct mst_fabric *fabric, const char *text)
{
    struct mst_link *link;

    if (fabric->gone)
        return;
    fabric->gone = true;
    mst_why_set(&fabric->gone_why, -ENODEV, "RDMA device of %s: %s", fabric->address_text, text);
    TAILQ_FOREACH (link, &fabric->links, entry)
        mst_link_fail(link, -ENODEV, &fabric->gone_why);
    step_soon(fabric);
}

void mst_fabric_link_ended(struct mst_fabric *fabric)
{
    if (TAILQ_EMPTY(&fabric->links) && (fabric->gone || fabric->closing))
        step_soon(fabric);
}

/* librdmacm keeps a device open as long as the process lives, or until it sees another device. rxe and others without
 * disassociation are removed only when every user has closed them: `rdma link delete` would hang until we exit. So the descriptors
 * of the dead device are replaced by /dev/null, under librdmacm's feet: everything made on it is destroyed, and what librdmacm
 * later closes is /dev/null. */
static void release_dead_context(struct ibv_context *context)
{
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);

    if (null_fd < 0)
        return;
    dup3(null_fd, context->cmd_fd, O_CLOEXEC);
    dup3(null_fd, context->async_fd, O_CLOEXEC);
    close(null_fd);
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct mst_fabric *fabric = handle->data;
    void (*on_closed)(void *arg) = fabric->on_closed;
    void *arg = fabric->closed_arg;

    if (--fabric->handles > 0)
        return;
    free(fabric);
    if (on_closed)
        on_closed(arg);
}

static void tear_down(struct mst_fabric *fabric)
{
    assert(fabric->watchers == 0); /* contract: watchers are freed before their fabric */
    uv_close((uv_handle_t *)&fabric->cm_poll, on_handle_closed);
    uv_close((uv_handle_t *)&fabric->async_poll, on_handle_closed);
    uv_close((uv_handle_t *)&fabric->step, on_handle_closed);
    close(fabric->async_fd);
    rdma_destroy_id(fabric->anchor);
    rdma_destroy_event_channel(fabric->channel);
    if (fabric->gone)
        release_dead_context(fabric->context);
}

static void on_step(uv_timer_t *timer)
{
    struct mst_fabric *fabric = timer->data;

    if (!TAILQ_EMPTY(&fabric->links))
        return;
    if (fabric->closing) {
        tear_down(fabric);
    } else if (fabric->gone && !fabric->gone_told) {
        fabric->gone_told = true;
        if (fabric->on_gone)
            fabric->on_gone(fabric->gone_arg);
    }
}

void mst_fabric_on_gone(struct mst_fabric *fabric, void (*on_gone)(void *arg), void *arg)
{
    fabric->on_gone = on_gone;
    fabric->gone_arg = arg;
}

void mst_fabric_close(struct mst_fabric *fabric, void (*on_closed)(void *arg), void *arg)
{
    struct mst_link *link;

    if (fabric->closing)
        return;
    fabric->closing = true;
    fabric->on_closed = on_closed;
    fabric->closed_arg = arg;
    if (fabric->listener)
        rdma_destroy_id(fabric->listener);
    fabric->listener = NULL;
    TAILQ_FOREACH (link, &fabric->links, entry)
        mst_link_close(link);
    step_soon(fabric);
}

void mst_fabric_count(const struct mst_fabric *fabric, struct mst_fabric_counts *ret_counts)
{
    *ret_counts = fabric->counts;
}

/* --- events of the device --- */

static void handle_async(struct mst_fabric *fabric, const struct ibv_async_event *event)
{
    const char *name = ibv_event_type_str(event->event_type);
    struct mst_link *link;

    switch (event->event_type) {
    case IBV_EVENT_DEVICE_FATAL:
        mst_fabric_gone(fabric, name);
        return;
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
        link = event->element.qp->qp_context;
        mst_link_failf(link, -EIO, "queue pair to %s failed: %s", link->address, name);
        return;
    case IBV_EVENT_CQ_ERR:
        link = event->element.cq->cq_context;
        mst_link_failf(link, -EIO, "completion queue of the link to %s failed: %s", link->address, name);
        return;
    default: /* ports come and go: deadlines decide; COMM_EST: the first message says the same */
        return;
    }
}

static void on_async(uv_poll_t *poll, int status, int events)
{
    struct mst_fabric *fabric = poll->data;
    struct ibv_async_event event;

    (void)events;
    if (status < 0)
        errno = -status;
    else
        while (!ibv_get_async_event(fabric->context, &event)) {
            struct ibv_async_event copy = event;

            ibv_ack_async_event(&event); /* before anything is destroyed: destroying waits for it */
            handle_async(fabric, &copy);
        }
    if (errno == EAGAIN || errno == EINTR)
        return;
    uv_poll_stop(&fabric->async_poll);
    mst_fabric_gone(fabric, "its event file can no longer be read");
}

static void on_cm(uv_poll_t *poll, int status, int events)
{
    struct mst_fabric *fabric = poll->data;

    (void)events;
    if (status < 0) {
        uv_poll_stop(&fabric->cm_poll);
        mst_fabric_gone(fabric, "the connection manager's file can no longer be read");
        return;
    }
    mst_cm_ready(fabric);
}

/* --- opening --- */

/* On failure handles says how many are libuv's: it must close them before fabric is freed. */
static int start_handles(struct mst_fabric *fabric)
{
    int r;

    r = uv_poll_init(fabric->loop, &fabric->cm_poll, fabric->channel->fd);
    if (r < 0)
        return r;
    fabric->cm_poll.data = fabric;
    fabric->handles = 1;
    r = uv_poll_init(fabric->loop, &fabric->async_poll, fabric->async_fd);
    if (r < 0)
        return r;
    fabric->async_poll.data = fabric;
    uv_timer_init(fabric->loop, &fabric->step);
    fabric->step.data = fabric;
    fabric->handles = 3;
    uv_poll_start(&fabric->cm_poll, UV_READABLE, on_cm);
    uv_poll_start(&fabric->async_poll, UV_READABLE, on_async);
    return 0;
}

static int open_device(struct mst_fabric *fabric, struct mst_why *why)
{
    struct ibv_device_attr attr;
    int r;

    if (rdma_create_id(fabric->channel, &fabric->anchor, NULL, RDMA_PS_TCP))
        return mst_why_set(why, -errno, "rdma_create_id failed: %s", strerror(errno));
    if (rdma_bind_addr(fabric->anchor, (struct sockaddr *)&fabric->address) || !fabric->anchor->verbs) {
        r = say_no_device(&fabric->address, fabric->address_text, why);
        goto destroy_id;
    }
    fabric->context = fabric->anchor->verbs;
    r = -ibv_query_device(fabric->context, &attr);
    if (r < 0) {
        mst_why_set(why, r, "RDMA device %s does not answer: %s", ibv_get_device_name(fabric->context->device), strerror(-r));
        goto destroy_id;
    }
    fabric->reads_out_max =
        (uint8_t)(attr.max_qp_init_rd_atom < (int)MST_READS_MAX ? attr.max_qp_init_rd_atom : (int)MST_READS_MAX);
    fabric->reads_in_max = (uint8_t)(attr.max_qp_rd_atom < (int)MST_READS_MAX ? attr.max_qp_rd_atom : (int)MST_READS_MAX);
    /* A descriptor of our own for the same file: the loop may then watch it whoever else watches the original. */
    fabric->async_fd = fcntl(fabric->context->async_fd, F_DUPFD_CLOEXEC, 3);
    if (fabric->async_fd < 0) {
        r = mst_why_set(why, -errno, "no descriptor for the events of the RDMA device: %s", strerror(errno));
        goto destroy_id;
    }
    return 0;
destroy_id:
    rdma_destroy_id(fabric->anchor);
    return r;
}

int mst_fabric_open(uv_loop_t *loop, const char *address, struct mst_fabric **ret_fabric, struct mst_why *why)
{
    struct mst_fabric *fabric = calloc(1, sizeof(*fabric));
    int r;

    if (!fabric)
        return mst_why_set(why, -ENOMEM, "no memory");
    fabric->loop = loop;
    fabric->async_fd = -1;
    TAILQ_INIT(&fabric->links);
    snprintf(fabric->address_text, sizeof(fabric->address_text), "%s", address);
    r = mst_address_parse(address, 0, &fabric->address);
    if (r < 0) {
        mst_why_set(why, r, "\"%s\" is not a numeric IPv4 or IPv6 address", address);
        goto free_fabric;
    }
    fabric->channel = rdma_create_event_channel();
    if (!fabric->channel) {
        r = errno == ENOMEM ? mst_why_set(why, -ENOMEM, "no memory") : say_no_device(&fabric->address, address, why);
        goto free_fabric;
    }
    r = open_device(fabric, why);
    if (r < 0)
        goto destroy_channel;
    r = start_handles(fabric);
    if (r < 0) {
        mst_why_set(why, r, "libuv cannot watch the RDMA device: %s", uv_strerror(r));
        goto close_device;
    }
    *ret_fabric = fabric;
    return 0;
close_device:
    if (fabric->handles)
        uv_close((uv_handle_t *)&fabric->cm_poll, on_handle_closed);
    close(fabric->async_fd);
    rdma_destroy_id(fabric->anchor);
destroy_channel:
    rdma_destroy_event_channel(fabric->channel);
free_fabric:
    if (!fabric->handles) /* otherwise on_handle_closed frees it */
        free(fabric);
    return r;
}
