/* SPDX-License-Identifier: BSD-3-Clause */
/* The source's side of a move, shared by move_source.c, move_disks.c and move_end.c. */
#ifndef BM_MACHINE_MOVE_SOURCE_H
#define BM_MACHINE_MOVE_SOURCE_H

#include "blockmirror/machine/move.h"

/* As the caller wants it; times in ns, 0: no limit. */
struct move_options {
	const char *into; /* folder of the target; NULL: the one that an image has here */
	bool overwrite, rehearse, dry_run, keep_copies;
	uint64_t budget, timeout;
};

struct source {
	struct move *m;
	struct move_options options;
	struct vm vm;
	json_t *disks; /* the plan's: name, socket; began: its move to the target is ours; joined */
	struct bm_client *disk[MOVE_DISKS]; /* since they have joined */
	struct bm_client *talk, *memory;    /* with the target */
	struct relay relay;
	json_t *commit; /* what the target is to know of each disk */
	uint64_t begun, resumed;
	uint64_t limit; /* of QEMU's last round; ns */
	uint64_t part;  /* when the last part of the pause ended */
	bool rehearsed; /* all that can be tried was, and is to be taken back */
};

/* move_disks.c. 0 or -errno; which disk it is about the error says. */
int disks_find(struct source *s, struct bm_error *error);
int disks_begin(struct source *s, struct bm_error *error); /* their moves to the target */
int disks_in_sync(struct source *s, bool *all, struct bm_error *error);
int disks_join(struct source *s, struct bm_error *error);
int disks_alive(struct source *s, struct bm_error *error);     /* those that have joined */
int disks_fence(struct source *s, struct bm_error *error);     /* sets commit */
int disks_ask_again(struct source *s, struct bm_error *error); /* the same, after the decision */
void disks_leave(struct source *s);   /* until each has done what the log says */
void disks_give_up(struct source *s); /* what was begun for the move */

/* move_source.c: one more part of the pause is over. */
void source_part(struct source *s, const char *name);

/* move_end.c */
int source_call(struct source *s, const char *method, json_t *params, uint64_t limit,
		json_t **result, struct bm_error *error);
int source_reach(struct source *s, struct bm_client **client, struct bm_error *error);
void source_close(struct source *s);
/* The log says that it is passed: until the target runs it, or says that it cannot. true: it does.
 */
bool source_commit(struct source *s, struct bm_error *error);
void source_done(struct source *s);
void source_abort(struct source *s, const struct bm_error *why);
/* A process that has died was at it. */
void source_recover(struct source *s);

#endif
