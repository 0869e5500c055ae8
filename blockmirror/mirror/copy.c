/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The baseline copy: makes dirty granules clean, behind the guest's back.
 *
 * A copy reads a run of dirty granules from the authority, finds out what of it is zero, and
 * writes it to the other side. It starts only where no guest write is in flight. A write that
 * comes while it runs does not wait: it goes to the authority, notes the collision, and the
 * granule stays dirty. Only the end of a copy without a collision makes clean. A granule that
 * collides again and again gets a copy of its own that the next write waits for: one granule at a
 * time, so that the baseline ends under any load, and the wait is bounded.
 *
 * Holes are asked for a window at a time. An answer is worth nothing for a granule that a guest
 * write was in flight on when it was asked for, or has been sent to since ("touched").
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "blockmirror/mirror/engine.h"

#define MISS_EVERY 2000000ull  /* ns */
#define ZERO_UNIT  4096ull     /* bytes looked at together for zeros */
#define ZERO_RUN   (32u << 10) /* the shortest run of zeros worth a request less */

static void copy_done(struct bm_request *rq, int error);
static void window_done(struct bm_request *rq, int error);

static uint64_t start_of(const struct bm_mirror *m, uint64_t g)
{
	return g << m->granule_shift;
}

static uint64_t end_of(const struct bm_mirror *m, uint64_t g)
{
	uint64_t end = (g + 1) << m->granule_shift;

	return end < m->size ? end : m->size;
}

int copy_init(struct bm_mirror *m)
{
	size_t chunk = m->config.chunk > m->config.granule ? m->config.chunk : m->config.granule;

	m->config.chunk = (unsigned)chunk;
	bm_list_init(&m->copies);
	bm_list_init(&m->copies_free);
	for (int i = 0; i <= COPIES; i++) {
		struct copy *c = &m->copy[i];

		memset(c, 0, sizeof(*c));
		c->mirror = m;
		c->rq.done = copy_done;
		if (i < COPIES)
			bm_list_append(&m->copies_free, &c->link);
	}
	m->window.rq.done = window_done;
	m->window.granules = 0;
	/* The held granule's copy has a buffer of its own: waiting for one could never end. */
	m->pool = bm_pool_new(m->loop, COPIES * (size_t)BM_BUF_MAX + m->config.granule);
	m->hold_copy = &m->copy[COPIES];
	if (m->pool)
		m->hold_copy->buf = bm_buf_get(m->pool, m->config.granule);
	if (!m->pool || !m->hold_copy->buf) {
		copy_fini(m);
		return -ENOMEM;
	}
	m->hold_copy->hold = true;
	return 0;
}

void copy_fini(struct bm_mirror *m)
{
	for (int i = 0; i <= COPIES; i++) {
		bm_buf_unref(m->copy[i].buf);
		m->copy[i].buf = NULL;
	}
	bm_pool_free(m->pool);
	m->hold_copy = NULL;
	m->pool = NULL;
	m->hold = false;
}

/* The window */

static bool in_window(const struct window *w, uint64_t g)
{
	return g >= w->first && g - w->first < w->granules;
}

static bool known_hole(const struct window *w, uint64_t g)
{
	uint64_t n = g - w->first;

	return !w->asked && in_window(w, g) && w->zero[n / 64] >> n % 64 & 1 &&
	       !(w->touched[n / 64] >> n % 64 & 1);
}

static void touch(struct window *w, uint64_t g)
{
	uint64_t n = g - w->first;

	if (in_window(w, g))
		w->touched[n / 64] |= 1ull << n % 64;
}

void copy_forget_window(struct bm_mirror *m)
{
	struct window *w = &m->window;

	if (w->asked) /* the answer will come; it shall mean nothing */
		memset(w->touched, 0xff, sizeof(w->touched));
	else
		w->granules = 0;
}

static void ask_window(struct bm_mirror *m, uint64_t g)
{
	struct window *w = &m->window;

	w->first = g;
	w->granules = m->map.granules - g;
	if (w->granules > m->config.window)
		w->granules = m->config.window;
	memset(w->zero, 0, sizeof(w->zero));
	memset(w->touched, 0, sizeof(w->touched));
	for (uint64_t n = 0; n < w->granules; n++)
		if (m->map.granule[g + n].busy)
			touch(w, g + n);
	w->asked = true;
	w->side = m->authority;
	w->extents = (struct bm_extents){.v = w->v, .room = sizeof(w->v) / sizeof(w->v[0])};
	w->rq.op = BM_EXTENTS;
	w->rq.flags = 0;
	w->rq.offset = start_of(m, g);
	w->rq.length = end_of(m, g + w->granules - 1) - w->rq.offset;
	w->rq.extents = &w->extents;
	mirror_send(m, w->side, &w->rq);
}

