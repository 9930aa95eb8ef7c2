#include "node/agent/agent.h"

#include "base/event.h"
#include "base/log.h"
#include "node/agent/dirty.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WELCOME_MS 10000u

/* --- beat --- */

/* From the loop itself, so that a loop that stands still shows. */
static void on_beat(uv_timer_t *timer)
{
    struct mst_agent *agent = timer->data;

    __atomic_store_n(&agent->status.area->agent.beat, ++agent->beat, __ATOMIC_RELAXED);
    for (struct mst_vm *vm = agent->vms; vm; vm = vm->next)
        mst_patience_tick(&vm->patience, mst_qmp_waits(vm->qmp) || mst_qmp_waits(vm->spare) || mst_ckpt_busy(vm->ckpt));
}

static void on_stats(uv_timer_t *timer)
{
    struct mst_agent *agent = timer->data;
    char text[400];

    if (!agent->welcomed) { /* still its first use: the deadline of the welcome */
        log_error("the keeper does not welcome us");
        agent->exit_status = 1;
        mst_port_close(agent->port);
        return;
    }
    for (struct mst_vm *vm = agent->vms; vm; vm = vm->next)
        if (vm->stats.taken > 0 || vm->stats.failed > 0)
            log_info("vm=%s epoch=%" PRIu64 " %s", vm->definition->name, vm->epoch,
                     mst_stats_text(&vm->stats, text, sizeof(text)));
}

/* --- welcome --- */

static char *own(const char *text)
{
    char *copy = strdup(text);

    if (!copy)
        abort(); /* at start, some bytes: nothing would go on working */
    return copy;
}

static void attach_all(struct mst_agent *agent, const Mainstay__AgentWelcome *welcome)
{
    for (size_t i = 0; i < welcome->n_vms; i++)
        mst_vm_attach(agent, welcome->vms[i]);
}

static void on_welcome(struct mst_agent *agent, const mst_envelope *env)
{
    const Mainstay__AgentWelcome *welcome = env->agent_welcome;
    struct mst_why why;
    int r;

    if (agent->welcomed) { /* the VMs that did not fit into the one before */
        attach_all(agent, welcome);
        return;
    }
    r = mst_status_map(welcome->status_path, welcome->instance, &agent->status, &why);
    if (r < 0) {
        log_error("%s", why.text);
        agent->exit_status = 1;
        mst_port_close(agent->port);
        return;
    }
    agent->welcomed = true;
    agent->node = own(welcome->node);
    agent->run_dir = own(welcome->run_dir);
    agent->qemu = own(welcome->qemu);
    agent->accel = own(welcome->accel);
    agent->instance = welcome->instance;
    mst_event_identity(agent->node, agent->instance);
    agent->beat = agent->status.area->agent.beat; /* it never goes back */
    uv_timer_start(&agent->beat_timer, on_beat, 0, MST_AGENT_BEAT_MS);
    uv_timer_start(&agent->stats_timer, on_stats, MST_STATS_MS, MST_STATS_MS);
    log_notice("node=%s instance=%016" PRIx64 " welcomed, accel=%s, %zu VMs to look at", agent->node, agent->instance,
               agent->accel, welcome->n_vms);
    agent->soft_dirty = mst_dirty_probe(&why) == 0;
    if (!agent->soft_dirty)
        log_warning("dirty pages are found by comparing all pages, the pause of a checkpoint grows with a VM's memory: %s",
                    why.text);
    mst_faults_watch(agent);
    attach_all(agent, welcome);
}

/* --- orders --- */

static void on_vm_exited(struct mst_agent *agent, const mst_envelope *env)
{
    struct mst_vm *vm = mst_vm_find(agent, env->vm_exited->vm, env->vm_exited->epoch);

    if (vm)
        mst_vm_exited(vm, env->vm_exited->wait_status);
}

