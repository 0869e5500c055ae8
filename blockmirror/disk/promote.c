/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A standby becomes the disk: when its guest writes for the first time, if it is armed for that, or
 * when somebody says so. The host that has the disk is asked until it answers; it decides
 *(yield.c), and its answer is the same however often it is asked. Meanwhile what the guest wants is
 *held.
 *
 *	ask -> the other host's mirror is let in no more, and nothing of its is in flight; or, of
 *	    storage that both reach, it is opened for writing
 *	    -> a record says that the disk is ours, by a higher generation than the decision
 *	    -> the guest goes on
 *
 * From the answer on there is no way back: the other host does not have the disk any more. Whoever
 * dies then comes here again: the guest's write, sent again, asks again.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/units.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/disk/job.h"
#include "blockmirror/disk/standby.h"

#define AGAIN 200000000ull /* ns */
#define ALONE 1000000u     /* generations that a host that is dead may have been ahead */

struct promotion {
	struct disk *disk;
	struct bm_rpc_call *call; /* who said so; NULL: the guest */
	struct bm_work ask, record, open;
	struct bm_dev *opened; /* for writing: storage that the other host had open so */
	struct bm_timer timer;
	struct bm_task stopped;
	bool decided, asking;
	bool put;   /* that is in place */
	bool alone; /* whatever the other host says */
	bool dead;  /* ... and it may have left something under way */
	bool given; /* its machine's move has decided: kept and generation are its */
	bool given_kept;
	uint64_t given_generation;
	bool may_keep, kept; /* it keeps the image that it has, which is equal: may it, does it */
	uint8_t *map;
	struct offer offer; /* for it to have the disk again, as it is written with the record */
	char *group;        /* of disks that come together; NULL: this one alone */
	uint64_t begun, generation; /* that of the decision */
	struct bm_record next;      /* shares what d->record has */
	json_t *job;                /* next's, if it is another one */
	struct bm_error error;
};

static void promotion_free(struct promotion *p)
{
	struct disk *d = p->disk;

	bm_timer_clear(d->loop, &p->timer);
	bm_order_when_idle(d->order, NULL);
	bm_task_cancel(&p->stopped);
	bm_dev_close(p->opened);
	json_decref(p->job);
	free(p->group);
	free(p);
	d->promotion = NULL;
}

static void answer(struct promotion *p, const struct bm_error *error)
{
	struct disk *d = p->disk;
	struct bm_rpc_call *call = bm_steal(p->call);

	if (call && error)
		bm_rpc_fail(call, error);
	else if (call)
		bm_rpc_reply(call,
			     json_pack("{s:I s:I}", "generation", (json_int_t)d->record.generation,
				       "took_ns", (json_int_t)(bm_loop_now(d->loop) - p->begun)));
}

static void tell_role(const struct disk *d)
{
	bm_rpc_notify(d->rpc, "role",
		      json_pack("{s:s s:s s:s*}", "name", d->name, "role",
				bm_role_name(d->record.role), "peer", d->record.peer));
}

/* The record */

static void write_record(struct bm_work *work)
{
	struct promotion *p = bm_container(work, struct promotion, record);
	const struct disk *d = p->disk;
	const char *path = p->put ? bm_uri_path(p->next.uri) : NULL;
	int r = path ? bm_mark_note(path, NULL) : 0;
	struct bm_error error;

	p->error.code = BM_OK;
	/* As long as it is there the other host knows that nothing of ours was written. */
	if (r < 0 && r != -ENOTSUP) {
		bm_fail_errno(&p->error, r, "cannot take the note of %s away", path);
		return;
	}
	if (bm_record_write(d->folder, &p->next, &p->error) < 0)
		return;
	owner_mark(p->next.uri, "active", &p->next, d->folder);
	if (!p->offer.host)
		offer_remove(d);
	else if (offer_write(d, &p->offer, &error) < 0)
		bm_log(BM_LOG_WARN, "%s: host %s does not get it back by itself: %s", d->name,
		       p->offer.host, error.text);
	if ((!p->kept || p->group) && remote_became_active(d, p->kept, p->group, &error) < 0)
		bm_log(BM_LOG_WARN, "%s: blockmirrord does not know yet that the disk is ours: %s",
		       d->name, error.text);
}

/*
 * The record speaks of a job that mirrors to the host where the disk comes from. Its map is there
 * first: it says that both are equal, as they are until our guest writes.
 */
