/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the server proves itself with, and whom it believes: certificates, pre-shared keys, and
 * which ciphers are taken. All that GnuTLS is told before a handshake is told here.
 *
 * Loop thread. Reading blocks for as long as small files do.
 */
#ifndef BM_BASE_CREDENTIALS_H
#define BM_BASE_CREDENTIALS_H

#include <gnutls/gnutls.h>

#include "blockmirror/base/tls_options.h"
#include "blockmirror/error.h"

struct bm_keyring;     /* the files, and what was last read from them */
struct bm_credentials; /* one state of them; sessions hold on to theirs */

/* Copies options and reads the files. */
int bm_keyring_new(const struct bm_tls_options *options, struct bm_keyring **keyring,
		   struct bm_error *error);
void bm_keyring_free(struct bm_keyring *keyring); /* NULL is allowed */

/* Reads the files again. What is in use stays so when they are not all right. */
int bm_keyring_reload(struct bm_keyring *keyring, struct bm_error *error);

/* What is to be used now: files that have changed are read again. Not a reference. */
struct bm_credentials *bm_keyring_current(struct bm_keyring *keyring);

struct bm_credentials *bm_credentials_ref(struct bm_credentials *credentials);
void bm_credentials_unref(struct bm_credentials *credentials); /* NULL is allowed */

/* Prepares a new session of a server; credentials must outlive it. Returns 0 or GnuTLS's error. */
int bm_credentials_apply(struct bm_credentials *credentials, gnutls_session_t session);

/* The priority string when none is given, for processors that have AES instructions or not. */
const char *bm_tls_priority(bool aes);

#endif
