/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The durable checkpoint: what it claims, and how a claim is taken back.
 *
 * The host keeps a copy of the settled map that outlives a power cut. It is changed an extent (64
 * granules) at a time. An extent is *claimed* from the moment in which its bits are given to the
 * host to be written until the host says that it is durably cleared again. The one rule:
 *
 *	nothing is sent to either side in an extent that is claimed
 *
 * So a claim stays true from the moment it is taken, however long it is under way, and whatever of
 * it a power cut lets through: each bit of it may be there or not. A write, or a copy, that comes
 * to a claimed extent asks for its withdrawal, and waits. Only extents in which nothing was sent
 * for a while are claimed: those that are written to all the time never wait.
 */
#include <assert.h>
#include <errno.h>

#include "blockmirror/mirror/engine.h"

enum {
	SCAN = 16384,      /* extents looked at in one go */
	FELT = 200,        /* one of so many writes may wait; if more do, claims are taken later */
	MOST_PATIENT = 64, /* ... but not more than so many intervals */
};

static uint64_t first_of(const struct claims *c, uint64_t extent)
{
	return extent << c->shift;
}

static uint64_t end_of(const struct bm_mirror *m, uint64_t extent)
{
	uint64_t end = (extent + 1) << m->claims.shift;

	return end < m->map.granules ? end : m->map.granules;
}

static void tell_host(struct bm_task *task)
{
	struct bm_mirror *m = bm_container(task, struct bm_mirror, claims.tell);

	if (m->claims.active && !m->claims.kept)
		m->host->claims(m->arg);
}

/* Whether something may be sent to the extent now; if not, its claim is being withdrawn. */
static bool let(struct bm_mirror *m, uint64_t extent)
{
	struct claims *c = &m->claims;

	bm_bitmap_set(&c->hot, extent);
	if (!bm_bitmap_test(&c->claimed, extent))
		return true;
	if (!bm_bitmap_test(&c->taken, extent) && bm_bitmap_set(&c->asked, extent))
		bm_loop_soon(m->loop, &c->tell);
	return false;
}

bool claims_let_copy(struct bm_mirror *m, uint64_t granule)
{
	return !m->claims.active || let(m, granule >> m->claims.shift);
}

bool claims_hold(struct bm_mirror *m, struct bm_request *rq)
{
	struct claims *c = &m->claims;
	unsigned shift = m->granule_shift + c->shift;
	bool free = true;

	if (!c->active || (rq->op != BM_WRITE && rq->op != BM_ZERO && rq->op != BM_TRIM))
		return false;
	for (uint64_t e = rq->offset >> shift; e <= (rq->offset + rq->length - 1) >> shift; e++)
		free &= let(m, e);
	c->writes++;
	if (free)
		return false;
	c->waits++;
	m->stats.checkpoint_waits++;
	bm_list_append(&c->waiting, &rq->link);
	return true;
}

/* Claims are gone: who waited for that goes on, or asks for the next one that is in its way. */
static void release(struct bm_mirror *m)
{
	struct bm_list waiting, *node;

	bm_list_init(&waiting);
	bm_list_move_all(&waiting, &m->claims.waiting);
	while ((node = bm_list_take(&waiting)))
		write_arrive(m, bm_container(node, struct bm_request, link));
	mirror_kick(m);
}

/* Taking claims */

static uint64_t settled_in(const struct bm_mirror *m, uint64_t extent)
{
	uint64_t first = first_of(&m->claims, extent), end = end_of(m, extent), word = 0;

	for (uint64_t g = first; g < end; g++)
		if (g % 8 == 0 && !m->map.settled[g / 8])
			g += 7;
		else if (bm_map_is_settled(&m->map, g))
			word |= 1ull << (g - first);
	return word;
}

/* Whether what is not settled in it will not be so by itself, in a moment. */
static bool at_rest(const struct bm_mirror *m, uint64_t extent, uint64_t word)
{
	uint64_t first = first_of(&m->claims, extent), end = end_of(m, extent);

	for (uint64_t g = first; g < end; g++)
		if (!(word >> (g - first) & 1) &&
		    (!bm_bitmap_test(&m->map.dirty, g) || m->map.granule[g].busy ||
		     bm_bitmap_test(&m->map.copying, g)))
			return false;
	return true;
}

static bool is_cold(const struct claims *c, uint64_t extent)
{
	return !bm_bitmap_test(&c->hot, extent) && !bm_bitmap_test(&c->warm, extent);
}

static unsigned claim(struct bm_mirror *m, struct bm_claim *v, unsigned room)
{
	struct claims *c = &m->claims;
	unsigned n = 0;

	for (int looked = 0; c->due && n < room && looked < SCAN; looked++) {
		uint64_t e = c->cursor++, word;

		if (e == c->claimed.bits) {
			c->due = false;
			break;
		}
		if (bm_bitmap_test(&c->claimed, e) || !is_cold(c, e))
			continue;
		word = settled_in(m, e);
		if (!word || !at_rest(m, e, word))
			continue;
		/* From here on a write waits: the claim may be durable at any moment. */
		bm_bitmap_set(&c->claimed, e);
		v[n++] = (struct bm_claim){.extent = e, .settled = word};
	}
	return n;
}

