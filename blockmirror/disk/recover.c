/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A disk process that follows one that is gone goes on with its job: the record says which one,
 * the map says what need not be copied again (docs/record.md).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/disk/job.h"
#include "blockmirror/disk/standby.h"

/* What the record says of the job. Strings are the record's. */
struct past {
	const char *state, *kind, *source, *target;
	int number, created, delete_source, manual, verify, accept_repair, skip, resumes, tells;
	json_int_t rate, latency, window, window_ends, started, map, deadline;
	json_t *loss, *request;
};

static bool read_past(const struct disk *d, struct past *p)
{
	*p = (struct past){.state = "", .kind = "", .latency = (json_int_t)BM_LATENCY_AUTO};
	return !json_unpack(d->record.job,
			    "{s:s s:s s:s s:s s:i s?b s?b s?b s?b s?b s?i s?I s?I s?I s?I s?I "
			    "s?I s?b s?I s?o s?o s?b}",
			    "state", &p->state, "kind", &p->kind, "source", &p->source, "target",
			    &p->target, "number", &p->number, "created", &p->created,
			    "delete_source", &p->delete_source, "manual", &p->manual, "verify",
			    &p->verify, "accept_repair", &p->accept_repair, "resumes", &p->resumes,
			    "rate", &p->rate, "latency", &p->latency, "window", &p->window,
			    "window_ends", &p->window_ends, "started", &p->started, "map", &p->map,
			    "skip", &p->skip, "target_deadline", &p->deadline, "on_target_loss",
			    &p->loss, "request", &p->request, "tells", &p->tells);
}

static bool is_on_target(const struct disk *d, const struct past *p)
{
	return !strcmp(d->record.uri, p->target);
}

/* Only who has switched opens a window: on its source again it took the way back. */
static bool is_undone(const struct disk *d, const struct past *p)
{
	return p->window_ends && !is_on_target(d, p);
}

/* The last steps of one that has switched, or whose copy is complete, done again. */
static void finish_again(struct disk *d, const struct past *p)
{
	bool undone = is_undone(d, p);
	const char *old = undone ? p->target : p->source;

	if (!strcmp(p->kind, "relocate")) {
		owner_mark(d->record.uri, "active", &d->record, d->folder);
		if (p->delete_source && !undone)
			target_remove(d, old);
		else
			owner_mark(old, "retired", &d->record, d->folder);
	}
	json_object_set_new(d->record.job, "state", json_string(undone ? "undone" : "done"));
}

/* The copy was marked as complete already: only the record was not told. */
static bool is_complete(const struct past *p)
{
	const char *path = bm_uri_path(p->target);
	struct bm_mark mark;
	struct stat st;

	return !strcmp(p->kind, "copy") && path && !stat(path, &st) && S_ISREG(st.st_mode) &&
	       !bm_mark_read(path, &mark) && !mark.state[0];
}

static struct job *job_again(struct disk *d, const struct past *p)
{
	struct job_options options = {
		.kind = !strcmp(p->kind, "copy") ? JOB_COPY : JOB_RELOCATE,
		.target = bm_need(strdup(p->target)),
		.manual = p->manual,
		.delete_source = p->delete_source,
		.verify = p->verify,
		.accept_repair = p->accept_repair,
		.skip = p->skip,
		.rate = (uint64_t)p->rate,
		.latency = (uint64_t)p->latency,
		.window = (uint64_t)p->window,
		.deadline = (uint64_t)p->deadline,
	};
	struct job *job;

	control_read_loss(p->loss, &options.loss);
	options.request = json_incref(p->request);
	job = job_new(d, &options, (unsigned)p->number);
	if (!job) {
		free(options.target);
		json_decref(options.request);
		return NULL;
	}
	free(job->source);
	job->source = bm_need(strdup(p->source));
	job->target.uri = bm_need(strdup(p->target));
	job->target.created = p->created;
	job->attached = true;
	job->tells = p->tells;
	job->started = (uint64_t)p->started;
	job->window_ends = (uint64_t)p->window_ends;
	job->resumes = (unsigned)p->resumes + 1;
	job->switched = options.kind == JOB_RELOCATE && is_on_target(d, p);
	return job;
}

/*
 * What the folder says is durable. A process that died in a switch may have left a record that is
 * not; the guest would write to the image that it names, and a loss of power bring back the other.
 */
static int sync_records(const struct disk *d, struct bm_error *error)
{
	int r = bm_sync_folder_of(d->checkpoint_path);

	return r < 0 ? bm_fail_errno(error, r,
				     "cannot sync %s: what its record says may not last; disk %s "
				     "is not served until that works",
				     d->folder, d->name)
		     : 0;
}

/*
 * The map of the process that is gone: its own, where the host lives; else what the checkpoint
 * says. That one goes on as it is, and what it claims is withdrawn before a write goes there: it
 * may be believed by whoever comes next, again.
 */
static int take_maps(struct job *job, uint64_t generation, uint8_t **checkpoint,
		     struct bm_error *why)
{
	struct disk *d = job->disk;
	struct bm_error error;
	struct bm_record record;
	int r;

