/* The mirror's log and image, by stories of lost WRITEs and deaths, by hand, and with bugs planted. */

#include "base/mutant.h"
#include "rig.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

unsigned mst_mutant;

static struct rig rig; /* one per test process */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define STORIES 60
#else
#define STORIES 400
#endif
#define STORIES_EACH 25

START_TEST(whatever_arrives_of_what_was_sent_the_image_is_a_checkpoint_and_none_that_was_acknowledged_is_lost)
{
    uint64_t records = 0, commits = 0, newer = 0, half = 0, renewed = 0;

    for (uint64_t seed = (uint64_t)_i * STORIES_EACH; seed < (uint64_t)(_i + 1) * STORIES_EACH; seed++) {
        const char *breach = rig_story(&rig, seed);

        ck_assert_msg(!breach, "seed %lu: %s", (unsigned long)seed, breach);
        records += rig.records;
        commits += rig.commits;
        newer += rig.newer;
        half += rig.half;
        renewed += rig.renewed;
    }
    ck_assert_uint_gt(commits, STORIES_EACH * 10);
    ck_assert_uint_gt(records, commits);
    ck_assert_uint_gt(newer, 0); /* a takeover of something that was in the log only */
    ck_assert_uint_gt(half, 100);
    ck_assert_uint_gt(renewed, 50);
}
END_TEST

START_TEST(records_that_are_not_the_granted_sources_next_one_are_refused)
{
    const char *breach = rig_forgeries(&rig);

    ck_assert_msg(!breach, "%s", breach);
}
END_TEST

/* --- planted bugs --- */

static const struct {
    unsigned number;
    const char *what;
} mutants[] = {
    {60, "a completed WRITE counts as acknowledged"},
    {61, "acknowledged when the head of a commit is seen"},
    {62, "the epoch of a record is not compared"},
    {63, "the sum of a record is not compared"},
    {64, "the sum leaves the pages out"},
    {65, "a revoked image goes on taking records"},
    {66, "ring space is given back before the record was copied"},
    {67, "number, place and predecessor of a record are not compared"},
    {68, "a log of an earlier epoch is accepted"},
    {69, "the digest of the image is not compared"},
    {70, "the instance of the source is not compared"},
};

static bool caught(unsigned mutant)
{
    int status;
    pid_t pid = fork();

    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        const char *breach;

        mst_mutant = mutant;
        breach = rig_forgeries(&rig);
        for (uint64_t seed = 0; !breach && seed < 200; seed++)
            breach = rig_story(&rig, seed);
        if (breach)
            printf("mutant %u: %s\n", mutant, breach);
        fflush(stdout);
        _exit(breach ? 1 : 0);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFEXITED(status)); /* seen by the checks, not by a crash */
    return WEXITSTATUS(status) == 1;
}

START_TEST(a_planted_bug_is_caught)
{
    ck_assert_msg(caught(mutants[_i].number), "mutant %u lives: %s", mutants[_i].number, mutants[_i].what);
}
END_TEST

/* --- by hand --- */

static void open_seeded(void)
{
    rig_open(&rig, 1);
    rig_seed(&rig, false, 1);
    ck_assert_msg(rig_checkpoint(&rig), "%s", rig.breach);
}

START_TEST(equal_pages_stay_away_and_zero_pages_are_marks)
{
    uint8_t page[MST_PAGE_BYTES] = {0}, sent[MST_PAGE_BYTES] = {0};
    struct mst_msend_stats stats;

    rig_open(&rig, 1);
    rig_seed(&rig, false, 1);
    ck_assert_int_eq(mst_msend_page(rig.send, 0, page, NULL), -EINVAL); /* nothing is begun */
    ck_assert_int_eq(mst_msend_begin(rig.send, 7), 0);
    ck_assert_int_eq(mst_msend_begin(rig.send, 8), -EBUSY);
    for (unsigned i = 0; i < RIG_PAGES; i++)
        ck_assert_int_eq(mst_msend_page(rig.send, i, page, NULL), 1);
    ck_assert_int_eq(mst_msend_page(rig.send, RIG_PAGES, page, NULL), -ERANGE);
    mst_msend_flush(rig.send);
    stats = mst_msend_stats(rig.send);
    ck_assert_uint_eq(stats.pages_zero, RIG_PAGES);
    ck_assert_uint_eq(stats.wire_bytes, 192); /* head and one run */
    ck_assert_int_eq(mst_msend_page(rig.send, 3, page, sent),
                     1); /* this checkpoint has put it already: sent is not what is there */
    sent[17] = 1;
    ck_assert_int_eq(mst_msend_commit(rig.send, &(struct mst_msend_rest){.device = page, .device_bytes = 10}), 0);
    ck_assert_int_eq(mst_msend_begin(rig.send, 9), -EINVAL);
    ck_assert_int_eq(mst_msend_begin(rig.send, 8), 0);
    ck_assert_int_eq(mst_msend_page(rig.send, 3, page, page), 0);
    ck_assert_int_eq(mst_msend_page(rig.send, 4, page, sent), 1);
    ck_assert_uint_eq(mst_msend_stats(rig.send).pages_equal, 1);
    rig_close(&rig);
}
END_TEST

