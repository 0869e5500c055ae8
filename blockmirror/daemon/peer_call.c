/* SPDX-License-Identifier: BSD-3-Clause */
/* What we ask of another host. Blocks: for workers' threads. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "blockmirror/base/address.h"
#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/tls_client.h"
#include "blockmirror/daemon/peer.h"

enum { PINGS = 9, PIECE = 256 << 10 };
#define PATIENCE    5000000000ull /* ns that a step may take */
#define MEASURE_FOR 500000000ull  /* ns */
#define BRIEFLY     20000000ull   /* ns: whoever does not ask for it has better things to send */
#define FIRST_LOAD  (1ull << 20)  /* bytes: tells how many to send for that long */
#define MOST_LOAD   (1ull << 30)

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int peer_connect(const struct peers *p, const struct peer *peer, struct bm_client **client,
		 json_t **hello, struct bm_error *error)
{
	return peer_connect_from(p, peer, NULL, client, hello, error);
}

int peer_connect_from(const struct peers *p, const struct peer *peer, const char *from,
		      struct bm_client **client, json_t **hello, struct bm_error *error)
{
	struct bm_tls_trust trust;
	int r = peer_trust_of(p, peer, &trust, error);

	if (!r)
		r = bm_client_connect_tls(peer->address, &trust, PATIENCE, client, error);
	if (r < 0)
		return r;
	r = bm_client_call(
		*client, "hello",
		json_pack("{s:[ii] s:s*}", "versions", PEER_OLDEST, PEER_NEWEST, "from", from),
		hello, error);
	if (r < 0)
		bm_client_close(*client);
	return r;
}

/* Without the brackets of an IPv6 address, which are the port's. */
char *peer_data_host(const struct peer *peer, const json_t *hello)
{
	const char *said = json_string_value(json_object_get(hello, "data"));
	const char *address = peer->address, *end = strrchr(address, ':');

	if (said)
		return strdup(said);
	if (*address == '[' && end > address + 1)
		return strndup(address + 1, (size_t)(end - address) - 2);
	return strndup(address, (size_t)(end - address));
}

char *peer_data_host_from(const struct peer *peer, const char *from, const json_t *hello,
			  struct bm_error *error)
{
	bm_free char *host = peer_data_host(peer, hello), *own = NULL;

	if (!host)
		bm_fail_errno(error, ENOMEM, "host %s", peer->name);
	if (!host || !from)
		return bm_steal(host);
	own = bm_address_towards(host, true);
	if (own && !strcmp(own, from))
		return bm_steal(host);
	bm_fail(error, BM_E_HOST,
		"host %s takes data at %s, and what goes there leaves by %s, not by %s: "
		"blockmirrord "
		"there needs --bind with its address in the network of %s, or to --listen on all "
		"of "
		"its addresses",
		peer->name, host, own ? own : "no address", from, from);
	return NULL;
}

/*
 * The data goes to an address, and an NBD client looks whether the certificate that it finds there
 * is for that address. The host has just proven to be the one that is meant; so the same
 * certificate has to say both, or another host's might do for its data.
 */
int peer_covers(const struct peer *peer, const struct bm_client *client, const char *host,
		struct bm_error *error)
{
	if (bm_client_tls_covers(client, host))
		return 0;
	return bm_fail(error, BM_E_ACCESS,
		       "the certificate of host %s is not for %s, where data comes to: it needs "
		       "that as a dns_name or ip_address, too",
		       peer->name, host);
}

int peer_ask(const struct peers *p, const struct peer *peer, const char *method, json_t *params,
	     uint64_t limit, json_t **result, struct bm_error *error)
{
	struct bm_client *client;
	int r = peer_connect(p, peer, &client, NULL, error);

	if (r < 0) {
		json_decref(params);
		return r;
	}
	bm_client_set_timeout(client, limit);
	r = bm_client_call(client, method, params, result, error);
	bm_client_close(client);
	return r;
}

