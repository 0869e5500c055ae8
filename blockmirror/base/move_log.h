/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The log of a machine's move on one host (docs/machine.md): entries of 512 bytes in a file that
 * has room for them from the beginning. The last good one says how far the move has come; on the
 * source host it is what decides where all disks of the machine are. One process writes, which
 * holds the file's lock as long as it lives; whoever else reads has made durable what he believes.
 * All functions block.
 */
#ifndef BM_BASE_MOVE_LOG_H
#define BM_BASE_MOVE_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "blockmirror/error.h"

enum bm_move_state {
	BM_MOVE_NONE, /* nothing is written yet */
	BM_MOVE_BEGUN,
	BM_MOVE_VOTED,   /* target: the machine is here whole, and paused */
	BM_MOVE_STARTED, /* target: it runs here, or did */
	BM_MOVE_GONE,    /* target: it is not here, and will not be */
	BM_MOVE_PASSED,  /* source: the target may start it, and may have */
	BM_MOVE_ABORTED, /* source: it is here, and stays */
	BM_MOVE_DONE,    /* source: it is there for good; target: and the source knows */
	BM_MOVE_STATES
};

struct bm_move_log {
	int fd; /* -1: none */
	unsigned next;
	enum bm_move_state state;
};

const char *bm_move_state_name(enum bm_move_state state);

/*
 * A new one, empty, locked. open: one that is there, for its writer; -EWOULDBLOCK when it has one.
 * What it says is written once more before it is believed: the process that wrote it may have died
 * between its write and its sync.
 */
int bm_move_log_create(const char *path, struct bm_move_log *log);
int bm_move_log_open(const char *path, struct bm_move_log *log);
void bm_move_log_close(struct bm_move_log *log);

/* 0: it is durable. Else it may be there or not. */
int bm_move_log_append(struct bm_move_log *log, enum bm_move_state state);

/*
 * What it says, for who does not write it, and durable. A writer that lives may say more at any
 * moment, but takes none of BM_MOVE_ABORTED and BM_MOVE_DONE back. -errno: it cannot be read.
 */
int bm_move_log_read(const char *path, enum bm_move_state *state);

/* Whether a process writes it now. */
bool bm_move_log_busy(const char *path);

#endif
