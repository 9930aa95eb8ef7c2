#include "tests/sim/seam/seam_calls.h"
#include "tests/sim/seam/uv.h"
#include "tests/sim/world.h"

#include "base/clock.h"
#include "base/event.h"
#include "base/file.h"
#include "node/keeper/cgroup.h"
#include "node/keeper/spawn.h"
#include "node/keeper/storage.h"
#include "node/keeper/takeover.h"
#include "tests/sim/oracle.h"
#include "tests/sim/points.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

/* A simulated host as the product sees it: clocks, chance, log, files on tmpfs, locks. */

struct sim_world *W;

struct sim_host *sim_here(void)
{
    return K.current ? &W->hosts[K.current->host] : NULL;
}

/* --- clocks --- */

uint64_t sim_local_ns(const struct sim_host *host)
{
    uint64_t passed = K.now_ns - host->clock_at_ns;

    return host->clock_ns + passed + (uint64_t)((int64_t)(passed / 1000) * host->drift_ppm / 1000);
}

uint64_t sim_world_ns(const struct sim_host *host, uint64_t local_ns)
{
    return (uint64_t)((double)local_ns / (1.0 + (double)host->drift_ppm / 1e6));
}

void sim_drift(struct sim_host *host, int32_t ppm)
{
    host->clock_ns = sim_local_ns(host);
    host->clock_at_ns = K.now_ns;
    host->drift_ppm = ppm;
}

uint64_t mst_now_ns(void)
{
    return sim_here() ? sim_local_ns(sim_here()) : K.now_ns;
}

/* Follows nothing but its quartz. */
uint64_t mst_raw_ns(void)
{
    const struct sim_host *here = sim_here();

    return here && here->index % 2 ? K.now_ns - K.now_ns / 20000 : K.now_ns;
}

uint64_t mst_now_ms(void)
{
    return mst_now_ns() / MST_NS_PER_MS;
}

uint64_t mst_wall_ms(void)
{
    int64_t off = sim_here() ? sim_here()->wall_ms : 0;

    return (uint64_t)((int64_t)(UINT64_C(1700000000000) + K.now_ns / SIM_MS) + off);
}

uint64_t mst_random_u64(void)
{
    uint64_t value = sim_random();

    return value ? value : 1;
}

const char *mst_wall_text(uint64_t wall_ms, char buf[static 25])
{
    snprintf(buf, 25, "%" PRIu64, wall_ms);
    return buf;
}

/* --- log --- */

void mst_log(enum mst_log_level level, const char *fmt, ...)
{
    char text[1200];
    va_list args;

    if (!K.story || level > MST_LOG_NOTICE || sim_muted())
        return;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    sim_say("%s%s", level == MST_LOG_ERROR ? "ERROR " : level == MST_LOG_WARNING ? "warning " : "", text);
}

void mst_log_init(const char *program)
{
    (void)program;
}

/* --- the timeline (base/event.h): the simulator's checkers see more --- */

int mst_event_open(const char *path, uint64_t max_bytes, const char *program, const char *host, uint64_t instance)
{
    (void)path, (void)max_bytes, (void)program, (void)host, (void)instance;
    return 0;
}

void mst_event_identity(const char *host, uint64_t instance)
{
    (void)host, (void)instance;
}

void mst_event(const struct mst_event *event)
{
    const struct sim_host *here = sim_here();

    if (here && K.current == &here->keeper && !sim_muted())
        oracle_event(here, event);
}

/* --- files --- */

struct sim_file *sim_file_find(struct sim_host *host, const char *path)
{
    for (struct sim_file *file = host->files; file; file = file->next) {
        if (file->named && strcmp(file->path, path) == 0)
            return file;
    }
    return NULL;
}

static struct sim_file *file_new(struct sim_host *host, const char *path, size_t bytes)
{
    struct sim_file *file = sim_file_find(host, path);

