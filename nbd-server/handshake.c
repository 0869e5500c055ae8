/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The handshake: fixed newstyle negotiation (proto.md, "Newstyle negotiation"). Every option's data
 * is read through a reader that ends where the option ends, and is taken from the input whole,
 * whatever the handler made of it: an option that fails never takes the next one with it.
 */
#include <endian.h>
#include <string.h>

#include "blockmirror/base/list.h"
#include "nbd-server/internal.h"

enum {
	OPTIONS = 32,          /* that a client may send; as many per export: it may ask for each */
	SKIPPED = 32 << 20,    /* longest option data that is dropped rather than the client */
	REPLY_ROOM = 64 << 10, /* for all replies to one option */
	PREFERRED_BLOCK = 4096,
	MAX_PAYLOAD = 32 << 20, /* what we ask clients to keep to; request.c takes more */
};
static_assert(NBD_MAX_EXPORTS * (sizeof(struct nbd_wire_option_reply) + 4 + 2ul * NBD_MAX_NAME) +
			      sizeof(struct nbd_wire_option_reply) <=
		      REPLY_ROOM,
	      "the answer to LIST is the longest one, and fits");

struct answer {
	struct nbd_conn *conn;
	struct nbd_reader data;   /* of the option */
	struct nbd_writer writer; /* of the replies */
};

void nbd_greet(struct nbd_conn *conn)
{
	const struct nbd_wire_greeting greeting = {
		.magic = htobe64(NBD_MAGIC),
		.option_magic = htobe64(NBD_OPTION_MAGIC),
		.flags = htobe16(NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES),
	};
	struct nbd_piece *piece = nbd_piece_get(conn, NULL, 0);

	static_assert(sizeof(greeting) <= NBD_HEADER, "the greeting fits");
	memcpy(piece->header, &greeting, sizeof(greeting));
	piece->header_length = sizeof(greeting);
	nbd_piece_send(piece);
}

/* Begins a reply; length bytes of payload are written after it. */
static void reply(struct answer *a, uint32_t type, size_t length)
{
	const struct nbd_wire_option_reply header = {
		.magic = htobe64(NBD_OPTION_REPLY_MAGIC),
		.option = htobe32(a->conn->option),
		.type = htobe32(type),
		.length = htobe32((uint32_t)length),
	};

	nbd_write(&a->writer, &header, sizeof(header));
}

static void reply_error(struct answer *a, uint32_t type, const char *text)
{
	reply(a, type, strlen(text));
	nbd_write(&a->writer, text, strlen(text));
}

static void malformed(struct answer *a)
{
	reply_error(a, NBD_REP_ERR_INVALID, "the option's data is not well formed");
}

/*
 * "SELECTIVETLS mode": what this client may not open he might after STARTTLS. He is told so whether
 * there is such an export or not.
 */
static void unknown_export(struct answer *a)
{
	const struct nbd_conn *conn = a->conn;

	if (conn->server->tls == NBD_TLS_ON && conn->server->options.access &&
	    !conn->transport.tls && (conn->option == NBD_OPT_INFO || conn->option == NBD_OPT_GO))
		reply_error(a, NBD_REP_ERR_TLS_REQD, "no such export without TLS");
	else
		reply_error(a, NBD_REP_ERR_UNKNOWN, "this server has no export of that name");
}

/* A string behind its length; NULL when it is cut off. */
static const uint8_t *read_string(struct nbd_reader *r, uint32_t *length)
{
	*length = nbd_read_u32(r);
	return nbd_read(r, *length);
}

/* Whether the option has no data, as it should. */
static bool bare(struct answer *a)
{
	if (!a->data.left)
		return true;
	malformed(a);
	return false;
}

/* Choosing an export */

/*
 * Whether BLOCK_STATUS takes a payload. INFO tells that it would, to who has yet to select contexts
 * ("SHOULD NOT … in response to … NBD_OPT_GO if the client does not negotiate metacontexts").
 */
static bool takes_queries(const struct nbd_conn *conn, const struct nbd_offer *offer)
{
	return conn->mode == NBD_EXTENDED &&
	       (conn->option == NBD_OPT_INFO || conn->selected.offer == offer);
}

