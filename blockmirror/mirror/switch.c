/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The switchover: authority passes to the other side while the guest goes on.
 *
 *   WAIT   until both are in sync, and again whenever something interferes before REC
 *   PRE    flushes of the other side, at most two, so that the next one is short
 *   DRAIN  from here on FUA and FLUSH of the guest go to both. Ends when no FUA that went out plain
 *          before is in flight: its data would not be covered by the flush that counts.
 *   FLUSH  the flush that counts: it does only if nothing became dirty since its submission
 *   REC    the record "generation n+1: the other side" is being written. From here until
 *          authority is settled an answer needs both sides (write.c).
 *   ABORT  something failed in REC, or the record's fate is not known: the record "generation
 *          n+2: as before" is written, after the first one returned, never beside it. Until
 *          it is durable either one may be what a restart finds.
 */
#include <errno.h>

#include "blockmirror/mirror/engine.h"

enum { PRE_ROUNDS = 2 };

#define SLOW_RETRY   1000000000ull  /* ns, doubled up to 32 times that */
#define PRE_ENOUGH   20000000ull    /* ns: a flush that short needs no second round */
#define COMMIT_RETRY 250000000ull   /* ns, doubled up to … */
#define COMMIT_WAIT  10000000000ull /* … this */

static void commit(struct bm_mirror *m, enum phase phase, int side)
{
	m->phase = phase;
	m->host->commit(m->arg, side);
}

void switch_interrupted(struct bm_mirror *m)
{
	if (m->phase == PHASE_PRE || m->phase == PHASE_DRAIN || m->phase == PHASE_FLUSH) {
		m->phase = PHASE_WAIT;
		m->both_durable = false;
	} else if (unsettled(m)) {
		m->abort_needed = true;
	}
}

void switch_flushed(struct bm_mirror *m, bool good)
{
	if (m->phase == PHASE_PRE && !good) {
		switch_interrupted(m);
	} else if (m->phase == PHASE_FLUSH) {
		if (good && mirror_in_sync(m) && m->flusher.dirtied == m->dirtied) {
			m->abort_needed = false;
			commit(m, PHASE_REC, other(m));
		} else {
			switch_interrupted(m);
		}
	}
}

/* The other side takes its time to flush, and the guest has waited for it long enough. */
void switch_too_slow(struct bm_mirror *m)
{
	uint64_t wait = SLOW_RETRY << (m->slow_flushes < 5 ? m->slow_flushes++ : 5);

	switch_interrupted(m);
	m->switch_after = bm_loop_now(m->loop) + wait;
	(void)bm_timer_set(m->loop, &m->switch_timer, m->switch_after);
}

static void pre_flush(struct bm_mirror *m)
{
	if (m->flusher.active)
		return;
	if (!m->pre_rounds || (m->pre_rounds < PRE_ROUNDS && m->flusher.took > PRE_ENOUGH)) {
		m->pre_rounds++;
		flush_start(m);
	} else {
		m->phase = PHASE_DRAIN;
		m->both_durable = true;
	}
}

static void drain(struct bm_mirror *m)
{
	if (!mirror_in_sync(m)) {
		switch_interrupted(m);
	} else if (!m->plain_fuas && !m->flusher.active) {
		m->phase = PHASE_FLUSH;
		flush_start(m);
	}
}

void switch_run(struct bm_mirror *m)
{
	if (m->phase == PHASE_WAIT && mirror_in_sync(m) &&
	    bm_loop_now(m->loop) >= m->switch_after) {
		m->phase = PHASE_PRE;
		m->pre_rounds = 0;
	}
	if (m->phase == PHASE_PRE)
		pre_flush(m);
	if (m->phase == PHASE_DRAIN)
		drain(m);
}

/*
 * The record is durable: new requests go to the other side. What is in flight on both stays
 * ordered before what overlaps it, by the order device above; its legs change roles.
 */
static void flip(struct bm_mirror *m)
{
	m->authority = other(m);
	m->phase = PHASE_IDLE;
	m->both_durable = false;
	m->commit_failures = m->slow_flushes = 0;
	bm_bitmap_clear_all(&m->map.zero);
	flush_roles_changed(m);
	copy_forget_window(m);
	mirror_tell(m, BM_MIRROR_SWITCHED);
	mirror_kick(m);
}

static void settled_as_before(struct bm_mirror *m)
{
	m->phase = PHASE_IDLE; /* to be asked for again */
	m->both_durable = false;
	m->commit_failures = 0;
	mirror_tell(m, BM_MIRROR_SWITCH_FAILED);
	write_release_answers(m);
	mirror_kick(m);
}

static void retry_commit(struct bm_timer *timer)
{
	struct bm_mirror *m = bm_container(timer, struct bm_mirror, commit_retry);

	commit(m, PHASE_ABORT, m->authority);
}

void bm_mirror_committed(struct bm_mirror *m, int error)
{
	if (m->phase == PHASE_REC) {
		if (!error && !m->abort_needed && mirror_in_sync(m))
			flip(m);
		else
			commit(m, PHASE_ABORT, m->authority);
	} else if (m->phase == PHASE_ABORT && !error) {
		settled_as_before(m);
	} else if (m->phase == PHASE_ABORT) {
		uint64_t wait = COMMIT_RETRY << (m->commit_failures < 6 ? m->commit_failures++ : 6);

		(void)bm_timer_set(m->loop, &m->commit_retry,
				   bm_loop_now(m->loop) +
					   (wait < COMMIT_WAIT ? wait : COMMIT_WAIT));
	}
}

int bm_mirror_switch(struct bm_mirror *m)
{
	if (m->link == LINK_NONE || m->link == LINK_LEAVING)
		return -ENOTCONN;
	if (m->cut.state != CUT_NONE)
		return -EBUSY;
	if (m->phase == PHASE_IDLE)
		m->phase = PHASE_WAIT;
	mirror_kick(m);
	return 0;
}

int bm_mirror_switch_cancel(struct bm_mirror *m)
{
	if (unsettled(m))
		return -EBUSY;
	m->phase = PHASE_IDLE;
	m->both_durable = false;
	return 0;
}

static void go_on(struct bm_timer *timer)
{
	mirror_kick(bm_container(timer, struct bm_mirror, switch_timer));
}

void switch_init(struct bm_mirror *m)
{
	m->switch_timer.run = go_on;
	m->commit_retry.run = retry_commit;
}
