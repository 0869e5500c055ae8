/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Completions that are known at once but may not be delivered inside bm_submit(): they are kept
 * in a list and delivered from the loop, in order. One per device, embedded. Loop thread only.
 */
#ifndef BM_DEV_LATER_H
#define BM_DEV_LATER_H

#include "blockmirror/blockdev.h"

struct bm_later {
	struct bm_task task;
	struct bm_list list;
	struct bm_loop *loop;
};

void bm_later_init(struct bm_later *later, struct bm_loop *loop);

/* Calls rq->done(rq, result) soon. */
void bm_later_done(struct bm_later *later, struct bm_request *rq, int result);

/* The device goes away: nothing may be waiting any more. */
void bm_later_fini(struct bm_later *later);

#endif
