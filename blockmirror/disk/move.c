/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A disk of a machine that moves to another host. It does not decide where it is by itself: the
 * move's log does, for all of the machine's disks (docs/machine.md). FOLDER/move says which log:
 *
 *	join: the file is durable; from here on nobody else is passed the disk, or moves it
 *	yield, with the move: fenced, flushed, and there it stays (yield.c)
 *	let go, of storage that both hosts reach, once the log says "passed": it is closed
 *	leave: what the log says is done. "done": a record says that the disk is on the other host,
 *	    and the process ends; "aborted": the file goes, and the guest goes on
 *
 * A process that finds the file when it starts does not know what its predecessor had promised: it
 * is fenced, until the log says one of these. Storage of both hosts it only reads until then:
 *
 *	the log says "passed"; the storage is let go of, and its process dies; the other host opens
 *	it, and writes; the next process here opens it, too, and resets, or replaces, that session.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/move_log.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/disk/job.h"
#include "blockmirror/disk/move.h"
#include "blockmirror/disk/standby.h"

#define ANSWERED 5000000ull /* ns that an answer gets before the process ends */
#define STEP     2000000ull
#define SETTLE   1000000000ull /* ns: longer than a pause; the guest may run on */

void move_clear(struct disk *d)
{
	if (!d->move)
		return;
	free(d->move->id);
	free(d->move->to);
	free(d->move->log);
	free(d->move);
	d->move = NULL;
}

bool move_fences(const struct disk *d)
{
	return d->move && d->move->found;
}

bool move_is(const struct disk *d, const char *id)
{
	return d->move && !strcmp(d->move->id, id);
}

const char *move_id(const struct disk *d)
{
	return d->move->id;
}

bool move_keeps(const struct disk *d)
{
	return d->move && d->move->keep;
}

bool move_has_let_go(const struct disk *d)
{
	return d->move && d->move->gone;
}

bool move_shares(const struct disk *d, const char *host)
{
	return d->move && d->move->shared && (!host || !strcmp(d->move->to, host));
}

int move_allows(const struct disk *d, const char *id, struct bm_error *error)
{
	if (!d->move && !id)
		return 0;
	if (!d->move)
		return bm_fail(error, BM_E_NOT_READY, "disk %s is in no machine's move", d->name);
	if (!id || strcmp(id, d->move->id) != 0)
		return bm_fail(error, BM_E_BUSY, "disk %s is being moved with its machine, %s",
			       d->name, d->move->id);
	return d->move->found
		       ? bm_fail(error, BM_E_INTERRUPTED,
				 "the process of disk %s has died in the move of its machine",
				 d->name)
		       : 0;
}

/* Methods */

struct moving {
	struct bm_work work;
	struct disk *disk;
	struct bm_rpc_call *call;
	struct bm_timer timer;
	struct bm_task idle;
	bool alone;            /* the other host is dead, and may have left something under way */
	struct bm_dev *opened; /* for writing: storage that was let go of, or only read */
	int result;
	struct bm_error error;
};

static void end(struct moving *m)
{
	m->disk->moving = NULL;
	bm_timer_clear(m->disk->loop, &m->timer);
	if (m->idle.run) {
		bm_order_when_idle(m->disk->order, NULL);
		bm_task_cancel(&m->idle);
	}
	bm_dev_close(m->opened);
	free(m);
}

static struct moving *begin(struct disk *d, struct bm_rpc_call *call,
			    void (*run)(struct bm_work *work), void (*done)(struct bm_work *work))
{
	struct moving *m = d->moving = bm_need(calloc(1, sizeof(*m)));

	*m = (struct moving){.work = {.run = run, .done = done}, .disk = d, .call = call};
	bm_workers_submit(d->recorder, d->loop, &m->work);
	return m;
}

static void write_joined(struct bm_work *work)
{
	struct moving *m = bm_container(work, struct moving, work);
	int r = move_file_write(m->disk, m->disk->move);

	m->result =
		r < 0 ? bm_fail_errno(&m->error, r, "cannot write %s/move", m->disk->folder) : 0;
}

static void joined(struct bm_work *work)
{
	struct moving *m = bm_container(work, struct moving, work);

	/* It may be there all the same: leave takes it away, and the next process looks. */
	if (m->result)
		bm_rpc_fail(m->call, &m->error);
	else
		bm_rpc_reply(m->call, json_pack("{s:b}", "keep", (int)m->disk->move->keep));
	end(m);
}

/* shared: what it was on when the other host was told that both reach it; NULL: they do not. */
static int may_join(const struct disk *d, const char *to, const char *shared,
		    struct bm_error *error)
{
	char shown[500]; /* as "show" has it */

