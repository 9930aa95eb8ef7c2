#include "coordinator/io/etcd.h"

#include "coordinator/io/http.h"
#include "coordinator/io/store_json.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define URL_BYTES 320u

struct mst_etcd {
    const struct mst_etcd_conf *conf;
    struct mst_http *http;
    unsigned next; /* endpoint to ask */
    struct asked *asked;
};

struct asked {
    struct mst_etcd *etcd;
    struct asked *after, **at;
    unsigned endpoint;
    mst_etcd_fn done;
    void *arg;
};

unsigned mst_etcd_endpoint(const struct mst_etcd *etcd)
{
    return etcd->next;
}

void mst_etcd_leave(struct mst_etcd *etcd, unsigned endpoint)
{
    if (etcd->next == endpoint)
        etcd->next = (endpoint + 1) % etcd->conf->endpoints_count;
}

uint32_t mst_etcd_timeout_ms(uint32_t lease_ms)
{
    uint32_t ms = lease_ms / 4;

    return ms < 500 ? 500 : ms > 3000 ? 3000 : ms;
}

/* --- what an answer means --- */

/* Codes of gRPC. Those that etcd gives before a request becomes a proposal, or from where proposals are applied, say that nothing was done.
 * Unavailable, deadline exceeded, canceled, internal and unknown say nothing of the kind. */
static enum mst_etcd_outcome refusal(const json_t *code, const char *text, int *ret_err)
{
    switch (json_integer_value(code)) {
    case 3:  /* invalid argument: too many operations, too large */
    case 11: /* out of range: compacted */
        *ret_err = -E2BIG;
        return MST_ETCD_REFUSED;
    case 5: /* not found: lease */
        *ret_err = -ENOENT;
        return MST_ETCD_REFUSED;
    case 7:  /* permission denied */
    case 16: /* unauthenticated */
        *ret_err = -EACCES;
        return MST_ETCD_REFUSED;
    case 8: /* resource exhausted: the quota of its database, too many requests, message too large */
        *ret_err = strstr(text, "space") ? -ENOSPC : strstr(text, "larger") ? -E2BIG : -EBUSY;
        return MST_ETCD_REFUSED;
    default:
        *ret_err = -EIO;
        return MST_ETCD_UNKNOWN;
    }
}

static void judge(const struct mst_http_reply *http, json_t *json, const char *endpoint, struct mst_etcd_reply *reply, char *text,
                  size_t size)
{
    const char *said = json_string_value(json_object_get(json, "error"));

    reply->text = text;
    if (http->err != 0) {
        reply->outcome = http->not_sent ? MST_ETCD_NOT_SENT : MST_ETCD_UNKNOWN;
        reply->err = http->err;
        snprintf(text, size, "%s: %s", endpoint, http->text);
    } else if (http->status == 200 && json_is_object(json) && !json_object_get(json, "error")) {
        reply->outcome = MST_ETCD_ANSWER;
        reply->json = json;
        reply->text = "";
    } else if (said) {
        reply->outcome = refusal(json_object_get(json, "code"), said, &reply->err);
        snprintf(text, size, "%s: %s", endpoint, said);
    } else {
        reply->outcome = MST_ETCD_UNKNOWN;
        reply->err = -EPROTO;
        snprintf(text, size, "%s: HTTP status %ld and no answer of etcd", endpoint, http->status);
    }
}

static void on_reply(void *arg, const struct mst_http_reply *http)
{
    struct asked *asked = arg;
    struct mst_etcd *etcd = asked->etcd;
    struct mst_etcd_reply reply = {.endpoint = asked->endpoint};
    char text[MST_WHY_BYTES];
    /* A stream's answers are one object each, on a line; one is awaited. */
    json_t *json =
        http->err == 0 ? json_loadb(http->body, http->bytes, JSON_DISABLE_EOF_CHECK | JSON_REJECT_DUPLICATES, NULL) : NULL;

    judge(http, json, etcd->conf->endpoints[asked->endpoint], &reply, text, sizeof(text));
    if (reply.outcome == MST_ETCD_UNKNOWN || reply.outcome == MST_ETCD_NOT_SENT)
        mst_etcd_leave(etcd, asked->endpoint);
    if (asked->at) {
        *asked->at = asked->after;
        if (asked->after)
            asked->after->at = asked->at;
    }
    asked->done(asked->arg, &reply);
    free(asked);
    json_decref(json);
}

