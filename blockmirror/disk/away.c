/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A target that is away: lost, or not there yet when a process took over. The guest goes on without
 * it. It is opened again and again, or when somebody resumes the job, or for so long and no longer:
 * that is the user's choice (--on-target-loss). After the switch it is the old image that is away,
 * and only the undo window needs it: there it is waited for.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/units.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/disk/job.h"

#define REOPEN_FIRST 250000000ull   /* ns, doubled up to … */
#define REOPEN_MOST  30000000000ull /* … this */

static bool pauses(const struct job *job)
{
	return job->options.loss == LOSS_PAUSE && !job->switched;
}

/* The clock of a job that gives up runs while the target is away. */
static void set_clock(struct job *job)
{
	uint64_t loss = job->options.loss;

	bm_timer_clear(job->disk->loop, &job->away_timer);
	if (job->away && !job->switched && loss != LOSS_WAIT && loss != LOSS_PAUSE)
		(void)bm_timer_set(job->disk->loop, &job->away_timer, job->away_since + loss);
}

static void give_up(struct bm_timer *timer)
{
	struct job *job = bm_container(timer, struct job, away_timer);
	struct bm_mirror_stats stats;
	char text[sizeof(job->error.text)], time[BM_UNITS_TEXT];
	const char *why;

	if (!job->away || job->switched)
		return;
	bm_mirror_get_stats(job->disk->mirror, &stats);
	why = job->reopen_error.code ? job->reopen_error.text : strerror(-stats.error);
	snprintf(text, sizeof(text),
		 "the target was away for %s, and --on-target-loss allows no more (%.300s); the "
		 "disk stays where it is",
		 bm_format_duration(time, job->options.loss), why);
	job_stop(job, BM_E_TARGET_LOST, text);
}

static void pause_until_resumed(struct job *job)
{
	if (job->paused)
		return;
	bm_log(BM_LOG_WARN, "%s.%u: paused, since the target is away; 'job resume' tries it again",
	       job->disk->name, job->number);
	job_pause(job, true);
}

static void reopen_now(struct job *job)
{
	bm_timer_clear(job->disk->loop, &job->reopen_timer);
	if (job->reopening)
		return;
	job->reopening = true;
	job_run(job, job->disk->workers, &job->reopen);
}

static void reopen(struct bm_timer *timer)
{
	reopen_now(bm_container(timer, struct job, reopen_timer));
}

static void reopen_later(struct job *job)
{
	unsigned shift = job->reopen_failures < 8 ? job->reopen_failures++ : 8;
	uint64_t wait = REOPEN_FIRST << shift;

	(void)bm_timer_set(job->disk->loop, &job->reopen_timer,
			   bm_loop_now(job->disk->loop) +
				   (wait < REOPEN_MOST ? wait : REOPEN_MOST));
}

static void still_away(struct job *job)
{
	if (pauses(job))
		pause_until_resumed(job);
	else
		reopen_later(job);
}

void away_back(struct job *job)
{
	struct disk *d = job->disk;
	bool fenced = d->side[!disk_authority(d)]->geometry.flags & BM_DEV_FENCED;

	bm_log(BM_LOG_NOTICE, "%s.%u: the target is back%s", job->disk->name, job->number,
	       fenced ? "" : "; it does not tell whether it is done with the requests of before");
	job->reopen_failures = 0;
	job->away = false;
	set_clock(job);
}

void away_foreign(struct job *job)
{
	struct bm_mirror_stats stats;
	char text[sizeof(job->error.text)], shown[300];

	bm_mirror_get_stats(job->disk->mirror, &stats);
	snprintf(text, sizeof(text),
		 "%s is not what was there before, or an older state of it: it differs at %" PRIu64
		 ", where both copies were equal; nothing was written to it",
		 bm_uri_redact(job_uri(job, FORWARD), shown, sizeof(shown)), stats.foreign_offset);
	job_stop(job, BM_E_FOREIGN, text);
}

/* It cannot be a copy of the disk any more, whatever it is. */
static void shrunk(struct job *job)
{
	char text[sizeof(job->error.text)], shown[300], need[BM_UNITS_TEXT], have[BM_UNITS_TEXT];

	snprintf(text, sizeof(text),
		 "%s came back smaller (%s) than the disk (%s); nothing was written to it",
		 bm_uri_redact(job_uri(job, FORWARD), shown, sizeof(shown)),
		 bm_format_size(have, job->reopened->geometry.size),
		 bm_format_size(need, job->disk->record.size));
	job_stop(job, BM_E_TOO_SMALL, text);
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
	if (job->reopened && job->reopened->geometry.size < d->record.size)
		shrunk(job);
	else if (job->reopened &&
		 !storage_fit(d, side, job_uri(job, FORWARD),
			      bm_mirror_dev(d->mirror)->geometry.block, &job->reopened)) {
		bm_dev_start(job->reopened, d->loop);
		if (job->disbelieved)
			checkpoint_disbelieve(job);
		job->checkpoint.loaded_id = 0; /* from here on it is ours */
		if (!bm_mirror_reattach(d->mirror, job->reopened)) {
			d->side[side] = bm_steal(job->reopened); /* away_back() follows */
			return;
		}
	}
	bm_dev_close(job->reopened);
	job->reopened = NULL;
	still_away(job);
}

void away_begin(struct job *job)
{
	job->away = true;
	job->away_since = bm_loop_now(job->disk->loop);
	set_clock(job);
	reopen_now(job);
}

void away_lost(struct job *job)
{
	struct disk *d = job->disk;
	struct bm_mirror_stats stats;

	bm_mirror_get_stats(d->mirror, &stats);
	bm_log(BM_LOG_WARN, "%s.%u: the target is lost (%s); the guest goes on", d->name,
	       job->number, strerror(-stats.error));
	if (!job->away)
		job->away_since = bm_loop_now(d->loop);
	job->away = true;
	job->reopen_error.code = BM_OK;
	set_clock(job);
	if (pauses(job))
		pause_until_resumed(job);
}

void away_gone(struct job *job)
{
	struct disk *d = job->disk;
	int side = !disk_authority(d);

	bm_dev_close(d->side[side]);
	d->side[side] = NULL;
	if (!pauses(job) || !job->paused)
		reopen_later(job);
}

void away_chosen(struct job *job)
{
	set_clock(job);
	if (!job->away || !pauses(job))
		return;
	bm_timer_clear(job->disk->loop, &job->reopen_timer);
	pause_until_resumed(job);
}

void away_resumed(struct job *job)
{
	if (job->away && !job->disk->side[!disk_authority(job->disk)])
		reopen_now(job);
}

void away_init(struct job *job)
{
	job->reopen = (struct bm_work){.run = step_reopen, .done = reopen_done};
	job->reopen_timer.run = reopen;
	job->away_timer.run = give_up;
}

void away_clear_timers(struct job *job)
{
	bm_timer_clear(job->disk->loop, &job->reopen_timer);
	bm_timer_clear(job->disk->loop, &job->away_timer);
}
