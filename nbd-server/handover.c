/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Handing clients over to another process. A frozen server begins no request and no option: what
 * was begun is carried out and answered, and then a connection is a descriptor, what was
 * negotiated on it, and the bytes that were read and not understood yet. These are packed, passed,
 * and unpacked by a server of the same exports, whose client sees nothing of it.
 *
 * Bytes come from another version of this program: all of them are checked, and the first number is
 * that of the format. Connections under TLS are not passed: what GnuTLS knows of them cannot be.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "blockmirror/base/list.h"
#include "nbd-server/internal.h"

enum {
	FIXED = 1,
	NO_ZEROES = 2,
	READ_ONLY = 4,
	HAS_EXPORT = 8,
	HAS_SELECTION = 16,
	HAS_SESSION = 32,
	ALL_BITS = 63,
	TEXT = NBD_MAX_NAME + 1,
};

/* Standing still */

static bool at_boundary(const struct nbd_conn *conn)
{
	return conn->state == NBD_FLAGS || conn->state == NBD_OPTION || conn->state == NBD_REQUEST;
}

bool nbd_handover_holds(const struct nbd_conn *conn)
{
	return conn->server->frozen && at_boundary(conn);
}

static bool is_quiet(const struct nbd_conn *conn)
{
	/* In the handshake it has nothing to lose, and is not passed. */
	if (conn->transport.tls && conn->state < NBD_REQUEST)
		return true;
	return at_boundary(conn) && conn->paused && !conn->busy && !conn->blocked &&
	       bm_list_empty(&conn->out) && bm_list_empty(&conn->held);
}

static const struct nbd_conn *find_busy(const struct nbd_server *server)
{
	bm_list_each(node, &server->conns) {
		const struct nbd_conn *conn = bm_container(node, struct nbd_conn, link);

		if (!is_quiet(conn))
			return conn;
	}
	return NULL;
}

static void report(struct nbd_server *server, const struct nbd_conn *busy)
{
	void (*done)(void *arg, const char *who) = server->froze;

	server->froze = NULL;
	bm_timer_clear(server->loop, &server->freeze_timer);
	bm_task_cancel(&server->freeze_look);
	done(server->froze_arg, busy ? busy->peer : NULL);
}

static void look(struct bm_task *task)
{
	struct nbd_server *server = bm_container(task, struct nbd_server, freeze_look);

	if (server->froze && !find_busy(server))
		report(server, NULL);
}

static void too_long(struct bm_timer *timer)
{
	struct nbd_server *server = bm_container(timer, struct nbd_server, freeze_timer);

	report(server, find_busy(server));
}

void nbd_handover_look(struct nbd_server *server)
{
	if (server->froze)
		bm_loop_soon(server->loop, &server->freeze_look);
}

void nbd_handover_init(struct nbd_server *server)
{
	server->freeze_look.run = look;
	server->freeze_timer.run = too_long;
}

int nbd_server_freeze(struct nbd_server *server, uint64_t limit,
		      void (*done)(void *arg, const char *busy), void *arg)
{
	int r = done ? bm_timer_set(server->loop, &server->freeze_timer,
				    bm_loop_now(server->loop) + limit)
		     : 0;

	if (r < 0)
		return r;
	server->froze = done;
	server->froze_arg = arg;
	server->frozen = true;
	nbd_listen_update(server);
	bm_list_each(node, &server->conns) {
		struct nbd_conn *conn = bm_container(node, struct nbd_conn, link);

		if (at_boundary(conn))
			nbd_conn_parse(conn);
	}
	nbd_handover_look(server);
	return 0;
}

void nbd_server_thaw(struct nbd_server *server)
{
	server->frozen = false;
	server->froze = NULL;
	bm_timer_clear(server->loop, &server->freeze_timer);
	bm_task_cancel(&server->freeze_look);
	nbd_listen_update(server);
	bm_list_each(node, &server->conns) {
		struct nbd_conn *conn = bm_container(node, struct nbd_conn, link);

		if (at_boundary(conn))
			nbd_conn_parse(conn);
	}
}

