/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How a move ends on the host that the machine comes from: it is there, or it is here; and how a
 * process that follows one that has died finds out which.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cap.h"
#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/tls_client.h"
#include "blockmirror/machine/graph.h"
#include "blockmirror/machine/move_announce.h"
#include "blockmirror/machine/move_media.h"
#include "blockmirror/machine/move_tpm.h"

enum { LARGEST_KEY = 1024, ANSWERS = 3 };
#define STEP    200000000ull
#define REACH   5000000000ull
#define COMMIT  120000000000ull /* ns that the target may take until it runs the machine */
#define TELL    10000000000ull
#define SOON    1000000000ull
#define RELEASE 5000000000ull
#define OFTEN   30000000000ull /* ns between two words about the same trouble */

/* USER:KEY */
static int read_key(const char *path, char **user, char **key, struct bm_error *error)
{
	bm_free char *text = NULL;
	int r = bm_read_text(path, LARGEST_KEY, &text);
	char *colon = r ? NULL : strchr(text, ':');

	if (!colon)
		return bm_fail(error, BM_E_ACCESS, "cannot read the key in %s", path);
	*colon = '\0';
	colon[1 + strcspn(colon + 1, "\r\n")] = '\0';
	*user = bm_need(strdup(text));
	*key = bm_need(strdup(colon + 1));
	explicit_bzero(colon + 1, strlen(colon + 1));
	return 0;
}

int source_connect(struct source *s, struct bm_client **client, struct bm_error *error)
{
	const json_t *target = json_object_get(s->m->plan, "target"),
		     *trust = json_object_get(target, "trust");
	const char *key_file = json_string_value(json_object_get(trust, "key_file"));
	bm_free char *user = NULL, *key = NULL;
	struct bm_tls_trust how = {
		.certificates = json_string_value(json_object_get(trust, "certificates")),
		.name = json_string_value(json_object_get(trust, "identity"))};
	int r = key_file ? read_key(key_file, &user, &key, error) : 0;

	if (r < 0)
		return r;
	how.user = user;
	how.hex = key;
	r = bm_client_connect_tls(graph_text(target, "address"), &how, REACH, client, error);
	if (key)
		explicit_bzero(key, strlen(key));
	return r;
}

int source_reach(struct source *s, struct bm_client **client, struct bm_error *error)
{
	int r = source_connect(s, client, error);

	if (!r)
		r = bm_client_call(*client, "hello", NULL, NULL, error);
	if (r < 0 && *client) {
		bm_client_close(*client);
		*client = NULL;
	}
	return r;
}

int source_set_rate(struct source *s, struct bm_error *error)
{
	int r = bm_cap_open(s->m->run, &s->cap);

	if (r < 0)
		return bm_fail_errno(error, r, "cannot use %s/cap", s->m->run);
	if (!s->options.rate)
		return 0;
	json_object_set_new(s->m->plan, "rate_before",
			    json_integer((json_int_t)bm_cap_rate(s->cap)));
	r = move_save(s->m, error);
	if (!r)
		bm_cap_set(s->cap, s->options.rate);
	return r;
}

static void set_rate_back(struct source *s)
{
	const json_t *before = json_object_get(s->m->plan, "rate_before");

	if (!before || (!s->cap && bm_cap_open(s->m->run, &s->cap) < 0))
		return;
	if (bm_cap_rate(s->cap) == s->options.rate)
		bm_cap_set(s->cap, (uint64_t)json_integer_value(before));
}

int source_call(struct source *s, const char *method, json_t *params, uint64_t limit,
		json_t **result, struct bm_error *error)
{
	bm_client_set_timeout(s->talk, limit);
	return bm_client_call(s->talk, method, params, result, error);
}

void source_close(struct source *s)
{
	memory_close(s);
	bm_client_close(s->talk);
	for (int i = 0; i < MOVE_DISKS; i++)
		bm_client_close(s->disk[i]);
	vm_close(&s->vm);
	json_decref(s->commit);
	json_decref(s->memory.rounds);
	bm_cap_close(s->cap);
}

/* Calls the target by a connection that works. */
static int call_anew(struct source *s, const char *method, json_t *params, uint64_t limit,
		     json_t **result, struct bm_error *error)
{
	int r = s->talk ? 0 : source_reach(s, &s->talk, error);

	if (r < 0) {
		json_decref(params);
		return r;
	}
	r = source_call(s, method, params, limit, result, error);
	/* An answer leaves the connection good. */
	if (r < 0 && error->code == BM_E_UNREACHABLE) {
		bm_client_close(s->talk);
		s->talk = NULL;
	}
	return r;
}

