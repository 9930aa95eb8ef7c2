#include "common.h"

#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static void sleep_ms(long ms)
{
    struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};

    nanosleep(&time, NULL);
}

/* Serves again each time the server has ended. The parent never opens a device. */
static int serve_for_ever(char *address, char *port)
{
    char *args[] = {"/proc/self/exe", "serve", address, port, NULL};
    pid_t pid;
    int status;

    for (;;) {
        if (posix_spawn(&pid, "/proc/self/exe", NULL, NULL, args, environ))
            return 1;
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
        if (WIFEXITED(status)) /* only a kill is part of the test */
            return WEXITSTATUS(status);
    }
}

static int pause_process(pid_t pid, long ms)
{
    kill(pid, SIGSTOP);
    sleep_ms(ms);
    return kill(pid, SIGCONT);
}

int main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";

    if (argc == 4 && !strcmp(verb, "serve"))
        return serve(argv[2], (uint16_t)atoi(argv[3]));
    if (argc == 4 && !strcmp(verb, "serve-for-ever"))
        return serve_for_ever(argv[2], argv[3]);
    if (argc == 4 && !strcmp(verb, "pause"))
        return pause_process(atoi(argv[2]), atoi(argv[3]));
    if (argc == 5 && !strcmp(verb, "client"))
        return client(argv[0], argv[2], argv[3], (uint16_t)atoi(argv[4]));
    if (argc == 6 && (!strcmp(verb, "fails") || !strcmp(verb, "fails-once")))
        return client_with_faults(argv[2], argv[3], (uint16_t)atoi(argv[4]), argv[5], !strcmp(verb, "fails-once"));
    if (argc == 7 && !strcmp(verb, "bench"))
        return bench(argv[2], argv[3], (uint16_t)atoi(argv[4]), (uint32_t)atoi(argv[5]), (uint32_t)atoi(argv[6]));
    fprintf(stderr, "usage: fabric_test serve|serve-for-ever ADDRESS PORT\n"
                    "       fabric_test client ADDRESS SERVER PORT\n"
                    "       fabric_test bench ADDRESS SERVER PORT CHUNK_KIB DEPTH\n"
                    "       fabric_test fails|fails-once ADDRESS SERVER PORT SENTENCE   connects; expects a failure that says "
                    "the sentence\n");
    return 2;
}
