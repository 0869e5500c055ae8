/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How much the copy may take.
 *
 * The copy has a window, the bytes that it keeps in flight on average, as TCP has: two devices and
 * the guest's own requests share one queue, and what the copy has in it is what the guest waits
 * behind. A window below one copy means pauses between copies. Copies are started evenly, window
 * bytes in the time that a copy takes: when the devices get slower, so do we, at once.
 *
 * The guest's latency moves the window. A limit is a percentile, so requests over it are counted
 * against all: one in a hundred may be over the limit for p99, one in two over that for p50. The
 * p50 is that of some ticks; the p99 that of some hundreds of milliseconds, since a device, or who
 * shares it, may stall ten times a second by itself, and the p99 of a tick is the largest of a few.
 * What is left of the allowance makes the window grow, what is over it makes it shrink, by the same
 * measure: on the average the guest is at its limit, and the copy as quick as that allows. Until a
 * limit was met once, the window grows quickly.
 *
 * The limits are relative to what the guest felt before (BM_LATENCY_AUTO), or an absolute p99.
 * Where the guest was idle before, or is slow although the copy is at its least (its load is
 * another one now, or the target is slow to mirror to), what it feels without a copy is measured:
 * no copy starts for a moment. In AUTO that is the new "before": the end of the move comes first.
 * Under an absolute limit it is the guest that comes first, and when it is the target's leg that is
 * slow, writes go to the authority alone ("tracking") as long as the copy gains on them; then the
 * rest is mirrored to the end whatever it costs.
 *
 * A rate cap that the user sets is a token bucket beside all that.
 */
#include "blockmirror/base/cap.h"
#include "blockmirror/mirror/engine.h"

#include <math.h>

enum {
	ENOUGH = 128,       /* requests that tell what the guest felt before */
	FEW = 16,           /* … in a span: fewer, and the guest is nearly idle */
	STUCK = 40,         /* ticks over the limit at the least pace */
	LEAST_PERCENT = 10, /* of the best speed seen: the least share */
	NEAR_END = 256,     /* granules: what is left is mirrored to the end */
	PARTS = 2,          /* copies that make up a window */
	CHUNK_LEAST = 512 << 10,
};

#define TICK         20000000ull   /* ns */
#define IDLE_AFTER   200000000ull  /* ns: then few requests have to do */
#define P50_MEMORY   4.0           /* ticks */
#define P99_MEMORY   20.0          /* ticks, and as many requests as needed … */
#define P99_REQUESTS 400.0         /* … to have seen four over the limit */
#define SHOWN_EVERY  500000000ull  /* ns: what users see of the guest's latency */
#define PROBE        60000000ull   /* ns */
#define BEFORE_EVERY 5000000000ull /* ns: "before" is the last five to ten seconds */
#define LEAST_PACE   (8ull << 20)  /* bytes/s */
#define WINDOW_FIRST (512ull << 10)
#define WINDOW_LEAST (16ull << 10)
#define WINDOW_MOST  (16ull << 20)
#define SECOND       1000000000ull

#define LIMIT_P50    1.6 /* times before: the default limits */
#define LIMIT_P99    2.0
#define GROWTH_FIRST 0.26 /* of the window's logarithm, in a tick, until a limit was met */
#define GROWTH       0.06 /* … with no request over the limit */
#define SHRINK_MOST  0.30

static void set_timer(struct bm_mirror *m, struct bm_timer *timer, uint64_t at)
{
	(void)bm_timer_set(m->loop, timer, at);
}

static uint64_t least_pace(const struct governor *g)
{
	uint64_t share = g->best / 100 * LEAST_PERCENT;

	return share > LEAST_PACE ? share : LEAST_PACE;
}

/* Bytes/s: a window in the time that a copy takes. */
static uint64_t pace_of(const struct governor *g)
{
	double pace = g->window * 1e9 / g->service;

	return pace < (double)least_pace(g) ? least_pace(g) : (uint64_t)pace;
}

static bool at_least_pace(const struct governor *g)
{
	return g->window * 1e9 / g->service < (double)least_pace(g);
}

static uint64_t limit(uint64_t before, double factor)
{
	return (uint64_t)((double)before * factor);
}

/* How many of the requests are over the limits of the p50 and p99. */
static void count_over(const struct governor *g, const struct bm_hist *h, double *p50, double *p99)
{
	bool automatic = g->budget == BM_LATENCY_AUTO;

	*p50 = automatic ? (double)bm_hist_above(h, limit(g->p50_before, LIMIT_P50)) : 0;
	*p99 = (double)bm_hist_above(h, automatic ? limit(g->p99_before, LIMIT_P99) : g->budget);
}

