/* SPDX-License-Identifier: BSD-3-Clause */
/* The disks of a machine that moves, on the host that it comes from: what their processes are told.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/machine/graph.h"
#include "blockmirror/machine/move_source.h"

#define STEP    100000000ull
#define FENCE   20000000000ull   /* ns */
#define ARMED   3600000000000ull /* ns that the target knows of the copy here; a move is shorter */
#define OUTCOME 30000000000ull
#define SETTLE  2000000000ull /* ns that a disk may take to answer, in the pause */

static const char *name_of(const struct source *s, size_t i)
{
	return graph_text(json_array_get(s->disks, i), "name");
}

static size_t count(const struct source *s)
{
	return json_array_size(s->disks);
}

static json_t *show(struct source *s, size_t i, struct bm_error *error)
{
	json_t *shown = NULL;

	return move_ask_disk(s->m, name_of(s, i), "show", NULL, &shown, error) < 0 ? NULL : shown;
}

static bool is_there(const struct source *s, const char *uri)
{
	bm_free char *host = NULL, *path = NULL;

	return !strncmp(uri, "bm:", 3) && !bm_uri_peer(uri, &host, &path, NULL) &&
	       !strcmp(host, s->m->peer);
}

/* Whether it has a copy at the target, which is kept equal, or comes to be. */
static bool has_copy(const struct source *s, const json_t *shown)
{
	const json_t *job = json_object_get(shown, "job");
	bool runs = !strcmp(graph_text(job, "state"), "running") &&
		    !strcmp(graph_text(job, "kind"), "relocate");

	return (runs && (is_there(s, graph_text(job, "source")) ||
			 is_there(s, graph_text(job, "target")))) ||
	       (!runs && is_there(s, graph_text(shown, "uri")));
}

/* bm://PEER/FOLDER/ */
static char *target_of(const struct source *s, size_t i, struct bm_error *error)
{
	const char *uri = graph_text(json_array_get(s->disks, i), "uri"), *path = bm_uri_path(uri),
		   *slash = path ? strrchr(path, '/') : NULL;
	char *target;

	if (!s->options.into && !slash) {
		bm_fail(error, BM_E_USAGE,
			"disk %s is on %s, which is no file: say where it is to go with --into "
			"FOLDER",
			name_of(s, i), uri);
		return NULL;
	}
	if (asprintf(&target, "bm://%s%.*s/", s->m->peer,
		     s->options.into ? (int)strlen(s->options.into) : (int)(slash - path),
		     s->options.into ? s->options.into : path) < 0)
		target = bm_need(NULL);
	return target;
}

static int look_at(struct source *s, size_t i, struct bm_error *error)
{
	json_t *shown = show(s, i, error), *disk = json_array_get(s->disks, i);
	const json_t *job = json_object_get(shown, "job");
	bm_free char *target = NULL;
	bool copied = has_copy(s, shown);
	int r = 0;

	if (!shown)
		return -EHOSTUNREACH;
	if (strcmp(graph_text(shown, "role"), "active") != 0)
		r = bm_fail(error, BM_E_RETIRED, "disk %s is not this host's", name_of(s, i));
	else if (!copied && !strcmp(graph_text(job, "state"), "running"))
		r = bm_fail(error, BM_E_BUSY, "disk %s is being moved elsewhere", name_of(s, i));
	json_object_set(disk, "uri", json_object_get(shown, "uri"));
	json_object_set(disk, "disk", json_object_get(shown, "disk"));
	json_object_set(disk, "size", json_object_get(shown, "size"));
	if (!r)
		r = shared_find(s, disk, shown, copied, error);
	copied = copied || shared_is(disk);
	json_object_set_new(disk, "begin", json_boolean(!copied));
	if (!r && !copied && !(target = target_of(s, i, error)))
		r = -EINVAL;
	json_decref(shown);
	return r;
}

int disks_find(struct source *s, struct bm_error *error)
{
	json_t *media = NULL;
	int r = vm_find_disks(&s->vm, s->m->run, &s->disks, &media, error);

	for (size_t i = 0; !r && i < count(s); i++)
		r = look_at(s, i, error);
	if (!r)
		r = shared_all_known(s, error);
	if (!r)
		json_object_set_new(s->m->plan, "disks", s->disks);
	json_object_set_new(s->m->plan, "media", media);
	return r;
}

int disks_begin(struct source *s, struct bm_error *error)
{
	for (size_t i = 0; i < count(s); i++) {
		json_t *disk = json_array_get(s->disks, i);
		bm_free char *target = NULL;
		int r = shared_is(disk) ? shared_begin(s, disk, error) : 0;

		if (r < 0)
			return r;
		if (!json_is_true(json_object_get(disk, "begin")))
			continue;
		target = target_of(s, i, error);
		if (!target)
			return -EINVAL;
		json_object_set_new(disk, "began", json_true());
		r = move_save(s->m, error);
		if (!r)
			r = move_ask_disk(s->m, name_of(s, i), "relocate",
					  json_pack("{s:s s:b s:b s:s*}", "target", target,
						    "manual", 1, "overwrite",
						    (int)s->options.overwrite, "from",
						    s->options.bind),
					  NULL, error);
		if (r < 0) {
			json_object_del(disk, "began"); /* there is nothing to be taken back */
			return r;
		}
	}
	return 0;
}

