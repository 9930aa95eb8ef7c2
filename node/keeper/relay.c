#include "node/keeper/keeper.h"

#include "base/fault.h"
#include "base/log.h"
#include "base/mutant.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Orders the agent carries out: start, save, continue. An agent that dies with one open gets it again from its successor (the agent's side is
 * idempotent), so the coordinator sees one order and one answer.
 *
 * An order that a fence ends is answered at once, but the agent still has it in hand: a later order for the same VM is held back until the agent
 * has answered the ended one, so that the agent never has two epochs of a VM at a time. */

struct relay {
    struct relay *next;
    struct mst_keeper *keeper;
    uint64_t id; /* ours, towards the agent */
    unsigned body_case;
    char vm[MST_NAME_BYTES];
    uint64_t epoch;
    bool sent;  /* to the present agent */
    bool ended; /* by a fence: nobody waits for it but those behind it */
    struct mst_asker asker;
    uint8_t *data; /* packed envelope as it goes to the agent */
    size_t bytes;
    uv_timer_t deadline;
    uint64_t deadline_ms; /* from its arrival */
    /* a start that failed waits here until its process is proved gone */
    int error;
    struct mst_why text;
    struct mst_vm *slot; /* held by vm->users; NULL: it has none */
};

struct mst_relays {
    struct relay *first;
    unsigned count;
    uint64_t last_id;
};

static struct relay *relay_find(const struct mst_keeper *k, const char *vm, uint64_t epoch, unsigned body_case)
{
    struct relay *one;

    for (one = k->relays->first; one; one = one->next)
        if (!one->ended && one->epoch == epoch && one->body_case == body_case && strcmp(one->vm, vm) == 0)
            return one;
    return NULL;
}

bool mst_relay_is_open(const struct mst_keeper *k, const char *vm, uint64_t epoch, unsigned body_case)
{
    return relay_find(k, vm, epoch, body_case) != NULL;
}

static void relay_closed(uv_handle_t *handle)
{
    struct relay *one = handle->data;

    free(one->data);
    if (!MST_MUTANT(36))
        free(one);
}

static void relay_unlink(struct relay *one)
{
    struct relay **at = &one->keeper->relays->first;

    while (*at && *at != one)
        at = &(*at)->next;
    if (!*at)
        return;
    *at = one->next;
    one->keeper->relays->count--;
}

static void relay_free(struct relay *one)
{
    relay_unlink(one);
    uv_close((uv_handle_t *)&one->deadline, relay_closed);
}

static bool behind_an_ended_one(const struct relay *one)
{
    const struct relay *other;

    for (other = one->keeper->relays->first; other; other = other->next)
        if (other->ended && strcmp(other->vm, one->vm) == 0)
            return true;
    return false;
}

static void send_to_agent(struct relay *one)
{
    mst_envelope *env;
    int r;

    if (one->ended || behind_an_ended_one(one) || mst_tenure_holds_back(one->keeper))
        return;
    env = mainstay__envelope__unpack(NULL, one->bytes, one->data);
    if (!env)
        return; /* no memory: the deadline answers */
    r = mst_agent_send(one->keeper, env);
    one->sent = r == 0;
    if (r < 0 && r != -ENOTCONN)
        log_warning("vm=%s epoch=%" PRIu64 " order not handed to the agent: %s", one->vm, one->epoch, strerror(-r));
    mst_envelope_free(env);
}

/* The agent is done with an order that had been ended: what waited behind it goes out. */
static void ended_over(struct relay *one)
{
    struct mst_keeper *k = one->keeper;
    struct relay *other;
    char vm[MST_NAME_BYTES];

    memcpy(vm, one->vm, sizeof(vm));
    relay_free(one);
    for (other = k->relays->first; other; other = other->next)
        if (strcmp(other->vm, vm) == 0)
            send_to_agent(other);
}

/* --- the end of an order --- */

