/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Comparing both sides while the guest writes: granules of a set are read from both and compared.
 * The set is all of the disk when somebody asked for it, or what again.c wants to know about.
 *
 * It works as the copy does. A check begins only where no guest write is in flight; a write that is
 * sent meanwhile spoils it, and the granule is looked at again later; one that is spoiled again and
 * again is held (copy.c). What differs although nothing was in flight, and nothing said that it may
 * differ, is a broken promise of ours, of a device, or of somebody who wrote to an image behind our
 * back: it is counted, becomes dirty, is copied, and is compared again.
 *
 * What then differs again ends the comparison: a device that does not keep what it is told would be
 * copied to for ever.
 *
 * What becomes dirty after it was compared is compared again, too: a session that was lost may have
 * taken back what was equal.
 */
#include <errno.h>
#include <string.h>

#include "blockmirror/mirror/engine.h"

static void leg_done(struct bm_request *rq, int error);

void check_init(struct bm_mirror *m)
{
	for (int i = 0; i <= CHECKS; i++) {
		struct check *k = &m->check.slot[i];

		for (int side = 0; side < 2; side++) {
			k->leg[side].check = k;
			k->leg[side].rq.op = BM_READ;
			k->leg[side].rq.done = leg_done;
		}
		k->mirror = m;
	}
}

static uint64_t start_of(const struct bm_mirror *m, uint64_t g)
{
	return g << m->granule_shift;
}

static uint64_t end_of(const struct bm_mirror *m, uint64_t g)
{
	uint64_t end = (g + 1) << m->granule_shift;

	return end < m->size ? end : m->size;
}

/* The answer to bm_mirror_verify(). */
static void answer(struct bm_mirror *m, int error)
{
	void (*done)(void *arg, int error) = m->check.done;

	m->check.done = NULL;
	bm_bitmap_fini(&m->check.left);
	bm_bitmap_fini(&m->check.mended);
	if (done)
		done(m->check.arg, error);
}

void check_fini(struct bm_mirror *m)
{
	for (int i = 0; i <= CHECKS; i++)
		for (int side = 0; side < 2; side++) {
			bm_buf_unref(m->check.slot[i].leg[side].buf);
			m->check.slot[i].leg[side].buf = NULL;
		}
	bm_bitmap_fini(&m->check.left);
	bm_bitmap_fini(&m->check.mended);
}

void check_stop(struct bm_mirror *m)
{
	if (m->check.done)
		answer(m, -ECANCELED);
}

void check_again(struct bm_mirror *m, uint64_t granule)
{
	if (m->check.done)
		bm_bitmap_set(&m->check.left, granule);
}

void check_collide(struct bm_mirror *m, uint64_t granule)
{
	for (int i = 0; i <= CHECKS; i++) {
		struct check *k = &m->check.slot[i];

		if (k->pending && granule >= k->first && granule - k->first < k->granules)
			k->collided |= 1ull << (granule - k->first);
	}
}

static bool covered(const struct bm_mirror *m, uint64_t granule)
{
	for (int i = 0; i <= CHECKS; i++) {
		const struct check *k = &m->check.slot[i];

		if (k->pending && granule >= k->first && granule - k->first < k->granules)
			return true;
	}
	return false;
}

static struct bm_bitmap *set_of(struct bm_mirror *m, enum check_kind kind)
{
	return kind == CHECK_ASKED  ? &m->check.left
	       : kind == CHECK_BACK ? &m->map.quarantine
				    : &m->map.sample;
}

static bool reads_back(const struct bm_mirror *m)
{
	return m->map.quarantine.count && !m->grace;
}

/* Whether there is something to compare that the granule belongs to. */
bool check_wants(const struct bm_mirror *m, uint64_t granule)
{
	return (m->check.done && bm_bitmap_test(&m->check.left, granule)) ||
	       (reads_back(m) && bm_bitmap_test(&m->map.quarantine, granule));
}

static bool may_check(struct bm_mirror *m, enum check_kind kind, uint64_t granule)
{
	return bm_bitmap_test(set_of(m, kind), granule) && !m->map.granule[granule].busy &&
	       !bm_bitmap_test(&m->map.copying, granule) &&
	       !bm_bitmap_test(&m->map.dirty, granule) && !covered(m, granule);
}