/* "Transmission flags". They belong to the session: DF needs replies in chunks. */
static uint16_t transmission_flags(const struct nbd_conn *conn, const struct nbd_offer *offer)
{
	uint32_t device = offer->dev->geometry.flags;
	uint32_t flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
			 NBD_FLAG_SEND_CACHE | NBD_FLAG_CAN_MULTI_CONN;

	if (offer->read_only || device & BM_DEV_READ_ONLY || conn->access != NBD_ACCESS_WRITE)
		flags |= NBD_FLAG_READ_ONLY;
	else
		flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
	if (device & BM_DEV_ROTATIONAL)
		flags |= NBD_FLAG_ROTATIONAL;
	if (conn->mode != NBD_SIMPLE)
		flags |= NBD_FLAG_SEND_DF;
	if (takes_queries(conn, offer))
		flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD;
	return (uint16_t)flags;
}

static struct nbd_wire_export describe(const struct nbd_conn *conn, const struct nbd_offer *offer)
{
	return (struct nbd_wire_export){
		.size = htobe64(offer->dev->geometry.size),
		.flags = htobe16(transmission_flags(conn, offer)),
	};
}

/* Why the client may not have the export now; NULL: it may. */
static const char *refusal(const struct nbd_conn *conn, const struct nbd_offer *offer)
{
	if (nbd_session_is_old(conn))
		return "a newer session has taken the place of this one";
	if (!nbd_limits_admit(conn->server, offer))
		return "the export has as many clients as it may have";
	return NULL;
}

/* The handshake is over. Contexts that were selected for another export are void. */
static void enter_transmission(struct nbd_conn *conn, const struct nbd_offer *offer)
{
	conn->offer = offer;
	conn->read_only = offer->read_only || conn->access != NBD_ACCESS_WRITE;
	if (conn->selected.offer != offer) {
		conn->selected = (struct nbd_selection){0};
		nbd_compressed_deselect(conn);
	}
	if (conn->session && conn->session->offer != offer)
		nbd_session_leave(conn);
	conn->state = NBD_REQUEST;
	bm_timer_clear(conn->server->loop, &conn->handshake);
}

/* It has no way to report an error: the connection ends. */
static void export_name(struct answer *a)
{
	static const uint8_t zeroes[NBD_ZEROES];
	struct nbd_conn *conn = a->conn;
	const struct nbd_offer *offer = nbd_conn_find(conn, a->data.at, a->data.left);
	const char *why = "it asked for an export that does not exist";
	struct nbd_wire_export wire;

	if (offer)
		why = conn->mode == NBD_EXTENDED ? "extended headers need NBD_OPT_GO"
						 : refusal(conn, offer);
	if (why) {
		nbd_conn_violated(conn, why);
		return;
	}
	wire = describe(conn, offer);
	nbd_write(&a->writer, &wire, sizeof(wire));
	if (!conn->no_zeroes)
		nbd_write(&a->writer, zeroes, sizeof(zeroes));
	enter_transmission(conn, offer);
}

static void info_text(struct answer *a, enum nbd_info info, const char *text)
{
	reply(a, NBD_REP_INFO, 2 + strlen(text));
	nbd_write_u16(&a->writer, (uint16_t)info);
	nbd_write(&a->writer, text, strlen(text));
}

static void info_sizes(struct answer *a, const struct nbd_offer *offer)
{
	struct nbd_wire_export wire = describe(a->conn, offer);

	reply(a, NBD_REP_INFO, 2 + sizeof(wire));
	nbd_write_u16(&a->writer, NBD_INFO_EXPORT);
	nbd_write(&a->writer, &wire, sizeof(wire));
	reply(a, NBD_REP_INFO, 2 + 3 * 4);
	nbd_write_u16(&a->writer, NBD_INFO_BLOCK_SIZE);
	nbd_write_u32(&a->writer, 1);
	nbd_write_u32(&a->writer, PREFERRED_BLOCK);
	nbd_write_u32(&a->writer, MAX_PAYLOAD);
}

