/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the copy cannot read of the authority. A copy that fails is done again granule by granule,
 * to find out which; one granule at a time has three attempts, a second apart, and is unreadable
 * then: it stays dirty, is left out, and nothing that is left out is ever in sync. It is tried
 * again when a guest has written to it, and now and then: what failed may have been the way to it.
 */
#include <errno.h>

#include "blockmirror/mirror/engine.h"

#define RETRY         1000000000ull  /* ns */
#define TRY_AGAIN     60000000000ull /* ns */
#define ATTEMPTS      3
#define NOTHING_FAILS UINT64_MAX

static void retry(struct bm_timer *timer)
{
	mirror_kick(bm_container(timer, struct bm_mirror, source_retry));
}

static void try_all_again(struct bm_timer *timer)
{
	struct bm_mirror *m = bm_container(timer, struct bm_mirror, unreadable_timer);

	bm_bitmap_clear_all(&m->map.unreadable);
	mirror_kick(m);
}

void unreadable_init(struct bm_mirror *m)
{
	m->source_retry.run = retry;
	m->unreadable_timer.run = try_all_again;
	m->failing = NOTHING_FAILS;
	m->rest_told = false;
}

void unreadable_fini(struct bm_mirror *m)
{
	bm_timer_clear(m->loop, &m->source_retry);
	bm_timer_clear(m->loop, &m->unreadable_timer);
}

bool unreadable_may_copy(const struct bm_mirror *m, uint64_t g)
{
	if (bm_bitmap_test(&m->map.unreadable, g))
		return false;
	return !bm_bitmap_test(&m->map.alone, g) || m->failing == NOTHING_FAILS || m->failing == g;
}

void unreadable_forget(struct bm_mirror *m, uint64_t g)
{
	if (m->failing == g)
		m->failing = NOTHING_FAILS;
	bm_bitmap_clear(&m->map.unreadable, g);
	bm_bitmap_clear(&m->map.alone, g);
}

void unreadable_written(struct bm_mirror *m, uint64_t g)
{
	if (bm_bitmap_clear(&m->map.unreadable, g))
		m->rest_told = false;
}

static void give_up(struct bm_mirror *m, uint64_t g)
{
	m->failing = NOTHING_FAILS;
	bm_bitmap_set(&m->map.unreadable, g);
	m->stats.error_offset = g << m->granule_shift;
	mirror_tell(m, BM_MIRROR_SOURCE_ERROR);
	if (!bm_timer_armed(&m->unreadable_timer))
		(void)bm_timer_set(m->loop, &m->unreadable_timer, bm_loop_now(m->loop) + TRY_AGAIN);
}

void unreadable_failed(struct bm_mirror *m, uint64_t first, unsigned granules, int error)
{
	m->stats.error = error;
	m->stats.error_offset = first << m->granule_shift;
	if (granules > 1) {
		for (unsigned i = 0; i < granules; i++)
			bm_bitmap_set(&m->map.alone, first + i);
		m->cursor = first; /* these come next */
		return;
	}
	bm_bitmap_set(&m->map.alone, first);
	if (m->failing != first)
		m->failures = 0;
	m->failing = first;
	if (++m->failures < ATTEMPTS)
		(void)bm_timer_set(m->loop, &m->source_retry, bm_loop_now(m->loop) + RETRY);
	else
		give_up(m, first);
}

void unreadable_run(struct bm_mirror *m)
{
	if (m->rest_told || m->tracking || !m->map.unreadable.count || m->map.copying.count ||
	    m->map.dirty.count != m->map.unreadable.count)
		return;
	m->rest_told = true;
	mirror_tell(m, BM_MIRROR_REST_COPIED);
}

bool bm_mirror_next_unreadable(const struct bm_mirror *m, uint64_t *offset, uint64_t *length)
{
	uint64_t g, last, granule = 1ull << m->granule_shift;

	if (m->link == LINK_NONE || *offset >= m->size)
		return false;
	g = bm_bitmap_next(&m->map.unreadable, (*offset + granule - 1) >> m->granule_shift);
	if (g == BM_BITMAP_NONE)
		return false;
	last = bm_bitmap_next_clear(&m->map.unreadable, g, m->map.granules);
	*offset = g << m->granule_shift;
	*length =
		(last << m->granule_shift < m->size ? last << m->granule_shift : m->size) - *offset;
	return true;
}
