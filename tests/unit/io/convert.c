#include "coordinator/io/convert.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint8_t frame[MST_MESSAGE_BYTES_MAX];
static struct mst_core *core;
static struct mst_definition def;
static struct mst_why why;

static void setup(void)
{
    struct mst_core_conf conf = {.nodes_count = 2, .node_starts_max = 4};
    struct mst_core_io io = {0};

    for (unsigned i = 0; i < 2; i++) {
        snprintf(conf.nodes[i].name, sizeof(conf.nodes[i].name), "n%u", i + 1);
        conf.nodes[i].id = 10 + i;
    }
    ck_assert_int_eq(mst_core_new(&conf, &io, &core), 0);
}

static void teardown(void)
{
    mst_core_free(core);
}

static Mainstay__VmDefinition message(void)
{
    Mainstay__VmDefinition m = MAINSTAY__VM_DEFINITION__INIT;

    m.name = (char *)"web01";
    m.memory_mib = 16;
    m.boot_kernel = (char *)"/boot/kernel";
    return m;
}

START_TEST(a_definition_keeps_what_planning_needs_and_the_whole_message)
{
    Mainstay__VmDefinition m = message();
    Mainstay__VmDefinition *back;
    char *names[] = {(char *)"n2"};

    m.has_protect = 1;
    m.protect = MAINSTAY__PROTECT__PROTECT_MIRROR;
    m.has_mirror_apart = 1;
    m.mirror_apart = MAINSTAY__MIRROR_APART__MIRROR_APART_RACK;
    m.has_on_vm_fault = 1;
    m.on_vm_fault = MAINSTAY__ON_FAULT__ON_FAULT_RESUME_ELSEWHERE;
    m.allowed_nodes = names;
    m.n_allowed_nodes = 1;
    ck_assert_msg(mst_convert_definition(&m, core, &def, &why) == 0, "%s", why.text);
    ck_assert_str_eq(def.name, "web01");
    ck_assert_uint_eq(def.vcpus, 1); /* default */
    ck_assert_uint_eq(def.priority, 10);
    ck_assert_uint_eq(def.protect, MST_PROTECT_MIRROR);
    ck_assert_uint_eq(def.mirror_apart, MST_MIRROR_APART_RACK);
    ck_assert_uint_eq(def.on_vm_fault, MST_ON_FAULT_RESUME_ELSEWHERE);
    ck_assert_uint_eq(def.allowed_count, 1);
    ck_assert_uint_eq(def.allowed[0], 11);
    back = mainstay__vm_definition__unpack(NULL, def.packed_bytes, def.packed);
    ck_assert_ptr_nonnull(back);
    ck_assert_str_eq(back->boot_kernel, "/boot/kernel");
    mainstay__vm_definition__free_unpacked(back, NULL);
}
END_TEST

START_TEST(a_disk_in_main_storage_is_planned_as_memory)
{
    Mainstay__VmDefinition m = message(), *back;
    Mainstay__VmDisk file = MAINSTAY__VM_DISK__INIT, memory = MAINSTAY__VM_DISK__INIT, *disks[] = {&file, &memory};

    file.path = (char *)"/tools";
    file.has_format = 1;
    memory.has_memory_mib = 1;
    memory.memory_mib = 48;
    m.has_protect = 1;
    m.protect = MAINSTAY__PROTECT__PROTECT_LOCAL;
    m.disks = disks;
    m.n_disks = 2;
    ck_assert_msg(mst_convert_definition(&m, core, &def, &why) == 0, "%s", why.text);
    ck_assert_uint_eq(def.memory_mib, 16 + 48);
    back = mainstay__vm_definition__unpack(NULL, def.packed_bytes, def.packed);
    ck_assert_uint_eq(back->memory_mib, 16);
    ck_assert_uint_eq(back->n_disks, 2);
    mainstay__vm_definition__free_unpacked(back, NULL);
    m.protect = MAINSTAY__PROTECT__PROTECT_NONE;
    ck_assert_int_eq(mst_convert_definition(&m, core, &def, &why), -EINVAL);
}
END_TEST

