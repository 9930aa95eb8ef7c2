#include "coordinator/io/app.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mutant.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* One coordinator leads: it has a core, takes keepers, decides. The others are standbys: they refuse keepers and operators, saying who leads.
 * A leader that may be one no more ends its process, which is the same as being killed at that moment, and as safe: what is durable goes on
 * elsewhere, what is not was never decided. It is started again as a standby.
 *
 * Safety rests on the store's conditions and on the terms that keepers check. What is here keeps an old leader from wasted or harmful effects:
 *     lease (store_etcd.c)   no effect once the lease can have ended, by the clock
 *     pause                  after standing still for PAUSE_MS, etcd is asked before the next effect
 *     power                  etcd is asked before each power fence (app.c), whose decision is durable already */
#define PAUSE_MS 1000u

const char *lead_standby_text(const struct app *app, struct mst_why *ret_text)
{
    struct mst_store_standing standing;

    mst_store_standing(app->store, &standing);
    if (standing.leads)
        mst_why_write(ret_text, "this coordinator has just become the leader and begins its term: try again");
    else if (standing.leader)
        mst_why_write(ret_text, "standby: the leader is coordinator %u at %s port %u", standing.id, standing.address,
                      standing.port);
    else
        mst_why_write(ret_text, "standby: no coordinator leads now%s%s", standing.text[0] ? ": " : "", standing.text);
    return ret_text->text;
}

void lead_lost(struct app *app, const char *text)
{
    app_fences_cancel(app);
    log_error("leadership is lost: %s; ending, to be started again as a standby; VMs run on", text);
    _exit(EXIT_FAILURE);
}

void lead_check(struct app *app)
{
    uint64_t now_ms = mst_now_ms();
    uint64_t still_ms = now_ms - app->awake_ms;
    struct mst_why why = {0};

    if (!app->conf->store || MST_MUTANT(46))
        return; /* there is nobody else */
    if (!mst_store_leads(app->store))
        lead_lost(app, "our lease may have ended");
    if (still_ms > PAUSE_MS && !MST_MUTANT(53)) {
        log_warning("stood still for %" PRIu64 " ms: asking whether we still lead", still_ms);
        if (mst_store_confirm_now(app->store, &why) < 0)
            lead_lost(app, why.text);
        now_ms = mst_now_ms();
    }
    app->awake_ms = now_ms;
}

static void on_lead(void *arg)
{
    struct app *app = arg;

    app->awake_ms = mst_now_ms(); /* whatever was before, the transaction of our term asks by its condition */
    app_lead(app);
}

static void on_lost(void *arg, const char *text)
{
    lead_lost(arg, text);
}

void lead_begin(struct app *app)
{
    static const struct mst_store_events events = {.on_lead = on_lead, .on_lost = on_lost};

    mst_store_campaign(app->store, &events, app);
}
