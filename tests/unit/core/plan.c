#include "coordinator/core/plan.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB (UINT64_C(1) << 20)

static struct mst_plan_node node(uint32_t id, const char *name, uint64_t memory, uint64_t used)
{
    struct mst_plan_node n = {
        .id = id, .name = name, .usable = true, .why_not = "", .memory_bytes = memory, .used_bytes = used, .vcpus = 2};

    return n;
}

static struct mst_plan_vm vm(const char *name, uint64_t need, uint32_t priority)
{
    struct mst_plan_vm v = {.name = name, .need_bytes = need, .vcpus = 1, .priority = priority};

    return v;
}

START_TEST(exactly_enough_memory_fits_and_one_byte_less_does_not)
{
    struct mst_plan_node n = node(1, "n1", 100 * MIB, 60 * MIB);
    struct mst_plan_vm v = vm("a", 40 * MIB, 10);
    struct mst_placement p;

    ck_assert_uint_eq(mst_plan_make(&n, 1, &v, 1, &p), 1);
    ck_assert_int_eq(p.node, 0);
    v.need_bytes++;
    ck_assert_uint_eq(mst_plan_make(&n, 1, &v, 1, &p), 0);
    ck_assert_int_eq(p.node, -1);
    ck_assert_str_eq(p.why, "n1: 40 MiB left, 41 needed");
}
END_TEST

START_TEST(vcpus_are_overcommitted_four_times_and_not_more)
{
    struct mst_plan_node n = node(1, "n1", 1000 * MIB, 0);
    struct mst_plan_vm v = vm("a", MIB, 10);
    struct mst_placement p;

    n.used_vcpus = 7;
    ck_assert_uint_eq(mst_plan_make(&n, 1, &v, 1, &p), 1);
    n.used_vcpus = 8;
    ck_assert_uint_eq(mst_plan_make(&n, 1, &v, 1, &p), 0);
    ck_assert_str_eq(p.why, "n1: 8 of 8 vCPUs taken, 1 needed");
}
END_TEST

START_TEST(slots_are_a_resource)
{
    struct mst_plan_node n = node(1, "n1", 1000 * MIB, 0);
    struct mst_plan_vm v = vm("a", MIB, 10);
    struct mst_placement p;

    n.used_slots = MST_VMS_PER_NODE;
    ck_assert_uint_eq(mst_plan_make(&n, 1, &v, 1, &p), 0);
    ck_assert_ptr_nonnull(strstr(p.why, "slots taken"));
}
END_TEST

START_TEST(only_allowed_nodes_are_chosen)
{
    struct mst_plan_node n[] = {node(1, "n1", 1000 * MIB, 0), node(2, "n2", 100 * MIB, 0), node(3, "n3", 500 * MIB, 0)};
    uint32_t allowed[] = {2, 3};
    struct mst_plan_vm v = vm("a", 10 * MIB, 10);
    struct mst_placement p;

    v.allowed = allowed;
    v.allowed_count = 2;
    ck_assert_uint_eq(mst_plan_make(n, 3, &v, 1, &p), 1);
    ck_assert_int_eq(p.node, 2); /* more room than n2 */
    v.need_bytes = 600 * MIB;
    ck_assert_uint_eq(mst_plan_make(n, 3, &v, 1, &p), 0);
    ck_assert_str_eq(p.why, "n1: not allowed; n2: 100 MiB left, 600 needed; n3: 500 MiB left, 600 needed");
}
END_TEST

START_TEST(higher_priority_gets_the_room)
{
    struct mst_plan_node n = node(1, "n1", 100 * MIB, 0);
    struct mst_plan_vm v[] = {vm("a", 60 * MIB, 10), vm("b", 60 * MIB, 20)};
    struct mst_placement p[2];

    ck_assert_uint_eq(mst_plan_make(&n, 1, v, 2, p), 1);
    ck_assert_int_eq(p[0].node, -1);
    ck_assert_int_eq(p[1].node, 0);
}
END_TEST

