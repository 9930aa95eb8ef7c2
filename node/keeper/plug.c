#include "node/keeper/plug.h"

#include "node/keeper/netdev.h"

#include <errno.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <netlink/netlink.h>
#include <netlink/route/act/mirred.h>
#include <netlink/route/cls/u32.h>
#include <netlink/route/link.h>
#include <netlink/route/qdisc.h>
#include <netlink/route/qdisc/plug.h>
#include <netlink/route/tc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PLUG_HANDLE    TC_HANDLE(1, 0)
#define INGRESS_HANDLE 0xffff0000u
#define IFB_FRAMES     1000 /* ifb's own queue, between the plug and the bridge: its default of 32 makes bursts stutter */

struct mst_plug {
    struct nl_sock *sock;
    int ifindex; /* of the ifb */
};

static struct rtnl_qdisc *plug_qdisc(int ifindex)
{
    struct rtnl_qdisc *qdisc = rtnl_qdisc_alloc();

    if (!qdisc)
        return NULL;
    rtnl_tc_set_ifindex(TC_CAST(qdisc), ifindex);
    rtnl_tc_set_parent(TC_CAST(qdisc), TC_H_ROOT);
    rtnl_tc_set_handle(TC_CAST(qdisc), PLUG_HANDLE);
    if (rtnl_tc_set_kind(TC_CAST(qdisc), "plug") < 0) {
        rtnl_qdisc_put(qdisc);
        return NULL;
    }
    return qdisc;
}

/* Without NLM_F_CREATE it is a command to the one that is there. */
static int tell(struct mst_plug *plug, int (*what)(struct rtnl_qdisc *qdisc))
{
    struct rtnl_qdisc *qdisc = plug_qdisc(plug->ifindex);
    int r;

    if (!qdisc)
        return -ENOMEM;
    r = what(qdisc);
    if (r == 0)
        r = rtnl_qdisc_add(plug->sock, qdisc, NLM_F_REQUEST);
    rtnl_qdisc_put(qdisc);
    return mst_netlink_errno(r);
}

int mst_plug_cut(struct mst_plug *plug)
{
    return tell(plug, rtnl_qdisc_plug_buffer);
}

int mst_plug_release(struct mst_plug *plug)
{
    return tell(plug, rtnl_qdisc_plug_release_one);
}

int mst_plug_open(struct mst_plug *plug)
{
    return tell(plug, rtnl_qdisc_plug_release_indefinite);
}

int mst_plug_held(struct mst_plug *plug)
{
    struct nl_cache *cache;
    struct rtnl_qdisc *qdisc;
    int r = rtnl_qdisc_alloc_cache(plug->sock, &cache), held;

    if (r < 0)
        return mst_netlink_errno(r);
    qdisc = rtnl_qdisc_get(cache, plug->ifindex, PLUG_HANDLE);
    held = qdisc ? (int)rtnl_tc_get_stat(TC_CAST(qdisc), RTNL_TC_QLEN) : -ENODEV;
    rtnl_qdisc_put(qdisc);
    nl_cache_free(cache);
    return held;
}

/* --- making one --- */

static int ifb_make(struct nl_sock *sock, const char *name, int *ret_ifindex)
{
    struct rtnl_link *link = rtnl_link_alloc(), *made = NULL;
    int r;

    if (!link)
        return -NLE_NOMEM;
    rtnl_link_set_name(link, name);
    rtnl_link_set_txqlen(link, IFB_FRAMES);
    r = rtnl_link_set_type(link, "ifb");
    if (r == 0)
        r = rtnl_link_add(sock, link, NLM_F_CREATE | NLM_F_EXCL);
    if (r == 0)
        r = rtnl_link_get_kernel(sock, 0, name, &made);
    if (r == 0)
        *ret_ifindex = rtnl_link_get_ifindex(made);
    rtnl_link_put(made);
    rtnl_link_put(link);
    return r;
}

static int plug_make(struct nl_sock *sock, int ifindex, uint32_t limit_bytes)
{
    struct rtnl_qdisc *qdisc = plug_qdisc(ifindex);
    int r;

    if (!qdisc)
        return -NLE_NOMEM;
    r = rtnl_qdisc_plug_set_limit(qdisc, (int)limit_bytes);
    if (r == 0)
        r = rtnl_qdisc_add(sock, qdisc, NLM_F_CREATE | NLM_F_EXCL);
    rtnl_qdisc_put(qdisc);
    return r;
}

static int up(struct nl_sock *sock, int ifindex)
{
    struct rtnl_link *link = NULL, *change = rtnl_link_alloc();
    int r = change ? rtnl_link_get_kernel(sock, ifindex, NULL, &link) : -NLE_NOMEM;

    if (r == 0) {
        rtnl_link_set_flags(change, IFF_UP);
        r = rtnl_link_change(sock, link, change, 0);
    }
    rtnl_link_put(link);
    rtnl_link_put(change);
    return r;
}

