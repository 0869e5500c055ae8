/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The other side comes back: is it the one that was here, and are its old requests over?
 *
 * Is it the one? What is clean was flushed there, and nobody but us writes to it: a sample of it is
 * compared before anything is sent (check.c). The sample is spread over the disk, and has of what
 * was flushed last, so that neither another image nor an older state of the right one passes. What
 * a restarted server may rightly have forgotten is dirty, and not compared.
 *
 * Are they over? A device with BM_DEV_FENCED says so. Of others nothing is known but that requests
 * were in flight when the session was cut: these ranges are in quarantine. They are copied like
 * all that is dirty; but an old write may land on top, so they are read back and compared when it
 * has had its time (grace), and are not equal, settled or fit for a switch before that.
 */
#include <errno.h>

#include "blockmirror/mirror/engine.h"

enum { SPREAD = 256, PER_FLUSH = 16 };

/* In quarantine */

static void quarantine(struct bm_mirror *m, const struct bm_request *rq)
{
	uint64_t g = rq->offset >> m->granule_shift;
	uint64_t last = (rq->offset + rq->length - 1) >> m->granule_shift;

	for (; g <= last; g++) {
		bm_bitmap_set(&m->map.quarantine, g);
		mirror_mark_dirty(m, g);
	}
}

void again_cut(struct bm_mirror *m)
{
	int side = other(m);

	bm_list_each(node, &m->running) {
		const struct op *op = bm_container(node, struct op, link);
		const struct mirror_leg *leg = &op->leg[side];

		if (op->writes && leg->used && !leg->ended)
			quarantine(m, &leg->rq);
	}
	bm_list_each(copying, &m->copies) {
		const struct copy *c = bm_container(copying, struct copy, link);

		if (c->rq.op != BM_READ)
			quarantine(m, &c->rq);
	}
	/* What was not read back yet is as doubtful as before. */
	bm_bitmap_each(g, &m->map.quarantine)
		mirror_mark_dirty(m, g);
}

void again_resumed(struct bm_mirror *m)
{
	bm_bitmap_each(g, &m->map.dirty)
		bm_bitmap_set(&m->map.quarantine, g);
}

static void grace_over(struct bm_timer *timer)
{
	struct bm_mirror *m = bm_container(timer, struct bm_mirror, grace_timer);

	m->grace = false;
	mirror_kick(m);
}

/* A server that was stopped has done nothing meanwhile: its time begins when it answers again. */
static void begin_grace(struct bm_mirror *m)
{
	if (m->side[other(m)]->geometry.flags & BM_DEV_FENCED)
		bm_bitmap_clear_all(&m->map.quarantine);
	m->grace = m->map.quarantine.count;
	if (m->grace)
		(void)bm_timer_set(m->loop, &m->grace_timer,
				   bm_loop_now(m->loop) + m->config.grace);
}

/* The sample */

void again_flushed(struct bm_mirror *m)
{
	const struct bm_bitmap *set = &m->map.closed;
	uint64_t step = m->map.granules / PER_FLUSH + 1, at = 0;

	for (int i = 0; i < PER_FLUSH && set->count; i++) {
		uint64_t g = bm_bitmap_next(set, at);

		if (g == BM_BITMAP_NONE)
			return;
		m->recent[m->recents++ % RECENT] = g;
		at = g + 1 > at + step ? g + 1 : at + step;
		if (at >= m->map.granules)
			return;
	}
}

static uint64_t scatter(uint64_t n)
{
	n *= 0x9e3779b97f4a7c15u;
	return n ^ n >> 29;
}

static void choose_sample(struct bm_mirror *m)
{
	uint64_t all = m->map.granules, step = all / SPREAD + 1;
	uint64_t salt = m->session + bm_loop_now(m->loop);
	unsigned recents = m->recents < RECENT ? m->recents : RECENT;

	bm_bitmap_clear_all(&m->map.sample);
	for (unsigned i = 0; i < recents; i++)
		if (!bm_bitmap_test(&m->map.dirty, m->recent[i]))
			bm_bitmap_set(&m->map.sample, m->recent[i]);
	for (uint64_t from = 0; from < all; from += step) {
		uint64_t to = from + step < all ? from + step : all;
		/* The first granules are hardly ever alike on two disks. */
		uint64_t g = from ? from + scatter(salt + from) % (to - from) : 0;

		g = bm_bitmap_next_clear(&m->map.dirty, g, to);
		if (g < to)
			bm_bitmap_set(&m->map.sample, g);
	}
}

/* All of the sample is equal, or was written to since and is dirty. */
void again_proven(struct bm_mirror *m)
{
	m->link = LINK_UP;
	m->tracking = false;
	mirror_changed(m);
	mirror_tell(m, BM_MIRROR_BACK);
}

/* It is another one: nothing is sent to it. Once told, it is the host's to let it go. */
void again_foreign(struct bm_mirror *m, uint64_t offset)
{
	if (m->foreign)
		return;
	m->foreign = true;
	m->stats.foreign_offset = offset;
	mirror_tell(m, BM_MIRROR_FOREIGN);
}

int bm_mirror_reattach(struct bm_mirror *m, struct bm_dev *target)
{
	if (m->link != LINK_GONE)
		return -ENOTCONN;
	if (!mirror_fits_target(m, target))
		return -EINVAL;
	mirror_take_target(m, target, LINK_PROVING);
	m->foreign = false;
	begin_grace(m);
	choose_sample(m);
	return 0;
}

void again_init(struct bm_mirror *m)
{
	m->grace_timer.run = grace_over;
}
