#ifndef MST_BASE_CLOCK_H
#define MST_BASE_CLOCK_H

#include <stdint.h>

/* All of these: any thread, cannot fail. */
uint64_t mst_now_ns(void);     /* CLOCK_BOOTTIME: counts while suspended, never steps; for intervals and deadlines */
uint64_t mst_now_ms(void);     /* the same in milliseconds */
uint64_t mst_raw_ns(void);     /* CLOCK_MONOTONIC_RAW: not slewed, stands still while suspended; beside mst_now_ns for leases */
uint64_t mst_wall_ms(void);    /* milliseconds since 1970 UTC: for people and records, never for deciding */
uint64_t mst_wall_ns(void);    /* the same in nanoseconds */
uint64_t mst_random_u64(void); /* getrandom(2); never 0 */

#define MST_NS_PER_MS UINT64_C(1000000)
#define MST_NS_PER_S  UINT64_C(1000000000)

/* "2026-11-23T14:05:01.123Z" into buf of at least 25 bytes; returns buf. */
const char *mst_wall_text(uint64_t wall_ms, char buf[static 25]);

#endif
