#include "base/mutant.h"
#include "mirror/image.h"
#include "tests/unit/core/world.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/wait.h>
#include <unistd.h>

/* Mirrors as the coordinator sees them. The rules themselves are checked by world_mirror.c at each order and row, in every test. */

static_assert((int)MST_SLOT_IMAGE_SEEDING == (int)MST_IMAGE_SEEDING &&
                  (int)MST_SLOT_IMAGE_MIRRORING == (int)MST_IMAGE_MIRRORING &&
                  (int)MST_SLOT_IMAGE_REVOKED == (int)MST_IMAGE_REVOKED &&
                  (int)MST_SLOT_IMAGE_VERIFIED == (int)MST_IMAGE_VERIFIED && (int)MST_SLOT_IMAGE_USED == (int)MST_IMAGE_USED,
              "the core does not include mirror/");

unsigned mst_mutant;

#define VM "web01"

static struct world *mirrored_vm(unsigned nodes)
{
    struct world *w = world_new(nodes);
    struct mst_definition def = world_mirror_def(VM, 16);

    world_define(w, &def);
    world_start_vm(w, VM, "n1");
    world_checkpoint(w, VM, 7);
    ck_assert(world_until(w, 5000, is_mirrored, VM));
    return w;
}

static struct mst_vm_look look(struct world *w)
{
    struct mst_vm_look ret;

    ck_assert(mst_core_vm_by_name(w->core, VM, &ret));
    return ret;
}

static void power_off(struct world *w, unsigned node)
{
    w->nodes[node].powered = w->nodes[node].up = false;
    memset(w->nodes[node].slots, 0, sizeof(w->nodes[node].slots));
    memset(w->nodes[node].logs, 0, sizeof(w->nodes[node].logs));
    world_cut(w, node, true);
}

static unsigned mirror_of(const struct world *w)
{
    const struct mst_mirror_row *row = world_mirror(w, VM, 0);

    ck_assert_ptr_nonnull(row);
    ck_assert(row->counts);
    return row->node_id - 1;
}

static bool image_there(const struct world *w, unsigned node, uint64_t epoch)
{
    struct mst_slot *slot = world_slot((struct world_node *)&w->nodes[node], VM, epoch);

    return slot && slot->run_state == MST_RUN_IMAGE;
}

static void resumed_from_image(struct world *w, uint64_t epoch, uint64_t seq)
{
    const struct world_event *start = world_last(w, MST_ORDER_START, VM);

    ck_assert(start->has_source && start->image);
    ck_assert_uint_eq(start->source_epoch, epoch);
    ck_assert_uint_eq(start->source_seq, seq);
    ck_assert_int_eq(world_rvm(w, VM)->outcome, MST_OUT_RESUMED);
}

/* --- while it runs --- */

START_TEST(a_running_vm_gets_a_mirror_where_most_memory_is_and_status_says_since_when)
{
    struct world *w = world_new(3);
    struct mst_definition def = world_mirror_def(VM, 16);

    w->nodes[2].hello.memory_mib = 1024;
    world_restart(w);
    world_run(w, 1500);
    world_define(w, &def);
    world_start_vm(w, VM, "n1");
    world_run(w, 1000);
    ck_assert(look(w).exposed);
    ck_assert_ptr_nonnull(strstr(look(w).protection, "exposed for"));
    ck_assert_ptr_nonnull(strstr(look(w).protection, "n3 is seeding"));
    ck_assert_ptr_null(world_mirror(w, VM, 0)); /* it does not count */
    world_checkpoint(w, VM, 7);
    ck_assert(world_until(w, 5000, is_mirrored, VM));
    ck_assert_uint_eq(mirror_of(w), 2);
    ck_assert_uint_eq(world_mirror(w, VM, 0)->epoch, 1);
    world_checkpoint(w, VM, 8);
    world_run(w, 2500);
    ck_assert(!look(w).exposed);
    ck_assert_uint_eq(look(w).mirrors[0].acked_seq, 8);
    ck_assert_ptr_nonnull(strstr(look(w).protection, "on n3 since 2 s, checkpoint 8 of 8"));
    ck_assert_uint_eq(world_orders(w, MST_ORDER_MIRROR, VM), 1);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_MIRROR_TO, VM), 1);
    ck_assert_uint_eq(w->mirrors_joined, 1);
    world_free(w);
}
END_TEST

START_TEST(status_says_whether_a_qemu_waits_beside_the_image_and_why_none_does)
{
    struct world *w = mirrored_vm(3);
    struct mst_slot *image = world_slot(&w->nodes[mirror_of(w)], VM, 1);

    world_run(w, 1500);
    ck_assert_ptr_null(look(w).mirrors[0].standby); /* an earlier keeper does not say */
    image->standby = MST_SLOT_STANDBY_WARM;
    world_run(w, 1500);
    ck_assert_str_eq(look(w).mirrors[0].standby, "warm");
    image->standby = MST_SLOT_STANDBY_FULL;
    world_run(w, 1500);
    ck_assert_str_eq(look(w).mirrors[0].standby, "cold: others take the standby-memory-mib of its node");
    world_free(w);
}
END_TEST

START_TEST(status_says_how_often_checkpoints_come_and_what_is_wrong_with_the_next)
{
    struct world *w = world_new(3);
    struct mst_definition def = world_mirror_def(VM, 16);
    struct mst_slot *slot;

    world_define(w, &def);
    world_start_vm(w, VM, "n1");
    world_run(w, 1000);
    ck_assert_uint_eq(look(w).interval_ms, 0);
    slot = world_slot(&w->nodes[0], VM, 1);
    slot->interval_ms = 480;
    slot->pages = 12000;
    slot->dirty_pages = 70000;
    slot->pause_p50_us = 4000;
    slot->pause_p99_us = 9000;
    slot->pace = MST_SLOT_PACE_STALL;
    w->nodes[0].generation++;
    world_run(w, 2000);
    ck_assert_uint_eq(look(w).interval_ms, 480);
    ck_assert_uint_eq(look(w).pages, 12000);
    ck_assert_uint_eq(look(w).dirty_pages, 70000);
    ck_assert_uint_eq(look(w).pause_p50_us, 4000);
    ck_assert_uint_eq(look(w).pause_p99_us, 9000);
    ck_assert_ptr_nonnull(strstr(look(w).pace, "stand still"));
    ck_assert_ptr_null(look(w).trouble);
    ck_assert_str_eq(look(w).text, "");
    slot->trouble = MST_SLOT_TROUBLE_MIRROR;
    slot->trouble_wall_ms = 5;
    w->nodes[0].generation++;
    world_run(w, 2000);
    ck_assert_str_eq(look(w).trouble, "mirror");
    ck_assert_uint_eq(look(w).trouble_wall_ms, 5);
    ck_assert_ptr_nonnull(strstr(look(w).text, "no checkpoint yet: its mirrors"));
    world_checkpoint(w, VM, 7);
    slot->taken_wall_ms = UINT64_C(1700000000000) + w->now_us / 1000 - 3200; /* as world.c tells the time */
    w->nodes[0].generation++;
    world_run(w, 2000);
    ck_assert_ptr_nonnull(strstr(look(w).text, "last good checkpoint 7, 5."));
    slot->trouble = MST_SLOT_TROUBLE_NONE;
    w->nodes[0].generation++;
    world_run(w, 2000);
    ck_assert_ptr_null(look(w).trouble);
    ck_assert_str_eq(look(w).text, "");
    world_free(w);
}
END_TEST

START_TEST(vms_under_other_levels_get_none)
{
    struct world *w = world_new(3);
    struct mst_definition def = world_def(VM, 16, true);

    world_define(w, &def);
    world_start_vm(w, VM, "n1");
    world_checkpoint(w, VM, 7);
    world_run(w, 3000);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_MIRROR, NULL), 0);
    ck_assert_str_eq(look(w).protection, "");
    world_free(w);
}
END_TEST

START_TEST(only_allowed_nodes_become_mirrors)
{
    struct world *w = world_new(3);
    struct mst_definition def = world_mirror_def(VM, 16);

    def.allowed_count = 2;
    def.allowed[0] = 1;
    def.allowed[1] = 3;
    world_define(w, &def);
    world_start_vm(w, VM, "n1");
    world_checkpoint(w, VM, 7);
    ck_assert(world_until(w, 5000, is_mirrored, VM));
    ck_assert_uint_eq(mirror_of(w), 2);
    world_free(w);
}
END_TEST

/* Each node's label, from n1 on, in its Hello; -: none. */
static struct world *racked(unsigned nodes, const char *labels)
{
    struct world *w = world_new(nodes);

    for (unsigned i = 0; i < nodes; i++) {
        if (labels[i] != '-')
            snprintf(w->nodes[i].hello.rack, sizeof(w->nodes[i].hello.rack), "%c", labels[i]);
    }
    world_restart(w);
    world_run(w, 1500);
    return w;
}

static void start_mirrored(struct world *w, uint8_t apart)
{
    struct mst_definition def = world_mirror_def(VM, 16);

    def.mirror_apart = apart;
    world_define(w, &def);
    world_start_vm(w, VM, "n1");
    world_checkpoint(w, VM, 7);
}

START_TEST(a_mirror_is_chosen_outside_the_rack_of_its_vm)
{
    struct world *w = racked(3, "aab");

    w->nodes[1].hello.memory_mib = 4096;
    world_restart(w);
    world_run(w, 1500);
    start_mirrored(w, MST_MIRROR_APART_NODE);
    ck_assert(world_until(w, 5000, is_mirrored, VM));
    ck_assert_uint_eq(mirror_of(w), 2);
    ck_assert(!look(w).mirrors[0].same_rack);
    ck_assert_ptr_null(strstr(look(w).protection, "rack"));
    ck_assert_str_eq(w->mirror_event, "mirror.joined n3 ");
    world_free(w);
}
END_TEST