	job->map_generation = generation;
	*checkpoint = checkpoint_load(job);
	job->map = mapfile_open(d, generation);
	job->resumed_from = job->map ? "map" : "nothing";
	if (!job->map) {
		job->map = mapfile_create(d, generation);
		if (job->map && *checkpoint) {
			memcpy(job->map, *checkpoint,
			       bm_mirror_map_bytes(d->record.size, DISK_GRANULE));
			job->resumed_from = "checkpoint";
		}
	}
	job_take_snapshot(job, "running", d->record.uri);
	record = d->record;
	record.generation = job->step_generation;
	record.job = job->snapshot;
	r = bm_record_write(d->folder, &record, &error);
	if (r < 0) {
		bm_log(BM_LOG_ERROR, "%s: %s", d->name, error.text);
		return sync_records(d, why);
	}
	job_believe_record(job);
	/* A backup of record and checkpoint, put back later, is refused. */
	if (!strcmp(job->resumed_from, "checkpoint"))
		owner_mark(d->record.uri, "active", &d->record, d->folder);
	return 0;
}

/*
 * The guest is served at once; writes are noted, and the other side is opened meanwhile. Where that
 * cannot be, be it for lack of memory, the disk is not served: the next process tries again.
 */
static int go_on(struct disk *d, const struct past *p, struct bm_error *error)
{
	struct job *job = job_again(d, p);
	bm_free uint8_t *checkpoint = NULL;
	struct bm_mirror_stats stats;
	int r;

	if (!job)
		return bm_fail_errno(error, ENOMEM, "disk %s: its job cannot go on", d->name);
	/* From here on the record is another one, and what p points to is gone. */
	r = take_maps(job, (uint64_t)p->map, &checkpoint, error);
	if (!r) {
		job_set_limits(job);
		r = bm_mirror_resume(d->mirror, job->map, checkpoint);
		if (r < 0)
			bm_fail_errno(error, r, "disk %s: its job cannot go on", d->name);
	}
	if (r < 0) {
		mapfile_close(d, job->map);
		checkpoint_end(job);
		job_free(job);
		return r;
	}
	bm_mirror_get_stats(d->mirror, &stats);
	job->redo_bytes = stats.dirty * stats.granule;
	job->kept_bytes = stats.size > job->redo_bytes ? stats.size - job->redo_bytes : 0;
	bm_log(BM_LOG_NOTICE, "%s.%u: goes on (%s): %llu bytes may differ, %llu are equal", d->name,
	       job->number, job->resumed_from, (unsigned long long)job->redo_bytes,
	       (unsigned long long)job->kept_bytes);
	d->job = job;
	job->phase = job->switched ? job_open_window(job) : PHASE_COPYING;
	away_begin(job);
	return 0;
}

int back_take(struct disk *d, uint8_t *map, uint64_t generation, struct bm_error *error)
{
	struct past past;
	struct job *job = read_past(d, &past) ? job_again(d, &past) : NULL;
	int r;

	if (!job)
		return bm_fail_errno(error, ENOMEM, "disk %s: no copy is kept", d->name);
	job->map = map;
	job->map_generation = generation;
	job->resumes = 0;
	job_set_limits(job);
	r = bm_mirror_resume(d->mirror, map, NULL);
	if (r < 0) {
		job_free(job);
		return bm_fail_errno(error, r, "disk %s: no copy is kept", d->name);
	}
	job_free(d->job);
	d->job = job;
	d->jobs = job->number;
	job->phase = job_open_window(job);
	away_begin(job);
	storage_set_roles(d);
	return 0;
}

static int recover(struct disk *d, struct bm_error *why)
{
	struct bm_error error;
	struct past past;
	int r;

	if (!d->record.job || !read_past(d, &past) || strcmp(past.state, "running") != 0) {
		/* It may say that the disk has come from another host: better if it lasts. */
		if (sync_records(d, &error) < 0)
			bm_log(BM_LOG_WARN, "%s", error.text);
		unlink(d->map_path);
		unlink(d->checkpoint_path);
		d->jobs = (unsigned)json_integer_value(json_object_get(d->record.job, "number"));
		if (d->record.job)
			json_array_append_new(d->past, report_past(d));
		return 0;
	}
	r = sync_records(d, why);
	if (r < 0)
		return r;
	d->jobs = (unsigned)past.number;
	if (!is_complete(&past) && !is_undone(d, &past) && (!is_on_target(d, &past) || past.window))
		return go_on(d, &past, why);
	finish_again(d, &past);
	unlink(d->map_path);
	unlink(d->checkpoint_path);
	d->record.generation = ++d->generation;
	/* Which image is the truth stands in the record already: that is enough to serve. */
	if (bm_record_write(d->folder, &d->record, &error) < 0)
		bm_log(BM_LOG_ERROR, "%s: %s; the next start tries again", d->name, error.text);
	json_array_append_new(d->past, report_past(d));
	return 0;
}

int job_recover(struct disk *d, struct bm_error *why)
{
	int r = recover(d, why);

	if (!r)
		hooks_recover(d);
	return r;
}
