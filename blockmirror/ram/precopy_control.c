// SPDX-License-Identifier: BSD-3-Clause
/*
 * Orders (docs/precopy.md). Each but status bears the name of the move that it is of, and one that
 * was carried out already is answered in the same way again: who lost an answer asks again.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "blockmirror/ram/precopy_inside.h"

#define MS 1000000ull
enum { MOST_CONNECTIONS = 16 };

static const char *const policies[] = {"wait", "cancel", "force", "throttle"};

static json_t *describe_round(const struct bm_precopy_round *r)
{
	return json_pack("{s:i s:I s:I s:I s:I s:I s:I s:i}", "round", (int)r->round, "pages",
			 (json_int_t)r->pages, "wire", (json_int_t)r->wire, "ns", (json_int_t)r->ns,
			 "left", (json_int_t)r->left, "bandwidth", (json_int_t)r->bandwidth,
			 "predicted",
			 (json_int_t)(r->predicted > INT64_MAX ? INT64_MAX : r->predicted),
			 "throttle", (int)r->throttle);
}

json_t *bm_precopy_status(const struct bm_precopy *p)
{
	json_t *rounds = json_array();
	bool here = p->state == BM_PRECOPY_PAUSED && p->phase == BM_COPY_LOADED;

	for (unsigned i = p->kept > BM_ROUNDS_KEPT ? p->kept - BM_ROUNDS_KEPT : 0; i < p->kept; i++)
		json_array_append_new(rounds, describe_round(&p->rounds[i % BM_ROUNDS_KEPT]));
	return json_pack("{s:s s:s s:s s:s s:b s:b s:i s:I s:I s:I s:I s:i s:o s:s s:s}", "state",
			 bm_precopy_state_name(p->state), "move", p->move, "machine",
			 p->machine.name, "tracker", p->tracker->ops->name, "converged",
			 p->converged, "loaded", here || p->state == BM_PRECOPY_LOADED, "retreats",
			 (int)p->rule.retreats, "left", (json_int_t)p->left * BM_RAM_PAGE,
			 "bandwidth", (json_int_t)p->rule.bandwidth, "fixed",
			 (json_int_t)p->rule.fixed, "stopped", (json_int_t)p->loaded, "throttle",
			 (int)p->rule.throttle, "rounds", rounds, "code",
			 bm_code_name(p->error.code), "why", p->error.text);
}

static void reply(struct bm_precopy *p, struct bm_rpc_call *call)
{
	bm_rpc_reply(call, bm_precopy_status(p));
}

static void fail(struct bm_rpc_call *call, enum bm_code code, const char *what,
		 const struct bm_precopy *p)
{
	struct bm_error error;

	bm_fail(&error, code, "%s: the machine is %s, move %s", what,
		bm_precopy_state_name(p->state), *p->move ? p->move : "none");
	bm_rpc_fail(call, &error);
}

static bool good_name(const char *move)
{
	size_t length = strlen(move);

	for (const char *c = move; *c; c++)
		if (!isalnum((unsigned char)*c) && !strchr("._-", *c))
			return false;
	return length && length < BM_MOVE_NAME;
}

/* Whether the order is of the move that there is. */
static bool same_move(const struct bm_precopy *p, json_t *params)
{
	const char *move = json_string_value(json_object_get(params, "move"));

	return move && !strcmp(move, p->move);
}

static int get_ns(json_t *params, const char *name, uint64_t *value, struct bm_error *error)
{
	json_t *given = json_object_get(params, name);

	if (!given)
		return 0;
	if (!json_is_integer(given) || json_integer_value(given) < 0)
		return bm_fail(error, BM_E_USAGE, "%s: a number of ns or bytes, not negative",
			       name);
	*value = (uint64_t)json_integer_value(given);
	return 0;
}

/* What may change at any time. What is not given stays. */
static int get_rule(struct bm_rule *rule, json_t *params, struct bm_error *error)
{
	struct bm_rule changed = *rule;
	const char *policy = json_string_value(json_object_get(params, "policy"));
	int r = get_ns(params, "budget", &changed.budget, error);

	if (!r)
		r = get_ns(params, "fixed", &changed.fixed, error);
	if (!r)
		r = get_ns(params, "timeout", &changed.timeout, error);
	if (!r)
		r = get_ns(params, "residue", &changed.residue, error);
	for (unsigned i = 0; policy && i < sizeof(policies) / sizeof(*policies); i++)
		if (!strcmp(policy, policies[i])) {
			changed.policy = (enum bm_precopy_policy)i;
			policy = NULL;
		}
	if (!r && policy)
		r = bm_fail(error, BM_E_USAGE, "policy %s: wait, cancel, force or throttle",
			    policy);
	if (!r)
		*rule = changed;
	return r;
}

