/* SPDX-License-Identifier: BSD-3-Clause */
/* A machine's images that are no disks of ours, on the host that it comes from. */
#include "blockmirror/machine/move_media.h"

#include <errno.h>
#include <fcntl.h>
#include <gnutls/crypto.h>
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

#define LOOK 600000000000ull /* ns: the other host reads them all */

int media_hash(int fd, char hash[MEDIA_HASH])
{
	bm_free char *data = bm_need(malloc(MEDIA_PIECE));
	unsigned char digest[(MEDIA_HASH - 1) / 2];
	gnutls_hash_hd_t state;
	off_t at = 0;
	ssize_t n;

	if (gnutls_hash_init(&state, GNUTLS_DIG_SHA256) < 0)
		return -ENOMEM;
	while ((n = pread(fd, data, MEDIA_PIECE, at)) > 0) {
		gnutls_hash(state, data, (size_t)n);
		at += n;
	}
	gnutls_hash_deinit(state, digest);
	for (size_t i = 0; i < sizeof(digest); i++)
		snprintf(hash + i * 2, 3, "%02x", digest[i]);
	return n < 0 ? -errno : 0;
}

/* Which images there are */

/* The one file that an image is, malloc()ed; NULL: it is none, or more than that. */
static char *file_of(const json_t *image)
{
	const char *name = graph_text(image, "filename"), *path;
	json_t *j, *inner;
	char *found = NULL;

	if (json_object_get(image, "backing-image"))
		return NULL;
	if (*name == '/')
		return bm_need(strdup(name));
	j = !strncmp(name, "json:", 5) ? json_loads(name + 5, 0, NULL) : NULL;
	inner = j;
	while (json_is_object(json_object_get(inner, "file")))
		inner = json_object_get(inner, "file");
	path = graph_text(inner, "filename");
	if (!strcmp(graph_text(inner, "driver"), "file") && *path == '/')
		found = bm_need(strdup(path));
	json_decref(j);
	return found;
}

static bool is_flash(const json_t *device)
{
	return !strncmp(graph_text(device, "device"), "pflash", 6) ||
	       strstr(graph_text(device, "qdev"), ".flash");
}

int media_take(const json_t *device, json_t *list)
{
	const json_t *inserted = json_object_get(device, "inserted");
	bool only_read = json_is_true(json_object_get(inserted, "ro"));
	bm_free char *path = file_of(json_object_get(inserted, "image"));
	struct stat st;

	if (!path || stat(path, &st) < 0 || !S_ISREG(st.st_mode) ||
	    (!only_read && !is_flash(device)))
		return 0;
	json_array_append_new(list, json_pack("{s:s s:b}", "path", path, "flash", (int)!only_read));
	return 1;
}

/* What the target is to compare */

static int describe(json_t *item, struct bm_error *error)
{
	const char *path = graph_text(item, "path");
	bm_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	char hash[MEDIA_HASH];
	struct stat st;
	int r = fd < 0 || fstat(fd, &st) < 0 ? -errno : media_hash(fd, hash);

	if (r < 0)
		return bm_fail_errno(error, r, "cannot read %s, which the machine has", path);
	json_object_set_new(item, "size", json_integer(st.st_size));
	json_object_set_new(item, "mode", json_integer(st.st_mode & 0777));
	json_object_set_new(item, "hash", json_string(hash));
	return 0;
}

static int send_piece(struct source *s, size_t item, off_t at, const char *data, size_t length,
		      bool last, struct bm_error *error)
{
	const gnutls_datum_t raw = {(unsigned char *)data, (unsigned)length};
	gnutls_datum_t text = {0};
	int r;

	if (gnutls_base64_encode2(&raw, &text) < 0)
		bm_need(NULL);
	r = source_call(s, "media-write",
			json_pack("{s:I s:I s:s# s:b}", "item", (json_int_t)item, "at",
				  (json_int_t)at, "data", (const char *)text.data,
				  (size_t)text.size, "last", (int)last),
			LOOK, NULL, error);
	gnutls_free(text.data);
	return r;
}

static int copy(struct source *s, size_t item, struct bm_error *error)
{
	const char *path =
		graph_text(json_array_get(json_object_get(s->m->plan, "media"), item), "path");
	bm_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	bm_free char *data = bm_need(malloc(MEDIA_PIECE));
	off_t at = 0;
	ssize_t n = 1;
	int r = 0;

	if (fd < 0)
		return bm_fail_errno(error, errno, "cannot read %s", path);
	while (!r && n > 0) {
		n = pread(fd, data, MEDIA_PIECE, at);
		if (n < 0)
			return bm_fail_errno(error, errno, "cannot read %s", path);
		r = send_piece(s, item, at, data, (size_t)n, !n, error);
		at += n;
		if (!r)
			r = move_may_go_on(s->m, error);
	}
	return r;
}

int media_pass(struct source *s, struct bm_error *error)
{
	const json_t *options = json_object_get(s->m->plan, "options");
	json_t *list = json_object_get(s->m->plan, "media"), *item, *result = NULL;
	size_t i;
	int r = 0;

	json_array_foreach(list, i, item)
		if (!r)
			r = describe(item, error);
	if (r < 0 || !json_array_size(list))
		return r;
	r = source_call(s, "media",
			json_pack("{s:O s:b s:b}", "list", list, "copy",
				  json_is_true(json_object_get(options, "copy_media")), "overwrite",
				  (int)s->options.overwrite),
			LOOK, &result, error);
	json_array_foreach(json_object_get(result, "want"), i, item)
		if (!r)
			r = copy(s, (size_t)json_integer_value(item), error);
	json_decref(result);
	return r;
}

void media_leave(struct move *m)
{
	json_t *item;
	size_t i;

	json_array_foreach(json_object_get(m->plan, "media"), i, item) {
		const char *path = graph_text(item, "path");
		bm_free char *away = NULL;

		if (!json_is_true(json_object_get(item, "flash")))
			continue;
		if (asprintf(&away, "%s.away", path) < 0)
			away = bm_need(NULL);
		if (!access(path, F_OK) && bm_rename_durably(path, away) < 0)
			bm_log(BM_LOG_WARN, "%s: %s is not the machine's any more, and is there",
			       m->id, path);
	}
}