static void keep_mirroring(struct promotion *p)
{
	struct disk *d = p->disk;

	if (p->map)
		mapfile_remove(d, p->map);
	p->map = d->offer.back ? back_map(d, p->next.generation) : NULL;
	p->kept = p->map;
	if (!p->kept)
		return;
	json_decref(p->job);
	p->next.job = p->job = back_job(d, p->next.generation);
	if (d->offer.returns)
		p->offer = (struct offer){
			.host = d->record.peer, .until = d->offer.until, .group = p->group};
}

static void begin_record(struct promotion *p)
{
	struct disk *d = p->disk;

	p->next = d->record;
	p->next.role = BM_ROLE_ACTIVE;
	p->next.peer = NULL;
	p->next.shared = false;
	if (d->generation < p->generation)
		d->generation = p->generation;
	p->next.generation = ++d->generation;
	if (p->kept)
		keep_mirroring(p);
	bm_workers_submit(d->recorder, d->loop, &p->record);
}

/*
 * Before the first write: else the map would not know of it. What could not be begun is begun by
 * the next process, without a map.
 */
static void begin_mirroring(struct promotion *p)
{
	struct disk *d = p->disk;
	struct bm_error error;

	json_decref(d->record.job);
	d->record.job = bm_steal(p->job);
	if (back_take(d, p->map, p->next.generation, &error) < 0) {
		bm_log(BM_LOG_ERROR, "%s", error.text);
		mapfile_remove(d, p->map);
	}
}

static void written(struct bm_work *work)
{
	struct promotion *p = bm_container(work, struct promotion, record);
	struct disk *d = p->disk;
	char held[BM_UNITS_TEXT];
	uint64_t since = gate_held_since(d->gate);

	if (p->error.code) {
		bm_log(BM_LOG_ERROR,
		       "%s: the disk is ours, and cannot be served before its record "
		       "says so: %s; it is tried again",
		       d->name, p->error.text);
		(void)bm_timer_set(d->loop, &p->timer, bm_loop_now(d->loop) + AGAIN);
		return;
	}
	bm_log(BM_LOG_NOTICE,
	       "%s: the disk is ours, by generation %" PRIu64
	       "; the guest's first write was held for %s",
	       d->name, p->next.generation,
	       bm_format_duration(held, since ? bm_loop_now(d->loop) - since : 0));
	d->record.generation = p->next.generation;
	d->record.role = BM_ROLE_ACTIVE;
	if (p->offer.host)
		offer_set(d, &p->offer);
	else
		offer_clear(d);
	free(d->record.peer);
	d->record.peer = NULL;
	d->record.shared = false;
	d->longest_hold = since ? bm_loop_now(d->loop) - since : 0;
	if (p->kept)
		begin_mirroring(p);
	gate_set_role(d->gate, GATE_ACTIVE);
	tell_role(d);
	answer(p, NULL);
	promotion_free(p);
}

static void cannot_open(struct promotion *p)
{
	bm_log(BM_LOG_ERROR,
	       "%s: the disk is ours, and its storage cannot be had: %s; it is tried again",
	       p->disk->name, p->error.text);
	answer(p, &p->error);
	(void)bm_timer_set(p->disk->loop, &p->timer, bm_loop_now(p->disk->loop) + AGAIN);
}

/* The other host */

static void nobody_writes(struct bm_task *task)
{
	struct promotion *p = bm_container(task, struct promotion, stopped);

	if (p->opened && shared_put(p->disk, &p->opened, &p->error) < 0) {
		bm_dev_close(bm_steal(p->opened));
		cannot_open(p);
		return;
	}
	p->put = p->disk->record.shared;
	nbd_server_free(p->disk->data);
	p->disk->data = NULL;
	begin_record(p);
}

static void data_stopped(void *arg)
{
	struct disk *d = arg;

	bm_loop_soon(d->loop, &d->promotion->stopped);
}

/* What we could not open must stay with who has it. */
static void ask(struct bm_work *work)
{
	struct promotion *p = bm_container(work, struct promotion, ask);

	p->error.code = BM_OK;
	if (!p->disk->record.shared || !shared_reach(p->disk, &p->error))
		remote_yield(p->disk, p->may_keep, &p->generation, &p->kept, &p->error);
}

/* Whether it can help to ask again. */
static bool passes(enum bm_code code)
{
	return code == BM_E_UNREACHABLE || code == BM_E_BUSY || code == BM_E_IO ||
	       code == BM_E_INTERNAL || code == BM_E_INTERRUPTED;
}

