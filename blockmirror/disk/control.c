/* SPDX-License-Identifier: BSD-3-Clause */
/* The control socket of a disk: docs/protocol.md, method by method. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "blockmirror/base/memory.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/disk/job.h"
#include "blockmirror/disk/standby.h"

#define LEAST_DEADLINE 10000000 /* ns */
#define PARKED         "the disk is just being upgraded; try again"

enum { MOST_CLIENTS = 32 };

static void fail(struct bm_rpc_call *call, enum bm_code code, const char *text)
{
	struct bm_error error;

	bm_fail(&error, code, "%s", text);
	bm_rpc_fail(call, &error);
}

static void method_show(void *arg, struct bm_rpc_call *call, json_t *params)
{
	(void)params;
	bm_rpc_reply(call, report_disk(arg));
}

bool control_read_loss(const json_t *value, uint64_t *loss)
{
	const char *word = json_string_value(value);

	if (word && !strcmp(word, "wait"))
		*loss = LOSS_WAIT;
	else if (word && !strcmp(word, "pause"))
		*loss = LOSS_PAUSE;
	else if (json_is_integer(value) && json_integer_value(value) > 0)
		*loss = (uint64_t)json_integer_value(value);
	else
		return !value;
	return true;
}

/* A limit: absent means unchanged. Latency is "off", "auto" or ns. */
static bool read_limits(json_t *params, struct job_options *options)
{
	const json_t *r = json_object_get(params, "rate"),
		     *l = json_object_get(params, "guest_latency"),
		     *d = json_object_get(params, "target_deadline");
	uint64_t *rate = &options->rate, *latency = &options->latency;

	if (json_is_integer(r) && json_integer_value(r) >= 0)
		*rate = (uint64_t)json_integer_value(r);
	else if (r)
		return false;
	if (json_is_string(l) && !strcmp(json_string_value(l), "off"))
		*latency = BM_LATENCY_OFF;
	else if (json_is_string(l) && !strcmp(json_string_value(l), "auto"))
		*latency = BM_LATENCY_AUTO;
	else if (json_is_integer(l) && json_integer_value(l) > 0)
		*latency = (uint64_t)json_integer_value(l);
	else if (l)
		return false;
	if (json_is_integer(d) && json_integer_value(d) >= LEAST_DEADLINE)
		options->deadline = (uint64_t)json_integer_value(d);
	else if (d)
		return false;
	return control_read_loss(json_object_get(params, "on_target_loss"), &options->loss);
}

/* With its machine: nobody else disposes of it. Answers when that is so. */
static bool is_moved(const struct disk *d, struct bm_rpc_call *call)
{
	struct bm_error error;

	if (move_allows(d, NULL, &error) >= 0)
		return false;
	bm_rpc_fail(call, &error);
	return true;
}

