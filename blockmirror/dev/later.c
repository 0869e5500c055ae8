/* SPDX-License-Identifier: BSD-3-Clause */
/* Completions that are known at once but may not be delivered inside bm_submit(). */
#include "blockmirror/dev/later.h"

#include <assert.h>

#include "blockmirror/base/list.h"

static void deliver(struct bm_task *task)
{
	struct bm_later *later = bm_container(task, struct bm_later, task);
	struct bm_list batch, *node;

	/* What the completions add is delivered in the next turn, so that this one ends. */
	bm_list_init(&batch);
	bm_list_move_all(&batch, &later->list);
	while ((node = bm_list_take(&batch))) {
		struct bm_request *rq = bm_container(node, struct bm_request, link);

		rq->done(rq, rq->result);
	}
}

void bm_later_init(struct bm_later *later, struct bm_loop *loop)
{
	later->task.run = deliver;
	later->loop = loop;
	bm_list_init(&later->list);
}

void bm_later_done(struct bm_later *later, struct bm_request *rq, int result)
{
	rq->result = result;
	bm_list_append(&later->list, &rq->link);
	bm_loop_soon(later->loop, &later->task);
}

void bm_later_fini(struct bm_later *later)
{
	assert(bm_list_empty(&later->list));
	bm_task_cancel(&later->task);
}
