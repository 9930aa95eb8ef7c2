/* Grant, fence, resume: one VM, two coordinators over one store, three nodes.
 *
 * What is modelled: the store (compare-and-swap on the leader's term), each coordinator's rows as it last read them, its one transaction in
 * flight, its fence agent; each node's power, keeper instance and what the keeper promises (keeper.pml proves these promises against any orders
 * whatever): what it says it has fenced never runs there again, a new instance joins when all that earlier ones ran is gone, an order is
 * for one instance. A keeper that is paused or dead is one that does nothing; its VM runs on until the next instance. Who is suspected and why is left open: anybody may be fenced at any moment. So are which save is resumed, and placing.
 * Keepers obey every term here: nothing that is checked rests on their refusing older ones (keeper.pml has that).
 *
 * Messages: what was once sent may arrive late, twice, in any order, or never. A coordinator or node that does not move is paused; a
 * coordinator that takes a new term without having lost one has crashed and forgotten. All of it may happen anywhere, also between
 * proposing, committing and applying.
 *
 * Bounds: 2 coordinators, 3 terms, 3 epochs (two takeovers), 3 nodes, 3 keeper instances of each and 2 failures in all (restart of a
 * keeper, power cycle); nodes 0 and 1 have a fence device, node 2 has only the operator. It begins with epoch 1 durable on node 0 under term 1, nothing started yet.
 */
/* variant: small = -DEPOCHS=2 -DFAILURES=1; guards GUARD_FRESH */
#define NODES  3
#ifndef TERMS
#define TERMS 3
#endif
#ifndef EPOCHS
#define EPOCHS 3
#endif
#define BOOTS 3
#ifndef FAILURES
#define FAILURES 2
#endif
#define CN(c, n) ((c) * NODES + (n))

#define JOIN   1
#define FENCED 2
#define GRANT  3

/* --- the store: linearizable; a transaction is one step --- */
byte st_term = 1;
byte st_epoch = 1, st_node, st_inst = 1;
bit st_fenced;
byte st_ninst[NODES] = 1; /* newest keeper instance of each node */

/* --- coordinators --- */
byte cur[2];                                     /* term it leads, or believes to lead; 0: none, and no memory */
byte c_epoch[2], c_node[2], c_inst[2];           /* VM row as it last read or wrote it */
bit c_fenced[2];
byte known[2 * NODES];                           /* newest keeper instance of each node: of the rows, then of the last Hello */
byte fl_kind[2], fl_term[2], fl_n[2];            /* transaction in flight */
byte fl_epoch[2], fl_node[2], fl_inst[2];
bit fl_fenced[2];
byte job[2];                                     /* fence agent, or what came of it: node + 1 */
byte jobst[2];                                   /* see JOB */
byte job_i[2];                                   /* PROOF: the instance it speaks of */
#define ASKED 1 /* runs */
#define READY 2 /* action=off succeeded and action=status said off; its exit is not seen yet */
#define PROOF 3 /* waits for its transaction; also the operator's word */

/* --- orders, a set: bit (node * BOOTS + instance - 1) for each epoch. To start and to fence alike --- */
short ord[4];
byte acks[NODES]; /* bit e: this node's keeper has said that nothing of epoch e or older runs there */

/* --- nodes --- */
byte inst[NODES] = 1;   /* newest keeper instance; one that has not said anything yet may as well be a machine that is off */
byte k_fenced[NODES];   /* of that instance */
byte proc[NODES];       /* epoch of the VM that runs here, 0: none */

/* --- for the properties only --- */
byte h_grant[4]; /* durable grants: 1 + node * BOOTS + instance - 1 */

#define RUNNING_ALL ((proc[0] != 0) + (proc[1] != 0) + (proc[2] != 0))

