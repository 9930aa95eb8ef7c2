#include "coordinator/io/convert.h"

#include "conf/conf.h"
#include "coordinator/core/plan.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The core's numbers are those of the protocol. */
static_assert((int)MST_ON_FAULT_RESUME == (int)MAINSTAY__ON_FAULT__ON_FAULT_RESUME &&
                  (int)MST_ON_FAULT_RESUME_ELSEWHERE == (int)MAINSTAY__ON_FAULT__ON_FAULT_RESUME_ELSEWHERE &&
                  (int)MST_ON_FAULT_DISCARD == (int)MAINSTAY__ON_FAULT__ON_FAULT_DISCARD,
              "recovery attributes");
static_assert((int)MST_PROTECT_LOCAL == (int)MAINSTAY__PROTECT__PROTECT_LOCAL &&
                  (int)MST_PROTECT_MIRROR == (int)MAINSTAY__PROTECT__PROTECT_MIRROR,
              "levels of protection");
static_assert((int)MST_MIRROR_APART_NODE == (int)MAINSTAY__MIRROR_APART__MIRROR_APART_NODE &&
                  (int)MST_MIRROR_APART_RACK == (int)MAINSTAY__MIRROR_APART__MIRROR_APART_RACK,
              "what a VM and its mirror may not share");
static_assert((int)MST_MIRROR_SEEDING == (int)MAINSTAY__MIRROR_PHASE__MIRROR_SEEDING &&
                  (int)MST_MIRROR_FAILED == (int)MAINSTAY__MIRROR_PHASE__MIRROR_FAILED,
              "phases of mirrors");
static_assert((int)MST_FAULT_VM_PANICKED == (int)MAINSTAY__FAULT_KIND__FAULT_VM_PANICKED &&
                  (int)MST_FAULT_PROCESSOR == (int)MAINSTAY__FAULT_KIND__FAULT_PROCESSOR &&
                  (int)MST_FAULT_AREA_CORRUPT == (int)MAINSTAY__FAULT_KIND__FAULT_AREA_CORRUPT,
              "fault kinds");
static_assert((int)MST_VM_HELD == (int)MAINSTAY__VM_RUN_STATE__VM_HELD &&
                  (int)MST_VM_STOPPING == (int)MAINSTAY__VM_RUN_STATE__VM_STOPPING,
              "phases");
static_assert((int)MST_NODE_FENCED == (int)MAINSTAY__NODE_STATE__NODE_FENCED &&
                  (int)MST_NODE_FAILING == (int)MAINSTAY__NODE_STATE__NODE_FAILING &&
                  (int)MST_NODE_DEGRADED == (int)MAINSTAY__NODE_STATE__NODE_DEGRADED,
              "node states");

static void copy(char *to, size_t size, const char *from)
{
    snprintf(to, size, "%s", from ? from : "");
}

int mst_convert_definition(const Mainstay__VmDefinition *def, const struct mst_core *core, struct mst_definition *ret,
                           struct mst_why *why)
{
    size_t bytes = mainstay__vm_definition__get_packed_size(def);
    int r = mst_vm_definition_check(def, why);

    if (r < 0)
        return r;
    if (bytes > sizeof(ret->packed))
        return mst_why_set(why, -E2BIG,
                           "the definition of %s is %zu bytes long with its paths and boot arguments, allowed are %zu", def->name,
                           bytes, sizeof(ret->packed));
    memset(ret, 0, sizeof(*ret));
    copy(ret->name, sizeof(ret->name), def->name);
    ret->memory_mib = mst_vm_area_mib(def);
    ret->vcpus = def->vcpus; /* defaults are filled in by protobuf-c */
    ret->priority = def->priority;
    ret->protect = (uint8_t)def->protect;
    ret->on_node_fault = (uint8_t)def->on_node_fault;
    ret->on_vm_fault = (uint8_t)def->on_vm_fault;
    ret->mirror_apart = (uint8_t)def->mirror_apart;
    ret->restarts_max = def->restarts_max;
    ret->restarts_window_s = def->restarts_window_s;
    if (def->n_allowed_nodes > MST_NODES_MAX)
        return mst_why_set(why, -EINVAL, "allowed-nodes: more than %d", MST_NODES_MAX);
    for (size_t i = 0; i < def->n_allowed_nodes; i++) {
        struct mst_node_look look;
        struct mst_time now = {0};
        int index = mst_core_node_by_name(core, def->allowed_nodes[i]);

        if (index < 0)
            return mst_why_set(why, -EINVAL, "allowed-nodes: no node of this cluster is called %s", def->allowed_nodes[i]);
        mst_core_node(core, &now, (unsigned)index, &look);
        ret->allowed[ret->allowed_count++] = look.member->id;
    }
    ret->packed_bytes = (uint32_t)mainstay__vm_definition__pack(def, ret->packed);
    return 0;
}

