#include "common.h"

#include "base/clock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static unsigned samples_told;

static void on_sample(void *arg)
{
    (void)arg;
    samples_told++;
}

static uint64_t word_of(const struct mst_watch_sample *sample)
{
    uint64_t word;

    memcpy(&word, sample->data, sizeof(word));
    return word;
}

static struct mst_watch_sample sample_of(struct mst_watcher *watcher, uint32_t id)
{
    struct mst_watch_sample sample;

    if (mst_watcher_sample(watcher, id, &sample) < 0)
        memset(&sample, 0, sizeof(sample));
    return sample;
}

static int add(struct mst_watcher *watcher, uint32_t id, struct conn *conn)
{
    return mst_watcher_add(watcher, id, conn->link, conn->keys.status_addr, conn->keys.status_rkey, 64);
}

struct io {
    bool done;
    int err;
};

static void on_io(void *arg, int err)
{
    *(struct io *)arg = (struct io){.done = true, .err = err};
}

static void check_samples(struct mst_watcher *watcher, struct conn *a, struct conn *b)
{
    struct mst_watch_sample before[2], after[2];
    uint64_t now_ns;

    check(!add(watcher, 1, a) && !add(watcher, 2, b) && add(watcher, 1, b) == -EEXIST && add(watcher, 3, a) == -EEXIST,
          "two targets are watched, none twice", "%s", "");
    WAIT(sample_of(watcher, 1).reads > 5 && sample_of(watcher, 2).reads > 5, 3000);
    before[0] = sample_of(watcher, 1);
    before[1] = sample_of(watcher, 2);
    WAIT(false, 1000);
    after[0] = sample_of(watcher, 1);
    after[1] = sample_of(watcher, 2);
    now_ns = mst_now_ns();
    check(after[0].reads - before[0].reads > 20 && after[1].reads - before[1].reads > 20 && !after[0].failures &&
              word_of(&after[0]) > word_of(&before[0]) && word_of(&after[1]) > word_of(&before[1]) && after[0].bytes == 64 &&
              now_ns - after[0].last_read_ns < 300 * MST_NS_PER_MS && samples_told,
          "samples of both advance with the counter that is watched", "%lu and %lu reads in 1 s, latency %lu us, told %u times",
          after[0].reads - before[0].reads, after[1].reads - before[1].reads, after[0].latency_ns / 1000, samples_told);
}

static void check_sharing(struct mst_watcher *watcher, struct conn *a)
{
    uint64_t *word = aligned_alloc(4096, 4096);
    unsigned writes = 0, good = 0, before;
    struct mst_region *region;
    struct mst_why why;
    uint64_t reads;

    mst_region_new(a->link, word, 4096, MST_ACCESS_LOCAL, &region, &why);
    check(mst_link_read(a->link, region, 0, a->keys.status_addr, a->keys.status_rkey, 8, 1000, on_io, NULL) == -EBUSY,
          "other READs on a watched link are refused", "%s", "");
    reads = sample_of(watcher, 1).reads;
    before = a->messages;
    for (; writes < 100; writes++) {
        struct io io = {false, 0};

        *word = writes;
        if (mst_link_write(a->link, region, 0, a->keys.grant_addr, a->keys.grant_rkey, 8, 2000, on_io, &io))
            break;
        mst_link_send(a->link, "echo", 4);
        WAIT(io.done, 3000);
        good += !io.err;
    }
    WAIT(a->messages == before + writes, 3000);
    check(good == 100 && a->messages == before + 100 && sample_of(watcher, 1).reads > reads,
          "WRITEs and messages go on over a watched link", "%u writes, %u messages", good, a->messages - before);
    mst_region_free(region);
    free(word);
}

static void check_coming_and_going(struct mst_watcher *watcher, struct mst_fabric *fabric, const char *server, uint16_t port,
                                   struct conn *a)
{
    unsigned good = 0, alive = 0;
    struct mst_watch_sample sample;

