#include "coordinator/io/http.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* curl names the sockets it waits for and one point in time; we wait for both in the loop and say what came:
 *
 *     CURLMOPT_SOCKETFUNCTION  -> struct spot (uv_poll)  -> curl_multi_socket_action(socket, what came)
 *     CURLMOPT_TIMERFUNCTION   -> uv_timer               -> curl_multi_socket_action(CURL_SOCKET_TIMEOUT)
 */

#define REPLY_BYTES_MAX (32u << 20)
#define CONNECT_MS      1000L

struct spot { /* a socket of curl */
    struct mst_http *http;
    uv_poll_t poll;
    curl_socket_t fd;
};

struct mst_http_call {
    struct mst_http *http;
    struct mst_http_call *next, **at; /* list of those under way */
    CURL *easy;
    struct curl_slist *headers;
    mst_http_fn done;
    void *arg;
    char *data; /* of the answer */
    size_t bytes, room;
    bool too_much;
    char error[CURL_ERROR_SIZE];
};

struct mst_http {
    uv_loop_t *loop;
    CURLM *multi;
    struct mst_http_tls tls;
    uv_timer_t timer;
    struct mst_http_call *calls;
};

/* --- what curl calls --- */

static size_t on_data(char *data, size_t size, size_t count, void *arg)
{
    struct mst_http_call *call = arg;
    size_t n = size * count;
    size_t room;
    char *grown;

    if (n > REPLY_BYTES_MAX || call->bytes + n + 1 > REPLY_BYTES_MAX) {
        call->too_much = true;
        return 0; /* ends the transfer */
    }
    if (call->bytes + n + 1 > call->room) {
        room = 2 * (call->bytes + n + 1);
        grown = realloc(call->data, room);
        if (!grown)
            return 0;
        call->data = grown;
        call->room = room;
    }
    memcpy(call->data + call->bytes, data, n);
    call->bytes += n;
    call->data[call->bytes] = '\0';
    return n;
}

static void check_done(struct mst_http *http);

static void on_timer(uv_timer_t *timer)
{
    struct mst_http *http = timer->data;
    int running;

    (void)curl_multi_socket_action(http->multi, CURL_SOCKET_TIMEOUT, 0, &running);
    check_done(http);
}

static int want_timer(CURLM *multi, long timeout_ms, void *arg)
{
    struct mst_http *http = arg;

    (void)multi;
    if (timeout_ms < 0)
        (void)uv_timer_stop(&http->timer);
    else
        (void)uv_timer_start(&http->timer, on_timer, (uint64_t)timeout_ms, 0);
    return 0;
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct spot *spot = poll->data;
    struct mst_http *http = spot->http;
    int flags = status < 0 ? CURL_CSELECT_ERR : 0;
    int running;

    flags |= events & UV_READABLE ? CURL_CSELECT_IN : 0;
    flags |= events & UV_WRITABLE ? CURL_CSELECT_OUT : 0;
    (void)curl_multi_socket_action(http->multi, spot->fd, flags, &running); /* may end spot */
    check_done(http);
}

static void on_spot_closed(uv_handle_t *handle)
{
    free(handle->data);
}

static int want_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *spot_arg)
{
    struct mst_http *http = arg;
    struct spot *spot = spot_arg;
    int events = 0;

    (void)easy;
    if (what == CURL_POLL_REMOVE) {
        if (spot) {
            (void)uv_poll_stop(&spot->poll);
            uv_close((uv_handle_t *)&spot->poll, on_spot_closed);
            (void)curl_multi_assign(http->multi, fd, NULL);
        }
        return 0;
    }
    if (!spot) {
        spot = calloc(1, sizeof(*spot));
        if (!spot)
            return -1;
        spot->http = http;
        spot->fd = fd;
        if (uv_poll_init_socket(http->loop, &spot->poll, fd) < 0) {
            free(spot);
            return -1;
        }
        spot->poll.data = spot;
        (void)curl_multi_assign(http->multi, fd, spot);
    }
    events |= what == CURL_POLL_IN || what == CURL_POLL_INOUT ? UV_READABLE : 0;
    events |= what == CURL_POLL_OUT || what == CURL_POLL_INOUT ? UV_WRITABLE : 0;
    return uv_poll_start(&spot->poll, events, on_poll) < 0 ? -1 : 0;
}

/* --- answers --- */

static int to_errno(CURLcode code)
{
    switch (code) {
    case CURLE_OPERATION_TIMEDOUT:
        return -ETIMEDOUT;
    case CURLE_COULDNT_CONNECT:
    case CURLE_COULDNT_RESOLVE_HOST:
        return -ECONNREFUSED;
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CACERT_BADFILE:
        return -EPROTO;
    case CURLE_OUT_OF_MEMORY:
        return -ENOMEM;
    default:
        return -EIO;
    }
}

static void answer(struct mst_http_call *call, CURLcode code)
{
    struct mst_http_reply reply = {.body = call->data ? call->data : "", .bytes = call->bytes, .text = ""};
    curl_off_t begun = 0;

    if (code == CURLE_OK) {
        (void)curl_easy_getinfo(call->easy, CURLINFO_RESPONSE_CODE, &reply.status);
    } else {
        reply.err = call->too_much ? -EMSGSIZE : to_errno(code);
        reply.text = call->error[0] ? call->error : curl_easy_strerror(code);
        /* Zero until connection, TLS and all are there and the request itself begins. */
        reply.not_sent = curl_easy_getinfo(call->easy, CURLINFO_PRETRANSFER_TIME_T, &begun) == CURLE_OK && begun == 0;
    }
    call->done(call->arg, &reply);
}

