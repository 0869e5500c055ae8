/* SPDX-License-Identifier: BSD-3-Clause */
/* Bitmaps over granules with a summary level. */
#include "blockmirror/mirror/bitmap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static uint64_t words(uint64_t bits)
{
	return (bits + 63) / 64;
}

int bm_bitmap_init(struct bm_bitmap *map, uint64_t bits)
{
	memset(map, 0, sizeof(*map));
	map->bits = bits;
	map->word = calloc(words(bits), sizeof(uint64_t));
	map->summary = calloc(words(words(bits)), sizeof(uint64_t));
	if (!map->word || !map->summary) {
		bm_bitmap_fini(map);
		return -ENOMEM;
	}
	return 0;
}

void bm_bitmap_fini(struct bm_bitmap *map)
{
	free(map->word);
	free(map->summary);
	memset(map, 0, sizeof(*map));
}

bool bm_bitmap_set(struct bm_bitmap *map, uint64_t bit)
{
	uint64_t w = bit / 64, mask = 1ull << bit % 64;

	if (map->word[w] & mask)
		return false;
	map->word[w] |= mask;
	map->summary[w / 64] |= 1ull << w % 64;
	map->count++;
	return true;
}

bool bm_bitmap_clear(struct bm_bitmap *map, uint64_t bit)
{
	uint64_t w = bit / 64, mask = 1ull << bit % 64;

	if (!(map->word[w] & mask))
		return false;
	map->word[w] &= ~mask;
	if (!map->word[w])
		map->summary[w / 64] &= ~(1ull << w % 64);
	map->count--;
	return true;
}

/* Sets the first n bits of v. */
static void fill(uint64_t *v, uint64_t n)
{
	memset(v, 0xff, n / 64 * sizeof(*v));
	if (n % 64)
		v[n / 64] = (1ull << n % 64) - 1;
}

void bm_bitmap_set_all(struct bm_bitmap *map)
{
	fill(map->word, map->bits);
	fill(map->summary, words(map->bits));
	map->count = map->bits;
}

void bm_bitmap_clear_all(struct bm_bitmap *map)
{
	memset(map->word, 0, words(map->bits) * sizeof(uint64_t));
	memset(map->summary, 0, words(words(map->bits)) * sizeof(uint64_t));
	map->count = 0;
}

/* The first set bit of v at or after from, of bits in all; bits when there is none. */
static uint64_t scan(const uint64_t *v, uint64_t bits, uint64_t from)
{
	uint64_t w = from / 64, word;

	if (from >= bits)
		return bits;
	word = v[w] & ~0ull << from % 64;
	while (!word) {
		if (++w == words(bits))
			return bits;
		word = v[w];
	}
	return w * 64 + (uint64_t)__builtin_ctzll(word);
}

uint64_t bm_bitmap_next(const struct bm_bitmap *map, uint64_t from)
{
	uint64_t w = from / 64, word;

	if (from >= map->bits || !map->count)
		return BM_BITMAP_NONE;
	word = map->word[w] & ~0ull << from % 64;
	if (!word) {
		w = scan(map->summary, words(map->bits), w + 1);
		if (w == words(map->bits))
			return BM_BITMAP_NONE;
		word = map->word[w];
	}
	return w * 64 + (uint64_t)__builtin_ctzll(word);
}

uint64_t bm_bitmap_next_clear(const struct bm_bitmap *map, uint64_t from, uint64_t to)
{
	while (from < to) {
		uint64_t clear = ~map->word[from / 64] & ~0ull << from % 64;

		if (clear) {
			from = from / 64 * 64 + (uint64_t)__builtin_ctzll(clear);
			break;
		}
		from = (from / 64 + 1) * 64;
	}
	return from < to ? from : to;
}

void bm_bitmap_swap(struct bm_bitmap *a, struct bm_bitmap *b)
{
	struct bm_bitmap c = *a;

	*a = *b;
	*b = c;
}
