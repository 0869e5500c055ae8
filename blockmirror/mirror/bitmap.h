/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Bitmaps over granules with a summary level (one bit for 64), so that finding the next set bit in
 * a nearly empty map of a large disk costs next to nothing. Memory that was never touched costs
 * none: a map of a 1 TiB disk is 2 MiB of address space. Loop thread only.
 */
#ifndef BM_MIRROR_BITMAP_H
#define BM_MIRROR_BITMAP_H

#include <stdbool.h>
#include <stdint.h>

struct bm_bitmap {
	uint64_t bits;     /* how many there are */
	uint64_t count;    /* how many are set */
	uint64_t *word;    /* the bits */
	uint64_t *summary; /* bit n: word n is not 0 */
};

#define BM_BITMAP_NONE UINT64_MAX

/* All clear. Returns 0 or -ENOMEM. */
int bm_bitmap_init(struct bm_bitmap *map, uint64_t bits);
void bm_bitmap_fini(struct bm_bitmap *map);

static inline bool bm_bitmap_test(const struct bm_bitmap *map, uint64_t bit)
{
	return map->word[bit / 64] >> bit % 64 & 1;
}

/* Return whether the bit changed. */
bool bm_bitmap_set(struct bm_bitmap *map, uint64_t bit);
bool bm_bitmap_clear(struct bm_bitmap *map, uint64_t bit);

void bm_bitmap_set_all(struct bm_bitmap *map);
void bm_bitmap_clear_all(struct bm_bitmap *map);

/* The first set bit at or after from, or BM_BITMAP_NONE. */
uint64_t bm_bitmap_next(const struct bm_bitmap *map, uint64_t from);

/* The first clear bit at or after from and before to, which is at most bits; or to. */
uint64_t bm_bitmap_next_clear(const struct bm_bitmap *map, uint64_t from, uint64_t to);

/* Exchanges the contents of two maps of one size. */
void bm_bitmap_swap(struct bm_bitmap *a, struct bm_bitmap *b);

/* bit runs over the set bits; it may be cleared in the body. */
#define bm_bitmap_each(bit, map)                                           \
	for (uint64_t bit = bm_bitmap_next(map, 0); bit != BM_BITMAP_NONE; \
	     bit = bm_bitmap_next(map, bit + 1))

#endif
