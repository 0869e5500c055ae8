/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * STATE/peers: NAME.json says what is known of a host, and is the truth. The rest is made from
 * these at a start and at each change, for TLS and disks' processes to read: keys, of all who may
 * come to us by one; acl, who comes by what name; and NAME.psk, by which we go to that host.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/log.h"
#include "blockmirror/daemon/peer.h"

enum { FORMAT = 1, LARGEST = 64 << 10 };
#define SUFFIX ".json"

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

/* As nbd-server/acl.c reads it, with the host whose disk it is about for an export. */
static void print_acl(FILE *f, const struct peer *peer)
{
	fputc('"', f);
	for (const char *at = peer->identity; *at; at++)
		fprintf(f, "%s%c", *at == '"' || *at == '\\' ? "\\" : "", *at);
	fprintf(f, "\" \"%s\" read-write\n", peer->name);
}

static void print_key(FILE *f, const struct peer *peer)
{
	fprintf(f, "%s:%s\n", peer->name, peer->key);
}

static void print_one(FILE *f, const struct peer *peer, bool keys)
{
	if (keys && peer->key)
		print_key(f, peer);
	else if (!keys && peer->identity)
		print_acl(f, peer);
}

static char *print_all(const struct peers *p, const struct peer *peer, const char *removed,
		       bool keys)
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
			print_one(f, known, keys);
	}
	if (peer)
		print_one(f, peer, keys);
	if (!fclose(f))
		return text;
	free(text);
	return NULL;
}

bool peer_text_make(const struct peers *p, const struct peer *peer, const char *removed,
		    struct peer_text *text)
{
	text->keys = print_all(p, peer, removed, true);
	text->acl = print_all(p, peer, removed, false);
	return text->keys && text->acl;
}

void peer_text_free(struct peer_text *text)
{
	if (text->keys)
		explicit_bzero(text->keys, strlen(text->keys));
	free(text->keys);
	free(text->acl);
}

static int write_texts(const struct peers *p, const struct peer_text *text, struct bm_error *error)
{
	int r = write_text(p->keys, text->keys, error);

	return r ? r : write_text(p->acl, text->acl, error);
}

static char *path_of(const struct peers *p, const char *name)
{
	char *path;

	return asprintf(&path, "%s/%s" SUFFIX, p->folder, name) < 0 ? NULL : path;
}

char *peer_key_path(const struct peers *p, const char *name)
{
	char *path;

	return asprintf(&path, "%s/%s.psk", p->folder, name) < 0 ? NULL : path;
}

static int write_key(const struct peers *p, const struct peer *peer, struct bm_error *error)
{
	bm_free char *path = peer_key_path(p, peer->name), *text = NULL;
	int r;

	if (path && !peer->key)
		return unlink(path) < 0 && errno != ENOENT
			       ? bm_fail_errno(error, errno, "cannot remove %s", path)
			       : 0;
	if (!path || asprintf(&text, "%s:%s\n", p->name, peer->key) < 0)
		return bm_fail_errno(error, ENOMEM, "host %s", peer->name);
	r = write_text(path, text, error);
	explicit_bzero(text, strlen(text));
	return r;
}

static int remove_files(const struct peers *p, const char *name, const char *path,
			struct bm_error *error)
{
	bm_free char *key = peer_key_path(p, name);

	if (unlink(path) < 0 && errno != ENOENT)
		return bm_fail_errno(error, errno, "cannot remove %s", path);
	if (!key || (unlink(key) < 0 && errno != ENOENT))
		return bm_fail_errno(error, key ? errno : ENOMEM, "cannot remove the key of %s",
				     name);
	return 0;
}

/* The host's own file first, whether it comes or goes: the keys are made from these at a start. */
int peer_write(const struct peers *p, const struct peer *peer, const char *removed,
	       const struct peer_text *text, struct bm_error *error)
{
	bm_free char *path = path_of(p, peer ? peer->name : removed), *entry = NULL;
	json_t *j;
	int r;

	if (!path)
		return bm_fail_errno(error, ENOMEM, "host %s", peer ? peer->name : removed);
	if (removed) {
		r = remove_files(p, removed, path, error);
		return r ? r : write_texts(p, text, error);
	}
	j = json_pack("{s:i s:s s:s s:s* s:s* s:O s:O}", "format", FORMAT, "name", peer->name,
		      "address", peer->address, "key", peer->key, "identity", peer->identity,
		      "receive", peer->receive, "shared", peer->shared);
	entry = j ? json_dumps(j, JSON_COMPACT) : NULL;
	json_decref(j);
	r = entry ? write_text(path, entry, error) : bm_fail_errno(error, ENOMEM, "%s", path);
	if (!r)
		r = write_key(p, peer, error);
	return r ? r : write_texts(p, text, error);
}

static struct peer *read_entry(const struct peers *p, const char *name)
{
	struct peer said = {0}, *peer = NULL; /* entry's */
	bm_free char *path = path_of(p, name), *text = NULL;
	json_t *entry = NULL;
	int format = 0;

	if (path && !bm_read_text(path, LARGEST, &text))
		entry = json_loads(text, 0, NULL);
	if (entry &&
	    !json_unpack(entry, "{s:i s:s s:s s?s s?s s?o s?o}", "format", &format, "name",
			 &said.name, "address", &said.address, "key", &said.key, "identity",
			 &said.identity, "receive", &said.receive, "shared", &said.shared) &&
	    format == FORMAT && !strcmp(said.name, name) && !peer_check(&said, NULL))
		peer = peer_copy(&said);
	json_decref(entry);
	if (text)
		explicit_bzero(text, strlen(text));
	return peer;
}

static int read_entries(struct peers *p, struct bm_error *error)
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

/* The name that we go by may be another one than before. */
static int write_keys(const struct peers *p, struct bm_error *error)
{
	struct peer_text text;
	int r = peer_text_make(p, NULL, NULL, &text)
			? write_texts(p, &text, error)
			: bm_fail_errno(error, ENOMEM, "keys of hosts");

	bm_list_each(node, &p->list) {
		if (!r)
			r = write_key(p, bm_container(node, struct peer, link), error);
	}
	peer_text_free(&text);
	return r;
}

int peer_read_all(struct peers *p, int *keys, struct bm_error *error)
{
	int r = read_entries(p, error);

	*keys = r ? 0 : write_keys(p, error);
	return r;
}
