#include "cli/drill_run.h"

#include "fake_coordinator.h"

#include <check.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The whole engine against the fake coordinator: real files, real sockets, a real injector that hands the fault to the fake. */

static char dir[] = "/tmp/mst-drill-XXXXXX";
static struct fake_conf fake;
static char injector[128], socket_path[128], fifo[128], report_dir[128];
static json_t *report;
static pid_t fake_pid;

__attribute__((format(printf, 2, 3))) static void file_put(const char *name, const char *fmt, ...)
{
    char path[PATH_MAX];
    FILE *file;
    va_list args;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    file = fopen(path, "we");
    ck_assert_ptr_nonnull(file);
    va_start(args, fmt);
    vfprintf(file, fmt, args);
    va_end(args);
    fclose(file);
    chmod(path, 0755);
}

static void setup(void)
{
    strcpy(dir, "/tmp/mst-drill-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(injector, sizeof(injector), "%s/inject", dir);
    snprintf(socket_path, sizeof(socket_path), "%s/sock", dir);
    snprintf(fifo, sizeof(fifo), "%s/fifo", dir);
    snprintf(report_dir, sizeof(report_dir), "%s/report", dir);
    file_put("inject",
             "#!/bin/sh\nif [ \"$1\" = cut ]; then echo 'the cable is stuck' >&2; exit 4; fi\necho \"$@\" >> %s/injected\n"
             "echo \"$@\" > %s\n",
             dir, fifo);
    file_put("vm.yaml", "name: web\nmemory-mib: 16\nboot:\n  kernel: /lab/guest/witness.elf\n");
    file_put("vm-local.yaml", "name: db\nmemory-mib: 16\nprotect: local\nboot:\n  kernel: /lab/guest/witness.elf\n");
    fake = (struct fake_conf){.socket = socket_path, .fifo = fifo};
    report = NULL;
    fake_pid = 0;
}

static void teardown(void)
{
    char command[64 + sizeof(dir)];

    json_decref(report);
    if (fake_pid > 0)
        fake_coordinator_stop(fake_pid);
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    ck_assert_int_eq(system(command), 0);
}

/* VMs web on n1, db on n2, and what the test adds. */
static void drill_put(const char *web, const char *db, const char *rest)
{
    file_put("drill.yaml",
             "name: test\nsettle-ms: 300\nobserve-ms: 300\ntimeout-ms: 8000\nvms:\n"
             "  - { definition: vm.yaml, node: n1, %s }\n  - { definition: vm-local.yaml, node: n2, %s }\n%s",
             web, db, rest);
}

static int drill(void)
{
    char path[PATH_MAX], *args[] = {path, NULL};
    struct options opt = {
        .socket = socket_path, .injector = injector, .report = report_dir, .timeout_ms = 5000, .args = args, .args_count = 1};
    struct context ctx = {.opt = &opt};
    struct mst_why why = {0};
    uv_loop_t loop;
    int code;

    signal(SIGPIPE, SIG_IGN);
    snprintf(path, sizeof(path), "%s/drill.yaml", dir);
    if (fake_pid == 0)
        fake_pid = fake_coordinator_start(&fake);
    uv_loop_init(&loop);
    ctx.loop = &loop;
    for (int i = 0; i < 200 && client_open(&loop, socket_path, &ctx.client, &why) < 0; i++)
        usleep(10000);
    ck_assert_ptr_nonnull(ctx.client);
    code = cmd_drill_run(&ctx);
    client_free(ctx.client);
    ck_assert_int_eq(uv_loop_close(&loop), 0);
    snprintf(path, sizeof(path), "%s/report.json", report_dir);
    json_decref(report);
    report = json_load_file(path, 0, NULL);
    return code;
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

static const json_t *vm_report(const char *name)
{
    size_t i;
    json_t *vm;

    json_array_foreach(json_object_get(report, "vms"), i, vm) if (strcmp(text_of(vm, "vm"), name) == 0) return vm;
    ck_abort_msg("the report has no VM %s", name);
}

static bool reason_given(const char *part)
{
    size_t i;
    json_t *reason;

    json_array_foreach(json_object_get(report, "reasons"), i, reason) if (strstr(json_string_value(reason), part)) return true;
    return false;
}

static bool injected(const char *line)
{
    char path[PATH_MAX], text[4096] = "";
    FILE *file;

    snprintf(path, sizeof(path), "%s/injected", dir);
    file = fopen(path, "re");
    if (!file)
        return false;
    text[fread(text, 1, sizeof(text) - 1, file)] = '\0';
    fclose(file);
    return strstr(text, line) != NULL;
}

START_TEST(good_recovery_passes_and_is_reported_in_full)
{
    const json_t *web, *db;

    drill_put("rto-ms: 5000, lost-beats-max: 0, memory: kept, method: pulled-live, placed: other",
              "lost-beats-max: 0, method: none, placed: same",
              "fence: keeper\nfaults:\n  - { at-ms: 100, kind: machine-check, node: n1 }\n");
    ck_assert_int_eq(drill(), EXIT_OK);
    ck_assert_str_eq(text_of(report, "verdict"), "PASSED");
    ck_assert_int_eq(json_integer_value(json_object_get(report, "schema")), 1);
    web = vm_report("web");
    ck_assert_str_eq(text_of(web, "from"), "n1");
    ck_assert_str_eq(text_of(web, "to"), "n2");
    ck_assert_str_eq(text_of(web, "how"), "pulled-live");
    ck_assert_int_eq(json_integer_value(json_object_get(json_object_get(web, "start"), "bytes_pulled")), 16 << 20);
    ck_assert_int_ge(json_integer_value(json_object_get(web, "rto_ms")), 300);
    ck_assert_int_eq(json_integer_value(json_object_get(json_object_get(web, "first_beat"), "n")),
                     json_integer_value(json_object_get(json_object_get(web, "last_beat"), "n")) + 1);
    db = vm_report("db");
    ck_assert_str_eq(text_of(db, "how"), "undisturbed");
    ck_assert_uint_eq(json_array_size(json_object_get(report, "recoveries")), 1);
    ck_assert(json_is_true(json_object_get(report, "cleaned_up")));
}
END_TEST

START_TEST(drill_can_run_again_at_once_because_it_cleans_up)
{
    drill_put("method: pulled-live", "method: none", "faults:\n  - { kind: machine-check, node: n1 }\n");
    ck_assert_int_eq(drill(), EXIT_OK);
    ck_assert_int_eq(drill(), EXIT_OK); /* n1 was failing, both VMs were defined */
    ck_assert_uint_eq(json_array_size(json_object_get(report, "recoveries")), 1);
}
END_TEST

START_TEST(memory_lost_where_it_was_to_be_kept_fails)
{
    drill_put("memory: kept, method: restarted", "method: none",
              "faults:\n  - { kind: power-off, node: n1 }\nundo:\n  - { kind: power-on, node: n1 }\n");
    ck_assert_int_eq(drill(), EXIT_FAILED);
    ck_assert_str_eq(text_of(report, "verdict"), "FAILED");
    ck_assert(reason_given("web memory: lost (allowed: kept)"));
    ck_assert(injected("power-on n1"));
    ck_assert(json_is_true(json_object_get(report, "cleaned_up")));
}
END_TEST

START_TEST(fault_of_a_vm_goes_to_the_node_where_it_runs)
{
    drill_put("method: none", "method: pulled-shadow, placed: n3, lost-beats-max: 2, rpo-ms: 100",
              "faults:\n  - { kind: qemu-kill, vm: db }\n");
    ck_assert_int_eq(drill(), EXIT_OK);
    ck_assert(injected("qemu-kill n2 db"));
    ck_assert_int_eq(json_integer_value(json_object_get(vm_report("db"), "lost_beats")), 2);
}
END_TEST

START_TEST(broken_witness_fails)
{
    fake.break_witness = true;
    drill_put("method: pulled-live", "method: none", "faults:\n  - { kind: machine-check, node: n1 }\n");
    ck_assert_int_eq(drill(), EXIT_FAILED);
    ck_assert(reason_given("web witness: BROKEN"));
}
END_TEST

START_TEST(old_copy_that_beats_on_fails)
{
    fake.leave_old = true;
    drill_put("method: pulled-live", "method: none", "faults:\n  - { kind: machine-check, node: n1 }\n");
    ck_assert_int_eq(drill(), EXIT_FAILED);
    ck_assert(reason_given("web never-two-at-once"));
}
END_TEST

START_TEST(killed_coordinator_is_connected_to_again)
{
    drill_put("method: pulled-live, lost-beats-max: 0, memory: kept", "method: none, lost-beats-max: 0",
              "faults:\n  - { kind: machine-check, node: n1 }\n  - { at-ms: 100, kind: coordinator-kill, node: c1 }\n");
    ck_assert_int_eq(drill(), EXIT_OK);
    ck_assert_uint_eq(json_array_size(json_object_get(json_object_get(report, "measurement"), "outages")), 1);
}
END_TEST

START_TEST(injector_that_fails_is_told_with_its_words)
{
    drill_put("method: none", "method: none", "faults:\n  - { kind: cut, node: n1 }\nundo:\n  - { kind: heal, node: n1 }\n");
    ck_assert_int_eq(drill(), EXIT_FAILED);
    ck_assert(reason_given("the cable is stuck"));
    ck_assert(injected("heal n1"));
}
END_TEST

START_TEST(injector_that_cannot_be_started_is_told)
{
    file_put("inject", "#!/nonexistent/interpreter\n");
    drill_put("method: none", "method: none", "faults:\n  - { kind: agent-kill, node: n1 }\n");
    ck_assert_int_eq(drill(), EXIT_FAILED);
    ck_assert(reason_given("could not be injected"));
}
END_TEST

START_TEST(recovery_that_never_comes_fails_when_time_is_up)
{
    drill_put("method: pulled-live", "method: none", "faults:\n  - { kind: agent-stop, node: n1 }\n");
    ck_assert_int_eq(drill(), EXIT_FAILED);
    ck_assert(reason_given("time is up: web has not recovered yet"));
}
END_TEST

START_TEST(vm_left_from_an_earlier_run_is_replaced)
{
    fake.left_over = "web";
    drill_put("method: pulled-live, placed: n2", "method: none", "faults:\n  - { kind: machine-check, node: n1 }\n");
    ck_assert_int_eq(drill(), EXIT_OK);
}
END_TEST

START_TEST(node_that_takes_no_vms_is_told_before_anything_is_done)
{
    fake.failing_at_first = true;
    drill_put("method: none", "method: none", "faults:\n  - { kind: agent-kill, node: n1 }\n");
    ck_assert_int_eq(drill(), EXIT_FAILED);
    ck_assert_str_eq(text_of(report, "verdict"), "COULD NOT RUN");
    ck_assert(reason_given("node drain n1 --undo"));
    ck_assert(!injected("agent-kill"));
}
END_TEST

START_TEST(clean_up_that_fails_fails_a_drill_that_passed)
{
    fake.refuse_undefine = true;
    drill_put("method: pulled-live", "method: none", "faults:\n  - { kind: machine-check, node: n1 }\n");
    ck_assert_int_eq(drill(), EXIT_FAILED);
    ck_assert_str_eq(text_of(report, "verdict"), "PASSED");
    ck_assert(json_is_false(json_object_get(report, "cleaned_up")));
}
END_TEST

static bool cleaned_by(const char *what)
{
    size_t i;
    json_t *step;

    json_array_foreach(json_object_get(report, "clean_up"), i, step)
    {
        if (strcmp(text_of(step, "step"), what) == 0)
            return true;
    }
    return false;
}

START_TEST(what_a_drill_did_to_a_node_is_not_held_against_it)
{
    drill_put("method: none, placed: same", "method: none", "faults:\n  - { kind: agent-kill, node: n1 }\n");
    ck_assert_int_eq(drill(), EXIT_OK);
    ck_assert(cleaned_by("node drain n1 --undo"));
    ck_assert(!cleaned_by("node drain n2 --undo"));
}
END_TEST

START_TEST(interrupted_drill_cleans_up)
{
    drill_put("method: pulled-live", "method: none",
              "faults:\n  - { kind: machine-check, node: n1 }\n  - { at-ms: 5000, kind: panic, node: n2 }\nundo:\n  - { kind: "
              "power-on, node: n1 }\n");
    fake_pid = fake_coordinator_start(&fake);
    pid_t parent = getpid(), killer = fork();
    if (killer == 0) {
        for (int i = 0; i < 1000 && !injected("machine-check"); i++)
            usleep(10000);
        kill(parent, SIGINT);
        _exit(0);
    }
    ck_assert_int_eq(drill(), EXIT_FAILED);
    ck_assert_str_eq(text_of(report, "verdict"), "INTERRUPTED");
    ck_assert(json_is_true(json_object_get(report, "cleaned_up")));
    ck_assert(injected("power-on n1"));
    ck_assert(!injected("panic"));
}
END_TEST

static void refused(const char *web, const char *rest, const char *part)
{
    struct drill_plan plan;
    struct mst_why why = {0};
    char path[PATH_MAX];

    drill_put(web, "method: none", rest);
    snprintf(path, sizeof(path), "%s/drill.yaml", dir);
    ck_assert_int_lt(drill_plan_load(path, &plan, &why), 0);
    ck_assert_msg(strstr(why.text, part) != NULL, "'%s' does not say '%s'", why.text, part);
}

START_TEST(drill_with_mistakes_is_refused)
{
    refused("method: pulled-live", "faults:\n  - { kind: earthquake, node: n1 }\n", "kind");
    refused("method: pulled-live", "faults:\n  - { kind: qemu-kill, vm: nobody }\n", "nobody");
    refused("method: pulled-live", "faults:\n  - { kind: agent-kill }\n", "node");
    refused("method: by-hand", "faults:\n  - { kind: agent-kill, node: n1 }\n", "method");
    refused("name: db", "faults:\n  - { kind: agent-kill, node: n1 }\n", "db");
    refused("method: none", "", "faults");
}
END_TEST

START_TEST(shipped_drills_are_well_formed)
{
    static const char *const names[] = {"qemu-killed",        "agent-killed", "agent-stopped",  "processor-failing",
                                        "keeper-killed",      "node-panic",   "node-power-off", "node-cut",
                                        "coordinator-killed", "one-sided",    "quickstart"};
    char path[PATH_MAX];

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct drill_plan plan;
        struct mst_why why = {0};

        snprintf(path, sizeof(path), "%s/deploy/drills/%s.yaml", SOURCE_DIR, names[i]);
        ck_assert_msg(drill_plan_load(path, &plan, &why) == 0, "%s", why.text);
        ck_assert_str_eq(plan.conf->name, names[i]);
        drill_plan_free(&plan);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cli_drill");
    TCase *tcase = tcase_create("drill");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, good_recovery_passes_and_is_reported_in_full);
    tcase_add_test(tcase, drill_can_run_again_at_once_because_it_cleans_up);
    tcase_add_test(tcase, memory_lost_where_it_was_to_be_kept_fails);
    tcase_add_test(tcase, fault_of_a_vm_goes_to_the_node_where_it_runs);
    tcase_add_test(tcase, broken_witness_fails);
    tcase_add_test(tcase, old_copy_that_beats_on_fails);
    tcase_add_test(tcase, killed_coordinator_is_connected_to_again);
    tcase_add_test(tcase, injector_that_fails_is_told_with_its_words);
    tcase_add_test(tcase, injector_that_cannot_be_started_is_told);
    tcase_add_test(tcase, recovery_that_never_comes_fails_when_time_is_up);
    tcase_add_test(tcase, vm_left_from_an_earlier_run_is_replaced);
    tcase_add_test(tcase, node_that_takes_no_vms_is_told_before_anything_is_done);
    tcase_add_test(tcase, clean_up_that_fails_fails_a_drill_that_passed);
    tcase_add_test(tcase, what_a_drill_did_to_a_node_is_not_held_against_it);
    tcase_add_test(tcase, interrupted_drill_cleans_up);
    tcase_add_test(tcase, drill_with_mistakes_is_refused);
    tcase_add_test(tcase, shipped_drills_are_well_formed);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
