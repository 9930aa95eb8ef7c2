/* The writer dies, or is looked at, between any two bytes that it stores: a reader gets exactly one checkpoint that was, or is
 * told that there is none; never a mixture.
 *
 * Built with its own copy of shm/ with fault points, so that every store of the writer passes mst_put_hook. */

#include "shm/put.h"
#include "world.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct world world; /* one per test process */

/* --- death after a number of bytes --- */

#ifdef __SANITIZE_THREAD__
#define STRIDE 5u /* one thread: nothing for this sanitizer to find, and it is thirty times slower */
#else
#define STRIDE 1u
#endif

static uint64_t budget;
static size_t died_in; /* bytes of the store that it died in */

static void dying_hook(enum mst_put_kind kind, void *dst, const void *src, size_t len)
{
    if (kind == MST_PUT_BARRIER || world.agent_dead)
        return;
    if (kind == MST_PUT_RELEASE_U64) { /* one store: there or not */
        if (budget == 0)
            world.agent_dead = true;
        else
            memcpy(dst, src, len);
        budget -= budget > 0;
        died_in = len;
        return;
    }
    died_in = len;
    if (len > budget) {
        len = budget;
        world.agent_dead = true;
    }
    memcpy(dst, src, len);
    budget -= len;
}

struct saved { /* what a scenario starts from; of the device slots only the bytes in use */
    uint8_t ram[WORLD_RAM_BYTES], shadow[WORLD_RAM_BYTES], device[2][WORLD_DEVICE], record[2 * MST_PUB_SLOT_BYTES];
    uint8_t *tables, *delta;
    uint64_t tables_bytes;
    struct world world;
};

static void save_world(struct saved *saved)
{
    saved->world = world;
    saved->tables_bytes = world.save.bytes - world.save.shadow_sums_off;
    saved->tables = malloc(saved->tables_bytes);
    saved->delta = malloc(world.delta.bytes);
    memcpy(saved->ram, world.at.ram, sizeof(saved->ram));
    memcpy(saved->record, world.at.record, sizeof(saved->record));
    memcpy(saved->tables, world.at.save + world.save.shadow_sums_off, saved->tables_bytes);
    for (int i = 0; i < 2; i++)
        memcpy(saved->device[i], world.at.save + world.save.device_off[i], WORLD_DEVICE);
    if (world.at.shadow) {
        memcpy(saved->shadow, world.at.shadow, sizeof(saved->shadow));
        memcpy(saved->delta, world.at.delta, world.delta.bytes);
    }
}

static void restore_world(const struct saved *saved)
{
    world = saved->world;
    memcpy(world.at.ram, saved->ram, sizeof(saved->ram));
    memcpy(world.at.record, saved->record, sizeof(saved->record));
    memcpy(world.at.save + world.save.shadow_sums_off, saved->tables, saved->tables_bytes);
    for (int i = 0; i < 2; i++)
        memcpy(world.at.save + world.save.device_off[i], saved->device[i], WORLD_DEVICE);
    if (world.at.shadow) {
        memcpy(world.at.shadow, saved->shadow, sizeof(saved->shadow));
        memcpy(world.at.delta, saved->delta, world.delta.bytes);
    }
}

static void saved_free(struct saved *saved)
{
    free(saved->tables);
    free(saved->delta);
}

static void attach(void)
{
    ck_assert_int_eq(mst_save_writer_attach(&world.map, &world.writer), 0);
}

