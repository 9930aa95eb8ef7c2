#include "cli/drill_record.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

static struct drill_record rec;
static struct drill_vm_record *vm;
static uint64_t now_ns;
static uint64_t offsets[8]; /* by epoch */

static void setup(void)
{
    ck_assert_int_eq(drill_record_init(&rec, 2), 0);
    vm = &rec.vms[0];
    strcpy(vm->name, "web");
    strcpy(rec.vms[1].name, "db");
    now_ns = 1000;
    memset(offsets, 0, sizeof(offsets));
}

static void teardown(void)
{
    drill_record_free(&rec);
}

static void say(uint64_t epoch, const char *text)
{
    now_ns += 1000;
    ck_assert_int_eq(
        drill_record_feed(vm, epoch, offsets[epoch], epoch == 1 ? "n1" : "n2", text, strlen(text), now_ns, false, NULL), 0);
    offsets[epoch] += strlen(text);
}

static void beats_are(size_t count, const uint64_t *numbers)
{
    ck_assert_uint_eq(vm->beats_count, count);
    for (size_t i = 0; i < count; i++)
        ck_assert_uint_eq(vm->beats[i].n, numbers[i]);
}
#define BEATS_ARE(...) beats_are(sizeof((uint64_t[]){__VA_ARGS__}) / 8, (uint64_t[]){__VA_ARGS__})

START_TEST(beat_line_gives_number_guest_time_and_witness)
{
    struct drill_beat beat = {0};

    ck_assert_int_eq(drill_line_parse("beat 41 t=8.205 witness=ok", &beat), DRILL_LINE_BEAT);
    ck_assert_uint_eq(beat.n, 41);
    ck_assert_uint_eq(beat.guest_ms, 8205);
    ck_assert(beat.ok);
    ck_assert_int_eq(drill_line_parse("beat 42 t=8.405 witness=BROKEN page=3 want=1 have=2\r", &beat), DRILL_LINE_BEAT);
    ck_assert(!beat.ok);
}
END_TEST

START_TEST(lines_that_only_look_like_beats_are_ignored)
{
    static const char *const lines[] = {
        "",
        "beat",
        "beat 1",
        "beat 0 t=0.000 witness=ok",
        "beat x t=0.200 witness=ok",
        "beat 1 t=0.200 witness=okay",
        "beat 1 t=0.200 witness=",
        "beat 1 t=0.1200 witness=ok",
        "beat 1 t=0 witness=ok",
        "beat 99999999999999999999999 t=0.200 witness=ok",
        "guest broken what=link",
        "heartbeat12 t=0.1 witness=ok",
    };
    struct drill_beat beat;

    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++)
        ck_assert_msg(drill_line_parse(lines[i], &beat) == DRILL_LINE_OTHER, "'%s'", lines[i]);
}
END_TEST

START_TEST(boot_line_is_told_from_beats)
{
    struct drill_beat beat;

    ck_assert_int_eq(drill_line_parse("guest boot kind=bare pages=64 interval_ms=200", &beat), DRILL_LINE_BOOT);
    ck_assert_int_eq(drill_line_parse("beat 7 t=1.4 witguest boot kind=bare pages=64", &beat), DRILL_LINE_BOOT);
    say(1, "guest boot kind=bare\nbeat 1 t=0.200 witness=ok\nbeat 2 t=0.400 witness=ok\n");
    ck_assert(vm->beats[0].boot);
    ck_assert(!vm->beats[1].boot);
}
END_TEST

START_TEST(beat_arrives_with_the_last_byte_of_its_line)
{
    say(1, "beat 1 t=0.200 wit");
    ck_assert_uint_eq(vm->beats_count, 0);
    say(1, "ness=ok\n");
    BEATS_ARE(1);
    ck_assert_uint_eq(vm->beats[0].at_ns, now_ns);
    ck_assert_str_eq(vm->node, "n1");
    ck_assert_uint_eq(vm->epoch, 1);
}
END_TEST