/* Adds to a share that forgets: after memory ticks, or requests, what was is a third of what is. */
static void remember(struct bm_share *share, double over, double n, double ticks, double memory,
		     double requests)
{
	double by_time = exp(-ticks / memory), by_count = exp(-n / requests);
	double keep = by_time > by_count ? by_time : by_count;

	share->over = share->over * keep + over;
	share->all = share->all * keep + n;
}

/* How much of what may be over a limit is over it: 1 is just as much. */
static double used(const struct bm_share *share, double allowed)
{
	return share->all > 0 ? share->over / (allowed * share->all) : 0;
}

static double used_most(const struct governor *g)
{
	double p50 = used(&g->share50, 0.5), p99 = used(&g->share99, 0.01);

	return p50 > p99 ? p50 : p99;
}

static void move_window(struct governor *g, double by)
{
	double most = (double)WINDOW_MOST, least = (double)WINDOW_LEAST;

	g->window *= exp(by < -SHRINK_MOST ? -SHRINK_MOST : by);
	g->window = g->window > most ? most : g->window < least ? least : g->window;
}

static void forget(struct governor *g)
{
	g->share50 = g->share99 = (struct bm_share){0};
	g->stuck = 0;
}

static void probe(struct bm_mirror *m)
{
	m->governor.probing = true;
	m->governor.stuck = 0;
	m->governor.probe_until = bm_loop_now(m->loop) + PROBE;
}

/*
 * Tracking: the target's own leg is what the guest cannot bear. It ends when the copy does not get
 * nearer any more, and does not begin again.
 */
static void consider_tracking(struct bm_mirror *m)
{
	struct governor *g = &m->governor;

	if (g->budget == BM_LATENCY_AUTO || g->budget == BM_LATENCY_OFF || g->tracked_out ||
	    m->phase > PHASE_WAIT || m->tracking || cut_made(m) ||
	    bm_hist_percentile(&g->leg[other(m)], 0.99) <= g->budget)
		return;
	m->tracking = true;
	m->in_sync_told = false;
	g->track_dirty = m->map.dirty.count;
	copy_end_hold(m);
	mirror_tell(m, BM_MIRROR_TRACKING);
}

static void end_tracking(struct bm_mirror *m)
{
	m->governor.tracked_out = true;
	m->tracking = false;
	mirror_tell(m, BM_MIRROR_MIRRORING);
	mirror_kick(m);
}

static bool tracks(const struct bm_mirror *m)
{
	return m->tracking && !m->full && m->link == LINK_UP;
}

/* A pass of the copy is over: go on tracking only while there is less and less to copy. */
void governor_pass_ended(struct bm_mirror *m)
{
	struct governor *g = &m->governor;

	if (!tracks(m))
		return;
	if (m->map.dirty.count < g->track_dirty / 4 * 3)
		g->track_dirty = m->map.dirty.count;
	else
		end_tracking(m);
}

/* The last ticks tell something about the guest. */
static void judge(struct bm_mirror *m, const struct bm_hist *h, double ticks)
{
	struct governor *g = &m->governor;
	double p50, p99, most;

	if (h->count < FEW) { /* nearly idle: nobody is in the way */
		move_window(g, GROWTH_FIRST);
		return;
	}
	if (g->budget == BM_LATENCY_AUTO && !g->p99_before) {
		probe(m);
		return;
	}
	count_over(g, h, &p50, &p99);
	remember(&g->share50, p50, (double)h->count, ticks, P50_MEMORY, FEW);
	remember(&g->share99, p99, (double)h->count, ticks, P99_MEMORY, P99_REQUESTS);
	most = used_most(g);
	g->found |= most > 1;
	move_window(g, (g->found ? GROWTH : GROWTH_FIRST) * (1 - most));
	g->stuck = most > 1 && at_least_pace(g) ? g->stuck + (unsigned)ticks : 0;
	if (g->stuck > STUCK) {
		consider_tracking(m);
		probe(m);
	}
}

static void probe_ended(struct bm_mirror *m, const struct bm_hist *h)
{
	struct governor *g = &m->governor;
	double p50, p99;

	g->probing = false;
	count_over(g, h, &p50, &p99);
	if (h->count >= FEW && g->budget == BM_LATENCY_AUTO &&
	    (!g->p99_before || p50 > 0.5 * (double)h->count || p99 > 0.01 * (double)h->count)) {
		g->p99_before = bm_hist_percentile(h, 0.99);
		g->p50_before = bm_hist_percentile(h, 0.50);
	}
	forget(g);
	mirror_kick(m);
}

