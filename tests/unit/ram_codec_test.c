/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Pages to batches and back, whatever is in the cache; and batches that somebody else has made.
 */
#include "tests/unit/ram_rig.h"

#include <errno.h>
#include <time.h>

#include "blockmirror/ram/pace.h"
#include "blockmirror/ram/record.h"

enum { PAGES = 200 };

static uint64_t seed;

/* RAM at the other end, which only what is decoded changes. */
struct there {
	uint8_t ram[PAGES][PAGE];
	uint64_t pages, fills, weight;
};

static int get_bytes(void *arg, const uint8_t *data, size_t length)
{
	struct there *t = arg;

	(void)data;
	t->weight += length;
	return 0;
}

static int get_page(void *arg, const struct bm_page *page, const uint8_t *data)
{
	struct there *t = arg;

	t->weight += 8 + PAGE;
	t->pages++;
	if (page->index < PAGES)
		memcpy(t->ram[page->index], data, PAGE);
	return 0;
}

static int get_fill(void *arg, const struct bm_page *first, uint64_t count, uint8_t value)
{
	struct there *t = arg;

	t->weight += 9 * count;
	t->fills += count;
	for (uint64_t i = 0; i < count && first->index + i < PAGES; i++)
		memset(t->ram[first->index + i], value, PAGE);
	return 0;
}

static const struct bm_decoder_ops ops = {.bytes = get_bytes, .page = get_page, .fill = get_fill};

static int begin(void **state)
{
	struct timespec t;

	(void)state;
	clock_gettime(CLOCK_REALTIME, &t);
	seed = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 0) : (uint64_t)t.tv_nsec << 20 | 1;
	printf("# SEED=%llu\n", (unsigned long long)seed);
	return 0;
}

struct pair {
	struct bm_encoder *encoder;
	struct bm_decoder *decoder;
	struct bm_batch batch;
	struct there *there;
	uint64_t wire;
};

static void pair_open(struct pair *p, uint32_t slots)
{
	memset(p, 0, sizeof(*p));
	p->encoder = bm_encoder_new(BITS, slots);
	p->decoder = bm_decoder_new(BITS, slots);
	p->batch.data = malloc(BM_RAM_PAYLOAD);
	p->there = calloc(1, sizeof(*p->there));
	assert_true(p->encoder && p->decoder && p->batch.data && p->there);
	bm_encoder_begin(p->encoder, &p->batch);
	assert_true(bm_encode_block(p->encoder, 0, "ram", 3));
}

static void pair_send(struct pair *p)
{
	struct bm_error error = {0};

	p->there->weight = 0;
	if (bm_decode(p->decoder, p->batch.data, p->batch.used, p->batch.weight, &ops, p->there,
		      &error))
		fail_msg("%s", error.text);
	assert_int_equal(p->there->weight, p->batch.weight);
	p->wire += p->batch.used;
	bm_encoder_begin(p->encoder, &p->batch);
}

static void pair_close(struct pair *p)
{
	bm_encoder_free(p->encoder);
	bm_decoder_free(p->decoder);
	free(p->batch.data);
	free(p->there);
}

static void put_page(struct pair *p, uint64_t index, const uint8_t *data)
{
	struct bm_page page = {.index = index};

	while (!bm_encode_page(p->encoder, &page, data))
		pair_send(p);
}

static void put_fill(struct pair *p, uint64_t index, uint8_t value)
{
	struct bm_page page = {.index = index};

	while (!bm_encode_fill(p->encoder, &page, value))
		pair_send(p);
}