START_TEST(the_label_of_the_coordinators_file_counts_more_than_what_a_node_says)
{
    struct world *w = racked(3, "aab");
    struct mst_node_look node;
    struct mst_time t = {.us = w->now_us, .wall_ms = 1};

    snprintf(w->conf.nodes[2].rack, sizeof(w->conf.nodes[2].rack), "a");
    snprintf(w->conf.nodes[1].rack, sizeof(w->conf.nodes[1].rack), "c");
    world_restart(w);
    world_run(w, 1500);
    mst_core_node(w->core, &t, 2, &node);
    ck_assert_str_eq(node.rack, "a");
    mst_core_node(w->core, &t, 0, &node);
    ck_assert_str_eq(node.rack, "a");
    start_mirrored(w, MST_MIRROR_APART_RACK);
    ck_assert(world_until(w, 5000, is_mirrored, VM));
    ck_assert_uint_eq(mirror_of(w), 1);
    world_free(w);
}
END_TEST

START_TEST(what_a_source_says_of_its_sending_is_shown_of_this_mirror_and_not_of_the_one_before)
{
    struct world *w = mirrored_vm(3);
    unsigned first = mirror_of(w);

    world_run(w, 2000);
    ck_assert_uint_eq(look(w).mirrors[0].acked_seq, 7);
    ck_assert_uint_eq(look(w).mirrors[0].sent_bytes, 7000); /* as world_mirror.c tells it */
    ck_assert_uint_eq(look(w).mirrors[0].sending_us, 70);
    ck_assert_uint_eq(look(w).mirrors[0].acked_after_us, 1500);
    power_off(w, first);
    for (unsigned i = 0; i < 200; i++) {
        struct mst_vm_look l;

        world_run(w, 100);
        l = look(w);
        for (unsigned n = 0; n < l.mirrors_count; n++)
            ck_assert_uint_eq(l.mirrors[n].sent_bytes, l.mirrors[n].acked_seq * 1000);
    }
    ck_assert(is_mirrored(w, VM));
    ck_assert_uint_ne(mirror_of(w), first);
    world_free(w);
}
END_TEST

START_TEST(a_mirror_in_the_same_rack_is_better_than_none_and_is_said)
{
    struct world *w = racked(2, "aa");

    start_mirrored(w, MST_MIRROR_APART_NODE);
    ck_assert(world_until(w, 5000, is_mirrored, VM));
    ck_assert(look(w).mirrors[0].same_rack);
    ck_assert_ptr_nonnull(strstr(look(w).protection, "ms behind; in the VM's own rack (a)"));
    ck_assert_str_eq(w->mirror_event, "mirror.joined n2 in the VM's own rack (a)");
    world_free(w);
}
END_TEST

START_TEST(a_vm_that_demands_another_rack_gets_no_mirror_in_its_own_and_the_numbers_are_said)
{
    struct world *w = racked(3, "aab");

    w->nodes[2].hello.memory_mib = 30;
    world_restart(w);
    world_run(w, 1500);
    start_mirrored(w, MST_MIRROR_APART_RACK);
    world_run(w, 3000);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_MIRROR, VM), 0);
    ck_assert_ptr_nonnull(strstr(look(w).protection, "exposed for 3"));
    ck_assert_ptr_nonnull(strstr(look(w).protection, "nobody in another rack can take its image: n1: has it already; n2: in the "
                                                     "VM's rack; n3: 30 MiB left, 39 needed"));
    ck_assert_ptr_nonnull(strstr(w->mirror_event, "mirror.refused - nobody in another rack can take its image"));
    ck_assert_uint_eq(w->mirrors_refused, 1);
    w->nodes[2].hello.memory_mib = 31; /* other numbers are shown at once, and told of now and then */
    world_cut(w, 2, true);
    world_cut(w, 2, false);
    world_run(w, 4000);
    ck_assert_ptr_nonnull(strstr(look(w).protection, "n3: 31 MiB left"));
    ck_assert_uint_eq(w->mirrors_refused, 1);
    ck_assert_int_eq(world_phase(w, VM), MST_VM_RUNNING);
    w->nodes[2].hello.memory_mib = 768;
    world_cut(w, 2, true);
    world_cut(w, 2, false);
    ck_assert(world_until(w, 5000, is_mirrored, VM));
    ck_assert_uint_eq(mirror_of(w), 2);
    world_free(w);
}
END_TEST

START_TEST(a_mirror_that_fails_counts_no_more_is_left_out_forgotten_and_replaced)
{
    struct world *w = mirrored_vm(3);
    unsigned first = mirror_of(w);
    uint64_t log_id = world_mirror(w, VM, 0)->log_id;

    w->nodes[0].logs[0].phase = MST_MIRROR_FAILED; /* told within a second */
    world_run(w, 1500);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_MIRROR_DROP, VM), 1);
    ck_assert(world_until(w, 5000, is_mirrored, VM));
    ck_assert_uint_ne(world_mirror(w, VM, 0)->log_id, log_id);
    ck_assert_uint_ne(mirror_of(w), first); /* elsewhere, as there is one */
    ck_assert_uint_eq(w->mirrors_left, 1);
    world_run(w, 2000);
    ck_assert(!image_there(w, first, 1));
    world_free(w);
}
END_TEST

START_TEST(a_failed_mirror_is_tried_again_on_the_same_node_when_there_is_no_other)
{
    struct world *w = mirrored_vm(2);

    w->nodes[0].logs[0].phase = MST_MIRROR_FAILED;
    world_run(w, 1500);
    ck_assert(world_until(w, 10000, is_mirrored, VM));
    ck_assert_uint_eq(w->nodes[1].images_made, 2);
    world_free(w);
}
END_TEST

START_TEST(a_mirror_whose_node_is_lost_is_replaced)
{
    struct world *w = mirrored_vm(3);
    unsigned first = mirror_of(w);

    power_off(w, first);
    world_run(w, 200);
    ck_assert(world_until(w, 5000, is_mirrored, VM));
    ck_assert_uint_ne(mirror_of(w), first);
    ck_assert_uint_eq(world_epoch(w, VM), 1);
    world_free(w);
}
END_TEST

START_TEST(a_mirror_whose_keeper_starts_anew_is_seeded_anew)
{
    struct world *w = mirrored_vm(2);

    world_node_kill(w, 1);
    world_node_return(w, 1, true);
    world_run(w, 1500);
    ck_assert(world_until(w, 10000, is_mirrored, VM));
    ck_assert_uint_eq(world_mirror(w, VM, 0)->instance, w->nodes[1].hello.instance);
    ck_assert_uint_eq(w->mirrors_left, 1);
    world_free(w);
}
END_TEST

START_TEST(without_room_for_an_image_the_numbers_are_said_and_the_vm_runs_on)
{
    struct world *w = world_new(2);
    struct mst_definition def = world_mirror_def(VM, 200); /* 400 MiB and more for its image */

    w->nodes[1].hello.memory_mib = 300;
    world_restart(w);
    world_run(w, 1500);
    world_define(w, &def);
    world_start_vm(w, VM, "n1");
    world_checkpoint(w, VM, 7);
    world_run(w, 3000);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_MIRROR, VM), 0);
    ck_assert_ptr_nonnull(strstr(look(w).protection, "n2: 300 MiB left, 42"));
    ck_assert_int_eq(world_phase(w, VM), MST_VM_RUNNING);
    w->nodes[1].hello.memory_mib = 768; /* as it says when it calls again */
    world_cut(w, 1, true);
    world_cut(w, 1, false);
    ck_assert(world_until(w, 5000, is_mirrored, VM));
    world_free(w);
}
END_TEST

START_TEST(room_that_was_kept_free_for_an_image_is_given_to_who_waits_for_it)
{
    struct world *w = world_new(2);
    struct mst_definition def = world_mirror_def(VM, 16), big = world_def("big", 740, false);

    big.allowed[big.allowed_count++] = 2;
    world_define(w, &def);
    world_define(w, &big);
    w->nodes[1].orders_wait = true; /* the one to make the image */
    world_start_vm(w, VM, "n1");
    world_run(w, 1100);
    ck_assert_int_eq(world_request(w, MST_REQ_START, "big", NULL), -ENOSPC);
    w->nodes[1].mirror_err = -ENOSPC;
    w->nodes[1].orders_wait = false;
    ck_assert(world_until(w, 10000, runs_somewhere, "big"));
    world_free(w);
}
END_TEST

START_TEST(a_node_that_refuses_an_image_is_asked_again_less_and_less_often)
{
    struct world *w = world_new(2);
    struct mst_definition def = world_mirror_def(VM, 16);
    unsigned asked;

    w->nodes[1].mirror_err = -ENOSPC;
    world_define(w, &def);
    world_start_vm(w, VM, "n1");
    world_checkpoint(w, VM, 7);
    world_run(w, 20000);
    asked = world_orders(w, MST_ORDER_MIRROR, VM);
    ck_assert_uint_ge(asked, 3);
    ck_assert_uint_le(asked, 6);
    ck_assert_ptr_nonnull(strstr(look(w).protection, "1 MiB left"));
    w->nodes[1].mirror_err = 0;
    ck_assert(world_until(w, 31000, is_mirrored, VM));
    world_free(w);
}
END_TEST

