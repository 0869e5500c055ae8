/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Images move, some at a time. Room is looked at anew before each one begins: others write to the
 * same stores, and a copy may become larger than its image was. One that fails stops no other.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "blockmirror/base/memory.h"
#include "blockmirror/cli/cli.h"
#include "blockmirror/cli/drain.h"

#define STEP 150000000l /* ns */

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
	(void)number;
	interrupted = 1;
}

static void no_room(struct drain *d, size_t which)
{
	struct drain_image *image = &d->image[which];

	if (image->why.code)
		return;
	bm_fail(&image->why, BM_E_ENOSPC,
		d->plan.items[which].wanted < 0
			? "no target has the room for it, and what it keeps free"
			: "%s has not the room for it, and what it keeps free",
		d->plan.items[which].wanted < 0 ? "" : d->to[d->plan.items[which].wanted].path);
}

static void ended(struct drain *d, size_t which)
{
	plan_end(&d->plan, which);
	tell_over(d, &d->image[which]);
}

/* It goes where the plan said if that is so still. A store may have become full since. */
static void begin(struct drain *d, size_t which)
{
	struct plan_item *item = &d->plan.items[which];
	struct drain_image *image = &d->image[which];
	struct bm_error error;

	if (!drain_measure(d, &error) &&
	    d->plan.stores[d->plan.stores[item->store].pool].room < item->need)
		item->store = plan_pick(&d->plan, item->need, item->wanted);
	if (item->store < 0) {
		no_room(d, which);
		ended(d, which);
		return;
	}
	if (drain_move_begin(d, which) < 0) {
		ended(d, which);
		return;
	}
	plan_begin(&d->plan, which);
	tell_begun(d, image);
}

static void share_rate(struct drain *d)
{
	if (!d->rate || !d->plan.running)
		return;
	for (size_t i = 0; i < d->n; i++)
		if (d->plan.items[i].state == PLAN_RUNS)
			drain_move_rate(&d->image[i], d->rate / d->plan.running);
}

/* What is not over, and will be. */
static bool is_ahead(const struct drain *d, size_t which)
{
	const struct plan_item *item = &d->plan.items[which];

	return item->state == PLAN_RUNS || (item->state == PLAN_WAITS && item->store >= 0);
}

static bool shows(const struct drain *d, size_t clone, size_t which)
{
	return d->image[clone].backing && !strcmp(d->image[clone].backing, d->image[which].path);
}

static bool same_qemu(const struct drain *d, size_t one, size_t other)
{
	return d->image[one].qmp && d->image[other].qmp &&
	       !strcmp(d->image[one].qmp, d->image[other].qmp);
}

/*
 * After the plan was made: of one QEMU, whose monitor serves one at a time, one drive goes after
 * the other; what shows through clones goes after them.
 */
static void hold_some(struct drain *d)
{
	for (size_t i = 0; i < d->n; i++)
		for (size_t k = 0; k < d->n && d->plan.items[i].state == PLAN_WAITS; k++)
			if ((shows(d, k, i) && d->plan.items[k].state != PLAN_OVER) ||
			    (k < i && same_qemu(d, k, i) && is_ahead(d, k)))
				d->plan.items[i].state = PLAN_HELD;
}

/* Whether one stays that it shows through. */
static bool is_needed(struct drain *d, size_t which)
{
	for (size_t i = 0; i < d->n; i++)
		if (shows(d, i, which) && !d->image[i].moved) {
			bm_fail(&d->image[which].why, BM_E_LINKED,
				"it shows through %s, which stays", d->image[i].name);
			return true;
		}
	return false;
}

static bool is_held(const struct drain *d, size_t which, bool any_ahead)
{
	for (size_t i = 0; i < d->n; i++) {
		bool held = d->plan.items[i].state == PLAN_HELD && any_ahead;

		if ((shows(d, i, which) && (is_ahead(d, i) || held)) ||
		    (i != which && same_qemu(d, i, which) && is_ahead(d, i)))
			return true;
	}
	return false;
}

static void release_some(struct drain *d)
{
	bool any_ahead = false;

	for (size_t i = 0; i < d->n; i++)
		any_ahead |= is_ahead(d, i) ||
			     (d->plan.items[i].state == PLAN_HELD && !is_held(d, i, true));
	for (size_t i = 0; i < d->n; i++) {
		if (d->plan.items[i].state != PLAN_HELD || is_held(d, i, any_ahead))
			continue;
		if (is_needed(d, i)) {
			ended(d, i);
			continue;
		}
		d->plan.items[i].state = PLAN_WAITS;
		d->plan.begun = 0;
	}
}

static bool begin_some(struct drain *d)
{
	bool any = false;
	size_t which;

	release_some(d);
	while (bm_day_window_open(&d->window) && (which = plan_next(&d->plan)) < d->n) {
		begin(d, which);
		any = true;
	}
	return any;
}

/* It was there, and is so no more: another store may have room. */
static bool tries_again(struct drain *d, size_t which)
{
	struct plan_item *item = &d->plan.items[which];
	struct drain_image *image = &d->image[which];
	struct bm_error error;
	int other;

	if (image->why.code != BM_E_ENOSPC || item->wanted >= 0 || drain_measure(d, &error) < 0)
		return false;
	other = plan_pick(&d->plan, item->need, -1);
	if (other < 0 || other == item->store)
		return false;
	tell_over(d, image);
	image->why = (struct bm_error){0};
	plan_end(&d->plan, which);
	item->state = PLAN_WAITS;
	item->store = other;
	d->plan.begun = 0;
	return true;
}

static bool look_at_all(struct drain *d)
{
	bool any = false;

	for (size_t i = 0; i < d->n; i++) {
		if (d->plan.items[i].state != PLAN_RUNS || drain_move_look(d, i))
			continue;
		any = true;
		if (!tries_again(d, i))
			ended(d, i);
	}
	return any;
}

static bool waits(const struct drain *d)
{
	for (size_t i = 0; i < d->n; i++)
		if (is_ahead(d, i) || d->plan.items[i].state == PLAN_HELD)
			return true;
	return false;
}

static int leave(struct drain *d)
{
	tell_interrupted(d);
	for (size_t i = 0; i < d->n; i++)
		if (d->plan.items[i].state == PLAN_RUNS)
			drain_move_leave(d, &d->image[i]);
	return 130;
}

int drain_run(struct drain *d)
{
	const struct sigaction action = {.sa_handler = on_interrupt};
	const struct timespec step = {.tv_nsec = STEP};
	sigset_t ends, as_before;

	/* They come between our steps, and not while somebody is asked for something. */
	sigemptyset(&ends);
	sigaddset(&ends, SIGINT);
	sigaddset(&ends, SIGTERM);
	sigprocmask(SIG_BLOCK, &ends, &as_before);
	sigdelset(&as_before, SIGINT);
	sigdelset(&as_before, SIGTERM);
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	hold_some(d);
	while (waits(d)) {
		bool changed = begin_some(d);

		tell_progress(d);
		tell_far(d);
		ppoll(NULL, 0, &step, &as_before);
		if (interrupted)
			return leave(d);
		changed |= look_at_all(d);
		if (changed)
			share_rate(d);
	}
	for (size_t i = 0; i < d->n; i++)
		if (d->plan.items[i].state == PLAN_WAITS && !d->balances)
			no_room(d, i);
	return tell_summary(d);
}
