#include "tests/unit/core/world.h"

#include <errno.h>
#include <inttypes.h>

/* Many small random histories. The world checks after every step that no VM runs twice, that nothing starts under a grant that is not durable, that
 * epochs only grow; here: once everything is well again, every wanted VM runs, exactly once, and no recovery is left open. */

#define NODES   4u
#define VMS     6u
#define ACTIONS 40u

static uint64_t state, seq;

static uint32_t dice(uint32_t n)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 33) % n;
}

static void name_of(unsigned vm, char name[16])
{
    snprintf(name, 16, "vm%u", vm);
}

static void node_back(struct world *w, unsigned node)
{
    struct world_node *n = &w->nodes[node];

    if (n->cut)
        world_cut(w, node, false);
    n->agent_frozen = false;
    n->no_fence_answer = n->save_fails = false;
    n->start_err = 0;
    n->reads_fail = 0;
    n->mirror_err = n->revoke_err = 0;
    n->image_stuck = false;
    if (!n->powered)
        world_node_power_on(w, node);
    else if (!n->up)
        world_node_return(w, node, dice(4) != 0);
    n->frozen = false;
}

static void act(struct world *w)
{
    unsigned node = dice(NODES);
    struct world_node *n = &w->nodes[node];
    char vm[16], node_name[16];

    name_of(dice(VMS), vm);
    snprintf(node_name, sizeof(node_name), "n%u", node + 1);
    switch (dice(21)) {
    case 0:
    case 1:
        if (world_where(w, vm) >= 0)
            world_vm_die(w, (unsigned)world_where(w, vm), vm);
        break;
    case 2:
        if (n->up && n->powered)
            world_node_kill(w, node);
        break;
    case 3:
        if (n->powered) {
            memset(n->slots, 0, sizeof(n->slots));
            n->powered = false;
            world_node_kill(w, node);
        }
        break;
    case 4:
        if (n->up && n->powered)
            world_cut(w, node, true);
        break;
    case 5:
        n->frozen = n->up;
        break;
    case 6:
        n->agent_frozen = true;
        n->agent_restart_helps = dice(3) != 0;
        break;
    case 7:
    case 8:
    case 9:
        node_back(w, node);
        break;
    case 10:
        w->commit_err = dice(2) ? -ENOSPC : 0;
        break;
    case 11:
        w->crash_at = w->commits + 1 + dice(6);
        w->crash_delivers = dice(2);
        break;
    case 12:
        world_restart(w);
        break;
    case 13:
        (void)world_ask(w, dice(2) ? MST_REQ_DRAIN : MST_REQ_UNDRAIN, node_name, NULL);
        break;
    case 14:
        (void)world_ask(w, dice(3) ? MST_REQ_START : MST_REQ_STOP, vm, NULL);
        break;
    case 15:
        n->start_err = dice(2) ? -EIO : 0;
        n->save_fails = dice(2);
        break;
    case 16:
        w->power = dice(3) ? POWER_WORKS : POWER_FAILS;
        break;
    case 17:
        world_report(w, dice(2) ? MST_FAULT_PROCESSOR : MST_FAULT_VM_PANICKED, node, vm);
        break;
    case 18:
    case 19:
        if (world_where(w, vm) >= 0 && world_slot(&w->nodes[world_where(w, vm)], vm, world_epoch(w, vm)))
            world_checkpoint(w, vm, ++seq);
        break;
    case 20:
        n->image_stuck = dice(2);
        n->mirror_err = dice(3) ? 0 : -ENOSPC;
        n->revoke_err = dice(3) ? 0 : -EIO;
        n->logs[0].phase = dice(2) && n->logs[0].vm[0] ? MST_MIRROR_FAILED : n->logs[0].phase;
        break;
    }
    world_run(w, dice(4) == 0 ? 4000 : 10 * dice(60));
}

static bool all_well(struct world *w, const void *unused)
{
    struct mst_recovery_look rec;

    (void)unused;
    for (unsigned i = 0; i < VMS; i++) {
        char vm[16];

        name_of(i, vm);
        if (world_phase(w, vm) != MST_VM_RUNNING || world_where(w, vm) < 0)
            return false;
    }
    for (unsigned i = 0; mst_core_recovery(w->core, i, &rec); i++) {
        if (rec.row->state != MST_REC_DONE)
            return false;
    }
    return true;
}