/* Nobody was promised anything: the guest that came is told that the disk is not here. */
static void refused(struct promotion *p)
{
	struct disk *d = p->disk;
	bool split = p->error.code == BM_E_SPLIT;

	bm_log(BM_LOG_ERROR, "%s: the disk is not ours: %s", d->name, p->error.text);
	gate_set_role(d->gate, GATE_RETIRED);
	gate_set_role(d->gate, standby_gate_role(d));
	bm_rpc_notify(d->rpc, "refused",
		      json_pack("{s:s s:s s:s}", "name", d->name, "code",
				bm_code_name(p->error.code), "message", p->error.text));
	answer(p, &p->error);
	promotion_free(p);
	/* Two machines that write: nor later, when the other one happens to be silent. */
	if (split)
		offer_withdraw(d);
	standby_armed(d);
}

/* Storage of both hosts: the other one has let go of it. */

static void open_shared(struct bm_work *work)
{
	struct promotion *p = bm_container(work, struct promotion, open);

	p->error.code = BM_OK;
	shared_open(p->disk, p->dead, &p->opened, &p->error);
}

/* What looks at the disk waits, and what it has asked for ends. */
static void opened(struct bm_work *work)
{
	struct promotion *p = bm_container(work, struct promotion, open);
	struct disk *d = p->disk;

	if (!p->opened) {
		cannot_open(p);
		return;
	}
	gate_set_role(d->gate, GATE_WAITING);
	bm_order_when_idle(d->order, &p->stopped);
}

/* From here on there is no way back. */
static void decided(struct promotion *p)
{
	p->decided = true;
	if (p->given) {
		p->generation = p->given_generation;
		p->kept = p->given_kept;
	}
	if (p->disk->record.shared)
		bm_workers_submit(p->disk->workers, p->disk->loop, &p->open);
	else if (p->disk->data)
		nbd_server_stop(p->disk->data, data_stopped, p->disk);
	else
		begin_record(p);
}

static void answered(struct bm_work *work)
{
	struct promotion *p = bm_container(work, struct promotion, ask);
	struct disk *d = p->disk;

	p->asking = false;
	if (!p->error.code || p->alone) {
		decided(p);
	} else if (!p->call && passes(p->error.code) &&
		   (p->error.code == BM_E_UNREACHABLE || offer_holds(d, NULL))) {
		/* Without an answer it may be decided: also when the offer has ended meanwhile. */
		(void)bm_timer_set(d->loop, &p->timer, bm_loop_now(d->loop) + AGAIN);
	} else {
		refused(p);
	}
}

static void begin_ask(struct promotion *p)
{
	p->asking = true;
	p->may_keep = p->disk->offer.back;
	bm_workers_submit(p->disk->workers, p->disk->loop, &p->ask);
}

static void again(struct bm_timer *timer)
{
	struct promotion *p = bm_container(timer, struct promotion, timer);

	if (p->decided && (p->put || !p->disk->record.shared))
		begin_record(p);
	else if (p->decided)
		decided(p);
	else if (p->alone)
		decided(p);
	else
		begin_ask(p);
}

static struct promotion *promotion_new(struct disk *d, struct bm_rpc_call *call)
{
	struct promotion *p = d->promotion = bm_need(calloc(1, sizeof(*p)));

	*p = (struct promotion){.disk = d,
				.call = call,
				.begun = bm_loop_now(d->loop),
				.timer.run = again,
				.stopped.run = nobody_writes,
				.ask = {.run = ask, .done = answered},
				.record = {.run = write_record, .done = written},
				.open = {.run = open_shared, .done = opened}};
	p->group = d->offer.group ? bm_need(strdup(d->offer.group)) : NULL;
	p->generation = d->generation + ALONE;
	return p;
}

void promote(struct disk *d, struct bm_rpc_call *call, bool alone)
{
	struct promotion *p = d->promotion;
	struct bm_error error;

	if (p && alone && !p->alone && !p->decided && !p->call) {
		p->alone = p->dead = true;
		p->call = call;
		if (!p->asking)
			(void)bm_timer_set(d->loop, &p->timer, bm_loop_now(d->loop));
		return;
	}
	if (p && call) {
		bm_fail(&error, BM_E_BUSY, "disk %s asks host %s already", d->name, d->record.peer);
		bm_rpc_fail(call, &error);
	}
	if (p)
		return;
	p = promotion_new(d, call);
	p->alone = p->dead = alone;
	if (alone)
		decided(p);
	else
		begin_ask(p);
}

