/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A disk with two images that are kept equal, one here and one on another host: its move there has
 * come as far as that, or can still be undone. When it passes over then, the image that stays
 * behind is a standby of the host that has the disk now, whose mirror writes to it: the job goes on
 * there, the other way round. So the disk can come back as it went, and nothing is copied for that.
 */
#include <errno.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/disk/job.h"
#include "blockmirror/disk/standby.h"

const char *back_local(const struct job *job)
{
	return bm_uri_path(job->source)       ? job->source
	       : bm_uri_path(job->target.uri) ? job->target.uri
					      : NULL;
}

const char *back_remote(const struct job *job)
{
	return remote_is(job->target.uri) ? job->target.uri
	       : remote_is(job->source)   ? job->source
					  : NULL;
}

bool back_is_pair(const struct disk *d, const char *host)
{
	const struct job *job = job_of(d);
	bool two = job && job->options.kind == JOB_RELOCATE && job->phase >= PHASE_COPYING &&
		   job->phase <= PHASE_WINDOW && back_local(job) && back_remote(job);
	bm_free char *there = two ? bm_uri_parameter(back_remote(job), BM_URI_HOST) : NULL;

	return there && !strcmp(there, host);
}

bool back_in_sync(const struct disk *d)
{
	struct bm_mirror_stats stats;

	if (d->job->phase != PHASE_IN_SYNC && d->job->phase != PHASE_WINDOW)
		return false;
	bm_mirror_get_stats(d->mirror, &stats);
	return !d->job->keeping && !d->job->preparing_records && stats.state == BM_STATE_IN_SYNC &&
	       !stats.dirty && !stats.doubtful;
}

void back_hold(struct disk *d)
{
	d->job->parked = true;
}

void back_go_on(struct disk *d)
{
	struct job *job = d->job;

	if (!job_runs(job) || !job->parked)
		return;
	job->parked = false;
	if (job->phase == PHASE_WINDOW)
		(void)bm_timer_set(d->loop, &job->window_timer,
				   bm_loop_now(d->loop) + back_window(d));
}

uint64_t back_window(const struct disk *d)
{
	uint64_t now = job_realtime(),
		 end = d->job->window_ends ? d->job->window_ends : d->offer.until;

	return end > now ? end - now : 0;
}

json_t *back_past(const struct disk *d)
{
	return report_record(d->job, "done");
}

/* As the host has it that the disk comes from; but source and target are seen from here. */
json_t *back_job(const struct disk *d, uint64_t generation)
{
	uint64_t now = job_realtime(), end = now + d->offer.window;

	return json_pack("{s:i s:s s:s s:s s:s s:b s:I s:I s:I s:I s:I}", "number",
			 (int)d->jobs + 1, "kind", "relocate", "state", "running", "source",
			 d->offer.back, "target", d->record.uri, "created", 1, "latency",
			 (json_int_t)BM_LATENCY_AUTO, "window", (json_int_t)d->offer.window,
			 "window_ends", (json_int_t)end, "started", (json_int_t)now, "map",
			 (json_int_t)generation);
}

uint8_t *back_map(const struct disk *d, uint64_t generation)
{
	uint8_t *map = mapfile_create(d, generation);

	if (map)
		memset(map, 0xff, bm_mirror_map_bytes(d->record.size, DISK_GRANULE));
	else
		bm_log(BM_LOG_WARN, "%s: the host that had the disk keeps no copy: no map: %s",
		       d->name, strerror(errno));
	return map;
}
