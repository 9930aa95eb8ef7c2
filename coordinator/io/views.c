#include "coordinator/io/app.h"

#include "base/clock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Rows are put into one View until the message is full; the rest is asked for from next_offset on. */
#define VIEW_BYTES   (MST_ENVELOPE_BYTES_MAX - 2048u) /* room for the head */
#define ROWS_MAX     MST_NODES_MAX                    /* of each kind in one message */
#define RECOVERY_VMS MST_VMS_PER_NODE

/* protobuf-c wants pointers to things that outlive the packing. */
struct recovery_row {
    Mainstay__RecoveryView view;
    Mainstay__RecoveryStep steps[MST_RECOVERY_STEPS], *steps_list[MST_RECOVERY_STEPS];
    Mainstay__RecoveryVm vms[RECOVERY_VMS], *vms_list[RECOVERY_VMS];
    Mainstay__StartResult starts[RECOVERY_VMS];
    char last_text[2 * MST_TEXT_BYTES];
};

struct buffer {
    Mainstay__View view;
    Mainstay__NodeView nodes[ROWS_MAX], *nodes_list[ROWS_MAX];
    struct mst_node_look node_looks[ROWS_MAX];
    Mainstay__VmView vms[ROWS_MAX], *vms_list[ROWS_MAX];
    Mainstay__MirrorView mirrors[ROWS_MAX][MST_MIRRORS_MAX], *mirrors_list[ROWS_MAX][MST_MIRRORS_MAX];
    struct mst_vm_look vm_looks[ROWS_MAX];
    Mainstay__FaultView faults[ROWS_MAX], *faults_list[ROWS_MAX];
    Mainstay__FaultReport reports[ROWS_MAX];
    struct recovery_row recoveries[ROWS_MAX];
    Mainstay__RecoveryView *recoveries_list[ROWS_MAX];
    size_t bytes;
    struct mst_time now;
};

static const char *node_name(const struct app *app, uint32_t id)
{
    int index = mst_core_node_by_id(app->core, id);

    return index >= 0 ? app->conf->nodes[index].name : NULL;
}

/* Whether one more row of so many bytes fits; the first always does. */
static bool fits(struct buffer *b, size_t bytes)
{
    if (b->bytes > 0 && b->bytes + bytes + 8 > VIEW_BYTES)
        return false;
    b->bytes += bytes + 8;
    return true;
}

/* --- nodes --- */

static bool add_node(struct app *app, struct buffer *b, unsigned index)
{
    struct mst_node_look *look = &b->node_looks[b->view.n_nodes];
    Mainstay__NodeView *v = &b->nodes[b->view.n_nodes];

    mst_core_node(app->core, &b->now, index, look);
    mainstay__node_view__init(v);
    v->node = (char *)look->member->name;
    v->node_id = look->member->id;
    v->state = (Mainstay__NodeState)look->state;
    v->has_instance = look->instance != 0;
    v->instance = look->instance;
    v->has_agent_up = v->has_vms = v->has_drained = 1;
    v->agent_up = look->agent_up;
    v->vms = look->vms;
    v->drained = look->drained;
    v->address = (char *)look->member->address;
    v->text = look->text[0] ? look->text : NULL;
    v->rack = look->rack[0] ? (char *)look->rack : NULL;
    v->fence = app->conf->nodes[index].fence ? app->conf->nodes[index].fence->agent : NULL;
    if (look->link != 0) {
        v->has_health = v->has_memory_mib = v->has_memory_used_mib = v->has_vcpus = v->has_load_milli = v->has_machine_checks = 1;
        v->health = look->health;
        v->memory_mib = look->memory_mib;
        v->memory_used_mib = look->memory_used_mib;
        v->vcpus = look->vcpus;
        v->load_milli = look->load_milli;
        v->machine_checks = look->machine_checks;
    }
    v->has_beat_age_ms = look->beat_known;
    v->beat_age_ms = look->beat_age_ms;
    v->has_beat_reads = v->has_beat_gap_max_ms = 1;
    v->beat_reads = look->beat_reads;
    v->beat_gap_max_ms = look->beat_gap_max_ms;
    if (!fits(b, mainstay__node_view__get_packed_size(v)))
        return false;
    b->nodes_list[b->view.n_nodes++] = v;
    return true;
}

