#ifndef MST_CLI_CLIENT_H
#define MST_CLI_CLIENT_H

#include "proto/socket.h"

/* Connection of mainstayctl to a coordinator's operator socket. Main thread only. */

struct client;

/* Connects to the socket at path. -ENOENT, -ECONNREFUSED, -EACCES with why. */
int client_open(uv_loop_t *loop, const char *path, struct client **ret_client, struct mst_why *why);
void client_free(struct client *client); /* NULL is fine; runs the loop until the connection is closed */

/* Called for messages that answer nothing: console data. env is borrowed. NULL: dropped. */
void client_on_event(struct client *client, void (*on_event)(const mst_envelope *env, void *arg), void *arg);

/* Sends env (its id is filled in) and runs the loop until the answer comes. *ret_reply is freed with mst_envelope_free.
 * 0; -ETIMEDOUT after deadline_ms; -ECONNRESET the coordinator went away; all with why. */
int client_request(struct client *client, mst_envelope *env, uint32_t deadline_ms, mst_envelope **ret_reply, struct mst_why *why);
/* The same for requests answered by Done alone: a refusal becomes -errno with the coordinator's sentence in why. *ret_said (unless NULL): what it says
 * otherwise, perhaps nothing. */
int client_order(struct client *client, mst_envelope *env, uint32_t deadline_ms, struct mst_why *ret_said, struct mst_why *why);
/* Sends without waiting; the answer goes to on_event. Returns the request's id in *ret_id. */
int client_post(struct client *client, mst_envelope *env, uint64_t *ret_id);
/* Whether the last request got an answer, if only a refusal. */
int client_answered(const struct client *client);
/* False once the connection is gone. */
int client_alive(const struct client *client);

#endif