START_TEST(among_equals_the_larger_goes_first_then_the_name)
{
    struct mst_plan_node n = node(1, "n1", 100 * MIB, 0);
    struct mst_plan_vm v[] = {vm("a", 30 * MIB, 10), vm("b", 80 * MIB, 10), vm("c", 20 * MIB, 10)};
    struct mst_plan_vm same[] = {vm("z", 60 * MIB, 10), vm("y", 60 * MIB, 10)};
    struct mst_placement p[3];

    ck_assert_uint_eq(mst_plan_make(&n, 1, v, 3, p), 2);
    ck_assert_int_eq(p[1].node, 0);
    ck_assert_int_eq(p[0].node, -1);
    ck_assert_int_eq(p[2].node, 0);
    ck_assert_uint_eq(mst_plan_make(&n, 1, same, 2, p), 1);
    ck_assert_int_eq(p[1].node, 0);
}
END_TEST

START_TEST(nodes_out_of_service_are_named_with_their_reason)
{
    struct mst_plan_node n[] = {node(1, "n1", 1000 * MIB, 0), node(2, "n2", 1000 * MIB, 0), node(3, "n3", 1000 * MIB, 0)};
    struct mst_plan_vm v = vm("a", MIB, 10);
    struct mst_placement p;

    n[0].usable = n[1].usable = n[2].usable = false;
    n[0].why_not = "is drained";
    n[1].why_not = "is being fenced";
    n[2].why_not = "is not connected";
    ck_assert_uint_eq(mst_plan_make(n, 3, &v, 1, &p), 0);
    ck_assert_str_eq(p.why, "n1: is drained; n2: is being fenced; n3: is not connected");
}
END_TEST

START_TEST(preferred_beats_roomier_and_avoided_loses)
{
    struct mst_plan_node n[] = {node(1, "n1", 1000 * MIB, 0), node(2, "n2", 100 * MIB, 0)};
    struct mst_plan_vm v = vm("a", 10 * MIB, 10);
    struct mst_placement p;

    v.prefer_id = 2;
    (void)mst_plan_make(n, 2, &v, 1, &p);
    ck_assert_int_eq(p.node, 1);
    v.prefer_id = 0;
    v.avoid = 1;
    (void)mst_plan_make(n, 2, &v, 1, &p);
    ck_assert_int_eq(p.node, 1);
    n[1].usable = false;
    n[1].why_not = "is drained";
    (void)mst_plan_make(n, 2, &v, 1, &p);
    ck_assert_int_eq(p.node, 0); /* avoided, but the only one */
}
END_TEST

START_TEST(last_resort_is_taken_only_when_nobody_else_can)
{
    struct mst_plan_node n[] = {node(1, "n1", 1000 * MIB, 0), node(2, "n2", 100 * MIB, 0)};
    struct mst_plan_vm v = vm("a", 10 * MIB, 10);
    struct mst_placement p;

    n[0].usable = false;
    n[0].why_not = "is failing";
    n[0].last_resort = true;
    v.fallback_id = 1;
    (void)mst_plan_make(n, 2, &v, 1, &p);
    ck_assert_int_eq(p.node, 1);
    v.need_bytes = 200 * MIB;
    (void)mst_plan_make(n, 2, &v, 1, &p);
    ck_assert_int_eq(p.node, 0);
    v.fallback_id = 0;
    ck_assert_uint_eq(mst_plan_make(n, 2, &v, 1, &p), 0);
}
END_TEST

START_TEST(what_a_vm_leaves_behind_is_its_credit_on_that_node_only)
{
    struct mst_plan_node n[] = {node(1, "n1", 100 * MIB, 90 * MIB), node(2, "n2", 100 * MIB, 90 * MIB)};
    struct mst_plan_vm v = vm("a", 40 * MIB, 10);
    struct mst_placement p;

    v.credit_id = 2;
    v.credit_bytes = 40 * MIB;
    (void)mst_plan_make(n, 2, &v, 1, &p);
    ck_assert_int_eq(p.node, 1);
}
END_TEST