    if (file)
        file->named = false;
    for (file = host->files; file && (file->named || file->addr); file = file->next)
        ;
    if (!file) {
        file = sim_keep(sizeof(*file));
        file->next = host->files;
        host->files = file;
    }
    /* The pages of a fresh file are made here and not in sim_keep: most of it is never touched. */
    file->addr = sim_large(bytes + 64);
    file->bytes = bytes;
    file->named = true;
    file->host = host->index;
    snprintf(file->path, sizeof(file->path), "%s", path);
    return file;
}

static void file_free(struct sim_file *file)
{
    sim_large_free(file->addr);
    file->addr = NULL;
    file->named = false;
}

static uint8_t *file_data(const struct sim_file *file)
{
    return (uint8_t *)(((uintptr_t)file->addr + 63) / 64 * 64);
}

void sim_files_gone(struct sim_host *host)
{
    for (struct sim_file *file = host->files; file; file = file->next)
        file_free(file);
}

int sim_open(const char *path, int flags, ...);
int sim_close(int fd);
int sim_flock(int fd, int how);
int sim_access(const char *path, int mode);
int sim_rename(const char *from, const char *to);
int sim_unlink(const char *path);
FILE *sim_fopen(const char *path, const char *mode);
int sim_getrlimit(__rlimit_resource_t what, struct rlimit *ret);
int sim_setrlimit(__rlimit_resource_t what, const struct rlimit *limit);
int sim_setpriority(__priority_which_t which, id_t who, int priority);
int sim_usleep(useconds_t us);
_Noreturn void sim_exit(int status);
void *sim_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off);
int sim_munmap(void *addr, size_t len);
void *sim_aligned_alloc(size_t align, size_t bytes);
void sim_free(void *at);

int sim_open(const char *path, int flags, ...)
{
    (void)path, (void)flags;
    return 100;
}

int sim_close(int fd)
{
    (void)fd;
    return 0;
}

/* The one lock that the product takes: one keeper to a host. */
int sim_flock(int fd, int how)
{
    struct sim_host *host = sim_here();

    (void)fd, (void)how;
    if (host->lock_life != 0 && host->lock_life != K.current->life) {
        errno = EWOULDBLOCK;
        return -1;
    }
    host->lock_life = K.current->life;
    return 0;
}

static bool is_socket(const char *path)
{
    return strstr(path, ".sock") != NULL; /* a monitor's: not simulated, always there */
}

int sim_access(const char *path, int mode)
{
    (void)mode;
    return is_socket(path) ? 0 : -1;
}

int sim_rename(const char *from, const char *to)
{
    struct sim_host *host = sim_here();
    struct sim_file *file = sim_file_find(host, from);
    struct sim_file *old = sim_file_find(host, to);

    if (!sim_muted() && is_socket(from))
        return 0;
    if (sim_muted() || !file) {
        errno = ENOENT;
        return -1;
    }
    if (old)
        old->named = false;
    snprintf(file->path, sizeof(file->path), "%s", to);
    return 0;
}

int sim_unlink(const char *path)
{
    (void)path; /* pid files and logs: not simulated */
    return 0;
}

FILE *sim_fopen(const char *path, const char *mode)
{
    (void)path, (void)mode;
    return NULL;
}

int sim_getrlimit(__rlimit_resource_t what, struct rlimit *ret)
{
    (void)what, (void)ret;
    return -1;
}

int sim_setrlimit(__rlimit_resource_t what, const struct rlimit *limit)
{
    (void)what, (void)limit;
    return 0;
}

int sim_setpriority(__priority_which_t which, id_t who, int priority)
{
    (void)which, (void)who, (void)priority;
    return 0;
}

int sim_usleep(useconds_t us)
{
    (void)us;
    return 0;
}

/* Only a coordinator that may lead no more ends so (coordinator/io/lead.c). */
void sim_exit(int status)
{
    (void)status;
    sim_coord_ended();
    sim_leave();
}

