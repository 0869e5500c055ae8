/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How much the copy may take.
 *
 * The guest's latency is looked at in short windows. Within the limit the copy's pace grows, over
 * it the pace shrinks in proportion, down to a least share, so that every move ends. Copies are
 * started evenly at that pace: sixteen together would make a queue that the guest waits behind.
 *
 * The limit is relative to what the guest felt before (BM_LATENCY_AUTO), or an absolute p99. Where
 * the guest was idle before, or is slow although the copy is at its least (its load is another one
 * now, or the target is slow to mirror to), what it feels without a copy is measured: no copy
 * starts for a moment. In AUTO that is the new "before": the end of the move comes first. Under an
 * absolute limit it is the guest that comes first, and when it is the target's leg that is slow,
 * writes go to the authority alone ("tracking") as long as the copy gains on them; then the rest
 * is mirrored to the end whatever it costs.
 *
 * A rate cap that the user sets is a token bucket beside all that.
 */
#include "blockmirror/mirror/engine.h"

enum {
	DEPTH_GUEST = 8,    /* copies in flight beside a guest */
	DEPTH_ALL = 16,     /* when nobody minds */
	ENOUGH = 128,       /* requests in a window that tell something */
	FEW = 16,           /* … in one that tells that the guest is nearly idle */
	STUCK = 12,         /* windows */
	LEAST_PERCENT = 10, /* of the best speed seen: the least share */
	NEAR_END = 256,     /* granules: what is left is mirrored to the end */
};

#define TICK         20000000ull   /* ns */
#define WINDOW_MOST  300000000ull  /* ns: then few requests have to do */
#define PROBE        60000000ull   /* ns */
#define BEFORE_EVERY 5000000000ull /* ns: "before" is the last five to ten seconds */
#define LEAST_PACE   (8ull << 20)  /* bytes/s */
#define FIRST_PACE   (128ull << 20)
#define MOST_PACE    (64ull << 30)
#define SECOND       1000000000ull

static void set_timer(struct bm_mirror *m, struct bm_timer *timer, uint64_t at)
{
	(void)bm_timer_set(m->loop, timer, at);
}

/* The guest's limits in ns; 0: none. */
static uint64_t limit_p99(const struct governor *g)
{
	return g->budget == BM_LATENCY_AUTO ? 2 * g->p99_before : g->budget;
}

static uint64_t limit_p50(const struct governor *g)
{
	return g->budget == BM_LATENCY_AUTO ? g->p50_before * 7 / 5 : 0;
}

static uint64_t least_pace(const struct governor *g)
{
	uint64_t share = g->best / 100 * LEAST_PERCENT;

	return share > LEAST_PACE ? share : LEAST_PACE;
}

/* How far the window is over the limit; below 1: within it. */
static double excess(const struct governor *g)
{
	uint64_t most99 = limit_p99(g), most50 = limit_p50(g);
	double by99 = most99 ? (double)g->p99 / (double)most99 : 0;
	double by50 = most50 ? (double)g->p50 / (double)most50 : 0;

	return by99 > by50 ? by99 : by50;
}

static void set_pace(struct governor *g, double factor)
{
	double pace = (double)g->pace * factor;

	if (pace < (double)least_pace(g))
		pace = (double)least_pace(g);
	/* What is not reached anyway shall not have to be taken back step by step. */
	if (g->speed && pace > 2 * (double)g->best + (double)FIRST_PACE)
		pace = 2 * (double)g->best + (double)FIRST_PACE;
	g->pace = pace < (double)MOST_PACE ? (uint64_t)pace : MOST_PACE;
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
	    m->phase > PHASE_WAIT || m->tracking ||
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

/* The window has enough in it to judge. */
static void judge(struct bm_mirror *m, uint64_t requests)
{
	struct governor *g = &m->governor;
	double over;

	if (requests < FEW) { /* nearly idle: nobody is in the way */
		set_pace(g, 1.5);
		return;
	}
	if (g->budget == BM_LATENCY_AUTO && !g->p99_before) {
		probe(m);
		return;
	}
	over = excess(g);
	if (over > 1) {
		g->found = true;
		g->stuck = g->pace <= least_pace(g) ? g->stuck + 1 : 0;
		set_pace(g, over > 2 ? 0.5 : 1 / over);
		if (g->stuck > STUCK) {
			consider_tracking(m);
			probe(m);
		}
	} else {
		g->stuck = 0;
		set_pace(g, !g->found ? 1.6 : over < 0.8 ? 1.15 : 1.04);
	}
}

static void probe_ended(struct bm_mirror *m, uint64_t requests)
{
	struct governor *g = &m->governor;

	g->probing = false;
	if (requests >= FEW && g->budget == BM_LATENCY_AUTO && (!g->p99_before || excess(g) > 1)) {
		g->p99_before = g->p99;
		g->p50_before = g->p50;
	}
	mirror_kick(m);
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
	uint64_t now = bm_loop_now(m->loop), requests;

	if (m->link == LINK_NONE) {
		look_alone(m);
		return;
	}
	set_timer(m, timer, now + TICK);
	measure_speed(g, now);
	if (tracks(m) && m->map.dirty.count <= NEAR_END)
		end_tracking(m);
	requests = m->config.meter->window.count;
	if (g->probing ? now < g->probe_until
		       : requests < ENOUGH && now - g->window_since < WINDOW_MOST)
		return;
	g->p99 = bm_hist_percentile(&m->config.meter->window, 0.99);
	g->p50 = bm_hist_percentile(&m->config.meter->window, 0.50);
	if (g->probing)
		probe_ended(m, requests);
	else if (g->budget != BM_LATENCY_OFF)
		judge(m, requests);
	bm_hist_reset(&m->config.meter->window);
	g->window_since = now;
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
	g->depth = DEPTH_GUEST;
	if (m->config.meter)
		set_timer(m, &g->timer, bm_loop_now(m->loop) + BEFORE_EVERY);
}

void governor_start(struct bm_mirror *m)
{
	struct governor *g = &m->governor;
	uint64_t now = bm_loop_now(m->loop);

	g->pace = FIRST_PACE;
	g->next_start = g->tokens = g->speed = g->best = g->metered = 0;
	g->metered_since = g->window_since = g->filled_at = now;
	g->found = g->probing = g->tracked_out = false;
	g->stuck = 0;
	bm_hist_reset(&g->leg[0]);
	bm_hist_reset(&g->leg[1]);
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

bool governor_admit(struct bm_mirror *m, uint64_t bytes)
{
	struct governor *g = &m->governor;
	uint64_t now = bm_loop_now(m->loop), step;

	if (g->probing) {
		g->limits = true;
		return false;
	}
	if (!admit_rate(m, bytes, now))
		return false;
	g->limits = false;
	if (m->config.meter && g->budget != BM_LATENCY_OFF) {
		if (now < g->next_start) {
			g->limits = true;
			return wait_until(m, g->next_start);
		}
		/* A late start may be made up for, by one copy, not by a burst. */
		step = (uint64_t)((double)bytes * 1e9 / (double)g->pace);
		g->next_start = (now - g->next_start > step ? now : g->next_start) + step;
	}
	if (g->rate)
		g->tokens -= bytes;
	return true;
}

void governor_meter(struct bm_mirror *m, uint64_t bytes)
{
	m->governor.metered += bytes;
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

void bm_mirror_set_latency(struct bm_mirror *m, uint64_t p99)
{
	m->governor.budget = p99;
	m->governor.found = false;
	m->governor.depth = p99 == BM_LATENCY_OFF ? DEPTH_ALL : DEPTH_GUEST;
	m->governor.probing = false;
	mirror_kick(m);
}
