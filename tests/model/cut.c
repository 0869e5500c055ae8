/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A copy as of one instant. What the authority holds at the cut, with all that is in flight to both
 * carried out, is what the copy must be, sector by sector, durably, when the engine says so, and
 * stay from then on, whatever is cut off or let go of.
 *
 * That is taken from the engine's own list of requests. So it is held against what the guest knows,
 * too (oracle_held()): no request that was answered before the cut is missing, and none is there
 * that was begun after it.
 */
#include "tests/model/world.h"

/* The one write that may be in flight on a sector decides what it is going to hold. */
static void expect(void)
{
	const struct fake_disk *a = disk_of(w.m->authority);

	w.copied.busy = false;
	for (int s = 0; s < SECTORS; s++)
		w.copied.expected[s] = a->current[s];
	bm_list_each(node, &w.m->running) {
		const struct op *op = bm_container(node, struct op, link);
		int first = (int)(op->rq->offset / SECTOR), n = (int)(op->rq->length / SECTOR);

		if (!op->both || op->state == OP_ABANDONED)
			continue;
		w.copied.busy = true;
		for (int i = 0; i < n; i++)
			w.copied.expected[first + i] =
				op->rq->op == BM_WRITE
					? sector_value(op->rq->data + (size_t)i * SECTOR)
					: 0;
	}
	w.copied.damaged = 0;
	for (int g = 0; g < GRANULES; g++)
		w.copied.damaged |= (uint8_t)(is_damaged(g) << g);
	w.copied.disk = other(w.m) ^ w.base;
	w.copied.clock = oracle_now(&oracle);
	trace("CUT of disk %d%s", w.copied.disk, w.copied.busy ? ", writes in flight" : "");
}

/* Somebody changed it behind the engine's back, and nobody compared. */
static bool was_damaged(int s)
{
	return w.copied.damaged >> s * SECTOR / GRANULE & 1;
}

static void check_copy(const char *when)
{
	const struct fake_disk *d = &w.disk[w.copied.disk];

	for (int s = 0; s < SECTORS; s++)
		if (d->current[s] != w.copied.expected[s] && !was_damaged(s))
			violation("%s: sector %d of the copy holds %d, and held %d at the cut",
				  when, s, d->current[s], w.copied.expected[s]);
	if (!fake_disk_durable(d))
		violation("%s: the copy is not durable", when);
}

static void look(void)
{
	if (w.m->stats.cuts == w.copied.number)
		return;
	w.copied.number = w.m->stats.cuts;
	w.copied.done = false;
	if (w.copied.number)
		expect();
}

static void done(void *arg, int error)
{
	const struct fake_disk *d;

	(void)arg;
	trace("cut: %d", error);
	if (error || !w.alive)
		return;
	look(); /* there may have been nothing to flush: then it was made just now */
	d = &w.disk[w.copied.disk];
	check_copy("the copy is done");
	for (int s = 0; s < SECTORS; s++)
		if (!was_damaged(s) && !oracle_held(&oracle, w.copied.clock, s, d->current[s]))
			violation("sector %d of the copy holds %d, which no guest could have found "
				  "at the cut",
				  s, d->current[s]);
	total.copies++;
	total.copies_busy += w.copied.busy;
	total.copies_again += w.m->stats.cuts > w.copied.before + 1;
	total.copies_late += w.m->map.dirty.count != 0;
	w.copied.done = true;
	if (w.draining || fate() % 2)
		bm_mirror_detach(w.m);
}

void cut_ask(void)
{
	if (!bm_mirror_cut(w.m, done, NULL))
		w.copied.before = w.m->stats.cuts;
}

void cut_step(void)
{
	if (w.alive)
		look();
	if (w.copied.done)
		check_copy("later");
	if (w.alive && w.m->cut.state == CUT_DONE && (w.draining || fate() % 50 == 0))
		bm_mirror_detach(w.m);
}

/* The other side is made equal again. */
void cut_over(void)
{
	w.copied.done = false;
	w.copied.number = 0;
}
