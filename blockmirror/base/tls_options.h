/* SPDX-License-Identifier: BSD-3-Clause */
/* What TLS is told before a session, and what it tells after its handshake. */
#ifndef BM_BASE_TLS_OPTIONS_H
#define BM_BASE_TLS_OPTIONS_H

#include <stdbool.h>

struct bm_tls_options {
	const char *certificates; /* a folder: ca-cert.pem, server-cert.pem, server-key.pem, and,
				     if there is one, ca-crl.pem. NULL: none */
	const char *psk;          /* a file of USER:HEXKEY lines. NULL: none */
	const char *priority;     /* GnuTLS's priority string. NULL: credentials.c's */
	bool only_1_3;            /* TLS 1.3, and no older version */
	/* A client without a key shows a certificate of the authority in ca-cert.pem, or goes */
	bool verify_peer;
};

/* Who a client has proven to be by TLS. All NULL: nobody in particular. */
struct bm_identity {
	const char *psk;          /* the name of his pre-shared key */
	const char *dn;           /* of his certificate, which was verified; after RFC 4514 */
	const char *const *names; /* its alternative ones: "dns:…", "ip:…", "uri:…", "email:…" */
};

#endif
