/* SPDX-License-Identifier: BSD-3-Clause */
/* Image URIs, cut into their parts. */
#include "blockmirror/base/uri.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"

static const struct {
	const char *prefix;
	enum bm_scheme scheme;
} schemes[] = {
	{"file", BM_SCHEME_FILE},    {"nbd", BM_SCHEME_NBD},          {"nbds", BM_SCHEME_NBD},
	{"nbd+unix", BM_SCHEME_NBD}, {"nbds+unix", BM_SCHEME_NBD},    {"iscsi", BM_SCHEME_ISCSI},
	{"mem", BM_SCHEME_MEM},      {"fault", BM_SCHEME_FAULT},      {"bm", BM_SCHEME_PEER},
	{"qcow2", BM_SCHEME_FORMAT}, {"vmdk", BM_SCHEME_FORMAT},      {"vhdx", BM_SCHEME_FORMAT},
	{"vdi", BM_SCHEME_FORMAT},   {"vpc", BM_SCHEME_FORMAT},       {"qed", BM_SCHEME_FORMAT},
	{"qcow", BM_SCHEME_FORMAT},  {"parallels", BM_SCHEME_FORMAT}, {"dmg", BM_SCHEME_FORMAT},
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

static int find_entry(const char *text, size_t length)
{
	for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++)
		if (strlen(schemes[i].prefix) == length &&
		    !strncmp(text, schemes[i].prefix, length))
			return (int)i;
	return -1;
}

static int find_scheme(const char *text, size_t length)
{
	int i = find_entry(text, length);

	return i < 0 ? -1 : (int)schemes[i].scheme;
}

static bool has_path(int scheme)
{
	return scheme == BM_SCHEME_FILE || scheme == BM_SCHEME_FORMAT;
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
	char shown[200];

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
			return bm_fail(error, BM_E_URI,
				       "%s: unknown scheme \"%.*s\"; a path, file:, nbd:, nbds:, "
				       "nbd+unix:, nbds+unix:, iscsi:, bm: and formats (qcow2:, "
				       "vmdk:, vhdx:, vpc:) are known (a path with a "
				       "colon: write ./ before it)",
				       bm_uri_redact(text, shown, sizeof(shown)), (int)length,
				       text);
		uri->rest += length + 1;
		if (has_path(scheme))
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
	if (!has_path(find_scheme(text, length)))
		return NULL;
	return file_rest(text + length + 1);
}

const char *bm_uri_format(const char *text)
{
	int i = find_entry(text, scheme_length(text));

	return i >= 0 && schemes[i].scheme == BM_SCHEME_FORMAT ? schemes[i].prefix : NULL;
}

