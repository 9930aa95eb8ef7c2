/* The mirror's keeper dies after any byte that it stores into the image: the next one finds the checkpoint of the record, whole, and never one
 * older than what was acknowledged; or, before the first commit, none.
 *
 * Built with its own copy of shm/ and mirror/ with fault points, so that every store into the image passes mst_put_hook. */

#include "base/mutant.h"
#include "rig.h"
#include "shm/put.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

unsigned mst_mutant;

static struct rig rig; /* one per test process */
static uint64_t budget;
static bool dead;

static void dying_hook(enum mst_put_kind kind, void *dst, const void *src, size_t len)
{
    if (kind == MST_PUT_BARRIER || dead)
        return;
    if (len > budget) {
        dead = true;
        len = kind == MST_PUT_RELEASE_U64 ? 0 : budget; /* a word is there or not */
    }
    memcpy(dst, src, len);
    budget -= len < budget ? len : budget;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define STRIDE 499u
#else
#define STRIDE 101u
#endif

static struct mst_mlog_ack last_ack;
static uint64_t told; /* newest checkpoint that the keeper could have acknowledged before it died */

/* What the keeper does with one checkpoint that is in the log; it is told when the keeper lives to tell it. */
static void take_all(void)
{
    while (mst_image_take(rig.image, 1, NULL) > 0) {
        mst_image_ack(rig.image, &last_ack);
        if (!dead)
            told = last_ack.seq;
    }
    mst_image_apply(rig.image);
}

/* All of the next checkpoint is in the log, and nothing of it in the image. */
static void next_in_log(void)
{
    struct mst_msend_write write;

    do
        rig_source_step(&rig);
    while (rig.seq);
    while (rig.flying_count > 0)
        rig_wire_step(&rig, RIG_FLYING);
    while (mst_msend_writes(rig.send, &write, 1) == 1) {
        memcpy(rig.log + write.offset, write.bytes, write.len);
        mst_msend_completed(rig.send, &write);
    }
}

/* The next keeper: what it finds, 0 nothing. */
static uint64_t found(void)
{
    struct mst_image *image;
    uint64_t epoch = 0, seq = 0;
    struct mst_why why = {""};
    int r = mst_image_new(&image);

    if (r == 0)
        r = mst_image_adopt(image, &rig.map, &why);
    if (r == 0)
        r = mst_image_verify(image, 1, &epoch, &seq, &why);
    if (r != 0 && r != -ENODATA && (r != -EBADMSG || told > 0)) /* the very first record may be left half */
        rig_breach(&rig, "what was left is not usable: %d %s", r, why.text);
    if (r == 0)
        rig_check_image(&rig, seq);
    mst_image_free(image);
    return seq;
}

enum { OLD, NEW, NONE, LIVED = 8, BAD = 16 };

/* In a process of its own, whose memory is a copy: the keeper dies after so many bytes. */
static int die_after(uint64_t bytes, uint64_t old, uint64_t new)
{
    int status;
    pid_t pid = fork();

    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        uint64_t has;

        told = old;
        budget = bytes;
        mst_put_hook = dying_hook;
        take_all();
        mst_put_hook = NULL;
        has = found();
        if (has < told || (has != old && has != new) || (!dead && has != new))
            rig_breach(&rig, "found %lu, acknowledged was %lu", (unsigned long)has, (unsigned long)told);
        if (rig.breach[0])
            printf("after %lu bytes: %s\n", (unsigned long)bytes, rig.breach);
        fflush(stdout);
        _exit(rig.breach[0] ? BAD : (has == 0 ? NONE : has == old ? OLD : NEW) | (dead ? 0 : LIVED));
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFEXITED(status));
    return WEXITSTATUS(status);
}

struct deaths {
    unsigned old, new, none;
};

/* After every stride-th byte: a prime, so inside pages, words and records. */
static struct deaths die_everywhere(uint64_t old, uint64_t new, uint64_t stride)
{
    struct deaths deaths = {0};
    int r = 0;

    for (uint64_t bytes = 0; !(r & LIVED); bytes += stride) {
        r = die_after(bytes, old, new);
        ck_assert_int_lt(r, BAD);
        deaths.old += (r & 7) == OLD;
        deaths.new += (r & 7) == NEW;
        deaths.none += (r & 7) == NONE;
    }
    printf("deaths that left the old checkpoint %u, the new one %u, none %u\n", deaths.old, deaths.new, deaths.none);
    return deaths;
}

START_TEST(death_at_any_byte_of_taking_a_checkpoint_leaves_it_or_the_one_before)
{
    struct deaths deaths;

    rig_open(&rig, 5 + (uint64_t)_i);
    rig_seed(&rig, false, 30);
    ck_assert_msg(rig_checkpoint(&rig), "%s", rig.breach);
    next_in_log();
    deaths = die_everywhere(30, 31, STRIDE);
    ck_assert_uint_gt(deaths.old, 10);
    ck_assert_uint_gt(deaths.new, 10);
    ck_assert_uint_eq(deaths.none, 0);
    rig_close(&rig);
}
END_TEST

START_TEST(death_at_any_byte_of_the_record_of_a_checkpoint_leaves_it_or_the_one_before)
{
    uint64_t commits = 0;

    /* A checkpoint without pages: almost all that is stored is the device state and the two records. */
    rig_open(&rig, 5);
    rig_seed(&rig, false, 30);
    ck_assert_msg(rig_checkpoint(&rig), "%s", rig.breach);
    for (; commits < 50; commits++) {
        struct mst_msend_stats stats = mst_msend_stats(rig.send), now;

        next_in_log();
        now = mst_msend_stats(rig.send);
        if (now.pages_data == stats.pages_data && now.wire_bytes - stats.wire_bytes < 1000)
            break;
        take_all();
        ck_assert_int_eq(mst_msend_ack(rig.send, &last_ack, NULL), 0);
    }
    ck_assert_uint_lt(commits, 50);
    die_everywhere(rig.committed - 1, rig.committed, 1);
    rig_close(&rig);
}
END_TEST

START_TEST(death_at_any_byte_of_seeding_leaves_no_mirror)
{
    struct deaths deaths;
    struct mst_msend_stats stats;

    rig_open(&rig, 5);
    rig_seed(&rig, false, 30);
    next_in_log();
    stats = mst_msend_stats(rig.send);
    ck_assert_uint_gt(stats.pages_data + stats.pages_zero, RIG_PAGES - 1);
    deaths = die_everywhere(0, 30, STRIDE);
    ck_assert_uint_gt(deaths.none + deaths.old, RIG_PAGES);
    ck_assert_uint_gt(deaths.new, 0);
    rig_close(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("mirror/crash");
    TCase *tc = tcase_create("all");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tc, 0); /* ctest has one */
    tcase_add_loop_test(tc, death_at_any_byte_of_taking_a_checkpoint_leaves_it_or_the_one_before, 0, 2);
    tcase_add_test(tc, death_at_any_byte_of_the_record_of_a_checkpoint_leaves_it_or_the_one_before);
    tcase_add_test(tc, death_at_any_byte_of_seeding_leaves_no_mirror);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