static void start_job(struct disk *d, enum job_kind kind, struct bm_rpc_call *call, json_t *params)
{
	struct job_options options = {.kind = kind};
	const char *target = NULL, *on_error = NULL, *from = NULL;
	struct stat st;
	int overwrite = 0, manual = 0, delete_source = 0, verify = 0, accept_repair = 0;
	json_int_t window = 0;

	if (json_unpack(params, "{s:s s?b s?b s?b s?b s?b s?I s?s s?s}", "target", &target,
			"overwrite", &overwrite, "manual", &manual, "delete_source", &delete_source,
			"verify", &verify, "accept_repair", &accept_repair, "undo_window", &window,
			"on_source_error", &on_error, "from", &from) ||
	    window < 0 || !read_limits(params, &options)) {
		fail(call, BM_E_USAGE, "target (a string) is wanted, and limits as documented");
		return;
	}
	if (d->stopping || d->stop_call || d->yield) {
		fail(call, BM_E_BUSY,
		     d->yield ? "the disk is being passed on" : "the disk is being stopped");
		return;
	}
	if (is_moved(d, call))
		return;
	if (d->lent) {
		fail(call, BM_E_NOT_READY, "the disk's image is open in its VMM, too");
		return;
	}
	if (d->record.role != BM_ROLE_ACTIVE) {
		struct bm_error error;

		bm_fail(&error, BM_E_RETIRED, "the disk is not served here, but on host %s",
			d->record.peer);
		bm_rpc_fail(call, &error);
		return;
	}
	if (delete_source && !remote_is(d->record.uri) &&
	    (!bm_uri_path(d->record.uri) || stat(bm_uri_path(d->record.uri), &st) < 0 ||
	     !S_ISREG(st.st_mode))) {
		fail(call, BM_E_UNSUPPORTED, "only a source that is a file can be deleted");
		return;
	}
	options.overwrite = overwrite;
	options.manual = manual;
	options.delete_source = delete_source;
	options.verify = verify;
	options.accept_repair = accept_repair;
	options.skip = kind == JOB_RELOCATE && on_error && !strcmp(on_error, "skip");
	options.window = kind == JOB_RELOCATE ? (uint64_t)window : 0;
	options.target = bm_need(strdup(target));
	options.from = from ? bm_need(strdup(from)) : NULL;
	if (kind == JOB_RELOCATE)
		options.request = json_copy(json_object_get(params, "request"));
	job_begin(d, &options, call);
}

/*
 * What the other host has been offered vouches for its copy, until it is told otherwise: the truth
 * must not leave it before. Answers when that is so.
 */
static bool is_offered(const struct disk *d, struct bm_rpc_call *call)
{
	struct bm_error error;

	if ((!remote_is(d->record.uri) && !d->offer.shared) || (!d->offer.host && !d->offering))
		return false;
	bm_fail(&error, BM_E_BUSY,
		"the disk was offered to host %s: \"blockmirror migrate disarm %s\" first",
		d->offer.host ? d->offer.host : "(just now)", d->name);
	bm_rpc_fail(call, &error);
	return true;
}

static void method_relocate(void *arg, struct bm_rpc_call *call, json_t *params)
{
	if (request_answer(arg, call, params) || is_offered(arg, call))
		return;
	start_job(arg, JOB_RELOCATE, call, params);
}

/* What another host keeps of a disk it would take for the disk, sooner or later. */
static void method_copy(void *arg, struct bm_rpc_call *call, json_t *params)
{
	const char *target = json_string_value(json_object_get(params, "target"));

	if (target && !strncmp(target, "bm:", 3)) {
		fail(call, BM_E_UNSUPPORTED,
		     "a copy goes to no other host: it would be taken for the disk there");
		return;
	}
	start_job(arg, JOB_COPY, call, params);
}

static void wait_for(struct job *job, struct bm_rpc_call *call, enum job_goal goal,
		     enum job_event event)
{
	struct job_waiter *w = calloc(1, sizeof(*w));

	if (!w) {
		fail(call, BM_E_INTERNAL, "out of memory");
		return;
	}
	w->call = call;
	w->goal = goal;
	w->event = event;
	bm_list_append(&job->waiters, &w->link);
	job_tell_waiters(job);
}

/* Both copies of a disk that is being moved, compared now. */
static void compared(void *arg, int error)
{
	struct disk *d = arg;
	struct bm_rpc_call *call = d->verify_call;
	struct bm_mirror_stats stats;
	struct bm_error e;

	d->verify_call = NULL;
	bm_mirror_get_stats(d->mirror, &stats);
	if (error) {
		if (error == -EILSEQ)
			bm_fail(&e, BM_E_DIFFERED,
				"the copies of disk %s differ again after they were copied again, "
				"at "
				"%" PRIu64
				": one of them does not keep, or not tell, what it holds",
				d->name, stats.mismatch_offset);
		else
			bm_fail_errno(&e, error, "the copies of disk %s were not compared",
				      d->name);
		bm_rpc_fail(call, &e);
		return;
	}
	bm_rpc_reply(call, json_pack("{s:b s:I s:I s:I}", "equal", !stats.mismatches, "compared",
				     (json_int_t)stats.checked_bytes, "mismatches",
				     (json_int_t)stats.mismatches, "offset",
				     (json_int_t)stats.mismatch_offset));
}

