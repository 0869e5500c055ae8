/* SPDX-License-Identifier: BSD-3-Clause */
/* Pages to batches. What the records are is in record.h, the way back in decode.c. */
#include "blockmirror/ram/codec.h"

#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>
#include <zstd.h>

#include "blockmirror/ram/cache.h"
#include "blockmirror/ram/record.h"

enum {
	LEVEL = 1,
	/* A gap of equal bytes shorter than this is sent: a piece's header costs 4 bytes, and more
	   pieces cost time. */
	GAP = 8,
};

struct bm_encoder {
	unsigned page_bits;
	size_t page_size;
	struct bm_cache cache;
	struct bm_batch *batch;
	bool at_page;        /* the cursor is set */
	struct bm_page next; /* the cursor */
	uint8_t *bytes;      /* the BYTES record that the batch ends with, or NULL */
	uint8_t *fill;       /* the same of FILL */
	uint8_t names[BM_RAM_BLOCKS];
	struct bm_encoder_stats stats;
};

struct bm_encoder *bm_encoder_new(unsigned page_bits, uint32_t slots)
{
	struct bm_encoder *e = calloc(1, sizeof(*e));

	if (!e)
		return NULL;
	e->page_bits = page_bits;
	e->page_size = (size_t)1 << page_bits;
	if (bm_cache_open(&e->cache, e->page_size, slots) < 0) {
		free(e);
		return NULL;
	}
	return e;
}

void bm_encoder_free(struct bm_encoder *e)
{
	if (e)
		bm_cache_close(&e->cache);
	free(e);
}

const struct bm_encoder_stats *bm_encoder_stats(const struct bm_encoder *e)
{
	return &e->stats;
}

unsigned bm_encoder_page_bits(const struct bm_encoder *e)
{
	return e->page_bits;
}

void bm_encoder_begin(struct bm_encoder *e, struct bm_batch *batch)
{
	batch->used = batch->weight = 0;
	e->batch = batch;
	e->at_page = false;
	e->bytes = e->fill = NULL;
}

static bool has_room(const struct bm_encoder *e, size_t weight, size_t length)
{
	return weight <= BM_RAM_WEIGHT - e->batch->weight &&
	       length <= BM_RAM_PAYLOAD - e->batch->used;
}

/* Where the next record goes; it ends what could have been made longer. */
static uint8_t *append(struct bm_encoder *e, size_t length)
{
	uint8_t *at = e->batch->data + e->batch->used;

	e->batch->used += (uint32_t)length;
	e->bytes = e->fill = NULL;
	return at;
}

size_t bm_encoder_room(const struct bm_encoder *e)
{
	size_t head = e->bytes ? 0 : BM_RAM_BYTES_HEAD, left = BM_RAM_PAYLOAD - e->batch->used;
	size_t weight = BM_RAM_WEIGHT - e->batch->weight;

	if (left <= head)
		return 0;
	return left - head < weight ? left - head : weight;
}

size_t bm_encode_bytes(struct bm_encoder *e, const uint8_t *data, size_t length)
{
	size_t room = bm_encoder_room(e);

	if (length > room)
		length = room;
	if (!length)
		return 0;
	if (!e->bytes) {
		uint8_t *at = append(e, BM_RAM_BYTES_HEAD);

		at[0] = BM_RAM_BYTES;
		bm_put32(at + 1, 0);
		e->bytes = at;
	}
	bm_put32(e->bytes + 1, bm_get32(e->bytes + 1) + (uint32_t)length);
	memcpy(e->batch->data + e->batch->used, data, length);
	e->batch->used += (uint32_t)length;
	e->batch->weight += (uint32_t)length;
	e->stats.other_bytes += length;
	return length;
}

