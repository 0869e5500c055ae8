/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * QEMU's stream, as somebody else sends it: it comes out as it went in, or is refused. The first
 * byte chooses how it is cut into pieces, and the size of the cache.
 */
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/ram/stream.h"
#include "tests/fuzz/fuzz.h"

enum { BITS = 12, MOST = 1 << 20 };

/* Large ones are dear under a sanitizer. */
static uint8_t built[BM_RAM_WEIGHT], payload[BM_RAM_PAYLOAD], out[MOST];

struct way {
	struct bm_stream stream;
	struct bm_encoder *encoder;
	struct bm_builder builder;
	struct bm_batch batch;
	uint8_t *out;
	size_t used;
};

/* The batch goes over, and what it was made of comes out. */
static void pass(struct way *w)
{
	struct bm_error error;

	demand(!bm_stream_build(&w->builder, w->batch.data, w->batch.used, w->batch.weight,
				&error));
	demand(w->builder.used == w->batch.weight && w->used + w->builder.used <= MOST);
	memcpy(w->out + w->used, w->builder.data, w->builder.used);
	w->used += w->builder.used;
	bm_encoder_begin(w->encoder, &w->batch);
}

/* Returns how much of it is done with, or -1: it was refused. */
static ssize_t parse(struct way *w, const uint8_t *data, size_t length)
{
	size_t at = 0, used;
	struct bm_error error = {0};
	int r;

	do {
		/* Memory of just that size: what is read behind its end is seen. */
		bm_free uint8_t *seen = malloc(length - at + 1);

		demand(seen);
		memcpy(seen + 1, data + at, length - at);
		r = bm_stream_parse(&w->stream, w->encoder, seen + 1, length - at, &used, &error);
		at += used;
		if (r == 1)
			pass(w);
	} while (r == 1);
	demand(r >= 0 || error.code == BM_E_UNSUPPORTED);
	demand(length - at < BM_STREAM_ITEM_MAX);
	return r < 0 ? -1 : (ssize_t)at;
}

static void go(struct way *w, const uint8_t *data, size_t size, unsigned step)
{
	size_t at = 0, have = 0;
	ssize_t n;

	while (have < size) {
		have += step && size - have > step ? step : size - have;
		n = parse(w, data + at, have - at);
		if (n < 0)
			return;
		at += (size_t)n;
	}
	bm_stream_end(&w->stream);
	n = parse(w, data + at, size - at);
	demand(n < 0 || at + (size_t)n == size);
	pass(w);
	demand(w->used == size && !memcmp(w->out, data, size));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	unsigned how = input_u8(&in);
	struct way w = {.encoder = bm_encoder_new(BITS, how & 7)};

	w.builder.decoder = bm_decoder_new(BITS, how & 7);
	w.builder.data = built;
	w.batch.data = payload;
	w.out = out;
	demand(w.encoder && w.builder.decoder);
	bm_stream_init(&w.stream);
	bm_encoder_begin(w.encoder, &w.batch);
	if (in.left <= MOST)
		go(&w, in.at, in.left, how / 8 * 37);
	bm_encoder_free(w.encoder);
	bm_decoder_free(w.builder.decoder);
	return 0;
}
