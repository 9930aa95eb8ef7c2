/* Records in two slots (shm/publish.c), word by word.
 *
 * A slot is three words here: version, sum, body; that one word of body is of another record than the sum is all that "torn" means. The writer stores them one by one in the order of mst_pub_write; it may end at any word, and a
 * successor goes on from what it finds. mst_pub_clear may come between. The reader copies words by RDMA READ, which promises no order:
 * any order whatever; then it picks, copies the heads once more, again in any order, and confirms (mst_pub_pick, mst_pub_confirm).
 *
 * The sum is an ideal one: it is right for exactly the words it was made of. (CRC32C takes a mix for whole once in 2^32 torn copies.)
 *
 * Bounds: 4 publications, 1 end of the writer, 1 clearing, 1 reading that may begin at any moment and tries as often as it likes (the
 * code: 8 times).
 *
 * Promised: what is accepted was published whole; it is not older than what was published when the reading began, unless the slots were
 * emptied meanwhile; "no record" is answered only when at some moment of the reading there was none.
 *
 * The second configuration asks what the versions alone are good for: a reader that copies in order (a local one), and a sum that notices
 * nothing. Without clearing, that is safe too.
 */
/* variant: in_order = -DIN_ORDER; guards GUARD_ODD GUARD_VERSION_LAST GUARD_CONFIRM_ALONE */
#ifdef IN_ORDER
#define CLEARINGS 0
#else
#define CLEARINGS 1
#endif
#define RECORDS 4
#define CRASHES 1

byte V[2], S[2], B[2]; /* the shared words. Body: number of the record. Sum: 16 * record + version */
#define SUM(id, v) ((id) * 16 + (v))

byte made;      /* records begun */
byte pub;       /* number of the published record, 0: none */
byte published[RECORDS + 1]; /* version under which record i was published whole, 0: never */
byte crashes, clearings;

/* the reading */
byte least;     /* pub when it began */
bit gap;        /* there was a moment without a record since */

#ifdef REACH
#define REACHED(what) assert(REACH != what)
#else
#define REACHED(what) skip
#endif
#define R_TORN        1 /* nothing whole: once more */
#define R_MOVED       2 /* whole, but gone when looked at again */
#define R_FALLS_BACK  3 /* the older slot is taken while the newer is written */
#define R_AFTER_CRASH 4 /* a record of a writer that found an unfinished one */
#define R_NO_RECORD   5
#define R_GIVES_UP    6 /* torn at every try */
#define R_NEWER       7 /* accepted something newer than what was there at the beginning */
#define R_COMES_UP    9 /* no record, it seemed; the second look found one */
#define R_OVER_CLEAR  8 /* a record from before the clearing and one from after it share a version */

/* GUARD_SUM: the sum over head and body is looked at (publish.c, slot_whole). */
#if defined(NO_GUARD_SUM) || defined(IN_ORDER)
#define SUM_OK(v, s, b) true
#else
#define SUM_OK(v, s, b) ((s) == SUM(b, v))
#endif
#define WHOLE(v, s, b) ((v) != 0 && ((v) & 1) == 0 && SUM_OK(v, s, b))

/* GUARD_ODD: the version is odd while the writer is inside. GUARD_VERSION_LAST: it becomes even after everything else. */
#ifdef NO_GUARD_ODD
#define MARK skip
#elif defined(NO_GUARD_VERSION_LAST)
#define MARK V[slot] = next
#else
#define MARK V[slot] = next - 1
#endif

/* The writer's copy is exact: it is the only one that writes. */
inline older_slot()
{
    w0 = WHOLE(V[0], S[0], B[0]);
    w1 = WHOLE(V[1], S[1], B[1]);
    if
    :: w0 && w1 -> slot = (V[0] < V[1] -> 0 : 1)
    :: w0 && !w1 -> slot = 1
    :: !w0 && w1 -> slot = 0
    :: else -> slot = (V[1] < V[0] -> 1 : 0)
    fi;
    w0 = 0; w1 = 0
}
/* GUARD_OLDER: never the newest whole one. */
#ifdef NO_GUARD_OLDER
#define OTHER slot = 1 - slot
#else
#define OTHER skip
#endif

/* GUARD_CLEAR_ORDER: the version of the older one goes first (mst_pub_clear). */
#ifdef NO_GUARD_CLEAR_ORDER
#define CLEAR_FIRST slot = 1 - slot
#else
#define CLEAR_FIRST skip
#endif

