#include "node/keeper/keeper.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/mutant.h"
#include "base/state.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/*            connect            open: Hello         Welcome
 *   DOWN ------------> CONNECTING ------------> GREETED ---------> WELCOMED
 *    ^                     | failed                | Refuse, closed     | closed
 *    +---------------------+-----------------------+--------------------+        again after 500 ms; after a refusal 5 s
 *
 * All coordinators of the configuration are called. One leads and welcomes us; the others stand by and refuse with EAGAIN: they are asked again
 * every 500 ms, whoever leads, and at once when the link to the leader ends. Of two that welcome us, only the
 * one with the newer term is listened to: the other does not know yet that it leads no more.
 */
enum control_state { CONTROL_DOWN, CONTROL_CONNECTING, CONTROL_GREETED, CONTROL_WELCOMED };

static const struct mst_state control_states[] = {
    [CONTROL_DOWN] = {"down", MST_TO(CONTROL_CONNECTING)},
    [CONTROL_CONNECTING] = {"connecting", MST_TO(CONTROL_GREETED) | MST_TO(CONTROL_DOWN)},
    [CONTROL_GREETED] = {"greeted", MST_TO(CONTROL_WELCOMED) | MST_TO(CONTROL_DOWN)},
    [CONTROL_WELCOMED] = {"welcomed", MST_TO(CONTROL_DOWN)},
};
#define CONTROL_STATES (sizeof(control_states) / sizeof(control_states[0]))

struct mst_control {
    struct mst_controls *controls;
    const struct mst_coordinator_addr *to;
    unsigned state;
    struct mst_link *link;
    uint64_t wakes;   /* mst_tenure_wakes when Hello was sent */
    uint64_t session; /* grows with every link, so that an answer finds the link its order came on, or none */
    uint64_t retry_ms;
    uint64_t term; /* of its Welcome */
    int last_error;
    int refused;   /* error of the last refusal, 0: was welcomed since; what is repeated is not logged again */
    bool refusing; /* this link ends because of it */
    uv_timer_t retry;
};

struct report { /* kept until a coordinator says Done: what it decided by then is durable */
    struct report *next;
    uint64_t id;       /* of its envelope */
    uint64_t again_ms; /* the coordinator did not take it yet: then once more; 0: it has not said so */
    Mainstay__FaultKind kind;
    char vm[MST_NAME_BYTES]; /* "": of the node */
    uint64_t epoch;
    size_t bytes;
    uint8_t data[]; /* packed FaultReport */
};

struct mst_controls {
    struct mst_keeper *keeper;
    unsigned count, closing;
    struct report *first, **last; /* unanswered; at most MST_REPORTS_MAX */
    unsigned reports;
    uint64_t next_report;
    uint64_t reports_lost;
    struct mst_control list[];
};

static void on_retry(uv_timer_t *timer);

static void move(struct mst_control *c, unsigned state)
{
    if (!mst_state_may(control_states, CONTROL_STATES, c->state, state))
        log_error("coordinator=%s %s -> %s is not a step", c->to->address,
                  mst_state_name(control_states, CONTROL_STATES, c->state),
                  mst_state_name(control_states, CONTROL_STATES, state));
    c->state = state;
}

/* --- sending --- */

int mst_control_send(struct mst_control *control, const mst_envelope *env)
{
    struct mst_keeper *k = control->controls->keeper;
    int n;

    if (!control->link || control->state < CONTROL_GREETED)
        return -ENOTCONN;
    n = mst_frame_pack(env, k->frame, sizeof(k->frame));
    return n < 0 ? n : mst_link_send(control->link, k->frame, (size_t)n);
}

void mst_control_reply(const struct mst_asker *asker, const Mainstay__Done *done)
{
    mst_envelope env = MST_ENVELOPE(DONE, done, (Mainstay__Done *)done);
    struct mst_control *c = asker->control;
    int r;

    if (!c || !asker->reply_to || c->session != asker->session)
        return; /* the link it came on is gone: the coordinator asks again, and gets the same answer */
    env.has_reply_to = 1;
    env.reply_to = asker->reply_to;
    env.has_instance = 1;
    env.instance = c->controls->keeper->instance;
    MST_POINT("answer.begun");
    r = mst_control_send(c, &env);
    if (r == 0)
        MST_POINT("answer.sent");
    if (r < 0)
        log_warning("coordinator=%s answer to %" PRIu64 " not sent: %s", c->to->address, asker->reply_to, strerror(-r));
}

void mst_control_reply_error(const struct mst_asker *asker, int err, const struct mst_why *why)
{
    Mainstay__Done done;

    mst_done_fill(&done, err, why);
    mst_control_reply(asker, &done);
}