static void window_done(struct bm_request *rq, int error)
{
	struct window *w = bm_container(rq, struct window, rq);
	struct bm_mirror *m = bm_container(w, struct bm_mirror, window);
	uint64_t at = rq->offset;

	mirror_received(m, w->side);
	w->asked = false;
	for (unsigned i = 0; !error && i < w->extents.count; i++) {
		uint64_t end = at + w->extents.v[i].length;
		uint64_t g = (at + (1u << m->granule_shift) - 1) >> m->granule_shift;

		for (; w->extents.v[i].flags & BM_EXTENT_ZERO && g < m->map.granules; g++) {
			if (end_of(m, g) > end)
				break;
			w->zero[(g - w->first) / 64] |= 1ull << (g - w->first) % 64;
		}
		at = end;
	}
	/* Who cannot tell has data. An answer that covers less than a granule covers that one. */
	if (!error && at < rq->offset + rq->length) {
		w->granules = (at - rq->offset) >> m->granule_shift;
		if (!w->granules)
			w->granules = 1;
	}
	mirror_kick(m);
}

/* Ending */

void copy_miss(struct bm_mirror *m, uint64_t g)
{
	struct bm_granule *granule = &m->map.granule[g];

	m->stats.collisions++;
	if (granule->misses < BM_MISSES_MAX)
		granule->misses++;
	if (granule->misses < m->config.misses || m->hold || m->tracking || m->paused ||
	    cut_made(m) || bm_timer_armed(&m->source_retry))
		return;
	m->hold = true;
	m->hold_granule = g;
	m->hold_since = bm_loop_now(m->loop);
	m->stats.holds++;
	mirror_kick(m);
}

void copy_end_hold(struct bm_mirror *m)
{
	if (!m->hold)
		return;
	m->hold = false;
	if (m->hold_granule < m->map.granules)
		m->map.granule[m->hold_granule].misses = 0;
	mirror_kick(m);
}

static void end(struct copy *c, bool ok)
{
	struct bm_mirror *m = c->mirror;
	bool good = ok && m->link == LINK_UP;

	for (unsigned i = 0; i < c->granules; i++) {
		uint64_t g = c->first + i;

		bm_bitmap_clear(&m->map.copying, g);
		if (c->collided >> i & 1) {
			copy_miss(m, g);
		} else if (good) {
			bm_map_unstable(&m->map, g);
			mirror_mark_clean(m, g);
		}
	}
	if (good)
		m->stats.passed_bytes += c->end - c->offset;
	bm_list_remove(&c->link);
	governor_took(m, bm_loop_now(m->loop) - c->begun);
	if (c->hold) {
		if (m->hold && c->first == m->hold_granule)
			copy_end_hold(m);
	} else {
		bm_buf_unref(c->buf);
		c->buf = NULL;
		m->copying--;
		bm_list_append(&m->copies_free, &c->link);
	}
	mirror_kick(m);
}

void copy_collide(struct bm_mirror *m, uint64_t g)
{
	touch(&m->window, g);
	if (!bm_bitmap_test(&m->map.copying, g))
		return;
	bm_list_each(node, &m->copies) {
		struct copy *c = bm_container(node, struct copy, link);

		if (g >= c->first && g - c->first < c->granules)
			c->collided |= 1ull << (g - c->first);
	}
}

static bool all_collided(const struct copy *c)
{
	return c->collided == ~0ull >> (MASK - c->granules);
}

/* Writing */

static void send(struct copy *c, int side, enum bm_op op, uint64_t length)
{
	struct bm_mirror *m = c->mirror;
	uint64_t last = (c->pos + length - 1) >> m->granule_shift;

	c->rq.op = op;
	c->rq.flags = op == BM_WRITE && !c->hold ? BM_BULK : 0;
	c->rq.offset = c->pos;
	c->rq.length = length;
	c->rq.data = c->buf ? c->buf->data + (c->pos - c->offset) : NULL;
	c->rq.buf = c->buf;
	c->started = bm_loop_now(m->loop);
	/* From here on the target is not known to be zero, whatever becomes of this request. */
	for (uint64_t g = c->pos >> m->granule_shift; op != BM_READ && g <= last; g++)
		bm_bitmap_clear(&m->map.zero, g);
	mirror_send(m, side, &c->rq);
}

/* The length of the zeros, or of what is not zero, that the buffer has from pos on. */
static uint64_t run_length(const struct copy *c, uint64_t pos, uint64_t unit, bool zero)
{
	uint64_t at = pos;

	while (at < c->end) {
		uint64_t n = c->end - at < unit ? c->end - at : unit;

		if (bm_is_zero(c->buf->data + (at - c->offset), n) != zero)
			break;
		at += n;
	}
	return at - pos;
}

