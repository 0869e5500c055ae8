/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The order device: what stands between requests as clients make them and devices as they are.
 *
 *   order    overlapping requests run one after the other, in the order of arrival; only reads
 *            run beside reads. The order belongs to the disk and not to a copy of it: below, the
 *            mirror may move authority from one device to the other at any instant, and no
 *            request is ever on both sides of that instant with another one that overlaps it
 *            (docs/mirror.md, "Reads that go back in time").
 *   bytes    an unaligned write is a read of its edge blocks, a merge into a buffer of our own
 *            and a write, all under the range, which is rounded out to `align`: two such writes to
 *            one block would otherwise rewrite each other's neighbour.
 *   cutting  a request longer than the device below takes becomes pieces that lock one by one, so
 *            that a zero of a whole disk does not stop the guest.
 *
 * A piece is what is in flight: [pos, end) of its request, [lock_start, lock_end) of the disk.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/hist.h"
#include "blockmirror/base/list.h"
#include "blockmirror/dev/later.h"

enum {
	SLOTS = 256,             /* requests in flight; more wait in arrival order */
	BOUNCE_LIMIT = 16 << 20, /* bytes of bounce buffers */
};

enum stage { STAGE_BLOCKED, STAGE_MEMORY, STAGE_HEAD, STAGE_TAIL, STAGE_RUN };
enum zero_part { ZERO_MIDDLE, ZERO_HEAD, ZERO_TAIL, ZERO_END };

struct piece {
	struct bm_request sub;
	struct order *order;
	struct bm_request *rq;
	struct bm_list link; /* all pieces, in the order of arrival */
	unsigned blockers;   /* earlier pieces that overlap and have not ended */
	bool writes;
	bool past_fast; /* a piece of a FAST zero was done: from here on it must succeed */
	enum stage stage;
	enum zero_part part;  /* ZERO, TRIM: what comes next */
	uint64_t pos, end;    /* this piece */
	uint64_t first, last; /* ZERO, TRIM: what is left of the whole blocks */
	uint64_t lock_start, lock_end;
	uint64_t base, base_end; /* what the bounce buffer holds */
	struct bm_buf *bounce;
	struct bm_buf_waiter memory;
};

struct order {
	struct bm_dev dev;
	struct bm_dev *lower;
	struct bm_meter *meter;
	uint32_t align, block; /* block: of lower, for all time */
	bool owns;             /* lower goes with us */
	bool cancelled;
	unsigned busy;         /* slots in use */
	struct bm_task *idle;  /* to be run when there are none; NULL */
	struct bm_list pieces; /* in flight, in the order of arrival */
	struct bm_list queue;  /* requests that wait for a slot */
	struct bm_list free;
	struct bm_pool *pool;
	struct bm_later later;
	struct piece slot[SLOTS];
};

static void piece_next(struct piece *p);
static void piece_run(struct piece *p);
static void sub_done(struct bm_request *sub, int error);

static uint64_t down(uint64_t value, uint64_t align)
{
	return value & ~(align - 1);
}

static uint64_t up(uint64_t value, uint64_t align)
{
	return down(value + align - 1, align);
}

/* Order */

static bool conflicts(const struct piece *a, const struct piece *b)
{
	return (a->writes || b->writes) && a->lock_start < b->lock_end &&
	       b->lock_start < a->lock_end;
}

static void piece_enter(struct piece *p)
{
	struct order *o = p->order;

	p->lock_start = down(p->pos, o->align);
	p->lock_end = up(p->end, o->align);
	p->blockers = 0;
	bm_list_each(node, &o->pieces) {
		if (conflicts(bm_container(node, struct piece, link), p))
			p->blockers++;
	}
	bm_list_append(&o->pieces, &p->link);
	if (!p->blockers)
		piece_run(p);
	else
		p->stage = STAGE_BLOCKED;
}

/* Lets those go that waited for p alone. All who wait for p came after it. */
static void piece_leave(struct piece *p)
{
	struct order *o = p->order;
	struct bm_list *node = p->link.next;

	bm_list_remove(&p->link);
	while (node != &o->pieces) {
		struct piece *later = bm_container(node, struct piece, link);

		node = node->next;
		if (conflicts(p, later) && !--later->blockers)
			piece_run(later);
	}
}

/* Pieces */

static void count(struct bm_meter *meter, const struct piece *p)
{
	const struct bm_request *rq = p->rq;
	uint64_t now = bm_loop_now(p->order->dev.loop), ns = now - rq->arrived;

	if (!meter)
		return;
	meter->requests[rq->op]++;
	if (rq->op == BM_FLUSH)
		bm_hist_add(&meter->flushes, ns);
	else if (rq->op != BM_EXTENTS)
		bm_hist_add(&meter->window, ns);
	if (rq->op == BM_READ) {
		meter->bytes_read += rq->length;
	} else if (rq->op != BM_FLUSH && rq->op != BM_EXTENTS) {
		meter->bytes_written += rq->length;
		meter->changed = now;
	}
	if (ns > meter->longest)
		meter->longest = ns;
}

