/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The host that a machine comes from: the order of things (docs/machine.md). Whatever goes wrong
 * before the decision, the machine is as it was; the source alone says so.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cap.h"
#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/client_io.h"
#include "blockmirror/base/day_window.h"
#include "blockmirror/machine/graph.h"
#include "blockmirror/machine/move_media.h"
#include "blockmirror/machine/preflight.h"

#define STEP  200000000ull
#define ALIVE 3000000000ull /* ns that the target may take to say so while disks are copied */
enum { TICK_MS = 20 };

static int too_late(const struct source *s, struct bm_error *error)
{
	if (!s->options.timeout || s->options.policy == POLICY_FORCE ||
	    move_now() < s->begun + s->options.timeout)
		return 0;
	return bm_fail(error, BM_E_BUDGET, "machine %s has not moved within its --timeout",
		       s->m->machine);
}

int source_may_go_on(struct source *s, struct bm_error *error)
{
	int r = move_may_go_on(s->m, error);

	if (!r)
		r = too_late(s, error);
	if (!r && s->vm.ended)
		r = bm_fail(error, BM_E_INTERRUPTED, "machine %s was shut down", s->m->machine);
	return r;
}

static int plan(struct source *s, struct bm_error *error)
{
	int r = vm_connect(&s->vm, graph_text(s->m->plan, "qmp"), error);

	return r < 0 ? r : preflight_here(s, error);
}

/* The target knows of it, and has a process for it. */
static int offer(struct source *s, struct bm_error *error)
{
	json_t *result = NULL;
	int r = move_ask_daemon(s->m, "remote.move",
				json_pack("{s:s s:s s:s s:O s:O s:s*}", "peer", s->m->peer, "move",
					  s->m->id, "machine", s->m->machine, "disks", s->disks,
					  "description", json_object_get(s->m->plan, "description"),
					  "from", s->options.bind),
				&result, error);

	if (!r)
		json_object_set_new(s->m->plan, "target", result);
	return r ? r : move_save(s->m, error);
}

static int reach_target(struct source *s, struct bm_error *error)
{
	uint64_t end = move_now() + GATE;
	int r;

	do {
		r = source_reach(s, &s->talk, error);
		if (r >= 0)
			return 0;
		move_sleep(STEP);
	} while (move_now() < end);
	return r;
}

static int await_window(struct source *s, struct bm_error *error)
{
	const char *text = graph_text(json_object_get(s->m->plan, "options"), "window");
	struct bm_day_window window = {0};
	int r = 0;

	if (!*text || s->options.dry_run)
		return 0;
	if (bm_day_window_parse(text, &window) < 0)
		return bm_fail(error, BM_E_USAGE, "window %s: times like 22:00-06:00 are wanted",
			       text);
	move_phase(s->m, "waits for its window");
	while (!r && !bm_day_window_open(&window)) {
		move_sleep(STEP);
		r = move_may_go_on(s->m, error);
	}
	s->begun = move_now();
	return r;
}

/* Until here nothing is changed on either host. */
static int check(struct source *s, struct bm_error *error)
{
	int r;

	move_phase(s->m, "checking");
	r = offer(s, error);
	if (!r)
		r = reach_target(s, error);
	if (!r)
		r = preflight_there(s, error);
	if (!r)
		r = preflight_measure(s, error);
	move_step(s->m, "checked");
	if (r || !s->options.dry_run)
		return r;
	preflight_forecast(s);
	s->rehearsed = true;
	return bm_fail(error, BM_E_CANCELLED, "it was to be looked at, no more");
}

static int prepare(struct source *s, struct bm_error *error)
{
	bool all = false;
	int r;

	s->changed = true;
	move_phase(s->m, "preparing");
	r = media_pass(s, error);
	if (!r)
		r = disks_begin(s, error);
	if (!r)
		r = source_call(s, "prepare", NULL, PREPARE, NULL, error);
	move_step(s->m, "prepared");
	move_phase(s->m, "mirroring");
	while (!r && !all) {
		r = disks_in_sync(s, &all, error);
		if (!r)
			r = source_call(s, "alive", NULL, ALIVE, NULL, error);
		if (!r)
			r = bm_qmp_listen(s->vm.qmp, TICK_MS, error);
		if (!r)
			r = source_may_go_on(s, error);
		if (!r && !all)
			move_sleep(STEP);
	}
	move_step(s->m, "in-sync");
	if (!r)
		r = disks_join(s, error);
	move_step(s->m, "joined");
	return r;
}

/* A mirror that was lost meanwhile is noticed as long as the machine runs on by itself. */
static int still_equal(struct source *s, struct bm_error *error)
{
	bool all;
	int r = disks_in_sync(s, &all, error);

	return r || all ? r
			: bm_fail(error, BM_E_NOT_READY,
				  "a disk of machine %s is not in sync any more", s->m->machine);
}