/* --- VMs --- */

static void fill_mirrors(struct app *app, struct buffer *b, const struct mst_vm_look *look, Mainstay__VmView *v)
{
    size_t row = b->view.n_vms;

    v->mirrors = b->mirrors_list[row];
    v->has_exposed_ms = look->exposed;
    v->exposed_ms = look->exposed_ms;
    v->mirror = look->protection[0] ? (char *)look->protection : NULL;
    for (unsigned i = 0; i < look->mirrors_count; i++) {
        const struct mst_mirror_look *from = &look->mirrors[i];
        Mainstay__MirrorView *m = &b->mirrors[row][v->n_mirrors];

        if (from->node < 0)
            continue;
        mainstay__mirror_view__init(m);
        m->node = app->conf->nodes[from->node].name;
        m->state = (char *)from->state;
        m->has_counts = m->has_acked_seq = m->has_sent_seq = 1;
        m->counts = from->counts;
        m->acked_seq = from->acked_seq;
        m->sent_seq = from->sent_seq;
        m->has_since_wall_ms = from->since_wall_ms != 0;
        m->since_wall_ms = from->since_wall_ms;
        m->has_behind_ms = from->acked_seq != 0;
        m->behind_ms = from->behind_ms;
        m->has_sent_bytes = from->sent_bytes != 0;
        m->sent_bytes = from->sent_bytes;
        m->has_sending_us = from->sending_us != 0;
        m->sending_us = from->sending_us;
        m->has_acked_after_us = from->acked_after_us != 0;
        m->acked_after_us = from->acked_after_us;
        m->has_same_rack = from->same_rack;
        m->same_rack = from->same_rack;
        m->text = from->text[0] ? (char *)from->text : NULL;
        m->standby = (char *)(uintptr_t)from->standby;
        b->mirrors_list[row][v->n_mirrors++] = m;
    }
}

/* Who looks at the protection is to know that a takeover may undo what was seen. */
static void say_output(const Mainstay__VmDefinition *def, struct mst_vm_look *look)
{
    size_t n = strlen(look->protection);

    if (def && def->protect == MAINSTAY__PROTECT__PROTECT_MIRROR && !def->output_commit)
        snprintf(look->protection + n, sizeof(look->protection) - n, "%soutput-commit: false", n ? "; " : "");
}

static bool add_vm(struct app *app, struct buffer *b, const struct mst_vm_look *from)
{
    struct mst_vm_look *look = &b->vm_looks[b->view.n_vms];
    Mainstay__VmView *v = &b->vms[b->view.n_vms];

    *look = *from;
    mainstay__vm_view__init(v);
    v->vm = (char *)look->row->name;
    v->state = (Mainstay__VmRunState)look->row->phase;
    if (look->node >= 0 && !look->row->fenced)
        v->node = app->conf->nodes[look->node].name;
    v->has_epoch = 1;
    v->epoch = look->row->epoch;
    v->definition = mainstay__vm_definition__unpack(NULL, look->definition->packed_bytes, look->definition->packed);
    if (look->save_seq != 0) {
        v->has_save_seq = v->has_pause_us = v->has_save_age_ms = 1;
        v->save_seq = look->save_seq;
        v->pause_us = look->pause_us;
        v->save_age_ms = b->now.wall_ms > look->save_wall_ms ? b->now.wall_ms - look->save_wall_ms : 0;
    }
    v->has_interval_ms = v->has_pages = look->interval_ms != 0;
    v->interval_ms = look->interval_ms;
    v->pages = look->pages;
    v->has_dirty_bytes = look->interval_ms != 0;
    v->dirty_bytes = look->dirty_pages * MST_PAGE_BYTES;
    v->has_pause_p50_us = v->has_pause_p99_us = look->pause_p99_us != 0;
    v->pause_p50_us = look->pause_p50_us;
    v->pause_p99_us = look->pause_p99_us;
    v->pace = look->pace[0] ? look->pace : NULL;
    v->trouble = (char *)(uintptr_t)look->trouble;
    v->has_trouble_wall_ms = look->trouble != NULL;
    v->trouble_wall_ms = look->trouble_wall_ms;
    v->text = look->text[0] ? look->text : NULL;
    say_output(v->definition, look);
    fill_mirrors(app, b, look, v);
    if (!fits(b, mainstay__vm_view__get_packed_size(v))) {
        if (v->definition)
            mainstay__vm_definition__free_unpacked(v->definition, NULL);
        return false;
    }
    b->vms_list[b->view.n_vms++] = v;
    return true;
}

