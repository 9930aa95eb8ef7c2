#include "cli/drill_run.h"

#include "base/clock.h"

#include <errno.h>
#include <string.h>

#define REFRESH_SAY_MS   5000u /* what is being waited for is said again */
#define UNDRAIN_AGAIN_MS 1000u

static bool text_is(const json_t *row, const char *key, const char *text)
{
    const char *value = json_string_value(json_object_get(row, key));

    return value && strcmp(value, text) == 0;
}

/* --- waiting --- */

/* True once what is waited for is there; otherwise says in text what is missing. */
typedef bool (*condition_fn)(struct drill *d, char *text, size_t size);

/* 0, -EINTR, -ETIMEDOUT (why: what is missing), -ECANCELED the condition can never come true (d->broken says why). */
static int wait_for(struct drill *d, condition_fn condition, uint64_t deadline_ns, struct mst_why *why)
{
    char text[160] = "", said[160] = "";
    uint64_t say_ns = 0, now_ns;
    unsigned signals = d->signals;

    for (;;) {
        if (condition(d, text, sizeof(text)))
            return 0;
        now_ns = mst_now_ns();
        if (d->broken.text[0] && why == &d->broken)
            return -ECANCELED;
        if (d->signals > signals)
            return mst_why_set(why, -EINTR, "interrupted");
        if (now_ns >= deadline_ns)
            return mst_why_set(why, -ETIMEDOUT, "%s", text);
        if (now_ns >= say_ns || (strcmp(text, said) != 0 && now_ns + (REFRESH_SAY_MS - 1000) * MST_NS_PER_MS >= say_ns)) {
            drill_say(d, "waiting: %s", text);
            snprintf(said, sizeof(said), "%s", text);
            say_ns = now_ns + REFRESH_SAY_MS * MST_NS_PER_MS;
        }
        drill_pump(d);
    }
}

static uint64_t earlier(uint64_t a_ns, uint64_t b_ns)
{
    return a_ns < b_ns ? a_ns : b_ns;
}

static uint64_t from_now(uint64_t ms)
{
    return mst_now_ns() + ms * MST_NS_PER_MS;
}

/* --- nodes --- */

static bool node_ready(const json_t *node)
{
    return text_is(node, "state", "up") && !json_is_false(json_object_get(node, "agent_up")) &&
           !json_is_true(json_object_get(node, "drained"));
}

static bool all_answered(const struct drill *d)
{
    return d->polls[DRILL_POLL_NODES].rows && d->polls[DRILL_POLL_VMS].rows && d->recoveries_based;
}

/* A node that is drained or was found failing takes VMs again only when somebody says so. */
static bool node_barred(const json_t *node)
{
    return text_is(node, "state", "failing") || text_is(node, "state", "drained") ||
           json_is_true(json_object_get(node, "drained"));
}

static bool names(const char *a, const char *b)
{
    return a && b && strcmp(a, b) == 0;
}

/* Whether the drill names this node; others may be up or not. */
static bool node_needed(const struct drill *d, const char *node)
{
    const struct mst_drill_conf *conf = d->plan->conf;

    for (unsigned i = 0; i < conf->vms_count; i++) {
        const Mainstay__VmDefinition *definition = d->plan->definitions[i];
        if (names(conf->vms[i].node, node) || names(conf->vms[i].placed, node))
            return true;
        for (size_t j = 0; j < definition->n_allowed_nodes; j++)
            if (names(definition->allowed_nodes[j], node))
                return true;
    }
    for (unsigned i = 0; i < conf->faults_count; i++)
        if (names(conf->faults[i].node, node))
            return true;
    for (unsigned i = 0; i < d->rec.faults_count; i++) /* struck as somebody's mirror */
        if (names(d->rec.faults[i].node, node))
            return true;
    return false;
}

static bool nodes_are_up(struct drill *d, char *text, size_t size)
{
    size_t i, missing = 0;
    json_t *node;

    if (!all_answered(d)) {
        snprintf(text, size, "the coordinator has not answered yet");
        return false;
    }
    snprintf(text, size, "nodes that are not up:");
    json_array_foreach(d->polls[DRILL_POLL_NODES].rows, i, node)
    {
        const char *name = json_string_value(json_object_get(node, "node"));
        const char *state = json_string_value(json_object_get(node, "state"));
        size_t n = strlen(text);

        if (!name || node_ready(node) || !node_needed(d, name))
            continue;
        missing++;
        snprintf(text + n, size - n, " %s (%s)", name, state && strcmp(state, "up") != 0 ? state : "no agent");
        if (!d->faults_begun && node_barred(node) && !d->broken.text[0])
            mst_why_set(&d->broken, -EBUSY, "node %s is %s; `mainstayctl node drain %s --undo` makes it take VMs again", name,
                        state ? state : "drained", name);
    }
    if (json_array_size(d->polls[DRILL_POLL_NODES].rows) == 0)
        snprintf(text, size, "the coordinator knows of no node");
    return missing == 0 && json_array_size(d->polls[DRILL_POLL_NODES].rows) > 0;
}

