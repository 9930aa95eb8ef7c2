/* The keeper as a whole, see rig.h. */
#include "rig.h"

#include "base/clock.h"

#include <check.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define LOCAL MAINSTAY__PROTECT__PROTECT_LOCAL
#define NONE  MAINSTAY__PROTECT__PROTECT_NONE

static Mainstay__SaveSource source_of(unsigned node, uint64_t epoch)
{
    static char name[RIG_NODES + 1][8];
    Mainstay__SaveSource source = MAINSTAY__SAVE_SOURCE__INIT;

    snprintf(name[node], sizeof(name[node]), "n%u", node);
    source.node = name[node];
    source.node_id = node;
    source.instance = rig->nodes[node].instance;
    source.epoch = epoch;
    return source;
}

static bool beats(void *arg)
{
    static struct mst_status_area area;
    struct mst_beat_line *first = arg;

    rig_status(1, &area);
    return mst_beat_check(&area.beat) == 0 && area.beat.keeper_beat > first->keeper_beat + 5 &&
           area.beat.agent_beat > first->agent_beat + 2;
}

/* --- joining, beats --- */

START_TEST(a_keeper_joins_and_beats)
{
    static struct mst_status_area area;
    const Mainstay__Hello *hello;
    struct mst_beat_line none = {0};
    struct mst_node_status body;
    struct mst_pub_head head;

    rig_keeper_start(1);
    hello = rig->nodes[1].hello->hello;
    ck_assert_str_eq(hello->cluster, "rig");
    ck_assert_str_eq(hello->node, "n1");
    ck_assert_uint_eq(hello->port, 17471);
    ck_assert(hello->has_earlier_vms_dead && hello->earlier_vms_dead);
    ck_assert_uint_eq(hello->n_held, 0);
    ck_assert(rig_until(beats, &none, 10000)); /* also the agent's, so it was started and welcomed */
    rig_status(1, &area);
    ck_assert_int_eq(mst_superblock_check(&area.super, NULL), 0);
    ck_assert_uint_eq(area.super.instance, rig->nodes[1].instance);
    ck_assert_uint_eq(area.beat.agent_state, MST_AGENT_UP);
    ck_assert_int_eq(mst_pub_pick(area.node, &head, &body, sizeof(body)), 0);
    ck_assert_uint_eq(body.memory_bytes, 64u << 20);
    ck_assert_uint_eq(body.vcpus, 4);
    ck_assert_int_gt(rig_pid_of(1, "keeper.pid"), 1);
    ck_assert_int_gt(rig_pid_of(1, "agent.pid"), 1);
}
END_TEST

START_TEST(a_second_keeper_on_the_same_node_does_not_start)
{
    pid_t first;
    int status;

    rig_keeper_start(1);
    first = rig->nodes[1].pid;
    ck_done_ok(rig_start(1, "web01", 1, LOCAL, "x", NULL));
    rig->nodes[1].pid = 0;
    rig_keeper_spawn(1);
    status = rig_keeper_wait(1, 10000);
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    rig->nodes[1].pid = first;
    ck_assert(rig_alive(rig_pid_of(1, "vm/web01/qemu.pid")));
}
END_TEST

struct reader {
    struct mst_link *link;
    mst_envelope *keys;
    struct mst_region *region;
    uint8_t data[4096];
    int err;
    bool open, done;
};

static void reader_open(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct reader *r = arg;

    (void)link, (void)why;
    r->err = err;
    r->open = true;
}

static void reader_message(struct mst_link *link, const void *data, size_t len, void *arg)
{
    struct reader *r = arg;

    (void)link;
    mst_envelope_free(r->keys);
    ck_assert_int_eq(mst_frame_unpack(data, len, &r->keys, NULL), 0);
}

static void reader_closed(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct reader *r = arg;

    (void)link, (void)err, (void)why;
    r->done = true;
}

static bool reader_is_open(void *arg)
{
    return ((struct reader *)arg)->open;
}

static bool reader_has_keys(void *arg)
{
    return ((struct reader *)arg)->keys != NULL;
}

static bool reader_is_done(void *arg)
{
    return ((struct reader *)arg)->done;
}

static void reader_read(void *arg, int err)
{
    struct reader *r = arg;

    r->err = err;
    r->done = true;
}

static const struct mst_link_events reader_events = {
    .on_open = reader_open, .on_message = reader_message, .on_closed = reader_closed};

START_TEST(the_watch_link_gets_keys_that_open_status_and_grant_area)
{
    struct reader r = {0};
    struct mst_superblock *super = (void *)r.data;

    rig_keeper_start(1);
    ck_assert_int_eq(
        mst_fabric_connect(rig->fabric, rig_address(1), 17471, MST_ROLE_WATCH, NULL, 0, 2000, &reader_events, &r, &r.link, NULL),
        0);
    ck_assert(rig_until(reader_has_keys, &r, 5000));
    ck_assert_uint_eq(r.keys->keys->instance, rig->nodes[1].instance);
    ck_assert_uint_eq(r.keys->keys->status->bytes, sizeof(struct mst_status_area));
    ck_assert_ptr_nonnull(r.keys->keys->grant);
    ck_assert_uint_eq(r.keys->keys->grant->bytes, 4096);
    ck_assert_uint_eq(r.keys->keys->n_vms, 0);
    ck_assert_int_eq(mst_region_new(r.link, r.data, sizeof(r.data), MST_ACCESS_LOCAL, &r.region, NULL), 0);
    rig_keeper_signal(1, SIGSTOP); /* a stopped keeper's memory is readable */
    ck_assert_int_eq(
        mst_link_read(r.link, r.region, 0, r.keys->keys->status->addr, r.keys->keys->status->rkey, 256, 1000, reader_read, &r),
        0);
    ck_assert(rig_until(reader_is_done, &r, 5000));
    ck_assert_int_eq(r.err, 0);
    ck_assert_int_eq(mst_superblock_check(super, NULL), 0);
    mst_envelope_free(r.keys);
    r.done = false;
    mst_link_close(r.link);
    ck_assert(rig_until(reader_is_done, &r, 5000));
}
END_TEST

START_TEST(a_coordinator_that_opens_more_watch_links_than_it_needs_loses_the_oldest)
{
    struct reader r[5] = {0}; /* four are kept: those before may be dead without our knowing */

    rig_keeper_start(1);
    for (unsigned i = 0; i < 5; i++) {
        ck_assert_int_eq(mst_fabric_connect(rig->fabric, rig_address(1), 17471, MST_ROLE_WATCH, NULL, 0, 2000, &reader_events,
                                            &r[i], &r[i].link, NULL),
                         0);
        ck_assert(rig_until(reader_has_keys, &r[i], 5000));
        r[i].done = false;
    }
    ck_assert(rig_until(reader_is_done, &r[0], 5000));
    for (unsigned i = 1; i < 5; i++) {
        ck_assert(!r[i].done);
        mst_link_close(r[i].link);
        ck_assert(rig_until(reader_is_done, &r[i], 5000));
    }
    for (unsigned i = 0; i < 5; i++)
        mst_envelope_free(r[i].keys);
}
END_TEST