static void explain(struct world *w)
{
    struct mst_recovery_look rec;

    for (unsigned i = 0; i < VMS; i++) {
        struct mst_vm_look look;
        char vm[16];

        name_of(i, vm);
        (void)mst_core_vm_by_name(w->core, vm, &look);
        fprintf(stderr, "%s phase=%u wanted=%d node=%u epoch=%" PRIu64 " fenced=%d runs on %d %s\n", vm, look.row->phase,
                look.row->wanted, look.row->node_id, look.row->epoch, look.row->fenced, world_where(w, vm), look.text);
        if (look.protection[0])
            fprintf(stderr, "    %s\n", look.protection);
    }
    for (unsigned i = 0; mst_core_recovery(w->core, i, &rec); i++) {
        if (rec.row->state != MST_REC_DONE)
            fprintf(stderr, "recovery %" PRIu64 " scope=%u node=%u %s: %s\n", rec.row->id, rec.row->scope, rec.row->node_id,
                    mst_rec_state_name(rec.row->state), rec.why);
    }
}

START_TEST(after_any_history_every_wanted_vm_runs_exactly_once)
{
    struct world *w = world_new(NODES);

    seq = 5;
    state = (uint64_t)_i * 2654435761u + 88172645463325252u;
    for (unsigned i = 0; i < VMS; i++) {
        char vm[16];
        struct mst_definition def;

        name_of(i, vm);
        def = i % 3 == 2 ? world_mirror_def(vm, 16) : world_def(vm, 16, i % 2 != 0);
        def.priority = i;
        world_define(w, &def);
        world_start_vm(w, vm, NULL);
        world_checkpoint(w, vm, 5);
    }
    for (unsigned i = 0; i < ACTIONS; i++)
        act(w);
    /* Everything is mended. */
    w->commit_err = 0;
    w->crash_at = 0;
    w->power = POWER_WORKS;
    world_run(w, 6000);
    for (unsigned k = 0; k < 3; k++) { /* what was fenced meanwhile comes back too */
        for (unsigned i = 0; i < NODES; i++)
            node_back(w, i);
        world_run(w, 60000);
    }
    world_run(w, 130000); /* restarts too often are forgotten */
    for (unsigned i = 0; i < NODES; i++) {
        char node[16];

        snprintf(node, sizeof(node), "n%u", i + 1);
        ck_assert_int_eq(world_request(w, MST_REQ_UNDRAIN, node, NULL), 0);
    }
    world_run(w, 20000);
    for (unsigned i = 0; i < VMS; i++) {
        char vm[16];

        name_of(i, vm);
        (void)world_request(w, MST_REQ_START, vm, NULL);
    }
    if (!world_until(w, 60000, all_well, NULL)) {
        explain(w);
        ck_abort_msg("seed %d: not all is well", _i);
    }
    for (unsigned i = 2; i < VMS; i += 3) {
        char vm[16];

        name_of(i, vm);
        world_checkpoint(w, vm, ++seq);
        if (!world_until(w, 60000, is_mirrored, vm)) {
            explain(w);
            ck_abort_msg("seed %d: %s has no mirror", _i, vm);
        }
    }
    world_free(w);
}
END_TEST

int main(void)
{
    const char *seeds = getenv("SOAK_SEEDS"); /* FROM:TO; a good long run is 0:150 */
    int from = 0, to = 10;                    /* some seconds */
    Suite *suite = suite_create("soak");
    TCase *tcase = tcase_create("soak");
    SRunner *runner = srunner_create(suite);
    int failed;

    if (seeds)
        (void)sscanf(seeds, "%d:%d", &from, &to);
    tcase_set_timeout(tcase, 300); /* one seed takes half a second; the machine may be shared by many */
    tcase_add_loop_test(tcase, after_any_history_every_wanted_vm_runs_exactly_once, from, to);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
