/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Flushes: what was written becomes settled when both sides have flushed it.
 *
 * The other side is flushed by us: now and then while mirroring, for a switchover, and for a cut,
 * one at a time. A failure makes all that is unstable dirty, and is never tried again in the hope
 * of a better answer: the next flush would not report what this one lost.
 *
 * The authority is flushed by the guest alone, and we watch. A flush of our own could meet an
 * error that the kernel reports only once: the guest's next flush would succeed and lie. And it
 * would cost the guest. Where nothing was written since the guest's last flush, none is needed.
 */
#include <assert.h>
#include <errno.h>

#include "blockmirror/mirror/engine.h"

/* The other side */

static void settle(struct bm_mirror *m);

static void flushed(struct bm_request *rq, int error)
{
	struct flusher *f = bm_container(rq, struct flusher, rq);
	struct bm_mirror *m = bm_container(f, struct bm_mirror, flusher);
	bool same = f->session == m->session && m->link == LINK_UP;

	mirror_received(m, f->side);
	f->active = false;
	f->took = bm_loop_now(m->loop) - f->started;
	m->stats.flushes++;
	if (same && error) {
		mirror_lose(m, error);
	} else if (same) {
		again_flushed(m);
		bm_map_move(&m->map.flushed, &m->map.closed);
		if (m->authority_written == m->authority_flushed)
			bm_map_settle(&m->map, &m->map.flushed);
	}
	switch_flushed(m, same && !error);
	cut_flushed(m, same && !error);
	settle(m);
	mirror_kick(m);
}

bool flush_start(struct bm_mirror *m)
{
	struct flusher *f = &m->flusher;

	assert(m->link == LINK_UP);
	if (f->active)
		return false;
	f->active = true;
	f->side = other(m);
	f->session = m->session;
	f->started = bm_loop_now(m->loop);
	f->dirtied = m->dirtied;
	bm_map_move(&m->map.closed, &m->map.open);
	mirror_send(m, f->side, &f->rq);
	return true;
}

/* In a switchover the flushes are its own. */
static void flush_periodic(struct bm_timer *timer)
{
	struct bm_mirror *m = bm_container(timer, struct bm_mirror, flusher.timer);

	(void)bm_timer_set(m->loop, timer, bm_loop_now(m->loop) + m->config.flush_every);
	if (m->link == LINK_UP && m->phase <= PHASE_WAIT && !m->full && m->map.open.count)
		flush_start(m);
}

/* What the other side has not flushed yet is flushed beside the authority, and not after it. */
static void settle(struct bm_mirror *m)
{
	if (bm_loop_now(m->loop) < m->settles && m->link == LINK_UP && m->phase == PHASE_IDLE &&
	    !m->full && !m->flusher.active && m->map.open.count)
		flush_start(m);
}

void bm_mirror_settle(struct bm_mirror *m, uint64_t ns)
{
	m->settles = bm_loop_now(m->loop) + ns;
	settle(m);
}

bool bm_mirror_authority_flushed(const struct bm_mirror *m)
{
	return m->authority_written == m->authority_flushed;
}

bool flush_other_needed(const struct bm_mirror *m)
{
	return m->map.open.count || m->map.closed.count;
}

void flush_init(struct bm_mirror *m)
{
	m->flusher.timer.run = flush_periodic;
	m->flusher.rq.op = BM_FLUSH;
	m->flusher.rq.done = flushed;
	/* What an earlier process wrote, and did not flush, is not known. */
	m->authority_written = 1;
}

/* The authority */

void flush_guest_sent(struct bm_mirror *m, struct op *op)
{
	op->written = m->authority_written;
	settle(m);
	if (m->covering || m->link == LINK_NONE || !m->map.flushed.count)
		return;
	m->covering = op;
	bm_map_move(&m->map.covered, &m->map.flushed);
}

void flush_guest_done(struct bm_mirror *m, struct op *op, bool good)
{
	bool covers = m->covering == op;

	if (covers)
		m->covering = NULL;
	/* What it was to make durable no later flush will (the kernel counts it as written back).
	 */
	if (!good) {
		if (!m->doubtful)
			mirror_tell(m, BM_MIRROR_DOUBTFUL);
		m->doubtful = true;
		m->doubted |= 1u << op->authority;
	}
	if (good && op->authority == m->authority && op->written > m->authority_flushed)
		m->authority_flushed = op->written;
	if (!covers || m->link == LINK_NONE)
		return;
	if (good)
		bm_map_settle(&m->map, &m->map.covered);
	else
		bm_map_move(&m->map.open, &m->map.covered);
}

void flush_roles_changed(struct bm_mirror *m)
{
	m->covering = NULL;
	m->authority_written++;
	bm_map_move(&m->map.open, &m->map.flushed);
	bm_map_move(&m->map.open, &m->map.covered);
}