static const struct {
    Mainstay__Envelope__BodyCase body_case;
    void (*run)(struct mst_agent *agent, const mst_envelope *env);
} handlers[] = {
    {MAINSTAY__ENVELOPE__BODY_AGENT_WELCOME, on_welcome},     {MAINSTAY__ENVELOPE__BODY_ORDER_START, mst_vm_order_start},
    {MAINSTAY__ENVELOPE__BODY_ORDER_SAVE, mst_vm_order_save}, {MAINSTAY__ENVELOPE__BODY_ORDER_CONTINUE, mst_vm_order_continue},
    {MAINSTAY__ENVELOPE__BODY_VM_EXITED, on_vm_exited},       {MAINSTAY__ENVELOPE__BODY_STANDBY_ASK, mst_standby_asked},
};

static void on_message(struct mst_port *port, const mst_envelope *env, void *arg)
{
    struct mst_agent *agent = arg;
    struct mst_why why;

    for (unsigned i = 0; i < sizeof(handlers) / sizeof(handlers[0]); i++) {
        if (handlers[i].body_case != env->body_case)
            continue;
        if (!agent->welcomed && env->body_case != MAINSTAY__ENVELOPE__BODY_AGENT_WELCOME)
            break;
        handlers[i].run(agent, env);
        return;
    }
    mst_why_set(&why, -EOPNOTSUPP, "message %d is nothing an agent obeys%s", (int)env->body_case,
                agent->welcomed ? "" : " before its welcome");
    log_notice("%s", why.text);
    if (env->has_id)
        mst_port_done(port, env->id, -EOPNOTSUPP, &why, NULL, NULL);
}

static void on_closed(struct mst_port *port, int err, const struct mst_why *why, void *arg)
{
    struct mst_agent *agent = arg;
    struct mst_vm *vm, *next;

    (void)port;
    log_notice("keeper gone, ending: %s", err ? why->text : "it closed the socket");
    if (err && err != -EPIPE && err != -ECONNRESET) /* these are how a killed keeper looks */
        agent->exit_status = 1;
    agent->port = NULL;
    /* QEMU is left alone: it is the keeper's child, and lives or dies with that. */
    for (vm = agent->vms; vm; vm = next) {
        next = vm->next;
        mst_vm_end(vm);
    }
    mst_faults_unwatch(agent);
    uv_close((uv_handle_t *)&agent->beat_timer, NULL);
    uv_close((uv_handle_t *)&agent->stats_timer, NULL);
}

int mst_agent_new(uv_loop_t *loop, const char *keeper_socket, struct mst_agent **ret_agent, struct mst_why *why)
{
    static const struct mst_port_events events = {on_message, on_closed};
    Mainstay__AgentHello hello = MAINSTAY__AGENT_HELLO__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    struct mst_agent *agent = calloc(1, sizeof(*agent));
    int r;

    if (!agent)
        return mst_why_set(why, -ENOMEM, "no memory for the agent");
    agent->loop = loop;
    r = mst_port_open(loop, keeper_socket, &events, agent, &agent->port, why);
    if (r < 0) {
        free(agent);
        return r;
    }
    uv_timer_init(loop, &agent->beat_timer);
    uv_timer_init(loop, &agent->stats_timer);
    agent->beat_timer.data = agent->stats_timer.data = agent;
    uv_timer_start(&agent->stats_timer, on_stats, WELCOME_MS, 0);
    hello.pid = getpid();
    hello.protocol_version = MST_PROTOCOL_VERSION;
    env.body_case = MAINSTAY__ENVELOPE__BODY_AGENT_HELLO;
    env.agent_hello = &hello;
    r = mst_port_send(agent->port, &env);
    if (r < 0) {
        mst_port_close(agent->port); /* its end is the end of the loop */
        log_error("cannot greet the keeper: %s", mst_errname(r));
    }
    *ret_agent = agent;
    return 0;
}

void mst_agent_free(struct mst_agent *agent)
{
    mst_status_unmap(&agent->status);
    free(agent->node);
    free(agent->run_dir);
    free(agent->qemu);
    free(agent->accel);
    free(agent);
}
