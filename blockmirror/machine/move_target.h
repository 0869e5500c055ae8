/* SPDX-License-Identifier: BSD-3-Clause */
/* The target's side of a move, shared by move_target.c and move_alone.c. */
#ifndef BM_MACHINE_MOVE_TARGET_H
#define BM_MACHINE_MOVE_TARGET_H

#include "blockmirror/machine/move.h"

struct target {
	struct move *m;
	struct door *door;
	struct visitor *talk; /* NULL: nobody is there */
	struct vm vm;
	char *qmp, *incoming;
	struct incoming memory;
	json_t *checked; /* the answer to "check" */
	bool noted;      /* what it was told of the disks is in the plan's file */
	uint64_t heard;
	bool over;
};

/* move_target.c. is_loaded: it is there, whole, and waits for "cont", or runs. */
bool target_is_loaded(struct target *t);
void target_end_vm(struct target *t);
/* Until all are ours; alone: the source is dead, and has not let go of those of both hosts. */
void target_take_disks(struct target *t, json_t *disks, bool alone);
void target_run(struct target *t);
void target_give_up(struct target *t);

/*
 * move_alone.c. note_fenced: the source is about to decide. look: whenever nothing else is to be
 * done. go_alone: the log says that it begins here by itself. fenced_out: the source has it again.
 */
int target_note_fenced(struct target *t, json_t *params);
void target_look_at_doubt(struct target *t);
void target_go_alone(struct target *t);
int target_fenced_out(struct target *t, struct bm_error *error);

#endif