/* What users see: the last half second. */
static void show(struct governor *g, const struct bm_hist *h, uint64_t now)
{
	bm_hist_merge(&g->shown, h);
	if (now - g->shown_since < SHOWN_EVERY)
		return;
	g->p99 = bm_hist_percentile(&g->shown, 0.99);
	g->p50 = bm_hist_percentile(&g->shown, 0.50);
	bm_hist_reset(&g->shown);
	g->shown_since = now;
}

static void measure_speed(struct governor *g, uint64_t now)
{
	if (now - g->metered_since < SECOND / 2)
		return;
	g->speed = (uint64_t)((double)g->metered * 1e9 / (double)(now - g->metered_since));
	if (g->speed > g->best)
		g->best = g->speed;
	g->metered = 0;
	g->metered_since = now;
}

/* Nobody moves the disk: what the guest feels is "before". */
static void look_alone(struct bm_mirror *m)
{
	struct governor *g = &m->governor;

	g->before = m->config.meter->window;
	bm_hist_reset(&m->config.meter->window);
	set_timer(m, &g->timer, bm_loop_now(m->loop) + BEFORE_EVERY);
}

static void look(struct bm_timer *timer)
{
	struct bm_mirror *m = bm_container(timer, struct bm_mirror, governor.timer);
	struct governor *g = &m->governor;
	struct bm_hist *h = &m->config.meter->window;
	uint64_t now = bm_loop_now(m->loop);

	if (m->link == LINK_NONE) {
		look_alone(m);
		return;
	}
	set_timer(m, timer, now + TICK);
	measure_speed(g, now);
	if (tracks(m) && m->map.dirty.count <= NEAR_END)
		end_tracking(m);
	if (g->probing ? now < g->probe_until : h->count < FEW && now - g->span_since < IDLE_AFTER)
		return;
	if (g->probing)
		probe_ended(m, h);
	else if (g->budget != BM_LATENCY_OFF)
		judge(m, h, (double)(now - g->span_since) / (double)TICK);
	show(g, h, now);
	bm_hist_reset(h);
	g->span_since = now;
}

static void start_now(struct bm_timer *timer)
{
	mirror_kick(bm_container(timer, struct bm_mirror, governor.start_timer));
}

void governor_init(struct bm_mirror *m)
{
	struct governor *g = &m->governor;

	g->timer.run = look;
	g->start_timer.run = start_now;
	if (m->config.meter)
		set_timer(m, &g->timer, bm_loop_now(m->loop) + BEFORE_EVERY);
}

void governor_start(struct bm_mirror *m)
{
	struct governor *g = &m->governor;
	uint64_t now = bm_loop_now(m->loop);

	g->window = (double)WINDOW_FIRST;
	g->service = 1e6;
	g->next_start = g->tokens = g->speed = g->best = g->metered = 0;
	g->metered_since = g->span_since = g->shown_since = g->filled_at = now;
	g->probing = g->found = g->tracked_out = false;
	forget(g);
	bm_hist_reset(&g->leg[0]);
	bm_hist_reset(&g->leg[1]);
	bm_hist_reset(&g->shown);
	g->p99_before = g->p50_before = g->p99 = g->p50 = 0;
	if (!m->config.meter)
		return;
	bm_hist_merge(&g->before, &m->config.meter->window);
	if (g->before.count >= ENOUGH) {
		g->p99_before = bm_hist_percentile(&g->before, 0.99);
		g->p50_before = bm_hist_percentile(&g->before, 0.50);
	}
	bm_hist_reset(&m->config.meter->window);
	set_timer(m, &g->timer, now + TICK);
}

void governor_stop(struct bm_mirror *m)
{
	bm_timer_clear(m->loop, &m->governor.start_timer);
}

void governor_fini(struct bm_mirror *m)
{
	governor_stop(m);
	bm_timer_clear(m->loop, &m->governor.timer);
}

static bool wait_until(struct bm_mirror *m, uint64_t at)
{
	if (!bm_timer_armed(&m->governor.start_timer) || m->governor.start_timer.at > at)
		set_timer(m, &m->governor.start_timer, at);
	return false;
}