char *bm_uri_like(const char *text, const char *path)
{
	const char *format = bm_uri_format(text);
	char *result;

	if (!format)
		return strdup(path);
	return asprintf(&result, "%s:%s", format, path) < 0 ? NULL : result;
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

/* The value of a parameter of the query, and its length; NULL when there is none of that name. */
static const char *parameter(const char *text, const char *name, size_t *length)
{
	const char *at = strchr(text, '?');
	size_t n = strlen(name);

	while (at && *at) {
		at++;
		*length = strcspn(at, "&;#");
		if (!strncmp(at, name, n) && at[n] == '=') {
			*length -= n + 1;
			return at + n + 1;
		}
		at += *length;
	}
	return NULL;
}

char *bm_uri_parameter(const char *text, const char *name)
{
	size_t length;
	const char *part = parameter(text, name, &length);
	char *value = part ? strndup(part, length) : NULL;

	if (value)
		decode(value);
	return value;
}

char *bm_uri_socket(const char *text)
{
	size_t n = scheme_length(text);

	return n < 5 || strncmp(text + n - 5, "+unix", 5) ? NULL : bm_uri_parameter(text, "socket");
}

/* What must not be shown of text: [start, end), none when it is empty. */
struct secret {
	size_t start, end;
};

/*
 * A password before the host, as libiscsi reads it: USER%PASSWORD@ or USER:PASSWORD@. What looks
 * like one is hidden whatever the scheme, also behind the first one (fault:SPEC;URI).
 */
static struct secret user_password(const char *text)
{
	const char *iscsi = strcasestr(text, "iscsi:"),
		   *user = iscsi ? iscsi + 6 : strstr(text, "://");
	const char *at, *end, *mark;

	if (!user)
		return (struct secret){0, 0};
	user += strspn(user, ":/");
	end = user + strcspn(user, "?");
	at = memchr(user, '@', (size_t)(end - user));
	/* Elsewhere a path may have an @. A password of libiscsi's may have a slash. */
	if (at && !iscsi && memchr(user, '/', (size_t)(at - user)))
		at = NULL;
	mark = at ? memchr(user, '%', (size_t)(at - user)) : NULL;
	if (at && !mark)
		mark = memchr(user, ':', (size_t)(at - user));
	if (!mark)
		return (struct secret){0, 0};
	return (struct secret){(size_t)(mark + 1 - text), (size_t)(at - text)};
}

static struct secret target_password(const char *text)
{
	size_t length;
	const char *value = parameter(text, "target_password", &length);

	if (!value)
		return (struct secret){0, 0};
	return (struct secret){(size_t)(value - text), (size_t)(value - text) + length};
}

/* Both, in the order in which they stand; what overlaps is one. One that is not there is empty. */
static void find_secrets(const char *text, struct secret s[2])
{
	struct secret user = user_password(text), target = target_password(text);
	bool swap = target.end && (!user.end || target.start < user.start);

	s[0] = swap ? target : user;
	s[1] = swap ? user : target;
	if (s[1].end && s[1].start <= s[0].end) {
		s[0].end = s[0].end > s[1].end ? s[0].end : s[1].end;
		s[1].end = 0;
	}
	if (!s[1].end)
		s[1].start = s[1].end = strlen(text);
}

int bm_uri_peer(const char *text, char **host, char **path, struct bm_error *error)
{
	const char *rest = strncmp(text, "bm://", 5) ? "" : text + 5, *slash = strchr(rest, '/');

	*host = *path = NULL;
	if (!slash || slash == rest || !slash[1])
		return bm_fail(error, BM_E_URI, "%.200s: bm://HOST/PATH is wanted", text);
	*host = strndup(rest, (size_t)(slash - rest));
	*path = strdup(slash);
	if (*host && *path)
		return 0;
	free(*host);
	free(*path);
	*host = *path = NULL;
	return bm_fail_errno(error, ENOMEM, "%.200s", text);
}

/* As a user has it: bm://HOST/PATH. */
static bool show_peer(const char *text, char *out, size_t size)
{
	bm_free char *host = bm_uri_parameter(text, BM_URI_HOST);
	bm_free char *path = host ? bm_uri_parameter(text, BM_URI_PATH) : NULL;

	if (!path || strncmp(text, "nbds:", 5) != 0)
		return false;
	snprintf(out, size, "bm://%s%s", host, path);
	return true;
}

char *bm_uri_redact(const char *text, char *out, size_t size)
{
	struct secret s[2];

	if (show_peer(text, out, size))
		return out;
	find_secrets(text, s);
	snprintf(out, size, "%.*s%s%.*s%s%s", (int)s[0].start, text,
		 s[0].end > s[0].start ? "***" : "", (int)(s[1].start - s[0].end), text + s[0].end,
		 s[1].end > s[1].start ? "***" : "", text + s[1].end);
	return out;
}

void bm_uri_hide(char *text)
{
	struct secret s[2];

	find_secrets(text, s);
	for (int i = 0; i < 2; i++)
		memset(text + s[i].start, '*', s[i].end - s[i].start);
}

/* The working directory and path, which does not begin with a slash. */
static char *from_here(const char *path)
{
	bm_free char *here = getcwd(NULL, 0);
	char *result;

	if (!here || asprintf(&result, "%s/%s", strcmp(here, "/") ? here : "", path) < 0)
		return NULL;
	return result;
}

char *bm_uri_escape(const char *text)
{
	char *result = malloc(3 * strlen(text) + 1), *to = result;

	if (!result)
		return NULL;
	for (const char *from = text; *from; from++)
		to += isalnum((unsigned char)*from) || strchr("/-._~", *from)
			      ? sprintf(to, "%c", *from)
			      : sprintf(to, "%%%02X", (unsigned char)*from);
	*to = '\0';
	return result;
}

/* The working directory as a part of a URI, with a slash at its end. */
static char *escaped_here(void)
{
	bm_free char *here = getcwd(NULL, 0);
	bm_free char *escaped = here ? bm_uri_escape(strcmp(here, "/") ? here : "") : NULL;
	char *result;

	return !escaped || asprintf(&result, "%s/", escaped) < 0 ? NULL : result;
}

/* Where the path in a parameter of text begins, when it begins here and not at the root. */
static const char *relative_part(const char *text, const char *name)
{
	size_t length;
	const char *part = parameter(text, name, &length);

	return part && length && *part != '/' && strncasecmp(part, "%2f", 3) ? part : NULL;
}

/* An NBD URI names files of this host: its socket, and what TLS needs. */
static char *absolute_parameters(const char *text)
{
	static const char *const names[] = {"socket", "tls-certificates", "tls-psk-file"};
	bm_free char *here = escaped_here();
	char *result = here ? strdup(text) : NULL;

	for (size_t i = 0; result && i < sizeof(names) / sizeof(names[0]); i++) {
		bm_free char *before = result;
		const char *part = relative_part(before, names[i]);

		if (!part)
			result = bm_steal(before);
		else if (asprintf(&result, "%.*s%s%s", (int)(part - before), before, here, part) <
			 0)
			result = NULL;
	}
	return result;
}

char *bm_uri_absolute(const char *text)
{
	const char *path = bm_uri_path(text);
	size_t length = scheme_length(text);

	if (path) {
		bm_free char *absolute = *path == '/' || !*path ? strdup(path) : from_here(path);

		return absolute ? bm_uri_like(text, absolute) : NULL;
	}
	return find_scheme(text, length) == BM_SCHEME_NBD ? absolute_parameters(text)
							  : strdup(text);
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
	bm_free char *real = NULL;

	if (!path)
		return bm_uri_absolute(text);
	real = realpath(path, NULL);
	if (!real && errno == ENOENT)
		real = canonical_new(path);
	return real ? bm_uri_like(text, real) : NULL;
}
