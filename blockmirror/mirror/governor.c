/* SPDX-License-Identifier: BSD-3-Clause */
/* How much the copy may take. */
#include "blockmirror/mirror/engine.h"

void governor_init(struct bm_mirror *m)
{
	m->governor.depth = 4;
}

void governor_start(struct bm_mirror *m)
{
	(void)m;
}

void governor_stop(struct bm_mirror *m)
{
	(void)m;
}

bool governor_admit(struct bm_mirror *m, uint64_t bytes)
{
	(void)m;
	(void)bytes;
	return true;
}

void governor_meter(struct bm_mirror *m, uint64_t bytes)
{
	m->governor.meter_bytes += bytes;
}

const char *governor_limiter(const struct bm_mirror *m)
{
	(void)m;
	return "none";
}

void bm_mirror_set_rate(struct bm_mirror *m, uint64_t rate)
{
	m->governor.rate = rate;
}

void bm_mirror_set_latency(struct bm_mirror *m, uint64_t p99)
{
	m->governor.budget = p99;
}
