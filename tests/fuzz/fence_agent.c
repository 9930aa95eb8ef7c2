#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A fence agent that does what a file says, for fuzz_fence.c: reads its options as fence agents do, and takes the file's name from them.
 * The file: how it ends at off, how at status, then what it prints. */

static void say(const char *path, int status)
{
    static unsigned char text[65536];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof(text)) : -1;

    if (n < 2)
        exit(99);
    for (ssize_t at = 2; at < n;) {
        ssize_t m = write(at % 2 ? 1 : 2, text + at, (size_t)(n - at));

        if (m <= 0)
            exit(98);
        at += m;
    }
    if (text[status] == 0xff)
        abort();
    exit(text[status]);
}

int main(void)
{
    char line[512], path[512] = "";
    int status = 0;

    while (fgets(line, sizeof(line), stdin)) {
        line[strcspn(line, "\n")] = '\0';
        if (strcmp(line, "action=status") == 0)
            status = 1;
        if (strncmp(line, "file=", 5) == 0)
            memcpy(path, line + 5, strlen(line + 5) + 1);
    }
    say(path, status);
}
