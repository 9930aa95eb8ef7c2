/* One keeper against any orders whatever: what its guard promises when coordinators are wrong.
 *
 * Orders to start and to fence come with every (term, epoch), for this or an earlier instance, in any order and any number of times, as from
 * stale leaders and from a store of which an old copy was put back. The process of the VM is followed from fork over its cgroup to its end; the keeper may die at
 * any moment and be started again on the same main storage.
 *
 * Bounds: 3 terms, 3 epochs, 3 instances of the keeper, 1 VM.
 *
 * Promised:
 *   P1  what was acknowledged as fenced (epoch E: it and all before it) never runs under this instance again, nor does anything
 *       that an earlier instance left in main storage. (Under a later instance nothing else may: a grant names its instance, P3.)
 *   P2  when a new instance joins ("earlier VMs dead"), nothing of an earlier instance runs or ever will
 *   P3  an order is obeyed by the instance it is for, and not when a newer term was heard (I10)
 *   P4  the epoch that is granted never goes back, nor does the term (I8)
 *   P5  never two processes of a VM (I1, on one node)
 *   P6  an epoch has one life: what has run and ended is not started again under the same epoch
 *   P7  an order to fence an older epoch leaves alone what runs under a newer grant
 */
#define TERMS 3
#define EPOCHS 3
#define BOOTS 3

bit up = 1;
byte inst = 1;
byte k_term, k_known, k_granted, k_fenced, k_process; /* node/keeper/guard.c; k_process: epoch whose process is not proved gone */
byte k_ran;          /* the slot's epoch has run */
byte k_start;        /* a start that the agent prepares */
byte k_pend;         /* a fence that waits for its proof */
byte kept;           /* newest epoch with areas in main storage: it outlives the keeper */
byte proc, pst;      /* process: its epoch; 1 forked, in no cgroup yet, 2 in the cgroup, the guest may run */
byte orph;           /* forked by a keeper that has died since, in no cgroup yet */
byte old_run;        /* of an earlier instance, in the cgroup, its keeper dead */

/* for the properties */
byte acked;          /* what P1 speaks of: this epoch and all before it */
byte ran_any;        /* bit e: epoch e has run */

#ifdef REACH
#define REACHED(what) assert(REACH != what)
#else
#define REACHED(what) skip
#endif
#define R_RUNS_AGAIN    1 /* a newer epoch runs after an older one was fenced */
#define R_OLD_TERM      2
#define R_OLD_EPOCH     3 /* refused as older than known, not fenced */
#define R_FENCED        4
#define R_PROCESS       5 /* refused because an older process is not proved gone */
#define R_RAN           6
#define R_NEWER         7 /* fence of an older epoch while a newer one runs */
#define R_CUT_START     8 /* a start that was prepared is given up because a fence came between */
#define R_ORPHAN        9 /* a child finds its keeper dead */
#define R_WAITS         10 /* a new instance waits for what is left in the cgroup */
#define R_KEPT          11 /* an epoch that an earlier instance left is refused */
#define R_SECOND_CHILD  12 /* fenced while the child is in no cgroup yet */

/* GUARD_INSTANCE, GUARD_TERM (mst_guard_order) */
#ifdef NO_GUARD_INSTANCE
#define INSTANCE_OK true
#else
#define INSTANCE_OK (i == inst)
#endif
#ifdef NO_GUARD_TERM
#define TERM_OK true
#else
#define TERM_OK (t >= k_term)
#endif
/* GUARD_KNOWN, GUARD_FENCED (mst_guard_grant). GUARD_PROCESS stands in two places, mst_guard_grant (EBUSY) and mst_guard_spawning (EEXIST); each
 * alone is enough for P5, so both are taken out. GUARD_RAN (orders.c, start_slot) */
#ifdef NO_GUARD_KNOWN
#define KNOWN_OK true
#else
#define KNOWN_OK (e >= k_known)
#endif
#ifdef NO_GUARD_FENCED
#define FENCED_OK true
#else
#define FENCED_OK (e > k_fenced)
#endif
#ifdef NO_GUARD_PROCESS
#define PROCESS_OK true
#else
#define PROCESS_OK (k_process == 0 || k_process == e)
#endif
#ifdef NO_GUARD_RAN
#define RAN_OK true
#else
#define RAN_OK (k_ran != e)
#endif
/* GUARD_SPAWN: the grant is looked at again when the process is made (mst_guard_spawning). */
#ifdef NO_GUARD_SPAWN
#define SPAWN_OK true
#else
#define SPAWN_OK (k_granted == k_start && FENCED_START)
#endif
#ifdef NO_GUARD_FENCED
#define FENCED_START true
#else
#define FENCED_START (k_start > k_fenced)
#endif
#ifdef NO_GUARD_PROCESS
#define ONE_OK true
#else
#define ONE_OK (k_process == 0)
#endif
/* GUARD_NEWER (orders.c, fence_one) */
#ifdef NO_GUARD_NEWER
#define NEWER_RUNS false
#else
#define NEWER_RUNS (k_process > e)
#endif
/* The answer to a fence waits (vmproc.c, kill_step): GUARD_GONE at all; GUARD_PIDFD for a child that is in no cgroup yet; GUARD_EMPTY until what
 * is in the cgroup has ended, not only been told to. */