static char *prepare(struct mst_etcd *etcd, const char *path, json_t *body, mst_etcd_fn done, void *arg, char *url,
                     struct asked **ret_asked)
{
    char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    struct asked *asked = calloc(1, sizeof(*asked));

    json_decref(body);
    if (!text || !asked) {
        free(text);
        free(asked);
        return NULL;
    }
    *asked = (struct asked){.etcd = etcd, .endpoint = etcd->next, .done = done, .arg = arg};
    snprintf(url, URL_BYTES, "%s/v3/%s", etcd->conf->endpoints[etcd->next], path);
    *ret_asked = asked;
    return text;
}

int mst_etcd_call(struct mst_etcd *etcd, const char *path, json_t *body, uint32_t timeout_ms, mst_etcd_fn done, void *arg)
{
    char url[URL_BYTES];
    struct asked *asked;
    char *text = prepare(etcd, path, body, done, arg, url, &asked);
    int r = 0;

    if (!text)
        return -ENOMEM;
    if (mst_http_post(etcd->http, url, text, timeout_ms, on_reply, asked)) {
        asked->after = etcd->asked;
        asked->at = &etcd->asked;
        if (asked->after)
            asked->after->at = &asked->after;
        etcd->asked = asked;
    } else {
        free(asked);
        r = -ENOMEM;
    }
    free(text);
    return r;
}

void mst_etcd_call_now(struct mst_etcd *etcd, const char *path, json_t *body, uint32_t timeout_ms, mst_etcd_fn done, void *arg)
{
    static const struct mst_etcd_reply no_memory = {.outcome = MST_ETCD_NOT_SENT, .err = -ENOMEM, .text = "no memory"};
    char url[URL_BYTES];
    struct asked *asked;
    char *text = prepare(etcd, path, body, done, arg, url, &asked);

    if (text)
        mst_http_post_now(etcd->http, url, text, timeout_ms, on_reply, asked);
    else
        done(arg, &no_memory);
    free(text);
}

int mst_etcd_new(uv_loop_t *loop, const struct mst_etcd_conf *conf, struct mst_etcd **ret_etcd, struct mst_why *why)
{
    const struct mst_http_tls tls = {.ca_file = conf->ca_file, .cert_file = conf->cert_file, .key_file = conf->key_file};
    const char *files[] = {conf->ca_file, conf->cert_file, conf->key_file};
    struct mst_etcd *etcd;
    int r;

    for (unsigned i = 0; i < 3; i++) {
        if (files[i] && access(files[i], R_OK) < 0)
            return mst_why_set(why, -EINVAL, "%s cannot be read: %s", files[i], strerror(errno));
    }
    etcd = calloc(1, sizeof(*etcd));
    if (!etcd)
        return -ENOMEM;
    etcd->conf = conf;
    r = mst_http_new(loop, &tls, &etcd->http, why);
    if (r < 0) {
        free(etcd);
        return r;
    }
    *ret_etcd = etcd;
    return 0;
}

void mst_etcd_free(struct mst_etcd *etcd)
{
    if (!etcd)
        return;
    mst_http_free(etcd->http);
    while (etcd->asked) {
        struct asked *asked = etcd->asked;

        etcd->asked = asked->after;
        free(asked);
    }
    free(etcd);
}

/* --- bodies --- */

static json_t *coded(const char *text)
{
    char *base64 = mst_base64(text, strlen(text));
    json_t *value = base64 ? json_string(base64) : NULL;

    free(base64);
    return value;
}

static json_t *number(int64_t value)
{
    char text[24];

    snprintf(text, sizeof(text), "%" PRId64, value);
    return json_string(text);
}

