/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The disk passes to another host, which has its storage already (relocate to bm:) or reaches it
 * itself (shared.c), has been offered it, and asks for it now.
 *
 *	fence: no request of a guest begins any more; those in flight end
 *	flush: what was acknowledged is durable there
 *	decide: a record with the next generation says "retired: it is on that host"; or "standby of
 *		that host", where the image that is here is kept (back.c), and is equal
 *	let go: storage that the other host reaches itself is closed
 *
 * That record is the decision, and there is no other one. Once it is durable the disk is not ours,
 * whatever becomes of our answer: who asks again is told the same, by this process, by the next
 * one, or by the daemon, which reads it. Before, all is as it was: the fence is lifted, and the
 * other host told why. A write to the record that fails may have happened: the disk stays fenced,
 * and records are written that say "ours", until one is durable.
 *
 * A guest that writes here while the other host asks for the disk has not stopped: two machines
 * run. It keeps the disk. A machine that stops has waited for its writes: one that is in flight
 * when the fence comes says the same, also where the storage is done with it before its guest, on a
 * host that is busy, has come to send the next one. And one that wrote just before the fence may
 * only be between two writes: its next one is waited for. A machine that has moved wrote here
 * longer ago than that, and its first write there is not held for it.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/disk/job.h"
#include "blockmirror/disk/standby.h"

#define PATIENCE  5000000000ull /* ns that requests in flight get, and a job to let go */
#define STEP      2000000ull
#define AGAIN     500000000ull
#define LAST_CALL 1000000000ull /* ns in which a guest that left may come again, to flush */
#define ANSWERED  5000000ull
#define LISTEN    30000000ull /* ns after a guest's last write in which its next one is waited for */
/* Generations by which the other host begins above ours: a next process of ours may write some. */
#define MOVE_AHEAD 1000

enum stage {
	LETS_GO, /* a job with an open window ends; or both copies become equal */
	FENCES,
	FLUSHES,
	FLUSHES_BOTH,
	LISTENS, /* its guest wrote a moment ago: whether it goes on */
	DECIDES,
	RELEASES, /* its storage is closed: the other host reaches it itself */
	RELEASED, /* ... and a session that is just being opened again waited for */
	DOUBTS,   /* a record may be durable, and may not */
	STAYS,    /* fenced and flushed: its machine's move decides (move.c) */
	LEAVES,   /* for a process that serves it as what it is now */
};

struct yield {
	struct disk *disk;
	enum stage stage;
	struct bm_rpc_call *call; /* NULL: it has its answer */
	char *to;
	bool may_keep;      /* who asks knows where the image that is here will be */
	bool pair;          /* the disk is on both hosts, equal; neither has to be the authority */
	bool keeps;         /* ... and stays so */
	bool moves;         /* with its machine */
	uint64_t asked;     /* generation of who asks */
	struct offer offer; /* to come back, as it is written with the decision */
	uint64_t end;
	struct bm_timer timer;
	struct bm_task idle;
	struct bm_request flush;
	struct bm_work record;
	struct bm_record next; /* shares what others have */
	json_t *past;
	struct bm_error error;
};

static void yield_free(struct yield *y)
{
	struct disk *d = y->disk;

	bm_timer_clear(d->loop, &y->timer);
	bm_order_when_idle(d->order, NULL);
	if (y->pair)
		bm_mirror_cut_end(d->mirror);
	bm_task_cancel(&y->idle);
	json_decref(y->past);
	free(y->to);
	free(y);
	d->yield = NULL;
}

static void answer(struct yield *y, const struct bm_error *error)
{
	struct bm_rpc_call *call = bm_steal(y->call);

	if (call && error)
		bm_rpc_fail(call, error);
	else if (call)
		bm_rpc_reply(call, json_pack("{s:I s:b}", "generation",
					     (json_int_t)y->disk->record.generation, "kept",
					     (int)y->keeps));
}

/* Nothing was decided. */
static void give_up(struct yield *y, enum bm_code code, const char *why)
{
	struct disk *d = y->disk;
	struct bm_error error;

	bm_fail(&error, code, "disk %s is not passed on: %s", d->name, why);
	bm_log(BM_LOG_WARN, "%s", error.text);
	gate_set_role(d->gate, GATE_ACTIVE);
	answer(y, &error);
	if (y->pair)
		back_go_on(d);
	yield_free(y);
}