void mst_control_tell(struct mst_keeper *k, mst_envelope *env)
{
    struct mst_controls *controls = k->controls;

    env->has_instance = 1;
    env->instance = k->instance;
    for (unsigned i = 0; controls && i < controls->count; i++)
        if (controls->list[i].state == CONTROL_WELCOMED)
            mst_control_send(&controls->list[i], env); /* news only: Hello and the status area carry the state itself */
}

void mst_control_event(struct mst_vm *vm, const char *text)
{
    Mainstay__VmEvent body = MAINSTAY__VM_EVENT__INIT;
    mst_envelope env = MST_ENVELOPE(VM_EVENT, vm_event, &body);

    body.vm = vm->name;
    body.epoch = vm->epoch;
    body.run_state = vm->state;
    body.text = (char *)text;
    mst_control_tell(vm->keeper, &env);
}

/* --- fault reports --- */

static void report_drop(struct mst_controls *controls, struct report **at)
{
    struct report *one = *at;

    *at = one->next;
    if (!one->next)
        controls->last = at;
    controls->reports--;
    free(one);
}

/* A link that dies takes what was sent on it along unseen, so a report that was sent is kept as well. NULL: out of memory. */
static struct report *report_keep(struct mst_controls *controls, const Mainstay__FaultReport *report)
{
    size_t bytes = mainstay__fault_report__get_packed_size(report);
    struct report *one = malloc(sizeof(*one) + bytes);

    if (!one) {
        controls->reports_lost++;
        return NULL;
    }
    one->next = NULL;
    one->again_ms = 0;
    one->id = ++controls->next_report;
    one->kind = report->kind;
    snprintf(one->vm, sizeof(one->vm), "%s", report->vm ? report->vm : "");
    one->epoch = report->has_epoch ? report->epoch : 0;
    one->bytes = mainstay__fault_report__pack(report, one->data);
    if (controls->reports >= MST_REPORTS_MAX) {
        report_drop(controls, &controls->first); /* the oldest: its VM's fault flag still stands in the beat line */
        if (!controls->reports_lost++)
            log_error("more than %u fault reports wait for a coordinator: the oldest are dropped", MST_REPORTS_MAX);
    }
    *controls->last = one;
    controls->last = &one->next;
    controls->reports++;
    return one;
}

static void report_send(struct mst_control *c, const struct report *one)
{
    Mainstay__FaultReport *report = mainstay__fault_report__unpack(NULL, one->bytes, one->data);
    mst_envelope env = MST_ENVELOPE(FAULT_REPORT, fault_report, report);

    env.has_id = 1;
    env.id = one->id;
    if (report && c->state == CONTROL_WELCOMED)
        mst_control_send(c, &env); /* when it fails: again with the next link */
    mainstay__fault_report__free_unpacked(report, NULL);
}

/* The coordinator has stored what came of a report, or refuses it for good. */
static void report_answered(struct mst_control *c, const mst_envelope *env)
{
    struct mst_controls *controls = c->controls;
    struct report **at = &controls->first;

    while (*at && (*at)->id != env->reply_to)
        at = &(*at)->next;
    if (!*at)
        return;
    if (env->done->error == EBUSY || env->done->error == ENOBUFS) {
        log_notice("coordinator=%s does not take report %" PRIu64 " now: it is sent again", c->to->address, env->reply_to);
        (*at)->again_ms = mst_now_ms() + MST_REPORT_AGAIN_MS;
        return;
    }
    if (env->done->error != 0)
        log_notice("coordinator=%s refuses report %" PRIu64 ": %s", c->to->address, env->reply_to,
                   env->done->text ? env->done->text : strerror(env->done->error));
    report_drop(controls, at);
}

void mst_control_report(struct mst_keeper *k, const Mainstay__FaultReport *report)
{
    struct mst_controls *controls = k->controls;
    Mainstay__FaultReport full = *report;
    char reporter[MST_NAME_BYTES + 16];
    struct report *one;

    snprintf(reporter, sizeof(reporter), "keeper %s", k->conf->node);
    full.node = k->conf->node;
    full.has_instance = 1;
    full.instance = k->instance;
    if (!full.reporter)
        full.reporter = reporter;
    if (!full.has_wall_ms) {
        full.has_wall_ms = 1;
        full.wall_ms = mst_wall_ms();
    }
    log_warning("fault kind=%d vm=%s epoch=%" PRIu64 " by %s: %s", (int)full.kind, full.vm ? full.vm : "-",
                full.has_epoch ? full.epoch : 0, full.reporter, full.text ? full.text : "");
    if (!controls)
        return;
    one = report_keep(controls, &full);
    for (unsigned i = 0; one && i < controls->count; i++)
        report_send(&controls->list[i], one);
}

