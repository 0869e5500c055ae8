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
#include "blockmirror/base/uri.h"
#include "blockmirror/daemon/peer.h"

#define PATIENCE 60000000000ull /* ns: the image is made there, and tried out */

char *remote_uri(const struct peer_errand *e, const json_t *answer)
{
	bm_free char *key = peer_key_path(e->peers, e->peer->name);
	bm_free char *escaped = key ? bm_uri_escape(key) : NULL, *path = NULL;
	const char *address = json_string_value(json_object_get(answer, "address")), *where, *name;
	json_int_t port;
	char *uri;

	if (!escaped || json_unpack((json_t *)answer, "{s:s s:s s:I}", "path", &where, "name",
				    &name, "port", &port))
		return NULL;
	path = bm_uri_escape(where);
	if (!path ||
	    asprintf(&uri,
		     "nbds://%s@%.*s:%lld/%s?tls-psk-file=%s&" BM_URI_HOST "=%s&" BM_URI_PATH "=%s",
		     e->peers->name,
		     address ? (int)strlen(address)
			     : (int)(strrchr(e->peer->address, ':') - e->peer->address),
		     address ? address : e->peer->address, (long long)port, name, escaped,
		     e->peer->name, path) < 0)
		return NULL;
	return uri;
}

static int create(struct peer_errand *e)
{
	bm_free char *uri = NULL;
	int r = peer_ask(e->peer, e->peers->name, "receive", json_incref(e->params), PATIENCE,
			 &e->result, &e->error);

	if (r < 0)
		return r;
	uri = remote_uri(e, e->result);
	if (!uri) {
		json_decref(e->result);
		return bm_fail(&e->error, BM_E_IO, "host %s answers with something else",
			       e->peer->name);
	}
	json_object_set_new(e->result, "uri", json_string(uri));
	return 0;
}

static int discard(struct peer_errand *e)
{
	return peer_ask(e->peer, e->peers->name, "discard", json_incref(e->params), PATIENCE,
			&e->result, &e->error);
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

void method_remote_remove(void *arg, struct bm_rpc_call *call, json_t *params)
{
	begin(arg, call, params, discard);
}
