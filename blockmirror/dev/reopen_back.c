/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The way back of a device that is opened again: attempts, whether what answers is what was there
 * before, and writing again what it may have forgotten. All by requests of our own; nothing of the
 * guest's is in flight meanwhile.
 */
#include <stdio.h>
#include <string.h>

#include "blockmirror/base/list.h"
#include "blockmirror/dev/reopen_inside.h"

enum { BACKOFF_SHIFT_MAX = 5 };
#define BACKOFF 100000000ull /* ns, doubled with each try */

static void say(struct reopen *r, const char *why)
{
	snprintf(r->status.why, sizeof(r->status.why), "%s", why);
}

static void attempt(struct bm_timer *timer)
{
	struct reopen *r = bm_container(timer, struct reopen, attempt_timer);

	r->stage = OPENING;
	r->host->open(r->arg);
}

void bm_reopen_wait_for_attempt(struct reopen *r)
{
	unsigned n = r->status.attempts++;
	uint64_t wait = 0; /* the first time */

	r->stage = WAITING;
	if (r->role != BM_REOPEN_HOLD || r->cancelled)
		return;
	if (n)
		wait = BACKOFF << (n < BACKOFF_SHIFT_MAX ? n - 1 : BACKOFF_SHIFT_MAX - 1);
	(void)bm_timer_set(r->dev.loop, &r->attempt_timer, bm_loop_now(r->dev.loop) + wait);
}

void bm_reopen_attempt_failed(struct reopen *r, const char *why)
{
	if (!r->failed)
		say(r, why);
	if (!r->failed && r->inner)
		bm_dev_cancel(r->inner);
	r->failed = true;
}

/* Whether the device that came back has what the one before had. */
static bool fits(struct reopen *r, const struct bm_geometry *g)
{
	const struct bm_geometry *own = &r->dev.geometry;

	if (g->size != own->size)
		say(r, "it came back with another size: it is not what was there before");
	else if (g->flags & ~own->flags & BM_DEV_READ_ONLY)
		say(r, "it came back read-only");
	else if (g->block > own->block || g->max_transfer < own->max_transfer ||
		 g->max_zero < own->max_zero)
		say(r, "it came back with narrower limits for requests");
	else
		return true;
	return false;
}

void bm_reopen_opened(struct bm_dev *dev, struct bm_dev *inner, const char *why)
{
	struct reopen *r = bm_container(dev, struct reopen, dev);

	if (!inner)
		say(r, why);
	if (!inner || !fits(r, &inner->geometry) || r->cancelled || r->role != BM_REOPEN_HOLD) {
		bm_dev_close(inner);
		bm_reopen_wait_for_attempt(r);
		return;
	}
	r->inner = inner;
	bm_dev_start(inner, r->dev.loop);
	r->stage = CHECKING;
	r->failed = false;
	r->checked = 0;
	bm_reopen_go_on(r);
}

static void helper_done(struct bm_request *rq, int error);

static void help(struct helper *h, enum bm_op op, uint64_t offset, uint64_t length, uint8_t *data)
{
	h->rq.op = op;
	h->rq.offset = offset;
	h->rq.length = length;
	h->rq.data = data;
	h->rq.done = helper_done;
	h->busy = true;
	h->reopen->in_flight++;
	bm_submit(h->reopen->inner, &h->rq);
}

static void check_next(struct helper *h)
{
	struct reopen *r = h->reopen;

	while (r->checked < UNFLUSHED_SAMPLES && !r->unflushed.sample[r->checked].used)
		r->checked++;
	if (r->checked == UNFLUSHED_SAMPLES)
		return;
	h->sample = &r->unflushed.sample[r->checked++];
	help(h, BM_READ, h->sample->number * r->unflushed.page, r->unflushed.page, h->buffer);
}

static void rewrite_next(struct helper *h)
{
	struct reopen *r = h->reopen;
	uint64_t offset, length;
	uint8_t *data;

	for (;;) {
		if (h->page &&
		    bm_unflushed_run(&r->unflushed, h->page, &h->from, &data, &offset, &length)) {
			r->status.rewritten += length;
			help(h, BM_WRITE, offset, length, data);
			return;
		}
		h->page = NULL;
		h->from = 0;
		if (!r->rewritten)
			return;
		h->page = r->rewritten;
		r->rewritten =
			h->page->link.next == &r->unflushed.list
				? NULL
				: bm_container(h->page->link.next, struct unflushed_page, link);
	}
}

static void helper_done(struct bm_request *rq, int error)
{
	struct helper *h = bm_container(rq, struct helper, rq);
	struct reopen *r = h->reopen;
	char why[120];

	h->busy = false;
	r->in_flight--;
	if (error) {
		snprintf(why, sizeof(why), "%s: %s",
			 r->stage == CHECKING ? "it was there, and could not be read"
					      : "it does not take again what it had: writing",
			 strerror(-error));
		bm_reopen_attempt_failed(r, why);
	} else if (r->stage == CHECKING && !r->failed &&
		   !bm_unflushed_same(h->sample, h->buffer, r->unflushed.page)) {
		bm_reopen_attempt_failed(
			r, "it came back with other content: it is not what was there before, "
			   "or it has lost what was flushed; nothing was written to it");
	}
	bm_reopen_go_on(r);
}

static void help_all(struct reopen *r, void (*next)(struct helper *h))
{
	for (int i = 0; i < HELPERS && !r->failed; i++)
		if (!r->helper[i].busy)
			next(&r->helper[i]);
}

static void begin_rewriting(struct reopen *r)
{
	r->stage = REWRITING;
	r->rewritten = bm_list_empty(&r->unflushed.list)
			       ? NULL
			       : bm_container(r->unflushed.list.next, struct unflushed_page, link);
	for (int i = 0; i < HELPERS; i++)
		r->helper[i].page = NULL;
}

static void back(struct reopen *r)
{
	r->stage = UP;
	r->status.lost = r->status.gave_up = false;
	bm_reopen_set_timeout_timer(r);
	r->host->event(r->arg);
	bm_reopen_send_waiting(r);
}

void bm_reopen_come_back(struct reopen *r)
{
	if (r->stage == CHECKING)
		help_all(r, check_next);
	if (r->stage == CHECKING && !r->in_flight && !r->failed)
		begin_rewriting(r);
	if (r->stage == REWRITING)
		help_all(r, rewrite_next);
	if (r->stage == REWRITING && !r->in_flight && !r->failed)
		back(r);
}

void bm_reopen_back_init(struct reopen *r)
{
	r->attempt_timer.run = attempt;
	for (int i = 0; i < HELPERS; i++) {
		r->helper[i].reopen = r;
		r->helper[i].buffer = r->buffers + (size_t)i * r->unflushed.page;
	}
}
