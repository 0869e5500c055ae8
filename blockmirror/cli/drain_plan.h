/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Where images go, and in which order: figures in, figures out. It looks at nothing, and what it is
 * given twice it answers twice alike.
 */
#ifndef BM_CLI_DRAIN_PLAN_H
#define BM_CLI_DRAIN_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* HELD: it has its place, and is not to begin before its user says PLAN_WAITS, and begun = 0. */
enum plan_state { PLAN_WAITS, PLAN_RUNS, PLAN_OVER, PLAN_HELD };

struct plan_item {
	uint64_t need; /* bytes that it takes */
	int wanted;    /* the store that it has to go to; -1: any */
	int store;     /* that it goes to; -1: none has the room */
	int from;      /* the store that it leaves; -1: none of these */
	enum plan_state state;
};

struct plan_store {
	uint64_t room;    /* bytes that may still be given away; that of the pool counts */
	size_t pool;      /* the first store on the same file system, which has all of its room */
	size_t host;      /* the first store of the same host */
	unsigned limit;   /* of items at a time, of its own; 0: plan's per_store */
	unsigned running; /* of its items: those that come, and those that leave */
	unsigned host_running; /* of the host's, if it is its first store: those that come */
};

struct plan {
	struct plan_item *items;
	size_t n_items;
	size_t *order; /* of items: in which they begin; plan_make() fills it in */
	struct plan_store *stores;
	size_t n_stores;
	unsigned parallel;  /* that may run at a time */
	unsigned per_store; /* of these, on one store */
	unsigned per_host;  /* and to one host; 0: any */
	unsigned running;
	size_t begun; /* what is before it in order does not wait any more */
};

/*
 * Gives each item that waits a store, and takes the room for it; sets the order. The largest ones
 * begin first, so that the end is not one large one alone. Each goes where most room is left after
 * it; but when some have no room so, all are packed as tightly as can be, if that leaves less.
 */
void plan_make(struct plan *plan);

/* The order alone, of items that have their stores. */
void plan_order(struct plan *plan);

/*
 * The seconds that all that waits and has a store takes, when each of parallel moves has that many
 * bytes a second.
 */
uint64_t plan_seconds(const struct plan *plan, uint64_t each);

/* The store with most room left after need bytes, of all, or the wanted one; -1: none. */
int plan_pick(const struct plan *plan, uint64_t need, int wanted);

/* The next item to begin, by the limits; n_items: none now. */
size_t plan_next(struct plan *plan);

/* It runs; is over. Room stays as it is: that is what plan_make() took. */
void plan_begin(struct plan *plan, size_t item);
void plan_end(struct plan *plan, size_t item);

#endif
