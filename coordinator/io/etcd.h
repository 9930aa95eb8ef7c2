#ifndef MST_IO_ETCD_H
#define MST_IO_ETCD_H

#include "base/err.h"
#include "conf/conf.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

/* A client of etcd v3 through its JSON gateway (POST /v3/...): one endpoint at a time, the next one after a failure. It repeats nothing by itself:
 * what to do about a request of which nobody knows whether it was done is its user's to decide. Loop thread only. */

struct mst_etcd;

/* -ENOMEM, -EINVAL (TLS files cannot be read; why). conf is borrowed. */
int mst_etcd_new(uv_loop_t *loop, const struct mst_etcd_conf *conf, struct mst_etcd **ret_etcd, struct mst_why *why);
void mst_etcd_free(struct mst_etcd *etcd); /* drops what is under way. NULL is fine */

enum mst_etcd_outcome {
    MST_ETCD_ANSWER,   /* json is the answer */
    MST_ETCD_REFUSED,  /* etcd says no: nothing was done, nothing will be */
    MST_ETCD_NOT_SENT, /* no connection: nothing was done, nothing will be */
    MST_ETCD_UNKNOWN,  /* done, not done, or still to be done */
};
struct mst_etcd_reply { /* borrowed for the call */
    enum mst_etcd_outcome outcome;
    int err; /* not ANSWER: -ENOSPC, -E2BIG, -EACCES, -ETIMEDOUT, -ECONNREFUSED, -EPROTO, -EIO, -ENOMEM */
    const json_t *json;
    const char *text;  /* not ANSWER: "http://10.7.0.101:2379: etcdserver: request timed out" */
    unsigned endpoint; /* that was asked */
};
typedef void (*mst_etcd_fn)(void *arg, const struct mst_etcd_reply *reply);

/* path: "kv/txn". body is taken (also on failure; NULL is -ENOMEM). done runs once, from the loop. 0 or -ENOMEM. */
int mst_etcd_call(struct mst_etcd *etcd, const char *path, json_t *body, uint32_t timeout_ms, mst_etcd_fn done, void *arg);
/* The same, waiting: done runs inside. */
void mst_etcd_call_now(struct mst_etcd *etcd, const char *path, json_t *body, uint32_t timeout_ms, mst_etcd_fn done, void *arg);

/* Which endpoint is asked next. */
unsigned mst_etcd_endpoint(const struct mst_etcd *etcd);
/* endpoint is of no use: if it is the next one to be asked, another is. */
void mst_etcd_leave(struct mst_etcd *etcd, unsigned endpoint);

/* Longest time a request may take so that a lease of lease_ms survives one that does not answer. */
uint32_t mst_etcd_timeout_ms(uint32_t lease_ms);

/* --- bodies: new references, NULL: no memory --- */

json_t *mst_etcd_created(const char *key,
                         int64_t revision); /* condition: create_revision of key is revision; 0: there is no key */
json_t *mst_etcd_modified(const char *key, int64_t revision);            /* the same of mod_revision */
json_t *mst_etcd_put(const char *key, const char *value, int64_t lease); /* operations; lease 0: none */
json_t *mst_etcd_delete(const char *key, const char *end); /* end NULL: the key alone; else all from key to before end */
json_t *mst_etcd_range(const char *key, const char *end, unsigned limit); /* limit 0: none */
/* All three lists are taken. */
json_t *mst_etcd_txn(json_t *conditions, json_t *then, json_t *otherwise);

/* --- answers --- */

struct mst_etcd_kv {
    char *key, *value; /* free(3) both: mst_etcd_kv_clear */
    size_t value_bytes;
    int64_t create_revision, mod_revision;
};
/* Number at key of object, which the gateway writes as a text; absent: 0. false: it is none. */
bool mst_etcd_number(const json_t *object, const char *key, int64_t *ret);
int64_t mst_etcd_revision(const json_t *answer); /* of its header; 0: none */
/* The index-th operation's range answer of a transaction's, or a range's own answer: the list of its keys. NULL: there is none, or no keys. */
const json_t *mst_etcd_keys(const json_t *answer, unsigned index);
bool mst_etcd_more(const json_t *answer, unsigned index);
/* 0, -EBADMSG, -ENOMEM. */
int mst_etcd_kv_read(const json_t *entry, struct mst_etcd_kv *ret_kv);
void mst_etcd_kv_clear(struct mst_etcd_kv *kv);

#endif