/* As one that is alone; but who decided has said how. */
static void promote_given(struct disk *d, struct bm_rpc_call *call, const json_t *params)
{
	struct promotion *p = d->promotion;
	struct bm_error error;

	if (p && (p->decided || p->call)) {
		bm_fail(&error, BM_E_BUSY, "disk %s is just becoming ours; try again", d->name);
		bm_rpc_fail(call, &error);
		return;
	}
	if (!p)
		p = promotion_new(d, call);
	p->call = call;
	p->alone = p->given = true;
	p->dead = json_is_true(json_object_get(params, "alone"));
	p->given_generation = (uint64_t)json_integer_value(json_object_get(params, "generation"));
	p->given_kept = json_is_true(json_object_get(params, "kept"));
	if (!p->asking)
		(void)bm_timer_set(d->loop, &p->timer, bm_loop_now(d->loop));
}

void promote_close(struct disk *d)
{
	const struct bm_error error = {BM_E_INTERRUPTED, "the disk's process ends"};

	if (!d->promotion)
		return;
	answer(d->promotion, &error);
	promotion_free(d->promotion);
}

/* Methods */

static bool is_standby(const struct disk *d, struct bm_rpc_call *call)
{
	struct bm_error error;

	if (d->stopping)
		bm_fail(&error, BM_E_BUSY, "disk %s is being stopped", d->name);
	else if (d->record.role != BM_ROLE_STANDBY)
		bm_fail(&error, BM_E_NOT_READY, "disk %s is no standby", d->name);
	else
		return true;
	bm_rpc_fail(call, &error);
	return false;
}

void promote_arm(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct disk *d = arg;
	json_int_t time = 0, window = 0;
	const char *back = NULL, *group = NULL;
	int returns = 0, behind = 0;
	struct bm_error error;

	if (!is_standby(d, call))
		return;
	/* By our clock: the other host's may be another one. */
	if (!json_unpack(params, "{s:I s?s s?I s?b s?b s?s}", "time_ns", &time, "back", &back,
			 "window_ns", &window, "returns", &returns, "behind", &behind, "group",
			 &group) &&
	    time >= 0 && window >= 0 && (!back || remote_is(back))) {
		const struct offer offer = {.host = d->record.peer,
					    .until = time ? job_realtime() + (uint64_t)time : 0,
					    .back = (char *)back,
					    .group = (char *)group,
					    .window = (uint64_t)window,
					    .returns = returns,
					    .behind = behind};

		if (d->record.shared && time)
			witness_check(d, call, &offer, json_object_get(params, "witness"));
		else
			offer_begin(d, call, &offer, NULL);
		return;
	}
	bm_fail(&error, BM_E_USAGE, "time_ns (0: no more) is wanted");
	bm_rpc_fail(call, &error);
}

/* A disk that was armed with ours is here now: this one's guest is here, too. */
static bool is_of(const struct disk *d, const char *group)
{
	return offer_holds(d, NULL) && d->offer.group && !strcmp(d->offer.group, group);
}

/*
 * alone: a person says that the other host is dead for good. The offer that it made once shows that
 * what it acknowledged was here: without one this may be half of a copy.
 */
void promote_take(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct disk *d = arg;
	bool alone = json_is_true(json_object_get(params, "alone"));
	const char *group = json_string_value(json_object_get(params, "group"));
	struct bm_error error;

	if (d->record.role == BM_ROLE_ACTIVE) {
		bm_rpc_reply(call,
			     json_pack("{s:I}", "generation", (json_int_t)d->record.generation));
	} else if (!is_standby(d, call)) {
		return;
	} else if (json_object_get(params, "generation")) {
		promote_given(d, call, params);
	} else if (group && !is_of(d, group)) {
		bm_fail(&error, BM_E_NOT_READY, "disk %s was not armed with those", d->name);
		bm_rpc_fail(call, &error);
	} else if ((alone && (!d->offer.host || d->offer.behind)) ||
		   (d->record.shared && !d->offer.host)) {
		bm_fail(&error, BM_E_NOT_READY,
			"host %s has never said that all of disk %s is here: this may be %s",
			d->record.peer, d->name,
			d->record.shared ? "other storage" : "a part of a copy");
		bm_rpc_fail(call, &error);
	} else {
		promote(d, call, alone);
	}
}