/* A new agent takes up what the dead one left: what a reader could read stays readable, and the next checkpoint works. */
static void take_up(uint64_t readable)
{
    uint64_t seq;
    int r, err;

    world.agent_dead = false;
    r = mst_save_writer_attach(&world.map, &world.writer);
    if (r < 0) {
        ck_assert_msg(r == -ENODATA || r == -EBADMSG, "attach: %d", r);
        ck_assert_msg(readable == 0, "checkpoint %lu was readable, and attach says %d", (unsigned long)readable, r);
        ck_assert_int_eq(mst_save_writer_new(&world.map, &world.writer), 0);
    } else {
        ck_assert_uint_eq(world_read(&world, &world.at, &err), readable);
    }
    if (mst_save_source(world.writer) == MST_SAVE_RAM)
        mst_save_shadow_from_ram(world.writer);
    if (!world.at.shadow)
        mst_save_withdraw(world.writer);
    world_continue(&world);
    if (mst_save_source(world.writer) == MST_SAVE_SHADOW)
        world_delta_checkpoint(&world);
    else if (world.at.shadow)
        world_full_checkpoint(&world);
    else
        ck_assert_int_eq(world_ram_save(&world), 0);
    seq = world_read(&world, &world.at, &err);
    ck_assert_uint_gt(seq, 0);
    ck_assert_uint_eq(seq, mst_save_seq(world.writer));
    mst_save_writer_free(world.writer);
    world.writer = NULL;
}

struct deaths { /* in bytes of the scenario */
    uint64_t points, old, new, none;
};

/* Runs scenario from the state of the world once for every byte (STRIDE) it stores, with death after that many. before and after: the seqs that
 * a reader may find, 0 none. */
static struct deaths die_everywhere(void (*scenario)(void), uint64_t before, uint64_t after)
{
    struct deaths deaths = {0};
    struct saved saved;
    bool died = true;

    save_world(&saved);
    for (uint64_t bytes = 0; died; bytes += STRIDE) {
        uint64_t seq;
        int err;

        restore_world(&saved);
        budget = bytes;
        mst_put_hook = dying_hook;
        scenario();
        mst_put_hook = NULL;
        died = world.agent_dead;
        mst_save_writer_free(world.writer);
        world.writer = NULL;
        seq = world_read(&world, &world.at, &err);
        ck_assert_msg(seq == before || seq == after, "death after %lu bytes: checkpoint %lu (error %d), expected %lu or %lu",
                      (unsigned long)bytes, (unsigned long)seq, err, (unsigned long)before, (unsigned long)after);
        ck_assert_msg(died || seq == after, "nobody died and checkpoint %lu is there", (unsigned long)seq);
        deaths.points += STRIDE;
        deaths.old += seq != 0 && seq == before ? STRIDE : 0;
        deaths.new += seq != 0 && seq == after ? STRIDE : 0;
        deaths.none += seq == 0 ? STRIDE : 0;
        if (died_in < MST_PAGE_BYTES || bytes % 7 == 0) /* inside a page one byte is like the next to a new agent */
            take_up(seq);
    }
    restore_world(&saved);
    saved_free(&saved);
    return deaths;
}

/* A VM with some checkpoints behind it, the last one settled; returns its seq. */
static uint64_t open_with_history(enum world_protect protect)
{
    int err;

    world_open(&world, protect, 1);
    ck_assert_int_eq(mst_save_writer_new(&world.map, &world.writer), 0);
    for (int i = 0; i < 3; i++) {
        if (protect == WORLD_NONE)
            world_ram_checkpoint(&world);
        else if (i == 0)
            world_full_checkpoint(&world);
        else
            world_delta_checkpoint(&world);
    }
    uint64_t seq = mst_save_seq(world.writer);
    ck_assert_uint_eq(world_read(&world, &world.at, &err), protect == WORLD_NONE ? 0 : seq);
    mst_save_writer_free(world.writer);
    world.writer = NULL;
    return seq;
}

static void scenario_delta(void)
{
    attach();
    world_delta_checkpoint(&world);
}

START_TEST(death_at_any_byte_of_a_delta_checkpoint_leaves_it_or_the_one_before)
{
    uint64_t seq = open_with_history(WORLD_LOCAL);
    struct deaths deaths = die_everywhere(scenario_delta, seq, seq + 1);

    ck_assert_uint_gt(deaths.points, 4 * MST_PAGE_BYTES);
    ck_assert_uint_gt(deaths.old, 2 * MST_PAGE_BYTES);
    ck_assert_uint_gt(deaths.new, MST_PAGE_BYTES);
    ck_assert_uint_eq(deaths.none, 0);
    world_close(&world);
}
END_TEST

