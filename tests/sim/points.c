#include "tests/sim/points.h"
#include "tests/sim/coord.h"
#include "tests/sim/seam/records.h"
#include "tests/sim/world.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct sim_points sim_points;
const char *const sim_who_names[WHOS] = {"coordinator", "keeper", "agent"};

#define C  (1u << WHO_COORD)
#define K_ (1u << WHO_KEEPER)
#define A  (1u << WHO_AGENT)

static const struct {
    const char *name;
    unsigned who;
} points[] = {
    /* coordinator: decisions */
    {"commit.begun", C},
    {"commit.durable", C},
    {"commit.answered", C},
    {"store.etcd.before_send", C}, /* of several: etcd */
    {"store.asked", C},
    {"store.answered", C},
    {"store.etcd.answered", C},
    {"recovery.reported", C},
    {"recovery.reading", C},
    {"recovery.saving", C},
    {"recovery.fencing", C},
    {"recovery.reading-final", C},
    {"recovery.planning", C},
    {"recovery.committing", C},
    {"recovery.resuming", C},
    {"recovery.restarting-agent", C},
    {"recovery.held", C},
    {"recovery.done", C},
    /* ... and what follows from them */
    {"order.begun", C},
    {"order.sent", C},
    {"fence.begun", C},
    {"fence.asked", C},
    {"fence.ended", C},
    {"lease.posted", C},
    {"lease.completed", C},
    {"slots.read", C},
    {"reply.begun", C},
    {"reply.sent", C},
    /* both ends of a link */
    {"message.received", C | K_},
    {"send.begun", C | K_},
    {"send.posted", C | K_},
    {"post.begun", C | K_},
    {"post.posted", C | K_},
    {"post.completed", C | K_},
    {"region.begun", C | K_},
    /* keeper */
    {"hello.sent", K_},
    {"order.received", K_},
    {"grant.begun", K_},
    {"grant.given", K_},
    {"areas.begun", K_},
    {"order.relayed", K_},
    {"spawn.begun", K_},
    {"spawn.done", K_},
    {"standby.begun", K_},
    {"standby.spawned", K_},
    {"kill.begun", K_},
    {"kill.sent", K_},
    {"kill.proved", K_},
    {"answer.begun", K_},
    {"answer.sent", K_},
    {"lease.taken", K_},
    {"earlier.cleared", K_},
    {"agent.spawned", K_},
    /* keeper: as the source of a mirror, and as one */
    {"mirror.put.begun", K_},
    {"mirror.put.done", K_},
    {"agent.send", K_},
    {"output.cut", K_},
    {"output.released", K_},
    {"mirror.written", K_},
    {"mirror.acked", K_},
    {"mirror.commit", K_},
    {"image.acked", K_},
    {"image.revoked", K_},
    {"agent.told", K_ | A},
    {"pub.begun", K_ | A},
    {"pub.inside", K_ | A},
    {"pub.done", K_ | A},
    /* agent: a checkpoint; keeper: that of an image. (save.shadow takes two faults to reach; tests/unit/shm/crash.c ends the writer at every byte.) */
    {"save.stage", K_ | A},
    {"save.commit", K_ | A},
    {"save.apply", K_ | A},
    {"save.settle", K_ | A},
    {"save.fill", K_ | A},
};
#define POINTS (sizeof(points) / sizeof(points[0]))
static_assert(POINTS <= SIM_POINTS_MAX, "room to count them");

unsigned sim_points_count(void)
{
    return POINTS;
}

const char *sim_point_name(unsigned point)
{
    return points[point].name;
}

bool sim_point_of(unsigned point, enum sim_who who)
{
    return points[point].who >> who & 1;
}

void sim_die_at(enum sim_who who, const char *name)
{
    unsigned i = 0;

    while (i < POINTS && (!sim_point_of(i, who) || strcmp(points[i].name, name) != 0))
        i++;
    sim_points.by_name = true;
    sim_points.died = false;
    sim_points.kill_who = who;
    sim_points.kill_point = i;
    sim_points.kill_nth = i < POINTS ? sim_points.reached[who][i] + 1 : 0;
}

static bool here(enum sim_who *ret_who)
{
    const struct sim_host *host = sim_here();

    if (!host || !K.current)
        return false;
    *ret_who = K.current == &host->coord ? WHO_COORD : K.current == &host->keeper ? WHO_KEEPER : WHO_AGENT;
    return true;
}

static bool its_turn(enum sim_who who, const char *name)
{
    unsigned i = 0;

    sim_points.count[who]++;
    if (!sim_points.by_name)
        return sim_points.count[who] == sim_points.kill_at[who];
    while (i < POINTS && (!sim_point_of(i, who) || strcmp(points[i].name, name) != 0))
        i++;
    if (i == POINTS) {
        snprintf(sim_points.stranger, sizeof(sim_points.stranger), "%s of the %s", name, sim_who_names[who]);
        return false;
    }
    return ++sim_points.reached[who][i] == sim_points.kill_nth && who == sim_points.kill_who && i == sim_points.kill_point;
}

bool sim_point(const char *name)
{
    enum sim_who who;

    if (sim_muted() || K.now_ns < sim_points.from_ns || !here(&who) || !its_turn(who, name))
        return false;
    snprintf(sim_points.last, sizeof(sim_points.last), "%s %.30s", K.current->name, name);
    sim_points.died = true;
    sim_say("crash point %" PRIu64 ": %s", sim_points.count[who], name);
    sim_dead_stores();
    if (who == WHO_COORD)
        sim_coord_kill(W->coords[K.current->host - W->conf.nodes], sim_between(100, 900));
    else if (who == WHO_KEEPER)
        sim_keeper_kill(sim_here(), sim_between(200, 1500));
    else
        sim_agent_kill(sim_here());
    return true;
}

/* The product's own points. */
int mst_fault_hit(const char *name);
int mst_fault_hit(const char *name)
{
    (void)sim_point(name);
    return 0;
}
