/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The life of a mirror: one device, a target attached, lost, back, detached. What all parts of
 * the engine share is here, too: dirty and clean, sending and receiving, events, statistics.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/mirror/engine.h"

static const struct bm_mirror_config defaults = {
	.granule = 64 << 10,
	.chunk = BM_BUF_MAX,
	.window = WINDOW,
	.misses = 3,
	.deadline = BM_MIRROR_DEADLINE,
	.flush_every = 5000000000,
	.full_retry = 10000000000,
	.grace = 5000000000,
	.extent = 64,
	.claim_every = 5000000000,
};

/* Events are told from the loop, never inside a call of the host's. */

static void tell_all(struct bm_task *task)
{
	struct bm_mirror *m = bm_container(task, struct bm_mirror, tell);

	while (m->events) {
		enum bm_mirror_event event = m->event[0];

		memmove(m->event, m->event + 1, --m->events * sizeof(event));
		m->host->event(m->arg, event);
	}
}

void mirror_tell(struct bm_mirror *m, enum bm_mirror_event event)
{
	assert(m->events < EVENTS);
	m->event[m->events++] = event;
	bm_loop_soon(m->loop, &m->tell);
}

void mirror_kick(struct bm_mirror *m)
{
	bm_loop_soon(m->loop, &m->kick);
}

bool mirror_in_sync(const struct bm_mirror *m)
{
	return m->link == LINK_UP && !m->tracking && !m->map.dirty.count && !m->map.copying.count &&
	       !m->map.quarantine.count;
}

void mirror_mark_dirty(struct bm_mirror *m, uint64_t granule)
{
	mirror_note_dirty(m, granule);
	cut_spoiled(m);
}

void mirror_note_dirty(struct bm_mirror *m, uint64_t granule)
{
	bm_map_unsettle(&m->map, granule);
	bm_bitmap_set(&m->map.dirty, granule);
	check_again(m, granule);
	m->dirtied++;
	m->in_sync_told = false;
	if (unsettled(m))
		m->abort_needed = true;
}

void mirror_mark_clean(struct bm_mirror *m, uint64_t granule)
{
	bm_bitmap_clear(&m->map.dirty, granule);
	unreadable_forget(m, granule);
	m->map.granule[granule].misses = 0;
	if (m->hold && m->hold_granule == granule && !check_wants(m, granule))
		copy_end_hold(m);
}

void mirror_send(struct bm_mirror *m, int side, struct bm_request *rq)
{
	if (!m->in_flight[side]++)
		m->heard[side] = bm_loop_now(m->loop);
	bm_submit(m->side[side], rq);
}

void mirror_received(struct bm_mirror *m, int side)
{
	m->heard[side] = bm_loop_now(m->loop);
	if (!--m->in_flight[side] && side == other(m) && m->link != LINK_UP)
		mirror_kick(m);
}

/* What two devices can do together. The block is the disk's for all time (bm_order_fit()). */
static void set_geometry(struct bm_mirror *m)
{
	struct bm_geometry *g = &m->dev.geometry;
	/* A request that starts inside a granule touches one more than its length tells. */
	uint64_t most = (uint64_t)(MASK - 1) << m->granule_shift;

	g->size = m->size;
	g->block = m->block;
	g->max_transfer = most < BM_BUF_MAX ? (uint32_t)most : BM_BUF_MAX;
	g->max_zero = BM_MAX_ZERO;
	g->flags = m->side[m->authority]->geometry.flags;
	if (m->link == LINK_NONE)
		return;
	if (most < g->max_zero)
		g->max_zero = most;
	if (m->link == LINK_UP)
		g->flags &= m->side[other(m)]->geometry.flags | ~(unsigned)BM_DEV_FAST_ZERO;
	if (m->trim_zeroes)
		g->flags |= BM_DEV_TRIM;
	else
		g->flags &= ~(unsigned)BM_DEV_TRIM;
}

