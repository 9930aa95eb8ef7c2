#include "base/event.h"

#include "base/clock.h"
#include "base/err.h"
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define LINE_BYTES    4096
#define STRING_BYTES  400u         /* of one value, before escaping */
#define BUFFER_BYTES  (256u << 10) /* some 1000 lines: seconds of a busy node */
#define FILE_MAX      (16u << 20)  /* and as much in PATH.1 */
#define JOURNAL_PATH  "/run/systemd/journal/socket"
#define JOURNAL_BYTES 8192

static const struct {
    const char *name, *text;
} table[MST_EV_COUNT] = {
#define X(identifier, name, text) [MST_EV_##identifier] = {name, text},
    MST_EVENTS(X)
#undef X
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t more;
    pthread_t thread;
    bool open, stopping;
    char *buffer; /* lines that wait, one after the other */
    size_t used;
    uint64_t serial, dropped;
    char program[64], host[64], boot_id[33], path[PATH_MAX];
    uint64_t instance, max_bytes, file_bytes;
    int fd, journal;
} timeline = {.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER, .fd = -1, .journal = -1};

const char *mst_event_name(enum mst_event_kind kind)
{
    return (unsigned)kind < MST_EV_COUNT ? table[kind].name : "?";
}

const char *mst_event_text(enum mst_event_kind kind)
{
    return (unsigned)kind < MST_EV_COUNT ? table[kind].text : "?";
}

enum mst_event_kind mst_event_by_name(const char *name)
{
    unsigned kind = 0;

    while (kind < MST_EV_COUNT && strcmp(table[kind].name, name) != 0)
        kind++;
    return (enum mst_event_kind)kind;
}

/* --- a line --- */

struct line {
    char *text;
    size_t used, size;
    bool full;
};

__attribute__((format(printf, 2, 3))) static void put(struct line *line, const char *fmt, ...)
{
    va_list args;
    int n;

    va_start(args, fmt);
    n = vsnprintf(line->text + line->used, line->size - line->used, fmt, args);
    va_end(args);
    if (n < 0 || (size_t)n >= line->size - line->used)
        line->full = true;
    else
        line->used += (size_t)n;
}

/* Length of the UTF-8 character at s, 0: it is none. */
static unsigned utf8(const unsigned char *s)
{
    unsigned len = s[0] < 0x80                   ? 1
                   : s[0] >= 0xc2 && s[0] < 0xe0 ? 2
                   : s[0] >= 0xe0 && s[0] < 0xf0 ? 3
                   : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                                 : 0;

    for (unsigned i = 1; i < len; i++) {
        if ((s[i] & 0xc0) != 0x80) /* also at the terminating zero */
            return 0;
    }
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] >= 0xa0) || (s[0] == 0xf0 && s[1] < 0x90) ||
        (s[0] == 0xf4 && s[1] >= 0x90))
        return 0; /* overlong, surrogate, beyond Unicode */
    return len;
}

static void put_string(struct line *line, const char *key, const char *value)
{
    const unsigned char *s = (const unsigned char *)value;
    const unsigned char *end;

    if (!value || !value[0])
        return;
    put(line, ",\"%s\":\"", key);
    for (end = s + STRING_BYTES; *s && s < end;) {
        unsigned len = utf8(s);

        if (*s == '"' || *s == '\\')
            put(line, "\\%c", *s);
        else if (*s < 0x20 || *s == 0x7f)
            put(line, "\\u%04x", *s);
        else if (len == 0)
            put(line, "\\ufffd");
        else
            put(line, "%.*s", (int)len, (const char *)s);
        s += len ? len : 1;
    }
    put(line, "\"");
}

static void put_number(struct line *line, const char *key, uint64_t value)
{
    if (value != 0)
        put(line, ",\"%s\":%" PRIu64, key, value);
}

/* Random 64-bit numbers: as text, because readers of JSON keep 53 bits. */
static void put_hex(struct line *line, const char *key, uint64_t value)
{
    if (value != 0)
        put(line, ",\"%s\":\"%016" PRIx64 "\"", key, value);
}