active proctype writer()
{
    bit slot, w0, w1;
    byte next;

end:
    do
    :: atomic { made < RECORDS ->
            d_step {
                older_slot();
                OTHER;
                next = (V[0] > V[1] -> V[0] : V[1]);
                next = next - (next & 1) + 2;
                made++
            };
            MARK };
        {
            if :: S[slot] = SUM(made, next) :: crashes < CRASHES -> goto crashed fi;
            if :: B[slot] = made :: crashes < CRASHES -> goto crashed fi;
            if
            :: d_step { true -> V[slot] = next; pub = made; published[made] = next; next = 0; slot = 0 }
            :: crashes < CRASHES -> goto crashed
            fi
        }
    :: atomic { clearings < CLEARINGS ->
            d_step { clearings++; older_slot(); CLEAR_FIRST };
            V[slot] = 0 };
        if
        :: d_step { true -> V[1 - slot] = 0; pub = 0; gap = 1; slot = 0 }
        :: crashes < CRASHES -> goto crashed
        fi;
        atomic { S[0] = 0; B[0] = 0 }; /* nobody takes them for anything any more */
        d_step { S[1] = 0; B[1] = 0 };
        next = 0
    od;
crashed:
    atomic { crashes++; next = 0; slot = 0 };
    goto end
}
#ifdef IN_ORDER
#define PART(bit_, to, from) :: atomic { mask == bit_ - 1 -> to = from; mask = mask | bit_ }
#else
#define PART(bit_, to, from) :: atomic { !(mask & bit_) -> to = from; mask = mask | bit_; TIDY(0, 7); TIDY(1, 56) }
/* What is known not to be whole need not be told apart. */
#define TIDY(i, all) \
    if :: (mask & all) == all && cv[i] != 0 && !WHOLE(cv[i], cs[i], cb[i]) -> cv[i] = 1; cs[i] = 0; cb[i] = 0 :: else fi
#endif
#ifdef IN_ORDER
#define HEAD PART
#else
#define HEAD(bit_, to, from) :: atomic { !(mask & bit_) -> to = from; mask = mask | bit_ }
#endif
/* GUARD_CONFIRM: the picked head is looked for once more (mst_pub_confirm). */
#if defined(NO_GUARD_CONFIRM) || defined(NO_GUARD_CONFIRM_ALONE)
#define CONFIRMED true
#elif defined(IN_ORDER)
#define CONFIRMED (cv[0] == pv || cv[1] == pv)
#else
#define CONFIRMED (cv[0] == pv && cs[0] == ps || cv[1] == pv && cs[1] == ps)
#endif

/* GUARD_CONFIRM_NONE: "no record" too is looked at twice (mst_pub_read). */
#ifdef NO_GUARD_CONFIRM_NONE
#define NONE_AT_ONCE assert(gap); over = 1
#else
#define NONE_AT_ONCE skip
#endif

active proctype reader()
{
    byte cv[2], cs[2], cb[2]; /* private copy */
    byte pv, ps, pb, mask;
    bit w0, w1, none, over;

    d_step { least = pub; gap = (pub == 0) };
again:
    do
    PART(1, cv[0], V[0])
    PART(2, cs[0], S[0])
    PART(4, cb[0], B[0])
    PART(8, cv[1], V[1])
    PART(16, cs[1], S[1])
    PART(32, cb[1], B[1])
    :: d_step { mask == 63 -> mask = 0 } -> break
    od;
    atomic {
        w0 = WHOLE(cv[0], cs[0], cb[0]);
        w1 = WHOLE(cv[1], cs[1], cb[1]);
        if
        :: w0 && (!w1 || cv[0] > cv[1]) -> pv = cv[0]; ps = cs[0]; pb = cb[0]
        :: w1 && (!w0 || cv[0] <= cv[1]) -> pv = cv[1]; ps = cs[1]; pb = cb[1]
        :: else ->
            if
            :: cv[0] == 0 && cv[1] == 0 -> none = 1; NONE_AT_ONCE
            :: else -> REACHED(R_TORN)
            fi
        fi;
        if
        :: (w0 || w1) && (cv[0] & 1 || cv[1] & 1) -> REACHED(R_FALLS_BACK)
        :: else
        fi;
        cv[0] = 0; cs[0] = 0; cb[0] = 0; cv[1] = 0; cs[1] = 0; cb[1] = 0
    };
    if
    :: over -> goto done
    :: !over && !(w0 || w1 || none) -> goto retry
    :: else
    fi;
    atomic { w0 = 0; w1 = 0 };
    do
    HEAD(1, cv[0], V[0])
    HEAD(2, cs[0], S[0])
    HEAD(4, cv[1], V[1])
    HEAD(8, cs[1], S[1])
    :: d_step { mask == 15 -> mask = 0 } -> break
    od;
    atomic {
        if
        :: none -> if :: cv[0] == 0 && cv[1] == 0 -> assert(gap); REACHED(R_NO_RECORD); over = 1 :: else -> REACHED(R_COMES_UP) fi
        :: !none && CONFIRMED ->
            assert(pb != 0 && published[pb] == pv);   /* published whole, not torn */
            assert(pb >= least || gap);               /* not older than what was there */
            if :: least != 0 && pb > least -> REACHED(R_NEWER) :: else fi;
            if :: crashes != 0 && pb == made && pb > 1 && published[pb - 1] == 0 -> REACHED(R_AFTER_CRASH) :: else fi;
            over = 1
        :: else -> REACHED(R_MOVED); if :: cv[0] == pv || cv[1] == pv -> REACHED(R_OVER_CLEAR) :: else fi
        fi;
        cv[0] = 0; cs[0] = 0; cv[1] = 0; cs[1] = 0; pv = 0; ps = 0; pb = 0; none = 0
    };
    if :: over -> goto done :: else fi;
retry:
    if
    :: goto again
    :: REACHED(R_GIVES_UP)
    fi;
done:
    atomic { over = 0; w0 = 0; w1 = 0; least = 0 }
}