bool bm_encode_block(struct bm_encoder *e, uint16_t block, const char *name, size_t length)
{
	uint8_t *at;

	if (!has_room(e, 0, BM_RAM_BLOCK_HEAD + length))
		return false;
	at = append(e, BM_RAM_BLOCK_HEAD + length);
	at[0] = BM_RAM_BLOCK;
	bm_put16(at + 1, block);
	at[3] = (uint8_t)length;
	memcpy(at + BM_RAM_BLOCK_HEAD, name, length);
	e->names[block] = (uint8_t)length;
	return true;
}

static size_t name_weight(const struct bm_encoder *e, const struct bm_page *page)
{
	return page->named ? 1 + (size_t)e->names[page->block] : 0;
}

static bool is_next(const struct bm_encoder *e, const struct bm_page *page)
{
	return e->at_page && !page->named && page->block == e->next.block &&
	       page->index == e->next.index;
}

/* Sets the cursor to page, if it is elsewhere, and moves it on. */
static void go_to(struct bm_encoder *e, const struct bm_page *page)
{
	if (!is_next(e, page)) {
		uint8_t *at = append(e, BM_RAM_AT_HEAD);

		at[0] = page->named ? BM_RAM_AT_NAMED : BM_RAM_AT;
		bm_put16(at + 1, page->block);
		bm_put64(at + 3, page->index);
	}
	e->at_page = true;
	e->next = *page;
	e->next.index++;
}

bool bm_encode_fill(struct bm_encoder *e, const struct bm_page *page, uint8_t value)
{
	size_t weight = BM_RAM_FILL_WEIGHT + name_weight(e, page);
	uint8_t *at;

	if (!has_room(e, weight, BM_RAM_AT_HEAD + BM_RAM_FILL_HEAD))
		return false;
	e->stats.fills++;
	e->batch->weight += (uint32_t)weight;
	if (e->fill && is_next(e, page) && e->fill[5] == value) {
		bm_put32(e->fill + 1, bm_get32(e->fill + 1) + 1);
		e->next.index++;
		return true;
	}
	go_to(e, page);
	at = append(e, BM_RAM_FILL_HEAD);
	at[0] = BM_RAM_FILL;
	bm_put32(at + 1, 1);
	at[5] = value;
	e->fill = at;
	return true;
}

bool bm_page_is_zero(const uint8_t *data, size_t size)
{
	uint64_t first[4];

	memcpy(first, data, sizeof(first));
	return !(first[0] | first[1] | first[2] | first[3]) && !memcmp(data, data + 32, size - 32);
}

static uint64_t load(const uint8_t *from)
{
	uint64_t value;

	memcpy(&value, from, sizeof(value));
	return value;
}

/* How many bytes from at on are equal in both. */
static size_t equal_run(const uint8_t *a, const uint8_t *b, size_t at, size_t size)
{
	size_t from = at;

	while (at + 8 <= size && load(a + at) == load(b + at))
		at += 8;
	while (at < size && a[at] == b[at])
		at++;
	return at - from;
}

/* Where the piece that begins at ends: before a gap that is worth a piece of its own. */
static size_t piece_end(const uint8_t *a, const uint8_t *b, size_t at, size_t size)
{
	while (at < size) {
		size_t same;

		if (a[at] != b[at]) {
			at++;
			continue;
		}
		same = equal_run(a, b, at, size);
		if (same >= GAP || at + same == size)
			break;
		at += same;
	}
	return at;
}

/* Writes the pieces that make now of old; 0: it takes more than most bytes, or is equal. */
static size_t difference(const uint8_t *old, const uint8_t *now, size_t size, uint8_t *to,
			 size_t most)
{
	size_t at = 0, used = 0;

	for (;;) {
		size_t skip = equal_run(old, now, at, size), end, length;

		if (at + skip == size)
			return used;
		end = piece_end(old, now, at + skip, size);
		length = end - at - skip;
		if (BM_RAM_PIECE_HEAD + length > most - used)
			return 0;
		bm_put16(to + used, (unsigned)skip);
		bm_put16(to + used + 2, (unsigned)length);
		memcpy(to + used + BM_RAM_PIECE_HEAD, now + at + skip, length);
		used += BM_RAM_PIECE_HEAD + length;
		at = end;
	}
}