/* Reachability: compiled in one at a time, each must be violated. */
#ifdef REACH
#define REACHED(what) assert(REACH != what)
byte h_proof; /* kind that made the newest takeover possible */
#define H_PROOF(kind) h_proof = kind
#else
#define REACHED(what) skip
#define H_PROOF(kind) skip
#endif
#define R_KEEPER         1 /* epoch 2 runs, epoch 1 was proved stopped by the keeper */
#define R_RETURN         2
#define R_POWER          3
#define R_OPERATOR       4 /* epoch 3 runs after a power loss that only the operator could prove */
#define R_THIRD          5 /* epoch 3 runs */
#define R_BACK_ON_FIRST  6 /* epoch 3 runs where epoch 1 was, after epoch 2 elsewhere */
#define R_TXN_REFUSED    7 /* a stale leader's transaction is refused */
#define R_OLD_INSTANCE   8 /* an order for an earlier instance arrives while a later epoch runs */
#define R_FENCED_REFUSES 9 /* an order to start a fenced epoch arrives while a later one runs */
#define R_CALLED_OFF     10 /* a Hello ends a running fence agent */

/* --- store --- */

/* Rows are loaded and the term is taken by compare-and-swap on what was loaded (coordinator/core/core.c, term_begin). */
#define LEAD(c) \
    :: d_step { st_term < TERMS -> \
        st_term++; cur[c] = st_term; \
        c_epoch[c] = st_epoch; c_node[c] = st_node; c_inst[c] = st_inst; c_fenced[c] = st_fenced; \
        known[CN(c, 0)] = st_ninst[0]; known[CN(c, 1)] = st_ninst[1]; known[CN(c, 2)] = st_ninst[2]; FORGET(c); \
        if :: !c_fenced[c] -> SAY_ORDERS(c) :: else fi; \
        STALE(1 - c) }

/* A leader that has gone stale without a transaction on its way changes nothing any more: what it stages from now on is refused, its orders are
 * out, power may go at any time anyhow. So its memory need not be told apart from none. */
#if defined(NO_GUARD_CAS)
#define STALE(d) skip
#elif defined(NO_GUARD_FRESH)
#define STALE(d) if :: fl_kind[d] == 0 && job[d] == 0 -> cur[d] = 0; CLEAR(d) :: else fi
#else
#define STALE(d) if :: fl_kind[d] == 0 -> cur[d] = 0; CLEAR(d) :: else -> JOB_GONE(d) fi
#endif

/* GUARD_FRESH: a leadership begins with empty hands: no evidence and no fence agent of an earlier one. */
#ifdef NO_GUARD_FRESH
#define FORGET(c) skip
#else
#define FORGET(c) JOB_GONE(c)
#endif
#define JOB_GONE(c) job[c] = 0; jobst[c] = 0; job_i[c] = 0

/* GUARD_CAS: the store takes a transaction only of the leader of the present term (I10). */
#ifdef NO_GUARD_CAS
#define CAS(c) true
#else
#define CAS(c) (fl_term[c] == st_term)
#endif
/* Landing and being applied are one step: between them its coordinator does nothing that anybody sees, and dying between them is dying
 * after it with all orders lost. */
#define LAND(c) \
    :: d_step { fl_kind[c] && CAS(c) -> \
        assert(fl_epoch[c] >= st_epoch);                /* I8 */ \
        if :: fl_kind[c] == GRANT -> \
            assert(fl_epoch[c] > st_epoch);              /* I8 */ \
            assert(RUNNING_ALL == 0);                    /* I2: what was proved is true */ \
            h_grant[fl_epoch[c]] = 1 + fl_node[c] * BOOTS + fl_inst[c] - 1 \
        :: fl_kind[c] == JOIN -> st_ninst[fl_n[c]] = known[CN(c, fl_n[c])] \
        :: else fi; \
        if :: fl_fenced[c] -> assert(RUNNING_ALL == 0) /* I2: so is this proof */ :: else fi; \
        st_epoch = fl_epoch[c]; st_node = fl_node[c]; st_inst = fl_inst[c]; st_fenced = fl_fenced[c]; \
        if :: cur[c] == fl_term[c] -> \
            c_epoch[c] = fl_epoch[c]; c_node[c] = fl_node[c]; c_inst[c] = fl_inst[c]; c_fenced[c] = fl_fenced[c]; \
            if :: fl_kind[c] == GRANT -> SAY_ORDERS(c) :: else fi \
           :: else fi; \
        FL_DONE(c) } \
    :: d_step { fl_kind[c] && !CAS(c) -> \
        REACHED(R_TXN_REFUSED); \
        if :: cur[c] == fl_term[c] -> cur[c] = 0; CLEAR(c) :: else fi; FL_DONE(c) } \
    :: d_step { fl_kind[c] && st_term < TERMS -> FL_DONE(c); cur[c] = 0; CLEAR(c) } /* crashed; it never reached the store */