static const char *state_of(json_t *result)
{
	return graph_text(result, "state");
}

/*
 * The guest ran before we were told of it: for that long, and not since before we asked it to. An
 * answer that has waited for its turn makes the pause longer than it was: the quickest one counts.
 */
static void note_resumed(struct source *s, json_t *result, uint64_t asked)
{
	uint64_t now = move_now(),
		 ran = (uint64_t)json_integer_value(json_object_get(result, "ran_ns")),
		 at = now - (ran < now - asked ? ran : 0);

	json_decref(result);
	if (!s->resumed || at < s->resumed)
		s->resumed = at;
}

static void ask_when(struct source *s, uint64_t asked)
{
	for (int i = 0; i < ANSWERS; i++) {
		struct bm_error error;
		json_t *result = NULL;

		if (call_anew(s, "hello", NULL, SOON, &result, &error) < 0)
			return;
		note_resumed(s, result, asked);
	}
}

/* 1: it runs there; 0: it never will; -errno: not known. local: that is not the target's fault. */
static int try_commit(struct source *s, bool *local, struct bm_error *error)
{
	json_t *result = NULL;
	uint64_t asked = move_now();
	bool gone;
	int r = s->commit ? 0 : disks_ask_again(s, error);

	if (!r)
		r = shared_let_go(s, error);
	*local = r < 0;
	if (r < 0)
		return r;
	s->told = true;
	r = call_anew(s, "commit", json_pack("{s:O}", "disks", s->commit), COMMIT, &result, error);
	if (!r) {
		note_resumed(s, result, asked);
		ask_when(s, asked);
		return 1;
	}
	if (error->code == BM_E_UNREACHABLE || !s->talk)
		return r;
	result = NULL;
	if (call_anew(s, "hello", NULL, TELL, &result, error) < 0)
		return -EHOSTUNREACH;
	gone = !strcmp(state_of(result), "gone");
	r = !strcmp(state_of(result), "done") ? 1 : gone ? 0 : -EAGAIN;
	json_decref(result);
	return r;
}

/* The next process knows it, too: that the target is dead, and whether the memory here is stale. */
static void must_note(struct source *s, json_t *stale)
{
	struct bm_error why;

	if (stale)
		json_object_set_new(s->m->plan, "stale", stale);
	else if (json_object_del(s->m->plan, "stale") < 0)
		return;
	while (move_save(s->m, &why) < 0) {
		bm_log(BM_LOG_ERROR, "%s: %s", s->m->id, why.text);
		move_sleep(SOON);
	}
}

/* What it wrote to disks of both hosts there its memory here does not know: it is begun anew. */
static void peer_is_dead(struct source *s, struct bm_error *error)
{
	bool fits = !s->told || shared_memory_fits(s);

	must_note(s, json_boolean(!fits));
	bm_fail(error, BM_E_INTERRUPTED,
		"host %s is dead, and was to run machine %s: whatever that did there is %s",
		s->m->peer, s->m->machine,
		fits ? "lost"
		     : "on the disks that both reach, or may be; the machine is ended here, since "
		       "its memory does not know of that: start it anew");
}

bool source_commit(struct source *s, struct bm_error *error)
{
	move_phase(s->m, "passed");
	for (;;) {
		bool local;
		int r = try_commit(s, &local, error);

		if (!r) {
			bm_fail(error, BM_E_INTERRUPTED,
				"host %s has lost the machine before it ran there", s->m->peer);
			must_note(s, NULL);
		}
		if (r >= 0) {
			uint64_t now = move_now();

			if (!s->resumed)
				s->resumed = now;
			s->part += now - s->resumed; /* what was after that is no pause */
			source_part(s, "start_ns");
			doubt_end(s->m);
			return r;
		}
		doubt_tell(s->m,
			   "it is not known whether machine %s runs on host %s (%.150s); its disks "
			   "here wait",
			   s->m->machine, s->m->peer, error->text);
		/* For what is not the other host's fault no hook is to end it: a person may know.
		 */
		if ((!local || doubt_for_good(s->m)) && doubt_peer_is_dead(s->m)) {
			peer_is_dead(s, error);
			return false;
		}
		move_sleep(STEP);
	}
}

/*
 * Its VMM here has nothing to do any more. Its last flush needs disks that know where they are:
 * storage on the other host is closed to them by now.
 */