START_TEST(an_image_counts_against_the_memory_of_its_node)
{
    struct world *w = mirrored_vm(2);
    struct mst_definition other = world_def("db", 750, false);
    struct mst_node_look node;
    struct mst_time t = {.us = w->now_us, .wall_ms = 1};

    mst_core_node(w->core, &t, 1, &node);
    ck_assert_uint_ge(node.memory_used_mib, 2 * 16 + 2);
    world_define(w, &other);
    ck_assert_int_eq(world_request(w, MST_REQ_START, "db", "n2"), -ENOSPC);
    world_free(w);
}
END_TEST

START_TEST(an_image_is_forgotten_when_the_vm_is_stopped)
{
    struct world *w = mirrored_vm(2);

    ck_assert_int_eq(world_request(w, MST_REQ_STOP, VM, NULL), 0);
    world_run(w, 3000);
    ck_assert(!image_there(w, 1, 1));
    world_start_vm(w, VM, "n1"); /* boots: nothing of its former life is taken */
    ck_assert(!world_last(w, MST_ORDER_START, VM)->has_source);
    world_checkpoint(w, VM, 3);
    ck_assert(world_until(w, 5000, is_mirrored, VM));
    ck_assert_uint_eq(world_mirror(w, VM, 0)->epoch, 2);
    world_free(w);
}
END_TEST

/* --- takeover --- */

START_TEST(a_lost_node_costs_nothing_that_its_mirror_acknowledged)
{
    struct world *w = mirrored_vm(3);
    unsigned mirror = mirror_of(w);

    world_checkpoint(w, VM, 9);
    world_run(w, 1200);
    power_off(w, 0);
    ck_assert(world_until(w, 15000, recovery_closed, NULL));
    resumed_from_image(w, 1, 9);
    ck_assert_int_eq(world_where(w, VM), (int)mirror); /* nothing goes over the wire */
    ck_assert_uint_eq(world_epoch(w, VM), 2);
    ck_assert_uint_eq(w->mirrors_used, 1);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_MIRROR_REVOKE, VM), 1);
    world_free(w);
}
END_TEST

START_TEST(after_a_takeover_it_is_exposed_until_a_new_mirror_counts_and_old_images_go)
{
    struct world *w = mirrored_vm(3);
    unsigned mirror = mirror_of(w);

    power_off(w, 0);
    ck_assert(world_until(w, 15000, recovery_closed, NULL));
    world_run(w, 2000);
    ck_assert(look(w).exposed);
    ck_assert(image_there(w, mirror, 1)); /* there is nothing newer yet */
    world_checkpoint(w, VM, 12);
    ck_assert(world_until(w, 10000, is_mirrored, VM));
    world_run(w, 2000);
    ck_assert(!look(w).exposed);
    ck_assert_uint_eq(world_mirror(w, VM, 0)->epoch, 2);
    ck_assert(!image_there(w, mirror, 1));
    world_free(w);
}
END_TEST

START_TEST(another_node_pulls_from_the_image_when_its_own_has_no_room)
{
    struct world *w = mirrored_vm(3);
    unsigned mirror = mirror_of(w);
    struct mst_definition other = world_def("db", 690, false);

    world_define(w, &other);
    world_start_vm(w, "db", w->nodes[mirror].hello.node);
    power_off(w, 0);
    ck_assert(world_until(w, 15000, recovery_closed, NULL));
    resumed_from_image(w, 1, 7);
    ck_assert_uint_eq(world_last(w, MST_ORDER_START, VM)->source_node, mirror + 1);
    ck_assert_int_ne(world_where(w, VM), (int)mirror);
    world_free(w);
}
END_TEST

START_TEST(an_image_that_does_not_count_is_not_resumed_from)
{
    struct world *w = world_new(2);
    struct mst_definition def = world_mirror_def(VM, 16);

    w->nodes[1].image_stuck = true;
    world_define(w, &def);
    world_start_vm(w, VM, "n1");
    world_checkpoint(w, VM, 7);
    world_run(w, 3000);
    ck_assert(image_there(w, 1, 1));
    power_off(w, 0);
    ck_assert(world_until(w, 15000, recovery_closed, NULL));
    ck_assert_int_eq(world_rvm(w, VM)->outcome, MST_OUT_RESTARTED);
    ck_assert_ptr_nonnull(strstr(world_rvm(w, VM)->text, "no mirror had it"));
    ck_assert_uint_eq(world_orders(w, MST_ORDER_MIRROR_REVOKE, VM), 0);
    world_free(w);
}
END_TEST

static bool waits_for_mirror(struct world *w, const void *unused)
{
    struct mst_recovery_look look;

    (void)unused;
    return mst_core_recovery(w->core, 0, &look) && strstr(look.why, "the mirror of web01 may be on n2, which cannot be read");
}

START_TEST(a_mirror_that_is_away_is_waited_for_with_its_reason)
{
    struct world *w = mirrored_vm(3);
    uint32_t id = world_mirror(w, VM, 0)->node_id;

    ck_assert_uint_eq(id, 2);
    world_cut(w, 1, true); /* the source sees it as well; but both go at once */
    power_off(w, 0);
    mst_core_node(w->core, &(struct mst_time){.us = w->now_us}, 0, &(struct mst_node_look){0});
    ck_assert_int_eq(world_request(w, MST_REQ_GO_ON, "", NULL), 0);
    ck_assert(world_until(w, 20000, waits_for_mirror, NULL));
    ck_assert(world_until(w, 20000, is_held, VM));
    ck_assert_ptr_nonnull(strstr(look(w).text, "n2"));
    world_cut(w, 1, false);
    ck_assert(world_until(w, 20000, runs_somewhere, VM));
    resumed_from_image(w, 1, 7);
    world_free(w);
}
END_TEST

START_TEST(when_both_are_lost_it_is_restarted_and_the_loss_is_said)
{
    struct world *w = mirrored_vm(3);

    power_off(w, 0);
    power_off(w, mirror_of(w));
    ck_assert_int_eq(world_request(w, MST_REQ_GO_ON, "", NULL), 0);
    ck_assert(world_until(w, 60000, runs_somewhere, VM));
    ck_assert_int_eq(world_rvm(w, VM)->outcome, MST_OUT_RESTARTED);
    ck_assert_ptr_nonnull(strstr(world_rvm(w, VM)->text, "and its mirror on n2 is lost too"));
    ck_assert(!world_last(w, MST_ORDER_START, VM)->has_source);
    ck_assert_uint_gt(w->looks_asked, 0);
    world_free(w);
}
END_TEST

START_TEST(power_that_is_on_or_cannot_be_asked_is_no_proof_that_the_image_is_gone)
{
    struct world *w = mirrored_vm(3);
    unsigned fences;

    world_cut(w, 1, true);
    power_off(w, 0);
    ck_assert_int_eq(world_request(w, MST_REQ_GO_ON, "", NULL), 0);
    ck_assert(world_until(w, 30000, is_held, VM));
    fences = w->fence_asked;
    world_run(w, 60000);
    ck_assert_uint_gt(w->looks_asked, 3);
    ck_assert_uint_eq(w->fence_asked, fences); /* the image would go with the power */
    ck_assert(is_held(w, VM));
    w->power = POWER_FAILS;
    world_run(w, 60000);
    ck_assert(is_held(w, VM));
    world_free(w);
}
END_TEST

START_TEST(node_that_calls_while_its_power_is_asked_for_is_not_taken_for_dead)
{
    struct world *w = mirrored_vm(3);
    struct mst_node_look node;

    w->fence_takes_ms = 5000;
    power_off(w, 0);
    power_off(w, mirror_of(w));
    ck_assert_int_eq(world_request(w, MST_REQ_GO_ON, "", NULL), 0);
    ck_assert(world_until(w, 30000, is_held, VM));
    for (unsigned i = 0; i < 1000 && !w->fences[1].running; i++)
        world_run(w, 10);
    ck_assert(w->fences[1].running && w->fences[1].look);
    world_node_power_on(w, 1); /* its power was off when it was asked for */
    for (unsigned i = 0, up = 0; i < 800; i++) {
        world_run(w, 10);
        mst_core_node(w->core, &(struct mst_time){.us = w->now_us}, 1, &node);
        up += node.state == MST_NODE_UP;
        ck_assert(up == 0 || node.state == MST_NODE_UP);
        ck_assert(up > 0 || i < 500);
    }
    world_free(w);
}
END_TEST

START_TEST(when_both_are_lost_and_nobody_knows_it_the_operator_says_so)
{
    struct world *w = mirrored_vm(3);

    world_cut(w, 1, true); /* its power is on */
    power_off(w, 0);
    ck_assert_int_eq(world_request(w, MST_REQ_GO_ON, "", NULL), 0);
    ck_assert(world_until(w, 30000, is_held, VM) || runs_somewhere(w, VM));
    ck_assert_int_eq(world_request(w, MST_REQ_CONFIRM_DEAD, "n2", NULL), 0);
    ck_assert(world_until(w, 20000, runs_somewhere, VM));
    ck_assert_int_eq(world_rvm(w, VM)->outcome, MST_OUT_RESTARTED);
    ck_assert(!world_last(w, MST_ORDER_START, VM)->has_source);
    world_free(w);
}
END_TEST

START_TEST(a_damaged_image_is_not_used_and_the_loss_is_said)
{
    struct world *w = mirrored_vm(2);

    w->nodes[1].revoke_err = -EBADMSG;
    power_off(w, 0);
    ck_assert(world_until(w, 15000, recovery_closed, NULL));
    ck_assert_int_eq(world_rvm(w, VM)->outcome, MST_OUT_RESTARTED);
    ck_assert_ptr_nonnull(strstr(world_rvm(w, VM)->text, "its mirror on n2 is lost too"));
    world_free(w);
}
END_TEST

