/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which images a balance moves: no plan has fewer bytes, where all plans can be tried; room is
 * kept; a large one is made in time, and twice alike.
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

#include "blockmirror/cli/balance_plan.h"

enum { CASES = 3000, FEW = 7, MANY = 10000, STORES = 50 };

static uint64_t state;

static uint64_t rnd(uint64_t below)
{
	state = state * 6364136223846793005ull + 1442695040888963407ull;
	return (state >> 33) % below;
}

static uint64_t begin(void)
{
	const char *given = getenv("SEED");

	state = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
	print_message("# seed %llu\n", (unsigned long long)state);
	return state;
}

static uint64_t minus(uint64_t a, uint64_t b)
{
	return a > b ? a - b : 0;
}

struct brute {
	const struct balance_store *stores;
	const struct balance_item *items;
	size_t n_stores, n_items;
	uint64_t out[STORES], in[STORES], left, moved;
};

/* Each image stays, or goes to each store; by the rules, and nothing else. */
static void try_all(struct brute *b, size_t at, uint64_t moved)
{
	uint64_t left = 0;

	if (at < b->n_items) {
		const struct balance_item *item = &b->items[at];

		try_all(b, at + 1, moved);
		for (size_t s = 0; s < b->n_stores; s++) {
			if (!(item->may >> s & 1) || b->stores[s].excess ||
			    !b->stores[item->from].excess)
				continue;
			b->out[item->from] += item->need;
			b->in[s] += item->need;
			if (b->in[s] <= b->stores[s].room)
				try_all(b, at + 1, moved + item->need);
			b->in[s] -= item->need;
			b->out[item->from] -= item->need;
		}
		return;
	}
	for (size_t s = 0; s < b->n_stores; s++)
		left += minus(b->stores[s].excess, b->out[s]);
	if (left < b->left || (left == b->left && moved < b->moved)) {
		b->left = left;
		b->moved = moved;
	}
}

/* What the plan comes to; its room is kept, and it goes where it may. */
static uint64_t moved_by(const struct balance_store *stores, size_t n_stores,
			 const struct balance_item *items, size_t n, uint64_t *left)
{
	uint64_t in[STORES] = {0}, out[STORES] = {0}, moved = 0;

	*left = 0;
	for (size_t i = 0; i < n; i++) {
		if (items[i].to < 0)
			continue;
		assert_true(items[i].may >> items[i].to & 1);
		in[items[i].to] += items[i].need;
		out[items[i].from] += items[i].need;
		moved += items[i].need;
	}
	for (size_t s = 0; s < n_stores; s++) {
		assert_true(!in[s] || (!stores[s].excess && in[s] <= stores[s].room));
		*left += minus(stores[s].excess, out[s]);
	}
	return moved;
}

static void fewest_bytes(void **unused)
{
	size_t moves = 0, short_of = 0;

	(void)unused;
	begin();
	for (int c = 0; c < CASES; c++) {
		struct balance_store stores[4] = {0};
		struct balance_item items[FEW] = {0};
		size_t n_stores = 2 + rnd(3), n = 1 + rnd(FEW);
		struct brute b = {.stores = stores,
				  .items = items,
				  .n_stores = n_stores,
				  .n_items = n,
				  .left = UINT64_MAX,
				  .moved = UINT64_MAX};
		uint64_t left, told;
		int exact;

		for (size_t s = 0; s < n_stores; s++)
			if (rnd(2))
				stores[s].excess = 1 + rnd(60);
			else
				stores[s].room = rnd(60);
		for (size_t i = 0; i < n; i++)
			items[i] = (struct balance_item){.need = 1 + rnd(40),
							 .from = rnd(n_stores),
							 .may = rnd(1u << n_stores)};
		for (size_t i = 0; i < n; i++)
			items[i].may &= ~(1ull << items[i].from);
		try_all(&b, 0, 0);
		told = balance_make(stores, n_stores, items, n, &exact);
		assert_true(exact);
		assert_true(moved_by(stores, n_stores, items, n, &left) == b.moved);
		assert_true(left == b.left && told == left);
		moves += b.moved > 0;
		short_of += b.left > 0;
	}
	print_message("# %d cases, %zu with moves, %zu that cannot be had whole\n", CASES, moves,
		      short_of);
	assert_true(moves > CASES / 10 && short_of > CASES / 10);
}

static void make_large(struct balance_store *stores, struct balance_item *items)
{
	memset(stores, 0, STORES * sizeof(*stores));
	for (size_t i = 0; i < MANY; i++)
		items[i] = (struct balance_item){.need = 1 + rnd(40ull << 30), .from = rnd(STORES)};
	for (size_t s = 0; s < STORES; s++)
		if (s % 3)
			stores[s].room = rnd(4ull << 40);
		else
			stores[s].excess = 1 + rnd(2ull << 40);
	for (size_t i = 0; i < MANY; i++)
		items[i].may = ((1ull << STORES) - 1) & ~(1ull << items[i].from);
}

static void large(void **unused)
{
	static struct balance_store stores[STORES];
	static struct balance_item a[MANY], b[MANY];
	uint64_t wanted = 0, left, moved, seed = begin();
	struct timespec from, to;
	double took;
	int exact;

	(void)unused;
	make_large(stores, a);
	state = seed;
	make_large(stores, b);
	for (size_t s = 0; s < STORES; s++)
		wanted += stores[s].excess;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
	balance_make(stores, STORES, a, MANY, &exact);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &to);
	took = (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9;
	moved = moved_by(stores, STORES, a, MANY, &left);
	print_message("# %.3f s, %.3f of the bytes that must leave, %d\n", took,
		      (double)moved / (double)(wanted - left), exact);
	assert_true(took < 1);
	/* What is moved beyond what has to leave is less than an image for each store. */
	assert_true(left || (double)moved <= 1.01 * (double)wanted);
	balance_make(stores, STORES, b, MANY, &exact);
	assert_memory_equal(a, b, sizeof(a));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fewest_bytes),
		cmocka_unit_test(large),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