static void release(struct source *s)
{
	uint64_t end = move_now() + RELEASE;
	struct bm_error error;

	if (move_hook(s->m, "release",
		      json_pack("{s:O}", "qmp", json_object_get(s->m->plan, "qmp")), NULL,
		      &error) >= 0)
		return;
	if (error.code != BM_E_NOT_FOUND)
		bm_log(BM_LOG_WARN, "%s: %s", s->m->id, error.text);
	if (!s->vm.qmp && vm_connect(&s->vm, graph_text(s->m->plan, "qmp"), &error) < 0)
		return;
	(void)vm_call(&s->vm, "quit", NULL, &error);
	while (!bm_qmp_ended(s->vm.qmp) && move_now() < end)
		move_sleep(STEP / 10);
}

static json_t *final_report(struct source *s, const char *state, const struct bm_error *why)
{
	json_t *report;

	set_rate_back(s);
	move_tell(s->m, "state", json_string(state));
	if (why)
		move_tell(s->m, "error",
			  json_pack("{s:s s:s}", "code", bm_code_name(why->code), "message",
				    why->text));
	if (s->begun)
		move_tell(s->m, "took_ns", json_integer((json_int_t)(move_now() - s->begun)));
	pthread_mutex_lock(&s->m->lock);
	report = json_deep_copy(s->m->report);
	pthread_mutex_unlock(&s->m->lock);
	return report;
}

void source_done(struct source *s)
{
	struct bm_error error;
	json_t *report;

	if (s->vm.stopped_at)
		move_tell(s->m, "pause_ns",
			  json_integer((json_int_t)(s->resumed - s->vm.stopped_at)));
	if (s->m->log.state != BM_MOVE_DONE)
		move_must_log(s->m, BM_MOVE_DONE);
	move_step(s->m, "done");
	move_phase(s->m, "finishing");
	disks_leave(s);
	release(s);
	media_leave(s->m);
	tpm_leave(s->m);
	move_step(s->m, "left");
	while (call_anew(s, "done", NULL, TELL, NULL, &error) < 0) {
		if (!doubt_known_there(s->m))
			break;
		doubt_tell(s->m, "host %s, which has machine %s, does not answer", s->m->peer,
			   s->m->machine);
		if (doubt_for_good(s->m))
			break;
		move_sleep(STEP);
	}
	doubt_end(s->m);
	report = final_report(s, "done", NULL);
	move_forget(s->m, json_pack("{s:s s:s s:o}", "name", s->m->machine, "away", s->m->peer,
				    "last", report));
}

/*
 * Until it has heard, or does not know of it: it may have voted, and then waits for us. One that
 * hook fence has proven dead may come back, and may have begun to run the machine.
 */
static void tell_abort(struct source *s)
{
	struct bm_error error = {0};

	while (json_object_get(s->m->plan, "target") && !doubt_for_good(s->m) &&
	       call_anew(s, "abort", json_pack("{s:b}", "fenced", (int)s->m->doubt.fenced), TELL,
			 NULL, &error) < 0) {
		if (!doubt_known_there(s->m))
			break;
		doubt_tell(s->m, "machine %s is here, and host %s does not know that yet (%.150s)",
			   s->m->machine, s->m->peer, error.text);
		move_sleep(STEP);
	}
	doubt_end(s->m);
}

/*
 * Without a word from us it may stay stopped: only one that is gone is not asked again. It may be
 * there when our connection is not.
 */
static void find_vm(struct source *s)
{
	uint64_t end = move_now() + OFTEN;
	struct bm_error error;
	bm_free char *status = s->vm.qmp ? vm_status(&s->vm, &error) : NULL;

	if (status)
		return;
	vm_close(&s->vm);
	while (vm_connect(&s->vm, graph_text(s->m->plan, "qmp"), &error) < 0) {
		if (error.code == BM_E_NOT_FOUND || error.code == BM_E_UNREACHABLE ||
		    move_now() > end) {
			bm_log(BM_LOG_ERROR, "%s: %s", s->m->id, error.text);
			return;
		}
		move_sleep(STEP);
	}
}

/* It is here, and stays: somebody may think that it is not. */
static void announce(struct source *s)
{
	json_t *list;

	vm_announce(&s->vm);
	list = announce_ask(s->m, graph_text(s->m->plan, "qmp"));
	announce_send(s->m, list);
	json_decref(list);
}