/* Changes a page as programs do: a word, a stretch, all of it, or it becomes another one. */
static void change(uint8_t ram[PAGES][PAGE], uint64_t index)
{
	uint64_t r = next_random(&seed);
	size_t at = r >> 8 & (PAGE - 8);

	switch (r % 6) {
	case 0:
		bm_put64(ram[index] + at, r);
		break;
	case 1:
		memset(ram[index] + at, (int)(r >> 32), (PAGE - at) / 2);
		break;
	case 2:
		for (size_t i = 0; i < PAGE; i += 8)
			bm_put64(ram[index] + i, next_random(&seed));
		break;
	case 3:
		memcpy(ram[index], ram[r >> 32 & 127], PAGE);
		break;
	case 4:
		memset(ram[index], 0, PAGE);
		break;
	default:
		for (size_t i = r % 64; i < PAGE; i += 64)
			ram[index][i]++;
	}
}

/* Caches from none to more than there are pages. */
static void memory_is_the_same_after_every_round(void **state)
{
	const uint32_t slots[] = {0, 1, 2, 7, 100, 1000};

	(void)state;
	for (size_t k = 0; k < sizeof(slots) / sizeof(*slots); k++) {
		static uint8_t ram[PAGES][PAGE];
		struct pair p;

		memset(ram, 0, sizeof(ram));
		pair_open(&p, slots[k]);
		for (int round = 0; round < 60; round++) {
			for (int i = 0; i < 40; i++) {
				uint64_t index = next_random(&seed) % (i % 2 ? PAGES : 20);

				change(ram, index);
				if (i % 5 == 0 && bm_page_is_zero(ram[index], PAGE))
					put_fill(&p, index, 0);
				else
					put_page(&p, index, ram[index]);
			}
			pair_send(&p);
			assert_memory_equal(ram, p.there->ram, sizeof(ram));
		}
		pair_close(&p);
	}
}

static void random_page(uint8_t *page)
{
	for (size_t i = 0; i < PAGE; i += 8)
		bm_put64(page + i, next_random(&seed));
}

static void each_page_goes_in_the_cheapest_way(void **state)
{
	static uint8_t page[PAGE], other[PAGE], blank[PAGE];
	const struct bm_encoder_stats *stats;
	struct pair p;

	(void)state;
	pair_open(&p, 16);
	stats = bm_encoder_stats(p.encoder);
	random_page(page);
	random_page(other);
	put_page(&p, 0, page);
	assert_int_equal(stats->raw, 1);
	put_page(&p, 1, page);
	put_page(&p, 0, page);
	assert_int_equal(stats->copies, 2);
	page[100] ^= 1;
	put_page(&p, 0, page);
	assert_int_equal(stats->deltas, 1);
	assert_int_equal(stats->delta_bytes, 5);
	page[4000] ^= 1;
	put_page(&p, 0, page);
	assert_int_equal(stats->delta_bytes, 10);
	put_page(&p, 0, other);
	assert_int_equal(stats->raw, 2);
	put_page(&p, 0, blank);
	assert_int_equal(stats->blanks, 1);
	for (uint64_t i = 10; i < 1010; i++)
		put_fill(&p, i, 0);
	assert_int_equal(stats->fills, 1000);
	pair_send(&p);
	assert_in_range(p.wire, 2 * PAGE, 2 * PAGE + 200);
	pair_close(&p);
}

/* A copy of another page, which changed since or not, is what the next change is told against. */
static void a_page_that_was_a_copy_is_changed_by_a_difference(void **state)
{
	static uint8_t page[PAGE], changed[PAGE];
	const struct bm_encoder_stats *stats;
	struct pair p;

	(void)state;
	pair_open(&p, 16);
	stats = bm_encoder_stats(p.encoder);
	random_page(page);
	put_page(&p, 0, page);
	put_page(&p, 1, page);
	put_page(&p, 2, page);
	memcpy(changed, page, PAGE);
	changed[7]++;
	put_page(&p, 1, changed);
	assert_int_equal(stats->deltas, 1);
	changed[7]++;
	put_page(&p, 0, changed); /* what 2 is a copy of is gone */
	assert_int_equal(stats->deltas, 2);
	changed[7]++;
	put_page(&p, 2, changed);
	assert_int_equal(stats->raw, 2);
	pair_send(&p);
	assert_memory_equal(p.there->ram[2], changed, PAGE);
	pair_close(&p);
}

