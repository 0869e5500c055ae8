/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Requests: from their headers to the device (proto.md, "Transmission phase"). A request that is
 * refused is answered and no more; only what cannot be a request ends the connection. The payload
 * of one that is refused is read and dropped, since the next header comes after it.
 */
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "blockmirror/base/list.h"
#include "nbd-server/internal.h"

enum { EXTENTS = 4096 /* of one answer */ };

/* At the device */

static void piece_done(struct bm_request *rq, int error)
{
	struct nbd_piece *piece = bm_container(rq, struct nbd_piece, rq);
	struct nbd_request *request = piece->request;
	struct nbd_conn *conn = piece->conn;

	conn->at_device--;
	if (conn->state == NBD_DEAD) {
		if (!conn->at_device)
			bm_loop_soon(conn->server->loop, &conn->end);
		return;
	}
	request->open--;
	if (error && !request->error)
		request->error = error;
	if (request->command == NBD_CMD_READ)
		nbd_reply_read(piece, error);
	else if (request->command == NBD_CMD_BLOCK_STATUS)
		nbd_reply_status(piece);
	else if (request->open)
		nbd_piece_free(piece);
	else
		nbd_reply(piece);
}

static uint32_t device_flags(uint16_t flags)
{
	return (flags & NBD_CMD_FLAG_FUA ? BM_FUA : 0) |
	       (flags & NBD_CMD_FLAG_NO_HOLE ? BM_NO_HOLE : 0) |
	       (flags & NBD_CMD_FLAG_FAST_ZERO ? BM_FAST : 0);
}

/* Prepares piece for the next length bytes of its request. */
static void set_up(struct nbd_piece *piece, uint64_t length)
{
	struct nbd_request *request = piece->request;
	struct bm_request *rq = &piece->rq;

	rq->op = nbd_commands[request->command].op;
	rq->flags = nbd_commands[request->command].writes ? device_flags(request->flags) : 0;
	rq->offset = request->at;
	rq->length = length;
	rq->buf = piece->buf;
	rq->data = piece->buf ? piece->buf->data : NULL;
	rq->extents = &piece->extents;
	rq->done = piece_done;
	request->at += length;
}

static void submit(struct nbd_piece *piece, struct bm_dev *dev)
{
	piece->request->open++;
	piece->conn->at_device++;
	bm_submit(dev, &piece->rq);
}

/*
 * The next piece of a READ or WRITE, with its buffer: all there is left, or up to the next multiple
 * of the largest buffer, so that the pieces between the first and the last one are aligned as well
 * as can be. NULL: the parser has to wait.
 *
 * A READ that streams holds other replies back, and gets on with the memory of its own pieces. So
 * all of these have the largest buffer, also the first one, which may be short:
 *
 *	It has sent its 4 KiB; the replies that it holds back have all memory but these; its next
 *piece needs 1 MiB, and waits for ever.
 */
static struct nbd_piece *next_piece(struct nbd_conn *conn, struct nbd_request *request)
{
	uint64_t length = request->offset + request->length - request->at;
	struct nbd_piece *piece;

	if (length > BM_BUF_MAX)
		length = BM_BUF_MAX - request->at % BM_BUF_MAX;
	piece = nbd_piece_get(conn, request, request->streams ? BM_BUF_MAX : length);
	if (piece)
		set_up(piece, length);
	return piece;
}

/* The parser leaves the request that it is at and goes on to the next one. */
static void leave(struct nbd_conn *conn)
{
	conn->current->open--;
	conn->current = NULL;
	conn->state = NBD_REQUEST;
}

void nbd_request_free(struct nbd_conn *conn, struct nbd_request *request)
{
	bm_list_push(&conn->free_requests, &request->link);
	conn->busy--;
	if (conn->paused)
		bm_loop_soon(conn->server->loop, &conn->resume);
}

