/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Disks of ours that go to other hosts: what their processes, which have no keys, ask of those
 * hosts through us.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/tls_client.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/daemon/peer.h"

#define PATIENCE 60000000000ull /* ns: the image is made there, and tried out */

/*
 * Where the other host serves it, as any NBD client understands it; and, for who reads it, whose
 * that is.
 */
static char *uri_of(const struct peer_errand *e, const char *host, const json_t *answer)
{
	const bool by_key = e->peer->key;
	bm_free char *trust =
		by_key ? peer_key_path(e->peers, e->peer->name) : strdup(e->peers->links);
	bm_free char *escaped = trust ? bm_uri_escape(trust) : NULL, *path = NULL;
	const char *said = json_string_value(json_object_get(answer, "address")), *where, *name;
	json_int_t port;
	bool brackets;
	char *uri;

	if (!escaped || json_unpack((json_t *)answer, "{s:s s:s s:I}", "path", &where, "name",
				    &name, "port", &port))
		return NULL;
	path = bm_uri_escape(where);
	if (said && by_key) /* a daemon of 0.1.0 says it only now */
		host = said;
	brackets = strchr(host, ':');
	if (!path ||
	    asprintf(&uri, "nbds://%s%s%s%s%s:%lld/%s?%s=%s&" BM_URI_HOST "=%s&" BM_URI_PATH "=%s",
		     by_key ? e->peers->name : "", by_key ? "@" : "", brackets ? "[" : "", host,
		     brackets ? "]" : "", (long long)port, name,
		     by_key ? "tls-psk-file" : "tls-certificates", escaped, e->peer->name,
		     path) < 0)
		return NULL;
	return uri;
}

/* A connection to it, and the address that its data comes to. */
static int reach(struct peer_errand *e, struct bm_client **client, char **host)
{
	const char *from = json_string_value(json_object_get(e->params, "from"));
	json_t *hello = NULL;
	int r = peer_connect_from(e->peers, e->peer, from, client, &hello, &e->error);

	if (r < 0)
		return r;
	*host = peer_data_host_from(e->peer, from, hello, &e->error);
	json_decref(hello);
	r = *host ? peer_covers(e->peer, *client, *host, &e->error) : -EINVAL;
	if (r < 0)
		bm_client_close(*client);
	return r;
}

char *remote_uri(struct peer_errand *e, const json_t *answer)
{
	bm_free char *host = NULL;
	struct bm_client *client;

	if (reach(e, &client, &host) < 0)
		return NULL;
	bm_client_close(client);
	return uri_of(e, host, answer);
}

static int create(struct peer_errand *e)
{
	bm_free char *uri = NULL, *host = NULL;
	struct bm_client *client;
	int r = reach(e, &client, &host);

	if (r < 0)
		return r;
	bm_client_set_timeout(client, PATIENCE);
	r = bm_client_call(client, "receive", json_incref(e->params), &e->result, &e->error);
	bm_client_close(client);
	if (r < 0)
		return r;
	uri = uri_of(e, host, e->result);
	if (!uri) {
		json_decref(e->result);
		return bm_fail(&e->error, BM_E_IO, "host %s answers with something else",
			       e->peer->name);
	}
	json_object_set_new(e->result, "uri", json_string(uri));
	return 0;
}

static int share(struct peer_errand *e)
{
	return peer_ask(e->peers, e->peer, "share", json_incref(e->params), PATIENCE, &e->result,
			&e->error);
}

static int discard(struct peer_errand *e)
{
	return peer_ask(e->peers, e->peer, "discard", json_incref(e->params), PATIENCE, &e->result,
			&e->error);
}

/* As discard, but the image stays: it is nobody's disk any more. */
static int keep(struct peer_errand *e)
{
	json_t *params = json_copy(e->params);

	json_object_set_new(params, "keep", json_true());
	return peer_ask(e->peers, e->peer, "discard", params, PATIENCE, &e->result, &e->error);
}

static int space(struct peer_errand *e)
{
	return peer_ask(e->peers, e->peer, "space", json_incref(e->params), PATIENCE, &e->result,
			&e->error);
}

static void begin(struct daemon *d, struct bm_rpc_call *call, json_t *params,
		  int (*run)(struct peer_errand *e))
{
	const struct peer *peer = peer_wanted(d->peers, call, params, "peer");

	if (peer)
		peer_errand_begin(d->peers, call, peer, json_incref(params), run, NULL,
				  ERRAND_OURS);
}

void method_remote_create(void *arg, struct bm_rpc_call *call, json_t *params)
{
	begin(arg, call, params, create);
}

void method_remote_share(void *arg, struct bm_rpc_call *call, json_t *params)
{
	begin(arg, call, params, share);
}

void method_remote_remove(void *arg, struct bm_rpc_call *call, json_t *params)
{
	begin(arg, call, params, discard);
}

void method_remote_keep(void *arg, struct bm_rpc_call *call, json_t *params)
{
	begin(arg, call, params, keep);
}

void method_remote_space(void *arg, struct bm_rpc_call *call, json_t *params)
{
	begin(arg, call, params, space);
}