void mst_convert_hello(const Mainstay__Hello *hello, struct mst_hello *ret)
{
    memset(ret, 0, sizeof(*ret));
    copy(ret->cluster, sizeof(ret->cluster), hello->cluster);
    copy(ret->node, sizeof(ret->node), hello->node);
    copy(ret->address, sizeof(ret->address), hello->address);
    ret->node_id = hello->node_id;
    ret->port = hello->port;
    if (hello->host_boot_id.len == sizeof(ret->host_boot_id))
        memcpy(ret->host_boot_id, hello->host_boot_id.data, sizeof(ret->host_boot_id));
    ret->instance = hello->instance;
    ret->memory_mib = hello->memory_mib;
    ret->vcpus = hello->vcpus;
    copy(ret->rack, sizeof(ret->rack), hello->rack);
    ret->earlier_vms_dead = hello->has_earlier_vms_dead && hello->earlier_vms_dead;
    ret->highest_term = hello->has_highest_term ? hello->highest_term : 0;
    ret->highest_term_by = hello->has_highest_term_by ? hello->highest_term_by : 0;
    ret->highest_decision = hello->has_highest_decision ? hello->highest_decision : 0;
    for (size_t i = 0; i < hello->n_held && i < MST_VMS_PER_NODE; i++) {
        struct mst_hello_vm *to = &ret->held[ret->held_count++];

        copy(to->vm, sizeof(to->vm), hello->held[i]->vm);
        to->epoch = hello->held[i]->epoch;
        to->run_state = hello->held[i]->run_state;
        to->save_seq = hello->held[i]->has_save_seq ? hello->held[i]->save_seq : 0;
        to->image_state = hello->held[i]->has_image_state ? hello->held[i]->image_state : 0;
        to->log_id = hello->held[i]->has_log_id ? hello->held[i]->log_id : 0;
        for (size_t k = 0; k < hello->held[i]->n_mirrors && k < MST_MIRRORS_MAX; k++) {
            const Mainstay__HeldMirror *mirror = hello->held[i]->mirrors[k];

            to->mirrors[to->mirrors_count++] = (struct mst_held_mirror){.node_id = mirror->node_id,
                                                                        .phase = (uint32_t)mirror->phase,
                                                                        .log_id = mirror->log_id,
                                                                        .acked_seq = mirror->acked_seq};
        }
    }
}

void mst_convert_report(const Mainstay__FaultReport *report, struct mst_report *ret)
{
    memset(ret, 0, sizeof(*ret));
    ret->kind = (uint32_t)report->kind;
    copy(ret->node, sizeof(ret->node), report->node);
    copy(ret->vm, sizeof(ret->vm), report->vm);
    ret->epoch = report->has_epoch ? report->epoch : 0;
    ret->instance = report->has_instance ? report->instance : 0;
    copy(ret->reporter, sizeof(ret->reporter), report->reporter);
    copy(ret->text, sizeof(ret->text), report->text);
}