void nbd_request_abandon(struct nbd_conn *conn)
{
	struct nbd_request *request = conn->current;

	if (conn->filling)
		nbd_piece_free(conn->filling);
	conn->filling = NULL;
	conn->current = NULL;
	if (!request->error)
		request->error = nbd_refuse(request, -EIO, "the data was cut off");
	if (!--request->open)
		nbd_request_free(conn, request);
}

/* The parser */

struct header {
	uint32_t magic;
	uint16_t flags, type;
	uint64_t cookie, offset, length;
};

/* Compact or extended: they differ in the length's size. The cookie stays as it came. */
static struct header read_header(struct nbd_reader *r, bool extended)
{
	struct header h = {.magic = nbd_read_u32(r)};

	h.flags = nbd_read_u16(r);
	h.type = nbd_read_u16(r);
	memcpy(&h.cookie, nbd_read(r, sizeof(h.cookie)), sizeof(h.cookie));
	h.offset = nbd_read_u64(r);
	h.length = extended ? nbd_read_u64(r) : nbd_read_u32(r);
	return h;
}

/* Bytes that follow the header: "Request message" has it for both forms. */
static uint64_t payload_of(const struct header *h, bool extended)
{
	bool has = extended ? h->flags & NBD_CMD_FLAG_PAYLOAD_LEN : h->type == NBD_CMD_WRITE;

	return has ? h->length : 0;
}

/* BLOCK_STATUS with a payload, whose length may be that of a list of selected contexts. */
static bool is_query(const struct nbd_conn *conn, const struct nbd_request *request)
{
	uint64_t ids = request->payload - sizeof(uint64_t);

	return request->command == NBD_CMD_BLOCK_STATUS && request->payload > sizeof(uint64_t) &&
	       ids % sizeof(uint32_t) == 0 && ids / sizeof(uint32_t) <= conn->selected.count;
}

static enum nbd_state first_state(const struct nbd_request *request)
{
	if (request->error)
		return request->payload ? NBD_PAYLOAD_SKIP : NBD_OTHER;
	if (request->command == NBD_CMD_WRITE && request->length)
		return NBD_PAYLOAD;
	if (request->command == NBD_CMD_READ && request->length)
		return NBD_READING;
	if (request->command == NBD_CMD_BLOCK_STATUS)
		return NBD_STATUS;
	return NBD_OTHER;
}

/* All is known that decides whether the request is carried out. */
static void decide(struct nbd_conn *conn)
{
	struct nbd_request *request = conn->current;

	request->error = nbd_check(conn, request);
	request->streams = request->command == NBD_CMD_READ && !request->error &&
			   nbd_reply_streams(conn, request->length);
	conn->skip = (uint32_t)request->payload;
	conn->state = first_state(request);
}

static void begin(struct nbd_conn *conn, const struct header *h)
{
	struct nbd_request *request;

	assert(!bm_list_empty(&conn->free_requests)); /* there is one more than pieces */
	request = bm_container(bm_list_take(&conn->free_requests), struct nbd_request, link);
	conn->busy++;
	conn->current = request;
	request->open = 1;
	request->command = h->type;
	request->flags = h->flags;
	request->cookie = h->cookie;
	request->offset = request->at = h->offset;
	request->length = h->length;
	request->payload = payload_of(h, conn->mode == NBD_EXTENDED);
	request->contexts = (1u << conn->selected.count) - 1;
	request->error = 0;
	request->text = NULL;
	request->streams = request->started = false;
	if (is_query(conn, request))
		conn->state = NBD_QUERY;
	else if (nbd_compressed_expects(conn, request))
		conn->state = NBD_COMPRESSED;
	else
		decide(conn);
}

static enum nbd_step header_step(struct nbd_conn *conn)
{
	bool extended = conn->mode == NBD_EXTENDED;
	size_t size = extended ? sizeof(struct nbd_wire_extended_request)
			       : sizeof(struct nbd_wire_request);
	struct nbd_reader r = {.at = nbd_input(conn, size), .left = size};
	struct header h;

