#include "common.h"

#include "base/clock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Bandwidth of mst_link_read_stream in MiB/s; run-bench compares it with ib_read_bw in the same lab, turn by turn. */

static bool done;
static int result;

static void on_done(void *arg, int err)
{
    (void)arg;
    done = true;
    result = err;
}

static int on_chunk(void *arg, uint64_t offset, uint32_t len)
{
    (void)arg;
    (void)offset;
    (void)len;
    return 0;
}

static double one(struct conn *conn, struct mst_region *region, uint64_t total, uint32_t chunk, uint32_t depth)
{
    uint64_t start_ns = mst_now_ns();

    done = false;
    if (mst_link_read_stream(conn->link, region, 0, conn->keys.data_addr, conn->keys.data_rkey, total, chunk, depth, 5000,
                             on_chunk, on_done, NULL) < 0)
        return 0;
    WAIT(done, 120000);
    return done && !result ? (double)total / (1u << 20) / ((double)(mst_now_ns() - start_ns) / 1e9) : 0;
}

int bench(const char *address, const char *server, uint16_t port, uint32_t chunk_kib, uint32_t depth)
{
    struct mst_fabric *fabric;
    struct mst_region *region;
    struct conn *conn;
    struct mst_why why;
    void *memory;
    double rate;

    loop_start();
    fabric = fabric_open(address);
    if (!fabric)
        return 1;
    conn = conn_open(fabric, server, port, MST_ROLE_PULL);
    memory = mmap(NULL, TEST_DATA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (mst_region_new(conn->link, memory, TEST_DATA_BYTES, MST_ACCESS_LOCAL, &region, &why) < 0) {
        printf("%s\n", why.text);
        return 1;
    }
    rate = one(conn, region, TEST_DATA_BYTES, chunk_kib << 10, depth);
    printf("%.2f\n", rate);
    conn_end(conn);
    fabric_close(fabric);
    return rate > 0 ? 0 : 1;
}
