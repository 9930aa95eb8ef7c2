/* A VM under protect: mirror, between two keepers: see rig.h. */
#include "rig.h"

#include "base/clock.h"
#include "mirror/image.h"

#include <check.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MIRROR  MAINSTAY__PROTECT__PROTECT_MIRROR
#define LOCAL   MAINSTAY__PROTECT__PROTECT_LOCAL
#define SEEDING MAINSTAY__MIRROR_PHASE__MIRROR_SEEDING
#define JOINED  MAINSTAY__MIRROR_PHASE__MIRROR_JOINED
#define SURE    MAINSTAY__MIRROR_PHASE__MIRROR_SURE
#define FAILED  MAINSTAY__MIRROR_PHASE__MIRROR_FAILED

static Mainstay__MirrorGrant granted;

static void grant_take(const Mainstay__Done *done)
{
    ck_done_ok(done);
    ck_assert_ptr_nonnull(done->grant);
    granted = *done->grant; /* numbers only */
}

static uint64_t acked(void)
{
    return rig->nodes[1].mirror ? rig->nodes[1].mirror->mirror_state->acked_seq : 0;
}

/* web01 runs on node 1 as epoch 5 and has a mirror on node 2, which counts. */
static void mirrored(uint64_t ring_bytes)
{
    rig_keeper_start(1);
    rig_keeper_start(2);
    ck_done_ok(rig_start(1, "web01", 5, MIRROR, "x", NULL));
    grant_take(rig_mirror(2, "web01", 5, 1, ring_bytes));
    ck_done_ok(rig_mirror_to(1, "web01", 5, 2, &granted));
    rig_wait_mirror(1, JOINED, 1);
    ck_done_ok(rig_mirror_sure(1, "web01", 5, granted.log_id));
    rig_wait_mirror(1, SURE, acked() + 5);
}

static Mainstay__SaveSource image_source(unsigned node, uint64_t seq)
{
    Mainstay__SaveSource source = MAINSTAY__SAVE_SOURCE__INIT;

    source.node = (char *)(node == 1 ? "n1" : "n2");
    source.node_id = node;
    source.instance = rig->nodes[node].instance;
    source.epoch = 5;
    source.has_min_seq = source.has_image = 1;
    source.min_seq = seq;
    source.image = 1;
    return source;
}

/* The memory that the fake agent's guest had at checkpoint seq, in a file of main storage of node; sees are those before. */
static void check_memory(unsigned node, const char *file, uint64_t seq)
{
    size_t bytes, from;
    uint8_t *ram = rig_map(node, file, &bytes);
    uint64_t word;

    ck_assert_uint_eq(bytes, 4u << 20);
    memcpy(&word, ram + 5 * MST_PAGE_BYTES, sizeof(word));
    ck_assert_uint_eq(word, seq);
    for (uint64_t page = 0; page < bytes / MST_PAGE_BYTES; page++) {
        uint64_t back = (seq % 100 + 100 - (page - 50)) % 100; /* 50..149: last written so many checkpoints ago */
        bool written = page == 5 || (page >= 50 && page < 150 && seq >= back + 3);

        memcpy(&word, ram + page * MST_PAGE_BYTES, sizeof(word));
        if (page != 5 && written)
            ck_assert_uint_eq(word, seq - back);
        for (from = written ? 1 : 0; from < MST_PAGE_BYTES / 8; from++) {
            uint64_t want = (page * MST_PAGE_BYTES / 8 + from) * 0x9e3779b97f4a7c15u + 5;

            if (page >= 3 && page < 40 && (page - 3) % 4 == 0 && from == 1)
                want ^= (uint64_t)0x77 << 8;
            memcpy(&word, ram + page * MST_PAGE_BYTES + from * 8, sizeof(word));
            ck_assert_msg(word == want, "page %llu word %zu", (unsigned long long)page, from);
        }
    }
    munmap(ram, bytes);
}

static void node_lost(unsigned node)
{
    rig_keeper_signal(node, SIGKILL);
    rig_keeper_wait(node, 5000);
}

static void set(void *arg)
{
    *(bool *)arg = true;
}

static bool is_set(void *arg)
{
    return *(bool *)arg;
}

/* --- tests --- */

