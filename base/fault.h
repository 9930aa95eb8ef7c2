#ifndef MST_BASE_FAULT_H
#define MST_BASE_FAULT_H

/* Named fault points: places where a test can make an error happen or end the process. Compiled out unless MST_FAULT_POINTS is
 * defined (dev and sanitizer presets; the release preset has none).
 *     MST_FAULT("store.commit", return -EIO);     runs the statement when the point is armed
 *     MST_POINT("order.sent");                    a place to die at; the simulator's sweep kills at each of them (tests/sim/points.c)
 * Armed by the environment, read at the first hit: MST_FAULT="name[:nth][,name...]" (nth hit, 1 = first, default 1; once), or
 * MST_FAULT_KILL="name[:nth][,name...]": the process kills itself with SIGKILL there; MST_FAULT_PANIC: it takes the whole machine with it, whose kernel
 * panics (/proc/sysrq-trigger; for machines of a lab). MST_FAULT_AFTER=FILE: hits count only while FILE exists, so that a
 * test can let a daemon start in peace. */
#ifdef MST_FAULT_POINTS
int mst_fault_hit(const char *name); /* 1 when armed for this hit, 0 otherwise. Any thread. */
void mst_fault_reload(void);         /* tests: reads the environment again; all counts start anew */
#define MST_FAULT(name, stmt)                                                                                                    \
    do {                                                                                                                         \
        if (mst_fault_hit(name))                                                                                                 \
            stmt; /* NOLINT(bugprone-macro-parentheses): a statement */                                                          \
    } while (0)
#define MST_POINT(name) ((void)mst_fault_hit(name))
#else
#define MST_FAULT(name, stmt)                                                                                                    \
    do {                                                                                                                         \
    } while (0)
#define MST_POINT(name) ((void)0)
#endif

#endif