static void start_failed_done(void *arg, int err)
{
    struct relay *one = arg;
    struct mst_vm *vm = one->slot;

    if (err == -ETIMEDOUT) {
        log_error("vm=%s epoch=%" PRIu64 " its start failed, and its process does not end", one->vm, one->epoch);
        if (vm)
            vm->drop_pending = false; /* the memory is in use */
    } else if (vm && vm->ran) {
        mst_slot_move(vm, MST_RUN_DEAD, "its start was answered with an error after the guest had run");
    }
    if (err != -ECANCELED) {
        if (vm)
            mst_slot_release(vm); /* before the answer: who reads it finds nothing left */
        mst_control_reply_error(&one->asker, -one->error, &one->text);
    }
    uv_close((uv_handle_t *)&one->deadline, relay_closed);
}

/* A start that failed must leave nothing behind that could still come to run: the grant goes first, then the process, then the memory (a VM
 * that never ran has nothing worth keeping; the save it was to be loaded from is still at its source). Only then the answer. */
static void start_failed(struct relay *one, int error, const char *text)
{
    struct mst_keeper *k = one->keeper;
    struct mst_vm *vm = mst_slot_find(k, one->vm, one->epoch);

    one->error = error;
    snprintf(one->text.text, sizeof(one->text.text), "%s", text && text[0] ? text : strerror(error));
    log_warning("vm=%s epoch=%" PRIu64 " start failed: %s", one->vm, one->epoch, one->text.text);
    relay_unlink(one);
    uv_timer_stop(&one->deadline);
    mst_guard_revoke(k->guard, one->vm, one->epoch);
    if (vm) {
        one->slot = vm;
        vm->users++;
        vm->drop_pending = !vm->ran;
        mst_pull_cancel(vm, "its start has failed");
        mst_mirrors_vm_gone(vm);
    }
    if (mst_proc_kill(k, one->vm, start_failed_done, one) < 0)
        start_failed_done(one, -ETIMEDOUT);
}

static void on_deadline(uv_timer_t *timer)
{
    struct relay *one = timer->data;
    struct mst_why why = {0};
    int r = mst_why_set(&why, -ETIMEDOUT, "the agent did not answer within %" PRIu64 " s", one->deadline_ms / 1000);

    if (one->ended) {
        ended_over(one);
        return;
    }
    if (one->body_case == MAINSTAY__ENVELOPE__BODY_ORDER_START) {
        start_failed(one, -r, why.text);
        return;
    }
    log_warning("vm=%s epoch=%" PRIu64 " %s", one->vm, one->epoch, why.text);
    mst_control_reply_error(&one->asker, r, &why);
    relay_free(one);
}

static void start_done(struct relay *one, const Mainstay__Done *done)
{
    struct mst_vm *vm = mst_slot_find(one->keeper, one->vm, one->epoch);

    if (!vm)
        return;
    if (done->start) {
        vm->start = *done->start; /* numbers only */
        vm->has_start = true;
    }
    if (vm->state == MST_RUN_STARTING)
        mst_slot_move(vm, MST_RUN_RUNNING, "started");
}

void mst_relay_done(struct mst_keeper *k, uint64_t id, const Mainstay__Done *done)
{
    struct relay *one;

    for (one = k->relays->first; one && one->id != id; one = one->next)
        ;
    if (!one) {
        log_info("agent answers order %" PRIu64 ", which is not open any more: dropped", id);
        return;
    }
    if (one->ended) {
        ended_over(one);
        return;
    }
    if (one->body_case == MAINSTAY__ENVELOPE__BODY_ORDER_START) {
        if (done->error) {
            start_failed(one, done->error, done->text);
            return;
        }
        start_done(one, done);
    }
    log_notice("vm=%s epoch=%" PRIu64 " order %u done: %s", one->vm, one->epoch, one->body_case,
               done->error ? (done->text ? done->text : strerror(done->error)) : "ok");
    mst_control_reply(&one->asker, done);
    relay_free(one);
}

