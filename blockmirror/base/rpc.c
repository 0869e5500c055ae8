/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The serving side of the control protocol. A client that does not read what it is sent, or sends
 * lines without end, is dropped.
 */
#include "blockmirror/base/rpc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/list.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/tls.h"
#include "blockmirror/base/transport.h"
#include "blockmirror/base/unix_socket.h"

enum { LARGEST_LINE = 1 << 20, LARGEST_BACKLOG = 16 << 20, MOST_CLIENTS = 64, VERSION = 1 };
#define HANDSHAKE 10000000000ull /* ns */

struct client {
	struct bm_watch watch;
	struct bm_list link;
	struct bm_rpc *rpc;
	struct bm_transport transport; /* closed: gone, and only kept for its calls */
	struct bm_identity *identity;  /* NULL: it was not asked, or has not told yet */
	struct bm_timer shaking;       /* TLS is being agreed on; until then */
	unsigned calls, version;
	bool subscribed, eof;
	uint64_t swallow; /* bytes that are no lines; then that call is answered */
	struct bm_rpc_call *swallow_call;
	void (*gone)(void *arg);
	char *in, *out;
	size_t in_used, in_room, out_used, out_room;
};

struct bm_rpc_call {
	struct client *client;
	json_t *id;
};

struct bm_rpc {
	struct bm_loop *loop;
	const struct bm_rpc_table *table;
	void *arg;
	struct bm_watch watch;
	struct bm_unix_listener listener;
	struct bm_keyring *(*keyring)(void *arg); /* NULL: in clear */
	struct bm_list clients;
	unsigned count;
	struct client *holder; /* bm_rpc_hold() */
};

static bool is_gone(const struct client *c)
{
	return c->transport.in < 0;
}

static void free_client(struct client *c)
{
	bm_identity_free(c->identity);
	free(c->in);
	free(c->out);
	free(c);
}

static void drop(struct client *c);

static void end_call(struct bm_rpc_call *call)
{
	struct client *c = call->client;

	c->calls--;
	json_decref(call->id);
	free(call);
	if (is_gone(c) && !c->calls)
		free_client(c);
	else if (c->eof && !c->calls)
		drop(c);
}

static void drop(struct client *c)
{
	void (*gone)(void *arg) = c->gone;
	void *arg = c->rpc->arg;
	struct bm_rpc_call *cut = bm_steal(c->swallow_call);

	if (is_gone(c))
		return;
	bm_watch_set(c->rpc->loop, &c->watch, c->transport.in, 0);
	bm_timer_clear(c->rpc->loop, &c->shaking);
	bm_transport_close(&c->transport);
	c->rpc->count--;
	c->calls++; /* keeps c while a call of it ends */
	if (cut)
		end_call(cut);
	c->calls--;
	bm_list_remove(&c->link);
	if (c->rpc->holder == c)
		c->rpc->holder = NULL;
	if (!c->calls)
		free_client(c);
	if (gone)
		gone(arg);
}

static int make_room(char **data, size_t *room, size_t wanted, size_t most)
{
	size_t size = *room ? *room : 4096;
	char *bigger;

	while (size < wanted)
		size *= 2;
	if (size == *room)
		return 0;
	if (size > most)
		return -EMSGSIZE;
	bigger = realloc(*data, size);
	if (!bigger)
		return -ENOMEM;
	*data = bigger;
	*room = size;
	return 0;
}

/* Sends what can be sent now. false: the client is gone. */
static bool push(struct client *c)
{
	ssize_t n = 0;

	while (c->out_used && n != -EAGAIN && !bm_timer_armed(&c->shaking)) {
		struct iovec v = {c->out, c->out_used};

		n = bm_transport_send(&c->transport, &v, 1);
		if (n < 0 && n != -EAGAIN)
			break;
		c->out_used -= n < 0 ? 0 : (size_t)n;
		memmove(c->out, c->out + (n < 0 ? 0 : n), c->out_used);
	}
	if (n >= 0 || n == -EAGAIN)
		n = bm_transport_flush(&c->transport);
	if (n < 0 && n != -EAGAIN) {
		drop(c);
		return false;
	}
	bm_watch_set(c->rpc->loop, &c->watch, c->transport.in,
		     (c->eof ? 0u : (unsigned)EPOLLIN) |
			     (c->out_used || n < 0 ? (unsigned)EPOLLOUT : 0u));
	return true;
}