static int pass_memory(struct source *s, struct bm_error *error)
{
	int r;

	move_phase(s->m, "memory");
	r = preflight_again(s, error);
	if (!r)
		r = memory_pass(s, error);
	move_step(s->m, "voted");
	if (!r && s->options.rehearse) {
		s->rehearsed = true;
		return bm_fail(error, BM_E_CANCELLED, "it was a rehearsal");
	}
	if (!r)
		r = still_equal(s, error);
	if (!r)
		r = disks_alive(s, error);
	if (!r)
		r = memory_let_go(s, error);
	source_part(s, "gate_ns");
	return r;
}

void source_part_until(struct source *s, const char *name, uint64_t until)
{
	uint64_t from = s->part ? s->part : s->vm.stopped_at;
	json_t *parts;

	if (!s->vm.stopped_at)
		return;
	pthread_mutex_lock(&s->m->lock);
	parts = json_object_get(s->m->report, "pause");
	if (!parts) {
		parts = json_object();
		json_object_set_new(s->m->report, "pause", parts);
	}
	json_object_set_new(parts, name, json_integer((json_int_t)(until - from)));
	pthread_mutex_unlock(&s->m->lock);
	s->part = until;
}

void source_part(struct source *s, const char *name)
{
	source_part_until(s, name, move_now());
}

static int decide(struct source *s, struct bm_error *error)
{
	int id, r;

	move_step(s->m, "gone");
	r = disks_fence(s, error);
	source_part(s, "disks_ns");
	move_step(s->m, "fenced");
	if (!r)
		r = move_may_go_on(s->m, error);
	if (!r) /* nobody waits for its answer: it is for when we die */
		r = bm_client_send(s->talk, "fenced", json_pack("{s:O}", "disks", s->commit), &id,
				   error);
	if (!r && bm_move_log_append(&s->m->log, BM_MOVE_PASSED) < 0)
		r = bm_fail(error, BM_E_IO, "the log of the move cannot be written");
	source_part(s, "decision_ns");
	if (!r)
		move_step(s->m, "passed");
	return r;
}

static json_int_t number(const json_t *options, const char *key)
{
	return json_integer_value(json_object_get(options, key));
}

static enum move_policy policy_by_name(const char *name)
{
	return !name                       ? POLICY_CANCEL
	       : !strcmp(name, "wait")     ? POLICY_WAIT
	       : !strcmp(name, "force")    ? POLICY_FORCE
	       : !strcmp(name, "throttle") ? POLICY_THROTTLE
					   : POLICY_CANCEL;
}

static void read_options(struct source *s)
{
	const json_t *o = json_object_get(s->m->plan, "options");

	s->options = (struct move_options){
		.into = json_string_value(json_object_get(o, "into")),
		.bind = json_string_value(json_object_get(o, "bind")),
		.shared = json_object_get(o, "shared"),
		.overwrite = json_is_true(json_object_get(o, "overwrite")),
		.rehearse = json_is_true(json_object_get(o, "rehearse")),
		.dry_run = json_is_true(json_object_get(o, "dry_run")),
		.keep_copies = json_is_true(json_object_get(o, "keep_copies")),
		.budget = (uint64_t)number(o, "pause_budget"),
		.timeout = (uint64_t)number(o, "timeout"),
		.rate = (uint64_t)number(o, "rate"),
		.policy = policy_by_name(json_string_value(json_object_get(o, "policy"))),
	};
	if (!s->options.budget)
		s->options.budget = 300000000ull;
}

void move_source(struct move *m)
{
	struct source s = {.m = m, .begun = move_now()};
	struct bm_error error = {0};
	int r;

	read_options(&s);
	if (m->log.state != BM_MOVE_NONE) {
		source_recover(&s);
		source_close(&s);
		return;
	}
	move_must_log(m, BM_MOVE_BEGUN);
	move_step(m, "begun");
	r = await_window(&s, &error);
	if (!r)
		r = plan(&s, &error);
	if (!r)
		r = check(&s, &error);
	if (!r)
		r = source_set_rate(&s, &error);
	if (!r)
		r = prepare(&s, &error);
	if (!r)
		r = pass_memory(&s, &error);
	if (!r)
		r = decide(&s, &error);
	/* Whatever came of it first: this is why. */
	if (r < 0 && s.vm.ended)
		bm_fail(&error, BM_E_INTERRUPTED, "machine %s was shut down", m->machine);
	if (!r && source_commit(&s, &error))
		source_done(&s);
	else
		source_abort(&s, &error);
	source_close(&s);
}