static int get_way(json_t *params, const char **move, const char **path, int *connections,
		   struct bm_error *error)
{
	*connections = 1;
	if (json_unpack(params, "{s:s s:s s?i}", "move", move, "connect", path, "connections",
			connections) ||
	    !good_name(*move) || *connections < 1 || *connections > MOST_CONNECTIONS)
		return bm_fail(error, BM_E_USAGE,
			       "move: up to %d letters, digits, \".\", \"_\", \"-\"; connect: a "
			       "socket; connections: 1 to %d",
			       BM_MOVE_NAME - 1, MOST_CONNECTIONS);
	return 0;
}

static void gone(void *arg)
{
	struct bm_precopy *p = arg;

	bm_loop_soon(p->loop, &p->dropped);
}

/* The holder before may have ended just now: that is no end of this order. */
static void hold(struct bm_precopy *p, struct bm_rpc_call *call)
{
	bm_task_cancel(&p->dropped);
	bm_rpc_hold(call, gone);
}

static int set_up(struct bm_precopy *p, json_t *params, const char **path, int *connections,
		  struct bm_error *error)
{
	const char *move, *run = json_string_value(json_object_get(params, "run"));
	int r = get_way(params, &move, path, connections, error);
	struct bm_rule rule = {.budget = 300 * MS,
			       .fixed = p->rule.fixed ? p->rule.fixed : 20 * MS};

	p->pause_limit = 0;
	if (!r)
		r = get_rule(&rule, params, error);
	if (!r)
		r = get_ns(params, "pause_limit", &p->pause_limit, error);
	if (!r && run)
		r = bm_cap_open(run, &p->cap);
	if (r < 0)
		return r;
	if (!p->pause_limit)
		p->pause_limit = 5000 * MS + 10 * rule.budget;
	p->rule = rule;
	p->automatic = json_is_true(json_object_get(params, "auto"));
	snprintf(p->move, sizeof(p->move), "%s", move);
	return 0;
}

static void start(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct bm_precopy *p = arg;
	struct bm_error error = {BM_E_INTERNAL, "the rate's file cannot be opened"};
	const char *path = NULL;
	int connections = 1, r;

	if (p->state != BM_PRECOPY_RUNNING) {
		fail(call, BM_E_BUSY, "start", p);
		return;
	}
	r = set_up(p, params, &path, &connections, &error);
	if (!r)
		r = bm_precopy_begin(p, path, (unsigned)connections, &error);
	if (r < 0) {
		bm_cap_close(p->cap);
		p->cap = NULL;
		bm_rpc_fail(call, &error);
		return;
	}
	hold(p, call);
	bm_rpc_subscribe(call);
	reply(p, call);
}

static void incoming(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct bm_precopy *p = arg;
	struct bm_error error;
	const char *path, *move;
	int connections, r;

	if (p->state != BM_PRECOPY_WAITING) {
		fail(call, BM_E_BUSY, "incoming", p);
		return;
	}
	r = get_way(params, &move, &path, &connections, &error);
	if (!r) {
		snprintf(p->move, sizeof(p->move), "%s", move);
		r = bm_precopy_receive(p, path, (unsigned)connections, &error);
	}
	if (r < 0) {
		bm_rpc_fail(call, &error);
		return;
	}
	hold(p, call);
	bm_rpc_subscribe(call);
	reply(p, call);
}

static void status(void *arg, struct bm_rpc_call *call, json_t *params)
{
	(void)params;
	reply(arg, call);
}

static void update(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct bm_precopy *p = arg;
	struct bm_error error;

	if (!same_move(p, params))
		fail(call, BM_E_NOT_FOUND, "update of another move", p);
	else if (get_rule(&p->rule, params, &error))
		bm_rpc_fail(call, &error);
	else
		reply(p, call);
}

