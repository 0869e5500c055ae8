/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * TLS over a transport: one session, the server's side. Nothing blocks: what the client has sent is
 * received many records at a time, what goes to it is gathered likewise.
 */
#ifndef NBD_SERVER_TLS_H
#define NBD_SERVER_TLS_H

#include <stdbool.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "nbd-server/credentials.h"

struct nbd_transport;
struct nbd_tls;

/* Takes a reference on credentials. NULL: no memory, or GnuTLS does not like them. */
struct nbd_tls *nbd_tls_new(struct nbd_transport *raw, struct nbd_credentials *credentials);

/* Tells the client, if the session is in order, that no more comes. NULL is allowed. */
void nbd_tls_free(struct nbd_tls *tls);

/*
 * Goes on with the handshake. 0: it is over; -EAGAIN: when the client has sent more, or has taken
 * what nbd_tls_flush() holds; -errno.
 */
int nbd_tls_handshake(struct nbd_tls *tls);

/* As those of the transport. -EPROTO: nbd_tls_why() tells. */
ssize_t nbd_tls_recv(struct nbd_tls *tls, const struct iovec *v, int count);
ssize_t nbd_tls_send(struct nbd_tls *tls, const struct iovec *v, int count);
bool nbd_tls_pending(const struct nbd_tls *tls);
int nbd_tls_flush(struct nbd_tls *tls);

/* Why it failed; for people. */
const char *nbd_tls_why(const struct nbd_tls *tls);

/* Who the client has proven to be; after the handshake. Returns 0 or -errno. */
int nbd_tls_identify(struct nbd_tls *tls, struct nbd_identity **identity);

/* identity.c */

int nbd_identity_new(gnutls_session_t session, struct nbd_identity **identity);
void nbd_identity_free(struct nbd_identity *identity); /* NULL is allowed */

#endif
