/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a job does off the loop. A step reads what was put into the job before, and writes its
 * step_error, its target or its reopened device; nobody else touches these while it runs.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blockmirror/base/log.h"
#include "blockmirror/base/requests.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/disk/job.h"

static bool gave_up(void *arg)
{
	const struct job *job = arg;

	return atomic_load(&job->give_up);
}

void step_prepare(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, prepare);

	job->target.interrupted = gave_up;
	job->target.arg = job;
	target_prepare(&job->target);
}

void step_drop(struct bm_work *work)
{
	target_drop(&bm_container(work, struct job, prepare)->target);
}

/* A record of the disk on uri, with the job as it was when the step was begun. */
static struct bm_record record_of(const struct job *job, const char *uri, uint64_t generation)
{
	struct bm_record record = job->disk->record;

	record.uri = (char *)uri; /* lives as long as this does */
	record.generation = generation;
	record.job = job->snapshot;
	return record;
}

/*
 * The record says that a job runs: who finds it after a crash knows what the target is. What it
 * said of the job before is kept elsewhere first.
 */
void step_start(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, start);
	struct bm_record record = record_of(job, job->source, job->step_generation);
	const char *folder = job->disk->folder;

	if (!bm_requests_keep(folder, job->disk->record.job, &job->step_error))
		bm_record_write(folder, &record, &job->step_error);
}

/* Both outcomes of the switch, written and synced ahead: the switch itself only renames. */
void step_records(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, records);
	int r = 0;

	for (int outcome = FORWARD; outcome <= BACK && !r; outcome++) {
		struct bm_record record =
			record_of(job, job_uri(job, outcome), job->set_aside[outcome]);

		r = bm_record_prepare(job->disk->folder, job_outcome_name(outcome), &record,
				      &job->step_error);
	}
}

void step_commit(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, record);
	const char *folder = job->disk->folder;
	struct bm_record record = record_of(job, job->final_uri, job->step_generation);

	if (job->commit_ready)
		bm_record_commit(folder, job->commit_ready, &job->step_error);
	else
		bm_record_write(folder, &record, &job->step_error);
}

void step_keep(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, keep);
	struct bm_record record = record_of(job, job_uri(job, BACK), job->kept_generation);
	struct bm_error error;

	record.job = job->kept;
	job->kept_well = !bm_record_write(job->disk->folder, &record, &error);
	if (!job->kept_well)
		bm_log(BM_LOG_WARN,
		       "%s.%u: %s; a process that follows this one will not know the "
		       "changed limits",
		       job->disk->name, job->number, error.text);
}

static void note(struct job *job, int r, const char *what, const char *uri)
{
	char shown[400];

	if (r < 0)
		bm_log(BM_LOG_WARN, "%s.%u: cannot %s %s: %s", job->disk->name, job->number, what,
		       bm_uri_redact(uri, shown, sizeof(shown)), strerror(-r));
}

/* It is durable, and nobody's: whoever wants to may serve it. */
static void finish_copy(struct job *job)
{
	const char *path = bm_uri_path(job->target.uri);

	if (path)
		note(job, bm_mark_remove(path), "take the mark from", job->target.uri);
}

/*
 * Which image is the truth now, and which one was. By the record that is durable, not the one that
 * comes next: an image that is marked with a higher generation than the record's is not served.
 */
static void mark_both(struct job *job)
{
	struct bm_record record = record_of(job, job->final_uri, job->disk->record.generation);
	const char *folder = job->disk->folder, *live = job_uri(job, BACK),
		   *old = job_uri(job, FORWARD);

	note(job, owner_mark(live, "active", &record, folder), "mark", live);
	note(job, owner_mark(old, "retired", &record, folder), "mark", old);
}

void step_marks(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, marks);
	struct bm_record record = record_of(job, job->final_uri, job->step_generation);

	mark_both(job);
	bm_record_write(job->disk->folder, &record, &job->step_error);
}

/*
 * The window is over, says a record of its own. Else who comes after a crash would keep it open,
 * and wait for a source that was removed.
 */
static bool close_window(struct job *job)
{
	struct bm_record record = record_of(job, job->final_uri, job->step_generation - 1);
	json_t *closed = json_copy(job->snapshot);
	struct bm_error error;
	int r;

	json_object_set_new(closed, "state", json_string("running"));
	json_object_set_new(closed, "window", json_integer(0));
	record.job = closed;
	r = bm_record_write(job->disk->folder, &record, &error);
	if (r < 0)
		bm_log(BM_LOG_ERROR, "%s.%u: %s", job->disk->name, job->number, error.text);
	json_decref(closed);
	return !r;
}

/*
 * The end of one that did what it should: marks first, then the record, so that a crash between
 * them finds the job still running and does it again. Of one that did not: the record first, so
 * that nobody goes on with it.
 */
void step_finish(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, finish);
	struct disk *d = job->disk;
	struct bm_record record = record_of(job, job->final_uri, job->step_generation);
	bool closed = !job_has_window(job) || close_window(job);

	if (job->switched || job->undone)
		mark_both(job);
	else if (!job->error.code)
		finish_copy(job);
	if (job->switched && job->options.delete_source && closed)
		note(job, target_remove(d, job->source), "remove", job->source);
	if (d->folder)
		bm_record_write(d->folder, &record, &job->step_error);
	if (!job->error.code || job->undone)
		return;
	if (job->target.created && job->error.code != BM_E_FOREIGN)
		note(job, target_remove(d, job->target.uri), "remove", job->target.uri);
	else if (!job->attached)
		target_unmark(&job->target);
}

/* A file that lost its mark, or has another one, is not what we had there. */
static int is_ours(struct job *job, const char *uri)
{
	const char *path = bm_uri_path(uri);
	struct bm_mark mark;
	struct stat st;
	int r;

	if (!job->disk->folder || !path || stat(path, &st) < 0 || !S_ISREG(st.st_mode))
		return 0;
	r = bm_mark_read(path, &mark);
	if (r < 0) /* tells nothing: it is asked again */
		return bm_fail_errno(&job->reopen_error, r, "cannot read the mark of %s", path);
	if (!strcmp(mark.disk, job->disk->record.disk) && strcmp(mark.state, ""))
		return 0;
	return bm_fail(&job->reopen_error, BM_E_FOREIGN,
		       "%s is not the image that was there before: it is not marked as this "
		       "disk's; nothing was written to it",
		       path);
}

void step_reopen(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, reopen);
	/* Where only a wait would help the mirror waits, and looks (BM_DEV_FENCED). */
	const struct bm_open_options options = {.fence = true,
						.fence_no_wait = true,
						.session = job->disk->record.disk,
						.linked = true, /* the source may be */
						.interrupted = gave_up,
						.arg = job};
	const char *uri = job_uri(job, FORWARD);

	job->reopened = NULL;
	job->reopen_error = (struct bm_error){0};
	job->disbelieved = job->checkpoint.loaded_id && checkpoint_is_void(job);
	if (!bm_dev_open(uri, &options, &job->reopened, &job->reopen_error) &&
	    is_ours(job, uri) < 0) {
		bm_dev_close(job->reopened);
		job->reopened = NULL;
	}
}
