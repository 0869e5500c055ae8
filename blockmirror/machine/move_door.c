/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How the source's process comes to the target's: TLS 1.3, by the key that the two hosts have, or
 * by that host's certificate. Nobody else gets in. Then lines of JSON-RPC; or, after a call "ram",
 * frames of the machine's memory, which are the relay's business. Blocks.
 */
#include <errno.h>
#include <gnutls/gnutls.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/credentials.h"
#include "blockmirror/base/identity.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/tls.h"
#include "blockmirror/machine/move.h"

enum { LARGEST_LINE = 4 << 20, FIRST_ROOM = 4096, HANDSHAKE_S = 5, PIECE_BUFFER = 512 << 10 };

struct door {
	int fd;
	struct bm_keyring *keyring;
	const char *user; /* the name of a key, or who a certificate is for */
	bool by_key;
};

struct visitor {
	int fd;
	gnutls_session_t tls;
	struct bm_credentials *credentials;
	char *data;
	size_t used, room;
};

int door_open(struct move *m, struct door **out, struct bm_error *error)
{
	const char *keys = json_string_value(json_object_get(m->plan, "keys")),
		   *links = json_string_value(json_object_get(m->plan, "links")),
		   *user = json_string_value(json_object_get(m->plan, "user"));
	const struct bm_tls_options options = {
		.psk = keys, .certificates = links, .verify_peer = links, .only_1_3 = true};
	struct door *d;
	int r;

	if (m->door < 0 || !user || !keys == !links)
		return bm_fail(error, BM_E_RECORD, "move %s: nobody can come in by its plan",
			       m->id);
	d = bm_need(calloc(1, sizeof(*d)));
	*d = (struct door){.fd = m->door, .user = user, .by_key = keys};
	r = bm_keyring_new(&options, &d->keyring, error);
	if (r < 0) {
		free(d);
		return r;
	}
	*out = d;
	return 0;
}

void door_close(struct door *d)
{
	bm_keyring_free(d->keyring);
	free(d);
}

static void let_go(void *arg)
{
	struct visitor *v = arg;

	if (v->tls)
		gnutls_deinit(v->tls);
	bm_credentials_unref(v->credentials);
	free(v->data);
	free(v);
}

void visitor_leave(struct visitor *v)
{
	if (!v)
		return;
	close(v->fd);
	let_go(v);
}

int visitor_become_transport(struct visitor *v, struct bm_transport *transport)
{
	struct bm_transport made = {.in = v->fd, .out = v->fd, .socket = true};

	made.tls = v->used ? NULL : bm_tls_adopt(&made, v->tls, let_go, v);
	if (!made.tls) {
		visitor_leave(v);
		return -EPROTO;
	}
	*transport = made;
	return 0;
}

int door_socket(const struct door *d)
{
	return d->fd;
}

int visitor_socket(const struct visitor *v)
{
	return v->fd;
}

static bool is_right(const struct door *d, const struct visitor *v)
{
	struct bm_identity *who = NULL;
	bool right;

	if (bm_identity_new(v->tls, &who) < 0)
		return false;
	right = d->by_key ? who->psk && !strcmp(who->psk, d->user) : bm_identity_is(who, d->user);
	bm_identity_free(who);
	return right;
}

static void set_limit(int fd, int seconds)
{
	const struct timeval t = {.tv_sec = seconds};

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t));
}

