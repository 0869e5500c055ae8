/* SPDX-License-Identifier: BSD-3-Clause */
/* What the parts of a precopy share: life and states, rounds, target, orders. Loop thread only. */
#ifndef BM_RAM_PRECOPY_INSIDE_H
#define BM_RAM_PRECOPY_INSIDE_H

#include <jansson.h>
#include <stdatomic.h>

#include "blockmirror/base/cap.h"
#include "blockmirror/base/list.h"
#include "blockmirror/base/rpc.h"
#include "blockmirror/ram/pipe.h"
#include "blockmirror/ram/precopy_rule.h"
#include "blockmirror/ram/tracker.h"

enum { BM_MOVE_NAME = 64, BM_ROUNDS_KEPT = 64 };

/* Messages: to the target, and back. */
enum {
	BM_SAY_MACHINE = 1, /* JSON: what the machine is, and the move */
	BM_SAY_ROUND,       /* the pages of round n (4 bytes, big-endian) are all before this */
	BM_SAY_STATE,       /* version (4), the devices' state: all is there */
	BM_ANSWER_MACHINE,  /* it fits */
	BM_ANSWER_ROUND,    /* round n (4) is here */
	BM_ANSWER_LOADED,
	BM_ANSWER_REFUSED /* "E_CODE sentence" */
};

/* What a source does next, while COPYING and PAUSED. */
enum bm_copy_phase {
	BM_COPY_HELLO, /* the target looks at the machine */
	BM_COPY_TAKE,  /* what was written to */
	BM_COPY_SEND,
	BM_COPY_ANSWER, /* the target has the round */
	BM_COPY_REST,   /* nothing, for a moment */
	BM_COPY_STATE,  /* paused: the target loads */
	BM_COPY_LOADED
};

struct bm_precopy {
	struct bm_loop *loop;
	struct bm_precopy_machine machine;
	const struct bm_precopy_ops *ops;
	void *arg;
	struct bm_tracker *tracker;
	struct bm_rpc *rpc;
	enum bm_precopy_state state;
	char move[BM_MOVE_NAME]; /* the last one; empty: none yet */
	struct bm_error error;   /* why the last one ended, if it did not succeed */
	struct bm_pipe *pipe;
	struct bm_task dropped; /* the control connection */

	/* Source. */
	struct bm_rule rule;
	struct bm_cap *cap; /* NULL: none */
	enum bm_copy_phase phase;
	bool automatic, ordered, forced; /* pauses by itself; when told to; even if it is long */
	bool converged, ending;          /* ending: as soon as pause() was answered */
	struct bm_task step;
	struct bm_timer rest, limit;
	struct bm_task paused; /* posted by bm_precopy_paused() */
	atomic_int paused_result;
	uint64_t *bits[BM_RAM_REGIONS];           /* to be sent */
	_Atomic uint64_t *extra[BM_RAM_REGIONS];  /* bm_precopy_dirty() */
	unsigned region, round, kept;             /* kept: rounds in rounds[], all of them */
	uint64_t word, left, began;               /* where sending is; pages; ns */
	uint64_t wire, pages, pause_limit;        /* of this round; ns */
	uint64_t stopped_at, pause_bytes, loaded; /* ns; in the pause; ns it took */
	struct bm_precopy_round rounds[BM_ROUNDS_KEPT];

	/* Target. */
	bool fits;    /* the source's machine is ours */
	bool arrived; /* the last move brought it here, and not away */
	uint64_t received;
};

/* precopy.c */
void bm_precopy_enter(struct bm_precopy *p, enum bm_precopy_state state);
/* All subscribers hear what there is. */
void bm_precopy_tell(struct bm_precopy *p);
/*
 * The copy ends and the guest runs on here, whatever it was doing, with why; NULL: as ordered. Not
 * from within a callback of the pipe but failed() and ready().
 */
void bm_precopy_end(struct bm_precopy *p, const struct bm_error *why);
void bm_precopy_close_pipe(struct bm_precopy *p);
void bm_precopy_release(struct bm_precopy *p);
/* A guest that was moved, or not, is not slowed down any more. */
void bm_precopy_run_on(struct bm_precopy *p);

/* precopy_rounds.c: state COPYING begins. */
int bm_precopy_begin(struct bm_precopy *p, const char *path, unsigned connections,
		     struct bm_error *error);
void bm_precopy_step(struct bm_task *task);
void bm_precopy_rested(struct bm_timer *timer);
/* PAUSED has begun. */
void bm_precopy_last_round(struct bm_precopy *p);
json_t *bm_precopy_describe(const struct bm_precopy *p);

/* precopy_target.c: state RECEIVING begins. */
int bm_precopy_receive(struct bm_precopy *p, const char *path, unsigned connections,
		       struct bm_error *error);

/* precopy_control.c */
extern const struct bm_rpc_table bm_precopy_methods[];
json_t *bm_precopy_status(const struct bm_precopy *p);

#endif