    for (int i = 0; i < 200; i++) {
        mst_watcher_remove(watcher, 1);
        if (i % 3 == 0)
            WAIT(false, 3);
        good += !add(watcher, 1, a);
        if (i % 2)
            alive += (unsigned)WAIT(sample_of(watcher, 1).reads > 0, 2000);
    }
    check(good == 200 && alive == 100 && a->link, "a target can be removed and added at any moment", "%u, %u", good, alive);
    good = 0;
    for (int i = 0; i < 20; i++) {
        struct conn *conn = conn_open(fabric, server, port, MST_ROLE_WATCH);

        add(watcher, 10, conn);
        WAIT(sample_of(watcher, 10).reads > 1, 2000);
        if (i % 2)
            mst_watcher_remove(watcher, 10);
        conn_end(conn);
        sample = sample_of(watcher, 10);
        if (i % 2 ? sample.reads == 0 : sample.reads > 1 && sample.error == -ECANCELED && word_of(&sample))
            good++;
        mst_watcher_remove(watcher, 10);
    }
    check(good == 20, "a watched link can be closed before and after its target is removed; the sample stays until then", "%u",
          good);
}

void check_watcher(struct mst_fabric *fabric, const char *server, uint16_t port)
{
    struct conn *control = conn_open(fabric, server, port, MST_ROLE_CONTROL);
    struct conn *a = conn_open(fabric, server, port, MST_ROLE_WATCH), *b = conn_open(fabric, server, port, MST_ROLE_WATCH);
    struct mst_watch_sample sample, later;
    struct mst_watcher *watcher;
    uint64_t start_ms;
    struct mst_why why;
    unsigned fds = open_fds();

    mst_watcher_new(fabric, 20, 1000, on_sample, NULL, &watcher, &why);
    check_samples(watcher, a, b);
    check_sharing(watcher, a);
    check_coming_and_going(watcher, fabric, server, port, a);
    mst_link_send(control->link, "stop 4000", 9);
    do { /* until it stands: starting the child that stops it takes a while, too */
        sample = sample_of(watcher, 2);
        WAIT(false, 400);
        later = sample_of(watcher, 2);
    } while (word_of(&later) != word_of(&sample));
    WAIT(false, 500);
    later = sample_of(watcher, 2);
    check(word_of(&sample) == word_of(&later) && later.reads > sample.reads + 10 && !later.error,
          "a stopped process: reads go on, the counter stands", "%lu reads, counter %lu", later.reads - sample.reads,
          word_of(&later));
    WAIT((later = sample_of(watcher, 2), word_of(&later) > word_of(&sample)), 8000);
    shell("tc qdisc replace dev eth0 root netem loss 100%%");
    start_ms = mst_now_ms();
    WAIT(b->closed && a->closed, 5000);
    sample = sample_of(watcher, 2);
    shell("tc qdisc del dev eth0 root");
    check(sample.error == -ETIMEDOUT && sample.failures == 1 && b->close_err == -ETIMEDOUT && word_of(&sample) &&
              b->closed_ms - start_ms < 2500,
          "with the network cut a watched READ fails at its deadline; the last data stay", "%s after %lu ms \"%s\"",
          mst_errname(sample.error), b->closed_ms - start_ms, b->why.text);
    conn_free(a);
    a = conn_open(fabric, server, port, MST_ROLE_WATCH);
    mst_watcher_remove(watcher, 1);
    add(watcher, 1, a);
    WAIT(sample_of(watcher, 1).reads > 3, 3000);
    WAIT(control->closed, 3000);
    conn_end(control);
    control = conn_open(fabric, server, port, MST_ROLE_CONTROL);
    mst_link_send(control->link, "die", 3);
    WAIT(a->closed, 5000);
    sample = sample_of(watcher, 1);
    check(sample.error < 0 && sample.reads > 3 && a->close_err == sample.error, "a killed peer ends its target",
          "%s, link %s \"%s\"", mst_errname(sample.error), mst_errname(a->close_err), a->why.text);
    mst_watcher_free(watcher);
    conn_free(a);
    conn_free(b);
    WAIT(control->closed, 3000);
    conn_free(control);
    WAIT(false, 50);
    check(open_fds() < fds, "and leaves no descriptor", "%u, %u before with three links", open_fds(), fds);
}
