/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Limits: what clients may take of this process, how much memory that comes to, and what they have
 * taken of it. Whatever clients do, the bound holds: what is not there yet is waited for
 * (request.c, listen.c), and nothing that was asked for is dropped.
 *
 * Idle clients stay for as long as they like, unless they are given a limit; they only give back
 * the buffers of their busier days. Those that are gone without a word TCP finds out.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/list.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/units.h"
#include "nbd-server/internal.h"

#define SECOND       1000000000ull
#define TEN_SECONDS  (10 * SECOND)
#define SWEEP        (5 * SECOND) /* how long a client keeps buffers that it does not use */
#define SOONEST      10000000u    /* ns between two sweeps */
#define DEFAULT_DATA (16ull << 20)
#define MOST_DATA    (1ull << 30)

enum {
	DEFAULT_CONNECTIONS = 100,
	MOST_CONNECTIONS = 10000,
	MOST_SECONDS = 7 * 24 * 3600,
	/* Of a buffer: the page it is aligned to, and what describes it. */
	BUFFER_COST = 2 * BM_BUF_ALIGN,
	/* Records on their way, and what GnuTLS keeps of a session. */
	TLS_COST = 512 << 10,
};

/* Options */

static void complete(struct nbd_server_options *o)
{
	if (!o->max_connections)
		o->max_connections = DEFAULT_CONNECTIONS;
	if (!o->max_requests || o->max_requests > NBD_PIECES)
		o->max_requests = NBD_PIECES;
	if (!o->max_data)
		o->max_data = DEFAULT_DATA;
	if (o->max_data < NBD_LEAST_DATA)
		o->max_data = NBD_LEAST_DATA;
	if (!o->handshake_ns)
		o->handshake_ns = TEN_SECONDS;
	if (!o->stop_ns)
		o->stop_ns = TEN_SECONDS;
}

enum limit { CONNECTIONS, REQUESTS, DATA, HANDSHAKE, IDLE, LIMITS };

static const struct {
	const char *name;
	uint64_t least, most;
} limits[LIMITS] = {
	[CONNECTIONS] = {"max-connections", 1, MOST_CONNECTIONS},
	[REQUESTS] = {"max-requests", 1, NBD_PIECES},
	[DATA] = {"max-data", NBD_LEAST_DATA, MOST_DATA},
	[HANDSHAKE] = {"handshake-timeout", 1, MOST_SECONDS},
	[IDLE] = {"idle-timeout", 0, MOST_SECONDS},
};

static int parse(enum limit limit, const char *text, uint64_t *number)
{
	char *end;
	int r = 0;

	errno = 0;
	if (limit == DATA)
		r = bm_parse_size(text, number);
	else if (*text < '0' || *text > '9')
		r = -EINVAL;
	else {
		*number = strtoull(text, &end, 10);
		r = errno || *end ? -EINVAL : 0;
	}
	return r || *number < limits[limit].least || *number > limits[limit].most ? -EINVAL : 0;
}

static int bad_limit(enum limit limit, const char *text, struct bm_error *error)
{
	if (limit == DATA)
		return bm_fail(error, BM_E_USAGE, "--%s %s: a size from 2M to 1G is expected",
			       limits[limit].name, text);
	return bm_fail(error, BM_E_USAGE,
		       "--%s %s: a number from %" PRIu64 " to %" PRIu64 " is expected",
		       limits[limit].name, text, limits[limit].least, limits[limit].most);
}

int nbd_server_set_limit(struct nbd_server_options *options, const char *name, const char *text,
			 struct bm_error *error)
{
	enum limit limit = CONNECTIONS;
	uint64_t number;

	while (limit < LIMITS && strcmp(limits[limit].name, name) != 0)
		limit++;
	if (limit == LIMITS)
		return bm_fail(error, BM_E_USAGE, "there is no limit \"%s\"", name);
	if (parse(limit, text, &number) < 0)
		return bad_limit(limit, text, error);
	if (limit == CONNECTIONS)
		options->max_connections = (unsigned)number;
	else if (limit == REQUESTS)
		options->max_requests = (unsigned)number;
	else if (limit == DATA)
		options->max_data = number;
	else if (limit == HANDSHAKE)
		options->handshake_ns = number * SECOND;
	else
		options->idle_ns = number * SECOND;
	return 0;
}

