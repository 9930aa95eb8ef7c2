#include "node/keeper/keeper.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/log.h"
#include "node/keeper/cgroup.h"
#include "node/keeper/spawn.h"
#include "proto/socket.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The agent's process (started again whenever it ends) and its socket (one connection, from that very process). */

struct proc {
    struct mst_agent *agent;
    pid_t pid;
    int pidfd;
    uint64_t started_ms;
    uv_poll_t poll;
};

struct mst_agent {
    struct mst_keeper *keeper;
    struct mst_sockserv *server;
    struct mst_sock *sock; /* NULL: not connected */
    bool said_hello;
    uint64_t session;  /* grows with every connection, from 1 */
    struct proc *proc; /* NULL: none; retry is running */
    uint32_t starts;
    uint64_t backoff_ms;
    bool at_once; /* its end was ordered: no backoff */
    uv_timer_t retry;
    char cgroup[PATH_MAX], socket[PATH_MAX];
};

static void on_retry(uv_timer_t *timer);

bool mst_agent_up(const struct mst_keeper *k)
{
    return k->agent && k->agent->sock && k->agent->said_hello;
}

uint32_t mst_agent_restarts(const struct mst_keeper *k)
{
    return k->agent && k->agent->starts ? k->agent->starts - 1 : 0;
}

uint64_t mst_agent_session(const struct mst_keeper *k)
{
    return k->agent ? k->agent->session : 0;
}

/* --- socket --- */

int mst_agent_send(struct mst_keeper *k, const mst_envelope *env)
{
    int r = mst_agent_up(k) ? 0 : -ENOTCONN;

    MST_FAULT("agent.send", r = -ENOBUFS);
    if (r == 0)
        r = mst_sock_send(k->agent->sock, env);
    if (r == -ENOBUFS || r == -ENOMEM) { /* what it waits for is never told again to it; its successor asks for all of it */
        log_error("message %d to the agent is lost, another agent is needed: %s", (int)env->body_case, strerror(-r));
        mst_sock_close(k->agent->sock);
    }
    return r;
}

int mst_agent_reply_error(struct mst_keeper *k, uint64_t reply_to, int err, const struct mst_why *why)
{
    Mainstay__Done done;
    mst_envelope env = MST_ENVELOPE(DONE, done, &done);

    if (!reply_to)
        return 0;
    mst_done_fill(&done, err, why);
    env.has_reply_to = 1;
    env.reply_to = reply_to;
    return mst_agent_send(k, &env);
}

void mst_agent_exited(struct mst_vm *vm, int wait_status)
{
    Mainstay__VmExited body = MAINSTAY__VM_EXITED__INIT;
    mst_envelope env = MST_ENVELOPE(VM_EXITED, vm_exited, &body);

    body.vm = vm->name;
    body.epoch = vm->epoch;
    body.wait_status = wait_status;
    mst_agent_send(vm->keeper, &env);
}

static void said_hello(struct mst_agent *agent, const Mainstay__AgentHello *hello)
{
    if (hello->protocol_version != MST_PROTOCOL_VERSION) {
        log_error("agent speaks protocol %u, this keeper %u: install the same version of both", hello->protocol_version,
                  MST_PROTOCOL_VERSION);
        mst_sock_close(agent->sock);
        return;
    }
    agent->said_hello = true;
    log_notice("agent pid=%ld is there", (long)agent->proc->pid);
    mst_beat_publish(agent->keeper);
    mst_agent_welcome(agent->keeper);
    mst_relay_resend(agent->keeper);
}

static void on_message(struct mst_sock *sock, const mst_envelope *env, void *arg)
{
    struct mst_agent *agent = arg;

    if (agent->sock != sock)
        return; /* of an earlier connection that is closing */
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_AGENT_HELLO && !agent->said_hello)
        said_hello(agent, env->agent_hello);
    else if (agent->said_hello)
        mst_agent_request(agent->keeper, env);
    else
        log_notice("agent sent message %d before hello: ignored", (int)env->body_case);
}

static void sock_forget(struct mst_agent *agent)
{
    agent->sock = NULL;
    agent->said_hello = false;
    agent->session++; /* what is under way for it is not answered any more */
}

