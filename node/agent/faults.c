#include "node/agent/agent.h"

#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void on_answer(int err, const mst_envelope *reply, const struct mst_why *why, void *arg)
{
    (void)reply;
    (void)arg;
    if (err)
        log_notice("fault report refused by the keeper: %s", why->text);
}

static void report(struct mst_agent *agent, const char *vm, uint64_t epoch, Mainstay__FaultKind kind, const char *text)
{
    Mainstay__FaultReport body = MAINSTAY__FAULT_REPORT__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    char reporter[MST_NAME_BYTES + 16];
    int r;

    snprintf(reporter, sizeof(reporter), "agent@%s", agent->node);
    body.kind = kind;
    body.node = agent->node;
    body.vm = (char *)(uintptr_t)vm;
    body.has_epoch = vm != NULL;
    body.epoch = epoch;
    body.has_instance = 1;
    body.instance = agent->instance;
    body.reporter = reporter;
    body.text = (char *)(uintptr_t)text;
    body.has_wall_ms = 1;
    body.wall_ms = mst_wall_ms();
    env.body_case = MAINSTAY__ENVELOPE__BODY_FAULT_REPORT;
    env.fault_report = &body;
    r = mst_port_request(agent->port, &env, on_answer, NULL);
    if (r < 0)
        log_error("fault report not sent (%s): %s", mst_errname(r), text);
}

void mst_fault_vm(struct mst_vm *vm, Mainstay__FaultKind kind, const char *fmt, ...)
{
    char text[MST_WHY_BYTES];
    va_list list;

    va_start(list, fmt);
    vsnprintf(text, sizeof(text), fmt, list);
    va_end(list);
    log_notice("vm=%s epoch=%" PRIu64 " fault %d reported: %s", vm->definition->name, vm->epoch, (int)kind, text);
    report(vm->agent, vm->definition->name, vm->epoch, kind, text);
}

/* --- hardware --- */

static void tell_health(struct mst_agent *agent)
{
    Mainstay__NodeHealth body = MAINSTAY__NODE_HEALTH__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.health = agent->health;
    body.has_machine_checks = 1;
    body.machine_checks = agent->machine_checks;
    env.body_case = MAINSTAY__ENVELOPE__BODY_NODE_HEALTH;
    env.node_health = &body;
    mst_port_request(agent->port, &env, on_answer, NULL);
}

static void on_hw_error(const struct mst_hw_error *error, void *arg)
{
    struct mst_agent *agent = arg;
    enum mst_health health = error->severity == MST_HW_CORRECTED ? MST_HEALTH_DEGRADED : MST_HEALTH_FAILING;
    char what[200], text[MST_WHY_BYTES];
    uint64_t held;

    agent->machine_checks += error->memory_controller ? error->count : 1;
    if (health > agent->health)
        agent->health = health;
    tell_health(agent);
    mst_hw_error_text(error, what, sizeof(what));
    if (!mst_told_may(agent->told, mst_told_key(error), mst_now_ms(), &held))
        return;
    if (held > 0)
        snprintf(text, sizeof(text), "%s (and %" PRIu64 " more like it)", what, held);
    else
        snprintf(text, sizeof(text), "%s", what);
    log_warning("hardware: %s", text);
    report(agent, NULL, 0, MAINSTAY__FAULT_KIND__FAULT_PROCESSOR, text);
}

static void on_started(int err, const struct mst_why *why, void *arg)
{
    (void)arg;
    if (err)
        log_warning("machine checks and memory errors of this node go unnoticed, its VMs are not moved away in time: %s",
                    why->text);
    else
        log_info("watching for machine checks and memory errors");
}

void mst_faults_watch(struct mst_agent *agent)
{
    agent->told = calloc(1, sizeof(*agent->told));
    if (!agent->told || mst_mce_watch(agent->loop, on_hw_error, on_started, agent, &agent->mce) < 0)
        log_error("no memory to watch for machine checks");
}

void mst_faults_unwatch(struct mst_agent *agent)
{
    mst_mce_unwatch(agent->mce);
    agent->mce = NULL;
    free(agent->told);
    agent->told = NULL;
}