/* Packing */

static void put_text(struct nbd_writer *w, const char *text)
{
	size_t length = strlen(text);

	nbd_write_u16(w, (uint16_t)length);
	nbd_write(w, text, length);
}

static unsigned count_clear(const struct nbd_server *server)
{
	unsigned n = 0;

	bm_list_each(node, &server->conns)
		n += !bm_container(node, struct nbd_conn, link)->transport.tls;
	return n;
}

size_t nbd_server_pack(const struct nbd_server *server, uint8_t *parcel)
{
	struct nbd_writer w = {.at = parcel, .room = NBD_PARCEL};
	uint16_t sessions = 0;

	nbd_write_u16(&w, NBD_HANDOVER);
	nbd_write_u32(&w, count_clear(server));
	nbd_write_u32(&w, server->last_context);
	nbd_write_u16(&w, (uint16_t)server->offers);
	for (unsigned i = 0; i < server->offers; i++) {
		const struct nbd_offer *offer = &server->offer[i];

		put_text(&w, offer->name);
		nbd_write_u16(&w, (uint16_t)offer->contexts);
		for (unsigned k = 0; k < offer->contexts; k++) {
			put_text(&w, offer->context[k].name);
			nbd_write_u32(&w, offer->context[k].id);
		}
	}
	for (unsigned i = 0; i < NBD_SESSIONS; i++)
		sessions = (uint16_t)(sessions + (server->session[i].offer != NULL));
	nbd_write_u64(&w, server->sessions_left);
	nbd_write_u16(&w, sessions);
	for (unsigned i = 0; i < NBD_SESSIONS; i++) {
		const struct nbd_session *s = &server->session[i];

		if (!s->offer)
			continue;
		put_text(&w, s->offer->name);
		put_text(&w, s->name);
		nbd_write_u64(&w, s->newest);
		nbd_write_u64(&w, s->left);
	}
	return w.failed ? 0 : w.used;
}

static void put_negotiated(struct nbd_writer *w, const struct nbd_conn *conn)
{
	const struct nbd_selection *selected = &conn->selected;
	int bits = (conn->fixed ? FIXED : 0) | (conn->no_zeroes ? NO_ZEROES : 0) |
		   (conn->read_only ? READ_ONLY : 0) | (conn->offer ? HAS_EXPORT : 0) |
		   (selected->offer ? HAS_SELECTION : 0) | (conn->session ? HAS_SESSION : 0);

	nbd_write_u16(w, (uint16_t)conn->state);
	nbd_write_u16(w, (uint16_t)conn->mode);
	nbd_write_u16(w, (uint16_t)bits);
	nbd_write_u32(w, conn->options);
	if (conn->offer)
		put_text(w, conn->offer->name);
	if (selected->offer) {
		put_text(w, selected->offer->name);
		nbd_write_u16(w, (uint16_t)selected->count);
		for (unsigned i = 0; i < selected->count; i++)
			nbd_write_u32(w, selected->id[i]);
	}
	if (conn->session) {
		put_text(w, conn->session->name);
		nbd_write_u64(w, conn->epoch);
	}
}

static size_t pack(const struct nbd_conn *conn, uint8_t *parcel)
{
	struct nbd_writer w = {.at = parcel, .room = NBD_PARCEL};
	uint64_t now = bm_loop_now(conn->server->loop);

	nbd_write_u16(&w, NBD_HANDOVER);
	put_negotiated(&w, conn);
	put_text(&w, conn->peer);
	nbd_write_u64(&w, conn->requests);
	nbd_write_u64(&w, conn->bytes_read);
	nbd_write_u64(&w, conn->bytes_written);
	nbd_write_u64(&w, now - conn->active);
	nbd_write_u32(&w, (uint32_t)conn->used);
	nbd_write(&w, conn->input + conn->start, conn->used);
	return w.failed ? 0 : w.used;
}

