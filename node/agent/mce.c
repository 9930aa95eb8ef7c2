#include "node/agent/mce.h"

#include "base/priority.h"

#include <errno.h>
#include <fcntl.h>
#include <kbuffer.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tracefs.h>
#include <unistd.h>

#define INSTANCE      "mainstay"
#define LOOK_AGAIN_MS 1000u /* kernels wake a reader late when buffer_percent is not theirs to set */
#define PIECE_BYTES   65536u
#define PIECES_MAX    16u /* of one CPU in one turn of the loop */

struct cpu {
    struct mst_mce *mce;
    uv_poll_t poll;
    int fd;
};

struct mst_mce {
    uv_loop_t *loop;
    mst_mce_started_fn started;
    uv_work_t work;
    bool working;
    int work_err; /* written by the worker, read when it is done */
    struct mst_why why;
    struct tracefs_instance *instance;
    struct mst_trace_format *format;
    struct kbuffer *kbuf;
    mst_mce_fn on_error;
    void *arg;
    uv_timer_t timer;
    unsigned handles; /* not closed yet */
    bool closing;
    unsigned cpu_count;
    struct cpu *cpus;
    uint8_t *piece;
};

static void take_piece(struct mst_mce *mce)
{
    void *record;

    if (kbuffer_load_subbuffer(mce->kbuf, mce->piece) != 0)
        return;
    while ((record = kbuffer_read_event(mce->kbuf, NULL)) && !mce->closing) {
        int bytes = kbuffer_event_size(mce->kbuf);
        struct mst_hw_error error;

        if (bytes > 0 && mst_trace_parse(mce->format, record, (size_t)bytes, &error) == 0)
            mce->on_error(&error, mce->arg);
        kbuffer_next_event(mce->kbuf, NULL);
    }
}

static void look(struct cpu *cpu)
{
    for (unsigned i = 0; i < PIECES_MAX && !cpu->mce->closing; i++) {
        ssize_t n = read(cpu->fd, cpu->mce->piece, PIECE_BYTES);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            if (n < 0 && errno != EAGAIN)
                uv_poll_stop(&cpu->poll); /* the CPU is gone, or the instance: the timer still looks */
            return;
        }
        take_piece(cpu->mce);
    }
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    (void)events;
    if (status < 0)
        uv_poll_stop(poll);
    else
        look(poll->data);
}

static void on_timer(uv_timer_t *timer)
{
    struct mst_mce *mce = timer->data;

    for (unsigned i = 0; i < mce->cpu_count && !mce->closing; i++)
        look(&mce->cpus[i]);
}

static void mce_free(struct mst_mce *mce)
{
    for (unsigned i = 0; i < mce->cpu_count; i++)
        close(mce->cpus[i].fd);
    free(mce->cpus);
    free(mce->piece);
    if (mce->kbuf)
        kbuffer_free(mce->kbuf);
    mst_trace_format_free(mce->format);
    if (mce->instance)
        tracefs_instance_free(mce->instance); /* forgets the handle; the kernel keeps the instance */
    free(mce);
}

static void on_closed(uv_handle_t *handle)
{
    struct mst_mce *mce = handle->type == UV_TIMER ? handle->data : ((struct cpu *)handle->data)->mce;

    if (--mce->handles == 0)
        mce_free(mce);
}

void mst_mce_unwatch(struct mst_mce *mce)
{
    if (!mce || mce->closing)
        return;
    mce->closing = true;
    if (mce->working)
        return;              /* opened() frees it */
    if (mce->handles == 0) { /* it could not be opened */
        mce_free(mce);
        return;
    }
    uv_close((uv_handle_t *)&mce->timer, on_closed);
    for (unsigned i = 0; i < mce->cpu_count; i++)
        uv_close((uv_handle_t *)&mce->cpus[i].poll, on_closed);
}