static void begin(struct order *o, struct bm_request *rq);

/* The request has ended: its slot goes to the next one that waits, then the caller is told. */
static void finish(struct piece *p, int error)
{
	struct order *o = p->order;
	struct bm_request *rq = p->rq;
	struct bm_list *node;

	count(o->meter, p);
	bm_list_push(&o->free, &p->link);
	o->busy--;
	node = bm_list_take(&o->queue);
	if (node)
		begin(o, bm_container(node, struct bm_request, link));
	if (!o->busy && o->idle)
		bm_loop_soon(o->dev.loop, bm_steal(o->idle));
	rq->done(rq, error);
}

static void piece_end(struct piece *p, int error)
{
	bm_buf_unref(p->bounce);
	p->bounce = NULL;
	piece_leave(p);
	p->past_fast = true;
	if (error)
		finish(p, error);
	else
		piece_next(p);
}

static void send(struct piece *p, enum bm_op op, uint64_t start, uint64_t end, uint8_t *data,
		 struct bm_buf *buf)
{
	p->sub.op = op;
	p->sub.flags = op == BM_READ || op == BM_EXTENTS ? 0 : p->rq->flags;
	if (p->past_fast || op == BM_WRITE)
		p->sub.flags &= ~BM_FAST;
	p->sub.offset = start;
	p->sub.length = end - start;
	p->sub.data = data;
	p->sub.buf = buf;
	p->sub.extents = p->rq->extents;
	bm_submit(p->order->lower, &p->sub);
}

static void memory_came(struct bm_buf_waiter *waiter)
{
	struct piece *p = bm_container(waiter, struct piece, memory);

	piece_run(p);
}

static void overlay(struct piece *p)
{
	uint8_t *at = p->bounce->data + (p->pos - p->base);

	if (p->rq->op == BM_ZERO)
		memset(at, 0, p->end - p->pos);
	else
		memcpy(at, p->rq->data + (p->pos - p->rq->offset), p->end - p->pos);
}

/* One stage of a read-modify-write after the other: head block, tail block, merge, write. */
static void merge_step(struct piece *p)
{
	uint32_t block = p->order->block;
	bool head = p->pos != p->base;
	bool tail = p->end != p->base_end && (!head || p->base_end - p->base > block);

	if (p->stage < STAGE_HEAD && head) {
		p->stage = STAGE_HEAD;
		send(p, BM_READ, p->base, p->base + block, p->bounce->data, NULL);
	} else if (p->stage < STAGE_TAIL && tail) {
		p->stage = STAGE_TAIL;
		send(p, BM_READ, p->base_end - block, p->base_end,
		     p->bounce->data + (p->base_end - block - p->base), NULL);
	} else {
		p->stage = STAGE_RUN;
		overlay(p);
		send(p, BM_WRITE, p->base, p->base_end, p->bounce->data, p->bounce);
	}
}

static bool aligned(const struct piece *p)
{
	uint64_t block = p->order->block;

	if ((p->pos | p->end) & (block - 1))
		return false;
	/* The middle of a cut request may start anywhere in the caller's memory. */
	return (p->rq->op != BM_READ && p->rq->op != BM_WRITE) ||
	       !((uintptr_t)(p->rq->data + (p->pos - p->rq->offset)) & (block - 1));
}

/* No overlapping piece is ahead of this one (any more): carries it out. */
static void piece_run(struct piece *p)
{
	struct order *o = p->order;
	struct bm_request *rq = p->rq;

	if (aligned(p)) {
		uint8_t *data = rq->data ? rq->data + (p->pos - rq->offset) : NULL;

		p->stage = STAGE_RUN;
		send(p, rq->op, p->pos, p->end, data, rq->buf);
		return;
	}
	p->base = down(p->pos, p->order->block);
	p->base_end = up(p->end, p->order->block);
	p->bounce = bm_buf_get(o->pool, p->base_end - p->base);
	if (!p->bounce) {
		p->stage = STAGE_MEMORY;
		bm_buf_wait(o->pool, &p->memory);
		return;
	}
	p->stage = STAGE_MEMORY;
	if (rq->op == BM_READ) {
		p->stage = STAGE_RUN;
		send(p, BM_READ, p->base, p->base_end, p->bounce->data, p->bounce);
	} else {
		merge_step(p);
	}
}