START_TEST(a_vm_goes_on_from_its_image_when_its_node_is_gone)
{
    const Mainstay__Done *done;
    Mainstay__SaveSource source;
    struct mst_vm_slot info;
    uint64_t safe, seq;

    mirrored(_i ? 64u << 10 : 0); /* the second time its checkpoints do not fit into the ring at once */
    ck_assert_int_ge(rig_slot(2, "web01", 5, &info), 0);
    ck_assert_uint_eq(info.run_state, MST_RUN_IMAGE);
    ck_assert_uint_eq(info.image_state, MST_IMAGE_MIRRORING);
    ck_assert_uint_eq(info.image_source, 1);
    safe = acked();
    node_lost(1);
    done = rig_mirror_revoke(2, "web01", 5);
    ck_done_ok(done);
    ck_assert_ptr_nonnull(done->image);
    ck_assert_uint_eq(done->image->epoch, 5);
    ck_assert_uint_ge(done->image->seq, safe);
    seq = done->image->seq;
    done = rig_mirror_revoke(2, "web01", 5); /* again: the same answer */
    ck_done_ok(done);
    ck_assert_uint_eq(done->image->seq, seq);
    check_memory(2, "web01.e5.shadow", seq);
    source = image_source(2, seq);
    done = rig_start(2, "web01", 6, MIRROR, "x", &source);
    ck_done_ok(done);
    ck_assert_uint_eq(done->start->save_epoch, 5);
    ck_assert_uint_eq(done->start->save_seq, seq);
    ck_assert_int_ge(rig_slot(2, "web01", 5, &info), 0);
    ck_assert_uint_eq(info.image_state, MST_IMAGE_USED);
    ck_done_ok(rig_forget(2, "web01", 5));
    ck_assert_int_eq(rig_slot(2, "web01", 5, &info), -1);
    ck_assert(!rig_file_there(2, "web01.e5.shadow"));
    rig_wait_state(2, "web01", 6, MST_RUN_RUNNING);
}
END_TEST

START_TEST(an_image_is_pulled_by_another_node_once_it_is_verified)
{
    const Mainstay__Done *done;
    Mainstay__SaveSource source;

    mirrored(0);
    node_lost(1);
    rig_keeper_start(1);
    ck_done_ok(rig_forget(1, "web01", 5));
    source = image_source(2, 1);
    done = rig_start(1, "web01", 6, MIRROR, "x", &source);
    ck_assert_int_ne(done->error, 0); /* not before */
    done = rig_mirror_revoke(2, "web01", 5);
    ck_done_ok(done);
    source = image_source(2, done->image->seq);
    done = rig_start(1, "web01", 6, MIRROR, "x", &source);
    ck_done_ok(done);
    ck_assert_uint_eq(done->start->save_seq, source.min_seq);
    ck_assert_uint_gt(done->start->bytes_pulled, 4u << 20);
}
END_TEST

START_TEST(a_mirrors_next_keeper_keeps_what_was_acknowledged)
{
    const Mainstay__Done *done;
    struct mst_vm_slot info;
    uint64_t safe;

    mirrored(0);
    safe = acked();
    node_lost(2);
    rig_wait_mirror(1, FAILED, safe);
    node_lost(1);
    rig_keeper_start(2);
    ck_assert_uint_eq(rig->nodes[2].hello->hello->n_held, 1);
    ck_assert_uint_eq(rig->nodes[2].hello->hello->held[0]->run_state, MST_RUN_IMAGE);
    ck_assert_uint_eq(rig->nodes[2].hello->hello->held[0]->image_state, MST_IMAGE_REVOKED);
    ck_assert_uint_ge(rig->nodes[2].hello->hello->held[0]->save_seq, safe);
    ck_assert_int_ge(rig_slot(2, "web01", 5, &info), 0);
    ck_assert_uint_eq(info.image_state, MST_IMAGE_REVOKED);
    done = rig_mirror_revoke(2, "web01", 5);
    ck_done_ok(done);
    ck_assert_uint_ge(done->image->seq, safe);
    check_memory(2, "web01.e5.shadow", done->image->seq);
}
END_TEST

