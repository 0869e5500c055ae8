/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A session that is lost is opened again, and what was in flight is sent again:
 *
 *   UP         requests pass; in READY and HOLD what they wrote is kept until it is flushed
 *   ENDING     lost: the old session's requests are ending; those that failed wait
 *   WAITING    for the next attempt
 *   OPENING    the host is at it
 *   CHECKING   is it what it was? size, limits, samples of what was flushed last
 *   REWRITING  what was acknowledged and is not flushed is written again; then UP
 *
 * Nothing is sent from the loss until UP but by ourselves. The order device above sees to it that
 * no two requests that overlap are in flight together, so what waits may be sent in any order; it
 * may overlap what is rewritten, which therefore comes first.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/list.h"
#include "blockmirror/dev/reopen_inside.h"

enum {
	ZERO_KEPT = 1 << 20, /* a longer zero is made durable, so that it need not be kept */
};
static bool writes(const struct bm_request *rq)
{
	return rq->op == BM_WRITE || rq->op == BM_ZERO || rq->op == BM_TRIM;
}

static void set_timer_in(struct reopen *r, struct bm_timer *timer, uint64_t ns)
{
	(void)bm_timer_set(r->dev.loop, timer, bm_loop_now(r->dev.loop) + ns);
}

/* What is kept */

static bool keeps(const struct reopen *r)
{
	return r->role != BM_REOPEN_FAIL;
}

static void open_gap(struct reopen *r)
{
	r->gap = true;
	r->gap_stamp = r->stamp;
}

static void flushed(struct reopen *r, uint64_t stamp)
{
	bm_unflushed_flushed(&r->unflushed, stamp);
	if (stamp >= r->gap_stamp)
		r->gap = false;
}

static void lose(struct reopen *r);

/* No later one makes durable what this one lost. It was not the guest who was told: he will be. */
static void flush_failed(struct reopen *r, int error)
{
	r->latched = error;
	bm_unflushed_clear(&r->unflushed);
	open_gap(r);
}

static void flush_done(struct bm_request *rq, int error)
{
	struct reopen *r = bm_container(rq, struct reopen, flush);

	r->flushing = false;
	r->in_flight--;
	if (!error)
		flushed(r, r->flush_stamp);
	else if (error == -ENOTCONN && r->stage == UP && r->role == BM_REOPEN_HOLD && !r->cancelled)
		lose(r);
	else if (r->stage == UP && r->role == BM_REOPEN_HOLD)
		flush_failed(r, error);
	bm_reopen_go_on(r);
}

static void flush_ourselves(struct reopen *r)
{
	if (r->flushing || r->stage != UP || r->role != BM_REOPEN_HOLD || r->cancelled ||
	    !r->dev.loop)
		return;
	r->flushing = true;
	r->in_flight++;
	r->flush_stamp = r->stamp++;
	r->flush.op = BM_FLUSH;
	r->flush.done = flush_done;
	bm_submit(r->inner, &r->flush);
}

/* The write in s has ended well. */
static void keep(struct slot *s)
{
	struct reopen *r = s->reopen;
	const struct bm_request *rq = &s->sub;

	if (!keeps(r))
		return;
	if (rq->flags & BM_FUA || rq->op == BM_TRIM) {
		bm_unflushed_forget(&r->unflushed, rq->offset, rq->length);
		return;
	}
	/* One that was sent before anything was kept has no room yet. */
	if (s->reserved || bm_unflushed_reserve(&r->unflushed, rq->offset, rq->length)) {
		bm_unflushed_release(&r->unflushed, rq->offset, rq->length);
		s->reserved = false;
		bm_unflushed_put(&r->unflushed, rq->offset, rq->length,
				 rq->op == BM_WRITE ? rq->data : NULL, r->stamp);
	} else {
		bm_unflushed_clear(&r->unflushed);
		open_gap(r);
		flush_ourselves(r);
	}
	if (bm_unflushed_filling(&r->unflushed))
		flush_ourselves(r);
}

/* Requests */

static void send(struct reopen *r, struct bm_request *rq)
{
	struct slot *s = bm_container(bm_list_take(&r->free), struct slot, link);
	struct bm_request *sub = &s->sub;

	s->rq = rq;
	sub->op = rq->op;
	sub->flags = rq->flags;
	sub->offset = rq->offset;
	sub->length = rq->length;
	sub->data = rq->data;
	sub->buf = rq->buf;
	sub->extents = rq->extents;
	if (keeps(r) && rq->op == BM_ZERO && rq->length > ZERO_KEPT)
		sub->flags |= BM_FUA;
	s->stamp = r->stamp;
	if (rq->op == BM_FLUSH)
		r->stamp++;
	r->in_flight++;
	bm_submit(r->inner, sub);
}

/* Whether rq may go now as far as what is kept goes; if so it has its room. */
static bool has_room(struct reopen *r, const struct bm_request *rq)
{
	struct slot *s = bm_container(r->free.next, struct slot, link);

	s->reserved = false;
	if (!keeps(r) || rq->flags & BM_FUA ||
	    !(rq->op == BM_WRITE || (rq->op == BM_ZERO && rq->length <= ZERO_KEPT)))
		return true;
	s->reserved = bm_unflushed_reserve(&r->unflushed, rq->offset, rq->length);
	if (s->reserved || r->role != BM_REOPEN_HOLD)
		return true;
	flush_ourselves(r);
	return false;
}

