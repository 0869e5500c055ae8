/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Writes whose payload is compressed (docs/nbd.md): of hosts that send their disks to each other. A
 * client selects the context, and may then set a flag in its writes; the payload is the length of
 * the data (4 bytes) and a zstd frame with it, the header's length that of the payload.
 *
 * The payload is kept here, not in the connection's pool: a payload that holds memory and waits for
 * as much again could wait for itself. Only under TLS, where a connection is never passed to
 * another process, so that what was agreed on need not be.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "nbd-server/internal.h"

enum { ZSTD_COST = 192 << 10 }; /* of a context for whole frames, with some room */

struct nbd_compressed {
	ZSTD_DCtx *zstd;
	size_t filled;
	uint8_t payload[NBD_COMPRESSED_MOST];
};

bool nbd_compressed_query(const uint8_t *query, size_t length, bool listing)
{
	return nbd_context_named(NBD_COMPRESSED_NAME, query, length, listing);
}

bool nbd_compressed_select(struct nbd_conn *conn)
{
	if (conn->compressed)
		return true;
	conn->compressed = malloc(sizeof(*conn->compressed));
	if (!conn->compressed)
		return false;
	conn->compressed->filled = 0;
	conn->compressed->zstd = ZSTD_createDCtx();
	if (conn->compressed->zstd)
		return true;
	nbd_compressed_deselect(conn);
	return false;
}

void nbd_compressed_deselect(struct nbd_conn *conn)
{
	if (conn->compressed)
		ZSTD_freeDCtx(conn->compressed->zstd);
	free(conn->compressed);
	conn->compressed = NULL;
}

uint64_t nbd_compressed_cost(void)
{
	return sizeof(struct nbd_compressed) + ZSTD_COST;
}

bool nbd_compressed_expects(const struct nbd_conn *conn, const struct nbd_request *request)
{
	return conn->compressed && request->command == NBD_CMD_WRITE &&
	       request->flags & NBD_CMD_FLAG_COMPRESSED && request->payload > NBD_COMPRESSED_HEAD &&
	       request->payload <= NBD_COMPRESSED_MOST;
}

bool nbd_compressed_take(struct nbd_conn *conn, size_t length)
{
	struct nbd_compressed *c = conn->compressed;
	size_t left = length - c->filled, part = left < conn->used ? left : conn->used;

	memcpy(c->payload + c->filled, nbd_input(conn, part), part);
	nbd_input_take(conn, part);
	c->filled += part;
	return c->filled == length;
}

uint32_t nbd_compressed_length(const struct nbd_conn *conn)
{
	uint32_t length;

	memcpy(&length, conn->compressed->payload, sizeof(length));
	return be32toh(length);
}

bool nbd_compressed_expand(struct nbd_conn *conn, uint8_t *data, size_t length)
{
	struct nbd_compressed *c = conn->compressed;
	const uint8_t *frame = c->payload + NBD_COMPRESSED_HEAD;
	size_t size = c->filled - NBD_COMPRESSED_HEAD, n;
	uint32_t magic = 0;

	/* One frame of today's format: zstd would take several, and skip some. */
	memcpy(&magic, frame, size < sizeof(magic) ? size : sizeof(magic));
	if (le32toh(magic) != ZSTD_MAGICNUMBER || ZSTD_findFrameCompressedSize(frame, size) != size)
		return false;
	n = ZSTD_decompressDCtx(c->zstd, data, length, frame, size);
	return !ZSTD_isError(n) && n == length;
}

void nbd_compressed_drop(struct nbd_conn *conn)
{
	conn->compressed->filled = 0;
}