static void on_closed(struct mst_sock *sock, int err, const struct mst_why *why, void *arg)
{
    struct mst_agent *agent = arg;

    if (agent->sock != sock)
        return;
    log_notice("agent's connection closed: %s", err ? why->text : "by the agent");
    sock_forget(agent);
    if (!agent->keeper->stopping)
        mst_beat_publish(agent->keeper);
}

static const struct mst_sock_events sock_events = {.on_message = on_message, .on_closed = on_closed};

static int on_accept(struct mst_sock *sock, pid_t peer_pid, uid_t peer_uid, void *arg, const struct mst_sock_events **ret_events,
                     void **ret_arg)
{
    struct mst_agent *agent = arg;

    if (peer_uid != geteuid() || !agent->proc || peer_pid != agent->proc->pid) {
        log_notice("connection of pid %ld uid %u refused: it is not the agent we started", (long)peer_pid, peer_uid);
        return -EACCES;
    }
    if (agent->sock)
        mst_sock_close(agent->sock);
    sock_forget(agent);
    agent->sock = sock;
    *ret_events = &sock_events;
    *ret_arg = agent;
    return 0;
}

/* --- process --- */

static void proc_closed(uv_handle_t *handle)
{
    struct proc *proc = handle->data;

    close(proc->pidfd);
    free(proc);
}

static void backoff(struct mst_agent *agent)
{
    uint64_t ms = agent->at_once ? 0 : agent->backoff_ms;

    if (!agent->at_once)
        agent->backoff_ms = 2 * agent->backoff_ms < MST_AGENT_BACKOFF_MAX_MS ? 2 * agent->backoff_ms : MST_AGENT_BACKOFF_MAX_MS;
    agent->at_once = false;
    uv_timer_start(&agent->retry, on_retry, ms, 0);
}

static void on_pidfd(uv_poll_t *poll, int err, int events)
{
    struct proc *proc = poll->data;
    struct mst_agent *agent = proc->agent;
    char how[64];
    int status = 0;

    (void)err, (void)events;
    if (mst_reap(proc->pid, &status) == 0)
        return;
    agent->proc = NULL;
    uv_poll_stop(poll);
    uv_close((uv_handle_t *)poll, proc_closed);
    mst_cgroup_kill(agent->cgroup); /* what it had started itself */
    log_warning("agent ended with %s", mst_status_text(status, how, sizeof(how)));
    if (agent->sock) {
        mst_sock_close(agent->sock);
        sock_forget(agent);
    }
    mst_mirrors_agent_gone(agent->keeper);
    if (agent->keeper->stopping)
        return;
    mst_beat_publish(agent->keeper);
    if (mst_now_ms() - proc->started_ms >= MST_AGENT_SETTLED_MS)
        agent->backoff_ms = MST_AGENT_BACKOFF_MIN_MS;
    backoff(agent);
}

static int proc_start(struct mst_agent *agent, struct mst_why *why)
{
    const struct mst_node_conf *conf = agent->keeper->conf;
    char events[PATH_MAX];
    const char *const argv[] = {conf->agent, "--keeper", agent->socket, "--events", events};
    const struct mst_spawn spawn = {.exec = conf->exec, .cgroup = agent->cgroup, .fd = -1, .argv = argv, .argc = 5};
    struct proc *proc = calloc(1, sizeof(*proc));
    char path[PATH_MAX];
    int r;

    if (!proc)
        return -ENOMEM;
    r = mst_cgroup_make(agent->cgroup, why);
    if (r == 0)
        r = mst_events_path(conf, ".agent", events, sizeof(events));
    if (r == 0)
        r = mst_spawn(&spawn, &proc->pid, &proc->pidfd, why);
    if (r < 0) {
        free(proc);
        return r;
    }
    MST_POINT("agent.spawned");
    proc->agent = agent;
    proc->started_ms = mst_now_ms();
    proc->poll.data = proc;
    agent->proc = proc;
    agent->starts++;
    r = uv_poll_init(agent->keeper->loop, &proc->poll, proc->pidfd);
    if (r < 0) { /* no descriptor table left: it would run unwatched */
        int status;

        mst_pidfd_kill(proc->pidfd);
        while (mst_reap(proc->pid, &status) == 0)
            usleep(1000);
        close(proc->pidfd);
        agent->proc = NULL;
        free(proc);
        return r;
    }
    uv_poll_start(&proc->poll, UV_READABLE, on_pidfd);
    if (mst_path(path, sizeof(path), "%s/agent.pid", conf->run_dir) == 0)
        mst_pidfile_write(path, proc->pid);
    log_notice("agent pid=%ld started%s", (long)proc->pid, agent->starts > 1 ? " again" : "");
    return 0;
}