static void barred_keep(struct drill *d)
{
    size_t i;
    json_t *node;

    d->barred = json_object();
    json_array_foreach(d->polls[DRILL_POLL_NODES].rows, i, node)
    {
        const char *name = json_string_value(json_object_get(node, "node"));
        if (name && node_barred(node))
            json_object_set_new(d->barred, name, json_true());
    }
}

/* Every node the drill names must be one of the cluster. */
static int nodes_known(struct drill *d)
{
    const struct mst_drill_conf *conf = d->plan->conf;

    for (unsigned i = 0; i < conf->vms_count; i++)
        if (conf->vms[i].node && !drill_row(d, DRILL_POLL_NODES, "node", conf->vms[i].node))
            return mst_why_set(&d->broken, -ENOENT, "the drill wants a VM on %s, and the cluster has no such node",
                               conf->vms[i].node);
    for (unsigned i = 0; i < conf->faults_count; i++) {
        bool of_vm = false, of_coordinator = false;
        const char *node = conf->faults[i].node;

        drill_kind_known(conf->faults[i].kind, &of_vm, &of_coordinator);
        if (node && !of_coordinator && !drill_row(d, DRILL_POLL_NODES, "node", node))
            return mst_why_set(&d->broken, -ENOENT, "fault %s: the cluster has no node %s", conf->faults[i].kind, node);
    }
    return 0;
}

/* --- VMs --- */

static int vm_stop(struct drill *d, const char *name, struct mst_why *why)
{
    Mainstay__VmStop body = MAINSTAY__VM_STOP__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.vm = (char *)name;
    env.body_case = MAINSTAY__ENVELOPE__BODY_VM_STOP;
    env.vm_stop = &body;
    return drill_order(d, &env, DRILL_START_MS, why);
}

static int vm_undefine(struct drill *d, const char *name, struct mst_why *why)
{
    Mainstay__VmUndefine body = MAINSTAY__VM_UNDEFINE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.vm = (char *)name;
    env.body_case = MAINSTAY__ENVELOPE__BODY_VM_UNDEFINE;
    env.vm_undefine = &body;
    return drill_order(d, &env, DRILL_START_MS, why);
}

static int vm_define(struct drill *d, Mainstay__VmDefinition *definition, struct mst_why *why)
{
    Mainstay__VmDefine body = MAINSTAY__VM_DEFINE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.definition = definition;
    body.has_replace = body.replace = 1;
    env.body_case = MAINSTAY__ENVELOPE__BODY_VM_DEFINE;
    env.vm_define = &body;
    return drill_order(d, &env, DRILL_START_MS, why);
}

static int vm_start(struct drill *d, const char *name, const char *node, struct mst_why *why)
{
    Mainstay__VmStart body = MAINSTAY__VM_START__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.vm = (char *)name;
    body.node = (char *)node;
    env.body_case = MAINSTAY__ENVELOPE__BODY_VM_START;
    env.vm_start = &body;
    return drill_order(d, &env, DRILL_START_MS, why);
}

static int vm_remove(struct drill *d, const char *name, struct mst_why *why)
{
    int r = vm_stop(d, name, why);

    /* Undefining refuses a VM that runs and says so; that a stopped one cannot be stopped is no reason to stop here. */
    if (r == -ECONNRESET || r == -ETIMEDOUT || r == -EINPROGRESS)
        return r;
    return vm_undefine(d, name, why);
}

