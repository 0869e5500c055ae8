/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Latency histograms: eight buckets per power of two, so that a percentile is right to 9 %.
 * Recording is a handful of instructions and no allocation.
 */
#ifndef BM_BASE_HIST_H
#define BM_BASE_HIST_H

#include <stdint.h>

enum { BM_HIST_BUCKETS = 8 * 40 };

struct bm_hist {
	uint64_t count, max;
	uint32_t bucket[BM_HIST_BUCKETS];
};

void bm_hist_add(struct bm_hist *hist, uint64_t ns);

/* The value that share (0 … 1) of the samples do not exceed; 0 when there are none. */
uint64_t bm_hist_percentile(const struct bm_hist *hist, double share);

/* How many samples are above ns, to the bucket. */
uint64_t bm_hist_above(const struct bm_hist *hist, uint64_t ns);

/* Adds all samples of from to hist. */
void bm_hist_merge(struct bm_hist *hist, const struct bm_hist *from);

void bm_hist_reset(struct bm_hist *hist);

/*
 * What a guest feels of a disk. The order device adds to it; who reads it resets what he read:
 * window belongs to the governor, longest to the switchover. Loop thread only.
 */
struct bm_meter {
	struct bm_hist window;  /* READ WRITE ZERO TRIM since the governor last looked */
	struct bm_hist flushes; /* FLUSH, all of them */
	uint64_t longest;       /* any request, since it was set to 0 */
	uint64_t requests[6];   /* by enum bm_op, all of them */
	uint64_t bytes_read, bytes_written;
	uint64_t changed; /* ns of the loop: when the last WRITE, ZERO or TRIM ended; 0: none has */
};

#endif