static void scenario_full(void)
{
    attach();
    world_full_checkpoint(&world);
}

START_TEST(death_at_any_byte_of_a_full_checkpoint_leaves_it_or_the_one_before)
{
    uint64_t seq = open_with_history(WORLD_LOCAL);
    struct deaths deaths = die_everywhere(scenario_full, seq, seq + 1);

    ck_assert_uint_gt(deaths.old, 100);
    ck_assert_uint_gt(deaths.new, WORLD_RAM_BYTES);
    ck_assert_uint_eq(deaths.none, 0);
    world_close(&world);
}
END_TEST

/* The previous delta was committed; its writer was killed before it had applied it. */
static uint64_t open_unsettled(void)
{
    uint64_t seq = open_with_history(WORLD_LOCAL);
    int err;

    attach();
    world_dirty(&world, 5);
    world_dirty(&world, 6);
    mst_save_begin(world.writer);
    world_stage_all(&world);
    world_stop(&world);
    world_stage_all(&world);
    world_note(&world, seq + 1);
    ck_assert_int_eq(mst_save_commit(world.writer, world_put_device(&world, seq + 1), 1, 2, 3), 0);
    world_continue(&world);
    mst_save_writer_free(world.writer);
    world.writer = NULL;
    ck_assert_uint_eq(world_read(&world, &world.at, &err), seq + 1);
    return seq + 1;
}

START_TEST(death_at_any_byte_of_taking_up_a_committed_delta_keeps_it)
{
    uint64_t seq = open_unsettled();
    struct deaths deaths = die_everywhere(attach, seq, seq);

    ck_assert_uint_gt(deaths.points, 2 * MST_PAGE_BYTES);
    ck_assert_uint_eq(deaths.none, 0);
    world_close(&world);
}
END_TEST

static void scenario_first(void)
{
    ck_assert_int_eq(mst_save_writer_new(&world.map, &world.writer), 0);
    world_full_checkpoint(&world);
}

START_TEST(death_at_any_byte_of_the_first_checkpoint_leaves_it_or_none)
{
    struct deaths deaths;

    world_open(&world, WORLD_LOCAL, 2);
    deaths = die_everywhere(scenario_first, 0, 1);
    ck_assert_uint_gt(deaths.none, 100);
    ck_assert_uint_gt(deaths.new, WORLD_RAM_BYTES);
    world_close(&world);
}
END_TEST

static void scenario_anew(void)
{
    ck_assert_int_eq(mst_save_writer_new(&world.map, &world.writer), 0);
}

START_TEST(death_at_any_byte_of_starting_anew_leaves_the_last_checkpoint_or_none)
{
    uint64_t seq = open_with_history(WORLD_LOCAL);
    struct deaths deaths = die_everywhere(scenario_anew, seq, 0);

    ck_assert_uint_gt(deaths.old, 0);
    ck_assert_uint_gt(deaths.none, 10);
    world_close(&world);
}
END_TEST

static void scenario_ram(void)
{
    attach();
    ck_assert_int_eq(world_ram_save(&world), 0);
}

START_TEST(death_at_any_byte_of_a_save_of_the_stopped_guest_leaves_it_or_none)
{
    uint64_t seq = open_with_history(WORLD_NONE);
    struct deaths deaths = die_everywhere(scenario_ram, 0, seq + 1);

    ck_assert_uint_gt(deaths.none, 100);
    ck_assert_uint_gt(deaths.new, 0);
    world_close(&world);
}
END_TEST

static void scenario_withdraw(void)
{
    attach();
    mst_save_withdraw(world.writer);
    world_continue(&world);
    for (unsigned page = 0; page < WORLD_PAGES; page++)
        world_dirty(&world, page);
}

