/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A move in doubt: it is not known whether the other host runs the machine, or may, and it does not
 * answer. Time decides nothing. Somebody who knows that it is dead does: hook fence of this host,
 * which ends with 0 only when that is proven (its power is off, say), or a person (recover).
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/log.h"
#include "blockmirror/machine/graph.h"
#include "blockmirror/machine/move.h"

#define FENCE_AFTER 3000000000ull  /* ns in doubt until the hook is asked first */
#define FENCE_AGAIN 30000000000ull /* and asked again */
#define OFTEN       30000000000ull /* ns between two words about the same trouble */

void doubt_tell(struct move *m, const char *format, ...)
{
	struct bm_error what;
	va_list args;
	uint64_t now = move_now();
	bool first = !atomic_exchange(&m->doubt.is, true);

	va_start(args, format);
	vsnprintf(what.text, sizeof(what.text), format, args);
	va_end(args);
	if (first)
		m->doubt.since = now;
	move_tell(m, "doubt", json_string(what.text));
	if (!first && now < m->doubt.told + OFTEN)
		return;
	bm_log(BM_LOG_ERROR,
	       "%s: in doubt: %s. It goes on when host %s answers; or, if that one is dead for "
	       "good: \"blockmirror recover --machine %s --resume-here --peer-is-dead\"",
	       m->id, what.text, m->peer, m->machine);
	m->doubt.told = now;
}

void doubt_end(struct move *m)
{
	if (!atomic_exchange(&m->doubt.is, false))
		return;
	m->doubt.asked = 0;
	pthread_mutex_lock(&m->lock);
	json_object_del(m->report, "doubt");
	pthread_mutex_unlock(&m->lock);
}

static bool hook_says(struct move *m)
{
	const uint64_t now = move_now();
	struct bm_error error;
	int r;

	if (now < m->doubt.since + FENCE_AFTER ||
	    (m->doubt.asked && now < m->doubt.asked + FENCE_AGAIN))
		return false;
	r = move_hook(m, "fence", json_pack("{s:O}", "side", json_object_get(m->plan, "side")),
		      NULL, &error);
	m->doubt.asked = move_now();
	if (!r)
		bm_log(BM_LOG_WARN, "%s: hook fence says that host %s is dead", m->id, m->peer);
	else if (r != -ENOENT)
		bm_log(BM_LOG_WARN, "%s: host %s is not known to be dead: %s", m->id, m->peer,
		       error.text);
	return !r;
}

bool doubt_peer_is_dead(struct move *m)
{
	if (!m->doubt.fenced && (atomic_load(&m->doubt.dead) || hook_says(m)))
		m->doubt.fenced = true;
	return m->doubt.fenced;
}

bool doubt_for_good(struct move *m)
{
	return atomic_load(&m->doubt.dead);
}

void doubt_verdict(struct move *m, const struct bm_error *why)
{
	move_tell(m, "verdict",
		  json_pack("{s:s s:s}", "code", bm_code_name(why->code), "message", why->text));
	atomic_store(&m->doubt.dead, false);
	m->doubt.fenced = false;
}

int doubt_recover(struct move *m, bool dead, json_t **told, struct bm_error *error)
{
	const char *doubt;

	if (!atomic_load(&m->doubt.is))
		return bm_fail(error, BM_E_NOT_READY, "the move of machine %s is not in doubt",
			       m->machine);
	pthread_mutex_lock(&m->lock);
	json_object_del(m->report, "verdict");
	doubt = json_string_value(json_object_get(m->report, "doubt"));
	*told = json_pack("{s:s s:s s:b}", "move", m->id, "told", doubt ? doubt : "", "dead",
			  (int)dead);
	pthread_mutex_unlock(&m->lock);
	if (!dead)
		return 0;
	bm_log(BM_LOG_WARN, "%s: somebody says that host %s is dead for good", m->id, m->peer);
	atomic_store(&m->doubt.dead, true);
	return 0;
}

bool doubt_known_there(struct move *m)
{
	struct bm_error error;
	json_t *result = NULL;
	bool known = true;

	if (!move_ask_daemon(m, "remote.move-state",
			     json_pack("{s:s s:s}", "peer", m->peer, "move", m->id), &result,
			     &error))
		known = json_is_true(json_object_get(result, "known"));
	json_decref(result);
	return known;
}

/* What the target's standbys have got so far: by which process, and how many writes. */
json_t *standbys_seen(struct move *m, const json_t *disks)
{
	json_t *seen = json_array();

	for (size_t i = 0; i < json_array_size(disks); i++) {
		const char *name = graph_text(json_array_get(disks, i), "name");
		struct bm_error error;
		json_t *shown = NULL;

		if (move_ask_disk(m, name, "show", NULL, &shown, &error) < 0)
			shown = json_object();
		json_array_append_new(seen, json_pack("{s:s s:O* s:O*}", "name", name, "pid",
						      json_object_get(shown, "pid"), "mirrored",
						      json_object_get(shown, "mirrored")));
		json_decref(shown);
	}
	return seen;
}

/*
 *	The source fences its disks, and says so; its log cannot be written, so it aborts, and runs
 *	on; its guest writes, here too; it dies for good. The memory here is older than the disks.
 *
 * So of a disk that was written to since, nothing is begun.
 */
int standbys_untouched(struct move *m, struct bm_error *error)
{
	const json_t *disks = json_object_get(m->plan, "commit"),
		     *before = json_object_get(m->plan, "seen");
	json_t *now;
	int r = 0;

	if (!json_array_size(disks))
		return bm_fail(error, BM_E_NOT_READY,
			       "host %s had not said that its disks were whole here when it died: "
			       "the machine cannot go on here",
			       m->peer);
	now = standbys_seen(m, disks);
	for (size_t i = 0; !r && i < json_array_size(now); i++)
		if (json_object_get(json_array_get(disks, i), "shared"))
			r = shared_untouched(m, json_array_get(disks, i), error);
		else if (!json_object_get(json_array_get(now, i), "mirrored") ||
			 !json_equal(json_array_get(now, i), json_array_get(before, i)))
			r = bm_fail(error, BM_E_SPLIT,
				    "host %s has written to disk %s since, or its process here is "
				    "another one: the machine's memory here may be older than that",
				    m->peer, graph_text(json_array_get(now, i), "name"));
	json_decref(now);
	return r;
}