static void send_object(struct client *c, json_t *object)
{
	bm_free char *line = object ? json_dumps(object, JSON_COMPACT) : NULL;
	size_t length = line ? strlen(line) : 0;

	json_decref(object);
	if (is_gone(c))
		return;
	if (!line || make_room(&c->out, &c->out_room, c->out_used + length + 1, LARGEST_BACKLOG)) {
		drop(c);
		return;
	}
	memcpy(c->out + c->out_used, line, length);
	c->out[c->out_used + length] = '\n';
	c->out_used += length + 1;
	push(c);
}

void bm_rpc_reply(struct bm_rpc_call *call, json_t *result)
{
	if (!result)
		result = json_object();
	json_object_set_new(result, "v", json_integer(call->client->version));
	send_object(call->client,
		    json_pack("{s:s s:O s:o}", "jsonrpc", "2.0", "id", call->id, "result", result));
	end_call(call);
}

/* -32000: the range of JSON-RPC 2.0, section 5.1, for errors of the implementation. */
void bm_rpc_fail(struct bm_rpc_call *call, const struct bm_error *error)
{
	json_t *failure =
		json_pack("{s:i s:s s:{s:s s:i}}", "code", -32000, "message", error->text, "data",
			  "code", bm_code_name(error->code), "v", (int)call->client->version);

	send_object(call->client,
		    json_pack("{s:s s:O s:o}", "jsonrpc", "2.0", "id", call->id, "error", failure));
	end_call(call);
}

void bm_rpc_subscribe(struct bm_rpc_call *call)
{
	call->client->subscribed = true;
}

void bm_rpc_hold(struct bm_rpc_call *call, void (*gone)(void *arg))
{
	struct client *before = call->client->rpc->holder;

	if (before)
		before->gone = NULL;
	call->client->gone = gone;
	call->client->rpc->holder = call->client;
}

void bm_rpc_notify(struct bm_rpc *rpc, const char *event, json_t *params)
{
	json_object_set_new(params, "v", json_integer(VERSION));
	bm_list_each_safe(node, &rpc->clients) {
		struct client *c = bm_container(node, struct client, link);

		if (c->subscribed)
			send_object(c, json_pack("{s:s s:s s:O}", "jsonrpc", "2.0", "method", event,
						 "params", params));
	}
	json_decref(params);
}

const struct bm_identity *bm_rpc_identity(const struct bm_rpc_call *call)
{
	return call->client->identity;
}

unsigned *bm_rpc_version(struct bm_rpc_call *call)
{
	return &call->client->version;
}

void bm_rpc_swallow(struct bm_rpc_call *call, uint64_t bytes)
{
	call->client->swallow = bytes;
	call->client->swallow_call = call;
}

static void run_call(struct client *c, json_t *object)
{
	const char *method = json_string_value(json_object_get(object, "method"));
	json_t *params = json_object_get(object, "params"), *id = json_object_get(object, "id");
	struct bm_rpc_call *call = calloc(1, sizeof(*call));
	const struct bm_rpc_table *entry = c->rpc->table;
	struct bm_error error;

	if (!call) {
		drop(c);
		return;
	}
	call->client = c;
	call->id = id ? json_incref(id) : json_null();
	c->calls++;
	while (method && entry->name && strcmp(entry->name, method))
		entry++;
	if (!method || !entry->name) {
		bm_fail(&error, BM_E_USAGE, "unknown method \"%s\"", method ? method : "");
		bm_rpc_fail(call, &error);
		return;
	}
	if (!json_is_object(params))
		json_object_set_new(object, "params", params = json_object());
	entry->method(c->rpc->arg, call, params);
}

