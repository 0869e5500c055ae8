/* SPDX-License-Identifier: BSD-3-Clause */
/* Bytes from and to the wire, within bounds. */
#include "nbd-server/wire.h"

#include <endian.h>
#include <string.h>

const uint8_t *nbd_read(struct nbd_reader *r, size_t length)
{
	const uint8_t *at = r->at;

	if (r->failed || length > r->left) {
		r->failed = true;
		return NULL;
	}
	r->at += length;
	r->left -= length;
	return at;
}

uint16_t nbd_read_u16(struct nbd_reader *r)
{
	const uint8_t *at = nbd_read(r, sizeof(uint16_t));
	uint16_t value = 0;

	if (at)
		memcpy(&value, at, sizeof(value));
	return be16toh(value);
}

uint32_t nbd_read_u32(struct nbd_reader *r)
{
	const uint8_t *at = nbd_read(r, sizeof(uint32_t));
	uint32_t value = 0;

	if (at)
		memcpy(&value, at, sizeof(value));
	return be32toh(value);
}

uint64_t nbd_read_u64(struct nbd_reader *r)
{
	const uint8_t *at = nbd_read(r, sizeof(uint64_t));
	uint64_t value = 0;

	if (at)
		memcpy(&value, at, sizeof(value));
	return be64toh(value);
}

bool nbd_read_whole(const struct nbd_reader *r)
{
	return !r->failed && !r->left;
}

void nbd_write(struct nbd_writer *w, const void *bytes, size_t length)
{
	if (w->failed || length > w->room) {
		w->failed = true;
		return;
	}
	memcpy(w->at, bytes, length);
	w->at += length;
	w->room -= length;
	w->used += length;
}

void nbd_write_u16(struct nbd_writer *w, uint16_t value)
{
	value = htobe16(value);
	nbd_write(w, &value, sizeof(value));
}

void nbd_write_u32(struct nbd_writer *w, uint32_t value)
{
	value = htobe32(value);
	nbd_write(w, &value, sizeof(value));
}

void nbd_write_u64(struct nbd_writer *w, uint64_t value)
{
	value = htobe64(value);
	nbd_write(w, &value, sizeof(value));
}
