/* Checkpoint, acknowledge, revoke, verify, resume: a VM under protect: mirror (DESIGN 4). A specification: the code comes after it.
 *
 * A source writes checkpoint after checkpoint into the log ring of each mirror that counts; the mirror's CPU verifies, acknowledges, and applies
 * to its image. Output leaves when every mirror that counts has acknowledged. When the source is lost it is fenced; a mirror is revoked
 * (its log deregistered), then verified; one is resumed, as the next epoch, on another node, and mirrors are seeded anew for it. Then that may be lost
 * as well.
 *
 * A record is two pieces, data and commit. What was posted becomes visible piece by piece, in any order, or never, also after the source is
 * dead, as long as the log is registered. That a WRITE has completed says nothing. Checkpoints hold what has changed, so they only
 * make sense one after the other. The ring holds two records. Sums are ideal. Who counts is a row of the store with the epoch; the source's view of
 * it is a copy. A takeover may go on without a mirror that does not answer.
 *
 * Bounds: 2 mirrors, 3 sequences, 2 epochs and a second takeover; each mirror may die at any moment (its memory is gone with it).
 *
 * I4 and output commit: what is resumed holds every checkpoint whose output has left. I5: never a stale mirror. I6: nothing torn, no gap.
 * I14: once a mirror was verified for a takeover, or is granted to another epoch, an earlier writer changes nothing.
 */
#define SEQS 3
#define TORN 9

#ifdef REACH
#define REACHED(what) assert(REACH != what)
#else
#define REACHED(what) skip
#endif
#define R_ALL_RELEASED     1  /* the third checkpoint's output has left */
#define R_RESUMED_NEWER    2  /* what is resumed is newer than what was let out: verified, not acknowledged yet */
#define R_REPLAYED         3  /* a record that was in the log only is put over the image at a takeover */
#define R_HALF_THERE       4  /* half a record is in the log at a takeover */
#define R_GIVEN_UP         5  /* resumed although the other mirror had been given up, and has less */
#define R_EPOCH_2          6  /* a second takeover, of a checkpoint of epoch 2 */
#define R_OLD_COPY         7  /* then a copy of epoch 1 with a higher sequence is there */
#define R_LOST             8  /* nothing is left that may be resumed: said plainly */
#define R_LATE_PIECE       9  /* a piece becomes visible after its source was fenced */
#define R_RING_FULL        10
#define R_EPOCH_1_AGAIN    11 /* epoch 2 had let nothing out: epoch 1's checkpoint is taken once more */

byte epoch = 1;
bit alive = 1;           /* the source of this epoch may run */
byte released;
byte row[2] = 1;         /* store: epoch for which this mirror counts, 0: does not */
bit loc[2] = 1;          /* the source sends to it, and waits for it */
bit sure[2] = 1;         /* the source knows that its row is in the store */
byte posted[2];
byte out[3];             /* by epoch: output up to here has left */

bit up[2] = 1, open[2] = 1;       /* open: its log is registered for the writer of im_epoch */
byte data[4], commit[4];          /* log: place 2 * mirror + sequence % 2: of which record is the piece that is there */
byte fly_d[2], fly_c[2];          /* bits: pieces on their way */
byte fly_epoch[2] = 1;            /* whose */
byte acked[2], image[2];          /* image: the sequence it holds, TORN: neither one nor the other */
byte im_epoch[2] = 1;
bit applying[2];                  /* half of record image + 1 is over it */
byte seeded[2];                   /* 1 begun */

byte st[2];                       /* takeover: 1 revoked, 2 verified */
bit takeover, done;
#define P(m, q) ((m) * 2 + (q) % 2)

/* GUARD_ACK: output waits for acknowledgements, not for completions. GUARD_ALL: of every mirror that counts. GUARD_SOME: of one at least.
 * GUARD_JOIN_DURABLE: one of which the store says that it counts. */
