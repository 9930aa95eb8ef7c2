#include "base/clock.h"
#include "cli/drill_judge.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

/* One VM "web" that beats every 200 ms on n1 in epoch 1 from 10.0 s on; fault at 20 s; each test tells what happened then. */

static struct drill_record rec;
static struct drill_vm_record *vm;
static struct mst_drill_vm want;
static struct mst_drill_conf conf;
static struct drill_result result;
static uint64_t clock_ms;

static void beat_of(uint64_t at_ms, uint64_t epoch, const char *node, uint64_t n, const char *tail)
{
    char line[128];
    uint64_t offset = 0;

    snprintf(line, sizeof(line), "beat %lu t=%lu.%03lu witness=%s\n", n, n * 200 / 1000, n * 200 % 1000, tail);
    for (unsigned i = 0; i < vm->streams_count; i++)
        if (vm->streams[i].epoch == epoch)
            offset = vm->streams[i].next;
    ck_assert_int_eq(drill_record_feed(vm, epoch, offset, node, line, strlen(line), at_ms * MST_NS_PER_MS, false, NULL), 0);
    clock_ms = at_ms;
}

/* count beats, 200 ms apart, numbered from n on. */
static void beats(uint64_t at_ms, uint64_t epoch, const char *node, uint64_t n, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        beat_of(at_ms + 200 * i, epoch, node, n + i, "ok");
}

static void fault(uint64_t at_ms, const char *kind, const char *node)
{
    struct drill_fault_record *f = &rec.faults[rec.faults_count++];

    f->t0_ns = at_ms * MST_NS_PER_MS;
    f->returned_ns = f->t0_ns + 1;
    strcpy(f->kind, kind);
    strcpy(f->node, node);
    drill_record_strike(&rec, rec.faults_count - 1);
}

static void recovered(uint64_t id, uint64_t epoch_from, uint64_t epoch_to, const char *to, const char *method, const char *proof)
{
    json_array_append_new(rec.recoveries,
                          json_pack("{s:I, s:s, s:s, s:[{s:s, s:s, s:s, s:I, s:I, s:{s:s, s:I}}]}", "id", (json_int_t)id, "state",
                                    "done", "fence_proof", proof, "vms", "vm", "web", "from", "n1", "to", to, "epoch_from",
                                    (json_int_t)epoch_from, "epoch_to", (json_int_t)epoch_to, "start", "method", method,
                                    "bytes_pulled", (json_int_t)4096));
}

static void setup(void)
{
    memset(&want, 0, sizeof(want));
    conf = (struct mst_drill_conf){.name = (char *)(uintptr_t) "test", .vms = &want, .vms_count = 1};
    ck_assert_int_eq(drill_record_init(&rec, 1), 0);
    rec.begin_ns = 10000 * MST_NS_PER_MS;
    vm = &rec.vms[0];
    strcpy(vm->name, "web");
    beats(10000, 1, "n1", 1, 50); /* the last, number 50, at 19800 */
}

static void teardown(void)
{
    drill_result_free(&result);
    drill_record_free(&rec);
}

static bool judge(void)
{
    drill_result_free(&result);
    rec.end_ns = (clock_ms + 100) * MST_NS_PER_MS;
    ck_assert_int_eq(drill_judge(&conf, &rec, &result), 0);
    return result.passed;
}

static const struct drill_check *check_named(const char *name)
{
    for (unsigned i = 0; i < result.vms[0].checks_count; i++)
        if (strcmp(result.vms[0].checks[i].name, name) == 0)
            return &result.vms[0].checks[i];
    for (unsigned i = 0; i < result.checks_count; i++)
        if (strcmp(result.checks[i].name, name) == 0)
            return &result.checks[i];
    ck_abort_msg("%s was not judged", name);
}

/* Exactly this objective fails, and no other. */
static void fails_only(const char *name)
{
    ck_assert(!judge());
    ck_assert(!check_named(name)->passed);
    for (unsigned i = 0; i < result.vms[0].checks_count; i++)
        ck_assert_msg(result.vms[0].checks[i].passed || strcmp(result.vms[0].checks[i].name, name) == 0, "%s: %s",
                      result.vms[0].checks[i].name, result.vms[0].checks[i].measured);
    for (unsigned i = 0; i < result.checks_count; i++)
        ck_assert(result.checks[i].passed || strcmp(result.checks[i].name, name) == 0);
}

