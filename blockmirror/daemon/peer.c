/* SPDX-License-Identifier: BSD-3-Clause */
/* Which hosts we know. */
#include "blockmirror/daemon/peer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "blockmirror/base/address.h"
#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/disk_name.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/identity.h"
#include "blockmirror/base/log.h"

enum { CALLERS = 4, MOST_FOLDERS = 32, LONGEST_IDENTITY = 1024 };

void peer_free(struct peer *peer)
{
	if (!peer)
		return;
	if (peer->key)
		explicit_bzero(peer->key, strlen(peer->key));
	free(peer->name);
	free(peer->address);
	free(peer->key);
	free(peer->identity);
	json_decref(peer->receive);
	json_decref(peer->shared);
	free(peer);
}

struct peer *peer_copy(const struct peer *from)
{
	struct peer *peer = calloc(1, sizeof(*peer));

	if (!peer)
		return NULL;
	peer->name = strdup(from->name);
	peer->address = strdup(from->address);
	peer->key = from->key ? strdup(from->key) : NULL;
	peer->identity = from->identity ? strdup(from->identity) : NULL;
	peer->receive = from->receive ? json_deep_copy(from->receive) : json_array();
	peer->shared = from->shared ? json_deep_copy(from->shared) : json_array();
	if (peer->name && peer->address && (peer->key || peer->identity) && peer->receive &&
	    peer->shared)
		return peer;
	peer_free(peer);
	return NULL;
}

struct peer *peer_find(const struct peers *p, const char *name)
{
	bm_list_each(node, &p->list) {
		struct peer *peer = bm_container(node, struct peer, link);

		if (!strcmp(peer->name, name))
			return peer;
	}
	return NULL;
}

static int check_folders(const json_t *folders, struct bm_error *error)
{
	const json_t *folder;
	size_t i;

	if (folders && !json_is_array(folders))
		return bm_fail(error, BM_E_USAGE, "receive: a list of folders is wanted");
	if (json_array_size(folders) > MOST_FOLDERS)
		return bm_fail(error, BM_E_USAGE, "receive: more than %d folders", MOST_FOLDERS);
	json_array_foreach(folders, i, folder)
		if (!json_is_string(folder) || *json_string_value(folder) != '/')
			return bm_fail(error, BM_E_USAGE, "receive: %s: an absolute path is wanted",
				       json_is_string(folder) ? json_string_value(folder)
							      : "(no string)");
	return 0;
}

static int check_key(const struct peer *peer, struct bm_error *error)
{
	if (strlen(peer->key) == PEER_KEY_TEXT &&
	    strspn(peer->key, "0123456789abcdef") == PEER_KEY_TEXT)
		return 0;
	return bm_fail(error, BM_E_USAGE,
		       "the key of %s is none: %d hexadecimal digits, as \"blockmirror peer pair\" "
		       "prints them",
		       peer->name, PEER_KEY_TEXT);
}

/* A line of it goes into a file. */
static int check_identity(const struct peer *peer, struct bm_error *error)
{
	bm_free char *name = bm_identity_name(peer->identity);

	if (name && !strcmp(name, peer->identity) && strncmp(name, "psk:", 4) != 0 &&
	    strlen(name) < LONGEST_IDENTITY && !strpbrk(name, "\r\n"))
		return 0;
	return bm_fail(error, BM_E_USAGE,
		       "\"%.100s\" is no name that a certificate is for: dns:NAME, ip:ADDRESS, "
		       "uri:URI, email:ADDRESS and dn:DN are",
		       peer->identity);
}

int peer_check(const struct peer *peer, struct bm_error *error)
{
	int r = check_folders(peer->receive, error);

	if (!r)
		r = share_check_list(peer->shared, error);
	if (r < 0)
		return r;
	if (bm_disk_name_check(peer->name, NULL) < 0)
		return bm_fail(error, BM_E_USAGE,
			       "\"%.100s\" is no name of a host: letters, digits, and . _ -",
			       peer->name);
	if (!peer->key == !peer->identity)
		return bm_fail(error, BM_E_USAGE, "host %s: a key or an identity is wanted",
			       peer->name);
	r = peer->key ? check_key(peer, error) : check_identity(peer, error);
	return r < 0 ? r : bm_address_check(peer->address, error);
}

