/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Guest requests: what goes where, and what an answer means.
 *
 * A request becomes an op with one leg per side. A read has the authority's leg. A write has both
 * for the granules that are clean ("both"), and the authority's for all. The other side's leg is
 * cut into runs of granules, which are sent one after the other: runs are long, more than one is
 * rare.
 *
 * Rules are decided in dispatch_write(), in the same turn as the submission: a request that had
 * to wait is judged by what is true when it goes, not by what was true when it came.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "blockmirror/base/cap.h"
#include "blockmirror/mirror/engine.h"

static void leg_done(struct bm_request *rq, int error);

void write_init(struct bm_mirror *m)
{
	bm_list_init(&m->free);
	bm_list_init(&m->running);
	bm_list_init(&m->waiting);
	bm_list_init(&m->held);
	for (int i = 0; i < OPS; i++) {
		struct op *op = &m->op[i];

		op->mirror = m;
		for (int side = 0; side < 2; side++) {
			op->leg[side].op = op;
			op->leg[side].side = side;
			op->leg[side].rq.done = leg_done;
		}
		bm_list_append(&m->free, &op->link);
	}
}

static uint64_t granule_start(const struct bm_mirror *m, uint64_t g)
{
	return g << m->granule_shift;
}

static uint64_t granule_end(const struct bm_mirror *m, uint64_t g)
{
	uint64_t end = (g + 1) << m->granule_shift;

	return end < m->size ? end : m->size;
}

static void span_granules(struct op *op)
{
	unsigned shift = op->mirror->granule_shift;

	op->first = op->rq->offset >> shift;
	op->granules = (unsigned)(((op->rq->offset + op->rq->length - 1) >> shift) - op->first + 1);
}

/* Sending */

static void send_leg(struct op *op, int side, uint64_t start, uint64_t end, uint32_t flags)
{
	struct mirror_leg *leg = &op->leg[side];
	const struct bm_request *rq = op->rq;

	leg->used = true;
	leg->rq.op = rq->op;
	/* A trim leaves content undefined: two devices would come to differ (docs/mirror.md). */
	if (rq->op == BM_TRIM && op->mirror->link != LINK_NONE)
		leg->rq.op = BM_ZERO;
	leg->rq.flags = flags;
	leg->rq.offset = start;
	leg->rq.length = end - start;
	leg->rq.data = rq->data ? rq->data + (start - rq->offset) : NULL;
	leg->rq.buf = rq->buf;
	leg->rq.extents = rq->extents;
	mirror_send(op->mirror, side, &leg->rq);
}

/* Sends the next run of granules that go to both; false when there is none left. */
static bool send_next_run(struct op *op)
{
	struct bm_mirror *m = op->mirror;
	unsigned i = op->next, last;
	uint64_t start, end;
	uint32_t flags = op->rq->flags & ~(uint32_t)BM_FAST;

	while (i < op->granules && !(op->both >> i & 1))
		i++;
	if (i == op->granules)
		return false;
	for (last = i; last + 1 < op->granules && op->both >> (last + 1) & 1; last++)
		;
	op->next = last + 1;
	start = granule_start(m, op->first + i);
	end = granule_end(m, op->first + last);
	if (start < op->rq->offset)
		start = op->rq->offset;
	if (end > op->rq->offset + op->rq->length)
		end = op->rq->offset + op->rq->length;
	if (op->plain_fua)
		flags &= ~(uint32_t)BM_FUA;
	if (m->cap && op->rq->op == BM_WRITE)
		bm_cap_charge(m->cap, end - start, bm_loop_now(m->loop));
	send_leg(op, !op->authority, start, end, flags);
	return true;
}

/*
 * Decides for each granule of a write where it goes, and notes that it is in flight.
 *
 *   clean                                  both
 *   dirty, wholly covered, nothing else
 *     in flight on it, not in a switch     both, and clean when both have it ("heal")
 *   else, and all after a cut              the authority; the copy will carry it, later
 */
static void classify(struct op *op)
{
	struct bm_mirror *m = op->mirror;
	uint64_t end = op->rq->offset + op->rq->length;
	/* A long zero that was cut before the target came has too many granules: it is the copy's.
	 */
	bool mirrors = m->link == LINK_UP && !m->tracking && !cut_made(m) && op->granules <= MASK;

	for (unsigned i = 0; i < op->granules; i++) {
		uint64_t g = op->first + i, bit = 1ull << i % MASK;
		bool whole = op->rq->offset <= granule_start(m, g) && end >= granule_end(m, g);
		bool dirty = bm_bitmap_test(&m->map.dirty, g);
		bool copying = bm_bitmap_test(&m->map.copying, g);

		if (mirrors && !dirty)
			op->both |= bit;
		else if (mirrors && whole && !copying && !m->map.granule[g].busy && !unsettled(m))
			op->both |= bit, op->heal |= bit;
		else if (!dirty)
			mirror_note_dirty(m, g);
		if (m->map.unreadable.count)
			unreadable_written(m, g);
		if (op->both & bit)
			bm_bitmap_clear(&m->map.zero, g);
		if (copying || m->window.granules)
			copy_collide(m, g);
		if (m->check.running)
			check_collide(m, g);
		bm_map_unsettle(&m->map, g);
		m->map.granule[g].busy++;
	}
	op->counted = true;
}

