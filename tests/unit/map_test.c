/* SPDX-License-Identifier: BSD-3-Clause */
/* The bitmap against a plain array, and what the granule map calls settled. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "blockmirror/mirror/map.h"

enum { BITS = 64 * 64 * 3 + 17 };

static void assert_same(const struct bm_bitmap *map, const bool *plain)
{
	uint64_t count = 0, at = 0;

	for (uint64_t i = 0; i < BITS; i++) {
		assert_int_equal(bm_bitmap_test(map, i), plain[i]);
		if (!plain[i])
			continue;
		at = bm_bitmap_next(map, count ? at + 1 : 0);
		assert_int_equal(at, i);
		count++;
	}
	assert_int_equal(bm_bitmap_next(map, count ? at + 1 : 0), BM_BITMAP_NONE);
	assert_int_equal(map->count, count);
	for (uint64_t i = 0, from = 0; i <= BITS; i++) {
		if (i < BITS && plain[i])
			continue;
		assert_int_equal(bm_bitmap_next_clear(map, from, BITS), i);
		assert_int_equal(bm_bitmap_next_clear(map, from, (from + i) / 2), (from + i) / 2);
		from = i + 1;
	}
}

static void a_bitmap_is_what_was_set_in_it(void **state)
{
	unsigned seed = (unsigned)time(NULL);
	struct bm_bitmap map, other;
	bool plain[BITS] = {false};

	(void)state;
	printf("# seed %u\n", seed);
	srandom(seed);
	assert_int_equal(bm_bitmap_init(&map, BITS), 0);
	assert_int_equal(bm_bitmap_init(&other, BITS), 0);
	for (int round = 0; round < 200; round++) {
		uint64_t start = (uint64_t)random() % BITS;

		for (uint64_t i = start; i < BITS && i < start + (uint64_t)random() % 300; i++) {
			bool set = random() % 3;
			bool changed = set ? bm_bitmap_set(&map, i) : bm_bitmap_clear(&map, i);

			assert_int_equal(changed, plain[i] != set);
			plain[i] = set;
		}
		if (round % 20 == 0)
			assert_same(&map, plain);
	}
	bm_bitmap_swap(&map, &other);
	assert_same(&other, plain);
	memset(plain, 1, sizeof(plain));
	bm_bitmap_set_all(&other);
	assert_same(&other, plain);
	memset(plain, 0, sizeof(plain));
	bm_bitmap_clear_all(&other);
	assert_same(&other, plain);
	bm_bitmap_fini(&map);
	bm_bitmap_fini(&other);
}

/* Granule 3 in one state after the other. */
static void settled_is_what_is_clean_idle_and_flushed(void **state)
{
	const bool doubtful = true;
	uint8_t settled[2] = {0xff, 0xff};
	struct bm_map map;

	(void)state;
	assert_int_equal(bm_map_init(&map, 10 << 16, 16, settled, false), 0);
	assert_int_equal(map.granules, 10);
	assert_int_equal(map.dirty.count, 10);
	assert_false(bm_map_is_settled(&map, 3));

	bm_bitmap_set(&map.covered, 3); /* dirty */
	bm_map_settle(&map, &map.covered);
	assert_false(bm_map_is_settled(&map, 3));

	bm_bitmap_clear(&map.dirty, 3);
	bm_bitmap_set(&map.covered, 3);
	map.granule[3].busy = 1; /* written to */
	bm_map_settle(&map, &map.covered);
	assert_false(bm_map_is_settled(&map, 3));

	map.granule[3].busy = 0;
	bm_bitmap_set(&map.covered, 3);
	bm_map_unstable(&map, 3); /* written to since */
	bm_map_settle(&map, &map.covered);
	assert_false(bm_map_is_settled(&map, 3));

	bm_map_move(&map.closed, &map.open);
	bm_map_move(&map.flushed, &map.closed);
	bm_map_settle(&map, &map.flushed);
	assert_true(bm_map_is_settled(&map, 3));
	assert_int_equal(settled[0], 1 << 3);

	bm_map_unsettle(&map, 3);
	assert_false(bm_map_is_settled(&map, 3));
	map.doubtful = &doubtful;
	bm_bitmap_set(&map.covered, 3);
	bm_map_settle(&map, &map.covered);
	assert_false(bm_map_is_settled(&map, 3));
	bm_map_fini(&map);
}

static void a_resumed_map_keeps_what_is_settled(void **state)
{
	uint8_t settled[2] = {0x28, 0x02};
	struct bm_map map;

	(void)state;
	assert_int_equal(bm_map_init(&map, 10 << 16, 16, settled, true), 0);
	for (unsigned g = 0; g < 10; g++) {
		bool kept = g == 3 || g == 5 || g == 9;

		assert_int_equal(bm_map_is_settled(&map, g), kept);
		assert_int_equal(bm_bitmap_test(&map.dirty, g), !kept);
	}
	bm_map_fini(&map);
	assert_int_equal(bm_map_init(&map, 10 << 16, 16, NULL, true), 0);
	assert_int_equal(map.dirty.count, 10);
	bm_map_fini(&map);
}

static void a_set_moves_into_one_that_is_not_empty(void **state)
{
	struct bm_map map;

	(void)state;
	assert_int_equal(bm_map_init(&map, 100 << 16, 16, NULL, false), 0);
	bm_bitmap_set(&map.open, 1);
	bm_bitmap_set(&map.open, 99);
	bm_bitmap_set(&map.closed, 2);
	bm_map_move(&map.closed, &map.open);
	assert_int_equal(map.open.count, 0);
	assert_int_equal(map.closed.count, 3);
	assert_true(bm_bitmap_test(&map.closed, 1) && bm_bitmap_test(&map.closed, 99));
	bm_map_fini(&map);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_bitmap_is_what_was_set_in_it),
		cmocka_unit_test(settled_is_what_is_clean_idle_and_flushed),
		cmocka_unit_test(a_resumed_map_keeps_what_is_settled),
		cmocka_unit_test(a_set_moves_into_one_that_is_not_empty),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