static void on_retry(uv_timer_t *timer)
{
    struct mst_agent *agent = timer->data;
    struct mst_why why = {0};
    int r;

    if (agent->proc || agent->keeper->stopping)
        return;
    r = proc_start(agent, &why);
    if (r < 0) {
        log_error("cannot start the agent: %s", why.text[0] ? why.text : strerror(-r));
        backoff(agent);
    }
}

/* Kills by pidfd: a stopped process dies of SIGKILL too. Its successor starts as soon as the end is seen. */
int mst_agent_restart(struct mst_keeper *k, const char *text, struct mst_why *why)
{
    struct mst_agent *agent = k->agent;
    int r = 0;

    log_notice("agent is restarted: %s", text);
    agent->at_once = true;
    agent->backoff_ms = MST_AGENT_BACKOFF_MIN_MS;
    if (!agent->proc) {
        backoff(agent);
        return 0;
    }
    r = mst_pidfd_kill(agent->proc->pidfd);
    if (r < 0 && r != -ESRCH)
        return mst_why_set(why, r, "cannot kill the agent pid %ld: %s", (long)agent->proc->pid, strerror(-r));
    return 0;
}

/* --- life --- */

static void ignore_message(struct mst_sock *sock, const mst_envelope *env, void *arg)
{
    (void)sock, (void)env, (void)arg;
}

static void ignore_closed(struct mst_sock *sock, int err, const struct mst_why *why, void *arg)
{
    (void)sock, (void)err, (void)why, (void)arg;
}

static const struct mst_sock_events no_events = {.on_message = ignore_message, .on_closed = ignore_closed};

int mst_agent_new(struct mst_keeper *k, struct mst_why *why)
{
    struct mst_agent *agent = calloc(1, sizeof(*agent));
    int r;

    if (!agent)
        return -ENOMEM;
    agent->keeper = k;
    agent->backoff_ms = MST_AGENT_BACKOFF_MIN_MS;
    r = mst_path(agent->cgroup, sizeof(agent->cgroup), "%s/agent", k->conf->cgroup);
    if (r == 0)
        r = mst_path(agent->socket, sizeof(agent->socket), "%s/keeper.sock", k->conf->run_dir);
    if (r == 0)
        r = mst_sockserv_open(k->loop, agent->socket, 0600, on_accept, agent, &agent->server, why);
    if (r < 0) {
        free(agent);
        return r;
    }
    uv_timer_init(k->loop, &agent->retry);
    agent->retry.data = agent;
    uv_timer_start(&agent->retry, on_retry, 0, 0);
    k->agent = agent;
    return 0;
}

static void agent_closed(uv_handle_t *handle)
{
    free(handle->data);
}

/* The loop must run on until its handles are closed; the process is killed here and reaped by whoever reaps the keeper's children. */
void mst_agent_free(struct mst_keeper *k)
{
    struct mst_agent *agent = k->agent;

    if (!agent)
        return;
    k->agent = NULL;
    if (agent->proc) {
        mst_pidfd_kill(agent->proc->pidfd);
        uv_poll_stop(&agent->proc->poll);
        uv_close((uv_handle_t *)&agent->proc->poll, proc_closed);
    }
    if (agent->sock) {
        mst_sock_set(agent->sock, &no_events, NULL); /* it closes after the agent is freed */
        mst_sock_close(agent->sock);
    }
    mst_sockserv_close(agent->server);
    uv_close((uv_handle_t *)&agent->retry, agent_closed);
}