static void encode_copy(struct bm_encoder *e, uint64_t key, uint32_t slot)
{
	uint8_t *at = append(e, BM_RAM_COPY_HEAD);

	at[0] = BM_RAM_COPY;
	bm_put32(at + 1, slot);
	bm_cache_remember(&e->cache, key, slot);
	e->stats.copies++;
}

/*
 * Writes pieces to where those of a DELTA go; 0: none, or more than three quarters of a page, which
 * is not worth it: zstd does better with the page itself.
 */
static size_t write_pieces(struct bm_encoder *e, uint32_t from, const uint8_t *data)
{
	uint8_t *at = e->batch->data + e->batch->used + BM_RAM_DELTA_HEAD;

	if (from == BM_RAM_NO_SLOT)
		return 0;
	return difference(bm_cache_data(&e->cache, from), data, e->page_size, at,
			  e->page_size / 4 * 3);
}

static void encode_delta(struct bm_encoder *e, uint32_t from, uint32_t slot, size_t length)
{
	uint8_t *at = append(e, BM_RAM_DELTA_HEAD + length);

	at[0] = BM_RAM_DELTA;
	bm_put32(at + 1, from);
	bm_put32(at + 5, slot);
	bm_put16(at + 9, (unsigned)length);
	e->stats.deltas++;
	e->stats.delta_bytes += length;
}

static void encode_raw(struct bm_encoder *e, uint32_t slot, const uint8_t *data)
{
	uint8_t *at = append(e, BM_RAM_RAW_HEAD + e->page_size);

	at[0] = BM_RAM_RAW;
	bm_put32(at + 1, slot);
	memcpy(at + BM_RAM_RAW_HEAD, data, e->page_size);
	e->stats.raw++;
}

static void encode_content(struct bm_encoder *e, const struct bm_page *page, const uint8_t *data)
{
	uint64_t hash = XXH3_64bits(data, e->page_size);
	uint64_t key = (uint64_t)page->block << 48 ^ page->index;
	uint32_t slot = bm_cache_find(&e->cache, hash, data), from;
	size_t length;

	if (slot != BM_RAM_NO_SLOT) {
		encode_copy(e, key, slot);
		return;
	}
	slot = bm_cache_page(&e->cache, key);
	from = bm_cache_alias(&e->cache, key);
	if (from == BM_RAM_NO_SLOT)
		from = slot;
	/* Before the slot is written, or given to the page: it may be the one it is made of. */
	length = write_pieces(e, from, data);
	if (slot == BM_RAM_NO_SLOT)
		slot = bm_cache_add(&e->cache, key, hash, data);
	else
		bm_cache_update(&e->cache, slot, hash, data);
	bm_cache_forget(&e->cache, key);
	if (length)
		encode_delta(e, from, slot, length);
	else
		encode_raw(e, slot, data);
}

bool bm_encode_page(struct bm_encoder *e, const struct bm_page *page, const uint8_t *data)
{
	size_t weight = BM_RAM_PAGE_WEIGHT + e->page_size + name_weight(e, page);

	if (!has_room(e, weight, BM_RAM_AT_HEAD + BM_RAM_RAW_HEAD + e->page_size))
		return false;
	e->batch->weight += (uint32_t)weight;
	go_to(e, page);
	if (bm_page_is_zero(data, e->page_size)) {
		*append(e, 1) = BM_RAM_BLANK;
		e->stats.blanks++;
	} else {
		encode_content(e, page, data);
	}
	return true;
}

bool bm_batch_compress(void *context, const struct bm_batch *from, struct bm_batch *to)
{
	size_t n = ZSTD_compressCCtx(context, to->data, from->used, from->data, from->used, LEVEL);

	to->weight = from->weight;
	to->used = ZSTD_isError(n) ? 0 : (uint32_t)n;
	return to->used && to->used < from->used;
}
