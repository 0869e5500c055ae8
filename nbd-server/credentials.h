/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the server proves itself with, and whom it believes: certificates, pre-shared keys, and
 * which ciphers are taken. All that GnuTLS is told before a handshake is told here.
 *
 * Loop thread. Reading blocks for as long as small files do.
 */
#ifndef NBD_SERVER_CREDENTIALS_H
#define NBD_SERVER_CREDENTIALS_H

#include <gnutls/gnutls.h>

#include "nbd-server/server.h"

struct nbd_keyring;     /* the files, and what was last read from them */
struct nbd_credentials; /* one state of them; sessions hold on to theirs */

/* Copies options and reads the files. */
int nbd_keyring_new(const struct nbd_tls_options *options, struct nbd_keyring **keyring,
		    struct bm_error *error);
void nbd_keyring_free(struct nbd_keyring *keyring); /* NULL is allowed */

/* Reads the files again. What is in use stays so when they are not all right. */
int nbd_keyring_reload(struct nbd_keyring *keyring, struct bm_error *error);

/* What is to be used now: files that have changed are read again. Not a reference. */
struct nbd_credentials *nbd_keyring_current(struct nbd_keyring *keyring);

struct nbd_credentials *nbd_credentials_ref(struct nbd_credentials *credentials);
void nbd_credentials_unref(struct nbd_credentials *credentials); /* NULL is allowed */

/* Prepares a new session of a server; credentials must outlive it. Returns 0 or GnuTLS's error. */
int nbd_credentials_apply(struct nbd_credentials *credentials, gnutls_session_t session);

/* The priority string when none is given, for processors that have AES instructions or not. */
const char *nbd_tls_priority(bool aes);

#endif
