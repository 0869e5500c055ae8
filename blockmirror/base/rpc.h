/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The serving side of the control protocol: JSON-RPC 2.0, one object a line, on the loop. Every
 * answer and event bears "v": 1. Clients are few and trusted (the socket's mode is 0660), so
 * memory is allocated as it comes, within limits. Loop thread only.
 */
#ifndef BM_BASE_RPC_H
#define BM_BASE_RPC_H

#include <jansson.h>
#include <stdbool.h>

#include "blockmirror/base/tls_options.h"
#include "blockmirror/error.h"
#include "blockmirror/loop.h"

struct bm_keyring;

struct bm_rpc;      /* a server */
struct bm_rpc_call; /* a call that waits for its answer */

/*
 * Answers call by exactly one of bm_rpc_reply() and bm_rpc_fail(), now or later. params is never
 * NULL and valid until the method returns.
 */
typedef void bm_rpc_method(void *arg, struct bm_rpc_call *call, json_t *params);

struct bm_rpc_table {
	const char *name; /* NULL ends the table */
	bm_rpc_method *method;
};

int bm_rpc_new(struct bm_loop *loop, const struct bm_rpc_table *table, void *arg,
	       struct bm_rpc **rpc);

/* Drops all clients. Calls without an answer must be answered before. NULL is allowed. */
void bm_rpc_free(struct bm_rpc *rpc);

/* Listens on a unix socket; a socket that nobody listens on any more is replaced. */
int bm_rpc_listen(struct bm_rpc *rpc, const char *path, struct bm_error *error);

/* The same on a socket that listens already, and that somebody else made. Takes fd over. */
int bm_rpc_listen_fd(struct bm_rpc *rpc, int fd, struct bm_error *error);

/*
 * The listening socket, for another process to hold, too, which its path is left to from now on;
 * -1 when there is none.
 */
int bm_rpc_share(struct bm_rpc *rpc);

/* The listening socket was taken over with its path, which goes with the server. */
int bm_rpc_own(struct bm_rpc *rpc, const char *path);

/* Serves one connected socket; gone() is called when it ends (NULL is allowed). */
int bm_rpc_serve_fd(struct bm_rpc *rpc, int fd, void (*gone)(void *arg));

/*
 * Those who connect to the listening socket from now on begin with TLS; keyring() tells with what,
 * each time. NULL: nobody is let in.
 */
void bm_rpc_secure(struct bm_rpc *rpc, struct bm_keyring *(*keyring)(void *arg));

/* Who has proven by TLS to be the caller; NULL: nobody was asked. As long as the call. */
const struct bm_identity *bm_rpc_identity(const struct bm_rpc_call *call);

/*
 * The version of the protocol, that answers bear. On a connection with TLS it is 0 until a method
 * has agreed on one with the caller.
 */
unsigned *bm_rpc_version(struct bm_rpc_call *call);

/* After this call come so many bytes that mean nothing; when they are here, it is answered. */
void bm_rpc_swallow(struct bm_rpc_call *call, uint64_t bytes);

/* Takes result over; NULL means {}. */
void bm_rpc_reply(struct bm_rpc_call *call, json_t *result);
void bm_rpc_fail(struct bm_rpc_call *call, const struct bm_error *error);

/* From now on the client of call gets events. */
void bm_rpc_subscribe(struct bm_rpc_call *call);

/*
 * gone() is called when the client of call ends, instead of when he ends who was asked for last.
 * It may be called inside bm_rpc_notify() and bm_rpc_reply().
 */
void bm_rpc_hold(struct bm_rpc_call *call, void (*gone)(void *arg));

/* Sends an event to all who subscribed; takes params over. */
void bm_rpc_notify(struct bm_rpc *rpc, const char *event, json_t *params);

#endif