static bool fits(const struct bm_mirror *m, const struct bm_dev *target)
{
	const struct bm_geometry *g = &target->geometry;

	return g->size >= m->size && g->block <= m->block && g->max_transfer >= BM_BUF_MAX &&
	       g->max_zero >= BM_MAX_ZERO;
}

bool mirror_fits_target(const struct bm_mirror *m, const struct bm_dev *target)
{
	return fits(m, target) && !(target->geometry.flags & BM_DEV_READ_ONLY);
}

void mirror_changed(struct bm_mirror *m)
{
	set_geometry(m);
	mirror_kick(m);
}

static void set_timer_in(struct bm_mirror *m, struct bm_timer *timer, uint64_t ns)
{
	/* Room in the timer heap was made when the loop's first timers were armed; without memory a
	 * periodic check is late until the next kick. */
	(void)bm_timer_set(m->loop, timer, bm_loop_now(m->loop) + ns);
}

/* The other side is here: m->trim_zeroes is the same for all that is sent to it from now on. */
void mirror_take_target(struct bm_mirror *m, struct bm_dev *target, enum link link)
{
	m->side[other(m)] = target;
	m->trim_zeroes =
		m->side[m->authority]->geometry.flags & target->geometry.flags & BM_DEV_FAST_ZERO;
	m->link = link;
	m->session++;
	m->tracking = link != LINK_UP;
	m->full = false;
	set_geometry(m);
	mirror_kick(m);
}

/* From here on there are two sides, though the other one may not be here yet. */
static int begin(struct bm_mirror *m, uint8_t *settled, bool resumed, const uint8_t *checkpoint)
{
	int r;

	if (m->link != LINK_NONE)
		return -EBUSY;
	r = bm_map_init(&m->map, m->size, m->granule_shift, settled, resumed);
	if (r < 0)
		return r;
	m->map.doubtful = &m->doubtful;
	r = copy_init(m);
	if (!r)
		r = claims_begin(m, checkpoint);
	if (r < 0) {
		copy_fini(m);
		bm_map_fini(&m->map);
		return r;
	}
	m->link = LINK_GONE;
	m->tracking = true;
	m->trim_zeroes = m->full = m->in_sync_told = m->detach_wanted = false;
	m->cursor = 0;
	m->recents = 0;
	unreadable_init(m);
	memset(&m->stats, 0, sizeof(m->stats));
	write_count_in_flight(m);
	set_geometry(m);
	set_timer_in(m, &m->deadline, m->config.deadline / 8);
	set_timer_in(m, &m->flusher.timer, m->config.flush_every);
	governor_start(m);
	return 0;
}

int bm_mirror_attach(struct bm_mirror *m, struct bm_dev *target, bool zeroed, uint8_t *settled)
{
	int r;

	if (!mirror_fits_target(m, target))
		return -EINVAL;
	r = begin(m, settled, false, NULL);
	if (r < 0)
		return r;
	if (zeroed)
		bm_bitmap_set_all(&m->map.zero);
	mirror_take_target(m, target, LINK_UP);
	return 0;
}

int bm_mirror_resume(struct bm_mirror *m, uint8_t *settled, const uint8_t *checkpoint)
{
	int r = begin(m, settled, true, checkpoint);

	if (!r)
		again_resumed(m);
	return r;
}

/*
 * What the other side has not flushed it may have lost with its session. One whose flush failed
 * while it was the authority has not flushed what it was asked to then, and no later flush has:
 * anything may be gone.
 */
static void distrust_unstable(struct bm_mirror *m)
{
	if (m->doubted >> other(m) & 1)
		bm_mirror_distrust(m);
	bm_bitmap_each(g, &m->map.open)
		mirror_mark_dirty(m, g);
	bm_bitmap_each(h, &m->map.closed)
		mirror_mark_dirty(m, h);
	bm_bitmap_clear_all(&m->map.open);
	bm_bitmap_clear_all(&m->map.closed);
	bm_bitmap_clear_all(&m->map.zero);
}