START_TEST(line_begun_on_one_node_and_ended_on_another_is_one_beat)
{
    say(1, "beat 1 t=0.200 witness=ok\nbeat 2 t=0.4");
    say(2, "00 witness=ok\n");
    say(2, "beat 3 t=0.600 witness=ok\n");
    BEATS_ARE(1, 2, 3);
    ck_assert(vm->beats[1].joined);
    ck_assert_uint_eq(vm->beats[1].epoch, 2);
    ck_assert_uint_lt(vm->beats[1].at_ns, vm->beats[2].at_ns);
}
END_TEST

START_TEST(halves_of_different_beats_are_not_joined)
{
    /* resumed from an older save, taken inside of beat 2's line: the joined text reads as beat 5, and beat 3 follows */
    say(1, "beat 4 t=0.800 witness=ok\nbeat 5 t=1.0");
    say(2, "00 witness=ok\nbeat 3 t=0.600 witness=ok\nbeat 4 t=0.800 witness=ok\n");
    BEATS_ARE(4, 3, 4);
}
END_TEST

START_TEST(leftover_before_a_whole_beat_does_not_lose_the_beat)
{
    say(1, "beat 4 t=0.800 witness=ok\nbeat 5 t=1.000 wi");
    say(2, "beat 3 t=0.600 witness=ok\n");
    BEATS_ARE(4, 3);
    ck_assert(!vm->beats[1].joined);
}
END_TEST

START_TEST(leftover_before_a_boot_does_not_hide_it)
{
    say(1, "beat 4 t=0.800 witness=ok\nbeat 5 t=1.000 wi");
    say(2, "guest boot kind=bare pages=64 interval_ms=200\nbeat 1 t=0.200 witness=ok\n");
    BEATS_ARE(4, 1);
    ck_assert(vm->beats[1].boot);
}
END_TEST

START_TEST(bytes_that_come_again_are_dropped)
{
    say(1, "beat 1 t=0.200 witness=ok\nbeat 2 t=0.");
    offsets[1] = 0;
    say(1, "beat 1 t=0.200 witness=ok\nbeat 2 t=0.400 witness=ok\n");
    BEATS_ARE(1, 2);
    ck_assert_uint_eq(vm->holes, 0);
    say(1, "beat 3 t=");
    offsets[1] = 0;
    say(1, "beat 1 t=0.2");
    offsets[1] = 2 * strlen("beat 1 t=0.200 witness=ok\n") + strlen("beat 3 t=");
    say(1, "0.600 witness=ok\n");
    BEATS_ARE(1, 2, 3);
    ck_assert_uint_eq(vm->holes, 0);
}
END_TEST

START_TEST(hole_in_the_console_makes_no_beat_out_of_two_halves)
{
    say(1, "beat 1 t=0.200 witness=ok\nbeat 2 t=");
    offsets[1] += 100;
    say(1, "9.000 witness=ok\nbeat 6 t=1.200 witness=ok\n");
    BEATS_ARE(1, 6);
    ck_assert_uint_eq(vm->holes, 100);
}
END_TEST

START_TEST(endless_line_does_not_swallow_the_beat_at_its_end)
{
    for (int i = 0; i < 100; i++)
        say(1, "................................");
    say(1, "beat 1 t=0.200 witness=ok\n");
    BEATS_ARE(1);
}
END_TEST

START_TEST(older_epoch_after_a_newer_one_is_kept_as_seen)
{
    say(2, "beat 5 t=1.000 witness=ok\n");
    say(1, "beat 6 t=1.200 witness=ok\n");
    BEATS_ARE(5, 6);
    ck_assert_uint_eq(vm->beats[1].epoch, 1);
    ck_assert_uint_eq(vm->epoch, 2);
    ck_assert_str_eq(vm->node, "n2");
}
END_TEST

START_TEST(more_epochs_than_streams_forget_the_oldest)
{
    for (uint64_t epoch = 1; epoch <= 3 * DRILL_STREAMS_MAX; epoch++) {
        const char *line = "beat 1 t=0.200 witness=ok\n";
        ck_assert_int_eq(drill_record_feed(vm, epoch, 0, "n1", line, strlen(line), epoch, false, NULL), 0);
    }
    ck_assert_uint_eq(vm->beats_count, 3 * DRILL_STREAMS_MAX);
}
END_TEST

