#ifndef MST_KEEPER_NETDEV_H
#define MST_KEEPER_NETDEV_H

#include "base/err.h"

#include <net/if.h>
#include <stdint.h>

/* Network devices of the node: the tap of a VM and its place in a bridge. Speaks to the kernel only, in line: some ms, but for a removal, which waits for
 * a grace period of the kernel and is for a worker thread. Needs CAP_NET_ADMIN and /dev/net/tun. Any thread. */

/* A tap that is up, with frames like a virtio card's (IFF_VNET_HDR), as a port of bridge. It ends with the last descriptor of it, so it goes with the
 * QEMU that has it, however that ends. -ENODEV no bridge, or no /dev/net/tun; -EEXIST a device of this name. why names what to do. */
int mst_tap_open(const char *name, const char *bridge, int *ret_fd, struct mst_why *why);
/* The two halves of it: a tap that is down and in no bridge, so that nothing passes it; and then up, and a port of bridge. Errors as above. */
int mst_tap_make(const char *name, int *ret_fd, struct mst_why *why);
int mst_tap_join(const char *name, const char *bridge, struct mst_why *why);
/* Removes a device. 0; -ENODEV there is none. */
int mst_netdev_delete(const char *name);
/* Removes those whose name begins with prefix. Returns how many, or -errno. */
int mst_netdev_sweep(const char *prefix);

struct nl_sock;
/* For plug.c. */
int mst_netlink_open(struct nl_sock **ret_sock);
int mst_netlink_errno(int err); /* of libnl (-NLE_...): -errno */

#endif