static int open_events(struct mst_mce *mce, struct mst_why *why)
{
    static const char *const events[][2] = {{"mce", "mce_record"}, {"ras", "mc_event"}};
    char *formats[2] = {NULL, NULL};
    int r;

    if (geteuid() != 0)
        return mst_why_set(why, -EACCES, "reading trace events needs root");
    if (!tracefs_tracing_dir())
        return mst_why_set(why, -ENOENT, "there is no tracefs (/sys/kernel/tracing)");
    mce->instance = tracefs_instance_create(INSTANCE);
    if (!mce->instance)
        return mst_why_set(why, -errno, "cannot make the tracefs instance %s: %s", INSTANCE, mst_errname(errno));
    for (unsigned i = 0; i < 2; i++)
        if (tracefs_event_enable(mce->instance, events[i][0], events[i][1]) == 0)
            formats[i] = tracefs_event_file_read(mce->instance, events[i][0], events[i][1], "format", NULL);
    r = mst_trace_format_new(formats[0], formats[1], &mce->format);
    if (!formats[0] && !formats[1])
        mst_why_set(why, -ENOENT, "this kernel has neither mce:mce_record nor ras:mc_event");
    else if (r < 0)
        mst_why_set(why, r, "the kernel's description of its events cannot be read");
    free(formats[0]);
    free(formats[1]);
    if (r < 0)
        return r;
    tracefs_instance_file_write(mce->instance, "buffer_percent", "0"); /* older kernels have none and wake at once */
    tracefs_trace_on(mce->instance);
    return 0;
}

static int open_cpus(struct mst_mce *mce, uv_loop_t *loop, struct mst_why *why)
{
    long count = sysconf(_SC_NPROCESSORS_CONF);

    mce->cpus = calloc(count > 0 ? (size_t)count : 1, sizeof(*mce->cpus));
    mce->piece = malloc(PIECE_BYTES);
    mce->kbuf = kbuffer_alloc(KBUFFER_LSIZE_SAME_AS_HOST, KBUFFER_ENDIAN_SAME_AS_HOST);
    if (!mce->cpus || !mce->piece || !mce->kbuf)
        return mst_why_set(why, -ENOMEM, "no memory to read trace events");
    for (long i = 0; i < count; i++) {
        struct cpu *cpu = &mce->cpus[mce->cpu_count];
        char name[64];
        int fd;

        snprintf(name, sizeof(name), "per_cpu/cpu%ld/trace_pipe_raw", i);
        fd = tracefs_instance_file_open(mce->instance, name, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        if (fd < 0)
            continue; /* not there */
        *cpu = (struct cpu){.mce = mce, .fd = fd};
        if (uv_poll_init(loop, &cpu->poll, fd) < 0) {
            close(fd);
            continue;
        }
        cpu->poll.data = cpu;
        mce->cpu_count++;
        mce->handles++;
        uv_poll_start(&cpu->poll, UV_READABLE, on_poll);
    }
    if (mce->cpu_count == 0)
        return mst_why_set(why, -ENOENT, "no trace buffer of any CPU can be read");
    return 0;
}

static void open_work(uv_work_t *work)
{
    struct mst_mce *mce = work->data;

    mst_priority_worker();
    mce->work_err = open_events(mce, &mce->why);
}

static void opened(uv_work_t *work, int status)
{
    struct mst_mce *mce = work->data;

    (void)status; /* never cancelled */
    mce->working = false;
    if (mce->closing) {
        mce_free(mce);
        return;
    }
    if (mce->work_err == 0)
        mce->work_err = open_cpus(mce, mce->loop, &mce->why);
    if (mce->work_err == 0) {
        uv_timer_init(mce->loop, &mce->timer);
        mce->timer.data = mce;
        mce->handles++;
        uv_timer_start(&mce->timer, on_timer, 0, LOOK_AGAIN_MS);
    }
    mce->started(mce->work_err, &mce->why, mce->arg);
}

int mst_mce_watch(uv_loop_t *loop, mst_mce_fn on_error, mst_mce_started_fn started, void *arg, struct mst_mce **ret_mce)
{
    struct mst_mce *mce = calloc(1, sizeof(*mce));

    if (!mce)
        return -ENOMEM;
    mce->loop = loop;
    mce->on_error = on_error;
    mce->started = started;
    mce->arg = arg;
    mce->work.data = mce;
    mce->working = true;
    uv_queue_work(loop, &mce->work, open_work, opened); /* fails only without a callback */
    *ret_mce = mce;
    return 0;
}