/* READ and WRITE: as much as the device below takes, ending at a block. */
static bool next_transfer(struct piece *p)
{
	uint64_t end = p->rq->offset + p->rq->length;
	uint64_t most = p->order->lower->geometry.max_transfer;

	p->pos = p->end;
	if (most > BM_BUF_MAX)
		most = BM_BUF_MAX;
	if (end - down(p->pos, p->order->block) > most)
		end = down(p->pos, p->order->block) + most;
	p->end = end;
	return p->pos < p->end;
}

static void zero_begin(struct piece *p)
{
	uint64_t start = p->rq->offset, end = start + p->rq->length;

	p->part = ZERO_MIDDLE;
	p->past_fast = false;
	p->first = up(start, p->order->block);
	p->last = down(end, p->order->block);
	if (p->first > p->last) /* within one block: a head alone */
		p->first = p->last = end;
}

/*
 * ZERO and TRIM: the whole blocks first, so that a FAST zero that the device refuses has changed
 * nothing; then (ZERO only) the two edges, as writes.
 */
static bool next_zero(struct piece *p)
{
	uint64_t most = p->order->lower->geometry.max_zero;
	uint64_t start = p->rq->offset, end = start + p->rq->length;

	if (p->part == ZERO_MIDDLE && p->first < p->last) {
		p->pos = p->first;
		p->end = p->last - p->pos > most ? p->pos + most : p->last;
		p->first = p->end;
		return true;
	}
	if (p->rq->op == BM_TRIM)
		return false;
	if (p->part <= ZERO_HEAD) {
		p->part = ZERO_TAIL;
		p->pos = start;
		p->end = up(start, p->order->block) < end ? up(start, p->order->block) : end;
		if (p->pos < p->end)
			return true;
	}
	if (p->part == ZERO_TAIL) {
		p->part = ZERO_END;
		p->pos = p->last;
		p->end = end;
		return p->pos < p->end;
	}
	return false;
}

static void piece_next(struct piece *p)
{
	enum bm_op op = p->rq->op;
	bool more = op == BM_READ || op == BM_WRITE ? next_transfer(p) : next_zero(p);

	if (more)
		piece_enter(p);
	else
		finish(p, 0);
}

/* Extents are asked for on whole blocks; the answer is cut back to what was asked. */
static void extents_run(struct piece *p)
{
	uint64_t start = p->rq->offset, end = start + p->rq->length;

	send(p, BM_EXTENTS, down(start, p->order->block), up(end, p->order->block), NULL, NULL);
}

static void extents_cut(struct piece *p)
{
	struct bm_extents *x = p->rq->extents;
	uint64_t lead = p->rq->offset - p->sub.offset, left = p->rq->length;
	unsigned kept = 0;

	for (unsigned i = 0; i < x->count && left; i++) {
		uint64_t length = x->v[i].length;

		if (length <= lead) {
			lead -= length;
			continue;
		}
		length -= lead;
		lead = 0;
		if (length > left)
			length = left;
		left -= length;
		x->v[kept].length = length;
		x->v[kept++].flags = x->v[i].flags;
	}
	x->count = kept;
}

static void sub_done(struct bm_request *sub, int error)
{
	struct piece *p = bm_container(sub, struct piece, sub);

	if (p->rq->op == BM_FLUSH || p->rq->op == BM_EXTENTS) {
		if (p->rq->op == BM_EXTENTS && !error)
			extents_cut(p);
		finish(p, error);
		return;
	}
	if (!error && p->bounce) {
		if (p->stage != STAGE_RUN) {
			merge_step(p);
			return;
		}
		if (p->rq->op == BM_READ)
			memcpy(p->rq->data + (p->pos - p->rq->offset),
			       p->bounce->data + (p->pos - p->base), p->end - p->pos);
	}
	piece_end(p, error);
}

/* Requests */

static void begin(struct order *o, struct bm_request *rq)
{
	struct bm_list *node = bm_list_take(&o->free);
	struct piece *p = bm_container(node, struct piece, link);

	o->busy++;
	p->rq = rq;
	p->writes = rq->op != BM_READ;
	p->end = rq->offset;
	p->past_fast = false;
	if (rq->op == BM_FLUSH) {
		send(p, BM_FLUSH, 0, 0, NULL, NULL);
		return;
	}
	if (rq->op == BM_EXTENTS) {
		extents_run(p);
		return;
	}
	if (rq->op == BM_ZERO || rq->op == BM_TRIM)
		zero_begin(p);
	piece_next(p);
}

static bool nothing_to_do(const struct order *o, const struct bm_request *rq)
{
	uint64_t block = o->block;

	if (rq->op == BM_FLUSH)
		return false;
	if (rq->op == BM_TRIM)
		return up(rq->offset, block) >= down(rq->offset + rq->length, block);
	return !rq->length;
}

