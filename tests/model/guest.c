/* SPDX-License-Identifier: BSD-3-Clause */
/* The guest of the model test: what it asks, and what it is told. */
#include "tests/model/world.h"

#include <string.h>

static void guest_done(struct bm_request *rq, int error)
{
	struct guest *g = bm_container(rq, struct guest, rq);
	int first = (int)(rq->offset / SECTOR);

	trace("guest op %d [%d,+%d) done %d", (int)rq->op, first, (int)(rq->length / SECTOR),
	      error);
	if (error && w.sound)
		violation("an error of the other side reached the guest: %d", error);
	if (rq->op == BM_FLUSH) {
		oracle_flushed(&oracle, g->id, !error);
		if (error)
			w.flush_failed[w.m->authority ^ w.base] = false;
	} else if (rq->op == BM_READ && !error) {
		oracle.clock++;
		total.reads++;
		for (int i = 0; i < (int)(rq->length / SECTOR); i++) {
			int value = sector_value(rq->data + (size_t)i * SECTOR);

			if (!oracle_read(&oracle, g->issue, first + i, value))
				violation("I1: a read of sector %d returned %d", first + i, value);
		}
		oracle.clock++;
	} else if (rq->op == BM_WRITE || rq->op == BM_ZERO || rq->op == BM_TRIM) {
		oracle_written(&oracle, g->id, !error);
		if (g->buf && g->buf->refs == 1)
			memset(g->buf->data, 0x5a, g->buf->size); /* it is the guest's again */
	}
	bm_buf_unref(g->buf);
	g->buf = NULL;
	g->used = false;
}

int live(void)
{
	int n = 0;

	for (int i = 0; i < GUESTS; i++)
		n += w.guest[i].used;
	return n;
}

static void choose_range(struct bm_request *rq)
{
	int all = w.calm ? SECTORS / 2 : SECTORS, n = 1 + below(percent(25) ? 8 : 3),
	    first = below(all - n + 1);

	if (percent(20)) {
		n = GRANULE / SECTOR;
		first = below(all / n) * n;
	}
	rq->offset = (uint64_t)first * SECTOR;
	rq->length = (uint64_t)n * SECTOR;
}

static enum bm_op choose_op(void)
{
	int x = below(100);

	return x < 12   ? BM_FLUSH
	       : x < 30 ? BM_READ
	       : x < 32 ? BM_EXTENTS
	       : x < 40 ? BM_ZERO
	       : x < 44 ? BM_TRIM
			: BM_WRITE;
}

void guest_op(void)
{
	struct guest *g = w.guest;
	int value = 0;

	while (g->used)
		g++;
	memset(g, 0, sizeof(*g));
	g->used = true;
	g->rq.op = choose_op();
	g->rq.done = guest_done;
	total.guest_ops++;
	if (g->rq.op == BM_FLUSH) {
		g->id = oracle_flush(&oracle);
	} else {
		choose_range(&g->rq);
		g->buf = bm_buf_get(w.pool, SECTORS * SECTOR);
		g->rq.data = g->buf->data;
		g->rq.buf = g->buf;
	}
	g->extents = (struct bm_extents){.v = g->v, .room = SECTORS};
	g->rq.extents = g->rq.op == BM_EXTENTS ? &g->extents : NULL;
	if (g->rq.op == BM_READ)
		g->issue = oracle_now(&oracle);
	if (g->rq.op == BM_WRITE || g->rq.op == BM_ZERO || g->rq.op == BM_TRIM) {
		int n = (int)(g->rq.length / SECTOR);

		if (g->rq.op == BM_WRITE && !percent(8))
			value = ++oracle.next_value;
		if (percent(10))
			g->rq.flags = BM_FUA;
		for (int i = 0; g->rq.op == BM_WRITE && i < n; i++)
			sector_fill(g->rq.data + (size_t)i * SECTOR, value);
		g->id = oracle_write(&oracle, value, (int)(g->rq.offset / SECTOR), n,
				     g->rq.flags & BM_FUA, g->rq.op == BM_TRIM);
	}
	trace("guest op %d [%d,+%d) value %d%s", (int)g->rq.op, (int)(g->rq.offset / SECTOR),
	      (int)(g->rq.length / SECTOR), value, g->rq.flags & BM_FUA ? " FUA" : "");
	bm_submit(w.order, &g->rq);
}