static void equal(const struct check *k, uint64_t granule, size_t length)
{
	struct bm_mirror *m = k->mirror;

	bm_bitmap_clear(set_of(m, k->kind), granule);
	if (k->kind == CHECK_SAMPLE)
		return;
	m->map.granule[granule].misses = 0;
	if (k->kind == CHECK_ASKED)
		m->stats.checked_bytes += length;
	else /* the flushes of before did not settle it */
		bm_map_unstable(&m->map, granule);
}

/* Nothing was in flight on it: a promise is broken, and if it is again, the comparison is over. */
static void not_kept(struct bm_mirror *m, uint64_t granule)
{
	if (!m->stats.mismatches++)
		m->stats.mismatch_offset = start_of(m, granule);
	if (bm_bitmap_test(&m->check.mended, granule))
		m->check.failed = -EILSEQ;
	bm_bitmap_set(&m->check.mended, granule);
}

static void differs(const struct check *k, uint64_t granule)
{
	struct bm_mirror *m = k->mirror;

	if (k->kind == CHECK_SAMPLE) {
		again_foreign(m, start_of(m, granule));
		return;
	}
	if (k->kind == CHECK_BACK)
		m->stats.late_writes++;
	else
		not_kept(m, granule);
	bm_bitmap_clear(&m->map.zero, granule); /* whatever was known of it */
	mirror_mark_dirty(m, granule);
}

/* The granule was compared, and nothing was sent to it meanwhile. */
static void judge(const struct check *k, uint64_t granule)
{
	struct bm_mirror *m = k->mirror;
	uint64_t at = start_of(m, granule) - k->leg[0].rq.offset;
	size_t length = end_of(m, granule) - start_of(m, granule);

	if (!memcmp(k->leg[0].buf->data + at, k->leg[1].buf->data + at, length))
		equal(k, granule, length);
	else
		differs(k, granule);
}

/* An answer from before a loss, or before this comparison was asked for, tells nothing. */
static bool is_valid(const struct check *k)
{
	const struct bm_mirror *m = k->mirror;

	if (k->session != m->session || k->leg[0].error || k->leg[1].error)
		return false;
	if (k->kind == CHECK_SAMPLE)
		return m->link == LINK_PROVING;
	return m->link == LINK_UP &&
	       (k->kind == CHECK_BACK || (m->check.done && k->number == m->check.number));
}

static void compare(struct check *k)
{
	struct bm_mirror *m = k->mirror;
	bool valid = is_valid(k);

	for (unsigned i = 0; valid && i < k->granules; i++) {
		if (!(k->collided >> i & 1))
			judge(k, k->first + i);
		else if (k->kind != CHECK_SAMPLE) /* there it is dirty now */
			copy_miss(m, k->first + i);
	}
	if (m->hold && k == &m->check.slot[CHECKS] && k->first == m->hold_granule)
		copy_end_hold(m);
}

static void leg_done(struct bm_request *rq, int error)
{
	struct check_leg *leg = bm_container(rq, struct check_leg, rq);
	struct check *k = leg->check;
	struct bm_mirror *m = k->mirror;
	int side = leg == &k->leg[1];

	mirror_received(m, side);
	leg->error = error;
	if (error && side == other(m) && k->session == m->session)
		mirror_other_failed(m, error);
	else if (error && k->kind == CHECK_ASKED && side == m->authority &&
		 k->number == m->check.number)
		m->check.failed = error;
	if (--k->pending)
		return;
	compare(k);
	for (int i = 0; i < 2; i++) {
		bm_buf_unref(k->leg[i].buf);
		k->leg[i].buf = NULL;
	}
	m->check.running--;
	mirror_kick(m);
}

