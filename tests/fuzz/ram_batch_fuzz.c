/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Frames and batches as another host sends them. The first byte: bit 0 a header, bit 1 zstd, bit 2
 * an answer of a QEMU, else records. The next three are the weight that the batch is said to have.
 */
#include <string.h>
#include <zstd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/ram/stream.h"
#include "tests/fuzz/fuzz.h"

enum { HEADER = 1, ZSTD = 2, ANSWER = 4, BITS = 12, SLOTS = 5 };

static void fuzz_header(const uint8_t *data, size_t size)
{
	uint8_t head[BM_RAM_HEADER] = {0};
	struct bm_ram_header header;
	struct bm_ram_hello hello;
	struct bm_error error = {0};

	memcpy(head, data, size < sizeof(head) ? size : sizeof(head));
	if (size < sizeof(head) || bm_ram_header_get(&header, head, &error) < 0)
		return;
	demand(header.length <= BM_RAM_PAYLOAD && header.plain <= BM_RAM_PAYLOAD);
	demand(header.weight <= BM_RAM_WEIGHT && header.type < BM_RAM_TYPES);
	data += sizeof(head);
	size -= sizeof(head);
	if (header.length <= size)
		(void)bm_ram_payload_check(&header, head, data, &error);
	if (!bm_ram_hello_get(&hello, data, size, &error))
		demand(hello.link < hello.links && hello.links <= BM_RAM_LINKS);
}

/* What is built never has more bytes than the batch has weight: memory of just that size. */
static void fuzz_records(const uint8_t *data, size_t size, uint32_t weight)
{
	struct bm_builder builder = {.decoder = bm_decoder_new(BITS, SLOTS),
				     .data = malloc(weight + 1)};
	struct bm_error error = {0};
	int r;

	demand(builder.decoder && builder.data);
	for (int again = 0; again < 2; again++) {
		r = bm_stream_build(&builder, data, size, weight, &error);
		demand(builder.used <= weight);
		demand(r ? error.code == BM_E_UNREACHABLE && *error.text : builder.used == weight);
	}
	free(builder.data);
	bm_decoder_free(builder.decoder);
}

static void fuzz_zstd(const uint8_t *data, size_t size, uint32_t plain)
{
	bm_free uint8_t *to = malloc(plain + 1);
	struct bm_error error = {0};
	ZSTD_DCtx *context = ZSTD_createDCtx();

	demand(to && context);
	if (!bm_batch_expand(context, data, size, to, plain, &error))
		fuzz_records(to, plain, 4096);
	ZSTD_freeDCtx(context);
}

/* What passes and what is held is all that there was. */
static void fuzz_answer(const uint8_t *data, size_t size, size_t step)
{
	bm_free uint8_t *to = malloc(size + 16);
	size_t used = 0, at = 0;
	struct bm_return r;

	demand(to);
	bm_return_init(&r);
	while (at < size) {
		const uint8_t *piece = data + at;
		size_t length = size - at < step ? size - at : step;

		used += bm_return_pass(&r, &piece, &length, to + used);
		demand(used <= (size_t)(piece - data));
		at = (size_t)(piece - data);
		demand(!length || r.shut);
		if (r.shut) {
			bm_return_release(&r, to + used);
			used += 8;
		}
	}
	memcpy(to + used, r.head, r.have);
	demand(used + r.have == size && !memcmp(to, data, size));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	unsigned what = input_u8(&in);
	uint32_t weight = (uint32_t)input_u8(&in) << 16;

	weight = (weight | input_u16(&in)) % (BM_RAM_WEIGHT + 1);
	if (what & HEADER)
		fuzz_header(in.at, in.left);
	else if (what & ZSTD)
		fuzz_zstd(in.at, in.left, weight);
	else if (what & ANSWER)
		fuzz_answer(in.at, in.left, 1 + weight % 50);
	else
		fuzz_records(in.at, in.left, weight);
	return 0;
}
