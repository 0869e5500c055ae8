/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Comparing two devices. A walk along both asks for extents: what is zero on both is skipped, the
 * rest is read in pieces, several in flight. After a difference nothing more is begun, but what was
 * begun before is waited for, since it may hold an earlier one.
 */
#include "blockmirror/mirror/verify.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/list.h"

enum { DEPTH = 8, CHUNK = BM_BUF_MAX, EXTENTS = 128 };
#define ASK (1ull << 30) /* bytes that extents are asked for at once */

struct piece {
	struct leg {
		struct bm_request rq;
		struct piece *piece;
		struct bm_buf *buf;
		int error;
	} leg[2];
	struct bm_verify *verify;
	unsigned pending;
	bool busy;
};

/* What extents said about one device from some offset on. */
struct walk {
	struct bm_request rq;
	struct bm_verify *verify;
	struct bm_extents extents;
	struct bm_extent v[EXTENTS];
	uint64_t start, end; /* covered by the answer */
	bool asked;
};

struct bm_verify {
	struct bm_loop *loop;
	struct bm_dev *dev[2];
	uint64_t size, pos;
	struct bm_pool *pool;
	struct piece piece[DEPTH];
	struct walk walk[2];
	unsigned in_flight;
	bool stop, ended;
	struct bm_task step;
	struct bm_verify_result result;
	void (*done)(void *arg, const struct bm_verify_result *result);
	void *arg;
};

static void kick(struct bm_verify *v)
{
	bm_loop_soon(v->loop, &v->step);
}

/* The earliest finding counts. */
static void found(struct bm_verify *v, uint64_t offset, int error, int where)
{
	if (v->stop && offset >= v->result.offset)
		return;
	v->stop = true;
	v->result.offset = offset;
	v->result.error = error;
	v->result.where = where;
	v->result.differ = !error;
}

static void compare(struct piece *p)
{
	struct bm_verify *v = p->verify;
	const struct bm_request *a = &p->leg[0].rq, *b = &p->leg[1].rq;
	uint64_t i = 0;

	for (int side = 0; side < 2; side++)
		if (p->leg[side].error)
			found(v, a->offset, p->leg[side].error, side);
	if (p->leg[0].error || p->leg[1].error)
		return;
	v->result.compared += a->length;
	if (!memcmp(a->data, b->data, a->length))
		return;
	while (a->data[i] == b->data[i])
		i++;
	found(v, a->offset + i, 0, 0);
}

static void leg_read(struct bm_request *rq, int error)
{
	struct leg *leg = bm_container(rq, struct leg, rq);
	struct piece *p = leg->piece;

	leg->error = error;
	p->verify->in_flight--;
	if (--p->pending)
		return;
	compare(p);
	p->busy = false;
	kick(p->verify);
}

static void extents_came(struct bm_request *rq, int error)
{
	struct walk *w = bm_container(rq, struct walk, rq);

	w->asked = false;
	w->verify->in_flight--;
	w->start = w->end = rq->offset;
	if (error) { /* who cannot tell has data */
		w->extents.count = 1;
		w->v[0] = (struct bm_extent){.length = rq->length};
	}
	for (unsigned i = 0; i < w->extents.count; i++)
		w->end += w->v[i].length;
	kick(w->verify);
}

/* Whether the walk knows about pos; if not, it is asked. */
static bool known(struct bm_verify *v, int side, uint64_t pos)
{
	struct walk *w = &v->walk[side];
	uint64_t left = v->size - pos;

	if (w->asked)
		return false;
	if (pos >= w->start && pos < w->end)
		return true;
	w->extents = (struct bm_extents){.v = w->v, .room = EXTENTS};
	w->rq.op = BM_EXTENTS;
	w->rq.offset = pos;
	w->rq.length = left < ASK ? left : ASK;
	w->rq.extents = &w->extents;
	w->asked = true;
	v->in_flight++;
	bm_submit(v->dev[side], &w->rq);
	return false;
}

