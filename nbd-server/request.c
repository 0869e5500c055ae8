/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Requests: from their headers to the device (proto.md, "Transmission phase"). A request that is
 * refused is answered and no more; only what cannot be a request ends the connection. The payload
 * of a refused WRITE is read and dropped, since the next header comes after it.
 */
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "blockmirror/base/list.h"
#include "nbd-server/internal.h"

/* Longer than what we advertise: some clients do not keep to it, and streaming costs nothing. */
enum { LONGEST = 64 << 20, EXTENTS = 4096 /* of one answer */ };

static const struct command {
	enum bm_op op;
	uint32_t flags; /* that are allowed */
	bool writes;
	int past_end; /* the error of a request that is not within the export */
} commands[NBD_COMMANDS] = {
	[NBD_CMD_READ] = {BM_READ, NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF, false, -EINVAL},
	[NBD_CMD_WRITE] = {BM_WRITE, NBD_CMD_FLAG_FUA, true, -ENOSPC},
	[NBD_CMD_FLUSH] = {BM_FLUSH, NBD_CMD_FLAG_FUA, false, -EINVAL},
	[NBD_CMD_TRIM] = {BM_TRIM, NBD_CMD_FLAG_FUA, true, -EINVAL},
	[NBD_CMD_CACHE] = {BM_READ, NBD_CMD_FLAG_FUA, false, -EINVAL},
	[NBD_CMD_WRITE_ZEROES] = {BM_ZERO,
				  NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
				  true, -ENOSPC},
	[NBD_CMD_BLOCK_STATUS] = {BM_EXTENTS, NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE, false,
				  -EINVAL},
};

static int refuse(struct nbd_request *request, int error, const char *text)
{
	request->text = text;
	return error;
}

/* What only one kind of request has to fulfil. */
static int check_kind(const struct nbd_conn *conn, struct nbd_request *request)
{
	switch (request->command) {
	case NBD_CMD_READ:
		if (request->flags & NBD_CMD_FLAG_DF && !conn->structured)
			return refuse(request, -EINVAL, "structured replies were not negotiated");
		if (request->flags & NBD_CMD_FLAG_DF && request->length > BM_BUF_MAX)
			return refuse(request, -EOVERFLOW, "too long to be read unfragmented");
		__attribute__((fallthrough));
	case NBD_CMD_WRITE:
		if (request->length > LONGEST)
			return refuse(request, -EOVERFLOW, "more than 64 MiB");
		break;
	case NBD_CMD_FLUSH:
		if (request->offset || request->length)
			return refuse(request, -EINVAL, "a flush has no offset and no length");
		break;
	case NBD_CMD_BLOCK_STATUS:
		if (!conn->selected.count)
			return refuse(request, -EINVAL, "no metadata context was selected");
		if (!request->length)
			return refuse(request, -EINVAL, "a block status of nothing");
		break;
	default:
		break;
	}
	return 0;
}

/* "Error values" says which error is whose. */
static int check(const struct nbd_conn *conn, struct nbd_request *request)
{
	const struct nbd_offer *offer = conn->offer;
	const struct bm_geometry *geometry = &offer->dev->geometry;
	const struct command *command;

	if (request->command >= NBD_COMMANDS)
		return refuse(request, -EINVAL, "the command is not known");
	command = &commands[request->command];
	if (request->flags & ~command->flags)
		return refuse(request, -EINVAL, "a flag that the command does not have");
	if (conn->server->stopping)
		return refuse(request, -ESHUTDOWN, "the server is being shut down");
	if (command->writes && (offer->read_only || geometry->flags & BM_DEV_READ_ONLY))
		return refuse(request, -EPERM, "the export is read-only");
	/* By subtraction: the sum may wrap. */
	if (request->offset > geometry->size || request->length > geometry->size - request->offset)
		return refuse(request, command->past_end, "beyond the end of the export");
	return check_kind(conn, request);
}

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

	rq->op = commands[request->command].op;
	rq->flags = commands[request->command].writes ? device_flags(request->flags) : 0;
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
 */
static struct nbd_piece *next_piece(struct nbd_conn *conn, struct nbd_request *request)
{
	uint64_t length = request->offset + request->length - request->at;
	struct nbd_piece *piece;

	if (length > BM_BUF_MAX)
		length = BM_BUF_MAX - request->at % BM_BUF_MAX;
	piece = nbd_piece_get(conn, request, length);
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
	if (conn->server->stopping && !conn->busy)
		nbd_conn_finish(conn);
}

void nbd_request_abandon(struct nbd_conn *conn)
{
	struct nbd_request *request = conn->current;

	if (conn->filling)
		nbd_piece_free(conn->filling);
	conn->filling = NULL;
	conn->current = NULL;
	if (!request->error)
		request->error = refuse(request, -EIO, "the data was cut off");
	if (!--request->open)
		nbd_request_free(conn, request);
}

/* The parser */

static enum nbd_state first_state(const struct nbd_request *request)
{
	if (request->command == NBD_CMD_WRITE && request->length)
		return NBD_PAYLOAD;
	if (request->error)
		return NBD_OTHER;
	if (request->command == NBD_CMD_READ && request->length)
		return NBD_READING;
	if (request->command == NBD_CMD_BLOCK_STATUS)
		return NBD_STATUS;
	return NBD_OTHER;
}

static enum nbd_step header_step(struct nbd_conn *conn)
{
	struct nbd_wire_request wire;
	const uint8_t *input = nbd_input(conn, sizeof(wire));
	struct nbd_request *request;

	if (!input)
		return NBD_MORE_INPUT;
	memcpy(&wire, input, sizeof(wire));
	nbd_input_take(conn, sizeof(wire));
	if (be32toh(wire.magic) != NBD_REQUEST_MAGIC) {
		nbd_conn_violated(conn, "what it sent is no NBD request");
		return NBD_GO_ON;
	}
	if (be16toh(wire.type) == NBD_CMD_DISC) {
		nbd_conn_finish(conn);
		return NBD_GO_ON;
	}
	assert(!bm_list_empty(&conn->free_requests)); /* there is one more than pieces */
	request = bm_container(bm_list_take(&conn->free_requests), struct nbd_request, link);
	conn->busy++;
	conn->current = request;
	request->open = 1;
	request->command = be16toh(wire.type);
	request->flags = be16toh(wire.flags);
	request->cookie = wire.cookie;
	request->offset = request->at = be64toh(wire.offset);
	request->length = be32toh(wire.length);
	request->contexts = (1u << conn->selected.count) - 1;
	request->text = NULL;
	request->started = false;
	request->error = check(conn, request);
	request->streams = request->command == NBD_CMD_READ && !request->error &&
			   nbd_reply_streams(conn, request->length);
	conn->state = first_state(request);
	return NBD_GO_ON;
}

/* The payload of a WRITE goes to the device piece by piece, as it comes in. */
static enum nbd_step payload_step(struct nbd_conn *conn)
{
	struct nbd_request *request = conn->current;
	struct nbd_piece *piece = conn->filling;
	size_t part;

	if (!piece && request->error) { /* refused, or an earlier piece has failed */
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

/* The payload of a WRITE that has failed. Pieces that are at the device still answer it. */
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
		if (!conn->structured)
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
	if (!request->error)
		request->error = refuse(request, -EINVAL, "the metadata context is gone");
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
	case NBD_PAYLOAD_SKIP:
		return skip_step(conn);
	case NBD_READING:
		return read_step(conn);
	case NBD_STATUS:
		return status_step(conn);
	default:
		return other_step(conn);
	}
}