START_TEST(an_unknown_node_or_an_endless_command_line_is_refused)
{
    Mainstay__VmDefinition m = message();
    char *names[] = {(char *)"n7"};
    char *append = malloc(20000);

    m.allowed_nodes = names;
    m.n_allowed_nodes = 1;
    ck_assert_int_eq(mst_convert_definition(&m, core, &def, &why), -EINVAL);
    ck_assert_ptr_nonnull(strstr(why.text, "n7"));
    m = message();
    memset(append, 'a', 19999);
    append[19999] = 0;
    m.boot_append = append;
    ck_assert_int_lt(mst_convert_definition(&m, core, &def, &why), 0);
    free(append);
}
END_TEST

static mst_envelope *pack(const struct mst_order *order)
{
    mst_envelope *env = NULL;
    int n = mst_convert_order(order, "n1", frame, sizeof(frame));

    ck_assert_int_gt(n, 0);
    ck_assert_msg(mst_frame_unpack(frame, (size_t)n, &env, &why) == 0, "%s", why.text);
    ck_assert_uint_eq(env->id, order->token);
    ck_assert_uint_eq(env->instance, order->instance);
    ck_assert_uint_eq(env->term, order->term);
    ck_assert_uint_eq(env->decision, order->decision);
    return env;
}

START_TEST(every_order_reads_back_as_it_was_meant)
{
    Mainstay__VmDefinition m = message();
    struct mst_fault_row fault = {.id = 9, .kind = MST_FAULT_VM_EXITED, .vm = "web01", .epoch = 3, .reporter = "r", .text = "t"};
    struct mst_order order = {.type = MST_ORDER_START,
                              .token = 5,
                              .instance = 6,
                              .term = 7,
                              .decision = 15,
                              .vm = "web01",
                              .epoch = 8,
                              .definition = &def};
    mst_envelope *env;

    ck_assert_int_eq(mst_convert_definition(&m, core, &def, &why), 0);
    env = pack(&order);
    ck_assert_uint_eq(env->order_start->epoch, 8);
    ck_assert_str_eq(env->order_start->definition->name, "web01");
    ck_assert_ptr_null(env->order_start->source);
    mst_envelope_free(env);
    order.source = (struct mst_save_ref){.node_id = 11, .instance = 12, .epoch = 13, .seq = 14};
    order.source_node = "n2";
    env = pack(&order);
    ck_assert_uint_eq(env->order_start->source->node_id, 11);
    ck_assert_uint_eq(env->order_start->source->instance, 12);
    ck_assert_uint_eq(env->order_start->source->epoch, 13);
    ck_assert_uint_eq(env->order_start->source->min_seq, 14);
    mst_envelope_free(env);
    order.type = MST_ORDER_SAVE;
    env = pack(&order);
    ck_assert_uint_eq(env->order_save->epoch, 8);
    mst_envelope_free(env);
    order.type = MST_ORDER_CONTINUE;
    env = pack(&order);
    ck_assert_str_eq(env->order_continue->vm, "web01");
    mst_envelope_free(env);
    order.type = MST_ORDER_FORGET;
    env = pack(&order);
    ck_assert_uint_eq(env->order_forget->epoch, 8);
    mst_envelope_free(env);
    order.type = MST_ORDER_RESTART_AGENT;
    order.text = "hangs";
    env = pack(&order);
    ck_assert_str_eq(env->order_restart_agent->text, "hangs");
    mst_envelope_free(env);
    order.type = MST_ORDER_RECORD_FAULT;
    order.fault = &fault;
    env = pack(&order);
    ck_assert_uint_eq(env->order_record_fault->fault_id, 9);
    ck_assert_str_eq(env->order_record_fault->report->vm, "web01");
    mst_envelope_free(env);
}
END_TEST