START_TEST(a_mirror_that_is_lost_does_not_stop_the_checkpoints_and_another_one_is_seeded)
{
    uint64_t lost, seq;

    mirrored(0);
    lost = granted.log_id;
    node_lost(2);
    rig_wait_mirror(1, FAILED, 1);
    seq = rig->nodes[1].mirror->mirror_state->sent_seq;
    rig_run_ms(1500);
    ck_assert_uint_gt(rig->nodes[1].mirror->mirror_state->sent_seq, seq + 5);
    ck_done_err(rig_mirror_sure(1, "web01", 5, lost), ESTALE, "failed");
    ck_done_ok(rig_mirror_drop(1, "web01", 5, lost));
    ck_done_ok(rig_mirror_drop(1, "web01", 5, lost));
    rig_keeper_start(2);
    ck_done_err(rig_mirror(2, "web01", 5, 1, 0), EBUSY, "forget it first"); /* what the keeper before left */
    ck_done_ok(rig_forget(2, "web01", 5));
    grant_take(rig_mirror(2, "web01", 5, 1, 0));
    ck_assert_uint_ne(granted.log_id, lost);
    ck_done_ok(rig_mirror_to(1, "web01", 5, 2, &granted));
    rig_wait_mirror(1, JOINED, seq + 5);
    node_lost(1);
    ck_done_ok(rig_mirror_revoke(2, "web01", 5));
    check_memory(2, "web01.e5.shadow", rig->nodes[2].done->done->image->seq);
}
END_TEST

START_TEST(an_image_that_rots_is_found_by_its_keeper_and_given_up)
{
    uint8_t *shadow;
    size_t bytes;

    rig->config_more = "mirror-scrub-s: 1\n";
    mirrored(0);
    rig_run_ms(2500); /* rounds of an image that is well, and that changes all the time */
    rig_wait_mirror(1, SURE, acked() + 3);
    shadow = rig_map(2, "web01.e5.shadow", &bytes);
    shadow[bytes - 4000] ^= 1;
    munmap(shadow, bytes);
    rig_wait_mirror(1, FAILED, 1);
    ck_assert_msg(strstr(rig->nodes[1].mirror->mirror_state->text, "memory has rotted") != NULL, "it says %s",
                  rig->nodes[1].mirror->mirror_state->text);
    ck_done_err(rig_mirror_revoke(2, "web01", 5), EBADMSG, "does not match");
}
END_TEST

START_TEST(a_mirror_that_does_not_answer_is_given_up_and_holds_nothing_up_for_long)
{
    uint64_t seq;

    mirrored(64u << 10);
    rig_keeper_signal(2, SIGSTOP); /* its memory can be written, but nobody takes it out of the log */
    rig_run_ms(1500);
    seq = rig->nodes[1].mirror->mirror_state->sent_seq;
    rig_run_ms(2000);
    ck_assert_uint_le(rig->nodes[1].mirror->mirror_state->sent_seq, seq + 1); /* it waits for room, as the delta must stay */
    rig_wait_mirror(1, FAILED, 1);
    seq = rig->nodes[1].mirror->mirror_state->sent_seq;
    rig_run_ms(1500);
    ck_assert_uint_gt(rig->nodes[1].mirror->mirror_state->sent_seq, seq + 5);
    rig_keeper_signal(2, SIGCONT);
}
END_TEST

START_TEST(orders_about_mirrors_may_come_twice_and_strange_ones_are_refused)
{
    Mainstay__MirrorGrant again;
    struct mst_vm_slot info;
    uint64_t used;

    rig_keeper_start(1);
    rig_keeper_start(2);
    used = rig_memory_used(2);
    ck_done_ok(rig_start(1, "web01", 5, MIRROR, "x", NULL));
    ck_done_ok(rig_start(1, "local", 5, LOCAL, "x", NULL));
    ck_done_err(rig_mirror_revoke(2, "web01", 5), ENOENT, "no image");
    ck_done_err(rig_mirror(1, "web01", 5, 1, 0), EINVAL, "its own mirror");
    ck_done_err(rig_mirror(1, "web01", 4, 2, 0), ESTALE, "older");
    ck_done_err(rig_mirror(1, "web01", 5, 2, 0), EBUSY, "web01");
    ck_done_err(rig_mirror(2, "web01", 5, 1, 4096), EINVAL, "ring");
    ck_assert_int_eq(rig_slot(2, "web01", 5, &info), -1);
    grant_take(rig_mirror(2, "web01", 5, 1, 0));
    again = granted;
    grant_take(rig_mirror(2, "web01", 5, 1, 0));
    ck_assert_uint_eq(granted.log_id, again.log_id);
    ck_done_err(rig_mirror(2, "web01", 4, 1, 0), ESTALE, "older");
    ck_done_err(rig_mirror_to(1, "local", 5, 2, &granted), EINVAL, "delta");
    ck_done_err(rig_mirror_to(1, "web01", 4, 2, &granted), ESTALE, "not granted");
    ck_done_err(rig_mirror_revoke(2, "web01", 5), ENODATA, "no checkpoint");
    ck_done_ok(rig_forget(2, "web01", 5));
    ck_assert_uint_eq(rig_memory_used(2), used); /* image and log */
    /* The log is gone: who asks for it now is refused, and told so. */
    ck_done_ok(rig_mirror_to(1, "web01", 5, 2, &granted));
    rig_wait_mirror(1, FAILED, 0);
    ck_assert_msg(strstr(rig->nodes[1].mirror->mirror_state->text, "no log of that number") != NULL, "%s",
                  rig->nodes[1].mirror->mirror_state->text);
}
END_TEST

