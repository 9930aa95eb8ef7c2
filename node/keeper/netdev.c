#include "node/keeper/netdev.h"

#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <netlink/netlink.h>
#include <netlink/route/link.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

int mst_netlink_errno(int err)
{
    switch (-err) {
    case NLE_SUCCESS:
        return 0;
    case NLE_NODEV:
    case NLE_OBJ_NOTFOUND: /* how libnl says that there is no such device, too */
        return -ENODEV;
    case NLE_EXIST:
        return -EEXIST;
    case NLE_PERM:
    case NLE_NOACCESS:
        return -EPERM;
    case NLE_NOMEM:
        return -ENOMEM;
    case NLE_BUSY:
        return -EBUSY;
    case NLE_INVAL:
        return -EINVAL;
    case NLE_OPNOTSUPP:
    case NLE_PROTO_MISMATCH:
    case NLE_AF_NOSUPPORT:
        return -EOPNOTSUPP;
    default:
        return -EIO;
    }
}

int mst_netlink_open(struct nl_sock **ret_sock)
{
    struct nl_sock *sock = nl_socket_alloc();
    int r;

    if (!sock)
        return -ENOMEM;
    r = nl_connect(sock, NETLINK_ROUTE);
    if (r < 0) {
        nl_socket_free(sock);
        return mst_netlink_errno(r);
    }
    *ret_sock = sock;
    return 0;
}

/* The guest's side is the only one that speaks on its tap. */
static void ipv6_off(const char *name)
{
    char path[96];

    snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/disable_ipv6", name);
    (void)mst_file_poke(path, "1"); /* a kernel without IPv6 has no such file, and nothing to switch off */
}

static int join_bridge(struct nl_sock *sock, const char *name, const char *bridge, struct mst_why *why)
{
    struct rtnl_link *tap = NULL, *to = NULL, *change = NULL;
    int r = rtnl_link_get_kernel(sock, 0, bridge, &to);

    if (r < 0)
        return mst_why_set(
            why, mst_netlink_errno(r),
            "bridge %s: %s on this node: make it, or name another one (bridge in node.yaml, network.bridge of the VM)", bridge,
            nl_geterror(r));
    r = rtnl_link_get_kernel(sock, 0, name, &tap);
    if (r < 0)
        goto put;
    change = rtnl_link_alloc();
    if (!change) {
        r = -NLE_NOMEM;
        goto put;
    }
    rtnl_link_set_master(change, rtnl_link_get_ifindex(to));
    rtnl_link_set_mtu(change, rtnl_link_get_mtu(to)); /* a bridge takes the smallest of its ports' */
    rtnl_link_set_flags(change, IFF_UP);
    r = rtnl_link_change(sock, tap, change, 0);
put:
    rtnl_link_put(change);
    rtnl_link_put(tap);
    rtnl_link_put(to);
    if (r < 0)
        return mst_why_set(why, mst_netlink_errno(r), "tap %s does not become a port of %s: %s", name, bridge, nl_geterror(r));
    return 0;
}

int mst_tap_make(const char *name, int *ret_fd, struct mst_why *why)
{
    struct ifreq request = {.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL)};
    int fd, r;

    fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return mst_why_set(why, errno == ENOENT ? -ENODEV : -errno, "/dev/net/tun: %s: load the module tun", strerror(errno));
    snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
    if (ioctl(fd, TUNSETIFF, &request) < 0) {
        r = mst_why_set(why, errno == EBUSY ? -EEXIST : -errno, "tap %s cannot be made: %s", name, strerror(errno));
        close(fd);
        return r;
    }
    ipv6_off(name);
    *ret_fd = fd;
    return 0;
}

int mst_tap_join(const char *name, const char *bridge, struct mst_why *why)
{
    struct nl_sock *sock = NULL;
    int r = mst_netlink_open(&sock);

    if (r < 0)
        return mst_why_set(why, r, "no netlink socket: %s", strerror(-r));
    r = join_bridge(sock, name, bridge, why);
    nl_socket_free(sock);
    return r;
}

int mst_tap_open(const char *name, const char *bridge, int *ret_fd, struct mst_why *why)
{
    int fd = -1, r = mst_tap_make(name, &fd, why);

    if (r < 0)
        return r;
    r = mst_tap_join(name, bridge, why);
    if (r < 0) {
        close(fd); /* the device goes with it */
        return r;
    }
    *ret_fd = fd;
    return 0;
}

static int delete_in(struct nl_sock *sock, const char *name)
{
    struct rtnl_link *link = rtnl_link_alloc();
    int r;

    if (!link)
        return -ENOMEM;
    rtnl_link_set_name(link, name);
    r = rtnl_link_delete(sock, link);
    rtnl_link_put(link);
    return mst_netlink_errno(r);
}

int mst_netdev_delete(const char *name)
{
    struct nl_sock *sock = NULL;
    int r = mst_netlink_open(&sock);

    if (r < 0)
        return r;
    r = delete_in(sock, name);
    nl_socket_free(sock);
    return r;
}

int mst_netdev_sweep(const char *prefix)
{
    struct if_nameindex *list = if_nameindex();
    struct nl_sock *sock = NULL;
    int r, count = 0;

    if (!list)
        return -errno;
    r = mst_netlink_open(&sock);
    if (r < 0)
        goto free_list;
    for (struct if_nameindex *one = list; one->if_index != 0 && r == 0; one++) {
        if (strncmp(one->if_name, prefix, strlen(prefix)) != 0)
            continue;
        r = delete_in(sock, one->if_name);
        count += r == 0;
        if (r == -ENODEV)
            r = 0; /* its QEMU had it still, and is gone now */
    }
    nl_socket_free(sock);
free_list:
    if_freenameindex(list);
    return r < 0 ? r : count;
}