void mst_convert_answer(const Mainstay__Done *done, struct mst_answer *ret)
{
    memset(ret, 0, sizeof(*ret));
    ret->err = -done->error;
    copy(ret->text, sizeof(ret->text), done->text);
    if (done->start) {
        ret->start = (struct mst_start_result){.method = (uint32_t)done->start->method,
                                               .bytes_pulled = done->start->bytes_pulled,
                                               .pull_us = done->start->pull_us,
                                               .verify_us = done->start->verify_us,
                                               .load_us = done->start->load_us,
                                               .spawn_us = done->start->spawn_us,
                                               .save_epoch = done->start->save_epoch,
                                               .save_seq = done->start->save_seq,
                                               .standby = done->start->standby};
    }
    if (done->save) {
        ret->save_seq = done->save->seq;
        ret->save_pause_us = done->save->pause_us;
    }
    if (done->grant) {
        ret->has_grant = true;
        ret->grant = (struct mst_mirror_grant){.log_id = done->grant->log_id,
                                               .mirror_instance = done->grant->mirror_instance,
                                               .ring_bytes = done->grant->ring_bytes,
                                               .delta_capacity = done->grant->delta_capacity};
    }
    if (done->image) {
        ret->has_image = true;
        ret->image_instance = done->image->instance;
        ret->image_epoch = done->image->epoch;
        ret->image_seq = done->image->seq;
        ret->image_verify_us = done->image->has_verify_us ? done->image->verify_us : 0;
    }
    if (!done->fence)
        return;
    ret->has_fence = true;
    ret->fence_instance = done->fence->instance;
    if (done->fence->host_boot_id.len == sizeof(ret->fence_boot_id))
        memcpy(ret->fence_boot_id, done->fence->host_boot_id.data, sizeof(ret->fence_boot_id));
    for (size_t i = 0; i < done->fence->n_vms && i < MST_VMS_PER_NODE; i++) {
        struct mst_vm_epoch *to = &ret->fenced[ret->fenced_count++];

        copy(to->vm, sizeof(to->vm), done->fence->vms[i]->vm);
        to->epoch = done->fence->vms[i]->epoch;
    }
}

void mst_convert_event(const Mainstay__VmEvent *event, struct mst_vm_event *ret)
{
    memset(ret, 0, sizeof(*ret));
    copy(ret->vm, sizeof(ret->vm), event->vm);
    ret->epoch = event->epoch;
    ret->run_state = event->run_state;
    copy(ret->text, sizeof(ret->text), event->text);
}

void mst_convert_mirror(const Mainstay__MirrorState *state, struct mst_mirror_news *ret)
{
    memset(ret, 0, sizeof(*ret));
    copy(ret->vm, sizeof(ret->vm), state->vm);
    copy(ret->node, sizeof(ret->node), state->node);
    ret->epoch = state->epoch;
    ret->log_id = state->log_id;
    ret->phase = (uint32_t)state->phase;
    ret->acked_seq = state->acked_seq;
    ret->sent_seq = state->sent_seq;
    ret->acked_age_ms = state->has_acked_age_ms ? state->acked_age_ms : 0;
    ret->sent_bytes = state->has_sent_bytes ? state->sent_bytes : 0;
    ret->sending_us = state->has_sending_us ? state->sending_us : 0;
    ret->acked_after_us = state->has_acked_after_us ? state->acked_after_us : 0;
    copy(ret->text, sizeof(ret->text), state->text);
}

/* --- orders --- */

/* protobuf-c wants pointers to things that outlive the packing: one struct holds them all. */
struct order_parts {
    mst_envelope env;
    Mainstay__OrderStart start;
    Mainstay__SaveSource source;
    Mainstay__OrderSave save;
    Mainstay__OrderContinue cont;
    Mainstay__OrderFence fence;
    Mainstay__VmEpoch vms[MST_VMS_PER_NODE], *list[MST_VMS_PER_NODE];
    Mainstay__OrderForget forget;
    Mainstay__OrderRestartAgent agent;
    Mainstay__OrderRecordFault record;
    Mainstay__FaultReport report;
    Mainstay__OrderMirror mirror;
    Mainstay__OrderMirrorTo to;
    Mainstay__OrderMirrorSure sure;
    Mainstay__OrderMirrorDrop drop;
    Mainstay__OrderMirrorRevoke revoke;
    Mainstay__Peer peer;
    Mainstay__MirrorGrant grant;
};

