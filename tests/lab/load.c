/* Load for tests/lab/false-takeovers: keeps a machine's CPUs, memory and network busy for a while, then says how busy it was.
 *
 *     load --seconds S [--cpu THREADS] [--memory-leave MIB] [--listen ADDRESS:PORT] [--to ADDRESS:PORT]...
 *
 * CPU: threads that count. Memory: all that is available but MIB is taken and dirtied page by page, again and again; what is left is looked at all
 * the time, so that other programs may grow and the kernel need not kill anybody. Network: a TCP stream to each ADDRESS, and whatever comes is
 * swallowed. This process is the first that the kernel would kill for memory. Prints one line of JSON; exit 0, 2 wrong usage, 1 when it cannot
 * start. */

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PEERS_MAX    8
#define THREADS_MAX  64
#define PAGE_BYTES   4096u
#define CHUNK_BYTES  (1u << 20)
#define CHUNKS_MAX   65536u
#define SLACK_MIB    32u /* between taking one more chunk and giving one back */
#define STREAM_BYTES (256u << 10)

struct options {
    unsigned seconds, cpu, memory_leave_mib, peers;
    bool memory, listen;
    struct sockaddr_in listen_at, to[PEERS_MAX];
};

static atomic_bool stop;
static _Atomic uint64_t cpu_rounds, dirtied_pages, memory_most_mib, sent_bytes, received_bytes, connects;

/* --- CPU --- */

static void *burn(void *arg)
{
    volatile uint64_t sink = 0;
    uint64_t x = 88172645463325252u;

    (void)arg;
    while (!atomic_load(&stop)) {
        for (unsigned i = 0; i < 1000000; i++) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
        }
        sink = x;
        atomic_fetch_add(&cpu_rounds, 1);
    }
    (void)sink;
    return NULL;
}

/* Jiffies of all CPUs since boot: all, and idle ones (what waits for a disk is idle too). */
static int jiffies(uint64_t *ret_all, uint64_t *ret_idle)
{
    unsigned long long word[8];
    FILE *file = fopen("/proc/stat", "re");
    int n;

    if (!file)
        return -errno;
    n = fscanf(file, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &word[0], &word[1], &word[2], &word[3], &word[4], &word[5],
               &word[6], &word[7]);
    fclose(file);
    if (n != 8)
        return -EPROTO;
    *ret_all = 0;
    for (unsigned i = 0; i < 8; i++)
        *ret_all += word[i];
    *ret_idle = word[3] + word[4];
    return 0;
}

/* --- memory --- */

static uint64_t available_mib(void)
{
    FILE *file = fopen("/proc/meminfo", "re");
    unsigned long long kib = 0;
    char line[128];

    while (file && fgets(line, sizeof(line), file)) {
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            break;
    }
    if (file)
        fclose(file);
    return kib >> 10;
}

static uint8_t *chunk_take(void)
{
    void *at = mmap(NULL, CHUNK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return at == MAP_FAILED ? NULL : at;
}

static void dirty(uint8_t *chunk, uint64_t value)
{
    for (size_t at = 0; at < CHUNK_BYTES; at += PAGE_BYTES)
        memcpy(chunk + at, &value, sizeof(value));
    atomic_fetch_add(&dirtied_pages, CHUNK_BYTES / PAGE_BYTES);
}

static void *fill(void *arg)
{
    static uint8_t *chunks[CHUNKS_MAX];
    const struct options *opt = arg;
    unsigned count = 0;
    uint64_t round = 0;

    while (!atomic_load(&stop)) {
        uint64_t left = available_mib();

        if (left > opt->memory_leave_mib + SLACK_MIB && count < CHUNKS_MAX && (chunks[count] = chunk_take()) != NULL) {
            dirty(chunks[count++], ++round);
            if (count > atomic_load(&memory_most_mib))
                atomic_store(&memory_most_mib, count); /* chunks are MiB */
            continue;
        }
        while (left < opt->memory_leave_mib && count > 0) {
            munmap(chunks[--count], CHUNK_BYTES);
            left++;
        }
        /* A few chunks, and another look at what is left. */
        for (unsigned i = 0; i < 16 && count > 0 && !atomic_load(&stop); i++) {
            round++;
            dirty(chunks[round % count], round);
        }
        if (count == 0)
            usleep(10000);
    }
    return NULL;
}

/* --- network --- */

static void time_outs(int fd)
{
    struct timeval second = {.tv_sec = 1};

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof(second));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &second, sizeof(second));
}

