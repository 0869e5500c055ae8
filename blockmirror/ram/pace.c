/* SPDX-License-Identifier: BSD-3-Clause */
/* What the way to the other host takes, and what follows from it. */
#include "blockmirror/ram/pace.h"

#include <string.h>

#define INTERVAL     100000000ull /* ns */
#define LONGEST      5000000000ull
#define SAMPLE_EVERY 200000000ull
#define WINDOW_NS    20000000ull /* all that is under way adds that to the pause */
#define WINDOW_LEAST (512ull << 10)
#define WINDOW_MOST  (8ull << 20)
#define WINDOW_FIRST (2ull << 20)

enum { STEADY = 20 }; /* intervals */

/* The codec has to be so much faster, or it will be what is waited for. */
static const double margin = 1.2;

void bm_pace_init(struct bm_pace *p, enum bm_pace_mode mode, unsigned workers, uint64_t now)
{
	memset(p, 0, sizeof(*p));
	p->mode = mode;
	p->workers = workers;
	p->begun = p->at = now;
	p->compress = mode != BM_PACE_NEVER;
}

static double smooth(double old, double now)
{
	return old > 0 ? old * 0.7 + now * 0.3 : now;
}

static double per_second(uint64_t bytes, uint64_t ns)
{
	return (double)bytes * 1e9 / (double)ns;
}

static bool codec_is_faster(const struct bm_pace *p)
{
	return p->codec_rate > 0 && p->codec_rate * p->workers > p->link_rate * margin;
}

static void decide(struct bm_pace *p, uint64_t now)
{
	uint64_t length = now - p->begun;

	if (p->link_busy > length / 4 && p->wire) {
		p->link_rate = smooth(p->link_rate, per_second(p->wire, p->link_busy));
		p->raw_rate = smooth(p->raw_rate, per_second(p->weight, p->link_busy));
		p->samples += p->samples < STEADY;
		p->steady += (per_second(p->weight, p->link_busy) - p->steady) / p->samples;
	}
	if (p->mode != BM_PACE_AUTO)
		return;
	if (!p->compress && p->link_busy > length / 2 && now >= p->quiet_until)
		p->compress = codec_is_faster(p);
	else if (p->compress && p->codec_busy > length * 3 / 4) {
		p->compress = false;
		p->quiet_until = now + SAMPLE_EVERY;
	}
}

static void add_up(struct bm_pace *p, uint64_t now)
{
	if (p->link_waited)
		p->link_busy += now - p->at;
	if (p->codec_waited)
		p->codec_busy += now - p->at;
	p->at = now;
	if (now - p->begun < INTERVAL)
		return;
	/* A batch that takes longer than an interval is not sent in the last of them alone. */
	if (p->link_waited && !p->wire && now - p->begun < LONGEST)
		return;
	decide(p, now);
	p->begun = now;
	p->link_busy = p->codec_busy = p->wire = p->weight = 0;
}

void bm_pace_waits(struct bm_pace *p, uint64_t now, bool for_link, bool for_codec)
{
	add_up(p, now);
	p->link_waited = for_link;
	p->codec_waited = for_codec;
}

void bm_pace_sent(struct bm_pace *p, uint64_t wire, uint64_t weight)
{
	p->wire += wire;
	p->weight += weight;
}

void bm_pace_compressed(struct bm_pace *p, uint64_t bytes, uint64_t ns)
{
	p->codec_rate = smooth(p->codec_rate, per_second(bytes, ns ? ns : 1));
}

bool bm_pace_compress(struct bm_pace *p, uint64_t now)
{
	if (p->mode != BM_PACE_AUTO)
		return p->compress;
	if (!p->compress && p->link_waited && now >= p->sample_at) {
		p->sample_at = now + SAMPLE_EVERY;
		return true;
	}
	return p->compress;
}

double bm_pace_steady(const struct bm_pace *p)
{
	return p->raw_rate < p->steady ? p->raw_rate : p->steady;
}

uint64_t bm_pace_window(const struct bm_pace *p)
{
	double bytes = p->raw_rate * WINDOW_NS / 1e9;

	if (p->raw_rate <= 0 && !p->link_waited && !p->link_busy)
		return WINDOW_FIRST;
	if (bytes < WINDOW_LEAST)
		return WINDOW_LEAST;
	return bytes > WINDOW_MOST ? WINDOW_MOST : (uint64_t)bytes;
}