/* INFO and GO. The sizes are told whether asked for or not; what we do not know is not an error. */
static void info(struct answer *a)
{
	const struct nbd_offer *offer;
	bool name = false, description = false;
	const char *why;
	uint32_t length;
	const uint8_t *text = read_string(&a->data, &length);

	for (unsigned left = nbd_read_u16(&a->data); left; left--) {
		uint16_t kind = nbd_read_u16(&a->data);

		name |= kind == NBD_INFO_NAME;
		description |= kind == NBD_INFO_DESCRIPTION;
	}
	if (!nbd_read_whole(&a->data)) {
		malformed(a);
		return;
	}
	offer = nbd_conn_find(a->conn, text, length);
	if (!offer) {
		unknown_export(a);
		return;
	}
	why = a->conn->option == NBD_OPT_GO ? refusal(a->conn, offer) : NULL;
	if (why) {
		reply_error(a, NBD_REP_ERR_POLICY, why);
		return;
	}
	info_sizes(a, offer);
	if (name)
		info_text(a, NBD_INFO_NAME, offer->name);
	if (description && *offer->description)
		info_text(a, NBD_INFO_DESCRIPTION, offer->description);
	reply(a, NBD_REP_ACK, 0);
	if (a->conn->option == NBD_OPT_GO)
		enter_transmission(a->conn, offer);
}

/* The other options */

static void list(struct answer *a)
{
	const struct nbd_server *server = a->conn->server;

	if (!bare(a))
		return;
	for (unsigned i = 0; i < server->offers; i++) {
		const struct nbd_offer *offer = &server->offer[i];
		size_t name = strlen(offer->name), description = strlen(offer->description);

		if (nbd_conn_access(a->conn, offer) == NBD_ACCESS_NONE)
			continue;
		reply(a, NBD_REP_SERVER, 4 + name + description);
		nbd_write_u32(&a->writer, (uint32_t)name);
		nbd_write(&a->writer, offer->name, name);
		nbd_write(&a->writer, offer->description, description);
	}
	reply(a, NBD_REP_ACK, 0);
}

static void deselect(struct nbd_conn *conn)
{
	conn->selected = (struct nbd_selection){0};
	nbd_compressed_deselect(conn);
	nbd_session_leave(conn);
}

/*
 * What came before TLS an attacker may have said: it counts no more, and what lies in the buffer
 * behind it is not to be taken for the client's words later (CVE-2021-3716).
 */
static void starttls(struct answer *a)
{
	struct nbd_conn *conn = a->conn;

	if (!bare(a))
		return;
	if (conn->server->tls == NBD_TLS_OFF) { /* "NOTLS mode" */
		reply_error(a, NBD_REP_ERR_UNSUP, "TLS is not offered here");
	} else if (conn->transport.tls) {
		reply_error(a, NBD_REP_ERR_INVALID, "TLS is in use already");
	} else if (!conn->fixed) { /* "Server-side requirements" */
		reply_error(a, NBD_REP_ERR_POLICY, "TLS needs fixed newstyle negotiation");
	} else if (conn->used) {
		nbd_conn_violated(conn, "it sent plain text between STARTTLS and TLS");
	} else {
		conn->mode = NBD_SIMPLE;
		deselect(conn);
		conn->state = NBD_TLS_ACK;
		reply(a, NBD_REP_ACK, 0);
	}
}

/* "FORCEDTLS mode": whether the option has to wait for TLS. */
static bool needs_tls(const struct nbd_conn *conn)
{
	return conn->server->tls == NBD_TLS_REQUIRE && !conn->transport.tls &&
	       conn->option != NBD_OPT_STARTTLS && conn->option != NBD_OPT_ABORT;
}

static void refuse_plain(struct answer *a)
{
	if (a->conn->option == NBD_OPT_EXPORT_NAME) /* which has no way to report an error */
		nbd_conn_violated(a->conn, "it asked for an export without TLS");
	else
		reply_error(a, NBD_REP_ERR_TLS_REQD, "TLS has to be negotiated first");
}

static void structured_reply(struct answer *a)
{
	if (!bare(a))
		return;
	if (a->conn->mode == NBD_EXTENDED) {
		reply_error(a, NBD_REP_ERR_EXT_HEADER_REQD,
			    "extended headers are negotiated already, and take precedence");
		return;
	}
	a->conn->mode = NBD_STRUCTURED;
	reply(a, NBD_REP_ACK, 0);
}

