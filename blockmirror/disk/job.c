/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The life of a job, as a table: what an event does in a phase, and which phase is next. An event
 * that a phase has no entry for is ignored.
 */
#include "blockmirror/disk/job.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/uri.h"

enum { PAST_JOBS = 16 };

uint64_t job_realtime(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void job_run(struct job *job, struct bm_workers *workers, struct bm_work *work)
{
	if (work != &job->reopen && work != &job->keep)
		job->step_error.code = BM_OK;
	bm_workers_submit(workers, job->disk->loop, work);
}

/* The snapshot is the step's while it runs, so there is one record step at a time. */
void job_take_snapshot(struct job *job, const char *state, const char *uri)
{
	json_decref(job->snapshot);
	job->snapshot = report_record(job, state);
	free(job->final_uri);
	job->final_uri = bm_need(strdup(uri));
	job->step_generation = ++job->disk->generation;
}

/* It has moved, and could be undone until now. */
bool job_has_window(const struct job *job)
{
	return job->switched && job->options.window && job->disk->folder;
}

/* What a step wrote is what the disk's record is. */
void job_believe_record(struct job *job)
{
	struct bm_record *record = &job->disk->record;

	record->generation = job->step_generation;
	free(record->uri);
	record->uri = bm_need(strdup(job->final_uri));
	if (json_object_get(record->job, "number") &&
	    !json_equal(json_object_get(record->job, "number"),
			json_object_get(job->snapshot, "number")))
		request_ended(job->disk, record->job);
	json_decref(record->job);
	record->job = json_incref(job->snapshot);
}

/* Actions: each returns the phase that is next. */

static enum job_phase end(struct job *job)
{
	struct disk *d = job->disk;

	hooks_stop_asking(job);
	job->ended = job_realtime();
	job->phase = PHASE_ENDED;
	hooks_tell(job, AFTER_RELOCATE);
	if (job->start_call) {
		bm_rpc_fail(job->start_call, &job->error);
		job->start_call = NULL;
	}
	if (!job->refused)
		json_array_append_new(d->past, report_job(job));
	if (json_array_size(d->past) > PAST_JOBS)
		json_array_remove(d->past, 0);
	away_clear_timers(job);
	return PHASE_ENDED;
}

static enum job_phase agreed(struct job *job)
{
	job_run(job, job->disk->workers, &job->prepare);
	return PHASE_PREPARING;
}

/* The target is no good, or nobody wants it any more: nothing was changed. */
static enum job_phase drop(struct job *job)
{
	if (!job->error.code)
		job->error = job->target.error;
	if (job->target.uri) { /* cancelled: it is there, and goes again */
		job->prepare.run = step_drop;
		job_run(job, job->disk->workers, &job->prepare);
		return PHASE_PREPARING;
	}
	job->refused = true;
	job->disk->jobs--;
	return end(job);
}

static enum job_phase prepared(struct job *job)
{
	if (job->target.error.code || job->error.code)
		return drop(job);
	if (!job->disk->folder) { /* a one-off: no record */
		job_event(job, EV_STARTED);
		return job->phase;
	}
	job->map_generation = job->disk->generation + 1;
	job_take_snapshot(job, "running", job->source);
	job_run(job, job->disk->recorder, &job->start);
	return PHASE_STARTING;
}

static enum job_phase finish(struct job *job)
{
	const char *uri = job_uri(job, BACK);
	const char *state = job->undone                         ? "undone"
			    : !job->error.code                  ? "done"
			    : job->error.code == BM_E_CANCELLED ? "cancelled"
								: "failed";

	mapfile_remove(job->disk, job->map);
	job->map = NULL;
	if (job_has_window(job))
		job->disk->generation++; /* of the record that closes it */
	job_take_snapshot(job, state, uri);
	if (job->error.code)
		json_object_set_new(job->snapshot, "error",
				    json_pack("{s:s s:s}", "code", bm_code_name(job->error.code),
					      "message", job->error.text));
	job_run(job, job->disk->recorder, &job->finish);
	return PHASE_FINISHING;
}

static int cannot_mirror(struct job *job, int r)
{
	char shown[400];

	return bm_fail_errno(&job->error, r, "cannot mirror to %s",
			     bm_uri_redact(job->target.uri, shown, sizeof(shown)));
}

void job_set_limits(const struct job *job)
{
	struct bm_mirror *mirror = job->disk->mirror;

	bm_mirror_set_rate(mirror, job->options.rate);
	bm_mirror_set_latency(mirror, job->options.latency);
	bm_mirror_set_deadline(mirror, job->options.deadline);
	/* What stays on this host's own storage is not sent. */
	bm_mirror_set_cap(mirror, job->target.uri && bm_uri_path(job_uri(job, FORWARD))
					  ? NULL
					  : job->disk->cap);
}

void job_pause(struct job *job, bool paused)
{
	job->paused = paused;
	if (job->phase >= PHASE_COPYING)
		bm_mirror_pause(job->disk->mirror, paused);
}

/* Makes the target fit, and hands it to the mirror. */
static int attach(struct job *job)
{
	struct disk *d = job->disk;
	int side = !disk_authority(d), r;

	r = storage_fit(d, side, job->target.uri, bm_mirror_dev(d->mirror)->geometry.block,
			&job->target.dev);
	if (r < 0)
		return cannot_mirror(job, r);
	bm_dev_start(job->target.dev, d->loop);
	d->side[side] = job->target.dev;
	job->target.dev = NULL;
	if (d->map_path)
		job->map = mapfile_create(d, job->map_generation);
	if (d->map_path && !job->map)
		return bm_fail_errno(&job->error, errno, "cannot write the map %s", d->map_path);
	job_set_limits(job);
	bm_mirror_pause(d->mirror, job->paused);
	r = bm_mirror_attach(d->mirror, d->side[side], job->target.zeroed, job->map);
	job->attached = !r;
	return r < 0 ? cannot_mirror(job, r) : 0;
}

static enum job_phase started(struct job *job)
{
	struct disk *d = job->disk;
	int side = !disk_authority(d);

	if (job->step_error.code && !job->error.code)
		job->error = job->step_error;
	else if (d->folder && !job->step_error.code)
		job_believe_record(job);
	if (job->error.code || attach(job) < 0) {
		bm_dev_close(d->side[side]);
		d->side[side] = NULL;
		bm_dev_close(job->target.dev);
		job->target.dev = NULL;
		return finish(job);
	}
	if (job->start_call) {
		bm_rpc_reply(job->start_call, report_job(job));
		job->start_call = NULL;
	}
	return PHASE_COPYING;
}

static enum job_phase verified(struct job *job)
{
	job->phase = PHASE_IN_SYNC;
	job_tell_waiters(job);
	if (job->options.kind == JOB_COPY)
		return job_ask_cut(job);
	if (!job->options.manual || job->switch_wanted)
		return job_ask_switch(job);
	return PHASE_IN_SYNC;
}

/* What differed although it should have been equal. */
static void tell_difference(struct job *job, const struct bm_mirror_stats *stats)
{
	char text[300];

	snprintf(text, sizeof(text),
		 "%" PRIu64 " pieces of %" PRIu64 " bytes were not equal on both copies, the first "
		 "at %" PRIu64 ", and were copied again; look at the target's storage, or %s "
		 "with --accept-repair",
		 stats->mismatches, stats->granule, stats->mismatch_offset,
		 job->options.kind == JOB_COPY ? "copy" : "move");
	bm_log(BM_LOG_ERROR, "%s.%u: %s", job->disk->name, job->number, text);
	if (!job->options.accept_repair)
		job_stop(job, BM_E_DIFFERED, text);
}

static void tell_hopeless(struct job *job, const struct bm_mirror_stats *stats)
{
	char text[200];

	snprintf(text, sizeof(text),
		 "the target differs from the source again after it was copied again, at %" PRIu64
		 ": one of them does not keep, or not tell, what it holds; look at the storage of "
		 "both",
		 stats->mismatch_offset);
	job_stop(job, BM_E_DIFFERED, text);
}

static void compared(void *arg, int error)
{
	struct job *job = arg;
	struct bm_mirror_stats stats;

	if (job->phase != PHASE_VERIFYING)
		return;
	bm_mirror_get_stats(job->disk->mirror, &stats);
	if (error == -EILSEQ)
		tell_hopeless(job, &stats);
	else if (error)
		job_stop(job, BM_E_IO, "the source cannot be read, to compare it with the target");
	else if (stats.mismatches)
		tell_difference(job, &stats);
	job_event(job, EV_VERIFIED);
}

static enum job_phase in_sync(struct job *job)
{
	int r;

	if (!job->options.verify)
		return verified(job);
	r = bm_mirror_verify(job->disk->mirror, compared, job);
	if (!r)
		return PHASE_VERIFYING;
	bm_fail_errno(&job->error, r, "cannot compare");
	return job_detach(job);
}

enum job_phase job_detach(struct job *job)
{
	bm_mirror_get_stats(job->disk->mirror, &job->last);
	bm_mirror_detach(job->disk->mirror);
	return PHASE_DETACHING;
}

static enum job_phase detached(struct job *job)
{
	struct disk *d = job->disk;
	int side = !disk_authority(d);

	if (job->reopening || job->preparing_records ||
	    job->keeping) { /* a worker still has the job */
		atomic_store(&job->give_up, true);
		job->let_go = true;
		return PHASE_DETACHING;
	}
	if (!job->options.window)
		job->longest_stall = d->meter.longest;
	away_clear_timers(job);
	switch_clear_timers(job);
	checkpoint_end(job);
	bm_dev_close(d->side[side]);
	d->side[side] = NULL;
	return finish(job);
}

static enum job_phase finished(struct job *job)
{
	if (job->step_error.code)
		bm_log(BM_LOG_ERROR, "%s.%u: %s", job->disk->name, job->number,
		       job->step_error.text);
	else if (job->disk->folder)
		job_believe_record(job);
	if (job_has_window(job))
		hooks_tell(job, AFTER_RELEASE);
	return end(job);
}

static enum job_phase stop_switch(struct job *job)
{
	return job->switched ? job_window_lost(job) : job_detach(job);
}

static enum job_phase release_switch(struct job *job)
{
	return job->switched ? job_release(job) : job->phase;
}

static enum job_phase give_up(struct job *job)
{
	atomic_store(&job->give_up, true);
	return job->phase; /* the step that runs will see */
}

static enum job_phase (*const table[PHASES][EVENTS])(struct job *job) = {
	[PHASE_PREPARING] = {[EV_AGREED] = agreed,
			     [EV_PREPARED] = prepared,
			     [EV_STARTED] = started,
			     [EV_STOP] = give_up},
	[PHASE_STARTING] = {[EV_STARTED] = started, [EV_STOP] = give_up},
	[PHASE_COPYING] =
		{[EV_IN_SYNC] = in_sync, [EV_SWITCH] = job_ask_switch, [EV_STOP] = job_detach},
	[PHASE_VERIFYING] =
		{[EV_VERIFIED] = verified, [EV_SWITCH] = job_ask_switch, [EV_STOP] = job_detach},
	[PHASE_IN_SYNC] =
		{[EV_SWITCH] = job_ask_switch, [EV_CUT] = job_detach, [EV_STOP] = job_detach},
	[PHASE_SWITCHING] = {[EV_SWITCHED] = job_passed,
			     [EV_SWITCH_FAILED] = job_switch_failed,
			     [EV_RELEASE] = release_switch,
			     [EV_STOP] = stop_switch},
	[PHASE_MARKING] = {[EV_MARKED] = job_marked,
			   [EV_UNDO] = job_ask_undo,
			   [EV_RELEASE] = job_release,
			   [EV_STOP] = job_window_lost},
	[PHASE_WINDOW] =
		{[EV_UNDO] = job_ask_undo, [EV_RELEASE] = job_release, [EV_STOP] = job_window_lost},
	[PHASE_DETACHING] = {[EV_SWITCHED] = job_passed, [EV_DETACHED] = detached},
	[PHASE_FINISHING] = {[EV_FINISHED] = finished},
};

/* For the log; report_phase() has what users see. */
static const char *const phase_names[PHASES] = {
	[PHASE_PREPARING] = "preparing", [PHASE_STARTING] = "starting",
	[PHASE_COPYING] = "copying",     [PHASE_VERIFYING] = "verifying",
	[PHASE_IN_SYNC] = "in-sync",     [PHASE_SWITCHING] = "switching",
	[PHASE_MARKING] = "marking",     [PHASE_WINDOW] = "undo-window",
	[PHASE_DETACHING] = "detaching", [PHASE_FINISHING] = "finishing",
	[PHASE_ENDED] = "ended",
};
static const char *const event_names[EVENTS] = {
	[EV_NONE] = "none",         [EV_AGREED] = "agreed",
	[EV_PREPARED] = "prepared", [EV_STARTED] = "started",
	[EV_IN_SYNC] = "in-sync",   [EV_VERIFIED] = "verified",
	[EV_SWITCH] = "switch",     [EV_SWITCHED] = "switched",
	[EV_CUT] = "cut",           [EV_SWITCH_FAILED] = "switch-failed",
	[EV_DETACHED] = "detached", [EV_FINISHED] = "finished",
	[EV_MARKED] = "marked",     [EV_UNDO] = "undo",
	[EV_RELEASE] = "release",   [EV_STOP] = "stop",
};

void job_tell(struct job *job)
{
	if (job->disk->rpc)
		bm_rpc_notify(job->disk->rpc, "job", json_pack("{s:o}", "job", report_job(job)));
}

void job_event(struct job *job, enum job_event event)
{
	enum job_phase from = job->phase;

	if (job->parked || !table[from][event])
		return;
	job->phase = table[from][event](job);
	if (job->phase == from)
		return;
	storage_set_roles(job->disk);
	bm_log(BM_LOG_NOTICE, "job=%s.%u from=%s ev=%s to=%s",
	       job->disk->name ? job->disk->name : "", job->number, phase_names[from],
	       event_names[event], phase_names[job->phase]);
	job_tell_waiters(job);
	job_tell(job);
	if (job->keep_wanted)
		host_keep(job);
}

void job_stop(struct job *job, enum bm_code code, const char *text)
{
	if (job->error.code || !job_runs(job) || job->phase == PHASE_FINISHING)
		return;
	bm_fail(&job->error, code, "%s", text);
	hooks_stop_asking(job);
	job_event(job, EV_STOP);
}

/* It was, and may not be any more: a target may fail, or fill up, while one waits for the switch.
 */
bool job_in_sync(const struct job *job)
{
	struct bm_mirror_stats stats;

	if (job->phase != PHASE_IN_SYNC)
		return false;
	bm_mirror_get_stats(job->disk->mirror, &stats);
	return stats.state == BM_STATE_IN_SYNC || stats.state == BM_STATE_CUTTING;
}

bool job_rest_copied(const struct job *job)
{
	struct bm_mirror_stats stats;

	if (job->phase < PHASE_COPYING || job->phase > PHASE_SWITCHING || !job->options.skip)
		return false;
	bm_mirror_get_stats(job->disk->mirror, &stats);
	return stats.rest_copied;
}

void job_tell_waiters(struct job *job)
{
	enum job_goal reached = job->phase == PHASE_ENDED                        ? GOAL_END
				: job->phase == PHASE_WINDOW                     ? GOAL_DONE
				: job_rest_copied(job) || job_is_held(job)       ? GOAL_DONE
				: job->phase > PHASE_IN_SYNC || job_in_sync(job) ? GOAL_SYNC
										 : GOAL_NONE;

	bm_list_each_safe(node, &job->waiters) {
		struct job_waiter *w = bm_container(node, struct job_waiter, link);

		if (w->goal > reached)
			continue;
		bm_list_remove(&w->link);
		bm_rpc_reply(w->call, report_job(job));
		free(w);
	}
}

/* Steps that ended */

static void prepare_done(struct bm_work *work)
{
	job_event(bm_container(work, struct job, prepare), EV_PREPARED);
}

static void start_done(struct bm_work *work)
{
	job_event(bm_container(work, struct job, start), EV_STARTED);
}

static void finish_done(struct bm_work *work)
{
	job_event(bm_container(work, struct job, finish), EV_FINISHED);
}

/* Beginning */

void job_free(struct job *job)
{
	if (!job)
		return;
	hooks_forget(job);
	free(job->options.target);
	free(job->options.from);
	json_decref(job->options.request);
	free(job->source);
	free(job->target.uri);
	free(job->final_uri);
	json_decref(job->snapshot);
	json_decref(job->kept);
	free(job);
}

void job_forget(struct disk *d)
{
	struct bm_error error;

	if (!d->job)
		return;
	away_clear_timers(d->job);
	switch_clear_timers(d->job);
	checkpoint_end(d->job);
	bm_fail(&error, BM_E_INTERRUPTED, "the disk's process ends");
	if (d->job->start_call)
		bm_rpc_fail(d->job->start_call, &error);
	bm_list_each_safe(node, &d->job->waiters) {
		struct job_waiter *w = bm_container(node, struct job_waiter, link);

		bm_rpc_fail(w->call, &error);
		free(w);
	}
	bm_dev_close(d->job->reopened);
	bm_dev_close(d->job->target.dev);
	job_free(d->job);
	d->job = NULL;
}

/*
 * What a job sent to its target may still be under way when it was cut short; the next one may go
 * to the same target. Files have their locks for that.
 */
static bool last_job_failed(const struct disk *d)
{
	const char *state = json_string_value(json_object_get(d->record.job, "state"));

	return state && strcmp(state, "done") != 0;
}

struct job *job_new(struct disk *d, const struct job_options *options, unsigned number)
{
	struct job *job = calloc(1, sizeof(*job));

	if (!job)
		return NULL;
	job->disk = d;
	job->options = *options;
	job->number = number;
	job->source = bm_need(strdup(d->record.uri));
	job->started = job_realtime();
	bm_list_init(&job->waiters);
	job->prepare = (struct bm_work){.run = step_prepare, .done = prepare_done};
	job->start = (struct bm_work){.run = step_start, .done = start_done};
	job->finish = (struct bm_work){.run = step_finish, .done = finish_done};
	switch_init_job(job);
	checkpoint_init(job);
	host_init(job);
	away_init(job);
	return job;
}

void job_begin(struct disk *d, struct job_options *options, struct bm_rpc_call *call)
{
	struct job *job = job_runs(d->job) ? NULL : job_new(d, options, d->jobs + 1);
	struct bm_error error;

	if (job_runs(d->job))
		bm_fail(&error, BM_E_BUSY, "disk %s is being %s already (job %s.%u)", d->name,
			job_doing(d->job), d->name, d->job->number);
	else if (!job)
		bm_fail_errno(&error, ENOMEM, "job");
	if (!job) {
		free(options->target);
		free(options->from);
		json_decref(options->request);
		bm_rpc_fail(call, &error);
		return;
	}
	job_free(d->job);
	d->job = job;
	d->jobs = job->number;
	job->start_call = call;
	job->target = (struct target){
		.text = job->options.target,
		.from = job->options.from,
		.overwrite = options->overwrite,
		.fence = last_job_failed(d),
		.size = d->record.size,
		.source = job->source,
		.own_socket = d->nbd_path,
		.daemon = d->daemon_path,
		.name = d->name,
		.record = &d->record,
		.folder = d->records,
	};
	if (hooks_agree(job, BEFORE_RELOCATE, EV_AGREED))
		job_run(job, d->workers, &job->prepare);
}
