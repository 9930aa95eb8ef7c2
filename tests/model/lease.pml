/* Lease with drifting clocks: when may the granter count the holder's VM as stopped?
 *
 * Time is counted in steps; each clock moves by 9 or 11 in a step (rho = 1/10), always the same:
 * one that changes its pace lies between the slowest and the fastest. The holder's keeper writes beats; the granter reads
 * one, decides to renew (its own clock counts from there), and sends {beat, L}; that arrives at any later time, twice, or never. The holder's lease
 * counts from when it wrote that beat. At t_base + L (1 - rho) - stop it kills the VM, which takes one step.
 *
 * Three configurations:
 *   plain    strict lease: a hardware watchdog resets the machine T after it was last touched. The keeper looks at its lease, then touches the
 *            watchdog, and may stand still anywhere for as long as it likes, also between the two. The granter takes over at
 *            t_decide + (L + 2 T) (1 + rho), without having heard anything.
 *   prompt   no watchdog, a keeper that acts in every step: t_decide + L (1 + rho) is enough.
 *   fence    no watchdog, and a keeper that may stand still: whatever time has passed, only a proof that the VM is stopped will do.
 *
 * Bounds: L is 16 steps, T 4, stop 1; 2 renewals after the first (1 in prompt and fence). I9: when the granter takes over, nothing runs.
 */
/* variant: prompt = -DPROMPT; guards GUARD_HOLDER_DRIFT GUARD_GRANTER_DRIFT GUARD_STOP_COST GUARD_FROM_SEND; points R_RENEWED_LATE R_STOPS_ITSELF */
/* variant: fence = -DFENCE; guards GUARD_FENCE; points R_RUNS_PAST_ITS_END R_PROVED */
#define LEASE     160 /* L in units of a clock: 16 steps */
#define WATCHDOG  4   /* T in steps; what its own clock loses is in it */
#if defined(PROMPT) || defined(FENCE)
#define RENEWALS 1
#define FOREVER  200 /* beyond every limit: no need to tell apart */
#else
#define RENEWALS 2
#define FOREVER  300
#endif

#ifdef REACH
#define REACHED(what) assert(REACH != what)
#else
#define REACHED(what) skip
#endif
#define R_RESET             1 /* the watchdog resets the machine under a running VM */
#define R_LATE_TOUCH        2 /* it is touched when the lease is over already */
#define R_RENEWED_LATE      3 /* a renewal arrives when half the lease is gone */
#define R_STOPS_ITSELF      4 /* the keeper stops the VM in time */
#define R_RUNS_PAST_ITS_END 5 /* a keeper that stands still: the VM runs on after its lease */
#define R_PROVED            6

bit running = 1, killing, over;
short held;                /* holder's clock since t_base of the lease it has */
short read = FOREVER;      /* the same since the beat that the granter has read was written; FOREVER: none */
short sent = FOREVER;      /* the same of the renewal on its way, which stays there */
short waits;               /* granter's clock since t_decide */
byte pace_h, pace_g;
byte renewals;
byte dog = WATCHDOG;       /* steps until it fires */
bit looked;                /* keeper: has looked at its lease, is about to touch the watchdog */
bit acted;                 /* keeper: in this step */
bit proof;