#if defined(NO_GUARD_ACK)
#define SAFE(m, q) (!loc[m] || posted[m] >= q)
#elif defined(NO_GUARD_ALL)
#define SAFE(m, q) (loc[0] && acked[0] >= q || loc[1] && acked[1] >= q)
#else
#define SAFE(m, q) (!loc[m] || acked[m] >= q)
#endif
#ifdef NO_GUARD_SOME
#define SOME true
#elif defined(NO_GUARD_JOIN_DURABLE)
#define SOME (loc[0] || loc[1])
#else
#define SOME (sure[0] || sure[1])
#endif
/* GUARD_CREDIT: a place of the ring is written again when what it held is in the image. */
#ifdef NO_GUARD_CREDIT
#define CREDIT(m) true
#else
#define CREDIT(m) (posted[m] < image[m] + 2)
#endif
/* GUARD_SUM: over all of the record. GUARD_SEQ: one after the other. */
#ifdef NO_GUARD_SUM
#define WHOLE(m, q) (commit[P(m, q)] == q)
#else
#define WHOLE(m, q) (commit[P(m, q)] == q && data[P(m, q)] == q)
#endif
#ifdef NO_GUARD_SEQ
#define NEXT(m, q) (q > image[m])
#else
#define NEXT(m, q) (q == image[m] + 1)
#endif
/* GUARD_DURABLE: a mirror is left out only once the store says that it does not count. */
#ifdef NO_GUARD_DURABLE
#define MAY_LEAVE_OUT(m) true
#define GIVEN_UP(m) true
#else
#define MAY_LEAVE_OUT(m) (row[m] == 0)
#define GIVEN_UP(m) (epoch == 1 || seeded[m] > 1)
#endif
/* GUARD_SEED: it counts for a new epoch when all of the memory is there. */
#ifdef NO_GUARD_SEED
#define SEEDED(m) (seeded[m] != 0)
#else
#define SEEDED(m) (im_epoch[m] == epoch && image[m] != TORN)
#endif
/* GUARD_JOIN_FIRST: the source waits for a new mirror before that counts, as it leaves one out only after that counts no more. */
#ifdef NO_GUARD_JOIN_FIRST
#define MAY_COUNT(m) (seeded[m] == 1 && SEEDED(m) && acked[m] >= released)
#define MAY_JOIN(m) (row[m] == 2 && SEEDED(m))
#else
#define MAY_COUNT(m) (loc[m])
#define MAY_JOIN(m) (seeded[m] == 1 && SEEDED(m) && acked[m] >= released)
#endif
/* GUARD_REVOKE: deregister, then verify. GUARD_REVOKE_SEED: deregister, then give the log to another epoch's writer. */
#ifdef NO_GUARD_REVOKE
#define VERIFY(m) (st[m] == 0)
#else
#define VERIFY(m) (st[m] == 1)
#endif
#ifdef NO_GUARD_REVOKE_SEED
#define STOP_OLD(m) skip
#else
#define STOP_OLD(m) fly_d[m] = 0; fly_c[m] = 0
#endif
/* GUARD_FENCE: the source is proved stopped before anything is taken over. */
#ifdef NO_GUARD_FENCE
#define FENCE_SOURCE skip
#else
#define FENCE_SOURCE alive = 0
#endif
/* GUARD_COUNTS: only who counts is resumed. GUARD_STALE_EPOCH: a copy of an earlier epoch only when nobody ever counted for the later one.
 * GUARD_EPOCH_FIRST: epoch before sequence. */
#ifdef NO_GUARD_COUNTS
#define COUNTS(m) true
#else
#define COUNTS(m) (row[m] == im_epoch[m])
#endif
#ifdef NO_GUARD_STALE_EPOCH
#define EPOCH_OK(m) (im_epoch[m] == epoch || !(up[1 - m] && st[1 - m] == 2 && COUNTS(1 - m) && im_epoch[1 - m] > im_epoch[m]))
#elif defined(NO_GUARD_EPOCH_FIRST)
#define EPOCH_OK(m) (im_epoch[m] == epoch || !(up[1 - m] && st[1 - m] == 2 && COUNTS(1 - m) && image[1 - m] > image[m]))
#else
#define EPOCH_OK(m) (im_epoch[m] == epoch || (row[0] != epoch && row[1] != epoch))
#endif
#define MAY_RESUME(m) (takeover && up[m] && st[m] == 2 && COUNTS(m) && EPOCH_OK(m))

#define CHANGES(m, what) \
    if :: takeover && !alive -> REACHED(R_LATE_PIECE) :: else fi; \
    assert(st[m] != 2 && fly_epoch[m] == im_epoch[m]); /* I14 */ \
    what

#define SOURCE(m, q) \
    :: d_step { alive && loc[m] && up[m] && im_epoch[m] == epoch && image[m] != TORN && posted[m] == q - 1 && CREDIT(m) -> \
        posted[m] = q; fly_d[m] = fly_d[m] | (1 << q); fly_c[m] = fly_c[m] | (1 << q); fly_epoch[m] = epoch } \
    POINT(alive && loc[m] && up[m] && posted[m] == q - 1 && !CREDIT(m), R_RING_FULL) \
    :: d_step { (fly_d[m] & (1 << q)) && open[m] && up[m] -> fly_d[m] = fly_d[m] & ~(1 << q); CHANGES(m, data[P(m, q)] = q) } \
    :: d_step { (fly_c[m] & (1 << q)) && open[m] && up[m] -> fly_c[m] = fly_c[m] & ~(1 << q); CHANGES(m, commit[P(m, q)] = q) } \
    /* the mirror's CPU: verified and acknowledged; then applied, in two halves */ \
    :: d_step { up[m] && st[m] == 0 && open[m] && image[m] != TORN && !applying[m] && acked[m] < q && WHOLE(m, q) && NEXT(m, q) -> \
        acked[m] = q; applying[m] = 1 } \
    :: d_step { up[m] && st[m] == 0 && applying[m] && acked[m] == q -> \
        applying[m] = 0; image[m] = (data[P(m, q)] == q && image[m] == q - 1 -> q : TORN) }

