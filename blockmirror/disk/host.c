/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the mirror asks of its host while a job runs, and what it tells: records of a switch, events
 * for the job's table.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/disk/job.h"

static void record_done(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, record);

	if (job->step_error.code)
		bm_log(BM_LOG_ERROR, "%s.%u: %s", job->disk->name, job->number,
		       job->step_error.text);
	else
		job_believe_record(job);
	bm_mirror_committed(job->disk->mirror, job->step_error.code ? -EIO : 0);
	/* Now, before anything that ends can find the new authority in its old role. */
	storage_set_roles(job->disk);
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
		job->final_uri = bm_need(strdup(uri));
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

/*
 * A record beside those of a switch, which must have the last word: none is begun while one of
 * them is being written, and those that come later are written later, with a higher generation.
 */
static bool may_keep(const struct job *job)
{
	return job->disk->folder && !job->parked && !job->keeping && !job->preparing_records &&
	       (job->phase == PHASE_COPYING || job->phase == PHASE_VERIFYING ||
		job->phase == PHASE_IN_SYNC || job->phase == PHASE_WINDOW);
}

void host_keep(struct job *job)
{
	job->keep_wanted = true;
	if (!may_keep(job))
		return;
	job->keep_wanted = false;
	job->keeping = true;
	job->kept = report_record(job, "running");
	job->kept_generation = ++job->disk->generation;
	job_run(job, job->disk->recorder, &job->keep);
}

static void kept(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, keep);
	struct bm_record *record = &job->disk->record;

	if (job->kept_well && record->generation < job->kept_generation) {
		record->generation = job->kept_generation;
		json_decref(record->job);
		record->job = json_incref(job->kept);
	}
	json_decref(job->kept);
	job->kept = NULL;
	job->keeping = false;
	if (job->let_go)
		job_event(job, EV_DETACHED);
	else if (job->keep_wanted)
		host_keep(job);
}

static void source_error(struct disk *d)
{
	struct bm_mirror_stats stats;
	char text[300];

	bm_mirror_get_stats(d->mirror, &stats);
	snprintf(text, sizeof(text),
		 "the source cannot be read from %" PRIu64 " to %" PRIu64 ": %s",
		 stats.error_offset, stats.error_offset + stats.granule, strerror(-stats.error));
	bm_log(BM_LOG_ERROR, "%s.%u: %s", d->name ? d->name : "", d->job->number, text);
	if (!d->job->options.skip)
		job_stop(d->job, BM_E_IO, text);
}

static void rest_copied(struct disk *d)
{
	struct bm_mirror_stats stats;

	bm_mirror_get_stats(d->mirror, &stats);
	if (d->job->options.skip)
		bm_log(BM_LOG_WARN,
		       "%s.%u: all is copied but %" PRIu64 " bytes that cannot be read; the disk "
		       "stays where it is",
		       d->name, d->job->number, stats.unreadable * stats.granule);
	job_tell_waiters(d->job);
}

void host_detached(struct disk *d)
{
	if (d->upgrade)
		upgrade_detached(d);
	else if (d->leaving) /* the record says that the job runs: the next process goes on */
		checkpoint_park(d->job);
	else
		job_event(d->job, EV_DETACHED);
}

static void host_claims(void *arg)
{
	checkpoint_go_on(((struct disk *)arg)->job);
}

static void host_event(void *arg, enum bm_mirror_event event)
{
	struct disk *d = arg;

	switch (event) {
	case BM_MIRROR_IN_SYNC: /* for the first time, or again */
		job_event(d->job, EV_IN_SYNC);
		job_tell_waiters(d->job);
		break;
	case BM_MIRROR_CUT:
		job_cut_made(d->job);
		break;
	case BM_MIRROR_SWITCHED:
		job_event(d->job, EV_SWITCHED);
		break;
	case BM_MIRROR_SWITCH_FAILED:
		job_event(d->job, EV_SWITCH_FAILED);
		break;
	case BM_MIRROR_DETACHED:
		if (checkpoint_busy(d->job))
			d->job->checkpoint.awaited = true;
		else
			host_detached(d);
		break;
	case BM_MIRROR_DOUBTFUL:
		doubt_note(d);
		return; /* it may be that no job runs */
	case BM_MIRROR_LOST:
		away_lost(d->job);
		break;
	case BM_MIRROR_LOST_IDLE:
		away_gone(d->job);
		break;
	case BM_MIRROR_BACK:
		away_back(d->job);
		break;
	case BM_MIRROR_FOREIGN:
		away_foreign(d->job);
		break;
	case BM_MIRROR_FULL:
		bm_log(BM_LOG_WARN,
		       "%s.%u: the target is full; the guest goes on, the copy waits for space",
		       d->name, d->job->number);
		break;
	case BM_MIRROR_SOURCE_ERROR:
		source_error(d);
		break;
	case BM_MIRROR_REST_COPIED:
		rest_copied(d);
		break;
	default:
		break;
	}
	if (d->rpc)
		bm_rpc_notify(
			d->rpc, "mirror",
			json_pack("{s:i s:o}", "event", (int)event, "job", report_job(d->job)));
}

const struct bm_mirror_host job_host = {
	.commit = host_commit, .event = host_event, .claims = host_claims};

void host_init(struct job *job)
{
	job->keep = (struct bm_work){.run = step_keep, .done = kept};
	job->record = (struct bm_work){.run = step_commit, .done = record_done};
}
