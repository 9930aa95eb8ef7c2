#include "node/keeper/keeper.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mutant.h"
#include "base/priority.h"
#include "node/keeper/cgroup.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define EARLIER_DEADLINE_MS 10000
#define OOM_SCORE           "-900" /* the keeper is the last to go: everything else on the node dies with it */

static void files_raise(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* Two keepers over one main storage would kill each other's VMs. The lock is held until this process ends, and by it alone (CLOEXEC). */
static int only_one(const struct mst_node_conf *conf, struct mst_why *why)
{
    char path[PATH_MAX];
    int fd, r;

    r = mst_path(path, sizeof(path), "%s/keeper.lock", conf->run_dir);
    if (r < 0)
        return r;
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return mst_why_set(why, -errno, "%s: %s", path, strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        r = mst_why_set(why, -EBUSY, "another keeper runs with %s", conf->run_dir);
        close(fd);
        return r;
    }
    return 0; /* fd stays open on purpose */
}

static int run_dir_make(const struct mst_node_conf *conf, struct mst_why *why)
{
    char path[PATH_MAX];
    int r;

    r = mst_path(path, sizeof(path), "%s/vm", conf->run_dir);
    if (r == 0)
        r = mst_mkdirs(path, 0700);
    return r < 0 ? mst_why_set(why, r, "cannot make %s: %s", path, strerror(-r)) : 0;
}

static int clear_one(const char *path, const char *name, void *arg)
{
    struct mst_why *why = arg;
    int was = mst_cgroup_populated(path), r = mst_cgroup_clear(path, EARLIER_DEADLINE_MS);

    if (r < 0)
        return mst_why_set(
            why, r, "%s of an earlier keeper does not end within %d s, so it is not proved that its VM does not run: not joining",
            path, EARLIER_DEADLINE_MS / 1000);
    if (was)
        log_notice("%s of an earlier keeper ended", name);
    r = mst_cgroup_remove(path);
    if (r < 0)
        log_warning("cannot remove the cgroup %s: %s", path, strerror(-r));
    return 0;
}

/* The proof behind Hello.earlier_vms_dead. QEMU died with its keeper by PR_SET_PDEATHSIG; this sees that it did. */
static int earlier_clear(struct mst_keeper *k, struct mst_why *why)
{
    char agent[PATH_MAX];
    int r;

    r = mst_cgroup_make(k->conf->cgroup, why);
    if (r == 0 && !MST_MUTANT(6))
        r = mst_cgroup_each(k->conf->cgroup, "vm-", clear_one, why);
    if (r == 0)
        r = mst_path(agent, sizeof(agent), "%s/agent", k->conf->cgroup);
    if (r == 0 && access(agent, F_OK) == 0)
        r = clear_one(agent, "agent", why);
    if (r < 0)
        return r;
    MST_POINT("earlier.cleared");
    k->earlier_vms_dead = true;
    return 0;
}

static int storage_open(struct mst_keeper *k, struct mst_why *why)
{
    struct mst_identity identity = {.cluster = k->conf->cluster, .node = k->conf->node, .node_id = k->conf->id};
    struct mst_kept *kept;
    unsigned count;
    int r;

    r = mst_folder_make(k->conf->main_storage, why);
    if (r < 0)
        return r;
    if (r > 0)
        log_warning("main storage %s is not on tmpfs or hugetlbfs: its pages may be written to a disk", k->conf->main_storage);
    memcpy(identity.host_boot_id, k->host_boot_id, sizeof(identity.host_boot_id));
    kept = calloc(MST_VMS_PER_NODE, sizeof(*kept));
    if (!kept)
        return -ENOMEM;
    k->budget.total_bytes = (uint64_t)k->conf->memory_mib << 20;
    r = mst_takeover_read(k->conf->main_storage, &identity, &k->budget, kept, &count, why);
    if (r == 0)
        r = mst_slots_open(k, kept, count, why);
    free(kept);
    return r;
}

static void priority_raise(void)
{
    int r = mst_priority_raise();

    if (r < 0)
        log_warning("cannot raise the priority: on a loaded node beats come late: %s", strerror(-r));
}

static void oom_protect(void)
{
    if (mst_file_poke("/proc/self/oom_score_adj", OOM_SCORE) < 0)
        log_warning("cannot lower oom_score_adj: when memory runs out, this keeper may be killed and its VMs with it");
}

int mst_events_path(const struct mst_node_conf *conf, const char *tail, char *buf, size_t size)
{
    if (conf->events_file)
        return mst_path(buf, size, "%s%s", conf->events_file, tail);
    return mst_path(buf, size, "%s/events.jsonl%s", conf->state_dir, tail);
}

/* Without its timeline a keeper does its work all the same. */
static void events_open(const struct mst_keeper *k)
{
    char path[PATH_MAX];
    int r = mst_mkdirs(k->conf->state_dir, 0755);

    if (r == 0)
        r = mst_events_path(k->conf, "", path, sizeof(path));
    if (r == 0)
        r = mst_event_open(path, 0, "mainstay-keeper", k->conf->node, k->instance);
    if (r < 0)
        log_warning("no events are kept under %s: %s", k->conf->events_file ? k->conf->events_file : k->conf->state_dir,
                    strerror(-r));
}

int mst_keeper_prepare(struct mst_keeper *k, struct mst_why *why)
{
    char path[PATH_MAX];
    int r;

    k->instance = mst_random_u64();
    k->started_wall_ms = mst_wall_ms();
    files_raise();
    r = mst_memlock_check(k->conf, why);
    if (r == 0)
        r = mst_host_boot_id(k->host_boot_id);
    if (r == 0)
        r = run_dir_make(k->conf, why);
    if (r == 0)
        r = only_one(k->conf, why);
    if (r == 0)
        r = mst_path(path, sizeof(path), "%s/keeper.pid", k->conf->run_dir);
    if (r == 0)
        r = mst_pidfile_write(path, getpid());
    if (r < 0)
        return r;
    events_open(k);
    oom_protect();
    priority_raise();
    r = mst_guard_new(k->instance, &k->guard);
    if (r == 0)
        r = earlier_clear(k, why);
    if (r == 0) {
        mst_net_sweep(k);
        r = storage_open(k, why);
    }
    if (r == 0)
        k->accel = mst_accel_choose(k->conf, k->host_boot_id);
    return r;
}

/* The files stay: the next instance takes over what is worth it. */
void mst_keeper_unprepare(struct mst_keeper *k)
{
    unsigned i;

    for (i = 0; i < MST_VMS_PER_NODE; i++) {
        free(k->vms[i].definition);
        if (k->vms[i].areas_ready)
            mst_areas_unmap(k->conf->main_storage, &k->vms[i].areas, false);
    }
    if (k->status)
        munmap(k->status, sizeof(*k->status));
    if (k->grants)
        munmap(k->grants, sizeof(*k->grants));
    mst_guard_free(k->guard);
}

int mst_keeper_parts_open(struct mst_keeper *k, struct mst_why *why)
{
    int r;

    r = mst_tenure_new(k);
    if (r == 0)
        r = mst_kills_new(k);
    if (r == 0)
        r = mst_followers_new(k);
    if (r == 0)
        r = mst_server_new(k);
    if (r == 0)
        r = mst_peers_new(k);
    if (r == 0)
        r = mst_pulls_new(k);
    if (r == 0)
        r = mst_images_new(k);
    if (r == 0)
        r = mst_mirrors_new(k);
    if (r == 0)
        r = mst_relays_new(k);
    if (r == 0)
        r = mst_controls_new(k);
    if (r == 0)
        r = mst_agent_new(k, why);
    if (r == 0)
        r = mst_manage_new(k);
    if (r == 0)
        r = mst_device_new(k);
    return r;
}
