/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What other hosts may ask of us, under TLS, by who their keys or certificates say they are. Who
 * was removed gets no answer any more, though his connection lasts.
 */
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/base/address.h"
#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/identity.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/daemon/machine.h"

enum { BACKLOG = 16, TOLD = 200 };
#define MOST_SWALLOWED (1ull << 30)

struct peer *peer_admit(struct peers *p, struct bm_rpc_call *call, bool greeted)
{
	const struct bm_identity *who = bm_rpc_identity(call);
	struct peer *peer = who ? peer_of(p, who) : NULL;
	char told[TOLD];
	struct bm_error error;

	if (peer && (!greeted || *bm_rpc_version(call)))
		return peer;
	if (peer)
		bm_fail(&error, BM_E_USAGE, "hello comes first");
	else if (who && who->dn)
		bm_fail(&error, BM_E_ACCESS,
			"%s does not know the host that calls: its certificate is for %s; there, "
			"\"blockmirror peer add NAME ADDRESS:PORT --x509 --identity ...\" makes it "
			"known",
			p->name, bm_identity_tell(who, told, sizeof(told)));
	else
		bm_fail(&error, BM_E_ACCESS, "%s does not know the host that calls", p->name);
	bm_rpc_fail(call, &error);
	return NULL;
}

static json_int_t wall_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return (json_int_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static bool listens_everywhere(const struct peers *p)
{
	size_t n = (size_t)(strrchr(p->listen, ':') - p->listen);

	return !n || (n == 7 && !strncmp(p->listen, "0.0.0.0", n)) ||
	       (n == 4 && !strncmp(p->listen, "[::]", n));
}

/*
 * Where data comes to, if that is not where the caller's question came to. from: the caller's
 * address in the network that he wants it to go by; one of ours in that is meant if we listen
 * there.
 */
static char *data_address(const struct peers *p, const json_t *params)
{
	const char *from = json_string_value(json_object_get(params, "from"));
	bm_free char *own = NULL;

	if (p->bind)
		return bm_need(strdup(p->bind));
	own = from && listens_everywhere(p) ? bm_address_towards(from, false) : NULL;
	/* One that we have, too, as 127.0.0.1, is on no way to us. */
	return own && strcmp(own, from) != 0 ? bm_steal(own) : NULL;
}

/* The newest version that both have. */
static void method_hello(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct peers *p = arg;
	bm_free char *data = NULL;
	int oldest = 0, newest = 0;
	struct bm_error error;

	if (!peer_admit(p, call, false))
		return;
	if (json_unpack(params, "{s:[ii]}", "versions", &oldest, &newest) || oldest < 1 ||
	    oldest > newest)
		bm_fail(&error, BM_E_USAGE, "versions ([oldest, newest]) are wanted");
	else if (oldest > PEER_NEWEST || newest < PEER_OLDEST)
		bm_fail(&error, BM_E_UNSUPPORTED,
			"%s (blockmirror " BM_VERSION ") speaks versions %d to %d to other hosts, "
			"the caller %d to %d: install the newer program on both",
			p->name, PEER_OLDEST, PEER_NEWEST, oldest, newest);
	else {
		*bm_rpc_version(call) = (unsigned)(newest < PEER_NEWEST ? newest : PEER_NEWEST);
		data = data_address(p, params);
		bm_rpc_reply(call, json_pack("{s:s s:s s:I s:s*}", "name", p->name, "software",
					     BM_VERSION, "time_ns", wall_ns(), "data", data));
		return;
	}
	bm_rpc_fail(call, &error);
}

static void method_ping(void *arg, struct bm_rpc_call *call, json_t *params)
{
	(void)params;
	if (peer_admit(arg, call, true))
		bm_rpc_reply(call, json_pack("{s:I}", "time_ns", wall_ns()));
}

/* Takes bytes that mean nothing: how many a second come through. */
static void method_swallow(void *arg, struct bm_rpc_call *call, json_t *params)
{
	json_int_t bytes = 0;
	struct bm_error error;

	if (!peer_admit(arg, call, true))
		return;
	if (!json_unpack(params, "{s:I}", "bytes", &bytes) && bytes > 0 &&
	    bytes <= (json_int_t)MOST_SWALLOWED) {
		bm_rpc_swallow(call, (uint64_t)bytes);
		return;
	}
	bm_fail(&error, BM_E_USAGE, "bytes (1 to %llu) are wanted", MOST_SWALLOWED);
	bm_rpc_fail(call, &error);
}

static const struct bm_rpc_table methods[] = {
	{"hello", method_hello},
	{"ping", method_ping},
	{"swallow", method_swallow},
	{"receive", method_receive},
	{"discard", method_discard},
	{"space", method_space},
	{"yield", method_yield},
	{"arm", method_arm},
	{"take", method_take},
	{"share", method_share},
	{"move.receive", method_move_receive},
	{"move.state", method_move_state},
	{NULL, NULL},
};

static int listen_on(const struct addrinfo *info)
{
	const int on = 1;
	bm_close int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, info->ai_addr, info->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0)
		return -errno;
	return bm_steal_fd(fd);
}

static int listen_at(const char *address, struct bm_error *error)
{
	struct addrinfo *list;
	int fd = -EADDRNOTAVAIL, r = bm_address_lookup(address, true, &list, error);

	if (r < 0)
		return r;
	for (struct addrinfo *info = list; info && fd < 0; info = info->ai_next)
		fd = listen_on(info);
	freeaddrinfo(list);
	return fd < 0 ? bm_fail_errno(error, fd, "cannot listen on %s", address) : fd;
}

/* Numbers, if the name of the address was one: nobody is asked. */
int peer_listen_data(const struct peers *p, unsigned *port, struct bm_error *error)
{
	struct sockaddr_storage found;
	socklen_t length = sizeof(found);
	bm_free char *address = NULL;
	const char *host = p->bind ? p->bind : p->listen;
	bm_close int fd = -1;
	int n = host ? (int)strlen(host) : 0;

	if (!host)
		return bm_fail(error, BM_E_USAGE, "blockmirrord does not listen for other hosts");
	if (!p->bind)
		n = (int)(strrchr(host, ':') - host);
	if (asprintf(&address, "%.*s:%u", n, host, *port) < 0)
		return bm_fail_errno(error, ENOMEM, "cannot listen on %s", host);
	fd = listen_at(address, error);
	if (fd < 0)
		return fd;
	if (getsockname(fd, (struct sockaddr *)&found, &length) < 0)
		return bm_fail_errno(error, errno, "cannot listen on %s", address);
	*port = ntohs(found.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&found)->sin6_port
						  : ((struct sockaddr_in *)&found)->sin_port);
	return bm_steal_fd(fd);
}

int peer_listen(struct peers *p, struct bm_error *error)
{
	int r, fd = listen_at(p->listen, error);

	if (fd < 0)
		return fd;
	r = bm_rpc_new(p->daemon->loop, methods, p, &p->rpc);
	if (r < 0) {
		close(fd);
		return bm_fail_errno(error, r, "cannot listen on %s", p->listen);
	}
	bm_rpc_secure(p->rpc, peer_trust_keyring);
	return bm_rpc_listen_fd(p->rpc, fd, error);
}
