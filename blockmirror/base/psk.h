/* SPDX-License-Identifier: BSD-3-Clause */
/* Pre-shared keys: a file of lines USER:HEXKEY, as psktool writes it. Loop thread; reading blocks.
 */
#ifndef BM_BASE_PSK_H
#define BM_BASE_PSK_H

#include <gnutls/gnutls.h>

#include "blockmirror/error.h"

struct bm_psk;

/* Errors tell the number of a line, never what is in it. */
int bm_psk_read(const char *path, struct bm_psk **psk, struct bm_error *error);

/* NULL is allowed. */
void bm_psk_free(struct bm_psk *psk);

/*
 * Copies user's key for GnuTLS, which frees it. Returns 0, -ENOENT or -ENOMEM. How long it takes
 * says nothing about which users there are.
 */
int bm_psk_find(const struct bm_psk *psk, const gnutls_datum_t *user, gnutls_datum_t *key);

/* The first user in the file. */
const char *bm_psk_first(const struct bm_psk *psk);

#endif