	if (d->stopping || d->upgrade || d->yield || d->offering || d->moving || d->lent)
		return bm_fail(error, BM_E_BUSY, "disk %s is being stopped, upgraded or passed on",
			       d->name);
	if (d->record.role != BM_ROLE_ACTIVE)
		return bm_fail(error, BM_E_RETIRED, "disk %s is on host %s", d->name,
			       d->record.peer);
	if (d->offer.host)
		return bm_fail(error, BM_E_BUSY,
			       "disk %s was offered to host %s: \"blockmirror migrate disarm %s\" "
			       "first",
			       d->name, d->offer.host, d->name);
	if (shared)
		return !job_runs(d->job) && !strcmp(shared, bm_uri_redact(d->record.uri, shown,
									  sizeof(shown)))
			       ? 0
			       : bm_fail(error, BM_E_BUSY,
					 "disk %s is being moved, or was moved meanwhile", d->name);
	if (back_is_pair(d, to))
		return back_in_sync(d) && !d->job->options.delete_source && !d->job->release_wanted
			       ? 0
			       : bm_fail(error, BM_E_NOT_READY,
					 "the copies of disk %s are not equal yet, or the one here "
					 "goes soon",
					 d->name);
	if (!yield_is_on(d, to) || job_runs(d->job))
		return bm_fail(error, BM_E_NOT_READY, "disk %s is not on host %s, in sync", d->name,
			       to);
	return 0;
}

void move_join(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct disk *d = arg;
	const char *id = NULL, *to = NULL, *log = NULL, *shared = NULL;
	struct bm_error error = {0};

	if (json_unpack(params, "{s:s s:s s:s s?s}", "move", &id, "to", &to, "log", &log, "shared",
			&shared))
		bm_fail(&error, BM_E_USAGE, "move, to (a host) and log (a file) are wanted");
	else if (d->move)
		move_allows(d, NULL, &error);
	else
		may_join(d, to, shared, &error);
	if (error.code) {
		bm_rpc_fail(call, &error);
		return;
	}
	d->move = move_new(id, to, log);
	d->move->shared = shared;
	d->move->keep = !shared && back_is_pair(d, to);
	if (d->move->keep)
		back_hold(d);
	begin(d, call, write_joined, joined);
}

/* Its machine has stopped its guest, and sends what it has left: the disk is to be ready by then.
 */
void move_settle(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct disk *d = arg;
	struct bm_error error;

	if (move_allows(d, json_string_value(json_object_get(params, "move")), &error) < 0) {
		bm_rpc_fail(call, &error);
		return;
	}
	bm_mirror_settle(d->mirror, SETTLE);
	bm_rpc_reply(call, NULL);
}

/* What is in flight, a flush perhaps, ends first; what comes waits. */
static void when_idle(struct moving *m, void (*run)(struct bm_task *task))
{
	struct disk *d = m->disk;

	m->idle.run = run;
	gate_set_role(d->gate, GATE_WAITING);
	storage_set_roles(d); /* a lost session is waited for no longer */
	bm_order_when_idle(d->order, &m->idle);
}

/* As yield.c has it: a session that is just being opened again is waited for. */
static void let_go_of(struct bm_timer *timer)
{
	struct moving *m = bm_container(timer, struct moving, timer);
	struct disk *d = m->disk;

	if (!bm_list_empty(&d->storage)) {
		(void)bm_timer_set(d->loop, &m->timer, bm_loop_now(d->loop) + STEP);
		return;
	}
	bm_rpc_reply(bm_steal(m->call), NULL);
	end(m);
}

static void nothing_is_asked(struct bm_task *task)
{
	struct moving *m = bm_container(task, struct moving, idle);

	shared_let_go(m->disk);
	let_go_of(&m->timer);
}

void move_let_go(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct disk *d = arg;
	const char *id = json_string_value(json_object_get(params, "move"));
	struct bm_error error = {0};
	struct moving *m;

	if (!id || !d->move || !move_is(d, id) || !d->move->shared)
		bm_fail(&error, BM_E_NOT_READY, "disk %s shares no storage in that move", d->name);
	else if (d->moving)
		bm_fail(&error, BM_E_BUSY, "disk %s is just being told; try again", d->name);
	else if (!d->move->found && !yield_stays(d))
		bm_fail(&error, BM_E_NOT_READY, "disk %s is not fenced", d->name);
	if (error.code) {
		bm_rpc_fail(call, &error);
		return;
	}
	if (d->move->found || (d->move->gone && bm_list_empty(&d->storage))) { /* it only reads */
		bm_rpc_reply(call, NULL);
		return;
	}
	m = d->moving = bm_need(calloc(1, sizeof(*m)));
	*m = (struct moving){.disk = d, .call = call, .timer.run = let_go_of};
	d->move->gone = true;
	when_idle(m, nothing_is_asked);
}

static void follow_log(struct bm_work *work)
{
	struct moving *m = bm_container(work, struct moving, work);

	m->result = move_follow(m->disk, m->alone, &m->opened, &m->error);
}

static void goes(struct bm_timer *timer)
{
	struct disk *d = bm_container(timer, struct moving, timer)->disk;

	/* Clients come again to the next process. */
	d->abandoned = true;
	bm_loop_stop(d->loop);
}

