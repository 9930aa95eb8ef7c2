/* mainstay-exec: the last steps between the keeper and a program it starts (QEMU, the agent).
 *     mainstay-exec --parent PID [--cgroup FOLDER] [--log FILE] [--keep LAST] -- PROGRAM [ARGUMENT...]
 * LAST: the descriptors 3..LAST stay open (a console; a network card behind it).
 * Order matters: the death signal first, then the look whether the parent is still there (it may have died before the signal was asked
 * for), and only then the cgroup; so a process that survives its keeper is never in a cgroup, and one in a cgroup dies with its keeper.
 * Exit status 127 PROGRAM not found, 126 anything else; the reason is the last line of the log. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#define EXIT_REFUSED   126
#define EXIT_NOT_FOUND 127

struct request {
    long parent;
    const char *cgroup, *log;
    unsigned keep; /* descriptors 3.. that stay open */
    char **argv;
};

static int refuse(const char *what, const char *subject)
{
    fprintf(stderr, "mainstay-exec: %s %s: %s\n", what, subject, strerror(errno));
    return EXIT_REFUSED;
}

static int number(const char *text, long *ret_value)
{
    char *end;

    errno = 0;
    *ret_value = strtol(text, &end, 10);
    return errno || end == text || *end || *ret_value < 0 ? -1 : 0;
}

static int arguments(int argc, char **argv, struct request *req)
{
    static const struct option options[] = {
        {"parent", required_argument, NULL, 'p'},
        {"cgroup", required_argument, NULL, 'c'},
        {"log", required_argument, NULL, 'l'},
        {"keep", required_argument, NULL, 'k'},
        {NULL, 0, NULL, 0},
    };
    long value;
    int c;

    *req = (struct request){.parent = -1};
    while ((c = getopt_long(argc, argv, "+", options, NULL)) != -1) {
        if (c == 'c')
            req->cgroup = optarg;
        else if (c == 'l')
            req->log = optarg;
        else if (c == 'p' && number(optarg, &value) == 0)
            req->parent = value;
        else if (c == 'k' && number(optarg, &value) == 0 && value >= 3 && value <= 4)
            req->keep = (unsigned)value - 2;
        else
            return -1;
    }
    req->argv = argv + optind;
    return req->parent > 0 && req->argv[0] ? 0 : -1;
}

static int log_open(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0 || dup2(fd, STDOUT_FILENO) < 0 || dup2(fd, STDERR_FILENO) < 0)
        return refuse("cannot open the log", path);
    close(fd);
    return 0;
}

static int stdin_null(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

    if (fd < 0 || dup2(fd, STDIN_FILENO) < 0)
        return refuse("cannot open", "/dev/null");
    if (fd != STDIN_FILENO)
        close(fd);
    return 0;
}

static int cgroup_join(const char *folder)
{
    char path[4096];
    int fd, n;

    n = snprintf(path, sizeof(path), "%s/cgroup.procs", folder);
    if (n < 0 || (size_t)n >= sizeof(path)) {
        errno = ENAMETOOLONG;
        return refuse("cannot join the cgroup", folder);
    }
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "0", 1) != 1)
        return refuse("cannot join the cgroup", folder);
    close(fd);
    return 0;
}

static void signals_reset(void)
{
    sigset_t none;
    int i;

    for (i = 1; i < NSIG; i++)
        signal(i, SIG_DFL); /* fails for SIGKILL, SIGSTOP and libc's own: they are as they should be */
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* The keeper protects itself from the OOM killer; what it starts is no keeper. Not being allowed to is no reason not to run. */
static void oom_reset(void)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

    if (fd < 0)
        return;
    if (write(fd, "0", 1) != 1)
        fprintf(stderr, "mainstay-exec: oom_score_adj stays as inherited: %s\n", strerror(errno));
    close(fd);
}

int main(int argc, char **argv)
{
    struct request req;
    struct rlimit none = {0, 0};
    int r;

    if (arguments(argc, argv, &req) < 0) {
        fprintf(stderr,
                "usage: mainstay-exec --parent PID [--cgroup FOLDER] [--log FILE] [--keep 3|4] -- PROGRAM [ARGUMENT...]\n");
        return EXIT_REFUSED;
    }
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        return refuse("cannot ask for", "the death signal");
    if (getppid() != (pid_t)req.parent) {
        errno = ESRCH;
        return refuse("the keeper that asked is gone, not starting", req.argv[0]);
    }
    if (setsid() < 0)
        return refuse("cannot make", "a session");
    if (req.log && (r = log_open(req.log)) != 0)
        return r;
    if ((r = stdin_null()) != 0)
        return r;
    if (req.cgroup && (r = cgroup_join(req.cgroup)) != 0)
        return r;
    oom_reset();
    setpriority(PRIO_PROCESS, 0, 0); /* nor does it share the keeper's priority */
    signals_reset();
    if (setrlimit(RLIMIT_CORE, &none) < 0)
        return refuse("cannot forbid", "core dumps");
    if (close_range(3 + req.keep, ~0U, 0) < 0)
        return refuse("cannot close", "inherited descriptors");
    execv(req.argv[0], req.argv);
    fprintf(stderr, "mainstay-exec: cannot run %s: %s\n", req.argv[0], strerror(errno));
    return errno == ENOENT ? EXIT_NOT_FOUND : EXIT_REFUSED;
}