/* One comparison at a time: what a move is to compare before it switches comes first. */
static bool move_compares(const struct job *job)
{
	return job_runs(job) && job->options.verify && job->phase < PHASE_IN_SYNC;
}

static void method_verify(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct disk *d = arg;
	int r = d->verify_call || move_compares(d->job) ? -EBUSY
							: bm_mirror_verify(d->mirror, compared, d);

	(void)params;
	if (!r)
		d->verify_call = call;
	else if (r == -EBUSY)
		fail(call, BM_E_BUSY, "the copies are being compared already");
	else if (r == -ENOTCONN)
		fail(call, BM_E_NOT_FOUND, "the disk is not being moved: there is no second copy");
	else
		fail(call, BM_E_INTERNAL, "out of memory");
}

/* The id of the request that it came of, where it is asked for by that; else NULL. */
static const char *request_in(json_t *params)
{
	return json_string_value(json_object_get(params, "request"));
}

/* The running or last job, if it has that number; none given means that one. */
static struct job *find_job(const struct disk *d, json_t *params)
{
	const json_t *number = json_object_get(params, "number");
	struct job *job = job_of(d);

	if (request_in(params))
		return request_job(d, request_in(params));
	return job && number && json_integer_value(number) != job->number ? NULL : job;
}

static void method_switch(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct disk *d = arg;

	if (!job_runs(d->job) || d->job->options.kind != JOB_RELOCATE ||
	    find_job(d, params) != d->job) {
		fail(call, BM_E_NOT_FOUND, "the disk is not being moved");
		return;
	}
	if (is_moved(d, call))
		return;
	if (d->job->parked) {
		fail(call, BM_E_BUSY, PARKED);
		return;
	}
	job_event(d->job, EV_SWITCH);
	bm_rpc_reply(call, report_job(d->job));
}

/* In the window after a switch: back, or for good. */
static void end_window(struct disk *d, struct bm_rpc_call *call, enum job_event event)
{
	struct job *job = d->job;

	if (!job_runs(job) || !job->switched || !job->options.window ||
	    job->phase >= PHASE_DETACHING) {
		fail(call, BM_E_NOT_FOUND,
		     "the disk has not moved, or not with an undo window that is still open");
		return;
	}
	if (is_moved(d, call))
		return;
	if (job->parked) {
		fail(call, BM_E_BUSY, PARKED);
		return;
	}
	if (job->asking && job->asked_event != event) {
		fail(call, BM_E_BUSY,
		     "its hooks are just being asked about something else; try "
		     "again");
		return;
	}
	if (event != EV_RELEASE || hooks_agree(job, BEFORE_RELEASE, event))
		job_event(job, event);
	wait_for(job, call, GOAL_END, event);
}

static void method_undo(void *arg, struct bm_rpc_call *call, json_t *params)
{
	(void)params;
	if (!is_offered(arg, call))
		end_window(arg, call, EV_UNDO);
}

static void method_release(void *arg, struct bm_rpc_call *call, json_t *params)
{
	(void)params;
	end_window(arg, call, EV_RELEASE);
}

/* Clients that are gone count until their requests have ended: on lost storage they never do. */
static unsigned clients_of(const struct disk *d)
{
	struct nbd_client_info info[MOST_CLIENTS];
	unsigned count = nbd_server_clients(d->nbd, info, MOST_CLIENTS), gone = 0;

	for (unsigned i = 0; storage_is_lost(d) && i < count && i < MOST_CLIENTS; i++)
		gone += info[i].gone;
	return count - gone;
}