START_TEST(an_image_is_no_grant_and_a_fence_says_nothing_about_it)
{
    const Mainstay__Done *done;
    struct mst_vm_slot info;

    mirrored(0);
    done = rig_fence(2, NULL, 0);
    if (done->error == 0)
        ck_assert_uint_eq(done->fence->n_vms, 0);
    ck_assert_int_ge(rig_slot(2, "web01", 5, &info), 0);
    ck_assert_uint_eq(info.run_state, MST_RUN_IMAGE);
    ck_done_err(rig_start(2, "web01", 5, MIRROR, "x", NULL), ESTALE, "may not run");
    rig_wait_mirror(1, SURE, acked() + 3); /* and it goes on being one */
}
END_TEST

/* --- the end of a source --- */

static bool has_qemu(void *arg)
{
    struct mst_vm_slot info;

    (void)arg;
    return rig_slot(1, "web01", 5, &info) >= 0 && info.ram_bytes != 0 && info.qemu_pid > 0;
}

static bool stands(void *arg)
{
    struct mst_vm_slot info;

    (void)arg;
    return rig_slot(1, "web01", 5, &info) >= 0 && info.run_state == MST_RUN_PAUSED;
}

static bool is_gone(void *arg)
{
    struct mst_vm_slot info;

    (void)arg;
    return rig_slot(1, "web01", 5, &info) < 0;
}

START_TEST(a_vm_that_is_still_starting_is_not_mirrored)
{
    rig_keeper_start(1);
    rig_keeper_start(2);
    rig_start_send(1, "web01", 5, MIRROR, "agent=silent", NULL);
    ck_assert(rig_until(has_qemu, NULL, 10000));
    grant_take(rig_mirror(2, "web01", 5, 1, 0));
    ck_done_err(rig_mirror_to(1, "web01", 5, 2, &granted), EAGAIN, "starting");
}
END_TEST

START_TEST(a_slot_that_is_freed_takes_its_mirrors_along)
{
    struct mst_vm_slot info;

    rig_keeper_start(1);
    rig_keeper_start(2);
    rig_start_send(1, "web01", 5, MIRROR, "agent=stands", NULL);
    ck_assert(rig_until(stands, NULL, 10000));
    grant_take(rig_mirror(2, "web01", 5, 1, 0));
    ck_done_ok(rig_mirror_to(1, "web01", 5, 2, &granted));
    rig_run_ms(500); /* its log is open, and waits for a checkpoint */
    ck_assert_int_ge(rig_slot(1, "web01", 5, &info), 0);
    ck_assert_int_eq(kill(info.qemu_pid, SIGKILL), 0); /* the guest never ran: nothing of it stays */
    ck_assert(rig_until(is_gone, NULL, 10000));
    ck_done_ok(rig_start(1, "web02", 9, MIRROR, "x", NULL)); /* in the same slot, with checkpoints */
    rig_run_ms(2000);
    ck_done_err(rig_mirror_revoke(2, "web01", 5), ENODATA, "no checkpoint"); /* none of web02 in the log of web01 */
}
END_TEST

static bool seeds(void *arg)
{
    const Mainstay__MirrorState *state = rig->nodes[1].mirror ? rig->nodes[1].mirror->mirror_state : NULL;

    (void)arg;
    return state && state->phase == SEEDING && state->text[0] && state->text[0] != '0';
}