	if (!r.at)
		return NBD_MORE_INPUT;
	if (conn->busy == conn->server->options.max_requests)
		return NBD_WAIT;
	h = read_header(&r, extended);
	nbd_input_take(conn, size);
	if (h.magic != (extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC))
		nbd_conn_violated(conn, "what it sent is no NBD request");
	else if (h.type == NBD_CMD_DISC)
		nbd_conn_finish(conn);
	/* "SHOULD initiate hard disconnect"; a compact one is dropped, however long */
	else if (extended && payload_of(&h, true) > NBD_LONGEST)
		nbd_conn_violated(conn, "it announced a payload that is too long");
	else
		begin(conn, &h);
	return NBD_GO_ON;
}

/* The payload of a BLOCK_STATUS: which of the selected contexts, and of how much. */
static enum nbd_step query_step(struct nbd_conn *conn)
{
	struct nbd_request *request = conn->current;
	size_t size = (size_t)request->payload;
	struct nbd_reader r = {.at = nbd_input(conn, size), .left = size};
	bool good;

	if (!r.at)
		return NBD_MORE_INPUT;
	good = nbd_check_query(conn, request, &r);
	nbd_input_take(conn, size);
	request->payload = 0;
	decide(conn);
	if (!good && !request->error) {
		request->error =
			nbd_refuse(request, -EINVAL, "not the ids of contexts that were selected");
		conn->state = NBD_OTHER;
	}
	return NBD_GO_ON;
}

/* The payload of a WRITE goes to the device piece by piece, as it comes in. */
static enum nbd_step payload_step(struct nbd_conn *conn)
{
	struct nbd_request *request = conn->current;
	struct nbd_piece *piece = conn->filling;
	size_t part;

	if (!piece && request->error) { /* an earlier piece has failed */
		conn->skip = (uint32_t)(request->offset + request->length - request->at);
		conn->state = NBD_PAYLOAD_SKIP;
		return NBD_GO_ON;
	}
	if (!piece) {
		piece = conn->filling = next_piece(conn, request);
		if (!piece)
			return NBD_WAIT;
	}
	part = piece->rq.length - piece->filled;
	part = part < conn->used ? part : conn->used;
	memcpy(piece->rq.data + piece->filled, nbd_input(conn, part), part);
	nbd_input_take(conn, part);
	piece->filled += part;
	if (piece->filled < piece->rq.length)
		return NBD_MORE_INPUT;
	conn->filling = NULL;
	submit(piece, conn->offer->dev);
	if (request->at == request->offset + request->length)
		leave(conn);
	return NBD_GO_ON;
}

/*
 * A compressed payload is all there: what it is of is a write like another, of one piece. It may be
 * looked at twice, when there was no piece.
 */
static enum nbd_step compressed_done(struct nbd_conn *conn)
{
	struct nbd_request *request = conn->current;
	struct nbd_piece *piece = NULL;

	request->flags &= (uint16_t)~NBD_CMD_FLAG_COMPRESSED;
	request->length = nbd_compressed_length(conn);
	request->error = nbd_check(conn, request);
	if (!request->error && (!request->length || request->length > NBD_COMPRESSED_MOST))
		request->error = nbd_refuse(request, -EINVAL, "more compressed data than can be");
	piece = request->error ? nbd_piece_get(conn, request, 0) : next_piece(conn, request);
	if (!piece)
		return NBD_WAIT;
	if (!request->error && !nbd_compressed_expand(conn, piece->buf->data, request->length))
		request->error = nbd_refuse(request, -EINVAL, "what is compressed is damaged");
	nbd_compressed_drop(conn);
	if (!request->error)
		submit(piece, conn->offer->dev);
	leave(conn);
	if (request->error)
		nbd_reply(piece);
	return NBD_GO_ON;
}

static enum nbd_step compressed_step(struct nbd_conn *conn)
{
	return nbd_compressed_take(conn, conn->current->payload) ? compressed_done(conn)
								 : NBD_MORE_INPUT;
}