static void put_event(struct line *line, const struct mst_event *event)
{
    put_string(line, "vm", event->vm);
    put_number(line, "epoch", event->epoch);
    put_string(line, "node", event->node);
    put_hex(line, "instance", event->instance);
    put_number(line, "term", event->term);
    put_number(line, "recovery", event->recovery);
    put_number(line, "fault", event->fault);
    put_number(line, "proof", event->proof);
    put_number(line, "order", event->order);
    put_number(line, "seq", event->seq);
    put_number(line, "duration_us", event->duration_us);
    if (event->err != 0)
        put_string(line, "err", mst_errname(event->err));
    put_string(line, "what", event->what);
    put_string(line, "text", event->text);
}

/* With the lock. */
static void line_make(struct line *line, const struct mst_event *event, uint64_t boot_ns, uint64_t wall_ns)
{
    put(line, "{\"n\":%" PRIu64 ",\"boot_ns\":%" PRIu64 ",\"wall_ns\":%" PRIu64, timeline.serial + 1, boot_ns, wall_ns);
    put(line, ",\"boot_id\":\"%s\",\"pid\":%d", timeline.boot_id, (int)getpid());
    put_string(line, "program", timeline.program);
    put_string(line, "host", timeline.host);
    put_hex(line, "self", timeline.instance);
    put_number(line, "dropped", timeline.dropped);
    put_string(line, "event", mst_event_name(event->kind));
    put_event(line, event);
    put(line, "}\n");
}

void mst_event(const struct mst_event *event)
{
    int saved_errno = errno;
    uint64_t boot_ns = mst_now_ns();
    uint64_t wall_ns = mst_wall_ns();
    struct line line = {0};

    pthread_mutex_lock(&timeline.lock);
    if (timeline.open) {
        line.text = timeline.buffer + timeline.used;
        line.size = BUFFER_BYTES - timeline.used < LINE_BYTES ? BUFFER_BYTES - timeline.used : LINE_BYTES;
        line_make(&line, event, boot_ns, wall_ns);
        if (line.full) {
            timeline.dropped++;
        } else {
            timeline.used += line.used;
            timeline.dropped = 0;
        }
        timeline.serial++; /* a hole in the numbers is a line that is missing */
        pthread_cond_signal(&timeline.more);
    }
    pthread_mutex_unlock(&timeline.lock);
    errno = saved_errno;
}

/* --- the thread --- */

static int file_open(void)
{
    struct stat st;

    timeline.fd = open(timeline.path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
    if (timeline.fd < 0)
        return -errno;
    timeline.file_bytes = fstat(timeline.fd, &st) == 0 ? (uint64_t)st.st_size : 0;
    return 0;
}

static void file_rotate(void)
{
    char old[PATH_MAX];

    if (mst_path(old, sizeof(old), "%s.1", timeline.path) < 0 || rename(timeline.path, old) < 0)
        return; /* it grows on: better too long than lost */
    close(timeline.fd);
    (void)file_open();
}

static void file_write(const char *data, size_t len)
{
    if (timeline.fd < 0 && (!timeline.path[0] || file_open() < 0)) /* a rotation may have failed to open the next file */
        return;
    if (timeline.file_bytes > 0 && timeline.file_bytes + len > timeline.max_bytes)
        file_rotate();
    if (timeline.fd >= 0 && mst_write_all(timeline.fd, data, len) == 0)
        timeline.file_bytes += len;
    /* A full disk loses events, and nothing else: whoever reads finds the hole in the numbers. */
}

/* The whole line as MESSAGE, and what people search for as fields of their own. Values are ours or escaped: no line feed in them. */
static void journal_send(const char *line, size_t len)
{
    static const struct {
        const char *key, *field;
    } fields[] = {{"event", "EVENT"}, {"vm", "VM"},     {"epoch", "EPOCH"},      {"host", "HOST"},
                  {"node", "NODE"},   {"term", "TERM"}, {"recovery", "RECOVERY"}};
    struct sockaddr_un to = {.sun_family = AF_UNIX, .sun_path = JOURNAL_PATH};
    char text[JOURNAL_BYTES];
    int used = snprintf(text, sizeof(text), "PRIORITY=6\nSYSLOG_IDENTIFIER=%s\nMESSAGE=%.*s\n", timeline.program, (int)len, line);

    for (unsigned i = 0; i < sizeof(fields) / sizeof(fields[0]) && used > 0 && (size_t)used < sizeof(text); i++) {
        char want[32];
        const char *at;
        size_t n;

        snprintf(want, sizeof(want), ",\"%s\":", fields[i].key);
        at = memmem(line, len, want, strlen(want));
        if (!at)
            continue;
        at += strlen(want);
        at += *at == '"' ? 1 : 0;
        n = strcspn(at, "\",}");
        used += snprintf(text + used, sizeof(text) - (size_t)used, "MAINSTAY_%s=%.*s\n", fields[i].field, (int)n, at);
    }
    if (used > 0 && (size_t)used < sizeof(text))
        (void)sendto(timeline.journal, text, (size_t)used, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&to, sizeof(to));
}

static void write_out(const char *lines, size_t len)
{
    file_write(lines, len);
    for (const char *at = lines; timeline.journal >= 0 && at < lines + len;) {
        const char *end = memchr(at, '\n', (size_t)(lines + len - at));

        journal_send(at, (size_t)(end - at));
        at = end + 1;
    }
}

static void *run(void *arg)
{
    char *taken = arg;

    /* Linux: of this thread. The loop's raised priority is not for this. */
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), 0);
    pthread_mutex_lock(&timeline.lock);
    for (;;) {
        char *full = timeline.buffer;
        size_t len = timeline.used;

        if (len == 0 && timeline.stopping)
            break;
        if (len == 0) {
            pthread_cond_wait(&timeline.more, &timeline.lock);
            continue;
        }
        timeline.buffer = taken;
        timeline.used = 0;
        pthread_mutex_unlock(&timeline.lock);
        write_out(full, len);
        taken = full;
        pthread_mutex_lock(&timeline.lock);
    }
    pthread_mutex_unlock(&timeline.lock);
    free(taken);
    return NULL;
}