START_TEST(a_stranger_gets_neither_a_watch_nor_a_pull_link)
{
    struct mst_fabric *other;
    struct reader r = {0};
    struct mst_link *link;

    rig_keeper_start(1);
    ck_assert_int_eq(mst_fabric_open(&rig->loop, rig_address(66), &other, NULL), 0);
    ck_assert_int_eq(mst_fabric_connect(other, rig_address(1), 17471, _i ? MST_ROLE_PULL : MST_ROLE_WATCH, NULL, 0, 2000,
                                        &reader_events, &r, &link, NULL),
                     0);
    ck_assert(rig_until(reader_is_open, &r, 5000));
    ck_assert_int_eq(r.err, -EACCES);
    r.done = false;
    mst_fabric_close(other, (void (*)(void *))(void *)NULL, NULL);
}
END_TEST

/* --- start, idempotence, refusals --- */

static bool console_beats(void *arg)
{
    const struct rig_node *node = arg;

    return node->console_bytes > 60;
}

START_TEST(a_start_runs_the_vm_and_asked_again_answers_the_same)
{
    const Mainstay__Done *done;
    struct mst_vm_slot info;
    long pid;

    rig_keeper_start(1);
    done = rig_start(1, "web01", 5, LOCAL, "x", NULL);
    ck_done_ok(done);
    ck_assert_int_eq(done->start->method, MAINSTAY__METHOD__METHOD_BOOTED);
    ck_assert_int_ge(rig_slot(1, "web01", 5, &info), 0);
    ck_assert_uint_eq(info.run_state, MST_RUN_RUNNING);
    ck_assert_uint_eq(info.ram_bytes, 4u << 20);
    pid = rig_pid_of(1, "vm/web01/qemu.pid");
    ck_assert_int_eq(info.qemu_pid, pid);
    ck_assert(rig_alive(pid));
    done = rig_start(1, "web01", 5, LOCAL, "x", NULL);
    ck_done_ok(done);
    ck_assert_int_eq(done->start->method, MAINSTAY__METHOD__METHOD_BOOTED);
    ck_assert_int_eq(rig_pid_of(1, "vm/web01/qemu.pid"), pid);
    ck_done_err(rig_start(1, "web01", 4, LOCAL, "x", NULL), ESTALE, "older");
    ck_done_err(rig_start(1, "web01", 6, LOCAL, "x", NULL), EBUSY, "fence it before");
    ck_assert(rig_alive(pid));
    ck_assert_uint_eq(rig->nodes[1].last_event, MST_RUN_RUNNING);
}
END_TEST

START_TEST(an_order_of_another_instance_or_an_older_term_is_refused)
{
    Mainstay__OrderForget body = MAINSTAY__ORDER_FORGET__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    rig_keeper_start(1);
    body.vm = (char *)"web01";
    body.epoch = 1;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_FORGET;
    env.order_forget = &body;
    env.has_instance = 1;
    env.instance = rig->nodes[1].instance + 1;
    ck_done_err(rig_order(1, &env), ESTALE, "instance");
    env.instance = rig->nodes[1].instance;
    env.has_term = 1;
    env.term = RIG_TERM + 1;
    ck_done_ok(rig_order(1, &env));
    env.term = RIG_TERM;
    ck_done_err(rig_order(1, &env), ESTALE, "term");
}
END_TEST

START_TEST(a_vm_that_does_not_fit_is_refused_with_numbers_and_leaves_nothing)
{
    rig->nodes[1].memory_mib = 20;
    rig_keeper_start(1);
    ck_done_ok(rig_start(1, "first", 1, LOCAL, "x", NULL));
    ck_done_err(rig_start(1, "second", 1, LOCAL, "x", NULL), ENOSPC, "of 20 MiB are in use");
    ck_assert(!rig_file_there(1, "second.e1.ram"));
    ck_assert_int_eq(rig_slot(1, "second", 1, &(struct mst_vm_slot){0}), -1);
    ck_done_ok(rig_fence(1, "first", 1));
    ck_done_ok(rig_forget(1, "first", 1));
    ck_done_ok(rig_start(1, "second", 1, LOCAL, "x", NULL)); /* the same epoch may be tried again */
}
END_TEST

START_TEST(a_start_that_fails_leaves_no_process_and_no_memory)
{
    static const char *const appends[] = {"qemu=exit", "agent=refuse", "agent=old-epoch"};
    static const int errors[] = {EIO, EIO, ESTALE};
    const Mainstay__Done *done;

    rig_keeper_start(1);
    done = rig_start(1, "web01", 5, LOCAL, appends[_i], NULL);
    ck_assert_int_eq(done->error, errors[_i]);
    ck_assert_int_eq(rig_slot(1, "web01", 5, &(struct mst_vm_slot){0}), -1);
    ck_assert(!rig_file_there(1, "web01.e5.ram"));
    ck_assert(!rig_pid_of(1, "vm/web01/qemu.pid"));
    ck_assert_uint_eq(rig_memory_used(1), 0);
    ck_assert_uint_eq(rig->nodes[1].report_count, 0);
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "x", NULL));
}
END_TEST

START_TEST(a_definition_beyond_the_limits_is_refused)
{
    Mainstay__VmDefinition def = MAINSTAY__VM_DEFINITION__INIT;
    Mainstay__OrderStart body = MAINSTAY__ORDER_START__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    rig_keeper_start(1);
    def.name = (char *)"web01";
    def.memory_mib = 4; /* and nothing to boot */
    body.definition = &def;
    body.epoch = 1;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_START;
    env.order_start = &body;
    ck_assert_int_eq(rig_order(1, &env)->error, EINVAL);
}
END_TEST

/* --- fence --- */

START_TEST(a_fence_proves_the_vm_gone_keeps_its_memory_and_bars_its_epoch)
{
    static const char *const story[] = {"process.started", "hello.sent", "hello.welcomed", "order.received",
                                        "qemu.spawned",    "running",    "kill.asked",     "qemu.exited",
                                        "kill.proved",     "fenced",     "order.refused",  NULL};
    const Mainstay__Done *done;
    struct mst_vm_slot info;
    long pid;

    rig_keeper_start(1);
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "x", NULL));
    pid = rig_pid_of(1, "vm/web01/qemu.pid");
    if (_i) /* the agent hangs: the keeper does it alone */
        ck_assert_int_eq(kill((pid_t)rig_pid_of(1, "agent.pid"), SIGSTOP), 0);
    done = rig_fence(1, _i == 2 ? NULL : "web01", 5);
    ck_done_ok(done);
    ck_assert(!rig_alive(pid));
    ck_assert_uint_eq(done->fence->instance, rig->nodes[1].instance);
    ck_assert_uint_eq(done->fence->host_boot_id.len, 16);
    ck_assert_uint_eq(done->fence->n_vms, 1);
    ck_assert_str_eq(done->fence->vms[0]->vm, "web01");
    ck_assert_uint_eq(done->fence->vms[0]->epoch, 5);
    ck_assert_int_ge(rig_slot(1, "web01", 5, &info), 0);
    ck_assert_uint_eq(info.run_state, MST_RUN_FENCED);
    ck_assert_int_eq(info.qemu_pid, 0);
    ck_assert(rig_file_there(1, "web01.e5.shadow"));
    ck_assert_uint_eq(rig->nodes[1].report_count, 0); /* ordered: no fault */
    ck_done_ok(rig_fence(1, "web01", 5));             /* again: the same */
    ck_done_err(rig_start(1, "web01", 5, LOCAL, "x", NULL), ESTALE, "fenced");
    rig_wait_told(1, "", story);
    if (_i)
        ck_assert_int_eq(kill((pid_t)rig_pid_of(1, "agent.pid"), SIGKILL), 0);
}
END_TEST