void control_stop(struct disk *d, struct bm_rpc_call *call)
{
	struct bm_error error;
	unsigned clients = clients_of(d);

	if (is_moved(d, call))
		return;
	if (job_runs(d->job) && d->job->phase == PHASE_WINDOW)
		bm_fail(&error, BM_E_BUSY,
			"disk %s has moved, and can still be undone; release it first", d->name);
	else if (job_runs(d->job))
		bm_fail(&error, BM_E_BUSY,
			"disk %s is being %s; cancel job %s.%u first, or wait for it", d->name,
			job_doing(d->job), d->name, d->job->number);
	else if (clients)
		bm_fail(&error, BM_E_BUSY, "disk %s has %u client%s connected; disconnect %s first",
			d->name, clients, clients > 1 ? "s" : "", clients > 1 ? "them" : "it");
	else if (d->stop_call)
		bm_fail(&error, BM_E_BUSY, "disk %s is being stopped already", d->name);
	else if (hooks_run(d)) { /* they are told the rest first */
		d->stop_call = call;
		return;
	} else {
		bm_rpc_reply(call, NULL);
		disk_stop(d);
		return;
	}
	bm_rpc_fail(call, &error);
}

static void method_stop(void *arg, struct bm_rpc_call *call, json_t *params)
{
	(void)params;
	control_stop(arg, call);
}

/* Jobs */

/* One that has ended, to be released; the last one when no number is given. */
static json_t *past_job(const struct disk *d, json_t *params)
{
	const json_t *number = json_object_get(params, "number");
	size_t i;
	json_t *job;

	if (request_in(params))
		return request_past(d, request_in(params));
	if (!number)
		return json_incref(json_array_get(d->past, json_array_size(d->past) - 1));
	json_array_foreach(d->past, i, job)
		if (json_equal(json_object_get(job, "number"), number))
			return json_incref(job);
	return NULL;
}

static void method_job_list(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct disk *d = arg;
	json_t *list = json_copy(d->past);

	(void)params;
	if (job_runs(d->job))
		json_array_append_new(list, report_job(d->job));
	bm_rpc_reply(call, json_pack("{s:o}", "jobs", list));
}

/* For the calls that need a job: answers for one that is over or unknown, and returns NULL. */
static struct job *want_running(struct disk *d, struct bm_rpc_call *call, json_t *params)
{
	struct job *job = find_job(d, params);
	json_t *past;
	struct bm_error error;

	if (job_runs(job) && !job->parked)
		return job;
	past = past_job(d, params);
	if (job_runs(job))
		bm_fail(&error, BM_E_BUSY, PARKED);
	else if (job || past)
		bm_fail(&error, BM_E_FINISHED, "the job has ended already");
	else
		bm_fail(&error, BM_E_NOT_FOUND, "disk %s has no such job", d->name);
	json_decref(past);
	bm_rpc_fail(call, &error);
	return NULL;
}

/* GOAL_NONE: does not wait. */
static void reply_any(struct disk *d, struct bm_rpc_call *call, json_t *params, enum job_goal goal)
{
	struct job *job = find_job(d, params);
	json_t *past = past_job(d, params);

	if (job && goal)
		wait_for(job, call, goal, EV_NONE);
	else if (job)
		bm_rpc_reply(call, report_job(job));
	else if (past)
		bm_rpc_reply(call, json_copy(past));
	else
		fail(call, BM_E_NOT_FOUND, "the disk has no such job");
	json_decref(past);
}

void control_job_show(void *arg, struct bm_rpc_call *call, json_t *params)
{
	reply_any(arg, call, params, GOAL_NONE);
}

void control_job_wait(void *arg, struct bm_rpc_call *call, json_t *params)
{
	const char *what = json_string_value(json_object_get(params, "for"));

	reply_any(arg, call, params,
		  what && !strcmp(what, "in-sync")    ? GOAL_SYNC
		  : what && !strcmp(what, "released") ? GOAL_END
						      : GOAL_DONE);
}

