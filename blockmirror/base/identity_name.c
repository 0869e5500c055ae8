/* SPDX-License-Identifier: BSD-3-Clause */
/* Who is who: names that were written down, and what a certificate or a key proves. */
#include "blockmirror/base/identity.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "blockmirror/base/cleanup.h"

/* "ip:" as GnuTLS's address is written out. */
static char *plain_address(const char *text)
{
	unsigned char bytes[sizeof(struct in6_addr)];
	char address[INET6_ADDRSTRLEN], *result;
	int family = strchr(text, ':') ? AF_INET6 : AF_INET;

	if (inet_pton(family, text, bytes) != 1 ||
	    !inet_ntop(family, bytes, address, sizeof(address)))
		return NULL;
	return asprintf(&result, "ip:%s", address) < 0 ? NULL : result;
}

char *bm_identity_name(const char *text)
{
	static const char *const kinds[] = {"psk:", "dn:", "dns:", "uri:", "email:"};

	errno = 0;
	if (!strncmp(text, "ip:", 3))
		return plain_address(text + 3);
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		size_t length = strlen(kinds[i]);

		if (!strncmp(text, kinds[i], length) && text[length])
			return strdup(text);
	}
	return NULL;
}

char *bm_identity_of_host(const char *text)
{
	char *name = bm_identity_name(text);

	if (!name)
		name = plain_address(text);
	if (name || !*text || strchr(text, ':') || strchr(text, '='))
		return name;
	return asprintf(&name, "dns:%s", text) < 0 ? NULL : name;
}

bool bm_identity_is(const struct bm_identity *who, const char *name)
{
	bool dns = !strncmp(name, "dns:", 4); /* which does not know upper from lower case */

	if (!strncmp(name, "psk:", 4))
		return who->psk && !strcmp(who->psk, name + 4);
	if (!strncmp(name, "dn:", 3))
		return who->dn && !strcmp(who->dn, name + 3);
	for (const char *const *at = who->names; at && *at; at++)
		if (dns ? !strcasecmp(*at, name) : !strcmp(*at, name))
			return true;
	return false;
}

char *bm_identity_tell(const struct bm_identity *who, char *text, size_t size)
{
	size_t used = 0;

	snprintf(text, size, "%s%s",
		 who->psk  ? "psk:"
		 : who->dn ? "dn:"
			   : "nobody in particular",
		 who->psk  ? who->psk
		 : who->dn ? who->dn
			   : "");
	for (const char *const *at = who->names; at && *at; at++) {
		used = strlen(text);
		snprintf(text + used, size - used, ", %s", *at);
	}
	return text;
}