START_TEST(a_source_that_was_fenced_writes_nothing_more)
{
    rig->vm_memory_mib = 64;
    rig->nodes[1].memory_mib = rig->nodes[2].memory_mib = 400;
    rig_keeper_start(1);
    rig_keeper_start(2);
    ck_done_ok(rig_start(1, "web01", 5, MIRROR, "x", NULL));
    grant_take(rig_mirror(2, "web01", 5, 1, 64u << 10));
    ck_done_ok(rig_mirror_to(1, "web01", 5, 2, &granted));
    ck_assert(rig_until(seeds, NULL, 15000));
    ck_done_ok(rig_fence(1, "web01", 5));
    mst_envelope_free(rig->nodes[1].mirror);
    rig->nodes[1].mirror = NULL;
    rig_run_ms(2500);
    ck_assert_ptr_null(rig->nodes[1].mirror); /* it has none any more to tell of */
    ck_done_ok(rig_mirror_drop(1, "web01", 5, granted.log_id));
    ck_done_err(rig_mirror_revoke(2, "web01", 5), ENODATA, "no checkpoint");
}
END_TEST

/* --- what a checkpoint waits for --- */

static const Mainstay__MirrorState *told(void)
{
    return rig->nodes[1].mirror->mirror_state;
}

static bool told_more(void *arg)
{
    return told()->sent_seq > *(uint64_t *)arg;
}

static void goes_on(void)
{
    uint64_t at_least = told()->sent_seq + 5;

    ck_assert(rig_until(told_more, &at_least, 5000));
}

START_TEST(what_was_sent_to_a_mirror_is_told_with_the_time_that_took)
{
    struct mirror_sent {
        uint64_t acked_seq, sent_bytes, sending_us;
    } before, after;
    uint64_t begun_ns;

    mirrored(0);
    begun_ns = mst_now_ns();
    before = (struct mirror_sent){told()->acked_seq, told()->sent_bytes, told()->sending_us};
    ck_assert_uint_gt(before.sent_bytes, 80 * MST_PAGE_BYTES); /* its seed: pages of 4 MiB, but for those that are zero */
    ck_assert_uint_gt(before.sending_us, 0);
    ck_assert(told()->has_acked_after_us && told()->acked_after_us > 0);
    rig_wait_mirror(1, SURE, before.acked_seq + 10);
    after = (struct mirror_sent){told()->acked_seq, told()->sent_bytes, told()->sending_us};
    /* Two pages and the head of a record each, at the least. */
    ck_assert_uint_ge(after.sent_bytes - before.sent_bytes, (after.acked_seq - before.acked_seq) * (2 * MST_PAGE_BYTES + 128));
    ck_assert_uint_gt(after.sending_us, before.sending_us);
    ck_assert_uint_lt(after.sending_us - before.sending_us, (mst_now_ns() - begun_ns) / 1000 + 2000000); /* told once a second */
    rig_keeper_signal(2, SIGSTOP); /* nothing is acknowledged meanwhile, and that is part of it */
    rig_run_ms(2500);
    rig_keeper_signal(2, SIGCONT);
    before = after;
    rig_wait_mirror(1, SURE, before.acked_seq + 20);
    ck_assert_uint_gt(told()->sending_us, before.sending_us + 2000000);
}
END_TEST

START_TEST(device_state_that_was_damaged_in_memory_does_not_reach_the_mirror)
{
    uint64_t safe;

    mirrored(0);
    rig_agent_tell(1, "rot", true);
    rig_wait_mirror(1, FAILED, 1);
    ck_assert_msg(strstr(told()->text, "device") != NULL, "%s", told()->text);
    safe = told()->acked_seq;
    goes_on();
    node_lost(1);
    ck_done_ok(rig_mirror_revoke(2, "web01", 5));
    ck_assert_uint_eq(rig->nodes[2].done->done->image->seq, safe);
    check_memory(2, "web01.e5.shadow", safe);
}
END_TEST

START_TEST(after_a_pause_checkpoints_do_not_wait_for_a_mirror_for_ever)
{
    uint64_t seq;

    mirrored(64u << 10);
    rig_renew(MST_LEASE_MS_MAX, 0);
    rig_keeper_signal(1, SIGSTOP);
    rig_run_ms(MST_LEASE_PAUSE_MS + 500);
    rig_keeper_signal(1, SIGCONT); /* and nobody has seen it again: it may send nothing */
    rig_run_ms(3000);
    seq = told()->sent_seq;
    rig_run_ms(3000);
    ck_assert_uint_le(told()->sent_seq, seq + 1);
    rig_wait_mirror(1, FAILED, 1);
    ck_assert_msg(strstr(told()->text, "stood still") != NULL, "%s", told()->text);
    goes_on();
}
END_TEST

/* --- a mirror that is the test --- */

static struct {
    struct mst_fabric *fabric;
    struct mst_link *link;
    Mainstay__MirrorGrant grant;
    char address[64];
    uint8_t log[MST_MLOG_RING_OFF + MST_MLOG_RING_MIN];
} us;

