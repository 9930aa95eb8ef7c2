#include "fuzz.h"

#include "base/file.h"
#include "coordinator/io/fence_runner.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* A fence agent that prints and ends as the input says (fence_agent.c): two bytes are its exit statuses, of off and of status. Off is believed only
 * when off ended with 0 and status with 2, whatever was printed. */

struct seen {
    unsigned times;
    int err;
};

static void on_done(void *arg, int err, const char *text)
{
    struct seen *seen = arg;

    seen->times++;
    seen->err = err;
    FUZZ_CHECK(strlen(text) < MST_WHY_BYTES && text[0]);
    for (; *text; text++)
        FUZZ_CHECK(*text >= ' ' && *text <= '~');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char agent[] = FENCE_AGENT, key[] = "file", key2[] = "more";
    static char path[PATH_MAX];
    char value[] = "1";
    struct mst_option options[2] = {{.key = key, .value = path}, {.key = key2, .value = value}};
    struct mst_fence_conf conf = {.agent = agent, .options = options, .options_count = 2};
    struct mst_fence_run *run;
    struct seen seen = {0};
    struct mst_why why = {""};
    uv_loop_t loop;
    int fd;

    if (size < 2)
        return 0;
    FUZZ_CHECK(mst_path(path, sizeof(path), "%s/says", fuzz_folder()) == 0);
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    FUZZ_CHECK(fd >= 0 && mst_write_all(fd, data, size) == 0 && close(fd) == 0);
    FUZZ_CHECK(uv_loop_init(&loop) == 0);
    FUZZ_CHECK(mst_fence_run(&loop, &conf, 15000, false, on_done, &seen, &run, &why) == 0);
    uv_run(&loop, UV_RUN_DEFAULT);
    FUZZ_CHECK(seen.times == 1 && uv_loop_close(&loop) == 0);
    FUZZ_CHECK((seen.err == 0) == (data[0] == 0 && data[1] == 2));
    FUZZ_CHECK(seen.err == 0 || seen.err == -EIO);
    return 0;
}

#define SEED(name, text) fuzz_seed(name, text, sizeof(text) - 1)

void fuzz_seeds(void)
{
    SEED("off", "\0\2Success: Powered OFF\n");
    SEED("on", "\0\0Status: ON\r\n");
    SEED("refused", "\1\1Failed: Unable to obtain correct plug status or plug is not available\n\n\n");
    SEED("killed", "\0\377\033[31mterminal\a\0\200\377");
    SEED("silent", "\0\2");
}