static int compare(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

/* The middle one of some round trips; and by how much the other clock is ahead. */
static int measure_ping(struct bm_client *client, json_t *result, struct bm_error *error)
{
	uint64_t took[PINGS], best = UINT64_MAX;
	json_int_t ahead = 0;

	for (int i = 0; i < PINGS; i++) {
		uint64_t begun = clock_ns(CLOCK_MONOTONIC), wall = clock_ns(CLOCK_REALTIME);
		json_t *answer = NULL;
		int r = bm_client_call(client, "ping", NULL, &answer, error);

		if (r < 0)
			return r;
		took[i] = clock_ns(CLOCK_MONOTONIC) - begun;
		if (took[i] < best) {
			best = took[i];
			ahead = json_integer_value(json_object_get(answer, "time_ns")) -
				(json_int_t)(wall + best / 2);
		}
		json_decref(answer);
	}
	qsort(took, PINGS, sizeof(took[0]), compare);
	json_object_set_new(result, "rtt_ns", json_integer((json_int_t)took[PINGS / 2]));
	json_object_set_new(result, "clock_ahead_ns", json_integer(ahead));
	return 0;
}

static int send_load(struct bm_client *client, uint64_t bytes, uint64_t *took,
		     struct bm_error *error)
{
	static const char nothing[PIECE];
	uint64_t begun = clock_ns(CLOCK_MONOTONIC), left = bytes;
	int id, r = bm_client_send(client, "swallow",
				   json_pack("{s:I}", "bytes", (json_int_t)bytes), &id, error);

	while (!r && left) {
		size_t n = left < PIECE ? (size_t)left : PIECE;

		r = bm_client_send_raw(client, nothing, n, error);
		left -= n;
	}
	if (!r)
		r = bm_client_wait(client, id, NULL, NULL, error);
	*took = clock_ns(CLOCK_MONOTONIC) - begun;
	return r < 0 ? r : 0;
}

/* Bytes a second under TLS, by one connection: as much again until it takes long enough. */
static int measure_speed(struct bm_client *client, uint64_t span, json_t *result,
			 struct bm_error *error)
{
	uint64_t bytes = FIRST_LOAD, took = 0;

	for (;;) {
		int r = send_load(client, bytes, &took, error);

		if (r < 0)
			return r;
		if (took >= span / 2 || bytes == MOST_LOAD)
			break;
		bytes = took * 16 < span ? bytes * 16 : bytes * span / took;
		bytes = bytes < MOST_LOAD ? bytes : MOST_LOAD;
	}
	json_object_set_new(result, "bandwidth",
			    json_integer((json_int_t)((double)bytes * 1e9 / (double)took)));
	return 0;
}

/* An NBD client will want the certificate to be for where it connects to. */
static void note_data(const struct bm_client *client, const struct peer *peer, const json_t *hello,
		      json_t *result)
{
	bm_free char *host = peer_data_host(peer, hello);

	if (peer->identity && host) {
		json_object_set_new(result, "data", json_string(host));
		json_object_set_new(result, "data_covered",
				    json_boolean(bm_client_tls_covers(client, host)));
	}
}

static void note_path(const struct bm_client *client, json_t *result)
{
	struct tcp_info info = {0};
	socklen_t length = sizeof(info);

	if (!getsockopt(bm_client_fd(client), IPPROTO_TCP, TCP_INFO, &info, &length))
		json_object_set_new(result, "mtu", json_integer(info.tcpi_pmtu));
}

/*
 * What is asked for is the way of the data: where the peer's port is at that address, too, we go on
 * there. Where it is not, nothing but disks comes there, and the way to the port has to do.
 */
static void go_by(const struct peers *p, const struct peer *peer, const json_t *hello,
		  struct bm_client **client)
{
	bm_free char *host = peer_data_host(peer, hello), *address = NULL;
	struct peer there = *peer;
	struct bm_client *other;
	struct bm_error error;

	if (!host || asprintf(&address, strchr(host, ':') ? "[%s]%s" : "%s%s", host,
			      strrchr(peer->address, ':')) < 0)
		return;
	there.address = address;
	if (!strcmp(address, peer->address) || peer_connect(p, &there, &other, NULL, &error) < 0)
		return;
	bm_client_close(*client);
	*client = other;
}

int peer_measure(const struct peers *p, const struct peer *peer, const char *from, bool briefly,
		 json_t **result, struct bm_error *error)
{
	struct bm_client *client;
	json_t *hello = NULL;
	int r = peer_connect_from(p, peer, from, &client, &hello, error);

	if (r < 0)
		return r;
	if (from)
		go_by(p, peer, hello, &client);
	*result = json_pack("{s:s s:s s:O s:O s:O}", "peer", peer->name, "address", peer->address,
			    "name", json_object_get(hello, "name"), "software",
			    json_object_get(hello, "software"), "version",
			    json_object_get(hello, "v"));
	r = *result ? measure_ping(client, *result, error)
		    : bm_fail(error, BM_E_IO, "%s answers hello with something else", peer->name);
	if (!r)
		r = measure_speed(client, briefly ? BRIEFLY : MEASURE_FOR, *result, error);
	if (!r) {
		note_path(client, *result);
		note_data(client, peer, hello, *result);
	}
	bm_client_close(client);
	json_decref(hello);
	if (r < 0)
		json_decref(*result);
	return r;
}