/* The rest of what swallow() was told of; false: more of it has to come. */
static bool swallow(struct client *c)
{
	size_t n = c->swallow < c->in_used ? (size_t)c->swallow : c->in_used;

	c->swallow -= n;
	c->in_used -= n;
	memmove(c->in, c->in + n, c->in_used);
	if (c->swallow)
		return false;
	bm_rpc_reply(bm_steal(c->swallow_call), NULL);
	return true;
}

/* Carries out the first line that is there whole; false when there is none, or nobody. */
static bool run_line(struct client *c)
{
	char *newline = c->in_used ? memchr(c->in, '\n', c->in_used) : NULL;
	size_t length;
	json_t *object;

	if (c->swallow_call)
		return swallow(c);
	if (!newline)
		return false;
	length = (size_t)(newline - c->in);
	object = json_loadb(c->in, length, 0, NULL);
	c->in_used -= length + 1;
	memmove(c->in, newline + 1, c->in_used);
	if (!json_is_object(object)) {
		json_decref(object);
		drop(c);
		return false;
	}
	run_call(c, object);
	json_decref(object);
	return true;
}

/* What has come; false when there is no more of it now. */
static bool receive(struct client *c, uint32_t events)
{
	struct iovec v;
	ssize_t n;

	if (make_room(&c->in, &c->in_room, c->in_used + (c->swallow ? 65536 : 4096),
		      LARGEST_LINE)) {
		drop(c);
		return false;
	}
	v = (struct iovec){c->in + c->in_used, c->in_room - c->in_used};
	n = bm_transport_recv(&c->transport, &v, 1);
	if (n == -EAGAIN || n == -EINTR)
		return false;
	if (n > 0) {
		c->in_used += (size_t)n;
		while (!is_gone(c) && run_line(c))
			;
	} else if (n < 0 || c->calls == 1 || c->swallow_call || events & EPOLLHUP) {
		drop(c);
	} else { /* it has closed its half; answers are still due */
		c->eof = true;
		push(c);
	}
	return n > 0 && !is_gone(c) && bm_transport_pending(&c->transport);
}

/* Goes on with the handshake of TLS; false when it is not over. */
static bool shake_hands(struct client *c)
{
	int r = bm_tls_handshake(c->transport.tls);

	if (!r)
		r = bm_tls_identify(c->transport.tls, &c->identity);
	if (r == -EAGAIN) {
		push(c);
		return false;
	}
	if (r < 0) {
		bm_log(BM_LOG_WARN, "a client is refused: %s",
		       r == -EPROTO ? bm_tls_why(c->transport.tls) : strerror(-r));
		drop(c);
		return false;
	}
	bm_timer_clear(c->rpc->loop, &c->shaking);
	return push(c);
}

static void too_slow(struct bm_timer *timer)
{
	bm_log(BM_LOG_WARN, "a client is refused: it does not come to an end with TLS");
	drop(bm_container(timer, struct client, shaking));
}

static void client_ready(struct bm_watch *watch, uint32_t events)
{
	struct client *c = bm_container(watch, struct client, watch);

	c->calls++; /* keeps c while its calls run */
	if ((!bm_timer_armed(&c->shaking) || shake_hands(c)) && (!(events & EPOLLOUT) || push(c)))
		while (receive(c, events))
			;
	if (!--c->calls && is_gone(c))
		free_client(c);
}

static int begin_tls(struct client *c, struct bm_keyring *keyring)
{
	int r = keyring ? bm_transport_start_tls(&c->transport, bm_keyring_current(keyring))
			: -ENOKEY;

	c->shaking.run = too_slow;
	return r ? r
		 : bm_timer_set(c->rpc->loop, &c->shaking, bm_loop_now(c->rpc->loop) + HANDSHAKE);
}

