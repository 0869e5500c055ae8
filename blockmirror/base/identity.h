/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Names by which a certificate's or a key's holder is known: "psk:USER", "dn:DN" (RFC 4514),
 * "dns:NAME", "ip:ADDRESS", "uri:URI", "email:ADDRESS". A name is all or nothing: a certificate for
 * *.example is for nobody in particular. Pure; any thread.
 */
#ifndef BM_BASE_IDENTITY_H
#define BM_BASE_IDENTITY_H

#include <stdbool.h>
#include <stddef.h>

#include "blockmirror/base/tls_options.h"

/* What people write, as it is compared; malloc()ed. NULL: no such name, or, errno ENOMEM. */
char *bm_identity_name(const char *text);

/* The same, and a word without a kind is an address or the name of a host: "ip:" or "dns:". */
char *bm_identity_of_host(const char *text);

/* Whether who has proven to be name, which is as those two have it. */
bool bm_identity_is(const struct bm_identity *who, const char *name);

/* All that who has proven, for people. Returns text, which has room for size bytes. */
char *bm_identity_tell(const struct bm_identity *who, char *text, size_t size);

#endif
