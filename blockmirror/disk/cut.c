/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The end of a copy: the disk goes on, and the target stays what it was at one instant
 * (bm_mirror_cut()). Where the process dies before the target was let go of, the next one goes on,
 * and cuts again, later. Part of the table in job.c; loop thread.
 */
#include <time.h>

#include "blockmirror/base/log.h"
#include "blockmirror/disk/job.h"

static void done(void *arg, int error)
{
	struct job *job = arg;
	struct bm_mirror_stats stats;

	if (error)
		return;
	bm_mirror_get_stats(job->disk->mirror, &stats);
	job->cut_took = bm_loop_now(job->disk->loop) - stats.cut_at;
	job_event(job, EV_CUT);
}

/* The loop's clock stands still in a turn, and is never later than the instant. */
static uint64_t wall_clock(uint64_t loop_ns)
{
	uint64_t now = job_realtime(); /* first: so that it comes out too early, if at all */
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return now - ((uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec - loop_ns);
}

enum job_phase job_ask_cut(struct job *job)
{
	bm_mirror_cut(job->disk->mirror, done, job);
	return PHASE_IN_SYNC;
}

void job_cut_made(struct job *job)
{
	struct disk *d = job->disk;
	struct bm_mirror_stats stats;

	bm_mirror_get_stats(d->mirror, &stats);
	job->cut_at = wall_clock(stats.cut_at);
	d->meter.longest = 0;
	if (stats.cuts > 1)
		bm_log(BM_LOG_NOTICE, "%s.%u: cut again, since the target has failed", d->name,
		       job->number);
	job_tell(job);
}