static void dispatch_write(struct op *op)
{
	struct bm_mirror *m = op->mirror;
	const struct bm_request *rq = op->rq;

	if (m->link != LINK_NONE) {
		span_granules(op);
		classify(op);
	}
	send_leg(op, op->authority, rq->offset, rq->offset + rq->length, rq->flags);
	if (!op->both) {
		m->stats.source_only_writes++;
		return;
	}
	m->stats.mirrored_writes++;
	m->stats.mirrored_bytes += rq->length;
	if (rq->buf)
		op->buf = bm_buf_ref(rq->buf);
	/*
	 * FUA goes to both from the first flush of a switchover on. One that went out plain before
	 * is not covered by the flush that counts if it is still in flight then: the switch waits
	 * for it.
	 */
	op->plain_fua = rq->flags & BM_FUA && op->early;
	m->plain_fuas += op->plain_fua;
	send_next_run(op);
}

static void dispatch(struct op *op)
{
	struct bm_mirror *m = op->mirror;
	const struct bm_request *rq = op->rq;

	switch (rq->op) {
	case BM_WRITE:
	case BM_ZERO:
	case BM_TRIM:
		op->writes = true;
		dispatch_write(op);
		break;
	case BM_FLUSH:
		op->flushes = true;
		flush_guest_sent(m, op);
		send_leg(op, op->authority, 0, 0, 0);
		if (m->both_durable && m->link == LINK_UP && !m->tracking)
			send_leg(op, !op->authority, 0, 0, 0);
		break;
	default:
		send_leg(op, op->authority, rq->offset, rq->offset + rq->length, 0);
		break;
	}
}

/* Judges the request by what is true now, and sends it. */
static void start(struct op *op)
{
	struct bm_mirror *m = op->mirror;

	op->state = OP_RUNNING;
	op->writes = op->flushes = op->counted = op->late = op->plain_fua = false;
	op->early = !m->both_durable;
	op->authority = m->authority;
	op->session = m->session;
	op->started = bm_loop_now(m->loop);
	op->both = op->heal = 0;
	op->next = 0;
	for (int side = 0; side < 2; side++) {
		op->leg[side].used = op->leg[side].ended = false;
		op->leg[side].error = 0;
	}
	dispatch(op);
}

/* Receiving */

static void free_op(struct op *op)
{
	struct bm_mirror *m = op->mirror;

	bm_buf_unref(op->buf);
	op->buf = NULL;
	op->state = OP_FREE;
	bm_list_remove(&op->link);
	bm_list_push(&m->free, &op->link);
}

/* The guest is answered by the authority; a read by who was it when the read went out. */
static int result_of(const struct op *op)
{
	int side = op->mirror->authority;

	return op->leg[op->leg[side].used ? side : op->authority].error;
}

static void answer(struct op *op)
{
	struct bm_mirror *m = op->mirror;
	struct bm_request *rq = op->rq;
	int result = result_of(op);
	struct bm_list *node;

	free_op(op);
	node = bm_list_take(&m->waiting);
	if (node)
		write_arrive(m, bm_container(node, struct bm_request, link));
	rq->done(rq, result);
}

/* The write has ended on all its legs: what its granules are now. */
static void settle_granules(struct op *op)
{
	struct bm_mirror *m = op->mirror;
	bool failed = op->leg[0].error || op->leg[1].error;
	bool heals = op->heal && !failed && op->state == OP_RUNNING && op->session == m->session &&
		     m->link == LINK_UP && !m->tracking;

	for (unsigned i = 0; i < op->granules; i++) {
		uint64_t g = op->first + i;

		/* No copy can have started on it, and no write that overlaps was let through. */
		if (heals && op->heal >> i & 1)
			mirror_mark_clean(m, g);
		m->map.granule[g].busy--;
	}
	op->counted = false;
}

/*
 * Whether the other side has all of it, too. A flush that went out before the switchover began
 * covers only what the flush that counts covers as well; a later one covers what it should only
 * while nothing is dirty.
 */