START_TEST(every_order_about_a_mirror_reads_back_as_it_was_meant)
{
    Mainstay__VmDefinition m = message();
    struct mst_member peer = {.name = "n2", .id = 11, .address = "10.7.0.2", .port = 7471};
    struct mst_order order = {.type = MST_ORDER_MIRROR,
                              .token = 5,
                              .instance = 6,
                              .term = 7,
                              .decision = 15,
                              .vm = "web01",
                              .epoch = 8,
                              .definition = &def,
                              .peer = &peer,
                              .peer_instance = 9,
                              .peer_boot_id = {1, 2, 3},
                              .grant = {.log_id = 21, .mirror_instance = 22, .ring_bytes = 4096, .delta_capacity = 23},
                              .log_id = 24};
    mst_envelope *env;

    ck_assert_int_eq(mst_convert_definition(&m, core, &def, &why), 0);
    env = pack(&order);
    ck_assert_str_eq(env->order_mirror->definition->name, "web01");
    ck_assert_uint_eq(env->order_mirror->epoch, 8);
    ck_assert_str_eq(env->order_mirror->source->node, "n2");
    ck_assert_str_eq(env->order_mirror->source->address, "10.7.0.2");
    ck_assert_uint_eq(env->order_mirror->source->instance, 9);
    ck_assert_uint_eq(env->order_mirror->source_boot_id.data[2], 3);
    ck_assert_uint_eq(env->order_mirror->ring_bytes, 4096);
    mst_envelope_free(env);
    order.type = MST_ORDER_MIRROR_TO;
    env = pack(&order);
    ck_assert_uint_eq(env->order_mirror_to->mirror->node_id, 11);
    ck_assert_uint_eq(env->order_mirror_to->mirror->port, 7471);
    ck_assert_uint_eq(env->order_mirror_to->grant->log_id, 21);
    ck_assert_uint_eq(env->order_mirror_to->grant->mirror_instance, 22);
    ck_assert_uint_eq(env->order_mirror_to->grant->delta_capacity, 23);
    mst_envelope_free(env);
    order.type = MST_ORDER_MIRROR_SURE;
    env = pack(&order);
    ck_assert_uint_eq(env->order_mirror_sure->log_id, 24);
    mst_envelope_free(env);
    order.type = MST_ORDER_MIRROR_DROP;
    env = pack(&order);
    ck_assert_uint_eq(env->order_mirror_drop->epoch, 8);
    mst_envelope_free(env);
    order.type = MST_ORDER_MIRROR_REVOKE;
    env = pack(&order);
    ck_assert_str_eq(env->order_mirror_revoke->vm, "web01");
    mst_envelope_free(env);
    order.type = MST_ORDER_START;
    order.source = (struct mst_save_ref){.node_id = 11, .instance = 12, .epoch = 13, .seq = 14, .image = true};
    order.source_node = "n2";
    env = pack(&order);
    ck_assert(env->order_start->source->has_image && env->order_start->source->image);
    mst_envelope_free(env);
}
END_TEST

START_TEST(what_keepers_say_of_mirrors_arrives)
{
    Mainstay__Hello hello = MAINSTAY__HELLO__INIT;
    Mainstay__HeldVm held = MAINSTAY__HELD_VM__INIT, *list[] = {&held};
    Mainstay__HeldMirror mirror = MAINSTAY__HELD_MIRROR__INIT, *mirrors[] = {&mirror};
    Mainstay__MirrorState state = MAINSTAY__MIRROR_STATE__INIT;
    Mainstay__Done done = MAINSTAY__DONE__INIT;
    Mainstay__MirrorGrant grant = MAINSTAY__MIRROR_GRANT__INIT;
    Mainstay__ImageResult image = MAINSTAY__IMAGE_RESULT__INIT;
    struct mst_mirror_news news;
    struct mst_answer answer;
    static struct mst_hello got;

    hello.cluster = hello.node = hello.address = held.vm = (char *)"x";
    held.has_image_state = held.has_log_id = 1;
    held.image_state = 4;
    held.log_id = 5;
    mirror.node_id = 6;
    mirror.log_id = 7;
    mirror.phase = MAINSTAY__MIRROR_PHASE__MIRROR_SURE;
    mirror.acked_seq = 8;
    held.mirrors = mirrors;
    held.n_mirrors = 1;
    hello.held = list;
    hello.n_held = 1;
    mst_convert_hello(&hello, &got);
    ck_assert_uint_eq(got.held[0].image_state, MST_SLOT_IMAGE_VERIFIED);
    ck_assert_uint_eq(got.held[0].log_id, 5);
    ck_assert_uint_eq(got.held[0].mirrors_count, 1);
    ck_assert_uint_eq(got.held[0].mirrors[0].phase, MST_MIRROR_SURE);
    ck_assert_uint_eq(got.held[0].mirrors[0].acked_seq, 8);
    state.vm = state.node = (char *)"x";
    state.phase = MAINSTAY__MIRROR_PHASE__MIRROR_FAILED;
    state.log_id = 9;
    state.sent_seq = 10;
    state.has_sent_bytes = state.has_acked_after_us = 1;
    state.sent_bytes = UINT64_MAX;
    state.acked_after_us = 13;
    state.sending_us = 14; /* not said */
    state.text = (char *)"gone";
    mst_convert_mirror(&state, &news);
    ck_assert_uint_eq(news.phase, MST_MIRROR_FAILED);
    ck_assert_uint_eq(news.log_id, 9);
    ck_assert_uint_eq(news.sent_seq, 10);
    ck_assert_uint_eq(news.sent_bytes, UINT64_MAX);
    ck_assert_uint_eq(news.sending_us, 0);
    ck_assert_uint_eq(news.acked_after_us, 13);
    ck_assert_str_eq(news.text, "gone");
    grant.log_id = 11;
    image.seq = 12;
    done.grant = &grant;
    done.image = &image;
    mst_convert_answer(&done, &answer);
    ck_assert(answer.has_grant && answer.grant.log_id == 11);
    ck_assert(answer.has_image && answer.image_seq == 12);
}
END_TEST