int nbd_server_pass(const struct nbd_server *server,
		    int (*send)(void *arg, int fd, const uint8_t *parcel, size_t length), void *arg)
{
	uint8_t parcel[NBD_PARCEL];

	bm_list_each(node, &server->conns) {
		const struct nbd_conn *conn = bm_container(node, struct nbd_conn, link);
		size_t length = pack(conn, parcel);
		int r;

		if (conn->transport.tls)
			continue;
		r = length ? send(arg, conn->transport.in, parcel, length) : -EOVERFLOW;
		if (r < 0)
			return r;
	}
	return 0;
}

void nbd_server_abandon(struct nbd_server *server)
{
	bm_list_each(node, &server->conns)
		nbd_conn_close(bm_container(node, struct nbd_conn, link));
}

/* Unpacking */

/* At most size - 1 bytes, none of them 0. */
static void read_text(struct nbd_reader *r, char *text, size_t size)
{
	uint16_t length = nbd_read_u16(r);
	const uint8_t *at = nbd_read(r, length);

	*text = '\0';
	if (!at || length >= size || memchr(at, '\0', length)) {
		r->failed = true;
		return;
	}
	memcpy(text, at, length);
	text[length] = '\0';
}

static struct nbd_offer *read_export(struct nbd_server *server, struct nbd_reader *r)
{
	char name[TEXT];

	read_text(r, name, sizeof(name));
	for (unsigned i = 0; !r->failed && i < server->offers; i++)
		if (!strcmp(server->offer[i].name, name))
			return &server->offer[i];
	r->failed = true;
	return NULL;
}

/*
 * Contexts have the ids there that clients know them by. One that only we have gets a number that
 * was never given, and so the ids of those that only the other one had stay unused.
 */
static void read_contexts(struct nbd_server *server, struct nbd_reader *r)
{
	struct nbd_offer *offer = read_export(server, r);
	uint16_t count = nbd_read_u16(r);
	bool known[NBD_MAX_CONTEXTS] = {0};
	char name[TEXT];
	uint32_t id;

	if (count > NBD_MAX_CONTEXTS)
		r->failed = true;
	for (unsigned i = 0; !r->failed && i < count; i++) {
		read_text(r, name, sizeof(name));
		id = nbd_read_u32(r);
		for (unsigned k = 0; k < offer->contexts; k++)
			if (!strcmp(offer->context[k].name, name)) {
				offer->context[k].id = id;
				known[k] = true;
			}
	}
	for (unsigned k = 0; !r->failed && k < offer->contexts; k++)
		if (!known[k])
			offer->context[k].id = ++server->last_context;
}

static void read_session(struct nbd_server *server, struct nbd_reader *r, unsigned at)
{
	struct nbd_session *s = &server->session[at];

	*s = (struct nbd_session){.offer = read_export(server, r)};
	read_text(r, s->name, sizeof(s->name));
	s->newest = nbd_read_u64(r);
	s->left = nbd_read_u64(r);
}

int nbd_server_unpack(struct nbd_server *server, const uint8_t *parcel, size_t length)
{
	struct nbd_reader r = {.at = parcel, .left = length};
	uint16_t version = nbd_read_u16(&r), count;
	uint32_t clients = nbd_read_u32(&r);

	server->last_context = nbd_read_u32(&r);
	count = nbd_read_u16(&r);
	if (version != NBD_HANDOVER || clients > INT32_MAX || count > NBD_MAX_EXPORTS)
		return -EPROTO;
	while (count-- && !r.failed)
		read_contexts(server, &r);
	server->sessions_left = nbd_read_u64(&r);
	count = nbd_read_u16(&r);
	if (count > NBD_SESSIONS)
		return -EPROTO;
	for (unsigned i = 0; !r.failed && i < count; i++)
		read_session(server, &r, i);
	return nbd_read_whole(&r) ? (int)clients : -EPROTO;
}

