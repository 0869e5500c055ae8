/* SPDX-License-Identifier: BSD-3-Clause */
/* The control socket's methods about other hosts: docs/protocol.md, "Hosts". */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/daemon/peer.h"

/* Files are being written for a call: one at a time. */
struct peer_change {
	struct bm_work work;
	struct peers *peers;
	struct bm_rpc_call *call;
	struct peer *peer; /* who comes; NULL: somebody goes */
	char *removed, *text;
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
	if (c->text)
		explicit_bzero(c->text, strlen(c->text));
	peer_free(c->peer);
	free(c->removed);
	free(c->text);
	free(c);
}

static void run_change(struct bm_work *work)
{
	struct peer_change *c = bm_container(work, struct peer_change, work);

	c->result = peer_write(c->peers, c->peer, c->removed, c->text, &c->error);
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
	if (c) {
		c->removed = removed ? strdup(removed) : NULL;
		c->text = peer_keys_text(p, peer, removed);
	}
	if (!c || !c->text || (removed && !c->removed)) {
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

static void add(struct peers *p, struct bm_rpc_call *call, json_t *params, const char *made_key)
{
	const char *name = NULL, *address = NULL, *given = NULL, *key;
	json_t *receive = NULL, *shared = NULL;
	struct bm_error error;
	struct peer *peer;
	int replace = 0;

	if (json_unpack(params, "{s:s s:s s?s s?b s?o s?o}", "name", &name, "address", &address,
			"key", &given, "replace", &replace, "receive", &receive, "shared",
			&shared) ||
	    (!made_key && !given)) {
		bm_fail(&error, BM_E_USAGE, "name, address and key (strings) are wanted");
		bm_rpc_fail(call, &error);
		return;
	}
	key = made_key ? made_key : given;
	if (peer_check(name, address, key, receive, shared, &error) < 0) {
		bm_rpc_fail(call, &error);
		return;
	}
	if (!strcmp(name, p->name))
		refuse(call, BM_E_USAGE, "is this one", name);
	else if (peer_find(p, name) && !replace)
		refuse(call, BM_E_EXISTS, "is known already: remove it, or say --replace", name);
	else if (can_change(p, call, name)) {
		peer = peer_new(name, address, key, receive, shared);
		if (peer)
			begin_change(p, call, peer, NULL, made_key);
		else
			refuse(call, BM_E_INTERNAL, "cannot be added: out of memory", name);
	}
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
	struct bm_error error;
	struct peer *peer;

	if (!old)
		return;
	if (peer_check(old->name, old->address, old->key, receive, shared, &error) < 0) {
		bm_rpc_fail(call, &error);
		return;
	}
	if (!can_change(d->peers, call, old->name))
		return;
	peer = peer_new(old->name, old->address, old->key, receive, shared);
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

		json_array_append_new(list, json_pack("{s:s s:s s:O s:O}", "name", peer->name,
						      "address", peer->address, "receive",
						      peer->receive, "shared", peer->shared));
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
	if (e->failed)
		bm_rpc_fail(e->call, &e->error);
	else
		bm_rpc_reply(e->call, e->result);
	free_errand(e);
}

void peer_errand_begin(struct peers *p, struct bm_rpc_call *call, const struct peer *peer,
		       json_t *params, int (*run)(struct peer_errand *errand), const char *arg,
		       enum errand_level level)
{
	struct peer_errand *e = calloc(1, sizeof(*e));

	if (e)
		e->peer = peer_new(peer->name, peer->address, peer->key, NULL, NULL);
	if (!e || !e->peer) {
		free(e);
		json_decref(params);
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
	return peer_measure(e->peer, e->peers->name, &e->result, &e->error);
}

void method_peer_check(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct daemon *d = arg;
	const struct peer *peer = peer_wanted(d->peers, call, params, "name");

	if (peer)
		peer_errand_begin(d->peers, call, peer, NULL, check, NULL, ERRAND_OURS);
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

		bm_rpc_fail(e->call, &error);
		json_decref(e->result);
		free_errand(e);
	}
}