/* GUARD_HOLDER_DRIFT, GUARD_STOP_COST, GUARD_GRANTER_DRIFT, GUARD_TWO_TOUCHES */
#ifdef NO_GUARD_HOLDER_DRIFT
#define LASTS LEASE
#else
#define LASTS (LEASE / 10 * 9)
#endif
#ifdef NO_GUARD_STOP_COST
#define T_STOP LASTS
#else
#define T_STOP (LASTS - 9)
#endif
#if defined(PROMPT) || defined(FENCE)
#define TOUCHES 0
#elif defined(NO_GUARD_WATCHDOG_TERM)
#define TOUCHES 0
#elif defined(NO_GUARD_TWO_TOUCHES)
#define TOUCHES 1
#else
#define TOUCHES 2
#endif
#ifdef NO_GUARD_GRANTER_DRIFT
#define T_FREE (LEASE + TOUCHES * WATCHDOG * 10)
#else
#define T_FREE ((LEASE + TOUCHES * WATCHDOG * 10) / 10 * 11)
#endif
/* GUARD_FROM_SEND: the lease counts from when the beat was written, not from when the renewal came. */
#ifdef NO_GUARD_FROM_SEND
#define BASE 0
#else
#define BASE sent
#endif
/* GUARD_LOOK: the watchdog is not touched once the lease is over. */
#ifdef NO_GUARD_LOOK
#define MAY_TOUCH true
#else
#define MAY_TOUCH (held < T_STOP)
#endif
/* GUARD_FENCE: time alone frees nothing where no watchdog is the proof. */
#if defined(FENCE) && !defined(NO_GUARD_FENCE)
#define FREE proof
#else
#define FREE (waits >= T_FREE)
#endif

#if defined(PROMPT)
#define CLEAR_ACTED acted = 0
#define SET_ACTED acted = 1
#define STEP_MAY acted
#define MACHINE_UP true
#elif defined(FENCE)
#define STEP_MAY true
#define MACHINE_UP true
#else
#define STEP_MAY true
#define MACHINE_UP (dog != 0)
#endif
#ifdef FENCE
#define REACH_FREE REACHED(R_PROVED)
#else
#define REACH_FREE skip
#endif

#ifndef PROMPT
#define CLEAR_ACTED skip
#define SET_ACTED skip
#endif
#define LATER(x, by) if :: x < FOREVER - by -> x = x + by :: else -> x = FOREVER fi

#define PACES(p) :: p = 9 :: p = 11

active proctype world()
{
    if PACES(pace_h) fi;
    if PACES(pace_g) fi;
end:
    do
    /* a step of true time */
    :: d_step { !over && STEP_MAY ->
            LATER(held, pace_h);
            LATER(read, pace_h);
            LATER(sent, pace_h);
            LATER(waits, pace_g);
            CLEAR_ACTED;
            if :: killing -> running = 0; killing = 0 :: else fi;
#if !defined(PROMPT) && !defined(FENCE)
            if :: dog > 0 -> dog-- :: else fi;
            if :: dog == 0 && running -> REACHED(R_RESET); running = 0 :: else fi;
            if :: dog == 0 -> looked = 0 :: else fi
#endif
        }
    /* granter */
    :: d_step { !over && renewals < RENEWALS && read == FOREVER && MACHINE_UP -> read = 0 } /* reads the newest beat: it was just written, or earlier */
    :: d_step { !over && read != FOREVER -> renewals++; waits = 0; sent = read; read = FOREVER }
    :: d_step { !over && FREE ->
            assert(!running); /* I9 */
            over = 1; REACH_FREE }
    /* keeper */
    :: d_step { !over && sent != FOREVER && MACHINE_UP && BASE < held ->
            if :: held > LEASE / 2 -> REACHED(R_RENEWED_LATE) :: else fi;
            held = BASE }
    :: d_step { !over && running && !killing && held >= T_STOP && MACHINE_UP -> killing = 1; SET_ACTED; REACHED(R_STOPS_ITSELF) }
#ifdef PROMPT
    :: d_step { !over && !(running && !killing && held >= T_STOP) && !acted -> acted = 1 }
#endif
#if !defined(PROMPT) && !defined(FENCE)
    :: d_step { !over && MACHINE_UP && !looked && MAY_TOUCH -> looked = 1 }
    :: d_step { !over && MACHINE_UP && looked -> looked = 0; dog = WATCHDOG; if :: held >= T_STOP && running -> REACHED(R_LATE_TOUCH) :: else fi }
#endif
#ifdef FENCE
    :: d_step { !over && !proof -> running = 0; killing = 0; proof = 1 } /* the fence: stops it, then says so */
    :: d_step { !over && waits >= T_FREE && running -> REACHED(R_RUNS_PAST_ITS_END); waits = FOREVER }
#endif
    od
}
