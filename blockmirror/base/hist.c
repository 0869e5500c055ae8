/* SPDX-License-Identifier: BSD-3-Clause */
/* Latency histograms, logarithmic with eight linear steps per power of two. */
#include "blockmirror/base/hist.h"

#include <string.h>

static unsigned bucket_of(uint64_t ns)
{
	unsigned log, bucket;

	if (ns < 8)
		return (unsigned)ns;
	log = 63 - (unsigned)__builtin_clzll(ns);
	bucket = (log - 2) * 8 + (unsigned)((ns >> (log - 3)) & 7);
	return bucket < BM_HIST_BUCKETS ? bucket : BM_HIST_BUCKETS - 1;
}

/* The largest value that falls into bucket. */
static uint64_t bucket_top(unsigned bucket)
{
	unsigned log = bucket / 8 + 2;

	if (bucket < 8)
		return bucket;
	return ((uint64_t)(8 + bucket % 8 + 1) << (log - 3)) - 1;
}

void bm_hist_add(struct bm_hist *hist, uint64_t ns)
{
	hist->bucket[bucket_of(ns)]++;
	hist->count++;
	if (ns > hist->max)
		hist->max = ns;
}

uint64_t bm_hist_percentile(const struct bm_hist *hist, double share)
{
	uint64_t want = (uint64_t)((double)hist->count * share), seen = 0;

	if (!hist->count)
		return 0;
	for (unsigned i = 0; i < BM_HIST_BUCKETS; i++) {
		seen += hist->bucket[i];
		if (seen > want || seen == hist->count)
			return bucket_top(i) < hist->max ? bucket_top(i) : hist->max;
	}
	return hist->max;
}

uint64_t bm_hist_above(const struct bm_hist *hist, uint64_t ns)
{
	uint64_t count = 0;

	for (unsigned i = bucket_of(ns) + 1; i < BM_HIST_BUCKETS; i++)
		count += hist->bucket[i];
	return count;
}

void bm_hist_merge(struct bm_hist *hist, const struct bm_hist *from)
{
	for (unsigned i = 0; i < BM_HIST_BUCKETS; i++)
		hist->bucket[i] += from->bucket[i];
	hist->count += from->count;
	if (from->max > hist->max)
		hist->max = from->max;
}

void bm_hist_reset(struct bm_hist *hist)
{
	memset(hist, 0, sizeof(*hist));
}