static bool other_has_it(const struct op *op)
{
	const struct bm_mirror *m = op->mirror;
	const struct mirror_leg *leg = &op->leg[other(m)];

	if (!op->writes && (op->early || m->abort_needed))
		return op->early;
	if (op->writes && (op->granules > MASK || op->both != ~0ull >> (MASK - op->granules)))
		return false;
	return leg->used && !leg->error;
}

static void finish(struct op *op)
{
	struct bm_mirror *m = op->mirror;
	bool durable = op->writes || op->flushes;

	if (op->counted)
		settle_granules(op);
	m->plain_fuas -= op->plain_fua;
	op->plain_fua = false;
	if (m->link != LINK_NONE)
		mirror_kick(m);
	if (op->state == OP_ABANDONED) {
		free_op(op);
		return;
	}
	/*
	 * While a record is being written either side may turn out to be the authority: an answer
	 * that only one of them can honour waits (docs/mirror.md, "Answers while authority is
	 * open").
	 */
	if (unsettled(m) && durable && (result_of(op) || !other_has_it(op))) {
		m->abort_needed = true;
		op->state = OP_HELD;
		return;
	}
	answer(op);
}

/* Answers without the other leg, which ran into the deadline; its end will change nothing. */
static void answer_late(struct op *op)
{
	struct bm_mirror *m = op->mirror;
	struct bm_request *rq = op->rq;

	if (!op->late || op->state != OP_RUNNING || unsettled(m) || !op->leg[m->authority].ended)
		return;
	op->state = OP_ABANDONED;
	m->stats.abandoned++;
	rq->done(rq, result_of(op));
}

/* A leg of a write to these granules ended: a power cut may take it back, on this side. */
static void note_unstable(struct op *op, int side)
{
	struct bm_mirror *m = op->mirror;
	const struct bm_request *rq = &op->leg[side].rq;
	uint64_t g = rq->offset >> m->granule_shift;
	uint64_t last = (rq->offset + rq->length - 1) >> m->granule_shift;

	for (; op->both && g <= last; g++)
		if (op->both >> (g - op->first) & 1)
			bm_map_unstable(&m->map, g);
}

static void mark_all_dirty(struct op *op)
{
	for (unsigned i = 0; i < op->granules; i++)
		if (op->both) /* else it was noted when it was sent */
			mirror_mark_dirty(op->mirror, op->first + i);
		else
			mirror_note_dirty(op->mirror, op->first + i);
}

/*
 * A read is in flight on the source; authority passes; the source is let go of, which ends the
 * read with an error that is none of the guest's. So it is asked of who has the authority now: the
 * order device let no write come before it that it does not have. The same goes for a flush that
 * only the source was asked for: what it was to make durable, both have.
 */
static bool asked_again(struct op *op, int side)
{
	if (op->writes || side == op->mirror->authority || op->leg[!side].used)
		return false;
	start(op);
	return true;
}

/*
 * The other side's leg of an op of this session has failed. Where it was to make something durable,
 * what it has not written is gone, and no later flush will tell: that is a loss, even for -ENOSPC.
 */
static void failed(struct op *op, int error)
{
	const struct bm_request *rq = &op->leg[other(op->mirror)].rq;

	if (op->flushes || rq->flags & BM_FUA)
		mirror_lose(op->mirror, error);
	else
		mirror_other_failed(op->mirror, error);
}

static void leg_done(struct bm_request *rq, int error)
{
	struct mirror_leg *leg = bm_container(rq, struct mirror_leg, rq);
	struct op *op = leg->op;
	struct bm_mirror *m = op->mirror;
	int side = leg->side;

	mirror_received(m, side);
	if (error && asked_again(op, side))
		return;
	if (op->counted)
		note_unstable(op, side);
	/* It may have landed before the other side lost what it had not flushed. */
	if (!error && op->counted && side == other(m) && op->session != m->session)
		mark_all_dirty(op);
	if (!error && side != op->authority && op->writes) {
		/* An abandoned op's request is the guest's again, a lost session's is void. */
		if (op->state == OP_RUNNING && op->session == m->session && send_next_run(op))
			return;
		error = op->next < op->granules && op->both >> op->next ? -ECANCELED : 0;
	}
	if (error) {
		/* Whichever side failed, and however little of it: they may differ now. */
		leg->error = error;
		if (op->counted)
			mark_all_dirty(op);
		if (side == other(m) && op->session == m->session)
			failed(op, error);
	}
	leg->ended = true;
	if (side == op->authority && op->flushes)
		flush_guest_done(m, op, !error);
	if (op->writes && side == m->authority)
		m->authority_written++;
	if (op->writes)
		bm_hist_add(&m->governor.leg[side], bm_loop_now(m->loop) - op->started);
	if (op->leg[!side].used && !op->leg[!side].ended)
		answer_late(op);
	else
		finish(op);
}