static void us_message(struct mst_link *link, const void *data, size_t len, void *arg)
{
    (void)link, (void)data, (void)len, (void)arg;
}

static void us_closed(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    (void)link, (void)err, (void)why, (void)arg;
    us.link = NULL;
}

static int us_accept(struct mst_link *link, const struct mst_link_request *request, void *arg,
                     const struct mst_link_events **ret_events, void **ret_arg, struct mst_why *why)
{
    static const struct mst_link_events us_events = {.on_message = us_message, .on_closed = us_closed};

    (void)request, (void)arg, (void)why;
    us.link = link;
    *ret_events = &us_events;
    *ret_arg = NULL;
    return 0;
}

static bool us_linked(void *arg)
{
    (void)arg;
    return us.link != NULL;
}

/* web01 gets a mirror that opens its link, and says nothing. */
static void us_mirror(void)
{
    Mainstay__Peer peer = MAINSTAY__PEER__INIT;
    Mainstay__OrderMirrorTo body = MAINSTAY__ORDER_MIRROR_TO__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;

    snprintf(us.address, sizeof(us.address), "%s", rig_address(60));
    ck_assert_int_eq(mst_fabric_open(&rig->loop, us.address, &us.fabric, NULL), 0);
    ck_assert_int_eq(mst_fabric_listen(us.fabric, 17999, us_accept, NULL, NULL), 0);
    us.grant = (Mainstay__MirrorGrant)MAINSTAY__MIRROR_GRANT__INIT;
    us.grant.log_id = 77;
    us.grant.mirror_instance = 88;
    us.grant.ring_bytes = MST_MLOG_RING_MIN;
    us.grant.delta_capacity = (rig->vm_memory_mib << 20) / MST_PAGE_BYTES;
    peer.node = (char *)"us";
    peer.node_id = 60;
    peer.address = us.address;
    peer.port = 17999;
    peer.instance = us.grant.mirror_instance;
    body.vm = (char *)"web01";
    body.epoch = 5;
    body.mirror = &peer;
    body.grant = &us.grant;
    env.body_case = MAINSTAY__ENVELOPE__BODY_ORDER_MIRROR_TO;
    env.order_mirror_to = &body;
    ck_done_ok(rig_order(1, &env));
    ck_assert(rig_until(us_linked, NULL, 5000));
}

static void us_key(void)
{
    Mainstay__MirrorKey body = MAINSTAY__MIRROR_KEY__INIT;
    Mainstay__Region log = MAINSTAY__REGION__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    uint8_t frame[200];

    log.addr = (uint64_t)(uintptr_t)us.log;
    log.bytes = sizeof(us.log);
    body.instance = us.grant.mirror_instance;
    body.log_id = us.grant.log_id;
    body.log = &log;
    env.body_case = MAINSTAY__ENVELOPE__BODY_MIRROR_KEY;
    env.mirror_key = &body;
    ck_assert_int_eq(mst_link_send(us.link, frame, (size_t)mst_frame_pack(&env, frame, sizeof(frame))), 0);
}

static void us_end(void)
{
    bool closed = false;

    mst_fabric_close(us.fabric, set, &closed);
    ck_assert(rig_until(is_set, &closed, 5000));
}

START_TEST(a_mirror_that_opens_its_link_and_sends_no_key_is_given_up)
{
    rig_keeper_start(1);
    ck_done_ok(rig_start(1, "web01", 5, MIRROR, "x", NULL));
    us_mirror();
    rig_wait_mirror(1, FAILED, 0);
    ck_assert_msg(strstr(told()->text, "does not answer") != NULL, "%s", told()->text);
    us_end();
}
END_TEST

static bool the_other_failed(void *arg)
{
    (void)arg;
    return told()->log_id == granted.log_id && told()->phase == FAILED;
}

START_TEST(the_agent_waits_for_each_mirror_also_when_another_fails_at_that_very_checkpoint)
{
    uint64_t seq;

    rig_keeper_start(1);
    rig_keeper_start(2);
    ck_done_ok(rig_start(1, "web01", 5, MIRROR, "x", NULL));
    us_mirror();
    grant_take(rig_mirror(2, "web01", 5, 1, 0));
    ck_done_ok(rig_mirror_to(1, "web01", 5, 2, &granted));
    rig_wait_mirror(1, JOINED, 1);
    rig_agent_tell(1, "hold", true);
    rig_run_ms(200);
    us_key();
    rig_run_ms(300);
    rig_agent_tell(1, "large", true); /* node 2 cannot go on from it; for us it is the first, and has no room in the ring */
    rig_agent_tell(1, "hold", false);
    ck_assert(rig_until(the_other_failed, NULL, 5000));
    seq = told()->sent_seq;
    rig_run_ms(2500);
    ck_assert_uint_eq(told()->sent_seq, seq);
    rig_run_ms(4000); /* we do not answer */
    goes_on();
    us_end();
}
END_TEST

