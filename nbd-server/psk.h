/* SPDX-License-Identifier: BSD-3-Clause */
/* Pre-shared keys: a file of lines USER:HEXKEY, as psktool writes it. Loop thread; reading blocks.
 */
#ifndef NBD_SERVER_PSK_H
#define NBD_SERVER_PSK_H

#include <gnutls/gnutls.h>

#include "blockmirror/error.h"

struct nbd_psk;

/* Errors tell the number of a line, never what is in it. */
int nbd_psk_read(const char *path, struct nbd_psk **psk, struct bm_error *error);

/* NULL is allowed. */
void nbd_psk_free(struct nbd_psk *psk);

/*
 * Copies user's key for GnuTLS, which frees it. Returns 0, -ENOENT or -ENOMEM. How long it takes
 * says nothing about which users there are.
 */
int nbd_psk_find(const struct nbd_psk *psk, const gnutls_datum_t *user, gnutls_datum_t *key);

/* The first user in the file. */
const char *nbd_psk_first(const struct nbd_psk *psk);

#endif