/* False when there is no memory, or the pace does not allow it now. */
static bool start(struct check *k, enum check_kind kind, uint64_t first, unsigned granules)
{
	struct bm_mirror *m = k->mirror;
	uint64_t length = end_of(m, first + granules - 1) - start_of(m, first);

	for (int side = 0; side < 2; side++)
		if (!k->leg[side].buf)
			k->leg[side].buf = bm_buf_get(m->pool, length);
	if (!k->leg[0].buf || !k->leg[1].buf ||
	    (kind != CHECK_SAMPLE && k != &m->check.slot[CHECKS] && !governor_admit(m, length))) {
		for (int side = 0; side < 2; side++) {
			bm_buf_unref(k->leg[side].buf);
			k->leg[side].buf = NULL;
		}
		return false;
	}
	k->kind = kind;
	k->first = first;
	k->granules = granules;
	k->collided = 0;
	k->session = m->session;
	k->number = m->check.number;
	k->pending = 2;
	m->check.running++;
	for (int side = 0; side < 2; side++) {
		k->leg[side].error = 0;
		k->leg[side].rq.offset = start_of(m, first);
		k->leg[side].rq.length = length;
		k->leg[side].rq.data = k->leg[side].buf->data;
		k->leg[side].rq.buf = k->leg[side].buf;
		mirror_send(m, side, &k->leg[side].rq);
	}
	return true;
}

/* The next run of granules that can be compared, from the cursor on and round once. */
static unsigned find(struct bm_mirror *m, enum check_kind kind, uint64_t *first)
{
	const struct bm_bitmap *set = set_of(m, kind);
	unsigned most = governor_chunk(m) >> m->granule_shift, n = 0;
	uint64_t g = bm_bitmap_next(set, m->check.cursor);

	for (int looked = 0; looked < SCAN_LIMIT; looked++) {
		if (g == BM_BITMAP_NONE && !m->check.cursor)
			return 0;
		if (g == BM_BITMAP_NONE) {
			m->check.cursor = 0;
			g = bm_bitmap_next(set, 0);
			continue;
		}
		if (may_check(m, kind, g))
			break;
		g = bm_bitmap_next(set, g + 1);
	}
	if (g == BM_BITMAP_NONE)
		return 0;
	most = !most ? 1 : most > MASK ? MASK : most;
	while (n < most && g + n < m->map.granules && may_check(m, kind, g + n))
		n++;
	*first = g;
	return n;
}

static struct check *free_slot(struct bm_mirror *m)
{
	for (int i = 0; i < CHECKS; i++)
		if (!m->check.slot[i].pending)
			return &m->check.slot[i];
	return NULL;
}

/* Begins what can be, of one kind. */
static void run(struct bm_mirror *m, enum check_kind kind)
{
	struct check *held = &m->check.slot[CHECKS], *k;
	uint64_t first;
	unsigned n;

	if (m->hold && !held->pending && may_check(m, kind, m->hold_granule))
		start(held, kind, m->hold_granule, 1);
	while ((k = free_slot(m)) && (n = find(m, kind, &first)) && start(k, kind, first, n))
		m->check.cursor = first + n;
}

void check_run(struct bm_mirror *m)
{
	enum check_kind kind = reads_back(m) ? CHECK_BACK : CHECK_ASKED;

	if (m->check.done && m->check.failed) {
		answer(m, m->check.failed);
		return;
	}
	if (unsettled(m) || m->paused || m->full)
		return;
	if (kind == CHECK_ASKED && (!m->check.done || !mirror_in_sync(m)))
		return;
	if (kind == CHECK_ASKED && !m->check.left.count && !m->check.running) {
		answer(m, 0);
		return;
	}
	run(m, kind);
	if (!m->check.running)
		copy_miss_busy(m, set_of(m, kind));
}

/* Whatever of the sample cannot be compared now is being written to, and so will not be. */
void check_sample(struct bm_mirror *m)
{
	uint64_t first;

	if (m->foreign)
		return;
	run(m, CHECK_SAMPLE);
	if (!m->check.running && !find(m, CHECK_SAMPLE, &first))
		again_proven(m);
}

int bm_mirror_verify(struct bm_mirror *m, void (*done)(void *arg, int error), void *arg)
{
	int r;

	if (m->link == LINK_NONE)
		return -ENOTCONN;
	if (m->check.done)
		return -EBUSY;
	r = bm_bitmap_init(&m->check.left, m->map.granules);
	if (!r)
		r = bm_bitmap_init(&m->check.mended, m->map.granules);
	if (r < 0) {
		bm_bitmap_fini(&m->check.left);
		return r;
	}
	bm_bitmap_set_all(&m->check.left);
	m->check.done = done;
	m->check.arg = arg;
	m->check.cursor = 0;
	m->check.number++;
	m->check.failed = 0;
	m->stats.checked_bytes = m->stats.mismatches = 0;
	mirror_kick(m);
	return 0;
}
