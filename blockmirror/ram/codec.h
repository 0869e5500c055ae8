/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Pages to batches and back. A page goes as: a zero, a copy of a page that was sent lately, the
 * difference to what was sent last for it, or itself; what is no page goes as it is. A batch may
 * then be compressed as a whole.
 *
 * Both ends have a cache of as many slots, each the size of a page. The encoder alone decides what
 * is in which slot and writes so into the records; the decoder does as it is told. So batches are
 * decoded in the order in which they were encoded, and by one decoder.
 *
 * An encoder or decoder belongs to one thread at a time; no call blocks or allocates, but for
 * those that make one. bm_batch_compress() and bm_batch_expand() are for workers, too.
 */
#ifndef BM_RAM_CODEC_H
#define BM_RAM_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blockmirror/ram/wire.h"

enum {
	BM_RAM_BLOCKS = 256, /* named pieces of RAM, at most */
	BM_RAM_NAME = 255,   /* bytes of such a name, at most; none is empty */
	BM_RAM_PAGE_BITS_MIN = 12,
	BM_RAM_PAGE_BITS_MAX = 16,
	BM_RAM_SLOTS_MAX = 1 << 20, /* 4 GiB of pages of 4 KiB */
};

/* Where a page is. */
struct bm_page {
	uint16_t block;
	bool named;     /* QEMU's stream: the record names its block; native: false */
	uint64_t index; /* in pages from the block's beginning */
};

/* Records as they go into a frame; data is the caller's, of BM_RAM_PAYLOAD bytes. */
struct bm_batch {
	uint8_t *data;
	uint32_t used, weight;
};

/* How often each coding was chosen, and what it cost. */
struct bm_encoder_stats {
	uint64_t fills, blanks, copies, deltas, raw; /* pages */
	uint64_t delta_bytes, other_bytes;           /* others: what is no page */
};

struct bm_encoder;

/* slots: 0 to BM_RAM_SLOTS_MAX. NULL: no memory, which is all touched only as slots are used. */
struct bm_encoder *bm_encoder_new(unsigned page_bits, uint32_t slots);
void bm_encoder_free(struct bm_encoder *e); /* NULL is allowed */
const struct bm_encoder_stats *bm_encoder_stats(const struct bm_encoder *e);
unsigned bm_encoder_page_bits(const struct bm_encoder *e);

/* What is encoded from here on goes into batch, which it empties. */
void bm_encoder_begin(struct bm_encoder *e, struct bm_batch *batch);

/*
 * Each of these adds to the batch, or returns false and does nothing: the batch is full, another
 * one is to be begun. An empty batch takes any of them. Pages: block has been named, and a page's
 * data are 1 << page_bits bytes.
 *
 * Weights: a page 8 and its size, a fill 9, a name of either 1 and its length; bytes their number.
 */
bool bm_encode_block(struct bm_encoder *e, uint16_t block, const char *name, size_t length);
bool bm_encode_page(struct bm_encoder *e, const struct bm_page *page, const uint8_t *data);
bool bm_encode_fill(struct bm_encoder *e, const struct bm_page *page, uint8_t value);

/* How many of them it took: 0 when the batch is full. */
size_t bm_encode_bytes(struct bm_encoder *e, const uint8_t *data, size_t length);

/* How many it would take. */
size_t bm_encoder_room(const struct bm_encoder *e);

bool bm_page_is_zero(const uint8_t *data, size_t size);

/*
 * Compresses into to, whose data has as much room. Returns false: it does not get smaller. The
 * context is a ZSTD_CCtx, or a ZSTD_DCtx.
 */
bool bm_batch_compress(void *context, const struct bm_batch *from, struct bm_batch *to);

/* Decompresses length bytes to just plain, at most BM_RAM_PAYLOAD. */
int bm_batch_expand(void *context, const uint8_t *from, size_t length, uint8_t *to, size_t plain,
		    struct bm_error *error);

/* What comes out, in the order in which it was put in. Each returns 0, or what bm_decode() is to
   return. */
struct bm_decoder_ops {
	int (*bytes)(void *arg, const uint8_t *data, size_t length);
	int (*page)(void *arg, const struct bm_page *page, const uint8_t *data);
	int (*fill)(void *arg, const struct bm_page *first, uint64_t count, uint8_t value);
	int (*block)(void *arg, uint16_t block, const char *name, size_t length); /* or NULL */
};

struct bm_decoder;

struct bm_decoder *bm_decoder_new(unsigned page_bits, uint32_t slots);
void bm_decoder_free(struct bm_decoder *d); /* NULL is allowed */
unsigned bm_decoder_page_bits(const struct bm_decoder *d);

/* NULL: no such block. It stays valid, and ends with 0. */
const char *bm_decoder_name(const struct bm_decoder *d, uint16_t block, size_t *length);

/*
 * Takes the records of one batch apart. Trusts nothing: what it hands out never weighs more than
 * weight, and -errno with E_UNREACHABLE says that the batch is none. What was handed out by then
 * is of no use, nor is the decoder.
 */
int bm_decode(struct bm_decoder *d, const uint8_t *data, size_t length, uint32_t weight,
	      const struct bm_decoder_ops *ops, void *arg, struct bm_error *error);

#endif