static const struct drill_episode *ep(unsigned i)
{
    ck_assert_uint_lt(i, result.vms[0].episodes_count);
    return &result.vms[0].episodes[i];
}

/* Pulled live: three more beats on n1 after the fault, goes on with the next number on n2 at 21500. */
static void pulled_live(void)
{
    fault(20000, "machine-check", "n1");
    beats(20000, 1, "n1", 51, 3);
    beats(21500, 2, "n2", 54, 20);
    recovered(7, 1, 2, "n2", "pulled_live", "keeper n1: stopped");
}

/* Pulled from a checkpoint that holds beat 48: 49 and 50 are done again. */
static void pulled_shadow(void)
{
    fault(20000, "keeper-kill", "n1");
    beats(23000, 2, "n2", 49, 20);
    recovered(7, 1, 2, "n2", "pulled_shadow", "keeper n1: returned");
}

START_TEST(rto_is_from_fault_to_first_beat_of_the_new_epoch)
{
    pulled_live();
    want.has_rto_ms = true;
    want.rto_ms = 1500;
    ck_assert(judge());
    ck_assert_uint_eq(ep(0)->rto_ms, 1500);
    ck_assert_uint_eq(ep(0)->gap_ms, 21500 - 20400);
    ck_assert_uint_eq(ep(0)->last->n, 53);
    ck_assert_uint_eq(ep(0)->first->n, 54);
    want.rto_ms = 1499;
    fails_only("rto");
    ck_assert_str_eq(check_named("rto")->measured, "1500 ms");
    ck_assert_str_eq(check_named("rto")->allowed, "1499 ms");
}
END_TEST

START_TEST(rto_of_a_vm_that_stays_is_its_largest_gap)
{
    fault(20000, "agent-kill", "n1");
    beats(20000, 1, "n1", 51, 2);
    beats(20900, 1, "n1", 53, 20);
    want.has_rto_ms = true;
    want.rto_ms = 700;
    want.method = (char *)(uintptr_t) "none";
    want.placed = (char *)(uintptr_t) "same";
    ck_assert(judge());
    ck_assert_uint_eq(ep(0)->rto_ms, 700);
    want.rto_ms = 699;
    fails_only("rto");
}
END_TEST

START_TEST(vm_that_never_comes_back_fails)
{
    fault(20000, "power-off", "n1");
    clock_ms = 30000;
    ck_assert(!judge());
    ck_assert(!check_named("beats")->passed);
    ck_assert_uint_ge(ep(0)->rto_ms, 10000);
}
END_TEST

START_TEST(rpo_is_the_age_of_the_resumed_save_by_the_guests_clock)
{
    pulled_shadow();
    want.has_rpo_ms = true;
    want.rpo_ms = 400;
    ck_assert(judge());
    ck_assert_uint_eq(ep(0)->rpo_ms, 400);
    want.rpo_ms = 399;
    fails_only("rpo");
}
END_TEST

START_TEST(nothing_is_lost_when_the_next_number_follows)
{
    pulled_live();
    want.has_lost_beats_max = true;
    want.has_rpo_ms = true;
    ck_assert(judge());
    ck_assert_uint_eq(ep(0)->lost_beats, 0);
    ck_assert_uint_eq(ep(0)->rpo_ms, 0);
}
END_TEST

START_TEST(repeated_beats_are_lost_work)
{
    pulled_shadow();
    want.has_lost_beats_max = true;
    want.lost_beats_max = 2;
    ck_assert(judge());
    ck_assert_uint_eq(ep(0)->lost_beats, 2);
    want.lost_beats_max = 1;
    fails_only("lost-beats");
}
END_TEST

START_TEST(mirror_must_be_there_again_in_time_after_the_last_fault)
{
    pulled_shadow();
    want.has_mirrored_ms = true;
    want.mirrored_ms = 300;
    fails_only("mirrored"); /* none at all */
    rec.vms[0].mirrored_ns = rec.faults[0].t0_ns + 300 * MST_NS_PER_MS;
    ck_assert(judge());
    want.mirrored_ms = 299;
    fails_only("mirrored");
}
END_TEST