START_TEST(a_fence_of_an_unknown_vm_is_answered_and_remembered)
{
    const Mainstay__Done *done;

    rig_keeper_start(1);
    done = rig_fence(1, "never", 9);
    ck_done_ok(done);
    ck_assert_uint_eq(done->fence->n_vms, 1);
    ck_done_err(rig_start(1, "never", 9, NONE, "x", NULL), ESTALE, "fenced");
    ck_done_ok(rig_start(1, "never", 10, NONE, "x", NULL));
    ck_done_ok(rig_fence(1, "never", 9)); /* of an older epoch: the newer runs on */
    ck_assert(rig_alive(rig_pid_of(1, "vm/never/qemu.pid")));
    ck_assert_int_eq(rig_fence(1, "never", 0)->error, EINVAL);
}
END_TEST

START_TEST(a_fence_ends_a_start_that_is_under_way)
{
    Mainstay__VmEpoch one = MAINSTAY__VM_EPOCH__INIT, *list[] = {&one};
    Mainstay__OrderFence body = MAINSTAY__ORDER_FENCE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    struct mst_vm_slot info;

    rig_keeper_start(1);
    rig_start_send(1, "web01", 5, LOCAL, "agent=silent", NULL);
    rig_wait_state(1, "web01", 5, MST_RUN_STARTING);
    rig_run_ms(_i * 15); /* at different moments of the start */
    one.vm = (char *)"web01";
    one.epoch = 5;
    body.n_vms = 1;
    body.vms = list;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_FENCE;
    env.order_fence = &body;
    ck_done_ok(rig_order(1, &env));
    ck_assert(!rig_alive(rig_pid_of(1, "vm/web01/qemu.pid")));
    rig_run_ms(200);
    ck_assert_int_ge(rig_slot(1, "web01", 5, &info), 0);
    ck_assert_uint_eq(info.run_state, MST_RUN_FENCED);
    ck_assert(!rig_alive(rig_pid_of(1, "vm/web01/qemu.pid")));
    ck_done_ok(rig_forget(1, "web01", 5));
    ck_assert_uint_eq(rig_memory_used(1), 0);
}
END_TEST

START_TEST(the_next_epoch_starts_after_a_fence_at_any_moment_of_the_one_before)
{
    Mainstay__VmEpoch one = MAINSTAY__VM_EPOCH__INIT, *list[] = {&one};
    Mainstay__OrderFence body = MAINSTAY__ORDER_FENCE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    long agent;

    rig_keeper_start(1);
    ck_done_ok(rig_start(1, "other", 1, NONE, "x", NULL)); /* so the agent is there */
    agent = rig_pid_of(1, "agent.pid");
    rig_start_send(1, "web01", 5, LOCAL, "agent=silent", NULL);
    rig_run_ms(_i * 4);
    one.vm = (char *)"web01";
    one.epoch = 5;
    body.n_vms = 1;
    body.vms = list;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_FENCE;
    env.order_fence = &body;
    ck_done_ok(rig_order(1, &env));
    ck_done_ok(rig_start(1, "web01", 6, LOCAL, "x", NULL));
    ck_assert_int_eq(rig_pid_of(1, "agent.pid"), agent); /* it ends when it sees two epochs at a time */
}
END_TEST

/* Whoever waits for that memory is told: an agent that waits for ever refuses every later epoch. */
START_TEST(the_next_epoch_starts_after_one_that_was_forgotten_while_its_memory_was_made)
{
    bool made = true;
    uint64_t epoch;
    char ram[32];
    long agent;

    rig->nodes[1].memory_mib = 1100;
    rig_keeper_start(1);
    ck_done_ok(rig_start(1, "other", 1, NONE, "x", NULL)); /* so the agent is there */
    agent = rig_pid_of(1, "agent.pid");
    rig->vm_memory_mib = 200; /* making it takes longer than the two orders, mostly */
    for (epoch = 5; made && epoch < 25; epoch++) {
        snprintf(ram, sizeof(ram), "web01.e%u.ram", (unsigned)epoch);
        rig_start_send(1, "web01", epoch, LOCAL, "agent=silent", NULL);
        for (int i = 0; i < 1000 && !rig_file_there(1, ram); i++)
            rig_run_ms(1);
        ck_done_ok(rig_fence(1, "web01", epoch));
        ck_done_ok(rig_forget(1, "web01", epoch));
        made = !rig_file_there(1, ram);
    }
    ck_assert(!made); /* of one try */
    rig->vm_memory_mib = 4;
    ck_done_ok(rig_start(1, "web01", epoch, LOCAL, "x", NULL));
    ck_assert_int_eq(rig_pid_of(1, "agent.pid"), agent); /* it ends when it sees two epochs at a time */
}
END_TEST

START_TEST(forget_drops_memory_and_slot_of_what_is_fenced_only)
{
    rig_keeper_start(1);
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "x", NULL));
    ck_done_err(rig_forget(1, "web01", 5), EBUSY, "fence it first");
    ck_done_ok(rig_forget(1, "web01", 4)); /* nothing so old here */
    ck_done_ok(rig_fence(1, "web01", 5));
    ck_done_ok(rig_forget(1, "web01", 5));
    ck_assert_int_eq(rig_slot(1, "web01", 5, &(struct mst_vm_slot){0}), -1);
    ck_assert(!rig_file_there(1, "web01.e5.ram") && !rig_file_there(1, "web01.e5.delta"));
    ck_done_ok(rig_forget(1, "web01", 5));
    ck_assert_uint_eq(rig_memory_used(1), 0);
}
END_TEST

/* --- faults --- */

static bool has_report(void *arg)
{
    return rig->nodes[*(unsigned *)arg].report_count > 0;
}

static bool has_spoken(void *arg)
{
    struct mst_vm_slot info;

    (void)arg;
    return rig_slot(1, "web01", 5, &info) >= 0 && info.console_bytes > 0;
}

