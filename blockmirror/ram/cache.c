/* SPDX-License-Identifier: BSD-3-Clause */
/* The encoder's half of the cache: two hash tables with chains through the slots, and a clock. */
#include "blockmirror/ram/cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "blockmirror/ram/record.h"

struct bm_cache_slot {
	uint64_t hash, page;
	uint32_t next_content, next_page; /* slot + 1 */
	uint32_t version;                 /* of what is in it, from 1 on */
	bool found;                       /* since the hand came by */
};

struct bm_cache_alias {
	uint64_t page;
	uint32_t slot, version; /* of what was in it */
};

uint8_t *bm_cache_map(size_t size)
{
	void *map = mmap(NULL, size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return map == MAP_FAILED ? NULL : map;
}

int bm_cache_open(struct bm_cache *c, size_t page_size, uint32_t count)
{
	uint32_t heads = 1;

	memset(c, 0, sizeof(*c));
	c->page_size = page_size;
	c->count = count;
	if (!count)
		return 0;
	while (heads < count)
		heads *= 2;
	c->mask = heads - 1;
	c->data = bm_cache_map(count * page_size);
	c->slots = calloc(count, sizeof(*c->slots));
	c->aliases = calloc(heads, sizeof(*c->aliases));
	c->by_content = calloc(heads, sizeof(*c->by_content));
	c->by_page = calloc(heads, sizeof(*c->by_page));
	if (c->data && c->slots && c->aliases && c->by_content && c->by_page)
		return 0;
	bm_cache_close(c);
	return -ENOMEM;
}

void bm_cache_close(struct bm_cache *c)
{
	if (c->data)
		munmap(c->data, c->count * c->page_size);
	free(c->slots);
	free(c->aliases);
	free(c->by_content);
	free(c->by_page);
	memset(c, 0, sizeof(*c));
}

/* Neighbouring pages have neighbouring numbers: the multiplication spreads them. */
static uint32_t place_of(const struct bm_cache *c, uint64_t page)
{
	return (uint32_t)(page * 0x9e3779b97f4a7c15u >> 32) & c->mask;
}

static uint32_t *page_head(const struct bm_cache *c, uint64_t page)
{
	return &c->by_page[place_of(c, page)];
}

static uint32_t *content_head(const struct bm_cache *c, uint64_t hash)
{
	return &c->by_content[(uint32_t)hash & c->mask];
}

uint32_t bm_cache_find(struct bm_cache *c, uint64_t hash, const uint8_t *data)
{
	if (!c->count)
		return BM_RAM_NO_SLOT;
	for (uint32_t at = *content_head(c, hash); at; at = c->slots[at - 1].next_content) {
		struct bm_cache_slot *slot = &c->slots[at - 1];

		if (slot->hash == hash && !memcmp(bm_cache_data(c, at - 1), data, c->page_size)) {
			slot->found = true;
			return at - 1;
		}
	}
	return BM_RAM_NO_SLOT;
}

uint32_t bm_cache_page(struct bm_cache *c, uint64_t page)
{
	if (!c->count)
		return BM_RAM_NO_SLOT;
	for (uint32_t at = *page_head(c, page); at; at = c->slots[at - 1].next_page)
		if (c->slots[at - 1].page == page) {
			c->slots[at - 1].found = true;
			return at - 1;
		}
	return BM_RAM_NO_SLOT;
}

void bm_cache_remember(struct bm_cache *c, uint64_t page, uint32_t slot)
{
	struct bm_cache_alias *alias = &c->aliases[place_of(c, page)];

	alias->page = page;
	alias->slot = slot;
	alias->version = c->slots[slot].version;
}

uint32_t bm_cache_alias(struct bm_cache *c, uint64_t page)
{
	const struct bm_cache_alias *alias;

	if (!c->count)
		return BM_RAM_NO_SLOT;
	alias = &c->aliases[place_of(c, page)];
	/* Nothing has version 0: what was never remembered is not found. */
	if (!alias->version || alias->page != page ||
	    c->slots[alias->slot].version != alias->version)
		return BM_RAM_NO_SLOT;
	return alias->slot;
}

void bm_cache_forget(struct bm_cache *c, uint64_t page)
{
	if (c->count && c->aliases[place_of(c, page)].page == page)
		c->aliases[place_of(c, page)].version = 0;
}

static void take_out_content(struct bm_cache *c, uint32_t slot)
{
	uint32_t *link = content_head(c, c->slots[slot].hash);

	while (*link != slot + 1)
		link = &c->slots[*link - 1].next_content;
	*link = c->slots[slot].next_content;
}

static void take_out_page(struct bm_cache *c, uint32_t slot)
{
	uint32_t *link = page_head(c, c->slots[slot].page);

	while (*link != slot + 1)
		link = &c->slots[*link - 1].next_page;
	*link = c->slots[slot].next_page;
}

static void put_in_content(struct bm_cache *c, uint32_t slot, uint64_t hash, const uint8_t *data)
{
	uint32_t *head = content_head(c, hash);

	c->slots[slot].hash = hash;
	c->slots[slot].next_content = *head;
	c->slots[slot].version++;
	*head = slot + 1;
	memcpy(bm_cache_data(c, slot), data, c->page_size);
}

void bm_cache_update(struct bm_cache *c, uint32_t slot, uint64_t hash, const uint8_t *data)
{
	take_out_content(c, slot);
	put_in_content(c, slot, hash, data);
}

/* The hand comes by each slot once, and then finds one: nothing is found meanwhile. */
static uint32_t make_room(struct bm_cache *c)
{
	for (;;) {
		uint32_t slot = c->hand;

		c->hand = (c->hand + 1) % c->count;
		if (!c->slots[slot].found) {
			take_out_content(c, slot);
			take_out_page(c, slot);
			return slot;
		}
		c->slots[slot].found = false;
	}
}

uint32_t bm_cache_add(struct bm_cache *c, uint64_t page, uint64_t hash, const uint8_t *data)
{
	uint32_t slot, *head = NULL;

	if (!c->count)
		return BM_RAM_NO_SLOT;
	slot = c->used < c->count ? c->used++ : make_room(c);
	head = page_head(c, page);
	c->slots[slot].page = page;
	c->slots[slot].found = false;
	c->slots[slot].next_page = *head;
	*head = slot + 1;
	put_in_content(c, slot, hash, data);
	return slot;
}
