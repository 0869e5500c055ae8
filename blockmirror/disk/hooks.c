/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Outbound hooks (docs/hooks.md): before a step of a job they are asked, after it they are told.
 * They run in a worker, one after the other, so that what they are told has an order; the loop goes
 * on, and so do guest, mirror and commands.
 *
 *	asked   the step waits; the job stays in the phase it is in (in sync, in the window). When
 *		all have agreed its event is given again. Else nothing happens, and the job says why
 *	told    nothing waits. What was told stands in FOLDER/told, afterwards: a process that
 *		follows tells the rest, and what it does not know of, once more
 *
 * A job that begins when there is no hook tells nobody, up to its end.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/hooks.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/disk/job.h"

#define WINDOW_AGAIN 60000000000ull /* ns until the end of a window is asked about again */

enum { LARGEST = 4096 };

static const char *const names[] = {
	[BEFORE_RELOCATE] = "before-relocate", [AFTER_RELOCATE] = "after-relocate",
	[BEFORE_SWITCH] = "before-switch",     [AFTER_SWITCH] = "after-switch",
	[BEFORE_RELEASE] = "before-release",   [AFTER_RELEASE] = "after-release"};

/* One event, from when it is due until all hooks have been run. */
struct hook_call {
	struct bm_list link;
	struct disk *disk;
	struct job *job; /* that asks; NULL: it tells, or the job is gone */
	enum hook_step step;
	bool asks;
	json_t *facts;
	char *key;         /* of what was told: "after-switch.back" */
	_Atomic bool stop; /* nobody waits for it any more */
	struct bm_work work;
	unsigned ran;
	int result;
	struct bm_error error;
};

static bool stopped(void *arg)
{
	const struct hook_call *call = arg;

	return atomic_load(&call->stop);
}

static void call_free(struct hook_call *call)
{
	json_decref(call->facts);
	free(call->key);
	free(call);
}

/* What was told already, of the job that began then; an array, empty where nothing is known. */
static json_t *read_told(const char *folder, json_int_t started)
{
	bm_free char *path = NULL, *text = NULL;
	json_t *root = NULL, *told = NULL;
	json_int_t of = -1;

	if (asprintf(&path, "%s/told", folder) >= 0 && !bm_read_text(path, LARGEST, &text))
		root = json_loads(text, 0, NULL);
	if (!json_unpack(root, "{s:I s:o}", "started", &of, "told", &told) && of == started)
		json_incref(told);
	else
		told = NULL;
	json_decref(root);
	return told ? told : json_array();
}

/* In a worker. Not synced: what is lost is told again. */
static void write_told(const struct hook_call *call)
{
	const char *folder = call->disk->folder;
	json_int_t started = json_integer_value(json_object_get(call->facts, "started"));
	json_t *told = read_told(folder, started), *root;
	bm_free char *path = NULL, *fresh = NULL;

	json_array_append_new(told, json_string(call->key));
	root = json_pack("{s:I s:o}", "started", started, "told", told);
	if (asprintf(&path, "%s/told", folder) < 0 || asprintf(&fresh, "%s/told.new", folder) < 0 ||
	    json_dump_file(root, fresh, JSON_COMPACT) < 0 || rename(fresh, path) < 0)
		bm_log(BM_LOG_WARN, "%s: cannot note in %s what hooks were told; they may be again",
		       call->disk->name, folder);
	json_decref(root);
}

static void run(struct bm_work *work)
{
	struct hook_call *call = bm_container(work, struct hook_call, work);
	const struct bm_hooks hooks = {.folder = call->disk->hooks,
				       .limit = call->disk->hook_limit,
				       .interrupted = stopped,
				       .arg = call};

	call->result = bm_hooks_run(&hooks, names[call->step], call->facts, call->asks, &call->ran,
				    &call->error);
	if (!call->asks && call->result != -EINTR && call->key)
		write_told(call);
}

static struct hook_call *first(const struct disk *d)
{
	return bm_list_empty(&d->hook_calls)
		       ? NULL
		       : bm_container(d->hook_calls.next, struct hook_call, link);
}

static void go_on(struct disk *d)
{
	if (first(d))
		bm_workers_submit(d->workers, d->loop, &first(d)->work);
	else if (d->stop_call)
		control_stop(d, bm_steal(d->stop_call));
}

