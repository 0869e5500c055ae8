/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sessions of writers that connect again (docs/nbd.md).
 *
 *	A mirror's connection has as many requests in flight as it may, and is not read from; a
 *write lies in its socket. The path is cut. The mirror connects again, writes that block anew, is
 *	answered, flushes. Then the requests in flight end, the server goes on reading the old
 *socket, and the old write lands on top of the new one.
 *
 * Rule: a writer names itself and its epoch, which grows from one session to the next, in a query
 *of SET_META_CONTEXT. As soon as that is seen, connections of its older epochs are closed: what
 *they have not been read for never will be. The new one gets its export when the device has let go
 *of the last request of theirs, and an older one than was ever seen does not get it at all.
 *
 * A session is known by its export and its name, as long as it has connections; after that until
 * its place is needed.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "blockmirror/base/list.h"
#include "blockmirror/base/log.h"
#include "nbd-server/internal.h"

#define PREFIX "blockmirror:session:"

enum { PREFIX_LENGTH = sizeof(PREFIX) - 1, EPOCH_DIGITS = 16 };
static_assert(PREFIX_LENGTH + NBD_SESSION_NAME + 1 + EPOCH_DIGITS < NBD_SESSION_TEXT,
	      "a session's context fits");

/* 0-9 a-f and so many of them: there is one spelling for each epoch. */
static bool parse_epoch(const uint8_t *text, uint64_t *epoch)
{
	*epoch = 0;
	for (int i = 0; i < EPOCH_DIGITS; i++) {
		uint8_t c = text[i];

		if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f')))
			return false;
		*epoch = *epoch << 4 | (uint64_t)(c <= '9' ? c - '0' : c - 'a' + 10);
	}
	return true;
}

/* Letters, digits, "-". */
static bool good_name(const uint8_t *name, size_t length)
{
	for (size_t i = 0; i < length; i++) {
		uint8_t c = name[i], lower = c | 0x20;

		if (!((c >= '0' && c <= '9') || (lower >= 'a' && lower <= 'z') || c == '-'))
			return false;
	}
	return length && length <= NBD_SESSION_NAME;
}

/* blockmirror:session:NAME:EPOCH */
bool nbd_session_query(const uint8_t *query, size_t length, struct nbd_session_id *id)
{
	size_t name;

	if (length < PREFIX_LENGTH + 1 + 1 + EPOCH_DIGITS || memcmp(query, PREFIX, PREFIX_LENGTH))
		return false;
	query += PREFIX_LENGTH;
	name = length - PREFIX_LENGTH - 1 - EPOCH_DIGITS;
	if (!good_name(query, name) || query[name] != ':' ||
	    !parse_epoch(query + name + 1, &id->epoch))
		return false;
	memcpy(id->name, query, name);
	id->name[name] = '\0';
	return true;
}

void nbd_session_text(const struct nbd_conn *conn, char *text)
{
	snprintf(text, NBD_SESSION_TEXT, PREFIX "%s:%016" PRIx64, conn->session->name, conn->epoch);
}

/* The session, or the place of one that nobody is connected for, the longest ago; NULL: none. */
static struct nbd_session *find(struct nbd_server *server, const struct nbd_offer *offer,
				const char *name)
{
	struct nbd_session *best = NULL;

	for (int i = 0; i < NBD_SESSIONS; i++) {
		struct nbd_session *s = &server->session[i];

		if (s->offer == offer && !strcmp(s->name, name))
			return s;
		if (!s->members && (!best || s->left < best->left))
			best = s;
	}
	if (best) {
		*best = (struct nbd_session){.offer = offer};
		snprintf(best->name, sizeof(best->name), "%s", name);
	}
	return best;
}

static void supersede(const struct nbd_session *session, struct nbd_conn *conn)
{
	if (conn->session != session || conn->epoch >= session->newest || conn->state == NBD_DEAD)
		return;
	bm_log(BM_LOG_NOTICE, "NBD client %s is disconnected: a newer session takes its place",
	       conn->peer);
	nbd_conn_close(conn);
}

bool nbd_session_join(struct nbd_conn *conn, const struct nbd_offer *offer,
		      const struct nbd_session_id *id)
{
	struct nbd_server *server = conn->server;
	struct nbd_session *session = find(server, offer, id->name);

	if (!session)
		return false;
	conn->session = session;
	conn->epoch = id->epoch;
	session->members++;
	if (id->epoch <= session->newest)
		return true;
	session->newest = id->epoch;
	bm_list_each(node, &server->conns)
		supersede(session, bm_container(node, struct nbd_conn, link));
	return true;
}

void nbd_session_leave(struct nbd_conn *conn)
{
	struct nbd_session *session = conn->session;
	struct nbd_server *server = conn->server;

	if (!session)
		return;
	conn->session = NULL;
	session->members--;
	session->left = ++server->sessions_left;
	/* Who waits for this one is in the handshake, and pauses. */
	bm_list_each(node, &server->conns) {
		struct nbd_conn *other = bm_container(node, struct nbd_conn, link);

		if (other->session == session && other->paused && other->state < NBD_REQUEST)
			bm_loop_soon(server->loop, &other->resume);
	}
}

bool nbd_session_waits(const struct nbd_conn *conn)
{
	if (!conn->session)
		return false;
	bm_list_each(node, &conn->server->conns) {
		const struct nbd_conn *other = bm_container(node, struct nbd_conn, link);

		/* One that has no export yet never had a request, and may be too old to get one. */
		if (other->session == conn->session && other->epoch < conn->epoch && other->offer)
			return true;
	}
	return false;
}

bool nbd_session_is_old(const struct nbd_conn *conn)
{
	return conn->session && conn->epoch < conn->session->newest;
}
