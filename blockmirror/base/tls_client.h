/* SPDX-License-Identifier: BSD-3-Clause */
/* A control client of another host, under TLS 1.3. Blocks: not for a loop's thread. */
#ifndef BM_BASE_TLS_CLIENT_H
#define BM_BASE_TLS_CLIENT_H

#include "blockmirror/base/client_io.h"
#include "blockmirror/base/transport.h"

/*
 * By what each proves itself to the other: a key that both have, so that whoever answers has it,
 * too, or the handshake fails; or certificates, of one authority.
 */
struct bm_tls_trust {
	const char *user, *hex;   /* the name under which the other side knows us, and the key */
	const char *certificates; /* or a folder: ca-cert.pem, ca-crl.pem (if there is one),
				     client-cert.pem, client-key.pem, read each time */
	const char *name;         /* and for whom the other one's has to be (base/identity.h) */
};

/*
 * Connects to address, HOST:PORT, and agrees on TLS. No step of it, and no later call, waits longer
 * than ns for the other side. BM_E_UNREACHABLE: nobody is there, or it does not speak TLS;
 * BM_E_ACCESS: it is not who it should be, or does not let us in. What it has against our
 * certificate it may say only to the first call.
 */
int bm_client_connect_tls(const char *address, const struct bm_tls_trust *trust, uint64_t ns,
			  struct bm_client **client, struct bm_error *error);

/*
 * Whether the certificate that the other side has shown is for that host name or address, too, as
 * an NBD client will want it that connects there. True of a key, which is for no host.
 */
bool bm_client_tls_covers(const struct bm_client *client, const char *host);

/*
 * The connection is no control client's any more but carries something else, and does not block.
 * The client is gone, whatever comes of it. BM_E_UNREACHABLE: the other side has said more than it
 * was asked.
 */
int bm_client_become_transport(struct bm_client *client, struct bm_transport *transport,
			       struct bm_error *error);

#endif
