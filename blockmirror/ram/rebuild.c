/* SPDX-License-Identifier: BSD-3-Clause */
/* QEMU's stream rebuilt from a batch, and its return path passed on. */
#include <string.h>

#include "blockmirror/ram/stream.h"

enum { RAM_ZERO = 0x02, RAM_PAGE = 0x08, RAM_CONTINUE = 0x20 };
enum { SHUT = 1, HEAD = 4, SHUT_SIZE = 8 };

/* The decoder sees to it that all of it together is no more than the batch's weight. */
static void put(struct bm_builder *b, const void *data, size_t length)
{
	memcpy(b->data + b->used, data, length);
	b->used += length;
}

static int put_bytes(void *arg, const uint8_t *data, size_t length)
{
	put(arg, data, length);
	return 0;
}

static void put_address(struct bm_builder *b, const struct bm_page *page, unsigned flags)
{
	uint8_t word[8], length;
	size_t size;
	const char *name;

	if (!page->named)
		flags |= RAM_CONTINUE;
	bm_put64(word, page->index << bm_decoder_page_bits(b->decoder) | flags);
	put(b, word, sizeof(word));
	if (!page->named)
		return;
	name = bm_decoder_name(b->decoder, page->block, &size);
	length = (uint8_t)size;
	put(b, &length, 1);
	put(b, name, size);
}

static int put_page(void *arg, const struct bm_page *page, const uint8_t *data)
{
	struct bm_builder *b = arg;

	put_address(b, page, RAM_PAGE);
	put(b, data, (size_t)1 << bm_decoder_page_bits(b->decoder));
	return 0;
}

static int put_fill(void *arg, const struct bm_page *first, uint64_t count, uint8_t value)
{
	struct bm_builder *b = arg;
	struct bm_page page = *first;

	while (count--) {
		put_address(b, &page, RAM_ZERO);
		put(b, &value, 1);
		page.named = false;
		page.index++;
	}
	return 0;
}

int bm_stream_build(struct bm_builder *b, const uint8_t *payload, size_t length, uint32_t weight,
		    struct bm_error *error)
{
	static const struct bm_decoder_ops ops = {
		.bytes = put_bytes, .page = put_page, .fill = put_fill};

	b->used = 0;
	return bm_decode(b->decoder, payload, length, weight, &ops, b, error);
}

void bm_return_init(struct bm_return *r)
{
	memset(r, 0, sizeof(*r));
}

/* How much of a message is looked at before it goes on: its type and length, and all of a SHUT. */
static unsigned wanted(const struct bm_return *r)
{
	if (r->have < HEAD || bm_get16(r->head) != SHUT ||
	    bm_get16(r->head + 2) != SHUT_SIZE - HEAD)
		return HEAD;
	return SHUT_SIZE;
}

size_t bm_return_pass(struct bm_return *r, const uint8_t **data, size_t *length, uint8_t *to)
{
	size_t written = 0;

	while (*length && !r->shut) {
		size_t n = r->body < *length ? r->body : *length;

		if (n) {
			memcpy(to + written, *data, n);
			written += n;
			r->body -= (uint32_t)n;
			*data += n;
			*length -= n;
			continue;
		}
		r->head[r->have++] = *(*data)++;
		--*length;
		if (r->have < wanted(r))
			continue;
		if (r->have == SHUT_SIZE && !bm_get32(r->head + HEAD)) {
			r->shut = true;
			break;
		}
		r->body = r->have == HEAD ? bm_get16(r->head + 2) : 0;
		memcpy(to + written, r->head, r->have);
		written += r->have;
		r->have = 0;
	}
	return written;
}

void bm_return_release(struct bm_return *r, uint8_t to[8])
{
	memcpy(to, r->head, SHUT_SIZE);
	r->have = 0;
	r->shut = false;
}