/* No request goes to the other side any more; those in flight are ended as fast as can be. */
static void drop_other(struct bm_mirror *m, enum link link)
{
	m->link = link;
	m->session++;
	m->tracking = true;
	distrust_unstable(m);
	again_cut(m);
	copy_end_hold(m);
	switch_interrupted(m);
	cut_spoiled(m);
	if (m->side[other(m)])
		bm_dev_cancel(m->side[other(m)]);
	set_geometry(m);
	mirror_kick(m);
}

void mirror_lose(struct bm_mirror *m, int error)
{
	if (m->link != LINK_UP && m->link != LINK_PROVING)
		return;
	m->stats.losses++;
	m->stats.error = error;
	mirror_tell(m, BM_MIRROR_LOST);
	drop_other(m, LINK_LOST);
}

static void full_retry(struct bm_timer *timer)
{
	struct bm_mirror *m = bm_container(timer, struct bm_mirror, full_timer);

	if (!m->full)
		return;
	m->full = false;
	if (m->link == LINK_UP) {
		m->tracking = false;
		mirror_tell(m, BM_MIRROR_RESUMED);
	}
	mirror_kick(m);
}

void mirror_other_failed(struct bm_mirror *m, int error)
{
	if (error != -ENOSPC && error != -EDQUOT) {
		mirror_lose(m, error);
		return;
	}
	m->stats.error = error;
	if (m->full)
		return;
	m->full = true;
	m->tracking = true;
	copy_end_hold(m);
	switch_interrupted(m);
	cut_spoiled(m);
	set_timer_in(m, &m->full_timer, m->config.full_retry);
	mirror_tell(m, BM_MIRROR_FULL);
}

int bm_mirror_detach(struct bm_mirror *m)
{
	if (m->link == LINK_NONE)
		return -ENOTCONN;
	if (unsettled(m)) { /* who is the authority is being written down: that comes first */
		m->detach_wanted = true;
		m->abort_needed = true;
		return 0;
	}
	if (m->link == LINK_LEAVING)
		return 0;
	m->phase = PHASE_IDLE;
	m->both_durable = false;
	drop_other(m, LINK_LEAVING);
	claims_leave(m);
	return 0;
}

/* The last request that knew of the other side has ended. */
static void forget_other(struct bm_mirror *m)
{
	bm_list_each(node, &m->running)
		bm_container(node, struct op, link)->counted = false;
	governor_stop(m);
	bm_timer_clear(m->loop, &m->deadline);
	bm_timer_clear(m->loop, &m->flusher.timer);
	bm_timer_clear(m->loop, &m->full_timer);
	bm_timer_clear(m->loop, &m->grace_timer);
	unreadable_fini(m);
	bm_timer_clear(m->loop, &m->switch_timer);
	m->switch_after = m->slow_flushes = 0;
	m->covering = NULL;
	check_stop(m);
	copy_fini(m);
	claims_fini(m);
	bm_map_unsettle_all(&m->map); /* writes are not noted in it any more */
	bm_map_fini(&m->map);
	m->link = LINK_NONE;
	m->tracking = m->full = m->detach_wanted = false;
	m->side[other(m)] = NULL;
	set_geometry(m);
	cut_forget(m);
	mirror_tell(m, BM_MIRROR_DETACHED);
}

static void check_leaving(struct bm_mirror *m)
{
	if (m->in_flight[other(m)])
		return;
	if (m->link == LINK_LOST) {
		m->link = LINK_GONE;
		m->side[other(m)] = NULL; /* the host closes it */
		mirror_tell(m, BM_MIRROR_LOST_IDLE);
	} else if (m->link == LINK_LEAVING && !m->map.copying.count && !m->window.asked &&
		   !m->flusher.active && !m->check.running && claims_left(m)) {
		forget_other(m);
	}
}

