/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk in its machine's move, shared by move.c and move_file.c. */
#ifndef BM_DISK_MOVE_H
#define BM_DISK_MOVE_H

#include <stdbool.h>

#include "blockmirror/error.h"

struct bm_dev;
struct disk;

struct disk_move {
	char *id, *to, *log;
	bool keep;   /* the copy that is here stays, as a standby of the other host */
	bool shared; /* there is no copy: the other host reaches the storage itself */
	bool found;  /* by a process that was not there when it was joined */
	bool gone;   /* that storage is closed */
	bool passed; /* it is decided: the other host has the disk, whatever the log says */
};

struct disk_move *move_new(const char *id, const char *to, const char *log);

/*
 * These block. write: FOLDER/move, durably. pass_on: the record says that the disk is on the other
 * host. follow: what the log says is done; 1: that; 0: the disk is ours; -EAGAIN: not known yet.
 * alone: the other host is dead. opened: where storage goes that has to be opened again; NULL: none
 * can be.
 */
int move_file_write(const struct disk *disk, const struct disk_move *move);
int move_pass_on(struct disk *disk, struct bm_error *error);
int move_follow(struct disk *disk, bool alone, struct bm_dev **opened, struct bm_error *error);

#endif
