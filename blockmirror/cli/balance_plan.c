/* SPDX-License-Identifier: BSD-3-Clause */
/* See balance_plan.h. Owns nothing. */
#include "blockmirror/cli/balance_plan.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/memory.h"

enum { STEPS = 20000000 }; /* looks at a store */

struct search {
	struct balance_item *items;
	size_t n_items, n_stores, n_order;
	size_t *order; /* of items that may move, the largest first */
	int *to, *best;
	uint64_t excess[BALANCE_STORES], room[BALANCE_STORES];
	uint64_t ahead[BALANCE_STORES]; /* bytes of what is not decided yet */
	uint64_t moved, best_left, best_moved;
	unsigned long steps;
	bool done; /* nothing better is to be had, or the steps are over */
};

static int by_need(const void *a, const void *b, void *arg)
{
	const struct search *s = arg;
	size_t x = *(const size_t *)a, y = *(const size_t *)b;

	if (s->items[x].need != s->items[y].need)
		return s->items[x].need > s->items[y].need ? -1 : 1;
	return x < y ? -1 : x > y;
}

/* The least that can come of it from here. */
static void bound(const struct search *s, uint64_t *left, uint64_t *moved)
{
	uint64_t room = 0, wanted = 0, lacks = 0;

	*left = 0;
	for (size_t i = 0; i < s->n_stores; i++) {
		uint64_t lack = s->excess[i] > s->ahead[i] ? s->excess[i] - s->ahead[i] : 0;

		room += s->room[i];
		wanted += s->excess[i];
		lacks += lack;
	}
	*left = lacks;
	if (wanted > room && wanted - room > *left)
		*left = wanted - room;
	*moved = s->moved + wanted - *left;
}

static bool is_better(uint64_t left, uint64_t moved, const struct search *s)
{
	return left < s->best_left || (left == s->best_left && moved < s->best_moved);
}

static void search(struct search *s, size_t at);

static void try_store(struct search *s, size_t at, size_t store)
{
	struct balance_item *item = &s->items[s->order[at]];
	uint64_t excess = s->excess[item->from];

	s->room[store] -= item->need;
	s->excess[item->from] = excess > item->need ? excess - item->need : 0;
	s->moved += item->need;
	s->to[at] = (int)store;
	search(s, at + 1);
	s->to[at] = -1;
	s->moved -= item->need;
	s->excess[item->from] = excess;
	s->room[store] += item->need;
}

/* The store with most room of those that were not tried; n_stores: none. */
static size_t next_store(struct search *s, const struct balance_item *item, uint64_t *tried)
{
	size_t best = s->n_stores;

	s->steps += s->n_stores;
	for (size_t i = 0; i < s->n_stores; i++)
		if (item->may >> i & 1 && !(*tried >> i & 1) && s->room[i] >= item->need &&
		    (best == s->n_stores || s->room[i] > s->room[best]))
			best = i;
	if (best < s->n_stores)
		*tried |= 1ull << best;
	return best;
}

static void decide(struct search *s, size_t at)
{
	const struct balance_item *item = &s->items[s->order[at]];
	uint64_t excess = s->excess[item->from], tried = 0;
	/* What is larger than what is to leave waits for what is smaller and does. */
	bool first_stay = !excess || item->need > excess;
	size_t store;

	s->ahead[item->from] -= item->need;
	if (first_stay)
		search(s, at + 1);
	while (excess && !s->done && (store = next_store(s, item, &tried)) < s->n_stores)
		try_store(s, at, store);
	if (!first_stay && !s->done)
		search(s, at + 1);
	s->ahead[item->from] += item->need;
}

static void search(struct search *s, size_t at)
{
	uint64_t left, moved;

	if (s->done)
		return;
	bound(s, &left, &moved);
	if (!is_better(left, moved, s))
		return;
	/* The first plan is looked for to its end, however long that takes. */
	s->steps += s->n_stores;
	if (s->best_left < UINT64_MAX && s->steps > STEPS) {
		s->done = true;
		return;
	}
	if (at < s->n_order) {
		decide(s, at);
		return;
	}
	left = 0;
	for (size_t i = 0; i < s->n_stores; i++)
		left += s->excess[i];
	if (!is_better(left, s->moved, s))
		return;
	s->best_left = left;
	s->best_moved = s->moved;
	memcpy(s->best, s->to, s->n_order * sizeof(*s->best));
}

uint64_t balance_make(const struct balance_store *stores, size_t n_stores,
		      struct balance_item *items, size_t n_items, int *exact)
{
	bm_free size_t *order = bm_need(calloc(n_items + 1, sizeof(*order)));
	bm_free int *to = bm_need(calloc(n_items + 1, sizeof(*to))),
		    *best = bm_need(calloc(n_items + 1, sizeof(*best)));
	struct search s = {.items = items,
			   .n_items = n_items,
			   .n_stores = n_stores,
			   .order = order,
			   .to = to,
			   .best = best,
			   .best_left = UINT64_MAX,
			   .best_moved = UINT64_MAX};

	for (size_t i = 0; i < n_stores; i++) {
		s.excess[i] = stores[i].excess;
		s.room[i] = stores[i].excess ? 0 : stores[i].room;
	}
	for (size_t i = 0; i < n_items; i++) {
		items[i].to = -1;
		if (items[i].may && items[i].need && stores[items[i].from].excess) {
			s.ahead[items[i].from] += items[i].need;
			order[s.n_order++] = i;
		}
	}
	qsort_r(order, s.n_order, sizeof(*order), by_need, &s);
	for (size_t i = 0; i < s.n_order; i++)
		to[i] = best[i] = -1;
	search(&s, 0);
	for (size_t i = 0; i < s.n_order; i++)
		items[order[i]].to = best[i];
	*exact = !s.done;
	return s.best_left;
}
