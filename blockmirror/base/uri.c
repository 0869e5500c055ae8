/* SPDX-License-Identifier: BSD-3-Clause */
/* Image URIs, cut into their parts. */
#include "blockmirror/base/uri.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"

static const struct {
	const char *prefix;
	enum bm_scheme scheme;
} schemes[] = {
	{"file", BM_SCHEME_FILE},    {"nbd", BM_SCHEME_NBD},       {"nbds", BM_SCHEME_NBD},
	{"nbd+unix", BM_SCHEME_NBD}, {"nbds+unix", BM_SCHEME_NBD}, {"iscsi", BM_SCHEME_ISCSI},
	{"mem", BM_SCHEME_MEM},      {"fault", BM_SCHEME_FAULT},
};

/* The length of "scheme" in "scheme:…" (RFC 3986 3.1), 0 when text starts with none. */
static size_t scheme_length(const char *text)
{
	size_t n = 0;

	if (!isalpha((unsigned char)text[0]))
		return 0;
	while (isalnum((unsigned char)text[n]) || (text[n] && strchr("+-.", text[n])))
		n++;
	return text[n] == ':' ? n : 0;
}

static int find_scheme(const char *text, size_t length)
{
	for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++)
		if (strlen(schemes[i].prefix) == length &&
		    !strncmp(text, schemes[i].prefix, length))
			return schemes[i].scheme;
	return -1;
}

/* "file:///a" and "file:/a" and "file:a" */
static const char *file_rest(const char *rest)
{
	return strncmp(rest, "//", 2) ? rest : rest + 2;
}

int bm_uri_parse(const char *text, struct bm_uri **out, struct bm_error *error)
{
	bm_free struct bm_uri *uri = NULL;
	size_t size = strlen(text) + 1, length = scheme_length(text);
	int scheme = BM_SCHEME_FILE;

	if (size == 1)
		return bm_fail(error, BM_E_URI, "the image's name is empty");
	if (size > PATH_MAX)
		return bm_fail(error, BM_E_URI, "the image's name is longer than %d bytes",
			       PATH_MAX);
	uri = malloc(sizeof(*uri) + size);
	if (!uri)
		return bm_fail_errno(error, ENOMEM, "cannot open %.100s", text);
	memcpy(uri->text, text, size);
	uri->rest = uri->text;
	if (length) {
		scheme = find_scheme(text, length);
		if (scheme < 0)
			return bm_fail(
				error, BM_E_URI,
				"%.200s: unknown scheme \"%.*s\"; a path, file:, nbd:, nbds:, "
				"nbd+unix:, nbds+unix: and iscsi: are known (a path with a colon: "
				"./%.100s)",
				text, (int)length, text, text);
		uri->rest += length + 1;
		if (scheme == BM_SCHEME_FILE)
			uri->rest = file_rest(uri->rest);
	}
	uri->scheme = (enum bm_scheme)scheme;
	if (!*uri->rest)
		return bm_fail(error, BM_E_URI, "%.200s: nothing follows the scheme", text);
	*out = bm_steal(uri);
	return 0;
}

const char *bm_uri_path(const char *text)
{
	size_t length = scheme_length(text);

	if (!length)
		return text;
	if (find_scheme(text, length) != BM_SCHEME_FILE)
		return NULL;
	return file_rest(text + length + 1);
}

/* Takes the %XX out (RFC 3986 2.1). */
static void decode(char *text)
{
	char *to = text, digits[3] = "";

	for (const char *from = text; *from; from++) {
		if (*from == '%' && isxdigit((unsigned char)from[1]) &&
		    isxdigit((unsigned char)from[2])) {
			memcpy(digits, from + 1, 2);
			*to++ = (char)strtoul(digits, NULL, 16);
			from += 2;
		} else {
			*to++ = *from;
		}
	}
	*to = '\0';
}

char *bm_uri_socket(const char *text)
{
	size_t length = scheme_length(text);
	const char *query = strchr(text, '?'), *socket;
	char *path;

	if (length < 5 || strncmp(text + length - 5, "+unix", 5) || !query)
		return NULL;
	socket = strstr(query, "socket=");
	if (!socket || (socket[-1] != '?' && socket[-1] != '&'))
		return NULL;
	socket += strlen("socket=");
	path = strndup(socket, strcspn(socket, "&#"));
	if (path)
		decode(path);
	return path;
}

char *bm_uri_redact(const char *text, char *out, size_t size)
{
	/* As libiscsi reads it: [USER%PASSWORD@] or [USER:PASSWORD@], ?target_password=PASSWORD. */
	const char *user = strncmp(text, "iscsi:", 6) ? NULL : text + 6;
	const char *query = user ? strchr(user, '?') : NULL;
	const char *at = user ? strchr(user, '@') : NULL, *mark = NULL;
	const char *first = text, *first_end = text;
	const char *second = text + strlen(text), *second_end = second;

	if (at && (!query || at < query))
		mark = memchr(user, '%', (size_t)(at - user));
	if (at && (!query || at < query) && !mark)
		mark = memchr(user, ':', (size_t)(at - user));
	if (mark) {
		first = mark + 1;
		first_end = at;
	}
	mark = query ? strstr(query, "target_password=") : NULL;
	if (mark) {
		second = mark + strlen("target_password=");
		second_end = second + strcspn(second, "&");
	}
	snprintf(out, size, "%.*s%s%.*s%s%s", (int)(first - text), text,
		 first_end > first ? "***" : "", (int)(second - first_end), first_end,
		 second_end > second ? "***" : "", second_end);
	return out;
}

/* What realpath() gives for a file that is to be created: its folder's path, and its name. */
static char *canonical_new(const char *path)
{
	bm_free char *copy = strdup(path), *folder = NULL;
	const char *name = path, *slash = strrchr(path, '/');
	char *result;

	if (!copy)
		return NULL;
	if (slash) {
		copy[slash - path] = '\0';
		name = slash + 1;
	}
	folder = realpath(!slash ? "." : *copy ? copy : "/", NULL);
	if (!folder)
		return NULL;
	if (asprintf(&result, "%s/%s", strcmp(folder, "/") ? folder : "", name) < 0)
		return NULL;
	return result;
}

char *bm_uri_canonical(const char *text)
{
	const char *path = bm_uri_path(text);
	char *real;

	if (!path)
		return strdup(text);
	real = realpath(path, NULL);
	if (!real && errno == ENOENT)
		real = canonical_new(path);
	return real;
}
