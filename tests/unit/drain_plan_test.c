/* SPDX-License-Identifier: BSD-3-Clause */
/* Where a drain's images go, and when: limits are kept, room is not given twice, time is not lost.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "blockmirror/cli/drain_plan.h"

enum { ITEMS = 10000, STORES = 50, SLOTS = 16 };
#define G (1ull << 30)

static uint64_t state;

static uint64_t rnd(uint64_t below)
{
	state = state * 6364136223846793005ull + 1442695040888963407ull;
	return (state >> 33) % below;
}

static struct plan new_plan(size_t items, size_t stores, unsigned parallel, unsigned per_store)
{
	struct plan p = {
		.n_items = items, .n_stores = stores, .parallel = parallel, .per_store = per_store};

	p.items = calloc(items, sizeof(*p.items));
	p.order = calloc(items, sizeof(*p.order));
	p.stores = calloc(stores, sizeof(*p.stores));
	for (size_t i = 0; i < items; i++)
		p.items[i].wanted = p.items[i].store = p.items[i].from = -1;
	for (size_t i = 0; i < stores; i++)
		p.stores[i].pool = i;
	return p;
}

static void free_plan(struct plan *p)
{
	free(p->items);
	free(p->order);
	free(p->stores);
}

static void fill(struct plan *p, uint64_t seed)
{
	uint64_t sum = 0;

	state = seed;
	for (size_t i = 0; i < p->n_items; i++) {
		p->items[i].need = 1 + rnd(rnd(10) ? 40 * G : 400 * G);
		sum += p->items[i].need;
	}
	for (size_t i = 0; i < p->n_stores; i++)
		p->stores[i].room = sum / p->n_stores + rnd(800 * G) + 400 * G;
}

/* What was taken of each store is what its items need, and was there. */
static void check_room(const struct plan *before, const struct plan *p)
{
	for (size_t s = 0; s < p->n_stores; s++) {
		uint64_t taken = 0;

		for (size_t i = 0; i < p->n_items; i++)
			if (p->items[i].store >= 0 &&
			    p->stores[p->items[i].store].pool == p->stores[s].pool)
				taken += p->items[i].need;
		assert_true(taken <= before->stores[p->stores[s].pool].room);
	}
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t); /* others run beside us */
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void large(void **unused)
{
	struct plan a = new_plan(ITEMS, STORES, SLOTS, 8), b = new_plan(ITEMS, STORES, SLOTS, 8),
		    before = new_plan(0, STORES, 1, 1);
	uint64_t seed = (uint64_t)time(NULL);
	double start;

	(void)unused;
	print_message("# seed %llu\n", (unsigned long long)seed);
	fill(&a, seed);
	fill(&b, seed);
	memcpy(before.stores, a.stores, STORES * sizeof(*a.stores));
	start = now();
	plan_make(&a);
	print_message("# planned in %.3f s\n", now() - start);
	assert_true(now() - start < 1);
	for (size_t i = 0; i < ITEMS; i++)
		assert_true(a.items[i].store >= 0);
	check_room(&before, &a);
	plan_make(&b);
	assert_memory_equal(a.items, b.items, ITEMS * sizeof(*a.items));
	assert_memory_equal(a.order, b.order, ITEMS * sizeof(*a.order));
	free_plan(&a);
	free_plan(&b);
	free_plan(&before);
}

static void check_limits(const struct plan *p, size_t which)
{
	const struct plan_item *item = &p->items[which];
	const struct plan_store *store = &p->stores[item->store];

	assert_true(store->running <= (store->limit ? store->limit : p->per_store));
	assert_true(!p->per_host || p->stores[store->host].host_running <= p->per_host);
	assert_true(item->from < 0 || p->stores[item->from].running <= p->per_store);
}

/* All that run have the same rate, each. Time is that of one byte. */
static uint64_t simulate(struct plan *p)
{
	uint64_t clock = 0, end[SLOTS];
	size_t item[SLOTS], running = 0, which;

	for (;;) {
		size_t first = 0;

		while ((which = plan_next(p)) < p->n_items) {
			plan_begin(p, which);
			assert_true(running < p->parallel);
			check_limits(p, which);
			end[running] = clock + p->items[which].need;
			item[running++] = which;
		}
		if (!running)
			return clock;
		for (size_t i = 1; i < running; i++)
			if (end[i] < end[first])
				first = i;
		clock = end[first];
		plan_end(p, item[first]);
		running--;
		end[first] = end[running];
		item[first] = item[running];
	}
}

