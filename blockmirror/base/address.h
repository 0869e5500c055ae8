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

/*
 * By which address of ours what goes to host (a number; name: or a name, which is looked up)
 * leaves, as the routes are now. Nothing is sent. malloc()ed; NULL: there is no way.
 */
char *bm_address_towards(const char *host, bool name);

/* Whether text is the number of an address of this host, and no other word for all of them. */
bool bm_address_is_ours(const char *text);

/* Whether it is one, as far as can be told without looking up its host. */
int bm_address_check(const char *text, struct bm_error *error);

#endif