/* What is left of a payload that nobody wants. Pieces that are at the device still answer it. */
static enum nbd_step skip_step(struct nbd_conn *conn)
{
	struct nbd_piece *piece;

	if (nbd_input_skip(conn) != NBD_GO_ON)
		return NBD_MORE_INPUT;
	if (conn->current->open > 1) {
		leave(conn);
		return NBD_GO_ON;
	}
	piece = nbd_piece_get(conn, conn->current, 0);
	if (!piece)
		return NBD_WAIT;
	leave(conn);
	nbd_reply(piece);
	return NBD_GO_ON;
}

static enum nbd_step read_step(struct nbd_conn *conn)
{
	struct nbd_request *request = conn->current;
	uint64_t end = request->offset + request->length;

	if (request->streams) {
		if (conn->stream && conn->stream != request)
			return NBD_WAIT;
		conn->stream = request;
	}
	while (request->at < end) {
		struct nbd_piece *piece = next_piece(conn, request);

		if (!piece)
			return NBD_WAIT;
		if (conn->mode == NBD_SIMPLE)
			bm_list_append(&request->pieces, &piece->link);
		submit(piece, conn->offer->dev);
	}
	leave(conn);
	return NBD_GO_ON;
}

/* Asks one context. The client may have selected one that is not there any more. */
static void ask(struct nbd_piece *piece, uint32_t id)
{
	struct nbd_request *request = piece->request;
	struct bm_dev *dev = nbd_contexts_dev(piece->conn->offer, id);

	piece->context = id;
	piece->extents.v = (struct bm_extent *)(void *)piece->buf->data;
	piece->extents.room = request->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : EXTENTS;
	request->at = request->offset;
	set_up(piece, request->length);
	if (dev) {
		submit(piece, dev);
		return;
	}
	piece->extents.count = 1;
	piece->extents.v[0] = (struct bm_extent){.length = request->length};
	if (id < NBD_COMPRESSED_CONTEXT && !request->error)
		request->error = nbd_refuse(request, -EINVAL, "the metadata context is gone");
	nbd_reply_status(piece);
}

/* "exactly one chunk … per selected context": each is a piece of its own. */
static enum nbd_step status_step(struct nbd_conn *conn)
{
	struct nbd_request *request = conn->current;
	uint32_t left;

	do {
		struct nbd_piece *piece =
			nbd_piece_get(conn, request, EXTENTS * sizeof(struct bm_extent));
		unsigned which = (unsigned)__builtin_ctz(request->contexts);

		if (!piece)
			return NBD_WAIT;
		left = request->contexts &= request->contexts - 1;
		if (!left)
			leave(conn);
		ask(piece, conn->selected.id[which]);
	} while (left);
	return NBD_GO_ON;
}

/* What needs no more than an answer, or one call of the device. */
static enum nbd_step other_step(struct nbd_conn *conn)
{
	struct nbd_request *request = conn->current;
	bool at_once = request->error || request->command == NBD_CMD_CACHE ||
		       request->command == NBD_CMD_READ || request->command == NBD_CMD_WRITE;
	struct nbd_piece *piece = nbd_piece_get(conn, request, 0);

	if (!piece)
		return NBD_WAIT;
	if (!at_once) {
		set_up(piece, request->length);
		submit(piece, conn->offer->dev);
	}
	leave(conn);
	if (at_once)
		nbd_reply(piece);
	return NBD_GO_ON;
}

enum nbd_step nbd_request_step(struct nbd_conn *conn)
{
	switch (conn->state) {
	case NBD_REQUEST:
		return header_step(conn);
	case NBD_PAYLOAD:
		return payload_step(conn);
	case NBD_COMPRESSED:
		return compressed_step(conn);
	case NBD_PAYLOAD_SKIP:
		return skip_step(conn);
	case NBD_QUERY:
		return query_step(conn);
	case NBD_READING:
		return read_step(conn);
	case NBD_STATUS:
		return status_step(conn);
	default:
		return other_step(conn);
	}
}
