#ifndef MST_FABRIC_CREDITS_H
#define MST_FABRIC_CREDITS_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>

/* Who may SEND when, so that no SEND ever finds the peer without a posted RECV (RNR). Pure; one per link and side.
 *
 *   peer_free   RECVs of the peer that are ours to use. A message may take all but the last; the last one is for telling
 *               credits, so two sides that both ran out can always tell each other.
 *   owed        RECVs of ours that are posted again and that the peer does not know of. They ride on the next SEND; when
 *               half of all are owed and nothing is to be sent, a credit message of its own carries them.
 *
 * No deadlock: a side that cannot send has peer_free <= 1, so the peer has all but one of its RECVs to give back, which is at least its
 * half; it tells at once unless its own peer_free is 0, and that happens only after a credit message of it is on its way to us.
 * No chatter: a credit message takes one RECV and asks for an answer only after half of them, so answers thin out (hence at
 * least 4 RECVs, where half is 2). */
struct mst_credits {
    uint16_t peer_free, peer_total;
    uint16_t owed, total;
};

static inline void mst_credits_init(struct mst_credits *c, uint16_t own_recvs, uint16_t peer_recvs)
{
    *c = (struct mst_credits){.peer_free = peer_recvs, .peer_total = peer_recvs, .total = own_recvs};
}

static inline bool mst_credits_may_send(const struct mst_credits *c)
{
    return c->peer_free > 1;
}

static inline bool mst_credits_must_tell(const struct mst_credits *c)
{
    return c->owed >= c->total / 2 && c->peer_free > 0;
}

/* For the SEND that is posted now: uses one RECV of the peer, returns the credits to write into its header. */
static inline uint16_t mst_credits_take(struct mst_credits *c)
{
    uint16_t told = c->owed;

    c->peer_free--;
    c->owed = 0;
    return told;
}

static inline void mst_credits_reposted(struct mst_credits *c)
{
    c->owed++;
}

/* From the header of a SEND that came. -EPROTO when the peer gives back more than it has. */
static inline int mst_credits_given(struct mst_credits *c, uint16_t n)
{
    if (n > c->peer_total - c->peer_free)
        return -EPROTO;
    c->peer_free = (uint16_t)(c->peer_free + n);
    return 0;
}

#endif
