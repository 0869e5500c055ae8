/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the mirror asks of its host while a job runs, and what it tells: records of a switch, a lost
 * target that is opened again, events for the job's table.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/log.h"
#include "blockmirror/disk/job.h"

#define REOPEN_FIRST 250000000ull   /* ns, doubled up to … */
#define REOPEN_MOST  30000000000ull /* … this */

static void record_done(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, record);

	if (job->step_error.code)
		bm_log(BM_LOG_ERROR, "%s.%u: %s", job->disk->name, job->number,
		       job->step_error.text);
	else
		job_believe_record(job);
	bm_mirror_committed(job->disk->mirror, job->step_error.code ? -EIO : 0);
}

static void host_commit(void *arg, int side)
{
	struct disk *d = arg;
	struct job *job = d->job;
	enum outcome outcome = side == disk_authority(d) ? BACK : FORWARD;
	const char *uri = job_uri(job, outcome);

	job->commit_ready = job->ready[outcome] ? job_outcome_name(outcome) : NULL;
	if (job->commit_ready) { /* with the generation that was set aside for it */
		free(job->final_uri);
		job->final_uri = strdup(uri);
		job->step_generation = job->set_aside[outcome];
	} else {
		job_take_snapshot(job, "running", uri);
	}
	/* One that came back stands above the forward one; neither is there twice. */
	job->ready[outcome] = false;
	if (outcome == BACK)
		job->ready[FORWARD] = false;
	job_run(job, d->recorder, &job->record);
}

void host_reopen(struct job *job)
{
	if (job->reopening)
		return;
	job->reopening = true;
	job_run(job, job->disk->workers, &job->reopen);
}

static void reopen(struct bm_timer *timer)
{
	host_reopen(bm_container(timer, struct job, reopen_timer));
}

static void reopen_later(struct job *job)
{
	unsigned shift = job->reopen_failures < 8 ? job->reopen_failures++ : 8;
	uint64_t wait = REOPEN_FIRST << shift;

	(void)bm_timer_set(job->disk->loop, &job->reopen_timer,
			   bm_loop_now(job->disk->loop) +
				   (wait < REOPEN_MOST ? wait : REOPEN_MOST));
}

static void tell_back(const struct job *job)
{
	bool fenced = job->reopened->geometry.flags & BM_DEV_FENCED;

	bm_log(BM_LOG_NOTICE, "%s.%u: the target is back%s", job->disk->name, job->number,
	       fenced ? "" : "; it does not tell whether it is done with the requests of before");
}

static void reopen_done(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, reopen);
	struct disk *d = job->disk;
	int side = !disk_authority(d);

	job->reopening = false;
	if (job->phase >= PHASE_DETACHING) {
		bm_dev_close(job->reopened);
		job->reopened = NULL;
		if (job->let_go)
			job_event(job, EV_DETACHED);
		return;
	}
	if (job->reopen_error.code == BM_E_FOREIGN) {
		job_stop(job, BM_E_FOREIGN, job->reopen_error.text);
		return;
	}
	if (job->reopened &&
	    !bm_order_fit(&job->reopened, bm_mirror_dev(d->mirror)->geometry.block)) {
		bm_dev_start(job->reopened, d->loop);
		if (!bm_mirror_reattach(d->mirror, job->reopened)) {
			tell_back(job);
			d->side[side] = bm_steal(job->reopened);
			job->reopen_failures = 0;
			return;
		}
		job_stop(job, BM_E_SIZE, "the target came back with another size, or read-only");
	}
	bm_dev_close(job->reopened);
	job->reopened = NULL;
	reopen_later(job);
}

static void lost(struct disk *d)
{
	struct bm_mirror_stats stats;

	bm_mirror_get_stats(d->mirror, &stats);
	bm_log(BM_LOG_WARN,
	       "%s.%u: the target is lost (%s); the guest goes on, the target is tried again",
	       d->name, d->job->number, strerror(-stats.error));
}

static void source_error(struct disk *d)
{
	struct bm_mirror_stats stats;
	char text[200];

	bm_mirror_get_stats(d->mirror, &stats);
	snprintf(text, sizeof(text), "the source cannot be read at %" PRIu64 ": %s",
		 stats.error_offset, strerror(-stats.error));
	job_stop(d->job, BM_E_IO, text);
}

static void host_event(void *arg, enum bm_mirror_event event)
{
	struct disk *d = arg;
	int side = !disk_authority(d);

	switch (event) {
	case BM_MIRROR_IN_SYNC: /* for the first time, or again */
		job_event(d->job, EV_IN_SYNC);
		job_tell_waiters(d->job);
		break;
	case BM_MIRROR_SWITCHED:
		job_event(d->job, EV_SWITCHED);
		break;
	case BM_MIRROR_SWITCH_FAILED:
		job_event(d->job, EV_SWITCH_FAILED);
		break;
	case BM_MIRROR_DETACHED:
		if (d->leaving) { /* the record says that the job runs: the next process goes on */
			job_park(d->job);
			bm_loop_stop(d->loop);
		} else {
			job_event(d->job, EV_DETACHED);
		}
		break;
	case BM_MIRROR_LOST:
		lost(d);
		break;
	case BM_MIRROR_LOST_IDLE:
		bm_dev_close(d->side[side]);
		d->side[side] = NULL;
		reopen_later(d->job);
		break;
	case BM_MIRROR_FULL:
		bm_log(BM_LOG_WARN,
		       "%s.%u: the target is full; the guest goes on, the copy waits for space",
		       d->name, d->job->number);
		break;
	case BM_MIRROR_SOURCE_ERROR:
		source_error(d);
		break;
	default:
		break;
	}
	if (d->rpc)
		bm_rpc_notify(
			d->rpc, "mirror",
			json_pack("{s:i s:o}", "event", (int)event, "job", report_job(d->job)));
}

const struct bm_mirror_host job_host = {.commit = host_commit, .event = host_event};

void host_init(struct job *job)
{
	job->record = (struct bm_work){.run = step_commit, .done = record_done};
	job->reopen = (struct bm_work){.run = step_reopen, .done = reopen_done};
	job->reopen_timer.run = reopen;
}