/* Ten pages are sent in each round, and a thousand only once: the ten stay. */
static void what_is_sent_again_stays_in_the_cache(void **state)
{
	static uint8_t hot[10][PAGE], page[PAGE];
	struct pair p;

	(void)state;
	pair_open(&p, 100);
	for (int i = 0; i < 10; i++)
		random_page(hot[i]);
	for (uint64_t round = 0; round < 20; round++) {
		for (uint64_t i = 0; i < 10; i++) {
			bm_put64(hot[i] + 8 * round, round + 1);
			put_page(&p, i, hot[i]);
		}
		for (uint64_t i = 0; i < 50; i++) {
			random_page(page);
			put_page(&p, 1000 + round * 50 + i, page);
		}
	}
	pair_send(&p);
	assert_int_equal(bm_encoder_stats(p.encoder)->raw, 1010);
	assert_int_equal(bm_encoder_stats(p.encoder)->deltas, 190);
	pair_close(&p);
}

static void a_compressed_batch_is_what_it_was(void **state)
{
	struct bm_batch packed = {.data = malloc(BM_RAM_PAYLOAD)};
	uint8_t *plain = malloc(BM_RAM_PAYLOAD);
	ZSTD_CCtx *c = ZSTD_createCCtx();
	ZSTD_DCtx *d = ZSTD_createDCtx();
	static uint8_t page[PAGE];
	struct bm_error error;
	struct pair p;

	(void)state;
	pair_open(&p, 0);
	for (uint64_t i = 0; i < 20; i++) {
		page[i] = 1;
		put_page(&p, i, page);
	}
	assert_true(bm_batch_compress(c, &p.batch, &packed));
	assert_true(packed.used < p.batch.used / 10);
	assert_int_equal(bm_batch_expand(d, packed.data, packed.used, plain, p.batch.used, &error),
			 0);
	assert_memory_equal(plain, p.batch.data, p.batch.used);
	assert_true(bm_batch_expand(d, packed.data, packed.used, plain, p.batch.used - 1, &error));
	assert_true(bm_batch_expand(d, packed.data, packed.used, plain, p.batch.used + 1, &error));
	assert_true(bm_batch_expand(d, packed.data, packed.used - 1, plain, p.batch.used, &error));
	packed.data[packed.used / 2] ^= 0x55;
	(void)bm_batch_expand(d, packed.data, packed.used, plain, p.batch.used, &error);
	random_page(page);
	bm_encoder_begin(p.encoder, &p.batch);
	put_page(&p, 0, page);
	assert_false(bm_batch_compress(c, &p.batch, &packed));
	ZSTD_freeCCtx(c);
	ZSTD_freeDCtx(d);
	free(packed.data);
	free(plain);
	pair_close(&p);
}

/* What a batch says that no encoder makes. */
static void refused(const uint8_t *data, size_t length, uint32_t weight)
{
	struct bm_decoder *d = bm_decoder_new(BITS, 4);
	struct there *there = calloc(1, sizeof(*there));
	struct bm_error error = {0};
	uint8_t *copy = malloc(length);

	memcpy(copy, data, length);
	assert_true(bm_decode(d, copy, length, weight, &ops, there, &error) < 0);
	assert_int_equal(error.code, BM_E_UNREACHABLE);
	assert_true(there->weight <= weight);
	free(copy);
	free(there);
	bm_decoder_free(d);
}

#define BLOCK 2, 0, 0, 1, 'r', 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
#define refused_bytes(weight, ...)                       \
	do {                                             \
		const uint8_t bytes_[] = {__VA_ARGS__};  \
		refused(bytes_, sizeof(bytes_), weight); \
	} while (0)

