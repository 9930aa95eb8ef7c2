#include "fuzz.h"

#include "base/file.h"
#include "base/log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);

static const char *seeds_folder;
static unsigned seeds_count;
static char folder[64];

_Noreturn void fuzz_broken(const char *what, const char *file, int line)
{
    fprintf(stderr, "%s:%d: promise broken: %s\n", file, line, what);
    abort();
}

void fuzz_seed(const char *name, const void *data, size_t len)
{
    char path[512];
    int fd;

    if (mst_path(path, sizeof(path), "%s/%s", seeds_folder, name) < 0)
        exit(1);
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0 || mst_write_all(fd, data, len) < 0) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        exit(1);
    }
    close(fd);
    seeds_count++;
}

/* One level of files and folders of files is all that targets make. */
static void folder_empty(int at, const char *name, unsigned depth)
{
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    struct dirent *entry;

    while (dir && (entry = readdir(dir))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (unlinkat(fd, entry->d_name, 0) < 0 && depth > 0)
            folder_empty(fd, entry->d_name, depth - 1);
    }
    if (dir)
        closedir(dir);
    unlinkat(at, name, AT_REMOVEDIR);
}

static void folder_remove(void)
{
    folder_empty(AT_FDCWD, folder, 2);
}

const char *fuzz_folder(void)
{
    if (folder[0])
        return folder;
    snprintf(folder, sizeof(folder), "/dev/shm/mst-fuzz-XXXXXX");
    if (!mkdtemp(folder)) {
        perror(folder);
        exit(1);
    }
    atexit(folder_remove);
    return folder;
}

void *fuzz_copy(const void *data, size_t len)
{
    void *copy = malloc(len ? len : 1);

    if (!copy)
        abort();
    if (len)
        memcpy(copy, data, len);
    return copy;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    signal(SIGPIPE, SIG_IGN);                                                    /* as all programs of ours */
    mst_log_level_set(getenv("MST_FUZZ_STORY") ? MST_LOG_DEBUG : MST_LOG_ERROR); /* for whoever looks at one input */
    if (*argc != 3 || strcmp((*argv)[1], "--seeds") != 0)
        return 0;
    seeds_folder = (*argv)[2];
    fuzz_seeds();
    printf("%u seeds\n", seeds_count);
    fflush(stdout);
    exit(seeds_count > 0 ? 0 : 1);
}

static uint64_t take(struct fuzz_in *in, unsigned bytes)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < bytes && in->left > 0; i++) {
        value |= (uint64_t)*in->at++ << 8 * i;
        in->left--;
    }
    return value;
}

uint8_t fuzz_u8(struct fuzz_in *in)
{
    return (uint8_t)take(in, 1);
}

uint16_t fuzz_u16(struct fuzz_in *in)
{
    return (uint16_t)take(in, 2);
}

uint32_t fuzz_u32(struct fuzz_in *in)
{
    return (uint32_t)take(in, 4);
}

uint64_t fuzz_u64(struct fuzz_in *in)
{
    return take(in, 8);
}

const uint8_t *fuzz_piece(struct fuzz_in *in, size_t *ret_len)
{
    size_t len = fuzz_u16(in);
    const uint8_t *at;

    if (len > in->left)
        len = in->left;
    at = in->at;
    in->at += len;
    in->left -= len;
    *ret_len = len;
    return at;
}

void fuzz_put_bytes(struct fuzz_out *out, const void *data, size_t len)
{
    if (len > sizeof(out->bytes) - out->len)
        abort();
    if (len)
        memcpy(out->bytes + out->len, data, len);
    out->len += len;
}

void fuzz_put(struct fuzz_out *out, uint64_t value, unsigned bytes)
{
    uint8_t le[8];

    for (unsigned i = 0; i < bytes; i++)
        le[i] = (uint8_t)(value >> 8 * i);
    fuzz_put_bytes(out, le, bytes);
}

void fuzz_put_piece(struct fuzz_out *out, const void *data, size_t len)
{
    if (len > UINT16_MAX)
        abort();
    fuzz_put(out, len, 2);
    fuzz_put_bytes(out, data, len);
}