/* Nothing of it is here; its VMM, which ends, is still connected. */
static void is_retired(struct moving *m)
{
	struct disk *d = m->disk;

	free(d->record.peer);
	d->record.peer = bm_need(strdup(d->move->to));
	d->record.role = BM_ROLE_RETIRED;
	d->record.generation = d->generation;
	yield_take_back(d);
	move_clear(d);
	end(m);
	yield_retire(d);
}

static void stays(struct moving *m)
{
	struct disk *d = m->disk;

	d->record.generation = d->generation;
	bm_log(BM_LOG_NOTICE, "%s: its machine stays, and so does the disk", d->name);
	bm_rpc_reply(bm_steal(m->call), json_pack("{s:b}", "passed", 0));
	yield_take_back(d);
	move_clear(d);
	bm_mirror_settle(d->mirror, 0);
	storage_set_roles(d);
	gate_set_role(d->gate, GATE_ACTIVE);
	if (d->job)
		back_go_on(d);
	end(m);
}

/* Of what was there nothing is in flight: what was opened takes its place. */
static void opened(struct bm_task *task)
{
	struct moving *m = bm_container(task, struct moving, idle);

	if (shared_put(m->disk, &m->opened, &m->error) < 0) {
		bm_rpc_fail(bm_steal(m->call), &m->error);
		end(m);
		return;
	}
	stays(m);
}

static void followed(struct bm_work *work)
{
	struct moving *m = bm_container(work, struct moving, work);
	struct disk *d = m->disk;

	if (m->result < 0) {
		bm_rpc_fail(bm_steal(m->call), &m->error);
		end(m);
	} else if (!m->result && m->opened) {
		when_idle(m, opened);
	} else if (!m->result) {
		stays(m);
	} else if (!d->move->keep) {
		bm_rpc_reply(bm_steal(m->call), json_pack("{s:b}", "passed", 1));
		is_retired(m);
	} else {
		bm_rpc_reply(bm_steal(m->call), json_pack("{s:b}", "passed", 1));
		bm_log(BM_LOG_NOTICE, "%s: host %s has the disk, and its machine", d->name,
		       d->move->to);
		d->stopping = true;
		m->timer.run = goes;
		(void)bm_timer_set(d->loop, &m->timer, bm_loop_now(d->loop) + ANSWERED);
	}
}

void move_leave(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct disk *d = arg;
	const char *id = json_string_value(json_object_get(params, "move"));
	struct bm_error error;

	if (!id || !d->move || strcmp(d->move->id, id) != 0) {
		bm_rpc_reply(call, NULL); /* it has left */
		return;
	}
	/*
	 * One disk cannot be fenced, and the move is aborted; another one is just being flushed for
	 * it: that is awaited.
	 */
	if (!d->moving && (!d->yield || yield_stays(d))) {
		begin(d, call, follow_log, followed)->alone =
			json_is_true(json_object_get(params, "alone"));
		return;
	}
	bm_fail(&error, BM_E_BUSY, "disk %s is just being told; try again", d->name);
	bm_rpc_fail(call, &error);
}

static void write_retired(struct bm_work *work)
{
	struct moving *m = bm_container(work, struct moving, work);

	m->result = move_pass_on(m->disk, &m->error);
}

static void has_retired(struct bm_work *work)
{
	struct moving *m = bm_container(work, struct moving, work);
	struct bm_rpc_call *call = bm_steal(m->call);

	if (!m->result) {
		bm_rpc_reply(call, NULL);
		is_retired(m);
		return;
	}
	bm_rpc_fail(call, &m->error); /* it stays fenced, and may be asked again */
	move_clear(m->disk);
	end(m);
}

/* Its machine is on the other host again, which was told that this one was dead. */
void move_retire(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct disk *d = arg;
	const char *to = json_string_value(json_object_get(params, "to"));
	struct bm_error error = {0};

	if (!to)
		bm_fail(&error, BM_E_USAGE, "to (a host) is wanted");
	else if (d->stopping || d->upgrade || d->yield || d->offering || d->moving || d->lent ||
		 d->move || d->promotion)
		bm_fail(&error, BM_E_BUSY, "disk %s is being stopped, upgraded or passed on",
			d->name);
	if (error.code) {
		bm_rpc_fail(call, &error);
	} else if (d->record.role != BM_ROLE_ACTIVE) {
		bm_rpc_reply(call, NULL);
	} else {
		d->move = move_new("", to, "");
		gate_set_role(d->gate, GATE_FENCED);
		begin(d, call, write_retired, has_retired);
	}
}

void move_close(struct disk *d)
{
	const struct bm_error error = {BM_E_INTERRUPTED, "the disk's process ends"};

	if (d->moving) {
		if (d->moving->call)
			bm_rpc_fail(d->moving->call, &error);
		end(d->moving);
	}
	move_clear(d);
}
