/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The encoder's half of the cache: which page was sent last with which content, and where a
 * content is. For codec.c alone. What is replaced is what was not found again since the hand last
 * came by (CLOCK): pages that are sent over and over stay, those that are sent once go.
 */
#ifndef BM_RAM_CACHE_H
#define BM_RAM_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bm_cache {
	size_t page_size;
	uint32_t count, used, hand, mask;
	uint8_t *data; /* count pages, mapped, touched as they are used */
	struct bm_cache_slot *slots;
	struct bm_cache_alias *aliases; /* as many as heads */
	uint32_t *by_content, *by_page; /* slot + 1; 0: none */
};

int bm_cache_open(struct bm_cache *c, size_t page_size, uint32_t count);
void bm_cache_close(struct bm_cache *c);

/* Of the shared memory kind that both halves use: zeroes, touched as used. NULL: no memory. */
uint8_t *bm_cache_map(size_t size);

static inline uint8_t *bm_cache_data(const struct bm_cache *c, uint32_t slot)
{
	return c->data + (size_t)slot * c->page_size;
}

/* A slot that holds just these bytes, or NO_SLOT. hash is their xxh3. */
uint32_t bm_cache_find(struct bm_cache *c, uint64_t hash, const uint8_t *data);

/* The slot that is that page's, and holds what was sent for it before, or NO_SLOT. */
uint32_t bm_cache_page(struct bm_cache *c, uint64_t page);

/*
 * That page was sent as a copy of slot, which is another page's. So long as that has not changed,
 * bm_cache_alias() finds it: what was sent for the page. Best effort: two pages may share a place.
 */
void bm_cache_remember(struct bm_cache *c, uint64_t page, uint32_t slot);
uint32_t bm_cache_alias(struct bm_cache *c, uint64_t page);

/* It was sent in a slot of its own since. */
void bm_cache_forget(struct bm_cache *c, uint64_t page);

/* The page's slot holds data now. */
void bm_cache_update(struct bm_cache *c, uint32_t slot, uint64_t hash, const uint8_t *data);

/* A slot for a page that has none, with data in it; NO_SLOT when there are no slots at all. */
uint32_t bm_cache_add(struct bm_cache *c, uint64_t page, uint64_t hash, const uint8_t *data);

#endif