static int vms_start(struct drill *d)
{
    const struct mst_drill_conf *conf = d->plan->conf;
    int r = 0;

    for (unsigned i = 0; i < conf->vms_count && r == 0; i++) {
        const char *name = d->rec.vms[i].name, *verb = "start";

        if (d->signals > 0)
            return mst_why_set(&d->broken, -EINTR, "interrupted");
        if (drill_row(d, DRILL_POLL_VMS, "vm", name)) {
            drill_say(d, "%s is left from an earlier run: removing it", name);
            r = vm_remove(d, name, &d->broken);
            verb = "remove";
        }
        if (r == 0) {
            r = vm_define(d, d->plan->definitions[i], &d->broken);
            verb = r < 0 ? "define" : "start";
            d->started[i] = true; /* also when that failed: it may have been taken */
        }
        if (r == 0) {
            drill_say(d, "starting %s%s%s", name, conf->vms[i].node ? " on " : "", conf->vms[i].node ? conf->vms[i].node : "");
            r = vm_start(d, name, conf->vms[i].node, &d->broken);
        }
        if (r < 0)
            mst_why_prefix(&d->broken, r, "cannot %s VM %s", verb, name);
        else
            d->consoles[i].wanted = true;
    }
    return r;
}

static bool beats_fresh(const struct drill_vm_record *vm)
{
    const struct drill_beat *last = drill_last_beat(vm);

    return last && mst_now_ns() - last->at_ns < DRILL_FRESH_MS * MST_NS_PER_MS;
}

static bool vms_settled(struct drill *d, char *text, size_t size)
{
    for (unsigned i = 0; i < d->rec.vms_count; i++) {
        const struct drill_vm_record *vm = &d->rec.vms[i];

        if (!beats_fresh(vm)) {
            snprintf(text, size, "%s does not beat%s", vm->name, vm->beats_count > 0 ? " any more" : " yet");
            return false;
        }
        if (mst_now_ns() - vm->beats[0].at_ns < d->plan->conf->settle_ms * MST_NS_PER_MS) {
            snprintf(text, size, "%s is to beat for %u ms", vm->name, d->plan->conf->settle_ms);
            return false;
        }
        if (d->plan->definitions[i]->protect != MAINSTAY__PROTECT__PROTECT_NONE && vm->save_seq == 0) {
            snprintf(text, size, "%s has no checkpoint yet", vm->name);
            return false;
        }
        if (vm->exposed) {
            snprintf(text, size, "%s has no mirror yet", vm->name);
            return false;
        }
        if (vm->mirror[0] && (!vm->standby[0] || strcmp(vm->standby, "starting") == 0)) {
            snprintf(text, size, "it is not known yet whether a QEMU waits for %s on %s", vm->name, vm->mirror);
            return false;
        }
        if (vm->node[0] == '\0') {
            snprintf(text, size, "it is not known where %s runs", vm->name);
            return false;
        }
    }
    return true;
}

int drill_set_up(struct drill *d)
{
    int r = wait_for(d, nodes_are_up, earlier(from_now(DRILL_NODES_MS), d->deadline_ns), &d->broken);

    if (r == 0) {
        barred_keep(d);
        r = nodes_known(d);
    }
    if (r == 0)
        r = vms_start(d);
    if (r < 0)
        return r;
    drill_say(d, "%u VMs are started", d->rec.vms_count);
    return wait_for(d, vms_settled, d->deadline_ns, &d->broken);
}

/* --- watching --- */

static bool recoveries_closed(const struct drill *d, char *text, size_t size)
{
    size_t i;
    json_t *recovery;

    json_array_foreach(d->rec.recoveries, i, recovery)
    {
        const char *state = json_string_value(json_object_get(recovery, "state"));
        if (text_is(recovery, "state", "done"))
            continue;
        snprintf(text, size, "recovery %lld is %s", json_integer_value(json_object_get(recovery, "id")), state ? state : "?");
        return false;
    }
    return true;
}

/* First beat of an epoch that the VM did not have when it was last struck; NULL: none. */
static const struct drill_beat *recovered_beat(const struct drill_vm_record *vm)
{
    const struct drill_hit *hit = &vm->hits[vm->hits_count - 1];

    for (size_t i = 0; i < vm->beats_count; i++)
        if (vm->beats[i].at_ns >= hit->t0_ns && vm->beats[i].epoch > hit->epoch)
            return &vm->beats[i];
    return NULL;
}

static bool vm_observed(struct drill *d, unsigned index, char *text, size_t size)
{
    const struct drill_vm_record *vm = &d->rec.vms[index];
    uint64_t since_ns = vm->hits_count > 0 ? vm->hits[vm->hits_count - 1].t0_ns : 0;

    if (vm->hits_count > 0 && drill_expects_move(&d->plan->conf->vms[index])) {
        const struct drill_beat *beat = recovered_beat(vm);
        if (!beat) {
            snprintf(text, size, "%s has not recovered yet", vm->name);
            return false;
        }
        since_ns = beat->at_ns;
    }
    if (!beats_fresh(vm)) {
        snprintf(text, size, "%s does not beat", vm->name);
        return false;
    }
    if (mst_now_ns() - since_ns < d->plan->conf->observe_ms * MST_NS_PER_MS) {
        snprintf(text, size, "%s is observed for %u ms", vm->name, d->plan->conf->observe_ms);
        return false;
    }
    return true;
}