START_TEST(a_qemu_that_ends_is_reported_with_its_last_words)
{
    static struct mst_status_area area;
    const Mainstay__FaultReport *report;
    struct mst_vm_slot info;
    unsigned node = 1;
    int slot;

    rig_keeper_start(1);
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "words", NULL));
    ck_assert(rig_until(has_spoken, NULL, 10000));
    ck_assert_int_eq(kill((pid_t)rig_pid_of(1, "vm/web01/qemu.pid"), SIGKILL), 0);
    ck_assert(rig_until(has_report, &node, 5000));
    report = rig->nodes[1].reports[0]->fault_report;
    ck_assert_int_eq(report->kind, MAINSTAY__FAULT_KIND__FAULT_VM_EXITED);
    ck_assert_str_eq(report->node, "n1");
    ck_assert_str_eq(report->vm, "web01");
    ck_assert_uint_eq(report->epoch, 5);
    ck_assert_uint_eq(report->instance, rig->nodes[1].instance);
    ck_assert_ptr_nonnull(strstr(report->text, "signal 9 (Killed): fake-qemu words"));
    slot = rig_slot(1, "web01", 5, &info);
    ck_assert_int_ge(slot, 0);
    ck_assert_uint_eq(info.run_state, MST_RUN_DEAD);
    ck_assert_uint_eq(info.fault_kind, MAINSTAY__FAULT_KIND__FAULT_VM_EXITED);
    rig_status(1, &area);
    ck_assert_uint_eq(area.beat.vm_fault_flags, UINT64_C(1) << slot);
    ck_assert(rig_file_there(1, "web01.e5.shadow"));
    ck_done_err(rig_start(1, "web01", 5, LOCAL, "x", NULL), ESTALE, "has run and ended");
    ck_done_ok(rig_fence(1, "web01", 5));
    rig_status(1, &area);
    ck_assert_uint_eq(area.beat.vm_fault_flags, 0);
}
END_TEST

START_TEST(reports_wait_for_the_coordinator)
{
    unsigned node = 1;

    rig_keeper_start(1);
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "x", NULL));
    rig_coordinator_down();
    ck_assert_int_eq(kill((pid_t)rig_pid_of(1, "vm/web01/qemu.pid"), SIGKILL), 0);
    rig_wait_state(1, "web01", 5, MST_RUN_DEAD);
    rig_coordinator_up();
    ck_assert(rig_until(has_report, &node, 5000));
    ck_assert_uint_eq(rig->nodes[1].report_count, 1);
    ck_assert_uint_eq(rig->nodes[1].hello->hello->n_held, 1);
    ck_assert_uint_eq(rig->nodes[1].hello->hello->held[0]->run_state, MST_RUN_DEAD);
    ck_assert_uint_eq(rig->nodes[1].hello->hello->held[0]->save_seq, 2);
}
END_TEST

static bool has_two_reports(void *arg)
{
    return ((struct rig_node *)arg)->report_count == 2;
}

START_TEST(a_report_there_was_no_room_for_comes_again_on_the_same_link)
{
    static const int errors[] = {ENOBUFS, EBUSY};
    struct rig_node *node = &rig->nodes[1];
    unsigned number = 1;

    rig_keeper_start(1);
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "x", NULL));
    ck_assert_int_eq(kill((pid_t)rig_pid_of(1, "vm/web01/qemu.pid"), SIGKILL), 0);
    ck_assert(rig_until(has_report, &number, 5000));
    rig_report_answer(1, 0, errors[_i]);
    ck_assert(rig_until(has_two_reports, node, 10000));
    ck_assert_int_eq(node->reports[1]->fault_report->kind, MAINSTAY__FAULT_KIND__FAULT_VM_EXITED);
    rig_report_answer(1, 1, 0);
    rig_run_ms(6000); /* and then no more */
    ck_assert_uint_eq(node->report_count, 2);
}
END_TEST

static bool fault_is(void *arg)
{
    struct mst_vm_slot info;

    return rig_slot(1, "web01", 5, &info) >= 0 && info.fault_kind == *(uint32_t *)arg;
}

static bool is_linked(void *arg)
{
    return ((struct rig_node *)arg)->link != NULL;
}

/* A coordinator that takes it for news rolls back a VM that is well. _i 1: it stays silent. */
START_TEST(a_silence_that_was_taken_back_is_not_reported_any_more)
{
    uint32_t kind = MAINSTAY__FAULT_KIND__FAULT_VM_SILENT;

    rig_keeper_start(1);
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "x", NULL));
    rig_coordinator_down();
    rig_agent_tell(1, "silent", true);
    ck_assert(rig_until(fault_is, &kind, 5000));
    kind = MAINSTAY__FAULT_KIND__FAULT_NONE;
    if (_i == 0) {
        rig_agent_tell(1, "answers", true);
        ck_assert(rig_until(fault_is, &kind, 5000));
    }
    rig_coordinator_up();
    ck_assert(rig_until(is_linked, &rig->nodes[1], 5000));
    ck_done_ok(rig_forget(1, "never", 1)); /* reports come before its answer: they are sent at the Welcome */
    ck_assert_uint_eq(rig->nodes[1].report_count, (unsigned)_i);
}
END_TEST

struct agent_wait {
    long not_pid;
};

static bool agent_is_new(void *arg)
{
    static struct mst_status_area area;
    const struct agent_wait *w = arg;
    long pid = rig_pid_of(1, "agent.pid");

    rig_status(1, &area);
    return pid && pid != w->not_pid && rig_alive(pid) && area.beat.agent_state == MST_AGENT_UP;
}

START_TEST(a_vm_lives_through_the_death_of_its_agent)
{
    struct agent_wait w;
    Mainstay__OrderRestartAgent body = MAINSTAY__ORDER_RESTART_AGENT__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    long pid;

    rig_keeper_start(1);
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "x", NULL));
    pid = rig_pid_of(1, "vm/web01/qemu.pid");
    w.not_pid = rig_pid_of(1, "agent.pid");
    if (_i == 0) {
        ck_assert_int_eq(kill((pid_t)w.not_pid, SIGKILL), 0);
    } else { /* it hangs, and the coordinator orders it restarted */
        ck_assert_int_eq(kill((pid_t)w.not_pid, SIGSTOP), 0);
        env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_RESTART_AGENT;
        env.order_restart_agent = &body;
        ck_done_ok(rig_order(1, &env));
    }
    ck_assert(rig_until(agent_is_new, &w, 10000));
    ck_assert(!rig_alive(w.not_pid));
    ck_assert_int_eq(rig_pid_of(1, "vm/web01/qemu.pid"), pid);
    ck_assert(rig_alive(pid));
}
END_TEST

static bool next_agent_knows(void *arg)
{
    return rig_pid_of(1, "agent-vms") == *(long *)arg;
}

START_TEST(the_next_agent_is_told_of_all_vms_when_that_does_not_fit_one_message)
{
    char append[2001], kernel[4001], name[16];
    long count = 12;

    memset(append, 'x', sizeof(append) - 1);
    memset(kernel, 'k', sizeof(kernel) - 1);
    append[sizeof(append) - 1] = kernel[sizeof(kernel) - 1] = '\0';
    kernel[0] = '/';
    rig->kernel = kernel;
    rig->nodes[1].memory_mib = 500;
    rig_keeper_start(1);
    for (long i = 0; i < count; i++) {
        snprintf(name, sizeof(name), "web%02ld", i);
        ck_done_ok(rig_start(1, name, 5, NONE, append, NULL));
    }
    ck_assert_int_eq(kill((pid_t)rig_pid_of(1, "agent.pid"), SIGKILL), 0);
    ck_assert(rig_until(next_agent_knows, &count, 10000));
}
END_TEST

