/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Pre-shared keys. They are read whole and kept, so that a handshake reads no file, and one that is
 * half written or wrong is noticed before it replaces a good one.
 */
#include "blockmirror/base/psk.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"

enum {
	LONGEST_FILE = 256 << 10,
	LONGEST_USER = 127, /* what GnuTLS takes */
	SHORTEST_KEY = 16,  /* bytes: whoever records a handshake can try all shorter ones */
	LONGEST_KEY = 64,
};

struct key {
	struct key *next; /* in the order of the file */
	size_t user_length, length;
	char user[LONGEST_USER + 1];
	uint8_t bytes[LONGEST_KEY];
};

struct bm_psk {
	struct key *first;
};

void bm_psk_free(struct bm_psk *psk)
{
	if (!psk)
		return;
	while (psk->first) {
		struct key *key = psk->first;

		psk->first = key->next;
		explicit_bzero(key, sizeof(*key));
		free(key);
	}
	free(psk);
}

static int digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)tolower((unsigned char)c);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Returns what is wrong, or NULL. */
static const char *parse_line(struct key *key, const char *line)
{
	const char *colon = strchr(line, ':'), *hex = colon ? colon + 1 : "";
	size_t user = colon ? (size_t)(colon - line) : 0, digits = strlen(hex);

	if (!user)
		return "USER:HEXKEY is expected";
	if (user > LONGEST_USER)
		return "the user's name is too long";
	if (digits % 2 || digits < 2ul * SHORTEST_KEY || digits > 2ul * LONGEST_KEY)
		return "a key has 32 to 128 hexadecimal digits (psktool makes good ones)";
	memcpy(key->user, line, user);
	key->user_length = user;
	key->length = digits / 2;
	for (size_t i = 0; i < key->length; i++) {
		int high = digit(hex[2 * i]), low = digit(hex[2 * i + 1]);

		if (high < 0 || low < 0)
			return "the key is not hexadecimal";
		key->bytes[i] = (uint8_t)(high << 4 | low);
	}
	return NULL;
}

static bool has_user(const struct bm_psk *psk, const char *user)
{
	for (const struct key *key = psk->first; key; key = key->next)
		if (!strcmp(key->user, user))
			return true;
	return false;
}

/* Cuts text into lines. Empty ones and those that begin with # are left out. */
static int parse(struct bm_psk *psk, char *text, const char *path, struct bm_error *error)
{
	struct key **end = &psk->first;
	unsigned number = 0;

	for (char *line; (line = strsep(&text, "\n"));) {
		size_t length = strlen(line);
		const char *wrong;

		number++;
		while (length && isspace((unsigned char)line[length - 1]))
			line[--length] = '\0';
		if (!length || *line == '#')
			continue;
		*end = calloc(1, sizeof(**end));
		if (!*end)
			return bm_fail_errno(error, ENOMEM, "cannot read %s", path);
		wrong = parse_line(*end, line);
		if (!wrong && end != &psk->first) {
			struct key *key = *end;

			*end = NULL; /* not to be found itself */
			wrong = has_user(psk, key->user) ? "this user has a key already" : NULL;
			*end = key;
		}
		if (wrong)
			return bm_fail(error, BM_E_USAGE, "%s, line %u: %s", path, number, wrong);
		end = &(*end)->next;
	}
	return psk->first ? 0 : bm_fail(error, BM_E_USAGE, "%s has no keys in it", path);
}

int bm_psk_read(const char *path, struct bm_psk **psk, struct bm_error *error)
{
	struct bm_psk *made = calloc(1, sizeof(*made));
	bm_free char *text = NULL;
	size_t length;
	int r;

	if (!made)
		return bm_fail_errno(error, ENOMEM, "cannot read %s", path);
	r = bm_read_text(path, LONGEST_FILE, &text);
	if (r < 0) {
		bm_psk_free(made);
		return bm_fail_errno(error, r, "cannot read %s", path);
	}
	length = strlen(text);
	r = parse(made, text, path, error);
	explicit_bzero(text, length);
	if (r < 0)
		bm_psk_free(made);
	else
		*psk = made;
	return r;
}

int bm_psk_find(const struct bm_psk *psk, const gnutls_datum_t *user, gnutls_datum_t *out)
{
	const struct key *found = NULL;
	char name[LONGEST_USER + 1] = "";

	if (user->size > LONGEST_USER)
		return -ENOENT;
	memcpy(name, user->data, user->size);
	for (const struct key *key = psk->first; key; key = key->next)
		if (!gnutls_memcmp(key->user, name, sizeof(name)) && key->user_length == user->size)
			found = key;
	if (!found)
		return -ENOENT;
	out->data = gnutls_malloc(found->length);
	if (!out->data)
		return -ENOMEM;
	memcpy(out->data, found->bytes, found->length);
	out->size = (unsigned)found->length;
	return 0;
}

const char *bm_psk_first(const struct bm_psk *psk)
{
	return psk->first->user;
}