/* The cap: a bucket that holds a tenth of a second. */
static bool admit_rate(struct bm_mirror *m, uint64_t bytes, uint64_t now)
{
	struct governor *g = &m->governor;
	uint64_t most = g->rate / 10 > bytes ? g->rate / 10 : bytes;

	g->rate_limits = false;
	if (!g->rate)
		return true;
	g->tokens += (uint64_t)((double)(now - g->filled_at) * (double)g->rate / 1e9);
	g->filled_at = now;
	if (g->tokens > most)
		g->tokens = most;
	if (g->tokens >= bytes)
		return true;
	g->rate_limits = true;
	return wait_until(m, now + (uint64_t)((double)(bytes - g->tokens) * 1e9 / (double)g->rate) +
				     1);
}

/* Nobody has to be spared: the window is as large as can be. */
static bool free_rein(const struct bm_mirror *m)
{
	return !m->config.meter || m->governor.budget == BM_LATENCY_OFF;
}

static double window_of(const struct bm_mirror *m)
{
	return free_rein(m) ? (double)WINDOW_MOST : m->governor.window;
}

unsigned governor_chunk(const struct bm_mirror *m)
{
	double part = window_of(m) / PARTS;
	unsigned chunk = CHUNK_LEAST;

	while (chunk < m->config.chunk && chunk * 2 <= part)
		chunk *= 2;
	return chunk < m->config.chunk ? chunk : m->config.chunk;
}

unsigned governor_depth(const struct bm_mirror *m)
{
	unsigned depth = (unsigned)(window_of(m) / governor_chunk(m)) + 1;

	return depth < COPIES ? depth : COPIES;
}

/* Evenly, at the window's pace. */
static bool admit_pace(struct bm_mirror *m, uint64_t bytes, uint64_t now)
{
	struct governor *g = &m->governor;
	uint64_t step;

	g->limits = !free_rein(m) && (g->probing || now < g->next_start);
	if (g->limits)
		return g->probing ? false : wait_until(m, g->next_start);
	/* A late start may be made up for, by one copy, not by a burst. */
	step = (uint64_t)((double)bytes * 1e9 / (double)pace_of(g));
	g->next_start = (now - g->next_start > step ? now : g->next_start) + step;
	return true;
}

bool governor_admit(struct bm_mirror *m, uint64_t bytes)
{
	struct governor *g = &m->governor;
	uint64_t now = bm_loop_now(m->loop), again;

	if (!admit_rate(m, bytes, now) || !admit_pace(m, bytes ? bytes : governor_chunk(m), now))
		return false;
	if (m->cap && bytes && !bm_cap_admit(m->cap, bytes, now, &again)) {
		g->rate_limits = true;
		return wait_until(m, again);
	}
	if (g->rate)
		g->tokens -= bytes;
	return true;
}

void governor_meter(struct bm_mirror *m, uint64_t bytes)
{
	m->governor.metered += bytes;
}

void governor_took(struct bm_mirror *m, uint64_t ns)
{
	struct governor *g = &m->governor;

	double took = (double)ns < 2 * g->service ? (double)ns : 2 * g->service;

	/* A stall is no reason to go slowly after it: it counts as twice the usual. */
	g->service += (took - g->service) / 8;
	if (g->service < 1e4)
		g->service = 1e4;
}

const char *governor_limiter(const struct bm_mirror *m)
{
	const struct governor *g = &m->governor;
	uint64_t read = bm_hist_percentile(&m->read_latency, 0.5);
	uint64_t write = bm_hist_percentile(&m->write_latency, 0.5);

	if (m->link == LINK_NONE)
		return "";
	if (m->link != LINK_UP)
		return "target lost";
	if (m->full)
		return "target full";
	if (m->paused)
		return "paused";
	if (!m->map.dirty.count)
		return unsettled(m) ? "record" : m->phase >= PHASE_PRE ? "target flush" : "";
	if (g->rate_limits)
		return "rate cap";
	if (g->limits)
		return "guest latency";
	return write > read ? "target write" : "source read";
}

void bm_mirror_set_rate(struct bm_mirror *m, uint64_t rate)
{
	m->governor.rate = rate;
	m->governor.tokens = 0;
	mirror_kick(m);
}

void bm_mirror_set_cap(struct bm_mirror *m, struct bm_cap *cap)
{
	m->cap = cap;
	mirror_kick(m);
}

void bm_mirror_set_latency(struct bm_mirror *m, uint64_t p99)
{
	m->governor.budget = p99;
	m->governor.probing = false;
	mirror_kick(m);
}