void bm_reopen_send_waiting(struct reopen *r)
{
	while (r->stage == UP && !bm_list_empty(&r->waiting) && !bm_list_empty(&r->free)) {
		struct bm_request *rq = bm_container(r->waiting.next, struct bm_request, link);

		if (!has_room(r, rq))
			break;
		bm_list_remove(&rq->link);
		send(r, rq);
	}
}

static void fail_waiting(struct reopen *r, int error)
{
	struct bm_list *node;

	while ((node = bm_list_take(&r->waiting)))
		bm_later_done(&r->later, bm_container(node, struct bm_request, link), error);
}

static int result_of(struct slot *s, int error)
{
	struct reopen *r = s->reopen;

	if (!error && writes(&s->sub))
		keep(s);
	if (!error && s->sub.op == BM_FLUSH) {
		flushed(r, s->stamp);
		error = r->latched;
		r->latched = 0;
	}
	return error;
}

static void slot_done(struct bm_request *sub, int error)
{
	struct slot *s = bm_container(sub, struct slot, sub);
	struct reopen *r = s->reopen;
	struct bm_request *rq = s->rq;
	bool holds = r->role == BM_REOPEN_HOLD && !r->cancelled;

	r->in_flight--;
	if (error == -ENOTCONN && r->stage == UP && holds)
		lose(r);
	holds = holds && error && r->stage != UP;
	if (error && writes(sub))
		bm_unflushed_doubt(&r->unflushed, sub->offset, sub->length);
	if (!holds)
		error = result_of(s, error);
	if (s->reserved)
		bm_unflushed_release(&r->unflushed, sub->offset, sub->length);
	bm_list_push(&r->free, &s->link);
	if (r->stage != UP || r->closing || !bm_list_empty(&r->waiting))
		bm_reopen_go_on(r);
	if (holds && !r->status.gave_up)
		bm_list_push(&r->waiting, &rq->link);
	else
		rq->done(rq, holds ? -EIO : error);
}

static void reopen_submit(struct bm_dev *dev, struct bm_request *rq)
{
	struct reopen *r = bm_container(dev, struct reopen, dev);

	if (r->cancelled) {
		bm_later_done(&r->later, rq, -ESHUTDOWN);
	} else if (r->stage != UP && r->role != BM_REOPEN_HOLD) {
		bm_later_done(&r->later, rq, -ENOTCONN);
	} else if (r->stage != UP && r->status.gave_up) {
		bm_later_done(&r->later, rq, -EIO);
	} else {
		bm_list_append(&r->waiting, &rq->link);
		bm_reopen_send_waiting(r);
	}
}

/* The loss */

static void give_up(struct bm_timer *timer)
{
	struct reopen *r = bm_container(timer, struct reopen, timeout_timer);

	if (r->stage == UP || r->status.gave_up)
		return;
	r->status.gave_up = true;
	fail_waiting(r, -EIO);
	r->host->event(r->arg);
}

void bm_reopen_set_timeout_timer(struct reopen *r)
{
	uint64_t end = r->status.since + r->timeout;

	if (r->timeout == UINT64_MAX || r->stage == UP)
		bm_timer_clear(r->dev.loop, &r->timeout_timer);
	else
		(void)bm_timer_set(r->dev.loop, &r->timeout_timer, end);
}

static void lose(struct reopen *r)
{
	r->stage = ENDING;
	r->status.lost = true;
	r->status.since = bm_loop_now(r->dev.loop);
	r->status.losses++;
	r->status.attempts = 0;
	r->status.gave_up = !r->timeout;
	snprintf(r->status.why, sizeof(r->status.why), "the connection was lost");
	/* What is not kept may be forgotten: nobody shall be told that it is durable. */
	if (r->gap)
		r->latched = -EIO;
	bm_dev_cancel(r->inner);
	bm_reopen_set_timeout_timer(r);
	if (r->status.gave_up)
		fail_waiting(r, -EIO);
	r->host->event(r->arg);
}

/*
 * Something ended: the next stage, when nothing of this one is in flight. From the loop, never from
 * inside a completion: the device inside is closed here.
 */
static void run_next(struct bm_task *task)
{
	struct reopen *r = bm_container(task, struct reopen, next);

	if (r->stage == UP)
		bm_reopen_send_waiting(r);
	bm_reopen_come_back(r);
	if (r->in_flight)
		return;
	if (r->closing) {
		r->dev.ops->close(&r->dev);
	} else if (r->stage == ENDING || (r->failed && r->stage >= CHECKING)) {
		bm_dev_close(r->inner);
		r->inner = NULL;
		bm_reopen_wait_for_attempt(r);
	}
}

void bm_reopen_go_on(struct reopen *r)
{
	bm_loop_soon(r->dev.loop, &r->next);
}

/* The device */

