#include "tests/sim/seam/uv.h"
#include "tests/sim/world.h"

#include "node/keeper/cgroup.h"
#include "node/keeper/keeper.h"
#include "node/keeper/spawn.h"
#include "tests/sim/oracle.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Processes that keepers start, their cgroups and pidfds; and what a QEMU does: nothing but count, in every page of its memory. */

struct sim_task *sim_task_by_pid(pid_t pid)
{
    for (unsigned h = 0; h < W->hosts_count; h++) {
        for (struct sim_task *task = W->hosts[h].tasks; task; task = task->next) {
            if (task->pid == pid)
                return task;
        }
    }
    return NULL;
}

struct sim_watch_fd *sim_watch_of(int fd)
{
    struct sim_task *task = sim_task_by_pid(fd);

    return task ? task->watch : NULL;
}

struct sim_task *sim_task_of_vm(const struct sim_host *host, const char *vm, uint64_t epoch)
{
    for (struct sim_task *task = host->tasks; task; task = task->next) {
        if (!task->is_agent && task->alive && !task->waits && (epoch == 0 || task->epoch == epoch) && strcmp(task->vm, vm) == 0)
            return task;
    }
    return NULL;
}

/* --- guest --- */

/* What a page says at a moment. The guest writes the first one always, others seldom, and some are zero at times: so a page that is of another
 * checkpoint, or was left out, is seen wherever it lies. */
static struct sim_moment page_says(const struct sim_moment *moment, size_t page)
{
    static const uint64_t every[] = {1, 400, 900, 6000};
    struct sim_moment says = *moment;

    says.tick -= says.tick % every[page % 4];
    if (page % 4 == 2 && says.tick / 900 % 2)
        memset(&says, 0, sizeof(says));
    return says;
}

/* Each page says the same in its first line and in its last: a page that was copied while it changed says two things. */
void sim_ram_write(uint8_t *ram, size_t bytes, const struct sim_moment *moment)
{
    for (size_t page = 0; page < bytes / MST_PAGE_BYTES; page++) {
        struct sim_moment says = page_says(moment, page);
        uint8_t *at = ram + page * MST_PAGE_BYTES;

        memcpy(at, &says, sizeof(says));
        memcpy(at + MST_PAGE_BYTES - sizeof(says), &says, sizeof(says));
    }
}

bool sim_ram_read(const uint8_t *ram, size_t bytes, struct sim_moment *ret)
{
    memcpy(ret, ram, sizeof(*ret));
    for (size_t page = 0; page < bytes / MST_PAGE_BYTES; page++) {
        struct sim_moment says = page_says(ret, page);
        const uint8_t *at = ram + page * MST_PAGE_BYTES;

        if (memcmp(at, &says, sizeof(says)) != 0 || memcmp(at + MST_PAGE_BYTES - sizeof(says), &says, sizeof(says)) != 0)
            return false;
    }
    return true;
}

void sim_guest_advance(struct sim_task *task)
{
    struct sim_moment moment = {.vm = task->vm_index, .lineage = task->lineage};
    uint64_t ticks = (K.now_ns - task->ticked_ns) / SIM_MS;

    if (task->guest != GUEST_RUNNING || task->stopped || ticks == 0)
        return;
    task->tick += ticks;
    task->ticked_ns += ticks * SIM_MS;
    moment.tick = task->tick;
    sim_ram_write(sim_file_data(task->ram), task->ram->bytes, &moment);
}

void sim_guest_run(struct sim_task *task)
{
    if (sim_muted() || task->guest == GUEST_RUNNING || !task->alive)
        return;
    task->guest = GUEST_RUNNING;
    task->ticked_ns = K.now_ns;
    oracle_vcpu_on(task);
}

void sim_guest_pause(struct sim_task *task, enum sim_guest into)
{
    if (sim_muted() || !task)
        return;
    sim_guest_advance(task);
    if (task->guest == GUEST_RUNNING)
        oracle_vcpu_off(task);
    task->guest = into;
    if (into == GUEST_PANICKED)
        oracle_panicked(task->vm);
}

/* --- the end --- */

void sim_task_end(struct sim_task *task, int status)
{
    if (!task->alive)
        return;
    if (!task->is_agent)
        sim_guest_advance(task);
    task->alive = false;
    task->status = status;
    if (task->guest == GUEST_RUNNING)
        oracle_vcpu_off(task);
    if (!task->is_agent)
        oracle_qemu_dead(task);
    task->guest = GUEST_EMPTY;
    if (task->watch)
        sim_watch_ready(task->watch);
}

static void task_dies(void *arg)
{
    struct sim_task *task = arg;

    if (task->alive && task->unkillable_ns > K.now_ns) {
        sim_at(NULL, task->unkillable_ns - K.now_ns, task_dies, task);
        return;
    }
    sim_task_end(task, SIGKILL);
}

