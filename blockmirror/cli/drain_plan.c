/* SPDX-License-Identifier: BSD-3-Clause */
/* See drain_plan.h. Owns nothing. */
#include "blockmirror/cli/drain_plan.h"

#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/memory.h"

enum fit { ROOMIEST, TIGHTEST };

static uint64_t *room_of(const struct plan *p, size_t store)
{
	return &p->stores[p->stores[store].pool].room;
}

static int pick(const struct plan *p, uint64_t need, int wanted, enum fit fit)
{
	int best = -1;

	for (size_t i = 0; i < p->n_stores; i++) {
		uint64_t room = *room_of(p, i);

		if (room < need || (wanted >= 0 && (size_t)wanted != i))
			continue;
		if (best < 0 || (fit == ROOMIEST ? room > *room_of(p, (size_t)best)
						 : room < *room_of(p, (size_t)best)))
			best = (int)i;
	}
	return best;
}

int plan_pick(const struct plan *p, uint64_t need, int wanted)
{
	return pick(p, need, wanted, ROOMIEST);
}

static int by_need(const void *a, const void *b, void *arg)
{
	const struct plan *p = arg;
	size_t x = *(const size_t *)a, y = *(const size_t *)b;

	if (p->items[x].need != p->items[y].need)
		return p->items[x].need > p->items[y].need ? -1 : 1;
	return x < y ? -1 : x > y;
}

/* What has to go to one store has no choice, so it chooses first. Returns what is left without. */
static uint64_t place(struct plan *p, enum fit fit)
{
	uint64_t left = 0;

	for (int chosen = 1; chosen >= 0; chosen--)
		for (size_t i = 0; i < p->n_items; i++) {
			struct plan_item *item = &p->items[p->order[i]];

			if (item->state != PLAN_WAITS || (item->wanted >= 0) != chosen)
				continue;
			item->store = pick(p, item->need, item->wanted, fit);
			if (item->store < 0)
				left += item->need;
			else
				*room_of(p, (size_t)item->store) -= item->need;
		}
	return left;
}

static void put_rooms(struct plan *p, const struct plan_store *as)
{
	for (size_t i = 0; i < p->n_stores; i++)
		p->stores[i].room = as[i].room;
}

void plan_order(struct plan *p)
{
	for (size_t i = 0; i < p->n_items; i++)
		p->order[i] = i;
	qsort_r(p->order, p->n_items, sizeof(*p->order), by_need, p);
	p->begun = 0;
}

uint64_t plan_seconds(const struct plan *p, uint64_t each)
{
	uint64_t sum = 0, largest = 0;

	for (size_t i = 0; i < p->n_items; i++) {
		const struct plan_item *item = &p->items[i];

		if (item->store < 0 || item->state == PLAN_OVER)
			continue;
		sum += item->need;
		largest = item->need > largest ? item->need : largest;
	}
	sum /= p->parallel;
	return each ? ((sum > largest ? sum : largest) + each - 1) / each : 0;
}

void plan_make(struct plan *p)
{
	bm_free struct plan_store *before = bm_need(calloc(p->n_stores, sizeof(*before)));
	uint64_t left;

	memcpy(before, p->stores, p->n_stores * sizeof(*before));
	plan_order(p);
	left = place(p, ROOMIEST);
	if (!left)
		return;
	put_rooms(p, before);
	if (place(p, TIGHTEST) < left)
		return;
	put_rooms(p, before);
	place(p, ROOMIEST);
}

static bool has_turn(const struct plan *p, int store)
{
	const struct plan_store *s = &p->stores[store];

	return s->running < (s->limit ? s->limit : p->per_store);
}

static bool may_begin(const struct plan *p, const struct plan_item *item)
{
	if (item->state != PLAN_WAITS || item->store < 0 || !has_turn(p, item->store) ||
	    (item->from >= 0 && !has_turn(p, item->from)))
		return false;
	return !p->per_host || p->stores[p->stores[item->store].host].host_running < p->per_host;
}

size_t plan_next(struct plan *p)
{
	while (p->begun < p->n_items && p->items[p->order[p->begun]].state != PLAN_WAITS)
		p->begun++;
	if (p->running >= p->parallel)
		return p->n_items;
	for (size_t i = p->begun; i < p->n_items; i++)
		if (may_begin(p, &p->items[p->order[i]]))
			return p->order[i];
	return p->n_items;
}

static void count(struct plan *p, const struct plan_item *item, int by)
{
	struct plan_store *store = &p->stores[item->store];

	store->running += by;
	p->stores[store->host].host_running += by;
	if (item->from >= 0)
		p->stores[item->from].running += by;
	p->running += by;
}

void plan_begin(struct plan *p, size_t item)
{
	p->items[item].state = PLAN_RUNS;
	count(p, &p->items[item], 1);
}

void plan_end(struct plan *p, size_t item)
{
	if (p->items[item].state == PLAN_RUNS)
		count(p, &p->items[item], -1);
	p->items[item].state = PLAN_OVER;
}