void mst_relay_cancel(struct mst_keeper *k, const char *vm, uint64_t up_to_epoch, const char *why)
{
    struct relay *one, *next;
    struct mst_why reason;

    snprintf(reason.text, sizeof(reason.text), "%s", why);
    for (one = k->relays->first; one; one = next) {
        next = one->next;
        if (one->ended || one->epoch > up_to_epoch || strcmp(one->vm, vm) != 0)
            continue;
        mst_control_reply_error(&one->asker, -ESTALE, &reason);
        if (mst_agent_up(k) && one->sent) { /* the agent has it */
            one->ended = true;
            uv_timer_start(&one->deadline, on_deadline, MST_ENDED_DEADLINE_MS, 0);
        } else {
            relay_free(one);
        }
    }
}

/* --- opening --- */

static int relay_pack(struct relay *one, const mst_envelope *order)
{
    mst_envelope env = *order; /* shallow: only the numbers around the body change */
    size_t bytes;

    env.has_id = 1;
    env.id = one->id;
    env.has_reply_to = 0;
    bytes = mainstay__envelope__get_packed_size(&env);
    if (bytes > MST_ENVELOPE_BYTES_MAX)
        return -EMSGSIZE;
    one->data = malloc(bytes);
    if (!one->data)
        return -ENOMEM;
    one->bytes = mainstay__envelope__pack(&env, one->data);
    return 0;
}

static uint64_t deadline_ms(const mst_envelope *env)
{
    if (env->body_case != MAINSTAY__ENVELOPE__BODY_ORDER_START)
        return MST_ORDER_DEADLINE_MS;
    return MST_ORDER_DEADLINE_MS + (uint64_t)mst_vm_area_mib(env->order_start->definition) * MST_PULL_MS_PER_MIB;
}

int mst_relay_open(struct mst_vm *vm, const mst_envelope *env, const struct mst_asker *asker, struct mst_why *why)
{
    struct mst_keeper *k = vm->keeper;
    struct relay *one = relay_find(k, vm->name, vm->epoch, env->body_case);
    struct relay **at;
    int r;

    if (one) {
        one->asker = *asker; /* the same order again: whoever asked last hears the answer */
        return 0;
    }
    if (k->relays->count >= MST_ORDERS_MAX)
        return mst_why_set(why, -ENOSPC, "%u orders are open already", k->relays->count);
    one = calloc(1, sizeof(*one));
    if (!one)
        return -ENOMEM;
    one->keeper = k;
    one->id = ++k->relays->last_id;
    one->body_case = env->body_case;
    snprintf(one->vm, sizeof(one->vm), "%s", vm->name);
    one->epoch = vm->epoch;
    one->asker = *asker;
    r = relay_pack(one, env);
    if (r < 0) {
        free(one);
        return r;
    }
    uv_timer_init(k->loop, &one->deadline);
    one->deadline.data = one;
    one->deadline_ms = deadline_ms(env);
    uv_timer_start(&one->deadline, on_deadline, one->deadline_ms, 0);
    for (at = &k->relays->first; *at; at = &(*at)->next)
        ;
    *at = one; /* at the end: a new agent gets them in the order they were given */
    k->relays->count++;
    if (mst_agent_up(k))
        send_to_agent(one);
    else
        log_info("vm=%s epoch=%" PRIu64 " order %u waits for the agent", one->vm, one->epoch, one->body_case);
    MST_POINT("order.relayed");
    return 0;
}

void mst_relay_resend(struct mst_keeper *k)
{
    struct relay *one, *next;

    for (one = k->relays->first; one; one = next) {
        next = one->next;
        one->sent = false;
        if (one->ended)
            relay_free(one); /* went with the agent that had it */
    }
    for (one = k->relays->first; one; one = one->next)
        send_to_agent(one);
}

void mst_relay_go(struct mst_keeper *k)
{
    for (struct relay *one = k->relays ? k->relays->first : NULL; one; one = one->next)
        if (!one->sent)
            send_to_agent(one);
}

int mst_relays_new(struct mst_keeper *k)
{
    k->relays = calloc(1, sizeof(*k->relays));
    return k->relays ? 0 : -ENOMEM;
}

void mst_relays_free(struct mst_keeper *k)
{
    if (!k->relays)
        return;
    while (k->relays->first)
        relay_free(k->relays->first);
    free(k->relays);
    k->relays = NULL;
}