START_TEST(source_stops_where_the_credits_end_and_goes_on_when_they_come_back)
{
    struct mst_msend_write writes[64];
    struct mst_mlog_ack ack = {0};
    uint8_t page[MST_PAGE_BYTES];
    unsigned count, total = 0, put = 0;
    uint64_t bytes = 0;

    rig_open(&rig, 1);
    rig_seed(&rig, false, 1);
    memset(page, 1, sizeof(page));
    ck_assert_int_eq(mst_msend_begin(rig.send, 1), 0);
    while (mst_msend_page(rig.send, put % RIG_PAGES, page, NULL) == 1)
        put++;
    ck_assert_uint_eq(put, 15); /* five records of three pages fill 64 KiB but for 3 KiB */
    ck_assert_int_eq(mst_msend_page(rig.send, 0, page, NULL), -EAGAIN);
    ck_assert_int_eq(mst_msend_commit(rig.send, &(struct mst_msend_rest){.device = page, .device_bytes = 1000}),
                     0); /* that still fits */
    ck_assert_int_eq(mst_msend_begin(rig.send, 2), 0);
    ck_assert_int_eq(mst_msend_commit(rig.send, &(struct mst_msend_rest){.device = rig.ram, .device_bytes = 4096 * 4}), -EAGAIN);
    ck_assert_int_eq(mst_msend_commit(rig.send, &(struct mst_msend_rest){.device = rig.ram, .device_bytes = 4096 * 3}),
                     -EMSGSIZE);
    ck_assert_int_eq(mst_msend_page(rig.send, 0, page, NULL), -EINVAL); /* pages come before the rest */
    while ((count = mst_msend_writes(rig.send, writes, 3)) > 0) {
        for (unsigned i = 0; i < count; i++) {
            bytes += writes[i].len;
            memcpy(rig.log + writes[i].offset, writes[i].bytes, writes[i].len);
        }
        total += count;
    }
    ck_assert_uint_gt(total, 8);
    ck_assert_uint_le(bytes, RIG_RING + sizeof(struct mst_mlog_head));
    while (mst_image_take(rig.image, 1, NULL) > 0) {
        mst_image_ack(rig.image, &ack);
        if (ack.consumed > 17000)
            break;
    }
    ck_assert_int_eq(mst_msend_ack(rig.send, &ack, NULL), 0);
    /* Given back, but the WRITEs have not completed: the twin is still in use. */
    ck_assert_int_eq(mst_msend_commit(rig.send, &(struct mst_msend_rest){.device = rig.ram, .device_bytes = 4096 * 4}), -EAGAIN);
    writes[0].end = ack.consumed;
    mst_msend_completed(rig.send, &writes[0]);
    ck_assert_int_eq(mst_msend_commit(rig.send, &(struct mst_msend_rest){.device = rig.ram, .device_bytes = 4096 * 4}), 0);
    rig_close(&rig);
}
END_TEST