static void set_paused(struct disk *d, struct bm_rpc_call *call, json_t *params, bool paused)
{
	struct job *job = want_running(d, call, params);

	if (!job)
		return;
	job_pause(job, paused);
	if (!paused)
		away_resumed(job);
	bm_rpc_reply(call, report_job(job));
}

static void method_job_pause(void *arg, struct bm_rpc_call *call, json_t *params)
{
	set_paused(arg, call, params, true);
}

static void method_job_resume(void *arg, struct bm_rpc_call *call, json_t *params)
{
	set_paused(arg, call, params, false);
}

void control_job_cancel(void *arg, struct bm_rpc_call *call, json_t *params)
{
	const struct disk *d = arg;
	struct job *job = want_running(arg, call, params);
	struct bm_error error;

	if (!job || is_moved(d, call))
		return;
	if (d->offer.host && back_is_pair(d, d->offer.host)) {
		bm_fail(&error, BM_E_BUSY,
			"the disk was offered to host %s, which has the copy: \"blockmirror "
			"migrate "
			"disarm %s\" first",
			d->offer.host, d->name);
		bm_rpc_fail(call, &error);
		return;
	}
	if (job->switched || job->phase == PHASE_FINISHING) {
		fail(call, BM_E_FINISHED,
		     job->options.window ? "too late: the disk has moved; undo takes it back"
					 : "too late: it is done already");
		return;
	}
	job_stop(job, BM_E_CANCELLED, "cancelled");
	wait_for(job, call, GOAL_END, EV_NONE);
}

static void method_job_set(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct disk *d = arg;
	struct job *job = want_running(d, call, params);
	struct job_options options;

	if (!job)
		return;
	options = job->options;
	if (!read_limits(params, &options)) {
		fail(call, BM_E_USAGE,
		     "rate (bytes/s), guest_latency (ns, \"auto\", \"off\"), target_deadline (ns, "
		     "10 ms at least) and on_target_loss (\"wait\", \"pause\", ns) can be set");
		return;
	}
	job->options = options;
	if (job->phase >= PHASE_COPYING) {
		job_set_limits(job);
		away_chosen(job);
	}
	host_keep(job);
	bm_rpc_reply(call, report_job(job));
}

static void method_events(void *arg, struct bm_rpc_call *call, json_t *params)
{
	(void)arg;
	(void)params;
	bm_rpc_subscribe(call);
	bm_rpc_reply(call, NULL);
}

static const struct bm_rpc_table methods[] = {
	{"show", method_show},
	{"relocate", method_relocate},
	{"copy", method_copy},
	{"switch", method_switch},
	{"undo", method_undo},
	{"release", method_release},
	{"verify", method_verify},
	{"stop", method_stop},
	{"adopt", daemon_adopt},
	{"claim", beside_claim},
	{"let-go", beside_let_go},
	{"upgrade", upgrade_begin},
	{"offer", offer_method},
	{"yield", yield_begin},
	{"arm", promote_arm},
	{"take", promote_take},
	{"witness", move_witness},
	{"join", move_join},
	{"settle", move_settle},
	{"shared-let-go", move_let_go},
	{"leave", move_leave},
	{"retire", move_retire},
	{"job.list", method_job_list},
	{"job.show", control_job_show},
	{"job.wait", control_job_wait},
	{"job.pause", method_job_pause},
	{"job.resume", method_job_resume},
	{"job.cancel", control_job_cancel},
	{"job.set", method_job_set},
	{"events", method_events},
	{NULL, NULL},
};

int control_listen(struct disk *d, int fd, struct bm_error *error)
{
	int r = bm_rpc_new(d->loop, methods, d, &d->rpc);

	if (r < 0)
		return bm_fail_errno(error, r, "control socket");
	return fd ? bm_rpc_listen_fd(d->rpc, fd, error)
		  : bm_rpc_listen(d->rpc, d->control_path, error);
}
