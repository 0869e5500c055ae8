// SPDX-License-Identifier: BSD-3-Clause
/*
 * A precopy's life, and the two states of a guest that was stopped. PAUSED: every way out of it but
 * the order to release leads through bm_precopy_end(), which lets the guest run. RELEASED: nothing
 * but an order touches it; the pipe is closed, the timers are off, a dropped connection is nothing.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/ram/precopy_inside.h"

static const char *const names[] = {"running",  "copying", "pausing",   "paused",
				    "released", "waiting", "receiving", "loaded"};

const char *bm_precopy_state_name(enum bm_precopy_state state)
{
	return (unsigned)state < sizeof(names) / sizeof(*names) ? names[state] : "unknown";
}

enum bm_precopy_state bm_precopy_state(const struct bm_precopy *p)
{
	return p->state;
}

void bm_precopy_tell(struct bm_precopy *p)
{
	if (p->rpc)
		bm_rpc_notify(p->rpc, "precopy", bm_precopy_status(p));
}

void bm_precopy_enter(struct bm_precopy *p, enum bm_precopy_state state)
{
	p->state = state;
	bm_precopy_tell(p);
}

void bm_precopy_close_pipe(struct bm_precopy *p)
{
	bm_pipe_close(p->pipe);
	p->pipe = NULL;
}

/* The source stops copying; the guest is left as it is. */
static void stop_copying(struct bm_precopy *p)
{
	bm_precopy_close_pipe(p);
	bm_task_cancel(&p->step);
	bm_timer_clear(p->loop, &p->rest);
	bm_timer_clear(p->loop, &p->limit);
	p->tracker->ops->stop(p->tracker);
	bm_cap_close(p->cap);
	p->cap = NULL;
}

void bm_precopy_run_on(struct bm_precopy *p)
{
	if (p->rule.throttle && p->ops->throttle)
		p->ops->throttle(p->arg, 0);
	p->rule.throttle = 0;
	p->ending = false;
}

void bm_precopy_end(struct bm_precopy *p, const struct bm_error *why)
{
	enum bm_precopy_state state = p->state;

	if (state != BM_PRECOPY_COPYING && state != BM_PRECOPY_PAUSING &&
	    state != BM_PRECOPY_PAUSED)
		return;
	if (why)
		p->error = *why;
	stop_copying(p);
	p->ending = state == BM_PRECOPY_PAUSING;
	if (p->ending)
		return;
	bm_precopy_run_on(p);
	if (state == BM_PRECOPY_PAUSED)
		p->ops->resume(p->arg);
	bm_precopy_enter(p, BM_PRECOPY_RUNNING);
}

void bm_precopy_release(struct bm_precopy *p)
{
	stop_copying(p);
	bm_precopy_enter(p, BM_PRECOPY_RELEASED);
	if (p->ops->released)
		p->ops->released(p->arg);
}

/* In the loop, after bm_precopy_paused(). */
static void paused(struct bm_task *task)
{
	struct bm_precopy *p = bm_container(task, struct bm_precopy, paused);
	int result = atomic_load(&p->paused_result);
	struct bm_error error;

	if (p->state != BM_PRECOPY_PAUSING)
		return;
	if (result < 0) {
		p->state = BM_PRECOPY_COPYING; /* it was not stopped: nothing is to be resumed */
		if (!p->ending)
			bm_fail_errno(&error, result, "the machine cannot be stopped");
		bm_precopy_end(p, p->ending ? NULL : &error);
		return;
	}
	p->state = BM_PRECOPY_PAUSED;
	if (p->ending) {
		bm_precopy_end(p, NULL);
		return;
	}
	bm_precopy_tell(p);
	bm_precopy_last_round(p);
}

void bm_precopy_paused(struct bm_precopy *p, int result)
{
	atomic_store(&p->paused_result, result);
	bm_loop_post(p->loop, &p->paused);
}

static void pause_too_long(struct bm_timer *timer)
{
	struct bm_precopy *p = bm_container(timer, struct bm_precopy, limit);
	struct bm_error error;

	bm_fail(&error, BM_E_BUDGET,
		"the machine was stopped for %llu ms and not released: it runs on here",
		(unsigned long long)(p->pause_limit / 1000000));
	bm_precopy_end(p, &error);
}

/* Who gave the order to move has gone. LOADED waits for him, or for who comes in his place. */
static void dropped(struct bm_task *task)
{
	struct bm_precopy *p = bm_container(task, struct bm_precopy, dropped);
	struct bm_error error;

	bm_fail(&error, BM_E_UNREACHABLE, "the control connection that ordered the move has ended");
	if (p->state == BM_PRECOPY_RECEIVING) {
		p->error = error;
		bm_precopy_close_pipe(p);
		bm_precopy_enter(p, BM_PRECOPY_WAITING);
		return;
	}
	bm_precopy_end(p, &error);
}

void bm_precopy_dirty(struct bm_precopy *p, unsigned region, uint64_t offset, uint64_t length)
{
	uint64_t first = offset / BM_RAM_PAGE,
		 end = (offset + length + BM_RAM_PAGE - 1) / BM_RAM_PAGE;
	uint64_t pages =
		region < p->machine.count ? p->machine.regions[region].size / BM_RAM_PAGE : 0;

	for (uint64_t page = first; page < end && page < pages; page++)
		atomic_fetch_or(&p->extra[region][page / 64], 1ull << page % 64);
}

static int make_bits(struct bm_precopy *p)
{
	for (unsigned i = 0; i < p->machine.count; i++) {
		uint64_t words = bm_ram_words(p->machine.regions[i].size);

		p->bits[i] = calloc(words, sizeof(uint64_t));
		p->extra[i] = calloc(words, sizeof(uint64_t));
		if (!p->bits[i] || !p->extra[i])
			return -ENOMEM;
	}
	return 0;
}

int bm_precopy_new(struct bm_loop *loop, const struct bm_precopy_machine *machine,
		   const struct bm_precopy_ops *ops, void *arg, struct bm_tracker *tracker,
		   bool incoming, struct bm_precopy **out, struct bm_error *error)
{
	struct bm_precopy *p;
	int r = bm_ram_check(machine->regions, machine->count, error);

	if (r < 0)
		return r;
	p = calloc(1, sizeof(*p));
	if (!p)
		return bm_fail_errno(error, ENOMEM, "precopy");
	p->loop = loop;
	p->machine = *machine;
	p->ops = ops;
	p->arg = arg;
	p->state = incoming ? BM_PRECOPY_WAITING : BM_PRECOPY_RUNNING;
	p->step.run = bm_precopy_step;
	p->rest.run = bm_precopy_rested;
	p->limit.run = pause_too_long;
	p->paused.run = paused;
	p->dropped.run = dropped;
	r = make_bits(p);
	if (!r)
		r = bm_rpc_new(loop, bm_precopy_methods, p, &p->rpc);
	if (r < 0) {
		bm_precopy_free(p);
		return bm_fail_errno(error, r, "precopy");
	}
	p->tracker = tracker;
	*out = p;
	return 0;
}

int bm_precopy_listen(struct bm_precopy *p, const char *path, struct bm_error *error)
{
	return bm_rpc_listen(p->rpc, path, error);
}

void bm_precopy_free(struct bm_precopy *p)
{
	if (!p)
		return;
	if (p->tracker)
		stop_copying(p);
	bm_rpc_free(p->rpc);
	bm_task_cancel(&p->dropped);
	bm_tracker_free(p->tracker);
	for (unsigned i = 0; i < p->machine.count; i++) {
		free(p->bits[i]);
		free((void *)p->extra[i]);
	}
	free(p);
}