static bool again(void)
{
    return errno == EAGAIN || errno == EINTR || errno == EINPROGRESS;
}

static void *swallow(void *arg)
{
    int fd = (int)(intptr_t)arg;
    char *buffer = malloc(STREAM_BYTES);
    ssize_t n;

    while (buffer && !atomic_load(&stop) && ((n = recv(fd, buffer, STREAM_BYTES, 0)) > 0 || (n < 0 && again()))) {
        if (n > 0)
            atomic_fetch_add(&received_bytes, (uint64_t)n);
    }
    free(buffer);
    close(fd);
    return NULL;
}

static void *serve(void *arg)
{
    int listener = *(int *)arg;

    while (!atomic_load(&stop)) {
        int fd = accept(listener, NULL, NULL);
        pthread_t thread;

        if (fd < 0) {
            if (!again())
                usleep(100000);
            continue;
        }
        time_outs(fd);
        if (pthread_create(&thread, NULL, swallow, (void *)(intptr_t)fd) == 0)
            pthread_detach(thread);
        else
            close(fd);
    }
    return NULL;
}

static void stream(int fd, const char *buffer)
{
    ssize_t n;

    while (!atomic_load(&stop) && ((n = send(fd, buffer, STREAM_BYTES, MSG_NOSIGNAL)) > 0 || (n < 0 && again()))) {
        if (n > 0)
            atomic_fetch_add(&sent_bytes, (uint64_t)n);
    }
}

/* The other side may not be up yet, or may have to be called again. */
static void *call(void *arg)
{
    const struct sockaddr_in *to = arg;
    char *buffer = calloc(1, STREAM_BYTES);

    while (buffer && !atomic_load(&stop)) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

        if (fd >= 0) {
            time_outs(fd);
            if (connect(fd, (const struct sockaddr *)to, sizeof(*to)) == 0) {
                atomic_fetch_add(&connects, 1);
                stream(fd, buffer);
            }
            close(fd);
        }
        usleep(200000);
    }
    free(buffer);
    return NULL;
}

static int listener_open(const struct sockaddr_in *at)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    time_outs(fd);
    if (bind(fd, (const struct sockaddr *)at, sizeof(*at)) < 0 || listen(fd, PEERS_MAX) < 0) {
        int r = -errno;

        close(fd);
        return r;
    }
    return fd;
}

/* --- all of it --- */

static void on_signal(int number)
{
    (void)number;
    atomic_store(&stop, true);
}

static double seconds_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static int start(pthread_t *threads, unsigned *count, void *(*function)(void *), void *arg)
{
    int r = *count < THREADS_MAX ? pthread_create(&threads[*count], NULL, function, arg) : EAGAIN;

    if (r != 0)
        return -r;
    (*count)++;
    return 0;
}