void mst_control_report_over(struct mst_keeper *k, const char *vm, uint64_t epoch)
{
    struct report **at = k->controls ? &k->controls->first : NULL;

    while (at && *at) {
        struct report *one = *at;

        if (one->kind == MAINSTAY__FAULT_KIND__FAULT_VM_SILENT && one->epoch == epoch && strcmp(one->vm, vm) == 0) {
            log_notice("vm=%s epoch=%" PRIu64 " report %" PRIu64 " is taken back before it was answered", vm, epoch, one->id);
            report_drop(k->controls, at);
        } else {
            at = &one->next;
        }
    }
}

static void reports_flush(struct mst_control *c)
{
    for (const struct report *one = c->controls->first; one; one = one->next)
        report_send(c, one);
}

void mst_controls_second(struct mst_keeper *k)
{
    uint64_t now_ms = mst_now_ms();

    for (struct report *one = k->controls ? k->controls->first : NULL; one; one = one->next) {
        if (one->again_ms == 0 || now_ms < one->again_ms)
            continue;
        one->again_ms = 0;
        for (unsigned i = 0; i < k->controls->count; i++)
            report_send(&k->controls->list[i], one);
    }
}

/* --- Hello --- */

static int hello_send(struct mst_control *c)
{
    struct mst_keeper *k = c->controls->keeper;
    Mainstay__HeldVm vms[MST_VMS_PER_NODE], *list[MST_VMS_PER_NODE];
    Mainstay__HeldMirror mirrors[MST_VMS_PER_NODE][MST_MIRRORS_MAX], *mirror_list[MST_VMS_PER_NODE][MST_MIRRORS_MAX];
    Mainstay__Hello hello = MAINSTAY__HELLO__INIT;
    mst_envelope env = MST_ENVELOPE(HELLO, hello, &hello);
    unsigned i;

    hello.protocol_version = MST_PROTOCOL_VERSION;
    hello.cluster = k->conf->cluster;
    hello.node = k->conf->node;
    hello.node_id = k->conf->id;
    hello.host_boot_id = (ProtobufCBinaryData){.len = sizeof(k->host_boot_id), .data = k->host_boot_id};
    hello.instance = k->instance;
    hello.address = k->conf->address;
    hello.port = k->conf->port;
    hello.memory_mib = k->conf->memory_mib;
    hello.vcpus = k->conf->vcpus;
    hello.rack = k->conf->rack;
    hello.has_earlier_vms_dead = 1;
    hello.earlier_vms_dead = k->earlier_vms_dead;
    hello.has_highest_term = hello.has_highest_term_by = 1;
    hello.highest_term = mst_guard_term(k->guard);
    hello.highest_term_by = mst_guard_term_by(k->guard);
    hello.has_highest_decision = 1;
    hello.highest_decision = mst_guard_decision(k->guard);
    hello.held = list;
    for (i = 0; i < MST_VMS_PER_NODE; i++) {
        struct mst_vm *vm = &k->vms[i];
        Mainstay__HeldVm *held = &vms[hello.n_held];

        if (!vm->used || vm->drop_pending)
            continue;
        mainstay__held_vm__init(held);
        held->vm = vm->name;
        held->epoch = vm->epoch;
        held->run_state = vm->state;
        held->has_save_seq = 1;
        held->save_seq = mst_slot_save_seq(vm);
        mst_images_hello(vm, held);
        held->mirrors = mirror_list[i];
        held->n_mirrors = mst_mirrors_hello(vm, mirrors[i], mirror_list[i]);
        list[hello.n_held++] = held;
    }
    (void)mst_tenure_settled(k, NULL); /* a pause until now is before this Hello */
    c->wakes = mst_tenure_wakes(k);
    return mst_control_send(c, &env);
}

/* --- link --- */

static bool somebody_leads(const struct mst_controls *controls)
{
    for (unsigned i = 0; i < controls->count; i++) {
        if (controls->list[i].state == CONTROL_WELCOMED)
            return true;
    }
    return false;
}

/* The leader's link is gone: those who stood by may lead now. */
static void ask_others(const struct mst_control *c)
{
    struct mst_controls *controls = c->controls;

    for (unsigned i = 0; i < controls->count; i++) {
        struct mst_control *other = &controls->list[i];

        if (other != c && other->state == CONTROL_DOWN && !other->link)
            uv_timer_start(&other->retry, on_retry, 0, 0);
    }
}

