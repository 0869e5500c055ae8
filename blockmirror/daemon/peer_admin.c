/* SPDX-License-Identifier: BSD-3-Clause */
/* The control socket's methods about other hosts: docs/protocol.md, "Hosts". */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/identity.h"
#include "blockmirror/daemon/peer.h"

/* Files are being written for a call: one at a time. */
struct peer_change {
	struct bm_work work;
	struct peers *peers;
	struct bm_rpc_call *call;
	struct peer *peer; /* who comes; NULL: somebody goes */
	char *removed;
	struct peer_text text;
	bool paired; /* the key is ours to tell */
	int result;
	struct bm_error error;
};

static void refuse(struct bm_rpc_call *call, enum bm_code code, const char *text, const char *name)
{
	control_refuse(call, code, "host", name, text);
}

/* Changes */

static void free_change(struct peer_change *c)
{
	peer_free(c->peer);
	free(c->removed);
	peer_text_free(&c->text);
	free(c);
}

static void run_change(struct bm_work *work)
{
	struct peer_change *c = bm_container(work, struct peer_change, work);

	c->result = peer_write(c->peers, c->peer, c->removed, &c->text, &c->error);
}

static void change_done(struct bm_work *work)
{
	struct peer_change *c = bm_container(work, struct peer_change, work);
	struct peers *p = c->peers;
	json_t *result = json_object();

	p->change = NULL;
	if (c->result < 0) {
		bm_rpc_fail(c->call, &c->error);
		json_decref(result);
		free_change(c);
		return;
	}
	if (c->paired)
		result = json_pack("{s:o s:s s:s s:s s:s*}", "v", json_integer(1), "peer",
				   c->peer->name, "name", p->name, "key", c->peer->key, "listen",
				   p->listen);
	peer_changed(p, bm_steal(c->peer), c->removed);
	bm_rpc_reply(c->call, result);
	free_change(c);
}

/* Takes peer over. */
static void begin_change(struct peers *p, struct bm_rpc_call *call, struct peer *peer,
			 const char *removed, bool paired)
{
	struct peer_change *c = calloc(1, sizeof(*c));
	struct bm_error error;

	if (c)
		*c = (struct peer_change){.peers = p, .call = call, .peer = peer, .paired = paired};
	else
		peer_free(peer);
	if (c)
		c->removed = removed ? strdup(removed) : NULL;
	if (!c || !peer_text_make(p, peer, removed, &c->text) || (removed && !c->removed)) {
		if (c)
			free_change(c);
		bm_fail_errno(&error, ENOMEM, "hosts");
		bm_rpc_fail(call, &error);
		return;
	}
	p->change = c;
	c->work.run = run_change;
	c->work.done = change_done;
	bm_workers_submit(p->daemon->writer, p->daemon->loop, &c->work);
}

static bool can_change(const struct peers *p, struct bm_rpc_call *call, const char *name)
{
	if (p->change)
		refuse(call, BM_E_BUSY, "must wait: another one is being written; try again", name);
	return !p->change;
}

/* Two hosts that have the same name could not be told apart. */
static const struct peer *same_identity(const struct peers *p, const struct peer *said)
{
	bm_list_each(node, &p->list) {
		const struct peer *peer = bm_container(node, struct peer, link);

		if (peer->identity && said->identity && strcmp(peer->name, said->name) != 0 &&
		    !strcasecmp(peer->identity, said->identity))
			return peer;
	}
	return NULL;
}

static void add_checked(struct peers *p, struct bm_rpc_call *call, const struct peer *said,
			bool replace, bool paired)
{
	const struct peer *same = same_identity(p, said);
	struct bm_error error;
	struct peer *peer;

	if (!strcmp(said->name, p->name)) {
		refuse(call, BM_E_USAGE, "is this one", said->name);
	} else if (peer_find(p, said->name) && !replace) {
		refuse(call, BM_E_EXISTS, "is known already: remove it, or say --replace",
		       said->name);
	} else if (same) {
		bm_fail(&error, BM_E_EXISTS, "host %s is known by %s already", same->name,
			same->identity);
		bm_rpc_fail(call, &error);
	} else if (can_change(p, call, said->name)) {
		peer = peer_copy(said);
		if (peer)
			begin_change(p, call, peer, NULL, paired);
		else
			refuse(call, BM_E_INTERNAL, "cannot be added: out of memory", said->name);
	}
}

/* identity: what the certificate is for, if there is no key; as people write it. */
static void add(struct peers *p, struct bm_rpc_call *call, json_t *params, char *made_key)
{
	bm_free char *identity = NULL;
	const char *written = NULL;
	struct bm_error error;
	struct peer said = {0}; /* params' */
	int replace = 0, r;

	if (json_unpack(params, "{s:s s:s s?s s?s s?b s?o s?o}", "name", &said.name, "address",
			&said.address, "key", &said.key, "identity", &written, "replace", &replace,
			"receive", &said.receive, "shared", &said.shared) ||
	    (!made_key && !said.key == !written)) {
		bm_fail(&error, BM_E_USAGE,
			"name, address and key or identity (strings) are wanted");
		bm_rpc_fail(call, &error);
		return;
	}
	if (made_key)
		said.key = made_key;
	else if (written)
		said.identity = identity = bm_identity_of_host(written);
	if (written && !made_key && !p->certificates)
		r = bm_fail(&error, BM_E_USAGE,
			    "blockmirrord has no certificates: start it with --tls-dir");
	else if (written && !made_key && !identity)
		r = bm_fail(&error, BM_E_USAGE,
			    "\"%.100s\" is no name that a certificate is for: NAME, dns:NAME, "
			    "ip:ADDRESS, uri:URI, email:ADDRESS and dn:DN are",
			    written);
	else
		r = peer_check(&said, &error);
	if (r < 0)
		bm_rpc_fail(call, &error);
	else
		add_checked(p, call, &said, replace, made_key);
}