START_TEST(an_image_that_is_revoked_while_it_is_made_is_not_granted)
{
    uint64_t first;

    rig->vm_memory_mib = 256;
    rig->nodes[1].memory_mib = rig->nodes[2].memory_mib = 1200;
    rig_keeper_start(1);
    rig_keeper_start(2);
    rig_mirror_send(2, "web01", 5, 1, 0);
    first = rig->nodes[2].asked;
    rig_mirror_revoke_send(2, "web01", 5);
    rig->nodes[2].asked = first; /* its answer is the one to keep */
    ck_done_err(rig_order_wait(2, 20000), EBUSY, "forget it first");
    ck_done_err(rig_mirror_revoke(2, "web01", 5), ENODATA, "no checkpoint");
    ck_done_ok(rig_forget(2, "web01", 5));
    grant_take(rig_mirror(2, "web01", 5, 1, 0));
}
END_TEST

/* --- somebody else at the log --- */

struct rogue {
    struct mst_link *link;
    bool opened, closed;
    int err;
    char why[200];
    mst_envelope *last;
};

static void rogue_open(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct rogue *r = arg;

    (void)link;
    r->opened = true;
    r->err = err;
    snprintf(r->why, sizeof(r->why), "%s", why ? why->text : "");
}

static void rogue_message(struct mst_link *link, const void *data, size_t len, void *arg)
{
    struct rogue *r = arg;

    (void)link;
    mst_envelope_free(r->last);
    ck_assert_int_eq(mst_frame_unpack(data, len, &r->last, NULL), 0);
}

static void rogue_closed(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    (void)link, (void)err, (void)why;
    ((struct rogue *)arg)->closed = true;
}

static const struct mst_link_events rogue_events = {rogue_open, rogue_message, rogue_closed};

static bool rogue_is_open(void *arg)
{
    return ((struct rogue *)arg)->opened;
}

static bool rogue_has_message(void *arg)
{
    return ((struct rogue *)arg)->last != NULL;
}

static bool rogue_is_closed(void *arg)
{
    return ((struct rogue *)arg)->closed;
}

static void rogue_connect(struct mst_fabric *fabric, uint64_t log_id, struct rogue *r)
{
    *r = (struct rogue){0};
    ck_assert_int_eq(mst_fabric_connect(fabric, rig_address(2), 17471, MST_ROLE_MIRROR, &log_id, sizeof(log_id), 2000,
                                        &rogue_events, r, &r->link, NULL),
                     0);
    ck_assert(rig_until(rogue_is_open, r, 5000));
}