static void extended_headers(struct answer *a)
{
	if (!bare(a))
		return;
	a->conn->mode = NBD_EXTENDED;
	reply(a, NBD_REP_ACK, 0);
}

static void reply_context(struct answer *a, uint32_t id, const char *name)
{
	reply(a, NBD_REP_META_CONTEXT, 4 + strlen(name));
	nbd_write_u32(&a->writer, id);
	nbd_write(&a->writer, name, strlen(name));
}

/* What was chosen, one reply each. LIST_ has no ids: "SHOULD be set to zero". */
static void reply_contexts(struct answer *a, const struct nbd_offer *offer, uint32_t chosen,
			   bool compressed, bool listing)
{
	char session[NBD_SESSION_TEXT];

	for (unsigned i = 0; i < offer->contexts; i++) {
		const struct nbd_context *context = &offer->context[i];

		if (chosen >> i & 1)
			reply_context(a, listing ? 0 : context->id, context->name);
	}
	if (!listing && a->conn->session) {
		nbd_session_text(a->conn, session);
		reply_context(a, NBD_SESSION_CONTEXT, session);
	}
	if (compressed)
		reply_context(a, listing ? 0 : NBD_COMPRESSED_CONTEXT, NBD_COMPRESSED_NAME);
	reply(a, NBD_REP_ACK, 0);
}

/* LIST_ and SET_META_CONTEXT. SET replaces what was selected before even when it fails. */
static void meta_context(struct answer *a)
{
	struct nbd_conn *conn = a->conn;
	bool listing = conn->option == NBD_OPT_LIST_META_CONTEXT, joins = false, compressed = false;
	struct nbd_session_id session = {0};
	const struct nbd_offer *offer;
	uint32_t length, queries, chosen = 0;
	const uint8_t *name = read_string(&a->data, &length);

	if (!listing)
		deselect(conn);
	offer = name ? nbd_conn_find(conn, name, length) : NULL;
	queries = nbd_read_u32(&a->data);
	if (offer && listing && !queries) {
		chosen = nbd_contexts_named(offer, NULL, 0, true);
		compressed = true;
	}
	for (uint32_t i = 0; i < queries && !a->data.failed; i++) {
		const uint8_t *query = read_string(&a->data, &length);

		if (offer && query) {
			chosen |= nbd_contexts_named(offer, query, length, listing);
			joins |= nbd_session_query(query, length, &session);
			compressed |= nbd_compressed_query(query, length, listing);
		}
	}
	if (!nbd_read_whole(&a->data)) {
		malformed(a);
		return;
	}
	if (conn->mode == NBD_SIMPLE) {
		reply_error(a, NBD_REP_ERR_INVALID,
			    "structured replies or extended headers have to be negotiated first");
		return;
	}
	if (!offer) {
		unknown_export(a);
		return;
	}
	/* Who may only read must not end the session of one who writes. */
	joins &= conn->access == NBD_ACCESS_WRITE;
	compressed &= conn->access == NBD_ACCESS_WRITE && !offer->read_only && conn->transport.tls;
	if (!listing) {
		nbd_contexts_select(conn, offer, chosen, joins ? &session : NULL, compressed);
		compressed = conn->compressed;
	}
	reply_contexts(a, offer, chosen, compressed, listing);
}

static void handle(struct answer *a)
{
	switch (a->conn->option) {
	case NBD_OPT_EXPORT_NAME:
		export_name(a);
		break;
	case NBD_OPT_ABORT:
		reply(a, NBD_REP_ACK, 0);
		nbd_conn_finish(a->conn);
		break;
	case NBD_OPT_LIST:
		list(a);
		break;
	case NBD_OPT_STARTTLS:
		starttls(a);
		break;
	case NBD_OPT_INFO:
	case NBD_OPT_GO:
		info(a);
		break;
	case NBD_OPT_STRUCTURED_REPLY:
		structured_reply(a);
		break;
	case NBD_OPT_EXTENDED_HEADERS:
		extended_headers(a);
		break;
	case NBD_OPT_LIST_META_CONTEXT:
	case NBD_OPT_SET_META_CONTEXT:
		meta_context(a);
		break;
	default:
		reply_error(a, NBD_REP_ERR_UNSUP, "the option is not known here");
		break;
	}
}