static void call_free(struct mst_http_call *call)
{
    if (call->at) {
        *call->at = call->next;
        if (call->next)
            call->next->at = call->at;
    }
    curl_easy_cleanup(call->easy);
    curl_slist_free_all(call->headers);
    free(call->data);
    free(call);
}

static void check_done(struct mst_http *http)
{
    CURLMsg *message;
    int left;

    while ((message = curl_multi_info_read(http->multi, &left)) != NULL) {
        struct mst_http_call *call = NULL;
        CURLcode code = message->data.result;

        if (message->msg != CURLMSG_DONE)
            continue;
        (void)curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **)&call);
        (void)curl_multi_remove_handle(http->multi, call->easy);
        answer(call, code);
        call_free(call);
    }
}

/* --- calls --- */

static int set_all(struct mst_http_call *call, const struct mst_http_tls *tls, const char *url, const char *body,
                   uint32_t timeout_ms)
{
    CURL *easy = call->easy;
    CURLcode bad = CURLE_OK;

#define SET(option, value) bad = bad != CURLE_OK ? bad : curl_easy_setopt(easy, option, value)
    SET(CURLOPT_URL, url);
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_NOPROXY, "*");
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(body));
    SET(CURLOPT_COPYPOSTFIELDS, body);
    SET(CURLOPT_HTTPHEADER, call->headers);
    SET(CURLOPT_TIMEOUT_MS, (long)timeout_ms);
    SET(CURLOPT_CONNECTTIMEOUT_MS, (long)timeout_ms < CONNECT_MS ? (long)timeout_ms : CONNECT_MS);
    SET(CURLOPT_TCP_NODELAY, 1L);
    SET(CURLOPT_WRITEFUNCTION, on_data);
    SET(CURLOPT_WRITEDATA, call);
    SET(CURLOPT_ERRORBUFFER, call->error);
    SET(CURLOPT_PRIVATE, call);
    if (tls->ca_file)
        SET(CURLOPT_CAINFO, tls->ca_file);
    if (tls->cert_file)
        SET(CURLOPT_SSLCERT, tls->cert_file);
    if (tls->key_file)
        SET(CURLOPT_SSLKEY, tls->key_file);
#undef SET
    return bad == CURLE_OK ? 0 : -EINVAL;
}

static struct mst_http_call *call_new(struct mst_http *http, const char *url, const char *body, uint32_t timeout_ms,
                                      mst_http_fn done, void *arg)
{
    struct mst_http_call *call = calloc(1, sizeof(*call));

    if (!call)
        return NULL;
    call->http = http;
    call->done = done;
    call->arg = arg;
    call->easy = curl_easy_init();
    /* Without "Expect: 100-continue" a body of more than a kilobyte would wait for an answer first. */
    call->headers = curl_slist_append(curl_slist_append(NULL, "Content-Type: application/json"), "Expect:");
    if (!call->easy || !call->headers || set_all(call, &http->tls, url, body, timeout_ms) < 0) {
        call_free(call);
        return NULL;
    }
    return call;
}

struct mst_http_call *mst_http_post(struct mst_http *http, const char *url, const char *body, uint32_t timeout_ms,
                                    mst_http_fn done, void *arg)
{
    struct mst_http_call *call = call_new(http, url, body, timeout_ms, done, arg);

    if (!call)
        return NULL;
    if (curl_multi_add_handle(http->multi, call->easy) != CURLM_OK) {
        call_free(call);
        return NULL;
    }
    call->next = http->calls;
    call->at = &http->calls;
    if (call->next)
        call->next->at = &call->next;
    http->calls = call;
    return call;
}

void mst_http_drop(struct mst_http_call *call)
{
    (void)curl_multi_remove_handle(call->http->multi, call->easy);
    call_free(call);
}

void mst_http_post_now(struct mst_http *http, const char *url, const char *body, uint32_t timeout_ms, mst_http_fn done, void *arg)
{
    struct mst_http_call *call = call_new(http, url, body, timeout_ms, done, arg);
    struct mst_http_reply no_memory = {.err = -ENOMEM, .not_sent = true, .body = "", .text = "no memory"};

    if (!call) {
        done(arg, &no_memory);
        return;
    }
    answer(call, curl_easy_perform(call->easy));
    call_free(call);
}

int mst_http_new(uv_loop_t *loop, const struct mst_http_tls *tls, struct mst_http **ret_http, struct mst_why *why)
{
    struct mst_http *http = calloc(1, sizeof(*http));

    if (!http)
        return -ENOMEM;
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
        goto fail;
    http->loop = loop;
    http->tls = *tls;
    http->multi = curl_multi_init();
    if (!http->multi)
        goto fail;
    (void)uv_timer_init(loop, &http->timer);
    http->timer.data = http;
    (void)curl_multi_setopt(http->multi, CURLMOPT_SOCKETFUNCTION, want_socket);
    (void)curl_multi_setopt(http->multi, CURLMOPT_SOCKETDATA, http);
    (void)curl_multi_setopt(http->multi, CURLMOPT_TIMERFUNCTION, want_timer);
    (void)curl_multi_setopt(http->multi, CURLMOPT_TIMERDATA, http);
    *ret_http = http;
    return 0;
fail:
    free(http);
    return mst_why_set(why, -ENOMEM, "libcurl does not start");
}

static void on_closed(uv_handle_t *handle)
{
    free(handle->data);
}

void mst_http_free(struct mst_http *http)
{
    struct mst_http_call *next;

    if (!http)
        return;
    for (struct mst_http_call *call = http->calls; call; call = next) {
        next = call->next;
        call->at = NULL; /* the whole list goes */
        mst_http_drop(call);
    }
    (void)curl_multi_cleanup(http->multi);
    (void)uv_timer_stop(&http->timer);
    uv_close((uv_handle_t *)&http->timer, on_closed);
}