/* --- faults --- */

static bool add_fault(struct app *app, struct buffer *b, const struct mst_fault_row *fault)
{
    Mainstay__FaultView *v = &b->faults[b->view.n_faults];
    Mainstay__FaultReport *r = &b->reports[b->view.n_faults];
    const char *node = node_name(app, fault->node_id);

    mainstay__fault_view__init(v);
    mainstay__fault_report__init(r);
    v->id = fault->id;
    v->report = r;
    v->has_recovery_id = fault->recovery_id != 0;
    v->recovery_id = fault->recovery_id;
    v->verdict = fault->verdict[0] ? (char *)fault->verdict : NULL;
    r->kind = (Mainstay__FaultKind)fault->kind;
    r->node = (char *)(node ? node : "unknown");
    r->vm = fault->vm[0] ? (char *)fault->vm : NULL;
    r->has_epoch = fault->epoch != 0;
    r->epoch = fault->epoch;
    r->has_instance = fault->instance != 0;
    r->instance = fault->instance;
    r->reporter = fault->reporter[0] ? (char *)fault->reporter : NULL;
    r->text = fault->text[0] ? (char *)fault->text : NULL;
    r->has_wall_ms = 1;
    r->wall_ms = fault->wall_ms;
    if (!fits(b, mainstay__fault_view__get_packed_size(v)))
        return false;
    b->faults_list[b->view.n_faults++] = v;
    return true;
}

/* --- recoveries --- */

static void fill_steps(struct recovery_row *row, const struct mst_recovery_look *look)
{
    for (unsigned i = 0; i < look->steps_count && i < MST_RECOVERY_STEPS; i++) {
        Mainstay__RecoveryStep *s = &row->steps[i];
        const struct mst_step_row *from = &look->steps[i];

        mainstay__recovery_step__init(s);
        s->state = (char *)mst_rec_state_name(from->state);
        s->wall_ms = from->wall_ms;
        s->has_offset_us = 1;
        s->offset_us = from->offset_us;
        s->text = from->text[0] ? (char *)from->text : NULL;
        if (i + 1 == look->steps_count && look->why[0]) { /* why it stands there now */
            snprintf(row->last_text, sizeof(row->last_text), "%s%s%s", from->text, from->text[0] ? "; " : "", look->why);
            s->text = row->last_text;
        }
        row->steps_list[i] = s;
        row->view.n_steps++;
    }
    row->view.steps = row->steps_list;
}

static void fill_start(Mainstay__StartResult *s, const struct mst_start_result *from)
{
    mainstay__start_result__init(s);
    s->method = (Mainstay__Method)from->method;
    s->has_bytes_pulled = s->has_pull_us = s->has_verify_us = s->has_load_us = s->has_spawn_us = 1;
    s->bytes_pulled = from->bytes_pulled;
    s->pull_us = from->pull_us;
    s->verify_us = from->verify_us;
    s->load_us = from->load_us;
    s->spawn_us = from->spawn_us;
    s->has_save_epoch = s->has_save_seq = from->save_seq != 0;
    s->save_epoch = from->save_epoch;
    s->save_seq = from->save_seq;
    s->has_standby = 1;
    s->standby = from->standby;
}

