/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Worker threads for calls that block (fallocate, getaddrinfo, fsync of a record). A pool belongs
 * to one owner, so that a call that hangs on one device holds up nothing else.
 */
#ifndef BM_BASE_WORKER_H
#define BM_BASE_WORKER_H

#include "blockmirror/loop.h"

/* One piece of work, embedded in its owner and untouched by it until done() is called. */
struct bm_work {
	struct bm_task task;
	struct bm_list link;
	struct bm_loop *loop;
	void (*run)(struct bm_work *work);  /* in a worker's thread */
	void (*done)(struct bm_work *work); /* in the loop's thread, after run() */
};

struct bm_workers;

/*
 * A pool of at most max threads, started as work comes in, in the order in which it comes; with
 * max 1 the work is done in that order, too. NULL when memory is out.
 */
struct bm_workers *bm_workers_new(unsigned max);

/* Waits for work that has begun and for work that is queued. Their done() is not called. */
void bm_workers_free(struct bm_workers *workers);

/*
 * Hands work over. Never blocks and never fails: work waits for a free thread; when not even one
 * thread could be started it is done here and now, slow but right.
 */
void bm_workers_submit(struct bm_workers *workers, struct bm_loop *loop, struct bm_work *work);

#endif