/* Something changed: go on with whatever waited for it. */
static void run_kick(struct bm_task *task)
{
	struct bm_mirror *m = bm_container(task, struct bm_mirror, kick);

	if (m->link == LINK_NONE)
		return;
	if (m->detach_wanted && !unsettled(m)) {
		m->detach_wanted = false;
		bm_mirror_detach(m);
	}
	if (!m->hold)
		write_release_held(m);
	if (m->link == LINK_PROVING)
		check_sample(m);
	if (m->link != LINK_UP) {
		check_leaving(m);
		return;
	}
	copy_run(m);
	if (mirror_in_sync(m) && !m->in_sync_told) {
		m->in_sync_told = true;
		mirror_tell(m, BM_MIRROR_IN_SYNC);
	}
	unreadable_run(m);
	check_run(m);
	switch_run(m);
	cut_run(m);
}

void bm_mirror_pause(struct bm_mirror *m, bool paused)
{
	m->paused = paused;
	if (paused) /* nobody waits for a copy that does not go on */
		copy_end_hold(m);
	if (!paused && m->full) /* a user who resumes has made space */
		set_timer_in(m, &m->full_timer, 0);
	mirror_kick(m);
}

/* The mirror goes with bm_mirror_free() alone. */
static void mirror_close(struct bm_dev *dev)
{
	(void)dev;
}

static void mirror_start(struct bm_dev *dev)
{
	(void)dev;
}

static void mirror_cancel(struct bm_dev *dev)
{
	struct bm_mirror *m = bm_container(dev, struct bm_mirror, dev);

	bm_dev_cancel(m->side[m->authority]);
}

static const struct bm_dev_ops mirror_ops = {
	.name = "mirror",
	.start = mirror_start,
	.submit = write_submit,
	.cancel = mirror_cancel,
	.close = mirror_close,
};

#define OR_DEFAULT(field)                                 \
	do {                                              \
		if (!m->config.field)                     \
			m->config.field = defaults.field; \
	} while (0)

static int take_config(struct bm_mirror *m, const struct bm_mirror_config *config)
{
	unsigned granule;

	m->config = *config;
	OR_DEFAULT(granule);
	OR_DEFAULT(chunk);
	OR_DEFAULT(window);
	OR_DEFAULT(misses);
	OR_DEFAULT(deadline);
	OR_DEFAULT(flush_every);
	OR_DEFAULT(full_retry);
	OR_DEFAULT(grace);
	OR_DEFAULT(extent);
	OR_DEFAULT(claim_every);
	granule = m->config.granule;
	if (granule < 512 || granule > BM_BUF_MAX || granule & (granule - 1) ||
	    m->config.window > WINDOW || m->config.misses > BM_MISSES_MAX ||
	    m->config.chunk > BM_BUF_MAX || m->config.extent > 64 ||
	    m->config.extent & (m->config.extent - 1))
		return -EINVAL;
	m->granule_shift = (unsigned)__builtin_ctz(granule);
	m->block = m->side[0]->geometry.block;
	m->size = config->size ? config->size : m->side[0]->geometry.size;
	if (!m->size || m->size % m->block || m->block > granule)
		return -EINVAL;
	return fits(m, m->side[0]) ? 0 : -EINVAL;
}

int bm_mirror_new(struct bm_loop *loop, struct bm_dev *source,
		  const struct bm_mirror_config *config, const struct bm_mirror_host *host,
		  void *arg, struct bm_mirror **mirror)
{
	struct bm_mirror *m = calloc(1, sizeof(*m));
	int r;

	if (!m)
		return -ENOMEM;
	m->loop = loop;
	m->host = host;
	m->arg = arg;
	m->side[0] = source;
	r = take_config(m, config);
	if (r < 0) {
		free(m);
		return r;
	}
	m->doubtful = config->doubtful;
	m->doubted = config->doubtful ? 3 : 0; /* it may have been of either */
	m->dev.ops = &mirror_ops;
	m->dev.loop = loop;
	m->tell.run = tell_all;
	m->kick.run = run_kick;
	m->deadline.run = write_check_deadline;
	flush_init(m);
	again_init(m);
	switch_init(m);
	m->full_timer.run = full_retry;
	bm_later_init(&m->later, loop);
	write_init(m);
	claims_init(m);
	check_init(m);
	governor_init(m);
	dirty_init(m);
	set_geometry(m);
	*mirror = m;
	return 0;
}

