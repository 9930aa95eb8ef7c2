#include "common.h"

#include "base/clock.h"
#include "fabric/internal.h"

#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

uv_loop_t *loop;
int failures;
uint64_t longest_gap_ms;

static uv_timer_t ticker;
static uint64_t last_tick_ms;

static void on_tick(uv_timer_t *timer)
{
    uint64_t now_ms = mst_now_ms();

    (void)timer;
    if (now_ms - last_tick_ms > longest_gap_ms)
        longest_gap_ms = now_ms - last_tick_ms;
    last_tick_ms = now_ms;
}

void gap_reset(void)
{
    last_tick_ms = mst_now_ms();
    longest_gap_ms = 0;
}

void loop_start(void)
{
    loop = uv_default_loop();
    uv_timer_init(loop, &ticker);
    uv_timer_start(&ticker, on_tick, 10, 10);
    gap_reset();
}

void check(bool good, const char *sentence, const char *fmt, ...)
{
    char text[600];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    printf("%s %s%s%s\n", good ? "ok  " : "FAIL", sentence, text[0] ? ": " : "", text);
    fflush(stdout);
    failures += !good;
}

static void on_open(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct conn *conn = arg;

    conn->opened = true;
    conn->open_err = err;
    conn->opened_ms = mst_now_ms();
    conn->why = *why;
    if (err)
        conn->link = NULL;
    else
        conn->link = link;
}

static void on_message(struct mst_link *link, const void *data, size_t len, void *arg)
{
    struct conn *conn = arg;

    (void)link;
    conn->messages++;
    if (conn->on_message) {
        conn->on_message(conn, data, len);
        return;
    }
    if (!conn->text)
        conn->text = malloc(TEST_TEXT_BYTES + 1);
    memcpy(conn->text, data, len);
    conn->text[len] = '\0';
    conn->text_bytes = len;
    sscanf(conn->text, "keys %lx %x %lx %x %lx %x %lx %x", &conn->keys.status_addr, &conn->keys.status_rkey,
           &conn->keys.data_addr, &conn->keys.data_rkey, &conn->keys.grant_addr, &conn->keys.grant_rkey,
           &conn->keys.revocable_addr, &conn->keys.revocable_rkey);
}

static void on_closed(struct mst_link *link, int err, const struct mst_why *why, void *arg)
{
    struct conn *conn = arg;

    (void)link;
    conn->closed = true;
    conn->close_err = err;
    conn->closed_ms = mst_now_ms();
    conn->why = *why;
    conn->link = NULL;
}

const struct mst_link_events conn_events = {.on_open = on_open, .on_message = on_message, .on_closed = on_closed};

void conn_free(struct conn *conn)
{
    free(conn->text);
    free(conn);
}

unsigned open_fds(void)
{
    unsigned n = 0;
    DIR *dir = opendir("/proc/self/fd");

    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

long hw_counter(const char *name)
{
    char path[200];
    long value = -1;
    FILE *file;

    snprintf(path, sizeof(path), "/sys/class/infiniband/rxe0/ports/1/hw_counters/%s", name);
    file = fopen(path, "re");
    if (!file)
        return -1;
    if (fscanf(file, "%ld", &value) != 1)
        value = -1;
    fclose(file);
    return value;
}

static void on_shell_exit(uv_process_t *process, int64_t status, int signal)
{
    *(int *)process->data = signal ? 128 + signal : (int)status;
    uv_close((uv_handle_t *)process, NULL);
}

int shell(const char *fmt, ...)
{
    char command[1000];
    char *args[] = {"sh", "-c", command, NULL};
    uv_stdio_container_t stdio[3] = {
        {.flags = UV_IGNORE}, {.flags = UV_INHERIT_FD, .data.fd = 1}, {.flags = UV_INHERIT_FD, .data.fd = 2}};
    uv_process_options_t options = {.file = "/bin/sh", .args = args, .exit_cb = on_shell_exit, .stdio = stdio, .stdio_count = 3};
    static uv_process_t process;
    int status = -1;
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(command, sizeof(command), fmt, ap);
    va_end(ap);
    process.data = &status;
    if (uv_spawn(loop, &process, &options))
        return -1;
    WAIT(status != -1, 30000);
    WAIT(false, 20); /* libuv closes the handle */
    return status;
}

void qp_text(struct mst_link *link, char *buf, size_t size)
{
    struct ibv_qp_init_attr init;
    struct ibv_qp_attr attr = {.qp_state = 0};

    if (ibv_query_qp(link->qp, &attr, IBV_QP_STATE | IBV_QP_ACCESS_FLAGS | IBV_QP_TIMEOUT, &init))
        attr.qp_state = IBV_QPS_UNKNOWN;
    snprintf(buf, size, "access %x min-rnr %u timeout %u retries %u rnr-retries %u reads %u/%u", attr.qp_access_flags,
             attr.min_rnr_timer, attr.timeout, attr.retry_cnt, attr.rnr_retry, attr.max_rd_atomic, attr.max_dest_rd_atomic);
}
