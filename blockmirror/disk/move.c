/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A disk of a machine that moves to another host. It does not decide where it is by itself: the
 * move's log does, for all of the machine's disks (docs/machine.md). FOLDER/move says which log:
 *
 *	join: the file is durable; from here on nobody else is passed the disk, or moves it
 *	yield, with the move: fenced and flushed, as for any other host, and there it stays
 *(yield.c) let go, of storage that both hosts reach, once the log says "passed": it is closed
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
#include "blockmirror/disk/standby.h"

enum { LARGEST = 4096 };
#define ANSWERED 5000000ull /* ns that an answer gets before the process ends */
#define STEP     2000000ull

struct disk_move {
	char *id, *to, *log;
	bool keep;   /* the copy that is here stays, as a standby of the other host */
	bool shared; /* there is no copy: the other host reaches the storage itself */
	bool found;  /* by a process that was not there when it was joined */
	bool gone;   /* that storage is closed */
	bool passed; /* it is decided: the other host has the disk, whatever the log says */
};

static char *path_of(const struct disk *d)
{
	char *path;

	return asprintf(&path, "%s/move", d->folder) < 0 ? NULL : path;
}

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

static struct disk_move *new_move(const char *id, const char *to, const char *log)
{
	struct disk_move *m = bm_need(calloc(1, sizeof(*m)));

	m->id = bm_need(strdup(id));
	m->to = bm_need(strdup(to));
	m->log = bm_need(strdup(log));
	return m;
}

/* The file. These block. */

static int write_file(const struct disk *d, const struct disk_move *m)
{
	bm_free char *path = path_of(d), *beside = NULL, *text = NULL;
	json_t *j = json_pack("{s:s s:s s:s s:b s:b}", "move", m->id, "to", m->to, "log", m->log,
			      "keep", (int)m->keep, "shared", (int)m->shared);
	int r;

	text = json_dumps(j, JSON_COMPACT);
	json_decref(j);
	if (!path || !text || asprintf(&beside, "%s.new", path) < 0) {
		beside = NULL;
		return -ENOMEM;
	}
	r = bm_write_durably(beside, text, strlen(text));
	return r ? r : bm_rename_durably(beside, path);
}

static int remove_file(const struct disk *d)
{
	bm_free char *path = path_of(d);

	if (!path)
		return -ENOMEM;
	return unlink(path) < 0 && errno != ENOENT ? -errno : bm_sync_folder_of(path);
}

static int read_file(struct disk *d, struct bm_error *error)
{
	bm_free char *path = path_of(d), *text = NULL;
	const char *id, *to, *log;
	int keep, shared = 0, passed = 0, r = path ? bm_read_text(path, LARGEST, &text) : -ENOMEM;
	json_t *j;

	if (r == -ENOENT)
		return 0;
	if (r < 0)
		return bm_fail_errno(error, r, "cannot read %s", path ? path : d->folder);
	j = json_loads(text, 0, NULL);
	r = json_unpack(j, "{s:s s:s s:s s:b s?b s?b}", "move", &id, "to", &to, "log", &log, "keep",
			&keep, "shared", &shared, "passed", &passed);
	if (!r) {
		d->move = new_move(id, to, log);
		d->move->keep = keep;
		d->move->shared = shared;
		d->move->passed = passed;
		d->move->found = true;
	}
	json_decref(j);
	return !r ? 0
		  : bm_fail(error, BM_E_RECORD,
			    "%s is damaged: it says in which machine's move disk %s is", path,
			    d->name);
}

/* What the log says, done */

/* As yield.c has it of a disk that is passed on alone. */
static int pass_on(struct disk *d, struct bm_error *error)
{
	const char *source = "", *target = "";
	struct bm_record next = d->record;
	int r;

	if (d->record.role != BM_ROLE_ACTIVE)
		return 0;
	next.role = d->move->keep ? BM_ROLE_STANDBY : BM_ROLE_RETIRED;
	next.peer = d->move->to;
	next.generation = ++d->generation;
	next.job = d->record.job ? json_copy(d->record.job) : NULL;
	json_unpack(next.job, "{s?s s?s}", "source", &source, "target", &target);
	if (d->move->keep) {
		next.uri = (char *)(bm_uri_path(source) ? source : target);
		json_object_set_new(next.job, "state", json_string("done"));
	}
	r = bm_record_write(d->folder, &next, error);
	if (!r && d->move->keep)
		owner_mark(next.uri, "active", &next, d->folder);
	json_decref(next.job);
	offer_remove(d);
	return r;
}

/*
 * What the other host had of the machine is older from here on, and that is so before its guest
 * writes. It may have had the disk, and the image bears its mark.
 */
static int take_back(struct disk *d, struct bm_error *error)
{
	const char *path = bm_uri_path(d->record.uri);
	struct bm_record next = d->record;
	struct bm_mark mark = {0};
	int r;

	if (!path)
		return 0;
	bm_mark_note(path, NULL);
	if (bm_mark_read(path, &mark) < 0 || strcmp(mark.disk, d->record.disk) != 0 ||
	    mark.generation <= d->generation)
		return 0;
	d->generation = mark.generation;
	next.generation = ++d->generation;
	r = bm_record_write(d->folder, &next, error);
	if (!r)
		owner_mark(next.uri, "active", &next, d->folder);
	return r;
}