static int run(struct options *opt)
{
    uint64_t all[2] = {0}, idle[2] = {0};
    pthread_t threads[THREADS_MAX];
    unsigned count = 0;
    double begun = seconds_now();
    int listener = -1, r = 0, oom = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

    if (oom < 0 || write(oom, "1000", 4) != 4)
        fprintf(stderr, "load: oom_score_adj stays as it is: %s\n", strerror(errno));
    if (oom >= 0)
        close(oom);
    if (opt->listen && (listener = listener_open(&opt->listen_at)) < 0) {
        fprintf(stderr, "load: cannot listen: %s\n", strerror(-listener));
        return 1;
    }
    r = jiffies(&all[0], &idle[0]);
    if (r == 0 && opt->listen)
        r = start(threads, &count, serve, &listener);
    for (unsigned i = 0; r == 0 && i < opt->peers; i++)
        r = start(threads, &count, call, &opt->to[i]);
    for (unsigned i = 0; r == 0 && i < opt->cpu; i++)
        r = start(threads, &count, burn, NULL);
    if (r == 0 && opt->memory)
        r = start(threads, &count, fill, opt);
    if (r < 0)
        fprintf(stderr, "load: cannot start: %s\n", strerror(-r));
    while (r == 0 && !atomic_load(&stop) && seconds_now() - begun < opt->seconds)
        usleep(100000);
    atomic_store(&stop, true);
    for (unsigned i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    if (r < 0 || jiffies(&all[1], &idle[1]) < 0)
        return 1;
    printf("{\"seconds\": %.1f, \"busy_percent\": %.1f, \"cpu_rounds\": %llu, \"memory_most_mib\": %llu, \"dirtied_mib\": %llu, "
           "\"sent_mib\": %llu, \"received_mib\": %llu, \"connects\": %llu}\n",
           seconds_now() - begun, all[1] > all[0] ? 100.0 - 100.0 * (double)(idle[1] - idle[0]) / (double)(all[1] - all[0]) : 0.0,
           (unsigned long long)cpu_rounds, (unsigned long long)memory_most_mib,
           (unsigned long long)(dirtied_pages * PAGE_BYTES >> 20), (unsigned long long)(sent_bytes >> 20),
           (unsigned long long)(received_bytes >> 20), (unsigned long long)connects);
    return 0;
}

static int usage(void)
{
    fprintf(stderr,
            "usage: load --seconds 1.. [--cpu THREADS] [--memory-leave MIB] [--listen ADDRESS:PORT] [--to ADDRESS:PORT]...\n");
    return 2;
}

static bool parse_number(const char *text, unsigned long most, unsigned *ret)
{
    char *end;
    unsigned long value;

    errno = 0;
    value = strtoul(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || text[0] == '-' || value > most)
        return false;
    *ret = (unsigned)value;
    return true;
}

static bool parse_address(const char *text, struct sockaddr_in *ret)
{
    char host[INET_ADDRSTRLEN];
    const char *colon = strrchr(text, ':');
    unsigned port;

    if (!colon || (size_t)(colon - text) >= sizeof(host) || !parse_number(colon + 1, 65535, &port))
        return false;
    memcpy(host, text, (size_t)(colon - text));
    host[colon - text] = '\0';
    *ret = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    return inet_pton(AF_INET, host, &ret->sin_addr) == 1;
}

int main(int argc, char **argv)
{
    static const struct option long_options[] = {
        {"seconds", required_argument, NULL, 's'},      {"cpu", required_argument, NULL, 'c'},
        {"memory-leave", required_argument, NULL, 'm'}, {"listen", required_argument, NULL, 'l'},
        {"to", required_argument, NULL, 't'},           {NULL, 0, NULL, 0},
    };
    static struct options opt;
    bool good = true;
    int c;

    while (good && (c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        if (c == 's')
            good = parse_number(optarg, 1000000, &opt.seconds);
        else if (c == 'c')
            good = parse_number(optarg, THREADS_MAX / 2, &opt.cpu);
        else if (c == 'm')
            good = opt.memory = parse_number(optarg, 1u << 30, &opt.memory_leave_mib);
        else if (c == 'l')
            good = opt.listen = parse_address(optarg, &opt.listen_at);
        else if (c == 't')
            good = opt.peers < PEERS_MAX && parse_address(optarg, &opt.to[opt.peers++]);
        else
            good = false;
    }
    if (!good || optind != argc || opt.seconds == 0)
        return usage();
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);
    return run(&opt);
}