START_TEST(an_operators_choice_is_the_only_one)
{
    struct mst_plan_node n[] = {node(1, "n1", 1000 * MIB, 0), node(2, "n2", 1 * MIB, 0)};
    struct mst_plan_vm v = vm("a", 10 * MIB, 10);
    struct mst_placement p;

    v.only_id = 2;
    ck_assert_uint_eq(mst_plan_make(n, 2, &v, 1, &p), 0);
    ck_assert_str_eq(p.why, "n1: not allowed; n2: 1 MiB left, 10 needed");
}
END_TEST

/* I12 over many random clusters: nothing is ever put where it does not fit, and nobody is refused while somebody has room for it alone. */
START_TEST(no_random_cluster_is_ever_overfilled)
{
    struct mst_plan_node n[8];
    struct mst_plan_vm v[32];
    struct mst_placement p[32];
    uint32_t allowed[32][2];
    char names[32][8];
    unsigned seed = (unsigned)_i + 1;

    srand(seed);
    for (unsigned i = 0; i < 8; i++) {
        n[i] = node(i + 1, "n", (uint64_t)(rand() % 500) * MIB, (uint64_t)(rand() % 100) * MIB);
        n[i].usable = rand() % 4 != 0;
        n[i].why_not = "is drained";
        n[i].used_vcpus = (uint32_t)(rand() % 9);
    }
    for (unsigned i = 0; i < 32; i++) {
        snprintf(names[i], sizeof(names[i]), "v%u", i);
        v[i] = vm(names[i], (uint64_t)(rand() % 120 + 1) * MIB, (uint32_t)(rand() % 3));
        allowed[i][0] = (uint32_t)(rand() % 8 + 1);
        allowed[i][1] = (uint32_t)(rand() % 8 + 1);
        v[i].allowed = allowed[i];
        v[i].allowed_count = rand() % 3 == 0 ? 2 : 0;
    }
    (void)mst_plan_make(n, 8, v, 32, p);
    for (unsigned i = 0; i < 8; i++) {
        uint64_t used = n[i].used_bytes;
        uint32_t vcpus = n[i].used_vcpus;
        bool any = false;

        for (unsigned k = 0; k < 32; k++) {
            if (p[k].node != (int)i)
                continue;
            any = true;
            used += v[k].need_bytes;
            vcpus += v[k].vcpus;
            ck_assert(v[k].allowed_count == 0 || allowed[k][0] == i + 1 || allowed[k][1] == i + 1);
        }
        ck_assert(!any || (n[i].usable && used <= n[i].memory_bytes && vcpus <= 8));
        for (unsigned k = 0; k < 32; k++) {
            bool may = v[k].allowed_count == 0 || allowed[k][0] == i + 1 || allowed[k][1] == i + 1;

            if (p[k].node < 0 && n[i].usable && may)
                ck_assert(used + v[k].need_bytes > n[i].memory_bytes || vcpus + 1 > 8);
        }
    }
}
END_TEST

START_TEST(a_protected_vm_takes_two_and_a_quarter_of_its_ram_and_its_areas)
{
    uint64_t none = mst_plan_need_bytes(64, MST_PROTECT_NONE);
    uint64_t local = mst_plan_need_bytes(64, MST_PROTECT_LOCAL);

    ck_assert_uint_ge(none, 64 * MIB + 4 * MIB);
    ck_assert_uint_le(none, 64 * MIB + 5 * MIB);
    ck_assert_uint_ge(local, 64 * MIB * 9 / 4 + 4 * MIB);
    ck_assert_uint_le(local, 64 * MIB * 9 / 4 + 5 * MIB);
}
END_TEST