/*
 * What we send on our own behalf nobody else waits for. A side may be slow, its flush above all,
 * but it answers something: one that is silent for as long as this hangs.
 */
static bool silent(const struct bm_mirror *m, uint64_t now)
{
	return m->in_flight[other(m)] &&
	       now - m->heard[other(m)] >= BM_MIRROR_SILENCE * m->config.deadline;
}

/* The deadline: a guest does not wait for the other side for ever. */
void write_check_deadline(struct bm_timer *timer)
{
	struct bm_mirror *m = bm_container(timer, struct bm_mirror, deadline);
	uint64_t now = bm_loop_now(m->loop);
	bool lose = silent(m, now), slow = false;

	(void)bm_timer_set(m->loop, timer, now + m->config.deadline / 8);
	bm_list_each(node, &m->running) {
		struct op *op = bm_container(node, struct op, link);
		const struct mirror_leg *leg = &op->leg[other(m)];

		if (!leg->used || leg->ended || op->late || !op->leg[m->authority].ended ||
		    now - op->started < m->config.deadline)
			continue;
		op->late = true;
		/* A flush may take long where a write does not: that ends the switchover alone. */
		if (op->flushes && !unsettled(m)) {
			slow = true;
			continue;
		}
		lose = true;
		if (op->counted)
			mark_all_dirty(op);
	}
	if (lose)
		mirror_lose(m, -ETIMEDOUT);
	else if (slow)
		switch_too_slow(m);
	bm_list_each_safe(late, &m->running)
		answer_late(bm_container(late, struct op, link));
	if (m->hold && now - m->hold_since > m->config.deadline)
		copy_end_hold(m);
}

void bm_mirror_set_deadline(struct bm_mirror *m, uint64_t deadline)
{
	m->config.deadline = deadline ? deadline : BM_MIRROR_DEADLINE;
	if (bm_timer_armed(&m->deadline))
		(void)bm_timer_set(m->loop, &m->deadline, bm_loop_now(m->loop));
}

void write_release_answers(struct bm_mirror *m)
{
	struct bm_list held;

	bm_list_init(&held);
	bm_list_each_safe(node, &m->running)
		if (bm_container(node, struct op, link)->state == OP_HELD) {
			bm_list_remove(node);
			bm_list_append(&held, node);
		}
	while (!bm_list_empty(&held))
		answer(bm_container(held.next, struct op, link));
	bm_list_each_safe(late, &m->running)
		answer_late(bm_container(late, struct op, link));
}

/* Arriving */

static void begin(struct bm_mirror *m, struct bm_request *rq)
{
	struct op *op = bm_container(bm_list_take(&m->free), struct op, link);

	bm_list_append(&m->running, &op->link);
	op->rq = rq;
	start(op);
}

static bool waits_for_copy(const struct bm_mirror *m, const struct bm_request *rq)
{
	if (!m->hold || (rq->op != BM_WRITE && rq->op != BM_ZERO && rq->op != BM_TRIM))
		return false;
	return rq->offset >> m->granule_shift <= m->hold_granule &&
	       (rq->offset + rq->length - 1) >> m->granule_shift >= m->hold_granule;
}

void write_arrive(struct bm_mirror *m, struct bm_request *rq)
{
	if (waits_for_copy(m, rq)) {
		m->stats.held_writes++;
		bm_list_append(&m->held, &rq->link);
	} else if (claims_hold(m, rq)) {
		return;
	} else if (bm_list_empty(&m->free)) {
		bm_list_append(&m->waiting, &rq->link);
	} else {
		begin(m, rq);
	}
}

void write_submit(struct bm_dev *dev, struct bm_request *rq)
{
	struct bm_mirror *m = bm_container(dev, struct bm_mirror, dev);

	if (rq->op == BM_TRIM && m->link != LINK_NONE && !m->trim_zeroes)
		bm_later_done(&m->later, rq, 0); /* a hint, dropped on both */
	else
		write_arrive(m, rq);
}

void write_release_held(struct bm_mirror *m)
{
	struct bm_list held, *node;

	bm_list_init(&held);
	bm_list_move_all(&held, &m->held);
	while ((node = bm_list_take(&held)))
		write_arrive(m, bm_container(node, struct bm_request, link));
}

void write_count_in_flight(struct bm_mirror *m)
{
	bm_list_each(node, &m->running) {
		struct op *op = bm_container(node, struct op, link);

		if (!op->writes)
			continue;
		span_granules(op);
		for (unsigned i = 0; i < op->granules; i++)
			m->map.granule[op->first + i].busy++;
		op->counted = true;
	}
}
