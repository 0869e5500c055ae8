/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The host that a machine goes to, when the other one does not answer any more (docs/machine.md, In
 * doubt): it begins by itself only when that one is known to be dead, and what is here is whole.
 */
#include "blockmirror/base/log.h"
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
	target_take_disks(t, json_object_get(t->m->plan, "commit"));
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

/* The source was told that we are dead, and has the machine again. */
int target_fenced_out(struct target *t, struct bm_error *error)
{
	json_t *disk;
	size_t i;
	int r = 0;

	bm_log(BM_LOG_WARN, "%s: host %s was told that this one is dead, and has the machine",
	       t->m->id, t->m->peer);
	target_end_vm(t);
	json_array_foreach(json_object_get(t->m->plan, "commit"), i, disk)
		if (!r)
			r = move_ask_disk(t->m, graph_text(disk, "name"), "retire",
					  json_pack("{s:s}", "to", t->m->peer), NULL, error);
	return r;
}
