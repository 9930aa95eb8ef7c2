#ifndef MST_TESTS_LAB_FABRIC_COMMON_H
#define MST_TESTS_LAB_FABRIC_COMMON_H

#include "fabric/fabric.h"

#include <stdio.h>
#include <uv.h>

/* The test of fabric/ on real rxe. `serve` and `client` run in two machines of the lab; commands go as text over a control link. */

#define TEST_DATA_BYTES   (32u << 20)
#define TEST_STATUS_BYTES 4096u
#define TEST_TEXT_BYTES   65536u
#define TEST_STALL_MS     700u /* a loop that stands so long was blocked; less can be the load of an emulated machine */

extern uv_loop_t *loop;
extern int failures;
extern uint64_t longest_gap_ms; /* between two turns of the loop, since gap_reset */

void loop_start(void);
void gap_reset(void);

/* Runs the loop until expr holds or ms have passed; true when it holds. */
#define WAIT(expr, ms)                                                                                                           \
    ({                                                                                                                           \
        uint64_t wait_end_ms = mst_now_ms() + (ms);                                                                              \
        while (!(expr) && mst_now_ms() < wait_end_ms)                                                                            \
            uv_run(loop, UV_RUN_ONCE);                                                                                           \
        (expr);                                                                                                                  \
    })

/* One line per check. */
__attribute__((format(printf, 3, 4))) void check(bool good, const char *sentence, const char *fmt, ...);

/* What lies at byte i of the data area. */
static inline uint8_t pattern(uint64_t i)
{
    return (uint8_t)(i * 7 + (i >> 8) * 13 + (i >> 16) * 29);
}

/* Keys that the server sends first on watch and pull links. */
struct keys {
    uint64_t status_addr, data_addr, grant_addr, revocable_addr;
    uint32_t status_rkey, data_rkey, grant_rkey, revocable_rkey;
};

/* One end of a link, as the client sees it. */
struct conn {
    struct mst_link *link;
    bool opened, closed; /* on_open, on_closed have run */
    int open_err, close_err;
    uint64_t start_ms, opened_ms, closed_ms;
    struct mst_why why;
    unsigned messages;
    char *text; /* last message, TEST_TEXT_BYTES + 1 */
    size_t text_bytes;
    struct keys keys;
    void (*on_message)(struct conn *conn, const void *data, size_t len);
    void *arg;
};

extern const struct mst_link_events conn_events;
void conn_free(struct conn *conn);

unsigned open_fds(void);
long hw_counter(const char *name);                                     /* of rxe0; -1 when there is none */
int shell(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* exit status; the loop runs meanwhile */

/* "access A min-rnr M timeout T retries R reads OUT/IN" of a link's QP */
void qp_text(struct mst_link *link, char *buf, size_t size);

int serve(const char *address, uint16_t port);
int client(const char *self, const char *address, const char *server, uint16_t port);
int client_with_faults(const char *address, const char *server, uint16_t port, const char *expect, bool once);
int bench(const char *address, const char *server, uint16_t port, uint32_t chunk_kib, uint32_t depth);

/* client.c, shared with the other files of checks */
struct mst_fabric *fabric_open(const char *address);
void fabric_close(struct mst_fabric *fabric);
struct conn *conn_start(struct mst_fabric *fabric, const char *address, uint16_t port, enum mst_role role, const char *data,
                        uint32_t deadline_ms);
struct conn *conn_open(struct mst_fabric *fabric, const char *server, uint16_t port,
                       enum mst_role role); /* waits; keys are there */
void conn_end(struct conn *conn);           /* closes, waits, frees */
const char *ask(struct conn *control, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

void check_faults(struct mst_fabric *fabric, const char *address, const char *server, uint16_t port);
void check_watcher(struct mst_fabric *fabric, const char *server, uint16_t port);
void check_device_removal(const char *address, const char *server, uint16_t port);

#endif
