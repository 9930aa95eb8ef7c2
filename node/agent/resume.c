#include "node/agent/resume.h"

#include "base/clock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define AGAIN_MS 1u  /* QEMU finalizes a migration in its main loop, within some ms */
#define POLL_MS  20u /* between two looks at a migration that is being cancelled */

struct mst_resume {
    uv_loop_t *loop;
    uv_timer_t timer;
    struct mst_qmp *qmp;
    enum mst_resume_how how;
    uint32_t timeout_ms;
    uint64_t deadline_ms; /* 0: none */
    mst_resume_fn done;
    void *arg;
    bool cancel_sent, over;
};

static void ask_migration(struct mst_resume *resume);
static void ask_status(struct mst_resume *resume);
static void say_cont(struct mst_resume *resume);

static void timer_closed(uv_handle_t *handle)
{
    free(handle->data);
}

static void finish(struct mst_resume *resume, int err, const struct mst_why *why)
{
    mst_resume_cancel(resume);
    resume->done(err, why, resume->arg);
}

static void say(struct mst_resume *resume, const char *command, mst_qmp_reply_fn reply)
{
    struct mst_why why;
    int r = mst_qmp_execute(resume->qmp, command, NULL, -1, resume->timeout_ms, reply, resume);

    if (r < 0) {
        mst_why_set(&why, r, "cannot ask QEMU for %s: %s", command, mst_errname(r));
        finish(resume, r, &why);
    }
}

static void later(struct mst_resume *resume, uv_timer_cb what, uint32_t ms)
{
    struct mst_why why;

    if (resume->deadline_ms != 0 && mst_now_ms() >= resume->deadline_ms) {
        mst_why_set(&why, -ETIMEDOUT, "QEMU did not let the guest run within %u ms", resume->timeout_ms);
        finish(resume, -ETIMEDOUT, &why);
        return;
    }
    uv_timer_start(&resume->timer, what, ms, 0);
}

static void on_again(uv_timer_t *timer)
{
    say_cont(timer->data);
}

static void on_poll(uv_timer_t *timer)
{
    ask_migration(timer->data);
}

static void on_cont(struct mst_qmp *qmp, int err, const json_t *ret, const struct mst_why *why, void *arg)
{
    struct mst_resume *resume = arg;

    (void)qmp;
    (void)ret;
    if (err == -EREMOTEIO && strstr(why->text, "not finalized"))
        later(resume, on_again, AGAIN_MS);
    else if (err)
        finish(resume, err, why);
    else if (resume->how == MST_RESUME_CAREFUL)
        ask_status(resume);
    else
        finish(resume, 0, why);
}

static void say_cont(struct mst_resume *resume)
{
    say(resume, "cont", on_cont);
}

static void on_status(struct mst_qmp *qmp, int err, const json_t *ret, const struct mst_why *why, void *arg)
{
    struct mst_resume *resume = arg;
    const char *status = json_string_value(json_object_get(ret, "status"));
    struct mst_why panicked;

    (void)qmp;
    if (err) {
        finish(resume, err, why);
    } else if (json_is_true(json_object_get(ret, "running"))) {
        finish(resume, 0, why);
    } else if (status && strcmp(status, "guest-panicked") == 0) {
        mst_why_set(&panicked, -ECANCELED, "the guest panicked and is left standing");
        finish(resume, -ECANCELED, &panicked);
    } else {
        later(resume, on_again, AGAIN_MS);
    }
}

static void ask_status(struct mst_resume *resume)
{
    say(resume, "query-status", on_status);
}

static bool migration_goes_on(const json_t *ret)
{
    static const char *const going[] = {"setup", "active", "device", "cancelling", "pre-switchover", "wait-unplug"};
    const char *status = json_string_value(json_object_get(ret, "status"));

    for (unsigned i = 0; status && i < sizeof(going) / sizeof(going[0]); i++)
        if (strcmp(status, going[i]) == 0)
            return true;
    return false;
}

static void on_cancelled(struct mst_qmp *qmp, int err, const json_t *ret, const struct mst_why *why, void *arg)
{
    struct mst_resume *resume = arg;

    (void)qmp;
    (void)ret;
    if (err && err != -EREMOTEIO) /* a refusal means that there is nothing to cancel any more */
        finish(resume, err, why);
    else
        later(resume, on_poll, POLL_MS);
}

static void on_migration(struct mst_qmp *qmp, int err, const json_t *ret, const struct mst_why *why, void *arg)
{
    struct mst_resume *resume = arg;

    (void)qmp;
    if (err) {
        finish(resume, err, why);
    } else if (!migration_goes_on(ret)) {
        ask_status(resume);
    } else if (resume->cancel_sent) {
        later(resume, on_poll, POLL_MS);
    } else {
        resume->cancel_sent = true;
        say(resume, "migrate_cancel", on_cancelled);
    }
}

static void ask_migration(struct mst_resume *resume)
{
    say(resume, "query-migrate", on_migration);
}

int mst_resume_start(uv_loop_t *loop, struct mst_qmp *qmp, enum mst_resume_how how, uint32_t timeout_ms, mst_resume_fn done,
                     void *arg, struct mst_resume **ret_resume)
{
    struct mst_resume *resume = calloc(1, sizeof(*resume));
    int r;

    if (!resume)
        return -ENOMEM;
    *resume = (struct mst_resume){.loop = loop,
                                  .qmp = qmp,
                                  .how = how,
                                  .timeout_ms = timeout_ms,
                                  .deadline_ms = timeout_ms ? mst_now_ms() + timeout_ms : 0,
                                  .done = done,
                                  .arg = arg};
    uv_timer_init(loop, &resume->timer);
    resume->timer.data = resume;
    r = how == MST_RESUME_FAST ? mst_qmp_execute(qmp, "cont", NULL, -1, timeout_ms, on_cont, resume)
                               : mst_qmp_execute(qmp, "query-migrate", NULL, -1, timeout_ms, on_migration, resume);
    if (r < 0) {
        mst_resume_cancel(resume);
        return r;
    }
    *ret_resume = resume;
    return 0;
}

void mst_resume_cancel(struct mst_resume *resume)
{
    if (!resume || resume->over)
        return;
    resume->over = true;
    mst_qmp_forget(resume->qmp, resume);
    uv_close((uv_handle_t *)&resume->timer, timer_closed);
}