static bool let_in(struct door *d, struct visitor *v)
{
	struct bm_credentials *now = bm_keyring_current(d->keyring);
	const int on = 1, most = PIECE_BUFFER;
	int r;

	setsockopt(v->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(v->fd, SOL_SOCKET, SO_RCVBUF, &most, sizeof(most));
	set_limit(v->fd, HANDSHAKE_S);
	if (!now || gnutls_init(&v->tls, GNUTLS_SERVER | GNUTLS_NO_TICKETS) < 0)
		return false;
	v->credentials = bm_credentials_ref(now);
	if (bm_credentials_apply(now, v->tls) < 0)
		return false;
	gnutls_transport_set_int(v->tls, v->fd);
	do {
		r = gnutls_handshake(v->tls);
	} while (r == GNUTLS_E_INTERRUPTED);
	if (r < 0 || !is_right(d, v))
		return false;
	set_limit(v->fd, 0);
	return true;
}

struct visitor *door_wait(struct door *d, int ms)
{
	struct pollfd p = {.fd = d->fd, .events = POLLIN};
	struct visitor *v;
	int fd;

	if (poll(&p, 1, ms) <= 0)
		return NULL;
	fd = accept4(d->fd, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0)
		return NULL;
	v = bm_need(calloc(1, sizeof(*v)));
	v->fd = fd;
	if (let_in(d, v))
		return v;
	bm_log(BM_LOG_WARN, "somebody came who is not let in");
	visitor_leave(v);
	return NULL;
}

static ssize_t result_of(ssize_t n)
{
	if (n == GNUTLS_E_INTERRUPTED || n == GNUTLS_E_AGAIN)
		return -EAGAIN;
	if (n == GNUTLS_E_PREMATURE_TERMINATION)
		return 0;
	return n < 0 ? -EPROTO : n;
}

static int send_all(struct visitor *v, const void *data, size_t length)
{
	const char *at = data;

	while (length) {
		ssize_t n = result_of(gnutls_record_send(v->tls, at, length));

		if (n == -EAGAIN)
			continue;
		if (n <= 0)
			return -ECONNRESET;
		at += n;
		length -= (size_t)n;
	}
	return 0;
}

static int read_more(struct visitor *v, int ms)
{
	struct pollfd p = {.fd = v->fd, .events = POLLIN};
	ssize_t n;

	if (v->used == v->room) {
		size_t room = v->room ? v->room * 2 : FIRST_ROOM;

		if (room > LARGEST_LINE)
			return -EPROTO;
		v->data = bm_need(realloc(v->data, room));
		v->room = room;
	}
	if (!gnutls_record_check_pending(v->tls) && poll(&p, 1, ms) <= 0)
		return -EAGAIN;
	n = result_of(gnutls_record_recv(v->tls, v->data + v->used, v->room - v->used));
	if (n == -EAGAIN)
		return -EAGAIN;
	if (n <= 0)
		return -ECONNRESET;
	v->used += (size_t)n;
	return 0;
}

bool visitor_waits(const struct visitor *v)
{
	return (v->used && memchr(v->data, '\n', v->used)) || gnutls_record_check_pending(v->tls);
}

int visitor_call(struct visitor *v, int ms, json_t **call)
{
	char *newline;
	size_t length;

	while (!v->used || !(newline = memchr(v->data, '\n', v->used))) {
		int r = read_more(v, ms);

		if (r < 0)
			return r == -EAGAIN ? 0 : r;
	}
	length = (size_t)(newline - v->data);
	*call = json_loadb(v->data, length, 0, NULL);
	v->used -= length + 1;
	memmove(v->data, newline + 1, v->used);
	return json_is_object(*call) ? 1 : -EPROTO;
}

static int send_line(struct visitor *v, json_t *object)
{
	bm_free char *text = json_dumps(object, JSON_COMPACT);
	int r = text ? send_all(v, text, strlen(text)) : -ENOMEM;

	json_decref(object);
	return r ? r : send_all(v, "\n", 1);
}

int visitor_reply(struct visitor *v, const json_t *call, json_t *result)
{
	return send_line(v, json_pack("{s:s s:O* s:o}", "jsonrpc", "2.0", "id",
				      json_object_get(call, "id"), "result",
				      result ? result : json_object()));
}

int visitor_fail(struct visitor *v, const json_t *call, const struct bm_error *error)
{
	return send_line(v,
			 json_pack("{s:s s:O* s:{s:i s:s s:{s:s}}}", "jsonrpc", "2.0", "id",
				   json_object_get(call, "id"), "error", "code", -32000, "message",
				   error->text, "data", "code", bm_code_name(error->code)));
}

int visitor_alive(struct visitor *v)
{
	return send_line(v, json_pack("{s:s s:s}", "jsonrpc", "2.0", "method", "alive"));
}
