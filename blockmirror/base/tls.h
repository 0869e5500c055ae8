/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * TLS over a transport: one session, the server's side, or one of either side that others have
 * begun. Nothing blocks: what the client has sent is
 * received many records at a time, what goes to it is gathered likewise.
 */
#ifndef BM_BASE_TLS_H
#define BM_BASE_TLS_H

#include <stdbool.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "blockmirror/base/credentials.h"

struct bm_transport;
struct bm_tls;

/*
 * Over raw's descriptors, which stay its own. Takes a reference on credentials. NULL: no memory, or
 * GnuTLS does not like them.
 */
struct bm_tls *bm_tls_new(const struct bm_transport *raw, struct bm_credentials *credentials);

/*
 * The same of a session that has its handshake behind it, by calls that may have blocked, and all
 * of what it has received was asked for. release(arg) ends it, after the goodbye. NULL: no memory,
 * and nothing has changed.
 */
struct bm_tls *bm_tls_adopt(const struct bm_transport *raw, gnutls_session_t session,
			    void (*release)(void *arg), void *arg);

/* Tells the client, if the session is in order, that no more comes. NULL is allowed. */
void bm_tls_free(struct bm_tls *tls);

/*
 * Goes on with the handshake. 0: it is over; -EAGAIN: when the client has sent more, or has taken
 * what bm_tls_flush() holds; -errno.
 */
int bm_tls_handshake(struct bm_tls *tls);

/* As those of the transport. -EPROTO: bm_tls_why() tells. */
ssize_t bm_tls_recv(struct bm_tls *tls, const struct iovec *v, int count);
ssize_t bm_tls_send(struct bm_tls *tls, const struct iovec *v, int count);
bool bm_tls_pending(const struct bm_tls *tls);
int bm_tls_flush(struct bm_tls *tls);

/* Why it failed; for people. */
const char *bm_tls_why(const struct bm_tls *tls);

/* Who the client has proven to be; after the handshake. Returns 0 or -errno. */
int bm_tls_identify(struct bm_tls *tls, struct bm_identity **identity);

/* identity.c */

int bm_identity_new(gnutls_session_t session, struct bm_identity **identity);
void bm_identity_free(struct bm_identity *identity); /* NULL is allowed */

#endif