/* A retired disk */

static void last_call(struct bm_timer *timer)
{
	struct disk *d = bm_container(timer, struct disk, retired_timer);

	if (!nbd_server_clients(d->nbd, NULL, 0) && !d->stopping)
		disk_stop(d);
}

void yield_clients_changed(void *arg)
{
	struct disk *d = arg;

	if (d->record.role == BM_ROLE_RETIRED && !d->stopping)
		(void)bm_timer_set(d->loop, &d->retired_timer, bm_loop_now(d->loop) + LAST_CALL);
}

void yield_retire(struct disk *d)
{
	bm_log(BM_LOG_NOTICE, "%s: host %s has the disk, by generation %" PRIu64, d->name,
	       d->record.peer, d->record.generation);
	gate_set_role(d->gate, GATE_RETIRED);
	storage_set_roles(d);
	offer_clear(d);
	bm_rpc_notify(d->rpc, "role",
		      json_pack("{s:s s:s s:s}", "name", d->name, "role", "retired", "peer",
				d->record.peer));
	d->retired_timer.run = last_call;
	yield_clients_changed(d);
}

static void retired(struct yield *y)
{
	struct disk *d = y->disk;

	answer(y, NULL);
	yield_free(y);
	yield_retire(d);
}

/* What is asked of the storage still, by a guest that flushes, ends first. */
static void release(struct yield *y)
{
	struct disk *d = y->disk;

	y->stage = RELEASES;
	gate_set_role(d->gate, GATE_RETIRED);
	storage_set_roles(d); /* a lost session is waited for no longer */
	bm_order_when_idle(d->order, &y->idle);
}

/*
 *	A session is lost, and being opened again in a worker; the storage is let go of, and the
 *	other host told; it opens its own; then ours is there, and resets, or replaces, that one.
 */
static void released(struct yield *y)
{
	struct disk *d = y->disk;

	if (bm_list_empty(&d->storage))
		retired(y);
	else
		(void)bm_timer_set(d->loop, &y->timer, bm_loop_now(d->loop) + STEP);
}

/* The image that is here is a standby's now, and another process serves that. */
static void stays_behind(struct yield *y)
{
	struct disk *d = y->disk;

	bm_log(BM_LOG_NOTICE,
	       "%s: host %s has the disk, by generation %" PRIu64 ", and keeps this copy", d->name,
	       y->to, d->record.generation);
	answer(y, NULL);
	y->stage = LEAVES;
	d->stopping = true;
	(void)bm_timer_set(d->loop, &y->timer, bm_loop_now(d->loop) + ANSWERED);
}

/* The decision */

static void write_record(struct bm_work *work)
{
	struct yield *y = bm_container(work, struct yield, record);
	struct disk *d = y->disk;
	struct bm_error error;

	y->error.code = BM_OK;
	if (bm_record_write(d->folder, &y->next, &y->error) < 0 || y->next.role == BM_ROLE_ACTIVE)
		return;
	if (y->next.role == BM_ROLE_STANDBY)
		owner_mark(y->next.uri, "active", &y->next, d->folder);
	if (!y->offer.host)
		offer_remove(d);
	else if (offer_write(d, &y->offer, &error) < 0)
		bm_log(BM_LOG_WARN, "%s: the disk does not come back by itself: %s", d->name,
		       error.text);
}

/* Above that of who asks, too: it tells by that whether this is the last word (yield_begin). */
static void begin_record(struct yield *y, enum bm_role role)
{
	struct disk *d = y->disk;

	if (d->generation < y->asked)
		d->generation = y->asked;
	y->next = d->record;
	y->next.role = role;
	y->next.peer = role == BM_ROLE_ACTIVE ? NULL : y->to;
	y->next.generation = ++d->generation;
	if (role == BM_ROLE_STANDBY) {
		json_decref(y->past);
		y->next.job = y->past = back_past(d);
		y->next.uri = (char *)back_local(d->job);
	}
	if (role == BM_ROLE_STANDBY && d->offer.returns)
		y->offer = (struct offer){.host = y->to,
					  .until = d->offer.until,
					  .back = (char *)back_remote(d->job),
					  .group = d->offer.group,
					  .window = back_window(d),
					  .behind = true};
	bm_workers_submit(d->recorder, d->loop, &y->record);
}