static int look_at_job(struct source *s, size_t i, json_t *told, bool *all, struct bm_error *error)
{
	json_t *shown = show(s, i, error);
	const json_t *job = json_object_get(shown, "job"), *progress;
	const char *phase = graph_text(job, "phase"), *state = graph_text(job, "state");
	bool is_now;

	if (!shown)
		return -EHOSTUNREACH;
	progress = json_object_get(job, "progress");
	is_now = shared_is(json_array_get(s->disks, i)) ? true
		 : strcmp(state, "running") != 0
			 ? is_there(s, graph_text(shown, "uri"))
			 : (!strcmp(phase, "in-sync") || !strcmp(phase, "undo-window")) &&
				   !strcmp(graph_text(shown, "state"), "in-sync");
	json_array_append_new(told,
			      json_pack("{s:s s:s s:O* s:O* s:O*}", "name", name_of(s, i), "state",
					is_now ? "in-sync" : graph_text(shown, "state"), "done",
					json_object_get(progress, "done"), "total",
					json_object_get(progress, "total"), "copied",
					json_object_get(progress, "copied_bytes")));
	*all = *all && is_now;
	if (!is_now && strcmp(state, "running") != 0) {
		const json_t *why = json_object_get(job, "error");

		bm_fail(error, bm_code_by_name(graph_text(why, "code")), "disk %s: %s",
			name_of(s, i), graph_text(why, "message"));
		json_decref(shown);
		return -EIO;
	}
	json_decref(shown);
	return 0;
}

int disks_in_sync(struct source *s, bool *all, struct bm_error *error)
{
	json_t *told = json_array();
	int r = 0;

	*all = true;
	for (size_t i = 0; !r && i < count(s); i++)
		r = look_at_job(s, i, told, all, error);
	move_tell(s->m, "disks", told);
	return r;
}

/*
 * Where the copy here stays, the target is told where its mirror finds it; and where there is none,
 * by what it is known that it is the same storage.
 */
static int arm(struct source *s, size_t i, uint64_t time, struct bm_error *error)
{
	json_t *disk = json_array_get(s->disks, i), *shown = show(s, i, error), *witness = NULL,
	       *result = NULL;
	const json_t *job = json_object_get(shown, "job");
	const char *source = graph_text(job, "source"), *target = graph_text(job, "target");
	const char *here = bm_uri_path(source) ? source : bm_uri_path(target) ? target : NULL;
	bool runs = !strcmp(graph_text(job, "state"), "running");
	int r = shown ? 0 : -EHOSTUNREACH;

	if (!r && time && shared_is(disk))
		r = shared_witness(s, disk, &witness, error);
	if (!r)
		r = move_ask_daemon(
			s->m, "remote.arm",
			json_pack("{s:s s:s s:O s:I s:s* s:I s:b s:b s:O*}", "peer", s->m->peer,
				  "name", name_of(s, i), "disk", json_object_get(disk, "disk"),
				  "time_ns", (json_int_t)time, "keep", time && runs ? here : NULL,
				  "window_ns", (json_int_t)ARMED * 24, "returns", 0, "behind",
				  !shared_is(disk) && !is_there(s, graph_text(shown, "uri")),
				  "witness", witness),
			&result, error);
	/* What the target has not found by it, or could not take away, says nothing. */
	if (witness && !json_is_true(json_object_get(result, "found")))
		json_object_del(disk, "note");
	json_decref(result);
	json_decref(witness);
	json_decref(shown);
	return r;
}

int disks_join(struct source *s, struct bm_error *error)
{
	bm_free char *log = NULL;
	int r = 0;

	if (asprintf(&log, "%s/log", s->m->folder) < 0)
		log = bm_need(NULL);
	for (size_t i = 0; !r && i < count(s); i++) {
		json_object_set_new(json_array_get(s->disks, i), "joined", json_true());
		r = arm(s, i, ARMED, error);
	}
	if (!r)
		r = move_save(s->m, error);
	for (size_t i = 0; !r && i < count(s); i++) {
		const json_t *disk = json_array_get(s->disks, i);

		r = move_open_disk(s->m, name_of(s, i), &s->disk[i], error);
		if (!r)
			r = bm_client_call(
				s->disk[i], "join",
				json_pack("{s:s s:s s:s s:O*}", "move", s->m->id, "to", s->m->peer,
					  "log", log, "shared",
					  shared_is(disk) ? json_object_get(disk, "uri") : NULL),
				NULL, error);
	}
	return r;
}