/* Whoever is to have a mirror again is waited for; how long it took is judged. */
static bool mirrors_are_there(const struct drill *d, char *text, size_t size)
{
    for (unsigned i = 0; i < d->rec.vms_count; i++) {
        if (!d->plan->conf->vms[i].has_mirrored_ms || d->rec.vms[i].mirrored_ns != 0)
            continue;
        snprintf(text, size, "%s has no mirror yet", d->rec.vms[i].name);
        return false;
    }
    return true;
}

static bool watch_is_over(struct drill *d, char *text, size_t size)
{
    uint64_t last_ns = 0;

    for (unsigned i = 0; i < d->rec.faults_count; i++) {
        const struct drill_fault_record *fault = &d->rec.faults[i];
        if (fault->returned_ns > last_ns)
            last_ns = fault->returned_ns;
        if (fault->returned_ns > 0 && fault->status != 0 && !d->broken.text[0])
            mst_why_set(&d->broken, -EIO, "fault %s %s %s could not be injected (status %d): %s", fault->kind, fault->node,
                        fault->vm, fault->status, fault->text[0] ? fault->text : "the injector said nothing");
    }
    if (!drill_faults_done(d)) {
        snprintf(text, size, "not all faults are injected");
        return false;
    }
    for (unsigned i = 0; i < d->rec.vms_count; i++)
        if (!vm_observed(d, i, text, size))
            return false;
    if (!recoveries_closed(d, text, size) || !mirrors_are_there(d, text, size))
        return false;
    snprintf(text, size, "%u ms after the last fault", d->plan->conf->observe_ms);
    return mst_now_ns() - last_ns >= d->plan->conf->observe_ms * MST_NS_PER_MS &&
           drill_polled_since(d, DRILL_POLL_RECOVERIES, last_ns + d->plan->conf->observe_ms * MST_NS_PER_MS / 2);
}

int drill_watch(struct drill *d)
{
    int r;

    d->recoveries_base = 0;
    d->recoveries_based = false; /* what is known by now is not of this drill's faults */
    while (!d->recoveries_based && d->signals == 0 && mst_now_ns() < d->deadline_ns)
        drill_pump(d);
    drill_say(d, "every VM beats; injecting %u faults", d->plan->conf->faults_count);
    drill_faults_begin(d);
    r = wait_for(d, watch_is_over, d->deadline_ns, &d->broken);
    d->timed_out = r == -ETIMEDOUT;
    drill_faults_stop(d);
    d->rec.end_ns = mst_now_ns();
    d->recoveries_frozen = true;
    return r;
}

/* --- cleaning up --- */

__attribute__((format(printf, 4, 5))) static void step_add(struct drill *d, int r, const struct mst_why *why, const char *fmt,
                                                           ...)
{
    struct drill_step *step = &d->steps[d->steps_count];
    va_list args;

    if (r < 0)
        d->cleanup_failed = true;
    if (d->steps_count == sizeof(d->steps) / sizeof(d->steps[0]))
        return;
    d->steps_count++;
    va_start(args, fmt);
    vsnprintf(step->what, sizeof(step->what), fmt, args);
    va_end(args);
    step->ok = r == 0;
    snprintf(step->text, sizeof(step->text), "%s", r < 0 ? why->text : "");
    drill_say(d, "clean-up: %s%s%s", step->what, r < 0 ? " FAILED: " : "", step->text);
}

static void undo_faults(struct drill *d)
{
    const struct mst_drill_conf *conf = d->plan->conf;
    struct mst_why why = {0};

    for (unsigned i = 0; i < conf->undo_count; i++) {
        int r = -EIO;
        /* What is to be undone may be under way just then, as an agent being started again. */
        for (int tries = 0; tries < 3 && r < 0; tries++) {
            uint64_t again_ns = from_now(tries > 0 ? 1000 : 0);
            while (mst_now_ns() < again_ns)
                drill_pump(d);
            r = drill_inject_wait(d, &conf->undo[i], &why);
        }
        step_add(d, r, &why, "%s %s%s", conf->undo[i].kind, conf->undo[i].mirror_of ? "the mirror of " : "",
                 conf->undo[i].node        ? conf->undo[i].node
                 : conf->undo[i].mirror_of ? conf->undo[i].mirror_of
                                           : "");
    }
}

