/* SPDX-License-Identifier: BSD-3-Clause */
/* Image URIs, cut into their parts. Parsing decides nothing about what exists. Any thread. */
#ifndef BM_BASE_URI_H
#define BM_BASE_URI_H

#include <stdbool.h>
#include <stddef.h>

#include "blockmirror/error.h"

enum bm_scheme {
	BM_SCHEME_FILE, /* PATH or file:PATH, file:///PATH */
	BM_SCHEME_NBD,  /* nbd nbds nbd+unix nbds+unix */
	BM_SCHEME_ISCSI,
	BM_SCHEME_MEM,   /* mem:SIZE */
	BM_SCHEME_FAULT, /* fault:SPEC;URI */
	BM_SCHEME_PEER,  /* bm://HOST/PATH: what a peer is asked for; no image yet */
	BM_SCHEME_FORMAT /* qcow2:PATH and others: an image in a format, by a helper */
};

/* Parameters of the NBD URI that comes of one: for us, not for NBD. */
#define BM_URI_HOST "peer"
#define BM_URI_PATH "path"

struct bm_uri {
	enum bm_scheme scheme;
	const char
		*rest; /* what follows the scheme: the path, the size, SPEC;URI; or all of text */
	char text[];   /* the whole, as given */
};

/* Frees with free(3). A path is taken as it is, with whatever characters it has. */
int bm_uri_parse(const char *text, struct bm_uri **uri, struct bm_error *error);

/*
 * A copy without passwords (iSCSI user%password@), for logs, errors and JSON; what came of a
 * bm: name is that name again. Returns out, which has room for size bytes.
 */
char *bm_uri_redact(const char *text, char *out, size_t size);

/* Overwrites passwords where they stand: others can read a program's arguments. */
void bm_uri_hide(char *text);

/*
 * text as a part of a URI: what is neither a letter, a digit, nor one of -._~/ is %XX. malloc()ed,
 * or NULL with errno set.
 */
char *bm_uri_escape(const char *text);

/*
 * The same from wherever it is looked at: a path, or those in an NBD URI (its socket, its TLS
 * files), begin at the root. Nothing is looked up, a slash at the end stays. malloc()ed, or NULL
 * with errno set.
 */
char *bm_uri_absolute(const char *text);

/*
 * Makes a path absolute and free of links and dots, so that a record and a lock mean the same
 * image tomorrow; other schemes are as bm_uri_absolute() has them. malloc()ed, or NULL with errno
 * set.
 */
char *bm_uri_canonical(const char *text);

/*
 * The path of the file in text, whatever its format, or NULL when text names something else. Points
 * into text.
 */
const char *bm_uri_path(const char *text);

/* "qcow2" of qcow2:PATH; NULL: text names an image without a format. */
const char *bm_uri_format(const char *text);

/*
 * path, in the format of the image that text names, if that has one. malloc()ed, or NULL with errno
 * set.
 */
char *bm_uri_like(const char *text, const char *path);

/* What a parameter behind the ? has for a value. malloc()ed, or NULL when there is none. */
char *bm_uri_parameter(const char *text, const char *name);

/* Of bm://HOST/PATH, both malloc()ed, and the path absolute. BM_E_URI, -ENOMEM. */
int bm_uri_peer(const char *text, char **host, char **path, struct bm_error *error);

/*
 * The path of the socket that an nbd+unix: or nbds+unix: URI connects to. malloc()ed, or NULL when
 * text names something else.
 */
char *bm_uri_socket(const char *text);

#endif
