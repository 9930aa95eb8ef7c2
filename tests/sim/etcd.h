#ifndef SIM_ETCD_H
#define SIM_ETCD_H

#include "tests/sim/world.h"

/* A cluster of etcd as several coordinators use it: one member on each coordinator's host. Linearizable: every request that is done is done at one
 * moment, by a member that reaches a majority. What happens to requests is in here as well (coordinator/io/http.h is the seam; all above it is the
 * product's): lost before, lost behind, done later than anybody waits for, refused because there is no connection. */

struct sim_etcd_faults {
    unsigned down[SIM_COORDS_MAX]; /* members that do not run: so many faults hold it */
    uint32_t lost;                 /* per mille: it is done, and the answer is lost */
    uint32_t late;                 /* per mille: it lingers for up to some seconds, and is done then */
    int32_t drift_ppm;             /* of the clock that ends leases */
};
extern struct sim_etcd_faults sim_etcd_faults;

void sim_etcd_begin(void); /* with every run */
bool sim_etcd_majority(void);
/* Instance of the coordinator whose leader key is there at this moment, 0: none. */
uint64_t sim_etcd_leader(void);
/* When it last confirmed to the coordinator of this instance that it leads, or let it become the leader; 0: never. */
uint64_t sim_etcd_confirmed(uint64_t instance);

#endif