unsigned bm_mirror_take_claims(struct bm_mirror *m, struct bm_claim *v, unsigned room)
{
	struct claims *c = &m->claims;
	unsigned n = 0;

	if (!c->active || c->kept)
		return 0;
	for (uint64_t e; n < room && (e = bm_bitmap_next(&c->asked, 0)) != BM_BITMAP_NONE; n++) {
		bm_bitmap_clear(&c->asked, e);
		bm_bitmap_set(&c->taken, e);
		v[n] = (struct bm_claim){.extent = e};
	}
	n += claim(m, v + n, room - n);
	if (c->due || c->asked.count)
		bm_loop_soon(m->loop, &c->tell);
	return n;
}

/* Withdrawing them */

void bm_mirror_claims_durable(struct bm_mirror *m)
{
	struct claims *c = &m->claims;

	if (!c->active)
		return;
	bm_bitmap_each(e, &c->taken)
		bm_bitmap_clear(&c->claimed, e);
	bm_bitmap_clear_all(&c->taken);
	release(m);
}

void bm_mirror_claims_void(struct bm_mirror *m)
{
	struct claims *c = &m->claims;

	if (!c->active)
		return;
	bm_bitmap_clear_all(&c->claimed);
	bm_bitmap_clear_all(&c->asked);
	bm_bitmap_clear_all(&c->taken);
	c->due = false;
	release(m);
}

bool bm_mirror_claims_awaited(const struct bm_mirror *m)
{
	return m->claims.active && (m->claims.asked.count || m->claims.taken.count);
}

/* The other side is let go: nothing is noted any more, and the record may still name the map. */
void claims_leave(struct bm_mirror *m)
{
	struct claims *c = &m->claims;

	if (!c->active || c->kept)
		return;
	c->due = false;
	bm_bitmap_each(e, &c->claimed)
		(void)let(m, e);
}

bool claims_left(const struct bm_mirror *m)
{
	return !m->claims.active || m->claims.kept || !m->claims.claimed.count;
}

/*
 * Time. A guest that writes a little here and a little there, all over the disk, finds cold extents
 * with every write: the more of its writes wait, the longer is cold.
 */
static void tick(struct bm_timer *timer)
{
	struct bm_mirror *m = bm_container(timer, struct bm_mirror, claims.timer);
	struct claims *c = &m->claims;

	(void)bm_timer_set(m->loop, timer, bm_loop_now(m->loop) + m->config.claim_every);
	if (++c->ticks < c->patience)
		return;
	if (c->waits * FELT > c->writes)
		c->patience = c->patience < MOST_PATIENT ? c->patience * 2 : MOST_PATIENT;
	else if (c->patience > 1)
		c->patience /= 2;
	c->ticks = 0;
	c->writes = c->waits = 0;
	bm_bitmap_swap(&c->hot, &c->warm);
	bm_bitmap_clear_all(&c->hot);
	c->cursor = 0;
	c->due = m->map.settled && m->link != LINK_LEAVING;
	bm_loop_soon(m->loop, &c->tell);
}

/* What a checkpoint that is there says already. */
static void believe(struct bm_mirror *m, const uint8_t *checkpoint)
{
	for (uint64_t g = 0; g < m->map.granules; g++)
		if (checkpoint[g / 8] >> g % 8 & 1)
			bm_bitmap_set(&m->claims.claimed, g >> m->claims.shift);
}

int claims_begin(struct bm_mirror *m, const uint8_t *checkpoint)
{
	struct claims *c = &m->claims;
	uint64_t extents;

	c->shift = (unsigned)__builtin_ctz(m->config.extent);
	extents = (m->map.granules + m->config.extent - 1) >> c->shift;
	c->kept = c->due = false;
	c->ticks = 0;
	c->patience = 1;
	c->writes = c->waits = 0;
	if (!m->host->claims || (!m->map.settled && !checkpoint))
		return 0;
	if (bm_bitmap_init(&c->claimed, extents) || bm_bitmap_init(&c->asked, extents) ||
	    bm_bitmap_init(&c->taken, extents) || bm_bitmap_init(&c->hot, extents) ||
	    bm_bitmap_init(&c->warm, extents)) {
		claims_fini(m);
		return -ENOMEM;
	}
	c->active = true;
	if (checkpoint)
		believe(m, checkpoint);
	(void)bm_timer_set(m->loop, &c->timer, bm_loop_now(m->loop) + m->config.claim_every);
	return 0;
}

void claims_fini(struct bm_mirror *m)
{
	struct claims *c = &m->claims;

	bm_timer_clear(m->loop, &c->timer);
	bm_task_cancel(&c->tell);
	c->active = false;
	bm_bitmap_fini(&c->claimed);
	bm_bitmap_fini(&c->asked);
	bm_bitmap_fini(&c->taken);
	bm_bitmap_fini(&c->hot);
	bm_bitmap_fini(&c->warm);
}

void claims_init(struct bm_mirror *m)
{
	m->claims.timer.run = tick;
	m->claims.tell.run = tell_host;
	bm_list_init(&m->claims.waiting);
}

void bm_mirror_distrust(struct bm_mirror *m)
{
	for (uint64_t g = 0; g < m->map.granules; g++)
		mirror_mark_dirty(m, g);
}

void bm_mirror_keep_map(struct bm_mirror *m)
{
	m->map.settled = NULL;
	m->claims.kept = true;
}
