/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Disks of a machine that moves which are on storage that both hosts reach: nothing is copied. The
 * target makes a standby that reads it, and finds out by a witness that it is the same
 * (disk/witness.c). When the log says "passed", and before the target is told, this host's disk
 * closes it; then the target's opens it for writing.
 *
 * There is one such disk, and not two: what the machine has written to it on one host the other
 * host's memory of it does not know. As long as the witness' note is with the image nobody has:
 * the target takes it away before it writes, and this host before a machine that stays does.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/record.h"
#include "blockmirror/base/shared_name.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/machine/graph.h"
#include "blockmirror/machine/move_source.h"
#include "blockmirror/machine/preflight.h"

#define BUSY 10000000000ull /* ns: a host that has just passed it on has a VMM to let go of it */
#define STEP 200000000ull
#define SHUT 10000000000ull /* ns */

bool shared_is(const json_t *disk)
{
	return json_object_get(disk, "shared");
}

/* What the caller said of it: how the target reaches it; "": as this host does; NULL: nothing. */
static const char *said(const struct source *s, const json_t *disk)
{
	const char *own =
		json_string_value(json_object_get(s->options.shared, graph_text(disk, "name")));

	return own ? own : json_string_value(json_object_get(s->options.shared, "*"));
}

int shared_find(struct source *s, json_t *disk, const json_t *shown, bool copied,
		struct bm_error *error)
{
	const char *name = graph_text(disk, "name"), *uri = graph_text(shown, "uri"),
		   *as = said(s, disk);
	const char *there = as && *as ? as : uri;

	if (!as && (s->options.into || copied || !bm_shared_by_name(uri)))
		return 0;
	if (bm_uri_format(uri))
		return bm_fail(error, BM_E_UNSUPPORTED,
			       "disk %s is on %s, which a helper of this host opens: only raw "
			       "storage is shared",
			       name, uri);
	if (copied)
		return bm_fail(error, BM_E_NOT_READY,
			       "disk %s has its storage, or a copy, on host %s, or can still be "
			       "undone: there is nothing to share",
			       name, s->m->peer);
	if (json_object_get(shown, "offer"))
		return bm_fail(error, BM_E_BUSY,
			       "disk %s was offered to host %s by itself: \"blockmirror migrate "
			       "disarm %s\" first",
			       name, graph_text(json_object_get(shown, "offer"), "host"), name);
	if (strstr(there, "***"))
		return bm_fail(error, BM_E_USAGE,
			       "%s has a password, which stays on this host: say "
			       "--shared=%s=URI, as host %s is to reach it",
			       there, name, s->m->peer);
	json_object_set_new(disk, "shared", json_string(there));
	json_object_set_new(disk, "said", json_boolean(as));
	return 0;
}

int shared_all_known(const struct source *s, struct bm_error *error)
{
	json_t *options = (json_t *)s->options.shared, *value;
	const char *name;

	json_object_foreach(options, name, value) {
		size_t i = 0;

		while (i < json_array_size(s->disks) &&
		       strcmp(name, graph_text(json_array_get(s->disks, i), "name")) != 0)
			i++;
		if (i == json_array_size(s->disks) && strcmp(name, "*") != 0)
			return bm_fail(error, BM_E_NOT_FOUND,
				       "--shared=%s: machine %s has no disk of that name", name,
				       s->m->machine);
	}
	return 0;
}

static int ask_for(struct source *s, const json_t *disk, bool look, struct bm_error *error)
{
	return move_ask_daemon(s->m, "remote.share",
			       json_pack("{s:s s:O s:O s:O s:O s:b}", "peer", s->m->peer, "name",
					 json_object_get(disk, "name"), "disk",
					 json_object_get(disk, "disk"), "uri",
					 json_object_get(disk, "shared"), "size",
					 json_object_get(disk, "size"), "look", (int)look),
			       NULL, error);
}

void shared_look(struct source *s, json_t *refusals)
{
	json_t *disk;
	size_t i;

	json_array_foreach(s->disks, i, disk) {
		struct bm_error error;

		/* One that just came from there may still be let go of. */
		if (shared_is(disk) && ask_for(s, disk, true, &error) < 0 &&
		    error.code != BM_E_BUSY)
			preflight_refuse_error(refusals, &error);
	}
}