START_TEST(a_mirror_goes_where_most_memory_is_left_and_not_where_the_vm_is)
{
    static const uint32_t allowed[] = {1, 2, 3};
    struct mst_plan_node nodes[] = {node(1, "n1", 900 * MIB, 0), node(2, "n2", 100 * MIB, 40 * MIB),
                                    node(3, "n3", 100 * MIB, 30 * MIB), node(4, "n4", 500 * MIB, 0)};
    struct mst_plan_mirror m = {.need_bytes = 60 * MIB, .never = 1, .allowed = allowed, .allowed_count = 3};
    struct mst_placement p;

    ck_assert_int_eq(mst_plan_mirror(nodes, 4, &m, &p), 2);
    ck_assert_str_eq(p.why, "n3: 70 MiB left before");
    m.avoid = 1 << 2;
    ck_assert_int_eq(mst_plan_mirror(nodes, 4, &m, &p), 1); /* exactly enough */
    m.need_bytes++;
    ck_assert_int_eq(mst_plan_mirror(nodes, 4, &m, &p), 2); /* avoided, but there is no other */
    m.need_bytes = 71 * MIB;
    nodes[1].usable = false;
    nodes[1].why_not = "is drained";
    ck_assert_int_eq(mst_plan_mirror(nodes, 4, &m, &p), -1);
    ck_assert_str_eq(p.why, "n1: has it already; n2: is drained; n3: 70 MiB left, 71 needed; n4: not allowed");
    nodes[2].image_bytes = 20 * MIB;
    ck_assert_int_eq(mst_plan_mirror(nodes, 4, &m, &p), -1);
    ck_assert_ptr_nonnull(strstr(p.why, "n3: 70 MiB left, 71 needed (images take 20 of 100); "));
    nodes[2].used_slots = MST_VMS_PER_NODE;
    ck_assert_int_eq(mst_plan_mirror(nodes, 4, &m, &p), -1);
    ck_assert_ptr_nonnull(strstr(p.why, "n3: all VM slots taken"));
}
END_TEST

START_TEST(a_mirror_goes_into_another_rack_when_it_can_and_nowhere_else_when_it_must)
{
    struct mst_plan_node nodes[] = {node(1, "n1", 900 * MIB, 0), node(2, "n2", 100 * MIB, 0), node(3, "n3", 90 * MIB, 0),
                                    node(4, "n4", 80 * MIB, 0)};
    struct mst_plan_mirror m = {.need_bytes = 60 * MIB, .never = 1, .rack = "a"};
    struct mst_placement p;

    nodes[0].rack = nodes[1].rack = "a";
    nodes[3].rack = "b";
    ck_assert_int_eq(mst_plan_mirror(nodes, 4, &m, &p), 3); /* the one with least memory */
    ck_assert_str_eq(p.why, "n4: 80 MiB left before");
    m.avoid = 1 << 3;
    ck_assert_int_eq(mst_plan_mirror(nodes, 4, &m, &p), 2); /* one without a label is not known to share it */
    m.avoid = 1 << 3 | 1 << 2;
    ck_assert_int_eq(mst_plan_mirror(nodes, 4, &m, &p), 1); /* better than none */
    ck_assert_str_eq(p.why, "n2: 100 MiB left before, in the VM's rack");
    m.racks_min = MST_RACKS_OTHER;
    ck_assert_int_eq(mst_plan_mirror(nodes, 4, &m, &p), 3);
    nodes[3].used_bytes = 21 * MIB;
    ck_assert_int_eq(mst_plan_mirror(nodes, 4, &m, &p), -1);
    ck_assert_str_eq(p.why, "n1: has it already; n2: in the VM's rack; n3: has no rack label; n4: 59 MiB left, 60 needed");
    m.rack = "";
    nodes[3].used_bytes = 0;
    ck_assert_int_eq(mst_plan_mirror(nodes, 4, &m, &p), -1);
    ck_assert_ptr_nonnull(strstr(p.why, "n4: the VM's node has no rack label"));
}
END_TEST