static int fill_start(struct order_parts *p, const struct mst_order *order)
{
    mainstay__order_start__init(&p->start);
    p->start.definition = mainstay__vm_definition__unpack(NULL, order->definition->packed_bytes, order->definition->packed);
    if (!p->start.definition)
        return -EBADMSG;
    p->start.epoch = order->epoch;
    if (order->source.node_id != 0) {
        mainstay__save_source__init(&p->source);
        p->source.node = (char *)order->source_node;
        p->source.node_id = order->source.node_id;
        p->source.instance = order->source.instance;
        p->source.epoch = order->source.epoch;
        p->source.has_min_seq = 1;
        p->source.min_seq = order->source.seq;
        p->source.has_image = order->source.image;
        p->source.image = order->source.image;
        p->start.source = &p->source;
    }
    p->env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_START;
    p->env.order_start = &p->start;
    return 0;
}

static void fill_fence(struct order_parts *p, const struct mst_order *order)
{
    mainstay__order_fence__init(&p->fence);
    for (unsigned i = 0; i < order->fence_count; i++) {
        mainstay__vm_epoch__init(&p->vms[i]);
        p->vms[i].vm = (char *)order->fence[i].vm;
        p->vms[i].epoch = order->fence[i].epoch;
        p->list[i] = &p->vms[i];
    }
    p->fence.n_vms = order->fence_count;
    p->fence.vms = p->list;
    p->env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_FENCE;
    p->env.order_fence = &p->fence;
}

static void fill_record(struct order_parts *p, const struct mst_order *order, const char *node_name)
{
    const struct mst_fault_row *fault = order->fault;

    mainstay__order_record_fault__init(&p->record);
    mainstay__fault_report__init(&p->report);
    p->report.kind = (Mainstay__FaultKind)fault->kind;
    p->report.node = (char *)node_name;
    p->report.vm = fault->vm[0] ? (char *)fault->vm : NULL;
    p->report.has_epoch = fault->epoch != 0;
    p->report.epoch = fault->epoch;
    p->report.has_instance = 1;
    p->report.instance = fault->instance;
    p->report.reporter = (char *)fault->reporter;
    p->report.text = (char *)fault->text;
    p->report.has_wall_ms = 1;
    p->report.wall_ms = fault->wall_ms;
    p->record.fault_id = fault->id;
    p->record.report = &p->report;
    p->env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_RECORD_FAULT;
    p->env.order_record_fault = &p->record;
}

static void fill_peer(struct order_parts *p, const struct mst_order *order)
{
    mainstay__peer__init(&p->peer);
    p->peer.node = (char *)order->peer->name;
    p->peer.node_id = order->peer->id;
    p->peer.address = (char *)order->peer->address;
    p->peer.port = order->peer->port;
    p->peer.instance = order->peer_instance;
}

static int fill_mirror(struct order_parts *p, const struct mst_order *order)
{
    mainstay__order_mirror__init(&p->mirror);
    p->mirror.definition = mainstay__vm_definition__unpack(NULL, order->definition->packed_bytes, order->definition->packed);
    if (!p->mirror.definition)
        return -EBADMSG;
    fill_peer(p, order);
    p->mirror.epoch = order->epoch;
    p->mirror.source = &p->peer;
    p->mirror.source_boot_id.data = (uint8_t *)order->peer_boot_id;
    p->mirror.source_boot_id.len = sizeof(order->peer_boot_id);
    p->mirror.has_ring_bytes = order->grant.ring_bytes != 0;
    p->mirror.ring_bytes = order->grant.ring_bytes;
    p->env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_MIRROR;
    p->env.order_mirror = &p->mirror;
    return 0;
}

static void fill_mirror_to(struct order_parts *p, const struct mst_order *order)
{
    fill_peer(p, order);
    mainstay__mirror_grant__init(&p->grant);
    p->grant.log_id = order->grant.log_id;
    p->grant.mirror_instance = order->grant.mirror_instance;
    p->grant.ring_bytes = order->grant.ring_bytes;
    p->grant.delta_capacity = order->grant.delta_capacity;
    mainstay__order_mirror_to__init(&p->to);
    p->to.vm = (char *)order->vm;
    p->to.epoch = order->epoch;
    p->to.mirror = &p->peer;
    p->to.grant = &p->grant;
    p->env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_MIRROR_TO;
    p->env.order_mirror_to = &p->to;
}

