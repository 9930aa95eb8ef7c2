#include "node/keeper/keeper.h"

#include "base/log.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Parts that live in the loop, and the way down: VMs are ended with proof while the loop still beats, the device is closed, then every
 * handle is; the loop ends by itself when the last one is gone. */
struct stop {
    struct mst_keeper *keeper;
    uv_signal_t term, interrupt;
    unsigned pending; /* kills and the device */
};

static void parts_close(struct mst_keeper *k)
{
    unsigned i;

    mst_manage_free(k);
    mst_controls_free(k);
    mst_peers_free(k);
    mst_relays_free(k);
    mst_agent_free(k);
    mst_kills_free(k);
    for (i = 0; i < MST_VMS_PER_NODE; i++) {
        mst_net_close(&k->vms[i]);
        mst_console_free(&k->vms[i]);
        mst_output_free(&k->vms[i]);
    }
    mst_followers_free(k);
    mst_standbys_free(k);
    mst_images_free(k);
    mst_mirrors_close(k);
    mst_server_free(k);
    uv_close((uv_handle_t *)&k->beat_timer, NULL);
    uv_close((uv_handle_t *)&k->second_timer, NULL);
}

static void stop_step(struct stop *stop)
{
    if (--stop->pending)
        return;
    parts_close(stop->keeper);
    uv_close((uv_handle_t *)&stop->term, NULL);
    uv_close((uv_handle_t *)&stop->interrupt, NULL);
}

static void stop_killed(void *arg, int err)
{
    if (err != -ECANCELED)
        stop_step(arg);
}

static void stop_device(struct mst_keeper *k)
{
    stop_step(k->loop->data);
}

static void on_signal(uv_signal_t *signal, int number)
{
    struct stop *stop = signal->data;
    struct mst_keeper *k = stop->keeper;
    unsigned i;

    if (k->stopping)
        return;
    log_notice("signal %d: ending the VMs and stopping", number);
    k->stopping = true;
    stop->pending = 1;
    mst_pulls_stop(k);
    for (i = 0; i < MST_VMS_PER_NODE; i++) {
        if (!k->vms[i].proc)
            continue;
        stop->pending++;
        if (mst_proc_kill(k, k->vms[i].name, stop_killed, stop) < 0)
            stop->pending--;
    }
    mst_device_close(k, stop_device);
}

static int run(struct mst_keeper *k, struct mst_why *why)
{
    struct stop stop = {.keeper = k};
    int r;

    r = mst_keeper_parts_open(k, why);
    if (r < 0) {
        mst_tenure_free(k); /* an armed watchdog would stay, and reset the machine */
        return r;           /* the process ends: what is open goes with it */
    }
    k->loop->data = &stop;
    uv_signal_init(k->loop, &stop.term);
    uv_signal_init(k->loop, &stop.interrupt);
    stop.term.data = stop.interrupt.data = &stop;
    uv_signal_start(&stop.term, on_signal, SIGTERM);
    uv_signal_start(&stop.interrupt, on_signal, SIGINT);
    mst_slots_start(k);
    log_notice("node=%s id=%u instance=%016" PRIx64 " memory=%u MiB accel=%s up", k->conf->node, k->conf->id, k->instance,
               k->conf->memory_mib, k->accel);
    uv_run(k->loop, UV_RUN_DEFAULT);
    mst_pulls_free(k);
    mst_mirrors_free(k);
    mst_tenure_free(k);
    log_notice("stopped");
    return 0;
}

static const char *config_path(int argc, char **argv)
{
    static const struct option options[] = {{"config", required_argument, NULL, 'c'}, {NULL, 0, NULL, 0}};
    const char *path = "/etc/mainstay/node.yaml";
    int c;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c != 'c')
            return NULL;
        path = optarg;
    }
    return optind == argc ? path : NULL;
}

int main(int argc, char **argv)
{
    struct mst_keeper *k;
    struct mst_why why = {0};
    const char *path;
    int r;

    signal(SIGPIPE, SIG_IGN);
    /* libuv has four worker threads. Here one may each make or free a VM's memory, or look through an image, for seconds, and the mirrors' turns
     * must not wait for that: their peers would take them for dead. */
    setenv("UV_THREADPOOL_SIZE", "16", 0);
    mst_log_init("mainstay-keeper");
    path = config_path(argc, argv);
    if (!path) {
        fprintf(stderr, "usage: mainstay-keeper [--config FILE]\n");
        return 2;
    }
    k = calloc(1, sizeof(*k));
    if (!k)
        return 1;
    r = mst_node_conf_load(path, &k->conf, &why);
    if (r == 0)
        r = mst_keeper_prepare(k, &why);
    if (r == 0) {
        k->loop = uv_default_loop();
        r = run(k, &why);
    }
    if (r < 0)
        log_error("not running: %s", why.text[0] ? why.text : strerror(-r));
    if (r == 0)
        uv_loop_close(k->loop);
    mst_event_close();
    mst_keeper_unprepare(k);
    mst_node_conf_free(k->conf);
    free(k);
    return r < 0 ? 1 : 0;
}
