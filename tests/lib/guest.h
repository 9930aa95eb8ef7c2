#ifndef MST_TESTS_LIB_GUEST_H
#define MST_TESTS_LIB_GUEST_H

/* A real QEMU with a witness guest, for tests on a machine without lab: started with a console on fd 3, its beats read in a libuv loop. */

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>

/* What guests of one VM said, however many QEMUs ran it one after another (a moved guest goes on in the middle of a line). */
struct guest_console {
    char line[512];
    size_t used;
    uint64_t boots;     /* "guest boot" lines */
    uint64_t beats;     /* beat lines */
    uint64_t last_beat; /* number in the newest */
    uint64_t first_beat_after_mark;
    uint64_t beat_at_mark;
    uint64_t broken; /* beat lines with another witness than ok */
    uint64_t work;   /* of the newest `work` line: pages that the guest has worked on */
    uint64_t gaps;   /* beats whose number is not the one before + 1, but for the first after guest_mark */
    bool marked;
    char bad[512];  /* the first broken line */
    char disk[512]; /* the newest "guest disk" line: what its disk had when it booted */
};

void guest_console_feed(struct guest_console *console, const char *data, size_t len);
/* The next beat may have any number: it is put into first_beat_after_mark. */
void guest_mark(struct guest_console *console);

struct guest { /* one QEMU process */
    pid_t pid; /* 0: gone */
    int wait_status;
    int console_fd;
    uv_poll_t poll;
    bool polling;
    struct guest_console *console;
};

/* Starts argv with fd 3 = console, log_path = stdout and stderr, PDEATHSIG. 0 or -errno. */
int guest_spawn(struct guest *guest, uv_loop_t *loop, char *const argv[], const char *log_path, struct guest_console *console);
/* SIGKILL and reap; reads what is left on the console. Fine when it is gone already. */
void guest_kill(struct guest *guest);
/* Reaps when it has ended by itself. True once it is gone. */
bool guest_gone(struct guest *guest);

/* Runs the loop until done(arg) or timeout. False: timeout. */
bool loop_until(uv_loop_t *loop, bool (*done)(void *arg), void *arg, unsigned timeout_ms);
void loop_for(uv_loop_t *loop, unsigned ms);

#endif
