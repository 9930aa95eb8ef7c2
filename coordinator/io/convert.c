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
    ret->memory_mib = def->memory_mib;
    ret->vcpus = def->vcpus; /* defaults are filled in by protobuf-c */
    ret->priority = def->priority;
    ret->protect = (uint8_t)def->protect;
    ret->on_node_fault = (uint8_t)def->on_node_fault;
    ret->on_vm_fault = (uint8_t)def->on_vm_fault;
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
                                               .save_seq = done->start->save_seq};
    }
    if (done->save) {
        ret->save_seq = done->save->seq;
        ret->save_pause_us = done->save->pause_us;
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
    return r;
}

void mst_done_set(Mainstay__Done *done, int err, const char *text)
{
    mainstay__done__init(done);
    done->error = err < 0 ? -err : err;
    done->text = text && text[0] ? (char *)text : NULL;
}