static void order_submit(struct bm_dev *dev, struct bm_request *rq)
{
	struct order *o = bm_container(dev, struct order, dev);
	uint32_t flags = o->lower->geometry.flags;

	dev->geometry.flags = flags;
	rq->arrived = bm_loop_now(dev->loop);
	if (o->cancelled)
		bm_later_done(&o->later, rq, -ESHUTDOWN);
	else if (nothing_to_do(o, rq))
		bm_later_done(&o->later, rq, 0);
	else if (rq->flags & BM_FAST && !(flags & BM_DEV_FAST_ZERO))
		bm_later_done(&o->later, rq, -ENOTSUP);
	else if (bm_list_empty(&o->free))
		bm_list_append(&o->queue, &rq->link);
	else
		begin(o, rq);
}

static void order_start(struct bm_dev *dev)
{
	struct order *o = bm_container(dev, struct order, dev);

	if (o->owns)
		bm_dev_start(o->lower, dev->loop);
	bm_later_init(&o->later, dev->loop);
	o->pool = bm_pool_new(dev->loop, BOUNCE_LIMIT);
}

static void order_cancel(struct bm_dev *dev)
{
	struct order *o = bm_container(dev, struct order, dev);
	struct bm_list *node;

	o->cancelled = true;
	while ((node = bm_list_take(&o->queue)))
		bm_later_done(&o->later, bm_container(node, struct bm_request, link), -ESHUTDOWN);
	bm_dev_cancel(o->lower);
}

static void order_close(struct bm_dev *dev)
{
	struct order *o = bm_container(dev, struct order, dev);

	/* As with bm_mirror_free(), what is in flight is forgotten, not ended. */
	bm_task_cancel(&o->later.task);
	for (int i = 0; i < SLOTS; i++)
		bm_buf_unref(o->slot[i].bounce);
	bm_pool_free(o->pool);
	if (o->owns)
		bm_dev_close(o->lower);
	free(o);
}

static int order_descriptor(const struct bm_dev *dev)
{
	return bm_dev_descriptor(bm_container(dev, struct order, dev)->lower);
}

static const struct bm_dev_ops order_ops = {
	.name = "order",
	.start = order_start,
	.submit = order_submit,
	.cancel = order_cancel,
	.close = order_close,
	.descriptor = order_descriptor,
};

int bm_order_new(struct bm_dev *lower, uint32_t align, struct bm_meter *meter, struct bm_dev **dev)
{
	struct order *o = calloc(1, sizeof(*o));

	if (!o)
		return -ENOMEM;
	/* Else two writes to one block would rewrite each other's neighbours. */
	assert(align >= lower->geometry.block);
	o->dev.ops = &order_ops;
	o->dev.geometry = lower->geometry;
	o->dev.geometry.block = 1;
	o->dev.geometry.max_transfer = UINT32_MAX;
	o->dev.geometry.max_zero = UINT64_MAX;
	o->lower = lower;
	o->meter = meter;
	o->align = align;
	o->block = lower->geometry.block;
	bm_list_init(&o->pieces);
	bm_list_init(&o->queue);
	bm_list_init(&o->free);
	for (int i = 0; i < SLOTS; i++) {
		struct piece *p = &o->slot[i];

		p->order = o;
		p->sub.done = sub_done;
		p->memory.run = memory_came;
		bm_list_append(&o->free, &p->link);
	}
	*dev = &o->dev;
	return 0;
}

bool bm_order_changes(const struct bm_dev *dev)
{
	const struct order *o = bm_container(dev, const struct order, dev);

	bm_list_each(node, &o->pieces) {
		if (bm_container(node, const struct piece, link)->writes)
			return true;
	}
	return !bm_list_empty(&o->queue);
}

void bm_order_when_idle(struct bm_dev *dev, struct bm_task *task)
{
	struct order *o = bm_container(dev, struct order, dev);

	o->idle = o->busy ? task : NULL;
	if (task && !o->busy)
		bm_loop_soon(dev->loop, task);
}

uint32_t bm_order_align(const struct bm_dev *lower)
{
	return lower->geometry.block > BM_ORDER_ALIGN ? lower->geometry.block : BM_ORDER_ALIGN;
}

int bm_order_fit(struct bm_dev **dev, uint32_t block)
{
	const struct bm_geometry *g = &(*dev)->geometry;
	struct bm_dev *fitting;
	int r;

	if (g->block <= block && g->max_transfer >= BM_BUF_MAX && g->max_zero >= BM_MAX_ZERO)
		return 0;
	r = bm_order_new(*dev, g->block > block ? g->block : block, NULL, &fitting);
	if (r < 0)
		return r;
	bm_container(fitting, struct order, dev)->owns = true;
	*dev = fitting;
	return 0;
}