START_TEST(death_at_any_byte_of_withdrawing_leaves_the_save_of_a_stopped_guest_or_none)
{
    uint64_t seq = open_with_history(WORLD_NONE) + 1;
    struct deaths deaths;

    attach();
    ck_assert_int_eq(world_ram_save(&world), 0);
    mst_save_writer_free(world.writer);
    world.writer = NULL;
    deaths = die_everywhere(scenario_withdraw, seq, 0);
    ck_assert_uint_gt(deaths.old, 10);
    ck_assert_uint_gt(deaths.none, 10);
    world_close(&world);
}
END_TEST

static void clear_hook(enum mst_put_kind kind, void *dst, const void *src, size_t len)
{
    struct mst_pub_head head;
    uint64_t body;

    if (kind != MST_PUT_BARRIER)
        memcpy(dst, src, len);
    if (mst_pub_pick((const uint8_t(*)[MST_PUB_SLOT_BYTES])world.at.record, &head, &body, sizeof(body)) == 0)
        ck_assert_uint_eq(body, 2);
}

START_TEST(clearing_never_shows_the_older_record)
{
    for (uint64_t turn = 0; turn < 2; turn++) {
        world_open(&world, WORLD_NONE, 1);
        for (uint64_t body = turn; body <= 2; body++) /* the newest is in either slot */
            mst_pub_write(world.at.record, 1, 1, &body, sizeof(body));
        mst_put_hook = clear_hook;
        mst_pub_clear(world.at.record);
        mst_put_hook = NULL;
        for (size_t i = 0; i < 2 * MST_PUB_SLOT_BYTES; i++)
            ck_assert_uint_eq(((uint8_t *)world.at.record)[i], 0);
        world_close(&world);
    }
}
END_TEST

/* --- stores seen in any order that the barriers allow --- */

/* What readers see: behind the writer's own memory by the stores that wait. Those wait in no order at all; a release store waits until
 * everything before it is seen; a barrier waits for all. Deliberately weaker than any machine we run on. */
struct waiting {
    uint8_t *seen;
    uint8_t bytes[8], was[8];
    size_t len;
    bool taken;
};

#define WAITING_MAX 16384

static struct {
    struct world_regions seen;
    struct waiting waiting[WAITING_MAX];
    unsigned count;
    uint64_t looks, found_old, found_new, found_none;
    uint64_t before, after;
    uint64_t one_in; /* looks at every one_in-th store, on average */
} reorder;

static uint8_t *seen_address(const uint8_t *dst)
{
    const struct {
        const uint8_t *real;
        uint8_t *seen;
        uint64_t bytes;
    } map[] = {
        {world.at.save, reorder.seen.save, world.save.bytes},
        {world.at.shadow, reorder.seen.shadow, world.at.shadow ? WORLD_RAM_BYTES : 0},
        {world.at.delta, reorder.seen.delta, world.at.delta ? world.delta.bytes : 0},
        {(const uint8_t *)world.at.record, (uint8_t *)reorder.seen.record, 2 * MST_PUB_SLOT_BYTES},
    };

    for (unsigned i = 0; i < sizeof(map) / sizeof(map[0]); i++) {
        if (map[i].bytes > 0 && dst >= map[i].real && dst < map[i].real + map[i].bytes)
            return map[i].seen + (dst - map[i].real);
    }
    ck_abort_msg("store outside the regions");
    return NULL;
}

static void all_seen(void)
{
    for (unsigned i = 0; i < reorder.count; i++)
        memcpy(reorder.waiting[i].seen, reorder.waiting[i].bytes, reorder.waiting[i].len);
    reorder.count = 0;
}

