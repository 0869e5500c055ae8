/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which images leave stores that are too full, and where to, so that the fewest bytes move: figures
 * in, figures out; the same figures give the same plan. Images leave stores that are too full, and
 * come to those that are not: nothing is moved out of the way to make room. Where not all can be
 * had, as much as can be is taken off, with the fewest bytes.
 *
 * All plans are looked through, the likely ones first, up to a number of steps: with few images the
 * plan is the best there is, with many it is as good as was found by then.
 */
#ifndef BM_CLI_BALANCE_PLAN_H
#define BM_CLI_BALANCE_PLAN_H

#include <stddef.h>
#include <stdint.h>

enum { BALANCE_STORES = 64 };

struct balance_store {
	uint64_t excess; /* bytes that are to leave; 0: it may take some */
	uint64_t room;   /* bytes that may come */
};

struct balance_item {
	uint64_t need;
	size_t from;
	uint64_t may; /* bit N: it may go to store N; 0: it stays */
	int to;       /* found; -1: it stays */
};

/* Returns the bytes that are left too much; *exact: there is no better plan. */
uint64_t balance_make(const struct balance_store *stores, size_t n_stores,
		      struct balance_item *items, size_t n_items, int *exact);

#endif