static void written(struct bm_work *work)
{
	struct yield *y = bm_container(work, struct yield, record);
	struct disk *d = y->disk;

	if (y->error.code) {
		bm_log(BM_LOG_ERROR,
		       "%s: it is not known who has the disk, and nobody is served: %s", d->name,
		       y->error.text);
		answer(y, &y->error);
		y->stage = DOUBTS;
		(void)bm_timer_set(d->loop, &y->timer, bm_loop_now(d->loop) + AGAIN);
		return;
	}
	d->record.generation = y->next.generation;
	if (y->next.role == BM_ROLE_ACTIVE) {
		give_up(y, BM_E_IO, "its record could not be written");
		return;
	}
	free(d->record.peer);
	d->record.role = y->next.role;
	d->record.peer = bm_need(strdup(y->to));
	if (d->offer.shared)
		release(y);
	else if (y->keeps)
		stays_behind(y);
	else
		retired(y);
}

/* Nor later, when this guest happens not to write for a moment. */
static void split(struct yield *y)
{
	offer_withdraw(y->disk);
	give_up(y, BM_E_SPLIT,
		"its guest has written while another machine asked for the disk: both run, "
		"and this one keeps it");
}

static void decide(struct yield *y)
{
	struct disk *d = y->disk;
	uint64_t quiet = d->meter.changed + LISTEN;

	bm_timer_clear(d->loop, &y->timer);
	if (gate_held_changes(d->gate)) {
		split(y);
	} else if (!y->moves && bm_loop_now(d->loop) < quiet) {
		y->stage = LISTENS;
		(void)bm_timer_set(d->loop, &y->timer, quiet);
	} else if (y->moves) {
		y->stage = STAYS;
		bm_rpc_reply(bm_steal(y->call), json_pack("{s:I s:b}", "generation",
							  (json_int_t)d->generation + MOVE_AHEAD,
							  "kept", (int)y->keeps));
	} else {
		y->stage = DECIDES;
		begin_record(y, y->keeps ? BM_ROLE_STANDBY : BM_ROLE_RETIRED);
	}
}

/* Nobody writes: as of one instant is as of now. */
static void both_flushed(void *arg, int error)
{
	struct yield *y = arg;

	if (error)
		give_up(y, BM_E_BUSY, "its copies are not equal just now");
	else
		decide(y);
}

static void flushed(struct bm_request *rq, int error)
{
	struct yield *y = bm_container(rq, struct yield, flush);
	struct disk *d = y->disk;

	if (error) {
		give_up(y, BM_E_IO, "it cannot be flushed");
	} else if (!y->pair) {
		decide(y);
	} else {
		y->stage = FLUSHES_BOTH;
		(void)bm_timer_set(d->loop, &y->timer, bm_loop_now(d->loop) + PATIENCE);
		if (!back_in_sync(d) || bm_mirror_cut(d->mirror, both_flushed, y) < 0)
			give_up(y, BM_E_BUSY, "its copies are not equal just now");
	}
}

static void is_idle(struct bm_task *task)
{
	struct yield *y = bm_container(task, struct yield, idle);

	if (y->stage == RELEASES) {
		shared_let_go(y->disk);
		y->stage = RELEASED;
		released(y);
		return;
	}
	bm_timer_clear(y->disk->loop, &y->timer);
	y->stage = FLUSHES;
	y->flush = (struct bm_request){.op = BM_FLUSH, .done = flushed};
	/* A machine that stops has done so. Of a session one more may tell what another one has
	 * lost. */
	if (bm_uri_path(y->disk->record.uri) && bm_mirror_authority_flushed(y->disk->mirror))
		flushed(&y->flush, 0);
	else
		bm_submit(y->disk->order, &y->flush);
}

/* Whether its storage is there, or, as was said when it was offered, or joined, reached from there.
 */
bool yield_is_on(const struct disk *d, const char *host)
{
	bm_free char *there =
		remote_is(d->record.uri) ? bm_uri_parameter(d->record.uri, BM_URI_HOST) : NULL;

	if (there)
		return !strcmp(there, host);
	return move_shares(d, host) || (d->offer.shared && !strcmp(d->offer.host, host));
}