/* Ten hosts of five stores each, some with limits of their own; images leave stores, too. */
static void limits(void **unused)
{
	struct plan p = new_plan(ITEMS, STORES, SLOTS, 8);
	uint64_t seed = (uint64_t)time(NULL);
	double start;

	(void)unused;
	print_message("# seed %llu\n", (unsigned long long)seed);
	fill(&p, seed);
	p.per_host = 2;
	for (size_t i = 0; i < STORES; i++) {
		p.stores[i].host = i - i % 5;
		p.stores[i].limit = i % 7 ? 0 : 1;
	}
	start = now();
	plan_make(&p);
	for (size_t i = 0; i < ITEMS; i++)
		p.items[i].from = i % 3 ? (int)((size_t)(p.items[i].store + 1) % STORES) : -1;
	simulate(&p);
	print_message("# planned and run through in %.3f s\n", now() - start);
	assert_true(now() - start < 1);
	for (size_t i = 0; i < ITEMS; i++)
		assert_int_equal(p.items[i].state, PLAN_OVER);
	free_plan(&p);
}

static void makespan(void **unused)
{
	uint64_t seed = (uint64_t)time(NULL);

	(void)unused;
	print_message("# seed %llu\n", (unsigned long long)seed);
	for (unsigned parallel = 1; parallel <= SLOTS; parallel++) {
		struct plan p = new_plan(400 + rnd(400), 1 + rnd(STORES), parallel, 8);
		uint64_t sum = 0, largest = 0, least;

		fill(&p, seed + parallel);
		if (p.parallel > p.n_stores * p.per_store)
			p.parallel = (unsigned)p.n_stores * p.per_store;
		plan_make(&p);
		for (size_t i = 0; i < p.n_items; i++) {
			assert_true(p.items[i].store >= 0);
			sum += p.items[i].need;
			largest = p.items[i].need > largest ? p.items[i].need : largest;
		}
		least = sum / p.parallel > largest ? sum / p.parallel : largest;
		assert_true((double)simulate(&p) <= 1.3 * (double)least);
		for (size_t i = 0; i < p.n_items; i++)
			assert_int_equal(p.items[i].state, PLAN_OVER);
		free_plan(&p);
	}
}

/* Roomiest first, 6 and 5 go to different stores, and 4 has no place. */
static void tight(void **unused)
{
	struct plan p = new_plan(4, 2, 2, 8);
	const uint64_t need[] = {6, 4, 4, 5}; /* 10 and 9 */

	(void)unused;
	for (size_t i = 0; i < 4; i++)
		p.items[i].need = need[i];
	p.stores[0].room = 10;
	p.stores[1].room = 9;
	plan_make(&p);
	for (size_t i = 0; i < 4; i++)
		assert_true(p.items[i].store >= 0);
	assert_int_equal(p.stores[0].room + p.stores[1].room, 0);
	free_plan(&p);
}

static void wanted(void **unused)
{
	struct plan p = new_plan(3, 2, 2, 8);

	(void)unused;
	for (size_t i = 0; i < 3; i++)
		p.items[i].need = 5;
	p.stores[0].room = 100;
	p.stores[1].room = 9;
	p.items[2].wanted = 1;
	p.items[0].wanted = 1;
	plan_make(&p);
	assert_int_equal(p.items[0].store, 1);
	assert_int_equal(p.items[1].store, 0);
	assert_int_equal(p.items[2].store, -1); /* and it does not go elsewhere */
	assert_int_equal(p.stores[1].room, 4);
	free_plan(&p);
}

/* Two folders of one file system have one room. */
static void pools(void **unused)
{
	struct plan p = new_plan(3, 2, 2, 8);

	(void)unused;
	for (size_t i = 0; i < 3; i++)
		p.items[i].need = 5;
	p.stores[1].pool = 0;
	p.stores[0].room = 12;
	p.stores[1].room = 12;
	plan_make(&p);
	assert_true(p.items[0].store >= 0);
	assert_true(p.items[1].store >= 0);
	assert_int_equal(p.items[2].store, -1);
	assert_int_equal(plan_pick(&p, 3, -1), -1);
	assert_true(plan_pick(&p, 2, -1) >= 0);
	free_plan(&p);
}

static void what_stays(void **unused)
{
	struct plan p = new_plan(2, 1, 2, 1);
	size_t first;

	(void)unused;
	p.items[0].need = p.items[1].need = 1;
	p.items[0].state = PLAN_OVER;
	p.stores[0].room = 10;
	plan_make(&p);
	assert_int_equal(p.items[0].store, -1);
	assert_int_equal(p.stores[0].room, 9);
	first = plan_next(&p);
	assert_int_equal(first, 1);
	plan_begin(&p, first);
	assert_int_equal(plan_next(&p), 2);
	plan_end(&p, first);
	assert_int_equal(plan_next(&p), 2);
	assert_int_equal(p.running + p.stores[0].running, 0);
	free_plan(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(large),      cmocka_unit_test(limits), cmocka_unit_test(makespan),
		cmocka_unit_test(tight),      cmocka_unit_test(wanted), cmocka_unit_test(pools),
		cmocka_unit_test(what_stays),
	};

	return cmocka_run_group_tests_name("a drain's plan", tests, NULL, NULL);
}