char *peer_make_key(void)
{
	unsigned char bytes[PEER_KEY];
	char *key = malloc(PEER_KEY_TEXT + 1);

	if (!key || getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes)) {
		free(key);
		return NULL;
	}
	for (size_t i = 0; i < sizeof(bytes); i++)
		snprintf(key + i * 2, 3, "%02x", bytes[i]);
	explicit_bzero(bytes, sizeof(bytes));
	return key;
}

void peer_changed(struct peers *p, struct peer *peer, const char *removed)
{
	struct peer *old = peer_find(p, peer ? peer->name : removed);

	if (old) {
		bm_list_remove(&old->link);
		peer_free(old);
	}
	if (peer) {
		struct bm_list *at = p->list.next;

		while (at != &p->list &&
		       strcmp(bm_container(at, struct peer, link)->name, peer->name) < 0)
			at = at->next;
		bm_list_append(at, &peer->link); /* before it */
	}
	peer_trust_use(p);
}

/* HOST of HOST.DOMAIN. */
static char *host_name(void)
{
	char name[256] = "";

	if (gethostname(name, sizeof(name) - 1) < 0 || !*name)
		return strdup("localhost");
	name[strcspn(name, ".")] = '\0';
	return strdup(name);
}

/* Whether there is a copy now of what there was. */
static bool copied(char **to, const char *from)
{
	*to = from ? strdup(from) : NULL;
	return !from || *to;
}

static int set_names(struct peers *p, const struct peers_options *o, struct bm_error *error)
{
	p->name = o->name ? strdup(o->name) : host_name();
	if (!p->name || !copied(&p->listen, o->listen) || !copied(&p->bind, o->bind) ||
	    !copied(&p->certificates, o->certificates) ||
	    asprintf(&p->folder, "%s/peers", p->daemon->state) < 0 ||
	    asprintf(&p->keys, "%s/keys", p->folder) < 0 ||
	    asprintf(&p->acl, "%s/acl", p->folder) < 0 ||
	    asprintf(&p->links, "%s/x509", p->folder) < 0)
		return bm_fail_errno(error, ENOMEM, "blockmirrord");
	if (bm_disk_name_check(p->name, NULL) < 0)
		return bm_fail(error, BM_E_USAGE,
			       "\"%.100s\" is no name of a host: give one with --name", p->name);
	if (o->bind && !o->listen)
		return bm_fail(error, BM_E_USAGE,
			       "--bind says where disks come to: who may send "
			       "them is asked at --listen");
	return o->listen ? bm_address_check(o->listen, error) : 0;
}

int peers_open(struct daemon *d, const struct peers_options *options, struct bm_error *error)
{
	struct peers *p = d->peers = calloc(1, sizeof(*p));
	int keys = 0, r;

	if (!p)
		return bm_fail_errno(error, ENOMEM, "blockmirrord");
	p->daemon = d;
	bm_list_init(&p->list);
	bm_list_init(&p->errands);
	bm_list_init(&p->receipts);
	for (int i = 0; i < ERRAND_LEVELS; i++) {
		p->callers[i] = bm_workers_new(CALLERS);
		if (!p->callers[i])
			return bm_fail_errno(error, ENOMEM, "blockmirrord");
	}
	r = set_names(p, options, error);
	if (!r) {
		r = bm_make_folders(p->folder);
		if (r < 0)
			bm_fail_errno(error, r, "cannot create %s", p->folder);
	}
	if (!r)
		r = peer_trust_link(p, error);
	if (!r)
		r = peer_read_all(p, &keys, error);
	if (!r && keys < 0)
		bm_log(BM_LOG_ERROR, "no other host is let in: %s", error->text);
	else if (!r)
		peer_trust_use(p);
	return r || !p->listen ? r : peer_listen(p, error);
}

void peers_close(struct daemon *d)
{
	struct peers *p = d->peers;
	struct bm_list *node;

	if (!p)
		return;
	for (int i = 0; i < ERRAND_LEVELS; i++)
		if (p->callers[i])
			bm_workers_free(p->callers[i]);
	peer_admin_close(p);
	receive_close(p);
	bm_rpc_free(p->rpc);
	bm_keyring_free(p->keyring);
	while ((node = bm_list_take(&p->list)))
		peer_free(bm_container(node, struct peer, link));
	free(p->name);
	free(p->listen);
	free(p->bind);
	free(p->folder);
	free(p->keys);
	free(p->acl);
	free(p->certificates);
	free(p->links);
	free(p);
	d->peers = NULL;
}