/*
 * An offer also lasts as long as nobody uses the disk here: its guest may have gone there, and not
 * have written to this one of its disks yet.
 */
static bool is_offered(const struct disk *d, const char *to)
{
	return offer_holds(d, to) ||
	       (d->offer.host && !strcmp(d->offer.host, to) && d->offer.until > WITHDRAWN &&
		!nbd_server_clients(d->nbd, NULL, 0));
}

static void fence(struct yield *y)
{
	struct disk *d = y->disk;

	if ((!y->pair && !yield_is_on(d, y->to)) || (!y->moves && !is_offered(d, y->to))) {
		give_up(y, BM_E_NOT_READY, "its storage is there no more, or its offer has ended");
		return;
	}
	if (bm_order_changes(d->order)) {
		split(y);
		return;
	}
	y->stage = FENCES;
	gate_set_role(d->gate, GATE_FENCED);
	bm_order_when_idle(d->order, &y->idle);
	(void)bm_timer_set(d->loop, &y->timer, bm_loop_now(d->loop) + PATIENCE);
}

/*
 * Its other copy was left a moment ago, and is just being attached, or follows a process that has
 * ended. Where a machine moves, it stands still while this is asked: that one is told at once.
 */
static void wait_for_pair(struct yield *y)
{
	struct disk *d = y->disk;
	uint64_t now = bm_loop_now(d->loop);

	if (!y->moves && now < y->end && back_is_pair(d, y->to))
		(void)bm_timer_set(d->loop, &y->timer, now + STEP);
	else
		give_up(y, BM_E_BUSY, "its copies are not equal just now");
}

/*
 * Where the disk is on both hosts it passes as it is, when both copies are equal. Else a job whose
 * undo window is open ends now.
 */
static void let_go(struct yield *y)
{
	struct disk *d = y->disk;
	uint64_t now = bm_loop_now(d->loop);

	y->pair = back_is_pair(d, y->to) && back_in_sync(d);
	y->keeps =
		y->pair && y->may_keep && !d->job->options.delete_source && !d->job->release_wanted;
	y->pair = y->keeps || (y->pair && !yield_is_on(d, y->to));
	if (y->moves && y->keeps != move_keeps(d)) {
		give_up(y, BM_E_BUSY, "its copies are not equal just now");
		return;
	}
	if (y->pair) {
		back_hold(d);
		fence(y);
		return;
	}
	if (!yield_is_on(d, y->to)) {
		wait_for_pair(y);
		return;
	}
	if (job_runs(d->job))
		job_event(d->job, EV_RELEASE);
	if (!job_runs(d->job))
		fence(y);
	else if (now < y->end)
		(void)bm_timer_set(d->loop, &y->timer, now + STEP);
	else
		give_up(y, BM_E_BUSY, "its last move does not come to an end");
}

static void timed_out(struct bm_timer *timer)
{
	struct yield *y = bm_container(timer, struct yield, timer);

	if (y->stage == LETS_GO)
		let_go(y);
	else if (y->stage == FENCES || y->stage == FLUSHES_BOTH)
		give_up(y, BM_E_BUSY, "what is in flight does not end");
	else if (y->stage == LISTENS)
		decide(y);
	else if (y->stage == RELEASED)
		released(y);
	else if (y->stage == DOUBTS)
		begin_record(y, BM_ROLE_ACTIVE);
	else if (y->stage == LEAVES) {
		/* Clients come again to the next process; what they wait for was not done. */
		y->disk->abandoned = true;
		bm_loop_stop(y->disk->loop);
	}
}

static bool moves(const struct job *job)
{
	return job_runs(job) && job->phase != PHASE_IN_SYNC && job->phase != PHASE_WINDOW &&
	       job->phase != PHASE_MARKING && !(job->switched && job->phase > PHASE_WINDOW);
}