START_TEST(memory_is_kept_unless_the_guest_booted)
{
    pulled_shadow();
    want.memory = (char *)(uintptr_t) "kept";
    ck_assert(judge());
    want.memory = (char *)(uintptr_t) "lost";
    fails_only("memory");
}
END_TEST

START_TEST(boot_line_means_memory_lost)
{
    const char *boot = "guest boot kind=bare pages=64 interval_ms=200\n";

    fault(20000, "power-off", "n1");
    ck_assert_int_eq(drill_record_feed(vm, 2, 0, "n2", boot, strlen(boot), 24000 * MST_NS_PER_MS, false, NULL), 0);
    beats(24200, 2, "n2", 3, 20); /* also when its first beats were not seen */
    recovered(7, 1, 2, "n2", "pulled_shadow", "power");
    want.memory = (char *)(uintptr_t) "kept";
    fails_only("memory");
    ck_assert_uint_eq(ep(0)->lost_beats, 50);
    want.memory = (char *)(uintptr_t) "lost";
    ck_assert(judge());
}
END_TEST

START_TEST(restart_means_memory_lost_whatever_the_numbers_say)
{
    fault(20000, "power-off", "n1");
    beats(24200, 2, "n2", 51, 20);
    recovered(7, 1, 2, "n2", "restarted", "power");
    want.memory = (char *)(uintptr_t) "kept";
    fails_only("memory");
}
END_TEST

START_TEST(saved_state_started_again_is_memory_lost)
{
    fault(20000, "power-off", "n1");
    beats(24200, 2, "n2", 1, 20);
    want.memory = (char *)(uintptr_t) "kept";
    fails_only("memory");
}
END_TEST

START_TEST(beats_older_than_any_seen_mean_memory_lost)
{
    /* a VM started from a saved state: no boot line, and its first beat is not number 1 */
    vm->beats_count = 0;
    beats(10000, 1, "n1", 6, 50);
    fault(20000, "power-off", "n1");
    beats(24200, 2, "n2", 6, 20);
    want.memory = (char *)(uintptr_t) "kept";
    fails_only("memory");
}
END_TEST

START_TEST(booted_and_restarted_are_the_same_in_a_recovery)
{
    fault(20000, "power-off", "n1");
    beats(24200, 2, "n2", 1, 20);
    recovered(7, 1, 2, "n2", "booted", "power");
    want.method = (char *)(uintptr_t) "restarted";
    ck_assert(judge());
    want.method = (char *)(uintptr_t) "booted";
    ck_assert(judge());
}
END_TEST

START_TEST(return_of_the_keeper_is_a_proof_by_the_keeper)
{
    pulled_shadow();
    json_object_set_new(json_array_get(rec.recoveries, 0), "fence_proof", json_string("return (proof 3)"));
    conf.fence = (char *)(uintptr_t) "keeper";
    ck_assert(judge());
    conf.fence = (char *)(uintptr_t) "power";
    fails_only("fence");
}
END_TEST

START_TEST(move_is_awaited_when_the_objectives_speak_of_one)
{
    ck_assert(!drill_expects_move(&want));
    want.memory = (char *)(uintptr_t) "kept";
    ck_assert(drill_expects_move(&want));
    want.method = (char *)(uintptr_t) "none";
    ck_assert(!drill_expects_move(&want));
    want = (struct mst_drill_vm){.placed = (char *)(uintptr_t) "n2", .node = (char *)(uintptr_t) "n2"};
    ck_assert(!drill_expects_move(&want));
    want.placed = (char *)(uintptr_t) "other";
    ck_assert(drill_expects_move(&want));
}
END_TEST

START_TEST(method_is_what_the_recovery_says)
{
    pulled_live();
    want.method = (char *)(uintptr_t) "pulled-live";
    ck_assert(judge());
    want.method = (char *)(uintptr_t) "pulled-shadow";
    fails_only("method");
    ck_assert_str_eq(check_named("method")->measured, "pulled-live");
}
END_TEST

