/* A source and a mirror, between them memory whose lines of 64 bytes are stored in any order, with rubbish of other lines there before. Every page
 * and every device state says which checkpoint it is of: what the mirror commits must be exactly that one. Once in turns in one process, so that
 * the mirror looks at any moment, and once in two, so that it looks while stores happen. */

#include "base/mutant.h"
#include "mirror/image.h"
#include "mirror/send.h"
#include "shm/put.h"

#include <check.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

unsigned mst_mutant;

#define PAGES     32u
#define RAM_BYTES (PAGES * MST_PAGE_BYTES)
#define RING      (256u << 10)
#define FLYING    2048u
#define DEVICE    64u

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define RECORDS 20000u
#elif defined(__OPTIMIZE__)
#define RECORDS 1000000u
#else
#define RECORDS 200000u
#endif

struct shared {
    _Alignas(4096) uint8_t log[MST_MLOG_RING_OFF + RING];
    _Alignas(64) uint8_t acks[2][MST_PUB_SLOT_BYTES];
    uint64_t records, commits, half, wrong;
    int stop, err; /* err: of the take that ended it */
    char text[200];
};

static struct shared *shared;
static const struct mst_mlog_grant grant = {.vm = "t",
                                            .epoch = 3,
                                            .log_id = 0x5eed,
                                            .source_instance = 1,
                                            .mirror_instance = 2,
                                            .ram_bytes = RAM_BYTES,
                                            .ring_bytes = RING,
                                            .delta_capacity = PAGES};

static uint64_t mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* What checkpoint seq changes: both processes know it from the number. */
static unsigned changes(uint64_t seq, unsigned i)
{
    return (unsigned)(mix(seq * 8 + i) % PAGES);
}

static unsigned changes_count(uint64_t seq)
{
    uint64_t how = mix(seq) % 10;

    return seq == 1 ? PAGES : how < 5 ? 0 : how < 9 ? 1 : 4;
}

static unsigned page_of(uint64_t seq, unsigned i)
{
    return seq == 1 ? i : changes(seq, i);
}

static void page_fill(uint8_t *at, uint64_t seq, unsigned page)
{
    for (uint64_t i = 0; i < MST_PAGE_BYTES / 8; i++) {
        uint64_t word = seq << 16 | page << 10 | i;
        memcpy(at + i * 8, &word, sizeof(word));
    }
}

static void device_fill(uint8_t *at, uint64_t seq)
{
    for (uint64_t i = 0; i < DEVICE / 8; i++) {
        uint64_t word = seq << 16 | i;
        memcpy(at + i * 8, &word, sizeof(word));
    }
}

static bool in_turns; /* the mirror looks when the source lets it */
static void mirror_step(void);

/* --- source --- */

static struct {
    uint64_t random;
    struct mst_msend *send;
    uint8_t twin[MST_MLOG_RING_OFF + RING], ram[RAM_BYTES];
    uint32_t sums[PAGES];
    struct {
        uint64_t offset;
        uint8_t bytes[MST_MLOG_LINE];
    } flying[FLYING];
    unsigned count;
} src;

static uint64_t chance(uint64_t below)
{
    return mix(src.random++) % below;
}

/* Some lines become visible; sometimes what another line says is seen in a place first. */
static void land(unsigned lines)
{
    for (; lines > 0 && src.count > 0; lines--) {
        unsigned i = (unsigned)chance(src.count);

        if (chance(64) == 0)
            mst_put_words(shared->log + src.flying[i].offset, src.flying[chance(src.count)].bytes, MST_MLOG_LINE);
        mst_put_words(shared->log + src.flying[i].offset, src.flying[i].bytes, MST_MLOG_LINE);
        src.flying[i] = src.flying[--src.count];
        if (in_turns && chance(30) == 0)
            mirror_step();
    }
}

