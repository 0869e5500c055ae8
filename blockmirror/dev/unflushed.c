/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What is not flushed, kept by pages in a hash table. One page holds one content only, the newest:
 * what is written again never takes a block back to what it held before, not even for a moment,
 * should the device have forgotten nothing and we die half way.
 */
#include "blockmirror/dev/unflushed.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "blockmirror/base/list.h"
#include "blockmirror/buf.h"

enum { LEAST_PAGE = 4096, LEAST_UNIT = 512, SAMPLES_OF_A_FLUSH = 8 };

static unsigned units(const struct unflushed *u)
{
	return u->page / u->unit;
}

static unsigned all_units(const struct unflushed *u)
{
	return (1u << units(u)) - 1;
}

static uint8_t *content(const struct unflushed *u, const struct unflushed_page *p)
{
	return u->content + (size_t)(p - u->at) * u->page;
}

static struct unflushed_page **bucket(const struct unflushed *u, uint64_t number)
{
	return &u->bucket[number * 0x9e3779b97f4a7c15u >> 32 & (u->pages - 1)];
}

static struct unflushed_page *find(const struct unflushed *u, uint64_t number)
{
	struct unflushed_page *p = *bucket(u, number);

	while (p && p->number != number)
		p = p->chain;
	return p;
}

static void remove_page(struct unflushed *u, struct unflushed_page *p)
{
	struct unflushed_page **at = bucket(u, p->number);

	while (*at != p)
		at = &(*at)->chain;
	*at = p->chain;
	bm_list_remove(&p->link);
	bm_list_push(&u->free, &p->link);
	u->used--;
}

static struct unflushed_page *add_page(struct unflushed *u, uint64_t number)
{
	struct unflushed_page *p =
		bm_container(bm_list_take(&u->free), struct unflushed_page, link);
	struct unflushed_page **at = bucket(u, number);

	p->number = number;
	p->valid = 0;
	p->chain = *at;
	*at = p;
	bm_list_append(&u->list, &p->link);
	u->used++;
	return p;
}

static void drop_samples(struct unflushed *u, uint64_t first, uint64_t last)
{
	for (unsigned i = 0; i < UNFLUSHED_SAMPLES; i++)
		if (u->sample[i].number >= first && u->sample[i].number <= last)
			u->sample[i].used = false;
}

int bm_unflushed_init(struct unflushed *u, uint32_t block)
{
	size_t bytes = UNFLUSHED_BYTES;
	void *memory;

	memset(u, 0, sizeof(*u));
	u->unit = block > LEAST_UNIT ? block : LEAST_UNIT;
	u->page = u->unit > LEAST_PAGE ? u->unit : LEAST_PAGE;
	u->pages = UNFLUSHED_BYTES / u->page;
	bm_list_init(&u->list);
	bm_list_init(&u->free);
	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	u->content = memory == MAP_FAILED ? NULL : memory;
	u->bucket = calloc(u->pages, sizeof(*u->bucket));
	u->at = calloc(u->pages, sizeof(*u->at));
	if (!u->content || !u->bucket || !u->at) {
		bm_unflushed_fini(u);
		return -ENOMEM;
	}
	for (unsigned i = 0; i < u->pages; i++)
		bm_list_append(&u->free, &u->at[i].link);
	return 0;
}

void bm_unflushed_fini(struct unflushed *u)
{
	if (u->content)
		munmap(u->content, UNFLUSHED_BYTES);
	free(u->bucket);
	free(u->at);
	u->content = NULL;
	u->bucket = NULL;
	u->at = NULL;
}

static unsigned pages_of(const struct unflushed *u, uint64_t offset, uint64_t length)
{
	return (unsigned)((offset + length - 1) / u->page - offset / u->page + 1);
}

bool bm_unflushed_reserve(struct unflushed *u, uint64_t offset, uint64_t length)
{
	unsigned n = pages_of(u, offset, length);

	if (n > u->pages - u->used - u->reserved)
		return false;
	u->reserved += n;
	return true;
}