/* --- life --- */

static void name_set(char *to, size_t size, const char *from)
{
    snprintf(to, size, "%s", from ? from : "");
}

static void boot_id_set(void)
{
    uint8_t id[16] = {0};

    (void)mst_host_boot_id(id);
    for (unsigned i = 0; i < sizeof(id); i++)
        snprintf(timeline.boot_id + 2 * (size_t)i, 3, "%02x", id[i]);
}

static int thread_start(void)
{
    char *other = malloc(BUFFER_BYTES);
    sigset_t all, before;
    int r = other ? 0 : -ENOMEM;

    timeline.buffer = malloc(BUFFER_BYTES);
    if (!timeline.buffer)
        r = -ENOMEM;
    sigfillset(&all); /* signals are the loop's */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (r == 0)
        r = -pthread_create(&timeline.thread, NULL, run, other);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (r < 0) {
        free(other);
        free(timeline.buffer);
        timeline.buffer = NULL;
    }
    return r;
}

int mst_event_open(const char *path, uint64_t max_bytes, const char *program, const char *host, uint64_t instance)
{
    int r = 0;

    if (timeline.open)
        return -EALREADY;
    name_set(timeline.program, sizeof(timeline.program), program);
    name_set(timeline.host, sizeof(timeline.host), host);
    timeline.instance = instance;
    timeline.max_bytes = max_bytes ? max_bytes : FILE_MAX;
    timeline.used = timeline.serial = timeline.dropped = 0;
    timeline.stopping = false;
    boot_id_set();
    if (path) {
        r = mst_path(timeline.path, sizeof(timeline.path), "%s", path);
        r = r < 0 ? r : file_open();
    }
    if (getenv("JOURNAL_STREAM"))
        timeline.journal = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (r == 0)
        r = thread_start();
    timeline.open = r == 0;
    if (r < 0)
        mst_event_close();
    else
        mst_event(&(struct mst_event){.kind = MST_EV_PROCESS_STARTED});
    return r;
}

void mst_event_identity(const char *host, uint64_t instance)
{
    pthread_mutex_lock(&timeline.lock);
    name_set(timeline.host, sizeof(timeline.host), host);
    timeline.instance = instance;
    pthread_mutex_unlock(&timeline.lock);
}

void mst_event_close(void)
{
    bool was = timeline.open;

    if (was)
        mst_event(&(struct mst_event){.kind = MST_EV_PROCESS_STOPPED});
    pthread_mutex_lock(&timeline.lock);
    timeline.open = false;
    timeline.stopping = true;
    pthread_cond_signal(&timeline.more);
    pthread_mutex_unlock(&timeline.lock);
    if (was)
        pthread_join(timeline.thread, NULL);
    free(timeline.buffer);
    timeline.buffer = NULL;
    if (timeline.fd >= 0)
        close(timeline.fd);
    if (timeline.journal >= 0)
        close(timeline.journal);
    timeline.fd = timeline.journal = -1;
}