/* Whether the target is known to hold zeros all over [pos, pos + length). */
static bool target_zero(const struct copy *c, uint64_t length)
{
	unsigned shift = c->mirror->granule_shift;
	uint64_t last = (c->pos + length - 1) >> shift;

	for (uint64_t g = c->pos >> shift; g <= last; g++)
		if (!(c->zero >> (g - c->first) & 1))
			return false;
	return true;
}

/*
 * The next stretch of what was read: data, or a run of zeros long enough to be worth a request of
 * its own. Zeros that the target is known to have are not sent at all.
 */
static uint64_t next_data(const struct copy *c, uint64_t unit, uint64_t least)
{
	uint64_t at = c->pos, zeros;

	while (at < c->end) {
		at += run_length(c, at, unit, false);
		zeros = run_length(c, at, unit, true);
		if (zeros >= least || at + zeros == c->end)
			break;
		at += zeros;
	}
	return at - c->pos;
}

static void write_next(struct copy *c)
{
	struct bm_mirror *m = c->mirror;
	uint64_t granule = 1ull << m->granule_shift;
	uint64_t unit = granule < 4 * ZERO_UNIT ? m->block : ZERO_UNIT;
	uint64_t least = granule < ZERO_RUN ? granule : ZERO_RUN;

	while (c->pos < c->end) {
		uint64_t length = run_length(c, c->pos, unit, true);

		if (length && target_zero(c, length)) {
			m->stats.zero_bytes += length;
			c->pos += length;
		} else if (length >= least || (length && c->pos + length == c->end)) {
			m->stats.zero_bytes += length;
			send(c, other(m), BM_ZERO, length);
			return;
		} else {
			length = next_data(c, unit, least);
			m->stats.copied_bytes += length;
			send(c, other(m), BM_WRITE, length);
			return;
		}
	}
	end(c, true);
}

/* Answers */

static void source_failed(struct copy *c, int error)
{
	struct bm_mirror *m = c->mirror;

	unreadable_failed(m, c->first, c->granules, error);
	copy_end_hold(m);
	end(c, false);
}

static void read_done(struct copy *c, int error)
{
	struct bm_mirror *m = c->mirror;

	mirror_received(m, m->authority);
	bm_hist_add(&m->read_latency, bm_loop_now(m->loop) - c->started);
	if (error) {
		source_failed(c, error);
		return;
	}
	if (m->link != LINK_UP || all_collided(c)) {
		end(c, false);
		return;
	}
	governor_meter(m, c->end - c->offset);
	write_next(c);
}

static void written(struct copy *c, int error)
{
	struct bm_mirror *m = c->mirror;
	uint64_t last = (c->pos + c->rq.length - 1) >> m->granule_shift;

	mirror_received(m, other(m));
	bm_hist_add(&m->write_latency, bm_loop_now(m->loop) - c->started);
	for (uint64_t g = c->pos >> m->granule_shift; g <= last; g++)
		bm_map_unstable(&m->map, g);
	if (m->link != LINK_UP) {
		end(c, false);
	} else if (error) {
		mirror_other_failed(m, error);
		end(c, false);
	} else {
		c->pos += c->rq.length;
		if (c->buf)
			write_next(c);
		else
			end(c, true);
	}
}

static void copy_done(struct bm_request *rq, int error)
{
	struct copy *c = bm_container(rq, struct copy, rq);

	if (rq->op == BM_READ)
		read_done(c, error);
	else
		written(c, error);
}

/* Starting */

static bool may_copy(struct bm_mirror *m, uint64_t g)
{
	return bm_bitmap_test(&m->map.dirty, g) && !bm_bitmap_test(&m->map.copying, g) &&
	       !m->map.granule[g].busy && unreadable_may_copy(m, g) && claims_let_copy(m, g);
}

static void start(struct copy *c, uint64_t first, unsigned granules)
{
	struct bm_mirror *m = c->mirror;

	c->first = first;
	c->granules = granules;
	c->begun = bm_loop_now(m->loop);
	c->collided = c->zero = 0;
	c->offset = c->pos = start_of(m, first);
	c->end = end_of(m, first + granules - 1);
	for (unsigned i = 0; i < granules; i++) {
		bm_bitmap_set(&m->map.copying, first + i);
		if (bm_bitmap_test(&m->map.zero, first + i))
			c->zero |= 1ull << i;
	}
	bm_list_append(&m->copies, &c->link);
}

static struct copy *take(struct bm_mirror *m)
{
	m->copying++;
	return bm_container(bm_list_take(&m->copies_free), struct copy, link);
}