static void pause_it(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct bm_precopy *p = arg;

	if (!same_move(p, params)) {
		fail(call, BM_E_NOT_FOUND, "pause of another move", p);
		return;
	}
	if (p->state != BM_PRECOPY_COPYING && p->state != BM_PRECOPY_PAUSING &&
	    p->state != BM_PRECOPY_PAUSED) {
		fail(call, BM_E_NOT_READY, "pause", p);
		return;
	}
	p->ordered = true;
	p->forced |= json_is_true(json_object_get(params, "force"));
	if (p->phase == BM_COPY_REST) {
		bm_timer_clear(p->loop, &p->rest);
		bm_precopy_rested(&p->rest);
	}
	reply(p, call);
}

static void release(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct bm_precopy *p = arg;
	bool ready = p->state == BM_PRECOPY_PAUSED && p->phase == BM_COPY_LOADED;

	if (!same_move(p, params)) {
		fail(call, BM_E_NOT_FOUND, "release of another move", p);
		return;
	}
	if (ready)
		bm_precopy_release(p);
	if (p->state == BM_PRECOPY_RELEASED)
		reply(p, call);
	else
		fail(call, BM_E_NOT_READY, "release", p);
}

/* Released, and not to be moved after all. */
static void resume(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct bm_precopy *p = arg;

	if (!same_move(p, params)) {
		fail(call, BM_E_NOT_FOUND, "resume of another move", p);
		return;
	}
	if (p->state == BM_PRECOPY_RELEASED) {
		bm_precopy_run_on(p);
		p->ops->resume(p->arg);
		bm_precopy_enter(p, BM_PRECOPY_RUNNING);
	}
	if (p->state == BM_PRECOPY_RUNNING && !p->arrived)
		reply(p, call);
	else
		fail(call, BM_E_NOT_READY, "resume", p);
}

static void abort_it(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct bm_precopy *p = arg;
	struct bm_error error;

	bm_fail(&error, BM_E_CANCELLED, "cancelled");
	if (!same_move(p, params)) {
		fail(call, BM_E_NOT_FOUND, "abort of another move", p);
		return;
	}
	switch (p->state) {
	case BM_PRECOPY_COPYING:
	case BM_PRECOPY_PAUSING:
	case BM_PRECOPY_PAUSED:
		bm_precopy_end(p, &error);
		break;
	case BM_PRECOPY_RECEIVING:
	case BM_PRECOPY_LOADED:
		p->error = error;
		bm_precopy_close_pipe(p);
		bm_precopy_enter(p, BM_PRECOPY_WAITING);
		break;
	case BM_PRECOPY_WAITING:
		break;
	case BM_PRECOPY_RUNNING:
		if (!p->arrived)
			break;
		fail(call, BM_E_FINISHED, "abort", p);
		return;
	default:
		fail(call, BM_E_BUSY, "abort of what is released (resume is the order for that)",
		     p);
		return;
	}
	reply(p, call);
}

/* At the target. */
static void run(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct bm_precopy *p = arg;

	if (!same_move(p, params)) {
		fail(call, BM_E_NOT_FOUND, "run of another move", p);
		return;
	}
	if (p->state == BM_PRECOPY_LOADED) {
		bm_precopy_close_pipe(p);
		p->arrived = true;
		p->ops->resume(p->arg);
		bm_precopy_enter(p, BM_PRECOPY_RUNNING);
	}
	if (p->state == BM_PRECOPY_RUNNING && p->arrived)
		reply(p, call);
	else
		fail(call, BM_E_NOT_READY, "run", p);
}

static void quit(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct bm_precopy *p = arg;

	if (!same_move(p, params) && *p->move) {
		fail(call, BM_E_NOT_FOUND, "quit after another move", p);
		return;
	}
	if (p->state != BM_PRECOPY_RELEASED && p->state != BM_PRECOPY_WAITING) {
		fail(call, BM_E_BUSY, "quit", p);
		return;
	}
	reply(p, call);
	p->ops->quit(p->arg);
}

const struct bm_rpc_table bm_precopy_methods[] = {
	{"status", status},  {"start", start},     {"incoming", incoming}, {"update", update},
	{"pause", pause_it}, {"release", release}, {"resume", resume},     {"abort", abort_it},
	{"run", run},        {"quit", quit},       {NULL, NULL},
};
