#include "base/fault.h"

/* The file is compiled in every build so that the library never is empty; the points exist only where asked for. */
#ifdef MST_FAULT_POINTS

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define POINTS_MAX 32
#define NAME_BYTES 64

enum act { ACT_HIT, ACT_KILL, ACT_PANIC };

struct point {
    char name[NAME_BYTES];
    unsigned long left; /* hits until it fires; 0: has fired */
    enum act act;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct point points[POINTS_MAX];
static unsigned points_count;
static bool loaded;
static const char *after; /* nothing counts before this file is there; NULL: at once */

static void point_add(const char *item, size_t len, enum act act)
{
    const char *colon = memchr(item, ':', len);
    size_t name_len = colon ? (size_t)(colon - item) : len;
    struct point *point;

    if (name_len == 0 || name_len >= NAME_BYTES || points_count == POINTS_MAX)
        return;
    point = &points[points_count++];
    memset(point, 0, sizeof(*point));
    memcpy(point->name, item, name_len);
    point->act = act;
    point->left = colon ? strtoul(colon + 1, NULL, 10) : 1;
    if (point->left == 0)
        point->left = 1;
}

static void list_add(const char *list, enum act act)
{
    while (list && *list) {
        size_t len = strcspn(list, ",");
        point_add(list, len, act);
        list += len;
        if (*list == ',')
            list++;
    }
}

static void load(void)
{
    points_count = 0;
    after = getenv("MST_FAULT_AFTER");
    list_add(getenv("MST_FAULT"), ACT_HIT);
    list_add(getenv("MST_FAULT_KILL"), ACT_KILL);
    list_add(getenv("MST_FAULT_PANIC"), ACT_PANIC);
    loaded = true;
}

/* Returns only where it is not allowed to; the process then dies alone. */
static void machine_panic(void)
{
    int fd = open("/proc/sysrq-trigger", O_WRONLY | O_CLOEXEC);

    if (fd >= 0 && write(fd, "c", 1) < 0)
        close(fd);
}

void mst_fault_reload(void)
{
    pthread_mutex_lock(&lock);
    load();
    pthread_mutex_unlock(&lock);
}

int mst_fault_hit(const char *name)
{
    int hit = 0;

    pthread_mutex_lock(&lock);
    if (!loaded)
        load();
    for (unsigned i = 0; i < points_count; i++) {
        struct point *point = &points[i];
        if (point->left == 0 || strcmp(point->name, name) != 0)
            continue;
        if (after && access(after, F_OK) != 0)
            continue;
        if (--point->left > 0)
            continue;
        if (point->act == ACT_PANIC)
            machine_panic();
        if (point->act != ACT_HIT)
            raise(SIGKILL); /* with the lock held: no other thread may get past its own point first */
        hit = 1;
    }
    pthread_mutex_unlock(&lock);
    return hit;
}

#else
typedef int mst_fault_points_are_off;
#endif