START_TEST(acknowledgements_that_cannot_be_are_refused)
{
    struct mst_mlog_ack good, ack;

    open_seeded();
    mst_image_ack(rig.image, &good);
    ck_assert_uint_eq(good.seq, 1);
    ack = good;
    ck_assert_int_eq(mst_msend_ack(rig.send, &ack, NULL), 0);
    ack.log_id++;
    ck_assert_int_eq(mst_msend_ack(rig.send, &ack, NULL), -ESTALE);
    ack = good;
    ack.epoch--;
    ck_assert_int_eq(mst_msend_ack(rig.send, &ack, NULL), -ESTALE);
    ack = good;
    ack.seq++;
    ck_assert_int_eq(mst_msend_ack(rig.send, &ack, NULL), -EPROTO);
    ack = good;
    ack.consumed += 64;
    ck_assert_int_eq(mst_msend_ack(rig.send, &ack, NULL), -EPROTO);
    ack = good;
    ack.consumed -= 64;
    ck_assert_int_eq(mst_msend_ack(rig.send, &ack, NULL), -EPROTO);
    ck_assert_uint_eq(mst_msend_acked(rig.send), 1);
    rig_close(&rig);
}
END_TEST

START_TEST(checkpoint_of_more_pages_than_the_delta_has_is_refused_by_both_sides)
{
    uint8_t page[MST_PAGE_BYTES] = {1};

    rig_open(&rig, 1);
    rig.grant.delta_capacity = rig.map.delta_capacity = 2;
    rig_seed(&rig, false, 1);
    ck_assert_msg(rig_checkpoint(&rig), "%s", rig.breach);
    ck_assert_int_eq(mst_msend_begin(rig.send, 2), 0);
    ck_assert_int_eq(mst_msend_page(rig.send, 0, page, NULL), 1);
    ck_assert_int_eq(mst_msend_page(rig.send, 1, page, NULL), 1);
    ck_assert_int_eq(mst_msend_page(rig.send, 1, page, NULL), 1); /* again */
    ck_assert_int_eq(mst_msend_page(rig.send, 2, page, NULL), -EMSGSIZE);
    rig_close(&rig);
}
END_TEST

START_TEST(log_of_another_writer_is_refused_by_its_head)
{
    struct mst_mlog_head head;
    struct mst_mlog_grant other;
    struct mst_why why;

    rig_open(&rig, 1);
    rig_seed(&rig, false, 1);
    mst_mlog_head_make(&rig.grant, &head);
    ck_assert_int_eq(mst_mlog_head_check(&head, &rig.grant, NULL), 0);
    other = rig.grant;
    other.source_boot_id[0]++;
    mst_mlog_head_make(&other, &head);
    memcpy(rig.log, &head, sizeof(head));
    ck_assert_int_eq(mst_image_take(rig.image, 1, &why), -ESTALE);
    ck_assert_int_eq(mst_image_take(rig.image, 1, &why), -ESTALE); /* final */
    ck_assert_str_ne(why.text, "");
    ((uint8_t *)&head)[40]++;
    ck_assert_int_eq(mst_mlog_head_check(&head, &rig.grant, NULL), -EAGAIN); /* torn */
    rig_close(&rig);
}
END_TEST

START_TEST(rot_in_the_image_is_found_before_it_is_used)
{
    struct mst_why why = {""};
    uint64_t epoch, seq;

    for (unsigned i = 0; i < 4; i++) {
        int r;

        open_seeded();
        ck_assert_int_eq(mst_image_use(rig.image, rig.grant.epoch), -EBUSY);
        ck_assert_int_eq(mst_image_revoke(rig.image), 0);
        ck_assert_int_eq(mst_image_revoke(rig.image), 0);
        if (i == 1)
            rig.shadow[5000] ^= 4;
        if (i == 2)
            rig.save[rig.save_layout.shadow_sums_off + 8] ^= 1;
        if (i == 3)
            rig.save[3] ^= 1;
        r = mst_image_verify(rig.image, 1, &epoch, &seq, &why);
        ck_assert_int_eq(r, i == 0 ? 0 : -EBADMSG);
        if (i == 0) {
            ck_assert_uint_eq(epoch, rig.grant.epoch);
            ck_assert_uint_eq(seq, 1);
            ck_assert_int_eq(mst_image_use(rig.image, epoch), 0);
        } else {
            ck_assert_int_eq(mst_image_use(rig.image, rig.grant.epoch), -EBUSY);
        }
        ck_assert_int_eq(mst_image_clear(rig.image), 0);
        rig_close(&rig);
    }
}
END_TEST

