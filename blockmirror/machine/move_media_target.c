/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A machine's images that are no disks of ours, on the host that it goes to. They have the same
 * path there. What the other host says is believed of the machine, and of nothing here: a file is
 * made only in a folder that its disks may come to (peer allow --receive), beside its name first,
 * and is given that when it has the content that was told.
 */
#include <errno.h>
#include <fcntl.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/machine/graph.h"
#include "blockmirror/machine/move_media.h"

/* Where it is made, malloc()ed. */
static char *beside(const struct move *m, const char *path)
{
	char *name;

	return asprintf(&name, "%s.%s", path, m->id) < 0 ? bm_need(NULL) : name;
}

static bool may_be_at(const struct move *m, const char *path)
{
	bm_free char *copy = bm_need(strdup(path)), *folder = NULL;
	char *slash = strrchr(copy, '/');
	json_t *allowed;
	size_t i;

	if (*path != '/' || !slash[1])
		return false;
	slash[slash == copy] = '\0';
	folder = realpath(copy, NULL);
	json_array_foreach(json_object_get(m->plan, "receive"), i, allowed) {
		bm_free char *real = realpath(json_string_value(allowed), NULL);
		size_t n = real ? strlen(real) : 0;

		if (folder && real && !strncmp(folder, real, n) &&
		    (!folder[n] || folder[n] == '/' || !strcmp(real, "/")))
			return true;
	}
	return false;
}

/* 1: it is here, and the same; 0: another one is; -ENOENT: none. */
static int is_same(const json_t *item)
{
	bm_close int fd = open(graph_text(item, "path"), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	char hash[MEDIA_HASH] = "";
	struct stat st;

	if (fd < 0)
		return errno == ENOENT ? -ENOENT : 0;
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) ||
	    st.st_size != json_integer_value(json_object_get(item, "size")) ||
	    media_hash(fd, hash) < 0)
		return 0;
	return !strcmp(hash, graph_text(item, "hash"));
}

/* Whether it is to be copied: 1. */
static int look_at(const struct move *m, const json_t *item, bool copy, bool overwrite,
		   struct bm_error *error)
{
	const char *path = graph_text(item, "path");
	bool flash = json_is_true(json_object_get(item, "flash"));
	int same = is_same(item);

	if (same == 1 && !flash)
		return 0;
	if (!flash && !copy)
		return bm_fail(
			error, same ? BM_E_NOT_FOUND : BM_E_FOREIGN,
			"machine %s has %s, which %s on the other host: put it there, let it "
			"be copied by --copy-media, or eject it",
			m->machine, path, same ? "is not there" : "is another one");
	if (same == 0 && !overwrite)
		return bm_fail(error, BM_E_EXISTS,
			       "machine %s has %s, and the other host has another %s; --overwrite "
			       "replaces it",
			       m->machine, path, path);
	if (!may_be_at(m, path))
		return bm_fail(error, BM_E_ACCESS,
			       "%s of machine %s may not be put there: on that host, \"blockmirror "
			       "peer allow\" has no --receive for its folder",
			       path, m->machine);
	return same != 1;
}

int media_check(struct move *m, json_t *params, struct bm_error *error)
{
	json_t *list = json_object_get(params, "list"), *item, *want = json_array();
	bool copy = json_is_true(json_object_get(params, "copy")),
	     overwrite = json_is_true(json_object_get(params, "overwrite"));
	size_t i;
	int r = 0;

	json_array_foreach(list, i, item) {
		if (r >= 0)
			r = look_at(m, item, copy, overwrite, error);
		if (r > 0) {
			json_array_append_new(want, json_integer((json_int_t)i));
			json_object_set_new(item, "new", json_boolean(is_same(item) == -ENOENT));
		}
	}
	if (r < 0) {
		json_decref(want);
		return r;
	}
	json_object_set(m->plan, "media", list);
	json_object_set_new(m->plan, "want", want);
	return move_save(m, error);
}

/* The item of that call, if it was wanted. */
static const json_t *wanted(const struct move *m, const json_t *params)
{
	json_int_t number = json_integer_value(json_object_get(params, "item"));
	json_t *each;
	size_t i;

	json_array_foreach(json_object_get(m->plan, "want"), i, each) {
		if (json_integer_value(each) == number)
			return json_array_get(json_object_get(m->plan, "media"), (size_t)number);
	}
	return NULL;
}

static int complete(const json_t *item, int fd, const char *made, struct bm_error *error)
{
	const char *path = graph_text(item, "path");
	char hash[MEDIA_HASH] = "";
	int r = media_hash(fd, hash);

	if (!r && strcmp(hash, graph_text(item, "hash")) != 0)
		return bm_fail(error, BM_E_DIFFERED, "%s has changed while it was copied", path);
	if (!r && fsync(fd) < 0)
		r = -errno;
	if (!r)
		r = bm_rename_durably(made, path);
	return r < 0 ? bm_fail_errno(error, r, "cannot write %s", path) : 0;
}

int media_write(struct move *m, json_t *params, struct bm_error *error)
{
	const json_t *item = wanted(m, params);
	const char *data = graph_text(params, "data"), *path = graph_text(item, "path");
	json_int_t at = json_integer_value(json_object_get(params, "at")),
		   size = json_integer_value(json_object_get(item, "size"));
	const gnutls_datum_t text = {(unsigned char *)data, (unsigned)strlen(data)};
	bm_free char *made = NULL;
	gnutls_datum_t raw = {0};
	bm_close int fd = -1;
	int r = 0;

	if (!item || at < 0 || at > size)
		return bm_fail(error, BM_E_USAGE, "no such image is wanted");
	made = beside(m, path);
	fd = open(made, O_RDWR | O_CLOEXEC | O_NOFOLLOW | (at ? 0 : O_CREAT | O_TRUNC),
		  (mode_t)json_integer_value(json_object_get(item, "mode")) & 0777);
	if (fd < 0)
		return bm_fail_errno(error, errno, "cannot create %s", made);
	if (text.size && gnutls_base64_decode2(&text, &raw) < 0)
		return bm_fail(error, BM_E_USAGE, "what is to be written is not base64");
	if (raw.size && ((json_int_t)raw.size > size - at ||
			 pwrite(fd, raw.data, raw.size, at) != (ssize_t)raw.size))
		r = bm_fail(error, BM_E_ENOSPC, "cannot write %s", made);
	gnutls_free(raw.data);
	if (!r && json_is_true(json_object_get(params, "last")))
		r = complete(item, fd, made, error);
	return r;
}

void media_undo(struct move *m)
{
	json_t *each;
	size_t i;

	json_array_foreach(json_object_get(m->plan, "want"), i, each) {
		const json_t *item = json_array_get(json_object_get(m->plan, "media"),
						    (size_t)json_integer_value(each));
		bm_free char *made = beside(m, graph_text(item, "path"));

		unlink(made);
		if (json_is_true(json_object_get(item, "new")))
			unlink(graph_text(item, "path"));
	}
}