void *sim_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
    (void)addr, (void)prot, (void)flags, (void)fd, (void)off;
    return sim_aligned_alloc(4096, len);
}

int sim_munmap(void *addr, size_t len)
{
    (void)len;
    sim_free(addr);
    return 0;
}

int mst_file_read(const char *path, size_t max, char **ret_data, size_t *ret_len)
{
    struct sim_file *file = sim_file_find(sim_here(), path);

    if (!file)
        return -ENOENT;
    if (file->bytes > max)
        return -EFBIG;
    *ret_data = sim_aligned_alloc(64, file->bytes + 1);
    memcpy(*ret_data, file_data(file), file->bytes);
    *ret_len = file->bytes;
    return 0;
}

int mst_mkdirs(const char *path, mode_t mode)
{
    (void)path, (void)mode;
    return 0;
}

int mst_pidfile_write(const char *path, pid_t pid)
{
    (void)path, (void)pid;
    return 0;
}

int mst_file_poke(const char *path, const char *text)
{
    (void)path, (void)text;
    return 0;
}

int mst_host_boot_id(uint8_t ret_id[static 16])
{
    const struct sim_host *here = sim_here();

    if (!here)
        abort(); /* only processes of hosts ask */
    memcpy(ret_id, here->boot_id, 16);
    return 0;
}

/* --- main storage --- */

int mst_areas_plan(struct mst_areas *areas, const char *vm, uint64_t epoch, uint64_t ram_bytes, enum mst_areas_for what)
{
    return product_areas_plan(areas, vm, epoch, ram_bytes >= 1u << 20 ? ram_bytes / SIM_RAM_SHRINK : ram_bytes, what);
}

int mst_areas_make(const char *folder, struct mst_areas *areas, unsigned kinds, struct mst_why *why)
{
    struct sim_file *file;
    char path[120];

    if (sim_muted() || sim_point("areas.begun"))
        return -ECANCELED;
    if (sim_chance(4))
        return mst_why_set(why, -ENOSPC, "the tmpfs is full");
    for (int i = 0; i < MST_AREA_KINDS; i++) {
        if (!areas->area[i].bytes || !(kinds & 1u << i))
            continue;
        (void)mst_area_path(folder, areas, (enum mst_area_kind)i, path, sizeof(path));
        file = i == MST_AREA_RAM && areas->ram_there ? sim_file_find(sim_here(), path)
                                                     : file_new(sim_here(), path, areas->area[i].bytes);
        if (!file || file->bytes != areas->area[i].bytes)
            return mst_why_set(why, -EBADMSG, "%s is not there, or of another size", path);
        areas->area[i].addr = file_data(file);
    }
    return 0;
}

int mst_ram_make(const char *folder, const struct mst_areas *image, uint64_t bytes, uint64_t disk_bytes, struct mst_why *why)
{
    char path[120];

    (void)disk_bytes; /* to all that is simulated it is RAM */
    if (sim_muted())
        return -ECANCELED;
    if (sim_chance(20))
        return mst_why_set(why, -ENOSPC, "the tmpfs is full");
    (void)mst_area_path(folder, image, MST_AREA_RAM, path, sizeof(path));
    (void)file_new(sim_here(), path, bytes);
    return 0;
}

void mst_ram_remove(const char *folder, const struct mst_areas *image)
{
    struct sim_file *file;
    char path[120];

    (void)mst_area_path(folder, image, MST_AREA_RAM, path, sizeof(path));
    file = sim_muted() ? NULL : sim_file_find(sim_here(), path);
    if (!file)
        return;
    file->named = false;
    sim_file_unmapped(file);
}

int mst_ram_hand_over(const char *folder, const struct mst_areas *image, struct mst_areas *areas)
{
    char from[120], to[120];

    (void)mst_area_path(folder, image, MST_AREA_RAM, from, sizeof(from));
    (void)mst_area_path(folder, areas, MST_AREA_RAM, to, sizeof(to));
    if (sim_rename(from, to) < 0)
        return -errno;
    areas->ram_there = true;
    return 0;
}

