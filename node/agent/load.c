#include "node/agent/load.h"

#include "base/file.h"
#include "base/limits.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct mst_load {
    struct mst_qmp *qmp;
    uv_timer_t timer;
    uint32_t timeout_ms;
    mst_load_fn done;
    void *arg;
    bool asked; /* migrate-incoming is on its way: an end of a migration is ours */
    bool over;
};

static void timer_closed(uv_handle_t *handle)
{
    free(handle->data);
}

void mst_load_cancel(struct mst_load *load)
{
    if (!load || load->over)
        return;
    load->over = true;
    mst_qmp_forget(load->qmp, load);
    uv_close((uv_handle_t *)&load->timer, timer_closed);
}

static void finish(struct mst_load *load, int err, const struct mst_why *why)
{
    mst_load_cancel(load);
    load->done(err, why, load->arg);
}

static void on_late(uv_timer_t *timer)
{
    struct mst_load *load = timer->data;
    struct mst_why why;

    mst_why_set(&why, -ETIMEDOUT, "QEMU has not loaded the device state after %" PRIu32 " ms", load->timeout_ms);
    finish(load, -ETIMEDOUT, &why);
}

static void on_incoming(struct mst_qmp *qmp, int err, const json_t *ret, const struct mst_why *why, void *arg)
{
    (void)qmp;
    (void)ret;
    if (err)
        finish(arg, err, why);
}

static void on_fd(struct mst_qmp *qmp, int err, const json_t *ret, const struct mst_why *why, void *arg)
{
    struct mst_load *load = arg;
    struct mst_why here;
    int r;

    (void)ret;
    if (err) {
        finish(load, err, why);
        return;
    }
    load->asked = true;
    r = mst_qmp_execute(qmp, "migrate-incoming", json_pack("{s:s}", "uri", "fd:mst-load"), -1, load->timeout_ms, on_incoming,
                        load);
    if (r < 0) {
        mst_why_set(&here, r, "cannot ask QEMU to load: %s", mst_errname(r));
        finish(load, r, &here);
    }
}

void mst_load_event(struct mst_load *load, const char *name, const json_t *data)
{
    const char *status = json_string_value(json_object_get(data, "status"));
    struct mst_why why = {""};

    if (!load->asked || load->over || !status || strcmp(name, "MIGRATION") != 0)
        return;
    if (strcmp(status, "completed") == 0) {
        finish(load, 0, &why);
    } else if (strcmp(status, "failed") == 0) {
        mst_why_set(&why, -EREMOTEIO, "QEMU could not load the device state (its log says why)");
        finish(load, -EREMOTEIO, &why);
    }
}

/* A memfd: a pipe would need somebody to feed it, and QEMU cannot change what is sealed. */
static int stream_fd(const void *stream, uint64_t bytes)
{
    int fd = memfd_create("mst-load", MFD_CLOEXEC | MFD_ALLOW_SEALING), r;

    if (fd < 0)
        return -errno;
    r = mst_write_all(fd, stream, bytes);
    if (r == 0 && (lseek(fd, 0, SEEK_SET) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0))
        r = -errno;
    if (r < 0) {
        close(fd);
        return r;
    }
    return fd;
}

int mst_load_start(uv_loop_t *loop, struct mst_qmp *qmp, const void *stream, uint64_t bytes, uint32_t timeout_ms,
                   mst_load_fn done, void *arg, struct mst_load **ret_load)
{
    struct mst_load *load;
    int fd, r;

    if (bytes == 0 || bytes > MST_DEVICE_BYTES_MAX)
        return -EMSGSIZE;
    fd = stream_fd(stream, bytes);
    if (fd < 0)
        return fd;
    load = calloc(1, sizeof(*load));
    if (!load) {
        close(fd);
        return -ENOMEM;
    }
    *load = (struct mst_load){.qmp = qmp, .timeout_ms = timeout_ms, .done = done, .arg = arg};
    uv_timer_init(loop, &load->timer);
    load->timer.data = load;
    r = mst_qmp_execute(qmp, "getfd", json_pack("{s:s}", "fdname", "mst-load"), fd, timeout_ms, on_fd, load);
    close(fd);
    if (r < 0) {
        mst_load_cancel(load);
        return r;
    }
    uv_timer_start(&load->timer, on_late, timeout_ms, 0);
    *ret_load = load;
    return 0;
}