/* What speaks against it "yield" will say. */
void disks_settle(struct source *s)
{
	struct bm_error error;

	for (size_t i = 0; i < count(s); i++) {
		if (!s->disk[i] || s->settling[i])
			continue;
		bm_client_set_timeout(s->disk[i], SETTLE);
		if (bm_client_send(s->disk[i], "settle", json_pack("{s:s}", "move", s->m->id),
				   &s->settling[i], &error) < 0)
			s->settling[i] = 0;
	}
}

/* The process that joined is there as long as its connection. */
int disks_alive(struct source *s, struct bm_error *error)
{
	for (size_t i = 0; i < count(s); i++) {
		int settling = s->settling[i];

		s->settling[i] = 0;
		if (settling && bm_client_wait(s->disk[i], settling, NULL, NULL, error) < 0 &&
		    error->code == BM_E_UNREACHABLE)
			return -EHOSTUNREACH;
	}
	for (size_t i = 0; i < count(s); i++) {
		struct pollfd p = {.fd = bm_client_fd(s->disk[i]), .events = POLLIN};

		if (poll(&p, 1, 0) > 0)
			return bm_fail(error, BM_E_INTERRUPTED,
				       "the process of disk %s has died in the move",
				       name_of(s, i));
	}
	return 0;
}

/* result: what it says of itself; taken over. */
static void note_fenced(struct source *s, size_t i, json_t *commit, json_t *result)
{
	const json_t *disk = json_array_get(s->disks, i);

	json_object_set_new(result, "name", json_string(name_of(s, i)));
	if (shared_is(disk)) {
		json_object_set_new(result, "shared", json_true());
		json_object_set(result, "note", json_object_get(disk, "note"));
	}
	json_array_append_new(commit, result);
}

int disks_fence(struct source *s, struct bm_error *error)
{
	int id[MOVE_DISKS], r = disks_alive(s, error);

	for (size_t i = 0; !r && i < count(s); i++) {
		bm_client_set_timeout(s->disk[i], FENCE);
		r = bm_client_send(
			s->disk[i], "yield",
			json_pack("{s:s s:s s:b}", "to", s->m->peer, "move", s->m->id, "keep", 1),
			&id[i], error);
	}
	s->commit = json_array();
	for (size_t i = 0; !r && i < count(s); i++) {
		json_t *result = NULL;

		r = bm_client_wait(s->disk[i], id[i], &result, NULL, error);
		r = r < 0 ? r : 0;
		if (!r)
			note_fenced(s, i, s->commit, result);
	}
	return r ? r : disks_alive(s, error);
}

int disks_ask_again(struct source *s, struct bm_error *error)
{
	json_t *commit = json_array();
	int r = 0;

	for (size_t i = 0; !r && i < count(s); i++) {
		json_t *result = NULL;

		r = move_ask_disk(
			s->m, name_of(s, i), "yield",
			json_pack("{s:s s:s s:b}", "to", s->m->peer, "move", s->m->id, "again", 1),
			&result, error);
		if (!r)
			note_fenced(s, i, commit, result);
	}
	if (r < 0) {
		json_decref(commit);
		return r;
	}
	json_decref(s->commit);
	s->commit = commit;
	return 0;
}

void disks_leave(struct source *s)
{
	for (size_t i = 0; i < count(s); i++) {
		struct bm_error error;
		uint64_t told = 0;

		bm_client_close(s->disk[i]);
		s->disk[i] = NULL;
		/* One that is retired has no process any more: its next one has read the log. */
		while (move_ask_disk(s->m, name_of(s, i), "leave",
				     json_pack("{s:s s:b}", "move", s->m->id, "alone",
					       (int)s->m->doubt.fenced),
				     NULL, &error) < 0) {
			if (s->m->log.state == BM_MOVE_DONE &&
			    (error.code == BM_E_NOT_FOUND || error.code == BM_E_UNREACHABLE) &&
			    move_disk_is_retired(s->m, name_of(s, i)))
				break;
			if (move_now() > told + OUTCOME) {
				bm_log(BM_LOG_WARN,
				       "%s: disk %s does not know yet what becomes of it: %s",
				       s->m->id, name_of(s, i), error.text);
				told = move_now();
			}
			move_sleep(STEP);
		}
	}
}

void disks_give_up(struct source *s)
{
	for (size_t i = 0; i < count(s); i++) {
		json_t *disk = json_array_get(s->disks, i);
		struct bm_error error;

		if (json_is_true(json_object_get(disk, "joined")) && arm(s, i, 0, &error) < 0)
			bm_log(BM_LOG_WARN,
			       "%s: host %s still keeps what it was told of disk %s: %s", s->m->id,
			       s->m->peer, name_of(s, i), error.text);
		if (json_is_true(json_object_get(disk, "began")) && !s->options.keep_copies &&
		    move_ask_disk(s->m, name_of(s, i), "job.cancel", NULL, NULL, &error) < 0)
			bm_log(BM_LOG_WARN, "%s: the copy of disk %s: %s", s->m->id, name_of(s, i),
			       error.text);
		shared_give_up(s, disk);
	}
}