void bm_mirror_free(struct bm_mirror *m)
{
	if (!m)
		return;
	bm_task_cancel(&m->tell);
	bm_task_cancel(&m->kick);
	bm_task_cancel(&m->later.task);
	bm_timer_clear(m->loop, &m->deadline);
	bm_timer_clear(m->loop, &m->flusher.timer);
	bm_timer_clear(m->loop, &m->commit_retry);
	bm_timer_clear(m->loop, &m->switch_timer);
	bm_timer_clear(m->loop, &m->full_timer);
	bm_timer_clear(m->loop, &m->grace_timer);
	unreadable_fini(m);
	governor_fini(m);
	for (int i = 0; i < OPS; i++)
		bm_buf_unref(m->op[i].buf);
	check_fini(m);
	copy_fini(m);
	claims_fini(m);
	bm_map_fini(&m->map);
	free(m);
}

struct bm_dev *bm_mirror_dev(struct bm_mirror *m)
{
	return &m->dev;
}

uint64_t bm_mirror_map_bytes(uint64_t size, unsigned granule)
{
	granule = granule ? granule : defaults.granule;
	return ((size + granule - 1) / granule + 7) / 8;
}

static enum bm_mirror_state state_of(const struct bm_mirror *m)
{
	if (m->link == LINK_NONE)
		return BM_STATE_ALONE;
	if (unsettled(m))
		return BM_STATE_SWITCHING;
	if (m->link == LINK_LEAVING)
		return BM_STATE_DETACHING;
	if (m->link != LINK_UP)
		return BM_STATE_LOST;
	if (m->full)
		return BM_STATE_FULL;
	if (cut_made(m))
		return BM_STATE_CUTTING;
	if (mirror_in_sync(m))
		return BM_STATE_IN_SYNC;
	return m->paused ? BM_STATE_PAUSED : BM_STATE_COPYING;
}

void bm_mirror_get_stats(const struct bm_mirror *m, struct bm_mirror_stats *stats)
{
	*stats = m->stats;
	stats->state = state_of(m);
	stats->authority = m->authority;
	stats->tracking = m->tracking;
	stats->doubtful = m->doubtful;
	stats->granule = 1ull << m->granule_shift;
	stats->size = m->size;
	stats->dirty = m->map.dirty.count;
	stats->quarantined = m->map.quarantine.count;
	stats->unreadable = m->map.unreadable.count;
	stats->rest_copied = m->rest_told && m->map.dirty.count;
	stats->unstable = m->map.open.count + m->map.closed.count + m->map.flushed.count +
			  m->map.covered.count;
	stats->checkpoint_bytes = m->claims.claimed.count << (m->granule_shift + m->claims.shift);
	stats->rate = m->governor.speed;
	stats->guest_p99 = m->governor.p99;
	stats->guest_p50 = m->governor.p50;
	stats->guest_p99_before = m->governor.p99_before;
	stats->guest_p50_before = m->governor.p50_before;
	stats->read_p50 = bm_hist_percentile(&m->read_latency, 0.5);
	stats->write_p50 = bm_hist_percentile(&m->write_latency, 0.5);
	stats->flush_last = m->flusher.took;
	stats->depth = m->link == LINK_NONE ? 0 : governor_depth(m);
	stats->limiter = governor_limiter(m);
}

const char *bm_mirror_state_name(enum bm_mirror_state state)
{
	static const char *const names[] = {
		[BM_STATE_ALONE] = "alone",      [BM_STATE_COPYING] = "copying",
		[BM_STATE_IN_SYNC] = "in-sync",  [BM_STATE_SWITCHING] = "switching",
		[BM_STATE_LOST] = "target-lost", [BM_STATE_FULL] = "target-full",
		[BM_STATE_PAUSED] = "paused",    [BM_STATE_DETACHING] = "detaching",
		[BM_STATE_CUTTING] = "cutting",
	};

	return names[state];
}