static void tell_clients(const struct hook_call *call)
{
	json_t *event = json_pack("{s:s s:O}", "event", names[call->step], "job",
				  json_object_get(call->facts, "job"));

	if (call->result < 0)
		json_object_set_new(event, "error",
				    json_pack("{s:s s:s}", "code", bm_code_name(call->error.code),
					      "message", call->error.text));
	if (call->disk->rpc && (call->ran || call->result < 0))
		bm_rpc_notify(call->disk->rpc, "hook", event);
	else
		json_decref(event);
}

/* Those who asked for that step themselves. */
static void fail_waiters(struct job *job, enum job_event event)
{
	bm_list_each_safe(node, &job->waiters) {
		struct job_waiter *w = bm_container(node, struct job_waiter, link);

		if (w->event != event)
			continue;
		bm_list_remove(&w->link);
		bm_rpc_fail(w->call, &job->held);
		free(w);
	}
}

/* The hooks said no: the job stays as it is, and says so. */
static void hold(struct job *job, enum hook_step step, enum job_event event)
{
	struct disk *d = job->disk;

	if (step == BEFORE_RELOCATE) { /* it is as if nobody had asked */
		if (!job->error.code)
			job->error = job->held;
		job_event(job, EV_PREPARED);
		return;
	}
	if (event == EV_UNDO)
		job->undo_wanted = false;
	else if (event == EV_SWITCH)
		job->switch_wanted = false;
	fail_waiters(job, event);
	if (step == BEFORE_RELEASE && !bm_timer_armed(&job->window_timer))
		(void)bm_timer_set(d->loop, &job->window_timer,
				   bm_loop_now(d->loop) + WINDOW_AGAIN);
	job_tell_waiters(job);
	job_tell(job);
}

static void answered(struct hook_call *call)
{
	struct job *job = call->job;
	enum job_event event = job->asked_event;

	job->asking = NULL;
	if (call->step == BEFORE_RELOCATE)
		job->tells = call->ran > 0;
	if (call->result == -EINTR && call->step == BEFORE_RELOCATE) {
		job_event(job, EV_PREPARED);
	} else if (call->result == -EINTR) {
		return; /* the job is being stopped */
	} else if (call->result < 0) {
		job->held = call->error;
		hold(job, call->step, event);
	} else {
		job->agreed = true;
		job_event(job, event);
		job->agreed = false;
	}
}

static void done(struct bm_work *work)
{
	struct hook_call *call = bm_container(work, struct hook_call, work);
	struct disk *d = call->disk;

	if (call->result < 0 && call->result != -EINTR)
		bm_log(BM_LOG_WARN, "%s: %s", d->name, call->error.text);
	tell_clients(call);
	if (call->job)
		answered(call);
	bm_list_remove(&call->link); /* not before: what comes of it would be begun twice */
	call_free(call);
	go_on(d);
}

/* j: the job as it is reported. direction: of a switch; NULL. */
static json_t *make_facts(const struct disk *d, json_t *j, enum hook_step step,
			  const char *direction)
{
	static const char *const of_job[] = {"number", "started", "source", "target"};
	const json_t *error = json_object_get(j, "error");
	json_t *facts;
	char id[200];

	snprintf(id, sizeof(id), "%s.%lld.%s%s%s", d->record.disk,
		 json_integer_value(json_object_get(j, "started")), names[step],
		 direction ? "." : "", direction ? direction : "");
	facts = json_pack("{s:i s:s s:s s:s s:s s:O s:O* s:s* s:I s:s s:s}", "v", 1, "event",
			  names[step], "event_id", id, "disk", d->name, "disk_id", d->record.disk,
			  "job", json_object_get(j, "id"), "request",
			  json_object_get(json_object_get(j, "request"), "id"), "direction",
			  direction, "generation", (json_int_t)d->record.generation, "run_dir",
			  d->run_dir, "state_dir", d->state_dir);
	for (size_t i = 0; i < sizeof(of_job) / sizeof(of_job[0]); i++)
		json_object_set(facts, of_job[i], json_object_get(j, of_job[i]));
	if (step != AFTER_RELOCATE)
		return facts;
	json_object_set(facts, "result", json_object_get(j, "state"));
	if (error) {
		json_object_set(facts, "error_code", json_object_get(error, "code"));
		json_object_set(facts, "error", json_object_get(error, "message"));
	}
	return facts;
}

static struct hook_call *call_new(struct disk *d, json_t *job_json, enum hook_step step,
				  const char *direction)
{
	struct hook_call *call = bm_need(calloc(1, sizeof(*call)));

	call->disk = d;
	call->step = step;
	call->facts = make_facts(d, job_json, step, direction);
	json_decref(job_json);
	call->work = (struct bm_work){.run = run, .done = done};
	return call;
}