/* 1: it is on the other host now; 0: it is ours; -EAGAIN: not known yet. */
static int settle(struct disk *d, struct bm_error *error)
{
	enum bm_move_state state = BM_MOVE_NONE;
	int r = d->move->passed ? 0 : bm_move_log_read(d->move->log, &state);

	if (d->move->passed)
		state = BM_MOVE_DONE;
	if (r < 0)
		bm_log(BM_LOG_ERROR,
		       "%s: the log of its machine's move, %s, cannot be read: %s; the disk waits",
		       d->name, d->move->log, strerror(-r));
	if (r < 0 || (state != BM_MOVE_DONE && state != BM_MOVE_ABORTED)) {
		bm_fail(error, BM_E_BUSY, "the move %s is not decided yet", d->move->id);
		return -EAGAIN;
	}
	r = state == BM_MOVE_DONE ? pass_on(d, error) : d->move->shared ? take_back(d, error) : 0;
	if (r < 0)
		return r;
	r = remove_file(d);
	if (r < 0)
		return bm_fail_errno(error, r, "cannot remove %s/move", d->folder);
	return state == BM_MOVE_DONE;
}

int move_find(struct disk *d, bool has_port, struct bm_error *error)
{
	int r = read_file(d, error);

	if (r < 0 || !d->move)
		return r;
	r = settle(d, error);
	if (r == -EAGAIN) {
		bm_log(BM_LOG_WARN, "%s: it waits for what becomes of its machine, %s", d->name,
		       d->move->id);
		return 0;
	}
	move_clear(d);
	if (r < 0)
		return r;
	d->record.generation = d->generation;
	if (!r)
		return 0;
	bm_record_clear(&d->record);
	r = bm_record_read(d->folder, &d->record, error);
	/* Who has started us did not know that it is a standby, with a port of its own. */
	if (!r && d->record.role == BM_ROLE_STANDBY && !has_port)
		return bm_fail(
			error, BM_E_INTERRUPTED,
			"disk %s has passed to host %s with its machine: it is started again "
			"as that host's standby",
			d->name, d->record.peer);
	return r;
}

/* Methods */

struct moving {
	struct bm_work work;
	struct disk *disk;
	struct bm_rpc_call *call;
	struct bm_timer timer;
	bool alone;            /* the other host is dead, and may have left something under way */
	struct bm_dev *opened; /* for writing: storage that was let go of, or only read */
	int result;
	struct bm_error error;
};

static void end(struct moving *m)
{
	m->disk->moving = NULL;
	bm_timer_clear(m->disk->loop, &m->timer);
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
	int r = write_file(m->disk, m->disk->move);

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
		return !job_runs(d->job) && !strcmp(shared, d->record.uri)
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
	d->move = new_move(id, to, log);
	d->move->shared = shared;
	d->move->keep = !shared && back_is_pair(d, to);
	if (d->move->keep)
		back_hold(d);
	begin(d, call, write_joined, joined);
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
	if (d->move->found) { /* it only reads */
		bm_rpc_reply(call, NULL);
		return;
	}
	m = d->moving = bm_need(calloc(1, sizeof(*m)));
	*m = (struct moving){.disk = d, .call = call, .timer.run = let_go_of};
	if (!d->move->gone)
		shared_let_go(d);
	d->move->gone = true;
	let_go_of(&m->timer);
}

static void follow_log(struct bm_work *work)
{
	struct moving *m = bm_container(work, struct moving, work);
	const struct disk_move *move = m->disk->move;

	m->result = settle(m->disk, &m->error);
	if (!m->result && move->shared && (move->gone || move->found))
		m->result = shared_open(m->disk, m->alone, &m->opened, &m->error);
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

static void followed(struct bm_work *work)
{
	struct moving *m = bm_container(work, struct moving, work);
	struct disk *d = m->disk;
	struct bm_rpc_call *call = bm_steal(m->call);

	if (m->opened && !m->result)
		m->result = shared_put(d, &m->opened, &m->error);
	if (m->result < 0) {
		bm_rpc_fail(call, &m->error);
		end(m);
		return;
	}
	bm_rpc_reply(call, json_pack("{s:b}", "passed", m->result));
	if (m->result && !d->move->keep) {
		is_retired(m);
		return;
	}
	if (m->result) {
		bm_log(BM_LOG_NOTICE, "%s: host %s has the disk, and its machine", d->name,
		       d->move->to);
		d->stopping = true;
		m->timer.run = goes;
		(void)bm_timer_set(d->loop, &m->timer, bm_loop_now(d->loop) + ANSWERED);
		return;
	}
	d->record.generation = d->generation;
	bm_log(BM_LOG_NOTICE, "%s: its machine stays, and so does the disk", d->name);
	yield_take_back(d);
	move_clear(d);
	gate_set_role(d->gate, GATE_ACTIVE);
	if (d->job)
		back_go_on(d);
	end(m);
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
	if (!d->moving) {
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

	m->result = pass_on(m->disk, &m->error);
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
		d->move = new_move("", to, "");
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