/* The length from pos on that is of one kind. */
static uint64_t run_at(const struct walk *w, uint64_t pos, bool *zero)
{
	uint64_t at = w->start;
	unsigned i = 0;

	while (at + w->v[i].length <= pos)
		at += w->v[i++].length;
	*zero = w->v[i].flags & BM_EXTENT_ZERO;
	return at + w->v[i].length - pos;
}

static struct piece *free_piece(struct bm_verify *v)
{
	for (int i = 0; i < DEPTH; i++)
		if (!v->piece[i].busy)
			return &v->piece[i];
	return NULL;
}

static void read_both(struct bm_verify *v, struct piece *p, uint64_t length)
{
	p->busy = true;
	p->pending = 2;
	for (int side = 0; side < 2; side++) {
		struct bm_request *rq = &p->leg[side].rq;

		rq->op = BM_READ;
		rq->offset = v->pos;
		rq->length = length;
		rq->data = p->leg[side].buf->data;
		v->in_flight++;
		bm_submit(v->dev[side], rq);
	}
	v->pos += length;
}

/* One step of the walk; false when it must wait. */
static bool advance(struct bm_verify *v)
{
	bool zero[2];
	uint64_t length, other;
	struct piece *p;

	if (v->stop || v->pos == v->size || !known(v, 0, v->pos) | !known(v, 1, v->pos))
		return false;
	length = run_at(&v->walk[0], v->pos, &zero[0]);
	other = run_at(&v->walk[1], v->pos, &zero[1]);
	if (other < length)
		length = other;
	if (zero[0] && zero[1]) {
		v->result.skipped += length;
		v->pos += length;
		return true;
	}
	p = free_piece(v);
	if (!p)
		return false;
	read_both(v, p, length < CHUNK ? length : CHUNK);
	return true;
}

static void step(struct bm_task *task)
{
	struct bm_verify *v = bm_container(task, struct bm_verify, step);

	while (advance(v))
		;
	if (v->in_flight || v->ended || (!v->stop && v->pos < v->size))
		return;
	v->ended = true;
	v->done(v->arg, &v->result);
}

int bm_verify_start(struct bm_loop *loop, struct bm_dev *a, struct bm_dev *b, uint64_t size,
		    void (*done)(void *arg, const struct bm_verify_result *result), void *arg,
		    struct bm_verify **verify)
{
	struct bm_verify *v = calloc(1, sizeof(*v));

	if (!v)
		return -ENOMEM;
	v->loop = loop;
	v->dev[0] = a;
	v->dev[1] = b;
	v->size = size;
	v->done = done;
	v->arg = arg;
	v->step.run = step;
	v->pool = bm_pool_new(loop, (size_t)2 * DEPTH * CHUNK);
	for (int i = 0; i < DEPTH && v->pool; i++)
		for (int side = 0; side < 2; side++) {
			struct leg *leg = &v->piece[i].leg[side];

			v->piece[i].verify = v;
			leg->piece = &v->piece[i];
			leg->rq.done = leg_read;
			leg->buf = bm_buf_get(v->pool, CHUNK);
			if (!leg->buf) {
				bm_verify_free(v);
				return -ENOMEM;
			}
		}
	for (int side = 0; side < 2; side++) {
		v->walk[side].verify = v;
		v->walk[side].rq.done = extents_came;
	}
	if (!v->pool) {
		bm_verify_free(v);
		return -ENOMEM;
	}
	*verify = v;
	kick(v);
	return 0;
}

uint64_t bm_verify_progress(const struct bm_verify *v)
{
	return v->pos;
}

void bm_verify_cancel(struct bm_verify *v)
{
	found(v, v->pos, -ECANCELED, 0);
	kick(v);
}

void bm_verify_free(struct bm_verify *v)
{
	if (!v)
		return;
	bm_task_cancel(&v->step);
	for (int i = 0; i < DEPTH; i++)
		for (int side = 0; side < 2; side++)
			bm_buf_unref(v->piece[i].leg[side].buf);
	bm_pool_free(v->pool);
	free(v);
}