static void look(void)
{
    uint64_t seq;
    int err;

    /* Some looks see almost nothing of what waits, some almost all of it. */
    uint64_t of_eight = world_random(&world) % 9;
    for (unsigned i = 0; i < reorder.count; i++) {
        struct waiting *wait = &reorder.waiting[i];
        wait->taken = world_random(&world) % 8 < of_eight;
        memcpy(wait->was, wait->seen, wait->len);
        if (wait->taken)
            memcpy(wait->seen, wait->bytes, wait->len);
    }
    seq = world_read(&world, &reorder.seen, &err);
    ck_assert_msg(seq == reorder.before || seq == reorder.after, "a reader found checkpoint %lu (error %d), expected %lu or %lu",
                  (unsigned long)seq, err, (unsigned long)reorder.before, (unsigned long)reorder.after);
    reorder.looks++;
    reorder.found_old += seq != 0 && seq == reorder.before;
    reorder.found_new += seq != 0 && seq == reorder.after;
    reorder.found_none += seq == 0;
    for (unsigned i = reorder.count; i-- > 0;)
        memcpy(reorder.waiting[i].seen, reorder.waiting[i].was, reorder.waiting[i].len);
}

static void wait_word(uint8_t *dst, const uint8_t *src, size_t len)
{
    struct waiting *wait = &reorder.waiting[reorder.count++];

    ck_assert_uint_le(reorder.count, WAITING_MAX);
    wait->seen = seen_address(dst);
    wait->len = len;
    memcpy(wait->bytes, src, len);
}

static void reorder_hook(enum mst_put_kind kind, void *dst, const void *src, size_t len)
{
    if (kind == MST_PUT_BARRIER || kind == MST_PUT_RELEASE_U64)
        all_seen();
    if (kind == MST_PUT_BARRIER)
        return;
    memcpy(dst, src, len); /* the writer sees its own stores */
    for (size_t off = 0; off < len; off += 8)
        wait_word((uint8_t *)dst + off, (const uint8_t *)src + off, len - off < 8 ? len - off : 8);
    if (world_random(&world) % reorder.one_in == 0)
        look();
}

static void reorder_begin(uint64_t before, uint64_t after, uint64_t one_in)
{
    memset(&reorder, 0, sizeof(reorder));
    reorder.before = before;
    reorder.after = after;
    reorder.one_in = one_in;
    reorder.seen.ram = world.at.ram;
    reorder.seen.save = malloc(world.save.bytes);
    reorder.seen.record = malloc(2 * MST_PUB_SLOT_BYTES);
    memcpy(reorder.seen.save, world.at.save, world.save.bytes);
    memcpy(reorder.seen.record, world.at.record, 2 * MST_PUB_SLOT_BYTES);
    if (world.at.shadow) {
        reorder.seen.shadow = malloc(WORLD_RAM_BYTES);
        reorder.seen.delta = malloc(world.delta.bytes);
        memcpy(reorder.seen.shadow, world.at.shadow, WORLD_RAM_BYTES);
        memcpy(reorder.seen.delta, world.at.delta, world.delta.bytes);
    }
    mst_put_hook = reorder_hook;
}

static void reorder_end(void)
{
    mst_put_hook = NULL;
    free(reorder.seen.save);
    free(reorder.seen.record);
    free(reorder.seen.shadow);
    free(reorder.seen.delta);
}

START_TEST(stores_seen_out_of_order_never_show_a_mixture)
{
    uint64_t seq = open_with_history(WORLD_LOCAL), looks = 0, found_new = 0;

    world.random += (uint64_t)_i * 1000003;
    attach();
    for (int i = 0; i < 40; i++, seq++) {
        reorder_begin(seq, seq + 1, 3);
        if (world_random(&world) % 4 == 0)
            world_full_checkpoint(&world);
        else
            world_delta_checkpoint(&world);
        look();
        looks += reorder.looks;
        found_new += reorder.found_new;
        ck_assert_uint_eq(reorder.found_none, 0);
        reorder_end();
    }
    ck_assert_uint_gt(looks, 300);
    ck_assert_uint_gt(found_new, 40);
    world_close(&world);
}
END_TEST