START_TEST(rot_in_the_image_at_rest_is_found_by_its_scrub)
{
    struct mst_why why = {""};

    for (unsigned i = 0; i < 4; i++) {
        unsigned rounds = 0;
        int r = 0;

        open_seeded();
        for (unsigned k = 0; k < 3 && r >= 0; k++) { /* whatever comes in between is no rot */
            ck_assert_msg(rig_checkpoint(&rig), "%s", rig.breach);
            r = mst_image_scrub(rig.image, 5, &why);
        }
        ck_assert_int_eq(r, 0);
        if (i == 1)
            rig.shadow[5000] ^= 4;
        if (i == 2)
            rig.save[rig.save_layout.shadow_sums_off + 8] ^= 1;
        if (i == 3)
            rig.save[rig.save_layout.device_off[0] + 3] ^= 1, rig.save[rig.save_layout.device_off[1] + 3] ^= 1;
        for (unsigned k = 0; k < 2 * (RIG_PAGES / 5 + 1) && r >= 0; k++) {
            r = mst_image_scrub(rig.image, 5, &why);
            rounds += r == 1;
        }
        ck_assert_int_eq(r < 0 ? r : 0, i == 0 ? 0 : -EBADMSG);
        if (i == 0)
            ck_assert_uint_eq(rounds, 2);
        ck_assert_int_eq(mst_image_revoke(rig.image), 0);
        ck_assert_int_eq(mst_image_scrub(rig.image, 5, &why), -EBUSY);
        rig_close(&rig);
    }
}
END_TEST

START_TEST(seed_that_ends_early_leaves_no_checkpoint)
{
    uint8_t page[MST_PAGE_BYTES] = {1};
    struct mst_msend_write write;
    uint64_t epoch, seq;

    rig_open(&rig, 1);
    rig_seed(&rig, false, 1);
    ck_assert_int_eq(mst_msend_begin(rig.send, 1), 0);
    ck_assert_int_eq(mst_msend_page(rig.send, 1, page, NULL), 1); /* and no other */
    ck_assert_int_eq(mst_msend_commit(rig.send, &(struct mst_msend_rest){.device = page, .device_bytes = 10}), 0);
    while (mst_msend_writes(rig.send, &write, 1))
        memcpy(rig.log + write.offset, write.bytes, write.len);
    ck_assert_int_eq(mst_image_take(rig.image, 1, NULL), -EUCLEAN);
    ck_assert_int_eq(mst_image_revoke(rig.image), 0);
    ck_assert_int_eq(mst_image_verify(rig.image, 1, &epoch, &seq, NULL), -ENODATA);
    ck_assert_int_eq(mst_image_state(rig.image), MST_IMAGE_REVOKED);
    ck_assert_int_eq(mst_image_clear(rig.image), 0);
    ck_assert_str_eq(mst_image_state_name(mst_image_state(rig.image)), "cleared");
    rig_close(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("mirror");
    TCase *tc = tcase_create("all");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tc, 200);
    tcase_add_test(tc, equal_pages_stay_away_and_zero_pages_are_marks);
    tcase_add_test(tc, source_stops_where_the_credits_end_and_goes_on_when_they_come_back);
    tcase_add_test(tc, acknowledgements_that_cannot_be_are_refused);
    tcase_add_test(tc, checkpoint_of_more_pages_than_the_delta_has_is_refused_by_both_sides);
    tcase_add_test(tc, log_of_another_writer_is_refused_by_its_head);
    tcase_add_test(tc, rot_in_the_image_is_found_before_it_is_used);
    tcase_add_test(tc, rot_in_the_image_at_rest_is_found_by_its_scrub);
    tcase_add_test(tc, seed_that_ends_early_leaves_no_checkpoint);
    tcase_add_test(tc, records_that_are_not_the_granted_sources_next_one_are_refused);
    tcase_add_loop_test(tc, whatever_arrives_of_what_was_sent_the_image_is_a_checkpoint_and_none_that_was_acknowledged_is_lost, 0,
                        STORIES / STORIES_EACH);
    tcase_add_loop_test(tc, a_planted_bug_is_caught, 0, sizeof(mutants) / sizeof(mutants[0]));
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