static int fill_of_mirror(struct order_parts *p, const struct mst_order *order)
{
    switch (order->type) {
    case MST_ORDER_MIRROR:
        return fill_mirror(p, order);
    case MST_ORDER_MIRROR_TO:
        fill_mirror_to(p, order);
        return 0;
    case MST_ORDER_MIRROR_SURE:
        mainstay__order_mirror_sure__init(&p->sure);
        p->sure.vm = (char *)order->vm;
        p->sure.epoch = order->epoch;
        p->sure.log_id = order->log_id;
        p->env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_MIRROR_SURE;
        p->env.order_mirror_sure = &p->sure;
        return 0;
    case MST_ORDER_MIRROR_DROP:
        mainstay__order_mirror_drop__init(&p->drop);
        p->drop.vm = (char *)order->vm;
        p->drop.epoch = order->epoch;
        p->drop.log_id = order->log_id;
        p->env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_MIRROR_DROP;
        p->env.order_mirror_drop = &p->drop;
        return 0;
    default:
        mainstay__order_mirror_revoke__init(&p->revoke);
        p->revoke.vm = (char *)order->vm;
        p->revoke.epoch = order->epoch;
        p->env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_MIRROR_REVOKE;
        p->env.order_mirror_revoke = &p->revoke;
        return 0;
    }
}

static int fill(struct order_parts *p, const struct mst_order *order, const char *node_name)
{
    switch (order->type) {
    case MST_ORDER_START:
        return fill_start(p, order);
    case MST_ORDER_SAVE:
        mainstay__order_save__init(&p->save);
        p->save.vm = (char *)order->vm;
        p->save.epoch = order->epoch;
        p->env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_SAVE;
        p->env.order_save = &p->save;
        return 0;
    case MST_ORDER_CONTINUE:
        mainstay__order_continue__init(&p->cont);
        p->cont.vm = (char *)order->vm;
        p->cont.epoch = order->epoch;
        p->env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_CONTINUE;
        p->env.order_continue = &p->cont;
        return 0;
    case MST_ORDER_FENCE:
        fill_fence(p, order);
        return 0;
    case MST_ORDER_FORGET:
        mainstay__order_forget__init(&p->forget);
        p->forget.vm = (char *)order->vm;
        p->forget.epoch = order->epoch;
        p->env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_FORGET;
        p->env.order_forget = &p->forget;
        return 0;
    case MST_ORDER_RESTART_AGENT:
        mainstay__order_restart_agent__init(&p->agent);
        p->agent.text = (char *)order->text;
        p->env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_RESTART_AGENT;
        p->env.order_restart_agent = &p->agent;
        return 0;
    case MST_ORDER_RECORD_FAULT:
        fill_record(p, order, node_name);
        return 0;
    case MST_ORDER_MIRROR:
    case MST_ORDER_MIRROR_TO:
    case MST_ORDER_MIRROR_SURE:
    case MST_ORDER_MIRROR_DROP:
    case MST_ORDER_MIRROR_REVOKE:
        return fill_of_mirror(p, order);
    }
    return -EINVAL;
}

int mst_convert_order(const struct mst_order *order, const char *node_name, uint8_t *out, size_t size)
{
    struct order_parts p;
    int r;

    memset(&p, 0, sizeof(p));
    mainstay__envelope__init(&p.env);
    p.env.has_id = p.env.has_instance = p.env.has_term = p.env.has_decision = 1;
    p.env.id = order->token;
    p.env.instance = order->instance;
    p.env.term = order->term;
    p.env.decision = order->decision;
    r = fill(&p, order, node_name);
    if (r == 0)
        r = mst_frame_pack(&p.env, out, size);
    if (p.start.definition)
        mainstay__vm_definition__free_unpacked(p.start.definition, NULL);
    if (p.mirror.definition)
        mainstay__vm_definition__free_unpacked(p.mirror.definition, NULL);
    return r;
}

void mst_done_set(Mainstay__Done *done, int err, const char *text)
{
    mainstay__done__init(done);
    done->error = err < 0 ? -err : err;
    done->text = text && text[0] ? (char *)text : NULL;
}