START_TEST(a_mirror_goes_where_the_vm_itself_could_run_when_it_can)
{
    struct mst_plan_node nodes[] = {node(1, "n1", 900 * MIB, 0), node(2, "n2", 100 * MIB, 0), node(3, "n3", 500 * MIB, 430 * MIB),
                                    node(4, "n4", 150 * MIB, 0)};
    struct mst_plan_mirror m = {.need_bytes = 60 * MIB, .never = 1, .vm_bytes = 90 * MIB, .vcpus = 9};
    struct mst_placement p;

    nodes[0].vcpus = nodes[1].vcpus = nodes[2].vcpus = 3;
    nodes[3].vcpus = 2; /* and the VM has nine */
    ck_assert_int_eq(mst_plan_mirror(nodes, 4, &m, &p), 2);
    nodes[2].usable = false;
    nodes[2].why_not = "is drained";
    ck_assert_int_eq(mst_plan_mirror(nodes, 4, &m, &p), 3); /* none of both: most memory left */
    nodes[3].vcpus = 3;
    nodes[1].memory_bytes = 149 * MIB;
    ck_assert_int_eq(mst_plan_mirror(nodes, 4, &m, &p), 3);
    nodes[1].memory_bytes = 1000 * MIB;
    ck_assert_int_eq(mst_plan_mirror(nodes, 4, &m, &p), 1);
}
END_TEST

START_TEST(a_mirrored_vm_takes_three_times_its_ram_and_its_image_twice_both_with_a_ring)
{
    uint64_t vm = mst_plan_need_bytes(64, MST_PROTECT_MIRROR);
    uint64_t image = mst_plan_image_bytes(64);

    ck_assert_uint_eq(mst_plan_ring_bytes(64), 8 * MIB);
    ck_assert_uint_ge(vm, 3 * 64 * MIB + 8 * MIB + 4 * MIB);
    ck_assert_uint_le(vm, 3 * 64 * MIB + 8 * MIB + 5 * MIB);
    ck_assert_uint_ge(image, 2 * 64 * MIB + 8 * MIB + 4 * MIB);
    ck_assert_uint_le(image, 2 * 64 * MIB + 8 * MIB + 5 * MIB);
    ck_assert_uint_eq(mst_plan_ring_bytes(1), 1 * MIB);
    ck_assert_uint_eq(mst_plan_ring_bytes(65536), 16 * MIB);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("plan");
    TCase *tcase = tcase_create("plan");
    SRunner *runner = srunner_create(suite);
    int failed;

    tcase_add_test(tcase, exactly_enough_memory_fits_and_one_byte_less_does_not);
    tcase_add_test(tcase, vcpus_are_overcommitted_four_times_and_not_more);
    tcase_add_test(tcase, slots_are_a_resource);
    tcase_add_test(tcase, only_allowed_nodes_are_chosen);
    tcase_add_test(tcase, higher_priority_gets_the_room);
    tcase_add_test(tcase, among_equals_the_larger_goes_first_then_the_name);
    tcase_add_test(tcase, nodes_out_of_service_are_named_with_their_reason);
    tcase_add_test(tcase, preferred_beats_roomier_and_avoided_loses);
    tcase_add_test(tcase, last_resort_is_taken_only_when_nobody_else_can);
    tcase_add_test(tcase, what_a_vm_leaves_behind_is_its_credit_on_that_node_only);
    tcase_add_test(tcase, an_operators_choice_is_the_only_one);
    tcase_add_loop_test(tcase, no_random_cluster_is_ever_overfilled, 0, 200);
    tcase_add_test(tcase, a_protected_vm_takes_two_and_a_quarter_of_its_ram_and_its_areas);
    tcase_add_test(tcase, a_mirror_goes_where_most_memory_is_left_and_not_where_the_vm_is);
    tcase_add_test(tcase, a_mirror_goes_into_another_rack_when_it_can_and_nowhere_else_when_it_must);
    tcase_add_test(tcase, a_mirror_goes_where_the_vm_itself_could_run_when_it_can);
    tcase_add_test(tcase, a_mirrored_vm_takes_three_times_its_ram_and_its_image_twice_both_with_a_ring);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