#define RELEASE(q) \
    :: d_step { alive && released == q - 1 && SAFE(0, q) && SAFE(1, q) && SOME -> \
        released = q; out[epoch] = q; if :: q == SEQS -> REACHED(R_ALL_RELEASED) :: else fi }

#ifdef REACH
#define POINT(when, what) :: d_step { when -> REACHED(what) }
#else
#define POINT(when, what)
#endif

#define EMPTY_LOG(m) data[P(m, 0)] = 0; data[P(m, 1)] = 0; commit[P(m, 0)] = 0; commit[P(m, 1)] = 0
#define REPLAY(m, q) \
    if :: image[m] == q - 1 && (applying[m] || WHOLE(m, q)) -> \
        image[m] = (data[P(m, q)] == q -> q : TORN); applying[m] = 0; REACHED(R_REPLAYED) \
       :: else -> if :: image[m] == q - 1 && (commit[P(m, q)] == q || data[P(m, q)] == q) -> REACHED(R_HALF_THERE) :: else fi fi

#define MIRROR(m) \
    SOURCE(m, 1) SOURCE(m, 2) SOURCE(m, 3) \
    :: d_step { up[m] -> /* dies */ \
        up[m] = 0; open[m] = 0; EMPTY_LOG(m); fly_d[m] = 0; fly_c[m] = 0; image[m] = 0; applying[m] = 0; acked[m] = 0; st[m] = 0; seeded[m] = 0 } \
    /* given up because it is dead or slow: first in the store */ \
    :: d_step { alive && row[m] == epoch && sure[m] && sure[1 - m] && row[1 - m] == epoch -> row[m] = 0; sure[m] = 0 } \
    :: d_step { alive && loc[m] && sure[1 - m] && GIVEN_UP(m) && MAY_LEAVE_OUT(m) -> loc[m] = 0 } \
    /* a new epoch: the log is taken from the old writer, all of the memory is copied, then it counts */ \
    :: d_step { alive && epoch == 2 && up[m] && im_epoch[m] == 1 && seeded[m] == 0 -> \
        open[m] = 0; STOP_OLD(m); EMPTY_LOG(m); image[m] = TORN; applying[m] = 0; acked[m] = 0; seeded[m] = 1; row[m] = 0; im_epoch[m] = 2; st[m] = 0 } \
    :: d_step { alive && epoch == 2 && up[m] && seeded[m] == 1 && image[m] == TORN -> \
        image[m] = (released == 0 -> 1 : released); acked[m] = image[m]; posted[m] = image[m]; open[m] = 1 } \
    :: d_step { alive && epoch == 2 && up[m] && !loc[m] && MAY_JOIN(m) -> loc[m] = 1 } \
    :: d_step { alive && epoch == 2 && up[m] && row[m] != 2 && seeded[m] == 1 && MAY_COUNT(m) -> row[m] = 2; seeded[m] = 2 } \
    :: d_step { alive && epoch == 2 && row[m] == 2 && !sure[m] && loc[m] -> sure[m] = 1 } \
    /* takeover */ \
    :: d_step { takeover && up[m] && st[m] == 0 -> st[m] = 1; open[m] = 0 } \
    :: d_step { takeover && up[m] && VERIFY(m) -> st[m] = 2; REPLAY(m, 1); REPLAY(m, 2); REPLAY(m, 3) } \
    :: d_step { MAY_RESUME(m) -> \
        assert(image[m] != TORN);                                       /* I6 */ \
        assert(image[m] >= out[im_epoch[m]]);                           /* I4, output commit */ \
        assert(im_epoch[m] == epoch || out[2] == 0);                    /* I5 */ \
        if :: image[m] > out[im_epoch[m]] -> REACHED(R_RESUMED_NEWER) :: else fi; \
        if :: row[1 - m] == 0 && up[1 - m] && epoch == 1 && image[1 - m] < image[m] -> REACHED(R_GIVEN_UP) :: else fi; \
        if :: epoch == 2 && im_epoch[m] == 2 -> REACHED(R_EPOCH_2); \
            if :: up[1 - m] && im_epoch[1 - m] == 1 && image[1 - m] > image[m] -> REACHED(R_OLD_COPY) :: else fi \
           :: else fi; \
        if :: epoch == 2 && im_epoch[m] == 1 -> REACHED(R_EPOCH_1_AGAIN) :: else fi; \
        NEXT_EPOCH }
#define NEXT_EPOCH \
        takeover = 0; alive = 1; released = 0; loc[0] = 0; loc[1] = 0; sure[0] = 0; sure[1] = 0; posted[0] = 0; posted[1] = 0; \
        if :: epoch == 1 -> epoch = 2 :: else -> done = 1; alive = 0; up[0] = 0; up[1] = 0 fi

active proctype world()
{
end:
    do
    RELEASE(1) RELEASE(2) RELEASE(3)
    MIRROR(0)
    MIRROR(1)
    :: d_step { !takeover && !done -> FENCE_SOURCE; takeover = 1; st[0] = 0; st[1] = 0 }
    POINT(takeover && !up[0] && !up[1], R_LOST)
    od
}