json_t *mst_etcd_created(const char *key, int64_t revision)
{
    return json_pack("{s:o,s:s,s:s,s:o}", "key", coded(key), "target", "CREATE", "result", "EQUAL", "create_revision",
                     number(revision));
}

json_t *mst_etcd_modified(const char *key, int64_t revision)
{
    return json_pack("{s:o,s:s,s:s,s:o}", "key", coded(key), "target", "MOD", "result", "EQUAL", "mod_revision",
                     number(revision));
}

json_t *mst_etcd_put(const char *key, const char *value, int64_t lease)
{
    return json_pack("{s:{s:o,s:o,s:o}}", "request_put", "key", coded(key), "value", coded(value), "lease", number(lease));
}

json_t *mst_etcd_delete(const char *key, const char *end)
{
    return end ? json_pack("{s:{s:o,s:o}}", "request_delete_range", "key", coded(key), "range_end", coded(end))
               : json_pack("{s:{s:o}}", "request_delete_range", "key", coded(key));
}

json_t *mst_etcd_range(const char *key, const char *end, unsigned limit)
{
    return end ? json_pack("{s:{s:o,s:o,s:o}}", "request_range", "key", coded(key), "range_end", coded(end), "limit",
                           number(limit))
               : json_pack("{s:{s:o}}", "request_range", "key", coded(key));
}

json_t *mst_etcd_txn(json_t *conditions, json_t *then, json_t *otherwise)
{
    return json_pack("{s:o,s:o,s:o}", "compare", conditions, "success", then, "failure", otherwise);
}

/* --- answers --- */

bool mst_etcd_number(const json_t *object, const char *key, int64_t *ret)
{
    const json_t *value = json_object_get(object, key);
    const char *text = json_string_value(value);
    char *end;

    *ret = 0;
    if (!value)
        return true;
    if (json_is_integer(value)) {
        *ret = json_integer_value(value);
        return true;
    }
    if (!text || !text[0] || text[0] == ' ' || text[0] == '+')
        return false;
    errno = 0;
    *ret = strtoll(text, &end, 10);
    return errno == 0 && *end == '\0';
}

int64_t mst_etcd_revision(const json_t *answer)
{
    int64_t revision;

    return mst_etcd_number(json_object_get(answer, "header"), "revision", &revision) ? revision : 0;
}

static const json_t *range_answer(const json_t *answer, unsigned index)
{
    const json_t *responses = json_object_get(answer, "responses");

    return responses ? json_object_get(json_array_get(responses, index), "response_range") : answer;
}

const json_t *mst_etcd_keys(const json_t *answer, unsigned index)
{
    return json_object_get(range_answer(answer, index), "kvs");
}

bool mst_etcd_more(const json_t *answer, unsigned index)
{
    return json_is_true(json_object_get(range_answer(answer, index), "more"));
}

int mst_etcd_kv_read(const json_t *entry, struct mst_etcd_kv *ret_kv)
{
    const char *key = json_string_value(json_object_get(entry, "key"));
    const json_t *value = json_object_get(entry, "value"); /* an empty one is left out */
    struct mst_etcd_kv kv = {0};
    size_t n;
    int r;

    if (!key || (value && !json_is_string(value)) || !mst_etcd_number(entry, "create_revision", &kv.create_revision) ||
        !mst_etcd_number(entry, "mod_revision", &kv.mod_revision))
        return -EBADMSG;
    r = mst_base64_read(key, &kv.key, &n);
    if (r == 0)
        r = mst_base64_read(value ? json_string_value(value) : "", &kv.value, &kv.value_bytes);
    if (r == 0 && (strlen(kv.key) != n || kv.create_revision <= 0 || kv.mod_revision <= 0))
        r = -EBADMSG;
    if (r < 0)
        mst_etcd_kv_clear(&kv);
    else
        *ret_kv = kv;
    return r;
}

void mst_etcd_kv_clear(struct mst_etcd_kv *kv)
{
    free(kv->key);
    free(kv->value);
    memset(kv, 0, sizeof(*kv));
}