START_TEST(fault_of_a_node_strikes_the_vms_that_run_there)
{
    drill_record_place(&rec.vms[0], "n1", 1);
    drill_record_place(&rec.vms[1], "n2", 1);
    rec.faults_count = 4;
    strcpy(rec.faults[0].kind, "machine-check");
    strcpy(rec.faults[0].node, "n1");
    strcpy(rec.faults[1].kind, "qemu-kill");
    strcpy(rec.faults[1].node, "n1");
    strcpy(rec.faults[1].vm, "db");
    strcpy(rec.faults[2].kind, "power-on");
    strcpy(rec.faults[2].node, "n1");
    strcpy(rec.faults[3].kind, "coordinator-kill");
    strcpy(rec.faults[3].node, "c1");
    ck_assert_int_eq(drill_record_strike(&rec, 0), 1);
    ck_assert_uint_eq(rec.vms[0].hits_count, 1);
    ck_assert_uint_eq(rec.vms[1].hits_count, 0);
    ck_assert_int_eq(drill_record_strike(&rec, 1), 1);
    ck_assert_uint_eq(rec.vms[1].hits_count, 1);
    ck_assert_int_eq(drill_record_strike(&rec, 2), 0);
    ck_assert_int_eq(drill_record_strike(&rec, 3), 0);
}
END_TEST

START_TEST(mirror_that_was_struck_is_none_until_it_is_back)
{
    struct drill_vm_record *web = &rec.vms[0];

    rec.faults_count = 3;
    rec.faults[0] = (struct drill_fault_record){.kind = "link-slow", .node = "n3", .t0_ns = 5};
    rec.faults[1] = (struct drill_fault_record){.kind = "power-off", .node = "n2"};
    rec.faults[2] = (struct drill_fault_record){.kind = "power-on", .node = "n2"};
    drill_record_mirror(&rec, web, "n2", 10);
    ck_assert_uint_eq(web->mirrored_ns, 10);
    rec.faults[1].t0_ns = 20;
    drill_record_mirror(&rec, web, "n2", 30);
    ck_assert_uint_eq(web->mirrored_ns, 0);
    drill_record_mirror(&rec, web, "n3", 40); /* slow, and there */
    drill_record_mirror(&rec, web, "n3", 50);
    ck_assert_uint_eq(web->mirrored_ns, 40);
    ck_assert_str_eq(web->mirror, "n3");
    drill_record_mirror(&rec, web, "", 60);
    ck_assert_uint_eq(web->mirrored_ns, 0);
    rec.faults[2].t0_ns = 70;
    drill_record_mirror(&rec, web, "n2", 80);
    ck_assert_uint_eq(web->mirrored_ns, 80);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cli_record");
    TCase *tcase = tcase_create("record");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, beat_line_gives_number_guest_time_and_witness);
    tcase_add_test(tcase, lines_that_only_look_like_beats_are_ignored);
    tcase_add_test(tcase, boot_line_is_told_from_beats);
    tcase_add_test(tcase, beat_arrives_with_the_last_byte_of_its_line);
    tcase_add_test(tcase, line_begun_on_one_node_and_ended_on_another_is_one_beat);
    tcase_add_test(tcase, halves_of_different_beats_are_not_joined);
    tcase_add_test(tcase, leftover_before_a_whole_beat_does_not_lose_the_beat);
    tcase_add_test(tcase, leftover_before_a_boot_does_not_hide_it);
    tcase_add_test(tcase, bytes_that_come_again_are_dropped);
    tcase_add_test(tcase, hole_in_the_console_makes_no_beat_out_of_two_halves);
    tcase_add_test(tcase, endless_line_does_not_swallow_the_beat_at_its_end);
    tcase_add_test(tcase, older_epoch_after_a_newer_one_is_kept_as_seen);
    tcase_add_test(tcase, more_epochs_than_streams_forget_the_oldest);
    tcase_add_test(tcase, fault_of_a_node_strikes_the_vms_that_run_there);
    tcase_add_test(tcase, mirror_that_was_struck_is_none_until_it_is_back);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
