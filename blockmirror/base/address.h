/* SPDX-License-Identifier: BSD-3-Clause */
/* TCP addresses as people write them: HOST:PORT, [IPV6]:PORT, :PORT. */
#ifndef BM_BASE_ADDRESS_H
#define BM_BASE_ADDRESS_H

#include <netdb.h>
#include <stdbool.h>

#include "blockmirror/error.h"

/*
 * What to connect to, or, passive, to listen on; blocks when there is a name to look up.
 * freeaddrinfo() is the caller's. BM_E_USAGE: it is no address; BM_E_UNREACHABLE: no such host.
 */
int bm_address_lookup(const char *text, bool passive, struct addrinfo **list,
		      struct bm_error *error);

/* Whether it is one, as far as can be told without looking up its host. */
int bm_address_check(const char *text, struct bm_error *error);

#endif