START_TEST(a_mirror_that_had_left_is_not_resumed_from)
{
    struct world *w = mirrored_vm(2);

    w->nodes[1].mirror_err = -ENOSPC; /* no new one */
    w->nodes[0].logs[0].phase = MST_MIRROR_FAILED;
    world_run(w, 1030); /* its row says so; its image may still be there */
    ck_assert(!world_mirror(w, VM, 0)->counts);
    power_off(w, 0);
    ck_assert(world_until(w, 15000, recovery_closed, NULL));
    ck_assert_int_eq(world_rvm(w, VM)->outcome, MST_OUT_RESTARTED);
    ck_assert_ptr_nonnull(strstr(world_rvm(w, VM)->text, "exposed: its mirror on n2 had left"));
    world_free(w);
}
END_TEST

START_TEST(an_image_whose_keeper_started_anew_still_counts_and_is_verified)
{
    struct world *w = mirrored_vm(2);

    power_off(w, 0);
    world_node_kill(w, 1);
    world_run(w, 300);
    world_node_return(w, 1, true);
    ck_assert(world_until(w, 30000, runs_somewhere, VM));
    resumed_from_image(w, 1, 7);
    world_free(w);
}
END_TEST

START_TEST(its_own_save_is_preferred_when_its_memory_can_be_read)
{
    struct world *w = mirrored_vm(3);

    w->nodes[1].image_stuck = w->nodes[2].image_stuck = true;
    world_checkpoint(w, VM, 9);
    world_run(w, 1200);
    world_vm_die(w, 0, VM);
    ck_assert(world_until(w, 10000, recovery_closed, NULL));
    ck_assert_int_eq(world_where(w, VM), 0); /* in place */
    ck_assert(!world_last(w, MST_ORDER_START, VM)->image);
    ck_assert_uint_eq(world_last(w, MST_ORDER_START, VM)->source_seq, 9);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_MIRROR_REVOKE, VM), 0);
    w->nodes[1].image_stuck = w->nodes[2].image_stuck = false;
    world_checkpoint(w, VM, 10);
    ck_assert(world_until(w, 10000, is_mirrored, VM));
    world_run(w, 3000);
    ck_assert(!image_there(w, 1, 1) && !image_there(w, 2, 1));
    world_free(w);
}
END_TEST

START_TEST(a_save_that_is_lost_while_its_vm_is_held_is_replaced_by_the_image)
{
    struct world *w = mirrored_vm(3);

    ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n2", NULL), 0);
    ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n3", NULL), 0);
    world_node_kill(w, 0);
    w->nodes[0].hello.memory_mib = 8; /* nor is there room where it was */
    world_run(w, 300);
    world_node_return(w, 0, true);
    ck_assert(world_until(w, 20000, is_held, VM));
    ck_assert_uint_eq(world_orders(w, MST_ORDER_MIRROR_REVOKE, VM), 0); /* its own save is there, and newer */
    if (_i == 2) {                                                      /* its power is gone, and its link has not noticed */
        w->nodes[0].beats_fail = true;
        w->nodes[0].reads_fail = UINT64_MAX;
    } else {
        power_off(w, 0);
    }
    world_run(w, 15000);
    if (_i == 1) /* proved dead; otherwise away */
        ck_assert_int_eq(world_request(w, MST_REQ_CONFIRM_DEAD, "n1", NULL), 0);
    ck_assert_int_eq(world_request(w, MST_REQ_UNDRAIN, "n3", NULL), 0);
    ck_assert(world_until(w, 20000, runs_somewhere, VM));
    resumed_from_image(w, 1, 7);
    world_free(w);
}
END_TEST

START_TEST(an_image_that_is_lost_while_it_is_resumed_from_is_replaced_by_the_save_where_the_vm_ran)
{
    struct world *w = mirrored_vm(4);
    unsigned mirror = mirror_of(w);
    const struct world_event *start;

    for (unsigned i = 1; i < 4; i++)
        w->nodes[i].start_err = -EIO;
    world_node_kill(w, 0);
    w->nodes[0].hello.memory_mib = 8; /* no room where it was */
    world_run(w, 300);
    world_node_return(w, 0, true);
    for (unsigned i = 0; i < 1000 && world_orders(w, MST_ORDER_START, VM) < 3; i++)
        world_run(w, 10);
    ck_assert(world_last(w, MST_ORDER_START, VM)->image); /* the other one was not taken where it was started first */
    power_off(w, mirror);
    for (unsigned i = 1; i < 4; i++)
        w->nodes[i].start_err = 0;
    ck_assert(world_until(w, 40000, runs_somewhere, VM));
    start = world_last(w, MST_ORDER_START, VM);
    ck_assert(start->has_source && !start->image);
    ck_assert_uint_eq(start->source_node, 1);
    ck_assert_uint_eq(start->source_epoch, 1);
    ck_assert_uint_eq(start->source_seq, 7);
    world_free(w);
}
END_TEST

START_TEST(a_save_that_does_not_check_is_replaced_by_the_image)
{
    struct world *w = mirrored_vm(2);

    w->nodes[0].start_err = w->nodes[1].start_err = -EUCLEAN;
    world_vm_die(w, 0, VM);
    for (unsigned i = 0; i < 2000 && world_orders(w, MST_ORDER_START, VM) < 3; i++)
        world_run(w, 10);
    w->nodes[0].start_err = w->nodes[1].start_err = 0;
    ck_assert(world_until(w, 20000, runs_somewhere, VM));
    resumed_from_image(w, 1, 7);
    world_free(w);
}
END_TEST

START_TEST(an_image_that_two_pulls_refuse_is_bad_itself)
{
    struct world *w = mirrored_vm(3);

    w->nodes[1].start_err = w->nodes[2].start_err = -EUCLEAN;
    power_off(w, 0);
    for (unsigned i = 0; i < 3000 && world_orders(w, MST_ORDER_START, VM) < 3; i++)
        world_run(w, 10);
    w->nodes[1].start_err = w->nodes[2].start_err = 0;
    ck_assert(world_until(w, 20000, runs_somewhere, VM));
    ck_assert_int_eq(world_rvm(w, VM)->outcome, MST_OUT_RESTARTED);
    world_free(w);
}
END_TEST

static bool two_count(struct world *w, const void *vm)
{
    const struct mst_mirror_row *rows[] = {world_mirror(w, vm, 0), world_mirror(w, vm, 1)};

    return rows[0] && rows[0]->counts && rows[1] && rows[1]->counts;
}

static bool second_log_is_there(struct world *w, const void *unused)
{
    unsigned count = 0;

    (void)unused;
    for (unsigned i = 0; i < sizeof(w->nodes[0].logs) / sizeof(w->nodes[0].logs[0]); i++)
        count += w->nodes[0].logs[i].vm[0] != 0;
    return count == 2;
}

START_TEST(an_image_that_is_bad_does_not_bar_another_one_that_counts)
{
    struct world *w = mirrored_vm(4);
    unsigned starts;
    uint32_t refused;

    ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n2", NULL), 0);
    ck_assert(world_until(w, 5000, second_log_is_there, NULL));
    w->nodes[0].orders_wait = true; /* the first one is not dropped */
    ck_assert(world_until(w, 5000, two_count, VM));
    for (unsigned i = 1; i < 4; i++)
        w->nodes[i].start_err = -EUCLEAN;
    starts = world_orders(w, MST_ORDER_START, VM);
    power_off(w, 0);
    for (unsigned i = 0; i < 3000 && world_orders(w, MST_ORDER_START, VM) < starts + 2; i++)
        world_run(w, 10);
    world_run(w, 10);
    refused = world_last(w, MST_ORDER_START, VM)->source_node;
    for (unsigned i = 1; i < 4; i++)
        w->nodes[i].start_err = 0;
    ck_assert(world_until(w, 20000, runs_somewhere, VM));
    resumed_from_image(w, 1, 7);
    ck_assert_uint_ne(world_last(w, MST_ORDER_START, VM)->source_node, refused);
    world_free(w);
}
END_TEST

START_TEST(a_start_that_fails_does_not_cost_the_image)
{
    struct world *w = mirrored_vm(3);
    unsigned mirror = mirror_of(w);

    w->nodes[mirror].start_err = -EIO;
    power_off(w, 0);
    ck_assert(world_until(w, 20000, runs_somewhere, VM));
    resumed_from_image(w, 1, 7);
    ck_assert_int_ne(world_where(w, VM), (int)mirror);
    ck_assert_uint_eq(world_epoch(w, VM), 3);
    world_free(w);
}
END_TEST

START_TEST(a_second_loss_before_anybody_counts_takes_the_same_image_again)
{
    struct world *w = mirrored_vm(3);
    unsigned mirror = mirror_of(w);
    struct mst_definition other = world_def("db", 690, false);

    world_define(w, &other);
    world_start_vm(w, "db", w->nodes[mirror].hello.node); /* so that it is resumed beside its image */
    power_off(w, 0);
    ck_assert(world_until(w, 15000, recovery_closed, NULL));
    ck_assert_int_eq(world_where(w, VM), mirror == 1 ? 2 : 1);
    ck_assert_int_eq(world_request(w, MST_REQ_STOP, "db", NULL), 0);
    world_vm_die(w, (unsigned)world_where(w, VM), VM); /* without a checkpoint of its own */
    world_run(w, 200);
    ck_assert(world_until(w, 15000, runs_somewhere, VM));
    resumed_from_image(w, 1, 7);
    ck_assert_uint_eq(world_epoch(w, VM), 3);
    world_free(w);
}
END_TEST