/* From here on a worker has it: all that it reads is there. */
static void submit(struct hook_call *call)
{
	struct disk *d = call->disk;

	bm_list_append(&d->hook_calls, &call->link);
	if (first(d) == call)
		bm_workers_submit(d->workers, d->loop, &call->work);
}

static char *key_of(enum hook_step step, const char *direction)
{
	char *key;

	return asprintf(&key, "%s%s%s", names[step], direction ? "." : "",
			direction ? direction : "") < 0
		       ? NULL
		       : key;
}

static const char *direction_of(const struct job *job, enum hook_step step)
{
	bool forward = step == BEFORE_SWITCH ? !job->switched : job->switched;

	return step != BEFORE_SWITCH && step != AFTER_SWITCH ? NULL : forward ? "forward" : "back";
}

static bool may_tell(const struct job *job)
{
	return job->disk->hooks && job->disk->folder && job->options.kind == JOB_RELOCATE;
}

bool hooks_agree(struct job *job, enum hook_step step, enum job_event event)
{
	if (!may_tell(job) || job->agreed || (step != BEFORE_RELOCATE && !job->tells))
		return true;
	if (job->asking) /* about this, or another step; whoever wants that asks again */
		return false;
	job->held.code = BM_OK;
	job->asked_event = event;
	job->asking = call_new(job->disk, report_job(job), step, direction_of(job, step));
	job->asking->asks = true;
	job->asking->job = job;
	submit(job->asking);
	return false;
}

bool job_is_held(const struct job *job)
{
	return job->held.code && !job->asking && job->phase == PHASE_IN_SYNC;
}

const char *hooks_asked(const struct job *job)
{
	return job->asking ? names[job->asking->step] : NULL;
}

void hooks_tell(struct job *job, enum hook_step step)
{
	struct hook_call *call;

	if (!may_tell(job) || !job->tells)
		return;
	call = call_new(job->disk, report_job(job), step, direction_of(job, step));
	if (!job->refused)
		call->key = key_of(step, direction_of(job, step));
	submit(call);
}

void hooks_stop_asking(struct job *job)
{
	if (job->asking)
		atomic_store(&job->asking->stop, true);
}

void hooks_forget(struct job *job)
{
	hooks_stop_asking(job);
	if (job->asking)
		job->asking->job = NULL;
	job->asking = NULL;
}

bool hooks_run(const struct disk *d)
{
	return first(d);
}

/* One that the record says has happened, unless it is known to have been told. */
static void tell_again(struct disk *d, const json_t *told, enum hook_step step,
		       const char *direction)
{
	bm_free char *key = key_of(step, direction);
	struct hook_call *call;
	size_t i;
	json_t *value;

	json_array_foreach(told, i, value)
		if (key && !strcmp(json_string_value(value) ? json_string_value(value) : "", key))
			return;
	call = call_new(d, report_past(d), step, direction);
	call->key = bm_steal(key);
	submit(call);
}

void hooks_recover(struct disk *d)
{
	const char *state = "", *kind = "", *target = "";
	json_int_t started = 0, window_ends = 0;
	int tells = 0;
	bool moved, undone, ended;
	json_t *told;

	if (!d->hooks || json_unpack(d->record.job, "{s:s s:s s:s s:I s?b s?I}", "state", &state,
				     "kind", &kind, "target", &target, "started", &started, "tells",
				     &tells, "window_ends", &window_ends))
		return;
	if (!tells || strcmp(kind, "relocate") != 0)
		return;
	told = read_told(d->folder, started);
	ended = strcmp(state, "running") != 0;
	undone = !strcmp(state, "undone");
	moved = undone || !strcmp(state, "done") || (!ended && !strcmp(d->record.uri, target));
	if (moved)
		tell_again(d, told, AFTER_SWITCH, "forward");
	if (undone)
		tell_again(d, told, AFTER_SWITCH, "back");
	if (ended && moved && !undone && window_ends)
		tell_again(d, told, AFTER_RELEASE, NULL);
	if (ended)
		tell_again(d, told, AFTER_RELOCATE, NULL);
	json_decref(told);
}

void hooks_interrupt(struct disk *d)
{
	bm_list_each(node, &d->hook_calls) {
		atomic_store(&bm_container(node, struct hook_call, link)->stop, true);
	}
}

void hooks_close(struct disk *d)
{
	struct bm_list *node;

	while ((node = bm_list_take(&d->hook_calls))) {
		struct hook_call *call = bm_container(node, struct hook_call, link);

		if (call->job)
			call->job->asking = NULL;
		call_free(call);
	}
}
