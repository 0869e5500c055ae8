/* SPDX-License-Identifier: BSD-3-Clause */
/* TCP addresses. */
#include "blockmirror/base/address.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

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

static char *number_of(int fd)
{
	struct sockaddr_storage found;
	socklen_t length = sizeof(found);
	char text[NI_MAXHOST];

	if (getsockname(fd, (struct sockaddr *)&found, &length) < 0 ||
	    getnameinfo((struct sockaddr *)&found, length, text, sizeof(text), NULL, 0,
			NI_NUMERICHOST))
		return NULL;
	return strdup(text);
}

/* A datagram's socket has its way with connect(2), which sends nothing. */
char *bm_address_towards(const char *host, bool name)
{
	const struct addrinfo hints = {.ai_flags = name ? 0 : AI_NUMERICHOST,
				       .ai_socktype = SOCK_DGRAM};
	struct addrinfo *list;
	char *own = NULL;

	if (getaddrinfo(host, "9", &hints, &list))
		return NULL;
	for (const struct addrinfo *info = list; info && !own; info = info->ai_next) {
		bm_close int fd = socket(info->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);

		if (fd >= 0 && !connect(fd, info->ai_addr, info->ai_addrlen))
			own = number_of(fd);
	}
	freeaddrinfo(list);
	return own;
}

/* To an address of ours we go by itself; any other one, and that of all, are left by another one.
 */
bool bm_address_is_ours(const char *text)
{
	bm_free char *own = bm_address_towards(text, false);

	return own && !strcmp(own, text);
}