struct passed {
	uint16_t state, mode, bits;
	uint32_t options;
	const struct nbd_offer *offer;
	struct nbd_selection selected;
	struct nbd_session_id session;
	char peer[NBD_PEER_TEXT];
	uint64_t requests, bytes_read, bytes_written, idle;
	uint32_t used;
	const uint8_t *input;
};

static void read_selection(struct nbd_server *server, struct nbd_reader *r,
			   struct nbd_selection *selected)
{
	selected->offer = read_export(server, r);
	selected->count = nbd_read_u16(r);
	if (selected->count > NBD_MAX_CONTEXTS + 1)
		r->failed = true;
	for (unsigned i = 0; !r->failed && i < selected->count; i++)
		selected->id[i] = nbd_read_u32(r);
}

static bool makes_sense(const struct passed *p)
{
	bool serves = p->state == NBD_REQUEST;

	return (p->state == NBD_FLAGS || p->state == NBD_OPTION || serves) &&
	       p->mode <= NBD_EXTENDED && !(p->bits & ~ALL_BITS) &&
	       serves == !!(p->bits & HAS_EXPORT) && p->used <= NBD_INPUT &&
	       (!(p->bits & HAS_SESSION) || p->bits & HAS_SELECTION);
}

static bool read_passed(struct nbd_server *server, struct nbd_reader *r, struct passed *p)
{
	uint16_t version = nbd_read_u16(r);

	p->state = nbd_read_u16(r);
	p->mode = nbd_read_u16(r);
	p->bits = nbd_read_u16(r);
	p->options = nbd_read_u32(r);
	if (version != NBD_HANDOVER)
		return false;
	if (p->bits & HAS_EXPORT)
		p->offer = read_export(server, r);
	if (p->bits & HAS_SELECTION)
		read_selection(server, r, &p->selected);
	if (p->bits & HAS_SESSION) {
		read_text(r, p->session.name, sizeof(p->session.name));
		p->session.epoch = nbd_read_u64(r);
	}
	read_text(r, p->peer, sizeof(p->peer));
	p->requests = nbd_read_u64(r);
	p->bytes_read = nbd_read_u64(r);
	p->bytes_written = nbd_read_u64(r);
	p->idle = nbd_read_u64(r);
	p->used = nbd_read_u32(r);
	p->input = nbd_read(r, p->used);
	return nbd_read_whole(r) && makes_sense(p);
}

static void become(struct nbd_conn *conn, const struct passed *p)
{
	uint64_t now = bm_loop_now(conn->server->loop);

	conn->state = p->state;
	conn->mode = p->mode;
	conn->fixed = p->bits & FIXED;
	conn->no_zeroes = p->bits & NO_ZEROES;
	conn->read_only = p->bits & READ_ONLY;
	conn->options = p->options;
	conn->offer = p->offer;
	conn->selected = p->selected;
	conn->requests = conn->seen = p->requests;
	conn->bytes_read = p->bytes_read;
	conn->bytes_written = p->bytes_written;
	conn->active = p->idle < now ? now - p->idle : 0;
	memcpy(conn->input, p->input, p->used);
	conn->used = p->used;
	conn->paused = true;
	if (conn->state == NBD_REQUEST)
		bm_timer_clear(conn->server->loop, &conn->handshake);
}

int nbd_server_take(struct nbd_server *server, int fd, const uint8_t *parcel, size_t length)
{
	struct nbd_reader r = {.at = parcel, .left = length};
	struct passed p = {0};
	struct nbd_conn *conn;
	int error;

	assert(server->frozen);
	if (!read_passed(server, &r, &p))
		return -EPROTO;
	error = nbd_conn_open(server, fd, fd, p.peer, &conn);
	if (error < 0)
		return error;
	become(conn, &p);
	if (p.bits & HAS_SESSION)
		nbd_session_join(conn, p.selected.offer, &p.session);
	return 0;
}