#define FL_DONE(c) \
    fl_kind[c] = 0; fl_term[c] = 0; fl_n[c] = 0; fl_epoch[c] = 0; fl_node[c] = 0; fl_inst[c] = 0; fl_fenced[c] = 0
#define CLEAR(c) \
    c_epoch[c] = 0; c_node[c] = 0; c_inst[c] = 0; c_fenced[c] = 0; known[CN(c, 0)] = 0; known[CN(c, 1)] = 0; known[CN(c, 2)] = 0; JOB_GONE(c)
#define ORDER(c)      (1 << (c_node[c] * BOOTS + c_inst[c] - 1))
#define SAY_ORDERS(c) ord[c_epoch[c]] = ord[c_epoch[c]] | ORDER(c)

/* --- what a leader decides: one transaction at a time --- */
#define FREE(c) (cur[c] != 0 && fl_kind[c] == 0)
#define STAGE(c, kind) /* the row as it is, but for what follows */ \
    fl_kind[c] = kind; fl_term[c] = cur[c]; \
    fl_epoch[c] = c_epoch[c]; fl_node[c] = c_node[c]; fl_inst[c] = c_inst[c]; fl_fenced[c] = c_fenced[c]

/* GUARD_PROOF: no grant before the old one is proved stopped, durably (resume.c, grant()). */
#ifdef NO_GUARD_PROOF
#define PROVED(c) true
#else
#define PROVED(c) c_fenced[c]
#endif
/* GUARD_DURABLE: orders only after the transaction is in the store (txn.c; I3). */
#ifdef NO_GUARD_DURABLE
#define SAY_EARLY(c) ord[fl_epoch[c]] = ord[fl_epoch[c]] | (1 << (fl_node[c] * BOOTS + fl_inst[c] - 1))
#else
#define SAY_EARLY(c) skip
#endif
#define DECIDE_GRANT(c, n) \
    :: d_step { FREE(c) && PROVED(c) && c_epoch[c] < EPOCHS -> \
        STAGE(c, GRANT); fl_epoch[c] = c_epoch[c] + 1; fl_node[c] = n; fl_inst[c] = known[CN(c, n)]; fl_fenced[c] = 0; \
        SAY_EARLY(c) }

/* GUARD_PROOF_EPOCH: an answer proves the epoch it names (fence.c, stage_keeper_proof). */
#ifdef NO_GUARD_PROOF_EPOCH
#define ACK_FITS(c, n) (acks[n] != 0)
#else
#define ACK_FITS(c, n) ((acks[n] & (1 << c_epoch[c])) != 0)
#endif
#define DECIDE_ACK(c, n) \
    :: d_step { FREE(c) && !c_fenced[c] && c_node[c] == n && ACK_FITS(c, n) -> STAGE(c, FENCED); fl_fenced[c] = 1; H_PROOF(R_KEEPER) }

/* GUARD_LINK_ORDER: the Hello of an instance is not heard any more once a later one was: its link is gone, and no link outlives the
 * leadership under which it was made. */
