#include "node/agent/agent.h"

#include "base/log.h"
#include "node/agent/disk.h"
#include "node/agent/qemu_args.h"
#include "node/agent/saved_state.h"
#include "proto/frame.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The keeper wants a QEMU to wait beside the image of a VM that runs elsewhere, and asks how one is started: as for a start from a save, but for the names of
 * RAM and monitors. Nothing else is done about it here: a start that gets it finds a QEMU like any that was just started (vm_start.c). */

struct standby {
    struct mst_agent *agent;
    Mainstay__StandbyAsk *ask; /* owned */
    Mainstay__VmDefinition *machine;
    uint32_t disk_devices; /* mst_disks_check */
    char *text;            /* why there is none */
    uv_work_t work;
};

static void standby_free(struct standby *s)
{
    if (s->ask)
        mainstay__standby_ask__free_unpacked(s->ask, NULL);
    if (s->machine)
        mainstay__vm_definition__free_unpacked(s->machine, NULL);
    free(s->text);
    free(s);
}

/* A saved state has its machine in a file; and what its disks are is looked up. */
static void work(uv_work_t *req)
{
    struct standby *s = req->data;
    struct mst_why why = {""};
    int r = mst_saved_machine(s->ask->definition, &s->machine, &why);

    if (r == 0)
        r = mst_vm_check_boot_files(s->machine, &why);
    if (r == 0)
        r = mst_disks_check(s->machine, &s->disk_devices, &why);
    if (r < 0)
        s->text = strdup(why.text[0] ? why.text : mst_errname(r));
}

static int args(const struct standby *s, char ***ret_argv, struct mst_why *why)
{
    const struct mst_agent *agent = s->agent;
    struct mst_qemu_where where = {.qemu = agent->qemu,
                                   .accel = agent->accel,
                                   .ram_path = s->ask->ram,
                                   .disk_path = s->ask->disk,
                                   .devices = s->disk_devices,
                                   .incoming = true,
                                   .standby = true};
    char dir[256];
    int r = mst_vm_dir(agent, s->ask->definition->name, dir, sizeof(dir));

    if (r < 0)
        return mst_why_set(why, r, "run directory of VM %s: name too long", s->ask->definition->name);
    where.vm_dir = dir;
    return mst_qemu_args(s->machine, s->ask->definition->name, &where, ret_argv, why);
}

static void done(uv_work_t *req, int status)
{
    struct standby *s = req->data;
    Mainstay__StandbySpawn body = MAINSTAY__STANDBY_SPAWN__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    struct mst_why why = {""};
    char **argv = NULL;
    int r = status;

    if (r == 0 && !s->text && s->machine)
        r = args(s, &argv, &why);
    body.vm = s->ask->definition->name;
    body.epoch = s->ask->epoch;
    body.argv = argv;
    while (argv && argv[body.n_argv])
        body.n_argv++;
    if (!argv)
        body.text = s->text ? s->text : why.text[0] ? why.text : (char *)(uintptr_t)mst_errname(r < 0 ? r : -ENOMEM);
    env.body_case = MAINSTAY__ENVELOPE__BODY_STANDBY_SPAWN;
    env.standby_spawn = &body;
    r = mst_port_send(s->agent->port, &env);
    if (r < 0)
        log_info("vm=%s epoch=%" PRIu64 " keeper is not told of a QEMU that is to wait: %s", body.vm, body.epoch, mst_errname(r));
    mst_qemu_args_free(argv);
    standby_free(s);
}

void mst_standby_asked(struct mst_agent *agent, const mst_envelope *env)
{
    struct standby *s = calloc(1, sizeof(*s));

    if (!s)
        return; /* the keeper asks again */
    s->agent = agent;
    s->ask = mst_message_copy(&env->standby_ask->base);
    s->work.data = s;
    if (!s->ask || uv_queue_work(agent->loop, &s->work, work, done) < 0)
        standby_free(s);
}