void sim_task_kill(struct sim_task *task)
{
    struct sim_host *host;

    if (!task || !task->alive || task->dying)
        return;
    host = &W->hosts[task->host];
    task->dying = true;
    if (task->is_agent) {
        sim_agent_gone(host);
        sim_task_end(task, SIGKILL);
        return;
    }
    if (host->stuck_qemu && task->unkillable_ns == 0)
        task->unkillable_ns = K.now_ns + sim_between(1000, 14000) * SIM_MS;
    sim_at(NULL, sim_between(50, sim_chance(100) ? 60000 : 4000) * SIM_US, task_dies, task);
}

void sim_tasks_orphaned(struct sim_host *host)
{
    for (struct sim_task *task = host->tasks; task; task = task->next) {
        task->watch = NULL; /* the pidfd was the keeper's */
        task->reaped = true;
        sim_task_kill(task);
    }
}

/* --- spawn.h --- */

static void joins_cgroup(void *arg)
{
    ((struct sim_task *)arg)->in_cgroup = true;
}

/* It dies by itself, unless it has become a VM's. */
static void waits_no_more(void *arg)
{
    struct sim_task *task = arg;

    if (task->waits)
        sim_task_kill(task);
}

static void opens_ram(void *arg)
{
    ((struct sim_task *)arg)->ram_open = true;
}

int mst_pid_has_open(pid_t pid, const char *path)
{
    const struct sim_task *task = sim_task_by_pid(pid);

    return task && task->alive && task->ram_open && task->ram && task->ram == sim_file_find(sim_here(), path);
}

int mst_spawn(const struct mst_spawn *spawn, pid_t *ret_pid, int *ret_pidfd, struct mst_why *why)
{
    struct sim_host *host = sim_here();
    struct sim_task *task;

    if (sim_muted())
        return -ECANCELED;
    if (sim_chance(3))
        return mst_why_set(why, -EAGAIN, "no more processes");
    task = sim_keep(sizeof(*task));
    task->watch = sim_keep(sizeof(*task->watch));
    task->pid = ++W->next_pid;
    task->watch->fd = task->pid; /* a number of its own would say no more */
    task->host = host->index;
    task->alive = true;
    task->next = host->tasks;
    host->tasks = task;
    snprintf(task->cgroup, sizeof(task->cgroup), "%s", spawn->cgroup ? spawn->cgroup : "");
    task->is_agent = strcmp(spawn->argv[0], host->conf.agent) == 0;
    sim_at(NULL, sim_between(100, 3000) * SIM_US, joins_cgroup, task);
    *ret_pid = task->pid;
    *ret_pidfd = task->pid;
    if (task->is_agent) {
        sim_agent_started(host, task);
        return 0;
    }
    if (spawn->argc >= 4) { /* an agent that tests/fuzz plays may say less */
        snprintf(task->vm, sizeof(task->vm), "%s", spawn->argv[1]);
        task->ram = sim_file_find(host, spawn->argv[2]);
        task->waits = strstr(spawn->argv[3], MST_STANDBY_PREFIX) != NULL;
        if (task->ram && !task->waits) /* FOLDER/VM.eEPOCH.ram */
            task->epoch = strtoull(strrchr(spawn->argv[2], '/') + strlen(task->vm) + 3, NULL, 10);
    }
    task->vm_index = sim_vm_index(task->vm);
    if (task->waits)
        sim_at(NULL, (host->ram_opens_ms ? host->ram_opens_ms : sim_between(5, sim_chance(100) ? 4000 : 60)) * SIM_MS, opens_ram,
               task);
    if (task->waits && sim_chance(50))
        sim_at(NULL, sim_between(1, 20000) * SIM_MS, waits_no_more, task);
    oracle_qemu_new(task);
    return 0;
}

int mst_pidfd_kill(int pidfd)
{
    struct sim_task *task = sim_task_by_pid(pidfd);

    if (sim_muted())
        return 0;
    if (!task || !task->alive)
        return -ESRCH;
    sim_task_kill(task);
    return 0;
}

int mst_reap(pid_t pid, int *ret_status)
{
    struct sim_task *task = sim_task_by_pid(pid);

    if (!task || task->reaped)
        return -ECHILD;
    if (task->alive)
        return 0;
    task->reaped = true;
    *ret_status = task->status;
    return 1;
}

const char *mst_status_text(int wait_status, char *buf, size_t size)
{
    snprintf(buf, size, "status %d", wait_status);
    return buf;
}

/* --- cgroup.h --- */

int mst_cgroup_make(const char *path, struct mst_why *why)
{
    (void)path, (void)why;
    return 0;
}