static int may_yield(const struct disk *d, const char *to, const char *move, struct bm_error *error)
{
	int r = move_allows(d, move, error);

	if (r < 0)
		return r;
	if (d->stopping || d->upgrade || d->yield || d->offering || d->witness)
		return bm_fail(error, BM_E_BUSY, "disk %s is being stopped, upgraded or passed on",
			       d->name);
	if (d->record.role != BM_ROLE_ACTIVE)
		return bm_fail(error, BM_E_RETIRED, "disk %s is on host %s", d->name,
			       d->record.peer);
	if (!yield_is_on(d, to) && !back_is_pair(d, to))
		return bm_fail(error, BM_E_NOT_READY,
			       "disk %s has its storage not on host %s: relocate it there first",
			       d->name, to);
	if (!move && !is_offered(d, to))
		return bm_fail(error, BM_E_ACCESS,
			       "disk %s was not offered to host %s, or not until now", d->name, to);
	if (moves(d->job))
		return bm_fail(error, BM_E_BUSY, "disk %s is being moved", d->name);
	return storage_is_lost(d) ? bm_fail(error, BM_E_UNREACHABLE,
					    "the storage of disk %s is unreachable", d->name)
				  : 0;
}

/*
 * It is not ours, says the record, but the host's that asks: by a decision of ours, or because it
 * never was. Both hosts have such a record when the last decision is not known to both.
 *
 *	S passed the disk to T, and T to S, which does not know yet; S's guest writes, and S asks
 *	T, which says yes; but T's guest writes, too, and T asks S: S, by its own decision of
 *	before, says yes. Both begin to serve.
 *
 * The last decision is the one with the higher generation, and that alone is told. Who asks with
 * the higher one itself has decided last, for us: we take what it gave us, and then may be asked.
 */
static void answer_again(struct disk *d, struct bm_rpc_call *call, uint64_t asked)
{
	bool standby = d->record.role == BM_ROLE_STANDBY;
	struct bm_error error;

	if (!standby || (asked && d->record.generation > asked)) {
		bm_rpc_reply(call,
			     json_pack("{s:I s:b}", "generation", (json_int_t)d->record.generation,
				       "kept", (int)standby));
		return;
	}
	bm_fail(&error, BM_E_BUSY, "host %s has not taken disk %s yet; try again", d->record.peer,
		d->name);
	bm_rpc_fail(call, &error);
	promote(d, NULL, false);
}

/* The process that decides for the whole machine is another one now. */
static bool answer_move_again(struct disk *d, struct bm_rpc_call *call, const char *move)
{
	if (!move || !move_is(d, move) || (!yield_stays(d) && !move_fences(d)))
		return false;
	bm_rpc_reply(call,
		     json_pack("{s:I s:b}", "generation", (json_int_t)d->generation + MOVE_AHEAD,
			       "kept", (int)move_keeps(d)));
	return true;
}

void yield_begin(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct disk *d = arg;
	const char *to = json_string_value(json_object_get(params, "to")),
		   *move = json_string_value(json_object_get(params, "move"));
	uint64_t asked = (uint64_t)json_integer_value(json_object_get(params, "generation"));
	struct bm_error error;
	struct yield *y;

	if (to && d->record.role != BM_ROLE_ACTIVE && !d->yield && !strcmp(d->record.peer, to)) {
		answer_again(d, call, asked);
		return;
	}
	if (json_is_true(json_object_get(params, "again")) && answer_move_again(d, call, move))
		return;
	if (!to)
		bm_fail(&error, BM_E_USAGE, "to (a host) is wanted");
	if (!to || may_yield(d, to, move, &error) < 0) {
		bm_rpc_fail(call, &error);
		return;
	}
	y = d->yield = bm_need(calloc(1, sizeof(*y)));
	y->disk = d;
	y->call = call;
	y->to = bm_need(strdup(to));
	y->may_keep = json_is_true(json_object_get(params, "keep"));
	y->asked = asked;
	y->moves = move;
	y->end = bm_loop_now(d->loop) + PATIENCE;
	y->timer.run = timed_out;
	y->idle.run = is_idle;
	y->record = (struct bm_work){.run = write_record, .done = written};
	let_go(y);
}

bool yield_stays(const struct disk *d)
{
	return d->yield && d->yield->stage == STAYS;
}

void yield_take_back(struct disk *d)
{
	if (d->yield)
		yield_free(d->yield);
}

void yield_close(struct disk *d)
{
	const struct bm_error error = {BM_E_INTERRUPTED, "the disk's process ends"};

	bm_timer_clear(d->loop, &d->retired_timer);
	if (!d->yield)
		return;
	answer(d->yield, &error);
	yield_free(d->yield);
}