START_TEST(a_drained_node_moves_its_mirrored_vm_alive)
{
    struct world *w = mirrored_vm(3);

    ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n1", NULL), 0);
    ck_assert(world_until(w, 15000, recovery_closed, NULL));
    ck_assert_int_ne(world_where(w, VM), 0);
    ck_assert(!world_last(w, MST_ORDER_START, VM)->image);
    ck_assert_uint_eq(world_last(w, MST_ORDER_START, VM)->source_seq, 8);
    world_checkpoint(w, VM, 9);
    ck_assert(world_until(w, 10000, is_mirrored, VM));
    world_free(w);
}
END_TEST

/* --- a coordinator that starts anew --- */

START_TEST(a_restarted_coordinator_takes_up_its_mirrors)
{
    struct world *w = mirrored_vm(3);
    uint64_t log_id = world_mirror(w, VM, 0)->log_id;

    world_restart(w);
    ck_assert(world_until(w, 5000, is_mirrored, VM));
    world_run(w, 5000);
    ck_assert_uint_eq(world_mirror(w, VM, 0)->log_id, log_id);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_MIRROR, VM), 1);
    ck_assert(!look(w).exposed);
    world_free(w);
}
END_TEST

START_TEST(a_restarted_coordinator_takes_up_a_mirror_that_is_being_seeded)
{
    struct world *w = world_new(2);
    struct mst_definition def = world_mirror_def(VM, 16);

    world_define(w, &def);
    world_start_vm(w, VM, "n1");
    world_run(w, 1500);
    ck_assert(image_there(w, 1, 1));
    world_restart(w);
    world_run(w, 6000);
    world_checkpoint(w, VM, 7);
    ck_assert(world_until(w, 5000, is_mirrored, VM));
    ck_assert_uint_eq(w->nodes[1].images_made, 1);
    world_free(w);
}
END_TEST

START_TEST(how_long_a_vm_has_been_exposed_survives_the_coordinator)
{
    struct world *w = mirrored_vm(2);

    w->nodes[1].mirror_err = -ENOSPC;
    ck_assert(!look(w).exposed);
    world_run(w, 7000);
    w->nodes[0].logs[0].phase = MST_MIRROR_FAILED; /* told within a second */
    world_run(w, 10000);
    ck_assert_uint_ge(look(w).exposed_ms, 9000);
    ck_assert_uint_le(look(w).exposed_ms, 10000);
    for (unsigned i = 0; i < 2; i++) {
        world_restart(w);
        world_run(w, 5000);
    }
    ck_assert_uint_ge(look(w).exposed_ms, 19000);
    ck_assert_uint_le(look(w).exposed_ms, 21000);
    ck_assert_ptr_nonnull(strstr(look(w).protection, look(w).exposed_ms < 20000 ? "exposed for 19." : "exposed for 20."));
    w->nodes[1].mirror_err = 0;
    ck_assert(world_until(w, 31000, is_mirrored, VM));
    world_restart(w);
    ck_assert(world_until(w, 5000, is_mirrored, VM));
    ck_assert(!look(w).exposed);
    w->nodes[1].mirror_err = -ENOSPC; /* and the next time begins anew */
    w->nodes[0].logs[0].phase = w->nodes[0].logs[1].phase = MST_MIRROR_FAILED;
    world_run(w, 2000);
    ck_assert(look(w).exposed);
    ck_assert_uint_le(look(w).exposed_ms, 2000);
    world_free(w);
}
END_TEST

START_TEST(a_store_that_refuses_for_a_while_does_not_shorten_the_exposure)
{
    struct world *w = mirrored_vm(2);

    w->nodes[1].mirror_err = -ENOSPC;
    w->commit_err = -ENOSPC;
    w->nodes[0].logs[0].phase = MST_MIRROR_FAILED;
    world_run(w, 9000);
    w->commit_err = 0;
    world_run(w, 6000);
    ck_assert_uint_ge(look(w).exposed_ms, 14000);
    world_restart(w);
    world_run(w, 1000);
    ck_assert_uint_ge(look(w).exposed_ms, 15000);
    ck_assert_uint_le(look(w).exposed_ms, 17000);
    world_free(w);
}
END_TEST

START_TEST(a_vm_that_never_had_a_mirror_is_exposed_since_it_runs_and_anew_when_it_was_stopped)
{
    struct world *w = world_new(1);
    struct mst_definition def = world_mirror_def(VM, 16);

    world_define(w, &def);
    world_start_vm(w, VM, "n1");
    world_run(w, 4000);
    world_restart(w);
    world_run(w, 2000);
    ck_assert_uint_ge(look(w).exposed_ms, 6000);
    ck_assert_uint_le(look(w).exposed_ms, 7000);
    world_vm_die(w, 0, VM); /* its data is no safer for that */
    ck_assert(world_until(w, 10000, recovery_closed, NULL));
    ck_assert_int_eq(world_phase(w, VM), MST_VM_RUNNING);
    ck_assert_uint_ge(look(w).exposed_ms, 6000);
    ck_assert_int_eq(world_request(w, MST_REQ_STOP, VM, NULL), 0);
    ck_assert(!look(w).exposed);
    world_restart(w);
    world_run(w, 2000);
    world_start_vm(w, VM, "n1");
    world_run(w, 1000);
    ck_assert_uint_le(look(w).exposed_ms, 2000);
    world_restart(w);
    world_run(w, 1000);
    ck_assert_uint_ge(look(w).exposed_ms, 2000);
    ck_assert_uint_le(look(w).exposed_ms, 3000);
    world_free(w);
}
END_TEST

/* --- replaced --- */

static const struct mst_mirror_row *sole_row(const struct world *w, const char *vm)
{
    const struct mst_mirror_row *found = NULL;

    for (unsigned n = 0; n < MST_MIRRORS_MAX; n++) {
        const struct mst_mirror_row *row = world_mirror(w, vm, n);

        if (!row || !row->counts || row->epoch != world_epoch(w, vm))
            continue;
        ck_assert_ptr_null(found);
        found = row;
    }
    ck_assert_ptr_nonnull(found);
    return found;
}

static unsigned mirrors_of(const struct world *w, const char *vm)
{
    struct mst_vm_look l;

    ck_assert(mst_core_vm_by_name(w->core, vm, &l));
    return l.mirrors_count;
}

/* Runs for ms with a checkpoint each second, and looks all the time whether it is protected. */
static void runs_protected(struct world *w, uint32_t ms)
{
    static uint64_t seq = 100;

    for (uint32_t i = 0; i < ms; i += 10) {
        if (i % 1000 == 0)
            world_checkpoint(w, VM, ++seq);
        world_run(w, 10);
        ck_assert_msg(!look(w).exposed, "%s", look(w).protection);
    }
}

START_TEST(a_mirror_on_a_drained_node_is_replaced_and_the_vm_is_never_exposed)
{
    struct world *w = mirrored_vm(3);
    unsigned first = mirror_of(w);
    struct mst_node_look node;
    struct mst_time t = {.us = w->now_us, .wall_ms = 1};
    uint64_t log_id = world_mirror(w, VM, 0)->log_id;
    uint64_t source_used_mib;

    ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n2", NULL), 0);
    ck_assert_ptr_nonnull(strstr(world_reply_text(w), "its mirrors are replaced"));
    mst_core_node(w->core, &t, 0, &node);
    source_used_mib = node.memory_used_mib;
    ck_assert_uint_eq(first, 1);
    runs_protected(w, 50);
    mst_core_node(w->core, &t, 1, &node);
    ck_assert_str_eq(node.text, "is drained; the mirrors of 1 VMs are still there");
    ck_assert_ptr_nonnull(strstr(look(w).protection, "on n2 since"));
    ck_assert_ptr_nonnull(strstr(look(w).protection, "; n2 is drained: n3 takes its image"));
    mst_core_node(w->core, &t, 0, &node);
    ck_assert_uint_eq(node.memory_used_mib, source_used_mib); /* two logs already: the answer came after that was decided */
    ck_assert_str_eq(w->move_event, "n2 n2 is drained: n3 takes its image");
    ck_assert_uint_eq(world_orders(w, MST_ORDER_MIRROR_DROP, VM), 0);
    runs_protected(w, 5000);
    ck_assert_uint_eq(sole_row(w, VM)->node_id, 3);
    ck_assert_uint_ne(sole_row(w, VM)->log_id, log_id);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_MIRROR_DROP, VM), 1);
    ck_assert_uint_eq(mirrors_of(w, VM), 1);
    ck_assert(!image_there(w, 1, 1));
    ck_assert_ptr_null(strstr(look(w).protection, "drained"));
    ck_assert_str_eq(w->mirror_event, "mirror.left n2 replaced: n2 is drained: n3 takes its image");
    mst_core_node(w->core, &t, 1, &node);
    ck_assert_str_eq(node.text, "is drained");
    mst_core_node(w->core, &t, 0, &node);
    ck_assert_uint_eq(node.memory_used_mib, source_used_mib - 2); /* one log again */
    ck_assert_uint_eq(world_orders(w, MST_ORDER_MIRROR, VM), 2);
    world_free(w);
}
END_TEST

