/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Batches to pages. Every byte of them is another host's: each length is held against what is
 * left, each number against what there is, and what is handed out against the batch's weight.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <zstd.h>

#include "blockmirror/ram/cache.h"
#include "blockmirror/ram/codec.h"
#include "blockmirror/ram/record.h"

struct bm_decoder {
	unsigned page_bits;
	size_t page_size;
	uint32_t slots;
	uint8_t *data, *blank;
	char names[BM_RAM_BLOCKS][BM_RAM_NAME + 1];
	uint8_t lengths[BM_RAM_BLOCKS];
};

/* One batch. */
struct reading {
	struct bm_decoder *d;
	const uint8_t *at;
	size_t left, length;
	uint32_t weight; /* that is left */
	bool at_page;
	struct bm_page next;
	const struct bm_decoder_ops *ops;
	void *arg;
	struct bm_error *error;
};

struct bm_decoder *bm_decoder_new(unsigned page_bits, uint32_t slots)
{
	struct bm_decoder *d = calloc(1, sizeof(*d));

	if (!d)
		return NULL;
	d->page_bits = page_bits;
	d->page_size = (size_t)1 << page_bits;
	d->slots = slots;
	d->blank = calloc(1, d->page_size);
	if (slots)
		d->data = bm_cache_map(slots * d->page_size);
	if (d->blank && (!slots || d->data))
		return d;
	bm_decoder_free(d);
	return NULL;
}

void bm_decoder_free(struct bm_decoder *d)
{
	if (!d)
		return;
	if (d->data)
		munmap(d->data, d->slots * d->page_size);
	free(d->blank);
	free(d);
}

unsigned bm_decoder_page_bits(const struct bm_decoder *d)
{
	return d->page_bits;
}

const char *bm_decoder_name(const struct bm_decoder *d, uint16_t block, size_t *length)
{
	if (block >= BM_RAM_BLOCKS || !d->lengths[block])
		return NULL;
	*length = d->lengths[block];
	return d->names[block];
}

static int damaged(const struct reading *r, const char *what)
{
	return bm_fail(r->error, BM_E_UNREACHABLE,
		       "the other host's batch of RAM is damaged at byte %zu: %s",
		       r->length - r->left, what);
}

/* NULL: there are not as many. */
static const uint8_t *take(struct reading *r, size_t length)
{
	const uint8_t *at = r->at;

	if (length > r->left)
		return NULL;
	r->at += length;
	r->left -= length;
	return at;
}

static bool weigh(struct reading *r, uint64_t weight)
{
	if (weight > r->weight)
		return false;
	r->weight -= (uint32_t)weight;
	return true;
}

static int read_bytes(struct reading *r)
{
	const uint8_t *head = take(r, BM_RAM_BYTES_HEAD - 1), *data;
	size_t length = head ? bm_get32(head) : 0;

	data = head ? take(r, length) : NULL;
	if (!data || !length)
		return damaged(r, "bytes that are not there");
	if (!weigh(r, length))
		return damaged(r, "more bytes than it should have");
	return r->ops->bytes(r->arg, data, length);
}

static int read_block(struct reading *r)
{
	const uint8_t *head = take(r, BM_RAM_BLOCK_HEAD - 1), *name;
	struct bm_decoder *d = r->d;
	unsigned block;

	if (!head)
		return damaged(r, "a block's name that ends early");
	block = bm_get16(head);
	name = take(r, head[2]);
	if (!name || !head[2] || block >= BM_RAM_BLOCKS)
		return damaged(r, "a block without a name, or out of range");
	memset(d->names[block], 0, sizeof(d->names[block]));
	memcpy(d->names[block], name, head[2]);
	d->lengths[block] = head[2];
	return r->ops->block ? r->ops->block(r->arg, (uint16_t)block, d->names[block], head[2]) : 0;
}

static int read_at(struct reading *r, bool named)
{
	const uint8_t *head = take(r, BM_RAM_AT_HEAD - 1);

	if (!head)
		return damaged(r, "an address that ends early");
	r->next.block = (uint16_t)bm_get16(head);
	r->next.index = bm_get64(head + 2);
	r->next.named = named;
	if (r->next.block >= BM_RAM_BLOCKS || !r->d->lengths[r->next.block])
		return damaged(r, "a block that has no name");
	if (r->next.index > UINT64_MAX >> r->d->page_bits)
		return damaged(r, "an address out of range");
	r->at_page = true;
	return 0;
}

/* The page at the cursor, which goes on by count. */
static int next_page(struct reading *r, uint64_t count, uint64_t weight, struct bm_page *page)
{
	const uint64_t last = UINT64_MAX >> r->d->page_bits;

	if (!r->at_page)
		return damaged(r, "a page without an address");
	*page = r->next;
	if (page->named)
		weight += 1 + (uint64_t)r->d->lengths[page->block];
	if (!weigh(r, weight))
		return damaged(r, "more pages than it should have");
	if (page->index > last || count - 1 > last - page->index)
		return damaged(r, "an address out of range");
	r->next.index += count;
	r->next.named = false;
	return 0;
}