static void fill_vms(struct app *app, struct recovery_row *row, const struct mst_recovery_look *look)
{
    for (unsigned i = 0; i < look->vms_count && i < RECOVERY_VMS; i++) {
        Mainstay__RecoveryVm *v = &row->vms[i];
        const struct mst_rvm_row *from = mst_core_recovery_vm(app->core, look->key, i);

        mainstay__recovery_vm__init(v);
        v->vm = (char *)from->vm;
        v->from = (char *)node_name(app, from->from_node_id);
        v->to = (char *)node_name(app, from->to_node_id);
        v->has_epoch_from = from->epoch_from != 0;
        v->epoch_from = from->epoch_from;
        v->has_epoch_to = from->epoch_to != 0;
        v->epoch_to = from->epoch_to;
        if (from->start.method != 0 && from->start.method <= MAINSTAY__METHOD__METHOD_RESTARTED) {
            fill_start(&row->starts[i], &from->start);
            v->start = &row->starts[i];
        }
        v->outcome = (char *)mst_outcome_name(from->outcome);
        v->text = from->text[0] ? (char *)from->text : NULL;
        row->vms_list[i] = v;
        row->view.n_vms++;
    }
    row->view.vms = row->vms_list;
}

static bool add_recovery(struct app *app, struct buffer *b, const struct mst_recovery_look *look)
{
    struct recovery_row *row = &b->recoveries[b->view.n_recoveries];
    const char *node = node_name(app, look->row->node_id);

    memset(row, 0, sizeof(*row));
    mainstay__recovery_view__init(&row->view);
    row->view.id = look->row->id;
    row->view.fault_id = look->row->fault_id;
    row->view.node = (char *)(node ? node : "unknown");
    row->view.state = (char *)mst_rec_state_name(look->state);
    row->view.fence_proof = look->row->proof[0] ? (char *)look->row->proof : NULL;
    row->view.has_kind = 1;
    row->view.kind = (Mainstay__FaultKind)look->row->kind;
    fill_steps(row, look);
    fill_vms(app, row, look);
    if (!fits(b, mainstay__recovery_view__get_packed_size(&row->view)))
        return false;
    b->recoveries_list[b->view.n_recoveries++] = &row->view;
    return true;
}

/* --- queries --- */

static void more(struct buffer *b, uint32_t offset)
{
    b->view.has_next_offset = 1;
    b->view.next_offset = offset;
}

static int fill_nodes(struct app *app, struct buffer *b, const Mainstay__Query *query)
{
    uint32_t from = query->has_offset ? query->offset : 0;
    int only = query->name ? mst_core_node_by_name(app->core, query->name) : -1;

    if (query->name && only < 0)
        return -ENOENT;
    for (uint32_t i = from; i < mst_core_nodes(app->core); i++) {
        if (only >= 0 && i != (uint32_t)only)
            continue;
        if (b->view.n_nodes == ROWS_MAX || !add_node(app, b, i)) {
            more(b, i);
            return 0;
        }
    }
    return 0;
}

static int fill_vm_rows(struct app *app, struct buffer *b, const Mainstay__Query *query)
{
    struct mst_vm_look look;

    if (query->name)
        return mst_core_vm_by_name(app->core, query->name, &look) && add_vm(app, b, &look) ? 0 : -ENOENT;
    for (uint32_t i = query->has_offset ? query->offset : 0; mst_core_vm(app->core, i, &look); i++) {
        if (b->view.n_vms == ROWS_MAX || !add_vm(app, b, &look)) {
            more(b, i);
            return 0;
        }
    }
    return 0;
}

static int fill_faults(struct app *app, struct buffer *b, const Mainstay__Query *query)
{
    const struct mst_fault_row *fault;
    bool found = false;

    for (uint32_t i = query->has_offset ? query->offset : 0; (fault = mst_core_fault(app->core, i)) != NULL; i++) {
        const char *node = node_name(app, fault->node_id);

        if (query->has_id && query->id != 0 && fault->id != query->id)
            continue;
        if (query->name && strcmp(query->name, fault->vm) != 0 && strcmp(query->name, node ? node : "") != 0)
            continue;
        found = true;
        if (b->view.n_faults == ROWS_MAX || !add_fault(app, b, fault)) {
            more(b, i);
            return 0;
        }
    }
    return query->has_id && query->id != 0 && !found ? -ENOENT : 0;
}

