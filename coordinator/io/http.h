#ifndef MST_IO_HTTP_H
#define MST_IO_HTTP_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

/* HTTP(S) POST by libcurl, driven by libuv's loop. Connections are kept open and used again. No proxy, no redirection. Loop thread only. */

struct mst_http;
struct mst_http_call;

struct mst_http_tls { /* NULL: not given; borrowed for the life of the mst_http */
    const char *ca_file, *cert_file, *key_file;
};

struct mst_http_reply {
    int err;          /* 0: an answer came, status is its; -ETIMEDOUT, -ECONNREFUSED, -EPROTO (TLS), -EMSGSIZE, -EIO */
    bool not_sent;    /* err: certainly nothing of the request has left this machine */
    long status;      /* 200 */
    const char *body; /* terminated; borrowed for the call */
    size_t bytes;
    const char *text; /* err: in words, borrowed */
};
typedef void (*mst_http_fn)(void *arg, const struct mst_http_reply *reply);

/* -ENOMEM, -EINVAL. */
int mst_http_new(uv_loop_t *loop, const struct mst_http_tls *tls, struct mst_http **ret_http, struct mst_why *why);
/* Calls that are under way are dropped: their done does not run. Handles of the loop close in its next rounds. NULL is fine. */
void mst_http_free(struct mst_http *http);

/* Posts body (JSON; copied). done runs once, never inside this call, unless the call is dropped. NULL: no memory. */
struct mst_http_call *mst_http_post(struct mst_http *http, const char *url, const char *body, uint32_t timeout_ms,
                                    mst_http_fn done, void *arg);
/* Its done does not run any more; what the request does at the other side is not known. */
void mst_http_drop(struct mst_http_call *call);

/* The same, waiting: done runs inside. */
void mst_http_post_now(struct mst_http *http, const char *url, const char *body, uint32_t timeout_ms, mst_http_fn done,
                       void *arg);

#endif
