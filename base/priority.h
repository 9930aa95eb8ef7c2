#ifndef MST_BASE_PRIORITY_H
#define MST_BASE_PRIORITY_H

/* A loaded node is no dead node: the loops of keeper and agent come before guests, everybody else's work and their own worker threads.
 * setpriority(2): on Linux of a thread, which hands it on to threads it makes later. */
int mst_priority_raise(void);    /* of the calling thread, the loop's: first of all. -EACCES, -EPERM it is not allowed to */
void mst_priority_worker(void); /* first call of every job of a worker thread: back to what others have, which is always allowed */

#endif