/* The parser */

/* "Client flags": an unknown bit MUST end the connection. */
static enum nbd_step flags_step(struct nbd_conn *conn)
{
	const uint8_t *input = nbd_input(conn, sizeof(uint32_t));
	struct nbd_reader r = {.at = input, .left = sizeof(uint32_t)};
	uint32_t flags;

	if (!input)
		return NBD_MORE_INPUT;
	flags = nbd_read_u32(&r);
	nbd_input_take(conn, sizeof(uint32_t));
	conn->fixed = flags & NBD_FIXED_NEWSTYLE;
	conn->no_zeroes = flags & NBD_NO_ZEROES;
	conn->state = NBD_OPTION;
	if (flags & ~(NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES))
		nbd_conn_violated(conn, "it has set unknown client flags");
	return NBD_GO_ON;
}

static enum nbd_step option_step(struct nbd_conn *conn)
{
	struct nbd_wire_option wire;
	const uint8_t *input = nbd_input(conn, sizeof(wire));

	if (!input)
		return NBD_MORE_INPUT;
	memcpy(&wire, input, sizeof(wire));
	nbd_input_take(conn, sizeof(wire));
	conn->option = be32toh(wire.option);
	conn->skip = be32toh(wire.length);
	conn->state = conn->skip > NBD_INPUT ? NBD_OPTION_SKIP : NBD_OPTION_DATA;
	if (be64toh(wire.magic) != NBD_OPTION_MAGIC)
		nbd_conn_violated(conn, "what it sent is no NBD option");
	else if (++conn->options > OPTIONS * (1 + conn->server->offers))
		nbd_conn_violated(conn, "it sent too many options");
	else if (conn->skip > SKIPPED ||
		 (conn->option == NBD_OPT_EXPORT_NAME && conn->skip > NBD_MAX_STRING))
		nbd_conn_violated(conn, "it sent an option that is too long");
	return NBD_GO_ON;
}

static bool chooses(const struct nbd_conn *conn)
{
	return conn->option == NBD_OPT_GO || conn->option == NBD_OPT_EXPORT_NAME;
}

/* All data of the option is there, or (too_long) was dropped. */
static enum nbd_step answer(struct nbd_conn *conn, const uint8_t *data, size_t length,
			    bool too_long)
{
	struct answer a = {.conn = conn, .data = {.at = data, .left = length}};
	struct nbd_piece *piece;

	if (chooses(conn) && nbd_session_waits(conn))
		return NBD_WAIT;
	piece = nbd_piece_get(conn, NULL, REPLY_ROOM);
	if (!piece)
		return NBD_WAIT;
	a.writer = (struct nbd_writer){.at = piece->buf->data, .room = REPLY_ROOM};
	conn->state = NBD_OPTION;
	if (too_long && conn->option == NBD_OPT_SET_META_CONTEXT)
		deselect(conn); /* as any SET that fails */
	if (needs_tls(conn))
		refuse_plain(&a);
	else if (too_long && conn->option != NBD_OPT_ABORT)
		reply_error(&a, NBD_REP_ERR_TOO_BIG, "the option's data is too long");
	else
		handle(&a);
	if (conn->state == NBD_DEAD)
		return NBD_GO_ON;
	assert(!a.writer.failed);
	nbd_input_take(conn, length);
	piece->data_length = a.writer.used;
	nbd_piece_send(piece);
	return NBD_GO_ON;
}

enum nbd_step nbd_handshake_step(struct nbd_conn *conn)
{
	const uint8_t *data;
	enum nbd_step step;

	switch (conn->state) {
	case NBD_FLAGS:
		return flags_step(conn);
	case NBD_OPTION:
		return option_step(conn);
	case NBD_OPTION_DATA:
		data = nbd_input(conn, conn->skip);
		return data ? answer(conn, data, conn->skip, false) : NBD_MORE_INPUT;
	case NBD_TLS_ACK:
		return NBD_WAIT;
	case NBD_TLS_HELLO:
		return NBD_MORE_INPUT;
	default:
		step = nbd_input_skip(conn);
		return step == NBD_GO_ON ? answer(conn, NULL, 0, true) : step;
	}
}