START_TEST(method_of_an_unstruck_vm_is_none)
{
    fault(20000, "machine-check", "n2");
    beats(20000, 1, "n1", 51, 20);
    want.method = (char *)(uintptr_t) "none";
    ck_assert(judge());
    want.method = (char *)(uintptr_t) "in-place";
    fails_only("method");
}
END_TEST

START_TEST(in_place_is_named_as_in_drill_files)
{
    fault(20000, "qemu-kill", "n1");
    beats(21000, 2, "n1", 49, 20);
    recovered(7, 1, 2, "n1", "resumed_in_place", "keeper");
    want.method = (char *)(uintptr_t) "in-place";
    want.placed = (char *)(uintptr_t) "same";
    ck_assert(judge());
}
END_TEST

START_TEST(placed_other_wants_another_node)
{
    pulled_live();
    want.placed = (char *)(uintptr_t) "other";
    ck_assert(judge());
    want.placed = (char *)(uintptr_t) "same";
    fails_only("placed");
    want.placed = (char *)(uintptr_t) "n2";
    ck_assert(judge());
    want.placed = (char *)(uintptr_t) "n3";
    fails_only("placed");
    ck_assert_str_eq(check_named("placed")->measured, "n1 -> n2");
}
END_TEST

START_TEST(fence_proof_must_be_of_the_kind_asked_for)
{
    pulled_live();
    conf.fence = (char *)(uintptr_t) "keeper";
    ck_assert(judge());
    conf.fence = (char *)(uintptr_t) "power";
    fails_only("fence");
}
END_TEST

START_TEST(fence_without_any_recovery_fails)
{
    fault(20000, "machine-check", "n2");
    beats(20000, 1, "n1", 51, 20);
    conf.fence = (char *)(uintptr_t) "keeper";
    fails_only("fence");
}
END_TEST

START_TEST(one_broken_beat_fails_the_drill)
{
    pulled_live();
    ck_assert(judge());
    beat_of(clock_ms + 200, 2, "n2", 74, "BROKEN page=1 want=2 have=3");
    beat_of(clock_ms + 200, 2, "n2", 75, "ok");
    fails_only("witness");
}
END_TEST

START_TEST(beat_of_an_older_epoch_after_a_newer_one_is_two_at_once)
{
    pulled_live();
    beat_of(clock_ms + 50, 1, "n1", 54, "ok");
    beats(clock_ms + 150, 2, "n2", 74, 3);
    fails_only("never-two-at-once");
}
END_TEST

START_TEST(same_epoch_on_two_nodes_is_two_at_once)
{
    pulled_live();
    beat_of(clock_ms + 200, 2, "n3", 74, "ok");
    fails_only("never-two-at-once");
}
END_TEST

START_TEST(recovered_twice_for_one_fault_fails)
{
    pulled_live();
    recovered(8, 2, 3, "n3", "pulled_live", "keeper");
    fails_only("recovered-once");
}
END_TEST

START_TEST(unstruck_vm_that_was_touched_fails)
{
    fault(20000, "machine-check", "n2");
    beats(20000, 1, "n1", 51, 5);
    beats(22000, 2, "n3", 56, 20);
    recovered(7, 1, 2, "n3", "pulled_live", "keeper");
    want.has_lost_beats_max = true;
    fails_only("recovered-once");
}
END_TEST

START_TEST(unstruck_vm_that_stood_still_fails_its_rto)
{
    fault(20000, "machine-check", "n2");
    beats(24000, 1, "n1", 51, 20);
    want.has_rto_ms = true;
    want.rto_ms = 4200;
    ck_assert(judge());
    want.rto_ms = 4199;
    fails_only("rto");
}
END_TEST

START_TEST(fault_that_was_not_injected_fails)
{
    pulled_live();
    ck_assert(judge());
    rec.faults[0].status = 1;
    fails_only("faults-injected");
    rec.faults[0].status = 0;
    rec.faults[0].returned_ns = 0;
    fails_only("faults-injected");
}
END_TEST