START_TEST(a_log_has_one_writer_who_was_named_and_gets_one_key)
{
    Mainstay__MirrorWritten said = MAINSTAY__MIRROR_WRITTEN__INIT;
    mst_envelope env = MAINSTAY__ENVELOPE__INIT;
    struct mst_fabric *source;
    struct rogue first, other;
    uint8_t frame[200];
    bool closed = false;
    int n;

    rig_keeper_start(1);
    rig_keeper_start(2);
    ck_done_ok(rig_start(1, "web01", 5, MIRROR, "x", NULL));
    grant_take(rig_mirror(2, "web01", 5, 1, 0));
    ck_assert_int_eq(mst_fabric_open(&rig->loop, rig_address(1), &source, NULL), 0);
    rogue_connect(rig->fabric, granted.log_id, &other); /* not from the source's address */
    ck_assert_int_eq(other.err, -EACCES);
    ck_assert_msg(strstr(other.why, "no log of that number") != NULL, "%s", other.why);
    rogue_connect(source, granted.log_id + 1, &other);
    ck_assert_int_eq(other.err, -EACCES);
    rogue_connect(source, granted.log_id, &first);
    ck_assert_int_eq(first.err, 0);
    ck_assert(rig_until(rogue_has_message, &first, 5000));
    ck_assert_int_eq(first.last->body_case, MAINSTAY__ENVELOPE__BODY_MIRROR_KEY);
    ck_assert_uint_eq(first.last->mirror_key->log_id, granted.log_id);
    ck_assert_uint_eq(first.last->mirror_key->log->bytes, mst_mlog_bytes(granted.ring_bytes));
    rogue_connect(source, granted.log_id, &other);
    ck_assert_int_eq(other.err, -EACCES);
    ck_assert_msg(strstr(other.why, "has had its writer") != NULL, "%s", other.why);
    /* It says that it has written, and has not. */
    mst_envelope_free(first.last);
    first.last = NULL;
    said.log_id = granted.log_id;
    said.position = 4096;
    env.body_case = MAINSTAY__ENVELOPE__BODY_MIRROR_WRITTEN;
    env.mirror_written = &said;
    n = mst_frame_pack(&env, frame, sizeof(frame));
    ck_assert_int_eq(mst_link_send(first.link, frame, (size_t)n), 0);
    ck_assert(rig_until(rogue_has_message, &first, 1000));
    ck_assert_int_eq(first.last->body_case, MAINSTAY__ENVELOPE__BODY_MIRROR_ACK);
    ck_assert_uint_eq(first.last->mirror_ack->consumed, 0);
    ck_assert(rig_until(rogue_is_closed, &first, 10000));
    ck_assert_int_eq(first.last->body_case, MAINSTAY__ENVELOPE__BODY_REFUSE);
    mst_envelope_free(first.last);
    ck_done_err(rig_mirror_revoke(2, "web01", 5), ENODATA, "no checkpoint");
    mst_fabric_close(source, set, &closed);
    ck_assert(rig_until(is_set, &closed, 5000));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("mirror");
    TCase *orders = tcase_create("orders"), *ends = tcase_create("ends"), *waits = tcase_create("waits");
    SRunner *runner;
    int failed;

    if (!rig_can_run()) {
        fprintf(stderr, "SKIPPED: cgroup v2 is not writable here, and a keeper fences with it\n");
        return 77;
    }
    tcase_set_timeout(orders, 120);
    tcase_add_checked_fixture(orders, rig_setup, rig_teardown);
    tcase_add_loop_test(orders, a_vm_goes_on_from_its_image_when_its_node_is_gone, 0, 2);
    tcase_add_test(orders, an_image_is_pulled_by_another_node_once_it_is_verified);
    tcase_add_test(orders, a_mirrors_next_keeper_keeps_what_was_acknowledged);
    tcase_add_test(orders, a_mirror_that_is_lost_does_not_stop_the_checkpoints_and_another_one_is_seeded);
    tcase_add_test(orders, an_image_that_rots_is_found_by_its_keeper_and_given_up);
    tcase_add_test(orders, a_mirror_that_does_not_answer_is_given_up_and_holds_nothing_up_for_long);
    tcase_add_test(orders, orders_about_mirrors_may_come_twice_and_strange_ones_are_refused);
    tcase_add_test(orders, a_log_has_one_writer_who_was_named_and_gets_one_key);
    tcase_add_test(orders, an_image_is_no_grant_and_a_fence_says_nothing_about_it);
    suite_add_tcase(suite, orders);
    tcase_set_timeout(ends, 120);
    tcase_add_checked_fixture(ends, rig_setup, rig_teardown);
    tcase_add_test(ends, a_vm_that_is_still_starting_is_not_mirrored);
    tcase_add_test(ends, a_slot_that_is_freed_takes_its_mirrors_along);
    tcase_add_test(ends, a_source_that_was_fenced_writes_nothing_more);
    tcase_add_test(ends, an_image_that_is_revoked_while_it_is_made_is_not_granted);
    suite_add_tcase(suite, ends);
    tcase_set_timeout(waits, 120);
    tcase_add_checked_fixture(waits, rig_setup, rig_teardown);
    tcase_add_test(waits, what_was_sent_to_a_mirror_is_told_with_the_time_that_took);
    tcase_add_test(waits, device_state_that_was_damaged_in_memory_does_not_reach_the_mirror);
    tcase_add_test(waits, after_a_pause_checkpoints_do_not_wait_for_a_mirror_for_ever);
    tcase_add_test(waits, a_mirror_that_opens_its_link_and_sends_no_key_is_given_up);
    tcase_add_test(waits, the_agent_waits_for_each_mirror_also_when_another_fails_at_that_very_checkpoint);
    suite_add_tcase(suite, waits);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    rig_sweep();
    return failed ? 1 : 0;
}