static int add_client(struct bm_rpc *rpc, int fd, void (*gone)(void *arg), bool tls)
{
	struct client *c = rpc->count < MOST_CLIENTS ? calloc(1, sizeof(*c)) : NULL;
	int r;

	if (!c)
		return -ENOMEM;
	c->rpc = rpc;
	c->gone = gone;
	c->version = tls ? 0 : VERSION;
	c->watch.run = client_ready;
	r = bm_transport_open(&c->transport, fd, fd);
	if (!r && tls)
		r = begin_tls(c, rpc->keyring(rpc->arg));
	if (!r)
		r = bm_watch_set(rpc->loop, &c->watch, fd, EPOLLIN);
	if (r < 0) {
		bm_timer_clear(rpc->loop, &c->shaking);
		bm_tls_free(c->transport.tls);
		free(c);
		return r;
	}
	bm_list_append(&rpc->clients, &c->link);
	rpc->count++;
	return 0;
}

int bm_rpc_serve_fd(struct bm_rpc *rpc, int fd, void (*gone)(void *arg))
{
	return add_client(rpc, fd, gone, false);
}

static void listener_ready(struct bm_watch *watch, uint32_t events)
{
	struct bm_rpc *rpc = bm_container(watch, struct bm_rpc, watch);
	int fd = accept4(watch->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	(void)events;
	if (fd >= 0 && add_client(rpc, fd, NULL, rpc->keyring) < 0)
		close(fd);
}

void bm_rpc_secure(struct bm_rpc *rpc, struct bm_keyring *(*keyring)(void *arg))
{
	rpc->keyring = keyring;
}

static int watch_listener(struct bm_rpc *rpc, struct bm_error *error)
{
	int r;

	rpc->watch.run = listener_ready;
	r = bm_watch_set(rpc->loop, &rpc->watch, rpc->listener.fd, EPOLLIN);
	return r < 0 ? bm_fail_errno(error, r, "cannot watch the control socket") : 0;
}

int bm_rpc_listen(struct bm_rpc *rpc, const char *path, struct bm_error *error)
{
	int r = bm_unix_listen(&rpc->listener, path, error);

	return r < 0 ? r : watch_listener(rpc, error);
}

int bm_rpc_listen_fd(struct bm_rpc *rpc, int fd, struct bm_error *error)
{
	int listening = 0, flags = fcntl(fd, F_GETFL);
	socklen_t length = sizeof(listening);

	rpc->listener.fd = fd;
	if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) < 0 || !listening)
		return bm_fail(error, BM_E_USAGE, "descriptor %d is not a listening socket", fd);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
	    fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		return bm_fail_errno(error, errno, "descriptor %d", fd);
	return watch_listener(rpc, error);
}

int bm_rpc_share(struct bm_rpc *rpc)
{
	if (rpc->listener.fd >= 0)
		bm_unix_leave(&rpc->listener);
	return rpc->listener.fd;
}

int bm_rpc_own(struct bm_rpc *rpc, const char *path)
{
	return bm_unix_take(&rpc->listener, path, rpc->listener.fd);
}

int bm_rpc_new(struct bm_loop *loop, const struct bm_rpc_table *table, void *arg,
	       struct bm_rpc **out)
{
	struct bm_rpc *rpc = calloc(1, sizeof(*rpc));

	if (!rpc)
		return -ENOMEM;
	rpc->loop = loop;
	rpc->table = table;
	rpc->arg = arg;
	rpc->listener.fd = -1;
	bm_list_init(&rpc->clients);
	*out = rpc;
	return 0;
}

void bm_rpc_free(struct bm_rpc *rpc)
{
	if (!rpc)
		return;
	bm_list_each_safe(node, &rpc->clients) {
		struct client *c = bm_container(node, struct client, link);

		c->gone = NULL;
		drop(c);
	}
	if (rpc->listener.fd >= 0) {
		bm_watch_set(rpc->loop, &rpc->watch, rpc->listener.fd, 0);
		bm_unix_close(&rpc->listener);
	}
	free(rpc);
}
