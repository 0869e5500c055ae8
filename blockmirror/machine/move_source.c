/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The host that a machine comes from: the order of things (docs/machine.md). Whatever goes wrong
 * before the decision, the machine is as it was; the source alone says so.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/client_io.h"
#include "blockmirror/base/day_window.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/machine/graph.h"
#include "blockmirror/machine/move_source.h"
#include "blockmirror/machine/preflight.h"

#define STEP      200000000ull
#define PREPARE   120000000000ull /* ns: a hook, and a VMM that starts */
#define HEARTBEAT 500000000ull
#define SILENCE   1500000000ull /* ns without an answer: the other side counts as dead */
#define GATE      10000000000ull
#define RAISE     4000000000ull /* ns after which QEMU may stop its guest for twice as long */
enum { TICK_MS = 20, LINK_BUFFER = 512 << 10 };

static int too_late(const struct source *s, struct bm_error *error)
{
	if (!s->options.timeout || move_now() < s->begun + s->options.timeout)
		return 0;
	return bm_fail(error, BM_E_BUDGET, "machine %s has not moved within its --timeout",
		       s->m->machine);
}

/* Whether anything speaks against going on. */
static int go_on(struct source *s, struct bm_error *error)
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
				json_pack("{s:s s:s s:s s:O s:O}", "peer", s->m->peer, "move",
					  s->m->id, "machine", s->m->machine, "disks", s->disks,
					  "description",
					  json_object_get(s->m->plan, "description")),
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

	move_phase(s->m, "preparing");
	r = disks_begin(s, error);
	if (!r)
		r = source_call(s, "prepare", NULL, PREPARE, NULL, error);
	move_step(s->m, "prepared");
	move_phase(s->m, "mirroring");
	while (!r && !all) {
		r = disks_in_sync(s, &all, error);
		if (!r)
			r = source_call(s, "alive", NULL, SILENCE * 2, NULL, error);
		if (!r)
			r = bm_qmp_listen(s->vm.qmp, TICK_MS, error);
		if (!r)
			r = go_on(s, error);
		if (!r && !all)
			move_sleep(STEP);
	}
	move_step(s->m, "in-sync");
	if (!r)
		r = disks_join(s, error);
	move_step(s->m, "joined");
	return r;
}

/* Memory */

static ssize_t from_link(void *arg, void *data, size_t length)
{
	return bm_client_recv_raw(arg, data, length);
}

static int to_link(void *arg, const void *data, size_t length)
{
	return bm_client_send_raw(arg, data, length, NULL);
}

static int listen_for_vm(const char *path, struct bm_error *error)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	bm_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || strlen(path) >= sizeof(address.sun_path))
		return bm_fail(error, BM_E_INTERNAL, "no socket %s", path);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	unlink(path);
	if (bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 1) < 0)
		return bm_fail_errno(error, errno, "cannot listen at %s", path);
	return bm_steal_fd(fd);
}

static int set_up_vm(struct source *s, struct bm_error *error)
{
	int r = vm_capability(&s->vm, "events", true, error);

	if (!r)
		r = vm_capability(&s->vm, "return-path", true, error);
	if (!r)
		r = vm_capability(&s->vm, "pause-before-switchover", false, error);
	if (!r)
		r = vm_capability(&s->vm, "multifd", false, error);
	return r ? r
		 : vm_call(&s->vm, "migrate-set-parameters",
			   json_pack("{s:I}", "max-bandwidth", (json_int_t)1 << 40), error);
}

/*
 * How long QEMU may take for the last round, as it reckons. Little at first, so that the pause is
 * short where it can be; what it takes in the end is often more, and there is more to a pause.
 */
static int set_limit(struct source *s, uint64_t limit, struct bm_error *error)
{
	uint64_t most = s->options.budget * 6 / 10;

	s->limit = limit < most ? limit : most;
	return vm_call(&s->vm, "migrate-set-parameters",
		       json_pack("{s:I}", "downtime-limit",
				 (json_int_t)(s->limit / 1000000u ? s->limit / 1000000u : 1)),
		       error);
}

/* The machine's stream goes to the target from here on. */
static int begin_memory(struct source *s, struct bm_error *error)
{
	const int most = LINK_BUFFER;
	bm_free char *path = NULL, *uri = NULL;
	bm_close int door = -1;
	int fd, r;

	if (asprintf(&path, "%s/moves/%s.ram", s->m->run, s->m->id) < 0 ||
	    asprintf(&uri, "unix:%s", path) < 0)
		bm_need(NULL);
	r = source_reach(s, &s->memory, error);
	if (!r)
		r = bm_client_call(s->memory, "ram", NULL, NULL, error);
	if (r < 0)
		return r;
	bm_client_set_timeout(s->memory, 0);
	setsockopt(bm_client_fd(s->memory), SOL_SOCKET, SO_SNDBUF, &most, sizeof(most));
	door = listen_for_vm(path, error);
	if (door < 0)
		return door;
	r = set_up_vm(s, error);
	if (!r)
		r = set_limit(s, s->options.budget / 8, error);
	if (!r)
		r = vm_call(&s->vm, "migrate", json_pack("{s:s}", "uri", uri), error);
	fd = r ? -1 : accept4(door, NULL, NULL, SOCK_CLOEXEC);
	unlink(path);
	if (fd < 0)
		return r ? r : bm_fail_errno(error, errno, "the VMM does not connect");
	s->relay = (struct relay){.vm = fd,
				  .recv = from_link,
				  .send = to_link,
				  .arg = s->memory,
				  .link = bm_client_fd(s->memory),
				  .gated = true};
	return relay_start(&s->relay, error);
}

