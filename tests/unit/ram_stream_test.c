/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * QEMU's stream goes through parser, codec and builder, and comes out as it went in: recorded
 * streams, and made-up ones with what those do not have, in pieces of any size.
 */
#include "tests/unit/ram_rig.h"

#include <errno.h>
#include <time.h>

static struct bytes all;
static const char *const names[] = {"plain", "return", "xbzrle", "ignore", "hotplug", "huge"};
static uint64_t seed;

static int load(void **state)
{
	struct timespec t;

	(void)state;
	load_recorded(&all);
	clock_gettime(CLOCK_REALTIME, &t);
	seed = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 0) : (uint64_t)t.tv_nsec << 20 | 1;
	printf("# SEED=%llu\n", (unsigned long long)seed);
	return 0;
}

static int unload(void **state)
{
	(void)state;
	free(all.data);
	return 0;
}

/* Once for each stream: from single bytes to pieces larger than a batch. */
static void recorded_streams_come_out_as_they_went_in(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
		const size_t most[] = {1, 7, 5000, 70000, 1 << 20};
		struct bytes in = recorded(&all, names[i]);

		for (size_t k = 0; k < sizeof(most) / sizeof(*most); k++) {
			struct way w;

			way_open(&w, k % 2 ? 64 : 1024);
			assert_int_equal(way_pass(&w, &in, most[k], seed + k), 0);
			assert_same(&w, &in);
			assert_true(w.stream.devices);
			assert_string_equal(w.stream.why, "device state");
			assert_int_equal(in.data[w.stream.why_offset], 4);
			assert_true(w.stream.sections >= 3);
			way_close(&w);
		}
	}
}

/* Most of them are zero, copies of each other, or changed in a word. */
static void recorded_pages_are_coded(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
		struct bytes in = recorded(&all, names[i]);
		const struct bm_encoder_stats *stats;
		struct way w;

		way_open(&w, 1024);
		assert_int_equal(way_pass(&w, &in, 65536, seed), 0);
		stats = bm_encoder_stats(w.encoder);
		printf("# %s: %zu bytes, %llu on the wire; fills %llu, copies %llu, deltas %llu of "
		       "%llu bytes, raw %llu, no page %llu bytes\n",
		       names[i], in.used, (unsigned long long)w.wire,
		       (unsigned long long)stats->fills, (unsigned long long)stats->copies,
		       (unsigned long long)stats->deltas, (unsigned long long)stats->delta_bytes,
		       (unsigned long long)stats->raw, (unsigned long long)stats->other_bytes);
		assert_true(w.wire < in.used);
		assert_true(stats->fills >= 80 && stats->raw >= 40);
		if (strcmp(names[i], "ignore")) {
			assert_true(stats->copies >= 40);
			assert_true(stats->deltas + stats->copies >= 64);
		}
		way_close(&w);
	}
}

/* A stream can end anywhere: what is there passes. */
static void a_stream_that_is_cut_off_passes_as_far_as_it_goes(void **state)
{
	struct bytes in = recorded(&all, "return");

	(void)state;
	for (int i = 0; i < 300; i++) {
		struct way w;
		struct bytes cut = in;

		cut.used = i < 100 ? (size_t)i : next_random(&seed) % in.used;
		way_open(&w, 64);
		assert_int_equal(way_pass(&w, &cut, 1 << 20, seed), 0);
		assert_same(&w, &cut);
		way_close(&w);
	}
}

/* Whatever bytes are changed to: they are passed through, or refused, and never others. */
static void a_stream_that_is_damaged_comes_out_damaged_in_the_same_way(void **state)
{
	struct bytes in = recorded(&all, "return"), bad = {0};
	int refused = 0, unknown = 0;

	(void)state;
	for (int i = 0; i < 300; i++) {
		struct way w;
		int r;

		bad.used = 0;
		add(&bad, in.data, i % 3 ? 100000 : 300);
		for (int k = 0; k < 3; k++)
			bad.data[next_random(&seed) % (i % 3 ? bad.used : 200)] ^=
				(uint8_t)(1 << next_random(&seed) % 8);
		way_open(&w, 64);
		r = way_pass(&w, &bad, 1 << 20, seed);
		if (r) {
			assert_int_equal(r, -EOPNOTSUPP);
			assert_non_null(strstr(w.error.text, "offset"));
			refused++;
		} else {
			assert_same(&w, &bad);
			unknown += !w.stream.devices;
		}
		way_close(&w);
	}
	printf("# %d refused, %d with something unknown\n", refused, unknown);
	assert_true(unknown > 20);
	free(bad.data);
}

static void fill_page(uint8_t *page, uint64_t with)
{
	for (size_t i = 0; i < PAGE; i += 8)
		bm_put64(page + i, next_random(&with));
}