/* Its successor begins anew, and what the dead one had asked for is ended instead of standing in the way. */
START_TEST(a_start_is_begun_anew_when_its_agent_dies_during_the_pull)
{
    Mainstay__SaveSource source;

    rig_keeper_start(1);
    rig->nodes[2].instance = 77; /* no such node is there: it is waited for */
    source = source_of(2, 5);
    rig_start_send(1, "web01", 6, LOCAL, "x", &source);
    for (int i = 0; i < 500 && !rig_file_there(1, "web01.e6.delta"); i++)
        rig_run_ms(10);
    rig_run_ms(500); /* of 5 s */
    rig_agent_tell(1, "drop-first", true);
    ck_assert_int_eq(kill((pid_t)rig_pid_of(1, "agent.pid"), SIGKILL), 0);
    ck_assert_int_eq(rig_order_wait(1, 20000)->error, ENOTCONN); /* of the second pull */
    ck_assert_uint_eq(rig_memory_used(1), 0);
}
END_TEST

#ifdef MST_FAULT_POINTS
/* _i: what does not reach the agent: the order, that its memory is there. */
START_TEST(an_agent_that_something_did_not_reach_is_replaced)
{
    char after[PATH_MAX], point[32];

    snprintf(after, sizeof(after), "%s/lose", rig->nodes[1].run_dir);
    snprintf(point, sizeof(point), "agent.send:%d", _i);
    setenv("MST_FAULT", point, 1);
    setenv("MST_FAULT_AFTER", after, 1);
    rig_keeper_start(1);
    ck_done_ok(rig_start(1, "other", 1, NONE, "x", NULL)); /* so the agent is there */
    rig_agent_tell(1, "lose", true);
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "x", NULL));
}
END_TEST
#endif

START_TEST(an_order_goes_on_with_the_next_agent)
{
    rig_keeper_start(1);
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "agent=die", NULL));
    ck_assert(rig_alive(rig_pid_of(1, "vm/web01/qemu.pid")));
}
END_TEST

START_TEST(a_fault_record_is_written_into_main_storage)
{
    static struct mst_status_area area;
    struct mst_fault_entry list[4];
    Mainstay__OrderRecordFault body = MAINSTAY__ORDER_RECORD_FAULT__INIT;
    Mainstay__FaultReport report = MAINSTAY__FAULT_REPORT__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    rig_keeper_start(1);
    report.kind = MAINSTAY__FAULT_KIND__FAULT_AGENT_SILENT;
    report.node = (char *)"n1";
    report.text = (char *)"agent silent for 3 s";
    body.fault_id = 77;
    body.report = &report;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_RECORD_FAULT;
    env.order_record_fault = &body;
    ck_done_ok(rig_order(1, &env));
    rig_status(1, &area);
    ck_assert_uint_eq(mst_fault_log_list(area.faults, list, 4), 1);
    ck_assert_uint_eq(list[0].fault_id, 77);
    ck_assert_str_eq(list[0].text, "agent silent for 3 s");
}
END_TEST

/* --- console --- */

static const Mainstay__Done *console(const char *vm, uint64_t from, bool follow)
{
    Mainstay__OrderConsole body = MAINSTAY__ORDER_CONSOLE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.vm = (char *)vm;
    body.has_from = 1;
    body.from = from;
    body.has_follow = 1;
    body.follow = follow;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_CONSOLE;
    env.order_console = &body;
    rig_order_send(1, &env);
    return follow ? NULL : rig_order_wait(1, 5000);
}

START_TEST(the_console_is_sent_from_an_offset_and_followed)
{
    struct rig_node *node = &rig->nodes[1];
    char first[64];
    size_t len;

    rig_keeper_start(1);
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "x", NULL));
    rig_run_ms(300);
    ck_done_ok(console("web01", 0, false));
    ck_assert_int_eq(strncmp(node->console, "beat 1\nbeat 2\n", 14), 0);
    memcpy(first, node->console + 7, 7);
    node->console_bytes = 0;
    ck_done_ok(console("web01", 7, false));
    ck_assert_int_eq(memcmp(node->console, first, 7), 0);
    node->console_bytes = 0;
    console("web01", 0, true);
    ck_assert(rig_until(console_beats, node, 5000));
    len = node->console_bytes;
    rig_run_ms(500);
    ck_assert_uint_gt(node->console_bytes, len);
    node->console[node->console_bytes] = '\0';
    for (int n = 1; n < 8; n++) {
        snprintf(first, sizeof(first), "beat %d\n", n);
        ck_assert_ptr_nonnull(strstr(node->console, first));
    }
    ck_assert_int_eq(console("nobody", 0, false)->error, ENOENT);
}
END_TEST

/* Their VMs have no slot any more: they keep no place from one that has. */
START_TEST(a_console_is_followed_however_many_were_whose_vms_are_gone)
{
    struct rig_node *node = &rig->nodes[1];
    char name[16];
    long agent;

    rig_keeper_start(1);
    ck_done_ok(rig_start(1, "web01", 5, NONE, "x", NULL));
    agent = rig_pid_of(1, "agent.pid");
    ck_assert_int_eq(kill((pid_t)agent, SIGSTOP), 0); /* a slot will do for these */
    for (int i = 0; i < 128; i++) {
        snprintf(name, sizeof(name), "gone%03d", i);
        rig_start_send(1, name, 5, NONE, "x", NULL);
        console(name, 0, true);
        ck_done_ok(rig_fence(1, name, 5));
        ck_done_ok(rig_forget(1, name, 5));
    }
    node->console_bytes = 0;
    console("web01", UINT32_MAX, true); /* what it says from now on */
    ck_assert(rig_until(console_beats, node, 5000));
    ck_assert_int_eq(kill((pid_t)agent, SIGCONT), 0);
}
END_TEST

static bool has_flooded(void *unused)
{
    struct mst_vm_slot info;

    (void)unused;
    return rig_slot(1, "web01", 5, &info) >= 0 && info.console_bytes > 2u << 20;
}

START_TEST(a_guest_that_floods_its_console_stops_nothing)
{
    struct mst_beat_line first = {0};
    static struct mst_status_area area;

    rig_keeper_start(1);
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "qemu=loud", NULL));
    console("web01", 0, true);
    ck_assert(rig_until(has_flooded, NULL, 30000));
    rig_status(1, &area);
    first = area.beat;
    ck_assert(rig_until(beats, &first, 2000));
    ck_assert(rig_file_there(1, "../n1/vm/web01/console.log.1")); /* it was moved aside */
    ck_done_ok(rig_fence(1, "web01", 5));
}
END_TEST

/* --- save, pull --- */

static void save_send(unsigned node, const char *vm, uint64_t epoch)
{
    Mainstay__OrderSave body = MAINSTAY__ORDER_SAVE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    body.vm = (char *)vm;
    body.epoch = epoch;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_SAVE;
    env.order_save = &body;
    rig_order_send(node, &env);
}

static const Mainstay__Done *save(unsigned node, const char *vm, uint64_t epoch)
{
    save_send(node, vm, epoch);
    return rig_order_wait(node, 20000);
}

