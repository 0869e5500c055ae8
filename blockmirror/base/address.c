/* SPDX-License-Identifier: BSD-3-Clause */
/* TCP addresses. */
#include "blockmirror/base/address.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"

/* Cuts text in two; false: it is no address. */
static bool split(char *text, char **host, char **port)
{
	char *colon = strrchr(text, ':'), *end = NULL;
	bool brackets = *text == '[' && colon && colon > text + 1 && colon[-1] == ']';
	unsigned long number = colon ? strtoul(colon + 1, &end, 10) : 0;

	if (!colon || !colon[1] || strspn(colon + 1, "0123456789") != strlen(colon + 1) ||
	    number > 65535 || (!brackets && strchr(text, ':') != colon))
		return false;
	*colon = '\0';
	if (brackets)
		colon[-1] = '\0';
	*host = text + brackets;
	*port = colon + 1;
	return true;
}

int bm_address_check(const char *text, struct bm_error *error)
{
	bm_free char *copy = strdup(text);
	char *host, *port;

	return copy && split(copy, &host, &port)
		       ? 0
		       : bm_fail(error, BM_E_USAGE,
				 "\"%.200s\" is no address: HOST:PORT is, or [IPV6]:PORT", text);
}

int bm_address_lookup(const char *text, bool passive, struct addrinfo **list,
		      struct bm_error *error)
{
	const struct addrinfo hints = {.ai_flags = passive ? AI_PASSIVE : 0,
				       .ai_socktype = SOCK_STREAM};
	bm_free char *copy = strdup(text);
	char *host, *port;
	int r = bm_address_check(text, error);

	if (!copy || r < 0 || !split(copy, &host, &port))
		return r < 0 ? r : bm_fail_errno(error, ENOMEM, "%s", text);
	r = getaddrinfo(*host ? host : NULL, port, &hints, list);
	return r ? bm_fail(error, BM_E_UNREACHABLE, "%s: %s", text,
			   r == EAI_SYSTEM ? strerror(errno) : gai_strerror(r))
		 : 0;
}