int mst_cgroup_kill(const char *path)
{
    if (sim_muted())
        return 0;
    for (struct sim_task *task = sim_here()->tasks; task; task = task->next) {
        if (task->alive && task->in_cgroup && strcmp(task->cgroup, path) == 0)
            sim_task_kill(task);
    }
    return 0;
}

int mst_cgroup_populated(const char *path)
{
    for (struct sim_task *task = sim_here()->tasks; task; task = task->next) {
        if (task->alive && task->in_cgroup && strcmp(task->cgroup, path) == 0)
            return 1;
    }
    return 0;
}

/* Blocks in the product until the cgroup is empty; here the rest of that time is skipped, as far as the processes die in it. */
int mst_cgroup_clear(const char *path, uint32_t timeout_ms)
{
    mst_cgroup_kill(path);
    for (struct sim_task *task = sim_here()->tasks; task; task = task->next) {
        if (!task->alive || !task->in_cgroup || strcmp(task->cgroup, path) != 0)
            continue;
        if (task->unkillable_ns > K.now_ns + timeout_ms * SIM_MS)
            return -ETIMEDOUT;
        sim_task_end(task, SIGKILL);
    }
    return 0;
}

int mst_cgroup_remove(const char *path)
{
    return mst_cgroup_populated(path) ? -EBUSY : 0;
}

int mst_cgroup_each(const char *base, const char *prefix, int (*each)(const char *path, const char *name, void *arg), void *arg)
{
    int r = 0;

    for (struct sim_task *task = sim_here()->tasks; task && r == 0; task = task->next) {
        const char *name = strrchr(task->cgroup, '/');

        if (!task->alive || !task->in_cgroup || !name || strncmp(task->cgroup, base, strlen(base)) != 0 ||
            strncmp(name + 1, prefix, strlen(prefix)) != 0)
            continue;
        r = each(task->cgroup, name + 1, arg);
    }
    return r;
}

/* --- console.c, net.c, accel.c, memlock.c of the keeper: not simulated, but for what they hold back (output.c) --- */

int mst_console_open(struct mst_vm *vm, int *ret_child_fd, struct mst_why *why)
{
    (void)vm, (void)why;
    *ret_child_fd = -1;
    return 0;
}

int mst_console_pair(const struct mst_vm *vm, int *ret_fd, int *ret_child_fd, struct mst_why *why)
{
    (void)vm, (void)why;
    *ret_fd = *ret_child_fd = -1;
    return 0;
}

int mst_console_begin(struct mst_vm *vm, int fd)
{
    (void)vm, (void)fd;
    return 0;
}

void mst_console_hangup(struct mst_vm *vm)
{
    (void)vm;
}

void mst_console_free(struct mst_vm *vm)
{
    (void)vm;
}

uint64_t mst_console_bytes(const struct mst_vm *vm)
{
    (void)vm;
    return 0;
}

uint64_t mst_console_beat_ms(const struct mst_vm *vm)
{
    (void)vm;
    return 0;
}

int mst_followers_new(struct mst_keeper *k)
{
    (void)k;
    return 0;
}

void mst_followers_free(struct mst_keeper *k)
{
    (void)k;
}

int mst_console_send(struct mst_keeper *k, struct mst_control *control, const char *vm, uint64_t from, bool follow,
                     struct mst_why *why)
{
    (void)k, (void)control, (void)vm, (void)from, (void)follow, (void)why;
    return -ENOENT;
}

void mst_console_unfollow(struct mst_keeper *k, const struct mst_control *control)
{
    (void)k, (void)control;
}

void mst_net_sweep(const struct mst_keeper *k)
{
    (void)k;
}

int mst_net_open(struct mst_vm *vm, const Mainstay__VmDefinition *def, int *ret_fd, struct mst_why *why)
{
    (void)vm, (void)def, (void)why;
    *ret_fd = -1;
    return 0;
}

int mst_net_make(struct mst_vm *vm, const Mainstay__VmDefinition *def, int *ret_fd, struct mst_why *why)
{
    (void)vm, (void)def, (void)why;
    *ret_fd = -1;
    return 0;
}

int mst_net_join(struct mst_vm *vm, const Mainstay__VmDefinition *def, struct mst_why *why)
{
    (void)vm, (void)def, (void)why;
    return 0;
}

void mst_net_move(struct mst_vm *from, struct mst_vm *to)
{
    (void)from, (void)to;
}

void mst_net_close(struct mst_vm *vm)
{
    (void)vm;
}

const char *mst_accel_choose(const struct mst_node_conf *conf, const uint8_t host_boot_id[16])
{
    (void)conf, (void)host_boot_id;
    return "kvm";
}

int mst_memlock_check(const struct mst_node_conf *conf, struct mst_why *why)
{
    (void)conf, (void)why;
    return 0;
}