void method_peer_add(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct daemon *d = arg;

	add(d->peers, call, params, NULL);
}

void method_peer_pair(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct daemon *d = arg;
	char *key = peer_make_key();

	if (!key) {
		refuse(call, BM_E_INTERNAL, "cannot be paired: no key could be made", "");
		return;
	}
	add(d->peers, call, params, key);
	explicit_bzero(key, strlen(key));
	free(key);
}

struct peer *peer_wanted(struct peers *p, struct bm_rpc_call *call, json_t *params,
			 const char *member)
{
	const char *name = json_string_value(json_object_get(params, member));
	struct peer *peer = name ? peer_find(p, name) : NULL;

	if (!peer)
		refuse(call, BM_E_NOT_FOUND, "is not known: \"blockmirror peer pair\" makes it so",
		       name ? name : "(none)");
	return peer;
}

void method_peer_allow(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct daemon *d = arg;
	const struct peer *old = peer_wanted(d->peers, call, params, "name");
	json_t *receive = json_object_get(params, "receive"),
	       *shared = json_object_get(params, "shared");
	struct peer changed, *peer;
	struct bm_error error;

	if (!old)
		return;
	changed = *old;
	changed.receive = receive;
	changed.shared = shared;
	if (peer_check(&changed, &error) < 0) {
		bm_rpc_fail(call, &error);
		return;
	}
	if (!can_change(d->peers, call, old->name))
		return;
	peer = peer_copy(&changed);
	if (peer)
		begin_change(d->peers, call, peer, NULL, false);
	else
		refuse(call, BM_E_INTERNAL, "cannot be changed: out of memory", old->name);
}

void method_peer_remove(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct daemon *d = arg;
	const struct peer *peer = peer_wanted(d->peers, call, params, "name");

	if (peer && can_change(d->peers, call, peer->name))
		begin_change(d->peers, call, NULL, peer->name, false);
}

void method_peer_list(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct daemon *d = arg;
	json_t *list = json_array();

	(void)params;
	bm_list_each(node, &d->peers->list) {
		const struct peer *peer = bm_container(node, struct peer, link);

		json_array_append_new(list, json_pack("{s:s s:s s:s* s:O s:O}", "name", peer->name,
						      "address", peer->address, "identity",
						      peer->identity, "receive", peer->receive,
						      "shared", peer->shared));
	}
	bm_rpc_reply(call, json_pack("{s:o s:s s:s*}", "peers", list, "name", d->peers->name,
				     "listen", d->peers->listen));
}

/* Errands */

static void free_errand(struct peer_errand *e)
{
	peer_free(e->peer);
	json_decref(e->params);
	free(e);
}

static void run_errand(struct bm_work *work)
{
	struct peer_errand *e = bm_container(work, struct peer_errand, work);

	e->failed = e->run(e);
}

static void errand_done(struct bm_work *work)
{
	struct peer_errand *e = bm_container(work, struct peer_errand, work);

	bm_list_remove(&e->link);
	if (e->call && e->failed)
		bm_rpc_fail(e->call, &e->error);
	else if (e->call)
		bm_rpc_reply(e->call, bm_steal(e->result));
	json_decref(e->result);
	free_errand(e);
}

void peer_errand_begin(struct peers *p, struct bm_rpc_call *call, const struct peer *peer,
		       json_t *params, int (*run)(struct peer_errand *errand), const char *arg,
		       enum errand_level level)
{
	struct peer_errand *e = calloc(1, sizeof(*e));

	if (e)
		e->peer = peer_copy(peer);
	if (!e || !e->peer) {
		free(e);
		json_decref(params);
		if (call)
			refuse(call, BM_E_INTERNAL, "cannot be asked: out of memory", peer->name);
		return;
	}
	e->peers = p;
	e->call = call;
	e->params = params;
	e->run = run;
	e->arg = arg;
	e->work.run = run_errand;
	e->work.done = errand_done;
	bm_list_append(&p->errands, &e->link);
	bm_workers_submit(p->callers[level], p->daemon->loop, &e->work);
}

static int check(struct peer_errand *e)
{
	return peer_measure(
		e->peers, e->peer, json_string_value(json_object_get(e->params, "from")),
		json_is_true(json_object_get(e->params, "briefly")), &e->result, &e->error);
}

void method_peer_check(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct daemon *d = arg;
	const struct peer *peer = peer_wanted(d->peers, call, params, "name");

	if (peer)
		peer_errand_begin(d->peers, call, peer, json_incref(params), check, NULL,
				  ERRAND_OURS);
}

/* The workers have ended; nobody waits for what they had done. */
void peer_admin_close(struct peers *p)
{
	struct bm_error error;
	struct bm_list *node;

	bm_fail(&error, BM_E_UNREACHABLE, "blockmirrord ends");
	if (p->change) {
		bm_rpc_fail(p->change->call, &error);
		free_change(p->change);
	}
	while ((node = bm_list_take(&p->errands))) {
		struct peer_errand *e = bm_container(node, struct peer_errand, link);

		if (e->call)
			bm_rpc_fail(e->call, &error);
		json_decref(e->result);
		free_errand(e);
	}
}
