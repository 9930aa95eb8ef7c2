#ifndef MST_IO_APP_H
#define MST_IO_APP_H

#include "conf/conf.h"
#include "coordinator/core/core.h"
#include "coordinator/io/fence_runner.h"
#include "coordinator/io/slots.h"
#include "coordinator/io/store.h"
#include "fabric/fabric.h"
#include "proto/socket.h"

#include <uv.h>

/* The coordinator as a program: one loop, one core, and what carries the core's actions out. Shared by the files of io/; loop thread only.
 *     app.c       start, stop, the core's table of functions, the tick
 *     links.c     control links of the keepers: Hello, messages, orders
 *     watch.c     watch links to the keepers: beat lines, slots
 *     manage.c    questions to the keepers' management addresses
 *     operator.c  the operator's socket
 *     views.c     answers to queries
 *     lead.c      leading and standing by
 *     console.c   consoles, followed over moves */

struct control; /* links.c */
struct watch;   /* watch.c */
struct session; /* operator.c */

#define APP_REPLIES_MAX  256u
#define APP_CONTROLS_MAX (2u * MST_NODES_MAX)
#define CONSOLES_MAX     64u

struct app_reply {           /* who waits for an answer of the core */
    uint64_t token;          /* 0: free */
    struct session *session; /* NULL: a keeper, or gone meanwhile */
    uint64_t link;           /* control link, 0: none */
    uint64_t request_id;
};

struct app_console {
    bool used, follow;
    struct session *session;
    uint64_t request_id; /* of the operator */
    uint64_t order_id;   /* of the order that is out, 0: none */
    char vm[MST_NAME_BYTES];
    int node; /* -1: nowhere */
    uint64_t link, epoch, offset;
};

struct app {
    uv_loop_t *loop;
    const struct mst_coordinator_conf *conf;
    uint64_t instance;
    struct mst_core *core; /* NULL: a standby, or still starting; nothing is decided */
    struct mst_store *store;
    struct mst_fabric *fabric;
    struct mst_watcher *watcher;
    struct mst_sockserv *serv;
    uv_timer_t tick;
    uv_signal_t term, interrupt;
    bool stopping, store_busy, listening, peers_changed;
    uint64_t awake_ms;   /* when we last knew that we do not stand still, CLOCK_BOOTTIME */
    uint64_t next_token; /* replies, links, console orders */
    struct control *controls[APP_CONTROLS_MAX];
    struct watch *watches[MST_NODES_MAX];
    struct manage { /* a question to a management address */
        struct app *app;
        unsigned node;
        struct mst_sock *sock; /* NULL: none, or it is closed */
        bool asking;
        uint64_t asked_us;
        int err; /* it could not be asked: told from the tick */
        struct mst_why why;
    } manages[MST_NODES_MAX];
    struct mst_fence_run *fences[MST_NODES_MAX];
    struct fence_wait {
        struct app *app;
        unsigned node;
        uint64_t token;
        bool look;
        bool asking, wanted; /* leadership is being confirmed; and the fence has not been cancelled since */
        int start_err;       /* it could not even be started: told from the tick */
        char text[MST_WHY_BYTES];
    } fence_waits[MST_NODES_MAX];
    struct app_reply replies[APP_REPLIES_MAX];
    struct app_console consoles[CONSOLES_MAX];
    unsigned sessions;
    uint8_t frame[MST_MESSAGE_BYTES_MAX];
};

/* Console orders and the core's orders share the id space of a control link: these have the top bit. */
#define APP_CONSOLE_ID_BIT (UINT64_C(1) << 63)

struct mst_time app_now(void);

/* links.c */
int links_accept(struct mst_link *link, const struct mst_link_request *request, void *arg,
                 const struct mst_link_events **ret_events, void **ret_arg, struct mst_why *why);
int links_order(struct app *app, const struct mst_order *order);
void links_close(struct app *app, uint64_t link);
void links_peers(struct app *app);
int links_send(struct app *app, uint64_t link, const mst_envelope *env);
void links_tick(struct app *app);

/* watch.c */
int watch_start(struct app *app, unsigned node, uint64_t instance); /* the node has joined: read it */
void watch_on_sample(void *arg);
void watch_read_slots(struct app *app, unsigned node);
int watch_lease(struct app *app, unsigned node, const struct mst_lease_grant *grant); /* as lease of mst_core_io */
void watch_lease_line(const struct app *app, const struct mst_lease_grant *grant, struct mst_lease_line *ret); /* with its sum */
void watch_beat(const struct mst_beat_line *line, uint64_t read_us, struct mst_beat *ret); /* line: its sum was checked */
void watch_tick(struct app *app);
void watch_free_all(struct app *app); /* after the fabric was closed */

/* manage.c */
void manage_ask(struct app *app, unsigned node, const struct mst_lease_grant *lease); /* as manage of mst_core_io */
void manage_tick(struct app *app);

/* operator.c */
int operator_open(struct app *app, struct mst_why *why);
void operator_close(struct app *app);
uint64_t app_reply_add(struct app *app, struct session *session, uint64_t link,
                       uint64_t request_id); /* token, 0: too many wait */
void app_reply(struct app *app, uint64_t token, int err, const char *text);
int session_done(struct session *session, uint64_t request_id, int err, const char *text);
int session_send(struct session *session, mst_envelope *env);

/* views.c */
void views_answer(struct app *app, struct session *session, uint64_t request_id, const Mainstay__Query *query);

/* console.c */
void console_request(struct app *app, struct session *session, uint64_t request_id, const Mainstay__ConsoleRequest *request);
void console_data(struct app *app, unsigned node, const Mainstay__ConsoleData *data);
void console_answered(struct app *app, uint64_t order_id, const Mainstay__Done *done);
void console_moved(struct app *app, const char *vm, int node, uint64_t epoch);
void console_link_gone(struct app *app, uint64_t link);
void console_session_gone(struct app *app, const struct session *session);
void console_tick(struct app *app);

/* lead.c */
void lead_begin(struct app *app); /* campaigns; app_core_open follows when we lead */
/* Ends the process, at once and with nothing sent: somebody else may lead. Whoever watches over us starts us again, as a standby. */
__attribute__((noreturn)) void lead_lost(struct app *app, const char *text);
/* Before every effect: that we still lead by the clock, and have not stood still unnoticed; otherwise asks, or ends the process. */
void lead_check(struct app *app);
/* Why nothing can be asked of us now: "standby: the leader is coordinator 2 at 10.7.0.102 port 7470". */
const char *lead_standby_text(const struct app *app, struct mst_why *ret_text);

/* app.c */
void app_lead(struct app *app); /* we lead: reads the store, begins a term */
void app_fences_cancel(struct app *app);
/* Runs until SIGTERM or SIGINT. Returns the exit status. */
int app_run(const struct mst_coordinator_conf *conf);

#endif