static void down(struct mst_control *c, int err, const char *text)
{
    struct mst_keeper *k = c->controls->keeper;
    bool led = c->state == CONTROL_WELCOMED;

    if (!c->refusing && (err != c->last_error || led))
        log_notice("coordinator=%s port=%u control link down (%s): %s", c->to->address, c->to->port,
                   mst_state_name(control_states, CONTROL_STATES, c->state), text && text[0] ? text : strerror(-err));
    c->last_error = err;
    c->refusing = false;
    c->link = NULL;
    mst_console_unfollow(k, c);
    move(c, CONTROL_DOWN);
    if (!k->stopping)
        uv_timer_start(&c->retry, on_retry, c->retry_ms, 0);
    c->retry_ms = MST_RETRY_MS;
    if (led && !k->stopping && !somebody_leads(c->controls))
        ask_others(c);
}

static void on_open(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct mst_control *c = arg;
    int r;

    if (err < 0) {
        down(c, err, why ? why->text : NULL);
        return;
    }
    c->session++;
    move(c, CONTROL_GREETED);
    mst_event(&(struct mst_event){
        .kind = MST_EV_HELLO_SENT, .term = mst_guard_term(c->controls->keeper->guard), .node = c->to->address});
    r = hello_send(c);
    MST_POINT("hello.sent");
    if (r < 0) {
        log_error("coordinator=%s cannot send Hello: %s", c->to->address, strerror(-r));
        mst_link_close(link);
    }
}

static void on_closed(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    (void)link;
    down(arg, err, why->text);
}

static void welcomed(struct mst_control *c, const Mainstay__Welcome *welcome)
{
    struct mst_controls *controls = c->controls;
    const struct mst_guard *guard = controls->keeper->guard;

    if (c->state != CONTROL_GREETED)
        return;
    if (welcome->term < mst_guard_term(guard)) { /* our next Hello tells it */
        log_notice("coordinator=%s welcomes us with term %" PRIu64 ", but we know of term %" PRIu64 ": it leads no more",
                   c->to->address, welcome->term, mst_guard_term(guard));
        mst_link_close(c->link);
        return;
    }
    move(c, CONTROL_WELCOMED);
    c->last_error = 0;
    c->refused = 0;
    c->term = welcome->term;
    mst_guard_welcome(controls->keeper->guard, welcome->term, welcome->coordinator_instance);
    for (unsigned i = 0; i < controls->count; i++) {
        struct mst_control *other = &controls->list[i];

        if (other == c || other->state != CONTROL_WELCOMED || other->term >= c->term || MST_MUTANT(45))
            continue;
        log_notice("coordinator=%s has term %" PRIu64 " and leads no more: closing its link", other->to->address, other->term);
        mst_link_close(other->link);
    }
    log_notice("coordinator=%s id=%u instance=%016" PRIx64 " term=%" PRIu64 " welcomes us", c->to->address,
               welcome->coordinator_id, welcome->coordinator_instance, welcome->term);
    mst_event(&(struct mst_event){
        .kind = MST_EV_HELLO_WELCOMED, .term = welcome->term, .instance = welcome->coordinator_instance, .node = c->to->address});
    mst_tenure_welcomed(c->controls->keeper, c->wakes);
    reports_flush(c);
}

static void refused(struct mst_control *c, const Mainstay__Refuse *refuse)
{
    bool standby = refuse->error == EAGAIN;

    if (refuse->error != c->refused && standby)
        log_notice("coordinator=%s: %s", c->to->address, refuse->text);
    else if (refuse->error != c->refused)
        log_error("coordinator=%s refuses this node (%s), asking again every %d ms: %s", c->to->address, strerror(refuse->error),
                  MST_REFUSED_RETRY_MS, refuse->text);
    c->refused = refuse->error;
    c->refusing = true;
    /* A standby soon, also while somebody leads: a leader that hangs keeps its link, and the next one waits for us no longer than for a lost node. */
    c->retry_ms = standby ? MST_RETRY_MS : MST_REFUSED_RETRY_MS;
    mst_link_close(c->link);
}