START_TEST(a_mirror_on_a_drained_node_stays_when_nobody_else_has_room_and_goes_when_somebody_has)
{
    struct world *w = mirrored_vm(3);

    w->nodes[2].hello.memory_mib = 30;
    world_cut(w, 2, true);
    world_cut(w, 2, false);
    world_run(w, 16000); /* it was away a moment ago */
    ck_assert_uint_eq(mirror_of(w), 1);
    ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n2", NULL), 0);
    runs_protected(w, 5000);
    ck_assert_uint_eq(sole_row(w, VM)->node_id, 2);
    ck_assert_ptr_nonnull(strstr(look(w).protection,
                                 "; n2 is drained, and nobody else can take its image: n1: has it already; n2: has it "
                                 "already; n3: 30 MiB left, 39 needed"));
    w->nodes[2].hello.memory_mib = 768;
    world_cut(w, 2, true);
    world_cut(w, 2, false);
    runs_protected(w, 8000);
    ck_assert_uint_eq(sole_row(w, VM)->node_id, 3);
    world_free(w);
}
END_TEST

START_TEST(a_mirror_on_a_failing_node_is_replaced_by_one_on_an_allowed_node)
{
    struct world *w = world_new(5);
    struct mst_definition def = world_mirror_def(VM, 16);

    def.allowed_count = 3;
    def.allowed[0] = 1;
    def.allowed[1] = 2;
    def.allowed[2] = 5;
    w->nodes[1].hello.memory_mib = 1024;
    world_restart(w);
    world_run(w, 1500);
    world_define(w, &def);
    world_start_vm(w, VM, "n1");
    world_checkpoint(w, VM, 7);
    ck_assert(world_until(w, 5000, is_mirrored, VM));
    ck_assert_uint_eq(mirror_of(w), 1);
    world_report(w, MST_FAULT_PROCESSOR, 1, NULL);
    runs_protected(w, 5000);
    ck_assert_uint_eq(sole_row(w, VM)->node_id, 5);
    ck_assert_str_eq(w->move_event, "n2 n2 is failing: n5 takes its image");
    world_free(w);
}
END_TEST

START_TEST(a_source_without_room_for_a_second_log_keeps_its_mirror_and_says_so)
{
    struct world *w = world_new(3);
    struct mst_definition def = world_mirror_def(VM, 16);
    struct mst_node_look node;
    struct mst_time t = {.us = w->now_us, .wall_ms = 1};

    world_define(w, &def);
    world_start_vm(w, VM, "n1");
    world_checkpoint(w, VM, 7);
    ck_assert(world_until(w, 5000, is_mirrored, VM));
    mst_core_node(w->core, &t, 0, &node);
    w->nodes[0].hello.memory_mib = (uint32_t)node.memory_used_mib + 2; /* one more log takes two, and a page */
    world_cut(w, 0, true);
    world_cut(w, 0, false);
    ck_assert(world_until(w, 5000, is_mirrored, VM));
    ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n2", NULL), 0);
    runs_protected(w, 3000);
    ck_assert_uint_eq(sole_row(w, VM)->node_id, 2);
    ck_assert_ptr_nonnull(strstr(look(w).protection, "n1: 1 MiB left, 3 needed for one more log"));
    world_free(w);
}
END_TEST

START_TEST(a_replacement_that_fails_leaves_the_mirror_that_is_there)
{
    struct world *w = mirrored_vm(3);

    w->nodes[2].mirror_err = -ENOSPC;
    ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n2", NULL), 0);
    runs_protected(w, 20000);
    ck_assert_uint_eq(sole_row(w, VM)->node_id, 2);
    ck_assert_uint_le(world_orders(w, MST_ORDER_MIRROR, VM), 7);
    ck_assert_ptr_nonnull(strstr(look(w).protection, "n2 is drained; n3 does not take its image"));
    w->nodes[2].mirror_err = 0;
    w->nodes[2].image_stuck = true; /* it is seeded, and fails then */
    runs_protected(w, 40000);
    ck_assert_uint_eq(sole_row(w, VM)->node_id, 2);
    ck_assert_uint_eq(mirrors_of(w, VM), 2);
    for (unsigned i = 0; i < 8; i++) {
        if (w->nodes[0].logs[i].vm[0] && w->nodes[0].logs[i].node == 2)
            w->nodes[0].logs[i].phase = MST_MIRROR_FAILED;
    }
    w->nodes[2].image_stuck = false;
    runs_protected(w, 40000);
    ck_assert_uint_eq(sole_row(w, VM)->node_id, 3);
    world_free(w);
}
END_TEST

START_TEST(no_more_than_two_mirrors_are_replaced_at_a_time)
{
    struct world *w = world_new(3);
    unsigned most = 0;

    ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n3", NULL), 0);
    for (unsigned i = 0; i < 5; i++) {
        char name[8];
        struct mst_definition def;

        snprintf(name, sizeof(name), "vm%u", i);
        def = world_mirror_def(name, 16);
        world_define(w, &def);
        world_start_vm(w, name, "n1");
        world_checkpoint(w, name, 7);
        ck_assert(world_until(w, 5000, is_mirrored, name));
        ck_assert_uint_eq(world_mirror(w, name, 0)->node_id, 2);
    }
    ck_assert_int_eq(world_request(w, MST_REQ_UNDRAIN, "n3", NULL), 0);
    ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n2", NULL), 0);
    for (unsigned t = 0; t < 2000; t++) {
        unsigned two = 0, waiting = 0;

        for (unsigned i = 0; i < 5; i++) {
            struct mst_vm_look l;
            char name[8];

            snprintf(name, sizeof(name), "vm%u", i);
            ck_assert(mst_core_vm_by_name(w->core, name, &l));
            ck_assert(!l.exposed);
            two +=
                l.mirrors_count > 1 && strcmp(l.mirrors[0].state, "leaving") != 0 && strcmp(l.mirrors[1].state, "leaving") != 0;
            waiting += strstr(l.protection, "n2 is drained: waits, 2 of 2 mirrors are being replaced") ? 1 : 0;
        }
        ck_assert_uint_le(two, 2);
        if (t == 10)
            ck_assert_uint_eq(waiting, 3);
        most = two > most ? two : most;
        world_run(w, 10);
    }
    ck_assert_uint_eq(most, 2);
    for (unsigned i = 0; i < 5; i++) {
        char name[8];

        snprintf(name, sizeof(name), "vm%u", i);
        ck_assert_uint_eq(sole_row(w, name)->node_id, 3);
    }
    ck_assert_uint_eq(w->mirrors_moved, 5);
    world_free(w);
}
END_TEST

/* Undrained while its mirror is being replaced: one of the two stays. */
START_TEST(a_drain_that_is_called_off_leaves_one_mirror)
{
    struct world *w = mirrored_vm(3);

    ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n2", NULL), 0);
    runs_protected(w, 100);
    ck_assert_int_eq(world_request(w, MST_REQ_UNDRAIN, "n2", NULL), 0);
    runs_protected(w, 10000);
    (void)sole_row(w, VM);
    ck_assert_uint_eq(mirrors_of(w, VM), 1);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_MIRROR, VM), 2);
    world_free(w);
}
END_TEST

START_TEST(a_takeover_while_a_mirror_is_replaced_loses_nothing)
{
    struct world *w = mirrored_vm(4);

    w->nodes[2].ack_takes_ms = w->nodes[3].ack_takes_ms = 300; /* the new one is behind the old one */
    ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n2", NULL), 0);
    world_run(w, 10 * (unsigned)_i);
    world_checkpoint(w, VM, 8);
    world_run(w, 20 * (unsigned)_i);
    world_checkpoint(w, VM, 9);
    world_run(w, 30);
    power_off(w, 0);
    ck_assert(world_until(w, 20000, runs_somewhere, VM)); /* world_mirror.c looks that nothing is undone */
    ck_assert_uint_eq(world_epoch(w, VM), 2);
    world_free(w);
}
END_TEST

START_TEST(a_replacement_survives_a_crash_after_any_transaction)
{
    struct world *w = mirrored_vm(3);

    w->crash_delivers = _i % 2;
    w->crash_at = w->commits + 1 + (unsigned)_i / 2;
    (void)world_ask(w, MST_REQ_DRAIN, "n2", NULL);
    world_run(w, 3000);
    ck_assert_int_eq(world_request(w, MST_REQ_DRAIN, "n2", NULL), 0);
    world_checkpoint(w, VM, 30);
    world_run(w, 15000);
    ck_assert(w->crash_at == 0);
    ck_assert_uint_eq(sole_row(w, VM)->node_id, 3);
    ck_assert_uint_eq(mirrors_of(w, VM), 1);
    ck_assert(!image_there(w, 1, 1));
    ck_assert(!look(w).exposed);
    world_free(w);
}
END_TEST

START_TEST(a_mirror_in_the_vms_rack_is_replaced_when_another_rack_has_room_but_not_at_once)
{
    struct world *w = racked(3, "aab");

    w->nodes[2].hello.memory_mib = 30;
    world_restart(w);
    world_run(w, 1500);
    start_mirrored(w, MST_MIRROR_APART_NODE);
    ck_assert(world_until(w, 5000, is_mirrored, VM));
    runs_protected(w, 70000);
    ck_assert_uint_eq(sole_row(w, VM)->node_id, 2);
    ck_assert_ptr_nonnull(strstr(look(w).protection,
                                 "n2 is in the VM's own rack, and nobody else in another rack can take its image: n1: has it "
                                 "already; n2: has it already; n3: 30 MiB left, 39 needed"));
    w->nodes[2].hello.memory_mib = 768;
    world_cut(w, 2, true);
    world_cut(w, 2, false);
    runs_protected(w, 8000);
    ck_assert_uint_eq(sole_row(w, VM)->node_id, 3);
    ck_assert_str_eq(w->move_event, "n2 n2 is in the VM's own rack: n3 takes its image");
    world_node_kill(w, 2); /* and when that is lost, another one in the rack is taken at once */
    world_run(w, 4000);
    world_checkpoint(w, VM, 100000);
    ck_assert(world_until(w, 10000, is_mirrored, VM));
    ck_assert_uint_eq(sole_row(w, VM)->node_id, 2);
    world_node_return(w, 2, true);
    runs_protected(w, 50000);
    ck_assert_uint_eq(sole_row(w, VM)->node_id, 2);
    runs_protected(w, 20000);
    ck_assert_uint_eq(sole_row(w, VM)->node_id, 3);
    world_free(w);
}
END_TEST