#if defined(NO_GUARD_GONE)
#define IS_GONE true
#elif defined(NO_GUARD_PIDFD)
#define IS_GONE (pst != 2)
#elif defined(NO_GUARD_EMPTY)
#define IS_GONE (proc == 0 || pst == 2) 
#else
#define IS_GONE (proc == 0)
#endif
/* GUARD_PARENT (exec.c): death signal first, then the look whether the keeper still lives, then the cgroup. */
#ifdef NO_GUARD_PARENT
#define PARENT_OK false
#else
#define PARENT_OK true
#endif
/* GUARD_CGROUP (start.c, earlier_clear) */
#ifdef NO_GUARD_CGROUP
#define CLEARED true
#else
#define CLEARED (old_run == 0)
#endif
/* GUARD_KEPT (slots.c, mst_guard_held): what an earlier instance left behind never runs again. */
#ifdef NO_GUARD_KEPT
#define HELD skip
#else
#define HELD k_known = kept; k_fenced = kept
#endif

#define RUNS(e) \
    assert(old_run == 0);                                 /* P2, P5 */ \
    assert(e > acked);                                    /* P1 */ \
    assert((ran_any & (1 << e)) == 0);                    /* P6 */ \
    ran_any = ran_any | (1 << e)

active proctype keeper()
{
    byte t, e, i;
    bit fence;

end:
    do
    /* an order from anywhere */
    :: d_step { up -> fence = 0; t = 0; e = 0; i = 0 };
        if :: fence = 0 :: fence = 1 fi;
        if :: t = 1 :: t = 2 :: t = 3 fi;
        if :: e = 1 :: e = 2 :: e = 3 fi;
        if :: i = 1 :: i = 2 :: i = 3 fi;
        d_step {
            if
            :: !INSTANCE_OK || i > inst -> skip
            :: else ->
                if
                :: !TERM_OK -> REACHED(R_OLD_TERM)
                :: else ->
                    assert(i == inst);                        /* P3 */
                    assert(t >= k_term);                      /* P3, P4 */
                    k_term = t;
                    if
                    :: !fence ->
                        if
                        :: !KNOWN_OK -> if :: e > k_fenced -> REACHED(R_OLD_EPOCH) :: else -> skip fi
                        :: KNOWN_OK && !FENCED_OK -> REACHED(R_FENCED); if :: e <= kept && inst > 1 && e > acked -> REACHED(R_KEPT) :: else -> skip fi
                        :: KNOWN_OK && FENCED_OK && !PROCESS_OK -> REACHED(R_PROCESS)
                        :: KNOWN_OK && FENCED_OK && PROCESS_OK && k_granted == e && (k_process == e || k_start == e) -> skip /* stands already */
                        :: KNOWN_OK && FENCED_OK && PROCESS_OK && !(k_granted == e && (k_process == e || k_start == e)) ->
                            if
                            :: !RAN_OK -> REACHED(R_RAN)
                            :: else ->
                                assert(e >= k_known);         /* P4 */
                                k_granted = e;
                                k_known = e;
                                k_start = e;
                                if :: e > kept -> kept = e :: else -> skip fi
                            fi
                        fi
                    :: else ->
                        if
                        :: k_pend != 0 -> skip /* one at a time here; each is answered for itself */
                        :: else ->
                            if :: e > k_fenced -> k_fenced = e :: else -> skip fi;
                            if :: e > k_known -> k_known = e :: else -> skip fi;
                            if :: k_granted <= k_fenced -> k_granted = 0 :: else -> skip fi;
                            if
                            :: NEWER_RUNS -> REACHED(R_NEWER); if :: e > acked -> acked = e :: else -> skip fi
                            :: else ->
                                assert(proc <= e);            /* P7 */
                                if :: pst == 1 -> REACHED(R_SECOND_CHILD) :: else -> skip fi;
                                k_pend = e
                            fi
                        fi
                    fi
                fi
            fi;
            fence = 0; t = 0; e = 0; i = 0
        }
    /* the agent asks for the process */
    :: d_step { up && k_start != 0 ->
            if
            :: SPAWN_OK && ONE_OK -> assert(proc == 0) /* P5 */; proc = k_start; pst = 1; k_process = k_start
            :: SPAWN_OK && !ONE_OK -> skip
            :: else -> REACHED(R_CUT_START)
            fi;
            k_start = 0 }
    /* the child has joined its cgroup and becomes QEMU */
    :: d_step { up && pst == 1 -> RUNS(proc); pst = 2; k_ran = proc; if :: proc == 3 && acked == 2 -> REACHED(R_RUNS_AGAIN) :: else -> skip fi }
    /* killed, or ends by itself */
    :: d_step { up && proc != 0 && (pst == 2 || k_pend != 0) -> proc = 0; pst = 0 }
    /* seen gone: reaped, and the cgroup empty */
    :: d_step { up && k_process != 0 && proc == 0 -> k_process = 0 }
    :: d_step { up && k_pend != 0 && IS_GONE -> if :: k_pend > acked -> acked = k_pend :: else -> skip fi; k_pend = 0;
            assert(pst != 2 || proc > acked) /* P1 */ }
    /* the keeper dies: what is in the cgroup ends by PR_SET_PDEATHSIG, in its own time */
    :: d_step { up && inst < BOOTS ->
            up = 0;
            if :: pst == 1 -> orph = proc :: pst == 2 -> old_run = proc :: else -> skip fi;
            proc = 0; pst = 0;
            k_term = 0; k_known = 0; k_granted = 0; k_fenced = 0; k_process = 0; k_ran = 0; k_start = 0; k_pend = 0 }
    :: d_step { !up && old_run != 0 -> old_run = 0 }
    :: d_step { orph != 0 -> if :: PARENT_OK -> REACHED(R_ORPHAN) :: else -> RUNS(orph); assert(!up && proc == 0) /* P2 */; old_run = orph fi; orph = 0 }
    /* the next instance, which says that all earlier VMs are dead */
    :: d_step { !up && !CLEARED -> REACHED(R_WAITS) }
    :: d_step { !up && CLEARED -> assert(old_run == 0) /* P2 */; inst++; up = 1; HELD; acked = kept }
    od
}
