/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The host that a machine goes to, when the other one does not answer any more (docs/machine.md, In
 * doubt): it begins by itself only when that one is known to be dead, and what is here is whole.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/machine/graph.h"
#include "blockmirror/machine/move_target.h"

/* The source is about to decide. Should it die then, this is what we know of its disks. */
int target_note_fenced(struct target *t, json_t *params)
{
	json_t *disks = json_object_get(params, "disks");

	json_object_set(t->m->plan, "commit", disks);
	json_object_set_new(t->m->plan, "seen", standbys_seen(t->m, disks));
	return 0;
}

/* Nobody will say "commit" again: a process that follows one that died here does this, too. */
void target_go_alone(struct target *t)
{
	move_step(t->m, "alone");
	move_phase(t->m, "started");
	target_take_disks(t, json_object_get(t->m->plan, "commit"), true);
	target_run(t);
	vm_close(&t->vm); /* somebody else may want to talk to it */
	move_phase(t->m, "running");
}

/* It has voted, and nobody says what became of that. */
static void in_doubt(struct target *t)
{
	struct bm_error error = {0};

	if (!t->noted && json_object_get(t->m->plan, "seen"))
		t->noted = move_save(t->m, &error) >= 0;
	doubt_tell(t->m,
		   "machine %s is here whole and stopped, and it is not known whether it runs on "
		   "host %s",
		   t->m->machine, t->m->peer);
	/* The source forgets only what it has aborted, as long as we have not begun. */
	if (!target_is_loaded(t) && !doubt_known_there(t->m)) {
		target_give_up(t);
		t->over = true;
		return;
	}
	if (!doubt_peer_is_dead(t->m))
		return;
	if (!target_is_loaded(t))
		bm_fail(&error, BM_E_INTERRUPTED, "the machine is not here any more");
	else
		standbys_untouched(t->m, &error);
	if (error.code) {
		bm_log(BM_LOG_ERROR, "%s: %s", t->m->id, error.text);
		doubt_verdict(t->m, &error);
		return;
	}
	json_object_set_new(t->m->plan, "alone", json_true());
	if (move_save(t->m, &error) < 0) {
		bm_log(BM_LOG_ERROR, "%s: %s", t->m->id, error.text);
		return;
	}
	move_must_log(t->m, BM_MOVE_STARTED);
	target_go_alone(t);
}

/* It runs here, and the source does not know. */
static void is_not_heard(struct target *t)
{
	doubt_tell(t->m, "machine %s runs here, and host %s does not know that yet", t->m->machine,
		   t->m->peer);
	if (!doubt_for_good(t->m))
		return;
	move_must_log(t->m, BM_MOVE_DONE);
	t->over = true;
}

void target_look_at_doubt(struct target *t)
{
	if (t->talk)
		doubt_end(t->m);
	else if (t->m->log.state == BM_MOVE_VOTED)
		in_doubt(t);
	else if (t->m->log.state == BM_MOVE_STARTED && json_object_get(t->m->plan, "commit"))
		is_not_heard(t);
}

/*
 * Its process cannot start: the source has the storage of both hosts open. The next one finds this,
 * and writes the record.
 */
static int leave_word(struct target *t, const char *name, struct bm_error *error)
{
	bm_free char *path = NULL, *beside = NULL, *text = NULL;
	json_t *word = json_pack("{s:s s:s s:s s:b s:b}", "move", t->m->id, "to", t->m->peer, "log",
				 "", "keep", 0, "passed", 1);
	int r;

	text = json_dumps(word, JSON_COMPACT);
	json_decref(word);
	if (asprintf(&path, "%s/disks/%s/move", t->m->state, name) < 0)
		path = bm_need(NULL);
	if (asprintf(&beside, "%s.new", path) < 0)
		beside = bm_need(NULL);
	r = bm_write_durably(beside, bm_need(text), strlen(text));
	if (!r)
		r = bm_rename_durably(beside, path);
	return r < 0 ? bm_fail_errno(error, r, "cannot write %s", path)
		     : bm_fail(error, BM_E_BUSY, "disk %s is just being retired", name);
}

static int retire(struct target *t, const char *name, struct bm_error *error)
{
	if (move_ask_disk(t->m, name, "retire", json_pack("{s:s}", "to", t->m->peer), NULL,
			  error) >= 0 ||
	    move_disk_is_retired(t->m, name))
		return 0;
	if (error->code == BM_E_NOT_FOUND || error->code == BM_E_UNREACHABLE)
		return leave_word(t, name, error);
	return -EBUSY;
}

/* The source was told that we are dead, and has the machine again. */
int target_fenced_out(struct target *t, struct bm_error *error)
{
	json_t *disk;
	size_t i;
	int r = 0;

	bm_log(BM_LOG_WARN, "%s: host %s was told that this one is dead, and has the machine",
	       t->m->id, t->m->peer);
	target_end_vm(t);
	/* All of the plan: a process that follows may not know what was said with "commit". */
	json_array_foreach(json_object_get(t->m->plan, "disks"), i, disk)
		if (!r)
			r = retire(t, graph_text(disk, "name"), error);
	return r;
}