int shared_begin(struct source *s, json_t *disk, struct bm_error *error)
{
	uint64_t end = move_now() + BUSY;
	int r;

	json_object_set_new(disk, "shares", json_true());
	r = move_save(s->m, error);
	while (!r) {
		r = ask_for(s, disk, false, error);
		if (r >= 0 || error->code != BM_E_BUSY || move_now() > end)
			break;
		move_sleep(STEP);
		r = 0;
	}
	return r;
}

int shared_witness(struct source *s, json_t *disk, json_t **witness, struct bm_error *error)
{
	json_t *result = NULL;
	int r = move_ask_disk(s->m, graph_text(disk, "name"), "witness", NULL, &result, error);

	if (r < 0)
		return r;
	*witness = json_incref(json_object_get(result, "witness"));
	json_decref(result);
	json_object_set(*witness, "said", json_object_get(disk, "said"));
	json_object_set(disk, "note", json_object_get(*witness, "note"));
	return 0;
}

void shared_give_up(struct source *s, const json_t *disk)
{
	struct bm_error error;

	if (!json_is_true(json_object_get(disk, "shares")) ||
	    move_ask_daemon(s->m, "remote.remove",
			    json_pack("{s:s s:O s:O}", "peer", s->m->peer, "name",
				      json_object_get(disk, "name"), "disk",
				      json_object_get(disk, "disk")),
			    NULL, &error) >= 0 ||
	    error.code == BM_E_NOT_FOUND)
		return;
	bm_log(BM_LOG_WARN, "%s: host %s still has a standby of disk %s: %s", s->m->id, s->m->peer,
	       graph_text(disk, "name"), error.text);
}

/* All at once, as long as there are the connections of those that have joined. */
int shared_let_go(struct source *s, struct bm_error *error)
{
	int id[MOVE_DISKS] = {0}, r = 0;
	json_t *disk;
	size_t i;

	json_array_foreach(s->disks, i, disk) {
		if (!shared_is(disk) || !s->disk[i])
			continue;
		bm_client_set_timeout(s->disk[i], SHUT);
		if (bm_client_send(s->disk[i], "shared-let-go",
				   json_pack("{s:s}", "move", s->m->id), &id[i], error) < 0)
			id[i] = 0;
	}
	json_array_foreach(s->disks, i, disk) {
		if (!shared_is(disk) ||
		    (id[i] && bm_client_wait(s->disk[i], id[i], NULL, NULL, error) > 0))
			continue;
		bm_client_close(s->disk[i]);
		s->disk[i] = NULL;
		if (!r)
			r = move_ask_disk(s->m, graph_text(disk, "name"), "shared-let-go",
					  json_pack("{s:s}", "move", s->m->id), NULL, error);
	}
	return r;
}

/* 1: nobody has written to it since; 0: somebody may have; -errno: it cannot be known. */
static int is_untouched(const char *uri, const json_t *disk)
{
	const char *path = bm_uri_path(uri), *note = graph_text(disk, "note");

	return path && *note ? bm_mark_has_note(path, note) : -ENOTSUP;
}

bool shared_memory_fits(struct source *s)
{
	json_t *disk;
	size_t i;

	json_array_foreach(s->disks, i, disk)
		if (shared_is(disk) && is_untouched(graph_text(disk, "uri"), disk) <= 0)
			return false;
	return true;
}

int shared_untouched(struct move *m, const json_t *disk, struct bm_error *error)
{
	const char *name = graph_text(disk, "name");
	json_t *shown = NULL;
	int r = move_ask_disk(m, name, "show", NULL, &shown, error);

	if (r < 0)
		return r;
	r = is_untouched(graph_text(shown, "uri"), disk);
	json_decref(shown);
	if (r > 0)
		return 0;
	return r < 0 ? bm_fail(error, BM_E_NOT_READY,
			       "disk %s is on storage of both hosts, and it cannot be known "
			       "whether "
			       "host %s has written to it since: the machine cannot go on here",
			       name, m->peer)
		     : bm_fail(error, BM_E_SPLIT,
			       "host %s may have written to disk %s since: the machine's memory "
			       "here may be older than that",
			       m->peer, name);
}