void bm_reopen_set_role(struct bm_dev *dev, enum bm_reopen_role role)
{
	struct reopen *r = bm_container(dev, struct reopen, dev);
	enum bm_reopen_role before = r->role;

	if (role == before)
		return;
	r->role = role;
	if (before == BM_REOPEN_HOLD || role == BM_REOPEN_FAIL) {
		bm_unflushed_clear(&r->unflushed);
		r->latched = 0;
	}
	if (before != BM_REOPEN_READY)
		open_gap(r);
	if (role == BM_REOPEN_HOLD && r->gap)
		flush_ourselves(r);
	if (role == BM_REOPEN_HOLD && r->stage == WAITING)
		bm_reopen_wait_for_attempt(r);
	if (before != BM_REOPEN_HOLD || r->stage == UP)
		return;
	/* It is lost, and nobody waits for it any more. */
	fail_waiting(r, -ENOTCONN);
	bm_timer_clear(r->dev.loop, &r->attempt_timer);
	bm_timer_clear(r->dev.loop, &r->timeout_timer);
	if (r->stage >= CHECKING)
		bm_reopen_attempt_failed(r, "it is not waited for any more");
	bm_reopen_go_on(r);
}

void bm_reopen_set_timeout(struct bm_dev *dev, uint64_t ns)
{
	struct reopen *r = bm_container(dev, struct reopen, dev);

	r->timeout = ns;
	if (r->dev.loop)
		bm_reopen_set_timeout_timer(r);
}

void bm_reopen_get_status(const struct bm_dev *dev, struct bm_reopen_status *status)
{
	*status = bm_container(dev, struct reopen, dev)->status;
}

static void reopen_start(struct bm_dev *dev)
{
	struct reopen *r = bm_container(dev, struct reopen, dev);

	bm_later_init(&r->later, dev->loop);
	r->next.run = run_next;
	r->timeout_timer.run = give_up;
	/* A timer that was armed once never fails again. */
	set_timer_in(r, &r->attempt_timer, UINT32_MAX);
	set_timer_in(r, &r->timeout_timer, UINT32_MAX);
	bm_timer_clear(dev->loop, &r->attempt_timer);
	bm_timer_clear(dev->loop, &r->timeout_timer);
	bm_dev_start(r->inner, dev->loop);
	if (r->gap)
		flush_ourselves(r);
}

static void reopen_cancel(struct bm_dev *dev)
{
	struct reopen *r = bm_container(dev, struct reopen, dev);

	r->cancelled = true;
	fail_waiting(r, -ECANCELED);
	bm_timer_clear(dev->loop, &r->attempt_timer);
	bm_timer_clear(dev->loop, &r->timeout_timer);
	if (r->inner)
		bm_dev_cancel(r->inner);
}

/* Requests of our own may be in flight: then it lives until they have ended. */
static void reopen_close(struct bm_dev *dev)
{
	struct reopen *r = bm_container(dev, struct reopen, dev);

	if (dev->loop && r->in_flight) {
		r->closing = true;
		reopen_cancel(dev);
		return;
	}
	if (dev->loop) {
		bm_task_cancel(&r->next);
		bm_timer_clear(dev->loop, &r->attempt_timer);
		bm_timer_clear(dev->loop, &r->timeout_timer);
		bm_later_fini(&r->later);
	}
	bm_dev_close(r->inner);
	if (r->host)
		r->host->gone(r->arg);
	bm_unflushed_fini(&r->unflushed);
	free(r->buffers);
	free(r);
}

static const struct bm_dev_ops reopen_ops = {
	.name = "reopen",
	.start = reopen_start,
	.submit = reopen_submit,
	.cancel = reopen_cancel,
	.close = reopen_close,
};

int bm_reopen_new(struct bm_dev *inner, const struct bm_reopen_host *host, void *arg,
		  struct bm_dev **dev)
{
	struct reopen *r = calloc(1, sizeof(*r));
	int failed;

	if (!r)
		return -ENOMEM;
	r->dev.ops = &reopen_ops;
	r->dev.geometry = inner->geometry;
	r->timeout = UINT64_MAX;
	bm_list_init(&r->free);
	bm_list_init(&r->waiting);
	failed = bm_unflushed_init(&r->unflushed, inner->geometry.block);
	/* What is kept is kept by whole sectors. */
	r->dev.geometry.block = r->unflushed.unit;
	r->dev.geometry.max_transfer &= ~(r->unflushed.unit - 1);
	r->dev.geometry.max_zero &= ~(uint64_t)(r->unflushed.unit - 1);
	r->buffers =
		failed ? NULL : aligned_alloc(BM_BUF_ALIGN, HELPERS * (size_t)r->unflushed.page);
	if (!r->buffers) {
		r->dev.ops->close(&r->dev);
		return -ENOMEM;
	}
	r->inner = inner;
	r->host = host;
	r->arg = arg;
	bm_reopen_back_init(r);
	for (int i = 0; i < SLOTS; i++) {
		r->slot[i].reopen = r;
		r->slot[i].sub.done = slot_done;
		bm_list_append(&r->free, &r->slot[i].link);
	}
	*dev = &r->dev;
	return 0;
}