#ifdef NO_GUARD_LINK_ORDER
#define IN_ORDER(c, n, i) true
#else
#define IN_ORDER(c, n, i) (known[CN(c, n)] <= i)
#endif
/* GUARD_CALL_OFF: a Hello ends the fencing of that node (join.c, call_fence_off). */
#ifdef NO_GUARD_CALL_OFF
#define CALL_OFF(c, n) skip
#else
#define CALL_OFF(c, n) if :: job[c] == n + 1 && jobst[c] < PROOF -> REACHED(R_CALLED_OFF); JOB_GONE(c) :: else fi
#endif
/* GUARD_RETURN: what runs under the instance that came back is not proved dead by that (fence.c, stage_node_proof). */
#ifdef NO_GUARD_RETURN
#define RETURN_COVERS(c, n) (c_node[c] == n)
#else
#define RETURN_COVERS(c, n) (c_node[c] == n && c_inst[c] != known[CN(c, n)])
#endif
#define HELLO(c, n, i) /* heard, and recorded before anything else is decided (core.c, decide) */ \
    :: d_step { FREE(c) && i <= inst[n] && IN_ORDER(c, n, i) && (known[CN(c, n)] != i || !c_fenced[c] && RETURN_COVERS(c, n)) -> \
        known[CN(c, n)] = i; CALL_OFF(c, n); \
        STAGE(c, JOIN); fl_n[c] = n; \
        if :: !c_fenced[c] && RETURN_COVERS(c, n) -> fl_fenced[c] = 1; H_PROOF(R_RETURN) :: else fi }

/* --- power and the operator --- */

/* Power may go at any time: by itself, or because a coordinator that has died or forgotten had asked for it. */
#define MAY_FAIL(n) (inst[n] < BOOTS && inst[0] + inst[1] + inst[2] < NODES + FAILURES)
#define OFF(n) proc[n] = 0; inst[n]++; k_fenced[n] = 0
/* GUARD_STATUS: "off" counts when a status query says so afterwards (fence_runner.c). */
#ifdef NO_GUARD_STATUS
#define STATUS(n) skip
#else
#define STATUS(n) OFF(n)
#endif
#define JOB(c, n) \
    :: d_step { FREE(c) && job[c] == 0 && c_node[c] == n && !c_fenced[c] -> job[c] = n + 1; jobst[c] = ASKED } \
    :: d_step { job[c] == n + 1 && jobst[c] == ASKED && MAY_FAIL(n) -> STATUS(n); jobst[c] = READY } \
    :: d_step { cur[c] != 0 && job[c] == n + 1 && jobst[c] == READY -> jobst[c] = PROOF; job_i[c] = known[CN(c, n)] }

/* GUARD_PROOF_INSTANCE: a proof of one instance never counts for a later one (fence.c, stage_dead). */
#ifdef NO_GUARD_PROOF_INSTANCE
#define EV_FITS(c, n) true
#else
#define EV_FITS(c, n) (job_i[c] == known[CN(c, n)])
#endif
#define DECIDE_DEAD(c, n, kind) \
    :: d_step { FREE(c) && job[c] == n + 1 && jobst[c] == PROOF -> \
        if :: EV_FITS(c, n) && c_node[c] == n && !c_fenced[c] -> STAGE(c, FENCED); fl_fenced[c] = 1; H_PROOF(kind) :: else fi; \
        job[c] = 0; jobst[c] = 0; job_i[c] = 0 }
/* The operator sees that it is off and says so. Its word is true at the moment it is given. */
#define OPERATOR(c, n) \
    :: d_step { cur[c] != 0 && MAY_FAIL(n) && job[c] == 0 && c_node[c] == n && !c_fenced[c] -> \
        OFF(n); job[c] = n + 1; jobst[c] = PROOF; job_i[c] = known[CN(c, n)] }

/* --- nodes --- */

/* GUARD_INSTANCE: an order is for one instance (mst_guard_order). */
#ifdef NO_GUARD_INSTANCE
#define TO_NODE(n, e) ((ord[e] & (7 << (n * BOOTS))) != 0)
#else
#define TO_NODE(n, e) ((ord[e] & (1 << (n * BOOTS + inst[n] - 1))) != 0)
#endif
/* GUARD_FENCED: a fenced epoch never runs (mst_guard_grant, mst_guard_check). */
#ifdef NO_GUARD_FENCED
#define FENCED_OK(n, e) true
#else
#define FENCED_OK(n, e) (e > k_fenced[n])
#endif
#define START(n, e) \
    :: d_step { TO_NODE(n, e) && FENCED_OK(n, e) && proc[n] == 0 -> \
        assert(h_grant[e] >= 1 + n * BOOTS && h_grant[e] <= n * BOOTS + inst[n]); /* I3: durable before its effect */ \
        assert(RUNNING_ALL == 0);                                                 /* I1 */ \
        proc[n] = e; REACH_RUN(n) } \
    REACH_REFUSED(n, e)
