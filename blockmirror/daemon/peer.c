/* SPDX-License-Identifier: BSD-3-Clause */
/* Which hosts we know: a file for each, and one of all keys that TLS reads. */
#include "blockmirror/daemon/peer.h"

#include <dirent.h>
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
#include "blockmirror/base/log.h"

enum { FORMAT = 1, LARGEST = 4096, CALLERS = 4 };
#define SUFFIX ".json"

void peer_free(struct peer *peer)
{
	if (!peer)
		return;
	if (peer->key)
		explicit_bzero(peer->key, strlen(peer->key));
	free(peer->name);
	free(peer->address);
	free(peer->key);
	free(peer);
}

struct peer *peer_new(const char *name, const char *address, const char *key)
{
	struct peer *peer = calloc(1, sizeof(*peer));

	if (!peer)
		return NULL;
	peer->name = strdup(name);
	peer->address = strdup(address);
	peer->key = strdup(key);
	if (peer->name && peer->address && peer->key)
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

int peer_check(const char *name, const char *address, const char *key, struct bm_error *error)
{
	if (bm_disk_name_check(name, NULL) < 0)
		return bm_fail(error, BM_E_USAGE,
			       "\"%.100s\" is no name of a host: letters, digits, and . _ -", name);
	if (strlen(key) != PEER_KEY_TEXT || strspn(key, "0123456789abcdef") != strlen(key))
		return bm_fail(error, BM_E_USAGE,
			       "the key of %s is none: %d hexadecimal digits, as \"blockmirror "
			       "peer pair\" prints them",
			       name, PEER_KEY_TEXT);
	return bm_address_check(address, error);
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

/* Files */

static int write_text(const char *path, const char *text, struct bm_error *error)
{
	bm_free char *beside = NULL;
	int r;

	if (asprintf(&beside, "%s.new", path) < 0)
		return bm_fail_errno(error, ENOMEM, "%s", path);
	r = bm_write_durably(beside, text, strlen(text));
	if (!r)
		r = bm_rename_durably(beside, path);
	if (!r)
		return 0;
	unlink(beside);
	return bm_fail_errno(error, r, "cannot write %s", path);
}

char *peer_keys_text(const struct peers *p, const struct peer *peer, const char *removed)
{
	char *text = NULL;
	size_t length = 0;
	FILE *f = open_memstream(&text, &length);

	if (!f)
		return NULL;
	bm_list_each(node, &p->list) {
		const struct peer *known = bm_container(node, struct peer, link);

		if ((!peer || strcmp(known->name, peer->name)) &&
		    (!removed || strcmp(known->name, removed)))
			fprintf(f, "%s:%s\n", known->name, known->key);
	}
	if (peer)
		fprintf(f, "%s:%s\n", peer->name, peer->key);
	if (!fclose(f))
		return text;
	free(text);
	return NULL;
}

static char *path_of(const struct peers *p, const char *name)
{
	char *path;

	return asprintf(&path, "%s/%s" SUFFIX, p->folder, name) < 0 ? NULL : path;
}

/* The host's own file first, whether it comes or goes: the keys are made from these at a start. */
int peer_write(const struct peers *p, const struct peer *peer, const char *removed,
	       const char *text, struct bm_error *error)
{
	bm_free char *path = path_of(p, peer ? peer->name : removed), *entry = NULL;
	json_t *j;
	int r;

	if (!path)
		return bm_fail_errno(error, ENOMEM, "host %s", peer ? peer->name : removed);
	if (removed) {
		if (unlink(path) < 0 && errno != ENOENT)
			return bm_fail_errno(error, errno, "cannot remove %s", path);
		return write_text(p->keys, text, error);
	}
	j = json_pack("{s:i s:s s:s s:s}", "format", FORMAT, "name", peer->name, "address",
		      peer->address, "key", peer->key);
	entry = j ? json_dumps(j, JSON_COMPACT) : NULL;
	json_decref(j);
	r = entry ? write_text(path, entry, error) : bm_fail_errno(error, ENOMEM, "%s", path);
	return r ? r : write_text(p->keys, text, error);
}

static struct peer *read_entry(const struct peers *p, const char *name)
{
	const char *said = "", *address = "", *key = "";
	bm_free char *path = path_of(p, name), *text = NULL;
	struct peer *peer = NULL;
	json_t *entry = NULL;
	int format = 0;

	if (path && !bm_read_text(path, LARGEST, &text))
		entry = json_loads(text, 0, NULL);
	if (entry &&
	    !json_unpack(entry, "{s:i s:s s:s s:s}", "format", &format, "name", &said, "address",
			 &address, "key", &key) &&
	    format == FORMAT && !strcmp(said, name) && !peer_check(name, address, key, NULL))
		peer = peer_new(name, address, key);
	json_decref(entry);
	if (text)
		explicit_bzero(text, strlen(text));
	return peer;
}

static int read_all(struct peers *p, struct bm_error *error)
{
	struct dirent **entries = NULL;
	int n = scandir(p->folder, &entries, NULL, alphasort);

	if (n < 0)
		return bm_fail_errno(error, errno, "cannot read %s", p->folder);
	for (int i = 0; i < n; i++) {
		char *name = entries[i]->d_name, *dot = strrchr(name, '.');
		struct peer *peer = NULL;

		if (*name != '.' && dot && !strcmp(dot, SUFFIX)) {
			*dot = '\0';
			peer = read_entry(p, name);
			if (peer)
				bm_list_append(&p->list, &peer->link);
			else
				bm_log(BM_LOG_ERROR,
				       "%s/%s" SUFFIX
				       " is damaged, or of a newer format: that host "
				       "is not known; \"blockmirror peer pair\" writes it anew",
				       p->folder, name);
		}
		free(entries[i]);
	}
	free(entries);
	return 0;
}

/* In memory */

/* Keys of who has gone must not stay in use: without any, there is no keyring. */
static void use_keys(struct peers *p)
{
	const struct bm_tls_options options = {.psk = p->keys, .priority = "NORMAL:-VERS-TLS1.2"};
	struct bm_error error;

	bm_keyring_free(p->keyring);
	p->keyring = NULL;
	if (!bm_list_empty(&p->list) && bm_keyring_new(&options, &p->keyring, &error) < 0)
		bm_log(BM_LOG_ERROR, "no other host is let in: %s", error.text);
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
	use_keys(p);
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

static int set_names(struct peers *p, const char *name, const char *listen, struct bm_error *error)
{
	p->name = name ? strdup(name) : host_name();
	p->listen = listen ? strdup(listen) : NULL;
	if (!p->name || (listen && !p->listen) ||
	    asprintf(&p->folder, "%s/peers", p->daemon->state) < 0 ||
	    asprintf(&p->keys, "%s/keys", p->folder) < 0)
		return bm_fail_errno(error, ENOMEM, "blockmirrord");
	if (bm_disk_name_check(p->name, NULL) < 0)
		return bm_fail(error, BM_E_USAGE,
			       "\"%.100s\" is no name of a host: give one with --name", p->name);
	return listen ? bm_address_check(listen, error) : 0;
}

int peers_open(struct daemon *d, const char *name, const char *listen, struct bm_error *error)
{
	struct peers *p = d->peers = calloc(1, sizeof(*p));
	bm_free char *text = NULL;
	int r;

	if (!p)
		return bm_fail_errno(error, ENOMEM, "blockmirrord");
	p->daemon = d;
	bm_list_init(&p->list);
	bm_list_init(&p->errands);
	p->callers = bm_workers_new(CALLERS);
	if (!p->callers)
		return bm_fail_errno(error, ENOMEM, "blockmirrord");
	r = set_names(p, name, listen, error);
	if (!r) {
		r = bm_make_folders(p->folder);
		if (r < 0)
			bm_fail_errno(error, r, "cannot create %s", p->folder);
	}
	if (!r)
		r = read_all(p, error);
	/* A change that was cut off is completed. */
	text = r ? NULL : peer_keys_text(p, NULL, NULL);
	if (!r && (!text || write_text(p->keys, text, error) < 0))
		bm_log(BM_LOG_ERROR, "no other host is let in: %s",
		       text ? error->text : "out of memory");
	else if (!r)
		use_keys(p);
	if (text)
		explicit_bzero(text, strlen(text));
	return r || !listen ? r : peer_listen(p, error);
}

void peers_close(struct daemon *d)
{
	struct peers *p = d->peers;
	struct bm_list *node;

	if (!p)
		return;
	bm_workers_free(p->callers);
	peer_admin_close(p);
	bm_rpc_free(p->rpc);
	bm_keyring_free(p->keyring);
	while ((node = bm_list_take(&p->list)))
		peer_free(bm_container(node, struct peer, link));
	free(p->name);
	free(p->listen);
	free(p->folder);
	free(p->keys);
	free(p);
	d->peers = NULL;
}