int mst_areas_adopt(const char *folder, struct mst_areas *areas, struct mst_why *why)
{
    char path[120];

    for (int i = 0; i < MST_AREA_KINDS; i++) {
        struct sim_file *file;

        if (!areas->area[i].bytes)
            continue;
        (void)mst_area_path(folder, areas, (enum mst_area_kind)i, path, sizeof(path));
        file = sim_file_find(sim_here(), path);
        if (!file || file->bytes != areas->area[i].bytes)
            return mst_why_set(why, -EBADMSG, "%s is not there, or of another size", path);
        areas->area[i].addr = file_data(file);
    }
    return 0;
}

static struct sim_file *file_of_addr(struct sim_host *host, const uint8_t *addr)
{
    for (struct sim_file *file = host->files; file; file = file->next) {
        if (file->addr && file_data(file) == addr)
            return file;
    }
    return NULL;
}

void mst_areas_unmap(const char *folder, struct mst_areas *areas, bool unlink_files)
{
    (void)folder;
    if (sim_muted())
        return;
    for (int i = 0; i < MST_AREA_KINDS; i++) {
        struct sim_file *file = areas->area[i].addr ? file_of_addr(sim_here(), areas->area[i].addr) : NULL;

        if (!file)
            continue;
        if (unlink_files)
            file->named = false;
        oracle_unmap(sim_here(), areas, i);
        if (!file->named) /* nobody else can have it mapped: its QEMU and agent are gone, or will find a file without a name */
            sim_file_unmapped(file);
        areas->area[i].addr = NULL;
    }
}

void mst_areas_unlink(const char *folder, const struct mst_areas *areas)
{
    (void)folder;
    if (sim_muted())
        return;
    for (int i = 0; i < MST_AREA_KINDS; i++) {
        struct sim_file *file = areas->area[i].addr ? file_of_addr(sim_here(), areas->area[i].addr) : NULL;

        if (file)
            file->named = false;
    }
}

/* Freed only once no QEMU has it mapped: the agent is told to let go by its own events. */
void sim_file_unmapped(struct sim_file *file)
{
    for (struct sim_task *task = W->hosts[file->host].tasks; task; task = task->next) {
        if (task->alive && task->ram == file)
            return; /* its memory goes with it: kept until the host or the run ends */
    }
    sim_agent_unmap(&W->hosts[file->host], file);
    file_free(file);
}

int mst_fixed_make(const char *folder, const char *name, size_t bytes, void **ret_addr, struct mst_why *why)
{
    char path[120];

    (void)why;
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    if (sim_muted())
        return -ECANCELED;
    *ret_addr = file_data(file_new(sim_here(), path, bytes));
    return 0;
}

int mst_folder_make(const char *folder, struct mst_why *why)
{
    (void)folder, (void)why;
    return 0;
}

int mst_takeover_sweep(const char *folder, const struct mst_kept *kept, unsigned count, const char *const *keep)
{
    int removed = 0;

    (void)folder;
    for (struct sim_file *file = sim_here()->files; file; file = file->next) {
        bool wanted = !file->named;

        for (unsigned i = 0; keep[i]; i++)
            wanted = wanted || strcmp(strrchr(file->path, '/') + 1, keep[i]) == 0;
        for (unsigned i = 0; i < count; i++) {
            for (int kind = 0; kind < MST_AREA_KINDS; kind++)
                wanted = wanted || (kept[i].areas.area[kind].addr && kept[i].areas.area[kind].addr == file_data(file));
        }
        if (wanted)
            continue;
        file->named = false;
        removed++;
        sim_file_unmapped(file);
    }
    return removed;
}

uint8_t *sim_file_data(const struct sim_file *file)
{
    return file_data(file);
}
