/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A client of the control sockets: JSON-RPC 2.0, one object a line (blockmirror-protocol in
 * docs/protocol.md). Blocking; one thread per client. Integers are bytes and nanoseconds.
 */
#ifndef BLOCKMIRROR_CLIENT_H
#define BLOCKMIRROR_CLIENT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "blockmirror/error.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

struct bm_client;

/* Connects to a unix socket. BM_E_NOT_FOUND: no socket; BM_E_UNREACHABLE: nobody listens. */
int bm_client_connect(const char *path, struct bm_client **client, struct bm_error *error);

/* Takes a connected stream socket; fd is the client's on success. */
int bm_client_from_fd(int fd, struct bm_client **client, struct bm_error *error);

/* NULL is allowed. */
void bm_client_close(struct bm_client *client);

/* From now on a call that gets no answer for ns fails with BM_E_UNREACHABLE. 0: waits for ever. */
void bm_client_set_timeout(struct bm_client *client, uint64_t ns);

/*
 * Calls method. params (NULL: none) is always taken over. Waits for the answer; notifications that
 * come before it are kept for bm_client_event(). result (NULL is allowed) is the caller's. An
 * error of the other side is passed on with its code and text; BM_E_UNREACHABLE and -ECONNRESET
 * when it ends.
 */
int bm_client_call(struct bm_client *client, const char *method, json_t *params, json_t **result,
		   struct bm_error *error);

/*
 * The same in two steps, so that events can be seen while the call lasts: send gives the id, wait
 * returns 1 with the answer in result, or 0 with a notification in event, or -errno: -EINTR when a
 * signal came, and the call may be waited for again.
 */
int bm_client_send(struct bm_client *client, const char *method, json_t *params, int *id,
		   struct bm_error *error);
int bm_client_wait(struct bm_client *client, int id, json_t **result, json_t **event,
		   struct bm_error *error);

/* The descriptor, for poll(2). */
int bm_client_fd(const struct bm_client *client);

/* Whether bm_client_wait() would return at once because of what was read already. */
bool bm_client_pending(const struct bm_client *client);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
