#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_BYTES 4096

int mst_write_all(int fd, const void *data, size_t len)
{
    const uint8_t *at = data;

    while (len > 0) {
        ssize_t n = write(fd, at, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return -EIO;
        at += n;
        len -= (size_t)n;
    }
    return 0;
}

static int open_retry(const char *path, int flags, mode_t mode)
{
    int fd;

    do {
        fd = open(path, flags | O_CLOEXEC, mode);
    } while (fd < 0 && errno == EINTR);
    return fd < 0 ? -errno : fd;
}

static int fsync_retry(int fd)
{
    int r;

    do {
        r = fsync(fd);
    } while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

/* Reads until the end or until len bytes are there. */
static int read_full(int fd, char *data, size_t len, size_t *ret_got)
{
    size_t got = 0;

    while (got < len) {
        ssize_t n = read(fd, data + got, len - got);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        got += (size_t)n;
    }
    *ret_got = got;
    return 0;
}

int mst_file_read(const char *path, size_t max, char **ret_data, size_t *ret_len)
{
    size_t room = 4096, len = 0, got = 0;
    char *data = NULL;
    int fd, r;

    fd = open_retry(path, O_RDONLY, 0);
    if (fd < 0)
        return fd;
    /* Files of /proc and /sys do not tell their size: read until the end, doubling the buffer. */
    for (;;) {
        if (max < SIZE_MAX - 2 && room > max + 2)
            room = max + 2; /* one byte to see that there is more, one for the zero */
        char *larger = realloc(data, room);
        if (!larger) {
            r = -ENOMEM;
            goto out;
        }
        data = larger;
        r = read_full(fd, data + len, room - 1 - len, &got);
        if (r < 0)
            goto out;
        len += got;
        if (len > max) {
            r = -EFBIG;
            goto out;
        }
        if (len < room - 1)
            break;
        if (room > SIZE_MAX / 2) {
            r = -ENOMEM;
            goto out;
        }
        room *= 2;
    }
    data[len] = '\0';
    *ret_data = data;
    *ret_len = len;
    data = NULL;
    r = 0;
out:
    free(data);
    close(fd);
    return r;
}

/* Makes the rename itself durable. */
static int folder_sync(const char *path)
{
    char folder[PATH_BYTES];
    const char *slash = strrchr(path, '/');
    int fd, r;

    if (!slash)
        r = mst_path(folder, sizeof(folder), ".");
    else if (slash == path)
        r = mst_path(folder, sizeof(folder), "/");
    else
        r = mst_path(folder, sizeof(folder), "%.*s", (int)(slash - path), path);
    if (r < 0)
        return r;
    fd = open_retry(folder, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0)
        return fd;
    r = fsync_retry(fd);
    close(fd);
    return r;
}

static int file_replace(const char *path, const void *data, size_t len, mode_t mode, int durable)
{
    char temporary[PATH_BYTES];
    int fd, r;

    r = mst_path(temporary, sizeof(temporary), "%s.XXXXXX", path);
    if (r < 0)
        return r;
    fd = mkostemp(temporary, O_CLOEXEC);
    if (fd < 0)
        return -errno;
    r = fchmod(fd, mode) < 0 ? -errno : 0;
    if (r == 0)
        r = mst_write_all(fd, data, len);
    if (r == 0 && durable)
        r = fsync_retry(fd);
    if (close(fd) < 0 && r == 0 && errno != EINTR)
        r = -errno;
    if (r == 0 && rename(temporary, path) < 0)
        r = -errno;
    if (r < 0) {
        unlink(temporary);
        return r;
    }
    return durable ? folder_sync(path) : 0;
}

int mst_file_write_durable(const char *path, const void *data, size_t len, mode_t mode)
{
    return file_replace(path, data, len, mode, 1);
}

int mst_file_poke(const char *path, const char *text)
{
    size_t len = strlen(text);
    ssize_t n;
    int fd, r;

    fd = open_retry(path, O_WRONLY, 0);
    if (fd < 0)
        return fd;
    do {
        n = write(fd, text, len);
    } while (n < 0 && errno == EINTR);
    r = n < 0 ? -errno : 0;
    if (r == 0 && (size_t)n != len)
        r = -EIO; /* a control file takes all or nothing: a second write would be another command */
    close(fd);
    return r;
}

int mst_mkdirs(const char *path, mode_t mode)
{
    char part[PATH_BYTES];
    struct stat st;
    int r;

    if (path[0] == '\0')
        return -EINVAL;
    r = mst_path(part, sizeof(part), "%s", path);
    if (r < 0)
        return r;
    for (char *at = part + 1;; at++) {
        if (*at != '/' && *at != '\0')
            continue;
        char cut = *at;
        *at = '\0';
        if (mkdir(part, mode) < 0 && errno != EEXIST) {
            /* A read-only or forbidden parent is fine as long as the folder is there. */
            r = -errno;
            if (stat(part, &st) < 0)
                return r;
        }
        *at = cut;
        if (cut == '\0')
            break;
    }
    if (stat(part, &st) < 0)
        return -errno;
    return S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
}

int mst_pidfile_write(const char *path, pid_t pid)
{
    char text[32];
    int n = snprintf(text, sizeof(text), "%d\n", (int)pid);

    return file_replace(path, text, (size_t)n, 0644, 0);
}

int mst_path(char *buf, size_t size, const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(buf, size, fmt, ap);
    va_end(ap);
    if (n < 0)
        return -EINVAL;
    return (size_t)n < size ? 0 : -ENAMETOOLONG;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

int mst_host_boot_id(uint8_t ret_id[static 16])
{
    unsigned digits = 0;
    uint8_t id[16] = {0};
    char *text;
    size_t len;
    int r;

    r = mst_file_read("/proc/sys/kernel/random/boot_id", 64, &text, &len);
    if (r < 0)
        return r;
    for (size_t i = 0; i < len && digits < 32; i++) {
        int digit = hex_digit(text[i]);
        if (digit < 0)
            continue;
        id[digits / 2] = (uint8_t)(id[digits / 2] << 4 | digit);
        digits++;
    }
    free(text);
    if (digits != 32)
        return -EBADMSG;
    memcpy(ret_id, id, sizeof(id));
    return 0;
}