/* Pages to and fro between two blocks, sent again changed, and other records between them. */
static void add_records(struct bytes *in)
{
	uint8_t page[PAGE], xbzrle[] = {1, 0, 5, 1, 2, 3, 4, 5};

	for (unsigned i = 0; i < 200; i++) {
		fill_page(page, i % 40 + 1);
		page[i] ^= (uint8_t)i;
		add_page(in,
			 i % 7   ? NULL
			 : i % 2 ? "pc.ram"
				 : "pc.bios",
			 (uint64_t)(i % 50) << BITS, page);
		add_fill(in, NULL, (uint64_t)i << BITS, (uint8_t)(i % 9 ? 0 : i));
		if (i % 20 == 0) {
			add_number(in, (uint64_t)i << BITS | 0x40 | 0x20, 8);
			add(in, xbzrle, sizeof(xbzrle));
			add_number(in, (uint64_t)i << BITS | 0x100, 8);
			add_name(in, "pc.rom");
			add_number(in, sizeof(xbzrle), 4);
			add(in, xbzrle, sizeof(xbzrle));
			add_number(in, 0x200, 8);
			add_number(in, 0x80, 8);
		}
	}
	memset(page, 0, sizeof(page));
	add_page(in, NULL, 1 << 20, page);
}

static void records_that_were_not_recorded_pass(void **state)
{
	struct bytes in = {0};

	(void)state;
	add_beginning(&in, "pc.ram", 1 << 28);
	add_records(&in);
	add_end(&in);
	add_number(&in, 3, 1);
	add_number(&in, 2, 4);
	add_end(&in);
	add_number(&in, 4, 1);
	for (int k = 0; k < 20; k++) {
		struct way w;

		way_open(&w, k % 2 ? 0 : 16);
		assert_int_equal(way_pass(&w, &in, 1 + (size_t)k * 500, seed + (uint64_t)k), 0);
		assert_same(&w, &in);
		assert_true(w.stream.devices);
		assert_int_equal(bm_encoder_stats(w.encoder)->fills, 200);
		assert_int_equal(bm_encoder_stats(w.encoder)->blanks, 1);
		way_close(&w);
	}
	free(in.data);
}

/* Passes, and why says what ended it. */
static void passes(struct bytes *in, const char *why, size_t offset)
{
	struct way w;

	way_open(&w, 16);
	assert_int_equal(way_pass(&w, in, 100, seed), 0);
	assert_same(&w, in);
	assert_string_equal(w.stream.why, why);
	assert_int_equal(w.stream.why_offset, offset);
	way_close(&w);
	free(in->data);
	memset(in, 0, sizeof(*in));
}

static void what_is_not_known_passes_and_is_told(void **state)
{
	struct bytes in = {0};
	uint8_t page[PAGE] = {1};
	size_t at;

	(void)state;
	add(&in, "GET / HTTP/1.0\r\n", 16);
	passes(&in, "it does not begin as a migration stream of version 3", 0);

	add_beginning(&in, "pc.ram", 1 << 20);
	at = in.used;
	add_page(&in, NULL, 0, page);
	passes(&in, "a page of no block, or more blocks than we know", at);

	add_beginning(&in, "pc.ram", 1 << 20);
	add_page(&in, "pc.ram", 0, page);
	at = in.used;
	add_number(&in, 0x400 | 8, 8);
	add(&in, page, sizeof(page));
	passes(&in, "a RAM record of a kind that we do not know", at);

	add_beginning(&in, "pc.ram", 1 << 20);
	add_end(&in);
	at = in.used;
	add_number(&in, 1, 1);
	add_number(&in, 3, 4);
	add_name(&in, "dirty-bitmap");
	add_number(&in, 0, 4);
	add_number(&in, 1, 4);
	add(&in, page, sizeof(page));
	passes(&in, "a section of something else than RAM, or of another version", at);

	add_beginning(&in, "pc.ram", 1 << 20);
	at = in.used - 15;
	bm_put64(in.data + in.used - 8, 1 << 21);
	passes(&in, "a list of blocks that does not add up", at);

	add_beginning(&in, "pc.ram", 1 << 20);
	add_end(&in);
	at = in.used;
	add_number(&in, 0x55, 1);
	add(&in, page, sizeof(page));
	passes(&in, "a section of a type that we do not know", at);
}

static void blocks_without_end_pass(void **state)
{
	struct bytes in = {0};
	uint8_t page[PAGE] = {1};
	size_t at = 0;

	(void)state;
	add_beginning(&in, "pc.ram", 1 << 20);
	for (int i = 0; i < BM_RAM_BLOCKS + 20; i++) {
		char name[20];

		snprintf(name, sizeof(name), "block%d", i);
		if (i == BM_RAM_BLOCKS)
			at = in.used;
		add_page(&in, name, 0, page);
	}
	passes(&in, "a page of no block, or more blocks than we know", at);
}

