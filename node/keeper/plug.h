#ifndef MST_KEEPER_PLUG_H
#define MST_KEEPER_PLUG_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

/* What a guest sends, held back: its frames go from the tap through an ifb device with the kernel's plug qdisc, and on into the bridge as if they had
 * come from the tap.
 *
 *   tap --ingress, mirred--> ifb: plug |####cut####| --> bridge
 *
 * The kernel knows one cut at a time: what lies before it leaves with mst_plug_release, and only then the next cut may be made. What is longer than
 * limit is dropped, as a full queue does. In line, each some 10 us; loop thread, or any single one. */

struct mst_plug;

/* A new plug behind tap, open. The device ifb is made, and stays until it is deleted (mst_netdev_delete), which drops what it holds.
 * -EOPNOTSUPP and others with why: which modules it takes. */
int mst_plug_new(const char *tap, const char *ifb, uint32_t limit_bytes, struct mst_plug **ret_plug, struct mst_why *why);
void mst_plug_free(struct mst_plug *plug);   /* NULL is fine */
int mst_plug_cut(struct mst_plug *plug);     /* an open one is closed: nothing leaves any more */
int mst_plug_release(struct mst_plug *plug); /* what came before the last cut */
int mst_plug_open(struct mst_plug *plug);    /* everything, and what comes */
/* Frames that are held. -errno. */
int mst_plug_held(struct mst_plug *plug);

#endif
