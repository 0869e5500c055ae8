/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The cut: the other side becomes what the disk was at one instant, and stays that. It is how a
 * copy of a disk that goes on is made. No guest request waits for it, or is held.
 *
 *   WAIT   until both are in sync, and again whenever something interferes before DONE
 *   DRAIN  the cut is made. What was sent to both before ends on both; what comes after goes to the
 *          authority alone, and makes its granules dirty. Nothing is copied.
 *   FLUSH  all that was sent has ended, and the other side is flushed
 *   DONE   it is durable; the host was told, and lets go of the other side
 *
 * Why that is a point in the order of the guest's requests: a request that the guest makes after
 * the answer to another one is sent after that one, and what overlaps is sent one after the other
 * (dev/order.c). So what was sent before one instant lacks nothing that something in it was to come
 * after. In sync, all that is in flight was sent to both, whole.
 *
 * What becomes dirty by anything else than a write after the cut is a broken leg, a lost session, a
 * difference: then the other side is no such copy, and all begins again in WAIT.
 */
#include <errno.h>

#include "blockmirror/mirror/engine.h"

/* Writes that were sent to both; in sync, those that were sent before the cut. */
static bool mirrored_in_flight(const struct bm_mirror *m)
{
	bm_list_each(node, &m->running)
		if (bm_container(node, struct op, link)->both)
			return true;
	return false;
}

static void make(struct bm_mirror *m)
{
	m->cut.state = CUT_DRAIN;
	m->stats.cuts++;
	m->stats.cut_at = bm_loop_now(m->loop);
	copy_end_hold(m);
	mirror_tell(m, BM_MIRROR_CUT);
}

void cut_run(struct bm_mirror *m)
{
	/* A flush that is under way first: it could take longer than all the rest. */
	if (m->flusher.active)
		return;
	if (m->cut.state == CUT_WAIT && m->phase == PHASE_IDLE && !m->paused && mirror_in_sync(m))
		make(m);
	if (m->cut.state == CUT_DRAIN && !mirrored_in_flight(m)) {
		m->cut.state = CUT_FLUSH;
		if (flush_other_needed(m))
			flush_start(m);
		else /* nothing was written to it since */
			cut_flushed(m, true);
	}
}

static void answer(struct bm_mirror *m, int error)
{
	void (*done)(void *arg, int error) = m->cut.done;

	m->cut.done = NULL;
	if (done)
		done(m->cut.arg, error);
}

void cut_flushed(struct bm_mirror *m, bool good)
{
	if (m->cut.state != CUT_FLUSH)
		return;
	if (!good) {
		cut_spoiled(m);
		return;
	}
	m->cut.state = CUT_DONE;
	answer(m, 0);
}

void cut_spoiled(struct bm_mirror *m)
{
	if (m->cut.state != CUT_DRAIN && m->cut.state != CUT_FLUSH)
		return;
	m->cut.state = CUT_WAIT;
	mirror_kick(m);
}

void cut_forget(struct bm_mirror *m)
{
	m->cut.state = CUT_NONE;
	answer(m, -ECANCELED);
}

int bm_mirror_cut(struct bm_mirror *m, void (*done)(void *arg, int error), void *arg)
{
	if (m->link == LINK_NONE || m->link == LINK_LEAVING)
		return -ENOTCONN;
	/* What it lost then no later flush makes good. */
	if (m->doubted >> other(m) & 1)
		return -EINVAL;
	if (m->cut.state != CUT_NONE || m->phase != PHASE_IDLE)
		return -EBUSY;
	m->cut.state = CUT_WAIT;
	m->cut.done = done;
	m->cut.arg = arg;
	mirror_kick(m);
	return 0;
}

void bm_mirror_cut_end(struct bm_mirror *m)
{
	m->cut.state = CUT_NONE;
	m->cut.done = NULL;
	mirror_kick(m);
}