START_TEST(second_fault_before_the_recovery_does_not_reset_the_clock)
{
    fault(20000, "agent-stop", "n1");
    beats(20000, 1, "n1", 51, 5);
    fault(21000, "keeper-kill", "n1");
    beats(23000, 2, "n2", 54, 20);
    recovered(7, 1, 2, "n2", "pulled_shadow", "keeper");
    ck_assert(judge());
    ck_assert_uint_eq(result.vms[0].episodes_count, 1);
    ck_assert_uint_eq(ep(0)->rto_ms, 3000);
    ck_assert_uint_eq(ep(0)->lost_beats, 2);
}
END_TEST

START_TEST(fault_after_a_recovery_is_judged_by_itself)
{
    pulled_live(); /* beats until 25300 */
    fault(25400, "power-off", "n2");
    beats(29400, 3, "n3", 1, 20);
    recovered(8, 2, 3, "n3", "restarted", "power");
    want.has_rto_ms = true;
    want.rto_ms = 4000;
    want.placed = (char *)(uintptr_t) "other";
    ck_assert(judge());
    ck_assert_uint_eq(result.vms[0].episodes_count, 2);
    ck_assert_uint_eq(ep(0)->rto_ms, 1500);
    ck_assert_uint_eq(ep(1)->rto_ms, 4000);
    ck_assert_str_eq(ep(0)->method, "pulled-live");
    ck_assert_str_eq(ep(1)->method, "restarted");
    ck_assert_str_eq(ep(1)->from, "n2");
    want.rto_ms = 3999;
    fails_only("rto");
    want.rto_ms = 4000;
    want.method = (char *)(uintptr_t) "restarted";
    fails_only("method");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cli_judge");
    TCase *tcase = tcase_create("judge");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, rto_is_from_fault_to_first_beat_of_the_new_epoch);
    tcase_add_test(tcase, rto_of_a_vm_that_stays_is_its_largest_gap);
    tcase_add_test(tcase, vm_that_never_comes_back_fails);
    tcase_add_test(tcase, rpo_is_the_age_of_the_resumed_save_by_the_guests_clock);
    tcase_add_test(tcase, nothing_is_lost_when_the_next_number_follows);
    tcase_add_test(tcase, repeated_beats_are_lost_work);
    tcase_add_test(tcase, memory_is_kept_unless_the_guest_booted);
    tcase_add_test(tcase, mirror_must_be_there_again_in_time_after_the_last_fault);
    tcase_add_test(tcase, boot_line_means_memory_lost);
    tcase_add_test(tcase, restart_means_memory_lost_whatever_the_numbers_say);
    tcase_add_test(tcase, saved_state_started_again_is_memory_lost);
    tcase_add_test(tcase, beats_older_than_any_seen_mean_memory_lost);
    tcase_add_test(tcase, booted_and_restarted_are_the_same_in_a_recovery);
    tcase_add_test(tcase, return_of_the_keeper_is_a_proof_by_the_keeper);
    tcase_add_test(tcase, move_is_awaited_when_the_objectives_speak_of_one);
    tcase_add_test(tcase, method_is_what_the_recovery_says);
    tcase_add_test(tcase, method_of_an_unstruck_vm_is_none);
    tcase_add_test(tcase, in_place_is_named_as_in_drill_files);
    tcase_add_test(tcase, placed_other_wants_another_node);
    tcase_add_test(tcase, fence_proof_must_be_of_the_kind_asked_for);
    tcase_add_test(tcase, fence_without_any_recovery_fails);
    tcase_add_test(tcase, one_broken_beat_fails_the_drill);
    tcase_add_test(tcase, beat_of_an_older_epoch_after_a_newer_one_is_two_at_once);
    tcase_add_test(tcase, same_epoch_on_two_nodes_is_two_at_once);
    tcase_add_test(tcase, recovered_twice_for_one_fault_fails);
    tcase_add_test(tcase, unstruck_vm_that_was_touched_fails);
    tcase_add_test(tcase, unstruck_vm_that_stood_still_fails_its_rto);
    tcase_add_test(tcase, fault_that_was_not_injected_fails);
    tcase_add_test(tcase, second_fault_before_the_recovery_does_not_reset_the_clock);
    tcase_add_test(tcase, fault_after_a_recovery_is_judged_by_itself);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