/* A run of granules from g on that are holes of the authority. */
static bool start_hole(struct bm_mirror *m, uint64_t g)
{
	unsigned n = 0;

	/* Zeros on both sides: nothing to do but to say so. */
	while (n < SCAN_LIMIT && g + n < m->map.granules && may_copy(m, g + n) &&
	       known_hole(&m->window, g + n) && bm_bitmap_test(&m->map.zero, g + n)) {
		bm_map_unstable(&m->map, g + n);
		mirror_mark_clean(m, g + n);
		m->stats.zero_bytes += end_of(m, g + n) - start_of(m, g + n);
		m->stats.passed_bytes += end_of(m, g + n) - start_of(m, g + n);
		n++;
	}
	if (!n) {
		struct copy *c;

		if (!governor_admit(m, 0))
			return false;
		c = take(m);
		while (n < MASK && g + n < m->map.granules && may_copy(m, g + n) &&
		       known_hole(&m->window, g + n))
			n++;
		start(c, g, n);
		m->stats.zero_bytes += c->end - c->offset;
		send(c, other(m), BM_ZERO, c->end - c->offset);
	}
	m->cursor = g + n;
	return true;
}

static bool start_data(struct bm_mirror *m, uint64_t g)
{
	unsigned most = governor_chunk(m) >> m->granule_shift, n = 1;
	struct bm_buf *buf;
	struct copy *c;
	uint64_t length;

	most = !most || bm_bitmap_test(&m->map.alone, g) ? 1 : most > MASK ? MASK : most;
	while (n < most && g + n < m->map.granules && may_copy(m, g + n) &&
	       !known_hole(&m->window, g + n) && !bm_bitmap_test(&m->map.alone, g + n))
		n++;
	length = end_of(m, g + n - 1) - start_of(m, g);
	buf = bm_buf_get(m->pool, length);
	if (!buf || !governor_admit(m, length)) { /* without memory the next kick tries again */
		bm_buf_unref(buf);
		return false;
	}
	c = take(m);
	c->buf = buf;
	start(c, g, n);
	m->cursor = g + n;
	send(c, m->authority, BM_READ, c->end - c->offset);
	return true;
}

/*
 * Each granule that is being written to has spoiled a copy that could not even begin. That is
 * looked at now and then, not as often as there is a reason to look.
 */
void copy_miss_busy(struct bm_mirror *m, const struct bm_bitmap *set)
{
	uint64_t g = bm_bitmap_next(set, 0);

	if (bm_loop_now(m->loop) < m->next_miss)
		return;
	m->next_miss = bm_loop_now(m->loop) + MISS_EVERY;
	for (int n = 0; n < SCAN_LIMIT && g != BM_BITMAP_NONE; n++) {
		if (m->map.granule[g].busy && !bm_bitmap_test(&m->map.copying, g))
			copy_miss(m, g);
		g = bm_bitmap_next(set, g + 1);
	}
}

/* The next dirty granule that can be copied, from the cursor on and round once. */
static uint64_t find(struct bm_mirror *m)
{
	uint64_t g = bm_bitmap_next(&m->map.dirty, m->cursor);
	bool wrapped = false;

	for (int looked = 0; looked < SCAN_LIMIT; looked++) {
		if (g == BM_BITMAP_NONE) {
			if (wrapped)
				break;
			wrapped = true;
			g = bm_bitmap_next(&m->map.dirty, 0);
			if (g == BM_BITMAP_NONE)
				break;
		}
		if (may_copy(m, g))
			return g;
		g = bm_bitmap_next(&m->map.dirty, g + 1);
	}
	copy_miss_busy(m, &m->map.dirty);
	return BM_BITMAP_NONE;
}

static bool start_one(struct bm_mirror *m)
{
	uint64_t g = find(m);

	if (g == BM_BITMAP_NONE)
		return false;
	if (g < m->cursor) {
		m->cursor = g;
		governor_pass_ended(m);
	}
	if (m->side[m->authority]->geometry.flags & BM_DEV_EXTENTS && !in_window(&m->window, g)) {
		if (!m->window.asked)
			ask_window(m, g);
		return false;
	}
	if (m->window.asked)
		return false;
	return known_hole(&m->window, g) ? start_hole(m, g) : start_data(m, g);
}

/* The held granule: when the writes in flight on it have ended it is copied, at once. */
static void copy_held(struct bm_mirror *m)
{
	uint64_t g = m->hold_granule;

	if (!bm_bitmap_test(&m->map.dirty, g)) {
		if (!check_wants(m, g))
			copy_end_hold(m);
	} else if (may_copy(m, g) && !bm_list_linked(&m->hold_copy->link)) {
		start(m->hold_copy, g, 1);
		send(m->hold_copy, m->authority, BM_READ, m->hold_copy->end - m->hold_copy->offset);
	}
}

void copy_run(struct bm_mirror *m)
{
	if (m->paused || m->full || unsettled(m) || cut_made(m) || bm_timer_armed(&m->source_retry))
		return;
	if (m->hold)
		copy_held(m);
	if (!m->map.dirty.count)
		return;
	while (m->copying < governor_depth(m) && start_one(m))
		;
}