/* Memory */

static uint64_t bound_of_one(const struct nbd_server_options *o)
{
	return sizeof(struct nbd_conn) + o->max_data + (uint64_t)NBD_PIECES * BUFFER_COST;
}

uint64_t nbd_server_bound(const struct nbd_server_options *options)
{
	struct nbd_server_options o = *options;

	complete(&o);
	return o.max_connections * bound_of_one(&o);
}

static uint64_t bytes_in_use(const struct nbd_conn *conn)
{
	uint64_t bytes = 0;

	for (int i = 0; i < NBD_PIECES; i++)
		if (conn->piece[i].buf)
			bytes += conn->piece[i].buf->size;
	return bytes;
}

void nbd_server_get_usage(const struct nbd_server *server, struct nbd_server_usage *usage)
{
	unsigned most = server->options.max_connections;
	uint64_t one = bound_of_one(&server->options) +
		       (server->tls ? TLS_COST + nbd_compressed_cost() : 0);

	/* nbd_server_accept_fd() may have gone beyond the limit. */
	if (server->connected > most)
		most = server->connected;
	*usage = (struct nbd_server_usage){.changes = server->changes,
					   .bound = most * one,
					   .max_connections = server->options.max_connections,
					   .connections = server->connected};
	bm_list_each(node, &server->conns) {
		const struct nbd_conn *conn = bm_container(node, struct nbd_conn, link);

		usage->memory += sizeof(*conn) + bm_pool_bytes(conn->pool) +
				 (conn->compressed ? nbd_compressed_cost() : 0);
		usage->buffers += bytes_in_use(conn);
		usage->in_flight += conn->busy;
	}
}

/* Clients */

bool nbd_limits_admit(const struct nbd_server *server, const struct nbd_offer *offer)
{
	unsigned clients = 0;

	bm_list_each(node, &server->conns)
		clients += bm_container(node, struct nbd_conn, link)->offer == offer;
	return !offer->max_clients || clients < offer->max_clients;
}

static void look_at(struct nbd_conn *conn, uint64_t now)
{
	uint64_t limit = conn->server->options.idle_ns;

	if (conn->state < NBD_REQUEST || conn->busy || conn->requests != conn->seen ||
	    !bm_list_empty(&conn->out)) {
		conn->seen = conn->requests;
		conn->active = now;
		return;
	}
	bm_pool_trim(conn->pool);
	if (limit && conn->state < NBD_ENDED && now - conn->active >= limit)
		nbd_conn_violated(conn, "it has asked for nothing for too long");
}

static void watch(struct nbd_server *server)
{
	uint64_t wait = server->options.idle_ns / 4;

	if (!wait || wait > SWEEP)
		wait = SWEEP;
	if (wait < SOONEST)
		wait = SOONEST;
	if (server->connected && !bm_timer_armed(&server->idle_timer))
		(void)bm_timer_set(server->loop, &server->idle_timer,
				   bm_loop_now(server->loop) + wait);
}

static void sweep(struct bm_timer *timer)
{
	struct nbd_server *server = bm_container(timer, struct nbd_server, idle_timer);
	uint64_t now = bm_loop_now(server->loop);

	bm_list_each(node, &server->conns)
		look_at(bm_container(node, struct nbd_conn, link), now);
	watch(server);
}

void nbd_limits_joined(struct nbd_conn *conn)
{
	conn->active = bm_loop_now(conn->server->loop);
	watch(conn->server);
}

void nbd_limits_init(struct nbd_server *server)
{
	complete(&server->options);
	server->idle_timer.run = sweep;
}

void nbd_limits_fini(struct nbd_server *server)
{
	bm_timer_clear(server->loop, &server->idle_timer);
}