#ifdef REACH
#define REACH_REFUSED(n, e) \
    :: d_step { inst[n] > 1 && (ord[e] & (1 << (n * BOOTS))) && st_epoch > e && RUNNING_ALL -> REACHED(R_OLD_INSTANCE) } \
    :: d_step { TO_NODE(n, e) && e <= k_fenced[n] && st_epoch > e && RUNNING_ALL -> REACHED(R_FENCED_REFUSES) }
#else
#define REACH_REFUSED(n, e)
#endif

/* An order to fence names the instance that its sender knows last; that one answers for all before it (start.c, earlier_clear).
 * GUARD_GONE: the answer says that the process is gone, not that it will be (vmproc.c, kill_step; in steps: keeper.pml). */
#ifdef NO_GUARD_GONE
#define GONE(n) skip
#else
#define GONE(n) proc[n] = 0
#endif
#define FENCE(n, e) \
    :: d_step { (ord[e] & (7 << (n * BOOTS))) && !(acks[n] & (1 << e)) -> \
        if :: e > k_fenced[n] -> k_fenced[n] = e :: else fi; \
        if :: proc[n] <= e -> GONE(n) :: else fi; \
        acks[n] = acks[n] | (1 << e) }

/* GUARD_CGROUP: a new instance joins when the cgroups of all earlier VMs are empty (start.c, earlier_clear). */
#ifdef NO_GUARD_CGROUP
#define RESTART(n) inst[n]++; k_fenced[n] = 0
#else
#define RESTART(n) OFF(n)
#endif
#define NODE(n) :: d_step { MAY_FAIL(n) -> OFF(n) } :: d_step { MAY_FAIL(n) -> RESTART(n) }

#ifdef REACH
#define REACH_RUN(n) \
    if :: proc[n] == 2 -> if :: h_proof == R_KEEPER -> REACHED(R_KEEPER) :: h_proof == R_RETURN -> REACHED(R_RETURN) \
           :: h_proof == R_POWER -> REACHED(R_POWER) :: else fi \
       :: proc[n] == 3 -> REACHED(R_THIRD); \
           if :: h_proof == R_OPERATOR -> REACHED(R_OPERATOR) :: else fi; \
           if :: n == 0 && h_grant[2] >= 1 + BOOTS -> REACHED(R_BACK_ON_FIRST) :: else fi \
       :: else fi
#else
#define REACH_RUN(n) skip
#endif

#define ORDERS(n) START(n, 1) START(n, 2) START(n, 3) FENCE(n, 1) FENCE(n, 2) FENCE(n, 3)
#define COORDINATOR_NODE(c, n) DECIDE_GRANT(c, n) DECIDE_ACK(c, n) HELLO(c, n, 1) HELLO(c, n, 2) HELLO(c, n, 3)
#define COORDINATOR(c) LEAD(c) LAND(c) \
    COORDINATOR_NODE(c, 0) COORDINATOR_NODE(c, 1) COORDINATOR_NODE(c, 2) \
    JOB(c, 0) JOB(c, 1) OPERATOR(c, 2) \
    DECIDE_DEAD(c, 0, R_POWER) DECIDE_DEAD(c, 1, R_POWER) DECIDE_DEAD(c, 2, R_OPERATOR)

active proctype world()
{
    d_step {
        cur[0] = 1; c_epoch[0] = 1; c_inst[0] = 1; known[0] = 1; known[1] = 1; known[2] = 1;
        h_grant[1] = 1; SAY_ORDERS(0)
    }
end:
    do
    COORDINATOR(0) COORDINATOR(1)
    NODE(0) ORDERS(0)
    NODE(1) ORDERS(1)
    NODE(2) ORDERS(2)
    od
}
