#ifndef SIM_KERNEL_H
#define SIM_KERNEL_H

#include "base/log.h"

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* The machine below the simulated cluster: one virtual clock, one queue of events, one seeded source of chance, simulated processes.
 *
 * A process is a set of events and memory. Killing one drops both, at once and wherever its code stands: what it still executes of the present event
 * has no effect any more, because every function of the seam looks at sim_muted() first. Stopping one (SIGSTOP) holds its events back.
 * One run at a time in one Unix process; ranges of seeds are run by several of them (main.c). */

#define SIM_US UINT64_C(1000)
#define SIM_MS UINT64_C(1000000)
#define SIM_S  UINT64_C(1000000000)

typedef void (*sim_fn)(void *arg);

struct sim_block; /* memory of a process */

struct sim_proc {
    char name[24]; /* "n1.keeper" */
    unsigned host;
    bool alive, stopped;
    uint64_t stopped_ns, continued_ns; /* when it was stopped last, and when it went on, 0: never */
    uint64_t life;                     /* another with every start: events of an earlier one find nobody */
    unsigned depth;                    /* its code is on the stack so often */
    bool exits;                        /* its code may call _exit */
    jmp_buf *out;                      /* the innermost call of its code; NULL: none */
    struct sim_block *blocks;
    uint64_t blocks_count, blocks_bytes;
    struct sim_event *held; /* events that came while it was stopped */
    unsigned held_count, held_room;
    void (*lazy)(void *arg); /* a timer nobody sees but who reads main storage: run then (uv.c) */
    void *lazy_arg;
    uint64_t lazy_due_ns, lazy_every_ns;
};

struct sim_event {
    uint64_t at_ns, seq;
    sim_fn fn;
    void *arg;
    struct sim_proc *proc; /* NULL: the world's own */
    uint64_t life;
};

struct sim_kernel {
    uint64_t now_ns, seq, events;
    uint64_t chance; /* state of the generator */
    uint64_t hash;   /* of everything that happened: the trace hash */
    struct sim_event *heap;
    unsigned heap_count, heap_room;
    struct sim_proc *current;
    uint64_t next_life;
    struct sim_chunk *chunks;             /* memory of the run */
    bool over;                            /* a checker has spoken, or the story is told */
    FILE *story;                          /* verbose: where to, NULL: silent */
    void (*after)(struct sim_proc *proc); /* a checker, when an event of this process has run; NULL: nobody looks */
};
extern struct sim_kernel K;

void sim_begin(uint64_t seed, FILE *story);
void sim_end(void);

/* --- chance --- */
uint64_t sim_random(void);
uint32_t sim_dice(uint32_t n);                     /* 0..n-1; n 0 gives 0 */
uint64_t sim_between(uint64_t low, uint64_t high); /* low..high */
bool sim_chance(uint32_t per_mille);
uint64_t sim_mix(uint64_t *state); /* a generator of one's own */

/* --- time and events --- */
void sim_at(struct sim_proc *proc, uint64_t delay_ns, sim_fn fn, void *arg);
void sim_run_until(uint64_t until_ns); /* or until K.over */
void sim_hash(const void *data, size_t len);
void sim_hash_u64(uint64_t value);

/* --- memory of the run: never freed before its end --- */
void *sim_keep(size_t bytes); /* zeroed */

/* --- large memory, zeroed: for what is mostly never touched --- */
void *sim_large(size_t bytes);
void sim_large_free(void *at); /* NULL: nothing */

/* --- processes --- */
void sim_proc_start(struct sim_proc *proc);
void sim_proc_kill(struct sim_proc *proc);
void sim_proc_stop(struct sim_proc *proc);
void sim_proc_cont(struct sim_proc *proc);
/* _exit of the process whose code runs: it has been killed, and its code goes on nowhere. */
_Noreturn void sim_leave(void);
/* Runs fn as proc, now. Nothing when it is dead; a stopped one gets it later. */
void sim_as(struct sim_proc *proc, sim_fn fn, void *arg);
/* The process whose code runs was killed: nothing it does has an effect. */
bool sim_muted(void);
void sim_lazy_run(struct sim_proc *proc);

/* --- the story --- */
void sim_say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