static void post(void)
{
    struct mst_msend_write write;
    struct mst_mlog_ack ack;
    struct mst_pub_head head;

    while (mst_msend_writes(src.send, &write, 1) == 1) {
        for (uint32_t at = 0; at < write.len; at += MST_MLOG_LINE) {
            if (src.count == FLYING)
                land(1 + (unsigned)chance(FLYING));
            src.flying[src.count].offset = write.offset + at;
            memcpy(src.flying[src.count++].bytes, write.bytes + at, MST_MLOG_LINE);
        }
        mst_msend_completed(src.send, &write);
    }
    land((unsigned)chance(src.count + 1));
    if (in_turns)
        mirror_step();
    if (mst_pub_read(shared->acks, &head, &ack, sizeof(ack)) == 0 && mst_msend_ack(src.send, &ack, NULL) < 0)
        _exit(3);
}

static bool stopped(void)
{
    return __atomic_load_n(&shared->stop, __ATOMIC_RELAXED) != 0;
}

static void source(void)
{
    struct mst_why why;

    if (mst_msend_new(&grant, src.twin, &src.send, &why) < 0)
        _exit(2);
    for (uint64_t seq = 1; !stopped(); seq++) {
        uint8_t device[DEVICE];
        struct mst_msend_rest rest = {.device = device, .device_bytes = DEVICE};
        int r;

        device_fill(device, seq);
        if (mst_msend_begin(src.send, seq) < 0)
            _exit(4);
        for (unsigned i = 0; i < changes_count(seq); i++) {
            unsigned page = page_of(seq, i);
            uint8_t *at = src.ram + page * MST_PAGE_BYTES;

            page_fill(at, seq, page);
            src.sums[page] = mst_page_sum(at);
            while ((r = mst_msend_page(src.send, page, at, NULL)) == -EAGAIN && !stopped())
                post();
            if (chance(2) == 0)
                mst_msend_flush(src.send);
        }
        rest.ram_digest = mst_save_digest(src.sums, 0, PAGES);
        while ((r = mst_msend_commit(src.send, &rest)) == -EAGAIN && !stopped())
            post();
        if (chance(4) == 0)
            post();
    }
    mst_msend_free(src.send);
}

/* --- mirror --- */

static void wrong(const char *what, uint64_t seq, uint64_t which)
{
    if (shared->wrong++ == 0)
        snprintf(shared->text, sizeof(shared->text), "checkpoint %lu: %s %lu", (unsigned long)seq, what, (unsigned long)which);
}

static struct {
    uint64_t records; /* to take */
    uint8_t shadow[RAM_BYTES];
    _Alignas(8) uint8_t record[2][MST_PUB_SLOT_BYTES];
    struct mst_save_layout save;
    struct mst_save_map map;
    struct mst_image *image;
    uint64_t last[PAGES]; /* which checkpoint changed the page last */
} mir;

static void mirror_open(uint64_t records)
{
    struct mst_delta_layout delta;

    mir.records = records;
    if (mst_save_layout(RAM_BYTES, &mir.save) < 0 || mst_delta_layout(PAGES, &delta) < 0)
        _exit(2);
    mir.map = (struct mst_save_map){.ram_bytes = RAM_BYTES,
                                    .save = calloc(1, mir.save.bytes),
                                    .shadow = mir.shadow,
                                    .delta = calloc(1, delta.bytes),
                                    .delta_capacity = PAGES,
                                    .record = mir.record,
                                    .epoch = 3,
                                    .instance = 2};
    if (!mir.map.save || !mir.map.delta || mst_image_new(&mir.image) < 0 ||
        mst_image_seed(mir.image, &grant, shared->log, &mir.map, NULL) < 0)
        _exit(2);
}

static void check_commit(uint64_t seq)
{
    uint8_t expected[MST_PAGE_BYTES];

    if (seq != ++shared->commits)
        wrong("is the one after", seq, shared->commits - 1);
    mst_image_apply(mir.image);
    for (unsigned i = 0; i < changes_count(seq); i++)
        mir.last[page_of(seq, i)] = seq;
    for (unsigned i = 0; i < changes_count(seq) + 1; i++) { /* what has changed, and one more */
        unsigned page = i < changes_count(seq) ? page_of(seq, i) : (unsigned)(mix(seq) % PAGES);
        page_fill(expected, mir.last[page], page);
        if (memcmp(mir.shadow + page * MST_PAGE_BYTES, expected, sizeof(expected)) != 0)
            wrong("page", seq, page);
    }
    device_fill(expected, seq);
    if (memcmp(mir.map.save + mir.save.device_off[(seq - 1) % 2], expected, DEVICE) != 0)
        wrong("device state in slot", seq, (seq - 1) % 2);
}