START_TEST(the_next_agent_gets_open_orders_in_the_order_they_were_given)
{
    Mainstay__OrderContinue body = MAINSTAY__ORDER_CONTINUE__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    char path[256], orders[64];
    FILE *file;
    size_t n;

    rig_keeper_start(1);
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "x", NULL));
    ck_assert_int_eq(kill((pid_t)rig_pid_of(1, "agent.pid"), SIGSTOP), 0);
    body.vm = (char *)"web01";
    body.epoch = 5;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_CONTINUE;
    env.order_continue = &body;
    rig_order_send(1, &env);
    save_send(1, "web01", 5);
    rig_run_ms(200);
    ck_assert_int_eq(kill((pid_t)rig_pid_of(1, "agent.pid"), SIGKILL), 0);
    (void)rig_order_wait(1, 20000);
    snprintf(path, sizeof(path), "%s/agent-orders", rig->nodes[1].run_dir);
    file = fopen(path, "r");
    ck_assert_ptr_nonnull(file);
    n = fread(orders, 1, sizeof(orders) - 1, file);
    orders[n] = '\0';
    fclose(file);
    ck_assert_str_eq(orders, "continue\nsave\n");
}
END_TEST

static void same_ram(unsigned from, const char *from_name, unsigned to, const char *to_name)
{
    size_t a_bytes, b_bytes;
    uint8_t *a = rig_map(from, from_name, &a_bytes), *b = rig_map(to, to_name, &b_bytes);

    ck_assert_uint_eq(a_bytes, b_bytes);
    ck_assert_int_eq(memcmp(a, b, a_bytes), 0);
    munmap(a, a_bytes);
    munmap(b, b_bytes);
}

static void both_up(void)
{
    rig_keeper_start(1);
    rig_keeper_start(2);
}

START_TEST(a_save_is_pulled_from_another_node_byte_for_byte)
{
    Mainstay__SaveSource source;
    const Mainstay__Done *done;

    both_up();
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "x", NULL));
    if (_i == 1)
        ck_done_ok(save(1, "web01", 5)); /* the RAM itself, with the guest stopped */
    ck_done_ok(rig_fence(1, "web01", 5));
    source = source_of(1, 5);
    if (_i == 2)
        rig_keeper_signal(1, SIGSTOP); /* its memory is there, its software is not */
    done = rig_start(2, "web01", 6, LOCAL, "x", &source);
    ck_done_ok(done);
    ck_assert_int_eq(done->start->method,
                     _i == 1 ? MAINSTAY__METHOD__METHOD_PULLED_LIVE : MAINSTAY__METHOD__METHOD_PULLED_SHADOW);
    ck_assert_uint_eq(done->start->save_epoch, 5);
    ck_assert_uint_eq(done->start->save_seq, _i == 1 ? 3 : 2);
    ck_assert_uint_gt(done->start->bytes_pulled, 4u << 20);
    ck_assert_uint_lt(done->start->bytes_pulled, 5u << 20);
}
END_TEST

/* Large enough that worker threads register its memory, here and there. */
START_TEST(a_large_vm_is_pulled_too)
{
    Mainstay__SaveSource source;
    const Mainstay__Done *done;

    rig->vm_memory_mib = 260;
    rig->nodes[1].memory_mib = rig->nodes[2].memory_mib = 700;
    both_up();
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "x", NULL));
    ck_done_ok(rig_fence(1, "web01", 5));
    source = source_of(1, 5);
    done = rig_start(2, "web01", 6, LOCAL, "x", &source);
    ck_done_ok(done);
    ck_assert_uint_gt(done->start->bytes_pulled, 260u << 20);
    ck_done_ok(rig_forget(1, "web01", 5));
    if (_i) { /* the peer that had it registered goes away */
        rig_keeper_signal(2, SIGKILL);
        rig_keeper_wait(2, 5000);
    }
    ck_assert_uint_eq(rig_memory_used(1), 0);
}
END_TEST

START_TEST(a_peer_that_goes_while_memory_is_registered_for_it_leaves_nothing_behind)
{
    rig->vm_memory_mib = 260;
    rig->nodes[1].memory_mib = 700;
    both_up();
    rig_start_send(1, "web01", 5, LOCAL, "x", NULL);
    rig_wait_state(1, "web01", 5, MST_RUN_STARTING);
    for (int i = 0; i < 500 && !rig_file_there(1, "web01.e5.delta"); i++)
        rig_run_ms(5);
    rig_run_ms(_i * 10);
    rig_keeper_signal(2, SIGKILL);
    rig_keeper_wait(2, 5000);
    ck_done_ok(rig_order_wait(1, 20000));
    ck_done_ok(rig_fence(1, "web01", 5));
    ck_done_ok(rig_forget(1, "web01", 5));
    ck_assert_uint_eq(rig_memory_used(1), 0);
}
END_TEST

START_TEST(what_was_pulled_is_the_memory_of_the_save)
{
    Mainstay__SaveSource source;

    both_up();
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "x", NULL));
    ck_done_ok(rig_fence(1, "web01", 5));
    source = source_of(1, 5);
    /* without an agent that goes on to write: it is told to do nothing after the spawn, and QEMU only beats */
    rig_start_send(2, "web01", 6, NONE, "agent=silent", &source);
    rig_wait_state(2, "web01", 6, MST_RUN_STARTING);
    for (int i = 0; i < 200 && !rig_pid_of(2, "vm/web01/qemu.pid"); i++)
        rig_run_ms(20);
    same_ram(1, "web01.e5.ram", 2, "web01.e6.ram"); /* the RAM of epoch 5 has not changed since its second checkpoint */
    ck_done_ok(rig_fence(2, "web01", 6));
}
END_TEST

START_TEST(a_disk_in_main_storage_goes_where_the_memory_goes)
{
    Mainstay__SaveSource source;
    const Mainstay__Done *done;

    rig->vm_disk_mib = 2;
    both_up();
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "x", NULL));
    ck_assert(rig_file_there(1, "web01.e5.disk"));
    ck_done_ok(rig_fence(1, "web01", 5));
    if (_i) { /* the next keeper finds both files */
        rig_keeper_signal(1, SIGKILL);
        rig_keeper_wait(1, 5000);
        rig_keeper_start(1);
        ck_assert_uint_eq(rig->nodes[1].hello->hello->n_held, 1);
        ck_assert(rig_file_there(1, "web01.e5.disk"));
    }
    source = source_of(1, 5);
    done = rig_start(2, "web01", 6, LOCAL, "x", &source);
    ck_done_ok(done);
    ck_assert_uint_gt(done->start->bytes_pulled, 6u << 20);
    same_ram(1, "web01.e5.disk", 2, "web01.e6.disk"); /* the fake agent changes its RAM only */
    ck_done_ok(rig_forget(1, "web01", 5));
    ck_assert(!rig_file_there(1, "web01.e5.ram") && !rig_file_there(1, "web01.e5.disk"));
    ck_assert_uint_eq(rig_memory_used(1), 0);
}
END_TEST