static int ingress_make(struct nl_sock *sock, int tap)
{
    struct rtnl_qdisc *qdisc = rtnl_qdisc_alloc();
    int r;

    if (!qdisc)
        return -NLE_NOMEM;
    rtnl_tc_set_ifindex(TC_CAST(qdisc), tap);
    rtnl_tc_set_parent(TC_CAST(qdisc), TC_H_INGRESS);
    rtnl_tc_set_handle(TC_CAST(qdisc), INGRESS_HANDLE);
    r = rtnl_tc_set_kind(TC_CAST(qdisc), "ingress");
    if (r == 0)
        r = rtnl_qdisc_add(sock, qdisc, NLM_F_CREATE | NLM_F_EXCL);
    rtnl_qdisc_put(qdisc);
    return r;
}

static int redirect_action(int ifb, struct rtnl_act **ret_act)
{
    struct rtnl_act *act = rtnl_act_alloc();
    int r;

    if (!act)
        return -NLE_NOMEM;
    r = rtnl_tc_set_kind(TC_CAST(act), "mirred");
    if (r == 0)
        r = rtnl_mirred_set_action(act, TCA_EGRESS_REDIR);
    if (r == 0)
        r = rtnl_mirred_set_policy(act, TC_ACT_STOLEN);
    if (r == 0)
        r = rtnl_mirred_set_ifindex(act, (uint32_t)ifb);
    if (r < 0)
        rtnl_act_put(act);
    else
        *ret_act = act;
    return r;
}

/* Everything that comes from the tap goes to the ifb. */
static int redirect(struct nl_sock *sock, int tap, int ifb)
{
    struct rtnl_cls *cls = rtnl_cls_alloc();
    struct rtnl_act *act = NULL;
    int r;

    if (!cls)
        return -NLE_NOMEM;
    rtnl_tc_set_ifindex(TC_CAST(cls), tap);
    rtnl_tc_set_parent(TC_CAST(cls), INGRESS_HANDLE);
    rtnl_cls_set_prio(cls, 1);
    rtnl_cls_set_protocol(cls, ETH_P_ALL);
    r = rtnl_tc_set_kind(TC_CAST(cls), "u32");
    if (r == 0)
        r = rtnl_u32_add_key_uint32(cls, 0, 0, 0, 0);
    if (r == 0)
        r = rtnl_u32_set_cls_terminal(cls);
    if (r == 0)
        r = redirect_action(ifb, &act);
    if (r == 0)
        r = rtnl_u32_add_action(cls, act);
    if (r == 0)
        r = rtnl_cls_add(sock, cls, NLM_F_CREATE | NLM_F_EXCL);
    if (act)
        rtnl_act_put(act); /* cls has its own reference */
    rtnl_cls_put(cls);
    return r;
}

int mst_plug_new(const char *tap, const char *ifb, uint32_t limit_bytes, struct mst_plug **ret_plug, struct mst_why *why)
{
    struct mst_plug *plug = calloc(1, sizeof(*plug));
    unsigned tap_index = if_nametoindex(tap);
    const char *what = "netlink", *modules = "";
    int r;

    if (!plug)
        return -ENOMEM;
    r = mst_netlink_open(&plug->sock);
    if (r < 0) {
        free(plug);
        return mst_why_set(why, r, "no netlink socket: %s", strerror(-r));
    }
    r = tap_index == 0 ? -NLE_NODEV : 0;
    if (r == 0) {
        what = "device", modules = "ifb";
        r = ifb_make(plug->sock, ifb, &plug->ifindex);
    }
    if (r == 0) {
        what = "plug qdisc", modules = "sch_plug";
        r = plug_make(plug->sock, plug->ifindex, limit_bytes);
    }
    if (r == 0)
        r = up(plug->sock, plug->ifindex);
    if (r == 0) {
        what = "redirection", modules = "sch_ingress cls_u32 act_mirred";
        r = ingress_make(plug->sock, (int)tap_index);
    }
    if (r == 0)
        r = redirect(plug->sock, (int)tap_index, plug->ifindex);
    if (r < 0) {
        mst_why_set(why, mst_netlink_errno(r),
                    "output of tap %s cannot be held back (output-commit): %s of %s: %s: does this kernel have %s?", tap, what,
                    ifb, nl_geterror(r), modules);
        r = mst_netlink_errno(r);
    } else {
        r = mst_plug_open(plug);
    }
    if (r < 0) {
        if (plug->ifindex != 0)
            mst_netdev_delete(ifb);
        mst_plug_free(plug);
        return r;
    }
    *ret_plug = plug;
    return 0;
}

void mst_plug_free(struct mst_plug *plug)
{
    if (!plug)
        return;
    nl_socket_free(plug->sock);
    free(plug);
}
