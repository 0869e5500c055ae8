/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The part of a job's life in which authority passes: the switch, the window in which it can be
 * undone, and the way back, which is the same switch. Actions of the table in job.c.
 */
#include <stdatomic.h>
#include <string.h>

#include "blockmirror/base/log.h"
#include "blockmirror/disk/job.h"

#define SWITCH_RETRY 1000000000ull /* ns, doubled up to 32 times that */

const char *job_outcome_name(enum outcome outcome)
{
	return outcome == FORWARD ? "forward" : "back";
}

static void prepare_records(struct job *job)
{
	struct disk *d = job->disk;

	job->switch_started = bm_loop_now(d->loop);
	d->meter.longest = 0;
	job_take_snapshot(job, "running", job_uri(job, FORWARD));
	job->set_aside[FORWARD] = job->step_generation;
	job->set_aside[BACK] = ++d->generation;
	job->ready[FORWARD] = job->ready[BACK] = false;
	job->preparing_records = true;
	job_run(job, d->recorder, &job->records);
}

enum job_phase job_ask_switch(struct job *job)
{
	job->switch_wanted = true;
	if (job->phase != PHASE_IN_SYNC || job->preparing_records ||
	    bm_timer_armed(&job->switch_timer) || !hooks_agree(job, BEFORE_SWITCH, EV_SWITCH))
		return job->phase;
	prepare_records(job);
	return PHASE_SWITCHING;
}

enum job_phase job_ask_undo(struct job *job)
{
	job->undo_wanted = true;
	if (job->phase != PHASE_WINDOW || job->preparing_records ||
	    bm_timer_armed(&job->switch_timer) || !hooks_agree(job, BEFORE_SWITCH, EV_UNDO))
		return job->phase;
	bm_timer_clear(job->disk->loop, &job->window_timer);
	prepare_records(job);
	return PHASE_SWITCHING;
}

/* The records of both outcomes are on stable storage: now the switch cannot fail for space. */
static void records_done(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, records);

	job->preparing_records = false;
	if (job->let_go)
		job_event(job, EV_DETACHED);
	if (job->phase != PHASE_SWITCHING)
		return;
	if (job->step_error.code) {
		bm_log(BM_LOG_WARN, "%s.%u: %s; the switch is tried again", job->disk->name,
		       job->number, job->step_error.text);
		job_event(job, EV_SWITCH_FAILED);
		return;
	}
	job->ready[FORWARD] = job->ready[BACK] = true;
	bm_mirror_switch(job->disk->mirror);
}

/* No record could be written, or a side failed while one was. The guest does not notice. */
enum job_phase job_switch_failed(struct job *job)
{
	unsigned shift = job->switch_failures < 5 ? job->switch_failures++ : 5;

	(void)bm_timer_set(job->disk->loop, &job->switch_timer,
			   bm_loop_now(job->disk->loop) + (SWITCH_RETRY << shift));
	if (job->release_wanted)
		return job_detach(job);
	return job->switched ? PHASE_WINDOW : PHASE_IN_SYNC;
}

static void switch_again(struct bm_timer *timer)
{
	struct job *job = bm_container(timer, struct job, switch_timer);

	if (job->undo_wanted)
		job_event(job, EV_UNDO);
	else if (job->switch_wanted)
		job_event(job, EV_SWITCH);
}

enum job_phase job_passed(struct job *job)
{
	struct disk *d = job->disk;

	job->switch_took = bm_loop_now(d->loop) - job->switch_started;
	job->switched = !job->switched;
	job->undone = !job->switched;
	job->switch_failures = 0;
	job->error.code = BM_OK; /* cancelled too late: it is done */
	hooks_tell(job, AFTER_SWITCH);
	if (job->phase == PHASE_DETACHING)
		return PHASE_DETACHING;
	return job->switched && job->options.window && d->folder ? job_open_window(job)
								 : job_detach(job);
}

/* The window */

enum job_phase job_open_window(struct job *job)
{
	struct disk *d = job->disk;

	job->longest_stall = d->meter.longest;
	if (!job->window_ends)
		job->window_ends = job_realtime() + job->options.window;
	job_take_snapshot(job, "running", job_uri(job, BACK));
	job_run(job, d->recorder, &job->marks);
	return PHASE_MARKING;
}

static void marks_done(struct bm_work *work)
{
	job_event(bm_container(work, struct job, marks), EV_MARKED);
}

enum job_phase job_marked(struct job *job)
{
	uint64_t now = job_realtime();

	if (job->step_error.code)
		bm_log(BM_LOG_ERROR, "%s.%u: %s", job->disk->name, job->number,
		       job->step_error.text);
	else
		job_believe_record(job);
	job->phase = PHASE_WINDOW;
	if (job->release_wanted)
		return job_detach(job);
	if (job->undo_wanted)
		return job_ask_undo(job);
	(void)bm_timer_set(job->disk->loop, &job->window_timer,
			   bm_loop_now(job->disk->loop) +
				   (job->window_ends > now ? job->window_ends - now : 0));
	return PHASE_WINDOW;
}

enum job_phase job_release(struct job *job)
{
	bool undoing = job->phase == PHASE_SWITCHING && job->switched;

	job->release_wanted = true;
	if (job->phase == PHASE_WINDOW || (undoing && !bm_mirror_switch_cancel(job->disk->mirror)))
		return job_detach(job);
	return job->phase;
}

/* What stops a move does not undo it: it is a second copy that is lost. */
enum job_phase job_window_lost(struct job *job)
{
	bm_log(BM_LOG_ERROR, "%s.%u: the move cannot be undone any more: %s", job->disk->name,
	       job->number, job->error.text);
	job->error.code = BM_OK;
	return job_release(job);
}

static void window_ends(struct bm_timer *timer)
{
	struct job *job = bm_container(timer, struct job, window_timer);

	if (hooks_agree(job, BEFORE_RELEASE, EV_RELEASE))
		job_event(job, EV_RELEASE);
	else if (job->asked_event != EV_RELEASE) /* they are asked about the way back */
		(void)bm_timer_set(job->disk->loop, timer,
				   bm_loop_now(job->disk->loop) + SWITCH_RETRY);
}

void switch_init_job(struct job *job)
{
	job->records = (struct bm_work){.run = step_records, .done = records_done};
	job->marks = (struct bm_work){.run = step_marks, .done = marks_done};
	job->switch_timer.run = switch_again;
	job->window_timer.run = window_ends;
}

void switch_clear_timers(struct job *job)
{
	bm_timer_clear(job->disk->loop, &job->switch_timer);
	bm_timer_clear(job->disk->loop, &job->window_timer);
}