void source_abort(struct source *s, const struct bm_error *why)
{
	struct bm_error error;

	bool streamed = s->memory.relay;

	bm_log(BM_LOG_NOTICE, "%s: %s", s->m->id, why->text);
	if (!s->changed && !s->rehearsed && why->code != BM_E_CANCELLED)
		move_tell(s->m, "refused", json_true());
	memory_close(s);
	if (s->m->log.state != BM_MOVE_ABORTED)
		move_must_log(s->m, BM_MOVE_ABORTED);
	move_phase(s->m, "aborting");
	/*
	 * The disks first: the VMM may be waiting for one of them, which waits for what becomes of
	 * the move, and would not answer for that long.
	 */
	disks_leave(s);
	find_vm(s);
	if (s->vm.qmp && streamed)
		(void)vm_call(&s->vm, "migrate_cancel", NULL, &error);
	if (s->vm.qmp && json_is_true(json_object_get(s->m->plan, "stale"))) {
		(void)vm_call(&s->vm, "quit", NULL, &error);
		move_tell(s->m, "lost", json_true());
	} else if (s->vm.qmp) {
		vm_go_on(&s->vm);
		vm_restore_sender(&s->vm);
		if (!s->vm.ended && !s->options.dry_run)
			announce(s);
	}
	if (s->vm.stopped_ns && s->vm.resumed_ns > s->vm.stopped_ns)
		move_tell(s->m, "pause_ns",
			  json_integer((json_int_t)(s->vm.resumed_ns - s->vm.stopped_ns)));
	vm_close(&s->vm); /* it runs, and somebody else may want to talk to it */
	tell_abort(s);
	disks_give_up(s);
	move_forget(s->m, json_pack("{s:s s:o}", "name", s->m->machine, "last",
				    final_report(s,
						 !s->rehearsed        ? "aborted"
						 : s->options.dry_run ? "dry-run"
								      : "rehearsed",
						 s->rehearsed ? NULL : why)));
}

/* Its guest may have been about to stop: the target may have all of it. */
static bool has_joined(const struct source *s)
{
	for (size_t i = 0; i < json_array_size(s->disks); i++)
		if (json_object_get(json_array_get(s->disks, i), "joined"))
			return true;
	return false;
}

/*
 * Before anything was decided here, our host died, and with it the VMM. The other one may have been
 * told that we are dead (doubt_peer_is_dead() there), and then has the machine. So it is asked
 * until it answers: what it serves must not be served here.
 */
static bool runs_there(struct source *s)
{
	struct bm_error error;
	json_t *result = NULL;
	bool runs;

	if (!json_object_get(s->m->plan, "target") || !has_joined(s) ||
	    vm_connect(&s->vm, graph_text(s->m->plan, "qmp"), &error) >= 0 ||
	    (error.code != BM_E_NOT_FOUND && error.code != BM_E_UNREACHABLE))
		return false;
	while (call_anew(s, "hello", NULL, TELL, &result, &error) < 0) {
		if (!doubt_known_there(s->m))
			break;
		doubt_tell(s->m,
			   "the VMM of machine %s is gone, and it is not known whether it runs on "
			   "host %s (%.150s)",
			   s->m->machine, s->m->peer, error.text);
		/* A person's word alone: whom the hook would end has the machine, if anybody has.
		 */
		if (doubt_for_good(s->m) && doubt_peer_is_dead(s->m)) {
			must_note(s, json_false());
			break;
		}
		move_sleep(STEP);
	}
	runs = !strcmp(state_of(result), "started");
	json_decref(result);
	doubt_end(s->m);
	return runs;
}

void source_recover(struct source *s)
{
	struct bm_error error = {BM_E_INTERRUPTED, "the process of the move has died"};
	enum bm_move_state state = s->m->log.state;

	s->changed = s->told = true; /* for all that is known */
	s->disks = json_object_get(s->m->plan, "disks");
	bm_log(BM_LOG_WARN, "%s: its process has died: its log says \"%s\"", s->m->id,
	       bm_move_state_name(state));
	if (state == BM_MOVE_BEGUN && runs_there(s)) {
		bm_log(BM_LOG_WARN,
		       "%s: host %s was told that this one is dead, and runs machine %s", s->m->id,
		       s->m->peer, s->m->machine);
		move_must_log(s->m, BM_MOVE_PASSED);
		state = BM_MOVE_PASSED;
	}
	if (state == BM_MOVE_ABORTED && json_object_get(s->m->plan, "stale"))
		s->m->doubt.fenced = true; /* by the process that has died */
	switch (state) {
	case BM_MOVE_PASSED:
		if (source_commit(s, &error))
			source_done(s);
		else
			source_abort(s, &error);
		return;
	case BM_MOVE_DONE:
		source_done(s);
		return;
	default:
		source_abort(s, &error);
	}
}