START_TEST(a_fence_of_a_full_node_fits_into_one_message)
{
    struct mst_order order = {.type = MST_ORDER_FENCE, .token = 5, .instance = 6, .term = 7, .fence_count = MST_VMS_PER_NODE};
    mst_envelope *env;

    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++) {
        memset(order.fence[i].vm, 'a', MST_NAME_BYTES - 1);
        order.fence[i].epoch = UINT64_MAX;
    }
    env = pack(&order);
    ck_assert_uint_eq(env->order_fence->n_vms, MST_VMS_PER_NODE);
    mst_envelope_free(env);
}
END_TEST

START_TEST(a_stored_definition_that_does_not_unpack_is_an_error_and_no_crash)
{
    struct mst_order order = {.type = MST_ORDER_START, .token = 5, .vm = "web01", .epoch = 8, .definition = &def};

    memset(&def, 0xff, sizeof(def));
    def.packed_bytes = 100;
    ck_assert_int_eq(mst_convert_order(&order, "n1", frame, sizeof(frame)), -EBADMSG);
}
END_TEST

START_TEST(answers_keep_errors_texts_and_proofs)
{
    Mainstay__Done done = MAINSTAY__DONE__INIT;
    Mainstay__FenceResult fence = MAINSTAY__FENCE_RESULT__INIT;
    Mainstay__VmEpoch vm = MAINSTAY__VM_EPOCH__INIT, *list[] = {&vm};
    struct mst_answer answer;
    char text[1000];

    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = 0;
    done.error = EIO;
    done.text = text; /* longer than a row takes */
    mst_convert_answer(&done, &answer);
    ck_assert_int_eq(answer.err, -EIO);
    ck_assert_uint_eq(strlen(answer.text), MST_TEXT_BYTES - 1);
    ck_assert(!answer.has_fence);
    done.error = 0;
    vm.vm = (char *)"web01";
    vm.epoch = 3;
    fence.instance = 77;
    fence.vms = list;
    fence.n_vms = 1;
    done.fence = &fence;
    mst_convert_answer(&done, &answer);
    ck_assert(answer.has_fence);
    ck_assert_uint_eq(answer.fence_instance, 77);
    ck_assert_uint_eq(answer.fenced_count, 1);
    ck_assert_str_eq(answer.fenced[0].vm, "web01");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("convert");
    TCase *tcase = tcase_create("convert");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, a_definition_keeps_what_planning_needs_and_the_whole_message);
    tcase_add_test(tcase, a_disk_in_main_storage_is_planned_as_memory);
    tcase_add_test(tcase, an_unknown_node_or_an_endless_command_line_is_refused);
    tcase_add_test(tcase, every_order_reads_back_as_it_was_meant);
    tcase_add_test(tcase, every_order_about_a_mirror_reads_back_as_it_was_meant);
    tcase_add_test(tcase, what_keepers_say_of_mirrors_arrives);
    tcase_add_test(tcase, a_fence_of_a_full_node_fits_into_one_message);
    tcase_add_test(tcase, a_stored_definition_that_does_not_unpack_is_an_error_and_no_crash);
    tcase_add_test(tcase, answers_keep_errors_texts_and_proofs);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