static int read_fill(struct reading *r)
{
	const uint8_t *head = take(r, BM_RAM_FILL_HEAD - 1);
	struct bm_page page;
	uint64_t count = head ? bm_get32(head) : 0;
	int e;

	if (!count)
		return damaged(r, "a fill of nothing");
	e = next_page(r, count, count * BM_RAM_FILL_WEIGHT, &page);
	return e ? e : r->ops->fill(r->arg, &page, count, head[4]);
}

static int hand_out(struct reading *r, const uint8_t *data)
{
	struct bm_page page;
	int e = next_page(r, 1, BM_RAM_PAGE_WEIGHT + r->d->page_size, &page);

	return e ? e : r->ops->page(r->arg, &page, data);
}

static uint8_t *slot_of(struct reading *r, const uint8_t *head)
{
	uint32_t slot = bm_get32(head);

	return slot < r->d->slots ? r->d->data + (size_t)slot * r->d->page_size : NULL;
}

static int read_copy(struct reading *r)
{
	const uint8_t *head = take(r, BM_RAM_COPY_HEAD - 1), *data = head ? slot_of(r, head) : NULL;

	return data ? hand_out(r, data) : damaged(r, "a copy of no slot");
}

static int apply(const struct reading *r, uint8_t *data, const uint8_t *from, size_t length)
{
	size_t at = 0;

	while (length) {
		size_t skip, piece;

		if (length < BM_RAM_PIECE_HEAD)
			return damaged(r, "a difference that ends early");
		skip = bm_get16(from);
		piece = bm_get16(from + 2);
		from += BM_RAM_PIECE_HEAD;
		length -= BM_RAM_PIECE_HEAD;
		if (piece > length || skip > r->d->page_size - at ||
		    piece > r->d->page_size - at - skip)
			return damaged(r, "a difference larger than a page");
		memcpy(data + at + skip, from, piece);
		at += skip + piece;
		from += piece;
		length -= piece;
	}
	return 0;
}

static int read_delta(struct reading *r)
{
	const uint8_t *head = take(r, BM_RAM_DELTA_HEAD - 1), *pieces, *from;
	size_t length = head ? bm_get16(head + 8) : 0;
	uint8_t *data;
	int e;

	from = head ? slot_of(r, head) : NULL;
	data = head ? slot_of(r, head + 4) : NULL;
	if (!from || !data)
		return damaged(r, "a difference to no slot");
	pieces = take(r, length);
	if (!pieces)
		return damaged(r, "a difference that is not there");
	if (from != data)
		memcpy(data, from, r->d->page_size);
	e = apply(r, data, pieces, length);
	return e ? e : hand_out(r, data);
}

static int read_raw(struct reading *r)
{
	const uint8_t *head = take(r, BM_RAM_RAW_HEAD - 1);
	const uint8_t *data = head ? take(r, r->d->page_size) : NULL;
	uint8_t *slot;

	if (!data)
		return damaged(r, "a page that is not there");
	if (bm_get32(head) != BM_RAM_NO_SLOT) {
		slot = slot_of(r, head);
		if (!slot)
			return damaged(r, "a page for no slot");
		memcpy(slot, data, r->d->page_size);
	}
	return hand_out(r, data);
}

static int read_record(struct reading *r)
{
	switch (*take(r, 1)) {
	case BM_RAM_BYTES:
		return read_bytes(r);
	case BM_RAM_BLOCK:
		return read_block(r);
	case BM_RAM_AT:
		return read_at(r, false);
	case BM_RAM_AT_NAMED:
		return read_at(r, true);
	case BM_RAM_FILL:
		return read_fill(r);
	case BM_RAM_BLANK:
		return hand_out(r, r->d->blank);
	case BM_RAM_COPY:
		return read_copy(r);
	case BM_RAM_DELTA:
		return read_delta(r);
	case BM_RAM_RAW:
		return read_raw(r);
	default:
		return damaged(r, "no record that we know");
	}
}

int bm_decode(struct bm_decoder *d, const uint8_t *data, size_t length, uint32_t weight,
	      const struct bm_decoder_ops *ops, void *arg, struct bm_error *error)
{
	struct reading r = {.d = d,
			    .at = data,
			    .left = length,
			    .length = length,
			    .weight = weight,
			    .ops = ops,
			    .arg = arg,
			    .error = error};

	while (r.left) {
		int e = read_record(&r);

		if (e)
			return e;
	}
	return r.weight ? damaged(&r, "less than it should have") : 0;
}

int bm_batch_expand(void *context, const uint8_t *from, size_t length, uint8_t *to, size_t plain,
		    struct bm_error *error)
{
	size_t n = ZSTD_decompressDCtx(context, to, plain, from, length);

	if (!ZSTD_isError(n) && n == plain)
		return 0;
	return bm_fail(error, BM_E_UNREACHABLE,
		       "the other host's batch of RAM does not decompress to %zu bytes: %s", plain,
		       ZSTD_isError(n) ? ZSTD_getErrorName(n) : "there are fewer");
}