/* --- lag --- */

static struct world *lagging_vm(unsigned nodes)
{
    struct world *w = world_new(nodes);
    struct mst_definition def = world_mirror_def(VM, 16);

    w->conf.mirror_lag_ms = 4000;
    world_restart(w);
    world_run(w, 1500);
    world_define(w, &def);
    world_start_vm(w, VM, "n1");
    world_checkpoint(w, VM, 7);
    ck_assert(world_until(w, 5000, is_mirrored, VM));
    runs_protected(w, 65000);
    ck_assert_uint_eq(mirror_of(w), 1);
    return w;
}

START_TEST(a_mirror_that_lags_for_long_is_replaced)
{
    struct world *w = lagging_vm(3);

    w->nodes[1].ack_takes_ms = 7000; /* it moves, and is never as near as it should be */
    runs_protected(w, 13000);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_MIRROR, VM), 1);
    runs_protected(w, 12000);
    ck_assert_uint_eq(sole_row(w, VM)->node_id, 3);
    ck_assert_str_eq(w->move_event, "n2 n2 lags: n3 takes its image");
    world_free(w);
}
END_TEST

START_TEST(a_mirror_that_lagged_for_a_moment_stays)
{
    struct world *w = lagging_vm(3);

    for (unsigned i = 0; i < 5; i++) {
        w->nodes[1].ack_takes_ms = 7000;
        runs_protected(w, 7500);
        w->nodes[1].ack_takes_ms = 0;
        runs_protected(w, 3000);
    }
    ck_assert_uint_eq(sole_row(w, VM)->node_id, 2);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_MIRROR, VM), 1);
    world_free(w);
}
END_TEST

START_TEST(a_vm_that_makes_few_checkpoints_has_no_mirror_that_lags)
{
    struct world *w = lagging_vm(3);

    for (unsigned i = 0; i < 4; i++) {
        world_checkpoint(w, VM, 10000 + i);
        world_run(w, 60000);
    }
    ck_assert_uint_eq(world_orders(w, MST_ORDER_MIRROR, VM), 1);
    world_free(w);
}
END_TEST

START_TEST(without_a_bound_nothing_lags)
{
    struct world *w = mirrored_vm(3);

    w->nodes[1].ack_takes_ms = 7000;
    runs_protected(w, 120000);
    ck_assert_uint_eq(world_orders(w, MST_ORDER_MIRROR, VM), 1);
    world_free(w);
}
END_TEST

static unsigned moved_in(struct world *w, uint32_t minutes, uint32_t ack_takes_ms)
{
    unsigned before = w->mirrors_moved;
    static uint64_t seq = 100000;

    for (unsigned i = 1; i < w->nodes_count; i++)
        w->nodes[i].ack_takes_ms = ack_takes_ms;
    for (uint32_t i = 0; i < minutes * 60; i++) {
        world_checkpoint(w, VM, ++seq);
        world_run(w, 1000);
        ck_assert(!look(w).exposed);
    }
    return w->mirrors_moved - before;
}

START_TEST(when_every_mirror_lags_it_is_replaced_less_and_less_often)
{
    struct world *w = lagging_vm(4);
    unsigned moved = moved_in(w, 15, 7000);

    ck_assert_uint_ge(moved, 3);
    ck_assert_uint_le(moved, 6);
    ck_assert_uint_eq(moved_in(w, 12, 0), 0);
    ck_assert_uint_eq(moved_in(w, 10, 7000), 1); /* it is remembered */
    ck_assert_uint_eq(moved_in(w, 40, 0), 0);
    ck_assert_uint_ge(moved_in(w, 8, 7000), 3); /* not for ever */
    world_free(w);
}
END_TEST

START_TEST(nobody_moves_to_a_node_that_lags_for_others)
{
    struct world *w = lagging_vm(3);
    struct mst_definition def = world_mirror_def("db", 16);

    world_define(w, &def);
    w->nodes[1].hello.memory_mib = 40; /* no room for a second one */
    world_cut(w, 1, true);
    world_cut(w, 1, false);
    world_start_vm(w, "db", "n1");
    world_checkpoint(w, "db", 7);
    ck_assert(world_until(w, 15000, is_mirrored, "db"));
    ck_assert_uint_eq(world_mirror(w, "db", 0)->node_id, 3);
    world_checkpoint(w, VM, 5000);
    ck_assert(world_until(w, 15000, is_mirrored, VM));
    w->nodes[1].hello.memory_mib = 768;
    world_cut(w, 1, true);
    world_cut(w, 1, false);
    ck_assert(world_until(w, 15000, is_mirrored, VM));
    w->nodes[1].ack_takes_ms = w->nodes[2].ack_takes_ms = 7000;
    for (unsigned i = 0; i < 200; i++) {
        world_checkpoint(w, "db", 100 + i);
        runs_protected(w, 1000);
    }
    ck_assert_uint_eq(sole_row(w, VM)->node_id, 2);
    ck_assert_uint_eq(sole_row(w, "db")->node_id, 3);
    ck_assert_uint_eq(w->mirrors_moved, 0);
    ck_assert_ptr_nonnull(strstr(look(w).protection, "n2 lags, and nobody else can take its image"));
    world_free(w);
}
END_TEST

START_TEST(while_its_source_is_not_heard_a_mirror_does_not_lag)
{
    struct world *w = lagging_vm(3);

    w->conf.keeper_silent_ms = w->conf.keeper_return_ms = 60000;
    world_restart(w);
    runs_protected(w, 65000);
    w->nodes[1].ack_takes_ms = 3000; /* near the bound, and within it */
    runs_protected(w, 30000);
    world_cut(w, 0, true);
    world_run(w, 8000);
    world_cut(w, 0, false);
    runs_protected(w, 30000);
    ck_assert_uint_eq(w->mirrors_moved, 0);
    world_free(w);
}
END_TEST

/* The coordinator dies after its n-th transaction, from the start of the VM on. */
START_TEST(mirroring_and_takeover_survive_a_crash_after_any_transaction)
{
    struct world *w = world_new(3);
    struct mst_definition def = world_mirror_def(VM, 16);
    unsigned mirror;

    w->crash_delivers = _i % 2;
    world_define(w, &def);
    (void)world_ask(w, MST_REQ_START, VM, "n1");
    w->crash_at = w->commits + 1 + (unsigned)_i / 2;
    ck_assert(world_until(w, 10000, runs_somewhere, VM));
    world_checkpoint(w, VM, 7);
    ck_assert(world_until(w, 20000, is_mirrored, VM));
    world_run(w, 1200);
    mirror = mirror_of(w);
    power_off(w, 0);
    ck_assert(world_until(w, 40000, runs_somewhere, VM));
    resumed_from_image(w, 1, 7);
    world_checkpoint(w, VM, 8);
    ck_assert(world_until(w, 20000, is_mirrored, VM));
    world_run(w, 6000);
    ck_assert(!image_there(w, mirror, 1));
    world_free(w);
}
END_TEST

/* --- planted bugs: each must breach a rule --- */

static struct world *watched(unsigned nodes)
{
    struct world *w = world_new(nodes);

    w->breach_is_told = true;
    return w;
}

static struct world *watched_vm(unsigned nodes, bool stuck)
{
    struct world *w = watched(nodes);
    struct mst_definition def = world_mirror_def(VM, 16);

    for (unsigned i = 1; i < nodes; i++)
        w->nodes[i].image_stuck = stuck;
    world_define(w, &def);
    world_start_vm(w, VM, "n1");
    world_checkpoint(w, VM, 7);
    world_run(w, 3000);
    return w;
}

static struct world *tell_uncounted(void)
{
    struct world *w = watched_vm(2, false);

    w->nodes[1].mirror_err = -ENOSPC;
    w->nodes[0].logs[0].phase = MST_MIRROR_FAILED;
    for (unsigned i = 0; i < 300 && (!world_mirror(w, VM, 0) || world_mirror(w, VM, 0)->counts); i++)
        world_run(w, 10);
    power_off(w, 0);
    world_run(w, 15000);
    return w;
}

static struct world *tell_unjoined(void)
{
    return watched_vm(2, true);
}

static struct world *tell_dropped(void)
{
    struct world *w = watched_vm(2, false);

    w->commit_err = -ENOSPC;
    w->nodes[0].logs[0].phase = MST_MIRROR_FAILED;
    world_run(w, 3000);
    return w;
}

static struct world *tell_unrevoked(void)
{
    struct world *w = watched_vm(2, false);

    power_off(w, 0);
    world_run(w, 15000);
    return w;
}

/* Someone counted under epoch 2 and has left; a copy of epoch 1 that counted is still there. */
static struct world *tell_older(void)
{
    struct world *w = watched(3);
    struct mst_definition def = world_mirror_def(VM, 16);
    struct mst_slot *old;

