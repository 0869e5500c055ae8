/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Replies (proto.md, "Simple reply message", "Structured reply chunk message", "Extended reply
 * chunk message"). Structured and extended replies are the same chunks behind different headers;
 * what is not a chunk has a simple reply, or, in a session with extended headers, a chunk without
 * content.
 *
 * READ under structured replies: each piece becomes a chunk as it is done, in any order; one that
 * failed becomes an error chunk with its offset. The last one to be done is marked as such, so
 * that no error can follow it.
 *
 * READ under simple replies: its header says "no error", once and before the data, so it leaves
 * when all pieces are there. One that is too long for that streams: its pieces leave in order as
 * they come, while other replies are held back, and an error in the middle leaves nothing but to
 * disconnect. One READ streams at a time. It always gets on: the pieces it waits for need no memory
 * that a held reply has, since it has at least one buffer of its own before it holds others back.
 */
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "blockmirror/base/list.h"
#include "nbd-server/internal.h"

enum { TEXT = 80 };
static_assert(sizeof(struct nbd_wire_extended_chunk) + 4 + 2 + TEXT + 8 <= NBD_HEADER,
	      "an error fits");

static enum nbd_error to_wire(const struct nbd_request *request, int error)
{
	switch (-error) {
	case EPERM:
	case EACCES:
	case EROFS:
		return NBD_EPERM;
	case EINVAL:
		return NBD_EINVAL;
	case ENOSPC:
	case EDQUOT:
	case EFBIG:
		return NBD_ENOSPC;
	case EOVERFLOW:
		return NBD_EOVERFLOW;
	case ESHUTDOWN:
		return NBD_ESHUTDOWN;
	case ENOTSUP:
		return request->flags & NBD_CMD_FLAG_FAST_ZERO ? NBD_ENOTSUP : NBD_EIO;
	default:
		return NBD_EIO;
	}
}

/* Headers */

static void put_simple(struct nbd_piece *piece, uint32_t error)
{
	const struct nbd_wire_simple wire = {
		.magic = htobe32(NBD_SIMPLE_REPLY_MAGIC),
		.error = htobe32(error),
		.cookie = piece->request->cookie,
	};

	memcpy(piece->header, &wire, sizeof(wire));
	piece->header_length = sizeof(wire);
}

static void put_chunk_header(struct nbd_writer *w, const struct nbd_request *request,
			     uint16_t flags, enum nbd_chunk type, size_t length)
{
	const struct nbd_wire_chunk wire = {
		.magic = htobe32(NBD_STRUCTURED_REPLY_MAGIC),
		.flags = htobe16(flags),
		.type = htobe16((uint16_t)type),
		.cookie = request->cookie,
		.length = htobe32((uint32_t)length),
	};

	nbd_write(w, &wire, sizeof(wire));
}

/* The offset is the request's, whatever part of it the chunk is about. */
static void put_extended_header(struct nbd_writer *w, const struct nbd_request *request,
				uint16_t flags, enum nbd_chunk type, size_t length)
{
	const struct nbd_wire_extended_chunk wire = {
		.magic = htobe32(NBD_EXTENDED_REPLY_MAGIC),
		.flags = htobe16(flags),
		.type = htobe16((uint16_t)type),
		.cookie = request->cookie,
		.offset = htobe64(request->offset),
		.length = htobe64(length),
	};

	nbd_write(w, &wire, sizeof(wire));
}

/* Begins a chunk; length bytes follow it, the first of which are written to what is returned. */
static struct nbd_writer put_chunk(struct nbd_piece *piece, enum nbd_chunk type, bool last,
				   size_t length)
{
	struct nbd_writer w = {.at = piece->header, .room = NBD_HEADER};
	uint16_t flags = last ? NBD_REPLY_FLAG_DONE : 0;

	if (piece->conn->mode == NBD_EXTENDED)
		put_extended_header(&w, piece->request, flags, type, length);
	else
		put_chunk_header(&w, piece->request, flags, type, length);
	return w;
}

static void put_error(struct nbd_piece *piece, int error, bool with_offset, bool last)
{
	const struct nbd_request *request = piece->request;
	const char *text = request->text ? request->text : strerrordesc_np(-error);
	size_t length = text ? strnlen(text, TEXT) : 0;
	struct nbd_writer w =
		put_chunk(piece, with_offset ? NBD_CHUNK_ERROR_OFFSET : NBD_CHUNK_ERROR, last,
			  4 + 2 + length + (with_offset ? 8 : 0));

	nbd_write_u32(&w, to_wire(request, error));
	nbd_write_u16(&w, (uint16_t)length);
	nbd_write(&w, text, length);
	if (with_offset)
		nbd_write_u64(&w, piece->rq.offset);
	piece->header_length = w.used;
}

static void put_data(struct nbd_piece *piece, bool last)
{
	struct nbd_writer w = put_chunk(piece, NBD_CHUNK_OFFSET_DATA, last, 8 + piece->rq.length);

	nbd_write_u64(&w, piece->rq.offset);
	piece->header_length = w.used;
	piece->data_length = piece->rq.length;
}

/* The extents become descriptors where they are: these are not longer, each is read before. */
static void put_extents(struct nbd_piece *piece, bool last)
{
	const struct bm_extents *x = &piece->extents;
	bool extended = piece->conn->mode == NBD_EXTENDED;
	size_t each =
		extended ? sizeof(struct nbd_wire_extended_extent) : sizeof(struct nbd_wire_extent);
	size_t length = x->count * each;
	struct nbd_writer out = {.at = piece->buf->data, .room = length};
	struct nbd_writer w =
		put_chunk(piece, extended ? NBD_CHUNK_BLOCK_STATUS_EXT : NBD_CHUNK_BLOCK_STATUS,
			  last, (extended ? 8 : 4) + length);

	static_assert(sizeof(struct nbd_wire_extended_extent) <= sizeof(struct bm_extent),
		      "no descriptor overwrites the next extent");
	nbd_write_u32(&w, piece->context);
	if (extended)
		nbd_write_u32(&w, x->count);
	piece->header_length = w.used;
	piece->data_length = length;
	for (unsigned i = 0; i < x->count; i++) {
		struct bm_extent extent = x->v[i];

		if (extended) {
			nbd_write_u64(&out, extent.length);
			nbd_write_u64(&out, extent.flags);
		} else { /* a compact request is not longer than 32 bits, nor is its answer */
			nbd_write_u32(&out, (uint32_t)extent.length);
			nbd_write_u32(&out, extent.flags);
		}
	}
}

/* Replies */

/* The reply in piece is the last one of its request. */
static void send_last(struct nbd_piece *piece)
{
	struct nbd_request *request = piece->request;
	struct nbd_conn *conn = piece->conn;

	conn->requests++;
	if (request->command == NBD_CMD_WRITE || request->command == NBD_CMD_TRIM ||
	    request->command == NBD_CMD_WRITE_ZEROES)
		conn->server->changes++;
	if (!request->error && request->command == NBD_CMD_READ)
		conn->bytes_read += request->length;
	else if (!request->error && request->command == NBD_CMD_WRITE)
		conn->bytes_written += request->length;
	nbd_piece_send(piece);
	if (conn->stream == request) {
		conn->stream = NULL;
		bm_list_move_all(&conn->out, &conn->held);
	}
	nbd_request_free(conn, request);
}

void nbd_reply(struct nbd_piece *piece)
{
	const struct nbd_request *request = piece->request;
	enum nbd_mode mode = piece->conn->mode;

	nbd_piece_drop_buf(piece);
	if (mode != NBD_SIMPLE && request->error)
		put_error(piece, request->error, false, true);
	else if (mode == NBD_EXTENDED ||
		 (mode == NBD_STRUCTURED && request->command == NBD_CMD_READ))
		piece->header_length = put_chunk(piece, NBD_CHUNK_NONE, true, 0).used;
	else
		put_simple(piece, request->error ? to_wire(request, request->error) : 0);
	send_last(piece);
}

bool nbd_reply_streams(const struct nbd_conn *conn, uint64_t length)
{
	/* Half of the buffers is what always fits, whatever else the connection is doing. */
	return conn->mode == NBD_SIMPLE && length > conn->server->options.max_data / 2;
}

/*
 * Each context's answer is a chunk as it comes. When one has failed those that come after it are
 * dropped, and the last one bears the error: "SHOULD NOT be used more than once".
 */
void nbd_reply_status(struct nbd_piece *piece)
{
	const struct nbd_request *request = piece->request;
	bool last = !request->open;

	if (request->error && last) {
		nbd_reply(piece);
	} else if (request->error) {
		nbd_piece_free(piece);
	} else {
		put_extents(piece, last);
		if (last)
			send_last(piece);
		else
			nbd_piece_send(piece);
	}
}

static void read_in_chunks(struct nbd_piece *piece, int error)
{
	bool last = !piece->request->open;

	if (error) {
		nbd_piece_drop_buf(piece);
		put_error(piece, error, true, last);
	} else {
		put_data(piece, last);
	}
	if (last)
		send_last(piece);
	else
		nbd_piece_send(piece);
}

/* A simple READ has failed before any of it was sent: the last piece to be done bears the error. */
static void give_up(struct nbd_request *request, struct nbd_piece *piece)
{
	bm_list_remove(&piece->link);
	bm_list_each_safe(node, &request->pieces) {
		struct nbd_piece *other = bm_container(node, struct nbd_piece, link);

		if (other->ready) {
			bm_list_remove(node);
			nbd_piece_free(other);
		}
	}
	if (request->open)
		nbd_piece_free(piece);
	else
		nbd_reply(piece);
}

static void read_simple(struct nbd_piece *piece)
{
	struct nbd_request *request = piece->request;

	piece->ready = true;
	if (request->error && request->started) {
		nbd_conn_close(piece->conn);
		return;
	}
	if (request->error) {
		give_up(request, piece);
		return;
	}
	if (request->open && !request->streams)
		return;
	while (!bm_list_empty(&request->pieces)) {
		struct bm_list *node = request->pieces.next;

		piece = bm_container(node, struct nbd_piece, link);
		if (!piece->ready)
			return;
		bm_list_remove(node);
		if (!request->started)
			put_simple(piece, 0);
		request->started = true;
		piece->data_length = piece->rq.length;
		if (request->open || !bm_list_empty(&request->pieces))
			nbd_piece_send(piece);
		else
			send_last(piece);
	}
}

void nbd_reply_read(struct nbd_piece *piece, int error)
{
	if (piece->conn->mode == NBD_SIMPLE)
		read_simple(piece);
	else
		read_in_chunks(piece, error);
}