void bm_unflushed_release(struct unflushed *u, uint64_t offset, uint64_t length)
{
	u->reserved -= pages_of(u, offset, length);
}

void bm_unflushed_put(struct unflushed *u, uint64_t offset, uint64_t length, const uint8_t *data,
		      uint64_t stamp)
{
	bm_unflushed_doubt(u, offset, length);
	while (length) {
		unsigned in = (unsigned)(offset % u->page);
		unsigned n = u->page - in < length ? u->page - in : (unsigned)length;
		struct unflushed_page *p = find(u, offset / u->page);

		if (!p)
			p = add_page(u, offset / u->page);
		bm_list_remove(&p->link);
		bm_list_append(&u->list, &p->link);
		p->stamp = stamp;
		p->valid |= ((1u << n / u->unit) - 1) << in / u->unit;
		if (data)
			memcpy(content(u, p) + in, data, n);
		else
			memset(content(u, p) + in, 0, n);
		data = data ? data + n : NULL;
		offset += n;
		length -= n;
	}
}

void bm_unflushed_forget(struct unflushed *u, uint64_t offset, uint64_t length)
{
	bm_unflushed_doubt(u, offset, length);
	while (length && u->used) {
		unsigned in = (unsigned)(offset % u->page);
		unsigned n = u->page - in < length ? u->page - in : (unsigned)length;
		struct unflushed_page *p = find(u, offset / u->page);

		if (p)
			p->valid &= ~(((1u << n / u->unit) - 1) << in / u->unit);
		if (p && !p->valid)
			remove_page(u, p);
		offset += n;
		length -= n;
	}
}

void bm_unflushed_doubt(struct unflushed *u, uint64_t offset, uint64_t length)
{
	drop_samples(u, offset / u->page, (offset + length - 1) / u->page);
}

/* Zeros are everywhere: they tell nothing. */
static void take_sample(struct unflushed *u, const struct unflushed_page *p)
{
	struct unflushed_sample *s = &u->sample[u->next_sample % UNFLUSHED_SAMPLES];

	if (p->valid != all_units(u) || bm_is_zero(content(u, p), u->page))
		return;
	u->next_sample++;
	s->number = p->number;
	s->hash = XXH64(content(u, p), u->page, 0);
	s->used = true;
}

void bm_unflushed_flushed(struct unflushed *u, uint64_t stamp)
{
	for (unsigned n = 0; !bm_list_empty(&u->list); n++) {
		struct unflushed_page *p = bm_container(u->list.next, struct unflushed_page, link);

		if (p->stamp > stamp)
			break;
		if (n < SAMPLES_OF_A_FLUSH)
			take_sample(u, p);
		remove_page(u, p);
	}
}

void bm_unflushed_clear(struct unflushed *u)
{
	while (!bm_list_empty(&u->list))
		remove_page(u, bm_container(u->list.next, struct unflushed_page, link));
	for (unsigned i = 0; i < UNFLUSHED_SAMPLES; i++)
		u->sample[i].used = false;
}

bool bm_unflushed_filling(const struct unflushed *u)
{
	return u->used + u->reserved > u->pages / 2;
}

bool bm_unflushed_run(const struct unflushed *u, const struct unflushed_page *p, unsigned *from,
		      uint8_t **data, uint64_t *offset, uint64_t *length)
{
	unsigned first = *from, last;

	while (first < units(u) && !(p->valid >> first & 1))
		first++;
	for (last = first; last < units(u) && p->valid >> last & 1; last++)
		;
	*from = last;
	*data = content(u, p) + (size_t)first * u->unit;
	*offset = p->number * u->page + (uint64_t)first * u->unit;
	*length = (uint64_t)(last - first) * u->unit;
	return last > first;
}

bool bm_unflushed_same(const struct unflushed_sample *sample, const uint8_t *data, uint32_t page)
{
	return XXH64(data, page, 0) == sample->hash;
}
