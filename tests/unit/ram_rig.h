/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Streams for tests: recorded ones, and ones put together piece by piece; and the way through
 * parser, codec and builder, in pieces of any size.
 */
#ifndef TESTS_UNIT_RAM_RIG_H
#define TESTS_UNIT_RAM_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <zstd.h>
#include <cmocka.h>

#include "blockmirror/ram/stream.h"

enum { BITS = 12, PAGE = 1 << BITS };

struct bytes {
	uint8_t *data;
	size_t used, room;
};

static inline void add(struct bytes *b, const void *data, size_t length)
{
	if (!length)
		return;
	if (b->used + length > b->room) {
		b->room = (b->used + length) * 2;
		b->data = realloc(b->data, b->room);
		assert_non_null(b->data);
	}
	memcpy(b->data + b->used, data, length);
	b->used += length;
}

static inline void add_number(struct bytes *b, uint64_t value, size_t size)
{
	uint8_t at[8];

	bm_put64(at, value);
	add(b, at + 8 - size, size);
}

static inline void add_name(struct bytes *b, const char *name)
{
	add_number(b, strlen(name), 1);
	add(b, name, strlen(name));
}

/* Magic, configuration, the section of RAM with one block of size bytes. */
static inline void add_beginning(struct bytes *b, const char *block, uint64_t size)
{
	add_number(b, 0x5145564d, 4);
	add_number(b, 3, 4);
	add_number(b, 7, 1);
	add_number(b, 6, 4);
	add(b, "pc-7.2", 6);
	add_number(b, 1, 1);
	add_number(b, 2, 4);
	add_name(b, "ram");
	add_number(b, 0, 4);
	add_number(b, 4, 4);
	add_number(b, size | 4, 8);
	add_name(b, block);
	add_number(b, size, 8);
}

static inline void add_page(struct bytes *b, const char *block, uint64_t address, const void *data)
{
	add_number(b, address | 8 | (block ? 0 : 0x20), 8);
	if (block)
		add_name(b, block);
	add(b, data, PAGE);
}

static inline void add_fill(struct bytes *b, const char *block, uint64_t address, uint8_t value)
{
	add_number(b, address | 2 | (block ? 0 : 0x20), 8);
	if (block)
		add_name(b, block);
	add(b, &value, 1);
}

static inline void add_end(struct bytes *b)
{
	add_number(b, 0x10, 8);
	add_number(b, 0x7e, 1);
	add_number(b, 2, 4);
}

static inline uint64_t next_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static inline size_t size_of_file(FILE *file)
{
	long size;

	fseek(file, 0, SEEK_END);
	size = ftell(file);
	rewind(file);
	return (size_t)size;
}

/* What tests/ram/record.py has made. The working directory is the project's top. */
static inline void load_recorded(struct bytes *all)
{
	FILE *file = fopen("tests/ram/streams.zst", "r");
	ZSTD_DStream *zstd = ZSTD_createDStream();
	ZSTD_inBuffer in = {0};
	char *packed;
	size_t left = 1;

	assert_non_null(file);
	in.size = size_of_file(file);
	packed = malloc(in.size);
	in.src = packed;
	assert_int_equal(fread(packed, 1, in.size, file), in.size);
	fclose(file);
	while (left) {
		uint8_t piece[65536];
		ZSTD_outBuffer out = {piece, sizeof(piece), 0};

		left = ZSTD_decompressStream(zstd, &out, &in);
		assert_false(ZSTD_isError(left));
		assert_true(out.pos || in.pos < in.size);
		add(all, piece, out.pos);
	}
	ZSTD_freeDStream(zstd);
	free(packed);
}

/* The stream of that name. */
static inline struct bytes recorded(const struct bytes *all, const char *name)
{
	const char *at = (const char *)all->data, *end = at + all->used;

	while (at < end) {
		const char *line = memchr(at, '\n', (size_t)(end - at));
		size_t length = strtoul(strchr(at, ' '), NULL, 10);

		if (!strncmp(at, name, strlen(name)) && at[strlen(name)] == ' ')
			return (struct bytes){(uint8_t *)line + 1, length, 0};
		at = line + 1 + length;
	}
	fail_msg("no stream %s was recorded", name);
	return (struct bytes){0};
}

/* Parser and codec, with what they have come to. */
struct way {
	struct bm_stream stream;
	struct bm_encoder *encoder;
	struct bm_decoder *decoder;
	struct bm_batch batch;
	uint8_t *built;
	struct bytes out;
	uint64_t wire, batches;
	struct bm_error error;
};

static inline void way_open(struct way *w, uint32_t slots)
{
	memset(w, 0, sizeof(*w));
	bm_stream_init(&w->stream);
	w->encoder = bm_encoder_new(BITS, slots);
	w->decoder = bm_decoder_new(BITS, slots);
	w->batch.data = malloc(BM_RAM_PAYLOAD);
	w->built = malloc(BM_RAM_WEIGHT);
	assert_true(w->encoder && w->decoder && w->batch.data && w->built);
	bm_encoder_begin(w->encoder, &w->batch);
}

static inline void way_close(struct way *w)
{
	bm_encoder_free(w->encoder);
	bm_decoder_free(w->decoder);
	free(w->batch.data);
	free(w->built);
	free(w->out.data);
}

/* The batch goes over. */
static inline void way_send(struct way *w)
{
	struct bm_builder builder = {.decoder = w->decoder, .data = w->built};
	int e = bm_stream_build(&builder, w->batch.data, w->batch.used, w->batch.weight, &w->error);

	if (e)
		fail_msg("batch %d: %s", (int)w->batches, w->error.text);
	assert_int_equal(builder.used, w->batch.weight);
	add(&w->out, w->built, builder.used);
	w->wire += w->batch.used;
	w->batches += w->batch.weight > 0;
	bm_encoder_begin(w->encoder, &w->batch);
}

/* Shows the parser length bytes as often as it takes. */
static inline int way_parse(struct way *w, const uint8_t *data, size_t length, size_t *used)
{
	int r;

	*used = 0;
	do {
		size_t n;

		r = bm_stream_parse(&w->stream, w->encoder, data + *used, length - *used, &n,
				    &w->error);
		*used += n;
		if (r == 1) {
			assert_true(w->batch.used);
			way_send(w);
		}
	} while (r == 1);
	return r;
}

/* All of it, in pieces of 1 to most bytes; batches end early now and then. 0 or -errno. */
static inline int way_pass(struct way *w, const struct bytes *in, size_t most, uint64_t seed)
{
	size_t have = 0, used, at = 0;
	int r;

	while (have < in->used) {
		have += 1 + next_random(&seed) % most;
		if (have > in->used)
			have = in->used;
		/* Memory of just that size: reading behind it is seen. */
		uint8_t *seen = malloc(have - at);

		memcpy(seen, in->data + at, have - at);
		r = way_parse(w, seen, have - at, &used);
		free(seen);
		if (r < 0)
			return r;
		at += used;
		assert_true(have - at < BM_STREAM_ITEM_MAX);
		if (next_random(&seed) % 16 == 0)
			way_send(w);
	}
	bm_stream_end(&w->stream);
	assert_int_equal(way_parse(w, in->data + at, have - at, &used), 0);
	assert_int_equal(at + used, in->used);
	way_send(w);
	return 0;
}

static inline void assert_same(const struct way *w, const struct bytes *in)
{
	assert_int_equal(w->out.used, in->used);
	for (size_t i = 0; i < in->used; i++)
		if (w->out.data[i] != in->data[i])
			fail_msg("byte %zu is %02x instead of %02x", i, w->out.data[i],
				 in->data[i]);
}

#endif
