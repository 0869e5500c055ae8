/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Storage that another host has a disk on, and that we are to reach, too: whether it may have us
 * open that. What a peer names is a path or a URI, and what is allowed to it are such (peer allow
 * --shared): a folder and all that is in it, or a URI and what continues it behind a whole part of
 * it. A peer can choose what we read and, by and by, write to; so nothing else is opened, and
 * nobody else asked.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/daemon/peer.h"

enum { MOST = 32 };

int share_check_list(const json_t *list, struct bm_error *error)
{
	const json_t *entry;
	size_t i;

	if (list && !json_is_array(list))
		return bm_fail(error, BM_E_USAGE, "shared: a list of paths and URIs is wanted");
	if (json_array_size(list) > MOST)
		return bm_fail(error, BM_E_USAGE, "shared: more than %d entries", MOST);
	json_array_foreach(list, i, entry) {
		const char *text = json_string_value(entry);

		if (!text ||
		    (*text != '/' && strncmp(text, "nbd", 3) && strncmp(text, "iscsi:", 6)))
			return bm_fail(
				error, BM_E_USAGE,
				"shared: %s: an absolute path is wanted, or a URI of nbd: or "
				"iscsi:",
				text ? text : "(no string)");
	}
	return 0;
}

/* Both without links. The device, or the file, may be named itself. */
static bool has_path(const char *allowed, const char *path)
{
	bm_free char *real = *allowed == '/' ? realpath(allowed, NULL) : NULL;
	size_t n = real ? strlen(real) : 0;

	return real &&
	       (!strcmp(real, "/") || (!strncmp(path, real, n) && (!path[n] || path[n] == '/')));
}

/*
 * Who logs in, and by which password, is not what is asked: the server is. But a parameter names
 * files of ours, so it is allowed only as part of the whole.
 */
static char *without_user(const char *uri)
{
	const char *start = strstr(uri, "://"), *end, *at;
	char *plain = strdup(uri);

	if (!start || !plain)
		return plain;
	start += 3;
	end = start + strcspn(start, "/?#");
	at = memrchr(start, '@', (size_t)(end - start));
	if (at)
		memmove(plain + (start - uri), at + 1, strlen(at + 1) + 1);
	return plain;
}

static bool has_uri(const char *allowed, const char *uri)
{
	bm_free char *plain = without_user(uri);
	size_t n = strlen(allowed);

	if (!strcmp(allowed, uri))
		return true;
	if (!plain || !n || *allowed == '/' || strpbrk(plain, "?#%\\") || strstr(plain, "/.") ||
	    strncmp(plain, allowed, n) != 0)
		return false;
	return !plain[n] || plain[n] == '/' || (allowed[n - 1] == '/' && strstr(allowed, "://"));
}

static bool is_allowed(const json_t *list, const char *real, bool path)
{
	const json_t *entry;
	size_t i;

	json_array_foreach(list, i, entry) {
		const char *allowed = json_string_value(entry);

		if (path ? has_path(allowed, real) : has_uri(allowed, real))
			return true;
	}
	return false;
}

int share_find(const json_t *list, const char *uri, char **found, struct bm_error *error)
{
	bool path = *uri == '/';
	bm_free char *real = path ? realpath(uri, NULL) : strdup(uri);

	/* What is not there, and what is not for the peer, look alike to it. */
	if (!real || !is_allowed(list, real, path))
		return -EACCES;
	if (strlen(real) >= PATH_MAX / 2)
		return bm_fail(error, BM_E_USAGE, "the name is too long");
	*found = bm_steal(real);
	return 0;
}