static void mirror_step(void)
{
    struct mst_mlog_ack ack;
    struct mst_why why = {""};
    int r = mst_image_take(mir.image, 1, &why);

    shared->half += mst_image_half(mir.image);
    if (r < 0)
        snprintf(shared->text, sizeof(shared->text), "%s", why.text);
    if (r == 2)
        check_commit(mst_image_seq(mir.image));
    if (r > 0) {
        mst_image_ack(mir.image, &ack);
        mst_pub_write(shared->acks, 0, 0, &ack, sizeof(ack));
        shared->records++;
    }
    if (r < 0 || shared->wrong || shared->records >= mir.records) {
        shared->err = r < 0 ? r : 0;
        __atomic_store_n(&shared->stop, 1, __ATOMIC_RELEASE);
    } else if (r == 0 && !in_turns) {
        sched_yield();
    }
}

static void mirror_close(void)
{
    mst_image_free(mir.image);
    free(mir.map.save);
    free(mir.map.delta);
}

static void one_process(unsigned which)
{
    if (which != 1)
        source();
    while (which == 1 && !stopped())
        mirror_step();
    if (which != 0)
        mirror_close();
    fflush(stdout);
    _exit(0);
}

/* Returns whether all of it was right. */
static bool torture(uint64_t records, bool turns, unsigned mutant)
{
    bool right = true;
    int status;

    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ck_assert(shared != MAP_FAILED);
    mst_mutant = mutant;
    in_turns = turns;
    mirror_open(records); /* before the source begins; the child that is the mirror has it */
    for (unsigned i = 0; i < (turns ? 1 : 2); i++) {
        pid_t pid = fork();
        ck_assert_int_ge(pid, 0);
        if (pid == 0)
            one_process(turns ? 2 : i);
    }
    while (wait(&status) > 0)
        right &= WIFEXITED(status) && WEXITSTATUS(status) == 0;
    mirror_close();
    printf("mutant %u, %s: %lu records, %lu checkpoints, %lu looks at half a record, %lu wrong%s%s\n", mutant,
           turns ? "in turns" : "two processes", (unsigned long)shared->records, (unsigned long)shared->commits,
           (unsigned long)shared->half, (unsigned long)shared->wrong, shared->text[0] ? ": " : "", shared->text);
    fflush(stdout);
    ck_assert_msg(right, "a process ended badly");
    return shared->err == 0 && shared->wrong == 0;
}

static uint64_t records_asked(void)
{
    const char *asked = getenv("MST_TORTURE_RECORDS");

    return asked ? strtoull(asked, NULL, 10) : RECORDS;
}

START_TEST(of_a_million_records_whose_lines_arrive_in_any_order_not_one_is_wrong)
{
    ck_assert_msg(torture(records_asked(), true, 0), "%s", shared->text);
    ck_assert_uint_ge(shared->records, records_asked());
    ck_assert_uint_gt(shared->half, shared->records / 10);
    ck_assert_uint_gt(shared->commits, shared->records / 3);
}
END_TEST

START_TEST(nor_is_one_while_another_process_stores_them)
{
    ck_assert_msg(torture(records_asked() / 10, false, 0), "%s", shared->text);
    ck_assert_uint_ge(shared->records, records_asked() / 10);
}
END_TEST

START_TEST(without_the_sum_torn_records_are_taken)
{
    ck_assert(!torture(RECORDS, true, 63));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("mirror/torture");
    TCase *tc = tcase_create("all");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tc, 0); /* ctest has one */
    tcase_add_test(tc, of_a_million_records_whose_lines_arrive_in_any_order_not_one_is_wrong);
    tcase_add_test(tc, nor_is_one_while_another_process_stores_them);
    tcase_add_test(tc, without_the_sum_torn_records_are_taken);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