/* --- a reader that takes its time while the writer goes on --- */

static struct {
    struct world_reader reader;
    uint64_t accepted, refused, overtaken; /* overtaken: accepted, and another checkpoint had been published meanwhile */
    uint64_t stores, pause;                /* of the writer, between two goes of the reader */
} slow;

/* Some steps at once; after them the writer goes on for a while. */
static void slow_reader_go(void)
{
    uint64_t steps = world_random(&world) % 20 + 1;
    int r = 1;

    slow.pause = world_random(&world) % 2 ? world_random(&world) % 4 : world_random(&world) % 200;
    while (r == 1 && steps-- > 0)
        r = world_reader_step(&slow.reader);
    if (r == 1)
        return;
    if (r == 0) {
        ck_assert_msg(world_reader_true(&slow.reader), "accepted a checkpoint that never was: %lu",
                      (unsigned long)slow.reader.record.seq);
        slow.accepted++;
        slow.overtaken += slow.reader.record.seq < mst_save_seq(world.writer);
    } else {
        slow.refused++;
    }
    world_reader_begin(&slow.reader, &world, &world.at);
}

static void slow_hook(enum mst_put_kind kind, void *dst, const void *src, size_t len)
{
    size_t part = len > 0 ? world_random(&world) % (len + 1) : 0;

    if (kind == MST_PUT_BARRIER)
        return;
    if (kind == MST_PUT_RELEASE_U64)
        part = 0;
    memcpy(dst, src, part);
    if (++slow.stores > slow.pause) { /* in the middle of a page, too */
        slow.stores = 0;
        slow_reader_go();
    }
    memcpy((uint8_t *)dst + part, (const uint8_t *)src + part, len - part);
}

START_TEST(reader_of_a_writer_that_goes_on_gets_a_whole_checkpoint_or_a_refusal)
{
    open_with_history(WORLD_LOCAL);
    world.random += (uint64_t)_i * 1000003;
    attach();
    memset(&slow, 0, sizeof(slow));
    world_reader_begin(&slow.reader, &world, &world.at);
    mst_put_hook = slow_hook;
    while (mst_save_seq(world.writer) + 1 < WORLD_SEQS / 2) {
        if (world_random(&world) % 16 == 0)
            world_full_checkpoint(&world);
        else
            world_delta_checkpoint(&world);
    }
    mst_put_hook = NULL;
    printf("%lu accepted, %lu of them overtaken, %lu refused\n", slow.accepted, slow.overtaken, slow.refused);
    ck_assert_uint_gt(slow.accepted, 100);
    ck_assert_uint_gt(slow.overtaken, 10);
    ck_assert_uint_gt(slow.refused, 100);
    world_close(&world);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("shm/crash");
    TCase *tc = tcase_create("all");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tc, 200);
    tcase_add_test(tc, death_at_any_byte_of_a_delta_checkpoint_leaves_it_or_the_one_before);
    tcase_add_test(tc, death_at_any_byte_of_a_full_checkpoint_leaves_it_or_the_one_before);
    tcase_add_test(tc, death_at_any_byte_of_taking_up_a_committed_delta_keeps_it);
    tcase_add_test(tc, death_at_any_byte_of_the_first_checkpoint_leaves_it_or_none);
    tcase_add_test(tc, death_at_any_byte_of_starting_anew_leaves_the_last_checkpoint_or_none);
    tcase_add_test(tc, death_at_any_byte_of_a_save_of_the_stopped_guest_leaves_it_or_none);
    tcase_add_test(tc, death_at_any_byte_of_withdrawing_leaves_the_save_of_a_stopped_guest_or_none);
    tcase_add_test(tc, clearing_never_shows_the_older_record);
    tcase_add_loop_test(tc, stores_seen_out_of_order_never_show_a_mixture, 0, 4);
    tcase_add_loop_test(tc, reader_of_a_writer_that_goes_on_gets_a_whole_checkpoint_or_a_refusal, 0, 4);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