static void dispatch(struct mst_control *c, const mst_envelope *env)
{
    struct mst_keeper *k = c->controls->keeper;
    struct mst_asker asker = {.control = c, .session = c->session, .reply_to = env->has_id ? env->id : 0};

    (void)mst_tenure_settled(k, NULL); /* the first that comes after a pause finds out about it */

    if (env->body_case == MAINSTAY__ENVELOPE__BODY_WELCOME)
        welcomed(c, env->welcome);
    if (env->has_decision && c->state == CONTROL_WELCOMED)
        mst_guard_decided(k->guard, c->term, env->decision);
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_WELCOME)
        return;
    if (env->body_case == MAINSTAY__ENVELOPE__BODY_REFUSE)
        refused(c, env->refuse);
    else if (c->state != CONTROL_WELCOMED)
        log_notice("coordinator=%s message %d before Welcome: ignored", c->to->address, (int)env->body_case);
    else if (env->body_case == MAINSTAY__ENVELOPE__BODY_PEERS)
        mst_peers_list(k, env->peers);
    else if (env->body_case == MAINSTAY__ENVELOPE__BODY_DONE && env->has_reply_to)
        report_answered(c, env);
    else if (!mst_order_run(k, &asker, env))
        log_notice("coordinator=%s message %d is no order: ignored", c->to->address, (int)env->body_case);
}

static void on_message(struct mst_link *link, const void *data, size_t len, void *arg)
{
    struct mst_control *c = arg;
    struct mst_why why = {0};
    mst_envelope *env;
    int r;

    r = mst_frame_unpack(data, len, &env, &why);
    if (r < 0) {
        log_error("coordinator=%s sent what is no message, closing the link: %s", c->to->address, why.text);
        c->retry_ms = r == -EPROTONOSUPPORT ? MST_REFUSED_RETRY_MS : MST_RETRY_MS;
        mst_link_close(link);
        return;
    }
    MST_POINT("message.received");
    dispatch(c, env);
    mst_envelope_free(env);
}

static const struct mst_link_events control_events = {.on_open = on_open, .on_message = on_message, .on_closed = on_closed};

static void on_retry(uv_timer_t *timer)
{
    struct mst_control *c = timer->data;
    struct mst_keeper *k = c->controls->keeper;
    struct mst_why why = {0};
    int r;

    if (c->link || !k->fabric || k->stopping)
        return; /* device_up tries again */
    move(c, CONTROL_CONNECTING);
    r = mst_fabric_connect(k->fabric, c->to->address, c->to->port, MST_ROLE_CONTROL, NULL, 0, MST_CONNECT_DEADLINE_MS,
                           &control_events, c, &c->link, &why);
    if (r < 0)
        down(c, r, why.text);
}

bool mst_controls_welcomed(const struct mst_keeper *k)
{
    for (unsigned i = 0; k->controls && i < k->controls->count; i++)
        if (k->controls->list[i].state == CONTROL_WELCOMED)
            return true;
    return false;
}

/* An idle link notices nothing of a peer that vanished; a message that its NIC does not acknowledge ends it. An answer to nothing is one that every
 * coordinator ignores. */
void mst_controls_probe(struct mst_keeper *k)
{
    Mainstay__Done done;
    mst_envelope env = MST_ENVELOPE(DONE, done, &done);

    mst_done_fill(&done, 0, NULL);
    for (unsigned i = 0; k->controls && i < k->controls->count; i++)
        if (k->controls->list[i].state >= CONTROL_GREETED) /* its Hello may have arrived, and the Welcome never */
            (void)mst_control_send(&k->controls->list[i], &env);
}

void mst_controls_device_up(struct mst_keeper *k)
{
    unsigned i;

    for (i = 0; k->controls && i < k->controls->count; i++)
        if (k->controls->list[i].state == CONTROL_DOWN)
            uv_timer_start(&k->controls->list[i].retry, on_retry, 0, 0);
}

int mst_controls_new(struct mst_keeper *k)
{
    unsigned i, n = k->conf->coordinators_count;
    struct mst_controls *controls = calloc(1, sizeof(*controls) + n * sizeof(controls->list[0]));

    if (!controls)
        return -ENOMEM;
    controls->keeper = k;
    controls->count = n;
    controls->last = &controls->first;
    for (i = 0; i < n; i++) {
        struct mst_control *c = &controls->list[i];

        c->controls = controls;
        c->to = &k->conf->coordinators[i];
        c->retry_ms = MST_RETRY_MS;
        uv_timer_init(k->loop, &c->retry);
        c->retry.data = c;
    }
    k->controls = controls;
    return 0;
}

static void timer_closed(uv_handle_t *handle)
{
    struct mst_control *c = handle->data;

    if (--c->controls->closing == 0)
        free(c->controls);
}

/* After the fabric was closed. */
void mst_controls_free(struct mst_keeper *k)
{
    struct mst_controls *controls = k->controls;
    unsigned i;

    if (!controls)
        return;
    k->controls = NULL;
    while (controls->first)
        report_drop(controls, &controls->first);
    controls->closing = controls->count;
    for (i = 0; i < controls->count; i++)
        uv_close((uv_handle_t *)&controls->list[i].retry, timer_closed);
}