static bool has_fault_on(const struct drill *d, const char *node)
{
    const struct mst_drill_conf *conf = d->plan->conf;

    for (unsigned i = 0; i < conf->faults_count; i++)
        if (names(conf->faults[i].node, node) || (conf->faults[i].mirror_of && names(d->rec.faults[i].node, node)))
            return true;
    return false;
}

/* Nodes that this drill's faults made the coordinator bar; all: those that it may only count against (restarts of keepers and agents), too. */
static void nodes_take_again(struct drill *d, bool all)
{
    size_t i;
    json_t *rows = json_deep_copy(d->polls[DRILL_POLL_NODES].rows), *node;

    json_array_foreach(rows, i, node)
    {
        Mainstay__NodeDrain body = MAINSTAY__NODE_DRAIN__INIT;
        mst_envelope env = MAINSTAY__ENVELOPE__INIT;
        struct mst_why why = {0};

        body.node = (char *)json_string_value(json_object_get(node, "node"));
        if (!body.node || json_object_get(d->barred, body.node) || !(node_barred(node) || (all && has_fault_on(d, body.node))))
            continue;
        body.has_undo = body.undo = 1;
        env.body_case = MAINSTAY__ENVELOPE__BODY_NODE_DRAIN;
        env.node_drain = &body;
        step_add(d, drill_order(d, &env, 10000, &why), &why, "node drain %s --undo", body.node);
    }
    json_decref(rows);
}

/* Nodes come back one after the other, and one may be found failing only then. */
static bool nodes_are_back(struct drill *d, char *text, size_t size)
{
    bool up = nodes_are_up(d, text, size);

    if (!up && mst_now_ns() - d->undrain_ns > UNDRAIN_AGAIN_MS * MST_NS_PER_MS && d->polls[DRILL_POLL_NODES].rows) {
        d->undrain_ns = mst_now_ns();
        nodes_take_again(d, false);
    }
    return up;
}

static bool polled_anew(struct drill *d, char *text, size_t size)
{
    snprintf(text, size, "the coordinator's lists of nodes and VMs");
    return drill_polled_since(d, DRILL_POLL_NODES, d->rec.end_ns) && drill_polled_since(d, DRILL_POLL_VMS, d->rec.end_ns);
}

static void vms_remove(struct drill *d, uint64_t deadline_ns)
{
    for (unsigned i = 0; i < d->rec.vms_count; i++) {
        struct mst_why why = {0};
        int r;

        if (!d->started[i])
            continue;
        d->consoles[i].wanted = false;
        do {
            r = vm_remove(d, d->rec.vms[i].name, &why);
            if (r < 0 && drill_connected(d) && r != -ENOENT) {
                uint64_t again_ns = from_now(500);
                while (mst_now_ns() < again_ns)
                    drill_pump(d);
            }
        } while (r < 0 && r != -ENOENT && mst_now_ns() < deadline_ns);
        step_add(d, r == -ENOENT ? 0 : r, &why, "%s is stopped and undefined", d->rec.vms[i].name);
    }
}

void drill_clean_up(struct drill *d)
{
    struct mst_why why = {0};
    uint32_t timeout_ms = d->plan->conf->timeout_ms, budget_ms = timeout_ms < DRILL_CLEANUP_MS ? timeout_ms : DRILL_CLEANUP_MS;
    uint64_t deadline_ns;
    int r;

    drill_say(d, "cleaning up");
    drill_injections_close(d);
    if (d->faults_begun)
        undo_faults(d);
    deadline_ns = from_now(budget_ms);
    d->rec.end_ns = d->rec.end_ns ? d->rec.end_ns : mst_now_ns();
    r = wait_for(d, polled_anew, deadline_ns, &why);
    if (r == 0 && d->faults_begun) {
        r = wait_for(d, nodes_are_back, deadline_ns, &why);
        step_add(d, r, &why, "all nodes are up");
        if (r == 0)
            nodes_take_again(d, true);
    } else if (r < 0) {
        step_add(d, r, &why, "ask the coordinator");
    }
    /* Also when the nodes took all the time. */
    vms_remove(d, deadline_ns > from_now(budget_ms / 4) ? deadline_ns : from_now(budget_ms / 4));
}