    w->nodes[1].mirror_err = w->nodes[2].mirror_err = -ENOSPC;
    world_define(w, &def);
    world_start_vm(w, VM, "n1");
    world_run(w, 500);
    for (unsigned i = 0; i < w->rows_count; i++) {
        if (w->rows[i].kind == MST_ROW_VM) {
            w->rows[i].vm.epoch = 2;
            w->rows[i].vm.image_floor = 0;
        }
    }
    for (unsigned i = 0; i < MST_VMS_PER_NODE; i++) {
        if (w->nodes[0].slots[i].used)
            w->nodes[0].slots[i].s.epoch = 2;
    }
    old = world_slot_new(&w->nodes[2], VM, 1);
    old->run_state = MST_RUN_IMAGE;
    old->image_state = MST_SLOT_IMAGE_REVOKED;
    old->save_seq = 30;
    w->rows = realloc(w->rows, (w->rows_room + 2) * sizeof(*w->rows));
    w->rows[w->rows_count++] = (struct mst_row){
        .kind = MST_ROW_MIRROR,
        .mirror = {
            .vm = VM, .n = 0, .epoch = 1, .node_id = 3, .instance = w->nodes[2].hello.instance, .log_id = 5, .counts = true}};
    w->rows[w->rows_count++] = (struct mst_row){
        .kind = MST_ROW_MIRROR, .mirror = {.vm = VM, .n = 1, .epoch = 2, .node_id = 2, .instance = 7, .log_id = 6}};
    power_off(w, 0);
    world_restart(w);
    world_run(w, 15000);
    return w;
}

static const struct planted {
    unsigned mutant;
    const char *what, *breach;
    struct world *(*tell)(void);
} planted[] = {
    {90, "an image is resumed from that does not count", "which does not count", tell_uncounted},
    {91, "a mirror counts before its source waits for it", "before its source waits", tell_unjoined},
    {92, "a mirror is left out before the row says so", "to leave a mirror out that counts", tell_dropped},
    {93, "an image is resumed from whose log was not closed", "was not verified", tell_unrevoked},
    {94, "the image of an older epoch is preferred", "somebody counted under 2", tell_older},
};
#define PLANTED (int)(sizeof(planted) / sizeof(planted[0]))

START_TEST(a_planted_bug_breaches_its_rule_and_nothing_does_without_it)
{
    const struct planted *p = &planted[_i];
    struct world *w = p->tell();

    ck_assert_str_eq(w->breach, "");
    world_free(w);
    mst_mutant = p->mutant;
    w = p->tell();
    ck_assert_msg(strstr(w->breach, p->breach) != NULL, "mutant %u lives (%s): '%s'", p->mutant, p->what, w->breach);
    world_free(w);
    mst_mutant = 0;
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("core/mirror");
    TCase *tcase = tcase_create("mirror");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, a_running_vm_gets_a_mirror_where_most_memory_is_and_status_says_since_when);
    tcase_add_test(tcase, status_says_whether_a_qemu_waits_beside_the_image_and_why_none_does);
    tcase_add_test(tcase, status_says_how_often_checkpoints_come_and_what_is_wrong_with_the_next);
    tcase_add_test(tcase, vms_under_other_levels_get_none);
    tcase_add_test(tcase, only_allowed_nodes_become_mirrors);
    tcase_add_test(tcase, a_mirror_is_chosen_outside_the_rack_of_its_vm);
    tcase_add_test(tcase, the_label_of_the_coordinators_file_counts_more_than_what_a_node_says);
    tcase_add_test(tcase, what_a_source_says_of_its_sending_is_shown_of_this_mirror_and_not_of_the_one_before);
    tcase_add_test(tcase, a_mirror_in_the_same_rack_is_better_than_none_and_is_said);
    tcase_add_test(tcase, a_vm_that_demands_another_rack_gets_no_mirror_in_its_own_and_the_numbers_are_said);
    tcase_add_test(tcase, a_mirror_that_fails_counts_no_more_is_left_out_forgotten_and_replaced);
    tcase_add_test(tcase, a_failed_mirror_is_tried_again_on_the_same_node_when_there_is_no_other);
    tcase_add_test(tcase, a_mirror_whose_node_is_lost_is_replaced);
    tcase_add_test(tcase, a_mirror_whose_keeper_starts_anew_is_seeded_anew);
    tcase_add_test(tcase, without_room_for_an_image_the_numbers_are_said_and_the_vm_runs_on);
    tcase_add_test(tcase, room_that_was_kept_free_for_an_image_is_given_to_who_waits_for_it);
    tcase_add_test(tcase, a_node_that_refuses_an_image_is_asked_again_less_and_less_often);
    tcase_add_test(tcase, an_image_counts_against_the_memory_of_its_node);
    tcase_add_test(tcase, an_image_is_forgotten_when_the_vm_is_stopped);
    tcase_add_test(tcase, a_lost_node_costs_nothing_that_its_mirror_acknowledged);
    tcase_add_test(tcase, after_a_takeover_it_is_exposed_until_a_new_mirror_counts_and_old_images_go);
    tcase_add_test(tcase, another_node_pulls_from_the_image_when_its_own_has_no_room);
    tcase_add_test(tcase, an_image_that_does_not_count_is_not_resumed_from);
    tcase_add_test(tcase, a_mirror_that_is_away_is_waited_for_with_its_reason);
    tcase_add_test(tcase, when_both_are_lost_it_is_restarted_and_the_loss_is_said);
    tcase_add_test(tcase, power_that_is_on_or_cannot_be_asked_is_no_proof_that_the_image_is_gone);
    tcase_add_test(tcase, node_that_calls_while_its_power_is_asked_for_is_not_taken_for_dead);
    tcase_add_test(tcase, when_both_are_lost_and_nobody_knows_it_the_operator_says_so);
    tcase_add_test(tcase, a_damaged_image_is_not_used_and_the_loss_is_said);
    tcase_add_test(tcase, a_mirror_that_had_left_is_not_resumed_from);
    tcase_add_test(tcase, an_image_whose_keeper_started_anew_still_counts_and_is_verified);
    tcase_add_test(tcase, its_own_save_is_preferred_when_its_memory_can_be_read);
    tcase_add_loop_test(tcase, a_save_that_is_lost_while_its_vm_is_held_is_replaced_by_the_image, 0, 3);
    tcase_add_test(tcase, an_image_that_is_lost_while_it_is_resumed_from_is_replaced_by_the_save_where_the_vm_ran);
    tcase_add_test(tcase, a_save_that_does_not_check_is_replaced_by_the_image);
    tcase_add_test(tcase, an_image_that_two_pulls_refuse_is_bad_itself);
    tcase_add_test(tcase, an_image_that_is_bad_does_not_bar_another_one_that_counts);
    tcase_add_test(tcase, a_start_that_fails_does_not_cost_the_image);
    tcase_add_test(tcase, a_second_loss_before_anybody_counts_takes_the_same_image_again);
    tcase_add_test(tcase, a_drained_node_moves_its_mirrored_vm_alive);
    tcase_add_test(tcase, a_restarted_coordinator_takes_up_its_mirrors);
    tcase_add_test(tcase, a_restarted_coordinator_takes_up_a_mirror_that_is_being_seeded);
    tcase_add_test(tcase, how_long_a_vm_has_been_exposed_survives_the_coordinator);
    tcase_add_test(tcase, a_store_that_refuses_for_a_while_does_not_shorten_the_exposure);
    tcase_add_test(tcase, a_vm_that_never_had_a_mirror_is_exposed_since_it_runs_and_anew_when_it_was_stopped);
    tcase_add_test(tcase, a_mirror_on_a_drained_node_is_replaced_and_the_vm_is_never_exposed);
    tcase_add_test(tcase, a_mirror_on_a_drained_node_stays_when_nobody_else_has_room_and_goes_when_somebody_has);
    tcase_add_test(tcase, a_mirror_on_a_failing_node_is_replaced_by_one_on_an_allowed_node);
    tcase_add_test(tcase, a_source_without_room_for_a_second_log_keeps_its_mirror_and_says_so);
    tcase_add_test(tcase, a_replacement_that_fails_leaves_the_mirror_that_is_there);
    tcase_add_test(tcase, no_more_than_two_mirrors_are_replaced_at_a_time);
    tcase_add_test(tcase, a_drain_that_is_called_off_leaves_one_mirror);
    tcase_add_loop_test(tcase, a_takeover_while_a_mirror_is_replaced_loses_nothing, 0, 40);
    tcase_add_loop_test(tcase, a_replacement_survives_a_crash_after_any_transaction, 0, 6);
    tcase_add_test(tcase, a_mirror_in_the_vms_rack_is_replaced_when_another_rack_has_room_but_not_at_once);
    tcase_add_test(tcase, a_mirror_that_lags_for_long_is_replaced);
    tcase_add_test(tcase, a_mirror_that_lagged_for_a_moment_stays);
    tcase_add_test(tcase, a_vm_that_makes_few_checkpoints_has_no_mirror_that_lags);
    tcase_add_test(tcase, without_a_bound_nothing_lags);
    tcase_add_test(tcase, when_every_mirror_lags_it_is_replaced_less_and_less_often);
    tcase_add_test(tcase, while_its_source_is_not_heard_a_mirror_does_not_lag);
    tcase_add_test(tcase, nobody_moves_to_a_node_that_lags_for_others);
    tcase_add_loop_test(tcase, mirroring_and_takeover_survive_a_crash_after_any_transaction, 0, 40);
    tcase_add_loop_test(tcase, a_planted_bug_breaches_its_rule_and_nothing_does_without_it, 0, PLANTED);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
