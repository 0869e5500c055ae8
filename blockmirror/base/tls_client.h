/* SPDX-License-Identifier: BSD-3-Clause */
/* A control client of another host, under TLS 1.3. Blocks: not for a loop's thread. */
#ifndef BM_BASE_TLS_CLIENT_H
#define BM_BASE_TLS_CLIENT_H

#include "blockmirror/base/client_io.h"

/* A key that both hosts have. Whoever answers has it, too, or the handshake fails. */
struct bm_tls_key {
	const char *user; /* the name under which the other side knows us */
	const char *hex;
};

/*
 * Connects to address, HOST:PORT, and agrees on TLS. No step of it, and no later call, waits longer
 * than ns for the other side. BM_E_UNREACHABLE: nobody is there, or it does not speak TLS;
 * BM_E_ACCESS: it does not have that key, or does not know that user.
 */
int bm_client_connect_tls(const char *address, const struct bm_tls_key *key, uint64_t ns,
			  struct bm_client **client, struct bm_error *error);

#endif