static bool has_failed(const struct vm *vm)
{
	return !strcmp(vm->migration, "failed") || !strcmp(vm->migration, "cancelled");
}

static int tick(struct source *s, struct bm_error *error)
{
	int r = bm_qmp_listen(s->vm.qmp, TICK_MS, error);

	if (!r && has_failed(&s->vm))
		r = bm_fail(error, BM_E_QMP,
			    "the machine's memory did not get there: its VMM says "
			    "\"%s\"",
			    s->vm.migration);
	if (!r)
		r = go_on(s, error);
	return r ? r : disks_alive(s, error);
}

/* Until QEMU has stopped its guest. */
static int send_memory(struct source *s, struct bm_error *error)
{
	uint64_t heard = move_now(), raised = heard;
	int r = 0;

	while (!r && !s->vm.stopped) {
		r = tick(s, error);
		if (!r && move_now() > raised + RAISE) {
			raised = move_now();
			r = set_limit(s, s->limit * 2, error);
		}
		move_tell(s->m, "memory_bytes",
			  json_integer((json_int_t)atomic_load(&s->relay.bytes)));
		if (!r && move_now() > heard + HEARTBEAT) {
			r = source_call(s, "alive", NULL, SILENCE, NULL, error);
			heard = move_now();
		}
	}
	return r;
}

/* Until the target has loaded and voted; it says all the time that it lives. */
static int await_vote(struct source *s, struct bm_error *error)
{
	int id, r = bm_client_send(s->talk, "vote", NULL, &id, error);

	bm_client_set_timeout(s->talk, SILENCE);
	while (!r) {
		json_t *event = NULL;

		r = bm_client_wait(s->talk, id, NULL, &event, error);
		json_decref(event);
		if (r > 0)
			return 0;
		if (!r)
			r = move_may_go_on(s->m, error);
	}
	return r;
}

static int within_budget(const struct source *s, struct bm_error *error)
{
	uint64_t so_far = move_now() - s->vm.stopped_at;

	if (!s->options.budget || so_far <= s->options.budget)
		return 0;
	return bm_fail(error, BM_E_BUDGET,
		       "the machine's pause would have been longer than its budget: it was stopped "
		       "for %llu ms when its memory had arrived",
		       (unsigned long long)(so_far / 1000000u));
}

/* What the source's QEMU does of it decides whether it may still run on by itself. */
static int await_stopped(struct source *s, struct bm_error *error)
{
	uint64_t end = move_now() + GATE;
	int r = 0;

	relay_open(&s->relay);
	while (!r && move_now() < end) {
		bm_free char *status = vm_status(&s->vm, error);

		if (!status)
			return -ENOTCONN;
		if (!strcmp(status, "postmigrate"))
			return 0;
		if (has_failed(&s->vm))
			return bm_fail(error, BM_E_QMP, "the machine runs on: its VMM says \"%s\"",
				       s->vm.migration);
		r = bm_qmp_listen(s->vm.qmp, TICK_MS, error);
	}
	return r ? r : bm_fail(error, BM_E_QMP, "the machine's VMM does not complete");
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
		r = begin_memory(s, error);
	move_step(s->m, "streaming");
	if (!r)
		r = send_memory(s, error);
	if (!r) {
		move_step(s->m, "stopped");
		r = await_vote(s, error);
	}
	if (!r)
		r = within_budget(s, error);
	source_part(s, "memory_ns");
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
		r = await_stopped(s, error);
	source_part(s, "gate_ns");
	return r;
}

void source_part(struct source *s, const char *name)
{
	uint64_t now = move_now(), from = s->part ? s->part : s->vm.stopped_at;
	json_t *parts;

	if (!s->vm.stopped_at)
		return;
	pthread_mutex_lock(&s->m->lock);
	parts = json_object_get(s->m->report, "pause");
	if (!parts) {
		parts = json_object();
		json_object_set_new(s->m->report, "pause", parts);
	}
	json_object_set_new(parts, name, json_integer((json_int_t)(now - from)));
	pthread_mutex_unlock(&s->m->lock);
	s->part = now;
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

static void read_options(struct source *s)
{
	const json_t *o = json_object_get(s->m->plan, "options");

	s->options = (struct move_options){
		.into = json_string_value(json_object_get(o, "into")),
		.overwrite = json_is_true(json_object_get(o, "overwrite")),
		.rehearse = json_is_true(json_object_get(o, "rehearse")),
		.dry_run = json_is_true(json_object_get(o, "dry_run")),
		.keep_copies = json_is_true(json_object_get(o, "keep_copies")),
		.budget = (uint64_t)number(o, "pause_budget"),
		.timeout = (uint64_t)number(o, "timeout"),
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
		r = prepare(&s, &error);
	if (!r)
		r = pass_memory(&s, &error);
	if (!r)
		r = decide(&s, &error);
	if (!r && source_commit(&s, &error))
		source_done(&s);
	else
		source_abort(&s, &error);
	source_close(&s);
}
