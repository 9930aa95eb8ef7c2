#include "base/log.h"
#include "base/clock.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINE_BYTES 2048 /* below PIPE_BUF: a line into a pipe is never mixed with another process's */

static const char *const level_names[] = {
    [MST_LOG_ERROR] = "error", [MST_LOG_WARNING] = "warning", [MST_LOG_NOTICE] = "notice",
    [MST_LOG_INFO] = "info",   [MST_LOG_DEBUG] = "debug",
};

static const char *log_program = "mainstay";
static atomic_int log_level = MST_LOG_INFO;

void mst_log_init(const char *program)
{
    const char *want = getenv("MST_LOG");

    log_program = program;
    for (int i = MST_LOG_ERROR; want && i <= MST_LOG_DEBUG; i++) {
        if (strcmp(want, level_names[i]) == 0)
            atomic_store(&log_level, i);
    }
}

void mst_log_level_set(enum mst_log_level level)
{
    atomic_store(&log_level, (int)level);
}

static size_t line_begin(char *line, size_t size, enum mst_log_level level)
{
    struct timespec ts;
    struct tm tm;
    char date[32] = "?";
    int n;

    clock_gettime(CLOCK_REALTIME, &ts);
    if (gmtime_r(&ts.tv_sec, &tm))
        strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%S", &tm);
    n = snprintf(line, size, "%s.%06ldZ %s %s[%d] ", date, ts.tv_nsec / 1000, level_names[level], log_program, (int)getpid());
    if (n < 0)
        return 0;
    return (size_t)n < size ? (size_t)n : size - 1;
}

void mst_log(enum mst_log_level level, const char *fmt, ...)
{
    int saved_errno = errno;
    char line[LINE_BYTES];
    size_t used, begin;
    va_list ap;

    if (level < MST_LOG_ERROR || level > MST_LOG_DEBUG || (int)level > atomic_load(&log_level))
        return;
    begin = used = line_begin(line, sizeof(line) - 1, level);
    va_start(ap, fmt);
    if (vsnprintf(line + used, sizeof(line) - 1 - used, fmt, ap) >= 0)
        used += strnlen(line + used, sizeof(line) - 2 - used);
    va_end(ap);
    /* Text from a peer must not be able to forge a line. */
    for (size_t i = begin; i < used; i++) {
        if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
            line[i] = ' ';
    }
    line[used++] = '\n';
    /* Nothing sensible can be done when stderr is gone or full; a partial line is not completed so as to keep one write. */
    ssize_t ignored = write(STDERR_FILENO, line, used);
    (void)ignored;
    errno = saved_errno;
}