/* _i 0: it is not made at all, and what is saved is the RAM itself; 1: it is made behind the start. */
START_TEST(a_vm_runs_before_its_shadow_is_made_and_its_save_outlives_the_keeper)
{
    Mainstay__SaveSource source;
    const Mainstay__Done *done;
    struct mst_vm_slot info;

    both_up();
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, _i ? "agent=rest" : "agent=first", NULL));
    ck_assert_int_ge(rig_slot(1, "web01", 5, &info), 0);
    ck_assert_uint_eq(info.ram_bytes, 4u << 20);
    ck_assert_uint_eq(info.shadow_bytes, _i ? 4u << 20 : 0);
    ck_assert_int_eq(info.delta_bytes != 0, _i);
    ck_assert_int_eq(rig_file_there(1, "web01.e5.shadow"), _i);
    ck_assert_uint_ge(rig_memory_used(1), 8u << 20); /* taken for both, whether they are made or not */
    rig_keeper_signal(1, SIGKILL);
    rig_keeper_wait(1, 5000);
    rig_keeper_start(1);
    ck_done_ok(rig_fence(1, "web01", 5));
    source = source_of(1, 5);
    done = rig_start(2, "web01", 6, LOCAL, "x", &source);
    ck_done_ok(done);
    ck_assert_int_eq(done->start->method, _i ? MAINSTAY__METHOD__METHOD_PULLED_SHADOW : MAINSTAY__METHOD__METHOD_PULLED_LIVE);
    ck_done_ok(rig_forget(1, "web01", 5));
    ck_assert_uint_eq(rig_memory_used(1), 0);
}
END_TEST

START_TEST(a_save_is_resumed_in_place_from_the_older_epoch)
{
    Mainstay__SaveSource source;
    const Mainstay__Done *done;

    rig_keeper_start(1);
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "x", NULL));
    ck_assert_int_eq(kill((pid_t)rig_pid_of(1, "vm/web01/qemu.pid"), SIGKILL), 0);
    rig_wait_state(1, "web01", 5, MST_RUN_DEAD);
    source = source_of(1, 5);
    ck_done_ok(rig_fence(1, "web01", 5));
    done = rig_start(1, "web01", 6, LOCAL, "x", &source);
    ck_done_ok(done);
    ck_assert_int_eq(done->start->method, MAINSTAY__METHOD__METHOD_RESUMED_IN_PLACE);
    ck_assert_uint_eq(done->start->bytes_pulled, 0);
    ck_done_ok(rig_forget(1, "web01", 5));
    ck_assert(!rig_file_there(1, "web01.e5.ram"));
    ck_assert(rig_file_there(1, "web01.e6.ram"));
    ck_assert(rig_alive(rig_pid_of(1, "vm/web01/qemu.pid")));
}
END_TEST

static void damage(const char *name, uint64_t offset)
{
    size_t bytes;
    uint8_t *data = rig_map(1, name, &bytes);

    data[offset] ^= 0x10;
    munmap(data, bytes);
}

/* One bit anywhere in the save of node 1: the pull says where, and node 2 is left as before. */
START_TEST(a_damaged_save_is_never_resumed)
{
    static const struct {
        const char *file, *says;
        uint64_t offset;
    } rows[] = {
        {"web01.e5.shadow", "ram: page 100 ", 100 * 4096 + 17},
        {"web01.e5.save", "device state", 2u << 20}, /* the device slot of the second checkpoint */
        {"web01.e5.delta", "delta", 64u << 10},
        {"web01.e5.delta", "delta table", 0},
    };
    struct mst_delta_layout layout;
    Mainstay__SaveSource source;
    struct mst_save_layout save_layout;
    uint64_t offset = rows[_i].offset;

    both_up();
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "x", NULL));
    ck_done_ok(rig_fence(1, "web01", 5));
    ck_assert_int_eq(mst_delta_layout(mst_delta_capacity(4u << 20), &layout), 0);
    ck_assert_int_eq(mst_save_layout(4u << 20, &save_layout), 0);
    if (_i == 1) {
        damage(rows[_i].file, save_layout.device_off[0] + 3);
        offset = save_layout.device_off[1] + 3;
    }
    if (_i == 2)
        offset = layout.data_off + UINT64_C(2) * 4096 + 5;
    if (_i == 3)
        offset = layout.table_off;
    damage(rows[_i].file, offset);
    source = source_of(1, 5);
    ck_done_err(rig_start(2, "web01", 6, LOCAL, "x", &source), EUCLEAN, rows[_i].says);
    ck_assert_int_eq(rig_slot(2, "web01", 6, &(struct mst_vm_slot){0}), -1);
    ck_assert_uint_eq(rig_memory_used(2), 0);
    damage(rows[_i].file, offset); /* repaired: the same order now works */
    if (_i == 1)
        damage(rows[_i].file, save_layout.device_off[0] + 3);
    ck_done_ok(rig_start(2, "web01", 6, LOCAL, "x", &source));
}
END_TEST

/* A page that the delta replaces may be torn in the shadow: that is what the delta is for. */
START_TEST(a_torn_shadow_page_under_the_delta_does_not_matter)
{
    Mainstay__SaveSource source;

    both_up();
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "x", NULL));
    ck_done_ok(rig_fence(1, "web01", 5));
    damage("web01.e5.shadow", 7 * 4096 + 100);
    source = source_of(1, 5);
    ck_done_ok(rig_start(2, "web01", 6, LOCAL, "x", &source));
}
END_TEST

START_TEST(a_source_that_is_not_what_was_ordered_is_refused)
{
    Mainstay__SaveSource source;

    both_up();
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "x", NULL));
    ck_done_ok(rig_fence(1, "web01", 5));
    source = source_of(1, 5);
    if (_i == 0) {
        source.has_min_seq = 1;
        source.min_seq = 3;
        ck_done_err(rig_start(2, "web01", 6, LOCAL, "x", &source), ESTALE, "older than 3");
    } else if (_i == 1) {
        source.instance++;
        ck_done_err(rig_start(2, "web01", 6, LOCAL, "x", &source), ESTALE, "instance");
    } else if (_i == 2) {
        source.epoch = 4;
        ck_done_err(rig_start(2, "web01", 6, LOCAL, "x", &source), ENOENT, "holds no epoch 4");
    } else {
        source.node_id = 9;
        ck_done_err(rig_start(2, "web01", 6, LOCAL, "x", &source), ENOTCONN, "9");
    }
    ck_assert_uint_eq(rig_memory_used(2), 0);
}
END_TEST

START_TEST(a_source_that_dies_fails_the_pull_and_leaves_nothing)
{
    Mainstay__SaveSource source;

    both_up();
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "x", NULL));
    source = source_of(1, 5);
    rig_keeper_signal(1, SIGKILL);
    rig_keeper_wait(1, 5000);
    ck_assert_int_eq(rig_start(2, "web01", 6, LOCAL, "x", &source)->error, ENOTCONN);
    ck_assert_uint_eq(rig_memory_used(2), 0);
}
END_TEST

/* --- the keeper's own death --- */