static bool recovery_concerns(struct app *app, const struct mst_recovery_look *look, const char *name)
{
    const char *node = node_name(app, look->row->node_id);

    if (!name || (node && strcmp(node, name) == 0))
        return true;
    for (unsigned i = 0; i < look->vms_count; i++) {
        if (strcmp(mst_core_recovery_vm(app->core, look->key, i)->vm, name) == 0)
            return true;
    }
    return false;
}

static int fill_recoveries(struct app *app, struct buffer *b, const Mainstay__Query *query)
{
    struct mst_recovery_look look;

    if (query->has_id && query->id != 0)
        return mst_core_recovery_by_id(app->core, query->id, &look) && add_recovery(app, b, &look) ? 0 : -ENOENT;
    for (uint32_t i = query->has_offset ? query->offset : 0; mst_core_recovery(app->core, i, &look); i++) {
        if (!recovery_concerns(app, &look, query->name))
            continue;
        if (b->view.n_recoveries == ROWS_MAX || !add_recovery(app, b, &look)) {
            more(b, i);
            return 0;
        }
    }
    return 0;
}

/* Status: nodes and what is open; VMs have their own query. */
static int fill_status(struct app *app, struct buffer *b)
{
    Mainstay__Query all = MAINSTAY__QUERY__INIT;
    struct mst_recovery_look look;
    int r = fill_nodes(app, b, &all);

    b->view.has_next_offset = 0;
    for (uint32_t i = 0; r == 0 && mst_core_recovery(app->core, i, &look); i++) {
        if (look.row->state == MST_REC_DONE)
            continue;
        if (b->view.n_recoveries == ROWS_MAX || !add_recovery(app, b, &look))
            break;
    }
    return r;
}

static int fill(struct app *app, struct buffer *b, const Mainstay__Query *query)
{
    switch (query->what) {
    case MAINSTAY__WHAT__WHAT_STATUS:
        return fill_status(app, b);
    case MAINSTAY__WHAT__WHAT_NODES:
        return fill_nodes(app, b, query);
    case MAINSTAY__WHAT__WHAT_VMS:
        return fill_vm_rows(app, b, query);
    case MAINSTAY__WHAT__WHAT_FAULTS:
        return fill_faults(app, b, query);
    case MAINSTAY__WHAT__WHAT_RECOVERIES:
        return fill_recoveries(app, b, query);
    default:
        return -EINVAL;
    }
}

void views_answer(struct app *app, struct session *session, uint64_t request_id, const Mainstay__Query *query)
{
    struct buffer *b = calloc(1, sizeof(*b));
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    int r;

    if (!b) {
        (void)session_done(session, request_id, -ENOMEM, "out of memory");
        return;
    }
    mainstay__view__init(&b->view);
    b->now = app_now();
    b->view.nodes = b->nodes_list;
    b->view.vms = b->vms_list;
    b->view.faults = b->faults_list;
    b->view.recoveries = b->recoveries_list;
    r = fill(app, b, query);
    if (r < 0) {
        (void)session_done(session, request_id, r,
                           r == -ENOENT ? "there is none of that name or number" : "unknown kind of view");
    } else {
        b->view.cluster = app->conf->cluster;
        b->view.has_coordinator_id = b->view.has_wall_ms = 1;
        b->view.coordinator_id = app->conf->id;
        b->view.wall_ms = b->now.wall_ms;
        b->view.text = mst_core_trouble(app->core)[0] ? (char *)mst_core_trouble(app->core) : NULL;
        env.has_reply_to = 1;
        env.reply_to = request_id;
        env.body_case = MAINSTAY__ENVELOPE__BODY_VIEW;
        env.view = &b->view;
        r = session_send(session, &env);
        if (r == -EMSGSIZE || r == -EINVAL)
            (void)session_done(session, request_id, r, "the view does not fit into a message");
    }
    for (size_t i = 0; i < b->view.n_vms; i++) {
        if (b->vms[i].definition)
            mainstay__vm_definition__free_unpacked(b->vms[i].definition, NULL);
    }
    free(b);
}
