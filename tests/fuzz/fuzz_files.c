#include "fuzz.h"

#include "base/file.h"
#include "cli/events.h"
#include "node/keeper/cgroup.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Text files that others wrote: events files of several machines, which may have been cut off or left with anything by a loss of power; a time as an operator
 * types it; cgroup.events. First byte: which. */

enum { EVENTS, TIME, CGROUP, KINDS };

static void file(const char *name, const uint8_t *bytes, size_t len)
{
    char path[128];
    int fd;

    FUZZ_CHECK(mst_path(path, sizeof(path), "%s/%s", fuzz_folder(), name) == 0);
    fd = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600);
    FUZZ_CHECK(fd >= 0 && mst_write_all(fd, bytes, len) == 0);
    close(fd);
}

static size_t lines_of(const uint8_t *bytes, size_t len)
{
    size_t lines = 0;

    for (size_t i = 0; i < len; i++)
        lines += bytes[i] != '\n' && (i + 1 == len || bytes[i + 1] == '\n');
    return lines;
}

/* Every line is an event or counted as none; what is left by a filter is in order of time. */
static void events(struct fuzz_in *in)
{
    unsigned how = fuzz_u8(in);
    struct events_filter filter = {.since_ns = how & 1 ? 250 : 0, .vm = how & 2 ? "web" : NULL, .node = how & 4 ? "n1" : NULL};
    size_t len, lines;
    const uint8_t *piece = fuzz_piece(in, &len);
    char *paths[] = {(char *)fuzz_folder()}, *text;
    struct mst_why why = {""};
    json_int_t last = INT64_MIN;
    json_t *list, *event;
    unsigned bad;
    size_t i;

    lines = lines_of(piece, len) + lines_of(in->at, in->left);
    file("events.jsonl", piece, len);
    file("events.jsonl.1", in->at, in->left);
    FUZZ_CHECK(events_load(paths, 1, &filter, &list, &bad, &why) == 0);
    FUZZ_CHECK(bad + json_array_size(list) <= lines && ((how & 7) != 0 || bad + json_array_size(list) == lines));
    json_array_foreach(list, i, event)
    {
        json_int_t wall = json_integer_value(json_object_get(event, "wall_ns"));

        FUZZ_CHECK((uint64_t)wall >= (uint64_t)last || i == 0);
        last = wall;
    }
    text = json_dumps(list, 0);
    FUZZ_CHECK(text);
    free(text);
    json_decref(list);
}

static void typed(struct fuzz_in *in)
{
    uint64_t now_ns = UINT64_C(1800000000000000000), ns = 0;
    char *text = malloc(in->left + 1);
    int r;

    FUZZ_CHECK(text);
    memcpy(text, in->at, in->left);
    text[in->left] = '\0';
    r = events_time(text, now_ns, &ns);
    FUZZ_CHECK(r == 0 || r == -EINVAL);
    free(text);
}

static void cgroup(struct fuzz_in *in)
{
    int r;

    file("cgroup.events", in->at, in->left);
    r = mst_cgroup_populated(fuzz_folder());
    FUZZ_CHECK(r == 0 || r == 1 || r == -EBADMSG || r == -EFBIG);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};

    switch (fuzz_u8(&in) % KINDS) {
    case EVENTS:
        events(&in);
        break;
    case TIME:
        typed(&in);
        break;
    default:
        cgroup(&in);
    }
    return 0;
}

static struct fuzz_out out;

static void seed(const char *name, unsigned kind, const char *text)
{
    out.len = 0;
    fuzz_put(&out, kind, 1);
    fuzz_put_bytes(&out, text, strlen(text));
    fuzz_seed(name, out.bytes, out.len);
}

void fuzz_seeds(void)
{
    static const char one[] =
        "{\"n\":1,\"wall_ns\":100,\"boot_ns\":1,\"event\":\"a\",\"host\":\"n1\"}\n{\"n\":2,\"wall_ns\":300,\"boot_ns\":3,"
        "\"event\":\"c\",\"host\":\"n1\",\"vm\":\"web\"}\n{\"n\":3,\"wal";
    static const char two[] =
        "{\"wall_ns\":200,\"event\":\"b\",\"node\":\"n1\",\"vm\":\"web\"}\n7\n\0\0\0\n{\"wall_ns\":400,\"event\":\"d\"}\n";
    char name[32];

    for (unsigned how = 0; how < 8; how++) {
        out.len = 0;
        fuzz_put(&out, EVENTS, 1);
        fuzz_put(&out, how, 1);
        fuzz_put_piece(&out, one, sizeof(one) - 1);
        fuzz_put_bytes(&out, two, sizeof(two) - 1);
        snprintf(name, sizeof(name), "events-%u", how);
        fuzz_seed(name, out.bytes, out.len);
    }
    seed("ago", TIME, "90s");
    seed("date", TIME, "2026-11-23T14:05:01Z");
    seed("populated", CGROUP, "populated 1\nfrozen 0\n");
    seed("empty", CGROUP, "frozen 0\npopulated 0\n");
}