START_TEST(a_restarted_keeper_proves_its_vms_dead_and_keeps_their_saves)
{
    const Mainstay__Hello *hello;
    Mainstay__SaveSource source;
    uint64_t first;
    long pid;

    both_up();
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "x", NULL));
    ck_done_ok(rig_start(1, "nosave", 2, LOCAL, "x", NULL));
    first = rig->nodes[1].instance;
    pid = rig_pid_of(1, "vm/web01/qemu.pid");
    {
        static struct mst_status_area *area;
        size_t bytes;

        area = (void *)rig_map(1, "status", &bytes); /* the second VM's record is damaged */
        memset(area->vms[1].save, 0xff, sizeof(area->vms[1].save));
        munmap(area, bytes);
    }
    rig_keeper_signal(1, SIGKILL);
    rig_keeper_wait(1, 5000);
    rig_keeper_start(1);
    ck_assert(!rig_alive(pid));
    hello = rig->nodes[1].hello->hello;
    ck_assert_uint_ne(hello->instance, first);
    ck_assert(hello->earlier_vms_dead);
    ck_assert_uint_eq(hello->n_held, 1);
    ck_assert_str_eq(hello->held[0]->vm, "web01");
    ck_assert_uint_eq(hello->held[0]->epoch, 5);
    ck_assert_uint_eq(hello->held[0]->run_state, MST_RUN_DEAD);
    ck_assert_uint_eq(hello->held[0]->save_seq, 2);
    ck_assert(!rig_file_there(1, "nosave.e2.ram"));
    ck_done_err(rig_start(1, "web01", 5, LOCAL, "x", NULL), ESTALE, "fenced");
    source = source_of(1, 5);
    ck_done_ok(rig_start(_i ? 2 : 1, "web01", 6, LOCAL, "x", &source)); /* in place, or by the other node */
}
END_TEST

START_TEST(a_keeper_that_is_told_to_stop_ends_its_vms_and_leaves_their_saves)
{
    long pid;

    rig_keeper_start(1);
    ck_done_ok(rig_start(1, "web01", 5, LOCAL, "x", NULL));
    pid = rig_pid_of(1, "vm/web01/qemu.pid");
    rig_keeper_signal(1, SIGTERM);
    ck_assert_int_eq(rig_keeper_wait(1, 15000), 0);
    ck_assert(!rig_alive(pid));
    rig_keeper_start(1);
    ck_assert_uint_eq(rig->nodes[1].hello->hello->n_held, 1);
}
END_TEST

static void add_tests(TCase *tc)
{
    tcase_add_test(tc, a_keeper_joins_and_beats);
    tcase_add_test(tc, a_second_keeper_on_the_same_node_does_not_start);
    tcase_add_test(tc, the_watch_link_gets_keys_that_open_status_and_grant_area);
    tcase_add_test(tc, a_coordinator_that_opens_more_watch_links_than_it_needs_loses_the_oldest);
    tcase_add_loop_test(tc, a_stranger_gets_neither_a_watch_nor_a_pull_link, 0, 2);
    tcase_add_test(tc, a_start_runs_the_vm_and_asked_again_answers_the_same);
    tcase_add_test(tc, an_order_of_another_instance_or_an_older_term_is_refused);
    tcase_add_test(tc, a_vm_that_does_not_fit_is_refused_with_numbers_and_leaves_nothing);
    tcase_add_loop_test(tc, a_start_that_fails_leaves_no_process_and_no_memory, 0, 3);
    tcase_add_test(tc, a_definition_beyond_the_limits_is_refused);
    tcase_add_loop_test(tc, a_fence_proves_the_vm_gone_keeps_its_memory_and_bars_its_epoch, 0, 3);
    tcase_add_test(tc, a_fence_of_an_unknown_vm_is_answered_and_remembered);
    tcase_add_loop_test(tc, a_fence_ends_a_start_that_is_under_way, 0, 5);
    tcase_add_loop_test(tc, the_next_epoch_starts_after_a_fence_at_any_moment_of_the_one_before, 0, 10);
    tcase_add_test(tc, the_next_epoch_starts_after_one_that_was_forgotten_while_its_memory_was_made);
    tcase_add_test(tc, forget_drops_memory_and_slot_of_what_is_fenced_only);
    tcase_add_test(tc, a_qemu_that_ends_is_reported_with_its_last_words);
    tcase_add_test(tc, reports_wait_for_the_coordinator);
    tcase_add_loop_test(tc, a_report_there_was_no_room_for_comes_again_on_the_same_link, 0, 2);
    tcase_add_loop_test(tc, a_silence_that_was_taken_back_is_not_reported_any_more, 0, 2);
    tcase_add_loop_test(tc, a_vm_lives_through_the_death_of_its_agent, 0, 2);
    tcase_add_test(tc, the_next_agent_is_told_of_all_vms_when_that_does_not_fit_one_message);
    tcase_add_test(tc, a_start_is_begun_anew_when_its_agent_dies_during_the_pull);
#ifdef MST_FAULT_POINTS
    tcase_add_loop_test(tc, an_agent_that_something_did_not_reach_is_replaced, 1, 3);
#endif
    tcase_add_test(tc, an_order_goes_on_with_the_next_agent);
    tcase_add_test(tc, the_next_agent_gets_open_orders_in_the_order_they_were_given);
    tcase_add_test(tc, a_fault_record_is_written_into_main_storage);
    tcase_add_test(tc, the_console_is_sent_from_an_offset_and_followed);
    tcase_add_test(tc, a_console_is_followed_however_many_were_whose_vms_are_gone);
    tcase_add_test(tc, a_guest_that_floods_its_console_stops_nothing);
    tcase_add_loop_test(tc, a_save_is_pulled_from_another_node_byte_for_byte, 0, 3);
    tcase_add_loop_test(tc, a_large_vm_is_pulled_too, 0, 2);
    tcase_add_loop_test(tc, a_peer_that_goes_while_memory_is_registered_for_it_leaves_nothing_behind, 0, 4);
    tcase_add_test(tc, what_was_pulled_is_the_memory_of_the_save);
    tcase_add_loop_test(tc, a_disk_in_main_storage_goes_where_the_memory_goes, 0, 2);
    tcase_add_loop_test(tc, a_vm_runs_before_its_shadow_is_made_and_its_save_outlives_the_keeper, 0, 2);
    tcase_add_test(tc, a_save_is_resumed_in_place_from_the_older_epoch);
    tcase_add_loop_test(tc, a_damaged_save_is_never_resumed, 0, 4);
    tcase_add_test(tc, a_torn_shadow_page_under_the_delta_does_not_matter);
    tcase_add_loop_test(tc, a_source_that_is_not_what_was_ordered_is_refused, 0, 4);
    tcase_add_test(tc, a_source_that_dies_fails_the_pull_and_leaves_nothing);
    tcase_add_loop_test(tc, a_restarted_keeper_proves_its_vms_dead_and_keeps_their_saves, 0, 2);
    tcase_add_test(tc, a_keeper_that_is_told_to_stop_ends_its_vms_and_leaves_their_saves);
}

int main(void)
{
    Suite *suite = suite_create("node");
    TCase *tc = tcase_create("node");
    SRunner *runner;
    int failed;

    if (!rig_can_run()) {
        fprintf(stderr, "SKIPPED: cgroup v2 is not writable here, and a keeper fences with it\n");
        return 77;
    }
    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, rig_setup, rig_teardown);
    add_tests(tc);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    rig_sweep();
    return failed ? 1 : 0;
}
