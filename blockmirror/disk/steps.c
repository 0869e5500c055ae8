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

/* A record of the disk on uri, with the job as it was when the step was begun. */
static struct bm_record record_of(const struct job *job, char *uri, uint64_t generation)
{
	struct bm_record record = job->disk->record;

	record.uri = uri;
	record.generation = generation;
	record.job = job->snapshot;
	return record;
}

/* The record says that a job runs: who finds it after a crash knows what the target is. */
void step_start(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, start);
	struct bm_record record = record_of(job, job->source, job->step_generation);

	bm_record_write(job->disk->folder, &record, &job->step_error);
}

/* Both outcomes of the switch, written and synced ahead: the switch itself only renames. */
void step_records(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, records);
	char *const uris[] = {[FORWARD] = job->target.uri, [BACK] = job->source};
	int r = 0;

	for (int outcome = FORWARD; outcome <= BACK && !r; outcome++) {
		struct bm_record record = record_of(job, uris[outcome], job->set_aside[outcome]);

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

static void note(struct job *job, int r, const char *what, const char *uri)
{
	char shown[400];

	if (r < 0)
		bm_log(BM_LOG_WARN, "%s.%u: cannot %s %s: %s", job->disk->name, job->number, what,
		       bm_uri_redact(uri, shown, sizeof(shown)), strerror(-r));
}

/* Files only: the node of a block device is not the device. */
static int remove_image(const char *uri)
{
	const char *path = bm_uri_path(uri);
	struct stat st;

	if (!path || stat(path, &st) < 0 || !S_ISREG(st.st_mode))
		return 0;
	bm_mark_remove(path);
	return unlink(path) < 0 ? -errno : 0;
}

static void flushed(struct bm_request *rq, int error)
{
	rq->result = error;
	rq->link.next = NULL;
}

/* In a loop of its own: the device was let go of already. */
static int flush_once(const char *uri, struct bm_error *error)
{
	struct bm_request rq = {.op = BM_FLUSH, .done = flushed};
	struct bm_loop *loop = bm_loop_new();
	struct bm_dev *dev = NULL;
	int r = loop ? bm_dev_open(uri, NULL, &dev, error)
		     : bm_fail_errno(error, ENOMEM, "%s", uri);

	if (!r) {
		bm_dev_start(dev, loop);
		rq.result = 1;
		bm_submit(dev, &rq);
		while (rq.result == 1 && bm_loop_turn(loop, UINT64_MAX) >= 0)
			;
		r = rq.result ? bm_fail_errno(error, rq.result, "cannot flush the copy") : 0;
		bm_dev_close(dev);
	}
	bm_loop_free(loop);
	return r;
}

/*
 * A copy is what the disk was at the moment of letting go. What the guest wrote after the flush
 * that ended the job is on it, and durable only now.
 */
static void finish_copy(struct job *job)
{
	const char *path = bm_uri_path(job->target.uri);
	struct bm_error error;

	if (flush_once(job->target.uri, &error) < 0) {
		bm_log(BM_LOG_WARN, "%s.%u: %s", job->disk->name, job->number, error.text);
		return; /* it stays marked as incomplete */
	}
	if (path)
		note(job, bm_mark_remove(path), "take the mark from", job->target.uri);
}

/*
 * The end: marks first, then the record, so that a crash between them finds the job still running
 * and does it again.
 */
void step_finish(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, finish);
	struct disk *d = job->disk;
	struct bm_record record = record_of(job, job->final_uri, job->step_generation);

	if (job->switched) {
		note(job, owner_mark(job->target.uri, "active", &record, d->folder), "mark",
		     job->target.uri);
		if (job->options.delete_source)
			note(job, remove_image(job->source), "remove", job->source);
		else
			note(job, owner_mark(job->source, "retired", &record, d->folder), "mark",
			     job->source);
	} else if (job->target.created && job->error.code) {
		note(job, remove_image(job->target.uri), "remove", job->target.uri);
	} else if (!job->error.code) {
		finish_copy(job);
	} else if (!job->attached) {
		target_unmark(&job->target);
	}
	if (d->folder)
		bm_record_write(d->folder, &record, &job->step_error);
}

void step_reopen(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, reopen);
	const struct bm_open_options options = {.fence = true, .interrupted = gave_up, .arg = job};

	job->reopened = NULL;
	bm_dev_open(job->target.uri, &options, &job->reopened, NULL);
}

/* What became of the job of a process that is gone. */
static int finish_switched(struct disk *d, const char *source, bool delete_source)
{
	if (delete_source)
		remove_image(source);
	else
		owner_mark(source, "retired", &d->record, d->folder);
	json_object_set_new(d->record.job, "state", json_string("done"));
	return owner_mark(d->record.uri, "active", &d->record, d->folder);
}

static void finish_interrupted(struct disk *d, const char *target)
{
	char shown[400];

	/* The mark "incomplete" was made with the target, and stays. */
	json_object_set_new(d->record.job, "state", json_string("interrupted"));
	json_object_set_new(d->record.job, "error",
			    json_pack("{s:s s:s}", "code", "E_INTERRUPTED", "message",
				      "the process that ran it ended; the target is incomplete"));
	bm_log(BM_LOG_WARN, "the move of %s was interrupted; its target %s is not usable", d->name,
	       bm_uri_redact(target, shown, sizeof(shown)));
}

void job_recover(struct disk *d)
{
	const char *state = "", *source = "", *target = "";
	int number = 0, delete_source = 0;
	struct bm_error error;

	/* Maps and prepared records of a process that is gone mean nothing. */
	unlink(d->map_path);
	if (!d->record.job)
		return;
	json_unpack(d->record.job, "{s?s s?s s?s s?i s?b}", "state", &state, "source", &source,
		    "target", &target, "number", &number, "delete_source", &delete_source);
	d->jobs = (unsigned)number;
	if (!strcmp(state, "running")) {
		if (!strcmp(d->record.uri, target))
			finish_switched(d, source, delete_source);
		else
			finish_interrupted(d, target);
		d->record.generation = ++d->generation;
		/* Which image is the truth stands in the record already: that is enough to serve.
		 */
		if (bm_record_write(d->folder, &d->record, &error) < 0)
			bm_log(BM_LOG_ERROR, "%s: %s; the next start tries again", d->name,
			       error.text);
	}
	json_array_append_new(d->past, report_past(d));
}