static void batches_that_nobody_makes_are_refused(void **state)
{
	(void)state;
	refused_bytes(0, 0);
	refused_bytes(0, BM_RAM_RECORDS);
	refused_bytes(10, BM_RAM_BYTES, 0, 0, 0, 10, 1);
	refused_bytes(10, BM_RAM_BYTES, 0xff, 0xff, 0xff, 0xff, 1);
	refused_bytes(1, BM_RAM_BYTES, 0, 0, 0, 2, 1, 1);
	refused_bytes(3, BM_RAM_BYTES, 0, 0, 0, 2, 1, 1);
	refused_bytes(0, BM_RAM_BYTES, 0, 0, 0, 0);
	refused_bytes(0, BM_RAM_BLOCK, 1, 0, 1, 'r');
	refused_bytes(0, BM_RAM_BLOCK, 0, 0, 0);
	refused_bytes(0, BM_RAM_AT, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
	refused_bytes(0, BLOCK, BM_RAM_AT, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0);
	refused_bytes(9, BM_RAM_FILL, 0, 0, 0, 1, 0);
	refused_bytes(9, BLOCK, BM_RAM_FILL, 0, 0, 0, 2, 0);
	refused_bytes(0, BLOCK, BM_RAM_FILL, 0, 0, 0, 0, 0);
	refused_bytes(BM_RAM_WEIGHT, BLOCK, BM_RAM_FILL, 0xff, 0xff, 0xff, 0xff, 0);
	refused_bytes(4104, BLOCK, BM_RAM_COPY, 0, 0, 0, 4);
	refused_bytes(4104, BLOCK, BM_RAM_COPY, 0xff, 0xff, 0xff, 0xff);
	refused_bytes(4103, BLOCK, BM_RAM_COPY, 0, 0, 0, 0);
	refused_bytes(4104, BLOCK, BM_RAM_RAW, 0, 0, 0, 0, 1, 2, 3);
	refused_bytes(4104, BLOCK, BM_RAM_DELTA, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0);
	refused_bytes(4104, BLOCK, BM_RAM_DELTA, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0);
	refused_bytes(4104, BLOCK, BM_RAM_DELTA, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0);
	refused_bytes(4104, BLOCK, BM_RAM_DELTA, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0x0f, 0xff, 0, 2, 1,
		      1);
	refused_bytes(4104, BLOCK, BM_RAM_DELTA, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 3, 1, 1);
	refused_bytes(4104, BLOCK, BM_RAM_DELTA, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0x10, 1, 0, 0, 0, 0,
		      0, 0);
}

/* Good batches with a few bytes changed: they decode to something of that weight, or are refused.
 */
static void damaged_batches_never_come_to_more_than_their_weight(void **state)
{
	int good = 0;

	(void)state;
	for (int i = 0; i < 400; i++) {
		struct there *there = calloc(1, sizeof(*there));
		static uint8_t ram[PAGES][PAGE];
		struct bm_error error;
		struct pair p;
		uint8_t *copy;

		pair_open(&p, 8);
		for (uint64_t k = 0; k < 12; k++) {
			change(ram, k % 4);
			if (k % 3)
				put_page(&p, k % 4, ram[k % 4]);
			else
				put_fill(&p, k, 0);
		}
		copy = malloc(p.batch.used);
		memcpy(copy, p.batch.data, p.batch.used);
		for (int k = 0; k < 3; k++)
			copy[next_random(&seed) % (i % 2 ? 60 : p.batch.used)] =
				(uint8_t)next_random(&seed);
		good += !bm_decode(p.decoder, copy, p.batch.used, p.batch.weight, &ops, there,
				   &error);
		assert_true(there->weight <= p.batch.weight);
		free(copy);
		free(there);
		pair_close(&p);
	}
	printf("# %d of 400 were taken for good\n", good);
	assert_in_range(good, 1, 399);
}

static void headers_that_cannot_be_are_refused(void **state)
{
	struct bm_ram_header h = {.type = BM_RAM_FRAME_BATCH,
				  .length = 5,
				  .plain = 5,
				  .weight = 9,
				  .number = 7,
				  .content = 3},
			     got;
	uint8_t at[BM_RAM_HEADER], payload[] = "12345";
	struct bm_error error;

	(void)state;
	bm_ram_header_put(at, &h, payload);
	assert_int_equal(bm_ram_header_get(&got, at, &error), 0);
	assert_int_equal(bm_ram_payload_check(&got, at, payload, &error), 0);
	assert_int_equal(got.weight, h.weight);
	assert_int_equal(got.number, h.number);
	assert_int_equal(got.content, h.content);
	/* Each bit of header and payload counts. */
	for (unsigned bit = 0; bit < BM_RAM_HEADER * 8; bit++) {
		at[bit / 8] ^= (uint8_t)(1 << bit % 8);
		if (!bm_ram_header_get(&got, at, &error) && got.length == 5)
			assert_true(bm_ram_payload_check(&got, at, payload, &error) < 0);
		at[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	payload[2] ^= 1;
	assert_int_equal(bm_ram_header_get(&got, at, &error), 0);
	assert_true(bm_ram_payload_check(&got, at, payload, &error) < 0);
	payload[2] ^= 1;
	at[4] = BM_RAM_VERSION + 1;
	assert_true(bm_ram_header_get(&got, at, &error) < 0);
	assert_non_null(strstr(error.text, "version 2"));
	h.length = h.plain = BM_RAM_PAYLOAD + 1;
	assert_true((bm_put32(at + 8, h.length), bm_ram_header_get(&got, at, &error)) < 0);
}

/* Pace */

#define MS 1000000ull
#define MB 1000000ull

/* A second in which a link of so many bytes/s is all that is waited for, or nothing is. */
static void one_second(struct bm_pace *p, uint64_t *now, uint64_t rate, bool waits)
{
	for (int i = 0; i < 1000; i++) {
		bm_pace_waits(p, *now += MS, waits, false);
		bm_pace_sent(p, rate / 1000, rate / 500);
		if (bm_pace_compress(p, *now) && !p->compress)
			bm_pace_compressed(p, 300000, MS); /* 300 MB/s */
	}
}

static void wait_for_codec(struct bm_pace *p, uint64_t *now)
{
	for (int i = 0; i < 300; i++)
		bm_pace_waits(p, *now += MS, false, true);
}

/* Nobody waits for a codec that is given less than it takes. */
static void a_source_that_is_slow_is_compressed(void **state)
{
	uint64_t now = 1000 * MS;
	struct bm_pace p;

	(void)state;
	bm_pace_init(&p, BM_PACE_AUTO, 2, now);
	for (int i = 0; i < 1000; i++) {
		bm_pace_waits(&p, now += MS, false, false);
		assert_true(bm_pace_compress(&p, now));
		bm_pace_compressed(&p, 50000, MS / 2);
		bm_pace_sent(&p, 20000, 50000);
	}
}

static void it_compresses_when_the_link_is_slower_than_the_codec(void **state)
{
	uint64_t now = 1000 * MS;
	struct bm_pace p;

	(void)state;
	bm_pace_init(&p, BM_PACE_AUTO, 2, now);
	assert_true(bm_pace_compress(&p, now));
	wait_for_codec(&p, &now);
	assert_false(p.compress);
	one_second(&p, &now, 1200 * MB, true);
	assert_false(p.compress);
	assert_true(p.codec_rate > 0);
	one_second(&p, &now, 110 * MB, true);
	one_second(&p, &now, 110 * MB, true);
	assert_true(p.compress);
	assert_in_range((uint64_t)p.link_rate, 105 * MB, 115 * MB);
	/* Now the codec is what is waited for: somebody else has the processors. */
	wait_for_codec(&p, &now);
	assert_false(p.compress);
	/* A link that nobody waits for is no reason. */
	one_second(&p, &now, 10 * MB, false);
	assert_false(p.compress || bm_pace_compress(&p, now));
	bm_pace_init(&p, BM_PACE_NEVER, 2, now);
	one_second(&p, &now, 1 * MB, true);
	assert_false(bm_pace_compress(&p, now));
	bm_pace_init(&p, BM_PACE_ALWAYS, 2, now);
	assert_true(bm_pace_compress(&p, now));
}

static void the_window_is_what_the_link_takes_in_20_ms(void **state)
{
	uint64_t now = 1000 * MS;
	struct bm_pace p;

	(void)state;
	bm_pace_init(&p, BM_PACE_NEVER, 1, now);
	assert_int_equal(bm_pace_window(&p), 2 << 20);
	bm_pace_waits(&p, now, true, false);
	assert_int_equal(bm_pace_window(&p), 512 << 10);
	one_second(&p, &now, 50 * MB, true); /* stands for twice as much */
	assert_in_range(bm_pace_window(&p), 1900000, 2100000);
	for (int i = 0; i < 3; i++)
		one_second(&p, &now, 5000 * MB, true);
	assert_int_equal(bm_pace_window(&p), 8 << 20);
	for (int i = 0; i < 10; i++)
		one_second(&p, &now, 1 * MB, true);
	assert_int_equal(bm_pace_window(&p), 512 << 10);
}

/* Half a second of copies of pages, ten times as fast, is no link that got faster; slower is
 * believed. */
static void what_can_be_reckoned_with_is_steady(void **state)
{
	uint64_t now = 0;
	struct bm_pace p;

	(void)state;
	bm_pace_init(&p, BM_PACE_NEVER, 1, now);
	assert_true(bm_pace_steady(&p) == 0);
	one_second(&p, &now, 10 * MB, false); /* nothing waited for it */
	assert_true(bm_pace_steady(&p) == 0);
	for (int i = 0; i < 5; i++)
		one_second(&p, &now, 10 * MB, true);
	assert_in_range((uint64_t)bm_pace_steady(&p), 19 * MB, 21 * MB);
	for (int i = 0; i < 500; i++) {
		bm_pace_waits(&p, now += MS, true, false);
		bm_pace_sent(&p, 10 * MB / 1000, 200 * MB / 1000);
	}
	assert_true(p.raw_rate > 120 * MB && bm_pace_steady(&p) < 70 * MB);
	one_second(&p, &now, 1 * MB, true);
	assert_true(bm_pace_steady(&p) < 10 * MB);
}

/* A batch of 256 KiB a second, which is longer than what is measured at once. */
static void a_slow_link_is_not_taken_for_a_fast_one(void **state)
{
	uint64_t now = 0;
	struct bm_pace p;

	(void)state;
	bm_pace_init(&p, BM_PACE_NEVER, 1, now);
	for (int i = 1; i <= 10000; i++) {
		bm_pace_waits(&p, now += MS, true, false);
		if (i % 1000 == 0)
			bm_pace_sent(&p, 256 << 10, 256 << 10);
	}
	assert_in_range((uint64_t)p.raw_rate, 200 << 10, 300 << 10);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(memory_is_the_same_after_every_round),
		cmocka_unit_test(each_page_goes_in_the_cheapest_way),
		cmocka_unit_test(a_page_that_was_a_copy_is_changed_by_a_difference),
		cmocka_unit_test(what_is_sent_again_stays_in_the_cache),
		cmocka_unit_test(a_compressed_batch_is_what_it_was),
		cmocka_unit_test(batches_that_nobody_makes_are_refused),
		cmocka_unit_test(damaged_batches_never_come_to_more_than_their_weight),
		cmocka_unit_test(headers_that_cannot_be_are_refused),
		cmocka_unit_test(it_compresses_when_the_link_is_slower_than_the_codec),
		cmocka_unit_test(a_source_that_is_slow_is_compressed),
		cmocka_unit_test(the_window_is_what_the_link_takes_in_20_ms),
		cmocka_unit_test(what_can_be_reckoned_with_is_steady),
		cmocka_unit_test(a_slow_link_is_not_taken_for_a_fast_one),
	};

	return cmocka_run_group_tests(tests, begin, NULL);
}