static void refuses(struct bytes *in, const char *what)
{
	struct way w;

	way_open(&w, 16);
	assert_int_equal(way_pass(&w, in, 100, seed), -EOPNOTSUPP);
	assert_int_equal(w.error.code, BM_E_UNSUPPORTED);
	if (!strstr(w.error.text, what) || !strstr(w.error.text, "offset"))
		fail_msg("%s", w.error.text);
	way_close(&w);
	free(in->data);
	memset(in, 0, sizeof(*in));
}

static void what_a_relay_cannot_do_is_refused(void **state)
{
	struct bytes in = {0};
	uint8_t rest[100] = {0};

	(void)state;
	add_number(&in, 0x11223344, 4);
	add(&in, rest, sizeof(rest));
	refuses(&in, "multifd");

	add_number(&in, 0x5145564d00000003, 8);
	for (unsigned command = 1; command < 3; command++) {
		add_number(&in, 8, 1);
		add_number(&in, command, 2);
		add_number(&in, command * 4 - 4, 2);
		add(&in, rest, command * 4 - 4);
	}
	add_number(&in, 8, 1);
	add_number(&in, 3, 2);
	add(&in, rest, sizeof(rest));
	refuses(&in, "post-copy");

	add_number(&in, 0x5145564d00000003, 8);
	add_number(&in, 7, 1);
	add_number(&in, 0, 4);
	add_number(&in, 5, 1);
	add_name(&in, "configuration/capabilities");
	add_number(&in, 1, 4);
	add_number(&in, 2, 4);
	add_name(&in, "x-ignore-shared");
	add_name(&in, "mapped-ram");
	refuses(&in, "mapped-ram");
}

/* The return path */

static const uint8_t talk[] = {0, 2, 0, 4, 0, 0, 0, 1, 0, 99, 0, 3, 0, 1, 0, /* unknown: passes */
			       0, 1, 0, 4, 0, 0, 0, 0, 0, 2,  0, 4, 9, 9, 9, 9};
enum { SHUT_AT = 15 };

static void only_a_shut_without_an_error_is_held(void **state)
{
	(void)state;
	for (size_t most = 1; most <= sizeof(talk); most++) {
		uint8_t out[sizeof(talk) + 8];
		struct bm_return r;
		size_t have = 0, at = 0;

		bm_return_init(&r);
		while (at < sizeof(talk)) {
			const uint8_t *data = talk + at;
			size_t length = sizeof(talk) - at < most ? sizeof(talk) - at : most;

			have += bm_return_pass(&r, &data, &length, out + have);
			at = (size_t)(data - talk);
			if (!r.shut)
				continue;
			assert_int_equal(have, SHUT_AT);
			assert_int_equal(at, SHUT_AT + 8);
			bm_return_release(&r, out + have);
			have += 8;
		}
		assert_int_equal(have, sizeof(talk));
		assert_memory_equal(out, talk, sizeof(talk));
	}
}

static void a_shut_with_an_error_passes(void **state)
{
	const uint8_t shut[] = {0, 1, 0, 4, 0, 0, 0, 1}, *data = shut;
	size_t length = sizeof(shut);
	uint8_t out[16];
	struct bm_return r;

	(void)state;
	bm_return_init(&r);
	assert_int_equal(bm_return_pass(&r, &data, &length, out), sizeof(shut));
	assert_false(r.shut);
	assert_memory_equal(out, shut, sizeof(shut));
}

static void the_recorded_answer_ends_with_a_shut(void **state)
{
	struct bytes back = recorded(&all, "return.back");
	const uint8_t *data = back.data;
	size_t length = back.used;
	uint8_t out[64];
	struct bm_return r;

	(void)state;
	bm_return_init(&r);
	assert_int_equal(bm_return_pass(&r, &data, &length, out), back.used - 8);
	assert_true(r.shut);
	assert_int_equal(length, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(recorded_streams_come_out_as_they_went_in),
		cmocka_unit_test(recorded_pages_are_coded),
		cmocka_unit_test(a_stream_that_is_cut_off_passes_as_far_as_it_goes),
		cmocka_unit_test(a_stream_that_is_damaged_comes_out_damaged_in_the_same_way),
		cmocka_unit_test(records_that_were_not_recorded_pass),
		cmocka_unit_test(what_is_not_known_passes_and_is_told),
		cmocka_unit_test(blocks_without_end_pass),
		cmocka_unit_test(what_a_relay_cannot_do_is_refused),
		cmocka_unit_test(only_a_shut_without_an_error_is_held),
		cmocka_unit_test(a_shut_with_an_error_passes),
		cmocka_unit_test(the_recorded_answer_ends_with_a_shut),
	};

	return cmocka_run_group_tests(tests, load, unload);
}
